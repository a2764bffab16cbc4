//! The seam between descriptions and what is open: a plan names a table or an operator, an [`Opener`] has its source or its
//! state.
//!
//! One opener belongs to one query (its sources stay open across epochs) or to one session (scans outside of queries).
//! On another machine the same plan would meet another opener.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::catalog::TableDefinition;
use crate::connector::{Connectors, Environment, Owner, Partition, ReadReport, Source};
use crate::error::{Error, Result};
use crate::state::operator::Operator;

/// Opens sources once, and keeps operators' state and what reads report.
#[derive(Debug)]
pub struct Opener {
    connectors: Connectors,
    environment: Environment,
    owner: Option<Owner>,
    open: tokio::sync::Mutex<BTreeMap<String, Arc<dyn Source>>>,
    reports: Mutex<BTreeMap<String, ReadReport>>,
    operators: Mutex<BTreeMap<String, Arc<Operator>>>,
    late: Mutex<LateRows>,
}

/// How many rows were late, by operator and by the partition they came from.
pub type LateRows = BTreeMap<String, BTreeMap<String, u64>>;

impl Opener {
    /// An opener with nothing open yet; `owner` is the query it works for.
    pub fn new(connectors: Connectors, environment: Environment, owner: Option<Owner>) -> Self {
        Self {
            connectors,
            environment,
            owner,
            open: Default::default(),
            reports: Default::default(),
            operators: Default::default(),
            late: Default::default(),
        }
    }

    /// The source of `table`, opened when it is asked for first.
    pub async fn source(&self, table: &Arc<TableDefinition>) -> Result<Arc<dyn Source>> {
        let mut open = self.open.lock().await;
        if let Some(source) = open.get(&table.name) {
            return Ok(Arc::clone(source));
        }
        let connector = self.connectors.of(table)?;
        let source = connector.source(Arc::clone(table), &self.environment, self.owner.as_ref()).await?;
        open.insert(table.name.clone(), Arc::clone(&source));
        Ok(source)
    }

    /// What reads of `table` saw; shared by all of them.
    pub fn report(&self, table: &str) -> ReadReport {
        let mut reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        reports.entry(table.to_owned()).or_default().clone()
    }

    /// Puts the state of the query's operators in the place of what was there.
    pub fn set_operators(&self, operators: impl IntoIterator<Item = Operator>) {
        let named = operators.into_iter().map(|operator| (operator.layout().name.clone(), Arc::new(operator)));
        *self.operators.lock().unwrap_or_else(PoisonError::into_inner) = named.collect();
    }

    /// The state of an operator.
    pub fn operator(&self, name: &str) -> Result<Arc<Operator>> {
        let operators = self.operators.lock().unwrap_or_else(PoisonError::into_inner);
        operators
            .get(name)
            .cloned()
            .ok_or_else(|| Error::internal(format!("the state of {name} was not restored before it was used")))
    }

    /// The state of all operators.
    pub fn operators(&self) -> Vec<Arc<Operator>> {
        self.operators.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Counts rows that were late for `operator`.
    pub fn count_late(&self, operator: &str, from: Option<&Partition>, rows: u64) {
        let from = from.map_or_else(|| "unknown".to_owned(), Partition::to_string);
        let mut late = self.late.lock().unwrap_or_else(PoisonError::into_inner);
        *late.entry(operator.to_owned()).or_default().entry(from).or_default() += rows;
    }

    /// Takes what was counted so far.
    pub fn take_late(&self) -> LateRows {
        std::mem::take(&mut *self.late.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What connectors get from the outside.
    pub fn environment(&self) -> &Environment {
        &self.environment
    }

    /// The connectors that are known.
    pub fn connectors(&self) -> &Connectors {
        &self.connectors
    }

    /// Closes every source.
    pub async fn close(&self) {
        let open = std::mem::take(&mut *self.open.lock().await);
        for source in open.into_values() {
            source.close().await;
        }
    }
}

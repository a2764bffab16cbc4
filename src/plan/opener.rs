//! The seam between descriptions and what is open: a plan names a table or an operator, an [`Opener`] has its source or its
//! state.
//!
//! One opener belongs to one query (its sources stay open across epochs) or to one session (scans outside of queries).
//! On another machine the same plan would meet another opener.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::RecordBatch;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::ExecutionPlan;

use super::shared::{SharedTable, shared_tables};
use crate::catalog::TableDefinition;
use crate::connector::dead_letters::DeadLetters;
use crate::connector::spool::{Spool, Spooled};
use crate::connector::{Connectors, Environment, Owner, ReadReport, Source, Span};
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
    shared: Mutex<BTreeMap<String, Arc<SharedTable>>>,
    operators: Mutex<BTreeMap<String, Arc<Operator>>>,
    late: Mutex<LateRows>,
    kept_late: Mutex<BTreeMap<(String, usize), Spool>>,
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
            shared: Default::default(),
            operators: Default::default(),
            late: Default::default(),
            kept_late: Default::default(),
        }
    }

    /// The same, with a place for the dead letters of these tables.
    pub fn with_dead_letters(self, letters: impl IntoIterator<Item = (String, Arc<DeadLetters>)>) -> Self {
        let reports = letters.into_iter().map(|(table, letters)| (table, ReadReport::with_dead_letters(letters)));
        Self { reports: Mutex::new(reports.collect()), ..self }
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

    /// From now on, what several of these plans scan is read once for all of them.
    pub fn share(&self, plans: &[Arc<dyn ExecutionPlan>]) {
        let shared = shared_tables(plans).into_iter().map(|(table, shared)| (table, Arc::new(shared)));
        *self.shared.lock().unwrap_or_else(PoisonError::into_inner) = shared.collect();
    }

    /// The rows of a span of `table`, which `source` reads, in these columns.
    pub fn read(
        &self,
        source: &Arc<dyn Source>,
        table: &str,
        span: &Span,
        columns: &[usize],
    ) -> Result<SendableRecordBatchStream> {
        let shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner).get(table).cloned();
        let Some(shared) = shared else { return source.read(span, columns, &self.report(table)) };
        shared.read(span, columns, |columns, is_for_all| {
            // What one plan reads for itself was reported for all of them.
            let report = if is_for_all { self.report(table) } else { self.report(table).aside() };
            source.read(span, columns, &report)
        })
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

    /// Counts rows that were late for `operator`, from this partition of a source.
    pub fn count_late(&self, operator: &str, from: String, rows: u64) {
        let mut late = self.late.lock().unwrap_or_else(PoisonError::into_inner);
        *late.entry(operator.to_owned()).or_default().entry(from).or_default() += rows;
    }

    /// Takes what was counted so far.
    pub fn take_late(&self) -> LateRows {
        std::mem::take(&mut *self.late.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Keeps rows of the table for late rows, that were late for `operator` in this partition of its input.
    pub fn keep_late(&self, operator: &str, partition: usize, rows: &RecordBatch) -> Result<()> {
        let mut kept = self.kept_late.lock().unwrap_or_else(PoisonError::into_inner);
        match kept.entry((operator.to_owned(), partition)) {
            Entry::Occupied(mut spool) => spool.get_mut().write(rows),
            Entry::Vacant(place) => place.insert(Spool::try_new(&rows.schema())?).write(rows),
        }
    }

    /// Takes what was kept so far, in an order that does not depend on which partition was faster.
    pub fn take_kept_late(&self) -> Result<Vec<Spooled>> {
        let kept = std::mem::take(&mut *self.kept_late.lock().unwrap_or_else(PoisonError::into_inner));
        kept.into_values().map(Spool::finish).collect()
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

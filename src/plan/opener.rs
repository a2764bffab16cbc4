//! The seam between descriptions and open sources: a plan names a table, an [`Opener`] has it open.
//!
//! One opener belongs to one query (its sources stay open across epochs) or to one session (scans outside of queries).
//! On another machine the same plan would meet another opener.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::catalog::TableDefinition;
use crate::connector::{Connectors, Environment, Owner, ReadReport, Source};
use crate::error::Result;

/// Opens sources once, and keeps what their reads report.
#[derive(Debug)]
pub struct Opener {
    connectors: Connectors,
    environment: Environment,
    owner: Option<Owner>,
    open: tokio::sync::Mutex<BTreeMap<String, Arc<dyn Source>>>,
    reports: Mutex<BTreeMap<String, ReadReport>>,
}

impl Opener {
    /// An opener with nothing open yet; `owner` is the query it works for.
    pub fn new(connectors: Connectors, environment: Environment, owner: Option<Owner>) -> Self {
        Self { connectors, environment, owner, open: Default::default(), reports: Default::default() }
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

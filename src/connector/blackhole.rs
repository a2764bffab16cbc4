//! Rows to nowhere: `'connector' = 'blackhole'`, for measuring a query without its destination.
//!
//! Rows are counted and dropped. Nothing can be seen downstream, so the weakest guarantee is the honest one. It has no
//! options.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use datafusion::execution::SendableRecordBatchStream;
use futures::StreamExt;

use super::messages::{check_metadata, refuse_layout};
use super::{Connector, Delivery, Environment, Guarantee, Owner, Pin, Published, Role, Sink, Source, Staged};
use crate::catalog::TableDefinition;
use crate::error::{Error, Result};
use crate::sql::options::OptionReader;

/// The connector `blackhole`.
#[derive(Debug, Default)]
pub struct BlackholeConnector;

fn no_source(table: &TableDefinition) -> Error {
    Error::usage(format!("table {}: blackhole only takes rows; read from a table of another connector", table.name))
}

#[async_trait]
impl Connector for BlackholeConnector {
    fn name(&self) -> &'static str {
        "blackhole"
    }

    fn check(&self, table: &TableDefinition, role: Role) -> Result<()> {
        check_metadata(table, &[], true)?;
        refuse_layout(table)?;
        OptionReader::new(table).finish()?;
        if role == Role::Source { Err(no_source(table)) } else { Ok(()) }
    }

    fn identity(&self, _table: &TableDefinition) -> Result<String> {
        Ok("blackhole".into())
    }

    fn guarantee(&self, _table: &TableDefinition) -> Result<Guarantee> {
        Ok(guarantee())
    }

    fn takes_updates(&self, _table: &TableDefinition) -> bool {
        true
    }

    fn takes_back(&self, _table: &TableDefinition) -> bool {
        true
    }

    async fn source(
        &self,
        table: Arc<TableDefinition>,
        _environment: &Environment,
        _owner: Option<&Owner>,
    ) -> Result<Arc<dyn Source>> {
        Err(no_source(&table))
    }

    async fn sink(&self, _table: Arc<TableDefinition>, _: &Environment, _: &Owner) -> Result<Arc<dyn Sink>> {
        Ok(Arc::new(Blackhole::default()))
    }
}

fn guarantee() -> Guarantee {
    Guarantee { delivery: Delivery::AtLeastOnce, reason: "rows are counted and dropped".into() }
}

/// For each epoch, the rows of each task.
type Counts = BTreeMap<u64, BTreeMap<u32, u64>>;

#[derive(Debug, Default)]
struct Blackhole {
    staged: Mutex<Counts>,
}

impl Blackhole {
    fn staged(&self) -> MutexGuard<'_, Counts> {
        self.staged.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Sink for Blackhole {
    fn guarantee(&self) -> Guarantee {
        guarantee()
    }

    async fn open(&self, _run: u64) -> Result<()> {
        Ok(())
    }

    async fn stage(&self, epoch: u64, task: u32, _pin: &Pin, mut rows: SendableRecordBatchStream) -> Result<Staged> {
        let mut staged = Staged::default();
        while let Some(batch) = rows.next().await {
            staged.rows += batch?.num_rows() as u64;
        }
        self.staged().entry(epoch).or_default().insert(task, staged.rows);
        Ok(staged)
    }

    async fn publish(&self, epoch: u64, _pin: &Pin) -> Result<Published> {
        let tasks = self.staged().remove(&epoch).unwrap_or_default();
        Ok(Published { rows: tasks.values().sum(), ..Published::default() })
    }

    async fn take_back(&self, _epoch: u64) -> Result<u64> {
        Ok(0)
    }

    async fn discard(&self, epoch: u64) {
        self.staged().remove(&epoch);
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Int64Array, RecordBatch};

    use super::*;
    use crate::connector::contract::{self, SinkCase, fixture};

    #[tokio::test]
    async fn blackhole_keeps_the_contract_of_a_sink() {
        let rows = RecordBatch::try_from_iter([("id", Arc::new(Int64Array::from_iter_values(0..9)) as _)]).unwrap();
        let table = fixture::table_of("t", &rows.schema(), &[("connector", "blackhole")]);
        let make = async || {
            BlackholeConnector.sink(table.clone(), &fixture::environment(), &fixture::owner("a")).await.unwrap()
        };
        contract::sink(&SinkCase { rows, ordered: false, fences: false }, make, async || None).await;
    }

    #[test]
    fn it_is_no_source() {
        let schema = arrow::datatypes::Schema::empty();
        let table = fixture::table_of("t", &schema, &[("connector", "blackhole")]);
        BlackholeConnector.check(&table, Role::Sink).unwrap();
        let error = BlackholeConnector.check(&table, Role::Source).unwrap_err();
        assert_eq!(error.to_string(), "table t: blackhole only takes rows; read from a table of another connector");
    }
}

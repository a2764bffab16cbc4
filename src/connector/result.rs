//! Rows to whoever asked: where a SELECT goes that runs as a query of its own.
//!
//! The rows of an epoch come out of a channel when it is published; until then they wait in a [spool](super::spool).
//! Who reads slowly holds the query back, and when nobody reads any more it ends. A session makes such a connector for
//! one SELECT, so no table of a user's can name it.
//!
//! At-least-once: a channel remembers nothing.

use std::sync::Arc;

use arrow::array::RecordBatch;
use async_trait::async_trait;
use datafusion::execution::SendableRecordBatchStream;
use tokio::sync::mpsc::Sender;

use super::spool::Waiting;
use super::{Connector, Delivery, Environment, Guarantee, Owner, Pin, Published, Role, Sink, Source, Staged};
use crate::catalog::TableDefinition;
use crate::error::{Error, Result};

/// Its name.
pub const NAME: &str = "result";

/// The connector of one SELECT.
#[derive(Debug)]
pub struct ResultConnector {
    rows: Sender<RecordBatch>,
}

impl ResultConnector {
    /// Sends rows there.
    pub fn new(rows: Sender<RecordBatch>) -> Self {
        Self { rows }
    }
}

fn no_source(table: &TableDefinition) -> Error {
    Error::internal(format!("table {}: a result is only written", table.name))
}

fn guarantee() -> Guarantee {
    Guarantee {
        delivery: Delivery::AtLeastOnce,
        reason:
            "nothing is remembered of rows that were handed over, so an epoch without a commit is handed over again"
                .into(),
    }
}

#[async_trait]
impl Connector for ResultConnector {
    fn name(&self) -> &'static str {
        NAME
    }

    fn check(&self, table: &TableDefinition, role: Role) -> Result<()> {
        if role == Role::Source { Err(no_source(table)) } else { Ok(()) }
    }

    fn identity(&self, _table: &TableDefinition) -> Result<String> {
        Ok(NAME.into())
    }

    fn guarantee(&self, _table: &TableDefinition) -> Result<Guarantee> {
        Ok(guarantee())
    }

    fn takes_updates(&self, _table: &TableDefinition) -> bool {
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
        Ok(Arc::new(ResultSink { rows: self.rows.clone(), staged: Waiting::default() }))
    }
}

#[derive(Debug)]
struct ResultSink {
    rows: Sender<RecordBatch>,
    staged: Waiting,
}

#[async_trait]
impl Sink for ResultSink {
    fn guarantee(&self) -> Guarantee {
        guarantee()
    }

    async fn open(&self, _run: u64) -> Result<()> {
        Ok(())
    }

    async fn stage(&self, epoch: u64, task: u32, _pin: &Pin, rows: SendableRecordBatchStream) -> Result<Staged> {
        self.staged.stage(epoch, task, rows).await
    }

    /// Hands over all that was staged, in the order of the tasks.
    async fn publish(&self, epoch: u64, _pin: &Pin) -> Result<Published> {
        let mut published = Published::default();
        for spooled in self.staged.take(epoch).into_values() {
            for batch in spooled.into_batches()? {
                let batch = batch?;
                published.rows += batch.num_rows() as u64;
                self.rows.send(batch).await.map_err(|_| Error::refused("nobody reads the result any more"))?;
            }
        }
        Ok(published)
    }

    async fn discard(&self, epoch: u64) {
        self.staged.take(epoch);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use arrow::array::Int64Array;
    use tokio::sync::mpsc;

    use super::*;
    use crate::connector::contract::{self, SinkCase, fixture, lines};
    use crate::error::Kind;

    fn rows() -> RecordBatch {
        RecordBatch::try_from_iter([("id", Arc::new(Int64Array::from_iter_values(0..9)) as _)]).unwrap()
    }

    #[tokio::test]
    async fn a_result_keeps_the_contract_of_a_sink() {
        let (sender, receiver) = mpsc::channel(1_000);
        let (receiver, seen) = (Mutex::new(receiver), Mutex::new(vec![]));
        let connector = ResultConnector::new(sender);
        let table = fixture::table_of("t", &rows().schema(), &[("connector", NAME)]);
        let make = async || connector.sink(table.clone(), &fixture::environment(), &fixture::owner("a")).await.unwrap();
        let visible = async || {
            let mut seen = seen.lock().unwrap();
            while let Ok(batch) = receiver.lock().unwrap().try_recv() {
                seen.extend(lines(&batch));
            }
            Some(seen.clone())
        };
        contract::sink(&SinkCase { rows: rows(), ordered: true, fences: false }, make, visible).await;
    }

    #[tokio::test]
    async fn a_query_that_nobody_reads_is_refused() {
        let (sender, receiver) = mpsc::channel(1);
        let table = fixture::table_of("t", &rows().schema(), &[("connector", NAME)]);
        let connector = ResultConnector::new(sender);
        let sink = connector.sink(table, &fixture::environment(), &fixture::owner("a")).await.unwrap();
        sink.stage(1, 0, &Pin::Null, fixture::stream(&rows())).await.unwrap();
        drop(receiver);
        assert_eq!(sink.publish(1, &Pin::Null).await.unwrap_err().kind(), Kind::Refused);
    }
}

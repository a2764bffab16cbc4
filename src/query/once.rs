//! Rows that are written once, without a checkpoint: `INSERT INTO … VALUES`, and what has an end under
//! `'execution.mode' = 'batch'`.
//!
//! The idea: the rows are the only epoch of a query that nobody runs again. A sink needs no more than that: it is opened
//! under a new id, stages, and publishes epoch 1.
//!
//! Guarantee: when this returns, every row is where it belongs, as often as the destination's guarantee says of a run
//! without trouble: once. Nothing is readable before all rows are staged.
//!
//! Not promised: anything after a crash or an error. It is not resumed and not tried again; rows may be there, all or some
//! of them, where the destination does not take an epoch as a whole, and whoever says it again writes them again. Whoever
//! stops waiting stops the writing. In a progress topic the id's record stays.

use std::sync::Arc;

use datafusion::execution::SendableRecordBatchStream;
use tokio::task::JoinSet;

use crate::catalog::TableDefinition;
use crate::checkpoint::Journal;
use crate::connector::{Connectors, Environment, Owner, Published, Sink};
use crate::error::{Error, Result};

/// The only run, and its only epoch.
const RUN: u64 = 1;
const EPOCH: u64 = 1;

/// Writes these rows to `table`, a task each; they have its [`writable_schema`](TableDefinition::writable_schema).
pub async fn write(
    table: &Arc<TableDefinition>,
    tasks: Vec<SendableRecordBatchStream>,
    connectors: &Connectors,
    environment: &Environment,
) -> Result<Published> {
    let owner = Owner { id: environment.clock.random_id().into(), journal: Journal::detached() };
    let sink = connectors.of(table)?.sink(Arc::clone(table), environment, &owner).await?;
    let published = publish(&sink, tasks).await;
    if published.is_err() {
        sink.discard(EPOCH).await;
    }
    sink.close().await;
    published
}

async fn publish(sink: &Arc<dyn Sink>, tasks: Vec<SendableRecordBatchStream>) -> Result<Published> {
    sink.open(RUN).await?;
    let pin = sink.prepare(EPOCH).await?;
    // Tasks that go when nobody waits any more.
    let mut staging = JoinSet::new();
    for (task, rows) in tasks.into_iter().enumerate() {
        let (sink, pin) = (Arc::clone(sink), pin.clone());
        staging.spawn(async move { sink.stage(EPOCH, task as u32, &pin, rows).await });
    }
    // All of them, so that what is discarded is whole.
    let mut staged = vec![];
    while let Some(done) = staging.join_next().await {
        staged.push(done);
    }
    for done in staged {
        done.map_err(|e| Error::internal("a task ended by itself").caused_by(e))??;
    }
    sink.publish(EPOCH, &pin).await
}

//! A topic as a sink.
//!
//! The idea: rows are encoded as they come. Exactly-once, they enter the epoch's transaction at once, which nobody
//! reads before it is committed ([`Transactions`]); else they wait in spools, so that nothing is readable before all
//! tasks have staged ([`Spools`]). Of a result that changes a row is an upsert, and what is taken back for good a
//! tombstone: a message with its key and the value NULL, which deletes the key from a compacted topic.
//!
//! What it guarantees: a published epoch is in the topic, every row of it, acknowledged by all replicas in sync, unless
//! no delivery is asked for. Rows of a task with the same key keep their order. Everything that blocks runs on a thread
//! of its own, and stops when its caller does.
//!
//! What it does not promise: a timestamp of exactly 0 ms since 1970 cannot be written: librdkafka takes it for the time
//! of sending.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use datafusion::execution::SendableRecordBatchStream;
use futures::StreamExt;
use tokio::task::spawn_blocking;

use super::client::Client;
use super::guarantee;
use super::options::{KafkaOptions, Partitioner};
use super::rows::{Messages, Rows};
use super::spools::Spools;
use super::transactions::Transactions;
use crate::catalog::TableDefinition;
use crate::clock::Clock;
use crate::connector::spool::Spool;
use crate::connector::upserts::{Mode, upserts};
use crate::connector::{Delivery, Guarantee, Owner, Pin, Progress, Published, Sink, Staged};
use crate::error::{Error, Kind, Result};

/// A topic that is being written.
#[derive(Debug)]
pub(super) struct KafkaSink {
    table: Arc<TableDefinition>,
    options: Arc<KafkaOptions>,
    /// How many partitions the topic has; 0 before that was asked.
    partitions: AtomicU32,
    destination: Destination,
}

/// Where rows are until they are published.
#[derive(Debug, Clone)]
enum Destination {
    /// In the topic, in a transaction.
    Transactions(Arc<Transactions>),
    /// With us.
    Spools(Arc<Spools>),
}

impl KafkaSink {
    /// A sink that connects when it is opened.
    pub(super) fn try_new(
        table: Arc<TableDefinition>,
        options: KafkaOptions,
        owner: &Owner,
        clock: Clock,
    ) -> Result<Self> {
        let options = Arc::new(options);
        let destination = match options.delivery {
            Delivery::ExactlyOnce => {
                Destination::Transactions(Arc::new(Transactions::try_new(Arc::clone(&options), owner, clock)?))
            }
            _ => Destination::Spools(Arc::new(Spools::new(Arc::clone(&options)))),
        };
        Ok(Self { table, options, partitions: AtomicU32::new(0), destination })
    }

    /// Runs what blocks on a thread that may.
    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        match spawn_blocking(work).await {
            Ok(result) => result.map_err(|error| self.blame(error)),
            Err(panic) => Err(self.blame(Error::internal("writing failed").caused_by(panic))),
        }
    }

    fn blame(&self, error: Error) -> Error {
        error.context(format_args!("table {}", self.table.name))
    }

    /// What makes messages of a task's rows.
    async fn rows(&self, task: u32) -> Result<Rows> {
        let mut partitions = self.partitions.load(Ordering::Relaxed);
        if partitions == 0 && self.options.partitioner != Partitioner::Hash {
            let options = Arc::clone(&self.options);
            partitions = self.blocking(move || count(&options, Kind::Usage)).await?;
            self.partitions.store(partitions, Ordering::Relaxed);
        }
        Rows::try_new(&self.table, &self.options, task, partitions).map_err(|error| self.blame(error))
    }

    async fn stage_in_transaction(
        &self,
        transactions: &Arc<Transactions>,
        epoch: u64,
        task: u32,
        rows: SendableRecordBatchStream,
    ) -> Result<Staged> {
        let attempt = transactions.attempt();
        let mut encoder = self.rows(task).await?;
        let mut rows = upserts(rows, Mode::of(&self.options.format, encoder.key()));
        let mut staged = Staged::default();
        // When this call is dropped, so is `caller`, and the thread stops.
        let caller = Arc::new(());
        while let Some(batch) = rows.next().await {
            let batch = batch?;
            let (transactions, caller) = (Arc::clone(transactions), Arc::downgrade(&caller));
            (encoder, staged) = self
                .blocking(move || {
                    let batch = encoder.encode(&batch)?;
                    let messages = Messages::of(&batch);
                    transactions.send(epoch, attempt, &messages, &|| caller.strong_count() > 0)?;
                    Ok((encoder, and(staged, &messages)))
                })
                .await?;
        }
        transactions.stage(epoch, attempt, task, staged).map_err(|error| self.blame(error))?;
        Ok(staged)
    }

    async fn stage_in_spool(
        &self,
        spools: &Arc<Spools>,
        epoch: u64,
        task: u32,
        rows: SendableRecordBatchStream,
    ) -> Result<Staged> {
        let mut encoder = self.rows(task).await?;
        let mut rows = upserts(rows, Mode::of(&self.options.format, encoder.key()));
        let mut spool = Spool::try_new(encoder.schema())?;
        let mut staged = Staged::default();
        while let Some(batch) = rows.next().await {
            let batch = batch?;
            (encoder, spool, staged) = self
                .blocking(move || {
                    let batch = encoder.encode(&batch)?;
                    spool.write(&batch)?;
                    let staged = and(staged, &Messages::of(&batch));
                    Ok((encoder, spool, staged))
                })
                .await?;
        }
        spools.stage(epoch, task, staged, spool.finish()?);
        Ok(staged)
    }
}

#[async_trait]
impl Sink for KafkaSink {
    fn guarantee(&self) -> Guarantee {
        guarantee(self.options.delivery)
    }

    async fn open(&self, _run: u64) -> Result<()> {
        let (options, destination) = (Arc::clone(&self.options), self.destination.clone());
        // A topic that this sink has seen has no wrong name: the broker may have just begun, and not know it yet.
        let was_there = self.partitions.load(Ordering::Relaxed) > 0;
        let missing = if was_there { Kind::Transient } else { Kind::Usage };
        let partitions = self.blocking(move || {
            let partitions = count(&options, missing)?;
            match &destination {
                Destination::Transactions(transactions) => transactions.open()?,
                Destination::Spools(spools) => spools.open()?,
            }
            Ok(partitions)
        });
        self.partitions.store(partitions.await?, Ordering::Relaxed);
        Ok(())
    }

    async fn progress(&self, epoch: u64, position: &serde_json::Value) -> Result<Progress> {
        let Destination::Transactions(transactions) = &self.destination else { return Ok(Progress::Unrecorded) };
        let known = transactions.progress().known(position);
        let from = known.as_ref().map(|known| known.offset);
        let (caller, transactions) = (Arc::new(()), Arc::clone(transactions));
        let listening = Arc::downgrade(&caller);
        let found = self.blocking(move || transactions.find(from, &|| listening.strong_count() > 0)).await?;
        drop(caller);
        let written = found.map_or(0, |found| found.epoch);
        if let Some(known) = known.filter(|known| written < known.epoch) {
            return Err(Error::refused(format!(
                "table {}: the progress topic {} has epoch {written} as the newest, and epoch {} was written: it has lost \
                 records, so nobody knows which epochs are in the topic; give the query another name \
                 (SET 'pipeline.name') to start anew",
                self.table.name, self.options.progress_topic, known.epoch
            )));
        }
        // Epochs without rows leave no record.
        Ok(Progress::UpTo(written.max(epoch)))
    }

    async fn stage(&self, epoch: u64, task: u32, _pin: &Pin, rows: SendableRecordBatchStream) -> Result<Staged> {
        match &self.destination {
            Destination::Transactions(transactions) => self.stage_in_transaction(transactions, epoch, task, rows).await,
            Destination::Spools(spools) => self.stage_in_spool(spools, epoch, task, rows).await,
        }
    }

    async fn publish(&self, epoch: u64, _pin: &Pin) -> Result<Published> {
        let caller = Arc::new(());
        let (destination, listening) = (self.destination.clone(), Arc::downgrade(&caller));
        let published = self.blocking(move || {
            let wanted = || listening.strong_count() > 0;
            match &destination {
                Destination::Transactions(transactions) => transactions.publish(epoch, &wanted),
                Destination::Spools(spools) => spools.publish(epoch, &wanted),
            }
        });
        let published = published.await;
        drop(caller);
        published
    }

    fn epoch_bound(&self) -> Option<Duration> {
        match &self.destination {
            Destination::Transactions(transactions) => Some(transactions.epoch_bound()),
            Destination::Spools(_) => None,
        }
    }

    /// An epoch is written as a whole, or, without transactions, may be written again.
    async fn retract(&self, _epoch: u64) -> Result<()> {
        Ok(())
    }

    async fn discard(&self, epoch: u64) {
        let destination = self.destination.clone();
        let discarded = self.blocking(move || {
            match &destination {
                Destination::Transactions(transactions) => transactions.discard(epoch),
                Destination::Spools(spools) => spools.discard(epoch),
            }
            Ok(())
        });
        // Trouble with it is told by what comes next.
        let _ = discarded.await;
    }

    async fn close(&self) {
        let destination = self.destination.clone();
        // Ending a producer waits for its threads.
        let closed = self.blocking(move || {
            match &destination {
                Destination::Transactions(transactions) => transactions.close(),
                Destination::Spools(spools) => spools.close(),
            }
            Ok(())
        });
        let _ = closed.await;
    }
}

/// How many partitions the topic has; if it is missing, an error of this kind. A producer would create the topic by asking
/// for it; a consumer does not.
fn count(options: &KafkaOptions, missing: Kind) -> Result<u32> {
    let partitions = Client::try_new(&options.properties.consumer())?.partitions(options.target(), missing)?;
    Ok(partitions.len() as u32)
}

/// How much is staged with these messages.
fn and(staged: Staged, messages: &Messages<'_>) -> Staged {
    Staged { rows: staged.rows + messages.len() as u64, bytes: staged.bytes + messages.bytes() }
}

//! A RocketMQ topic as a sink: at least once.
//!
//! Rows wait in a spool until all tasks of the epoch have staged, checked as they come in; then they are sent in task and
//! row order. Rows with the same `keys` go to the same queue, in order: the XXH64 (seed 0) of the keys, joined by blanks as
//! RocketMQ keeps them, modulo the queues that the intent pinned. Rows without keys are dealt out in turn. The keys are
//! the metadata column `keys`, or else made of the PRIMARY KEY (`rows`).
//!
//! Of a result that changes a row is an upsert. What is taken back for good is a tombstone: as RocketMQ refuses an
//! empty body, a message with the same keys, the body `null` and the property `tombstone` = `true`.
//!
//! What it does not promise: that a row is there once. The broker has no transaction over several messages and remembers
//! no ids, so an epoch that is run again, or a batch whose answer got lost, is there twice. Nor that a key stays in its
//! queue when the topic gets other queues.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use datafusion::execution::SendableRecordBatchStream;
use futures::StreamExt;
use futures::future::try_join_all;
use serde::{Deserialize, Serialize};

use super::calls::Patience;
use super::connection::Connection;
use super::message::Messages;
use super::options::RocketmqOptions;
use super::producer::{Lane, Producer};
use super::rows::Rows;
use crate::catalog::TableDefinition;
use crate::clock::Clock;
use crate::connector::spool::{Spool, Spooled};
use crate::connector::upserts::upserts;
use crate::connector::{Delivery, Guarantee, Owner, Partition, Pin, Published, Sink, Staged};
use crate::error::{Error, Result};

/// What the intent of an epoch pins.
#[derive(Debug, Serialize, Deserialize)]
struct Pinned {
    /// The queues that rows are spread over.
    queues: Vec<Partition>,
    /// Their brokers.
    brokers: Vec<String>,
}

/// What a task staged.
#[derive(Debug)]
struct Waiting {
    rows: Spooled,
    staged: Staged,
}

/// A RocketMQ topic, written.
#[derive(Debug)]
pub struct RocketmqSink {
    table: Arc<TableDefinition>,
    options: RocketmqOptions,
    connection: Arc<Connection<Producer>>,
    waiting: Mutex<BTreeMap<(u64, u32), Waiting>>,
}

/// What writing to RocketMQ promises.
pub(super) fn guarantee() -> Guarantee {
    Guarantee {
        delivery: Delivery::AtLeastOnce,
        reason:
            "RocketMQ has no transaction over several messages and does not recognize one that it stored already, so \
                 an epoch that is run again after trouble is published again"
                .into(),
    }
}

impl RocketmqSink {
    /// Of this table; nothing is connected yet.
    pub fn try_new(table: Arc<TableDefinition>, clock: &Clock, owner: &Owner) -> Result<Self> {
        let options = RocketmqOptions::take(&table)?;
        let (clock, id, name, wanted) = (clock.clone(), Arc::clone(&owner.id), table.name.clone(), options.clone());
        let connection = Connection::new(move || {
            let instance = format!("millstream-{id}-{}", clock.random_id());
            let (name, options) = (name.clone(), wanted.clone());
            Box::pin(async move { Producer::connect(&name, &options, &instance).await })
        });
        Ok(Self { table, options, connection: Arc::new(connection), waiting: Mutex::default() })
    }

    /// The queues that can be written now.
    async fn queues(&self) -> Result<Vec<Partition>> {
        let mut producer = self.connection.client().await.map_err(|e| self.blame(e))?;
        let mut patience = Patience::new();
        loop {
            let error = match producer.route().await {
                Ok(Some(route)) if !route.writable.is_empty() => return Ok(route.writable),
                Ok(_) => Error::transient(format!(
                    "topic {} has no queue that can be written now: none of its brokers is up, or its permission is \
                     read-only",
                    self.options.topic
                )),
                Err(error) => error,
            };
            let again = self.connection.again(producer, &mut patience, error).await;
            producer = again.map_err(|e| self.blame(e))?;
        }
    }

    /// Sends everything that waits, in order.
    async fn send(&self, pinned: &Pinned, tasks: &mut BTreeMap<(u64, u32), Waiting>) -> Result<Published> {
        let open = |queue: &Partition| Lane::into(queue.clone(), Arc::clone(&self.connection));
        let mut lanes: Vec<Lane> = pinned.queues.iter().map(open).collect();
        let mut published = Published::default();
        for ((_, task), waiting) in tasks {
            let mut ordinal = u64::from(*task);
            for batch in waiting.rows.read()? {
                let messages = Messages::try_new(&batch?)?;
                for row in 0..messages.len() {
                    let lane = messages.queue(row, ordinal, lanes.len());
                    let message = messages.message(row, &self.options.topic)?;
                    if !lanes[lane].push(message, messages.size(row)).await {
                        // It stopped for an error, which it tells when asked to finish.
                        lanes.swap_remove(lane).finish().await?;
                        return Err(Error::internal("a RocketMQ sender stopped without a reason"));
                    }
                    ordinal += 1;
                }
            }
            published.rows += waiting.staged.rows;
            published.bytes += waiting.staged.bytes;
        }
        let sent = try_join_all(lanes.into_iter().map(Lane::finish)).await?;
        debug_assert_eq!(sent.iter().map(|sent| sent.rows).sum::<u64>(), published.rows);
        let ends =
            pinned.queues.iter().zip(&sent).filter_map(|(queue, sent)| Some((queue.to_string(), sent.end?.into())));
        published.position = serde_json::Value::Object(ends.collect());
        Ok(published)
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, BTreeMap<(u64, u32), Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, epoch: u64) -> BTreeMap<(u64, u32), Waiting> {
        self.waiting().extract_if(tasks_of(epoch), |_, _| true).collect()
    }

    fn blame(&self, error: Error) -> Error {
        error.context(format_args!("table {}", self.table.name))
    }
}

fn tasks_of(epoch: u64) -> RangeInclusive<(u64, u32)> {
    (epoch, 0)..=(epoch, u32::MAX)
}

#[async_trait]
impl Sink for RocketmqSink {
    fn guarantee(&self) -> Guarantee {
        guarantee()
    }

    async fn open(&self, _run: u64) -> Result<()> {
        let producer = self.connection.client().await.map_err(|e| self.blame(e))?;
        match producer.route().await.map_err(|e| self.blame(e))? {
            Some(_) => Ok(()),
            // A broker that is down takes its topics' routes with it: a query that recovers tries again.
            None => Err(self.blame(Error::transient(producer.missing().await.chain()))),
        }
    }

    async fn prepare(&self, _epoch: u64) -> Result<Pin> {
        let queues = self.queues().await?;
        let mut brokers: Vec<String> = queues.iter().map(|queue| queue.name.to_string()).collect();
        brokers.dedup();
        serde_json::to_value(Pinned { queues, brokers })
            .map_err(|e| Error::internal("queues cannot be pinned").caused_by(e))
    }

    async fn stage(&self, epoch: u64, task: u32, _pin: &Pin, rows: SendableRecordBatchStream) -> Result<Staged> {
        let mut encoder = Rows::try_new(&self.table, &self.options.format)?;
        let mut rows = upserts(rows, encoder.key().clone());
        let mut spool = Spool::try_new(encoder.schema())?;
        let mut staged = Staged::default();
        while let Some(batch) = rows.next().await {
            let encoded = encoder.encode(&batch?)?;
            let messages = Messages::try_new(&encoded)?;
            for row in 0..messages.len() {
                messages.check(row).map_err(|reason| {
                    let ordinal = staged.rows + row as u64;
                    self.blame(Error::data(format!(
                        "topic {}: row {ordinal} of task {task} in epoch {epoch} cannot be sent: {reason}",
                        self.options.topic
                    )))
                })?;
            }
            staged.rows += messages.len() as u64;
            staged.bytes += messages.bytes();
            spool.write(&encoded)?;
        }
        self.waiting().insert((epoch, task), Waiting { rows: spool.finish()?, staged });
        Ok(staged)
    }

    async fn publish(&self, epoch: u64, pin: &Pin) -> Result<Published> {
        let mut tasks = self.take(epoch);
        if tasks.is_empty() {
            return Ok(Published::default());
        }
        let pinned = Pinned::deserialize(pin).ok().filter(|pinned| !pinned.queues.is_empty()).ok_or_else(|| {
            self.blame(Error::refused(format!(
                "the intent of epoch {epoch} names no queues of topic {}",
                self.options.topic
            )))
        });
        let published = match pinned {
            Ok(pinned) => self.send(&pinned, &mut tasks).await,
            Err(error) => Err(error),
        };
        if published.is_err() {
            // It may be asked for once more; what was sent by then is there twice.
            self.waiting().append(&mut tasks);
        }
        published
    }

    async fn discard(&self, epoch: u64) {
        self.take(epoch);
    }

    async fn close(&self) {
        if let Some(producer) = self.connection.close().await {
            producer.close().await;
        }
    }
}

//! A RocketMQ topic as a sink: at least once or, on request, effectively once.
//!
//! Rows wait in a spool until all tasks of the epoch have staged, checked as they come in; then they are sent in task and
//! row order. Rows with the same `keys` go to the same queue, in order: the XXH64 (seed 0) of the keys, joined by blanks as
//! RocketMQ keeps them, modulo the queues that the intent pinned. Rows without keys are dealt out in turn. The keys are
//! the metadata column `keys`, or else made of the PRIMARY KEY (`rows`).
//!
//! Of a result that changes a row is an upsert. What is taken back for good is a tombstone: as RocketMQ refuses an
//! empty body, a message with the same keys, the body `null` and the property `tombstone` = `true`.
//!
//! At least once: the broker has no transaction over several messages and remembers no ids, so an epoch that is run
//! again, or a batch whose answer got lost, is there twice.
//!
//! Effectively once: the intent also pins where each queue ends, and each message names its query, its epoch and its
//! place in the epoch (`mark`). An epoch that is published for the first time, by the run that intended it, is sent as
//! it is. In all other cases, and after every send whose outcome is unknown, the queues are read from there on, and
//! only what is missing is sent (`settle`). So a reader sees each row once, and rows of one key in order, as long as
//! there is one live run of the query, and brokers keep what they have acknowledged.
//!
//! What it does not promise: that no reader sees a part of an epoch, as its queues are filled one batch after the
//! other. That a run which is frozen while it sends, and thaws when another has gone on, adds nothing. That what a
//! broker took with a reservation, such as `FLUSH_DISK_TIMEOUT`, outlives its crash: effectively once counts it as
//! sent. That a key stays in its queue when the topic gets other queues. That messages which are delayed keep their
//! order.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::RecordBatch;
use async_trait::async_trait;
use datafusion::execution::SendableRecordBatchStream;
use futures::StreamExt;
use futures::future::try_join_all;
use serde::{Deserialize, Serialize};

use super::calls::Patience;
use super::connection::Connection;
use super::mark::Mark;
use super::message::Messages;
use super::options::RocketmqOptions;
use super::producer::{Lane, Outgoing, Producer};
use super::rows::Rows;
use super::settle::{Account, Attempts, Earlier, Settler};
use crate::catalog::TableDefinition;
use crate::clock::Clock;
use crate::connector::spool::{Spool, Spooled};
use crate::connector::upserts::{Mode, upserts};
use crate::connector::{Delivery, Guarantee, Offsets, Owner, Partition, Pin, Published, Sink, Staged};
use crate::error::{Error, Result};

/// What the intent of an epoch pins.
#[derive(Debug, Serialize, Deserialize)]
struct Pinned {
    /// The queues that rows are spread over.
    queues: Vec<Partition>,
    /// Their brokers.
    brokers: Vec<String>,
    /// Effectively once: where each queue ended before anything of the epoch was sent.
    #[serde(default, skip_serializing_if = "Offsets::is_empty")]
    ends: Offsets,
    /// Effectively once: a random name, by which a sink knows its own preparation from that of another run.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    preparation: String,
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
    topic: String,
    /// The query's id.
    writer: Arc<str>,
    clock: Clock,
    connection: Arc<Connection<Producer>>,
    settler: Arc<Settler>,
    attempts: Attempts,
    waiting: Mutex<BTreeMap<(u64, u32), Waiting>>,
}

/// What writing to RocketMQ promises.
pub(super) fn guarantee(delivery: Delivery) -> Guarantee {
    let reason = match delivery {
        Delivery::EffectivelyOnce => {
            "every message names its query, epoch and row, and after trouble the queues are read and only what is \
             missing is sent, so that readers see each row once; it needs one live run of the query at a time, as \
             RocketMQ shuts nobody out and a run that is frozen while it sends can still add a batch, and brokers that \
             keep what they acknowledged (flushDiskType = SYNC_FLUSH, or replicas)"
        }
        _ => {
            "RocketMQ has no transaction over several messages and does not recognize one that it stored already, so \
             an epoch that is run again after trouble is published again"
        }
    };
    Guarantee { delivery, reason: reason.into() }
}

impl RocketmqSink {
    /// Of this table; nothing is connected yet.
    pub fn try_new(table: Arc<TableDefinition>, clock: &Clock, owner: &Owner) -> Result<Self> {
        let options = RocketmqOptions::take(&table)?;
        let topic = options.topics.only().map_err(|e| e.context(format_args!("table {}", table.name)))?.to_string();
        let settler = Arc::new(Settler::new(&table.name, &topic, &options, &owner.id, clock));
        let (clock, writer) = (clock.clone(), Arc::clone(&owner.id));
        let (with, id, name, wanted) = (clock.clone(), Arc::clone(&writer), table.name.clone(), options.clone());
        let connection = Arc::new(Connection::new(move || {
            let instance = format!("millstream-{id}-{}", with.random_id());
            let (name, options) = (name.clone(), wanted.clone());
            Box::pin(async move { Producer::connect(&name, &options, &instance).await })
        }));
        let (attempts, waiting) = Default::default();
        Ok(Self { table, options, topic, writer, clock, connection, settler, attempts, waiting })
    }

    fn is_effectively_once(&self) -> bool {
        self.options.delivery == Delivery::EffectivelyOnce
    }

    /// The queues that can be written now and, effectively once, where they end.
    async fn queues(&self) -> Result<(Vec<Partition>, Offsets)> {
        let mut producer = self.connection.client().await.map_err(|e| self.blame(e))?;
        let mut patience = Patience::new();
        loop {
            let error = match self.queues_now(&producer).await {
                Ok(Some(queues)) => return Ok(queues),
                Ok(None) => Error::transient(format!(
                    "topic {} has no queue that can be written now: none of its brokers is up, or its permission is \
                     read-only",
                    self.topic
                )),
                Err(error) => error,
            };
            let again = self.connection.again(producer, &mut patience, error).await;
            producer = again.map_err(|e| self.blame(e))?;
        }
    }

    async fn queues_now(&self, producer: &Producer) -> Result<Option<(Vec<Partition>, Offsets)>> {
        let Some(route) = producer.route().await?.filter(|route| !route.writable.is_empty()) else { return Ok(None) };
        let ends = if self.is_effectively_once() { producer.ends(&route).await? } else { Offsets::new() };
        Ok(Some((route.writable, ends)))
    }

    /// What is in each queue of an epoch with so many rows, before any of it is sent now.
    async fn accounts(&self, mark: &Mark, pinned: &Pinned, rows: u64) -> Result<Vec<Account>> {
        let mut accounts = Vec::with_capacity(pinned.queues.len());
        for queue in &pinned.queues {
            let Some(&end) = pinned.ends.get(queue) else {
                return Err(self.blame(Error::refused(format!(
                    "the intent of epoch {} does not say where {queue} of topic {} ended",
                    mark.epoch(),
                    self.topic
                ))));
            };
            accounts.push(Account::new(Arc::clone(&self.settler), mark.clone(), queue.clone(), end, rows));
        }
        let earlier = self.attempts.begin(mark.epoch(), &pinned.preparation);
        if earlier == Earlier::Untried || rows == 0 {
            return Ok(accounts);
        }
        if earlier == Earlier::Unknown {
            tracing::info!(
                topic = self.topic,
                epoch = mark.epoch(),
                "looking in {} s which rows are there already",
                self.options.quiet_period.as_secs()
            );
            self.settler.rest().await;
        }
        try_join_all(accounts.iter_mut().map(|account| account.settle())).await?;
        Ok(accounts)
    }

    /// Sends everything that waits, in order; effectively once, what is not there yet.
    async fn send(&self, epoch: u64, pinned: &Pinned, tasks: &mut BTreeMap<(u64, u32), Waiting>) -> Result<Published> {
        let mark = self.is_effectively_once().then(|| Mark::new(&self.writer, epoch));
        let mut accounts = match &mark {
            Some(mark) => {
                let rows = tasks.values().map(|waiting| waiting.staged.rows).sum();
                self.accounts(mark, pinned, rows).await?.into_iter()
            }
            None => Vec::new().into_iter(),
        };
        let open = |queue: &Partition| Lane::into(queue.clone(), Arc::clone(&self.connection), accounts.next());
        let mut lanes: Vec<Lane> = pinned.queues.iter().map(open).collect();
        let mut published = Published::default();
        // Of the row in the epoch.
        let mut ordinal = 0;
        for ((_, task), waiting) in tasks {
            // Of a row without keys among the queues.
            let mut turn = u64::from(*task);
            for batch in waiting.rows.read()? {
                let messages = self.messages(&batch?)?;
                for row in 0..messages.len() {
                    let lane = messages.queue(row, turn, lanes.len());
                    let text = mark.as_ref().map(|mark| mark.text(ordinal));
                    let message = messages.message(row, &self.topic, text.as_deref())?;
                    let outgoing = Outgoing { message, ordinal, is_delayed: messages.is_delayed(row) };
                    if !lanes[lane].push(outgoing, messages.size(row)).await {
                        // It stopped for an error, which it tells when asked to finish.
                        lanes.swap_remove(lane).finish().await?;
                        return Err(Error::internal("a RocketMQ sender stopped without a reason"));
                    }
                    (ordinal, turn) = (ordinal + 1, turn + 1);
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
        if mark.is_some() {
            self.attempts.acknowledged();
        }
        Ok(published)
    }

    /// Encoded rows as messages.
    fn messages(&self, encoded: &RecordBatch) -> Result<Messages> {
        let messages = Messages::try_new(encoded).map_err(|e| self.blame(e))?;
        Ok(if self.is_effectively_once() { messages.marked() } else { messages })
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
        guarantee(self.options.delivery)
    }

    async fn open(&self, _run: u64) -> Result<()> {
        let producer = self.connection.client().await.map_err(|e| self.blame(e))?;
        match producer.route().await.map_err(|e| self.blame(e))? {
            Some(_) => Ok(()),
            // A broker that is down takes its topics' routes with it: a query that recovers tries again.
            None => Err(self.blame(Error::transient(producer.missing().await.chain()))),
        }
    }

    async fn prepare(&self, epoch: u64) -> Result<Pin> {
        let (queues, ends) = self.queues().await?;
        let mut brokers: Vec<String> = queues.iter().map(|queue| queue.name.to_string()).collect();
        brokers.dedup();
        let mut preparation = String::new();
        if self.is_effectively_once() {
            preparation = self.clock.random_id();
            self.attempts.prepared(epoch, &preparation);
        }
        serde_json::to_value(Pinned { queues, brokers, ends, preparation })
            .map_err(|e| Error::internal("queues cannot be pinned").caused_by(e))
    }

    async fn stage(&self, epoch: u64, task: u32, _pin: &Pin, rows: SendableRecordBatchStream) -> Result<Staged> {
        let mut encoder = Rows::try_new(&self.table, &self.options.format)?;
        let mut rows = upserts(rows, Mode::of(&self.options.format, encoder.key()));
        let mut spool = Spool::try_new(encoder.schema())?;
        let mut staged = Staged::default();
        while let Some(batch) = rows.next().await {
            let encoded = encoder.encode(&batch?)?;
            let messages = self.messages(&encoded)?;
            for row in 0..messages.len() {
                messages.check(row).map_err(|reason| {
                    let ordinal = staged.rows + row as u64;
                    self.blame(Error::data(format!(
                        "topic {}: row {ordinal} of task {task} in epoch {epoch} cannot be sent: {reason}",
                        self.topic
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
            self.blame(Error::refused(format!("the intent of epoch {epoch} names no queues of topic {}", self.topic)))
        });
        let published = match pinned {
            Ok(pinned) => self.send(epoch, &pinned, &mut tasks).await,
            Err(error) => Err(error),
        };
        if published.is_err() {
            // It may be asked for once more; at least once, what was sent by then is there twice.
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
        self.settler.close().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_older_intents_pinned_is_read_and_at_least_once_pins_the_same() {
        let older = serde_json::json!({ "queues": ["broker-a:0", "broker-a:1"], "brokers": ["broker-a"] });
        let pinned = Pinned::deserialize(&older).unwrap();
        assert_eq!(pinned.queues, [Partition::new("broker-a", 0), Partition::new("broker-a", 1)]);
        assert!(pinned.ends.is_empty() && pinned.preparation.is_empty());
        assert_eq!(serde_json::to_value(pinned).unwrap(), older);
    }

    #[test]
    fn effectively_once_pins_where_the_queues_end() {
        let queue = Partition::new("broker-a", 3);
        let pinned = Pinned {
            queues: vec![queue.clone()],
            brokers: vec!["broker-a".into()],
            ends: [(queue.clone(), 41)].into(),
            preparation: "00c0ffee00c0ffee".into(),
        };
        let pin = serde_json::to_value(pinned).unwrap();
        assert_eq!(pin["ends"], serde_json::json!({ "broker-a:3": 41 }));
        assert_eq!(pin["preparation"], "00c0ffee00c0ffee");
        assert_eq!(Pinned::deserialize(&pin).unwrap().ends[&queue], 41);
    }

    #[test]
    fn the_guarantee_says_what_it_needs() {
        let promised = guarantee(Delivery::EffectivelyOnce);
        assert_eq!(promised.delivery, Delivery::EffectivelyOnce);
        let needs = ["readers see each row once", "one live run of the query", "SYNC_FLUSH, or replicas"];
        assert!(needs.iter().all(|need| promised.reason.contains(need)), "{}", promised.reason);
        assert_eq!(guarantee(Delivery::AtLeastOnce).delivery, Delivery::AtLeastOnce);
    }
}

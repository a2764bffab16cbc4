//! RocketMQ topics as a source: each queue of each broker is a partition, `broker:queue`.
//!
//! One connection serves every read of the table and stays open across epochs; it is made when it is first needed, so that
//! a plan can be made without a broker. Which queues there are is remembered beyond it: see `queues`.
//!
//! What it does not promise: that a topic is missing, when its only broker is down. The name server cannot tell the two
//! apart, so a new query is told that there is no such topic, and a running one waits.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::execution::SendableRecordBatchStream;
use tokio::sync::Mutex;
use twox_hash::XxHash64;

use super::calls::Patience;
use super::connection::Connection;
use super::consumer::{Consumer, PrivateGroup};
use super::groups::{self, Told};
use super::options::RocketmqOptions;
use super::pull::Puller;
use super::queues::Queues;
use super::reader::SpanReader;
use super::stretches::Ahead;
use super::topics::Queue;
use crate::catalog::TableDefinition;
use crate::clock::Clock;
use crate::connector::messages::{Decoding, decoded};
use crate::connector::position::{Lookup, Position, Side};
use crate::connector::{Extent, Fingerprint, Offsets, Owner, Partition, ReadReport, Source, Span};
use crate::error::{Error, Kind, Result};

/// RocketMQ topics, read.
#[derive(Debug)]
pub struct RocketmqSource {
    table: Arc<TableDefinition>,
    options: RocketmqOptions,
    clock: Clock,
    connection: Arc<Connection<Consumer>>,
    queues: Queues,
    ahead: Arc<Ahead>,
    told: Mutex<Told>,
}

impl RocketmqSource {
    /// Of this table; nothing is connected yet.
    pub fn try_new(table: Arc<TableDefinition>, clock: &Clock, owner: Option<&Owner>) -> Result<Self> {
        let options = RocketmqOptions::take(&table)?;
        let group = private_group(&table, clock, owner);
        let (with, wanted) = (clock.clone(), options.clone());
        let connection = Connection::new(move || {
            let instance = format!("{}-{}", group.name, with.random_id());
            let (options, group) = (wanted.clone(), group.clone());
            Box::pin(async move { Consumer::connect(&options, group, &instance).await })
        });
        let (connection, queues) = (Arc::new(connection), Queues::new(&options, clock));
        // Who asks once has no next span.
        let ahead = Arc::new(Ahead::new(owner.is_some(), clock.clone()));
        Ok(Self { table, options, clock: clock.clone(), connection, queues, ahead, told: Mutex::default() })
    }

    /// The offsets that a position means.
    async fn resolve(&self, side: Side, position: &Position) -> Result<Offsets> {
        let consumer = self.connection.client().await?;
        consumer.check_topics().await?;
        let extent = self.queues.whole(&consumer).await?;
        position.resolve(side, &extent, &Brokers { source: self, consumer: &consumer }).await
    }

    fn puller(&self, span: Span, metadata: Vec<String>) -> Puller {
        Puller {
            table: self.table.name.clone(),
            topics: Arc::clone(&self.options.topics),
            span,
            metadata,
            filter: self.options.filter.clone(),
            connection: Arc::clone(&self.connection),
        }
    }

    fn blame(&self, error: Error) -> Error {
        error.context(format_args!("table {}", self.table.name))
    }
}

/// What brokers know of groups and times.
struct Brokers<'a> {
    source: &'a RocketmqSource,
    consumer: &'a Consumer,
}

impl Brokers<'_> {
    /// A queue, and the address of its master.
    fn located<'a>(&'a self, partition: &'a Partition) -> Result<(Queue<'a>, Arc<str>)> {
        let queue = self.source.options.topics.queue(partition);
        match self.source.queues.master(partition) {
            Some(master) => Ok((queue, master)),
            None => Err(Error::transient(format!("{queue} cannot be reached now"))),
        }
    }
}

#[async_trait]
impl Lookup for Brokers<'_> {
    async fn committed(&self, partitions: &[Partition]) -> Result<Offsets> {
        let RocketmqSource { options, clock, .. } = self.source;
        let Some(group) = &options.group else { return Ok(Offsets::new()) };
        let instance = format!("millstream-{}-groups", clock.random_id());
        let located = partitions.iter().map(|partition| self.located(partition)).collect::<Result<Vec<_>>>()?;
        let who = options.credentials.as_ref();
        let found = groups::committed(&options.name_server, who, &instance, group, &located).await?;
        let offsets = partitions.iter().cloned().zip(found);
        Ok(offsets.filter_map(|(partition, offset)| Some((partition, offset?))).collect())
    }

    async fn at(&self, partitions: &[Partition], timestamp_ms: i64) -> Result<Offsets> {
        let mut offsets = Offsets::new();
        for partition in partitions {
            let (queue, master) = self.located(partition)?;
            offsets.insert(partition.clone(), self.consumer.admin().at(queue, &master, timestamp_ms).await?);
        }
        Ok(offsets)
    }
}

#[async_trait]
impl Source for RocketmqSource {
    async fn start(&self) -> Result<Offsets> {
        self.resolve(Side::Startup, &self.options.startup).await.map_err(|e| self.blame(e))
    }

    async fn end(&self) -> Result<Option<Offsets>> {
        let Some(position) = &self.options.bounded else { return Ok(None) };
        self.resolve(Side::Bounded, position).await.map(Some).map_err(|e| self.blame(e))
    }

    async fn extent(&self) -> Result<Extent> {
        // Trouble with a connection that worked is waited for; a first one that fails says so at once.
        let mut consumer = self.connection.client().await.map_err(|e| self.blame(e))?;
        let mut patience = Patience::new();
        loop {
            let error = match self.queues.extent(&consumer).await {
                Ok(extent) => return Ok(extent),
                Err(error) => error,
            };
            let again = self.connection.again(consumer, &mut patience, error).await;
            consumer = again.map_err(|e| self.blame(e))?;
        }
    }

    async fn offsets_at(&self, partitions: &[Partition], ms: i64) -> Result<Option<Offsets>> {
        let consumer = self.connection.client().await.map_err(|e| self.blame(e))?;
        let found = Brokers { source: self, consumer: &consumer }.at(partitions, ms).await;
        found.map(Some).map_err(|e| self.blame(e))
    }

    fn topic<'a>(&'a self, partition: &'a Partition) -> &'a str {
        self.options.topics.queue(partition).topic
    }

    async fn fingerprint(&self, partition: &Partition, offset: u64) -> Result<Option<Fingerprint>> {
        match self.puller(Span::new(partition.clone(), offset, offset + 1), Vec::new()).first().await {
            Ok(fingerprint) => Ok(Some(fingerprint)),
            Err(error) if error.kind() == Kind::DataLoss => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn acknowledge(&self, next: &Offsets) {
        let Some(group) = &self.options.group else { return };
        if let Ok(consumer) = self.connection.client().await {
            let mut told = self.told.lock().await;
            told.tell(&self.options, group, consumer.admin(), &self.queues, next).await;
        }
    }

    fn read(&self, span: &Span, projection: &[usize], report: &ReadReport) -> Result<SendableRecordBatchStream> {
        let decoding = Decoding::try_new(&self.table, &self.options.format, projection, report)?;
        let puller = Arc::new(self.puller(span.clone(), decoding.metadata().to_vec()));
        let reader = SpanReader { puller, ahead: Arc::clone(&self.ahead) };
        Ok(decoded(decoding, span.partition.clone(), reader.messages()))
    }

    async fn forget(&self, before: &Offsets) {
        self.queues.remember(before.keys());
        self.ahead.forget(before);
    }

    async fn close(&self) {
        self.ahead.close();
        if let Some(consumer) = self.connection.close().await {
            consumer.close().await;
        }
    }
}

/// The group that reads a table for a query: the same at every run, and nobody else's. A scan that belongs to no query
/// has one for itself, which is removed after it.
fn private_group(table: &TableDefinition, clock: &Clock, owner: Option<&Owner>) -> PrivateGroup {
    let name = |id: &str| format!("millstream-{id}-{:016x}", XxHash64::oneshot(0, table.name.as_bytes()));
    match owner {
        Some(owner) => PrivateGroup { name: name(&owner.id), is_temporary: false },
        None => PrivateGroup { name: name(&clock.random_id()), is_temporary: true },
    }
}

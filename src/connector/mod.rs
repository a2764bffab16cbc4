//! Connectors: where rows come from and where they go.
//!
//! The idea: a source is a set of *partitions*, each a log whose rows have dense or gappy offsets, and it gives back the
//! rows of exactly one [`Span`], the same rows every time. A sink takes an epoch's rows in four calls: *prepare* (what
//! the intent must pin), *stage* (unread by anyone), *publish* (idempotently), *discard*.
//!
//! Connectors know no more of epochs than the number, and nothing of SQL but a [`TableDefinition`]. The contract of both
//! cuts is the suite in `contract`, which every connector calls.

use std::collections::BTreeMap;
use std::fmt::{self, Debug, Display};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::DataType;
use async_trait::async_trait;
use datafusion::execution::SendableRecordBatchStream;
use serde::{Deserialize, Serialize};

use crate::catalog::TableDefinition;
use crate::checkpoint::Journal;
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::sql::options::parse_duration;
use crate::storage::Stores;
use cluster::Cluster;

pub use entry::OptionEntry;
pub use report::{Fingerprint, PartitionReport, ReadReport, SkippedSample};
pub use scan::{OnDataLoss, ScanOptions};

pub mod blackhole;
pub mod cluster;
pub mod console;
#[doc(hidden)]
pub mod contract;
pub mod datagen;
pub mod dead_letters;
pub mod entry;
pub mod files;
pub mod kafka;
pub mod memory;
pub mod messages;
pub mod outgoing;
pub mod position;
pub mod result;
pub mod rocketmq;
pub mod spool;
pub mod upserts;

mod report;
mod scan;

/// A partition of a source: a Kafka partition is `topic:number`, a RocketMQ queue `broker:number`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Partition {
    /// Topic or broker.
    pub name: Arc<str>,
    /// Partition or queue.
    pub number: u32,
}

impl Partition {
    /// The partition `name:number`.
    pub fn new(name: impl Into<Arc<str>>, number: u32) -> Self {
        Self { name: name.into(), number }
    }
}

impl Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.number)
    }
}

impl Debug for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Display::fmt(self, f)
    }
}

impl FromStr for Partition {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        text.rsplit_once(':')
            .and_then(|(name, number)| Some(Self::new(name, number.parse().ok()?)))
            .ok_or_else(|| Error::usage(format!("'{text}' is not a partition; it is written name:number")))
    }
}

impl Serialize for Partition {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Partition {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Offsets `from..to` of one partition: half-open, so its length is a subtraction.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Span {
    /// The partition.
    pub partition: Partition,
    /// The first offset that belongs to it.
    pub from: u64,
    /// The first offset that no longer does.
    pub to: u64,
}

impl Span {
    /// Offsets `from..to` of `partition`.
    pub fn new(partition: Partition, from: u64, to: u64) -> Self {
        Self { partition, from, to }
    }

    /// How many offsets it covers; rows may be fewer.
    pub fn len(&self) -> u64 {
        self.to.saturating_sub(self.from)
    }

    /// Whether it covers none.
    pub fn is_empty(&self) -> bool {
        self.to <= self.from
    }
}

impl Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}..{}", self.partition, self.from, self.to)
    }
}

impl Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Display::fmt(self, f)
    }
}

/// For each partition of a source, an offset: the next one to read.
pub type Offsets = BTreeMap<Partition, u64>;

/// What a partition holds now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// The first offset that can still be read.
    pub earliest: u64,
    /// One more than the last that can be read now (for Kafka, the last *stable* offset).
    pub latest: u64,
}

/// What a source holds now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Extent {
    /// Every partition that exists and can be reached.
    pub partitions: BTreeMap<Partition, Bounds>,
    /// Those that exist and cannot be reached, and why. New epochs go on without them; they are not idle.
    pub unreachable: BTreeMap<Partition, String>,
    /// Whether the source will never hold more than this: a bounded stream ends when a query has read all up to these
    /// offsets.
    pub complete: bool,
}

/// A stream of rows in numbered partitions: see the module's text..
#[async_trait]
pub trait Source: Debug + Send + Sync {
    /// Where a new query starts, by the table's options. Asked once per query; the answer is recorded.
    async fn start(&self) -> Result<Offsets>;

    /// Where the stream ends, by the table's options; none, if it does not. Asked once per query, after [`start`](Self::start);
    /// the answer is recorded. Partitions that are not in it are not read.
    async fn end(&self) -> Result<Option<Offsets>> {
        Ok(None)
    }

    /// What can be read now.
    async fn extent(&self) -> Result<Extent>;

    /// Up to where a question reads that is asked now, and will not be asked again: to the end of the stream, or else
    /// to what can be read now.
    ///
    /// Errors: a partition that cannot be reached, as an answer without it would not be whole.
    async fn horizon(&self) -> Result<Offsets> {
        if let Some(end) = self.end().await? {
            return Ok(end);
        }
        let extent = self.extent().await?;
        match extent.unreachable.first_key_value() {
            Some((partition, reason)) => Err(Error::transient(format!(
                "{partition} cannot be reached, and without it the answer would not be whole: {reason}"
            ))),
            None => Ok(extent.partitions.into_iter().map(|(partition, bounds)| (partition, bounds.latest)).collect()),
        }
    }

    /// What this partition is deleted and created anew with: the topic that it belongs to.
    fn topic<'a>(&'a self, partition: &'a Partition) -> &'a str {
        &partition.name
    }

    /// Where a time begins, ms since 1970: for each of these partitions the first message that is not earlier, so that
    /// all before it are; it is left out where all are earlier. None, if the source knows nothing of times.
    async fn offsets_at(&self, _partitions: &[Partition], _ms: i64) -> Result<Option<Offsets>> {
        Ok(None)
    }

    /// The message at this offset, as far as it is known now; none, if it is not there any more or the source does not tell.
    async fn fingerprint(&self, _partition: &Partition, _offset: u64) -> Result<Option<Fingerprint>> {
        Ok(None)
    }

    /// Everything before these offsets is committed: for the broker's own tools. Said behind commits, now and then, and once
    /// more before [`close`](Self::close). Advice: errors are the source's to swallow.
    async fn acknowledge(&self, _next: &Offsets) {}

    /// The rows of exactly `span` in offset order: the columns `projection` (ascending indices into the table's
    /// [`stored_schema`](TableDefinition::stored_schema)), the same rows every time on any machine.
    ///
    /// What it saw on the way (messages, bytes, skipped ones, the last fingerprint) goes to `report`.
    ///
    /// Errors: [`Kind::DataLoss`](crate::error::Kind::DataLoss) if offsets of the span are gone,
    /// [`Kind::Data`](crate::error::Kind::Data) for a message that cannot be read under `format.on-error` = fail,
    /// [`Kind::Transient`](crate::error::Kind::Transient) for trouble on the way.
    fn read(&self, span: &Span, projection: &[usize], report: &ReadReport) -> Result<SendableRecordBatchStream>;

    /// Rows before these offsets will not be asked for again. Said once when a query goes on, before it asks for the
    /// extent, and now and then. Advice: errors are the source's to swallow.
    async fn forget(&self, _before: &Offsets) {}

    /// Gives back connections and threads. Reading after it is an error.
    async fn close(&self) {}
}

/// What a destination promises, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guarantee {
    /// How often a row can be seen downstream.
    pub delivery: Delivery,
    /// The reason, and what it needs, in a sentence.
    pub reason: String,
}

/// How often a row can be seen downstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Delivery {
    /// Once, for any reader.
    ExactlyOnce,
    /// Once, as long as what the reason names holds.
    EffectivelyOnce,
    /// Once or, after trouble, more often.
    AtLeastOnce,
    /// Any number of times, also never.
    None,
}

impl Display for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Delivery::ExactlyOnce => "exactly-once",
            Delivery::EffectivelyOnce => "effectively-once",
            Delivery::AtLeastOnce => "at-least-once",
            Delivery::None => "none",
        })
    }
}

/// What a sink asks the intent to pin: opaque to the engine, the same at every rerun.
pub type Pin = serde_json::Value;

/// One task's staged output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Staged {
    /// Rows.
    pub rows: u64,
    /// Bytes, as encoded.
    pub bytes: u64,
}

/// A published epoch, as the commit records it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// Rows.
    pub rows: u64,
    /// Bytes, as encoded.
    pub bytes: u64,
    /// Where the destination stands after it (file names, a progress offset); opaque to the engine.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub position: serde_json::Value,
}

/// What a destination that remembers epochs says after it was fenced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// It keeps no record: publishing again is harmless, or allowed by its guarantee.
    Unrecorded,
    /// It holds everything up to this epoch; 0 is none.
    UpTo(u64),
}

/// A destination: see the module's text..
#[async_trait]
pub trait Sink: Debug + Send + Sync {
    /// What it promises, and why.
    fn guarantee(&self) -> Guarantee;

    /// Shuts out earlier runs, where it can. `run` rises with every run of a query.
    async fn open(&self, run: u64) -> Result<()>;

    /// What it holds, once it is open. `epoch` is the newest that is committed, 0 before the first, and `position` what
    /// the commit kept of where the destination stood then; NULL where that is not known.
    ///
    /// Errors: a destination that holds less than what was committed.
    async fn progress(&self, _epoch: u64, _position: &serde_json::Value) -> Result<Progress> {
        Ok(Progress::Unrecorded)
    }

    /// What the intent of `epoch` must pin, so that a rerun writes the same. Called before the intent.
    async fn prepare(&self, _epoch: u64) -> Result<Pin> {
        Ok(Pin::Null)
    }

    /// Takes the rows of one task, in order, where nobody reads them yet. Memory does not grow with the epoch.
    /// The schema is the table's [`writable_schema`](TableDefinition::writable_schema), and the kind of each row after it
    /// where the result changes and the connector takes that.
    async fn stage(&self, epoch: u64, task: u32, pin: &Pin, rows: SendableRecordBatchStream) -> Result<Staged>;

    /// Makes everything staged for `epoch` readable. Idempotent to the extent of the guarantee: an epoch staged and
    /// published again has the same outcome. Returns when it is durable there.
    async fn publish(&self, epoch: u64, pin: &Pin) -> Result<Published>;

    /// Forgets what was staged for `epoch`, also after part of it failed.
    async fn discard(&self, epoch: u64);

    /// Takes back what an earlier try may have published of `epoch`: it is run again with fewer rows, as some are gone. Where
    /// rows may be seen twice, nothing has to be.
    ///
    /// Errors: [`Kind::Refused`](crate::error::Kind::Refused) where that cannot be done.
    async fn retract(&self, epoch: u64) -> Result<()> {
        match self.guarantee().delivery {
            Delivery::AtLeastOnce | Delivery::None => Ok(()),
            promised => Err(Error::refused(format!(
                "of the messages of epoch {epoch} some are gone, so it cannot be run again as it was, and what the destination may \
                 have of it cannot be taken back, as {promised} would need; give the query another name \
                 (SET 'pipeline.name') to begin behind them"
            ))),
        }
    }

    /// Takes back what was published of epochs after `epoch`, where the connector [does that](Connector::takes_back): how many
    /// files that were. Whoever reads meanwhile may have seen them.
    async fn take_back(&self, epoch: u64) -> Result<u64> {
        Err(Error::refused(format!("what was written after epoch {epoch} cannot be taken back")))
    }

    /// How long an epoch should take at most, from its first row to its end here; none, where that is no matter.
    fn epoch_bound(&self) -> Option<Duration> {
        None
    }

    /// What was noted of epochs up to `committed` is needed no more. Called behind a commit now and then; errors are
    /// logged.
    async fn forget(&self, _committed: u64) -> Result<()> {
        Ok(())
    }

    /// Removes litter of epochs up to `committed`, older than the grace. Called behind a commit, but seldom: what it costs
    /// may follow what is stored. Errors are logged.
    async fn sweep(&self, _committed: u64) -> Result<()> {
        Ok(())
    }

    /// Gives back connections and threads.
    async fn close(&self) {}
}

/// A metadata column that a connector offers: `METADATA FROM 'key'`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetadataKey {
    /// Its name; one that ends with a dot stands for all that begin with it.
    pub key: &'static str,
    /// Its type; a declared column of another type is refused.
    pub data_type: DataType,
    /// Whether a sink writes it.
    pub writable: bool,
    /// What it says, where its name and type do not; Markdown.
    pub meaning: &'static str,
}

impl MetadataKey {
    /// Whether it stands for many.
    pub fn is_prefix(&self) -> bool {
        self.key.ends_with('.')
    }

    /// Whether `key` is this one, or one of those that it stands for.
    pub fn covers(&self, key: &str) -> bool {
        match key.strip_prefix(self.key) {
            Some(rest) => rest.is_empty() != self.is_prefix(),
            None => false,
        }
    }
}

/// What a metadata column says of where a message stands, so that a predicate on it tells which messages to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// The number of its partition.
    Partition,
    /// Its offset.
    Offset,
    /// The time by which [`Source::offsets_at`] finds messages; a later one may have an earlier time.
    Time,
    /// The same, and within a partition it never falls.
    RisingTime,
}

/// Where a table is used, which decides what its options may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Rows are read from it.
    Source,
    /// Rows are written to it.
    Sink,
}

/// What a connector needs from the outside.
#[derive(Debug, Clone)]
pub struct Environment {
    /// Object stores, by location.
    pub stores: Stores,
    /// Time and randomness.
    pub clock: Clock,
    /// The session's settings (`SET`).
    pub settings: Arc<BTreeMap<String, String>>,
    /// How many tasks an epoch is cut into at most, and so how many readers of one source work side by side.
    pub parallelism: usize,
}

impl Environment {
    /// A setting that is a number; what it may be was checked when it was set.
    pub fn number<T: FromStr>(&self, key: &str) -> Option<T> {
        self.settings.get(key)?.parse().ok()
    }

    /// One that is a duration.
    pub fn duration(&self, key: &str) -> Option<Duration> {
        parse_duration(self.settings.get(key)?)
    }
}

/// Who uses a table: what names on the outside are made from.
#[derive(Debug, Clone)]
pub struct Owner {
    /// The query's id: 16 hex digits, random. Never its name.
    pub id: Arc<str>,
    /// Small create-only notes under the query's checkpoint.
    pub journal: Journal,
}

/// A kind of table: `'connector' = 'name'`.
#[async_trait]
pub trait Connector: Debug + Send + Sync {
    /// The value of the option `connector`.
    fn name(&self) -> &'static str;

    /// The options of its tables, but `connector` and those of a format's own.
    fn options(&self) -> Vec<OptionEntry> {
        Vec::new()
    }

    /// The metadata columns it offers.
    fn metadata(&self) -> Vec<MetadataKey> {
        Vec::new()
    }

    /// What the metadata `key` says of where a message stands, if anything.
    fn meaning(&self, _key: &str) -> Option<Meaning> {
        None
    }

    /// Checks the definition for this use without any I/O: options known and well-formed, columns possible.
    fn check(&self, table: &TableDefinition, role: Role) -> Result<()>;

    /// What a checkpoint is bound to (connector, cluster-independent names such as the topic): a query whose source or
    /// sink changes it is another query. Without secrets or addresses.
    fn identity(&self, table: &TableDefinition) -> Result<String>;

    /// Where rows are written to, to find out whether a query reads what it writes: a place, and those below it, behind
    /// a slash.
    fn place(&self, table: &TableDefinition) -> Result<String> {
        self.identity(table)
    }

    /// Whether what is written to `place` is read from this table.
    fn reads(&self, table: &TableDefinition, place: &str) -> Result<bool> {
        Ok(overlap(&self.place(table)?, place))
    }

    /// What writing to it promises, said before anything runs.
    fn guarantee(&self, table: &TableDefinition) -> Result<Guarantee>;

    /// Options that say how to connect or what to do with trouble: changes to them apply at once.
    fn is_operational(&self, _option: &str) -> bool {
        false
    }

    /// Whether a table takes a result that changes: rows with [`ROW_KIND`](crate::plan::changes::ROW_KIND) as one more
    /// column, the last.
    fn takes_updates(&self, _table: &TableDefinition) -> bool {
        false
    }

    /// Whether what was written to a table can be taken back, epoch by epoch ([`Sink::take_back`]).
    fn takes_back(&self, _table: &TableDefinition) -> bool {
        false
    }

    /// Whether what is read from a table are changes of rows: with [`ROW_KIND`](crate::plan::changes::ROW_KIND) as one more
    /// column, the last.
    fn is_changelog(&self, _table: &TableDefinition) -> bool {
        false
    }

    /// Whether a new epoch should start as soon as there is input (topics, consoles), or every 10 s (files).
    fn prefers_continuous(&self) -> bool {
        true
    }

    /// Opens it for reading. `owner` is absent where there is no query (a plain DataFusion scan).
    async fn source(
        &self,
        table: Arc<TableDefinition>,
        environment: &Environment,
        owner: Option<&Owner>,
    ) -> Result<Arc<dyn Source>>;

    /// Opens it for writing.
    async fn sink(
        &self,
        table: Arc<TableDefinition>,
        environment: &Environment,
        owner: &Owner,
    ) -> Result<Arc<dyn Sink>>;

    /// The brokers behind its tables, as the catalog `name`: `CREATE CATALOG name WITH (…)`. The options are those of a
    /// table that say how to connect, without the catalog's `type`. They are checked without any I/O.
    ///
    /// Errors: an option is wrong, or there are no brokers behind such tables.
    fn cluster(
        &self,
        name: &str,
        _options: &BTreeMap<String, String>,
        _environment: &Environment,
    ) -> Result<Arc<dyn Cluster>> {
        Err(cluster::no_cluster(name, self.name()))
    }
}

/// Whether rows of one [place](Connector::place) are also in the other: the same topic, or files in one tree.
pub fn overlap(one: &str, other: &str) -> bool {
    let (one, other) = (format!("{one}/"), format!("{other}/"));
    one.starts_with(&other) || other.starts_with(&one)
}

/// The connectors that a session knows, by name.
#[derive(Debug, Clone)]
pub struct Connectors(BTreeMap<&'static str, Arc<dyn Connector>>);

impl Connectors {
    /// No connector at all.
    pub fn none() -> Self {
        Self(BTreeMap::new())
    }

    /// All that this crate has, but the ones in memory.
    pub fn standard() -> Self {
        Self::none()
            .with(Arc::new(blackhole::BlackholeConnector))
            .with(Arc::new(console::PrintConnector::default()))
            .with(Arc::new(datagen::DatagenConnector))
            .with(Arc::new(files::FilesConnector))
            .with(Arc::new(kafka::KafkaConnector))
            .with(Arc::new(kafka::UpsertKafkaConnector))
            .with(Arc::new(rocketmq::RocketmqConnector))
    }

    /// These and one more.
    pub fn with(mut self, connector: Arc<dyn Connector>) -> Self {
        self.0.insert(connector.name(), connector);
        self
    }

    /// The connector of this name.
    pub fn named(&self, name: &str) -> Option<&Arc<dyn Connector>> {
        self.0.get(name)
    }

    /// All of them, by name.
    pub fn all(&self) -> impl Iterator<Item = &Arc<dyn Connector>> {
        self.0.values()
    }

    /// Their names, ascending.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.0.keys().copied()
    }

    /// The connector of `table`; unknown ones are refused with the nearest known one.
    pub fn of(&self, table: &TableDefinition) -> Result<&Arc<dyn Connector>> {
        let name = table.connector()?;
        self.named(name).ok_or_else(|| {
            Error::usage(format!(
                "table {}: there is no connector '{name}'{}",
                table.name,
                crate::sql::options::did_you_mean(name, self.names())
            ))
        })
    }
}

/// Gives back what connectors hold for the whole process. For the end of a program.
pub async fn shutdown() {
    rocketmq::runtime::shutdown().await;
}

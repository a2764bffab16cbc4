//! A cluster of brokers, looked into: its topics, and the groups that read them.
//!
//! The idea: what a catalog of topics shows and changes is the same for every broker, so it is one trait, and statements
//! know no broker by name. It answers with plain data; who shows it decides how.
//!
//! Guarantee: making one checks its options and connects to nothing. Every answer is the brokers' of that moment, and a
//! plan of a reset changes nothing.
//!
//! Not promised: that what was shown still holds when it is acted on. Others work with the brokers as well.

use std::collections::BTreeMap;
use std::fmt::Debug;

use async_trait::async_trait;

use super::{Bounds, Partition};
use crate::error::{Error, Result};
use crate::sql::options::did_you_mean;

/// The kinds of clusters that there are: connectors whose tables are over topics of brokers.
const KINDS: [&str; 2] = ["kafka", "rocketmq"];

/// A cluster of brokers, looked into: `CREATE CATALOG k WITH ('type' = 'kafka', …)`.
#[async_trait]
pub trait Cluster: Debug + Send + Sync {
    /// Topics of users, ascending, without the brokers' own.
    async fn topics(&self) -> Result<Vec<String>>;

    /// What a topic is and holds now; also one of the brokers' own.
    ///
    /// Errors: [`Kind::Usage`](crate::error::Kind::Usage) with the nearest names, if there is no such topic.
    async fn topic(&self, name: &str) -> Result<TopicDescription>;

    /// Makes a topic, and returns when it can be used. The options are `partitions` and `replication-factor` (Kafka), or
    /// `queues` and `message-type` (RocketMQ); any other is the broker's setting of that name.
    async fn create_topic(&self, name: &str, options: &BTreeMap<String, String>) -> Result<()>;

    /// Removes a topic with all its messages, and returns when it is gone.
    async fn drop_topic(&self, name: &str) -> Result<()>;

    /// The groups that there are, ascending.
    async fn groups(&self) -> Result<Vec<GroupSummary>>;

    /// Where a group stands, and who is in it.
    ///
    /// Errors: [`Kind::Usage`](crate::error::Kind::Usage) with the nearest names, if there is no such group.
    async fn group(&self, name: &str) -> Result<GroupDescription>;

    /// What a reset would do, without doing it.
    async fn plan_reset(&self, group: &str, topic: &str, to: &ResetTo) -> Result<Vec<OffsetChange>>;

    /// Does what was planned.
    ///
    /// Errors: [`Kind::Refused`](crate::error::Kind::Refused) while the group has members.
    async fn reset(&self, group: &str, changes: &[OffsetChange]) -> Result<()>;

    /// The options of a table over this topic: connector, address, topic, credentials as they were written.
    fn table_options(&self, topic: &str) -> BTreeMap<String, String>;
}

/// A topic, as it is now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TopicDescription {
    /// What each partition that can be reached holds.
    pub partitions: BTreeMap<Partition, Bounds>,
    /// Of each partition, where it lies: leader and replicas, or the broker; and why it cannot be reached.
    pub details: BTreeMap<Partition, String>,
    /// Its settings, by the broker's names for them.
    pub settings: BTreeMap<String, String>,
}

/// A group, in a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupSummary {
    /// Its name.
    pub name: String,
    /// What the broker says of it.
    pub state: String,
    /// How many members it has now.
    pub members: usize,
}

/// A group, as it is now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GroupDescription {
    /// What the broker says of it.
    pub state: String,
    /// Where it stands in the topics that it has read, by topic and partition.
    pub offsets: Vec<GroupOffset>,
    /// Who is in it.
    pub members: Vec<GroupMember>,
}

/// Where a group stands in one partition. How far it is behind is `end - committed`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupOffset {
    /// The topic.
    pub topic: String,
    /// The partition or queue.
    pub partition: Partition,
    /// The next offset that it reads; none, where it has read nothing.
    pub committed: Option<u64>,
    /// Where the partition ends.
    pub end: u64,
}

/// A member of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupMember {
    /// What the broker calls it.
    pub id: String,
    /// What it calls itself.
    pub client: String,
    /// Where it runs.
    pub host: String,
}

/// What a reset does to one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OffsetChange {
    /// The topic.
    pub topic: String,
    /// The partition or queue.
    pub partition: Partition,
    /// The next offset before it, where there is one.
    pub from: Option<u64>,
    /// The next offset after it.
    pub to: u64,
}

/// Where a group is to stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResetTo {
    /// At the first message that is there.
    Earliest,
    /// Behind the last.
    Latest,
    /// At the first message that is not before this time, ms since 1970; behind the last, if there is none.
    Timestamp(i64),
    /// At these offsets; partitions that are not listed stay as they are. A partition is `0`, a queue `broker-a:0`, or `0`
    /// where there is one broker.
    Offsets(BTreeMap<String, u64>),
}

/// The error for a catalog of a kind that there is not.
pub(crate) fn no_cluster(catalog: &str, kind: &str) -> Error {
    let hint = did_you_mean(kind, KINDS.into_iter());
    Error::usage(format!("catalog {catalog}: 'type' = '{kind}' is no cluster of topics{hint}"))
}

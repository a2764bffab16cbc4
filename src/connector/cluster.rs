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

use super::{Bounds, Offsets, Partition};
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
    /// Where the partition ends; none, while it cannot be reached.
    pub end: Option<u64>,
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

/// A partition as RESET GROUP names it: a number, or where a broker goes with it, both.
pub(crate) fn place(topic: &str, partition: &Partition) -> String {
    match &*partition.name == topic {
        true => partition.number.to_string(),
        false => partition.to_string(),
    }
}

/// The offsets of [`ResetTo::Offsets`]: of partitions that are there, and in what these hold.
pub(super) fn listed(
    topic: &str,
    written: &BTreeMap<String, u64>,
    bounds: &BTreeMap<Partition, Bounds>,
) -> Result<Offsets> {
    let mut offsets = Offsets::new();
    for (name, offset) in written {
        let (partition, Bounds { earliest, latest }) = find(name, bounds).ok_or_else(|| {
            let known: Vec<String> = bounds.keys().map(|partition| place(topic, partition)).collect();
            Error::usage(format!("topic {topic} has no partition '{name}'; there are {}", known.join(", ")))
        })?;
        let whose = || format!("partition {} of topic {topic}", place(topic, partition));
        if !(*earliest..=*latest).contains(offset) {
            let whose = whose();
            return Err(Error::usage(format!("offset {offset} is not in {whose}, which holds {earliest}..{latest}")));
        }
        if offsets.insert(partition.clone(), *offset).is_some() {
            return Err(Error::usage(format!("two offsets are given for {}; keep one of them", whose())));
        }
    }
    Ok(offsets)
}

/// The partition that is meant; none, if there is none or not only one.
fn find<'a>(name: &str, bounds: &'a BTreeMap<Partition, Bounds>) -> Option<(&'a Partition, &'a Bounds)> {
    let is_meant = |partition: &Partition| match name.parse::<u32>() {
        Ok(number) => partition.number == number,
        Err(_) => partition.to_string() == name,
    };
    let mut found = bounds.iter().filter(|(partition, _)| is_meant(partition));
    found.next().filter(|_| found.next().is_none())
}

/// The error for a group that does not stand where it was just put.
pub(super) fn not_taken(group: &str) -> Error {
    Error::transient(format!(
        "group {group}: the brokers did not take all offsets, or somebody else committed meanwhile; DESCRIBE GROUP shows \
         where it stands"
    ))
}

/// The error for a catalog of a kind that there is not.
pub(crate) fn no_cluster(catalog: &str, kind: &str) -> Error {
    let hint = did_you_mean(kind, KINDS.into_iter());
    Error::usage(format!("catalog {catalog}: 'type' = '{kind}' is no cluster of topics{hint}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What partitions 0 and 1 of a topic hold, or those of each of these brokers.
    fn bounds(names: &[&str]) -> BTreeMap<Partition, Bounds> {
        let partitions = names.iter().flat_map(|name| [0, 1].map(|number| Partition::new(*name, number)));
        partitions.map(|partition| (partition, Bounds { earliest: 5, latest: 9 })).collect()
    }

    fn given(name: &str, offset: u64) -> BTreeMap<String, u64> {
        BTreeMap::from([(name.to_string(), offset)])
    }

    #[test]
    fn a_partition_is_named_as_a_reset_names_it() {
        assert_eq!(place("orders", &Partition::new("orders", 3)), "3");
        assert_eq!(place("orders", &Partition::new("broker-a", 3)), "broker-a:3");
    }

    #[test]
    fn offsets_that_are_written_down_must_be_there() {
        for (name, offset, brokers, partition) in [
            ("0", 5, &["t"][..], Partition::new("t", 0)),
            ("1", 9, &["t"], Partition::new("t", 1)),
            ("1", 7, &["a"], Partition::new("a", 1)),
            ("a:1", 7, &["a", "b"], Partition::new("a", 1)),
        ] {
            let expected = Offsets::from([(partition, offset)]);
            assert_eq!(listed("t", &given(name, offset), &bounds(brokers)).unwrap(), expected, "{name}");
        }
        for (name, offset, brokers, expected) in [
            ("0", 4, &["t"][..], "offset 4 is not in partition 0 of topic t, which holds 5..9"),
            ("0", 10, &["t"], "offset 10 is not in partition 0 of topic t, which holds 5..9"),
            ("1", 10, &["a"], "offset 10 is not in partition a:1 of topic t, which holds 5..9"),
            ("2", 7, &["t"], "topic t has no partition '2'; there are 0, 1"),
            ("x", 7, &["t"], "topic t has no partition 'x'; there are 0, 1"),
            ("b:0", 7, &["a"], "topic t has no partition 'b:0'; there are a:0, a:1"),
            ("1", 7, &["a", "b"], "topic t has no partition '1'; there are a:0, a:1, b:0, b:1"),
        ] {
            let error = listed("t", &given(name, offset), &bounds(brokers)).unwrap_err();
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn a_partition_that_is_listed_twice_is_refused() {
        for (again, broker) in [("a:1", "a"), ("01", "t")] {
            let twice = BTreeMap::from([("1".to_string(), 7), (again.to_string(), 8)]);
            let error = listed("t", &twice, &bounds(&[broker])).unwrap_err().to_string();
            assert!(error.starts_with("two offsets are given for partition "), "{error}");
        }
    }
}

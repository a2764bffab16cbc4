//! RocketMQ topics: read from exact offsets, written at least once or, on request, effectively once.
//!
//! A source's partition is a queue of a broker, `broker:queue`, whose offsets are dense; see [`source`] for
//! reading and [`sink`] for writing. The client library's quirks end here: `calls` bounds and explains what it
//! does, `runtime` owns its threads, and `compression` undoes what it would lose.
//!
//! A table with a PRIMARY KEY takes results that change, as upserts: see [`sink`].
//!
//! What the broker filters is checked here as far as that can be: see `filter` and `pull`. Queues and topics that come
//! later are found, and those that cannot be reached hold up no others: see `queues`.
//! What catalogs show and change is in `cluster`.
//!
//! What it does not promise: exactly-once delivery, which the broker cannot give; reading batch consume queues and
//! compacted topics, which are refused; and reading upserts as such.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;

use super::cluster::Cluster;
use super::messages::check_metadata;
use super::{
    Connector, Delivery, Environment, Guarantee, Meaning, MetadataKey, OptionEntry, Owner, Role, ScanOptions, Sink,
    Source,
};
use crate::catalog::TableDefinition;
use crate::error::{Error, Result};
use crate::format::FormatOptions;
use cluster::RocketmqCluster;

pub use filter::Filter;
pub use options::RocketmqOptions;
pub use sink::RocketmqSink;
pub use source::RocketmqSource;
pub use topics::Topics;

pub mod options;
pub mod runtime;
pub mod sink;
pub mod source;

mod admin;
mod calls;
mod cluster;
mod compression;
mod connection;
mod consumer;
mod filter;
mod groups;
mod mark;
mod message;
mod metadata;
mod piece;
mod producer;
mod pull;
mod queues;
mod reader;
mod rows;
mod settle;
mod stretches;
mod topics;

/// What the place of one topic begins with.
const PLACE: &str = "rocketmq topic ";

/// `'connector' = 'rocketmq'`.
#[derive(Debug, Clone, Copy, Default)]
pub struct RocketmqConnector;

#[async_trait]
impl Connector for RocketmqConnector {
    fn name(&self) -> &'static str {
        "rocketmq"
    }

    fn options(&self) -> Vec<OptionEntry> {
        options::described()
    }

    fn metadata(&self) -> Vec<MetadataKey> {
        metadata::offered()
    }

    /// The broker stores messages in the order of its clock; when they were born is the producer's word.
    fn meaning(&self, key: &str) -> Option<Meaning> {
        match key {
            metadata::QUEUE => Some(Meaning::Partition),
            metadata::OFFSET => Some(Meaning::Offset),
            metadata::STORE_TIMESTAMP => Some(Meaning::RisingTime),
            _ => None,
        }
    }

    fn check(&self, table: &TableDefinition, role: Role) -> Result<()> {
        let options = RocketmqOptions::take(table)?;
        options.format.check(table)?;
        check_metadata(table, &self.metadata(), role == Role::Sink)?;
        metadata::refuse_reserved(table)?;
        match role {
            Role::Source if !table.primary_key.is_empty() && !options.format.is_changelog() => {
                Err(Error::usage(format!(
                    "table {}: a PRIMARY KEY makes the messages of a topic updates of rows, which is not supported yet; leave it \
                 out to read every message as a row",
                    table.name
                )))
            }
            Role::Source => Ok(()),
            Role::Sink => {
                options.topics.only().map_err(|e| e.context(format_args!("table {}", table.name)))?;
                if options.delivery == Delivery::EffectivelyOnce {
                    metadata::refuse_delays(table)?;
                }
                rows::Rows::try_new(table, &options.format).map(drop)
            }
        }
    }

    fn identity(&self, table: &TableDefinition) -> Result<String> {
        Ok(format!("rocketmq {}", RocketmqOptions::take(table)?.topics))
    }

    fn reads(&self, table: &TableDefinition, place: &str) -> Result<bool> {
        let topics = RocketmqOptions::take(table)?.topics;
        Ok(place.strip_prefix(PLACE).is_some_and(|topic| topics.reads(topic)))
    }

    fn guarantee(&self, table: &TableDefinition) -> Result<Guarantee> {
        Ok(sink::guarantee(RocketmqOptions::take(table)?.delivery))
    }

    fn is_operational(&self, option: &str) -> bool {
        options::OPERATIONAL.contains(&option)
            || FormatOptions::OPERATIONAL.contains(&option)
            || ScanOptions::KEYS.contains(&option)
    }

    fn takes_updates(&self, table: &TableDefinition) -> bool {
        !table.primary_key.is_empty() || self.is_changelog(table)
    }

    fn is_changelog(&self, table: &TableDefinition) -> bool {
        RocketmqOptions::take(table).is_ok_and(|options| options.format.is_changelog())
    }

    async fn source(
        &self,
        table: Arc<TableDefinition>,
        environment: &Environment,
        owner: Option<&Owner>,
    ) -> Result<Arc<dyn Source>> {
        Ok(Arc::new(RocketmqSource::try_new(table, &environment.clock, owner)?))
    }

    async fn sink(
        &self,
        table: Arc<TableDefinition>,
        environment: &Environment,
        owner: &Owner,
    ) -> Result<Arc<dyn Sink>> {
        Ok(Arc::new(RocketmqSink::try_new(table, &environment.clock, owner)?))
    }

    fn cluster(
        &self,
        name: &str,
        options: &BTreeMap<String, String>,
        environment: &Environment,
    ) -> Result<Arc<dyn Cluster>> {
        Ok(Arc::new(RocketmqCluster::try_new(name, options, environment)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connector::contract::fixture;

    /// That a query reads what it writes is found out by these.
    #[test]
    fn several_topics_are_one_stream_and_each_of_them_a_place() {
        let table =
            |topics: (&str, &str)| fixture::with_options(&[("name-server", "a:9876"), ("format", "json"), topics]);
        let reads = |topics: (&str, &str), topic: &str| {
            let place = RocketmqConnector.place(&table(("topic", topic))).unwrap();
            RocketmqConnector.reads(&table(topics), &place).unwrap()
        };
        for topics in [("topic", "a"), ("topic", "b;a"), ("topic-pattern", "a|b")] {
            assert!(reads(topics, "a") && !reads(topics, "ab"), "{topics:?}");
            assert!(!RocketmqConnector.reads(&table(topics), "kafka topic a").unwrap());
        }
        assert!(!reads(("topic-pattern", ".*"), "%RETRY%a"), "no pattern means RocketMQ's own");
    }
}

//! Kafka topics as tables: `'connector' = 'kafka'`.
//!
//! The idea: topics are sets of logs, which is what the engine calls a source; their offsets are the engine's, their
//! last stable offsets are the ends, and the query's checkpoint is where positions are kept. No consumer group is
//! joined; if one is named, it is told how far the query is, for others to see.
//!
//! What it guarantees: exact spans when reading, also of topics written in transactions. Topics and partitions that
//! appear later are found. Writing is exactly-once, a transaction an epoch, for readers of committed messages; or
//! at-least-once; or with no promise at all. A table with a PRIMARY KEY takes results that change, as upserts and
//! tombstones, by this name or by `upsert-kafka`, which is another spelling of the same.
//!
//! What it does not promise yet: reading upserts.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use self::cluster::KafkaCluster;
use self::columns::Column;
use self::options::{DISCOVERY_OPTION, KafkaOptions, Topics};
use self::sink::KafkaSink;
use self::source::KafkaSource;
use super::cluster::Cluster;
use super::messages::{Decoding, check_metadata};
use super::upserts::Key;
use super::{
    Connector, Delivery, Environment, Guarantee, Meaning, MetadataKey, OptionEntry, Owner, Published, Role,
    ScanOptions, Sink, Source, Staged,
};
use crate::catalog::TableDefinition;
use crate::error::{Error, Result};
use crate::format::FormatOptions;

pub use upsert::UpsertKafkaConnector;

pub mod options;
pub mod properties;

mod admin;
mod client;
mod cluster;
mod columns;
mod discovery;
mod fetching;
mod group;
mod producer;
mod progress;
mod queue;
mod reader;
mod receipts;
mod rows;
mod sink;
mod source;
mod spools;
mod transactions;
mod upsert;

/// What the place of one topic begins with.
const PLACE: &str = "kafka topic ";

/// The connector `kafka`.
#[derive(Debug, Clone, Copy, Default)]
pub struct KafkaConnector;

#[async_trait]
impl Connector for KafkaConnector {
    fn name(&self) -> &'static str {
        "kafka"
    }

    fn options(&self) -> Vec<OptionEntry> {
        options::described()
    }

    fn metadata(&self) -> Vec<MetadataKey> {
        Column::ALL.into_iter().map(Column::describe).collect()
    }

    /// A producer may give any timestamp, so a later message may have an earlier one.
    fn meaning(&self, key: &str) -> Option<Meaning> {
        match Column::of(key)? {
            Column::Partition => Some(Meaning::Partition),
            Column::Offset => Some(Meaning::Offset),
            Column::Timestamp => Some(Meaning::Time),
            _ => None,
        }
    }

    fn check(&self, table: &TableDefinition, role: Role) -> Result<()> {
        let options = KafkaOptions::take(table)?;
        check_metadata(table, &self.metadata(), role == Role::Sink)?;
        let refuse = |text: &str| Err(Error::usage(format!("table {}: {text}", table.name)));
        if !table.partitioned_by.is_empty() {
            return refuse("PARTITIONED BY is for directories; a topic is partitioned by its messages' keys");
        }
        match role {
            Role::Source if !table.primary_key.is_empty() && !options.format.is_changelog() => refuse(
                "a PRIMARY KEY makes the messages of a topic updates of rows, which is not supported yet; leave it out to \
                 read every message as a row",
            ),
            Role::Source if !options.is_key_in_payload && options.key_columns.is_none() => refuse(
                "'value.fields-include' = 'EXCEPT_KEY' leaves columns to the messages' keys; to read them say by \
                 'key.fields' which these are, and by 'key.format' how a key is read",
            ),
            Role::Source => {
                let all: Vec<usize> = (0..table.stored_columns().count()).collect();
                let (key, report) = (options.key_columns.as_ref(), super::ReadReport::default());
                Decoding::with_key(table, &options.format, key, &all, &report).map(drop).map_err(|e| blame(table, e))
            }
            Role::Sink if options.topics.only().is_none() => refuse(
                "a table that is written names one topic, by 'topic'; a column METADATA FROM 'topic' sends rows elsewhere",
            ),
            Role::Sink if table.options.contains_key("key.fields") && matches!(options.key, Key::Given(_)) => {
                refuse("the message's key is given twice: by 'key.fields' and by the metadata column 'key'; drop one")
            }
            Role::Sink => rows::Rows::try_new(table, &options, 0, 1).map(drop).map_err(|e| blame(table, e)),
        }
    }

    fn identity(&self, table: &TableDefinition) -> Result<String> {
        let topics = KafkaOptions::take(table)?.topics;
        Ok(match (topics.only(), &topics) {
            (Some(topic), _) => format!("{PLACE}{topic}"),
            (None, Topics::Named(names)) => {
                format!("kafka topics {}", names.iter().map(String::as_str).collect::<Vec<_>>().join(";"))
            }
            (None, Topics::Matching { pattern, .. }) => format!("kafka topics matching '{pattern}'"),
        })
    }

    fn reads(&self, table: &TableDefinition, place: &str) -> Result<bool> {
        let options = KafkaOptions::take(table)?;
        Ok(place.strip_prefix(PLACE).is_some_and(|topic| options.reads(topic)))
    }

    fn guarantee(&self, table: &TableDefinition) -> Result<Guarantee> {
        KafkaOptions::take(table).map(|options| guarantee(options.delivery))
    }

    fn is_operational(&self, option: &str) -> bool {
        option.starts_with("properties.")
            || option == DISCOVERY_OPTION
            || FormatOptions::OPERATIONAL.contains(&option)
            || ScanOptions::KEYS.contains(&option)
    }

    fn takes_updates(&self, table: &TableDefinition) -> bool {
        !table.primary_key.is_empty() || self.is_changelog(table)
    }

    fn is_changelog(&self, table: &TableDefinition) -> bool {
        KafkaOptions::take(table).is_ok_and(|options| options.format.is_changelog())
    }

    async fn source(
        &self,
        table: Arc<TableDefinition>,
        environment: &Environment,
        _owner: Option<&Owner>,
    ) -> Result<Arc<dyn Source>> {
        let options = KafkaOptions::take(&table)?;
        let clock = environment.clock.clone();
        let source = KafkaSource::try_new(Arc::clone(&table), options, environment.parallelism, clock);
        Ok(Arc::new(source.map_err(|e| blame(&table, e))?))
    }

    async fn sink(
        &self,
        table: Arc<TableDefinition>,
        environment: &Environment,
        owner: &Owner,
    ) -> Result<Arc<dyn Sink>> {
        let options = KafkaOptions::take(&table)?;
        let sink = KafkaSink::try_new(Arc::clone(&table), options, owner, environment.clock.clone());
        Ok(Arc::new(sink.map_err(|e| blame(&table, e))?))
    }

    fn cluster(
        &self,
        name: &str,
        options: &BTreeMap<String, String>,
        _environment: &Environment,
    ) -> Result<Arc<dyn Cluster>> {
        Ok(Arc::new(KafkaCluster::try_new(name, options)?))
    }
}

fn blame(table: &TableDefinition, error: Error) -> Error {
    error.context(format_args!("table {}", table.name))
}

fn guarantee(delivery: Delivery) -> Guarantee {
    let reason = match delivery {
        Delivery::ExactlyOnce => {
            "an epoch's rows and the record of the epoch are one transaction, for readers of committed messages \
             (isolation.level=read_committed); rows of a task with the same key keep their order"
        }
        Delivery::None => {
            "rows are sent when their epoch is published, and what the brokers do not take is left out, with a warning that \
             counts it; the rows of an epoch that is run again are written again"
        }
        _ => {
            "every row is acknowledged by all replicas in sync before its epoch counts, and the rows of an epoch that \
             failed half-way are written again; rows with the same key keep their order"
        }
    };
    Guarantee { delivery, reason: reason.into() }
}

/// The lock, also if whoever had it panicked.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How much several tasks have staged.
fn total<'a>(tasks: impl Iterator<Item = &'a Staged>) -> Published {
    tasks.fold(Published::default(), |mut published, staged| {
        published.rows += staged.rows;
        published.bytes += staged.bytes;
        published
    })
}

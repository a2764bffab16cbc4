//! Topics in memory: `'connector' = 'memory'`, for tests, examples and programs that embed the engine.
//!
//! A program keeps a [`Memory`], [appends](Memory::append) rows to its topics and takes what queries wrote out of
//! [`rows`](Memory::rows). The connector is real: offsets are row numbers of a partition, a span is cut out of the
//! appended batches exactly, and writing is exactly-once, for a topic remembers per query which rows an epoch published
//! and which run published last. Where a row stands are its metadata `partition` and `offset`.
//!
//! What it does not promise: to outlive the process, or to stage an epoch larger than memory. What queries write into a
//! topic and what programs append to it are kept apart: only the latter is read.

use std::sync::Arc;

use arrow::datatypes::DataType;
use async_trait::async_trait;

use self::sink::MemorySink;
use self::source::MemorySource;
use super::messages::check_metadata;
use super::position::{Position, Side};
use super::{
    Connector, Delivery, Environment, Guarantee, Meaning, MetadataKey, Owner, Role, ScanOptions, Sink, Source,
};
use crate::catalog::TableDefinition;
use crate::error::Result;
use crate::sql::options::OptionReader;

pub use topics::Memory;

mod sink;
mod source;
mod topics;

#[cfg(test)]
mod tests;

/// Names of metadata.
const PARTITION: &str = "partition";
const OFFSET: &str = "offset";

/// The connector `memory`; its options are `topic`, and those of where a stream begins and ends.
#[derive(Debug, Default)]
pub struct MemoryConnector {
    memory: Memory,
}

impl MemoryConnector {
    /// Reads and writes these topics.
    pub fn new(memory: Memory) -> Self {
        Self { memory }
    }
}

/// The options of a table.
#[derive(Debug)]
struct Options {
    topic: String,
    startup: Option<Position>,
    bounded: Option<Position>,
}

impl Options {
    fn take(table: &TableDefinition) -> Result<Self> {
        let mut reader = OptionReader::new(table);
        let topic = reader.required("topic")?;
        ScanOptions::take(&mut reader)?;
        let (form, offsets) = ("a list such as 'topic:0,42;topic:1,300'", |text: &str| {
            text.split(';')
                .map(|entry| {
                    let (partition, offset) = entry.split_once(',')?;
                    Some((partition.trim().parse().ok()?, offset.trim().parse().ok()?))
                })
                .collect()
        });
        let startup = Position::take(&mut reader, Side::Startup, form, offsets)?;
        let bounded = Position::take(&mut reader, Side::Bounded, form, offsets)?;
        reader.finish()?;
        Ok(Self { topic, startup, bounded })
    }
}

fn guarantee() -> Guarantee {
    Guarantee {
        delivery: Delivery::ExactlyOnce,
        reason: "the topic remembers the rows of each epoch and refuses earlier runs, as long as the process lives"
            .into(),
    }
}

#[async_trait]
impl Connector for MemoryConnector {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn metadata(&self) -> Vec<MetadataKey> {
        let read = |key, data_type| MetadataKey { key, data_type, writable: false, meaning: "" };
        vec![read(PARTITION, DataType::Int32), read(OFFSET, DataType::Int64)]
    }

    fn meaning(&self, key: &str) -> Option<Meaning> {
        match key {
            PARTITION => Some(Meaning::Partition),
            OFFSET => Some(Meaning::Offset),
            _ => None,
        }
    }

    fn check(&self, table: &TableDefinition, role: Role) -> Result<()> {
        check_metadata(table, &self.metadata(), role == Role::Sink)?;
        Options::take(table).map(drop)
    }

    fn identity(&self, table: &TableDefinition) -> Result<String> {
        Ok(format!("memory {}", Options::take(table)?.topic))
    }

    fn is_operational(&self, option: &str) -> bool {
        ScanOptions::KEYS.contains(&option)
    }

    fn guarantee(&self, _table: &TableDefinition) -> Result<Guarantee> {
        Ok(guarantee())
    }

    fn takes_updates(&self, _table: &TableDefinition) -> bool {
        true
    }

    async fn source(
        &self,
        table: Arc<TableDefinition>,
        _environment: &Environment,
        _owner: Option<&Owner>,
    ) -> Result<Arc<dyn Source>> {
        Ok(Arc::new(MemorySource::try_new(self.memory.clone(), &table)?))
    }

    async fn sink(&self, table: Arc<TableDefinition>, _: &Environment, owner: &Owner) -> Result<Arc<dyn Sink>> {
        let (topic, query) = (Options::take(&table)?.topic, Arc::clone(&owner.id));
        Ok(Arc::new(MemorySink::new(self.memory.clone(), table.name.clone(), topic, query)))
    }
}

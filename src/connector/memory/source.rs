//! Reading a topic in memory.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::stream;

use super::Options;
use super::topics::Memory;
use crate::catalog::TableDefinition;
use crate::connector::position::{Lookup, Position, Side};
use crate::connector::{Bounds, Extent, Fingerprint, Offsets, Partition, PartitionReport, ReadReport, Source, Span};
use crate::error::{Error, Result};

/// Reads what programs appended.
#[derive(Debug)]
pub(super) struct MemorySource {
    memory: Memory,
    table: String,
    topic: Arc<str>,
    schema: SchemaRef,
    startup: Option<Position>,
    bounded: Option<Position>,
}

impl MemorySource {
    /// Reads the table's topic.
    pub(super) fn try_new(memory: Memory, table: &TableDefinition) -> Result<Self> {
        let Options { topic, startup, bounded } = Options::take(table)?;
        let (name, schema) = (table.name.clone(), table.stored_schema());
        Ok(Self { memory, table: name, topic: topic.into(), schema, startup, bounded })
    }

    /// The batches of `span`, each with what tells its last row from others; rows that were trimmed, or that never came, are
    /// lost.
    fn batches(&self, span: &Span) -> Result<Vec<(RecordBatch, Fingerprint)>> {
        if span.is_empty() {
            return Ok(Vec::new());
        }
        self.memory.with(&self.topic, |topic| {
            let log = topic.partitions.get(&span.partition.number).filter(|_| span.partition.name == self.topic);
            let (earliest, latest) = log.map_or((0, 0), |log| (log.earliest, log.latest));
            match log {
                Some(log) if earliest <= span.from && span.to <= latest => {
                    let mut next = span.from;
                    let last = |rows: &RecordBatch| {
                        next += rows.num_rows() as u64;
                        log.fingerprint(next - 1)
                    };
                    let batches = log.slice(span.from, span.to);
                    let last: Vec<_> = batches.iter().map(last).collect();
                    Ok(batches.into_iter().zip(last).collect())
                }
                _ => Err(Error::data_loss(format!(
                    "table {}: {span} is to be read, but the topic holds {earliest}..{latest} there; append the \
                     missing rows, or start the query anew",
                    self.table
                ))),
            }
        })
    }

    /// The columns asked for, under the table's names; the types must be the table's.
    fn projected(&self, rows: &RecordBatch, schema: &SchemaRef, projection: &[usize]) -> Result<RecordBatch> {
        let of_table = self.schema.fields().iter().map(|field| field.data_type());
        if !of_table.eq(rows.columns().iter().map(|column| column.data_type())) {
            return Err(Error::data(format!(
                "table {}: rows of topic {} have other columns than the table; append {:?}",
                self.table, self.topic, self.schema
            )));
        }
        let rows = rows.project(projection)?;
        Ok(rows.with_schema(Arc::clone(schema))?)
    }
}

#[async_trait]
impl Lookup for MemorySource {
    async fn committed(&self, _: &[Partition]) -> Result<Offsets> {
        Err(Error::usage(format!("table {}: topics in memory have no groups", self.table)))
    }

    async fn at(&self, _: &[Partition], _: i64) -> Result<Offsets> {
        Err(Error::usage(format!("table {}: rows of topics in memory have no time", self.table)))
    }
}

#[async_trait]
impl Source for MemorySource {
    async fn start(&self) -> Result<Offsets> {
        let earliest = Position::Earliest;
        let start = self.startup.as_ref().unwrap_or(&earliest);
        start.resolve(Side::Startup, &self.extent().await?, self).await
    }

    async fn end(&self) -> Result<Option<Offsets>> {
        match &self.bounded {
            Some(end) => Ok(Some(end.resolve(Side::Bounded, &self.extent().await?, self).await?)),
            None => Ok(None),
        }
    }

    async fn fingerprint(&self, partition: &Partition, offset: u64) -> Result<Option<Fingerprint>> {
        Ok(self.memory.with(&self.topic, |topic| {
            let log = topic.partitions.get(&partition.number)?;
            (log.earliest..log.latest).contains(&offset).then(|| log.fingerprint(offset))
        }))
    }

    async fn extent(&self) -> Result<Extent> {
        Ok(self.memory.with(&self.topic, |topic| Extent {
            partitions: topic
                .partitions
                .iter()
                .map(|(number, log)| {
                    let bounds = Bounds { earliest: log.earliest, latest: log.latest };
                    (Partition::new(Arc::clone(&self.topic), *number), bounds)
                })
                .collect(),
            complete: topic.complete,
            ..Extent::default()
        }))
    }

    fn read(&self, span: &Span, projection: &[usize], report: &ReadReport) -> Result<SendableRecordBatchStream> {
        let schema = Arc::new(self.schema.project(projection)?);
        let batches = self.batches(span)?;
        let projected = |(rows, last)| Ok::<_, Error>((self.projected(&rows, &schema, projection)?, last));
        let batches = batches.into_iter().map(projected).collect::<Result<Vec<_>>>()?;
        let (partition, report) = (span.partition.clone(), report.clone());
        let batches = batches.into_iter().map(move |(rows, last)| {
            let (messages, last) = (rows.num_rows() as u64, Some(last));
            let sizes =
                rows.columns().iter().map(|column| column.to_data().get_slice_memory_size().unwrap_or_default());
            let bytes = sizes.sum::<usize>() as u64;
            report.add(&partition, PartitionReport { messages, bytes, last, ..PartitionReport::default() });
            Ok(rows)
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, stream::iter(batches))))
    }
}

//! Reading a topic in memory.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::stream;

use super::topics::Memory;
use crate::connector::{Bounds, Extent, Fingerprint, Offsets, Partition, PartitionReport, ReadReport, Source, Span};
use crate::error::{Error, Result};

/// Reads what programs appended. A query starts with the earliest rows.
#[derive(Debug)]
pub(super) struct MemorySource {
    memory: Memory,
    table: String,
    topic: Arc<str>,
    schema: SchemaRef,
}

impl MemorySource {
    /// Reads `topic` as rows of `schema`.
    pub(super) fn new(memory: Memory, table: String, topic: String, schema: SchemaRef) -> Self {
        Self { memory, table, topic: topic.into(), schema }
    }

    /// The batches of `span`; rows that were trimmed, or that never came, are lost.
    fn batches(&self, span: &Span) -> Result<Vec<RecordBatch>> {
        if span.is_empty() {
            return Ok(Vec::new());
        }
        self.memory.with(&self.topic, |topic| {
            let log = topic.partitions.get(&span.partition.number).filter(|_| span.partition.name == self.topic);
            let (earliest, latest) = log.map_or((0, 0), |log| (log.earliest, log.latest));
            match log {
                Some(log) if earliest <= span.from && span.to <= latest => Ok(log.slice(span.from, span.to)),
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
impl Source for MemorySource {
    async fn start(&self) -> Result<Offsets> {
        let extent = self.extent().await?;
        Ok(extent.partitions.into_iter().map(|(partition, bounds)| (partition, bounds.earliest)).collect())
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
        let batches =
            batches.iter().map(|rows| self.projected(rows, &schema, projection)).collect::<Result<Vec<_>>>()?;
        let (partition, report, mut next) = (span.partition.clone(), report.clone(), span.from);
        let batches = batches.into_iter().map(move |rows| {
            let messages = rows.num_rows() as u64;
            next += messages;
            let last = Some(Fingerprint { offset: next - 1, timestamp: None, id: None });
            report.add(&partition, PartitionReport { messages, last, ..PartitionReport::default() });
            Ok(rows)
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, stream::iter(batches))))
    }
}

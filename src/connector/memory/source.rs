//! Reading a topic in memory.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Array, Int64Array, RecordBatch, RecordBatchOptions};
use arrow::compute::cast;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::stream;

use super::topics::Memory;
use super::{OFFSET, Options};
use crate::catalog::{Column, ColumnKind, TableDefinition};
use crate::connector::position::{Lookup, Position, Side};
use crate::connector::{Bounds, Extent, Fingerprint, Offsets, Partition, PartitionReport, ReadReport, Source, Span};
use crate::error::{Error, Result};

/// Reads what programs appended.
#[derive(Debug)]
pub(super) struct MemorySource {
    memory: Memory,
    table: String,
    topic: Arc<str>,
    columns: Vec<Column>,
    schema: SchemaRef,
    startup: Option<Position>,
    bounded: Option<Position>,
}

impl MemorySource {
    /// Reads the table's topic.
    pub(super) fn try_new(memory: Memory, table: &TableDefinition) -> Result<Self> {
        let Options { topic, startup, bounded } = Options::take(table)?;
        let (name, schema) = (table.name.clone(), table.stored_schema());
        let columns = table.stored_columns().cloned().collect();
        Ok(Self { memory, table: name, topic: topic.into(), columns, schema, startup, bounded })
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

    /// The columns asked for, under the table's names; the types must be the table's. `last` is the offset of the last
    /// row.
    fn projected(&self, rows: &RecordBatch, partition: u32, last: u64, projection: &[usize]) -> Result<RecordBatch> {
        let physical = || self.columns.iter().filter(|column| column.kind == ColumnKind::Physical);
        let found = rows.columns().iter().map(|column| column.data_type());
        if !physical().map(|column| &column.data_type).eq(found) {
            return Err(Error::data(format!(
                "table {}: rows of topic {} have other columns than the table; append {:?}",
                self.table,
                self.topic,
                physical().map(Column::field).collect::<Vec<_>>()
            )));
        }
        let column = |index: &usize| -> Result<ArrayRef> {
            let column = &self.columns[*index];
            let ColumnKind::Metadata { key, .. } = &column.kind else {
                let place = self.columns[..*index].iter().filter(|column| column.kind == ColumnKind::Physical).count();
                return Ok(Arc::clone(rows.column(place)));
            };
            let values: ArrayRef = match key.as_str() {
                OFFSET => {
                    let end = last as i64 + 1;
                    Arc::new(Int64Array::from_iter_values(end - rows.num_rows() as i64..end))
                }
                _ => Arc::new(Int32Array::from_value(partition as i32, rows.num_rows())),
            };
            Ok(cast(&values, &column.data_type)?)
        };
        let columns = projection.iter().map(column).collect::<Result<Vec<_>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
        Ok(RecordBatch::try_new_with_options(Arc::new(self.schema.project(projection)?), columns, &options)?)
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
        let number = span.partition.number;
        let projected = |(rows, last): (RecordBatch, Fingerprint)| {
            Ok::<_, Error>((self.projected(&rows, number, last.offset, projection)?, last))
        };
        let batches = self.batches(span)?.into_iter().map(projected).collect::<Result<Vec<_>>>()?;
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

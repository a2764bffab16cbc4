//! From messages to rows: what every topic source shares.
//!
//! A reader hands over messages as columns, a [`MessageBatch`] at a time; [`decoded`] turns a stream of them into the
//! rows of the table, applies `format.on-error`, and reports what it saw. Only columns that were asked for are decoded.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BinaryArray, BooleanArray, RecordBatch, RecordBatchOptions};
use arrow::compute::{cast, filter};
use arrow::datatypes::{Schema, SchemaRef};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::{Stream, StreamExt};

use super::{Fingerprint, MetadataKey, Partition, PartitionReport, ReadReport, SkippedSample};
use crate::catalog::{ColumnKind, TableDefinition};
use crate::error::{Error, Result};
use crate::format::{BadPayload, Decoder, FormatOptions, OnError};

/// Consecutive messages of one partition, as columns of equal length.
#[derive(Debug, Clone)]
pub struct MessageBatch {
    /// The payloads; NULL for a message without one.
    pub payloads: BinaryArray,
    /// Their offsets.
    pub offsets: Vec<u64>,
    /// A column for each of [`Decoding::metadata`], in that order; cast to the declared type when it differs.
    pub metadata: Vec<ArrayRef>,
    /// The last message.
    pub last: Fingerprint,
}

/// Turns message batches into the rows that a scan asked for.
#[derive(Debug)]
pub struct Decoding {
    table: String,
    schema: SchemaRef,
    decoder: Box<dyn Decoder>,
    on_error: OnError,
    metadata: Vec<String>,
    /// For each column of `schema`: its index among the decoded (false) or the metadata columns (true).
    columns: Vec<(bool, usize)>,
}

impl Decoding {
    /// For the columns `projection` of the table's stored schema.
    pub fn try_new(table: &TableDefinition, format: &FormatOptions, projection: &[usize]) -> Result<Self> {
        let stored: Vec<_> = table.stored_columns().collect();
        let (mut payload, mut metadata, mut columns, mut fields) = (vec![], vec![], vec![], vec![]);
        for &index in projection {
            let column = stored[index];
            fields.push(column.field());
            match &column.kind {
                ColumnKind::Metadata { key, .. } => {
                    columns.push((true, metadata.len()));
                    metadata.push(key.clone());
                }
                _ => {
                    columns.push((false, payload.len()));
                    payload.push(column.field());
                }
            }
        }
        let decoder = format.decoder(Arc::new(Schema::new(payload)))?;
        let schema = Arc::new(Schema::new(fields));
        Ok(Self { table: table.name.clone(), schema, decoder, on_error: format.on_error, metadata, columns })
    }

    /// The metadata keys that a [`MessageBatch`] must bring, in order.
    pub fn metadata(&self) -> &[String] {
        &self.metadata
    }

    /// The schema of the rows.
    pub fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    /// The rows of one batch of messages of `partition`.
    pub fn decode(&mut self, partition: &Partition, batch: MessageBatch, report: &ReadReport) -> Result<RecordBatch> {
        let messages = batch.payloads.len();
        let decoded = self.decoder.decode(&batch.payloads)?;
        let mut seen = PartitionReport {
            messages: messages as u64,
            bytes: batch.payloads.value_data().len() as u64,
            last: Some(batch.last),
            ..PartitionReport::default()
        };
        if let Some(BadPayload { index, reason }) = decoded.bad.first() {
            let offset = batch.offsets[*index];
            if self.on_error == OnError::Fail {
                return Err(Error::data(format!(
                    "table {}: the message at {partition} offset {offset} cannot be read: {reason}; correct it, or set \
                     'format.on-error' = 'skip' to leave such messages out",
                    self.table
                )));
            }
            seen.skipped = decoded.bad.len() as u64;
            seen.sample = Some(SkippedSample { offset, reason: reason.clone() });
        }
        report.add(partition, seen);

        let good = (!decoded.bad.is_empty()).then(|| {
            let mut good = vec![true; messages];
            decoded.bad.iter().for_each(|bad| good[bad.index] = false);
            BooleanArray::from(good)
        });
        let mut columns = Vec::with_capacity(self.columns.len());
        for (&(is_metadata, index), field) in self.columns.iter().zip(self.schema.fields()) {
            let column = if is_metadata {
                let column = cast(&batch.metadata[index], field.data_type())?;
                match &good {
                    Some(good) => filter(&column, good)?,
                    None => column,
                }
            } else {
                Arc::clone(decoded.rows.column(index))
            };
            if !field.is_nullable() && column.null_count() > 0 {
                return Err(Error::data(format!(
                    "table {}: a message of {partition} at or after offset {} has no value for {}, which is NOT NULL",
                    self.table,
                    batch.offsets.first().copied().unwrap_or_default(),
                    field.name()
                )));
            }
            columns.push(column);
        }
        let options = RecordBatchOptions::new().with_row_count(Some(messages - decoded.bad.len()));
        Ok(RecordBatch::try_new_with_options(self.schema(), columns, &options)?)
    }
}

/// The rows of a stream of messages of one partition.
pub fn decoded(
    mut decoding: Decoding,
    partition: Partition,
    messages: impl Stream<Item = Result<MessageBatch>> + Send + 'static,
    report: ReadReport,
) -> SendableRecordBatchStream {
    let schema = decoding.schema();
    let rows = messages.map(move |batch| Ok(decoding.decode(&partition, batch?, &report)?));
    Box::pin(RecordBatchStreamAdapter::new(schema, rows))
}

/// Checks that every metadata column of `table` is one that the connector offers, in a type it can be cast to.
pub fn check_metadata(table: &TableDefinition, offered: &[MetadataKey], writing: bool) -> Result<()> {
    for column in &table.columns {
        let ColumnKind::Metadata { key, is_virtual } = &column.kind else { continue };
        let Some(known) = offered.iter().find(|known| known.key == key) else {
            let hint = crate::sql::options::did_you_mean(key, offered.iter().map(|known| known.key));
            return Err(Error::usage(format!(
                "table {}: column {}: there is no metadata '{key}'{hint}",
                table.name, column.name
            )));
        };
        if writing && !is_virtual && !known.writable {
            return Err(Error::usage(format!(
                "table {}: column {}: metadata '{key}' cannot be written; declare it VIRTUAL",
                table.name, column.name
            )));
        }
        if !arrow::compute::can_cast_types(&known.data_type, &column.data_type) {
            return Err(Error::usage(format!(
                "table {}: column {}: metadata '{key}' is {}, which cannot become {}",
                table.name, column.name, known.data_type, column.data_type
            )));
        }
    }
    Ok(())
}

/// Refuses `PARTITIONED BY`, for connectors that have no directories: it would be parsed and mean nothing.
pub fn refuse_layout(table: &TableDefinition) -> Result<()> {
    if table.partitioned_by.is_empty() {
        return Ok(());
    }
    let connector = table.connector()?;
    Err(Error::usage(format!(
        "table {}: PARTITIONED BY means nothing to '{connector}', only to 'filesystem'; leave it out",
        table.name
    )))
}

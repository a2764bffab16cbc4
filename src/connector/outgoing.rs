//! From rows to messages: what every topic sink shares.
//!
//! A row becomes a payload, by the table's format over its physical columns, and the writable metadata columns that the
//! table declares. The result is again a batch, so that it can wait in a [`Spool`](super::spool::Spool).

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use crate::catalog::{ColumnKind, TableDefinition};
use crate::error::Result;
use crate::format::{Encoder, FormatOptions};

/// The column that holds the payload in an encoded batch.
pub const PAYLOAD: usize = 0;

/// Encodes the rows of a table.
#[derive(Debug)]
pub struct Encoding {
    encoder: Box<dyn Encoder>,
    schema: SchemaRef,
    physical: Vec<usize>,
    carried: Vec<usize>,
}

impl Encoding {
    /// Encodes rows of the table's [`writable_schema`](TableDefinition::writable_schema). Besides payload and metadata
    /// an encoded batch carries the physical columns `also` (a key's fields) as they are.
    pub fn try_new(table: &TableDefinition, format: &FormatOptions, also: &[String]) -> Result<Self> {
        let writable: Vec<_> = table.writable_columns().collect();
        let is_physical = |i: &usize| matches!(writable[*i].kind, ColumnKind::Physical);
        let physical: Vec<usize> = (0..writable.len()).filter(is_physical).collect();
        let metadata: Vec<usize> = (0..writable.len()).filter(|i| !is_physical(i)).collect();
        let key: Vec<usize> = also.iter().filter_map(|name| writable.iter().position(|c| &c.name == name)).collect();
        let payload_schema = Arc::new(Schema::new(physical.iter().map(|i| writable[*i].field()).collect::<Vec<_>>()));
        let mut fields = vec![Field::new("payload", DataType::Binary, true)];
        for &index in &metadata {
            if let ColumnKind::Metadata { key, .. } = &writable[index].kind {
                fields.push(writable[index].field().with_name(format!("metadata.{key}")));
            }
        }
        fields.extend(key.iter().map(|i| writable[*i].field().with_name(format!("key.{}", writable[*i].name))));
        let carried = metadata.into_iter().chain(key).collect();
        Ok(Self { encoder: format.encoder(payload_schema)?, schema: Arc::new(Schema::new(fields)), physical, carried })
    }

    /// The schema of encoded batches: `payload`, then `metadata.<key>` and `key.<column>` columns.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Encodes a batch of rows.
    pub fn encode(&mut self, rows: &RecordBatch) -> Result<RecordBatch> {
        let payload = self.encoder.encode(&rows.project(&self.physical)?)?;
        let mut columns: Vec<ArrayRef> = vec![Arc::new(payload)];
        columns.extend(self.carried.iter().map(|i| Arc::clone(rows.column(*i))));
        Ok(RecordBatch::try_new(Arc::clone(&self.schema), columns)?)
    }
}

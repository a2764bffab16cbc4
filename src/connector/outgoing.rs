//! From rows to messages: what every topic sink shares.
//!
//! A row becomes a payload, by the table's format over its physical columns, and the writable metadata columns that the
//! table declares. The result is again a batch, so that it can wait in a [`Spool`](super::spool::Spool).

use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, RecordBatch, Scalar};
use arrow::compute::filter_record_batch;
use arrow::compute::kernels::merge::merge;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use super::upserts::Upserts;
use crate::catalog::{ColumnKind, TableDefinition};
use crate::error::Result;
use crate::format::{Encoder, FormatOptions};

/// The column that holds the payload in an encoded batch; NULL for a tombstone, and for a raw NULL.
pub const PAYLOAD: usize = 0;

/// Encodes the rows of a table.
#[derive(Debug)]
pub struct Encoding {
    encoder: Box<dyn Encoder>,
    schema: SchemaRef,
    physical: Vec<usize>,
    metadata: Vec<usize>,
}

impl Encoding {
    /// Encodes rows of the table's [`writable_schema`](TableDefinition::writable_schema).
    pub fn try_new(table: &TableDefinition, format: &FormatOptions) -> Result<Self> {
        let writable: Vec<_> = table.writable_columns().collect();
        let is_physical = |i: &usize| matches!(writable[*i].kind, ColumnKind::Physical);
        let (physical, metadata): (Vec<usize>, Vec<usize>) = (0..writable.len()).partition(is_physical);
        let payload_schema = Arc::new(Schema::new(physical.iter().map(|i| writable[*i].field()).collect::<Vec<_>>()));
        let mut fields = vec![Field::new("payload", DataType::Binary, true)];
        for &index in &metadata {
            if let ColumnKind::Metadata { key, .. } = &writable[index].kind {
                fields.push(writable[index].field().with_name(format!("metadata.{key}")));
            }
        }
        Ok(Self { encoder: format.encoder(payload_schema)?, schema: Arc::new(Schema::new(fields)), physical, metadata })
    }

    /// The schema of encoded batches: `payload`, then `metadata.<key>` columns.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Encodes a batch of rows; those without a value have no payload.
    pub fn encode(&mut self, upserts: &Upserts) -> Result<RecordBatch> {
        let rows = upserts.rows.project(&self.physical)?;
        let payload: ArrayRef = match (&upserts.kinds, &upserts.valued) {
            (Some(kinds), _) => Arc::new(self.encoder.encode_changes(&rows, kinds)?),
            (None, Some(valued)) if valued.has_false() => {
                let payload = self.encoder.encode(&filter_record_batch(&rows, valued)?)?;
                merge(valued, &payload, &Scalar::new(BinaryArray::new_null(1)))?
            }
            _ => Arc::new(self.encoder.encode(&rows)?),
        };
        let metadata = self.metadata.iter().map(|i| Arc::clone(upserts.rows.column(*i)));
        Ok(RecordBatch::try_new(Arc::clone(&self.schema), std::iter::once(payload).chain(metadata).collect())?)
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Array, AsArray, BooleanArray, Int8Array, Int64Array};

    use super::*;
    use crate::connector::contract::fixture;
    use crate::plan::changes::RowKind;
    use crate::sql::options::OptionReader;

    #[test]
    fn a_row_without_a_value_has_metadata_and_no_payload() {
        let ids = Arc::new(Int64Array::from(vec![1, 2, 3, 4])) as ArrayRef;
        let rows = RecordBatch::try_from_iter([("id", Arc::clone(&ids)), ("at", Arc::clone(&ids))]).unwrap();
        let mut table = (*fixture::table_of("t", &rows.schema(), &[("format", "json")])).clone();
        table.columns[1].kind = ColumnKind::Metadata { key: "timestamp".into(), is_virtual: false };
        let format = FormatOptions::take(&mut OptionReader::new(&table)).unwrap();
        let mut encoding = Encoding::try_new(&table, &format).unwrap();
        let mut payloads = |valued: Option<Vec<bool>>| {
            let valued = valued.map(BooleanArray::from);
            let encoded = encoding.encode(&Upserts { rows: rows.clone(), valued, kinds: None }).unwrap();
            assert_eq!(encoded.column_by_name("metadata.timestamp").unwrap(), &ids);
            encoded.column(PAYLOAD).as_binary::<i32>().clone()
        };
        let all = payloads(None);
        assert_eq!((all.null_count(), all.value(3)), (0, &b"{\"id\":4}"[..]));
        assert_eq!(payloads(Some(vec![true; 4])), all);
        let some = payloads(Some(vec![false, true, true, false]));
        let expected = [None, Some(&b"{\"id\":2}"[..]), Some(&b"{\"id\":3}"[..]), None];
        assert_eq!(some.iter().collect::<Vec<_>>(), expected);
        assert_eq!(some.value_data().len(), 16, "what is not there takes no place");
        assert_eq!(payloads(Some(vec![false; 4])).null_count(), 4);
    }

    #[test]
    fn a_change_of_a_changelog_has_a_payload_of_its_own() {
        let rows = RecordBatch::try_from_iter([("id", Arc::new(Int64Array::from(vec![1, 1])) as ArrayRef)]).unwrap();
        let table = fixture::table_of("t", &rows.schema(), &[("format", "canal-json")]);
        let format = FormatOptions::take(&mut OptionReader::new(&table)).unwrap();
        let kinds = Some(Int8Array::from(vec![RowKind::UpdateBefore as i8, RowKind::UpdateAfter as i8]));
        let mut encoding = Encoding::try_new(&table, &format).unwrap();
        let encoded = encoding.encode(&Upserts { rows, valued: None, kinds }).unwrap();
        let payloads = encoded.column(PAYLOAD).as_binary::<i32>();
        assert_eq!(payloads.value(0), br#"{"data":[{"id":1}],"type":"DELETE"}"#);
        assert_eq!(payloads.value(1), br#"{"data":[{"id":1}],"type":"INSERT"}"#);
    }
}

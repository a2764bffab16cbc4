//! What a statement shows, as rows of texts: every output format then fits it.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::stream;

use super::Rows;
use crate::error::Result;

/// A row of texts; a cell that is absent is NULL.
pub(super) type Row = Vec<Option<String>>;

/// These rows, under these names of columns.
pub(crate) fn listing(columns: &[&str], rows: Vec<Row>) -> Result<Rows> {
    let fields: Vec<Field> = columns.iter().map(|name| Field::new(*name, DataType::Utf8, true)).collect();
    let schema = Arc::new(Schema::new(fields));
    let column = |index: usize| -> ArrayRef {
        Arc::new(rows.iter().map(|row| row.get(index).and_then(Option::as_deref)).collect::<StringArray>())
    };
    let columns = (0..columns.len()).map(column).collect();
    let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
    let batch = RecordBatch::try_new_with_options(Arc::clone(&schema), columns, &options)?;
    let stream = Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&schema), stream::iter([Ok(batch)])));
    Ok(Rows { schema, stream, is_unbounded: false })
}

//! Hive-style directories: which rows of a batch go where, and what a directory is called.

use std::collections::HashMap;

use arrow::array::{Array, ArrayRef, RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::{DataType, SchemaRef};
use arrow::row::{OwnedRow, RowConverter, SortField};
use arrow::util::display::{ArrayFormatter, FormatOptions};

use crate::error::Result;

/// What Hive calls the directory of NULL.
const NULL_DIRECTORY: &str = "__HIVE_DEFAULT_PARTITION__";

/// Splits batches by the values of some columns.
#[derive(Debug)]
pub struct Splitter {
    keys: Vec<(String, usize)>,
    rest: Vec<usize>,
    converter: RowConverter,
    directories: HashMap<OwnedRow, String>,
}

impl Splitter {
    /// Splits rows of `schema` by `columns`.
    pub fn try_new(schema: &SchemaRef, columns: &[String]) -> Result<Self> {
        let keys: Vec<(String, usize)> =
            columns.iter().map(|name| Ok((name.clone(), schema.index_of(name)?))).collect::<Result<_>>()?;
        let rest = (0..schema.fields().len()).filter(|i| keys.iter().all(|(_, key)| key != i)).collect();
        let fields = keys.iter().map(|(_, i)| SortField::new(schema.field(*i).data_type().clone())).collect();
        Ok(Self { keys, rest, converter: RowConverter::new(fields)?, directories: HashMap::new() })
    }

    /// The columns that stay in the files.
    pub fn rest(&self) -> &[usize] {
        &self.rest
    }

    /// The parts of a batch with their directories, in the order in which these first occur, without the key columns.
    pub fn split(&mut self, batch: &RecordBatch) -> Result<Vec<(String, RecordBatch)>> {
        let keys: Vec<ArrayRef> = self.keys.iter().map(|(_, i)| ArrayRef::clone(batch.column(*i))).collect();
        let rows = self.converter.convert_columns(&keys)?;
        let mut order: Vec<(usize, Vec<u32>)> = vec![];
        let mut places: HashMap<&[u8], usize> = HashMap::new();
        for index in 0..batch.num_rows() {
            let place = *places.entry(rows.row(index).data()).or_insert_with(|| {
                order.push((index, vec![]));
                order.len() - 1
            });
            order[place].1.push(index as u32);
        }
        drop(places);
        let files = batch.project(&self.rest)?;
        let mut parts = Vec::with_capacity(order.len());
        for (first, indices) in order {
            let row = rows.row(first).owned();
            let directory = match self.directories.get(&row) {
                Some(directory) => directory.clone(),
                None => {
                    let directory = self.directory(&keys, first)?;
                    self.directories.insert(row, directory.clone());
                    directory
                }
            };
            parts.push((directory, take_record_batch(&files, &UInt32Array::from(indices))?));
        }
        Ok(parts)
    }

    fn directory(&self, keys: &[ArrayRef], row: usize) -> Result<String> {
        let mut path = vec![];
        for ((name, _), column) in self.keys.iter().zip(keys) {
            path.push(format!("{}={}", escape(name), value(column, row)?));
        }
        Ok(path.join("/"))
    }
}

fn value(column: &ArrayRef, row: usize) -> Result<String> {
    if column.is_null(row) {
        return Ok(NULL_DIRECTORY.into());
    }
    let options = FormatOptions::new().with_timestamp_format(Some("%Y-%m-%d %H:%M:%S%.f"));
    let text = ArrayFormatter::try_new(column.as_ref(), &options)?.value(row).to_string();
    let is_text = matches!(column.data_type(), DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8);
    // Hive has no way to tell empty text from NULL either.
    Ok(if is_text && text.is_empty() { NULL_DIRECTORY.into() } else { escape(&text) })
}

/// As Hive escapes: what a path or `name=value` gives a meaning becomes %XX.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '"' | '#' | '%' | '\'' | '*' | '/' | ':' | '=' | '?' | '\\' | '{' | '}' | '[' | ']' | '^' => {
                escaped.push_str(&format!("%{:02X}", c as u32));
            }
            c if c.is_ascii_control() => escaped.push_str(&format!("%{:02X}", c as u32)),
            c => escaped.push(c),
        }
    }
    escaped
}

//! Rows of state as files: an Arrow stream whose numbers are split by byte (`split`), compressed with Zstandard.
//!
//! The columns' names and types travel with the rows, and a version: a file of another operator, of an operator that
//! keeps other columns now, or of a newer binary is refused by what differs. How many of the columns are the key is noted
//! too, so that a file can be read without its operator.

use std::sync::Arc;

use arrow::array::{Array, ArrayData, ArrayRef, AsArray, RecordBatch, make_array};
use arrow::datatypes::{DataType, Schema, SchemaRef};
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use bytes::Bytes;

use super::split::{joined, split};
use crate::error::{Error, Result};

/// The version that this binary writes.
const VERSION: &str = "2";
/// The first version, whose numbers are not split.
const UNSPLIT: &str = "1";
const VERSION_KEY: &str = "millstream.state.version";
/// Beside it: how many of the first columns are the key.
pub(super) const KEYS_KEY: &str = "millstream.state.keys";
/// Rows in a batch of a file, at most.
const BATCH: usize = 64 * 1024;

/// Batches of one schema as a file.
pub fn encode(schema: &SchemaRef, batches: impl IntoIterator<Item = RecordBatch>) -> Result<Bytes> {
    let mut metadata = schema.metadata().clone();
    metadata.insert(VERSION_KEY.to_owned(), VERSION.to_owned());
    let schema = Arc::new(Schema::new_with_metadata(schema.fields().clone(), metadata));
    let compressed = zstd::stream::Encoder::new(Vec::new(), 1)?;
    let mut writer = StreamWriter::try_new(compressed, &schema)?;
    for batch in batches {
        for from in (0..batch.num_rows()).step_by(BATCH) {
            let part = batch.slice(from, BATCH.min(batch.num_rows() - from));
            let columns = part.columns().iter().map(|column| split(&trimmed(column))).collect::<Result<_>>()?;
            writer.write(&RecordBatch::try_new(Arc::clone(&schema), columns)?)?;
        }
    }
    writer.finish()?;
    Ok(writer.into_inner()?.finish()?.into())
}

/// Texts and bytes that share no buffer with others: a view of a few would keep, and write, all of it.
pub fn trimmed(column: &ArrayRef) -> ArrayRef {
    match column.data_type() {
        DataType::Utf8View => Arc::new(column.as_string_view().gc()),
        DataType::BinaryView => Arc::new(column.as_binary_view().gc()),
        nested if nested.is_nested() => match trimmed_within(&column.to_data()) {
            Ok(data) => make_array(data),
            Err(_) => Arc::clone(column),
        },
        _ => Arc::clone(column),
    }
}

/// The same for what columns are made of.
fn trimmed_within(data: &ArrayData) -> Result<ArrayData> {
    let children = data.child_data().iter().map(|child| trimmed(&make_array(child.clone())).to_data()).collect();
    Ok(data.clone().into_builder().child_data(children).build()?)
}

/// The batches of a file, which must have this schema; `name` is for errors.
pub fn decode(name: &str, bytes: &[u8], expected: &SchemaRef) -> Result<Vec<RecordBatch>> {
    let broken =
        |e| Error::refused(format!("the state file {name} cannot be read; restore it from a copy")).caused_by(e);
    let reader = StreamReader::try_new(zstd::stream::Decoder::new(bytes)?, None).map_err(broken)?;
    let schema = reader.schema();
    let is_split = match schema.metadata().get(VERSION_KEY).map(String::as_str) {
        Some(VERSION) => true,
        Some(UNSPLIT) => false,
        version => {
            return Err(Error::refused(format!(
                "the state file {name} has version {}, and this binary knows {UNSPLIT} and {VERSION}; use the newer binary",
                version.unwrap_or("none")
            )));
        }
    };
    check(name, &schema, expected)?;
    let named = |batch: RecordBatch| {
        let columns = match is_split {
            true => batch.columns().iter().map(joined).collect::<Result<_>>()?,
            false => batch.columns().to_vec(),
        };
        Ok(RecordBatch::try_new(Arc::clone(expected), columns)?)
    };
    reader.map(|batch| named(batch.map_err(broken)?)).collect()
}

/// The columns of a file as it was written, and how many of the first are the key; files written before that was noted do
/// not say.
pub fn columns(name: &str, bytes: &[u8]) -> Result<(SchemaRef, Option<usize>)> {
    let broken =
        |e| Error::refused(format!("the state file {name} cannot be read; restore it from a copy")).caused_by(e);
    let schema = StreamReader::try_new(zstd::stream::Decoder::new(bytes)?, None).map_err(broken)?.schema();
    let keys = schema.metadata().get(KEYS_KEY).and_then(|keys| keys.parse::<usize>().ok());
    let keys = keys.filter(|keys| *keys <= schema.fields().len());
    Ok((schema, keys))
}

/// State is kept where its columns are the same: names say what each of them is.
fn check(name: &str, found: &Schema, expected: &Schema) -> Result<()> {
    for index in 0..found.fields().len().max(expected.fields().len()) {
        let text = |schema: &Schema| match schema.fields().get(index) {
            Some(field) => format!("{} {}", field.name(), field.data_type()),
            None => "nothing".to_owned(),
        };
        let (was, is) = (text(found), text(expected));
        if was != is {
            return Err(differs(name, &was, &is));
        }
    }
    Ok(())
}

/// What is said of a file of another computation: what it has, and what is needed.
pub fn differs(name: &str, was: &str, is: &str) -> Error {
    Error::refused(format!(
        "the state in {name} has {was}, and the query now needs {is}; state cannot be carried over to another \
         computation; give the query another name (SET 'pipeline.name') to start anew, or put the query back as it was"
    ))
}

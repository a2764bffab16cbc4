//! Rows of state as files: an Arrow stream whose numbers are split by byte (`split`), compressed with Zstandard.
//!
//! The columns' names and types travel with the rows, and a version: a file of another operator, of an operator that
//! keeps other columns now, or of a newer binary is refused by what differs. How many of the columns are the key is noted
//! too, so that a file can be read without its operator. A checksum ends it, and nothing is made of bytes that it denies.

use std::io::Read;
use std::sync::Arc;

use arrow::array::{Array, ArrayData, ArrayRef, AsArray, RecordBatch, make_array};
use arrow::buffer::Buffer;
use arrow::datatypes::{DataType, Schema, SchemaRef};
use arrow::ipc::reader::{StreamDecoder, StreamReader};
use arrow::ipc::writer::StreamWriter;
use bytes::Bytes;

use super::split::{is_split, joined, split};
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

/// A batch's rows, so many at a time.
pub fn parts(batch: RecordBatch, most: usize) -> impl Iterator<Item = RecordBatch> {
    (0..batch.num_rows()).step_by(most).map(move |from| batch.slice(from, most.min(batch.num_rows() - from)))
}

/// A file that is being written, batch by batch.
pub struct Encoder {
    schema: SchemaRef,
    writer: StreamWriter<zstd::stream::Encoder<'static, Vec<u8>>>,
}

impl Encoder {
    /// A file of batches that have this schema.
    pub fn try_new(schema: &SchemaRef) -> Result<Self> {
        let mut metadata = schema.metadata().clone();
        metadata.insert(VERSION_KEY.to_owned(), VERSION.to_owned());
        let schema = Arc::new(Schema::new_with_metadata(schema.fields().clone(), metadata));
        // Of numbers that are split there is little to find for each: who looks less hard is twice as fast, and finds
        // nearly all.
        let level = if schema.fields().iter().all(|field| is_split(field.data_type())) { -1 } else { 1 };
        let mut compressed = zstd::stream::Encoder::new(Vec::new(), level)?;
        compressed.include_checksum(true)?;
        let writer = StreamWriter::try_new(compressed, &schema)?;
        Ok(Self { schema, writer })
    }

    /// Adds a batch.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        for part in parts(batch.clone(), BATCH) {
            let columns = part.columns().iter().map(|column| split(&trimmed(column))).collect::<Result<_>>()?;
            self.writer.write(&RecordBatch::try_new(Arc::clone(&self.schema), columns)?)?;
        }
        Ok(())
    }

    /// The file.
    pub fn finish(mut self) -> Result<Bytes> {
        self.writer.finish()?;
        Ok(self.writer.into_inner()?.finish()?.into())
    }
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
    // All of it first: its checksum comes last. Few are more than eight times as long as they were compressed.
    let mut body = Vec::with_capacity(bytes.len() * 8);
    zstd::stream::Decoder::with_buffer(bytes)?.read_to_end(&mut body).map_err(|e| broken(name, e))?;
    let mut body = Buffer::from(body);
    let schema = header(name, body.as_slice())?;
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
    let (mut decoder, mut batches) = (StreamDecoder::new(), vec![]);
    while let Some(batch) = decoder.decode(&mut body).map_err(|e| broken(name, e))? {
        let columns = match is_split {
            true => batch.columns().iter().map(joined).collect::<Result<_>>()?,
            false => batch.columns().to_vec(),
        };
        batches.push(RecordBatch::try_new(Arc::clone(expected), columns)?);
    }
    decoder.finish().map_err(|e| broken(name, e))?;
    Ok(batches)
}

/// What a stream of batches says of its columns.
fn header(name: &str, stream: impl Read) -> Result<SchemaRef> {
    Ok(StreamReader::try_new(stream, None).map_err(|e| broken(name, e))?.schema())
}

fn broken(name: &str, cause: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::refused(format!("the state file {name} cannot be read; restore it from a copy")).caused_by(cause)
}

/// The columns of a file as it was written, and how many of the first are the key; files written before that was noted do
/// not say.
pub fn columns(name: &str, bytes: &[u8]) -> Result<(SchemaRef, Option<usize>)> {
    let schema = header(name, zstd::stream::Decoder::new(bytes)?)?;
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

#[cfg(test)]
mod tests {
    use arrow::array::{Int64Array, StringViewArray};
    use arrow::datatypes::Field;

    use super::*;

    #[test]
    fn a_file_that_was_cut_or_changed_anywhere_is_refused_or_says_the_same() {
        let fields = [("k", DataType::Utf8View), ("n", DataType::Int64)].map(|(name, of)| Field::new(name, of, true));
        let schema = Arc::new(Schema::new(fields.to_vec()));
        let rows = |from: i64, to: i64| {
            let keys = (from..to).map(|n| Some(format!("a key of more than twelve bytes, {n}")));
            let columns: Vec<ArrayRef> =
                vec![Arc::new(StringViewArray::from_iter(keys)), Arc::new(Int64Array::from_iter(from..to))];
            RecordBatch::try_new(Arc::clone(&schema), columns).unwrap()
        };
        let written = vec![rows(0, 20), rows(20, 50)];
        let mut encoder = Encoder::try_new(&schema).unwrap();
        written.iter().for_each(|batch| encoder.write(batch).unwrap());
        let file = encoder.finish().unwrap();
        assert_eq!(decode("whole", &file, &schema).unwrap(), written);
        for len in 0..file.len() {
            assert!(decode("cut", &file[..len], &schema).is_err(), "cut to {len} bytes");
        }
        for bit in 0..file.len() * 8 {
            let mut changed = file.to_vec();
            changed[bit / 8] ^= 1 << (bit % 8);
            // The header has bits that say how much memory is needed, and none that says nothing.
            if let Ok(read) = decode("changed", &changed, &schema) {
                assert_eq!(read, written, "bit {bit}");
            }
        }
    }
}

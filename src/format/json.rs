//! JSON: one object a message.
//!
//! Decoding goes straight from each payload into columns with arrow-json. Only the fields of the schema are kept; a
//! missing one is NULL. Numbers and booleans become text where a column is STRING; numbers in quotes are numbers. A
//! timestamp is SQL text (`2026-01-01 00:00:00.123`), ISO-8601, or a number in the column's own precision. BYTES are
//! base64, as Flink has them (in columns of their own, not nested).
//!
//! One syntax error would poison all that follows in a batch, and a type conflict shows only at its end. So a chunk in
//! which anything went wrong is decoded again, message by message.
//!
//! Not promised: the text of numbers that a DOUBLE cannot hold, and which of two equal keys in one object counts.

use std::fmt;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BinaryBuilder, RecordBatch, RecordBatchOptions, StructArray,
};
use arrow::buffer::OffsetBuffer;
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use arrow_json::ReaderBuilder;
use arrow_json::reader::Decoder as ArrowDecoder;
use arrow_json::writer::{Encoder as ArrowEncoder, EncoderFactory, EncoderOptions, NullableEncoder, make_encoder};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::{BadPayload, Decoded, Decoder, Encoder};
use crate::error::{Error, Result};
use crate::sql::options::OptionReader;

/// How many payloads are decoded before the rows are taken out.
const CHUNK: usize = 8192;

/// The options `json.*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JsonOptions {
    timestamps: TimestampFormat,
    ignore_null_fields: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TimestampFormat {
    Sql,
    Iso,
}

impl Default for JsonOptions {
    fn default() -> Self {
        Self { timestamps: TimestampFormat::Sql, ignore_null_fields: false }
    }
}

impl JsonOptions {
    /// Takes `json.timestamp-format.standard` (SQL, ISO-8601; when writing, reading takes both) and
    /// `json.encode.ignore-null-fields` (default false).
    pub fn take(options: &mut OptionReader<'_>) -> Result<Self> {
        let choices = [("SQL", TimestampFormat::Sql), ("ISO-8601", TimestampFormat::Iso)];
        Ok(Self {
            timestamps: options.choice("json.timestamp-format.standard", &choices)?.unwrap_or(TimestampFormat::Sql),
            ignore_null_fields: options.flag("json.encode.ignore-null-fields")?.unwrap_or(false),
        })
    }
}

/// Payloads to rows.
#[derive(Debug)]
pub struct JsonDecoder {
    schema: SchemaRef,
    /// The schema with text in the place of bytes, as arrow-json is to read it.
    wire: SchemaRef,
    decoder: ArrowDecoder,
}

impl JsonDecoder {
    /// A decoder into `schema`, whose field names are the keys.
    pub fn try_new(schema: SchemaRef, _options: &JsonOptions) -> Result<Self> {
        let wire_field = |field: &FieldRef| -> Result<Field> {
            let data_type = match field.data_type() {
                DataType::Binary => DataType::Utf8View,
                nested if has_bytes(nested) => {
                    return Err(Error::usage(format!(
                        "column {}: json cannot hold BYTES inside {nested}; use STRING there",
                        field.name()
                    )));
                }
                other => other.clone(),
            };
            // NOT NULL is checked where the message can be named.
            Ok(Field::new(field.name(), data_type, true))
        };
        let wire = Arc::new(Schema::new(schema.fields().iter().map(wire_field).collect::<Result<Vec<_>>>()?));
        let decoder = new_decoder(&wire)?;
        Ok(Self { schema: nullable(&schema), wire, decoder })
    }

    /// Decodes all of `chunk` at once; false if anything was wrong with it, and the decoder is then as new.
    fn decode_together(&mut self, chunk: &BinaryArray) -> Result<Option<RecordBatch>> {
        for index in 0..chunk.len() {
            if chunk.is_null(index) || self.feed(chunk.value(index), index).is_err() {
                self.decoder = new_decoder(&self.wire)?;
                return Ok(None);
            }
        }
        match self.decoder.flush() {
            Ok(Some(rows)) => Ok(Some(rows)),
            Ok(None) => Ok(Some(RecordBatch::new_empty(Arc::clone(&self.wire)))),
            Err(_) => {
                self.decoder = new_decoder(&self.wire)?;
                Ok(None)
            }
        }
    }

    /// Takes one payload after `before` others; it must be one object, whole.
    fn feed(&mut self, payload: &[u8], before: usize) -> std::result::Result<(), String> {
        let used = self.decoder.decode(payload).map_err(|e| reason(&e))?;
        if self.decoder.has_partial_record() {
            return Err("it ends in the middle of a value".into());
        }
        match self.decoder.len() {
            rows if rows == before => Err("it is empty".into()),
            rows if rows > before + 1 || used < payload.len() => Err("it holds more than one value".into()),
            _ => Ok(()),
        }
    }

    fn decode_one(&mut self, payload: &[u8]) -> Result<std::result::Result<RecordBatch, String>> {
        let outcome = self.feed(payload, 0).and_then(|()| match self.decoder.flush() {
            Ok(Some(row)) => Ok(row),
            Ok(None) => Err("it is empty".into()),
            Err(e) => Err(reason(&e)),
        });
        if outcome.is_err() {
            self.decoder = new_decoder(&self.wire)?;
        }
        Ok(outcome)
    }

    /// Rows of the wire schema as rows of the schema; the index and reason of the first row that is not base64.
    fn settle(&self, rows: RecordBatch) -> Result<std::result::Result<RecordBatch, (usize, String)>> {
        let count = rows.num_rows();
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(rows.num_columns());
        for (column, field) in rows.columns().iter().zip(self.schema.fields()) {
            if field.data_type() != &DataType::Binary {
                columns.push(Arc::clone(column));
                continue;
            }
            let mut bytes = BinaryBuilder::with_capacity(count, 0);
            for (index, text) in column.as_string_view().iter().enumerate() {
                match text.map(|text| BASE64_STANDARD.decode(text)).transpose() {
                    Ok(value) => bytes.append_option(value),
                    Err(e) => return Ok(Err((index, format!("{} is not base64: {e}", field.name())))),
                }
            }
            columns.push(Arc::new(bytes.finish()));
        }
        let options = RecordBatchOptions::new().with_row_count(Some(count));
        Ok(Ok(RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)?))
    }

    fn decode_chunk(&mut self, chunk: &BinaryArray, offset: usize, bad: &mut Vec<BadPayload>) -> Result<RecordBatch> {
        if let Some(rows) = self.decode_together(chunk)?
            && let Ok(rows) = self.settle(rows)?
        {
            return Ok(rows);
        }
        let mut rows = Vec::with_capacity(chunk.len());
        for index in 0..chunk.len() {
            let outcome = if chunk.is_null(index) {
                Err("it has no payload".to_string())
            } else {
                match self.decode_one(chunk.value(index))? {
                    Ok(row) => self.settle(row)?.map_err(|(_, reason)| reason),
                    Err(reason) => Err(reason),
                }
            };
            match outcome {
                Ok(row) => rows.push(row),
                Err(reason) => bad.push(BadPayload { index: offset + index, reason }),
            }
        }
        Ok(concat_batches(&self.schema, &rows)?)
    }
}

impl Decoder for JsonDecoder {
    fn decode(&mut self, payloads: &BinaryArray) -> Result<Decoded> {
        let (mut bad, mut chunks) = (vec![], vec![]);
        for offset in (0..payloads.len()).step_by(CHUNK) {
            let chunk = payloads.slice(offset, CHUNK.min(payloads.len() - offset));
            chunks.push(self.decode_chunk(&chunk, offset, &mut bad)?);
        }
        let rows = match chunks.len() {
            1 => chunks.swap_remove(0),
            _ => concat_batches(&self.schema, &chunks)?,
        };
        Ok(Decoded { rows, bad })
    }
}

fn new_decoder(wire: &SchemaRef) -> Result<ArrowDecoder> {
    let builder = ReaderBuilder::new(Arc::clone(wire)).with_batch_size(CHUNK + 1).with_coerce_primitive(true);
    builder.build_decoder().map_err(|e| Error::usage("json cannot hold a column of this type").caused_by(e))
}

fn nullable(schema: &SchemaRef) -> SchemaRef {
    let fields = schema.fields().iter().map(|field| field.as_ref().clone().with_nullable(true));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

fn has_bytes(data_type: &DataType) -> bool {
    match data_type {
        DataType::Binary => true,
        DataType::List(item) => has_bytes(item.data_type()),
        DataType::Map(entries, _) => has_bytes(entries.data_type()),
        DataType::Struct(fields) => fields.iter().any(|field| has_bytes(field.data_type())),
        _ => false,
    }
}

/// arrow-json's reason, without its prefix and without more of the payload than a glance.
fn reason(error: &arrow::error::ArrowError) -> String {
    let text = error.to_string();
    let text = text.strip_prefix("Json error: ").unwrap_or(&text);
    text.chars().take(200).collect()
}

/// Rows to payloads.
pub struct JsonEncoder {
    field: FieldRef,
    options: EncoderOptions,
}

impl fmt::Debug for JsonEncoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JsonEncoder({})", self.field)
    }
}

impl JsonEncoder {
    /// An encoder of rows of `schema`, whose field names become the keys.
    pub fn try_new(schema: SchemaRef, options: &JsonOptions) -> Result<Self> {
        let (local, zoned) = match options.timestamps {
            TimestampFormat::Sql => ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.fZ"),
            TimestampFormat::Iso => ("%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.fZ"),
        };
        let options = EncoderOptions::default()
            .with_explicit_nulls(!options.ignore_null_fields)
            .with_timestamp_format(local.into())
            .with_timestamp_tz_format(zoned.into())
            .with_encoder_factory(Arc::new(Base64Factory));
        let field = Arc::new(Field::new("row", DataType::Struct(schema.fields().clone()), false));
        Ok(Self { field, options })
    }
}

impl Encoder for JsonEncoder {
    fn encode(&mut self, rows: &RecordBatch) -> Result<BinaryArray> {
        let array = StructArray::from(rows.clone());
        let mut encoder = make_encoder(&self.field, &array, &self.options)?;
        let mut values = Vec::with_capacity(rows.num_rows() * 64);
        let mut lengths = Vec::with_capacity(rows.num_rows());
        for index in 0..rows.num_rows() {
            let before = values.len();
            encoder.encode(index, &mut values);
            lengths.push(values.len() - before);
        }
        if i32::try_from(values.len()).is_err() {
            return Err(Error::data(format!("{} rows are more than 2 GiB as json", rows.num_rows())));
        }
        Ok(BinaryArray::new(OffsetBuffer::from_lengths(lengths), values.into(), None))
    }
}

/// Writes bytes as base64 instead of arrow-json's hex.
#[derive(Debug)]
struct Base64Factory;

struct Base64Encoder<'a>(&'a BinaryArray);

impl ArrowEncoder for Base64Encoder<'_> {
    fn encode(&mut self, index: usize, out: &mut Vec<u8>) {
        out.push(b'"');
        out.extend_from_slice(BASE64_STANDARD.encode(self.0.value(index)).as_bytes());
        out.push(b'"');
    }
}

impl EncoderFactory for Base64Factory {
    fn make_default_encoder<'a>(
        &self,
        _field: &'a FieldRef,
        array: &'a dyn Array,
        _options: &'a EncoderOptions,
    ) -> std::result::Result<Option<NullableEncoder<'a>>, arrow::error::ArrowError> {
        Ok(match array.data_type() {
            DataType::Binary => {
                let bytes = array.as_binary::<i32>();
                Some(NullableEncoder::new(Box::new(Base64Encoder(bytes)), array.nulls().cloned()))
            }
            _ => None,
        })
    }
}

#[cfg(test)]
#[path = "json_tests.rs"]
mod tests;

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
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use arrow_json::ReaderBuilder;
use arrow_json::reader::Decoder as ArrowDecoder;
use arrow_json::writer::{Encoder as ArrowEncoder, EncoderFactory, EncoderOptions, NullableEncoder, make_encoder};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::{BadPayload, Decoded, Decoder, Encoder, NO_PAYLOAD, joined, nullable};
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
        let timestamps = Self::with_timestamps(options, "json.timestamp-format.standard")?;
        Ok(Self { ignore_null_fields: options.flag("json.encode.ignore-null-fields")?.unwrap_or(false), ..timestamps })
    }

    /// Takes only how timestamps are written, which is the option `key` of a format that holds JSON.
    pub(super) fn with_timestamps(options: &mut OptionReader<'_>, key: &str) -> Result<Self> {
        let choices = [("SQL", TimestampFormat::Sql), ("ISO-8601", TimestampFormat::Iso)];
        let timestamps = options.choice(key, &choices)?.unwrap_or(TimestampFormat::Sql);
        Ok(Self { timestamps, ignore_null_fields: false })
    }
}

/// Payloads that are one JSON object each, as rows of what arrow-json reads.
#[derive(Debug)]
pub(super) struct Objects {
    wire: SchemaRef,
    decoder: ArrowDecoder,
}

impl Objects {
    /// Reads rows of `wire`, whose field names are the keys; see [`wire`].
    pub(super) fn try_new(wire: SchemaRef) -> Result<Self> {
        Ok(Self { decoder: new_decoder(&wire)?, wire })
    }

    /// Reads `payloads`, a chunk together where nothing is wrong with it. `take` makes what is wanted of the rows of some
    /// payloads, or says what is wrong with one of them. Each part comes with the index of its first payload.
    pub(super) fn read<T>(
        &mut self,
        payloads: &BinaryArray,
        bad: &mut Vec<BadPayload>,
        mut take: impl FnMut(RecordBatch, &BinaryArray) -> Result<std::result::Result<T, String>>,
    ) -> Result<Vec<(usize, T)>> {
        let mut parts = vec![];
        for offset in (0..payloads.len()).step_by(CHUNK) {
            let chunk = payloads.slice(offset, CHUNK.min(payloads.len() - offset));
            if let Some(rows) = self.decode_together(&chunk)?
                && let Ok(part) = take(rows, &chunk)?
            {
                parts.push((offset, part));
                continue;
            }
            for index in 0..chunk.len() {
                let one = chunk.slice(index, 1);
                let outcome = match self.decode_one(&one)? {
                    Ok(row) => take(row, &one)?,
                    Err(reason) => Err(reason),
                };
                match outcome {
                    Ok(part) => parts.push((offset + index, part)),
                    Err(reason) => bad.push(BadPayload { index: offset + index, reason }),
                }
            }
        }
        Ok(parts)
    }

    /// Decodes all of `chunk` at once; nothing if anything was wrong with it, and the decoder is then as new.
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

    /// The row of the only payload in `one`, or what is wrong with it.
    fn decode_one(&mut self, one: &BinaryArray) -> Result<std::result::Result<RecordBatch, String>> {
        if one.is_null(0) {
            return Ok(Err(NO_PAYLOAD.into()));
        }
        let outcome = self.feed(one.value(0), 0).and_then(|()| match self.decoder.flush() {
            Ok(Some(row)) => Ok(row),
            Ok(None) => Err("it is empty".into()),
            Err(e) => Err(reason(&e)),
        });
        if outcome.is_err() {
            self.decoder = new_decoder(&self.wire)?;
        }
        Ok(outcome)
    }
}

/// The schema with text in the place of bytes, as arrow-json is to read it.
pub(super) fn wire(schema: &Schema) -> Result<SchemaRef> {
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
    Ok(Arc::new(Schema::new(schema.fields().iter().map(wire_field).collect::<Result<Vec<_>>>()?)))
}

/// Rows of the [`wire`] schema as rows of the schema; the reason why a row is not, if one holds what is not base64.
pub(super) fn settle(schema: &SchemaRef, rows: RecordBatch) -> Result<std::result::Result<RecordBatch, String>> {
    let count = rows.num_rows();
    let mut columns: Vec<ArrayRef> = Vec::with_capacity(rows.num_columns());
    for (column, field) in rows.columns().iter().zip(schema.fields()) {
        if field.data_type() != &DataType::Binary {
            columns.push(Arc::clone(column));
            continue;
        }
        let mut bytes = BinaryBuilder::with_capacity(count, 0);
        for text in column.as_string_view() {
            match text.map(|text| BASE64_STANDARD.decode(text)).transpose() {
                Ok(value) => bytes.append_option(value),
                Err(e) => return Ok(Err(format!("{} is not base64: {e}", field.name()))),
            }
        }
        columns.push(Arc::new(bytes.finish()));
    }
    let options = RecordBatchOptions::new().with_row_count(Some(count));
    Ok(Ok(RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)?))
}

/// Payloads to rows.
#[derive(Debug)]
pub struct JsonDecoder {
    schema: SchemaRef,
    objects: Objects,
}

impl JsonDecoder {
    /// A decoder into `schema`, whose field names are the keys.
    pub fn try_new(schema: SchemaRef, _options: &JsonOptions) -> Result<Self> {
        Ok(Self { objects: Objects::try_new(wire(&schema)?)?, schema: nullable(&schema) })
    }
}

impl Decoder for JsonDecoder {
    fn decode(&mut self, payloads: &BinaryArray) -> Result<Decoded> {
        let mut bad = vec![];
        let parts = self.objects.read(payloads, &mut bad, |rows, _| settle(&self.schema, rows))?;
        let rows = concat_batches(&self.schema, parts.iter().map(|(_, rows)| rows))?;
        Ok(Decoded { rows, origins: None, kinds: None, bad })
    }
}

fn new_decoder(wire: &SchemaRef) -> Result<ArrowDecoder> {
    let builder = ReaderBuilder::new(Arc::clone(wire)).with_batch_size(CHUNK + 1).with_coerce_primitive(true);
    builder.build_decoder().map_err(|e| Error::usage("json cannot hold a column of this type").caused_by(e))
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
        joined(values, lengths, None, "json")
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

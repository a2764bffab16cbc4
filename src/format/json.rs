//! JSON: one object a message.
//!
//! Decoding goes straight from each payload into columns with arrow-json. Only the fields of the schema are kept; a
//! missing one is NULL. Numbers and booleans become text where a column is STRING; numbers in quotes are numbers. A
//! timestamp is SQL text (`2026-01-01 00:00:00.123`), ISO-8601, or a number in the column's own precision. BYTES are
//! base64, as Flink has them. These and DECIMAL are taken as text, which is read as csv reads it.
//!
//! One syntax error would poison all that follows in a batch, and a type conflict shows only at its end. So a chunk in
//! which anything went wrong is decoded again, message by message.
//!
//! Guarantee: whatever a payload holds, it costs no other payload, and no more stack than 1000 levels of nesting.
//!
//! Not promised: the text of numbers that a DOUBLE cannot hold, and which of two equal keys in one object counts.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, RecordBatch, RecordBatchOptions, StructArray, make_array};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use arrow_json::ReaderBuilder;
use arrow_json::reader::Decoder as ArrowDecoder;
use arrow_json::writer::{Encoder as ArrowEncoder, EncoderFactory, EncoderOptions, NullableEncoder, make_encoder};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::de::IgnoredAny;

use super::{BadPayload, Decoded, Decoder, Encoder, NO_PAYLOAD, SKIP, joined, nullable, text};
use crate::connector::OptionEntry;
use crate::error::{Error, Result};
use crate::sql::options::OptionReader;

/// How many payloads are decoded before the rows are taken out.
const CHUNK: usize = 8192;

/// How deep values may lie in each other, as with Jackson: arrow-json shows one that it does not expect by recursion.
const DEPTH: usize = 1000;

/// What its options say.
pub(super) const OPTIONS: &[OptionEntry] = &[
    OptionEntry::new(
        "json.timestamp-format.standard",
        "`SQL`, `ISO-8601`",
        "`SQL`",
        "how timestamps are written: `2026-01-01 00:00:00.123`, or with a `T`. Both are read",
    ),
    OptionEntry::writing(
        "json.encode.ignore-null-fields",
        "`true`, `false`",
        "`false`",
        "`true`: NULL is left out instead of written as `null`",
    ),
    OptionEntry::reading(
        "json.fail-on-missing-field",
        "`true`, `false`",
        "`false`",
        "`true`: a message that has no key for a column that the query uses cannot be read. `null` is not missing",
    ),
    OptionEntry::writing(
        "json.encode.decimal-as-plain-number",
        "`true`",
        "`true`",
        "how a DECIMAL is written. **Flink's default is another one**",
    ),
    OptionEntry::reading(
        "json.ignore-parse-errors",
        "`false`",
        "`false`",
        "`true` is refused: say `'format.on-error' = 'skip'`",
    ),
    OptionEntry::reading(
        "json.decode.json-parser.enabled",
        "`true`, `false`",
        "`true`",
        "which of two parsers Flink reads with; here there is one",
    ),
    OptionEntry::refused("json.map-null-key.mode", "a MAP has no NULL keys"),
    OptionEntry::refused("json.map-null-key.literal", "a MAP has no NULL keys"),
];

/// The options `json.*`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JsonOptions {
    timestamps: TimestampFormat,
    ignore_null_fields: bool,
    fail_on_missing_field: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum TimestampFormat {
    #[default]
    Sql,
    Iso,
}

impl JsonOptions {
    /// Takes, behind this name, what every format has that holds JSON, and `fail-on-missing-field` (default false).
    pub fn take(name: &str, options: &mut OptionReader<'_>) -> Result<Self> {
        // It chooses one of Flink's parsers, which read alike.
        options.flag(&format!("{name}.decode.json-parser.enabled"))?;
        Ok(Self {
            fail_on_missing_field: options.flag(&format!("{name}.fail-on-missing-field"))?.unwrap_or(false),
            ..Self::of(name, options)?
        })
    }

    /// Takes what every format has that holds JSON, behind its own name: `timestamp-format.standard` (SQL, ISO-8601;
    /// when writing, reading takes both), `encode.ignore-null-fields` (default false), and what can only be as it is.
    pub(super) fn of(format: &str, options: &mut OptionReader<'_>) -> Result<Self> {
        let key = |option: &str| format!("{format}.{option}");
        options.only(&key("ignore-parse-errors"), false, SKIP)?;
        options.only(&key("encode.decimal-as-plain-number"), true, "a DECIMAL is always written as a plain number")?;
        for option in ["map-null-key.mode", "map-null-key.literal"] {
            options.refuse(&key(option), "a MAP has no NULL keys; leave it out")?;
        }
        let choices = [("SQL", TimestampFormat::Sql), ("ISO-8601", TimestampFormat::Iso)];
        let timestamps = options.choice(&key("timestamp-format.standard"), &choices)?.unwrap_or_default();
        let ignore_null_fields = options.flag(&key("encode.ignore-null-fields"))?.unwrap_or(false);
        Ok(Self { timestamps, ignore_null_fields, ..Self::default() })
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
        if is_too_deep(payload) {
            return Err(format!("its values lie in each other more than {DEPTH} deep"));
        }
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

/// Whether objects and arrays lie in each other more than [`DEPTH`] deep.
fn is_too_deep(payload: &[u8]) -> bool {
    // Most payloads have fewer of them altogether.
    let begins = |byte: &&u8| matches!(byte, b'{' | b'[');
    if payload.len() <= DEPTH || payload.iter().filter(begins).count() <= DEPTH {
        return false;
    }
    let (mut depth, mut is_text, mut is_escaped) = (0usize, false, false);
    for byte in payload {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = is_text,
            b'"' => is_text = !is_text,
            b'{' | b'[' if !is_text => depth += 1,
            b'}' | b']' if !is_text => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEPTH {
            return true;
        }
    }
    false
}

/// The schema as arrow-json is to read it: with text for what is read here.
pub(super) fn wire(schema: &Schema) -> SchemaRef {
    // NOT NULL is checked where the message can be named.
    let field = |field: &FieldRef| Field::new(field.name(), wire_type(field.data_type()), true);
    Arc::new(Schema::new(schema.fields().iter().map(field).collect::<Vec<_>>()))
}

fn wire_type(data_type: &DataType) -> DataType {
    let inner = |field: &FieldRef| Arc::new(field.as_ref().clone().with_data_type(wire_type(field.data_type())));
    match data_type {
        DataType::Binary | DataType::Decimal128(..) | DataType::Decimal256(..) => DataType::Utf8View,
        DataType::List(item) => DataType::List(inner(item)),
        DataType::FixedSizeList(item, length) => DataType::FixedSizeList(inner(item), *length),
        DataType::Map(entries, is_sorted) => DataType::Map(inner(entries), *is_sorted),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(inner).collect()),
        other => other.clone(),
    }
}

/// Rows of the [`wire`] schema as rows of the schema, or why one of them is none.
pub(super) fn settle(schema: &SchemaRef, rows: RecordBatch) -> Result<std::result::Result<RecordBatch, String>> {
    let mut columns = Vec::with_capacity(rows.num_columns());
    for (column, field) in rows.columns().iter().zip(schema.fields()) {
        match settled(column, field.data_type())? {
            Ok(column) => columns.push(column),
            Err(reason) => return Ok(Err(format!("{reason}, in column {}", field.name()))),
        }
    }
    let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
    Ok(Ok(RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)?))
}

/// Values of the type's [`wire_type`] as values of the type, or why one of them is none.
fn settled(column: &ArrayRef, data_type: &DataType) -> Result<std::result::Result<ArrayRef, String>> {
    if column.data_type() == data_type {
        return Ok(Ok(Arc::clone(column)));
    }
    if let Some(texts) = column.as_string_view_opt()
        && let Some(values) = text::values(texts.iter(), data_type)?
    {
        if values.null_count() == texts.null_count() {
            return Ok(Ok(values));
        }
        let misfit = texts.iter().enumerate().find_map(|(index, text)| text.filter(|_| values.is_null(index)));
        return Ok(Err(text::misfit(misfit.unwrap_or_default(), data_type)));
    }
    let (data, mut children) = (column.to_data(), vec![]);
    for (child, field) in data.child_data().iter().zip(inner_fields(data_type)) {
        match settled(&make_array(child.clone()), field.data_type())? {
            Ok(child) => children.push(child.to_data()),
            Err(reason) => return Ok(Err(reason)),
        }
    }
    Ok(Ok(make_array(data.into_builder().data_type(data_type.clone()).child_data(children).build()?)))
}

/// The fields in which a nested type has its values.
fn inner_fields(data_type: &DataType) -> &[FieldRef] {
    match data_type {
        DataType::List(inner) | DataType::FixedSizeList(inner, _) | DataType::Map(inner, _) => {
            std::slice::from_ref(inner)
        }
        DataType::Struct(fields) => &fields[..],
        _ => &[],
    }
}

/// What one of these payloads lacks, of which these are the rows. Columns cannot tell a key that is missing from one
/// that is null, so a payload whose row has a NULL is looked at once more.
fn missing_field(rows: &RecordBatch, payloads: &BinaryArray) -> Option<String> {
    let has_null = |row: &usize| rows.columns().iter().any(|column| column.is_null(*row));
    (0..rows.num_rows()).filter(has_null).find_map(|row| {
        let keys: HashMap<String, IgnoredAny> = match serde_json::from_slice(payloads.value(row)) {
            Ok(keys) => keys,
            Err(e) => return Some(e.to_string()),
        };
        let missing = rows.schema_ref().fields().iter().find(|field| !keys.contains_key(field.name()))?;
        Some(format!("it has no field '{}', and 'json.fail-on-missing-field' is set", missing.name()))
    })
}

/// Payloads to rows.
#[derive(Debug)]
pub struct JsonDecoder {
    schema: SchemaRef,
    objects: Objects,
    fail_on_missing_field: bool,
}

impl JsonDecoder {
    /// A decoder into `schema`, whose field names are the keys.
    pub fn try_new(schema: SchemaRef, options: &JsonOptions) -> Result<Self> {
        Ok(Self {
            objects: Objects::try_new(wire(&schema))?,
            schema: nullable(&schema),
            fail_on_missing_field: options.fail_on_missing_field,
        })
    }
}

impl Decoder for JsonDecoder {
    fn decode(&mut self, payloads: &BinaryArray) -> Result<Decoded> {
        let mut bad = vec![];
        let parts = self.objects.read(payloads, &mut bad, |rows, payloads| {
            match self.fail_on_missing_field.then(|| missing_field(&rows, payloads)).flatten() {
                Some(reason) => Ok(Err(reason)),
                None => settle(&self.schema, rows),
            }
        })?;
        let rows = concat_batches(&self.schema, parts.iter().map(|(_, rows)| rows))?;
        Ok(Decoded { rows, origins: None, kinds: None, bad })
    }
}

fn new_decoder(wire: &SchemaRef) -> Result<ArrowDecoder> {
    let builder = ReaderBuilder::new(Arc::clone(wire)).with_batch_size(CHUNK + 1).with_coerce_primitive(true);
    builder.build_decoder().map_err(|e| Error::usage("json cannot hold a column of this type").caused_by(e))
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

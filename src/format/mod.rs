//! Formats: payload bytes to record batches and back, a column of payloads at a time.
//!
//! A decoder gives the rows of the good payloads, in order, and says which payloads are bad and why; one bad payload
//! never costs its neighbours. As a rule a payload is one row. In a *changelog* it is any number of them, each with its
//! kind, for such a payload says what happened to rows. An encoder gives one payload for each row.
//!
//! Formats know nothing of topics: who calls them names the message that was bad.

use std::fmt::Debug;
use std::sync::Arc;

use arrow::array::{BinaryArray, Int8Array, RecordBatch};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{Schema, SchemaRef};

use crate::catalog::{Column, ColumnKind, TableDefinition};
use crate::connector::dead_letters;
use crate::connector::entry::{OptionEntry, REQUIRED};
use crate::error::{Error, Result};
use crate::sql::options::{OptionReader, did_you_mean};

pub mod canal;
pub mod csv;
pub mod debezium;
pub mod infer;
pub mod json;
pub mod raw;

mod changelog;
mod text;

pub(crate) use text::misfit;

#[cfg(test)]
mod fuzz_tests;

/// What is wrong with a payload that is NULL, where a format has no use for one.
const NO_PAYLOAD: &str =
    "it has no payload: in a compacted topic that is a tombstone, which deletes its key, and is no row";

/// What to say instead of `ignore-parse-errors`.
const SKIP: &str = "say 'format.on-error' = 'skip', which leaves out messages that cannot be read, and counts them";

/// A payload that could not be decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadPayload {
    /// Its index in the array that was given.
    pub index: usize,
    /// What is wrong with it.
    pub reason: String,
}

/// What a decoder made of an array of payloads.
#[derive(Debug)]
pub struct Decoded {
    /// The rows of the good payloads, in order.
    pub rows: RecordBatch,
    /// The index of the payload that each row is from, rising; without it each good payload is one row.
    pub origins: Option<Vec<usize>>,
    /// Of a changelog: the number of each row's [`RowKind`](crate::plan::changes::RowKind).
    pub kinds: Option<Int8Array>,
    /// The payloads that are bad, in order.
    pub bad: Vec<BadPayload>,
}

/// Turns payloads into rows of one schema.
pub trait Decoder: Debug + Send {
    /// Decodes every payload; what a NULL payload means is the format's to say. Errors are internal ones only.
    fn decode(&mut self, payloads: &BinaryArray) -> Result<Decoded>;
}

/// Turns rows into payloads.
pub trait Encoder: Debug + Send {
    /// One payload for each row, in order; in a changelog each row is a new one. NULL where a row has no payload.
    /// Errors name the row by its index.
    fn encode(&mut self, rows: &RecordBatch) -> Result<BinaryArray>;

    /// The same for rows of a result that changes, each with the number of its
    /// [`RowKind`](crate::plan::changes::RowKind). Only changelogs have a place for it.
    fn encode_changes(&mut self, _rows: &RecordBatch, _kinds: &Int8Array) -> Result<BinaryArray> {
        Err(Error::internal("a format that is no changelog was given the kinds of rows"))
    }
}

/// What a decoder is to read.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// All that a payload holds: the physical columns of the table, in order.
    pub all: SchemaRef,
    /// The columns that are asked for, as places in `all`.
    pub projection: Vec<usize>,
}

impl Wanted {
    /// All columns of `all`.
    pub fn all(all: SchemaRef) -> Self {
        Self { projection: (0..all.fields().len()).collect(), all }
    }

    /// The columns that are asked for.
    pub fn schema(&self) -> Result<SchemaRef> {
        Ok(Arc::new(self.all.project(&self.projection)?))
    }
}

/// What to do with a payload that cannot be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnError {
    /// End the query with topic, partition, offset and reason.
    Fail,
    /// Leave it out, and count it.
    Skip,
    /// Leave it out, and write it to the table for dead letters.
    DeadLetter,
}

/// The format of a table, from its options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FormatOptions {
    kind: FormatKind,
    /// `format.on-error`.
    pub on_error: OnError,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum FormatKind {
    Json(json::JsonOptions),
    Csv(csv::CsvOptions),
    Raw(raw::RawOptions),
    Debezium(debezium::DebeziumOptions),
    Canal(canal::CanalOptions),
}

impl FormatKind {
    /// Takes the format's own options, whose names begin with its name behind `prefix`; nothing of an unknown format.
    fn take(format: &str, prefix: &str, options: &mut OptionReader<'_>) -> Result<Option<Self>> {
        let name = format!("{prefix}{format}");
        Ok(Some(match format {
            "json" => Self::Json(json::JsonOptions::take(&name, options)?),
            "csv" => Self::Csv(csv::CsvOptions::take(&name, options)?),
            "raw" => Self::Raw(raw::RawOptions::take(&name, options)?),
            "debezium-json" => Self::Debezium(debezium::DebeziumOptions::take(options)?),
            "canal-json" => Self::Canal(canal::CanalOptions::take(options)?),
            _ => return Ok(None),
        }))
    }

    fn decoder(&self, wanted: &Wanted) -> Result<Box<dyn Decoder>> {
        let decoder: Box<dyn Decoder> = match self {
            Self::Json(options) => Box::new(json::JsonDecoder::try_new(wanted.schema()?, options)?),
            Self::Csv(options) => Box::new(csv::CsvDecoder::try_new(wanted, options)?),
            Self::Raw(options) => Box::new(raw::RawDecoder::try_new(wanted, options)?),
            Self::Debezium(options) => Box::new(debezium::DebeziumDecoder::try_new(wanted.schema()?, options)?),
            Self::Canal(options) => Box::new(canal::CanalDecoder::try_new(wanted.schema()?, options)?),
        };
        Ok(decoder)
    }

    fn encoder(&self, schema: SchemaRef) -> Result<Box<dyn Encoder>> {
        let encoder: Box<dyn Encoder> = match self {
            Self::Json(options) => Box::new(json::JsonEncoder::try_new(schema, options)?),
            Self::Csv(options) => Box::new(csv::CsvEncoder::try_new(schema, options)?),
            Self::Raw(options) => Box::new(raw::RawEncoder::try_new(schema, options)?),
            Self::Debezium(options) => Box::new(debezium::encoder(schema, options)?),
            Self::Canal(options) => Box::new(canal::encoder(schema, options)?),
        };
        Ok(encoder)
    }
}

/// How a message's key that is made of columns is written and read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyFormat(FormatKind);

impl Default for KeyFormat {
    /// An object of them.
    fn default() -> Self {
        Self(FormatKind::Json(json::JsonOptions::default()))
    }
}

impl KeyFormat {
    /// Takes the format's own options, which begin with `key.` and its name (`key.json.*`); nothing of an unknown one.
    pub fn take(format: &str, options: &mut OptionReader<'_>) -> Result<Option<Self>> {
        Ok(FormatKind::take(format, "key.", options)?.map(Self))
    }

    /// Checks that a key can be made of these columns.
    pub fn check(&self, key: SchemaRef) -> Result<()> {
        match self.0 {
            FormatKind::Raw(_) if key.fields().len() != 1 => {
                let names: Vec<&str> = key.fields().iter().map(|field| field.name().as_str()).collect();
                Err(Error::usage(format!(
                    "'raw' is one value, and the key is made of ({}); say 'json' or 'csv'",
                    names.join(", ")
                )))
            }
            _ => self.encoder(key).map(drop),
        }
    }

    /// A decoder of the columns of keys that are asked for.
    pub fn decoder(&self, wanted: &Wanted) -> Result<Box<dyn Decoder>> {
        self.0.decoder(wanted)
    }

    /// An encoder of the columns of keys.
    pub fn encoder(&self, schema: SchemaRef) -> Result<Box<dyn Encoder>> {
        self.0.encoder(schema)
    }
}

/// The formats of messages.
pub const FORMATS: [&str; 5] = ["json", "csv", "raw", "debezium-json", "canal-json"];
/// Those of them whose payloads say what happened to rows.
pub const CHANGELOGS: [&str; 2] = ["debezium-json", "canal-json"];

/// What the option `format` says, of messages.
pub const OPTION: OptionEntry = OptionEntry::new(
    "format",
    "`json`, `csv`, `raw`, `debezium-json`, `canal-json`",
    REQUIRED,
    "how messages are read and written. The format's [own options](#formats) begin with its name",
);
/// What the options say that are about trouble with reading.
pub const TROUBLE: &[OptionEntry] = &[
    OptionEntry::reading(
        "format.on-error",
        "`fail`, `skip`, `dead-letter`",
        "`fail`",
        "a message that cannot be read ends the query; is left out and counted; or goes to the table of the next \
         option, which says so by itself",
    ),
    OptionEntry::reading(
        dead_letters::OPTION,
        "a table",
        "",
        "the table that gets [what cannot be read](sql.md#dead-letters)",
    ),
];

/// What the options say that only this format has; nothing of an unknown one.
pub fn options(format: &str) -> &'static [OptionEntry] {
    match format {
        "json" => json::OPTIONS,
        "csv" => csv::OPTIONS,
        "raw" => raw::OPTIONS,
        "debezium-json" => debezium::OPTIONS,
        "canal-json" => canal::OPTIONS,
        _ => &[],
    }
}

impl FormatOptions {
    /// Options that say what to do with trouble: changes to them apply at once.
    pub const OPERATIONAL: [&str; 2] = ["format.on-error", dead_letters::OPTION];

    /// Takes `format`, `format.on-error`, `format.dead-letter-table` and the format's own options, which begin with its name (`json.*`).
    pub fn take(options: &mut OptionReader<'_>) -> Result<Self> {
        options.suggest("format", FORMATS);
        let name = options.required("format")?;
        let Some(kind) = FormatKind::take(&name, "", options)? else {
            let hint = did_you_mean(&name, FORMATS.into_iter());
            return Err(options.blame(Error::usage(format!("there is no format '{name}' for messages{hint}"))));
        };
        let choices = [("fail", OnError::Fail), ("skip", OnError::Skip), ("dead-letter", OnError::DeadLetter)];
        let on_error = options.choice("format.on-error", &choices)?;
        let table = options.text(dead_letters::OPTION)?;
        let on_error = match (on_error, table) {
            (Some(OnError::DeadLetter), None) => {
                let advice = format!("'format.on-error' = 'dead-letter' needs the option '{}'", dead_letters::OPTION);
                return Err(options.blame(Error::usage(advice)));
            }
            (None, Some(_)) => OnError::DeadLetter,
            (on_error, _) => on_error.unwrap_or(OnError::Fail),
        };
        Ok(Self { kind, on_error })
    }

    /// Whether payloads say what happened to rows: decoded rows have kinds, and changes are written as they are.
    pub fn is_changelog(&self) -> bool {
        matches!(self.kind, FormatKind::Debezium(_) | FormatKind::Canal(_))
    }

    /// A decoder of the columns that are asked for, whose names are the payload's fields where these have names.
    pub fn decoder(&self, wanted: &Wanted) -> Result<Box<dyn Decoder>> {
        self.kind.decoder(wanted)
    }

    /// An encoder of rows of `schema`.
    pub fn encoder(&self, schema: SchemaRef) -> Result<Box<dyn Encoder>> {
        self.kind.encoder(schema)
    }

    /// The format of keys, where the table does not say one: JSON objects, whatever the payload is.
    pub fn key_format(&self) -> KeyFormat {
        match &self.kind {
            kind @ FormatKind::Json(_) => KeyFormat(kind.clone()),
            _ => KeyFormat::default(),
        }
    }

    /// Makes JSON objects of rows of `schema`, where no table says how.
    pub fn json_encoder(schema: SchemaRef) -> Result<Box<dyn Encoder>> {
        Ok(Box::new(json::JsonEncoder::try_new(schema, &json::JsonOptions::default())?))
    }

    /// Checks that columns of these types can be read and written.
    pub fn check(&self, table: &TableDefinition) -> Result<()> {
        let physical = table.columns.iter().filter(|column| column.kind == ColumnKind::Physical);
        let schema = Arc::new(Schema::new(physical.map(Column::field).collect::<Vec<_>>()));
        self.decoder(&Wanted::all(schema)).map(drop).map_err(|e| e.context(format_args!("table {}", table.name)))
    }
}

/// The schema with columns that may be NULL: NOT NULL is checked where the message can be named.
fn nullable(schema: &Schema) -> SchemaRef {
    let fields = schema.fields().iter().map(|field| field.as_ref().clone().with_nullable(true));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// Payloads that lie one behind the other in `values`, without those that are NULL.
fn joined(values: Vec<u8>, lengths: Vec<usize>, nulls: Option<NullBuffer>, format: &str) -> Result<BinaryArray> {
    if i32::try_from(values.len()).is_err() {
        return Err(Error::data(format!("{} rows are more than 2 GiB as {format}", lengths.len())));
    }
    Ok(BinaryArray::try_new(OffsetBuffer::from_lengths(lengths), values.into(), nulls)?)
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{DataType, Field};

    use super::*;
    use crate::connector::contract::fixture;
    use crate::connector::entry::{REFUSED, assert_described};
    use crate::sql::options::asked_for;

    /// A table with these options, taken to the last one.
    fn take(options: &[(&str, &str)]) -> Result<FormatOptions> {
        let schema = Schema::new(vec![Field::new("id", DataType::Int64, true)]);
        let table = fixture::table_of("t", &schema, options);
        let mut reader = OptionReader::new(&table);
        let format = FormatOptions::take(&mut reader)?;
        reader.finish()?;
        format.check(&table)?;
        Ok(format)
    }

    #[test]
    fn an_unknown_format_is_refused_with_the_nearest_one() {
        let error = take(&[("format", "debezium")]).unwrap_err().to_string();
        assert_eq!(error, "table t: there is no format 'debezium' for messages; did you mean 'debezium-json'?");
        let error = take(&[("format", "protobuf")]).unwrap_err().to_string();
        assert!(error.ends_with("known are json, csv, raw, debezium-json, canal-json"), "{error}");
    }

    #[test]
    fn all_options_are_described() {
        for format in FORMATS {
            let asked = asked_for(|| drop(take(&[("format", format)]).unwrap()));
            assert_described(&[&[OPTION], TROUBLE, options(format)].concat(), &asked);
            for refused in options(format).iter().filter(|entry| entry.default == REFUSED) {
                let error = take(&[("format", format), (refused.key, "x")]).unwrap_err().to_string();
                assert!(error.contains(&format!("'{}' is not supported", refused.key)), "{error}");
            }
        }
    }

    #[test]
    fn options_of_another_format_are_unknown() {
        for format in FORMATS {
            take(&[("format", format), ("format.on-error", "skip")]).unwrap();
            let other = if format == "csv" { "raw.endianness" } else { "csv.field-delimiter" };
            let error = take(&[("format", format), (other, ",")]).unwrap_err().to_string();
            assert!(error.starts_with(&format!("table t: there is no option '{other}'")), "{error}");
        }
    }

    #[test]
    fn what_flink_knows_is_taken_or_refused_by_name() {
        let json = |format: &str| {
            let option = |option: &str| format!("{format}.{option}");
            [
                (option("ignore-parse-errors"), Some("false"), Some("true"), "'format.on-error' = 'skip'"),
                (option("encode.decimal-as-plain-number"), Some("true"), Some("false"), "as a plain number"),
                (option("encode.ignore-null-fields"), Some("true"), Some("yes"), "is not true or false"),
                (option("map-null-key.mode"), None, Some("LITERAL"), "no NULL keys"),
                (option("map-null-key.literal"), None, Some("null"), "no NULL keys"),
            ]
        };
        let scientific = "csv.write-bigdecimal-in-scientific-notation";
        let csv = [
            ("csv.ignore-parse-errors".to_string(), Some("false"), Some("true"), "'format.on-error' = 'skip'"),
            (scientific.to_string(), Some("false"), Some("true"), "as a plain number"),
            ("csv.array-element-delimiter".to_string(), None, Some(";"), "cannot hold ARRAY"),
            ("csv.allow-comments".to_string(), Some("true"), None, ""),
        ];
        let of_json = ["json", "debezium-json", "canal-json"].map(|format| (format, json(format)));
        let only_json = [
            ("json.fail-on-missing-field".to_string(), Some("true"), None, ""),
            ("json.decode.json-parser.enabled".to_string(), Some("false"), Some("jackson"), "is not true or false"),
        ];
        let mut all = vec![("csv", &csv[..]), ("json", &only_json[..])];
        all.extend(of_json.iter().map(|(format, options)| (*format, &options[..])));
        for (format, options) in all {
            for (option, good, bad, advice) in options {
                let take = |value: &str| take(&[("format", format), (option.as_str(), value)]);
                if let Some(good) = good {
                    take(good).unwrap();
                }
                if let Some(bad) = bad {
                    let error = take(bad).unwrap_err().to_string();
                    assert!(error.contains(&format!("'{option}'")) && error.contains(advice), "{error}");
                }
            }
        }
    }

    #[test]
    fn only_changelogs_take_changes() {
        let changelogs = FORMATS.map(|format| take(&[("format", format)]).unwrap().is_changelog());
        assert_eq!(changelogs, [false, false, false, true, true]);
        let schema = Arc::new(Schema::new(vec![Field::new("id", DataType::Int64, true)]));
        let rows = RecordBatch::new_empty(Arc::clone(&schema));
        for format in FORMATS {
            let format = take(&[("format", format)]).unwrap();
            let encoded =
                format.encoder(Arc::clone(&schema)).unwrap().encode_changes(&rows, &Int8Array::from(vec![0; 0]));
            assert_eq!(encoded.is_ok(), format.is_changelog());
        }
    }

    #[test]
    fn keys_are_json_whatever_the_payload_is() {
        let ids = arrow::array::Int64Array::from(vec![7]);
        let rows = RecordBatch::try_from_iter([("id", Arc::new(ids) as arrow::array::ArrayRef)]).unwrap();
        for format in FORMATS {
            let mut encoder = take(&[("format", format)]).unwrap().key_format().encoder(rows.schema()).unwrap();
            assert_eq!(encoder.encode(&rows).unwrap().value(0), b"{\"id\":7}", "{format}");
        }
    }
}

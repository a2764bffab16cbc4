//! Debezium: what a database's log says of one row, as JSON with the row before and after.
//!
//! Reading: `op` says what happened. `c` (created) and `r` (read by a snapshot) give a row, `u` (updated) takes one
//! back and gives another, `d` (deleted) takes one back. A tombstone gives nothing. Rows are read as json reads them.
//!
//! Writing, as Flink has it: a row that is new or takes the place of another is a `c`, one that is taken back a `d`. So
//! an update is two messages.
//!
//! Not promised: the other operations (`t`, `m`), which are bad payloads; `source` and the transaction; DECIMAL in
//! Debezium's precise form (set its `decimal.handling.mode` = `string`).

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, RecordBatch, StringArray};
use arrow::buffer::BooleanBuffer;
use arrow::compute::interleave;
use arrow::datatypes::{DataType, Field, SchemaRef};

use super::changelog::{ChangelogEncoder, Changes, Envelopes, Places, present, structs};
use super::json::JsonOptions;
use super::{Decoded, Decoder};
use crate::connector::OptionEntry;
use crate::error::{Error, Result};
use crate::plan::changes::RowKind;
use crate::sql::options::OptionReader;

/// Whether messages come with their schema.
pub(super) const SCHEMA_INCLUDE: &str = "debezium-json.schema-include";

/// What its options say.
pub(super) const OPTIONS: &[OptionEntry] = &[
    OptionEntry::reading(
        SCHEMA_INCLUDE,
        "`true`, `false`",
        "`false`",
        "`true`: messages are `{\"schema\": …, \"payload\": …}`, as Kafka Connect writes them by default",
    ),
    OptionEntry::new(
        "debezium-json.timestamp-format.standard",
        "`SQL`, `ISO-8601`",
        "`SQL`",
        "how timestamps are written: `2026-01-01 00:00:00.123`, or with a `T`. Both are read",
    ),
    OptionEntry::writing(
        "debezium-json.encode.ignore-null-fields",
        "`true`, `false`",
        "`false`",
        "`true`: NULL is left out instead of written as `null`, also `before` and `after`",
    ),
    OptionEntry::writing(
        "debezium-json.encode.decimal-as-plain-number",
        "`true`",
        "`true`",
        "how a DECIMAL is written. **Flink's default is another one**",
    ),
    OptionEntry::reading(
        "debezium-json.ignore-parse-errors",
        "`false`",
        "`false`",
        "`true` is refused: say `'format.on-error' = 'skip'`",
    ),
    OptionEntry::refused("debezium-json.map-null-key.mode", "a MAP has no NULL keys"),
    OptionEntry::refused("debezium-json.map-null-key.literal", "a MAP has no NULL keys"),
];

/// The options `debezium-json.*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DebeziumOptions {
    /// Whether messages are `{"schema": …, "payload": …}`.
    has_schema: bool,
    json: JsonOptions,
}

impl DebeziumOptions {
    /// Takes `debezium-json.schema-include` (default false), and what every format has that holds JSON.
    pub fn take(options: &mut OptionReader<'_>) -> Result<Self> {
        Ok(Self {
            has_schema: options.flag(SCHEMA_INCLUDE)?.unwrap_or(false),
            json: JsonOptions::of("debezium-json", options)?,
        })
    }
}

/// Payloads to rows with kinds.
#[derive(Debug)]
pub struct DebeziumDecoder {
    envelopes: Envelopes,
    has_schema: bool,
}

impl DebeziumDecoder {
    /// A decoder into `schema`, whose field names are the keys of `before` and `after`.
    pub fn try_new(schema: SchemaRef, options: &DebeziumOptions) -> Result<Self> {
        let has_schema = options.has_schema;
        let envelopes = Envelopes::try_new(&schema, |row| {
            let fields = vec![
                Field::new("before", row.clone(), true),
                Field::new("after", row, true),
                Field::new("op", DataType::Utf8View, true),
            ];
            if has_schema { vec![Field::new("payload", DataType::Struct(fields.into()), true)] } else { fields }
        })?;
        Ok(Self { envelopes, has_schema })
    }
}

impl Decoder for DebeziumDecoder {
    fn decode(&mut self, payloads: &BinaryArray) -> Result<Decoded> {
        let has_schema = self.has_schema;
        self.envelopes.decode(payloads, &present(payloads), |envelopes, _| open(envelopes, has_schema))
    }
}

/// The rows of these envelopes, or what is wrong with one of them.
fn open(envelopes: &RecordBatch, has_schema: bool) -> Result<std::result::Result<Changes, String>> {
    const BEFORE: usize = 0;
    const AFTER: usize = 1;
    let columns = if has_schema { envelopes.column(0).as_struct().columns() } else { envelopes.columns() };
    let rows = [columns[BEFORE].as_struct(), columns[AFTER].as_struct()];
    let mut places = Places::default();
    for (origin, op) in columns[2].as_string_view().iter().enumerate() {
        let (takes_back, gives) = match op {
            Some("c" | "r") => (None, Some(RowKind::Insert)),
            Some("u") => (Some(RowKind::UpdateBefore), Some(RowKind::UpdateAfter)),
            Some("d") => (Some(RowKind::Delete), None),
            Some(other) => return Ok(Err(format!("its op '{other}' is none of c, r, u and d"))),
            None => return Ok(Err(without_op(has_schema))),
        };
        if takes_back.is_some() && rows[BEFORE].is_null(origin) {
            return Ok(Err(format!(
                "it has no before, with op '{}'; if this is a table of Postgres, set it to REPLICA IDENTITY FULL there",
                op.unwrap_or_default()
            )));
        }
        if gives.is_some() && rows[AFTER].is_null(origin) {
            return Ok(Err(format!("it has no after, with op '{}'", op.unwrap_or_default())));
        }
        if let Some(kind) = takes_back {
            places.push(origin, kind, (BEFORE, origin));
        }
        if let Some(kind) = gives {
            places.push(origin, kind, (AFTER, origin));
        }
    }
    let column = |index: usize, places: &[(usize, usize)]| -> Result<ArrayRef> {
        let (before, after) = (rows[BEFORE].column(index), rows[AFTER].column(index));
        Ok(interleave(&[before.as_ref(), after.as_ref()], places)?)
    };
    Ok(Ok(places.rows(rows[AFTER].fields(), column)?))
}

fn without_op(has_schema: bool) -> String {
    match has_schema {
        true => {
            format!(
                "it has no payload with an op; if messages come without their schema, set '{SCHEMA_INCLUDE}' = 'false'"
            )
        }
        false => format!("it has no op; if messages come with their schema, set '{SCHEMA_INCLUDE}' = 'true'"),
    }
}

/// An encoder of rows of `schema`.
pub(super) fn encoder(schema: SchemaRef, options: &DebeziumOptions) -> Result<ChangelogEncoder> {
    if options.has_schema {
        return Err(Error::usage(format!(
            "'{SCHEMA_INCLUDE}' = 'true' is only for reading: messages are written without their schema; leave it out"
        )));
    }
    ChangelogEncoder::try_new(schema, &options.json, wrap)
}

fn wrap(rows: &RecordBatch, are_there: &BooleanBuffer) -> Result<RecordBatch> {
    let ops = StringArray::from_iter_values(are_there.iter().map(|is_there| if is_there { "c" } else { "d" }));
    let columns: [(&str, ArrayRef, bool); 3] = [
        ("before", Arc::new(structs(rows, Some(!are_there))?), true),
        ("after", Arc::new(structs(rows, Some(are_there.clone()))?), true),
        ("op", Arc::new(ops), false),
    ];
    Ok(RecordBatch::try_from_iter_with_nullable(columns)?)
}

#[cfg(test)]
mod tests {
    use arrow::array::{Int8Array, Int64Array, StringViewArray};
    use arrow::datatypes::Schema;

    use super::super::Encoder;
    use super::super::changelog::tests::decoded;
    use super::*;
    use crate::connector::contract::fixture;

    fn options(has_schema: bool) -> DebeziumOptions {
        DebeziumOptions { has_schema, json: JsonOptions::default() }
    }

    fn schema() -> SchemaRef {
        let nested = DataType::List(Arc::new(Field::new_list_field(DataType::Int64, true)));
        Arc::new(Schema::new(vec![
            Field::new("id", DataType::Int64, false),
            Field::new("name", DataType::Utf8View, true),
            Field::new("raw", DataType::Binary, true),
            Field::new("list", nested, true),
        ]))
    }

    fn decoder(projection: &[usize], has_schema: bool) -> DebeziumDecoder {
        DebeziumDecoder::try_new(Arc::new(schema().project(projection).unwrap()), &options(has_schema)).unwrap()
    }

    const CREATED: &str = r#"{"before":null,"after":{"id":1,"name":"a","raw":"AQI=","list":[1]},"op":"c","ts_ms":5}"#;
    const UPDATED: &str = r#"{"before":{"id":1,"name":"a"},"after":{"id":1,"name":"b"},"source":{"x":[1]},"op":"u"}"#;
    const DELETED: &str = r#"{"before":{"id":1,"name":"b"},"after":null,"op":"d"}"#;

    #[test]
    fn an_update_is_two_rows_and_a_tombstone_none() {
        let payloads = [Some(CREATED), Some(UPDATED), Some(DELETED), None, Some("")];
        let (rows, bad) = decoded(&mut decoder(&[0, 1, 2, 3], false), &payloads);
        let expected =
            ["0 +I | 1 | a | 0102 | [1] |", "1 -U | 1 | a | | |", "1 +U | 1 | b | | |", "2 -D | 1 | b | | |"];
        assert_eq!((rows, bad), (expected.map(String::from).to_vec(), vec![]));
    }

    #[test]
    fn a_snapshot_is_read_also_with_its_schema() {
        let payload = r#"{"schema":{"type":"struct"},"payload":{"before":null,"after":{"id":3},"op":"r"}}"#;
        let (rows, bad) = decoded(&mut decoder(&[0], true), &[Some(payload), Some(CREATED)]);
        assert_eq!(rows, ["0 +I | 3 |"]);
        assert!(bad[0].starts_with("1: it has no payload with an op") && bad[0].ends_with("= 'false'"), "{bad:?}");
        let (rows, bad) = decoded(&mut decoder(&[0], false), &[Some(payload), Some(CREATED)]);
        assert_eq!(rows, ["1 +I | 1 |"]);
        assert!(bad[0].starts_with("0: it has no op") && bad[0].ends_with("= 'true'"), "{bad:?}");
    }

    #[test]
    fn one_bad_message_never_costs_its_neighbours() {
        for (bad_one, reason) in [
            (r#"{"before":null,"after":{"id":2},"op":"u"}"#, "REPLICA IDENTITY FULL"),
            (r#"{"before":null,"after":null,"op":"d"}"#, "REPLICA IDENTITY FULL"),
            (r#"{"before":{"id":2},"after":null,"op":"u"}"#, "no after"),
            (r#"{"op":"c"}"#, "no after"),
            (r#"{"op":"t"}"#, "'t' is none of c, r, u and d"),
            (r#"{"after":{"id":"x"},"op":"c"}"#, "id"),
            (r#"{"after":{"raw":"!"},"op":"c"}"#, "'!' cannot be BYTES, in column raw"),
            (r#"{"after":{"id":1},"op":"c""#, "middle of a value"),
            ("null", ""),
            ("7", ""),
        ] {
            let (rows, bad) =
                decoded(&mut decoder(&[0, 2], false), &[Some(UPDATED), None, Some(bad_one), Some(DELETED)]);
            assert_eq!(rows, ["0 -U | 1 | |", "0 +U | 1 | |", "3 -D | 1 | |"], "{bad_one}");
            assert_eq!(bad.len(), 1, "{bad_one}");
            assert!(bad[0].starts_with("2: ") && bad[0].contains(reason), "{bad:?}");
        }
    }

    #[test]
    fn only_columns_that_are_asked_for_are_decoded() {
        let payload = r#"{"after":{"id":"no number","name":"a"},"op":"c"}"#;
        let (rows, bad) = decoded(&mut decoder(&[1], false), &[Some(payload)]);
        assert_eq!((rows, bad), (vec!["0 +I | a |".to_string()], vec![]));
        let payloads = BinaryArray::from(vec![UPDATED.as_bytes(), CREATED.as_bytes()]);
        let none = decoder(&[], false).decode(&payloads).unwrap();
        assert_eq!((none.rows.num_rows(), none.origins), (3, Some(vec![0, 0, 1])));
    }

    #[test]
    fn a_change_is_a_creation_or_a_deletion() {
        let columns: [(&str, ArrayRef, bool); 2] = [
            ("id", Arc::new(Int64Array::from(vec![1, 1, 1, 2])), true),
            ("name", Arc::new(StringViewArray::from(vec![Some("a"), Some("a"), None, Some("c")])), true),
        ];
        let rows = RecordBatch::try_from_iter_with_nullable(columns).unwrap();
        let mut encoder = encoder(rows.schema(), &options(false)).unwrap();
        let kinds = [RowKind::Insert, RowKind::UpdateBefore, RowKind::UpdateAfter, RowKind::Insert];
        let kinds = Int8Array::from_iter_values(kinds.map(|kind| kind as i8));
        let written = encoder.encode_changes(&rows, &kinds).unwrap();
        let written: Vec<&str> = written.iter().map(|payload| std::str::from_utf8(payload.unwrap()).unwrap()).collect();
        let expected = [
            r#"{"before":null,"after":{"id":1,"name":"a"},"op":"c"}"#,
            r#"{"before":{"id":1,"name":"a"},"after":null,"op":"d"}"#,
            r#"{"before":null,"after":{"id":1,"name":null},"op":"c"}"#,
            r#"{"before":null,"after":{"id":2,"name":"c"},"op":"c"}"#,
        ];
        assert_eq!(written, expected);
        assert_eq!(encoder.encode(&rows.slice(3, 1)).unwrap().value(0), expected[3].as_bytes());
        let payloads: Vec<Option<&str>> = written.into_iter().map(Some).collect();
        let (back, _) = decoded(&mut decoder(&[0, 1], false), &payloads);
        assert_eq!(back, ["0 +I | 1 | a |", "1 -D | 1 | a |", "2 +I | 1 | |", "3 +I | 2 | c |"]);
    }

    #[test]
    fn null_is_left_out_on_request_and_read_all_the_same() {
        let table = fixture::with_options(&[("debezium-json.encode.ignore-null-fields", "true")]);
        let options = DebeziumOptions::take(&mut OptionReader::new(&table)).unwrap();
        let columns: [(&str, ArrayRef, bool); 2] = [
            ("id", Arc::new(Int64Array::from(vec![1])), true),
            ("name", Arc::new(StringViewArray::from(vec![None::<&str>])), true),
        ];
        let rows = RecordBatch::try_from_iter_with_nullable(columns).unwrap();
        let mut encoder = encoder(rows.schema(), &options).unwrap();
        let deleted = Int8Array::from(vec![RowKind::Delete as i8]);
        let written = [encoder.encode(&rows).unwrap(), encoder.encode_changes(&rows, &deleted).unwrap()];
        let written = written.each_ref().map(|payloads| std::str::from_utf8(payloads.value(0)).unwrap());
        assert_eq!(written, [r#"{"after":{"id":1},"op":"c"}"#, r#"{"before":{"id":1},"op":"d"}"#]);
        let (back, _) = decoded(&mut decoder(&[0, 1], false), &written.map(Some));
        assert_eq!(back, ["0 +I | 1 | |", "1 -D | 1 | |"]);
    }

    #[test]
    fn a_schema_is_not_written() {
        let error = encoder(schema(), &options(true)).unwrap_err().to_string();
        assert!(error.starts_with("'debezium-json.schema-include' = 'true' is only for reading"), "{error}");
    }
}

//! What columns are found, one boundary a check; and that all messages they were found in read back.

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde_json::{Map, Value};

use super::*;
use crate::connector::contract::fixture;
use crate::sql::types::sql_type;

fn table(options: &[(&str, &str)]) -> Arc<TableDefinition> {
    fixture::with_options(options)
}

fn infer(options: &[(&str, &str)], payloads: &[&str]) -> Inferred {
    columns(&table(options), &BinaryArray::from_iter_values(payloads)).unwrap()
}

fn shown(found: &Inferred) -> String {
    let column = |column: &Column| format!("{} {}", column.name, sql_type(&column.data_type));
    found.columns.iter().map(column).collect::<Vec<_>>().join(", ")
}

/// The columns of these JSON messages, about which there is nothing to say.
fn check(payloads: &[&str], expected: &str) {
    let found = infer(&[("format", "json")], payloads);
    assert_eq!((shown(&found).as_str(), &found.notes[..]), (expected, &[][..]), "{payloads:?}");
}

/// The type that holds all of these JSON values.
fn check_values(values: &[&str], expected: &str) {
    let payloads: Vec<String> = values.iter().map(|value| format!("{{\"v\":{value}}}")).collect();
    check(&payloads.iter().map(String::as_str).collect::<Vec<_>>(), &format!("v {expected}"));
}

#[test]
fn values_widen_as_far_as_they_must() {
    check_values(&["1", "null", "-2"], "BIGINT");
    check_values(&["1", "1.5"], "DOUBLE");
    check_values(&["9007199254740992", "1.5"], "DOUBLE");
    check_values(&["9007199254740993", "1.5"], "STRING");
    check_values(&["9223372036854775807"], "BIGINT");
    check_values(&["-1", "18446744073709551615"], "DECIMAL(20, 0)");
    check_values(&["1", "18446744073709551616"], "STRING");
    check_values(&["-9223372036854775809"], "STRING");
    check_values(&["1e30", "1"], "DOUBLE");
    check_values(&["true", "false"], "BOOLEAN");
    check_values(&["true", "1"], "STRING");
    check_values(&["1", "\"a\""], "STRING");
    check_values(&["\"1\""], "STRING");
}

#[test]
fn dates_and_timestamps_are_told_by_their_form() {
    check_values(&["\"2026-01-01\""], "DATE");
    check_values(&["\"2026-01-01 00:00:00\""], "TIMESTAMP(3)");
    check_values(&["\"2026-01-01 00:00:00.12\"", "\"2026-01-01T00:00:00.1234\""], "TIMESTAMP(6)");
    check_values(&["\"2026-01-01T00:00:00.123456789\""], "TIMESTAMP(9)");
    check_values(&["\"2026-01-01T00:00:00Z\"", "\"2026-01-01 00:00:00.5+02:00\""], "TIMESTAMP_LTZ(3)");
    check_values(&["\"9999-12-31 23:59:59\""], "TIMESTAMP(3)");
    check_values(&["\"9999-12-31 23:59:59\"", "\"2026-01-01 00:00:00.1234567\""], "STRING");
    check_values(&["\"2026-01-01T00:00:00Z\"", "\"2026-01-01T00:00:00\""], "STRING");
    check_values(&["\"2026-01-01\"", "\"2026-01-01 00:00:00\""], "STRING");
    for text in ["2026-13-01", "2026-01-01T24:00:00", "2026-01-01 00:00", "2026-01-01 00:00:00.", "20260101", "ü"] {
        check_values(&[&format!("\"{text}\"")], "STRING");
    }
}

#[test]
fn the_timestamp_format_is_that_of_all_timestamps() {
    let option = "json.timestamp-format.standard";
    let chosen = |options: &[(&str, &str)], payload: &str| {
        infer(&[&[("format", "json")], options].concat(), &[payload]).options.get(option).cloned()
    };
    let iso = r#"{"a":{"at":["2026-01-01T00:00:00Z"]},"n":1}"#;
    assert_eq!(chosen(&[], iso).as_deref(), Some("ISO-8601"));
    assert_eq!(chosen(&[(option, "SQL")], iso), None, "what is given stays");
    assert_eq!(chosen(&[], r#"{"a":"2026-01-01T00:00:00","b":"2026-01-01 00:00:00"}"#), None);
    assert_eq!(chosen(&[], r#"{"n":1}"#), None);
}

#[test]
fn objects_are_rows_and_arrays_are_arrays() {
    check(
        &[r#"{"userId":1,"at":{"x":[1,2.5],"Y z":null}}"#, r#"{"b`c":"x","at":{"x":[],"Y z":true}}"#],
        "userId BIGINT, at ROW<`x` ARRAY<DOUBLE>, `Y z` BOOLEAN>, b`c STRING",
    );
    check(&[r#"{"a":[{"x":1},null,{"y":"b"}]}"#], "a ARRAY<ROW<`x` BIGINT, `y` STRING>>");
}

#[test]
fn what_is_uncertain_is_told() {
    let payloads =
        [r#"{"a":null,"b":[],"c":{},"d":1,"e":{"":1,"x":[1]}}"#, r#"{"d":{"x":1},"e":{"x":["a",{}]},"$f":1}"#];
    let error = columns(&table(&[("format", "json")]), &BinaryArray::from_iter_values(["{\"c\":{}}"])).unwrap_err();
    assert!(error.to_string().starts_with("table t: none of the 1 messages"), "{error}");
    let found = infer(&[("format", "json")], &payloads);
    assert_eq!(shown(&found), "a STRING, b ARRAY<STRING>");
    let notes = [
        "a has no value in any message",
        "b[] has no value in any message",
        "c is left out: it is an object without fields",
        "d is left out: it is an object or an array in some places",
        "a field without a name is left out, in e.",
        "e.x[] is left out",
        "e is left out: it is an object without fields",
        "$f is left out",
    ];
    assert_eq!(found.notes.len(), notes.len(), "{:?}", found.notes);
    for (found, expected) in found.notes.iter().zip(notes) {
        assert!(found.starts_with(expected), "{found}: {expected}");
    }
}

#[test]
fn what_cannot_be_read_is_counted() {
    let found = infer(&[("format", "json")], &["{\"a\":1}", "nonsense", "{\"a\":2}", "[]"]);
    assert_eq!(shown(&found), "a BIGINT");
    assert_eq!(found.notes.len(), 1);
    assert!(found.notes[0].starts_with("2 of 4 messages cannot be read; of one of them: "), "{:?}", found.notes);
    let none = columns(&table(&[("format", "json")]), &BinaryArray::from_iter_values(["a,b"])).unwrap_err();
    assert!(none.to_string().contains("none of the 1 messages"), "{none}");
}

#[test]
fn lines_have_as_many_columns_as_most_of_them() {
    let csv = ("format", "csv");
    let lines = ["1,x,2026-01-01 00:00:00,007,1.5,true,\"1,2\"", "2,,,10, 2 ,,", "3", "# 4"];
    let found = infer(&[csv], &lines);
    let expected = "col1 BIGINT, col2 STRING, col3 TIMESTAMP(3), col4 STRING, col5 DOUBLE, col6 BOOLEAN, col7 STRING";
    assert_eq!(shown(&found), expected);
    assert!(found.notes[0].starts_with("2 of 4 messages cannot be read"), "{:?}", found.notes);
    let options = [csv, ("csv.field-delimiter", ";"), ("csv.null-literal", "N"), ("csv.allow-comments", "true")];
    let found = infer(&options, &["1;N", "N;2", "# 4"]);
    assert_eq!((shown(&found).as_str(), found.notes), ("col1 BIGINT, col2 BIGINT", vec![]));
}

#[test]
fn a_value_is_text_if_all_are() {
    assert_eq!(shown(&infer(&[("format", "raw")], &["a", "ü"])), "value STRING");
    let payloads = BinaryArray::from_iter_values([&b"a"[..], &b"\xff"[..]]);
    assert_eq!(shown(&columns(&table(&[("format", "raw")]), &payloads).unwrap()), "value BYTES");
}

#[test]
fn changes_have_the_columns_of_their_rows() {
    let change = r#"{"before":null,"after":{"id":1,"at":"2026-01-01T00:00:00Z"},"op":"c"}"#;
    let deleted = r#"{"before":{"id":1,"name":"a"},"after":null,"op":"d"}"#;
    let found = infer(&[("format", "debezium-json")], &[change, deleted]);
    assert_eq!((shown(&found).as_str(), found.notes), ("id BIGINT, at TIMESTAMP_LTZ(3), name STRING", vec![]));
    let option = "debezium-json.timestamp-format.standard";
    assert_eq!(found.options, BTreeMap::from([(option.to_string(), "ISO-8601".to_string())]));
    let payload = format!("{{\"schema\":{{}},\"payload\":{deleted}}}");
    let found = infer(&[("format", "debezium-json")], &[&payload]);
    assert_eq!((shown(&found).as_str(), found.notes), ("id BIGINT, name STRING", vec![]));
    assert_eq!(found.options[debezium::SCHEMA_INCLUDE], "true");
}

#[test]
fn canal_says_what_its_texts_are() {
    let message = |database: &str, key: &str| {
        format!(
            r#"{{"database":"{database}","table":"t","type":"INSERT","old":null,"pkNames":{key},
            "data":[{{"id":"1","zip":"12345","price":"1.50","at":"2026-01-01 00:00:00","void":null}}],
            "mysqlType":{{"id":"bigint(20) unsigned","zip":"varchar(5)","price":"decimal(10,2)","at":"datetime",
            "void":"int unsigned"}}}}"#
        )
    };
    let (one, other) = (message("a", "[\"id\"]"), message("b", "[\"zip\"]"));
    let found = infer(&[("format", "canal-json")], &[&one, &one]);
    let expected = "id DECIMAL(20, 0), zip STRING, price DECIMAL(10, 2), at TIMESTAMP(3), void BIGINT";
    assert_eq!((shown(&found).as_str(), &found.notes[..]), (expected, &[][..]));
    assert_eq!(found.primary_key, ["id"]);
    assert!(infer(&[("format", "canal-json")], &[&one, &other]).primary_key.is_empty());
    let only = [("format", "canal-json"), ("canal-json.database.include", "a")];
    assert_eq!(infer(&only, &[&other, &one]).primary_key, ["id"]);
}

#[test]
fn fields_stay_in_the_order_in_which_they_were_met() {
    let message = |keys: &mut dyn Iterator<Item = u32>| {
        let fields: Vec<String> = keys.map(|key| format!("\"k{key}\":{key}")).collect();
        shape_of(format!("{{{}}}", fields.join(",")).as_bytes()).unwrap()
    };
    let all = objects([message(&mut (0..2_000)), message(&mut (1_000..3_000).rev())]);
    let Shape::Object(fields) = all else { panic!("they are objects") };
    let expected = (0..2_000).chain((2_000..3_000).rev()).map(|key| format!("k{key}"));
    assert!(fields.keys().eq(&expected.collect::<Vec<_>>()));
}

#[test]
fn a_topic_holds_objects_if_all_that_was_seen_is_one() {
    let are = |payloads: &[Option<&[u8]>]| are_objects(&BinaryArray::from_iter(payloads));
    assert!(are(&[Some(b"{}"), Some(b"{\"a\":1}"), None]));
    assert!(!are(&[Some(b"{}"), Some(b"{}"), Some(b"x")]) && !are(&[Some(b"{}"), Some(b"[]")]));
    assert!(!are(&[Some(b"1"), Some(b"a,b"), Some(b"")]) && !are(&[None]) && !are(&[]));
}

/// Any JSON value; texts are of the kinds that are told apart.
fn any_value() -> impl Strategy<Value = Value> {
    let texts = vec![
        "",
        "a",
        "007",
        "1",
        "true",
        "null",
        "2026-01-01",
        "2026-02-30",
        "0000-00-00 00:00:00",
        "2026-01-01 00:00:00",
        "2026-01-01T00:00:00.123Z",
        "2026-01-01T00:00:00.1+02:00",
        "9999-12-31 23:59:59",
        "2026-01-01T00:00:00.123456789",
        "more than twelve bytes",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-5i64..5).prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (-8i32..8).prop_map(|n| Value::from(f64::from(n) / 4.0)),
        proptest::sample::select(texts).prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        let name = proptest::sample::select(vec!["a", "b", "C c", "`"]).prop_map(String::from);
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            proptest::collection::btree_map(name, inner, 0..3).prop_map(|map| Value::from(Map::from_iter(map))),
        ]
    })
}

/// Whether a value of the message came back, as far as it has a column.
fn came_back(sent: &Value, read: &Value, data_type: &DataType) -> bool {
    let moment = |value: &Value| string_to_datetime(&Utc, value.as_str().unwrap()).unwrap();
    match (sent, data_type) {
        (Value::Null, _) => read.is_null(),
        (Value::Array(sent), DataType::List(item)) => {
            let read = read.as_array().unwrap();
            sent.len() == read.len() && sent.iter().zip(read).all(|(s, r)| came_back(s, r, item.data_type()))
        }
        (Value::Object(sent), DataType::Struct(fields)) => fields.iter().all(|field| {
            let sent = sent.get(field.name()).unwrap_or(&Value::Null);
            came_back(sent, &read[field.name()], field.data_type())
        }),
        (Value::String(sent), DataType::Utf8View) => read == sent,
        (scalar, DataType::Utf8View) => read == &scalar.to_string(),
        (_, DataType::Timestamp(..)) => moment(sent) == moment(read),
        (_, DataType::Float64) => sent.as_f64() == read.as_f64(),
        _ => sent == read,
    }
}

#[test]
fn every_message_reads_back() {
    let mut runner = TestRunner::new_with_rng(
        Config { cases: 2000, failure_persistence: None, ..Config::default() },
        TestRng::deterministic_rng(RngAlgorithm::ChaCha),
    );
    let name = proptest::sample::select(vec!["a", "b", "C c"]).prop_map(String::from);
    let message = proptest::collection::btree_map(name, any_value(), 1..4);
    let messages = proptest::collection::vec(message.prop_map(|map| Value::from(Map::from_iter(map))), 1..5);
    let outcome = runner.run(&messages, |messages| {
        let payloads = BinaryArray::from_iter_values(messages.iter().map(Value::to_string));
        let table = table(&[("format", "json")]);
        // All of it may be left out.
        let Ok(found) = columns(&table, &payloads) else { return Ok(()) };
        let table = TableDefinition { columns: found.columns.clone(), ..(*table).clone() };
        let format = FormatOptions::take(&mut OptionReader::new(&table)).unwrap();
        let decoded = format.decoder(&Wanted::all(table.stored_schema())).unwrap().decode(&payloads).unwrap();
        prop_assert_eq!(&decoded.bad, &vec![]);
        let written = format.encoder(table.stored_schema()).unwrap().encode(&decoded.rows).unwrap();
        let row = DataType::Struct(table.stored_schema().fields().clone());
        for (sent, read) in messages.iter().zip(written.iter().flatten()) {
            let read: Value = serde_json::from_slice(read).unwrap();
            prop_assert!(came_back(sent, &read, &row), "{} was read as {}", sent, read);
            let has_column = |name: &String| found.columns.iter().any(|column| column.name == *name);
            let is_told = |name: &String| found.notes.iter().any(|note| note.starts_with(name.as_str()));
            prop_assert!(sent.as_object().unwrap().keys().all(|name| has_column(name) || is_told(name)));
        }
        Ok(())
    });
    outcome.unwrap();
}

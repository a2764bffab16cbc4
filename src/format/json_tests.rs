//! What json reads and writes, one boundary a check.

use arrow::array::{Int64Array, RecordBatch};
use arrow::datatypes::TimeUnit;
use arrow::util::pretty::pretty_format_batches;

use super::*;

fn options() -> JsonOptions {
    JsonOptions::default()
}

fn schema() -> SchemaRef {
    let nested = DataType::Struct(vec![Field::new("userId", DataType::Int32, true)].into());
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, true),
        Field::new("name", DataType::Utf8View, true),
        Field::new("amount", DataType::Decimal128(10, 2), true),
        Field::new("ts", DataType::Timestamp(TimeUnit::Millisecond, None), true),
        Field::new("raw", DataType::Binary, true),
        Field::new("tags", DataType::List(Arc::new(Field::new("item", DataType::Utf8View, true))), true),
        Field::new("user", nested, true),
        Field::new("ok", DataType::Boolean, true),
    ]))
}

fn decode(schema: SchemaRef, payloads: &[Option<&[u8]>]) -> Decoded {
    let mut decoder = JsonDecoder::try_new(schema, &options()).unwrap();
    decoder.decode(&payloads.iter().copied().collect()).unwrap()
}

/// The row that a payload decodes to, written again.
fn check(payload: &str, expected: &str) {
    let decoded = decode(schema(), &[Some(payload.as_bytes())]);
    assert_eq!(decoded.bad, vec![], "{payload}");
    let options = JsonOptions { ignore_null_fields: true, ..options() };
    let written = JsonEncoder::try_new(schema(), &options).unwrap().encode(&decoded.rows).unwrap();
    assert_eq!(std::str::from_utf8(written.value(0)).unwrap(), expected, "{payload}");
}

#[test]
fn every_type_there_and_back() {
    check("{}", "{}");
    check(r#"{"id":7,"other":[1,{"x":2}],"name":"a\"b"}"#, r#"{"id":7,"name":"a\"b"}"#);
    check(r#"{"id":"7","name":12.5}"#, r#"{"id":7,"name":"12.5"}"#);
    check(r#"{"amount":12.3}"#, r#"{"amount":12.30}"#);
    check(r#"{"amount":"0.01"}"#, r#"{"amount":0.01}"#);
    check(r#"{"ts":"2026-01-01 00:00:00.123"}"#, r#"{"ts":"2026-01-01 00:00:00.123"}"#);
    check(r#"{"ts":"2026-01-01T01:00:00+01:00"}"#, r#"{"ts":"2026-01-01 00:00:00"}"#);
    check(r#"{"ts":1767225600001}"#, r#"{"ts":"2026-01-01 00:00:00.001"}"#);
    check(r#"{"raw":"AQID"}"#, r#"{"raw":"AQID"}"#);
    check(
        r#"{"tags":["a",null],"user":{"userId":3,"x":1},"ok":true}"#,
        r#"{"tags":["a",null],"user":{"userId":3},"ok":true}"#,
    );
}

#[test]
fn one_bad_message_never_costs_its_neighbours() {
    let bad: &[&[u8]] = &[
        b"",
        b" ",
        b"{",
        b"{\"id\":1",
        b"nonsense",
        b"[1]",
        b"12",
        b"\"x\"",
        b"{\"id\":1}{\"id\":2}",
        b"{\"id\":\"x\"}",
        b"{\"id\":{}}",
        b"{\"name\":\"\xff\"}",
        b"{\"raw\":\"!\"}",
        b"{\"ts\":\"yesterday\"}",
        b"{\"amount\":123456789012}",
        b"{\"amount\":true}",
        b"{\"id\":1} x",
    ];
    for payload in bad {
        let good = br#"{"id":1}"#.as_slice();
        let decoded = decode(schema(), &[Some(good), Some(payload), Some(good)]);
        let text = String::from_utf8_lossy(payload);
        assert_eq!(decoded.bad.iter().map(|b| b.index).collect::<Vec<_>>(), vec![1], "{text}: {:?}", decoded.bad);
        assert_eq!(decoded.rows.num_rows(), 2, "{text}");
        assert_eq!(decoded.rows.column(0).as_primitive::<arrow::datatypes::Int64Type>().values(), &[1, 1], "{text}");
    }
    assert_eq!(decode(schema(), &[None]).bad[0].reason, NO_PAYLOAD);
}

#[test]
fn bytes_and_decimals_may_be_nested() {
    let decimal = DataType::Decimal128(5, 2);
    let row = DataType::Struct(vec![Field::new("raw", DataType::Binary, true), Field::new("x", decimal, true)].into());
    let entry = vec![Field::new("key", DataType::Utf8View, false), Field::new("value", row, true)];
    let map = DataType::Map(Arc::new(Field::new("entries", DataType::Struct(entry.into()), false)), false);
    let list = DataType::List(Arc::new(Field::new_list_field(map, true)));
    let schema = Arc::new(Schema::new(vec![Field::new("all", list, true)]));
    let payload = r#"{"all":[{"a":{"raw":"AQI=","x":1.50},"b":null},null,{}]}"#;
    let decoded = decode(Arc::clone(&schema), &[Some(payload.as_bytes()), Some(b"{}")]);
    assert_eq!(decoded.bad, vec![]);
    assert_eq!(decoded.rows.schema(), schema);
    let written = JsonEncoder::try_new(Arc::clone(&schema), &options()).unwrap().encode(&decoded.rows).unwrap();
    assert_eq!(std::str::from_utf8(written.value(0)).unwrap(), payload);
    let wrong = payload.replace("1.50", "1000");
    let decoded = decode(schema, &[Some(payload.as_bytes()), Some(wrong.as_bytes())]);
    let reason = "'1000' cannot be DECIMAL(5, 2), in column all".into();
    assert_eq!((decoded.rows.num_rows(), decoded.bad), (1, vec![BadPayload { index: 1, reason }]));
}

/// A value that is not expected is shown, by recursion.
#[test]
fn values_may_lie_in_each_other_only_so_deep() {
    let nested = |depth: usize| format!("{{\"id\":{}{}}}", "[".repeat(depth - 1), "]".repeat(depth - 1));
    for (depth, reason) in [(DEPTH, "whilst decoding field 'id'"), (DEPTH + 1, "more than 1000 deep")] {
        let bad = decode(schema(), &[Some(nested(depth).as_bytes())]).bad;
        assert!(bad[0].reason.contains(reason), "{depth}: {}", bad[0].reason);
    }
    for quiet in ["[[[", "{[\\\"[[", "{}{}", "\\\\\\\"]"] {
        let payload = format!("{{\"name\":\"{}\"}}", quiet.repeat(DEPTH));
        assert!(!is_too_deep(payload.as_bytes()), "{quiet}");
    }
    let wide = format!("{{\"other\":[{}[]]}}", "[[]],".repeat(DEPTH));
    assert_eq!(decode(schema(), &[Some(wide.as_bytes())]).bad, vec![]);
}

#[test]
fn a_missing_key_is_null_unless_told_otherwise() {
    let payloads = [r#"{"id":1,"name":"a"}"#, r#"{"id":2}"#, r#"{"id":null,"name":null}"#, r#"{"name":"d","x":1}"#];
    let payloads: BinaryArray = payloads.iter().map(|payload| Some(payload.as_bytes())).collect();
    let schema = Arc::new(schema().project(&[0, 1]).unwrap());
    let read = |fail_on_missing_field| {
        let options = JsonOptions { fail_on_missing_field, ..options() };
        JsonDecoder::try_new(Arc::clone(&schema), &options).unwrap().decode(&payloads).unwrap()
    };
    assert_eq!((read(false).rows.num_rows(), read(false).bad), (4, vec![]));
    let strict = read(true);
    let bad: Vec<_> = strict.bad.iter().map(|bad| (bad.index, bad.reason.as_str())).collect();
    let reason = |name: &str| format!("it has no field '{name}', and 'json.fail-on-missing-field' is set");
    assert_eq!(bad, [(1, reason("name").as_str()), (3, reason("id").as_str())]);
    let ids = strict.rows.column(0).as_primitive::<arrow::datatypes::Int64Type>();
    assert_eq!(ids, &Int64Array::from(vec![Some(1), None]));
}

#[test]
fn a_top_level_null_is_bad() {
    let decoded = decode(schema(), &[Some(b"null"), Some(b"{}")]);
    assert_eq!(decoded.bad.len(), 1, "{}", pretty_format_batches(&[decoded.rows]).unwrap());
}

#[test]
fn without_columns_the_rows_are_still_counted_and_checked() {
    let decoded = decode(Arc::new(Schema::empty()), &[Some(b"{\"a\":1}"), Some(b"{"), Some(b"{}")]);
    assert_eq!((decoded.rows.num_rows(), decoded.bad.len()), (2, 1));
}

#[test]
fn more_than_a_chunk() {
    let payloads: Vec<String> = (0..CHUNK * 2 + 3).map(|i| format!("{{\"id\":{i}}}")).collect();
    let payloads: Vec<Option<&[u8]>> = payloads.iter().map(|p| Some(p.as_bytes())).collect();
    let decoded = decode(schema(), &payloads);
    let expected = Int64Array::from_iter_values(0..payloads.len() as i64);
    assert_eq!(decoded.rows.column(0).as_primitive(), &expected);
}

#[test]
fn arbitrary_bytes_never_panic() {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as u8
    };
    let seeds =
        [r#"{"id":1,"name":"x","tags":["a"],"user":{"userId":1}}"#, r#"{"ts":"2026-01-01 00:00:00","amount":1.5}"#];
    for _ in 0..2000 {
        let mut payload = seeds[next() as usize % 2].as_bytes().to_vec();
        for _ in 0..1 + next() % 4 {
            let at = next() as usize % payload.len();
            payload[at] = next();
        }
        let decoded = decode(schema(), &[Some(&payload), Some(b"{}")]);
        assert_eq!(decoded.rows.num_rows() + decoded.bad.len(), 2);
    }
    let deep = "[".repeat(100_000);
    assert_eq!(decode(schema(), &[Some(deep.as_bytes())]).bad.len(), 1);
}

#[test]
fn nulls_are_written_unless_told_otherwise() {
    let schema = Arc::new(Schema::new(vec![Field::new("id", DataType::Int64, true)]));
    let rows = RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(Int64Array::from(vec![None]))]).unwrap();
    let written = JsonEncoder::try_new(schema, &options()).unwrap().encode(&rows).unwrap();
    assert_eq!(written.value(0), b"{\"id\":null}");
}

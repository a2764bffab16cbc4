//! What canal-json reads and writes.

use arrow::array::{Int8Array, Int64Array};

use super::super::Encoder;
use super::super::changelog::tests::decoded;
use super::*;
use crate::connector::contract::fixture;

fn options(more: &[(&str, &str)]) -> Result<CanalOptions> {
    let table = fixture::table_of("t", &schema(), more);
    CanalOptions::take(&mut OptionReader::new(&table))
}

fn schema() -> Schema {
    let tags = DataType::List(Arc::new(Field::new_list_field(DataType::Utf8View, true)));
    Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("name", DataType::Utf8View, true),
        Field::new("price", DataType::Decimal128(10, 2), true),
        Field::new("tags", tags, true),
        Field::new("raw", DataType::Binary, true),
    ])
}

fn decoder(projection: &[usize], more: &[(&str, &str)]) -> CanalDecoder {
    CanalDecoder::try_new(Arc::new(schema().project(projection).unwrap()), &options(more).unwrap()).unwrap()
}

fn message(kind: &str, data: &str, old: &str) -> String {
    format!(r#"{{"data":{data},"database":"shop","es":1,"isDdl":false,"old":{old},"table":"items","type":"{kind}"}}"#)
}

fn read(decoder: &mut CanalDecoder, payloads: &[String]) -> (Vec<String>, Vec<String>) {
    decoded(decoder, &payloads.iter().map(|payload| Some(payload.as_str())).collect::<Vec<_>>())
}

#[test]
fn a_message_is_as_many_rows_as_it_holds() {
    let payloads = [
        message("INSERT", r#"[{"id":"1","name":"a","price":"1.5"},{"id":"2","name":"b"}]"#, "null"),
        message("DELETE", r#"[{"id":"1","name":"a"}]"#, "null"),
        message("INSERT", "[]", "null"),
    ];
    let (rows, bad) = read(&mut decoder(&[0, 1, 2], &[]), &payloads);
    assert_eq!(rows, ["0 +I | 1 | a | 1.50 |", "0 +I | 2 | b | |", "1 -D | 1 | a | |"]);
    assert_eq!(bad, [""; 0]);
}

#[test]
fn the_row_before_is_the_new_one_with_what_old_names() {
    let data = r#"[{"id":"1","name":"new","price":"2","tags":["x"]},{"id":"2","name":"n","price":null}]"#;
    let old = r#"[{"name":"old","price":null},{"price":"9"}]"#;
    let without_null = [message("UPDATE", r#"[{"id":"3","name":"c"}]"#, r#"[{"id":"4"}]"#)];
    let (rows, bad) = read(&mut decoder(&[0, 1, 2, 3], &[]), &[message("UPDATE", data, old)]);
    let expected =
        ["0 -U | 1 | old | | [x] |", "0 +U | 1 | new | 2.00 | [x] |", "0 -U | 2 | n | 9.00 | |", "0 +U | 2 | n | | |"];
    assert_eq!((rows, bad), (expected.map(String::from).to_vec(), vec![]));
    let (rows, _) = read(&mut decoder(&[1, 0], &[]), &without_null);
    assert_eq!(rows, ["0 -U | c | 4 |", "0 +U | c | 3 |"]);
}

#[test]
fn changes_of_tables_and_tombstones_have_no_rows() {
    let payloads = [
        message("CREATE", "null", "null").replace("false", "true"),
        message("QUERY", "null", "null"),
        message("ALTER", r#"[{"id":"7"}]"#, "null"),
    ];
    let mut decoder = decoder(&[0], &[]);
    assert_eq!(read(&mut decoder, &payloads), (vec![], vec![]));
    assert_eq!(decoded(&mut decoder, &[None, Some("")]), (vec![], vec![]));
}

#[test]
fn one_bad_message_never_costs_its_neighbours() {
    let good = message("INSERT", r#"[{"id":"1","raw":"AQI="}]"#, "null");
    for (bad_one, reason) in [
        (message("INSERT", "null", "null"), "no data"),
        (message("INSERT", "[null]", "null"), "data"),
        (message("UPDATE", r#"[{"id":"1"}]"#, "null"), "1 rows in data and 0 in old"),
        (message("INSERT", r#"[{"id":"1"},{"id":"x"}]"#, "null"), "id"),
        (message("INSERT", r#"[{"id":"1","raw":"!"}]"#, "null"), "'!' cannot be BYTES, in column raw"),
        (r#"{"data":[{"id":1}]}"#.into(), "no type"),
        ("{".into(), "middle of a value"),
    ] {
        let (rows, bad) = read(&mut decoder(&[0, 4], &[]), &[good.clone(), bad_one, good.clone()]);
        assert_eq!(rows, ["0 +I | 1 | 0102 |", "2 +I | 1 | 0102 |"], "{reason}");
        assert_eq!(bad.len(), 1, "{reason}");
        assert!(bad[0].starts_with("1: ") && bad[0].contains(reason), "{bad:?}");
    }
}

#[test]
fn rows_of_other_tables_are_not_even_looked_at() {
    let ours = message("INSERT", r#"[{"id":"1"}]"#, "null");
    let other = message("INSERT", r#"[{"id":"no number"}]"#, "null");
    let payloads = [ours, other.replace("items", "items_2"), other.replace("shop", "bar"), "{".to_string()];
    let mut filtered =
        decoder(&[0], &[("canal-json.database.include", "shop|store"), ("canal-json.table.include", "item.")]);
    let (rows, bad) = read(&mut filtered, &payloads);
    assert_eq!(rows, ["0 +I | 1 |"]);
    assert_eq!(bad, ["3: it ends in the middle of a value"]);
    let nameless = payloads[0].replace("\"shop\"", "[1]");
    let (rows, bad) = read(&mut filtered, &[nameless, payloads[0].clone()]);
    assert_eq!(rows, ["1 +I | 1 |"]);
    assert!(bad.len() == 1 && bad[0].starts_with("0: ") && bad[0].contains("database"), "{bad:?}");
    let error = options(&[("canal-json.table.include", "(")]).unwrap_err().to_string();
    assert!(
        error.starts_with("table t: option 'canal-json.table.include': '(' is not a regular expression"),
        "{error}"
    );
}

#[test]
fn a_change_is_an_insert_or_a_delete() {
    let ids: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), None]));
    let rows = RecordBatch::try_from_iter_with_nullable([("id", ids, true)]).unwrap();
    let mut encoder = encoder(rows.schema(), &options(&[]).unwrap()).unwrap();
    let kinds = Int8Array::from(vec![RowKind::UpdateBefore as i8, RowKind::UpdateAfter as i8]);
    let written = encoder.encode_changes(&rows, &kinds).unwrap();
    assert_eq!(written.value(0), br#"{"data":[{"id":1}],"type":"DELETE"}"#);
    assert_eq!(written.value(1), br#"{"data":[{"id":null}],"type":"INSERT"}"#);
    assert_eq!(encoder.encode(&rows.slice(0, 1)).unwrap().value(0), br#"{"data":[{"id":1}],"type":"INSERT"}"#);
    let payloads: Vec<Option<&str>> = written.iter().map(|p| Some(std::str::from_utf8(p.unwrap()).unwrap())).collect();
    let (back, _) = decoded(&mut decoder(&[0], &[]), &payloads);
    assert_eq!(back, ["0 -D | 1 |", "1 +I | |"]);
}

//! Every function, through SQL: over literals, over columns of all three kinds of string with NULLs, and refused.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Int32Array, Int64Array, LargeStringArray, RecordBatch, StringArray, StringViewArray,
    TimestampMillisecondArray,
};
use arrow::util::display::array_value_to_string;
use datafusion::config::Dialect;
use datafusion::logical_expr::LogicalPlan;
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::Statement;

use crate::error::{Error, Kind, Result};

/// A session with our functions and a table `t` of three rows, the second of which is NULL but for its id.
fn session() -> SessionContext {
    let mut context = SessionContext::new();
    super::register(&mut context).unwrap();
    let text = [Some("2024-02-29 13:05:09"), None, Some("nonsense")];
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("id", Arc::new(Int32Array::from(vec![1, 2, 3]))),
        ("s", Arc::new(StringArray::from_iter(text))),
        ("v", Arc::new(StringViewArray::from_iter(text))),
        ("l", Arc::new(LargeStringArray::from_iter(text))),
        ("n", Arc::new(Int64Array::from(vec![Some(7), None, Some(-7)]))),
        ("b", Arc::new(BooleanArray::from(vec![Some(true), None, Some(false)]))),
        ("ts", Arc::new(TimestampMillisecondArray::from(vec![Some(1_709_211_909_123), None, Some(-1)]))),
        ("p", Arc::new(StringArray::from_iter([Some("yyyy/MM"), None, Some("%d.%m.%Y")]))),
        ("j", Arc::new(StringArray::from_iter([Some(r#"{"a": {"b": [1, "x"]}, "c": null}"#), None, Some("{")]))),
    ];
    let nullable = columns.into_iter().map(|(name, array)| (name, array, true));
    context.register_batch("t", RecordBatch::try_from_iter_with_nullable(nullable).unwrap()).unwrap();
    context
}

/// The plan of a query, rewritten.
async fn plan(context: &SessionContext, sql: &str) -> Result<LogicalPlan> {
    let state = context.state();
    let mut statement = state.sql_to_statement(sql, &Dialect::Generic)?;
    if let Statement::Statement(statement) = &mut statement {
        super::rewrite(statement.as_mut());
    }
    Ok(state.statement_to_plan(statement).await?)
}

/// The rows of a query's first column, as they are printed.
async fn rows(context: &SessionContext, sql: &str) -> Result<Vec<String>> {
    let plan = plan(context, sql).await?;
    let mut printed = Vec::new();
    for batch in context.execute_logical_plan(plan).await?.collect().await? {
        let column = batch.column(0);
        for row in 0..batch.num_rows() {
            printed.push(if column.is_null(row) { "NULL".into() } else { array_value_to_string(column, row)? });
        }
    }
    Ok(printed)
}

/// Computes each expression and fails with all those that differ.
async fn check(table: &[(&str, &str)], from: &str) {
    let context = session();
    let mut wrong = Vec::new();
    for (expression, expected) in table {
        let found = match rows(&context, &format!("SELECT {expression} {from}")).await {
            Ok(found) => found.join(" | "),
            Err(error) => error.chain(),
        };
        if found != *expected {
            wrong.push(format!("{expression}\n    expected {expected}\n    found    {found}"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[tokio::test]
async fn over_literals() {
    let table = [
        ("date_format(TIMESTAMP '2024-02-29 13:05:09.123', 'yyyy-MM-dd HH:mm:ss.SSS')", "2024-02-29 13:05:09.123"),
        ("date_format(TIMESTAMP '2024-02-29 13:05:09', 'EEE, d MMM yy, h a')", "Thu, 29 Feb 24, 1 PM"),
        ("date_format(DATE '2024-02-29', 'yyyy-MM-dd''T''HH')", "2024-02-29T00"),
        ("date_format(TIMESTAMP '2024-02-29 13:05:09', '%Y!')", "2024!"),
        ("date_format('2024-02-29 13:05:09', 'yyyyMMdd')", "20240229"),
        ("date_format(NULL, 'yyyy')", "NULL"),
        ("to_timestamp('29.02.2024 13:05', 'dd.MM.yyyy HH:mm')", "2024-02-29T13:05:00"),
        ("to_timestamp('9999-12-31 23:59:59', 'yyyy-MM-dd HH:mm:ss')", "9999-12-31T23:59:59"),
        ("to_timestamp('30.02.2024', 'dd.MM.yyyy')", "NULL"),
        ("to_timestamp('29.02.2024 13:05', '%d.%m.%Y %H:%M')", "2024-02-29T13:05:00"),
        ("to_timestamp('2024-02-29T13:05:00Z')", "2024-02-29T13:05:00"),
        ("to_date('29.02.2024', 'dd.MM.yyyy')", "2024-02-29"),
        ("to_date('29.02.2024', '%d.%m.%Y')", "2024-02-29"),
        ("to_date('2024-02-29')", "2024-02-29"),
        ("to_date('x', 'dd.MM.yyyy')", "NULL"),
        ("unix_timestamp('1970-01-02 00:00:01')", "86401"),
        ("unix_timestamp('1970/01/02', 'yyyy/MM/dd')", "86400"),
        ("from_unixtime(86401)", "1970-01-02 00:00:01"),
        ("from_unixtime(86401, 'yyyy')", "1970"),
        ("from_unixtime(86401, '%d')", "02"),
        ("to_timestamp_ltz(1709211909, 0)", "2024-02-29T13:05:09Z"),
        ("to_timestamp_ltz(1709211909123, 3)", "2024-02-29T13:05:09.123Z"),
        ("convert_tz('1970-01-01 00:00:00', 'UTC', 'America/Los_Angeles')", "1969-12-31 16:00:00"),
        ("convert_tz('2024-03-10 02:30:00', 'America/New_York', 'GMT+8')", "2024-03-10 15:30:00"),
        ("convert_tz('x', 'UTC', '+08:00')", "NULL"),
        ("year(DATE '2024-02-29')", "2024"),
        ("quarter(DATE '2024-05-29')", "2"),
        ("month(TIMESTAMP '2024-02-29 13:05:09')", "2"),
        ("week(DATE '2024-01-01')", "1"),
        ("dayofyear(DATE '2024-02-29')", "60"),
        ("dayofmonth(DATE '2024-02-29')", "29"),
        ("dayofweek(DATE '2024-03-03')", "1"),
        ("hour(TIMESTAMP '2024-02-29 13:05:09')", "13"),
        ("minute(TIMESTAMP '2024-02-29 13:05:09')", "5"),
        ("second(TIMESTAMP '2024-02-29 13:05:09')", "9"),
        ("hour(TIME '13:05:09')", "13"),
        ("FLOOR(TIMESTAMP '2024-02-29 13:05:09' TO HOUR)", "2024-02-29T13:00:00"),
        ("CEIL(TIMESTAMP '2024-02-29 13:05:09' TO HOUR)", "2024-02-29T14:00:00"),
        ("CEIL(TIMESTAMP '2024-02-29 13:00:00' TO HOUR)", "2024-02-29T13:00:00"),
        ("CEIL(TIMESTAMP '1969-12-31 13:00:01' TO MINUTE)", "1969-12-31T13:01:00"),
        ("CEIL(TIMESTAMP '2024-12-29 13:00:00' TO QUARTER)", "2025-01-01T00:00:00"),
        ("CEIL(DATE '9999-12-01' TO MONTH)", "9999-12-01T00:00:00"),
        ("CEIL(DATE '2024-02-29' TO WEEK)", "2024-03-04T00:00:00"),
        ("FLOOR(1.7)", "1.0"),
        ("TIMESTAMPADD(MONTH, 1, TIMESTAMP '2024-01-31 10:00:00')", "2024-02-29T10:00:00"),
        ("TIMESTAMPADD(WEEK, -1, DATE '2024-01-01')", "2023-12-25"),
        ("TIMESTAMPADD(SECOND, 90, DATE '2024-01-01')", "2024-01-01T00:01:30"),
        ("TIMESTAMPDIFF(SECOND, TIMESTAMP '2024-01-01 00:00:00', TIMESTAMP '2024-01-01 00:01:30.9')", "90"),
        ("TIMESTAMPDIFF(MONTH, DATE '2024-01-31', DATE '2024-03-30')", "1"),
        ("TIMESTAMPDIFF(YEAR, DATE '2024-02-29', DATE '2020-03-01')", "-3"),
        ("TIMESTAMPDIFF(DAY, NULL, DATE '2020-03-01')", "NULL"),
        ("TIMESTAMPDIFF(MINUTE, TIMESTAMPADD(HOUR, 1, DATE '2024-01-01'), DATE '2024-01-01')", "-60"),
        ("mod(7, 3)", "1"),
        ("mod(-7.5, 2)", "-1.5"),
        ("ceiling(1.2)", "2.0"),
        ("truncate(42.738, 2)", "42.73"),
        ("sign(-3)", "-1.0"),
        ("startswith('abc', 'ab')", "true"),
        ("endswith('abc', 'bc')", "true"),
        ("locate('ß', 'äößß')", "3"),
        ("locate('ß', 'äößß', 4)", "4"),
        ("locate('ß', 'äößß', 9)", "0"),
        ("locate('x', NULL)", "NULL"),
        ("typeof(1)", "BIGINT"),
        ("typeof('a')", "STRING"),
        ("typeof(make_array(1.5))", "ARRAY<DOUBLE>"),
        ("typeof(str_to_map('a=1'))", "MAP<STRING, STRING>"),
        ("typeof(to_timestamp('2024', 'yyyy'))", "TIMESTAMP(6)"),
        ("typeof(to_timestamp_ltz(1))", "TIMESTAMP_LTZ(3)"),
        ("if(1 > 2, 'a', 'b')", "b"),
        ("if(NULL, 1, 2.5)", "2.5"),
        ("if(true, 1, 1 / 0)", "1"),
        ("split_index('a,b,,c', ',', 2)", ""),
        ("split_index('a,b', ',', 2)", "NULL"),
        ("split_index('a,b', ',', -1)", "NULL"),
        ("regexp('order-17', '[0-9]+$')", "true"),
        ("regexp_extract('order-17', '([a-z]+)-([0-9]+)', 2)", "17"),
        ("regexp_extract('order-17', '[0-9]')", "1"),
        ("regexp_extract('order-17', '[0-9]', 3)", "NULL"),
        ("str_to_map('a=1,b=2,a=3,c')", "{a: 3, b: 2, c: }"),
        ("str_to_map('a:1|b:2', '\\|', ':')", "{a: 1, b: 2}"),
        ("json_value('{\"a\": {\"b\": [1, \"x\"]}}', '$.a.b[1]')", "x"),
        ("json_value('{\"a b\": 1.50}', '$[''a b'']')", "1.5"),
        ("json_value('{\"a\": {}}', '$.a')", "NULL"),
        ("json_value('{\"a\": 1} x', '$.a')", "NULL"),
        ("json_value('{\"a\": 1, \"a\": true}', 'lax $.a')", "true"),
        ("json_query('{\"z\": [ 1, null, {\"q\": \"\\\"\"} ], \"a\": 1}', '$')", r#"{"z":[1,null,{"q":"\""}],"a":1}"#),
        ("json_query('{\"a\": 1}', '$.a')", "NULL"),
        ("json_query('[[], {}]', '$[0]')", "[]"),
        ("json_exists('{\"a\": null}', '$.a')", "true"),
        ("json_exists('{\"a\": [1]}', '$.a[1]')", "false"),
        ("json_exists('{', '$.a')", "false"),
        ("sha2('abc', 256)", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        ("sha1('abc')", "a9993e364706816aba3e25717850c26c9cd0d89d"),
        ("sha1(x'616263')", "a9993e364706816aba3e25717850c26c9cd0d89d"),
        ("unix_timestamp() BETWEEN 1700000000 AND 9000000000", "true"),
        ("localtimestamp > '2020-01-01'", "true"),
        ("proctime() > '2020-01-01T00:00:00Z'", "true"),
        ("sha224('abc')", "23097d223405d8228642a477bda255b32aadbce4bda0b3f7e36c9da7"),
        ("sha256(x'616263')", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        ("hex(255)", "FF"),
        ("hex(-1)", "FFFFFFFFFFFFFFFF"),
        ("hex('abc')", "616263"),
        ("hex(unhex('FAB'))", "0FAB"),
        ("unhex('xy')", "NULL"),
        ("bin(10)", "1010"),
        ("parse_url('http://u:p@a.com/x/y?k=1&q=%20#r', 'HOST')", "a.com"),
        ("parse_url('http://u:p@a.com/x/y?k=1&q=%20#r', 'USERINFO')", "u:p"),
        ("parse_url('http://u:p@a.com/x/y?k=1&q=%20#r', 'AUTHORITY')", "u:p@a.com"),
        ("parse_url('http://u:p@a.com/x/y?k=1&q=%20#r', 'FILE')", "/x/y?k=1&q=%20"),
        ("parse_url('http://u:p@a.com/x/y?k=1&q=%20#r', 'QUERY', 'q')", "%20"),
        ("parse_url('http://u:p@a.com/x/y?k=1&q=%20#r', 'REF')", "r"),
        ("parse_url('nothing', 'HOST')", "NULL"),
        ("url_encode('a b/ä')", "a+b%2F%C3%A4"),
        ("url_decode('a+b%2F%C3%A4')", "a b/ä"),
        ("url_decode('%4')", "NULL"),
    ];
    check(&table, "").await;
}

#[tokio::test]
async fn over_columns_with_nulls() {
    let table = [
        ("date_format(ts, 'HH:mm:ss.SSS')", "13:05:09.123 | NULL | 23:59:59.999"),
        ("date_format(ts, p)", "2024/02 | NULL | 31.12.1969"),
        ("date_format(ts, '%Y')", "2024 | NULL | 1969"),
        ("to_timestamp(s, 'yyyy-MM-dd HH:mm:ss')", "2024-02-29T13:05:09 | NULL | NULL"),
        ("to_timestamp(v, 'yyyy-MM-dd HH:mm:ss')", "2024-02-29T13:05:09 | NULL | NULL"),
        ("to_timestamp(l, 'yyyy-MM-dd HH:mm:ss')", "2024-02-29T13:05:09 | NULL | NULL"),
        ("to_date(v, 'yyyy-MM-dd HH:mm:ss')", "2024-02-29 | NULL | NULL"),
        ("unix_timestamp(l)", "1709211909 | NULL | NULL"),
        ("from_unixtime(n)", "1970-01-01 00:00:07 | NULL | 1969-12-31 23:59:53"),
        ("from_unixtime(0, p)", "1970/01 | NULL | 01.01.1970"),
        ("to_timestamp_ltz(n)", "1970-01-01T00:00:00.007Z | NULL | 1969-12-31T23:59:59.993Z"),
        ("convert_tz(v, 'UTC', 'Asia/Shanghai')", "2024-02-29 21:05:09 | NULL | NULL"),
        ("year(ts)", "2024 | NULL | 1969"),
        ("dayofweek(ts)", "5 | NULL | 4"),
        ("FLOOR(ts TO DAY)", "2024-02-29T00:00:00 | NULL | 1969-12-31T00:00:00"),
        ("CEIL(ts TO SECOND)", "2024-02-29T13:05:10 | NULL | 1970-01-01T00:00:00"),
        ("TIMESTAMPADD(DAY, n, ts)", "2024-03-07T13:05:09.123 | NULL | 1969-12-24T23:59:59.999"),
        ("TIMESTAMPDIFF(DAY, ts, TIMESTAMP '2024-03-01 00:00:00')", "0 | NULL | 19783"),
        ("mod(n, 4)", "3 | NULL | -3"),
        ("mod(10, n)", "3 | NULL | 3"),
        ("locate('s', v)", "0 | NULL | 4"),
        ("locate('0', l, id)", "2 | NULL | 0"),
        ("startswith(v, 'non')", "false | NULL | true"),
        ("split_index(v, '-', id)", "02 | NULL | NULL"),
        ("regexp(l, '^n')", "false | NULL | true"),
        ("regexp_extract(v, '(..)n', 1)", "NULL | NULL | no"),
        ("regexp_extract(s, 'o(.)', 1)", "NULL | NULL | n"),
        ("str_to_map(s, '-', ':')['02']", "NULL | NULL | NULL"),
        ("json_value(j, '$.a.b[0]')", "1 | NULL | NULL"),
        ("json_query(j, '$.a')", r#"{"b":[1,"x"]} | NULL | NULL"#),
        ("json_exists(j, '$.c')", "true | NULL | false"),
        ("hex(n)", "7 | NULL | FFFFFFFFFFFFFFF9"),
        ("hex(v)", "323032342D30322D32392031333A30353A3039 | NULL | 6E6F6E73656E7365"),
        ("bin(id)", "1 | 10 | 11"),
        ("split_index(sha2(v, 224), 'zz', 0) = sha224(s)", "true | NULL | true"),
        ("sha1(v) = sha1(s)", "true | NULL | true"),
        ("url_decode(url_encode(v)) = l", "true | NULL | true"),
        ("parse_url(v, 'HOST')", "NULL | NULL | NULL"),
        ("if(b, s, v)", "2024-02-29 13:05:09 | NULL | nonsense"),
        ("if(b, n, 0.5)", "7.0 | 0.5 | 0.5"),
        ("typeof(v)", "STRING | STRING | STRING"),
        ("typeof(ts)", "TIMESTAMP(3) | TIMESTAMP(3) | TIMESTAMP(3)"),
    ];
    check(&table, "FROM t ORDER BY id").await;
}

#[tokio::test]
async fn json_by_keys() {
    let table = [
        ("json_get('{\"a\": {\"b\": [1, \"x\"]}}', 'a', 'b')", r#"[1,"x"]"#),
        ("json_get('{\"a\": \"x\"}', 'a')", r#""x""#),
        ("json_get('{\"a\": null}', 'a')", "null"),
        ("json_get('{\"a\": 1}', 'b')", "NULL"),
        ("json_get('{\"a\": 1}', 'a', 'b')", "NULL"),
        ("json_get('{\"0\": 1}', 0)", "NULL"),
        ("json_get('[1]', '0')", "NULL"),
        ("json_get('[1]', 1)", "NULL"),
        ("json_get('[1]', -1)", "NULL"),
        ("json_get('{\"a\": 1, \"a\": 2}', 'a')", "2"),
        ("json_get('{\"a\": 1} x', 'a')", "NULL"),
        ("json_get(NULL, 'a')", "NULL"),
        ("json_get('{\"a\": 1}', NULL)", "NULL"),
        ("json_get_json('{\"a\": \"say \\\"hi\\\"\"}', 'a')", r#""say \"hi\"""#),
        ("json_get_json('[[ ], { }]', 1)", "{}"),
        ("json_as_text('{\"a\": \"say \\\"hi\\\"\"}', 'a')", r#"say "hi""#),
        ("json_as_text('[1.50, true, {\"a\": \"b\"}]', 0)", "1.5"),
        ("json_as_text('[1.50, true, {\"a\": \"b\"}]', 1)", "true"),
        ("json_as_text('[1.50, true, {\"a\": \"b\"}]', 2)", r#"{"a":"b"}"#),
        ("json_as_text('[null]', 0)", "NULL"),
        ("json_as_text('{\"ключ\": {\"日本\": \"✓\"}}', 'ключ', '日本')", "✓"),
        ("json_as_text('{\"\\u00e4 b\": 1}', 'ä b')", "1"),
        ("json_as_text('{\"\": 1}', '')", "1"),
        ("json_get_str('[\"x\", 1, null, [\"x\"]]', 0)", "x"),
        ("json_get_str('[\"x\", 1, null, [\"x\"]]', 1)", "NULL"),
        ("json_get_str('[\"x\", 1, null, [\"x\"]]', 2)", "NULL"),
        ("json_get_str('[\"x\", 1, null, [\"x\"]]', 3)", "NULL"),
        ("json_get_int('[9223372036854775807]', 0)", "9223372036854775807"),
        ("json_get_int('[-9223372036854775808]', 0)", "-9223372036854775808"),
        ("json_get_int('[9223372036854775808]', 0)", "NULL"),
        ("json_get_int('[1.5]', 0)", "NULL"),
        ("json_get_int('[\"1\"]', 0)", "NULL"),
        ("json_get_float('[1.5]', 0)", "1.5"),
        ("json_get_float('[-2]', 0)", "-2.0"),
        ("json_get_float('[\"1.5\"]', 0)", "NULL"),
        ("json_get_bool('{\"a\": false}', 'a')", "false"),
        ("json_get_bool('{\"a\": \"true\"}', 'a')", "NULL"),
        ("json_contains('{\"a\": [null]}', 'a', 0)", "true"),
        ("json_contains('{\"a\": [null]}', 'a', 1)", "false"),
        ("json_contains('{', 'a')", "false"),
        ("json_contains(NULL, 'a')", "NULL"),
        ("json_contains('{\"a\": 1}', NULL)", "NULL"),
        ("json_length('[1, [2, 3], {}]')", "3"),
        ("json_length('{}')", "0"),
        ("json_length('{\"a\": {\"b\": 1, \"c\": [1, 2]}}', 'a')", "2"),
        ("json_length('{\"a\": \"abc\"}', 'a')", "NULL"),
        ("json_length('[1')", "NULL"),
        ("typeof(json_get_int('[1]', 0))", "BIGINT"),
        ("typeof(json_get_float('[1]', 0))", "DOUBLE"),
        ("typeof(json_get_bool('[1]', 0))", "BOOLEAN"),
        ("typeof(json_length('[1]'))", "BIGINT"),
        ("'{\"a\": {\"b\": [1, \"x\"]}}' -> 'a' -> 'b'", r#"[1,"x"]"#),
        ("'{\"a\": {\"b\": [1, \"x\"]}}' -> 'a' -> 'b' ->> 1", "x"),
        ("('{\"a\": {\"b\": [1, \"x\"]}}' -> 'a') -> 'b' -> 1", r#""x""#),
        ("'{\"a\": \"[1, 2]\"}' ->> 'a' -> 1", "2"),
        ("'{\"a\": \"[1, 2]\"}' -> 'a' -> 1", "NULL"),
    ];
    check(&table, "").await;
}

#[tokio::test]
async fn json_by_keys_over_columns() {
    let table = [
        ("json_get(j, 'a')", r#"{"b":[1,"x"]} | NULL | NULL"#),
        ("json_get(j, 'c')", "null | NULL | NULL"),
        ("json_as_text(j, 'c')", "NULL | NULL | NULL"),
        ("json_get_str(j, 'a', 'b', 1)", "x | NULL | NULL"),
        ("json_get_int(j, 'a', 'b', 0)", "1 | NULL | NULL"),
        ("json_get_float(j, 'a', 'b', 0)", "1.0 | NULL | NULL"),
        ("json_get_bool(j, 'a', 'b', 0)", "NULL | NULL | NULL"),
        ("json_contains(j, 'c')", "true | NULL | false"),
        ("json_length(j)", "2 | NULL | NULL"),
        ("json_length(j, 'a', 'b')", "2 | NULL | NULL"),
        ("json_get_int('[5, 6, 7]', id)", "6 | 7 | NULL"),
        ("json_get_int('[5, 6, 7]', n)", "NULL | NULL | NULL"),
        ("json_as_text('{\"yyyy/MM\": [\"x\"]}', p, 0)", "x | NULL | NULL"),
        ("json_contains('{\"nonsense\": 1}', v)", "false | NULL | true"),
        ("json_contains('{\"nonsense\": 1}', l)", "false | NULL | true"),
        ("json_as_text(j, 'a', 'b', id)", "x | NULL | NULL"),
        ("j -> 'a' -> 'b' ->> id", "x | NULL | NULL"),
        ("j ->> 'a' -> 'b' -> 1", r#""x" | NULL | NULL"#),
    ];
    check(&table, "FROM t ORDER BY id").await;
}

#[test]
fn arrows_become_calls() {
    let table = [
        ("m -> 'k'", "json_get(m, 'k')"),
        ("m ->> 'k'", "json_as_text(m, 'k')"),
        ("a -> 'b' -> 0 ->> 'c'", "json_as_text(a, 'b', 0, 'c')"),
        ("((a -> 'b') -> k) -> -1", "json_get(a, 'b', k, -1)"),
        ("a ->> 'b' -> 'c'", "json_get(json_as_text(a, 'b'), 'c')"),
        ("a -> (b ->> 'c')", "json_get(a, (json_as_text(b, 'c')))"),
        ("json_get(a, 'b') -> 'c'", "json_get(a, 'b', 'c')"),
        ("json_get_str(a, 'b') -> 'c'", "json_get(json_get_str(a, 'b'), 'c')"),
        ("m ->> 'k' = 'v'", "json_as_text(m, 'k') = 'v'"),
        ("m -> 'k' IS NULL AND NOT m ->> 'l' <> 'v'", "json_get(m, 'k') IS NULL AND NOT json_as_text(m, 'l') <> 'v'"),
        ("a || b ->> 'k'", "json_as_text(a || b, 'k')"),
        ("upper(m ->> 'k')", "upper(json_as_text(m, 'k'))"),
    ];
    for (written, planned) in table {
        let mut expr = crate::sql::parse_expression(written).unwrap();
        super::rewrite_expr(&mut expr);
        assert_eq!(expr.to_string(), planned);
    }
}

#[tokio::test]
async fn a_filter_compares_what_arrows_find() {
    let mut query = crate::sql::parse_query("SELECT id FROM t WHERE j -> 'a' -> 'b' ->> 1 = 'x'").unwrap();
    super::rewrite(query.as_mut());
    assert_eq!(rows(&session(), &query.to_string()).await.unwrap(), ["1"]);
}

#[tokio::test]
async fn aggregates_under_flinks_names() {
    let table = [
        ("LISTAGG(CAST(id AS STRING))", "1,2,3"),
        ("LISTAGG(CAST(id AS STRING), '-')", "1-2-3"),
        ("approx_count_distinct(n)", "2"),
        ("collect(id)", "[1, 2, 3]"),
    ];
    check(&table, "FROM t").await;
}

#[tokio::test]
async fn a_wrong_call_is_refused_while_it_is_planned() {
    let table = [
        ("date_format(ts, 'yyyy-QQ')", "QQ at position 6 is not supported"),
        ("to_timestamp(s, 'YYYY')", "not yyyy"),
        ("to_date(s, 'XXX')", "XXX at position 1"),
        ("from_unixtime(n, 'z')", "z at position 1"),
        ("unix_timestamp(n)", "unix_timestamp: argument 1 must be a string, not BIGINT"),
        ("to_timestamp_ltz(n, 6)", "not 6"),
        ("convert_tz(s, 'Mars', 'UTC')", "unknown time zone 'Mars'"),
        ("TIMESTAMPDIFF(SCORE, ts, ts)", "'score' is no unit of time"),
        ("timestampadd(concat(s, s), 1, ts)", "argument 1 must be a literal"),
        ("year(n)", "year: argument 1 must be a timestamp, a date or a time, not BIGINT"),
        ("split_index(s, ',')", "split_index takes 3 arguments, not 2"),
        ("regexp(s, '(')", "'(' is not a regular expression"),
        ("regexp_extract(s, '(?=a)')", "is not a regular expression"),
        ("json_value(j, '$.a[*]')", "position 4 is not understood"),
        ("json_value(j, 'a')", "position 1 is not understood"),
        ("json_get(j)", "json_get takes 2 or more arguments, not 1"),
        ("json_get(n, 'a')", "json_get: argument 1 must be a string, not BIGINT"),
        ("json_as_text(j, 'a', b)", "json_as_text: argument 3 must be a string or an integer, not BOOLEAN"),
        ("sha2(s, 1)", "one of the literals 224, 256, 384 and 512"),
        ("hex(b)", "not BOOLEAN"),
        ("parse_url(s, 'host')", "'host' is no part of an address"),
        ("mod(s, b)", "the arguments must be numbers, not STRING and BOOLEAN"),
        ("if(n, 1, 2)", "argument 1 must be a condition, not BIGINT"),
        ("session_start(n, INTERVAL '1' DAY) OVER (ORDER BY id)", "argument 1 must be a timestamp, not BIGINT"),
        ("session_end(ts) OVER (ORDER BY id)", "session_end takes 2 arguments, not 1"),
    ];
    let context = session();
    let mut wrong = Vec::new();
    for (expression, expected) in table {
        match plan(&context, &format!("SELECT {expression} FROM t")).await {
            Err(error) if error.kind() == Kind::Usage && error.chain().contains(expected) => {}
            Err(error) => wrong.push(format!("{expression}: {:?}: {}", error.kind(), error.chain())),
            Ok(_) => wrong.push(format!("{expression}: planned")),
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[tokio::test]
async fn a_wrong_gap_is_refused_before_a_row_is_read() {
    let literal = "session_start: argument 2 must be a literal such as INTERVAL '1' MINUTE";
    let table = [
        ("INTERVAL '1' MONTH", "session_start: argument 2 is in months or years, which have no fixed length"),
        ("INTERVAL '0' DAY", "session_start: argument 2 must be positive"),
        ("- INTERVAL '1' DAY", "session_start: argument 2 must be positive"),
        ("INTERVAL '1 microsecond'", "session_start: argument 2 is finer than TIMESTAMP(3)"),
        ("10", literal),
        ("n", literal),
        ("NULL", literal),
    ];
    let context = session();
    for (gap, expected) in table {
        let sql = format!("SELECT session_start(ts, {gap}) OVER (ORDER BY ts) FROM t");
        let plan = plan(&context, &sql).await.unwrap();
        let error = Error::from(context.state().create_physical_plan(&plan).await.unwrap_err());
        assert_eq!((error.kind(), error.to_string().as_str()), (Kind::Usage, expected), "{gap}");
    }
    let gap = "arrow_cast(10, 'Duration(Second)')";
    let sql = format!("SELECT session_end(ts, {gap}) OVER (ORDER BY ts) FROM t ORDER BY id");
    assert_eq!(rows(&context, &sql).await.unwrap(), ["2024-02-29T13:05:19.123", "NULL", "1970-01-01T00:00:09.999"]);
}

#[tokio::test]
async fn datafusions_own_part_follows_the_sessions_zone() {
    let context = session();
    context.sql("SET datafusion.execution.time_zone = 'UTC'").await.unwrap();
    let found = rows(&context, "SELECT typeof(to_timestamp('2024-02-29T13:05:00Z'))").await.unwrap();
    assert_eq!(found, ["TIMESTAMP_LTZ(9)"]);
}

#[tokio::test]
async fn a_wrong_pattern_in_a_row_ends_the_query() {
    let error = rows(&session(), "SELECT date_format(ts, s) FROM t").await.unwrap_err();
    assert!(error.chain().contains("date pattern \"nonsense\": n at position 1"), "{}", error.chain());
}

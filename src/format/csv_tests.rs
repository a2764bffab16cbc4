//! What csv reads and writes, one boundary a check.

use arrow::array::{Int64Array, StringViewArray};
use arrow::datatypes::{Int64Type, TimeUnit};
use arrow::util::pretty::pretty_format_batches;

use super::*;
use crate::connector::contract::fixture;

fn take(more: &[(&str, &str)]) -> Result<CsvOptions> {
    let table = fixture::with_options(more);
    CsvOptions::take("csv", &mut OptionReader::new(&table))
}

fn options(more: &[(&str, &str)]) -> CsvOptions {
    take(more).unwrap()
}

fn schema_of(types: &[DataType]) -> SchemaRef {
    let field = |(index, data_type): (usize, &DataType)| Field::new(format!("c{index}"), data_type.clone(), true);
    Arc::new(Schema::new(types.iter().enumerate().map(field).collect::<Vec<_>>()))
}

fn decode(schema: SchemaRef, options: &CsvOptions, lines: &[&str]) -> Decoded {
    let mut decoder = CsvDecoder::try_new(&Wanted::all(schema), options).unwrap();
    decoder.decode(&lines.iter().map(|line| Some(line.as_bytes())).collect()).unwrap()
}

/// The rows as text, each with its cells divided by bars.
fn shown(rows: &RecordBatch) -> Vec<String> {
    let table = pretty_format_batches(std::slice::from_ref(rows)).unwrap().to_string();
    let lines = table.lines().skip(3).take(rows.num_rows());
    lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

/// The texts that a line of `width` STRINGs holds, or what is wrong with it.
fn fields(line: &str, width: usize, options: &CsvOptions) -> std::result::Result<Vec<Option<String>>, String> {
    let decoded = decode(schema_of(&vec![DataType::Utf8View; width]), options, &[line]);
    if let Some(bad) = decoded.bad.into_iter().next() {
        return Err(bad.reason);
    }
    let text = |column: &ArrayRef| column.is_valid(0).then(|| column.as_string_view().value(0).to_string());
    Ok(decoded.rows.columns().iter().map(text).collect())
}

fn texts(texts: &[&str]) -> std::result::Result<Vec<Option<String>>, String> {
    Ok(texts.iter().map(|text| Some(text.to_string())).collect())
}

fn write(columns: Vec<(&str, ArrayRef)>, options: &CsvOptions) -> Result<Vec<String>> {
    let columns = columns.into_iter().map(|(name, column)| (name, column, true));
    let rows = RecordBatch::try_from_iter_with_nullable(columns).unwrap();
    let written = CsvEncoder::try_new(rows.schema(), options)?.encode(&rows)?;
    Ok(written.iter().map(|line| String::from_utf8(line.unwrap().to_vec()).unwrap()).collect())
}

#[test]
fn a_line_is_divided_as_others_do() {
    let plain = options(&[]);
    assert_eq!(fields("a,b", 2, &plain), texts(&["a", "b"]));
    assert_eq!(fields("a,b\r\n", 2, &plain), texts(&["a", "b"]));
    assert_eq!(fields(" a ,ü", 2, &plain), texts(&[" a ", "ü"]));
    assert_eq!(fields(r##""a,""b""","c""##, 2, &plain), texts(&["a,\"b\"", "c"]));
    assert_eq!(fields("\"two\nlines\",\"\"", 2, &plain), texts(&["two\nlines", ""]));
    assert_eq!(fields(r##"5" disk,"""""##, 2, &plain), texts(&["5\" disk", "\""]));
    assert_eq!(fields(",", 2, &plain), texts(&["", ""]));
    assert_eq!(fields("", 1, &plain), texts(&[""]));
    assert_eq!(fields("\n", 1, &plain), texts(&[""]));
}

#[test]
fn characters_are_yours_to_choose() {
    let tabs = options(&[("csv.field-delimiter", "\\t"), ("csv.quote-character", "'")]);
    assert_eq!(fields("a,\"\t'b\t''c'''", 2, &tabs), texts(&["a,\"", "b\t'c'"]));
    for (text, byte) in [("\\u0001", '\u{1}'), ("\u{1}", '\u{1}'), ("\\u0009", '\t'), ("\\u007C", '|')] {
        let delimited = options(&[("csv.field-delimiter", text)]);
        assert_eq!(fields(&format!("a{byte}b"), 2, &delimited), texts(&["a", "b"]), "{text}");
    }
    let unquoted = options(&[("csv.disable-quote-character", "true"), ("csv.escape-character", "\\")]);
    assert_eq!(fields(r#""a",b\,\\\n\ü"#, 2, &unquoted), texts(&["\"a\"", "b,\\\nü"]));
    let escaped = options(&[("csv.escape-character", "\\")]);
    assert_eq!(fields(r#""a\"b","c""d""#, 2, &escaped), texts(&["a\"b", "c\"d"]));
    assert_eq!(fields(r"a,b\", 2, &escaped).unwrap_err(), "its last character escapes nothing");
}

#[test]
fn a_line_with_too_few_or_too_many_fields_is_bad() {
    let plain = options(&[]);
    assert_eq!(fields("a", 2, &plain).unwrap_err(), "it ends after field 1 of 2");
    assert_eq!(fields("a,b,", 2, &plain).unwrap_err(), "it has 3 fields instead of 2");
    assert_eq!(fields("", 2, &plain).unwrap_err(), "it ends after field 1 of 2");
    assert_eq!(fields("a,b\nc,d", 2, &plain).unwrap_err(), "it holds more than one line");
    assert_eq!(fields("a,\"b", 2, &plain).unwrap_err(), "a quote is not closed");
    assert_eq!(
        fields("\"a\"b,c", 2, &plain).unwrap_err(),
        "it has text between a closing quote and the next delimiter"
    );
}

#[test]
fn every_type_there_and_back() {
    let types = [
        DataType::Int64,
        DataType::Float64,
        DataType::Decimal128(10, 2),
        DataType::Boolean,
        DataType::Date32,
        DataType::Timestamp(TimeUnit::Millisecond, None),
        DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())),
        DataType::Utf8View,
        DataType::Binary,
    ];
    let schema = schema_of(&types);
    let line = r#"-7,1.5,0.10,true,2026-01-02,2026-01-02 03:04:05.678,2026-01-02 03:04:05Z,"a,b",AQI="#;
    let decoded = decode(Arc::clone(&schema), &options(&[]), &[line, ",,,,,,,,"]);
    assert_eq!(decoded.bad, vec![]);
    assert!(decoded.rows.columns()[..7].iter().all(|column| column.is_null(1)), "{:?}", shown(&decoded.rows));
    assert!(decoded.rows.columns()[7..].iter().all(|column| column.is_valid(1)));
    let written = CsvEncoder::try_new(schema, &options(&[])).unwrap().encode(&decoded.rows).unwrap();
    assert_eq!(std::str::from_utf8(written.value(0)).unwrap(), line);
    assert_eq!(written.value(1), b",,,,,,,,");
}

#[test]
fn values_are_cast_as_sql_casts_them() {
    let types =
        [DataType::Int64, DataType::Boolean, DataType::Timestamp(TimeUnit::Second, None), DataType::Decimal128(4, 1)];
    let decoded = decode(schema_of(&types), &options(&[]), &[" 12 ,yes,2026-01-02T03:04:05+01:00, 1.5"]);
    assert_eq!(shown(&decoded.rows), ["| 12 | true | 2026-01-02T02:04:05 | 1.5 |"]);
}

#[test]
fn one_bad_line_never_costs_its_neighbours() {
    let schema = schema_of(&[DataType::Int64, DataType::Binary]);
    let good = Some(&b"1,AQI="[..]);
    for (bad, reason) in [
        (Some(&b"x,AQI="[..]), "'x' cannot be BIGINT, which column c0 is"),
        (Some(&b"x,!"[..]), "'x' cannot be BIGINT, which column c0 is"),
        (Some(&b"2,!"[..]), "'!' cannot be BYTES, which column c1 is"),
        (Some(&b"99999999999999999999,"[..]), "'99999999999999999999' cannot be BIGINT, which column c0 is"),
        (Some(&b"2"[..]), "it ends after field 1 of 2"),
        (Some(&b"2,\xff"[..]), "it is not UTF-8"),
        (None, NO_PAYLOAD),
    ] {
        let mut decoder = CsvDecoder::try_new(&Wanted::all(Arc::clone(&schema)), &options(&[])).unwrap();
        let decoded = decoder.decode(&BinaryArray::from(vec![good, bad, good])).unwrap();
        assert_eq!(decoded.bad, [BadPayload { index: 1, reason: reason.into() }]);
        assert_eq!(decoded.rows.column(0).as_primitive::<Int64Type>().values(), &[1, 1]);
    }
}

#[test]
fn bad_lines_are_told_in_order() {
    let decoded = decode(schema_of(&[DataType::Int64]), &options(&[]), &["a", "1", "2,3", "b", "4"]);
    assert_eq!(decoded.bad.iter().map(|bad| bad.index).collect::<Vec<_>>(), [0, 2, 3]);
    assert_eq!(decoded.rows.column(0).as_primitive::<Int64Type>(), &Int64Array::from(vec![1, 4]));
}

#[test]
fn a_comment_is_neither_a_row_nor_bad() {
    let comments = options(&[("csv.allow-comments", "true")]);
    let lines = ["#1", "1", "# 2,\"", "x", " #", "2", "#"];
    let decoded = decode(schema_of(&[DataType::Int64]), &comments, &lines);
    assert_eq!(decoded.rows.column(0).as_primitive::<Int64Type>().values(), &[1, 2]);
    assert_eq!(decoded.origins, Some(vec![1, 5]));
    assert_eq!(decoded.bad.iter().map(|bad| bad.index).collect::<Vec<_>>(), [3, 4]);
    assert_eq!(decode(schema_of(&[DataType::Int64]), &options(&[]), &lines).bad.len(), 5);
    let escaped = [("csv.disable-quote-character", "true"), ("csv.escape-character", "\\")];
    for more in [&[][..], &escaped] {
        let options = options(&[more, &[("csv.allow-comments", "true")]].concat());
        let column = Arc::new(StringViewArray::from(vec!["#a", "b#"])) as ArrayRef;
        for (line, value) in write(vec![("a", column)], &options).unwrap().iter().zip(["#a", "b#"]) {
            assert_eq!(fields(line, 1, &options), texts(&[value]), "{line}");
        }
    }
}

#[test]
fn columns_keep_their_places_whichever_are_asked_for() {
    let all = schema_of(&[DataType::Int64, DataType::Utf8View, DataType::Int64]);
    let decode = |projection: Vec<usize>, lines: &[&str]| {
        let wanted = Wanted { all: Arc::clone(&all), projection };
        let mut decoder = CsvDecoder::try_new(&wanted, &options(&[])).unwrap();
        decoder.decode(&lines.iter().map(|line| Some(line.as_bytes())).collect()).unwrap()
    };
    assert_eq!(shown(&decode(vec![2, 1], &["no number,b,3"]).rows), ["| 3 | b |"]);
    let none = decode(vec![], &["x,y,z", "x"]);
    assert_eq!((none.rows.num_rows(), none.bad.len()), (1, 1));
}

#[test]
fn null_is_what_the_literal_says() {
    let schema = schema_of(&[DataType::Utf8View, DataType::Int64]);
    let literal = options(&[("csv.null-literal", "NULL")]);
    let decoded = decode(Arc::clone(&schema), &literal, &["NULL, NULL", ",1", "a,"]);
    assert_eq!(shown(&decoded.rows), ["| | |", "| | 1 |", "| a | |"]);
    assert_eq!((decoded.rows.column(0).is_null(0), decoded.rows.column(0).is_null(1)), (true, false));
    assert_eq!(decoded.bad.len(), 0);
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("a", Arc::new(StringViewArray::from(vec![None, Some("")])) as ArrayRef),
        ("b", Arc::new(Int64Array::from(vec![None, Some(1)])) as ArrayRef),
    ];
    assert_eq!(write(columns.clone(), &literal).unwrap(), ["NULL,NULL", ",1"]);
    assert_eq!(write(columns, &options(&[])).unwrap(), [",", ",1"]);
}

#[test]
fn what_is_written_is_read_again() {
    let values = ["", "plain", "a,b", "\"", "say \"hi\"\\", "two\r\nlines", "\\", "tab\t", "'"];
    let quoted = vec![
        vec![],
        vec![("csv.quote-character", "'"), ("csv.field-delimiter", "\\t")],
        vec![("csv.escape-character", "\\")],
        vec![("csv.escape-character", "\"")],
        vec![("csv.disable-quote-character", "true"), ("csv.escape-character", "\\")],
    ];
    for more in quoted {
        let options = options(&more);
        let column = Arc::new(StringViewArray::from(values.to_vec())) as ArrayRef;
        let lines = write(vec![("a", Arc::clone(&column)), ("b", Arc::clone(&column))], &options).unwrap();
        for (line, value) in lines.iter().zip(values) {
            assert_eq!(fields(line, 2, &options), texts(&[value, value]), "{more:?}: {line}");
        }
    }
    let empty = Arc::new(StringViewArray::from(vec![""])) as ArrayRef;
    assert_eq!(write(vec![("a", empty)], &options(&[])).unwrap(), ["\"\""]);
    let unquoted = options(&[("csv.disable-quote-character", "true")]);
    let error =
        write(vec![("a", Arc::new(StringViewArray::from(vec!["x", "a,b"])) as ArrayRef)], &unquoted).unwrap_err();
    assert!(error.to_string().starts_with("row 1: column a: it holds the delimiter"), "{error}");
}

#[test]
fn what_makes_no_sense_is_refused() {
    for (more, reason) in [
        (vec![("csv.field-delimiter", ";;")], "option 'csv.field-delimiter': ';;' is not one ASCII character"),
        (vec![("csv.field-delimiter", "\"")], "'csv.field-delimiter' is also the quote or the escape character"),
        (vec![("csv.disable-quote-character", "true"), ("csv.quote-character", "'")], "'csv.quote-character' is given"),
        (vec![("csv.allow-comments", "true"), ("csv.quote-character", "#")], "'csv.allow-comments': a comment begins"),
    ] {
        let error = take(&more).unwrap_err().to_string();
        assert!(error.starts_with(&format!("table t: {reason}")), "{error}");
    }
    for wrong in ["\\u00e4", "\\u1F60", "\\u000A", "\\u+001", "\\u1", "\\u00011", "\\n", "ä", ""] {
        let error = take(&[("csv.field-delimiter", wrong)]).unwrap_err().to_string();
        assert!(error.contains(&format!("'{wrong}' is not one ASCII character")), "{error}");
    }
    let list = DataType::List(Arc::new(Field::new_list_field(DataType::Int64, true)));
    let error = CsvDecoder::try_new(&Wanted::all(schema_of(&[list])), &options(&[])).unwrap_err().to_string();
    assert_eq!(error, "column c0: csv cannot hold ARRAY<BIGINT>; use STRING there, or 'format' = 'json'");
}

#[test]
fn arbitrary_bytes_never_panic() {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize
    };
    let alphabet = ["\"", ",", "\\", "\n", "\r", "a", "ü", "1", " "];
    let escaped = options(&[("csv.escape-character", "\\")]);
    for _ in 0..2000 {
        let line: String = (0..next() % 12).map(|_| alphabet[next() % alphabet.len()]).collect();
        for options in [&options(&[]), &escaped] {
            let decoded = decode(schema_of(&[DataType::Utf8View, DataType::Int64]), options, &[&line, "a,1"]);
            assert_eq!(decoded.rows.num_rows() + decoded.bad.len(), 2, "{line:?}");
        }
    }
}

//! Whatever may lie in a topic: good messages, known by construction, between all sorts of others.
//!
//! The oracle is each message by itself: among others it must give the same rows, or be as bad. So a batch gives the
//! rows of its good messages, in order, whatever lies between them; and the others are skipped, or are dead letters, or
//! the first of them is named. A good message must give the rows that it was made of.
//!
//! With MILLSTREAM_FUZZ set, so many batches are drawn for each format.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, TimeUnit};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use proptest::prelude::*;
use proptest::sample::{Index, subsequence};
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};

use super::{FORMATS, FormatOptions};
use crate::catalog::{Column, ColumnKind};
use crate::connector::contract::{fixture, lines};
use crate::connector::dead_letters::DeadLetters;
use crate::connector::messages::{Decoding, MessageBatch};
use crate::connector::{Fingerprint, MetadataKey, Partition, PartitionReport, ReadReport};
use crate::error::Result;
use crate::plan::changes::RowKind;
use crate::sql::options::OptionReader;

/// The columns that a table may have, and how many of them are not nested.
const ALL: &[&str] =
    &["long", "tiny", "ratio", "amount", "huge", "moment", "day", "flag", "text", "bytes", "list", "map", "row"];
const FLAT: usize = 10;

/// Those that can be all of a payload.
const RAW: &[&str] = &["text", "bytes", "long", "flag"];

/// The offset of a batch's first message.
const FIRST: u64 = 10;

fn columns_of(format: &str) -> &'static [&'static str] {
    match format {
        "raw" => RAW,
        "csv" => &ALL[..FLAT],
        _ => ALL,
    }
}

fn type_of(column: &str) -> DataType {
    let field = |name: &str, data_type, nullable| Field::new(name, data_type, nullable);
    match column {
        "long" => DataType::Int64,
        "tiny" => DataType::Int8,
        "ratio" => DataType::Float64,
        "amount" => DataType::Decimal128(20, 4),
        "huge" => DataType::Decimal256(60, 2),
        "moment" => DataType::Timestamp(TimeUnit::Millisecond, None),
        "day" => DataType::Date32,
        "flag" => DataType::Boolean,
        "text" => DataType::Utf8View,
        "bytes" => DataType::Binary,
        "list" => DataType::List(Arc::new(Field::new_list_field(DataType::Int32, true))),
        "map" => {
            let value = field("value", DataType::Decimal128(10, 2), true);
            let entry = DataType::Struct(vec![field("key", DataType::Utf8View, false), value].into());
            DataType::Map(Arc::new(field("entries", entry, false)), false)
        }
        _ => DataType::Struct(vec![field("x", DataType::Int32, true), field("y", DataType::Binary, true)].into()),
    }
}

/// A value that is made of `n`, as json and csv have it and as it is shown. Every seventh is NULL.
fn value(column: &str, n: u32) -> [String; 3] {
    let alike = |text: String| [text.clone(), text.clone(), text];
    let quoted = |text: String| [format!("\"{text}\""), text.clone(), text];
    let small = n % 1000;
    if n.is_multiple_of(7) {
        return ["null", "NULL", "null"].map(String::from);
    }
    match column {
        "long" if n.is_multiple_of(2) => quoted((i64::from(n) * -2_000_000_011).to_string()),
        "long" => alike((i64::from(n) * -2_000_000_011).to_string()),
        "tiny" => alike((i64::from(n % 256) - 128).to_string()),
        "ratio" => alike(format!("{:?}", f64::from(n) / 4.0)),
        "amount" => alike(format!("-{n}.{:04}", n % 10_000)),
        "huge" => quoted(format!("{n}{}.{:02}", "7".repeat(40), n % 100)),
        "moment" => {
            let time = format!("2026-01-01 {:02}:{:02}:{:02}.{:03}", n % 24, n % 60, n / 60 % 60, n % 999 + 1);
            let [json, csv, _] = quoted(time);
            [json, csv.clone(), csv.replace(' ', "T")]
        }
        "day" => quoted(format!("2026-02-{:02}", n % 28 + 1)),
        "flag" => alike(n.is_multiple_of(2).to_string()),
        "text" => {
            let text = format!("{n} \"ü\\,';{{[\n\u{1F600}");
            let json = serde_json::to_string(&text).unwrap();
            [json, format!("\"{}\"", text.replace('"', "\"\"")), text]
        }
        "bytes" => {
            let [json, csv, _] = quoted(BASE64_STANDARD.encode(n.to_be_bytes()));
            [json, csv, format!("{n:08x}")]
        }
        "list" => [format!("[{small},null]"), String::new(), format!("[{small}, null]")],
        "map" => [format!("{{\"k\":\"{small}.5\"}}"), String::new(), format!("{{k: {small}.50}}")],
        _ => {
            let bytes = BASE64_STANDARD.encode(n.to_be_bytes());
            [format!("{{\"x\":{small},\"y\":\"{bytes}\"}}"), String::new(), format!("{{x: {small}, y: {n:08x}}}")]
        }
    }
}

/// The values of a row that is made of `n`.
fn values<'a>(columns: &'a [&str], n: u32) -> impl Iterator<Item = [String; 3]> + 'a {
    columns.iter().zip(0..).map(move |(column, place)| value(column, n.wrapping_add(place)))
}

/// The row as it is shown, with its offset and the number of its kind.
fn shown(columns: &[&str], n: u32, offset: u64, kind: Option<RowKind>) -> String {
    let cells = values(columns, n).map(|[_, _, shown]| shown);
    let kind = kind.map(|kind| (kind as i8).to_string());
    cells.chain([offset.to_string()]).chain(kind).collect::<Vec<_>>().join(", ")
}

/// A message, and what the rows are made of that it must give; nothing, if it may be bad.
#[derive(Debug, Clone)]
struct Message {
    payload: Option<Vec<u8>>,
    rows: Option<Vec<(u32, Option<RowKind>)>>,
}

impl Message {
    fn unknown(payload: Option<Vec<u8>>) -> Self {
        Self { payload, rows: None }
    }

    /// A good one, of at least one row.
    fn good(format: &str, columns: &[&str], rows: &[u32]) -> Self {
        let object = |n: &u32| {
            let fields = columns.iter().zip(values(columns, *n));
            let fields = fields.map(|(column, [json, _, _])| format!("\"{column}\": {json}"));
            format!("{{\"other\":[{{}}], {}}}", fields.collect::<Vec<_>>().join(","))
        };
        let objects: Vec<String> = rows.iter().map(object).collect();
        let (first, inserts) = (rows[0], rows.iter().map(|n| (*n, Some(RowKind::Insert))).collect());
        let update = |next: u32| vec![(first, Some(RowKind::UpdateBefore)), (next, Some(RowKind::UpdateAfter))];
        let (payload, rows) = match (format, rows) {
            ("json", _) => (objects[0].clone(), vec![(first, None)]),
            ("csv", _) => {
                (values(columns, first).map(|[_, csv, _]| csv).collect::<Vec<_>>().join(","), vec![(first, None)])
            }
            ("debezium-json", [_, next, ..]) => {
                (format!("{{\"before\":{},\"after\":{},\"op\":\"u\"}}", objects[0], objects[1]), update(*next))
            }
            ("debezium-json", _) => {
                (format!("{{\"before\":{},\"op\":\"d\"}}", objects[0]), vec![(first, Some(RowKind::Delete))])
            }
            ("canal-json", [_, next]) => {
                (format!("{{\"data\":[{}],\"old\":[{}],\"type\":\"UPDATE\"}}", objects[1], objects[0]), update(*next))
            }
            ("canal-json", _) => (format!("{{\"data\":[{}],\"type\":\"INSERT\"}}", objects.join(",")), inserts),
            _ => return Self { payload: raw(columns[0], first), rows: Some(vec![(first, None)]) },
        };
        Self { payload: Some(payload.into_bytes()), rows: Some(rows) }
    }
}

/// The value without anything around it.
fn raw(column: &str, n: u32) -> Option<Vec<u8>> {
    let [_, _, shown] = value(column, n);
    let bytes = match column {
        "long" => shown.parse::<i64>().ok()?.to_be_bytes().to_vec(),
        "bytes" => n.to_be_bytes().to_vec(),
        "flag" => vec![u8::from(shown == "true")],
        _ => shown.into_bytes(),
    };
    Some(bytes).filter(|_| !n.is_multiple_of(7))
}

/// The object as all of a message, or as the only row in its envelope.
fn wrapped(format: &str, object: &[u8]) -> Vec<u8> {
    let (head, tail) = match format {
        "debezium-json" => ("{\"after\":", ",\"op\":\"c\"}"),
        "canal-json" => ("{\"data\":[", "],\"type\":\"INSERT\"}"),
        _ => ("", ""),
    };
    [head.as_bytes(), object, tail.as_bytes()].concat()
}

/// Rows that are none, where a table has all columns, in whatever form of JSON.
fn bad() -> Vec<Vec<u8>> {
    let texts = [
        "null",
        "true",
        "1",
        "\"x\"",
        "[]",
        "{",
        "{\"long\":}",
        "{\"long\":\"x\"}",
        "{\"long\":{}}",
        "{\"long\":1e400}",
        "{\"long\":9223372036854775808}",
        "{\"tiny\":128}",
        "{\"tiny\":\"-129\"}",
        "{\"ratio\":\"much\"}",
        "{\"amount\":\"1.2.3\"}",
        "{\"amount\":1e99999}",
        "{\"amount\":[1]}",
        "{\"huge\":false}",
        "{\"moment\":\"yesterday\"}",
        "{\"moment\":true}",
        "{\"day\":\"2026-02-30\"}",
        "{\"flag\":1}",
        "{\"text\":{}}",
        "{\"text\":\"\\ud800\"}",
        "{\"text\":\"\\ud800\\u0041\"}",
        "{\"other\":\"\\udc00x\"}",
        "{\"bytes\":\"!\"}",
        "{\"list\":{}}",
        "{\"list\":[\"x\"]}",
        "{\"map\":[]}",
        "{\"map\":{\"k\":\"x\"}}",
        "{\"row\":[]}",
        "{\"row\":{\"x\":\"y\"}}",
        "{\"row\":{\"y\":\"!\"}}",
    ];
    let bytes: [&[u8]; 4] =
        [b"{\"text\":\"\xc3\"}", b"{\"text\":\"\xa9\"}", b"{\"other\":\"\xff\"}", b"{\"text\":\"\xed\xa0\x80\"}"];
    let (opened, closed) = ("[".repeat(10_000), "]".repeat(10_000));
    let long = [
        format!("{{\"amount\":1{}}}", "0".repeat(300)),
        format!("{{\"huge\":\"{}\"}}", "9".repeat(100_000)),
        format!("{{\"text\":{opened}{closed}}}"),
        format!("{{\"other\":{opened}{closed}}}"),
        format!("{opened}{closed}"),
        format!("{}{}", "{\"row\":".repeat(10_000), "}".repeat(10_000)),
    ];
    let texts = texts.iter().map(|text| text.as_bytes().to_vec());
    texts.chain(bytes.map(<[u8]>::to_vec)).chain(long.map(String::into_bytes)).collect()
}

/// What is bad, and what may be.
fn odd(format: &str) -> Vec<Vec<u8>> {
    let texts = [
        "{\"long\":\"x\",\"long\":1,\"text\":1,\"text\":{}}",
        "{\"long\":1.5,\"tiny\":1e1,\"text\":12.50}",
        "{\"moment\":1e300,\"day\":1e300,\"flag\":null}",
        "{}{}",
        "{} x",
        "{,,\"long\":1,,}",
        "[{}]",
        "\u{feff}{}",
        "\"open",
        "\"a\"b",
        "a\nb",
        ",,,,,,,,,",
        "\u{0}\u{0}\u{0}\u{0}\u{0}\u{0}\u{0}\u{0}",
    ];
    let long = format!("{{\"amount\":1.{}e0}}", "0".repeat(130));
    let more = texts.map(|text| text.as_bytes().to_vec()).into_iter().chain([long.into_bytes()]);
    bad().into_iter().chain(more).map(|object| wrapped(format, &object)).collect()
}

/// What a table makes of some messages.
#[derive(Debug)]
struct Run {
    rows: Vec<String>,
    report: PartitionReport,
    /// Their offsets.
    dead_letters: Vec<u64>,
}

/// Reads messages with offsets from `first` on.
fn run(format: &str, columns: &[&str], on_error: &str, first: u64, payloads: &[Option<Vec<u8>>]) -> Result<Run> {
    let fields = columns.iter().map(|column| Field::new(*column, type_of(column), true));
    let mut options = vec![("format", format), ("format.on-error", on_error)];
    options.extend((format == "csv").then_some(("csv.null-literal", "NULL")));
    options.extend((on_error == "dead-letter").then_some(("format.dead-letter-table", "dead")));
    let mut table = (*fixture::table_of("t", &Schema::new(fields.collect::<Vec<_>>()), &options)).clone();
    let kind = ColumnKind::Metadata { key: "offset".into(), is_virtual: true };
    table.columns.push(Column { kind, ..Column::physical("at", DataType::Int64) });

    let offset = Schema::new(vec![Field::new("offset", DataType::Int64, true)]);
    let known = [MetadataKey { key: "offset", data_type: DataType::Int64, writable: false, meaning: "" }];
    let letters = Arc::new(DeadLetters::try_new(&fixture::table_of("dead", &offset, &[]), &table, &known)?);
    let report = ReadReport::with_dead_letters(Arc::clone(&letters));
    let format = FormatOptions::take(&mut OptionReader::new(&table))?;
    let all: Vec<usize> = (0..table.columns.len()).collect();
    let mut decoding = Decoding::try_new(&table, &format, &all, &report)?;

    let offsets: Vec<u64> = (first..).take(payloads.len()).collect();
    let at: ArrayRef = Arc::new(Int64Array::from_iter_values(offsets.iter().map(|offset| *offset as i64)));
    let batch = MessageBatch {
        payloads: payloads.iter().map(Option::as_deref).collect(),
        broken: vec![],
        metadata: decoding.metadata().iter().map(|_| Arc::clone(&at)).collect(),
        last: Fingerprint { offset: offsets[offsets.len() - 1], timestamp: None, id: None },
        offsets,
    };
    let partition = Partition::new("p", 0);
    let rows = lines(&decoding.decode(&partition, batch)?);
    let mut dead_letters = vec![];
    for batch in letters.take()? {
        dead_letters.extend(batch?.column(0).as_primitive::<Int64Type>().values().iter().map(|offset| *offset as u64));
    }
    Ok(Run { rows, report: report.take().remove(&partition).unwrap(), dead_letters })
}

/// Holds a batch against each of its messages alone; the offsets of those that are bad.
fn check(format: &str, columns: &[&str], messages: &[Message]) -> std::result::Result<Vec<u64>, TestCaseError> {
    let payloads: Vec<Option<Vec<u8>>> = messages.iter().map(|message| message.payload.clone()).collect();
    let (mut rows, mut bad, mut sample) = (vec![], vec![], None);
    for ((offset, message), payload) in (FIRST..).zip(messages).zip(payloads.chunks(1)) {
        let alone = run(format, columns, "skip", offset, payload).unwrap();
        if let Some(known) = &message.rows {
            let known: Vec<String> = known.iter().map(|(n, kind)| shown(columns, *n, offset, *kind)).collect();
            prop_assert_eq!((&alone.rows, alone.report.skipped), (&known, 0));
        }
        if alone.report.skipped > 0 {
            prop_assert_eq!(alone.rows.len(), 0);
            bad.push(offset);
            sample = sample.or(alone.report.sample);
        }
        rows.extend(alone.rows);
    }
    let (all, left_out) = (messages.len() as u64, bad.len() as u64);
    let (skipped, kept) = (("skip", (all, left_out, 0), vec![]), ("dead-letter", (all, 0, left_out), bad.clone()));
    for (on_error, counts, letters) in [skipped, kept] {
        let Run { rows: found, report, dead_letters } = run(format, columns, on_error, FIRST, &payloads).unwrap();
        prop_assert_eq!(&found, &rows);
        prop_assert_eq!((report.messages, report.skipped, report.dead_letters), counts);
        prop_assert_eq!(&report.sample, &sample);
        prop_assert_eq!(dead_letters, letters);
    }
    match (run(format, columns, "fail", FIRST, &payloads), bad.first()) {
        (Ok(found), None) => prop_assert_eq!(found.rows, rows),
        (Err(error), Some(first)) => {
            let error = error.to_string();
            prop_assert!(error.contains(&format!("p:0 offset {first} cannot be read: ")), "{}", error);
        }
        (found, first) => return Err(TestCaseError::fail(format!("bad is {first:?}, and it gives {found:?}"))),
    }
    Ok(bad)
}

/// A message of chance.
#[derive(Debug, Clone)]
enum Drawn {
    Good(Vec<u32>),
    /// A good one that ends too soon.
    Cut(Vec<u32>, Index),
    /// A good one in which some bytes are others.
    Changed(Vec<u32>, Vec<(Index, u8)>),
    Odd(Index),
    Random(Vec<u8>),
    Empty,
    Null,
}

fn drawn() -> impl Strategy<Value = Drawn> {
    let rows = || proptest::collection::vec(any::<u32>(), 1..4);
    let changes = proptest::collection::vec((any::<Index>(), any::<u8>()), 1..4);
    prop_oneof![
        4 => rows().prop_map(Drawn::Good),
        1 => (rows(), any::<Index>()).prop_map(|(rows, at)| Drawn::Cut(rows, at)),
        2 => (rows(), changes).prop_map(|(rows, changes)| Drawn::Changed(rows, changes)),
        2 => any::<Index>().prop_map(Drawn::Odd),
        1 => proptest::collection::vec(any::<u8>(), 0..40).prop_map(Drawn::Random),
        1 => Just(Drawn::Empty),
        1 => Just(Drawn::Null),
    ]
}

impl Drawn {
    fn message(&self, format: &str, columns: &[&str], odd: &[Vec<u8>]) -> Message {
        let good = |rows: &[u32]| Message::good(format, columns, rows);
        Message::unknown(match self {
            Self::Good(rows) => return good(rows),
            Self::Cut(rows, at) => good(rows).payload.map(|payload| payload[..at.index(payload.len() + 1)].to_vec()),
            Self::Changed(rows, changes) => good(rows).payload.map(|mut payload| {
                for (at, byte) in changes {
                    let at = at.index(payload.len());
                    payload[at] = *byte;
                }
                payload
            }),
            Self::Odd(which) => Some(odd[which.index(odd.len())].clone()),
            Self::Random(bytes) => Some(bytes.clone()),
            Self::Empty => Some(vec![]),
            Self::Null => None,
        })
    }
}

#[test]
fn a_batch_is_what_its_messages_are_alone() {
    let cases = std::env::var("MILLSTREAM_FUZZ").map_or(24, |cases| cases.parse().unwrap());
    for format in FORMATS {
        let names = columns_of(format);
        let most = if format == "raw" { 1 } else { names.len() };
        let batches = (subsequence(names, 1..=most), proptest::collection::vec(drawn(), 1..20));
        let odd = odd(format);
        // The same batches every time.
        let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
        let config = Config { cases, failure_persistence: None, max_shrink_iters: 200, ..Config::default() };
        let outcome = TestRunner::new_with_rng(config, rng).run(&batches, |(columns, drawn)| {
            let messages: Vec<Message> = drawn.iter().map(|drawn| drawn.message(format, &columns, &odd)).collect();
            check(format, &columns, &messages).map(drop)
        });
        outcome.unwrap_or_else(|failure| panic!("{format}: {failure}"));
    }
}

#[test]
fn a_message_may_be_cut_anywhere() {
    for format in FORMATS {
        let columns = if format == "raw" { &RAW[..1] } else { columns_of(format) };
        let whole = Message::good(format, columns, &[5, 9]);
        let payload = whole.payload.clone().unwrap();
        let cuts = (0..payload.len()).map(|at| Message::unknown(Some(payload[..at].to_vec())));
        let messages: Vec<Message> = [whole.clone()].into_iter().chain(cuts).chain([whole]).collect();
        let bad = check(format, columns, &messages).unwrap().len();
        match format {
            // A part of a text is a text, and a line may end in the middle of its last value.
            "raw" | "csv" => assert!((1..payload.len()).contains(&bad), "{format}: {bad} of {}", payload.len()),
            "json" => assert_eq!(bad, payload.len()),
            // An empty payload is a tombstone.
            _ => assert_eq!(bad, payload.len() - 1, "{format}"),
        }
    }
}

#[test]
fn what_is_bad_is_bad_whoever_is_beside_it() {
    for format in ["json", "debezium-json", "canal-json"] {
        let bad = bad();
        let others = bad.iter().map(|object| Message::unknown(Some(wrapped(format, object))));
        // The good ones between them, two by two.
        let good = (1..).map(|n| Message::good(format, ALL, &[n, n + 1, n + 2]));
        let all: Vec<Vec<Message>> = others.zip(good).map(|(other, good)| vec![good, other]).collect();
        let offsets: Vec<u64> = (0..bad.len() as u64).map(|index| FIRST + 2 * index + 1).collect();
        assert_eq!(check(format, ALL, &all.concat()).unwrap(), offsets, "{format}");
        // And side by side, where the pieces of one could complete another.
        let others: Vec<Message> = all.iter().map(|pair| pair[1].clone()).collect();
        assert_eq!(check(format, ALL, &others).unwrap().len(), bad.len(), "{format}");
    }
}

#[test]
fn ten_megabytes_are_a_message_like_others() {
    let big = 10 << 20;
    let text = "x".repeat(big);
    for format in FORMATS {
        let (good, bad) = match format {
            "raw" => (text.clone().into_bytes(), vec![0xff; big]),
            "csv" => (text.clone().into_bytes(), format!("\"{text}").into_bytes()),
            _ => {
                let nested = format!("{{\"text\":{}{}}}", "[".repeat(big / 2), "]".repeat(big / 2));
                (wrapped(format, format!("{{\"text\":\"{text}\"}}").as_bytes()), wrapped(format, nested.as_bytes()))
            }
        };
        let small = Message::good(format, &["text"], &[1]);
        let payloads = [small.payload.clone(), Some(good), Some(bad), small.payload];
        let found = run(format, &["text"], "skip", FIRST, &payloads).unwrap();
        assert_eq!((found.report.messages, found.report.skipped), (4, 1), "{format}");
        let kind = if found.rows[1].ends_with("x, 11") { "" } else { ", 0" };
        assert!(found.rows[1] == format!("{text}, 11{kind}"), "{format}");
        let (_, kind) = small.rows.unwrap()[0];
        for (row, offset) in [(0, FIRST), (2, FIRST + 3)] {
            assert_eq!(found.rows[row], shown(&["text"], 1, offset, kind), "{format}");
        }
    }
}

//! The RocketMQ connector against a real broker, written to and read by RocketMQ's own Java client.
//!
//! `scripts/brokers.sh` starts what these tests talk to and says where it is.

// Some tests are about whether something ends at all.
#![allow(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{
    Array, ArrayRef, AsArray, Int32Array, Int64Array, MapBuilder, MapFieldNames, RecordBatch, StringBuilder,
    StringViewArray, TimestampMillisecondArray,
};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Fields, Int32Type, Int64Type, TimeUnit, TimestampMillisecondType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::prelude::SessionContext;
use futures::{StreamExt, TryStreamExt, stream};
use millstream::catalog::{Column, ColumnKind, TableDefinition};
use millstream::checkpoint::Journal;
use millstream::clock::Clock;
use millstream::connector::contract::{self, SinkCase, SourceCase};
use millstream::connector::rocketmq::{RocketmqConnector, RocketmqSink, RocketmqSource, runtime};
use millstream::connector::{
    Bounds, Connector, Extent, Offsets, Owner, Partition, Pin, Published, ReadReport, Role, Sink, Source, Span,
};
use millstream::error::{Error, Kind, Result};
use millstream::query::Query;
use millstream::query::progress::Reporter;

use crate::harness::{World, finish};

/// What takes longer never ends.
const HANGS: Duration = Duration::from_secs(60);

fn setting(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: run the tests by scripts/brokers.sh run DIR -- cargo test, with its servers up")
    })
}

pub fn name_server() -> String {
    setting("MILLSTREAM_TEST_ROCKETMQ")
}

/// Runs the Java client; `input` is its standard input, its lines of output come back.
pub fn tool(arguments: &[&str], input: &str) -> Vec<String> {
    let mut child = Command::new("sh")
        .arg("-c")
        .arg(format!("{} \"$@\"", setting("MILLSTREAM_TEST_ROCKETMQ_TOOL")))
        .arg("tool")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", output.status);
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_string).collect()
}

/// A new topic, never used before.
fn new_topic(name: &str, queues: u32, attributes: &[&str]) -> String {
    let topic = format!("it-{name}-{}", Clock::system().random_id());
    let queues = queues.to_string();
    tool(&[&["create", &name_server(), &topic, &queues], attributes].concat(), "");
    topic
}

/// Sends `count` JSON messages `{"id": first…}` to `queue`.
pub fn produce(topic: &str, queue: u32, first: i64, count: i64, options: &[&str]) {
    let line = |id| format!("{queue}\t\t\t{{\"id\": {id}, \"text\": \"number {id} {}\"}}\n", "ab".repeat(50));
    let lines: String = (first..first + count).map(line).collect();
    tool(&[&["produce", &name_server(), topic], options].concat(), &lines);
}

fn metadata(name: &str, data_type: DataType, key: &str, is_virtual: bool) -> Column {
    let kind = ColumnKind::Metadata { key: key.into(), is_virtual };
    Column { name: name.into(), data_type, nullable: true, kind }
}

fn properties_type() -> DataType {
    let entry = [Field::new("key", DataType::Utf8View, false), Field::new("value", DataType::Utf8View, true)];
    DataType::Map(Arc::new(Field::new("entries", DataType::Struct(Fields::from_iter(entry)), false)), false)
}

/// `id BIGINT, text STRING`, metadata that is only read, and metadata that is written, too.
fn table(topic: &str, options: &[(&str, &str)]) -> Arc<TableDefinition> {
    let time = DataType::Timestamp(TimeUnit::Millisecond, None);
    let name_server = std::env::var("MILLSTREAM_TEST_ROCKETMQ").unwrap_or_else(|_| name_server());
    let always = [("connector", "rocketmq"), ("name-server", &name_server), ("topic", topic), ("format", "json")];
    Arc::new(TableDefinition {
        name: "orders".into(),
        columns: vec![
            Column::physical("id", DataType::Int64),
            Column::physical("text", DataType::Utf8View),
            metadata("at", DataType::Int64, "offset", true),
            metadata("queue", DataType::Int32, "queue", true),
            metadata("broker", DataType::Utf8View, "broker", true),
            metadata("topic", DataType::Utf8View, "topic", true),
            metadata("born", time.clone(), "born-timestamp", true),
            metadata("stored", time, "store-timestamp", true),
            metadata("message", DataType::Utf8View, "message-id", true),
            metadata("tags", DataType::Utf8View, "tags", false),
            metadata("keys", DataType::Utf8View, "keys", false),
            metadata("properties", properties_type(), "properties", false),
        ],
        primary_key: vec![],
        watermark: None,
        partitioned_by: vec![],
        options: always.iter().chain(options).map(|(k, v)| (k.to_string(), v.to_string())).collect(),
    })
}

fn owner() -> Owner {
    Owner { id: Clock::system().random_id().into(), journal: Journal::detached() }
}

fn source(topic: &str, options: &[(&str, &str)]) -> RocketmqSource {
    RocketmqSource::try_new(table(topic, options), &Clock::system(), Some(&owner())).unwrap()
}

fn queue(number: u32) -> Partition {
    Partition::new("broker-a", number)
}

/// The rows of a span, as one batch.
async fn read(source: &RocketmqSource, span: Span, projection: &[usize]) -> Result<(RecordBatch, ReadReport)> {
    let report = ReadReport::default();
    let stream = source.read(&span, projection, &report)?;
    let schema = stream.schema();
    let batches: Vec<RecordBatch> = stream.map_err(Error::from).try_collect().await?;
    Ok((concat_batches(&schema, &batches)?, report))
}

/// The column `id` of a span.
async fn ids(source: &RocketmqSource, number: u32, from: u64, to: u64) -> Result<Vec<i64>> {
    let (rows, _) = read(source, Span::new(queue(number), from, to), &[0]).await?;
    Ok(rows.column(0).as_primitive::<Int64Type>().values().to_vec())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_source_keeps_the_contract() {
    let topic = new_topic("contract", 3, &[]);
    let mut known = BTreeMap::new();
    for (number, count, options) in [(0, 25, ["--batch", "10"]), (1, 17, ["--compress", "zstd"])] {
        produce(&topic, number, 100 * i64::from(number), count, &options);
        let ids = Int64Array::from_iter_values(100 * i64::from(number)..100 * i64::from(number) + count);
        known.insert(queue(number), RecordBatch::try_from_iter([("id", Arc::new(ids) as ArrayRef)]).unwrap());
    }
    let options = [("scan.bounded.mode", "latest-offset")];
    let case = SourceCase { table: table(&topic, &options), rows: known, bounded: true };
    contract::source(&case, async || Arc::new(source(&topic, &options)) as Arc<dyn Source>).await;
}

/// What can be read, once that does not change any more: a broker indexes messages a moment after it acknowledged them.
async fn settled(reader: &impl Source) -> Extent {
    let mut last = reader.extent().await.unwrap();
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let now = reader.extent().await.unwrap();
        if now == last {
            return now;
        }
        last = now;
    }
}

const DELIVERY: &str = "sink.delivery-guarantee";

async fn keeps_the_contract(queues: u32, delivery: &str) {
    let topic = new_topic("sink-contract", queues, &[]);
    let mut definition = table(&topic, &[(DELIVERY, delivery)]).as_ref().clone();
    definition.columns.truncate(2);
    let definition = Arc::new(definition);
    let ids = Int64Array::from_iter_values(0..40);
    let text = StringViewArray::from_iter((0..40).map(|id| (id % 3 > 0).then(|| format!("row {id}"))));
    let columns: [(&str, ArrayRef, bool); 2] = [("id", Arc::new(ids), true), ("text", Arc::new(text), true)];
    let rows = RecordBatch::try_from_iter_with_nullable(columns).unwrap();
    let reader = source(&topic, &[]);
    let visible = async || {
        let mut seen = vec![];
        for (partition, bounds) in settled(&reader).await.partitions {
            let span = Span::new(partition, bounds.earliest, bounds.latest);
            seen.extend(contract::lines(&read(&reader, span, &[0, 1]).await.unwrap().0));
        }
        Some(seen)
    };
    let owner = owner();
    let make = async || {
        Arc::new(RocketmqSink::try_new(Arc::clone(&definition), &Clock::system(), &owner).unwrap()) as Arc<dyn Sink>
    };
    contract::sink(&SinkCase { rows, ordered: queues == 1, fences: false }, make, visible).await;
    reader.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sink_keeps_the_contract() {
    for queues in [1, 3] {
        keeps_the_contract(queues, "at-least-once").await;
    }
}

/// Each of the two new runs in it waits until nothing of an earlier one can be stored any more.
#[tokio::test(flavor = "multi_thread")]
async fn the_sink_keeps_the_contract_effectively_once() {
    tokio::join!(
        Box::pin(keeps_the_contract(1, "effectively-once")),
        Box::pin(keeps_the_contract(3, "effectively-once")),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn any_span_is_read_exactly_and_again_the_same() {
    let topic = new_topic("spans", 2, &[]);
    produce(&topic, 0, 0, 3000, &["--batch", "300"]);
    produce(&topic, 1, 9000, 40, &[]);
    let source = source(&topic, &[]);

    assert_eq!(source.start().await.unwrap(), Offsets::from([(queue(0), 0), (queue(1), 0)]));
    let extent = holds(&source, 3040).await;
    assert_eq!(extent.partitions[&queue(0)], Bounds { earliest: 0, latest: 3000 });
    assert_eq!(extent.partitions[&queue(1)], Bounds { earliest: 0, latest: 40 });
    assert!(!extent.complete);

    for (from, to) in [(2990, 3000), (0, 3000), (31, 33), (1000, 2500), (299, 301), (5, 6), (7, 7), (0, 3000)] {
        assert_eq!(ids(&source, 0, from, to).await.unwrap(), (from as i64..to as i64).collect::<Vec<_>>());
    }
    assert_eq!(ids(&source, 1, 10, 40).await.unwrap(), (9010..9040).collect::<Vec<_>>());

    // What is ahead of one span is for the next, if that begins there.
    for (from, to) in [(0, 100), (100, 1500), (1500, 1500), (1500, 1501), (100, 1500), (1500, 1800), (1800, 3000)] {
        assert_eq!(ids(&source, 0, from, to).await.unwrap(), (from as i64..to as i64).collect::<Vec<_>>());
    }

    let span = Span::new(queue(0), 100, 400);
    let everything: Vec<usize> = (0..12).collect();
    let (once, seen) = read(&source, span.clone(), &everything).await.unwrap();
    let other = self::source(&topic, &[]);
    let (again, seen_again) = read(&other, span, &everything).await.unwrap();
    assert_eq!(once, again);
    let (seen, seen_again) = (seen.take(), seen_again.take());
    assert_eq!(seen, seen_again);
    let seen = &seen[&queue(0)];
    assert_eq!((seen.messages, seen.skipped), (300, 0));
    let last = seen.last.as_ref().unwrap();
    assert_eq!(last.offset, 399);
    assert!(last.timestamp.is_some() && last.id.is_some());

    let parts = futures::future::try_join_all((0..30).map(|part| ids(&source, 0, part * 100, part * 100 + 100)));
    assert_eq!(parts.await.unwrap().concat(), (0..3000).collect::<Vec<_>>());
    source.close().await;
    other.close().await;
    assert!(ids(&source, 0, 0, 1).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_starts_and_ends_where_it_is_told() {
    let topic = new_topic("start", 2, &[]);
    // The second client starts long after the first has sent its last message.
    produce(&topic, 0, 0, 6, &["--batch", "6"]);
    produce(&topic, 0, 6, 4, &["--batch", "4"]);
    let (group, other) = (format!("g-{topic}"), format!("h-{topic}"));
    tool(&["commit", &name_server(), &topic, &group, "0=4"], "");
    let plain = source(&topic, &[]);
    assert_eq!(plain.end().await.unwrap(), None);
    let (rows, _) = read(&plain, Span::new(queue(0), 6, 7), &[7]).await.unwrap();
    let time = rows.column(0).as_primitive::<TimestampMillisecondType>().value(0).to_string();
    plain.close().await;

    let at = |first, second| Offsets::from([(queue(0), first), (queue(1), second)]);
    for (mode, more, expected) in [
        ("earliest-offset", vec![], at(0, 0)),
        ("latest-offset", vec![], at(10, 0)),
        ("timestamp", vec![("timestamp-millis", time.as_str())], at(6, 0)),
        ("timestamp", vec![("timestamp-millis", "4102444800000")], at(10, 0)),
        ("group-offsets", vec![("group", group.as_str())], at(4, 0)),
        ("group-offsets", vec![("group", other.as_str())], at(0, 0)),
        ("group-offsets", vec![("group", other.as_str()), ("default", "latest-offset")], at(10, 0)),
        ("specific-offsets", vec![("specific-offsets", "broker:broker-a,queue:0,offset:4")], at(4, 0)),
    ] {
        for side in ["startup", "bounded"] {
            let option = |(name, value): &(&str, &str)| match *name {
                "group" => ("group".to_string(), value.to_string()),
                name => (format!("scan.{side}.{name}"), value.to_string()),
            };
            let options: Vec<_> = more.iter().chain([&("mode", mode)]).map(option).collect();
            let options: Vec<_> = options.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
            let source = source(&topic, &options);
            let found =
                if side == "startup" { source.start().await.unwrap() } else { source.end().await.unwrap().unwrap() };
            assert_eq!(found, expected, "{side} {mode} {more:?}");
            source.close().await;
        }
    }
    for (wrong, part) in [
        ("broker:broker-a,queue:0,offset:11", "offset 11 is not in broker-a:0, which holds 0..10"),
        ("broker:broker-b,queue:0,offset:0", "there is no broker-b:0; there are broker-a:0, broker-a:1"),
    ] {
        let options = [("scan.startup.mode", "specific-offsets"), ("scan.startup.specific-offsets", wrong)];
        let source = source(&topic, &options);
        let error = source.start().await.unwrap_err();
        assert_eq!(error.kind(), Kind::Usage);
        assert!(error.to_string().contains(part), "{error}");
        source.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rocketmqs_own_tools_see_what_is_acknowledged() {
    let topic = new_topic("acknowledged", 2, &[]);
    produce(&topic, 0, 0, 10, &["--batch", "10"]);
    produce(&topic, 1, 10, 5, &["--batch", "5"]);
    let group = format!("g-{topic}");
    let reader = source(&topic, &[("group", &group)]);
    settled(&reader).await;
    for (first, second) in [(3, 0), (7, 5)] {
        reader.acknowledge(&Offsets::from([(queue(0), first), (queue(1), second)])).await;
        let expected = [(0, 10, first), (1, 5, second)]
            .map(|(queue, end, at)| format!(r#"{{"queue":{queue},"end":{end},"group":{at}}}"#));
        assert_eq!(tool(&["progress", &name_server(), &topic, &group], ""), expected);
    }
    reader.close().await;
    let next = source(&topic, &[("group", &group), ("scan.startup.mode", "group-offsets")]);
    assert_eq!(next.start().await.unwrap(), Offsets::from([(queue(0), 7), (queue(1), 5)]));
    next.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_known_again_and_a_topic_created_anew_is_another() {
    let topic = new_topic("fingerprint", 1, &[]);
    produce(&topic, 0, 0, 10, &["--batch", "10"]);
    let source = source(&topic, &[]);
    settled(&source).await;
    let (_, report) = read(&source, Span::new(queue(0), 0, 10), &[0]).await.unwrap();
    let last = report.take()[&queue(0)].last.clone();
    assert_eq!(source.fingerprint(&queue(0), 9).await.unwrap(), last);
    assert_eq!(source.fingerprint(&queue(0), 10).await.unwrap(), None);
    tool(&["delete", &name_server(), &topic], "");
    assert_eq!(source.fingerprint(&queue(0), 9).await.unwrap(), None, "the topic is gone");
    tool(&["create", &name_server(), &topic, "1"], "");
    produce(&topic, 0, 100, 3, &[]);
    assert_eq!(source.fingerprint(&queue(0), 9).await.unwrap(), None);
    produce(&topic, 0, 103, 7, &["--batch", "7"]);
    settled(&source).await;
    let again = source.fingerprint(&queue(0), 9).await.unwrap();
    assert!(again.is_some() && again != last, "{again:?}");
    source.close().await;
}

/// 2000 messages: some have a tag that few have, and in between are 500 of a tag whose hash code is that of another's.
#[tokio::test(flavor = "multi_thread")]
async fn filters_of_the_broker_give_exactly_what_passes() {
    let topic = new_topic("filters", 1, &[]);
    let tag_of = |id: i64| match id {
        1000..1500 => "BB",
        _ if id % 97 == 0 => "rare",
        _ => "Aa",
    };
    let send = |ids: std::ops::Range<i64>, options: &[&str]| {
        let lines: String = ids.map(|id| format!("0\t{}\t\t{{\"id\": {id}}}\n", tag_of(id))).collect();
        tool(&[&["produce", &name_server(), &topic], options].concat(), &lines);
    };
    send(0..50, &["--property", "amount=3", "--property", "region=eu"]);
    send(50..60, &["--property", "amount=9"]);
    send(60..2000, &["--batch", "194"]);
    let plain = source(&topic, &[]);
    assert_eq!(settled(&plain).await.partitions[&queue(0)].latest, 2000);
    plain.close().await;

    let spans = [(0, 2000), (1, 97), (0, 98), (90, 1600), (1000, 1500), (1499, 1501), (55, 56), (1941, 2000), (7, 7)];
    type Passes<'a> = &'a dyn Fn(i64) -> bool;
    let passing: [(&str, &str, Passes); 10] = [
        ("filter.tag", "rare", &|id| tag_of(id) == "rare"),
        ("filter.tag", "Aa", &|id| tag_of(id) == "Aa"),
        ("filter.tag", "BB || rare", &|id| tag_of(id) != "Aa"),
        ("filter.tag", "nobody", &|_| false),
        ("filter.tag", "*", &|_| true),
        ("filter.sql", "amount > 5", &|id| (50..60).contains(&id)),
        ("filter.sql", "amount between 1 and 9 and region is null", &|id| (50..60).contains(&id)),
        ("filter.sql", "NOT (region IS NULL) OR amount <> 3", &|id| id < 60),
        ("filter.sql", "TAGS = 'rare' OR region IS NOT NULL", &|id| id < 50 || tag_of(id) == "rare"),
        ("filter.sql", "TAGS IN ('nobody')", &|_| false),
    ];
    for (option, filter, passes) in passing {
        let source = source(&topic, &[(option, filter)]);
        for (from, to) in spans {
            let expected: Vec<i64> = (from as i64..to as i64).filter(|id| passes(*id)).collect();
            assert_eq!(ids(&source, 0, from, to).await.unwrap(), expected, "{filter}: {from}..{to}");
        }
        let error = ids(&source, 0, 1990, 2001).await.unwrap_err();
        assert_eq!(error.kind(), Kind::DataLoss, "{filter}: {error}");
        source.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_property_is_a_column_and_hosts_are_told() {
    let topic = new_topic("property", 1, &[]);
    let mut definition = table(&topic, &[]).as_ref().clone();
    definition.columns.truncate(1);
    definition.columns.push(metadata("region", DataType::Utf8View, "property.region", false));
    definition.columns.push(metadata("born", DataType::Utf8View, "born-host", true));
    definition.columns.push(metadata("stored", DataType::Utf8View, "store-host", true));
    definition.columns.push(metadata("again", DataType::Int32, "reconsume-times", true));
    RocketmqConnector.check(&definition, Role::Sink).unwrap();
    RocketmqConnector.check(&definition, Role::Source).unwrap();
    let mut reserved = definition.clone();
    reserved.columns.push(metadata("unique", DataType::Utf8View, "property.UNIQ_KEY", true));
    let error = RocketmqConnector.check(&reserved, Role::Source).unwrap_err();
    assert_eq!(error.kind(), Kind::Usage);
    assert!(error.to_string().contains("RocketMQ keeps the property 'UNIQ_KEY' for itself"), "{error}");
    let definition = Arc::new(definition);
    let regions = StringViewArray::from(vec![Some("eu"), None]);
    let columns: Vec<ArrayRef> = vec![Arc::new(Int64Array::from(vec![1, 2])), Arc::new(regions)];
    let rows = RecordBatch::try_new(definition.writable_schema(), columns).unwrap();
    let sink = RocketmqSink::try_new(Arc::clone(&definition), &Clock::system(), &owner()).unwrap();
    sink.open(1).await.unwrap();
    assert_eq!(write(&sink, 1, vec![vec![rows]]).await.unwrap().rows, 2);
    sink.close().await;
    let java = tool(&["consume", &name_server(), &topic], "");
    let regions = java.iter().map(|message| serde_json::from_str::<serde_json::Value>(message).unwrap());
    let regions: Vec<_> = regions.map(|message| message["properties"]["region"].as_str().map(str::to_string)).collect();
    assert_eq!(regions, [Some("eu".to_string()), None]);

    let source = RocketmqSource::try_new(Arc::clone(&definition), &Clock::system(), Some(&owner())).unwrap();
    let (rows, _) = read(&source, Span::new(queue(0), 0, 2), &[0, 1, 2, 3, 4]).await.unwrap();
    let texts = |column: usize| rows.column(column).as_string_view().iter().collect::<Vec<_>>();
    assert_eq!(texts(1), [Some("eu"), None]);
    for host in [2, 3].map(|column| texts(column)[0].unwrap().to_string()) {
        assert!(host.parse::<std::net::SocketAddr>().is_ok(), "{host}");
    }
    assert_eq!(rows.column(4).as_primitive::<Int32Type>().values(), &[0, 0]);
    source.close().await;
}

/// What the source knows once `is_there` holds.
async fn until(reader: &RocketmqSource, is_there: impl Fn(&Extent) -> bool) -> Extent {
    let began = Instant::now();
    loop {
        let extent = reader.extent().await.unwrap();
        if is_there(&extent) {
            return extent;
        }
        assert!(began.elapsed() < HANGS, "{extent:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// What the source knows once so many messages can be read: all that were acknowledged, which the broker indexes after.
async fn holds(reader: &RocketmqSource, messages: u64) -> Extent {
    let count = |bounds: &Bounds| bounds.latest - bounds.earliest;
    until(reader, |extent| extent.partitions.values().map(count).sum::<u64>() >= messages).await
}

#[tokio::test(flavor = "multi_thread")]
async fn several_topics_are_one_table() {
    let id = Clock::system().random_id();
    let create = |name: &str, first: i64| {
        let topic = format!("it-{id}-{name}");
        tool(&["create", &name_server(), &topic, "1"], "");
        produce(&topic, 0, first, 5, &["--batch", "5"]);
        topic
    };
    let (a, b) = (create("a", 0), create("b", 100));
    let of = |topic: &str| Partition::new(format!("{topic}@broker-a"), 0);
    let named = source(&format!("{b}; {a}"), &[("scan.startup.mode", "latest-offset")]);
    settled(&named).await;
    assert_eq!(named.start().await.unwrap(), Offsets::from([(of(&a), 5), (of(&b), 5)]));
    let (rows, _) = read(&named, Span::new(of(&b), 1, 3), &[0, 4, 5]).await.unwrap();
    assert_eq!(rows.column(0).as_primitive::<Int64Type>().values(), &[101, 102]);
    let text = |column: usize| rows.column(column).as_string_view().value(0).to_string();
    assert_eq!((text(1), text(2)), ("broker-a".to_string(), b.clone()));
    named.close().await;

    let definition = table(&format!("{b};{a}"), &[]);
    assert_eq!(RocketmqConnector.identity(&definition).unwrap(), format!("rocketmq topics {a};{b}"));
    let error = RocketmqConnector.check(&definition, Role::Sink).unwrap_err();
    assert!(error.to_string().contains("only one written"), "{error}");

    let mut definition = table(&a, &[("scan.topic-partition-discovery.interval", "200 ms")]).as_ref().clone();
    definition.options.remove("topic");
    definition.options.insert("topic-pattern".into(), format!("it-{id}-.*"));
    let matching = RocketmqSource::try_new(Arc::new(definition), &Clock::system(), Some(&owner())).unwrap();
    assert_eq!(matching.start().await.unwrap(), Offsets::from([(of(&a), 0), (of(&b), 0)]));
    let c = create("c", 200);
    let end = |extent: &Extent| extent.partitions.get(&of(&c)).map(|bounds| bounds.latest);
    let extent = until(&matching, |extent| end(extent) == Some(5)).await;
    assert_eq!(extent.partitions.keys().cloned().collect::<Vec<_>>(), [of(&a), of(&b), of(&c)]);
    let (rows, _) = read(&matching, Span::new(of(&c), 0, 5), &[0]).await.unwrap();
    assert_eq!(rows.column(0).as_primitive::<Int64Type>().values(), &[200, 201, 202, 203, 204]);
    // A topic that is deleted is gone: its broker is there, with the others. That it was read does not bring it back.
    tool(&["delete", &name_server(), &b], "");
    until(&matching, |extent| extent.partitions.len() + extent.unreachable.len() == 2).await;
    matching.forget(&Offsets::from([(of(&a), 5), (of(&b), 5), (of(&c), 5)])).await;
    let extent = matching.extent().await.unwrap();
    assert_eq!(extent.partitions.into_keys().collect::<Vec<_>>(), [of(&a), of(&c)]);
    assert!(extent.unreachable.is_empty(), "{:?}", extent.unreachable);
    matching.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn queues_that_are_added_are_found() {
    let topic = new_topic("added", 1, &[]);
    let reader = source(&topic, &[("scan.topic-partition-discovery.interval", "200 ms")]);
    assert_eq!(reader.start().await.unwrap(), Offsets::from([(queue(0), 0)]));
    let load = {
        let topic = topic.clone();
        tokio::task::spawn_blocking(move || produce(&topic, 0, 0, 3000, &[]))
    };
    tool(&["create", &name_server(), &topic, "3"], "");
    produce(&topic, 2, 9000, 5, &["--batch", "5"]);
    let end = |extent: &Extent, number| extent.partitions.get(&queue(number)).map(|bounds| bounds.latest);
    until(&reader, |extent| end(extent, 2) == Some(5) && end(extent, 1) == Some(0)).await;
    assert_eq!(ids(&reader, 2, 0, 5).await.unwrap(), (9000..9005).collect::<Vec<_>>());
    load.await.unwrap();
    until(&reader, |extent| end(extent, 0) == Some(3000)).await;
    assert_eq!(ids(&reader, 0, 0, 3000).await.unwrap(), (0..3000).collect::<Vec<_>>());
    reader.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_java_compresses_is_lost() {
    let topic = new_topic("compressed", 1, &[]);
    produce(&topic, 0, 0, 8, &[]);
    produce(&topic, 0, 8, 9, &["--compress", "zlib"]);
    produce(&topic, 0, 17, 9, &["--compress", "lz4"]);
    produce(&topic, 0, 26, 9, &["--compress", "zstd"]);
    produce(&topic, 0, 35, 9, &["--batch", "4"]);
    produce(&topic, 0, 44, 9, &["--compress", "lz4"]);
    let source = source(&topic, &[]);
    assert_eq!(ids(&source, 0, 0, 53).await.unwrap(), (0..53).collect::<Vec<_>>());
    assert_eq!(ids(&source, 0, 20, 30).await.unwrap(), (20..30).collect::<Vec<_>>());
    source.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_is_what_java_wrote_and_sees() {
    let topic = new_topic("metadata", 1, &[]);
    let line = "0\tnew\tk1 k2\t{\"id\": 1}\n";
    tool(&["produce", &name_server(), &topic, "--property", "region=eu", "--property", "amount=7"], line);
    tool(&["produce", &name_server(), &topic], "0\t\t\t{\"id\": 2}\n");
    let java = tool(&["consume", &name_server(), &topic], "");
    let java: serde_json::Value = serde_json::from_str(&java[0]).unwrap();

    let source = source(&topic, &[]);
    let (rows, _) = read(&source, Span::new(queue(0), 0, 2), &(0..12).collect::<Vec<_>>()).await.unwrap();
    let text = |column: &str| rows.column_by_name(column).unwrap().as_string_view().value(0).to_string();
    let time = |column: &str| rows.column_by_name(column).unwrap().as_primitive::<TimestampMillisecondType>().value(0);
    assert_eq!((text("broker"), text("topic")), ("broker-a".to_string(), topic.clone()));
    assert_eq!((text("tags"), text("keys")), ("new".to_string(), "k1 k2".to_string()));
    assert_eq!(rows.column_by_name("at").unwrap().as_primitive::<Int64Type>().values(), &[0, 1]);
    assert_eq!(rows.column_by_name("queue").unwrap().as_primitive::<Int32Type>().values(), &[0, 0]);
    assert_eq!(time("born"), java["bornTimestamp"].as_i64().unwrap());
    assert_eq!(time("stored"), java["storeTimestamp"].as_i64().unwrap());
    assert_eq!(text("message"), java["properties"]["UNIQ_KEY"].as_str().unwrap());
    assert!(rows.column_by_name("tags").unwrap().is_null(1) && rows.column_by_name("keys").unwrap().is_null(1));

    let properties = rows.column_by_name("properties").unwrap().as_map();
    let first = properties.value(0);
    let list = |column: usize| first.column(column).as_string_view().iter().flatten().collect::<Vec<_>>();
    assert_eq!((list(0), list(1)), (vec!["amount", "region"], vec!["7", "eu"]));
    assert_eq!(properties.value(1).len(), 0);
    source.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_message_is_an_error_or_left_out() {
    let topic = new_topic("bad", 1, &[]);
    tool(&["produce", &name_server(), &topic], "0\t\t\t{\"id\": 1}\n0\t\t\tnot json\n0\t\t\t{\"id\": 3}\n");
    let strict = source(&topic, &[]);
    let error = ids(&strict, 0, 0, 3).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Data);
    assert!(error.to_string().contains("broker-a:0 offset 1"), "{error}");
    strict.close().await;
    let lenient = source(&topic, &[("format.on-error", "skip")]);
    assert_eq!(ids(&lenient, 0, 0, 3).await.unwrap(), [1, 3]);
    lenient.close().await;
}

/// Of 3 MB too, which is nearly all that a broker takes. A body without a byte is refused by RocketMQ's own client.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_lies_between_good_rows_costs_none_of_them() {
    let topic = new_topic("odd", 1, &[]);
    let send = |bodies: &[String], options: &[&str]| {
        let lines: String = bodies.iter().map(|body| format!("0\t\t\t{body}\n")).collect();
        tool(&[&["produce", &name_server(), &topic, "--charset", "ISO-8859-1"], options].concat(), &lines);
    };
    let big = "[".repeat(1_500_000) + &"]".repeat(1_500_000);
    let good = |id: usize, text: &str| format!("{{\"id\": {id}, \"text\": \"{text}\"}}");
    let mut state = 7u64;
    // Each character is a byte; those that end a line are no part of one.
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        Some((state >> 33) as u8).filter(|byte| !matches!(byte, b'\n' | b'\r')).map_or('?', char::from)
    };
    let mut odd: Vec<String> = (1..40).map(|length| (0..length).map(|_| random()).collect()).collect();
    odd.push(format!("{{\"id\": {big}}}"));
    let sent = odd.iter().enumerate().flat_map(|(id, odd)| [good(id, ""), odd.clone()]).collect::<Vec<_>>();
    send(&sent, &[]);
    send(&["null".to_owned()], &["--property", "tombstone=true"]);
    send(&[good(odd.len(), &big), " ".to_owned(), good(odd.len() + 1, "")], &[]);
    let (all, skipped) = (2 * odd.len() as u64 + 4, odd.len() as u64 + 2);

    let source = source(&topic, &[("format.on-error", "skip")]);
    settled(&source).await;
    let (rows, report) = read(&source, Span::new(queue(0), 0, all), &[0, 1]).await.unwrap();
    let ids: Vec<i64> = (0..odd.len() as i64 + 2).collect();
    assert_eq!(rows.column(0).as_primitive::<Int64Type>().values().to_vec(), ids);
    assert!(rows.column(1).as_string_view().value(odd.len()) == big);
    let seen = report.take().remove(&queue(0)).unwrap();
    assert_eq!((seen.messages, seen.skipped), (all, skipped));
    assert_eq!(seen.sample.unwrap().offset, 1);
    source.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn offsets_that_are_not_there_are_data_loss() {
    let topic = new_topic("loss", 1, &[]);
    produce(&topic, 0, 0, 10, &["--batch", "10"]);
    let source = source(&topic, &[]);
    for (from, to) in [(5, 11), (10, 11), (4000, 4001)] {
        let began = Instant::now();
        let error = ids(&source, 0, from, to).await.unwrap_err();
        assert_eq!(error.kind(), Kind::DataLoss, "{error}");
        assert!(error.to_string().contains("it has 0..10"), "{error}");
        assert!(began.elapsed() < HANGS);
    }
    assert_eq!(ids(&source, 0, 0, 10).await.unwrap().len(), 10);

    tool(&["delete", &name_server(), &topic], "");
    tool(&["create", &name_server(), &topic, "1"], "");
    produce(&topic, 0, 100, 3, &[]);
    let error = ids(&source, 0, 0, 10).await.unwrap_err();
    assert_eq!(error.kind(), Kind::DataLoss, "{error}");
    source.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_the_next_spans_arrive_while_nobody_reads() {
    let topic = new_topic("ahead", 1, &[]);
    produce(&topic, 0, 0, 6000, &["--batch", "300"]);
    // Its time stands still, so that nothing waits for too long.
    let clock = Clock::seeded(1, 0);
    let open = |owner: Option<Owner>| RocketmqSource::try_new(table(&topic, &[]), &clock, owner.as_ref()).unwrap();
    let (source, stale, asked_once) = (open(Some(owner())), open(Some(owner())), open(None));
    for reader in [&source, &stale, &asked_once] {
        assert_eq!(ids(reader, 0, 0, 2000).await.unwrap(), (0..2000).collect::<Vec<_>>());
    }
    // Two stretches of 1024 are on their way.
    tokio::time::sleep(Duration::from_secs(3)).await;
    tool(&["delete", &name_server(), &topic], "");
    for (from, to) in [(2000, 2001), (2001, 3100), (3100, 4048)] {
        assert_eq!(ids(&source, 0, from, to).await.unwrap(), (from as i64..to as i64).collect::<Vec<_>>());
    }
    clock.advance(5000);
    for (reader, from) in [(&source, 4048), (&source, 0), (&stale, 2000), (&asked_once, 2000)] {
        assert_eq!(ids(reader, 0, from, from + 10).await.unwrap_err().kind(), Kind::DataLoss);
    }
    for reader in [source, stale, asked_once] {
        reader.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn batch_queues_are_refused_by_name() {
    let topic = new_topic("batchcq", 1, &["queue.type=BatchCQ"]);
    produce(&topic, 0, 0, 8, &["--batch", "4"]);
    let source = source(&topic, &[]);
    let end = holds(&source, 1).await.partitions[&queue(0)].latest;
    let error = ids(&source, 0, 0, end).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Refused, "{error}");
    assert!(error.to_string().contains("queue.type=BatchCQ"), "{error}");
    source.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_topic_is_named_with_its_nearest_neighbour() {
    let topic = new_topic("neighbour", 1, &[]);
    let wrong = format!("{topic}x");
    let source = source(&wrong, &[]);
    let error = source.start().await.unwrap_err();
    assert_eq!(error.kind(), Kind::Usage, "{error}");
    assert!(error.to_string().contains(&format!("did you mean '{topic}'")), "{error}");
    source.close().await;
    let sink = RocketmqSink::try_new(table(&wrong, &[]), &Clock::system(), &owner()).unwrap();
    let error = sink.open(1).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Transient, "{error}");
    assert!(error.to_string().contains(&format!("did you mean '{topic}'")), "{error}");
    sink.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_server_that_is_not_there_is_told_soon() {
    // Nobody listens there.
    for address in ["127.0.0.1:1"] {
        let source = source("orders", &[("name-server", address)]);
        let began = Instant::now();
        let error = source.start().await.unwrap_err();
        assert_eq!(error.kind(), Kind::Transient, "{error}");
        assert!(error.to_string().contains(address), "{error}");
        assert!(began.elapsed() < HANGS, "{:?}", began.elapsed());
        source.close().await;
    }
}

/// Rows as the table's writable schema has them: id, text, tags, keys, properties.
fn rows(table: &TableDefinition, ids: &[i64], text: &str, key: impl Fn(i64) -> Option<String>) -> RecordBatch {
    let names = MapFieldNames { entry: "entries".into(), key: "key".into(), value: "value".into() };
    let mut properties = MapBuilder::new(Some(names), StringBuilder::new(), StringBuilder::new());
    for id in ids {
        properties.keys().append_value("id");
        properties.values().append_value(id.to_string());
        properties.append(true).unwrap();
    }
    let properties = arrow::compute::cast(&properties.finish(), &properties_type()).unwrap();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from(ids.to_vec())),
        Arc::new(StringViewArray::from_iter_values(ids.iter().map(|_| text))),
        Arc::new(StringViewArray::from_iter(ids.iter().map(|id| (id % 2 == 0).then_some("even")))),
        Arc::new(StringViewArray::from_iter(ids.iter().map(|id| key(*id)))),
        properties,
    ];
    RecordBatch::try_new(table.writable_schema(), columns).unwrap()
}

async fn write(sink: &RocketmqSink, epoch: u64, tasks: Vec<Vec<RecordBatch>>) -> Result<Published> {
    let pin = sink.prepare(epoch).await?;
    for (task, batches) in tasks.into_iter().enumerate() {
        let schema = batches[0].schema();
        let rows = stream::iter(batches).map(Ok);
        sink.stage(epoch, task as u32, &pin, Box::pin(RecordBatchStreamAdapter::new(schema, rows))).await?;
    }
    let published = sink.publish(epoch, &pin).await;
    sink.discard(epoch).await;
    published
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_is_read_back_in_order_per_key() {
    let topic = new_topic("sink", 4, &[]);
    let table = table(&topic, &[]);
    RocketmqConnector.check(&table, Role::Sink).unwrap();
    RocketmqConnector.check(&table, Role::Source).unwrap();
    let sink = RocketmqSink::try_new(Arc::clone(&table), &Clock::system(), &owner()).unwrap();
    sink.open(1).await.unwrap();
    let pin = sink.prepare(1).await.unwrap();
    assert_eq!(pin["queues"].as_array().unwrap().len(), 4);
    assert_eq!(pin["brokers"], serde_json::json!(["broker-a"]));

    // 2 epochs of 2 tasks of 2 batches; each epoch is many sends per queue.
    let ids: Vec<i64> = (0..20_000).collect();
    let batch = |part: usize| {
        rows(&table, &ids[part * 2500..(part + 1) * 2500], "some text", |id| Some(format!("key-{}", id % 37)))
    };
    for epoch in 0..2 {
        let tasks = (0..2).map(|task| (0..2).map(|part| batch(epoch * 4 + task * 2 + part)).collect()).collect();
        let published = write(&sink, 1 + epoch as u64, tasks).await.unwrap();
        assert_eq!(published.rows, 10_000);
        assert!(published.bytes > 100_000 && published.position["broker-a:0"].is_u64(), "{published:?}");
    }
    sink.close().await;

    let source = source(&topic, &[]);
    let mut found = 0;
    let mut queue_of_key = BTreeMap::new();
    for (partition, bounds) in holds(&source, 20_000).await.partitions {
        let span = Span::new(partition.clone(), bounds.earliest, bounds.latest);
        let (rows, _) = read(&source, span, &[0, 1, 9, 10, 11]).await.unwrap();
        let ids = rows.column(0).as_primitive::<Int64Type>();
        let mut last_of_key = BTreeMap::new();
        for row in 0..rows.num_rows() {
            let id = ids.value(row);
            let key = rows.column(3).as_string_view().value(row).to_string();
            assert_eq!(key, format!("key-{}", id % 37));
            assert!(last_of_key.insert(key.clone(), id).is_none_or(|before| before < id), "{key} {id}");
            assert_eq!(queue_of_key.entry(key).or_insert(partition.number), &partition.number);
            let tags = rows.column(2).as_string_view();
            assert_eq!(tags.is_valid(row).then(|| tags.value(row)), (id % 2 == 0).then_some("even"));
            let properties = rows.column(4).as_map().value(row);
            assert_eq!(properties.column(1).as_string_view().value(0), id.to_string());
        }
        found += rows.num_rows();
    }
    assert_eq!((found, queue_of_key.len()), (20_000, 37));
    source.close().await;

    let java = tool(&["consume", &name_server(), &topic], "");
    assert_eq!(java.len(), 20_000);
    let first: serde_json::Value = serde_json::from_str(&java[0]).unwrap();
    let body: serde_json::Value = serde_json::from_str(first["body"].as_str().unwrap()).unwrap();
    assert_eq!(first["keys"], format!("key-{}", body["id"].as_i64().unwrap() % 37));
    assert_eq!(first["properties"]["id"], body["id"].to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_without_keys_are_dealt_out_and_redone_epochs_are_there_twice() {
    let topic = new_topic("spread", 3, &[]);
    let table = table(&topic, &[]);
    let sink = RocketmqSink::try_new(Arc::clone(&table), &Clock::system(), &owner()).unwrap();
    sink.open(1).await.unwrap();
    let batch = rows(&table, &(0..30).collect::<Vec<_>>(), "x", |_| None);
    for _ in 0..2 {
        assert_eq!(write(&sink, 1, vec![vec![batch.clone()]]).await.unwrap().rows, 30);
    }
    assert_eq!(sink.publish(2, &sink.prepare(2).await.unwrap()).await.unwrap().rows, 0);
    sink.close().await;
    let source = source(&topic, &[]);
    for number in 0..3 {
        let expected: Vec<i64> = (0..30).filter(|id| id % 3 == i64::from(number)).collect();
        assert_eq!(ids(&source, number, 0, 20).await.unwrap(), [expected.clone(), expected].concat());
    }
    source.close().await;
}

/// Stages `tasks`, and publishes them by a pin that was made before.
async fn publish(sink: &RocketmqSink, epoch: u64, pin: &Pin, tasks: &[RecordBatch]) -> Result<Published> {
    for (task, batch) in tasks.iter().enumerate() {
        let rows = RecordBatchStreamAdapter::new(batch.schema(), stream::iter([Ok(batch.clone())]));
        sink.stage(epoch, task as u32, pin, Box::pin(rows)).await?;
    }
    sink.publish(epoch, pin).await
}

/// By queue, the ids and keys of all messages.
async fn everything(topic: &str) -> BTreeMap<u32, Vec<(i64, String)>> {
    let reader = source(topic, &[]);
    let mut all = BTreeMap::new();
    for (partition, bounds) in settled(&reader).await.partitions {
        let number = partition.number;
        let (rows, _) = read(&reader, Span::new(partition, bounds.earliest, bounds.latest), &[0, 10]).await.unwrap();
        let (ids, keys) = (rows.column(0).as_primitive::<Int64Type>(), rows.column(1).as_string_view());
        let keys = keys.iter().map(|key| key.unwrap_or_default().to_string());
        all.insert(number, ids.values().iter().copied().zip(keys).collect());
    }
    reader.close().await;
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_run_may_have_sent_is_looked_for_and_the_rest_is_sent() {
    const EACH: i64 = 2500;
    let topic = new_topic("effectively", 3, &[]);
    let table = table(&topic, &[(DELIVERY, "effectively-once")]);
    RocketmqConnector.check(&table, Role::Sink).unwrap();
    let owner = owner();
    let new_run = async |run: u64| {
        let sink = RocketmqSink::try_new(Arc::clone(&table), &Clock::system(), &owner).unwrap();
        sink.open(run).await.unwrap();
        sink
    };
    // Every tenth row has no key.
    let key = |id: i64| (id % 10 > 0).then(|| format!("key-{}", id % 37));
    let task = |number: i64| {
        let ids: Vec<i64> = (number * EACH..(number + 1) * EACH).collect();
        rows(&table, &ids, "some text", key)
    };

    // The commit of a whole epoch is lost.
    let first = new_run(1).await;
    let pin = first.prepare(1).await.unwrap();
    assert_eq!(pin["ends"], serde_json::json!({ "broker-a:0": 0, "broker-a:1": 0, "broker-a:2": 0 }));
    let once = publish(&first, 1, &pin, &[task(0), task(1)]).await.unwrap();
    first.close().await;
    let second = new_run(2).await;
    let again = publish(&second, 1, &pin, &[task(0), task(1)]).await.unwrap();
    assert_eq!((once.rows, &again), (2 * EACH as u64, &once), "rows, bytes and where it ends");

    // Of the next only a part was sent, in between another producer's messages.
    let pin = second.prepare(2).await.unwrap();
    assert_eq!(pin["ends"], once.position);
    (0..3).for_each(|queue| produce(&topic, queue, 900_000 + i64::from(queue), 1, &[]));
    publish(&second, 2, &pin, &[task(2)]).await.unwrap();
    second.close().await;
    // Queues that appear meanwhile get nothing of it.
    tool(&["create", &name_server(), &topic, "5"], "");
    (0..3).for_each(|queue| produce(&topic, queue, 900_010 + i64::from(queue), 1, &[]));
    let third = new_run(3).await;
    assert_eq!(publish(&third, 2, &pin, &[task(2), task(3)]).await.unwrap().rows, 2 * EACH as u64);
    // Who has sent an epoch knows that nothing of it is on its way any more.
    let began = Instant::now();
    assert_eq!(publish(&third, 2, &pin, &[task(2), task(3)]).await.unwrap().rows, 2 * EACH as u64);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    third.close().await;

    let all = everything(&topic).await;
    let mut ids: Vec<i64> = all.values().flatten().map(|(id, _)| *id).filter(|id| *id < 900_000).collect();
    let mut last_of_key = BTreeMap::new();
    for (queue, messages) in &all {
        let of_others = messages.iter().filter(|(id, _)| *id >= 900_000).count();
        assert_eq!((of_others, messages.is_empty()), if *queue < 3 { (2, false) } else { (0, true) });
        for (id, key) in messages.iter().filter(|(_, key)| !key.is_empty()) {
            let (home, before) = last_of_key.insert(key.clone(), (*queue, *id)).unwrap_or((*queue, -1));
            assert!(home == *queue && before < *id, "{key}: {before} in queue {home}, then {id} in {queue}");
        }
    }
    ids.sort_unstable();
    assert_eq!(ids, (0..4 * EACH).collect::<Vec<_>>(), "each row once");

    // Java sees which row a message is; here it is no property of the user's.
    let java = tool(&["consume", &name_server(), &topic], "");
    for message in &java {
        let message: serde_json::Value = serde_json::from_str(message).unwrap();
        let body: serde_json::Value = serde_json::from_str(message["body"].as_str().unwrap()).unwrap();
        let id = body["id"].as_i64().unwrap();
        let mark = format!("{}-{}-{}", owner.id, 1 + id / (2 * EACH), id % (2 * EACH));
        assert_eq!(message["properties"]["millstream"].as_str(), (id < 900_000).then_some(&*mark));
    }
    let reader = source(&topic, &[]);
    let (some, _) = read(&reader, Span::new(queue(0), 0, 100), &[11]).await.unwrap();
    let properties = some.column(0).as_map();
    assert!((0..100).all(|row| properties.value(row).column(0).as_string_view().iter().eq([Some("id")])));
    reader.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_looked_at_any_more_is_an_error() {
    let topic = new_topic("unsettled", 1, &[]);
    let table = table(&topic, &[(DELIVERY, "effectively-once")]);
    let owner = owner();
    let new_sink = || RocketmqSink::try_new(Arc::clone(&table), &Clock::system(), &owner).unwrap();
    let batch = rows(&table, &(0..10).collect::<Vec<_>>(), "x", |_| None);
    let first = new_sink();
    first.open(1).await.unwrap();
    write(&first, 1, vec![vec![batch.clone()]]).await.unwrap();
    // The broker shows a moment later what it has acknowledged; until then a pin has it begin too early, which is no harm.
    let reader = source(&topic, &[]);
    until(&reader, |extent| extent.partitions[&queue(0)].latest == 10).await;
    reader.close().await;
    let pin = first.prepare(2).await.unwrap();
    first.close().await;

    tool(&["delete", &name_server(), &topic], "");
    tool(&["create", &name_server(), &topic, "1"], "");
    produce(&topic, 0, 100, 3, &[]);
    let second = new_sink();
    second.open(2).await.unwrap();
    let error = publish(&second, 2, &pin, &[batch]).await.unwrap_err();
    assert_eq!(error.kind(), Kind::DataLoss, "{error}");
    let part = format!("topic {topic} broker-a:0: it cannot be settled which rows of epoch 2 are there");
    assert!(error.to_string().contains(&part), "{error}");
    second.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn delayed_messages_are_readable_when_they_are_due() {
    let topic = new_topic("delayed", 1, &[]);
    let mut definition = table(&topic, &[]).as_ref().clone();
    definition.columns.truncate(1);
    definition.columns.push(metadata("level", DataType::Int32, "delay-level", false));
    let time = DataType::Timestamp(TimeUnit::Millisecond, None);
    definition.columns.push(metadata("due", time, "delivery-time", false));
    RocketmqConnector.check(&definition, Role::Sink).unwrap();
    let definition = Arc::new(definition);
    let now = Clock::system().now_ms();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(0..6)),
        Arc::new(Int32Array::from(vec![None, Some(1), Some(0), None, None, Some(2)])),
        Arc::new(TimestampMillisecondArray::from_iter([None, None, None, Some(now + 3000), Some(now - 3000), None])),
    ];
    let rows = RecordBatch::try_new(definition.writable_schema(), columns).unwrap();
    let sink = RocketmqSink::try_new(Arc::clone(&definition), &Clock::system(), &owner()).unwrap();
    sink.open(1).await.unwrap();
    assert_eq!(write(&sink, 1, vec![vec![rows]]).await.unwrap().rows, 6);
    sink.close().await;

    let reader = source(&topic, &[]);
    let began = Instant::now();
    loop {
        let latest = settled(&reader).await.partitions[&queue(0)].latest;
        if latest == 6 {
            break;
        }
        assert!(began.elapsed() < HANGS, "{latest} of 6 messages are there");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let mut found = ids(&reader, 0, 0, 6).await.unwrap();
    let at_once: Vec<i64> = found.iter().copied().filter(|id| id % 2 == 0).collect();
    assert_eq!(at_once, [0, 2, 4], "what is not delayed is in order");
    found.sort_unstable();
    assert_eq!(found, (0..6).collect::<Vec<_>>());
    reader.close().await;

    let mut both = definition.as_ref().clone();
    both.options.insert(DELIVERY.into(), "effectively-once".into());
    let error = RocketmqConnector.check(&both, Role::Sink).unwrap_err();
    assert_eq!(error.kind(), Kind::Usage);
    assert!(error.to_string().contains("metadata 'delay-level' does not go with"), "{error}");
}

/// Groups come, change, go and come again: whoever keeps the newest message of each key has the batch answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_changes_is_upserts_and_tombstones() {
    let topic = new_topic("upserts", 4, &[]);
    let select = "SELECT area, k, count(*) AS many, sum(n) AS total
        FROM (SELECT concat('zone ', CAST(n % 2 AS VARCHAR)) AS area, n % 7 AS k, n FROM numbers) AS cut
        GROUP BY area, k HAVING count(*) % 3 <> 0";
    let script = format!(
        "SET 'checkpoint.location' = 'memory://ck'; SET 'parallelism' = '2';
         CREATE TABLE numbers (n BIGINT) WITH ('connector' = 'memory', 'topic' = 'numbers');
         CREATE TABLE totals (area STRING, k BIGINT, many BIGINT, total BIGINT, PRIMARY KEY (area, k) NOT ENFORCED)
           WITH ('connector' = 'rocketmq', 'name-server' = '{}', 'topic' = '{topic}', 'format' = 'json');
         INSERT INTO totals {select};",
        name_server()
    );
    let world = World::new();
    world.append("numbers", 0, 0..0);
    let mut query = Query::open(world.plan(&script, None).await, Reporter::silent()).await.unwrap();
    for (epoch, ends) in (0..).zip([0, 10, 40, 90, 140, 173].windows(2)) {
        world.append("numbers", epoch % 2, ends[0]..ends[1]);
        finish(&mut query).await.unwrap();
    }
    query.close().await;
    let reader = source(&topic, &[]);
    settled(&reader).await;
    reader.close().await;

    let (mut kept, mut homes, mut tombstones) = (BTreeMap::new(), BTreeMap::new(), 0);
    let messages = tool(&["consume", &name_server(), &topic], "");
    for message in &messages {
        let message: serde_json::Value = serde_json::from_str(message).unwrap();
        let keys = message["keys"].as_str().unwrap().to_string();
        let queue = message["queue"].as_i64().unwrap();
        assert_eq!(*homes.entry(keys.clone()).or_insert(queue), queue, "one key, one queue");
        let row: serde_json::Value = serde_json::from_str(message["body"].as_str().unwrap()).unwrap();
        assert_eq!(message["properties"]["tombstone"].as_str(), row.is_null().then_some("true"));
        if row.is_null() {
            tombstones += 1;
            assert!(kept.remove(&keys).is_some(), "a tombstone of {keys}, which was not there");
            continue;
        }
        let area = row["area"].as_str().unwrap().replace(' ', "%20");
        assert_eq!(keys, format!("{area} {}", row["k"]));
        kept.insert(keys, (row["many"].as_i64().unwrap(), row["total"].as_i64().unwrap()));
    }
    let batch = select.replace("FROM numbers", "FROM generate_series(0, 172) AS numbers(n)");
    let batches = SessionContext::new().sql(&batch).await.unwrap().collect().await.unwrap();
    let mut expected = BTreeMap::new();
    for batch in &batches {
        let zones = arrow::compute::cast(batch.column(0), &DataType::Utf8).unwrap();
        let number = |column: usize, row: usize| batch.column(column).as_primitive::<Int64Type>().value(row);
        for (row, zone) in zones.as_string::<i32>().iter().flatten().enumerate() {
            let keys = format!("{} {}", zone.replace(' ', "%20"), number(1, row));
            expected.insert(keys, (number(2, row), number(3, row)));
        }
    }
    assert_eq!(kept, expected);
    // In an epoch a group that changed is one message: if it passes, or if it did before.
    assert_eq!((messages.len(), tombstones), (58, 21));
}

/// Rows that stay have keys as well, and rows of one key keep their order.
#[tokio::test(flavor = "multi_thread")]
async fn keys_are_made_of_the_primary_key() {
    let topic = new_topic("keys", 3, &[]);
    let mut definition = table(&topic, &[]).as_ref().clone();
    definition.columns.truncate(2);
    assert!(!RocketmqConnector.takes_updates(&definition));
    definition.primary_key = vec!["text".into()];
    assert!(RocketmqConnector.takes_updates(&definition));
    RocketmqConnector.check(&definition, Role::Sink).unwrap();
    let definition = Arc::new(definition);
    let sink = RocketmqSink::try_new(Arc::clone(&definition), &Clock::system(), &owner()).unwrap();
    sink.open(1).await.unwrap();
    let text = StringViewArray::from_iter((0..60).map(|id| (id % 4 > 0).then(|| format!("text {}", id % 4))));
    let columns: Vec<ArrayRef> = vec![Arc::new(Int64Array::from_iter_values(0..60)), Arc::new(text)];
    let rows = RecordBatch::try_new(definition.writable_schema(), columns).unwrap();
    assert_eq!(write(&sink, 1, vec![vec![rows]]).await.unwrap().rows, 60);
    sink.close().await;

    let reader = source(&topic, &[]);
    let mut of_key: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for (partition, bounds) in settled(&reader).await.partitions {
        let (rows, _) = read(&reader, Span::new(partition, bounds.earliest, bounds.latest), &[0, 10]).await.unwrap();
        let (ids, keys) = (rows.column(0).as_primitive::<Int64Type>(), rows.column(1).as_string_view());
        for (row, key) in keys.iter().enumerate() {
            of_key.entry(key.unwrap_or("none").to_string()).or_default().push(ids.value(row));
        }
    }
    reader.close().await;
    assert_eq!(of_key.remove("none").unwrap().len(), 15, "NULL is no key");
    let expected: BTreeMap<String, Vec<i64>> =
        (1..4).map(|rest| (format!("text {rest}"), (0..60).filter(|id| id % 4 == rest).collect())).collect();
    assert_eq!(of_key, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_too_large_is_found_before_anything_is_sent() {
    let topic = new_topic("large", 1, &[]);
    let table = table(&topic, &[]);
    let sink = RocketmqSink::try_new(Arc::clone(&table), &Clock::system(), &owner()).unwrap();
    sink.open(1).await.unwrap();
    let small = rows(&table, &[1, 2], "small", |_| None);
    let error = write(&sink, 1, vec![vec![small.clone(), rows(&table, &[3], &"x".repeat(4 << 20), |_| None)]]).await;
    let error = error.unwrap_err();
    assert_eq!(error.kind(), Kind::Data);
    assert!(error.to_string().contains(&format!("table orders: topic {topic}: row 2 of task 0 in epoch 1")), "{error}");
    assert!(error.to_string().contains("bytes, and 4128768 is the most"), "{error}");

    // As large as can be, beside small ones: the broker takes it.
    let largest = rows(&table, &[4], &"x".repeat((4 << 20) - (64 << 10) - 200), |_| None);
    assert_eq!(write(&sink, 2, vec![vec![small, largest]]).await.unwrap().rows, 3);
    let empty = rows(&table, &[5], "x", |_| Some(String::new()));
    assert_eq!(write(&sink, 3, vec![vec![empty]]).await.unwrap_err().kind(), Kind::Data);
    sink.close().await;

    let source = source(&topic, &[]);
    assert_eq!(ids(&source, 0, 0, 3).await.unwrap(), [1, 2, 4]);
    assert_eq!(source.extent().await.unwrap().partitions[&queue(0)].latest, 3);
    source.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_is_quick_and_dropping_does_not_hang() {
    let topic = new_topic("close", 1, &[]);
    produce(&topic, 0, 0, 100, &["--batch", "100"]);
    // A scan of no query has a group of its own, which goes with it.
    let scan = RocketmqSource::try_new(table(&topic, &[]), &Clock::system(), None).unwrap();
    assert_eq!(ids(&scan, 0, 0, 100).await.unwrap().len(), 100);
    let began = Instant::now();
    scan.close().await;
    assert!(began.elapsed() < HANGS, "{:?}", began.elapsed());

    let began = Instant::now();
    let source = source(&topic, &[]);
    let mut stream = source.read(&Span::new(queue(0), 0, 100), &[0], &ReadReport::default()).unwrap();
    stream.next().await.unwrap().unwrap();
    drop(stream);
    drop(source);
    let sink = RocketmqSink::try_new(table(&topic, &[]), &Clock::system(), &owner()).unwrap();
    sink.open(1).await.unwrap();
    drop(sink);
    assert!(began.elapsed() < HANGS, "{:?}", began.elapsed());
}

/// `runtime::shutdown` would end the other tests' connections, so this one is a process of its own.
#[test]
fn a_process_ends_soon_after_its_last_table() {
    const CHILD: &str = "MILLSTREAM_TEST_CHILD_TOPIC";
    let tokio = || tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    if let Ok(topic) = std::env::var(CHILD) {
        tokio().block_on(async {
            let left_open = source(&topic, &[]);
            assert_eq!(ids(&left_open, 0, 0, 5).await.unwrap().len(), 5);
            let began = Instant::now();
            runtime::shutdown().await;
            let took = began.elapsed();
            assert!(took < HANGS, "{took:?}");
            // It can be started anew.
            let source = source(&topic, &[]);
            assert_eq!(ids(&source, 0, 0, 5).await.unwrap().len(), 5);
            source.close().await;
            drop(source);
            let began = Instant::now();
            runtime::shutdown().await;
            assert!(began.elapsed() < HANGS, "{:?}", began.elapsed());
            eprintln!("with a table left open {took:?}, in order {:?}", began.elapsed());
        });
        return;
    }
    let topic = new_topic("shutdown", 1, &[]);
    produce(&topic, 0, 0, 5, &[]);
    let name = "a_process_ends_soon_after_its_last_table";
    let status = Command::new(std::env::current_exe().unwrap())
        .args([&format!("rocketmq::{name}"), "--exact", "--nocapture"])
        .env(CHILD, &topic)
        .status()
        .unwrap();
    assert!(status.success());
}

//! The Kafka connector against a real broker, named by `MILLSTREAM_TEST_KAFKA` (such as `127.0.0.1:9092`).
//!
//! Every test has a topic of its own, so they run side by side and again on the same broker.

// Some tests are about whether something ends at all.
#![allow(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arrow::array::{
    Array, AsArray, BinaryArray, Int8Array, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMillisecondArray,
};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Fields, Int32Type, Int64Type, Schema, TimeUnit, TimestampMillisecondType};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::prelude::SessionContext;
use futures::{StreamExt, TryStreamExt};
use millstream::catalog::{Column, ColumnKind, TableDefinition};
use millstream::checkpoint::Journal;
use millstream::clock::Clock;
use millstream::connector::contract::{self, SinkCase, SourceCase};
use millstream::connector::kafka::KafkaConnector;
use millstream::connector::{
    Bounds, Connector, Delivery, Environment, Fingerprint, Offsets, Owner, Partition, Pin, Progress, Published,
    ReadReport, Role, Sink, Source, Span,
};
use millstream::error::{Error, Kind};
use millstream::plan::changes::{RowKind, with_kind};
use millstream::query::Query;
use millstream::query::progress::{Event, Reporter};
use millstream::storage::Stores;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use crate::harness::{World, finish, variable};

const TIMEOUT: Duration = Duration::from_secs(20);
/// What takes longer never ends.
const HANGS: Duration = Duration::from_secs(60);
/// Within this time a transaction that was ended has its markers; one without them is open.
const MARKERS: Duration = Duration::from_secs(2);

fn servers() -> String {
    std::env::var("MILLSTREAM_TEST_KAFKA")
        .expect("MILLSTREAM_TEST_KAFKA is not set: start brokers with scripts/brokers.sh, and export what it says")
}

fn clock() -> Clock {
    Clock::system()
}

/// A topic of this test alone.
pub struct Topic(pub String);

impl Topic {
    async fn create(partitions: i32, config: &[(&str, &str)]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("t-{}-{}", clock().random_id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Self::named(name, partitions, config).await
    }

    async fn named(name: String, partitions: i32, config: &[(&str, &str)]) -> Self {
        let mut topic = NewTopic::new(&name, partitions, TopicReplication::Fixed(1));
        topic.config = config.to_vec();
        admin().create_topics([&topic], &AdminOptions::new()).await.unwrap()[0].as_ref().unwrap();
        Self(name)
    }

    /// Adds partitions, up to so many.
    pub async fn grow(&self, partitions: usize) {
        let grown = NewPartitions::new(&self.0, partitions);
        admin().create_partitions([&grown], &AdminOptions::new()).await.unwrap()[0].as_ref().unwrap();
    }

    async fn delete(&self) {
        admin().delete_topics(&[&self.0], &AdminOptions::new()).await.unwrap()[0].as_ref().unwrap();
    }

    /// Drops the records of a partition before this offset, as retention does.
    pub async fn delete_records(&self, partition: i32, before: i64) {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.0, partition, Offset::Offset(before)).unwrap();
        admin().delete_records(&list, &AdminOptions::new()).await.unwrap();
    }

    fn partition(&self, number: u32) -> Partition {
        Partition::new(self.0.as_str(), number)
    }

    fn span(&self, number: u32, from: u64, to: u64) -> Span {
        Span::new(self.partition(number), from, to)
    }

    /// The options of a table over it, and some more.
    fn options(&self, more: &[(&str, &str)]) -> BTreeMap<String, String> {
        let servers = servers();
        let base = [
            ("connector", "kafka"),
            ("topic", self.0.as_str()),
            ("properties.bootstrap.servers", servers.as_str()),
            ("format", "json"),
        ];
        base.iter().chain(more).map(|(key, value)| (key.to_string(), value.to_string())).collect()
    }

    /// `id BIGINT, at BIGINT METADATA FROM 'offset' VIRTUAL`.
    fn table(&self, more: &[(&str, &str)]) -> TableDefinition {
        let at = metadata("at", "offset", DataType::Int64, true);
        table(vec![Column::physical("id", DataType::Int64), at], self.options(more))
    }

    async fn source(&self, more: &[(&str, &str)]) -> Arc<dyn Source> {
        open(self.table(more), 2).await
    }

    /// Writes `{"id": n}` for each of `ids`, of a time in ms each, all acknowledged.
    fn produce_at(&self, partition: i32, ids: std::ops::Range<i64>, time: impl Fn(i64) -> i64) {
        let producer = producer(&[]);
        for id in ids {
            let payload = format!("{{\"id\": {id}}}");
            let record: BaseRecord<'_, (), str> = BaseRecord::to(&self.0).partition(partition).payload(&payload);
            producer.send(record.timestamp(time(id))).unwrap();
        }
        producer.flush(TIMEOUT).unwrap();
    }

    /// Writes `{"id": n}` for each of `ids`, all acknowledged.
    fn produce(&self, partition: i32, ids: std::ops::Range<i64>) {
        let producer = producer(&[]);
        send(&producer, &self.0, partition, ids);
        producer.flush(TIMEOUT).unwrap();
    }
}

fn admin() -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", servers()).create().unwrap()
}

fn producer(config: &[(&str, &str)]) -> BaseProducer {
    let mut all = ClientConfig::new();
    all.set("bootstrap.servers", servers()).set("linger.ms", "5").set("enable.idempotence", "true");
    config.iter().for_each(|(key, value)| {
        all.set(*key, *value);
    });
    all.create().unwrap()
}

fn transactional() -> BaseProducer {
    let producer = producer(&[("transactional.id", &format!("tx-{}", clock().random_id()))]);
    producer.init_transactions(TIMEOUT).unwrap();
    producer
}

fn send(producer: &BaseProducer, topic: &str, partition: i32, ids: std::ops::Range<i64>) {
    for id in ids {
        let payload = format!("{{\"id\": {id}}}");
        let mut record: BaseRecord<'_, (), str> = BaseRecord::to(topic).partition(partition).payload(&payload);
        while let Err((error, back)) = producer.send(record) {
            assert!(matches!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull)), "{error}");
            producer.poll(Duration::from_millis(5));
            record = back;
        }
    }
}

fn metadata(name: &str, key: &str, data_type: DataType, is_virtual: bool) -> Column {
    let kind = ColumnKind::Metadata { key: key.into(), is_virtual };
    Column { name: name.into(), data_type, nullable: true, kind }
}

fn table(columns: Vec<Column>, options: BTreeMap<String, String>) -> TableDefinition {
    TableDefinition {
        name: "orders".into(),
        columns,
        primary_key: vec![],
        watermark: None,
        partitioned_by: vec![],
        options,
    }
}

fn environment(parallelism: usize) -> Environment {
    Environment { stores: Stores::new(clock()), clock: clock(), settings: Arc::default(), parallelism }
}

async fn open(table: TableDefinition, parallelism: usize) -> Arc<dyn Source> {
    KafkaConnector.check(&table, Role::Source).unwrap();
    KafkaConnector.source(Arc::new(table), &environment(parallelism), None).await.unwrap()
}

async fn open_sink(table: TableDefinition) -> Arc<dyn Sink> {
    KafkaConnector.check(&table, Role::Sink).unwrap();
    let owner = Owner { id: "0123456789abcdef".into(), journal: Journal::detached() };
    KafkaConnector.sink(Arc::new(table), &environment(2), &owner).await.unwrap()
}

async fn bounds(source: &Arc<dyn Source>, partition: &Partition) -> (u64, u64) {
    let Bounds { earliest, latest } = source.extent().await.unwrap().partitions[partition];
    (earliest, latest)
}

/// Waits for the partition to end at `latest`: the markers of a transaction are written after its commit returns.
async fn ends_at(source: &Arc<dyn Source>, partition: &Partition, latest: u64) {
    for _ in 0..200 {
        if bounds(source, partition).await.1 == latest {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("{partition} ends at {}, not at {latest}", bounds(source, partition).await.1);
}

async fn batches(source: &Arc<dyn Source>, span: &Span, projection: &[usize]) -> Result<Vec<RecordBatch>, Error> {
    let rows = source.read(span, projection, &ReadReport::default())?;
    rows.try_collect().await.map_err(Error::from)
}

/// The ids and offsets of a span.
async fn read(source: &Arc<dyn Source>, span: &Span) -> Result<Vec<(i64, i64)>, Error> {
    let batches = tokio::time::timeout(TIMEOUT, batches(source, span, &[0, 1])).await.expect("a read that ends")?;
    Ok(rows_of(&batches))
}

/// The ids and offsets in some batches.
fn rows_of(batches: &[RecordBatch]) -> Vec<(i64, i64)> {
    let rows = batches.iter().flat_map(|batch| {
        let (ids, at) = (batch.column(0).as_primitive::<Int64Type>(), batch.column(1).as_primitive::<Int64Type>());
        (0..batch.num_rows()).map(|row| (ids.value(row), at.value(row))).collect::<Vec<_>>()
    });
    rows.collect()
}

async fn ids(source: &Arc<dyn Source>, span: &Span) -> Vec<i64> {
    read(source, span).await.unwrap().into_iter().map(|(id, _)| id).collect()
}

/// Rows whose id is their offset.
fn dense(range: std::ops::Range<i64>) -> Vec<(i64, i64)> {
    range.map(|n| (n, n)).collect()
}

/// A log as transactions leave it: committed, aborted and plain rows, markers between them and at the end.
#[tokio::test(flavor = "multi_thread")]
async fn the_source_keeps_the_contract() {
    let topic = Topic::create(3, &[]).await;
    let (producer, mut rows) = (transactional(), BTreeMap::new());
    for partition in 0..2 {
        let mut kept = vec![];
        for round in 0..6i64 {
            let ids = round * 10..round * 10 + 1 + (round + partition) % 5;
            if round % 3 == 2 {
                topic.produce(partition as i32, ids.clone());
                kept.extend(ids);
                continue;
            }
            producer.begin_transaction().unwrap();
            send(&producer, &topic.0, partition as i32, ids.clone());
            producer.flush(TIMEOUT).unwrap();
            if (round + partition) % 2 == 0 {
                producer.commit_transaction(TIMEOUT).unwrap();
                kept.extend(ids);
            } else {
                producer.abort_transaction(TIMEOUT).unwrap();
            }
        }
        let schema = Arc::new(Schema::new(vec![Field::new("id", DataType::Int64, true)]));
        let kept = RecordBatch::try_new(schema, vec![Arc::new(Int64Array::from(kept))]);
        rows.insert(topic.partition(partition as u32), kept.unwrap());
    }
    let mut table = topic.table(&[("scan.bounded.mode", "latest-offset")]);
    table.columns.push(metadata("ts", "timestamp", DataType::Timestamp(TimeUnit::Millisecond, None), true));
    table.columns.push(metadata("headers", "headers", headers_type(), true));
    let case = SourceCase { table: Arc::new(table.clone()), rows, bounded: true };
    contract::source(&case, async || open(table.clone(), 2).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sink_keeps_the_contract() {
    for (partitions, delivery) in [(1, "at-least-once"), (3, "at-least-once"), (1, "exactly-once"), (3, "exactly-once")]
    {
        let topic = Topic::create(partitions, &[]).await;
        let mut definition = outgoing(&topic, &[("key.fields", "id"), ("sink.delivery-guarantee", delivery)]);
        let rows = rows(&definition, 0..40).project(&[0, 1, 2]).unwrap();
        // No headers and NULL headers are the same message, so they would not be read as they were written.
        definition.columns.retain(|column| column.name != "headers");
        // Rows enter a transaction when they come, whichever task is first.
        let ordered = partitions == 1 && delivery == "at-least-once";
        let case = SinkCase { rows, ordered, fences: delivery == "exactly-once" };
        let source = open(definition.clone(), 2).await;
        let mut uncommitted = definition.clone();
        uncommitted.options.insert("properties.isolation.level".into(), "read_uncommitted".into());
        let all = open(uncommitted, 2).await;
        let visible = async || {
            let mut seen = vec![];
            // The markers of a transaction are written after its commit returns; one that is open has none.
            let begin = Instant::now();
            let extent = loop {
                let (extent, all) = (source.extent().await.unwrap(), all.extent().await.unwrap());
                // What the broker is too busy to answer for is left out.
                let is_whole = extent.partitions.len() == partitions as usize;
                if is_whole && (extent == all || begin.elapsed() >= MARKERS) {
                    break extent;
                }
                assert!(begin.elapsed() < 10 * MARKERS, "{extent:?}");
                tokio::time::sleep(Duration::from_millis(25)).await;
            };
            for (partition, bounds) in extent.partitions {
                let span = Span::new(partition, bounds.earliest, bounds.latest);
                seen.extend(batches(&source, &span, &[0, 1, 2]).await.unwrap().iter().flat_map(contract::lines));
            }
            Some(seen)
        };
        contract::sink(&case, async || open_sink(definition.clone()).await, visible).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_are_exact_in_any_order_and_equal_when_read_again() {
    let topic = Topic::create(3, &[]).await;
    (0..3).for_each(|partition| topic.produce(partition, 0..30_000));
    let source = topic.source(&[]).await;
    let start = source.start().await.unwrap();
    assert_eq!(start.into_iter().collect::<Vec<_>>(), [0, 1, 2].map(|n| (topic.partition(n), 0)));
    let spans = [(0, 0, 10), (0, 10, 9_000), (0, 9_000, 30_000), (1, 29_999, 30_000), (1, 17, 12_345), (1, 0, 17)];
    let again = [(0, 5, 6), (2, 0, 30_000), (0, 8_191, 8_193), (1, 17, 12_345), (2, 3, 3), (2, 29_000, 30_000)];
    for (number, from, to) in spans.into_iter().chain(again) {
        let span = topic.span(number, from, to);
        assert_eq!(read(&source, &span).await.unwrap(), dense(from as i64..to as i64), "{span}");
    }
    source.close().await;
    assert_eq!(source.extent().await.unwrap_err().kind(), Kind::Internal);
}

#[tokio::test(flavor = "multi_thread")]
async fn consecutive_spans_do_not_seek_and_jumps_do() {
    let topic = Topic::create(1, &[]).await;
    topic.produce(0, 0..50_000);
    let source = topic.source(&[]).await;
    let mut random = 7u64;
    let mut from = 0;
    for _ in 0..60 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let length = 1 + (random >> 33) % 1_500;
        if random >> 60 == 0 {
            from = (random >> 20) % 48_000;
        }
        let to = (from + length).min(50_000);
        assert_eq!(read(&source, &topic.span(0, from, to)).await.unwrap(), dense(from as i64..to as i64));
        from = if to == 50_000 { 0 } else { to };
    }
    source.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_are_read_side_by_side() {
    let topic = Topic::create(4, &[]).await;
    (0..4).for_each(|partition| topic.produce(partition, 0..20_000));
    let source = topic.source(&[]).await;
    let reads = (0..4).map(|n| {
        let (source, span) = (Arc::clone(&source), topic.span(n, 100, 20_000));
        async move { ids(&source, &span).await.len() }
    });
    assert_eq!(futures::future::join_all(reads).await, [19_900; 4]);
    // The same span by two scans at once, one of which is only begun: neither waits for the other.
    let span = topic.span(0, 0, 20_000);
    let mut idle = source.read(&span, &[0], &ReadReport::default()).unwrap();
    let first = idle.next().await.unwrap().unwrap().num_rows();
    assert_eq!(ids(&source, &span).await.len(), 20_000);
    let rest: Vec<_> = idle.try_collect().await.unwrap();
    assert_eq!(first + rest.iter().map(RecordBatch::num_rows).sum::<usize>(), 20_000);
    source.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transactions_marker_and_an_aborted_tail_end_a_span() {
    let topic = Topic::create(1, &[]).await;
    let producer = transactional();
    producer.begin_transaction().unwrap();
    send(&producer, &topic.0, 0, 0..5);
    producer.commit_transaction(TIMEOUT).unwrap();
    let source = topic.source(&[]).await;
    ends_at(&source, &topic.partition(0), 6).await;
    assert_eq!(read(&source, &topic.span(0, 0, 6)).await.unwrap(), dense(0..5));

    producer.begin_transaction().unwrap();
    send(&producer, &topic.0, 0, 100..103);
    producer.flush(TIMEOUT).unwrap();
    producer.abort_transaction(TIMEOUT).unwrap();
    ends_at(&source, &topic.partition(0), 10).await;
    assert_eq!(read(&source, &topic.span(0, 0, 10)).await.unwrap(), dense(0..5), "read again, over both");
    // Nothing but gaps: the marker alone, the aborted rows alone, a part of them.
    for (from, to) in [(5, 6), (5, 10), (6, 9), (7, 8), (9, 10)] {
        assert_eq!(read(&source, &topic.span(0, from, to)).await.unwrap(), [], "{from}..{to}");
    }
    topic.produce(0, 10..12);
    assert_eq!(read(&source, &topic.span(0, 10, 12)).await.unwrap(), dense(10..12));
    source.close().await;

    let careless = topic.source(&[("properties.isolation.level", "read_uncommitted")]).await;
    assert_eq!(ids(&careless, &topic.span(0, 0, 12)).await, [0, 1, 2, 3, 4, 100, 101, 102, 10, 11]);
    careless.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_transaction_is_behind_the_end() {
    let topic = Topic::create(1, &[]).await;
    topic.produce(0, 0..4);
    let producer = transactional();
    producer.begin_transaction().unwrap();
    send(&producer, &topic.0, 0, 4..7);
    producer.flush(TIMEOUT).unwrap();
    topic.produce(0, 7..9);
    let source = topic.source(&[]).await;
    assert_eq!(bounds(&source, &topic.partition(0)).await, (0, 4));
    assert_eq!(read(&source, &topic.span(0, 0, 4)).await.unwrap(), dense(0..4));
    let careless = topic.source(&[("properties.isolation.level", "read_uncommitted")]).await;
    assert_eq!(bounds(&careless, &topic.partition(0)).await, (0, 9));
    careless.close().await;

    producer.commit_transaction(TIMEOUT).unwrap();
    ends_at(&source, &topic.partition(0), 10).await;
    assert_eq!(read(&source, &topic.span(0, 4, 10)).await.unwrap(), dense(4..9));
    source.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_end_event_does_not_end_the_next_span() {
    let topic = Topic::create(1, &[]).await;
    let source = topic.source(&[]).await;
    let mut from = 0;
    for round in 0..20 {
        let to = from + 1 + round % 7;
        topic.produce(0, from as i64..to as i64);
        assert_eq!(read(&source, &topic.span(0, from, to)).await.unwrap(), dense(from as i64..to as i64));
        // Time for the event to be fetched ahead of the next span's messages.
        tokio::time::sleep(Duration::from_millis(40)).await;
        from = to;
    }
    source.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gaps_across_the_end_of_a_span_are_remembered() {
    let topic = Topic::create(1, &[]).await;
    let producer = transactional();
    let mut expected = vec![];
    for round in 0..40i64 {
        producer.begin_transaction().unwrap();
        send(&producer, &topic.0, 0, round * 10..round * 10 + 3);
        producer.flush(TIMEOUT).unwrap();
        if round % 3 == 0 {
            producer.abort_transaction(TIMEOUT).unwrap();
        } else {
            producer.commit_transaction(TIMEOUT).unwrap();
            expected.extend((0..3).map(|n| (round * 10 + n, round * 4 + n)));
        }
    }
    let source = topic.source(&[]).await;
    ends_at(&source, &topic.partition(0), 160).await;
    for step in [1, 2, 3, 5, 7, 160] {
        let mut seen = vec![];
        for from in (0..160).step_by(step) {
            let to = (from + step as u64).min(160);
            let rows = read(&source, &topic.span(0, from, to)).await.unwrap();
            assert!(rows.iter().all(|(_, at)| (from as i64..to as i64).contains(at)), "{from}..{to}: {rows:?}");
            seen.extend(rows);
        }
        assert_eq!(seen, expected, "in steps of {step}");
    }
    source.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn offsets_that_are_gone_are_data_loss() {
    let topic = Topic::create(2, &[]).await;
    topic.produce(0, 0..100);
    topic.delete_records(0, 40).await;
    let source = topic.source(&[]).await;
    assert_eq!(bounds(&source, &topic.partition(0)).await, (40, 100));
    assert_eq!(source.start().await.unwrap()[&topic.partition(0)], 40);
    let error = read(&source, &topic.span(0, 10, 50)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::DataLoss, "{}", error.chain());
    let text = error.to_string();
    assert!(text.contains("offsets 10..40 of") && text.contains("there are 40..100"), "{text}");
    assert_eq!(read(&source, &topic.span(0, 40, 100)).await.unwrap(), dense(40..100), "usable after it");
    // An end that the partition never had, or no longer has.
    let error = read(&source, &topic.span(0, 100, 130)).await;
    let error = error.unwrap_err();
    assert_eq!(error.kind(), Kind::DataLoss, "{}", error.chain());
    let error = read(&source, &topic.span(1, 7, 9)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::DataLoss, "{}", error.chain());
    source.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_compression_is_read() {
    let topic = Topic::create(1, &[]).await;
    let codecs = ["none", "gzip", "snappy", "lz4", "zstd"];
    for (index, codec) in codecs.iter().enumerate() {
        let producer = producer(&[("compression.type", codec)]);
        send(&producer, &topic.0, 0, index as i64 * 1_000..(index as i64 + 1) * 1_000);
        producer.flush(TIMEOUT).unwrap();
    }
    let source = topic.source(&[]).await;
    assert_eq!(read(&source, &topic.span(0, 0, 5_000)).await.unwrap(), dense(0..5_000));
    source.close().await;
}

fn headers_type() -> DataType {
    let entry =
        Fields::from(vec![Field::new("key", DataType::Utf8View, false), Field::new("value", DataType::Binary, true)]);
    DataType::Map(Arc::new(Field::new("entries", DataType::Struct(entry), false)), false)
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_becomes_columns() {
    let topic = Topic::create(2, &[]).await;
    let producer = producer(&[]);
    let headers = OwnedHeaders::new()
        .insert(Header { key: "a", value: Some("1") })
        .insert(Header { key: "a", value: Some("2") })
        .insert(Header { key: "none", value: None::<&str> });
    let full = BaseRecord::to(&topic.0).partition(1).key("k").payload("{\"id\": 1}").timestamp(1_700_000_000_123);
    producer.send(full.headers(headers)).unwrap();
    let bare: BaseRecord<'_, str, str> = BaseRecord::to(&topic.0).partition(1).payload("{\"id\": 2}");
    producer.send(bare.timestamp(1_700_000_000_456)).unwrap();
    producer.flush(TIMEOUT).unwrap();

    let columns = vec![
        metadata("topic", "topic", DataType::Utf8View, true),
        metadata("part", "partition", DataType::Int32, true),
        Column::physical("id", DataType::Int64),
        metadata("ts", "timestamp", DataType::Timestamp(TimeUnit::Millisecond, None), false),
        metadata("kind", "timestamp-type", DataType::Utf8, true),
        metadata("headers", "headers", headers_type(), false),
        metadata("key", "key", DataType::Binary, false),
        metadata("leader", "leader-epoch", DataType::Int32, true),
    ];
    let source = open(table(columns, topic.options(&[])), 1).await;
    let report = ReadReport::default();
    let span = topic.span(1, 0, 2);
    let rows = source.read(&span, &[0, 1, 2, 3, 4, 5, 6, 7], &report).unwrap();
    let rows: Vec<RecordBatch> = rows.try_collect().await.unwrap();
    let rows = arrow::compute::concat_batches(&rows[0].schema(), &rows).unwrap();
    assert_eq!(rows.column(0).as_string_view().value(1), topic.0);
    assert_eq!(rows.column(1).as_primitive::<Int32Type>().values(), &[1, 1]);
    assert_eq!(rows.column(2).as_primitive::<Int64Type>().values(), &[1, 2]);
    let times = rows.column(3).as_primitive::<TimestampMillisecondType>();
    assert_eq!(times.values(), &[1_700_000_000_123, 1_700_000_000_456]);
    assert_eq!(rows.column(4).as_string::<i32>().value(0), "CreateTime");
    let maps = rows.column(5).as_map();
    assert_eq!((maps.value_length(0), maps.value_length(1)), (3, 0));
    let names: Vec<_> = maps.keys().as_string_view().iter().flatten().collect();
    assert_eq!(names, ["a", "a", "none"]);
    let values: Vec<_> = maps.values().as_binary::<i32>().iter().collect();
    assert_eq!(values, [Some(&b"1"[..]), Some(b"2"), None]);
    let keys: Vec<_> = rows.column(6).as_binary::<i32>().iter().collect();
    assert_eq!(keys, [Some(&b"k"[..]), None]);
    assert_eq!(rows.column(7).as_primitive::<Int32Type>().values(), &[0, 0], "it was never moved");

    let seen = report.take().remove(&topic.partition(1)).unwrap();
    assert_eq!((seen.messages, seen.bytes), (2, 18));
    let last = seen.last.unwrap();
    assert_eq!((last.offset, last.timestamp, last.id), (1, Some(1_700_000_000_456), None));
    source.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_starts_where_the_options_say() {
    let topic = Topic::create(2, &[]).await;
    topic.produce(0, 0..10);
    topic.produce(1, 0..5);
    let start = async |mode: &[(&str, &str)]| topic.source(mode).await.start().await;
    let at = |zero, one| [(topic.partition(0), zero), (topic.partition(1), one)].into_iter().collect();
    assert_eq!(start(&[]).await.unwrap(), at(0, 0));
    assert_eq!(start(&[("scan.startup.mode", "latest-offset")]).await.unwrap(), at(10, 5));
    let specific =
        async |text| start(&[("scan.startup.mode", "specific-offsets"), ("scan.startup.specific-offsets", text)]).await;
    assert_eq!(specific("partition:0,offset:10").await.unwrap(), at(10, 0));
    assert_eq!(specific("partition:0,offset:3;partition:1,offset:4").await.unwrap(), at(3, 4));
    let error = specific("partition:1,offset:6").await.unwrap_err();
    assert!(error.kind() == Kind::Usage && error.to_string().contains("which holds 0..5"), "{error}");
    let error = specific("partition:7,offset:0").await.unwrap_err();
    assert!(error.kind() == Kind::Usage && error.to_string().contains("-offsets': there is no t-"), "{error}");
}

/// What the tool that is Kafka's own Java client says.
fn java(arguments: &[&str]) -> String {
    let tool = format!("{} \"$@\"", variable("MILLSTREAM_TEST_KAFKA_TOOL"));
    let server = servers();
    let arguments = [&["-c", &tool, "tool", arguments[0], &server], &arguments[1..]].concat();
    let output = Command::new("sh").args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn new_group() -> String {
    format!("g-{}", clock().random_id())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_begins_and_ends_at_times_and_where_a_group_stands() {
    let topic = Topic::create(2, &[]).await;
    let time = |id: i64| 1_700_000_000_000 + id * 1000;
    topic.produce_at(0, 0..10, time);
    topic.produce_at(1, 0..5, time);
    let group = new_group();
    java(&["commit", &group, &topic.0, "0=4"]);
    let at = |zero, one| Offsets::from([(topic.partition(0), zero), (topic.partition(1), one)]);
    let times = [time(3) + 1, time(7)].map(|ms| ms.to_string());
    let [between, late] = times.each_ref().map(String::as_str);
    let of_group = ("properties.group.id", group.as_str());
    for side in ["startup", "bounded"] {
        let names = ["mode", "default", "timestamp-millis", "specific-offsets"];
        let keys = names.map(|name| format!("scan.{side}.{name}"));
        let [mode, default, millis, list] = keys.each_ref().map(String::as_str);
        for (options, expected) in [
            (vec![(mode, "earliest-offset")], at(0, 0)),
            (vec![(mode, "latest-offset")], at(10, 5)),
            (vec![(mode, "group-offsets"), of_group], at(4, 0)),
            (vec![(mode, "group-offsets"), of_group, (default, "latest-offset")], at(4, 5)),
            (vec![(mode, "timestamp"), (millis, between)], at(4, 4)),
            (vec![(mode, "timestamp"), (millis, late)], at(7, 5)),
            (vec![(mode, "specific-offsets"), (list, "partition:1,offset:3")], at(0, 3)),
        ] {
            let source = topic.source(&options).await;
            let offsets = match side {
                "startup" => source.start().await.unwrap(),
                _ => source.end().await.unwrap().unwrap(),
            };
            assert_eq!(offsets, expected, "{options:?}");
            source.close().await;
        }
    }
    assert_eq!(topic.source(&[]).await.end().await.unwrap(), None);
    let ahead = [("scan.bounded.mode", "specific-offsets"), ("scan.bounded.specific-offsets", "partition:0,offset:99")];
    assert_eq!(topic.source(&ahead).await.end().await.unwrap(), Some(at(99, 0)));
    let nobody = new_group();
    let unknown = [("scan.startup.mode", "group-offsets"), ("properties.group.id", nobody.as_str())];
    assert_eq!(topic.source(&unknown).await.start().await.unwrap(), at(0, 0), "a group that nobody knows");
}

#[tokio::test(flavor = "multi_thread")]
async fn how_far_a_query_is_shows_in_its_consumer_group() {
    let topic = Topic::create(2, &[]).await;
    topic.produce(0, 0..5);
    let group = new_group();
    let of_group = ("properties.group.id", group.as_str());
    let source = topic.source(&[of_group]).await;
    let next = |zero, one| Offsets::from([(topic.partition(0), zero), (topic.partition(1), one)]);
    source.acknowledge(&next(3, 0)).await;
    let expected = BTreeMap::from([(0, 5), (1, 0)]);
    let seen = || {
        let seen = java(&["group", &group]);
        let seen = seen.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let seen = seen.inspect(|next| assert_eq!(next["topic"].as_str(), Some(topic.0.as_str())));
        let seen = seen.map(|next| (next["partition"].as_i64().unwrap(), next["offset"].as_i64().unwrap()));
        seen.collect::<BTreeMap<i64, i64>>()
    };
    let begin = Instant::now();
    source.acknowledge(&next(5, 0)).await;
    while seen() != expected {
        // A group's coordinator takes a moment to be there.
        assert!(begin.elapsed() < HANGS, "{:?}", seen());
        source.acknowledge(&next(5, 0)).await;
    }
    source.close().await;
    source.acknowledge(&next(5, 0)).await;
    let again = topic.source(&[of_group, ("scan.startup.mode", "group-offsets")]).await;
    assert_eq!(again.start().await.unwrap(), next(5, 0));
    again.close().await;
    assert_eq!(seen(), expected, "a commit that was late does not take it back");
    // Without a group, and without a broker, it is nobody's trouble.
    topic.source(&[]).await.acknowledge(&next(5, 0)).await;
    let begin = Instant::now();
    let nowhere = topic.source(&[of_group, ("properties.bootstrap.servers", "127.0.0.1:1")]).await;
    nowhere.acknowledge(&next(5, 0)).await;
    nowhere.close().await;
    assert!(begin.elapsed() < HANGS, "{:?}", begin.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn several_topics_are_one_stream() {
    let (one, two) = (Topic::create(1, &[]).await, Topic::create(2, &[]).await);
    one.produce(0, 0..10);
    two.produce(0, 0..20);
    two.produce(1, 0..30);
    let both = format!("{};{}", two.0, one.0);
    let listed = format!("topic:{},partition:1,offset:7", two.0);
    let options = [
        ("topic", both.as_str()),
        ("scan.startup.mode", "specific-offsets"),
        ("scan.startup.specific-offsets", listed.as_str()),
    ];
    let mut table = one.table(&options);
    table.columns.push(metadata("topic", "topic", DataType::Utf8, true));
    let source = open(table, 2).await;
    let ends: Vec<_> = source.extent().await.unwrap().partitions.into_iter().map(|(p, b)| (p, b.latest)).collect();
    assert_eq!(
        BTreeMap::from_iter(ends),
        BTreeMap::from([(one.partition(0), 10), (two.partition(0), 20), (two.partition(1), 30)])
    );
    let start = source.start().await.unwrap();
    assert_eq!(start, Offsets::from([(one.partition(0), 0), (two.partition(0), 0), (two.partition(1), 7)]));
    for span in [one.span(0, 0, 10), two.span(0, 3, 20), two.span(1, 7, 30), one.span(0, 4, 6)] {
        assert_eq!(read(&source, &span).await.unwrap(), dense(span.from as i64..span.to as i64), "{span}");
        let names = batches(&source, &span, &[2]).await.unwrap();
        assert_eq!(names[0].column(0).as_string::<i32>().value(0), &*span.partition.name);
    }
    source.close().await;
    let missing = format!("{};{}x", one.0, two.0);
    let error = one.source(&[("topic", &missing)]).await.start().await.unwrap_err();
    assert_eq!(error.kind(), Kind::Usage);
    assert!(error.to_string().contains(&format!("there is no topic '{}x'", two.0)), "{error}");
}

/// Waits for the source to have so many partitions.
async fn has_partitions(source: &Arc<dyn Source>, count: usize) {
    let begin = Instant::now();
    while source.extent().await.unwrap().partitions.len() < count {
        assert!(begin.elapsed() < HANGS, "there are no {count} partitions");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(source.extent().await.unwrap().partitions.len(), count);
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_and_partitions_that_come_later_are_found() {
    let prefix = format!("p-{}", clock().random_id());
    let pattern = format!("{prefix}-[a-z]");
    let matching = |interval: &str| {
        let mut table = Topic(String::new()).table(&[("topic-pattern", &pattern)]);
        table.options.remove("topic");
        table.options.insert("scan.topic-partition-discovery.interval".into(), interval.into());
        table
    };
    let error = open(matching("100 ms"), 1).await.start().await.unwrap_err();
    assert_eq!(error.kind(), Kind::Usage, "{}", error.chain());
    assert!(error.to_string().contains(&format!("no topic that matches '{pattern}'")), "{error}");

    let first = Topic::named(format!("{prefix}-a"), 1, &[]).await;
    Topic::named(format!("{prefix}-other"), 1, &[]).await;
    let (source, fixed) = (open(matching("100 ms"), 2).await, open(matching("0 s"), 2).await);
    let mut lenient = matching("100 ms");
    lenient.options.insert("scan.on-data-loss".into(), "continue".into());
    let lenient = open(lenient, 2).await;
    for source in [&source, &fixed, &lenient] {
        assert_eq!(source.start().await.unwrap(), Offsets::from([(first.partition(0), 0)]));
    }
    let second = Topic::named(format!("{prefix}-b"), 2, &[]).await;
    has_partitions(&source, 3).await;
    first.grow(2).await;
    has_partitions(&source, 4).await;
    has_partitions(&lenient, 4).await;
    second.produce(1, 0..5);
    first.produce(1, 0..6);
    assert_eq!(read(&source, &second.span(1, 0, 5)).await.unwrap(), dense(0..5));
    assert_eq!(read(&source, &first.span(1, 2, 6)).await.unwrap(), dense(2..6));
    assert_eq!(fixed.extent().await.unwrap().partitions.len(), 1);

    second.delete().await;
    let begin = Instant::now();
    let error = loop {
        match source.extent().await {
            Err(error) => break error,
            Ok(_) => assert!(begin.elapsed() < HANGS, "nobody misses the topic"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(error.kind(), Kind::Transient, "{}", error.chain());
    assert!(error.to_string().contains(&format!("topic {} is gone", second.0)), "{error}");
    assert_eq!(source.extent().await.unwrap_err().kind(), Kind::Transient, "it is missed for good");
    let left = loop {
        match lenient.extent().await {
            Ok(extent) if extent.partitions.len() + extent.unreachable.len() < 4 => break extent,
            Err(error) if error.kind() != Kind::Transient => panic!("{}", error.chain()),
            _ => assert!(begin.elapsed() < HANGS, "the topic is not forgotten"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(left.partitions.into_keys().collect::<Vec<_>>(), [first.partition(0), first.partition(1)]);
    assert!(left.unreachable.is_empty(), "{:?}", left.unreachable);
    source.close().await;
    fixed.close().await;
    lenient.close().await;
}

/// Nothing is missed or read twice, while topics and partitions appear under load.
#[tokio::test(flavor = "multi_thread")]
async fn a_query_goes_on_with_topics_and_partitions_that_appear() {
    let prefix = format!("p-{}", clock().random_id());
    let first = Topic::named(format!("{prefix}-a"), 1, &[]).await;
    let script = format!(
        "SET 'checkpoint.location' = 'memory://ck'; SET 'parallelism' = '2';
         CREATE TABLE orders (id BIGINT)
           WITH ('connector' = 'kafka', 'topic-pattern' = '{prefix}-.*', 'properties.bootstrap.servers' = '{}',
                 'format' = 'json', 'scan.max-rows-per-epoch' = '400',
                 'scan.topic-partition-discovery.interval' = '50 ms');
         CREATE TABLE kept (id BIGINT) WITH ('connector' = 'memory', 'topic' = 'kept');
         INSERT INTO kept SELECT id FROM orders;",
        servers()
    );
    let world = World::new();
    let mut query = Query::open(world.plan(&script, None).await, Reporter::silent()).await.unwrap();
    let appear = async {
        first.produce(0, 0..1000);
        first.grow(3).await;
        has_partitions(&first.source(&[]).await, 3).await;
        let second = Topic::named(format!("{prefix}-b"), 2, &[]).await;
        for (partition, from) in [(0, 1000), (1, 2000), (2, 3000)] {
            first.produce(partition, from..from + 1000);
        }
        second.produce(0, 4000..5000);
        second.produce(1, 5000..6000);
    };
    let read = async {
        let (begin, mut ids) = (Instant::now(), vec![]);
        while ids.len() < 6000 {
            assert!(begin.elapsed() < HANGS, "only {} rows are there", ids.len());
            finish(&mut query).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
            let rows = world.memory.rows("kept");
            ids = rows.iter().flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec()).collect();
        }
        ids
    };
    let ((), mut ids) = tokio::join!(appear, read);
    query.close().await;
    ids.sort_unstable();
    assert_eq!(ids, (0..6000).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_may_be_in_keys() {
    let topic = Topic::create(1, &[]).await;
    let producer = producer(&[]);
    for (key, payload) in [
        (Some("{\"id\": 1}"), "{\"item\": \"a\", \"k_id\": 9}"),
        (None, "{\"item\": \"b\"}"),
        (Some("one"), "{\"item\": \"c\"}"),
    ] {
        let mut record: BaseRecord<'_, str, str> = BaseRecord::to(&topic.0).partition(0).payload(payload);
        record.key = key;
        producer.send(record).unwrap();
    }
    producer.flush(TIMEOUT).unwrap();
    let columns = vec![Column::physical("k_id", DataType::Int64), Column::physical("item", DataType::Utf8View)];
    let options = |on_error| {
        topic.options(&[
            ("key.fields", "k_id"),
            ("key.format", "json"),
            ("key.fields-prefix", "k_"),
            ("value.fields-include", "EXCEPT_KEY"),
            ("format.on-error", on_error),
        ])
    };
    let ids = |rows: &[RecordBatch]| {
        let columns = rows.iter().map(|batch| batch.column(0).as_primitive::<Int64Type>());
        columns.flat_map(|ids| ids.iter().collect::<Vec<_>>()).collect::<Vec<_>>()
    };
    let both = topic.options(&[("key.fields", "k_id"), ("key.format", "json")]);
    let both = open(table(columns.clone(), both), 1).await;
    let rows = batches(&both, &topic.span(0, 0, 3), &[0, 1]).await.unwrap();
    assert_eq!(ids(&rows), [Some(9), None, None], "what payloads have is read from them");
    let strict = open(table(columns.clone(), options("fail")), 1).await;
    let error = batches(&strict, &topic.span(0, 0, 3), &[0, 1]).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Data);
    assert!(error.to_string().contains("offset 2 cannot be read: its key: "), "{error}");
    let lenient = open(table(columns, options("skip")), 1).await;
    let rows = batches(&lenient, &topic.span(0, 0, 3), &[0, 1]).await.unwrap();
    assert_eq!(ids(&rows), [Some(1), None]);
    let items: Vec<_> = rows.iter().flat_map(|batch| batch.column(1).as_string_view().iter().flatten()).collect();
    assert_eq!(items, ["a", "b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_was_created_anew_has_other_fingerprints() {
    let topic = Topic::create(1, &[]).await;
    topic.produce_at(0, 0..3, |id| 1_700_000_000_000 + id);
    let source = topic.source(&[]).await;
    let report = ReadReport::default();
    let rows = source.read(&topic.span(0, 0, 3), &[0], &report).unwrap();
    rows.try_collect::<Vec<_>>().await.unwrap();
    let last = report.take().remove(&topic.partition(0)).unwrap().last;
    let known = Fingerprint { offset: 2, timestamp: Some(1_700_000_000_002), id: None };
    assert_eq!(last.as_ref(), Some(&known));
    let at = async |source: &Arc<dyn Source>, offset| source.fingerprint(&topic.partition(0), offset).await.unwrap();
    assert_eq!(at(&source, 2).await, last);
    assert_eq!(at(&source, 2).await, last, "again");
    assert_eq!(at(&source, 3).await, None, "the end");
    // A message, and the marker behind it.
    let producer = transactional();
    producer.begin_transaction().unwrap();
    send(&producer, &topic.0, 0, 3..4);
    producer.commit_transaction(TIMEOUT).unwrap();
    ends_at(&source, &topic.partition(0), 5).await;
    assert_eq!(at(&source, 3).await.unwrap().offset, 3);
    assert_eq!(at(&source, 4).await, None);
    topic.delete_records(0, 2).await;
    assert_eq!((at(&source, 1).await, at(&source, 2).await), (None, last));
    source.close().await;

    topic.delete().await;
    let again = Topic::named(topic.0.clone(), 1, &[]).await;
    again.produce_at(0, 0..3, |id| 1_710_000_000_000 + id);
    let source = again.source(&[]).await;
    ends_at(&source, &again.partition(0), 3).await;
    let other = Fingerprint { timestamp: Some(1_710_000_000_002), ..known };
    assert_eq!(at(&source, 2).await, Some(other));
    source.close().await;
}

/// Large messages make small epochs: of the first one nothing is known, and then their size is.
#[tokio::test(flavor = "multi_thread")]
async fn large_messages_make_epochs_of_fewer() {
    let topic = Topic::create(1, &[]).await;
    let (producer, pad) = (producer(&[]), "x".repeat(100_000));
    for id in 0..200 {
        let payload = format!("{{\"id\": {id}, \"pad\": \"{pad}\"}}");
        let record: BaseRecord<'_, (), str> = BaseRecord::to(&topic.0).partition(0).payload(&payload);
        producer.send(record).unwrap();
    }
    producer.flush(TIMEOUT).unwrap();
    let script = format!(
        "SET 'checkpoint.location' = 'memory://ck';
         CREATE TABLE input (id BIGINT, pad STRING)
           WITH ('connector' = 'kafka', 'topic' = '{}', 'properties.bootstrap.servers' = '{}', 'format' = 'json',
                 'scan.max-bytes-per-epoch' = '1 mb');
         CREATE TABLE output (id BIGINT) WITH ('connector' = 'memory', 'topic' = 'output');
         INSERT INTO output SELECT id FROM input;",
        topic.0,
        servers()
    );
    let rows: Arc<Mutex<Vec<u64>>> = Arc::default();
    let seen = Arc::clone(&rows);
    let reporter = Reporter::new(move |event| {
        if let Event::Epoch(epoch) = event {
            seen.lock().unwrap().push(epoch.rows_in);
        }
    });
    let mut query = Query::open(World::new().plan(&script, None).await, reporter).await.unwrap();
    finish(&mut query).await.unwrap();
    query.close().await;
    // Messages are taken for 16 kB; then for what they are, and 10 of them are a megabyte.
    let expected: Vec<u64> = [64].into_iter().chain([10; 13]).chain([6]).collect();
    assert_eq!(*rows.lock().unwrap(), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abandoned_read_leaves_the_source_usable() {
    let topic = Topic::create(1, &[]).await;
    topic.produce(0, 0..100_000);
    let source = topic.source(&[]).await;
    for from in [0, 0, 20_000, 20_000] {
        let mut rows = source.read(&topic.span(0, from, 100_000), &[0], &ReadReport::default()).unwrap();
        let first = rows.next().await.unwrap().unwrap();
        assert_eq!(first.column(0).as_primitive::<Int64Type>().value(0), from as i64);
    }
    assert_eq!(read(&source, &topic.span(0, 20_000, 100_000)).await.unwrap(), dense(20_000..100_000));
    // One that waits for what will never come.
    let mut rows = source.read(&topic.span(0, 100_000, 100_001), &[0], &ReadReport::default()).unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(300), rows.next()).await.is_err());
    drop(rows);
    assert_eq!(read(&source, &topic.span(0, 99_990, 100_000)).await.unwrap(), dense(99_990..100_000));
    // Dropped without being closed, in the middle of a read.
    let mut rows = source.read(&topic.span(0, 0, 100_000), &[0], &ReadReport::default()).unwrap();
    rows.next().await.unwrap().unwrap();
    let begin = Instant::now();
    drop(source);
    drop(rows);
    assert!(begin.elapsed() < HANGS, "{:?}", begin.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_messages_are_named_or_skipped() {
    let topic = Topic::create(1, &[]).await;
    topic.produce(0, 0..2);
    let producer = producer(&[]);
    let bad: BaseRecord<'_, str, str> = BaseRecord::to(&topic.0).partition(0).payload("{\"id\":");
    producer.send(bad).unwrap();
    producer.flush(TIMEOUT).unwrap();
    topic.produce(0, 3..5);
    let strict = topic.source(&[]).await;
    let error = read(&strict, &topic.span(0, 0, 5)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Data);
    assert!(error.to_string().contains(&format!("{} offset 2", topic.partition(0))), "{error}");
    let lenient = topic.source(&[("format.on-error", "skip")]).await;
    assert_eq!(read(&lenient, &topic.span(0, 0, 5)).await.unwrap(), [(0, 0), (1, 1), (3, 3), (4, 4)]);
}

/// Of 10 MB too, and of no byte at all.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_lies_between_good_rows_costs_none_of_them() {
    let topic = Topic::create(1, &[("max.message.bytes", "20000000")]).await;
    let producer = producer(&[("message.max.bytes", "20000000")]);
    let big = "[".repeat(5_000_000) + &"]".repeat(5_000_000);
    let mut state = 7u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    let mut bad: Vec<Option<Vec<u8>>> = vec![None, Some(vec![]), Some(format!("{{\"id\": {big}}}").into_bytes())];
    bad.extend((1..60).map(|length| Some((0..length).map(|_| random()).collect())));
    let (mut rows, mut bytes) = (vec![], 0);
    for (index, bad) in bad.iter().enumerate() {
        let id = index as i64;
        let pad = if id % 20 == 1 { big.as_str() } else { "" };
        let good = format!("{{\"id\": {id}, \"pad\": \"{pad}\"}}").into_bytes();
        rows.push((id, 2 * id));
        for payload in [Some(&good), bad.as_ref()] {
            let mut record: BaseRecord<'_, (), [u8]> = BaseRecord::to(&topic.0).partition(0);
            record.payload = payload.map(Vec::as_slice);
            producer.send(record).unwrap();
            bytes += payload.map_or(0, Vec::len) as u64;
        }
        producer.flush(TIMEOUT).unwrap();
    }
    let source = topic.source(&[("format.on-error", "skip")]).await;
    let (all, report) = (2 * bad.len() as u64, ReadReport::default());
    let read = source.read(&topic.span(0, 0, all), &[0, 1], &report).unwrap().try_collect::<Vec<_>>();
    let found = tokio::time::timeout(HANGS, read).await.unwrap().unwrap();
    assert_eq!(rows_of(&found), rows);
    let seen = report.take().remove(&topic.partition(0)).unwrap();
    assert_eq!((seen.messages, seen.skipped, seen.bytes), (all, bad.len() as u64, bytes));
    assert_eq!(seen.sample.unwrap().offset, 1);
    source.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_topic_is_named_with_a_similar_one() {
    let topic = Topic::create(1, &[]).await;
    let wrong = Topic(format!("{}x", topic.0));
    let begin = Instant::now();
    let error = wrong.source(&[]).await.start().await.unwrap_err();
    assert!(begin.elapsed() < HANGS);
    assert_eq!(error.kind(), Kind::Usage, "{}", error.chain());
    let text = error.to_string();
    assert!(text.contains(&wrong.0) && text.contains(&format!("did you mean '{}'", topic.0)), "{text}");
    let error = open_sink(wrong.table(&[])).await.open(1).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Usage, "{}", error.chain());
    // Asking must not have created it.
    let error = wrong.source(&[]).await.extent().await.unwrap_err();
    assert_eq!(error.kind(), Kind::Transient, "{}", error.chain());
}

/// A query that goes on after trouble opens its sink again, maybe at a broker that does not know the topic yet.
#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_was_there_is_waited_for() {
    let topic = Topic::create(1, &[]).await;
    let sink = open_sink(outgoing(&topic, &[("sink.delivery-guarantee", "at-least-once")])).await;
    sink.open(1).await.unwrap();
    topic.delete().await;
    // The brokers hear of either a moment later.
    let begin = Instant::now();
    let error = loop {
        match sink.open(1).await {
            Err(error) => break error,
            Ok(()) => assert!(begin.elapsed() < HANGS, "nobody misses the topic"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(error.kind(), Kind::Transient, "{}", error.chain());
    assert!(error.to_string().contains(&format!("there is no topic '{}'", topic.0)), "{error}");
    Topic::named(topic.0, 1, &[]).await;
    while let Err(error) = sink.open(1).await {
        assert!(error.kind() == Kind::Transient && begin.elapsed() < HANGS, "{}", error.chain());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    sink.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_broker_is_an_error_soon() {
    let mut table = Topic("anything".into()).table(&[]);
    table.options.insert("properties.bootstrap.servers".into(), "127.0.0.1:1".into());
    let source = open(table.clone(), 2).await;
    let begin = Instant::now();
    let error = source.start().await.unwrap_err();
    assert!(begin.elapsed() < HANGS, "{:?}", begin.elapsed());
    assert_eq!(error.kind(), Kind::Transient, "{}", error.chain());
    assert!(error.chain().contains("127.0.0.1:1"), "{}", error.chain());
    assert!(error.chain().contains("onnection refused"), "{}", error.chain());
    let begin = Instant::now();
    source.close().await;
    assert!(begin.elapsed() < HANGS, "{:?}", begin.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_protocol_that_does_not_fit_is_refused() {
    let topic = Topic::create(1, &[]).await;
    let secret = [
        ("properties.security.protocol", "SASL_PLAINTEXT"),
        ("properties.sasl.mechanism", "PLAIN"),
        ("properties.sasl.username", "me"),
        ("properties.sasl.password", "hunter2"),
    ];
    let error = topic.source(&secret).await.start().await.unwrap_err();
    assert!(matches!(error.kind(), Kind::Refused | Kind::Transient), "{}", error.chain());
    assert!(!error.chain().contains("hunter2"), "{}", error.chain());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_topic_is_data_loss() {
    let topic = Topic::create(1, &[]).await;
    topic.produce(0, 0..10);
    let source = topic.source(&[]).await;
    assert_eq!(read(&source, &topic.span(0, 0, 10)).await.unwrap(), dense(0..10));
    topic.delete().await;
    let error = read(&source, &topic.span(0, 10, 11)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::DataLoss, "{}", error.chain());
    assert!(error.to_string().contains("there is no topic"), "{error}");
}

fn stream(batch: RecordBatch) -> SendableRecordBatchStream {
    Box::pin(RecordBatchStreamAdapter::new(batch.schema(), futures::stream::iter([Ok(batch)])))
}

/// Stages a task and publishes the epoch.
async fn write(sink: &Arc<dyn Sink>, epoch: u64, rows: RecordBatch) -> Result<Published, Error> {
    sink.stage(epoch, 0, &Pin::Null, stream(rows)).await?;
    sink.publish(epoch, &Pin::Null).await
}

/// A sink's table `id BIGINT, name STRING` with writable metadata, and its rows.
fn outgoing(topic: &Topic, more: &[(&str, &str)]) -> TableDefinition {
    let columns = vec![
        Column::physical("id", DataType::Int64),
        Column::physical("name", DataType::Utf8View),
        metadata("ts", "timestamp", DataType::Timestamp(TimeUnit::Millisecond, None), false),
        metadata("headers", "headers", headers_type(), false),
        metadata("at", "offset", DataType::Int64, true),
    ];
    table(columns, topic.options(more))
}

fn rows(table: &TableDefinition, ids: std::ops::Range<i64>) -> RecordBatch {
    use arrow::array::{BinaryBuilder, MapBuilder, StringBuilder};
    let schema = table.writable_schema();
    let mut headers = MapBuilder::new(None, StringBuilder::new(), BinaryBuilder::new());
    for id in ids.clone() {
        if id % 3 != 0 {
            headers.keys().append_value("id");
            headers.values().append_value(id.to_string());
        }
        headers.append(id % 3 != 1).unwrap();
    }
    let names: Vec<String> = ids.clone().map(|id| format!("n{}", id % 5)).collect();
    let columns: [Arc<dyn Array>; 4] = [
        Arc::new(Int64Array::from_iter_values(ids.clone())),
        Arc::new(StringArray::from(names)),
        Arc::new(TimestampMillisecondArray::from_iter_values(ids.map(|id| 1_700_000_000_000 + id))),
        Arc::new(headers.finish()),
    ];
    let columns = columns.iter().zip(schema.fields()).map(|(column, field)| cast(column, field.data_type()).unwrap());
    RecordBatch::try_new(Arc::clone(&schema), columns.collect()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_is_read_with_keys_headers_and_timestamps() {
    let topic = Topic::create(3, &[]).await;
    let once = ("sink.delivery-guarantee", "at-least-once");
    let definition = outgoing(&topic, &[("key.fields", "name"), ("properties.compression.type", "zstd"), once]);
    let sink = open_sink(definition.clone()).await;
    assert_eq!(sink.guarantee().delivery, Delivery::AtLeastOnce);
    sink.open(1).await.unwrap();
    let pin = sink.prepare(1).await.unwrap();
    let first = sink.stage(1, 0, &pin, stream(rows(&definition, 0..20_000))).await.unwrap();
    let second = sink.stage(1, 1, &pin, stream(rows(&definition, 20_000..30_000))).await.unwrap();
    sink.stage(2, 0, &pin, stream(rows(&definition, 90_000..90_001))).await.unwrap();
    let source = open(
        table(
            vec![
                Column::physical("id", DataType::Int64),
                Column::physical("name", DataType::Utf8),
                metadata("key", "key", DataType::Binary, true),
                metadata("ts", "timestamp", DataType::Timestamp(TimeUnit::Millisecond, None), true),
                metadata("headers", "headers", headers_type(), true),
            ],
            topic.options(&[]),
        ),
        2,
    )
    .await;
    let empty = source.extent().await.unwrap();
    assert!(empty.partitions.values().all(|bounds| bounds.latest == 0), "staged rows are readable: {empty:?}");
    sink.discard(2).await;
    let published = sink.publish(1, &pin).await.unwrap();
    assert_eq!((published.rows, published.bytes), (30_000, first.bytes + second.bytes));
    assert!(published.position.is_null());
    assert_eq!(sink.publish(2, &Pin::Null).await.unwrap().rows, 0, "it was discarded");

    let (mut count, mut homes) = (0, BTreeMap::new());
    for (partition, bounds) in source.extent().await.unwrap().partitions {
        let span = Span::new(partition, bounds.earliest, bounds.latest);
        let mut last = BTreeMap::new();
        for batch in batches(&source, &span, &[0, 1, 2, 3, 4]).await.unwrap() {
            let ids = batch.column(0).as_primitive::<Int64Type>();
            let (names, keys) = (batch.column(1).as_string::<i32>(), batch.column(2).as_binary::<i32>());
            let times = batch.column(3).as_primitive::<TimestampMillisecondType>();
            let headers = batch.column(4).as_map();
            for row in 0..batch.num_rows() {
                let (id, name) = (ids.value(row), names.value(row));
                assert_eq!(name, format!("n{}", id % 5));
                assert_eq!(keys.value(row), format!("{{\"name\":\"{name}\"}}").as_bytes());
                assert_eq!(times.value(row), 1_700_000_000_000 + id);
                assert_eq!(headers.value_length(row), i32::from(id % 3 == 2), "{id}");
                assert!(last.insert(name.to_string(), id).is_none_or(|before| before < id), "order of {name}");
                let home = homes.entry(name.to_string()).or_insert_with(|| span.partition.clone());
                assert_eq!(home, &span.partition, "one key, one partition");
                count += 1;
            }
        }
    }
    assert_eq!((count, homes.len()), (30_000, 5));
    sink.close().await;
    source.close().await;
}

/// A commit may hold the position of a sink that wrote elsewhere: another late-rows table, another progress topic.
#[tokio::test(flavor = "multi_thread")]
async fn the_position_of_another_sink_says_nothing() {
    let (one, other) = (Topic::create(1, &[]).await, Topic::create(1, &[]).await);
    let mut positions = vec![];
    for topic in [&one, &other] {
        let definition = outgoing(topic, &[]);
        let sink = open_sink(definition.clone()).await;
        sink.open(1).await.unwrap();
        let known = positions.last().unwrap_or(&serde_json::Value::Null);
        assert_eq!(sink.progress(6, known).await.unwrap(), Progress::UpTo(6));
        sink.stage(7, 0, &Pin::Null, stream(rows(&definition, 0..3))).await.unwrap();
        positions.push(sink.publish(7, &Pin::Null).await.unwrap().position);
        assert_eq!(sink.progress(6, &positions[positions.len() - 1]).await.unwrap(), Progress::UpTo(7));
        sink.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_column_is_the_key_as_it_is() {
    let topic = Topic::create(1, &[]).await;
    let columns = vec![
        Column::physical("id", DataType::Int64),
        metadata("key", "key", DataType::Binary, false),
        metadata("at", "offset", DataType::Int64, true),
    ];
    let once = ("sink.delivery-guarantee", "at-least-once");
    let mut definition = table(columns, topic.options(&[("key.fields", "id"), once]));
    let error = KafkaConnector.check(&definition, Role::Sink).unwrap_err();
    assert!(error.to_string().contains("given twice"), "{error}");
    definition.options.remove("key.fields");
    let sink = open_sink(definition.clone()).await;
    let schema = Schema::new(vec![Field::new("id", DataType::Int64, true), Field::new("key", DataType::Binary, true)]);
    let keys = BinaryArray::from(vec![Some(&b"x"[..]), None, Some(b"")]);
    let batch =
        RecordBatch::try_new(Arc::new(schema), vec![Arc::new(Int64Array::from(vec![1, 2, 3])), Arc::new(keys.clone())]);
    sink.stage(1, 0, &Pin::Null, stream(batch.unwrap())).await.unwrap();
    assert_eq!(sink.publish(1, &Pin::Null).await.unwrap().rows, 3);
    let source = open(definition, 1).await;
    let read = batches(&source, &topic.span(0, 0, 3), &[1]).await.unwrap();
    let read: Vec<_> = read.iter().flat_map(|batch| batch.column(0).as_binary::<i32>().iter()).collect();
    assert_eq!(read, keys.iter().collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_too_large_is_named_and_the_sink_goes_on() {
    let topic = Topic::create(1, &[("max.message.bytes", "20000")]).await;
    for more in [&[("properties.message.max.bytes", "10000")][..], &[]] {
        let columns = vec![Column::physical("id", DataType::Int64), Column::physical("name", DataType::Utf8View)];
        let definition = table(columns, topic.options(more));
        let sink = open_sink(definition.clone()).await;
        let names = StringArray::from(vec!["short".to_string(), "x".repeat(50_000), "short".to_string()]);
        let names = cast(&names, &DataType::Utf8View).unwrap();
        let batch =
            RecordBatch::try_new(definition.writable_schema(), vec![Arc::new(Int64Array::from(vec![1, 2, 3])), names]);
        let batch = batch.unwrap();
        sink.open(1).await.unwrap();
        let error = write(&sink, 7, batch.clone()).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Data, "{}", error.chain());
        let text = error.to_string();
        for part in ["table orders", "of epoch 7", &topic.0, "properties.message.max.bytes"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        sink.discard(7).await;
        assert_eq!(write(&sink, 7, batch.slice(2, 1)).await.unwrap().rows, 1);
        sink.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_without_a_broker_fails_and_loses_nothing() {
    for delivery in ["at-least-once", "exactly-once"] {
        let options = [("properties.delivery.timeout.ms", "2000"), ("sink.delivery-guarantee", delivery)];
        let mut definition = outgoing(&Topic("anything".into()), &options);
        definition.options.insert("properties.bootstrap.servers".into(), "127.0.0.1:1".into());
        let sink = open_sink(definition.clone()).await;
        let staged = sink.stage(1, 0, &Pin::Null, stream(rows(&definition, 0..10))).await;
        match delivery {
            "at-least-once" => assert_eq!(staged.unwrap().rows, 10),
            _ => assert_eq!(staged.unwrap_err().kind(), Kind::Transient),
        }
        for _ in 0..2 {
            let again = match delivery {
                "at-least-once" => sink.publish(1, &Pin::Null).await,
                _ => write(&sink, 1, rows(&definition, 0..10)).await,
            };
            let error = again.unwrap_err();
            assert_eq!(error.kind(), Kind::Transient, "{}", error.chain());
        }
        let begin = Instant::now();
        sink.close().await;
        assert!(begin.elapsed() < HANGS, "{:?}", begin.elapsed());
    }
}

/// The brokers end a transaction that is open for too long; the epoch is staged again, by a producer with more time.
#[tokio::test(flavor = "multi_thread")]
async fn an_epoch_that_outlives_its_transaction_is_written_once() {
    let topic = Topic::create(1, &[]).await;
    let definition = outgoing(&topic, &[("properties.transaction.timeout.ms", "2000")]);
    let sink = open_sink(definition.clone()).await;
    sink.open(1).await.unwrap();
    assert_eq!(sink.progress(0, &serde_json::Value::Null).await.unwrap(), Progress::UpTo(0));
    sink.stage(1, 0, &Pin::Null, stream(rows(&definition, 0..10))).await.unwrap();
    let source = topic.source(&[]).await;
    assert_eq!(bounds(&source, &topic.partition(0)).await.1, 0, "staged rows are readable");
    // Ten rows and the marker that ends them; brokers look for such transactions every ten seconds.
    let begin = Instant::now();
    while bounds(&source, &topic.partition(0)).await.1 < 11 {
        assert!(begin.elapsed() < HANGS, "the brokers did not end the transaction");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let error = sink.publish(1, &Pin::Null).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Transient, "{}", error.chain());
    let text = error.to_string();
    assert!(text.contains("open for longer than transaction.timeout.ms = 2000"), "{text}");
    assert!(text.contains("written again with 4000"), "{text}");

    sink.discard(1).await;
    sink.open(1).await.unwrap();
    assert_eq!(sink.progress(0, &serde_json::Value::Null).await.unwrap(), Progress::UpTo(0));
    assert_eq!(write(&sink, 1, rows(&definition, 0..10)).await.unwrap().rows, 10);
    ends_at(&source, &topic.partition(0), 22).await;
    assert_eq!(ids(&source, &topic.span(0, 0, 22)).await, (0..10).collect::<Vec<_>>());
    sink.close().await;
}

/// A run that is gone has sent an epoch into fewer partitions than there are when it is written again.
#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_appear_before_a_rerun_change_nothing() {
    let topic = Topic::create(1, &[]).await;
    let definition = outgoing(&topic, &[]);
    let open = async |run: u64| {
        let sink = open_sink(definition.clone()).await;
        sink.open(run).await.unwrap();
        sink
    };
    let first = open(1).await;
    first.stage(1, 0, &Pin::Null, stream(rows(&definition, 0..10))).await.unwrap();
    topic.grow(3).await;
    let source = topic.source(&[]).await;
    let begin = Instant::now();
    while source.extent().await.unwrap().partitions.len() < 3 {
        assert!(begin.elapsed() < HANGS, "the topic did not grow");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let second = open(2).await;
    assert_eq!(second.progress(0, &serde_json::Value::Null).await.unwrap(), Progress::UpTo(0));
    assert_eq!(write(&second, 1, rows(&definition, 0..10)).await.unwrap().rows, 10);
    drop(first);
    let mut found = vec![];
    // Markers are written after the commit returns.
    while found.len() < 10 {
        assert!(begin.elapsed() < HANGS, "only {found:?} are there");
        found.clear();
        for number in 0..3 {
            let end = bounds(&source, &topic.partition(number)).await.1;
            found.extend(ids(&source, &topic.span(number, 0, end)).await);
        }
    }
    found.sort_unstable();
    assert_eq!(found, (0..10).collect::<Vec<_>>());
    second.close().await;
}

/// Who asks what is written waits for a transaction whose outcome is not known, and no longer than anybody listens.
#[tokio::test(flavor = "multi_thread")]
async fn a_hanging_transaction_in_the_progress_topic_is_waited_for() {
    let (topic, progress) = (Topic::create(1, &[]).await, Topic::create(1, &[("cleanup.policy", "compact")]).await);
    let definition = outgoing(&topic, &[("sink.progress-topic", progress.0.as_str())]);
    let sink = open_sink(definition.clone()).await;
    sink.open(1).await.unwrap();
    let written = write(&sink, 1, rows(&definition, 0..3)).await.unwrap();
    let hanging = transactional();
    hanging.begin_transaction().unwrap();
    hanging.send(BaseRecord::to(&progress.0).partition(0).key("another").payload("{}")).unwrap();
    hanging.flush(TIMEOUT).unwrap();
    let asked = tokio::time::timeout(Duration::from_secs(1), sink.progress(1, &written.position)).await;
    assert!(asked.is_err(), "{asked:?}");
    hanging.abort_transaction(TIMEOUT).unwrap();
    assert_eq!(sink.progress(1, &written.position).await.unwrap(), Progress::UpTo(1));
    sink.close().await;
}

/// Every message of a topic as Kafka's own Java client sees it, partition by partition in order.
fn seen_by_java(topic: &str) -> Vec<serde_json::Value> {
    java(&["consume", topic]).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Groups come, change, go and come again: whoever keeps the newest message of each key has the batch answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_changes_is_upserts_and_tombstones() {
    let topic = Topic::create(3, &[("cleanup.policy", "compact")]).await;
    let select =
        "SELECT n % 7 AS k, count(*) AS many, sum(n) AS total FROM numbers GROUP BY n % 7 HAVING count(*) % 3 <> 0";
    let script = format!(
        "SET 'checkpoint.location' = 'memory://ck'; SET 'parallelism' = '2';
         CREATE TABLE numbers (n BIGINT) WITH ('connector' = 'memory', 'topic' = 'numbers');
         CREATE TABLE totals (k BIGINT, many BIGINT, total BIGINT, PRIMARY KEY (k) NOT ENFORCED)
           WITH ('connector' = 'kafka', 'topic' = '{}', 'properties.bootstrap.servers' = '{}', 'format' = 'json');
         INSERT INTO totals {select};",
        topic.0,
        servers()
    );
    let world = World::new();
    world.append("numbers", 0, 0..0);
    let mut query = Query::open(world.plan(&script, None).await, Reporter::silent()).await.unwrap();
    for (epoch, ends) in (0..).zip([0, 10, 40, 90, 140, 186].windows(2)) {
        world.append("numbers", epoch % 2, ends[0]..ends[1]);
        finish(&mut query).await.unwrap();
    }
    query.close().await;

    let (mut kept, mut homes, mut tombstones) = (BTreeMap::new(), BTreeMap::new(), 0);
    let messages = seen_by_java(&topic.0);
    for message in &messages {
        let key: serde_json::Value = serde_json::from_str(message["key"].as_str().unwrap()).unwrap();
        let (k, partition) = (key["k"].as_i64().unwrap(), message["partition"].as_i64().unwrap());
        assert_eq!(key, serde_json::json!({ "k": k }));
        assert_eq!(*homes.entry(k).or_insert(partition), partition, "one key, one partition");
        match message["value"].as_str() {
            Some(value) => {
                let row: serde_json::Value = serde_json::from_str(value).unwrap();
                assert_eq!(row["k"].as_i64(), Some(k));
                kept.insert(k, (row["many"].as_i64().unwrap(), row["total"].as_i64().unwrap()));
            }
            None => {
                tombstones += 1;
                assert!(kept.remove(&k).is_some(), "a tombstone of {k}, which was not there");
            }
        }
    }
    let batch = select.replace("FROM numbers", "FROM generate_series(0, 185) AS numbers(n)");
    let batches = SessionContext::new().sql(&batch).await.unwrap().collect().await.unwrap();
    let mut expected = BTreeMap::new();
    for batch in &batches {
        for row in 0..batch.num_rows() {
            let number = |column: usize| batch.column(column).as_primitive::<Int64Type>().value(row);
            expected.insert(number(0), (number(1), number(2)));
        }
    }
    assert_eq!(kept, expected);
    // Each of the seven groups changes in each of the five epochs, and is one message of it.
    assert_eq!((messages.len(), tombstones), (35, 10));
}

/// A pair that two batches divide is one message all the same.
#[tokio::test(flavor = "multi_thread")]
async fn upserts_are_keyed_by_a_key_column_that_must_have_a_value() {
    let topic = Topic::create(1, &[]).await;
    let columns = vec![
        Column::physical("id", DataType::Int64),
        metadata("key", "key", DataType::Binary, false),
        metadata("ts", "timestamp", DataType::Timestamp(TimeUnit::Millisecond, None), false),
    ];
    let mut definition = table(columns, topic.options(&[]));
    assert!(!KafkaConnector.takes_updates(&definition));
    definition.primary_key = vec!["id".into()];
    assert!(KafkaConnector.takes_updates(&definition));
    let schema = with_kind(&definition.writable_schema());
    let changes = |rows: &[(RowKind, i64, Option<&str>)]| {
        let times = rows.iter().map(|row| 1_700_000_000_000 + row.1);
        let columns: Vec<Arc<dyn Array>> = vec![
            Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.1))),
            Arc::new(BinaryArray::from_iter(rows.iter().map(|row| row.2))),
            Arc::new(TimestampMillisecondArray::from_iter_values(times)),
            Arc::new(Int8Array::from_iter_values(rows.iter().map(|row| row.0 as i8))),
        ];
        RecordBatch::try_new(Arc::clone(&schema), columns).unwrap()
    };
    let sink = open_sink(definition.clone()).await;
    sink.open(1).await.unwrap();
    let first = changes(&[(RowKind::Insert, 1, Some("a")), (RowKind::UpdateBefore, 2, Some("b"))]);
    let second = changes(&[(RowKind::UpdateAfter, 3, Some("b")), (RowKind::UpdateBefore, 4, Some("c"))]);
    let rows = futures::stream::iter([Ok(first), Ok(second)]);
    let rows = Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&schema), rows));
    assert_eq!(sink.stage(1, 0, &Pin::Null, rows).await.unwrap().rows, 3);
    sink.publish(1, &Pin::Null).await.unwrap();
    let seen = seen_by_java(&topic.0);
    let seen: Vec<_> = seen.iter().map(|m| (m["key"].as_str(), m["value"].as_str(), m["timestamp"].as_i64())).collect();
    let expected = [
        (Some("a"), Some("{\"id\":1}"), Some(1_700_000_000_001)),
        (Some("b"), Some("{\"id\":3}"), Some(1_700_000_000_003)),
        (Some("c"), None, Some(1_700_000_000_004)),
    ];
    assert_eq!(seen, expected);

    let error = sink.stage(2, 0, &Pin::Null, stream(changes(&[(RowKind::UpdateAfter, 5, None)]))).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Data);
    assert!(error.to_string().contains("table orders: a row of a result that changes has no key"), "{error}");
    sink.close().await;
}

/// What Java's client sees of a topic: each message's partition, key and value.
fn messages(topic: &Topic) -> Vec<(i64, Option<String>, Option<String>)> {
    let text = |message: &serde_json::Value, name: &str| message[name].as_str().map(str::to_string);
    let messages = seen_by_java(&topic.0).into_iter();
    messages.map(|m| (m["partition"].as_i64().unwrap(), text(&m, "key"), text(&m, "value"))).collect()
}

/// The ids by partition, in order.
fn placed(topic: &Topic) -> BTreeMap<i64, Vec<i64>> {
    let mut placed: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
    for (partition, _, value) in messages(topic) {
        let row: serde_json::Value = serde_json::from_str(&value.unwrap()).unwrap();
        placed.entry(partition).or_default().push(row["id"].as_i64().unwrap());
    }
    placed
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_may_name_its_topic_and_partition() {
    let (topic, other) = (Topic::create(3, &[]).await, Topic::create(2, &[]).await);
    let columns = vec![
        Column::physical("id", DataType::Int64),
        metadata("part", "partition", DataType::Int32, false),
        metadata("dest", "topic", DataType::Utf8View, false),
    ];
    for delivery in ["exactly-once", "at-least-once"] {
        let definition = table(columns.clone(), topic.options(&[("sink.delivery-guarantee", delivery)]));
        let sink = open_sink(definition.clone()).await;
        let batch = |rows: &[(i64, Option<i32>, Option<&str>)]| {
            let topics = StringArray::from_iter(rows.iter().map(|row| row.2));
            let columns: Vec<Arc<dyn Array>> = vec![
                Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.0))),
                Arc::new(Int32Array::from_iter(rows.iter().map(|row| row.1))),
                cast(&topics, &DataType::Utf8View).unwrap(),
            ];
            RecordBatch::try_new(definition.writable_schema(), columns).unwrap()
        };
        sink.open(1).await.unwrap();
        if delivery == "exactly-once" {
            let rows =
                [(1, Some(2), None), (2, Some(1), Some(other.0.as_str())), (3, Some(0), None), (4, Some(2), None)];
            assert_eq!(write(&sink, 1, batch(&rows)).await.unwrap().rows, 4);
            assert_eq!(placed(&topic), BTreeMap::from([(0, vec![3]), (2, vec![1, 4])]));
            assert_eq!(placed(&other), BTreeMap::from([(1, vec![2])]));
        }
        for wrong in [9, -1] {
            let rows = batch(&[(5, Some(0), None), (6, Some(wrong), None)]);
            let error = write(&sink, 2, rows).await.unwrap_err();
            assert_eq!(error.kind(), Kind::Data, "{}", error.chain());
            let row = format!("row 2 of epoch 2 for topic {} partition {wrong} cannot be written", topic.0);
            assert!(error.to_string().contains(&row), "{error}");
            sink.discard(2).await;
        }
        let error = write(&sink, 2, batch(&[(7, None, Some("no topic"))])).await.unwrap_err();
        assert!(error.kind() == Kind::Data && error.to_string().contains("to the topic 'no topic'"), "{error}");
        sink.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partitioner_places_rows_by_task_or_one_after_the_other() {
    for partitioner in ["fixed", "round-robin"] {
        let topic = Topic::create(3, &[]).await;
        let definition = outgoing(&topic, &[("sink.partitioner", partitioner)]);
        let sink = open_sink(definition.clone()).await;
        sink.open(1).await.unwrap();
        for (task, ids) in [(0, 0..4), (1, 4..6), (4, 6..7)] {
            sink.stage(1, task, &Pin::Null, stream(rows(&definition, ids))).await.unwrap();
        }
        sink.publish(1, &Pin::Null).await.unwrap();
        let expected = match partitioner {
            "fixed" => BTreeMap::from([(0, vec![0, 1, 2, 3]), (1, vec![4, 5, 6])]),
            _ => BTreeMap::from([(0, vec![0, 3]), (1, vec![1, 4, 6]), (2, vec![2, 5])]),
        };
        assert_eq!(placed(&topic), expected, "{partitioner}");
        sink.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_has_its_format_and_is_left_out_of_the_value_on_request() {
    let (raw, csv, json) = (("key.format", "raw"), ("key.format", "csv"), ("key.format", "json"));
    let (name, id) = (("key.fields", "name"), ("key.fields", "id"));
    let prefix = ("key.fields-prefix", "na");
    for (options, keys) in [
        (&[name, raw][..], ["n3", "n4"]),
        (&[id, raw], ["\0\0\0\0\0\0\0\u{3}", "\0\0\0\0\0\0\0\u{4}"]),
        (&[id, raw, ("key.raw.endianness", "little-endian")], ["\u{3}\0\0\0\0\0\0\0", "\u{4}\0\0\0\0\0\0\0"]),
        (&[id, csv], ["3", "4"]),
        (&[name, csv, ("key.csv.field-delimiter", "n"), prefix], ["\"n3\"", "\"n4\""]),
        (&[name, json, prefix], ["{\"me\":\"n3\"}", "{\"me\":\"n4\"}"]),
    ] {
        let topic = Topic::create(1, &[]).await;
        let definition = outgoing(&topic, &[options, &[("value.fields-include", "EXCEPT_KEY")]].concat());
        let sink = open_sink(definition.clone()).await;
        sink.open(1).await.unwrap();
        write(&sink, 1, rows(&definition, 3..5)).await.unwrap();
        let values = match options.contains(&id) {
            true => ["{\"name\":\"n3\"}", "{\"name\":\"n4\"}"],
            false => ["{\"id\":3}", "{\"id\":4}"],
        };
        let message = |(key, value): (&str, &str)| (0i64, Some(key.to_string()), Some(value.to_string()));
        let expected: Vec<_> = keys.into_iter().zip(values).map(message).collect();
        assert_eq!(messages(&topic), expected, "{options:?}");
        sink.close().await;
        let source = open(definition, 1).await;
        let read = batches(&source, &topic.span(0, 0, 2), &[0, 1]).await.unwrap();
        let names: Vec<_> = read.iter().flat_map(|batch| batch.column(1).as_string_view().iter().flatten()).collect();
        assert_eq!((read[0].column(0).as_primitive::<Int64Type>().value(0), names), (3, vec!["n3", "n4"]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_guarantee_a_row_that_is_refused_is_left_out() {
    let topic = Topic::create(1, &[]).await;
    let columns = vec![
        Column::physical("id", DataType::Int64),
        Column::physical("name", DataType::Utf8View),
        metadata("part", "partition", DataType::Int32, false),
    ];
    let options = [("sink.delivery-guarantee", "none"), ("properties.message.max.bytes", "10000")];
    let definition = table(columns, topic.options(&options));
    let sink = open_sink(definition.clone()).await;
    assert_eq!(sink.guarantee().delivery, Delivery::None);
    sink.open(1).await.unwrap();
    let batch = |ids: [i64; 3], long: usize, part: Option<i32>| {
        let names = StringArray::from(vec!["short".to_string(), "x".repeat(long), "short".to_string()]);
        let columns: Vec<Arc<dyn Array>> = vec![
            Arc::new(Int64Array::from_iter_values(ids)),
            cast(&names, &DataType::Utf8View).unwrap(),
            Arc::new(Int32Array::from(vec![Some(0), part, None])),
        ];
        RecordBatch::try_new(definition.writable_schema(), columns).unwrap()
    };
    // One that is too large is refused at once, one for no partition when the topic is known.
    assert_eq!(write(&sink, 1, batch([1, 2, 3], 50_000, None)).await.unwrap().rows, 2);
    assert_eq!(write(&sink, 2, batch([4, 5, 6], 5, Some(9))).await.unwrap().rows, 2);
    assert_eq!(write(&sink, 3, batch([7, 8, 9], 5, None)).await.unwrap().rows, 3);
    sink.close().await;
    assert_eq!(placed(&topic), BTreeMap::from([(0, vec![1, 3, 4, 6, 7, 8, 9])]));
}

/// The same as a `kafka` table with a PRIMARY KEY, as Flink spells it.
#[tokio::test(flavor = "multi_thread")]
async fn upsert_kafka_is_written_and_folded() {
    let topic = Topic::create(2, &[("cleanup.policy", "compact")]).await;
    let script = format!(
        "SET 'checkpoint.location' = 'memory://ck';
         CREATE TABLE numbers (n BIGINT) WITH ('connector' = 'memory', 'topic' = 'numbers');
         CREATE TABLE totals (k STRING, many BIGINT, PRIMARY KEY (k) NOT ENFORCED)
           WITH ('connector' = 'upsert-kafka', 'topic' = '{}', 'properties.bootstrap.servers' = '{}',
                 'key.format' = 'raw', 'value.format' = 'json', 'value.fields-include' = 'EXCEPT_KEY');
         INSERT INTO totals
           SELECT CAST(n % 3 AS STRING) AS k, count(*) AS many FROM numbers GROUP BY n % 3 HAVING count(*) <> 4;",
        topic.0,
        servers()
    );
    let world = World::new();
    let mut query = Query::open(world.plan(&script, None).await, Reporter::silent()).await.unwrap();
    for ends in [0, 4, 8, 10].windows(2) {
        world.append("numbers", 0, ends[0]..ends[1]);
        finish(&mut query).await.unwrap();
    }
    query.close().await;
    let mut kept = BTreeMap::new();
    for (_, key, value) in messages(&topic) {
        match value {
            Some(value) => drop(kept.insert(key.unwrap(), value)),
            None => assert!(kept.remove(&key.unwrap()).is_some(), "a tombstone of nothing"),
        }
    }
    // Four of ten numbers leave no rest, which HAVING takes back.
    let expected = ["1", "2"].map(|key| (key.to_string(), "{\"many\":3}".to_string()));
    assert_eq!(kept, BTreeMap::from(expected));
}

//! The standing workload: JSON bids in a Kafka topic of four partitions, those over 500,000 (W1), or what windows of ten
//! seconds hold of each auction (W2), into Parquet; or those over 500,000 into another topic (W3).
//!
//!     bids produce BROKERS TOPIC COUNT            fills the topic: the same bids every time
//!     bids filter|tumble BROKERS TOPIC DIRECTORY  W1 or W2, written by hand: what the same libraries can do at best
//!     bids forward BROKERS TOPIC TARGET           W3, likewise
//!     bids forward-rocketmq BROKERS TOPIC NAME-SERVER TARGET
//!                                                 the same into a RocketMQ topic of four queues
//!     bids drain NAME-SERVER TOPIC          reads all messages of a RocketMQ topic, and does nothing with them
//!     bids count BROKERS TOPIC EXPECTED           how many committed messages there are; waits for as many as expected
//!     bids latency BROKERS SOURCE TARGET RATE WARM-UP SECONDS
//!                                                 sends bids that say when they were sent, at this rate a second, and
//!                                                 measures when they come out of the query between the two topics
//!
//! The loops have no planner, no checkpoint and no way to deal with a bad message; they are the limit to be measured
//! against. That of W2 knows more than any engine may: that auctions are small numbers, and that all fits in memory.
//! That of W3 writes at least once. `run.sh`, `topics.sh` and `latency.sh` run them beside `millstream` in one go.

// A benchmark asks what time it is, and ends at the first trouble.
#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arrow::array::{ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, TimestampMillisecondArray};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, TimeUnit, TimestampMillisecondType};
use arrow_json::{LineDelimitedWriter, ReaderBuilder};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use rdkafka::bindings as librdkafka;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use bid::{Bid, scramble};

#[path = "bids/bid.rs"]
mod bid;
#[path = "bids/rocketmq.rs"]
mod rocketmq;

const PARTITIONS: i32 = 4;
const THREADS: i32 = 2;
const BATCH: usize = 8192;
const TIMEOUT: Duration = Duration::from_secs(30);

fn main() {
    // Cargo adds --bench.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let began = Instant::now();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["produce", brokers, topic, count] => produce(brokers, topic, count.parse().unwrap()),
        ["filter", brokers, topic, directory] => {
            fs::create_dir_all(directory).unwrap();
            let (read, kept) = total(side_by_side(|task| filter(brokers, topic, directory, task)));
            println!("filter: {read} read, {kept} kept, {:.2} s", began.elapsed().as_secs_f64());
        }
        ["forward", brokers, topic, target] => {
            let (read, kept) = total(side_by_side(|task| forward(brokers, topic, target, task)));
            println!("forward: {read} read, {kept} kept, {:.2} s", began.elapsed().as_secs_f64());
        }
        ["forward-rocketmq", brokers, topic, name_server, target] => {
            let (read, kept) = rocketmq::forward(name_server, target, |write| {
                total(side_by_side(|task| {
                    let mut kept = 0;
                    let read = consume(brokers, topic, task, |rows| {
                        let rows = high(&rows);
                        write(&rows);
                        kept += rows.num_rows() as u64;
                    });
                    (read, kept)
                }))
            });
            println!("forward: {read} read, {kept} kept, {:.2} s", began.elapsed().as_secs_f64());
        }
        ["drain", name_server, topic] => {
            let read = rocketmq::drain(name_server, topic);
            println!("drain: {read} read, {:.2} s", began.elapsed().as_secs_f64());
        }
        ["count", brokers, topic, expected] => println!("{}", committed(brokers, topic, expected.parse().unwrap())),
        ["latency", brokers, source, target, rate, warm_up, seconds] => {
            let [rate, warm_up, seconds] = [rate, warm_up, seconds].map(|number| number.parse().unwrap());
            let took = latency(brokers, [source, target], rate, warm_up, seconds);
            let ms = |percent: usize| took[(took.len() * percent / 100).min(took.len() - 1)] as f64 / 1000.0;
            let [p50, p90, p99, max] = [50, 90, 99, 100].map(ms);
            println!("{} rows: p50 {p50:.1} ms, p90 {p90:.1} ms, p99 {p99:.1} ms, max {max:.1} ms", took.len());
        }
        ["tumble", brokers, topic, directory] => {
            fs::create_dir_all(directory).unwrap();
            let groups = tumble(side_by_side(|task| count(brokers, topic, task)), directory);
            println!("tumble: {groups} groups, {:.2} s", began.elapsed().as_secs_f64());
        }
        _ => {
            eprintln!(
                "usage: bids produce BROKERS TOPIC COUNT | bids filter|tumble BROKERS TOPIC DIRECTORY\n\
                 | bids forward BROKERS TOPIC TARGET | bids forward-rocketmq BROKERS TOPIC NAME-SERVER TARGET\n\
                 | bids drain NAME-SERVER TOPIC | bids count BROKERS TOPIC EXPECTED\n\
                 | bids latency BROKERS SOURCE TARGET RATE WARM-UP SECONDS"
            );
            std::process::exit(2);
        }
    }
}

fn total(counts: Vec<(u64, u64)>) -> (u64, u64) {
    counts.into_iter().fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1))
}

/// What each thread gives.
fn side_by_side<T: Send>(work: impl Fn(i32) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let work = &work;
        let tasks: Vec<_> = (0..THREADS).map(|task| scope.spawn(move || work(task))).collect();
        tasks.into_iter().map(|task| task.join().unwrap()).collect()
    })
}

fn producer(brokers: &str, linger_ms: &str) -> BaseProducer {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("linger.ms", linger_ms).set("queue.buffering.max.messages", "500000");
    config.create().unwrap()
}

/// Hands a message over, waiting where the queue is full.
fn send(producer: &BaseProducer, mut record: BaseRecord<'_, [u8], [u8]>) {
    while let Err((error, refused)) = producer.send(record) {
        assert_eq!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull));
        record = refused;
        producer.poll(Duration::from_millis(10));
    }
}

fn produce(brokers: &str, topic: &str, count: u64) {
    let producer = producer(brokers, "20");
    for n in 0..count {
        let bid = Bid::nth(n).json();
        let partition = (n % PARTITIONS as u64) as i32;
        send(&producer, BaseRecord::to(topic).payload(bid.as_bytes()).partition(partition));
        if n % 1000 == 0 {
            producer.poll(Duration::ZERO);
        }
    }
    producer.flush(Duration::from_secs(120)).unwrap();
}

/// The columns that are decoded.
fn schema() -> Arc<Schema> {
    let bigint = |name| Field::new(name, DataType::Int64, true);
    let time = Field::new("dateTime", DataType::Timestamp(TimeUnit::Millisecond, None), true);
    Arc::new(Schema::new(vec![bigint("auction"), bigint("bidder"), bigint("price"), time]))
}

fn parquet(path: &str, schema: Arc<Schema>) -> ArrowWriter<File> {
    let zstd = WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::try_new(1).unwrap())).build();
    ArrowWriter::try_new(File::create(path).unwrap(), schema, Some(zstd)).unwrap()
}

/// The rows that W1 and W3 keep.
fn high(rows: &RecordBatch) -> RecordBatch {
    let over = BooleanArray::from_unary(rows.column(2).as_primitive::<Int64Type>(), |price| price > 500_000);
    filter_record_batch(rows, &over).unwrap()
}

/// W1, one thread's partitions: read and kept.
fn filter(brokers: &str, topic: &str, directory: &str, task: i32) -> (u64, u64) {
    let (staged, path) = (format!("{directory}/.{task}"), format!("{directory}/{task}.parquet"));
    let mut writer = parquet(&staged, schema());
    let mut kept = 0;
    let read = consume(brokers, topic, task, |rows| {
        let rows = high(&rows);
        writer.write(&rows).unwrap();
        kept += rows.num_rows() as u64;
    });
    writer.into_inner().unwrap().sync_all().unwrap();
    fs::rename(staged, path).unwrap();
    (read, kept)
}

/// W3, one thread's partitions: read and kept.
fn forward(brokers: &str, topic: &str, target: &str, task: i32) -> (u64, u64) {
    let producer = producer(brokers, "20");
    let (mut kept, mut lines) = (0, Vec::<u8>::new());
    let read = consume(brokers, topic, task, |rows| {
        let rows = high(&rows);
        lines.clear();
        let mut writer = LineDelimitedWriter::new(&mut lines);
        writer.write(&rows).unwrap();
        writer.finish().unwrap();
        for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            send(&producer, BaseRecord::to(target).payload(line));
        }
        producer.poll(Duration::ZERO);
        kept += rows.num_rows() as u64;
    });
    producer.flush(Duration::from_secs(120)).unwrap();
    (read, kept)
}

/// By window, and by auction in it: count, highest price, sum of prices.
type Windows = BTreeMap<i64, Vec<(i64, i64, i64)>>;

/// W2, one thread's partitions.
fn count(brokers: &str, topic: &str, task: i32) -> Windows {
    let mut windows = Windows::new();
    consume(brokers, topic, task, |rows| {
        let column = |index: usize| rows.column(index).as_primitive::<Int64Type>().values();
        let (auctions, prices) = (column(0), column(2));
        let times = rows.column(3).as_primitive::<TimestampMillisecondType>().values();
        let mut last = (i64::MIN, &mut Vec::new());
        for ((&auction, &price), &time) in auctions.iter().zip(prices).zip(times) {
            let start = time.div_euclid(10_000) * 10_000;
            if start != last.0 {
                last = (start, windows.entry(start).or_default());
            }
            if last.1.len() <= auction as usize {
                last.1.resize(auction as usize + 1, (0, i64::MIN, 0));
            }
            let group = &mut last.1[auction as usize];
            *group = (group.0 + 1, group.1.max(price), group.2 + price);
        }
    });
    windows
}

/// Adds up what the threads counted, and writes it; how many groups there are.
fn tumble(counted: Vec<Windows>, directory: &str) -> usize {
    let mut all: BTreeMap<(i64, i64), [i64; 3]> = BTreeMap::new();
    for (start, auctions) in counted.into_iter().flatten() {
        for (auction, (n, top, sum)) in auctions.into_iter().enumerate().filter(|(_, group)| group.0 > 0) {
            let group = all.entry((start, auction as i64)).or_insert([0, i64::MIN, 0]);
            *group = [group[0] + n, group[1].max(top), group[2] + sum];
        }
    }
    let bigint = |name| Field::new(name, DataType::Int64, false);
    let start = Field::new("start", DataType::Timestamp(TimeUnit::Millisecond, None), false);
    let schema = Arc::new(Schema::new(vec![start, bigint("auction"), bigint("n"), bigint("top"), bigint("total")]));
    let numbers = |index: usize| Arc::new(all.values().map(|group| group[index]).collect::<Int64Array>()) as ArrayRef;
    let columns: Vec<ArrayRef> = vec![
        Arc::new(TimestampMillisecondArray::from_iter_values(all.keys().map(|(start, _)| *start))),
        Arc::new(all.keys().map(|(_, auction)| *auction).collect::<Int64Array>()),
        numbers(0),
        numbers(1),
        numbers(2),
    ];
    let mut writer = parquet(&format!("{directory}/.0"), Arc::clone(&schema));
    writer.write(&RecordBatch::try_new(schema, columns).unwrap()).unwrap();
    writer.into_inner().unwrap().sync_all().unwrap();
    fs::rename(format!("{directory}/.0"), format!("{directory}/0.parquet")).unwrap();
    all.len()
}

/// How the loops read.
fn reading(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    let settings = [
        ("bootstrap.servers", brokers),
        ("group.id", "bids"),
        ("enable.auto.commit", "false"),
        ("enable.auto.offset.store", "false"),
        ("fetch.wait.max.ms", "10"),
        ("fetch.queue.backoff.ms", "5"),
        ("max.partition.fetch.bytes", "4194304"),
        ("queued.min.messages", "200000"),
    ];
    for (key, value) in settings {
        config.set(key, value);
    }
    config
}

/// One thread's partitions, decoded; how many messages there were.
fn consume(brokers: &str, topic: &str, task: i32, mut act: impl FnMut(RecordBatch)) -> u64 {
    let consumer: BaseConsumer = reading(brokers).create().unwrap();
    let mut assigned = TopicPartitionList::new();
    let mut ends = vec![i64::MIN; PARTITIONS as usize];
    for partition in (0..PARTITIONS).filter(|p| p % THREADS == task) {
        let (low, high) = consumer.fetch_watermarks(topic, partition, TIMEOUT).unwrap();
        assigned.add_partition_offset(topic, partition, Offset::Offset(low)).unwrap();
        ends[partition as usize] = high;
    }
    let mut open = ends.iter().filter(|end| **end > 0).count();
    consumer.assign(&assigned).unwrap();

    let mut decoder = ReaderBuilder::new(schema()).with_batch_size(BATCH).build_decoder().unwrap();
    let (mut read, mut waiting) = (0, 0);
    let mut messages = vec![std::ptr::null_mut(); 4096];
    // SAFETY: the queue belongs to `consumer`, which outlives it; librdkafka fills at most `messages.len()` pointers and
    // says how many; each message is read before it is destroyed, once, and is not used after.
    unsafe {
        let queue = librdkafka::rd_kafka_queue_get_consumer(consumer.client().native_ptr());
        while open > 0 {
            let count = librdkafka::rd_kafka_consume_batch_queue(queue, 20, messages.as_mut_ptr(), messages.len());
            for &pointer in &messages[..count.max(0) as usize] {
                let message = &*pointer;
                assert_eq!(message.err, librdkafka::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR);
                let end = ends[message.partition as usize];
                if message.offset < end {
                    decoder.decode(std::slice::from_raw_parts(message.payload as *const u8, message.len)).unwrap();
                    read += 1;
                    waiting += 1;
                    open -= usize::from(message.offset + 1 == end);
                }
                librdkafka::rd_kafka_message_destroy(pointer);
                if waiting == BATCH {
                    waiting = 0;
                    act(decoder.flush().unwrap().unwrap());
                }
            }
        }
        librdkafka::rd_kafka_queue_destroy(queue);
    }
    if let Some(rows) = decoder.flush().unwrap() {
        act(rows);
    }
    read
}

/// Reads all that is committed, and says where a partition ends.
fn committed_reader(brokers: &str, topic: &str) -> BaseConsumer {
    let mut config = reading(brokers);
    config.set("isolation.level", "read_committed").set("enable.partition.eof", "true");
    let consumer: BaseConsumer = config.create().unwrap();
    let mut all = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        all.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
    }
    consumer.assign(&all).unwrap();
    consumer
}

/// How many messages there are, up to the ends. The markers of a transaction come after its commit, so while there are
/// fewer than expected it waits, for up to ten seconds.
fn committed(brokers: &str, topic: &str, expected: u64) -> u64 {
    let consumer = committed_reader(brokers, topic);
    let (mut rows, mut ended, mut quiet) = (0, BTreeSet::new(), 0);
    while quiet < 100 && (quiet == 0 || ended.len() < PARTITIONS as usize || rows < expected) {
        match consumer.poll(Duration::from_millis(100)) {
            None => quiet += 1,
            Some(Ok(_)) => (rows, quiet) = (rows + 1, 0),
            Some(Err(KafkaError::PartitionEOF(partition))) => drop(ended.insert(partition)),
            Some(Err(error)) => panic!("{error}"),
        }
    }
    rows
}

/// Of each row sent after the warm-up: the microseconds until a reader of committed messages had it. Sorted.
fn latency(brokers: &str, [source, target]: [&str; 2], rate: u64, warm_up: u64, seconds: u64) -> Vec<u64> {
    let consumer = committed_reader(brokers, target);
    let mut ready = BTreeSet::new();
    while ready.len() < PARTITIONS as usize {
        match consumer.poll(TIMEOUT) {
            Some(Err(KafkaError::PartitionEOF(partition))) => drop(ready.insert(partition)),
            other => panic!("{target} is not an empty topic: {other:?}"),
        }
    }
    let all = rate * (warm_up + seconds);
    let (mut seen, mut took) = (vec![false; all as usize], Vec::new());
    std::thread::scope(|scope| {
        scope.spawn(|| send_on_time(brokers, source, rate, all));
        let mut missing = all;
        while missing > 0 {
            let message = match consumer.poll(TIMEOUT) {
                None => panic!("{missing} rows did not come out"),
                Some(Err(KafkaError::PartitionEOF(_))) => continue,
                Some(message) => message.unwrap(),
            };
            let at = now_us();
            let row: serde_json::Value = serde_json::from_slice(message.payload().unwrap()).unwrap();
            let (n, sent) = (row["n"].as_u64().unwrap(), row["sent"].as_u64().unwrap());
            assert!(!std::mem::replace(&mut seen[n as usize], true), "row {n} came out twice");
            missing -= 1;
            if n >= rate * warm_up {
                took.push(at.saturating_sub(sent));
            }
        }
    });
    took.sort_unstable();
    took
}

/// Every millisecond, the messages that have fallen due.
fn send_on_time(brokers: &str, topic: &str, rate: u64, all: u64) {
    let producer = producer(brokers, "1");
    let (began, mut sent) = (Instant::now(), 0);
    while sent < all {
        let due = (began.elapsed().as_micros() as u64 * rate / 1_000_000).min(all);
        for n in sent..due {
            let a = scramble(n + 1);
            let (auction, price, at) = (a % 1000, 1 + (a >> 20) % 1_000_000, now_us());
            let bid = format!("{{\"n\":{n},\"sent\":{at},\"auction\":{auction},\"price\":{price}}}");
            let partition = (n % PARTITIONS as u64) as i32;
            send(&producer, BaseRecord::to(topic).payload(bid.as_bytes()).partition(partition));
        }
        sent = due;
        producer.poll(Duration::ZERO);
        std::thread::sleep(Duration::from_millis(1));
    }
    producer.flush(TIMEOUT).unwrap();
}

/// Sender and receiver are one process, and so have one clock.
fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64
}

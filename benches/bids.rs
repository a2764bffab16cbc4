//! The standing workload: JSON bids in a Kafka topic of four partitions, those over 500,000 (W1), or what windows of ten
//! seconds hold of each auction (W2), into Parquet.
//!
//!     bids produce BROKERS TOPIC COUNT            fills the topic: the same bids every time
//!     bids filter|tumble BROKERS TOPIC DIRECTORY  W1 or W2, written by hand: what the same libraries can do at best
//!
//! The loops have no planner, no checkpoint and no way to deal with a bad message; they are the limit to be measured
//! against. That of W2 knows more than any engine may: that auctions are small numbers, and that all fits in memory.
//! `run.sh` runs it beside `millstream` in one go.

// A benchmark asks what time it is, and ends at the first trouble.
#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, TimestampMillisecondArray};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, TimeUnit, TimestampMillisecondType};
use arrow_json::ReaderBuilder;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use rdkafka::bindings as librdkafka;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

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
            let (read, kept) = side_by_side(|task| filter(brokers, topic, directory, task))
                .into_iter()
                .fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
            println!("filter: {read} read, {kept} kept, {:.2} s", began.elapsed().as_secs_f64());
        }
        ["tumble", brokers, topic, directory] => {
            fs::create_dir_all(directory).unwrap();
            let groups = tumble(side_by_side(|task| count(brokers, topic, task)), directory);
            println!("tumble: {groups} groups, {:.2} s", began.elapsed().as_secs_f64());
        }
        _ => eprintln!("usage: bids produce BROKERS TOPIC COUNT | bids filter|tumble BROKERS TOPIC DIRECTORY"),
    }
}

/// What each thread gives.
fn side_by_side<T: Send>(work: impl Fn(i32) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let work = &work;
        let tasks: Vec<_> = (0..THREADS).map(|task| scope.spawn(move || work(task))).collect();
        tasks.into_iter().map(|task| task.join().unwrap()).collect()
    })
}

/// A number that looks random and follows from `n` alone.
fn scramble(n: u64) -> u64 {
    let n = (n ^ (n >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let n = (n ^ (n >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    n ^ (n >> 33)
}

fn produce(brokers: &str, topic: &str, count: u64) {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("linger.ms", "20").set("queue.buffering.max.messages", "500000");
    let producer: BaseProducer = config.create().unwrap();
    let start = chrono::DateTime::from_timestamp_millis(1_767_225_600_000).unwrap();
    for n in 0..count {
        let (a, b) = (scramble(n + 1), scramble(n + 0x5151));
        let channel = ["Google", "Facebook", "Baidu", "Apple"][(b >> 50) as usize % 4];
        let at = start + chrono::Duration::milliseconds((n / 10) as i64);
        let bid = format!(
            "{{\"auction\":{},\"bidder\":{},\"price\":{},\"channel\":\"{channel}\",\
             \"url\":\"https://www.nexmark.com/{a:016x}/{:08x}/item.htm?query=1&channel_id={}\",\"dateTime\":\"{}\"}}",
            a % 1000,
            (a >> 20) % 100_000,
            1 + b % 1_000_000,
            b as u32,
            b % 997,
            at.format("%Y-%m-%d %H:%M:%S%.3f")
        );
        let partition = (n % PARTITIONS as u64) as i32;
        let mut record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(topic).payload(bid.as_bytes()).partition(partition);
        while let Err((error, refused)) = producer.send(record) {
            assert_eq!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull));
            record = refused;
            producer.poll(Duration::from_millis(10));
        }
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

/// W1, one thread's partitions: read and kept.
fn filter(brokers: &str, topic: &str, directory: &str, task: i32) -> (u64, u64) {
    let (staged, path) = (format!("{directory}/.{task}"), format!("{directory}/{task}.parquet"));
    let mut writer = parquet(&staged, schema());
    let mut kept = 0;
    let read = consume(brokers, topic, task, |rows| {
        let over = BooleanArray::from_unary(rows.column(2).as_primitive::<Int64Type>(), |price| price > 500_000);
        let rows = filter_record_batch(&rows, &over).unwrap();
        writer.write(&rows).unwrap();
        kept += rows.num_rows() as u64;
    });
    writer.into_inner().unwrap().sync_all().unwrap();
    fs::rename(staged, path).unwrap();
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

/// One thread's partitions, decoded; how many messages there were.
fn consume(brokers: &str, topic: &str, task: i32, mut act: impl FnMut(RecordBatch)) -> u64 {
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
    let consumer: BaseConsumer = config.create().unwrap();
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

//! The standing workload: JSON bids in a Kafka topic of four partitions, those over 500,000 into Parquet.
//!
//!     bids produce BROKERS TOPIC COUNT       fills the topic: the same bids every time
//!     bids loop BROKERS TOPIC DIRECTORY      the work, written by hand: what the same libraries can do at best
//!
//! The loop has no planner, no checkpoint and no way to deal with a bad message; it is the limit to be measured against.
//! `run.sh` runs it beside `millstream` in one go.

// A benchmark asks what time it is, and ends at the first trouble.
#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

use std::fs::{self, File};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{AsArray, BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, TimeUnit};
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
        ["loop", brokers, topic, directory] => {
            fs::create_dir_all(directory).unwrap();
            let work = |task| work(brokers, topic, directory, task);
            let (read, kept) = std::thread::scope(|scope| {
                let tasks: Vec<_> = (0..THREADS).map(|task| scope.spawn(move || work(task))).collect();
                tasks.into_iter().map(|t| t.join().unwrap()).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1))
            });
            println!("loop: {read} read, {kept} kept, {:.2} s", began.elapsed().as_secs_f64());
        }
        _ => eprintln!("usage: bids produce BROKERS TOPIC COUNT | bids loop BROKERS TOPIC DIRECTORY"),
    }
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

/// One thread's partitions: consume, decode, filter, write.
fn work(brokers: &str, topic: &str, directory: &str, task: i32) -> (u64, u64) {
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

    let bigint = |name| Field::new(name, DataType::Int64, true);
    let time = Field::new("dateTime", DataType::Timestamp(TimeUnit::Millisecond, None), true);
    let schema = Arc::new(Schema::new(vec![bigint("auction"), bigint("bidder"), bigint("price"), time]));
    let mut decoder = ReaderBuilder::new(Arc::clone(&schema)).with_batch_size(BATCH).build_decoder().unwrap();
    let zstd = WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::try_new(1).unwrap())).build();
    let (staged, path) = (format!("{directory}/.{task}"), format!("{directory}/{task}.parquet"));
    let mut writer = ArrowWriter::try_new(File::create(&staged).unwrap(), schema, Some(zstd)).unwrap();
    let (mut read, mut kept) = (0, 0);
    let mut write = |rows: RecordBatch| {
        let over = BooleanArray::from_unary(rows.column(2).as_primitive::<Int64Type>(), |price| price > 500_000);
        let rows = filter_record_batch(&rows, &over).unwrap();
        writer.write(&rows).unwrap();
        kept += rows.num_rows() as u64;
    };
    let mut waiting = 0;
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
                    write(decoder.flush().unwrap().unwrap());
                }
            }
        }
        librdkafka::rd_kafka_queue_destroy(queue);
    }
    if let Some(rows) = decoder.flush().unwrap() {
        write(rows);
    }
    writer.into_inner().unwrap().sync_all().unwrap();
    fs::rename(staged, path).unwrap();
    (read, kept)
}

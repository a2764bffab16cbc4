//! Where an epoch's time goes, part by part, without a broker.
//!
//!     cargo bench --bench micro [-- FILTER]       all parts, or those whose names contain FILTER
//!
//! - `decode`: messages of a topic into rows, by what every reader calls, in batches of the size that readers have.
//! - `parquet`: rows of W1 into files that nobody reads yet.
//! - `epoch`: the six steps, by what a query says of itself, over a topic in memory with one partition: W1's rows into
//!   Parquet, and changes of groups that are remembered.
//!
//! The first two are the work of one thread; so is an epoch, but for state, whose shards are worked on side by side.
//! Each number is a median, after rounds to warm up. What it is no measure of: readers and brokers, and what the parts
//! do to each other's caches. `run.sh` and `state.sh` measure the whole, `profile.sh` shows what W1 is made of.

// A benchmark asks what time it is, and ends at the first trouble.
#![allow(clippy::disallowed_methods, clippy::unwrap_used)]
#![recursion_limit = "512"]

use std::hint::black_box;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use arrow::array::{ArrayRef, BinaryArray, Int64Array, RecordBatch, TimestampMillisecondArray};
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use arrow_json::ReaderBuilder;
use millstream::clock::Clock;
use millstream::connector::contract::fixture;
use millstream::connector::files::FilesConnector;
use millstream::connector::memory::{Memory, MemoryConnector};
use millstream::connector::messages::{Decoding, MessageBatch};
use millstream::connector::{Connector, Connectors, Fingerprint, Partition, Pin, ReadReport};
use millstream::format::FormatOptions;
use millstream::query::progress::{Durations, Event, Reporter};
use millstream::query::{Query, Step};
use millstream::session::{Outcome, Session};
use millstream::sql::options::OptionReader;
use millstream::storage::Stores;
use tokio::runtime::Runtime;

use bid::Bid;

#[path = "bids/bid.rs"]
mod bid;

/// Rows in a batch, of a reader as of a plan.
const BATCH: usize = 8192;
/// Messages to be decoded in a round.
const MESSAGES: u64 = 25 * BATCH as u64;
/// Rounds of what is measured by the clock.
const ROUNDS: usize = 15;

/// Epochs before those that are measured; as many as it takes to see every group.
const FIRST_EPOCHS: usize = 20;
/// Epochs that are measured.
const EPOCHS: usize = 200;
/// Rows of a large one.
const LARGE: usize = 100_000;
/// Groups that a query remembers.
const GROUPS: usize = 1_000_000;

/// W1, over rows that it keeps.
const FILTER: &str = "
    SET 'checkpoint.location' = '${out}/checkpoints';
    CREATE TABLE bids (auction BIGINT, bidder BIGINT, price BIGINT, dateTime TIMESTAMP(3))
      WITH ('connector' = 'memory', 'topic' = 'input', 'scan.max-bytes-per-epoch' = '16 gb');
    CREATE TABLE high_bids (auction BIGINT, bidder BIGINT, price BIGINT, dateTime TIMESTAMP(3))
      WITH ('connector' = 'filesystem', 'path' = '${out}/high_bids', 'format' = 'parquet');
    INSERT INTO high_bids SELECT auction, bidder, price, dateTime FROM bids WHERE price > 500000;";

/// A result that changes.
const TOTALS: &str = "
    SET 'checkpoint.location' = '${out}/checkpoints';
    CREATE TABLE numbers (k BIGINT, v BIGINT)
      WITH ('connector' = 'memory', 'topic' = 'input', 'scan.max-bytes-per-epoch' = '16 gb');
    CREATE TABLE totals (k BIGINT, n BIGINT, total BIGINT) WITH ('connector' = 'blackhole');
    INSERT INTO totals SELECT k, count(*), sum(v) FROM numbers GROUP BY k;";

/// The six steps and their sum.
const STEPS: [fn(&Durations) -> f64; 7] =
    [|ms| ms.plan, |ms| ms.intend, |ms| ms.bind, |ms| ms.run, |ms| ms.publish, |ms| ms.commit, Durations::total];

fn main() {
    // Cargo adds --bench.
    let filter = std::env::args().skip(1).find(|argument| argument != "--bench").unwrap_or_default();
    let runtime = Runtime::new().unwrap();
    println!("{:<48}{:>10}{:>10}{:>12}{:>10}", "", "bytes/row", "ns/row", "M rows/s", "MB/s");
    decode(&filter);
    parquet(&filter, &runtime);
    let steps = ["plan", "intend", "bind", "run", "publish", "commit", "all"];
    println!("\n{:<48}{}", "ms", steps.map(|step| format!("{step:>9}")).concat());
    epochs(&filter, &runtime);
}

/// Bids in each format, all columns and two of them.
fn decode(filter: &str) {
    const ALL: &[usize] = &[0, 1, 2, 3, 4, 5];
    const TWO: &[usize] = &[0, 2];
    let bids: Vec<Bid> = (0..MESSAGES).map(Bid::nth).collect();
    let json: Vec<String> = bids.iter().map(Bid::json).collect();
    let csv: Vec<String> = bids.iter().map(csv).collect();
    let created: Vec<String> =
        json.iter().map(|bid| format!("{{\"before\":null,\"after\":{bid},\"op\":\"c\"}}")).collect();
    let (bid, text) = (schema(), Schema::new(vec![Field::new("payload", DataType::Utf8View, true)]));

    let name = "decode json, 6 of 6 columns, by arrow-json alone";
    if name.contains(filter) {
        let batches = batches(&json);
        let mut decoder = ReaderBuilder::new(Arc::new(bid.clone())).with_batch_size(BATCH).build_decoder().unwrap();
        let seconds = seconds(|| {
            for batch in &batches {
                for payload in batch.payloads.iter().flatten() {
                    decoder.decode(payload).unwrap();
                }
                black_box(decoder.flush().unwrap());
            }
        });
        print_rate(name, json.len(), size(&json), seconds);
    }
    let cases = [
        ("json", &bid, ALL, &json),
        ("json", &bid, TWO, &json),
        ("csv", &bid, ALL, &csv),
        ("csv", &bid, TWO, &csv),
        ("raw", &text, &ALL[..1], &json),
        ("debezium-json", &bid, ALL, &created),
        ("debezium-json", &bid, TWO, &created),
    ];
    for (format, schema, projection, payloads) in cases {
        let name = format!("decode {format}, {} of {} columns", projection.len(), schema.fields().len());
        if !name.contains(filter) {
            continue;
        }
        let table = fixture::table_of("bids", schema, &[("format", format)]);
        let options = FormatOptions::take(&mut OptionReader::new(&table)).unwrap();
        let mut decoding = Decoding::try_new(&table, &options, projection, &ReadReport::default()).unwrap();
        let (batches, partition) = (batches(payloads), Partition::new("bids", 0));
        let seconds = seconds(|| {
            for batch in &batches {
                black_box(decoding.decode(&partition, batch.clone()).unwrap());
            }
        });
        print_rate(&name, payloads.len(), size(payloads), seconds);
    }
}

/// W1's rows into a Parquet file, up to where it could be published.
fn parquet(filter: &str, runtime: &Runtime) {
    let name = "parquet, 1,000,000 rows of W1 staged";
    if !name.contains(filter) {
        return;
    }
    let batches = high_bids(1_000_000, BATCH);
    let schema = batches[0].schema();
    let options = [("connector", "filesystem"), ("path", "memory://micro/high_bids"), ("format", "parquet")];
    let table = fixture::table_of("high_bids", &schema, &options);
    let (environment, owner) = (fixture::environment(), fixture::owner("0123456789abcdef"));
    let sink = runtime.block_on(FilesConnector.sink(table, &environment, &owner)).unwrap();
    let mut bytes = 0;
    let seconds = seconds(|| {
        bytes = runtime.block_on(async {
            let rows = fixture::stream_of(&schema, batches.iter().cloned().map(Ok).collect());
            let staged = sink.stage(1, 0, &Pin::Null, rows).await.unwrap();
            sink.discard(1).await;
            staged.bytes
        });
    });
    print_rate(name, 1_000_000, bytes, seconds);
}

/// The six steps: epochs small and large, with and without state, under a checkpoint in memory and one that is synced.
fn epochs(filter: &str, runtime: &Runtime) {
    let dir = tempfile::tempdir().unwrap();
    let places = [("memory", "memory://micro".to_string()), ("local, synced", dir.path().display().to_string())];
    let works = [
        ("1 row into Parquet", FILTER, high_bids(1, 1)),
        ("100,000 rows into Parquet", FILTER, high_bids(LARGE, LARGE)),
        ("100,000 rows over 1,000,000 groups", TOTALS, numbers()),
    ];
    for (number, (work, script, batches)) in works.iter().enumerate() {
        for (kind, place) in &places {
            let name = format!("epoch, {work}, {kind}");
            if !name.contains(filter) {
                continue;
            }
            let took = runtime.block_on(run(&script.replace("${out}", &format!("{place}/{number}")), batches));
            let cells = STEPS.map(|step| format!("{:9.2}", median(took.iter().map(step))));
            println!("{name:<48}{}", cells.concat());
        }
    }
}

/// What epochs of a query took that gets one of these batches each, in turns.
async fn run(script: &str, batches: &[RecordBatch]) -> Vec<Durations> {
    let (memory, clock) = (Memory::new(), Clock::system());
    let connectors = Connectors::standard().with(Arc::new(MemoryConnector::new(memory.clone())));
    let mut session = Session::with("micro", connectors, Stores::new(clock.clone()), clock).unwrap();
    let outcomes = session.execute_script(script).await.unwrap();
    let query = |outcome| if let Outcome::Query(spec) = outcome { Some(*spec) } else { None };
    let spec = outcomes.into_iter().find_map(query).unwrap();

    let took = Arc::new(Mutex::new(vec![]));
    let seen = Arc::clone(&took);
    let reporter = Reporter::new(move |event| {
        if let Event::Epoch(epoch) = event {
            seen.lock().unwrap().push((epoch.rows_in, epoch.durations_ms));
        }
    });
    let mut query = Query::open(spec, reporter).await.unwrap();
    for rows in batches.iter().cycle().take(FIRST_EPOCHS + EPOCHS) {
        memory.append("input", 0, rows.clone());
        assert!(matches!(query.step().await.unwrap(), Step::Committed(_)));
    }
    query.close().await;
    let took = std::mem::take(&mut *took.lock().unwrap());
    assert!(took.iter().all(|(rows, _)| *rows == batches[0].num_rows() as u64), "an epoch was cut into several");
    took.into_iter().skip(FIRST_EPOCHS).map(|(_, durations)| durations).collect()
}

/// All columns of a bid.
fn schema() -> Schema {
    let time = DataType::Timestamp(TimeUnit::Millisecond, None);
    let (number, text) = (DataType::Int64, DataType::Utf8View);
    let columns = [
        ("auction", number.clone()),
        ("bidder", number.clone()),
        ("price", number),
        ("channel", text.clone()),
        ("url", text),
        ("dateTime", time),
    ];
    Schema::new(columns.map(|(name, data_type)| Field::new(name, data_type, true)).to_vec())
}

fn csv(bid: &Bid) -> String {
    let Bid { auction, bidder, price, channel, url, .. } = bid;
    format!("{auction},{bidder},{price},{channel},{url},{}", bid.time())
}

/// Messages as a reader hands them over.
fn batches(payloads: &[String]) -> Vec<MessageBatch> {
    let batch = |(index, payloads): (usize, &[String])| {
        let first = (index * BATCH) as u64;
        let offsets: Vec<u64> = (first..first + payloads.len() as u64).collect();
        MessageBatch {
            payloads: BinaryArray::from_iter_values(payloads),
            broken: vec![],
            metadata: vec![],
            last: Fingerprint { offset: offsets[offsets.len() - 1], timestamp: None, id: None },
            offsets,
        }
    };
    payloads.chunks(BATCH).enumerate().map(batch).collect()
}

/// The first rows that W1 keeps, as its filter hands them on.
fn high_bids(count: usize, batch: usize) -> Vec<RecordBatch> {
    let schema = Arc::new(schema().project(&[0, 1, 2, 5]).unwrap());
    let bids: Vec<Bid> = (0..).map(Bid::nth).filter(|bid| bid.price > 500_000).take(count).collect();
    let rows = |bids: &[Bid]| {
        let numbers = |of: fn(&Bid) -> u64| Int64Array::from_iter_values(bids.iter().map(|bid| of(bid) as i64));
        let times = bids.iter().map(|bid| bid.at.timestamp_millis());
        let columns: Vec<ArrayRef> = vec![
            Arc::new(numbers(|bid| bid.auction)),
            Arc::new(numbers(|bid| bid.bidder)),
            Arc::new(numbers(|bid| bid.price)),
            Arc::new(TimestampMillisecondArray::from_iter_values(times)),
        ];
        RecordBatch::try_new(Arc::clone(&schema), columns).unwrap()
    };
    bids.chunks(batch).map(rows).collect()
}

/// Batches that have each group once together, and each of them groups all over the place.
fn numbers() -> Vec<RecordBatch> {
    let batch = |first: usize| {
        let numbers = first as i64..(first + LARGE) as i64;
        let keys = numbers.clone().map(|n| n * 48_271 % GROUPS as i64);
        let column = |values: Int64Array| Arc::new(values) as ArrayRef;
        let (keys, values) = (Int64Array::from_iter_values(keys), Int64Array::from_iter_values(numbers));
        RecordBatch::try_from_iter_with_nullable([("k", column(keys), true), ("v", column(values), true)]).unwrap()
    };
    (0..GROUPS).step_by(LARGE).map(batch).collect()
}

fn size(payloads: &[String]) -> u64 {
    payloads.iter().map(|payload| payload.len() as u64).sum()
}

/// What one round takes.
fn seconds(mut round: impl FnMut()) -> f64 {
    round();
    median((0..ROUNDS).map(|_| {
        let began = Instant::now();
        round();
        began.elapsed().as_secs_f64()
    }))
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn print_rate(name: &str, rows: usize, bytes: u64, seconds: f64) {
    let (rows, bytes) = (rows as f64, bytes as f64);
    let (size, ns) = (bytes / rows, seconds * 1e9 / rows);
    println!("{name:<48}{size:>10.1}{ns:>10.0}{:>12.2}{:>10.0}", rows / seconds / 1e6, bytes / seconds / 1e6);
}

//! How much epochs take: what each option makes of the spans, epoch by epoch. Time is a seeded clock's, which the tests
//! move.

use std::sync::{Arc, Mutex};

use millstream::clock::Clock;
use millstream::query::progress::{EpochProgress, Event, Reporter};
use millstream::query::{Query, Step};

use crate::harness::World;

/// A query over the streams `a`, which has options, and `b`.
struct Run {
    world: World,
    clock: Clock,
    query: Query,
    epochs: Arc<Mutex<Vec<EpochProgress>>>,
}

fn script(settings: &str, of_a: &str) -> String {
    format!(
        "SET 'checkpoint.location' = 'memory://ck'; SET 'parallelism' = '2'; {settings}
         CREATE TABLE a (n BIGINT) WITH ('connector' = 'memory', 'topic' = 'a'{of_a});
         CREATE TABLE b (n BIGINT) WITH ('connector' = 'memory', 'topic' = 'b');
         CREATE TABLE output (n BIGINT) WITH ('connector' = 'memory', 'topic' = 'output');
         INSERT INTO output SELECT n FROM a UNION ALL SELECT n FROM b;"
    )
}

impl Run {
    /// With so many rows in the partitions of `a`.
    async fn new(settings: &str, of_a: &str, rows: &[i64]) -> Self {
        let (world, clock) = (World::new(), Clock::seeded(1, 0));
        (0..).zip(rows).for_each(|(partition, rows)| world.append("a", partition, 0..*rows));
        let spec = world.plan_by(&script(settings, of_a), &clock).await;
        let epochs: Arc<Mutex<Vec<EpochProgress>>> = Arc::default();
        let seen = Arc::clone(&epochs);
        let reporter = Reporter::new(move |event| {
            if let Event::Epoch(epoch) = event {
                seen.lock().unwrap().push(*epoch);
            }
        });
        let query = Query::open(spec, reporter).await.unwrap();
        Self { world, clock, query, epochs }
    }

    /// What a step did: the spans of its epoch, and what limited them, if anything did.
    async fn step(&mut self) -> String {
        match self.query.step().await.unwrap() {
            Step::Committed(_) => {
                let epoch = self.epochs.lock().unwrap().pop().unwrap();
                let spans = epoch.sources.values().flat_map(|source| &source.partitions);
                let spans = spans.map(|(partition, read)| format!("{partition} {}..{}", read.from, read.to));
                let limits = epoch.sources.values().filter_map(|source| source.limited_by);
                let limits = limits.map(|by| format!("by {by:?}"));
                spans.chain(limits).collect::<Vec<_>>().join(", ")
            }
            other => format!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn bytes_limit_an_epoch_by_the_size_of_the_rows_before() {
    // A number is 8 bytes.
    let mut run = Run::new("", ", 'scan.max-bytes-per-epoch' = '80'", &[25]).await;
    assert_eq!(run.step().await, "a:0 0..1, by Bytes", "nothing is known of the rows");
    assert_eq!(run.step().await, "a:0 1..11, by Bytes");
    assert_eq!(run.step().await, "a:0 11..21, by Bytes");
    assert_eq!(run.step().await, "a:0 21..25");
    assert_eq!(run.step().await, "Idle");
}

#[tokio::test]
async fn a_rate_limits_each_partition_by_the_time_since_the_epoch_before() {
    let mut run = Run::new("", ", 'scan.max-rows-per-second-per-partition' = '10'", &[36, 5]).await;
    assert_eq!(run.step().await, "a:0 0..10, a:1 0..5, by Rate", "a second's worth");
    assert_eq!(run.step().await, "Idle", "none is due");
    run.clock.advance(500);
    assert_eq!(run.step().await, "a:0 10..15, by Rate");
    run.world.append("a", 1, 0..100);
    run.clock.advance(2000);
    assert_eq!(run.step().await, "a:0 15..35, a:1 5..25, by Rate");
    run.clock.advance(8000);
    assert_eq!(run.step().await, "a:0 35..36, a:1 25..105");
    run.clock.advance(60_000);
    assert_eq!(run.step().await, "Idle");
    run.world.append("a", 0, 0..1000);
    run.clock.advance(1000);
    assert_eq!(run.step().await, "a:0 36..46, by Rate", "a pause is not made up for");
}

#[tokio::test]
async fn an_epoch_waits_for_enough_rows_or_for_long_enough() {
    let options = ", 'scan.min-rows-per-epoch' = '10', 'scan.min-rows-max-wait' = '5 s'";
    let mut run = Run::new("", options, &[4, 2]).await;
    assert_eq!(run.step().await, "Idle");
    run.world.append("a", 1, 0..4);
    assert_eq!(run.step().await, "a:0 0..4, a:1 0..6");
    run.world.append("a", 0, 0..3);
    run.clock.advance(4000);
    assert_eq!(run.step().await, "Idle");
    run.clock.advance(1000);
    assert_eq!(run.step().await, "a:0 4..7");
    // An epoch that begins for another table takes from all.
    run.world.append("a", 0, 0..1);
    assert_eq!(run.step().await, "Idle");
    run.world.append("b", 0, 0..2);
    assert_eq!(run.step().await, "a:0 7..8, b:0 0..2");
    // What is last is not waited for.
    run.world.append("a", 0, 0..1);
    assert_eq!(run.step().await, "Idle");
    ["a", "b"].iter().for_each(|topic| run.world.memory.complete(topic));
    assert_eq!(run.step().await, "a:0 8..9");
    assert_eq!(run.step().await, "Finished");
}

#[tokio::test]
async fn what_is_available_now_is_not_held_up_and_not_cut_off() {
    let settings = "SET 'epoch.trigger' = 'available-now';";
    let mut run = Run::new(settings, ", 'scan.min-rows-per-epoch' = '10'", &[4]).await;
    assert_eq!(run.step().await, "a:0 0..4");
    assert_eq!(run.step().await, "Finished");
    let mut run = Run::new(settings, ", 'scan.max-rows-per-second-per-partition' = '3'", &[4]).await;
    assert_eq!(run.step().await, "a:0 0..3, by Rate");
    assert_eq!(run.step().await, "Idle", "one is not read yet");
    run.clock.advance(1000);
    assert_eq!(run.step().await, "a:0 3..4");
    assert_eq!(run.step().await, "Finished");
}

#[tokio::test]
async fn a_bounded_stream_under_a_rate_is_read_to_its_end() {
    let mut run = Run::new("", ", 'scan.max-rows-per-second-per-partition' = '3'", &[4]).await;
    ["a", "b"].iter().for_each(|topic| run.world.memory.complete(topic));
    assert_eq!(run.step().await, "a:0 0..3, by Rate");
    assert_eq!(run.step().await, "Idle");
    run.clock.advance(1000);
    assert_eq!(run.step().await, "a:0 3..4");
    assert_eq!(run.step().await, "Finished");
}

#[tokio::test]
async fn epochs_grow_towards_the_time_that_they_should_take() {
    // By this clock an epoch takes some microseconds.
    let settings = "SET 'epoch.target-duration' = '5 s'; SET 'epoch.initial-rows' = '4';";
    let mut run = Run::new(settings, ", 'scan.max-rows-per-epoch' = '20'", &[60]).await;
    assert_eq!(run.step().await, "a:0 0..4, by Duration");
    assert_eq!(run.step().await, "a:0 4..12, by Duration");
    assert_eq!(run.step().await, "a:0 12..28, by Duration");
    assert_eq!(run.step().await, "a:0 28..48, by Rows", "the least of the limits");
    assert_eq!(run.step().await, "a:0 48..60");
}

#[tokio::test]
async fn what_cannot_be_is_refused_by_name() {
    let refused = async |settings: &str, of_a: &str, expected: &str| {
        let error = World::new().try_plan(&script(settings, of_a), None).await.unwrap_err().chain();
        assert!(error.contains(expected), "{error}");
    };
    refused(
        "",
        ", 'scan.min-rows-per-epoch' = '9', 'scan.max-rows-per-epoch' = '8'",
        "table a: 'scan.min-rows-per-epoch' is 9, more than 'scan.max-rows-per-epoch', which is 8",
    )
    .await;
    refused(
        "",
        ", 'scan.min-rows-max-wait' = '9 s'",
        "table a: the option 'scan.min-rows-max-wait' has no meaning without 'scan.min-rows-per-epoch'",
    )
    .await;
    for (option, value, expected) in [
        ("scan.max-bytes-per-epoch", "0", "a size such as '64 mb', more than 0"),
        ("scan.max-rows-per-second-per-partition", "0.5", "a number of rows, at least 1"),
        ("scan.min-rows-per-epoch", "0", "a number of rows, at least 1"),
    ] {
        let message = format!("table a: option '{option}': '{value}' is not {expected}");
        refused("", &format!(", '{option}' = '{value}'"), &message).await;
    }
    refused(
        "SET 'epoch.target-duration' = '0 s';",
        "",
        "setting 'epoch.target-duration': '0 s' is not a duration such as '5 s', more than 0",
    )
    .await;
    refused("SET 'epoch.initial-rows' = '0';", "", "setting 'epoch.initial-rows': '0' is not a number, at least 1")
        .await;
}

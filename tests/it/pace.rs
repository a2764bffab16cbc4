//! How much epochs take: what each option makes of the spans, epoch by epoch, of topics in memory and of both brokers'.
//! Time is a seeded clock's, which the tests move.

use std::sync::{Arc, Mutex};

use millstream::clock::Clock;
use millstream::query::progress::{EpochProgress, Event, Reporter};
use millstream::query::{Query, Step};

use crate::brokers::Broker;
use crate::harness::World;

/// A query over the streams `a`, which has options, and `b`, or over a topic of a broker.
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
        let world = World::new();
        (0..).zip(rows).for_each(|(partition, rows)| world.append("a", partition, 0..*rows));
        Self::of(world, Clock::seeded(1, 0), &script(settings, of_a)).await
    }

    async fn of(world: World, clock: Clock, script: &str) -> Self {
        let spec = world.plan_by(script, &clock).await;
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

/// A broker's topic, each row of which is a message of ten bytes.
struct Topic {
    broker: Broker,
    name: String,
    rows: i64,
}

impl Topic {
    fn new(broker: Broker) -> Self {
        Self { broker, name: broker.topic("pace"), rows: 0 }
    }

    /// Sends so many rows to the first partitions, and waits until they can be read: RocketMQ acknowledges a message a
    /// moment before.
    fn feed(&mut self, rows: [i64; 2]) {
        let mut feeder = self.broker.feeder(&self.name, &[]);
        for (partition, rows) in rows.into_iter().enumerate() {
            for n in self.rows..self.rows + rows {
                feeder.send_payload(partition, &format!("{{\"n\":{}}}", 1000 + n));
            }
            self.rows += rows;
        }
        feeder.finish();
        let found = (0..60).any(|_| self.end() == self.rows);
        assert!(found, "{} does not hold {} rows", self.name, self.rows);
    }

    /// How many messages there are, by the broker's own tool.
    fn end(&self) -> i64 {
        let field = if self.broker == Broker::Kafka { "end" } else { "max" };
        let ends = self.broker.run(&["ends", &self.name]);
        let end = |line| serde_json::from_str::<serde_json::Value>(line).unwrap()[field].as_i64().unwrap();
        ends.lines().map(end).sum()
    }

    /// A query that has not begun. Its clock stands still, and its names are no other's.
    async fn run(&self, settings: &str, options: &str) -> Run {
        let script = format!(
            "SET 'checkpoint.location' = 'memory://ck'; SET 'parallelism' = '2'; {settings}\n{}
             CREATE TABLE output (n BIGINT) WITH ('connector' = 'memory', 'topic' = 'output');
             INSERT INTO output SELECT n FROM input;",
            self.broker.table("input", &self.name, "n BIGINT", options)
        );
        let system = Clock::system();
        Run::of(World::new(), Clock::seeded(system.random(), system.now_ms()), &script).await
    }

    /// What a step of it did; partitions are only numbered.
    async fn step(&self, run: &mut Run) -> String {
        let name: &str = if self.broker == Broker::Kafka { &self.name } else { "broker-a" };
        run.step().await.replace(&format!("{name}:"), "")
    }

    /// Each of the steps does this, after the clock has moved by so many ms; then all rows are there once.
    async fn steps(&self, mut run: Run, expected: &[(i64, &str)]) {
        for (ms, expected) in expected {
            run.clock.advance(*ms);
            assert_eq!(self.step(&mut run).await, *expected, "{:?}", self.broker);
        }
        let mut rows = run.world.numbers("output");
        rows.sort_unstable();
        assert_eq!(rows, (1000..1000 + self.rows).collect::<Vec<_>>(), "{:?}", self.broker);
        run.query.close().await;
    }
}

/// The same options, over real brokers.
#[tokio::test(flavor = "multi_thread")]
async fn epochs_of_brokers_topics_take_what_the_options_say() {
    for broker in [Broker::Kafka, Broker::Rocketmq] {
        let mut topic = Topic::new(broker);
        topic.feed([36, 5]);

        let run = topic.run("", ", 'scan.max-bytes-per-epoch' = '100'").await;
        let expected = [
            (0, "0 0..1, by Bytes"),
            (0, "0 1..10, 1 0..1, by Bytes"),
            (0, "0 10..19, 1 1..2, by Bytes"),
            (0, "0 19..28, 1 2..3, by Bytes"),
            (0, "0 28..36, 1 3..5"),
            (0, "Idle"),
        ];
        topic.steps(run, &expected).await;

        let run = topic.run("", ", 'scan.max-rows-per-second-per-partition' = '10'").await;
        let expected = [
            (0, "0 0..10, 1 0..5, by Rate"),
            (0, "Idle"),
            (500, "0 10..15, by Rate"),
            (1_000, "0 15..25, by Rate"),
            (8_000, "0 25..36"),
            (60_000, "Idle"),
        ];
        topic.steps(run, &expected).await;

        // By this clock an epoch takes some microseconds.
        let run = topic.run("SET 'epoch.target-duration' = '5 s'; SET 'epoch.initial-rows' = '4';", "").await;
        let expected = [
            (0, "0 0..3, 1 0..1, by Duration"),
            (0, "0 3..10, 1 1..2, by Duration"),
            (0, "0 10..25, 1 2..3, by Duration"),
            (0, "0 25..36, 1 3..5"),
            (0, "Idle"),
        ];
        topic.steps(run, &expected).await;

        let least = ", 'scan.min-rows-per-epoch' = '50', 'scan.min-rows-max-wait' = '5 s'";
        let mut run = topic.run("", least).await;
        assert_eq!(topic.step(&mut run).await, "Idle", "{broker:?}");
        topic.feed([0, 9]);
        assert_eq!(topic.step(&mut run).await, "0 0..36, 1 0..14", "{broker:?}");
        topic.feed([3, 0]);
        topic.steps(run, &[(4_000, "Idle"), (1_000, "0 36..39"), (0, "Idle")]).await;
    }
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

//! Topics of Kafka and RocketMQ that end, lose messages, are created anew and grow, while queries read them.
//!
//! What `streams` shows with topics in memory, as far as the brokers can be made to do it. Queries run in process;
//! topics are filled and asked by the brokers' own Java clients.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use millstream::checkpoint::inspect;
use millstream::connector::Connectors;
use millstream::connector::memory::MemoryConnector;
use millstream::error::{Kind, Result};
use millstream::query::progress::Reporter;
use millstream::query::{Position, Query, QuerySpec, Step};
use millstream::storage::faults::{Gate, Moment};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::brokers::{Broker, Feeder};
use crate::failover::Extra;
use crate::harness::{World, gated, run_to_end};
use crate::kafka::Topic;
use crate::streams::{FILES, MEMORY, visible};

/// What takes longer never ends.
const HANGS: Duration = Duration::from_secs(300);
/// How far apart it is looked for what has to come.
const LOOK: Duration = Duration::from_millis(50);

const BROKERS: [Broker; 2] = [Broker::Kafka, Broker::Rocketmq];
const GO_ON: &str = ", 'scan.on-data-loss' = 'continue'";
/// What an error about messages that are gone must say: it is a choice.
const CHOICE: &str = "'scan.on-data-loss' = 'continue'";
const OFTEN: &str = ", 'scan.topic-partition-discovery.interval' = '100 ms'";

/// Sends rows to all four partitions in turn.
fn feed(broker: Broker, topic: &str, numbers: std::ops::Range<i64>) {
    let mut feeder = broker.feeder(topic, &[]);
    feeder.send(numbers);
    feeder.finish();
}

/// Deletes a topic, and creates it with as many partitions.
fn create_anew(broker: Broker, topic: &str) {
    broker.run(&["delete", topic]);
    assert_eq!(broker.run(&["create", topic, "4"]).trim(), "created");
}

/// The table `output` over files or a topic in memory.
fn output(options: &str) -> String {
    format!("CREATE TABLE output (n BIGINT) WITH ({options});\n")
}

/// Reads what is there of `input`, into `output`.
fn insert(input: &str, output: &str, select: &str) -> String {
    // It takes half a minute until what ends too early is believed to be another.
    let attempts = if input.contains(GO_ON) { 100 } else { 4 };
    format!(
        "SET 'checkpoint.location' = 'memory://ck'; SET 'parallelism' = '2'; SET 'epoch.trigger' = 'available-now';
         SET 'restart.max-attempts' = '{attempts}';\n{input}{output}INSERT INTO output {select};"
    )
}

/// Copies what is there, eight rows an epoch.
fn copy(broker: Broker, topic: &str, options: &str, output: &str) -> String {
    let options = format!(", 'scan.max-rows-per-epoch' = '8'{options}");
    insert(&broker.table("input", topic, "n BIGINT", &options), output, "SELECT n FROM input")
}

/// The same query, which goes on until it is stopped, whatever happens.
fn endless(script: &str) -> String {
    let patient = script.replace("'restart.max-attempts' = '4'", "'restart.max-attempts' = '100'");
    patient.replace("available-now", "continuous")
}

/// Runs a query to its end.
async fn run(world: &World, script: &str) -> Result<()> {
    timeout(HANGS, run_to_end(world.plan(script, None).await)).await.expect("a query that ends")
}

/// Runs only the first epoch of a query.
async fn run_first_epoch(world: &World, script: &str) {
    let mut query = Query::open(world.plan(script, None).await, Reporter::silent()).await.unwrap();
    assert_eq!(query.step().await.unwrap(), Step::Committed(1));
    query.close().await;
}

/// A query under way, which writes into memory.
struct Running {
    world: World,
    stop: watch::Sender<bool>,
    query: JoinHandle<Result<Position>>,
}

impl Running {
    async fn start(world: &World, script: &str) -> Self {
        Self::drive(world, world.plan(&endless(script), None).await)
    }

    fn drive(world: &World, spec: QuerySpec) -> Self {
        let (stop, stopped) = watch::channel(false);
        let query = tokio::spawn(Query::drive(spec, Reporter::silent(), stopped));
        Self { world: world.clone(), stop, query }
    }

    /// Waits until it has written so many rows.
    async fn has_written(&mut self, rows: usize) {
        let Self { world, query, .. } = self;
        let all_are_there = async {
            while world.numbers("output").len() < rows {
                sleep(LOOK).await;
            }
        };
        tokio::select! {
            ended = query => panic!("it has ended: {:?}", ended.unwrap().map_err(|error| error.chain())),
            waited = timeout(HANGS, all_are_there) => waited.expect("a query that goes on"),
        }
    }

    async fn stop(self) {
        self.stop.send_replace(true);
        self.query.await.unwrap().unwrap();
    }
}

/// Retention overtakes a query that stands still; of the second partition it leaves nothing.
#[tokio::test(flavor = "multi_thread")]
async fn kafka_offsets_that_are_gone_end_a_query_or_are_counted() {
    let output_topic = Broker::Kafka.topic("left");
    for table in [output(FILES), Broker::Kafka.table("output", &output_topic, "n BIGINT", "")] {
        let (world, topic) = (World::new(), Broker::Kafka.topic("gone"));
        feed(Broker::Kafka, &topic, 0..40);
        let strict = copy(Broker::Kafka, &topic, "", &table);
        run_first_epoch(&world, &strict).await;
        let input = Topic(topic.clone());
        input.delete_records(0, 7).await;
        let error = run(&world, &strict).await.unwrap_err();
        assert_eq!(error.kind(), Kind::DataLoss, "{}", error.chain());
        let said = format!("offsets 2..4 of {topic}:0 are gone; asked were 2..4, there are 7..10");
        assert!(error.chain().contains(&said) && error.chain().contains(CHOICE), "{}", error.chain());

        input.delete_records(1, 10).await;
        run(&world, &copy(Broker::Kafka, &topic, GO_ON, &table)).await.unwrap();
        let mut rows = visible(&world).await;
        rows.extend(Broker::Kafka.numbers(&output_topic));
        rows.sort_unstable();
        let is_left = |n: &i64| match (n % 4, n / 4) {
            (0, offset) => !(2..7).contains(&offset),
            (1, offset) => offset < 2,
            _ => true,
        };
        assert_eq!(rows, (0..40).filter(is_left).collect::<Vec<_>>());
        assert_eq!(world.lost("memory://ck", "test/output").await, 5 + 8);
    }
}

/// A broker drops whole files of its log, with the messages of all topics. So this is a second one, with a log of its
/// own.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "starts a second broker: make test runs it by itself"]
async fn restart_behind_what_a_rocketmq_broker_has_dropped() {
    /// More than a file of the log holds.
    const MEGABYTES: usize = 70;
    let _second = Extra::start("rocketmq2");
    let (world, topic, padding) = (World::new(), Broker::Rocketmq.topic("gone"), Broker::Rocketmq.topic("padding"));
    let feed = |numbers: std::ops::Range<i64>| {
        let mut feeder = Broker::Rocketmq.feeder(&topic, &[]);
        numbers.for_each(|n| feeder.send_to(format_args!("broker-b:{}", n % 4), n));
        feeder.finish();
    };
    feed(0..28);
    let strict = copy(Broker::Rocketmq, &topic, "", &output(FILES));
    run_first_epoch(&world, &strict).await;
    let mut feeder = Broker::Rocketmq.feeder(&padding, &[]);
    (0..MEGABYTES).for_each(|_| feeder.send_payload("broker-b:0", &"x".repeat(1 << 20)));
    feeder.finish();
    feed(28..40);
    Broker::Rocketmq.run(&["expire", "broker-b"]);
    let dropped = async {
        loop {
            let ends = Broker::Rocketmq.run(&["ends", &topic]);
            if ends.lines().filter(|line| line.contains("broker-b")).all(|line| line.contains("\"min\":7,")) {
                return;
            }
            sleep(LOOK).await;
        }
    };
    timeout(HANGS, dropped).await.expect("a broker that drops messages");

    let error = run(&world, &strict).await.unwrap_err();
    assert_eq!(error.kind(), Kind::DataLoss, "{}", error.chain());
    let said = "offsets 2..4 were to be read and are gone: the broker keeps 7..10 now";
    assert!(error.chain().contains(said) && error.chain().contains(CHOICE), "{}", error.chain());
    run(&world, &copy(Broker::Rocketmq, &topic, GO_ON, &output(FILES))).await.unwrap();
    assert_eq!(visible(&world).await, (0..8).chain(28..40).collect::<Vec<_>>());
    assert_eq!(world.lost("memory://ck", "test/output").await, 4 * 5);
}

/// With fewer messages than were read before, and with more.
async fn created_anew_between_two_runs(broker: Broker) {
    for many in [8, 60] {
        let (world, topic) = (World::new(), broker.topic("anew"));
        feed(broker, &topic, 0..40);
        let strict = copy(broker, &topic, "", &output(FILES));
        run(&world, &strict).await.unwrap();
        create_anew(broker, &topic);
        feed(broker, &topic, 1000..1000 + many);
        let error = run(&world, &strict).await.unwrap_err().chain();
        let first: &str = if broker == Broker::Kafka { &topic } else { "broker-a" };
        let said = match many {
            8 => "ends at 2, and the query has read up to 10; if the topic was created anew",
            _ => "holds other messages than those that were read: the topic was created anew",
        };
        assert!(error.contains(&format!("table input: {first}:0 {said}")), "{error}");
        let lenient = copy(broker, &topic, GO_ON, &output(FILES));
        for which in ["first", "second"] {
            run(&world, &lenient).await.unwrap();
            let expected: Vec<i64> = (0..40).chain(1000..1000 + many).collect();
            assert_eq!(visible(&world).await, expected, "{many} in the {which} run");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kafka_topic_that_was_created_anew_is_noticed() {
    created_anew_between_two_runs(Broker::Kafka).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rocketmq_topic_that_was_created_anew_is_noticed() {
    created_anew_between_two_runs(Broker::Rocketmq).await;
}

/// It goes on by itself: first with few messages, so that it is sure to see that they are others.
async fn created_anew_under_a_query(broker: Broker) {
    let (world, topic) = (World::new(), broker.topic("anew"));
    feed(broker, &topic, 0..40);
    let script = copy(broker, &topic, &format!("{GO_ON}{OFTEN}"), &output(MEMORY));
    let mut running = Running::start(&world, &script).await;
    running.has_written(40).await;
    create_anew(broker, &topic);
    feed(broker, &topic, 1000..1008);
    running.has_written(48).await;
    feed(broker, &topic, 1008..1100);
    running.has_written(140).await;
    running.stop().await;
    assert_eq!(visible(&world).await, (0..40).chain(1000..1100).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kafka_topic_may_be_created_anew_under_a_query() {
    created_anew_under_a_query(Broker::Kafka).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rocketmq_topic_may_be_created_anew_under_a_query() {
    created_anew_under_a_query(Broker::Rocketmq).await;
}

/// Between two epochs, and with more messages than were read, so that nothing but the last message tells them apart.
async fn created_anew_between_two_epochs(broker: Broker) {
    let (world, topic) = (World::new(), broker.topic("anew"));
    feed(broker, &topic, 0..40);
    let script = copy(broker, &topic, GO_ON, &output(MEMORY)).replace("available-now", "30 s");
    let mut running = Running::start(&world, &script).await;
    running.has_written(40).await;
    create_anew(broker, &topic);
    feed(broker, &topic, 1000..1100);
    running.has_written(140).await;
    running.stop().await;
    assert_eq!(visible(&world).await, (0..40).chain(1000..1100).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kafka_topic_may_be_created_anew_between_two_epochs() {
    created_anew_between_two_epochs(Broker::Kafka).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rocketmq_topic_may_be_created_anew_between_two_epochs() {
    created_anew_between_two_epochs(Broker::Rocketmq).await;
}

/// Behind its back: an epoch is planned, and not read yet.
#[tokio::test(flavor = "multi_thread")]
async fn a_rocketmq_topic_may_be_deleted_under_a_query() {
    for option in ["", GO_ON] {
        let (world, topic) = (World::new(), Broker::Rocketmq.topic("deleted"));
        feed(Broker::Rocketmq, &topic, 0..40);
        // A sink is opened, asked what it holds, and then, before the first intent, what to pin.
        let gate = Gate::new(3, Moment::Before);
        let sinks = gated(Arc::new(MemoryConnector::new(world.memory.clone())), &gate);
        let script = endless(&copy(Broker::Rocketmq, &topic, option, &output(MEMORY)));
        let spec = world.plan_with(&script, world.stores.clone(), Connectors::standard().with(sinks)).await.unwrap();
        let mut running = Running::drive(&world, spec);
        timeout(HANGS, gate.tripped()).await.expect("an epoch that is planned");
        Broker::Rocketmq.run(&["delete", &topic]);
        gate.release();
        if option.is_empty() {
            let error = timeout(HANGS, running.query).await.expect("a query that ends").unwrap().unwrap_err();
            assert_eq!(error.kind(), Kind::DataLoss, "{}", error.chain());
            let said = "the broker does not have the topic any more: it was deleted";
            assert!(error.chain().contains(said), "{}", error.chain());
            continue;
        }
        assert_eq!(Broker::Rocketmq.run(&["create", &topic, "4"]).trim(), "created");
        feed(Broker::Rocketmq, &topic, 1000..1040);
        running.has_written(40).await;
        running.stop().await;
        assert_eq!(visible(&world).await, (1000..1040).collect::<Vec<_>>());
    }
}

/// Stock brokers filter by tags alone, as the second one does here.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "starts a second broker: make test runs it by itself"]
async fn restart_without_a_filter_that_a_rocketmq_broker_does_not_take() {
    let _second = Extra::start("rocketmq2");
    let (world, topic) = (World::new(), Broker::Rocketmq.topic("unfiltered"));
    let mut feeder = Broker::Rocketmq.feeder(&topic, &[]);
    (0..8).for_each(|n| feeder.send_to(format_args!("broker-b:{}", n % 4), n));
    feeder.finish();
    let filtered = |option| copy(Broker::Rocketmq, &topic, &format!(", {option}"), &output(MEMORY));
    let error = run(&world, &filtered("'filter.sql' = 'amount > 5'")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Refused, "{}", error.chain());
    for said in ["the broker does not take 'filter.sql'", "set enablePropertyFilter=true there"] {
        assert!(error.chain().contains(said), "{}", error.chain());
    }
    let renamed = format!("SET 'pipeline.name' = 'other';\n{}", filtered("'filter.tag' = 'tag'"));
    run(&world, &renamed).await.unwrap();
    assert_eq!(visible(&world).await, (0..8).collect::<Vec<_>>());
}

/// Stock brokers give 32 messages a pull, as the second one does here: in one epoch a queue is pulled many times.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "starts a second broker: make test runs it by itself"]
async fn restart_with_a_rocketmq_broker_that_gives_little_a_pull() {
    const ROWS: i64 = 4_000;
    let _second = Extra::start("rocketmq2");
    let topic = Broker::Rocketmq.topic("stock");
    let mut feeder = Broker::Rocketmq.feeder(&topic, &["--batch", "50"]);
    (0..ROWS).for_each(|n| feeder.send_to(format_args!("broker-b:{}", n % 4), n));
    feeder.finish();
    for filter in ["", ", 'filter.tag' = 'tag'"] {
        let world = World::new();
        let input = Broker::Rocketmq.table("input", &topic, "n BIGINT, text STRING", filter);
        let select = "SELECT n FROM input WHERE text = concat('row ', CAST(n AS VARCHAR))";
        run(&world, &insert(&input, &output(MEMORY), select)).await.unwrap();
        assert_eq!(visible(&world).await, (0..ROWS).collect::<Vec<_>>(), "{filter}");
        let checkpoint = world.stores.open("memory://ck", &BTreeMap::new()).unwrap();
        assert_eq!(inspect::epochs(&checkpoint, "test/output").await.unwrap(), [1]);
    }
}

/// Where partitions begin that are not listed, the default says.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_begins_at_offsets_that_are_listed() {
    for (broker, listed) in
        [(Broker::Kafka, "partition:1,offset:7"), (Broker::Rocketmq, "broker:broker-a,queue:1,offset:7")]
    {
        let topic = broker.topic("listed");
        feed(broker, &topic, 0..40);
        for (default, has_others) in [("earliest-offset", true), ("latest-offset", false)] {
            let world = World::new();
            let options = format!(
                ", 'scan.startup.mode' = 'specific-offsets', 'scan.startup.specific-offsets' = '{listed}',
                   'scan.startup.default' = '{default}'"
            );
            run(&world, &copy(broker, &topic, &options, &output(MEMORY))).await.unwrap();
            let expected = (0..40).filter(|n| if n % 4 == 1 { n / 4 >= 7 } else { has_others });
            assert_eq!(visible(&world).await, expected.collect::<Vec<i64>>(), "{broker:?}, {default}");
        }
    }
}

/// A field has quotes where it needs them. What is written is read again.
#[tokio::test(flavor = "multi_thread")]
async fn csv_is_read_from_topics_and_written_to_them() {
    let line = |n: i64| match n % 3 {
        0 => format!("{n},row {n}"),
        1 => format!("{n},\"row, {n}\""),
        _ => format!("{n},\"a \"\"row\"\" {n}\""),
    };
    for broker in BROKERS {
        let (from, to) = (broker.topic("from"), broker.topic("to"));
        let mut feeder = broker.feeder(&from, &[]);
        (0..60).for_each(|n| feeder.send_payload(n % 4, &line(n)));
        feeder.finish();
        let table = |name: &str, topic: &str| {
            broker.table(name, topic, "n BIGINT, text STRING", "").replace("'format' = 'json'", "'format' = 'csv'")
        };
        let copied = insert(&table("input", &from), &table("output", &to), "SELECT n, text FROM input");
        run(&World::new(), &copied).await.unwrap();
        let (mut lines, mut expected) = (broker.payloads(&to), (0..60).map(line).collect::<Vec<_>>());
        lines.sort_unstable();
        expected.sort_unstable();
        assert_eq!(lines, expected, "{broker:?}");

        let world = World::new();
        let select = "SELECT n FROM input WHERE replace(replace(text, ',', ''), 'a \"row\"', 'row')
                      = concat('row ', CAST(n AS VARCHAR))";
        run(&world, &insert(&table("input", &to), &output(MEMORY), select)).await.unwrap();
        assert_eq!(visible(&world).await, (0..60).collect::<Vec<_>>(), "{broker:?}");
    }
}

/// The end is found out once: what comes later is not read, also not by a run that comes later.
#[tokio::test(flavor = "multi_thread")]
async fn a_bounded_stream_ends_and_closes_every_window() {
    const TIMED: &str = "n BIGINT, ts AS CAST(to_timestamp_millis(n * 50) AS TIMESTAMP(3)), WATERMARK FOR ts AS ts";
    for broker in BROKERS {
        let (world, topic) = (World::new(), broker.topic("bounded"));
        feed(broker, &topic, 0..100);
        let bounded = ", 'scan.max-rows-per-epoch' = '8', 'scan.bounded.mode' = 'latest-offset'";
        // Windows of 40 rows: of each its number, times a thousand, and how many rows it counts.
        let windows = endless(&insert(
            &broker.table("input", &topic, TIMED, bounded),
            &output(MEMORY),
            "SELECT CAST(date_part('epoch', window_start) AS BIGINT) / 2 * 1000 + count(*)
             FROM TABLE(TUMBLE(TABLE input, DESCRIPTOR(ts), INTERVAL '2' SECOND)) GROUP BY window_start, window_end",
        ));
        run_first_epoch(&world, &windows).await;
        feed(broker, &topic, 100..200);
        for which in ["first", "second"] {
            run(&world, &windows).await.unwrap();
            assert_eq!(visible(&world).await, [40, 1040, 2020], "{broker:?}, the {which} run to the end");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_are_added_under_load_are_read_once() {
    for broker in BROKERS {
        let (world, topic) = (World::new(), broker.topic("grows"));
        let input = broker.table("input", &topic, "n BIGINT", OFTEN);
        let mut running = Running::start(&world, &insert(&input, &output(MEMORY), "SELECT n FROM input")).await;
        let mut load = broker.feeder(&topic, &[]);
        load.send(0..2000);
        running.has_written(1).await;
        match broker {
            Broker::Kafka => Topic(topic.clone()).grow(6).await,
            Broker::Rocketmq => drop(broker.run(&["create", &topic, "6"])),
        }
        load.send(2000..4000);
        let mut more = broker.feeder(&topic, &[]);
        (4000..6000).for_each(|n| more.send_to(n % 6, n));
        [load, more].into_iter().for_each(Feeder::finish);
        running.has_written(6000).await;
        running.stop().await;
        assert_eq!(visible(&world).await, (0..6000).collect::<Vec<_>>(), "{broker:?}");
    }
}

/// How far a group is behind the end of each partition, as the broker's own tools have it.
fn lags(broker: Broker, topic: &str, group: &str) -> Vec<i64> {
    let numbers = |arguments: &[&str], partition: &str, number: &str| -> BTreeMap<i64, i64> {
        let answer = broker.run(arguments);
        let lines = answer.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        lines.map(|line| (line[partition].as_i64().unwrap(), line[number].as_i64().unwrap())).collect()
    };
    let (ends, group) = match broker {
        Broker::Kafka => {
            (numbers(&["ends", topic], "partition", "end"), numbers(&["group", group], "partition", "offset"))
        }
        Broker::Rocketmq => {
            let progress = ["progress", topic, group];
            (numbers(&progress, "queue", "end"), numbers(&progress, "queue", "group"))
        }
    };
    // A group that stands nowhere is behind also where there is nothing.
    ends.iter().map(|(partition, end)| end - group.get(partition).unwrap_or(&-1)).collect()
}

/// One run is enough: before it ends it tells where it stands.
#[tokio::test(flavor = "multi_thread")]
async fn a_group_has_no_lag_when_all_is_read() {
    for (broker, option) in [(Broker::Kafka, "properties.group.id"), (Broker::Rocketmq, "group")] {
        let (world, topic) = (World::new(), broker.topic("lag"));
        let mut feeder = broker.feeder(&topic, &[]);
        (0..30).for_each(|n| feeder.send_to(n % 3, n));
        feeder.finish();
        let group = format!("g-{topic}");
        if broker == Broker::Kafka {
            // The first group of a cluster waits for its coordinator, and a query that ends not for long.
            broker.run(&["commit", &group, &topic, "0=0"]);
        }
        run(&world, &copy(broker, &topic, &format!(", '{option}' = '{group}'"), &output(MEMORY))).await.unwrap();
        assert_eq!(lags(broker, &topic, &group), [0; 4], "{broker:?}");
        assert_eq!(visible(&world).await, (0..30).collect::<Vec<_>>(), "{broker:?}");
    }
}

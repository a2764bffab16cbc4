//! Questions about streams: batch mode, hints, and how little is read for an answer.
//!
//! In memory, where every row's place is known, and then with both brokers, whose topics are filled by their own Java
//! clients. How much was read is what EXPLAIN ANALYZE says.

use std::time::Duration;

use arrow::array::RecordBatch;
use futures::TryStreamExt;
use millstream::clock::Clock;
use millstream::connector::memory::MemoryConnector;
use millstream::connector::{Connectors, contract};
use millstream::error::Kind;
use millstream::session::{Outcome, Session};
use millstream::storage::faults::{Gate, Moment};

use crate::brokers::Broker;
use crate::crash::crash;
use crate::harness::{World, run_to_end};
use crate::streams::{MEMORY, visible};

const BATCH: &str = "SET 'execution.mode' = 'batch'";
const PLACES: &str = "p INT METADATA FROM 'partition' VIRTUAL, o BIGINT METADATA FROM 'offset' VIRTUAL";

fn session(world: &World) -> Session {
    let connectors = Connectors::standard().with(std::sync::Arc::new(MemoryConnector::new(world.memory.clone())));
    Session::with("test", connectors, world.stores.clone(), Clock::system()).unwrap()
}

/// A hundred rows in each of three partitions: `0..100`, `100..200` and `200..300`.
async fn numbers() -> (World, Session) {
    let world = World::new();
    (0..3).for_each(|partition| world.append("input", partition, numbers_of(partition)));
    let mut session = session(&world);
    run(
        &mut session,
        &format!("CREATE TABLE input (n BIGINT, {PLACES}) WITH ('connector' = 'memory', 'topic' = 'input')"),
    )
    .await;
    (world, session)
}

fn numbers_of(partition: u32) -> std::ops::Range<i64> {
    let first = i64::from(partition) * 100;
    first..first + 100
}

async fn run(session: &mut Session, sql: &str) {
    session.execute_script(sql).await.unwrap();
}

/// The rows of the last statement, as lines.
async fn rows(session: &mut Session, sql: &str) -> Vec<String> {
    let outcome = session.execute_script(sql).await.unwrap().pop();
    let Some(Outcome::Rows(rows)) = outcome else { panic!("no rows: {sql}") };
    let batches: Vec<RecordBatch> = rows.stream.try_collect().await.unwrap();
    batches.iter().flat_map(contract::lines).collect()
}

async fn one(session: &mut Session, sql: &str) -> String {
    let rows = rows(session, sql).await;
    assert_eq!(rows.len(), 1, "{sql}");
    rows.concat()
}

async fn error(session: &mut Session, sql: &str) -> String {
    match session.execute_script(sql).await {
        Ok(_) => panic!("{sql} was taken"),
        Err(error) => error.to_string(),
    }
}

/// How many messages a SELECT reads.
async fn messages(session: &mut Session, select: &str) -> usize {
    let plan = rows(session, &format!("EXPLAIN ANALYZE {select}")).await.concat();
    let scans = plan.lines().filter(|line| line.contains("ScanExec:")).map(|line| {
        let count = line.split_once(" messages=").unwrap_or_else(|| panic!("{plan}")).1;
        // From a thousand on it is written as 1.00 K.
        let (number, rest) = count.split_at(count.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap());
        let scale = if rest.starts_with(" K") { 1000.0 } else { 1.0 };
        (number.parse::<f64>().unwrap() * scale) as usize
    });
    scans.sum()
}

#[tokio::test]
async fn in_batch_mode_streams_end_at_what_is_there() {
    let (world, mut session) = numbers().await;
    let count = "SELECT count(*) FROM input";
    let goes_on = async |session: &mut Session| {
        matches!(session.execute_script(count).await.unwrap().pop(), Some(Outcome::Changes(_)))
    };
    assert!(goes_on(&mut session).await);
    let sorted = "SELECT n FROM input ORDER BY n";
    let said = error(&mut session, sorted).await;
    assert!(said.contains("a stream has no end (SET 'execution.mode' = 'batch' asks"), "{said}");
    let said = error(&mut session, "SET 'execution.mode' = 'bach'").await;
    assert!(said.contains("'bach' is no choice; did you mean 'batch'?"), "{said}");

    run(&mut session, BATCH).await;
    assert_eq!(one(&mut session, count).await, "300");
    world.append("input", 3, 300..305);
    assert_eq!(one(&mut session, count).await, "305", "a question is of its moment");
    let ordered = rows(&mut session, "SELECT n FROM input ORDER BY n DESC").await;
    assert_eq!(ordered, (0..305).rev().map(|n| n.to_string()).collect::<Vec<_>>());
    let windows = "SELECT p, o, n - lag(n) OVER (PARTITION BY p ORDER BY o) AS step FROM input
                   QUALIFY row_number() OVER (PARTITION BY p ORDER BY o) = 2 ORDER BY p";
    assert_eq!(rows(&mut session, windows).await, ["0, 1, 1", "1, 1, 1", "2, 1, 1", "3, 1, 1"]);

    world.append("other", 0, 250..600);
    run(&mut session, "CREATE TABLE other (n BIGINT) WITH ('connector' = 'memory', 'topic' = 'other')").await;
    let joined = "SELECT count(*), min(a.n), max(b.n) FROM input AS a JOIN other AS b ON a.n = b.n";
    assert_eq!(one(&mut session, joined).await, "55, 250, 304");
    let outer = "SELECT count(*) FROM input LEFT JOIN other USING (n) WHERE other.n IS NULL";
    assert_eq!(one(&mut session, outer).await, "250");

    run(&mut session, "RESET 'execution.mode'").await;
    assert!(goes_on(&mut session).await);
    assert!(error(&mut session, sorted).await.contains("a stream has no end"));
}

#[tokio::test]
async fn what_makes_rows_up_to_a_number_is_asked_for_all_of_them() {
    let mut session = session(&World::new());
    let made = "CREATE TABLE made (n BIGINT) WITH ('connector' = 'datagen', 'number-of-rows' = '20000',
                'rows-per-second' = '1', 'fields.n.kind' = 'sequence', 'fields.n.start' = '1', 'fields.n.end' = '20000')";
    run(&mut session, &format!("{BATCH}; {made}")).await;
    assert_eq!(one(&mut session, "SELECT count(*), sum(n) FROM made").await, "20000, 200010000");
}

#[tokio::test]
async fn only_what_a_question_is_about_is_read() {
    let (_world, mut session) = numbers().await;
    run(&mut session, BATCH).await;
    for (select, expected, read) in [
        ("SELECT n FROM input WHERE p = 2 AND o BETWEEN 10 AND 19", 10, 10),
        ("SELECT n FROM input WHERE p IN (0, 2) AND o >= 95", 10, 10),
        ("SELECT n FROM input WHERE o >= 95 AND n % 2 = 0", 6, 15),
        ("SELECT n FROM input WHERE p = 7", 0, 0),
        ("SELECT n FROM input WHERE n = 5", 1, 300),
        ("SELECT n FROM input LIMIT 10", 10, 10),
        ("SELECT n FROM input LIMIT 5 OFFSET 5", 5, 10),
        ("SELECT p FROM input LIMIT 150", 150, 200),
        ("SELECT n FROM input", 300, 300),
        ("SELECT a.n FROM input AS a JOIN input AS b ON a.n = b.n WHERE a.p = 1 AND b.o < 5 AND b.p = 1", 5, 105),
    ] {
        assert_eq!(rows(&mut session, select).await.len(), expected, "{select}");
        assert_eq!(messages(&mut session, select).await, read, "{select}");
    }
    let plan = rows(&mut session, "EXPLAIN SELECT n FROM input WHERE p = 2 LIMIT 3").await.concat();
    assert!(plan.contains("ScanExec: input bounded where=[p = Int32(2)]"), "{plan}");
    let plan = rows(&mut session, "EXPLAIN SELECT n FROM input LIMIT 3").await.concat();
    assert!(plan.contains("ScanExec: input bounded limit=3"), "{plan}");
}

/// A LIMIT ends a stream that goes on, and so does it not read more than it needs.
#[tokio::test]
async fn a_limit_reads_little_of_a_stream_that_goes_on() {
    let (_world, mut session) = numbers().await;
    assert_eq!(messages(&mut session, "SELECT n FROM input LIMIT 10").await, 10);
    let narrowed = "SELECT n FROM input WHERE p = 2 AND o < 10 LIMIT 10";
    assert_eq!(messages(&mut session, narrowed).await, 10);
    let expected: Vec<String> = (200..210).map(|n| n.to_string()).collect();
    assert_eq!(rows(&mut session, narrowed).await, expected);
}

/// Of the first partition nothing, of the second its last ten rows.
const TAIL: &str =
    "/*+ OPTIONS('scan.startup.mode' = 'specific-offsets', 'scan.startup.specific-offsets' = 'input:1,90',
                    'scan.startup.default' = 'latest-offset', 'scan.bounded.mode' = 'latest-offset') */";

#[tokio::test]
async fn a_hint_gives_a_table_other_options_in_one_place() {
    let (_world, mut session) = numbers().await;
    assert_eq!(one(&mut session, &format!("SELECT count(*), min(input.n) FROM input {TAIL}")).await, "10, 190");
    let both = format!("SELECT count(*) FROM input AS a JOIN input {TAIL} AS b ON a.n = b.n AND a.p = 1");
    assert_eq!(one(&mut session, &format!("{BATCH}; {both}")).await, "10");
    run(&mut session, &format!("CREATE VIEW tail AS SELECT n, o FROM input {TAIL}")).await;
    assert_eq!(one(&mut session, "SELECT sum(n), min(o) FROM tail").await, "1945, 90");
    let shown = session.execute_script("SHOW TABLES; SHOW CREATE VIEW tail").await.unwrap();
    let [_, Outcome::Text(view)] = shown.as_slice() else { panic!("no text") };
    assert!(view.contains("/*+ OPTIONS('scan.startup.mode'"), "{view}");

    for (select, said) in [
        (
            "SELECT * FROM input /*+ OPTIONS('scan.startup.mod' = 'x') */",
            "line 1, column 15: table input: there is no option",
        ),
        (
            "SELECT * FROM input /*+ OPTIONS('scan.startup.mode' = 'timestamp') */",
            "needs the option 'scan.startup.timestamp",
        ),
        ("SELECT * FROM input /*+ OPTIONS('connector' = 'kafka') */", "a hint cannot change the 'connector' of input"),
        ("SELECT * FROM input /*+ OPTIONS('a.password' = 'x') */", "looks like a secret"),
        ("SELECT * FROM inpt /*+ OPTIONS('a' = 'x') */", "there is no table inpt; did you mean 'input'?"),
        ("SELECT * FROM tail /*+ OPTIONS('a' = 'x') */", "tail is a view, which has no options"),
        ("INSERT INTO input /*+ OPTIONS('a' = 'x') */ SELECT 1", "the table of an INSERT takes no hint"),
    ] {
        let error = error(&mut session, select).await;
        assert!(error.contains(said), "{select}: {error}");
    }
}

/// Two partitions, `0..9` and `100..109`; the query begins behind the first rows of the second.
fn tail_world() -> World {
    let world = World::new();
    world.append("input", 0, 0..9);
    world.append("input", 1, 100..109);
    world
}

fn tail_script(columns: &str, then: &str) -> String {
    format!(
        "SET 'checkpoint.location' = 'memory://ck'; SET 'parallelism' = '2'; SET 'restart.max-attempts' = '4';
         CREATE TABLE input ({columns}) WITH ('connector' = 'memory', 'topic' = 'input', 'scan.max-rows-per-epoch' = '4');
         CREATE TABLE output (n BIGINT) WITH ({MEMORY});
         {then};"
    )
}

const FROM_4: &str =
    "/*+ OPTIONS('scan.startup.mode' = 'specific-offsets', 'scan.startup.specific-offsets' = 'input:1,4',
                      'scan.bounded.mode' = 'latest-offset') */";

#[tokio::test]
async fn a_continuous_query_takes_hints_in_windows() {
    let world = tail_world();
    let columns = "n BIGINT, ts AS to_timestamp_seconds(n % 100), WATERMARK FOR ts AS ts";
    let script = |hint: &str| {
        let windows = format!("TABLE(TUMBLE(TABLE input {hint}, DESCRIPTOR(ts), INTERVAL '4' SECOND))");
        let insert = format!("INSERT INTO output SELECT sum(n) FROM {windows} GROUP BY window_start, window_end");
        tail_script(columns, &insert)
    };
    for which in ["first", "second"] {
        run_to_end(world.plan(&script(FROM_4), None).await).await.unwrap();
        assert_eq!(visible(&world).await, [6, 8 + 108, 22 + 104 + 105 + 106 + 107], "the {which} run");
    }
    let other = FROM_4.replace("'input:1,4'", "'input:1,5'");
    let error = run_to_end(world.plan(&script(&other), None).await).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Refused, "{}", error.chain());
    assert!(error.chain().contains("the query's checkpoint has offsets of the source input$"), "{}", error.chain());
}

/// Wherever it was stopped, an epoch that was intended under another definition is finished by what that one read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_at_any_call_changes_nothing_where_there_are_hints() {
    let copy = format!("INSERT INTO output SELECT n FROM input {FROM_4}");
    let view = format!("CREATE VIEW tail AS SELECT n FROM input {FROM_4}; INSERT INTO output SELECT n FROM tail");
    for then in [copy, view] {
        let (first, next) = (tail_script("n BIGINT", &then), tail_script("n BIGINT, more AS n + 1", &then));
        for moment in [Moment::Before, Moment::After] {
            for k in 1.. {
                let world = tail_world();
                if !crash(&world, &first, &Gate::new(k, moment)).await {
                    assert!(k > 20, "the gate sees too little");
                    break;
                }
                run_to_end(world.plan(&next, Some(&Gate::new(0, moment))).await).await.unwrap();
                let expected: Vec<i64> = (0..9).chain(104..109).collect();
                assert_eq!(visible(&world).await, expected, "{then}, stopped {moment:?} call {k}");
            }
        }
    }
}

const BROKERS: [Broker; 2] = [Broker::Kafka, Broker::Rocketmq];

/// The columns of a table over a broker's topic: a number, and where its message stands.
fn columns(broker: Broker) -> String {
    let (partition, time) = match broker {
        Broker::Kafka => ("partition", "timestamp"),
        Broker::Rocketmq => ("queue", "store-timestamp"),
    };
    format!(
        "n BIGINT, p INT METADATA FROM '{partition}' VIRTUAL, o BIGINT METADATA FROM 'offset' VIRTUAL,
         sent TIMESTAMP(3) METADATA FROM '{time}' VIRTUAL"
    )
}

/// Sends rows to all four partitions in turn.
fn feed(broker: Broker, topic: &str, numbers: std::ops::Range<i64>) {
    let mut feeder = broker.feeder(topic, &[]);
    feeder.send(numbers);
    feeder.finish();
}

/// Waits until so many can be read: a broker indexes messages a moment after it acknowledged them.
async fn are_there(session: &mut Session, table: &str, expected: i64) {
    let count = format!("SELECT count(*) FROM {table}");
    let there = async {
        while one(session, &count).await != expected.to_string() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), there).await.expect("messages that can be read");
}

/// Two thousand rows, and as many later on; the time in ms at which the later ones begin.
async fn early_and_late(broker: Broker, session: &mut Session, topic: &str) -> i64 {
    run(session, &format!("{BATCH}; {}", broker.table("input", topic, &columns(broker), ""))).await;
    feed(broker, topic, 0..2000);
    are_there(session, "input", 2000).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    feed(broker, topic, 2000..4000);
    are_there(session, "input", 4000).await;
    one(session, "SELECT CAST(min(sent) AS BIGINT) FROM input WHERE n >= 2000").await.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn brokers_are_asked_for_what_a_question_is_about() {
    for broker in BROKERS {
        let (mut session, topic) = (Session::new("test").unwrap(), broker.topic("ask"));
        let ms = early_and_late(broker, &mut session, &topic).await;
        let ordered = rows(&mut session, "SELECT n FROM input ORDER BY n").await;
        assert_eq!(ordered, (0..4000).map(|n| n.to_string()).collect::<Vec<_>>(), "{broker:?}");

        let span = "SELECT n FROM input WHERE p = 2 AND o BETWEEN 10 AND 19 ORDER BY n";
        let expected: Vec<String> = (10..20).map(|offset| (offset * 4 + 2).to_string()).collect();
        assert_eq!(rows(&mut session, span).await, expected, "{broker:?}");
        let since = format!("SELECT n FROM input WHERE sent >= to_timestamp_millis({ms})");
        let expected: Vec<String> = (2000..4000).map(|n| n.to_string()).collect();
        assert_eq!(rows(&mut session, &format!("{since} ORDER BY n")).await, expected, "{broker:?}");
        let until = format!("SELECT n FROM input WHERE sent < to_timestamp_millis({ms})");
        assert_eq!(rows(&mut session, &until).await.len(), 2000, "{broker:?}");

        // Kafka's timestamps are the producer's word, and what comes later may be earlier.
        let until_read = if broker == Broker::Rocketmq { 500 } else { 1000 };
        for (select, read) in [
            (span.to_string(), 10),
            ("SELECT n FROM input LIMIT 10".to_string(), 10),
            ("SELECT n FROM input WHERE p = 1 AND o >= 990".to_string(), 10),
            (format!("{since} AND p = 1"), 500),
            (format!("{until} AND p = 3"), until_read),
        ] {
            assert_eq!(messages(&mut session, &select).await, read, "{broker:?}: {select}");
        }
        run(&mut session, "SET 'execution.mode' = 'streaming'").await;
        assert_eq!(messages(&mut session, "SELECT n FROM input LIMIT 10").await, 10, "{broker:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_topics_of_two_brokers_are_joined() {
    let mut session = Session::new("test").unwrap();
    run(&mut session, BATCH).await;
    for (broker, name, numbers) in [(Broker::Kafka, "a", 0..300), (Broker::Rocketmq, "b", 200..600)] {
        let topic = broker.topic("join");
        feed(broker, &topic, numbers.clone());
        run(&mut session, &broker.table(name, &topic, &columns(broker), "")).await;
        are_there(&mut session, name, numbers.end - numbers.start).await;
    }
    let joined = "SELECT count(*), min(a.n), max(b.n) FROM a JOIN b ON a.n = b.n AND a.p = b.p";
    assert_eq!(one(&mut session, joined).await, "100, 200, 299");
    let united = "SELECT count(*), count(DISTINCT n) FROM (SELECT n FROM a UNION ALL SELECT n FROM b)";
    assert_eq!(one(&mut session, united).await, "700, 600");
    let windows = "SELECT sum(CASE WHEN o = place - 1 THEN 1 ELSE 0 END) FROM
                   (SELECT o, row_number() OVER (PARTITION BY p ORDER BY n) AS place FROM a)";
    assert_eq!(one(&mut session, windows).await, "300");
}

#[tokio::test(flavor = "multi_thread")]
async fn hints_say_where_a_topic_begins_and_ends() {
    for broker in BROKERS {
        let (mut session, topic) = (Session::new("test").unwrap(), broker.topic("hints"));
        let ms = early_and_late(broker, &mut session, &topic).await;
        let (group, place) = match broker {
            Broker::Kafka => ("properties.group.id", "partition:2,offset:990"),
            Broker::Rocketmq => ("group", "broker:broker-a,queue:2,offset:990"),
        };
        let nobody = format!("g-{topic}");
        let mode = |side: &str, mode: &str, more: &[(&str, &str)]| {
            let more: String = more.iter().map(|(key, value)| format!(", 'scan.{side}.{key}' = '{value}'")).collect();
            format!("'scan.{side}.mode' = '{mode}'{more}")
        };
        let (time, listed) = (ms.to_string(), [("specific-offsets", place), ("default", "latest-offset")]);
        let start = |name: &str, more: &[(&str, &str)]| mode("startup", name, more);
        run(&mut session, "SET 'execution.mode' = 'streaming'").await;
        for (options, expected) in [
            (start("earliest-offset", &[]), 4000),
            (start("latest-offset", &[]), 0),
            (start("timestamp", &[("timestamp-millis", time.as_str())]), 2000),
            (start("specific-offsets", &listed), 10),
            (format!("{}, '{group}' = '{nobody}'", start("group-offsets", &[("default", "latest-offset")])), 0),
        ] {
            let hint = format!("/*+ OPTIONS({options}, 'scan.bounded.mode' = 'latest-offset') */");
            let count = one(&mut session, &format!("SELECT count(*) FROM input {hint}")).await;
            assert_eq!(count, expected.to_string(), "{broker:?}: {options}");
        }
        let until = mode("bounded", "timestamp", &[("timestamp-millis", time.as_str())]);
        let count = one(&mut session, &format!("SELECT count(*) FROM input /*+ OPTIONS({until}) */")).await;
        assert_eq!(count, "2000", "{broker:?}");

        // Windows of 500 rows, of the later half: of each its number, times a thousand, and how many rows it counts.
        let world = World::new();
        let timed = "n BIGINT, ts AS CAST(to_timestamp_millis(n * 2) AS TIMESTAMP(3)), WATERMARK FOR ts AS ts";
        let since = start("timestamp", &[("timestamp-millis", time.as_str())]);
        let script = format!(
            "SET 'checkpoint.location' = 'memory://ck'; {} CREATE TABLE output (n BIGINT) WITH ({MEMORY});
             INSERT INTO output SELECT CAST(date_part('epoch', window_start) AS BIGINT) * 1000 + count(*)
             FROM TABLE(TUMBLE(TABLE input /*+ OPTIONS({since}, 'scan.bounded.mode' = 'latest-offset') */,
               DESCRIPTOR(ts), INTERVAL '1' SECOND)) GROUP BY window_start, window_end;",
            broker.table("input", &topic, timed, "")
        );
        run_to_end(world.plan(&script, None).await).await.unwrap();
        assert_eq!(visible(&world).await, [4500, 5500, 6500, 7500], "{broker:?}");
    }
}

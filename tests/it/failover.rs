//! The binary while a cluster changes: transactions get another coordinator, a topic another leader, and one of two
//! brokers, or the name server, goes away for a while.
//!
//! The second servers are started by these tests, and end with them. They run alone, one after the other.

use std::process::{Child, Command};
use std::time::Duration;

use crate::brokers::{Broker, Job, assert_exactly_once, commits, parquet, s3, servers, signal};
use crate::harness::variable;

/// How often, and how far apart, it is looked for what has to come.
const LOOKS: usize = 1_500;
const LOOK: Duration = Duration::from_millis(200);

/// From here on rows only move time on.
const FAR: i64 = 1_000_000;

/// Rows are read in small epochs, and slower than they could be: there are some left when something happens.
const SLOWLY: &str = ", 'scan.max-rows-per-epoch' = '40', 'scan.max-rows-per-second-per-partition' = '50'";

/// A server that only one test needs.
pub struct Extra(&'static str);

impl Extra {
    pub fn start(name: &'static str) -> Self {
        let extra = Self(name);
        servers(&["start", name]);
        extra
    }

    /// Sends it a signal, such as `-STOP`.
    fn signal(&self, name: &str) {
        let pid = format!("{}/pids/{}", variable("MILLSTREAM_TEST_BROKERS_DIR"), self.0);
        let pid = std::fs::read_to_string(pid).unwrap();
        assert!(Command::new("kill").arg(name).arg(pid.trim()).status().unwrap().success());
    }
}

impl Drop for Extra {
    fn drop(&mut self) {
        servers(&["stop", self.0, "--kill"]);
    }
}

/// A job under way, which goes on by itself whatever happens to the cluster.
struct Running {
    job: Job,
    child: Child,
}

impl Running {
    fn start(sql: &str) -> Self {
        let settings = "SET 'checkpoint.location' = '${out}/ck'; SET 'restart.max-attempts' = '100';";
        let job = Job::new(&format!("{settings}\n{sql}"));
        let child = job.start("continuous");
        Self { job, child }
    }

    fn wait_until(&mut self, is_there: impl Fn(&Job) -> bool) {
        for _ in 0..LOOKS {
            assert!(self.child.try_wait().unwrap().is_none(), "{}", self.job.said("continuous"));
            if is_there(&self.job) {
                return;
            }
            std::thread::sleep(LOOK);
        }
        panic!("it does not go on: {}", self.job.said("continuous"));
    }

    /// Says that the second broker's queues cannot be reached.
    fn misses_the_second_broker(&self) {
        let said = self.job.said("continuous");
        assert!(said.contains("\"unreachable\":{\"broker-b:"), "{said}");
    }

    /// Waits until it has committed so many epochs more.
    fn wait_for_epochs(&mut self, more: usize) {
        let all = commits(&self.job.said("continuous")) + more;
        self.wait_until(|job| commits(&job.said("continuous")) >= all);
    }

    /// Another run of it.
    fn go_on(&mut self) {
        self.child = self.job.start("continuous");
    }

    /// Ends it behind the epoch under way.
    fn stop(&mut self) {
        signal(&self.child, "-TERM");
        let code = self.child.wait().unwrap().code();
        assert_eq!(code, Some(0), "{}", self.job.said("continuous"));
    }

    /// What was not read yet is read by another run.
    fn catch_up(&self) {
        let (code, events) = self.job.catch_up();
        assert_eq!(code, Some(0), "{events}");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended, unless the test has failed.
        let _ = self.child.kill();
    }
}

/// Each time there is more to write than the change takes, so that it meets an open transaction.
#[test]
#[ignore = "moves topics to a second node: make test runs it by itself"]
fn restart_of_transactions_under_another_coordinator_and_leader() {
    let (input, output) = (Broker::Kafka.topic("from"), Broker::Kafka.topic("to"));
    let mut query = Running::start(&format!(
        "{}{}INSERT INTO output SELECT n, CAST(n % 4 AS STRING) FROM input;",
        Broker::Kafka.table("input", &input, "n BIGINT", ", 'scan.max-rows-per-epoch' = '20'"),
        Broker::Kafka.table("output", &output, "n BIGINT, k STRING METADATA FROM 'key'", "")
    ));
    let (mut feeder, mut sent) = (Broker::Kafka.feeder(&input, &[]), 0);
    let mut feed = |rows: i64| {
        feeder.send(sent..sent + rows);
        sent += rows;
    };
    feed(4_000);
    // Before there is a second node: the topics of transactions and of progress are the first one's.
    query.wait_for_epochs(5);
    let _second = Extra::start("kafka2");
    let coordinator = "__transaction_state";
    for (topic, node) in [(coordinator, "2"), (output.as_str(), "2"), (coordinator, "1"), (output.as_str(), "1")] {
        feed(4_000);
        query.wait_for_epochs(5);
        Broker::Kafka.run(&["move", topic, node]);
        feed(400);
        query.wait_for_epochs(20);
    }
    servers(&["stop", "kafka2"]);
    feed(400);
    query.wait_for_epochs(20);
    feeder.finish();
    query.stop();
    query.catch_up();
    let rows = Broker::Kafka.numbers(&output);
    let in_order = |key: i64| rows.iter().filter(|n| **n % 4 == key).is_sorted();
    assert!((0..4).all(in_order), "the order of a key was not kept");
    assert_exactly_once(rows, 0..sent);
}

/// A query that is reading goes on when the broker is back, and so does one that is writing. One that runs meanwhile
/// reads what the other broker has; of the one that is away no row is late for that. First the broker is frozen, while
/// nobody writes: what it was sent then it would store when it thaws, longer after than any quiet period.
#[test]
#[ignore = "kills a second broker: make test runs it by itself"]
fn restart_of_one_of_two_rocketmq_brokers() {
    const ROWS: i64 = 6_000;
    let second = Extra::start("rocketmq2");
    let input = Broker::Rocketmq.topic("from");
    let [twice, once] = ["twice", "once"].map(|name| Broker::Rocketmq.topic(name));
    let feed = |numbers: std::ops::Range<i64>| {
        let mut feeder = Broker::Rocketmq.feeder(&input, &["--batch", "50"]);
        for n in numbers {
            let broker = if n / 4 % 2 == 0 { "broker-a" } else { "broker-b" };
            feeder.send_to(format_args!("{broker}:{}", n % 4), n);
        }
        feeder.finish();
    };
    feed(0..ROWS);
    let files = "'connector' = 'filesystem', 'path' = '${out}/lake', 'format' = 'parquet'";
    let mut counting = Running::start(&format!(
        "{}CREATE TABLE counts (n BIGINT) WITH ({files});
         INSERT INTO counts SELECT CAST(date_part('epoch', window_start) AS BIGINT) / 2 * 1000 + count(*)
           FROM TABLE(TUMBLE(TABLE input, DESCRIPTOR(ts), INTERVAL '2' SECOND)) GROUP BY window_start, window_end;",
        Broker::Rocketmq.table(
            "input",
            &input,
            "n BIGINT, ts AS CAST(to_timestamp_millis(n * 50) AS TIMESTAMP(3)), WATERMARK FOR ts AS ts",
            &format!("{SLOWLY}, 'scan.watermark.idle-timeout' = '10 min'")
        )
    ));
    counting.wait_for_epochs(5);
    counting.stop();
    second.signal("-STOP");
    counting.go_on();
    counting.wait_for_epochs(20);
    counting.stop();
    counting.misses_the_second_broker();
    second.signal("-CONT");

    let source = Broker::Rocketmq.table("input", &input, "n BIGINT", SLOWLY);
    let mut reading = Running::start(&format!(
        "{source}CREATE TABLE kept (n BIGINT) WITH ({files}); INSERT INTO kept SELECT n FROM input;"
    ));
    let effectively = ", 'sink.delivery-guarantee' = 'effectively-once', 'sink.quiet-period' = '1 s'";
    let mut writing = Running::start(&format!(
        "{source}{}{}
         EXECUTE STATEMENT SET BEGIN
           INSERT INTO twice SELECT n FROM input;
           INSERT INTO once SELECT n FROM input;
         END;",
        Broker::Rocketmq.table("twice", &twice, "n BIGINT", ""),
        Broker::Rocketmq.table("once", &once, "n BIGINT", effectively)
    ));
    let lake = |of: &Running| parquet(&of.job.path("lake"));
    for query in [&mut reading, &mut writing] {
        query.wait_for_epochs(5);
    }
    servers(&["stop", "rocketmq2", "--kill"]);
    assert!((lake(&reading).len() as i64) < ROWS, "all was read before the broker went");
    counting.go_on();
    counting.wait_for_epochs(20);
    counting.stop();
    counting.misses_the_second_broker();
    servers(&["start", "rocketmq2"]);
    // With one more row in each queue, far ahead, which completes all windows before.
    feed(ROWS..ROWS + 80);
    feed(FAR..FAR + 8);
    let all = ROWS as usize + 88;
    reading.wait_until(|job| parquet(&job.path("lake")).len() >= all);
    writing.wait_until(|_| Broker::Rocketmq.numbers(&once).len() >= all);
    for query in [&mut reading, &mut writing] {
        query.stop();
    }
    for query in [&reading, &writing, &counting] {
        query.catch_up();
    }

    let mut windows = lake(&counting);
    windows.sort_unstable();
    let expected: Vec<i64> = (0..(ROWS + 80) / 40).map(|window| window * 1000 + 40).collect();
    assert_eq!(windows, expected);
    let mut at_least = Broker::Rocketmq.numbers(&twice);
    at_least.sort_unstable();
    at_least.dedup();
    for mut rows in [lake(&reading), at_least, Broker::Rocketmq.numbers(&once)] {
        rows.retain(|n| *n < FAR);
        assert_exactly_once(rows, 0..ROWS + 80);
    }
}

/// A query that reads goes on by the route that it knows, and finds out when the name server is back.
#[test]
#[ignore = "kills the name server: make test runs it by itself"]
fn restart_of_the_name_server() {
    const ROWS: i64 = 8_000;
    let input = Broker::Rocketmq.topic("from");
    let feed = |numbers: std::ops::Range<i64>| {
        let mut feeder = Broker::Rocketmq.feeder(&input, &["--batch", "50"]);
        feeder.send(numbers);
        feeder.finish();
    };
    feed(0..ROWS);
    let often = format!("{SLOWLY}, 'scan.topic-partition-discovery.interval' = '200 ms'");
    let mut query = Running::start(&format!(
        "{}CREATE TABLE kept (n BIGINT)
           WITH ('connector' = 'filesystem', 'path' = '${{out}}/lake', 'format' = 'parquet');
         INSERT INTO kept SELECT n FROM input;",
        Broker::Rocketmq.table("input", &input, "n BIGINT", &often)
    ));
    query.wait_for_epochs(5);
    servers(&["stop", "namesrv", "--kill"]);
    query.wait_for_epochs(40);
    assert!((parquet(&query.job.path("lake")).len() as i64) < ROWS, "all was read before the name server went");
    servers(&["start", "namesrv"]);
    feed(ROWS..ROWS + 100);
    query.wait_until(|job| parquet(&job.path("lake")).len() as i64 >= ROWS + 100);
    query.stop();
    assert_exactly_once(parquet(&query.job.path("lake")), 0..ROWS + 100);
}

/// A query that begins while its checkpoint cannot be reached waits a few seconds: a machine that starts again starts all
/// of it, in some order.
#[test]
#[ignore = "restarts the S3 server: make test runs it by itself"]
fn restart_of_the_store_while_a_query_begins() {
    let (settings, location) = s3("late");
    let job = Job::new(&format!(
        "{settings}SET 'checkpoint.location' = '{location}/ck';
         CREATE TABLE input (n BIGINT) WITH ('connector' = 'datagen', 'number-of-rows' = '100',
           'fields.n.kind' = 'sequence', 'fields.n.start' = '0');
         CREATE TABLE kept (n BIGINT) WITH ('connector' = 'filesystem', 'path' = '{location}/lake', 'format' = 'parquet');
         INSERT INTO kept SELECT n FROM input;"
    ));
    servers(&["stop", "s3", "--kill"]);
    let mut running = job.start("continuous");
    // Longer than a few tries in a row take.
    std::thread::sleep(Duration::from_secs(3));
    let ended = running.try_wait().unwrap();
    servers(&["start", "s3"]);
    assert!(ended.is_none(), "{}", job.said("continuous"));
    let code = running.wait().unwrap().code();
    assert_eq!(code, Some(0), "{}", job.said("continuous"));
    assert_exactly_once(parquet(&format!("{location}/lake")), 0..100);
}

//! The queries of `queries/` that need no broker, but for the plain filter of the quickstart, give DataFusion's batch answer over
//! the rows that they read: as they are, and over fewer rows, however these are cut into epochs, whatever the parallelism,
//! and stopped at each call. All of them run in the shell.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::cast;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::common::TableReference;
use datafusion::datasource::MemTable;
use futures::TryStreamExt;
use millstream::clock::Clock;
use millstream::connector::Connectors;
use millstream::connector::files::FilesConnector;
use millstream::query::progress::Reporter;
use millstream::query::{Query, Step};
use millstream::session::{Outcome, Session};
use millstream::storage::Stores;
use millstream::storage::faults::{Gate, Moment};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::brokers::Broker;
use crate::harness::gated;

/// A query of `queries/` whose answers are compared.
struct Example {
    name: &'static str,
    /// The tables that it writes, and the columns of each that are compared.
    targets: &'static [(&'static str, &'static str)],
    /// What it reads, and which of these rows count.
    source: &'static str,
    filter: &'static str,
    /// What changes so that 80 rows are enough: they are as far apart as makes windows and keys of a few rows each.
    small: &'static [(&'static str, &'static str)],
    /// So many of the few rows an epoch at most. Rows are late for what came out in an earlier epoch, and nothing comes out
    /// in the first: two epochs have to end before the rows that are to be late.
    most: usize,
}

const EXAMPLES: [Example; 6] = [
    Example {
        name: "hot-items",
        targets: &[("hot_items", "window_start, window_end, place, item, clicks")],
        source: "clicks",
        filter: "",
        small: &[("'number-of-rows' = '100000'", "'number-of-rows' = '80'"), ("'100 ms'", "'90 s'")],
        most: 1_000_000,
    },
    Example {
        name: "hourly-totals",
        targets: &[("hourly_totals", "hour, item, orders, total, mean")],
        source: "orders",
        filter: "",
        small: &[("'number-of-rows' = '100000'", "'number-of-rows' = '80'"), ("'2 s'", "'10 min'")],
        most: 1_000_000,
    },
    Example {
        name: "deduplicated-orders",
        targets: &[("orders", "order_id, amount, ts")],
        source: "sent",
        filter: "",
        small: &[("'number-of-rows' = '50000'", "'number-of-rows' = '80'"), ("'20000'", "'30'")],
        most: 1_000_000,
    },
    Example {
        name: "sessions",
        targets: &[("user_sessions", "user_id, begins, ends, clicks")],
        source: "clicks",
        // All that arrive a day late, and nothing else, are late.
        filter: "WHERE ts = arrived",
        small: &[
            ("'number-of-rows' = '100000'", "'number-of-rows' = '80'"),
            ("click > 20000 AND click % 1000 = 0", "click > 50 AND click % 5 = 0"),
            ("'fields.user_id.max' = '1000'", "'fields.user_id.max' = '8'"),
            ("'500 ms'", "'3 min'"),
        ],
        most: 25,
    },
    Example {
        name: "enrich",
        targets: &[("named_orders", "order_id, item, amount, ts")],
        source: "orders",
        filter: "",
        small: &[("'number-of-rows' = '100000'", "'number-of-rows' = '80'"), ("'2 s'", "'30 min'")],
        most: 1_000_000,
    },
    Example {
        name: "fan-out",
        targets: &[("all_orders", "order_id, item, amount, ts"), ("hourly_totals", "hour, item, orders, total")],
        source: "orders",
        filter: "",
        small: &[("'number-of-rows' = '100000'", "'number-of-rows' = '80'"), ("'2 s'", "'10 min'")],
        most: 1_000_000,
    },
];

/// Rows as sorted lines of these columns.
fn lines(batches: &[RecordBatch], columns: &[&str]) -> Vec<String> {
    let options = FormatOptions::new().with_null("NULL");
    let mut lines = vec![];
    for batch in batches {
        let columns = columns.iter().map(|name| batch.column_by_name(name).unwrap());
        let columns: Vec<_> = columns.map(|column| ArrayFormatter::try_new(column, &options).unwrap()).collect();
        let line = |row| columns.iter().map(|column| column.value(row).to_string()).collect::<Vec<_>>().join(", ");
        lines.extend((0..batch.num_rows()).map(line));
    }
    lines.sort();
    lines
}

async fn rows(session: &mut Session, sql: &str) -> Vec<RecordBatch> {
    match session.execute_script(sql).await.unwrap().pop().unwrap() {
        Outcome::Rows(rows) => rows.stream.try_collect().await.unwrap(),
        _ => panic!("no rows: {sql}"),
    }
}

fn written(folder: &Path) -> Vec<RecordBatch> {
    let mut batches = vec![];
    for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.file_name().unwrap().to_string_lossy().starts_with('.') {
            continue;
        }
        if entry.is_dir() {
            batches.extend(written(&entry));
        } else {
            let file = std::fs::File::open(entry).unwrap();
            let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap();
            batches.extend(reader.map(Result::unwrap));
        }
    }
    batches
}

/// Runs a script to its end, each store and sink call of which goes through the gate.
async fn run(name: &str, script: &str, parallelism: usize, gate: &Arc<Gate>) {
    let clock = Clock::system();
    let stores = Stores::new(clock.clone()).wrapped(Arc::new(Arc::clone(gate)));
    let connectors = Connectors::standard().with(gated(Arc::new(FilesConnector), gate));
    let mut session = Session::with(name, connectors, stores, clock).unwrap();
    session.pin("parallelism", &parallelism.to_string()).unwrap();
    session.pin("checkpoint.fsync", "false").unwrap();
    for outcome in session.execute_script(script).await.unwrap() {
        if let Outcome::Query(spec) = outcome {
            let mut query = Query::open(*spec, Reporter::silent()).await.unwrap();
            while query.step().await.unwrap() != Step::Finished {}
            query.close().await;
        }
    }
}

impl Example {
    /// The script with its places and its pace changed; over the few rows, if `is_small`.
    fn script(&self, is_small: bool, out: &Path, rows_per_epoch: usize) -> String {
        let path = format!("{}/queries/{}.sql", env!("CARGO_MANIFEST_DIR"), self.name);
        let mut text = std::fs::read_to_string(path).unwrap();
        for (from, to) in self.small.iter().filter(|_| is_small) {
            assert!(text.contains(from), "{}: there is no {from}", self.name);
            text = text.replace(from, to);
        }
        let text = text.replace("${out}", &out.display().to_string()).replace("'1 s'", "'continuous'");
        let text = text.replace("'rows-per-second' = '100000'", "'rows-per-second' = '100000000'");
        let limit = format!("'scan.max-rows-per-epoch' = '{rows_per_epoch}'");
        match text.find("'scan.max-rows-per-epoch' = '") {
            Some(start) => {
                let end = start + text[start..].match_indices('\'').nth(3).unwrap().0 + 1;
                text[..start].to_owned() + &limit + &text[end..]
            }
            None => text.replace("'connector' = 'datagen'", &format!("'connector' = 'datagen', {limit}")),
        }
    }

    /// What it writes, by target, and whether there was a call of the number that `stop` names. There the process is gone,
    /// and another one goes on, with another number of rows an epoch.
    async fn answers(
        &self,
        is_small: bool,
        (rows_per_epoch, parallelism): (usize, usize),
        stop: Option<(u64, Moment, usize)>,
    ) -> (Vec<Vec<String>>, bool) {
        let dir = tempfile::tempdir().unwrap();
        let (call, moment, then) = stop.unwrap_or((0, Moment::Before, rows_per_epoch));
        let gate = Gate::new(call, moment);
        let first = self.script(is_small, dir.path(), rows_per_epoch);
        let stopped = tokio::select! {
            () = gate.tripped() => true,
            () = run(self.name, &first, parallelism, &gate) => false,
        };
        if stopped {
            let second = self.script(is_small, dir.path(), then);
            run(self.name, &second, parallelism, &Gate::new(0, moment)).await;
        }
        let answer = |(target, columns): &(&str, &str)| {
            lines(&written(&dir.path().join(target)), &columns.split(", ").collect::<Vec<_>>())
        };
        (self.targets.iter().map(answer).collect(), gate.calls() >= call)
    }

    /// By target, the batch answer over the rows that count.
    async fn batch_answers(&self, is_small: bool) -> Vec<Vec<String>> {
        let dir = tempfile::tempdir().unwrap();
        let script = self.script(is_small, dir.path(), 1_000_000);
        let (tables, _) = script.split_once("EXECUTE").or_else(|| script.split_once("INSERT INTO")).unwrap();
        let mut session = Session::new(self.name).unwrap();
        session.execute_script(tables).await.unwrap();
        let read = rows(&mut session, &format!("SELECT * FROM {} {}", self.source, self.filter)).await;
        let table = MemTable::try_new(read[0].schema(), vec![read]).unwrap();
        session.context().deregister_table(TableReference::bare(self.source)).unwrap();
        session.context().register_table(TableReference::bare(self.source), Arc::new(table)).unwrap();
        let mut answers = vec![];
        for (target, columns) in self.targets {
            let (_, rest) = script.split_once(&format!("INSERT INTO {target}\n")).unwrap();
            let target = session.tables()[*target].writable_schema();
            let found = rows(&mut session, rest.split(';').next().unwrap()).await;
            let fitted = found.iter().map(|batch| {
                let columns = batch.columns().iter().zip(target.fields());
                let columns = columns.map(|(column, field)| cast(column, field.data_type()).unwrap());
                RecordBatch::try_new(Arc::clone(&target), columns.collect()).unwrap()
            });
            let columns: Vec<&str> = columns.split(", ").collect();
            answers.push(lines(&fitted.collect::<Vec<_>>(), &columns));
        }
        answers
    }

    fn check(&self, found: &[Vec<String>], expected: &[Vec<String>], how: &str) {
        for (((target, _), found), expected) in self.targets.iter().zip(found).zip(expected) {
            assert!(!expected.is_empty(), "{}: nothing to compare {target} with", self.name);
            let place = found.iter().zip(expected).position(|(a, b)| a != b);
            let place = place.unwrap_or(found.len().min(expected.len()));
            let (found, expected) = ((found.len(), found.get(place)), (expected.len(), expected.get(place)));
            assert_eq!(found, expected, "{}: {target}, {how}", self.name);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_examples_give_the_batch_answer() {
    for example in &EXAMPLES {
        let expected = example.batch_answers(false).await;
        let (found, _) = example.answers(false, (10_000, 3), None).await;
        example.check(&found, &expected, "as it is");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_examples_give_it_however_they_are_cut_and_wherever_they_are_stopped() {
    for example in &EXAMPLES {
        let expected = example.batch_answers(true).await;
        for cut in [(1, 1), (7, 3), (example.most, 2)] {
            let (found, _) = example.answers(true, cut, None).await;
            example.check(&found, &expected, &format!("rows an epoch and parallelism: {cut:?}"));
        }
        let mut call = 1;
        loop {
            let moment = if call % 2 == 0 { Moment::After } else { Moment::Before };
            // Other epochs each time.
            let then = (10 + call as usize * 7919 % 41).min(example.most);
            let (found, was_there) = example.answers(true, (example.most.min(40), 2), Some((call, moment, then))).await;
            example.check(&found, &expected, &format!("stopped {moment:?} call {call}, then {then} rows an epoch"));
            if !was_there {
                break;
            }
            call += 1;
        }
        assert!(call > 20, "{}: only {call} calls", example.name);
    }
}

/// Each file of `queries/` in an order in which they can be run, a directory that it writes, or reads, and how many rows
/// this holds then. What `replay` sends again, `dead-letters` reads when it is run once more.
const RUNS: [(&str, &str, usize); 13] = [
    ("quickstart", "quickstart/big_orders", 300_530),
    ("quickstart-read", "quickstart/big_orders", 300_530),
    ("enrich", "enrich/named_orders", 100_000),
    ("hot-items", "hot-items/hot_items", 66),
    ("hourly-totals", "hourly-totals/hourly_totals", 224),
    ("deduplicated-orders", "deduplicated-orders/orders", 18_355),
    ("sessions", "sessions/user_sessions", 3_546),
    ("fan-out", "fan-out/all_orders", 100_000),
    ("topics", "topics/all_orders", 60),
    ("backfill", "backfill/hourly_totals", 3),
    ("dead-letters", "dead-letters/good_orders", 2),
    ("replay", "dead-letters/good_orders", 2),
    ("dead-letters", "dead-letters/good_orders", 4),
];

/// A topic of a name of its own that holds these messages, and nothing that is still on its way.
fn filled(broker: Broker, what: &str, payloads: &[String]) -> String {
    let topic = broker.topic(what);
    let mut feeder = broker.feeder(&topic, &[]);
    payloads.iter().enumerate().for_each(|(i, payload)| feeder.send_payload(i % 4, payload));
    feeder.finish();
    while broker.run(&["consume", &topic]).lines().count() < payloads.len() {}
    topic
}

/// Orders of amounts 3, 6, 9, …, in three hours.
fn orders(count: usize) -> Vec<String> {
    let order = |i: usize| {
        let (amount, hour) = (i * 3, i % 3);
        format!("{{\"order_id\":{i},\"item\":\"tea\",\"amount\":{amount},\"ts\":\"2026-01-01 0{hour}:30:00.000\"}}")
    };
    (1..=count).map(order).collect()
}

#[test]
fn all_examples_run_in_the_shell() {
    let folder = format!("{}/queries", env!("CARGO_MANIFEST_DIR"));
    let files = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let there: BTreeSet<String> = files.filter_map(|file| Some(file.strip_suffix(".sql")?.to_owned())).collect();
    assert_eq!(there, RUNS.iter().map(|(name, ..)| name.to_string()).collect());

    let shop = ["9.50", "\"n/a\"", "4.20", "\"n/a\"", "nonsense"];
    let shop = shop.map(|amount| format!("{{\"order_id\":1,\"amount\":{amount}}}"));
    let large = Broker::Rocketmq.topic("LargeOrders");
    let kafka_orders = filled(Broker::Kafka, "orders", &orders(40));
    let places = [
        ("127.0.0.1:9092", Broker::Kafka.address()),
        ("127.0.0.1:9876", Broker::Rocketmq.address()),
        ("'orders'", format!("'{kafka_orders}'")),
        ("'orders(-.*)?'", format!("'{kafka_orders}(-.*)?'")),
        ("'OrderTopic'", format!("'{}'", filled(Broker::Rocketmq, "OrderTopic", &orders(20)))),
        ("'LargeOrders'", format!("'{large}'")),
        ("'shop-orders'", format!("'{}'", filled(Broker::Kafka, "shop-orders", &shop))),
        ("'bad-orders'", format!("'{}'", Broker::Kafka.topic("bad-orders"))),
    ];
    let dir = tempfile::tempdir().unwrap();
    for (name, location, rows) in RUNS {
        let text = std::fs::read_to_string(format!("{folder}/{name}.sql")).unwrap();
        let text = places.iter().fold(text, |text, (from, to)| text.replace(from, to));
        let file = dir.path().join(format!("{name}.sql"));
        std::fs::write(&file, text).unwrap();
        let location = dir.path().join(location);
        let output = Command::new(env!("CARGO_BIN_EXE_millstream"))
            .args(["shell", "--set", "epoch.trigger=available-now", "-f"])
            .arg(file)
            .args(["--var", &format!("out={}", location.parent().unwrap().display())])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        let found: usize = written(&location).iter().map(RecordBatch::num_rows).sum();
        assert_eq!(found, rows, "{name}: {}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(Broker::Rocketmq.run(&["consume", &large]).lines().count(), 10, "orders above 90");
}

//! SQL over bounded topics: the sqllogictest suites of `tests/slt`, with both brokers.
//!
//! The topics are filled once for each broker, by its Java client, and no record changes them. Each file is run in a
//! session of its own, over Kafka and over RocketMQ, and must give the same answers. `${…}` in a record stands for what
//! the two do not have in common: see [`variables`].

use std::collections::BTreeMap;
use std::future::ready;
use std::path::{Path, PathBuf};
use std::time::Duration;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use futures::TryStreamExt;
use millstream::clock::Clock;
use millstream::error::Error;
use millstream::session::{Outcome, Session};
use sqllogictest::{ColumnType, DB, DBOutput, Runner, parse_file, strict_column_validator};
use tokio::runtime::Handle;

use crate::brokers::Broker;

/// The topics that lie in `tests/slt/data`, a message a line.
const TOPICS: [&str; 4] = ["customers", "events", "orders", "things"];

/// So many messages has the topic `numbers`: the first half of them before `${halfway}`, the others behind it.
const NUMBERS: i64 = 100;

/// Partitions of a topic. Message i lies in partition i modulo this.
const PARTITIONS: usize = 4;

/// A session, as sqllogictest wants it.
struct Database {
    session: Session,
    variables: BTreeMap<String, String>,
}

/// An error with its causes, as the shell prints it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refused(String);

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self(error.chain())
    }
}

/// What a column holds, by the letters of DataFusion's own suites.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Letter(char);

impl Letter {
    fn of(data_type: &DataType) -> Self {
        Self(match data_type {
            DataType::Boolean => 'B',
            DataType::Date32 | DataType::Date64 | DataType::Time32(_) | DataType::Time64(_) => 'D',
            DataType::Timestamp(..) => 'P',
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => 'T',
            other if other.is_integer() => 'I',
            other if other.is_numeric() => 'R',
            _ => '?',
        })
    }
}

impl ColumnType for Letter {
    fn from_char(letter: char) -> Option<Self> {
        "BDIPRT?".contains(letter).then_some(Self(letter))
    }

    fn to_char(&self) -> char {
        self.0
    }
}

impl DB for Database {
    type Error = Refused;
    type ColumnType = Letter;

    fn run(&mut self, sql: &str) -> Result<DBOutput<Letter>, Refused> {
        // The future need not be `Send` this way.
        tokio::task::block_in_place(|| Handle::current().block_on(self.execute(sql)))
    }
}

impl Database {
    fn new(variables: &BTreeMap<String, String>) -> Self {
        Self { session: Session::new("slt").unwrap(), variables: variables.clone() }
    }

    async fn execute(&mut self, sql: &str) -> Result<DBOutput<Letter>, Refused> {
        let replaced = |sql: String, (name, value): (&String, &String)| sql.replace(&format!("${{{name}}}"), value);
        let sql = self.variables.iter().fold(sql.to_owned(), replaced);
        match self.session.execute_script(&sql).await?.pop() {
            Some(Outcome::Rows(rows)) => {
                let types = rows.schema.fields().iter().map(|field| Letter::of(field.data_type())).collect();
                let batches: Vec<RecordBatch> = rows.stream.try_collect().await.map_err(Error::from)?;
                Ok(DBOutput::Rows { types, rows: batches.iter().flat_map(cells).collect() })
            }
            Some(Outcome::Text(text)) => {
                let rows = text.lines().map(|line| vec![line.into()]).collect();
                Ok(DBOutput::Rows { types: vec![Letter('T')], rows })
            }
            Some(Outcome::Changes(_)) => Err(Refused("the result changes, and has no end".into())),
            Some(Outcome::Done(_) | Outcome::Query(_)) | None => Ok(DBOutput::StatementComplete(0)),
        }
    }

    /// The only value of a query.
    async fn count(&mut self, sql: &str) -> String {
        match self.execute(sql).await {
            Ok(DBOutput::Rows { rows, .. }) => rows.concat().concat(),
            Ok(_) => panic!("no rows: {sql}"),
            Err(error) => panic!("{sql}: {error}"),
        }
    }
}

/// The rows of a batch, as the suites write them.
fn cells(batch: &RecordBatch) -> Vec<Vec<String>> {
    let columns: Vec<Vec<String>> = batch.columns().iter().map(texts).collect();
    (0..batch.num_rows()).map(|row| columns.iter().map(|column| column[row].clone()).collect()).collect()
}

/// The values of a column as texts, as the shell shows them; of numbers with a floating point six digits behind it, for
/// what stands further back depends on the order of rows.
fn texts(column: &ArrayRef) -> Vec<String> {
    if column.data_type().is_floating() {
        let numbers = cast(column, &DataType::Float64).unwrap();
        let text = |number: f64| ((number * 1e6).round() / 1e6 + 0.0).to_string();
        return numbers.as_primitive::<Float64Type>().iter().map(|n| n.map_or("NULL".into(), text)).collect();
    }
    let options = FormatOptions::new().with_null("NULL").with_timestamp_format(Some("%Y-%m-%d %H:%M:%S%.f"));
    let formatter = ArrayFormatter::try_new(column, &options).unwrap();
    let text = |row| Some(formatter.value(row).to_string()).filter(|text| !text.is_empty());
    (0..column.len()).map(|row| text(row).unwrap_or_else(|| "(empty)".into())).collect()
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/slt")
}

/// Fills the topics of a broker; `${name}` of each is what it is called there, and `${halfway}` a time in ms.
async fn fill(broker: Broker) -> BTreeMap<String, String> {
    let mut found = variables(broker);
    for name in TOPICS {
        let topic = broker.topic(&format!("slt-{name}"));
        let mut feeder = broker.feeder(&topic, &[]);
        let text = std::fs::read_to_string(folder().join(format!("data/{name}.json"))).unwrap();
        text.lines().enumerate().for_each(|(i, line)| feeder.send_payload(i % PARTITIONS, line));
        feeder.finish();
        are_there(&found, &topic, text.lines().count()).await;
        found.insert(name.into(), topic);
    }
    let (topic, half) = (broker.topic("slt-numbers"), NUMBERS / 2);
    for (numbers, count) in [(0..half, half), (half..NUMBERS, NUMBERS)] {
        // Clear of the messages before, and of those behind, by more than the clocks' resolution.
        tokio::time::sleep(Duration::from_millis(50)).await;
        found.insert("halfway".into(), Clock::system().now_ms().to_string());
        tokio::time::sleep(Duration::from_millis(50)).await;
        let mut feeder = broker.feeder(&topic, &[]);
        feeder.send(numbers);
        feeder.finish();
        are_there(&found, &topic, usize::try_from(count).unwrap()).await;
    }
    found.insert("numbers".into(), topic);
    found
}

/// Waits until so many messages can be read: a broker indexes them a moment after it acknowledged them.
async fn are_there(variables: &BTreeMap<String, String>, topic: &str, count: usize) {
    let mut database = Database::new(variables);
    let table = format!("CREATE TABLE t (x STRING) WITH (${{connector}}, 'topic' = '{topic}', 'format' = 'raw')");
    database.execute(&format!("SET 'execution.mode' = 'batch'; {table}")).await.unwrap();
    let there = async {
        while database.count("SELECT count(*) FROM t").await != count.to_string() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), there).await.expect("messages that can be read");
}

/// What differs between brokers: how to connect, names of metadata and options, how a partition is written in a list of
/// offsets, and which columns a topic of a catalog has behind its own.
fn variables(broker: Broker) -> BTreeMap<String, String> {
    let address = broker.address();
    let variables = match broker {
        Broker::Kafka => [
            ("connector", format!("'connector' = 'kafka', 'properties.bootstrap.servers' = '{address}'")),
            ("catalog", format!("'type' = 'kafka', 'properties.bootstrap.servers' = '{address}'")),
            ("partition", "partition".into()),
            ("timestamp", "timestamp".into()),
            ("group", "properties.group.id".into()),
            ("queue", "partition:".into()),
            ("places", "`partition`, `offset`, `timestamp`".into()),
        ],
        Broker::Rocketmq => [
            ("connector", format!("'connector' = 'rocketmq', 'name-server' = '{address}'")),
            ("catalog", format!("'type' = 'rocketmq', 'name-server' = '{address}'")),
            ("partition", "queue".into()),
            ("timestamp", "store-timestamp".into()),
            ("group", "group".into()),
            ("queue", "broker:broker-a,queue:".into()),
            ("places", "broker, queue, `offset`, store_timestamp".into()),
        ],
    };
    variables.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Runs all suites; all failures at once, with their files and lines.
async fn run_suites(broker: Broker) {
    let variables = fill(broker).await;
    let files = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let mut suites: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|end| end == "slt")).collect();
    suites.sort();
    assert!(!suites.is_empty());
    let mut failures = vec![];
    for suite in suites {
        let mut runner = Runner::new(|| ready(Ok::<_, Refused>(Database::new(&variables))));
        runner.with_column_validator(strict_column_validator);
        for record in parse_file(&suite).unwrap() {
            failures.extend(runner.run_async(record).await.err().map(|error| error.to_string()));
        }
    }
    assert!(failures.is_empty(), "{broker:?}: {} failures\n{}", failures.len(), failures.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_gives_the_right_answers() {
    run_suites(Broker::Kafka).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rocketmq_gives_the_right_answers() {
    run_suites(Broker::Rocketmq).await;
}

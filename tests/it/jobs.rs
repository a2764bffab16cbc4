//! What the shell runs on its own: queries in the background, and SELECTs whose answers grow or change. No broker is
//! needed here.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use futures::TryStreamExt;
use millstream::cli::jobs::Jobs;
use millstream::error::Result;
use millstream::session::{Outcome, Session};
use millstream::sql;

use crate::cli::{shell, text};

/// A prompt, without the terminal.
struct Prompt {
    session: Session,
    jobs: Jobs,
    /// What was told above it.
    told: Arc<Mutex<Vec<String>>>,
}

impl Prompt {
    /// With streams `numbers`, which never ends, and `few`, of 100 rows, and files for each.
    async fn new(dir: &Path) -> Self {
        let told = Arc::<Mutex<Vec<String>>>::default();
        let lines = Arc::clone(&told);
        let jobs = Jobs::telling(move |line| lines.lock().unwrap().push(line));
        let mut prompt = Self { session: Session::new("shell").unwrap(), jobs, told };
        let dir = dir.display();
        let numbers = "'connector' = 'datagen', 'fields.n.kind' = 'sequence', 'fields.n.start' = '1'";
        let files = |name: &str| format!("'connector' = 'filesystem', 'format' = 'parquet', 'path' = '{dir}/{name}'");
        let script = format!(
            "SET 'checkpoint.location' = '{dir}/ck'; SET 'epoch.trigger' = 'continuous';
             CREATE TABLE numbers (n BIGINT) WITH ({numbers}, 'rows-per-second' = '1000');
             CREATE TABLE few (n BIGINT) WITH ({numbers}, 'rows-per-second' = '1000000', 'number-of-rows' = '100');
             CREATE TABLE out (n BIGINT) WITH ({});
             CREATE TABLE small (n TINYINT) WITH ({});",
            files("out"),
            files("small")
        );
        prompt.say(&script).await;
        prompt
    }

    async fn execute(&mut self, sql: &str) -> Result<Vec<Vec<String>>> {
        let mut said = vec![];
        for parsed in sql::parse(sql)? {
            said = match self.jobs.execute(&mut self.session, parsed).await? {
                Outcome::Rows(rows) => cells(&rows.stream.try_collect::<Vec<_>>().await?),
                Outcome::Done(text) | Outcome::Text(text) => vec![vec![text]],
                Outcome::Query(_) | Outcome::Changes(_) => panic!("{sql} runs in the foreground"),
            };
        }
        Ok(said)
    }

    /// The rows that the last of these statements came to, or its text.
    async fn say(&mut self, sql: &str) -> Vec<Vec<String>> {
        self.execute(sql).await.unwrap()
    }

    async fn refused(&mut self, sql: &str) -> String {
        self.execute(sql).await.unwrap_err().to_string()
    }

    /// A query's state and epoch.
    async fn state(&mut self, name: &str) -> (String, u64) {
        let rows = self.say("SHOW QUERIES").await;
        let row = rows.iter().find(|row| row[0] == name).unwrap();
        (row[1].clone(), row[2].parse().unwrap())
    }

    /// Waits until a query is in this state, behind this epoch.
    async fn reaches(&mut self, name: &str, state: &str, epoch: u64) {
        loop {
            let (found, at) = self.state(name).await;
            if found == state && at > epoch {
                return;
            }
            let is_over = ["stopped", "finished", "failed", "fenced"].contains(&found.as_str());
            assert!(!is_over, "{name} {found} after epoch {at}: {:?}", self.told.lock().unwrap());
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    fn told(&self) -> Vec<String> {
        self.told.lock().unwrap().clone()
    }
}

/// Rows of texts; NULL is empty.
fn cells(batches: &[RecordBatch]) -> Vec<Vec<String>> {
    let row = |batch: &RecordBatch, row| -> Vec<String> {
        let cell = |column: &arrow::array::ArrayRef| arrow::util::display::array_value_to_string(column, row).unwrap();
        batch.columns().iter().map(cell).collect()
    };
    batches.iter().flat_map(|batch| (0..batch.num_rows()).map(move |index| row(batch, index))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_is_stopped_and_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let mut prompt = Prompt::new(dir.path()).await;
    assert!(prompt.say("SHOW QUERIES").await.is_empty());
    let started = prompt.say("INSERT INTO out SELECT n FROM numbers").await;
    assert_eq!(started, [["query shell/out started"]]);
    prompt.reaches("shell/out", "running", 1).await;
    let twice = prompt.refused("INSERT INTO out SELECT n FROM numbers").await;
    assert!(twice.contains("query shell/out runs already; STOP QUERY 'shell/out' first"), "{twice}");

    // The last part of its name will do, while no other ends so.
    let stopped = prompt.say("STOP QUERY out").await[0][0].clone();
    let (state, epoch) = prompt.state("shell/out").await;
    assert_eq!((state.as_str(), stopped), ("stopped", format!("query shell/out stopped after epoch {epoch}")));

    let again = prompt.say("SET 'pipeline.name' = 'other'; RESTART QUERY 'shell/out'").await;
    assert_eq!(again, [["query shell/out started again"]]);
    prompt.reaches("shell/out", "running", epoch).await;
    // One that runs is stopped first.
    prompt.say("RESTART QUERY out").await;
    let described: BTreeMap<String, String> = loop {
        let rows = prompt.say("DESCRIBE QUERY 'shell/out'").await;
        if rows.iter().any(|row| row[0] == "last epoch") {
            break rows.into_iter().map(|row| (row[0].clone(), row[1].clone())).collect();
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    };
    assert_eq!(described["run"], "3");
    assert_eq!(described["SQL"], "INSERT INTO out SELECT n FROM numbers");
    assert!(described["writes out"].starts_with("exactly-once: "), "{described:?}");
    assert!(described["reads numbers, datagen:0"].starts_with("next "), "{described:?}");
    prompt.say("STOP QUERY 'shell/out'").await;
    // Under another name it is another query.
    prompt.say("INSERT INTO out SELECT n FROM numbers WHERE n < 0").await;
    let either = prompt.refused("STOP QUERY out").await;
    assert!(either.contains("out may be the query 'other/shell/out' or 'shell/out'; say which"), "{either}");
    prompt.say("STOP QUERY 'other/shell/out'").await;
    let count = format!(
        "CREATE EXTERNAL TABLE o STORED AS PARQUET LOCATION '{}/out/';
         SELECT count(*) = max(n), count(DISTINCT n) = max(n), min(n) FROM o",
        dir.path().display()
    );
    assert_eq!(prompt.say(&count).await, [["true", "true", "1"]]);
    assert_eq!(prompt.told(), Vec::<String>::new(), "what was asked for is no news");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_queries_end_is_told_once_and_shown() {
    let dir = tempfile::tempdir().unwrap();
    let mut prompt = Prompt::new(dir.path()).await;
    prompt.say("INSERT INTO out SELECT n FROM few").await;
    prompt.say("INSERT INTO small SELECT CAST(CAST(n AS STRING) || 'x' AS TINYINT) FROM few").await;
    while prompt.told().len() < 2 {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let mut told = prompt.told();
    told.sort();
    assert!(told[0].starts_with("error: query shell/small failed: "), "{told:?}");
    assert!(told[1].starts_with("query shell/out finished after epoch "), "{told:?}");
    let rows = prompt.say("SHOW QUERIES").await;
    assert_eq!((rows[0][1].as_str(), rows[0][6].as_str(), rows[0][7].as_str()), ("finished", "100", "100"));
    assert_eq!(rows[1][1], "failed");
    assert_eq!(told[0], format!("error: query shell/small failed: {}", rows[1][8]));

    for statement in ["STOP QUERY", "DESCRIBE QUERY", "RESTART QUERY"] {
        let unknown = prompt.refused(&format!("{statement} 'shell/ot'")).await;
        assert!(unknown.contains("there is no query shell/ot; did you mean 'shell/out'?"), "{unknown}");
    }
    // Definitions are those of now.
    prompt.say("DROP TABLE small").await;
    let gone = prompt.refused("RESTART QUERY 'shell/small'").await;
    assert!(gone.contains("there is no table small"), "{gone}");
    let alone = prompt.session.execute_script("SHOW QUERIES").await.map(drop).unwrap_err().to_string();
    assert!(alone.contains("SHOW QUERIES: queries run in the background only at the prompt"), "{alone}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaving_asks_what_to_do_with_queries() {
    let dir = tempfile::tempdir().unwrap();
    let mut prompt = Prompt::new(dir.path()).await;
    let jobs = prompt.jobs.clone();
    assert!(jobs.may_leave(|question| panic!("{question}")).await, "nothing runs");
    prompt.say("INSERT INTO out SELECT n FROM numbers").await;
    let mut answers = ["what?", "c"].into_iter();
    let mut asked = vec![];
    let left = jobs.may_leave(|question| {
        asked.push(question.to_owned());
        answers.next().map(str::to_owned)
    });
    assert!(!left.await);
    assert!(asked.len() == 2 && asked[0].starts_with("1 query runs: (w)ait"), "{asked:?}");
    prompt.reaches("shell/out", "running", 0).await;
    assert!(jobs.may_leave(|_| None).await, "Ctrl-D once more stops it");
    assert_eq!(prompt.state("shell/out").await.0, "stopped");
    prompt.say("CREATE TABLE copied WITH ('connector' = 'blackhole') AS SELECT n FROM few").await;
    assert!(jobs.may_leave(|_| Some("w".into())).await);
    assert_eq!(prompt.state("shell/copied").await.0, "finished");
    let sql = prompt.say("DESCRIBE QUERY 'shell/copied'").await.pop().unwrap();
    assert_eq!(sql, ["SQL", "INSERT INTO copied SELECT n FROM few"]);
    assert_eq!(prompt.say("RESTART QUERY 'shell/copied'").await, [["query shell/copied started again"]]);
}

const NUMBERS: &str = "CREATE TABLE numbers (n BIGINT, ts AS to_timestamp_seconds(n), WATERMARK FOR ts AS ts) WITH (
    'connector' = 'datagen', 'rows-per-second' = '1000000', 'number-of-rows' = '1000', 'scan.max-rows-per-epoch' = '90',
    'fields.n.kind' = 'sequence', 'fields.n.start' = '1');";

/// The rows of what the shell prints, a line each, without the names of the columns.
fn printed(sql: &str) -> Vec<Vec<String>> {
    let output = shell(&format!("{NUMBERS} {sql};"));
    assert_eq!(output.status.code(), Some(0), "{sql}: {}", text(&output.stderr));
    let row = |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    text(&output.stdout).lines().filter(|line| line.starts_with('|')).skip(1).map(row).collect()
}

#[test]
fn a_changelog_folds_into_the_batch_answer() {
    let changes =
        printed("SELECT n % 7 AS k, count(*) AS c, sum(n) AS s FROM numbers GROUP BY n % 7 HAVING count(*) > 20");
    let mut rows: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for change in &changes {
        let (kind, row) = change.split_first().unwrap();
        let before = rows.remove(&row[0]);
        match kind.as_str() {
            "+I" => assert_eq!(before, None, "{change:?}"),
            "-U" | "-D" => assert_eq!(before.as_deref(), Some(row), "{change:?}"),
            "+U" => {}
            other => panic!("{other}"),
        }
        if kind.starts_with('+') {
            rows.insert(row[0].clone(), row.to_vec());
        }
    }
    let answer = |k: i64| {
        let numbers = move || (1..=1000_i64).filter(move |n| n % 7 == k);
        [k, numbers().count() as i64, numbers().sum()].map(|number| number.to_string()).to_vec()
    };
    assert_eq!(rows.into_values().collect::<Vec<_>>(), (0..7).map(answer).collect::<Vec<_>>());
    assert!(changes.len() > 14, "it came by and by: {changes:?}");
}

#[test]
fn a_window_is_printed_when_it_is_complete() {
    let rows = printed(
        "SELECT count(*) AS c, sum(n) AS s FROM TABLE(TUMBLE(TABLE numbers, DESCRIPTOR(ts), INTERVAL '400' SECOND))
         GROUP BY window_start, window_end",
    );
    let window =
        |numbers: std::ops::Range<i64>| vec![numbers.clone().count().to_string(), numbers.sum::<i64>().to_string()];
    assert_eq!(rows, [window(1..400), window(400..800), window(800..1001)]);
}

/// A SELECT leaves nothing behind, and ends with those who read it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_changes_ends_when_it_is_dropped() {
    let mut session = Session::new("test").unwrap();
    let script = "CREATE TABLE endless (n BIGINT) WITH ('connector' = 'datagen', 'rows-per-second' = '1000000');
        SELECT count(*) AS c FROM endless";
    for _ in 0..2 {
        let Some(Outcome::Changes(mut changes)) = session.execute_script(script).await.unwrap().pop() else {
            panic!("no changes")
        };
        assert!(changes.keys.is_empty(), "there is one row");
        let mut newest = 0;
        for _ in 0..3 {
            let batch: RecordBatch = changes.stream.try_next().await.unwrap().unwrap();
            let counts = batch.column(0).as_primitive::<Int64Type>().values().to_vec();
            assert!(counts.iter().all(|count| *count >= newest), "{counts:?} after {newest}");
            newest = counts.into_iter().max().unwrap();
        }
        drop(changes);
        session.execute_script("DROP TABLE endless").await.unwrap();
    }
}

//! Looking into a checkpoint, going back in it, running an epoch again, and rows that are written once. Brokers are needed
//! by the last tests alone.

use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use futures::TryStreamExt;
use millstream::checkpoint::{Generation, Rewind};
use millstream::clock::Clock;
use millstream::connector::memory::MemoryConnector;
use millstream::connector::{Connectors, Environment};
use millstream::error::{Kind, Result};
use millstream::query::progress::Reporter;
use millstream::query::replay::Replay;
use millstream::query::rewind::{Done, rewind};
use millstream::query::{Query, Step};
use millstream::session::{Outcome, Session};
use millstream::storage::Stores;
use millstream::storage::faults::{Gate, Moment};

use crate::brokers::Broker;
use crate::crash::{FILES, MEMORY, late_rows, oracle, script, visible, windows, world};
use crate::harness::{World, run_to_end};
use crate::infer;

const QUERY: &str = "test/output";

fn connectors(world: &World) -> Connectors {
    Connectors::standard().with(Arc::new(MemoryConnector::new(world.memory.clone())))
}

async fn generation(stores: &Stores) -> Generation {
    let checkpoint = stores.open("memory://ck", &Default::default()).unwrap();
    Generation::newest(&checkpoint, QUERY).await.unwrap()
}

/// Goes back to an epoch, through these stores.
async fn back(world: &World, stores: &Stores, epoch: u64, deletes: bool) -> Result<Done> {
    let clock = Clock::system();
    let environment = Environment { stores: stores.clone(), clock, settings: Arc::default(), parallelism: 2 };
    let to = Rewind::to_epoch(generation(stores).await, epoch).await?;
    rewind(&to, deletes, &connectors(world), &environment).await
}

/// A world in which the query has run to its end, and its newest epoch.
async fn ran(script: &str) -> (World, u64) {
    let world = world();
    run_to_end(world.plan(script, None).await).await.unwrap();
    let newest = generation(&world.stores).await.epochs().await.unwrap().pop().unwrap();
    assert!(newest >= 4, "only {newest} epochs");
    (world, newest)
}

/// From every epoch on, with and without state, the rest comes out as it did.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_going_back_files_hold_the_batch_answer() {
    for script in [script(FILES), windows(FILES)] {
        let expected = oracle(&script).await;
        let (_, newest) = ran(&script).await;
        for epoch in 0..=newest {
            let (world, _) = ran(&script).await;
            let done = back(&world, &world.stores, epoch, true).await.unwrap();
            assert_eq!(done.generation, 2);
            run_to_end(world.plan(&script, None).await).await.unwrap();
            assert_eq!(visible(&world, FILES).await, expected, "back to epoch {epoch}");
            // Once more, from what a rewind has made.
            back(&world, &world.stores, 0, true).await.unwrap();
            run_to_end(world.plan(&script, None).await).await.unwrap();
            assert_eq!(visible(&world, FILES).await, expected, "back to epoch {epoch}, and to the beginning of that");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_topic_has_is_kept_and_comes_again() {
    let script = script(MEMORY);
    let (world, newest) = ran(&script).await;
    let expected = oracle(&script).await;
    let refused = back(&world, &world.stores, newest - 2, true).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Refused);
    assert!(refused.to_string().contains("memory output cannot be taken back; say --output keep"), "{refused}");
    assert_eq!(generation(&world.stores).await.number(), 1, "nothing has happened");

    let old = generation(&world.stores).await;
    let again = old.commits(&[newest - 1, newest]).await.unwrap();
    let again: u64 = again.iter().map(|commit| commit.sinks[0].rows).sum();
    assert!(again > 0);
    assert_eq!(back(&world, &world.stores, newest - 2, false).await.unwrap(), Done { generation: 2, files: 0 });
    run_to_end(world.plan(&script, None).await).await.unwrap();
    let mut found = visible(&world, MEMORY).await;
    assert_eq!(found.len() as u64, expected.len() as u64 + again);
    found.dedup();
    assert_eq!(found, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_of_the_old_generation_ends_at_its_next_look() {
    let world = world();
    let spec = world.plan(&script(FILES), None).await;
    let mut query = Query::open(spec, Reporter::silent()).await.unwrap();
    assert_eq!(query.step().await.unwrap(), Step::Committed(1));
    let before = visible(&world, FILES).await;
    back(&world, &world.stores, 1, false).await.unwrap();
    let fenced = query.step().await.unwrap_err();
    assert_eq!(fenced.kind(), Kind::Fenced);
    assert!(fenced.to_string().contains("was rewound: generation 2 has replaced generation 1"), "{fenced}");
    query.close().await;
    assert_eq!(visible(&world, FILES).await, before, "it has published nothing more");
}

/// Two that were decided before either was made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_rewinds_one_goes_ahead() {
    let (world, newest) = ran(&script(FILES)).await;
    let old = generation(&world.stores).await;
    let first = Rewind::to_epoch(old.clone(), newest - 1).await.unwrap();
    let second = Rewind::to_epoch(old, 1).await.unwrap();
    assert_eq!(first.make(true, &Clock::system()).await.unwrap(), 2);
    let late = second.make(true, &Clock::system()).await.unwrap_err();
    assert_eq!(late.kind(), Kind::Fenced);
    assert!(late.to_string().contains("has made generation 2, which is in force"), "{late}");
    assert_eq!(generation(&world.stores).await.number(), 2);
    // What broke off has a number that nobody takes again.
    assert_eq!(back(&world, &world.stores, 0, true).await.unwrap().generation, 4);
}

/// Later epochs may have written to a table that the query did not have yet where it goes back to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_later_definition_has_written_is_removed_too() {
    let late = late_rows(FILES, &FILES.replace("lake/out", "lake/late"));
    let script = late.replace("SET 'late-rows.table' = 'late';", "");
    assert_ne!(script, late);
    let world = world();
    let mut query = Query::open(world.plan(&script, None).await, Reporter::silent()).await.unwrap();
    assert_eq!(query.step().await.unwrap(), Step::Committed(1));
    query.close().await;
    run_to_end(world.plan(&late, None).await).await.unwrap();
    assert!(!world.parquet("memory://lake/late").await.is_empty(), "no row is late");
    back(&world, &world.stores, 1, true).await.unwrap();
    assert!(world.parquet("memory://lake/late").await.is_empty());
}

/// Given offsets are an epoch's, with all it remembered, or else they need to be told what becomes of state.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_of_an_epoch_bring_its_state_and_others_have_none() {
    let script = windows(FILES);
    let (world, _) = ran(&script).await;
    let at = Rewind::to_epoch(generation(&world.stores).await, 2).await.unwrap();
    let mut offsets = at.offsets();
    let same = Rewind::to_offsets(generation(&world.stores).await, &offsets, false).await.unwrap();
    assert_eq!((same.epoch(), same.offsets()), (Some(2), offsets.clone()));
    *offsets.get_mut("input").unwrap().values_mut().next().unwrap() = 1;
    let refused = Rewind::to_offsets(generation(&world.stores).await, &offsets, false).await.unwrap_err();
    assert!(refused.kind() == Kind::Refused && refused.to_string().contains("--without-state"), "{refused}");
    let made = Rewind::to_offsets(generation(&world.stores).await, &offsets, true).await.unwrap();
    assert_eq!((made.epoch(), made.offsets()), (None, offsets));
    let (stores, clock) = (world.stores.clone(), Clock::system());
    let environment = Environment { stores, clock, settings: Arc::default(), parallelism: 2 };
    let refused = rewind(&made, true, &connectors(&world), &environment).await.unwrap_err();
    assert!(refused.kind() == Kind::Refused && refused.to_string().contains("no kept epoch's"), "{refused}");
    rewind(&made, false, &connectors(&world), &environment).await.unwrap();
    run_to_end(world.plan(&script, None).await).await.unwrap();
}

/// Wherever a rewind is stopped, either generation is in force and whole: the files hold the batch answer in the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rewind_that_is_stopped_leaves_the_old_or_the_new() {
    let script = windows(FILES);
    let expected = oracle(&script).await;
    let mut seen = [0, 0];
    for moment in [Moment::Before, Moment::After] {
        for k in 1.. {
            let (world, _) = ran(&script).await;
            let gate = Gate::new(k, moment);
            let (stores, beside) = (world.stores.wrapped(Arc::new(Arc::clone(&gate))), world.clone());
            let going = tokio::spawn(async move { back(&beside, &stores, 2, true).await });
            let abort = going.abort_handle();
            let is_stopped = tokio::select! {
                () = gate.tripped() => {
                    abort.abort();
                    true
                }
                done = going => {
                    done.unwrap().unwrap();
                    false
                }
            };
            if !is_stopped {
                break;
            }
            let number = generation(&world.stores).await.number();
            seen[number as usize - 1] += 1;
            run_to_end(world.plan(&script, None).await).await.unwrap();
            assert_eq!(visible(&world, FILES).await, expected, "stopped {moment:?} call {k}, generation {number}");
            if number == 1 {
                // What broke off is in nobody's way.
                back(&world, &world.stores, 2, true).await.unwrap();
                run_to_end(world.plan(&script, None).await).await.unwrap();
                assert_eq!(visible(&world, FILES).await, expected, "stopped {moment:?} call {k}, and rewound again");
            }
        }
    }
    assert!(seen[0] > 15 && seen[1] > 2, "{seen:?}: the gate sees too little");
}

/// The names of all that lies in the checkpoint.
async fn listing(world: &World) -> Vec<String> {
    let checkpoint = world.stores.open("memory://ck", &Default::default()).unwrap();
    let found: Vec<_> = checkpoint.store.list(Some(&checkpoint.prefix)).try_collect().await.unwrap();
    found.iter().map(|meta| meta.location.to_string()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_epoch_that_is_replayed_gives_the_rows_that_it_wrote() {
    for script in [script(FILES), windows(FILES)] {
        let (world, newest) = ran(&script).await;
        let (before, files) = (listing(&world).await, world.parquet("memory://lake/out").await);
        let session = session(&world);
        let generation = generation(&world.stores).await;
        let mut all = 0;
        for commit in generation.commits(&(1..=newest).collect::<Vec<_>>()).await.unwrap() {
            let names = commit.sinks[0].position["files"].as_array().unwrap().iter().map(|name| name.as_str().unwrap());
            let written: Vec<i64> =
                names.flat_map(|name| files.iter().find(|(path, _)| path.ends_with(name)).unwrap().1.clone()).collect();
            let replay = Replay::of(generation.clone(), commit.epoch).await.unwrap();
            assert_eq!(answer(&session, &replay, None).await, written, "epoch {}", commit.epoch);
            all += written.len();

            let intent = generation.intent(commit.epoch).await.unwrap().unwrap();
            let read: u64 = intent.spans("input").map(|span| span.len()).sum();
            let counted = answer(&session, &replay, Some("SELECT count(*) FROM input")).await;
            assert_eq!(counted, [read as i64], "epoch {}", commit.epoch);
        }
        assert_eq!(all, oracle(&script).await.len());
        let first = Replay::of(generation.clone(), 1).await.unwrap();
        let Err(other) = session.replay(&first, Some("SELECT n FROM output")).await else { panic!("it was answered") };
        assert!(other.to_string().contains("epoch 1 has not read output; it read input"), "{other}");
        let Err(gone) = Replay::of(generation, newest + 1).await else { panic!("it is there") };
        assert!(gone.to_string().contains(&format!("epoch {} of {QUERY} is not kept", newest + 1)), "{gone}");
        assert_eq!(listing(&world).await, before, "a replay has written something");
    }
}

/// The first column of the rows.
async fn answer(session: &Session, replay: &Replay, select: Option<&str>) -> Vec<i64> {
    let mut replayed = session.replay(replay, select).await.unwrap();
    let (_, rows) = replayed.rows.pop().unwrap();
    let batches: Vec<_> = rows.try_collect().await.unwrap();
    replayed.close().await;
    batches.iter().flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec()).collect()
}

fn session(world: &World) -> Session {
    Session::with("test", connectors(world), world.stores.clone(), Clock::system()).unwrap()
}

async fn done(session: &mut Session, statement: &str) -> String {
    match session.execute_script(statement).await.unwrap().pop().unwrap() {
        Outcome::Done(text) => text,
        _ => panic!("{statement} is not done at once"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_are_written_by_hand_are_there_once() {
    let world = world();
    let mut session = session(&world);
    done(&mut session, &format!("CREATE TABLE output (n BIGINT, text STRING) WITH ({FILES})")).await;
    assert_eq!(done(&mut session, "INSERT INTO output (n) VALUES (1), (2)").await, "2 rows written to output");
    assert_eq!(done(&mut session, "INSERT INTO output VALUES (3, 'x')").await, "1 row written to output");
    let select = "INSERT INTO output SELECT n + 3, text FROM (VALUES ('b', 2), ('a', 1)) AS v (text, n) ORDER BY n";
    assert_eq!(done(&mut session, select).await, "2 rows written to output");
    assert_eq!(visible(&world, FILES).await, [1, 2, 3, 4, 5]);
    let Err(error) = session.execute_script("INSERT INTO output VALUES (1)").await else { panic!("it was written") };
    assert!(error.to_string().contains("the SELECT has 1 columns, and output takes 2"), "{error}");
}

/// Up to the end of a stream, or to what is there now.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_an_end_is_written_once_in_batch_mode() {
    let world = world();
    let mut session = session(&world);
    done(
        &mut session,
        &format!(
            "SET 'execution.mode' = 'batch';
             CREATE TABLE input (n BIGINT)
               WITH ('connector' = 'memory', 'topic' = 'input', 'scan.bounded.mode' = 'latest-offset');
             CREATE TABLE endless (n BIGINT) WITH ('connector' = 'memory', 'topic' = 'input');
             CREATE TABLE output (n BIGINT) WITH ({FILES})"
        ),
    )
    .await;
    assert_eq!(done(&mut session, "INSERT INTO output SELECT sum(n) FROM input").await, "1 row written to output");
    assert_eq!(visible(&world, FILES).await, [(0..9).map(|n| n + (1000 + n) + (2000 + n)).sum::<i64>()]);
    assert_eq!(done(&mut session, "INSERT INTO output SELECT -n FROM endless").await, "27 rows written to output");
}

fn millstream(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_millstream")).args(arguments).output().unwrap()
}

/// What it says on standard output; it must succeed.
fn said(arguments: &[&str]) -> String {
    let output = millstream(arguments);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

const JOB: &str = "SET 'checkpoint.location' = '${out}/ck';
CREATE TABLE numbers (n BIGINT) WITH ('connector' = 'datagen', 'number-of-rows' = '1000',
  'rows-per-second' = '1000000', 'fields.n.kind' = 'sequence', 'fields.n.start' = '1', 'scan.max-rows-per-epoch' = '100');
CREATE TABLE big (n BIGINT) WITH ('connector' = 'filesystem', 'path' = '${out}/big', 'format' = 'parquet');
INSERT INTO big SELECT n FROM numbers WHERE n > 10;";

/// How many rows the directory has, and how many of them are different.
fn count(dir: &Path) -> String {
    let location = dir.join("big").display().to_string();
    said(&[
        "shell",
        "-e",
        &format!(
            "CREATE EXTERNAL TABLE big STORED AS PARQUET LOCATION '{location}/';
             SELECT count(*) AS c, count(DISTINCT n) AS d FROM big;"
        ),
    ])
}

#[test]
fn a_checkpoint_is_looked_into_and_a_query_goes_back() {
    let dir = tempfile::tempdir().unwrap();
    let (file, out) = (dir.path().join("job.sql"), format!("out={}", dir.path().display()));
    std::fs::write(&file, JOB).unwrap();
    let submit = || said(&["submit", file.to_str().unwrap(), "--var", &out, "--trigger", "continuous"]);
    submit();
    let (ck, name) = (dir.path().join("ck").display().to_string(), "job/big");
    let query = |arguments: &[&str]| said(&[&["query"], arguments, &["--checkpoint", ck.as_str()]].concat());

    assert!(query(&["list"]).contains("| job/big | "));
    let listed: serde_json::Value = serde_json::from_str(&query(&["list", "--format", "json"])).unwrap();
    assert_eq!((listed[0]["generation"].as_str(), listed[0]["pending"].as_str()), (Some("1"), Some("")));
    let shown = query(&["show", name]);
    for part in ["SELECT n FROM numbers WHERE n > 10;", "numbers datagen:0 at 0", "CREATE TABLE `big`"] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
    let epochs: serde_json::Value =
        serde_json::from_str(&query(&["epochs", name, "--last", "1000", "--format", "json"])).unwrap();
    let epochs = epochs.as_array().unwrap();
    assert!(epochs.len() >= 10, "{}", epochs.len());
    assert!(epochs.iter().all(|epoch| epoch["took_ms"].as_i64().is_some_and(|ms| ms >= 0)));
    let rows = |epoch: &serde_json::Value| epoch["commit"]["sinks"][0]["rows"].as_u64().unwrap();
    assert_eq!(epochs.iter().map(rows).sum::<u64>(), 990);
    assert_eq!(query(&["epochs", name, "--last", "3"]).lines().count(), 4);
    let one = query(&["epochs", name, "--epoch", "2"]);
    let next = epochs[1]["commit"]["sources"]["numbers"]["datagen:0"]["next"].as_u64().unwrap();
    let first = epochs[0]["commit"]["sources"]["numbers"]["datagen:0"]["next"].as_u64().unwrap();
    assert!(one.contains(&format!("numbers datagen:0 {first}..{next}")), "{one}");
    assert!(one.contains(&format!("big: {} rows", rows(&epochs[1]))), "{one}");
    assert!(query(&["offsets", name]).contains("| numbers | datagen:0 | 1000 |"));

    // What epoch 2 wrote comes out again, a JSON object a line, and nothing has changed.
    let replay = ["replay", name, "--checkpoint", &ck, "--epoch", "2", "--format", "json"];
    assert_eq!(said(&replay).lines().count() as u64, rows(&epochs[1]));
    let again = dir.path().join("again").display().to_string();
    said(&["replay", name, "--checkpoint", &ck, "--epoch", "2", "--into", &again]);
    let big = dir.path().join("big").display().to_string();
    let refused = millstream(&["replay", name, "--checkpoint", &ck, "--epoch", "2", "--into", &big]);
    let message = String::from_utf8(refused.stderr).unwrap();
    assert!(message.contains("would be there twice; name another directory"), "{message}");
    assert_eq!(std::fs::read_dir(&again).unwrap().filter(|entry| entry.as_ref().unwrap().path().is_file()).count(), 1);
    assert!(count(dir.path()).contains("| 990 | 990 |"));

    let refused = millstream(&["query", "rewind", name, "--epoch", "2", "--checkpoint", &ck]);
    assert_eq!(refused.status.code(), Some(2), "it must be said what becomes of the output");
    let went = query(&["rewind", name, "--epoch", "2", "--output", "delete"]);
    assert!(went.contains("generation 2 is in force and begins behind epoch 2"), "{went}");
    assert!(!count(dir.path()).contains("| 990 |"), "files of later epochs are there");
    submit();
    assert!(count(dir.path()).contains("| 990 | 990 |"));
    assert!(query(&["show", name]).contains("to epoch 2 of generation 1"));

    // Exported, changed, imported: the last hundred once more.
    let exported = query(&["export", name]).replace("\"datagen:0\": 1000", "\"datagen:0\": 900");
    let offsets = dir.path().join("offsets.json");
    std::fs::write(&offsets, &exported).unwrap();
    assert!(exported.contains("\"datagen:0\": 900"), "{exported}");
    query(&["import", name, offsets.to_str().unwrap(), "--output", "keep"]);
    submit();
    assert!(count(dir.path()).contains("| 1090 | 990 |"), "{}", count(dir.path()));
    std::fs::write(&offsets, exported.replace("numbers", "numbrs")).unwrap();
    let unknown =
        millstream(&["query", "import", name, offsets.to_str().unwrap(), "--output", "keep", "--checkpoint", &ck]);
    let message = String::from_utf8(unknown.stderr).unwrap();
    assert!(message.contains("reads no table numbrs; did you mean 'numbers'?"), "{message}");
}

#[test]
fn a_file_may_write_by_hand_alone_and_explain_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("job.sql");
    let path = dir.path().join("big").display().to_string();
    let sql = format!(
        "CREATE TABLE big (n BIGINT) WITH ('connector' = 'filesystem', 'path' = '{path}', 'format' = 'parquet');
         INSERT INTO big VALUES (1), (2);"
    );
    std::fs::write(&file, sql).unwrap();
    said(&["submit", file.to_str().unwrap(), "--explain"]);
    assert!(!dir.path().join("big").exists());
    for expected in ["| 2 | 2 |", "| 4 | 2 |"] {
        said(&["submit", file.to_str().unwrap()]);
        assert!(count(dir.path()).contains(expected), "{}", count(dir.path()));
    }
}

/// What is written by hand into a topic is read back.
async fn written_and_read_back(broker: Broker) {
    let topic = broker.topic("values");
    let more = ", 'scan.bounded.mode' = 'latest-offset', 'sink.delivery-guarantee' = 'at-least-once'";
    let mut session = Session::new("test").unwrap();
    done(&mut session, &broker.table("t", &topic, "n BIGINT, text STRING", more)).await;
    let written = done(&mut session, "INSERT INTO t VALUES (1, 'a'), (2, NULL), (3, 'ü')").await;
    assert_eq!(written, "3 rows written to t");
    let mut found = vec![];
    // What a broker has acknowledged it may show a moment later.
    for _ in 0..100 {
        found = infer::rows(&mut session, "SELECT n, text FROM t").await.1;
        if found.len() >= 3 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert_eq!(found, ["1, a", "2, NULL", "3, ü"]);
    assert_eq!(broker.numbers(&topic).len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_written_to_kafka_by_hand() {
    written_and_read_back(Broker::Kafka).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_written_to_rocketmq_by_hand() {
    written_and_read_back(Broker::Rocketmq).await;
}

/// In one transaction, under an id that nobody has used before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_written_to_kafka_exactly_once() {
    let topic = Broker::Kafka.topic("values");
    let mut session = Session::new("test").unwrap();
    let more = ", 'sink.delivery-guarantee' = 'exactly-once'";
    done(&mut session, &Broker::Kafka.table("t", &topic, "n BIGINT", more)).await;
    for n in [1, 2] {
        let written = done(&mut session, &format!("INSERT INTO t VALUES ({n})")).await;
        assert_eq!(written, "1 row written to t");
    }
    let mut found = Broker::Kafka.numbers(&topic);
    found.sort_unstable();
    assert_eq!(found, [1, 2]);
}

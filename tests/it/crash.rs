//! The main test: a crash between any two writes, or a run that sleeps through its successor's life, changes no answer.
//!
//! Everything is real but the network and the disk: stores and topics live in memory, so that every call can be counted
//! and stopped.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::AsArray;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type};
use futures::TryStreamExt;
use millstream::checkpoint::inspect;
use millstream::error::Kind;
use millstream::query::progress::Reporter;
use millstream::query::{Query, Step};
use millstream::storage::faults::{Gate, Moment};
use object_store::ObjectStoreExt;

use crate::harness::{World, finish, run_to_end};

const ROWS: i64 = 9;

/// A filter from a topic of three partitions, seven rows an epoch.
pub fn script(target: &str) -> String {
    format!(
        "SET 'checkpoint.location' = 'memory://ck'; SET 'parallelism' = '2'; SET 'epoch.trigger' = 'available-now';
         CREATE TABLE input (n BIGINT)
           WITH ('connector' = 'memory', 'topic' = 'input', 'scan.max-rows-per-epoch' = '7');
         CREATE TABLE output (n BIGINT) WITH ({target});
         INSERT INTO output SELECT n FROM input WHERE n % 3 <> 0;"
    )
}

/// Windows of three seconds over the same topic: what a window counts, with its start, as one number.
pub fn windows(target: &str) -> String {
    script(target)
        .replace("SET 'parallelism'", "SET 'state.snapshot.max-files' = '2'; SET 'parallelism'")
        .replace("input (n BIGINT)", "input (n BIGINT, ts AS to_timestamp_millis(n % 1000 * 1000), WATERMARK FOR ts AS ts)")
        .replace(
            "SELECT n FROM input WHERE n % 3 <> 0",
            "SELECT CAST(date_part('epoch', window_start) AS BIGINT) * 1000 + sum(n) + max(n)
             FROM TABLE(TUMBLE(TABLE input, DESCRIPTOR(ts), INTERVAL '3' SECOND)) GROUP BY window_start, window_end, n % 4",
        )
}

/// Sessions of every fourth second: each second is one.
fn sessions(target: &str) -> String {
    windows(target).replace(
        "TABLE(TUMBLE(TABLE input, DESCRIPTOR(ts), INTERVAL '3' SECOND)) GROUP BY window_start, window_end, n % 4",
        "TABLE(SESSION((SELECT *, n % 4 AS k FROM input) PARTITION BY k, DESCRIPTOR(ts), INTERVAL '4' SECOND))
         GROUP BY window_start, window_end, k",
    )
}

/// The first row of each of five keys: two are met by each partition in the first rows, the others later.
fn first_rows(target: &str) -> String {
    let windows = windows(target);
    let (tables, _) = windows.split_once("SELECT CAST").unwrap();
    format!("{tables} SELECT n FROM input QUALIFY ROW_NUMBER() OVER (PARTITION BY n % 1000 / 2 ORDER BY ts) = 1;")
}

pub const FILES: &str = "'connector' = 'filesystem', 'path' = 'memory://lake/out', 'format' = 'parquet'";
pub const MEMORY: &str = "'connector' = 'memory', 'topic' = 'output'";

pub fn world() -> World {
    let world = World::new();
    world.memory.complete("input");
    (0..3u32).for_each(|p| world.append("input", p, i64::from(p) * 1000..i64::from(p) * 1000 + ROWS));
    let location = world.stores.open("memory://lake/in", &Default::default()).unwrap();
    for n in (0..3).flat_map(|p| p * 1000..p * 1000 + ROWS) {
        let path = location.join(&format!("{n:04}.json")).prefix;
        let put = location.store.put(&path, format!("{{\"n\":{n}}}\n").into());
        futures::executor::block_on(put).unwrap();
    }
    // Lines that cannot be read: a number is no object, and one without the column lacks it.
    let location = world.stores.open("memory://lake/odd", &Default::default()).unwrap();
    for n in 0..ROWS {
        let path = location.join(&format!("{n:04}.json")).prefix;
        let lines = format!("{}\n{{\"n\":{n}}}\n{}\n{{}}\n", n + 100, n + 200);
        futures::executor::block_on(location.store.put(&path, lines.into())).unwrap();
    }
    world
}

/// DataFusion's batch answer over all rows, as a sorted list: to the filter, or to the windows.
pub async fn oracle(script: &str) -> Vec<i64> {
    batch_answer(match script {
        _ if script.contains("TUMBLE") => {
            "SELECT i / 3 * 3 * 1000 + sum(n) + max(n) AS a FROM numbers GROUP BY i / 3, n % 4"
        }
        _ if script.contains("SESSION") => "SELECT i * 1000 + sum(n) + max(n) AS a FROM numbers GROUP BY i",
        _ if script.contains("ROW_NUMBER") => "SELECT n AS a FROM numbers WHERE i % 2 = 0 AND n < 1000",
        _ => "SELECT n AS a FROM numbers WHERE n % 3 <> 0",
    })
    .await
}

/// The column `a` of a SELECT over `numbers`, which has all rows: `n`, and its time in seconds, `i`; as a sorted list.
async fn batch_answer(select: &str) -> Vec<i64> {
    let numbers = format!(
        "SELECT p * 1000 + i AS n, i FROM generate_series(0, 2) AS a(p), generate_series(0, {}) AS b(i)",
        ROWS - 1
    );
    let sql = format!("WITH numbers AS ({numbers}) SELECT a FROM ({select}) AS answer");
    let batches = datafusion::prelude::SessionContext::new().sql(&sql).await.unwrap().collect().await.unwrap();
    let mut rows: Vec<i64> =
        batches.iter().flat_map(|b| b.column(0).as_primitive::<Int64Type>().values().to_vec()).collect();
    rows.sort_unstable();
    rows
}

/// What a reader sees, as a sorted list.
pub async fn visible(world: &World, target: &str) -> Vec<i64> {
    let mut rows: Vec<i64> = if target == FILES {
        world.parquet("memory://lake/out").await.into_iter().flat_map(|(_, rows)| rows).collect()
    } else {
        let batches = world.memory.rows("output");
        batches.iter().flat_map(|b| b.column(0).as_primitive::<Int64Type>().values().to_vec()).collect()
    };
    rows.sort_unstable();
    rows
}

/// Runs until the gate stops a call; whether it did.
pub async fn crash(world: &World, script: &str, gate: &Arc<Gate>) -> bool {
    let spec = world.plan(script, Some(gate)).await;
    let running = tokio::spawn(run_to_end(spec));
    let abort = running.abort_handle();
    tokio::select! {
        () = gate.tripped() => {
            abort.abort();
            true
        }
        ended = running => {
            ended.unwrap().unwrap();
            false
        }
    }
}

async fn stop_at_every_call(target: &str) {
    let script = script(target);
    stop_and_go_on(target, &script, &script).await;
}

/// Stops `first` at every call, in a world of its own each time, and goes on with `then`, to its end; `check` gets the
/// world, and which stop it was.
async fn at_every_stop(first: &str, then: &str, check: impl AsyncFn(&World, String)) {
    let stops = at_every_stop_in(async || world(), first, then, check).await;
    assert!(stops > 60, "only {stops} calls were stopped: the gate sees too little");
}

/// The same in worlds that have a past; how many stops there were.
async fn at_every_stop_in(
    world: impl AsyncFn() -> World,
    first: &str,
    then: &str,
    check: impl AsyncFn(&World, String),
) -> u32 {
    let mut stops = 0;
    for moment in [Moment::Before, Moment::After] {
        for k in 1.. {
            let world = world().await;
            let gate = Gate::new(k, moment);
            if !crash(&world, first, &gate).await {
                break;
            }
            stops += 1;
            run_to_end(world.plan(then, Some(&Gate::new(0, moment))).await).await.unwrap();
            check(&world, format!("stopped {moment:?} call {k}")).await;
        }
    }
    stops
}

/// After every stop a reader sees the batch answer.
async fn stop_and_go_on(target: &str, first: &str, then: &str) {
    let expected = oracle(first).await;
    let check = async |world: &World, stop: String| assert_eq!(visible(world, target).await, expected, "{stop}");
    at_every_stop(first, then, check).await;
}

/// What was intended is finished by the definition that intended it: other columns, other files.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_before_a_changed_definition_changes_nothing() {
    let first = script(&format!("{FILES}, 'sink.rolling-policy.rows' = '2'"));
    let then = script(FILES).replace("CREATE TABLE input (n BIGINT)", "CREATE TABLE input (n BIGINT, more AS n + 1)");
    stop_and_go_on(FILES, &first, &then).await;
}

/// The same rows as lines of files, which a directory shows one after the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_at_any_call_changes_nothing_for_a_stream_of_files() {
    let script = script(FILES).replace("'7'", "'2'").replace(
        "'connector' = 'memory', 'topic' = 'input'",
        "'connector' = 'filesystem', 'path' = 'memory://lake/in', 'format' = 'json', 'source.monitor-interval' = '0 s'",
    );
    stop_and_go_on(FILES, &script, &script).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_at_any_call_changes_nothing_in_files() {
    stop_at_every_call(FILES).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_at_any_call_changes_nothing_in_windows() {
    for target in [FILES, MEMORY] {
        // A subquery over static rows is answered anew by each run of an epoch, also where the sink has it already.
        let script = windows(target).replace(
            "TABLE input, DESCRIPTOR",
            "(SELECT * FROM input WHERE n >= (SELECT min(x) FROM (VALUES (0), (1)) AS v (x))), DESCRIPTOR",
        );
        stop_and_go_on(target, &script, &script).await;
    }
}

/// Windows over a time that jumps back and forth: what each counts, and beside it the rows that were late for theirs.
pub fn late_rows(target: &str, late: &str) -> String {
    windows(target)
        .replace("to_timestamp_millis(n % 1000 * 1000)", "to_timestamp_millis(n * 5 % 1000 % 9 * 1000)")
        .replace("sum(n) + max(n)", "count(*)")
        .replace("GROUP BY window_start, window_end, n % 4", "GROUP BY window_start, window_end")
        .replace(
            "INSERT INTO output",
            &format!("CREATE TABLE late (n BIGINT) WITH ({late}); SET 'late-rows.table' = 'late'; INSERT INTO output"),
        )
}

/// Two sinks of one epoch: a row is counted in its window, or it is in the table for late rows, once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_at_any_call_loses_no_late_row() {
    let late_files = FILES.replace("lake/out", "lake/late");
    let late_memory = MEMORY.replace("output", "late");
    for (target, late) in [(FILES, &late_memory), (MEMORY, &late_files)] {
        let script = late_rows(target, late);
        let both = async |world: &World| {
            let mut late: Vec<i64> = world.parquet("memory://lake/late").await.into_iter().flat_map(|f| f.1).collect();
            let numbers =
                |batch: &arrow::array::RecordBatch| batch.column(0).as_primitive::<Int64Type>().values().to_vec();
            late.extend(world.memory.rows("late").iter().flat_map(numbers));
            late.sort_unstable();
            (visible(world, target).await, late)
        };
        let undisturbed = world();
        run_to_end(undisturbed.plan(&script, None).await).await.unwrap();
        let expected = both(&undisturbed).await;
        let counted: i64 = expected.0.iter().map(|n| n % 1000).sum();
        assert!(!expected.1.is_empty(), "no row is late");
        assert_eq!(counted + expected.1.len() as i64, 3 * ROWS, "{expected:?}");
        let check = async |world: &World, stop: String| assert_eq!(both(world).await, expected, "{stop}");
        at_every_stop(&script, &script, check).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_at_any_call_changes_nothing_in_sessions_and_first_rows() {
    for script in [sessions(FILES), first_rows(FILES)] {
        let then = script.replace("'parallelism' = '2'", "'parallelism' = '3'");
        stop_and_go_on(FILES, &script, &then).await;
    }
}

/// A statement set of a filter and of windows, into files and into a sink that remembers.
fn statement_set(then: &str) -> String {
    let windows = windows(FILES);
    let (tables, select) = windows.split_once("INSERT INTO output").unwrap();
    format!(
        "{tables} CREATE TABLE rest (n BIGINT) WITH ({MEMORY});
         EXECUTE STATEMENT SET BEGIN INSERT INTO output {select} INSERT INTO rest SELECT n FROM input WHERE n % 3 <> 0{then}; END;"
    )
}

/// Two INSERTs are one epoch: after every stop both have their batch answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_at_any_call_changes_nothing_in_a_statement_set() {
    let script = statement_set("");
    let (of_windows, of_filter) = (oracle(&windows(FILES)).await, oracle(&self::script(MEMORY)).await);
    let check = async |world: &World, stop: String| {
        assert_eq!(visible(world, FILES).await, of_windows, "{stop}");
        assert_eq!(visible(world, MEMORY).await, of_filter, "{stop}");
    };
    at_every_stop(&script, &script, check).await;
}

/// Targets of a checkpoint are told apart by their order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_set_with_other_targets_is_refused() {
    let world = world();
    run_to_end(world.plan(&statement_set(""), None).await).await.unwrap();
    let more = "; INSERT INTO more SELECT n FROM input";
    let changed = statement_set(more)
        .replace("EXECUTE", "CREATE TABLE more (n BIGINT) WITH ('connector' = 'memory', 'topic' = 'more'); EXECUTE");
    let found = run_to_end(world.plan(&changed, None).await).await.unwrap_err().chain();
    assert!(
        found.contains("a statement set whose other targets are, in this order, memory output, and now"),
        "{found}"
    );
    let same = statement_set("; INSERT INTO rest SELECT n FROM input");
    let found = world.try_plan(&same, None).await.unwrap_err().chain();
    assert!(found.contains("two INSERTs of a statement set write to memory output"), "{found}");
}

/// A stream of lines, of which some cannot be read and go to a table of their own.
fn dead_letters(target: &str, dead: &str) -> String {
    let source = "'connector' = 'filesystem', 'path' = 'memory://lake/odd', 'format' = 'json', 'source.monitor-interval' = '0 s',
                  'format.dead-letter-table' = 'dead'";
    script(target)
        .replace("'7'", "'2'")
        .replace("CREATE TABLE input (n BIGINT)", "CREATE TABLE input (n BIGINT NOT NULL)")
        .replace("'connector' = 'memory', 'topic' = 'input'", source)
        .replace("INSERT INTO", &format!("CREATE TABLE dead (payload STRING) WITH ({dead}); INSERT INTO"))
}

/// What cannot be read is there once, and so is what can be read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_at_any_call_loses_no_dead_letter() {
    let dead_files = FILES.replace("lake/out", "lake/dead");
    let dead_memory = MEMORY.replace("output", "dead");
    let good: Vec<i64> = (0..ROWS).filter(|n| n % 3 != 0).collect();
    let of_file = |n: i64| [(n + 100).to_string(), (n + 200).to_string(), "{}".to_string()];
    let mut bad: Vec<String> = (0..ROWS).flat_map(of_file).collect();
    bad.sort();
    for (target, dead) in [(FILES, &dead_memory), (MEMORY, &dead_files)] {
        let script = dead_letters(target, dead);
        let check = async |world: &World, stop: String| {
            assert_eq!(visible(world, target).await, good, "{stop}");
            let batches = world.memory.rows("dead").into_iter().chain(world.batches("memory://lake/dead").await);
            let texts = batches.map(|batch| cast(batch.column(0), &DataType::Utf8).unwrap());
            let mut found: Vec<String> = texts
                .flat_map(|column| column.as_string::<i32>().iter().flatten().map(str::to_owned).collect::<Vec<_>>())
                .collect();
            found.sort();
            assert_eq!(found, bad, "{stop}");
        };
        at_every_stop(&script, &script, check).await;
    }
}

/// A query that ended at a bad message goes on when the table for dead letters is named, also with the epoch it was in,
/// whose intent does not know the table: wherever it is stopped then, each message is there once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_for_dead_letters_applies_at_once() {
    let script = dead_letters(FILES, MEMORY);
    let strict = script.replace("'format.dead-letter-table' = 'dead'", "'format.on-error' = 'fail'");
    let failed = async || {
        let world = world();
        let error = run_to_end(world.plan(&strict, Some(&Gate::new(0, Moment::Before))).await).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Data, "{}", error.chain());
        assert!(error.chain().contains("'format.dead-letter-table' to keep them"), "{}", error.chain());
        world
    };
    let check = async |world: &World, stop: String| {
        let letters: usize = world.memory.rows("output").iter().map(|batch| batch.num_rows()).sum();
        assert_eq!(letters as i64, 3 * ROWS, "{stop}");
        assert_eq!(visible(world, FILES).await.len() as i64, ROWS - ROWS / 3, "{stop}");
    };
    assert!(at_every_stop_in(failed, &script, &script, check).await > 60);
}

/// An epoch that was intended with a table for late rows is finished with it, and the next one goes without.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_before_late_rows_lose_their_table_changes_nothing() {
    let script = late_rows(FILES, &MEMORY.replace("output", "late"));
    let then = script.replace("SET 'late-rows.table' = 'late';", "");
    assert_ne!(script, then);
    let undisturbed = world();
    run_to_end(undisturbed.plan(&script, None).await).await.unwrap();
    let expected = visible(&undisturbed, FILES).await;
    let check = async |world: &World, stop: String| assert_eq!(visible(world, FILES).await, expected, "{stop}");
    at_every_stop(&script, &then, check).await;
}

/// The script with each of these parts, which it has, replaced.
fn with(script: &str, changes: &[(&str, &str)]) -> String {
    changes.iter().fold(script.to_owned(), |script, (from, to)| {
        assert!(script.contains(from), "there is no {from} in {script}");
        script.replace(from, to)
    })
}

/// What of a query may change while it remembers something, with the answer that it then gives, and what is refused.
/// The change comes when the first epoch is done and the second is not: that may be under way, and is finished as it was
/// begun. No window has come out by then, so the answer is all the new query's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_query_goes_on_or_is_refused() {
    let windows = windows(FILES);
    let of = |parts: &[(&str, &str)]| with(&windows, parts);
    let (tables, _) = windows.split_once("SELECT CAST").unwrap();
    let distinct = format!("{tables} SELECT DISTINCT n % 5 FROM input;");
    let for_a_day = |script: &str| with(script, &[("SET 'par", "SET 'state.ttl' = '1 d'; SET 'par")]);
    let distinct_for_a_day = for_a_day(&distinct);
    let ranked = of(&[
        ("SELECT CAST", "SELECT w FROM (SELECT window_start, window_end, CAST"),
        ("+ max(n)", "+ max(n) AS w"),
        ("n % 4;", "n % 4) QUALIFY ROW_NUMBER() OVER (PARTITION BY window_start, window_end ORDER BY w DESC) = 1;"),
    ]);
    let aggregated = of(&[
        ("SELECT CAST", "SELECT sum(w) FROM (SELECT window_end AS rowtime, CAST"),
        ("+ max(n)", "+ max(n) AS w"),
        ("n % 4;", "n % 4) GROUP BY date_bin(INTERVAL '6 seconds', rowtime);"),
    ]);
    let answer = |shown: &str, filter: &str, having: &str| {
        let shown = format!("i / 3 AS k, i / 3 * 3 * 1000 + {shown} AS a");
        format!("SELECT {shown} FROM numbers {filter} GROUP BY i / 3, n % 4 {having}")
    };
    let same = answer("sum(n) + max(n)", "", "");
    let above = |shown: &str, key: &str| format!("SELECT {shown} AS a FROM ({same}) AS w GROUP BY {key}");

    let needs = |was: &str, is: &str| Err(format!("{was}, and the query now needs {is}"));
    let gone = |operator: &str| Err(format!("has state of {operator}, which the query no longer has"));

    let changes = [
        (
            "HAVING",
            &windows,
            of(&[("n % 4;", "n % 4 HAVING sum(n) > 3012;")]),
            Ok(answer("sum(n) + max(n)", "", "HAVING sum(n) > 3012")),
        ),
        ("an expression above", &windows, of(&[("+ max(n)", "- max(n)")]), Ok(answer("sum(n) - max(n)", "", ""))),
        ("a ranking above", &windows, ranked, Ok(above("max(a)", "k"))),
        ("one aggregation more", &windows, aggregated.clone(), Ok(above("sum(a)", "(k * 3 + 3) / 6"))),
        // None of the rows that it leaves out is read by then.
        (
            "a filter below",
            &windows,
            of(&[("GROUP BY", "WHERE n % 1000 <> 8 GROUP BY")]),
            Ok(answer("sum(n) + max(n)", "WHERE i <> 8", "")),
        ),
        ("the watermark", &windows, of(&[("AS ts)", "AS ts - INTERVAL '1' SECOND)")]), Ok(same.clone())),
        ("state.ttl over windows", &windows, for_a_day(&windows), Ok(same.clone())),
        (
            "state.ttl",
            &distinct_for_a_day,
            with(&distinct_for_a_day, &[("'1 d'", "'2 d'")]),
            Ok("SELECT DISTINCT n % 5 AS a FROM numbers".to_owned()),
        ),
        ("state.ttl begins", &distinct, distinct_for_a_day.clone(), needs("has nothing", "$touched Int64")),
        ("state.ttl ends", &distinct_for_a_day, distinct.clone(), needs("has $touched Int64", "nothing")),
        ("the size", &windows, of(&[("'3' SECOND", "'4' SECOND")]), needs("", "date_bin(")),
        ("the offset", &windows, of(&[("'3' SECOND", "'3' SECOND, INTERVAL '1' SECOND")]), needs("", "date_bin(")),
        ("an aggregate", &windows, of(&[("max(n)", "min(n)")]), needs("[value] Int64", "min(")),
        ("one aggregate more", &windows, of(&[("+ max(n)", "+ max(n) + count(*)")]), needs("has nothing", "count(")),
        ("one aggregate less", &windows, of(&[("+ max(n)", "")]), needs("[value] Int64", "nothing")),
        ("a key", &windows, of(&[("n % 4", "n % 5")]), needs("has n % 4 Int64", "n % 5 Int64")),
        ("one key less", &windows, of(&[(", n % 4;", ";")]), needs("has n % 4 Int64", "sum(")),
        ("one aggregation less", &aggregated, windows.clone(), gone("aggregate-2")),
        ("no state", &windows, script(FILES), gone("aggregate-1")),
    ];
    for (what, first, then, expected) in changes {
        change(what, first, &then, expected).await;
    }
}

/// Changes `first` to `then`, stopped at some calls up to the second commit, in a world of its own each time. A reader
/// sees the batch answer to the SELECT that is expected, or the query is refused with this in the message.
async fn change(what: &str, first: &str, then: &str, expected: Result<String, String>) {
    assert_ne!(first, then, "{what}");
    let expected = match expected {
        Ok(select) => Ok(batch_answer(&select).await),
        Err(text) => Err(text),
    };
    let through = || Gate::new(0, Moment::Before);
    for k in (0..).step_by(17) {
        let world = world();
        let mut query = Query::open(world.plan(first, Some(&through())).await, Reporter::silent()).await.unwrap();
        assert_eq!(query.step().await.unwrap(), Step::Committed(1), "{what}");
        query.close().await;
        if k > 0 {
            crash(&world, first, &Gate::new(k, Moment::After)).await;
        }
        let checkpoint = world.stores.open("memory://ck", &Default::default()).unwrap();
        if inspect::commits(&checkpoint, "test/output", usize::MAX).await.unwrap().len() > 1 {
            assert!(k > 20, "{what}: the gate sees too little");
            break;
        }
        let ended = run_to_end(world.plan(then, Some(&through())).await).await;
        match (&expected, ended) {
            (Ok(rows), Ok(())) => assert_eq!(&visible(&world, FILES).await, rows, "{what}, stopped at call {k}"),
            (Err(text), Err(error)) => {
                assert!(error.chain().contains(text.as_str()), "{what}, stopped at call {k}: {}", error.chain());
            }
            (_, ended) => panic!("{what}, stopped at call {k}: {ended:?}"),
        }
    }
}

/// Under a shorter gap what is remembered would be other sessions, of which some might come out twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_of_another_gap_are_refused() {
    let world = world();
    let gate = Gate::new(30, Moment::After);
    assert!(crash(&world, &sessions(FILES), &gate).await, "the run was stopped");
    let changed = sessions(FILES).replace("INTERVAL '4' SECOND", "INTERVAL '3' SECOND");
    let error = run_to_end(world.plan(&changed, None).await).await.unwrap_err();
    let found = error.chain();
    assert!(
        found.contains("has first watermark, gap 4000") && found.contains("now needs first watermark, gap 3000"),
        "{found}"
    );
}

/// A restore may divide state into another number of shards; an epoch that was intended keeps its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_before_another_parallelism_changes_nothing_in_windows() {
    let (first, then) = (windows(FILES), windows(FILES).replace("'parallelism' = '2'", "'parallelism' = '3'"));
    stop_and_go_on(FILES, &first, &then).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_at_any_call_changes_nothing_in_a_sink_that_remembers() {
    stop_at_every_call(MEMORY).await;
}

/// A is stopped at its k-th call and B goes on, far enough to prune; then A wakes.
async fn a_sleeper_wakes(target: &str, moment: Moment, k: u64) -> bool {
    let script = script(target).replace("'7'", "'1'");
    let world = world();
    for p in 0..3u32 {
        world.append("input", p, i64::from(p) * 1000 + ROWS..i64::from(p) * 1000 + 60);
    }
    let gate = Gate::new(k, moment);
    let spec = world.plan(&script, Some(&gate)).await;
    let mut sleeper = tokio::spawn(async move {
        let (_stop, stopped) = tokio::sync::watch::channel(false);
        match Query::open(spec, Reporter::silent()).await {
            Ok(query) => query.run_until(stopped).await.map(drop),
            Err(e) => Err(e),
        }
    });
    let slept = tokio::select! {
        () = gate.tripped() => true,
        _ = &mut sleeper => false,
    };
    if !slept {
        return false;
    }
    let mut successor = Query::open(world.plan(&script, None).await, Reporter::silent()).await.unwrap();
    // 180 epochs of one row; 160 of them are enough to prune, and that several times.
    for _ in 0..160 {
        assert!(matches!(successor.step().await.unwrap(), Step::Committed(_)));
    }
    gate.release();
    let ended = tokio::time::timeout(Duration::from_secs(60), sleeper).await.expect("the sleeper ends").unwrap();
    // A run that slept before it registered is the newer one, and takes over; else it is fenced.
    match ended {
        Err(error) => assert_eq!(error.kind(), Kind::Fenced, "{moment:?} {k}: {}", error.chain()),
        Ok(()) => {
            let error = finish(&mut successor).await.expect_err("two runs went on side by side");
            assert_eq!(error.kind(), Kind::Fenced, "{moment:?} {k}: {}", error.chain());
        }
    }
    drop(successor);
    run_to_end(world.plan(&script, None).await).await.unwrap();
    let rows = visible(&world, target).await;
    let mut once = rows.clone();
    once.dedup();
    assert_eq!(rows, once, "{moment:?} {k}: twice");
    let filter = |n: &i64| n % 3 != 0;
    let expected: Vec<i64> = (0..3).flat_map(|p| p * 1000..p * 1000 + 60).filter(filter).collect();
    assert_eq!(rows, expected, "{moment:?} {k}");
    true
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_slept_through_its_successor_changes_nothing() {
    let mut slept = 0;
    for target in [FILES, MEMORY] {
        for (moment, first) in [(Moment::Before, 1), (Moment::After, 2)] {
            // Some calls of the first epochs, for each moment others.
            for k in (first..32).step_by(7) {
                slept += u32::from(a_sleeper_wakes(target, moment, k).await);
            }
        }
    }
    assert!(slept > 15, "only {slept} sleeps");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_epoch_that_is_run_again_under_other_delays_writes_the_same_files_row_by_row() {
    let target = format!("{FILES}, 'sink.rolling-policy.rows' = '2'");
    run_again(&script(&target), 8).await;
    run_again(&windows(&target), 4).await;
    run_again(&sessions(&target), 4).await;
    run_again(&first_rows(&target), 2).await;
}

async fn run_again(script: &str, files: usize) {
    let world = world();
    run_to_end(world.plan_jittery(script, 1).await).await.unwrap();
    let first = world.parquet("memory://lake/out").await;
    assert!(first.len() > files, "{} files", first.len());

    // Take back every commit and every intent but the first: the same epochs are run again.
    let checkpoint = world.stores.open("memory://ck", &Default::default()).unwrap();
    let records: Vec<_> = checkpoint.store.list(Some(&checkpoint.prefix)).try_collect().await.unwrap();
    for record in records {
        let path = record.location.to_string();
        if path.contains("/commits/") || (path.contains("/intents/") && !path.ends_with("00001.json")) {
            checkpoint.store.delete(&record.location).await.unwrap();
        }
    }
    run_to_end(world.plan_jittery(script, 2).await).await.unwrap();
    assert_eq!(world.parquet("memory://lake/out").await, first);
}

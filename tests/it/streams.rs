//! Where streams begin and end, and what happens when messages are gone that were to be read.

use std::sync::{Arc, Mutex};

use millstream::clock::Clock;
use millstream::error::Kind;
use millstream::query::progress::{Event, Reporter};
use millstream::query::{Query, Step};
use millstream::storage::faults::{Gate, Moment};
use tokio::sync::watch;

use crate::crash::crash;
use crate::harness::{World, finish, run_to_end};

pub const FILES: &str = "'connector' = 'filesystem', 'path' = 'memory://lake/out', 'format' = 'parquet'";
pub const MEMORY: &str = "'connector' = 'memory', 'topic' = 'output'";

/// Two partitions, `0..9` and `100..109`.
fn world() -> World {
    let world = World::new();
    world.append("input", 0, 0..9);
    world.append("input", 1, 100..109);
    world
}

/// Copies the topic, four rows an epoch.
fn script(target: &str, options: &str) -> String {
    format!(
        "SET 'checkpoint.location' = 'memory://ck'; SET 'parallelism' = '2'; SET 'epoch.trigger' = 'available-now';
         SET 'restart.max-attempts' = '4';
         CREATE TABLE input (n BIGINT)
           WITH ('connector' = 'memory', 'topic' = 'input', 'scan.max-rows-per-epoch' = '4' {options});
         CREATE TABLE output (n BIGINT) WITH ({target});
         INSERT INTO output SELECT n FROM input;"
    )
}

/// Sums up windows of four seconds: each row is a second later than the one before.
fn windows(options: &str) -> String {
    script(MEMORY, options)
        .replace("input (n BIGINT)", "input (n BIGINT, ts AS to_timestamp_seconds(n % 100), WATERMARK FOR ts AS ts)")
        .replace(
            "SELECT n FROM input",
            "SELECT sum(n) FROM TABLE(TUMBLE(TABLE input, DESCRIPTOR(ts), INTERVAL '4' SECOND))
             GROUP BY window_start, window_end",
        )
}

/// What a reader of the table `output` sees, sorted.
pub async fn visible(world: &World) -> Vec<i64> {
    let files = world.parquet("memory://lake/out").await.into_iter().flat_map(|(_, rows)| rows);
    let mut rows: Vec<i64> = files.chain(world.numbers("output")).collect();
    rows.sort_unstable();
    rows
}

#[tokio::test]
async fn a_stream_begins_where_the_query_says() {
    let listed = ", 'scan.startup.mode' = 'specific-offsets', 'scan.startup.specific-offsets' = 'input:1,7'";
    let rest = ", 'scan.startup.default' = 'latest-offset'";
    for (options, expected) in [
        (", 'scan.startup.mode' = 'latest-offset'".to_string(), vec![]),
        (listed.to_string(), (0..9).chain(107..109).collect()),
        (format!("{listed}{rest}"), vec![107, 108]),
    ] {
        let world = world();
        run_to_end(world.plan(&script(MEMORY, &options), None).await).await.unwrap();
        assert_eq!(visible(&world).await, expected, "{options}");
    }
}

/// The end is found out once: what comes later is not part of the stream, also not for a run that comes later.
#[tokio::test]
async fn a_bounded_stream_ends_and_closes_every_window() {
    let world = world();
    let script =
        windows(", 'scan.bounded.mode' = 'latest-offset'").replace("SET 'epoch.trigger' = 'available-now';", "");
    let mut query = Query::open(world.plan(&script, None).await, Reporter::silent()).await.unwrap();
    assert_eq!(query.step().await.unwrap(), Step::Committed(1));
    query.close().await;
    world.append("input", 0, 9..20);
    world.append("input", 2, 200..220);
    run_to_end(world.plan(&script, None).await).await.unwrap();
    assert_eq!(visible(&world).await, [108 + 8, 400 + 6 + 6, 400 + 22 + 22]);
    run_to_end(world.plan(&script, None).await).await.unwrap();
    assert_eq!(visible(&world).await.len(), 3, "a stream that has ended stays so");

    let longer = script.replace("'latest-offset'", "'unbounded'");
    let error = run_to_end(world.plan(&longer, None).await).await.unwrap_err().chain();
    assert!(
        error.contains("source input: where a stream ends ('scan.bounded.*') was decided when the query"),
        "{error}"
    );
}

/// A run up to what is there makes one more epoch where its last one moved the watermark past the end of a window. The
/// windows that are open then come out of a later run, once.
#[tokio::test]
async fn a_run_up_to_now_brings_out_what_is_complete() {
    let (world, script) = (world(), windows(""));
    let run = async || {
        let mut query = Query::open(world.plan(&script, None).await, Reporter::silent()).await.unwrap();
        finish(&mut query).await.unwrap();
        assert_eq!(query.step().await.unwrap(), Step::Finished);
        query.close().await;
        query.position().epoch
    };
    // Two rows of each partition an epoch, and the last ones in the fifth: by these it is 8 s.
    assert_eq!(run().await, 6);
    assert_eq!(visible(&world).await, [406 + 6, 422 + 22]);
    assert_eq!(run().await, 6, "nothing has come");
    // Up to 12 s.
    world.append("input", 0, 9..13);
    world.append("input", 1, 109..113);
    assert_eq!(run().await, 9);
    assert_eq!(visible(&world).await, [406 + 6, 422 + 22, 438 + 38]);
}

#[tokio::test]
async fn an_end_that_lies_ahead_is_waited_for() {
    let world = world();
    let options = ", 'scan.bounded.mode' = 'specific-offsets', 'scan.bounded.specific-offsets' = 'input:0,12'";
    let script = script(MEMORY, options).replace("SET 'epoch.trigger' = 'available-now';", "");
    let running = tokio::spawn(run_to_end(world.plan(&script, None).await));
    while world.numbers("output").len() < 9 {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert!(!running.is_finished());
    world.append("input", 0, 9..15);
    running.await.unwrap().unwrap();
    assert_eq!(visible(&world).await, (0..12).collect::<Vec<_>>(), "a partition that is not listed is not read");
}

/// Retention overtakes a query that stands still.
#[tokio::test]
async fn offsets_that_are_gone_end_a_query_or_are_counted() {
    let world = world();
    let strict = script(MEMORY, "");
    let mut query = Query::open(world.plan(&strict, None).await, Reporter::silent()).await.unwrap();
    query.step().await.unwrap();
    query.close().await;
    world.memory.trim("input", 0, 7);
    let error = run_to_end(world.plan(&strict, None).await).await.unwrap_err();
    assert_eq!(error.kind(), Kind::DataLoss);
    let lenient = script(MEMORY, ", 'scan.on-data-loss' = 'continue'");
    run_to_end(world.plan(&lenient, None).await).await.unwrap();
    let expected: Vec<i64> = [0, 1].into_iter().chain(7..9).chain(100..109).collect();
    assert_eq!(visible(&world).await, expected);
    assert_eq!(world.lost("memory://ck", "test/output").await, 5);
}

/// Wherever it was stopped, and however much of an epoch was intended, staged or published: no row that is there is left
/// out, and none is there twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_at_any_call_before_rows_are_gone_costs_only_these() {
    for target in [FILES, MEMORY] {
        let script = script(target, ", 'scan.on-data-loss' = 'continue'");
        let mut shortest = usize::MAX;
        for moment in [Moment::Before, Moment::After] {
            for k in 1.. {
                let world = world();
                let gate = Gate::new(k, moment);
                if !crash(&world, &script, &gate).await {
                    assert!(k > 20, "the gate sees too little");
                    break;
                }
                world.memory.trim("input", 0, 6);
                world.memory.trim("input", 1, 3);
                run_to_end(world.plan(&script, Some(&Gate::new(0, moment))).await).await.unwrap();
                let rows = visible(&world).await;
                let kept: Vec<i64> = rows.iter().copied().filter(|n| (6..100).contains(n) || *n >= 103).collect();
                let stop = format!("{target}, stopped {moment:?} call {k}: {rows:?}");
                assert_eq!(kept, (6..9).chain(103..109).collect::<Vec<_>>(), "{stop}");
                assert!(rows.windows(2).all(|pair| pair[0] < pair[1]), "{stop}");
                // A query that had not begun has lost nothing.
                let lost = world.lost("memory://ck", "test/output").await as usize;
                assert!(lost == 18 - rows.len() || (lost == 0 && rows.len() == 9), "{stop}");
                shortest = shortest.min(rows.len());
            }
        }
        assert_eq!(shortest, 9, "no stop came before the first epoch");
    }
}

/// A stream has an end to be reached also where nothing is left of it, and what is gone before it is counted.
#[tokio::test]
async fn a_partition_of_which_nothing_is_left_is_passed_over() {
    for (bounded, before) in [("", 9), (", 'scan.bounded.mode' = 'latest-offset'", 12)] {
        let world = world();
        let mut script = script(MEMORY, &format!(", 'scan.on-data-loss' = 'continue'{bounded}"));
        if !bounded.is_empty() {
            script = script.replace("available-now", "continuous");
        }
        let mut query = Query::open(world.plan(&script, None).await, Reporter::silent()).await.unwrap();
        query.step().await.unwrap();
        query.close().await;
        if before > 9 {
            world.append("input", 0, 9..20);
        }
        world.memory.trim("input", 0, before);
        run_to_end(world.plan(&script, None).await).await.unwrap();
        assert_eq!(visible(&world).await, [0, 1].into_iter().chain(100..109).collect::<Vec<_>>(), "{bounded}");
        assert_eq!(world.lost("memory://ck", "test/output").await, 7, "{bounded}");
    }
}

/// Runs by a clock that hurries: what is believed after a while is believed soon.
async fn run_fast(world: &World, script: &str) {
    let system = Clock::system();
    let clock = Clock::seeded(system.monotonic_us(), system.now_ms());
    let running = tokio::spawn(run_to_end(world.plan_by(script, &clock).await));
    while !running.is_finished() {
        clock.advance(1_000);
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    running.await.unwrap().unwrap();
}

/// The end of what was intended is gone, and comes back as other messages.
#[tokio::test]
async fn a_tail_that_is_gone_is_waited_for_and_then_left_out() {
    let world = world();
    let options = ", 'scan.on-data-loss' = 'continue'";
    let script = script(FILES, options).replace("'4' ,", "'100' ,").replace("'4'; SET", "'100'; SET");
    let gate = Gate::new(12, Moment::Before);
    assert!(crash(&world, &script, &gate).await);
    world.memory.recreate("input");
    world.append("input", 0, 1000..1003);
    run_fast(&world, &script).await;
    assert_eq!(visible(&world).await, [1000, 1001, 1002]);
}

#[tokio::test]
async fn a_topic_that_was_created_anew_is_noticed() {
    for more in [3, 30] {
        let world = world();
        let strict = script(MEMORY, "");
        run_to_end(world.plan(&strict, None).await).await.unwrap();
        world.memory.recreate("input");
        world.append("input", 0, 1000..1000 + more);
        let error = run_to_end(world.plan(&strict, None).await).await.unwrap_err().chain();
        let said =
            if more < 9 { "input:0 ends at 3, and the query has read up to 9" } else { "input:0 holds other messages" };
        assert!(error.contains(said), "{error}");
        let lenient = script(MEMORY, ", 'scan.on-data-loss' = 'continue'").replace("'4'; SET", "'100'; SET");
        run_fast(&world, &lenient).await;
        let expected: Vec<i64> = (0..9).chain(100..109).chain(1000..1000 + more).collect();
        assert_eq!(visible(&world).await, expected, "{more}");
        let mut query = Query::open(world.plan(&lenient, None).await, Reporter::silent()).await.unwrap();
        finish(&mut query).await.unwrap();
        assert_eq!(visible(&world).await, expected, "it is read once");
    }
}

/// Under a query that meets no trouble: before anything of it is read.
#[tokio::test]
async fn a_topic_that_is_created_anew_between_two_epochs_is_noticed() {
    for goes_on in [false, true] {
        let (world, clock) = (world(), Clock::seeded(1, 0));
        let options = if goes_on { ", 'scan.on-data-loss' = 'continue'" } else { "" };
        let script = script(MEMORY, options).replace("available-now", "continuous");
        let retries: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = Arc::clone(&retries);
        let reporter = Reporter::new(move |event| {
            if let Event::Retry { error, .. } = event {
                seen.lock().unwrap().push(error);
            }
        });
        let mut query = Query::open(world.plan_by(&script, &clock).await, reporter).await.unwrap();
        finish(&mut query).await.unwrap();
        world.memory.recreate("input");
        world.append("input", 0, 1000..1030);
        world.append("input", 1, 2000..2030);
        world.memory.complete("input");
        clock.advance(5_000);
        let (_stop, stopped) = watch::channel(false);
        let outcome = query.run_until(stopped).await;
        let said = "table input: input:0 holds other messages than those that were read";
        assert_eq!(*retries.lock().unwrap(), [said]);
        let mut expected: Vec<i64> = (0..9).chain(100..109).collect();
        match outcome {
            Ok(_) => expected.extend((1000..1030).chain(2000..2030)),
            Err(error) => {
                assert_eq!((error.kind(), goes_on), (Kind::DataLoss, false), "{}", error.chain());
                assert!(error.chain().contains(&format!("{said}: the topic was created anew")), "{}", error.chain());
            }
        }
        assert_eq!(visible(&world).await, expected);
        assert_eq!(expected.len() > 18, goes_on);
    }
}

/// Of the second partition nothing was read, but the first one shows that both are others.
#[tokio::test]
async fn a_topic_that_was_created_anew_is_noticed_as_a_whole() {
    let world = World::new();
    world.append("input", 0, 0..0);
    world.append("input", 1, 100..105);
    let script = script(MEMORY, ", 'scan.startup.mode' = 'latest-offset', 'scan.on-data-loss' = 'continue'");
    let run = async || run_to_end(world.plan(&script, None).await).await.unwrap();
    run().await;
    world.append("input", 0, 0..9);
    run().await;
    assert_eq!(visible(&world).await, (0..9).collect::<Vec<_>>());
    world.memory.recreate("input");
    world.append("input", 0, 1000..1020);
    world.append("input", 1, 2000..2020);
    for which in ["first", "second"] {
        run().await;
        let expected: Vec<i64> = (0..9).chain(1000..1020).chain(2000..2020).collect();
        assert_eq!(visible(&world).await, expected, "the {which} run after that");
    }
}

/// What the first epoch of a topic that was created anew has published is not read again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_at_any_call_after_a_topic_was_created_anew_changes_nothing() {
    for target in [FILES, MEMORY] {
        let script = script(target, ", 'scan.on-data-loss' = 'continue'");
        for moment in [Moment::Before, Moment::After] {
            for k in 1.. {
                let world = world();
                let run = async || run_to_end(world.plan(&script, Some(&Gate::new(0, moment))).await).await.unwrap();
                run().await;
                world.memory.recreate("input");
                world.append("input", 0, 1000..1011);
                world.append("input", 1, 2000..2011);
                let is_stopped = crash(&world, &script, &Gate::new(k, moment)).await;
                run().await;
                let expected: Vec<i64> = (0..9).chain(100..109).chain(1000..1011).chain(2000..2011).collect();
                assert_eq!(visible(&world).await, expected, "{target}, stopped {moment:?} call {k}");
                if !is_stopped {
                    assert!(k > 20, "the gate sees too little");
                    break;
                }
            }
        }
    }
}

//! A generated family of queries: windows, sessions, groups that change, first and last rows; aggregates, keys and filters
//! of chance; over rows with disorder and NULLs, cut into epochs of chance, stopped at a call of chance.
//!
//! Each must give DataFusion's batch answer over the rows that the watermark rule does not drop. That rule is said once
//! more here, in SQL: each row stands beside the watermark of the epoch before the one that read it.

use std::cell::Cell;

use millstream::storage::faults::Moment;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::cases::Case;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Question {
    Tumble(i64),
    Hop(i64, i64),
    Cumulate(i64, i64),
    DateBin(i64),
    /// The gap, in ms.
    Session(i64),
    /// Groups without a window.
    Groups,
    /// The first row of each item by event time.
    First,
    /// The last one, which changes.
    Last,
}

/// Item, price, milliseconds after the row before, how far back it goes (none: no time at all), its partition.
type Row = (Option<u8>, Option<i32>, u32, Option<u32>, u32);

#[derive(Debug, Clone)]
struct Drawn {
    question: Question,
    aggregates: Vec<&'static str>,
    by_item: bool,
    filter: bool,
    rows: Vec<Row>,
    delay_s: u32,
    epochs: Vec<usize>,
    parallelism: usize,
    stop: (u64, Moment),
    partitions: u32,
}

/// Aggregates whose states do not grow, and after them others.
const AGGREGATES: &[&str] = &[
    "count(*)",
    "count(price)",
    "sum(price)",
    "min(price)",
    "max(price)",
    "min(item)",
    "bit_xor(price)",
    "bool_or(price > 50)",
    "avg(price)",
    "count(*) FILTER (WHERE price > 50)",
    "count(DISTINCT item)",
    "first_value(price ORDER BY ts, price)",
    "count(DISTINCT price)",
    "sum(DISTINCT price)",
    "median(price)",
    "array_to_string(array_agg(price ORDER BY price, item), '+')",
    "string_agg(item, '+' ORDER BY item, price)",
];
const SMALL: usize = 10;

fn drawn() -> impl Strategy<Value = Drawn> {
    let question = prop_oneof![
        2 => (1i64..8).prop_map(Question::Tumble),
        2 => (1i64..6, 1i64..5).prop_map(|(slide, times)| Question::Hop(slide, slide * times)),
        2 => (1i64..6, 1i64..5).prop_map(|(step, times)| Question::Cumulate(step, step * times)),
        2 => (1i64..8).prop_map(Question::DateBin),
        3 => (100i64..3000).prop_map(Question::Session),
        1 => Just(Question::Groups),
        2 => Just(Question::First),
        1 => Just(Question::Last),
    ];
    let row = (
        proptest::option::weighted(0.9, 0u8..4),
        proptest::option::weighted(0.9, 0i32..100),
        0u32..1500,
        proptest::option::weighted(0.97, 0u32..6000),
        0u32..2,
    );
    let aggregates = prop_oneof![
        proptest::sample::subsequence(AGGREGATES, 1..4),
        proptest::sample::subsequence(&AGGREGATES[..SMALL], 1..4),
    ];
    (
        question,
        aggregates,
        any::<bool>(),
        any::<bool>(),
        proptest::collection::vec(row, 1..60),
        0u32..2,
        proptest::collection::vec(1usize..15, 1..12),
        1usize..4,
        (1u64..100, prop_oneof![Just(Moment::Before), Just(Moment::After)]),
        1u32..3,
    )
        .prop_map(
            |(question, aggregates, by_item, filter, rows, delay_s, epochs, parallelism, stop, partitions)| {
                let is_small = |aggregate: &&str| AGGREGATES[..SMALL].contains(aggregate);
                let mut drawn = Drawn {
                    question,
                    aggregates,
                    by_item,
                    filter,
                    rows,
                    delay_s,
                    epochs,
                    parallelism,
                    stop,
                    partitions,
                };
                match question {
                    // Sessions that a late row would lie between come out apart, where a batch makes them one.
                    Question::Session(_) => drawn.delay_s = 6,
                    Question::Groups => drawn.by_item = true,
                    _ => return drawn,
                }
                drawn.aggregates.retain(is_small);
                if drawn.aggregates.is_empty() {
                    drawn.aggregates.push("count(*)");
                }
                drawn
            },
        )
}

impl Drawn {
    /// The target's columns.
    fn columns(&self) -> String {
        let mut columns = match self.question {
            Question::First | Question::Last => {
                return "item STRING, ts TIMESTAMP(3), price INT".replace(
                    ", price INT",
                    // Of rows with one time, which is the first does not show.
                    if self.question == Question::First { "" } else { ", price INT" },
                );
            }
            Question::Groups => vec![],
            _ => vec!["start TIMESTAMP(3)".to_owned(), "finish TIMESTAMP(3)".to_owned()],
        };
        columns.extend(self.by_item.then(|| "item STRING".to_owned()));
        columns.extend((0..self.aggregates.len()).map(|index| format!("a{index} STRING")));
        columns.join(", ")
    }

    /// The SELECT; over the rows that are in time, if `in_time`.
    fn select(&self, in_time: bool) -> String {
        let kept = |from: String, last: &str| match in_time {
            true => format!(
                "(SELECT * FROM {from} WHERE {last} IS NOT NULL AND ({last} > late_before OR late_before IS NULL))"
            ),
            false => from,
        };
        let window = |name: &str, lengths: &[i64]| {
            let lengths: Vec<String> = lengths.iter().map(|s| format!("INTERVAL '{s}' SECOND")).collect();
            kept(format!("TABLE({name}(TABLE bids, DESCRIPTOR(ts), {}))", lengths.join(", ")), "window_end")
        };
        let bids = || "bids".to_owned();
        let mut filter = if self.filter { "WHERE price IS NULL OR price % 7 <> 3" } else { "" };
        let from = match self.question {
            Question::Tumble(size) => window("TUMBLE", &[size]),
            Question::Hop(slide, size) => window("HOP", &[slide, size]),
            Question::Cumulate(step, size) => window("CUMULATE", &[step, size]),
            Question::DateBin(size) => kept(
                format!(
                    "(SELECT *, date_bin(INTERVAL '{size} seconds', ts) AS window_start,
                      date_bin(INTERVAL '{size} seconds', ts) + INTERVAL '{size} seconds' AS window_end FROM bids)"
                ),
                "window_end",
            ),
            Question::Session(gap) => {
                let gap = format!("INTERVAL '{}.{:03}' SECOND", gap / 1000, gap % 1000);
                let filter = std::mem::take(&mut filter);
                let key = if self.by_item { "PARTITION BY item" } else { "" };
                let rows = kept(format!("(SELECT * FROM bids {filter})"), &format!("ts + {gap}"));
                let rows = if rows.starts_with("(SELECT") { rows } else { format!("(SELECT * FROM {rows})") };
                format!("TABLE(SESSION({rows} {key}, DESCRIPTOR(ts), {gap}))")
            }
            Question::Groups => bids(),
            Question::First | Question::Last => {
                let (rows, order, price) = match self.question {
                    // A row at the watermark is not late.
                    Question::First => (kept(bids(), "ts + INTERVAL '0.001' SECOND"), "ts", ""),
                    _ => (bids(), "ts DESC NULLS LAST, price DESC NULLS LAST", ", price"),
                };
                return format!(
                    "SELECT item, ts{price} FROM (SELECT *, ROW_NUMBER() OVER (PARTITION BY item ORDER BY {order}) AS place
                     FROM {rows} {filter}) WHERE place = 1"
                );
            }
        };
        let mut keys = if self.question == Question::Groups { vec![] } else { vec!["window_start", "window_end"] };
        keys.extend(self.by_item.then_some("item"));
        let keys = keys.join(", ");
        let aggregates: Vec<String> = self.aggregates.iter().map(|a| format!("CAST({a} AS STRING)")).collect();
        format!("SELECT {keys}, {} FROM {from} {filter} GROUP BY {keys}", aggregates.join(", "))
    }

    fn case(&self) -> Case {
        let bids = format!(
            "bids (item STRING, price INT, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '{}' SECOND)",
            self.delay_s
        );
        let out = format!("out ({})", self.columns());
        let mut case = Case::of(vec![bids, out], format!("INSERT INTO out {}", self.select(false)));
        let mut now = 0;
        for (item, price, forward, back, partition) in &self.rows {
            now += forward;
            let time = back.map_or("NULL".to_owned(), |back| {
                let at = now.saturating_sub(back);
                format!("00:{:02}:{:02}.{:03}", at / 60_000, at / 1000 % 60, at % 1000)
            });
            let item = item.map_or("NULL".to_owned(), |item| format!("item{item}"));
            let price = price.map_or("NULL".to_owned(), |price| price.to_string());
            case.add_row("bids", partition % self.partitions, format!("{item}, {price}, {time}"));
        }
        case
    }
}

#[test]
fn a_family_of_queries_gives_the_batch_answer_over_the_rows_in_time() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (any_late, all_in_time, stopped) = (Cell::new(0), Cell::new(0), Cell::new(0));
    // The same cases every time; another seed finds others.
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let cases = std::env::var("MILLSTREAM_FAMILY").map_or(200, |cases| cases.parse().unwrap());
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 200, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, rng);
    let outcome = runner.run(&drawn(), |drawn| {
        let case = drawn.case();
        let ran = runtime.block_on(case.run(&drawn.epochs, drawn.parallelism, Some(drawn.stop)));
        let expected = runtime.block_on(case.batch_answer_to(&drawn.select(true), &ran.late_before)).unwrap();
        let seen = if ran.late > 0 { &any_late } else { &all_in_time };
        seen.set(seen.get() + 1);
        stopped.set(stopped.get() + u32::from(ran.stopped));
        prop_assert_eq!(ran.answer, expected);
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
    let (late, not) = (any_late.get(), all_in_time.get());
    assert!(late > 50 && not > 30, "{late} with late rows, {not} without");
    assert!(stopped.get() > 100, "only {} were stopped", stopped.get());
}

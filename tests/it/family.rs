//! A generated family of queries: windows, aggregates, keys and filters of chance, over rows with disorder and NULLs, cut
//! into epochs of chance, with a restart in between.
//!
//! Each must give DataFusion's batch answer over the rows that are in time. Which rows are late follows from the watermark
//! rule: with late rows, no group may come out twice, and none that the batch does not have.

use std::cell::Cell;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::cases::{Case, Ran};

/// How a row's time becomes a window.
#[derive(Debug, Clone, Copy)]
enum Window {
    Tumble(i64),
    Hop(i64, i64),
    Cumulate(i64, i64),
    DateBin(i64),
}

impl Window {
    /// The table that is read, and what is grouped by.
    fn sql(self) -> (String, &'static str) {
        let over = |name: &str, lengths: &[i64]| {
            let lengths: Vec<String> = lengths.iter().map(|s| format!("INTERVAL '{s}' SECOND")).collect();
            format!("TABLE({name}(TABLE bids, DESCRIPTOR(ts), {}))", lengths.join(", "))
        };
        match self {
            Self::Tumble(size) => (over("TUMBLE", &[size]), "window_start, window_end"),
            Self::Hop(slide, size) => (over("HOP", &[slide, size]), "window_start, window_end"),
            Self::Cumulate(step, size) => (over("CUMULATE", &[step, size]), "window_start, window_end"),
            Self::DateBin(size) => (
                format!(
                    "(SELECT *, date_bin(INTERVAL '{size} seconds', ts) AS window_start,
                      date_bin(INTERVAL '{size} seconds', ts) + INTERVAL '{size} seconds' AS window_end FROM bids)"
                ),
                "window_start, window_end",
            ),
        }
    }
}

/// Item, price, milliseconds after the row before, how far back it goes, its partition.
type Row = (Option<u8>, Option<i32>, u32, u32, u32);

#[derive(Debug, Clone)]
struct Drawn {
    window: Window,
    aggregates: Vec<&'static str>,
    by_item: bool,
    filter: bool,
    rows: Vec<Row>,
    delay_s: u32,
    epochs: Vec<usize>,
    parallelism: usize,
    restart_after: usize,
    partitions: u32,
}

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
    "count(DISTINCT item)",
    "first_value(price ORDER BY ts, price)",
    "count(DISTINCT price)",
    "sum(DISTINCT price)",
    "median(price)",
    "count(*) FILTER (WHERE price > 50)",
    "array_to_string(array_agg(price ORDER BY price, item), '+')",
    "string_agg(item, '+' ORDER BY item, price)",
];

fn drawn() -> impl Strategy<Value = Drawn> {
    let window = prop_oneof![
        (1i64..8).prop_map(Window::Tumble),
        (1i64..6, 1i64..5).prop_map(|(slide, times)| Window::Hop(slide, slide * times)),
        (1i64..6, 1i64..5).prop_map(|(step, times)| Window::Cumulate(step, step * times)),
        (1i64..8).prop_map(Window::DateBin),
    ];
    let row = (
        proptest::option::weighted(0.9, 0u8..4),
        proptest::option::weighted(0.9, 0i32..100),
        0u32..1500,
        0u32..6000,
        0u32..2,
    );
    (
        window,
        proptest::sample::subsequence(AGGREGATES, 1..4),
        any::<bool>(),
        any::<bool>(),
        proptest::collection::vec(row, 1..60),
        0u32..2,
        proptest::collection::vec(1usize..15, 1..12),
        1usize..4,
        0usize..6,
        1u32..3,
    )
        .prop_map(
            |(window, aggregates, by_item, filter, rows, delay_s, epochs, parallelism, restart_after, partitions)| {
                Drawn {
                    window,
                    aggregates,
                    by_item,
                    filter,
                    rows,
                    delay_s,
                    epochs,
                    parallelism,
                    restart_after,
                    partitions,
                }
            },
        )
}

impl Drawn {
    fn case(&self) -> Case {
        let (from, window) = self.window.sql();
        let item = if self.by_item { ", item" } else { "" };
        let filter = if self.filter { "WHERE price IS NULL OR price % 7 <> 3" } else { "" };
        let names: Vec<String> = (0..self.aggregates.len()).map(|index| format!("a{index} STRING")).collect();
        let aggregates: Vec<String> = self.aggregates.iter().map(|a| format!("CAST({a} AS STRING)")).collect();
        let target = if self.by_item { "item STRING, " } else { "" };
        let mut case = Case::of(
            vec![
                format!(
                    "bids (item STRING, price INT, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '{}' SECOND)",
                    self.delay_s
                ),
                format!("out (start TIMESTAMP(3), finish TIMESTAMP(3), {target}{})", names.join(", ")),
            ],
            format!(
                "INSERT INTO out SELECT {window}{item}, {} FROM {from} {filter} GROUP BY {window}{item}",
                aggregates.join(", ")
            ),
        );
        let mut now = 0;
        for (item, price, forward, back, partition) in &self.rows {
            now += forward;
            let at = now.saturating_sub(*back);
            let (minutes, seconds, millis) = (at / 60_000, at / 1000 % 60, at % 1000);
            let item = item.map_or("NULL".to_owned(), |item| format!("item{item}"));
            let price = price.map_or("NULL".to_owned(), |price| price.to_string());
            case.add_row(
                "bids",
                partition % self.partitions,
                format!("{item}, {price}, 00:{minutes:02}:{seconds:02}.{millis:03}"),
            );
        }
        case
    }
}

#[test]
fn a_family_of_queries_gives_the_batch_answer_over_the_rows_in_time() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (any_late, all_in_time) = (Cell::new(0), Cell::new(0));
    // The same cases every time; another seed finds others.
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let config = Config { cases: 150, failure_persistence: None, max_shrink_iters: 200, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, rng);
    let outcome = runner.run(&drawn(), |drawn| {
        let case = drawn.case();
        let Ran { answer, late } = runtime.block_on(case.run(&drawn.epochs, drawn.parallelism, drawn.restart_after));
        let expected = runtime.block_on(case.batch_answer()).unwrap();
        if late == 0 {
            all_in_time.set(all_in_time.get() + 1);
            prop_assert_eq!(answer, expected);
        } else {
            // What is there was in time: every window of the answer is one of the batch's, none twice.
            any_late.set(any_late.get() + 1);
            let windows = |rows: &[String]| {
                let key =
                    |row: &String| row.split(", ").take(2 + usize::from(drawn.by_item)).collect::<Vec<_>>().join(", ");
                rows.iter().map(key).collect::<Vec<_>>()
            };
            let (found, all) = (windows(&answer), windows(&expected));
            let mut once = found.clone();
            once.dedup();
            prop_assert_eq!(&found, &once, "a group came out twice");
            prop_assert!(found.iter().all(|window| all.contains(window)), "a group that is not in the batch's answer");
        }
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
    let (late, not) = (any_late.get(), all_in_time.get());
    assert!(late > 5 && not > 20, "{late} with late rows, {not} without");
}

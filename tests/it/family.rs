//! A generated family of queries: windows, and windows over them, sessions, groups that change, what is distinct, first,
//! last and top rows; aggregates, types, keys and filters of chance; over rows with disorder and NULLs, cut into epochs of
//! chance, stopped at a call of chance.
//!
//! Each must give DataFusion's batch answer over the rows that the watermark rule does not drop, floating-point numbers as
//! `docs/state.md` promises them. That rule is said once more here, in SQL: each row stands beside the watermark of the
//! epoch before the one that read it.

use std::cell::Cell;

use millstream::storage::faults::Moment;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::cases::{APPROXIMATION, Case, ROUNDING, is_same};

/// What is asked. Lengths are in seconds, unless something else is said.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Question {
    /// The size, and the offset.
    Tumble(i64, i64),
    /// The slide, the size, and the offset.
    Hop(i64, i64, i64),
    Cumulate(i64, i64, i64),
    DateBin(i64),
    /// The gap, in ms.
    Session(i64),
    /// Windows over windows: the sizes of both.
    Nested(i64, i64),
    /// Each window with its items, and as a whole.
    Rollup(i64),
    /// The different rows of each window.
    Distinct(i64),
    /// So many rows of each window.
    Top(i64, usize),
    /// Groups without a window.
    Groups,
    /// The different prices of groups without a window.
    Uniques,
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
    /// The types of item and price.
    types: (&'static str, &'static str),
    by_item: bool,
    filter: bool,
    having: bool,
    rows: Vec<Row>,
    delay_s: u32,
    epochs: Vec<usize>,
    parallelism: usize,
    stop: (u64, Moment),
    partitions: u32,
}

const ITEMS: &[&str] = &["STRING", "BIGINT", "DOUBLE", "DECIMAL(6, 2)", "BOOLEAN", "DATE"];
const PRICES: &[&str] = &["INT", "BIGINT", "DOUBLE", "DECIMAL(10, 2)"];

/// Aggregates whose states do not grow, and after them others.
const AGGREGATES: &[&str] = &[
    "count(*)",
    "count(price)",
    "sum(price)",
    "min(price)",
    "max(price)",
    "min(item)",
    "bit_xor(CAST(price AS BIGINT))",
    "bool_or(price > 50)",
    "avg(price)",
    "count(*) FILTER (WHERE price > 50)",
    "stddev(CAST(price AS DOUBLE))",
    "var_pop(CAST(price AS DOUBLE))",
    // Of whole numbers: of all the same ones, sums that are rounded may say that they vary.
    "corr(CAST(price AS BIGINT), second(ts))",
    "count(DISTINCT item)",
    "first_value(price ORDER BY ts, price)",
    "count(DISTINCT price)",
    "sum(DISTINCT price)",
    "median(price)",
    "array_to_string(array_agg(price ORDER BY price, item), '+')",
    "string_agg(CAST(item AS STRING), '+' ORDER BY item, price)",
    "approx_distinct(CAST(item AS STRING))",
    "approx_median(CAST(price AS DOUBLE))",
    "approx_percentile_cont(CAST(price AS DOUBLE), 0.9)",
];
const SMALL: usize = 13;

fn drawn() -> impl Strategy<Value = Drawn> {
    let question = prop_oneof![
        2 => (1i64..8, offset()).prop_map(|(size, offset)| Question::Tumble(size, offset)),
        2 => (1i64..6, 1i64..5, offset()).prop_map(|(slide, times, offset)| Question::Hop(slide, slide * times, offset)),
        2 => (1i64..6, 1i64..5, offset()).prop_map(|(step, times, offset)| Question::Cumulate(step, step * times, offset)),
        2 => (1i64..8).prop_map(Question::DateBin),
        3 => (100i64..3000).prop_map(Question::Session),
        1 => (1i64..5, 1i64..15).prop_map(|(inner, outer)| Question::Nested(inner, outer)),
        1 => (1i64..8).prop_map(Question::Rollup),
        1 => (1i64..8).prop_map(Question::Distinct),
        1 => (1i64..8, 1usize..4).prop_map(|(size, places)| Question::Top(size, places)),
        1 => Just(Question::Groups),
        1 => Just(Question::Uniques),
        2 => Just(Question::First),
        1 => Just(Question::Last),
    ];
    let row = (
        proptest::option::weighted(0.9, 0u8..4),
        proptest::option::weighted(0.9, 0i32..100),
        0u32..1500,
        proptest::option::weighted(0.97, 0u32..6000),
        0u32..3,
    );
    let aggregates = prop_oneof![
        proptest::sample::subsequence(AGGREGATES, 1..4),
        proptest::sample::subsequence(&AGGREGATES[..SMALL], 1..4),
    ];
    (
        question,
        aggregates,
        (proptest::sample::select(ITEMS), proptest::sample::select(PRICES)),
        (any::<bool>(), any::<bool>(), proptest::bool::weighted(0.2)),
        proptest::collection::vec(row, 1..60),
        0u32..2,
        proptest::collection::vec(1usize..15, 1..12),
        1usize..4,
        (1u64..100, prop_oneof![Just(Moment::Before), Just(Moment::After)]),
        1u32..4,
    )
        .prop_map(
            |(question, aggregates, types, clauses, rows, delay_s, epochs, parallelism, stop, partitions)| {
                let (by_item, filter, having) = clauses;
                let mut drawn = Drawn {
                    question,
                    aggregates,
                    types,
                    by_item,
                    filter,
                    having,
                    rows,
                    delay_s,
                    epochs,
                    parallelism,
                    stop,
                    partitions,
                };
                drawn.fit();
                drawn
            },
        )
}

/// Half of the windows begin at whole multiples of their size.
fn offset() -> impl Strategy<Value = i64> {
    prop_oneof![Just(0i64), -4i64..5]
}

/// A number as a value of a type.
fn value(data_type: &str, number: i32) -> String {
    match data_type {
        "STRING" => format!("item{number}"),
        "DOUBLE" => format!("{number}.1"),
        "BOOLEAN" => (number % 2 == 0).to_string(),
        "DATE" => format!("2026-01-{:02}", number + 1),
        _ if data_type.starts_with("DECIMAL") => format!("{number}.25"),
        _ => number.to_string(),
    }
}

impl Drawn {
    /// What was drawn, and the question does not allow, becomes what it does.
    fn fit(&mut self) {
        let is_small = |aggregate: &&str| AGGREGATES[..SMALL].contains(aggregate);
        match self.question {
            // Sessions that a late row would lie between come out apart, where a batch makes them one.
            Question::Session(_) => self.delay_s = 6,
            Question::Groups | Question::Rollup(_) => self.by_item = true,
            Question::Uniques => {
                (self.by_item, self.having, self.aggregates) = (true, false, vec!["count(DISTINCT price)"])
            }
            Question::First | Question::Last => (self.by_item, self.aggregates) = (true, vec![]),
            Question::Distinct(_) | Question::Top(..) => self.aggregates.clear(),
            _ => {}
        }
        if matches!(self.question, Question::Session(_) | Question::Groups) {
            self.aggregates.retain(is_small);
            if self.aggregates.is_empty() {
                self.aggregates.push("count(*)");
            }
        }
    }

    /// What is grouped by: the window, if there is one, and the item, if it is asked for.
    fn keys(&self) -> Vec<&'static str> {
        let mut keys = match self.question {
            Question::Groups | Question::Uniques | Question::First | Question::Last => vec![],
            _ => vec!["window_start", "window_end"],
        };
        keys.extend(self.by_item.then_some("item"));
        keys
    }

    /// What is asked for, each with the target's column.
    fn columns(&self) -> Vec<(String, String)> {
        let column = |asked: &str| {
            let (name, data_type) = match asked {
                "item" => ("item", self.types.0),
                "price" => ("price", self.types.1),
                "place" => ("place", "BIGINT"),
                "grouping(item)" => ("level", "INT"),
                "window_start" => ("start", "TIMESTAMP(3)"),
                "window_end" => ("finish", "TIMESTAMP(3)"),
                other => (other, "TIMESTAMP(3)"),
            };
            (asked.to_owned(), format!("{name} {data_type}"))
        };
        let more: &[&str] = match self.question {
            // Of rows with one time, which is the first does not show.
            Question::First => &["ts"],
            Question::Last => &["ts", "price"],
            Question::Distinct(_) => &["price"],
            Question::Top(..) => &["price", "ts", "place"],
            Question::Rollup(_) => &["grouping(item)"],
            _ => &[],
        };
        let mut columns: Vec<(String, String)> = self.keys().iter().chain(more).map(|asked| column(asked)).collect();
        let aggregates = self.aggregates.iter().enumerate();
        columns.extend(aggregates.map(|(index, a)| (format!("CAST({a} AS STRING)"), format!("a{index} STRING"))));
        columns
    }

    /// The SELECT; over the rows that are in time, if `in_time`.
    fn select(&self, in_time: bool) -> String {
        let kept = |from: String, last: &str| match in_time {
            true => format!(
                "(SELECT * FROM {from} WHERE {last} IS NOT NULL AND ({last} > late_before OR late_before IS NULL))"
            ),
            false => from,
        };
        let window = |name: &str, lengths: &[i64], offset: i64| {
            let lengths = lengths.iter().chain((offset != 0).then_some(&offset));
            let lengths: Vec<String> = lengths.map(|s| format!("INTERVAL '{s}' SECOND")).collect();
            kept(format!("TABLE({name}(TABLE bids, DESCRIPTOR(ts), {}))", lengths.join(", ")), "window_end")
        };
        let bids = || "bids".to_owned();
        let mut filter = if self.filter { "WHERE price IS NULL OR CAST(price AS BIGINT) % 7 <> 3" } else { "" };
        let from = match self.question {
            Question::Tumble(size, offset) => window("TUMBLE", &[size], offset),
            Question::Hop(slide, size, offset) => window("HOP", &[slide, size], offset),
            Question::Cumulate(step, size, offset) => window("CUMULATE", &[step, size], offset),
            Question::Rollup(size) | Question::Distinct(size) | Question::Top(size, _) => window("TUMBLE", &[size], 0),
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
            Question::Nested(inner, outer) => format!(
                "TABLE(TUMBLE((SELECT item, max(price) AS price, window_time AS ts FROM {}
                 GROUP BY window_start, window_end, window_time, item), DESCRIPTOR(ts), INTERVAL '{outer}' SECOND))",
                window("TUMBLE", &[inner], 0)
            ),
            Question::Groups | Question::Uniques | Question::Last => bids(),
            // A row at the watermark is not late.
            Question::First => kept(bids(), "ts + INTERVAL '0.001' SECOND"),
        };
        let columns: Vec<String> = self.columns().into_iter().map(|(asked, _)| asked).collect();
        let (columns, keys) = (columns.join(", "), self.keys().join(", "));
        let ranked = |order: &str, places: usize| {
            format!(
                "SELECT {columns} FROM (SELECT *, ROW_NUMBER() OVER (PARTITION BY {keys} ORDER BY {order}) AS place
                 FROM {from} {filter}) WHERE place <= {places}"
            )
        };
        let having = if self.having { "HAVING count(*) > 1" } else { "" };
        match self.question {
            Question::First => ranked("ts", 1),
            Question::Last => ranked("ts DESC NULLS LAST, price DESC NULLS LAST", 1),
            Question::Top(_, places) => {
                // Many rows are equal in this order. One alone is the first by its position, several come by what is read of them.
                let ties = match (in_time, places) {
                    (false, _) => "",
                    (true, 1) => ", row_at",
                    (true, _) => ", price NULLS FIRST, ts NULLS FIRST",
                };
                ranked(&format!("CAST(price AS BIGINT) / 10{ties}"), places)
            }
            Question::Distinct(_) => format!("SELECT DISTINCT {columns} FROM {from} {filter}"),
            Question::Rollup(_) => format!(
                "SELECT {columns} FROM {from} {filter} GROUP BY window_start, window_end, ROLLUP (item) {having}"
            ),
            _ => format!("SELECT {columns} FROM {from} {filter} GROUP BY {keys} {having}"),
        }
    }

    /// By how much the numbers of a column may differ from the batch's.
    fn tolerance(&self, column: usize) -> f64 {
        let is_approximate = |(asked, _): &(String, String)| asked.contains("approx_");
        if self.columns().get(column).is_some_and(is_approximate) { APPROXIMATION } else { ROUNDING }
    }

    fn case(&self) -> Case {
        let bids = format!(
            "bids (item {}, price {}, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '{}' SECOND)",
            self.types.0, self.types.1, self.delay_s
        );
        let columns: Vec<String> = self.columns().into_iter().map(|(_, column)| column).collect();
        let out = format!("out ({})", columns.join(", "));
        let mut case = Case::of(vec![bids, out], format!("INSERT INTO out {}", self.select(false)));
        let mut now = 0;
        for (item, price, forward, back, partition) in &self.rows {
            now += forward;
            let time = back.map_or("NULL".to_owned(), |back| {
                let at = now.saturating_sub(back);
                format!("00:{:02}:{:02}.{:03}", at / 60_000, at / 1000 % 60, at % 1000)
            });
            let item = item.map_or("NULL".to_owned(), |item| value(self.types.0, item.into()));
            let price = price.map_or("NULL".to_owned(), |price| value(self.types.1, price));
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
    let cases = std::env::var("MILLSTREAM_FAMILY").map_or(240, |cases| cases.parse().unwrap());
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 200, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, rng);
    let outcome = runner.run(&drawn(), |drawn| {
        let case = drawn.case();
        let ran = runtime.block_on(case.run(&drawn.epochs, drawn.parallelism, Some(drawn.stop)));
        let expected = runtime.block_on(case.batch_answer_to(&drawn.select(true), &ran.late_before)).unwrap();
        let seen = if ran.late > 0 { &any_late } else { &all_in_time };
        seen.set(seen.get() + 1);
        stopped.set(stopped.get() + u32::from(ran.stopped));
        let is_same = is_same(&ran.answer, &expected, |column| drawn.tolerance(column));
        prop_assert!(is_same, "{}: {:#?}, and of a batch {expected:#?}", drawn.select(false), ran.answer);
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
    let (late, not) = (any_late.get(), all_in_time.get());
    assert!(late > 50 && not > 30, "{late} with late rows, {not} without");
    assert!(stopped.get() > 100, "only {} were stopped", stopped.get());
}

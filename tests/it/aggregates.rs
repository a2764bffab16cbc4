//! Every aggregate function that DataFusion has, over a stream: in windows, without one, and in sessions.
//!
//! Each gives DataFusion's batch answer over the same rows, or is refused by name. A function that is missing in the table
//! fails the test: so another version of DataFusion is noticed.

use std::collections::BTreeSet;

use datafusion::functions_aggregate::all_default_aggregate_functions;

use crate::cases::{APPROXIMATION, Case, ROUNDING, is_same};

/// Where a call is answered.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Runs {
    /// Its state does not grow.
    Everywhere,
    /// It grows: in windows, and not in sessions.
    InWindows,
    /// Its answer would depend on how rows arrive.
    Nowhere,
}
use Runs::{Everywhere, InWindows, Nowhere};

/// Functions, calls of them, and where these are answered.
const CALLS: &[(&str, &str, Runs)] = &[
    ("any_value", "any_value(price)", Nowhere),
    ("any_value", "any_value(price ORDER BY ts)", Nowhere),
    ("approx_distinct", "approx_distinct(n)", InWindows),
    ("approx_median", "approx_median(price)", InWindows),
    ("approx_percentile_cont", "approx_percentile_cont(0.9) WITHIN GROUP (ORDER BY price)", InWindows),
    (
        "approx_percentile_cont_with_weight",
        "approx_percentile_cont_with_weight(n, 0.5) WITHIN GROUP (ORDER BY price)",
        InWindows,
    ),
    ("array_agg", "array_to_string(array_agg(price ORDER BY ts), '+')", InWindows),
    ("array_agg", "array_to_string(array_agg(price), '+')", Nowhere),
    ("avg", "avg(price)", Everywhere),
    ("bit_and", "bit_and(n)", Everywhere),
    ("bit_or", "bit_or(n)", Everywhere),
    ("bit_xor", "bit_xor(n)", Everywhere),
    ("bool_and", "bool_and(n > 3)", Everywhere),
    ("bool_or", "bool_or(n > 15)", Everywhere),
    ("corr", "corr(price, n)", Everywhere),
    ("count", "count(price)", Everywhere),
    ("covar_pop", "covar_pop(price, n)", Everywhere),
    ("covar_samp", "covar_samp(price, n)", Everywhere),
    ("first_value", "first_value(price ORDER BY ts)", InWindows),
    ("first_value", "first_value(price)", Nowhere),
    ("grouping", "grouping(item)", Everywhere),
    ("last_value", "last_value(price ORDER BY ts)", InWindows),
    ("last_value", "last_value(price)", Nowhere),
    ("max", "max(price)", Everywhere),
    ("median", "median(price)", InWindows),
    ("min", "min(price)", Everywhere),
    ("nth_value", "nth_value(price, 2 ORDER BY ts)", InWindows),
    ("nth_value", "nth_value(price, 2)", Nowhere),
    ("percentile_cont", "percentile_cont(0.25) WITHIN GROUP (ORDER BY price)", InWindows),
    ("regr_avgx", "regr_avgx(price, n)", Everywhere),
    ("regr_avgy", "regr_avgy(price, n)", Everywhere),
    ("regr_count", "regr_count(price, n)", Everywhere),
    ("regr_intercept", "regr_intercept(price, n)", Everywhere),
    ("regr_r2", "regr_r2(price, n)", Everywhere),
    ("regr_slope", "regr_slope(price, n)", Everywhere),
    ("regr_sxx", "regr_sxx(price, n)", Everywhere),
    ("regr_sxy", "regr_sxy(price, n)", Everywhere),
    ("regr_syy", "regr_syy(price, n)", Everywhere),
    ("stddev", "stddev(price)", Everywhere),
    ("stddev_pop", "stddev_pop(price)", Everywhere),
    ("string_agg", "string_agg(CAST(price AS STRING), '+' ORDER BY ts)", InWindows),
    ("string_agg", "string_agg(CAST(price AS STRING), '+')", Nowhere),
    ("sum", "sum(price)", Everywhere),
    ("var", "var(price)", Everywhere),
    ("var_pop", "var_pop(price)", Everywhere),
];

/// What is grouped, by what besides the item, and where calls must be answered to be answered there.
const GROUPS: [(&str, &str, &[Runs]); 3] = [
    (
        "TABLE(TUMBLE(TABLE bids, DESCRIPTOR(ts), INTERVAL '10' SECOND))",
        "window_start, window_end, ",
        &[Everywhere, InWindows],
    ),
    ("bids", "", &[Everywhere]),
    (
        "TABLE(SESSION(TABLE bids PARTITION BY item, DESCRIPTOR(ts), INTERVAL '4' SECOND))",
        "window_start, window_end, ",
        &[Everywhere],
    ),
];

/// A call over 22 rows of two items and two partitions, a second apart, with a pause after every sixth: no two have the
/// same time, some groups have one row, and one price is NULL.
fn case(call: &str, from: &str, windows: &str) -> Case {
    let bids = "bids (item STRING, price DOUBLE, n INT, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '5' SECOND)";
    let times = if windows.is_empty() { "" } else { "begins TIMESTAMP(3), ends TIMESTAMP(3), " };
    let out = format!("out ({times}item STRING, answer STRING)");
    let select = format!("SELECT {windows}item, CAST({call} AS STRING) FROM {from} GROUP BY {windows}item");
    let mut case = Case::of(vec![bids.to_owned(), out], format!("INSERT INTO out {select}"));
    for i in 0..22 {
        let item = if i % 3 == 0 { "pear" } else { "apple" };
        let price = if i == 9 { "NULL".to_owned() } else { format!("{}.1", i * 37 % 23) };
        let (n, second) = (i * 11 % 17 + 1, i + i / 6 * 7);
        case.add_row("bids", i % 2, format!("{item}, {price}, {n}, 00:00:{second:02}"));
    }
    case
}

#[test]
fn the_table_has_every_aggregate_function() {
    let functions = all_default_aggregate_functions();
    let functions: BTreeSet<&str> = functions.iter().map(|function| function.name()).collect();
    let called: BTreeSet<&str> = CALLS.iter().map(|(function, ..)| *function).collect();
    assert_eq!(called, functions, "calls of the one, functions of the other");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_aggregate_function_gives_the_batch_answer_or_is_refused_by_name() {
    for (function, call, runs) in CALLS {
        let tolerance = if function.starts_with("approx_") { APPROXIMATION } else { ROUNDING };
        for (from, windows, answered) in GROUPS {
            let case = case(call, from, windows);
            let refusal = case.refusal().await;
            assert_eq!(refusal.is_none(), answered.contains(runs), "{call} over {from}: {refusal:?}");
            if let Some(refusal) = refusal {
                assert!(refusal.contains(function), "{call} over {from}: {refusal}");
                continue;
            }
            let ran = case.run(&[3, 1, 7], 2, None).await;
            assert_eq!(ran.late, 0, "{call} over {from}");
            let expected = case.batch_answer().await.unwrap();
            let is_same = is_same(&ran.answer, &expected, |_| tolerance);
            assert!(is_same, "{call} over {from}: {:#?}, and of a batch {expected:#?}", ran.answer);
        }
    }
}

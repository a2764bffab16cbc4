//! Windows: what they are written out as, what is refused, and what the result says over a static table.

use arrow::array::{Array, RecordBatch};
use arrow::util::display::array_value_to_string;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::prelude::{SessionConfig, SessionContext};
use datafusion::sql::parser::Statement as DFStatement;

use super::super::*;
use super::{one, refused};

/// The text of a query or of an INSERT's query, which says the same when it is parsed again.
fn expanded(sql: &str) -> String {
    let query = match one(sql) {
        Statement::Query(query) => query,
        Statement::Insert(insert) => insert.query,
        Statement::Explain { statement, .. } => match *statement {
            Statement::Query(query) => query,
            other => panic!("{sql}\n{other:?}"),
        },
        other => panic!("{sql}\n{other:?}"),
    };
    let text = query.to_string();
    assert_eq!(parse_query(&text).unwrap(), query, "{text}");
    text
}

fn check(sql: &str, expected: &str) {
    assert_eq!(expanded(sql), expected, "{sql}");
}

/// The text of `TUMBLE` over what stands after FROM, as a derived table.
fn tumble(table: &str, time: &str, size: &str) -> String {
    format!(
        "(SELECT *, window_start + {size} AS window_end, \
         window_start + {size} - INTERVAL '1 millisecond' AS window_time FROM \
         (SELECT *, date_bin({size}, {time}) AS window_start FROM {table}))"
    )
}

/// The text of `SESSION` with this OVER, as a derived table.
fn session(table: &str, over: &str, time: &str, gap: &str) -> String {
    format!(
        "(SELECT *, window_end - INTERVAL '1 millisecond' AS window_time FROM \
         (SELECT *, session_start({time}, {gap}) OVER ({over}) AS window_start, \
         session_end({time}, {gap}) OVER ({over}) AS window_end FROM {table}))"
    )
}

#[test]
fn windows_become_derived_tables() {
    for (call, expected) in [
        (
            "TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '10' SECOND)",
            "SELECT *, window_start + INTERVAL '10' SECOND AS window_end, \
             window_start + INTERVAL '10' SECOND - INTERVAL '1 millisecond' AS window_time FROM \
             (SELECT *, date_bin(INTERVAL '10' SECOND, ts) AS window_start FROM t)",
        ),
        (
            "TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '1' DAY, INTERVAL '-8' HOUR)",
            "SELECT *, window_start + INTERVAL '1' DAY AS window_end, \
             window_start + INTERVAL '1' DAY - INTERVAL '1 millisecond' AS window_time FROM \
             (SELECT *, date_bin(INTERVAL '1' DAY, ts, \
             CAST(TIMESTAMP '1970-01-01 00:00:00' + INTERVAL '-8' HOUR AS TIMESTAMP(9))) AS window_start FROM t)",
        ),
        (
            "HOP(TABLE t, DESCRIPTOR(ts), INTERVAL '5' MINUTES, INTERVAL '10' MINUTES)",
            "SELECT *, window_start + INTERVAL '10' MINUTES AS window_end, \
             window_start + INTERVAL '10' MINUTES - INTERVAL '1 millisecond' AS window_time FROM \
             (SELECT *, unnest(hop_starts(ts, INTERVAL '5' MINUTES, INTERVAL '10' MINUTES)) AS window_start FROM t)",
        ),
        (
            "HOP(TABLE t, DESCRIPTOR(ts), INTERVAL '5 minutes', INTERVAL '10 minutes', - INTERVAL '1' MINUTE)",
            "SELECT *, window_start + INTERVAL '10 minutes' AS window_end, \
             window_start + INTERVAL '10 minutes' - INTERVAL '1 millisecond' AS window_time FROM \
             (SELECT *, unnest(hop_starts(ts, INTERVAL '5 minutes', INTERVAL '10 minutes', -INTERVAL '1' MINUTE)) \
             AS window_start FROM t)",
        ),
        (
            "CUMULATE(TABLE t, DESCRIPTOR(ts), INTERVAL '2' HOUR, INTERVAL '1' DAY)",
            "SELECT *, window_end - INTERVAL '1 millisecond' AS window_time FROM \
             (SELECT *, unnest(cumulate_ends(ts, INTERVAL '2' HOUR, INTERVAL '1' DAY)) AS window_end FROM \
             (SELECT *, date_bin(INTERVAL '1' DAY, ts) AS window_start FROM t))",
        ),
        (
            "CUMULATE(TABLE t, DESCRIPTOR(ts), INTERVAL '2' HOUR, INTERVAL '1' DAY, INTERVAL '1' HOUR)",
            "SELECT *, window_end - INTERVAL '1 millisecond' AS window_time FROM \
             (SELECT *, unnest(cumulate_ends(ts, INTERVAL '2' HOUR, INTERVAL '1' DAY, INTERVAL '1' HOUR)) \
             AS window_end FROM (SELECT *, date_bin(INTERVAL '1' DAY, ts, \
             CAST(TIMESTAMP '1970-01-01 00:00:00' + INTERVAL '1' HOUR AS TIMESTAMP(9))) AS window_start FROM t))",
        ),
    ] {
        check(&format!("SELECT * FROM TABLE({call})"), &format!("SELECT * FROM ({expected})"));
        check(&format!("SELECT w.ts FROM {call} AS w"), &format!("SELECT w.ts FROM ({expected}) AS w"));
    }
}

#[test]
fn windows_may_be_written_in_many_ways() {
    let minute = "INTERVAL '1' MINUTE";
    let window = tumble("t", "ts", minute);
    for call in [
        "TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '1' MINUTE)",
        "tumble(table t, descriptor(ts), interval '1' minute)",
        "TABLE(Tumble((SELECT * FROM t), Descriptor(ts), INTERVAL '1' MINUTE))",
        "TUMBLE(DATA => TABLE t, TIMECOL => DESCRIPTOR(ts), SIZE => INTERVAL '1' MINUTE)",
        "TABLE(TUMBLE(size => INTERVAL '1' MINUTE, data => TABLE t, timecol => DESCRIPTOR(ts)))",
        "TUMBLE(TABLE t, DESCRIPTOR(ts), SIZE => INTERVAL '1' MINUTE)",
        "TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '1'\n-- a comment\nMINUTE)",
    ] {
        check(&format!("SELECT * FROM {call}"), &format!("SELECT * FROM {window}"));
    }
    let offset =
        "SELECT * FROM HOP(TABLE t, DESCRIPTOR(ts), INTERVAL '1' MINUTE, INTERVAL '2' MINUTES, INTERVAL '3' SECOND)";
    for named in ["OFFSET => INTERVAL '3' SECOND", "\"OFFSET\" => INTERVAL '3' SECOND"] {
        let sql = format!(
            "SELECT * FROM HOP(SLIDE => INTERVAL '1' MINUTE, SIZE => INTERVAL '2' MINUTES, DATA => TABLE t, {named}, \
             TIMECOL => DESCRIPTOR(ts))"
        );
        assert_eq!(expanded(&sql), expanded(offset));
    }
    for (call, table, time, size) in [
        (
            "TUMBLE(TABLE k.`my.topic-1`, DESCRIPTOR(`a b`), INTERVAL '1' DAY)",
            "k.`my.topic-1`",
            "`a b`",
            "INTERVAL '1' DAY",
        ),
        ("TUMBLE(TABLE \"t\", DESCRIPTOR(\"ts\"), INTERVAL 90 SECOND)", "\"t\"", "\"ts\"", "INTERVAL 90 SECOND"),
        (
            "TUMBLE((SELECT a, ts FROM t WHERE a > 1), DESCRIPTOR(ts), INTERVAL '1 hour 30 minutes')",
            "(SELECT a, ts FROM t WHERE a > 1)",
            "ts",
            "INTERVAL '1 hour 30 minutes'",
        ),
    ] {
        check(&format!("SELECT * FROM {call}"), &format!("SELECT * FROM {}", tumble(table, time, size)));
    }
}

#[test]
fn sessions_are_partitioned_by_columns() {
    let gap = "INTERVAL '5' MINUTES";
    let by_two = session("t", "PARTITION BY a, b ORDER BY ts", "ts", gap);
    let by_one = session("t", "PARTITION BY a ORDER BY ts", "ts", gap);
    let by_none = session("t", "ORDER BY ts", "ts", gap);
    for (arguments, expected) in [
        ("TABLE t PARTITION BY (a, b), DESCRIPTOR(ts), #", &by_two),
        ("DATA => TABLE t PARTITION BY (a, b), TIMECOL => DESCRIPTOR(ts), GAP => #", &by_two),
        ("TABLE t PARTITION BY (a), DESCRIPTOR(ts), #", &by_one),
        ("table t partition by a, descriptor(ts), #", &by_one),
        ("DATA => TABLE t PARTITION BY a, TIMECOL => DESCRIPTOR(ts), GAP => #", &by_one),
        ("GAP => #, TIMECOL => DESCRIPTOR(ts), DATA => TABLE t PARTITION BY a", &by_one),
        ("TABLE t PARTITION BY a, DESCRIPTOR(ts), GAP => #", &by_one),
        ("TABLE t, DESCRIPTOR(ts), #", &by_none),
        ("DATA => TABLE t, TIMECOL => DESCRIPTOR(ts), GAP => #", &by_none),
    ] {
        let call = format!("SESSION({})", arguments.replace('#', gap));
        check(&format!("SELECT * FROM TABLE({call})"), &format!("SELECT * FROM {expected}"));
        check(&format!("SELECT * FROM {call} AS s"), &format!("SELECT * FROM {expected} AS s"));
    }
    let quoted =
        "SESSION((SELECT a AS `a b`, ts FROM t) PARTITION BY `a b`, DESCRIPTOR(\"ts\"), INTERVAL '90 seconds')";
    let over = "PARTITION BY `a b` ORDER BY \"ts\"";
    let expected = session("(SELECT a AS `a b`, ts FROM t)", over, "\"ts\"", "INTERVAL '90 seconds'");
    check(&format!("SELECT * FROM {quoted}"), &format!("SELECT * FROM {expected}"));
    // An OVER in the table stays as it was written.
    let ranked = "(SELECT a, ts, row_number() OVER (ORDER BY b) AS r FROM t)";
    let expected = session(ranked, "PARTITION BY a ORDER BY ts", "ts", gap);
    check(
        &format!("SELECT * FROM SESSION({ranked} PARTITION BY a, DESCRIPTOR(ts), {gap})"),
        &format!("SELECT * FROM {expected}"),
    );
}

#[test]
fn windows_may_stand_wherever_tables_stand() {
    let call = "TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '1' MINUTE)";
    let window = tumble("t", "ts", "INTERVAL '1' MINUTE");
    let twice = tumble(&format!("{window} AS x"), "window_time", "INTERVAL '1' HOUR");
    for sql in [
        "SELECT * FROM # AS a JOIN u AS b ON a.k = b.k AND a.window_start = b.s",
        "SELECT * FROM u, # AS w",
        "WITH w AS (SELECT * FROM #) SELECT * FROM w UNION ALL SELECT * FROM # AS v",
        "SELECT * FROM (SELECT count(*) FROM # AS w GROUP BY window_start, window_end) AS c",
        "SELECT a IN (SELECT b FROM #) FROM u WHERE EXISTS (SELECT 1 FROM # AS w)",
        "SELECT * FROM (# AS a CROSS JOIN # AS b)",
    ] {
        check(&sql.replace('#', call), &sql.replace('#', &window));
        check(&sql.replace('#', &format!("TABLE({call})")), &sql.replace('#', &window));
    }
    let nested = format!("TUMBLE((SELECT * FROM {call} AS x), DESCRIPTOR(window_time), INTERVAL '1' HOUR)");
    check(&format!("SELECT * FROM {nested}"), &format!("SELECT * FROM {twice}"));
    check(&format!("INSERT INTO s SELECT * FROM {call}"), &format!("SELECT * FROM {window}"));
    check(&format!("EXPLAIN SELECT * FROM {call}"), &format!("SELECT * FROM {window}"));
    // A view keeps what was written.
    let Statement::CreateView { view, .. } = one(&format!("CREATE VIEW v AS SELECT * FROM TABLE({call})")) else {
        panic!("no view");
    };
    assert_eq!(view.query, format!("SELECT * FROM TABLE({call})"));
    check(&view.query, &format!("SELECT * FROM {window}"));
}

#[test]
fn the_functions_of_group_by_become_arithmetic() {
    let bin = "date_bin(INTERVAL '1' HOUR, ts)";
    for (written, expected) in [
        ("TUMBLE(ts, INTERVAL '1' HOUR)", bin.to_string()),
        ("tumble_start(ts, INTERVAL '1' HOUR)", bin.to_string()),
        ("TUMBLE_END(ts, INTERVAL '1' HOUR)", format!("({bin} + INTERVAL '1' HOUR)")),
        ("TUMBLE_ROWTIME(ts, INTERVAL '1' HOUR)", format!("({bin} + INTERVAL '1' HOUR - INTERVAL '1 millisecond')")),
        (
            "TUMBLE(ts, INTERVAL '1' HOUR, INTERVAL '5' MINUTE)",
            "date_bin(INTERVAL '1' HOUR, ts, \
             CAST(TIMESTAMP '1970-01-01 00:00:00' + INTERVAL '5' MINUTE AS TIMESTAMP(9)))"
                .to_string(),
        ),
    ] {
        let sql = "SELECT x - #, count(*) FROM t GROUP BY # HAVING # > y ORDER BY #";
        check(&sql.replace('#', written), &sql.replace('#', &expected));
    }
    check("SELECT TUMBLE(f(a) + b, INTERVAL '1' DAY) FROM t", "SELECT date_bin(INTERVAL '1' DAY, f(a) + b) FROM t");
}

#[test]
fn names_of_windows_are_free_for_others() {
    for sql in [
        "SELECT tumble, t.hop, session AS cumulate FROM tumble AS t",
        "SELECT tumble(a), hop(1), session(a, b), cumulate(a, b, c), tumble_start(a, b) FROM session",
        "SELECT a FROM hop JOIN session ON hop.a = session.a",
        "SELECT `tumble`(ts, INTERVAL '1' DAY), f(ts, INTERVAL '1' DAY), hop_starts(ts, INTERVAL '1' DAY) FROM t",
        "SELECT date_add(ts, INTERVAL '1' DAY), week_start(ts, INTERVAL '1' DAY) FROM generate_series(1, 2)",
        "SELECT session_start(ts, INTERVAL '1' DAY) OVER (PARTITION BY f(a) ORDER BY ts) FROM t",
    ] {
        check(sql, sql);
    }
}

#[test]
fn sessions_that_cannot_be_are_refused() {
    let say = "; say SESSION(TABLE t PARTITION BY (k, …), DESCRIPTOR(ts), gap)";
    for (arguments, message) in [
        (
            "TABLE t PARTITION BY upper(k), DESCRIPTOR(ts), #",
            "PARTITION BY (upper(k)) must be columns, which a view can",
        ),
        ("TABLE t PARTITION BY (k, l + 1), DESCRIPTOR(ts), #", "PARTITION BY (k, l + 1) must be columns"),
        ("TABLE t PARTITION BY t.k, DESCRIPTOR(ts), #", "PARTITION BY (t.k) must be columns"),
        ("TABLE t PARTITION BY 1, DESCRIPTOR(ts), #", "PARTITION BY (1) must be columns"),
        ("TABLE t PARTITION BY (), DESCRIPTOR(ts), #", "PARTITION BY () must be columns"),
        ("TABLE t PARTITION BY, DESCRIPTOR(ts), #", "PARTITION BY () must be columns"),
        ("TABLE t PARTITION BY k ORDER BY ts, DESCRIPTOR(ts), #", "PARTITION BY (k ORDER BY ts) must be columns"),
        ("TABLE t PARTITION BY (k) PARTITION BY (l), DESCRIPTOR(ts), #", "PARTITION BY is given twice; say SESSION("),
        ("t PARTITION BY k, DESCRIPTOR(ts), #", "DATA is no TABLE and no query in brackets; say SESSION("),
        ("DATA => TABLE t PARTITION BY k, GAP => #", "there is no TIMECOL; say SESSION("),
        ("TABLE t PARTITION BY k, DESCRIPTOR(ts)", "there is no GAP; say SESSION("),
        ("TABLE t, DESCRIPTOR(ts), #, #", "it takes no INTERVAL '1' HOUR; say SESSION("),
        ("TABLE t, DESCRIPTOR(ts), gap", "GAP must be an interval literal"),
        ("TABLE t, DESCRIPTOR(ts), INTERVAL '0' HOUR", "GAP must be positive"),
        ("TABLE t, DESCRIPTOR(ts), - #", "GAP must be positive"),
        (
            "TABLE t, DESCRIPTOR(ts), INTERVAL '1' MONTH",
            "GAP is in months or years, which have no fixed length; say it",
        ),
    ] {
        let call = format!("SESSION({})", arguments.replace('#', "INTERVAL '1' HOUR"));
        refused(&format!("SELECT * FROM {call}"), &format!("line 1, column 15: SESSION: {message}"));
        refused(&format!("SELECT * FROM\n TABLE({call})"), &format!("line 2, column 8: SESSION: {message}"));
    }
    refused("SELECT * FROM SESSION()", &format!("line 1, column 15: SESSION: there is no DATA{say}"));
}

#[test]
fn what_is_wrong_is_refused_where_it_stands() {
    let say = "; say TUMBLE(TABLE t, DESCRIPTOR(ts), size [, offset])";
    for (arguments, message) in [
        ("", format!("there is no DATA{say}")),
        ("TABLE t", format!("there is no TIMECOL{say}")),
        ("TABLE t, DESCRIPTOR(ts)", format!("there is no SIZE{say}")),
        ("t, DESCRIPTOR(ts), INTERVAL '1' DAY", format!("DATA is no TABLE and no query in brackets{say}")),
        ("TABLE t, ts, INTERVAL '1' DAY", format!("TIMECOL is no DESCRIPTOR of one column{say}")),
        ("TABLE t, DESCRIPTOR(a, b), INTERVAL '1' DAY", format!("TIMECOL is no DESCRIPTOR of one column{say}")),
        ("TABLE t, DESCRIPTOR(t.ts), INTERVAL '1' DAY", format!("TIMECOL is no DESCRIPTOR of one column{say}")),
        ("TABLE t, DESCRIPTOR(ts), 10", "SIZE must be an interval literal".into()),
        ("TABLE t, DESCRIPTOR(ts), INTERVAL a DAY", "SIZE must be an interval literal".into()),
        ("TABLE t, DESCRIPTOR(ts), INTERVAL 'x' DAY", "SIZE must be an interval literal".into()),
        ("TABLE t, DESCRIPTOR(ts), INTERVAL '1 2' DAY TO HOUR", "SIZE must be an interval literal".into()),
        (
            "TABLE t, DESCRIPTOR(ts), INTERVAL '1' MONTH",
            "SIZE is in months or years, which have no fixed length".into(),
        ),
        (
            "TABLE t, DESCRIPTOR(ts), INTERVAL '2 years'",
            "SIZE is in months or years, which have no fixed length".into(),
        ),
        ("TABLE t, DESCRIPTOR(ts), INTERVAL '0' DAY", "SIZE must be positive".into()),
        ("TABLE t, DESCRIPTOR(ts), -INTERVAL '1' DAY", "SIZE must be positive".into()),
        ("TABLE t, DESCRIPTOR(ts), INTERVAL '1' DAY, 5", "OFFSET must be an interval literal".into()),
        ("TABLE t, DESCRIPTOR(ts), INTERVAL '1' DAY, INTERVAL '0' DAY, 5", format!("it takes no 5{say}")),
        ("TABLE t, DESCRIPTOR(ts), SLIDE => INTERVAL '1' DAY", format!("it takes no SLIDE{say}")),
        ("TABLE t, DESCRIPTOR(ts), INTERVAL '1' DAY, SIZE => INTERVAL '1' DAY", format!("SIZE is given twice{say}")),
        ("TABLE t PARTITION BY k, DESCRIPTOR(ts), INTERVAL '1' DAY", format!("PARTITION BY belongs to SESSION{say}")),
    ] {
        refused(&format!("SELECT *\nFROM TUMBLE({arguments})"), &format!("line 2, column 6: TUMBLE: {message}"));
        let wrapped = format!("line 1, column 21: TUMBLE: {message}");
        refused(&format!("SELECT * FROM TABLE(Tumble({arguments}))"), &wrapped);
    }
    for (sql, message) in [
        (
            "SELECT * FROM HOP(TABLE t, DESCRIPTOR(ts), INTERVAL '3' MINUTE, INTERVAL '10' MINUTE)",
            "line 1, column 15: HOP: SIZE must be a multiple of SLIDE, and INTERVAL '10' MINUTE is none of",
        ),
        (
            "SELECT * FROM HOP(TABLE t, DESCRIPTOR(ts), INTERVAL '10' MINUTE, INTERVAL '5' MINUTE)",
            "line 1, column 15: HOP: SIZE must be a multiple of SLIDE",
        ),
        (
            "SELECT * FROM a JOIN cumulate(TABLE t, DESCRIPTOR(ts), INTERVAL '5' HOUR, INTERVAL '1' DAY) ON true",
            "line 1, column 22: CUMULATE: SIZE must be a multiple of STEP, and INTERVAL '1' DAY is none of",
        ),
        (
            "SELECT * FROM CUMULATE(TABLE t, DESCRIPTOR(ts), INTERVAL '1' DAY, INTERVAL '1' MONTH)",
            "line 1, column 15: CUMULATE: SIZE is in months or years",
        ),
        (
            "SELECT a FROM t GROUP BY SESSION(ts, INTERVAL '1' HOUR)",
            "line 1, column 26: SESSION in GROUP BY is not supported; say FROM TABLE(SESSION(TABLE t PARTITION BY k, \
             DESCRIPTOR(ts), gap)) and GROUP BY window_start, window_end, k",
        ),
        ("SELECT session_start(ts, INTERVAL '1' HOUR) FROM t", "line 1, column 8: SESSION in GROUP BY is not"),
        (
            "SELECT a FROM t GROUP BY HOP(ts, INTERVAL '1' HOUR, INTERVAL '2' HOUR)",
            "line 1, column 26: HOP in GROUP BY is not supported; say FROM TABLE(HOP(",
        ),
        ("SELECT HOP_END(ts, INTERVAL '1' HOUR, INTERVAL '2' HOUR) FROM t", "line 1, column 8: HOP in GROUP BY"),
        ("SELECT TUMBLE_PROCTIME(ts, INTERVAL '1' HOUR) FROM t", "line 1, column 8: TUMBLE_PROCTIME is not supported"),
        ("SELECT a FROM t GROUP BY TUMBLE(ts, INTERVAL '1' YEAR)", "line 1, column 26: TUMBLE: SIZE is in months"),
        (
            "SELECT TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '1' HOUR)",
            "line 1, column 8: TUMBLE of a TABLE stands in FROM; say FROM TABLE(TUMBLE(TABLE …))",
        ),
    ] {
        refused(sql, message);
    }
}

/// The rows of a query as they are printed, planned as the session plans it.
async fn rows(sql: &str) -> Vec<String> {
    let config = planning::configure(SessionConfig::new());
    let state = planning::register(SessionStateBuilder::new().with_config(config).with_default_features()).build();
    let mut context = SessionContext::new_with_state(state);
    functions::register(&mut context).unwrap();
    let statement = sqlparser::ast::Statement::Query(parse_query(sql).unwrap());
    let statement = DFStatement::Statement(Box::new(statement));
    let plan = context.state().statement_to_plan(statement).await.unwrap_or_else(|error| panic!("{sql}\n{error}"));
    let frame = context.execute_logical_plan(plan).await.unwrap();
    let batches = frame.collect().await.unwrap_or_else(|error| panic!("{sql}\n{error}"));
    let row = |batch: &RecordBatch, row: usize| {
        let print = |column: &arrow::array::ArrayRef| match column.is_null(row) {
            true => "NULL".to_string(),
            false => array_value_to_string(column, row).unwrap(),
        };
        batch.columns().iter().map(print).collect::<Vec<_>>().join(" ")
    };
    batches.iter().flat_map(|batch| (0..batch.num_rows()).map(move |index| row(batch, index))).collect()
}

/// Three rows: one after 1970, one before, one without a time.
fn table(time_type: &str) -> String {
    format!(
        "(SELECT CAST(column1 AS {time_type}) AS ts, column2 AS v FROM \
         (VALUES ('2024-01-01 00:00:07', 1), ('1969-12-31 23:59:52', 2), (NULL, 3)))"
    )
}

#[tokio::test]
async fn rows_of_a_static_table_get_their_windows() {
    let table = table("TIMESTAMP(3)");
    let columns = "SELECT v, window_start, window_end, window_time FROM";
    let order = "ORDER BY v, window_start, window_end";
    let found = rows(&format!("{columns} TUMBLE({table}, DESCRIPTOR(ts), INTERVAL '10' SECOND) {order}")).await;
    assert_eq!(
        found,
        [
            "1 2024-01-01T00:00:00 2024-01-01T00:00:10 2024-01-01T00:00:09.999",
            "2 1969-12-31T23:59:50 1970-01-01T00:00:00 1969-12-31T23:59:59.999",
            "3 NULL NULL NULL",
        ]
    );
    let offset = format!("TUMBLE({table}, DESCRIPTOR(ts), INTERVAL '10' SECOND, INTERVAL '-8' SECOND)");
    let found = rows(&format!("SELECT v, window_start FROM TABLE({offset}) {order}")).await;
    assert_eq!(found, ["1 2024-01-01T00:00:02", "2 1969-12-31T23:59:52", "3 NULL"]);

    let hop = format!("HOP({table}, DESCRIPTOR(ts), INTERVAL '5' SECOND, INTERVAL '10' SECOND)");
    assert_eq!(
        rows(&format!("{columns} {hop} {order}")).await,
        [
            "1 2024-01-01T00:00:00 2024-01-01T00:00:10 2024-01-01T00:00:09.999",
            "1 2024-01-01T00:00:05 2024-01-01T00:00:15 2024-01-01T00:00:14.999",
            "2 1969-12-31T23:59:45 1969-12-31T23:59:55 1969-12-31T23:59:54.999",
            "2 1969-12-31T23:59:50 1970-01-01T00:00:00 1969-12-31T23:59:59.999",
            "3 NULL NULL NULL",
        ]
    );
    let cumulate = format!("CUMULATE({table}, DESCRIPTOR(ts), INTERVAL '5' SECOND, INTERVAL '10' SECOND)");
    assert_eq!(
        rows(&format!("SELECT * FROM TABLE({cumulate}) {order}")).await,
        [
            "2024-01-01T00:00:07 1 2024-01-01T00:00:00 2024-01-01T00:00:10 2024-01-01T00:00:09.999",
            "1969-12-31T23:59:52 2 1969-12-31T23:59:50 1969-12-31T23:59:55 1969-12-31T23:59:54.999",
            "1969-12-31T23:59:52 2 1969-12-31T23:59:50 1970-01-01T00:00:00 1969-12-31T23:59:59.999",
            "NULL 3 NULL NULL NULL",
        ]
    );
}

#[tokio::test]
async fn times_of_any_type_have_windows() {
    for (time_type, zone) in
        [("TIMESTAMP(0)", ""), ("TIMESTAMP(6)", ""), ("TIMESTAMP(9)", ""), ("TIMESTAMP_LTZ(3)", "Z")]
    {
        let table = table(time_type);
        for call in [
            format!("TUMBLE({table}, DESCRIPTOR(ts), INTERVAL '10' SECOND, INTERVAL '2' SECOND)"),
            format!("HOP({table}, DESCRIPTOR(ts), INTERVAL '10' SECOND, INTERVAL '10' SECOND, INTERVAL '2' SECOND)"),
            format!(
                "CUMULATE({table}, DESCRIPTOR(ts), INTERVAL '10' SECOND, INTERVAL '10' SECOND, INTERVAL '2' SECOND)"
            ),
        ] {
            let found = rows(&format!("SELECT window_start, window_end FROM {call} WHERE v < 3 ORDER BY v")).await;
            let expected = [
                format!("2024-01-01T00:00:02{zone} 2024-01-01T00:00:12{zone}"),
                format!("1969-12-31T23:59:52{zone} 1970-01-01T00:00:02{zone}"),
            ];
            assert_eq!(found, expected, "{time_type} {call}");
        }
    }
}

/// Rows of three keys in no order: of `a`, one pause of 9 seconds and one of 10; two without a time.
fn visits(time_type: &str) -> String {
    format!(
        "(SELECT column1 AS k, CAST(column2 AS {time_type}) AS ts, column3 AS v FROM \
         (VALUES ('a', '2024-01-01 00:00:20', 1), ('b', '2024-01-01 00:00:05', 2), ('a', NULL, 3), \
         ('a', '2024-01-01 00:00:01', 4), ('a', '2024-01-01 00:00:10', 5), ('c', NULL, 6)))"
    )
}

#[tokio::test]
async fn sessions_end_at_a_pause_of_the_gap_or_longer() {
    let (gap, visits) = ("INTERVAL '10' SECOND", visits("TIMESTAMP(3)"));
    let query = format!(
        "WITH t AS {visits} SELECT v, window_start, window_end, window_time FROM \
         TABLE(SESSION(TABLE t PARTITION BY k, DESCRIPTOR(ts), {gap})) ORDER BY v"
    );
    assert_eq!(
        rows(&query).await,
        [
            "1 2024-01-01T00:00:20 2024-01-01T00:00:30 2024-01-01T00:00:29.999",
            "2 2024-01-01T00:00:05 2024-01-01T00:00:15 2024-01-01T00:00:14.999",
            "3 NULL NULL NULL",
            "4 2024-01-01T00:00:01 2024-01-01T00:00:20 2024-01-01T00:00:19.999",
            "5 2024-01-01T00:00:01 2024-01-01T00:00:20 2024-01-01T00:00:19.999",
            "6 NULL NULL NULL",
        ]
    );
    let query = format!("SELECT v, window_start, window_end FROM SESSION({visits}, DESCRIPTOR(ts), {gap}) ORDER BY v");
    let (first, last) = ("2024-01-01T00:00:01 2024-01-01T00:00:20", "2024-01-01T00:00:20 2024-01-01T00:00:30");
    let none = "NULL NULL";
    let expected = [(1, last), (2, first), (3, none), (4, first), (5, first), (6, none)];
    assert_eq!(rows(&query).await, expected.map(|(v, window)| format!("{v} {window}")));
    let query = format!(
        "SELECT k, window_start, window_end, count(*) AS n, count(ts) AS times FROM \
         SESSION({visits} PARTITION BY k, DESCRIPTOR(ts), {gap}) GROUP BY window_start, window_end, k \
         ORDER BY k, window_start"
    );
    let expected =
        ["a #1 2 2", "a #2 1 1", "a NULL NULL 1 0", "b 2024-01-01T00:00:05 2024-01-01T00:00:15 1 1", "c NULL NULL 1 0"];
    assert_eq!(rows(&query).await, expected.map(|row| row.replace("#1", first).replace("#2", last)));
}

#[tokio::test]
async fn times_of_any_type_have_sessions() {
    for (time_type, zone) in
        [("TIMESTAMP(0)", ""), ("TIMESTAMP(6)", ""), ("TIMESTAMP(9)", ""), ("TIMESTAMP_LTZ(3)", "Z")]
    {
        let found = rows(&format!(
            "SELECT window_start, window_end FROM SESSION({} PARTITION BY k, DESCRIPTOR(ts), INTERVAL '10' SECOND) \
             WHERE v > 3 ORDER BY v",
            visits(time_type)
        ))
        .await;
        let session = format!("2024-01-01T00:00:01{zone} 2024-01-01T00:00:20{zone}");
        assert_eq!(found, [session.as_str(), session.as_str(), "NULL NULL"], "{time_type}");
    }
}

#[tokio::test]
async fn rows_are_grouped_by_windows_in_both_ways() {
    let table = table("TIMESTAMP(3)");
    let size = "INTERVAL '10' SECOND";
    let expected = ["2024-01-01T00:00:00 2024-01-01T00:00:10 1", "1969-12-31T23:59:50 1970-01-01T00:00:00 1"];
    let sql = format!(
        "SELECT window_start, window_end, count(*) AS n FROM TUMBLE({table}, DESCRIPTOR(ts), {size}) \
         WHERE ts IS NOT NULL GROUP BY window_start, window_end ORDER BY window_start DESC"
    );
    assert_eq!(rows(&sql).await, expected);
    let sql = format!(
        "SELECT TUMBLE_START(ts, {size}) AS s, TUMBLE_END(ts, {size}) AS e, count(*) AS n FROM {table} AS t \
         GROUP BY TUMBLE(ts, {size}) HAVING TUMBLE_ROWTIME(ts, {size}) IS NOT NULL ORDER BY s DESC"
    );
    assert_eq!(rows(&sql).await, expected);
}

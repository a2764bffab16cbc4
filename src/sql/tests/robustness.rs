//! Text that is no SQL gives errors: no panic, no stack overflow, no endless parse.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::super::*;

const SEEDS: &[&str] = &[
    "CREATE TABLE t (a INT NOT NULL, ts TIMESTAMP(3) METADATA FROM 'x' VIRTUAL, b AS a + 1, PRIMARY KEY (a) NOT ENFORCED, \
     WATERMARK FOR ts AS ts - INTERVAL '5' SECOND) PARTITIONED BY (b) WITH ('k' = 'v') AS SELECT 1;",
    "INSERT INTO t (a, b) SELECT CAST(x AS ROW<a MAP<STRING, ARRAY<INT>>>), m['k'] -> 'a' FROM t AS o WHERE a BETWEEN 1 AND 2;",
    "SELECT count(*) FILTER (WHERE a > 1), row_number() OVER (PARTITION BY a ORDER BY b) FROM a JOIN b USING (c) \
     GROUP BY CUBE (a, b) HAVING x IS NOT NULL UNION ALL VALUES (1, 'é') ORDER BY 1 LIMIT 3 OFFSET 2;",
    "SET 'a.b' = 'c'; RESET a.b; SHOW CREATE TABLE t; DESCRIBE `t`; EXPLAIN ANALYZE SELECT 1 FETCH FIRST 2 ROWS ONLY;",
    "CREATE VIEW v (a) AS WITH x AS (SELECT 1 /* c */) SELECT * FROM x; DROP VIEW IF EXISTS v; -- ;'\nSHOW TABLES;",
    "CREATE EXTERNAL TABLE t (a INT) STORED AS PARQUET LOCATION '/x' OPTIONS ('a' 'b'); COPY t TO 'x';",
    "CREATE CATALOG k WITH ('type' = 'x'); SHOW TOPICS FROM k LIKE 'a_%'; CREATE TOPIC IF NOT EXISTS k.`a.b-c` WITH ('a' = 'b'); \
     DESCRIBE GROUP k.g; DROP TOPIC IF EXISTS k.t; SHOW FUNCTIONS LIKE 'é'; ALTER TABLE t SET ('a' = 'b'); ALTER TABLE t RESET ('a');",
    "RESET GROUP k.g FOR TOPIC t TO TIMESTAMP '2026-01-01 00:00:00.123+01:00' EXECUTE; RESET GROUP k.g FOR TOPIC t TO \
     OFFSETS ('0' = '42', 'a:1' = '7'); SHOW QUERIES; DESCRIBE QUERY 'a/b'; STOP QUERY `a/b`; RESTART QUERY q;",
    "SELECT TUMBLE_END(ts, INTERVAL '1' HOUR) FROM TABLE(HOP(TABLE a.`t`, DESCRIPTOR(ts), INTERVAL '1' HOUR, INTERVAL '2' HOURS)) \
     AS w JOIN CUMULATE(DATA => TABLE t PARTITION BY (k, l), STEP => INTERVAL '1 hour', SIZE => -INTERVAL '1' DAY) GROUP BY w;",
];

/// A token of a seed is dropped, doubled, replaced or cut short, some times over.
fn mutate(random: &mut StdRng, seed: &str) -> String {
    let mut words: Vec<String> =
        seed.split_inclusive([' ', '(', ')', ',', '<', '>', '\'', ';']).map(String::from).collect();
    for _ in 0..random.random_range(1..5) {
        let at = random.random_range(0..words.len());
        match random.random_range(0..5) {
            0 if words.len() > 1 => drop(words.remove(at)),
            1 => words.insert(at, words[random.random_range(0..words.len())].clone()),
            2 => {
                words[at] = ["(", "'", "`", "/*", "--", ";", "<", "${", "é", "\0", "$$", "E'\\"]
                    [random.random_range(0..12)]
                .into()
            }
            3 => words[at] = words[at].chars().rev().collect(),
            _ => words.truncate(at + 1),
        }
    }
    words.concat()
}

#[test]
fn mutated_statements_never_panic() {
    let mut random = StdRng::seed_from_u64(7);
    for round in 0..600 {
        let text = mutate(&mut random, SEEDS[round % SEEDS.len()]);
        is_complete(&text);
        let _ = substitute(&text, &Default::default());
        if let Err(error) = parse(&text) {
            assert!(error.location().is_some(), "{text}\n{error}");
        }
    }
}

#[test]
fn deep_nesting_is_an_error() {
    let nest = |open: &str, middle: &str, close: &str| {
        format!("SELECT {}{middle}{}", open.repeat(10_000), close.repeat(10_000))
    };
    for text in [
        nest("(", "1", ")"),
        nest("CAST(", "1", " AS INT)"),
        nest("ARRAY[", "1", "]"),
        nest("NOT ", "1", ""),
        nest("- ", "1", ""),
        nest("CASE WHEN ", "1", " THEN 1 END"),
        nest("1 + ", "1", ""),
        nest("", "1", "::INT"),
        nest("", "1", " IS NULL"),
        nest("CAST(1 AS ARRAY<", "INT", ">)"),
        nest("(SELECT ", "1", ")"),
        format!("SELECT * FROM {}t{}", "(".repeat(10_000), ")".repeat(10_000)),
        format!("CREATE TABLE t (a {}INT{}) WITH ('a' = 'b')", "ROW<a ".repeat(10_000), ">".repeat(10_000)),
        "EXPLAIN ".repeat(10_000),
        "SELECT 1 UNION ".repeat(10_000),
    ] {
        let error = parse(&text).unwrap_err();
        assert!(error.location().is_some(), "{}\n{error}", &text[..30]);
    }
}

#[test]
fn nesting_takes_no_longer_than_it_is_deep() {
    let nest =
        |open: &str, middle: &str, close: &str| format!("SELECT {}{middle}{}", open.repeat(16), close.repeat(16));
    let deep = [
        format!("SELECT * FROM {}t{}", "(".repeat(16), ")".repeat(16)),
        format!("SELECT {}1{}", "(".repeat(40), ")".repeat(40)),
        nest("CAST(", "1", " AS INT)"),
        nest("ARRAY[", "1", "]"),
        nest("(SELECT ", "1", ")"),
    ];
    for text in &deep {
        parse(text).unwrap_or_else(|error| panic!("{text}\n{error}"));
    }
    let broken = deep.iter().map(|text| text.replace('1', "1 1"));
    let too_deep = ["CAST(", "TRIM(", "EXISTS(", "ARRAY["].map(|open| format!("SELECT {}", open.repeat(40)));
    for text in broken.skip(1).chain(too_deep) {
        // One that takes exponential time would not end at all.
        assert!(parse(&text).is_err(), "{text}");
    }
}

//! CREATE TABLE and its way back through SHOW CREATE TABLE.

use arrow::datatypes::{DataType, TimeUnit};

use super::super::*;
use super::{one, refused};
use crate::catalog::{Column, ColumnKind, TableDefinition};

fn table(sql: &str) -> CreateTable {
    match one(sql) {
        Statement::CreateTable(table) => table,
        other => panic!("{sql}\n{other:?}"),
    }
}

/// The only column of a table that is declared like this.
fn column(text: &str) -> Column {
    let mut columns = table(&format!("CREATE TABLE t ({text}) WITH ('connector' = 'x')")).definition.columns;
    assert_eq!(columns.len(), 1);
    columns.remove(0)
}

fn expected(name: &str, data_type: DataType, nullable: bool, kind: ColumnKind) -> Column {
    Column { name: name.into(), data_type, nullable, kind }
}

fn metadata(key: &str, is_virtual: bool) -> ColumnKind {
    ColumnKind::Metadata { key: key.into(), is_virtual }
}

fn computed(expression: &str) -> ColumnKind {
    ColumnKind::Computed { expression: expression.into() }
}

const MILLISECONDS: DataType = DataType::Timestamp(TimeUnit::Millisecond, None);

#[test]
fn every_form_of_a_column() {
    let (int, physical) = (DataType::Int32, ColumnKind::Physical);
    for (text, found) in [
        ("a INT", expected("a", int.clone(), true, physical.clone())),
        ("orderId int not null comment 'it''s'", expected("orderId", int.clone(), false, physical.clone())),
        ("`a b` INT COMMENT 'c' NULL", expected("a b", int.clone(), true, physical)),
        ("a INT METADATA", expected("a", int.clone(), true, metadata("a", false))),
        ("a INT NOT NULL METADATA FROM 'b.c' VIRTUAL", expected("a", int.clone(), false, metadata("b.c", true))),
        ("a INT METADATA VIRTUAL COMMENT 'x'", expected("a", int, true, metadata("a", true))),
        ("a AS b + 1", expected("a", DataType::Null, true, computed("b + 1"))),
        ("a AS CAST(b\n -- why\n AS ROW<c\tINT>) COMMENT 'x'", {
            expected("a", DataType::Null, true, computed("CAST(b AS ROW<c INT>)"))
        }),
        ("a AS 'x;''y'", expected("a", DataType::Null, true, computed("'x;''y'"))),
        ("a AS (SELECT 1)", expected("a", DataType::Null, true, computed("(SELECT 1)"))),
    ] {
        assert_eq!(column(text), found, "{text}");
    }
}

#[test]
fn keywords_are_names_of_columns() {
    let words = [
        "key",
        "index",
        "primary",
        "unique",
        "check",
        "constraint",
        "foreign",
        "watermark",
        "timestamp",
        "date",
        "user",
        "value",
        "partition",
        "partitioned",
        "offset",
        "topic",
        "order",
        "group",
        "start",
        "end",
        "row",
        "type",
        "comment",
        "metadata",
        "limit",
        "like",
        "with",
        "select",
        "from",
        "table",
        "interval",
        "time",
        "array",
        "map",
        "virtual",
    ];
    for word in words {
        assert_eq!(column(&format!("{word} STRING")).name, word);
        assert_eq!(column(&format!("{word} TIMESTAMP(3) METADATA")).kind, metadata(word, false));
        assert_eq!(column(&format!("{word} AS 1")).kind, computed("1"));
        assert!(column(&format!("r ROW<{word} STRING>")).data_type.to_string().contains(word));
    }
}

#[test]
fn a_table_with_everything() {
    let sql = "CREATE TEMPORARY TABLE IF NOT EXISTS `Orders` (\n  orderId BIGINT, region STRING NOT NULL,\n  \
               ts TIMESTAMP(3) METADATA FROM 'timestamp' VIRTUAL, day AS date_trunc('day', ts),\n  \
               CONSTRAINT pk PRIMARY KEY (orderId, region) NOT ENFORCED,\n  \
               WATERMARK FOR ts AS ts - INTERVAL '5' SECOND\n) COMMENT 'c' PARTITIONED BY (region)\n\
               WITH ('connector' = 'kafka', 'Password' = 'it''s') AS SELECT 1 FETCH FIRST ROW ONLY";
    let CreateTable { definition, if_not_exists, as_query, .. } = table(sql);
    assert!(if_not_exists);
    assert_eq!(as_query, Some(parse_query("SELECT 1 LIMIT 1").unwrap()));
    assert_eq!(definition.name, "Orders");
    assert_eq!(definition.columns[2], expected("ts", MILLISECONDS, true, metadata("timestamp", true)));
    assert_eq!(definition.primary_key, ["orderId", "region"]);
    assert_eq!(definition.partitioned_by, ["region"]);
    let watermark = definition.watermark.unwrap();
    assert_eq!((watermark.column.as_str(), watermark.expression.as_str()), ("ts", "ts - INTERVAL '5' SECOND"));
    assert_eq!(definition.options["Password"], "it's");
    let key = table("CREATE TABLE t (a INT PRIMARY KEY NOT ENFORCED COMMENT 'x') WITH ('connector' = 'x')").definition;
    assert_eq!(key.primary_key, ["a"]);
    assert!(
        table("CREATE TABLE t PARTITIONED BY (a) WITH ('connector' = 'x') AS SELECT 1 AS a")
            .definition
            .columns
            .is_empty()
    );
}

#[test]
fn a_table_may_leave_its_columns_to_be_found() {
    let definition = table("CREATE TABLE t WITH ('a' = 'b')").definition;
    assert!(definition.columns.is_empty());
    assert_eq!(table(&show_create_table(&definition)).definition, definition);
    let timed = table("CREATE TABLE t (WATERMARK FOR ts AS ts, PRIMARY KEY (k) NOT ENFORCED) WITH ('a' = 'b')");
    assert_eq!((timed.definition.columns.len(), timed.definition.primary_key.as_slice()), (0, &["k".to_string()][..]));
    assert_eq!(timed.definition.watermark.unwrap().column, "ts");
}

#[test]
fn options_of_a_table_change() {
    let alter = |changes: &[(&str, Option<&str>)]| Statement::AlterTable {
        name: "t".into(),
        changes: changes.iter().map(|(key, value)| (key.to_string(), value.map(String::from))).collect(),
    };
    let set = "ALTER TABLE t SET ('b' = '1', 'A.c' = 'it''s')";
    assert_eq!(one(set), alter(&[("A.c", Some("it's")), ("b", Some("1"))]));
    assert_eq!(one("alter table t reset ('b', 'a')"), alter(&[("b", None), ("a", None)]));
    refused("ALTER TABLE t ADD COLUMN a INT", "line 1, column 15: ALTER TABLE changes options, by SET");
    refused("ALTER TABLE t", "line 1, column 14: ALTER TABLE changes options, by SET");
    refused("ALTER TABLE t SET ('a')", "line 1, column 23: expected =, found )");
    refused("ALTER TABLE t RESET (a)", "line 1, column 22: expected an option's key in single quotes, found a");
    refused("ALTER TABLE t RESET ('a'", "line 1, column 25: expected ), found the end of the statement");
    refused("ALTER TABLE k.t SET ('a' = 'b')", "line 1, column 14: the name of a table has one part");
}

#[test]
fn what_is_refused_and_where() {
    let in_table = |text: &str, message: &str| {
        refused(&format!("CREATE TABLE t (a INT, {text}) WITH ('connector' = 'x')"), message);
    };
    in_table("a STRING", "line 1, column 24: the column 'a' is declared twice");
    in_table("PRIMARY KEY (b) NOT ENFORCED", "line 1, column 37: there is no column 'b'; known are a");
    in_table("PRIMARY KEY (a, a) NOT ENFORCED", "line 1, column 40: the column 'a' is named twice");
    in_table("PRIMARY KEY (a)", "line 1, column 39: a PRIMARY KEY is not checked here; say PRIMARY KEY … NOT ENFORCED");
    in_table("PRIMARY KEY (a) ENFORCED", "line 1, column 40: a PRIMARY KEY is not checked");
    in_table(
        "b INT PRIMARY KEY NOT ENFORCED, PRIMARY KEY (a) NOT ENFORCED",
        "line 1, column 56: the table has two primary",
    );
    in_table("UNIQUE (a)", "line 1, column 24: only PRIMARY KEY");
    in_table("CONSTRAINT x CHECK (a > 1)", "line 1, column 37: expected PRIMARY KEY");
    in_table("FOREIGN KEY (a) REFERENCES b (a)", "line 1, column 24: only PRIMARY KEY");
    in_table(
        "WATERMARK FOR tss AS tss, ts TIMESTAMP(3)",
        "line 1, column 38: there is no column 'tss'; did you mean 'ts'?",
    );
    in_table(
        "WATERMARK FOR a AS a",
        "line 1, column 38: a watermark is on a TIMESTAMP or TIMESTAMP_LTZ column, and 'a' is INT",
    );
    in_table("WATERMARK FOR a.b AS a", "line 1, column 39: a watermark is on a column, not on a field");
    in_table("b INT DEFAULT 3", "line 1, column 30: DEFAULT is not supported");
    in_table("b", "line 1, column 25: expected a type, found )");
    in_table("b AS", "line 1, column 28: expected an expression, found )");
    in_table("'b' INT", "line 1, column 24: expected the name of a column, found 'b'");
    in_table("b INT c", "line 1, column 30: expected , or ) after a column, found c");
    in_table("b INT,", "line 1, column 30: expected the name of a column, found )");
    in_table("b INT COMMENT x", "line 1, column 38: expected a comment in single quotes, found x");
    refused("CREATE TABLE t (a INT)", "line 1, column 14: the table t has no WITH; say WITH ('connector' = '…', …)");
    refused("CREATE TABLE t AS SELECT 1", "line 1, column 14: the table t has no WITH");
    refused("CREATE TABLE t (LIKE x) WITH ('a' = 'b')", "line 1, column 17: CREATE TABLE … LIKE is not supported");
    refused("CREATE TABLE t WITH ('a' = 'b') LIKE x", "line 1, column 33: CREATE TABLE … LIKE is not supported");
    refused("CREATE TABLE a.t (a INT)", "line 1, column 15: the name of a table has one part");
    refused("CREATE OR REPLACE TABLE t (a INT)", "line 1, column 1: CREATE OR REPLACE TABLE is not supported");
    let after = |text: &str, message: &str| refused(&format!("CREATE TABLE t (a INT) {text}"), message);
    after("WITH ('a' = 'b', 'a' = 'c')", "line 1, column 41: the option 'a' is given twice");
    after("WITH ('a' = b)", "line 1, column 36: expected its value in single quotes, found b");
    after("WITH (a = 'b')", "line 1, column 30: expected an option's key in single quotes, found a");
    after("WITH ('a' 'b')", "line 1, column 34: expected =, found 'b'");
    after("PARTITIONED BY (b) WITH ('a' = 'b')", "line 1, column 40: there is no column 'b'");
    after("DISTRIBUTED INTO 3 BUCKETS", "line 1, column 24: DISTRIBUTED is not supported");
    after("STORED AS PARQUET", "line 1, column 24: expected COMMENT, PARTITIONED BY, WITH, AS or the end");
    after("WITH ('a' = 'b') WITH ('a' = 'b')", "line 1, column 41: the table has WITH twice");
}

#[test]
fn what_is_shown_reads_back_as_the_same_definition() {
    for sql in [
        "CREATE TABLE t (a INT) WITH ('connector' = 'x')",
        "CREATE TABLE `a``b \"c` (`x``y` STRING NOT NULL, \"select\" INT METADATA FROM 'it''s') WITH ('k''' = 'v\n;')",
        "CREATE TABLE t (ts TIMESTAMP_LTZ(3) NOT NULL METADATA VIRTUAL, `group` MAP<STRING, ROW<a ARRAY<BYTES>>>, \
         c AS CAST(`group`['x'].a[1] AS MAP<STRING, INT>), d AS x -> 'a' ->> 'b' = 'c', e AS E'\\n' || U&'\\0041', \
         f AS CAST(a AS TIMESTAMP(3) WITH LOCAL TIME ZONE), g AS CASE WHEN a THEN TIMESTAMP '2020-01-01 00:00:00' END, \
         PRIMARY KEY (ts, `group`) NOT ENFORCED, WATERMARK FOR ts AS ts - INTERVAL '1' MINUTE) PARTITIONED BY (ts, c) \
         WITH ('connector' = 'x', 'password' = '${env:PW}')",
        "CREATE TABLE t (a DECIMAL(20, 3), b TIME(3), c TIMESTAMP, d FLOAT, e INT[3], f BIGINT UNSIGNED) WITH ('a' = 'b')",
    ] {
        let definition = table(sql).definition;
        let shown = show_create_table(&definition);
        assert_eq!(table(&shown).definition, definition, "{shown}");
        assert_eq!(show_create_table(&table(&shown).definition), shown);
        let computed = definition.columns.iter().filter_map(|column| match &column.kind {
            ColumnKind::Computed { expression } => Some(expression),
            _ => None,
        });
        computed.for_each(|text| assert!(parse_expression(text).is_ok(), "{text}"));
    }
}

#[test]
fn what_is_shown_hides_secrets_and_is_readable() {
    let definition: TableDefinition = table(
        "CREATE TABLE t (a INT, PRIMARY KEY (a) NOT ENFORCED) WITH ('connector' = 'kafka', 'sasl.password' = 'hunter2')",
    )
    .definition;
    let expected = "CREATE TABLE `t` (\n  `a` INT,\n  PRIMARY KEY (`a`) NOT ENFORCED\n)\n\
                    WITH (\n  'connector' = 'kafka',\n  'sasl.password' = '******'\n)";
    assert_eq!(show_create_table(&definition), expected);
}

//! Statements other than CREATE TABLE.

use sqlparser::ast::Query;

use super::super::*;
use super::{one, refused};

fn query(sql: &str) -> Box<Query> {
    parse_query(sql).unwrap()
}

fn check(sql: &str, expected: Statement) {
    assert_eq!(one(sql), expected, "{sql}");
}

fn set(key: &str, value: &str) -> Statement {
    Statement::Set { key: key.into(), value: value.into() }
}

#[test]
fn settings() {
    check("SET", Statement::ShowSettings);
    check("set 'A.b-C' = 'It''s'", set("A.b-C", "It's"));
    check("SET A.b-c.2 = 5", set("A.b-c.2", "5"));
    check("SET `a b` = \"c d\"", set("a b", "c d"));
    check("SET sql.order TO true", set("sql.order", "true"));
    check("SET a = -10 min", set("a", "-10 min"));
    check("SET datafusion.execution.batch_size = 10", set("datafusion.execution.batch_size", "10"));
    check("RESET", Statement::Reset { key: None });
    check("RESET 'A.b'", Statement::Reset { key: Some("A.b".into()) });
    check("RESET A.b", Statement::Reset { key: Some("A.b".into()) });
    refused("SET a", "line 1, column 5: SET takes a key and a value");
    refused("SET 'a' =", "line 1, column 10: SET takes one value");
    refused("SET 'a' = 'b' 'c'", "line 1, column 11: SET takes one value");
    refused("SET a b = 'c'", "line 1, column 5: SET takes a key");
    refused("SET a.to.b = 'c'", "line 1, column 5: SET takes a key");
    refused("SET '' = 'c'", "line 1, column 5: SET takes a key");
    refused("RESET a b", "line 1, column 7: RESET takes a key");
}

#[test]
fn lists_and_descriptions() {
    check("SHOW TABLES", Statement::ShowTables { like: None });
    check("SHOW TABLES LIKE 'x%'", Statement::ShowTables { like: Some("x%".into()) });
    check("show views like 'it''s'", Statement::ShowViews { like: Some("it's".into()) });
    check("SHOW FUNCTIONS", Statement::ShowFunctions { like: None });
    check("SHOW CREATE TABLE `my.topic-1`", Statement::ShowCreateTable { name: "my.topic-1".into() });
    check("SHOW CREATE VIEW v", Statement::ShowCreateView { name: "v".into() });
    check("DESCRIBE Orders", Statement::Describe { name: "Orders".into() });
    check("desc TABLE t", Statement::Describe { name: "t".into() });
    check("DESCRIBE topic", Statement::Describe { name: "topic".into() });
    check("DESCRIBE table", Statement::Describe { name: "table".into() });
    for sql in ["SHOW ALL", "SHOW COLUMNS FROM t", "SHOW datafusion.execution.batch_size"] {
        assert!(matches!(one(sql), Statement::DataFusion(_)), "{sql}");
    }
    let within = |catalog: &str, name: &str| Statement::DescribeIn { catalog: catalog.into(), name: name.into() };
    check("DESCRIBE information_schema.tables", within("information_schema", "tables"));
    check("DESC TABLE k.`my.orders`", within("k", "my.orders"));
    check("DESCRIBE topic.orders", within("topic", "orders"));
    assert!(matches!(one("DESCRIBE datafusion.public.t"), Statement::DataFusion(_)));
    refused("DESCRIBE TABLE k.my.orders", "line 1, column 20: the name of a topic has one part");
    refused("DESCRIBE k.", "line 1, column 12: expected the name of a topic, found the end of the statement");
    refused(
        "SHOW TABLES FROM k",
        "line 1, column 13: SHOW TABLES takes no FROM or IN; for topics say SHOW TOPICS FROM k",
    );
    refused("SHOW VIEWS IN k", "line 1, column 12: SHOW VIEWS takes no FROM or IN");
    refused("SHOW TABLES NOT LIKE 'x'", "line 1, column 13: expected the end of the statement, found NOT");
    refused("SHOW FUNCTIONS LIKE", "line 1, column 20: expected a pattern in single quotes");
    refused("SHOW DATABASES", "line 1, column 6: SHOW DATABASES is not supported yet");
    refused("SHOW `tables`", "line 1, column 6: expected what to show, such as TABLES");
    refused("SHOW TABELS", "line 1, column 6: there is no SHOW TABELS; did you mean 'TABLES'?");
    refused("SHOW", "line 1, column 5: expected what to show");
    refused("SHOW CREATE x", "line 1, column 6: SHOW CREATE takes a TABLE or a VIEW");
    refused("DESCRIBE t x", "line 1, column 12: expected the end of the statement, found x");
}

#[test]
fn views_keep_the_text_of_their_query() {
    let made = |query: &str, or_replace, if_not_exists, temporary| Statement::CreateView {
        view: crate::catalog::ViewDefinition { name: "V".into(), query: query.into() },
        or_replace,
        if_not_exists,
        temporary,
    };
    let view = |query: &str, or_replace, if_not_exists| made(query, or_replace, if_not_exists, false);
    check("CREATE VIEW V AS SELECT a, -- c\n b FROM t", view("SELECT a, -- c\n b FROM t", false, false));
    check("CREATE OR REPLACE TEMPORARY VIEW V AS SELECT 1", made("SELECT 1", true, false, true));
    check("CREATE VIEW IF NOT EXISTS V COMMENT 'c' AS (SELECT 1)", view("(SELECT 1)", false, true));
    let renamed = "SELECT * FROM (SELECT 1, 2) AS `V` (`a`, `b c`)";
    check("CREATE VIEW V (a, `b c`) AS SELECT 1, 2", view(renamed, false, false));
    query(renamed);
    check("DROP VIEW IF EXISTS V", Statement::DropView { name: "V".into(), if_exists: true });
    check("DROP TABLE T", Statement::DropTable { name: "T".into(), if_exists: false });
    refused("CREATE VIEW V", "line 1, column 14: expected AS, found the end of the statement");
    refused("CREATE OR REPLACE VIEW IF NOT EXISTS V AS SELECT 1", "line 1, column 38: OR REPLACE and IF NOT EXISTS");
    refused("DROP TABLE a, b", "line 1, column 13: expected the end of the statement, found ,");
    refused("DROP TABLE a.b", "line 1, column 13: the name of a table has one part");
    refused("CREATE MATERIALIZED VIEW v AS SELECT 1", "line 1, column 1: materialized views are not supported");
}

#[test]
fn inserts() {
    let insert = |columns: &[&str], sql: &str| {
        let columns = columns.iter().map(|c| c.to_string()).collect();
        Statement::Insert(Insert { table: "T".into(), columns, query: query(sql) })
    };
    check("INSERT INTO T SELECT 1", insert(&[], "SELECT 1"));
    check("INSERT INTO TABLE T (a, key, `b c`) VALUES (1, 2, 3)", insert(&["a", "key", "b c"], "VALUES (1, 2, 3)"));
    check("INSERT INTO T (SELECT 1)", insert(&[], "(SELECT 1)"));
    check("INSERT INTO T WITH x AS (SELECT 1) SELECT * FROM x", insert(&[], "WITH x AS (SELECT 1) SELECT * FROM x"));
    check("INSERT INTO T SELECT 1 FETCH FIRST 2 ROWS ONLY", insert(&[], "SELECT 1 LIMIT 2"));
    refused("INSERT OVERWRITE T SELECT 1", "line 1, column 8: INSERT OVERWRITE is not supported");
    refused("INSERT INTO T PARTITION (d='1') SELECT 1", "line 1, column 15: INSERT … PARTITION");
    refused("INSERT INTO T (a, a) SELECT 1", "line 1, column 19: the column 'a' is named twice");
    refused("INSERT INTO k.orders SELECT 1", "line 1, column 14: INSERT INTO takes a table, whose name has one part");
    refused("WITH x AS (SELECT 1) INSERT INTO T SELECT * FROM x", "line 1, column 1: WITH … INSERT is not supported");
    let hint = "/*+ OPTIONS('a'='b') */";
    refused(
        &format!("INSERT {hint} INTO T SELECT 1"),
        "line 1, column 8: /*+ OPTIONS('a'='b')*/: the table of an INSERT",
    );
}

#[test]
fn queries_and_what_datafusion_reads() {
    for sql in ["SELECT 1", "(SELECT 1) UNION ALL SELECT 2", "VALUES (1)", "WITH a AS (SELECT 1) SELECT * FROM a"] {
        assert_eq!(one(sql), Statement::Query(query(sql)));
    }
    assert_eq!(one("SELECT 1 FETCH FIRST 3 ROWS ONLY"), Statement::Query(query("SELECT 1 LIMIT 3")));
    for sql in [
        "CREATE EXTERNAL TABLE t STORED AS PARQUET LOCATION '/x'",
        "COPY (SELECT 1 FETCH FIRST ROW ONLY) TO '/x' STORED AS PARQUET",
        "CREATE SCHEMA x",
        "DROP SCHEMA x",
    ] {
        assert!(matches!(one(sql), Statement::DataFusion(_)), "{sql}");
    }
    refused("REPLACE INTO t SELECT 1", "line 1, column 1: this form is not supported");
    refused("CREATE GLOBAL TEMPORARY TABLE t (a INT)", "line 1, column 1: this form is not supported");
}

#[test]
fn explain() {
    let explained =
        |analyze, verbose, sql: &str| Statement::Explain { analyze, verbose, statement: Box::new(one(sql)) };
    check("EXPLAIN SELECT 1", explained(false, false, "SELECT 1"));
    check("EXPLAIN PLAN FOR INSERT INTO t SELECT 1", explained(false, false, "INSERT INTO t SELECT 1"));
    check("EXPLAIN ANALYZE VERBOSE SELECT 1", explained(true, true, "SELECT 1"));
    check("EXPLAIN (SELECT 1)", explained(false, false, "(SELECT 1)"));
    refused("EXPLAIN SET 'a' = 'b'", "line 1, column 9: EXPLAIN takes a query or an INSERT");
    refused("EXPLAIN EXPLAIN SELECT 1", "line 1, column 9: EXPLAIN takes a query or an INSERT");
    refused("EXPLAIN (ANALYZE) SELECT 1", "line 1, column 9: EXPLAIN takes no options in parentheses");
    refused("EXPLAIN ESTIMATED_COST FOR SELECT 1", "line 1, column 9: EXPLAIN takes no such option");
}

#[test]
fn expressions_and_single_queries() {
    assert_eq!(
        parse_expression("a.b + CAST(`c` AS ROW<d INT>) -- x").unwrap().to_string(),
        "a.b + CAST(`c` AS STRUCT<d INT>)"
    );
    for (text, part) in
        [("", "expected one expression"), ("a b", "column 3: expected the end"), ("a; b", "one expression")]
    {
        let error = parse_expression(text).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    assert!(parse_query("SET").is_err() && parse_query("SELECT 1; SELECT 2").is_err() && parse_query("").is_err());
}

#[test]
fn statement_sets() {
    let insert = |table: &str, sql: &str| Insert { table: table.into(), columns: vec![], query: query(sql) };
    let both = vec![insert("a", "SELECT CASE WHEN x THEN 1 END FROM t"), insert("b", "SELECT 2")];
    let set = "STATEMENT SET BEGIN
                 INSERT INTO a SELECT CASE WHEN x THEN 1 END FROM t;
                 INSERT INTO b SELECT 2; -- the last
               END";
    check(&format!("EXECUTE {set}"), Statement::StatementSet(both.clone()));
    let explained = one(&format!("EXPLAIN PLAN FOR {set}"));
    let Statement::Explain { statement, .. } = explained else { panic!("{explained:?}") };
    assert_eq!(*statement, Statement::StatementSet(both));
    let script = parse(&format!("SET 'a' = 'b'; execute {set}; SELECT 1;")).unwrap();
    assert_eq!(script.len(), 3);
    assert!(matches!(script[1].statement, Statement::StatementSet(_)));

    refused("EXECUTE STATEMENT SET BEGIN END", "line 1, column 32: a statement set needs an INSERT");
    refused("EXECUTE STATEMENT SET BEGIN INSERT INTO a SELECT 1 END", "line 1, column 52: expected ;, found END");
    refused("EXECUTE STATEMENT SET BEGIN INSERT INTO a SELECT 1;", "line 1, column 52: expected INSERT INTO or END");
    refused("EXECUTE STATEMENT SET BEGIN SELECT 1; END", "line 1, column 29: expected INSERT INTO or END");
    refused("EXECUTE THIS", "line 1, column 9: the only thing to execute is a statement set");
}

#[test]
fn a_prompt_waits_for_the_end_of_a_statement_set() {
    let set = "EXECUTE STATEMENT SET BEGIN INSERT INTO a SELECT CASE WHEN x THEN 1 END; INSERT INTO b SELECT 2;";
    assert!(!is_complete(set));
    assert!(!is_complete("EXECUTE STATEMENT SET BEGIN INSERT INTO a SELECT CASE WHEN x THEN 1 END;"));
    assert!(is_complete(&format!("{set} END;")));
    assert!(!is_complete(&format!("{set} END")));
}

//! Statements about catalogs, topics, groups and running queries.

use std::collections::BTreeMap;

use super::super::*;
use super::{one, refused};
use crate::connector::cluster::ResetTo;

fn check(sql: &str, expected: Statement) {
    assert_eq!(one(sql), expected, "{sql}");
}

fn map<T>(pairs: impl IntoIterator<Item = (&'static str, T)>) -> BTreeMap<String, T> {
    pairs.into_iter().map(|(key, value)| (key.to_string(), value)).collect()
}

#[test]
fn catalogs() {
    let create = |if_not_exists| Statement::CreateCatalog {
        name: "k".into(),
        options: map([("type", "x".to_string()), ("A.b", "it's".to_string())]),
        if_not_exists,
    };
    check("CREATE CATALOG k WITH ('type' = 'x', 'A.b' = 'it''s')", create(false));
    check("create catalog if not exists k with ('A.b' = 'it''s', 'type' = 'x')", create(true));
    check("DROP CATALOG k", Statement::DropCatalog { name: "k".into(), if_exists: false });
    check("DROP CATALOG IF EXISTS `k`", Statement::DropCatalog { name: "k".into(), if_exists: true });
    check("SHOW CATALOGS", Statement::ShowCatalogs);
    refused("CREATE CATALOG k", "line 1, column 17: expected WITH ('type' = '…', …), found the end of the statement");
    refused("CREATE CATALOG k.l WITH ('a' = 'b')", "line 1, column 17: the name of a catalog has one part");
    refused("CREATE CATALOG k WITH ('a' = 'b', 'a' = 'c')", "line 1, column 35: the option 'a' is given twice");
    refused("DROP CATALOG k CASCADE", "line 1, column 16: expected the end of the statement, found CASCADE");
    refused("SHOW CATALOGS LIKE 'x'", "line 1, column 15: expected the end of the statement, found LIKE");
}

#[test]
fn topics() {
    let (catalog, topic) = (|| "k".to_string(), || "orders".to_string());
    let create =
        |options, if_not_exists| Statement::CreateTopic { catalog: catalog(), topic: topic(), options, if_not_exists };
    check("CREATE TOPIC k.orders", create(map([]), false));
    let partitions = map([("partitions", "8".to_string())]);
    check("CREATE TOPIC IF NOT EXISTS k.orders WITH ('partitions' = '8')", create(partitions, true));
    check("DROP TOPIC k.orders", Statement::DropTopic { catalog: catalog(), topic: topic(), if_exists: false });
    let dotted = |if_exists| Statement::DropTopic { catalog: catalog(), topic: "my.topic-1".into(), if_exists };
    check("DROP TOPIC IF EXISTS k.`my.topic-1`", dotted(true));
    check("DESCRIBE TOPIC k.orders", Statement::DescribeTopic { catalog: catalog(), topic: topic() });
    check("SHOW TOPICS FROM k", Statement::ShowTopics { catalog: catalog(), like: None });
    let like = Some("order\\_%".to_string());
    check("SHOW TOPICS FROM k LIKE 'order\\_%'", Statement::ShowTopics { catalog: catalog(), like });
    assert!(matches!(one("SELECT * FROM k.orders LIMIT 5"), Statement::Query(_)));
    assert!(matches!(one("SELECT * FROM k.`my.topic-1`"), Statement::Query(_)));
    refused("CREATE TOPIC orders", "line 1, column 20: expected a dot and the name of a topic, as in orders.name");
    refused("CREATE TOPIC k.", "line 1, column 16: expected the name of a topic, found the end of the statement");
    refused("CREATE TOPIC k.my-topic", "line 1, column 18: put the name of the topic into backticks");
    refused("DROP TOPIC k.my.topic", "line 1, column 16: put the name of the topic into backticks");
    refused("DESCRIBE TOPIC k.a b", "line 1, column 20: expected the end of the statement, found b");
    refused("SHOW TOPICS", "line 1, column 12: expected FROM and the name of a catalog");
    refused("SHOW TOPICS LIKE 'x'", "line 1, column 13: expected FROM and the name of a catalog, found LIKE");
    refused("SHOW TOPICS FROM k LIKE x", "line 1, column 25: expected a pattern in single quotes, found x");
}

#[test]
fn groups() {
    check("SHOW GROUPS FROM k LIKE 'b%'", Statement::ShowGroups { catalog: "k".into(), like: Some("b%".into()) });
    let group = Statement::DescribeGroup { catalog: "k".into(), group: "my.group-1".into() };
    check("DESC GROUP k.`my.group-1`", group);
    check("DESCRIBE group", Statement::Describe { name: "group".into() });
    check("RESET group.x", Statement::Reset { key: Some("group.x".into()) });

    let reset = |to, execute| {
        let (catalog, group, topic) = ("k".into(), "billing".into(), "orders".into());
        Statement::ResetGroup(ResetGroup { catalog, group, topic, to, execute })
    };
    let to = |text: &str| format!("RESET GROUP k.billing FOR TOPIC orders TO {text}");
    check(&to("EARLIEST"), reset(ResetTo::Earliest, false));
    check(&to("latest execute"), reset(ResetTo::Latest, true));
    check(
        &to("OFFSETS ('0' = '42', 'broker-a:1' = '7') EXECUTE"),
        reset(ResetTo::Offsets(map([("0", 42), ("broker-a:1", 7)])), true),
    );
    for (moment, ms) in [
        ("'2026-01-01'", 1_767_225_600_000),
        ("'2026-01-01 00:00:00'", 1_767_225_600_000),
        ("'2026-01-01 00:00:00.123'", 1_767_225_600_123),
        ("'2026-01-01T00:00:00Z'", 1_767_225_600_000),
        ("'2026-01-01T01:00:00+01:00'", 1_767_225_600_000),
        ("1767225600000", 1_767_225_600_000),
    ] {
        check(&to(&format!("TIMESTAMP {moment}")), reset(ResetTo::Timestamp(ms), false));
    }

    let refused_to = |text: &str, message: &str| refused(&to(text), &format!("line 1, column {message}"));
    refused_to("", "42: expected EARLIEST, LATEST, TIMESTAMP '…' or OFFSETS");
    refused_to("noon", "43: expected EARLIEST, LATEST, TIMESTAMP '…' or OFFSETS");
    refused_to("TIMESTAMP 'noon'", "53: expected a time such as '2026-01-01 00:00:00'");
    refused_to("TIMESTAMP '2026-01-01 25:00:00'", "53: expected a time such as '2026-01-01 00:00:00'");
    refused_to("TIMESTAMP -1", "53: expected a time such as");
    refused_to("OFFSETS ('0' = '1', '0' = '2')", "63: the partition '0' is given twice");
    refused_to("OFFSETS ('0' = 'x')", "58: 'x' is no offset; say a number such as '42'");
    refused_to("OFFSETS ('0' = '-1')", "58: '-1' is no offset");
    refused_to("OFFSETS (0 = '1')", "52: expected a partition in single quotes, found 0");
    refused_to("LATEST EXECUTE now", "58: expected the end of the statement, found now");
    refused("RESET GROUP", "line 1, column 12: expected the name of a catalog, found the end of the statement");
    refused("RESET GROUP billing", "line 1, column 20: expected a dot and the name of a group");
    refused("RESET GROUP k.g TO LATEST", "line 1, column 17: expected FOR TOPIC, found TO");
    refused("RESET GROUP k.g FOR TOPIC a.b TO LATEST", "line 1, column 28: put the name of the topic into backticks");
}

#[test]
fn queries() {
    check("SHOW QUERIES", Statement::ShowQueries);
    check("DESCRIBE QUERY 'shell/t'", Statement::DescribeQuery { name: "shell/t".into() });
    check("DESCRIBE query", Statement::Describe { name: "query".into() });
    check("stop query `shell/t`", Statement::StopQuery { name: "shell/t".into() });
    check("STOP QUERY q", Statement::StopQuery { name: "q".into() });
    check("RESTART QUERY 'a/b/c'", Statement::RestartQuery { name: "a/b/c".into() });
    refused("STOP", "line 1, column 5: expected QUERY, found the end of the statement");
    refused("STOP shell", "line 1, column 6: expected QUERY, found shell");
    refused("RESTART QUERY", "line 1, column 14: expected the name of a query, found the end of the statement");
    refused("STOP QUERY shell/t", "line 1, column 17: put the name of the query into quotes, as in 'shell/table'");
    refused("STOP QUERY 'a' 'b'", "line 1, column 16: expected the end of the statement, found 'b'");
    refused("SHOW JOBS", "line 1, column 6: there is no SHOW JOBS; say SHOW QUERIES");
    refused("SHOW QUERYS", "line 1, column 6: there is no SHOW QUERYS; did you mean 'QUERIES'?");
}

#[test]
fn patterns() {
    for (pattern, fits) in [
        ("orders", true),
        ("order", false),
        ("ORDERS", false),
        ("order%", true),
        ("%der%", true),
        ("%", true),
        ("______", true),
        ("_____", false),
        ("o%d_rs", true),
        ("", false),
    ] {
        assert_eq!(is_like("orders", pattern), fits, "{pattern}");
    }
    assert!(is_like("a_b", "a\\_b") && !is_like("axb", "a\\_b"));
    assert!(is_like("50%.x", "50\\%.%") && !is_like("505x", "50\\%.%"));
    assert!(is_like("é(ü", "_(%") && is_like("a\nb", "a%b"));
}

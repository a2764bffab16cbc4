//! Tests of `parse` as a whole: what statements mean, what is refused and where, and that nothing panics.

mod clusters;
mod robustness;
mod statements;
mod tables;
mod windows;

use super::{Parsed, Statement, parse};

/// The one statement of `sql`.
fn one(sql: &str) -> Statement {
    let mut parsed = parse(sql).unwrap_or_else(|error| panic!("{sql}\n{error}"));
    assert_eq!(parsed.len(), 1, "{sql}");
    parsed.swap_remove(0).statement
}

/// `sql` fails with a message that begins like this.
fn refused(sql: &str, message: &str) {
    match parse(sql) {
        Ok(parsed) => panic!("{sql}\n  gave {parsed:?}"),
        Err(error) => {
            assert!(error.to_string().starts_with(message), "{sql}\n  gave {error}\n  not  {message}");
        }
    }
}

#[test]
fn a_script_is_cut_into_statements_with_their_places() {
    let script = "-- first; not a statement\nSET 'a' = 'b;c' ; /* ; */\n\n  SELECT é, -- x ;\n ';' ;;DROP TABLE t";
    let parsed = parse(script).unwrap();
    let cuts: Vec<_> =
        parsed.iter().map(|Parsed { text, location: l, .. }| (text.as_str(), l.line, l.column)).collect();
    assert_eq!(cuts, [("SET 'a' = 'b;c'", 2, 1), ("SELECT é, -- x ;\n ';'", 4, 3), ("DROP TABLE t", 5, 8)]);
    assert_eq!(parse(" -- nothing\n ; ").unwrap(), []);
}

#[test]
fn syntax_errors_carry_their_place_in_the_script() {
    refused("SELECT 1;\nSELECT a FROM", "line 2, column 14: expected identifier, found the end of the statement");
    refused("SELECT 1;\n  SELECT (1", "line 2, column 12: expected ), found the end of the statement");
    refused("SELECT 'a", "line 1, column 8: unterminated string literal");
    refused("SELECT 1 + ;SELECT 2", "line 1, column 11: expected an expression, found the end of the statement");
    refused("SELECT 1 2", "line 1, column 10: expected the end of the statement, found 2");
    refused("FOO", "line 1, column 1: expected an SQL statement, found FOO");
    refused("SELECT CAST(a AS ROW<b INT>), c d e", "line 1, column 35: expected the end of the statement, found e");
    let zone = "SELECT CAST(a AS TIMESTAMP(3) WITH LOCAL TIME ZONE) x y";
    refused(zone, "line 1, column 55: expected the end of the statement, found y");
}

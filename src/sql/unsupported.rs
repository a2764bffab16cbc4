//! What Flink has and Millstream does not: refused by name, with what to write instead.
//!
//! Some of it parses and would mean something else, or fail far away in the planner: [`refuse`] looks for it in the
//! tokens before they are parsed. The rest fails to parse, with a message about brackets: [`explain`] looks at the place
//! of such an error and names the construct. Only unquoted words count, and at least two tokens make a pattern, so a
//! column may be called `json` or `session`.

use sqlparser::tokenizer::{Token, TokenWithSpan};

use super::source::location;
use super::tokens::is_word;
use super::types::is_type_word;
use crate::error::{Error, Result};

/// How a statement begins, and why it is refused.
const STATEMENTS: &[(&[&str], &str)] = &[
    (&["BEGIN", "STATEMENT", "SET"], "say EXECUTE STATEMENT SET BEGIN INSERT …; INSERT …; END"),
    (&["EXECUTE", "PLAN"], "EXECUTE PLAN is not supported; run the INSERT itself"),
    (&["COMPILE", "PLAN"], "COMPILE PLAN is not supported; EXPLAIN shows the plan of a query"),
    (&["USE"], "USE is not supported: there are no databases, and a topic is named with its catalog, as in k.orders"),
    (&["PREPARE"], "PREPARE is not supported; write the statement itself, or a file with ${name} and --var name=value"),
    (&["DEALLOCATE"], "DEALLOCATE is not supported: there are no prepared statements"),
    (&["ALTER", "VIEW"], "ALTER VIEW is not supported; say CREATE OR REPLACE VIEW"),
    (
        &["CREATE", "MATERIALIZED"],
        "materialized views are not supported; say CREATE VIEW, or CREATE TABLE … WITH (…) AS",
    ),
    (&["CREATE", "OR", "REPLACE", "TABLE"], "CREATE OR REPLACE TABLE is not supported; say DROP TABLE IF EXISTS first"),
    (&["ANALYZE", "TABLE"], "ANALYZE TABLE is not supported: streams have no statistics"),
    (&["ADD", "JAR"], "ADD JAR is not supported: there are no user functions yet"),
];

/// Tokens that are refused wherever they stand; `'` is any string in single quotes.
const ANYWHERE: &[(&[&str], &str)] = &[
    (&["FOR", "SYSTEM_TIME"], "FOR SYSTEM_TIME AS OF is not supported yet; join with the table as it is"),
    (&["TABLESAMPLE", "("], "TABLESAMPLE is not supported; say WHERE random() < 0.1"),
    (&["TABLESAMPLE", "BERNOULLI"], "TABLESAMPLE is not supported; say WHERE random() < 0.1"),
    (&["TABLESAMPLE", "SYSTEM"], "TABLESAMPLE is not supported; say WHERE random() < 0.1"),
    (&["MATCH_RECOGNIZE", "("], "MATCH_RECOGNIZE is not supported; compare rows with LAG and LEAD"),
    (&["RLIKE", "'"], "RLIKE is not supported; say regexp_like(text, 'pattern')"),
    (&["IS", "JSON"], "IS JSON is not supported yet; leave the test out"),
    (&["IS", "NOT", "JSON"], "IS NOT JSON is not supported yet; leave the test out"),
    (&["MULTISET", "<"], "MULTISET is not supported; say ARRAY<…>"),
];

/// Refuses what would be misread.
pub(super) fn refuse(tokens: &[TokenWithSpan]) -> Result<()> {
    if let Some((_, message)) = STATEMENTS.iter().find(|(pattern, _)| matches(tokens, pattern)) {
        return Err(at(message, &tokens[0]));
    }
    for (index, token) in tokens.iter().enumerate() {
        let rest = &tokens[index..];
        if let Some((_, message)) = ANYWHERE.iter().find(|(pattern, _)| matches(rest, pattern)) {
            return Err(at(message, token));
        }
        if is_row_in_parentheses(rest) {
            return Err(at("ROW(name TYPE, …) is not supported; say ROW<name TYPE, …>", token));
        }
    }
    Ok(())
}

/// A syntax error, or a better one that names what stands at its place.
pub(super) fn explain(tokens: &[TokenWithSpan], error: Error) -> Error {
    let found = error.location().and_then(|place| tokens.iter().position(|t| location(t.span.start) == Some(place)));
    let Some(index) = found else { return error };
    let (token, rest) = (&tokens[index], &tokens[index..]);
    let after_type = index > 0 && ends_type(&tokens[index - 1].token);
    if after_type && (is_word(&token.token, "ARRAY") || is_word(&token.token, "MULTISET")) {
        return at(&format!("a type such as INT {} is not supported; say ARRAY<INT>", token.token), token);
    }
    if matches(rest, &["NOT", "NULL"]) && error.to_string().contains("expected >") {
        return at("NOT NULL within a type is not supported; leave it out", token);
    }
    error
}

fn matches(tokens: &[TokenWithSpan], pattern: &[&str]) -> bool {
    tokens.len() >= pattern.len() && tokens.iter().zip(pattern).all(|(token, part)| is_part(&token.token, part))
}

fn is_part(token: &Token, part: &str) -> bool {
    match token {
        Token::LParen => part == "(",
        Token::Lt => part == "<",
        Token::SingleQuotedString(_) => part == "'",
        word => is_word(word, part),
    }
}

/// `ROW(a INT…`: two words in a row, of which the second is a type, are no expression.
fn is_row_in_parentheses(tokens: &[TokenWithSpan]) -> bool {
    match tokens {
        [row, open, name, of_type, ..] => {
            is_word(&row.token, "ROW")
                && open.token == Token::LParen
                && matches!(name.token, Token::Word(_))
                && matches!(&of_type.token, Token::Word(w) if w.quote_style.is_none() && is_type_word(&w.value))
        }
        _ => false,
    }
}

fn ends_type(token: &Token) -> bool {
    match token {
        Token::Word(word) => word.quote_style.is_none() && is_type_word(&word.value),
        Token::RParen | Token::Gt | Token::ShiftRight => true,
        _ => false,
    }
}

fn at(message: &str, token: &TokenWithSpan) -> Error {
    let error = Error::usage(message);
    match location(token.span.start) {
        Some(place) => error.at(place),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    fn check(sql: &str, expected: &str) {
        let error = crate::sql::parse(sql).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{sql}\n  gave {error}\n  not  {expected}");
    }

    #[test]
    fn statements_are_refused_by_name() {
        check("BEGIN STATEMENT SET; INSERT INTO a SELECT 1; END", "line 1, column 1: say EXECUTE STATEMENT SET BEGIN");
        check("SELECT 1;\n  use catalog k", "line 2, column 3: USE is not supported");
        check("ALTER VIEW v AS SELECT 1", "line 1, column 1: ALTER VIEW is not supported");
        check("PREPARE p AS SELECT 1", "line 1, column 1: PREPARE is not supported");
        check("deallocate PREPARE p", "line 1, column 1: DEALLOCATE is not supported");
    }

    #[test]
    fn constructs_are_refused_where_they_stand() {
        check("SELECT * FROM t FOR SYSTEM_TIME AS OF x", "line 1, column 17: FOR SYSTEM_TIME AS OF is not");
        check("SELECT * FROM t TABLESAMPLE BERNOULLI (10)", "line 1, column 17: TABLESAMPLE is not supported");
        check("SELECT * FROM t MATCH_RECOGNIZE (x)", "line 1, column 17: MATCH_RECOGNIZE is not");
        check("SELECT a NOT RLIKE 'x'", "line 1, column 14: RLIKE is not supported; say regexp_like");
        check("SELECT a IS NOT JSON", "line 1, column 10: IS NOT JSON");
    }

    #[test]
    fn types_are_refused_by_name() {
        check("SELECT CAST(x AS ROW(a INT))", "line 1, column 18: ROW(name TYPE, …) is not supported");
        check("SELECT CAST(x AS INT MULTISET)", "line 1, column 22: a type such as INT MULTISET");
        check("SELECT CAST(x AS MULTISET<INT>)", "line 1, column 18: MULTISET is not supported");
        let table = |column: &str| format!("CREATE TABLE t ({column}) WITH ('connector' = 'x')");
        check(&table("a INT ARRAY"), "line 1, column 23: a type such as INT ARRAY");
        check(&table("a VARCHAR(3) MULTISET"), "line 1, column 30: a type such as INT MULTISET");
        check(&table("a ROW<b INT NOT NULL>"), "line 1, column 29: NOT NULL within a type");
        check(&table("a ARRAY<INT NOT NULL>"), "line 1, column 29: NOT NULL within a type");
    }

    #[test]
    fn columns_may_have_such_names() {
        for sql in
            ["SELECT json, session, rlike, row FROM t", "SELECT row(a, b), hop(1)", "SELECT `use`, prepare FROM stop"]
        {
            assert!(crate::sql::parse(sql).is_ok(), "{sql}");
        }
    }
}

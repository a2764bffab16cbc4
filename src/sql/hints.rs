//! Hints: `FROM t /*+ OPTIONS('key' = 'value', …) */ [AS x]` reads a table with other options, there alone.
//!
//! The idea: to sqlparser a hint is a comment, and `t(OPTIONS('key' = 'value'))` a relation. So the tokens of the one
//! become those of the other, and [`hints`] finds them in the tree. Printed and parsed again a query says the same.
//!
//! Guaranteed: a hint is never dropped. What is no list of options, or stands anywhere but behind the name of a table
//! that is read, is refused at its place. Not promised: that there is such a table, or such an option; see the
//! session.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use sqlparser::ast::{
    BinaryOperator, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, Ident, ObjectName, ObjectNamePart,
    Query, TableFactor, Value, ValueWithSpan, Visit, Visitor,
};
use sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer, Whitespace};

use super::dialect::MillstreamDialect;
use super::source::location;
use super::tokens::is_word;
use crate::error::{Error, Location, Result};

/// What a hint says.
const OPTIONS: &str = "OPTIONS";
/// Where it may stand.
const USAGE: &str = "say FROM t /*+ OPTIONS('key' = 'value', …) */ [AS x]";

/// Puts the tokens of a hint, the comment `token`, behind those of its statement `before` it.
pub(super) fn append(before: &mut Vec<TokenWithSpan>, comment: &str, token: &TokenWithSpan) -> Result<()> {
    let refuse = |what: &str| {
        let shown: String = comment.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(40).collect();
        let error = Error::usage(format!("/*{shown}*/: {what}"));
        match location(token.span.start) {
            Some(place) => error.at(place),
            None => error,
        }
    };
    let list = list(comment).ok_or_else(|| refuse(&format!("that is no hint; {USAGE}, or write a plain comment")))?;
    if let Some(what) = misplaced(before) {
        return Err(refuse(what));
    }
    let tokens = [Token::LParen].into_iter().chain(list).chain([Token::RParen]);
    before.extend(tokens.map(|inserted| TokenWithSpan::new(inserted, token.span)));
    Ok(())
}

/// Where the hint ends behind the name that ends at `last`; there, if there is none.
pub(super) fn last_behind(tokens: &[TokenWithSpan], last: usize) -> usize {
    match tokens.get(last + 1..) {
        Some([open, word, rest @ ..]) if open.token == Token::LParen && is_word(&word.token, OPTIONS) => {
            // Two brackets close one behind the other.
            rest.iter().position(|token| token.token == Token::RParen).map_or(last, |close| last + 3 + close + 1)
        }
        _ => last,
    }
}

/// The tokens of `OPTIONS('key' = 'value', …)`.
fn list(comment: &str) -> Option<Vec<Token>> {
    let mut tokens = Tokenizer::new(&MillstreamDialect, comment.strip_prefix('+')?).tokenize().ok()?;
    tokens
        .retain(|token| !matches!(token, Token::Whitespace(Whitespace::Space | Whitespace::Newline | Whitespace::Tab)));
    let [word, Token::LParen, pairs @ .., Token::RParen] = tokens.as_slice() else { return None };
    let is_pair =
        |pair: &[Token]| matches!(pair, [Token::SingleQuotedString(_), Token::Eq, Token::SingleQuotedString(_)]);
    let is_list = is_word(word, OPTIONS) && pairs.split(|token| *token == Token::Comma).all(is_pair);
    is_list.then_some(tokens)
}

/// Why no hint may follow these tokens, if so.
fn misplaced(before: &[TokenWithSpan]) -> Option<&'static str> {
    const ELSEWHERE: &str =
        "a hint stands right behind the name of a table that is read; say FROM t /*+ OPTIONS(…) */ [AS x]";
    const DESTINATION: &str = "the table of an INSERT takes no hint; put its options into the WITH list of the table";
    let [head @ .., last] = before else { return Some(ELSEWHERE) };
    if is_word(&last.token, "SELECT") {
        return Some("SELECT takes no hint; put it behind the table in FROM whose options it has");
    }
    if is_word(&last.token, "INSERT") {
        return Some(DESTINATION);
    }
    if !matches!(last.token, Token::Word(_)) {
        return Some(ELSEWHERE);
    }
    let mut head = head;
    while let [rest @ .., name, point] = head
        && point.token == Token::Period
        && matches!(name.token, Token::Word(_))
    {
        head = rest;
    }
    match head {
        [.., into, table] if is_word(&table.token, "TABLE") && is_word(&into.token, "INTO") => Some(DESTINATION),
        [.., into] if is_word(&into.token, "INTO") => Some(DESTINATION),
        [.., open, table] if is_word(&table.token, "TABLE") => match open.token {
            Token::LParen | Token::Comma | Token::RArrow => None,
            _ => Some(ELSEWHERE),
        },
        [.., from] if ["FROM", "JOIN"].iter().any(|word| is_word(&from.token, word)) => None,
        // In a list of FROM, or of something else: that is seen in the tree.
        [.., from] if matches!(from.token, Token::Comma | Token::LParen) => None,
        _ => Some(ELSEWHERE),
    }
}

/// A table with options for one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hint {
    /// The table.
    pub table: String,
    /// The options.
    pub options: BTreeMap<String, String>,
    /// Where the table stands.
    pub place: Location,
}

impl Hint {
    /// That of a relation, if it has one.
    ///
    /// Errors: a name of several parts; an option that is given twice.
    pub fn of(relation: &TableFactor) -> Result<Option<Self>> {
        let TableFactor::Table { name, args: Some(arguments), .. } = relation else { return Ok(None) };
        let Some(pairs) = options(&arguments.args) else { return Ok(None) };
        let place = name.0.first().and_then(ObjectNamePart::as_ident).map(place).unwrap_or(START);
        let [ObjectNamePart::Identifier(table)] = name.0.as_slice() else {
            return Err(Error::usage(format!(
                "{name}: only a table of CREATE TABLE takes a hint; of a topic it makes one without naming columns"
            ))
            .at(place));
        };
        let mut options = BTreeMap::new();
        for (key, value) in pairs {
            if options.insert(key.to_string(), value.to_string()).is_some() {
                return Err(Error::usage(format!("the hint of {table} gives the option '{key}' twice")).at(place));
            }
        }
        Ok(Some(Self { table: table.value.clone(), options, place }))
    }
}

const START: Location = Location { line: 1, column: 1 };

fn place(name: &Ident) -> Location {
    location(name.span.start).unwrap_or(START)
}

/// All hints of a query.
///
/// Errors: a hint in an expression, or behind the name of a WITH query.
pub fn hints(query: &Query) -> Result<Vec<Hint>> {
    let mut found = Found::default();
    if let ControlFlow::Break(error) = query.visit(&mut found) {
        return Err(error);
    }
    match found.hints.iter().find(|hint| found.queries.contains(&hint.table)) {
        Some(hint) => Err(Error::usage(format!(
            "{} is a WITH query, which has no options; put the hint behind the table in it",
            hint.table
        ))
        .at(hint.place)),
        None => Ok(found.hints),
    }
}

/// What is found in a query: its hints, and the names of its WITH queries.
#[derive(Default)]
struct Found {
    hints: Vec<Hint>,
    queries: Vec<String>,
}

impl Visitor for Found {
    type Break = Error;

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<Error> {
        let named = query.with.iter().flat_map(|with| &with.cte_tables);
        self.queries.extend(named.map(|named| named.alias.name.value.clone()));
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, relation: &TableFactor) -> ControlFlow<Error> {
        match Hint::of(relation) {
            Ok(hint) => {
                self.hints.extend(hint);
                ControlFlow::Continue(())
            }
            Err(error) => ControlFlow::Break(error),
        }
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<Error> {
        match expr {
            Expr::Function(Function { name, args: FunctionArguments::List(list), .. })
                if options(&list.args).is_some() =>
            {
                let error = Error::usage(format!("{name} is no table that is read, so it takes no hint; {USAGE}"));
                let name = name.0.first().and_then(ObjectNamePart::as_ident);
                ControlFlow::Break(error.at(name.map(place).unwrap_or(START)))
            }
            _ => ControlFlow::Continue(()),
        }
    }
}

/// The pairs of `OPTIONS('key' = 'value', …)`, if that is what these arguments are.
fn options(arguments: &[FunctionArg]) -> Option<Vec<(&str, &str)>> {
    let [FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Function(function)))] = arguments else { return None };
    let FunctionArguments::List(list) = &function.args else { return None };
    if !is_options(&function.name) || list.args.is_empty() {
        return None;
    }
    list.args.iter().map(pair).collect()
}

fn is_options(name: &ObjectName) -> bool {
    match name.0.as_slice() {
        [ObjectNamePart::Identifier(word)] => word.quote_style.is_none() && word.value.eq_ignore_ascii_case(OPTIONS),
        _ => false,
    }
}

fn pair(argument: &FunctionArg) -> Option<(&str, &str)> {
    let FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::BinaryOp { left, op: BinaryOperator::Eq, right })) = argument
    else {
        return None;
    };
    Some((text(left)?, text(right)?))
}

fn text(literal: &Expr) -> Option<&str> {
    match literal {
        Expr::Value(ValueWithSpan { value: Value::SingleQuotedString(text), .. }) => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::parse_query;

    /// The hints of a query, and that it says the same when it is printed.
    fn found(sql: &str) -> Vec<String> {
        let shown = |query: &Query| {
            let hints = hints(query).unwrap().into_iter();
            hints.map(|hint| format!("{} {:?}", hint.table, hint.options)).collect::<Vec<_>>()
        };
        let query = parse_query(sql).unwrap();
        let printed = query.to_string();
        assert_eq!(parse_query(&printed).unwrap().to_string(), printed);
        assert_eq!(shown(&parse_query(&printed).unwrap()), shown(&query));
        shown(&query)
    }

    fn refused(sql: &str) -> String {
        match parse_query(sql).and_then(|query| hints(&query)) {
            Ok(hints) => panic!("{sql}\n  gave {hints:?}"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_hint_belongs_to_the_table_before_it() {
        assert_eq!(
            found("SELECT * FROM t /*+ OPTIONS('a' = 'b', 'c.d'='It''s') */"),
            [r#"t {"a": "b", "c.d": "It's"}"#]
        );
        let joined = "SELECT * FROM a /*+ options('k'='1') */ AS x JOIN `b c` /*+ OPTIONS('k'='2') */ y USING (k)";
        assert_eq!(found(joined), [r#"a {"k": "1"}"#, r#"b c {"k": "2"}"#]);
        let listed = "SELECT a, b FROM x, y /*+ OPTIONS('k'='1') */, (z /*+ OPTIONS('k'='2') */ CROSS JOIN w)";
        assert_eq!(found(listed), [r#"y {"k": "1"}"#, r#"z {"k": "2"}"#]);
        let nested = "WITH q AS (SELECT * FROM t /*+ OPTIONS('k'='1') */)
            SELECT * FROM q WHERE k IN (SELECT k FROM u /*+ OPTIONS('k'='2') */) UNION ALL SELECT * FROM v";
        assert_eq!(found(nested), [r#"t {"k": "1"}"#, r#"u {"k": "2"}"#]);
    }

    #[test]
    fn windows_take_tables_with_hints() {
        let hinted = "TABLE t /*+ OPTIONS('k' = '1') */";
        for window in [
            format!("TUMBLE({hinted}, DESCRIPTOR(ts), INTERVAL '1' MINUTE)"),
            format!(
                "TABLE(HOP(DATA => {hinted}, TIMECOL => DESCRIPTOR(ts), SLIDE => INTERVAL '1' MINUTE,
                   SIZE => INTERVAL '2' MINUTES))"
            ),
            format!("SESSION({hinted} PARTITION BY k, DESCRIPTOR(ts), INTERVAL '1' MINUTE)"),
        ] {
            assert_eq!(found(&format!("SELECT * FROM {window}")), [r#"t {"k": "1"}"#], "{window}");
        }
    }

    #[test]
    fn hints_are_refused_elsewhere() {
        let hint = "/*+ OPTIONS('k' = 'v') */";
        for (sql, message) in [
            (format!("SELECT {hint} a FROM t"), "line 1, column 8: /*+ OPTIONS('k' = 'v')*/: SELECT takes no hint"),
            (
                format!("SELECT a FROM t AS x {hint}"),
                "line 1, column 22: /*+ OPTIONS('k' = 'v')*/: a hint stands right",
            ),
            (format!("SELECT a FROM (SELECT 1) {hint}"), "line 1, column 26: /*+ OPTIONS"),
            (format!("SELECT a FROM f(1) {hint}"), "line 1, column 20: /*+ OPTIONS"),
            (format!("SELECT a, b {hint} FROM t"), "line 1, column 11: b is no table that is read"),
            (format!("WITH q AS (SELECT 1) SELECT * FROM q {hint}"), "line 1, column 36: q is a WITH query"),
            (format!("SELECT * FROM k.t {hint}"), "line 1, column 15: k.t: only a table of CREATE TABLE"),
            ("SELECT * FROM t /*+ BROADCAST(t) */".into(), "line 1, column 17: /*+ BROADCAST(t)*/: that is no hint"),
            ("SELECT * FROM t /*+ OPTIONS('k' = 1) */".into(), "line 1, column 17: /*+ OPTIONS('k' = 1)*/: that is no"),
            ("SELECT * FROM t /*+ OPTIONS() */".into(), "line 1, column 17: /*+ OPTIONS()*/: that is no hint"),
            ("SELECT * FROM t /*+ 'open */".into(), "line 1, column 17: /*+ 'open*/: that is no hint"),
            ("SELECT * FROM t /*+ OPTIONS('k'='1', 'k'='2') */".into(), "line 1, column 15: the hint of t gives"),
        ] {
            let error = refused(&sql);
            assert!(error.starts_with(message), "{sql}\n  gave {error}\n  not  {message}");
        }
        for sql in [format!("INSERT {hint} INTO t SELECT 1"), format!("INSERT INTO t {hint} SELECT 1")] {
            let error = crate::sql::parse(&sql).unwrap_err().to_string();
            assert!(
                error.contains("the table of an INSERT takes no hint; put its options into the WITH list"),
                "{error}"
            );
        }
        let error = crate::sql::parse(&format!("INSERT INTO TABLE t {hint} SELECT 1")).unwrap_err().to_string();
        assert!(error.contains("the table of an INSERT takes no hint"), "{error}");
    }
}

//! The pass over the tokens, before any parser sees them.
//!
//! sqlparser offers no hook for types or comments, but it takes tokens. So here a text becomes one list of tokens for
//! each statement, in which `ROW<…>` has become `STRUCT<…>`, `TIMESTAMP(3) WITH LOCAL TIME ZONE` has become
//! `TIMESTAMP_LTZ(3)`, the `TABLE t` that a window function takes `(SELECT * FROM t)`, its `PARTITION BY k` one more
//! argument, and a hint the arguments of its table (`hints`). A new token keeps the place of the one it replaces, so
//! that errors point at what was written.
//!
//! Refused are nesting or chains of operators so long that parsing or dropping the tree might overflow the stack.
//! sqlparser's own limit on recursion does not count nested types, nor operators on one level. And where a syntax error
//! stands within nested forms such as CAST, sqlparser tries each of them twice, so these have a limit of their own.

use sqlparser::keywords::Keyword;
use sqlparser::parser::ParserError;
use sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer, TokenizerError, Whitespace, Word};

use super::cursor::syntax_error;
use super::dialect::MillstreamDialect;
use super::source::location;
use super::{hints, windows};
use crate::error::{Error, Result};

/// How deep brackets of all kinds may nest; expressions stop at sqlparser's limit of 50.
const MAX_NESTING: usize = 64;
/// How many operators may follow each other between two commas: each makes the tree one level deeper.
const MAX_CHAIN: usize = 2000;
/// How deep forms may nest that sqlparser tries twice: at this depth an error still takes well under a second.
const MAX_FORMS: usize = 16;

/// The tokens of each statement, without white space, comments and the semicolons between statements; none of the lists is
/// empty. A statement set keeps those within it.
pub(super) fn statements(text: &str) -> Result<Vec<Vec<TokenWithSpan>>> {
    let tokens = tokenize(text).map_err(|error| syntax_error(ParserError::from(error)))?;
    let mut statements = vec![Vec::new()];
    for token in tokens {
        match &token.token {
            Token::SemiColon if !statements.last().is_some_and(|last| is_open_set(last)) => statements.push(Vec::new()),
            Token::Whitespace(Whitespace::MultiLineComment(comment)) if comment.starts_with('+') => {
                statements.last_mut().map_or(Ok(()), |last| hints::append(last, comment, &token))?;
            }
            Token::Whitespace(_) => {}
            _ => statements.last_mut().into_iter().for_each(|last| last.push(token.clone())),
        }
    }
    statements.retain(|tokens| !tokens.is_empty());
    for tokens in &mut statements {
        rewrite(tokens);
        limit_depth(tokens)?;
    }
    Ok(statements)
}

/// Whether these are the beginning of a statement set: up to its END, which stands behind a `;`.
fn is_open_set(tokens: &[TokenWithSpan]) -> bool {
    let is = |token: &TokenWithSpan, words: &[&str]| words.iter().any(|word| is_word(&token.token, word));
    let before = ["EXPLAIN", "ANALYZE", "VERBOSE", "PLAN", "FOR", "EXECUTE"];
    let mut rest = tokens.iter().skip_while(|token| is(token, &before));
    if !["STATEMENT", "SET", "BEGIN"].iter().all(|word| rest.next().is_some_and(|token| is(token, &[*word]))) {
        return false;
    }
    match tokens {
        [.., before, end] if is_word(&end.token, "END") => {
            before.token != Token::SemiColon && !is_word(&before.token, "BEGIN")
        }
        _ => true,
    }
}

/// Whether `text` ends in a `;` that is neither quoted nor in a comment, and no statement set's.
///
/// Text that no continuation can repair counts as complete, so that a prompt hands it on and its error is seen.
pub(super) fn ends_in_semicolon(text: &str) -> bool {
    match tokenize(text) {
        Ok(tokens) => {
            let mut last: Vec<TokenWithSpan> = vec![];
            let mut is_complete = false;
            for token in tokens.into_iter().filter(|token| !matches!(token.token, Token::Whitespace(_))) {
                is_complete = token.token == Token::SemiColon && !is_open_set(&last);
                if is_complete { last.clear() } else { last.push(token) }
            }
            is_complete
        }
        Err(error) => {
            let open = ["Unterminated", "before EOF", "Unexpected EOF"];
            !open.iter().any(|sign| error.message.contains(sign))
        }
    }
}

fn tokenize(text: &str) -> Result<Vec<TokenWithSpan>, TokenizerError> {
    Tokenizer::new(&MillstreamDialect, text).tokenize_with_location()
}

/// Whether this is the unquoted word, in any case.
pub(super) fn is_word(token: &Token, word: &str) -> bool {
    matches!(token, Token::Word(w) if w.quote_style.is_none() && w.value.eq_ignore_ascii_case(word))
}

fn at(error: Error, token: &TokenWithSpan) -> Error {
    match location(token.span.start) {
        Some(place) => error.at(place),
        None => error,
    }
}

fn rewrite(tokens: &mut Vec<TokenWithSpan>) {
    let mut index = 0;
    // Of each open bracket, whether it is a window function's.
    let mut brackets: Vec<bool> = Vec::new();
    while index < tokens.len() {
        if is_word(&tokens[index].token, "ROW") && next_is(tokens, index, &Token::Lt) {
            replace_word(&mut tokens[index], "STRUCT", Keyword::STRUCT);
        } else if is_word(&tokens[index].token, "TIMESTAMP") {
            rewrite_local_time_zone(tokens, index);
        } else if brackets.last() == Some(&true) && is_word(&tokens[index].token, "TABLE") {
            rewrite_table_argument(tokens, index);
        } else if brackets.last() == Some(&true) && is_partition_by(tokens, index) {
            rewrite_partition_by(tokens, index);
        }
        match tokens[index].token {
            Token::LParen => brackets.push(index > 0 && is_window(&tokens[index - 1].token)),
            Token::RParen => {
                brackets.pop();
            }
            _ => {}
        }
        index += 1;
    }
}

fn is_window(token: &Token) -> bool {
    windows::names().any(|name| is_word(token, name))
}

/// `TABLE a.b`, with or without a hint, the whole of an argument but for a `PARTITION BY`: `(SELECT * FROM a.b)`.
fn rewrite_table_argument(tokens: &mut Vec<TokenWithSpan>, index: usize) {
    let opens = index > 0 && matches!(tokens[index - 1].token, Token::LParen | Token::Comma | Token::RArrow);
    let Some(last) = last_of_name(tokens, index + 1).filter(|_| opens) else { return };
    let last = hints::last_behind(tokens, last);
    let closes = next_is(tokens, last, &Token::Comma) || next_is(tokens, last, &Token::RParen);
    if closes || is_partition_by(tokens, last + 1) {
        insert_after(tokens, last, [Token::RParen]);
        insert_after(tokens, index, [Token::make_keyword("SELECT"), Token::Mul, Token::make_keyword("FROM")]);
        tokens[index].token = Token::LParen;
    }
}

fn is_partition_by(tokens: &[TokenWithSpan], index: usize) -> bool {
    let words = tokens.get(index..);
    matches!(words, Some([word, by, ..]) if is_word(&word.token, "PARTITION") && is_word(&by.token, "BY"))
}

/// `PARTITION BY k` or `PARTITION BY (k, l)` after an argument: one more argument, `PARTITION_BY(k)`.
fn rewrite_partition_by(tokens: &mut Vec<TokenWithSpan>, index: usize) {
    let by = index + 1;
    if !next_is(tokens, by, &Token::LParen) {
        let Some(last) = last_of_argument(tokens, by) else { return };
        insert_after(tokens, last, [Token::RParen]);
        insert_after(tokens, by, [Token::LParen]);
    }
    tokens[index].token = Token::Comma;
    replace_word(&mut tokens[by], windows::PARTITION_BY, Keyword::NoKeyword);
}

/// Where the argument ends that this token, which is no bracket, belongs to.
fn last_of_argument(tokens: &[TokenWithSpan], first: usize) -> Option<usize> {
    let mut depth = 0_usize;
    for (index, token) in tokens.iter().enumerate().skip(first) {
        match token.token {
            Token::LParen => depth += 1,
            Token::Comma | Token::RParen if depth == 0 => return index.checked_sub(1),
            Token::RParen => depth -= 1,
            _ => {}
        }
    }
    None
}

/// Where the name ends that begins at this token, if one does.
fn last_of_name(tokens: &[TokenWithSpan], first: usize) -> Option<usize> {
    let is_name = |index: usize| tokens.get(index).is_some_and(|token| matches!(token.token, Token::Word(_)));
    let mut last = Some(first).filter(|first| is_name(*first))?;
    while next_is(tokens, last, &Token::Period) && is_name(last + 2) {
        last += 2;
    }
    Some(last)
}

/// Inserts tokens with the place of the one before them.
fn insert_after<const N: usize>(tokens: &mut Vec<TokenWithSpan>, index: usize, inserted: [Token; N]) {
    let span = tokens[index].span;
    tokens.splice(index + 1..index + 1, inserted.map(|token| TokenWithSpan::new(token, span)));
}

/// `TIMESTAMP [(p)] WITH LOCAL TIME ZONE`: the words go, and the token before them covers their place.
fn rewrite_local_time_zone(tokens: &mut Vec<TokenWithSpan>, index: usize) {
    let last = if next_is(tokens, index, &Token::LParen) { index + 3 } else { index };
    let words = ["WITH", "LOCAL", "TIME", "ZONE"];
    let Some(zone) = tokens.get(last + 1..last + 1 + words.len()) else { return };
    if zone.iter().zip(words).all(|(token, word)| is_word(&token.token, word)) {
        let end = zone[words.len() - 1].span.end;
        tokens[last].span.end = end;
        tokens.drain(last + 1..last + 1 + words.len());
        replace_word(&mut tokens[index], "TIMESTAMP_LTZ", Keyword::NoKeyword);
    }
}

fn next_is(tokens: &[TokenWithSpan], index: usize, token: &Token) -> bool {
    tokens.get(index + 1).is_some_and(|next| next.token == *token)
}

fn replace_word(token: &mut TokenWithSpan, word: &str, keyword: Keyword) {
    token.token = Token::Word(Word { value: word.to_string(), quote_style: None, keyword });
}

/// What stands between two brackets: whether they belong to a form that is tried twice, open type brackets, operators
/// since the last comma, set operators.
#[derive(Default)]
struct Level {
    is_form: bool,
    angles: usize,
    operators: usize,
    unions: usize,
}

fn limit_depth(tokens: &[TokenWithSpan]) -> Result<()> {
    let mut outer: Vec<Level> = Vec::new();
    let mut level = Level::default();
    let (mut angles, mut forms) = (0, 0);
    for (index, token) in tokens.iter().enumerate() {
        match &token.token {
            Token::LParen | Token::LBracket | Token::LBrace => {
                angles += level.angles;
                let is_form = index > 0 && is_tried_twice(&tokens[index - 1].token);
                forms += usize::from(is_form);
                outer.push(std::mem::replace(&mut level, Level { is_form, ..Level::default() }));
            }
            Token::RParen | Token::RBracket | Token::RBrace => {
                forms -= usize::from(level.is_form);
                level = outer.pop().unwrap_or_default();
                angles = angles.saturating_sub(level.angles);
            }
            Token::Lt if index > 0 && opens_type(&tokens[index - 1].token) => level.angles += 1,
            Token::Gt if level.angles > 0 => level.angles -= 1,
            Token::ShiftRight if level.angles > 0 => level.angles = level.angles.saturating_sub(2),
            Token::Comma => level.operators = 0,
            Token::SemiColon => level = Level::default(),
            Token::Word(word) => match word.keyword {
                Keyword::WHEN | Keyword::THEN | Keyword::ELSE => level.operators = 0,
                Keyword::UNION | Keyword::EXCEPT | Keyword::INTERSECT | Keyword::MINUS => level.unions += 1,
                keyword if is_operator(keyword) => level.operators += 1,
                _ => {}
            },
            Token::Number(..) | Token::SingleQuotedString(_) | Token::Period => {}
            _ => level.operators += 1,
        }
        let (depth, max) = match forms > MAX_FORMS {
            true => (forms, MAX_FORMS),
            false => (outer.len() + angles + level.angles, MAX_NESTING),
        };
        if depth > max {
            let error = Error::usage(format!(
                "brackets nest more than {max} deep; break the statement up with views or WITH queries"
            ));
            return Err(at(error, token));
        }
        if level.operators.max(level.unions) > MAX_CHAIN {
            let error = Error::usage(format!(
                "more than {MAX_CHAIN} operators follow each other; use IN (…) or break the statement up with views"
            ));
            return Err(at(error, token));
        }
    }
    Ok(())
}

fn opens_type(token: &Token) -> bool {
    ["ARRAY", "MAP", "STRUCT"].iter().any(|word| is_word(token, word))
}

/// The words that sqlparser first reads as a form of their own, and after an error as the name of a function.
fn is_tried_twice(token: &Token) -> bool {
    let words = [
        "CAST",
        "TRY_CAST",
        "SAFE_CAST",
        "CONVERT",
        "TRY_CONVERT",
        "EXTRACT",
        "CEIL",
        "FLOOR",
        "POSITION",
        "SUBSTR",
        "SUBSTRING",
        "OVERLAY",
        "TRIM",
        "EXISTS",
        "ARRAY",
        "STRUCT",
        "MATCH",
        "MAP",
    ];
    words.iter().any(|word| is_word(token, word))
}

fn is_operator(keyword: Keyword) -> bool {
    matches!(
        keyword,
        Keyword::AND
            | Keyword::OR
            | Keyword::XOR
            | Keyword::NOT
            | Keyword::IS
            | Keyword::IN
            | Keyword::BETWEEN
            | Keyword::LIKE
            | Keyword::ILIKE
            | Keyword::RLIKE
            | Keyword::REGEXP
            | Keyword::SIMILAR
            | Keyword::MEMBER
            | Keyword::OVERLAPS
            | Keyword::OPERATOR
            | Keyword::DIV
            | Keyword::COLLATE
            | Keyword::AT
            | Keyword::JOIN
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[&str]) {
        let joined: Vec<String> = statements(text)
            .unwrap()
            .iter()
            .map(|tokens| tokens.iter().map(|t| t.token.to_string()).collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(joined, expected, "{text}");
    }

    #[test]
    fn statements_end_at_semicolons_outside_quotes_and_comments() {
        check("a; b", &["a", "b"]);
        check(";; a ;;", &["a"]);
        check("a ';' \";\" `;` -- ;\n /* ; /* ' */ ; */ b", &["a ';' \";\" `;` b"]);
        check("", &[]);
        check("-- only a comment", &[]);
    }

    #[test]
    fn rows_and_local_time_zones_are_rewritten() {
        check("ROW<a row<b INT>> row", &["STRUCT < a STRUCT < b INT >> row"]);
        check("row(1) < 2", &["row ( 1 ) < 2"]);
        check("`ROW`<a", &["`ROW` < a"]);
        check("timestamp(3) with local time zone x", &["TIMESTAMP_LTZ ( 3 ) x"]);
        check("TIMESTAMP WITH LOCAL TIME ZONE", &["TIMESTAMP_LTZ"]);
        check("TIMESTAMP(3) WITH TIME ZONE", &["TIMESTAMP ( 3 ) WITH TIME ZONE"]);
        check("timestamp(", &["timestamp ("]);
    }

    #[test]
    fn tables_that_windows_take_become_queries() {
        check("TUMBLE(TABLE t, x)", &["TUMBLE ( ( SELECT * FROM t ) , x )"]);
        check("table(hop(table a.`b c`, x))", &["table ( hop ( ( SELECT * FROM a . `b c` ) , x ) )"]);
        check("Session(DATA => TABLE t)", &["Session ( DATA => ( SELECT * FROM t ) )"]);
        let partitioned = "SESSION ( ( SELECT * FROM t ) , PARTITION_BY ( k . l ) , x )";
        check("SESSION(TABLE t PARTITION BY k.l, x)", &[partitioned]);
        let partitioned = "SESSION ( ( SELECT * FROM t ) , PARTITION_BY ( k , l ) , x )";
        check("SESSION(TABLE t PARTITION BY (k, l), x)", &[partitioned]);
        let partitioned = "SESSION ( ( SELECT 1 ) , PARTITION_BY ( f ( k , l ) + 1 ) , x )";
        check("SESSION((SELECT 1) partition by f(k, l) + 1, x)", &[partitioned]);
        check("SESSION(x => t PARTITION BY)", &["SESSION ( x => t , PARTITION_BY ( ) )"]);
        let nested = "TUMBLE ( ( SELECT * FROM HOP ( ( SELECT * FROM t ) ) ) )";
        check("TUMBLE((SELECT * FROM HOP(TABLE t)))", &[nested]);
        for other in ["tumble ( table )", "tumble ( table , x )", "tumble ( f ( table t ) )", "f ( table t )"] {
            check(other, &[other]);
        }
        for other in ["tumble ( table is null )", "tumble ( x table t )", "`tumble` ( table t )", "tumble ( table t"] {
            check(other, &[other]);
        }
        for other in ["tumble ( f ( ) OVER ( PARTITION BY k ) )", "f ( x PARTITION BY k )", "hop ( x PARTITION BY k"] {
            check(other, &[other]);
        }
    }

    #[test]
    fn hints_become_arguments_and_comments_go() {
        check("SELECT * FROM t /*+ OPTIONS('a' = 'b') */ x", &["SELECT * FROM t ( OPTIONS ( 'a' = 'b' ) ) x"]);
        let hinted = "HOP ( ( SELECT * FROM a . t ( OPTIONS ( 'a' = 'b' ) ) ) , x )";
        check("HOP(TABLE a.t /*+ OPTIONS('a' = 'b') */, x)", &[hinted]);
        let partitioned = "SESSION ( ( SELECT * FROM t ( OPTIONS ( 'a' = 'b' ) ) ) , PARTITION_BY ( k ) , x )";
        check("SESSION(TABLE t /*+OPTIONS('a'='b')*/ PARTITION BY k, x)", &[partitioned]);
        check("SELECT /* + */ 1", &["SELECT 1"]);
        check("SELECT '/*+ x */'", &["SELECT '/*+ x */'"]);
    }

    #[test]
    fn depth_is_limited_and_length_is_not() {
        let refused = [
            "(".repeat(65),
            "ARRAY<".repeat(65),
            "ARRAY<(".repeat(40),
            vec!["1"; 2002].join(" + "),
            vec!["SELECT 1, 2"; 2002].join(" UNION ALL "),
        ];
        for text in refused {
            assert!(statements(&text).is_err(), "{}", &text[..40]);
        }
        let list = vec!["1 + 2"; 10_000].join(", ");
        let case = "WHEN a = 1 THEN b + 1 ".repeat(5000);
        for text in [list, case, "() ".repeat(5000), "ARRAY<INT>, ".repeat(500)] {
            assert!(statements(&text).is_ok(), "{}", &text[..12]);
        }
    }

    #[test]
    fn a_text_is_complete_after_its_semicolon() {
        let complete = ["a;", "a; -- done", "a;\n/* ; */\n", "';';", ";"];
        let open = ["", "a", "a; b", "a -- ;", "a /* ;", "a ';", "a \";", "a `;", "a; /* ", "-- ;"];
        complete.iter().for_each(|text| assert!(ends_in_semicolon(text), "{text}"));
        open.iter().for_each(|text| assert!(!ends_in_semicolon(text), "{text}"));
    }
}

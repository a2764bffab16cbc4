//! A place in the tokens of one statement, for the statements that are parsed here rather than by DataFusion.
//!
//! A [`Cursor`] reads words, names and strings itself and hands expressions, types and queries to sqlparser. Every error
//! it gives has a place in the whole script, in our words: sqlparser puts places into its messages, and knows none for
//! the end of a text.

use arrow::datatypes::DataType;
use datafusion::common::DataFusionError;
use datafusion::sql::parser::{DFParser, DFParserBuilder, Statement as DFStatement};
use sqlparser::ast::{Expr, Query};
use sqlparser::parser::ParserError;
use sqlparser::tokenizer::{Token, TokenWithSpan};

use super::dialect::MillstreamDialect;
use super::source::{Source, location};
use super::tokens::is_word;
use super::{rewrite, types, unsupported};
use crate::error::{Error, Location, Result};

/// The tokens of a statement and how far they are read.
pub(super) struct Cursor<'a> {
    parser: DFParser<'static>,
    tokens: &'a [TokenWithSpan],
    source: &'a Source<'a>,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(tokens: &'a [TokenWithSpan], source: &'a Source<'a>) -> Result<Self> {
        let parser = DFParserBuilder::new(tokens.to_vec()).with_dialect(&MillstreamDialect).build()?;
        Ok(Self { parser, tokens, source })
    }

    /// The place of the next token, or where the statement ends.
    pub(super) fn location(&self) -> Location {
        location(self.parser.parser.peek_token_ref().span.start).unwrap_or_else(|| self.end())
    }

    /// The next token but `n`.
    pub(super) fn peek(&self, n: usize) -> &Token {
        &self.parser.parser.peek_nth_token_ref(n).token
    }

    /// Whether these unquoted words come next.
    pub(super) fn looks_at(&self, words: &[&str]) -> bool {
        words.iter().enumerate().all(|(n, word)| is_word(self.peek(n), word))
    }

    /// Reads these words if all of them come next.
    pub(super) fn eat(&mut self, words: &[&str]) -> bool {
        let found = self.looks_at(words);
        if found {
            self.skip(words.len());
        }
        found
    }

    /// Reads the next `count` tokens, which the caller has looked at.
    pub(super) fn skip(&mut self, count: usize) {
        (0..count).for_each(|_| self.parser.parser.advance_token());
    }

    /// Reads this token if it comes next.
    pub(super) fn eat_token(&mut self, token: &Token) -> bool {
        self.parser.parser.consume_token(token)
    }

    /// Reads these words or fails.
    pub(super) fn expect(&mut self, words: &[&str]) -> Result<()> {
        if self.eat(words) { Ok(()) } else { Err(self.expected(&words.join(" "))) }
    }

    /// Reads this token or fails.
    pub(super) fn expect_token(&mut self, token: &Token) -> Result<()> {
        if self.eat_token(token) { Ok(()) } else { Err(self.expected(&token.to_string())) }
    }

    /// Fails unless the statement is read to its end.
    pub(super) fn finish(&self) -> Result<()> {
        match self.peek(0) {
            Token::EOF => Ok(()),
            _ => Err(self.expected("the end of the statement")),
        }
    }

    /// The error that something else should stand here.
    pub(super) fn expected(&self, what: &str) -> Error {
        let found = match self.peek(0) {
            Token::EOF => "the end of the statement".to_string(),
            token => token.to_string(),
        };
        self.explain(Error::usage(format!("expected {what}, found {found}")).at(self.location()))
    }

    /// An error at the next token.
    pub(super) fn refuse(&self, message: impl Into<String>) -> Error {
        Error::usage(message).at(self.location())
    }

    /// A name, quoted or not, in the case it was written in.
    pub(super) fn name(&mut self, what: &str) -> Result<String> {
        match self.peek(0) {
            Token::Word(word) if !word.value.is_empty() => {
                let name = word.value.clone();
                self.parser.parser.advance_token();
                Ok(name)
            }
            _ => Err(self.expected(what)),
        }
    }

    /// The name of a table or view: one part.
    pub(super) fn table_name(&mut self, what: &str) -> Result<String> {
        let name = self.name(what)?;
        if *self.peek(0) == Token::Period {
            let hint = format!("{what} has one part: there are no databases; quote it if the dot belongs to it");
            return Err(self.refuse(hint));
        }
        Ok(name)
    }

    /// `(a, b, …)`: names and their places.
    pub(super) fn names(&mut self, what: &str) -> Result<Vec<(String, Location)>> {
        self.expect_token(&Token::LParen)?;
        let mut names = Vec::new();
        loop {
            let place = self.location();
            names.push((self.name(what)?, place));
            if !self.eat_token(&Token::Comma) {
                self.expect_token(&Token::RParen)?;
                return Ok(names);
            }
        }
    }

    /// A string in single quotes.
    pub(super) fn string(&mut self, what: &str) -> Result<String> {
        match self.peek(0) {
            Token::SingleQuotedString(text) => {
                let text = text.clone();
                self.parser.parser.advance_token();
                Ok(text)
            }
            _ => Err(self.expected(&format!("{what} in single quotes"))),
        }
    }

    /// `LIKE 'pattern'`, if it comes next.
    pub(super) fn like(&mut self) -> Result<Option<String>> {
        if self.eat(&["LIKE"]) { self.string("a pattern").map(Some) } else { Ok(None) }
    }

    /// A type, as Arrow's.
    pub(super) fn data_type(&mut self) -> Result<DataType> {
        let place = self.location();
        if !matches!(self.peek(0), Token::Word(_)) {
            return Err(self.expected("a type"));
        }
        let parsed = self.parser.parser.parse_data_type().map_err(|e| self.explain_parser(e))?;
        types::arrow_type(&parsed).map_err(|e| e.at(place))
    }

    /// An expression.
    pub(super) fn expression(&mut self) -> Result<Expr> {
        let mut expr = self.parser.parser.parse_expr().map_err(|e| self.explain_parser(e))?;
        rewrite::queries(&mut expr)?;
        Ok(expr)
    }

    /// An expression as the text it was written in, on one line.
    pub(super) fn expression_text(&mut self) -> Result<String> {
        let start = self.index();
        self.expression()?;
        Ok(self.source.one_line(&self.tokens[start..self.index()]))
    }

    /// A query.
    pub(super) fn query(&mut self) -> Result<Box<Query>> {
        let place = self.location();
        let mut query = self.parser.parser.parse_query().map_err(|e| self.explain_parser(e))?;
        rewrite::queries(query.as_mut()).map_err(|e| e.at(place))?;
        Ok(query)
    }

    /// A query as the text it was written in.
    pub(super) fn query_text(&mut self) -> Result<&'a str> {
        let start = self.index();
        self.query()?;
        Ok(self.source.slice(&self.tokens[start..self.index()]))
    }

    /// Any statement that DataFusion parses.
    pub(super) fn datafusion(&mut self) -> Result<DFStatement> {
        self.parser.parse_statement().map_err(|error| match parser_error(error) {
            Ok(error) => self.explain_parser(error),
            Err(error) => error.at(self.location()),
        })
    }

    /// Reads tokens up to `stop` or to the end; gives them back as text.
    pub(super) fn text_until(&mut self, stop: impl Fn(&Token) -> bool) -> (&'a [TokenWithSpan], &'a str) {
        let start = self.index();
        while *self.peek(0) != Token::EOF && !stop(self.peek(0)) {
            self.parser.parser.advance_token();
        }
        let tokens = &self.tokens[start..self.index()];
        (tokens, self.source.slice(tokens))
    }

    /// Tokens hold no white space, so the parser's index is one into them; it may run past their end.
    fn index(&self) -> usize {
        self.parser.parser.index().min(self.tokens.len())
    }

    fn end(&self) -> Location {
        let last = self.tokens.last().and_then(|token| location(token.span.end));
        last.unwrap_or(Location { line: 1, column: 1 })
    }

    fn explain_parser(&self, error: ParserError) -> Error {
        let place = match error {
            ParserError::RecursionLimitExceeded => self.tokens.first().and_then(|t| location(t.span.start)),
            _ => None,
        };
        let end = place.unwrap_or_else(|| self.end());
        self.explain(syntax_error(error).at(end))
    }

    /// The error, or one that names what the tokens at its place try to say.
    fn explain(&self, error: Error) -> Error {
        unsupported::explain(self.tokens, error)
    }
}

/// sqlparser's error in our words, with the place that its message ends in.
pub(super) fn syntax_error(error: ParserError) -> Error {
    let text = match error {
        ParserError::TokenizerError(text) | ParserError::ParserError(text) => text,
        ParserError::RecursionLimitExceeded => {
            return Error::usage("the statement nests too deeply; break it up with views or WITH queries");
        }
    };
    let (message, place) = split_place(&text);
    let message = message.replacen("Expected: ", "expected ", 1).replacen(", found: ", ", found ", 1);
    let message = match message.strip_suffix("found EOF") {
        Some(before) => format!("{before}found the end of the statement"),
        None => message,
    };
    let mut letters = message.trim_end_matches('.').chars();
    let lowered: String = letters.next().into_iter().flat_map(char::to_lowercase).chain(letters).collect();
    let error = Error::usage(lowered);
    match place {
        Some(place) => error.at(place),
        None => error,
    }
}

fn split_place(text: &str) -> (&str, Option<Location>) {
    let parse = || {
        let (message, place) = text.rsplit_once(" at Line: ")?;
        let (line, column) = place.split_once(", Column: ")?;
        Some((message, Location { line: line.parse().ok()?, column: column.parse().ok()? }))
    };
    parse().map_or((text, None), |(message, place)| (message, Some(place)))
}

/// The parser's error within DataFusion's, or else DataFusion's as ours.
fn parser_error(error: DataFusionError) -> Result<ParserError, Error> {
    match error {
        DataFusionError::SQL(error, _) => Ok(*error),
        DataFusionError::Diagnostic(_, inner) | DataFusionError::Context(_, inner) => parser_error(*inner),
        other => Err(other.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(message: &str, expected: &str) {
        assert_eq!(syntax_error(ParserError::ParserError(message.into())).to_string(), expected);
    }

    #[test]
    fn the_parsers_errors_are_put_into_our_words() {
        check(
            "Expected: an identifier, found: 1 at Line: 2, Column: 7",
            "line 2, column 7: expected an identifier, found 1",
        );
        check("Expected: ), found: EOF", "expected ), found the end of the statement");
        check("Unterminated string literal at Line: 1, Column: 3", "line 1, column 3: unterminated string literal");
        check("odd at Line: x, Column: 3", "odd at Line: x, Column: 3");
        check("", "");
    }
}

//! SQL text into statements: Flink's dialect as far as Millstream runs it, DataFusion's for the rest.
//!
//! A script goes through [`substitute`] (variables), then [`parse`]: tokens are rewritten where sqlparser lacks a type
//! (`tokens`) or drops a hint ([`hints`]), statements of our own are read by hand (`statements`, `ddl`, `clusters`,
//! `queries`), and all others by DataFusion's parser with our [`dialect`]. What DataFusion would not plan is rewritten
//! (`rewrite`, `windows`), what cannot be run is refused by name and never dropped (`unsupported`). [`planning`] tells
//! DataFusion what it needs to plan the result, [`types`] what our types mean, and [`reference`](mod@reference) shows
//! all statements to people.
//!
//! Guaranteed: text that is not SQL gives an error with its line and column, never a panic nor a stack overflow. Not
//! promised: that names exist or types fit; the planner finds that out.

pub mod dialect;
pub mod functions;
pub mod hints;
pub mod options;
pub mod planning;
pub mod reference;
pub mod types;

mod clusters;
mod cursor;
mod ddl;
mod queries;
mod rewrite;
mod show;
mod source;
mod statements;
mod tokens;
mod unsupported;
mod variables;
mod windows;

#[cfg(test)]
mod tests;

use arrow::array::StringArray;
use sqlparser::ast::{Expr, Query};

use crate::error::{Error, Location, Result};
use cursor::Cursor;
use source::{Source, location};

pub use clusters::ResetGroup;
pub use show::{show_create_catalog, show_create_table, show_create_view};
pub use statements::{CreateTable, Insert, Statement};
pub use variables::substitute;

/// A statement, the text it was written in, and where it starts.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    /// What it says.
    pub statement: Statement,
    /// Its text, from its first to its last token: without the `;` and without comments around it.
    pub text: String,
    /// The place of its first token in the script.
    pub location: Location,
}

/// All statements of a script; errors carry line and column of the whole text.
pub fn parse(text: &str) -> Result<Vec<Parsed>> {
    let source = Source::new(text);
    let mut parsed = Vec::new();
    for tokens in tokens::statements(text)? {
        unsupported::refuse(&tokens)?;
        let statement = statements::parse(&mut Cursor::new(&tokens, &source)?)?;
        let start = tokens.first().and_then(|token| location(token.span.start));
        parsed.push(Parsed {
            statement,
            text: source.slice(&tokens).to_string(),
            location: start.unwrap_or(Location { line: 1, column: 1 }),
        });
    }
    Ok(parsed)
}

/// The query in `text`, such as that of a view.
pub fn parse_query(text: &str) -> Result<Box<Query>> {
    let mut statements = parse(text)?;
    match (statements.pop(), statements.is_empty()) {
        (Some(Parsed { statement: Statement::Query(query), .. }), true) => Ok(query),
        (Some(other), _) => Err(Error::usage("expected one query").at(other.location)),
        (None, _) => Err(Error::usage("expected a query, found nothing")),
    }
}

/// The expression in `text`, such as that of a computed column.
pub fn parse_expression(text: &str) -> Result<Expr> {
    let source = Source::new(text);
    let statements = tokens::statements(text)?;
    let [tokens] = statements.as_slice() else { return Err(Error::usage("expected one expression")) };
    unsupported::refuse(tokens)?;
    let mut cursor = Cursor::new(tokens, &source)?;
    let expression = cursor.expression()?;
    cursor.finish()?;
    Ok(expression)
}

/// For a prompt: whether `text` ends in a complete statement, that is in a `;` outside quotes and comments.
pub fn is_complete(text: &str) -> bool {
    tokens::ends_in_semicolon(text)
}

/// Whether `text` fits a pattern of `LIKE`: `%` is any text, `_` any letter, and what follows a backslash is itself.
pub fn is_like(text: &str, pattern: &str) -> bool {
    let (text, pattern) = (StringArray::new_scalar(text), StringArray::new_scalar(pattern));
    arrow::compute::like(&text, &pattern).is_ok_and(|fits| fits.value(0))
}

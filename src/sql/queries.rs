//! Statements about continuous queries that were started.
//!
//! A query's name has slashes, so it is quoted, in single quotes or as a name. Whether there is such a query is found
//! out when the statement runs.

use sqlparser::tokenizer::Token;

use super::cursor::Cursor;
use super::statements::Statement;
use crate::error::Result;

/// Reads what follows `STOP`.
pub(super) fn stop(cursor: &mut Cursor) -> Result<Statement> {
    cursor.expect(&["QUERY"])?;
    Ok(Statement::StopQuery { name: name(cursor)? })
}

/// Reads what follows `RESTART`.
pub(super) fn restart(cursor: &mut Cursor) -> Result<Statement> {
    cursor.expect(&["QUERY"])?;
    Ok(Statement::RestartQuery { name: name(cursor)? })
}

/// Reads what follows `DESCRIBE QUERY`.
pub(super) fn describe(cursor: &mut Cursor) -> Result<Statement> {
    Ok(Statement::DescribeQuery { name: name(cursor)? })
}

fn name(cursor: &mut Cursor) -> Result<String> {
    let what = "the name of a query";
    let is_string = matches!(cursor.peek(0), Token::SingleQuotedString(_));
    let name = if is_string { cursor.string(what)? } else { cursor.name(what)? };
    match cursor.peek(0) {
        Token::Div | Token::Period | Token::Minus if !is_string => {
            Err(cursor.refuse(format!("put the name of the query into quotes, as in '{name}/table'")))
        }
        _ => Ok(name),
    }
}

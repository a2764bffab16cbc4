//! Statements about clusters of brokers: catalogs, their topics and their consumer groups.
//!
//! A topic or a group is named with its catalog, `k.orders`. Their names often have dots and hyphens, and then are
//! quoted: what stands unquoted is refused rather than cut. Whether they exist, and what options and partitions there
//! are, is found out when the statement runs.

use std::collections::BTreeMap;

use arrow::compute::kernels::cast_utils::string_to_datetime;
use chrono::Utc;
use sqlparser::tokenizer::Token;

use super::cursor::Cursor;
use super::ddl;
use super::statements::Statement;
use crate::connector::cluster::ResetTo;
use crate::error::{Error, Result};

const CATALOG: &str = "the name of a catalog";
const TIME: &str = "a time such as '2026-01-01 00:00:00' (UTC if it says no zone), or a number of ms since 1970";

/// A `RESET GROUP` statement.
#[derive(Debug, Clone, PartialEq)]
pub struct ResetGroup {
    /// The catalog.
    pub catalog: String,
    /// The consumer group.
    pub group: String,
    /// The topic whose offsets are set; the group's other topics are left alone.
    pub topic: String,
    /// Where to.
    pub to: ResetTo,
    /// Whether it is done; otherwise it is only shown what would be.
    pub execute: bool,
}

/// Reads what follows `CREATE CATALOG`.
pub(super) fn create_catalog(cursor: &mut Cursor) -> Result<Statement> {
    let if_not_exists = cursor.eat(&["IF", "NOT", "EXISTS"]);
    let name = cursor.table_name(CATALOG)?;
    if !cursor.eat(&["WITH"]) {
        return Err(cursor.expected("WITH ('type' = '…', …)"));
    }
    Ok(Statement::CreateCatalog { name, options: ddl::options(cursor)?, if_not_exists })
}

/// Reads what follows `DROP CATALOG`.
pub(super) fn drop_catalog(cursor: &mut Cursor) -> Result<Statement> {
    let if_exists = cursor.eat(&["IF", "EXISTS"]);
    Ok(Statement::DropCatalog { name: cursor.table_name(CATALOG)?, if_exists })
}

/// Reads what follows `CREATE TOPIC`.
pub(super) fn create_topic(cursor: &mut Cursor) -> Result<Statement> {
    let if_not_exists = cursor.eat(&["IF", "NOT", "EXISTS"]);
    let (catalog, topic) = in_catalog(cursor, "topic")?;
    let options = if cursor.eat(&["WITH"]) { ddl::options(cursor)? } else { BTreeMap::new() };
    Ok(Statement::CreateTopic { catalog, topic, options, if_not_exists })
}

/// Reads what follows `DROP TOPIC`.
pub(super) fn drop_topic(cursor: &mut Cursor) -> Result<Statement> {
    let if_exists = cursor.eat(&["IF", "EXISTS"]);
    let (catalog, topic) = in_catalog(cursor, "topic")?;
    Ok(Statement::DropTopic { catalog, topic, if_exists })
}

/// Reads what follows `DESCRIBE TOPIC`.
pub(super) fn describe_topic(cursor: &mut Cursor) -> Result<Statement> {
    let (catalog, topic) = in_catalog(cursor, "topic")?;
    Ok(Statement::DescribeTopic { catalog, topic })
}

/// Reads what follows `DESCRIBE GROUP`.
pub(super) fn describe_group(cursor: &mut Cursor) -> Result<Statement> {
    let (catalog, group) = in_catalog(cursor, "group")?;
    Ok(Statement::DescribeGroup { catalog, group })
}

/// Reads what follows `SHOW TOPICS`.
pub(super) fn show_topics(cursor: &mut Cursor) -> Result<Statement> {
    Ok(Statement::ShowTopics { catalog: from_catalog(cursor)?, like: cursor.like()? })
}

/// Reads what follows `SHOW GROUPS`.
pub(super) fn show_groups(cursor: &mut Cursor) -> Result<Statement> {
    Ok(Statement::ShowGroups { catalog: from_catalog(cursor)?, like: cursor.like()? })
}

/// Reads what follows `RESET GROUP`.
pub(super) fn reset_group(cursor: &mut Cursor) -> Result<Statement> {
    let (catalog, group) = in_catalog(cursor, "group")?;
    cursor.expect(&["FOR", "TOPIC"])?;
    let topic = name(cursor, "topic")?;
    cursor.expect(&["TO"])?;
    let to = reset_to(cursor)?;
    let execute = cursor.eat(&["EXECUTE"]);
    Ok(Statement::ResetGroup(ResetGroup { catalog, group, topic, to, execute }))
}

fn reset_to(cursor: &mut Cursor) -> Result<ResetTo> {
    if cursor.eat(&["EARLIEST"]) {
        Ok(ResetTo::Earliest)
    } else if cursor.eat(&["LATEST"]) {
        Ok(ResetTo::Latest)
    } else if cursor.eat(&["TIMESTAMP"]) {
        timestamp(cursor).map(ResetTo::Timestamp)
    } else if cursor.eat(&["OFFSETS"]) {
        ddl::pairs(cursor, "partition", "a partition", offset).map(ResetTo::Offsets)
    } else {
        Err(cursor.expected("EARLIEST, LATEST, TIMESTAMP '…' or OFFSETS ('partition' = 'offset', …)"))
    }
}

/// A moment in ms since 1970.
fn timestamp(cursor: &mut Cursor) -> Result<i64> {
    let moment = match cursor.peek(0) {
        Token::Number(digits, false) => digits.parse().ok(),
        Token::SingleQuotedString(text) => string_to_datetime(&Utc, text).ok().map(|time| time.timestamp_millis()),
        _ => None,
    };
    let moment = moment.ok_or_else(|| cursor.expected(TIME))?;
    cursor.skip(1);
    Ok(moment)
}

fn offset(cursor: &mut Cursor) -> Result<u64> {
    let place = cursor.location();
    let text = cursor.string("an offset")?;
    text.parse().map_err(|_| Error::usage(format!("'{text}' is no offset; say a number such as '42'")).at(place))
}

fn from_catalog(cursor: &mut Cursor) -> Result<String> {
    if !cursor.eat(&["FROM"]) {
        return Err(cursor.expected("FROM and the name of a catalog"));
    }
    cursor.table_name(CATALOG)
}

/// `catalog.name`.
fn in_catalog(cursor: &mut Cursor, kind: &str) -> Result<(String, String)> {
    let catalog = cursor.name(CATALOG)?;
    if !cursor.eat_token(&Token::Period) {
        return Err(cursor.expected(&format!("a dot and the name of a {kind}, as in {catalog}.name")));
    }
    Ok((catalog, name(cursor, kind)?))
}

fn name(cursor: &mut Cursor, kind: &str) -> Result<String> {
    let name = cursor.name(&format!("the name of a {kind}"))?;
    match cursor.peek(0) {
        Token::Period | Token::Minus => {
            Err(cursor.refuse(format!("put the name of the {kind} into backticks if this belongs to it")))
        }
        _ => Ok(name),
    }
}

//! `CREATE TABLE` and `ALTER TABLE`, read by hand: no dialect of sqlparser has metadata columns, computed columns and
//! watermarks.
//!
//! A column may have any name: whether `primary`, `key` or `watermark` begins a clause is told by the word after it. The
//! text of an expression is kept as it was written, on one line and without comments, so that it reads back the same.
//!
//! Comments on tables and columns are read and not kept. Whether expressions fit the columns is found out in planning.

use std::collections::BTreeMap;

use arrow::datatypes::DataType;
use sqlparser::tokenizer::Token;

use super::cursor::Cursor;
use super::options::did_you_mean;
use super::statements::{CreateTable, Statement};
use super::tokens::is_word;
use super::types::{is_type_word, sql_type};
use crate::catalog::{Column, ColumnKind, TableDefinition, Watermark};
use crate::error::{Error, Location, Result};

/// What has been read, with the places of names that are looked up at the end.
#[derive(Default)]
struct Clauses {
    columns: Vec<Column>,
    primary_key: Vec<(String, Location)>,
    watermark: Option<(Watermark, Location)>,
    partitioned_by: Vec<(String, Location)>,
    options: Option<BTreeMap<String, String>>,
}

/// Reads what follows `CREATE [TEMPORARY] TABLE`.
pub(super) fn create_table(cursor: &mut Cursor, temporary: bool) -> Result<Statement> {
    let if_not_exists = cursor.eat(&["IF", "NOT", "EXISTS"]);
    let start = cursor.location();
    let name = cursor.table_name("the name of a table")?;
    let mut clauses = Clauses::default();
    if cursor.eat_token(&Token::LParen) {
        elements(cursor, &mut clauses)?;
    }
    let as_query = tail(cursor, &mut clauses)?;
    if *cursor.peek(0) != Token::EOF {
        return Err(cursor.expected("COMMENT, PARTITIONED BY, WITH, AS or the end of the statement"));
    }
    clauses.check()?;
    let Some(options) = clauses.options else {
        return Err(Error::usage(format!(
            "the table {name} has no WITH; say WITH ('connector' = '…', …), or CREATE EXTERNAL TABLE for files that \
             do not change"
        ))
        .at(start));
    };
    let names = |names: Vec<(String, Location)>| names.into_iter().map(|(name, _)| name).collect();
    let definition = TableDefinition {
        name,
        columns: clauses.columns,
        primary_key: names(clauses.primary_key),
        watermark: clauses.watermark.map(|(watermark, _)| watermark),
        partitioned_by: names(clauses.partitioned_by),
        options,
    };
    Ok(Statement::CreateTable(CreateTable { definition, if_not_exists, temporary, as_query }))
}

/// Reads what follows `ALTER TABLE`.
pub(super) fn alter_table(cursor: &mut Cursor) -> Result<Statement> {
    let name = cursor.table_name("the name of a table")?;
    let changes = if cursor.eat(&["SET"]) {
        options(cursor)?.into_iter().map(|(key, value)| (key, Some(value))).collect()
    } else if cursor.eat(&["RESET"]) {
        keys(cursor)?.into_iter().map(|key| (key, None)).collect()
    } else {
        return Err(cursor.refuse(
            "ALTER TABLE changes options, by SET ('key' = 'value', …) or RESET ('key', …); for anything else drop the \
             table and create it again",
        ));
    };
    Ok(Statement::AlterTable { name, changes })
}

/// The columns and constraints, up to the closing parenthesis.
fn elements(cursor: &mut Cursor, clauses: &mut Clauses) -> Result<()> {
    loop {
        element(cursor, clauses)?;
        if !cursor.eat_token(&Token::Comma) {
            return match cursor.eat_token(&Token::RParen) {
                true => Ok(()),
                false => Err(cursor.expected(", or ) after a column")),
            };
        }
    }
}

fn element(cursor: &mut Cursor, clauses: &mut Clauses) -> Result<()> {
    let opens = |n: usize| *cursor.peek(n) == Token::LParen;
    if cursor.looks_at(&["FOREIGN", "KEY"]) || (opens(1) && ["UNIQUE", "CHECK"].iter().any(|w| cursor.looks_at(&[w]))) {
        return Err(cursor.refuse("only PRIMARY KEY (…) NOT ENFORCED is supported as a constraint; leave this one out"));
    }
    let names_type = matches!(cursor.peek(1), Token::Word(word) if is_type_word(&word.value));
    if cursor.looks_at(&["LIKE"]) && !names_type && matches!(cursor.peek(2), Token::RParen | Token::LParen) {
        return Err(cursor.refuse("CREATE TABLE … LIKE is not supported; repeat the columns"));
    }
    let names_constraint = cursor.looks_at(&["CONSTRAINT"])
        && ["PRIMARY", "UNIQUE", "FOREIGN", "CHECK"].iter().any(|w| is_word(cursor.peek(2), w));
    if names_constraint {
        cursor.skip(2);
        if !cursor.looks_at(&["PRIMARY", "KEY"]) {
            return Err(cursor.expected("PRIMARY KEY, the only constraint that is supported"));
        }
    }
    if cursor.looks_at(&["PRIMARY", "KEY"]) {
        clauses.refuse_second_key(cursor)?;
        cursor.skip(2);
        clauses.primary_key = cursor.names("the name of a column")?;
        return not_enforced(cursor);
    }
    if cursor.looks_at(&["WATERMARK", "FOR"]) {
        if clauses.watermark.is_some() {
            return Err(cursor.refuse("the table has two watermarks; keep one of them"));
        }
        clauses.watermark = Some(watermark(cursor)?);
        return Ok(());
    }
    let place = cursor.location();
    let column = column(cursor, clauses)?;
    if clauses.columns.iter().any(|earlier| earlier.name == column.name) {
        return Err(
            Error::usage(format!("the column '{}' is declared twice; rename one of them", column.name)).at(place)
        );
    }
    clauses.columns.push(column);
    Ok(())
}

/// What follows PRIMARY KEY: keys are believed, not checked, and the statement has to say so.
fn not_enforced(cursor: &mut Cursor) -> Result<()> {
    if cursor.eat(&["NOT", "ENFORCED"]) {
        return Ok(());
    }
    Err(cursor.refuse("a PRIMARY KEY is not checked here; say PRIMARY KEY … NOT ENFORCED"))
}

fn watermark(cursor: &mut Cursor) -> Result<(Watermark, Location)> {
    cursor.skip(2);
    let place = cursor.location();
    let column = cursor.name("the name of a column")?;
    if *cursor.peek(0) == Token::Period {
        return Err(cursor.refuse("a watermark is on a column, not on a field; name the field with a computed column"));
    }
    cursor.expect(&["AS"])?;
    Ok((Watermark { column, expression: cursor.expression_text()? }, place))
}

fn column(cursor: &mut Cursor, clauses: &mut Clauses) -> Result<Column> {
    let place = cursor.location();
    let name = cursor.name("the name of a column")?;
    if cursor.eat(&["AS"]) {
        let kind = ColumnKind::Computed { expression: cursor.expression_text()? };
        comment(cursor)?;
        return Ok(Column { name, data_type: DataType::Null, nullable: true, kind });
    }
    let mut column = Column::physical(name, cursor.data_type()?);
    loop {
        if cursor.eat(&["NOT", "NULL"]) {
            column.nullable = false;
        } else if cursor.eat(&["NULL"]) || comment(cursor)? {
            // NULL is the default, and comments are not kept.
        } else if cursor.eat(&["METADATA"]) {
            let key = if cursor.eat(&["FROM"]) { cursor.string("the metadata's key")? } else { column.name.clone() };
            column.kind = ColumnKind::Metadata { key, is_virtual: cursor.eat(&["VIRTUAL"]) };
        } else if cursor.looks_at(&["PRIMARY", "KEY"]) {
            clauses.refuse_second_key(cursor)?;
            cursor.skip(2);
            clauses.primary_key = vec![(column.name.clone(), place)];
            not_enforced(cursor)?;
        } else if cursor.looks_at(&["DEFAULT"]) {
            return Err(
                cursor.refuse("DEFAULT is not supported; write the value in the INSERT, or COALESCE when reading")
            );
        } else {
            return Ok(column);
        }
    }
}

fn comment(cursor: &mut Cursor) -> Result<bool> {
    let found = cursor.eat(&["COMMENT"]);
    if found {
        cursor.string("a comment")?;
    }
    Ok(found)
}

/// What follows the columns, in any order; the query after AS comes last.
fn tail(cursor: &mut Cursor, clauses: &mut Clauses) -> Result<Option<Box<sqlparser::ast::Query>>> {
    loop {
        let place = cursor.location();
        if comment(cursor)? {
            // Comments are not kept.
        } else if cursor.eat(&["PARTITIONED", "BY"]) {
            if !clauses.partitioned_by.is_empty() {
                return Err(Error::usage("the table has PARTITIONED BY twice; keep one of them").at(place));
            }
            clauses.partitioned_by = cursor.names("the name of a column")?;
        } else if cursor.eat(&["WITH"]) {
            if clauses.options.is_some() {
                return Err(Error::usage("the table has WITH twice; put all options into one list").at(place));
            }
            clauses.options = Some(options(cursor)?);
        } else if cursor.eat(&["AS"]) {
            return cursor.query().map(Some);
        } else if cursor.looks_at(&["LIKE"]) {
            return Err(cursor.refuse("CREATE TABLE … LIKE is not supported; repeat the columns and options"));
        } else if cursor.looks_at(&["DISTRIBUTED"]) {
            return Err(cursor.refuse("DISTRIBUTED is not supported; the message's key chooses the partition"));
        } else {
            return Ok(None);
        }
    }
}

/// `('key' = 'value', …)`.
pub(super) fn options(cursor: &mut Cursor) -> Result<BTreeMap<String, String>> {
    pairs(cursor, "option", "an option's key", |cursor| cursor.string("its value"))
}

/// `('key' = value, …)`: each key of this kind once, and what `value` reads.
pub(super) fn pairs<T>(
    cursor: &mut Cursor,
    kind: &str,
    what: &str,
    value: impl Fn(&mut Cursor) -> Result<T>,
) -> Result<BTreeMap<String, T>> {
    let mut pairs = BTreeMap::new();
    cursor.expect_token(&Token::LParen)?;
    loop {
        let place = cursor.location();
        let key = cursor.string(what)?;
        cursor.expect_token(&Token::Eq)?;
        let value = value(cursor)?;
        if pairs.contains_key(&key) {
            return Err(Error::usage(format!("the {kind} '{key}' is given twice; keep one of them")).at(place));
        }
        pairs.insert(key, value);
        if !cursor.eat_token(&Token::Comma) {
            cursor.expect_token(&Token::RParen)?;
            return Ok(pairs);
        }
    }
}

/// `('key', …)`.
fn keys(cursor: &mut Cursor) -> Result<Vec<String>> {
    cursor.expect_token(&Token::LParen)?;
    let mut keys = vec![cursor.string("an option's key")?];
    while cursor.eat_token(&Token::Comma) {
        keys.push(cursor.string("an option's key")?);
    }
    cursor.expect_token(&Token::RParen)?;
    Ok(keys)
}

impl Clauses {
    fn refuse_second_key(&self, cursor: &Cursor) -> Result<()> {
        match self.primary_key.as_slice() {
            [] => Ok(()),
            _ => Err(cursor.refuse("the table has two primary keys; name all its columns in one: PRIMARY KEY (a, b)")),
        }
    }

    /// Looks up the columns that other clauses name. Without columns they are those of the query, or what is found in
    /// the topic: known only later.
    fn check(&self) -> Result<()> {
        if self.columns.is_empty() {
            return Ok(());
        }
        let watermark = self.watermark.iter().map(|(watermark, place)| (&watermark.column, *place));
        let lists = [&self.primary_key, &self.partitioned_by];
        for list in lists {
            for (index, (name, place)) in list.iter().enumerate() {
                if list[..index].iter().any(|(earlier, _)| earlier == name) {
                    return Err(Error::usage(format!("the column '{name}' is named twice")).at(*place));
                }
            }
        }
        for (name, place) in lists.into_iter().flatten().map(|(name, place)| (name, *place)).chain(watermark) {
            if !self.columns.iter().any(|column| column.name == *name) {
                let hint = did_you_mean(name, self.columns.iter().map(|column| column.name.as_str()));
                return Err(Error::usage(format!("there is no column '{name}'{hint}")).at(place));
            }
        }
        let timed = |name: &str| self.columns.iter().find(|column| column.name == name).map(|column| &column.data_type);
        match &self.watermark {
            Some((watermark, place)) => match timed(&watermark.column) {
                None | Some(DataType::Timestamp(..) | DataType::Null) => Ok(()),
                Some(other) => Err(Error::usage(format!(
                    "a watermark is on a TIMESTAMP or TIMESTAMP_LTZ column, and '{}' is {}",
                    watermark.column,
                    sql_type(other)
                ))
                .at(*place)),
            },
            None => Ok(()),
        }
    }
}

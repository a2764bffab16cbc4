//! Which statement a text is: ours are told by their first words, the rest goes to DataFusion's parser.
//!
//! Ours come first because DataFusion's parser takes some of them for something else without an error: a key in SET is
//! lower-cased, `SHOW TOPICS` is read as a variable.

use std::collections::BTreeMap;

use datafusion::sql::parser::{CopyToSource, Statement as DFStatement};
use sqlparser::ast::{self, Query};
use sqlparser::tokenizer::{Token, TokenWithSpan};

use super::clusters::ResetGroup;
use super::cursor::Cursor;
use super::options::did_you_mean;
use super::tokens::is_word;
use super::types::quote;
use super::{clusters, ddl, queries, rewrite};
use crate::catalog::{TableDefinition, ViewDefinition};
use crate::error::{Error, Result};

/// A statement.
#[derive(Debug, Clone, PartialEq)]
pub enum Statement {
    /// `CREATE TABLE … WITH (…)`.
    CreateTable(CreateTable),
    /// `DROP TABLE`.
    DropTable {
        /// The table.
        name: String,
        /// Whether a table that does not exist is no error.
        if_exists: bool,
    },
    /// `CREATE VIEW`.
    CreateView {
        /// Its name and the text of its query, for [`parse_query`](super::parse_query).
        view: ViewDefinition,
        /// Whether it takes the place of a view of that name.
        or_replace: bool,
        /// Whether a view of that name is left as it is.
        if_not_exists: bool,
        /// Whether it is the session's alone, also where there is a catalog that is kept.
        temporary: bool,
    },
    /// `DROP VIEW`.
    DropView {
        /// The view.
        name: String,
        /// Whether a view that does not exist is no error.
        if_exists: bool,
    },
    /// `SET 'key' = 'value'`, ours or DataFusion's.
    Set {
        /// The key, in the case it was written in.
        key: String,
        /// The value as text.
        value: String,
    },
    /// `RESET 'key'`, or `RESET` for all.
    Reset {
        /// The key; none means all.
        key: Option<String>,
    },
    /// `SET` alone: list the settings.
    ShowSettings,
    /// `ALTER TABLE … SET (…)` or `RESET (…)`.
    AlterTable {
        /// The table.
        name: String,
        /// Its options that change, and to what; none takes the option away.
        changes: Vec<(String, Option<String>)>,
    },
    /// `SHOW TABLES`.
    ShowTables {
        /// Only those whose names [are like](super::is_like) this.
        like: Option<String>,
    },
    /// `SHOW VIEWS`.
    ShowViews {
        /// Only those whose names are like this.
        like: Option<String>,
    },
    /// `SHOW FUNCTIONS`.
    ShowFunctions {
        /// Only those whose names are like this.
        like: Option<String>,
    },
    /// `CREATE CATALOG`: a cluster of brokers under a name.
    CreateCatalog {
        /// The catalog.
        name: String,
        /// Its type, and how to connect.
        options: BTreeMap<String, String>,
        /// Whether a catalog of that name is left as it is.
        if_not_exists: bool,
    },
    /// `DROP CATALOG`.
    DropCatalog {
        /// The catalog.
        name: String,
        /// Whether a catalog that does not exist is no error.
        if_exists: bool,
    },
    /// `SHOW CATALOGS`.
    ShowCatalogs,
    /// `SHOW TOPICS FROM`.
    ShowTopics {
        /// The catalog.
        catalog: String,
        /// Only those whose names are like this.
        like: Option<String>,
    },
    /// `DESCRIBE TOPIC`.
    DescribeTopic {
        /// The catalog.
        catalog: String,
        /// The topic.
        topic: String,
    },
    /// `CREATE TOPIC`.
    CreateTopic {
        /// The catalog.
        catalog: String,
        /// The topic.
        topic: String,
        /// How many partitions, and the broker's settings.
        options: BTreeMap<String, String>,
        /// Whether a topic of that name is left as it is.
        if_not_exists: bool,
    },
    /// `DROP TOPIC`.
    DropTopic {
        /// The catalog.
        catalog: String,
        /// The topic.
        topic: String,
        /// Whether a topic that does not exist is no error.
        if_exists: bool,
    },
    /// `SHOW GROUPS FROM`.
    ShowGroups {
        /// The catalog.
        catalog: String,
        /// Only those whose names are like this.
        like: Option<String>,
    },
    /// `DESCRIBE GROUP`.
    DescribeGroup {
        /// The catalog.
        catalog: String,
        /// The consumer group.
        group: String,
    },
    /// `RESET GROUP`.
    ResetGroup(ResetGroup),
    /// `SHOW QUERIES`.
    ShowQueries,
    /// `DESCRIBE QUERY`.
    DescribeQuery {
        /// The query.
        name: String,
    },
    /// `STOP QUERY`.
    StopQuery {
        /// The query.
        name: String,
    },
    /// `RESTART QUERY`.
    RestartQuery {
        /// The query.
        name: String,
    },
    /// `SHOW CREATE TABLE`.
    ShowCreateTable {
        /// The table.
        name: String,
    },
    /// `SHOW CREATE VIEW`.
    ShowCreateView {
        /// The view.
        name: String,
    },
    /// `DESCRIBE` or `DESC`.
    Describe {
        /// The table or view.
        name: String,
    },
    /// `DESCRIBE k.orders`: a topic as the table that a SELECT reads.
    DescribeIn {
        /// The catalog, or a schema such as `information_schema`.
        catalog: String,
        /// The topic, or a table of the schema.
        name: String,
    },
    /// `INSERT INTO`.
    Insert(Insert),
    /// `EXECUTE STATEMENT SET BEGIN INSERT …; INSERT …; END`: one query of several targets.
    StatementSet(Vec<Insert>),
    /// A query.
    Query(Box<Query>),
    /// `EXPLAIN [ANALYZE] [VERBOSE]` or `EXPLAIN PLAN FOR`; of a statement set without its EXECUTE.
    Explain {
        /// Whether it is run and measured.
        analyze: bool,
        /// Whether more is shown.
        verbose: bool,
        /// A query, an INSERT, a statement set, a `CREATE TABLE … AS` or one of DataFusion's statements.
        statement: Box<Statement>,
    },
    /// Any other statement that DataFusion parses, such as `CREATE EXTERNAL TABLE` or `SHOW COLUMNS`.
    DataFusion(Box<DFStatement>),
}

/// A `CREATE TABLE … WITH (…) [AS …]` statement.
#[derive(Debug, Clone, PartialEq)]
pub struct CreateTable {
    /// The table. Its computed columns have the type `Null` until their expressions are planned. Without columns of its
    /// own it has those of the query after `AS`, or else what is found in the topic.
    pub definition: TableDefinition,
    /// Whether a table of that name is left as it is.
    pub if_not_exists: bool,
    /// Whether it is the session's alone, also where there is a catalog that is kept.
    pub temporary: bool,
    /// The query after `AS`.
    pub as_query: Option<Box<Query>>,
}

/// An `INSERT INTO` statement.
#[derive(Debug, Clone, PartialEq)]
pub struct Insert {
    /// The table.
    pub table: String,
    /// The columns named; empty for all of them in order.
    pub columns: Vec<String>,
    /// A SELECT or VALUES.
    pub query: Box<Query>,
}

/// Reads the one statement that the cursor is at.
pub(super) fn parse(cursor: &mut Cursor) -> Result<Statement> {
    let statement = if cursor.eat(&["EXPLAIN"]) { explain(cursor)? } else { statement(cursor)? };
    cursor.finish()?;
    Ok(statement)
}

fn statement(cursor: &mut Cursor) -> Result<Statement> {
    let Token::Word(first) = cursor.peek(0) else { return datafusion(cursor) };
    match first.value.to_ascii_uppercase().as_str() {
        _ if first.quote_style.is_some() => datafusion(cursor),
        "CREATE" => create(cursor),
        "DROP" => drop(cursor),
        "INSERT" => Ok(Statement::Insert(insert(cursor)?)),
        "EXECUTE" => statement_set(cursor),
        "SET" => set(cursor),
        "RESET" => reset(cursor),
        "ALTER" => alter(cursor),
        "STOP" => {
            cursor.skip(1);
            queries::stop(cursor)
        }
        "RESTART" => {
            cursor.skip(1);
            queries::restart(cursor)
        }
        "SHOW" => show(cursor),
        "DESCRIBE" | "DESC" => describe(cursor),
        _ => datafusion(cursor),
    }
}

fn explain(cursor: &mut Cursor) -> Result<Statement> {
    let flink = ["ESTIMATED_COST", "CHANGELOG_MODE", "JSON_EXECUTION_PLAN", "PLAN_ADVICE", "FORMAT"];
    if flink.iter().any(|word| cursor.looks_at(&[word])) {
        return Err(cursor.refuse("EXPLAIN takes no such option; say EXPLAIN [ANALYZE] [VERBOSE], or EXPLAIN PLAN FOR"));
    }
    if *cursor.peek(0) == Token::LParen && ["ANALYZE", "VERBOSE", "FORMAT"].iter().any(|w| is_word(cursor.peek(1), w)) {
        return Err(cursor.refuse("EXPLAIN takes no options in parentheses; say EXPLAIN [ANALYZE] [VERBOSE]"));
    }
    let (analyze, verbose) = (cursor.eat(&["ANALYZE"]), cursor.eat(&["VERBOSE"]));
    cursor.eat(&["PLAN", "FOR"]);
    let refusal = cursor.refuse("EXPLAIN takes a query or an INSERT");
    if cursor.looks_at(&["EXPLAIN"]) {
        return Err(refusal);
    }
    let is_set = cursor.looks_at(&["STATEMENT", "SET"]);
    let statement = match if is_set { statement_set(cursor)? } else { statement(cursor)? } {
        Statement::CreateTable(CreateTable { as_query: None, .. }) => return Err(refusal),
        explained @ (Statement::Query(_)
        | Statement::Insert(_)
        | Statement::StatementSet(_)
        | Statement::CreateTable(_)
        | Statement::DataFusion(_)) => Box::new(explained),
        _ => return Err(refusal),
    };
    Ok(Statement::Explain { analyze, verbose, statement })
}

fn create(cursor: &mut Cursor) -> Result<Statement> {
    if cursor.eat(&["CREATE", "CATALOG"]) {
        return clusters::create_catalog(cursor);
    }
    if cursor.eat(&["CREATE", "TOPIC"]) {
        return clusters::create_topic(cursor);
    }
    let or_replace = is_word(cursor.peek(1), "OR") && is_word(cursor.peek(2), "REPLACE");
    let mut words = if or_replace { 3 } else { 1 };
    let temporary = is_word(cursor.peek(words), "TEMPORARY") || is_word(cursor.peek(words), "TEMP");
    words += usize::from(temporary);
    let (is_table, is_view) = (is_word(cursor.peek(words), "TABLE"), is_word(cursor.peek(words), "VIEW"));
    if !is_table && !is_view {
        return datafusion(cursor);
    }
    if is_table && or_replace {
        return Err(cursor.refuse("CREATE OR REPLACE TABLE is not supported; say DROP TABLE IF EXISTS first"));
    }
    cursor.skip(words + 1);
    if is_table { ddl::create_table(cursor, temporary) } else { create_view(cursor, or_replace, temporary) }
}

fn create_view(cursor: &mut Cursor, or_replace: bool, temporary: bool) -> Result<Statement> {
    let if_not_exists = cursor.eat(&["IF", "NOT", "EXISTS"]);
    if if_not_exists && or_replace {
        return Err(cursor.refuse("OR REPLACE and IF NOT EXISTS exclude each other; keep one of them"));
    }
    let name = cursor.table_name("the name of a view")?;
    let columns = if *cursor.peek(0) == Token::LParen { cursor.names("the name of a column")? } else { Vec::new() };
    if cursor.eat(&["COMMENT"]) {
        cursor.string("a comment")?;
    }
    cursor.expect(&["AS"])?;
    let query = cursor.query_text()?;
    let query = match columns.as_slice() {
        [] => query.to_string(),
        columns => {
            let columns: Vec<String> = columns.iter().map(|(name, _)| quote(name)).collect();
            format!("SELECT * FROM ({query}) AS {} ({})", quote(&name), columns.join(", "))
        }
    };
    Ok(Statement::CreateView { view: ViewDefinition { name, query }, or_replace, if_not_exists, temporary })
}

fn drop(cursor: &mut Cursor) -> Result<Statement> {
    if cursor.eat(&["DROP", "CATALOG"]) {
        return clusters::drop_catalog(cursor);
    }
    if cursor.eat(&["DROP", "TOPIC"]) {
        return clusters::drop_topic(cursor);
    }
    let kind = if is_word(cursor.peek(1), "TEMPORARY") { 2 } else { 1 };
    let (is_table, is_view) = (is_word(cursor.peek(kind), "TABLE"), is_word(cursor.peek(kind), "VIEW"));
    if !is_table && !is_view {
        return datafusion(cursor);
    }
    cursor.skip(kind + 1);
    let if_exists = cursor.eat(&["IF", "EXISTS"]);
    let name = cursor.table_name(if is_table { "the name of a table" } else { "the name of a view" })?;
    Ok(if is_table { Statement::DropTable { name, if_exists } } else { Statement::DropView { name, if_exists } })
}

fn alter(cursor: &mut Cursor) -> Result<Statement> {
    if cursor.eat(&["ALTER", "TABLE"]) { ddl::alter_table(cursor) } else { datafusion(cursor) }
}

fn statement_set(cursor: &mut Cursor) -> Result<Statement> {
    let form = "EXECUTE STATEMENT SET BEGIN INSERT INTO …; INSERT INTO …; END";
    cursor.eat(&["EXECUTE"]);
    if !cursor.eat(&["STATEMENT", "SET", "BEGIN"]) {
        return Err(cursor.refuse(format!("the only thing to execute is a statement set: {form}")));
    }
    let mut inserts = vec![];
    while !cursor.eat(&["END"]) {
        if !cursor.looks_at(&["INSERT"]) {
            return Err(cursor.expected(&format!("INSERT INTO or END, as in {form}")));
        }
        inserts.push(insert(cursor)?);
        cursor.expect_token(&Token::SemiColon)?;
    }
    match inserts.is_empty() {
        true => Err(cursor.refuse(format!("a statement set needs an INSERT: {form}"))),
        false => Ok(Statement::StatementSet(inserts)),
    }
}

fn insert(cursor: &mut Cursor) -> Result<Insert> {
    cursor.expect(&["INSERT"])?;
    if cursor.looks_at(&["OVERWRITE"]) {
        return Err(cursor.refuse("INSERT OVERWRITE is not supported: streams only grow; say INSERT INTO"));
    }
    cursor.expect(&["INTO"])?;
    if matches!(cursor.peek(1), Token::Word(_)) {
        cursor.eat(&["TABLE"]);
    }
    let table = cursor.name("the name of a table")?;
    if *cursor.peek(0) == Token::Period {
        return Err(cursor.refuse(
            "INSERT INTO takes a table, whose name has one part; declare a table on the topic with CREATE TABLE, or \
             quote the name if the dot belongs to it",
        ));
    }
    if cursor.looks_at(&["PARTITION"]) {
        return Err(cursor.refuse("INSERT … PARTITION (…) is not supported; select the partition columns as well"));
    }
    let columns = if names_columns(cursor) { cursor.names("the name of a column")? } else { Vec::new() };
    for (index, (name, place)) in columns.iter().enumerate() {
        if columns[..index].iter().any(|(earlier, _)| earlier == name) {
            return Err(Error::usage(format!("the column '{name}' is named twice")).at(*place));
        }
    }
    let columns = columns.into_iter().map(|(name, _)| name).collect();
    Ok(Insert { table, columns, query: cursor.query()? })
}

/// Whether `(` opens a list of columns: a name, then `,` or `)`. A query goes on in another way.
fn names_columns(cursor: &Cursor) -> bool {
    *cursor.peek(0) == Token::LParen
        && matches!(cursor.peek(1), Token::Word(_))
        && matches!(cursor.peek(2), Token::Comma | Token::RParen)
}

fn set(cursor: &mut Cursor) -> Result<Statement> {
    cursor.expect(&["SET"])?;
    if *cursor.peek(0) == Token::EOF {
        return Ok(Statement::ShowSettings);
    }
    let advice = "SET takes a key and a value; say SET 'key' = 'value'";
    let (start, refusal) = (cursor.location(), cursor.refuse(advice));
    let (tokens, text) = cursor.text_until(|token| *token == Token::Eq || is_word(token, "TO"));
    let key = key(tokens, text).ok_or(refusal)?;
    if !cursor.eat_token(&Token::Eq) && !cursor.eat(&["TO"]) {
        return Err(Error::usage(advice).at(start));
    }
    let refusal = cursor.refuse("SET takes one value; put it into single quotes: SET 'key' = 'value'");
    let (tokens, text) = cursor.text_until(|_| false);
    let value = match tokens {
        [] => return Err(refusal),
        [one] => quoted(&one.token).unwrap_or(text).to_string(),
        [first, ..] if quoted(&first.token).is_some() => return Err(refusal),
        _ => text.to_string(),
    };
    Ok(Statement::Set { key, value })
}

fn reset(cursor: &mut Cursor) -> Result<Statement> {
    cursor.expect(&["RESET"])?;
    if cursor.looks_at(&["GROUP"]) && !matches!(cursor.peek(1), Token::Period | Token::Minus) {
        cursor.skip(1);
        return clusters::reset_group(cursor);
    }
    if *cursor.peek(0) == Token::EOF {
        return Ok(Statement::Reset { key: None });
    }
    let refusal = cursor.refuse("RESET takes a key, or none for all; say RESET 'key'");
    let (tokens, text) = cursor.text_until(|_| false);
    key(tokens, text).map(|key| Statement::Reset { key: Some(key) }).ok_or(refusal)
}

/// A key: quoted as a whole, or words with dots and hyphens between them.
fn key(tokens: &[TokenWithSpan], text: &str) -> Option<String> {
    let plain = |token: &TokenWithSpan| match &token.token {
        Token::Word(word) => word.quote_style.is_none(),
        Token::Number(..) | Token::Period | Token::Minus => true,
        _ => false,
    };
    match tokens {
        [one] if quoted(&one.token).is_some_and(|key| !key.is_empty()) => quoted(&one.token).map(str::to_string),
        [_, ..] if !tokens.iter().all(plain) || text.contains(char::is_whitespace) => None,
        [_, ..] if !text.starts_with(['.', '-']) && !text.ends_with(['.', '-']) => Some(text.to_string()),
        _ => None,
    }
}

fn quoted(token: &Token) -> Option<&str> {
    match token {
        Token::SingleQuotedString(text) => Some(text),
        Token::Word(word) if word.quote_style.is_some() => Some(&word.value),
        _ => None,
    }
}

fn show(cursor: &mut Cursor) -> Result<Statement> {
    let is_planned = ["COLUMNS", "ALL"].iter().any(|word| is_word(cursor.peek(1), word));
    let is_setting = is_word(cursor.peek(1), "datafusion") && *cursor.peek(2) == Token::Period;
    if is_planned || is_setting {
        return datafusion(cursor);
    }
    cursor.expect(&["SHOW"])?;
    Ok(if cursor.eat(&["TABLES"]) {
        Statement::ShowTables { like: pattern(cursor, "TABLES")? }
    } else if cursor.eat(&["VIEWS"]) {
        Statement::ShowViews { like: pattern(cursor, "VIEWS")? }
    } else if cursor.eat(&["FUNCTIONS"]) {
        Statement::ShowFunctions { like: pattern(cursor, "FUNCTIONS")? }
    } else if cursor.eat(&["CREATE", "TABLE"]) {
        Statement::ShowCreateTable { name: cursor.table_name("the name of a table")? }
    } else if cursor.eat(&["CREATE", "VIEW"]) {
        Statement::ShowCreateView { name: cursor.table_name("the name of a view")? }
    } else if cursor.eat(&["CATALOGS"]) {
        Statement::ShowCatalogs
    } else if cursor.eat(&["TOPICS"]) {
        clusters::show_topics(cursor)?
    } else if cursor.eat(&["GROUPS"]) {
        clusters::show_groups(cursor)?
    } else if cursor.eat(&["QUERIES"]) {
        Statement::ShowQueries
    } else {
        return Err(not_shown(cursor));
    })
}

fn pattern(cursor: &mut Cursor, list: &str) -> Result<Option<String>> {
    match cursor.looks_at(&["FROM"]) || cursor.looks_at(&["IN"]) {
        true => Err(cursor.refuse(format!("SHOW {list} takes no FROM or IN; for topics say SHOW TOPICS FROM k"))),
        false => cursor.like(),
    }
}

/// Why what comes next cannot be shown.
fn not_shown(cursor: &Cursor) -> Error {
    let later = ["DATABASES", "SCHEMAS", "PARTITIONS", "MODULES", "PROCEDURES", "CURRENT", "JARS", "MODELS", "FULL"];
    let shown = [
        "TABLES",
        "VIEWS",
        "FUNCTIONS",
        "COLUMNS",
        "CREATE TABLE",
        "CREATE VIEW",
        "CATALOGS",
        "TOPICS",
        "GROUPS",
        "QUERIES",
        "ALL",
    ];
    let word = match cursor.peek(0) {
        Token::Word(word) if word.quote_style.is_none() => word.value.to_ascii_uppercase(),
        _ => return cursor.expected("what to show, such as TABLES"),
    };
    match word.as_str() {
        "CREATE" => cursor.refuse("SHOW CREATE takes a TABLE or a VIEW"),
        "JOBS" => cursor.refuse("there is no SHOW JOBS; say SHOW QUERIES"),
        word if later.contains(&word) => cursor.refuse(format!("SHOW {word} is not supported yet")),
        word => {
            let hint = did_you_mean(word, shown.into_iter());
            cursor.refuse(format!("there is no SHOW {word}{hint} (SET alone lists the settings)"))
        }
    }
}

fn describe(cursor: &mut Cursor) -> Result<Statement> {
    if *cursor.peek(2) == Token::Period && *cursor.peek(4) == Token::Period {
        return datafusion(cursor);
    }
    cursor.skip(1);
    // A table may be called `topic`: the word says what is described only if a name follows.
    if matches!(cursor.peek(1), Token::Word(_) | Token::SingleQuotedString(_)) {
        if cursor.eat(&["TOPIC"]) {
            return clusters::describe_topic(cursor);
        }
        if cursor.eat(&["GROUP"]) {
            return clusters::describe_group(cursor);
        }
        if cursor.eat(&["QUERY"]) {
            return queries::describe(cursor);
        }
        cursor.eat(&["TABLE"]);
    }
    if *cursor.peek(1) == Token::Period {
        let catalog = cursor.name("the name of a catalog")?;
        cursor.skip(1);
        return Ok(Statement::DescribeIn { catalog, name: cursor.table_name("the name of a topic")? });
    }
    Ok(Statement::Describe { name: cursor.table_name("the name of a table or view")? })
}

fn datafusion(cursor: &mut Cursor) -> Result<Statement> {
    let start = cursor.location();
    let refusal = cursor.refuse("this form is not supported; say CREATE [TEMPORARY] TABLE or VIEW, or INSERT INTO");
    let mut parsed = cursor.datafusion()?;
    match &mut parsed {
        DFStatement::Statement(statement) => {
            rewrite::queries(statement.as_mut()).map_err(|e| e.at(start))?;
            match statement.as_mut() {
                ast::Statement::Query(query) => return Ok(Statement::Query(query.clone())),
                ast::Statement::CreateTable(_) | ast::Statement::CreateView(_) | ast::Statement::Insert(_) => {
                    return Err(refusal);
                }
                _ => {}
            }
        }
        DFStatement::CopyTo(copy) => {
            if let CopyToSource::Query(query) = &mut copy.source {
                rewrite::queries(query).map_err(|e| e.at(start))?;
            }
        }
        _ => {}
    }
    Ok(Statement::DataFusion(Box::new(parsed)))
}

//! Definitions as SQL again.
//!
//! What is printed parses back to the same definition, except that secrets are hidden; a reference `${env:NAME}` is no
//! secret and is printed. Names are always quoted, and types print in their canonical form.

use std::collections::BTreeMap;

use super::options::printable;
use super::types::{quote, sql_type};
use crate::catalog::{Column, ColumnKind, TableDefinition, ViewDefinition};

/// The `CREATE TABLE` statement of a table, without `;`.
pub fn show_create_table(table: &TableDefinition) -> String {
    let mut elements: Vec<String> = table.columns.iter().map(column).collect();
    if !table.primary_key.is_empty() {
        elements.push(format!("PRIMARY KEY ({}) NOT ENFORCED", names(&table.primary_key)));
    }
    if let Some(watermark) = &table.watermark {
        elements.push(format!("WATERMARK FOR {} AS {}", quote(&watermark.column), watermark.expression));
    }
    let mut sql = format!("CREATE TABLE {}", quote(&table.name));
    if !elements.is_empty() {
        sql = format!("{sql} (\n  {}\n)", elements.join(",\n  "));
    }
    if !table.partitioned_by.is_empty() {
        sql = format!("{sql}\nPARTITIONED BY ({})", names(&table.partitioned_by));
    }
    format!("{sql}\n{}", with(&table.options))
}

/// The `CREATE CATALOG` statement of a catalog, without `;`.
pub fn show_create_catalog(name: &str, options: &BTreeMap<String, String>) -> String {
    format!("CREATE CATALOG {} {}", quote(name), with(options))
}

/// The `CREATE VIEW` statement of a view, without `;`.
pub fn show_create_view(view: &ViewDefinition) -> String {
    format!("CREATE VIEW {} AS\n{}", quote(&view.name), view.query)
}

fn with(options: &BTreeMap<String, String>) -> String {
    let option = |(key, value): (&String, &String)| format!("{} = {}", literal(key), literal(printable(key, value)));
    format!("WITH (\n  {}\n)", options.iter().map(option).collect::<Vec<_>>().join(",\n  "))
}

fn column(column: &Column) -> String {
    let name = quote(&column.name);
    let stored = || {
        let not_null = if column.nullable { "" } else { " NOT NULL" };
        format!("{name} {}{not_null}", sql_type(&column.data_type))
    };
    match &column.kind {
        ColumnKind::Physical => stored(),
        ColumnKind::Computed { expression } => format!("{name} AS {expression}"),
        ColumnKind::Metadata { key, is_virtual } => {
            let from = if *key == column.name { String::new() } else { format!(" FROM {}", literal(key)) };
            format!("{} METADATA{from}{}", stored(), if *is_virtual { " VIRTUAL" } else { "" })
        }
    }
}

fn names(names: &[String]) -> String {
    names.iter().map(|name| quote(name)).collect::<Vec<_>>().join(", ")
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

//! SHOW and DESCRIBE of what is defined, as rows.

use std::collections::BTreeMap;

use arrow::datatypes::Schema;
use datafusion::common::TableReference;
use datafusion::logical_expr::Documentation;

use super::listing::{Row, listing};
use super::{Outcome, Session, settings};
use crate::catalog::{Column, ColumnKind, TableDefinition};
use crate::error::{Error, Result};
use crate::plan::scan::StreamTable;
use crate::sql::options::printable;
use crate::sql::types::sql_type;
use crate::sql::{self, Statement};

/// The connector of a table over files that do not change, in listings.
const EXTERNAL: &str = "external";

impl Session {
    /// `SET`, alone: all settings.
    pub(super) fn show_settings(&self) -> Outcome {
        let line = |(key, value, meaning): (String, Option<String>, String)| {
            format!("'{key}' = '{}'  -- {meaning}", value.unwrap_or_default())
        };
        let lines: Vec<String> = settings::list(&self.settings).into_iter().map(line).collect();
        Outcome::Text(lines.join("\n"))
    }

    /// `SHOW TABLES [LIKE …]`: those of the catalog also where they cannot be used here.
    pub(super) fn show_tables(&self, like: Option<&str>) -> Result<Outcome> {
        let mut found: BTreeMap<String, (String, &str)> = BTreeMap::new();
        let connector = |table: &TableDefinition| table.connector().unwrap_or_default().to_owned();
        for (name, statement) in self.kept_statements() {
            let connector = match statement {
                Statement::CreateTable(create) => connector(&create.definition),
                Statement::DataFusion(_) => EXTERNAL.to_owned(),
                _ => continue,
            };
            found.insert(name.to_owned(), (connector, "catalog"));
        }
        let tables = self.tables.iter().map(|(name, table)| (name.clone(), connector(table)));
        let externals = self.static_names().into_iter().map(|name| (name, EXTERNAL.to_owned()));
        for (name, connector) in tables.chain(externals).filter(|(name, _)| self.is_own(name)) {
            found.insert(name, (connector, "session"));
        }
        let rows = found.into_iter().filter(|(name, _)| is_meant(name, like));
        let rows = rows.map(|(name, (connector, scope))| vec![Some(name), Some(connector), Some(scope.to_owned())]);
        Ok(Outcome::Rows(listing(&["name", "connector", "scope"], rows.collect())?))
    }

    /// `SHOW VIEWS [LIKE …]`.
    pub(super) fn show_views(&self, like: Option<&str>) -> Result<Outcome> {
        let kept = self.kept_statements().filter(|(_, statement)| matches!(statement, Statement::CreateView { .. }));
        let mut found: BTreeMap<String, &str> = kept.map(|(name, _)| (name.to_owned(), "catalog")).collect();
        let ours = self.views.iter().filter(|view| self.is_own(&view.name));
        found.extend(ours.map(|view| (view.name.clone(), "session")));
        let rows = found.into_iter().filter(|(name, _)| is_meant(name, like));
        let rows = rows.map(|(name, scope)| vec![Some(name), Some(scope.to_owned())]).collect();
        Ok(Outcome::Rows(listing(&["name", "scope"], rows)?))
    }

    /// `SHOW FUNCTIONS [LIKE …]`: all that are registered, with what their own documentation says.
    pub(super) fn show_functions(&self, like: Option<&str>) -> Result<Outcome> {
        let state = self.context.state();
        let scalar = state.scalar_functions().iter().map(|(name, f)| (name, "scalar", f.documentation()));
        let aggregate = state.aggregate_functions().iter().map(|(name, f)| (name, "aggregate", f.documentation()));
        let window = state.window_functions().iter().map(|(name, f)| (name, "window", f.documentation()));
        let table = state.table_functions().keys().map(|name| (name, "table", None));
        let row = |(name, kind, said): (&String, &str, Option<&Documentation>)| {
            let syntax = said.map(|said| said.syntax_example.clone()).unwrap_or_default();
            // The rest are paragraphs.
            let first = said.and_then(|said| said.description.trim().lines().next()).unwrap_or_default();
            [name.as_str(), kind, syntax.as_str(), first].map(|cell| Some(cell.to_owned())).to_vec()
        };
        let all = scalar.chain(aggregate).chain(window).chain(table);
        let mut rows: Vec<Vec<Option<String>>> = all.filter(|(name, ..)| is_meant(name, like)).map(row).collect();
        rows.sort();
        Ok(Outcome::Rows(listing(&["name", "kind", "syntax", "description"], rows)?))
    }

    /// `SHOW CREATE TABLE`.
    pub(super) fn show_create_table(&self, name: &str) -> Result<Outcome> {
        let known = self.tables.get(name).map(sql::show_create_table).or_else(|| self.externals.get(name).cloned());
        let kept = || self.kept_statement(name).filter(|_| !self.is_view(name)).map(str::to_owned);
        known.or_else(kept).map(Outcome::Text).ok_or_else(|| self.no_table(name))
    }

    /// `SHOW CREATE VIEW`.
    pub(super) fn show_create_view(&self, name: &str) -> Result<Outcome> {
        let known = self.views.iter().find(|view| view.name == name).map(sql::show_create_view);
        let kept = || self.kept_statement(name).filter(|_| self.is_view(name)).map(str::to_owned);
        known.or_else(kept).map(Outcome::Text).ok_or_else(|| Error::usage(format!("there is no view {name}")))
    }

    /// `DESCRIBE`: a row for each column, and behind them one for each option.
    pub(super) async fn describe(&self, name: &str) -> Result<Outcome> {
        if let Some(table) = self.definition(name)? {
            return shown(table_rows(&table));
        }
        if !self.is_taken(name).await? {
            return Err(self.no_table(name));
        }
        let frame = self.context.table(TableReference::bare(name)).await?;
        shown(schema_rows(frame.schema().as_arrow()))
    }

    /// `DESCRIBE k.orders`: the same of a topic of a catalog, as a SELECT finds it; of another schema the columns.
    pub(super) async fn describe_in(&self, catalog: &str, name: &str) -> Result<Outcome> {
        let table = TableReference::partial(catalog, name);
        if !self.clusters.contains_key(catalog) && !self.context.table_exist(table.clone()).unwrap_or(false) {
            return Err(self.no_catalog(catalog));
        }
        let provider = self.context.table_provider(table).await?;
        shown(match provider.downcast_ref::<StreamTable>() {
            Some(stream) => table_rows(stream.definition()),
            None => schema_rows(&provider.schema()),
        })
    }
}

/// The columns and options of a table.
fn table_rows(table: &TableDefinition) -> Vec<Row> {
    let columns = table.columns.iter().map(|column| described(table, column));
    let options = table
        .options
        .iter()
        .map(|(key, value)| row([&format!("WITH '{key}'"), "", "", "", &format!("'{}'", printable(key, value))]));
    columns.chain(options).collect()
}

/// The columns of what has no options.
fn schema_rows(schema: &Schema) -> Vec<Row> {
    let null = |is_nullable| if is_nullable { "YES" } else { "NO" };
    let fields = schema.fields().iter();
    fields.map(|f| row([f.name(), &sql_type(f.data_type()), null(f.is_nullable()), "", ""])).collect()
}

fn shown(rows: Vec<Row>) -> Result<Outcome> {
    Ok(Outcome::Rows(listing(&["name", "type", "null", "key", "extras"], rows)?))
}

/// A column of a table: `key` says whether it is in the primary key, or in PARTITIONED BY; `extras` what else is declared.
fn described(table: &TableDefinition, column: &Column) -> Row {
    let mut extras = match &column.kind {
        ColumnKind::Physical => vec![],
        ColumnKind::Metadata { key, is_virtual } => {
            vec![format!("METADATA FROM '{key}'{}", if *is_virtual { " VIRTUAL" } else { "" })]
        }
        ColumnKind::Computed { expression } => vec![format!("AS {expression}")],
    };
    let watermark = table.watermark.as_ref().filter(|watermark| watermark.column == column.name);
    extras.extend(watermark.map(|watermark| format!("WATERMARK AS {}", watermark.expression)));
    let keys = [(&table.primary_key, "primary"), (&table.partitioned_by, "partition")];
    let keys = keys.into_iter().filter(|(names, _)| names.contains(&column.name)).map(|(_, key)| key);
    let null = if column.nullable { "YES" } else { "NO" };
    let key = keys.collect::<Vec<_>>().join(", ");
    row([&column.name, &sql_type(&column.data_type), null, &key, &extras.join(", ")])
}

fn row(cells: [&str; 5]) -> Row {
    cells.map(|cell| Some(cell.to_owned())).to_vec()
}

/// Whether SHOW … LIKE means this name.
pub(super) fn is_meant(name: &str, like: Option<&str>) -> bool {
    like.is_none_or(|pattern| sql::is_like(name, pattern))
}

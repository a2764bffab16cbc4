//! `CREATE TABLE … WITH (…)`: a definition becomes a table that DataFusion can scan, with its computed columns and its
//! event time.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, SchemaRef, TimeUnit};
use async_trait::async_trait;
use datafusion::catalog::Session as DfSession;
use datafusion::catalog::default_table_source::provider_as_source;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column as ColumnRef, DFSchema, Result as DfResult, TableReference};
use datafusion::datasource::{TableProvider, ViewTable};
use datafusion::logical_expr::{
    Expr, ExprSchemable, LogicalPlan, LogicalPlanBuilder, TableProviderFilterPushDown, TableType, cast,
};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::sql::sqlparser::ast;

use super::Session;
use crate::catalog::{Column, ColumnKind, TableDefinition, Watermark};
use crate::connector::Role;
use crate::error::{Error, Result};
use crate::plan::opener::Opener;
use crate::plan::scan::StreamTable;
use crate::plan::time::EventTime;
use crate::sql;

impl Session {
    /// Checks a table and makes it known, in the place of one of its name.
    pub(super) fn create_table(&mut self, mut table: TableDefinition) -> Result<()> {
        let connector = self.connectors.of(&table)?;
        if table.columns.is_empty() {
            let name = &table.name;
            return Err(Error::usage(format!("table {name} has no columns; say CREATE TABLE {name} (a INT, …)")));
        }
        if let Some(column) = table.columns.iter().find(|column| column.name.starts_with('$')) {
            return Err(Error::usage(format!(
                "table {}: column {}: names that begin with $ are the engine's own; give it another name",
                table.name, column.name
            )));
        }
        // A table that can be neither read nor written is wrong; which of the two it is used for shows later. One with a
        // primary key is most likely to be written.
        let roles = match table.primary_key.is_empty() {
            true => [Role::Source, Role::Sink],
            false => [Role::Sink, Role::Source],
        };
        connector.check(&table, roles[0]).or_else(|error| connector.check(&table, roles[1]).map_err(|_| error))?;
        let provider = self.provider(&mut table)?;
        self.context.deregister_table(TableReference::bare(table.name.as_str()))?;
        self.context.register_table(TableReference::bare(table.name.as_str()), provider)?;
        self.tables.insert(table.name.clone(), table);
        Ok(())
    }

    /// A table as DataFusion scans it; its computed columns get their types.
    pub(super) fn provider(&self, table: &mut TableDefinition) -> Result<Arc<dyn TableProvider>> {
        let is_changelog = self.connectors.of(table)?.is_changelog(table);
        let opener = Arc::new(Opener::new(self.connectors.clone(), self.environment(), None));
        let stream = StreamTable::new(Arc::new(table.clone()), opener).as_changelog(is_changelog);
        if !table.has_computed_columns() && table.watermark.is_none() {
            return Ok(Arc::new(stream));
        }
        let (plan, types) = self.computed(table, stream)?;
        for column in &mut table.columns {
            if let Some(data_type) = types.get(&column.name) {
                column.data_type = data_type.clone();
            }
        }
        Ok(Arc::new(Readable(ViewTable::new(plan, None))))
    }

    /// A table with its computed columns, and event time under its marker: a projection over what is stored.
    fn computed(
        &self,
        table: &TableDefinition,
        stream: StreamTable,
    ) -> Result<(LogicalPlan, BTreeMap<String, arrow::datatypes::DataType>)> {
        let name = || TableReference::bare(table.name.as_str());
        let schema = DFSchema::try_from_qualified_schema(name(), &stream.schema())?;
        let (mut columns, mut types) = (BTreeMap::new(), BTreeMap::new());
        for column in &table.columns {
            let ColumnKind::Computed { expression } = &column.kind else {
                columns.insert(column.name.as_str(), Expr::Column(ColumnRef::from_name(&column.name)));
                continue;
            };
            let computed = self.expression(expression, &schema)?;
            types.insert(column.name.clone(), computed.get_type(&schema)?);
            columns.insert(column.name.as_str(), computed);
        }
        let stream = match &table.watermark {
            Some(watermark) => {
                let rule = self.watermark(table, watermark, &columns, &schema)?;
                columns.entry(&watermark.column).and_modify(|time| *time = EventTime::mark(time.clone()));
                stream.with_watermark(rule)
            }
            None => stream,
        };
        let named = |column: &Column| Some(columns.get(column.name.as_str())?.clone().alias(&column.name));
        let scan = LogicalPlanBuilder::scan(name(), provider_as_source(Arc::new(stream)), None)?;
        Ok((scan.project(table.columns.iter().filter_map(named))?.build()?, types))
    }

    fn expression(&self, text: &str, schema: &DFSchema) -> Result<Expr> {
        let mut parsed = sql::parse_expression(text)?;
        sql::functions::rewrite_expr(&mut parsed);
        let with_alias = ast::ExprWithAlias { expr: parsed, alias: None };
        Ok(self.context.state().create_logical_expr_from_sql_expr(with_alias, schema)?)
    }

    /// A table's watermark in milliseconds, over its stored columns: what is computed is put in.
    fn watermark(
        &self,
        table: &TableDefinition,
        watermark: &Watermark,
        columns: &BTreeMap<&str, Expr>,
        schema: &DFSchema,
    ) -> Result<Arc<dyn PhysicalExpr>> {
        let what = || format!("table {}: WATERMARK FOR {}", table.name, watermark.column);
        let Some(time) = columns.get(watermark.column.as_str()) else {
            let hint = sql::options::did_you_mean(&watermark.column, columns.keys().copied());
            return Err(Error::usage(format!("{}: there is no such column{hint}", what())));
        };
        let data_type = time.get_type(schema)?;
        if !matches!(data_type, DataType::Timestamp(..)) {
            let found = sql::types::sql_type(&data_type);
            return Err(Error::usage(format!(
                "{}: it is {found}; event time must be a TIMESTAMP or TIMESTAMP_LTZ, for example a computed column",
                what()
            )));
        }
        let all: Vec<_> = columns
            .iter()
            .map(|(name, expr)| {
                let field = Field::new(*name, expr.get_type(schema)?, true);
                Ok((Some(TableReference::bare(table.name.as_str())), Arc::new(field)))
            })
            .collect::<Result<_>>()?;
        let all = DFSchema::new_with_metadata(all, Default::default())?;
        let rule = self.expression(&watermark.expression, &all).map_err(|error| error.context(what()))?;
        let stored = rule.transform(|expr| {
            Ok(match &expr {
                Expr::Column(column) => match columns.get(column.name.as_str()) {
                    Some(computed) => Transformed::new(computed.clone(), true, TreeNodeRecursion::Jump),
                    None => Transformed::no(expr),
                },
                _ => Transformed::no(expr),
            })
        })?;
        if !matches!(stored.data.get_type(schema)?, DataType::Timestamp(..)) {
            return Err(Error::usage(format!(
                "{}: AS must give a timestamp, such as {} - INTERVAL '5' SECOND",
                what(),
                watermark.column
            )));
        }
        let in_ms = cast(stored.data, DataType::Timestamp(TimeUnit::Millisecond, None));
        Ok(self.context.state().create_physical_expr(in_ms, schema)?)
    }
}

/// A table that is read by a plan: whoever asks what there is, is told of a table and not of a view.
#[derive(Debug)]
struct Readable(ViewTable);

#[async_trait]
impl TableProvider for Readable {
    fn get_logical_plan(&'_ self) -> Option<Cow<'_, LogicalPlan>> {
        self.0.get_logical_plan()
    }

    fn schema(&self) -> SchemaRef {
        self.0.schema()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> DfResult<Vec<TableProviderFilterPushDown>> {
        self.0.supports_filters_pushdown(filters)
    }

    async fn scan(
        &self,
        state: &dyn DfSession,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> DfResult<Arc<dyn ExecutionPlan>> {
        self.0.scan(state, projection, filters, limit).await
    }
}

//! `INSERT INTO … SELECT …` over a stream becomes a continuous query.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::common::Column as ColumnRef;
use datafusion::execution::SessionState;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, cast, lit};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::scalar::ScalarValue;
use datafusion::sql::sqlparser::ast;

use super::{Outcome, Session, epoch_state, settings};
use crate::catalog::{Column, ColumnKind, TableDefinition};
use crate::connector::{Connector, Partition, Role, Span};
use crate::error::{Error, Result};
use crate::plan::aggregate::{Times, shapes};
use crate::plan::changes::{self, is_updating};
use crate::plan::late::LateTable;
use crate::plan::{Binding, StreamPlan, explain, opener::Opener};
use crate::query::definition::{self, Definition, durable, revived};
use crate::query::trigger::Trigger;
use crate::query::{Planned, QuerySpec, Replan};
use crate::sql::{self, Insert, Statement};

impl Session {
    /// Plans `INSERT INTO … SELECT …`.
    pub(super) async fn continuous(&mut self, insert: Insert) -> Result<QuerySpec> {
        let mut parts = vec![self.name.as_str(), insert.table.as_str()];
        parts.splice(0..0, self.setting("pipeline.name"));
        let name = parts.join("/");
        if self.names.contains(&name) {
            return Err(Error::usage(format!(
                "there is a query {name} already; SET 'pipeline.name' = '…' before this INSERT gives it a name of its own"
            )));
        }
        let location = self.setting("checkpoint.location").ok_or_else(|| {
            Error::usage(
                "a continuous query needs a checkpoint: SET 'checkpoint.location' = 's3://bucket/prefix' (or a path), or \
                 submit with --checkpoint",
            )
        })?;
        let location = sql::options::resolve_environment("checkpoint.location", location)?;
        let environment = self.environment();
        let checkpoint = self.stores.open(&location, &self.settings)?;
        let planned = self.planned(&insert.table, &insert.columns, *insert.query).await?;
        let connector = self.connectors.of(&planned.target)?;
        let trigger = match self.setting("epoch.trigger") {
            Some(text) => text.parse()?,
            None if connector.prefers_continuous() => Trigger::Continuous,
            None => Trigger::FILES,
        };
        let today = self.clone();
        let replan: Replan = Arc::new(move |definition| {
            let today = today.clone();
            Box::pin(async move { today.replanned(definition).await })
        });
        self.names.insert(name.clone());
        let connectors = self.connectors.clone();
        Ok(QuerySpec { name, planned, replan, checkpoint, environment, connectors, trigger })
    }

    async fn planned(&self, target: &str, columns: &[String], query: ast::Query) -> Result<Planned> {
        let target = self.writable(target).await?;
        let connector = self.connectors.of(target)?;
        connector.check(target, Role::Sink)?;
        let text = query.to_string();
        let plan = fit(self.plan_query(query).await?, target, columns)?;
        let state = epoch_state(self.context.state());
        let ttl = self.setting("state.ttl").and_then(sql::options::parse_duration);
        let mut plan = StreamPlan::try_new(&state, plan, ttl)?;
        let mut trial = self.trial(&plan, &state).await?;
        let late = self.late_table(target, &trial).await?;
        if let Some(late) = late {
            plan = plan.with_late_rows(LateTable::new(&late.name, late.writable_schema()));
            trial = self.trial(&plan, &state).await?;
        }
        check_result(target, connector.as_ref(), &trial)?;

        let mut sources = BTreeMap::new();
        let mut identities = BTreeMap::from([(String::new(), connector.identity(target)?)]);
        let mut written = vec![identities[""].clone()];
        written.extend(late.map(|late| self.connectors.of(late)?.identity(late)).transpose()?);
        for (name, table) in plan.tables() {
            let connector = self.connectors.of(table)?;
            connector.check(table, Role::Source)?;
            let identity = connector.identity(table)?;
            let allowed = self.setting("query.allow-feedback") == Some("true");
            if !allowed && written.iter().any(|written| feeds(written, &identity)) {
                return Err(Error::usage(format!(
                    "the query reads what it writes ({identity}), and would never end feeding itself; \
                     SET 'query.allow-feedback' = 'true' if that is meant"
                )));
            }
            identities.insert(name.clone(), identity);
            sources.insert(name.clone(), durable(&self.tables[name], &self.connectors)?);
        }
        let mut definition = Definition {
            query: text,
            columns: columns.to_vec(),
            target: durable(target, &self.connectors)?,
            late: late.map(|late| durable(late, &self.connectors)).transpose()?,
            sources,
            views: self.views.clone(),
            statics: self.statics.clone(),
            settings: self.settings.clone().into_iter().filter(|(key, _)| settings::decides_answers(key)).collect(),
            static_files: definition::static_files(&trial),
            identities,
        };
        if late.is_none() {
            // It decides nothing here, and a definition has all the tables that it names.
            definition.settings.remove(settings::LATE_ROWS);
        }
        let (target, late) = (Arc::new(target.clone()), late.cloned().map(Arc::new));
        Ok(Planned { definition, plan, shapes: shapes(&trial), state, target, late })
    }

    /// The table that late rows go to, if there is one and a row can be late: where no watermark completes anything, none
    /// is.
    async fn late_table(
        &self,
        target: &TableDefinition,
        trial: &Arc<dyn ExecutionPlan>,
    ) -> Result<Option<&TableDefinition>> {
        let can_be_late = shapes(trial).iter().any(|shape| shape.rising.is_some());
        let Some(name) = self.setting(settings::LATE_ROWS).filter(|_| can_be_late) else { return Ok(None) };
        let late = self.writable(name).await.map_err(|e| e.context(settings::LATE_ROWS))?;
        let connector = self.connectors.of(late)?;
        connector.check(late, Role::Sink)?;
        let (identity, of_target) = (connector.identity(late)?, self.connectors.of(target)?.identity(target)?);
        // All that is printed, or thrown away, has one identity, the connector's name.
        let is_shared = late.connector()? == identity;
        if late.name == target.name || (!is_shared && (feeds(&identity, &of_target))) {
            return Err(Error::usage(format!(
                "{}: late rows cannot go where the query's other rows go, {identity}",
                settings::LATE_ROWS
            )));
        }
        Ok(Some(late))
    }

    /// The table of this name, which can be written.
    async fn writable(&self, name: &str) -> Result<&TableDefinition> {
        match self.tables.get(name) {
            Some(table) => Ok(table),
            None if self.is_taken(name).await? => Err(Error::usage(format!(
                "{name} cannot be written: it is no table made by CREATE TABLE … WITH ('connector' = …)"
            ))),
            None => Err(self.no_table(name)),
        }
    }

    /// The physical plan of an epoch that reads nothing.
    async fn trial(&self, plan: &StreamPlan, state: &SessionState) -> Result<Arc<dyn ExecutionPlan>> {
        let opener = Arc::new(Opener::new(self.connectors.clone(), self.environment(), None));
        let cut = vec![vec![Span::new(Partition::new("partition", 0), 0, 0)]];
        let cuts = plan.tables().keys().map(|name| (name.clone(), cut.clone())).collect();
        plan.epoch(state, &Binding { cuts, times: Times::default(), shards: 1, opener }).await
    }

    /// Plans a stored definition anew, with the secrets and operational options of today.
    async fn replanned(&self, stored: Definition) -> Result<Planned> {
        let mut session = self.sibling()?;
        let revive = |table: &TableDefinition| revived(table, self.tables.get(&table.name), &self.connectors);
        for (key, value) in &stored.settings {
            session.set(key, value)?;
        }
        for table in stored.sources.values().chain([&stored.target]).chain(&stored.late) {
            if !session.tables.contains_key(&table.name) {
                session.create_table(revive(table)?)?;
            }
        }
        for statement in &stored.statics {
            for parsed in sql::parse(statement)? {
                if let Statement::DataFusion(made) = parsed.statement {
                    session.datafusion(*made, &parsed.text).await?;
                }
            }
        }
        for view in &stored.views {
            // A view over tables that the query does not use cannot be made, and need not.
            let _ = session.create_view(view.clone()).await;
        }
        let query = *sql::parse_query(&stored.query)?;
        let planned = session.planned(&stored.target.name, &stored.columns, query).await?;
        // What it was, so that a static table that changed is noticed.
        Ok(Planned { definition: stored, ..planned })
    }

    /// `CREATE TABLE t (…) WITH (…) AS SELECT …`: the table, its columns from the SELECT if none are given, and the query.
    pub(super) async fn create_table_as(&mut self, mut table: TableDefinition, query: ast::Query) -> Result<Outcome> {
        if table.columns.is_empty() {
            let plan = self.plan_query(query.clone()).await?;
            let fields = plan.schema().fields().iter();
            table.columns = fields.map(|field| Column::physical(field.name(), field.data_type().clone())).collect();
        }
        let name = table.name.clone();
        self.create_table(table)?;
        let insert = Insert { table: name.clone(), columns: vec![], query: Box::new(query) };
        match self.continuous(insert).await {
            Ok(spec) => Ok(Outcome::Query(Box::new(spec))),
            Err(error) => {
                self.tables.remove(&name);
                self.context.deregister_table(datafusion::common::TableReference::bare(name.as_str()))?;
                Err(error)
            }
        }
    }

    /// EXPLAIN of a continuous query.
    pub async fn explain(&self, spec: &QuerySpec) -> Result<String> {
        let physical = self.trial(&spec.planned.plan, &spec.planned.state).await?;
        let mut targets = vec![];
        for target in spec.planned.targets() {
            targets.push((target.as_ref(), self.connectors.of(target)?.guarantee(target)?));
        }
        let Planned { plan, shapes, .. } = &spec.planned;
        Ok(explain::explain(&spec.name, plan, shapes, physical.as_ref(), &targets))
    }
}

/// A result that changes needs a table that takes changes.
fn check_result(target: &TableDefinition, connector: &dyn Connector, trial: &Arc<dyn ExecutionPlan>) -> Result<()> {
    if !is_updating(&trial.schema()) {
        return Ok(());
    }
    if !connector.takes_updates(target) {
        return Err(Error::usage(format!(
            "the result changes as rows arrive (it is no window's), and {} only takes rows that stay: group by window_start, \
             window_end of TUMBLE, HOP, CUMULATE or SESSION, or by date_bin(INTERVAL '1 minute', ts), where ts has a \
             WATERMARK; or write to a table that takes changes: a topic with PRIMARY KEY (…) NOT ENFORCED on the columns of \
             GROUP BY, or 'connector' = 'print'",
            target.name
        )));
    }
    check_primary_key(target, changes::keys(trial))
}

/// Rows that are told apart by `keys` are to be told apart by the primary key.
fn check_primary_key(target: &TableDefinition, keys: Option<Vec<Vec<usize>>>) -> Result<()> {
    if target.primary_key.is_empty() {
        return Ok(());
    }
    let declared = format!("PRIMARY KEY ({}) of {}", target.primary_key.join(", "), target.name);
    let Some(keys) = keys else {
        return Err(Error::usage(format!(
            "{declared}: the result does not show all that it is grouped by as it is, so rows of several groups would take \
             each other's place; add these columns to the SELECT and to the key, in types that hold all their values; an \
             expression can be computed in a subquery"
        )));
    };
    let columns: Vec<&Column> = target.writable_columns().collect();
    let is_in = |place: &usize| columns.get(*place).is_some_and(|column| target.primary_key.contains(&column.name));
    let missing = keys.iter().find(|key| !key.iter().any(is_in)).and_then(|key| columns.get(key[0]));
    match missing {
        Some(column) => Err(Error::usage(format!(
            "{declared} lacks {}, which the result is grouped by, so rows of several groups would take each other's place; \
             add it to the key",
            column.name
        ))),
        None => Ok(()),
    }
}

/// Whether what is written to `target` is read from `source`: the same topic, or files in one tree.
fn feeds(target: &str, source: &str) -> bool {
    let (target, source) = (format!("{target}/"), format!("{source}/"));
    target.starts_with(&source) || source.starts_with(&target)
}

/// Gives the rows of a SELECT the target's schema: by position, or by the columns named; a column that is left out is
/// NULL.
fn fit(plan: LogicalPlan, target: &TableDefinition, columns: &[String]) -> Result<LogicalPlan> {
    let writable: Vec<&Column> = target.writable_columns().collect();
    let names: Vec<&str> = match columns {
        [] => writable.iter().map(|column| column.name.as_str()).collect(),
        named => named.iter().map(String::as_str).collect(),
    };
    for name in &names {
        if !writable.iter().any(|column| column.name == *name) {
            let read_only = target.columns.iter().find(|column| column.name == *name).map(|column| &column.kind);
            return Err(Error::usage(match read_only {
                Some(ColumnKind::Computed { .. }) => {
                    format!("column {name} of {} is computed; leave it out", target.name)
                }
                Some(_) => format!("column {name} of {} is VIRTUAL; leave it out", target.name),
                None => {
                    let hint = sql::options::did_you_mean(name, writable.iter().map(|column| column.name.as_str()));
                    format!("table {} has no column {name}{hint}", target.name)
                }
            }));
        }
    }
    let found = plan.schema().fields().len();
    if found != names.len() {
        return Err(Error::usage(format!(
            "the SELECT has {found} columns, and {} takes {}: {}",
            target.name,
            names.len(),
            names.join(", ")
        )));
    }
    let mut expressions = Vec::with_capacity(writable.len());
    for column in writable {
        let expression = match names.iter().position(|name| *name == column.name) {
            Some(index) => {
                let (qualifier, field) = plan.schema().qualified_field(index);
                if !arrow::compute::can_cast_types(field.data_type(), &column.data_type) {
                    return Err(Error::usage(format!(
                        "column {} of {} is {}, and the SELECT gives {}; CAST it",
                        column.name,
                        target.name,
                        sql::types::sql_type(&column.data_type),
                        sql::types::sql_type(field.data_type())
                    )));
                }
                let value = Expr::Column(ColumnRef::from((qualifier, field.as_ref())));
                if field.data_type() == &column.data_type { value } else { cast(value, column.data_type.clone()) }
            }
            None => cast(lit(ScalarValue::Null), column.data_type.clone()),
        };
        expressions.push(expression.alias(&column.name));
    }
    Ok(LogicalPlanBuilder::from(plan).project(expressions)?.build()?)
}

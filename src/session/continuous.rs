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
use crate::connector::dead_letters::{self, DeadLetters};
use crate::connector::{Connector, Partition, Role, Span, overlap};
use crate::error::{Error, Result};
use crate::plan::aggregate::{Emit, Shape, Times, shapes};
use crate::plan::changes::{self, is_updating};
use crate::plan::explain::{self, Explained};
use crate::plan::kept::Kept;
use crate::plan::late::{LateTable, late_rows};
use crate::plan::{Binding, StreamPlan, opener::Opener};
use crate::query::definition::{self, Definition, OtherInsert, durable, revived};
use crate::query::trigger::Trigger;
use crate::query::{DeadLetterTable, Output, Planned, QuerySpec, Replan};
use crate::sql::{self, Insert, Statement};
use crate::storage::Location;

/// The last part of the name of a query that is a statement set.
const STATEMENT_SET: &str = "statement-set";

impl Session {
    /// Plans `INSERT INTO … SELECT …`.
    pub(super) async fn insert(&mut self, insert: Insert) -> Result<QuerySpec> {
        let name = insert.table.clone();
        self.continuous(&name, vec![insert]).await
    }

    /// Plans a statement set: one query, however many targets it has.
    pub(super) async fn statement_set(&mut self, inserts: Vec<Insert>) -> Result<QuerySpec> {
        self.continuous(STATEMENT_SET, inserts).await
    }

    async fn continuous(&mut self, name: &str, inserts: Vec<Insert>) -> Result<QuerySpec> {
        let mut parts = vec![self.name.as_str(), name];
        parts.splice(0..0, self.setting("pipeline.name"));
        let name = parts.join("/");
        if self.names.contains(&name) {
            return Err(Error::usage(format!(
                "there is a query {name} already; SET 'pipeline.name' = '…' before this one gives it a name of its own"
            )));
        }
        let location = self.setting("checkpoint.location").ok_or_else(|| {
            Error::usage(
                "a continuous query needs a checkpoint: SET 'checkpoint.location' = 's3://bucket/prefix' (or a path), or \
                 submit with --checkpoint",
            )
        })?;
        let location = sql::options::resolve_environment("checkpoint.location", location)?;
        let checkpoint = self.stores.open(&location, &self.settings)?;
        let spec = self.spec(name, checkpoint, inserts).await?;
        self.names.insert(spec.name.clone());
        Ok(spec)
    }

    /// The query of this name, whose checkpoint lies there.
    pub(super) async fn spec(&mut self, name: String, checkpoint: Location, inserts: Vec<Insert>) -> Result<QuerySpec> {
        let environment = self.environment();
        for insert in &inserts {
            self.keep_hinted(&insert.query)?;
        }
        let planned = self.planned(inserts).await?;
        let mut is_continuous = false;
        for output in &planned.outputs {
            is_continuous |= self.connectors.of(&output.target)?.prefers_continuous();
        }
        let trigger = match self.setting("epoch.trigger") {
            Some(text) => text.parse()?,
            None if is_continuous => Trigger::Continuous,
            None => Trigger::FILES,
        };
        let today = self.clone();
        let replan: Replan = Arc::new(move |definition| {
            let today = today.clone();
            Box::pin(async move { today.replanned(definition).await })
        });
        let connectors = self.connectors.clone();
        Ok(QuerySpec { name, planned, replan, checkpoint, environment, connectors, trigger, acknowledges: true })
    }

    async fn planned(&self, inserts: Vec<Insert>) -> Result<Planned> {
        let state = epoch_state(self.context.state());
        let ttl = self.setting("state.ttl").and_then(sql::options::parse_duration);
        let is_one = inserts.len() == 1;
        let (mut outputs, mut others, mut written) = (vec![], vec![], Vec::<String>::new());
        for (index, Insert { table, columns, query }) in inserts.into_iter().enumerate() {
            let target = self.writable(&table).await?;
            let connector = self.connectors.of(target)?;
            connector.check(target, Role::Sink)?;
            let (identity, place) = (connector.identity(target)?, connector.place(target)?);
            if let Some(same) = written.iter().find(|written| is_shared(target, &place, written)) {
                return Err(Error::usage(format!(
                    "two INSERTs of a statement set write to {same}; make them one, of SELECT … UNION ALL SELECT …"
                )));
            }
            let text = query.to_string();
            let plan = fit(self.plan_query(*query).await?, target, &columns)?;
            let plan = StreamPlan::try_new(&state, plan, ttl)?;
            let plan = if is_one { plan } else { plan.numbered(index + 1) };
            outputs.push(Output { plan, target: Arc::new(target.clone()) });
            others.push(OtherInsert {
                query: text,
                columns,
                target: durable(target, &self.connectors)?,
                identity: identity.clone(),
            });
            written.push(place);
        }
        let mut trials = self.trials(&outputs, &state).await?;
        let late = self.late_table(&outputs, &written, &trials).await?;
        if let Some(late) = late {
            for output in &mut outputs {
                let late = LateTable::new(&late.name, late.writable_schema());
                output.plan = output.plan.clone().with_late_rows(late);
            }
            trials = self.trials(&outputs, &state).await?;
            let rows = trials.iter().map(late_rows).collect::<Result<Vec<_>>>()?.concat();
            LateTable::new(&late.name, late.writable_schema()).check(&rows)?;
            written.push(self.connectors.of(late)?.place(late)?);
        }
        for (output, trial) in outputs.iter().zip(&trials) {
            check_result(&output.target, self.connectors.of(&output.target)?.as_ref(), trial)?;
        }

        let first = others.remove(0);
        let (target, late) = (first.target, late.cloned().map(Arc::new));
        let late_definition = late.as_ref().map(|late| durable(late, &self.connectors)).transpose()?;
        let definition = Definition {
            query: first.query,
            columns: first.columns,
            target,
            late: late_definition,
            sources: BTreeMap::new(),
            views: self.views.clone(),
            statics: self.statics.clone(),
            settings: self.settings.clone().into_iter().filter(|(key, _)| settings::decides_answers(key)).collect(),
            static_files: definition::static_files(&trials),
            identities: BTreeMap::from([(String::new(), first.identity)]),
            others,
        };
        let shapes = trials.iter().flat_map(shapes).collect();
        let mut planned = Planned { definition, outputs, shapes, state, late, dead_letters: vec![] };
        for dead in self.dead_letters(&planned, &written).await? {
            written.push(self.connectors.of(&dead.table)?.place(&dead.table)?);
            planned.dead_letters.push(dead);
        }
        for (name, table) in planned.tables() {
            let connector = self.connectors.of(&table)?;
            connector.check(&table, Role::Source)?;
            let identity = connector.identity(&table)?;
            let allowed = self.setting("query.allow-feedback") == Some("true");
            let reads = written.iter().map(|place| connector.reads(&table, place)).collect::<Result<Vec<_>>>()?;
            if !allowed && reads.contains(&true) {
                return Err(Error::usage(format!(
                    "the query reads what it writes ({identity}), and would never end feeding itself; \
                     SET 'query.allow-feedback' = 'true' if that is meant"
                )));
            }
            // A table may be called like a topic with its catalog.
            let Some(source) = self.known(&name).filter(|known| known.options == table.options) else {
                return Err(Error::usage(format!(
                    "{name} is a topic of a catalog, whose columns are looked for each time, and a query that lasts needs a \
                     table that stays; CREATE TABLE without columns shows one over the same topic"
                )));
            };
            planned.definition.sources.insert(name.clone(), durable(source, &self.connectors)?);
            planned.definition.identities.insert(name, identity);
        }
        if planned.late.is_none() {
            // It decides nothing here, and a definition has all the tables that it names.
            planned.definition.settings.remove(settings::LATE_ROWS);
        }
        Ok(planned)
    }

    /// The table that late rows go to, if there is one and a row can be late: where no watermark completes anything, none
    /// is.
    async fn late_table(
        &self,
        outputs: &[Output],
        written: &[String],
        trials: &[Arc<dyn ExecutionPlan>],
    ) -> Result<Option<&TableDefinition>> {
        let can_be_late = trials.iter().flat_map(shapes).any(|shape| shape.rising.is_some());
        let Some(name) = self.setting(settings::LATE_ROWS).filter(|_| can_be_late) else { return Ok(None) };
        let late = self.writable(name).await.map_err(|e| e.context(settings::LATE_ROWS))?;
        let connector = self.connectors.of(late)?;
        connector.check(late, Role::Sink)?;
        let place = connector.place(late)?;
        let is_target = outputs.iter().any(|output| output.target.name == late.name);
        if is_target || written.iter().any(|written| is_shared(late, &place, written)) {
            return Err(Error::usage(format!(
                "{}: late rows cannot go where the query's other rows go, {place}",
                settings::LATE_ROWS
            )));
        }
        Ok(Some(late))
    }

    /// The tables that the sources' dead letters go to.
    async fn dead_letters(&self, planned: &Planned, written: &[String]) -> Result<Vec<DeadLetterTable>> {
        let mut sources: BTreeMap<String, Vec<Arc<TableDefinition>>> = BTreeMap::new();
        for source in planned.tables().into_values() {
            if let Some(name) = dead_letters::table_of(&source) {
                sources.entry(name.to_owned()).or_default().push(source);
            }
        }
        let (mut found, mut written) = (vec![], written.to_vec());
        for (name, sources) in sources {
            let table = self.writable(&name).await.map_err(|e| e.context(dead_letters::OPTION))?;
            let connector = self.connectors.of(table)?;
            connector.check(table, Role::Sink)?;
            // What it pinned under another guarantee is of no use to it.
            let delivery = connector.guarantee(table)?.delivery;
            let (identity, place) = (format!("{}, {delivery}", connector.identity(table)?), connector.place(table)?);
            let is_target = planned.targets().any(|target| target.name == name);
            if is_target || written.iter().any(|other| is_shared(table, &place, other)) {
                return Err(Error::usage(format!(
                    "{}: dead letters cannot go where the query's other rows go, {place}",
                    dead_letters::OPTION
                )));
            }
            let (mut letters, mut all) = (BTreeMap::new(), vec![]);
            for source in sources {
                let offered = self.connectors.of(&source)?.metadata();
                let of_source = DeadLetters::try_new(table, &source, &offered)?;
                letters.insert(source.name.clone(), Arc::new(of_source));
                all.extend(offered);
            }
            dead_letters::check_columns(table, &all)?;
            written.push(place);
            found.push(DeadLetterTable { table: Arc::new(table.clone()), identity, letters });
        }
        Ok(found)
    }

    /// The table of this name, which can be written.
    pub(super) async fn writable(&self, name: &str) -> Result<&TableDefinition> {
        match self.tables.get(name) {
            Some(table) => Ok(table),
            None if self.is_taken(name).await? => Err(Error::usage(format!(
                "{name} cannot be written: it is no table made by CREATE TABLE … WITH ('connector' = …)"
            ))),
            None => Err(self.no_table(name)),
        }
    }

    /// The physical plans of an epoch that reads nothing.
    pub(super) async fn trials(&self, outputs: &[Output], state: &SessionState) -> Result<Vec<Arc<dyn ExecutionPlan>>> {
        let opener = Arc::new(Opener::new(self.connectors.clone(), self.environment(), None));
        let cut = vec![vec![Span::new(Partition::new("partition", 0), 0, 0)]];
        let mut trials = vec![];
        for output in outputs {
            let cuts = output.plan.tables().keys().map(|name| (name.clone(), cut.clone())).collect();
            let binding = Binding { cuts, times: Times::default(), shards: 1, opener: Arc::clone(&opener) };
            trials.push(output.plan.epoch(state, &binding).await?);
        }
        Ok(trials)
    }

    /// Plans a stored definition anew, with the secrets and operational options of today.
    pub(super) async fn replanned(&self, stored: Definition) -> Result<Planned> {
        let session = self.as_defined(&stored).await?;
        let inserts = stored.inserts().map(|(query, columns, target)| {
            let (table, columns) = (target.name.clone(), columns.to_vec());
            Ok(Insert { table, columns, query: sql::parse_query(query)? })
        });
        let planned = session.planned(inserts.collect::<Result<_>>()?).await?;
        // What it was, so that a static table that changed is noticed.
        Ok(Planned { definition: stored, ..planned })
    }

    /// A session with what a stored definition names in its catalog.
    pub(super) async fn as_defined(&self, stored: &Definition) -> Result<Self> {
        let mut session = self.sibling()?;
        let revive = |table: &TableDefinition| revived(table, self.today(&table.name), &self.connectors);
        for (key, value) in &stored.settings {
            session.set(key, value)?;
        }
        let targets = stored.inserts().map(|(_, _, target)| target);
        for table in stored.sources.values().chain(targets).chain(&stored.late) {
            if !session.tables.contains_key(&table.name) {
                session.create_table(revive(table)?)?;
            }
        }
        // What to do with trouble is today's.
        let today: Vec<String> =
            session.tables.values().filter_map(dead_letters::table_of).map(str::to_owned).collect();
        for name in today {
            if let (Some(table), false) = (self.tables.get(&name), session.tables.contains_key(&name)) {
                session.create_table(table.clone())?;
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
        Ok(session)
    }

    /// `CREATE TABLE t (…) WITH (…) AS SELECT …`: the table, its columns from the SELECT if none are given, and the query.
    pub(super) async fn create_table_as(&mut self, mut table: TableDefinition, query: ast::Query) -> Result<Outcome> {
        if table.columns.is_empty() {
            table.columns = self.columns_of(&query).await?;
        }
        let name = table.name.clone();
        self.create_table(table)?;
        let insert = Insert { table: name.clone(), columns: vec![], query: Box::new(query) };
        match self.insert(insert).await {
            Ok(spec) => Ok(Outcome::Query(Box::new(spec))),
            Err(error) => {
                self.forget_table(&name)?;
                Err(error)
            }
        }
    }

    /// The columns of a query's rows.
    pub(super) async fn columns_of(&self, query: &ast::Query) -> Result<Vec<Column>> {
        let plan = self.plan_query(query.clone()).await?;
        let fields = plan.schema().fields().iter();
        Ok(fields.map(|field| Column::physical(field.name(), field.data_type().clone())).collect())
    }

    /// EXPLAIN of a continuous query.
    pub async fn explain(&self, spec: &QuerySpec) -> Result<String> {
        let trials = self.trials(&spec.planned.outputs, &spec.planned.state).await?;
        let guarantee = |table: &TableDefinition| self.connectors.of(table)?.guarantee(table);
        let outputs = spec.planned.outputs.iter().zip(&trials).map(|(Output { plan, target }, physical)| {
            Ok(Explained { plan, physical, target, guarantee: guarantee(target)? })
        });
        let late = spec.planned.late.iter().map(|late| ("late rows", late));
        let dead_letters = spec.planned.dead_letters.iter().map(|dead| ("dead letters", &dead.table));
        let others = late.chain(dead_letters).map(|(what, table)| Ok((what, table.as_ref(), guarantee(table)?)));
        let (outputs, others) = (outputs.collect::<Result<Vec<_>>>()?, others.collect::<Result<Vec<_>>>()?);
        explain::explain(&spec.name, &outputs, &others)
    }
}

/// A result that changes needs a table that takes changes.
fn check_result(target: &TableDefinition, connector: &dyn Connector, trial: &Arc<dyn ExecutionPlan>) -> Result<()> {
    if !is_updating(&trial.schema()) {
        return Ok(());
    }
    let is_changelog = shapes(trial).is_empty();
    if !connector.takes_updates(target) && is_changelog {
        return Err(Error::usage(format!(
            "a changelog is read, whose rows change, and {} only takes rows that stay: write to a topic with PRIMARY KEY (…) NOT \
             ENFORCED, to one whose format is debezium-json or canal-json, or to 'connector' = 'print'",
            target.name
        )));
    }
    let is_row = |shape: &Arc<Shape>| shape.emit == Emit::Change && matches!(shape.kept, Kept::Row(_));
    if !connector.takes_updates(target) && shapes(trial).iter().any(is_row) {
        return Err(Error::usage(format!(
            "the result changes as rows arrive (one that comes before what is kept may still come), and {} only takes rows \
             that stay: ORDER BY the column of a WATERMARK, ascending, keeps the first row by event time, and ORDER BY \
             PROCTIME() the first that arrives, which stay; or write to a table that takes changes: a topic with PRIMARY \
             KEY (…) NOT ENFORCED on the columns of PARTITION BY, or 'connector' = 'print'",
            target.name
        )));
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
    check_primary_key(target, changes::keys(trial), is_changelog)
}

/// Rows that are told apart by `keys` are to be told apart by the primary key.
fn check_primary_key(target: &TableDefinition, keys: Option<Vec<Vec<usize>>>, is_changelog: bool) -> Result<()> {
    if target.primary_key.is_empty() {
        return Ok(());
    }
    let declared = format!("PRIMARY KEY ({}) of {}", target.primary_key.join(", "), target.name);
    let Some(keys) = keys else {
        if is_changelog {
            return Err(Error::usage(format!(
                "{declared}: it is not known which rows of the changelog are one row's; declare PRIMARY KEY (…) NOT ENFORCED on the \
                 table that is read, and SELECT its columns as they are"
            )));
        }
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

/// Whether a table's rows would go where others go already. All that is printed, or thrown away, has one place, the name of
/// the connector.
fn is_shared(table: &TableDefinition, place: &str, written: &str) -> bool {
    table.connector().is_ok_and(|connector| connector != place) && overlap(place, written)
}

/// Gives the rows of a SELECT the target's schema: by position, or by the columns named; a column that is left out is
/// NULL.
pub(super) fn fit(plan: LogicalPlan, target: &TableDefinition, columns: &[String]) -> Result<LogicalPlan> {
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

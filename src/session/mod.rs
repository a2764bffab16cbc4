//! A session: executes one statement after the other against one catalog.
//!
//! DDL changes the catalog; a SELECT becomes a stream of rows, or of changes; an `INSERT INTO … SELECT` over a stream
//! becomes a [`QuerySpec`], which whoever asked runs as a [`Query`](crate::query::Query); one that ends by itself is
//! written at once.
//!
//! ```
//! use millstream::session::{Outcome, Session};
//! use millstream::query::{Query, Step, progress::Reporter};
//!
//! # #[tokio::main]
//! # async fn main() -> millstream::error::Result<()> {
//! # let dir = tempfile::tempdir()?;
//! # let dir = dir.path().display();
//! let mut session = Session::new("example")?;
//! let script = format!(
//!     "SET 'checkpoint.location' = '{dir}/checkpoints';
//!      CREATE TABLE numbers (n BIGINT) WITH ('connector' = 'datagen', 'number-of-rows' = '100',
//!        'rows-per-second' = '1000000', 'fields.n.kind' = 'sequence', 'fields.n.start' = '1', 'fields.n.end' = '100');
//!      CREATE TABLE big (n BIGINT) WITH ('connector' = 'filesystem', 'path' = '{dir}/big', 'format' = 'parquet');
//!      INSERT INTO big SELECT n FROM numbers WHERE n > 10;"
//! );
//! for outcome in session.execute_script(&script).await? {
//!     if let Outcome::Query(spec) = outcome {
//!         let mut query = Query::open(*spec, Reporter::silent()).await?;
//!         while query.step().await? != Step::Finished {}
//!         query.close().await;
//!     }
//! }
//! # Ok(())
//! # }
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::common::TableReference;
use datafusion::datasource::ViewTable;
use datafusion::error::DataFusionError;
use datafusion::execution::cache::cache_manager::CacheManagerConfig;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::{SendableRecordBatchStream, SessionState, SessionStateBuilder, TaskContext};
use datafusion::logical_expr::{DdlStatement, LogicalPlan};
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties, execute_stream};
use datafusion::prelude::{DataFrame, SessionConfig, SessionContext};
use datafusion::sql::parser::Statement as DfStatement;
use datafusion::sql::sqlparser::ast;

use crate::catalog::{TableDefinition, ViewDefinition};
use crate::clock::Clock;
use crate::connector::cluster::Cluster;
use crate::connector::{Connector, Connectors, Environment};
use crate::error::{Error, Kind, Location, Result};
use crate::plan::ask::{ExecutionMode, refuse_changes};
use crate::plan::concat::InOrder;
use crate::query::QuerySpec;
use crate::sql::{self, Parsed, Statement};
use crate::storage::Stores;

pub mod reference;

mod clusters;
mod continuous;
mod hints;
mod infer;
mod listing;
mod names;
mod once;
mod relations;
mod replay;
mod result;
mod settings;
mod show;
mod state;
mod store;
mod tables;
mod topics;

pub(crate) use listing::listing;
pub use result::Changes;
pub(crate) use settings::{OUTPUTS, RESULT_MODE};

/// What a statement came to.
pub enum Outcome {
    /// It was done; the text says what.
    Done(String),
    /// Rows, bounded or as they arrive.
    Rows(Rows),
    /// Changes of a result, as they happen.
    Changes(Changes),
    /// A continuous query, to be opened and run.
    Query(Box<QuerySpec>),
    /// A text, several lines long.
    Text(String),
}

/// Rows of a SELECT.
pub struct Rows {
    /// Their schema.
    pub schema: SchemaRef,
    /// The rows.
    pub stream: SendableRecordBatchStream,
    /// Whether they go on until somebody stops them.
    pub is_unbounded: bool,
}

/// One catalog and its settings: see the module's text.
#[derive(Clone)]
pub struct Session {
    context: SessionContext,
    connectors: Connectors,
    clock: Clock,
    stores: Stores,
    /// The middle part of a query's name: a file's stem, or `shell`.
    name: String,
    settings: BTreeMap<String, String>,
    tables: BTreeMap<String, TableDefinition>,
    views: Vec<ViewDefinition>,
    statics: Vec<String>,
    /// Catalogs of topics, by name.
    clusters: BTreeMap<String, Arc<dyn Cluster>>,
    /// By name of an external table: which of these it was made by.
    externals: BTreeMap<String, String>,
    /// The catalog that outlives the session, where one is set.
    kept: Option<store::Kept>,
    /// Tables with hints that continuous queries and views read, under names of their own.
    hinted: BTreeMap<String, TableDefinition>,
    /// Queries by name, so that a second of the same name is refused.
    names: BTreeSet<String>,
    /// Settings that later statements do not change.
    pinned: BTreeSet<String>,
    /// Whether nothing is written.
    is_dry: bool,
}

impl Session {
    /// A session with all connectors; `name` is the middle part of its queries' names.
    pub fn new(name: &str) -> Result<Self> {
        let clock = Clock::system();
        let stores = Stores::new(clock.clone());
        Self::with(name, Connectors::standard(), stores, clock)
    }

    /// A session with these connectors, stores and clock.
    pub fn with(name: &str, connectors: Connectors, stores: Stores, clock: Clock) -> Result<Self> {
        let runtime = RuntimeEnvBuilder::new()
            // The cache of listed files never expires, and what a static table's files are may change while we run.
            .with_cache_manager(CacheManagerConfig::default().with_list_files_cache_limit(0))
            .build_arc()?;
        // Dealing batches out to all cores would show the rows of a stream out of order.
        let config = SessionConfig::new().with_target_partitions(cores()).with_round_robin_repartition(false);
        let config = sql::planning::configure(config);
        let state = SessionStateBuilder::new().with_config(config).with_runtime_env(runtime).with_default_features();
        let context = SessionContext::new_with_state(sql::planning::register(state).build());
        sql::functions::register(&mut *context.state_ref().write())?;
        let (settings, tables, views, statics, hinted) = Default::default();
        Ok(Self {
            context,
            connectors,
            clock,
            stores,
            name: name.into(),
            settings,
            tables,
            views,
            statics,
            clusters: BTreeMap::new(),
            externals: BTreeMap::new(),
            kept: None,
            hinted,
            names: BTreeSet::new(),
            pinned: BTreeSet::new(),
            is_dry: false,
        })
    }

    /// A session like this one, with the settings that belong to no definition, and nothing in its catalog.
    fn sibling(&self) -> Result<Self> {
        let mut sibling = Self::with(&self.name, self.connectors.clone(), self.stores.clone(), self.clock.clone())?;
        for (key, value) in self.settings.iter().filter(|(key, _)| !settings::decides_answers(key)) {
            sibling.set(key, value)?;
        }
        Ok(sibling)
    }

    /// DataFusion's context: for functions and tables of one's own.
    pub fn context(&self) -> &SessionContext {
        &self.context
    }

    /// Puts a connector beside those there are, or in the place of the one of its name.
    pub fn put_connector(&mut self, connector: Arc<dyn Connector>) {
        self.connectors = self.connectors.clone().with(connector);
    }

    /// The tables made by `CREATE TABLE`, by name.
    pub fn tables(&self) -> &BTreeMap<String, TableDefinition> {
        &self.tables
    }

    /// What connectors get from this session as it is set now.
    pub fn environment(&self) -> Environment {
        let parallelism = self.settings.get("parallelism").and_then(|n| n.parse().ok()).unwrap_or_else(cores);
        Environment {
            stores: self.stores.clone(),
            clock: self.clock.clone(),
            settings: Arc::new(self.settings.clone()),
            parallelism,
        }
    }

    /// Executes all statements of a script, in order, and collects what they came to.
    pub async fn execute_script(&mut self, text: &str) -> Result<Vec<Outcome>> {
        let mut outcomes = vec![];
        for parsed in sql::parse(text)? {
            outcomes.push(self.execute(parsed).await?);
        }
        Ok(outcomes)
    }

    /// Executes one statement. Errors carry its place.
    pub async fn execute(&mut self, parsed: Parsed) -> Result<Outcome> {
        let line = Location { line: parsed.location.line, column: 0 };
        let (statement, text) = (parsed.statement, parsed.text);
        let outcome = match Box::pin(self.refresh(&statement, &text)).await {
            Ok(()) => Box::pin(self.execute_statement(statement, &text)).await,
            Err(error) => Err(error),
        };
        let outcome = outcome.map_err(|error| self.blame_catalog(self.missing(error), &text));
        outcome.map_err(|error| if error.kind() == Kind::Usage { error.at(line) } else { error })
    }

    async fn execute_statement(&mut self, statement: Statement, text: &str) -> Result<Outcome> {
        let done = |text: String| Ok(Outcome::Done(text));
        match statement {
            Statement::CreateTable(create) => self.create(create).await,
            Statement::DropTable { name, if_exists } => self.drop_table(&name, if_exists).await,
            Statement::AlterTable { name, changes } => self.alter_table(&name, changes).await,
            Statement::CreateView { view, or_replace, if_not_exists, temporary } => {
                self.add_view(view, or_replace, if_not_exists, temporary).await
            }
            Statement::DropView { name, if_exists } => self.drop_view(&name, if_exists).await,
            Statement::Set { key, value } => {
                self.set(&key, &value)?;
                done(format!("{key} set"))
            }
            Statement::Reset { key } => done(self.reset(key.as_deref())?),
            Statement::ShowSettings => Ok(self.show_settings()),
            Statement::ShowTables { like } => self.show_tables(like.as_deref()),
            Statement::ShowViews { like } => self.show_views(like.as_deref()),
            Statement::ShowFunctions { like } => self.show_functions(like.as_deref()),
            Statement::ShowCreateTable { name } => self.show_create_table(&name),
            Statement::ShowCreateView { name } => self.show_create_view(&name),
            Statement::Describe { name } => self.describe(&name).await,
            Statement::DescribeIn { catalog, name } => self.describe_in(&catalog, &name).await,
            Statement::Insert(insert) => match self.insert_once(&insert).await? {
                Some(written) => done(written),
                None => Ok(Outcome::Query(Box::new(self.insert(insert).await?))),
            },
            Statement::StatementSet(inserts) => Ok(Outcome::Query(Box::new(self.statement_set(inserts).await?))),
            Statement::Query(query) => self.select(*query).await,
            Statement::Explain { analyze, verbose, statement } => self.explain_any(*statement, analyze, verbose).await,
            Statement::CreateCatalog { name, options, if_not_exists } => {
                self.create_catalog(name, options, if_not_exists).await
            }
            Statement::DropCatalog { name, if_exists } => self.drop_catalog(&name, if_exists).await,
            Statement::ShowCatalogs => self.show_catalogs(),
            Statement::ShowTopics { catalog, like } => self.show_topics(&catalog, like.as_deref()).await,
            Statement::DescribeTopic { catalog, topic } => self.describe_topic(&catalog, &topic).await,
            Statement::CreateTopic { catalog, topic, options, if_not_exists } => {
                self.create_topic(&catalog, &topic, &options, if_not_exists).await
            }
            Statement::DropTopic { catalog, topic, if_exists } => self.drop_topic(&catalog, &topic, if_exists).await,
            Statement::ShowGroups { catalog, like } => self.show_groups(&catalog, like.as_deref()).await,
            Statement::DescribeGroup { catalog, group } => self.describe_group(&catalog, &group).await,
            Statement::ResetGroup(reset) => self.reset_group(&reset).await,
            Statement::DataFusion(statement) => match *statement {
                DfStatement::CreateExternalTable(create) => self.create_external(create, text).await,
                statement => self.datafusion(statement, text).await,
            },
            Statement::ShowQueries
            | Statement::DescribeQuery { .. }
            | Statement::StopQuery { .. }
            | Statement::RestartQuery { .. } => Err(Error::usage(format!(
                "{text}: queries run in the background only at the prompt of the shell, so ask there"
            ))),
        }
    }

    /// `EXPLAIN`.
    async fn explain_any(&mut self, statement: Statement, analyze: bool, verbose: bool) -> Result<Outcome> {
        let spec = match statement {
            Statement::Query(query) => {
                let frame = self.question(self.plan_select(*query).await?);
                return self.rows(frame.explain(verbose, analyze)?).await;
            }
            Statement::Insert(insert) if !analyze => self.insert(insert).await?,
            Statement::StatementSet(inserts) if !analyze => self.statement_set(inserts).await?,
            _ => {
                return Err(Error::usage("EXPLAIN takes a SELECT, an INSERT INTO … SELECT or a STATEMENT SET"));
            }
        };
        // It was planned for this alone.
        self.names.remove(&spec.name);
        Ok(Outcome::Text(self.explain(&spec).await?))
    }

    /// `SET 'key' = 'value'`.
    pub fn set(&mut self, key: &str, value: &str) -> Result<()> {
        settings::check(key, value)?;
        if self.pinned.contains(key) {
            return Ok(());
        }
        if settings::is_datafusions(key) {
            let state = self.context.state_ref();
            state.write().config_mut().options_mut().set(key, value)?;
        }
        self.settings.insert(key.into(), value.into());
        Ok(())
    }

    /// `RESET 'key'`, or all of them: what to say.
    fn reset(&mut self, key: Option<&str>) -> Result<String> {
        key.map_or(Ok(()), settings::check_key)?;
        let is_meant = |name: &String| key.is_none_or(|key| key == name) && !self.pinned.contains(name);
        if let Some(kept) = self.settings.keys().find(|name| is_meant(name) && settings::is_datafusions(name)) {
            return Err(Error::usage(format!("{kept} cannot be reset; SET it to what it was")));
        }
        let meant: Vec<String> = self.settings.keys().filter(|name| is_meant(name)).cloned().collect();
        meant.iter().for_each(|name| drop(self.settings.remove(name)));
        Ok(key.map_or("all settings reset".into(), |key| format!("{key} reset")))
    }

    /// `SET`, but later statements do not change it: what was given on the command line.
    pub fn pin(&mut self, key: &str, value: &str) -> Result<()> {
        self.set(key, value)?;
        self.pinned.insert(key.into());
        Ok(())
    }

    /// From now on rows that would be [written once](crate::query::once) are not; for EXPLAIN of a whole file.
    pub fn write_nothing(&mut self) {
        self.is_dry = true;
    }

    /// Lets a query of this name be made again.
    pub fn forget_query(&mut self, name: &str) {
        self.names.remove(name);
    }

    /// A setting's value.
    pub fn setting(&self, key: &str) -> Option<&str> {
        self.settings.get(key).map(String::as_str)
    }

    async fn is_taken(&self, name: &str) -> Result<bool> {
        Ok(self.context.table_exist(TableReference::bare(name))? || self.kept_statement(name).is_some())
    }

    fn no_table(&self, name: &str) -> Error {
        let hint = sql::options::did_you_mean(name, self.table_names().iter().map(String::as_str));
        Error::usage(format!("there is no table {name}{hint}"))
    }

    /// An error of a statement; of a table that a plan lacks, in our words.
    fn missing(&self, error: Error) -> Error {
        let name = error.message().strip_prefix("table 'datafusion.").and_then(|rest| rest.strip_suffix("' not found"));
        let ours = match name.and_then(|name| name.split_once('.')) {
            Some(("public", table)) if self.kept_statement(table).is_none() => self.no_table(table),
            Some((catalog, _)) if !self.has_catalog(catalog) && !clusters::RESERVED.contains(&catalog) => {
                self.no_catalog(catalog)
            }
            _ => return error,
        };
        match error.location() {
            Some(place) => ours.at(place),
            None => ours,
        }
    }

    fn static_names(&self) -> Vec<String> {
        let schema = self.context.catalog("datafusion").and_then(|catalog| catalog.schema("public"));
        let names = schema.map(|schema| schema.table_names()).unwrap_or_default();
        let is_ours = |name: &String| self.tables.contains_key(name) || self.views.iter().any(|v| &v.name == name);
        names.into_iter().filter(|name| !is_ours(name)).collect()
    }

    async fn create_view(&mut self, view: ViewDefinition) -> Result<()> {
        let query = *sql::parse_query(&view.query)?;
        self.keep_hinted(&query)?;
        let plan = self.plan_query(query).await?;
        let provider = Arc::new(ViewTable::new(plan, Some(view.query.clone())));
        let name = TableReference::bare(view.name.as_str());
        self.context.deregister_table(name.clone())?;
        self.context.register_table(name, provider)?;
        self.views.retain(|known| known.name != view.name);
        self.views.push(view);
        Ok(())
    }

    /// Plans a query that is to last, without optimising it.
    async fn plan_query(&self, query: ast::Query) -> Result<LogicalPlan> {
        state::refuse(&query)?;
        plan_with(&self.planning(&query)?, query).await
    }

    async fn select(&self, query: ast::Query) -> Result<Outcome> {
        let plan = self.plan_select(query.clone()).await?;
        refuse_changes(&plan)?;
        let frame = self.question(plan);
        let task = Arc::new(frame.task_ctx());
        match frame.create_physical_plan().await {
            Err(error) if needs_end(&error) => {
                let outcome = self.continuous_select(query).await;
                outcome.map_err(|error| {
                    error.context("a stream has no end (SET 'execution.mode' = 'batch' asks of what is there now)")
                })
            }
            plan => rows(plan?, task),
        }
    }

    /// A SELECT that is asked now, in the mode that is set.
    fn question(&self, plan: LogicalPlan) -> DataFrame {
        let mut state = self.context.state();
        if self.setting(settings::EXECUTION_MODE) == Some(settings::BATCH) {
            state.config_mut().set_extension(Arc::new(ExecutionMode::Batch));
        }
        DataFrame::new(state, plan)
    }

    async fn rows(&self, frame: DataFrame) -> Result<Outcome> {
        let task = Arc::new(frame.task_ctx());
        rows(frame.create_physical_plan().await.map_err(without_end)?, task)
    }

    /// A statement of DataFusion's own; one that makes something is remembered by its text.
    async fn datafusion(&mut self, statement: DfStatement, text: &str) -> Result<Outcome> {
        let plan = self.context.state().statement_to_plan(statement).await?;
        match &plan {
            LogicalPlan::Ddl(DdlStatement::CreateExternalTable(table)) => {
                if let Some(key) = table.options.keys().find(|key| sql::options::is_secret(key)) {
                    // The statement is kept in checkpoints, as it was written.
                    return Err(Error::usage(format!(
                        "option '{key}' looks like a secret, which an external table cannot keep; for S3 say \
                         SET 's3.access-key' = '${{env:NAME}}', SET 's3.secret-key' = '${{env:NAME}}'"
                    )));
                }
                for location in &table.locations {
                    self.register_store(location)?;
                }
            }
            LogicalPlan::Ddl(_) | LogicalPlan::Statement(_) => {}
            LogicalPlan::Dml(_) | LogicalPlan::Copy(_) => {
                return Err(Error::usage("only INSERT INTO … SELECT over a stream writes here"));
            }
            _ => return self.rows(self.context.execute_logical_plan(plan).await?).await,
        }
        let external = match &plan {
            LogicalPlan::Ddl(DdlStatement::CreateExternalTable(table)) => Some(table.name.table().to_owned()),
            _ => None,
        };
        self.context.execute_logical_plan(plan).await?;
        if let Some(replaced) = external.and_then(|name| self.externals.insert(name, text.to_owned())) {
            self.statics.retain(|known| *known != replaced);
        }
        self.statics.push(text.to_owned());
        Ok(Outcome::Done("done".into()))
    }

    /// Makes the store of an `s3://` location known to DataFusion.
    fn register_store(&self, location: &str) -> Result<()> {
        if let Ok(url) = url::Url::parse(location)
            && url.scheme() == "s3"
        {
            let store = self.stores.open(location, &self.settings)?.store;
            self.context.register_object_store(&url, store);
        }
        Ok(())
    }
}

/// Plans a query with what this state knows, without optimising it.
async fn plan_with(state: &SessionState, mut query: ast::Query) -> Result<LogicalPlan> {
    sql::functions::rewrite(&mut query);
    let statement = DfStatement::Statement(Box::new(ast::Statement::Query(Box::new(query))));
    Ok(state.statement_to_plan(statement).await?)
}

/// The state that plans epochs: one partition for everything but streams, so that no exchange mixes their rows.
fn epoch_state(state: SessionState) -> SessionState {
    // Otherwise the builder would put an empty catalog in the place of the one that both share.
    let config = state.config().clone().with_create_default_catalog_and_schema(false);
    let mut config = config.with_target_partitions(1).with_round_robin_repartition(false);
    // Whether partial aggregation is skipped would depend on how rows arrive, and with it how floating-point sums round.
    config.options_mut().execution.skip_partial_aggregation_probe_ratio_threshold = 2.0;
    SessionStateBuilder::new_from_existing(state)
        .with_config(config)
        .with_physical_optimizer_rule(Arc::new(InOrder))
        .build()
}

/// The rows of a plan, which begins to run when they are read.
fn rows(plan: Arc<dyn ExecutionPlan>, task: Arc<TaskContext>) -> Result<Outcome> {
    let (schema, is_unbounded) = (plan.schema(), plan.boundedness().is_unbounded());
    Ok(Outcome::Rows(Rows { schema, stream: execute_stream(plan, task)?, is_unbounded }))
}

/// Whether DataFusion has refused a plan that must have seen all rows of a stream before it can answer.
fn needs_end(error: &DataFusionError) -> bool {
    error.to_string().contains("pipeline breaking")
}

/// What DataFusion says of such a plan is a page of it.
fn without_end(error: DataFusionError) -> Error {
    if needs_end(&error) {
        return Error::usage(
            "this SELECT must have seen all rows before it can answer, and a stream has no end; SET 'execution.mode' = \
             'batch' asks of what is there now; asked alone it runs as a continuous query, which EXPLAIN INSERT INTO t \
             SELECT … explains",
        );
    }
    error.into()
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

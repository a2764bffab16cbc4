//! `state('query', 'operator' [, epoch])` in FROM: what a query remembers after one of its epochs, as a table.
//!
//! The idea: state is rows by key already, and a commit names the files that hold them. So before a SELECT is planned, the
//! calls in it are read, and each is planned as a table in memory. Nothing is registered: the plan alone holds the rows.
//!
//! Guaranteed: the rows are those of one commit, of each key the newest one, without those that are gone. Calls in one
//! statement that ask for the same epoch of a query, or for its newest, see the same commit, whatever their operators.
//! A query that runs is not disturbed. What outlives the moment, a continuous query or a view, is refused.
//!
//! Not promised: bounded memory, as all rows of an operator are read; any order of them.

use std::collections::{BTreeMap, btree_map::Entry};
use std::ops::ControlFlow;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{FieldRef, Fields, Schema, SchemaRef};
use bytes::Bytes;
use datafusion::catalog::default_table_source::provider_as_source;
use datafusion::common::{Result as DfResult, TableReference};
use datafusion::datasource::MemTable;
use datafusion::logical_expr::planner::{PlannedRelation, RelationPlanner, RelationPlannerContext, RelationPlanning};
use datafusion::logical_expr::{LogicalPlan, LogicalPlanBuilder};
use datafusion::sql::sqlparser::ast::{
    Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, Ident, Query, TableFactor, Value, Visit, Visitor,
};
use futures::stream::{self, StreamExt, TryStreamExt};

use super::{Session, plan_with};
use crate::checkpoint::{Commit, Generation, StateStore, inspect};
use crate::error::{Error, Location, Result};
use crate::sql::options::{did_you_mean, resolve_environment};
use crate::state::keys::KeyCodec;
use crate::state::newest::{Horizon, newest};
use crate::state::{StateCommit, StateFile, files};
use crate::storage;

/// The function's name.
const NAME: &str = "state";
/// How many files are read side by side.
const READING: usize = 4;
/// How many of the newest commits are looked through for a file that says what the columns are: so many are always kept.
const NEWEST: usize = 100;

impl Session {
    /// Plans a SELECT that is asked once, without optimising it: what `state(…)` in it stands for is read now.
    pub(super) async fn plan_select(&self, query: Query) -> Result<LogicalPlan> {
        let mut state = self.planning(&query)?;
        let calls = calls(&query)?;
        if !calls.is_empty() {
            state.register_relation_planner(Arc::new(self.read_states(calls).await?))?;
        }
        plan_with(&state, query).await
    }

    /// Reads what the calls stand for.
    async fn read_states(&self, calls: Vec<(Call, Location)>) -> Result<Tables> {
        let location = self.setting("checkpoint.location").ok_or_else(|| {
            Error::usage(
                "state() reads a checkpoint: SET 'checkpoint.location' = 's3://bucket/prefix' (or a path) to that of the \
                 query",
            )
        })?;
        let location = resolve_environment("checkpoint.location", location)?;
        let checkpoint = self.stores.open(&location, &self.settings)?;
        let (mut commits, mut tables) = (Commits::new(), Tables(vec![]));
        for (call, place) in calls {
            if tables.0.iter().all(|(known, _)| *known != call) {
                let table = read(&checkpoint, &call, &mut commits).await.map_err(|error| error.at(place))?;
                tables.0.push((call, Arc::new(table)));
            }
        }
        Ok(tables)
    }
}

/// Refuses a call in a query that outlives the moment.
pub(super) fn refuse(query: &Query) -> Result<()> {
    match calls(query)?.first() {
        Some((_, place)) => Err(Error::usage(
            "state() is of one epoch; it cannot be part of a continuous query or of a view: ask it in a SELECT of its own",
        )
        .at(*place)),
        None => Ok(()),
    }
}

/// A call: whose state, and after which epoch; none is the newest.
#[derive(Debug, PartialEq, Eq)]
struct Call {
    query: String,
    operator: String,
    epoch: Option<u64>,
}

impl Call {
    /// A call in FROM, with or without `TABLE(…)` around it, and its place; none if it is another table.
    fn of(factor: &TableFactor) -> Result<Option<(Self, Location)>> {
        let (name, arguments) = match factor {
            TableFactor::Table { name, args: Some(list), .. } => (name, &list.args),
            TableFactor::TableFunction {
                expr: Expr::Function(Function { name, args: FunctionArguments::List(list), .. }),
                ..
            } => (name, &list.args),
            _ => return Ok(None),
        };
        let [name] = name.0.as_slice() else { return Ok(None) };
        let is_ours = |name: &&Ident| name.quote_style.is_none() && name.value.eq_ignore_ascii_case(NAME);
        let Some(name) = name.as_ident().filter(is_ours) else { return Ok(None) };
        let place = Location { line: name.span.start.line, column: name.span.start.column };
        let usage = || Error::usage("state() takes literals; say state('query', 'operator' [, epoch])").at(place);
        let literals: Option<Vec<&Value>> = arguments.iter().map(literal).collect();
        let (query, operator, epoch) = match literals.as_deref() {
            Some([Value::SingleQuotedString(query), Value::SingleQuotedString(operator)]) => (query, operator, None),
            Some([Value::SingleQuotedString(query), Value::SingleQuotedString(operator), Value::Number(epoch, _)]) => {
                (query, operator, Some(epoch.parse::<u64>().map_err(|_| usage())?))
            }
            _ => return Err(usage()),
        };
        Ok(Some((Self { query: query.clone(), operator: operator.clone(), epoch }, place)))
    }
}

fn literal(argument: &FunctionArg) -> Option<&Value> {
    match argument {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Value(literal))) => Some(&literal.value),
        _ => None,
    }
}

/// The calls in a query.
fn calls(query: &Query) -> Result<Vec<(Call, Location)>> {
    struct Calls(Vec<(Call, Location)>);

    impl Visitor for Calls {
        type Break = Error;

        fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<Error> {
            match Call::of(factor) {
                Ok(call) => {
                    self.0.extend(call);
                    ControlFlow::Continue(())
                }
                Err(error) => ControlFlow::Break(error),
            }
        }
    }

    let mut found = Calls(vec![]);
    match query.visit(&mut found) {
        ControlFlow::Break(error) => Err(error),
        ControlFlow::Continue(()) => Ok(found.0),
    }
}

/// Plans the calls of a statement as what was read for them.
#[derive(Debug)]
struct Tables(Vec<(Call, Arc<MemTable>)>);

impl RelationPlanner for Tables {
    fn plan_relation(
        &self,
        relation: TableFactor,
        _context: &mut dyn RelationPlannerContext,
    ) -> DfResult<RelationPlanning> {
        let call = Call::of(&relation)?;
        let read = call.and_then(|(call, _)| self.0.iter().find(|(known, _)| *known == call));
        let Some((call, table)) = read else { return Ok(RelationPlanning::Original(Box::new(relation))) };
        let alias = match relation {
            TableFactor::Table { alias, .. } | TableFactor::TableFunction { alias, .. } => alias,
            _ => None,
        };
        let source = provider_as_source(Arc::<MemTable>::clone(table));
        let plan = LogicalPlanBuilder::scan(TableReference::bare(call.operator.as_str()), source, None)?.build()?;
        Ok(RelationPlanning::Planned(Box::new(PlannedRelation::new(plan, alias))))
    }
}

/// Commits that were read, by query and the epoch that was asked for.
type Commits = BTreeMap<(String, Option<u64>), Commit>;

/// What a call stands for.
async fn read(checkpoint: &storage::Location, call: &Call, commits: &mut Commits) -> Result<MemTable> {
    let Call { query, operator, epoch } = call;
    let commit = match commits.entry((query.clone(), *epoch)) {
        Entry::Occupied(known) => known.into_mut(),
        Entry::Vacant(new) => new.insert(Generation::newest(checkpoint, query).await?.kept(*epoch).await?),
    };
    let Some(state) = commit.state.get(operator) else {
        let hint = did_you_mean(operator, commit.state.keys().map(String::as_str));
        return Err(Error::usage(format!("{query} has no state of {operator} after epoch {}{hint}", commit.epoch)));
    };
    let mut named = state.files.clone();
    if named.is_empty() {
        // Nothing is remembered, so no file says what the columns are; one that another commit names does.
        for epoch in inspect::epochs(checkpoint, query).await?.into_iter().rev().take(NEWEST) {
            // It may be pruned meanwhile.
            let Ok(other) = inspect::commit(checkpoint, query, epoch).await else { continue };
            if let Some(file) = other.state.get(operator).and_then(|state| state.files.last()) {
                named.push(file.clone());
                break;
            }
        }
    }
    let read = newest_first(inspect::state(checkpoint, query, operator).await?, named).await?;
    let said = read.iter().map(|(name, body)| files::columns(name, body)).collect::<Result<Vec<_>>>()?;
    let Some(columns) = said.first().map(|(schema, _)| unique(schema)) else {
        return Err(Error::usage(format!(
            "{operator} of {query} remembers nothing, and no file says what its columns are; ask again when it does"
        )));
    };
    if state.files.is_empty() {
        return Ok(MemTable::try_new(columns, vec![vec![]])?);
    }
    let Some((schema, keys)) = said.into_iter().find_map(|(schema, keys)| Some((schema, keys?))) else {
        return Err(Error::refused(format!(
            "the state of {operator} of {query} was written by an older binary, which did not note what the keys are; ask \
             again once an epoch of this one has changed it"
        )));
    };
    let (codec, horizon) = (KeyCodec::try_new(&schema.fields()[..keys], None)?, horizon(state, &schema, keys));
    let shown = Arc::clone(&columns);
    let newest = tokio::task::spawn_blocking(move || {
        newest(read, schema, Arc::new(codec), horizon)
            .map(|rows| Ok(RecordBatch::try_new(Arc::clone(&shown), rows?.columns().to_vec())?))
            .collect::<Result<Vec<_>>>()
    });
    let rows = newest.await.map_err(|e| Error::internal("reading state ended by itself").caused_by(e))??;
    Ok(MemTable::try_new(columns, vec![rows])?)
}

/// The files of an operator's state with their names, the newest first.
async fn newest_first(store: StateStore, files: Vec<StateFile>) -> Result<Vec<(String, Bytes)>> {
    let read = files.into_iter().rev().map(|file| {
        let store = store.clone();
        async move {
            let body = store.get(&file).await?;
            Ok::<_, Error>((file.name, body))
        }
    });
    stream::iter(read).buffered(READING).try_collect().await
}

/// Columns as they are stored; of several with one name the later ones are told apart by their place.
fn unique(stored: &Schema) -> SchemaRef {
    let fields = stored.fields();
    let named = |(index, field): (usize, &FieldRef)| match fields[..index].iter().any(|f| f.name() == field.name()) {
        true => Arc::new(field.as_ref().clone().with_name(format!("{} {}", field.name(), index + 1))),
        false => Arc::clone(field),
    };
    Arc::new(Schema::new(fields.iter().enumerate().map(named).collect::<Fields>()))
}

/// From when on rows of these columns, of which the first are the key, are there after a commit.
fn horizon(state: &StateCommit, schema: &Schema, keys: usize) -> Option<Horizon> {
    let name = state.aged_by.as_ref()?;
    // The last of that name: a key may be called like a column of ours.
    let column = schema.fields().iter().rposition(|field| field.name() == name)?;
    Some(Horizon { column, closed: state.closed?, is_inclusive: column < keys })
}

//! A past epoch, run again for a look: the rows that it gave, or the answer to another question over what it read.
//!
//! The idea: an epoch's result is a function of its intent. So the intent is bound once more, with the state that the
//! commit before it names, and the rows go to whoever asks instead of a sink.
//!
//! Guarantee: the same input, clock and watermarks, and so the same rows, as long as the sources still have them; of a
//! query that was changed since, by the definition of then. Nothing of the query is touched: no run is registered, no sink
//! opened, no record, note or file of state written, no broker told an offset.
//!
//! Not promised: late rows and dead letters, which went to tables of their own, and are left out; anything where messages,
//! or the state of then, are not kept any more: that is an error.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, FieldRef, Int8Type, Schema};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::execution::{SendableRecordBatchStream, SessionState};
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::StreamExt;
use futures::future::try_join_all;

use super::Planned;
use super::definition::{self, Definition};
use crate::checkpoint::{Commit, Generation, Intent, QueryRecord};
use crate::connector::{Connectors, Environment, Owner};
use crate::error::{Error, Result};
use crate::plan::aggregate::Times;
use crate::plan::changes::{ROW_KIND, RowKind, is_updating};
use crate::plan::concat::concat;
use crate::plan::opener::Opener;
use crate::plan::{Binding, bind, stream_of, volatile};
use crate::state::operator::{MAX_FILES, Operator};

/// An epoch to be looked at.
#[derive(Debug)]
pub struct Replay {
    generation: Generation,
    record: QueryRecord,
    intent: Intent,
    definition: Definition,
    /// The commit before it, if that is kept.
    before: Option<Commit>,
}

/// Rows of an epoch, to be taken.
pub struct Replayed {
    /// By target, its rows, task by task; of a question its answer, without a name.
    pub rows: Vec<(String, SendableRecordBatchStream)>,
    opener: Arc<Opener>,
}

impl Replayed {
    /// Gives back connections and threads.
    pub async fn close(&self) {
        self.opener.close().await;
    }
}

impl Replay {
    /// An epoch that is intended, whether it is committed or not.
    ///
    /// Errors: its intent is not kept.
    pub async fn of(generation: Generation, epoch: u64) -> Result<Self> {
        let Some(intent) = generation.intent(epoch).await? else {
            // It says which are kept; of epoch 0, which a rewind makes, there is a commit alone.
            generation.kept(Some(epoch)).await?;
            return Err(Error::usage(format!(
                "epoch {epoch} of {} is where a rewind begins, and has read nothing",
                generation.query()
            )));
        };
        let record = generation.record().await?.ok_or_else(|| {
            Error::refused(format!("{} has an intent and no query.json; restore it from a copy", generation.query()))
        })?;
        let definition = generation.definition(epoch).await?.definition;
        let before = match epoch - 1 {
            0 if record.rewound.is_none() => Some(Commit::default()),
            before => generation.commits(&[before]).await?.pop(),
        };
        Ok(Self { generation, record, intent, definition, before })
    }

    /// What the query was then.
    pub fn definition(&self) -> &Definition {
        &self.definition
    }

    /// The rows that the epoch gave, by the definition of then, as it was planned again.
    ///
    /// Errors: of kind `Refused`, what it remembered before, or files of a static table, are not there any more.
    pub async fn rows(
        &self,
        planned: &Planned,
        connectors: &Connectors,
        environment: &Environment,
    ) -> Result<Replayed> {
        let opener = planned.opener(connectors, environment, self.owner());
        if !planned.shapes.is_empty() {
            self.restore(planned, &opener).await?;
        }
        let plans = planned.epoch(&self.binding(&opener)).await?;
        if definition::static_files(&plans) != self.definition.static_files {
            return Err(Error::refused(format!(
                "the files of a static table changed since epoch {}, so it cannot be run again; put them back as they were",
                self.intent.epoch
            )));
        }
        let task = planned.state.task_ctx();
        let outputs = planned.outputs.iter().zip(plans).map(|(output, plan)| {
            let rows = concat(plan).execute(0, Arc::clone(&task))?;
            Ok((output.target.name.clone(), with_symbols(rows)))
        });
        Ok(Replayed { rows: outputs.collect::<Result<_>>()?, opener })
    }

    /// What another question, planned and not optimised, answers over the rows that the epoch read; `now()` is the time of
    /// then.
    ///
    /// Errors: it asks for a table that the epoch has not read.
    pub async fn ask(
        &self,
        plan: LogicalPlan,
        state: &SessionState,
        connectors: &Connectors,
        environment: &Environment,
    ) -> Result<Replayed> {
        let plan = state.optimize(&volatile::open_clock(plan)?)?;
        let mut others = vec![];
        plan.apply_with_subqueries(|node| {
            let table = stream_of(node).map(|stream| stream.definition().name.clone());
            others.extend(table.filter(|table| !self.intent.sources.contains_key(table)));
            Ok(TreeNodeRecursion::Continue)
        })?;
        if let Some(other) = others.first() {
            let known = self.intent.sources.keys().cloned().collect::<Vec<_>>().join(", ");
            return Err(Error::usage(format!("epoch {} has not read {other}; it read {known}", self.intent.epoch)));
        }
        let opener = Arc::new(Opener::new(connectors.clone(), environment.clone(), Some(self.owner())));
        let plan = bind(&plan, &self.binding(&opener), false)?;
        let plan = state.query_planner().create_physical_plan(&plan, state).await?;
        let rows = concat(plan).execute(0, state.task_ctx())?;
        Ok(Replayed { rows: vec![(String::new(), with_symbols(rows))], opener })
    }

    /// The query itself, as sources see it: a source of files looks its numbers up by that, and reads them only.
    fn owner(&self) -> Owner {
        Owner { id: self.record.id.as_str().into(), journal: self.generation.journal() }
    }

    fn binding(&self, opener: &Arc<Opener>) -> Binding {
        let Intent { sources, batch_time_ms, late_before_ms, watermark_ms, shards, .. } = &self.intent;
        let times = Times { batch: *batch_time_ms, late_before: *late_before_ms, watermark: *watermark_ms };
        Binding { cuts: sources.clone(), times, shards: *shards, opener: Arc::clone(opener) }
    }

    /// Gives the operators what they remembered before the epoch.
    async fn restore(&self, planned: &Planned, opener: &Opener) -> Result<()> {
        let Some(before) = &self.before else {
            return Err(Error::refused(format!(
                "epoch {epoch} of {query} cannot be run again: what {query} remembered before it is not kept, as the commit \
                 of epoch {} is gone; --sql asks what the epoch read without it",
                self.intent.epoch - 1,
                epoch = self.intent.epoch,
                query = self.generation.query(),
            )));
        };
        let operators = planned.shapes.iter().map(|shape| async move {
            let name = &shape.layout.name;
            let commit = before.state.get(name).cloned().unwrap_or_default();
            let (layout, store) = (shape.layout.clone(), self.generation.state(name));
            Operator::restore(layout, store, &commit, self.intent.shards, MAX_FILES).await
        });
        opener.set_operators(try_join_all(operators).await?);
        Ok(())
    }
}

/// The rows, and what happened to each as text, where they change.
fn with_symbols(rows: SendableRecordBatchStream) -> SendableRecordBatchStream {
    if !is_updating(&rows.schema()) {
        return rows;
    }
    let kept = rows.schema().fields().len() - 1;
    let fields = rows.schema().fields().iter().take(kept).cloned().collect::<Vec<FieldRef>>();
    let kind: FieldRef = Arc::new(Field::new(ROW_KIND, DataType::Utf8, false));
    let schema = Arc::new(Schema::new(fields.into_iter().chain([kind]).collect::<Vec<_>>()));
    let shown = Arc::clone(&schema);
    let rows = rows.map(move |batch| {
        let batch = batch?;
        let kinds = batch.column(kept).as_primitive::<Int8Type>().values();
        let symbols = StringArray::from_iter_values(kinds.iter().map(|kind| RowKind::of(*kind).symbol()));
        let columns: Vec<ArrayRef> =
            batch.columns()[..kept].iter().cloned().chain([Arc::new(symbols) as ArrayRef]).collect();
        Ok(RecordBatch::try_new(Arc::clone(&shown), columns)?)
    });
    Box::pin(RecordBatchStreamAdapter::new(schema, rows))
}

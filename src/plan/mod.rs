//! From a logical plan over streams to the bounded plan of one epoch.
//!
//! The idea: a query is optimised once. Each epoch puts bounded scans in the place of the streaming ones and the batch
//! time in the place of `now()`, and what comes out is an ordinary DataFusion plan.
//!
//! Guarantee: the rows of each output partition, and their order, follow from the intent alone. What cannot run an epoch
//! at a time is refused by name ([`incremental`]).
//!
//! This module does no I/O, and a bound plan's leaves are descriptions: table, spans, projection.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use datafusion::catalog::default_table_source::{DefaultTableSource, provider_as_source};
use datafusion::common::tree_node::{Transformed, TreeNodeRecursion};
use datafusion::common::{ParamValues, ScalarValue};
use datafusion::execution::SessionState;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::ExecutionPlan;

use crate::catalog::TableDefinition;
use crate::checkpoint::Cut;
use crate::error::{Error, Result};

pub mod aggregate;
mod aggregation;
pub mod ask;
mod carry;
pub mod changes;
pub mod concat;
pub mod explain;
mod first;
pub mod incremental;
pub mod kept;
pub mod late;
mod narrowing;
pub mod opener;
pub mod repeat;
pub mod scan;
mod sessions;
mod shared;
pub mod stateful;
pub mod time;
pub mod volatile;

use aggregate::Times;
use late::LateTable;
use opener::Opener;
use scan::{ScanExec, StreamTable};

/// A query over streams, optimised, with its clock left open.
#[derive(Debug, Clone)]
pub struct StreamPlan {
    plan: LogicalPlan,
    tables: BTreeMap<String, Arc<TableDefinition>>,
    /// Whether it remembers anything.
    remembers: bool,
    /// Whether it reads a changelog.
    reads_changes: bool,
    /// Whether it needs event time: to know what is complete, or because it asks for the watermark.
    is_timed: bool,
    /// How long what was not touched is remembered, where no window ends it.
    ttl: Option<Duration>,
    /// The table that gets late rows.
    late: Option<Arc<LateTable>>,
    /// What the names of its operators begin with.
    prefix: String,
}

/// What an epoch's plan is made for: what its intent says, and where things are open.
#[derive(Debug, Clone)]
pub struct Binding {
    /// By table, its tasks.
    pub cuts: BTreeMap<String, Cut>,
    /// The clocks.
    pub times: Times,
    /// Into how many shards state is divided, and so into how many tasks what comes out of it.
    pub shards: usize,
    /// Where sources and state are open.
    pub opener: Arc<Opener>,
}

/// The stream that a scan reads, if it reads one.
pub fn stream_of(plan: &LogicalPlan) -> Option<&StreamTable> {
    let LogicalPlan::TableScan(scan) = plan else { return None };
    let source = scan.source.downcast_ref::<DefaultTableSource>()?;
    source.table_provider.downcast_ref::<StreamTable>()
}

impl StreamPlan {
    /// Optimises `plan`, checks that it can run an epoch at a time, and opens its clock.
    ///
    /// Errors: what cannot run incrementally, volatile functions, a query that reads no stream.
    pub fn try_new(state: &SessionState, plan: LogicalPlan, ttl: Option<Duration>) -> Result<Self> {
        let plan = volatile::open_clock(plan)?;
        volatile::refuse_above_state(&plan)?;
        let plan = volatile::read_below_state(state.optimize(&plan)?)?;
        incremental::check(&plan)?;
        let (mut tables, mut remembers, mut asks, mut reads_changes) = (BTreeMap::new(), false, false, false);
        plan.apply_with_subqueries(|node| {
            if let Some(stream) = stream_of(node) {
                tables.insert(stream.definition().name.clone(), Arc::clone(stream.definition()));
                reads_changes |= stream.is_changelog();
            }
            remembers |= incremental::remembers(node);
            asks |= volatile::reads_watermark(node)?;
            Ok(TreeNodeRecursion::Continue)
        })?;
        if tables.is_empty() {
            return Err(Error::usage(
                "the query reads no stream; a continuous query needs a table created WITH ('connector' = …)",
            ));
        }
        Ok(Self {
            plan,
            tables,
            remembers,
            reads_changes,
            is_timed: remembers || asks,
            ttl,
            late: None,
            prefix: String::new(),
        })
    }

    /// The same, with late rows put down for a table.
    pub fn with_late_rows(self, table: LateTable) -> Self {
        Self { late: Some(Arc::new(table)), ..self }
    }

    /// The same, one of several plans of a query: the names of its operators begin with its number.
    pub fn numbered(self, number: usize) -> Self {
        Self { prefix: format!("{number}-"), ..self }
    }

    /// The streams it reads, by name.
    pub fn tables(&self) -> &BTreeMap<String, Arc<TableDefinition>> {
        &self.tables
    }

    /// The optimised logical plan.
    pub fn logical(&self) -> &LogicalPlan {
        &self.plan
    }

    /// The schema of its rows.
    pub fn schema(&self) -> SchemaRef {
        Arc::clone(self.plan.schema().inner())
    }

    /// Whether it remembers anything from epoch to epoch.
    pub fn remembers(&self) -> bool {
        self.remembers
    }

    /// Whether it needs event time.
    pub fn is_timed(&self) -> bool {
        self.is_timed
    }

    /// The physical plan of one epoch, with state where it needs some.
    pub async fn epoch(&self, state: &SessionState, binding: &Binding) -> Result<Arc<dyn ExecutionPlan>> {
        let bound = bind(&self.plan, binding, self.is_timed)?;
        let plan = state.query_planner().create_physical_plan(&bound, state).await?;
        if !self.remembers && !self.reads_changes {
            return Ok(plan);
        }
        stateful::remember(plan, binding, self.ttl, self.late.as_ref(), &self.prefix)
    }
}

/// An optimised plan whose clock is open as that of one epoch: each stream reads its cut, and `now()` is the batch time. If
/// it is watched, reads report the watermark.
pub fn bind(plan: &LogicalPlan, binding: &Binding, is_watched: bool) -> Result<LogicalPlan> {
    let bound = plan.clone().transform_up_with_subqueries(|node| {
        let Some(stream) = stream_of(&node) else { return Ok(Transformed::no(node)) };
        let cut = binding.cuts.get(&stream.definition().name).cloned().unwrap_or_default();
        let bound = stream.bound_to(cut, Arc::clone(&binding.opener), is_watched);
        let LogicalPlan::TableScan(mut scan) = node else { return Ok(Transformed::no(node)) };
        scan.source = provider_as_source(Arc::new(bound));
        Ok(Transformed::yes(LogicalPlan::TableScan(scan)))
    })?;
    let now = ScalarValue::TimestampNanosecond(Some(binding.times.batch * 1_000_000), Some("UTC".into()));
    let watermark = binding.times.watermark.filter(|watermark| *watermark < i64::MAX);
    let watermark = ScalarValue::TimestampMillisecond(watermark, None);
    let values = ParamValues::from(vec![(volatile::BATCH_TIME_NAME, now), (volatile::WATERMARK_NAME, watermark)]);
    Ok(bound.data.replace_params_with_values(&values)?)
}

/// Whether the rows of each output partition come from one task of each scan, in its order: no exchange and no merge of
/// streams lies between. Where one does, the epoch must be one task.
pub fn keeps_tasks_apart(plan: &Arc<dyn ExecutionPlan>) -> bool {
    fn reads_stream(plan: &Arc<dyn ExecutionPlan>) -> bool {
        plan.downcast_ref::<ScanExec>().is_some() || plan.children().into_iter().any(reads_stream)
    }
    let mixes = ["RepartitionExec", "ConcatExec", "SortPreservingMergeExec", "InterleaveExec"];
    let mixes_here = mixes.contains(&plan.name()) && reads_stream(plan);
    !mixes_here && plan.children().into_iter().all(keeps_tasks_apart)
}

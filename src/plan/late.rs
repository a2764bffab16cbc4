//! Late rows: those for what has come out already are left out and counted.
//!
//! Guarantee: which rows are late follows from the intent. No row is left out without being counted, by operator and by
//! the partition it came from; one without an event time counts too, as no watermark will ever pass it.

use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, BooleanArray, RecordBatch};
use arrow::compute::{filter_record_batch, min};
use datafusion::common::Result as DfResult;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use futures::StreamExt;

use super::opener::Opener;
use super::time::ticks;
use crate::connector::Partition;
use crate::error::Result;

/// Leaves out rows whose key lies before a bound.
pub struct LateExec {
    input: Arc<dyn ExecutionPlan>,
    operator: String,
    /// The rising key of the operator above, over the input's columns.
    key: Arc<dyn PhysicalExpr>,
    bound: Option<i64>,
    /// Where the rows of each partition come from, if that is one partition of a source.
    from: Vec<Option<Partition>>,
    opener: Arc<Opener>,
}

impl LateExec {
    /// Below `operator`; rows whose `key` lies before `bound` are late.
    pub fn new(
        input: Arc<dyn ExecutionPlan>,
        operator: &str,
        key: Arc<dyn PhysicalExpr>,
        bound: Option<i64>,
        from: Vec<Option<Partition>>,
        opener: Arc<Opener>,
    ) -> Self {
        Self { input, operator: operator.to_owned(), key, bound, from, opener }
    }
}

/// The rows that are in time, and how many are not.
fn in_time(batch: RecordBatch, key: &Arc<dyn PhysicalExpr>, bound: Option<i64>) -> Result<(RecordBatch, u64)> {
    let keys = ticks(&key.evaluate(&batch)?.into_array(batch.num_rows())?)?;
    let is_early = |first: i64| bound.is_none_or(|bound| first >= bound);
    if keys.null_count() == 0 && min(&keys).is_none_or(is_early) {
        return Ok((batch, 0));
    }
    let kept: BooleanArray = keys.iter().map(|key| Some(key.is_some_and(is_early))).collect();
    let rows = filter_record_batch(&batch, &kept)?;
    let late = (batch.num_rows() - rows.num_rows()) as u64;
    Ok((rows, late))
}

impl fmt::Debug for LateExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fmt_as(DisplayFormatType::Default, f)
    }
}

impl DisplayAs for LateExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LateExec: for {}, late is what has {} before the watermark's", self.operator, self.key)
    }
}

impl ExecutionPlan for LateExec {
    fn name(&self) -> &str {
        "LateExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.input.properties()
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> DfResult<TreeNodeRecursion>,
    ) -> DfResult<TreeNodeRecursion> {
        f(&self.key)
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> DfResult<Arc<dyn ExecutionPlan>> {
        let Some(input) = children.into_iter().next() else { return Ok(self) };
        let (key, opener) = (Arc::clone(&self.key), Arc::clone(&self.opener));
        Ok(Arc::new(Self::new(input, &self.operator, key, self.bound, self.from.clone(), opener)))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> DfResult<SendableRecordBatchStream> {
        let rows = self.input.execute(partition, context)?;
        let (schema, key, bound) = (rows.schema(), Arc::clone(&self.key), self.bound);
        let (opener, operator) = (Arc::clone(&self.opener), self.operator.clone());
        let from = self.from.get(partition).cloned().flatten();
        let kept = rows.map(move |batch| {
            let (rows, late) = in_time(batch?, &key, bound)?;
            if late > 0 {
                opener.count_late(&operator, from.as_ref(), late);
            }
            Ok(rows)
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, kept)))
    }
}

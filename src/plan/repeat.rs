//! Rows as often as a count says: from members and how often each was there, back to the rows they were.

use std::fmt;
use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::{Int64Type, Schema};
use datafusion::common::Result as DfResult;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties};
use futures::{StreamExt, TryStreamExt, stream};

use crate::error::{Error, Result};

/// Rows in a batch, about.
const BATCH: usize = 8192;

/// Repeats each row as often as its last column says, and drops that column.
#[derive(Debug)]
pub struct RepeatExec {
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
}

impl RepeatExec {
    /// The name of the last column.
    pub const TIMES: &'static str = "times";

    /// Over `input`, whose last column is [`Self::TIMES`].
    pub fn try_new(input: Arc<dyn ExecutionPlan>) -> Result<Self> {
        let schema = input.schema();
        let columns =
            schema.fields().len().checked_sub(1).ok_or_else(|| Error::internal("no column says how often"))?;
        let schema: Arc<Schema> = Arc::new(schema.project(&(0..columns).collect::<Vec<_>>())?);
        let properties = Arc::new(PlanProperties::new(
            EquivalenceProperties::new(schema),
            input.output_partitioning().clone(),
            input.pipeline_behavior(),
            input.boundedness(),
        ));
        Ok(Self { input, properties })
    }
}

/// The rows of a batch, repeated, in batches of bounded size.
fn repeated(batch: &RecordBatch) -> impl Iterator<Item = Result<RecordBatch>> + use<> {
    let (last, rows) = (batch.num_columns() - 1, batch.num_rows());
    let times = batch.column(last).as_primitive::<Int64Type>().clone();
    let kept = batch.project(&(0..last).collect::<Vec<_>>());
    let mut at = (0, 0);
    std::iter::from_fn(move || {
        let mut indices = vec![];
        while at.0 < rows && indices.len() < BATCH {
            let left = times.value(at.0) - at.1;
            let now = left.min((BATCH - indices.len()) as i64);
            indices.extend(std::iter::repeat_n(at.0 as u32, now.max(0) as usize));
            at = if now >= left { (at.0 + 1, 0) } else { (at.0, at.1 + now) };
        }
        if indices.is_empty() {
            return None;
        }
        let taken = kept.as_ref().map_err(|e| Error::internal(e.to_string()));
        Some(taken.and_then(|kept| Ok(take_record_batch(kept, &UInt32Array::from(indices))?)))
    })
}

impl DisplayAs for RepeatExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RepeatExec")
    }
}

impl ExecutionPlan for RepeatExec {
    fn name(&self) -> &str {
        "RepeatExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> DfResult<TreeNodeRecursion>,
    ) -> DfResult<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> DfResult<Arc<dyn ExecutionPlan>> {
        match children.into_iter().next() {
            Some(input) => Ok(Arc::new(Self::try_new(input)?)),
            None => Ok(self),
        }
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> DfResult<SendableRecordBatchStream> {
        let rows = self.input.execute(partition, context)?;
        let repeated = rows.map_ok(|batch| stream::iter(repeated(&batch).map(|b| b.map_err(Into::into)))).try_flatten();
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), repeated.boxed())))
    }
}

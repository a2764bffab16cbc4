//! Partitions one after the other, where DataFusion would merge them as their rows arrive.
//!
//! The idea: which row comes before which must follow from the intent alone (rule 2), and a merge by arrival is a matter
//! of timing. It matters also on the static side of a join, whose equal matches come out in the order they went in.
//!
//! Guarantee: an epoch's plan has no [`CoalescePartitionsExec`] left, nor an exchange into one partition. Not promised: that the partitions run side by side.

use std::fmt;
use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, Partitioning, PlanProperties,
};
use futures::stream::{self, TryStreamExt};

/// Puts [`ConcatExec`] in the place of every merge by arrival.
#[derive(Debug)]
pub struct InOrder;

impl PhysicalOptimizerRule for InOrder {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        let merged = |node: &Arc<dyn ExecutionPlan>| match node.downcast_ref::<CoalescePartitionsExec>() {
            Some(merge) => merge.fetch().is_none().then(|| Arc::clone(merge.input())),
            None => {
                let exchange = node.downcast_ref::<RepartitionExec>()?;
                (exchange.partitioning().partition_count() == 1).then(|| Arc::clone(exchange.input()))
            }
        };
        plan.transform_up(|node| match merged(&node) {
            Some(input) => Ok(Transformed::yes(Arc::new(ConcatExec::new(input)) as _)),
            None => Ok(Transformed::no(node)),
        })
        .data()
    }

    fn name(&self) -> &str {
        "in_order"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// The rows of all partitions of its input, those of the first one first.
#[derive(Debug)]
pub struct ConcatExec {
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
}

impl ConcatExec {
    /// Over `input`, whatever its partitions.
    pub fn new(input: Arc<dyn ExecutionPlan>) -> Self {
        let properties = Arc::new(PlanProperties::new(
            EquivalenceProperties::new(input.schema()),
            Partitioning::UnknownPartitioning(1),
            input.pipeline_behavior(),
            input.boundedness(),
        ));
        Self { input, properties }
    }
}

impl DisplayAs for ConcatExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ConcatExec")
    }
}

impl ExecutionPlan for ConcatExec {
    fn name(&self) -> &str {
        "ConcatExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(match children.into_iter().next() {
            Some(input) => Arc::new(Self::new(input)),
            None => self,
        })
    }

    fn execute(&self, _: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let input = Arc::clone(&self.input);
        let partitions = 0..input.output_partitioning().partition_count();
        let opened = stream::iter(partitions.map(move |partition| input.execute(partition, Arc::clone(&context))));
        let schema = self.schema();
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, opened.try_flatten())))
    }
}

/// The plan as one partition.
pub fn concat(plan: Arc<dyn ExecutionPlan>) -> Arc<dyn ExecutionPlan> {
    match plan.output_partitioning().partition_count() {
        1 => plan,
        _ => Arc::new(ConcatExec::new(plan)),
    }
}

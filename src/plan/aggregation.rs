//! An aggregation as DataFusion plans it, taken apart and put together again.

use std::sync::Arc;

use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion::physical_expr::{PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode, PhysicalGroupBy};

use super::concat::{ConcatExec, concat};
use super::stateful::{Key, Known, column, fed, held_by, refused, sorts, time_key};
use super::time::Rising;
use crate::error::Result;

/// Aggregate functions whose answer depends on the order of rows.
const ORDERED: &[&str] = &["any_value", "array_agg", "first_value", "last_value", "nth_value", "string_agg"];

/// An aggregation as DataFusion planned it, in one step or two.
#[derive(Debug, Clone)]
pub(super) struct Aggregation {
    pub(super) group_by: Arc<PhysicalGroupBy>,
    pub(super) functions: Vec<Arc<AggregateFunctionExpr>>,
    pub(super) filters: Vec<Option<Arc<dyn PhysicalExpr>>>,
    pub(super) input: Arc<dyn ExecutionPlan>,
}

impl Aggregation {
    pub(super) fn of(plan: &Arc<dyn ExecutionPlan>) -> Option<Self> {
        let mut aggregate = plan.downcast_ref::<AggregateExec>()?;
        if matches!(aggregate.mode(), AggregateMode::Final | AggregateMode::FinalPartitioned) {
            let mut below = aggregate.input();
            aggregate = loop {
                match below.downcast_ref::<AggregateExec>() {
                    Some(partial) if *partial.mode() == AggregateMode::Partial => break partial,
                    Some(_) => return None,
                    None => below = below.children().into_iter().next()?,
                }
            };
        }
        // A merge or a sort below is only there because the aggregation asked for one partition or an order.
        let mut input = Arc::clone(aggregate.input());
        while input.downcast_ref::<ConcatExec>().is_some() || sorts(&input) {
            input = Arc::clone(input.children()[0]);
        }
        Some(Self {
            group_by: Arc::new(aggregate.group_expr().clone()),
            functions: aggregate.aggr_expr().to_vec(),
            filters: aggregate.filter_expr().to_vec(),
            input,
        })
    }

    pub(super) fn over(&self, mode: AggregateMode, input: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
        let (group_by, functions, filters) = (Arc::clone(&self.group_by), self.functions.clone(), self.filters.clone());
        let schema = input.schema();
        let aggregate = AggregateExec::try_new(mode, group_by, functions, filters, Arc::clone(&input), schema)?;
        let aggregate: Arc<dyn ExecutionPlan> = Arc::new(aggregate);
        // A constant key asks for an order, too, and needs none.
        match self.functions.iter().any(|function| !function.order_bys().is_empty()) {
            true => fed(aggregate, input),
            false => Ok(aggregate),
        }
    }

    pub(super) fn single(&self, input: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
        self.over(AggregateMode::Single, concat(input))
    }

    /// By key: how it rises, if it does and is never left out by a grouping set.
    pub(super) fn rising(&self, input: &Known) -> Vec<Option<Rising>> {
        let nullable = self.group_by.exprs_nullable();
        let rising = |(index, (expr, _)): (usize, &(Arc<dyn PhysicalExpr>, String))| {
            Rising::of(expr, &input.rising).filter(|_| !nullable[index])
        };
        self.group_by.expr().iter().enumerate().map(rising).collect()
    }

    /// The key that decides when a group is complete.
    pub(super) fn time_key(&self, rising: &[Option<Rising>]) -> Option<usize> {
        let keys = self.group_by.expr().iter().map(|(key, _)| Arc::clone(key)).zip(rising.iter().cloned());
        time_key(&keys.collect::<Vec<Key>>(), &self.input.schema())
    }

    /// The key that is this column of the input.
    pub(super) fn key_at(&self, index: usize) -> Option<usize> {
        let nullable = self.group_by.exprs_nullable();
        self.group_by
            .expr()
            .iter()
            .enumerate()
            .position(|(key, (expr, _))| column(expr) == Some(index) && !nullable[key])
    }

    /// The result's columns. Where groups are held back until the key `held_by` is complete, only what follows that key
    /// still rises with event time.
    pub(super) fn result_rising(&self, keys: Vec<Option<Rising>>, whole: Option<usize>) -> Vec<Option<Rising>> {
        let mut keys = match whole.and_then(|key| keys[key].clone()) {
            Some(key) => held_by(keys, &key),
            None => keys,
        };
        keys.resize(self.group_by.num_group_exprs() + self.functions.len(), None);
        keys
    }

    /// Rows come from several partitions, and in another order when they are read again from elsewhere.
    pub(super) fn check_order(&self) -> Result<()> {
        let depends = |f: &&Arc<AggregateFunctionExpr>| {
            let order: &[PhysicalSortExpr] = f.order_bys();
            ORDERED.contains(&f.fun().name()) && order.is_empty()
        };
        match self.functions.iter().find(depends) {
            // It takes an ORDER BY, and does not heed it.
            Some(function) if function.fun().name() == "any_value" => Err(refused(
                &format!("{}, whose answer depends on how rows arrive,", function.name()),
                "say which value: min(x), or first_value(x ORDER BY ts)",
            )),
            Some(function) => Err(refused(
                &format!("{} without an ORDER BY", function.name()),
                "say in which order: array_agg(x ORDER BY ts)",
            )),
            None => Ok(()),
        }
    }
}

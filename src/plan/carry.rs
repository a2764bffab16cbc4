//! More of a scan's columns than the plan asked for, carried up to where they are wanted.
//!
//! The idea: DataFusion's optimiser leaves out what no operator of its own needs. What an operator of ours wants beyond
//! that, a row's position or the columns that late rows are shown with, is added to the scans and handed on by what lies
//! between, as the last columns. Where a join or a state lies between, rows have it no more.

use std::sync::Arc;

use arrow::datatypes::{Field, FieldRef, Schema};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::execution_plan::replace_children_if_necessary;
use datafusion::physical_plan::filter::{FilterExec, FilterExecBuilder};
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::union::UnionExec;
use datafusion::physical_plan::unnest::UnnestExec;

use super::scan::ScanExec;
use crate::error::Result;

/// What is carried.
pub(super) enum Carried {
    /// The columns of [`position_fields`](super::scan::position_fields).
    Position,
    /// Stored columns of the table.
    Columns(Vec<FieldRef>),
}

/// Those of these names that the table below has stored; none, if something lies between that cannot hand them on.
pub(super) fn stored(plan: &Arc<dyn ExecutionPlan>, names: &[String]) -> Vec<FieldRef> {
    if let Some(scan) = plan.downcast_ref::<ScanExec>() {
        let found = names.iter().filter_map(|name| scan.stored().column_with_name(name));
        // Another partition or branch may lack a value.
        return found.map(|(_, field)| Arc::new(field.clone().with_nullable(true)) as Arc<Field>).collect();
    }
    match plan.children().first() {
        Some(below) if hands_on(plan) => stored(below, names),
        _ => vec![],
    }
}

fn hands_on(plan: &Arc<dyn ExecutionPlan>) -> bool {
    ["FilterExec", "ProjectionExec", "UnionExec", "UnnestExec", "CoalesceBatchesExec", "CooperativeExec"]
        .contains(&plan.name())
}

/// The plan with what is carried in its last columns.
pub(super) fn carried(plan: &Arc<dyn ExecutionPlan>, what: &Carried) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    if let Some(scan) = plan.downcast_ref::<ScanExec>() {
        let scan = match what {
            Carried::Position => Some(scan.numbered()?),
            Carried::Columns(fields) => scan.with_columns(fields)?,
        };
        return Ok(scan.map(|scan| Arc::new(scan) as _));
    }
    if !hands_on(plan) {
        return Ok(None);
    }
    let mut inputs = vec![];
    for input in plan.children() {
        let Some(input) = carried(input, what)? else { return Ok(None) };
        inputs.push(input);
    }
    if plan.downcast_ref::<UnionExec>().is_some() {
        return Ok(Some(UnionExec::try_new(inputs)?));
    }
    let (before, after) = (plan.children()[0].schema().fields().len(), inputs[0].schema());
    let last = before..after.fields().len();
    if let Some(projection) = plan.downcast_ref::<ProjectionExec>() {
        let hand_on = |index: usize| {
            let name = after.field(index).name();
            (Arc::new(Column::new(name, index)) as Arc<dyn PhysicalExpr>, name.clone())
        };
        let expressions = projection.expr().iter().map(|e| (Arc::clone(&e.expr), e.alias.clone()));
        let expressions = expressions.chain(last.map(hand_on));
        return Ok(Some(Arc::new(ProjectionExec::try_new(expressions, Arc::clone(&inputs[0]))?)));
    }
    if let Some(filter) = plan.downcast_ref::<FilterExec>() {
        let kept = filter.projection().as_deref().map(|kept| kept.iter().copied().chain(last).collect());
        let filter = FilterExecBuilder::new(Arc::clone(filter.predicate()), Arc::clone(&inputs[0]));
        return Ok(Some(Arc::new(filter.apply_projection(kept)?.build()?)));
    }
    if let Some(unnest) = plan.downcast_ref::<UnnestExec>() {
        let mut fields: Vec<FieldRef> = unnest.schema().fields().iter().cloned().collect();
        fields.extend(last.map(|index| Arc::clone(&after.fields()[index])));
        let unnested = UnnestExec::new(
            Arc::clone(&inputs[0]),
            unnest.list_column_indices().to_vec(),
            unnest.struct_column_indices().to_vec(),
            Arc::new(Schema::new(fields)),
            unnest.options().clone(),
        )?;
        return Ok(Some(Arc::new(unnested)));
    }
    Ok(Some(replace_children_if_necessary(Arc::clone(plan), inputs)?))
}

//! Functions whose answer is not a function of their arguments.
//!
//! DataFusion would fold `now()` and kin to the time of planning. Here they become a placeholder, which every epoch binds
//! to its batch time (`current_watermark` to its watermark), so that a rerun answers the same. What draws random numbers is refused by name.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, TimeUnit};
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, Result as DfResult};
use datafusion::logical_expr::expr::Placeholder;
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, Volatility, cast};

use super::incremental::remembers;
use crate::error::{Error, Result};
use crate::sql::functions::CURRENT_WATERMARK;

/// The placeholders' names, without the `$`.
pub const BATCH_TIME_NAME: &str = "batch_time";
/// As [`BATCH_TIME_NAME`], for the watermark.
pub const WATERMARK_NAME: &str = "watermark";

/// Puts the placeholder in the place of every function that reads the clock, and refuses other volatile ones.
pub fn open_clock(plan: LogicalPlan) -> Result<LogicalPlan> {
    let opened = plan.transform_up_with_subqueries(|node| {
        let names = NamePreserver::new(&node);
        let rewritten = node.map_expressions(|expr| {
            let name = names.save(&expr);
            let rewritten = expr.transform_up(|expr| Ok(rewrite(expr)?))?;
            Ok(rewritten.update_data(|expr| name.restore(expr)))
        })?;
        if rewritten.transformed { rewritten.map_data(LogicalPlan::recompute_schema) } else { Ok(rewritten) }
    })?;
    Ok(opened.data)
}

/// Has the clock of a GROUP BY and its aggregates read below them, as columns. What is remembered of a row is then the
/// time of the epoch that read it, not of the one in which its group comes out; and no time is in a state column's name.
pub fn read_below_state(plan: LogicalPlan) -> Result<LogicalPlan> {
    let read = plan.transform_up(|node| {
        if !matches!(node, LogicalPlan::Aggregate(_)) || !remembers(&node) {
            return Ok(Transformed::no(node));
        }
        let (names, mut clocks) = (NamePreserver::new(&node), BTreeMap::new());
        let moved = node.expressions().into_iter().map(|expr| {
            let name = names.save(&expr);
            let moved = expr.transform_up(|expr| {
                let Expr::Placeholder(clock) = &expr else { return Ok(Transformed::no(expr)) };
                let column = Column::new_unqualified(clock.id.as_str());
                clocks.insert(clock.id.clone(), expr);
                Ok(Transformed::yes(Expr::Column(column)))
            })?;
            Ok(name.restore(moved.data))
        });
        let moved = moved.collect::<DfResult<Vec<Expr>>>()?;
        if clocks.is_empty() {
            return Ok(Transformed::no(node));
        }
        let input = node.inputs()[0].clone();
        let columns: Vec<Expr> = input.schema().iter().map(Expr::from).collect();
        let shown = columns.into_iter().chain(clocks.into_iter().map(|(name, clock)| clock.alias(name)));
        let input = LogicalPlanBuilder::from(input).project(shown)?.build()?;
        Ok(Transformed::yes(node.with_new_exprs(moved, vec![input])?))
    })?;
    Ok(read.data)
}

fn rewrite(expr: Expr) -> Result<Transformed<Expr>> {
    let Expr::ScalarFunction(function) = &expr else { return Ok(Transformed::no(expr)) };
    let as_type = |data_type| Transformed::yes(cast(batch_time(), data_type));
    Ok(match function.func.name() {
        "now" | "current_timestamp" => Transformed::yes(batch_time()),
        "current_date" | "today" => as_type(DataType::Date32),
        "current_time" => as_type(DataType::Time64(TimeUnit::Nanosecond)),
        CURRENT_WATERMARK => {
            Transformed::yes(placeholder(WATERMARK_NAME, DataType::Timestamp(TimeUnit::Millisecond, None), true))
        }
        name if function.func.signature().volatility == Volatility::Volatile => {
            return Err(Error::usage(format!(
                "{name}() gives another answer when an epoch is run again, so it cannot stand in a continuous query; \
                 derive the value from the row, for example from its offset"
            )));
        }
        _ => Transformed::no(expr),
    })
}

fn batch_time() -> Expr {
    placeholder(BATCH_TIME_NAME, DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into())), false)
}

fn placeholder(name: &str, data_type: DataType, nullable: bool) -> Expr {
    let field = Arc::new(Field::new(name, data_type, nullable));
    Expr::Placeholder(Placeholder { id: format!("${name}"), field: Some(field) })
}

/// Whether a node asks for the watermark.
pub fn reads_watermark(node: &LogicalPlan) -> Result<bool> {
    reads(node, &[WATERMARK_NAME])
}

fn reads(node: &LogicalPlan, names: &[&str]) -> Result<bool> {
    let mut found = false;
    node.apply_expressions(|expr| {
        expr.apply(|expr| {
            if let Expr::Placeholder(placeholder) = expr {
                found |= names.iter().any(|name| placeholder.id.strip_prefix('$') == Some(name));
            }
            Ok(TreeNodeRecursion::Continue)
        })
    })?;
    Ok(found)
}

/// Refuses the clock in a filter above what remembers: the optimiser moves such filters to below it, where they would be
/// asked when rows are read, each at its epoch's time, and a window come out with part of its rows.
pub fn refuse_above_state(plan: &LogicalPlan) -> Result<()> {
    let mut found = false;
    plan.apply_with_subqueries(|node| {
        if matches!(node, LogicalPlan::Filter(_)) && reads(node, &[BATCH_TIME_NAME, WATERMARK_NAME])? {
            found |= node.inputs().into_iter().any(has_state);
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    match found {
        true => Err(Error::usage(
            "now() and kin in HAVING, or in a filter above GROUP BY, DISTINCT or OVER, are not supported in a continuous \
             query yet; compare with them in WHERE, before these, or where the result is read",
        )),
        false => Ok(()),
    }
}

/// Whether anything in a plan remembers rows of a stream.
fn has_state(plan: &LogicalPlan) -> bool {
    remembers(plan) || plan.inputs().into_iter().any(has_state)
}

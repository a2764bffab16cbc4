//! `INSERT INTO` that ends by itself: rows written by hand, or read from what has an end.
//!
//! What is read decides: VALUES and static tables are written once, and so are streams under `SET 'execution.mode' =
//! 'batch'`, up to their end or what is there now. Everything else is a continuous query. How it is written, and what that
//! does not promise: [`once`].

use std::sync::Arc;

use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::execute_stream_partitioned;

use super::continuous::fit;
use super::{Session, settings};
use crate::connector::Role;
use crate::error::{Error, Result};
use crate::plan::stream_of;
use crate::query::once;
use crate::sql::Insert;

impl Session {
    /// Writes what ends by itself, and says how many rows that were; none, if it is a continuous query.
    pub(super) async fn insert_once(&self, insert: &Insert) -> Result<Option<String>> {
        let target = self.writable(&insert.table).await?;
        let plan = self.plan_query(insert.query.as_ref().clone()).await?;
        if !self.ends(&plan)? {
            return Ok(None);
        }
        let plan = fit(plan, target, &insert.columns)?;
        self.connectors.of(target)?.check(target, Role::Sink)?;
        if self.is_dry {
            return Ok(Some(format!("rows would be written to {}, once", target.name)));
        }
        let frame = self.question(plan);
        let task = Arc::new(frame.task_ctx());
        let rows = execute_stream_partitioned(frame.create_physical_plan().await?, task)?;
        let target = Arc::new(target.clone());
        let written = once::write(&target, rows, &self.connectors, &self.environment()).await?;
        let rows = if written.rows == 1 { "row" } else { "rows" };
        Ok(Some(format!("{} {rows} written to {}", written.rows, target.name)))
    }

    /// Whether the rows of this plan end, and are to be written once.
    fn ends(&self, plan: &LogicalPlan) -> Result<bool> {
        let (mut reads_stream, mut changes) = (false, false);
        plan.apply_with_subqueries(|node| {
            if let Some(stream) = stream_of(node) {
                reads_stream = true;
                changes |= stream.is_changelog();
            }
            Ok(TreeNodeRecursion::Continue)
        })?;
        if !reads_stream {
            return Ok(true);
        }
        if self.setting(settings::EXECUTION_MODE) != Some(settings::BATCH) {
            return Ok(false);
        }
        if changes {
            return Err(Error::usage(
                "a changelog is read, whose rows change, and rows that are written once do not; SET 'execution.mode' = \
                 'streaming'",
            ));
        }
        Ok(true)
    }
}

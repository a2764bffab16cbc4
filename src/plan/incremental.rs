//! What can run an epoch at a time, and what cannot yet.
//!
//! A plan is incremental if its answer over all rows is the concatenation of its answers over the epochs. Today these
//! are: projection, filter, unnest, UNION ALL of streams, and joins of a stream with static tables that keep no memory
//! of the stream. What remembers (GROUP BY, DISTINCT, OVER) is looked at where it is planned ([`stateful`](super::stateful)).
//! Everything else over a stream is refused by name, with what would work. Below a static subtree anything goes.

use datafusion::common::JoinType;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::logical_expr::LogicalPlan;

use super::stream_of;
use crate::error::{Error, Result};

/// Whether any stream is read below (subqueries included).
pub fn reads_stream(plan: &LogicalPlan) -> bool {
    let mut found = false;
    // The closure never fails.
    let _ = plan.apply_with_subqueries(|node| {
        found |= stream_of(node).is_some();
        Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    });
    found
}

/// Whether this node must remember rows of a stream from epoch to epoch.
pub fn remembers(node: &LogicalPlan) -> bool {
    matches!(node, LogicalPlan::Aggregate(_) | LogicalPlan::Distinct(_) | LogicalPlan::Window(_)) && reads_stream(node)
}

/// Checks an optimised plan.
pub fn check(plan: &LogicalPlan) -> Result<()> {
    if !reads_stream(plan) {
        return Ok(());
    }
    use LogicalPlan as P;
    let refused = match plan {
        P::Projection(_) | P::Filter(_) | P::SubqueryAlias(_) | P::TableScan(_) | P::Unnest(_) => None,
        P::Union(union) if union.inputs.iter().all(|input| reads_stream(input)) => None,
        P::Union(_) => Some((
            "UNION of a stream with a static table".to_string(),
            "its static rows would come again with every epoch; write them to the target once, by hand",
        )),
        P::Join(join) => refuse_join(join.join_type, reads_stream(&join.left), reads_stream(&join.right)),
        // Whether these can keep their state is seen in the physical plan.
        P::Aggregate(_) | P::Distinct(_) | P::Window(_) => None,
        P::Sort(_) => Some(("ORDER BY".to_string(), "leave it out: a stream has no last row to sort")),
        P::Limit(_) => Some((
            "LIMIT".to_string(),
            "leave it out; in the shell, a SELECT that need not remember anything may have it",
        )),
        other => {
            Some((other.display().to_string(), "only SELECT, WHERE, UNNEST, UNION ALL and joins with static tables"))
        }
    };
    match refused {
        Some((what, instead)) => {
            Err(Error::usage(format!("{what} over a stream is not supported in a continuous query yet; {instead}")))
        }
        None => {
            let mut in_subquery = false;
            plan.apply_subqueries(|subquery| {
                in_subquery |= reads_stream(subquery);
                Ok(TreeNodeRecursion::Continue)
            })?;
            if in_subquery {
                return Err(Error::usage(
                    "a subquery in an expression over a stream is not supported in a continuous query yet; it would be \
                     answered anew from each epoch's rows: join with a static table instead",
                ));
            }
            plan.inputs().into_iter().try_for_each(check)
        }
    }
}

/// A join may keep no memory of the stream: the stream must be the side whose rows decide alone.
fn refuse_join(join: JoinType, left: bool, right: bool) -> Option<(String, &'static str)> {
    use JoinType as J;
    if left && right {
        return Some(("a join of two streams".into(), "join with a static table (CREATE EXTERNAL TABLE)"));
    }
    let stream_decides = match join {
        J::Inner => true,
        J::Left | J::LeftSemi | J::LeftAnti | J::LeftMark => left,
        J::Right | J::RightSemi | J::RightAnti | J::RightMark => right,
        J::Full => false,
    };
    (!stream_decides).then(|| {
        (
            format!("{join} JOIN that keeps every row of the static side"),
            "make the stream the side that is kept, or use an inner join",
        )
    })
}

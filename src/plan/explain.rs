//! EXPLAIN of a continuous query: what it reads, how its rows are computed, what it writes and what that promises.

use std::fmt::Write;

use datafusion::physical_plan::{ExecutionPlan, displayable};

use super::StreamPlan;
use crate::catalog::TableDefinition;
use crate::connector::Guarantee;
use crate::sql::options::display_options;

/// The text, one paragraph a part.
pub fn explain(
    name: &str,
    plan: &StreamPlan,
    physical: &dyn ExecutionPlan,
    target: &TableDefinition,
    guarantee: &Guarantee,
) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(text, "query {name}");
    for table in plan.tables().values() {
        let _ = writeln!(text, "  reads {} WITH ({})", table.name, display_options(&table.options));
        if let Some(watermark) = &table.watermark {
            let rule = &watermark.expression;
            let _ = writeln!(text, "    watermark of {}: {rule}", watermark.column);
        }
    }
    let _ = writeln!(text, "  writes {} WITH ({})", target.name, display_options(&target.options));
    let _ = writeln!(text, "    {}: {}", guarantee.delivery, guarantee.reason);
    let _ = writeln!(text, "  result is append-only: no operator keeps state");
    let _ = writeln!(text, "logical plan\n{}", indent(&plan.logical().display_indent().to_string()));
    let _ = write!(text, "physical plan of an epoch\n{}", indent(&displayable(physical).indent(false).to_string()));
    text
}

fn indent(text: &str) -> String {
    text.trim_end().lines().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}

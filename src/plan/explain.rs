//! EXPLAIN of a continuous query: what it reads, what it remembers and until when, how its rows are
//! computed, what it writes and what that promises.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use arrow::datatypes::FieldRef;
use datafusion::physical_plan::{ExecutionPlan, displayable};

use super::StreamPlan;
use super::aggregate::{Emit, Shape, shapes};
use super::changes::is_updating;
use super::kept::Kept;
use crate::catalog::TableDefinition;
use crate::connector::Guarantee;
use crate::sql::options::display_options;

/// What one INSERT computes, and where it goes.
#[derive(Debug)]
pub struct Explained<'a> {
    /// The plan.
    pub plan: &'a StreamPlan,
    /// An epoch of it.
    pub physical: &'a Arc<dyn ExecutionPlan>,
    /// The target.
    pub target: &'a TableDefinition,
    /// What writing there promises.
    pub guarantee: Guarantee,
}

/// The text, one paragraph a part. `others` are tables that get something else than results: what, and what that promises.
pub fn explain(name: &str, outputs: &[Explained<'_>], others: &[(&str, &TableDefinition, Guarantee)]) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(text, "query {name}");
    let tables: BTreeMap<_, _> = outputs.iter().flat_map(|output| output.plan.tables()).collect();
    for table in tables.values() {
        let _ = writeln!(text, "  reads {} WITH ({})", table.name, display_options(&table.options));
        if let Some(watermark) = &table.watermark {
            let rule = &watermark.expression;
            let _ =
                writeln!(text, "    watermark of {}: {rule}, the least over partitions and sources", watermark.column);
        }
    }
    let writes = |text: &mut String, what: &str, target: &TableDefinition, guarantee: &Guarantee| {
        let _ = writeln!(text, "  {what} {} WITH ({})", target.name, display_options(&target.options));
        let _ = writeln!(text, "    {}: {}", guarantee.delivery, guarantee.reason);
    };
    for Explained { physical, target, guarantee, .. } in outputs {
        writes(&mut text, "writes", target, guarantee);
        let shapes = shapes(physical);
        let result = if outputs.len() > 1 { format!("result for {}", target.name) } else { "result".into() };
        let _ = writeln!(text, "  {result} is {}", kind(&shapes, physical));
        for shape in &shapes {
            let _ = writeln!(text, "    {}", remembered(shape));
        }
    }
    for (what, table, guarantee) in others {
        writes(&mut text, &format!("writes {what} to"), table, guarantee);
    }
    for Explained { plan, physical, target, .. } in outputs {
        let of = if outputs.len() > 1 { format!(" for {}", target.name) } else { String::new() };
        let _ = writeln!(text, "logical plan{of}\n{}", indent(&plan.logical().display_indent().to_string()));
        let physical = displayable(physical.as_ref()).indent(false).to_string();
        let _ = writeln!(text, "physical plan of an epoch{of}\n{}", indent(&physical));
    }
    text.truncate(text.trim_end().len());
    text
}

/// Whether rows of the result stay, and why.
fn kind(shapes: &[Arc<Shape>], physical: &Arc<dyn ExecutionPlan>) -> &'static str {
    match shapes {
        [] if is_updating(&physical.schema()) => "updating: a changelog is read",
        _ if is_updating(&physical.schema()) => {
            let is_row = |shape: &Arc<Shape>| shape.emit == Emit::Change && matches!(shape.kept, Kept::Row(_));
            match shapes.iter().any(is_row) {
                true => "updating: a row that comes first in the order may still come",
                false => "updating: a group without a window changes with every row of it",
            }
        }
        [] => "append-only: nothing is remembered",
        _ => "append-only: a group comes out once, when the watermark completes it, or a row when it is first seen",
    }
}

/// What an operator remembers, and until when.
fn remembered(shape: &Shape) -> String {
    // A key that is the time itself is named by what stands for it.
    let named = |name: &str| if name == "watermark" { "event time".to_owned() } else { name.to_owned() };
    let names = |fields: &[FieldRef]| fields.iter().map(|f| named(f.name())).collect::<Vec<_>>().join(", ");
    let layout = &shape.layout;
    let until = match (&shape.rising, shape.ttl) {
        (Some(_), _) if matches!(shape.emit, Emit::Session { .. }) => {
            "until the watermark has passed a session's end".to_owned()
        }
        (Some(_), _) => format!("until the watermark has passed {}", named(&layout.aged_by().unwrap_or_default())),
        (None, Some(ttl)) if shape.emit == Emit::New => format!("for {ttl:?} after it was first seen ('state.ttl')"),
        (None, Some(ttl)) => format!("for {ttl:?} after a row last touched it ('state.ttl')"),
        (None, None) => "for good: WARNING, this grows with the number of keys; SET 'state.ttl' bounds it".to_owned(),
    };
    let (keys, values) = (names(&layout.keys), names(layout.kept()));
    let what = if values.is_empty() { "that it was seen".to_owned() } else { format!("[{values}]") };
    format!("{} remembers {what} by [{keys}], {until}", layout.name)
}

fn indent(text: &str) -> String {
    text.trim_end().lines().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}

//! EXPLAIN of a continuous query: what it reads and by which watermark, what it writes and what that promises, whether
//! its rows stay; of each operator that remembers the same, with what it remembers and until when; and the plans.

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
use crate::connector::{Guarantee, ScanOptions};
use crate::error::Result;
use crate::sql::options::display_options;

/// The nanoseconds of a day, of which DataFusion's intervals count whole ones apart.
const DAY: i128 = 86_400_000_000_000;
/// Units of time in nanoseconds, the longest first.
const UNITS: [(i128, &str); 5] =
    [(DAY, "d"), (3_600_000_000_000, "h"), (60_000_000_000, "min"), (1_000_000_000, "s"), (1_000_000, "ms")];

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

/// The text, one paragraph a part. `others` are tables that get something else than results: what, and what that
/// promises.
///
/// Errors: options of a table that cannot be read.
pub fn explain(
    name: &str,
    outputs: &[Explained<'_>],
    others: &[(&str, &TableDefinition, Guarantee)],
) -> Result<String> {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(text, "query {name}");
    let tables: BTreeMap<_, _> = outputs.iter().flat_map(|output| output.plan.tables()).collect();
    for table in tables.values() {
        let _ = writeln!(text, "  reads {} WITH ({})", table.name, display_options(&table.options));
        if let Some(watermark) = &table.watermark {
            let (column, rule) = (&watermark.column, &watermark.expression);
            let idle = length(ScanOptions::of(table)?.idle_timeout.as_nanos() as i128);
            let _ = writeln!(text, "    watermark of {column}: {rule}, the least over partitions and sources");
            let _ =
                writeln!(text, "    idle after {idle}: a partition with nothing to read does not hold it back then");
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
            let _ = writeln!(text, "    {} is {}", shape.layout.name, emitted(shape));
            let _ = writeln!(text, "      {}\n      {}", remembered(shape), until(shape));
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
    Ok(text)
}

/// Whether rows of the result stay, and why.
fn kind(shapes: &[Arc<Shape>], physical: &Arc<dyn ExecutionPlan>) -> String {
    let changing = shapes.iter().find(|shape| shape.emit == Emit::Change);
    match (is_updating(&physical.schema()), changing) {
        (true, Some(shape)) => format!("updating, as {} is", shape.layout.name),
        (true, None) => "updating: a changelog is read".to_owned(),
        (false, _) if shapes.is_empty() => "append-only: nothing is remembered".to_owned(),
        (false, _) => "append-only: what has come out stays".to_owned(),
    }
}

/// Whether what an operator brings out stays, and why.
fn emitted(shape: &Shape) -> &'static str {
    match (shape.emit, &shape.kept) {
        (Emit::Complete, Kept::States(_)) => "append-only: a group comes out once, when the watermark has passed it",
        (Emit::Complete, Kept::Row(_)) => "append-only: a row comes out once, when the watermark has passed it",
        (Emit::Session { .. }, _) => "append-only: a session comes out once, when the watermark has passed its end",
        (Emit::New, Kept::States(_)) => "append-only: a key comes out when it is first seen, and not again",
        (Emit::New, Kept::Row(_)) => "append-only: the first row of a key comes out when it comes, and no other",
        (Emit::Change, Kept::States(_)) => {
            "updating: no key rises with event time, so a group is never complete, and changes with its rows"
        }
        (Emit::Change, Kept::Row(_)) => "updating: a row that comes before it in the order may still come",
    }
}

/// What an operator remembers, by which keys.
fn remembered(shape: &Shape) -> String {
    let names = |fields: &[FieldRef]| fields.iter().map(|f| readable(f.name())).collect::<Vec<_>>().join(", ");
    let (keys, values) = (names(&shape.layout.keys), names(shape.layout.kept()));
    match (values.is_empty(), shape.is_one_group) {
        (true, true) => "remembers whether there was a row".to_owned(),
        (true, false) => format!("remembers which [{keys}] were seen"),
        (false, true) => format!("remembers [{values}] in one row"),
        (false, false) => format!("remembers [{values}] by [{keys}]"),
    }
}

/// Until when it does.
fn until(shape: &Shape) -> String {
    let ttl = shape.ttl.map(|ttl| length(ttl.as_nanos() as i128));
    match (&shape.rising, ttl) {
        (Some(_), _) if matches!(shape.emit, Emit::Session { .. }) => {
            "until the watermark has passed a session's end".to_owned()
        }
        (Some(_), _) => {
            let key = readable(&shape.layout.aged_by().unwrap_or_default());
            format!("until the watermark has passed its {key}")
        }
        (None, Some(ttl)) if shape.emit == Emit::New => format!("for {ttl} after it was first seen ('state.ttl')"),
        (None, Some(ttl)) => format!("for {ttl} after a row last touched it ('state.ttl')"),
        (None, None) if shape.is_one_group => "for good".to_owned(),
        (None, None) => "for good: WARNING, this grows with the number of keys; SET 'state.ttl' bounds it".to_owned(),
    }
}

/// A column of state as one would write it: event time where the watermark stands for it, and intervals with a unit.
fn readable(name: &str) -> String {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let word = |word: &str| match word.strip_prefix("watermark") {
        Some(rest) if !rest.starts_with(is_word) => format!("event time{rest}"),
        _ => word.to_owned(),
    };
    let name: String = name.split_inclusive(|c: char| !is_word(c)).map(word).collect();
    let mut parts = name.split("IntervalMonthDayNano { ");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (interval, rest) = part.split_once(" }").unwrap_or((part, ""));
        let number = |part: &str| part.split_once(": ")?.1.parse::<i128>().ok();
        text += &match interval.split(", ").filter_map(number).collect::<Vec<_>>()[..] {
            [0, days, nanos] => length(days * DAY + nanos),
            [months, 0, 0] => format!("{months} months"),
            _ => interval.to_owned(),
        };
        text += rest;
    }
    text
}

/// So many nanoseconds, in the longest unit of which they are a multiple.
fn length(nanos: i128) -> String {
    let (unit, name) = UNITS.into_iter().find(|(unit, _)| nanos % unit == 0).unwrap_or((1, "ns"));
    format!("{} {name}", nanos / unit)
}

fn indent(text: &str) -> String {
    text.trim_end().lines().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_of_state_are_shown_as_one_would_write_them() {
        let shown = |months, days, nanoseconds: i64| {
            let interval =
                format!("IntervalMonthDayNano {{ months: {months}, days: {days}, nanoseconds: {nanoseconds} }}");
            readable(&format!("date_bin({interval}, watermark) + {interval}"))
        };
        assert_eq!(shown(0, 0, 10_000_000_000), "date_bin(10 s, event time) + 10 s");
        assert_eq!(shown(0, 1, 3_600_000_000_000), "date_bin(25 h, event time) + 25 h");
        assert_eq!(shown(2, 0, 0), "date_bin(2 months, event time) + 2 months");
        assert_eq!(readable("watermark"), "event time");
        assert_eq!(readable("watermarks + my_watermark"), "watermarks + my_watermark");
        assert_eq!([1, 1_500_000, 60_000_000_000, 90_000_000_000].map(length), ["1 ns", "1500000 ns", "1 min", "90 s"]);
    }
}

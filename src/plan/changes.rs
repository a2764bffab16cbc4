//! Changes: the rows of a result that is updated, each with what happened to it.
//!
//! The idea: a result that changes goes on as rows that are taken back and rows that take their place. Their kind is one
//! more column, the last one; what works row by row (projection, filter) works on both alike, so a group that no longer
//! passes a filter is taken back by itself.

use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{DataType, Field, FieldRef, Int8Type, Schema, SchemaRef};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{CastExpr, Column};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::projection::ProjectionExec;

use super::aggregate::StatefulAggregateExec;
use super::scan::ScanExec;
use crate::error::Result;

/// The name of the column; no column of a user's can have it.
pub const ROW_KIND: &str = "$row_kind";

/// What happened to a row, as Flink calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i8)]
pub enum RowKind {
    /// It is new.
    Insert = 0,
    /// It was there, and another takes its place.
    UpdateBefore = 1,
    /// It takes the place of another.
    UpdateAfter = 2,
    /// It was there, and nothing takes its place.
    Delete = 3,
}

impl RowKind {
    /// The kind with this number.
    pub fn of(number: i8) -> Self {
        match number {
            1 => Self::UpdateBefore,
            2 => Self::UpdateAfter,
            3 => Self::Delete,
            _ => Self::Insert,
        }
    }

    /// Whether the row is there from now on; else it is no more.
    pub fn is_there(self) -> bool {
        matches!(self, Self::Insert | Self::UpdateAfter)
    }

    /// As Flink prints it.
    pub fn symbol(self) -> &'static str {
        match self {
            Self::Insert => "+I",
            Self::UpdateBefore => "-U",
            Self::UpdateAfter => "+U",
            Self::Delete => "-D",
        }
    }
}

/// The column.
pub fn kind_field() -> FieldRef {
    Arc::new(Field::new(ROW_KIND, DataType::Int8, false))
}

/// The schema with the kind of each row.
pub fn with_kind(schema: &SchemaRef) -> SchemaRef {
    Arc::new(Schema::new(schema.fields().iter().cloned().chain([kind_field()]).collect::<Vec<_>>()))
}

/// Whether rows of this schema are changes.
pub fn is_updating(schema: &Schema) -> bool {
    schema.fields().last().is_some_and(|field| field.name() == ROW_KIND)
}

/// What happened to each row of a batch, and the rows without that. Rows that are no changes are new.
pub fn parted(batch: &RecordBatch) -> Result<(Vec<RowKind>, RecordBatch)> {
    let shown = batch.num_columns().saturating_sub(1);
    let kinds = batch.columns().last().filter(|_| is_updating(&batch.schema()));
    match kinds.and_then(|kinds| kinds.as_primitive_opt::<Int8Type>()) {
        Some(kinds) => {
            let kinds = kinds.values().iter().map(|kind| RowKind::of(*kind)).collect();
            Ok((kinds, batch.project(&(0..shown).collect::<Vec<_>>())?))
        }
        None => Ok((vec![RowKind::Insert; batch.num_rows()], batch.clone())),
    }
}

/// By which of its columns the rows of a result that changes are told apart: of each key, all that show it; none, where a
/// key is not shown.
pub fn keys(plan: &Arc<dyn ExecutionPlan>) -> Option<Vec<Vec<usize>>> {
    if let Some(node) = plan.downcast_ref::<StatefulAggregateExec>() {
        let shape = node.shape();
        let shown = if shape.is_one_group { 0 } else { shape.layout.keys.len() };
        return Some((0..shown).map(|key| vec![key]).collect());
    }
    if let Some(scan) = plan.downcast_ref::<ScanExec>() {
        return scan.primary_key();
    }
    let below = keys(plan.children().first()?)?;
    let shows: Vec<Option<usize>> = if let Some(projection) = plan.downcast_ref::<ProjectionExec>() {
        let schema = projection.input().schema();
        projection.expr().iter().map(|e| shown(&e.expr, &schema)).collect()
    } else if let Some(kept) = plan.downcast_ref::<FilterExec>().and_then(|filter| filter.projection().clone()) {
        kept.iter().map(|index| Some(*index)).collect()
    } else {
        return Some(below);
    };
    let moved = |key: &Vec<usize>| {
        let places = (0..shows.len()).filter(|place| shows[*place].is_some_and(|index| key.contains(&index)));
        Some(places.collect::<Vec<_>>()).filter(|places| !places.is_empty())
    };
    below.iter().map(moved).collect()
}

/// The column that an expression shows, so that different values stay different.
fn shown(expr: &Arc<dyn PhysicalExpr>, schema: &Schema) -> Option<usize> {
    if let Some(column) = expr.downcast_ref::<Column>() {
        return Some(column.index());
    }
    let cast = expr.downcast_ref::<CastExpr>()?;
    let from = cast.expr().data_type(schema).ok()?;
    if keeps_apart(&from, cast.cast_type()) { shown(cast.expr(), schema) } else { None }
}

/// Whether a cast keeps values apart that are not the same.
fn keeps_apart(from: &DataType, to: &DataType) -> bool {
    let is_wider = from.primitive_width() <= to.primitive_width();
    match (from, to) {
        (from, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View) => !from.is_nested(),
        (DataType::Timestamp(was, _), DataType::Timestamp(is, _)) => was <= is,
        (DataType::Decimal128(_, was), DataType::Decimal128(_, is)) => was <= is && is_wider,
        (DataType::Float32, DataType::Float64) => true,
        (from, to) if from.is_integer() && to.is_integer() => {
            is_wider
                && (from.is_signed_integer() == to.is_signed_integer() || from.primitive_width() < to.primitive_width())
        }
        (from, DataType::Decimal128(_, scale)) => from.is_integer() && *scale >= 0,
        _ => from == to,
    }
}

//! Changes: the rows of a result that is updated, each with what happened to it.
//!
//! The idea: a result that changes goes on as rows that are taken back and rows that take their place. Their kind is one
//! more column, the last one; what works row by row (projection, filter) works on both alike, so a group that no longer
//! passes a filter is taken back by itself.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

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
}

impl RowKind {
    /// The kind with this number.
    pub fn of(number: i8) -> Self {
        match number {
            1 => Self::UpdateBefore,
            2 => Self::UpdateAfter,
            _ => Self::Insert,
        }
    }

    /// As Flink prints it.
    pub fn symbol(self) -> &'static str {
        match self {
            Self::Insert => "+I",
            Self::UpdateBefore => "-U",
            Self::UpdateAfter => "+U",
        }
    }
}

/// The schema with the kind of each row.
pub fn with_kind(schema: &SchemaRef) -> SchemaRef {
    let kind = Arc::new(Field::new(ROW_KIND, DataType::Int8, false));
    Arc::new(Schema::new(schema.fields().iter().cloned().chain([kind]).collect::<Vec<_>>()))
}

/// Whether rows of this schema are changes.
pub fn is_updating(schema: &Schema) -> bool {
    schema.fields().last().is_some_and(|field| field.name() == ROW_KIND)
}

//! Tables and views as plain data.
//!
//! A [`TableDefinition`] says all that Millstream knows of a table, and nothing in it is open: no connection, no handle,
//! no secret in the clear if the user wrote `${env:NAME}`. It is written into checkpoints and compared across runs.
//!
//! What it does not promise: that the topic or directory exists, or that its options are valid. Connectors check these.
//!
//! How definitions are kept for more than one session: [`store`].

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

pub mod store;

/// A table of a `CREATE TABLE … WITH (…)` statement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableDefinition {
    /// Its name, in the case it was written in.
    pub name: String,
    /// Its columns, in the order they were declared.
    pub columns: Vec<Column>,
    /// Columns of `PRIMARY KEY (…) NOT ENFORCED`; empty without one.
    pub primary_key: Vec<String>,
    /// `WATERMARK FOR column AS expression`.
    pub watermark: Option<Watermark>,
    /// Columns of `PARTITIONED BY (…)`.
    pub partitioned_by: Vec<String>,
    /// The `WITH` options as written; `${env:NAME}` is not resolved here.
    pub options: BTreeMap<String, String>,
}

/// A column of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Its name, in the case it was written in.
    pub name: String,
    /// Its type. STRING is `Utf8View`, BYTES is `Binary`, `TIMESTAMP(3)` is `Timestamp(Millisecond, None)`.
    pub data_type: DataType,
    /// Whether it may be NULL (`NOT NULL` was not written).
    pub nullable: bool,
    /// Where its values come from.
    pub kind: ColumnKind,
}

/// Where the values of a column come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ColumnKind {
    /// From the message, by the table's format.
    Physical,
    /// From the message's metadata: `METADATA FROM 'key' [VIRTUAL]`.
    Metadata {
        /// The connector's name for it: the `FROM` text, or else the column's name.
        key: String,
        /// Whether it can only be read.
        is_virtual: bool,
    },
    /// Computed when read: `name AS expression`, the expression as SQL text.
    Computed {
        /// SQL over the other columns.
        expression: String,
    },
}

/// A `WATERMARK FOR column AS expression` clause.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watermark {
    /// The event-time column.
    pub column: String,
    /// SQL over the table's columns.
    pub expression: String,
}

/// A view: a name and the SQL of its query.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewDefinition {
    /// Its name.
    pub name: String,
    /// Its query, as SQL text.
    pub query: String,
}

impl Column {
    /// A column read from and written to the message itself.
    pub fn physical(name: impl Into<String>, data_type: DataType) -> Self {
        Self { name: name.into(), data_type, nullable: true, kind: ColumnKind::Physical }
    }

    /// Its Arrow field.
    pub fn field(&self) -> Field {
        Field::new(&self.name, self.data_type.clone(), self.nullable)
    }
}

impl TableDefinition {
    /// The connector's name, from the option `connector`.
    pub fn connector(&self) -> Result<&str> {
        self.options.get("connector").map(String::as_str).ok_or_else(|| {
            Error::usage(format!("table {} has no option 'connector'; say WITH ('connector' = 'kafka', …)", self.name))
        })
    }

    /// Whether what is read from it ends by itself (`scan.bounded.mode`).
    pub fn is_bounded(&self) -> bool {
        self.options.get("scan.bounded.mode").is_some_and(|mode| mode != "unbounded")
    }

    /// What a source reads: physical and metadata columns, in declared order, without computed ones.
    pub fn stored_columns(&self) -> impl Iterator<Item = &Column> {
        self.columns.iter().filter(|c| !matches!(c.kind, ColumnKind::Computed { .. }))
    }

    /// What a sink writes: physical columns and those metadata columns that are not `VIRTUAL`.
    pub fn writable_columns(&self) -> impl Iterator<Item = &Column> {
        self.columns.iter().filter(|c| match c.kind {
            ColumnKind::Physical => true,
            ColumnKind::Metadata { is_virtual, .. } => !is_virtual,
            ColumnKind::Computed { .. } => false,
        })
    }

    /// The schema of [`Self::stored_columns`].
    pub fn stored_schema(&self) -> SchemaRef {
        Arc::new(Schema::new(self.stored_columns().map(Column::field).collect::<Vec<_>>()))
    }

    /// The schema of [`Self::writable_columns`].
    pub fn writable_schema(&self) -> SchemaRef {
        Arc::new(Schema::new(self.writable_columns().map(Column::field).collect::<Vec<_>>()))
    }

    /// Whether any column is computed.
    pub fn has_computed_columns(&self) -> bool {
        self.columns.iter().any(|c| matches!(c.kind, ColumnKind::Computed { .. }))
    }
}

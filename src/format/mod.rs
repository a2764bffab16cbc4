//! Formats: payload bytes to record batches and back, a column of payloads at a time.
//!
//! A decoder gives one row for each good payload, in order, and says which payloads are bad and why; one bad payload
//! never costs its neighbours. An encoder gives one payload for each row.
//!
//! Formats know nothing of topics: who calls them names the message that was bad.

use std::fmt::Debug;
use std::sync::Arc;

use arrow::array::{BinaryArray, RecordBatch};
use arrow::datatypes::{Schema, SchemaRef};

use crate::catalog::{Column, ColumnKind, TableDefinition};
use crate::error::{Error, Result};
use crate::sql::options::{OptionReader, did_you_mean};

pub mod json;

/// A payload that could not be decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadPayload {
    /// Its index in the array that was given.
    pub index: usize,
    /// What is wrong with it.
    pub reason: String,
}

/// What a decoder made of an array of payloads.
#[derive(Debug)]
pub struct Decoded {
    /// One row for each good payload, in order.
    pub rows: RecordBatch,
    /// The others, in order.
    pub bad: Vec<BadPayload>,
}

/// Turns payloads into rows of one schema.
pub trait Decoder: Debug + Send {
    /// Decodes every payload; a NULL payload is a bad one. Errors are internal ones only.
    fn decode(&mut self, payloads: &BinaryArray) -> Result<Decoded>;
}

/// Turns rows into payloads.
pub trait Encoder: Debug + Send {
    /// One payload for each row, in order. Errors name the row by its index.
    fn encode(&mut self, rows: &RecordBatch) -> Result<BinaryArray>;
}

/// What to do with a payload that cannot be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnError {
    /// End the query with topic, partition, offset and reason.
    Fail,
    /// Leave it out, and count it.
    Skip,
}

/// The format of a table, from its options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FormatOptions {
    kind: FormatKind,
    /// `format.on-error`.
    pub on_error: OnError,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum FormatKind {
    Json(json::JsonOptions),
}

impl FormatOptions {
    /// Takes `format`, `format.on-error` and the format's own options (`json.*`).
    pub fn take(options: &mut OptionReader<'_>) -> Result<Self> {
        let name = options.required("format")?;
        let kind = match name.as_str() {
            "json" => FormatKind::Json(json::JsonOptions::take(options)?),
            other => {
                let hint = did_you_mean(other, ["json"].into_iter());
                return Err(options.blame(Error::usage(format!("there is no format '{other}' for messages{hint}"))));
            }
        };
        let on_error = options
            .choice("format.on-error", &[("fail", OnError::Fail), ("skip", OnError::Skip)])?
            .unwrap_or(OnError::Fail);
        Ok(Self { kind, on_error })
    }

    /// A decoder into `schema`, whose names are the payload's fields.
    pub fn decoder(&self, schema: SchemaRef) -> Result<Box<dyn Decoder>> {
        match &self.kind {
            FormatKind::Json(options) => Ok(Box::new(json::JsonDecoder::try_new(schema, options)?)),
        }
    }

    /// An encoder of rows of `schema`.
    pub fn encoder(&self, schema: SchemaRef) -> Result<Box<dyn Encoder>> {
        match &self.kind {
            FormatKind::Json(options) => Ok(Box::new(json::JsonEncoder::try_new(schema, options)?)),
        }
    }

    /// Makes JSON objects of rows of `schema`, where no table says how.
    pub fn json_encoder(schema: SchemaRef) -> Result<Box<dyn Encoder>> {
        Ok(Box::new(json::JsonEncoder::try_new(schema, &json::JsonOptions::default())?))
    }

    /// Checks that columns of these types can be read and written.
    pub fn check(&self, table: &TableDefinition) -> Result<()> {
        let physical = table.columns.iter().filter(|column| column.kind == ColumnKind::Physical);
        let schema = Arc::new(Schema::new(physical.map(Column::field).collect::<Vec<_>>()));
        self.decoder(schema).map(drop).map_err(|e| e.context(format_args!("table {}", table.name)))
    }
}

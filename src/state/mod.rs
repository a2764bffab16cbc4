//! State: what a query remembers from epoch to epoch, as tables of rows by key.
//!
//! The idea: partial aggregates and seen keys are rows, `[key columns, value columns]`, one for each key. An epoch looks up
//! the keys it touches, merges, and what comes out is at once the rows in memory from now on, and one file, the *delta*:
//! cost follows what changed. Now and then files become fewer, beside the running epochs. A
//! commit names the files that make up the state after it, so the state has the commit's own guarantee.
//!
//! A key may rise with event time; then the rows of each of its values lie in a bucket of their own, and when the
//! watermark has passed it, the bucket goes as a whole.
//!
//! Guarantee: after a restore, the rows are those of the commit, whatever the number of shards is now: stored rows carry
//! their keys and depend on no hash. Not promised: state larger than memory.
//!
//! [`shard`] keeps rows in memory, [`table`] says where each lies, [`files`] turns them into bytes, [`newest`] puts files
//! together, [`operator`] is one operator's table across epochs.

mod compaction;
pub mod files;
pub mod keys;
pub mod newest;
pub mod operator;
pub mod piece;
pub mod shard;
mod split;
pub mod table;

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use serde::{Deserialize, Serialize};
use tokio::task::JoinError;

use crate::error::Error;
use newest::Horizon;

/// What one operator's state looks like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The operator's name within its query: `aggregate-1`.
    pub name: String,
    /// The key columns.
    pub keys: Vec<FieldRef>,
    /// The value columns.
    pub values: Vec<FieldRef>,
    /// Which key rises with event time.
    pub rising: Option<usize>,
    /// Whether the last value column says when a row was last touched.
    pub is_touched: bool,
    /// Whether the one before it says when something of a row will be complete.
    pub is_due: bool,
}

/// The batch time, ms since 1970, at which a row was last touched.
const TOUCHED: &str = "$touched";
/// The last tick of the first session of a row…
const DUE: &str = "$due";
/// … and the end of its last one.
const END: &str = "$end";

impl Layout {
    /// Of an operator of this name, with no columns yet.
    pub fn named(name: &str) -> Self {
        let (keys, values) = Default::default();
        Self { name: name.to_owned(), keys, values, rising: None, is_touched: false, is_due: false }
    }

    /// Adds the column that says when a row was last touched.
    pub fn touch(&mut self) {
        self.values.push(Arc::new(Field::new(TOUCHED, DataType::Int64, false)));
        self.is_touched = true;
    }

    /// Adds the columns that say when a row has something that is complete, and when all of it is: as if it were touched
    /// last then.
    pub fn remind(&mut self) {
        self.values.extend([DUE, END].map(|name| Arc::new(Field::new(name, DataType::Int64, false))));
        (self.is_touched, self.is_due) = (true, true);
    }

    /// The value columns but these.
    pub fn kept(&self) -> &[FieldRef] {
        &self.values[..self.values.len() - usize::from(self.is_touched) - usize::from(self.is_due)]
    }

    /// That column's name.
    pub fn aged_by(&self) -> Option<String> {
        self.ages_by().map(|column| self.schema().field(column).name().clone())
    }

    /// Which column of [`Self::schema`] says until when a row is of use: its rising key, or when it was last touched.
    pub fn ages_by(&self) -> Option<usize> {
        self.rising.or_else(|| self.is_touched.then(|| self.keys.len() + self.values.len() - 1))
    }

    /// Which rows are there, once so much has been closed.
    fn horizon(&self, closed: Option<i64>) -> Option<Horizon> {
        Some(Horizon { column: self.ages_by()?, closed: closed?, is_inclusive: self.rising.is_some() })
    }

    /// Keys, then values; how many are keys is noted, for whoever has only the files.
    pub fn schema(&self) -> SchemaRef {
        let nullable = |field: &FieldRef| Field::new(field.name(), field.data_type().clone(), true);
        let fields: Vec<Field> = self.keys.iter().chain(&self.values).map(nullable).collect();
        let keys = HashMap::from([(files::KEYS_KEY.to_owned(), self.keys.len().to_string())]);
        Arc::new(Schema::new_with_metadata(fields, keys))
    }
}

fn broken_off(error: JoinError) -> Error {
    Error::internal("work on state ended by itself").caused_by(error)
}

/// The state of an operator after an epoch, as its commit names it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateCommit {
    /// Rows whose rising key lies before this, or that were last touched at or before it, are gone, though a file may have
    /// them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed: Option<i64>,
    /// What `closed` is a value of: the rising key as an expression, or the name of the column that says when a row was
    /// last touched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aged_by: Option<String>,
    /// The files, oldest first: a later row takes the place of an earlier one with its key.
    pub files: Vec<StateFile>,
}

/// A file of state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateFile {
    /// Its name within the operator's folder.
    pub name: String,
    /// The epoch after which its rows held.
    pub epoch: u64,
    /// Rows.
    pub rows: u64,
    /// Bytes.
    pub bytes: u64,
    /// The highest rising key in it, or when a row of it was last touched: once that is closed, the file is of no use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latest: Option<i64>,
}

//! The rows of files as a table: of each key the newest one, unless it has gone.
//!
//! Not promised: any order of them. Of keys that were seen, each is kept in memory until the end.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{BooleanArray, RecordBatch};
use arrow::buffer::BooleanBuffer;
use arrow::compute::filter_record_batch;
use arrow::datatypes::SchemaRef;
use bytes::Bytes;

use super::files;
use super::keys::KeyCodec;
use crate::error::Result;
use crate::plan::time::ticks;

/// From when on rows are there yet, though a file may have older ones.
#[derive(Debug, Clone, Copy)]
pub struct Horizon {
    /// The column that says until when a row is of use.
    pub column: usize,
    /// What has been closed of it.
    pub closed: i64,
    /// Whether a row that has just this is there: a window that begins just then is, what was touched just then is not.
    pub is_inclusive: bool,
}

impl Horizon {
    /// Which rows of a batch are there.
    pub fn there(&self, batch: &RecordBatch) -> Result<BooleanBuffer> {
        let ages = ticks(batch.column(self.column))?;
        let ages = ages.values();
        Ok(match self.is_inclusive {
            true => BooleanBuffer::collect_bool(ages.len(), |row| ages[row] >= self.closed),
            false => BooleanBuffer::collect_bool(ages.len(), |row| ages[row] > self.closed),
        })
    }
}

/// What has been seen of rows that come newest first.
pub struct Newest {
    seen: HashSet<Box<[u8]>>,
    codec: Arc<KeyCodec>,
    horizon: Option<Horizon>,
}

impl Newest {
    /// Nothing yet.
    pub fn new(codec: Arc<KeyCodec>, horizon: Option<Horizon>) -> Self {
        Self { seen: HashSet::new(), codec, horizon }
    }

    /// The rows of a batch that are there, and that none before was newer than.
    pub fn of(&mut self, batch: &RecordBatch) -> Result<RecordBatch> {
        let there = self.horizon.map(|horizon| horizon.there(batch)).transpose()?;
        let keys = self.codec.encode(&batch.columns()[..self.codec.columns()])?.rows;
        let is_there = |row: usize| there.as_ref().is_none_or(|there| there.value(row));
        let is_newest: BooleanArray =
            (keys.iter().enumerate()).map(|(row, key)| Some(is_there(row) && self.seen.insert(key.into()))).collect();
        Ok(filter_record_batch(batch, &is_newest)?)
    }
}

/// The rows of files with their names, newest first, all of this schema.
pub fn newest(
    read: impl IntoIterator<Item = (String, Bytes)>,
    schema: SchemaRef,
    codec: Arc<KeyCodec>,
    horizon: Option<Horizon>,
) -> impl Iterator<Item = Result<RecordBatch>> {
    let mut newest = Newest::new(codec, horizon);
    let batches = read.into_iter().flat_map(move |(name, body)| match files::decode(&name, &body, &schema) {
        Ok(batches) => batches.into_iter().rev().map(Ok).collect(),
        Err(error) => vec![Err(error)],
    });
    batches.map(move |batch| newest.of(&batch?))
}

//! A batch of state rows, dealt out to shards: what an epoch's partial aggregation gives, and what a file of state holds.

use arrow::array::RecordBatch;

use super::keys::{KeyCodec, hash, shard_of};
use super::shard::StateRows;
use crate::error::Result;

/// Rows with their buckets and hashes, and which of them each shard gets.
#[derive(Debug)]
pub struct Piece {
    /// The rows.
    pub rows: StateRows,
    /// The bucket of each.
    pub buckets: Vec<i64>,
    /// The hash of each key.
    pub hashes: Vec<u64>,
    /// By shard, its rows in order.
    pub by_shard: Vec<Vec<u32>>,
}

impl Piece {
    /// A batch whose first columns are the key, for so many shards; rows that `is_wanted` says no to are left out.
    pub fn try_new(
        codec: &KeyCodec,
        batch: &RecordBatch,
        shards: usize,
        is_wanted: impl Fn(usize) -> bool,
    ) -> Result<Self> {
        let (key_columns, values) = batch.columns().split_at(codec.columns());
        let encoded = codec.encode(key_columns)?;
        let hashes: Vec<u64> = encoded.rows.iter().map(hash).collect();
        let mut by_shard = vec![Vec::with_capacity(hashes.len() / shards.max(1)); shards];
        for (row, hash) in hashes.iter().enumerate().filter(|(row, _)| is_wanted(*row)) {
            by_shard[shard_of(*hash, shards)].push(row as u32);
        }
        let rows = StateRows { keys: encoded.rows, values: values.to_vec() };
        Ok(Self { rows, buckets: encoded.buckets, hashes, by_shard })
    }

    /// The key of a row.
    pub fn key(&self, row: usize) -> &[u8] {
        self.rows.keys.row(row)
    }
}

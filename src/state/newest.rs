//! The rows of files as a table: of each key the newest one, unless it has gone.
//!
//! Not promised: any order of them. Each key is kept in memory until the end.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::buffer::BooleanBuffer;
use arrow::compute::filter_record_batch;
use arrow::datatypes::SchemaRef;
use bytes::Bytes;

use super::files;
use super::keys::{KeyBytes, KeyCodec, hash};
use super::table::{Place, Places};
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
    /// Of each batch, the keys that came there first…
    keys: Vec<KeyBytes>,
    /// … and which of these each is.
    seen: Places,
    codec: Arc<KeyCodec>,
    horizon: Option<Horizon>,
}

impl Newest {
    /// Nothing yet.
    pub fn new(codec: Arc<KeyCodec>, horizon: Option<Horizon>) -> Self {
        Self { keys: vec![], seen: Places::default(), codec, horizon }
    }

    /// Whether a batch of so many rows can be looked at without a table that grows, which takes its time.
    pub fn has_room(&self, rows: usize) -> bool {
        self.seen.has_room(rows)
    }

    /// The same, with room for so many rows.
    pub fn with_room(mut self, rows: usize) -> Self {
        self.seen.reserve(rows);
        self
    }

    /// The rows of a batch that are there, and that none before was newer than.
    pub fn of(&mut self, batch: &RecordBatch) -> Result<RecordBatch> {
        let there = self.horizon.map(|horizon| horizon.there(batch)).transpose()?;
        let encoded = self.codec.encode(&batch.columns()[..self.codec.columns()])?.rows;
        let (number, Self { keys, seen, .. }) = (self.keys.len(), self);
        let mut first: Vec<usize> = vec![];
        let is_newest = BooleanBuffer::collect_bool(batch.num_rows(), |row| {
            let (key, is_there) = (encoded.row(row), there.as_ref().is_none_or(|there| there.value(row)));
            let place = Place::new(number as u32, first.len(), hash(key) as u32);
            let is_same = |other: &Place| match keys.get(other.chunk as usize) {
                Some(keys) => keys.row(other.row as usize) == key,
                None => encoded.row(first[other.row as usize]) == key,
            };
            let is_newest = is_there && seen.find(place.hash, is_same).is_none();
            if is_newest {
                seen.insert(place);
                first.push(row);
            }
            is_newest
        });
        keys.push(KeyBytes::of(first.iter().map(|row| encoded.row(*row))));
        Ok(filter_record_batch(batch, &is_newest.into())?)
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

#[cfg(test)]
mod tests {
    use arrow::array::{AsArray, Int64Array, StringArray};
    use arrow::datatypes::{DataType, Field, Int64Type, Schema};

    use super::*;

    #[test]
    fn of_each_key_the_first_row_counts_unless_it_has_gone() {
        let fields = [("key", DataType::Utf8), ("minute", DataType::Int64)];
        let schema = Arc::new(Schema::new(fields.map(|(name, of)| Field::new(name, of, true)).to_vec()));
        let batch = |rows: &[(Option<&str>, i64)]| {
            let keys = Arc::new(StringArray::from_iter(rows.iter().map(|(key, _)| *key)));
            let minutes = Arc::new(Int64Array::from_iter_values(rows.iter().map(|(_, minute)| *minute)));
            RecordBatch::try_new(Arc::clone(&schema), vec![keys, minutes]).unwrap()
        };
        let batches = [
            batch(&[(Some("a"), 9), (None, 8), (Some("b"), 3)]),
            batch(&[]),
            batch(&[(Some("c"), 7), (Some("a"), 7), (Some(""), 7), (Some("c"), 6), (None, 6), (Some("b"), 2)]),
        ];
        let horizon = |is_inclusive| Some(Horizon { column: 1, closed: 3, is_inclusive });
        let cases: [(_, &[i64]); 3] =
            [(None, &[9, 8, 3, 7, 7]), (horizon(true), &[9, 8, 3, 7, 7]), (horizon(false), &[9, 8, 7, 7])];
        for (horizon, expected) in cases {
            let codec = KeyCodec::try_new(&schema.fields()[..1], None).unwrap();
            let mut newest = Newest::new(Arc::new(codec), horizon);
            assert!(!newest.has_room(1));
            newest = newest.with_room(1);
            let rows = batches.iter().map(|batch| newest.of(batch).unwrap());
            let minutes = |rows: RecordBatch| rows.column(1).as_primitive::<Int64Type>().values().to_vec();
            assert_eq!(rows.flat_map(minutes).collect::<Vec<_>>(), expected, "{horizon:?}");
            assert_eq!(newest.keys.iter().map(KeyBytes::rows).sum::<usize>(), expected.len());
        }
    }
}

//! Keys as bytes that compare as their columns do.

use std::fmt;

use arrow::array::ArrayRef;
use arrow::compute::cast;
use arrow::datatypes::{DataType, FieldRef};
use arrow::row::{RowConverter, Rows, SortField};
use twox_hash::XxHash64;

use crate::error::{Error, Result};
use crate::plan::time::ticks;

/// The bucket of keys none of which rises.
pub const TIMELESS: i64 = 0;

/// Turns key columns into bytes and back.
pub struct KeyCodec {
    converter: RowConverter,
    types: Vec<DataType>,
    rising: Option<usize>,
}

/// Encoded keys, with what is asked of each of them.
#[derive(Debug)]
pub struct Keys {
    /// The bytes.
    pub rows: Rows,
    /// The bucket: the value of the rising key, in its own ticks.
    pub buckets: Vec<i64>,
}

impl fmt::Debug for KeyCodec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyCodec(rising: {:?})", self.rising)
    }
}

impl KeyCodec {
    /// For keys of these types, of which the one at `rising` decides the bucket.
    pub fn try_new(fields: &[FieldRef], rising: Option<usize>) -> Result<Self> {
        let types: Vec<DataType> = fields.iter().map(|field| field.data_type().clone()).collect();
        let converter = RowConverter::new(types.iter().cloned().map(SortField::new).collect())?;
        Ok(Self { converter, types, rising })
    }

    /// How many columns a key has.
    pub fn columns(&self) -> usize {
        self.types.len()
    }

    /// The keys in `columns`. A rising key must not be NULL.
    pub fn encode(&self, columns: &[ArrayRef]) -> Result<Keys> {
        let rows = self.converter.convert_columns(columns)?;
        let buckets = match self.rising {
            Some(index) => {
                let ticks = ticks(&columns[index])?;
                if arrow::array::Array::null_count(&ticks) > 0 {
                    return Err(Error::internal("a key that rises with event time is NULL"));
                }
                ticks.values().to_vec()
            }
            None => vec![TIMELESS; rows.num_rows()],
        };
        Ok(Keys { rows, buckets })
    }

    /// The columns of the keys at these places.
    pub fn decode<'a>(&self, keys: impl IntoIterator<Item = arrow::row::Row<'a>>) -> Result<Vec<ArrayRef>> {
        let columns = self.converter.convert_rows(keys)?;
        // What was a dictionary comes back as its values.
        let typed = |(column, to): (ArrayRef, &DataType)| match column.data_type() == to {
            true => Ok(column),
            false => Ok(cast(&column, to)?),
        };
        columns.into_iter().zip(&self.types).map(typed).collect()
    }

    /// Room for keys.
    pub fn empty(&self, rows: usize) -> Rows {
        self.converter.empty_rows(rows, rows * 16)
    }
}

/// The hash of a key, for its shard and for its place in a table; never stored.
pub fn hash(key: &[u8]) -> u64 {
    XxHash64::oneshot(0, key)
}

/// The shard of a key: which rows are written by which task follows from it, so it must not change while an epoch may
/// have to be run again.
pub fn shard_of(hash: u64, shards: usize) -> usize {
    ((hash >> 32) as usize) % shards.max(1)
}

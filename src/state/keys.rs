//! Keys as bytes that compare as their columns do.

use std::fmt;

use arrow::array::ArrayRef;
use arrow::compute::cast;
use arrow::datatypes::{DataType, FieldRef};
use arrow::row::{RowConverter, SortField};
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

/// Keys as bytes, one after the other. Of keys that are all of one length, as numbers are, nothing says where each ends.
#[derive(Debug)]
pub struct KeyBytes {
    bytes: Vec<u8>,
    rows: usize,
    ends: Ends,
}

#[derive(Debug)]
enum Ends {
    Every(usize),
    At(Vec<usize>),
}

impl KeyBytes {
    /// Of these keys, which are looked at twice.
    pub fn of<'a>(keys: impl Iterator<Item = &'a [u8]> + Clone) -> Self {
        let width = keys.clone().next().map_or(0, <[u8]>::len);
        let (mut rows, mut length, mut is_even) = (0, 0, true);
        for key in keys.clone() {
            (rows, length, is_even) = (rows + 1, length + key.len(), is_even && key.len() == width);
        }
        let mut bytes = Vec::with_capacity(length);
        let mut ends = Vec::with_capacity(if is_even { 0 } else { rows });
        for key in keys {
            bytes.extend_from_slice(key);
            if !is_even {
                ends.push(bytes.len());
            }
        }
        Self { bytes, rows, ends: if is_even { Ends::Every(width) } else { Ends::At(ends) } }
    }

    /// How many keys there are.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// One of them.
    pub fn row(&self, row: usize) -> &[u8] {
        match &self.ends {
            Ends::Every(width) => &self.bytes[row * width..(row + 1) * width],
            Ends::At(ends) => &self.bytes[row.checked_sub(1).map_or(0, |before| ends[before])..ends[row]],
        }
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> + Clone {
        (0..self.rows).map(|row| self.row(row))
    }

    /// In memory.
    pub fn bytes(&self) -> usize {
        let ends = if let Ends::At(ends) = &self.ends { size_of_val(ends.as_slice()) } else { 0 };
        self.bytes.len() + ends
    }
}

/// Encoded keys, with what is asked of each of them.
#[derive(Debug)]
pub struct Keys {
    /// The bytes.
    pub rows: KeyBytes,
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
        let encoded = self.converter.convert_columns(columns)?;
        let rows = KeyBytes::of((0..encoded.num_rows()).map(|row| encoded.row(row).data()));
        let buckets = match self.rising {
            Some(index) => {
                let ticks = ticks(&columns[index])?;
                if arrow::array::Array::null_count(&ticks) > 0 {
                    return Err(Error::internal("a key that rises with event time is NULL"));
                }
                ticks.values().to_vec()
            }
            None => vec![TIMELESS; encoded.num_rows()],
        };
        Ok(Keys { rows, buckets })
    }

    /// The columns of keys that were encoded by this codec.
    pub fn decode<'a>(&self, keys: impl IntoIterator<Item = &'a [u8]>) -> Result<Vec<ArrayRef>> {
        let parser = self.converter.parser();
        let columns = self.converter.convert_rows(keys.into_iter().map(|key| parser.parse(key)))?;
        // What was a dictionary comes back as its values.
        let typed = |(column, to): (ArrayRef, &DataType)| match column.data_type() == to {
            true => Ok(column),
            false => Ok(cast(&column, to)?),
        };
        columns.into_iter().zip(&self.types).map(typed).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_what_they_were_made_of_whether_of_one_length_or_not() {
        let cases: [&[&[u8]]; 5] = [&[], &[b"abc"], &[b"abc", b"def", b"ghi"], &[b"", b"ab", b"", b"c"], &[b"", b""]];
        for case in cases {
            let keys = KeyBytes::of(case.iter().copied());
            assert_eq!(keys.rows(), case.len());
            assert!(keys.iter().eq(case.iter().copied()), "{keys:?}");
            let is_even = case.iter().all(|key| key.len() == case[0].len());
            let ends = if is_even { 0 } else { size_of::<usize>() * case.len() };
            assert_eq!(keys.bytes(), case.concat().len() + ends);
        }
    }
}

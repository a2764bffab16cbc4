//! The values of one column: each a hash of seed, column and row number, or a step of a sequence.
//!
//! Whatever counts (integers, decimals, dates, timestamps) is drawn as an `i128` of the type's own units, so that a range
//! is one rule for all of them; floats and text have their own.
//!
//! What it does not promise: perfect uniformity. A range that does not divide 2^64 favours some values by less than one
//! in 2^64 / range. The hash is pinned by a test: another one would be another stream.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BinaryArray, BinaryBuilder, BooleanArray, Decimal128Array, Float64Array, Int64Array,
    StringViewArray, StringViewBuilder, UInt32Array, UInt64Array,
};
use arrow::compute::{cast, nullif, take};
use arrow::datatypes::DataType;
use twox_hash::XxHash64;

use crate::error::Result;

/// A column that can be made for any rows.
#[derive(Debug)]
pub(super) struct Column {
    data_type: DataType,
    values: Values,
    draw: Draw,
    /// Decides which rows are NULL, and how likely that is.
    nulls: Option<(Draw, f64)>,
}

/// How a column's values come about.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Values {
    /// `start`, `start + step`, and so on.
    Rising { start: i128, step: i128 },
    /// One of `min..=max`.
    Within { min: i128, max: i128 },
    /// A float from `min` up to `max`.
    Floats { min: f64, max: f64 },
    /// True or false.
    Booleans,
    /// So many letters from a to z.
    Letters(usize),
    /// So many bytes.
    Bytes(usize),
    /// One of these.
    Words(Vec<String>),
}

impl Column {
    /// The column `name`; `null_rate` is between 0 and 1.
    pub(super) fn new(seed: u64, name: &str, data_type: DataType, values: Values, null_rate: f64) -> Self {
        let draw = Draw::new(seed, name);
        let nulls = (null_rate > 0.0).then(|| (draw.sibling(), null_rate));
        Self { data_type, values, draw, nulls }
    }

    /// Its values in these rows.
    pub(super) fn values(&self, rows: Range<u64>) -> Result<ArrayRef> {
        let values = self.made(rows.clone())?;
        match self.nulls {
            Some((draw, rate)) => {
                Ok(nullif(&values, &rows.map(|i| Some(draw.unit(i) < rate)).collect::<BooleanArray>())?)
            }
            None => Ok(values),
        }
    }

    fn made(&self, rows: Range<u64>) -> Result<ArrayRef> {
        let draw = self.draw;
        match &self.values {
            &Values::Rising { start, step } => {
                self.counted(rows.map(|i| start.wrapping_add(step.wrapping_mul(i.into()))))
            }
            &Values::Within { min, max } => {
                let width = (max.wrapping_sub(min) as u128) + 1;
                self.counted(rows.map(|i| min.wrapping_add(draw.below(i, width) as i128)))
            }
            &Values::Floats { min, max } => {
                let between = |unit: f64| min * (1.0 - unit) + max * unit;
                self.typed(&Float64Array::from_iter_values(rows.map(|i| between(draw.unit(i)).clamp(min, max))))
            }
            Values::Booleans => Ok(Arc::new(rows.map(|i| Some(draw.bits(i) >> 63 == 1)).collect::<BooleanArray>())),
            &Values::Letters(length) => self.typed(&letters(draw, rows, length)),
            &Values::Bytes(length) => self.typed(&bytes(draw, rows, length)),
            Values::Words(words) => {
                let chosen = UInt32Array::from_iter_values(rows.map(|i| draw.below(i, words.len() as u128) as u32));
                self.typed(&take(&StringViewArray::from_iter_values(words), &chosen, None)?)
            }
        }
    }

    /// Units as an array of the column's type; all of them are within the type.
    fn counted(&self, units: impl Iterator<Item = i128>) -> Result<ArrayRef> {
        match self.data_type {
            DataType::Decimal128(precision, scale) => {
                Ok(Arc::new(Decimal128Array::from_iter_values(units).with_precision_and_scale(precision, scale)?))
            }
            DataType::UInt64 => Ok(Arc::new(UInt64Array::from_iter_values(units.map(|unit| unit as u64)))),
            _ => self.typed(&Int64Array::from_iter_values(units.map(|unit| unit as i64))),
        }
    }

    fn typed(&self, array: &dyn Array) -> Result<ArrayRef> {
        Ok(cast(array, &self.data_type)?)
    }
}

fn letters(draw: Draw, rows: Range<u64>, length: usize) -> StringViewArray {
    const PER_WORD: usize = 12; // 26^12 is below 2^64
    let mut array = StringViewBuilder::with_capacity((rows.end - rows.start) as usize);
    let mut text = String::with_capacity(length);
    for row in rows {
        text.clear();
        for (k, mut word) in draw.words(row).take(length.div_ceil(PER_WORD)).enumerate() {
            for _ in 0..PER_WORD.min(length - k * PER_WORD) {
                text.push(char::from(b'a' + (word % 26) as u8));
                word /= 26;
            }
        }
        array.append_value(&text);
    }
    array.finish()
}

fn bytes(draw: Draw, rows: Range<u64>, length: usize) -> BinaryArray {
    let count = (rows.end - rows.start) as usize;
    let mut array = BinaryBuilder::with_capacity(count, count * length);
    let mut value = Vec::with_capacity(length + 8);
    for row in rows {
        value.clear();
        draw.words(row).take(length.div_ceil(8)).for_each(|word| value.extend_from_slice(&word.to_le_bytes()));
        array.append_value(&value[..length]);
    }
    array.finish()
}

/// Random bits by row number: SplitMix64's mixer over the row, keyed by seed and column.
#[derive(Debug, Clone, Copy)]
struct Draw(u64);

impl Draw {
    fn new(seed: u64, name: &str) -> Self {
        Self(XxHash64::oneshot(seed, name.as_bytes()))
    }

    /// Draws that have nothing to do with these.
    fn sibling(self) -> Self {
        Self(mix(!self.0))
    }

    fn bits(self, row: u64) -> u64 {
        mix(self.0 ^ mix(row))
    }

    /// As many words for one row as are wanted.
    fn words(self, row: u64) -> impl Iterator<Item = u64> {
        std::iter::successors(Some(self.bits(row)), |word| Some(mix(*word)))
    }

    /// At least 0, less than 1.
    fn unit(self, row: u64) -> f64 {
        (self.bits(row) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// One of `0..width`.
    fn below(self, row: u64, width: u128) -> u128 {
        let bits = self.bits(row);
        if width <= 1 << 64 {
            (u128::from(bits) * width) >> 64
        } else {
            ((u128::from(mix(bits)) << 64) | u128::from(bits)) % width
        }
    }
}

fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

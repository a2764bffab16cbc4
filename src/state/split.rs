//! Byte stream split: the values of a column of fixed width, with the first byte of each first, then all second ones, and
//! so on.
//!
//! The idea: most numbers differ from each other in a few bytes only. Side by side, the others are long stretches that a
//! compression takes in one step, where it would else find something for every value: it is several times faster, and what
//! it writes is smaller. (Parquet has an encoding of this name, that does the same.)
//!
//! Guarantee: [`joined`] undoes [`split`], NULLs included. Not promised: anything for texts, booleans and nested columns,
//! which stay as they are.

use arrow::array::{Array, ArrayRef, make_array};
use arrow::buffer::{Buffer, MutableBuffer};
use arrow::datatypes::{DataType, IntervalUnit};

use crate::error::Result;

/// A column whose values are split.
pub fn split(column: &ArrayRef) -> Result<ArrayRef> {
    reordered(column, Order::Split)
}

/// The column whose values were split.
pub fn joined(column: &ArrayRef) -> Result<ArrayRef> {
    reordered(column, Order::Joined)
}

/// Whether columns of this type are split.
pub fn is_split(data_type: &DataType) -> bool {
    split_width(data_type).is_some()
}

/// How the bytes of values are to lie.
#[derive(Debug, Clone, Copy)]
enum Order {
    Split,
    Joined,
}

/// The width of the values of a column that is split, in bytes. It is part of the files' version 2: a type more wants
/// another one.
fn split_width(data_type: &DataType) -> Option<usize> {
    match data_type {
        DataType::Int16 | DataType::UInt16 | DataType::Float16 => Some(2),
        DataType::Int32 | DataType::UInt32 | DataType::Float32 | DataType::Date32 | DataType::Time32(_) => Some(4),
        DataType::Int64 | DataType::UInt64 | DataType::Float64 | DataType::Date64 | DataType::Time64(_) => Some(8),
        DataType::Timestamp(..) | DataType::Duration(_) | DataType::Decimal64(..) => Some(8),
        DataType::Decimal32(..) | DataType::Interval(IntervalUnit::YearMonth) => Some(4),
        DataType::Interval(IntervalUnit::DayTime) => Some(8),
        DataType::Decimal128(..) | DataType::Interval(IntervalUnit::MonthDayNano) => Some(16),
        DataType::Decimal256(..) => Some(32),
        _ => None,
    }
}

/// A column of the same type and NULLs, with the bytes of its values in this order.
fn reordered(column: &ArrayRef, order: Order) -> Result<ArrayRef> {
    let Some(width) = split_width(column.data_type()).filter(|_| !column.is_empty()) else {
        return Ok(ArrayRef::clone(column));
    };
    let data = column.to_data();
    let bytes = data.len() * width;
    let from = data.buffers()[0].slice_with_length(data.offset() * width, bytes);
    let mut to = MutableBuffer::from_len_zeroed(bytes);
    match width {
        2 => reorder::<2>(&from, &mut to, order),
        4 => reorder::<4>(&from, &mut to, order),
        8 => reorder::<8>(&from, &mut to, order),
        16 => reorder::<16>(&from, &mut to, order),
        _ => reorder::<32>(&from, &mut to, order),
    }
    let reordered = data.into_builder().offset(0).nulls(column.nulls().cloned()).buffers(vec![Buffer::from(to)]);
    Ok(make_array(reordered.build()?))
}

fn reorder<const WIDTH: usize>(from: &[u8], to: &mut [u8], order: Order) {
    let rows = from.len() / WIDTH;
    match order {
        Order::Split => {
            let values = from.as_chunks::<WIDTH>().0;
            for (byte, plane) in to.chunks_exact_mut(rows).enumerate() {
                plane.iter_mut().zip(values).for_each(|(to, value)| *to = value[byte]);
            }
        }
        Order::Joined => {
            let values = to.as_chunks_mut::<WIDTH>().0;
            for (byte, plane) in from.chunks_exact(rows).enumerate() {
                values.iter_mut().zip(plane).for_each(|(value, from)| value[byte] = *from);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{
        Decimal128Array, Decimal256Array, Float64Array, Int8Array, Int16Array, Int32Array, Int64Array, StringViewArray,
    };
    use arrow::datatypes::{TimeUnit, i256};

    use super::*;

    #[test]
    fn what_is_split_is_joined_again_whatever_its_type_and_wherever_it_begins() {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int8Array::from(vec![Some(1), None, Some(-3), Some(4)])),
            Arc::new(Int16Array::from(vec![Some(1), None, Some(-3), Some(4)])),
            Arc::new(Int32Array::from(vec![Some(1), None, Some(-3), Some(4)])),
            Arc::new(Int64Array::from(vec![1, i64::MIN, -3, i64::MAX])),
            Arc::new(Float64Array::from(vec![Some(-0.0), None, Some(f64::INFINITY), Some(4.5)])),
            Arc::new(Decimal128Array::from(vec![Some(1), None, Some(i128::MIN), Some(4)])),
            Arc::new(Decimal256Array::from(vec![Some(i256::MAX), None, Some(i256::MIN), Some(i256::ONE)])),
            Arc::new(StringViewArray::from(vec![Some("a"), None, Some("a text of more than twelve bytes"), Some("")])),
        ];
        for column in columns {
            for (from, len) in [(0, 4), (1, 3), (2, 1), (4, 0)] {
                let part = column.slice(from, len);
                let split = split(&part).unwrap();
                assert_eq!((split.data_type(), split.null_count()), (part.data_type(), part.null_count()));
                assert_eq!(&joined(&split).unwrap(), &part);
            }
        }
    }

    /// What is read is of the width that it was written with, and no type that has one is forgotten.
    #[test]
    fn widths_are_those_of_the_types() {
        let interval = |unit| DataType::Interval(unit);
        let types = [
            DataType::Int16,
            DataType::UInt16,
            DataType::Float16,
            DataType::Int32,
            DataType::UInt32,
            DataType::Float32,
            DataType::Int64,
            DataType::UInt64,
            DataType::Float64,
            DataType::Date32,
            DataType::Date64,
            DataType::Time32(TimeUnit::Second),
            DataType::Time64(TimeUnit::Nanosecond),
            DataType::Timestamp(TimeUnit::Millisecond, None),
            DataType::Duration(TimeUnit::Second),
            interval(IntervalUnit::YearMonth),
            interval(IntervalUnit::DayTime),
            interval(IntervalUnit::MonthDayNano),
            DataType::Decimal32(5, 2),
            DataType::Decimal64(5, 2),
            DataType::Decimal128(5, 2),
            DataType::Decimal256(5, 2),
        ];
        for data_type in types {
            assert_eq!(split_width(&data_type), data_type.primitive_width(), "{data_type}");
        }
    }

    #[test]
    fn bytes_of_one_place_lie_side_by_side() {
        let column: ArrayRef = Arc::new(Int32Array::from(vec![0x0403_0201, 0x1413_1211, 0x2423_2221]));
        let split = split(&column).unwrap().to_data();
        assert_eq!(split.buffers()[0].as_slice(), [1, 0x11, 0x21, 2, 0x12, 0x22, 3, 0x13, 0x23, 4, 0x14, 0x24]);
    }
}

//! Texts as values, where json and csv read them alike: BYTES and DECIMAL.
//!
//! DECIMAL is not left to Arrow's parsers: these count digits in a byte, divide by powers that have overflown, and go
//! as deep as a number is long. So one message could become another number, or end the process.
//!
//! Guarantee: a text is its value, rounded half up to the scale, or it is none; in time that grows with its length.
//!
//! Not promised: numbers with an exponent that does not fit 16 bits, which are none.

use std::iter::repeat;
use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, PrimitiveArray};
use arrow::datatypes::{ArrowNativeType, ArrowNativeTypeOp, DataType, Decimal128Type, Decimal256Type, DecimalType};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::error::Result;
use crate::sql::types::sql_type;

/// Texts as a column of BYTES, which are base64, or of DECIMAL; NULL for those that are none. Nothing for other types.
pub(super) fn values<'a>(
    texts: impl Iterator<Item = Option<&'a str>>,
    data_type: &DataType,
) -> Result<Option<ArrayRef>> {
    let column: ArrayRef = match data_type {
        DataType::Binary => Arc::new(texts.map(|text| BASE64_STANDARD.decode(text?).ok()).collect::<BinaryArray>()),
        DataType::Decimal128(precision, scale) => decimals::<Decimal128Type>(texts, *precision, *scale)?,
        DataType::Decimal256(precision, scale) => decimals::<Decimal256Type>(texts, *precision, *scale)?,
        _ => return Ok(None),
    };
    Ok(Some(column))
}

/// What is wrong with a text that is no value of this type, with no more of it than a glance.
pub(crate) fn misfit(text: &str, data_type: &DataType) -> String {
    let shown: String = text.chars().take(100).collect();
    format!("'{shown}' cannot be {}", sql_type(data_type))
}

fn decimals<'a, T: DecimalType>(
    texts: impl Iterator<Item = Option<&'a str>>,
    precision: u8,
    scale: i8,
) -> Result<ArrayRef> {
    let values: PrimitiveArray<T> = texts.map(|text| decimal::<T>(text?, precision, scale)).collect();
    Ok(Arc::new(values.with_precision_and_scale(precision, scale)?))
}

/// The number that this text is, if it is one and fits: digits with or without sign, point and exponent.
fn decimal<T: DecimalType>(text: &str, precision: u8, scale: i8) -> Option<T::Native> {
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i16>().ok()?),
        None => (text, 0),
    };
    let unsigned = mantissa.strip_prefix(['-', '+']).unwrap_or(mantissa);
    let (integer, fraction) = unsigned.split_once('.').unwrap_or((unsigned, ""));
    let digits = integer.bytes().chain(fraction.bytes());
    if integer.len() + fraction.len() == 0 || !digits.clone().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    // How many digits count; the next one rounds.
    let count = integer.len() as i64 + i64::from(exponent) + i64::from(scale);
    let Ok(count) = usize::try_from(count) else { return Some(T::Native::ZERO) };
    let mut digits = digits.chain(repeat(b'0')).map(|digit| T::Native::usize_as(usize::from(digit - b'0')));
    let (ten, five) = (T::Native::usize_as(10), T::Native::usize_as(5));
    let mut value = T::Native::ZERO;
    for digit in digits.by_ref().take(count) {
        value = value.mul_checked(ten).ok()?.add_checked(digit).ok()?;
    }
    if digits.next().is_some_and(|digit| digit >= five) {
        value = value.add_checked(T::Native::ONE).ok()?;
    }
    if mantissa.starts_with('-') {
        value = value.neg_wrapping();
    }
    T::is_valid_decimal_precision(value, precision).then_some(value)
}

#[cfg(test)]
mod tests {
    use arrow::array::{Array, AsArray};

    use super::*;

    /// The text as DECIMAL(5, 2).
    fn shown(text: &str) -> Option<String> {
        decimal::<Decimal128Type>(text, 5, 2).map(|value| Decimal128Type::format_decimal(value, 5, 2))
    }

    #[test]
    fn a_number_is_rounded_half_up() {
        for (text, expected) in [
            ("7", "7.00"),
            ("+7.", "7.00"),
            (".5", "0.50"),
            ("-0", "0.00"),
            ("0.994", "0.99"),
            ("1.005", "1.01"),
            ("-1.005", "-1.01"),
            ("999.994", "999.99"),
            ("1e2", "100.00"),
            ("1.5E+2", "150.00"),
            ("12345e-2", "123.45"),
            ("0.00001e5", "1.00"),
            ("6e-3", "0.01"),
            ("4e-3", "0.00"),
            ("4e-9", "0.00"),
            ("0e9999", "0.00"),
        ] {
            assert_eq!(shown(text).as_deref(), Some(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_number_or_does_not_fit_is_none() {
        for text in [
            "", "-", ".", "e5", "1e", "--1", "1.2.3", "1 ", " 1", "1_0", "0x1", "NaN", "1e5.0", "1e2e2", "true", "١",
            "1000", "-1000", "999.995", "1e3", "1e99999", "1e-99999",
        ] {
            assert_eq!(shown(text), None, "{text}");
        }
    }

    /// Arrow's parsers count them in a byte, divide by zero, or run out of stack.
    #[test]
    fn numbers_may_be_as_long_as_they_like() {
        for length in [38, 39, 76, 77, 128, 130, 250, 256, 300, 1_000_000] {
            let zeros = "0".repeat(length);
            assert_eq!(shown(&format!("1.{zeros}e0")).as_deref(), Some("1.00"), "{length}");
            assert_eq!(shown(&format!("1.{zeros}1")).as_deref(), Some("1.00"), "{length}");
            assert_eq!(shown(&format!("{zeros}1")).as_deref(), Some("1.00"), "{length}");
            assert_eq!(shown(&format!("1{zeros}")), None, "{length}");
            assert_eq!(shown(&"9".repeat(length)), None, "{length}");
        }
        let all = "9".repeat(76);
        assert_eq!(decimal::<Decimal256Type>(&all, 76, 0).map(|value| value.to_string()), Some(all));
        assert_eq!(decimal::<Decimal128Type>(&"9".repeat(38), 38, 0), Some(10i128.pow(38) - 1));
    }

    #[test]
    fn only_bytes_and_decimals_are_texts() {
        let column = values([Some("AQI="), Some("!"), None].into_iter(), &DataType::Binary).unwrap().unwrap();
        assert_eq!(column.as_binary::<i32>(), &BinaryArray::from(vec![Some(&[1u8, 2][..]), None, None]));
        let column = values([Some("1.5"), Some("x")].into_iter(), &DataType::Decimal128(5, 2)).unwrap().unwrap();
        assert_eq!((column.data_type(), column.null_count()), (&DataType::Decimal128(5, 2), 1));
        assert!(values([Some("1")].into_iter(), &DataType::Int64).unwrap().is_none());
        assert_eq!(misfit(&"x".repeat(200), &DataType::Binary), format!("'{}' cannot be BYTES", "x".repeat(100)));
    }
}

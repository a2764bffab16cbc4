//! Digits and hashes: `hex`, `unhex`, `bin`, `sha1`, `sha2`, and `sha224` to `sha512` as text.
//!
//! DataFusion computes the hashes, but gives bytes; Flink's are text of small hexadecimal digits, and so are these.
//! SHA-1, which DataFusion lacks, comes from the `sha1` crate; it is there for old data, not for anything secret.

use std::fmt::Write;
use std::sync::Arc;

use arrow::array::{Array, AsArray, BinaryBuilder};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Int64Type};
use datafusion::functions::crypto;
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF};
use sha1::{Digest, Sha1};

use super::function::{Call, Function, Param};
use super::types::type_name;
use crate::error::{Error, Result};

const SMALL: &[u8; 16] = b"0123456789abcdef";
const CAPITAL: &[u8; 16] = b"0123456789ABCDEF";

/// Everything about digits and hashes.
pub(super) fn functions() -> Vec<Function> {
    use Param::{Any, Bytes, Integer, Text};
    let mut functions = vec![
        Function::new("hex", &[Any], DataType::Utf8, hex).typed(|shape| match &shape.types[0] {
            DataType::Null => Ok(DataType::Utf8),
            given if given.is_integer() || given.is_string() || given.is_binary() => Ok(DataType::Utf8),
            other => Err(Error::usage(format!(
                "hex: argument 1 must be an integer, a string or bytes, not {}",
                type_name(other)
            ))),
        }),
        Function::new("unhex", &[Text], DataType::Binary, unhex),
        Function::new("bin", &[Integer], DataType::Utf8, bin),
        Function::new("sha1", &[Bytes], DataType::Utf8, sha1),
        Function::new("sha2", &[Bytes, Integer], DataType::Utf8, sha2).checked(|shape| {
            let bits = shape.number(1);
            bits.and_then(algorithm)
                .map(drop)
                .ok_or_else(|| Error::usage("sha2: argument 2 must be one of the literals 224, 256, 384 and 512"))
        }),
    ];
    let sized = [("sha224", 224), ("sha256", 256), ("sha384", 384), ("sha512", 512)];
    functions
        .extend(sized.map(|(name, bits)| Function::new(name, &[Bytes], DataType::Utf8, move |call| sha(call, bits))));
    functions
}

fn algorithm(bits: i64) -> Option<Arc<ScalarUDF>> {
    match bits {
        224 => Some(crypto::sha224()),
        256 => Some(crypto::sha256()),
        384 => Some(crypto::sha384()),
        512 => Some(crypto::sha512()),
        _ => None,
    }
}

fn sha2(call: &Call<'_>) -> Result<ColumnarValue> {
    sha(call, call.integer(1)?.at(0).unwrap_or(0))
}

fn sha1(call: &Call<'_>) -> Result<ColumnarValue> {
    let given = call.array(0);
    let text = if given.data_type().is_string() { cast(given, &DataType::Utf8)? } else { Arc::clone(given) };
    let bytes = cast(&text, &DataType::Binary)?;
    let (bytes, step) = (bytes.as_binary::<i32>(), call.step(0));
    call.strings(|row, out| {
        let at = row * step;
        Ok(bytes.is_valid(at).then(|| push_digits(&Sha1::digest(bytes.value(at)), SMALL, out)))
    })
}

/// DataFusion's hash of the first argument, in digits.
fn sha(call: &Call<'_>, bits: i64) -> Result<ColumnarValue> {
    let unknown = || Error::internal(format!("{}: no hash has {bits} bits", call.name));
    let (array, field) = (call.array(0), |data_type: &DataType| Arc::new(Field::new("", data_type.clone(), true)));
    let hashes = algorithm(bits).ok_or_else(unknown)?.invoke_with_args(ScalarFunctionArgs {
        args: vec![ColumnarValue::Array(Arc::clone(array))],
        arg_fields: vec![field(array.data_type())],
        number_rows: array.len(),
        return_field: field(&DataType::Binary),
        config_options: Arc::clone(call.config),
    })?;
    let hashes = hashes.into_array(array.len())?;
    let (hashes, step) = (hashes.as_binary::<i32>(), call.step(0));
    call.strings(|row, out| {
        let at = row * step;
        Ok(hashes.is_valid(at).then(|| push_digits(hashes.value(at), SMALL, out)))
    })
}

fn push_digits(bytes: &[u8], digits: &[u8; 16], out: &mut String) {
    for byte in bytes {
        out.push(char::from(digits[usize::from(byte >> 4)]));
        out.push(char::from(digits[usize::from(byte & 15)]));
    }
}

fn hex(call: &Call<'_>) -> Result<ColumnarValue> {
    let array = call.array(0);
    if array.data_type().is_integer() || array.data_type().is_null() {
        let numbers = arrow::compute::cast(array, &DataType::Int64)?;
        let (numbers, step) = (numbers.as_primitive::<Int64Type>(), call.step(0));
        return call.strings(|row, out| {
            let number = numbers.is_valid(row * step).then(|| numbers.value(row * step));
            Ok(number.and_then(|number| write!(out, "{number:X}").ok()))
        });
    }
    let bytes = call.bytes(0)?;
    call.strings(|row, out| Ok(bytes.at(row).map(|bytes| push_digits(bytes, CAPITAL, out))))
}

fn unhex(call: &Call<'_>) -> Result<ColumnarValue> {
    let text = call.text(0)?;
    let mut builder = BinaryBuilder::with_capacity(call.rows(), call.rows() * 8);
    let mut bytes = Vec::new();
    for row in 0..call.rows() {
        bytes.clear();
        let read = text.at(row).and_then(|text| parse_digits(text, &mut bytes));
        builder.append_option(read.map(|()| bytes.as_slice()));
    }
    call.finish(Arc::new(builder.finish()))
}

/// Writes the bytes that hexadecimal digits stand for, the first one alone if they are odd; none if one is no digit.
fn parse_digits(text: &str, out: &mut Vec<u8>) -> Option<()> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (first, pairs) = text.as_bytes().split_at(text.len() % 2);
    for byte in first {
        out.push(digit(*byte)?);
    }
    for pair in pairs.chunks_exact(2) {
        out.push(digit(pair[0])? << 4 | digit(pair[1])?);
    }
    Some(())
}

fn bin(call: &Call<'_>) -> Result<ColumnarValue> {
    let numbers = call.integer(0)?;
    call.strings(|row, out| Ok(numbers.at(row).and_then(|number| write!(out, "{number:b}").ok())))
}

//! Strings: `locate`, `split_index`, `regexp`, `regexp_extract`, `str_to_map`.
//!
//! Limit: regular expressions are Rust's, which know neither look-around nor back references; such a one is refused.

use std::sync::Arc;

use arrow::array::{MapBuilder, MapFieldNames, StringBuilder};
use arrow::datatypes::{DataType, Field, Int32Type};
use datafusion::logical_expr::ColumnarValue;
use regex::Regex;

use super::function::{Call, Function, Param};
use super::memo::{Compiled, Memo};
use crate::error::{Error, Result};

static EXPRESSIONS: Memo<Regex> = Memo::new(compile);

/// Everything about strings.
pub(super) fn functions() -> Vec<Function> {
    use Param::{Integer, Text};
    vec![
        Function::new("locate", &[Text, Text, Integer], DataType::Int32, locate).optional(1),
        Function::new("split_index", &[Text, Text, Integer], DataType::Utf8, split_index),
        Function::new("regexp", &[Text, Text], DataType::Boolean, regexp)
            .checked(|shape| shape.compiles(1, &EXPRESSIONS)),
        Function::new("regexp_extract", &[Text, Text, Integer], DataType::Utf8, regexp_extract)
            .optional(1)
            .checked(|shape| shape.compiles(1, &EXPRESSIONS)),
        Function::new("str_to_map", &[Text, Text, Text], map_type(), str_to_map)
            .optional(2)
            .checked(|shape| shape.compiles(1, &EXPRESSIONS).and_then(|()| shape.compiles(2, &EXPRESSIONS))),
    ]
}

fn compile(text: &str) -> Result<Regex> {
    Regex::new(text).map_err(|error| Error::usage(format!("'{text}' is not a regular expression")).caused_by(error))
}

fn locate(call: &Call<'_>) -> Result<ColumnarValue> {
    let (needle, hay, start) = (call.text(0)?, call.text(1)?, call.integer_or(2, 1)?);
    call.numbers::<Int32Type>(|row| {
        let (Some(needle), Some(hay), Some(start)) = (needle.at(row), hay.at(row), start.at(row)) else {
            return Ok(None);
        };
        Ok(Some(position(needle, hay, start).and_then(|place| i32::try_from(place).ok()).unwrap_or(0)))
    })
}

/// Where the needle is found from `start` on; both count characters from 1.
fn position(needle: &str, hay: &str, start: i64) -> Option<usize> {
    let skipped = usize::try_from(start.checked_sub(1)?).ok()?;
    let from = if skipped == 0 { 0 } else { hay.char_indices().map(|(at, _)| at).chain([hay.len()]).nth(skipped)? };
    let found = from + hay[from..].find(needle)?;
    Some(hay[..found].chars().count() + 1)
}

fn split_index(call: &Call<'_>) -> Result<ColumnarValue> {
    let (text, separator, index) = (call.text(0)?, call.text(1)?, call.integer(2)?);
    call.strings(|row, out| {
        let (Some(text), Some(separator), Some(index)) = (text.at(row), separator.at(row), index.at(row)) else {
            return Ok(None);
        };
        let part = usize::try_from(index).ok().filter(|_| !separator.is_empty());
        Ok(part.and_then(|index| text.split(separator).nth(index)).map(|part| out.push_str(part)))
    })
}

fn regexp(call: &Call<'_>) -> Result<ColumnarValue> {
    let (text, mut expressions) = (call.text(0)?, call.compiled(1, &EXPRESSIONS)?);
    call.booleans(|row| Ok(text.at(row).zip(expressions.at(row)?).map(|(text, regex)| regex.is_match(text))))
}

fn regexp_extract(call: &Call<'_>) -> Result<ColumnarValue> {
    let (text, mut expressions, group) = (call.text(0)?, call.compiled(1, &EXPRESSIONS)?, call.integer_or(2, 0)?);
    call.strings(|row, out| {
        let (Some(text), Some(regex), Some(group)) = (text.at(row), expressions.at(row)?, group.at(row)) else {
            return Ok(None);
        };
        let found = match usize::try_from(group) {
            Ok(0) => regex.find(text),
            Ok(group) if group < regex.captures_len() => regex.captures(text).and_then(|all| all.get(group)),
            _ => None,
        };
        Ok(found.map(|found| out.push_str(found.as_str())))
    })
}

fn map_type() -> DataType {
    let key = Field::new("key", DataType::Utf8, false);
    let value = Field::new("value", DataType::Utf8, true);
    let entries = Field::new("entries", DataType::Struct(vec![key, value].into()), false);
    DataType::Map(Arc::new(entries), false)
}

/// Both delimiters are regular expressions, as in Flink; of two equal keys the last one holds.
fn str_to_map(call: &Call<'_>) -> Result<ColumnarValue> {
    let text = call.text(0)?;
    let mut between = Compiled::new(&EXPRESSIONS, call.text_or(1, ",")?);
    let mut within = Compiled::new(&EXPRESSIONS, call.text_or(2, "=")?);
    let names = MapFieldNames { entry: "entries".into(), key: "key".into(), value: "value".into() };
    let mut maps = MapBuilder::new(Some(names), StringBuilder::new(), StringBuilder::new());
    let mut entries: Vec<(&str, Option<&str>)> = Vec::new();
    for row in 0..call.rows() {
        let (Some(text), Some(between), Some(within)) = (text.at(row), between.at(row)?, within.at(row)?) else {
            maps.append(false)?;
            continue;
        };
        entries.clear();
        for part in between.split(text).filter(|part| !part.is_empty()) {
            let mut halves = within.splitn(part, 2);
            let (key, value) = (halves.next().unwrap_or(part), halves.next());
            match entries.iter_mut().find(|(known, _)| *known == key) {
                Some(entry) => entry.1 = value,
                None => entries.push((key, value)),
            }
        }
        for (key, value) in &entries {
            maps.keys().append_value(key);
            maps.values().append_option(*value);
        }
        maps.append(true)?;
    }
    call.finish(Arc::new(maps.finish()))
}

//! Dates and text: `date_format`, `to_timestamp`, `to_date`, `unix_timestamp`, `from_unixtime`, `to_timestamp_ltz`,
//! `convert_tz`, with Java's patterns.
//!
//! DataFusion has the first three with chrono's patterns: a call with a literal pattern of those (a `%` in it), or
//! without a pattern, stays DataFusion's. Text that does not fit its pattern is NULL, as in Flink.
//!
//! Limits: the session's zone is UTC; `to_timestamp(s, p)` is TIMESTAMP(6), where Flink's is TIMESTAMP(3);
//! `unix_timestamp` of text that does not fit is NULL, where Flink's is the least BIGINT; `unix_timestamp()` reads a
//! clock and is not here.

use arrow::array::timezone::Tz;
use arrow::datatypes::{DataType, Date32Type, Int64Type, TimeUnit, TimestampMillisecondType};
use chrono::{DateTime, NaiveDateTime, TimeDelta, TimeZone};
use datafusion::logical_expr::ColumnarValue;

use super::function::{Call, Function, Param, Shape, Text};
use super::memo::{Compiled, Memo};
use super::moment::{Moments, moments, out_of_range};
use super::pattern::{PATTERNS, Pattern};
use crate::error::{Error, Result};

/// The pattern of Flink's functions where none is given.
const DEFAULT_PATTERN: &str = "yyyy-MM-dd HH:mm:ss";

/// The zones in use.
static ZONES: Memo<Tz> = Memo::new(parse_zone);

/// The functions that DataFusion does not have.
pub(super) fn functions() -> Vec<Function> {
    use Param::{Integer, Text};
    let pattern_fits = |shape: &Shape<'_>| shape.compiles(1, &PATTERNS);
    vec![
        Function::new("unix_timestamp", &[Text, Text], DataType::Int64, unix_timestamp)
            .optional(1)
            .checked(pattern_fits),
        Function::new("from_unixtime", &[Integer, Text], DataType::Utf8, from_unixtime)
            .optional(1)
            .checked(pattern_fits),
        Function::new("to_timestamp_ltz", &[Integer, Integer], ltz(), to_timestamp_ltz)
            .optional(1)
            .checked(|shape| shape.number(1).map_or(Ok(()), |precision| ltz_scale(precision).map(drop))),
        Function::new("convert_tz", &[Text, Text, Text], DataType::Utf8, convert_tz)
            .checked(|shape| shape.compiles(1, &ZONES).and_then(|()| shape.compiles(2, &ZONES))),
    ]
}

/// The functions that DataFusion has as well, each before the one it stands in for.
pub(super) fn patterned() -> Vec<Function> {
    use Param::{Moment, Text};
    let stamp = DataType::Timestamp(TimeUnit::Microsecond, None);
    let pattern_fits = |shape: &Shape<'_>| shape.compiles(1, &PATTERNS);
    vec![
        Function::new("date_format", &[Moment, Text], DataType::Utf8, date_format).checked(pattern_fits),
        Function::new("to_timestamp", &[Text, Text], stamp, to_timestamp).checked(pattern_fits),
        Function::new("to_date", &[Text, Text], DataType::Date32, to_date).checked(pattern_fits),
    ]
}

fn date_format(call: &Call<'_>) -> Result<ColumnarValue> {
    let moments = Moments::of(call, 0)?;
    let mut patterns = call.compiled(1, &PATTERNS)?;
    call.strings(|row, out| match (moments.local(row), patterns.at(row)?) {
        (Some(moment), Some(pattern)) => pattern.format(moment, out).map(Some),
        _ => Ok(None),
    })
}

fn to_timestamp(call: &Call<'_>) -> Result<ColumnarValue> {
    let mut reader = Reader::of(call)?;
    moments(call, |row| reader.at(row))
}

fn to_date(call: &Call<'_>) -> Result<ColumnarValue> {
    let mut reader = Reader::of(call)?;
    call.numbers::<Date32Type>(|row| {
        let moment = reader.at(row)?;
        Ok(moment.map(|moment| Date32Type::from_naive_date(moment.date())))
    })
}

fn unix_timestamp(call: &Call<'_>) -> Result<ColumnarValue> {
    let mut reader = Reader::of(call)?;
    call.numbers::<Int64Type>(|row| Ok(reader.at(row)?.map(|moment| moment.and_utc().timestamp())))
}

fn from_unixtime(call: &Call<'_>) -> Result<ColumnarValue> {
    let seconds = call.integer(0)?;
    let mut patterns = Compiled::new(&PATTERNS, call.text_or(1, DEFAULT_PATTERN)?);
    call.strings(|row, out| match (seconds.at(row), patterns.at(row)?) {
        (Some(seconds), Some(pattern)) => {
            let moment = DateTime::from_timestamp(seconds, 0).ok_or_else(|| out_of_range(call.name))?;
            pattern.format(moment.naive_utc(), out).map(Some)
        }
        _ => Ok(None),
    })
}

/// Reads a call's first argument with its second one's pattern.
struct Reader<'a> {
    text: Text<'a>,
    patterns: Compiled<'a, Pattern>,
}

impl<'a> Reader<'a> {
    fn of(call: &'a Call<'_>) -> Result<Self> {
        let patterns = Compiled::new(&PATTERNS, call.text_or(1, DEFAULT_PATTERN)?);
        Ok(Self { text: call.text(0)?, patterns })
    }

    fn at(&mut self, row: usize) -> Result<Option<NaiveDateTime>> {
        Ok(match (self.text.at(row), self.patterns.at(row)?) {
            (Some(text), Some(pattern)) => pattern.parse(text),
            _ => None,
        })
    }
}

fn ltz() -> DataType {
    DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()))
}

fn ltz_scale(precision: i64) -> Result<i64> {
    match precision {
        0 => Ok(1000),
        3 => Ok(1),
        other => Err(Error::usage(format!(
            "to_timestamp_ltz: the precision is 0, for seconds, or 3, for milliseconds, not {other}"
        ))),
    }
}

fn to_timestamp_ltz(call: &Call<'_>) -> Result<ColumnarValue> {
    let (numbers, precisions) = (call.integer(0)?, call.integer_or(1, 3)?);
    call.numbers::<TimestampMillisecondType>(|row| match (numbers.at(row), precisions.at(row)) {
        (Some(number), Some(precision)) => {
            number.checked_mul(ltz_scale(precision)?).map(Some).ok_or_else(|| out_of_range(call.name))
        }
        _ => Ok(None),
    })
}

/// A zone by name, `Asia/Shanghai`, or by offset: `+08:00`, `GMT+8`, `UTC-3:30`.
fn parse_zone(text: &str) -> Result<Tz> {
    let offset = text.strip_prefix("GMT").or_else(|| text.strip_prefix("UTC")).unwrap_or(text);
    let zone = match offset.chars().next() {
        None => "UTC".parse(),
        Some(sign @ ('+' | '-')) => {
            let (hours, minutes) = offset[1..].split_once(':').unwrap_or((&offset[1..], "00"));
            format!("{sign}{hours:0>2}:{minutes}").parse()
        }
        Some(_) => text.parse(),
    };
    zone.map_err(|_| Error::usage(format!("unknown time zone '{text}'; write Asia/Shanghai, UTC or +08:00")))
}

fn convert_tz(call: &Call<'_>) -> Result<ColumnarValue> {
    let text = call.text(0)?;
    let pattern = PATTERNS.get(DEFAULT_PATTERN)?;
    let (mut from, mut to) = (call.compiled(1, &ZONES)?, call.compiled(2, &ZONES)?);
    call.strings(|row, out| {
        let (Some(text), Some(from), Some(to)) = (text.at(row), from.at(row)?, to.at(row)?) else { return Ok(None) };
        match pattern.parse(text).and_then(|local| resolve(from, local)) {
            Some(moment) => pattern.format(moment.with_timezone(to).naive_local(), out).map(Some),
            None => Ok(None),
        }
    })
}

/// A moment from the clocks of a zone: the first of two, and an hour on where clocks were put forward.
fn resolve(zone: &Tz, local: NaiveDateTime) -> Option<DateTime<Tz>> {
    let hour = TimeDelta::hours(1);
    let skipped = || zone.from_local_datetime(&(local - hour)).earliest().map(|moment| moment + hour);
    zone.from_local_datetime(&local).earliest().or_else(skipped)
}

//! The calendar: `year` … `second`, `timestampadd`, `timestampdiff`, and `date_ceil`, which `CEIL(x TO unit)` becomes.
//!
//! Weeks begin on Monday and are ISO's; `dayofweek` counts from Sunday, 1. Limits: `FLOOR(x TO unit)` and `CEIL` give a
//! TIMESTAMP of a DATE too (Flink: a DATE), and floor weeks to Monday (Flink: Sunday); arithmetic is UTC's.

use std::sync::Arc;

use arrow::array::AsArray;
use arrow::compute::{DatePart, date_part};
use arrow::datatypes::{DataType, Int32Type, Int64Type, TimeUnit};
use chrono::{Datelike, Days, Months, NaiveDate, NaiveDateTime, TimeDelta, Timelike};
use datafusion::logical_expr::ColumnarValue;

use super::function::{Call, Function, Param};
use super::memo::Memo;
use super::moment::{Moments, moments, out_of_range};
use crate::error::{Error, Result};

static UNITS: Memo<Unit> = Memo::new(Unit::parse);

/// Everything about the calendar.
pub(super) fn functions() -> Vec<Function> {
    use Param::{Integer, Moment, Text};
    let mut functions = vec![
        Function::new("timestampadd", &[Text, Integer, Moment], DataType::Null, timestampadd)
            .typed(|shape| Ok(shape.constant(0, &UNITS)?.sum_type(&shape.types[2]))),
        Function::new("timestampdiff", &[Text, Moment, Moment], DataType::Int64, timestampdiff)
            .checked(|shape| shape.constant(0, &UNITS).map(drop)),
        Function::new("date_ceil", &[Text, Moment], DataType::Null, date_ceil).typed(|shape| {
            shape.constant(0, &UNITS)?;
            Ok(match &shape.types[1] {
                DataType::Date32 => DataType::Timestamp(TimeUnit::Microsecond, None),
                stamp => stamp.clone(),
            })
        }),
    ];
    let parts = [
        ("year", DatePart::Year, 0),
        ("quarter", DatePart::Quarter, 0),
        ("month", DatePart::Month, 0),
        ("week", DatePart::Week, 0),
        ("dayofyear", DatePart::DayOfYear, 0),
        ("dayofmonth", DatePart::Day, 0),
        ("dayofweek", DatePart::DayOfWeekSunday0, 1),
        ("hour", DatePart::Hour, 0),
        ("minute", DatePart::Minute, 0),
        ("second", DatePart::Second, 0),
    ];
    functions.extend(parts.map(|(name, part, first)| {
        Function::new(name, &[Param::Clock], DataType::Int64, move |call| {
            let found = date_part(call.array(0), part)?;
            let found = found.as_primitive::<Int32Type>();
            call.finish(Arc::new(found.unary::<_, Int64Type>(|value| i64::from(value) + first)))
        })
    }));
    functions
}

/// A unit of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    /// So many months: a month, a quarter, a year.
    Months(u32),
    /// So many days: a day, a week.
    Days(u32),
    /// So many nanoseconds, a part of a day.
    Nanos(i64),
}

impl Unit {
    fn parse(text: &str) -> Result<Self> {
        let name = text.to_ascii_lowercase();
        let name = name.strip_prefix("sql_tsi_").unwrap_or(&name);
        Ok(match name.strip_suffix('s').unwrap_or(name) {
            "year" => Self::Months(12),
            "quarter" => Self::Months(3),
            "month" => Self::Months(1),
            "week" => Self::Days(7),
            "day" => Self::Days(1),
            "hour" => Self::Nanos(3_600_000_000_000),
            "minute" => Self::Nanos(60_000_000_000),
            "second" => Self::Nanos(1_000_000_000),
            "millisecond" => Self::Nanos(1_000_000),
            "microsecond" => Self::Nanos(1_000),
            "nanosecond" => Self::Nanos(1),
            _ => {
                return Err(Error::usage(format!(
                    "'{text}' is no unit of time; known are YEAR, QUARTER, MONTH, WEEK, DAY, HOUR, MINUTE, SECOND, \
                     MILLISECOND, MICROSECOND and NANOSECOND"
                )));
            }
        })
    }

    /// The type of a moment to which units are added: fine enough to hold the sum.
    fn sum_type(self, moment: &DataType) -> DataType {
        let finest = match self {
            Self::Nanos(nanos) if nanos < 1_000 => TimeUnit::Nanosecond,
            Self::Nanos(nanos) if nanos < 1_000_000 => TimeUnit::Microsecond,
            Self::Nanos(nanos) if nanos < 1_000_000_000 => TimeUnit::Millisecond,
            _ => TimeUnit::Second,
        };
        match (moment, self) {
            (DataType::Timestamp(unit, zone), _) => DataType::Timestamp((*unit).max(finest), zone.clone()),
            (_, Self::Nanos(_)) => DataType::Timestamp(finest, None),
            (date, _) => date.clone(),
        }
    }

    /// The moment `count` units on.
    fn add(self, moment: NaiveDateTime, count: i64) -> Option<NaiveDateTime> {
        match self {
            Self::Months(months) => add_months(moment, count.checked_mul(months.into())?),
            Self::Days(days) => moment.checked_add_signed(TimeDelta::try_days(count.checked_mul(days.into())?)?),
            Self::Nanos(nanos) => {
                let total = i128::from(count) * i128::from(nanos);
                let (seconds, rest) = (total.div_euclid(1_000_000_000), total.rem_euclid(1_000_000_000));
                moment.checked_add_signed(TimeDelta::new(seconds.try_into().ok()?, rest.try_into().ok()?)?)
            }
        }
    }

    /// The whole units from one moment to another.
    fn between(self, from: NaiveDateTime, to: NaiveDateTime) -> i64 {
        let passed = to - from;
        match self {
            Self::Months(months) => months_between(from, to) / i64::from(months),
            Self::Days(days) => passed.num_days() / i64::from(days),
            Self::Nanos(nanos) => {
                let total = i128::from(passed.num_seconds()) * 1_000_000_000 + i128::from(passed.subsec_nanos());
                i64::try_from(total / i128::from(nanos)).unwrap_or(i64::MAX)
            }
        }
    }

    /// The beginning of the unit that the moment is in.
    fn floor(self, moment: NaiveDateTime) -> Option<NaiveDateTime> {
        let date = moment.date();
        let day = match self {
            Self::Months(months) => NaiveDate::from_ymd_opt(date.year(), date.month0() / months * months + 1, 1)?,
            Self::Days(7) => date.checked_sub_days(Days::new(date.weekday().num_days_from_monday().into()))?,
            Self::Days(_) => date,
            Self::Nanos(nanos) => {
                let time = moment.time();
                let passed = i64::from(time.num_seconds_from_midnight()) * 1_000_000_000 + i64::from(time.nanosecond());
                return moment.checked_sub_signed(TimeDelta::nanoseconds(passed % nanos));
            }
        };
        day.and_hms_opt(0, 0, 0)
    }

    /// The moment itself if it begins a unit, else the beginning of the next one.
    fn ceil(self, moment: NaiveDateTime) -> Option<NaiveDateTime> {
        let floor = self.floor(moment)?;
        if floor == moment { Some(floor) } else { self.add(floor, 1) }
    }
}

/// The moment so many months on; the 31st becomes a shorter month's last day.
fn add_months(moment: NaiveDateTime, count: i64) -> Option<NaiveDateTime> {
    let months = Months::new(u32::try_from(count.unsigned_abs()).ok()?);
    if count < 0 { moment.checked_sub_months(months) } else { moment.checked_add_months(months) }
}

/// The whole months from one moment to another.
fn months_between(from: NaiveDateTime, to: NaiveDateTime) -> i64 {
    let months = |moment: NaiveDateTime| i64::from(moment.year()) * 12 + i64::from(moment.month0());
    let count = months(to) - months(from);
    match add_months(from, count) {
        Some(reached) if count > 0 && reached > to => count - 1,
        Some(reached) if count < 0 && reached < to => count + 1,
        _ => count,
    }
}

/// The call's first argument, a literal.
fn unit(call: &Call<'_>) -> Result<Unit> {
    match call.text(0)?.at(0) {
        Some(text) => Unit::parse(text),
        None => Err(Error::internal(format!("{}: the unit was planned as a literal", call.name))),
    }
}

fn timestampadd(call: &Call<'_>) -> Result<ColumnarValue> {
    let (unit, counts, stamps) = (unit(call)?, call.integer(1)?, Moments::of(call, 2)?);
    moments(call, |row| match (counts.at(row), stamps.utc(row)) {
        (Some(count), Some(moment)) => unit.add(moment, count).map(Some).ok_or_else(|| out_of_range(call.name)),
        _ => Ok(None),
    })
}

fn timestampdiff(call: &Call<'_>) -> Result<ColumnarValue> {
    let (unit, from, to) = (unit(call)?, Moments::of(call, 1)?, Moments::of(call, 2)?);
    call.numbers::<Int64Type>(|row| Ok(from.utc(row).zip(to.utc(row)).map(|(from, to)| unit.between(from, to))))
}

fn date_ceil(call: &Call<'_>) -> Result<ColumnarValue> {
    let (unit, stamps) = (unit(call)?, Moments::of(call, 1)?);
    moments(call, |row| match stamps.utc(row) {
        Some(moment) => unit.ceil(moment).map(Some).ok_or_else(|| out_of_range(call.name)),
        None => Ok(None),
    })
}

//! Arrow's timestamps, dates and times of day, row by row as chrono's, and back.

use std::sync::Arc;

use arrow::array::timezone::Tz;
use arrow::array::{Array, ArrayRef, AsArray, Int64Array, Int64Builder};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type, TimeUnit};
use chrono::{DateTime, NaiveDateTime, TimeZone};
use datafusion::logical_expr::ColumnarValue;

use super::function::Call;
use crate::error::{Error, Result};

/// An argument of timestamps, dates or times of day.
pub(super) struct Moments {
    ticks: Int64Array,
    step: usize,
    unit: TimeUnit,
    zone: Option<Tz>,
}

impl Moments {
    /// The call's argument at this place.
    pub(super) fn of(call: &Call<'_>, index: usize) -> Result<Self> {
        let array = call.array(index);
        let (array, unit, zone): (ArrayRef, _, _) = match array.data_type() {
            DataType::Timestamp(unit, zone) => (Arc::clone(array), *unit, zone.as_deref().map(str::parse).transpose()?),
            DataType::Date32 => (cast(array, &DataType::Timestamp(TimeUnit::Second, None))?, TimeUnit::Second, None),
            DataType::Time32(unit) => (cast(array, &DataType::Int32)?, *unit, None),
            DataType::Time64(unit) => (Arc::clone(array), *unit, None),
            other => return Err(Error::internal(format!("{}: {other} is no moment", call.name))),
        };
        let ticks = cast(&array, &DataType::Int64)?.as_primitive::<Int64Type>().clone();
        Ok(Self { ticks, step: call.step(index), unit, zone })
    }

    /// The row's moment in UTC; none if it is NULL.
    pub(super) fn utc(&self, row: usize) -> Option<NaiveDateTime> {
        let at = row * self.step;
        if self.ticks.is_null(at) { None } else { from_ticks(self.ticks.value(at), self.unit) }
    }

    /// The row's moment on the clocks of its own zone, UTC if it has none; none if it is NULL.
    pub(super) fn local(&self, row: usize) -> Option<NaiveDateTime> {
        let utc = self.utc(row)?;
        Some(match &self.zone {
            Some(zone) => zone.from_utc_datetime(&utc).naive_local(),
            None => utc,
        })
    }
}

/// A result of timestamps or dates, given in UTC; one beyond its type's range is an error.
pub(super) fn moments(
    call: &Call<'_>,
    mut row: impl FnMut(usize) -> Result<Option<NaiveDateTime>>,
) -> Result<ColumnarValue> {
    let (unit, stamp) = match call.returns {
        DataType::Timestamp(unit, _) => (*unit, call.returns.clone()),
        _ => (TimeUnit::Second, DataType::Timestamp(TimeUnit::Second, None)),
    };
    let mut builder = Int64Builder::with_capacity(call.rows());
    for index in 0..call.rows() {
        let ticks = match row(index)? {
            Some(moment) => Some(ticks(moment, unit).ok_or_else(|| out_of_range(call.name))?),
            None => None,
        };
        builder.append_option(ticks);
    }
    call.finish(cast(&builder.finish(), &stamp)?)
}

/// The error for a moment that its type cannot hold.
pub(super) fn out_of_range(name: &str) -> Error {
    Error::data(format!("{name}: the result is beyond the range of its type"))
}

fn from_ticks(ticks: i64, unit: TimeUnit) -> Option<NaiveDateTime> {
    let moment = match unit {
        TimeUnit::Second => DateTime::from_timestamp(ticks, 0),
        TimeUnit::Millisecond => DateTime::from_timestamp_millis(ticks),
        TimeUnit::Microsecond => DateTime::from_timestamp_micros(ticks),
        TimeUnit::Nanosecond => Some(DateTime::from_timestamp_nanos(ticks)),
    };
    moment.map(|moment| moment.naive_utc())
}

fn ticks(moment: NaiveDateTime, unit: TimeUnit) -> Option<i64> {
    let moment = moment.and_utc();
    match unit {
        TimeUnit::Second => Some(moment.timestamp()),
        TimeUnit::Millisecond => Some(moment.timestamp_millis()),
        TimeUnit::Microsecond => Some(moment.timestamp_micros()),
        TimeUnit::Nanosecond => moment.timestamp_nanos_opt(),
    }
}

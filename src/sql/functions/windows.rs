//! `hop_starts(ts, slide, size [, offset])` and `cumulate_ends(ts, step, size [, offset])`: the windows that hold a
//! time, which the table functions HOP and CUMULATE unnest.
//!
//! A window of `hop_starts` begins at `s`, a number of slides after the offset, and holds `s <= ts < s + size`. One of
//! `cumulate_ends` ends at `e`, a number of steps after the beginning of the span of `size` that holds `ts`, and not
//! after that span; it holds `ts < e`.
//!
//! Guaranteed: lists ascend and have the type of `ts`, of any precision, with or without a zone; their elements rise
//! with `ts`; times before 1970 are like any other. NULL is in a window that is NULL, so that `unnest` drops no row that
//! has no time, and so is a time so close to the limits of its type that one of its windows would not fit. Not promised:
//! widths that are no literals, have months, or are finer than `ts`; a row in more than [`MOST`] windows.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, ListArray};
use arrow::buffer::{NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef, Int64Type, IntervalUnit, TimeUnit};
use datafusion::common::ScalarValue;
use datafusion::error::{DataFusionError, Result as PlanResult};
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility,
};

use super::types::type_name;
use crate::error::{Error, Result};

/// How many windows a row may be in: a slide of a millisecond in a day would fill the memory with one batch.
const MOST: i64 = 10_000;

const NANOS_PER_DAY: i128 = 86_400_000_000_000;

/// One of the two functions.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Windows {
    kind: Kind,
    signature: Signature,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    HopStarts,
    CumulateEnds,
}

/// Both functions.
pub(super) fn functions() -> Vec<Windows> {
    let signature = || Signature::variadic_any(Volatility::Immutable);
    [Kind::HopStarts, Kind::CumulateEnds].map(|kind| Windows { kind, signature: signature() }).into()
}

/// A call as it is planned: its widths in ticks of the type of its times.
struct Plan {
    kind: Kind,
    times: DataType,
    /// The slide or step.
    step: i64,
    size: i64,
    offset: i64,
}

impl Windows {
    fn plan(&self, given: &[FieldRef], literals: &[Option<&ScalarValue>]) -> Result<Plan> {
        let name = self.name();
        let refuse = |what: String| Error::usage(format!("{name}: {what}"));
        if !(3..=4).contains(&given.len()) {
            return Err(Error::usage(format!("{name} takes 3 to 4 arguments, not {}", given.len())));
        }
        let times = time_type(name, given[0].data_type())?;
        let width = |index: usize| ticks(name, index + 1, literals.get(index).copied().flatten(), &times);
        let (step, size) = (width(1)?, width(2)?);
        if step <= 0 || size <= 0 {
            return Err(refuse("arguments 2 and 3 must be positive".into()));
        }
        if size / step > MOST {
            return Err(refuse(format!("a row would be in more than {MOST} windows; make argument 2 longer")));
        }
        let period = match self.kind {
            Kind::HopStarts => step,
            Kind::CumulateEnds => size,
        };
        let offset = if given.len() == 4 { width(3)?.rem_euclid(period) } else { 0 };
        Ok(Plan { kind: self.kind, times, step, size, offset })
    }

    fn run(&self, args: &ScalarFunctionArgs) -> Result<ColumnarValue> {
        let literals = args.args.iter().map(|value| match value {
            ColumnarValue::Scalar(scalar) => Some(scalar),
            ColumnarValue::Array(_) => None,
        });
        let literals: Vec<Option<&ScalarValue>> = literals.collect();
        let plan = self.plan(&args.arg_fields, &literals)?;
        match &args.args[0] {
            ColumnarValue::Array(times) => Ok(ColumnarValue::Array(Arc::new(plan.lists(times)?))),
            ColumnarValue::Scalar(time) => {
                let list = plan.lists(&time.to_array()?)?;
                Ok(ColumnarValue::Scalar(ScalarValue::List(Arc::new(list))))
            }
        }
    }
}

impl Plan {
    fn item(&self) -> FieldRef {
        Arc::new(Field::new_list_field(self.times.clone(), true))
    }

    /// The list of each time.
    fn lists(&self, times: &ArrayRef) -> Result<ListArray> {
        let times = cast(times, &DataType::Int64)?;
        let times = times.as_primitive::<Int64Type>();
        let (mut values, mut offsets, mut missing) = (Vec::<i64>::new(), vec![0_i32], vec![]);
        for time in times {
            match time.and_then(|time| self.first_and_last(time)) {
                Some((first, last)) => {
                    let count = if first > last { 0 } else { (last - first) / self.step + 1 };
                    values.extend((0..count).map(|n| first + n * self.step));
                }
                None => {
                    missing.push(values.len());
                    values.push(0);
                }
            }
            let end = i32::try_from(values.len());
            offsets
                .push(end.map_err(|_| Error::usage("the rows of a batch are in too many windows; make them fewer"))?);
        }
        let nulls = (!missing.is_empty()).then(|| {
            let mut valid = vec![true; values.len()];
            missing.into_iter().for_each(|place| valid[place] = false);
            NullBuffer::from(valid)
        });
        let values = cast(&Int64Array::new(values.into(), nulls), &self.times)?;
        let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
        Ok(ListArray::try_new(self.item(), offsets, values, None)?)
    }

    /// The ends of a list, `first > last` for an empty one; none if the ticks overflow.
    fn first_and_last(&self, time: i64) -> Option<(i64, i64)> {
        match self.kind {
            Kind::HopStarts => {
                let last = floor(time, self.step, self.offset)?;
                // The last window must end within the type as well.
                last.checked_add(self.size)?;
                let before = floor(time.checked_sub(self.size)?, self.step, self.offset)?;
                Some((before.checked_add(self.step)?, last))
            }
            Kind::CumulateEnds => {
                let start = floor(time, self.size, self.offset)?;
                let steps = (time - start) / self.step + 1;
                let first = start.checked_add(steps.checked_mul(self.step)?)?;
                Some((first, start.checked_add(self.size / self.step * self.step)?))
            }
        }
    }
}

/// The greatest number not above `time` that is the offset and a multiple of the width.
fn floor(time: i64, width: i64, offset: i64) -> Option<i64> {
    time.checked_sub(time.checked_sub(offset)?.rem_euclid(width))
}

/// The type of the times that are the first argument of `function`.
pub(super) fn time_type(function: &str, given: &DataType) -> Result<DataType> {
    match given {
        DataType::Timestamp(..) => Ok(given.clone()),
        DataType::Null => Ok(DataType::Timestamp(TimeUnit::Millisecond, None)),
        other => Err(Error::usage(format!("{function}: argument 1 must be a timestamp, not {}", type_name(other)))),
    }
}

/// A width, which is argument `number` of `function`, in ticks of the type of its times.
pub(super) fn ticks(function: &str, number: usize, literal: Option<&ScalarValue>, times: &DataType) -> Result<i64> {
    let refuse = |what: &str| Error::usage(format!("{function}: argument {number} {what}"));
    let interval = DataType::Interval(IntervalUnit::MonthDayNano);
    let literal =
        literal.filter(|literal| matches!(literal.data_type(), DataType::Interval(_) | DataType::Duration(_)));
    let literal = literal.map(|literal| literal.cast_to(&interval)).transpose()?;
    let Some(ScalarValue::IntervalMonthDayNano(Some(interval))) = literal else {
        return Err(refuse("must be a literal such as INTERVAL '1' MINUTE"));
    };
    if interval.months != 0 {
        return Err(refuse("is in months or years, which have no fixed length"));
    }
    let nanos = i128::from(interval.days) * NANOS_PER_DAY + i128::from(interval.nanoseconds);
    if nanos % nanos_per_tick(times) != 0 {
        return Err(refuse(&format!("is finer than {}", type_name(times))));
    }
    i64::try_from(nanos / nanos_per_tick(times)).map_err(|_| refuse("is too long"))
}

fn nanos_per_tick(times: &DataType) -> i128 {
    match times {
        DataType::Timestamp(TimeUnit::Second, _) => 1_000_000_000,
        DataType::Timestamp(TimeUnit::Millisecond, _) => 1_000_000,
        DataType::Timestamp(TimeUnit::Microsecond, _) => 1_000,
        _ => 1,
    }
}

impl ScalarUDFImpl for Windows {
    fn name(&self) -> &str {
        match self.kind {
            Kind::HopStarts => "hop_starts",
            Kind::CumulateEnds => "cumulate_ends",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _types: &[DataType]) -> PlanResult<DataType> {
        Err(DataFusionError::from(Error::internal(format!("{}: its type follows from the whole call", self.name()))))
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> PlanResult<FieldRef> {
        let plan = self.plan(args.arg_fields, args.scalar_arguments)?;
        Ok(Arc::new(Field::new(self.name(), DataType::List(plan.item()), true)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> PlanResult<ColumnarValue> {
        Ok(self.run(&args)?)
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::Array;
    use arrow::datatypes::IntervalMonthDayNano;
    use datafusion::config::ConfigOptions;

    use super::*;

    fn timestamp(unit: TimeUnit, zone: Option<&str>) -> DataType {
        DataType::Timestamp(unit, zone.map(Into::into))
    }

    fn interval(months: i32, days: i32, millis: i64) -> ScalarValue {
        ScalarValue::IntervalMonthDayNano(Some(IntervalMonthDayNano::new(months, days, millis * 1_000_000)))
    }

    /// What a call gives over times of this type, planned first; or the message that it is refused with.
    fn call(kind: Kind, times: &DataType, ticks: &[Option<i64>], widths: &[ScalarValue]) -> Result<ArrayRef, String> {
        let function = Windows { kind, signature: Signature::variadic_any(Volatility::Immutable) };
        let array = cast(&Int64Array::from(ticks.to_vec()), times).unwrap();
        let mut args = vec![ColumnarValue::Array(array)];
        args.extend(widths.iter().cloned().map(ColumnarValue::Scalar));
        let arg_fields: Vec<FieldRef> =
            args.iter().map(|arg| Arc::new(Field::new("a", arg.data_type(), true)) as FieldRef).collect();
        let scalars: Vec<Option<&ScalarValue>> = std::iter::once(None).chain(widths.iter().map(Some)).collect();
        let planned = ReturnFieldArgs { arg_fields: &arg_fields, scalar_arguments: &scalars };
        let return_field = function.return_field_from_args(planned).map_err(|error| Error::from(error).to_string())?;
        let (number_rows, config_options) = (ticks.len(), Arc::new(ConfigOptions::default()));
        let args =
            ScalarFunctionArgs { args, arg_fields, number_rows, return_field: return_field.clone(), config_options };
        let found = function.invoke_with_args(args).unwrap().into_array(number_rows).unwrap();
        assert_eq!(found.data_type(), return_field.data_type());
        Ok(found)
    }

    /// The lists of a call whose widths are milliseconds, as ticks.
    fn lists(kind: Kind, times: &DataType, ticks: &[Option<i64>], widths: &[i64]) -> Vec<Option<Vec<i64>>> {
        let widths: Vec<ScalarValue> = widths.iter().map(|width| interval(0, 0, *width)).collect();
        let found = call(kind, times, ticks, &widths).unwrap();
        let found = found.as_list::<i32>();
        let list = |row| {
            let values = cast(&found.value(row), &DataType::Int64).unwrap();
            (values.null_count() == 0).then(|| values.as_primitive::<Int64Type>().values().to_vec())
        };
        (0..found.len()).map(list).collect()
    }

    fn check(kind: Kind, widths: &[i64], expected: &[(i64, &[i64])]) {
        let times: Vec<Option<i64>> = expected.iter().map(|(time, _)| Some(*time)).collect();
        let expected: Vec<Option<Vec<i64>>> = expected.iter().map(|(_, list)| Some(list.to_vec())).collect();
        assert_eq!(
            lists(kind, &timestamp(TimeUnit::Millisecond, None), &times, widths),
            expected,
            "{kind:?} {widths:?}"
        );
    }

    #[test]
    fn a_time_is_in_all_windows_that_hold_it() {
        let hop = Kind::HopStarts;
        check(hop, &[5, 10], &[(0, &[-5, 0]), (4, &[-5, 0]), (5, &[0, 5]), (-1, &[-10, -5]), (-5, &[-10, -5])]);
        check(hop, &[5, 10, 1], &[(0, &[-9, -4]), (1, &[-4, 1])]);
        check(hop, &[5, 10, -4], &[(0, &[-9, -4]), (1, &[-4, 1])]);
        check(hop, &[10, 10], &[(25, &[20]), (-25, &[-30])]);
        check(hop, &[10, 5], &[(3, &[0]), (7, &[])]);
    }

    #[test]
    fn a_time_is_before_all_ends_up_to_its_span() {
        let cumulate = Kind::CumulateEnds;
        check(cumulate, &[2, 6], &[(0, &[2, 4, 6]), (1, &[2, 4, 6]), (2, &[4, 6]), (5, &[6]), (6, &[8, 10, 12])]);
        check(cumulate, &[2, 6], &[(-1, &[0]), (-6, &[-4, -2, 0])]);
        check(cumulate, &[2, 6, 1], &[(0, &[1]), (1, &[3, 5, 7])]);
        check(cumulate, &[2, 6, -1], &[(0, &[1, 3, 5]), (-2, &[-1])]);
        check(cumulate, &[4, 6], &[(3, &[4]), (5, &[])]);
    }

    #[test]
    fn null_and_what_overflows_are_in_a_window_that_is_null() {
        for kind in [Kind::HopStarts, Kind::CumulateEnds] {
            let times = [None, Some(0), Some(i64::MAX), Some(i64::MIN)];
            let found = lists(kind, &timestamp(TimeUnit::Millisecond, None), &times, &[5, 10]);
            assert_eq!(found.iter().map(Option::is_some).collect::<Vec<_>>(), [false, true, false, false], "{kind:?}");
        }
    }

    #[test]
    fn times_keep_their_type() {
        let times = [
            (timestamp(TimeUnit::Second, None), 1),
            (timestamp(TimeUnit::Millisecond, Some("UTC")), 1_000),
            (timestamp(TimeUnit::Microsecond, Some("+08:00")), 1_000_000),
            (timestamp(TimeUnit::Nanosecond, None), 1_000_000_000),
        ];
        for (times, second) in times {
            let found = lists(Kind::HopStarts, &times, &[Some(7 * second)], &[5_000, 10_000]);
            assert_eq!(found, [Some(vec![0, 5 * second])], "{times}");
            let found = lists(Kind::CumulateEnds, &times, &[Some(7 * second)], &[5_000, 15_000]);
            assert_eq!(found, [Some(vec![10 * second, 15 * second])], "{times}");
        }
    }

    #[test]
    fn wrong_calls_are_refused_when_planned() {
        let (stamp, second) = (timestamp(TimeUnit::Second, None), interval(0, 0, 1_000));
        let refused = |times: &DataType, widths: &[ScalarValue], expected: &str| {
            assert_eq!(call(Kind::HopStarts, times, &[Some(0)], widths).unwrap_err(), expected);
        };
        let one = std::slice::from_ref(&second);
        refused(&stamp, one, "hop_starts takes 3 to 4 arguments, not 2");
        let two = [second.clone(), second.clone()];
        refused(&DataType::Int64, &two, "hop_starts: argument 1 must be a timestamp, not BIGINT");
        let literal = "hop_starts: argument 3 must be a literal such as INTERVAL '1' MINUTE";
        refused(&stamp, &[second.clone(), ScalarValue::Int64(Some(1))], literal);
        refused(&stamp, &[second.clone(), ScalarValue::IntervalMonthDayNano(None)], literal);
        let months = "hop_starts: argument 3 is in months or years, which have no fixed length";
        refused(&stamp, &[second.clone(), interval(1, 0, 0)], months);
        refused(&stamp, &[interval(0, 0, 1), second.clone()], "hop_starts: argument 2 is finer than TIMESTAMP(0)");
        let positive = "hop_starts: arguments 2 and 3 must be positive";
        refused(&stamp, &[second.clone(), interval(0, 0, 0)], positive);
        refused(&stamp, &[interval(0, -1, 0), second.clone()], positive);
        let many = "hop_starts: a row would be in more than 10000 windows; make argument 2 longer";
        refused(&stamp, &[second, interval(0, 1, 0)], many);
    }

    #[test]
    fn no_window_is_missing_and_none_too_many() {
        let mut state = 1_u64;
        let mut random = |below: i64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            i64::try_from(state >> 33).unwrap() % below
        };
        for _ in 0..500 {
            let (step, size, offset) = (1 + random(20), 1 + random(60), random(200) - 100);
            let time = random(2_000) - 1_000;
            let is_start = |s: &i64, width: i64| (s - offset).rem_euclid(width) == 0;
            let holding = (time - size + 1)..=time;

            let starts: Vec<i64> = holding.clone().filter(|s| is_start(s, step)).collect();
            check(Kind::HopStarts, &[step, size, offset], &[(time, starts.as_slice())]);

            let start = holding.clone().find(|s| is_start(s, size)).unwrap();
            let ends = (1..).map(|k| start + k * step).take_while(|e| *e <= start + size);
            let ends: Vec<i64> = ends.filter(|e| *e > time).collect();
            check(Kind::CumulateEnds, &[step, size, offset], &[(time, ends.as_slice())]);
        }
    }
}

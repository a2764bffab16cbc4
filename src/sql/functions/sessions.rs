//! `session_start(ts, gap)` and `session_end(ts, gap)`, both `OVER (PARTITION BY keys ORDER BY ts)`: the session that a
//! row is in, which the table function SESSION adds to its rows.
//!
//! The idea: a pause of `gap` or longer between two rows of a partition ends a session. It begins with its first row,
//! ends `gap` after its last, and holds `start <= ts < end`, as every window does. So a row exactly `gap` after the last
//! begins another session, where Flink would go on with the one before: once time has come to a session's end, nothing
//! can join it, and the answer does not depend on how the input is cut.
//!
//! Guaranteed: results have the type of `ts`, of any precision, with or without a zone; a row whose time is NULL is in
//! no session, has NULL and ends none; an end that does not fit into the type is an error. Rows may descend as well; in
//! any other order there is some answer and no panic. Not promised: gaps that are no literals, have months, or are finer
//! than `ts`.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef, Int64Type};
use datafusion::common::ScalarValue;
use datafusion::error::Result as PlanResult;
use datafusion::logical_expr::function::{ExpressionArgs, PartitionEvaluatorArgs, WindowUDFFieldArgs};
use datafusion::logical_expr::{PartitionEvaluator, Signature, Volatility, WindowUDFImpl};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Literal;

use super::types::type_name;
use super::windows::{ticks, time_type};
use crate::error::{Error, Result};

/// The name of the function that says when a session begins.
pub(crate) const SESSION_START: &str = "session_start";

/// The name of the function that says when a session ends.
pub(crate) const SESSION_END: &str = "session_end";

/// One of the two functions.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Sessions {
    kind: Kind,
    signature: Signature,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Start,
    End,
}

/// Both functions.
pub(super) fn functions() -> Vec<Sessions> {
    let signature = || Signature::variadic_any(Volatility::Immutable);
    [Kind::Start, Kind::End].map(|kind| Sessions { kind, signature: signature() }).into()
}

impl Sessions {
    fn time_type(&self, given: &[FieldRef]) -> Result<DataType> {
        match given {
            [times, _] => time_type(self.name(), times.data_type()),
            _ => Err(Error::usage(format!("{} takes 2 arguments, not {}", self.name(), given.len()))),
        }
    }

    fn evaluator(&self, args: &PartitionEvaluatorArgs<'_>) -> Result<Evaluator> {
        let times = self.time_type(args.input_fields())?;
        let literal = args.input_exprs().get(1).and_then(|gap| gap.downcast_ref::<Literal>());
        let gap = gap_in_ticks(self.name(), literal.map(Literal::value), &times)?;
        Ok(Evaluator { kind: self.kind, times, gap })
    }
}

/// The gap of a call of `function`, in ticks of the type of its times.
pub(crate) fn gap_in_ticks(function: &str, gap: Option<&ScalarValue>, times: &DataType) -> Result<i64> {
    match ticks(function, 2, gap, times)? {
        gap if gap <= 0 => Err(Error::usage(format!("{function}: argument 2 must be positive"))),
        gap => Ok(gap),
    }
}

impl WindowUDFImpl for Sessions {
    fn name(&self) -> &str {
        match self.kind {
            Kind::Start => SESSION_START,
            Kind::End => SESSION_END,
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    /// The times alone: the gap is a literal.
    fn expressions(&self, args: ExpressionArgs<'_>) -> Vec<Arc<dyn PhysicalExpr>> {
        args.input_exprs().iter().take(1).cloned().collect()
    }

    fn partition_evaluator(&self, args: PartitionEvaluatorArgs<'_>) -> PlanResult<Box<dyn PartitionEvaluator>> {
        Ok(Box::new(self.evaluator(&args)?))
    }

    fn field(&self, args: WindowUDFFieldArgs<'_>) -> PlanResult<FieldRef> {
        Ok(Arc::new(Field::new(args.name(), self.time_type(args.input_fields())?, true)))
    }
}

/// A call as it is planned: its gap in ticks of the type of its times.
#[derive(Debug)]
struct Evaluator {
    kind: Kind,
    times: DataType,
    gap: i64,
}

impl Evaluator {
    /// What the function says of each row of a partition.
    fn run(&self, times: &ArrayRef) -> Result<ArrayRef> {
        let times = cast(times, &DataType::Int64)?;
        let times = times.as_primitive::<Int64Type>();
        let edges = Int64Array::try_new(self.edges(times)?.into(), times.nulls().cloned())?;
        Ok(cast(&edges, &self.times)?)
    }

    /// The edge of each row's session; that of a row without a time means nothing.
    fn edges(&self, times: &Int64Array) -> Result<Vec<i64>> {
        let mut edges = Vec::with_capacity(times.len());
        let mut session: Option<(i64, i64)> = None;
        for (row, time) in times.iter().enumerate() {
            let Some(time) = time else { continue };
            session = match session {
                None => Some((time, time)),
                Some((first, last)) if self.joins(time, first, last) => Some((first.min(time), last.max(time))),
                Some((first, last)) => {
                    edges.resize(row, self.edge(first, last)?);
                    Some((time, time))
                }
            };
        }
        let last = session.map(|(first, last)| self.edge(first, last)).transpose()?;
        edges.resize(times.len(), last.unwrap_or_default());
        Ok(edges)
    }

    /// Whether a row is less than the gap away from a session, before or after it.
    fn joins(&self, time: i64, first: i64, last: i64) -> bool {
        time.saturating_sub(last) < self.gap && first.saturating_sub(time) < self.gap
    }

    fn edge(&self, first: i64, last: i64) -> Result<i64> {
        match self.kind {
            Kind::Start => Ok(first),
            Kind::End => last.checked_add(self.gap).ok_or_else(|| {
                let times = type_name(&self.times);
                Error::data(format!("{SESSION_END}: a time and the gap after it are beyond what {times} can hold"))
            }),
        }
    }
}

impl PartitionEvaluator for Evaluator {
    fn evaluate_all(&mut self, values: &[ArrayRef], _rows: usize) -> PlanResult<ArrayRef> {
        match values {
            [times] => Ok(self.run(times)?),
            _ => Err(Error::internal(format!("a session has 1 column of times, not {}", values.len())).into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::TimeUnit;

    use super::*;

    fn timestamp(unit: TimeUnit, zone: Option<&str>) -> DataType {
        DataType::Timestamp(unit, zone.map(Into::into))
    }

    /// What a function says of the rows of one partition, as ticks; or its error.
    fn edges(kind: Kind, times: &DataType, gap: i64, ticks: &[Option<i64>]) -> Result<Vec<Option<i64>>, String> {
        let array = cast(&Int64Array::from(ticks.to_vec()), times).unwrap();
        let mut evaluator = Evaluator { kind, times: times.clone(), gap };
        let found = evaluator.evaluate_all(&[array], ticks.len()).map_err(|error| Error::from(error).to_string())?;
        assert_eq!(found.data_type(), times);
        let found = cast(&found, &DataType::Int64).unwrap();
        Ok(found.as_primitive::<Int64Type>().iter().collect())
    }

    /// Of each row, in order: its time, and the start and end of its session with a gap of 10.
    fn check(rows: &[(i64, i64, i64)]) {
        let times: Vec<Option<i64>> = rows.iter().map(|(time, _, _)| Some(*time)).collect();
        let millis = timestamp(TimeUnit::Millisecond, None);
        let starts: Vec<Option<i64>> = rows.iter().map(|(_, start, _)| Some(*start)).collect();
        assert_eq!(edges(Kind::Start, &millis, 10, &times), Ok(starts), "{times:?}");
        let ends: Vec<Option<i64>> = rows.iter().map(|(_, _, end)| Some(*end)).collect();
        assert_eq!(edges(Kind::End, &millis, 10, &times), Ok(ends), "{times:?}");
    }

    #[test]
    fn a_pause_of_the_gap_or_longer_ends_a_session() {
        check(&[]);
        check(&[(5, 5, 15)]);
        check(&[(0, 0, 19), (9, 0, 19)]);
        check(&[(0, 0, 10), (10, 10, 20)]);
        check(&[(0, 0, 10), (11, 11, 21)]);
        check(&[(-15, -15, 10), (-9, -15, 10), (0, -15, 10), (10, 10, 20), (10, 10, 20)]);
        check(&[(0, 0, 28), (9, 0, 28), (18, 0, 28), (100, 100, 110), (200, 200, 215), (205, 200, 215)]);
    }

    #[test]
    fn rows_may_descend_and_disorder_does_no_harm() {
        check(&[(20, 20, 30), (10, 1, 20), (1, 1, 20)]);
        check(&[(5, 0, 24), (0, 0, 24), (14, 0, 24)]);
        check(&[(0, 0, 10), (50, 50, 60), (1, 1, 11)]);
        check(&[(i64::MIN, i64::MIN, i64::MIN + 10), (i64::MAX - 10, i64::MAX - 10, i64::MAX), (0, 0, 10)]);
    }

    #[test]
    fn a_row_without_a_time_is_in_no_session_and_ends_none() {
        let millis = timestamp(TimeUnit::Millisecond, None);
        for (times, starts) in [
            (vec![None], vec![None]),
            (vec![None, None], vec![None, None]),
            (vec![None, Some(1), None, Some(9), None], vec![None, Some(1), None, Some(1), None]),
            (vec![Some(1), None, Some(11), None], vec![Some(1), None, Some(11), None]),
        ] {
            assert_eq!(edges(Kind::Start, &millis, 10, &times), Ok(starts));
        }
    }

    #[test]
    fn times_keep_their_type() {
        for times in [
            timestamp(TimeUnit::Second, None),
            timestamp(TimeUnit::Millisecond, Some("UTC")),
            timestamp(TimeUnit::Microsecond, Some("+08:00")),
            timestamp(TimeUnit::Nanosecond, None),
        ] {
            let found = edges(Kind::End, &times, 10, &[Some(0), Some(9), Some(19)]);
            assert_eq!(found, Ok(vec![Some(19), Some(19), Some(29)]), "{times}");
        }
    }

    #[test]
    fn an_end_that_does_not_fit_is_an_error() {
        let nanos = timestamp(TimeUnit::Nanosecond, None);
        let late = [Some(0), Some(i64::MAX - 9)];
        assert_eq!(edges(Kind::Start, &nanos, 10, &late), Ok(late.to_vec()));
        let error = edges(Kind::End, &nanos, 10, &late).unwrap_err();
        assert_eq!(error, "session_end: a time and the gap after it are beyond what TIMESTAMP(9) can hold");
    }
}

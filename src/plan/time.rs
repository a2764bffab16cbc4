//! Event time in a plan: which columns rise with it, and what a watermark says of them.
//!
//! The idea: a table with `WATERMARK FOR ts` hands out `ts` under a marker, [`EventTime`], which computes nothing. A column
//! made from it by functions that never fall (`date_bin`, `date_trunc`, casts, `± INTERVAL`, the windows of HOP) *rises*
//! with event time: once no row before the watermark will come, no row with a value before [`Rising::bound`] will. So a
//! window needs no operator of its own: a group is complete when its rising key lies before that bound.
//!
//! Guarantee: a bound is never too late for a row that the watermark lets in. Not promised: that every function that rises
//! is known; what is not on the list does not rise.

use std::fmt;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, RecordBatch, TimestampMillisecondArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef, Int64Type, Schema, TimeUnit};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Result as DfResult, ScalarValue};
use datafusion::functions_nested::extract::array_element_udf;
use datafusion::logical_expr::{
    ColumnarValue, Expr, Operator, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use datafusion::physical_expr::expressions::{BinaryExpr, CastExpr, Column, Literal};
use datafusion::physical_expr::{PhysicalExpr, ScalarFunctionExpr};

use crate::error::{Error, Result};

/// What stands for the watermark in the expression of a [`Rising`].
const WATERMARK: &str = "watermark";
/// 2026-01-01: a time like any other.
const SAMPLE_MS: i64 = 1_767_225_600_000;

/// The marker of event time: gives back what it gets.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct EventTime {
    signature: Signature,
}

impl EventTime {
    /// `expr` under the marker.
    pub fn mark(expr: Expr) -> Expr {
        let signature = Signature::any(1, Volatility::Immutable);
        ScalarUDF::from(EventTime { signature }).call(vec![expr])
    }

    /// `expr` without markers: for who wants to know what is compared, and not what rises.
    pub fn unmarked(expr: Expr) -> DfResult<Expr> {
        let unmarked = expr.transform_up(|expr| match expr {
            Expr::ScalarFunction(mut function) if function.func.inner().is::<EventTime>() => {
                Ok(Transformed::yes(function.args.swap_remove(0)))
            }
            other => Ok(Transformed::no(other)),
        })?;
        Ok(unmarked.data)
    }
}

impl ScalarUDFImpl for EventTime {
    fn name(&self) -> &str {
        "event_time"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> DfResult<DataType> {
        Ok(types[0].clone())
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> DfResult<FieldRef> {
        let given = &args.arg_fields[0];
        Ok(Arc::new(Field::new(self.name(), given.data_type().clone(), given.is_nullable())))
    }

    fn invoke_with_args(&self, mut args: ScalarFunctionArgs) -> DfResult<ColumnarValue> {
        Ok(args.args.swap_remove(0))
    }
}

/// A column that rises with event time, as a function of it.
#[derive(Debug, Clone)]
pub struct Rising {
    /// Over one column, the event time.
    expr: Arc<dyn PhysicalExpr>,
    /// The type of the event time.
    time: DataType,
}

impl fmt::Display for Rising {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.expr, f)
    }
}

impl Rising {
    /// Before what values nothing will come any more, once nothing before `watermark_ms` will; in the ticks of the
    /// column's own type. None where that cannot be said.
    pub fn bound(&self, watermark_ms: i64) -> Result<Option<i64>> {
        Ok(ticks(&self.at(watermark_ms)?)?.iter().next().flatten())
    }

    /// The column's value where event time is `time_ms`.
    fn at(&self, time_ms: i64) -> Result<ArrayRef> {
        let millis = TimestampMillisecondArray::from(vec![time_ms]);
        // A watermark is an instant; without this, a cast would take it for the local time of the column's zone.
        let millis: ArrayRef = match &self.time {
            DataType::Timestamp(_, Some(_)) => Arc::new(millis.with_timezone("UTC")),
            _ => Arc::new(millis),
        };
        let time = cast(&millis, &self.time)?;
        let row = RecordBatch::try_new(Arc::new(self.schema()), vec![time])?;
        Ok(self.expr.evaluate(&row)?.into_array(1)?)
    }

    /// What the expression is over.
    fn schema(&self) -> Schema {
        Schema::new(vec![Field::new(WATERMARK, self.time.clone(), true)])
    }

    /// How far the column rises at once, in ms: the length of a window, about.
    pub fn period_ms(&self) -> i64 {
        let value = |ms: i64| self.at(SAMPLE_MS + ms).and_then(|value| millis(&value)).ok().flatten();
        // A window may begin anywhere. The first power of two by which the column has risen is less than twice the way to
        // where it did, so it has not risen a second time.
        let first = value(0);
        let risen = (0..45).map(|power| value(1 << power)).find(|value| *value > first).flatten();
        first.zip(risen).map_or(i64::MAX, |(first, risen)| risen - first)
    }

    /// Whether it is a function of `other` that never falls: then it lies where `other` does.
    pub fn follows(&self, other: &Rising) -> bool {
        fn only_in(expr: &Arc<dyn PhysicalExpr>, text: &str) -> bool {
            expr.to_string() == text
                || (expr.downcast_ref::<Column>().is_none()
                    && expr.children().into_iter().all(|child| only_in(child, text)))
        }
        self.time == other.time && only_in(&self.expr, &other.expr.to_string())
    }

    /// Whether two columns rise in the same way.
    pub fn is_same(&self, other: &Rising) -> bool {
        self.expr.to_string() == other.expr.to_string() && self.time == other.time
    }

    /// What an expression over columns that rise so is, if it rises.
    pub fn of(expr: &Arc<dyn PhysicalExpr>, columns: &[Option<Rising>]) -> Option<Rising> {
        let mut found: Option<Rising> = None;
        let rewritten = rise(expr, columns, &mut found)?;
        found.map(|found| Rising { expr: rewritten, ..found })
    }

    /// What the elements of a column of lists are, when each becomes a row.
    pub fn unnested(&self) -> Option<Rising> {
        let one: Arc<dyn PhysicalExpr> = Arc::new(Literal::new(ScalarValue::Int64(Some(1))));
        let args = vec![Arc::clone(&self.expr), one];
        let first = ScalarFunctionExpr::try_new(array_element_udf(), args, &self.schema(), Default::default()).ok()?;
        Some(Rising { expr: Arc::new(first), time: self.time.clone() })
    }
}

/// The values of a column that rises, as 64-bit numbers.
pub fn ticks(column: &ArrayRef) -> Result<arrow::array::Int64Array> {
    let numbers = match column.data_type() {
        DataType::Date32 | DataType::Int8 | DataType::Int16 | DataType::Int32 => cast(column, &DataType::Int64)?,
        DataType::Int64 | DataType::Date64 | DataType::Timestamp(..) => cast(column, &DataType::Int64)?,
        other => return Err(Error::internal(format!("{other} does not rise with event time"))),
    };
    Ok(numbers.as_primitive::<Int64Type>().clone())
}

/// The one value of a column that rises, in ms.
fn millis(value: &ArrayRef) -> Result<Option<i64>> {
    let zone = match value.data_type() {
        DataType::Timestamp(_, zone) => zone.clone(),
        _ => None,
    };
    let value = cast(value, &DataType::Timestamp(TimeUnit::Millisecond, zone))?;
    Ok(ticks(&value)?.iter().next().flatten())
}

/// Whether a column of this type can be a key that rises.
pub fn can_rise(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Date32 | DataType::Date64 | DataType::Timestamp(..) | DataType::Int64)
}

/// The expression with the watermark in the place of event time, if every function in it rises; `found` is what the
/// columns in it say. Literals stay.
fn rise(
    expr: &Arc<dyn PhysicalExpr>,
    columns: &[Option<Rising>],
    found: &mut Option<Rising>,
) -> Option<Arc<dyn PhysicalExpr>> {
    if expr.downcast_ref::<Literal>().is_some() {
        return Some(Arc::clone(expr));
    }
    if let Some(column) = expr.downcast_ref::<Column>() {
        let rising = columns.get(column.index())?.as_ref()?;
        if found.as_ref().is_some_and(|other| other.time != rising.time) {
            return None;
        }
        *found = Some(rising.clone());
        return Some(Arc::clone(&rising.expr));
    }
    if let Some(cast) = expr.downcast_ref::<CastExpr>() {
        return match cast.cast_type() {
            DataType::Timestamp(..) | DataType::Date32 | DataType::Date64 => with(expr, columns, found),
            _ => None,
        };
    }
    if let Some(binary) = expr.downcast_ref::<BinaryExpr>() {
        // A month is shorter for some days than for others: what is added to may rise, and the sum fall.
        let has_months = |value: &ScalarValue| match value {
            ScalarValue::IntervalMonthDayNano(Some(interval)) => interval.months != 0,
            ScalarValue::IntervalYearMonth(_) => true,
            _ => false,
        };
        let is_constant = |side: &Arc<dyn PhysicalExpr>| {
            side.downcast_ref::<Literal>().is_some_and(|literal| !has_months(literal.value()))
        };
        let sum = match binary.op() {
            Operator::Plus if is_constant(binary.left()) || is_constant(binary.right()) => with(expr, columns, found),
            Operator::Minus if is_constant(binary.right()) => with(expr, columns, found),
            _ => None,
        }?;
        let has_days = [binary.left(), binary.right()].into_iter().any(counts_days);
        return Some(sum).filter(|sum| !has_days || found.as_ref().is_some_and(|found| has_even_days(sum, found)));
    }
    let function = expr.downcast_ref::<ScalarFunctionExpr>()?;
    if function.fun().inner().is::<EventTime>() {
        let time = function.return_type().clone();
        *found = Some(Rising { expr: Arc::clone(expr), time });
        return Some(Arc::new(Column::new(WATERMARK, 0)));
    }
    match function.fun().name() {
        "date_bin"
        | "date_trunc"
        | "date_ceil"
        | "hop_starts"
        | "cumulate_ends"
        | "to_timestamp_millis"
        | "to_timestamp_micros"
        | "to_timestamp_nanos" => with(expr, columns, found),
        _ => None,
    }
}

/// Whether it is an interval with days.
fn counts_days(side: &Arc<dyn PhysicalExpr>) -> bool {
    match side.downcast_ref::<Literal>().map(Literal::value) {
        Some(ScalarValue::IntervalMonthDayNano(Some(interval))) => interval.days != 0,
        Some(ScalarValue::IntervalDayTime(Some(interval))) => interval.days != 0,
        _ => false,
    }
}

/// Whether all days of an expression have 24 hours. Where clocks are put back, one has 25, and a day later is nearer for the
/// second half past one than for the first.
fn has_even_days(expr: &Arc<dyn PhysicalExpr>, over: &Rising) -> bool {
    match expr.data_type(&over.schema()) {
        Ok(DataType::Timestamp(_, Some(zone))) => &*zone == "UTC" || zone.starts_with(['+', '-']),
        other => other.is_ok(),
    }
}

/// An expression that rises if what it is made of does.
fn with(
    expr: &Arc<dyn PhysicalExpr>,
    columns: &[Option<Rising>],
    found: &mut Option<Rising>,
) -> Option<Arc<dyn PhysicalExpr>> {
    let children = expr.children().into_iter().map(|child| rise(child, columns, found)).collect::<Option<Vec<_>>>()?;
    Arc::clone(expr).with_new_children(children).ok()
}

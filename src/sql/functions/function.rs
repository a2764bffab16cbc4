//! One scalar function: its name, what it takes, what it gives, and the code over a batch.
//!
//! Types are checked here and not by DataFusion's signatures, so that a wrong call is refused while it is planned, by a
//! message of ours. In return the code sees only the types its [`Param`]s promise, however a value came: as a literal,
//! as a column, as one of three kinds of string array or as a dictionary of them.
//!
//! Limits: every function is immutable; a function that reads a clock or chance does not belong here.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, OnceLock};

use arrow::array::{
    Array, ArrayRef, ArrowPrimitiveType, AsArray, BinaryArray, BinaryViewArray, BooleanBuilder, Datum, Int64Array,
    LargeBinaryArray, LargeStringArray, PrimitiveBuilder, Scalar, StringArray, StringBuilder, StringViewArray,
};
use arrow::datatypes::{DataType, Field, FieldRef, Int64Type, TimeUnit};
use datafusion::common::ScalarValue;
use datafusion::config::ConfigOptions;
use datafusion::error::{DataFusionError, Result as PlanResult};
use datafusion::logical_expr::{
    ColumnarValue, DocSection, Documentation, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility,
};

use super::memo::{Compiled, Memo};
use super::types::type_name;
use crate::error::{Error, Result};

/// What a function takes in one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Param {
    /// Strings of any kind.
    Text,
    /// Strings or bytes of any kind.
    Bytes,
    /// Integers of any width, seen as BIGINT.
    Integer,
    /// As [`Param::Text`] or [`Param::Integer`].
    Key,
    /// A timestamp or a date, or a string that is one.
    Moment,
    /// As [`Param::Moment`], or a time of day.
    Clock,
    /// Anything, as it is.
    Any,
}

impl Param {
    /// The type that a value of this type is cast to; none if it is refused.
    fn accepts(self, given: &DataType) -> Option<DataType> {
        use DataType as T;
        let kept = || Some(given.clone());
        match (self, given) {
            (Param::Any, _) => kept(),
            (_, T::Dictionary(_, values)) => self.accepts(values),
            (Param::Text | Param::Bytes | Param::Key, T::Utf8 | T::LargeUtf8 | T::Utf8View) => kept(),
            (Param::Text | Param::Bytes | Param::Key, T::Null) => Some(T::Utf8),
            (Param::Bytes, T::Binary | T::LargeBinary | T::BinaryView) => kept(),
            (Param::Bytes, T::FixedSizeBinary(_)) => Some(T::Binary),
            (Param::Integer, T::Null) => Some(T::Int64),
            (Param::Integer | Param::Key, other) if other.is_integer() => Some(T::Int64),
            (Param::Moment | Param::Clock, T::Timestamp(..) | T::Date32) => kept(),
            (Param::Moment | Param::Clock, T::Date64) => Some(T::Timestamp(TimeUnit::Millisecond, None)),
            (Param::Moment | Param::Clock, T::Utf8 | T::LargeUtf8 | T::Utf8View | T::Null) => {
                Some(T::Timestamp(TimeUnit::Microsecond, None))
            }
            (Param::Clock, T::Time32(_) | T::Time64(_)) => kept(),
            _ => None,
        }
    }

    /// Its name in messages.
    fn noun(self) -> &'static str {
        match self {
            Param::Text => "a string",
            Param::Bytes => "a string or bytes",
            Param::Integer => "an integer",
            Param::Key => "a string or an integer",
            Param::Moment => "a timestamp or a date",
            Param::Clock => "a timestamp, a date or a time",
            Param::Any => "a value",
        }
    }
}

/// A call as it is planned: the types after the casts, and those arguments that are literals.
pub(super) struct Shape<'a> {
    pub(super) name: &'static str,
    pub(super) types: Vec<DataType>,
    literals: &'a [Option<&'a ScalarValue>],
}

impl<'a> Shape<'a> {
    /// The argument's text, if it is a literal and not NULL.
    pub(super) fn literal(&self, index: usize) -> Option<&'a str> {
        self.literals.get(index).copied().flatten().and_then(|value| value.try_as_str().flatten())
    }

    /// The argument's number, if it is a literal and not NULL.
    pub(super) fn number(&self, index: usize) -> Option<i64> {
        let value = self.literals.get(index).copied().flatten()?;
        match value.cast_to(&DataType::Int64) {
            Ok(ScalarValue::Int64(number)) => number,
            _ => None,
        }
    }

    /// Refuses the call if the argument is a literal that does not compile.
    pub(super) fn compiles<T>(&self, index: usize, memo: &Memo<T>) -> Result<()> {
        match self.literal(index) {
            Some(text) => memo.get(text).map(drop).map_err(|error| error.context(self.name)),
            None => Ok(()),
        }
    }

    /// The compiled literal; an argument that is none is refused.
    pub(super) fn constant<T>(&self, index: usize, memo: &Memo<T>) -> Result<Arc<T>> {
        let text = self.literal(index).ok_or_else(|| {
            Error::usage(format!("{}: argument {} must be a literal that is not NULL", self.name, index + 1))
        })?;
        memo.get(text).map_err(|error| error.context(self.name))
    }
}

/// An argument of a call: a literal is an array of one row that every row reads.
struct Argument {
    array: ArrayRef,
    step: usize,
}

/// A call as it runs on one batch.
pub(super) struct Call<'a> {
    pub(super) name: &'static str,
    /// The type that was promised when the call was planned.
    pub(super) returns: &'a DataType,
    pub(super) config: &'a Arc<ConfigOptions>,
    arguments: Vec<Argument>,
    rows: usize,
    is_scalar: bool,
}

impl Call<'_> {
    /// How many arguments were given.
    pub(super) fn count(&self) -> usize {
        self.arguments.len()
    }

    /// The argument's array: of one row if it is a literal.
    pub(super) fn array(&self, index: usize) -> &ArrayRef {
        &self.arguments[index].array
    }

    /// 0 if the argument is a literal, else 1: row `r` stands at `r * step`.
    pub(super) fn step(&self, index: usize) -> usize {
        self.arguments[index].step
    }

    /// The argument as Arrow's kernels want it, cast to this type.
    pub(super) fn datum(&self, index: usize, to: &DataType) -> Result<Box<dyn Datum>> {
        let array = arrow::compute::cast(self.array(index), to)?;
        Ok(if self.step(index) == 0 { Box::new(Scalar::new(array)) } else { Box::new(array) })
    }

    /// A string argument; `default` where it was left out.
    pub(super) fn text_or(&self, index: usize, default: &'static str) -> Result<Text<'_>> {
        if index < self.count() { self.text(index) } else { Ok(Text::One(default)) }
    }

    /// A string argument.
    pub(super) fn text(&self, index: usize) -> Result<Text<'_>> {
        let Argument { array, step } = &self.arguments[index];
        Ok(match array.data_type() {
            DataType::Utf8 => Text::Utf8(array.as_string(), *step),
            DataType::LargeUtf8 => Text::Large(array.as_string(), *step),
            DataType::Utf8View => Text::View(array.as_string_view(), *step),
            other => return Err(self.unexpected(other)),
        })
    }

    /// An argument of strings or bytes.
    pub(super) fn bytes(&self, index: usize) -> Result<Bytes<'_>> {
        let Argument { array, step } = &self.arguments[index];
        Ok(match array.data_type() {
            DataType::Binary => Bytes::Binary(array.as_binary(), *step),
            DataType::LargeBinary => Bytes::Large(array.as_binary(), *step),
            DataType::BinaryView => Bytes::View(array.as_binary_view(), *step),
            _ => Bytes::Text(self.text(index)?),
        })
    }

    /// An integer argument; `default` where it was left out.
    pub(super) fn integer_or(&self, index: usize, default: i64) -> Result<Integer<'_>> {
        if index < self.count() { self.integer(index) } else { Ok(Integer::One(default)) }
    }

    /// An integer argument.
    pub(super) fn integer(&self, index: usize) -> Result<Integer<'_>> {
        let Argument { array, step } = &self.arguments[index];
        match array.as_primitive_opt::<Int64Type>() {
            Some(array) => Ok(Integer::Many(array, *step)),
            None => Err(self.unexpected(array.data_type())),
        }
    }

    /// A string argument, compiled.
    pub(super) fn compiled<T>(&self, index: usize, memo: &'static Memo<T>) -> Result<Compiled<'_, T>> {
        Ok(Compiled::new(memo, self.text(index)?))
    }

    /// A result of strings: the code writes a row's text, or gives none for NULL.
    pub(super) fn strings(
        &self,
        mut row: impl FnMut(usize, &mut String) -> Result<Option<()>>,
    ) -> Result<ColumnarValue> {
        let mut builder = StringBuilder::with_capacity(self.rows, self.rows * 16);
        let mut text = String::new();
        for index in 0..self.rows {
            text.clear();
            let written = row(index, &mut text)?;
            builder.append_option(written.map(|()| text.as_str()));
        }
        self.finish(Arc::new(builder.finish()))
    }

    /// A result of numbers.
    pub(super) fn numbers<T: ArrowPrimitiveType>(
        &self,
        mut row: impl FnMut(usize) -> Result<Option<T::Native>>,
    ) -> Result<ColumnarValue> {
        let mut builder = PrimitiveBuilder::<T>::with_capacity(self.rows);
        for index in 0..self.rows {
            builder.append_option(row(index)?);
        }
        self.finish(Arc::new(builder.finish()))
    }

    /// A result of truth values.
    pub(super) fn booleans(&self, mut row: impl FnMut(usize) -> Result<Option<bool>>) -> Result<ColumnarValue> {
        let mut builder = BooleanBuilder::with_capacity(self.rows);
        for index in 0..self.rows {
            builder.append_option(row(index)?);
        }
        self.finish(Arc::new(builder.finish()))
    }

    /// How many rows the result has.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// The result: cast to the promised type, and a literal if all arguments are.
    pub(super) fn finish(&self, array: ArrayRef) -> Result<ColumnarValue> {
        let array = if array.data_type() == self.returns { array } else { arrow::compute::cast(&array, self.returns)? };
        Ok(if self.is_scalar {
            ColumnarValue::Scalar(ScalarValue::try_from_array(&array, 0)?)
        } else {
            ColumnarValue::Array(array)
        })
    }

    fn unexpected(&self, found: &DataType) -> Error {
        Error::internal(format!("{}: an argument is of type {found}", self.name))
    }
}

/// A string argument, row by row; the number is the step of [`Call::step`].
#[derive(Clone, Copy)]
pub(super) enum Text<'a> {
    One(&'a str),
    Utf8(&'a StringArray, usize),
    Large(&'a LargeStringArray, usize),
    View(&'a StringViewArray, usize),
}

impl<'a> Text<'a> {
    /// The row's text; none if it is NULL.
    pub(super) fn at(&self, row: usize) -> Option<&'a str> {
        match *self {
            Text::One(text) => Some(text),
            Text::Utf8(array, step) => array.is_valid(row * step).then(|| array.value(row * step)),
            Text::Large(array, step) => array.is_valid(row * step).then(|| array.value(row * step)),
            Text::View(array, step) => array.is_valid(row * step).then(|| array.value(row * step)),
        }
    }
}

/// An argument of strings or bytes, row by row.
pub(super) enum Bytes<'a> {
    Text(Text<'a>),
    Binary(&'a BinaryArray, usize),
    Large(&'a LargeBinaryArray, usize),
    View(&'a BinaryViewArray, usize),
}

impl<'a> Bytes<'a> {
    /// The row's bytes; none if it is NULL.
    pub(super) fn at(&self, row: usize) -> Option<&'a [u8]> {
        match *self {
            Bytes::Text(text) => text.at(row).map(str::as_bytes),
            Bytes::Binary(array, step) => array.is_valid(row * step).then(|| array.value(row * step)),
            Bytes::Large(array, step) => array.is_valid(row * step).then(|| array.value(row * step)),
            Bytes::View(array, step) => array.is_valid(row * step).then(|| array.value(row * step)),
        }
    }
}

/// An integer argument, row by row.
pub(super) enum Integer<'a> {
    One(i64),
    Many(&'a Int64Array, usize),
}

impl Integer<'_> {
    /// The row's number; none if it is NULL.
    pub(super) fn at(&self, row: usize) -> Option<i64> {
        match *self {
            Integer::One(number) => Some(number),
            Integer::Many(array, step) => array.is_valid(row * step).then(|| array.value(row * step)),
        }
    }
}

type Plan = dyn Fn(&Shape<'_>) -> Result<DataType> + Send + Sync;
type Run = dyn Fn(&Call<'_>) -> Result<ColumnarValue> + Send + Sync;

/// A scalar function; two of the same name are the same.
#[derive(Clone)]
pub(super) struct Function {
    name: &'static str,
    params: &'static [Param],
    required: usize,
    is_variadic: bool,
    signature: Signature,
    documentation: OnceLock<Documentation>,
    plan: Arc<Plan>,
    run: Arc<Run>,
}

impl Function {
    /// A function that gives this type, whatever it is called with.
    pub(super) fn new(
        name: &'static str,
        params: &'static [Param],
        returns: DataType,
        run: impl Fn(&Call<'_>) -> Result<ColumnarValue> + Send + Sync + 'static,
    ) -> Self {
        Self {
            name,
            params,
            required: params.len(),
            is_variadic: false,
            signature: Signature::variadic_any(Volatility::Immutable),
            documentation: OnceLock::new(),
            plan: Arc::new(move |_| Ok(returns.clone())),
            run: Arc::new(run),
        }
    }

    /// The last `count` parameters may be left out.
    pub(super) fn optional(mut self, count: usize) -> Self {
        self.required = self.params.len() - count;
        self
    }

    /// The last parameter may be repeated.
    pub(super) fn variadic(mut self) -> Self {
        self.is_variadic = true;
        self
    }

    /// The result's type follows from the call.
    pub(super) fn typed(mut self, plan: impl Fn(&Shape<'_>) -> Result<DataType> + Send + Sync + 'static) -> Self {
        self.plan = Arc::new(plan);
        self
    }

    /// The call is looked at before it is planned.
    pub(super) fn checked(self, check: impl Fn(&Shape<'_>) -> Result<()> + Send + Sync + 'static) -> Self {
        let plan = Arc::clone(&self.plan);
        self.typed(move |shape| check(shape).and_then(|()| plan(shape)))
    }

    /// How it is called: `locate(a string, a string [, an integer])`.
    fn syntax(&self) -> String {
        let parts = self.params.iter().enumerate().map(|(index, param)| {
            let part = format!("{}{}", if index == 0 { "" } else { ", " }, param.noun());
            match (index < self.required, index) {
                (true, _) => part,
                (false, 0) => format!("[{part}]"),
                (false, _) => format!(" [{part}]"),
            }
        });
        format!("{}({}{})", self.name, parts.collect::<String>(), if self.is_variadic { ", …" } else { "" })
    }

    fn accepted(&self, fields: &[FieldRef]) -> Result<Vec<DataType>> {
        let (name, least, most, given) = (self.name, self.required, self.params.len(), fields.len());
        if given < least || (given > most && !self.is_variadic) {
            let takes = match (self.is_variadic, least == most) {
                (true, _) => format!("{least} or more"),
                (false, true) => most.to_string(),
                (false, false) => format!("{least} to {most}"),
            };
            let noun = if takes == "1" { "argument" } else { "arguments" };
            return Err(Error::usage(format!("{name} takes {takes} {noun}, not {given}")));
        }
        let accept = |(index, (param, field)): (usize, (&Param, &FieldRef))| {
            param.accepts(field.data_type()).ok_or_else(|| {
                let (noun, found) = (param.noun(), type_name(field.data_type()));
                Error::usage(format!("{name}: argument {} must be {noun}, not {found}", index + 1))
            })
        };
        let repeated = self.params.last().filter(|_| self.is_variadic).into_iter().cycle();
        self.params.iter().chain(repeated).zip(fields).enumerate().map(accept).collect()
    }

    /// The result's type, or why the call is refused.
    pub(super) fn plan(&self, args: &ReturnFieldArgs<'_>) -> Result<DataType> {
        let types = self.accepted(args.arg_fields)?;
        (self.plan)(&Shape { name: self.name, types, literals: args.scalar_arguments })
    }

    /// The result over one batch.
    pub(super) fn run(&self, args: &ScalarFunctionArgs) -> Result<ColumnarValue> {
        let types = self.accepted(&args.arg_fields)?;
        let mut is_scalar = true;
        let mut arguments = Vec::with_capacity(types.len());
        for (value, to) in args.args.iter().zip(&types) {
            let (array, step) = match value {
                ColumnarValue::Array(array) => (Arc::clone(array), 1),
                ColumnarValue::Scalar(scalar) => (scalar.to_array()?, 0),
            };
            is_scalar &= step == 0;
            let array = if array.data_type() == to { array } else { arrow::compute::cast(&array, to)? };
            arguments.push(Argument { array, step });
        }
        let rows = if is_scalar { 1 } else { args.number_rows };
        let (returns, config) = (args.return_type(), &args.config_options);
        (self.run)(&Call { name: self.name, returns, config, arguments, rows, is_scalar })
    }
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Function").field("name", &self.name).field("params", &self.params).finish_non_exhaustive()
    }
}

impl PartialEq for Function {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Function {}

impl Hash for Function {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

impl ScalarUDFImpl for Function {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn documentation(&self) -> Option<&Documentation> {
        let made = || Documentation::builder(DocSection::default(), "", self.syntax()).build();
        Some(self.documentation.get_or_init(made))
    }

    fn return_type(&self, _types: &[DataType]) -> PlanResult<DataType> {
        Err(DataFusionError::from(Error::internal(format!("{}: its type follows from the whole call", self.name))))
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> PlanResult<FieldRef> {
        Ok(Arc::new(Field::new(self.name, self.plan(&args)?, true)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> PlanResult<ColumnarValue> {
        Ok(self.run(&args)?)
    }
}

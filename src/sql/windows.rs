//! Flink's windows, written out as plain SQL.
//!
//! The idea: a window is nothing but columns that are computed from a row's time and rise with it. So in FROM the table
//! functions `TUMBLE`, `HOP` and `CUMULATE` become derived tables that add `window_start`, `window_end` and
//! `window_time` to the rows, one row for each window that a row is in; and the older `TUMBLE` of GROUP BY, with
//! `TUMBLE_START`, `TUMBLE_END` and `TUMBLE_ROWTIME`, becomes arithmetic around `date_bin`. `SESSION`, whose windows
//! follow from the rows around a row as well, takes its columns from functions `OVER` the rows of a key.
//!
//! Guaranteed: what is written out says the same when it is printed and parsed again, and places within the arguments
//! stay where they were written. Only calls are read so: a table, a column or another function may be called `tumble`.
//! What Flink refuses (a SIZE that is no multiple of its SLIDE or STEP, months) is refused here, at the call. A row
//! without a time is in no window: it has a row whose window is NULL.
//!
//! Not promised: windows over a table that has a column `window_start` already; windows of times that `date_bin` cannot
//! place, before 1677 and after 2262, which are NULL; sessions by what is no column, which a view can compute.

use std::fmt::Display;
use std::ops::ControlFlow;

use arrow::compute::kernels::cast_utils::{IntervalParseConfig, IntervalUnit, parse_interval_month_day_nano_config};
use arrow::datatypes::IntervalMonthDayNano;
use sqlparser::ast::{
    Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, Ident, Interval, ObjectName, SetExpr, TableAlias,
    TableFactor, TableWithJoins, UnaryOperator, Value, ValueWithSpan, VisitMut, VisitorMut, WindowType,
};
use sqlparser::parser::{Parser, ParserError};
use sqlparser::tokenizer::Span;

use super::dialect::MillstreamDialect;
use super::source::location;
use crate::error::{Error, Result};

/// The functions that take a TABLE.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    WINDOWS.iter().map(|window| window.name)
}

/// What the tokens call the argument that they make of a `PARTITION BY`.
pub(super) const PARTITION_BY: &str = "PARTITION_BY";

/// A table function and what it stands for.
struct Window {
    name: &'static str,
    usage: &'static str,
    /// Flink's names of what it takes, in order; OFFSET may be left out.
    parameters: &'static [&'static str],
    /// Its query: `$SIZE` is the argument of that name, `DATA` the table, `$START` is [`START`], what stands in square
    /// brackets is there if an OFFSET is, and an `OVER` is partitioned by the columns of `PARTITION BY`.
    query: &'static str,
}

static WINDOWS: [Window; 4] = [
    Window {
        name: "TUMBLE",
        usage: "TUMBLE(TABLE t, DESCRIPTOR(ts), size [, offset])",
        parameters: &["DATA", "TIMECOL", "SIZE", "OFFSET"],
        query: "SELECT *, window_start + $SIZE AS window_end, \
                window_start + $SIZE - INTERVAL '1 millisecond' AS window_time FROM (\
                SELECT *, $START AS window_start FROM DATA)",
    },
    Window {
        name: "HOP",
        usage: "HOP(TABLE t, DESCRIPTOR(ts), slide, size [, offset])",
        parameters: &["DATA", "TIMECOL", "SLIDE", "SIZE", "OFFSET"],
        query: "SELECT *, window_start + $SIZE AS window_end, \
                window_start + $SIZE - INTERVAL '1 millisecond' AS window_time FROM (\
                SELECT *, unnest(hop_starts($TIMECOL, $SLIDE, $SIZE[, $OFFSET])) AS window_start FROM DATA)",
    },
    Window {
        name: "CUMULATE",
        usage: "CUMULATE(TABLE t, DESCRIPTOR(ts), step, size [, offset])",
        parameters: &["DATA", "TIMECOL", "STEP", "SIZE", "OFFSET"],
        query: "SELECT *, window_end - INTERVAL '1 millisecond' AS window_time FROM (\
                SELECT *, unnest(cumulate_ends($TIMECOL, $STEP, $SIZE[, $OFFSET])) AS window_end FROM (\
                SELECT *, $START AS window_start FROM DATA))",
    },
    Window {
        name: SESSION,
        usage: "SESSION(TABLE t PARTITION BY (k, …), DESCRIPTOR(ts), gap)",
        parameters: &["DATA", "TIMECOL", "GAP"],
        query: "SELECT *, window_end - INTERVAL '1 millisecond' AS window_time FROM (\
                SELECT *, session_start($TIMECOL, $GAP) OVER (ORDER BY $TIMECOL) AS window_start, \
                session_end($TIMECOL, $GAP) OVER (ORDER BY $TIMECOL) AS window_end FROM DATA)",
    },
];

/// The one that takes a `PARTITION BY`.
const SESSION: &str = "SESSION";

/// Where the one window of a row begins, in the same notation. The origin's type is what `date_bin` wants of it: with
/// another, the time would be cast as well.
const START: &str = "date_bin($SIZE, $TIMECOL[, CAST(TIMESTAMP '1970-01-01 00:00:00' + $OFFSET AS TIMESTAMP(9))])";

/// The parts of a window in GROUP BY, in the same notation; sums in brackets, as they may stand within others.
static GROUPS: [(&str, &str); 3] =
    [("START", "$START"), ("END", "($START + $SIZE)"), ("ROWTIME", "($START + $SIZE - INTERVAL '1 millisecond')")];

const NANOS_PER_DAY: i128 = 86_400_000_000_000;

/// Writes out every window in `node`.
pub(super) fn expand<T: VisitMut>(node: &mut T) -> Result<()> {
    match node.visit(&mut Expander) {
        ControlFlow::Break(error) => Err(error),
        ControlFlow::Continue(()) => Ok(()),
    }
}

struct Expander;

impl VisitorMut for Expander {
    type Break = Error;

    /// Before what is within it, so that the call is not taken for one of GROUP BY, and windows in its table come next.
    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<Error> {
        let Some((window, span, arguments, alias)) = take_call(factor) else { return ControlFlow::Continue(()) };
        match window.call(span, arguments).and_then(|call| call.fill(window.query, Parser::parse_query)) {
            Ok(subquery) => {
                *factor = TableFactor::Derived { lateral: false, subquery, alias, sample: None };
                ControlFlow::Continue(())
            }
            Err(error) => ControlFlow::Break(at(error, span)),
        }
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<Error> {
        let Expr::Function(function) = expr else { return ControlFlow::Continue(()) };
        match group_function(function) {
            Ok(Some(expanded)) => {
                *expr = expanded;
                ControlFlow::Continue(())
            }
            Ok(None) => ControlFlow::Continue(()),
            Err(error) => ControlFlow::Break(match word(&function.name) {
                Some(name) => at(error, name.span),
                None => error,
            }),
        }
    }
}

/// A window function in FROM, with or without `TABLE(…)` around it: its place, arguments and alias.
fn take_call(factor: &mut TableFactor) -> Option<(&'static Window, Span, Vec<FunctionArg>, Option<TableAlias>)> {
    let (name, arguments, alias) = match factor {
        TableFactor::Table { name, args: Some(list), alias, .. } => (name, &mut list.args, alias),
        TableFactor::TableFunction {
            expr: Expr::Function(Function { name, args: FunctionArguments::List(list), .. }),
            alias,
        } => (name, &mut list.args, alias),
        _ => return None,
    };
    let name = word(name)?;
    let window = WINDOWS.iter().find(|window| window.name.eq_ignore_ascii_case(&name.value))?;
    Some((window, name.span, std::mem::take(arguments), alias.take()))
}

impl Window {
    /// A call, with its arguments checked.
    fn call(&self, span: Span, given: Vec<FunctionArg>) -> Result<Call> {
        let is_partition = |given: &FunctionArg| unnamed(given).is_some_and(|value| is_call(value, PARTITION_BY));
        let (partitions, given): (Vec<FunctionArg>, Vec<FunctionArg>) = given.into_iter().partition(is_partition);
        let mut call = Call { span, arguments: Vec::new(), data: None, keys: self.keys(&partitions)? };
        let mut lengths = Vec::new();
        for (parameter, argument) in self.bind(given)? {
            match parameter {
                "DATA" => {
                    let data = relation(argument);
                    call.data = Some(data.ok_or_else(|| self.refuse("DATA is no TABLE and no query in brackets"))?);
                }
                "TIMECOL" => {
                    let column = column(&argument).cloned();
                    let column = column.ok_or_else(|| self.refuse("TIMECOL is no DESCRIPTOR of one column"))?;
                    call.arguments.push((parameter, column));
                }
                _ => {
                    let length = length(self.name, parameter, &argument)?;
                    if parameter != "OFFSET" {
                        lengths.push((parameter, argument.clone(), length));
                    }
                    call.arguments.push((parameter, argument));
                }
            }
        }
        match lengths.as_slice() {
            [(part, step, nanos), (whole, size, total)] if total % nanos != 0 => Err(Error::usage(format!(
                "{}: {whole} must be a multiple of {part}, and {size} is none of {step}",
                self.name
            ))),
            _ => Ok(call),
        }
    }

    /// The columns of a `PARTITION BY`.
    fn keys(&self, partitions: &[FunctionArg]) -> Result<Vec<Expr>> {
        let partition = match partitions {
            [] => return Ok(Vec::new()),
            _ if self.name != SESSION => return Err(self.refuse("PARTITION BY belongs to SESSION")),
            [partition] => partition,
            _ => return Err(self.refuse("PARTITION BY is given twice")),
        };
        let given = match unnamed(partition) {
            Some(Expr::Function(Function { args: FunctionArguments::List(list), .. })) => list.args.as_slice(),
            _ => &[],
        };
        let columns = given.iter().filter_map(unnamed).filter(|key| matches!(key, Expr::Identifier(_)));
        let keys: Vec<Expr> = columns.cloned().collect();
        let names: Vec<String> = keys.iter().map(Expr::to_string).collect();
        let written = partition.to_string();
        if keys.is_empty() || written != format!("{PARTITION_BY}({})", names.join(", ")) {
            let written = written.replacen(PARTITION_BY, "PARTITION BY ", 1);
            return Err(self.refuse(format!("{written} must be columns, which a view can compute")));
        }
        Ok(keys)
    }

    /// Gives each argument its parameter, by name or by place; the result is in the order of the parameters.
    fn bind(&self, given: Vec<FunctionArg>) -> Result<Vec<(&'static str, Expr)>> {
        let mut bound: Vec<Option<Expr>> = vec![None; self.parameters.len()];
        for (place, argument) in given.into_iter().enumerate() {
            let (place, value) = match argument {
                FunctionArg::Unnamed(FunctionArgExpr::Expr(value)) => (place, value),
                FunctionArg::Named { name, arg: FunctionArgExpr::Expr(value), .. } => {
                    let known = self.parameters.iter().position(|known| known.eq_ignore_ascii_case(&name.value));
                    (known.ok_or_else(|| self.refuse(format!("it takes no {name}")))?, value)
                }
                other => return Err(self.refuse(format!("it takes no {other}"))),
            };
            let Some(slot) = bound.get_mut(place) else { return Err(self.refuse(format!("it takes no {value}"))) };
            if slot.replace(value).is_some() {
                return Err(self.refuse(format!("{} is given twice", self.parameters[place])));
            }
        }
        let mut arguments = Vec::new();
        for (parameter, value) in self.parameters.iter().zip(bound) {
            match value {
                Some(value) => arguments.push((*parameter, value)),
                None if *parameter == "OFFSET" => {}
                None => return Err(self.refuse(format!("there is no {parameter}"))),
            }
        }
        Ok(arguments)
    }

    fn refuse(&self, what: impl Display) -> Error {
        Error::usage(format!("{}: {what}; say {}", self.name, self.usage))
    }
}

/// What a function of GROUP BY stands for; none if it is another function.
///
/// Only a second argument that is an interval literal makes it one, so that a user may have functions of such names;
/// and with OVER, `session_start` is what SESSION is written out with.
fn group_function(function: &Function) -> Result<Option<Expr>> {
    let (Some(name), FunctionArguments::List(list)) = (word(&function.name), &function.args) else { return Ok(None) };
    let upper = name.value.to_ascii_uppercase();
    let (window, part) = upper.split_once('_').unwrap_or((upper.as_str(), "START"));
    let values: Vec<&Expr> = list.args.iter().filter_map(unnamed).collect();
    let [time, size, rest @ ..] = values.as_slice() else { return Ok(None) };
    if names().any(|name| name == window) && values.iter().any(|value| is_call(value, "DESCRIPTOR")) {
        return Err(Error::usage(format!("{window} of a TABLE stands in FROM; say FROM TABLE({window}(TABLE …))")));
    }
    let template = GROUPS.iter().find(|(known, _)| *known == part);
    let is_part = template.is_some() || part == "PROCTIME";
    if !is_part || !matches!(size, Expr::Interval(_)) || function.over.is_some() {
        return Ok(None);
    }
    let offset = match (window, rest) {
        ("TUMBLE", []) => None,
        ("TUMBLE", [offset]) => Some(*offset),
        ("HOP", _) => {
            return Err(Error::usage(
                "HOP in GROUP BY is not supported; say FROM TABLE(HOP(TABLE t, DESCRIPTOR(ts), slide, size)) and \
                 GROUP BY window_start, window_end",
            ));
        }
        (SESSION, _) => {
            return Err(Error::usage(
                "SESSION in GROUP BY is not supported; say FROM TABLE(SESSION(TABLE t PARTITION BY k, DESCRIPTOR(ts), \
                 gap)) and GROUP BY window_start, window_end, k",
            ));
        }
        _ => return Ok(None),
    };
    let Some((_, template)) = template else {
        return Err(Error::usage("TUMBLE_PROCTIME is not supported: windows are cut by a time in the rows"));
    };
    let mut arguments = vec![("TIMECOL", (*time).clone()), ("SIZE", (*size).clone())];
    arguments.extend(offset.map(|offset| ("OFFSET", offset.clone())));
    for (parameter, argument) in &arguments[1..] {
        length("TUMBLE", parameter, argument)?;
    }
    Call { span: name.span, arguments, data: None, keys: Vec::new() }.fill(template, Parser::parse_expr).map(Some)
}

/// A call: where it stands, its arguments by parameter, its table as it stands after FROM, and the columns of its
/// `PARTITION BY`.
struct Call {
    span: Span,
    arguments: Vec<(&'static str, Expr)>,
    data: Option<TableFactor>,
    keys: Vec<Expr>,
}

impl Call {
    /// A template with the arguments in it.
    fn fill<T: VisitMut>(
        mut self,
        template: &str,
        parse: impl FnOnce(&mut Parser<'static>) -> Result<T, ParserError>,
    ) -> Result<T> {
        let has_offset = self.argument("OFFSET").is_some();
        let template = template.replace("$START", START);
        let pieces = template.split(['[', ']']).enumerate();
        let text: String = pieces.filter(|(n, _)| has_offset || n % 2 == 0).map(|(_, piece)| piece).collect();
        let parsed = Parser::new(&MillstreamDialect).try_with_sql(&text).and_then(|mut parser| parse(&mut parser));
        let mut filled = parsed.map_err(|error| Error::internal(format!("{text}: {error}")))?;
        let _ = filled.visit(&mut self);
        Ok(filled)
    }

    fn argument(&self, parameter: &str) -> Option<&Expr> {
        self.arguments.iter().find(|(known, _)| *known == parameter).map(|(_, argument)| argument)
    }
}

/// Fills in after what is within was visited, so that arguments are put in and not looked into.
impl VisitorMut for Call {
    type Break = ();

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        match expr {
            Expr::Value(ValueWithSpan { value: Value::Placeholder(name), .. }) => {
                if let Some(argument) = self.argument(name.trim_start_matches('$')) {
                    *expr = argument.clone();
                }
            }
            Expr::Function(Function { over: Some(WindowType::WindowSpec(window)), .. }) => {
                window.partition_by.clone_from(&self.keys);
            }
            // The planner's errors about a column point at the call.
            Expr::Identifier(name) => name.span = self.span,
            _ => {}
        }
        ControlFlow::Continue(())
    }

    fn post_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<()> {
        if matches!(factor, TableFactor::Table { .. })
            && let Some(data) = self.data.take()
        {
            *factor = data;
        }
        ControlFlow::Continue(())
    }
}

/// A name that is one unquoted word.
fn word(name: &ObjectName) -> Option<&Ident> {
    match name.0.as_slice() {
        [part] => part.as_ident().filter(|name| name.quote_style.is_none()),
        _ => None,
    }
}

fn is_call(expr: &Expr, name: &str) -> bool {
    match expr {
        Expr::Function(function) => word(&function.name).is_some_and(|word| word.value.eq_ignore_ascii_case(name)),
        _ => false,
    }
}

fn unnamed(argument: &FunctionArg) -> Option<&Expr> {
    match argument {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(value)) => Some(value),
        _ => None,
    }
}

/// A query in brackets as it stands after FROM: `SELECT * FROM t`, which the tokens made of `TABLE t`, is `t`.
fn relation(argument: Expr) -> Option<TableFactor> {
    let query = match argument {
        Expr::Subquery(query) => query,
        Expr::Nested(inner) => return relation(*inner),
        _ => return None,
    };
    if let SetExpr::Select(select) = query.body.as_ref()
        && let [TableWithJoins { relation, joins }] = select.from.as_slice()
        && joins.is_empty()
        && query.to_string() == format!("SELECT * FROM {relation}")
    {
        return Some(relation.clone());
    }
    Some(TableFactor::Derived { lateral: false, subquery: query, alias: None, sample: None })
}

/// The column of `DESCRIPTOR(column)`.
fn column(argument: &Expr) -> Option<&Expr> {
    let Expr::Function(Function { args: FunctionArguments::List(list), .. }) = argument else { return None };
    match list.args.as_slice() {
        [FunctionArg::Unnamed(FunctionArgExpr::Expr(column @ Expr::Identifier(_)))] => {
            is_call(argument, "DESCRIPTOR").then_some(column)
        }
        _ => None,
    }
}

/// The nanoseconds of an argument, which must be positive but for an OFFSET.
fn length(function: &str, parameter: &str, argument: &Expr) -> Result<i128> {
    let refuse = |what: &str| Err(Error::usage(format!("{function}: {parameter} {what}")));
    let Some(IntervalMonthDayNano { months, days, nanoseconds }) = interval(argument) else {
        return refuse("must be an interval literal such as INTERVAL '10' MINUTES");
    };
    if months != 0 {
        return refuse(match parameter {
            "GAP" => "is in months or years, which have no fixed length; say it in days",
            _ => "is in months or years, which have no fixed length; group by date_trunc('month', ts) instead",
        });
    }
    match i128::from(days) * NANOS_PER_DAY + i128::from(nanoseconds) {
        length if length <= 0 && parameter != "OFFSET" => refuse("must be positive"),
        length => Ok(length),
    }
}

/// An interval literal, with or without a minus, read as the planner will read it.
fn interval(expr: &Expr) -> Option<IntervalMonthDayNano> {
    let (sign, literal) = match expr {
        Expr::UnaryOp { op: UnaryOperator::Minus, expr } => ("-", expr.as_ref()),
        expr => ("", expr),
    };
    let Expr::Interval(Interval {
        value,
        leading_field,
        leading_precision: None,
        last_field: None,
        fractional_seconds_precision: None,
    }) = literal
    else {
        return None;
    };
    let unit = leading_field.as_ref().map(|unit| format!(" {unit}")).unwrap_or_default();
    let text = format!("{sign}{}{unit}", amount(value)?);
    parse_interval_month_day_nano_config(&text, IntervalParseConfig::new(IntervalUnit::Second)).ok()
}

fn amount(value: &Expr) -> Option<String> {
    match value {
        Expr::Value(ValueWithSpan { value: Value::SingleQuotedString(text), .. }) => Some(text.clone()),
        Expr::Value(ValueWithSpan { value: Value::Number(number, false), .. }) => Some(number.clone()),
        Expr::UnaryOp { op: UnaryOperator::Minus, expr } => Some(format!("-{}", amount(expr)?)),
        _ => None,
    }
}

fn at(error: Error, span: Span) -> Error {
    match location(span.start) {
        Some(place) => error.at(place),
        None => error,
    }
}

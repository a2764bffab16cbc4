//! What must be rewritten in the syntax tree, before the planner sees it.
//!
//! | written | planned as |
//! |---|---|
//! | `TIMESTAMPDIFF(SECOND, a, b)`, `TIMESTAMPADD(DAY, 1, a)` | `timestampdiff('second', a, b)`, … |
//! | `FLOOR(a TO HOUR)`, `CEIL(a TO HOUR)` | `date_trunc('hour', a)`, `date_ceil('hour', a)` |
//! | `LISTAGG(s)` | `listagg(s, ',')` |
//! | `j -> 'a' -> 0`, `j -> 'a' ->> 'b'` | `json_get(j, 'a', 0)`, `json_as_text(j, 'a', 'b')` |
//! | `LOCALTIMESTAMP`, `PROCTIME()`, `UNIX_TIMESTAMP()` | `now()` in their type, so that an epoch gives it its time |
//!
//! Whatever else, and a unit that is not known, is left as it is.

use std::ops::ControlFlow;

use sqlparser::ast::{
    BinaryOperator, CeilFloorKind, DateTimeField, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentList,
    FunctionArguments, Ident, ObjectName, Value, VisitMut, visit_expressions_mut,
};

/// Rewrites all expressions of a query, a statement or an expression, in place.
pub fn rewrite<N: VisitMut>(node: &mut N) {
    let _ = visit_expressions_mut(node, |expr| {
        rewrite_one(expr);
        ControlFlow::<()>::Continue(())
    });
}

/// Rewrites an expression and those within it, in place.
pub fn rewrite_expr(expr: &mut Expr) {
    rewrite(expr);
}

fn rewrite_one(expr: &mut Expr) {
    match expr {
        Expr::Floor { expr: inner, field: CeilFloorKind::DateTimeField(field) } => {
            if let Some(unit) = unit_of(field) {
                *expr = call("date_trunc", [text(unit), take(inner)]);
            }
        }
        Expr::Ceil { expr: inner, field: CeilFloorKind::DateTimeField(field) } => {
            if let Some(unit) = unit_of(field) {
                *expr = call("date_ceil", [text(unit), take(inner)]);
            }
        }
        Expr::BinaryOp { left, op: BinaryOperator::Arrow, right } => {
            *expr = lookup("json_get", take(left), take(right));
        }
        Expr::BinaryOp { left, op: BinaryOperator::LongArrow, right } => {
            *expr = lookup("json_as_text", take(left), take(right));
        }
        Expr::Function(function) => match on_the_clock(function).map(crate::sql::parse_expression) {
            Some(Ok(now)) => *expr = now,
            _ => rewrite_call(function),
        },
        _ => {}
    }
}

/// An arrow: what stands left of it is rewritten already, and a chain becomes one call, which reads its document once.
fn lookup(name: &str, mut json: Expr, key: Expr) -> Expr {
    while let Expr::Nested(inner) = json {
        json = *inner;
    }
    if let Expr::Function(chain) = &mut json
        && name_of(chain).as_deref() == Some("json_get")
        && let FunctionArguments::List(list) = &mut chain.args
    {
        list.args.push(argument(key));
        chain.name = named(name);
        return json;
    }
    call(name, [json, key])
}

fn name_of(function: &Function) -> Option<String> {
    match function.name.0.as_slice() {
        [part] => part.as_ident().map(|ident| ident.value.to_ascii_lowercase()),
        _ => None,
    }
}

/// What a function that only reads the clock is, in terms of `now()`.
fn on_the_clock(function: &Function) -> Option<&'static str> {
    let is_bare = match &function.args {
        FunctionArguments::None => true,
        FunctionArguments::List(list) => list.args.is_empty(),
        FunctionArguments::Subquery(_) => false,
    };
    match name_of(function)?.as_str() {
        _ if !is_bare => None,
        "localtimestamp" => Some("CAST(now() AS TIMESTAMP(3))"),
        "proctime" => Some("now()"),
        "unix_timestamp" => Some("CAST(floor(date_part('epoch', now())) AS BIGINT)"),
        _ => None,
    }
}

fn rewrite_call(function: &mut Function) {
    let name = name_of(function);
    let FunctionArguments::List(FunctionArgumentList { args, .. }) = &mut function.args else { return };
    match (name.as_deref(), args.as_mut_slice()) {
        (Some("timestampdiff" | "timestampadd"), [FunctionArg::Unnamed(FunctionArgExpr::Expr(unit)), ..]) => {
            if let Expr::Identifier(Ident { value, quote_style: None, .. }) = unit {
                *unit = text(&value.to_ascii_lowercase());
            }
        }
        (Some("listagg"), [_]) => args.push(argument(text(","))),
        _ => {}
    }
}

fn unit_of(field: &DateTimeField) -> Option<&'static str> {
    use DateTimeField as F;
    Some(match field {
        F::Year | F::Years => "year",
        F::Quarter => "quarter",
        F::Month | F::Months => "month",
        F::Week(None) | F::Weeks => "week",
        F::Day | F::Days => "day",
        F::Hour | F::Hours => "hour",
        F::Minute | F::Minutes => "minute",
        F::Second | F::Seconds => "second",
        F::Millisecond | F::Milliseconds => "millisecond",
        F::Microsecond | F::Microseconds => "microsecond",
        _ => return None,
    })
}

fn take(expr: &mut Expr) -> Expr {
    std::mem::replace(expr, Expr::Value(Value::Null.into()))
}

fn text(text: &str) -> Expr {
    Expr::Value(Value::SingleQuotedString(text.to_string()).into())
}

fn named(name: &str) -> ObjectName {
    ObjectName::from(vec![Ident::new(name)])
}

fn argument(expr: Expr) -> FunctionArg {
    FunctionArg::Unnamed(FunctionArgExpr::Expr(expr))
}

fn call<const N: usize>(name: &str, args: [Expr; N]) -> Expr {
    Expr::Function(Function {
        name: named(name),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::List(FunctionArgumentList {
            duplicate_treatment: None,
            args: args.map(argument).into(),
            clauses: Vec::new(),
        }),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: Vec::new(),
    })
}

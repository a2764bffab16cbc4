//! What DataFusion must be told to plan our SQL.
//!
//! Names are kept as written and compared exactly: by default DataFusion lower-cases what is not quoted, and a JSON
//! field `orderId` would then be NULL without an error. Errors of the planner carry places. There is one time zone, UTC.
//! A comparison that DataFusion would answer wrongly is refused.

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::error::Result;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawBinaryExpr, RawFieldAccessExpr};
use datafusion::logical_expr::{Expr, ExprSchemable, GetFieldAccess};
use datafusion::prelude::SessionConfig;
use sqlparser::ast::BinaryOperator;

use super::types::{MillstreamTypePlanner, ZONE};
use crate::error::Error;

/// The settings that our SQL relies on.
pub fn configure(mut config: SessionConfig) -> SessionConfig {
    let options = config.options_mut();
    options.sql_parser.enable_ident_normalization = false;
    options.sql_parser.collect_spans = true;
    options.catalog.information_schema = true;
    options.execution.time_zone = Some(ZONE.to_string());
    config
}

/// The planners that our SQL relies on; functions are registered elsewhere.
pub fn register(mut builder: SessionStateBuilder) -> SessionStateBuilder {
    // Before the planner that makes a call of the access.
    builder.expr_planners().get_or_insert_default().insert(0, Arc::new(MapAccess));
    builder.expr_planners().get_or_insert_default().insert(0, Arc::new(Differences));
    builder.with_type_planner(Arc::new(MillstreamTypePlanner))
}

/// `m['key']` and `m[1]`: DataFusion compares keys only with a literal of exactly their type, so it becomes one.
#[derive(Debug)]
struct MapAccess;

impl ExprPlanner for MapAccess {
    fn plan_field_access(
        &self,
        mut access: RawFieldAccessExpr,
        schema: &DFSchema,
    ) -> Result<PlannerResult<RawFieldAccessExpr>> {
        if let Ok(DataType::Map(entries, _)) = access.expr.get_type(schema)
            && let DataType::Struct(fields) = entries.data_type()
            && let Some(key) = fields.first()
        {
            match &mut access.field_access {
                GetFieldAccess::NamedStructField { name } => *name = name.cast_to(key.data_type())?,
                GetFieldAccess::ListIndex { key: index } => {
                    if let Expr::Literal(value, _) = index.as_mut() {
                        *value = value.cast_to(key.data_type())?;
                    }
                }
                GetFieldAccess::ListRange { .. } => {}
            }
        }
        Ok(PlannerResult::Original(access))
    }
}

/// `ts1 - ts2 > INTERVAL '2' DAY` is refused: intervals are compared by their months, then by their days, and a
/// difference of timestamps has none of these, however long it is.
#[derive(Debug)]
struct Differences;

impl ExprPlanner for Differences {
    fn plan_binary_op(&self, binary: RawBinaryExpr, schema: &DFSchema) -> Result<PlannerResult<RawBinaryExpr>> {
        let RawBinaryExpr { op, left, right } = &binary;
        let is_difference = |expr: &Expr| matches!(expr.get_type(schema), Ok(DataType::Duration(_)));
        let is_wrong = (has_days(left) && is_difference(right)) || (has_days(right) && is_difference(left));
        if is_comparison(op) && is_wrong {
            return Err(Error::usage(
                "a difference of timestamps cannot be compared with an interval of days or months; say hours: INTERVAL \
                 '48' HOUR for two days",
            )
            .into());
        }
        Ok(PlannerResult::Original(binary))
    }
}

fn is_comparison(op: &BinaryOperator) -> bool {
    use BinaryOperator::{Eq, Gt, GtEq, Lt, LtEq, NotEq};
    matches!(op, Eq | Gt | GtEq | Lt | LtEq | NotEq)
}

/// Whether it is an interval, written down, that has days or months.
fn has_days(expr: &Expr) -> bool {
    let Expr::Literal(ScalarValue::IntervalMonthDayNano(Some(interval)), _) = expr else { return false };
    interval.months != 0 || interval.days != 0
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::TimeUnit;
    use datafusion::logical_expr::LogicalPlan;
    use datafusion::prelude::SessionContext;
    use datafusion::sql::parser::Statement as DFStatement;

    use super::*;

    /// A query, planned as the session plans it.
    async fn planned(sql: &str) -> Result<LogicalPlan> {
        let config = configure(SessionConfig::new());
        let state = register(SessionStateBuilder::new().with_config(config).with_default_features()).build();
        let context = SessionContext::new_with_state(state);
        let query = crate::sql::parse_query(sql).unwrap();
        let statement = sqlparser::ast::Statement::Query(query);
        context.state().statement_to_plan(DFStatement::Statement(Box::new(statement))).await
    }

    /// The types of its columns.
    async fn types(sql: &str) -> Vec<DataType> {
        let plan = planned(sql).await.unwrap();
        plan.schema().fields().iter().map(|field| field.data_type().clone()).collect()
    }

    #[tokio::test]
    async fn our_types_are_planned_in_queries() {
        let sql = "SELECT CAST(NULL AS BYTES) AS a, TIMESTAMP '3000-01-01 00:00:00' AS b, \
                   CAST(NULL AS ROW<orderId MAP<STRING, INT>>) AS c, CAST(1.5 AS DECIMAL) AS d, \
                   CAST('2024-01-01' AS TIMESTAMP(3) WITH LOCAL TIME ZONE) AS e FETCH FIRST ROW ONLY";
        let found = types(sql).await;
        assert_eq!(found[0], DataType::Binary);
        assert_eq!(found[1], DataType::Timestamp(TimeUnit::Microsecond, None));
        assert_eq!(crate::sql::types::sql_type(&found[2]), "ROW<`orderId` MAP<STRING, INT>>");
        assert_eq!(found[3], DataType::Decimal128(10, 0));
        assert_eq!(found[4], DataType::Timestamp(TimeUnit::Millisecond, Some(ZONE.into())));
    }

    #[tokio::test]
    async fn a_difference_of_timestamps_is_not_compared_with_days() {
        let times = "FROM (SELECT TIMESTAMP '2026-01-05 00:00:00' AS a, TIMESTAMP '2026-01-01 00:00:00' AS b)";
        for wrong in ["a - b > INTERVAL '2' DAY", "INTERVAL '1' MONTH <= a - b", "(a - b) = INTERVAL '1 day 2 hours'"] {
            let error = planned(&format!("SELECT {wrong} {times}")).await.unwrap_err().to_string();
            assert!(error.contains("say hours: INTERVAL '48' HOUR"), "{error}");
        }
        for right in ["a - b > INTERVAL '48' HOUR", "a > b + INTERVAL '2' DAY", "INTERVAL '1' DAY > INTERVAL '2' DAY"] {
            planned(&format!("SELECT {right} {times}")).await.unwrap();
        }
    }
}

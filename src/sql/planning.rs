//! What DataFusion must be told to plan our SQL.
//!
//! Names are kept as written and compared exactly: by default DataFusion lower-cases what is not quoted, and a JSON
//! field `orderId` would then be NULL without an error. Errors of the planner carry places. There is one time zone, UTC.

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::common::DFSchema;
use datafusion::error::Result;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawFieldAccessExpr};
use datafusion::logical_expr::{Expr, ExprSchemable, GetFieldAccess};
use datafusion::prelude::SessionConfig;

use super::types::{MillstreamTypePlanner, ZONE};

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

#[cfg(test)]
mod tests {
    use arrow::datatypes::TimeUnit;
    use datafusion::prelude::SessionContext;
    use datafusion::sql::parser::Statement as DFStatement;

    use super::*;

    /// The types of the columns of a query, planned as the session plans it.
    async fn types(sql: &str) -> Vec<DataType> {
        let config = configure(SessionConfig::new());
        let state = register(SessionStateBuilder::new().with_config(config).with_default_features()).build();
        let context = SessionContext::new_with_state(state);
        let query = crate::sql::parse_query(sql).unwrap();
        let statement = sqlparser::ast::Statement::Query(query);
        let plan = context.state().statement_to_plan(DFStatement::Statement(Box::new(statement))).await.unwrap();
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
}

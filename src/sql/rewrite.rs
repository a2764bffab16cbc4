//! Rewrites of a parsed query, where DataFusion parses more than it plans.
//!
//! Windows are written out (`windows`), `FETCH FIRST n ROWS ONLY` becomes a limit, in every query of the tree, and
//! `INFORMATION_SCHEMA` is lower-cased, as names are compared exactly and its tables have lower-case ones. Forms that
//! mean something else (`WITH TIES`, `PERCENT`) and a query that hides an INSERT are refused, because DataFusion would
//! drop or misread them.

use std::ops::ControlFlow;

use sqlparser::ast::{Expr, LimitClause, ObjectName, ObjectNamePart, Query, SetExpr, Value, VisitMut, VisitorMut};

use super::windows;
use crate::error::{Error, Result};

/// Rewrites every query in `node`.
pub(super) fn queries<T: VisitMut>(node: &mut T) -> Result<()> {
    windows::expand(node)?;
    match node.visit(&mut Rewriter) {
        ControlFlow::Break(error) => Err(error),
        ControlFlow::Continue(()) => Ok(()),
    }
}

struct Rewriter;

impl VisitorMut for Rewriter {
    type Break = Error;

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<Error> {
        match fetch_to_limit(query).and_then(|()| refuse_changes(query)) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => ControlFlow::Break(error),
        }
    }

    fn pre_visit_relation(&mut self, relation: &mut ObjectName) -> ControlFlow<Error> {
        if let [.., ObjectNamePart::Identifier(schema), ObjectNamePart::Identifier(table)] = relation.0.as_mut_slice()
            && schema.value.eq_ignore_ascii_case("information_schema")
        {
            schema.value.make_ascii_lowercase();
            table.value.make_ascii_lowercase();
        }
        ControlFlow::Continue(())
    }
}

fn fetch_to_limit(query: &mut Query) -> Result<()> {
    let Some(fetch) = query.fetch.take() else { return Ok(()) };
    if fetch.with_ties || fetch.percent {
        return Err(Error::usage("FETCH with TIES or PERCENT is not supported; say FETCH FIRST n ROWS ONLY"));
    }
    let quantity = fetch.quantity.unwrap_or_else(|| Expr::value(Value::Number("1".into(), false)));
    match &mut query.limit_clause {
        None => {
            query.limit_clause =
                Some(LimitClause::LimitOffset { limit: Some(quantity), offset: None, limit_by: vec![] });
            Ok(())
        }
        Some(LimitClause::LimitOffset { limit: limit @ None, .. }) => {
            *limit = Some(quantity);
            Ok(())
        }
        Some(_) => Err(Error::usage("a query has both LIMIT and FETCH; keep one of them")),
    }
}

fn refuse_changes(query: &Query) -> Result<()> {
    match query.body.as_ref() {
        SetExpr::Insert(_) => {
            Err(Error::usage("WITH … INSERT is not supported; put the WITH after it: INSERT INTO t WITH … SELECT …"))
        }
        SetExpr::Update(_) | SetExpr::Delete(_) | SetExpr::Merge(_) => {
            Err(Error::usage("UPDATE, DELETE and MERGE are not supported within a query"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use sqlparser::parser::Parser;

    use super::*;
    use crate::sql::dialect::MillstreamDialect;

    fn run(sql: &str) -> Result<String> {
        let mut statements = Parser::parse_sql(&MillstreamDialect, sql).unwrap();
        queries(&mut statements[0])?;
        Ok(statements[0].to_string())
    }

    #[test]
    fn fetch_becomes_a_limit() {
        for (sql, expected) in [
            ("SELECT 1 FETCH FIRST 5 ROWS ONLY", "SELECT 1 LIMIT 5"),
            ("SELECT 1 FETCH NEXT ROW ONLY", "SELECT 1 LIMIT 1"),
            ("SELECT 1 OFFSET 2 ROWS FETCH FIRST 5 ROWS ONLY", "SELECT 1 LIMIT 5 OFFSET 2 ROWS"),
            ("SELECT * FROM (SELECT 1 FETCH FIRST 5 ROWS ONLY) AS x", "SELECT * FROM (SELECT 1 LIMIT 5) AS x"),
            (
                "WITH a AS (SELECT 1 FETCH FIRST 5 ROWS ONLY) SELECT (SELECT 1 FETCH FIRST 1 ROW ONLY)",
                "WITH a AS (SELECT 1 LIMIT 5) SELECT (SELECT 1 LIMIT 1)",
            ),
        ] {
            assert_eq!(run(sql).unwrap(), expected);
        }
    }

    #[test]
    fn the_information_schema_is_found_in_capitals() {
        let sql = "SELECT * FROM INFORMATION_SCHEMA.TABLES JOIN k.Orders USING (A)";
        assert_eq!(run(sql).unwrap(), "SELECT * FROM information_schema.tables JOIN k.Orders USING(A)");
    }

    #[test]
    fn other_forms_are_refused() {
        for (sql, part) in [
            ("SELECT 1 FETCH FIRST 5 ROWS WITH TIES", "TIES"),
            ("SELECT 1 FETCH FIRST 5 PERCENT ROWS ONLY", "PERCENT"),
            ("SELECT 1 LIMIT 3 FETCH FIRST 5 ROWS ONLY", "both"),
            ("WITH a AS (SELECT 1) INSERT INTO t SELECT * FROM a", "WITH after it"),
        ] {
            let error = run(sql).unwrap_err().to_string();
            assert!(error.contains(part), "{sql}: {error}");
        }
    }
}

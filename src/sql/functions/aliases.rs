//! Flink's names for functions that DataFusion has under another one.
//!
//! Limits: `sign` is a DOUBLE, and so is `truncate` of an INT; `collect` gives an ARRAY, not a MULTISET. `listagg(s)`
//! needs [`rewrite`](super::rewrite), which writes the separator.

use datafusion::execution::FunctionRegistry;

use crate::error::Result;

/// DataFusion's scalar functions, and what Flink calls them.
const SCALAR: [(&str, &str); 5] = [
    ("ceil", "ceiling"),
    ("trunc", "truncate"),
    ("signum", "sign"),
    ("starts_with", "startswith"),
    ("ends_with", "endswith"),
];

/// DataFusion's aggregate functions, and what Flink calls them.
const AGGREGATE: [(&str, &str); 3] =
    [("string_agg", "listagg"), ("array_agg", "collect"), ("approx_distinct", "approx_count_distinct")];

/// Registers every alias.
pub(super) fn register(registry: &mut dyn FunctionRegistry) -> Result<()> {
    for (name, alias) in SCALAR {
        let function = registry.udf(name)?.as_ref().clone().with_aliases([alias]);
        registry.register_udf(function.into())?;
    }
    for (name, alias) in AGGREGATE {
        let function = registry.udaf(name)?.as_ref().clone().with_aliases([alias]);
        registry.register_udaf(function.into())?;
    }
    Ok(())
}

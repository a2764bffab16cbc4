//! The functions that Flink's users reach for and DataFusion lacks, or means otherwise.
//!
//! [`register`] puts them into a session, before or over DataFusion's; [`rewrite`] prepares those whose syntax no
//! function can have. All are immutable: the same rows give the same result in every rerun. A literal that is wrong, be
//! it a pattern, a path or a unit, is refused when the query is planned; text in a row that does not fit is NULL.
//!
//! | theme | functions |
//! |---|---|
//! | dates and text | date_format to_timestamp to_date unix_timestamp from_unixtime to_timestamp_ltz convert_tz |
//! | calendar | year quarter month week dayofyear dayofmonth dayofweek hour minute second timestampadd timestampdiff |
//! | strings | locate split_index regexp regexp_extract str_to_map startswith endswith |
//! | event time | current_watermark hop_starts cumulate_ends, and with OVER session_start session_end |
//! | JSON | json_value json_query json_exists json_get json_get_str json_get_int json_get_float json_get_bool |
//! | | json_get_json json_as_text json_contains json_length, and the operators `->` and `->>` |
//! | addresses | parse_url url_encode url_decode |
//! | digits, hashes | hex unhex bin sha1 sha2 sha224 sha256 sha384 sha512 |
//! | numbers, the rest | mod ceiling truncate sign if typeof |
//! | aggregates | listagg collect approx_count_distinct |
//!
//! These keep DataFusion's meaning, which is not Flink's:
//!
//! | call | here | Flink |
//! |---|---|---|
//! | `concat(a, NULL)` | skips NULL | NULL |
//! | `regexp_replace(s, p, r)` | the first match; all with a fourth argument, `'g'` | every match |
//! | `substring(s, -2)` | all of s | the last two |
//! | `avg(INT)` | DOUBLE | INT |
//! | `element_at(map, k)` | a list | none such |
//! | `to_timestamp(s)` | TIMESTAMP(9) of ISO's notation, an error if it does not fit | TIMESTAMP(3), NULL |
//!
//! Limit: functions of the clock, such as `unix_timestamp()`, are none of these; [`rewrite`] says `now()` for them.

mod aliases;
mod calendar;
mod conditional;
mod dates;
mod function;
mod hashes;
mod json;
mod memo;
mod moment;
mod pattern;
mod patterned;
pub(crate) mod sessions;
mod strings;
mod syntax;
mod types;
mod urls;
mod watermark;
mod windows;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use datafusion::execution::FunctionRegistry;
use datafusion::logical_expr::{ScalarUDF, ScalarUDFImpl, WindowUDF};

use crate::error::Result;

pub use syntax::{rewrite, rewrite_expr};
pub use watermark::CURRENT_WATERMARK;

/// Registers every function of ours; they replace DataFusion's of the same name, which must be there already.
pub fn register(registry: &mut dyn FunctionRegistry) -> Result<()> {
    aliases::register(registry)?;
    for ours in dates::patterned() {
        let theirs = registry.udf(ours.name())?;
        registry.register_udf(Arc::new(ScalarUDF::from(patterned::Patterned::new(ours, theirs))))?;
    }
    registry.register_udf(Arc::new(ScalarUDF::from(conditional::If::new())))?;
    registry.register_udf(Arc::new(ScalarUDF::from(watermark::CurrentWatermark::new())))?;
    let themes = [
        dates::functions,
        calendar::functions,
        strings::functions,
        json::functions,
        urls::functions,
        hashes::functions,
        types::functions,
        conditional::functions,
    ];
    for function in themes.into_iter().flat_map(|functions| functions()) {
        registry.register_udf(Arc::new(ScalarUDF::from(function)))?;
    }
    for function in windows::functions() {
        registry.register_udf(Arc::new(ScalarUDF::from(function)))?;
    }
    for function in sessions::functions() {
        registry.register_udwf(Arc::new(WindowUDF::from(function)))?;
    }
    Ok(())
}

//! The dialect: DataFusion's default one, with four things set right.
//!
//! DataFusion plans what sqlparser's [`GenericDialect`] parses, and both test for that dialect by its type. So this one
//! says that it is `GenericDialect`, forwards everything that `GenericDialect` overrides, and differs only where Flink's
//! users would be surprised:
//!
//! - a projection does not end in a comma: with it, `SELECT k, offset, v` stops before the keyword `offset`;
//! - `MAP<K, V>` is a type, as `ARRAY<T>` is;
//! - `->` and `->>` bind as closely as they read, so `m -> 'k' = 'v'` compares what was found;
//! - `/*! … */` is a comment like any other.
//!
//! The forwarded list was taken from sqlparser 0.62 by a script. A method that a later sqlparser overrides in
//! `GenericDialect` has the trait's own default here until it is added to the list.

use std::any::TypeId;

use sqlparser::dialect::{Dialect, GenericDialect};
use sqlparser::parser::{Parser, ParserError};
use sqlparser::tokenizer::Token;

/// Between the comparison operators (20) and `+` (30), as in PostgreSQL.
const ARROW_PRECEDENCE: u8 = 25;

/// The SQL dialect of Millstream; see the module's text.
#[derive(Debug, Default, Clone, Copy)]
pub struct MillstreamDialect;

macro_rules! forward_to_generic {
    ($($flag:ident)*) => { $(fn $flag(&self) -> bool { GenericDialect.$flag() })* };
}

impl Dialect for MillstreamDialect {
    fn dialect(&self) -> TypeId {
        TypeId::of::<GenericDialect>()
    }

    fn supports_projection_trailing_commas(&self) -> bool {
        false
    }

    fn supports_multiline_comment_hints(&self) -> bool {
        false
    }

    fn supports_map_literal_with_angle_brackets(&self) -> bool {
        true
    }

    fn get_next_precedence(&self, parser: &Parser) -> Option<Result<u8, ParserError>> {
        match parser.peek_token_ref().token {
            Token::Arrow | Token::LongArrow => Some(Ok(ARROW_PRECEDENCE)),
            _ => None,
        }
    }

    fn is_delimited_identifier_start(&self, ch: char) -> bool {
        GenericDialect.is_delimited_identifier_start(ch)
    }

    fn is_identifier_start(&self, ch: char) -> bool {
        GenericDialect.is_identifier_start(ch)
    }

    fn is_identifier_part(&self, ch: char) -> bool {
        GenericDialect.is_identifier_part(ch)
    }

    forward_to_generic! {
        supports_unicode_string_literal
        supports_partition_by_after_order_by
        supports_array_join_syntax
        supports_group_by_expr
        supports_group_by_with_modifier
        supports_left_associative_joins_without_parens
        supports_connect_by
        supports_match_recognize
        supports_pipe_operator
        supports_start_transaction_modifier
        supports_window_function_null_treatment_arg
        supports_dictionary_syntax
        supports_window_clause_named_window_reference
        supports_parenthesized_set_variables
        supports_select_wildcard_except
        support_map_literal_syntax
        allow_extract_custom
        allow_extract_single_quotes
        supports_extract_comma_syntax
        supports_create_view_comment_syntax
        supports_parens_around_table_factor
        supports_values_as_table_factor
        supports_create_index_with_clause
        supports_explain_with_utility_options
        supports_limit_comma
        supports_update_order_by
        supports_from_first_select
        supports_asc_desc_in_column_definition
        supports_try_convert
        supports_bitwise_shift_operators
        supports_comment_on
        supports_load_extension
        supports_named_fn_args_with_assignment_operator
        supports_struct_literal
        supports_empty_projections
        supports_nested_comments
        supports_user_host_grantee
        supports_string_escape_constant
        supports_array_typedef_with_brackets
        supports_match_against
        supports_set_names
        supports_comma_separated_set_assignments
        supports_filter_during_aggregation
        supports_select_wildcard_exclude
        supports_data_type_signed_suffix
        supports_interval_options
        supports_quote_delimited_string
        supports_select_wildcard_replace
        supports_select_wildcard_ilike
        supports_select_wildcard_rename
        supports_optimize_table
        supports_install
        supports_detach
        supports_prewhere
        supports_with_fill
        supports_limit_by
        supports_interpolate
        supports_settings
        supports_select_format
        supports_comment_optimizer_hint
        supports_constraint_keyword_without_name
        supports_key_column_option
        supports_comma_separated_trim
        supports_cte_without_as
        supports_select_item_multi_column_alias
        supports_xml_expressions
    }
}

#[cfg(test)]
mod tests {
    use sqlparser::parser::Parser;

    use super::*;

    fn check(sql: &str, printed: &str) {
        let statements = Parser::parse_sql(&MillstreamDialect, sql).unwrap();
        assert_eq!(statements[0].to_string(), printed);
    }

    #[test]
    fn a_keyword_after_a_comma_is_a_column() {
        check("select k, offset, v from t", "SELECT k, offset, v FROM t");
    }

    #[test]
    fn arrows_bind_closer_than_comparisons() {
        let expr = Parser::new(&MillstreamDialect).try_with_sql("m -> 'a' = 'b'").unwrap().parse_expr().unwrap();
        let sqlparser::ast::Expr::BinaryOp { op, .. } = expr else { panic!("{expr}") };
        assert_eq!(op.to_string(), "=");
    }

    #[test]
    fn what_looks_like_a_mysql_comment_is_a_comment() {
        check("SELECT 1 /*! + 1 */", "SELECT 1");
    }

    #[test]
    fn maps_are_types_and_both_quotes_quote() {
        check("SELECT CAST(`a b` AS MAP<STRING, INT>), \"c d\"", "SELECT CAST(`a b` AS Map(STRING, INT)), \"c d\"");
    }
}

//! What the broker leaves out of a topic: messages without one of some tags, or whose properties do not fit.
//!
//! The idea: brokers take whatever they are told. They know tags by a hash code alone, which others may share, so tags
//! are looked at here once more. An expression that they cannot parse they apply to nothing or to everything, without
//! an error; so only those pass here that they are known to take, in their own spelling: comparisons of properties with
//! numbers, texts and truth values, BETWEEN, IN, IS NULL, AND, OR, NOT and parentheses.
//!
//! What it does not promise: to judge as SQL does. Properties are texts. Beside a number the broker makes a number of
//! them, an integer beside an integer. Where that fails, it gives up, and the message does not pass, whatever the rest
//! of the condition would say; but what AND and OR have decided before that stands.

use std::collections::BTreeSet;

use rocketmq_client_rust::MessageSelector;
use rocketmq_model::common::message::MessageConst;
use rocketmq_model::common::message::message_ext::MessageExt;
use sqlparser::ast::{BinaryOperator, Expr, UnaryOperator, Value};
use sqlparser::dialect::GenericDialect;
use sqlparser::parser::Parser;
use sqlparser::tokenizer::Token;

use crate::error::{Error, Result};
use crate::sql::options::OptionReader;

/// The words of brokers' conditions, which SQL in part takes for names.
const RESERVED: [&str; 12] =
    ["AND", "BETWEEN", "CONTAINS", "ENDSWITH", "FALSE", "IN", "IS", "NOT", "NULL", "OR", "STARTSWITH", "TRUE"];

/// Which messages pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Filter {
    /// Those with one of these tags.
    Tags(BTreeSet<String>),
    /// Those whose properties fit an expression, in a broker's spelling.
    Sql(String),
}

impl Filter {
    /// Takes `filter.tag` or `filter.sql`; none, if all messages pass.
    pub(super) fn take(reader: &mut OptionReader<'_>) -> Result<Option<Self>> {
        let tags = reader.with("filter.tag", "tags such as 'new || paid', or '*'", tags)?;
        let Some(text) = reader.text("filter.sql")? else {
            return Ok(tags.filter(|tags| !tags.is_empty()).map(Self::Tags));
        };
        if tags.is_some() {
            let advice = "'filter.tag' and 'filter.sql' exclude each other; an expression may ask for TAGS, too";
            return Err(reader.blame(Error::usage(advice)));
        }
        let refused = |reason| Error::usage(format!("option 'filter.sql': {reason}"));
        expression(&text).map(|sql| Some(Self::Sql(sql))).map_err(|reason| reader.blame(refused(reason)))
    }

    /// What the broker is told.
    pub(super) fn selector(&self) -> MessageSelector {
        match self {
            Self::Tags(tags) => MessageSelector::by_tag(tags.iter().map(String::as_str).collect::<Vec<_>>().join("||")),
            Self::Sql(sql) => MessageSelector::by_sql(sql.as_str()),
        }
    }

    /// Whether a message that the broker gave passes, as far as can be told here.
    pub(super) fn passes(&self, message: &MessageExt) -> bool {
        match self {
            Self::Tags(tags) => {
                let tag = message.properties().get(MessageConst::PROPERTY_TAGS);
                tag.is_some_and(|tag| tags.contains(tag.as_str()))
            }
            Self::Sql(_) => true,
        }
    }
}

/// `a || b`; none for `*`.
fn tags(text: &str) -> Option<BTreeSet<String>> {
    if text.trim() == "*" {
        return Some(BTreeSet::new());
    }
    let tag = |tag: &str| (!tag.is_empty() && tag != "*" && !tag.contains('|')).then(|| tag.to_string());
    text.split("||").map(|text| tag(text.trim())).collect()
}

/// An expression in a broker's spelling; in words, why a broker would not take it.
fn expression(text: &str) -> Result<String, String> {
    let parsed = Parser::new(&GenericDialect {}).try_with_sql(text).and_then(|mut parser| {
        let expr = parser.parse_expr()?;
        Ok((expr, parser.peek_token().token))
    });
    let (expr, rest) = parsed.map_err(|e| e.to_string())?;
    if rest != Token::EOF {
        return Err(format!("'{rest}' is not expected there"));
    }
    check_condition(&expr)?;
    Ok(expr.to_string())
}

fn check_condition(expr: &Expr) -> Result<(), String> {
    match expr {
        Expr::Nested(inner) => check_condition(inner),
        Expr::BinaryOp { left, op: BinaryOperator::And | BinaryOperator::Or, right } => {
            check_condition(left)?;
            check_condition(right)
        }
        // For brokers NOT belongs to the word behind it.
        Expr::UnaryOp { op: UnaryOperator::Not, expr: inner } => match &**inner {
            Expr::Nested(inner) => check_condition(inner),
            _ => Err(format!("'{expr}' needs parentheses, as in NOT (a = 1)")),
        },
        Expr::BinaryOp { left, op: BinaryOperator::Eq | BinaryOperator::NotEq, right } => {
            // Brokers judge by the left side: what it is, and whether it is there.
            match (Operand::of(left)?, Operand::of(right)?) {
                (Operand::Property, _) => Ok(()),
                _ => Err(format!("'{expr}' has no property on its left")),
            }
        }
        Expr::BinaryOp {
            left,
            op: BinaryOperator::Lt | BinaryOperator::LtEq | BinaryOperator::Gt | BinaryOperator::GtEq,
            right,
        } => match (Operand::of(left)?, Operand::of(right)?) {
            (Operand::Property, Operand::Property | Operand::Number(_)) | (Operand::Number(_), Operand::Property) => {
                Ok(())
            }
            _ => Err(format!("'{expr}' compares something else than a property with a number")),
        },
        Expr::Between { expr: of, low, high, .. } => match (Operand::of(of)?, Operand::of(low)?, Operand::of(high)?) {
            (Operand::Property, Operand::Number(low), Operand::Number(high)) if low <= high => Ok(()),
            _ => Err(format!("'{expr}' is not a property BETWEEN a number and a higher one")),
        },
        Expr::InList { expr: of, list, .. } => {
            let is_text = |item: &Expr| matches!(Operand::of(item), Ok(Operand::Text));
            match Operand::of(of)? {
                Operand::Property if list.iter().all(is_text) => Ok(()),
                _ => Err(format!("'{expr}' is not a property IN a list of texts")),
            }
        }
        Expr::IsNull(of) | Expr::IsNotNull(of) => match Operand::of(of)? {
            Operand::Property => Ok(()),
            _ => Err(format!("'{expr}' is not about a property")),
        },
        _ => Err(format!("'{expr}' is no condition that brokers know; write it in a WHERE clause")),
    }
}

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Operand {
    Property,
    Number(f64),
    Text,
    Truth,
}

impl Operand {
    fn of(expr: &Expr) -> Result<Self, String> {
        let refused = |why: &str| Err(format!("'{expr}' {why}"));
        match expr {
            Expr::Identifier(name) if name.quote_style.is_some() => {
                refused("is quoted; texts stand in single quotes, names in none")
            }
            Expr::Identifier(name) if is_reserved(&name.value) => {
                refused("is a word of brokers' conditions, and no property's name")
            }
            Expr::Identifier(name) if is_name(&name.value) => Ok(Self::Property),
            Expr::UnaryOp { op: UnaryOperator::Minus, expr: inner } => match Self::of(inner)? {
                Self::Number(number) if number >= 0.0 => Ok(Self::Number(-number)),
                _ => refused("is no number"),
            },
            Expr::Value(value) => match &value.value {
                Value::Number(digits, false) => match number(digits) {
                    Some(number) => Ok(Self::Number(number)),
                    None => refused("is no number as brokers write them: 7, or 7.5; 0 without a point"),
                },
                // Of others a different text would be printed.
                Value::SingleQuotedString(text) if !text.contains("''") && !text.contains("\\'") => Ok(Self::Text),
                Value::Boolean(_) => Ok(Self::Truth),
                _ => refused("is no value that brokers know"),
            },
            _ => refused("is neither the name of a property nor a value"),
        }
    }
}

fn is_name(name: &str) -> bool {
    let is_first = |c: char| c.is_ascii_alphabetic() || c == '_' || c == '$';
    name.starts_with(is_first) && name.chars().all(|c| is_first(c) || c.is_ascii_digit())
}

fn is_reserved(name: &str) -> bool {
    RESERVED.iter().any(|reserved| reserved.eq_ignore_ascii_case(name))
}

/// A number as brokers parse it: an integer of 64 bits, or a fraction above 0.
fn number(digits: &str) -> Option<f64> {
    if let Ok(integer) = digits.parse::<i64>() {
        return (integer.to_string() == digits).then_some(integer as f64);
    }
    let (whole, fraction) = digits.split_once('.')?;
    let is_plain = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_digit());
    let number = digits.parse::<f64>().ok().filter(|number| *number > 0.0 && number.is_finite())?;
    (is_plain(whole) && is_plain(fraction)).then_some(number)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::connector::contract::fixture;

    fn filter(options: &[(&str, &str)]) -> Result<Option<Filter>, String> {
        let table = fixture::with_options(options);
        Filter::take(&mut OptionReader::new(&table)).map_err(|error| error.to_string())
    }

    #[test]
    fn tags_are_compared_themselves() {
        assert_eq!(filter(&[]), Ok(None));
        assert_eq!(filter(&[("filter.tag", " * ")]), Ok(None));
        let filter = filter(&[("filter.tag", "paid || Aa")]).unwrap().unwrap();
        assert_eq!(filter.selector(), MessageSelector::by_tag("Aa||paid"));
        let passes = |tag: Option<&str>| {
            let mut message = MessageExt::default();
            let properties = tag.map(|tag| (MessageConst::PROPERTY_TAGS.into(), tag.into()));
            message.message.set_properties(properties.into_iter().collect::<HashMap<_, _>>());
            filter.passes(&message)
        };
        // Java has one hash code for Aa and BB.
        assert_eq!([Some("Aa"), Some("BB"), Some("paid"), None].map(passes), [true, false, true, false]);
        for wrong in ["", "a ||", "a | b", "a || *"] {
            assert!(tags(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn expressions_are_in_a_brokers_spelling() {
        for (text, expected) in [
            ("amount>5 and region = 'eu'", "amount > 5 AND region = 'eu'"),
            ("a != 1 or 2.5 <= b", "a <> 1 OR 2.5 <= b"),
            ("x not between -3 and 7 and y is not null", "x NOT BETWEEN -3 AND 7 AND y IS NOT NULL"),
            ("not (TAGS in ('a','it''s')) -- said", "NOT (TAGS IN ('a', 'it''s'))"),
            ("paid = TRUE and (a is null or a < b)", "paid = true AND (a IS NULL OR a < b)"),
        ] {
            assert_eq!(expression(text).as_deref(), Ok(expected));
        }
    }

    #[test]
    fn words_of_conditions_are_no_names() {
        for word in ["and", "or", "in", "is", "between", "not", "contains", "StartsWith", "endswith"] {
            let error = expression(&format!("{word} = 1")).unwrap_err();
            assert_eq!(error, format!("'{word}' is a word of brokers' conditions, and no property's name"));
            assert!(expression(&format!("a = 1 and {word} is null")).is_err(), "{word}");
        }
        for word in ["true", "false", "null"] {
            assert!(expression(&format!("{word} = 1")).is_err(), "{word}");
        }
        assert!(expression("android = 1 AND notes IS NULL").is_ok());
    }

    #[test]
    fn what_brokers_would_not_take_is_refused() {
        for (text, part) in [
            ("a LIKE 'x%'", "no condition that brokers know"),
            ("a", "no condition that brokers know"),
            ("a = 1 b", "'b' is not expected there"),
            ("NOT a = 1", "needs parentheses"),
            ("1 = 1", "'1 = 1' has no property on its left"),
            ("1 <> a", "'1 <> a' has no property on its left"),
            ("TRUE = paid", "has no property on its left"),
            ("'eu' = region", "has no property on its left"),
            ("a > 'x'", "something else than a property with a number"),
            ("a > 0.0", "is no number as brokers write them"),
            ("a > 007", "is no number as brokers write them"),
            ("a > 9223372036854775808", "is no number as brokers write them"),
            ("a BETWEEN 7 AND 3", "BETWEEN a number and a higher one"),
            ("a IN (1, 2)", "IN a list of texts"),
            ("a + 1 = 2", "neither the name of a property nor a value"),
            ("\"a\" = 1", "is quoted"),
            ("a = NULL", "is no value that brokers know"),
            ("a =", "sql parser error"),
        ] {
            let error = filter(&[("filter.sql", text)]).unwrap_err();
            assert!(error.starts_with("table t: option 'filter.sql': ") && error.contains(part), "{text}: {error}");
        }
        let endless = filter(&[("filter.sql", &format!("a > {}.5", "9".repeat(400)))]).unwrap_err();
        assert!(endless.contains("is no number as brokers write them"), "{endless}");
        let both = [("filter.sql", "a = 1"), ("filter.tag", "a")];
        assert!(filter(&both).unwrap_err().contains("exclude each other"));
    }
}

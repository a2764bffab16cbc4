//! SQL types and Arrow types, in both directions.
//!
//! [`arrow_type`] takes the types that Flink's users bring and those of DataFusion. Where the two differ, Flink's
//! meaning holds: TIMESTAMP without a precision counts microseconds (nanoseconds end in the year 2262), DECIMAL is
//! `DECIMAL(10, 0)`. [`sql_type`] is its inverse: what it prints reads back as the same type, for every type that
//! `arrow_type` gives.
//!
//! It does not keep lengths: `VARCHAR(10)` is a STRING of any length, as `CHAR(10)` is.

use std::sync::Arc;

use arrow::datatypes::{
    DECIMAL128_MAX_PRECISION, DECIMAL256_MAX_PRECISION, DataType, Field, FieldRef, Fields, IntervalUnit, TimeUnit,
};
use datafusion::common::datatype::DataTypeExt;
use datafusion::logical_expr::planner::TypePlanner;
use sqlparser::ast::{ArrayElemTypeDef, DataType as SqlType, ExactNumberInfo, ObjectName, StructField, TimezoneInfo};

use super::options::did_you_mean;
use crate::error::{Error, Result};

/// The zone of TIMESTAMP_LTZ and TIMESTAMP WITH TIME ZONE.
pub const ZONE: &str = "UTC";

/// What an error proposes.
const KNOWN: &[&str] = &[
    "STRING",
    "VARCHAR",
    "CHAR",
    "BYTES",
    "BINARY",
    "VARBINARY",
    "BOOLEAN",
    "TINYINT",
    "SMALLINT",
    "INT",
    "INTEGER",
    "BIGINT",
    "FLOAT",
    "REAL",
    "DOUBLE",
    "DECIMAL",
    "NUMERIC",
    "DATE",
    "TIME",
    "TIMESTAMP",
    "TIMESTAMP_LTZ",
    "ARRAY",
    "MAP",
    "ROW",
];

/// Whether the word, in any case, begins a type.
pub(super) fn is_type_word(word: &str) -> bool {
    KNOWN.iter().chain(&["STRUCT", "INTERVAL", "TEXT"]).any(|known| known.eq_ignore_ascii_case(word))
}

/// The Arrow type of a SQL type.
pub fn arrow_type(sql: &SqlType) -> Result<DataType> {
    use SqlType as S;
    Ok(match sql {
        S::Boolean | S::Bool => DataType::Boolean,
        S::TinyInt(_) => DataType::Int8,
        S::SmallInt(_) | S::Int2(_) => DataType::Int16,
        S::Int(_) | S::Integer(_) | S::Int4(_) => DataType::Int32,
        S::BigInt(_) | S::Int8(_) => DataType::Int64,
        S::TinyIntUnsigned(_) => DataType::UInt8,
        S::SmallIntUnsigned(_) | S::Int2Unsigned(_) => DataType::UInt16,
        S::IntUnsigned(_) | S::IntegerUnsigned(_) | S::Int4Unsigned(_) => DataType::UInt32,
        S::BigIntUnsigned(_) | S::Int8Unsigned(_) => DataType::UInt64,
        S::Float(ExactNumberInfo::None) | S::Real | S::Float4 => DataType::Float32,
        S::Float(ExactNumberInfo::Precision(bits)) if *bits <= 24 => DataType::Float32,
        S::Float(ExactNumberInfo::Precision(bits)) if *bits <= 53 => DataType::Float64,
        S::Double(ExactNumberInfo::None) | S::DoublePrecision | S::Float8 => DataType::Float64,
        S::Decimal(number) | S::Numeric(number) | S::Dec(number) => decimal(*number)?,
        S::String(_) | S::Text | S::Varchar(_) | S::Nvarchar(_) | S::Char(_) | S::Character(_) => DataType::Utf8View,
        S::CharVarying(_) | S::CharacterVarying(_) => DataType::Utf8View,
        S::Bytes(_) | S::Binary(_) | S::Varbinary(_) | S::Bytea | S::Blob(_) => DataType::Binary,
        S::Date | S::Date32 => DataType::Date32,
        S::Time(precision, TimezoneInfo::None | TimezoneInfo::WithoutTimeZone) => time(precision.unwrap_or(9))?,
        S::Timestamp(precision, zone) => {
            let zoned = matches!(zone, TimezoneInfo::Tz | TimezoneInfo::WithTimeZone);
            timestamp(*precision, zoned)?
        }
        S::TimestampNtz(precision) | S::Datetime(precision) => timestamp(*precision, false)?,
        S::Interval { fields: None, precision: None } => DataType::Interval(IntervalUnit::MonthDayNano),
        S::Array(ArrayElemTypeDef::AngleBracket(item) | ArrayElemTypeDef::SquareBracket(item, None)) => {
            DataType::List(Arc::new(Field::new_list_field(arrow_type(item)?, true)))
        }
        S::Array(ArrayElemTypeDef::SquareBracket(item, Some(length))) => {
            let length = i32::try_from(*length).map_err(|_| Error::usage(format!("{sql} is too long")))?;
            DataType::FixedSizeList(Arc::new(Field::new_list_field(arrow_type(item)?, true)), length)
        }
        S::Map(key, value) => map(arrow_type(key)?, arrow_type(value)?),
        S::Struct(fields, _) if !fields.is_empty() => row(fields)?,
        S::Custom(name, modifiers) => custom(name, modifiers)?,
        other => return Err(unknown(&other.to_string())),
    })
}

fn unknown(name: &str) -> Error {
    let hint = did_you_mean(&name.to_ascii_uppercase(), KNOWN.iter().copied());
    Error::usage(format!("there is no type {name}{hint}"))
}

fn decimal(number: ExactNumberInfo) -> Result<DataType> {
    let (precision, scale) = match number {
        ExactNumberInfo::None => (10, 0),
        ExactNumberInfo::Precision(precision) => (precision, 0),
        ExactNumberInfo::PrecisionAndScale(precision, scale) => (precision, scale),
    };
    let fits = |max: u8| {
        let (p, s) = (u8::try_from(precision).ok()?, i8::try_from(scale).ok()?);
        (1..=max).contains(&p).then_some((p, s)).filter(|_| s >= 0 && u64::try_from(s).is_ok_and(|s| s <= precision))
    };
    if let Some((p, s)) = fits(DECIMAL128_MAX_PRECISION) {
        return Ok(DataType::Decimal128(p, s));
    }
    match fits(DECIMAL256_MAX_PRECISION) {
        Some((p, s)) => Ok(DataType::Decimal256(p, s)),
        None => Err(Error::usage(format!(
            "there is no DECIMAL({precision}, {scale}): the precision is 1 to {DECIMAL256_MAX_PRECISION}, \
             the scale 0 to the precision"
        ))),
    }
}

fn unit(precision: u64) -> Result<TimeUnit> {
    match precision {
        0 => Ok(TimeUnit::Second),
        1..=3 => Ok(TimeUnit::Millisecond),
        4..=6 => Ok(TimeUnit::Microsecond),
        7..=9 => Ok(TimeUnit::Nanosecond),
        _ => Err(Error::usage(format!("a time has 0 to 9 digits after the second, not {precision}"))),
    }
}

fn timestamp(precision: Option<u64>, zoned: bool) -> Result<DataType> {
    Ok(DataType::Timestamp(unit(precision.unwrap_or(6))?, zoned.then(|| ZONE.into())))
}

fn time(precision: u64) -> Result<DataType> {
    Ok(match unit(precision)? {
        unit @ (TimeUnit::Second | TimeUnit::Millisecond) => DataType::Time32(unit),
        unit => DataType::Time64(unit),
    })
}

/// A map as Arrow's JSON reader and Parquet have it: `entries` of a `key` that is never NULL and a `value`.
fn map(key: DataType, value: DataType) -> DataType {
    let entries = Fields::from(vec![Field::new("key", key, false), Field::new("value", value, true)]);
    DataType::Map(Arc::new(Field::new("entries", DataType::Struct(entries), false)), false)
}

fn row(fields: &[StructField]) -> Result<DataType> {
    let mut columns: Vec<Field> = Vec::with_capacity(fields.len());
    for (index, field) in fields.iter().enumerate() {
        let name = field.field_name.as_ref().map_or_else(|| format!("c{index}"), |name| name.value.clone());
        if columns.iter().any(|column| *column.name() == name) {
            return Err(Error::usage(format!("the ROW has two fields '{name}'; rename one of them")));
        }
        columns.push(Field::new(name, arrow_type(&field.field_type)?, true));
    }
    Ok(DataType::Struct(columns.into()))
}

/// Types that sqlparser knows only as a name.
fn custom(name: &ObjectName, modifiers: &[String]) -> Result<DataType> {
    let text = name.to_string();
    match (text.to_ascii_uppercase().as_str(), modifiers) {
        ("TIMESTAMP_LTZ", []) => timestamp(None, true),
        ("TIMESTAMP_LTZ", [precision]) => match precision.parse() {
            Ok(precision) => timestamp(Some(precision), true),
            Err(_) => Err(Error::usage(format!("TIMESTAMP_LTZ({precision}) has no number in it"))),
        },
        ("ROW", _) => Err(Error::usage("ROW(name TYPE, …) is not supported; say ROW<name TYPE, …>")),
        ("MULTISET", _) => Err(Error::usage("MULTISET is not supported; say ARRAY<…>")),
        _ => Err(unknown(&text)),
    }
}

/// The SQL type that [`arrow_type`] reads as this one, or for types without one, Arrow's name for it.
pub fn sql_type(data_type: &DataType) -> String {
    use DataType as D;
    match data_type {
        D::Boolean => "BOOLEAN".into(),
        D::Int8 => "TINYINT".into(),
        D::Int16 => "SMALLINT".into(),
        D::Int32 => "INT".into(),
        D::Int64 => "BIGINT".into(),
        D::UInt8 => "TINYINT UNSIGNED".into(),
        D::UInt16 => "SMALLINT UNSIGNED".into(),
        D::UInt32 => "INT UNSIGNED".into(),
        D::UInt64 => "BIGINT UNSIGNED".into(),
        D::Float16 | D::Float32 => "FLOAT".into(),
        D::Float64 => "DOUBLE".into(),
        D::Decimal32(p, s) | D::Decimal64(p, s) | D::Decimal128(p, s) | D::Decimal256(p, s) => {
            format!("DECIMAL({p}, {s})")
        }
        D::Utf8 | D::LargeUtf8 | D::Utf8View => "STRING".into(),
        D::Binary | D::LargeBinary | D::BinaryView | D::FixedSizeBinary(_) => "BYTES".into(),
        D::Date32 | D::Date64 => "DATE".into(),
        D::Time32(unit) | D::Time64(unit) => format!("TIME({})", digits(*unit)),
        D::Timestamp(unit, None) => format!("TIMESTAMP({})", digits(*unit)),
        D::Timestamp(unit, Some(_)) => format!("TIMESTAMP_LTZ({})", digits(*unit)),
        D::Interval(_) => "INTERVAL".into(),
        D::List(item) | D::LargeList(item) | D::ListView(item) | D::LargeListView(item) => {
            format!("ARRAY<{}>", sql_type(item.data_type()))
        }
        D::FixedSizeList(item, length) => format!("{}[{length}]", sql_type(item.data_type())),
        D::Map(entries, _) => match entries.data_type() {
            D::Struct(fields) if fields.len() == 2 => {
                format!("MAP<{}, {}>", sql_type(fields[0].data_type()), sql_type(fields[1].data_type()))
            }
            other => other.to_string(),
        },
        D::Struct(fields) => {
            let fields = fields.iter().map(|f| format!("{} {}", quote(f.name()), sql_type(f.data_type())));
            format!("ROW<{}>", fields.collect::<Vec<_>>().join(", "))
        }
        D::Dictionary(_, value) => sql_type(value),
        other => other.to_string(),
    }
}

fn digits(unit: TimeUnit) -> u8 {
    match unit {
        TimeUnit::Second => 0,
        TimeUnit::Millisecond => 3,
        TimeUnit::Microsecond => 6,
        TimeUnit::Nanosecond => 9,
    }
}

/// A name in backticks.
pub fn quote(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

/// Plans the types of our SQL wherever DataFusion meets one: in CAST, in literals, in its own DDL.
///
/// What [`arrow_type`] does not know is left to DataFusion, whose error names the type.
#[derive(Debug, Default, Clone, Copy)]
pub struct MillstreamTypePlanner;

impl TypePlanner for MillstreamTypePlanner {
    fn plan_type_field(&self, sql_type: &SqlType) -> datafusion::error::Result<Option<FieldRef>> {
        Ok(arrow_type(sql_type).ok().map(DataTypeExt::into_nullable_field_ref))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<DataType> {
        let sql = format!("CREATE TABLE t (a {text}) WITH ('connector' = 'x')");
        match crate::sql::parse(&sql)?.swap_remove(0).statement {
            crate::sql::Statement::CreateTable(table) => Ok(table.definition.columns[0].data_type.clone()),
            other => panic!("{other:?}"),
        }
    }

    /// The type reads as this Arrow type, and this prints as the canonical form of the type, which reads the same.
    fn check(text: &str, expected: DataType, canonical: &str) {
        assert_eq!(parse(text).unwrap(), expected, "{text}");
        assert_eq!(sql_type(&expected), canonical);
        assert_eq!(parse(canonical).unwrap(), expected, "{canonical}");
    }

    #[test]
    fn simple_types() {
        check("VARCHAR(10)", DataType::Utf8View, "STRING");
        check("char(10)", DataType::Utf8View, "STRING");
        check("VARBINARY(3)", DataType::Binary, "BYTES");
        check("BOOLEAN", DataType::Boolean, "BOOLEAN");
        check("TINYINT", DataType::Int8, "TINYINT");
        check("INTEGER", DataType::Int32, "INT");
        check("BIGINT UNSIGNED", DataType::UInt64, "BIGINT UNSIGNED");
        check("REAL", DataType::Float32, "FLOAT");
        check("FLOAT(53)", DataType::Float64, "DOUBLE");
        check("DOUBLE PRECISION", DataType::Float64, "DOUBLE");
        check("DECIMAL", DataType::Decimal128(10, 0), "DECIMAL(10, 0)");
        check("NUMERIC(38, 38)", DataType::Decimal128(38, 38), "DECIMAL(38, 38)");
        check("DEC(39)", DataType::Decimal256(39, 0), "DECIMAL(39, 0)");
        check("DATE", DataType::Date32, "DATE");
        check("TIME", DataType::Time64(TimeUnit::Nanosecond), "TIME(9)");
        check("TIME(2)", DataType::Time32(TimeUnit::Millisecond), "TIME(3)");
    }

    #[test]
    fn timestamps() {
        use TimeUnit::{Microsecond, Millisecond, Nanosecond, Second};
        let utc = || Some(ZONE.into());
        check("TIMESTAMP", DataType::Timestamp(Microsecond, None), "TIMESTAMP(6)");
        check("TIMESTAMP(0)", DataType::Timestamp(Second, None), "TIMESTAMP(0)");
        check("TIMESTAMP(1)", DataType::Timestamp(Millisecond, None), "TIMESTAMP(3)");
        check("TIMESTAMP(9) WITHOUT TIME ZONE", DataType::Timestamp(Nanosecond, None), "TIMESTAMP(9)");
        check("timestamp_ltz", DataType::Timestamp(Microsecond, utc()), "TIMESTAMP_LTZ(6)");
        check("TIMESTAMP_LTZ(3)", DataType::Timestamp(Millisecond, utc()), "TIMESTAMP_LTZ(3)");
        check("TIMESTAMP(3) WITH LOCAL TIME ZONE", DataType::Timestamp(Millisecond, utc()), "TIMESTAMP_LTZ(3)");
        check("TIMESTAMP WITH TIME ZONE", DataType::Timestamp(Microsecond, utc()), "TIMESTAMP_LTZ(6)");
    }

    #[test]
    fn nested_types() {
        let list = |t| DataType::List(Arc::new(Field::new_list_field(t, true)));
        let fields = |fields: &[(&str, DataType)]| {
            DataType::Struct(fields.iter().map(|(name, t)| Field::new(*name, t.clone(), true)).collect())
        };
        check("ARRAY<ARRAY<INT>>", list(list(DataType::Int32)), "ARRAY<ARRAY<INT>>");
        check("INT[]", list(DataType::Int32), "ARRAY<INT>");
        check("map<string, int>", map(DataType::Utf8View, DataType::Int32), "MAP<STRING, INT>");
        let inner = fields(&[("b`c", list(DataType::Int64)), ("timestamp", DataType::Date32)]);
        let outer = map(DataType::Utf8View, fields(&[("orderId", inner)]));
        check(
            "MAP<STRING, ROW<orderId ROW<`b``c` ARRAY<BIGINT>, timestamp DATE>>>",
            outer,
            "MAP<STRING, ROW<`orderId` ROW<`b``c` ARRAY<BIGINT>, `timestamp` DATE>>>",
        );
        check("STRUCT<a INT>", fields(&[("a", DataType::Int32)]), "ROW<`a` INT>");
    }

    #[test]
    fn what_is_no_type_is_refused_with_its_place() {
        for (text, part) in [
            ("STRNG", "line 1, column 19: there is no type STRNG; did you mean 'STRING'?"),
            ("DECIMAL(77, 0)", "there is no DECIMAL(77, 0)"),
            ("DECIMAL(5, 6)", "there is no DECIMAL(5, 6)"),
            ("DECIMAL(5, -1)", "there is no DECIMAL(5, -1)"),
            ("TIMESTAMP(10)", "0 to 9 digits"),
            ("TIMESTAMP_LTZ(x)", "no number"),
            ("ROW<a INT, a INT>", "two fields 'a'"),
            ("TIME WITH TIME ZONE", "there is no type TIME"),
            ("ARRAY<FOO>", "there is no type FOO"),
            ("5", "expected a type, found 5"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}

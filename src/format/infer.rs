//! Columns by looking: from a sample of messages to a table that they fit.
//!
//! The idea: every value has a *shape*, and any two shapes have a least one that holds both. Whole numbers widen to
//! DOUBLE while it holds them exactly, and what does not go together becomes STRING, which takes every text, number and
//! boolean. The shape that holds all messages is that of the table; objects are ROW, arrays ARRAY.
//!
//! Guarantee: the same messages give the same columns, in the order in which their names are met. Of a message that
//! can be read, every value that has a column reads back without loss, but for digits that no DOUBLE has. What no type
//! holds has no column; that, and how many messages cannot be read, is told in notes.
//!
//! Not promised: that messages that were not looked at fit as well. MAP, TIME, and BYTES within json are never found,
//! as they look like something else.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, BinaryArray};
use arrow::compute::kernels::cast_utils::{Parser, string_to_datetime};
use arrow::datatypes::{DECIMAL128_MAX_PRECISION, DataType, Date32Type, Field, TimeUnit};
use chrono::Utc;
use indexmap::IndexMap;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::canal::{self, CanalOptions};
use super::csv::CsvOptions;
use super::{FormatKind, FormatOptions, Wanted, debezium};
use crate::catalog::{Column, TableDefinition};
use crate::error::{Error, Result};
use crate::sql::options::OptionReader;
use crate::sql::types::ZONE;

/// What a sample says of a table.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Inferred {
    /// Its columns; never none.
    pub columns: Vec<Column>,
    /// Its primary key, where the messages name one.
    pub primary_key: Vec<String>,
    /// Options of the format that fit the messages, and are not given.
    pub options: BTreeMap<String, String>,
    /// What somebody should know who uses the columns, a sentence each.
    pub notes: Vec<String>,
}

/// The columns of a table without any, whose options name the format of these payloads.
///
/// Errors: none of the payloads can be read.
pub fn columns(table: &TableDefinition, payloads: &BinaryArray) -> Result<Inferred> {
    let format = FormatOptions::take(&mut OptionReader::new(table))?;
    let found = match &format.kind {
        FormatKind::Json(_) => of_rows("json", objects(payloads.iter().flatten().filter_map(shape_of)), |_| None),
        FormatKind::Csv(options) => of_lines(options, payloads),
        FormatKind::Raw(_) => of_values(payloads),
        FormatKind::Debezium(_) => of_debezium(payloads),
        FormatKind::Canal(options) => of_canal(options, payloads)?,
    };
    checked(found, table, payloads)
}

/// Whether the payloads are JSON objects, all of them: one that is none would end a read as json.
pub fn are_objects(payloads: &BinaryArray) -> bool {
    let is_object = |payload: &[u8]| matches!(shape_of(payload), Some(Shape::Object(_)));
    payloads.null_count() < payloads.len() && payloads.iter().flatten().all(is_object)
}

/// The same, after the payloads were read with it.
fn checked(mut found: Inferred, table: &TableDefinition, payloads: &BinaryArray) -> Result<Inferred> {
    let name = table.options.get("format").map(String::as_str).unwrap_or_default();
    if found.columns.is_empty() {
        return Err(Error::usage(format!(
            "table {}: none of the {} messages that were looked at has columns as {name} has them; is 'format' another \
             one?",
            table.name,
            payloads.len()
        )));
    }
    found.options.retain(|key, _| !table.options.contains_key(key));
    let mut table = TableDefinition { columns: found.columns.clone(), ..table.clone() };
    table.options.extend(found.options.clone());
    let format = FormatOptions::take(&mut OptionReader::new(&table))?;
    let decoded = format.decoder(&Wanted::all(table.stored_schema()))?.decode(payloads)?;
    if let Some(first) = decoded.bad.first() {
        let (bad, all) = (decoded.bad.len(), payloads.len());
        found.notes.push(format!("{bad} of {all} messages cannot be read; of one of them: {}", first.reason));
    }
    Ok(found)
}

/// Columns of rows of this shape; `declared` knows the types of texts that say more than they look like.
fn of_rows(format: &str, rows: Shape, declared: impl Fn(&str) -> Option<DataType>) -> Inferred {
    let mut found = Inferred::default();
    let mut moments = vec![];
    rows.moments(&mut moments);
    if !moments.is_empty() && moments.iter().all(|moment| moment.is_iso) {
        found.options.insert(format!("{format}.timestamp-format.standard"), "ISO-8601".into());
    }
    let Shape::Object(fields) = rows else { return found };
    for (name, shape) in fields {
        if name.starts_with('$') {
            found.notes.push(format!("{name} is left out: names that begin with $ are the engine's own"));
            continue;
        }
        let field = match declared(&name).filter(|_| matches!(shape, Shape::Null | Shape::Text)) {
            Some(data_type) => Some(Field::new(&name, data_type, true)),
            None => shape.field(&name, &name, &mut found.notes),
        };
        found.columns.extend(field.map(|field| Column::physical(name, field.data_type().clone())));
    }
    found
}

/// A column for each field that most lines have.
fn of_lines(options: &CsvOptions, payloads: &BinaryArray) -> Inferred {
    let fields = |line| options.fields(line).ok().flatten();
    let lines: Vec<Vec<Cow<'_, str>>> = payloads.iter().flatten().filter_map(fields).collect();
    let mut widths = BTreeMap::<usize, usize>::new();
    lines.iter().for_each(|line| *widths.entry(line.len()).or_default() += 1);
    let width = widths.into_iter().max_by_key(|(width, lines)| (*lines, *width)).map_or(0, |(width, _)| width);
    let mut shapes = vec![Shape::Null; width];
    for line in lines.iter().filter(|line| line.len() == width) {
        for (shape, text) in shapes.iter_mut().zip(line) {
            let seen = if options.is_null(text) { Shape::Null } else { Shape::of_any(text.trim()) };
            *shape = std::mem::take(shape).join(seen);
        }
    }
    let mut found = Inferred::default();
    for (place, shape) in shapes.into_iter().enumerate() {
        let name = format!("col{}", place + 1);
        let field = shape.field(&name, &name, &mut found.notes);
        found.columns.extend(field.map(|field| Column::physical(name, field.data_type().clone())));
    }
    found
}

/// One column, of texts if all payloads are.
fn of_values(payloads: &BinaryArray) -> Inferred {
    let is_text = payloads.iter().flatten().all(|payload| std::str::from_utf8(payload).is_ok());
    let data_type = if is_text { DataType::Utf8View } else { DataType::Binary };
    Inferred { columns: vec![Column::physical("value", data_type)], ..Inferred::default() }
}

/// The columns of rows before and after a change.
fn of_debezium(payloads: &BinaryArray) -> Inferred {
    let (mut rows, mut has_schema) = (Shape::Null, false);
    for message in payloads.iter().flatten().filter_map(shape_of) {
        let is_bare = message.get("op") != Shape::Null;
        let change = if is_bare { message } else { message.get("payload") };
        has_schema |= !is_bare && change.get("op") != Shape::Null;
        rows = objects([rows, change.get("before"), change.get("after")]);
    }
    let mut found = of_rows("debezium-json", rows, |_| None);
    if has_schema {
        found.options.insert(debezium::SCHEMA_INCLUDE.into(), "true".into());
    }
    found
}

/// What Canal says of the columns of a message's rows.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CanalTypes {
    pk_names: Option<Vec<String>>,
    mysql_type: Option<BTreeMap<String, String>>,
}

/// The columns of `data`, whose values are texts: numbers are told by what MySQL calls their type.
fn of_canal(options: &CanalOptions, payloads: &BinaryArray) -> Result<Inferred> {
    let payloads = canal::chosen(options, payloads)?;
    let (mut rows, mut numbers, mut keys) = (Shape::Null, BTreeMap::new(), vec![]);
    for payload in payloads.iter().flatten() {
        let Some(message) = shape_of(payload) else { continue };
        rows = objects([rows, message.get("data").item(), message.get("old").item()]);
        let Ok(types) = serde_json::from_slice::<CanalTypes>(payload) else { continue };
        keys.extend(types.pk_names);
        for (column, mysql) in types.mysql_type.into_iter().flatten() {
            numbers.entry(column).or_insert_with(|| number_of(&mysql));
        }
    }
    let mut found = of_rows("canal-json", rows, |column| numbers.get(column).cloned().flatten());
    let is_column = |key: &String| found.columns.iter().any(|column| column.name == *key);
    keys.dedup();
    if let [key] = &keys[..]
        && key.iter().all(is_column)
    {
        found.primary_key = key.clone();
    }
    Ok(found)
}

/// The type of MySQL's numbers; none of other types, whose values are texts.
fn number_of(mysql: &str) -> Option<DataType> {
    let mysql = mysql.to_ascii_lowercase();
    let (name, modifiers) = mysql.split_once('(').unwrap_or((mysql.as_str(), ""));
    Some(match name.split_whitespace().next()? {
        "bigint" if mysql.contains("unsigned") => DataType::Decimal128(20, 0),
        "tinyint" | "smallint" | "mediumint" | "int" | "integer" | "bigint" | "year" => DataType::Int64,
        "float" | "double" => DataType::Float64,
        "decimal" | "numeric" => {
            let mut digits = modifiers.split([',', ')']).map(|part| part.trim().parse().ok());
            let (precision, scale) = (digits.next()??, digits.next().flatten().unwrap_or(0u8));
            let scale = i8::try_from(scale).ok()?;
            match precision {
                0..=DECIMAL128_MAX_PRECISION => DataType::Decimal128(precision, scale),
                _ => DataType::Decimal256(precision, scale),
            }
        }
        _ => return None,
    })
}

/// What values look like.
#[derive(Debug, Clone, Default, PartialEq)]
enum Shape {
    /// NULL, or nothing at all.
    #[default]
    Null,
    Boolean,
    Integer(Width),
    Double,
    Date,
    Moment(Moment),
    Text,
    Array(Box<Shape>),
    /// Fields in the order in which they were met.
    Object(IndexMap<String, Shape>),
    /// What no type holds: objects or arrays here, and something else there.
    Conflict,
}

/// How large whole numbers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Width {
    /// A DOUBLE holds them as well.
    Exact,
    /// BIGINT.
    Long,
    /// 64 bits without a sign.
    Unsigned,
}

impl Width {
    fn of(number: i64) -> Self {
        // Up to here a DOUBLE holds all whole numbers.
        if number.unsigned_abs() <= 1 << 53 { Self::Exact } else { Self::Long }
    }
}

/// How timestamps are written.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Moment {
    /// How finely.
    unit: TimeUnit,
    /// With an offset from UTC.
    is_zoned: bool,
    /// With a T.
    is_iso: bool,
    /// Whether all lie between the years 1678 and 2262.
    fits_nanoseconds: bool,
}

/// The shape that holds all of these that are objects: no others are rows.
fn objects(shapes: impl IntoIterator<Item = Shape>) -> Shape {
    shapes.into_iter().filter(|shape| matches!(shape, Shape::Object(_))).fold(Shape::Null, Shape::join)
}

impl Shape {
    /// The least shape that holds both.
    fn join(self, other: Self) -> Self {
        match (self, other) {
            (Self::Null, shape) | (shape, Self::Null) => shape,
            (Self::Boolean, Self::Boolean) => Self::Boolean,
            (Self::Integer(one), Self::Integer(other)) => Self::Integer(one.max(other)),
            (Self::Double, Self::Double | Self::Integer(Width::Exact)) => Self::Double,
            (Self::Integer(Width::Exact), Self::Double) => Self::Double,
            (Self::Date, Self::Date) => Self::Date,
            (Self::Moment(one), Self::Moment(other)) => one.join(other).map_or(Self::Text, Self::Moment),
            (Self::Array(one), Self::Array(other)) => Self::Array(Box::new(one.join(*other))),
            (Self::Object(mut fields), Self::Object(other)) => {
                other.into_iter().for_each(|(name, shape)| add(&mut fields, name, shape));
                Self::Object(fields)
            }
            (one, other) if one.is_nested() || other.is_nested() => Self::Conflict,
            _ => Self::Text,
        }
    }

    fn is_nested(&self) -> bool {
        matches!(self, Self::Array(_) | Self::Object(_) | Self::Conflict)
    }

    /// That of an object's field.
    fn get(&self, name: &str) -> Self {
        let Self::Object(fields) = self else { return Self::Null };
        fields.get(name).cloned().unwrap_or_default()
    }

    /// That of an array's items.
    fn item(self) -> Self {
        if let Self::Array(item) = self { *item } else { Self::Null }
    }

    /// That of a text.
    fn of_text(text: &str) -> Self {
        match Moment::of(text) {
            Some(moment) => Self::Moment(moment),
            None if behind(text, "0000-00-00") == Some("") && Date32Type::parse(text).is_some() => Self::Date,
            None => Self::Text,
        }
    }

    /// That of a text which may also be a number or a boolean.
    fn of_any(text: &str) -> Self {
        match shape_of(text.as_bytes()) {
            Some(shape @ (Self::Boolean | Self::Integer(_) | Self::Double)) => shape,
            _ => Self::of_text(text),
        }
    }

    /// All timestamps in it.
    fn moments<'a>(&'a self, found: &mut Vec<&'a Moment>) {
        match self {
            Self::Moment(moment) => found.push(moment),
            Self::Array(item) => item.moments(found),
            Self::Object(fields) => fields.values().for_each(|shape| shape.moments(found)),
            _ => {}
        }
    }

    /// A field of this name that holds it, if there is one; `path` is what notes call it.
    fn field(&self, name: &str, path: &str, notes: &mut Vec<String>) -> Option<Field> {
        if name.is_empty() {
            notes.push(format!("a field without a name is left out, in {path}"));
            return None;
        }
        Some(Field::new(name, self.data_type(path, notes)?, true))
    }

    fn data_type(&self, path: &str, notes: &mut Vec<String>) -> Option<DataType> {
        Some(match self {
            Self::Null => {
                notes.push(format!("{path} has no value in any message, and is STRING for want of one"));
                DataType::Utf8View
            }
            Self::Boolean => DataType::Boolean,
            Self::Integer(Width::Unsigned) => DataType::Decimal128(20, 0),
            Self::Integer(_) => DataType::Int64,
            Self::Double => DataType::Float64,
            Self::Date => DataType::Date32,
            Self::Moment(moment) => DataType::Timestamp(moment.unit, moment.is_zoned.then(|| ZONE.into())),
            Self::Text => DataType::Utf8View,
            Self::Array(item) => {
                let item = item.data_type(&format!("{path}[]"), notes)?;
                DataType::List(Arc::new(Field::new_list_field(item, true)))
            }
            Self::Object(fields) => {
                let field = |(name, shape): (&String, &Shape)| shape.field(name, &format!("{path}.{name}"), notes);
                let fields: Vec<Field> = fields.iter().filter_map(field).collect();
                if fields.is_empty() {
                    notes.push(format!("{path} is left out: it is an object without fields"));
                    return None;
                }
                DataType::Struct(fields.into())
            }
            Self::Conflict => {
                notes.push(format!(
                    "{path} is left out: it is an object or an array in some places and something else in others, \
                     which no type holds"
                ));
                return None;
            }
        })
    }
}

/// Joins one more value of a field.
fn add(fields: &mut IndexMap<String, Shape>, name: String, shape: Shape) {
    let known = fields.entry(name).or_default();
    *known = std::mem::take(known).join(shape);
}

impl Moment {
    /// Of a text that reads back as a timestamp: `2026-01-01 00:00:00`, with a blank or a `T`, with or without a
    /// fraction and an offset from UTC.
    fn of(text: &str) -> Option<Self> {
        let iso = behind(text, "0000-00-00T00:00:00");
        let rest = iso.or_else(|| behind(text, "0000-00-00 00:00:00"))?;
        let zone = match rest.strip_prefix('.') {
            Some(fraction) => fraction.trim_start_matches(|c: char| c.is_ascii_digit()),
            None => rest,
        };
        // With the point.
        let unit = match rest.len() - zone.len() {
            0 | 2..=4 => TimeUnit::Millisecond,
            5..=7 => TimeUnit::Microsecond,
            8..=10 => TimeUnit::Nanosecond,
            _ => return None,
        };
        let is_offset = |zone: &str| zone.strip_prefix(['+', '-']).and_then(|zone| behind(zone, "00:00")) == Some("");
        if !matches!(zone, "" | "Z") && !is_offset(zone) {
            return None;
        }
        let fits_nanoseconds = string_to_datetime(&Utc, text).ok()?.timestamp_nanos_opt().is_some();
        let moment = Self { unit, is_zoned: !zone.is_empty(), is_iso: iso.is_some(), fits_nanoseconds };
        (fits_nanoseconds || unit < TimeUnit::Nanosecond).then_some(moment)
    }

    /// Both, if one column holds them: without a zone nobody knows when it was.
    fn join(self, other: Self) -> Option<Self> {
        let unit = self.unit.max(other.unit);
        let fits_nanoseconds = self.fits_nanoseconds && other.fits_nanoseconds;
        let goes = self.is_zoned == other.is_zoned && (fits_nanoseconds || unit < TimeUnit::Nanosecond);
        goes.then_some(Self { unit, is_iso: self.is_iso && other.is_iso, fits_nanoseconds, ..self })
    }
}

/// What is behind the beginning of a text, if this is like `form`, whose zeros stand for any digit.
fn behind<'a>(text: &'a str, form: &str) -> Option<&'a str> {
    let fits = |(is, wanted): (u8, u8)| if wanted == b'0' { is.is_ascii_digit() } else { is == wanted };
    let (start, rest) = text.split_at_checked(form.len())?;
    start.bytes().zip(form.bytes()).all(fits).then_some(rest)
}

/// The shape of a payload that is one JSON value.
fn shape_of(payload: &[u8]) -> Option<Shape> {
    let has_long_number = payload.split(|byte| !byte.is_ascii_digit()).any(|digits| digits.len() >= 19);
    let mut value = serde_json::Deserializer::from_slice(payload);
    let shape = Look { has_long_number }.deserialize(&mut value).ok()?;
    value.end().is_ok().then_some(shape)
}

/// Looks at a JSON value.
#[derive(Clone, Copy)]
struct Look {
    /// Whether the payload may hold whole numbers that do not fit 64 bits, which the parser makes floating ones.
    has_long_number: bool,
}

impl<'de> DeserializeSeed<'de> for Look {
    type Value = Shape;

    fn deserialize<D: Deserializer<'de>>(self, value: D) -> std::result::Result<Shape, D::Error> {
        value.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Look {
    type Value = Shape;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> std::result::Result<Shape, E> {
        Ok(Shape::Null)
    }

    fn visit_bool<E>(self, _: bool) -> std::result::Result<Shape, E> {
        Ok(Shape::Boolean)
    }

    fn visit_i64<E>(self, number: i64) -> std::result::Result<Shape, E> {
        Ok(Shape::Integer(Width::of(number)))
    }

    fn visit_u64<E>(self, number: u64) -> std::result::Result<Shape, E> {
        Ok(Shape::Integer(i64::try_from(number).map_or(Width::Unsigned, Width::of)))
    }

    fn visit_f64<E>(self, number: f64) -> std::result::Result<Shape, E> {
        // STRING keeps all of its digits.
        let is_long = self.has_long_number && number.abs() >= i64::MAX as f64;
        Ok(if is_long { Shape::Text } else { Shape::Double })
    }

    fn visit_str<E>(self, text: &str) -> std::result::Result<Shape, E> {
        Ok(Shape::of_text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> std::result::Result<Shape, A::Error> {
        let mut all = Shape::Null;
        while let Some(item) = items.next_element_seed(self)? {
            all = all.join(item);
        }
        Ok(Shape::Array(Box::new(all)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> std::result::Result<Shape, A::Error> {
        let mut fields = IndexMap::new();
        while let Some(name) = entries.next_key::<String>()? {
            add(&mut fields, name, entries.next_value_seed(self)?);
        }
        Ok(Shape::Object(fields))
    }
}

#[cfg(test)]
#[path = "infer_tests.rs"]
mod tests;

//! JSON in strings: `json_value`, `json_query`, `json_exists`, with paths such as `$.a.b[0]` and `$['a b']`; and those
//! that take the steps one by one, such as `json_get(j, 'a', 'b', 0)`, which the arrows `->` and `->>` are planned as.
//!
//! A document is read once, in a stream: what the path does not lead to is skipped without being built, and the result
//! is written as it is met. The whole document must be JSON, else the result is NULL (FALSE of `json_exists` and
//! `json_contains`). Of two equal keys the last one holds, though `json_length` counts both.
//!
//! Limits: no wildcards, filters or negative indexes; numbers beyond 64 bits are rounded; clauses such as RETURNING and
//! ON EMPTY are refused by the planner.

use std::fmt::{self, Write};

use arrow::datatypes::{ArrowPrimitiveType, DataType, Float64Type, Int64Type};
use datafusion::logical_expr::ColumnarValue;
use serde::Deserializer;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::function::{Call, Function, Integer, Param, Text};
use super::memo::Memo;
use crate::error::{Error, Result};

static PATHS: Memo<Path> = Memo::new(Path::parse);

/// Everything about JSON.
pub(super) fn functions() -> Vec<Function> {
    use DataType::{Boolean, Float64, Int64, Utf8};
    vec![
        pathed("json_value", Utf8, |call| texts(call, Found::is_scalar)),
        pathed("json_query", Utf8, |call| texts(call, Found::is_nested)),
        pathed("json_exists", Boolean, json_exists),
        keyed("json_get", Utf8, get_json),
        keyed("json_get_json", Utf8, get_json),
        keyed("json_as_text", Utf8, |call| get_text(call, Found::is_value)),
        keyed("json_get_str", Utf8, |call| get_text(call, Found::is_text)),
        keyed("json_get_int", Int64, |call| get_number::<Int64Type>(call, Found::integer)),
        keyed("json_get_float", Float64, |call| get_number::<Float64Type>(call, Found::number)),
        keyed("json_get_bool", Boolean, |call| get_bool(call, Found::truth)),
        keyed("json_contains", Boolean, |call| get_bool(call, |found| Some(found != Found::Nothing))),
        keyed("json_length", Int64, |call| get_number::<Int64Type>(call, Found::length)).optional(1),
    ]
}

/// A function of a document and a path in it.
fn pathed(
    name: &'static str,
    returns: DataType,
    run: impl Fn(&Call<'_>) -> Result<ColumnarValue> + Send + Sync + 'static,
) -> Function {
    Function::new(name, &[Param::Text, Param::Text], returns, run).checked(|shape| shape.compiles(1, &PATHS))
}

/// A function of a document and keys in it, one for each step: a member's name or an element's index.
fn keyed(
    name: &'static str,
    returns: DataType,
    run: impl Fn(&Call<'_>) -> Result<ColumnarValue> + Send + Sync + 'static,
) -> Function {
    Function::new(name, &[Param::Text, Param::Key], returns, run).variadic()
}

/// What the path leads to, where it is wanted.
fn texts(call: &Call<'_>, wanted: fn(Found) -> bool) -> Result<ColumnarValue> {
    let (json, mut paths) = (call.text(0)?, call.compiled(1, &PATHS)?);
    call.strings(|row, out| match json.at(row).zip(paths.at(row)?) {
        Some((json, path)) => Ok(path.walk(json, out).is_some_and(wanted).then_some(())),
        None => Ok(None),
    })
}

fn json_exists(call: &Call<'_>) -> Result<ColumnarValue> {
    let (json, mut paths) = (call.text(0)?, call.compiled(1, &PATHS)?);
    let mut scratch = String::new();
    call.booleans(|row| {
        Ok(json.at(row).zip(paths.at(row)?).map(|(json, path)| {
            scratch.clear();
            path.walk(json, &mut scratch).is_some_and(|found| found != Found::Nothing)
        }))
    })
}

/// What the keys lead to as JSON: a string gets its quotes back.
fn get_json(call: &Call<'_>) -> Result<ColumnarValue> {
    let mut lookup = Lookup::new(call)?;
    call.strings(|row, out| {
        let found = lookup.at(row).filter(|found| *found != Found::Nothing);
        Ok(found.map(|found| match found {
            Found::Text => quote(&lookup.text, out),
            _ => out.push_str(&lookup.text),
        }))
    })
}

/// What the keys lead to, where it is wanted.
fn get_text(call: &Call<'_>, wanted: fn(Found) -> bool) -> Result<ColumnarValue> {
    let mut lookup = Lookup::new(call)?;
    call.strings(|row, out| {
        let is_wanted = lookup.at(row).is_some_and(wanted);
        Ok(is_wanted.then(|| out.push_str(&lookup.text)))
    })
}

fn get_number<T: ArrowPrimitiveType>(call: &Call<'_>, value: fn(Found) -> Option<T::Native>) -> Result<ColumnarValue> {
    let mut lookup = Lookup::new(call)?;
    call.numbers::<T>(|row| Ok(lookup.at(row).and_then(value)))
}

fn get_bool(call: &Call<'_>, value: fn(Found) -> Option<bool>) -> Result<ColumnarValue> {
    let mut lookup = Lookup::new(call)?;
    call.booleans(|row| Ok(lookup.at(row).and_then(value)))
}

/// A document and the keys to follow in it, row by row.
struct Lookup<'a> {
    json: Text<'a>,
    keys: Keys<'a>,
    /// What was found last; a string without its quotes.
    text: String,
}

impl<'a> Lookup<'a> {
    /// The first argument, and the keys after it.
    fn new(call: &'a Call<'_>) -> Result<Self> {
        Ok(Self { json: call.text(0)?, keys: Keys::new(call)?, text: String::new() })
    }

    /// What the row's keys lead to, nothing in what is not JSON; none if an argument is NULL.
    fn at(&mut self, row: usize) -> Option<Found> {
        let (json, path) = (self.json.at(row)?, self.keys.at(row)?);
        self.text.clear();
        Some(path.walk(json, &mut self.text).unwrap_or(Found::Nothing))
    }
}

/// The keys of a call as a path: where all are literals, as they mostly are, it is made once a batch.
struct Keys<'a> {
    keys: Vec<Key<'a>>,
    are_literals: bool,
    path: Option<Path>,
}

impl<'a> Keys<'a> {
    /// The arguments after the first.
    fn new(call: &'a Call<'_>) -> Result<Self> {
        let keys = (1..call.count()).map(|index| Key::new(call, index)).collect::<Result<Vec<_>>>()?;
        let are_literals = (1..call.count()).all(|index| call.step(index) == 0);
        let path = if are_literals { Path::of(&keys, 0) } else { None };
        Ok(Self { keys, are_literals, path })
    }

    /// The row's path; none if a key is NULL.
    fn at(&mut self, row: usize) -> Option<&Path> {
        if !self.are_literals {
            self.path = Path::of(&self.keys, row);
        }
        self.path.as_ref()
    }
}

/// A key, row by row.
enum Key<'a> {
    Name(Text<'a>),
    Index(Integer<'a>),
}

impl<'a> Key<'a> {
    fn new(call: &'a Call<'_>, index: usize) -> Result<Self> {
        Ok(match call.array(index).data_type() {
            DataType::Int64 => Key::Index(call.integer(index)?),
            _ => Key::Name(call.text(index)?),
        })
    }

    /// The row's step; none if the key is NULL.
    fn at(&self, row: usize) -> Option<Step> {
        match self {
            Key::Name(name) => name.at(row).map(|name| Step::Key(name.to_string())),
            // A negative index finds nothing: no array is as long as its stand-in.
            Key::Index(index) => index.at(row).map(|index| Step::Index(usize::try_from(index).unwrap_or(usize::MAX))),
        }
    }
}

/// What a path leads to.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Found {
    Nothing,
    Null,
    Bool(bool),
    Integer(i64),
    /// Any other number.
    Number(f64),
    /// A string, written without its quotes.
    Text,
    /// An object or an array of so many, written as JSON without blanks.
    Nested(i64),
}

impl Found {
    fn is_scalar(self) -> bool {
        self.is_value() && !self.is_nested()
    }

    fn is_nested(self) -> bool {
        matches!(self, Found::Nested(_))
    }

    fn is_text(self) -> bool {
        self == Found::Text
    }

    /// Whether it is there and not null.
    fn is_value(self) -> bool {
        !matches!(self, Found::Nothing | Found::Null)
    }

    fn truth(self) -> Option<bool> {
        if let Found::Bool(truth) = self { Some(truth) } else { None }
    }

    fn integer(self) -> Option<i64> {
        if let Found::Integer(number) = self { Some(number) } else { None }
    }

    fn number(self) -> Option<f64> {
        match self {
            Found::Integer(number) => Some(number as f64),
            Found::Number(number) => Some(number),
            _ => None,
        }
    }

    fn length(self) -> Option<i64> {
        if let Found::Nested(length) = self { Some(length) } else { None }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Step {
    Key(String),
    Index(usize),
}

/// A compiled path.
#[derive(Debug)]
struct Path(Vec<Step>);

impl Path {
    fn parse(text: &str) -> Result<Self> {
        let refuse = |rest: &str| {
            let place = text.chars().count() - rest.chars().count() + 1;
            let what = "only .name, ['name'] and [0] are understood, after a $";
            Error::usage(format!("JSON path \"{text}\": position {place} is not understood; {what}"))
        };
        let path = text.strip_prefix("lax ").or_else(|| text.strip_prefix("strict ")).unwrap_or(text).trim();
        let mut rest = path.strip_prefix('$').ok_or_else(|| refuse(path))?;
        let mut steps = Vec::new();
        while !rest.is_empty() {
            let (step, after) = Step::parse(rest).ok_or_else(|| refuse(rest))?;
            steps.push(step);
            rest = after;
        }
        Ok(Self(steps))
    }

    /// The path of a row's keys; none if one of them is NULL.
    fn of(keys: &[Key<'_>], row: usize) -> Option<Self> {
        keys.iter().map(|key| key.at(row)).collect::<Option<Vec<_>>>().map(Self)
    }

    /// Writes what the path leads to; none if the text is not JSON.
    fn walk(&self, json: &str, out: &mut String) -> Option<Found> {
        let mut reader = serde_json::Deserializer::from_str(json);
        let found = Walk { steps: &self.0, out }.deserialize(&mut reader).ok()?;
        reader.end().ok().map(|()| found)
    }
}

impl Step {
    /// The first step, and what follows it.
    fn parse(path: &str) -> Option<(Self, &str)> {
        if let Some(name) = path.strip_prefix('.') {
            let (name, rest) = name.split_at(name.find(['.', '[']).unwrap_or(name.len()));
            return (!name.is_empty() && name != "*").then(|| (Self::Key(name.to_string()), rest));
        }
        let inner = path.strip_prefix('[')?;
        for quote in ['\'', '"'] {
            if let Some(name) = inner.strip_prefix(quote) {
                let (name, rest) = name.split_once(quote)?;
                return Some((Self::Key(name.to_string()), rest.strip_prefix(']')?));
            }
        }
        let (index, rest) = inner.split_once(']')?;
        Some((Self::Index(index.trim().parse().ok()?), rest))
    }
}

/// Reads a value and follows the steps in it.
struct Walk<'a> {
    steps: &'a [Step],
    out: &'a mut String,
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = Found;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Found, D::Error> {
        match self.steps.split_first() {
            Some((step, rest)) => reader.deserialize_any(Descend { step, rest, out: self.out }),
            None => reader.deserialize_any(Transcribe { out: self.out, is_inner: false }),
        }
    }
}

/// Takes one step into a value; a scalar has nothing to step into.
struct Descend<'a> {
    step: &'a Step,
    rest: &'a [Step],
    out: &'a mut String,
}

impl<'de> Visitor<'de> for Descend<'_> {
    type Value = Found;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Found, A::Error> {
        let name = match self.step {
            Step::Key(name) => Some(name.as_str()),
            Step::Index(_) => None,
        };
        let mut found = Found::Nothing;
        while let Some(is_wanted) = map.next_key_seed(KeyIs(name))? {
            if is_wanted {
                self.out.clear();
                found = map.next_value_seed(Walk { steps: self.rest, out: self.out })?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Found, A::Error> {
        if let Step::Index(wanted) = *self.step {
            for _ in 0..wanted {
                if items.next_element::<IgnoredAny>()?.is_none() {
                    return Ok(Found::Nothing);
                }
            }
            let found = items.next_element_seed(Walk { steps: self.rest, out: self.out })?;
            while items.next_element::<IgnoredAny>()?.is_some() {}
            return Ok(found.unwrap_or(Found::Nothing));
        }
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Found::Nothing)
    }

    fn visit_unit<E>(self) -> Result<Found, E> {
        Ok(Found::Nothing)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Found, E> {
        Ok(Found::Nothing)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Found, E> {
        Ok(Found::Nothing)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Found, E> {
        Ok(Found::Nothing)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Found, E> {
        Ok(Found::Nothing)
    }

    fn visit_str<E>(self, _: &str) -> Result<Found, E> {
        Ok(Found::Nothing)
    }
}

/// Whether a key has this name; without a name none has.
struct KeyIs<'a>(Option<&'a str>);

impl<'de> DeserializeSeed<'de> for KeyIs<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<bool, D::Error> {
        reader.deserialize_str(self)
    }
}

impl Visitor<'_> for KeyIs<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<bool, E> {
        Ok(self.0 == Some(key))
    }
}

/// Writes a value: an inner one as JSON, an outer string without its quotes.
struct Transcribe<'a> {
    out: &'a mut String,
    is_inner: bool,
}

impl Transcribe<'_> {
    fn scalar<E>(self, value: impl fmt::Display, found: Found) -> Result<Found, E> {
        // Writing to a String cannot fail.
        let _ = write!(self.out, "{value}");
        Ok(found)
    }
}

impl<'de> DeserializeSeed<'de> for Transcribe<'_> {
    type Value = Found;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Found, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Transcribe<'_> {
    type Value = Found;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Found, A::Error> {
        self.out.push('{');
        let mut length = 0;
        loop {
            let before = self.out.len();
            if length > 0 {
                self.out.push(',');
            }
            if map.next_key_seed(Transcribe { out: self.out, is_inner: true })?.is_none() {
                self.out.truncate(before);
                break;
            }
            self.out.push(':');
            map.next_value_seed(Transcribe { out: self.out, is_inner: true })?;
            length += 1;
        }
        self.out.push('}');
        Ok(Found::Nested(length))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Found, A::Error> {
        self.out.push('[');
        let mut length = 0;
        loop {
            let before = self.out.len();
            if length > 0 {
                self.out.push(',');
            }
            if items.next_element_seed(Transcribe { out: self.out, is_inner: true })?.is_none() {
                self.out.truncate(before);
                break;
            }
            length += 1;
        }
        self.out.push(']');
        Ok(Found::Nested(length))
    }

    fn visit_unit<E>(self) -> Result<Found, E> {
        self.out.push_str("null");
        Ok(Found::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Found, E> {
        self.scalar(value, Found::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Found, E> {
        self.scalar(value, Found::Integer(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Found, E> {
        self.scalar(value, i64::try_from(value).map_or(Found::Number(value as f64), Found::Integer))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Found, E> {
        match serde_json::Number::from_f64(value) {
            Some(number) => self.scalar(number, Found::Number(value)),
            None => self.scalar(value, Found::Number(value)),
        }
    }

    fn visit_str<E>(self, value: &str) -> Result<Found, E> {
        if self.is_inner {
            quote(value, self.out);
        } else {
            self.out.push_str(value);
        }
        Ok(Found::Text)
    }
}

/// Writes a JSON string.
fn quote(text: &str, out: &mut String) {
    out.push('"');
    for letter in text.chars() {
        match letter {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            control if control < ' ' => {
                let _ = write!(out, "\\u{:04x}", u32::from(control));
            }
            other => out.push(other),
        }
    }
    out.push('"');
}

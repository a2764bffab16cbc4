//! JSON in strings: `json_value`, `json_query`, `json_exists`, with paths such as `$.a.b[0]` and `$['a b']`.
//!
//! A document is read once, in a stream: what the path does not lead to is skipped without being built, and the result
//! is written as it is met. The whole document must be JSON, else the result is NULL (FALSE of `json_exists`). Of two
//! equal keys the last one holds.
//!
//! Limits: no wildcards, filters or negative indexes; numbers beyond 64 bits are rounded; clauses such as RETURNING and
//! ON EMPTY are refused by the planner.

use std::fmt::{self, Write};

use arrow::datatypes::DataType;
use datafusion::logical_expr::ColumnarValue;
use serde::Deserializer;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::function::{Call, Function, Param};
use super::memo::Memo;
use crate::error::{Error, Result};

static PATHS: Memo<Path> = Memo::new(Path::parse);

/// Everything about JSON.
pub(super) fn functions() -> Vec<Function> {
    use Param::Text;
    vec![
        Function::new("json_value", &[Text, Text], DataType::Utf8, |call| texts(call, Found::Scalar))
            .checked(|shape| shape.compiles(1, &PATHS)),
        Function::new("json_query", &[Text, Text], DataType::Utf8, |call| texts(call, Found::Nested))
            .checked(|shape| shape.compiles(1, &PATHS)),
        Function::new("json_exists", &[Text, Text], DataType::Boolean, json_exists)
            .checked(|shape| shape.compiles(1, &PATHS)),
    ]
}

/// What the path leads to, where it is of this kind.
fn texts(call: &Call<'_>, wanted: Found) -> Result<ColumnarValue> {
    let (json, mut paths) = (call.text(0)?, call.compiled(1, &PATHS)?);
    call.strings(|row, out| match json.at(row).zip(paths.at(row)?) {
        Some((json, path)) => Ok((path.walk(json, out) == Some(wanted)).then_some(())),
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

/// What a path leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Nothing,
    Null,
    /// A string without its quotes, a number, true or false.
    Scalar,
    /// An object or an array, as JSON without blanks.
    Nested,
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
    fn scalar<E>(self, value: impl fmt::Display) -> Result<Found, E> {
        // Writing to a String cannot fail.
        let _ = write!(self.out, "{value}");
        Ok(Found::Scalar)
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
        let mut is_first = true;
        loop {
            let before = self.out.len();
            if !is_first {
                self.out.push(',');
            }
            if map.next_key_seed(Transcribe { out: self.out, is_inner: true })?.is_none() {
                self.out.truncate(before);
                break;
            }
            self.out.push(':');
            map.next_value_seed(Transcribe { out: self.out, is_inner: true })?;
            is_first = false;
        }
        self.out.push('}');
        Ok(Found::Nested)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Found, A::Error> {
        self.out.push('[');
        let mut is_first = true;
        loop {
            let before = self.out.len();
            if !is_first {
                self.out.push(',');
            }
            if items.next_element_seed(Transcribe { out: self.out, is_inner: true })?.is_none() {
                self.out.truncate(before);
                break;
            }
            is_first = false;
        }
        self.out.push(']');
        Ok(Found::Nested)
    }

    fn visit_unit<E>(self) -> Result<Found, E> {
        self.out.push_str("null");
        Ok(Found::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Found, E> {
        self.scalar(value)
    }

    fn visit_i64<E>(self, value: i64) -> Result<Found, E> {
        self.scalar(value)
    }

    fn visit_u64<E>(self, value: u64) -> Result<Found, E> {
        self.scalar(value)
    }

    fn visit_f64<E>(self, value: f64) -> Result<Found, E> {
        match serde_json::Number::from_f64(value) {
            Some(number) => self.scalar(number),
            None => self.scalar(value),
        }
    }

    fn visit_str<E>(self, value: &str) -> Result<Found, E> {
        if self.is_inner {
            quote(value, self.out);
        } else {
            self.out.push_str(value);
        }
        Ok(Found::Scalar)
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

//! Addresses: `parse_url`, `url_encode`, `url_decode`.
//!
//! An address is read as the WHATWG says: the host in lower case, a path of at least `/`, a scheme's own port left out.
//! Java's `URL` keeps all three as they are written. What is no address is NULL.

use arrow::datatypes::DataType;
use datafusion::logical_expr::ColumnarValue;
use url::{Url, form_urlencoded};

use super::function::{Call, Function, Param};
use super::memo::Memo;
use crate::error::{Error, Result};

static PARTS: Memo<Part> = Memo::new(Part::parse);

/// Everything about addresses.
pub(super) fn functions() -> Vec<Function> {
    use Param::Text;
    vec![
        Function::new("parse_url", &[Text, Text, Text], DataType::Utf8, parse_url)
            .optional(1)
            .checked(|shape| shape.compiles(1, &PARTS)),
        Function::new("url_encode", &[Text], DataType::Utf8, url_encode),
        Function::new("url_decode", &[Text], DataType::Utf8, url_decode),
    ]
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Host,
    Path,
    Query,
    Ref,
    Protocol,
    File,
    Authority,
    UserInfo,
}

impl Part {
    fn parse(text: &str) -> Result<Self> {
        Ok(match text {
            "HOST" => Self::Host,
            "PATH" => Self::Path,
            "QUERY" => Self::Query,
            "REF" => Self::Ref,
            "PROTOCOL" => Self::Protocol,
            "FILE" => Self::File,
            "AUTHORITY" => Self::Authority,
            "USERINFO" => Self::UserInfo,
            _ => {
                return Err(Error::usage(format!(
                    "'{text}' is no part of an address; known are HOST, PATH, QUERY, REF, PROTOCOL, FILE, AUTHORITY \
                     and USERINFO"
                )));
            }
        })
    }

    /// Writes this part; none if the address has none.
    fn write(self, url: &Url, out: &mut String) -> Option<()> {
        match self {
            Self::Host => out.push_str(url.host_str()?),
            Self::Path => out.push_str(url.path()),
            Self::Query => out.push_str(url.query()?),
            Self::Ref => out.push_str(url.fragment()?),
            Self::Protocol => out.push_str(url.scheme()),
            Self::Authority => out.push_str(Some(url.authority()).filter(|text| !text.is_empty())?),
            Self::File => {
                out.push_str(url.path());
                for text in url.query().into_iter().flat_map(|query| ["?", query]) {
                    out.push_str(text);
                }
            }
            Self::UserInfo => out.push_str(url.authority().rsplit_once('@')?.0),
        }
        Some(())
    }
}

fn parse_url(call: &Call<'_>) -> Result<ColumnarValue> {
    let (text, mut parts) = (call.text(0)?, call.compiled(1, &PARTS)?);
    let keys = if call.count() == 3 { Some(call.text(2)?) } else { None };
    call.strings(|row, out| {
        let (Some(text), Some(part)) = (text.at(row), parts.at(row)?) else { return Ok(None) };
        let Ok(url) = Url::parse(text) else { return Ok(None) };
        Ok(match &keys {
            None => part.write(&url, out),
            Some(keys) if *part == Part::Query => {
                keys.at(row).and_then(|key| parameter(url.query()?, key)).map(|value| out.push_str(value))
            }
            Some(_) => None,
        })
    })
}

/// The first value of a parameter, as it is written.
fn parameter<'a>(query: &'a str, key: &str) -> Option<&'a str> {
    query.split('&').filter_map(|pair| pair.split_once('=')).find(|(name, _)| *name == key).map(|(_, value)| value)
}

fn url_encode(call: &Call<'_>) -> Result<ColumnarValue> {
    let text = call.text(0)?;
    call.strings(|row, out| Ok(text.at(row).map(|text| out.extend(form_urlencoded::byte_serialize(text.as_bytes())))))
}

fn url_decode(call: &Call<'_>) -> Result<ColumnarValue> {
    let text = call.text(0)?;
    let mut bytes = Vec::new();
    call.strings(|row, out| {
        bytes.clear();
        Ok(text
            .at(row)
            .and_then(|text| decode(text, &mut bytes))
            .map(|()| out.push_str(&String::from_utf8_lossy(&bytes))))
    })
}

/// Writes the bytes that an encoded text stands for; none if a `%` has no two digits.
fn decode(text: &str, out: &mut Vec<u8>) -> Option<()> {
    let digit = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let mut bytes = text.as_bytes().iter();
    while let Some(&byte) = bytes.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => u8::try_from(digit(bytes.next())? * 16 + digit(bytes.next())?).ok()?,
            other => other,
        });
    }
    Some(())
}

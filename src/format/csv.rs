//! CSV: one line a message, whose fields are the table's columns by position.
//!
//! Reading: each line is divided into fields, and the texts of a column are cast together, as SQL casts text. BYTES are
//! base64. A value that its column's type cannot hold makes the line bad, and no other.
//!
//! Where comments are allowed, a payload that begins with `#` is one: it gives no row, and is not bad.
//!
//! Guarantee: what is written reads as the same rows, but for NULL in STRING and BYTES, which needs `csv.null-literal`;
//! without it an empty field is NULL in all other types, and empty in these.
//!
//! Not promised: headers, characters beyond ASCII as delimiter or quote, and nested types, which are refused.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, RecordBatch, RecordBatchOptions, StringArray, StringBuilder,
};
use arrow::compute::{can_cast_types, cast, filter_record_batch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::{BadPayload, Decoded, Decoder, Encoder, NO_PAYLOAD, SKIP, Wanted, joined, nullable, text};
use crate::connector::OptionEntry;
use crate::error::{Error, Result};
use crate::sql::options::OptionReader;
use crate::sql::types::sql_type;

/// What its options say.
pub(super) const OPTIONS: &[OptionEntry] = &[
    OptionEntry::new(
        "csv.field-delimiter",
        "an ASCII character",
        "`,`",
        "what is between fields; `\\t` is a tab, `\\u0001` the character of that number",
    ),
    OptionEntry::new(
        "csv.quote-character",
        "an ASCII character",
        "`\"`",
        "what is around a field that holds a delimiter, a quote or the end of a line; within it a quote is doubled",
    ),
    OptionEntry::new("csv.disable-quote-character", "`true`, `false`", "`false`", "`true`: there are no quotes"),
    OptionEntry::new(
        "csv.escape-character",
        "an ASCII character",
        "",
        "takes its meaning from the character behind it; behind it `n`, `r`, `t` and `0` are the end of a line, a \
         carriage return, a tab and NUL",
    ),
    OptionEntry::new("csv.null-literal", "a text", "", "the text that is NULL"),
    OptionEntry::new(
        "csv.allow-comments",
        "`true`, `false`",
        "`false`",
        "`true`: a payload that begins with `#` is a comment, which is no row and not counted as skipped; written \
         fields with a `#` have quotes",
    ),
    OptionEntry::writing(
        "csv.write-bigdecimal-in-scientific-notation",
        "`false`",
        "`false`",
        "how a DECIMAL is written. **Flink's default is another one**",
    ),
    OptionEntry::reading(
        "csv.ignore-parse-errors",
        "`false`",
        "`false`",
        "`true` is refused: say `'format.on-error' = 'skip'`",
    ),
    OptionEntry::refused("csv.array-element-delimiter", "csv has no ARRAY"),
];

/// The options `csv.*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CsvOptions {
    delimiter: u8,
    quote: Option<u8>,
    escape: Option<u8>,
    null_literal: Option<String>,
    has_comments: bool,
}

/// What a comment begins with.
const COMMENT: u8 = b'#';

impl CsvOptions {
    /// Takes, behind this name, `field-delimiter` (default a comma), `quote-character` (default `"`),
    /// `disable-quote-character`, `escape-character` and `null-literal` (none), `allow-comments` (false), and what can
    /// only be as it is.
    pub fn take(name: &str, options: &mut OptionReader<'_>) -> Result<Self> {
        let key = |option: &str| format!("{name}.{option}");
        options.only(&key("ignore-parse-errors"), false, SKIP)?;
        let plain = "a DECIMAL is always written as a plain number";
        options.only(&key("write-bigdecimal-in-scientific-notation"), false, plain)?;
        options.refuse(
            &key("array-element-delimiter"),
            "csv cannot hold ARRAY; use STRING there and leave it out, or 'format' = 'json'",
        )?;
        let form = "one ASCII character that does not end a line; \\t is a tab, \\u0001 the character of that number";
        let delimiter = options.with(&key("field-delimiter"), form, character)?.unwrap_or(b',');
        let quote = options.with(&key("quote-character"), form, character)?;
        let is_disabled = options.flag(&key("disable-quote-character"))?.unwrap_or(false);
        if is_disabled && quote.is_some() {
            return Err(options.blame(Error::usage(format!(
                "'{}' is given, and '{}' says that there is none; leave out one",
                key("quote-character"),
                key("disable-quote-character")
            ))));
        }
        let quote = (!is_disabled).then(|| quote.unwrap_or(b'"'));
        // Doubled quotes are read and written anyway.
        let escape = options.with(&key("escape-character"), form, character)?.filter(|escape| Some(*escape) != quote);
        if [quote, escape].contains(&Some(delimiter)) {
            return Err(options.blame(Error::usage(format!(
                "'{}' is also the quote or the escape character; take another one",
                key("field-delimiter")
            ))));
        }
        let has_comments = options.flag(&key("allow-comments"))?.unwrap_or(false);
        if has_comments && [Some(delimiter), quote, escape].contains(&Some(COMMENT)) {
            return Err(options.blame(Error::usage(format!(
                "'{}': a comment begins with '#', which is also the delimiter, the quote or the escape character; take \
                 another one",
                key("allow-comments")
            ))));
        }
        let null_literal = options.text(&key("null-literal"))?;
        Ok(Self { delimiter, quote, escape, null_literal, has_comments })
    }

    fn is_comment(&self, payload: &[u8]) -> bool {
        self.has_comments && payload.first() == Some(&COMMENT)
    }

    /// Divides a line into its fields, of which there must be `width`.
    fn split<'a>(
        &self,
        line: &'a [u8],
        width: usize,
        fields: &mut Vec<Cow<'a, str>>,
    ) -> std::result::Result<(), String> {
        let (mut rest, mut count) = (Some(without_end(line)?), 0);
        while let Some(text) = rest {
            let (field, behind) = self.field(text)?;
            // What is too much is only counted.
            if count < width {
                fields.push(field);
            }
            count += 1;
            rest = behind;
        }
        match count.cmp(&width) {
            Ordering::Less => Err(format!("it ends after field {count} of {width}")),
            Ordering::Equal => Ok(()),
            Ordering::Greater => Err(format!("it has {count} fields instead of {width}")),
        }
    }

    /// The fields of a line, however many; nothing of a comment.
    pub(super) fn fields<'a>(&self, line: &'a [u8]) -> std::result::Result<Option<Vec<Cow<'a, str>>>, String> {
        if self.is_comment(line) {
            return Ok(None);
        }
        let (mut rest, mut fields) = (Some(without_end(line)?), vec![]);
        while let Some(text) = rest {
            let (field, behind) = self.field(text)?;
            fields.push(field);
            rest = behind;
        }
        Ok(Some(fields))
    }

    /// Whether a field is NULL in a column of any type but STRING and BYTES.
    pub(super) fn is_null(&self, text: &str) -> bool {
        text.trim().is_empty() || self.null_literal.as_deref() == Some(text)
    }

    /// The first field of `text`, and what is behind its delimiter, if there is one.
    fn field<'a>(&self, text: &'a str) -> std::result::Result<(Cow<'a, str>, Option<&'a str>), String> {
        let bytes = text.as_bytes();
        let is_quoted = self.quote.is_some() && bytes.first().copied() == self.quote;
        let start = usize::from(is_quoted);
        // All that is looked for is ASCII, so `text` is only cut between characters. What was taken is in `unescaped`.
        let (mut at, mut taken, mut unescaped) = (start, start, String::new());
        while let Some(&byte) = bytes.get(at) {
            if Some(byte) == self.escape {
                let Some(escaped) = text[at + 1..].chars().next() else {
                    return Err("its last character escapes nothing".into());
                };
                unescaped.push_str(&text[taken..at]);
                unescaped.push(unescape(escaped));
                at += 1 + escaped.len_utf8();
                taken = at;
            } else if is_quoted && Some(byte) == self.quote {
                if bytes.get(at + 1) != Some(&byte) {
                    break;
                }
                unescaped.push_str(&text[taken..=at]);
                at += 2;
                taken = at;
            } else if !is_quoted && byte == self.delimiter {
                break;
            } else if !is_quoted && is_line_end(byte) {
                return Err("it holds more than one line".into());
            } else {
                at += 1;
            }
        }
        if is_quoted && at == bytes.len() {
            return Err("a quote is not closed".into());
        }
        let field = match taken == start {
            true => Cow::Borrowed(&text[start..at]),
            false => Cow::Owned(unescaped + &text[taken..at]),
        };
        let behind = at + start;
        match bytes.get(behind) {
            None => Ok((field, None)),
            Some(&byte) if byte == self.delimiter => Ok((field, Some(&text[behind + 1..]))),
            Some(_) => Err("it has text between a closing quote and the next delimiter".into()),
        }
    }

    /// Appends a field in such a way that it reads as `text`.
    fn write(&self, text: &str, out: &mut Vec<u8>) -> std::result::Result<(), String> {
        let is_marked =
            |byte: u8| byte == self.delimiter || Some(byte) == self.escape || (self.has_comments && byte == COMMENT);
        if !text.bytes().any(|byte| is_marked(byte) || Some(byte) == self.quote || is_line_end(byte)) {
            out.extend_from_slice(text.as_bytes());
            return Ok(());
        }
        match (self.quote, self.escape) {
            (Some(quote), escape) => {
                out.push(quote);
                for byte in text.bytes() {
                    if byte == quote || Some(byte) == escape {
                        out.push(escape.unwrap_or(quote));
                    }
                    out.push(byte);
                }
                out.push(quote);
            }
            (None, Some(escape)) => {
                for byte in text.bytes() {
                    match byte {
                        b'\n' => out.extend([escape, b'n']),
                        b'\r' => out.extend([escape, b'r']),
                        marked if is_marked(marked) => out.extend([escape, marked]),
                        other => out.push(other),
                    }
                }
            }
            (None, None) => {
                let advice = "leave out 'csv.disable-quote-character', or set 'csv.escape-character'";
                let what =
                    "it holds the delimiter, the end of a line or what begins a comment, and there are no quotes";
                return Err(format!("{what}; {advice}"));
            }
        }
        Ok(())
    }
}

/// A line as text, without its end.
fn without_end(line: &[u8]) -> std::result::Result<&str, String> {
    let line = std::str::from_utf8(line).map_err(|_| "it is not UTF-8".to_string())?;
    let line = line.strip_suffix('\n').unwrap_or(line);
    Ok(line.strip_suffix('\r').unwrap_or(line))
}

/// A character that ends no line, as it is or as Java escapes it: `\t`, `\u0001`.
fn character(text: &str) -> Option<u8> {
    let byte = match text.as_bytes() {
        b"\\t" => b'\t',
        [byte] => *byte,
        // `from_str_radix` would take a sign.
        [b'\\', b'u', digits @ ..] if digits.len() == 4 && digits.iter().all(u8::is_ascii_hexdigit) => {
            u8::from_str_radix(&text[2..], 16).ok()?
        }
        _ => return None,
    };
    (byte.is_ascii() && !is_line_end(byte)).then_some(byte)
}

fn is_line_end(byte: u8) -> bool {
    matches!(byte, b'\n' | b'\r')
}

/// What a character is behind the escape character.
fn unescape(escaped: char) -> char {
    match escaped {
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        '0' => '\0',
        other => other,
    }
}

/// Whether a field of this type may be empty without being NULL.
fn may_be_empty(field: &Field) -> bool {
    matches!(field.data_type(), DataType::Utf8View | DataType::Binary)
}

/// Refuses types that have no text.
fn check(schema: &Schema) -> Result<()> {
    let has_text = |data_type: &DataType| !data_type.is_nested() && can_cast_types(&DataType::Utf8, data_type);
    if schema.fields().is_empty() {
        return Err(Error::usage("a line of csv has at least one field; add a column that is no metadata"));
    }
    match schema.fields().iter().find(|field| !has_text(field.data_type())) {
        None => Ok(()),
        Some(field) => Err(Error::usage(format!(
            "column {}: csv cannot hold {}; use STRING there, or 'format' = 'json'",
            field.name(),
            sql_type(field.data_type())
        ))),
    }
}

/// Payloads to rows.
#[derive(Debug)]
pub struct CsvDecoder {
    options: CsvOptions,
    /// How many fields a line has.
    width: usize,
    projection: Vec<usize>,
    schema: SchemaRef,
}

impl CsvDecoder {
    /// A decoder of lines, which have all columns also where only some are asked for.
    pub fn try_new(wanted: &Wanted, options: &CsvOptions) -> Result<Self> {
        check(&wanted.all)?;
        Ok(Self {
            options: options.clone(),
            width: wanted.all.fields().len(),
            projection: wanted.projection.clone(),
            schema: nullable(wanted.schema()?.as_ref()),
        })
    }

    /// What the fields of good lines are as text, column by column; and the payload of each row.
    fn texts(&self, payloads: &BinaryArray, bad: &mut Vec<BadPayload>) -> (Vec<StringArray>, Vec<usize>) {
        let mut texts: Vec<StringBuilder> = self.projection.iter().map(|_| StringBuilder::new()).collect();
        let (mut fields, mut origins) = (Vec::with_capacity(self.width), Vec::with_capacity(payloads.len()));
        for (index, payload) in payloads.iter().enumerate() {
            if payload.is_some_and(|payload| self.options.is_comment(payload)) {
                continue;
            }
            fields.clear();
            let divided = match payload {
                None => Err(NO_PAYLOAD.to_string()),
                Some(line) => self.options.split(line, self.width, &mut fields),
            };
            if let Err(reason) = divided {
                bad.push(BadPayload { index, reason });
                continue;
            }
            origins.push(index);
            for ((text, place), column) in texts.iter_mut().zip(&self.projection).zip(self.schema.fields()) {
                text.append_option(self.value(&fields[*place], column));
            }
        }
        (texts.iter_mut().map(StringBuilder::finish).collect(), origins)
    }

    /// The text of a field, if it is not NULL. Blanks around numbers and times are none of theirs.
    fn value<'a>(&self, text: &'a str, column: &Field) -> Option<&'a str> {
        let trimmed = if may_be_empty(column) { text } else { text.trim() };
        let is_null = match &self.options.null_literal {
            Some(literal) if text == literal || trimmed == literal => true,
            _ => trimmed.is_empty() && !may_be_empty(column),
        };
        (!is_null).then_some(trimmed)
    }
}

impl Decoder for CsvDecoder {
    fn decode(&mut self, payloads: &BinaryArray) -> Result<Decoded> {
        let mut bad = vec![];
        let (texts, mut origins) = self.texts(payloads, &mut bad);
        let mut is_good = vec![true; origins.len()];
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(texts.len());
        for (text, field) in texts.iter().zip(self.schema.fields()) {
            let column = typed(text, field.data_type())?;
            if column.null_count() > text.null_count() {
                for row in (0..text.len()).filter(|row| text.is_valid(*row) && column.is_null(*row)) {
                    if std::mem::replace(&mut is_good[row], false) {
                        let misfit = text::misfit(text.value(row), field.data_type());
                        let reason = format!("{misfit}, which column {} is", field.name());
                        bad.push(BadPayload { index: origins[row], reason });
                    }
                }
            }
            columns.push(column);
        }
        let options = RecordBatchOptions::new().with_row_count(Some(origins.len()));
        let mut rows = RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)?;
        if is_good.contains(&false) {
            let kept = origins.into_iter().zip(&is_good).filter_map(|(origin, is_good)| is_good.then_some(origin));
            origins = kept.collect();
            rows = filter_record_batch(&rows, &BooleanArray::from(is_good))?;
        }
        bad.sort_by_key(|bad| bad.index);
        // A comment is neither a row nor bad.
        Ok(Decoded { rows, origins: self.options.has_comments.then_some(origins), kinds: None, bad })
    }
}

/// Texts as values of this type; NULL for those that are none.
fn typed(texts: &StringArray, data_type: &DataType) -> Result<ArrayRef> {
    match text::values(texts.iter(), data_type)? {
        Some(values) => Ok(values),
        None => Ok(cast(texts, data_type)?),
    }
}

/// Rows to payloads.
#[derive(Debug)]
pub struct CsvEncoder {
    options: CsvOptions,
}

impl CsvEncoder {
    /// An encoder of rows of `schema`, whose columns become fields in order.
    pub fn try_new(schema: SchemaRef, options: &CsvOptions) -> Result<Self> {
        check(&schema)?;
        Ok(Self { options: options.clone() })
    }
}

impl Encoder for CsvEncoder {
    fn encode(&mut self, rows: &RecordBatch) -> Result<BinaryArray> {
        let options = FormatOptions::new()
            .with_timestamp_format(Some("%Y-%m-%d %H:%M:%S%.f"))
            .with_timestamp_tz_format(Some("%Y-%m-%d %H:%M:%S%.fZ"));
        let mut columns = Vec::with_capacity(rows.num_columns());
        for column in rows.columns() {
            columns.push((column, column.as_binary_opt::<i32>(), ArrayFormatter::try_new(column.as_ref(), &options)?));
        }
        let null = self.options.null_literal.as_deref().unwrap_or_default();
        let (mut values, mut lengths) = (vec![], Vec::with_capacity(rows.num_rows()));
        let mut text = String::new();
        for row in 0..rows.num_rows() {
            let before = values.len();
            for (place, (column, bytes, shown)) in columns.iter().enumerate() {
                text.clear();
                match bytes {
                    _ if column.is_null(row) => text.push_str(null),
                    Some(bytes) => BASE64_STANDARD.encode_string(bytes.value(row), &mut text),
                    None => shown.value(row).write(&mut text)?,
                }
                if place > 0 {
                    values.push(self.options.delimiter);
                }
                self.options.write(&text, &mut values).map_err(|reason| {
                    Error::data(format!("row {row}: column {}: {reason}", rows.schema_ref().field(place).name()))
                })?;
            }
            // Some brokers refuse a message without a byte.
            if let Some(quote) = self.options.quote.filter(|_| values.len() == before) {
                values.extend([quote, quote]);
            }
            lengths.push(values.len() - before);
        }
        joined(values, lengths, None, "csv")
    }
}

#[cfg(test)]
#[path = "csv_tests.rs"]
mod tests;

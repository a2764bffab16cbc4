//! Java's date patterns, `yyyy-MM-dd HH:mm:ss.SSS`, and chrono's, `%Y-%m-%d`: a `%` tells them apart.
//!
//! A Java pattern is translated to chrono's, letter by letter. What has no translation is refused with its place: no
//! pattern is ever printed as if it were text. Between Java's two readings that of `DateTimeFormatter` holds: `SSS` is
//! a fraction, not a number of milliseconds.
//!
//! What a Java pattern leaves out is 1970, January, the first, midnight, as in Flink. Limits: `yy` below 70 is this
//! century's, from 70 on the last one's; blanks before a number are skipped; zones and weeks are not translated.

use std::fmt::Write;

use chrono::NaiveDateTime;
use chrono::format::{Item, ParseResult, Parsed, StrftimeItems, parse};

use super::memo::Memo;
use crate::error::{Error, Result};

/// All patterns in use.
pub(super) static PATTERNS: Memo<Pattern> = Memo::new(Pattern::compile);

/// What a refusal offers instead.
const KNOWN: &str = "known are yyyy yy M MM MMM MMMM d dd D DDD H HH h hh a m mm s ss SSS SSSSSS SSSSSSSSS E EEEE and \
                     'quoted text'; a pattern with % is read as strftime's";

/// A compiled pattern.
#[derive(Debug)]
pub(super) struct Pattern {
    items: Vec<Item<'static>>,
    is_java: bool,
}

impl Pattern {
    fn compile(text: &str) -> Result<Self> {
        let is_java = !is_strftime(text);
        let translated = if is_java { translate(text)? } else { text.to_string() };
        let items = StrftimeItems::new(&translated).parse_to_owned().map_err(|error| {
            Error::usage(format!("date pattern \"{text}\" is not one of strftime's")).caused_by(error)
        })?;
        Ok(Self { items, is_java })
    }

    /// Writes the moment.
    pub(super) fn format(&self, moment: NaiveDateTime, out: &mut String) -> Result<()> {
        write!(out, "{}", moment.format_with_items(self.items.iter()))
            .map_err(|_| Error::usage("a date pattern asks for a time zone, which the timestamp does not have"))
    }

    /// Reads a moment; none if the text does not fit.
    pub(super) fn parse(&self, text: &str) -> Option<NaiveDateTime> {
        let mut parsed = Parsed::new();
        parse(&mut parsed, text, self.items.iter()).ok()?;
        if parsed.offset().is_some() {
            return parsed.to_datetime().ok().map(|moment| moment.naive_utc());
        }
        if self.is_java {
            complete(&mut parsed).ok()?;
        }
        let moment = parsed.to_naive_datetime_with_offset(0);
        moment.or_else(|_| parsed.to_naive_date().map(NaiveDateTime::from)).ok()
    }
}

/// Whether the pattern is chrono's.
pub(super) fn is_strftime(pattern: &str) -> bool {
    pattern.contains('%')
}

/// Sets what the text did not say.
fn complete(parsed: &mut Parsed) -> ParseResult<()> {
    if parsed.year().is_none() && parsed.year_mod_100().is_none() {
        parsed.set_year(1970)?;
    }
    if parsed.ordinal().is_none() {
        if parsed.month().is_none() {
            parsed.set_month(1)?;
        }
        if parsed.day().is_none() {
            parsed.set_day(1)?;
        }
    }
    if parsed.hour_div_12().is_none() {
        parsed.set_ampm(false)?;
    }
    if parsed.hour_mod_12().is_none() {
        parsed.set_hour12(12)?;
    }
    if parsed.minute().is_none() {
        parsed.set_minute(0)?;
    }
    if parsed.second().is_none() {
        parsed.set_second(0)?;
    }
    Ok(())
}

/// A Java pattern as strftime's.
fn translate(pattern: &str) -> Result<String> {
    let refuse = |place: usize, what: &str, why: &str| {
        Err(Error::usage(format!("date pattern \"{pattern}\": {what} at position {} {why}; {KNOWN}", place + 1)))
    };
    let letters: Vec<char> = pattern.chars().collect();
    let mut out = String::with_capacity(pattern.len() + 8);
    let mut at = 0;
    while let Some(&letter) = letters.get(at) {
        let run = letters[at..].iter().take_while(|&&other| other == letter).count();
        match letter {
            '\'' if run >= 2 => {
                out.push('\'');
                at += 2;
            }
            '\'' => match quoted(&letters[at + 1..], &mut out) {
                Some(length) => at += 1 + length,
                None => return refuse(at, "the quote", "is not closed"),
            },
            '[' | ']' | '{' | '}' | '#' => return refuse(at, &format!("'{letter}'"), "is reserved by Java"),
            'a'..='z' | 'A'..='Z' => {
                let word: String = letters[at..at + run].iter().collect();
                match specifier(&word) {
                    Some(translated) => out.push_str(translated),
                    None if letter == 'Y' => return refuse(at, &word, "is the year that a week belongs to, not yyyy"),
                    None if letter == 'S' => return refuse(at, &word, "is a fraction of other than 3, 6 or 9 digits"),
                    None => return refuse(at, &word, "is not supported"),
                }
                at += run;
            }
            other => {
                out.push(other);
                at += 1;
            }
        }
    }
    Ok(out)
}

/// Copies quoted text up to its closing quote and gives its length with that quote; `''` within is a quote.
fn quoted(letters: &[char], out: &mut String) -> Option<usize> {
    let mut at = 0;
    loop {
        match (letters.get(at)?, letters.get(at + 1)) {
            ('\'', Some('\'')) => {
                out.push('\'');
                at += 2;
            }
            ('\'', _) => return Some(at + 1),
            (other, _) => {
                out.push(*other);
                at += 1;
            }
        }
    }
}

/// The translation of a run of one letter.
fn specifier(word: &str) -> Option<&'static str> {
    Some(match word {
        "y" | "yyyy" | "u" | "uuuu" => "%Y",
        "yy" | "uu" => "%y",
        "M" => "%-m",
        "MM" => "%m",
        "MMM" => "%b",
        "MMMM" => "%B",
        "d" => "%-d",
        "dd" => "%d",
        "D" => "%-j",
        "DDD" => "%j",
        "H" => "%-H",
        "HH" => "%H",
        "h" => "%-I",
        "hh" => "%I",
        "a" => "%p",
        "m" => "%-M",
        "mm" => "%M",
        "s" => "%-S",
        "ss" => "%S",
        "SSS" => "%3f",
        "SSSSSS" => "%6f",
        "SSSSSSSSS" => "%9f",
        "E" | "EE" | "EEE" => "%a",
        "EEEE" => "%A",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_java_pattern_becomes_strftimes() {
        let table = [
            ("yyyy-MM-dd HH:mm:ss.SSS", "%Y-%m-%d %H:%M:%S.%3f"),
            ("yyyy-MM-dd'T'HH:mm", "%Y-%m-%dT%H:%M"),
            ("h 'o''clock' a", "%-I o'clock %p"),
            ("d''M", "%-d'%-m"),
            ("yyyy年M月", "%Y年%-m月"),
        ];
        for (java, strftime) in table {
            assert_eq!(translate(java).unwrap(), strftime, "{java}");
        }
    }

    #[test]
    fn what_is_not_translated_is_named_with_its_place() {
        let table = [
            ("yyyy-QQ", "QQ at position 6 is not supported"),
            ("YYYY", "YYYY at position 1 is the year that a week belongs to"),
            ("ss.SS", "SS at position 4 is a fraction of other than 3, 6 or 9 digits"),
            ("yyyy'T", "the quote at position 5 is not closed"),
            ("yyyy[-MM]", "'[' at position 5 is reserved by Java"),
            ("HH:mm XXX", "XXX at position 7 is not supported"),
        ];
        for (java, message) in table {
            let error = translate(java).unwrap_err().to_string();
            assert!(error.contains(message), "{java}: {error}");
        }
    }

    #[test]
    fn what_a_pattern_leaves_out_is_the_epoch() {
        let table = [
            ("HH:mm", "12:34", "1970-01-01 12:34:00"),
            ("yyyy-MM", "2024-02", "2024-02-01 00:00:00"),
            ("yyyyMMddHHmmssSSS", "20240229235959123", "2024-02-29 23:59:59.123"),
            ("yyyy-DDD", "2024-060", "2024-02-29 00:00:00"),
            ("MM/dd/yy h:mm a", "02/29/24 1:05 PM", "2024-02-29 13:05:00"),
        ];
        for (pattern, text, moment) in table {
            let parsed = Pattern::compile(pattern).unwrap().parse(text);
            assert_eq!(parsed.map(|m| m.to_string()).as_deref(), Some(moment), "{pattern}");
        }
        assert_eq!(Pattern::compile("yyyy-MM-dd").unwrap().parse("2024-02-30"), None);
    }
}

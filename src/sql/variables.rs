//! `${name}` in a script, replaced before it is parsed.
//!
//! Text replaces text, also within quotes: what a variable holds may be a name, a value or a whole clause, and is not
//! looked at again. Comments are left alone, so an example in a comment needs no variable; a hint, `/*+ … */`, is no
//! comment. `${env:NAME}` stays as it is: options resolve it when a connection is opened, and until then nothing holds its
//! value.
//!
//! It does not read backslashes (`E'\''`) nor `$$` quotes: beside these, a `--` may be taken for a comment.

use std::collections::BTreeMap;

use super::options::did_you_mean;
use crate::error::{Error, Location, Result};

/// What the scanner is inside of.
#[derive(Clone, Copy, PartialEq)]
enum Inside {
    Sql,
    Quotes(char),
    LineComment,
    BlockComment(usize),
}

/// Replaces `${name}` by the variables given; one that is not among them is an error with its place.
pub fn substitute(text: &str, variables: &BTreeMap<String, String>) -> Result<String> {
    let mut replaced = String::with_capacity(text.len());
    let mut inside = Inside::Sql;
    let mut at = 0;
    while let Some(next) = text[at..].chars().next() {
        let rest = &text[at..];
        let length = match inside {
            Inside::Sql | Inside::Quotes(_) if rest.starts_with("${") => {
                let (length, value) = reference(rest, variables).map_err(|e| e.at(place(text, at)))?;
                replaced.push_str(value);
                at += length;
                continue;
            }
            Inside::Sql if rest.starts_with("--") => step(&mut inside, Inside::LineComment, 2),
            Inside::Sql if rest.starts_with("/*+") => 3,
            Inside::Sql if rest.starts_with("/*") => step(&mut inside, Inside::BlockComment(1), 2),
            Inside::Sql if matches!(next, '\'' | '"' | '`') => step(&mut inside, Inside::Quotes(next), 1),
            Inside::Quotes(quote) if next == quote => step(&mut inside, Inside::Sql, 1),
            Inside::LineComment if next == '\n' => step(&mut inside, Inside::Sql, 1),
            Inside::BlockComment(depth) if rest.starts_with("/*") => {
                step(&mut inside, Inside::BlockComment(depth + 1), 2)
            }
            Inside::BlockComment(1) if rest.starts_with("*/") => step(&mut inside, Inside::Sql, 2),
            Inside::BlockComment(depth) if rest.starts_with("*/") => {
                step(&mut inside, Inside::BlockComment(depth - 1), 2)
            }
            _ => next.len_utf8(),
        };
        replaced.push_str(&rest[..length]);
        at += length;
    }
    Ok(replaced)
}

fn step(inside: &mut Inside, next: Inside, length: usize) -> usize {
    *inside = next;
    length
}

/// The length of the reference at the start of `rest`, and what stands for it.
fn reference<'a>(rest: &'a str, variables: &'a BTreeMap<String, String>) -> Result<(usize, &'a str)> {
    let end = rest.find(['}', '\n']).filter(|&end| rest[end..].starts_with('}'));
    let Some(end) = end else {
        return Err(Error::usage("${ has no closing brace on its line; write ${name}"));
    };
    let (whole, name) = (&rest[..=end], &rest[2..end]);
    if name.starts_with("env:") {
        return Ok((whole.len(), whole));
    }
    match variables.get(name) {
        Some(value) => Ok((whole.len(), value)),
        None => {
            let hint = did_you_mean(name, variables.keys().map(String::as_str));
            Err(Error::usage(format!("the variable {name} is not set{hint}")))
        }
    }
}

fn place(text: &str, at: usize) -> Location {
    let before = &text[..at];
    let line = before.rsplit('\n').next().unwrap_or_default();
    let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    Location { line: count(before.matches('\n').count()) + 1, column: count(line.chars().count()) + 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(text: &str) -> Result<String> {
        let variables = [("topic", "orders"), ("n", "5"), ("nested", "${n}")];
        substitute(text, &variables.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect())
    }

    #[test]
    fn references_are_replaced_outside_comments() {
        for (text, expected) in [
            ("SELECT ${n} FROM ${topic}", "SELECT 5 FROM orders"),
            ("'${topic}' \"${n}\" `${n}`", "'orders' \"5\" `5`"),
            ("'it''s ${n}' -- it's ${x}\n${n}", "'it''s 5' -- it's ${x}\n5"),
            ("/* ${x} /* ${x} */ ${x} */ ${n}", "/* ${x} /* ${x} */ ${x} */ 5"),
            ("'--' ${n} '/*' ${n}", "'--' 5 '/*' 5"),
            ("t /*+ OPTIONS('k' = '${n}') */ /* ${x} */ ${n}", "t /*+ OPTIONS('k' = '5') */ /* ${x} */ 5"),
            ("'${env:PASSWORD}'", "'${env:PASSWORD}'"),
            ("${nested}", "${n}"),
            ("$ { $1 é${n}é", "$ { $1 é5é"),
        ] {
            assert_eq!(run(text).unwrap(), expected);
        }
    }

    #[test]
    fn an_unset_variable_is_an_error_with_its_place() {
        let error = run("SELECT 1;\n  é ${topics}").unwrap_err().to_string();
        assert_eq!(error, "line 2, column 5: the variable topics is not set; did you mean 'topic'?");
        let error = run("'${n").unwrap_err().to_string();
        assert_eq!(error, "line 1, column 2: ${ has no closing brace on its line; write ${name}");
    }
}

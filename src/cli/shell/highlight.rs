//! Colours of a statement while it is typed, and of errors. Without a terminal, and under `NO_COLOR`, nobody asks.

use super::lexer::{Kind, Piece, is_keyword, pieces};
use crate::error::Location;

const BOLD_BLUE: &str = "1;34";
const GREEN: &str = "32";
const YELLOW: &str = "33";
const GREY: &str = "90";
const RED: &str = "31";

/// Longer texts are left as they are, so that no key waits.
const LONGEST: usize = 20_000;

/// The text with colours: keywords, strings, numbers, comments, and brackets that close nothing.
pub(super) fn highlight(text: &str) -> String {
    if text.len() > LONGEST {
        return text.to_owned();
    }
    let mut open = vec![];
    let colored = |piece: &Piece<'_>| match color(piece, &mut open) {
        Some(color) => paint(piece.text, color),
        None => piece.text.to_owned(),
    };
    pieces(text).iter().map(colored).collect()
}

fn color(piece: &Piece<'_>, open: &mut Vec<char>) -> Option<&'static str> {
    match piece.kind {
        Kind::Word if is_keyword(piece.text) => Some(BOLD_BLUE),
        Kind::Text => Some(GREEN),
        Kind::Number => Some(YELLOW),
        Kind::Comment => Some(GREY),
        Kind::Symbol => {
            let bracket = piece.text.chars().next()?;
            match bracket {
                '(' => open.push(')'),
                '[' => open.push(']'),
                ')' | ']' if open.pop() != Some(bracket) => return Some(RED),
                _ => {}
            }
            None
        }
        _ => None,
    }
}

fn paint(text: &str, color: &str) -> String {
    format!("\u{1b}[{color}m{text}\u{1b}[0m")
}

/// What is said beside what is typed.
pub(super) fn hint(text: &str) -> String {
    paint(text, GREY)
}

/// A prompt in colour.
pub(super) fn prompt(text: &str) -> String {
    paint(text, "1")
}

/// The beginning of an error's message.
pub(super) fn error(is_colored: bool) -> String {
    if is_colored { paint("error:", "1;31") } else { "error:".into() }
}

/// The line that a place is in, and a mark under its column; none, where the column is not known.
pub(super) fn underlined(text: &str, place: Location) -> Option<String> {
    let index = |n: u64| usize::try_from(n).ok()?.checked_sub(1);
    let (line, column) = (text.lines().nth(index(place.line)?)?, index(place.column)?);
    // Tabs stay tabs, so that the mark is below its place however wide they are.
    let blank = |c: char| match c {
        '\t' => "\t".to_owned(),
        c => " ".repeat(console::measure_text_width(c.encode_utf8(&mut [0; 4]))),
    };
    let before: String = line.chars().take(column).map(blank).collect();
    Some(format!("  {line}\n  {before}^"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keywords_strings_numbers_comments_and_errors_have_colours() {
        let shown = highlight("select a, 'x', 1 from `t`) -- y");
        let marked = shown.replace('\u{1b}', "~");
        let expected = "~[1;34mselect~[0m a, ~[32m'x'~[0m, ~[33m1~[0m ~[1;34mfrom~[0m `t`~[31m)~[0m ~[90m-- y~[0m";
        assert_eq!(marked, expected);
        assert_eq!(highlight("f(a[b])"), "f(a[b])");
        let long = "1 ".repeat(LONGEST);
        assert_eq!(highlight(&long), long);
    }

    #[test]
    fn a_place_is_marked_below_its_line() {
        let text = "SELECT 1;\nSELECT\t日本 x;";
        let marked = |line, column| underlined(text, Location { line, column });
        assert_eq!(marked(2, 11).as_deref(), Some("  SELECT\t日本 x;\n        \t     ^"));
        assert_eq!(marked(1, 1).as_deref(), Some("  SELECT 1;\n  ^"));
        assert_eq!(marked(1, 0), None);
        assert_eq!(marked(9, 1), None);
    }
}

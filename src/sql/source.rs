//! The text of a script, and the way from a token's place back into it.
//!
//! sqlparser counts lines and characters; slices of the text need bytes. Every piece of SQL that is kept as text (a
//! view's query, a computed column) is cut out of the script here, so it is what its author wrote.

use sqlparser::tokenizer::{Location as TokenLocation, TokenWithSpan};

use crate::error::Location;

/// A script and where its lines begin.
#[derive(Debug)]
pub(super) struct Source<'a> {
    text: &'a str,
    lines: Vec<usize>,
}

impl<'a> Source<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        let after_newlines = text.match_indices('\n').map(|(at, _)| at + 1);
        Self { text, lines: std::iter::once(0).chain(after_newlines).collect() }
    }

    /// The text from the first to the last of these tokens, with all that stands between them.
    pub(super) fn slice(&self, tokens: &[TokenWithSpan]) -> &'a str {
        match (tokens.first(), tokens.last()) {
            (Some(first), Some(last)) => {
                let (start, end) = (self.offset(first.span.start), self.offset(last.span.end));
                self.text.get(start..end).unwrap_or_default()
            }
            _ => "",
        }
    }

    /// The text of these tokens on one line: comments are left out, any white space becomes one space.
    pub(super) fn one_line(&self, tokens: &[TokenWithSpan]) -> String {
        let mut line = String::new();
        let mut end = None;
        for token in tokens {
            if end.is_some_and(|end| end != token.span.start) {
                line.push(' ');
            }
            line.push_str(self.slice(std::slice::from_ref(token)));
            end = Some(token.span.end);
        }
        line
    }

    fn offset(&self, place: TokenLocation) -> usize {
        let index = |n: u64| usize::try_from(n).unwrap_or(usize::MAX).saturating_sub(1);
        let Some(&start) = self.lines.get(index(place.line)) else { return self.text.len() };
        let line = &self.text[start..];
        line.char_indices().nth(index(place.column)).map_or(self.text.len(), |(at, _)| start + at)
    }
}

/// sqlparser's place as ours; `None` for the empty place that it gives to the end of a text.
pub(super) fn location(place: TokenLocation) -> Option<Location> {
    (place.line > 0).then_some(Location { line: place.line, column: place.column })
}

#[cfg(test)]
mod tests {
    use sqlparser::tokenizer::{Token, Tokenizer};

    use super::*;
    use crate::sql::dialect::MillstreamDialect;

    #[test]
    fn slices_count_characters_and_lines() {
        let text = "é 'ü\n''x' -- c\n  b";
        let tokens = Tokenizer::new(&MillstreamDialect, text).tokenize_with_location().unwrap();
        let tokens: Vec<_> = tokens.into_iter().filter(|t| !matches!(t.token, Token::Whitespace(_))).collect();
        let source = Source::new(text);
        let slices: Vec<_> = tokens.iter().map(|t| source.slice(std::slice::from_ref(t))).collect();
        assert_eq!(slices, ["é", "'ü\n''x'", "b"]);
        assert_eq!(source.slice(&tokens), text);
        assert_eq!(source.one_line(&tokens), "é 'ü\n''x' b");
    }
}

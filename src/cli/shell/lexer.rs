//! SQL cut into pieces, as far as a prompt needs it: for colours and completion while a statement is half typed.
//!
//! Guaranteed: any text has pieces, and together they are the text. Not promised: that they are the parser's tokens.

/// What a piece is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A keyword or a name.
    Word,
    /// A name in backticks or double quotes.
    Quoted,
    /// A string in single quotes.
    Text,
    Number,
    Comment,
    Symbol,
    Space,
}

/// A piece of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece<'a> {
    pub kind: Kind,
    /// Where it starts, in bytes.
    pub start: usize,
    /// As it was written, quotes included.
    pub text: &'a str,
    /// Whether its end is missing: a quote or comment that is not closed.
    pub is_open: bool,
}

impl<'a> Piece<'a> {
    /// Where it ends, in bytes.
    pub fn end(&self) -> usize {
        self.start + self.text.len()
    }

    /// Whether it says something: it is neither space nor comment.
    pub fn counts(&self) -> bool {
        !matches!(self.kind, Kind::Space | Kind::Comment)
    }

    /// Whether it is this word or symbol, in any case.
    pub fn is(&self, word: &str) -> bool {
        matches!(self.kind, Kind::Word | Kind::Symbol) && self.text.eq_ignore_ascii_case(word)
    }

    /// What is between its quotes, if it has some; doubled quotes are one.
    pub fn unquoted(&self) -> String {
        let Some(quote) = self.text.chars().next().filter(|_| matches!(self.kind, Kind::Quoted | Kind::Text)) else {
            return self.text.to_owned();
        };
        let inner = &self.text[1..];
        let inner = if self.is_open { inner } else { &inner[..inner.len() - 1] };
        inner.replace(&format!("{quote}{quote}"), &quote.to_string())
    }
}

/// The pieces of a text.
pub(super) fn pieces(text: &str) -> Vec<Piece<'_>> {
    let mut pieces = vec![];
    let mut start = 0;
    while let Some(first) = text[start..].chars().next() {
        let rest = &text[start..];
        let (kind, length, is_open) = piece(rest, first);
        pieces.push(Piece { kind, start, text: &rest[..length], is_open });
        start += length;
    }
    pieces
}

/// Kind and length of the piece that a text begins with, and whether its end is missing.
fn piece(rest: &str, first: char) -> (Kind, usize, bool) {
    let run = |is_part: &dyn Fn(char) -> bool| rest.find(|c: char| !is_part(c)).unwrap_or(rest.len());
    match first {
        _ if first.is_whitespace() => (Kind::Space, run(&char::is_whitespace), false),
        '-' if rest.starts_with("--") => {
            let end = rest.find('\n');
            (Kind::Comment, end.unwrap_or(rest.len()), end.is_none())
        }
        '/' if rest.starts_with("/*") => {
            let end = comment_end(rest);
            (Kind::Comment, end.unwrap_or(rest.len()), end.is_none())
        }
        '\'' | '"' | '`' => {
            let end = quote_end(rest, first);
            let kind = if first == '\'' { Kind::Text } else { Kind::Quoted };
            (kind, end.unwrap_or(rest.len()), end.is_none())
        }
        _ if first.is_ascii_digit() => (Kind::Number, run(&|c| c.is_alphanumeric() || c == '.' || c == '_'), false),
        _ if first.is_alphabetic() || first == '_' => (Kind::Word, run(&|c| c.is_alphanumeric() || c == '_'), false),
        _ => (Kind::Symbol, first.len_utf8(), false),
    }
}

/// Where a comment ends that may hold others.
fn comment_end(rest: &str) -> Option<usize> {
    let (mut depth, mut at) = (0, 0);
    while let Some(found) = rest[at..].find(['/', '*']) {
        at += found;
        match &rest.as_bytes()[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] if depth == 1 => return Some(at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
    }
    None
}

/// Where a quoted text ends, in which the quote itself is doubled.
fn quote_end(rest: &str, quote: char) -> Option<usize> {
    let mut at = 1;
    loop {
        at += rest[at..].find(quote)? + 1;
        if !rest[at..].starts_with(quote) {
            return Some(at);
        }
        at += 1;
    }
}

/// Words of SQL that a prompt knows; those of our own statements come from their reference.
const KEYWORDS: &str = "\
    ALL ALTER ANALYZE AND ANTI ARRAY AS ASC BEGIN BETWEEN BIGINT BOOLEAN BY BYTES CASE CAST CATALOG CATALOGS \
    CREATE CROSS CUMULATE CURRENT DATE DECIMAL DESC DESCRIBE DISTINCT DOUBLE DROP ELSE END ENFORCED EXCEPT EXECUTE \
    EXISTS EXPLAIN EXTERNAL FALSE FILTER FLOAT FOLLOWING FOR FROM FULL GROUP GROUPS HAVING HOP IF ILIKE IN INNER \
    INSERT INT INTERSECT INTERVAL INTO IS JOIN KEY LEFT LIKE LIMIT MAP METADATA NATURAL NOT NULL NULLS OFFSET ON \
    OR ORDER OUTER OVER PARTITION PARTITIONED PRECEDING PRIMARY QUERIES QUERY RANGE REPLACE RESET RIGHT ROW ROWS \
    SELECT SEMI SESSION SET SHOW SMALLINT STATEMENT STOP STRING TABLE TABLES TEMPORARY THEN TIMESTAMP TINYINT TO \
    TOPIC TOPICS TRUE TUMBLE UNBOUNDED UNION UNNEST USING VALUES VIEW VIEWS VIRTUAL WATERMARK WHEN WHERE WINDOW \
    WITH";

/// The words of SQL that a prompt knows.
pub(super) fn keywords() -> impl Iterator<Item = &'static str> {
    KEYWORDS.split(' ')
}

/// Whether a word is one of them, in any case.
pub(super) fn is_keyword(word: &str) -> bool {
    keywords().any(|keyword| keyword.eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keywords_are_words() {
        assert!(keywords().all(|word| !word.is_empty() && word.chars().all(|c| c.is_ascii_uppercase())));
        assert!(is_keyword("select") && !is_keyword("item"));
    }

    #[test]
    fn pieces_are_the_text() {
        let text = "SELECT `a b`, \"c\"\"d\", 'it''s' -- why\nFROM t1 /* x /* y */ z */ WHERE é>=1.5e3;\u{1F980}";
        let all = pieces(text);
        assert_eq!(all.iter().map(|piece| piece.text).collect::<String>(), text);
        let of = |kind| all.iter().filter(|piece| piece.kind == kind).map(|piece| piece.text).collect::<Vec<_>>();
        assert_eq!(of(Kind::Word), ["SELECT", "FROM", "t1", "WHERE", "é"]);
        assert_eq!(of(Kind::Quoted), ["`a b`", "\"c\"\"d\""]);
        assert_eq!(of(Kind::Text), ["'it''s'"]);
        assert_eq!(of(Kind::Number), ["1.5e3"]);
        assert_eq!(of(Kind::Comment), ["-- why", "/* x /* y */ z */"]);
        assert_eq!(of(Kind::Symbol), [",", ",", ">", "=", ";", "\u{1F980}"]);
        assert!(all.iter().all(|piece| !piece.is_open));
    }

    #[test]
    fn what_is_not_closed_is_open() {
        for text in ["'", "'a''", "`a", "\"", "/* /* */", "-- a", "/*/"] {
            let all = pieces(text);
            assert_eq!((all.len(), all[0].is_open), (1, true), "{text}");
        }
        assert_eq!(pieces("'a''b")[0].unquoted(), "a'b");
        assert_eq!(pieces("`a``b`")[0].unquoted(), "a`b");
        assert_eq!(pieces("ab")[0].unquoted(), "ab");
    }
}

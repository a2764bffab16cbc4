//! What connectors and formats say of their options: for help without a network, and for the page `docs/options.md`.
//!
//! The idea: a table of entries stands beside the code that takes the options, and a test compares it with what that
//! code asks for, so that neither has a key or a word that the other has not. Not promised: that a default or a meaning
//! is still true.

use super::Role;

/// In the place of a default: the option must be there.
pub const REQUIRED: &str = "required";
/// In the place of a default: whoever says it is told what to do instead.
pub const REFUSED: &str = "refused";

/// An option of a table, for whoever wants to write it. Texts are Markdown, as pages in `docs` have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionEntry {
    /// Its name; a `*` in it stands for any text.
    pub key: &'static str,
    /// The only use in which it has an effect; none, if it has one in both.
    pub role: Option<Role>,
    /// What it takes; all of its words, where these are few.
    pub takes: &'static str,
    /// What holds without it: a value, [`REQUIRED`] or [`REFUSED`]; empty, where it is just not there.
    pub default: &'static str,
    /// What it says.
    pub meaning: &'static str,
}

impl OptionEntry {
    /// One for reading and writing.
    pub const fn new(key: &'static str, takes: &'static str, default: &'static str, meaning: &'static str) -> Self {
        Self { key, role: None, takes, default, meaning }
    }

    /// One for reading.
    pub const fn reading(key: &'static str, takes: &'static str, default: &'static str, meaning: &'static str) -> Self {
        Self { role: Some(Role::Source), ..Self::new(key, takes, default, meaning) }
    }

    /// One for writing.
    pub const fn writing(key: &'static str, takes: &'static str, default: &'static str, meaning: &'static str) -> Self {
        Self { role: Some(Role::Sink), ..Self::new(key, takes, default, meaning) }
    }

    /// One that others know, and that is refused; in its place there is `meaning`.
    pub const fn refused(key: &'static str, meaning: &'static str) -> Self {
        Self::new(key, "", REFUSED, meaning)
    }

    /// Whether `key` is this one, or one of those that it stands for.
    pub fn covers(&self, key: &str) -> bool {
        match self.key.split_once('*') {
            Some((before, behind)) => {
                let part = key.strip_prefix(before).and_then(|rest| rest.strip_suffix(behind));
                part.is_some_and(|part| !part.is_empty())
            }
            None => self.key == key,
        }
    }
}

/// Checks that these are the options that readers asked for, and that words are the same.
#[cfg(test)]
pub(crate) fn assert_described(entries: &[OptionEntry], asked: &crate::sql::options::Words) {
    use std::collections::BTreeSet;

    let of_entry = |key: &String| if key.ends_with('.') { format!("{key}*") } else { key.clone() };
    let described: Vec<&OptionEntry> = entries.iter().filter(|entry| entry.default != REFUSED).collect();
    let keys: BTreeSet<String> = described.iter().map(|entry| entry.key.to_string()).collect();
    assert_eq!(keys.len(), described.len(), "a key is there twice");
    assert_eq!(keys, asked.keys().map(of_entry).collect::<BTreeSet<_>>());
    for entry in described {
        let words: BTreeSet<&str> = entry.takes.split('`').skip(1).step_by(2).collect();
        let expected: BTreeSet<&str> = asked.get(entry.key).into_iter().flatten().map(String::as_str).collect();
        assert!(expected.is_empty() || words == expected, "{}: {words:?}, not {expected:?}", entry.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_is_any_text() {
        let covers = |entry: &'static str, key: &str| OptionEntry::new(entry, "", "", "").covers(key);
        assert!(covers("topic", "topic") && !covers("topic", "topics"));
        assert!(covers("properties.*", "properties.acks") && !covers("properties.*", "properties."));
        assert!(covers("fields.*.kind", "fields.a.b.kind") && !covers("fields.*.kind", "fields.kind"));
    }
}

//! Which row of which epoch of which query a message is, and sets of such rows.
//!
//! A sink that delivers effectively once gives every message a property, `millstream`, with the text
//! `<query>-<epoch>-<ordinal>`. The query is its id; the ordinal is the row's place in the whole epoch, counted from 0
//! over its tasks, in task and row order. So it follows from the intent: an epoch that is run again gives each row the
//! text that it had, and two messages with one text are one row.

use std::sync::Arc;

/// The longest such property, as encoded: its name, an id of 16 digits, two numbers, and what divides them.
pub(super) const LONGEST: usize = 80;

/// Marks the messages of one epoch of one query.
#[derive(Debug, Clone)]
pub(super) struct Mark {
    epoch: u64,
    prefix: Arc<str>,
}

impl Mark {
    /// For this epoch of the query whose id is `writer`.
    pub(super) fn new(writer: &str, epoch: u64) -> Self {
        Self { epoch, prefix: format!("{writer}-{epoch}-").into() }
    }

    /// The epoch.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// What all messages of the epoch begin with.
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The text of the row at `ordinal`.
    pub(super) fn text(&self, ordinal: u64) -> String {
        format!("{}{ordinal}", self.prefix)
    }

    /// The ordinal of the row with this text; none if it is of another epoch or query.
    pub(super) fn ordinal(&self, text: &str) -> Option<u64> {
        text.strip_prefix(&*self.prefix)?.parse().ok()
    }
}

/// A set of rows of one epoch: a bit for each, as an epoch may have millions.
#[derive(Debug, Default)]
pub(super) struct Ordinals {
    words: Vec<u64>,
}

impl Ordinals {
    /// Adds a row; whether it is new.
    pub(super) fn insert(&mut self, ordinal: u64) -> bool {
        let (word, bit) = place(ordinal);
        if self.words.len() <= word {
            self.words.resize(word + 1, 0);
        }
        let is_new = self.words[word] & bit == 0;
        self.words[word] |= bit;
        is_new
    }

    /// Whether the row is in it.
    pub(super) fn contains(&self, ordinal: u64) -> bool {
        let (word, bit) = place(ordinal);
        self.words.get(word).is_some_and(|bits| bits & bit != 0)
    }

    /// How many rows are in it.
    pub(super) fn count(&self) -> u64 {
        self.words.iter().map(|bits| u64::from(bits.count_ones())).sum()
    }
}

fn place(ordinal: u64) -> (usize, u64) {
    ((ordinal / 64) as usize, 1 << (ordinal % 64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connector::rocketmq::metadata::MARK;

    #[test]
    fn a_mark_is_read_back_by_its_own_epoch_alone() {
        let mark = Mark::new("00c0ffee00c0ffee", 7);
        assert_eq!(mark.text(41), "00c0ffee00c0ffee-7-41");
        assert_eq!(mark.ordinal(&mark.text(41)), Some(41));
        for other in [Mark::new("00c0ffee00c0ffee", 70), Mark::new("00c0ffee00c0ffef", 7)] {
            assert_eq!(mark.ordinal(&other.text(41)), None);
        }
        for wrong in ["", "00c0ffee00c0ffee-7-", "00c0ffee00c0ffee-7-x", "00c0ffee00c0ffee-7-1-1", "41"] {
            assert_eq!(mark.ordinal(wrong), None, "{wrong}");
        }
        let longest = Mark::new("00c0ffee00c0ffee", u64::MAX).text(u64::MAX);
        assert!(MARK.len() + longest.len() + 2 <= LONGEST, "{longest}");
    }

    #[test]
    fn a_set_of_rows_holds_what_was_added() {
        let mut rows = Ordinals::default();
        assert!(!rows.contains(0) && !rows.contains(u64::MAX));
        for ordinal in [0, 63, 64, 1000] {
            assert!(rows.insert(ordinal), "{ordinal}");
            assert!(!rows.insert(ordinal), "{ordinal}");
        }
        assert_eq!(rows.count(), 4);
        assert!([0, 63, 64, 1000].into_iter().all(|ordinal| rows.contains(ordinal)));
        assert!([1, 62, 65, 999, 1001, 100_000].into_iter().all(|ordinal| !rows.contains(ordinal)));
    }
}

//! Which epochs' records are kept: the newest 100, and one a minute for a day.
//!
//! A pure function over what listings have shown. It never names the newest commits, and never computes a name.

use std::collections::BTreeSet;

/// How many of the newest epochs are kept.
const NEWEST: usize = 100;
const MINUTE_MS: i64 = 60_000;
const DAY_MS: i64 = 24 * 60 * MINUTE_MS;

/// A record in a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recorded {
    /// Its epoch.
    pub epoch: u64,
    /// When it was written, by the store's clock, ms since 1970.
    pub written_ms: i64,
}

/// The epochs whose records may go, given all commits (ascending by epoch).
pub fn expired(commits: &[Recorded]) -> Vec<u64> {
    let Some(newest) = commits.last() else { return vec![] };
    let older = &commits[..commits.len().saturating_sub(NEWEST)];
    let mut minutes = BTreeSet::new();
    let mut gone = vec![];
    for commit in older {
        let recent = newest.written_ms - commit.written_ms < DAY_MS;
        if !(recent && minutes.insert(commit.written_ms.div_euclid(MINUTE_MS))) {
            gone.push(commit.epoch);
        }
    }
    gone
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every(ms: i64, count: u64) -> Vec<Recorded> {
        (1..=count).map(|epoch| Recorded { epoch, written_ms: epoch as i64 * ms }).collect()
    }

    #[test]
    fn the_newest_hundred_always_stay() {
        assert!(expired(&every(1, 100)).is_empty());
        assert_eq!(expired(&every(1, 103)), vec![2, 3]);
    }

    #[test]
    fn one_a_minute_stays_for_a_day() {
        // Epochs of one second: of the older ones, the first of each minute.
        let gone = expired(&every(1000, 400));
        let kept: Vec<u64> = (1..=300).filter(|e| !gone.contains(e)).collect();
        assert_eq!(kept, vec![1, 60, 120, 180, 240, 300]);
        // Epochs of a minute: what is older than a day goes.
        let gone = expired(&every(MINUTE_MS, 2000));
        assert_eq!(gone, (1..=560).collect::<Vec<u64>>());
    }
}

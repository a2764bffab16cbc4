//! How much the next epoch takes of each table, and what makes it worth beginning.
//!
//! The idea: options say it in rows, bytes, rows a second and time, and all of these become numbers of offsets
//! ([`Limits`]): bytes by how much an offset had lately, time by how long the last epoch took for its own. Readings of
//! the monotonic clock are handed in.
//!
//! Guarantee: it is advice before an intent. What is taken stands in the intent's spans, so a rerun does not ask again.
//!
//! Not promised: that an epoch has so many bytes, or takes so long; the ones before are all that is known of it. What
//! was learnt is forgotten when the process ends.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::connector::ScanOptions;

/// Bytes of an offset, before any was read: on the large side, as one epoch that is too small costs little.
const FIRST_BYTES: f64 = 16.0 * 1024.0;
/// So many times as much as the last epoch had, the next may have.
const GROWTH: u64 = 2;
/// Without a limit, an epoch with fewer offsets than half of that is a small one.
const FEW: u64 = 10_000;

/// What kept an epoch from taking all there was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LimitedBy {
    /// `scan.max-rows-per-epoch`.
    Rows,
    /// `scan.max-bytes-per-epoch`.
    Bytes,
    /// `epoch.target-duration`, or the time that a sink gives an epoch.
    Duration,
    /// `scan.max-rows-per-second-per-partition`.
    Rate,
}

/// How many offsets of a table the next epoch may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// In all, at least 1.
    pub rows: u64,
    /// What says so.
    pub by: LimitedBy,
    /// Of each partition; 0, where the time for one has not come.
    pub rows_per_partition: u64,
    /// With so many to be had an epoch is worth beginning: from 1 to `rows`.
    pub enough: u64,
}

/// What is known of the epochs before.
#[derive(Debug, Clone)]
pub struct Pace {
    target: Option<Duration>,
    /// As many offsets of a table as should be done in the time that an epoch has.
    most_rows: u64,
    tables: BTreeMap<String, Known>,
    has_planned: bool,
}

/// What is known of a table.
#[derive(Debug, Clone, Copy, Default)]
struct Known {
    /// Bytes of an offset, a moving average over epochs.
    bytes: Option<f64>,
    /// When there was last nothing unread, or an epoch took its share; of a rate, as far as its rows account for.
    since_us: Option<u64>,
    /// The same, once the epoch that is looked at now is planned.
    next_us: Option<u64>,
}

impl Pace {
    /// Of a query whose epochs should take `target`; without one `first_rows` have no meaning.
    pub fn new(target: Option<Duration>, first_rows: u64) -> Self {
        let most_rows = if target.is_some() { first_rows.max(1) } else { u64::MAX };
        Self { target, most_rows, tables: BTreeMap::new(), has_planned: false }
    }

    /// What the next epoch may have of a table, which has something unread at this time or has not.
    pub fn limits(&mut self, table: &str, options: &ScanOptions, has_unread: bool, now_us: u64) -> Limits {
        let known = self.tables.entry(table.to_owned()).or_default();
        let since_us = known.since_us.filter(|_| has_unread).unwrap_or(now_us);
        known.since_us = Some(since_us);
        let waited_us = now_us.saturating_sub(since_us);
        // A number that is too large for u64 becomes its maximum.
        let of_bytes = (options.max_bytes as f64 / known.bytes.unwrap_or(FIRST_BYTES)) as u64;
        let (rows, by) = (options.max_rows, LimitedBy::Rows)
            .min((of_bytes.max(1), LimitedBy::Bytes))
            .min((self.most_rows, LimitedBy::Duration));
        let (rows_per_partition, spent_us) = match options.max_rate {
            Some(rate) if self.has_planned => rated(rate, waited_us),
            // The first epoch has a second's worth.
            first => (first.unwrap_or(u64::MAX), waited_us),
        };
        known.next_us = Some(since_us + spent_us);
        let has_waited = u128::from(waited_us) >= options.max_wait.as_micros();
        Limits { rows, by, rows_per_partition, enough: if has_waited { 1 } else { options.min_rows.min(rows) } }
    }

    /// An epoch is planned, by the limits that were asked for last.
    pub fn planned(&mut self) {
        self.has_planned = true;
        self.tables.values_mut().for_each(|known| known.since_us = known.next_us);
    }

    /// An epoch had so many bytes in so many offsets of a table.
    pub fn read(&mut self, table: &str, offsets: u64, bytes: u64) {
        if offsets > 0 {
            let now = bytes as f64 / offsets as f64;
            let known = self.tables.entry(table.to_owned()).or_default();
            known.bytes = Some(known.bytes.map_or(now, |before| (before + now) / 2.0));
        }
    }

    /// An epoch of so many offsets, of the table that it had most of, took so long; its sinks give it `bound`.
    pub fn took(&mut self, rows: u64, took_ms: f64, bound: Option<Duration>) {
        if let Some(bound) = self.target.into_iter().chain(bound).min() {
            self.most_rows = next_most(self.most_rows, rows, took_ms, bound.as_secs_f64() * 1000.0);
        }
    }
}

/// The whole rows of so long at so many a second, and how long these take: the rest of the time is the next ones'.
fn rated(rate: u64, waited_us: u64) -> (u64, u64) {
    let rows = u128::from(rate) * u128::from(waited_us) / 1_000_000;
    let spent_us = (rows * 1_000_000).div_ceil(u128::from(rate));
    (u64::try_from(rows).unwrap_or(u64::MAX), u64::try_from(spent_us).unwrap_or(waited_us))
}

/// How many offsets the next epoch may have, of which the last one could have `most`: it had `rows`, and took `took_ms`
/// where it should take `bound_ms`. As many as would have taken just that; but fewer at once, and more by and by. A small
/// epoch does not show what a large one takes, so it changes little.
fn next_most(most: u64, rows: u64, took_ms: f64, bound_ms: f64) -> u64 {
    // A number that is too large for u64 becomes its maximum.
    let fitting = (rows as f64 * bound_ms / took_ms) as u64;
    // Where there is no limit yet an epoch is held against itself.
    let limit = if most == u64::MAX { rows.max(FEW) } else { most };
    let is_small = rows < limit / 2;
    if rows == 0 {
        most
    } else if took_ms > bound_ms {
        fitting.clamp(if is_small { limit / 2 } else { 1 }, limit)
    } else if is_small {
        most
    } else {
        fitting.clamp(most, most.saturating_mul(GROWTH))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connector::OnDataLoss;

    const SECOND: u64 = 1_000_000;

    fn options() -> ScanOptions {
        ScanOptions {
            max_rows: 1_000,
            max_bytes: 1 << 20,
            max_rate: None,
            min_rows: 1,
            max_wait: Duration::from_secs(10),
            idle_timeout: Duration::ZERO,
            on_data_loss: OnDataLoss::Fail,
        }
    }

    #[test]
    fn bytes_become_rows_by_what_rows_had() {
        let mut pace = Pace::new(None, 1);
        let mut limit = |read: Option<(u64, u64)>| {
            read.into_iter().for_each(|(offsets, bytes)| pace.read("t", offsets, bytes));
            let Limits { rows, by, .. } = pace.limits("t", &options(), true, 0);
            (rows, by)
        };
        assert_eq!(limit(None), (64, LimitedBy::Bytes));
        assert_eq!(limit(Some((64, 6_400_000))), (10, LimitedBy::Bytes));
        assert_eq!(limit(Some((10, 500_000))), (13, LimitedBy::Bytes), "75,000 bytes on average");
        assert_eq!(limit(Some((0, 0))), (13, LimitedBy::Bytes), "nothing was read");
        assert_eq!(limit(Some((1, 1 << 30))), (1, LimitedBy::Bytes), "one is always taken");
        let mut pace = Pace::new(None, 1);
        pace.read("t", 5, 0);
        let limits = pace.limits("t", &options(), true, 0);
        assert_eq!((limits.rows, limits.by), (1_000, LimitedBy::Rows), "what has no bytes has no limit of them");
    }

    #[test]
    fn a_rate_counts_from_the_last_epoch_and_not_while_there_is_nothing() {
        let options = ScanOptions { max_rate: Some(100), ..options() };
        let mut pace = Pace::new(None, 1);
        let at = |pace: &mut Pace, now, has_unread| pace.limits("t", &options, has_unread, now).rows_per_partition;
        assert_eq!(at(&mut pace, 7 * SECOND, true), 100, "the first epoch has a second's worth");
        pace.planned();
        assert_eq!(at(&mut pace, 7 * SECOND + 9_999, true), 0);
        assert_eq!(at(&mut pace, 10 * SECOND, true), 300);
        assert_eq!(at(&mut pace, 60 * SECOND, false), 0);
        assert_eq!(at(&mut pace, 61 * SECOND, true), 100, "a pause is not made up for");
        pace.planned();
        assert_eq!(at(&mut pace, 61 * SECOND + 9_000, true), 0);
        pace.planned();
        assert_eq!(at(&mut pace, 61 * SECOND + 18_000, true), 1, "epochs that have none of it do not take its time");
        pace.planned();
        assert_eq!(at(&mut pace, 61 * SECOND + 20_000, true), 1, "nor is the rest of it lost");
        assert_eq!(pace.limits("t", &self::options(), true, 61 * SECOND).rows_per_partition, u64::MAX);
    }

    #[test]
    fn an_epoch_is_worth_beginning_with_enough_rows_or_after_a_while() {
        let options = ScanOptions { min_rows: 50, ..options() };
        let mut pace = Pace::new(None, 1);
        let mut enough = |now, has_unread| pace.limits("t", &options, has_unread, now).enough;
        assert_eq!(enough(0, false), 50);
        assert_eq!(enough(30 * SECOND, false), 50, "nothing has waited");
        assert_eq!(enough(40 * SECOND - 1, true), 50);
        assert_eq!(enough(40 * SECOND, true), 1);
        pace.planned();
        assert_eq!(pace.limits("t", &options, true, 49 * SECOND).enough, 50);
        // A limit below it is enough.
        pace.read("t", 1, 1 << 18);
        assert_eq!(pace.limits("t", &options, true, 49 * SECOND).enough, 4);
    }

    #[test]
    fn an_epoch_aims_at_the_least_of_its_times() {
        let mut pace = Pace::new(Some(Duration::from_secs(5)), 10_000);
        let mut most = |rows, took_ms, bound: Option<u64>| {
            pace.took(rows, took_ms, bound.map(Duration::from_secs));
            pace.most_rows
        };
        assert_eq!(most(10_000, 50.0, None), 20_000, "it grows by a factor");
        assert_eq!(most(20_000, 4_000.0, None), 25_000, "and then as far as fits");
        assert_eq!(most(25_000, 10_000.0, None), 12_500, "it shrinks at once");
        assert_eq!(most(12_500, 4_000.0, Some(2)), 6_250, "a sink's time is shorter");
        let mut pace = Pace::new(None, 10_000);
        pace.took(2_000_000, 10_000.0, None);
        assert_eq!(pace.most_rows, u64::MAX, "nobody asks for a time");
    }

    #[test]
    fn an_epoch_that_is_too_slow_makes_the_next_one_smaller() {
        assert_eq!(next_most(u64::MAX, 2_000_000, 10_000.0, 30_000.0), u64::MAX);
        let most = next_most(u64::MAX, 2_000_000, 60_000.0, 30_000.0);
        assert_eq!(most, 1_000_000);
        assert_eq!(next_most(most, 1_000_000, 24_000.0, 30_000.0), 1_250_000);
        assert_eq!(next_most(most, 1_000_000, 14_000.0, 30_000.0), 2_000_000);
        assert_eq!(next_most(most, 600_000, 27_000.0, 30_000.0), most);
        assert_eq!(next_most(most, 10, 20.0, 30_000.0), most, "a small one says nothing");
        assert_eq!(next_most(most, 0, 90_000.0, 30_000.0), most, "nor does one without rows");
        assert_eq!(next_most(1, 1, 90_000.0, 30_000.0), 1);
    }

    #[test]
    fn a_small_epoch_that_is_slow_halves_the_next_one_at_most() {
        assert_eq!(next_most(10_000, 1, 6_000.0, 5_000.0), 5_000);
        assert_eq!(next_most(10_000, 4_999, 50_000.0, 5_000.0), 5_000);
        assert_eq!(next_most(10_000, 5_000, 50_000.0, 5_000.0), 500, "this one is not small");
        assert_eq!(next_most(3, 1, 6_000.0, 5_000.0), 1);
        assert_eq!(next_most(u64::MAX, 1, 60_000.0, 30_000.0), 5_000, "without a limit before");
        assert_eq!(next_most(u64::MAX, 8_000, 60_000.0, 30_000.0), 4_000);
        // If it is the rows that take so long, that shows soon.
        let slow = |most: u64, rows: u64| next_most(most, rows.min(most), rows.min(most) as f64 * 60.0, 5_000.0);
        let steps = std::iter::successors(Some(10_000), |most| Some(slow(*most, 100))).take(9).collect::<Vec<_>>();
        assert_eq!(steps, [10_000, 5_000, 2_500, 1_250, 625, 312, 156, 83, 83]);
    }
}

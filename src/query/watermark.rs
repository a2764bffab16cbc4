//! How event time advances: a pure function from what partitions have shown to the watermark of the next epoch.
//!
//! The idea: each partition's watermark is the highest that its rows gave. A source's is the least of its partitions', a
//! query's the least of its sources'. A partition that had nothing to read for a while (`scan.watermark.idle-timeout`,
//! measured in batch times) does not count, and one that has something to read is never idle.
//!
//! Guarantee: it never goes back, and it stands in the intent, so a rerun sees the same clock.

use std::time::Duration;

/// What a partition has shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PartitionTime {
    /// The highest watermark of its rows, ms.
    pub watermark_ms: Option<i64>,
    /// The batch time of the epoch that last had a row of it, or of the query's beginning.
    pub last_row_ms: i64,
    /// Whether there is something to read that was not read yet, or nobody can say, as it cannot be reached.
    pub has_more: bool,
}

impl PartitionTime {
    /// Whether it has had nothing to read for too long.
    pub fn is_idle(&self, batch_time_ms: i64, timeout: Duration) -> bool {
        !self.has_more && batch_time_ms.saturating_sub(self.last_row_ms) >= timeout.as_millis() as i64
    }
}

/// How far a source has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceTime {
    /// No partition that counts has shown an event time, or one that counts has not.
    Unknown,
    /// Up to here.
    At(i64),
    /// All its partitions are idle; the furthest had come up to here.
    Idle(Option<i64>),
}

/// A source's time, from its partitions'.
pub fn of_source(partitions: &[PartitionTime], batch_time_ms: i64, timeout: Duration) -> SourceTime {
    let active = || partitions.iter().filter(|p| !p.is_idle(batch_time_ms, timeout));
    match active().map(|p| p.watermark_ms).min() {
        None => SourceTime::Idle(partitions.iter().filter_map(|p| p.watermark_ms).max()),
        Some(None) => SourceTime::Unknown,
        Some(Some(least)) => SourceTime::At(least),
    }
}

/// The query's watermark, from its sources' and the one before.
pub fn next(sources: &[SourceTime], before: Option<i64>) -> Option<i64> {
    let is_active = |source: &&SourceTime| !matches!(source, SourceTime::Idle(_));
    let least = match sources.iter().filter(is_active).min_by_key(|source| source.time()) {
        Some(source) => source.time(),
        // All have been read to their ends, and nothing comes: time may go as far as what was read.
        None => sources.iter().filter_map(|source| source.time()).min(),
    };
    before.max(least)
}

impl SourceTime {
    fn time(&self) -> Option<i64> {
        match *self {
            SourceTime::Unknown => None,
            SourceTime::At(time) => Some(time),
            SourceTime::Idle(time) => time,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn partition(watermark_ms: impl Into<Option<i64>>, last_row_ms: i64, has_more: bool) -> PartitionTime {
        PartitionTime { watermark_ms: watermark_ms.into(), last_row_ms, has_more }
    }

    #[test]
    fn the_slowest_partition_decides_unless_it_is_idle() {
        let (slow, fast) = (partition(5, 1_000, false), partition(9, 90_000, false));
        assert_eq!(of_source(&[slow, fast], 60_000, MINUTE), SourceTime::At(5));
        assert_eq!(of_source(&[slow, fast], 61_000, MINUTE), SourceTime::At(9));
        assert_eq!(of_source(&[slow, fast], 150_000, MINUTE), SourceTime::Idle(Some(9)));
        // What waits to be read is not idle, however long it waits.
        assert_eq!(of_source(&[partition(5, 0, true), fast], 99_000, MINUTE), SourceTime::At(5));
    }

    #[test]
    fn a_partition_without_rows_holds_time_back_until_it_is_idle() {
        let (empty, full) = (partition(None, 0, false), partition(9, 50_000, false));
        assert_eq!(of_source(&[empty, full], 59_999, MINUTE), SourceTime::Unknown);
        assert_eq!(of_source(&[empty, full], 60_000, MINUTE), SourceTime::At(9));
        assert_eq!(of_source(&[], 0, MINUTE), SourceTime::Idle(None));
    }

    #[test]
    fn the_slowest_source_decides_and_time_never_goes_back() {
        use SourceTime::{At, Idle, Unknown};
        assert_eq!(next(&[At(5), At(9)], None), Some(5));
        assert_eq!(next(&[At(5), At(9)], Some(7)), Some(7));
        assert_eq!(next(&[Unknown, At(9)], None), None);
        assert_eq!(next(&[Idle(Some(3)), At(9)], None), Some(9));
        assert_eq!(next(&[Idle(Some(3)), Idle(Some(9))], None), Some(3));
        assert_eq!(next(&[Idle(None), Idle(Some(9))], None), Some(9));
        assert_eq!(next(&[], Some(4)), Some(4));
    }
}

//! How many rows are due.
//!
//! The rule: at the opening no row is due, and from then on `rows-per-second` fall due each second. Who asks for more
//! than is due (a query that resumes: by `forget`, or by a read that recovery repeats) moves the count up to there, and
//! it goes on from that row at the same rate. So a restart makes no burst, and no row waits for rows that were read in
//! an earlier life.
//!
//! What it does not promise: that two openings agree on how many rows there are, only on what is in them. A query that
//! was told nothing of its earlier life finds fewer rows than it has read; so `forget` the committed offsets before the
//! first look at the extent.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::clock::Clock;

/// Counts the rows that are due.
#[derive(Debug)]
pub(super) struct Pace {
    clock: Clock,
    rows_per_second: u64,
    since: Mutex<Mark>,
}

/// This many rows were due at this time.
#[derive(Debug, Clone, Copy)]
struct Mark {
    rows: u64,
    at_us: u64,
}

impl Pace {
    /// Counts from 0 and now.
    pub(super) fn from_now(clock: Clock, rows_per_second: u64) -> Self {
        let since = Mutex::new(Mark { rows: 0, at_us: clock.monotonic_us() });
        Self { clock, rows_per_second, since }
    }

    /// The rows that are due now.
    pub(super) fn due(&self) -> u64 {
        let since = *self.since();
        self.due_at(since, self.clock.monotonic_us())
    }

    /// Makes rows up to `offset` due, if they are not.
    pub(super) fn asked(&self, offset: u64) {
        let mut since = self.since();
        let now = self.clock.monotonic_us();
        if offset > self.due_at(*since, now) {
            *since = Mark { rows: offset, at_us: now };
        }
    }

    fn due_at(&self, since: Mark, now_us: u64) -> u64 {
        let elapsed_us = now_us.saturating_sub(since.at_us);
        let fallen = u128::from(elapsed_us) * u128::from(self.rows_per_second) / 1_000_000;
        since.rows.saturating_add(u64::try_from(fallen).unwrap_or(u64::MAX))
    }

    fn since(&self) -> MutexGuard<'_, Mark> {
        self.since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A seeded clock's monotonic time is the number of looks at it, so at a million rows a second each look is a row.
    #[test]
    fn a_restart_goes_on_where_it_is_asked_to_and_does_not_burst() {
        let pace = Pace::from_now(Clock::seeded(1, 0), 1_000_000);
        assert_eq!((pace.due(), pace.due()), (1, 2));
        pace.asked(500);
        assert_eq!(pace.due(), 501, "the count moved up");
        pace.asked(100);
        assert_eq!(pace.due(), 503, "asking for what is due changes nothing");
    }

    #[test]
    fn a_huge_rate_saturates() {
        let pace = Pace::from_now(Clock::seeded(1, 0), u64::MAX);
        assert_eq!(pace.due(), u64::MAX / 1_000_000);
        pace.asked(u64::MAX - 1);
        assert_eq!(pace.due(), u64::MAX);
    }
}

//! The right of way: what somebody waits for is written first.
//!
//! The idea: a disk does one sync after the other, so a file that nobody waits for is synced piece by piece
//! ([`local`](super::local)), and before each piece its writer looks whether others write, and lets them go first. An
//! epoch makes its writes one after the other: the way is clear when there has been none for a moment.
//!
//! Guarantee: who gives way goes on after a tenth of a second, or a little more. Not promised: that the two never meet. A
//! sync that has begun is not broken off.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// No write for so long, and the way is clear: between two of an epoch's there is less.
const QUIET: Duration = Duration::from_millis(2);
/// For so long a piece gives way to writes that last, and to as many of them…
const PATIENCE: Duration = Duration::from_millis(25);
/// … as this: a disk that is never idle must not keep what nobody waits for from getting done.
const TIMES: usize = 4;

/// Who goes first, and who lets them.
#[derive(Debug)]
pub struct RightOfWay {
    first: Mutex<First>,
    done: Condvar,
    quiet: Duration,
    patience: Duration,
}

/// Writes that somebody waits for.
#[derive(Debug, Default)]
struct First {
    under_way: usize,
    /// How many there ever were: between two looks one may have begun and ended.
    begun: u64,
}

/// A write that others give way to, until this is dropped.
#[derive(Debug)]
pub struct Taken<'a>(&'a RightOfWay);

impl Default for RightOfWay {
    fn default() -> Self {
        Self::new(QUIET, PATIENCE)
    }
}

impl RightOfWay {
    pub(super) fn new(quiet: Duration, patience: Duration) -> Self {
        Self { first: Mutex::default(), done: Condvar::new(), quiet, patience }
    }

    fn first(&self) -> MutexGuard<'_, First> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes first.
    pub fn take(&self) -> Taken<'_> {
        let mut first = self.first();
        first.under_way += 1;
        first.begun += 1;
        Taken(self)
    }

    /// Lets those go first who have taken it.
    pub fn give(&self) {
        let mut first = self.first();
        for _ in 0..TIMES {
            let waited = self.done.wait_timeout_while(first, self.patience, |first| first.under_way > 0);
            (first, _) = waited.unwrap_or_else(PoisonError::into_inner);
            let begun = first.begun;
            let is_quiet = |first: &mut First| first.under_way == 0 && first.begun == begun;
            let waited = self.done.wait_timeout_while(first, self.quiet, is_quiet);
            let (still, was_quiet) = waited.unwrap_or_else(PoisonError::into_inner);
            if was_quiet.timed_out() {
                return;
            }
            first = still;
        }
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.0.first().under_way -= 1;
        self.0.done.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_gives_way_goes_on_when_the_other_is_done() {
        // It waits for good if it is not woken; so often that one that does not wait would be first now and then.
        let way = RightOfWay::new(Duration::ZERO, Duration::MAX);
        let order = Mutex::new(vec![]);
        let meet = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..1000 {
                    meet.wait();
                    way.give();
                    order.lock().unwrap().push("given");
                    meet.wait();
                }
            });
            for _ in 0..1000 {
                let taken = way.take();
                meet.wait();
                order.lock().unwrap().push("taken");
                drop(taken);
                meet.wait();
            }
        });
        assert_eq!(order.into_inner().unwrap(), ["taken", "given"].repeat(1000));
    }

    #[test]
    fn patience_ends() {
        // It waits for good if it does not.
        let way = RightOfWay::new(Duration::MAX, Duration::ZERO);
        let _taken = way.take();
        way.give();
    }

    #[test]
    fn the_way_is_not_clear_between_two_writes_that_follow_each_other() {
        let way = RightOfWay::new(Duration::MAX, Duration::MAX);
        let is_done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // It is never quiet for that long, so this is over when it has seen as many writes as it does.
                way.give();
                is_done.store(true, std::sync::atomic::Ordering::Relaxed);
            });
            while !is_done.load(std::sync::atomic::Ordering::Relaxed) {
                drop(way.take());
                std::thread::yield_now();
            }
        });
        assert!(way.first().begun >= TIMES as u64, "{way:?}");
    }
}

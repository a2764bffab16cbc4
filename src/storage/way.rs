//! The right of way: what somebody waits for is written first.
//!
//! The idea: a disk does one sync after the other, so a file that nobody waits for is synced piece by piece
//! ([`local`](super::local)), and before each piece its writer looks whether others write, and lets them go first. An
//! epoch makes its writes one after the other: the way is clear when there has been none for a moment.
//!
//! Not promised: that they never meet. A sync that has begun is not broken off, and who gives way has patience, not more.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// No write for so long, and the way is clear: between two of an epoch's there is less.
const QUIET: Duration = Duration::from_millis(2);
/// For so long a piece gives way to writes that last, and to as many of them…
const PATIENCE: Duration = Duration::from_millis(25);
/// … as this: a disk that is never idle must not keep what nobody waits for from getting done.
const TIMES: usize = 4;

/// How many writes are under way that somebody waits for.
#[derive(Debug)]
pub struct RightOfWay {
    under_way: Mutex<usize>,
    done: Condvar,
    quiet: Duration,
    patience: Duration,
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
    fn new(quiet: Duration, patience: Duration) -> Self {
        Self { under_way: Mutex::default(), done: Condvar::new(), quiet, patience }
    }

    fn under_way(&self) -> MutexGuard<'_, usize> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes first.
    pub fn take(&self) -> Taken<'_> {
        *self.under_way() += 1;
        Taken(self)
    }

    /// Lets those go first who have taken it.
    pub fn give(&self) {
        let mut under_way = self.under_way();
        for _ in 0..TIMES {
            let waited = self.done.wait_timeout_while(under_way, self.patience, |writes| *writes > 0);
            (under_way, _) = waited.unwrap_or_else(PoisonError::into_inner);
            let waited = self.done.wait_timeout_while(under_way, self.quiet, |writes| *writes == 0);
            let (still, was_quiet) = waited.unwrap_or_else(PoisonError::into_inner);
            if was_quiet.timed_out() {
                return;
            }
            under_way = still;
        }
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        *self.0.under_way() -= 1;
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
        let way = RightOfWay::new(Duration::ZERO, Duration::ZERO);
        let _hurry = way.take();
        way.give();
        assert_eq!(*way.under_way(), 1);
    }
}

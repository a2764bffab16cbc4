//! Time and chance: the only module that reads the wall clock or draws random numbers.
//!
//! Everything else is given a [`Clock`]. A seeded one makes a run repeat itself, ids and batch times included.

use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Where time and random numbers come from; clones share it.
#[derive(Clone)]
pub struct Clock(Arc<Inner>);

enum Inner {
    System { origin: Instant },
    Seeded { random: Mutex<Box<StdRng>>, now: AtomicI64, ticks: AtomicU64 },
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self.0 {
            Inner::System { .. } => "Clock(system)",
            Inner::Seeded { .. } => "Clock(seeded)",
        })
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::system()
    }
}

impl Clock {
    /// The system's clock and randomness.
    #[allow(clippy::disallowed_methods)]
    pub fn system() -> Self {
        Self(Arc::new(Inner::System { origin: Instant::now() }))
    }

    /// A clock that begins at `start_ms`, moves 1 ms whenever it is read, and draws from `seed`.
    pub fn seeded(seed: u64, start_ms: i64) -> Self {
        Self(Arc::new(Inner::Seeded {
            random: Mutex::new(Box::new(StdRng::seed_from_u64(seed))),
            now: AtomicI64::new(start_ms),
            ticks: AtomicU64::new(0),
        }))
    }

    /// Milliseconds since 1970-01-01 00:00 UTC.
    #[allow(clippy::disallowed_methods)]
    pub fn now_ms(&self) -> i64 {
        match &*self.0 {
            Inner::System { .. } => chrono::Utc::now().timestamp_millis(),
            Inner::Seeded { now, .. } => now.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// Moves a seeded clock on by so many milliseconds, its monotonic time as well; the system's cannot be moved.
    pub fn advance(&self, ms: i64) {
        if let Inner::Seeded { now, ticks, .. } = &*self.0 {
            now.fetch_add(ms, Ordering::Relaxed);
            ticks.fetch_add(ms.max(0) as u64 * 1000, Ordering::Relaxed);
        }
    }

    /// Microseconds since an origin of its own: for durations, never stored.
    pub fn monotonic_us(&self) -> u64 {
        match &*self.0 {
            Inner::System { origin } => origin.elapsed().as_micros() as u64,
            Inner::Seeded { ticks, .. } => ticks.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// 64 random bits.
    #[allow(clippy::disallowed_methods)]
    pub fn random(&self) -> u64 {
        match &*self.0 {
            Inner::System { .. } => rand::rng().next_u64(),
            Inner::Seeded { random, .. } => random.lock().unwrap_or_else(PoisonError::into_inner).next_u64(),
        }
    }

    /// A random id: 16 hex digits.
    pub fn random_id(&self) -> String {
        format!("{:016x}", self.random())
    }
}

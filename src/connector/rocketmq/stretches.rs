//! A queue is pulled in stretches, several at once, and beyond the end of the span that is read.
//!
//! The idea: a broker that gives 32 messages to a question is slow for who asks one question after the other; and where
//! one span ends the next begins. So a few stretches of a queue are on their way at any time. Those behind the end of a
//! span stay so for the next one, and arrive while the epoch runs.
//!
//! Guarantee: the messages of exactly the span, in order. A span that begins elsewhere than where the one before it ended
//! is pulled anew. What failed ahead is asked for again when its turn has come. Of a table [`AHEAD`] stretches at most lie
//! ahead, of about a megabyte at most as long as messages are not larger.
//!
//! What it does not do ahead: less than a whole stretch, as that would make two questions of one; messages that a filter
//! of the broker passes, as it looks for them wherever they are.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use datafusion::common::runtime::SpawnedTask;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::consumer::PULL;
use super::pull::{Pulled, Puller, Stretch};
use crate::connector::{Offsets, Partition};
use crate::error::{Error, Result};

/// Stretches of a queue that are on their way at once.
const AT_ONCE: usize = 4;

/// Stretches of a table that may lie beyond what was asked for.
const AHEAD: usize = 64;

/// What was pulled of a table's queues beyond the spans that were read.
pub(super) struct Ahead {
    budget: Arc<Semaphore>,
    lines: Mutex<BTreeMap<Partition, Line>>,
}

impl fmt::Debug for Ahead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ahead").field("budget", &self.budget.available_permits()).finish_non_exhaustive()
    }
}

impl Ahead {
    /// Nothing yet; and never, if it `is_wanted` by nobody.
    pub(super) fn new(is_wanted: bool) -> Self {
        Self { budget: Arc::new(Semaphore::new(if is_wanted { AHEAD } else { 0 })), lines: Mutex::default() }
    }

    /// The stretches of the span that is to be read.
    pub(super) fn stretches<'a>(&'a self, puller: &'a Arc<Puller>) -> Stretches<'a> {
        let span = &puller.span;
        let line = self.lines().remove(&span.partition).filter(|line| line.at == span.from);
        Stretches { line: line.unwrap_or_else(|| Line::new(span.from)), ahead: self, puller }
    }

    /// Forgets all that nobody will ask for: what begins before these offsets, and queues without one.
    pub(super) fn forget(&self, before: &Offsets) {
        self.lines().retain(|partition, line| before.get(partition).is_some_and(|before| line.at >= *before));
    }

    /// Forgets everything.
    pub(super) fn clear(&self) {
        self.lines().clear();
    }

    fn lines(&self) -> MutexGuard<'_, BTreeMap<Partition, Line>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What of a queue is here, or on its way.
struct Line {
    /// Where it begins.
    at: u64,
    /// What is here: of a stretch, which a span may end in.
    here: VecDeque<Pulled>,
    permit: Permit,
    coming: VecDeque<Coming>,
    /// Where the last of them ends.
    upto: u64,
    /// Where the queue ends, as far as that was told.
    latest: u64,
}

/// A stretch on its way.
struct Coming {
    wanted: Range<u64>,
    task: SpawnedTask<Result<Stretch>>,
    permit: Permit,
}

/// What a stretch takes of the budget, if nobody had asked for it.
type Permit = Option<OwnedSemaphorePermit>;

impl Line {
    fn new(at: u64) -> Self {
        Self { at, here: VecDeque::new(), permit: None, coming: VecDeque::new(), upto: at, latest: 0 }
    }
}

/// The stretches of one span.
pub(super) struct Stretches<'a> {
    line: Line,
    ahead: &'a Ahead,
    puller: &'a Arc<Puller>,
}

impl Stretches<'_> {
    /// What comes next; none at the end of the span.
    pub(super) async fn next(&mut self) -> Result<Option<Pulled>> {
        self.begin();
        let to = self.puller.span.to;
        while self.line.at < to {
            let Some(mut pulled) = self.line.here.pop_front() else {
                self.arrive().await?;
                continue;
            };
            if pulled.next > to {
                self.line.here.push_front(pulled.split_off(to));
            }
            self.line.at = pulled.next;
            return Ok(Some(pulled));
        }
        Ok(None)
    }

    /// Leaves what lies behind the span to the next one.
    pub(super) fn keep(mut self) {
        if self.line.here.is_empty() {
            self.line.permit = None;
        }
        if self.line.upto > self.line.at {
            self.ahead.lines().insert(self.puller.span.partition.clone(), self.line);
        }
    }

    /// Waits for the stretch that was begun first; the rest of a large one is begun.
    async fn arrive(&mut self) -> Result<()> {
        let Some(Coming { wanted, task, permit }) = self.line.coming.pop_front() else {
            return Err(Error::internal(format!("{}: nothing is on its way", self.puller.place(self.line.at))));
        };
        let place = self.puller.place(wanted.start);
        let Stretch { pulled, rest } = match joined(task, &place).await {
            // What went wrong then is asked for once more, in the name of this span.
            Err(_) if permit.is_some() => joined(self.pull(wanted), &place).await?,
            pulled => pulled?,
        };
        self.line.latest = pulled.iter().map(Pulled::latest).fold(self.line.latest, u64::max);
        self.line.here.extend(pulled);
        if rest.is_empty() {
            self.line.permit = permit;
        } else {
            self.line.coming.push_front(Coming { task: self.pull(rest.clone()), wanted: rest, permit });
        }
        Ok(())
    }

    /// Has as many stretches on their way as may be.
    fn begin(&mut self) {
        let span = &self.puller.span;
        let most = if self.puller.filter.is_some() { span.len().max(1) } else { PULL };
        while self.line.coming.len() < AT_ONCE {
            let from = self.line.upto;
            let (wanted, permit) = if from < span.to {
                (from..span.to.min(from.saturating_add(most)), None)
            } else if self.puller.filter.is_none()
                && self.line.latest >= from.saturating_add(PULL)
                && let Ok(permit) = Arc::clone(&self.ahead.budget).try_acquire_owned()
            {
                (from..from + PULL, Some(permit))
            } else {
                return;
            };
            self.line.upto = wanted.end;
            self.line.coming.push_back(Coming { task: self.pull(wanted.clone()), wanted, permit });
        }
    }

    fn pull(&self, wanted: Range<u64>) -> SpawnedTask<Result<Stretch>> {
        SpawnedTask::spawn(Arc::clone(self.puller).stretch(wanted))
    }
}

/// What a task gives; `what` it reads is for errors.
pub(super) async fn joined<T: Send + 'static>(task: SpawnedTask<Result<T>>, what: &str) -> Result<T> {
    match task.join().await {
        Ok(outcome) => outcome,
        Err(error) => Err(Error::internal(format!("{what}: the reader broke off")).caused_by(error)),
    }
}

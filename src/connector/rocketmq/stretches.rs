//! A queue is pulled in stretches, several at once, and beyond the end of the span that is read.
//!
//! The idea: a broker that gives 32 messages to a question is slow for who asks one question after the other; and where
//! one span ends the next begins. So a few stretches of a queue are on their way at any time. Those behind the end of a
//! span stay so for the next one, and arrive while the epoch runs.
//!
//! Guarantee: the messages of exactly the span, in order. A span that begins elsewhere than where the one before it
//! ended, or [`FRESH`] later, is pulled anew. What failed ahead is asked for again when its turn has come. Of a table
//! [`AHEAD`] stretches at most lie ahead, and of each queue the rest of one: of about a megabyte at most as long as
//! messages are not larger.
//!
//! What it does not promise: to notice within [`FRESH`] that a broker lost what lies here. The engine compares
//! [`Fingerprint`](crate::connector::Fingerprint)s for that.
//!
//! What it does not do ahead: less than a whole stretch, as that would make two questions of one, so nothing behind spans
//! that are shorter; more than the span has, which might wait for long; messages that a filter of the broker passes, as it
//! looks for them wherever they are.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use datafusion::common::runtime::SpawnedTask;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::consumer::PULL;
use super::piece::Piece;
use super::pull::{Puller, Stretch};
use crate::clock::Clock;
use crate::connector::messages::MessageBatch;
use crate::connector::{Offsets, Partition};
use crate::error::{Error, Result};

/// Stretches of a queue that are on their way at once.
const AT_ONCE: usize = 4;

/// Stretches of a table that may lie beyond what was asked for.
const AHEAD: usize = 64;

/// For so long what lies ahead is taken for what the broker has.
const FRESH: Duration = Duration::from_secs(5);

/// What was pulled of a table's queues beyond the spans that were read.
pub(super) struct Ahead {
    clock: Clock,
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
    pub(super) fn new(is_wanted: bool, clock: Clock) -> Self {
        Self { clock, budget: Arc::new(Semaphore::new(if is_wanted { AHEAD } else { 0 })), lines: Mutex::default() }
    }

    /// The stretches of the span that is to be read.
    pub(super) fn stretches<'a>(&'a self, puller: &'a Arc<Puller>) -> Stretches<'a> {
        let span = &puller.span;
        let goes_on = |line: &Line| line.at == span.from && line.metadata == puller.metadata && self.is_fresh(line);
        let line = self.lines().remove(&span.partition).filter(goes_on);
        Stretches { line: line.unwrap_or_else(|| Line::new(puller)), ahead: self, puller }
    }

    /// Forgets what nobody will ask for: what begins before these offsets, and what is stale.
    pub(super) fn forget(&self, before: &Offsets) {
        let is_read =
            |partition: &Partition, line: &Line| before.get(partition).is_some_and(|before| line.at < *before);
        self.lines().retain(|partition, line| self.is_fresh(line) && !is_read(partition, line));
    }

    /// Forgets everything, and keeps no more.
    pub(super) fn close(&self) {
        let mut lines = self.lines();
        self.budget.close();
        lines.clear();
    }

    fn keep(&self, partition: &Partition, line: Line) {
        let mut lines = self.lines();
        if !self.budget.is_closed() {
            lines.insert(partition.clone(), line);
        }
    }

    fn is_fresh(&self, line: &Line) -> bool {
        let begun_us = line.begun_us().unwrap_or_default();
        Duration::from_micros(self.clock.monotonic_us().saturating_sub(begun_us)) < FRESH
    }

    fn lines(&self) -> MutexGuard<'_, BTreeMap<Partition, Line>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What of a queue is here, or on its way.
struct Line {
    /// Where it begins.
    at: u64,
    /// The metadata that it has.
    metadata: Vec<String>,
    /// The rest of a stretch that a span ended in.
    here: Option<Part>,
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
    begun_us: u64,
    permit: Permit,
}

/// What has come of a stretch.
struct Part {
    piece: Piece,
    /// Where it ends.
    to: u64,
    begun_us: u64,
    permit: Permit,
}

/// What a stretch takes of the budget, if nobody had asked for it.
type Permit = Option<OwnedSemaphorePermit>;

impl Line {
    fn new(puller: &Puller) -> Self {
        let (at, metadata) = (puller.span.from, puller.metadata.clone());
        Self { at, metadata, here: None, coming: VecDeque::new(), upto: at, latest: 0 }
    }

    /// When the first of what it has was begun, by the monotonic clock.
    fn begun_us(&self) -> Option<u64> {
        let here = self.here.as_ref().map(|part| part.begun_us);
        here.or_else(|| self.coming.front().map(|coming| coming.begun_us))
    }
}

impl Part {
    /// Takes out what lies at `offset` and behind.
    fn split_off(&mut self, offset: u64) -> Part {
        let to = std::mem::replace(&mut self.to, offset);
        Part { piece: self.piece.split_off(offset), to, begun_us: self.begun_us, permit: self.permit.take() }
    }
}

/// The stretches of one span.
pub(super) struct Stretches<'a> {
    line: Line,
    ahead: &'a Ahead,
    puller: &'a Arc<Puller>,
}

impl Stretches<'_> {
    /// The messages that come next; none at the end of the span.
    pub(super) async fn next(&mut self) -> Result<Option<MessageBatch>> {
        let to = self.puller.span.to;
        loop {
            self.begin();
            if self.line.at >= to {
                return Ok(None);
            }
            let mut part = match self.line.here.take() {
                Some(part) => part,
                None => self.arrival().await?,
            };
            if part.to > to {
                self.line.here = Some(part.split_off(to));
            }
            self.line.at = part.to;
            if let Some(batch) = part.piece.into_batch() {
                return Ok(Some(batch));
            }
        }
    }

    /// Leaves what lies behind the span to the next one.
    pub(super) fn keep(self) {
        if self.line.upto > self.line.at {
            self.ahead.keep(&self.puller.span.partition, self.line);
        }
    }

    /// What was begun first; the rest of a large stretch is begun.
    async fn arrival(&mut self) -> Result<Part> {
        let Some(mut coming) = self.line.coming.pop_front() else {
            return Err(Error::internal(format!("{}: nothing is on its way", self.puller.place(self.line.at))));
        };
        let place = self.puller.place(coming.wanted.start);
        let mut pulled = joined(coming.task, &place).await;
        if pulled.is_err() && coming.permit.is_some() {
            // What went wrong then is asked for once more, in the name of this span.
            coming = self.coming(coming.wanted, None);
            pulled = joined(coming.task, &place).await;
        }
        let (Stretch { piece, rest, latest }, begun_us, mut permit) = (pulled?, coming.begun_us, coming.permit);
        self.line.latest = self.line.latest.max(latest);
        let to = rest.start;
        if !rest.is_empty() {
            let rest = self.coming(rest, permit.take());
            self.line.coming.push_front(rest);
        }
        Ok(Part { piece, to, begun_us, permit })
    }

    /// Has as many stretches on their way as may be: behind the span at most as much as it has itself.
    fn begin(&mut self) {
        let span = &self.puller.span;
        let most = if self.puller.filter.is_some() { span.len().max(1) } else { PULL };
        let ahead = if span.len() < PULL || self.puller.filter.is_some() { 0 } else { span.len() };
        while self.line.coming.len() < AT_ONCE {
            let from = self.line.upto;
            let (wanted, permit) = if from < span.to {
                (from..span.to.min(from.saturating_add(most)), None)
            } else if from - span.to < ahead
                && self.line.latest >= from.saturating_add(PULL)
                && let Ok(permit) = Arc::clone(&self.ahead.budget).try_acquire_owned()
            {
                (from..from + PULL, Some(permit))
            } else {
                return;
            };
            self.line.upto = wanted.end;
            let coming = self.coming(wanted, permit);
            self.line.coming.push_back(coming);
        }
    }

    fn coming(&self, wanted: Range<u64>, permit: Permit) -> Coming {
        let task = SpawnedTask::spawn(Arc::clone(self.puller).stretch(wanted.clone()));
        Coming { wanted, task, begun_us: self.ahead.clock.monotonic_us(), permit }
    }
}

/// What a task gives; `what` it reads is for errors.
pub(super) async fn joined<T: Send + 'static>(task: SpawnedTask<Result<T>>, what: &str) -> Result<T> {
    match task.join().await {
        Ok(outcome) => outcome,
        Err(error) => Err(Error::internal(format!("{what}: the reader broke off")).caused_by(error)),
    }
}

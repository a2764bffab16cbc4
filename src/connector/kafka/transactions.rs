//! Writing exactly once: an epoch's rows enter a transaction while they are produced, and its record ends it.
//!
//! The idea: the first rows of an epoch begin its transaction, and nobody who reads committed messages sees what is in
//! it before it is committed. So rows go straight to librdkafka, whose queue is all the memory they take, and
//! publishing is one more message, the record of the epoch, and the commit. Tasks send side by side, a batch at a time.
//!
//! What it guarantees: an epoch is committed once, whole. Before the first of its rows it is known whether it is there
//! already; then none is sent. A producer that has failed is not used again, but to say once more that it was shut out;
//! the next one asks the progress topic first. What belongs to an attempt that was given up enters no later
//! transaction.
//!
//! A transaction holds up whoever reads committed messages of the topic, and the brokers end one that is open for
//! longer than `transaction.timeout.ms`. The epoch is then run again, and may take twice as long, as far as the brokers
//! allow: so an epoch that outlives its transaction is committed in the end.
//!
//! What it does not promise: an order between the rows of two tasks.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::options::KafkaOptions;
use super::producer::Producer;
use super::progress::{Position, ProgressTopic};
use super::rows::Messages;
use super::{locked, total};
use crate::clock::Clock;
use crate::connector::{Owner, Published, Staged};
use crate::error::{Error, Kind, Result};

/// The longest timeout that librdkafka takes.
const LONGEST_MS: u32 = i32::MAX as u32;

/// The transactions of one query into one topic.
#[derive(Debug)]
pub(super) struct Transactions {
    options: Arc<KafkaOptions>,
    progress: ProgressTopic,
    clock: Clock,
    /// Rises whenever what was staged is forgotten: who began to stage before that is no longer listened to.
    attempt: AtomicU64,
    /// By epoch and task, what was sent.
    staged: Mutex<BTreeMap<u64, BTreeMap<u32, Staged>>>,
    /// Held while a batch is sent.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    producer: Option<Producer>,
    timeout: Timeout,
    /// Our newest record in the progress topic.
    position: Option<Position>,
    open: Option<Open>,
    /// That another producer has taken over: said by publishing, where the engine asks whether there is a newer run.
    shut_out: Option<Error>,
}

/// A transaction under way.
#[derive(Debug)]
struct Open {
    epoch: u64,
    since_us: u64,
    /// It has failed, and can only be forgotten: why, for the tasks that did not see it.
    lost: Option<(Kind, String)>,
}

/// How long a transaction may be open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Timeout {
    ms: u32,
    /// The longest that the brokers took.
    taken_ms: Option<u32>,
    /// The shortest that they refused.
    refused_ms: Option<u32>,
}

impl Timeout {
    fn new(ms: u32) -> Self {
        Self { ms, taken_ms: None, refused_ms: None }
    }

    /// Twice as long, for one that was too short; or halfway to what was refused, until that is near.
    fn raised(self) -> Self {
        let ms = match self.refused_ms {
            None => self.ms.saturating_mul(2).min(LONGEST_MS),
            Some(refused_ms) => self.towards(refused_ms),
        };
        Self { ms, ..self }
    }

    /// Halfway between what the brokers took and this one, which they refused, until that is near; none, if they took none.
    fn lowered(self) -> Option<Self> {
        let taken_ms = self.taken_ms.filter(|taken_ms| *taken_ms < self.ms)?;
        let taken = Self { ms: taken_ms, taken_ms: Some(taken_ms), refused_ms: Some(self.ms) };
        Some(Self { ms: taken.towards(self.ms), ..taken })
    }

    fn towards(self, refused_ms: u32) -> u32 {
        let half = refused_ms.saturating_sub(self.ms) / 2;
        if half > self.ms / 16 { self.ms + half } else { self.ms }
    }
}

impl State {
    /// Whether the progress topic has this epoch.
    fn holds(&self, epoch: u64) -> bool {
        self.position.as_ref().is_some_and(|position| position.epoch >= epoch)
    }

    /// That the transaction has failed, for the reason that was met first.
    fn lost(&self, epoch: u64) -> Error {
        let (kind, reason) = match self.open.as_ref().and_then(|open| open.lost.as_ref()) {
            Some((kind, reason)) => (*kind, format!(": {reason}")),
            None => (Kind::Transient, ", so the epoch has to be staged again".to_string()),
        };
        Error::new(kind, format!("the transaction of epoch {epoch} has failed{reason}"))
    }
}

impl Transactions {
    /// None yet; nothing is connected to.
    pub(super) fn try_new(options: Arc<KafkaOptions>, owner: &Owner, clock: Clock) -> Result<Self> {
        let key = format!("{}-{}", owner.id, options.target());
        let progress = ProgressTopic::new(options.properties.clone(), options.progress_topic.clone(), key);
        let timeout = Timeout::new(options.properties.transaction_timeout_ms()?);
        let state = State { producer: None, timeout, position: None, open: None, shut_out: None };
        let (attempt, staged) = Default::default();
        Ok(Self { options, progress, clock, attempt, staged, state: Mutex::new(state) })
    }

    /// Where it is kept what was written.
    pub(super) fn progress(&self) -> &ProgressTopic {
        &self.progress
    }

    /// Half of what a transaction may be open for.
    pub(super) fn epoch_bound(&self) -> Duration {
        Duration::from_millis(u64::from(locked(&self.state).timeout.ms) / 2)
    }

    /// Shuts out whoever wrote before, and ends what they left open.
    pub(super) fn open(&self) -> Result<()> {
        self.progress.ensure()?;
        self.attempt.fetch_add(1, Ordering::SeqCst);
        let (before, timeout) = {
            let mut state = locked(&self.state);
            (state.open, state.shut_out) = (None, None);
            (state.producer.take(), state.timeout)
        };
        locked(&self.staged).clear();
        drop(before);
        // It takes half a second to be known to the cluster, and may do so until the first epoch is staged.
        let (producer, timeout) = self.connect(timeout)?;
        let mut state = locked(&self.state);
        (state.producer, state.timeout) = (Some(producer), timeout);
        Ok(())
    }

    /// A producer that nobody else is any more, and the timeout of its transactions.
    fn connect(&self, mut timeout: Timeout) -> Result<(Producer, Timeout)> {
        let id = format!("millstream-{}", String::from_utf8_lossy(self.progress.key()));
        loop {
            let config = self.options.properties.transactional(&id, timeout.ms);
            let producer = Producer::try_new(&config, self.options.target(), Some(self.progress.name()), false)?;
            // librdkafka looks for the coordinator at once, or half a second later where it knows no broker yet.
            producer.connect()?;
            if producer.init_transactions()? {
                timeout.taken_ms = Some(timeout.ms);
                return Ok((producer, timeout));
            }
            timeout = timeout.lowered().ok_or_else(|| {
                Error::usage(format!(
                    "topic {}: 'properties.transaction.timeout.ms' is longer than the brokers' transaction.max.timeout.ms; \
                     make it shorter, or theirs longer",
                    self.options.target()
                ))
            })?;
        }
    }

    /// Finds our newest record in the progress topic at or behind `from`, and keeps where it is for the next commit.
    pub(super) fn find(&self, from: Option<u64>, wanted: &dyn Fn() -> bool) -> Result<Option<Position>> {
        let found = self.progress.newest(from, wanted)?;
        locked(&self.state).position.clone_from(&found);
        Ok(found)
    }

    /// The attempt that begins to stage now.
    pub(super) fn attempt(&self) -> u64 {
        self.attempt.load(Ordering::SeqCst)
    }

    fn is_current(&self, attempt: u64) -> bool {
        self.attempt() == attempt
    }

    /// Sends rows of an epoch within its transaction, unless the epoch is there already.
    ///
    /// That another producer has taken over is no error here: [`publish`](Self::publish) says so.
    pub(super) fn send(
        &self,
        epoch: u64,
        attempt: u64,
        messages: &Messages<'_>,
        wanted: &dyn Fn() -> bool,
    ) -> Result<()> {
        let wanted = || wanted() && self.is_current(attempt);
        let mut state = locked(&self.state);
        if !wanted() {
            return Err(abandoned(epoch));
        }
        // Who is shut out hears of it when all tasks are done; until then nothing of it is sent.
        if messages.len() == 0 || state.shut_out.is_some() {
            return Ok(());
        }
        match self.try_send(&mut state, epoch, messages, &wanted).map_err(|error| self.fail(&mut state, error)) {
            Err(error) if error.kind() == Kind::Fenced => {
                state.shut_out.get_or_insert(error);
                Ok(())
            }
            outcome => outcome,
        }
    }

    fn try_send(
        &self,
        state: &mut State,
        epoch: u64,
        messages: &Messages<'_>,
        wanted: &dyn Fn() -> bool,
    ) -> Result<()> {
        match self.begin(state, epoch, wanted)? {
            Some(producer) => producer.send(messages, wanted),
            None => Ok(()),
        }
    }

    /// Begins the epoch's transaction, unless it is open; no producer, if the epoch is there already.
    fn begin<'a>(
        &self,
        state: &'a mut State,
        epoch: u64,
        wanted: &dyn Fn() -> bool,
    ) -> Result<Option<&'a mut Producer>> {
        match &state.open {
            Some(open) if open.epoch == epoch && open.lost.is_some() => return Err(state.lost(epoch)),
            Some(open) if open.epoch == epoch => return Ok(state.producer.as_mut()),
            // What nobody has published and nobody will.
            Some(_) => self.abort(state),
            None => {}
        }
        if state.producer.is_none() {
            let (producer, timeout) = self.connect(state.timeout)?;
            state.timeout = timeout;
            // Another may have written the epoch since the last producer failed, and this one shuts the other out.
            let from = state.position.as_ref().map(|position| position.offset);
            state.position = self.progress.newest(from, wanted)?;
            state.producer = Some(producer);
        }
        if state.holds(epoch) {
            return Ok(None);
        }
        if let Some(producer) = &mut state.producer {
            producer.begin(epoch);
            producer.begin_transaction()?;
            state.open = Some(Open { epoch, since_us: self.clock.monotonic_us(), lost: None });
        }
        Ok(state.producer.as_mut())
    }

    /// Remembers what a task has sent.
    pub(super) fn stage(&self, epoch: u64, attempt: u64, task: u32, staged: Staged) -> Result<()> {
        let mut tasks = locked(&self.staged);
        if !self.is_current(attempt) {
            return Err(abandoned(epoch));
        }
        if tasks.entry(epoch).or_default().insert(task, staged).is_some() {
            return Err(Error::internal(format!("task {task} of epoch {epoch} was staged twice")));
        }
        Ok(())
    }

    /// Commits the epoch's transaction, with the record that it is there. What fails has to be staged again.
    pub(super) fn publish(&self, epoch: u64, wanted: &dyn Fn() -> bool) -> Result<Published> {
        let mut state = locked(&self.state);
        if let Some(error) = state.shut_out.take() {
            return Err(error);
        }
        let tasks = locked(&self.staged).remove(&epoch).unwrap_or_default();
        let mut published = total(tasks.values());
        let is_open = state.open.as_ref().is_some_and(|open| open.epoch == epoch);
        if is_open || (published.rows > 0 && !state.holds(epoch)) {
            let committed = self.commit(&mut state, epoch, published.rows, wanted);
            let offset = committed.map_err(|error| self.fail(&mut state, error))?;
            state.open = None;
            state.position = Some(self.progress.position(epoch, offset));
        }
        published.position =
            serde_json::to_value(&state.position).map_err(|e| Error::internal("a position is no JSON").caused_by(e))?;
        Ok(published)
    }

    fn commit(&self, state: &mut State, epoch: u64, rows: u64, wanted: &dyn Fn() -> bool) -> Result<u64> {
        let is_whole = state.open.as_ref().is_some_and(|open| open.epoch == epoch && open.lost.is_none());
        let lost = state.lost(epoch);
        let Some(producer) = state.producer.as_mut().filter(|producer| is_whole && producer.sent() as u64 == rows)
        else {
            return Err(lost);
        };
        let record = ProgressTopic::record(epoch)?;
        producer.send_record(self.progress.name(), self.progress.key(), &record, wanted)?;
        producer.finish(wanted)?;
        producer.commit_transaction()
    }

    /// Ends the transaction of an epoch that did not end well.
    pub(super) fn discard(&self, epoch: u64) {
        // First, so that whoever still sends lets go of the state.
        self.attempt.fetch_add(1, Ordering::SeqCst);
        let mut state = locked(&self.state);
        locked(&self.staged).remove(&epoch);
        state.shut_out = None;
        if state.open.as_ref().is_some_and(|open| open.epoch == epoch) {
            self.abort(&mut state);
        }
    }

    fn abort(&self, state: &mut State) {
        let aborted = match (&state.open, &state.producer) {
            (Some(Open { lost: None, .. }), Some(producer)) => producer.abort_transaction(),
            _ => Ok(()),
        };
        if let Err(error) = aborted {
            let error = self.judge(state, error);
            tracing::debug!(target: "kafka", error = error.chain(), "a transaction was not aborted");
            if error.kind() != Kind::Fenced {
                state.producer = None;
            }
        }
        state.open = None;
    }

    /// What a failure means for the transaction under way: it is lost, and its producer with it, unless that was shut
    /// out. Then it stays, to say so again.
    fn fail(&self, state: &mut State, error: Error) -> Error {
        let error = self.judge(state, error);
        if error.kind() != Kind::Fenced {
            if let Some(producer) = state.producer.take()
                && let Err(error) = producer.abort_transaction()
            {
                tracing::debug!(target: "kafka", error = error.chain(), "a transaction was not aborted");
            }
            if let Some(open) = &mut state.open {
                open.lost.get_or_insert((error.kind(), error.chain()));
            }
        }
        error
    }

    /// Tells a transaction that the brokers have given up for slow from one that another producer has ended; the next
    /// one may take longer.
    fn judge(&self, state: &mut State, error: Error) -> Error {
        let Some(Open { epoch, since_us, .. }) = state.open else { return error };
        let ms = state.timeout.ms;
        let open_us = self.clock.monotonic_us().saturating_sub(since_us);
        if error.kind() != Kind::Fenced || open_us < u64::from(ms) * 1000 {
            return error;
        }
        state.timeout = state.timeout.raised();
        let next = match state.timeout.ms {
            next if next > ms => format!("the epoch is written again with {next}"),
            _ => "the brokers take no longer one: raise their transaction.max.timeout.ms".to_string(),
        };
        Error::transient(format!(
            "topic {}: epoch {} was not written: this one's transaction was open for longer than transaction.timeout.ms = \
             {ms}; {next}; with fewer rows an epoch ('scan.max-rows-per-epoch'), or a longer \
             'properties.transaction.timeout.ms', it is in time",
            self.options.target(), epoch
        ))
        .caused_by(error)
    }

    /// Gives back the connection.
    pub(super) fn close(&self) {
        self.attempt.fetch_add(1, Ordering::SeqCst);
        let mut state = locked(&self.state);
        self.abort(&mut state);
        state.producer = None;
    }
}

fn abandoned(epoch: u64) -> Error {
    Error::transient(format!("epoch {epoch} was abandoned"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_raised_as_far_as_the_brokers_take_it() {
        let mut timeout = Timeout { taken_ms: Some(60_000), ..Timeout::new(60_000) };
        let mut tried = vec![];
        // Brokers that take 15 minutes.
        for _ in 0..12 {
            timeout = timeout.raised();
            while timeout.ms > 900_000 {
                timeout = timeout.lowered().unwrap();
            }
            timeout.taken_ms = Some(timeout.ms);
            tried.push(timeout.ms / 1000);
        }
        assert_eq!(tried[..3], [120, 240, 480]);
        assert!(tried.is_sorted() && tried[11] > 830, "{tried:?}");
        assert_eq!(timeout.raised(), timeout, "near enough");
        assert_eq!(Timeout::new(60_000).lowered(), None, "the brokers took none");
        assert_eq!(Timeout::new(LONGEST_MS).raised().ms, LONGEST_MS);
    }
}

//! Sends messages and waits for their receipts.
//!
//! The idea: librdkafka batches, compresses and retries in its own threads, in order (idempotently); here is only the
//! count of what was sent and what came back. One failed message fails the epoch.
//!
//! Guarantee: [`finish`](Producer::finish) returns when every message since [`begin`](Producer::begin) is acknowledged.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{DeliveryResult, Message as _};
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer};

use super::client::{Events, is_refusal, unusable};
use super::rows::Messages;
use crate::error::{Error, Result};

/// How long to wait for receipts before looking around.
const WAIT: Duration = Duration::from_millis(50);

/// How long the steps of a transaction may take.
const TRANSACTION: Duration = Duration::from_secs(60);
/// How long the first one waits for its coordinator.
const COORDINATOR: Duration = Duration::from_secs(10);
/// How long is tried to end one that failed.
const ABORT: Duration = Duration::from_secs(5);

/// After how many messages to look for failures.
const STRIDE: usize = 1024;

/// Whether another producer has the transactional id now, or this one was too slow.
fn is_fenced(code: Code) -> bool {
    matches!(code, Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch)
}

/// Counts receipts.
#[derive(Debug, Default)]
struct Receipts {
    events: Events,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    received: usize,
    /// Whoever waits wants to know at this count.
    awaited: usize,
    failure: Option<Failure>,
    /// The last message so far, and its offset.
    last: (usize, i64),
}

/// A message that did not arrive.
#[derive(Debug, Clone)]
struct Failure {
    code: Option<Code>,
    text: String,
    row: usize,
    partition: Option<i32>,
    size: usize,
}

impl Receipts {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for `awaited` receipts, a failure, or the time to pass.
    fn wait(&self, awaited: usize) -> MutexGuard<'_, State> {
        let mut state = self.state();
        if state.received < awaited && state.failure.is_none() {
            state.awaited = awaited;
            state = self.changed.wait_timeout(state, WAIT).unwrap_or_else(PoisonError::into_inner).0;
        }
        state
    }
}

impl ClientContext for Receipts {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.events.log(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.events.error(error, reason);
    }
}

impl ProducerContext for Receipts {
    /// The message's ordinal in its epoch.
    type DeliveryOpaque = usize;

    fn delivery(&self, receipt: &DeliveryResult<'_>, row: usize) {
        let mut state = self.state();
        state.received += 1;
        if let Ok(message) = receipt
            && row >= state.last.0
        {
            state.last = (row, message.offset());
        }
        if let Err((error, message)) = receipt {
            state.failure.get_or_insert_with(|| Failure {
                code: error.rdkafka_error_code(),
                text: error.to_string(),
                row,
                partition: (message.partition() >= 0).then(|| message.partition()),
                size: message.payload_len() + message.key_len(),
            });
        }
        if state.failure.is_some() || state.received >= state.awaited {
            self.changed.notify_one();
        }
    }
}

/// A producer for one topic.
pub(super) struct Producer {
    inner: ThreadedProducer<Receipts>,
    topic: String,
    limit: String,
    epoch: u64,
    sent: usize,
}

impl std::fmt::Debug for Producer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Producer").field("topic", &self.topic).finish_non_exhaustive()
    }
}

impl Producer {
    /// A producer of this configuration. It connects when it has something to send.
    pub(super) fn try_new(config: &ClientConfig, topic: &str) -> Result<Self> {
        let limit = config.create_native_config().and_then(|c| c.get("message.max.bytes")).map_err(unusable)?;
        let inner = config.create_with_context(Receipts::default()).map_err(unusable)?;
        Ok(Self { inner, topic: topic.to_string(), limit, epoch: 0, sent: 0 })
    }

    fn receipts(&self) -> &Receipts {
        self.inner.context()
    }

    /// Begins an epoch. Everything of the last one has come back, or this would be another producer.
    pub(super) fn begin(&mut self, epoch: u64) {
        self.epoch = epoch;
        self.sent = 0;
        *self.receipts().state() = State::default();
    }

    /// Sends these messages, waiting where the queue is full.
    pub(super) fn send(&mut self, messages: &Messages<'_>) -> Result<()> {
        for row in 0..messages.len() {
            let mut record = BaseRecord::with_opaque_to(&self.topic, self.sent);
            (record.payload, record.key) = (messages.payload(row), messages.key(row));
            (record.timestamp, record.headers) = (messages.timestamp(row), messages.headers(row));
            self.enqueue(record, |producer, error, size| {
                let (code, text) = (error.rdkafka_error_code(), error.to_string());
                producer.explain(Failure { code, text, row: producer.sent, partition: None, size })
            })?;
            self.sent += 1;
            if self.sent.is_multiple_of(STRIDE) {
                self.check(0)?;
            }
        }
        Ok(())
    }

    /// Shuts out whoever wrote with this transactional id before, and ends what they left open.
    pub(super) fn init_transactions(&self) -> Result<()> {
        self.inner.init_transactions(COORDINATOR).map_err(|error| self.explain_transaction("beginning to write", error))
    }

    /// Begins the epoch's transaction.
    pub(super) fn begin_transaction(&self) -> Result<()> {
        self.inner.begin_transaction().map_err(|error| self.explain_transaction("beginning a transaction", error))
    }

    /// Sends one message to another topic.
    pub(super) fn send_record(&mut self, topic: &str, key: &[u8], payload: &[u8]) -> Result<()> {
        let record = BaseRecord::with_opaque_to(topic, self.sent).key(key).payload(payload).partition(0);
        self.enqueue(record, |producer, error, _| {
            producer.explain_transaction("sending to the progress topic", error)
        })?;
        self.sent += 1;
        Ok(())
    }

    /// Hands one message over, waiting where the queue is full; `explain` gets the error, and the message's size.
    fn enqueue(
        &self,
        mut record: BaseRecord<'_, [u8], [u8], usize>,
        explain: impl FnOnce(&Self, KafkaError, usize) -> Error,
    ) -> Result<()> {
        while let Err((error, refused)) = self.inner.send(record) {
            if error.rdkafka_error_code() != Some(Code::QueueFull) {
                let size = refused.payload.map_or(0, <[u8]>::len) + refused.key.map_or(0, <[u8]>::len);
                return Err(explain(self, error, size));
            }
            let received = self.receipts().state().received;
            self.check(received + 1)?;
            record = refused;
        }
        Ok(())
    }

    /// Commits the transaction, when all its messages have arrived; the offset of the last one.
    pub(super) fn commit_transaction(&self) -> Result<u64> {
        let committed = self.inner.commit_transaction(TRANSACTION);
        // A message that did not arrive says more than the transaction that it broke.
        self.check(0)?;
        committed.map_err(|error| self.explain_transaction("committing a transaction", error))?;
        Ok(u64::try_from(self.receipts().state().last.1).unwrap_or_default())
    }

    /// Ends the transaction without a trace, so that readers need not wait for what will never be; who begins next does it
    /// otherwise.
    pub(super) fn abort_transaction(&self) {
        if let Err(error) = self.inner.abort_transaction(ABORT) {
            tracing::debug!(target: "kafka", "a transaction was not aborted: {error}");
        }
    }

    /// Whether another producer has taken over, for good.
    fn is_shut_out(&self) -> bool {
        self.inner.client().fatal_error().is_some_and(|(code, _)| is_fenced(code))
    }

    fn explain_transaction(&self, what: &str, error: KafkaError) -> Error {
        let (topic, reason) = (&self.topic, self.receipts().events.reason());
        match error.rdkafka_error_code() {
            Some(code) if is_fenced(code) || self.is_shut_out() => Error::fenced(format!(
                "topic {topic}: {what}: another producer has taken over the query's transactions, or this one's has timed out"
            )),
            Some(Code::InvalidTransactionTimeout) => Error::usage(format!(
                "topic {topic}: 'properties.transaction.timeout.ms' is longer than the brokers' transaction.max.timeout.ms; \
                 make it shorter, or theirs longer"
            )),
            Some(code) if is_refusal(code) => Error::refused(format!(
                "topic {topic}: {what}: {code}; check the cluster's access lists, or write at least once \
                 ('sink.delivery-guarantee')"
            )),
            _ => match self.receipts().events.refusal() {
                Some(refusal) => refusal,
                None => Error::transient(format!("topic {topic}: {what} failed{reason}")).caused_by(error),
            },
        }
    }

    /// Waits until all messages are acknowledged, or `wanted` says that nobody cares any more.
    pub(super) fn finish(&self, wanted: impl Fn() -> bool) -> Result<()> {
        while self.check(self.sent)? < self.sent {
            if !wanted() {
                return Err(Error::transient(format!("epoch {} was abandoned", self.epoch)));
            }
        }
        Ok(())
    }

    /// How many were received, after waiting a moment for `awaited` of them.
    fn check(&self, awaited: usize) -> Result<usize> {
        let state = self.receipts().wait(awaited);
        match state.failure.clone() {
            None => Ok(state.received),
            Some(failure) => {
                drop(state);
                Err(self.explain(failure))
            }
        }
    }

    fn explain(&self, failure: Failure) -> Error {
        let Failure { code, text, row, partition, size } = failure;
        let partition = partition.map(|number| format!(" partition {number}")).unwrap_or_default();
        let row = format!("row {} of epoch {} for topic {}{partition}", row + 1, self.epoch, self.topic);
        match code {
            _ if self.is_shut_out() => Error::fenced(format!("{row} was refused: {text}")),
            Some(Code::MessageSizeTooLarge) => Error::data(format!(
                "{row} is too large: it has {size} bytes, and a message may have {} with 'properties.message.max.bytes' \
                 unless the topic's own max.message.bytes is smaller; raise both, or leave such rows out",
                self.limit
            )),
            Some(Code::InvalidRecord | Code::InvalidTimestamp | Code::PolicyViolation) => Error::data(format!(
                "{row} was refused: {text}; a compacted topic needs a key, and timestamps must be within the topic's \
                 limits"
            )),
            Some(code) if is_refusal(code) => {
                Error::refused(format!("{row} was refused: {text}; check the cluster's access lists"))
            }
            _ => match self.receipts().events.refusal() {
                Some(refusal) => refusal,
                None => {
                    Error::transient(format!("{row} was not acknowledged: {text}{}", self.receipts().events.reason()))
                }
            },
        }
    }
}

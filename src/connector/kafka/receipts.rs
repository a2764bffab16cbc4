//! What came back of the messages that were sent.
//!
//! The idea: librdkafka calls back once for each message, from its own threads; whoever sends looks at the count, and
//! at the first message that did not arrive.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{DeliveryResult, Message as _};
use rdkafka::producer::{BaseRecord, ProducerContext};

use super::client::Events;
use super::locked;

/// How long to wait for receipts before looking around.
const WAIT: Duration = Duration::from_millis(50);

/// Counts receipts.
#[derive(Debug, Default)]
pub(super) struct Receipts {
    /// What went wrong lately.
    pub(super) events: Events,
    /// Whether messages may be lost: nobody is stopped by one that did not arrive.
    pub(super) tolerates_losses: bool,
    state: Mutex<State>,
    changed: Condvar,
}

/// What has come back since an epoch began.
#[derive(Debug, Default)]
pub(super) struct State {
    /// Messages with an outcome.
    pub(super) received: usize,
    /// Whoever waits wants to know at this count.
    awaited: usize,
    /// Messages that did not arrive.
    pub(super) lost: usize,
    /// The first of them.
    pub(super) failure: Option<Failure>,
    /// The last message so far, and its offset.
    pub(super) last: (usize, i64),
}

/// A message that did not arrive.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    /// Why.
    pub(super) code: Option<Code>,
    /// Why, in words.
    pub(super) text: String,
    /// Which message of the epoch it is, from 0.
    pub(super) row: usize,
    /// Its topic.
    pub(super) topic: String,
    /// Its partition, if it had one.
    pub(super) partition: Option<i32>,
    /// Its bytes.
    pub(super) size: usize,
}

impl Failure {
    /// Of a message that was not even taken.
    pub(super) fn of(record: &BaseRecord<'_, [u8], [u8], usize>, error: &KafkaError) -> Self {
        Self {
            code: error.rdkafka_error_code(),
            text: error.to_string(),
            row: record.delivery_opaque,
            topic: record.topic.to_string(),
            partition: record.partition,
            size: record.payload.map_or(0, <[u8]>::len) + record.key.map_or(0, <[u8]>::len),
        }
    }
}

impl State {
    /// Counts one that did not arrive.
    pub(super) fn lose(&mut self, failure: impl FnOnce() -> Failure) {
        self.lost += 1;
        self.failure.get_or_insert_with(failure);
    }
}

impl Receipts {
    /// Where a producer may lose messages, or may not.
    pub(super) fn new(tolerates_losses: bool) -> Self {
        Self { tolerates_losses, ..Self::default() }
    }

    /// What has come back so far.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }

    /// Waits for `awaited` receipts, a failure that counts, or the time to pass.
    pub(super) fn wait(&self, awaited: usize) -> MutexGuard<'_, State> {
        let mut state = self.state();
        if state.received < awaited && (self.tolerates_losses || state.failure.is_none()) {
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
            state.lose(|| Failure {
                code: error.rdkafka_error_code(),
                text: error.to_string(),
                row,
                topic: message.topic().to_string(),
                partition: (message.partition() >= 0).then(|| message.partition()),
                size: message.payload_len() + message.key_len(),
            });
        }
        if state.failure.is_some() || state.received >= state.awaited {
            self.changed.notify_one();
        }
    }
}

//! Sends messages and waits for their receipts.
//!
//! The idea: librdkafka batches, compresses and retries in its own threads, in order (idempotently); here is only the
//! count of what was sent and what came back. One failed message fails the epoch, unless losses are tolerated: then
//! they are counted.
//!
//! Guarantee: [`finish`](Producer::finish) returns when every message since [`begin`](Producer::begin) is acknowledged,
//! or, where losses are tolerated, given up. An error says what is behind it: of messages that were thrown away because
//! their transaction had failed, why it had.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::producer::{BaseRecord, Producer as _, ThreadedProducer};

use super::client::{is_refusal, unusable};
use super::receipts::{Failure, Receipts, State};
use super::rows::Messages;
use crate::error::{Error, Result};

/// How long the steps of a transaction may take.
const TRANSACTION: Duration = Duration::from_secs(60);
/// How often, and how far apart, it is looked whether all messages are let go of.
const RELEASES: usize = 1000;
const RELEASE: Duration = Duration::from_micros(50);
/// How long the first one waits for its coordinator.
const COORDINATOR: Duration = Duration::from_secs(10);
/// How long is tried to end one that failed.
const ABORT: Duration = Duration::from_secs(5);

/// After how many messages to look for failures.
const STRIDE: usize = 1024;

/// Whether another producer has the transactional id now, or this one was too slow.
fn is_fenced(code: Code) -> bool {
    matches!(code, Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch | Code::InvalidTransactionalState)
}

/// Whether this only says that something else went wrong before.
fn is_consequence(code: Code) -> bool {
    matches!(code, Code::PurgeQueue | Code::PurgeInflight | Code::State | Code::Fatal | Code::Inconsistent)
}

/// A producer for one topic, and for others that rows name.
pub(super) struct Producer {
    inner: ThreadedProducer<Receipts>,
    topic: String,
    limit: String,
    is_transactional: bool,
    /// What its user must be allowed beside writing to the topic, for an error.
    permissions: String,
    epoch: u64,
    sent: usize,
    /// Which message of the epoch is its record, once that was sent.
    record: Option<usize>,
}

impl std::fmt::Debug for Producer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Producer").field("topic", &self.topic).finish_non_exhaustive()
    }
}

impl Producer {
    /// A producer of this configuration; in transactions it also writes to the topic `progress`. It connects when it
    /// has something to send.
    pub(super) fn try_new(
        config: &ClientConfig,
        topic: &str,
        progress: Option<&str>,
        tolerates_losses: bool,
    ) -> Result<Self> {
        let limit = config.create_native_config().and_then(|c| c.get("message.max.bytes")).map_err(unusable)?;
        let inner = config.create_with_context(Receipts::new(tolerates_losses)).map_err(unusable)?;
        let transactional_id = config.get("transactional.id");
        let permissions = progress.zip(transactional_id).map(|(progress, id)| {
            format!(", READ and WRITE on the progress topic {progress}, and WRITE on the transactional id {id}")
        });
        let (topic, permissions) = (topic.to_string(), permissions.unwrap_or_default());
        let is_transactional = transactional_id.is_some();
        Ok(Self { inner, topic, limit, is_transactional, permissions, epoch: 0, sent: 0, record: None })
    }

    fn receipts(&self) -> &Receipts {
        self.inner.context()
    }

    /// Begins an epoch. Everything of the last one has come back, or this would be another producer.
    pub(super) fn begin(&mut self, epoch: u64) {
        (self.epoch, self.sent, self.record) = (epoch, 0, None);
        *self.receipts().state() = State::default();
        // All of the epoch before has arrived, so what there was of trouble says nothing of what may come.
        self.receipts().events.clear();
    }

    /// How many messages were sent since it began.
    pub(super) fn sent(&self) -> usize {
        self.sent
    }

    /// Sends these messages, waiting where the queue is full, as long as they are `wanted`.
    pub(super) fn send(&mut self, messages: &Messages<'_>, wanted: &dyn Fn() -> bool) -> Result<()> {
        for row in 0..messages.len() {
            let topic = messages.topic(row).unwrap_or(self.topic.as_str());
            let mut record = BaseRecord::with_opaque_to(topic, self.sent);
            (record.payload, record.key) = (messages.payload(row), messages.key(row));
            (record.timestamp, record.headers) = (messages.timestamp(row), messages.headers(row));
            record.partition = messages.partition(row);
            let refused = match record.partition {
                // librdkafka would take it for none.
                Some(number) if number < 0 => {
                    Some(Failure::of(&record, &KafkaError::MessageProduction(Code::UnknownPartition)))
                }
                _ => self.enqueue(record, wanted)?,
            };
            match refused {
                None => {}
                Some(failure) if self.receipts().tolerates_losses => {
                    let mut state = self.receipts().state();
                    state.received += 1;
                    state.lose(|| failure);
                }
                Some(failure) => return Err(self.explain(failure)),
            }
            self.sent += 1;
            if self.sent.is_multiple_of(STRIDE) {
                self.check(0)?;
            }
        }
        Ok(())
    }

    /// Waits until a broker is known.
    pub(super) fn connect(&self) -> Result<()> {
        let known = self.inner.client().fetch_metadata(Some(&self.topic), COORDINATOR);
        known.map(drop).map_err(|error| self.explain_transaction("looking for the brokers", error))
    }

    /// Shuts out whoever wrote with this transactional id before, and ends what they left open; false if the brokers
    /// take no transaction timeout as long as the configuration's.
    pub(super) fn init_transactions(&self) -> Result<bool> {
        match self.inner.init_transactions(COORDINATOR) {
            Ok(()) => Ok(true),
            Err(error) if error.rdkafka_error_code() == Some(Code::InvalidTransactionTimeout) => Ok(false),
            Err(error) => Err(self.explain_transaction("beginning to write", error)),
        }
    }

    /// Begins the epoch's transaction.
    pub(super) fn begin_transaction(&self) -> Result<()> {
        self.inner.begin_transaction().map_err(|error| self.explain_transaction("beginning a transaction", error))
    }

    /// Sends the record of the epoch to another topic.
    pub(super) fn send_record(
        &mut self,
        topic: &str,
        key: &[u8],
        payload: &[u8],
        wanted: &dyn Fn() -> bool,
    ) -> Result<()> {
        let record = BaseRecord::with_opaque_to(topic, self.sent).key(key).payload(payload).partition(0);
        self.record = Some(self.sent);
        match self.enqueue(record, wanted)? {
            None => self.sent += 1,
            Some(failure) => {
                // A row that was refused before says more; its receipt may be on its way.
                self.finish(wanted)?;
                return Err(self.explain(failure));
            }
        }
        Ok(())
    }

    /// Hands one message over, waiting where the queue is full; what is wrong with one that is not taken.
    fn enqueue(
        &self,
        mut record: BaseRecord<'_, [u8], [u8], usize>,
        wanted: &dyn Fn() -> bool,
    ) -> Result<Option<Failure>> {
        loop {
            // Receipts come a moment before their room does.
            let is_empty = self.inner.in_flight_count() == 0;
            let Err((error, refused)) = self.inner.send(record) else { return Ok(None) };
            if error.rdkafka_error_code() != Some(Code::QueueFull) || is_empty {
                return Ok(Some(Failure::of(&refused, &error)));
            }
            if !wanted() {
                return Err(self.abandoned());
            }
            let received = self.receipts().state().received;
            self.check(received + 1)?;
            record = refused;
        }
    }

    /// Commits the transaction, when all its messages have arrived; the offset of the last one.
    pub(super) fn commit_transaction(&self) -> Result<u64> {
        // Receipts come a moment before their messages are let go of. If one is still there, rdkafka polls for more before
        // it commits, and that takes a tenth of a second where another thread does the polling.
        for _ in 0..RELEASES {
            if self.inner.in_flight_count() == 0 {
                break;
            }
            std::thread::sleep(RELEASE);
        }
        let committed = self.inner.commit_transaction(TRANSACTION);
        // A message that did not arrive says more than the transaction that it broke.
        self.check(0)?;
        committed.map_err(|error| self.explain_transaction("committing a transaction", error))?;
        Ok(u64::try_from(self.receipts().state().last.1).unwrap_or_default())
    }

    /// Ends the transaction without a trace, so that readers need not wait for what will never be.
    pub(super) fn abort_transaction(&self) -> Result<()> {
        self.inner.abort_transaction(ABORT).map_err(|error| self.explain_transaction("aborting a transaction", error))
    }

    /// Whether another producer has taken over, for good.
    fn is_shut_out(&self) -> bool {
        self.inner.client().fatal_error().is_some_and(|(code, _)| is_fenced(code))
    }

    /// Why the transaction under way has failed, if it has: librdkafka tells whoever asks for another one. Without
    /// transactions: why the producer has.
    fn cause(&self) -> Option<KafkaError> {
        if !self.is_transactional {
            return self.inner.client().fatal_error().map(|(code, _)| KafkaError::Global(code));
        }
        let is_answer = |code: Code| !matches!(code, Code::State | Code::Conflict | Code::PreviousInProgress);
        self.inner.begin_transaction().err().filter(|error| error.rdkafka_error_code().is_some_and(is_answer))
    }

    fn explain_transaction(&self, what: &str, error: KafkaError) -> Error {
        let error = match error.rdkafka_error_code() {
            Some(code) if is_consequence(code) => self.cause().unwrap_or(error),
            _ => error,
        };
        let (topic, reason) = (&self.topic, self.receipts().events.reason());
        match error.rdkafka_error_code() {
            Some(code) if is_fenced(code) || self.is_shut_out() => Error::fenced(format!(
                "topic {topic}: {what}: another producer has taken over the query's transactions, or the brokers gave this \
                 one up"
            )),
            Some(code) if is_refusal(code) => Error::refused(format!(
                "topic {topic}: {what}: {code}; the user needs WRITE on the topic{}; or write at least once \
                 ('sink.delivery-guarantee')",
                self.permissions
            )),
            _ => match self.receipts().events.refusal() {
                Some(refusal) => refusal,
                None => Error::transient(format!("topic {topic}: {what} failed{reason}")).caused_by(error),
            },
        }
    }

    fn abandoned(&self) -> Error {
        Error::transient(format!("epoch {} was abandoned", self.epoch))
    }

    /// Waits until all messages are acknowledged, or they are no longer `wanted`.
    pub(super) fn finish(&self, wanted: &dyn Fn() -> bool) -> Result<()> {
        while self.check(self.sent)? < self.sent {
            if !wanted() {
                return Err(self.abandoned());
            }
        }
        Ok(())
    }

    /// How many messages were lost since it began, and why the first one was.
    pub(super) fn losses(&self) -> Option<(usize, Error)> {
        let (lost, failure) = {
            let state = self.receipts().state();
            (state.lost, state.failure.clone())
        };
        failure.map(|failure| (lost, self.explain(failure)))
    }

    /// How many were received, after waiting a moment for `awaited` of them.
    fn check(&self, awaited: usize) -> Result<usize> {
        let state = self.receipts().wait(awaited);
        match state.failure.clone().filter(|_| !self.receipts().tolerates_losses) {
            None => Ok(state.received),
            Some(failure) => {
                drop(state);
                Err(self.explain(failure))
            }
        }
    }

    fn explain(&self, failure: Failure) -> Error {
        let Failure { mut code, mut text, row, topic, partition, size } = failure;
        if code.is_some_and(is_consequence)
            && let Some(cause) = self.cause()
        {
            (code, text) = (cause.rdkafka_error_code(), cause.to_string());
        }
        let is_record = self.record == Some(row);
        let what = if is_record { "the record".to_string() } else { format!("row {}", row + 1) };
        let place = partition.map(|number| format!(" partition {number}")).unwrap_or_default();
        let row = format!("{what} of epoch {} for topic {topic}{place}", self.epoch);
        match code {
            _ if self.is_shut_out() || code.is_some_and(is_fenced) => {
                Error::fenced(format!("{row} was refused: {text}"))
            }
            Some(Code::MessageSizeTooLarge) => Error::data(format!(
                "{row} is too large: it has {size} bytes, and a message may have {} with 'properties.message.max.bytes' \
                 unless the topic's own max.message.bytes is smaller; raise both, or leave such rows out",
                self.limit
            )),
            Some(Code::QueueFull) => Error::data(format!(
                "{row} is larger than all that may wait to be sent, 'properties.queue.buffering.max.kbytes'; raise that, or leave \
                 such rows out"
            )),
            Some(Code::InvalidRecord | Code::InvalidTimestamp | Code::PolicyViolation) => Error::data(format!(
                "{row} was refused: {text}; a compacted topic needs a key, and timestamps must be within the topic's \
                 limits"
            )),
            Some(Code::UnknownPartition) if partition.is_some() && !is_record => Error::data(format!(
                "{row} cannot be written: the topic has no such partition; let the metadata column 'partition' be one that \
                 it has, or NULL"
            )),
            Some(Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::InvalidTopic)
                if topic != self.topic && !is_record =>
            {
                Error::data(format!(
                    "{row} cannot be written: there is no such topic; create it first, or let the metadata column 'topic' \
                     be one that is there, or NULL"
                ))
            }
            Some(code) if is_refusal(code) => Error::refused(format!(
                "{row} was refused: {text}; the user needs WRITE on topic {}{}",
                if is_record { &self.topic } else { &topic },
                self.permissions
            )),
            _ => match self.receipts().events.refusal() {
                Some(refusal) => refusal,
                None => {
                    Error::transient(format!("{row} was not acknowledged: {text}{}", self.receipts().events.reason()))
                }
            },
        }
    }
}

//! Reads one partition, span after span.
//!
//! The idea: where one span ends the next begins, so a reader stays where it is and lets librdkafka fetch ahead while
//! the epoch runs. Only a span that begins elsewhere (a rerun, a jump) makes it start anew.
//!
//! What it guarantees: the messages of exactly the span, in offset order. The span is over when a message or an
//! end-of-partition event at or past its end was seen. Such an event may be an old one, fetched before more messages
//! came; it then names an offset short of the end, and is not enough. Messages past the end stay for the next span.
//! Markers, aborted and compacted messages leave gaps. Offsets that are gone are an error.
//!
//! What it does not promise: to notice that a topic was created anew with as many messages. The engine compares
//! [`Fingerprint`]s for that.

use std::cell::RefCell;
use std::time::Duration;

use arrow::array::BinaryBuilder;
use rdkafka::error::RDKafkaErrorCode as Code;

use super::client::{ANSWER, is_refusal};
use super::columns::Column;
use super::queue::{PartitionQueue, Trouble};
use crate::connector::messages::MessageBatch;
use crate::connector::scan::IF_GONE;
use crate::connector::{Bounds, Fingerprint, Partition, Span};
use crate::error::{Error, Kind, Result};

/// The most messages in a batch.
const MESSAGES: usize = 8192;

/// A batch is full with the message that reaches this many bytes of payload.
const BYTES: usize = 4 << 20;

/// How long one wait for a message takes at most; also how soon an abandoned read is noticed.
const WAIT: Duration = Duration::from_millis(100);

/// After this long without progress the reader asks whether the rest of the span exists at all.
const DOUBT: Duration = Duration::from_secs(8);

/// After this long without progress, about, it gives up: the engine tries again, and says so.
const PATIENCE: Duration = Duration::from_secs(15);

/// The reader of one partition.
#[derive(Debug)]
pub(super) struct PartitionReader {
    table: String,
    partition: Partition,
    queue: PartitionQueue,
    /// The queue can go on from any offset between this and what it has reached; `None`: it has to start anew.
    ready: Option<u64>,
    /// What stopped the queue, to be told once everything before it was read.
    trouble: Option<Trouble>,
}

impl PartitionReader {
    /// A reader of `partition`, which `queue` must be of. `table` is for messages.
    pub(super) fn new(table: impl Into<String>, partition: Partition, queue: PartitionQueue) -> Self {
        Self { table: table.into(), partition, queue, ready: None, trouble: None }
    }

    /// Hands the messages of `span` to `deliver`, with these metadata columns, until it answers `false`; `wanted` says
    /// while waiting whether anybody still listens.
    pub(super) fn read(
        &mut self,
        span: &Span,
        columns: &[Column],
        deliver: impl Fn(MessageBatch) -> bool,
        wanted: impl Fn() -> bool,
    ) -> Result<()> {
        if span.is_empty() {
            return Ok(());
        }
        self.go_to(span.from)?;
        let (mut idle, mut doubt) = (Duration::ZERO, DOUBT);
        loop {
            while let Some(batch) = self.next_batch(span.to, columns) {
                if !deliver(batch) {
                    return Ok(());
                }
            }
            if self.queue.reached() >= span.to {
                return Ok(());
            }
            if let Some(trouble) = self.trouble.take() {
                self.ready = None;
                return Err(self.explain(span, trouble));
            }
            if !wanted() {
                return Ok(());
            }
            // In a log without gaps this takes what belongs to the span and nothing else.
            let missing = usize::try_from(span.to - self.queue.reached()).unwrap_or(usize::MAX);
            let (progress, trouble) = self.queue.poll(missing.min(MESSAGES), WAIT);
            self.trouble = trouble;
            if progress {
                (idle, doubt) = (Duration::ZERO, DOUBT);
                continue;
            }
            idle += WAIT;
            if idle >= doubt {
                idle = self.doubt(span, idle)?;
                doubt = idle + DOUBT;
            }
        }
    }

    /// The message at this offset, if it is there now, as long as it is `wanted`. The reader then fetches no more, and has
    /// to start anew.
    pub(super) fn find(&mut self, offset: u64, wanted: impl Fn() -> bool) -> Result<Option<Fingerprint>> {
        let bounds = self.queue.client().bounds_of(&self.partition).map_err(|error| self.error(error))?;
        if !(bounds.earliest..bounds.latest).contains(&offset) {
            return Ok(None);
        }
        // What was fetched before may be of a topic that is gone.
        self.ready = None;
        let found = RefCell::new(None);
        let deliver = |batch: MessageBatch| {
            found.replace(Some(batch.last));
            true
        };
        let span = Span::new(self.partition.clone(), offset, offset + 1);
        let outcome = self.read(&span, &[], deliver, wanted);
        self.ready = None;
        self.queue.stop();
        match outcome {
            Err(error) if error.kind() != Kind::DataLoss => Err(error),
            _ => Ok(found.into_inner()),
        }
    }

    /// Fetches no more until it is read again, which begins anew wherever that is.
    pub(super) fn rest(&mut self) {
        self.ready = None;
        self.queue.stop();
    }

    /// Whether nothing is fetched.
    #[cfg(test)]
    pub(super) fn is_resting(&self) -> bool {
        !self.queue.is_started()
    }

    fn go_to(&mut self, offset: u64) -> Result<()> {
        match self.ready {
            Some(ready) if (ready..=self.queue.reached()).contains(&offset) => self.queue.drop_before(offset),
            _ => {
                self.trouble = None;
                self.queue.start(offset).map_err(|code| {
                    self.error(Error::transient(format!("{} cannot be read from {offset}: {code}", self.partition)))
                })?;
            }
        }
        self.ready = Some(offset);
        Ok(())
    }

    /// The next taken messages below `to` as columns. The payloads are copied here, once.
    fn next_batch(&mut self, to: u64, columns: &[Column]) -> Option<MessageBatch> {
        let (mut count, mut bytes) = (0, 0);
        for message in self.queue.taken().take(MESSAGES).take_while(|message| message.offset() < to) {
            count += 1;
            bytes += message.payload().map_or(0, <[u8]>::len);
            if bytes >= BYTES {
                break;
            }
        }
        let messages = self.queue.taken().take(count);
        let last = messages.clone().next_back()?;
        let last = Fingerprint { offset: last.offset(), timestamp: last.timestamp().map(|(at, _)| at), id: None };
        let mut payloads = BinaryBuilder::with_capacity(count, bytes);
        messages.clone().for_each(|message| payloads.append_option(message.payload()));
        let batch = MessageBatch {
            payloads: payloads.finish(),
            broken: vec![],
            offsets: messages.clone().map(|message| message.offset()).collect(),
            metadata: columns.iter().map(|column| column.build(&self.partition, messages.clone())).collect(),
            last,
        };
        self.ready = Some(batch.last.offset + 1);
        self.queue.drop_first(count);
        Some(batch)
    }

    /// Nothing has come for so long: perhaps there is nothing, perhaps nobody answers. For how long it is then.
    fn doubt(&mut self, span: &Span, mut idle: Duration) -> Result<Duration> {
        let doubt = self.lookup(span).err();
        let lost = doubt.as_ref().is_some_and(|error| matches!(error.kind(), Kind::DataLoss | Kind::Refused));
        if doubt.is_some() && !lost {
            idle += ANSWER;
        }
        if !lost && idle < PATIENCE {
            return Ok(idle);
        }
        self.ready = None;
        let late = || {
            let (seconds, at, Span { from, to, .. }) = (idle.as_secs(), self.queue.reached(), span);
            let reason = self.queue.client().events().reason();
            let text =
                format!("{}: no message for {seconds} s, at offset {at} of {from}..{to}{reason}", self.partition);
            self.error(Error::transient(text))
        };
        Err(match doubt {
            Some(loss) if lost => loss,
            Some(cause) => late().caused_by(cause),
            None => late(),
        })
    }

    /// Whether the rest of the span is there, as far as the cluster knows.
    fn lookup(&self, span: &Span) -> Result<()> {
        let client = self.queue.client();
        let bounds = client
            .partitions(&self.partition.name, Kind::DataLoss)
            .and_then(|_| client.bounds_of(&self.partition))
            .map_err(|error| self.error(error))?;
        match self.loss(span, bounds) {
            Some(loss) => Err(loss),
            None => Ok(()),
        }
    }

    /// What the partition has lost of the rest of the span, if anything.
    fn loss(&self, span: &Span, bounds: Bounds) -> Option<Error> {
        let Bounds { earliest, latest } = bounds;
        let at = self.queue.reached();
        let what = if at < earliest {
            format!("offsets {at}..{} of {} are gone", earliest.min(span.to), self.partition)
        } else if span.to > latest {
            format!(
                "{} ends before offset {}, which it had reached before: it lost its tail, or was created anew",
                self.partition, span.to
            )
        } else {
            return None;
        };
        Some(self.error(Error::data_loss(format!(
            "{what}; asked were {}..{}, there are {earliest}..{latest}; {IF_GONE}",
            span.from, span.to
        ))))
    }

    fn explain(&self, span: &Span, trouble: Trouble) -> Error {
        let Trouble { code, text } = trouble;
        let place = format!("{} at offset {}", self.partition, self.queue.reached());
        self.error(match code {
            Code::AutoOffsetReset | Code::LogTruncation | Code::OffsetOutOfRange => match self.lookup(span) {
                Err(loss) if loss.kind() == Kind::DataLoss => return loss,
                Err(unknown) => Error::transient(format!("{place}: {text}")).caused_by(unknown),
                Ok(()) => Error::transient(format!("{place}: {text}")),
            },
            Code::BadMessage | Code::BadCompression | Code::InvalidMessage => Error::data(format!(
                "{place}: the broker's copy cannot be read: {text}; look at the broker's log, and delete the records \
                 before the next offset if it is damaged"
            )),
            code if is_refusal(code) => Error::refused(format!("{place}: {text}; the user needs READ on the topic")),
            _ => Error::transient(format!("{place}: {text}")),
        })
    }

    fn error(&self, error: Error) -> Error {
        error.context(format_args!("table {}", self.table))
    }
}

//! The messages of exactly one span, the same every time.
//!
//! Offsets of a queue are dense, and what the broker answers is held against that: a response must bring every offset
//! from the one asked for up to the next it names. Anything else is an error, never a silent gap. An answer without
//! messages is not believed at once, since a replica may lag behind: the master is asked for the queue's bounds, and says
//! whether the span is gone (an error for good) or only late (patience, then a transient error).
//!
//! What it does not read: batch consume queues, whose messages share an offset, and compacted topics, which have holes.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{BinaryArray, BinaryBuilder};
use datafusion::common::runtime::SpawnedTask;
use futures::{Stream, StreamExt, stream};
use rocketmq_client_rust::{PullResult, PullStatus};
use rocketmq_model::common::message::message_ext::MessageExt;
use tokio::sync::mpsc;

use super::calls::Patience;
use super::compression::append_body;
use super::connection::Connection;
use super::consumer::Consumer;
use super::message::is_tombstone;
use super::metadata::Column;
use crate::connector::messages::MessageBatch;
use crate::connector::{Bounds, Fingerprint, Span};
use crate::error::{Error, Result};
use crate::format::BadPayload;

/// What is gathered into one batch: stock brokers give 32 messages a pull, decoding likes thousands.
const BATCH_MESSAGES: usize = 8192;
const BATCH_BYTES: usize = 4 << 20;

/// Batches that wait for decoding while the next one is pulled.
const AHEAD: usize = 2;

/// How long the end of a queue may look too low before it is believed.
pub(super) const SECOND_LOOK: Duration = Duration::from_secs(1);

/// The bits of a message that shares its offset with others (a batch consume queue).
const INNER_BATCH: i32 = 0xC0;

/// Reads one span.
#[derive(Debug)]
pub(super) struct SpanReader {
    /// The table's name, for errors.
    pub(super) table: String,
    /// The topic.
    pub(super) topic: String,
    /// What to read.
    pub(super) span: Span,
    /// The metadata to bring, in order.
    pub(super) metadata: Vec<String>,
    /// The table's connection.
    pub(super) connection: Arc<Connection<Consumer>>,
}

impl SpanReader {
    /// The messages, in offset order, pulled by a task of its own that runs a little ahead.
    pub(super) fn messages(self) -> impl Stream<Item = Result<MessageBatch>> + Send {
        let start = async move {
            let (sender, receiver) = mpsc::channel(AHEAD);
            let name = self.place(self.span.from);
            let task = SpawnedTask::spawn(async move {
                tokio::select! {
                    () = sender.closed() => Ok(()),
                    done = self.run(&sender) => done,
                }
            });
            stream::unfold((receiver, Some(task), name), |(mut receiver, mut task, name)| async move {
                let next = match receiver.recv().await {
                    Some(batch) => Ok(batch),
                    // The end of the channel is the end of the task, which says how it went.
                    None => match task.take()?.join().await {
                        Ok(Ok(())) => return None,
                        Ok(Err(error)) => Err(error),
                        Err(error) => Err(Error::internal(format!("{name}: the reader broke off")).caused_by(error)),
                    },
                };
                Some((next, (receiver, task, name)))
            })
        };
        stream::once(start).flatten()
    }

    async fn run(&self, sender: &mpsc::Sender<MessageBatch>) -> Result<()> {
        let span = &self.span;
        // Trouble with a connection that worked is waited for; a first one that fails says so at once.
        let mut consumer = self.connection.client().await.map_err(|e| self.blame(e))?;
        let mut gathered = Gathered::new(self)?;
        let mut at = span.from;
        while at < span.to {
            at = {
                let pulled = self.pull(&mut consumer, at).await?;
                self.take(at, &pulled, |message| gathered.append(message))?
            };
            if gathered.is_full() || at >= span.to {
                let Some(batch) = gathered.finish() else { continue };
                if sender.send(batch).await.is_err() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// What the broker has at `at`, with patience for trouble and for a replica that lags; what comes is for
    /// [`take`](Self::take).
    pub(super) async fn pull(&self, consumer: &mut Arc<Consumer>, at: u64) -> Result<PullResult> {
        let mut patience = Patience::new();
        loop {
            match self.pull_once(consumer, at).await {
                Ok(pulled) => return Ok(pulled),
                Err(error) => *consumer = self.connection.again(Arc::clone(consumer), &mut patience, error).await?,
            }
        }
    }

    /// Pulls once; without progress, it is an error.
    async fn pull_once(&self, consumer: &Consumer, at: u64) -> Result<PullResult> {
        let queue = &self.span.partition;
        let pulled = consumer.pull(queue, at, self.span.to - at).await.map_err(|e| self.blame(e))?;
        if *pulled.pull_status() == PullStatus::Found && self.leads_on(at, &pulled) {
            return Ok(pulled);
        }
        let mut bounds = consumer.bounds(queue).await.map_err(|e| self.blame(e))?;
        if self.span.to > bounds.latest {
            // A broker that has just started may still be finding out what it has.
            tokio::time::sleep(SECOND_LOOK).await;
            bounds = consumer.bounds(queue).await.map_err(|e| self.blame(e))?;
        }
        Err(self.nothing(at, *pulled.pull_status(), bounds))
    }

    /// Whether a response brings a message of the span, or passes over some.
    fn leads_on(&self, at: u64, pulled: &PullResult) -> bool {
        let first = pulled.msg_found_list().unwrap_or_default().first();
        pulled.next_begin_offset() > at || first.is_some_and(|first| (first.queue_offset as u64) < self.span.to)
    }

    /// Hands the messages of the span in a response from `at` on to `each`, in offset order; the next offset.
    pub(super) fn take(
        &self,
        at: u64,
        pulled: &PullResult,
        mut each: impl FnMut(&MessageExt) -> Result<()>,
    ) -> Result<u64> {
        let mut expected = at;
        let end = pulled.next_begin_offset().min(self.span.to);
        for message in pulled.msg_found_list().unwrap_or_default() {
            let offset = message.queue_offset as u64;
            if message.sys_flag & INNER_BATCH != 0 {
                return Err(Error::refused(format!(
                    "{}: messages share an offset there (queue.type=BatchCQ), which is not supported yet; use a topic \
                     with queue.type=SimpleCQ",
                    self.place(offset)
                )));
            }
            if offset >= self.span.to {
                break;
            }
            if offset != expected {
                return Err(self.hole(expected, offset));
            }
            each(message)?;
            expected += 1;
        }
        if expected < end { Err(self.hole(expected, end)) } else { Ok(expected) }
    }

    /// Offsets that the broker passed over.
    fn hole(&self, from: u64, to: u64) -> Error {
        Error::data_loss(format!(
            "{}: the broker skips from there to offset {to}; either those messages are gone, or one of them cannot be \
             decoded; topics that are compacted (cleanup.policy=COMPACTION) cannot be read",
            self.place(from)
        ))
    }

    /// Why there is nothing at `at`, given what the queue's master holds.
    fn nothing(&self, at: u64, status: PullStatus, bounds: Bounds) -> Error {
        let (span, Bounds { earliest, latest }) = (&self.span, bounds);
        let advice = "a new query can start from what is there";
        if at < earliest {
            return Error::data_loss(format!(
                "{}: offsets {at}..{} were to be read and are gone: the broker keeps {earliest}..{latest} now (its \
                 retention was faster); {advice}",
                self.place(at),
                earliest.min(span.to)
            ));
        }
        if span.to > latest {
            return Error::data_loss(format!(
                "{}: offsets {at}..{} were to be read, but the queue ends at {latest} (it has {earliest}..{latest}): the \
                 topic was created anew, or its broker lost messages; {advice}",
                self.place(at),
                span.to
            ));
        }
        Error::transient(format!(
            "{}: the broker gives no messages ({}), though it says that it has {earliest}..{latest}; a replica may lag \
             behind",
            self.place(at),
            status
        ))
    }

    fn blame(&self, error: Error) -> Error {
        error.context(format_args!("table {}", self.table))
    }

    fn place(&self, offset: u64) -> String {
        format!("table {}: topic {} {} offset {offset}", self.table, self.topic, self.span.partition)
    }
}

/// Messages on their way into a batch.
#[derive(Debug)]
struct Gathered {
    payloads: BinaryBuilder,
    broken: Vec<BadPayload>,
    offsets: Vec<u64>,
    metadata: Vec<Column>,
    last: Option<Fingerprint>,
    body: Vec<u8>,
    bytes: usize,
}

impl Gathered {
    fn new(reader: &SpanReader) -> Result<Self> {
        let column = |key: &String| {
            Column::new(key, &reader.topic, &reader.span.partition)
                .ok_or_else(|| Error::internal(format!("table {}: there is no metadata '{key}'", reader.table)))
        };
        let metadata = reader.metadata.iter().map(column).collect::<Result<_>>()?;
        let (payloads, broken, offsets, last, body, bytes) = Default::default();
        Ok(Self { payloads, broken, offsets, metadata, last, body, bytes })
    }

    fn append(&mut self, message: &MessageExt) -> Result<()> {
        let offset = message.queue_offset as u64;
        self.body.clear();
        match message.body() {
            None => self.payloads.append_null(),
            Some(body) if is_tombstone(&body, &message.message) => self.payloads.append_null(),
            Some(body) => match append_body(message.sys_flag, &body, &mut self.body) {
                Ok(()) => self.payloads.append_value(&self.body),
                Err(reason) => {
                    self.broken.push(BadPayload { index: self.offsets.len(), reason: reason.to_string() });
                    self.payloads.append_value(&body);
                }
            },
        }
        self.bytes += self.body.len();
        for column in &mut self.metadata {
            column.append(message)?;
        }
        self.offsets.push(offset);
        self.last = Some(Fingerprint {
            offset,
            timestamp: Some(message.store_timestamp),
            id: Some(message.msg_id().to_string()),
        });
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.offsets.len() >= BATCH_MESSAGES || self.bytes >= BATCH_BYTES
    }

    fn finish(&mut self) -> Option<MessageBatch> {
        let last = self.last.take()?;
        let offsets = std::mem::take(&mut self.offsets);
        let metadata = self.metadata.iter_mut().map(|column| column.finish(&offsets)).collect();
        let payloads: BinaryArray = self.payloads.finish();
        self.bytes = 0;
        Some(MessageBatch { payloads, broken: std::mem::take(&mut self.broken), offsets, metadata, last })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connector::Partition;
    use crate::error::Kind;

    fn reader(from: u64, to: u64) -> SpanReader {
        SpanReader {
            table: "orders".into(),
            topic: "t".into(),
            span: Span::new(Partition::new("broker-a", 0), from, to),
            metadata: vec!["offset".into()],
            connection: Arc::new(Connection::new(|| unreachable!("no broker is asked"))),
        }
    }

    fn pulled(offsets: impl IntoIterator<Item = i64>, next: u64) -> PullResult {
        let message = |offset| {
            let mut message = MessageExt::default();
            message.set_queue_offset(offset);
            message
        };
        PullResult::new(PullStatus::Found, next, 0, 100, Some(offsets.into_iter().map(message).collect()))
    }

    #[test]
    fn a_response_must_be_dense() {
        let reader = reader(10, 20);
        let take = |pulled: PullResult| {
            let mut gathered = Gathered::new(&reader).unwrap();
            let next = reader.take(10, &pulled, |message| gathered.append(message));
            assert!(next.is_err() || gathered.offsets.len() as u64 == next.as_ref().unwrap() - 10);
            next
        };
        assert_eq!(take(pulled(10..15, 15)).unwrap(), 15);
        assert_eq!(take(pulled(10..25, 25)).unwrap(), 20);
        for lost in [pulled([10, 12], 13), pulled(10..13, 23), pulled([11], 12), pulled([], 15), pulled([10, 10], 12)] {
            assert_eq!(take(lost).unwrap_err().kind(), Kind::DataLoss);
        }
    }

    #[test]
    fn a_response_without_a_message_of_the_span_does_not_lead_on() {
        let reader = reader(10, 20);
        assert!(reader.leads_on(10, &pulled([10], 11)));
        assert!(reader.leads_on(10, &pulled([], 11)), "what was passed over is found out by taking it");
        assert!(!reader.leads_on(10, &pulled([], 10)));
        assert!(!reader.leads_on(10, &pulled([25], 10)));
    }

    #[test]
    fn the_master_says_whether_messages_are_gone_or_late() {
        let reader = reader(10, 20);
        let kind = |earliest, latest| reader.nothing(10, PullStatus::OffsetIllegal, Bounds { earliest, latest }).kind();
        assert_eq!(kind(11, 50), Kind::DataLoss);
        assert_eq!(kind(0, 19), Kind::DataLoss);
        assert_eq!(kind(0, 0), Kind::DataLoss);
        assert_eq!(kind(10, 20), Kind::Transient);
        let error = reader.nothing(10, PullStatus::OffsetIllegal, Bounds { earliest: 15, latest: 50 }).to_string();
        assert!(error.contains("table orders: topic t broker-a:0 offset 10: offsets 10..15"), "{error}");
    }

    #[test]
    fn a_body_that_cannot_be_decompressed_is_handed_on_as_it_came() {
        let mut message = MessageExt::default();
        message.set_sys_flag(1);
        message.message.set_body(Some(bytes::Bytes::from_static(b"garbage")));
        let mut gathered = Gathered::new(&reader(0, 1)).unwrap();
        gathered.append(&message).unwrap();
        let batch = gathered.finish().unwrap();
        assert_eq!((batch.payloads.value(0), batch.broken.len(), batch.broken[0].index), (&b"garbage"[..], 1, 0));
    }
}

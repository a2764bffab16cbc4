//! The messages of exactly one span, the same every time.
//!
//! Offsets of a queue are dense, and what the broker answers is held against that: a response must bring every offset
//! from the one asked for up to the next it names. Anything else is an error, never a silent gap. An answer without
//! messages is not believed at once, since a replica may lag behind: the master is asked for the queue's bounds, and says
//! whether the span is gone (an error for good) or only late (patience, then a transient error).
//!
//! A span is pulled in stretches, several at once, and gathered in order: a broker that gives 32 messages to a question
//! is slow for who asks one after the other.
//!
//! With a filter on the broker offsets have gaps, so other things are held against it. Behind the last message that
//! came, it is asked again, so that what it found and the client could not decode does not go unseen; only where it
//! says that nothing passes, its word is taken for the stretch. And messages that its retention removes meanwhile look
//! to it like such that do not pass: so when all is read, the first message of the span must still be there, whether it
//! passes or not, and all others with it, as the oldest go first.
//!
//! What it does not read: batch consume queues, whose messages share an offset, and compacted topics, which have holes.

use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{BinaryArray, BinaryBuilder};
use datafusion::common::runtime::SpawnedTask;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use rocketmq_client_rust::{PullResult, PullStatus};
use rocketmq_model::common::message::message_ext::MessageExt;
use tokio::sync::mpsc;

use super::calls::Patience;
use super::compression::append_body;
use super::connection::Connection;
use super::consumer::{Consumer, PULL};
use super::filter::Filter;
use super::message::is_tombstone;
use super::metadata::Column;
use super::topics::Topics;
use crate::connector::messages::MessageBatch;
use crate::connector::scan::IF_GONE;
use crate::connector::{Bounds, Fingerprint, Span};
use crate::error::{Error, Result};
use crate::format::BadPayload;

/// What is gathered into one batch: stock brokers give 32 messages a pull, decoding likes thousands.
const BATCH_MESSAGES: usize = 8192;
const BATCH_BYTES: usize = 4 << 20;

/// Batches that wait for decoding while the next one is gathered.
const BATCHES: usize = 2;

/// Stretches of a span that are pulled at once: stock brokers are slow for who asks one question after the other.
const AT_ONCE: usize = 4;

/// Bytes of bodies after which a stretch is large: the rest of it is pulled when its turn has come.
const STRETCH_BYTES: usize = 1 << 20;

/// How long the end of a queue may look too low before it is believed.
pub(super) const SECOND_LOOK: Duration = Duration::from_secs(1);

/// The bits of a message that shares its offset with others (a batch consume queue).
const INNER_BATCH: i32 = 0xC0;

/// Reads one span.
#[derive(Debug)]
pub(super) struct SpanReader {
    /// The table's name, for errors.
    pub(super) table: String,
    /// The table's topics.
    pub(super) topics: Arc<Topics>,
    /// What to read.
    pub(super) span: Span,
    /// The metadata to bring, in order.
    pub(super) metadata: Vec<String>,
    /// What to leave out.
    pub(super) filter: Option<Filter>,
    /// The table's connection.
    pub(super) connection: Arc<Connection<Consumer>>,
}

impl SpanReader {
    /// The messages, in offset order, by a task of its own that is a little ahead.
    pub(super) fn messages(self) -> impl Stream<Item = Result<MessageBatch>> + Send {
        let start = async move {
            let (sender, receiver) = mpsc::channel(BATCHES);
            let name = self.place(self.span.from);
            let task = SpawnedTask::spawn(Arc::new(self).gather(sender));
            stream::unfold((receiver, Some(task), name), |(mut receiver, mut task, name)| async move {
                let next = match receiver.recv().await {
                    Some(batch) => Ok(batch),
                    // The end of the channel is the end of the task, which says how it went.
                    None => match joined(task.take()?, &name).await {
                        Ok(()) => return None,
                        Err(error) => Err(error),
                    },
                };
                Some((next, (receiver, task, name)))
            })
        };
        stream::once(start).flatten()
    }

    /// Sends the messages. What they are gathered from is pulled several stretches at once, and taken in order.
    async fn gather(self: Arc<Self>, sender: mpsc::Sender<MessageBatch>) -> Result<()> {
        let mut gathered = Gathered::new(&self)?;
        let pull = |stretch: Range<u64>| {
            let (reader, name) = (Arc::clone(&self), self.place(stretch.start));
            async move { joined(SpawnedTask::spawn(reader.pull_stretch(stretch)), &name).await }
        };
        let mut stretches = pin!(stream::iter(self.stretches()).map(pull).buffered(AT_ONCE));
        while let Some(mut stretch) = stretches.try_next().await? {
            loop {
                for message in stretch.pulled.iter().flat_map(Pulled::messages) {
                    if self.filter.as_ref().is_none_or(|filter| filter.passes(message)) {
                        gathered.append(message)?;
                    }
                }
                let is_last = stretch.rest.start >= self.span.to;
                if (gathered.is_full() || is_last)
                    && let Some(batch) = gathered.finish()
                    && sender.send(batch).await.is_err()
                {
                    return Ok(());
                }
                if stretch.rest.is_empty() {
                    break;
                }
                stretch = Arc::clone(&self).pull_stretch(stretch.rest).await?;
            }
        }
        if self.filter.is_some() && !self.span.is_empty() {
            self.first(&mut self.consumer().await?).await?;
        }
        Ok(())
    }

    /// The span in parts that can be pulled at the same time. With a filter a broker looks for so many messages that
    /// pass, wherever they are, so then there is one.
    fn stretches(&self) -> impl Iterator<Item = Range<u64>> + use<> {
        let Span { from, to, .. } = self.span;
        let length = if self.filter.is_some() { to.saturating_sub(from).max(1) } else { PULL };
        (from..to).step_by(length as usize).map(move |at| at..(at + length).min(to))
    }

    /// Pulls a stretch, or the beginning of a large one.
    async fn pull_stretch(self: Arc<Self>, mut rest: Range<u64>) -> Result<Stretch> {
        let mut consumer = self.consumer().await?;
        // Before `doubtful` every message is read, whatever the filter says.
        let (mut pulled, mut bytes, mut doubtful) = (vec![], 0, rest.start);
        while !rest.is_empty() && bytes < STRETCH_BYTES {
            let filter = self.filter.as_ref().filter(|_| rest.start >= doubtful);
            let response = self.pull(&mut consumer, rest.clone(), filter).await?;
            if let Some(filter) = filter.filter(|_| is_mute(&response)) {
                doubtful = self.doubt(filter, rest.start, &response)?;
                continue;
            }
            let found = self.check(rest.clone(), response, filter)?;
            rest.start = found.next;
            bytes += found.messages().iter().map(|message| message.body().map_or(0, |body| body.len())).sum::<usize>();
            pulled.push(found);
        }
        Ok(Stretch { pulled, rest })
    }

    /// Trouble with a connection that worked is waited for; a first one that fails says so at once.
    async fn consumer(&self) -> Result<Arc<Consumer>> {
        self.connection.client().await.map_err(|e| self.blame(e))
    }

    /// The first message of the span, whether it passes or not.
    ///
    /// Errors: [`Kind::DataLoss`](crate::error::Kind::DataLoss), if it is not there.
    pub(super) async fn first(&self, consumer: &mut Arc<Consumer>) -> Result<Fingerprint> {
        let from = self.span.from;
        let pulled = self.pull(consumer, from..from + 1, None).await?;
        match pulled.msg_found_list().unwrap_or_default().first() {
            Some(message) if message.queue_offset as u64 == from => Ok(fingerprint(message)),
            _ => Err(self.hole(from, pulled.next_begin_offset())),
        }
    }

    /// Up to where every message has to be read, as the broker found some that pass, and none of them came.
    fn doubt(&self, filter: &Filter, at: u64, pulled: &PullResult) -> Result<u64> {
        match filter {
            // Other tags may have the same hash code.
            Filter::Tags(_) => Ok(pulled.next_begin_offset()),
            Filter::Sql(_) => Err(Error::data_loss(format!(
                "{}: a message there passes 'filter.sql', and cannot be decoded",
                self.place(at)
            ))),
        }
    }

    /// What the broker has from the beginning of `wanted` on and lets pass, with patience for trouble and for a replica
    /// that lags; what comes is for [`check`](Self::check).
    pub(super) async fn pull(
        &self,
        consumer: &mut Arc<Consumer>,
        wanted: Range<u64>,
        filter: Option<&Filter>,
    ) -> Result<PullResult> {
        let mut patience = Patience::new();
        loop {
            match self.pull_once(consumer, wanted.clone(), filter).await {
                Ok(pulled) => return Ok(pulled),
                Err(error) => *consumer = self.connection.again(Arc::clone(consumer), &mut patience, error).await?,
            }
        }
    }

    /// Pulls once; without progress, it is an error.
    async fn pull_once(&self, consumer: &Consumer, wanted: Range<u64>, filter: Option<&Filter>) -> Result<PullResult> {
        let (queue, at) = (&self.span.partition, wanted.start);
        let pulled = consumer.pull(queue, at, wanted.end - at, filter).await.map_err(|e| self.blame(e))?;
        let is_told = match *pulled.pull_status() {
            PullStatus::Found => true,
            PullStatus::NoMatchedMsg => filter.is_some(),
            _ => false,
        };
        if is_told && self.leads_on(at, &pulled) {
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

    /// Holds a response against what was `wanted`. What was pulled with a filter may have gaps.
    pub(super) fn check(&self, wanted: Range<u64>, response: PullResult, filter: Option<&Filter>) -> Result<Pulled> {
        let (mut count, mut expected) = (0, wanted.start);
        let end = response.next_begin_offset().min(wanted.end);
        let mut is_passed = false;
        for message in response.msg_found_list().unwrap_or_default() {
            let offset = message.queue_offset as u64;
            if message.sys_flag & INNER_BATCH != 0 {
                return Err(Error::refused(format!(
                    "{}: messages share an offset there (queue.type=BatchCQ), which is not supported yet; use a topic \
                     with queue.type=SimpleCQ",
                    self.place(offset)
                )));
            }
            if offset >= wanted.end {
                is_passed = true;
                break;
            }
            if offset < expected || (filter.is_none() && offset > expected) {
                return Err(self.hole(expected, offset));
            }
            count += 1;
            expected = offset + 1;
        }
        let next = match filter {
            None if expected < end => return Err(self.hole(expected, end)),
            None => expected,
            // All before the first one behind it has been looked at; and the broker's word is taken where it says that
            // nothing passes.
            Some(_) if is_passed || expected == wanted.start => end,
            Some(_) => expected,
        };
        Ok(Pulled { response, count, next })
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
        if at < earliest {
            return Error::data_loss(format!(
                "{}: offsets {at}..{} were to be read and are gone: the broker keeps {earliest}..{latest} now (its \
                 retention was faster); {IF_GONE}",
                self.place(at),
                earliest.min(span.to)
            ));
        }
        if span.to > latest {
            return Error::data_loss(format!(
                "{}: offsets {at}..{} were to be read, but the queue ends at {latest} (it has {earliest}..{latest}): the \
                 topic was created anew, or its broker lost messages; {IF_GONE}",
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
        format!("table {}: {} offset {offset}", self.table, self.topics.queue(&self.span.partition))
    }
}

/// A response that was held against what was asked for.
pub(super) struct Pulled {
    response: PullResult,
    /// How many of its messages were wanted: the first ones.
    count: usize,
    /// Where to go on.
    pub(super) next: u64,
}

impl Pulled {
    /// The messages that were wanted, in offset order.
    pub(super) fn messages(&self) -> &[MessageExt] {
        &self.response.msg_found_list().unwrap_or_default()[..self.count]
    }
}

/// What was pulled of a stretch, and what is left of it.
struct Stretch {
    pulled: Vec<Pulled>,
    rest: Range<u64>,
}

/// What a task gives; `what` it reads is for errors.
async fn joined<T: Send + 'static>(task: SpawnedTask<Result<T>>, what: &str) -> Result<T> {
    match task.join().await {
        Ok(outcome) => outcome,
        Err(error) => Err(Error::internal(format!("{what}: the reader broke off")).caused_by(error)),
    }
}

/// Whether the broker found messages, and none of them came.
fn is_mute(pulled: &PullResult) -> bool {
    *pulled.pull_status() == PullStatus::Found && pulled.msg_found_list().unwrap_or_default().is_empty()
}

/// What a message is known by.
fn fingerprint(message: &MessageExt) -> Fingerprint {
    Fingerprint {
        offset: message.queue_offset as u64,
        timestamp: Some(message.store_timestamp),
        id: Some(message.msg_id().to_string()),
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
        let queue = reader.topics.queue(&reader.span.partition);
        let column = |key: &String| {
            Column::new(key, queue)
                .ok_or_else(|| Error::internal(format!("table {}: there is no metadata '{key}'", reader.table)))
        };
        let metadata = reader.metadata.iter().map(column).collect::<Result<_>>()?;
        let (payloads, broken, offsets, last, body, bytes) = Default::default();
        Ok(Self { payloads, broken, offsets, metadata, last, body, bytes })
    }

    fn append(&mut self, message: &MessageExt) -> Result<()> {
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
        self.offsets.push(message.queue_offset as u64);
        self.last = Some(fingerprint(message));
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
            topics: Arc::new(Topics::One("t".into())),
            span: Span::new(Partition::new("broker-a", 0), from, to),
            metadata: vec!["offset".into()],
            filter: None,
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
            let pulled = reader.check(10..20, pulled, None)?;
            assert_eq!(pulled.messages().len() as u64, pulled.next - 10);
            Ok::<_, Error>(pulled.next)
        };
        assert_eq!(take(pulled(10..15, 15)).unwrap(), 15);
        assert_eq!(take(pulled(10..25, 25)).unwrap(), 20);
        for lost in [pulled([10, 12], 13), pulled(10..13, 23), pulled([11], 12), pulled([], 15), pulled([10, 10], 12)] {
            assert_eq!(take(lost).unwrap_err().kind(), Kind::DataLoss);
        }
    }

    #[test]
    fn with_a_filter_only_what_is_seen_or_denied_is_done() {
        let filter = Filter::Tags(["a".into()].into());
        let reader = SpanReader { filter: Some(filter.clone()), ..reader(10, 20) };
        let take = |mut pulled: PullResult, tag: &str| {
            let messages = pulled.msg_found_list().unwrap_or_default().to_vec();
            let tagged = messages.into_iter().map(|mut message| {
                message.message.set_properties([("TAGS".into(), tag.into())].into());
                message
            });
            pulled.set_msg_found_list(Some(tagged.collect()));
            let pulled = reader.check(10..20, pulled, Some(&filter)).map_err(|error| error.kind())?;
            let passes = |message: &&MessageExt| filter.passes(message);
            let offsets: Vec<_> = pulled.messages().iter().filter(passes).map(|message| message.queue_offset).collect();
            Ok((offsets, pulled.next))
        };
        assert_eq!(take(pulled([11, 14], 18), "a"), Ok((vec![11, 14], 15)), "15 to 17 are asked for again");
        assert_eq!(take(pulled([], 18), "a"), Ok((vec![], 18)));
        assert_eq!(take(pulled([], 90), "a"), Ok((vec![], 20)));
        assert_eq!(take(pulled([12, 25], 26), "a"), Ok((vec![12], 20)));
        assert_eq!(take(pulled([12], 18), "b"), Ok((vec![], 13)));
        assert_eq!(take(pulled([14, 11], 18), "a"), Err(Kind::DataLoss));
        assert!(is_mute(&pulled([], 18)) && !is_mute(&pulled([11], 18)));
    }

    #[test]
    fn a_response_without_a_message_of_the_span_does_not_lead_on() {
        let reader = reader(10, 20);
        assert!(reader.leads_on(10, &pulled([10], 11)));
        assert!(reader.leads_on(10, &pulled([], 11)), "what was passed over is found out when it is checked");
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

//! What a broker has of a queue: asked for, and held against what was asked for.
//!
//! Offsets of a queue are dense, and what the broker answers is held against that: a response must bring every offset
//! from the one asked for up to the next it names. Anything else is an error, never a silent gap. An answer without
//! messages is not believed at once, since a replica may lag behind: the master is asked for the queue's bounds, and says
//! whether the span is gone (an error for good) or only late (patience, then a transient error).
//!
//! With a filter on the broker offsets have gaps, so other things are held against it. Behind the last message that
//! came, it is asked again, so that what it found and the client could not decode does not go unseen; only where it
//! says that nothing passes, its word is taken for all that was asked for.
//!
//! What it does not read: batch consume queues, whose messages share an offset, and compacted topics, which have holes.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use rocketmq_client_rust::{PullResult, PullStatus};
use rocketmq_model::common::message::message_ext::MessageExt;

use super::calls::Patience;
use super::connection::Connection;
use super::consumer::Consumer;
use super::filter::Filter;
use super::metadata::Column;
use super::piece::{Gathered, Piece, fingerprint};
use super::topics::Topics;
use crate::connector::scan::IF_GONE;
use crate::connector::{Bounds, Fingerprint, Span};
use crate::error::{Error, Result};

/// Bytes on the broker's disk after which a stretch is large: the rest of it is left for later.
const STRETCH_BYTES: i64 = 1 << 20;

/// How long the end of a queue may look too low before it is believed.
pub(super) const SECOND_LOOK: Duration = Duration::from_secs(1);

/// The bits of a message that shares its offset with others (a batch consume queue).
const INNER_BATCH: i32 = 0xC0;

/// Asks for messages of one queue.
#[derive(Debug)]
pub(super) struct Puller {
    /// The table's name, for errors.
    pub(super) table: String,
    /// The table's topics.
    pub(super) topics: Arc<Topics>,
    /// What is to be read, for errors; of this queue.
    pub(super) span: Span,
    /// The metadata to bring, in order.
    pub(super) metadata: Vec<String>,
    /// What to leave out.
    pub(super) filter: Option<Filter>,
    /// The table's connection.
    pub(super) connection: Arc<Connection<Consumer>>,
}

impl Puller {
    /// Pulls a stretch, or the beginning of a large one.
    pub(super) async fn stretch(self: Arc<Self>, wanted: Range<u64>) -> Result<Stretch> {
        let mut consumer = self.consumer().await?;
        let mut gathered = self.gathered()?;
        // Before `doubtful` every message is read, whatever the filter says.
        let (mut rest, mut latest, mut bytes, mut doubtful) = (wanted.clone(), 0, 0, wanted.start);
        while !rest.is_empty() && bytes < STRETCH_BYTES {
            let filter = self.filter.as_ref().filter(|_| rest.start >= doubtful);
            let response = self.ask(&mut consumer, rest.clone(), filter).await?;
            if let Some(filter) = filter.filter(|_| is_mute(&response)) {
                doubtful = self.doubt(filter, rest.start, &response)?;
                continue;
            }
            let pulled = self.check(rest.clone(), response, filter)?;
            for message in pulled.messages() {
                bytes += i64::from(message.store_size);
                if self.filter.as_ref().is_none_or(|filter| filter.passes(message)) {
                    gathered.append(message)?;
                }
            }
            (rest.start, latest) = (pulled.next, pulled.response.max_offset());
        }
        Ok(Stretch { piece: gathered.finish(), rest, latest })
    }

    fn gathered(&self) -> Result<Gathered> {
        let queue = self.topics.queue(&self.span.partition);
        let column = |key: &String| {
            Column::new(key, queue)
                .ok_or_else(|| Error::internal(format!("table {}: there is no metadata '{key}'", self.table)))
        };
        Ok(Gathered::new(self.metadata.iter().map(column).collect::<Result<_>>()?))
    }

    /// What there is from the beginning of `wanted` on, at most as much; whatever the filter says.
    pub(super) async fn pull(&self, consumer: &mut Arc<Consumer>, wanted: Range<u64>) -> Result<Pulled> {
        let response = self.ask(consumer, wanted.clone(), None).await?;
        self.check(wanted, response, None)
    }

    /// Trouble with a connection that worked is waited for; a first one that fails says so at once.
    async fn consumer(&self) -> Result<Arc<Consumer>> {
        self.connection.client().await.map_err(|e| self.blame(e))
    }

    /// The first message of the span, whether it passes or not.
    ///
    /// Errors: [`Kind::DataLoss`](crate::error::Kind::DataLoss), if it is not there.
    pub(super) async fn first(&self) -> Result<Fingerprint> {
        let from = self.span.from;
        let response = self.ask(&mut self.consumer().await?, from..from + 1, None).await?;
        match response.msg_found_list().unwrap_or_default().first() {
            Some(message) if message.queue_offset as u64 == from => Ok(fingerprint(message)),
            _ => Err(self.hole(from, response.next_begin_offset())),
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
    /// that lags.
    async fn ask(
        &self,
        consumer: &mut Arc<Consumer>,
        wanted: Range<u64>,
        filter: Option<&Filter>,
    ) -> Result<PullResult> {
        let mut patience = Patience::new();
        loop {
            match self.ask_once(consumer, wanted.clone(), filter).await {
                Ok(response) => return Ok(response),
                Err(error) => *consumer = self.connection.again(Arc::clone(consumer), &mut patience, error).await?,
            }
        }
    }

    /// Asks once; without progress, it is an error.
    async fn ask_once(&self, consumer: &Consumer, wanted: Range<u64>, filter: Option<&Filter>) -> Result<PullResult> {
        let (queue, at) = (&self.span.partition, wanted.start);
        let response = consumer.pull(queue, at, wanted.end - at, filter).await.map_err(|e| self.blame(e))?;
        let is_told = match *response.pull_status() {
            PullStatus::Found => true,
            PullStatus::NoMatchedMsg => filter.is_some(),
            _ => false,
        };
        if is_told && leads_on(&wanted, &response) {
            return Ok(response);
        }
        let mut bounds = consumer.bounds(queue).await.map_err(|e| self.blame(e))?;
        if wanted.end > bounds.latest {
            // A broker that has just started may still be finding out what it has.
            tokio::time::sleep(SECOND_LOOK).await;
            bounds = consumer.bounds(queue).await.map_err(|e| self.blame(e))?;
        }
        Err(self.nothing(&wanted, *response.pull_status(), bounds))
    }

    /// Holds a response against what was `wanted`. What was pulled with a filter may have gaps.
    fn check(&self, wanted: Range<u64>, response: PullResult, filter: Option<&Filter>) -> Result<Pulled> {
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

    /// Why there is nothing where `wanted` begins, given what the queue's master holds.
    fn nothing(&self, wanted: &Range<u64>, status: PullStatus, bounds: Bounds) -> Error {
        let (at, to, Bounds { earliest, latest }) = (wanted.start, wanted.end, bounds);
        if at < earliest {
            return Error::data_loss(format!(
                "{}: offsets {at}..{} were to be read and are gone: the broker keeps {earliest}..{latest} now (its \
                 retention was faster); {IF_GONE}",
                self.place(at),
                earliest.min(to)
            ));
        }
        if to > latest {
            return Error::data_loss(format!(
                "{}: offsets {at}..{to} were to be read, but the queue ends at {latest} (it has {earliest}..{latest}): the \
                 topic was created anew, or its broker lost messages; {IF_GONE}",
                self.place(at)
            ));
        }
        Error::transient(format!(
            "{}: the broker gives no messages ({status}), though it says that it has {earliest}..{latest}; a replica may \
             lag behind",
            self.place(at)
        ))
    }

    fn blame(&self, error: Error) -> Error {
        error.context(format_args!("table {}", self.table))
    }

    /// Where an offset is, for errors.
    pub(super) fn place(&self, offset: u64) -> String {
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

/// What was pulled of a stretch.
pub(super) struct Stretch {
    /// Of its messages before `rest` those that pass.
    pub(super) piece: Piece,
    /// What is left of it.
    pub(super) rest: Range<u64>,
    /// Where the queue ended.
    pub(super) latest: u64,
}

/// Whether a response brings a message that was wanted, or passes over some.
fn leads_on(wanted: &Range<u64>, response: &PullResult) -> bool {
    let first = response.msg_found_list().unwrap_or_default().first();
    response.next_begin_offset() > wanted.start || first.is_some_and(|first| (first.queue_offset as u64) < wanted.end)
}

/// Whether the broker found messages, and none of them came.
fn is_mute(pulled: &PullResult) -> bool {
    *pulled.pull_status() == PullStatus::Found && pulled.msg_found_list().unwrap_or_default().is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connector::Partition;
    use crate::error::Kind;

    fn puller(from: u64, to: u64) -> Puller {
        Puller {
            table: "orders".into(),
            topics: Arc::new(Topics::One("t".into())),
            span: Span::new(Partition::new("broker-a", 0), from, to),
            metadata: vec![],
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
        let puller = puller(10, 20);
        let take = |pulled: PullResult| {
            let pulled = puller.check(10..20, pulled, None)?;
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
        let puller = Puller { filter: Some(filter.clone()), ..puller(10, 20) };
        let take = |mut pulled: PullResult, tag: &str| {
            let messages = pulled.msg_found_list().unwrap_or_default().to_vec();
            let tagged = messages.into_iter().map(|mut message| {
                message.message.set_properties([("TAGS".into(), tag.into())].into());
                message
            });
            pulled.set_msg_found_list(Some(tagged.collect()));
            let pulled = puller.check(10..20, pulled, Some(&filter)).map_err(|error| error.kind())?;
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
        assert!(leads_on(&(10..20), &pulled([10], 11)));
        assert!(leads_on(&(10..20), &pulled([], 11)), "what was passed over is found out when it is checked");
        assert!(!leads_on(&(10..20), &pulled([], 10)));
        assert!(!leads_on(&(10..20), &pulled([25], 10)));
    }

    #[test]
    fn the_master_says_whether_messages_are_gone_or_late() {
        let puller = puller(10, 20);
        let kind =
            |earliest, latest| puller.nothing(&(10..20), PullStatus::OffsetIllegal, Bounds { earliest, latest }).kind();
        assert_eq!(kind(11, 50), Kind::DataLoss);
        assert_eq!(kind(0, 19), Kind::DataLoss);
        assert_eq!(kind(0, 0), Kind::DataLoss);
        assert_eq!(kind(10, 20), Kind::Transient);
        let bounds = Bounds { earliest: 10, latest: 17 };
        let of_a_stretch = puller.nothing(&(10..15), PullStatus::NoNewMsg, bounds);
        assert_eq!(of_a_stretch.kind(), Kind::Transient, "what was asked for is there");
        let error =
            puller.nothing(&(10..20), PullStatus::OffsetIllegal, Bounds { earliest: 15, latest: 50 }).to_string();
        assert!(error.contains("table orders: topic t broker-a:0 offset 10: offsets 10..15"), "{error}");
    }
}

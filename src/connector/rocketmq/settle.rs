//! Finding out what of an epoch is in its queues already, so that only the rest is sent.
//!
//! The idea: RocketMQ does not recognise a message that it stored already, but a queue is a log that can be read. The
//! intent of an epoch pins where each queue ended before anything of it was sent, and each message names its row
//! ([`Mark`]). So where the outcome of a send is unknown, the queue is read from there to its end, once nothing of the
//! earlier attempt can be stored any more (`sink.quiet-period`). What is found counts as sent.
//!
//! Guarantee: each row of the epoch is in its queue once, and rows of one queue are in their order. Which queue a row
//! goes to follows from the intent. A batch is sent only when the one before it is known to be there, so what is found
//! is the first part of what the queue gets. It is treated as a set all the same: what is missing is sent in order, and
//! should a later row of its key ever be there already, the missing one comes behind it.
//!
//! What it needs: one live run of a query at a time. RocketMQ shuts nobody out, so a run that is frozen while it sends,
//! and thaws when another has looked, can still add the batch that it had in hand. And brokers that keep what they have
//! acknowledged: what was lost after that is not sent again. What it does not promise: an answer when the retention of
//! the topic was faster. Then it is an error.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rocketmq_model::common::message::message_ext::MessageExt;

use super::calls::{ANSWER, Patience};
use super::connection::Connection;
use super::consumer::{Consumer, PrivateGroup};
use super::mark::{Mark, Ordinals};
use super::metadata::MARK;
use super::options::RocketmqOptions;
use super::pull::{Puller, SECOND_LOOK};
use super::topics::Topics;
use crate::clock::Clock;
use crate::connector::{Bounds, Partition, Span};
use crate::error::{Error, Result};

/// How long after a send of unknown outcome its messages may still turn up in the queue, unless `sink.quiet-period`
/// says otherwise, if the network delivers what it was given: as long as the client may take to send them, and 5 s for
/// the broker, which refuses a request that has waited longer than `waitTimeMillsInSendQueue` (200 ms unless configured
/// otherwise).
pub(super) const QUIET: Duration = Duration::from_secs(ANSWER.as_secs() + 5);

/// What may have become of an epoch before it is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Earlier {
    /// Nothing: it was intended by this run, which has not sent any of it.
    Untried,
    /// All of it was sent, and acknowledged.
    Acknowledged,
    /// Some of it may have been sent, perhaps a moment ago.
    Unknown,
}

/// What a sink knows of the epoch that it prepared or published last.
#[derive(Debug, Default)]
pub(super) struct Attempts(Mutex<Option<Attempt>>);

#[derive(Debug)]
struct Attempt {
    epoch: u64,
    /// Tells a pin of this sink's from one that another run made for the same epoch.
    preparation: String,
    outcome: Earlier,
}

impl Attempts {
    /// The epoch is prepared, under a name that no other preparation has.
    pub(super) fn prepared(&self, epoch: u64, preparation: &str) {
        *self.newest() = Some(Attempt { epoch, preparation: preparation.into(), outcome: Earlier::Untried });
    }

    /// The epoch is about to be published; what became of it before.
    pub(super) fn begin(&self, epoch: u64, preparation: &str) -> Earlier {
        let begun = Attempt { epoch, preparation: preparation.into(), outcome: Earlier::Unknown };
        match self.newest().replace(begun) {
            Some(before) if before.epoch == epoch && before.preparation == preparation => before.outcome,
            _ => Earlier::Unknown,
        }
    }

    /// All of the epoch that was begun last is acknowledged.
    pub(super) fn acknowledged(&self) {
        if let Some(attempt) = self.newest().as_mut() {
            attempt.outcome = Earlier::Acknowledged;
        }
    }

    fn newest(&self) -> MutexGuard<'_, Option<Attempt>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads the queues of a sink's topic; it is connected when something has to be settled for the first time.
#[derive(Debug)]
pub(super) struct Settler {
    table: String,
    topic: String,
    topics: Arc<Topics>,
    quiet_period: Duration,
    connection: Arc<Connection<Consumer>>,
}

impl Settler {
    /// For the sink of this table into `topic`, in the query whose id is `writer`.
    pub(super) fn new(table: &str, topic: &str, options: &RocketmqOptions, writer: &Arc<str>, clock: &Clock) -> Self {
        let (wanted, writer, clock) = (options.clone(), Arc::clone(writer), clock.clone());
        let connection = Connection::new(move || {
            let name = format!("millstream-{writer}-{}", clock.random_id());
            let group = PrivateGroup { name: name.clone(), is_temporary: true };
            let options = wanted.clone();
            Box::pin(async move { Consumer::connect(&options, group, &name).await })
        });
        Self {
            table: table.into(),
            topic: topic.into(),
            topics: Arc::clone(&options.topics),
            quiet_period: options.quiet_period,
            connection: Arc::new(connection),
        }
    }

    /// Waits until nothing of an earlier attempt can be stored any more.
    pub(super) async fn rest(&self) {
        tokio::time::sleep(self.quiet_period).await;
    }

    /// Gives the connection back.
    pub(super) async fn close(&self) {
        if let Some(consumer) = self.connection.close().await {
            consumer.close().await;
        }
    }

    /// The client, with patience also for the first attempt: a broker may be on its way back.
    async fn consumer(&self) -> Result<Arc<Consumer>> {
        let mut patience = Patience::new();
        loop {
            match self.connection.client().await {
                Ok(consumer) => return Ok(consumer),
                Err(error) => patience.pause(self.blame(error)).await?,
            }
        }
    }

    async fn bounds(&self, consumer: &mut Arc<Consumer>, queue: &Partition) -> Result<Bounds> {
        let mut patience = Patience::new();
        loop {
            match consumer.bounds(queue).await {
                Ok(bounds) => return Ok(bounds),
                Err(error) => {
                    let error = self.blame(error);
                    *consumer = self.connection.again(Arc::clone(consumer), &mut patience, error).await?;
                }
            }
        }
    }

    fn blame(&self, error: Error) -> Error {
        error.context(format_args!("table {}", self.table))
    }
}

/// What is known of an epoch's rows in one queue.
#[derive(Debug)]
pub(super) struct Account {
    settler: Arc<Settler>,
    mark: Mark,
    queue: Partition,
    /// How many rows the whole epoch has.
    rows: u64,
    /// What is not known yet can only be from here on.
    from: u64,
    /// Behind the last row that is known to be there.
    end: Option<u64>,
    found: Ordinals,
}

impl Account {
    /// Of the epoch of `mark`, which has so many rows, in a queue that ended at `from` before any of them was sent.
    pub(super) fn new(settler: Arc<Settler>, mark: Mark, queue: Partition, from: u64, rows: u64) -> Self {
        Self { settler, mark, queue, rows, from, end: None, found: Ordinals::default() }
    }

    /// Waits until nothing of a send that is in doubt can be stored any more.
    pub(super) async fn rest(&self) {
        self.settler.rest().await;
    }

    /// Whether a row was found.
    pub(super) fn holds(&self, ordinal: u64) -> bool {
        self.found.contains(ordinal)
    }

    /// The offset behind the last row that is known to be there.
    pub(super) fn end(&self) -> Option<u64> {
        self.end
    }

    /// A batch was acknowledged that ends there. It was the only one on its way, so nothing else lies before that.
    pub(super) fn stored_up_to(&mut self, end: u64) {
        (self.from, self.end) = (end, Some(end));
    }

    /// Reads what has come into the queue. Before it, [`rest`](Self::rest) must have passed since a send that is in doubt.
    pub(super) async fn settle(&mut self) -> Result<()> {
        let settler = Arc::clone(&self.settler);
        let mut consumer = settler.consumer().await?;
        let mut bounds = settler.bounds(&mut consumer, &self.queue).await?;
        if bounds.latest < self.from {
            // A broker that has just started may still be finding out what it has.
            tokio::time::sleep(SECOND_LOOK).await;
            bounds = settler.bounds(&mut consumer, &self.queue).await?;
        }
        let span = self.doubtful(bounds)?;
        let (mut at, to) = (span.from, span.to);
        let puller = Puller {
            table: settler.table.clone(),
            topics: Arc::clone(&settler.topics),
            span,
            metadata: Vec::new(),
            filter: None,
            connection: Arc::clone(&settler.connection),
        };
        while at < to {
            let pulled = puller.pull(&mut consumer, at..to).await?;
            pulled.messages().iter().try_for_each(|message| self.note(message))?;
            at = pulled.next;
        }
        self.from = to;
        let found = self.found.count();
        tracing::info!(topic = settler.topic, queue = %self.queue, epoch = self.mark.epoch(), found, "settled");
        Ok(())
    }

    /// What has to be read, of a queue that holds this.
    fn doubtful(&self, bounds: Bounds) -> Result<Span> {
        let (Settler { table, topic, .. }, Bounds { earliest, latest }) = (&*self.settler, bounds);
        let why = if earliest > self.from {
            "its retention was faster"
        } else if latest < self.from {
            "the topic was created anew, or its broker lost messages"
        } else {
            return Ok(Span::new(self.queue.clone(), self.from, latest));
        };
        Err(Error::data_loss(format!(
            "table {table}: topic {topic} {}: it cannot be settled which rows of epoch {} are there: they would lie at \
             offset {} and behind, and the broker has {earliest}..{latest} ({why}); look where the topic is read for \
             messages whose property '{MARK}' begins with '{}', and give the query another name (SET \
             'pipeline.name') to go on from where you decide",
            self.queue,
            self.mark.epoch(),
            self.from,
            self.mark.prefix()
        )))
    }

    /// Takes a row of the epoch down.
    fn note(&mut self, message: &MessageExt) -> Result<()> {
        let mark = message.properties().get(MARK).and_then(|text| self.mark.ordinal(text.as_str()));
        let Some(ordinal) = mark else { return Ok(()) };
        if ordinal >= self.rows {
            return Err(Error::refused(format!(
                "{}: there is row {ordinal} of epoch {}, and run again the epoch has {} rows: the query does not give \
                 the same rows as before; give it another name (SET 'pipeline.name') to start anew",
                self.place(message),
                self.mark.epoch(),
                self.rows
            )));
        }
        if !self.found.insert(ordinal) {
            tracing::warn!("{}: row {ordinal} of epoch {} is there twice", self.place(message), self.mark.epoch());
        }
        self.end = Some(message.queue_offset as u64 + 1);
        Ok(())
    }

    fn place(&self, message: &MessageExt) -> String {
        let Settler { table, topic, .. } = &*self.settler;
        format!("table {table}: topic {topic} {} offset {}", self.queue, message.queue_offset)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::error::Kind;

    /// The account of epoch 7, which has 5 rows, in a queue that ended at 100.
    fn account() -> Account {
        let connection = Arc::new(Connection::new(|| unreachable!("no broker is asked")));
        let (table, topic) = ("orders".into(), "t".to_string());
        let topics = Arc::new(Topics::One(topic.clone()));
        let settler = Settler { table, topic, topics, quiet_period: QUIET, connection };
        Account::new(Arc::new(settler), Mark::new("c0ffee", 7), Partition::new("broker-a", 0), 100, 5)
    }

    fn message(offset: i64, mark: Option<&str>) -> MessageExt {
        let mut message = MessageExt::default();
        message.set_queue_offset(offset);
        if let Some(mark) = mark {
            message.message.set_properties(HashMap::from([(MARK.into(), mark.into())]));
        }
        message
    }

    #[test]
    fn only_an_epoch_that_this_sink_prepared_and_never_began_needs_no_look() {
        let attempts = Attempts::default();
        assert_eq!(attempts.begin(4, "a"), Earlier::Unknown, "another run prepared it");
        attempts.prepared(5, "b");
        assert_eq!(attempts.begin(5, "b"), Earlier::Untried);
        assert_eq!(attempts.begin(5, "b"), Earlier::Unknown, "its first attempt failed");
        attempts.acknowledged();
        assert_eq!(attempts.begin(5, "b"), Earlier::Acknowledged);
        attempts.prepared(6, "c");
        assert_eq!(attempts.begin(6, "d"), Earlier::Unknown, "another run's preparation was intended");
        attempts.prepared(7, "e");
        assert_eq!(attempts.begin(6, "e"), Earlier::Unknown);
    }

    #[test]
    fn what_is_there_is_what_carries_the_epochs_mark() {
        let mut account = account();
        let marks = [None, Some("c0ffee-7-3"), Some("c0ffee-6-1"), Some("decaf-7-2"), Some("c0ffee-7-0"), Some("x")];
        for (offset, mark) in (100..).zip(marks) {
            account.note(&message(offset, mark)).unwrap();
        }
        let missing: Vec<u64> = (0..5).filter(|ordinal| !account.holds(*ordinal)).collect();
        assert_eq!((missing, account.end()), (vec![1, 2, 4], Some(105)));
        account.note(&message(106, Some("c0ffee-7-3"))).unwrap();
        assert_eq!(account.found.count(), 2, "a row that is there twice is one row");
        let error = account.note(&message(107, Some("c0ffee-7-5"))).unwrap_err();
        assert_eq!(error.kind(), Kind::Refused);
        let expected = "table orders: topic t broker-a:0 offset 107: there is row 5 of epoch 7";
        assert!(error.to_string().starts_with(expected), "{error}");
    }

    #[test]
    fn only_what_may_be_there_is_read() {
        let mut account = account();
        let span = |account: &Account, earliest, latest| {
            let span = account.doubtful(Bounds { earliest, latest })?;
            Ok::<_, Error>((span.from, span.to))
        };
        assert_eq!(span(&account, 0, 130).unwrap(), (100, 130));
        assert_eq!(span(&account, 100, 100).unwrap(), (100, 100));
        account.stored_up_to(120);
        assert_eq!((span(&account, 110, 130).unwrap(), account.end()), ((120, 130), Some(120)));
        for (earliest, latest, why) in [(121, 130, "retention"), (0, 119, "created anew"), (0, 0, "created anew")] {
            let error = span(&account, earliest, latest).unwrap_err();
            assert_eq!(error.kind(), Kind::DataLoss);
            assert!(error.to_string().contains(why), "{error}");
            assert!(error.to_string().contains("it cannot be settled which rows of epoch 7 are there"), "{error}");
        }
    }
}

//! The queues of a table's topics: which there are, where, and what they hold.
//!
//! The idea: the name server is asked where queues are now and then (`scan.topic-partition-discovery.interval`), and
//! the brokers what they hold whenever somebody wants to know. What was there once is remembered: a queue whose broker
//! does not answer, or has gone from the route, is unreachable and not gone; and while the name server does not answer,
//! the route is what it was. A broker that did not answer is left alone for a moment, so that the others need not wait
//! for it.
//!
//! What it does not promise: that a broker is found at once when it is back, as the library leaves an address alone for
//! 30 s after five failures; to know of queues that had no route since this process began, and were not read before;
//! and to tell a topic that was deleted from one whose brokers are all down.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use futures::{StreamExt, TryStreamExt, stream};

use super::calls::ANSWER;
use super::consumer::Consumer;
use super::options::RocketmqOptions;
use super::topics::Topics;
use crate::clock::Clock;
use crate::connector::{Bounds, Extent, Partition};
use crate::error::{Error, Kind, Result};

/// Queues of one broker asked for their bounds at a time.
const ASKED_AT_ONCE: usize = 16;
/// How long a broker that did not answer is left alone.
const REST: Duration = Duration::from_secs(5);
/// How long one that did not answer before may take.
const BRIEF: Duration = Duration::from_secs(1);
/// How long a name server that did not answer is left alone.
const LONG_REST: Duration = Duration::from_secs(30);

/// See the module's text.
#[derive(Debug)]
pub(super) struct Queues {
    topics: Arc<Topics>,
    name_server: String,
    interval: Duration,
    clock: Clock,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// For each queue the address of its master; none while no route leads there.
    known: BTreeMap<Partition, Option<Arc<str>>>,
    /// When the name server is asked again; this and other times in µs.
    ask_from: u64,
    /// Brokers that did not answer, by the address of the master.
    silent: BTreeMap<Arc<str>, Silence>,
}

#[derive(Debug)]
struct Silence {
    until: u64,
    reason: String,
}

/// What the queues of one broker hold, or why it does not say.
type Answer = (Arc<str>, Vec<Partition>, Result<Vec<(Partition, Bounds)>>);

impl State {
    /// Takes over what the name server says. A queue that is not there although its topic's broker is, is gone.
    fn learn(&mut self, found: BTreeMap<Partition, Option<Arc<str>>>) {
        let names: BTreeSet<Arc<str>> = found.keys().map(|queue| Arc::clone(&queue.name)).collect();
        self.known.retain(|queue, _| !names.contains(&queue.name));
        self.known.values_mut().for_each(|master| *master = None);
        self.known.extend(found);
        let masters: BTreeSet<&Arc<str>> = self.known.values().flatten().collect();
        self.silent.retain(|master, _| masters.contains(master));
    }

    /// Takes over queues that were read before.
    fn remember<'a>(&mut self, queues: impl Iterator<Item = &'a Partition>) {
        for queue in queues {
            self.known.entry(queue.clone()).or_default();
        }
    }

    /// Whether some queues cannot be reached.
    fn is_troubled(&self) -> bool {
        !self.silent.is_empty() || self.known.values().any(Option::is_none)
    }

    /// Why a master is not asked now, if so.
    fn excuse(&self, master: &str, now: u64) -> Option<&str> {
        self.silent.get(master).filter(|silence| now < silence.until).map(|silence| silence.reason.as_str())
    }
}

impl Queues {
    /// Of this table; nothing is known yet.
    pub(super) fn new(options: &RocketmqOptions, clock: &Clock) -> Self {
        Self {
            topics: Arc::clone(&options.topics),
            name_server: options.name_server.clone(),
            interval: options.discovery_interval,
            clock: clock.clone(),
            state: Mutex::default(),
        }
    }

    /// Remembers queues that were read before: they are not gone because no route leads to them now.
    pub(super) fn remember<'a>(&self, queues: impl Iterator<Item = &'a Partition>) {
        self.state().remember(queues);
    }

    /// What can be read now.
    ///
    /// Errors: a transient one, if that is nothing, or nothing is known yet and the name server does not answer.
    pub(super) async fn extent(&self, consumer: &Arc<Consumer>) -> Result<Extent> {
        if self.is_time() {
            self.look(consumer).await?;
        }
        self.ask(consumer).await
    }

    /// What the topics hold as a whole, by the route that there is now.
    ///
    /// Errors: a transient one, if any of it cannot be reached.
    pub(super) async fn whole(&self, consumer: &Arc<Consumer>) -> Result<Extent> {
        self.look(consumer).await?;
        let extent = self.ask(consumer).await?;
        match extent.unreachable.first_key_value() {
            None => Ok(extent),
            Some((queue, reason)) => Err(Error::transient(format!(
                "{} cannot be reached, and where to begin or end is only known when all queues can be: {reason}",
                self.topics.queue(queue)
            ))),
        }
    }

    /// The address of a queue's master, if it is known and answered when it was asked last.
    pub(super) fn master(&self, queue: &Partition) -> Option<Arc<str>> {
        let state = self.state();
        state.known.get(queue)?.clone().filter(|master| !state.silent.contains_key(master))
    }

    fn is_time(&self) -> bool {
        let (state, now) = (self.state(), self.clock.monotonic_us());
        state.known.is_empty() || now >= state.ask_from && (!self.interval.is_zero() || state.is_troubled())
    }

    /// Asks the name server where the queues are.
    async fn look(&self, consumer: &Consumer) -> Result<()> {
        let found = consumer.queues().await;
        let mut state = self.state();
        match found {
            Ok(found) if found.is_empty() => Err(self.no_route()),
            Ok(found) => {
                state.learn(found);
                state.ask_from = self.after(if self.interval.is_zero() { REST } else { self.interval });
                Ok(())
            }
            Err(error) if error.kind() == Kind::Transient && state.known.values().any(Option::is_some) => {
                tracing::warn!(error = %error.chain(), "going on with the RocketMQ route that was known last");
                state.ask_from = self.after(LONG_REST);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Asks the brokers what the queues hold that are known.
    async fn ask(&self, consumer: &Arc<Consumer>) -> Result<Extent> {
        let (mut extent, asked) = self.plan(consumer);
        let mut failed = None;
        for (master, queues, answer) in join_all(asked).await {
            match answer {
                Ok(bounds) => {
                    self.state().silent.remove(&master);
                    extent.partitions.extend(bounds);
                }
                Err(error) if error.kind() == Kind::Transient => {
                    let reason = error.chain();
                    let silence = Silence { until: self.after(REST), reason: reason.clone() };
                    if self.state().silent.insert(master, silence).is_none() {
                        tracing::warn!(error = reason, "going on without a RocketMQ broker");
                    }
                    extent.unreachable.extend(queues.into_iter().map(|queue| (queue, reason.clone())));
                    failed = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        if extent.partitions.is_empty() {
            // Who tries again wants to know of all of them.
            self.state().silent.clear();
            return Err(failed.unwrap_or_else(|| self.no_route()));
        }
        Ok(extent)
    }

    /// What cannot be reached as far as is known, and questions to the brokers of all else.
    fn plan(&self, consumer: &Arc<Consumer>) -> (Extent, Vec<impl Future<Output = Answer> + Send + use<>>) {
        let (state, now) = (self.state(), self.clock.monotonic_us());
        let mut extent = Extent::default();
        let mut of_master: BTreeMap<Arc<str>, Vec<Partition>> = BTreeMap::new();
        for (queue, master) in &state.known {
            let reason = match master {
                Some(master) => match state.excuse(master, now) {
                    Some(reason) => reason.to_string(),
                    None => {
                        of_master.entry(Arc::clone(master)).or_default().push(queue.clone());
                        continue;
                    }
                },
                None => format!(
                    "name server {} knows no master of {} now: it is down, or the topic was deleted",
                    self.name_server,
                    self.topics.queue(queue)
                ),
            };
            extent.unreachable.insert(queue.clone(), reason);
        }
        let questions = of_master.into_iter().map(|(master, queues)| {
            let limit = if state.silent.contains_key(&master) { BRIEF } else { ANSWER };
            question(Arc::clone(consumer), Arc::clone(&self.topics), master, queues, limit)
        });
        let questions = questions.collect();
        (extent, questions)
    }

    fn no_route(&self) -> Error {
        Error::transient(format!(
            "{} has no route at name server {} now: none of its brokers is up, or it was deleted",
            self.topics, self.name_server
        ))
    }

    fn after(&self, pause: Duration) -> u64 {
        self.clock.monotonic_us() + pause.as_micros() as u64
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks a broker, first for one queue alone, so that one that does not answer is dialled once.
async fn question(
    consumer: Arc<Consumer>,
    topics: Arc<Topics>,
    master: Arc<str>,
    queues: Vec<Partition>,
    limit: Duration,
) -> Answer {
    let bounds = |queue: Partition| {
        let (consumer, topics, master) = (Arc::clone(&consumer), Arc::clone(&topics), Arc::clone(&master));
        async move {
            let bounds = consumer.admin().bounds(topics.queue(&queue), &master, limit).await?;
            Ok::<_, Error>((queue, bounds))
        }
    };
    let all = async {
        let mut rest = queues.clone().into_iter();
        let mut found = Vec::with_capacity(queues.len());
        if let Some(first) = rest.next() {
            found.push(bounds(first).await?);
        }
        let rest: Vec<_> = stream::iter(rest).map(&bounds).buffer_unordered(ASKED_AT_ONCE).try_collect().await?;
        found.extend(rest);
        Ok::<_, Error>(found)
    };
    let answer = all.await;
    (master, queues, answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(broker: &str, number: u32) -> Partition {
        Partition::new(broker, number)
    }

    fn found(queues: &[(&str, u32)]) -> BTreeMap<Partition, Option<Arc<str>>> {
        queues.iter().map(|(broker, number)| (queue(broker, *number), Some(Arc::from(*broker)))).collect()
    }

    #[test]
    fn a_queue_whose_broker_has_gone_from_the_route_is_remembered() {
        let mut state = State::default();
        state.learn(found(&[("a", 0), ("a", 1), ("b", 0)]));
        assert!(!state.is_troubled());
        state.learn(found(&[("a", 0), ("a", 1), ("a", 2)]));
        assert_eq!(state.known.len(), 4);
        assert_eq!(state.known[&queue("b", 0)], None);
        assert!(state.is_troubled());
        // Fewer queues of a broker that is there are fewer queues.
        state.learn(found(&[("a", 0), ("b", 0)]));
        assert_eq!(state.known.keys().cloned().collect::<Vec<_>>(), [queue("a", 0), queue("b", 0)]);
        assert!(!state.is_troubled());

        // One that goes on knows from its checkpoint what there was.
        let mut state = State::default();
        state.remember([queue("a", 0), queue("a", 7), queue("b", 0)].iter());
        state.learn(found(&[("a", 0)]));
        assert_eq!(state.known.keys().cloned().collect::<Vec<_>>(), [queue("a", 0), queue("b", 0)]);
        assert_eq!(state.known[&queue("b", 0)], None);
    }

    #[test]
    fn a_broker_that_did_not_answer_is_left_alone_for_a_while() {
        let mut state = State::default();
        state.learn(found(&[("a", 0)]));
        state.silent.insert("a".into(), Silence { until: 7, reason: "no answer".into() });
        assert_eq!(state.excuse("a", 6), Some("no answer"));
        assert_eq!(state.excuse("a", 7), None);
        assert_eq!(state.excuse("b", 0), None);
        assert!(state.is_troubled());
        // It has another address now.
        state.learn(BTreeMap::from([(queue("a", 0), Some("c".into()))]));
        assert!(!state.is_troubled());
    }
}

//! The queues of a table's topics: which there are, where, and what they hold.
//!
//! The idea: the name server is asked where queues are now and then (`scan.topic-partition-discovery.interval`, and
//! every few seconds while some cannot be reached), and the brokers what they hold whenever somebody wants to know.
//! What was there once is remembered: a queue whose broker does not answer, or has gone from the route, is unreachable
//! and not gone; and while the name server does not answer, the route is what it was. A broker that did not answer is
//! left alone for a while, longer each time, so that the others need not wait for it.
//!
//! What it does not promise: that a broker is found at once when it is back, as the library leaves an address alone for
//! 30 s after five failures; to know of queues that had no route since this process began, and were not read before;
//! and to tell a topic that was deleted from one whose brokers are down, unless one of these has other topics of the
//! table.

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

/// Topics of one broker, or queues of one topic, asked for their bounds at a time.
const ASKED_AT_ONCE: usize = 16;
/// How long a broker that did not answer is left alone at first, and between looks at the route while there is trouble.
const REST: Duration = Duration::from_secs(5);
/// How long it is left alone at most, and a name server that did not answer.
const LONG_REST: Duration = Duration::from_secs(30);
/// How long an answer may take that others should not wait for.
const BRIEF: Duration = Duration::from_secs(1);

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
    /// Queues that the route left out when it was asked last, though it had their broker with another topic.
    left_out: BTreeSet<Partition>,
    /// The last look at the route, if there was one.
    look: Option<Look>,
    /// Brokers that did not answer, by the address of the master.
    silent: BTreeMap<Arc<str>, Silence>,
}

/// When the name server was asked, in µs, and whether it answered.
#[derive(Debug, Clone, Copy)]
struct Look {
    at: u64,
    has_failed: bool,
}

/// When a broker did not answer, in µs, how long it is left alone then, and why.
#[derive(Debug)]
struct Silence {
    at: u64,
    rest: Duration,
    reason: String,
}

/// What the queues of one broker hold, or why it does not say.
type Answer = (Arc<str>, Vec<Partition>, Result<Vec<(Partition, Bounds)>>);

impl State {
    /// Takes over what the name server says. A queue that is not there although its topic's broker is, is gone. So is
    /// one whose broker has only other topics of the table; but each topic is asked for by itself, and a broker may
    /// come or go meanwhile, so this must be seen twice.
    fn learn(&mut self, topics: &Topics, found: BTreeMap<Partition, Option<Arc<str>>>) {
        let names: BTreeSet<Arc<str>> = found.keys().map(|queue| Arc::clone(&queue.name)).collect();
        let up = found.iter().filter(|(_, master)| master.is_some()).map(|(queue, _)| topics.queue(queue).broker);
        let up: BTreeSet<&str> = up.collect();
        let is_left_out = |queue: &&Partition| !found.contains_key(*queue) && up.contains(topics.queue(queue).broker);
        let left_out: BTreeSet<Partition> = self.known.keys().filter(is_left_out).cloned().collect();
        let is_gone = |queue: &Partition| left_out.contains(queue) && self.left_out.contains(queue);
        self.known.retain(|queue, _| !names.contains(&queue.name) && !is_gone(queue));
        self.left_out = left_out;
        self.known.values_mut().for_each(|master| *master = None);
        self.known.extend(found);
        let masters: BTreeSet<&Arc<str>> = self.known.values().flatten().collect();
        self.silent.retain(|master, _| masters.contains(master));
    }

    /// Takes over queues that were read before. Once the route has been seen it knows better: some may be gone.
    fn remember<'a>(&mut self, queues: impl Iterator<Item = &'a Partition>) {
        if self.look.is_none() {
            self.known.extend(queues.map(|queue| (queue.clone(), None)));
        }
    }

    /// A broker does not answer; whether that is news.
    fn fell_silent(&mut self, master: Arc<str>, at: u64, reason: String) -> bool {
        let before = self.silent.get(&master).map(|silence| silence.rest);
        let rest = before.map_or(REST, |rest| LONG_REST.min(rest * 2));
        self.silent.insert(master, Silence { at, rest, reason });
        before.is_none()
    }

    /// Whether a route leads to any queue.
    fn has_route(&self) -> bool {
        self.known.values().any(Option::is_some)
    }

    /// Whether some queues cannot be reached.
    fn is_troubled(&self) -> bool {
        !self.silent.is_empty() || self.known.values().any(Option::is_none)
    }

    /// Whether to look at the route again, which is done at this interval: never without need, if it is zero.
    fn is_time(&self, interval: Duration, now: u64) -> bool {
        let Some(look) = self.look.filter(|_| !self.known.is_empty()) else { return true };
        let pause = match (look.has_failed, self.is_troubled(), interval.is_zero()) {
            (true, _, _) => LONG_REST,
            (false, true, true) => REST,
            (false, true, false) => REST.min(interval),
            (false, false, true) => return false,
            (false, false, false) => interval,
        };
        has_passed(pause, look.at, now)
    }

    /// Why a master is not asked now, if so.
    fn excuse(&self, master: &str, now: u64) -> Option<&str> {
        let silence = self.silent.get(master).filter(|silence| !has_passed(silence.rest, silence.at, now))?;
        Some(silence.reason.as_str())
    }
}

/// Whether so long a time lies between two moments, in µs.
fn has_passed(time: Duration, from: u64, to: u64) -> bool {
    Duration::from_micros(to.saturating_sub(from)) >= time
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

    /// Remembers queues that were read before: they are not gone because no route leads to them when this begins.
    pub(super) fn remember<'a>(&self, queues: impl Iterator<Item = &'a Partition>) {
        self.state().remember(queues);
    }

    /// What can be read now.
    ///
    /// Errors: a transient one, if that is nothing, or nothing is known yet and the name server does not answer.
    pub(super) async fn extent(&self, consumer: &Arc<Consumer>) -> Result<Extent> {
        if self.state().is_time(self.interval, self.clock.monotonic_us()) {
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

    /// Asks the name server where the queues are.
    async fn look(&self, consumer: &Consumer) -> Result<()> {
        let limit = if self.state().has_route() { BRIEF } else { ANSWER };
        let found = consumer.queues(limit).await;
        let (mut state, at) = (self.state(), self.clock.monotonic_us());
        match found {
            Ok(found) if found.is_empty() => return Err(self.no_route()),
            Ok(found) => {
                state.learn(&self.topics, found);
                state.look = Some(Look { at, has_failed: false });
            }
            Err(error) if error.kind() == Kind::Transient && state.has_route() => {
                tracing::warn!(error = %error.chain(), "going on with the RocketMQ route that was known last");
                state.look = Some(Look { at, has_failed: true });
            }
            Err(error) => return Err(error),
        }
        Ok(())
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
                    if self.state().fell_silent(master, self.clock.monotonic_us(), reason.clone()) {
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
                    "name server {} knows no master of {} now: it is down, or the topic was deleted; if it is gone for \
                     good, give the query another name (SET 'pipeline.name') and say where it begins by \
                     'scan.startup.mode' = 'specific-offsets'",
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

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks a broker, first for one topic alone, so that one that does not answer is dialled once.
async fn question(
    consumer: Arc<Consumer>,
    topics: Arc<Topics>,
    master: Arc<str>,
    queues: Vec<Partition>,
    limit: Duration,
) -> Answer {
    let mut of_topic: BTreeMap<String, Vec<Partition>> = BTreeMap::new();
    for queue in &queues {
        of_topic.entry(topics.queue(queue).topic.to_owned()).or_default().push(queue.clone());
    }
    let bounds = |(topic, queues): (String, Vec<Partition>)| {
        let (consumer, topics, master) = (Arc::clone(&consumer), Arc::clone(&topics), Arc::clone(&master));
        async move {
            let admin = consumer.admin();
            let told = admin.all_bounds(&topic, &master, limit).await?;
            let (told, topics, master) = (&told, &topics, &master);
            let one = |queue: Partition| async move {
                let bounds = match told.get(&queue.number) {
                    Some(bounds) => *bounds,
                    None => admin.bounds(topics.queue(&queue), master, limit).await?,
                };
                Ok::<_, Error>((queue, bounds))
            };
            stream::iter(queues).map(one).buffered(ASKED_AT_ONCE).try_collect::<Vec<_>>().await
        }
    };
    let all = async {
        let mut rest = of_topic.into_iter();
        let mut found = Vec::with_capacity(queues.len());
        if let Some(first) = rest.next() {
            found.extend(bounds(first).await?);
        }
        let rest: Vec<_> = stream::iter(rest).map(&bounds).buffer_unordered(ASKED_AT_ONCE).try_collect().await?;
        found.extend(rest.into_iter().flatten());
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

    /// Of one topic, whose queues are `broker:number`.
    fn learn(state: &mut State, queues: &[(&str, u32)]) {
        state.learn(&Topics::One("t".into()), found(queues));
        state.look = Some(Look { at: 0, has_failed: false });
    }

    fn names(state: &State) -> Vec<String> {
        state.known.keys().map(ToString::to_string).collect()
    }

    #[test]
    fn a_queue_whose_broker_has_gone_from_the_route_is_remembered() {
        let mut state = State::default();
        learn(&mut state, &[("a", 0), ("a", 1), ("b", 0)]);
        assert!(!state.is_troubled());
        learn(&mut state, &[("a", 0), ("a", 1), ("a", 2)]);
        assert_eq!(state.known.len(), 4);
        assert_eq!(state.known[&queue("b", 0)], None);
        assert!(state.is_troubled());
        // Fewer queues of a broker that is there are fewer queues.
        learn(&mut state, &[("a", 0), ("b", 0)]);
        assert_eq!(names(&state), ["a:0", "b:0"]);
        assert!(!state.is_troubled());
        // What was read before the route was seen is old by now.
        state.remember([queue("a", 1), queue("c", 0)].iter());
        assert_eq!(names(&state), ["a:0", "b:0"]);

        // One that goes on knows from its checkpoint what there was.
        let mut state = State::default();
        state.remember([queue("a", 0), queue("a", 7), queue("b", 0)].iter());
        learn(&mut state, &[("a", 0)]);
        assert_eq!(names(&state), ["a:0", "b:0"]);
        assert_eq!(state.known[&queue("b", 0)], None);
    }

    #[test]
    fn a_topic_that_its_broker_has_no_more_is_gone_once_that_was_seen_twice() {
        let topics = Topics::Several(["x".into(), "y".into()].into());
        let mut state = State::default();
        let mut seen = |queues: &[(&str, u32)]| {
            state.learn(&topics, found(queues));
            names(&state).join(" ")
        };
        let all = [("x@a", 0), ("x@b", 0), ("y@a", 0), ("y@b", 0)];
        assert_eq!(seen(&all), "x@a:0 x@b:0 y@a:0 y@b:0");
        // The broker b went between the two questions, and is down.
        for queues in [&all[..3], &[all[0], all[2]], &[all[0], all[2]]] {
            assert_eq!(seen(queues), "x@a:0 x@b:0 y@a:0 y@b:0");
        }
        // Now it is back, but y is deleted.
        assert_eq!(seen(&all[..2]), "x@a:0 x@b:0 y@a:0 y@b:0");
        assert_eq!(seen(&all[..2]), "x@a:0 x@b:0");
    }

    #[test]
    fn the_route_is_looked_at_by_the_clock_and_more_often_in_trouble() {
        const SECOND: u64 = 1_000_000;
        let waits = |state: &State, interval: u64| {
            let interval = Duration::from_secs(interval);
            (0..100).find(|seconds| state.is_time(interval, seconds * SECOND))
        };
        let mut state = State::default();
        assert_eq!(waits(&state, 0), Some(0));
        state.remember([queue("a", 0)].iter());
        assert_eq!(waits(&state, 60), Some(0), "it was never looked at");
        learn(&mut state, &[("a", 0), ("b", 0)]);
        assert_eq!([0, 3, 60].map(|interval| waits(&state, interval)), [None, Some(3), Some(60)]);
        learn(&mut state, &[("a", 0)]);
        assert_eq!([0, 3, 60].map(|interval| waits(&state, interval)), [Some(5), Some(3), Some(5)]);
        state.look = Some(Look { at: SECOND, has_failed: true });
        assert_eq!([0, 3, 60].map(|interval| waits(&state, interval)), [Some(31); 3]);
    }

    #[test]
    fn a_broker_that_did_not_answer_is_left_alone_longer_each_time() {
        const SECOND: u64 = 1_000_000;
        let mut state = State::default();
        learn(&mut state, &[("a", 0)]);
        let mut now = 0;
        for (time, rest) in [5, 10, 20, 30, 30].into_iter().enumerate() {
            assert_eq!(state.fell_silent("a".into(), now, "no answer".into()), time == 0);
            now += rest * SECOND;
            assert_eq!(state.excuse("a", now - 1), Some("no answer"));
            assert_eq!(state.excuse("a", now), None);
        }
        assert_eq!(state.excuse("b", 0), None);
        assert!(state.is_troubled());
        // It has another address now.
        state.learn(&Topics::One("t".into()), BTreeMap::from([(queue("a", 0), Some("c".into()))]));
        assert!(!state.is_troubled());
    }
}

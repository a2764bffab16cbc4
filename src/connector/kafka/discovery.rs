//! Which partitions a table has now, and what they hold.
//!
//! The idea: topics and partitions are listed now and then; in between the known ones are asked what they hold, all at
//! once. At any trouble with that the list is made anew, for then leaders may have moved. While some cannot be reached
//! it is made anew often, but never so often that waiting for who is silent takes up the time of the others.
//!
//! Guarantee: a partition is missing from the answer only if it is not there, or not found yet; one that is there and
//! cannot be reached is said to be. A topic that was there and is gone is an error, if it was there in this process.
//! Only one of a pattern whose table goes on without what is lost is forgotten, when it was missed twice in a row: what
//! follows is as for partitions that went away while no query ran. While all of them are missed, none is forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::replace;
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::Duration;

use super::client::{Client, Leaders};
use super::locked;
use super::options::{DISCOVERY, KafkaOptions, Topics};
use crate::clock::Clock;
use crate::connector::{Extent, OnDataLoss, Partition};
use crate::error::{Error, Kind, Result};

/// How often, and how far apart, it is looked when a query begins.
const LOOKS: (usize, Duration) = (4, Duration::from_millis(250));

/// After so long none of these looks is begun any more: who did not answer until now will not in a moment.
const LAST_LOOK: Duration = Duration::from_secs(4);

/// As long as some cannot be reached, looking takes one part in so many of the time.
const SHARE: u32 = 10;

/// Looks for a table's partitions. All calls block.
#[derive(Debug)]
pub(super) struct Discovery {
    client: Client,
    options: Arc<KafkaOptions>,
    clock: Clock,
    listed: Mutex<Option<Listed>>,
}

/// What was there when the brokers were asked for it.
#[derive(Debug)]
struct Listed {
    /// When that was, by the monotonic clock.
    at_us: u64,
    /// How long it is good for; none: for ever.
    lasts: Option<Duration>,
    reachable: BTreeSet<Partition>,
    unreachable: BTreeMap<Partition, String>,
    /// Topics of these that were not there when they were looked for since.
    missed: BTreeSet<Arc<str>>,
}

impl Listed {
    fn partitions(&self) -> impl Iterator<Item = &Partition> {
        self.reachable.iter().chain(self.unreachable.keys())
    }
}

impl Discovery {
    /// Of the topics that `options` name. It connects when it is first asked.
    pub(super) fn try_new(options: Arc<KafkaOptions>, clock: Clock) -> Result<Self> {
        let client = Client::try_new(&options.properties.consumer())?;
        Ok(Self { client, options, clock, listed: Mutex::default() })
    }

    /// What asks.
    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// What can be read now. Topics that are missing, and were never there, are an error of kind `missing`.
    pub(super) fn extent(&self, missing: Kind) -> Result<Extent> {
        let mut listed = locked(&self.listed);
        if let Some(known) = listed.as_ref().filter(|known| !self.is_due(known)) {
            let reachable: Vec<Partition> = known.reachable.iter().cloned().collect();
            match self.client.bounds(&reachable, 1) {
                Ok(extent) if extent.unreachable.is_empty() => {
                    return Ok(Extent { unreachable: known.unreachable.clone(), ..extent });
                }
                Err(error) if error.kind() != Kind::Transient => return Err(error),
                _ => {}
            }
        }
        let begin_us = self.clock.monotonic_us();
        let extent = self.client.extent(&self.list(listed.as_mut(), missing)?)?;
        let took = self.since(begin_us);
        *listed = Some(Listed {
            at_us: self.clock.monotonic_us(),
            lasts: lasts(self.options.discovery, took, extent.unreachable.is_empty()),
            reachable: extent.partitions.keys().cloned().collect(),
            unreachable: extent.unreachable.clone(),
            missed: BTreeSet::new(),
        });
        Ok(extent)
    }

    /// The same when a query begins, which is not tried again: so it is looked a few times, as it takes a moment until a
    /// new topic is known, or a partition has another leader.
    pub(super) fn first_extent(&self, missing: Kind) -> Result<Extent> {
        let ((looks, pause), begin_us) = (LOOKS, self.clock.monotonic_us());
        let mut extent = self.extent(missing);
        for _ in 1..looks {
            let may_get_better = match &extent {
                Ok(extent) => !extent.unreachable.is_empty(),
                Err(error) => matches!(error.kind(), Kind::Usage | Kind::Transient),
            };
            if !may_get_better || self.since(begin_us) >= LAST_LOOK {
                break;
            }
            sleep(pause);
            *locked(&self.listed) = None;
            extent = self.extent(missing);
        }
        extent
    }

    fn since(&self, at_us: u64) -> Duration {
        Duration::from_micros(self.clock.monotonic_us().saturating_sub(at_us))
    }

    /// Whether it is time to ask what there is.
    fn is_due(&self, listed: &Listed) -> bool {
        listed.lasts.is_some_and(|lasts| self.since(listed.at_us) >= lasts)
    }

    /// The partitions that there are, and who leads them. Without discovery they are those that were there before.
    /// Where nothing was, topics that are missing are an error of kind `missing`.
    fn list(&self, before: Option<&mut Listed>, missing: Kind) -> Result<Leaders> {
        let Some(before) = before else { return self.find(Some(missing)) };
        let mut leaders = self.find(None)?;
        self.miss(before, &leaders)?;
        if self.options.discovery.is_zero() {
            let known: BTreeSet<&Partition> = before.partitions().collect();
            leaders.retain(|partition, _| known.contains(partition));
        }
        Ok(leaders)
    }

    /// Misses topics that were there and are not any more: an error, unless they are forgotten.
    fn miss(&self, before: &mut Listed, leaders: &Leaders) -> Result<()> {
        let there: BTreeSet<&Arc<str>> = leaders.keys().map(|partition| &partition.name).collect();
        let known = before.partitions().map(|partition| &partition.name);
        let gone: BTreeSet<Arc<str>> = known.filter(|topic| !there.contains(topic)).cloned().collect();
        let missed = replace(&mut before.missed, gone.clone());
        let is_pattern = matches!(self.options.topics, Topics::Matching { .. });
        let goes_on = is_pattern && self.options.on_data_loss == OnDataLoss::Continue && !leaders.is_empty();
        if let Some(topic) = gone.iter().find(|topic| !goes_on || !missed.contains(*topic)) {
            return Err(Error::transient(format!(
                "topic {topic} is gone: it was deleted while it was read; create it again, start a new query without \
                 it, or, where a pattern means it, say 'scan.on-data-loss' = 'continue'"
            )));
        }
        for topic in gone {
            tracing::warn!(target: "kafka", %topic, "it was deleted while it was read; the query goes on without it");
        }
        Ok(())
    }

    /// All partitions of the table's topics; ones that are missing are left out, or an error of this kind.
    fn find(&self, missing: Option<Kind>) -> Result<Leaders> {
        let mut leaders = Leaders::new();
        match &self.options.topics {
            Topics::Named(names) => {
                for topic in names {
                    leaders.extend(match missing {
                        Some(kind) => self.client.partitions(topic, kind)?,
                        None => self.client.find(topic)?.unwrap_or_default(),
                    });
                }
            }
            Topics::Matching { pattern, .. } => {
                leaders = self.client.search(|topic| self.options.reads(topic))?;
                if let Some(kind) = missing.filter(|_| leaders.is_empty()) {
                    let what = format!("there is no topic that matches '{pattern}'");
                    return Err(self.client.missing(kind, &what, pattern));
                }
            }
        }
        Ok(leaders)
    }
}

/// How long a look is good for that took so long; for ever, where all is reached and nothing new is looked for.
fn lasts(interval: Duration, took: Duration, is_all_reached: bool) -> Option<Duration> {
    let interval = Some(interval).filter(|interval| !interval.is_zero());
    if is_all_reached {
        return interval;
    }
    let soon = interval.map_or(DISCOVERY, |interval| interval.min(DISCOVERY));
    Some(soon.max(took.saturating_mul(SHARE)))
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{DataType, Field, Schema};
    use rdkafka::mocking::MockCluster;
    use rdkafka::types::RDKafkaRespErr as Code;

    use super::*;
    use crate::connector::contract::fixture;

    fn discovery(servers: &str, interval: &str, clock: &Clock) -> Discovery {
        going_on(servers, interval, "fail", clock)
    }

    fn going_on(servers: &str, interval: &str, on_data_loss: &str, clock: &Clock) -> Discovery {
        let options = [
            ("connector", "kafka"),
            ("format", "json"),
            ("properties.bootstrap.servers", servers),
            ("topic-pattern", "a|b"),
            ("scan.topic-partition-discovery.interval", interval),
            ("scan.on-data-loss", on_data_loss),
        ];
        let schema = Schema::new(vec![Field::new("id", DataType::Int64, true)]);
        let options = KafkaOptions::take(&fixture::table_of("t", &schema, &options)).unwrap();
        Discovery::try_new(Arc::new(options), clock.clone()).unwrap()
    }

    fn look(discovery: &Discovery) -> (Vec<String>, Vec<(String, String)>) {
        let extent = discovery.extent(Kind::Usage).unwrap();
        let unreachable = extent.unreachable.into_iter().map(|(partition, reason)| (partition.to_string(), reason));
        (extent.partitions.keys().map(ToString::to_string).collect(), unreachable.collect())
    }

    #[test]
    fn a_leader_that_is_gone_does_not_hold_up_the_others() {
        let cluster = MockCluster::new(2).unwrap();
        let lead = |topic: &str, leader| cluster.partition_leader(topic, 0, leader).unwrap();
        for (topic, leader) in [("a", 1), ("b", 2)] {
            cluster.create_topic(topic, 1, 1).unwrap();
            lead(topic, Some(leader));
        }
        let (servers, clock) = (cluster.bootstrap_servers(), Clock::seeded(1, 0));
        let (hourly, once) = (discovery(&servers, "1 h", &clock), discovery(&servers, "0 s", &clock));
        let all = (vec!["a:0".to_string(), "b:0".to_string()], vec![]);
        let one = (vec!["a:0".to_string()], vec![("b:0".to_string(), "it has no leader".to_string())]);
        for discovery in [&hourly, &once] {
            assert_eq!(look(discovery), all);
        }
        lead("b", None);
        for discovery in [&hourly, &once] {
            assert_eq!(look(discovery), one);
        }
        lead("b", Some(1));
        for discovery in [&hourly, &once] {
            assert_eq!(look(discovery), one, "it is tried again in a while");
        }
        clock.advance(DISCOVERY.as_millis() as i64);
        for discovery in [&hourly, &once] {
            assert_eq!(look(discovery), all);
        }

        lead("b", Some(2));
        cluster.broker_down(2).unwrap();
        // Whether it is silent, or known to be down, the mock cluster leaves to chance.
        let (found, lost) = look(&hourly);
        assert_eq!((found, lost.len(), lost[0].0.as_str()), (vec!["a:0".to_string()], 1, "b:0"));
    }

    #[test]
    fn without_discovery_what_comes_later_is_not_there() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("a", 1, 1).unwrap();
        let (servers, clock) = (cluster.bootstrap_servers(), Clock::seeded(1, 0));
        let (hourly, once) = (discovery(&servers, "1 h", &clock), discovery(&servers, "0 s", &clock));
        let count = || (look(&hourly).0.len(), look(&once).0.len());
        assert_eq!(count(), (1, 1));
        for topic in ["b", "ab"] {
            cluster.create_topic(topic, 2, 1).unwrap();
        }
        assert_eq!(count(), (1, 1), "it is not time yet");
        clock.advance(3_600_000);
        assert_eq!(count(), (3, 1));
    }

    #[test]
    fn a_topic_that_is_gone_is_an_error_or_forgotten_when_it_is_missed_twice() {
        let cluster = MockCluster::new(1).unwrap();
        for topic in ["a", "b"] {
            cluster.create_topic(topic, 1, 1).unwrap();
        }
        let (servers, clock) = (cluster.bootstrap_servers(), Clock::seeded(1, 0));
        let [strict, lenient] = ["fail", "continue"].map(|answer| going_on(&servers, "1 h", answer, &clock));
        let found = |discovery: &Discovery| {
            clock.advance(3_600_000);
            look(discovery).0
        };
        let misses = |discovery: &Discovery, topic: &str| {
            clock.advance(3_600_000);
            let error = discovery.extent(Kind::Usage).unwrap_err();
            assert_eq!(error.kind(), Kind::Transient);
            assert!(error.to_string().starts_with(&format!("topic {topic} is gone")), "{error}");
        };
        let answer = |topic: &str, code| cluster.topic_error(topic, code).unwrap();
        let (gone, there) = (Code::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART, Code::RD_KAFKA_RESP_ERR_NO_ERROR);
        for discovery in [&strict, &lenient] {
            assert_eq!(found(discovery), ["a:0", "b:0"]);
        }
        answer("b", gone);
        for discovery in [&strict, &lenient] {
            misses(discovery, "b");
        }
        assert_eq!(found(&lenient), ["a:0"]);
        misses(&strict, "b");
        answer("a", gone);
        for _ in 0..3 {
            misses(&lenient, "a");
        }
        for topic in ["a", "b"] {
            answer(topic, there);
        }
        for discovery in [&strict, &lenient] {
            assert_eq!(found(discovery), ["a:0", "b:0"], "what comes again is found again");
        }
    }

    #[test]
    fn what_cannot_be_reached_is_looked_for_soon_but_not_all_the_time() {
        let (never, hour) = (Duration::ZERO, Duration::from_secs(3600));
        let [quick, slow] = [10, 4_000].map(Duration::from_millis);
        assert_eq!([never, quick, hour].map(|interval| lasts(interval, slow, true)), [None, Some(quick), Some(hour)]);
        let [often, seldom] = [quick, slow].map(|took| took * SHARE);
        for (interval, took, expected) in [
            (never, quick, DISCOVERY),
            (hour, quick, DISCOVERY),
            (quick, quick, often),
            (never, slow, seldom),
            (hour, slow, seldom),
            (quick, slow, seldom),
        ] {
            assert_eq!(lasts(interval, took, false), Some(expected), "{interval:?} {took:?}");
        }
    }
}

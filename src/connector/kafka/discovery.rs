//! Which partitions a table has now, and what they hold.
//!
//! The idea: topics and partitions are listed now and then; in between the known ones are asked what they hold, all at
//! once. At any trouble with that the list is made anew, for then leaders may have moved.
//!
//! Guarantee: a partition is missing from the answer only if it is not there, or not found yet; one that is there and
//! cannot be reached is said to be. A topic that was there and is gone is an error.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::client::{Client, Leaders};
use super::locked;
use super::options::{DISCOVERY, KafkaOptions, Topics};
use crate::clock::Clock;
use crate::connector::{Extent, Partition};
use crate::error::{Error, Kind, Result};

/// Looks for a table's partitions. All calls block.
#[derive(Debug)]
pub(super) struct Discovery {
    client: Arc<Client>,
    options: Arc<KafkaOptions>,
    clock: Clock,
    listed: Mutex<Option<Listed>>,
}

/// What was there when the brokers were asked for it.
#[derive(Debug)]
struct Listed {
    /// When that was, by the monotonic clock.
    at_us: u64,
    reachable: BTreeSet<Partition>,
    unreachable: BTreeMap<Partition, String>,
}

impl Listed {
    fn partitions(&self) -> impl Iterator<Item = &Partition> {
        self.reachable.iter().chain(self.unreachable.keys())
    }
}

impl Discovery {
    /// Of the topics that `options` name. It connects when it is first asked.
    pub(super) fn try_new(options: Arc<KafkaOptions>, clock: Clock) -> Result<Self> {
        let client = Arc::new(Client::try_new(&options.properties.consumer())?);
        Ok(Self { client, options, clock, listed: Mutex::default() })
    }

    /// What asks.
    pub(super) fn client(&self) -> &Arc<Client> {
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
        let extent = self.client.extent(&self.list(listed.as_ref(), missing)?)?;
        *listed = Some(Listed {
            at_us: self.clock.monotonic_us(),
            reachable: extent.partitions.keys().cloned().collect(),
            unreachable: extent.unreachable.clone(),
        });
        Ok(extent)
    }

    /// Whether it is time to ask what there is; what could not be reached is tried again in any case.
    fn is_due(&self, listed: &Listed) -> bool {
        let interval = match self.options.discovery {
            never if never.is_zero() && listed.unreachable.is_empty() => return false,
            never if never.is_zero() => DISCOVERY,
            interval => interval,
        };
        Duration::from_micros(self.clock.monotonic_us().saturating_sub(listed.at_us)) >= interval
    }

    /// The partitions that there are, and who leads them. Without discovery they are those that were there before.
    fn list(&self, before: Option<&Listed>, missing: Kind) -> Result<Leaders> {
        let Some(before) = before else { return self.list_first(missing) };
        let mut leaders = Leaders::new();
        match &self.options.topics {
            Topics::Matching { .. } => leaders = self.client.search(|topic| self.options.reads(topic))?,
            Topics::Named(names) => {
                for topic in names {
                    leaders.extend(self.client.find(topic)?.unwrap_or_default());
                }
            }
        }
        let topics: BTreeSet<&str> = leaders.keys().map(|partition| &*partition.name).collect();
        if let Some(gone) = before.partitions().find(|partition| !topics.contains(&*partition.name)) {
            return Err(Error::transient(format!(
                "topic {} is gone: it was deleted while it was read; create it again, or start a new query without it",
                gone.name
            )));
        }
        if self.options.discovery.is_zero() {
            let known: BTreeSet<&Partition> = before.partitions().collect();
            leaders.retain(|partition, _| known.contains(partition));
        }
        Ok(leaders)
    }

    /// The same, where nothing was there before.
    fn list_first(&self, missing: Kind) -> Result<Leaders> {
        let mut leaders = Leaders::new();
        match &self.options.topics {
            Topics::Named(names) => {
                for topic in names {
                    leaders.extend(self.client.partitions(topic, missing)?);
                }
            }
            Topics::Matching { pattern, .. } => {
                leaders = self.client.search(|topic| self.options.reads(topic))?;
                if leaders.is_empty() {
                    let what = format!("there is no topic that matches '{pattern}'");
                    return Err(self.client.missing(missing, &what, pattern));
                }
            }
        }
        Ok(leaders)
    }
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{DataType, Field, Schema};
    use rdkafka::mocking::MockCluster;

    use super::*;
    use crate::connector::contract::fixture;

    fn discovery(servers: &str, interval: &str) -> Discovery {
        let options = [
            ("connector", "kafka"),
            ("format", "json"),
            ("properties.bootstrap.servers", servers),
            ("topic-pattern", "a|b"),
            ("scan.topic-partition-discovery.interval", interval),
        ];
        let schema = Schema::new(vec![Field::new("id", DataType::Int64, true)]);
        let options = KafkaOptions::take(&fixture::table_of("t", &schema, &options)).unwrap();
        Discovery::try_new(Arc::new(options), Clock::system()).unwrap()
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
        let servers = cluster.bootstrap_servers();
        let (eager, once) = (discovery(&servers, "1 ms"), discovery(&servers, "0 s"));
        for discovery in [&eager, &once] {
            assert_eq!(look(discovery), (vec!["a:0".to_string(), "b:0".to_string()], vec![]));
        }
        lead("b", None);
        for discovery in [&eager, &once] {
            let lost = vec![("b:0".to_string(), "it has no leader".to_string())];
            assert_eq!(look(discovery), (vec!["a:0".to_string()], lost));
        }
        lead("b", Some(1));
        let (found, lost) = look(&eager);
        assert_eq!((found.len(), lost.len()), (2, 0));
        // It is tried again in a while.
        let (found, lost) = look(&once);
        assert_eq!((found.len(), lost.len()), (1, 1));

        lead("b", Some(2));
        cluster.broker_down(2).unwrap();
        let (found, lost) = look(&eager);
        assert_eq!((found, lost.len()), (vec!["a:0".to_string()], 1));
        assert!(lost[0].1.contains("no answer"), "{lost:?}");
    }

    #[test]
    fn without_discovery_what_comes_later_is_not_there() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("a", 1, 1).unwrap();
        let servers = cluster.bootstrap_servers();
        let (eager, once) = (discovery(&servers, "1 ms"), discovery(&servers, "0 s"));
        assert_eq!((look(&eager).0.len(), look(&once).0.len()), (1, 1));
        for topic in ["b", "ab"] {
            cluster.create_topic(topic, 2, 1).unwrap();
        }
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!((look(&eager).0.len(), look(&once).0.len()), (3, 1));
    }
}

//! Those who fetch a table's messages: clients, and the readers of its partitions.
//!
//! The idea: as many clients as there are tasks fetch, and each partition belongs to one of them, so that no two tasks
//! meet at a queue. They are made when they are first needed, for what each queue may hold depends on how many
//! partitions there are. librdkafka asks for more as long as a queue has room, which is about a hundred times a second
//! where nothing comes. So queues that nobody reads from are stopped after a while.
//!
//! What it promises: a table from which nothing was read for about 2 s ([`REST`]) is not fetched from, and what is read
//! next begins with one fetch. One that is read from more often than that is fetched ahead of all the time.
//!
//! What it does not promise: to find out by itself. It is looked when the source is asked what there is, as a query
//! does that waits for messages; one that waits for its trigger does not.

use std::collections::BTreeMap;
use std::mem::replace;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rdkafka::ClientConfig;
use tokio::sync::Mutex as Slot;

use super::client::Client;
use super::locked;
use super::properties::Properties;
use super::queue::{PartitionQueue, Topic};
use super::reader::PartitionReader;
use crate::clock::Clock;
use crate::connector::{Extent, Partition};
use crate::error::{Error, Result};

/// After so long without a read queues are stopped.
const REST: Duration = Duration::from_secs(2);

/// See the module's text.
#[derive(Debug)]
pub(super) struct Fetching {
    table: String,
    properties: Properties,
    /// How a client reads, where there are so many partitions.
    config: fn(&Properties, usize) -> ClientConfig,
    clock: Clock,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    clients: Vec<Option<Arc<Client>>>,
    readers: BTreeMap<Partition, Arc<Slot<PartitionReader>>>,
    /// How many partitions there are, as far as is known.
    partitions: usize,
    idle: Idle,
}

/// Whether nobody reads, as seen now and then.
#[derive(Debug, Default)]
struct Idle {
    /// Since it was looked last.
    was_read: bool,
    /// By the monotonic clock.
    since_us: u64,
}

impl Idle {
    /// Whether it has been so for long; that is said again after as long a time.
    fn look(&mut self, now_us: u64) -> bool {
        let was_read = replace(&mut self.was_read, false);
        let is_over = Duration::from_micros(now_us.saturating_sub(self.since_us)) >= REST;
        if was_read || is_over {
            self.since_us = now_us;
        }
        is_over && !was_read
    }
}

impl Fetching {
    /// For `parallelism` reads side by side; nothing is connected.
    pub(super) fn new(table: &str, properties: &Properties, parallelism: usize, clock: Clock) -> Self {
        let clients = vec![None; parallelism.max(1)];
        let state = State { clients, readers: BTreeMap::new(), partitions: 0, idle: Idle::default() };
        let (table, properties, state) = (table.into(), properties.clone(), Mutex::new(state));
        Self { table, properties, config: Properties::fetching, clock, state }
    }

    /// For looking at single messages.
    pub(super) fn of_single_messages(table: &str, properties: &Properties, clock: Clock) -> Self {
        Self { config: |properties, _| properties.finder(), ..Self::new(table, properties, 1, clock) }
    }

    /// The reader of a partition, which is about to be read.
    pub(super) fn reader(&self, partition: &Partition) -> Result<Arc<Slot<PartitionReader>>> {
        let mut state = locked(&self.state);
        state.idle.was_read = true;
        if let Some(known) = state.readers.get(partition) {
            return Ok(Arc::clone(known));
        }
        // By its name as well: topics of one partition each are not all to meet at the first client.
        let place = partition.name.bytes().map(usize::from).sum::<usize>() + partition.number as usize;
        let place = place % state.clients.len();
        let client = match &state.clients[place] {
            Some(client) => Arc::clone(client),
            None => self.client(state.partitions.max(state.readers.len() + 1))?,
        };
        let made = Arc::new(Slot::new(self.read_by(Arc::clone(&client), partition)?));
        state.clients[place] = Some(client);
        state.readers.insert(partition.clone(), Arc::clone(&made));
        Ok(made)
    }

    /// Another reader of a partition, with a client of its own.
    pub(super) fn spare_reader(&self, partition: &Partition) -> Result<PartitionReader> {
        let partitions = locked(&self.state).partitions;
        self.read_by(self.client(partitions)?, partition)
    }

    /// Learns what there is now, and stops queues that nobody reads from. Blocks for a moment.
    pub(super) fn look(&self, extent: &Extent) {
        let mut state = locked(&self.state);
        state.partitions = extent.partitions.len() + extent.unreachable.len();
        if !state.idle.look(self.clock.monotonic_us()) {
            return;
        }
        let readers: Vec<_> = state.readers.values().cloned().collect();
        drop(state);
        // One that is locked is being read.
        for reader in readers {
            if let Ok(mut reader) = reader.try_lock() {
                reader.rest();
            }
        }
    }

    fn client(&self, partitions: usize) -> Result<Arc<Client>> {
        Client::try_new(&(self.config)(&self.properties, partitions)).map(Arc::new)
    }

    fn read_by(&self, client: Arc<Client>, partition: &Partition) -> Result<PartitionReader> {
        let topic = Topic::new(client, &partition.name);
        let topic = topic.ok_or_else(|| Error::usage(format!("'{}' cannot be a topic", partition.name)))?;
        let queue = PartitionQueue::new(Arc::new(topic), partition.number as i32);
        Ok(PartitionReader::new(self.table.as_str(), partition.clone(), queue))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

    use super::*;
    use crate::connector::messages::MessageBatch;
    use crate::connector::{Bounds, Span};

    #[test]
    fn nobody_reads_only_after_a_while() {
        let (mut idle, rest) = (Idle { was_read: true, since_us: 0 }, REST.as_micros() as u64);
        assert!(!idle.look(3 * rest), "it was read since");
        assert!(!idle.look(4 * rest - 1));
        assert!(idle.look(4 * rest));
        assert!(!idle.look(4 * rest + 1), "it was said");
        assert!(idle.look(5 * rest));
        idle.was_read = true;
        assert!(!idle.look(9 * rest));
        assert!(idle.look(10 * rest));
    }

    /// The offsets that are read of a span.
    fn offsets(fetching: &Fetching, from: u64, to: u64) -> Vec<u64> {
        let partition = Partition::new("a", 0);
        let reader = fetching.reader(&partition).unwrap();
        let found = RefCell::new(vec![]);
        let deliver = |batch: MessageBatch| {
            found.borrow_mut().extend(batch.offsets);
            true
        };
        let mut reader = reader.try_lock().unwrap();
        reader.read(&Span::new(partition, from, to), &[], deliver, || true).unwrap();
        drop(reader);
        found.into_inner()
    }

    #[test]
    fn what_rested_goes_on_where_it_is_read() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("a", 1, 1).unwrap();
        let servers = cluster.bootstrap_servers();
        let producer: BaseProducer = ClientConfig::new().set("bootstrap.servers", &servers).create().unwrap();
        let write = |count| {
            for _ in 0..count {
                producer.send(BaseRecord::<(), str>::to("a").partition(0).payload("x")).unwrap();
            }
            producer.flush(Duration::from_secs(20)).unwrap();
        };
        let properties = Properties::try_new([("bootstrap.servers".to_string(), servers)].into()).unwrap();
        let clock = Clock::seeded(1, 0);
        let fetching = Fetching::new("t", &properties, 2, clock.clone());
        let bounds = Bounds { earliest: 0, latest: 9 };
        let extent = Extent { partitions: [(Partition::new("a", 0), bounds)].into(), ..Extent::default() };
        let rest = || {
            fetching.look(&extent);
            clock.advance(REST.as_millis() as i64);
            fetching.look(&extent);
            let reader = Arc::clone(&locked(&fetching.state).readers[&Partition::new("a", 0)]);
            assert!(reader.try_lock().unwrap().is_resting());
        };
        write(9);
        assert_eq!(offsets(&fetching, 0, 4), [0, 1, 2, 3]);
        rest();
        assert_eq!(offsets(&fetching, 4, 9), [4, 5, 6, 7, 8], "what was fetched ahead is fetched again");
        rest();
        rest();
        write(2);
        assert_eq!(offsets(&fetching, 9, 11), [9, 10]);
    }
}

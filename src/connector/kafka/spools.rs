//! Writing at least once, or with no promise at all: rows wait in spools, and are sent when their epoch is published.
//!
//! What it guarantees, at least once: a published epoch is in the topic, every row of it, acknowledged by all replicas
//! in sync. A producer that failed once is not used again. With no promise a row that the brokers do not take is left
//! out: a warning counts them, and nothing fails.
//!
//! What it does not promise: that rows of an epoch that failed half-way are not seen twice.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use super::options::KafkaOptions;
use super::producer::Producer;
use super::rows::Messages;
use super::{locked, total};
use crate::connector::spool::Spooled;
use crate::connector::{Delivery, Published, Staged};
use crate::error::{Error, Result};

/// An epoch's staged rows, by task.
type Tasks = BTreeMap<u32, (Staged, Spooled)>;

/// What waits to be sent to one topic.
#[derive(Debug)]
pub(super) struct Spools {
    options: Arc<KafkaOptions>,
    staged: Mutex<BTreeMap<u64, Tasks>>,
    producer: Mutex<Option<Producer>>,
}

impl Spools {
    /// Nothing yet.
    pub(super) fn new(options: Arc<KafkaOptions>) -> Self {
        let (staged, producer) = Default::default();
        Self { options, staged, producer }
    }

    /// Whether a row may be lost.
    fn tolerates_losses(&self) -> bool {
        self.options.delivery == Delivery::None
    }

    fn connect(&self) -> Result<Producer> {
        Producer::try_new(&self.options.properties.producer(), self.options.target(), None, self.tolerates_losses())
    }

    /// Makes a producer, so that one that is misconfigured shows at once.
    pub(super) fn open(&self) -> Result<()> {
        let mut slot = locked(&self.producer);
        *slot = None;
        *slot = Some(self.connect()?);
        Ok(())
    }

    /// Takes the rows of a task.
    pub(super) fn stage(&self, epoch: u64, task: u32, staged: Staged, spooled: Spooled) {
        locked(&self.staged).entry(epoch).or_default().insert(task, (staged, spooled));
    }

    /// Sends everything, in the order of the tasks, and keeps it for another attempt if that failed.
    pub(super) fn publish(&self, epoch: u64, wanted: &dyn Fn() -> bool) -> Result<Published> {
        let mut tasks = locked(&self.staged).remove(&epoch).unwrap_or_default();
        let mut published = total(tasks.values().map(|(staged, _)| staged));
        if published.rows == 0 {
            return Ok(published);
        }
        match self.send(epoch, &mut tasks, wanted) {
            Ok(lost) => {
                published.rows = published.rows.saturating_sub(lost);
                Ok(published)
            }
            Err(error) => {
                // Who no longer listens has begun anew, or ended.
                if wanted() {
                    locked(&self.staged).insert(epoch, tasks);
                }
                Err(error)
            }
        }
    }

    /// How many rows were lost, where they may be.
    fn send(&self, epoch: u64, tasks: &mut Tasks, wanted: &dyn Fn() -> bool) -> Result<u64> {
        let mut slot = locked(&self.producer);
        if slot.is_none() {
            *slot = Some(self.connect()?);
        }
        let Some(producer) = slot.as_mut() else { return Ok(0) };
        producer.begin(epoch);
        if let Err(error) = send(producer, epoch, tasks, wanted) {
            *slot = None;
            return Err(error);
        }
        let Some((lost, first)) = producer.losses() else { return Ok(0) };
        tracing::warn!(
            target: "kafka",
            topic = self.options.target(),
            epoch,
            lost,
            error = first.chain(),
            "rows were not written, and are left out ('sink.delivery-guarantee' = 'none')"
        );
        *slot = None;
        Ok(lost as u64)
    }

    /// Forgets what was staged.
    pub(super) fn discard(&self, epoch: u64) {
        locked(&self.staged).remove(&epoch);
    }

    /// Gives back the connection.
    pub(super) fn close(&self) {
        locked(&self.staged).clear();
        locked(&self.producer).take();
    }
}

fn send(producer: &mut Producer, epoch: u64, tasks: &mut Tasks, wanted: &dyn Fn() -> bool) -> Result<()> {
    for (_, spooled) in tasks.values_mut() {
        for batch in spooled.read()? {
            if !wanted() {
                return Err(Error::transient(format!("epoch {epoch} was abandoned")));
            }
            producer.send(&Messages::of(&batch?), wanted)?;
        }
    }
    producer.finish(wanted)
}

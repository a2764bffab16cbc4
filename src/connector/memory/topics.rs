//! The topics: what programs appended, and what queries published.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::RecordBatch;

use crate::connector::Fingerprint;

/// Named topics in memory; clones share them. A topic comes into being when it is first spoken of.
#[derive(Debug, Clone, Default)]
pub struct Memory(Arc<Mutex<BTreeMap<String, Topic>>>);

/// One topic.
#[derive(Debug, Default)]
pub(super) struct Topic {
    pub(super) partitions: BTreeMap<u32, Log>,
    /// Whether nothing more will be appended.
    pub(super) complete: bool,
    /// What each query published, by its id.
    pub(super) written: BTreeMap<Arc<str>, Written>,
}

/// The rows of one partition.
#[derive(Debug, Default)]
pub(super) struct Log {
    /// The first row that is still there.
    pub(super) earliest: u64,
    /// The row after the last.
    pub(super) latest: u64,
    /// How often the topic was created anew before.
    pub(super) age: u64,
    /// Batches by the number of their first row, without empty ones.
    batches: BTreeMap<u64, RecordBatch>,
}

/// What one query published.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// The newest run that opened the topic.
    pub(super) run: u64,
    /// The rows of each epoch, in the order of its tasks.
    pub(super) epochs: BTreeMap<u64, Vec<RecordBatch>>,
}

impl Memory {
    /// Without any topic.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends rows to a partition.
    pub fn append(&self, topic: &str, partition: u32, rows: RecordBatch) {
        self.with(topic, |topic| topic.partitions.entry(partition).or_default().append(rows));
    }

    /// Says that nothing more will be appended: a query over the topic ends when it has read all of it.
    pub fn complete(&self, topic: &str) {
        self.with(topic, |topic| topic.complete = true);
    }

    /// Drops the rows of a partition before this one, as a broker's retention does.
    pub fn trim(&self, topic: &str, partition: u32, before: u64) {
        self.with(topic, |topic| topic.partitions.entry(partition).or_default().trim(before));
    }

    /// Deletes the rows of all partitions, and numbers what is appended from 0 again, as a topic does that is created anew.
    pub fn recreate(&self, topic: &str) {
        let anew = |log: &mut Log| *log = Log { age: log.age + 1, ..Log::default() };
        self.with(topic, |topic| topic.partitions.values_mut().for_each(anew));
    }

    /// What queries have published, in the order of epochs and tasks; one query after the other.
    pub fn rows(&self, topic: &str) -> Vec<RecordBatch> {
        self.with(topic, |topic| {
            let epochs = topic.written.values().flat_map(|written| written.epochs.values());
            epochs.flatten().cloned().collect()
        })
    }

    /// Does something with a topic while nobody else does.
    pub(super) fn with<T>(&self, topic: &str, act: impl FnOnce(&mut Topic) -> T) -> T {
        let mut topics = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        act(topics.entry(topic.to_string()).or_default())
    }
}

impl Log {
    fn append(&mut self, rows: RecordBatch) {
        if rows.num_rows() > 0 {
            let first = self.latest;
            self.latest += rows.num_rows() as u64;
            self.batches.insert(first, rows);
        }
    }

    fn trim(&mut self, before: u64) {
        self.earliest = before.clamp(self.earliest, self.latest);
        let earliest = self.earliest;
        self.batches.retain(|first, rows| first + rows.num_rows() as u64 > earliest);
    }

    /// What tells a row from that of another age.
    pub(super) fn fingerprint(&self, offset: u64) -> Fingerprint {
        Fingerprint { offset, timestamp: None, id: Some(self.age.to_string()) }
    }

    /// Rows `from..to`, all of which exist.
    pub(super) fn slice(&self, from: u64, to: u64) -> Vec<RecordBatch> {
        let overlapping = self.batches.range(..to).filter(|(first, rows)| *first + rows.num_rows() as u64 > from);
        let cut = |(first, rows): (&u64, &RecordBatch)| {
            let start = from.max(*first);
            let end = to.min(first + rows.num_rows() as u64);
            rows.slice((start - first) as usize, (end - start) as usize)
        };
        overlapping.map(cut).collect()
    }
}

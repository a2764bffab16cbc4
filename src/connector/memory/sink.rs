//! Writing a topic in memory.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow::array::RecordBatch;
use async_trait::async_trait;
use datafusion::execution::SendableRecordBatchStream;
use futures::TryStreamExt;

use super::topics::{Memory, Written};
use crate::connector::{Guarantee, Pin, Progress, Published, Sink, Staged};
use crate::error::{Error, Result};

/// For each epoch, what each task staged.
type Waiting = BTreeMap<u64, BTreeMap<u32, Vec<RecordBatch>>>;

/// Publishes epochs of one query. What is staged belongs to this sink, and goes with it.
#[derive(Debug)]
pub(super) struct MemorySink {
    memory: Memory,
    table: String,
    topic: String,
    query: Arc<str>,
    run: AtomicU64,
    staged: Mutex<Waiting>,
}

impl MemorySink {
    /// Writes into `topic` for the query with this id.
    pub(super) fn new(memory: Memory, table: String, topic: String, query: Arc<str>) -> Self {
        Self { memory, table, topic, query, run: AtomicU64::new(0), staged: Mutex::default() }
    }

    fn staged(&self) -> MutexGuard<'_, Waiting> {
        self.staged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with what the query has written, unless a newer run than `run` has opened the topic.
    fn written<T>(&self, run: u64, act: impl FnOnce(&mut Written) -> T) -> Result<T> {
        self.memory.with(&self.topic, |topic| {
            let written = topic.written.entry(Arc::clone(&self.query)).or_default();
            if run < written.run {
                return Err(Error::fenced(format!(
                    "table {}: run {} of this query writes topic {} now; do not restart run {run}",
                    self.table, written.run, self.topic
                )));
            }
            Ok(act(written))
        })
    }

    fn run(&self) -> u64 {
        self.run.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl Sink for MemorySink {
    fn guarantee(&self) -> Guarantee {
        super::guarantee()
    }

    async fn open(&self, run: u64) -> Result<()> {
        self.run.store(run, Ordering::Relaxed);
        self.written(run, |written| written.run = run)
    }

    async fn progress(&self, _epoch: u64, _position: &serde_json::Value) -> Result<Progress> {
        self.written(self.run(), |written| Progress::UpTo(written.epochs.keys().next_back().copied().unwrap_or(0)))
    }

    async fn stage(&self, epoch: u64, task: u32, _pin: &Pin, rows: SendableRecordBatchStream) -> Result<Staged> {
        self.written(self.run(), |_| ())?;
        let batches: Vec<RecordBatch> = rows.try_collect().await?;
        let rows = batches.iter().map(|batch| batch.num_rows() as u64).sum();
        self.staged().entry(epoch).or_default().insert(task, batches);
        Ok(Staged { rows, bytes: 0 })
    }

    /// An epoch that was staged again replaces what it published before; one that was not stays as it is.
    async fn publish(&self, epoch: u64, _pin: &Pin) -> Result<Published> {
        let tasks = self.staged().remove(&epoch);
        self.written(self.run(), |written| {
            let published = written.epochs.entry(epoch).or_default();
            if let Some(tasks) = tasks {
                *published = tasks.into_values().flatten().collect();
            }
            let rows = published.iter().map(|batch| batch.num_rows() as u64).sum();
            Published { rows, ..Published::default() }
        })
    }

    async fn discard(&self, epoch: u64) {
        self.staged().remove(&epoch);
    }

    /// An epoch is published as a whole.
    async fn retract(&self, _epoch: u64) -> Result<()> {
        Ok(())
    }
}

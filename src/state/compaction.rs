//! Fewer files: beside the running epochs, files of changes become one, and now and then all rows do.
//!
//! The idea: when the files after the last snapshot have as many rows as it, all rows are written as a new *snapshot*, so
//! every row is written twice at most on average. When they are many but small, just they are *merged*: of each key the
//! newest row. Both work on what nobody changes any more, in a task of their own, and take the place of what they cover in
//! the first commit after they are done.
//!
//! Not promised: when that is. A crash loses one that was under way, and another follows.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::SchemaRef;
use tokio::task::JoinHandle;

use super::keys::KeyCodec;
use super::shard::Live;
use super::{Layout, StateCommit, StateFile, files};
use crate::checkpoint::StateStore;
use crate::error::{Error, Result};
use crate::plan::time::ticks;

/// A snapshot is due when the files after the last one have as many rows as it, but at least this many.
const SNAPSHOT_ROWS: u64 = 200_000;

/// How one operator's files are written.
#[derive(Debug, Clone)]
pub(super) struct Writer {
    pub(super) layout: Layout,
    pub(super) schema: SchemaRef,
    pub(super) codec: Arc<KeyCodec>,
    pub(super) store: StateStore,
}

/// What is due after a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    Snapshot,
    Merge,
}

/// One file in the place of those of the epochs `after..=file.epoch`.
#[derive(Debug)]
struct Compacted {
    after: Option<u64>,
    file: StateFile,
}

/// At most one task at a time.
#[derive(Debug)]
pub(super) struct Compaction {
    running: Mutex<Option<JoinHandle<Result<Compacted>>>>,
    /// How many files of changes there may be.
    max_files: usize,
}

impl Compaction {
    pub(super) fn new(max_files: usize) -> Self {
        Self { running: Mutex::default(), max_files: max_files.max(2) }
    }

    fn due(&self, commit: &StateCommit) -> Option<Due> {
        let (first, rest) = commit.files.split_first()?;
        let rows: u64 = rest.iter().map(|file| file.rows).sum();
        match () {
            () if rows >= first.rows.max(SNAPSHOT_ROWS) => Some(Due::Snapshot),
            () if rest.len() >= self.max_files => Some(Due::Merge),
            () => None,
        }
    }

    /// Starts what is due after the commit of `epoch`; `live` gives all rows as of it.
    pub(super) fn start(&self, epoch: u64, commit: &StateCommit, writer: &Writer, live: impl FnOnce() -> Vec<Live>) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(due) = self.due(commit).filter(|_| running.is_none()) else { return };
        let (writer, files) = (writer.clone(), commit.files.clone());
        *running = Some(match due {
            Due::Snapshot => {
                let live = live();
                tokio::spawn(async move {
                    let file = writer.write(epoch, "snapshot", move |writer| writer.of_live(&live)).await?;
                    Ok(Compacted { after: None, file })
                })
            }
            Due::Merge => tokio::spawn(async move {
                let mut read = vec![];
                for file in &files[1..] {
                    read.push((file.name.clone(), writer.store.get(&file.name).await?));
                }
                let file = writer.write(epoch, "merged", move |writer| writer.newest_of(&read)).await?;
                Ok(Compacted { after: Some(files[0].epoch), file })
            }),
        });
    }

    /// Puts what is done in the place of what it covers.
    pub(super) async fn take(&self, commit: &mut StateCommit, operator: &str) {
        let is_done = |running: &mut JoinHandle<_>| running.is_finished();
        let Some(done) = self.running.lock().unwrap_or_else(PoisonError::into_inner).take_if(is_done) else { return };
        match done.await {
            Ok(Ok(Compacted { after, file })) => {
                let is_before = |other: &StateFile| after.is_some_and(|after| other.epoch <= after);
                commit.files.retain(|other| is_before(other) || other.epoch > file.epoch);
                let place = commit.files.iter().take_while(|other| is_before(other)).count();
                commit.files.insert(place, file);
            }
            Ok(Err(error)) => {
                tracing::warn!(
                    operator,
                    error = error.chain(),
                    "files of state were not made fewer; another try follows"
                );
            }
            // It was told to stop.
            Err(_) => {}
        }
    }
}

impl Drop for Compaction {
    fn drop(&mut self) {
        if let Some(running) = self.running.lock().unwrap_or_else(PoisonError::into_inner).take() {
            running.abort();
        }
    }
}

impl Writer {
    /// Writes batches, which are made off the runtime's threads, as a file of this kind.
    pub(super) async fn write(
        &self,
        epoch: u64,
        kind: &str,
        batches: impl FnOnce(&Writer) -> Vec<Result<RecordBatch>> + Send + 'static,
    ) -> Result<StateFile> {
        let writer = self.clone();
        let encoded = tokio::task::spawn_blocking(move || {
            let mut latest = None;
            let batches = batches(&writer).into_iter().map(|batch| {
                let batch = batch?;
                latest = latest.max(writer.youngest(&batch)?);
                Ok(batch)
            });
            let (body, rows) = files::encode(&writer.schema, batches)?;
            Ok::<_, Error>((body, rows, latest))
        });
        let (body, rows, latest) =
            encoded.await.map_err(|e| Error::internal("writing state ended by itself").caused_by(e))??;
        let name = format!("{epoch:020}-{:020}-{kind}.arrow.zst", self.store.run());
        let bytes = body.len() as u64;
        self.store.put(&name, body).await?;
        Ok(StateFile { name, epoch, rows, bytes, latest })
    }

    /// The highest of what says until when a row is of use.
    fn youngest(&self, batch: &RecordBatch) -> Result<Option<i64>> {
        let Some(column) = self.layout.ages_by() else { return Ok(None) };
        Ok(arrow::compute::max(&ticks(batch.column(column))?))
    }

    /// Rows as they are written.
    pub(super) fn of_live(&self, live: &[Live]) -> Vec<Result<RecordBatch>> {
        let batch = |live: &Live| {
            let places: Vec<(usize, usize)> = live.places().map(|row| (0, row)).collect();
            let keys = self.codec.decode(places.iter().map(|(_, row)| live.rows().keys.row(*row)))?;
            let values = super::shard::gather(&[live.rows()], &places)?;
            Ok(RecordBatch::try_new(Arc::clone(&self.schema), [keys, values].concat())?)
        };
        live.iter().map(batch).collect()
    }

    /// Of each key in these files, oldest first, its newest row.
    fn newest_of(&self, read: &[(String, bytes::Bytes)]) -> Vec<Result<RecordBatch>> {
        let mut seen: HashSet<Box<[u8]>> = HashSet::new();
        let mut kept = vec![];
        for (name, body) in read.iter().rev() {
            let batches = match files::decode(name, body, &self.schema) {
                Ok(batches) => batches,
                Err(error) => return vec![Err(error)],
            };
            kept.extend(batches.iter().rev().map(|batch| {
                let keys = self.codec.encode(&batch.columns()[..self.layout.keys.len()])?.rows;
                let is_newest: BooleanArray = keys.iter().map(|key| Some(seen.insert(key.data().into()))).collect();
                Ok(filter_record_batch(batch, &is_newest)?)
            }));
        }
        kept
    }
}

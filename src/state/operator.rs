//! One operator's state from epoch to epoch: restored, touched, saved, taken over.
//!
//! The idea: while an epoch runs, each shard *stages* what it does; [`Operator::save`] writes that as one file, before the
//! commit that names it; only after the commit [`Operator::apply`] takes it over in memory. An epoch that failed is
//! forgotten by [`Operator::discard`], and nothing has changed.
//!
//! Snapshots are written by a task of their own, from rows that nobody changes any more, and take the place of the files
//! they cover in the first commit after they are done.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;
use futures::stream::{self, StreamExt, TryStreamExt};
use tokio::task::JoinHandle;

use super::keys::{KeyCodec, hash, shard_of};
use super::shard::{Delta, Live, Shard, StateRows, gather};
use super::{Layout, StateCommit, StateFile, files};
use crate::checkpoint::StateStore;
use crate::error::{Error, Result};
use crate::plan::time::ticks;
use crate::query::progress::StateProgress;

/// A snapshot is due when the files after the last one have as many rows as it, but at least this many…
const SNAPSHOT_ROWS: u64 = 200_000;
/// … or when there are this many of them, unless `state.snapshot.max-files` says otherwise.
pub const SNAPSHOT_FILES: usize = 200;
/// How many files are read side by side.
const READING: usize = 8;

/// One operator's state: see the module's text.
pub struct Operator {
    layout: Layout,
    schema: SchemaRef,
    codec: Arc<KeyCodec>,
    store: StateStore,
    shards: Vec<Mutex<Shard>>,
    staged: Mutex<BTreeMap<usize, Delta>>,
    files: Mutex<StateCommit>,
    snapshot: Mutex<Option<JoinHandle<Result<StateFile>>>>,
    max_files: usize,
}

impl fmt::Debug for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Operator({}, {} shards)", self.layout.name, self.shards.len())
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Operator {
    /// The state that a commit names, in so many shards.
    ///
    /// A snapshot is due at the latest when `max_files` files follow the last one.
    pub async fn restore(
        layout: Layout,
        store: StateStore,
        commit: &StateCommit,
        shards: usize,
        max_files: usize,
    ) -> Result<Self> {
        let codec = Arc::new(KeyCodec::try_new(&layout.keys, layout.rising)?);
        let schema = layout.schema();
        let operator = Self {
            layout,
            schema,
            codec,
            store,
            shards: (0..shards.max(1)).map(|_| Mutex::default()).collect(),
            staged: Mutex::default(),
            files: Mutex::new(commit.clone()),
            snapshot: Mutex::default(),
            max_files,
        };
        let mut read = stream::iter(commit.files.clone())
            .map(|file| {
                let (store, schema) = (operator.store.clone(), Arc::clone(&operator.schema));
                async move {
                    let bytes = store.get(&file.name).await?;
                    let decoded = tokio::task::spawn_blocking(move || files::decode(&file.name, &bytes, &schema));
                    decoded.await.map_err(|e| Error::internal("reading state ended by itself").caused_by(e))?
                }
            })
            .buffered(READING);
        while let Some(batches) = read.try_next().await? {
            for batch in batches {
                operator.take_in(&batch, commit.closed)?;
            }
        }
        drop(read);
        Ok(operator)
    }

    /// Puts rows of a file into their shards.
    fn take_in(&self, batch: &RecordBatch, closed: Option<i64>) -> Result<()> {
        let (keys, values) = batch.columns().split_at(self.layout.keys.len());
        let encoded = self.codec.encode(keys, batch.num_rows())?;
        let mut parts: Vec<Vec<u32>> = vec![vec![]; self.shards.len()];
        let ages = self.layout.ages_by().map(|column| ticks(batch.column(column))).transpose()?;
        let is_gone = |row: usize| match (closed, &ages) {
            (Some(closed), Some(ages)) if self.layout.is_touched => ages.value(row) <= closed,
            (Some(closed), Some(ages)) => ages.value(row) < closed,
            _ => false,
        };
        for row in 0..batch.num_rows() {
            if !is_gone(row) {
                parts[shard_of(hash(encoded.rows.row(row).data()), self.shards.len())].push(row as u32);
            }
        }
        let all = StateRows { keys: encoded.rows, values: values.to_vec() };
        for (shard, mut rows) in self.shards.iter().zip(parts) {
            rows.sort_by_key(|row| encoded.buckets[*row as usize]);
            let buckets: Vec<i64> = rows.iter().map(|row| encoded.buckets[*row as usize]).collect();
            locked(shard).restore(self.picked(&all, &rows)?, &buckets, &self.layout, &self.codec)?;
        }
        Ok(())
    }

    fn picked(&self, from: &StateRows, rows: &[u32]) -> Result<StateRows> {
        let mut keys = self.codec.empty(rows.len());
        rows.iter().for_each(|row| keys.push(from.keys.row(*row as usize)));
        let places: Vec<(usize, usize)> = rows.iter().map(|row| (0, *row as usize)).collect();
        Ok(StateRows { keys, values: gather(&[from], &places)? })
    }

    /// What the state looks like.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Turns its keys into bytes and back.
    pub fn codec(&self) -> &Arc<KeyCodec> {
        &self.codec
    }

    /// How many shards there are.
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    /// A shard as of the newest commit.
    pub fn shard(&self, index: usize) -> MutexGuard<'_, Shard> {
        locked(&self.shards[index])
    }

    /// Keeps what the epoch under way does to a shard.
    pub fn stage(&self, shard: usize, delta: Delta) {
        locked(&self.staged).insert(shard, delta);
    }

    /// Forgets what an epoch that failed has staged.
    pub fn discard(&self) {
        locked(&self.staged).clear();
    }

    /// Writes what the epoch did; what its commit names.
    pub async fn save(&self, epoch: u64) -> Result<StateCommit> {
        let mut commit = locked(&self.files).clone();
        if let Some(snapshot) = self.finished_snapshot().await {
            commit.files.retain(|file| file.epoch > snapshot.epoch);
            commit.files.insert(0, snapshot);
        }
        let (batches, latest) = self.staged_rows(&mut commit)?;
        if !batches.is_empty() {
            let name = format!("{epoch:020}-{:020}-delta.arrow.zst", self.store.run());
            let schema = Arc::clone(&self.schema);
            commit.files.push(write(&self.store, name, epoch, schema, batches, latest).await?);
        }
        if let (Some(closed), Some(_)) = (commit.closed, self.layout.ages_by()) {
            commit.files.retain(|file| file.latest.is_some_and(|latest| latest >= closed));
        }
        Ok(commit)
    }

    fn staged_rows(&self, commit: &mut StateCommit) -> Result<(Vec<RecordBatch>, Option<i64>)> {
        let staged = locked(&self.staged);
        let (mut batches, mut latest) = (vec![], None);
        for delta in staged.values() {
            commit.closed = commit.closed.max(delta.closes);
            let (first, rows) = (delta.first, delta.buckets.len());
            if first < rows {
                let whole = self.batch(&delta.rows, None)?.slice(first, rows - first);
                latest = latest.max(youngest(&self.layout, &whole)?);
                batches.push(whole);
            }
        }
        Ok((batches, latest))
    }

    /// Rows as they are written: all of them, or those at `places`.
    fn batch(&self, rows: &StateRows, places: Option<&[u32]>) -> Result<RecordBatch> {
        batch(&self.codec, &self.schema, rows, places)
    }

    /// After the commit: takes over what the epoch did.
    pub fn apply(&self, epoch: u64, commit: &StateCommit) -> Result<()> {
        let staged = std::mem::take(&mut *locked(&self.staged));
        for (shard, delta) in staged {
            locked(&self.shards[shard]).apply(&delta, &self.layout, &self.codec)?;
        }
        *locked(&self.files) = commit.clone();
        self.start_snapshot(epoch, commit);
        Ok(())
    }

    /// The first bucket that has rows.
    pub fn earliest(&self) -> Option<i64> {
        self.shards.iter().filter_map(|shard| locked(shard).earliest()).min()
    }

    /// Its name, and what it remembers.
    pub fn progress(&self) -> (String, StateProgress) {
        let mut progress = StateProgress::default();
        for shard in &self.shards {
            progress.rows += locked(shard).rows();
            progress.memory += locked(shard).memory();
        }
        (self.layout.name.clone(), progress)
    }

    fn start_snapshot(&self, epoch: u64, commit: &StateCommit) {
        let mut snapshot = locked(&self.snapshot);
        let is_due = match commit.files.split_first() {
            Some((first, rest)) => {
                let rows: u64 = rest.iter().map(|file| file.rows).sum();
                rows >= first.rows.max(SNAPSHOT_ROWS) || rest.len() >= self.max_files
            }
            None => false,
        };
        if !is_due || snapshot.is_some() {
            return;
        }
        let live: Vec<Live> = self.shards.iter().flat_map(|shard| locked(shard).live()).collect();
        let (store, codec, schema) = (self.store.clone(), Arc::clone(&self.codec), Arc::clone(&self.schema));
        let layout = self.layout.clone();
        let name = format!("{epoch:020}-{:020}-snapshot.arrow.zst", store.run());
        *snapshot = Some(tokio::spawn(async move {
            let (mut batches, mut latest) = (vec![], None);
            for live in &live {
                let (rows, places) = live.parts();
                let whole = batch(&codec, &schema, rows, Some(places))?;
                latest = latest.max(youngest(&layout, &whole)?);
                batches.push(whole);
                tokio::task::yield_now().await;
            }
            write(&store, name, epoch, schema, batches, latest).await
        }));
    }

    async fn finished_snapshot(&self) -> Option<StateFile> {
        let running = {
            let mut snapshot = locked(&self.snapshot);
            snapshot.take_if(|running| running.is_finished())?
        };
        match running.await {
            Ok(Ok(file)) => Some(file),
            Ok(Err(error)) => {
                tracing::warn!(
                    operator = self.layout.name,
                    error = error.chain(),
                    "a snapshot failed; another follows"
                );
                None
            }
            Err(_) => None,
        }
    }

    /// All rows, as of the newest commit.
    pub fn rows(&self) -> Result<Vec<RecordBatch>> {
        let live: Vec<Live> = self.shards.iter().flat_map(|shard| locked(shard).live()).collect();
        live.iter().map(|live| self.batch(live.parts().0, Some(live.parts().1))).collect()
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        if let Some(running) = locked(&self.snapshot).take() {
            running.abort();
        }
    }
}

/// The highest of what says until when a row is of use.
fn youngest(layout: &Layout, batch: &RecordBatch) -> Result<Option<i64>> {
    let Some(column) = layout.ages_by() else { return Ok(None) };
    Ok(arrow::compute::max(&ticks(batch.column(column))?))
}

fn batch(codec: &KeyCodec, schema: &SchemaRef, rows: &StateRows, places: Option<&[u32]>) -> Result<RecordBatch> {
    let columns = match places {
        None => [codec.decode(rows.keys.iter())?, rows.values.clone()].concat(),
        Some(places) => {
            let keys = codec.decode(places.iter().map(|row| rows.keys.row(*row as usize)))?;
            let picked: Vec<(usize, usize)> = places.iter().map(|row| (0, *row as usize)).collect();
            [keys, gather(&[rows], &picked)?].concat()
        }
    };
    Ok(RecordBatch::try_new(Arc::clone(schema), columns)?)
}

async fn write(
    store: &StateStore,
    name: String,
    epoch: u64,
    schema: SchemaRef,
    batches: Vec<RecordBatch>,
    latest: Option<i64>,
) -> Result<StateFile> {
    let rows = batches.iter().map(|batch| batch.num_rows() as u64).sum();
    let encoded = tokio::task::spawn_blocking(move || {
        let whole = concat_batches(&schema, &batches)?;
        let starts = (0..whole.num_rows()).step_by(files::BATCH);
        let cut = |from: usize| whole.slice(from, files::BATCH.min(whole.num_rows() - from));
        files::encode(&schema, &starts.map(cut).collect::<Vec<_>>())
    });
    let body = encoded.await.map_err(|e| Error::internal("writing state ended by itself").caused_by(e))??;
    let bytes = body.len() as u64;
    store.put(&name, body).await?;
    Ok(StateFile { name, epoch, rows, bytes, latest })
}

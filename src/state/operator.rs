//! One operator's state from epoch to epoch: restored, touched, saved, taken over.
//!
//! The idea: while an epoch runs, each shard *stages* what it does; [`Operator::save`] writes that as one file, before the
//! commit that names it; only after the commit [`Operator::apply`] takes it over in memory. An epoch that failed is
//! forgotten by [`Operator::discard`], and nothing has changed.
//!
//! How files become fewer again is the business of `compaction`.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::future::try_join_all;
use futures::stream::{self, StreamExt, TryStreamExt};
use tokio::task::JoinError;

use super::compaction::{Compaction, Kind, Writer};
use super::keys::KeyCodec;
use super::piece::Piece;
use super::shard::{Delta, Live, Shard};
use super::{Layout, StateCommit, files};
use crate::checkpoint::StateStore;
use crate::error::{Error, Result};
use crate::query::progress::StateProgress;

/// How many files of changes there may be, unless `state.snapshot.max-files` says otherwise.
pub const MAX_FILES: usize = 200;
/// From so many rows on, shards are worth a thread each.
const SIDE_BY_SIDE: usize = 8192;
/// How many files are read side by side.
const READING: usize = 4;

/// One operator's state: see the module's text.
pub struct Operator {
    writer: Writer,
    shards: Vec<Mutex<Shard>>,
    staged: Mutex<BTreeMap<usize, Delta>>,
    files: Mutex<StateCommit>,
    compaction: Compaction,
    /// Whether a compaction was running when the epoch under way began, and the one before it.
    compacting: Mutex<(bool, bool)>,
}

impl fmt::Debug for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Operator({}, {} shards)", self.writer.layout.name, self.shards.len())
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn broken_off(error: JoinError) -> Error {
    Error::internal("work on state ended by itself").caused_by(error)
}

/// Rows that stayed came out in their own time, and would come out again with a key that rises.
fn check_ageing(layout: &Layout, commit: &StateCommit) -> Result<()> {
    let rising = layout.rising.and(layout.aged_by());
    match (rising, commit.files.iter().find(|file| file.rows > 0 && file.latest.is_none())) {
        (Some(rising), Some(file)) => {
            Err(files::differs(&file.name, "rows that stay", &format!("rows that go by {rising}")))
        }
        _ => Ok(()),
    }
}

impl Operator {
    /// The state that a commit names, in so many shards.
    ///
    /// Errors: files that are not there, or that hold other columns than the operator keeps now, or rows that were to
    /// stay where they now go.
    pub async fn restore(
        layout: Layout,
        store: StateStore,
        commit: &StateCommit,
        shards: usize,
        max_files: usize,
    ) -> Result<Self> {
        let codec = Arc::new(KeyCodec::try_new(&layout.keys, layout.rising)?);
        let mut commit = commit.clone();
        check_ageing(&layout, &commit)?;
        if commit.aged_by != layout.aged_by() {
            // What was closed by another key says nothing of this one; files that still hold rows of it are refused below.
            (commit.closed, commit.aged_by) = (None, layout.aged_by());
        }
        let operator = Self {
            writer: Writer { schema: layout.schema(), layout, codec, store },
            shards: (0..shards.max(1)).map(|_| Mutex::default()).collect(),
            staged: Mutex::default(),
            files: Mutex::new(commit.clone()),
            compaction: Compaction::new(max_files),
            compacting: Mutex::default(),
        };
        let pieces = Arc::new(operator.read(&commit, shards.max(1)).await?);
        let filled = (0..shards.max(1)).map(|number| {
            let (pieces, writer) = (Arc::clone(&pieces), operator.writer.clone());
            tokio::task::spawn_blocking(move || {
                let mut shard = Shard::default();
                shard.fill(&pieces, number, &writer.layout)?;
                Ok::<_, Error>(shard)
            })
        });
        for (shard, filled) in operator.shards.iter().zip(try_join_all(filled).await.map_err(broken_off)?) {
            *locked(shard) = filled?;
        }
        if let Some(newest) = commit.files.iter().map(|file| file.epoch).max() {
            operator.compact(newest, &commit);
        }
        Ok(operator)
    }

    /// The rows of all files, newest first, dealt out to shards.
    async fn read(&self, commit: &StateCommit, shards: usize) -> Result<Vec<Piece>> {
        let closed = commit.closed;
        let files = commit.files.iter().rev().cloned().map(|file| {
            let writer = self.writer.clone();
            async move {
                let bytes = writer.store.get(&file).await?;
                let read = tokio::task::spawn_blocking(move || {
                    let batches = files::decode(&file.name, &bytes, &writer.schema)?;
                    batches.iter().rev().map(|batch| writer.piece(batch, closed, shards)).collect::<Result<Vec<_>>>()
                });
                read.await.map_err(broken_off)?
            }
        });
        Ok(stream::iter(files).buffered(READING).try_collect::<Vec<_>>().await?.into_iter().flatten().collect())
    }

    /// What the state looks like.
    pub fn layout(&self) -> &Layout {
        &self.writer.layout
    }

    /// Turns its keys into bytes and back.
    pub fn codec(&self) -> &Arc<KeyCodec> {
        &self.writer.codec
    }

    /// A shard as of the newest commit.
    pub fn shard(&self, index: usize) -> MutexGuard<'_, Shard> {
        locked(&self.shards[index])
    }

    /// Keeps what the epoch under way does to a shard.
    pub fn stage(&self, shard: usize, delta: Delta) {
        locked(&self.staged).insert(shard, delta);
    }

    /// Whether the epoch under way has staged what it does to a shard.
    pub fn has_staged(&self, shard: usize) -> bool {
        locked(&self.staged).contains_key(&shard)
    }

    /// Forgets what an epoch that failed has staged.
    pub fn discard(&self) {
        self.compaction.end_turn();
        locked(&self.staged).clear();
    }

    /// Writes what the epoch did; what its commit names.
    pub async fn save(&self, epoch: u64) -> Result<StateCommit> {
        let mut commit = locked(&self.files).clone();
        self.compaction.take(&mut commit, &self.writer.layout.name).await;
        let (changed, closes) = self.staged_rows();
        commit.closed = commit.closed.max(closes);
        self.compaction.begin_turn(changed.iter().map(|live| live.count() as u64).sum());
        if !changed.is_empty() {
            let write =
                move |writer: &Writer| changed.into_iter().map(|live| writer.of_live(&live)).collect::<Vec<_>>();
            commit.files.extend(self.writer.write(epoch, Kind::Delta, write).await?);
        }
        if let (Some(closed), Some(_)) = (commit.closed, self.writer.layout.ages_by()) {
            commit.files.retain(|file| file.latest.is_some_and(|latest| latest >= closed));
        }
        Ok(commit)
    }

    fn staged_rows(&self) -> (Vec<Live>, Option<i64>) {
        let staged = locked(&self.staged);
        let changed = staged.values().filter(|delta| delta.first < delta.buckets.len()).map(Delta::changed).collect();
        (changed, staged.values().filter_map(|delta| delta.closes).max())
    }

    /// After the commit: takes over what the epoch did.
    pub fn apply(&self, epoch: u64, commit: &StateCommit) -> Result<()> {
        self.compaction.end_turn();
        let staged = std::mem::take(&mut *locked(&self.staged));
        let apply = |shard: usize, delta: &Delta| locked(&self.shards[shard]).apply(delta, &self.writer.layout);
        if staged.values().map(|delta| delta.buckets.len()).sum::<usize>() < SIDE_BY_SIDE {
            staged.iter().try_for_each(|(shard, delta)| apply(*shard, delta))?;
        } else {
            std::thread::scope(|scope| {
                let running: Vec<_> =
                    staged.iter().map(|(shard, delta)| scope.spawn(move || apply(*shard, delta))).collect();
                let ended = |one: std::thread::ScopedJoinHandle<'_, Result<()>>| {
                    one.join().unwrap_or_else(|_| Err(Error::internal("taking over state ended by itself")))
                };
                running.into_iter().try_for_each(ended)
            })?;
        }
        *locked(&self.files) = commit.clone();
        self.compact(epoch, commit);
        Ok(())
    }

    /// After a commit: begins what is due.
    fn compact(&self, epoch: u64, commit: &StateCommit) {
        self.compaction.start(epoch, commit, &self.writer, || self.live());
        let mut compacting = locked(&self.compacting);
        *compacting = (self.compaction.is_running(), compacting.0);
    }

    fn live(&self) -> Vec<Live> {
        self.shards.iter().flat_map(|shard| locked(shard).live()).collect()
    }

    /// Whether any row is complete at this bound.
    pub fn would_close(&self, bound: i64) -> bool {
        self.shards.iter().any(|shard| locked(shard).would_close(bound, &self.writer.layout))
    }

    /// Its name, and what it remembers.
    pub fn progress(&self) -> (String, StateProgress) {
        let mut progress = StateProgress { compacting: locked(&self.compacting).1, ..StateProgress::default() };
        for shard in &self.shards {
            progress.rows += locked(shard).rows();
            progress.memory += locked(shard).memory();
        }
        (self.writer.layout.name.clone(), progress)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::StateFile;
    use arrow::datatypes::{DataType, Field};

    #[test]
    fn rows_that_stay_are_not_taken_for_rows_that_go() {
        let minute = Arc::new(Field::new("minute", DataType::Int64, true));
        let mut layout = Layout { keys: vec![minute], ..Layout::named("first-1") };
        let file = StateFile { name: "the file".into(), epoch: 1, rows: 1, bytes: 1, latest: None };
        let mut commit = StateCommit { files: vec![file], ..StateCommit::default() };
        check_ageing(&layout, &commit).unwrap();
        layout.rising = Some(0);
        let error = check_ageing(&layout, &commit).unwrap_err().to_string();
        assert!(error.contains("has rows that stay, and the query now needs rows that go by minute"), "{error}");
        commit.files[0].rows = 0;
        check_ageing(&layout, &commit).unwrap();
        (commit.files[0].rows, commit.files[0].latest) = (1, Some(60));
        check_ageing(&layout, &commit).unwrap();
    }
}

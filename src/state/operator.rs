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

use datafusion::common::runtime::SpawnedTask;
use futures::future::try_join_all;
use futures::stream::{self, StreamExt, TryStreamExt};
use tokio::task::spawn_blocking;

use super::compaction::{Compaction, Kind, Writer};
use super::keys::KeyCodec;
use super::piece::Piece;
use super::shard::{Delta, Live, Shard};
use super::{Layout, StateCommit, StateFile, broken_off, files};
use crate::checkpoint::StateStore;
use crate::error::Result;
use crate::query::progress::StateProgress;

/// How many files of changes there may be, unless `state.snapshot.max-files` says otherwise.
pub const MAX_FILES: usize = 200;
/// How many files are read side by side, and how many portions of files…
const READING: usize = 4;
/// … of about so many rows each.
const PORTION_ROWS: u64 = 500_000;

/// One operator's state: see the module's text.
pub struct Operator {
    writer: Writer,
    shards: Vec<Arc<Mutex<Shard>>>,
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

/// Files in portions, the newest first.
fn portions(files: &[StateFile]) -> impl Iterator<Item = Vec<StateFile>> {
    let (mut portions, mut rows) = (BTreeMap::<u64, Vec<StateFile>>::new(), 0);
    for file in files.iter().rev() {
        portions.entry(rows / PORTION_ROWS).or_default().push(file.clone());
        rows += file.rows;
    }
    portions.into_values()
}

/// The rows of files, in their order but each from its end, dealt out to shards.
async fn read(writer: Writer, files: Vec<StateFile>, closed: Option<i64>, shards: usize) -> Result<Vec<Piece>> {
    let pieces = files.into_iter().map(|file| {
        let writer = writer.clone();
        async move {
            let bytes = writer.store.get(&file).await?;
            let read = spawn_blocking(move || {
                let batches = files::decode(&file.name, &bytes, &writer.schema)?;
                batches.iter().rev().map(|batch| writer.piece(batch, closed, shards)).collect::<Result<Vec<_>>>()
            });
            read.await.map_err(broken_off)?
        }
    });
    Ok(stream::iter(pieces).buffered(READING).try_collect::<Vec<_>>().await?.into_iter().flatten().collect())
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
        let mut commit = commit.clone();
        check_ageing(&layout, &commit)?;
        if commit.aged_by != layout.aged_by() {
            // What was closed by another key says nothing of this one; files that still hold rows of it are refused below.
            (commit.closed, commit.aged_by) = (None, layout.aged_by());
        }
        let operator = Self {
            writer: Writer::try_new(layout, store)?,
            shards: (0..shards.max(1)).map(|_| Arc::default()).collect(),
            staged: Mutex::default(),
            files: Mutex::new(commit.clone()),
            compaction: Compaction::new(max_files),
            compacting: Mutex::default(),
        };
        for (shard, filled) in operator.shards.iter().zip(operator.filled(&commit).await?) {
            *locked(shard) = filled;
        }
        if let Some(newest) = commit.files.iter().map(|file| file.epoch).max() {
            operator.compact(newest, &commit);
        }
        Ok(operator)
    }

    /// The shards with the rows of all files. What is read is taken over while the next is read, so that not all of it is
    /// in memory twice.
    async fn filled(&self, commit: &StateCommit) -> Result<Vec<Shard>> {
        let shards = self.shards.len();
        let rows: u64 = commit.files.iter().map(|file| file.rows).sum();
        let empty = (0..shards).map(|_| {
            let writer = self.writer.clone();
            spawn_blocking(move || Shard::of_files(rows as usize / shards, &writer.layout))
        });
        let mut filled = try_join_all(empty).await.map_err(broken_off)?;
        let read = portions(&commit.files)
            .map(|files| SpawnedTask::spawn(read(self.writer.clone(), files, commit.closed, shards)).join());
        let mut read = stream::iter(read).buffered(READING);
        while let Some(pieces) = read.next().await {
            let pieces = Arc::new(pieces.map_err(broken_off)??);
            let filling = filled.into_iter().enumerate().map(|(number, mut shard)| {
                let (pieces, writer) = (Arc::clone(&pieces), self.writer.clone());
                spawn_blocking(move || shard.fill(&pieces, number, &writer.layout).map(|()| shard))
            });
            filled = try_join_all(filling).await.map_err(broken_off)?.into_iter().collect::<Result<_>>()?;
        }
        let settling = filled.into_iter().map(|mut shard| {
            let writer = self.writer.clone();
            spawn_blocking(move || {
                shard.settle(&writer.layout);
                shard
            })
        });
        try_join_all(settling).await.map_err(broken_off)
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
        locked(&self.staged).clear();
    }

    /// Writes what the epoch did; what its commit names.
    pub async fn save(&self, epoch: u64) -> Result<StateCommit> {
        let mut commit = locked(&self.files).clone();
        self.compaction.take(&mut commit, &self.writer.layout.name).await;
        let (changed, closes) = self.staged_rows();
        commit.closed = commit.closed.max(closes);
        self.compaction.keep_pace(changed.iter().map(|live| live.count() as u64).sum());
        if !changed.is_empty() {
            let writer = self.writer.clone();
            // Several operators' are written side by side.
            let written =
                SpawnedTask::spawn(async move { writer.write(epoch, Kind::Delta, writer.live(changed, None)).await });
            commit.files.extend(written.join().await.map_err(broken_off)??);
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

    /// After the commit: takes over what the epoch did, the shards side by side.
    pub async fn apply(&self, epoch: u64, commit: &StateCommit) -> Result<()> {
        let staged = std::mem::take(&mut *locked(&self.staged));
        let applied = staged.into_iter().map(|(number, delta)| {
            let (shard, writer) = (Arc::clone(&self.shards[number]), self.writer.clone());
            SpawnedTask::spawn(async move { locked(&shard).apply(&delta, &writer.layout) }).join()
        });
        try_join_all(applied).await.map_err(broken_off)?.into_iter().collect::<Result<()>>()?;
        *locked(&self.files) = commit.clone();
        self.compact(epoch, commit);
        Ok(())
    }

    /// After a commit: begins what is due, if files are the operator's to write.
    fn compact(&self, epoch: u64, commit: &StateCommit) {
        if self.writer.store.is_read_only() {
            return;
        }
        if !self.compaction.is_running() {
            self.writer.store.settle();
        }
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
    use arrow::array::{Int64Array, RecordBatch};
    use arrow::datatypes::{DataType, Field};
    use object_store::ObjectStore;
    use object_store::memory::InMemory;

    use super::*;
    use crate::error::Error;

    #[tokio::test]
    async fn files_become_fewer_unless_they_can_only_be_read() {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let ours = StateStore::new(Arc::clone(&store), "state".into(), 1, 0);
        let layout =
            Layout { keys: vec![Arc::new(Field::new("number", DataType::Int64, true))], ..Layout::named("test-1") };
        let writer = Writer::try_new(layout.clone(), ours.clone()).unwrap();
        let mut commit = StateCommit::default();
        for epoch in 1..=4 {
            let numbers = Arc::new(Int64Array::from_iter_values([0, epoch]));
            let rows = RecordBatch::try_new(layout.schema(), vec![numbers]).map_err(Error::from);
            let written = writer.write(epoch as u64, Kind::Delta, stream::iter([rows]).boxed()).await.unwrap();
            commit.files.extend(written);
        }
        let theirs = StateStore::read_only(store, "state".into());
        for (store, is_compacting) in [(ours, true), (theirs, false)] {
            let operator = Operator::restore(layout.clone(), store, &commit, 2, 2).await.unwrap();
            assert_eq!((operator.progress().1.rows, operator.compaction.is_running()), (5, is_compacting));
        }
    }

    #[test]
    fn files_are_read_in_portions_from_the_newest_on() {
        let file = |epoch: u64, rows| StateFile { name: String::new(), epoch, rows, bytes: 1, latest: None };
        let cases: &[(&[u64], &[&[u64]])] = &[
            (&[], &[]),
            (&[1], &[&[0]]),
            (&[1, 2, 3], &[&[2, 1, 0]]),
            (&[PORTION_ROWS, PORTION_ROWS], &[&[1], &[0]]),
            (&[1, PORTION_ROWS * 3, 1, 1], &[&[3, 2, 1], &[0]]),
            (&[1, PORTION_ROWS - 1, 1, PORTION_ROWS], &[&[3], &[2, 1], &[0]]),
        ];
        for (rows, expected) in cases {
            let files: Vec<_> = rows.iter().enumerate().map(|(epoch, rows)| file(epoch as u64, *rows)).collect();
            let epochs = |files: Vec<StateFile>| files.iter().map(|file| file.epoch).collect::<Vec<_>>();
            assert_eq!(portions(&files).map(epochs).collect::<Vec<_>>(), *expected, "{rows:?}");
        }
    }

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

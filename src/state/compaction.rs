//! Fewer files: beside the running epochs, files of changes become one, and now and then all rows do.
//!
//! The idea: when the files after the last snapshot have as many rows as it, all rows are written as a new *snapshot*, so
//! every row is written twice at most on average. When they are many but small, just they are *merged*: of each key the
//! newest row. Both work on what nobody changes any more, in a task of their own, and take the place of what they cover in
//! the first commit after they are done. Both may be much longer than an epoch, and go no faster than they must to be
//! done before the next is due: each epoch pays for its share.
//!
//! They compute on the runtime's threads, a little at a time, and not on one of their own: with more threads that compute
//! than there are cores, two of an epoch's may have to share one, and the operating system may take dozens of milliseconds
//! to find them another.
//!
//! Not promised: when they are done. A crash loses one that was under way, and another follows.

use std::future::ready;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::compute::filter_record_batch;
use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use datafusion::common::runtime::SpawnedTask;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, spawn_blocking, yield_now};

use super::files::parts;
use super::keys::KeyCodec;
use super::newest::Newest;
use super::piece::Piece;
use super::shard::Live;
use super::{Layout, StateCommit, StateFile, broken_off, files};
use crate::checkpoint::StateStore;
use crate::error::{Error, Result};
use crate::plan::time::ticks;

/// A snapshot is due when the files after the last one have as many rows as it, but at least this many.
const SNAPSHOT_ROWS: u64 = 200_000;
/// Rows in a file, about: a snapshot may have several.
const FILE_ROWS: u64 = 500_000;
/// Snapshots and merges are made in parts of so many rows, less than a millisecond of work, and others get their turn in
/// between. Each part of a snapshot, and each file of a merge, waits until the epochs have changed enough rows…
const PART_ROWS: usize = 8 * 1024;
/// … which is a hundred for so many of them: a snapshot is done when four fifths of the way to the next are…
const PACE: u64 = 125;
/// … but not longer than this: there may be no epoch for a while.
const PATIENCE: Duration = Duration::from_millis(100);

/// Twice as many files as are merged…
const URGENT_FILES: usize = 2;
/// … or four times the rows of a snapshot are more than there ever are if something is done in time.
const URGENT_ROWS: u64 = 4;

/// How one operator's files are written.
#[derive(Debug, Clone)]
pub(super) struct Writer {
    pub(super) layout: Layout,
    pub(super) schema: SchemaRef,
    pub(super) codec: Arc<KeyCodec>,
    pub(super) store: StateStore,
}

/// What a file is; its name says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// What an epoch changed.
    Delta,
    /// All rows.
    Snapshot,
    /// What several epochs changed.
    Merged,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Delta => "delta",
            Self::Snapshot => "snapshot",
            Self::Merged => "merged",
        }
    }
}

/// What is due after a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    Snapshot,
    Merge,
}

/// Files in the place of those of the epochs after `after` and up to `epoch`.
#[derive(Debug)]
struct Compacted {
    after: Option<u64>,
    epoch: u64,
    files: Vec<StateFile>,
}

/// How many rows may be written by now.
#[derive(Debug)]
pub(super) struct Pace {
    allowed: Mutex<u64>,
    more: Notify,
    patience: Duration,
}

impl Pace {
    fn new(patience: Duration) -> Self {
        Self { allowed: Mutex::default(), more: Notify::new(), patience }
    }

    fn allowed(&self) -> MutexGuard<'_, u64> {
        self.allowed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn allow(&self, rows: u64) {
        let mut allowed = self.allowed();
        *allowed = allowed.saturating_add(rows);
        self.more.notify_one();
    }

    /// Waits until so many are allowed, for as long as there is patience.
    async fn take(&self, rows: u64) {
        let enough = async {
            while *self.allowed() < rows {
                self.more.notified().await;
            }
        };
        // Whoever has waited for so long goes on without.
        let _ = tokio::time::timeout(self.patience, enough).await;
        let mut allowed = self.allowed();
        *allowed = allowed.saturating_sub(rows);
    }
}

/// What is under way; it ends when nobody is left to take what it makes.
#[derive(Debug)]
struct Running {
    task: JoinHandle<Result<Compacted>>,
    pace: Arc<Pace>,
    /// Rows that each epoch allows at least, however few it has changed: its file counts, too.
    least: u64,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// How many of the files, the first ones, are a snapshot: all of these have its epoch.
fn snapshot_files(commit: &StateCommit) -> usize {
    commit.files.iter().take_while(|file| file.epoch == commit.files[0].epoch).count()
}

/// The files after the last snapshot.
#[derive(Debug)]
struct Since {
    files: usize,
    rows: u64,
    /// With so many rows they are due to become one with it.
    snapshot_rows: u64,
}

impl Since {
    fn of(commit: &StateCommit) -> Self {
        let (snapshot, changes) = commit.files.split_at(snapshot_files(commit));
        let rows = |files: &[StateFile]| files.iter().map(|file| file.rows).sum::<u64>();
        Self { files: changes.len(), rows: rows(changes), snapshot_rows: rows(snapshot).max(SNAPSHOT_ROWS) }
    }
}

/// At most one task at a time.
#[derive(Debug)]
pub(super) struct Compaction {
    running: Mutex<Option<Running>>,
    /// How many files of changes there may be.
    max_files: usize,
}

impl Compaction {
    pub(super) fn new(max_files: usize) -> Self {
        Self { running: Mutex::default(), max_files: max_files.max(2) }
    }

    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether something is under way, or done and not taken yet.
    pub(super) fn is_running(&self) -> bool {
        self.running().is_some()
    }

    fn due(&self, commit: &StateCommit) -> Option<Due> {
        let since = Since::of(commit);
        match since.rows {
            rows if rows >= since.snapshot_rows => Some(Due::Snapshot),
            _ if since.files >= self.max_files => Some(Due::Merge),
            _ => None,
        }
    }

    /// Whether files have become so many, or so large, that what is under way has to be waited for.
    fn is_urgent(&self, commit: &StateCommit) -> bool {
        let since = Since::of(commit);
        since.files > URGENT_FILES * self.max_files || since.rows > URGENT_ROWS * since.snapshot_rows
    }

    /// Starts what is due after the commit of `epoch`; `live` gives all rows as of it.
    pub(super) fn start(&self, epoch: u64, commit: &StateCommit, writer: &Writer, live: impl FnOnce() -> Vec<Live>) {
        let mut running = self.running();
        let Some(due) = self.due(commit).filter(|_| running.is_none()) else { return };
        let pace = Arc::new(Pace::new(PATIENCE));
        let (writer, files, paced) = (writer.clone(), commit.files.clone(), Arc::clone(&pace));
        let task = match due {
            Due::Snapshot => {
                let live = live();
                tokio::spawn(async move {
                    let rows = writer.live(live, Some(paced));
                    Ok(Compacted { after: None, epoch, files: writer.write(epoch, Kind::Snapshot, rows).await? })
                })
            }
            Due::Merge => {
                let changes = files[snapshot_files(commit)..].to_vec();
                tokio::spawn(async move {
                    let after = files.first().map(|file| file.epoch);
                    let rows = writer.merged(changes, paced).await?;
                    Ok(Compacted { after, epoch, files: writer.write(epoch, Kind::Merged, rows).await? })
                })
            }
        };
        let rows: u64 = commit.files.iter().map(|file| file.rows).sum();
        *running = Some(Running { task, pace, least: rows / self.max_files as u64 });
    }

    /// An epoch has changed so many rows: what is under way may go on.
    pub(super) fn keep_pace(&self, changed: u64) {
        if let Some(running) = self.running().as_ref() {
            running.pace.allow(running.least.max(changed * PACE / 100));
        }
    }

    /// Puts what is done in the place of what it covers.
    /// Where that is urgent, it is waited for: runs of few epochs would never see one done.
    pub(super) async fn take(&self, commit: &mut StateCommit, operator: &str) {
        let is_urgent = self.is_urgent(commit);
        let is_done = |running: &mut Running| is_urgent || running.task.is_finished();
        let Some(mut done) = self.running().take_if(is_done) else { return };
        done.pace.allow(u64::MAX);
        match (&mut done.task).await {
            Ok(Ok(Compacted { after, epoch, files })) => {
                let is_before = |other: &StateFile| after.is_some_and(|after| other.epoch <= after);
                commit.files.retain(|other| is_before(other) || other.epoch > epoch);
                let place = commit.files.iter().take_while(|other| is_before(other)).count();
                commit.files.splice(place..place, files);
            }
            Ok(Err(error)) => {
                tracing::warn!(
                    operator,
                    error = error.chain(),
                    "files of state were not made fewer; another try follows"
                );
            }
            Err(error) => tracing::warn!(operator, %error, "making files of state fewer broke off"),
        }
    }
}

/// Batches of rows to be written.
type Batches = BoxStream<'static, Result<RecordBatch>>;

/// What a file has, and the highest of what says until when a row is of use.
struct Encoded {
    body: Bytes,
    rows: u64,
    latest: Option<i64>,
}

async fn stored(storing: Option<SpawnedTask<Result<StateFile>>>) -> Result<Option<StateFile>> {
    let Some(storing) = storing else { return Ok(None) };
    storing.join().await.map_err(broken_off)?.map(Some)
}

impl Writer {
    /// Of files of this layout, into this store.
    pub(super) fn try_new(layout: Layout, store: StateStore) -> Result<Self> {
        let codec = Arc::new(KeyCodec::try_new(&layout.keys, layout.rising)?);
        Ok(Self { schema: layout.schema(), codec, layout, store })
    }

    /// Live rows, at this pace if there is one.
    pub(super) fn live(&self, live: Vec<Live>, pace: Option<Arc<Pace>>) -> Batches {
        let writer = self.clone();
        let parts = stream::iter(live.into_iter().flat_map(|live| live.parts(PART_ROWS)));
        let batches = parts.then(move |part| {
            let (writer, pace) = (writer.clone(), pace.clone());
            async move {
                if let Some(pace) = pace {
                    pace.take(part.count() as u64).await;
                }
                writer.of_live(&part)
            }
        });
        batches.boxed()
    }

    /// Of each key in these files the newest row, at this pace.
    async fn merged(&self, files: Vec<StateFile>, pace: Arc<Pace>) -> Result<Batches> {
        let mut read = vec![];
        for file in files.into_iter().rev() {
            let body = self.store.get(&file).await?;
            read.push((file, body));
        }
        let schema = Arc::clone(&self.schema);
        let decoded = stream::iter(read).then(move |(file, body)| {
            let (pace, schema) = (Arc::clone(&pace), Arc::clone(&schema));
            async move {
                pace.take(file.rows).await;
                // A file may be large.
                let decoded = spawn_blocking(move || files::decode(&file.name, &body, &schema)).await;
                let batches = decoded.map_err(broken_off)??.into_iter().rev();
                Ok::<_, Error>(stream::iter(batches.flat_map(|batch| parts(batch, PART_ROWS)).map(Ok)))
            }
        });
        let decoded: Batches = decoded.try_flatten().boxed();
        let newest = Newest::new(Arc::clone(&self.codec), None);
        let merged = stream::try_unfold((decoded, newest), async |(mut rows, mut newest)| {
            let Some(batch) = rows.try_next().await? else {
                // To let go of much takes its time, too.
                spawn_blocking(move || drop(newest)).await.map_err(broken_off)?;
                return Ok(None);
            };
            let more = batch.num_rows();
            if !newest.has_room(more) {
                newest = spawn_blocking(move || newest.with_room(more)).await.map_err(broken_off)?;
            }
            Ok::<_, Error>(Some((newest.of(&batch)?, (rows, newest))))
        });
        Ok(merged.boxed())
    }

    /// Writes batches as files of this kind.
    pub(super) async fn write(&self, epoch: u64, kind: Kind, batches: Batches) -> Result<Vec<StateFile>> {
        let mut batches = batches.try_filter(|batch| ready(batch.num_rows() > 0)).boxed();
        let (mut files, mut storing) = (vec![], None);
        while let Some(Encoded { body, rows, latest }) = self.encoded(&mut batches).await? {
            let (store, bytes) = (self.store.clone(), body.len() as u64);
            // The next one is made meanwhile.
            files.extend(stored(storing.take()).await?);
            storing = Some(SpawnedTask::spawn(async move {
                let name = store.put(epoch, kind.name(), body, kind == Kind::Delta).await?;
                Ok(StateFile { name, epoch, rows, bytes, latest })
            }));
        }
        files.extend(stored(storing).await?);
        Ok(files)
    }

    /// The next file's worth of batches, if there are more: without rows, nothing would say until when a file is of use.
    async fn encoded(&self, batches: &mut Batches) -> Result<Option<Encoded>> {
        let Some(first) = batches.try_next().await? else { return Ok(None) };
        let (mut encoder, mut rows, mut latest) = (files::Encoder::try_new(&self.schema)?, 0, None);
        let mut next = Some(first);
        while let Some(batch) = next {
            latest = latest.max(self.youngest(&batch)?);
            rows += batch.num_rows() as u64;
            encoder.write(&batch)?;
            yield_now().await;
            next = if rows < FILE_ROWS { batches.try_next().await? } else { None };
        }
        Ok(Some(Encoded { body: encoder.finish()?, rows, latest }))
    }

    /// Rows of a file, dealt out to shards, but those that are gone.
    pub(super) fn piece(&self, batch: &RecordBatch, closed: Option<i64>, shards: usize) -> Result<Piece> {
        let horizon = self.layout.horizon(closed);
        let there = horizon.map(|horizon| horizon.there(batch)).transpose()?;
        let is_wanted = |row: usize| there.as_ref().is_none_or(|there| there.value(row));
        Piece::try_new(&self.codec, batch, shards, is_wanted)
    }

    /// The highest of what says until when a row is of use.
    fn youngest(&self, batch: &RecordBatch) -> Result<Option<i64>> {
        let Some(column) = self.layout.ages_by() else { return Ok(None) };
        Ok(arrow::compute::max(&ticks(batch.column(column))?))
    }

    /// Rows as they are written.
    fn of_live(&self, live: &Live) -> Result<RecordBatch> {
        let (among, alive) = live.among();
        // Few are dead: to decode their keys, too, is less than to look for the others one by one.
        let keys = self.codec.decode(among.clone().map(|row| live.rows().keys.row(row)))?;
        let values = live.rows().values.iter().map(|column| column.slice(among.start, among.len()));
        let rows = RecordBatch::try_new(Arc::clone(&self.schema), keys.into_iter().chain(values).collect())?;
        Ok(filter_record_batch(&rows, &alive)?)
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use arrow::array::Int64Array;
    use arrow::datatypes::{DataType, Field};
    use futures::FutureExt;
    use object_store::memory::InMemory;
    use tokio::sync::oneshot::error::TryRecvError;

    use super::*;

    #[tokio::test]
    async fn a_file_is_named_only_if_it_has_rows() {
        let minute = Arc::new(Field::new("minute", DataType::Int64, true));
        let layout = Layout { keys: vec![minute], rising: Some(0), ..Layout::named("test-1") };
        let store = StateStore::new(Arc::new(InMemory::new()), "state".into(), 1, 0);
        let writer = Writer::try_new(layout, store).unwrap();
        let rows = |writer: &Writer, rows: usize| {
            let minutes = Arc::new(Int64Array::from_iter_values(0..rows as i64));
            RecordBatch::try_new(Arc::clone(&writer.schema), vec![minutes]).map_err(Error::from)
        };
        // A snapshot whose last rows have gone since, just where a file was full.
        let batches = [0, FILE_ROWS as usize, 0, 0].map(|many| rows(&writer, many));
        let files = writer.write(7, Kind::Snapshot, stream::iter(batches).boxed()).await.unwrap();
        let named: Vec<_> = files.iter().map(|file| (file.rows, file.latest)).collect();
        assert_eq!(named, [(FILE_ROWS, Some(FILE_ROWS as i64 - 1))]);
    }

    #[tokio::test]
    async fn what_is_waited_for_ends_with_whoever_waits() {
        let compaction = Compaction::new(2);
        let (held, mut is_held) = tokio::sync::oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            let _held = held;
            pending().await
        });
        *compaction.running() = Some(Running { task, pace: Arc::new(Pace::new(PATIENCE)), least: 0 });
        let file = |epoch| StateFile { name: String::new(), epoch, rows: 1, bytes: 1, latest: None };
        let mut commit = StateCommit { files: (0..6).map(file).collect(), ..StateCommit::default() };
        assert!(compaction.is_urgent(&commit));
        assert_eq!(compaction.take(&mut commit, "test-1").now_or_never(), None);
        yield_now().await;
        assert_eq!(is_held.try_recv(), Err(TryRecvError::Closed));
    }

    #[test]
    fn what_is_due_and_urgent_goes_by_rows_and_by_files() {
        let compaction = Compaction::new(3);
        let commit = |rows: &[u64]| {
            let file = |(epoch, rows): (usize, &u64)| StateFile {
                name: epoch.to_string(),
                epoch: epoch as u64,
                rows: *rows,
                bytes: 1,
                latest: None,
            };
            StateCommit { files: rows.iter().enumerate().map(file).collect(), ..StateCommit::default() }
        };
        let cases: &[(&[u64], _, _)] = &[
            (&[], None, false),
            (&[SNAPSHOT_ROWS], None, false),
            (&[10, SNAPSHOT_ROWS - 1], None, false),
            (&[10, SNAPSHOT_ROWS], Some(Due::Snapshot), false),
            (&[SNAPSHOT_ROWS * 2, SNAPSHOT_ROWS, SNAPSHOT_ROWS], Some(Due::Snapshot), false),
            (&[SNAPSHOT_ROWS * 2, SNAPSHOT_ROWS * 8], Some(Due::Snapshot), false),
            (&[SNAPSHOT_ROWS * 2, SNAPSHOT_ROWS * 8, 1], Some(Due::Snapshot), true),
            (&[10, 1, 1, 1], Some(Due::Merge), false),
            (&[10, 1, 1, 1, 1, 1, 1], Some(Due::Merge), false),
            (&[10, 1, 1, 1, 1, 1, 1, 1], Some(Due::Merge), true),
        ];
        for (rows, due, is_urgent) in cases {
            let commit = commit(rows);
            assert_eq!((compaction.due(&commit), compaction.is_urgent(&commit)), (*due, *is_urgent), "{rows:?}");
        }
    }

    #[tokio::test]
    async fn a_snapshot_uses_up_what_epochs_allow_and_goes_on_without_any() {
        let pace = Pace::new(Duration::ZERO);
        pace.take(5).await;
        pace.allow(10);
        pace.take(4).await;
        assert_eq!(*pace.allowed(), 6);
        pace.take(7).await;
        assert_eq!(*pace.allowed(), 0);
        // Who cannot wait any longer allows all of it, whatever is allowed already.
        pace.allow(1);
        pace.allow(u64::MAX);
        pace.take(4).await;
        assert_eq!(*pace.allowed(), u64::MAX - 4);
    }

    #[tokio::test]
    async fn a_snapshot_is_woken_by_an_epoch_that_allows_enough() {
        // It waits for good if it is not.
        let pace = Pace::new(Duration::MAX);
        let asked = async {
            for _ in 0..1000 {
                pace.take(4).await;
            }
        };
        let allowed = async {
            for _ in 0..2000 {
                pace.allow(2);
                yield_now().await;
            }
        };
        tokio::join!(asked, allowed);
        assert_eq!(*pace.allowed(), 0);
    }
}

//! Fewer files: beside the running epochs, files of changes become one, and now and then all rows do.
//!
//! The idea: when the files after the last snapshot have as many rows as it, all rows are written as a new *snapshot*, so
//! every row is written twice at most on average. When they are many but small, just they are *merged*: of each key the
//! newest row. Both work on what nobody changes any more, in a task of their own, and take the place of what they cover in
//! the first commit after they are done. Both may be much longer than an epoch, and go no faster than they must to be
//! done before the next is due: each epoch pays for its share, while its own rows are written.
//!
//! Not promised: when that is. A crash loses one that was under way, and another follows.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::compute::filter_record_batch;
use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use tokio::task::JoinHandle;

use super::keys::KeyCodec;
use super::newest::newest;
use super::piece::Piece;
use super::shard::Live;
use super::{Layout, StateCommit, StateFile, files};
use crate::checkpoint::StateStore;
use crate::error::{Error, Result};
use crate::plan::time::ticks;

/// A snapshot is due when the files after the last one have as many rows as it, but at least this many.
const SNAPSHOT_ROWS: u64 = 200_000;
/// Rows in a file, about: a snapshot may have several.
const FILE_ROWS: u64 = 500_000;
/// A snapshot is written in parts of so many rows, less than a millisecond of work, and a merge file by file. Each waits
/// until the epochs have changed enough rows…
const PART_ROWS: usize = 8 * 1024;
/// … which is a hundred for so many of them: a snapshot is done when four fifths of the way to the next are…
const PACE: u64 = 125;
/// … but not longer than this: there may be no epoch for a while.
const PATIENCE: Duration = Duration::from_millis(100);
/// Of so many rows as the last snapshot has, one may be left over from the epochs' turns: more is written at any time, as
/// otherwise it would not be done before the next is due.
const LEFT_OVER: u64 = 8;

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

/// How many rows may be written, and when.
#[derive(Debug)]
struct Pace {
    turn: Mutex<Turn>,
    begun: Condvar,
    patience: Duration,
}

/// A turn lasts while an epoch's own rows are written, of which a disk does most, and one core the rest.
#[derive(Debug)]
struct Turn {
    is_now: bool,
    /// Rows, those left over from earlier turns with them.
    allowed: u64,
    /// More than this is written out of turn.
    left_over: u64,
}

impl Turn {
    fn has(&self, rows: u64) -> bool {
        rows == 0 || self.allowed >= rows && (self.is_now || self.allowed > self.left_over)
    }
}

impl Pace {
    fn new(left_over: u64, patience: Duration) -> Self {
        let turn = Turn { is_now: false, allowed: 0, left_over };
        Self { turn: Mutex::new(turn), begun: Condvar::new(), patience }
    }

    fn turn(&self) -> MutexGuard<'_, Turn> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, rows: u64) {
        let mut turn = self.turn();
        turn.is_now = true;
        turn.allowed = turn.allowed.saturating_add(rows);
        self.begun.notify_one();
    }

    fn end(&self) {
        self.turn().is_now = false;
    }

    /// Waits until so many may be written, for as long as there is patience.
    fn take(&self, rows: u64) {
        let waited = self.begun.wait_timeout_while(self.turn(), self.patience, |turn| !turn.has(rows));
        let (mut turn, _) = waited.unwrap_or_else(PoisonError::into_inner);
        turn.allowed = turn.allowed.saturating_sub(rows);
    }
}

/// What is under way.
#[derive(Debug)]
struct Running {
    task: JoinHandle<Result<Compacted>>,
    pace: Arc<Pace>,
    /// Rows that each epoch allows at least, however few it has changed: its file counts, too.
    least: u64,
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

    /// Whether something is under way, or done and not taken yet.
    pub(super) fn is_running(&self) -> bool {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).is_some()
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
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(due) = self.due(commit).filter(|_| running.is_none()) else { return };
        let pace = Arc::new(Pace::new(Since::of(commit).snapshot_rows / LEFT_OVER, PATIENCE));
        let (writer, files) = (writer.clone(), commit.files.clone());
        let (paced, base) = (Arc::clone(&pace), snapshot_files(commit));
        let task = match due {
            Due::Snapshot => {
                let live = live();
                tokio::spawn(async move {
                    let rows = move |writer: &Writer| {
                        let writer = writer.clone();
                        live.into_iter().flat_map(|live| live.parts(PART_ROWS)).map(move |part| {
                            paced.take(part.count() as u64);
                            writer.of_live(&part)
                        })
                    };
                    Ok(Compacted { after: None, epoch, files: writer.write(epoch, Kind::Snapshot, rows).await? })
                })
            }
            Due::Merge => tokio::spawn(async move {
                let after = files.first().map(|file| file.epoch);
                let mut read = vec![];
                for file in files.into_iter().skip(base).rev() {
                    let body = writer.store.get(&file).await?;
                    read.push((file, body));
                }
                let rows = move |writer: &Writer| {
                    let read = read.into_iter().map(move |(file, body)| {
                        paced.take(file.rows);
                        (file.name, body)
                    });
                    newest(read, Arc::clone(&writer.schema), Arc::clone(&writer.codec), None)
                };
                Ok(Compacted { after, epoch, files: writer.write(epoch, Kind::Merged, rows).await? })
            }),
        };
        let rows: u64 = commit.files.iter().map(|file| file.rows).sum();
        *running = Some(Running { task, pace, least: rows / self.max_files as u64 });
    }

    /// An epoch has changed so many rows, and is about to write them, which one core does: what is under way may go on…
    pub(super) fn begin_turn(&self, changed: u64) {
        if let Some(running) = self.running.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            running.pace.begin(running.least.max(changed * PACE / 100));
        }
    }

    /// … until they are committed, or given up.
    pub(super) fn end_turn(&self) {
        if let Some(running) = self.running.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            running.pace.end();
        }
    }

    /// Puts what is done in the place of what it covers.
    /// Where that is urgent, it is waited for: runs of few epochs would never see one done.
    pub(super) async fn take(&self, commit: &mut StateCommit, operator: &str) {
        let is_urgent = self.is_urgent(commit);
        let is_done = |running: &mut Running| is_urgent || running.task.is_finished();
        let Some(done) = self.running.lock().unwrap_or_else(PoisonError::into_inner).take_if(is_done) else { return };
        done.pace.begin(u64::MAX);
        match done.task.await {
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

impl Drop for Compaction {
    fn drop(&mut self) {
        if let Some(running) = self.running.lock().unwrap_or_else(PoisonError::into_inner).take() {
            running.task.abort();
            running.pace.begin(u64::MAX);
        }
    }
}

impl Writer {
    /// Writes batches, which are made off the runtime's threads, as files of this kind.
    pub(super) async fn write<I>(
        &self,
        epoch: u64,
        kind: Kind,
        batches: impl FnOnce(&Writer) -> I + Send + 'static,
    ) -> Result<Vec<StateFile>>
    where
        I: IntoIterator<Item = Result<RecordBatch>>,
    {
        let (sender, mut encoded) = tokio::sync::mpsc::channel(1);
        let writer = self.clone();
        let encoding = tokio::task::spawn_blocking(move || {
            // Where all rows are gone there is no file: nothing would say until when it is of use.
            let is_empty = |batch: &Result<RecordBatch>| batch.as_ref().is_ok_and(|batch| batch.num_rows() == 0);
            let mut batches = batches(&writer).into_iter().filter(|batch| !is_empty(batch)).peekable();
            while batches.peek().is_some() {
                // Nobody waits for it when the query has ended.
                let file = writer.file(&mut batches, || sender.is_closed())?;
                if sender.blocking_send(file).is_err() {
                    break;
                }
            }
            Ok::<_, Error>(())
        });
        let mut files = vec![];
        while let Some((body, rows, latest)) = encoded.recv().await {
            let name = format!("{epoch:020}-{}-{}-{}.arrow.zst", self.store.writer(), kind.name(), files.len());
            let bytes = body.len() as u64;
            self.store.put(&name, body, kind == Kind::Delta).await?;
            files.push(StateFile { name, epoch, rows, bytes, latest });
        }
        encoding.await.map_err(|e| Error::internal("writing state ended by itself").caused_by(e))??;
        Ok(files)
    }

    /// The next file's worth of batches.
    fn file(
        &self,
        batches: &mut impl Iterator<Item = Result<RecordBatch>>,
        is_over: impl Fn() -> bool,
    ) -> Result<(Bytes, u64, Option<i64>)> {
        let (mut rows, mut latest, mut failed) = (0, None, None);
        let part = std::iter::from_fn(|| {
            if rows >= FILE_ROWS || is_over() {
                return None;
            }
            let batch = batches.next()?;
            match batch.and_then(|batch| Ok((self.youngest(&batch)?, batch))) {
                Ok((youngest, batch)) => {
                    latest = latest.max(youngest);
                    rows += batch.num_rows() as u64;
                    Some(batch)
                }
                Err(error) => {
                    failed = Some(error);
                    None
                }
            }
        });
        let body = files::encode(&self.schema, part)?;
        match failed {
            Some(error) => Err(error),
            None => Ok((body, rows, latest)),
        }
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
    pub(super) fn of_live(&self, live: &Live) -> Result<RecordBatch> {
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
    use arrow::array::Int64Array;
    use arrow::datatypes::{DataType, Field};
    use object_store::memory::InMemory;

    use super::*;

    #[tokio::test]
    async fn a_file_is_named_only_if_it_has_rows() {
        let minute = Arc::new(Field::new("minute", DataType::Int64, true));
        let layout = Layout { keys: vec![minute], rising: Some(0), ..Layout::named("test-1") };
        let writer = Writer {
            schema: layout.schema(),
            codec: Arc::new(KeyCodec::try_new(&layout.keys, layout.rising).unwrap()),
            layout,
            store: StateStore::new(Arc::new(InMemory::new()), "state".into(), 1, 0),
        };
        let rows = |writer: &Writer, rows: usize| {
            let minutes = Arc::new(Int64Array::from_iter_values(0..rows as i64));
            RecordBatch::try_new(Arc::clone(&writer.schema), vec![minutes]).map_err(Error::from)
        };
        // A snapshot whose last rows have gone since, just where a file was full.
        let batches = move |writer: &Writer| [0, FILE_ROWS as usize, 0, 0].map(|many| rows(writer, many));
        let files = writer.write(7, Kind::Snapshot, batches).await.unwrap();
        let named: Vec<_> = files.iter().map(|file| (file.rows, file.latest)).collect();
        assert_eq!(named, [(FILE_ROWS, Some(FILE_ROWS as i64 - 1))]);
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

    #[test]
    fn a_snapshot_uses_up_what_epochs_allow_and_goes_on_without_any() {
        let pace = Pace::new(0, Duration::ZERO);
        pace.take(5);
        pace.begin(10);
        pace.take(4);
        assert_eq!(pace.turn().allowed, 6);
        pace.take(7);
        assert_eq!(pace.turn().allowed, 0);
        // Who cannot wait any longer allows all of it, whatever is allowed already.
        pace.begin(1);
        pace.begin(u64::MAX);
        pace.take(4);
        assert_eq!(pace.turn().allowed, u64::MAX - 4);
    }

    #[test]
    fn what_is_left_of_a_turn_is_for_the_next_unless_it_is_too_much() {
        let pace = Pace::new(10, Duration::ZERO);
        pace.begin(10);
        assert!(pace.turn().has(10) && !pace.turn().has(11));
        pace.end();
        assert!(!pace.turn().has(1) && pace.turn().has(0));
        pace.begin(10);
        pace.end();
        assert!(pace.turn().has(20) && !pace.turn().has(21));
        pace.take(10);
        assert!(!pace.turn().has(1));
    }

    #[test]
    fn a_snapshot_is_woken_by_an_epoch_that_allows_enough() {
        // It waits for good if it is not: so often that one or the other is sure to have to wait.
        let pace = Pace::new(0, Duration::MAX);
        let (wanted, asked) = std::sync::mpsc::sync_channel(0);
        std::thread::scope(|scope| {
            let pace = &pace;
            scope.spawn(move || {
                for _ in 0..1000 {
                    wanted.send(()).unwrap();
                    pace.take(4);
                }
            });
            asked.iter().for_each(|()| (0..2).for_each(|_| pace.begin(2)));
        });
        assert_eq!(pace.turn().allowed, 0);
    }
}

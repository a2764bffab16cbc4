//! The create-only log of one query's generation.
//!
//! A [`Log`] belongs to one run. Opening it registers the run, so that older ones stop; every record it creates it either
//! wins or sees lost. It reads facts and writes records; what to do with them is decided elsewhere.

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use chrono::TimeDelta;
use futures::{TryStreamExt, try_join};
use object_store::path::Path;
use object_store::{Error as StoreError, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::records::{Commit, DefinitionRecord, Intent, QueryRecord, RunRecord, VERSION, decode, encode};
use super::state_store::{Opening, Origin};
use super::written::Written;
use super::{Journal, Recorded, StateStore, expired};
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::query::definition::Definition;
use crate::storage::{Location, delete_all};

/// The outcome of a create.
#[derive(Debug)]
pub(crate) enum Created {
    /// The record holds our bytes.
    Won,
    /// It holds these.
    Lost(Bytes),
}

/// Creates `path`, unless it exists. An answer that got lost, and a conflict that may be none (S3 gives one also while
/// a delete is under way), are settled by reading the record back.
pub(crate) async fn create(store: &Arc<dyn ObjectStore>, path: &Path, body: Bytes) -> Result<Created> {
    const TRIES: u32 = 5;
    let mut last = None;
    for attempt in 0..TRIES {
        if attempt > 0 {
            tokio::time::sleep(Duration::from_millis(50 << attempt)).await;
        }
        match store.put_opts(path, body.clone().into(), PutMode::Create.into()).await {
            Ok(_) => return Ok(Created::Won),
            Err(error) => {
                let found = match store.get(path).await {
                    Ok(found) => found.bytes().await.map(Some),
                    Err(StoreError::NotFound { .. }) => Ok(None),
                    Err(e) => Err(e),
                };
                match found {
                    Ok(Some(found)) if found == body => return Ok(Created::Won),
                    Ok(Some(found)) => return Ok(Created::Lost(found)),
                    Ok(None) => last = Some(error),
                    // The store has had its time twice.
                    Err(_) => return Err(Error::from(error).context(format!("could not create {path}"))),
                }
            }
        }
    }
    let text = format!("could not create {path} in {TRIES} tries");
    Err(match last {
        Some(error) => Error::from(error).context(text),
        None => Error::transient(text),
    })
}

/// Creates a record that we won once more, with other bytes: a store that takes them does not honour create-only. `risk`
/// completes the sentence "so two …".
pub(crate) async fn probe(
    store: &Arc<dyn ObjectStore>,
    path: &Path,
    body: Bytes,
    intruder: Bytes,
    risk: &str,
) -> Result<()> {
    if store.put_opts(path, intruder.into(), PutMode::Create.into()).await.is_err() {
        return Ok(());
    }
    // Put back what was overwritten; nothing goes on from here anyway.
    let _ = store.put(path, body.into()).await;
    Err(Error::refused(format!(
        "{store} does not honour create-only writes (If-None-Match), so two {risk}; use a store that does, or a local path"
    )))
}

/// The end of the log: the newest commit, and the intent after it, if there is one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tail {
    /// The newest commit.
    pub commit: Option<Commit>,
    /// The intent of the epoch after it.
    pub pending: Option<Intent>,
    /// The newest intent's epoch, 0 without one: a hole before it means that the log was damaged.
    pub newest_intent: u64,
}

/// One query's generation, as one run sees it.
pub struct Log {
    checkpoint: Location,
    store: Arc<dyn ObjectStore>,
    query: Path,
    generation: u64,
    root: Path,
    run: RunRecord,
    clock: Clock,
    /// The commits that were left when records were pruned, up to the newest one of then: what comes later is listed anew.
    kept: Mutex<Vec<Recorded>>,
    written: Mutex<Written>,
    /// How often state was opened…
    opened: AtomicU64,
    /// … and what of that may be written yet.
    openings: Mutex<Vec<Weak<Opening>>>,
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Log({}, run {})", self.root, self.run.number)
    }
}

pub(super) fn digits(number: u64) -> String {
    format!("{number:020}")
}

pub(crate) fn record_path(root: &Path, folder: &str, number: u64) -> Path {
    root.clone().join(folder).join(format!("{}.json", digits(number)))
}

/// The number in a record's name; anything else in the folder is not ours.
pub(crate) fn number_of(path: &Path) -> Option<u64> {
    let digits = path.filename()?.strip_suffix(".json")?;
    (digits.len() == 20).then(|| digits.parse().ok())?
}

/// The record of a run with this number, of this process.
pub(super) fn this_process(number: u64, clock: &Clock) -> RunRecord {
    RunRecord {
        version: VERSION,
        number,
        host: gethostname::gethostname().to_string_lossy().into_owned(),
        pid: std::process::id(),
        started_ms: clock.now_ms(),
        token: clock.random_id(),
    }
}

impl Log {
    /// Registers a run of the query `name` under `checkpoint`, in its newest generation.
    ///
    /// Errors: a store that does not honour create-only is refused.
    pub async fn open(checkpoint: &Location, name: &str, clock: &Clock) -> Result<Self> {
        let store = Arc::clone(&checkpoint.store);
        let query = checkpoint.join(name).prefix;
        let generation = newest_generation(&store, &query).await?.unwrap_or(1);
        let root = query.clone().join(digits(generation));
        let runs = numbers(&store, &root.clone().join("runs"), None).await?;
        let mut run = this_process(runs.last().copied().unwrap_or_default(), clock);
        loop {
            run.number += 1;
            let path = record_path(&root, "runs", run.number);
            if let Created::Won = create(&store, &path, encode(&run)?).await? {
                let checkpoint = checkpoint.join(name).join(&digits(generation));
                let log = Self {
                    checkpoint,
                    store,
                    query,
                    generation,
                    root,
                    run,
                    clock: clock.clone(),
                    kept: Mutex::default(),
                    written: Mutex::default(),
                    opened: AtomicU64::new(0),
                    openings: Mutex::default(),
                };
                log.probe().await?;
                return Ok(log);
            }
        }
    }

    /// Whether the store honours create-only, tried on the run's record.
    async fn probe(&self) -> Result<()> {
        let path = record_path(&self.root, "runs", self.run.number);
        let intruder = RunRecord { token: "probe".into(), ..self.run.clone() };
        probe(&self.store, &path, encode(&self.run)?, encode(&intruder)?, "runs could both win an epoch").await
    }

    /// This run's number.
    pub fn run(&self) -> u64 {
        self.run.number
    }

    /// Notes for connectors.
    pub fn journal(&self) -> Journal {
        Journal::new(Arc::clone(&self.store), self.root.clone().join("notes"))
    }

    /// The files of an operator's state.
    pub fn state(&self, operator: &str) -> StateStore {
        let folder = self.root.clone().join("state").join(operator);
        let opening = self.opened.fetch_add(1, Ordering::Relaxed);
        let state = StateStore::new(Arc::clone(&self.store), folder, self.run.number, opening);
        let mut openings = self.openings();
        openings.retain(|opening| opening.strong_count() > 0);
        openings.extend(state.opening().map(Arc::downgrade));
        state
    }

    fn openings(&self) -> MutexGuard<'_, Vec<Weak<Opening>>> {
        self.openings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn get<T: DeserializeOwned>(&self, path: &Path) -> Result<Option<T>> {
        match self.store.get(path).await {
            Ok(found) => decode(path.as_ref(), &found.bytes().await?).map(Some),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(e) => Err(Error::from(e).context(path)),
        }
    }

    async fn create<T: Serialize>(&self, folder: &str, number: u64, record: &T) -> Result<Created> {
        create(&self.store, &record_path(&self.root, folder, number), encode(record)?).await
    }

    /// `query.json`, if the query ever began.
    pub async fn query(&self) -> Result<Option<QueryRecord>> {
        self.get(&self.root.clone().join("query.json")).await
    }

    /// Begins the query: writes `query.json`, or returns the one that another run was faster with.
    pub async fn begin(&self, record: QueryRecord) -> Result<QueryRecord> {
        let path = self.root.clone().join("query.json");
        match create(&self.store, &path, encode(&record)?).await? {
            Created::Won => Ok(record),
            Created::Lost(found) => decode(path.as_ref(), &found),
        }
    }

    /// The definition with this number.
    pub async fn definition(&self, number: u64) -> Result<DefinitionRecord> {
        let path = record_path(&self.root, "definitions", number);
        self.get(&path).await?.ok_or_else(|| Error::refused(format!("{path} is named by an intent, but is not there")))
    }

    /// The newest definition, if any.
    pub async fn newest_definition(&self) -> Result<Option<DefinitionRecord>> {
        match numbers(&self.store, &self.root.clone().join("definitions"), None).await?.last() {
            Some(&number) => Ok(Some(self.definition(number).await?)),
            None => Ok(None),
        }
    }

    /// Writes `definition` after number `after`: its number, or none if another run was faster with another one.
    pub async fn define(&self, definition: &Definition, after: u64) -> Result<Option<u64>> {
        let number = after + 1;
        let record = DefinitionRecord { version: VERSION, number, definition: definition.clone() };
        let created = self.create("definitions", number, &record).await?;
        Ok(matches!(created, Created::Won).then_some(number))
    }

    /// Reads the log's end.
    pub async fn tail(&self) -> Result<Tail> {
        let (commits, intents) = (self.root.clone().join("commits"), self.root.clone().join("intents"));
        // Commits last: a run that is about to be fenced may still add a commit between the two listings, and a commit
        // without its intent would look like damage. The other order shows at worst an intent that is done.
        let intents = numbers(&self.store, &intents, None).await?;
        let commits = numbers(&self.store, &commits, None).await?;
        let newest_intent = intents.last().copied().unwrap_or_default();
        let Some(&newest) = commits.last() else {
            let pending = self.get(&record_path(&self.root, "intents", 1)).await?;
            return Ok(Tail { commit: None, pending, newest_intent });
        };
        let commit = record_path(&self.root, "commits", newest);
        let pending = record_path(&self.root, "intents", newest + 1);
        let (found, pending) = try_join!(self.get(&commit), self.get(&pending))?;
        if found.is_none() {
            return Err(Error::transient(format!("{commit} was listed, but cannot be read")));
        }
        let commit = found;
        // It may be one of this run's, whose answer was lost.
        commit.iter().for_each(|commit| self.note(commit));
        Ok(Tail { commit, pending, newest_intent: newest_intent.max(newest) })
    }

    /// Creates the intent of an epoch. An error of kind `Fenced` if a newer run has it, `Conflict` as transient if an
    /// older one was faster: then the caller starts over from the log.
    pub async fn intend(&self, intent: &Intent) -> Result<()> {
        match self.create("intents", intent.epoch, intent).await? {
            Created::Won => Ok(()),
            Created::Lost(_) => Err(self.conflict("intents", intent.epoch).await?),
        }
    }

    /// Rule 1, after winning the intent of `epoch` and before publishing: there is no record of a later epoch, no newer
    /// run, no newer generation. A false intent is removed.
    pub async fn look_again(&self, epoch: u64) -> Result<()> {
        let after = async |folder: &str, number: u64| {
            let offset = record_path(&self.root, folder, number);
            numbers(&self.store, &self.root.clone().join(folder), Some(&offset)).await
        };
        let (commits, intents, ()) =
            try_join!(after("commits", epoch - 1), after("intents", epoch), self.check_newest_run())?;
        if commits.is_empty() && intents.is_empty() {
            return Ok(());
        }
        let _ = self.store.delete(&record_path(&self.root, "intents", epoch)).await;
        self.check_newest_run().await?;
        Err(Error::transient(format!("epoch {epoch} is done already; starting over from the log")))
    }

    /// Creates the commit of an epoch.
    pub async fn commit(&self, commit: &Commit) -> Result<()> {
        match self.create("commits", commit.epoch, commit).await? {
            Created::Won => {
                self.note(commit);
                Ok(())
            }
            Created::Lost(_) => Err(self.conflict("commits", commit.epoch).await?),
        }
    }

    /// Rule 6: any sign of a newer run, or of a newer generation, ends this one.
    pub async fn check_newest_run(&self) -> Result<()> {
        try_join!(self.check_run(), self.check_generation())?;
        Ok(())
    }

    async fn check_run(&self) -> Result<()> {
        let runs = self.root.clone().join("runs");
        let mine = record_path(&self.root, "runs", self.run.number);
        let Some(&newer) = numbers(&self.store, &runs, Some(&mine)).await?.last() else { return Ok(()) };
        let who: Option<RunRecord> = self.get(&record_path(&self.root, "runs", newer)).await?;
        let who = who.map_or_else(String::new, |r| format!(" (pid {} on {})", r.pid, r.host));
        Err(Error::fenced(format!("run {newer}{who} has taken over from run {} of {}", self.run.number, self.query)))
    }

    async fn check_generation(&self) -> Result<()> {
        match generation_behind(&self.store, &self.query, self.generation).await? {
            Some(newer) => Err(Error::fenced(format!(
                "{} was rewound: generation {newer} has replaced generation {}",
                self.query, self.generation
            ))),
            None => Ok(()),
        }
    }

    /// A record that we meant to create is somebody else's: a newer run's ends us, an older run's is met anew.
    async fn conflict(&self, folder: &str, number: u64) -> Result<Error> {
        self.check_newest_run().await?;
        let what = folder.trim_end_matches('s');
        Ok(Error::transient(format!("{what} {number} is an older run's; starting over from the log")))
    }

    /// Removes the records of epochs that are no longer kept, and of what this run has written of state the files that only
    /// they named. Rule 5 holds: only committed epochs. All commits are listed once; then only those that have come since.
    pub async fn prune(&self) -> Result<()> {
        // Commits go on meanwhile: of those that come after this one the listing may know nothing.
        let newest = self.written().newest();
        let mut commits = std::mem::take(&mut *self.kept());
        let last = commits.last().map(|last| record_path(&self.root, "commits", last.epoch));
        commits.extend(recorded(&self.store, &self.root.clone().join("commits"), last.as_ref()).await?);
        let gone: BTreeSet<u64> = expired(&commits).into_iter().collect();
        let paths = gone.iter().flat_map(|&epoch| ["intents", "commits"].map(|of| record_path(&self.root, of, epoch)));
        delete_all(&self.store, paths.collect()).await?;
        commits.retain(|commit| !gone.contains(&commit.epoch));
        let epochs = commits.iter().map(|commit| commit.epoch).collect();
        commits.retain(|commit| commit.epoch <= newest);
        *self.kept() = commits;
        let superseded = self.written().superseded(&epochs, newest, self.clock.monotonic_us());
        delete_all(&self.store, superseded).await
    }

    /// Removes what runs that died have left: files of state that no commit names, staged files. What it costs follows
    /// what is stored, so it is for now and then.
    pub async fn sweep(&self) -> Result<()> {
        self.sweep_state().await?;
        // A record takes moments to write; what was staged an hour ago is nobody's.
        self.checkpoint.sweep_staged(|_| true).await
    }

    /// Removes files of state that no commit names, once they are older than a grace, by the store's clock; not those
    /// that [`Self::prune`] is about to remove, nor those that this run may yet name, as a snapshot may take longer, or a
    /// newer run.
    async fn sweep_state(&self) -> Result<()> {
        let openings: Vec<Arc<Opening>> = self.openings().iter().filter_map(Weak::upgrade).collect();
        let found: Vec<_> = self.store.list(Some(&self.root.clone().join("state"))).try_collect().await?;
        let Some(now) = found.iter().map(|meta| meta.last_modified).max() else { return Ok(()) };
        let may_be_named =
            |file: Origin| file.run > self.run.number || openings.iter().any(|opening| opening.may_name(&file));
        let is_old = |meta: &ObjectMeta| {
            let origin = meta.location.filename().and_then(Origin::of);
            now - meta.last_modified > GRACE && !origin.is_some_and(may_be_named)
        };
        let old: Vec<_> = found.into_iter().filter(is_old).collect();
        if old.is_empty() {
            return Ok(());
        }
        let mut stays = self.named_state().await?;
        stays.extend(self.written().leaving().cloned());
        let gone = old.into_iter().map(|meta| meta.location).filter(|path| !stays.contains(path));
        delete_all(&self.store, gone.collect()).await
    }

    /// The files that any commit names.
    async fn named_state(&self) -> Result<HashSet<Path>> {
        let root = self.root.clone().join("state");
        let mut named = HashSet::new();
        for epoch in numbers(&self.store, &self.root.clone().join("commits"), None).await? {
            // One that was pruned meanwhile names nothing.
            let Some(commit) = self.get::<Commit>(&record_path(&self.root, "commits", epoch)).await? else { continue };
            for (operator, state) in commit.state {
                let folder = root.clone().join(operator);
                named.extend(state.files.into_iter().map(|file| folder.clone().join(file.name)));
            }
        }
        Ok(named)
    }

    /// Notes what this run has written of the state that a commit names.
    fn note(&self, commit: &Commit) {
        self.written().note(commit, self.run.number, &self.root.clone().join("state"));
    }

    fn kept(&self) -> MutexGuard<'_, Vec<Recorded>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn written(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long a file of state that no commit names is left alone: it may yet be named.
const GRACE: TimeDelta = TimeDelta::hours(1);

/// The records in `folder`, ascending by epoch; after `offset`, if one is given.
pub(super) async fn recorded(
    store: &Arc<dyn ObjectStore>,
    folder: &Path,
    offset: Option<&Path>,
) -> Result<Vec<Recorded>> {
    let listed = match offset {
        Some(offset) => store.list_with_offset(Some(folder), offset),
        None => store.list(Some(folder)),
    };
    let found: Vec<_> = listed.try_collect().await?;
    let record = |meta: &ObjectMeta| {
        let epoch = number_of(&meta.location)?;
        Some(Recorded { epoch, written_ms: meta.last_modified.timestamp_millis() })
    };
    let mut records: Vec<Recorded> = found.iter().filter_map(record).collect();
    records.sort_by_key(|r| r.epoch);
    Ok(records)
}

/// The numbers of all records in `folder`, ascending; after `offset`, if one is given.
async fn numbers(store: &Arc<dyn ObjectStore>, folder: &Path, offset: Option<&Path>) -> Result<Vec<u64>> {
    Ok(recorded(store, folder, offset).await?.iter().map(|record| record.epoch).collect())
}

/// All generations of a query, ascending, those included that a rewind which broke off has left half made.
pub(super) async fn generations(store: &Arc<dyn ObjectStore>, query: &Path) -> Result<Vec<u64>> {
    let listed = store.list_with_delimiter(Some(query)).await?;
    let generation = |path: &Path| {
        let name = path.filename()?;
        (name.len() == 20).then(|| name.parse().ok())?
    };
    let mut found: Vec<u64> = listed.common_prefixes.iter().filter_map(generation).collect();
    found.sort_unstable();
    Ok(found)
}

/// The generation that is in force, if the query ever ran.
pub(super) async fn newest_generation(store: &Arc<dyn ObjectStore>, query: &Path) -> Result<Option<u64>> {
    generation_behind(store, query, 0).await
}

/// The newest generation behind this one. The first begins with its first run, a later one with its `query.json`, which a
/// rewind writes last.
pub(super) async fn generation_behind(store: &Arc<dyn ObjectStore>, query: &Path, known: u64) -> Result<Option<u64>> {
    for generation in generations(store, query).await?.into_iter().rev().take_while(|number| *number > known) {
        if generation == 1 || is_there(store, &query.clone().join(digits(generation)).join("query.json")).await? {
            return Ok(Some(generation));
        }
    }
    Ok(None)
}

async fn is_there(store: &Arc<dyn ObjectStore>, path: &Path) -> Result<bool> {
    match store.head(path).await {
        Ok(_) => Ok(true),
        Err(StoreError::NotFound { .. }) => Ok(false),
        Err(e) => Err(Error::from(e).context(path)),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::state::{StateCommit, StateFile};
    use crate::storage::Stores;

    #[tokio::test]
    async fn files_of_state_go_when_no_commit_names_them_and_they_are_old() {
        let (dir, clock) = (tempfile::tempdir().unwrap(), Clock::system());
        let checkpoint = Stores::new(clock.clone()).open(dir.path().to_str().unwrap(), &BTreeMap::new()).unwrap();
        let log = Log::open(&checkpoint, "q", &clock).await.unwrap();
        let folder = dir.path().join("q").join(digits(1)).join("state/aggregate-1");
        let written = async |state: &StateStore, kind: &str| {
            let name = state.put(1, kind, Bytes::from_static(b"rows"), true).await.unwrap();
            (folder.join(&name), name)
        };
        let (dead, alive) = (log.state("aggregate-1"), log.state("aggregate-1"));
        let [named, before, unnamed] =
            [written(&dead, "a").await, written(&dead, "b").await, written(&dead, "c").await];
        let (yet, ours) = (written(&dead, "d").await, written(&alive, "e").await);
        drop(dead);
        let newest = std::fs::metadata(&ours.0).unwrap().modified().unwrap();
        let age = |path: &std::path::Path| {
            let file = std::fs::File::options().write(true).open(path).unwrap();
            file.set_modified(newest - Duration::from_secs(2 * 60 * 60)).unwrap();
        };
        [&named, &before, &unnamed, &ours].into_iter().for_each(|(path, _)| age(path));
        for (epoch, (_, name)) in [(1, &before), (2, &named)] {
            let file = StateFile { name: name.clone(), epoch, rows: 1, bytes: 4, latest: None };
            let state = StateCommit { files: vec![file], ..StateCommit::default() };
            let state = BTreeMap::from([("aggregate-1".to_owned(), state)]);
            log.commit(&Commit { version: VERSION, epoch, state, ..Commit::default() }).await.unwrap();
        }
        let left = async || {
            log.sweep().await.unwrap();
            let written = [&named, &before, &unnamed, &yet, &ours];
            written.map(|(path, _)| path.exists())
        };
        assert_eq!(left().await, [true, true, false, true, true]);
        // A commit that is no longer kept names nothing.
        log.store.delete(&record_path(&log.root, "commits", 1)).await.unwrap();
        assert_eq!(left().await, [true, false, false, true, true]);
        // As after a commit, with nothing under way: what it does not name by now none ever will.
        alive.settle();
        assert_eq!(left().await, [true, false, false, true, false]);
        let later = written(&alive, "f").await;
        age(&later.0);
        log.sweep().await.unwrap();
        assert!(later.0.exists());
        drop(alive);
        log.sweep().await.unwrap();
        assert!(!later.0.exists(), "whoever could have named it has ended");
    }

    #[tokio::test]
    async fn state_goes_with_the_commits_that_named_it() {
        let (dir, clock) = (tempfile::tempdir().unwrap(), Clock::seeded(1, 0));
        let unsynced = BTreeMap::from([("checkpoint.fsync".to_owned(), "false".to_owned())]);
        let checkpoint = Stores::new(clock.clone()).open(dir.path().to_str().unwrap(), &unsynced).unwrap();
        let log = Log::open(&checkpoint, "q", &clock).await.unwrap();
        let state = log.state("aggregate-1");
        for epoch in 1..=110 {
            let name = state.put(epoch, "delta", Bytes::from_static(b"rows"), true).await.unwrap();
            let file = StateFile { name, epoch, rows: 1, bytes: 4, latest: None };
            let state = StateCommit { files: vec![file], ..StateCommit::default() };
            let state = BTreeMap::from([("aggregate-1".to_owned(), state)]);
            log.commit(&Commit { version: VERSION, epoch, state, ..Commit::default() }).await.unwrap();
        }
        let commits = async || numbers(&log.store, &log.root.clone().join("commits"), None).await.unwrap();
        let files = async || {
            let found: Vec<_> = log.store.list(Some(&log.root.clone().join("state"))).try_collect().await.unwrap();
            found.iter().map(|meta| meta.location.filename().unwrap()[..20].parse().unwrap()).collect::<BTreeSet<u64>>()
        };
        log.prune().await.unwrap();
        let kept = BTreeSet::from_iter(commits().await);
        assert!((100..110).contains(&kept.len()), "{kept:?}");
        assert_eq!(files().await.len(), 110, "somebody may be reading them");
        for file in log.written().leaving() {
            let file = std::fs::File::options().write(true).open(format!("/{file}")).unwrap();
            let modified = file.metadata().unwrap().modified().unwrap();
            file.set_modified(modified - Duration::from_secs(2 * 60 * 60)).unwrap();
        }
        log.sweep().await.unwrap();
        assert_eq!(files().await.len(), 110, "however old they are");
        clock.advance(6 * 60_000);
        log.prune().await.unwrap();
        assert_eq!(files().await, kept);
    }

    #[tokio::test]
    async fn pruning_now_and_then_keeps_what_pruning_once_would() {
        let (dir, clock) = (tempfile::tempdir().unwrap(), Clock::seeded(1, 0));
        let unsynced = BTreeMap::from([("checkpoint.fsync".to_owned(), "false".to_owned())]);
        let checkpoint = Stores::new(clock.clone()).open(dir.path().to_str().unwrap(), &unsynced).unwrap();
        let log = Log::open(&checkpoint, "q", &clock).await.unwrap();
        let commit = async |epoch: u64| {
            log.commit(&Commit { version: VERSION, epoch, ..Commit::default() }).await.unwrap();
            // One second each.
            let path = format!("/{}", record_path(&log.root, "commits", epoch));
            let at = std::time::UNIX_EPOCH + Duration::from_secs(epoch);
            std::fs::File::options().write(true).open(path).unwrap().set_modified(at).unwrap();
        };
        let commits = async || numbers(&log.store, &log.root.clone().join("commits"), None).await.unwrap();
        for epoch in 1..=400 {
            commit(epoch).await;
            if epoch % 7 == 0 {
                log.prune().await.unwrap();
            }
        }
        log.prune().await.unwrap();
        let kept: Vec<u64> = [1, 60, 120, 180, 240].into_iter().chain(300..=400).collect();
        assert_eq!(commits().await, kept);
        // What it has seen once it does not list again; a run that comes later does.
        commit(90).await;
        log.prune().await.unwrap();
        assert!(commits().await.contains(&90));
        Log::open(&checkpoint, "q", &clock).await.unwrap().prune().await.unwrap();
        assert_eq!(commits().await, kept);
    }
}

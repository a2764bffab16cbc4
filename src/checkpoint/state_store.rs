//! The files of one operator's state, under its query's checkpoint.
//!
//! A file's name is its writer's own: it holds the run, which opening of the state within the run, and how many files that
//! has written. So nobody ever writes a name twice, not even a task that was given up and whose last write is still under
//! way. A file counts once a commit names it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutOptions};

use crate::error::{Error, Result};
use crate::state::StateFile;
use crate::storage::local::Unawaited;

/// Where a file comes from, as its name says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin {
    /// The run that wrote it…
    pub(super) run: u64,
    /// … as which opening of the state…
    opening: u64,
    /// … and which of its files it is.
    number: u64,
}

impl Origin {
    pub(super) fn of(name: &str) -> Option<Self> {
        let (writer, number) = name.strip_suffix(ENDING)?.rsplit_once('-')?;
        let mut parts = writer.split('-').skip(1);
        let (run, opening) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        Some(Self { run, opening, number: number.parse().ok()? })
    }
}

const ENDING: &str = ".arrow.zst";

/// An opening of the state; it lasts for as long as anybody may write.
#[derive(Debug)]
pub(super) struct Opening {
    run: u64,
    opening: u64,
    /// How many files it has written…
    files: AtomicU64,
    /// … and how many of these a commit names by now, or none ever will.
    settled: AtomicU64,
}

impl Opening {
    /// Whether a commit may yet name this file.
    pub(super) fn may_name(&self, file: &Origin) -> bool {
        (self.run, self.opening) == (file.run, file.opening) && file.number >= self.settled.load(Ordering::Relaxed)
    }
}

/// Where an operator's state lies; clones share it.
#[derive(Clone)]
pub struct StateStore {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    /// None if the files are somebody else's.
    opening: Option<Arc<Opening>>,
}

impl fmt::Debug for StateStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StateStore({})", self.prefix)
    }
}

impl StateStore {
    /// Files under `prefix`, written by this opening of `run`.
    pub(crate) fn new(store: Arc<dyn ObjectStore>, prefix: Path, run: u64, opening: u64) -> Self {
        let opening = Opening { run, opening, files: AtomicU64::new(0), settled: AtomicU64::new(0) };
        Self { opening: Some(Arc::new(opening)), ..Self::read_only(store, prefix) }
    }

    /// Files under `prefix`, for a look: nothing is written.
    pub(crate) fn read_only(store: Arc<dyn ObjectStore>, prefix: Path) -> Self {
        Self { store, prefix, opening: None }
    }

    /// Whether files can only be read.
    pub fn is_read_only(&self) -> bool {
        self.opening.is_none()
    }

    /// Who may write.
    pub(super) fn opening(&self) -> Option<&Arc<Opening>> {
        self.opening.as_ref()
    }

    /// A commit names what was written until now, or none ever will: nothing is being written.
    pub fn settle(&self) {
        if let Some(Opening { files, settled, .. }) = self.opening.as_deref() {
            settled.store(files.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    /// Writes a file of an epoch; its name, by which it is durable from now on. If no epoch waits for it, it is not in the
    /// way of those that do.
    pub async fn put(&self, epoch: u64, kind: &str, body: Bytes, is_awaited: bool) -> Result<String> {
        let Some(Opening { run, opening, files, .. }) = self.opening.as_deref() else {
            return Err(Error::internal(format!("{} is only looked at, and a {kind} was to be written", self.prefix)));
        };
        let number = files.fetch_add(1, Ordering::Relaxed);
        let name = format!("{epoch:020}-{run:020}-{opening}-{kind}-{number}{ENDING}");
        let mut options = PutOptions::default();
        if !is_awaited {
            options.extensions.insert(Unawaited);
        }
        self.store.put_opts(&self.prefix.clone().join(name.as_str()), body.into(), options).await?;
        Ok(name)
    }

    /// A file that a commit names, as long as the commit says.
    pub async fn get(&self, file: &StateFile) -> Result<Bytes> {
        let path = self.prefix.clone().join(file.name.as_str());
        let body = match self.store.get(&path).await {
            Ok(found) => found.bytes().await?,
            Err(object_store::Error::NotFound { .. }) => {
                return Err(Error::refused(format!(
                    "the commit names {path}, which is not there; restore it from a copy"
                )));
            }
            Err(e) => return Err(e.into()),
        };
        match body.len() as u64 == file.bytes {
            true => Ok(body),
            false => Err(Error::refused(format!(
                "{path} has {} bytes, and {} by the commit that names it; restore it from a copy",
                body.len(),
                file.bytes
            ))),
        }
    }
}

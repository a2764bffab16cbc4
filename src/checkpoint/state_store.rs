//! The files of one operator's state, under its query's checkpoint.
//!
//! A file's name is its writer's own: it holds the run, and which opening of the state within the run. So nobody ever
//! writes a name twice, not even a task that was given up and whose last write is still under way. A file counts once a
//! commit names it.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutOptions};

use crate::error::{Error, Result};
use crate::state::StateFile;
use crate::storage::local::Unawaited;

/// Where an operator's state lies; clones share it.
#[derive(Clone)]
pub struct StateStore {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    run: u64,
    opening: u64,
    /// Whether the files are somebody else's.
    is_read_only: bool,
}

impl fmt::Debug for StateStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StateStore({})", self.prefix)
    }
}

impl StateStore {
    /// Files under `prefix`, written by this opening of `run`.
    pub(crate) fn new(store: Arc<dyn ObjectStore>, prefix: Path, run: u64, opening: u64) -> Self {
        Self { store, prefix, run, opening, is_read_only: false }
    }

    /// Files under `prefix`, for a look: nothing is written, not even by what makes files fewer.
    pub(super) fn read_only(store: Arc<dyn ObjectStore>, prefix: Path) -> Self {
        Self { is_read_only: true, ..Self::new(store, prefix, 0, 0) }
    }

    /// Who writes: the part of every name after its epoch.
    pub fn writer(&self) -> String {
        format!("{:020}-{}", self.run, self.opening)
    }

    /// The run that wrote the file of this name.
    pub(super) fn run_of(name: &str) -> Option<u64> {
        name.split('-').nth(1)?.parse().ok()
    }

    /// Writes a file; it is durable when this returns. If no epoch waits for it, it is not in the way of those that do.
    pub async fn put(&self, name: &str, body: Bytes, is_awaited: bool) -> Result<()> {
        if self.is_read_only {
            return Err(Error::internal(format!("{} is only looked at, and {name} was to be written", self.prefix)));
        }
        let mut options = PutOptions::default();
        if !is_awaited {
            options.extensions.insert(Unawaited);
        }
        self.store.put_opts(&self.prefix.clone().join(name), body.into(), options).await?;
        Ok(())
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

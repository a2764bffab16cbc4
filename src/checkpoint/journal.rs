//! Small notes under a query's checkpoint, for connectors.
//!
//! A source that must number things itself (files in a directory) keeps the numbers here; a sink notes here what must be
//! cleaned up after a crash, before it makes it. Notes are create-only and listed in the order of their names.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

use super::log::{Created, create};
use crate::error::Result;
use crate::storage::delete_all;

/// What the folders begin with in which sources number things. A query that is rewound takes these with it: its offsets are
/// such numbers.
pub const SOURCES: &str = "files-";

/// Notes of one query; clones share them.
#[derive(Clone)]
pub struct Journal {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Journal({})", self.prefix)
    }
}

impl Journal {
    /// Notes under `prefix`.
    pub(super) fn new(store: Arc<dyn ObjectStore>, prefix: Path) -> Self {
        Self { store, prefix }
    }

    /// Notes in memory, for scans that belong to no query.
    pub fn detached() -> Self {
        Self::new(Arc::new(InMemory::new()), Path::default())
    }

    /// Writes the note `folder/name` unless there is one; whether it now holds `body`.
    pub async fn create(&self, folder: &str, name: &str, body: Bytes) -> Result<bool> {
        let path = self.prefix.clone().join(folder).join(name);
        Ok(matches!(create(&self.store, &path, body).await?, Created::Won))
    }

    /// The names of all notes in `folder`, in order.
    pub async fn list(&self, folder: &str) -> Result<Vec<String>> {
        let prefix = self.prefix.clone().join(folder);
        let found: Vec<_> = self.store.list(Some(&prefix)).try_collect().await?;
        let direct = |path: &Path| path.parts_count() == prefix.parts_count() + 1;
        let mut names: Vec<String> = found
            .iter()
            .filter(|meta| direct(&meta.location))
            .filter_map(|meta| meta.location.filename().map(str::to_owned))
            .collect();
        names.sort();
        Ok(names)
    }

    /// Of the notes in `folder` whose names begin with an epoch's number: those of epochs up to this one, in order.
    pub async fn list_up_to(&self, folder: &str, epoch: u64) -> Result<Vec<String>> {
        let epoch_of = |name: &String| name.split('-').next().and_then(|digits| digits.parse::<u64>().ok());
        let mut names = self.list(folder).await?;
        names.retain(|name| epoch_of(name).is_some_and(|of| of <= epoch));
        Ok(names)
    }

    /// Copies the notes of sources into another journal.
    pub(super) async fn copy_sources(&self, other: &Self) -> Result<()> {
        let found: Vec<_> = self.store.list(Some(&self.prefix)).try_collect().await?;
        for meta in found {
            let below: Vec<_> = meta.location.parts().skip(self.prefix.parts_count()).collect();
            // Anything deeper is on its way into a local directory.
            if below.len() == 2 && below[0].as_ref().starts_with(SOURCES) {
                let body = self.store.get(&meta.location).await?.bytes().await?;
                let path = below.iter().fold(other.prefix.clone(), |path, part| path.join(part.clone()));
                create(&other.store, &path, body).await?;
            }
        }
        Ok(())
    }

    /// The note's text, or none.
    pub async fn get(&self, folder: &str, name: &str) -> Result<Option<Bytes>> {
        match self.store.get(&self.prefix.clone().join(folder).join(name)).await {
            Ok(found) => Ok(Some(found.bytes().await?)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Removes these notes of `folder`; one that is not there is fine.
    pub async fn remove(&self, folder: &str, names: impl IntoIterator<Item = String>) -> Result<()> {
        let folder = self.prefix.clone().join(folder);
        delete_all(&self.store, names.into_iter().map(|name| folder.clone().join(name)).collect()).await
    }
}

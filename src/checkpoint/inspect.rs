//! Looking into a checkpoint without running anything: which queries there are, and what their kept commits say.
//!
//! It only reads, and registers no run, so nothing that runs is disturbed. Not promised: one moment for all of it; a query
//! that runs meanwhile may have moved on.

use std::sync::Arc;

use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

use super::StateStore;
use super::log::{newest_generation, number_of, record_path};
use super::records::{Commit, decode};
use crate::error::{Error, Result};
use crate::storage::Location;

/// How deep a query's name may lie: `[pipeline/]file/target`.
const DEPTH: usize = 3;

/// The names of all queries that have a checkpoint here, in order.
pub async fn queries(checkpoint: &Location) -> Result<Vec<String>> {
    let mut found = vec![];
    let mut level = vec![checkpoint.prefix.clone()];
    for _ in 0..=DEPTH {
        let mut next = vec![];
        for folder in level {
            if folder != checkpoint.prefix && newest_generation(&checkpoint.store, &folder).await?.is_some() {
                let parts = folder.parts().skip(checkpoint.prefix.parts().count());
                found.push(parts.map(|part| part.as_ref().to_owned()).collect::<Vec<_>>().join("/"));
                continue;
            }
            next.extend(checkpoint.store.list_with_delimiter(Some(&folder)).await?.common_prefixes);
        }
        level = next;
    }
    found.sort();
    Ok(found)
}

/// The commits of a query that are kept, of its newest generation, oldest first; at most so many of the newest.
pub async fn commits(checkpoint: &Location, query: &str, most: usize) -> Result<Vec<Commit>> {
    let root = root(checkpoint, query).await?;
    let mut epochs = listed(checkpoint, &root).await?;
    let mut commits = vec![];
    for epoch in epochs.split_off(epochs.len().saturating_sub(most)) {
        commits.push(read(checkpoint, &root, epoch).await?);
    }
    Ok(commits)
}

/// The epochs of these commits, ascending.
pub async fn epochs(checkpoint: &Location, query: &str) -> Result<Vec<u64>> {
    listed(checkpoint, &root(checkpoint, query).await?).await
}

/// The commit of one of these epochs.
pub async fn commit(checkpoint: &Location, query: &str, epoch: u64) -> Result<Commit> {
    read(checkpoint, &root(checkpoint, query).await?, epoch).await
}

/// The files of an operator's state, to be read.
pub async fn state(checkpoint: &Location, query: &str, operator: &str) -> Result<StateStore> {
    let folder = root(checkpoint, query).await?.join("state").join(operator);
    Ok(StateStore::new(Arc::clone(&checkpoint.store), folder, 0, 0))
}

/// The newest generation of a query.
async fn root(checkpoint: &Location, query: &str) -> Result<Path> {
    let root = checkpoint.join(query).prefix;
    let Some(generation) = newest_generation(&checkpoint.store, &root).await? else {
        let known = queries(checkpoint).await?;
        let hint = crate::sql::options::did_you_mean(query, known.iter().map(String::as_str));
        return Err(Error::usage(format!("{checkpoint} has no query {query}{hint}")));
    };
    Ok(root.join(format!("{generation:020}")))
}

async fn listed(checkpoint: &Location, root: &Path) -> Result<Vec<u64>> {
    let listed: Vec<_> = checkpoint.store.list(Some(&root.clone().join("commits"))).try_collect().await?;
    let mut epochs: Vec<u64> = listed.iter().filter_map(|meta| number_of(&meta.location)).collect();
    epochs.sort_unstable();
    Ok(epochs)
}

async fn read(checkpoint: &Location, root: &Path, epoch: u64) -> Result<Commit> {
    let path = record_path(root, "commits", epoch);
    let body = checkpoint.store.get(&path).await?.bytes().await?;
    decode(path.as_ref(), &body)
}

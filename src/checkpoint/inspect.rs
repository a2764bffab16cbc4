//! Looking into a checkpoint without running anything: which queries there are, and what their kept commits say.
//!
//! It only reads, and registers no run, so nothing that runs is disturbed. Not promised: one moment for all of it; a query
//! that runs meanwhile may have moved on.

use futures::TryStreamExt;
use object_store::{ObjectStore, ObjectStoreExt};

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
    let root = checkpoint.join(query).prefix;
    let Some(generation) = newest_generation(&checkpoint.store, &root).await? else {
        let known = queries(checkpoint).await?;
        let hint = crate::sql::options::did_you_mean(query, known.iter().map(String::as_str));
        return Err(Error::usage(format!("{checkpoint} has no query {query}{hint}")));
    };
    let root = root.join(format!("{generation:020}"));
    let listed: Vec<_> = checkpoint.store.list(Some(&root.clone().join("commits"))).try_collect().await?;
    let mut epochs: Vec<u64> = listed.iter().filter_map(|meta| number_of(&meta.location)).collect();
    epochs.sort_unstable();
    let mut commits = vec![];
    for epoch in epochs.split_off(epochs.len().saturating_sub(most)) {
        let path = record_path(&root, "commits", epoch);
        let body = checkpoint.store.get(&path).await?.bytes().await?;
        commits.push(decode(path.as_ref(), &body)?);
    }
    Ok(commits)
}

//! Looking into a checkpoint without running anything: which queries there are, and what their kept records say.
//!
//! It only reads, and registers no run, so nothing that runs is disturbed. Not promised: one moment for all of it; a query
//! that runs meanwhile may have moved on.

use std::sync::Arc;

use futures::stream::{self, StreamExt, TryStreamExt};
use futures::try_join;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use serde::de::DeserializeOwned;

use super::log::{digits, newest_generation, record_path, recorded};
use super::records::{Commit, DefinitionRecord, Intent, QueryRecord, RunRecord, decode};
use super::{Journal, Recorded, StateStore};
use crate::error::{Error, Result};
use crate::query::definition::Definition;
use crate::sql::options::did_you_mean;
use crate::storage::Location;

/// How many commits are read side by side.
const READING: usize = 16;
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
    let generation = Generation::newest(checkpoint, query).await?;
    let mut epochs = generation.epochs().await?;
    generation.commits(&epochs.split_off(epochs.len().saturating_sub(most))).await
}

/// The epochs of these commits, ascending.
pub async fn epochs(checkpoint: &Location, query: &str) -> Result<Vec<u64>> {
    Generation::newest(checkpoint, query).await?.epochs().await
}

/// The commit of one of these epochs.
pub async fn commit(checkpoint: &Location, query: &str, epoch: u64) -> Result<Commit> {
    Generation::newest(checkpoint, query).await?.commit(epoch).await
}

/// The files of an operator's state, to be read.
pub async fn state(checkpoint: &Location, query: &str, operator: &str) -> Result<StateStore> {
    Ok(Generation::newest(checkpoint, query).await?.state(operator))
}

/// The generation of a query that is in force, to be looked at.
#[derive(Debug, Clone)]
pub struct Generation {
    checkpoint: Location,
    query: String,
    number: u64,
    root: Path,
}

impl Generation {
    /// That of the query of this name.
    ///
    /// Errors: there is no such query.
    pub async fn newest(checkpoint: &Location, query: &str) -> Result<Self> {
        let root = checkpoint.join(query).prefix;
        let Some(number) = newest_generation(&checkpoint.store, &root).await? else {
            let known = queries(checkpoint).await?;
            let hint = did_you_mean(query, known.iter().map(String::as_str));
            return Err(Error::usage(format!("{checkpoint} has no query {query}{hint}")));
        };
        let (checkpoint, query, root) = (checkpoint.clone(), query.to_owned(), root.join(digits(number)));
        Ok(Self { checkpoint, query, number, root })
    }

    /// Its number, from 1.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The query's name.
    pub fn query(&self) -> &str {
        &self.query
    }

    /// The checkpoint that it lies in.
    pub fn checkpoint(&self) -> &Location {
        &self.checkpoint
    }

    /// `query.json`; none, if the query has not begun yet.
    pub async fn record(&self) -> Result<Option<QueryRecord>> {
        self.read(&self.root.clone().join("query.json")).await
    }

    /// The newest run.
    pub async fn run(&self) -> Result<Option<RunRecord>> {
        match self.recorded("runs").await?.last() {
            Some(newest) => self.read(&record_path(&self.root, "runs", newest.epoch)).await,
            None => Ok(None),
        }
    }

    /// The newest definition, if there is one.
    pub async fn newest_definition(&self) -> Result<Option<DefinitionRecord>> {
        match self.recorded("definitions").await?.last() {
            Some(newest) => self.read(&record_path(&self.root, "definitions", newest.epoch)).await,
            None => Ok(None),
        }
    }

    /// The definition that an epoch ran under, as far as that is known: else the newest. Epoch 0 has the first.
    pub async fn definition(&self, epoch: u64) -> Result<DefinitionRecord> {
        let number = match self.intent(epoch).await? {
            Some(intent) => Some(intent.definition),
            None => (epoch == 0).then_some(1),
        };
        let found = match number {
            Some(number) => self.read(&record_path(&self.root, "definitions", number)).await?,
            None => self.newest_definition().await?,
        };
        found.ok_or_else(|| Error::refused(format!("{} has no definition yet; let it run first", self.query)))
    }

    /// The definitions behind this number, oldest first.
    pub async fn definitions_after(&self, number: u64) -> Result<Vec<Definition>> {
        let mut found = vec![];
        for later in self.recorded("definitions").await?.iter().filter(|record| record.epoch > number) {
            let record = self.read::<DefinitionRecord>(&record_path(&self.root, "definitions", later.epoch)).await?;
            found.extend(record.map(|record| record.definition));
        }
        Ok(found)
    }

    /// The epochs whose commits are kept, ascending.
    pub async fn epochs(&self) -> Result<Vec<u64>> {
        Ok(self.recorded("commits").await?.iter().map(|record| record.epoch).collect())
    }

    /// When the commits and the intents that are kept were written, by the store's clock.
    pub async fn written(&self) -> Result<(Vec<Recorded>, Vec<Recorded>)> {
        try_join!(self.recorded("commits"), self.recorded("intents"))
    }

    /// The commits of these epochs; one that was pruned meanwhile is left out.
    pub async fn commits(&self, epochs: &[u64]) -> Result<Vec<Commit>> {
        let paths: Vec<Path> = epochs.iter().map(|epoch| record_path(&self.root, "commits", *epoch)).collect();
        let read = paths.into_iter().map(|path| async move { self.read::<Commit>(&path).await });
        let read: Vec<Option<Commit>> = stream::iter(read).buffered(READING).try_collect().await?;
        Ok(read.into_iter().flatten().collect())
    }

    /// The commit of an epoch.
    ///
    /// Errors: it is not kept.
    pub async fn commit(&self, epoch: u64) -> Result<Commit> {
        self.read(&record_path(&self.root, "commits", epoch))
            .await?
            .ok_or_else(|| Error::usage(format!("epoch {epoch} of {} is not kept any more", self.query)))
    }

    /// The commit of an epoch, or the newest.
    ///
    /// Errors: there is none yet, or that of the epoch is not kept, and which are.
    pub async fn kept(&self, epoch: Option<u64>) -> Result<Commit> {
        let (query, kept) = (&self.query, self.epochs().await?);
        let (Some(oldest), Some(newest)) = (kept.first(), kept.last()) else {
            return Err(Error::usage(format!("{query} has no commit yet; ask again after its first epoch")));
        };
        match epoch.unwrap_or(*newest) {
            epoch if kept.contains(&epoch) => self.commit(epoch).await,
            epoch => Err(Error::usage(format!(
                "epoch {epoch} of {query} is not kept; kept are {oldest} to {newest}, of the older ones one a minute"
            ))),
        }
    }

    /// The intent of an epoch, if it is kept.
    pub async fn intent(&self, epoch: u64) -> Result<Option<Intent>> {
        self.read(&record_path(&self.root, "intents", epoch)).await
    }

    /// The files of an operator's state; they can only be read.
    pub fn state(&self, operator: &str) -> StateStore {
        StateStore::read_only(Arc::clone(&self.checkpoint.store), self.root.clone().join("state").join(operator))
    }

    /// The notes of its connectors.
    pub fn journal(&self) -> Journal {
        Journal::new(Arc::clone(&self.checkpoint.store), self.root.clone().join("notes"))
    }

    async fn recorded(&self, folder: &str) -> Result<Vec<Recorded>> {
        recorded(&self.checkpoint.store, &self.root.clone().join(folder), None).await
    }

    async fn read<T: DeserializeOwned>(&self, path: &Path) -> Result<Option<T>> {
        match self.checkpoint.store.get(path).await {
            Ok(found) => decode(path.as_ref(), &found.bytes().await?).map(Some),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(Error::from(e).context(path)),
        }
    }
}

//! A rewind: a new generation of a query, which goes on from where an earlier epoch left it.
//!
//! The idea: a generation is whole in itself. What the epoch that is gone back to has left (offsets, state, the numbers of
//! files) is copied into the new one, as its commit of *epoch 0*; the next epoch is 1, under a new id, so nothing that
//! either writes outside can be mistaken for the other's. `query.json` is written last, and until then the old generation
//! is in force.
//!
//! Guarantee: after a stop at any moment either the old generation is in force, unchanged, or the new one is, complete. A
//! run of the old one meets the new one at its next look, and ends. Of two rewinds of one generation one goes ahead; only if
//! both put theirs in force in the same moment the later one counts.
//!
//! Not promised: to clear up. A rewind that broke off leaves a folder without `query.json`, which nobody looks into, and
//! whose number is not taken again; the old generation stays where it is. Both may be removed by hand.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path;

use super::inspect::Generation;
use super::log::{
    Created, create, digits, generation_behind, generations, newest_generation, record_path, this_process,
};
use super::records::{Commit, DefinitionRecord, PartitionCommit, QueryRecord, Rewound, SourceCommit, VERSION, encode};
use super::{Journal, StateStore};
use crate::clock::Clock;
use crate::connector::{Offsets, Owner};
use crate::error::{Error, Result};
use crate::query::definition::Definition;
use crate::sql::options::did_you_mean;
use crate::state::{StateCommit, StateFile};

/// How many commits are looked through at a time for one with given offsets.
const AT_A_TIME: usize = 100;

/// A rewind that is decided, and not made yet.
#[derive(Debug)]
pub struct Rewind {
    old: Generation,
    record: QueryRecord,
    definition: Definition,
    /// What the query became after that.
    later: Vec<Definition>,
    epoch: Option<u64>,
    /// Where the new generation begins.
    from: Commit,
}

impl Rewind {
    /// Back to where `epoch` has left the query; 0 is where it began.
    ///
    /// Errors: the epoch is not kept.
    pub async fn to_epoch(old: Generation, epoch: u64) -> Result<Self> {
        let record = begun(&old).await?;
        let is_kept = old.epochs().await?.contains(&epoch);
        let from = match epoch {
            0 if !is_kept && record.rewound.is_none() => beginning(&record),
            _ => old.kept(Some(epoch)).await?,
        };
        let DefinitionRecord { number, definition, .. } = old.definition(epoch).await?;
        let later = old.definitions_after(number).await?;
        Ok(Self { old, record, definition, later, epoch: Some(epoch), from })
    }

    /// To these offsets; tables and partitions that are not among them stay where the newest epoch has left them. Offsets
    /// that a kept epoch has left are the same as that epoch, unless state is not wanted.
    ///
    /// Errors: a table or partition that the query does not read; a query with state, whose offsets are no kept epoch's.
    pub async fn to_offsets(old: Generation, offsets: &BTreeMap<String, Offsets>, without_state: bool) -> Result<Self> {
        let record = begun(&old).await?;
        let epochs = old.epochs().await?;
        let newest = match epochs.last() {
            Some(newest) => old.commit(*newest).await?,
            None => beginning(&record),
        };
        let sources = moved(&newest, offsets, old.query())?;
        if !without_state {
            for some in epochs.rchunks(AT_A_TIME) {
                let commits = old.commits(some).await?;
                if let Some(same) = commits.iter().rev().find(|commit| stands(&commit.sources) == stands(&sources)) {
                    return Self::to_epoch(old, same.epoch).await;
                }
            }
            if record.rewound.is_none() && stands(&beginning(&record).sources) == stands(&sources) {
                return Self::to_epoch(old, 0).await;
            }
            if !newest.state.is_empty() {
                return Err(Error::refused(format!(
                    "{} remembers something, and no kept epoch has left it at these offsets, so nobody knows what it would \
                     remember there; name an epoch, or say --without-state to begin with nothing",
                    old.query()
                )));
            }
        }
        let from = Commit { sources, batch_time_ms: newest.batch_time_ms, ..Commit::default() };
        let DefinitionRecord { number, definition, .. } = old.definition(newest.epoch).await?;
        let later = old.definitions_after(number).await?;
        Ok(Self { old, record, definition, later, epoch: None, from })
    }

    /// The epoch that is gone back to, if it is one.
    pub fn epoch(&self) -> Option<u64> {
        self.epoch
    }

    /// What the query was then, and what it became after that: later epochs may have written to other tables.
    pub fn definitions(&self) -> impl Iterator<Item = &Definition> {
        std::iter::once(&self.definition).chain(&self.later)
    }

    /// What the old generation itself goes on from, if a rewind has made it.
    pub fn before(&self) -> Option<&Rewound> {
        self.record.rewound.as_ref()
    }

    /// By table, the next offsets.
    pub fn offsets(&self) -> BTreeMap<String, Offsets> {
        stands(&self.from.sources)
    }

    /// Who wrote what the old generation has written.
    pub fn owner(&self) -> Owner {
        Owner { id: self.record.id.as_str().into(), journal: self.old.journal() }
    }

    /// Makes the new generation, and puts it in force; `deletes` says whether what later epochs wrote is to be removed. The
    /// new number.
    ///
    /// Errors: another rewind is under way, or was faster.
    pub async fn make(&self, deletes: bool, clock: &Clock) -> Result<u64> {
        let (store, query) = (&self.old.checkpoint().store, self.old.checkpoint().join(self.old.query()).prefix);
        let number = generations(store, &query).await?.last().copied().unwrap_or_default() + 1;
        let root = query.clone().join(digits(number));
        // A rewind is the first run of what it makes: so of two at once only one goes ahead.
        self.write(&record_path(&root, "runs", 1), encode(&this_process(1, clock))?).await?;
        let definition = DefinitionRecord { version: VERSION, number: 1, definition: self.definition.clone() };
        self.write(&record_path(&root, "definitions", 1), encode(&definition)?).await?;
        self.old.journal().copy_sources(&Journal::new(Arc::clone(store), root.clone().join("notes"))).await?;
        let mut state = BTreeMap::new();
        for (operator, kept) in &self.from.state {
            state.insert(operator.clone(), self.copied(operator, kept, &root).await?);
        }
        let commit = Commit {
            version: VERSION,
            epoch: 0,
            run: 1,
            batch_time_ms: self.from.batch_time_ms,
            sources: self.from.sources.clone(),
            watermark_ms: self.from.watermark_ms,
            state,
            ..Commit::default()
        };
        self.write(&record_path(&root, "commits", 0), encode(&commit)?).await?;
        let record = QueryRecord {
            version: VERSION,
            id: clock.random_id(),
            name: self.record.name.clone(),
            created_ms: clock.now_ms(),
            start: self.offsets(),
            end: self.record.end.clone(),
            rewound: Some(Rewound {
                generation: self.old.number(),
                id: self.record.id.clone(),
                epoch: self.epoch,
                deletes,
            }),
        };
        // Another may have been decided later and made sooner, and a run may have gone on from it.
        if let Some(other) = generation_behind(store, &query, self.old.number()).await? {
            return Err(self.replaced_by(other));
        }
        self.write(&root.join("query.json"), encode(&record)?).await?;
        match newest_generation(store, &query).await? {
            Some(newest) if newest != number => Err(self.replaced_by(newest)),
            _ => Ok(number),
        }
    }

    fn replaced_by(&self, generation: u64) -> Error {
        Error::fenced(format!(
            "another rewind of {} has made generation {generation}, which is in force",
            self.old.query()
        ))
    }

    async fn write(&self, path: &Path, body: Bytes) -> Result<()> {
        match create(&self.old.checkpoint().store, path, body).await? {
            Created::Won => Ok(()),
            Created::Lost(_) => Err(Error::transient(format!(
                "another rewind of {} is under way; look at what it came to, and rewind again if that is still wanted",
                self.old.query()
            ))),
        }
    }

    /// Copies the files of an operator's state. All of them are of epoch 0 now, and keep their order; the names are of this
    /// rewind's own, so that no later run writes them once more.
    async fn copied(&self, operator: &str, kept: &StateCommit, root: &Path) -> Result<StateCommit> {
        let from = self.old.state(operator);
        let folder = root.clone().join("state").join(operator);
        let to = StateStore::new(Arc::clone(&self.old.checkpoint().store), folder, 1, 0);
        let mut files = vec![];
        for file in &kept.files {
            let name = to.put(0, "rewound", from.get(file).await?, true).await?;
            files.push(StateFile { name, epoch: 0, ..file.clone() });
        }
        Ok(StateCommit { files, ..kept.clone() })
    }
}

/// The record of a query that has begun.
async fn begun(generation: &Generation) -> Result<QueryRecord> {
    generation.record().await?.ok_or_else(|| {
        Error::usage(format!("{} has not begun yet, so there is nothing to go back to", generation.query()))
    })
}

/// Where a query that was never rewound began, as a commit.
fn beginning(record: &QueryRecord) -> Commit {
    let sources = record.start.iter().map(|(table, offsets)| {
        let commits = offsets.iter().map(|(partition, next)| {
            let commit = PartitionCommit { next: *next, ..PartitionCommit::default() };
            (partition.clone(), commit)
        });
        (table.clone(), commits.collect::<SourceCommit>())
    });
    Commit { sources: sources.collect(), ..Commit::default() }
}

/// The next offsets.
fn stands(sources: &BTreeMap<String, SourceCommit>) -> BTreeMap<String, Offsets> {
    let offsets = |commits: &SourceCommit| commits.iter().map(|(p, commit)| (p.clone(), commit.next)).collect();
    sources.iter().map(|(table, commits)| (table.clone(), offsets(commits))).collect()
}

/// Where `commit` stands, but at these offsets. What was known of a partition goes where its offset changes.
fn moved(commit: &Commit, offsets: &BTreeMap<String, Offsets>, query: &str) -> Result<BTreeMap<String, SourceCommit>> {
    let mut sources = commit.sources.clone();
    for (table, offsets) in offsets {
        let tables: Vec<String> = sources.keys().cloned().collect();
        let Some(commits) = sources.get_mut(table) else {
            let hint = did_you_mean(table, tables.iter().map(String::as_str));
            return Err(Error::usage(format!("{query} reads no table {table}{hint}")));
        };
        let partitions: Vec<String> = commits.keys().map(ToString::to_string).collect();
        for (partition, next) in offsets {
            let Some(commit) = commits.get_mut(partition) else {
                let hint = did_you_mean(&partition.to_string(), partitions.iter().map(String::as_str));
                return Err(Error::usage(format!("{query} has read no partition {partition} of {table}{hint}")));
            };
            if commit.next != *next {
                *commit = PartitionCommit { next: *next, ..PartitionCommit::default() };
            }
        }
    }
    Ok(sources)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connector::Partition;

    #[test]
    fn what_is_not_named_stays_and_what_is_unknown_is_refused() {
        let partition = |number| Partition::new("t", number);
        let commit = |next| PartitionCommit { next, last_row_ms: Some(7), ..PartitionCommit::default() };
        let sources =
            BTreeMap::from([("a".to_string(), SourceCommit::from([0, 1].map(|n| (partition(n), commit(9)))))]);
        let newest = Commit { sources, ..Commit::default() };
        let to = |table: &str, number, next| {
            let offsets = BTreeMap::from([(table.to_string(), Offsets::from([(partition(number), next)]))]);
            moved(&newest, &offsets, "q")
        };
        let found = to("a", 1, 4).unwrap();
        assert_eq!(found["a"][&partition(0)], commit(9));
        assert_eq!(found["a"][&partition(1)], PartitionCommit { next: 4, ..PartitionCommit::default() });
        assert_eq!(to("a", 1, 9).unwrap(), newest.sources);
        assert_eq!(to("b", 0, 1).unwrap_err().to_string(), "q reads no table b; known are a");
        let unknown = to("a", 7, 1).unwrap_err().to_string();
        assert!(unknown.starts_with("q has read no partition t:7 of a"), "{unknown}");
    }
}

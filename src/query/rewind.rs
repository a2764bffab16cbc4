//! A query that goes back: to where an earlier epoch left it, or to given offsets.
//!
//! The idea: a new [generation](crate::checkpoint::Rewind) goes on from there, under an id of its own. What later epochs
//! wrote is kept, or removed; that is the caller's to say. It is removed behind the new generation: first by the rewind
//! itself, and once more whenever the query is opened before its first commit, so that a rewind that broke off is finished.
//!
//! Guarantee: removed is what the old id wrote in epochs after the one that is gone back to, and nothing else. Where it
//! cannot be, as in a topic, a rewind that wants it is refused before anything happens.
//!
//! Not promised: that a run of the old generation which is alive adds nothing more. It ends at its next look; what it was
//! about to publish just then may still appear, and is removed when the query is opened next. So stop the query first. A
//! reader may see that files go.

use std::sync::Arc;

use super::Query;
use crate::catalog::TableDefinition;
use crate::checkpoint::{Journal, Rewind, Rewound};
use crate::connector::{Connectors, Environment, Owner};
use crate::error::{Error, Result};

/// A rewind that is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    /// The generation that is in force now.
    pub generation: u64,
    /// How many files of later epochs were removed.
    pub files: u64,
}

/// Makes the rewind; `deletes` says whether what later epochs wrote is removed.
///
/// Errors: of kind `Refused`, what was written is to be removed and cannot be.
pub async fn rewind(
    rewind: &Rewind,
    deletes: bool,
    connectors: &Connectors,
    environment: &Environment,
) -> Result<Done> {
    let mut targets: Vec<Arc<TableDefinition>> = vec![];
    for definition in rewind.definitions() {
        for target in definition.inserts().map(|(_, _, target)| target).chain(&definition.late) {
            if !targets.iter().any(|known| **known == *target) {
                targets.push(Arc::new(target.clone()));
            }
        }
    }
    let epoch = match (deletes, rewind.epoch()) {
        (false, _) => None,
        (true, Some(epoch)) => Some(epoch),
        (true, None) => {
            return Err(Error::refused(
                "these offsets are no kept epoch's, so nobody knows which files were written behind them; say --output \
                 keep, or go back to an epoch",
            ));
        }
    };
    for target in targets.iter().filter(|_| deletes) {
        let connector = connectors.of(target)?;
        if !connector.takes_back(target) {
            return Err(Error::refused(format!(
                "table {}: what was written to {} cannot be taken back; say --output keep, and rows that are computed again \
                 are there twice",
                target.name,
                connector.identity(target)?
            )));
        }
    }
    // What the rewind before this one has left to be removed is not known any more behind the next generation.
    if let Some(before) = rewind.before() {
        take_back(before, &targets, connectors, environment).await?;
    }
    let generation = rewind.make(deletes, &environment.clock).await?;
    let mut files = 0;
    if let Some(epoch) = epoch {
        for target in &targets {
            let sink = connectors.of(target)?.sink(Arc::clone(target), environment, &rewind.owner()).await?;
            files += sink.take_back(epoch).await?;
            // What is still open of uploads is nobody's now.
            sink.forget(u64::MAX).await?;
        }
    }
    Ok(Done { generation, files })
}

/// Removes what a rewind was to remove of these tables, where that can be done.
async fn take_back<'a>(
    rewound: &Rewound,
    targets: impl IntoIterator<Item = &'a Arc<TableDefinition>>,
    connectors: &Connectors,
    environment: &Environment,
) -> Result<()> {
    let Some(epoch) = rewound.epoch.filter(|_| rewound.deletes) else { return Ok(()) };
    let owner = Owner { id: rewound.id.as_str().into(), journal: Journal::detached() };
    for target in targets {
        let connector = connectors.of(target)?;
        if connector.takes_back(target) {
            let sink = connector.sink(Arc::clone(target), environment, &owner).await?;
            sink.take_back(epoch).await?;
        }
    }
    Ok(())
}

impl Query {
    /// Finishes the rewind that has made this generation, until its first epoch is committed. Dead letters go, too: where
    /// they are written is known only now.
    pub(super) async fn take_back(&self) -> Result<()> {
        match &self.record.rewound {
            Some(rewound) if self.position.epoch == 0 => {
                let targets = self.opened.planned.targets();
                take_back(rewound, targets, &self.spec.connectors, &self.spec.environment).await
            }
            _ => Ok(()),
        }
    }
}

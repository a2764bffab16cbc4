//! Finding out what is gone of the streams, before an epoch is planned or run again.
//!
//! The idea: recovery looks at every partition once: what it holds, and whether the message that was read last is still the
//! one that is there. What follows from that is [`loss`]'s to say. That a partition ends before what was read, or to be
//! read, is believed only after a while ([`PATIENCE`]): it may be a new leader that is still behind.
//!
//! Not promised: to find anything in partitions that cannot be reached then.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::stream::{self, StreamExt, TryStreamExt};
use tokio::time::timeout;

use super::Query;
use super::loss::{self, Anew, Known};
use crate::catalog::TableDefinition;
use crate::checkpoint::{Cut, PartitionCommit, SourceCommit};
use crate::connector::{Extent, Offsets, OnDataLoss, Partition, ScanOptions, Source};
use crate::error::{Error, Kind, Result};

/// How many messages are looked at side by side.
const LOOKED_AT: usize = 16;
/// How long that may take, of one.
const LOOKING: Duration = Duration::from_secs(10);
/// How long ends may seem to be gone before that is believed.
const PATIENCE: Duration = Duration::from_secs(30);

/// Whether ends of partitions are gone.
#[derive(Debug, Default)]
pub(super) struct Doubt {
    /// Since when it seems so, by the monotonic clock.
    since_us: Option<u64>,
    /// Whether recovery has believed it.
    was_sure: bool,
}

/// What recovery has found of the tables that go on without what is lost.
#[derive(Debug)]
pub(super) struct Survey {
    extents: BTreeMap<String, Extent>,
    anew: Anew,
    /// Before the positions of what is another now were put back.
    committed: BTreeMap<String, SourceCommit>,
    is_sure: bool,
}

impl Survey {
    /// What is left of an epoch that was intended.
    pub(super) fn left(&self, cuts: &BTreeMap<String, Cut>) -> BTreeMap<String, Cut> {
        let Self { extents, anew, committed, is_sure } = self;
        loss::left(cuts, &Known { extents, anew, committed, is_sure: *is_sure })
    }
}

impl Query {
    /// Looks at what the streams hold. A partition whose messages are others than those that were read ends the query, or is
    /// begun at its first offset, where the table says so.
    pub(super) async fn survey(&mut self) -> Result<Survey> {
        self.doubt.was_sure = self.is_sure();
        self.unreached = None;
        let (committed, is_sure) = (self.position.sources.clone(), self.doubt.was_sure);
        let mut survey = Survey { extents: BTreeMap::new(), anew: Anew::new(), committed, is_sure };
        for (name, table) in self.opened.planned.tables() {
            let Some(commits) = survey.committed.get(&name) else { continue };
            let source = self.opened.opener.source(&table).await?;
            let extent = match source.extent().await {
                Ok(extent) => extent,
                Err(error) if error.kind() == Kind::Transient => {
                    self.unreached = Some(error);
                    continue;
                }
                Err(error) => return Err(error),
            };
            let mut others = others(&source, &extent, commits).await?;
            if !goes_on(&table)? {
                if let Some(partition) = others.first() {
                    return Err(Error::data_loss(format!(
                        "table {name}: {partition} holds other messages than those that were read: the topic was created anew; \
                         to read it from its first offset say 'scan.on-data-loss' = 'continue', or give the query another \
                         name (SET 'pipeline.name')"
                    )));
                }
                continue;
            }
            if is_sure {
                others.extend(shrunk(&extent, commits, self.record.end.get(&name)));
            }
            self.begin_anew(&name, &extent, &others);
            survey.extents.insert(name.clone(), extent);
            survey.anew.insert(name, others);
        }
        Ok(survey)
    }

    /// Puts the position to the first offset; of a stream whose end was found out in what is gone, to that end.
    fn begin_anew(&mut self, table: &str, extent: &Extent, partitions: &BTreeSet<Partition>) {
        if !partitions.is_empty() {
            self.until = None;
        }
        let commits = self.position.sources.entry(table.to_owned()).or_default();
        for partition in partitions {
            tracing::warn!(table, %partition, "it was created anew, and is read from its first offset");
            let end = self.record.end.get(table).and_then(|end| end.get(partition)).copied();
            let next = end.or_else(|| extent.partitions.get(partition).map(|bounds| bounds.earliest));
            match (next, commits.get_mut(partition)) {
                (Some(next), Some(commit)) => (commit.next, commit.last) = (next, None),
                _ => drop(commits.remove(partition)),
            }
        }
    }

    /// Ends of partitions seem to be gone.
    pub(super) fn begin_doubt(&mut self) {
        let now_us = self.start_us();
        self.doubt.since_us.get_or_insert(now_us);
    }

    /// They are there.
    pub(super) fn end_doubt(&mut self) {
        self.doubt = Doubt::default();
    }

    fn is_sure(&self) -> bool {
        self.doubt.since_us.is_some_and(|since_us| self.ms_since(since_us) >= PATIENCE.as_secs_f64() * 1000.0)
    }

    /// Whether another try may help against this error, as it leaves out what is gone.
    pub(super) fn can_go_on_without(&self, error: &Error) -> bool {
        let goes_on = |table: &Arc<TableDefinition>| goes_on(table).unwrap_or(false);
        error.kind() == Kind::DataLoss && !self.doubt.was_sure && self.opened.planned.tables().values().any(goes_on)
    }
}

/// Whether a table goes on without what is lost.
fn goes_on(table: &TableDefinition) -> Result<bool> {
    Ok(ScanOptions::of(table)?.on_data_loss == OnDataLoss::Continue)
}

/// The partitions whose last message that was read is another now, of those that can be reached.
async fn others(source: &Arc<dyn Source>, extent: &Extent, commits: &SourceCommit) -> Result<BTreeSet<Partition>> {
    let there = commits.iter().filter(|(partition, _)| extent.partitions.contains_key(*partition));
    let read = there.filter_map(|(partition, commit)| Some((partition.clone(), commit.last.clone()?)));
    let looks = read.map(|(partition, last)| {
        let source = Arc::clone(source);
        let look = async move {
            match timeout(LOOKING, source.fingerprint(&partition, last.offset)).await {
                Ok(Ok(found)) => Ok(found.filter(|found| *found != last).map(|_| partition)),
                Ok(Err(error)) if error.kind() != Kind::Transient => Err(error),
                // It went away just now.
                Ok(Err(_)) | Err(_) => Ok(None),
            }
        };
        look.boxed()
    });
    let looks: Vec<_> = looks.collect();
    let found: Vec<Option<Partition>> = stream::iter(looks).buffer_unordered(LOOKED_AT).try_collect().await?;
    Ok(found.into_iter().flatten().collect())
}

/// The partitions that end before what was read, or are not there any more; but not those that are read to their end.
fn shrunk(extent: &Extent, commits: &SourceCommit, end: Option<&Offsets>) -> BTreeSet<Partition> {
    let has_ended = |partition: &Partition, commit: &PartitionCommit| {
        end.is_some_and(|end| end.get(partition).is_none_or(|end| commit.next >= *end))
    };
    let is_shrunk = |(partition, commit): &(&Partition, &PartitionCommit)| match extent.partitions.get(*partition) {
        Some(bounds) => bounds.latest < commit.next && !has_ended(partition, commit),
        None => !extent.unreachable.contains_key(*partition),
    };
    commits.iter().filter(is_shrunk).map(|(partition, _)| partition.clone()).collect()
}

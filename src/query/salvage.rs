//! Finding out what is gone of the streams, before an epoch is planned or run again.
//!
//! The idea: recovery looks at every partition once: what it holds, and whether the message that was read last is still the
//! one that is there. What follows from that is [`loss`]'s to say. That a partition ends before what was read, or to be
//! read, is believed only after a while ([`PATIENCE`]): it may be a new leader that is still behind. A query that meets no
//! trouble looks at the last messages of the partitions that it is about to read on, now and then ([`APART`]), and recovers
//! if one is another.
//!
//! Not promised: to find anything in partitions that cannot be reached then; to notice a topic that was created anew, and
//! has more messages than were read, within [`APART`] of the last look.

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
/// How far apart the last message of a partition is looked at while nothing is wrong.
const APART: Duration = Duration::from_secs(5);
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

/// By table and partition, when its last message was looked at, by the monotonic clock.
#[derive(Debug, Default)]
pub(super) struct Looked(BTreeMap<String, BTreeMap<Partition, u64>>);

impl Looked {
    fn note<'a>(&mut self, table: &str, partitions: impl Iterator<Item = &'a Partition>, now_us: u64) {
        let looked = self.0.entry(table.to_owned()).or_default();
        looked.extend(partitions.map(|partition| (partition.clone(), now_us)));
    }

    /// Those of the partitions that it is time to look at, as is done now.
    fn due<'a>(
        &mut self,
        table: &str,
        partitions: impl Iterator<Item = &'a Partition>,
        now_us: u64,
    ) -> Vec<&'a Partition> {
        let looked = self.0.get(table);
        let is_due = |partition: &&Partition| {
            let at_us = looked.and_then(|looked| looked.get(*partition));
            at_us.is_none_or(|at_us| Duration::from_micros(now_us.saturating_sub(*at_us)) >= APART)
        };
        let due: Vec<&Partition> = partitions.filter(is_due).collect();
        self.note(table, due.iter().copied(), now_us);
        due
    }
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
            let now_us = self.start_us();
            self.looked.note(&name, extent.partitions.keys(), now_us);
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

    /// Looks at the last messages of what an epoch is about to read on, where it is time for that.
    ///
    /// Errors: a transient one, where a message is another now. Recovery finds out what follows from it.
    pub(super) async fn check_same(
        &mut self,
        extents: &[(String, Extent)],
        cuts: &BTreeMap<String, Cut>,
        now_us: u64,
    ) -> Result<()> {
        let tables = self.opened.planned.tables();
        for (name, extent) in extents {
            let (Some(commits), Some(cut)) = (self.position.sources.get(name), cuts.get(name)) else { continue };
            let due = self.looked.due(name, cut.iter().flatten().map(|span| &span.partition), now_us);
            let due =
                due.into_iter().filter_map(|partition| Some((partition.clone(), commits.get(partition)?.clone())));
            let due: SourceCommit = due.collect();
            if due.is_empty() {
                continue;
            }
            let source = self.opened.opener.source(&tables[name]).await?;
            if let Some((partition, _)) = shown(&source, extent, &due).await?.iter().find(|(_, is_same)| !**is_same) {
                return Err(Error::transient(format!(
                    "table {name}: {partition} holds other messages than those that were read"
                )));
            }
        }
        Ok(())
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

    /// Whether that has lasted for so long that it is believed.
    pub(super) fn is_sure(&self) -> bool {
        self.doubt.since_us.is_some_and(|since_us| self.ms_since(since_us) >= PATIENCE.as_secs_f64() * 1000.0)
    }

    /// Whether another try may help against this error, as it leaves out what is gone.
    pub(super) fn can_go_on_without(&self, error: &Error) -> bool {
        let goes_on = |table: &Arc<TableDefinition>| goes_on(table).unwrap_or(false);
        error.kind() == Kind::DataLoss && !self.doubt.was_sure && self.opened.planned.tables().values().any(goes_on)
    }
}

/// Whether a table goes on without what is lost.
pub(super) fn goes_on(table: &TableDefinition) -> Result<bool> {
    Ok(ScanOptions::of(table)?.on_data_loss == OnDataLoss::Continue)
}

/// The partitions whose messages are others now than those that were read, of those that can be reached.
async fn others(source: &Arc<dyn Source>, extent: &Extent, commits: &SourceCommit) -> Result<BTreeSet<Partition>> {
    let shown = shown(source, extent, commits).await?;
    Ok(anew(&shown, extent, commits, |partition| source.topic(partition)))
}

/// Of partitions that can be reached, whether their last message that was read is still the same, as far as that can be
/// told.
async fn shown(source: &Arc<dyn Source>, extent: &Extent, commits: &SourceCommit) -> Result<BTreeMap<Partition, bool>> {
    let there = commits.iter().filter(|(partition, _)| extent.partitions.contains_key(*partition));
    let read = there.filter_map(|(partition, commit)| Some((partition.clone(), commit.last.clone()?)));
    let looks = read.map(|(partition, last)| {
        let source = Arc::clone(source);
        let look = async move {
            match timeout(LOOKING, source.fingerprint(&partition, last.offset)).await {
                Ok(Ok(found)) => Ok(found.map(|found| (partition, found == last))),
                Ok(Err(error)) if error.kind() != Kind::Transient => Err(error),
                // It went away just now.
                Ok(Err(_)) | Err(_) => Ok(None),
            }
        };
        look.boxed()
    });
    let looks: Vec<_> = looks.collect();
    let found: Vec<Option<(Partition, bool)>> = stream::iter(looks).buffer_unordered(LOOKED_AT).try_collect().await?;
    Ok(found.into_iter().flatten().collect())
}

/// The partitions that are another topic's now, by what is shown of some of them. A topic is created anew with all of its
/// partitions: where one is another's, so are those of which nothing is shown. But one that stands at its first offset has
/// nothing to go back for.
fn anew<'a>(
    shown: &'a BTreeMap<Partition, bool>,
    extent: &Extent,
    commits: &'a SourceCommit,
    topic: impl Fn(&'a Partition) -> &'a str,
) -> BTreeSet<Partition> {
    let others = shown.iter().filter(|(_, is_same)| !**is_same).map(|(partition, _)| topic(partition));
    let topics: BTreeSet<&str> = others.collect();
    let anew = commits.iter().filter_map(|(partition, commit)| {
        let has_read_on = || extent.partitions.get(partition).is_some_and(|bounds| commit.next > bounds.earliest);
        let is_anew = match shown.get(partition) {
            Some(is_same) => !is_same,
            None => topics.contains(topic(partition)) && has_read_on(),
        };
        is_anew.then(|| partition.clone())
    });
    anew.collect()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connector::contract::fixture::{extent, partition};

    #[test]
    fn a_topic_is_another_with_all_its_partitions() {
        let others = |shown: &[(u32, bool)]| {
            let next = [9, 5, 5, 3, 0];
            let commits =
                (0..).map(partition).zip(next.map(|next| PartitionCommit { next, ..PartitionCommit::default() }));
            let mut commits: SourceCommit = commits.collect();
            let of_another_topic = Partition::new("u", 0);
            commits.insert(of_another_topic.clone(), PartitionCommit { next: 5, ..PartitionCommit::default() });
            let mut extent = extent(&[(0, 20), (0, 20), (0, 20), (3, 20), (0, 20)]);
            extent.partitions.insert(of_another_topic, extent.partitions[&partition(0)]);
            let shown = shown.iter().map(|(number, is_same)| (partition(*number), *is_same)).collect();
            format!("{:?}", anew(&shown, &extent, &commits, |partition| &partition.name))
        };
        assert_eq!(others(&[]), "{}", "nothing is known");
        assert_eq!(others(&[(0, true)]), "{}");
        assert_eq!(others(&[(0, false)]), "{t:0, t:1, t:2}", "the others stand where they would be put");
        assert_eq!(others(&[(0, false), (1, true)]), "{t:0, t:2}", "what is the same stays so");
        assert_eq!(others(&[(3, false)]), "{t:0, t:1, t:2, t:3}");
    }

    #[test]
    fn a_partition_is_looked_at_now_and_then() {
        const SECOND: u64 = 1_000_000;
        let mut looked = Looked::default();
        let mut due = |table: &str, numbers: &[u32], seconds: u64| {
            let partitions: Vec<Partition> = numbers.iter().copied().map(partition).collect();
            format!("{:?}", looked.due(table, partitions.iter(), seconds * SECOND))
        };
        assert_eq!(due("a", &[0], 0), "[t:0]");
        assert_eq!(due("a", &[0, 1], 3), "[t:1]", "one by one");
        assert_eq!(due("b", &[0], 4), "[t:0]");
        assert_eq!(due("a", &[0, 1], 5), "[t:0]");
        assert_eq!(due("a", &[0, 1], 9), "[t:1]");
        assert_eq!(due("a", &[], 60), "[]", "where nothing is read nobody looks");
    }
}

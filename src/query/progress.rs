//! What a query says of itself: one record an epoch, and what happened between them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use super::pace::LimitedBy;
use super::{Batch, Query};
use crate::connector::{Offsets, Partition, PartitionReport, Published, SkippedSample};
use crate::plan::opener::LateRows;

/// One epoch, as it went. Durations are in milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EpochProgress {
    /// The query's name.
    pub query: String,
    /// The epoch.
    pub epoch: u64,
    /// The run.
    pub run: u64,
    /// The epoch's time, ms since 1970.
    pub batch_time_ms: i64,
    /// Messages or rows read, skipped ones included.
    pub rows_in: u64,
    /// Bytes of their payloads.
    pub bytes_in: u64,
    /// Rows written to the target; of a statement set, to all of them.
    pub rows_out: u64,
    /// Bytes written to it.
    pub bytes_out: u64,
    /// Rows read, per second of the epoch's duration.
    pub rows_per_second: f64,
    /// By table.
    pub sources: BTreeMap<String, SourceProgress>,
    /// The watermark, ms since 1970, for a query that has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub watermark_ms: Option<i64>,
    /// By operator and partition, rows that were late and left out.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub late: LateRows,
    /// By operator, what it remembers.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub state: BTreeMap<String, StateProgress>,
    /// How long each of the six steps took.
    pub durations_ms: Durations,
    /// How often this epoch was started over in this process.
    pub retries: u32,
}

/// What an operator remembers after an epoch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct StateProgress {
    /// Rows: groups, or seen keys.
    pub rows: usize,
    /// Bytes in memory, about.
    pub memory: usize,
    /// Whether files were made fewer beside the epoch: a snapshot, or a merge.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub compacting: bool,
}

/// One source in an epoch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct SourceProgress {
    /// Rows that are there and not read yet, after this epoch.
    pub lag: u64,
    /// What kept this epoch from taking all there was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limited_by: Option<LimitedBy>,
    /// Messages skipped in this epoch (`format.on-error` = skip).
    pub skipped: u64,
    /// Messages that went to the table for dead letters.
    #[serde(skip_serializing_if = "is_zero")]
    pub dead_letters: u64,
    /// Offsets that were gone, and are skipped (`scan.on-data-loss` = continue).
    #[serde(skip_serializing_if = "is_zero")]
    pub lost: u64,
    /// Partitions that could not be reached when the epoch was planned, and why.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub unreachable: BTreeMap<Partition, String>,
    /// Partitions that were idle when the epoch was planned, and did not hold the watermark back.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub idle: Vec<Partition>,
    /// By partition, those that were read.
    pub partitions: BTreeMap<Partition, PartitionProgress>,
}

/// One partition in an epoch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct PartitionProgress {
    /// The first offset read.
    pub from: u64,
    /// The next to read.
    pub to: u64,
    /// The end of the partition when the epoch was planned.
    pub latest: u64,
    /// Messages skipped.
    #[serde(skip_serializing_if = "is_zero")]
    pub skipped: u64,
    /// Messages that went to the table for dead letters.
    #[serde(skip_serializing_if = "is_zero")]
    pub dead_letters: u64,
    /// One of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample: Option<SkippedSample>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The six steps, in ms.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Durations {
    /// Asking sources what they hold, and planning.
    pub plan: f64,
    /// Writing the intent.
    pub intend: f64,
    /// Making the epoch's plan.
    pub bind: f64,
    /// Reading, computing, staging.
    pub run: f64,
    /// Publishing.
    pub publish: f64,
    /// Writing the commit.
    pub commit: f64,
}

impl Durations {
    /// All of them.
    pub fn total(&self) -> f64 {
        self.plan + self.intend + self.bind + self.run + self.publish + self.commit
    }
}

/// What a query says.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// It runs.
    Started {
        /// The query's name.
        query: String,
        /// Its id.
        id: String,
        /// The run.
        run: u64,
        /// The epoch it goes on after.
        committed: u64,
    },
    /// An epoch is committed.
    Epoch(Box<EpochProgress>),
    /// An epoch is started over after trouble.
    Retry {
        /// The query's name.
        query: String,
        /// How often in a row.
        attempt: u32,
        /// Why.
        error: String,
        /// How long it waits before, in ms.
        wait_ms: u64,
    },
    /// It ended, as it should.
    Finished {
        /// The query's name.
        query: String,
        /// The newest committed epoch.
        epoch: u64,
    },
    /// It ended with an error.
    Failed {
        /// The query's name.
        query: String,
        /// Why.
        error: String,
    },
}

impl Query {
    /// What an epoch that is committed has to say.
    pub(super) fn progress(
        &self,
        batch: &Batch,
        reports: &BTreeMap<String, BTreeMap<Partition, PartitionReport>>,
        published: &[Published],
        lost: &BTreeMap<String, Offsets>,
    ) -> EpochProgress {
        let (mut rows_in, mut bytes_in) = (0, 0);
        let mut sources = BTreeMap::new();
        for (table, seen) in reports {
            let mut source = SourceProgress {
                lost: lost.get(table).into_iter().flat_map(BTreeMap::values).sum(),
                unreachable: batch.unreachable.get(table).cloned().unwrap_or_default(),
                idle: batch.idle.get(table).cloned().unwrap_or_default(),
                limited_by: batch.limited.get(table).copied(),
                ..SourceProgress::default()
            };
            let latest = batch.latest.get(table);
            for span in batch.cuts.get(table).into_iter().flatten().flatten() {
                let report = seen.get(&span.partition).cloned().unwrap_or_default();
                rows_in += report.messages;
                bytes_in += report.bytes;
                source.skipped += report.skipped;
                source.dead_letters += report.dead_letters;
                let latest = latest.and_then(|latest| latest.get(&span.partition)).copied().unwrap_or(span.to);
                let PartitionReport { skipped, dead_letters, sample, .. } = report;
                let partition =
                    PartitionProgress { from: span.from, to: span.to, latest, skipped, dead_letters, sample };
                source.partitions.insert(span.partition.clone(), partition);
            }
            let position = self.offsets(table);
            let behind = |(p, latest): (&Partition, &u64)| latest.saturating_sub(position.get(p).copied().unwrap_or(0));
            source.lag = latest.into_iter().flatten().map(behind).sum();
            sources.insert(table.clone(), source);
        }
        let written = || published.iter().take(batch.opened.planned.outputs.len());
        let seconds = (batch.took.total() / 1000.0).max(1e-6);
        EpochProgress {
            query: self.spec.name.clone(),
            epoch: batch.intent.epoch,
            run: self.log.run(),
            batch_time_ms: batch.intent.batch_time_ms,
            rows_in,
            bytes_in,
            rows_out: written().map(|target| target.rows).sum(),
            bytes_out: written().map(|target| target.bytes).sum(),
            rows_per_second: rows_in as f64 / seconds,
            sources,
            watermark_ms: batch.intent.watermark_ms.filter(|watermark| *watermark < i64::MAX),
            late: batch.opened.opener.take_late(),
            state: batch.opened.opener.operators().iter().map(|operator| operator.progress()).collect(),
            durations_ms: batch.took,
            retries: self.retries,
        }
    }
}

/// Where a query's events go; clones share it.
#[derive(Clone)]
pub struct Reporter(Arc<dyn Fn(Event) + Send + Sync>);

impl Reporter {
    /// Calls `report` for every event.
    pub fn new(report: impl Fn(Event) + Send + Sync + 'static) -> Self {
        Self(Arc::new(report))
    }

    /// Says nothing.
    pub fn silent() -> Self {
        Self::new(|_| {})
    }

    /// Reports an event.
    pub fn report(&self, event: Event) {
        (self.0)(event)
    }
}

impl fmt::Debug for Reporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reporter")
    }
}

//! One epoch: what it reads, its intent, its plans, running them, publishing, the commit.
//!
//! Guarantee: what a step does follows from the intent and from what the step before it left; only [`Query::step`]
//! strings them together. Nothing is readable before all tasks of all sinks have staged.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use futures::future::try_join_all;
use futures::stream::{self, TryStreamExt};
use tokio::task::JoinSet;

use super::pace::LimitedBy;
use super::progress::{Durations, Event};
use super::salvage::goes_on;
use super::trigger::Trigger;
use super::watermark::{self, PartitionTime};
use super::{Batch, DeadLetterTable, IdlePartitions, Opened, Position, Query, Step, definition, loss, planning};
use crate::checkpoint::{Commit, Cut, Intent, SourceCommit, VERSION};
use crate::connector::spool::Spooled;
use crate::connector::{Bounds, Extent, Offsets, OnDataLoss, Partition, PartitionReport, Published, ScanOptions, Span};
use crate::error::{Error, Kind, Result};
use crate::plan::Binding;
use crate::plan::aggregate::{Times, stateful_nodes};

/// How long ago, in ms, it may be that no newer run was seen when a sink publishes: not every destination fences.
const STALE_LOOK_MS: f64 = 1000.0;

/// Rows that were put down while an epoch ran.
type PutDown = Box<dyn Iterator<Item = Result<RecordBatch>> + Send>;

/// What there is to do.
pub(super) enum Work {
    Next(Next),
    None(Step),
}

/// The next epoch: one that is intended already, or one to intend.
pub(super) enum Next {
    Pending(Box<Batch>),
    New(Box<NewEpoch>),
}

/// An epoch that is planned, and not intended yet.
pub(super) struct NewEpoch {
    cuts: BTreeMap<String, Cut>,
    latest: BTreeMap<String, Offsets>,
    unreachable: BTreeMap<String, BTreeMap<Partition, String>>,
    limited: BTreeMap<String, LimitedBy>,
    idle: IdlePartitions,
    batch_time_ms: i64,
    watermark_ms: Option<i64>,
    plan_ms: f64,
}

/// What the next epoch takes of all tables.
#[derive(Default)]
struct Shares {
    cuts: BTreeMap<String, Cut>,
    limited: BTreeMap<String, LimitedBy>,
    /// Whether that is enough to begin it.
    are_enough: bool,
    /// Whether any of them has something unread.
    have_unread: bool,
}

/// Where the partitions stand after an epoch, what was seen of them, and how many offsets were gone.
#[derive(Default)]
struct Advanced {
    sources: BTreeMap<String, SourceCommit>,
    reports: BTreeMap<String, BTreeMap<Partition, PartitionReport>>,
    lost: BTreeMap<String, Offsets>,
}

impl Query {
    /// What the next epoch reads.
    pub(super) async fn plan_offsets(&mut self) -> Result<Work> {
        if let Some(error) = self.unreached.take() {
            return Err(error);
        }
        if let Some(batch) = self.pending.take() {
            return Ok(Work::Next(Next::Pending(batch)));
        }
        let start = self.start_us();
        let extents = self.extents().await?;
        let latest: BTreeMap<String, Offsets> =
            extents.iter().map(|(table, extent)| (table.clone(), self.latest(table, extent))).collect();
        if self.spec.trigger == Trigger::AvailableNow && self.until.is_none() {
            check_reachable(&extents)?;
            self.until = Some(latest.clone());
        }
        self.check_ends(&extents)?;
        let shares = self.shares(&extents, &latest, start)?;
        let batch_time_ms = self.spec.environment.clock.now_ms().max(self.position.batch_time_ms + 1);
        let (watermark_ms, idle) = self.watermark(&extents, batch_time_ms)?;
        if !shares.are_enough && !self.would_close(watermark_ms)? {
            self.retries = 0;
            let has_ended = !shares.have_unread && self.has_ended(&extents);
            return Ok(Work::None(if has_ended { Step::Finished } else { Step::Idle }));
        }
        let Shares { cuts, limited, .. } = shares;
        self.check_same(&extents, &cuts, start).await?;
        self.pace.planned();
        self.is_behind = limited.values().any(|by| *by != LimitedBy::Rate);
        let plan_ms = self.ms_since(start);
        let unreachable = extents.into_iter().map(|(table, extent)| (table, extent.unreachable)).collect();
        Ok(Work::Next(Next::New(Box::new(NewEpoch {
            cuts,
            latest,
            unreachable,
            limited,
            idle,
            batch_time_ms,
            watermark_ms,
            plan_ms,
        }))))
    }

    /// What each table holds now.
    async fn extents(&self) -> Result<Vec<(String, Extent)>> {
        let (tables, opener) = (self.opened.planned.tables(), &self.opened.opener);
        let extents = tables.values().map(|table| async move {
            let source = opener.source(table).await?;
            let extent = source.extent().await.map_err(|e| e.context(format_args!("table {}", table.name)))?;
            Ok::<_, Error>((table.name.clone(), extent))
        });
        try_join_all(extents).await
    }

    /// Doubts ends of partitions that lie before what was read.
    ///
    /// Errors: of kind `DataLoss`, once that is believed of a table that does not go on without what is lost; until then a
    /// transient one.
    fn check_ends(&mut self, extents: &[(String, Extent)]) -> Result<()> {
        let tables = self.opened.planned.tables();
        for (name, extent) in extents {
            let is_believed = self.is_sure() && !goes_on(&tables[name])?;
            let kind = if is_believed { Kind::DataLoss } else { Kind::Transient };
            if let Err(shrunk) = check_shrunk(kind, name, extent, &self.offsets(name), self.record.end.get(name)) {
                self.begin_doubt();
                return Err(shrunk);
            }
        }
        self.end_doubt();
        Ok(())
    }

    /// As much of each table as its limits allow at this time.
    fn shares(
        &mut self,
        extents: &[(String, Extent)],
        latest: &BTreeMap<String, Offsets>,
        now_us: u64,
    ) -> Result<Shares> {
        let (tables, mut shares) = (self.opened.planned.tables(), Shares::default());
        for (name, extent) in extents {
            let options = ScanOptions::of(&tables[name])?;
            let mut position = self.offsets(name);
            let lost = match options.on_data_loss {
                OnDataLoss::Continue => loss::skip_lost(&mut position, extent, self.until(name)),
                OnDataLoss::Fail => vec![],
            };
            let unread = planning::unread(extent, &position, self.until(name));
            let has_unread = !unread.is_empty();
            let limits = self.pace.limits(name, &options, has_unread, now_us);
            let mut share = planning::next_spans(unread, &limits);
            // Where nothing more will come there is nothing to wait for, but for what a rate holds back.
            let is_last = extent.complete || self.is_all_there(name, &latest[name]);
            shares.are_enough |= !lost.is_empty()
                || share.is_enough
                || (is_last && share.limited_by != Some(LimitedBy::Rate) && !share.spans.is_empty());
            shares.have_unread |= has_unread;
            shares.limited.extend(share.limited_by.map(|by| (name.clone(), by)));
            share.spans.extend(lost);
            let all: BTreeSet<Partition> = extent.partitions.keys().chain(extent.unreachable.keys()).cloned().collect();
            shares.cuts.insert(name.clone(), planning::cut(share.spans, &Vec::from_iter(all), self.tasks));
        }
        Ok(shares)
    }

    /// Whether all streams are at their end for this query.
    fn has_ended(&self, extents: &[(String, Extent)]) -> bool {
        extents.iter().all(|(name, extent)| match self.until(name) {
            Some(until) => self.has_reached(name, until),
            None => extent.complete,
        })
    }

    /// Where a table ends for this query: as `available-now` found it, or as it was recorded of one that is bounded.
    fn until(&self, table: &str) -> Option<&Offsets> {
        self.until.as_ref().and_then(|until| until.get(table)).or_else(|| self.record.end.get(table))
    }

    /// Whether what is there now is all that this query will read of a table.
    fn is_all_there(&self, table: &str, latest: &Offsets) -> bool {
        let is_there = |(partition, end): (&Partition, &u64)| latest.get(partition).is_some_and(|latest| latest >= end);
        self.until.is_some() || self.record.end.get(table).is_some_and(|end| end.iter().all(is_there))
    }

    fn has_reached(&self, table: &str, end: &Offsets) -> bool {
        let position = self.offsets(table);
        end.iter().all(|(partition, end)| position.get(partition).is_none_or(|next| next >= end))
    }

    /// Up to where a table's partitions can be read now, of one that is bounded not behind its end.
    fn latest(&self, table: &str, extent: &Extent) -> Offsets {
        let end = self.record.end.get(table);
        let latest = |(partition, bounds): (&Partition, &Bounds)| {
            let latest = match end {
                Some(end) => bounds.latest.min(*end.get(partition)?),
                None => bounds.latest,
            };
            Some((partition.clone(), latest))
        };
        extent.partitions.iter().filter_map(latest).collect()
    }

    pub(super) fn offsets(&self, table: &str) -> Offsets {
        let commits = self.position.sources.get(table);
        commits.into_iter().flatten().map(|(partition, commit)| (partition.clone(), commit.next)).collect()
    }

    /// The watermark of the next epoch, by what has been read so far; and by table the partitions that do not count for it,
    /// as they are idle.
    fn watermark(&self, extents: &[(String, Extent)], batch_time_ms: i64) -> Result<(Option<i64>, IdlePartitions)> {
        let timed = self.opened.planned.timed_tables();
        if timed.is_empty() {
            return Ok((None, BTreeMap::new()));
        }
        let is_read = |(table, extent): &(String, Extent)| {
            if !timed.contains_key(table) {
                return true;
            }
            if let Some(end) = self.record.end.get(table) {
                return self.has_reached(table, end);
            }
            let position = self.offsets(table);
            let is_read = |(p, b): (&Partition, &Bounds)| *position.get(p).unwrap_or(&b.earliest) >= b.latest;
            extent.complete && extent.partitions.iter().all(is_read)
        };
        if extents.iter().all(is_read) {
            return Ok((Some(i64::MAX), BTreeMap::new()));
        }
        let (mut sources, mut idle) = (vec![], BTreeMap::new());
        for (table, extent) in extents {
            let Some(definition) = timed.get(table).filter(|table| table.watermark.is_some()) else { continue };
            let (commits, end) = (self.position.sources.get(table), self.record.end.get(table));
            let shown = |partition: &Partition| {
                let commit = commits.and_then(|commits| commits.get(partition)).cloned().unwrap_or_default();
                // One that is read to its end, or never will be, holds nothing back.
                if end.is_some_and(|end| end.get(partition).is_none_or(|end| commit.next >= *end)) {
                    return None;
                }
                Some(PartitionTime {
                    watermark_ms: commit.watermark_ms,
                    last_row_ms: commit.last_row_ms.unwrap_or(self.record.created_ms),
                    has_more: match extent.partitions.get(partition) {
                        Some(bounds) => bounds.latest > commit.next.max(bounds.earliest),
                        // Of one that is not there at all nobody knows; it is idle in the end.
                        None => extent.unreachable.contains_key(partition),
                    },
                })
            };
            let read = commits.into_iter().flatten().map(|(partition, _)| partition);
            let known: BTreeSet<&Partition> =
                extent.partitions.keys().chain(extent.unreachable.keys()).chain(read).collect();
            let counted = known.into_iter().filter_map(|partition| Some((partition.clone(), shown(partition)?)));
            let (partitions, times): (Vec<Partition>, Vec<PartitionTime>) = counted.unzip();
            let timeout = ScanOptions::of(definition)?.idle_timeout;
            sources.push(watermark::of_source(&times, batch_time_ms, timeout));
            let found = partitions.into_iter().zip(&times).filter(|(_, time)| time.is_idle(batch_time_ms, timeout));
            idle.insert(table.clone(), found.map(|(partition, _)| partition).collect());
        }
        Ok((watermark::next(&sources, self.position.watermark_ms), idle))
    }

    /// Whether anything would come out at this watermark without a new row.
    fn would_close(&self, watermark_ms: Option<i64>) -> Result<bool> {
        for shape in &self.opened.planned.shapes {
            if let Some(bound) = shape.bound(watermark_ms)?
                && self.opened.opener.operator(&shape.layout.name)?.would_close(bound)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Writes the intent, unless there is one; from here on the epoch's result is decided.
    pub(super) async fn intend(&mut self, next: Next) -> Result<Batch> {
        let NewEpoch { cuts, latest, unreachable, limited, idle, batch_time_ms, watermark_ms, plan_ms } = match next {
            Next::Pending(batch) => return Ok(*batch),
            Next::New(new) => *new,
        };
        let start = self.start_us();
        let epoch = self.position.epoch + 1;
        let mut pins = Vec::with_capacity(self.opened.sinks.len());
        for sink in &self.opened.sinks {
            pins.push(sink.prepare(epoch).await?);
        }
        let mut defined = pins.clone();
        let of_dead_letters = defined.split_off(self.opened.planned.defined_targets());
        let intent = Intent {
            version: VERSION,
            epoch,
            run: self.log.run(),
            definition: self.opened.number,
            batch_time_ms,
            watermark_ms,
            late_before_ms: self.position.watermark_ms,
            shards: if self.opened.planned.shapes.is_empty() { 0 } else { self.shards },
            sources: cuts,
            pins: defined,
            dead_letters: self.opened.planned.dead_letter_identities().zip(of_dead_letters).collect(),
        };
        if self.opened.planned.definition.static_files.is_some() {
            // Once it is intended, it could only be run with the files as they were.
            let advice = "run the query again, and it goes on with them as they are now";
            self.physical(&intent, &intent.sources, &self.opened, advice).await?;
        }
        self.log.intend(&intent).await?;
        let (cuts, published) = (intent.sources.clone(), vec![None; self.opened.sinks.len()]);
        let batch = self.batch(intent, cuts, Arc::clone(&self.opened), pins, published);
        let took = Durations { plan: plan_ms, intend: self.ms_since(start), ..Durations::default() };
        Ok(Batch { latest, unreachable, limited, idle, took, ..batch })
    }

    /// The epoch's physical plans: a pure function of the intent.
    pub(super) async fn bind(&self, batch: &mut Batch) -> Result<Vec<Arc<dyn ExecutionPlan>>> {
        let start = self.start_us();
        let advice = "an epoch that was begun with them must be finished with them; put them back as they were";
        let physical = self.physical(&batch.intent, &batch.cuts, &batch.opened, advice).await?;
        batch.took.bind = self.ms_since(start);
        Ok(physical)
    }

    async fn physical(
        &self,
        intent: &Intent,
        cuts: &BTreeMap<String, Cut>,
        opened: &Opened,
        advice: &str,
    ) -> Result<Vec<Arc<dyn ExecutionPlan>>> {
        let binding = Binding {
            cuts: cuts.clone(),
            times: Times {
                batch: intent.batch_time_ms,
                late_before: intent.late_before_ms,
                watermark: intent.watermark_ms,
            },
            shards: intent.shards,
            opener: Arc::clone(&opened.opener),
        };
        let physical = opened.planned.epoch(&binding).await?;
        if definition::static_files(&physical) != opened.planned.definition.static_files {
            return Err(Error::refused(format!("the files of a static table changed while the query runs; {advice}")));
        }
        Ok(physical)
    }

    /// Runs every task and stages its rows; returns when all have, or the first error.
    pub(super) async fn run(&self, batch: &mut Batch, plans: Vec<Arc<dyn ExecutionPlan>>) -> Result<()> {
        let start = self.start_us();
        for table in batch.intent.sources.keys() {
            batch.opened.opener.report(table).take();
        }
        batch.opened.opener.take_late();
        batch.opened.opener.take_kept_late()?;
        let operators = batch.opened.opener.operators();
        operators.iter().for_each(|operator| operator.discard());
        batch.opened.opener.share(&plans);
        let context = batch.opened.planned.state.task_ctx();
        let mut tasks = JoinSet::new();
        let planned = &batch.opened.planned;
        planned.dead_letters.iter().flat_map(|dead| dead.letters.values()).for_each(|letters| letters.clear());
        let mut sinks = batch.opened.sinks.iter().zip(&batch.pins).zip(&batch.published);
        let epoch = batch.intent.epoch;
        for (plan, ((sink, pin), published)) in plans.iter().zip(&mut sinks) {
            for task in 0..plan.output_partitioning().partition_count() {
                let rows = plan.execute(task, Arc::clone(&context))?;
                let (sink, pin, is_published) = (Arc::clone(sink), pin.clone(), published.is_some());
                tasks.spawn(async move {
                    match is_published {
                        // What the epoch does to state, and which rows are late, is to be found out all the same.
                        true => drained(rows).await,
                        false => sink.stage(epoch, task as u32, &pin, rows).await.map(drop),
                    }
                });
            }
        }
        while let Some(done) = tasks.join_next().await {
            match done {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(self.shut_out(error).await),
                Err(join) => return Err(Error::internal("a task ended by itself").caused_by(join)),
            }
        }
        // What remembers must see its rows also where nobody asked for its result: a join with an empty table does not
        // look at its other side.
        for node in plans.iter().flat_map(stateful_nodes) {
            let operator = batch.opened.opener.operator(&node.shape().layout.name)?;
            for shard in
                (0..node.properties().partitioning.partition_count()).filter(|shard| !operator.has_staged(*shard))
            {
                drained(node.execute(shard, Arc::clone(&context))?).await?;
            }
        }
        let late = planned.late.as_ref().map(|table| {
            let kept = batch.opened.opener.take_kept_late()?.into_iter().map(Spooled::into_batches);
            let rows: PutDown = Box::new(kept.collect::<Result<Vec<_>>>()?.into_iter().flatten());
            Ok::<_, Error>((table, rows))
        });
        let dead_letters = planned.dead_letters.iter().map(|DeadLetterTable { table, letters, .. }| {
            let taken = letters.values().map(|letters| letters.take());
            let rows: PutDown = Box::new(taken.collect::<Result<Vec<_>>>()?.into_iter().flatten());
            Ok((table, rows))
        });
        for (put_down, ((sink, pin), published)) in late.into_iter().chain(dead_letters).zip(sinks) {
            let (table, rows) = put_down?;
            if published.is_none() {
                let rows = stream::iter(rows.map(|batch| batch.map_err(DataFusionError::from)));
                let rows = Box::pin(RecordBatchStreamAdapter::new(table.writable_schema(), rows));
                if let Err(error) = sink.stage(epoch, 0, pin, rows).await {
                    return Err(self.shut_out(error).await);
                }
            }
        }
        batch.opened.opener.share(&[]);
        batch.took.run = self.ms_since(start);
        Ok(())
    }

    /// Makes the epoch readable, once it is sure that this run may, and its state durable.
    pub(super) async fn publish(&self, batch: &mut Batch) -> Result<Vec<Published>> {
        let start = self.start_us();
        let operators = batch.opened.opener.operators();
        let saved = operators.iter().map(|operator| async {
            Ok::<_, Error>((operator.layout().name.clone(), operator.save(batch.intent.epoch).await?))
        });
        batch.state = try_join_all(saved).await?.into_iter().collect();
        if let Some(looked_again) = batch.looked_again.take() {
            looked_again.await.map_err(|e| Error::internal("looking again ended by itself").caused_by(e))??;
        }
        let mut published = Vec::with_capacity(batch.opened.sinks.len());
        for (index, sink) in batch.opened.sinks.iter().enumerate() {
            if self.ms_since(batch.looked_us) > STALE_LOOK_MS {
                // Another may have begun meanwhile.
                batch.looked_us = self.start_us();
                self.log.check_newest_run().await?;
            }
            published.push(match &batch.published[index] {
                Some(published) => published.clone(),
                None => match sink.publish(batch.intent.epoch, &batch.pins[index]).await {
                    Ok(published) => published,
                    Err(error) => return Err(self.shut_out(error).await),
                },
            });
        }
        batch.took.publish = self.ms_since(start);
        Ok(published)
    }

    /// Where the partitions stand after an epoch.
    fn advanced(&self, batch: &Batch) -> Advanced {
        let Batch { intent, cuts, opened, published, .. } = batch;
        let mut advanced = Advanced { sources: self.position.sources.clone(), ..Advanced::default() };
        // What all destinations have is not lost, unless something remembers it.
        let is_there = published.iter().all(Option::is_some) && !opened.planned.remembers();
        for (table, cut) in &intent.sources {
            let seen = opened.opener.report(table).take();
            let commits = advanced.sources.entry(table.clone()).or_default();
            for span in cut.iter().flatten() {
                let read = cuts[table].iter().flatten().find(|read| read.partition == span.partition);
                let before = commits.get(&span.partition).map_or(span.from, |commit| commit.next);
                let gone = match read {
                    _ if is_there => span.from.saturating_sub(before),
                    Some(read) => span.to.saturating_sub(before).saturating_sub(read.len()),
                    None => span.len(),
                };
                if gone > 0 {
                    advanced.lost.entry(table.clone()).or_default().insert(span.partition.clone(), gone);
                }
                // What nothing is left of is another partition now, and goes on where recovery put it.
                let Some(read) = read else { continue };
                let commit = commits.entry(span.partition.clone()).or_default();
                commit.next = read.to;
                if let Some(last) = seen.get(&span.partition).and_then(|report| report.last.clone()) {
                    (commit.last, commit.last_row_ms) = (Some(last), Some(intent.batch_time_ms));
                }
                let watermark_ms = seen.get(&span.partition).and_then(|report| report.watermark_ms);
                // A time so far off that a window cannot be placed there must not stop the clock for good.
                commit.watermark_ms = commit.watermark_ms.max(watermark_ms.filter(|at| opened.can_place(*at)));
            }
            advanced.reports.insert(table.clone(), seen);
        }
        advanced
    }

    /// Makes the epoch count.
    pub(super) async fn commit(&mut self, mut batch: Batch, published: Vec<Published>) -> Result<Step> {
        let start = self.start_us();
        let intent = &batch.intent;
        let Advanced { sources, reports, lost } = self.advanced(&batch);
        let planned = &batch.opened.planned;
        let mut sinks = published;
        let of_dead_letters = sinks.split_off(planned.defined_targets());
        let commit = Commit {
            version: VERSION,
            epoch: intent.epoch,
            run: self.log.run(),
            batch_time_ms: intent.batch_time_ms,
            sources,
            sinks,
            dead_letters: planned.dead_letter_identities().zip(of_dead_letters).collect(),
            watermark_ms: intent.watermark_ms.or(self.position.watermark_ms),
            state: std::mem::take(&mut batch.state),
            lost,
        };
        self.log.commit(&commit).await?;
        let operators = batch.opened.opener.operators();
        let applied =
            operators.iter().map(|operator| operator.apply(commit.epoch, &commit.state[&operator.layout().name]));
        try_join_all(applied).await?;
        batch.took.commit = self.ms_since(start);
        let offsets = |table: &String| intent.spans(table).map(Span::len).sum::<u64>();
        for (table, seen) in &reports {
            // Offsets without a message, such as a transaction's end, do not show how large messages are.
            if seen.values().any(|report| report.messages > 0) {
                self.pace.read(table, offsets(table), seen.values().map(|report| report.bytes).sum());
            }
        }
        let bound = batch.opened.sinks.iter().filter_map(|sink| sink.epoch_bound()).min();
        let rows = reports.keys().map(offsets).max().unwrap_or_default();
        self.pace.took(rows, batch.took.run + batch.took.publish, bound);
        *batch.opened.restored.lock().await = Some((commit.epoch, self.shards));
        self.end_doubt();
        let (sinks, lost) = (commit.sinks.clone(), commit.lost.clone());
        self.position = Position::after(commit);
        let progress = self.progress(&batch, &reports, &sinks, &lost);
        self.reporter.report(Event::Epoch(Box::new(progress)));
        self.retries = 0;
        if batch.opened.number != self.opened.number {
            batch.opened.close().await;
            self.older = None;
            // The older definition's sinks may have shut out today's.
            self.fence(&self.opened).await?;
            self.restore(&self.opened).await?;
        }
        self.settle().await;
        Ok(Step::Committed(self.position.epoch))
    }
}

/// Runs what gives these rows, and drops them.
async fn drained(rows: SendableRecordBatchStream) -> Result<()> {
    Ok(rows.try_for_each(|_| std::future::ready(Ok(()))).await?)
}

/// What is available now cannot be known of partitions that nobody reaches.
fn check_reachable(extents: &[(String, Extent)]) -> Result<()> {
    let unreachable = extents.iter().find_map(|(table, extent)| Some((table, extent.unreachable.first_key_value()?)));
    match unreachable {
        Some((table, (partition, reason))) => {
            Err(Error::transient(format!("table {table}: {partition} cannot be reached: {reason}")))
        }
        None => Ok(()),
    }
}

/// A partition that ends before the query's position was created anew, or has lost its end. For a moment that may also
/// be a new leader that is still behind. Of one that is read to where it ends nothing more is asked.
fn check_shrunk(kind: Kind, table: &str, extent: &Extent, position: &Offsets, end: Option<&Offsets>) -> Result<()> {
    let has_ended = |p: &Partition, next: u64| end.is_some_and(|end| end.get(p).is_none_or(|end| next >= *end));
    let is_shrunk = |(p, next): &(&Partition, &u64)| {
        extent.partitions.get(p).is_some_and(|b| b.latest < **next) && !has_ended(p, **next)
    };
    match position.iter().find(is_shrunk) {
        Some((partition, next)) => {
            let what = format!(
                "table {table}: {partition} ends at {}, and the query has read up to {next}; if the topic was created \
                 anew, say 'scan.on-data-loss' = 'continue' to read it from its start, or give the query another name \
                 (SET 'pipeline.name')",
                extent.partitions[partition].latest
            );
            Err(Error::new(kind, what))
        }
        None => Ok(()),
    }
}

//! GROUP BY over a stream: partial aggregates of an epoch, merged into what is remembered.
//!
//! The idea: DataFusion aggregates each partition's rows of the epoch into partial states. These are dealt out to shards by
//! the hash of their key. A shard looks up the keys it got, merges, stages the merged rows as its state, and emits: groups
//! that the watermark completes ([`Emit::Complete`]), keys that were not there before ([`Emit::New`]), or what changed
//! ([`Emit::Change`]).
//!
//! Guarantee: what is emitted, in which order and from which shard, follows from the state before the epoch and from its
//! intent. Partial states are merged in the order of partitions and of rows, emitted groups are sorted by key.
//!
//! Not promised: bounded memory for the keys of one epoch; they are held until they are merged.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, Int8Array, Int64Array, RecordBatch, UInt32Array, new_empty_array};
use arrow::compute::{interleave, take};
use arrow::datatypes::SchemaRef;
use arrow::row::{RowConverter, SortField};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DataFusionError, Result as DfResult};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, Partitioning, PlanProperties,
};
use futures::stream::{self, StreamExt, TryStreamExt};
use hashbrown::HashTable;
use tokio::sync::OnceCell;

use super::changes::RowKind;
use super::kept::Kept;
use super::opener::Opener;
use super::time::Rising;
use crate::error::Result;
use crate::state::Layout;
use crate::state::files::parts;
use crate::state::keys::{KeyBytes, KeyCodec, TIMELESS};
use crate::state::operator::Operator;
use crate::state::piece::Piece;
use crate::state::shard::{Delta, Shard, StateRows, gather};
use crate::state::table::Place;

/// Rows in a batch that is emitted.
const BATCH: usize = 8192;
/// Room for so many groups of a shard is made at once.
const LIKELY_GROUPS: usize = 128 * 1024;

/// The clocks of an epoch, as its intent says. In milliseconds since 1970; half-open: a row *at* the watermark is not late.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Times {
    /// The batch time: what `now()` answers.
    pub batch: i64,
    /// The watermark of the epoch before: what it completed has come out, so rows for that are late.
    pub late_before: Option<i64>,
    /// The watermark: what lies before it comes out in this epoch.
    pub watermark: Option<i64>,
}

/// When a group comes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Emit {
    /// When the watermark has passed its rising key; then it is forgotten.
    Complete,
    /// When it is first seen; forgotten as above, if it has a rising key.
    New,
    /// By sessions: each when the watermark has passed its end, `gap` ticks after its last row; then it is forgotten.
    Session {
        /// In ticks of the time.
        gap: i64,
    },
    /// Whenever it changes: the row that it was is taken back, and the one that it is comes out ([`changes`](super::changes)).
    Change,
}

/// What an aggregation over a stream is.
#[derive(Debug)]
pub struct Shape {
    /// What it remembers.
    pub layout: Layout,
    /// What it keeps of the rows of a key.
    pub kept: Kept,
    /// When a group comes out.
    pub emit: Emit,
    /// How its rising key does.
    pub rising: Option<Rising>,
    /// How long a group that nothing touches is remembered, if it has no rising key.
    pub ttl: Option<Duration>,
    /// Whether there are no keys: the one in the layout is a constant, and no column of the result.
    pub is_one_group: bool,
}

impl Shape {
    /// Up to which value of the rising key groups are complete at `watermark_ms`.
    pub fn bound(&self, watermark_ms: Option<i64>) -> Result<Option<i64>> {
        match (watermark_ms, &self.rising) {
            (Some(i64::MAX), Some(_)) => Ok(Some(i64::MAX)),
            (Some(watermark), Some(rising)) => rising.bound(watermark),
            _ => Ok(None),
        }
    }

    /// Groups that were last touched at or before this time are forgotten.
    fn horizon(&self, times: Times) -> Option<i64> {
        self.ttl.map(|ttl| times.batch.saturating_sub(ttl.as_millis() as i64))
    }
}

/// An aggregation over a stream in one epoch: see the module's text.
#[derive(Clone)]
pub struct StatefulAggregateExec {
    /// DataFusion's partial aggregation.
    partial: Arc<dyn ExecutionPlan>,
    shape: Arc<Shape>,
    times: Times,
    opener: Arc<Opener>,
    exchange: Arc<OnceCell<Vec<Piece>>>,
    properties: Arc<PlanProperties>,
}

impl StatefulAggregateExec {
    /// Over a partial aggregation, with `schema` for its rows, in so many shards.
    pub fn new(
        partial: Arc<dyn ExecutionPlan>,
        shape: Arc<Shape>,
        schema: SchemaRef,
        times: Times,
        shards: usize,
        opener: Arc<Opener>,
    ) -> Self {
        let properties = Arc::new(PlanProperties::new(
            EquivalenceProperties::new(schema),
            Partitioning::UnknownPartitioning(shards.max(1)),
            EmissionType::Final,
            Boundedness::Bounded,
        ));
        Self { partial, shape, times, opener, exchange: Arc::default(), properties }
    }

    /// What it is.
    pub fn shape(&self) -> &Arc<Shape> {
        &self.shape
    }

    /// The clocks of its epoch.
    pub fn times(&self) -> Times {
        self.times
    }

    fn shards(&self) -> usize {
        self.properties.partitioning.partition_count()
    }

    /// Runs every partition of the input side by side; their partial states, in order.
    async fn exchange(&self, context: &Arc<TaskContext>, codec: &Arc<KeyCodec>) -> DfResult<Vec<Piece>> {
        let mut running = vec![];
        for partition in 0..self.partial.output_partitioning().partition_count() {
            let (rows, codec) = (self.partial.execute(partition, Arc::clone(context))?, Arc::clone(codec));
            let shards = self.shards();
            let pieces =
                rows.map(move |batch| Ok::<_, DataFusionError>(Piece::try_new(&codec, &batch?, shards, |_| true)?));
            // A task of its own each: they use as many cores as there are.
            running.push(datafusion::common::runtime::SpawnedTask::spawn(pieces.try_collect::<Vec<Piece>>()));
        }
        let mut all = vec![];
        for task in running {
            all.extend(task.join().await.map_err(|e| DataFusionError::External(Box::new(e)))??);
        }
        Ok(all)
    }

    /// What one shard does in this epoch, and emits.
    fn shard(&self, index: usize, operator: &Operator, pieces: &[Piece]) -> Result<Vec<RecordBatch>> {
        let shape = &self.shape;
        if let Emit::Session { gap } = shape.emit {
            return self.sessions(index, gap, operator, pieces);
        }
        let shard = operator.shard(index);
        let groups = Groups::of(pieces, index);
        let total = groups.first.len();
        let found = groups.found(pieces, &shard);
        // What is older than that is still in its place, but counts no more.
        let horizon = shape.horizon(self.times);
        let alive: Vec<Option<Place>> = match horizon {
            Some(horizon) => found.iter().map(|place| place.filter(|place| shard.touched(*place) > horizon)).collect(),
            None => found.clone(),
        };
        let bucket_of = |group: usize| {
            let (piece, row) = groups.first[group];
            pieces[piece].buckets[row]
        };

        // Those that change, bucket by bucket; a key that only had to be seen does not change.
        let is_changed = |group: &usize| shape.emit != Emit::New || alive[*group].is_none();
        let mut changed: Vec<usize> = (0..total).filter(is_changed).collect();
        changed.sort_by_key(|group| bucket_of(*group));
        let keys = KeyBytes::of(changed.iter().map(|group| groups.key(pieces, *group)));
        let mut values = self.merged(pieces, &groups, &shard, |group| Some((bucket_of(group), alive[group]?)))?;
        let order = UInt32Array::from_iter_values(changed.iter().map(|group| *group as u32));
        for column in &mut values {
            *column = take(column, &order, None)?;
        }
        let mut new = vec![];
        if shape.emit == Emit::New && !changed.is_empty() {
            // The key is all that has to be remembered of what has come out.
            let keys = self.shown(operator.codec().decode(keys.iter())?);
            new = self.batches([keys, shape.kept.evaluate(&values, changed.len())?].concat())?;
            values.clear();
        }
        if shape.ttl.is_some() {
            values.push(Arc::new(Int64Array::from(vec![self.times.batch; changed.len()])));
        }
        let rows = Arc::new(StateRows { keys, values });
        let buckets: Vec<i64> = changed.iter().map(|group| bucket_of(*group)).collect();
        let replaces: Vec<Option<Place>> = changed.iter().map(|group| found[*group]).collect();

        let closes = shape.bound(self.times.watermark)?.or(horizon);
        let complete = closes
            .filter(|_| shape.rising.is_some())
            .map_or(0, |bound| buckets.partition_point(|bucket| *bucket < bound));
        let emitted = match shape.emit {
            Emit::Change => {
                self.changes(operator, &shard, &rows, &changed.iter().map(|group| alive[*group]).collect::<Vec<_>>())?
            }
            Emit::New => new,
            Emit::Complete | Emit::Session { .. } => {
                let replaced = (0..complete).filter_map(|row| Some((buckets[row], replaces[row]?)));
                let live = closes.map(|bound| shard.closing(bound, replaced)).unwrap_or_default();
                let mut parts: Vec<(&StateRows, Vec<usize>)> =
                    live.iter().map(|live| (live.rows(), live.places().collect())).collect();
                parts.push((rows.as_ref(), (0..complete).collect()));
                self.emit(operator, &parts)?
            }
        };
        drop(shard);
        operator.stage(index, Delta { rows, buckets, replaces, first: complete, closes, gone: vec![] });
        Ok(emitted)
    }

    /// A row of state for each group, made of the epoch's rows, and of the one that was there: where that lies is what
    /// `was` says.
    fn merged(
        &self,
        pieces: &[Piece],
        groups: &Groups,
        shard: &Shard,
        was: impl Fn(usize) -> Option<(i64, Place)>,
    ) -> Result<Vec<ArrayRef>> {
        let total = groups.first.len();
        if total == 0 {
            let kept = self.shape.layout.kept().iter();
            return Ok(kept.map(|field| new_empty_array(field.data_type())).collect());
        }
        let remembered = (0..total).filter(|_| self.shape.emit != Emit::New);
        let (old, found): (Vec<usize>, Vec<_>) = remembered.filter_map(|group| Some((group, was(group)?))).unzip();
        let (mut sources, mut places) = shard.places(found.into_iter());
        places.extend(groups.places.iter().map(|(piece, row)| (sources.len() + piece, *row)));
        sources.extend(pieces.iter().map(|piece| &piece.rows));
        self.shape.kept.merged(&gather(&sources, &places)?, &[old.as_slice(), &groups.of_row].concat(), total)
    }

    /// Of every group that is another now: the row that it was (if `replaces` has one), and the row that it is.
    fn changes(
        &self,
        operator: &Operator,
        shard: &Shard,
        rows: &StateRows,
        replaces: &[Option<Place>],
    ) -> Result<Vec<RecordBatch>> {
        let groups = replaces.len();
        if groups == 0 {
            return Ok(vec![]);
        }
        let keys = self.shown(operator.codec().decode(rows.keys.iter())?);
        let now = [keys.clone(), self.shape.kept.evaluate(&rows.values, groups)?].concat();
        let old: Vec<usize> = (0..groups).filter(|group| replaces[*group].is_some()).collect();
        let (sources, places) = shard.places(old.iter().filter_map(|group| Some((TIMELESS, replaces[*group]?))));
        let before = match old.is_empty() {
            true => now.iter().map(|column| column.slice(0, 0)).collect(),
            false => {
                let taken = UInt32Array::from_iter_values(old.iter().map(|group| *group as u32));
                let keys = keys.iter().map(|key| Ok(take(key, &taken, None)?)).collect::<Result<Vec<_>>>()?;
                [keys, self.shape.kept.evaluate(&gather(&sources, &places)?, old.len())?].concat()
            }
        };
        let fields = now.iter().map(|column| SortField::new(column.data_type().clone())).collect();
        let converter = RowConverter::new(fields)?;
        let (was, is) = (converter.convert_columns(&before)?, converter.convert_columns(&now)?);
        let (mut picked, mut kinds, mut next_old) = (vec![], vec![], 0);
        for (group, replaced) in replaces.iter().enumerate() {
            if replaced.is_none() {
                picked.push((1, group));
                kinds.push(RowKind::Insert as i8);
                continue;
            }
            if was.row(next_old) != is.row(group) {
                picked.extend([(0, next_old), (1, group)]);
                kinds.extend([RowKind::UpdateBefore as i8, RowKind::UpdateAfter as i8]);
            }
            next_old += 1;
        }
        let column = |(before, now): (&ArrayRef, &ArrayRef)| Ok(interleave(&[before, now], &picked)?);
        let mut columns = before.iter().zip(&now).map(column).collect::<Result<Vec<_>>>()?;
        columns.push(Arc::new(Int8Array::from(kinds)));
        self.batches(columns)
    }

    /// Columns of the result, in batches of bounded size.
    pub(super) fn batches(&self, columns: Vec<ArrayRef>) -> Result<Vec<RecordBatch>> {
        Ok(parts(RecordBatch::try_new(self.schema(), columns)?, BATCH).collect())
    }

    /// The key columns that the result has.
    pub(super) fn shown(&self, keys: Vec<ArrayRef>) -> Vec<ArrayRef> {
        if self.shape.is_one_group { vec![] } else { keys }
    }

    /// State rows as rows of the result, sorted by key.
    fn emit(&self, operator: &Operator, parts: &[(&StateRows, Vec<usize>)]) -> Result<Vec<RecordBatch>> {
        let sources: Vec<&StateRows> = parts.iter().map(|(rows, _)| *rows).collect();
        let key = |(part, row): (usize, usize)| sources[part].keys.row(row);
        let mut places: Vec<(usize, usize)> =
            (parts.iter().enumerate()).flat_map(|(part, (_, rows))| rows.iter().map(move |row| (part, *row))).collect();
        places.sort_unstable_by(|a, b| key(*a).cmp(key(*b)));
        let mut batches = vec![];
        for places in places.chunks(BATCH) {
            let mut columns = self.shown(operator.codec().decode(places.iter().map(|place| key(*place)))?);
            columns.extend(self.shape.kept.evaluate(&gather(&sources, places)?, places.len())?);
            batches.push(RecordBatch::try_new(self.schema(), columns)?);
        }
        Ok(batches)
    }
}

/// The keys of an epoch in one shard, numbered as they come.
pub(super) struct Groups {
    index: HashTable<u32>,
    /// Where each group was first met: piece and row.
    pub(super) first: Vec<(usize, usize)>,
    /// Every row: piece and row, and its group.
    pub(super) places: Vec<(usize, usize)>,
    pub(super) of_row: Vec<usize>,
}

impl Groups {
    /// Those of one shard.
    pub(super) fn of(pieces: &[Piece], shard: usize) -> Self {
        let rows = pieces.iter().map(|piece| piece.by_shard[shard].len()).sum();
        // To make the table larger as they come costs more than what is not used, unless that were very much.
        let likely = LIKELY_GROUPS.min(rows);
        let mut groups = Self {
            index: HashTable::with_capacity(likely),
            first: Vec::with_capacity(likely),
            places: Vec::with_capacity(rows),
            of_row: Vec::with_capacity(rows),
        };
        for (number, piece) in pieces.iter().enumerate() {
            piece.by_shard[shard].iter().for_each(|row| groups.intern(pieces, number, *row as usize));
        }
        groups
    }

    /// The key of one.
    fn key<'a>(&self, pieces: &'a [Piece], group: usize) -> &'a [u8] {
        let (piece, row) = self.first[group];
        pieces[piece].key(row)
    }

    /// By group, its row in the shard.
    pub(super) fn found(&self, pieces: &[Piece], shard: &Shard) -> Vec<Option<Place>> {
        let keys = self.first.iter().map(|(piece, row)| {
            let piece = &pieces[*piece];
            (piece.buckets[*row], piece.hashes[*row], piece.key(*row))
        });
        shard.find_all(keys)
    }

    fn intern(&mut self, pieces: &[Piece], piece: usize, row: usize) {
        let hash = pieces[piece].hashes[row];
        let key = pieces[piece].key(row);
        let first = &self.first;
        let key_of = |group: &u32| {
            let (piece, row) = first[*group as usize];
            pieces[piece].key(row)
        };
        let group = match self.index.find(hash, |group| key_of(group) == key) {
            Some(group) => *group as usize,
            None => {
                let group = self.first.len();
                self.index.insert_unique(hash, group as u32, |group| {
                    let (piece, row) = first[*group as usize];
                    pieces[piece].hashes[row]
                });
                self.first.push((piece, row));
                group
            }
        };
        self.places.push((piece, row));
        self.of_row.push(group);
    }
}

impl fmt::Debug for StatefulAggregateExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fmt_as(DisplayFormatType::Default, f)
    }
}

impl DisplayAs for StatefulAggregateExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |fields: &[arrow::datatypes::FieldRef]| {
            fields.iter().map(|field| field.name().as_str()).collect::<Vec<_>>().join(", ")
        };
        let layout = &self.shape.layout;
        write!(f, "StatefulAggregateExec: {}, keys=[{}]", layout.name, names(&layout.keys))?;
        write!(f, ", state=[{}], emit={:?}", names(&layout.values), self.shape.emit)
    }
}

impl ExecutionPlan for StatefulAggregateExec {
    fn name(&self) -> &str {
        "StatefulAggregateExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.partial]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> DfResult<TreeNodeRecursion>,
    ) -> DfResult<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> DfResult<Arc<dyn ExecutionPlan>> {
        let Some(partial) = children.into_iter().next() else { return Ok(self) };
        let (shape, schema, opener) = (Arc::clone(&self.shape), self.schema(), Arc::clone(&self.opener));
        Ok(Arc::new(Self::new(partial, shape, schema, self.times, self.shards(), opener)))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> DfResult<SendableRecordBatchStream> {
        let this = self.clone();
        let emitted = async move {
            let operator = this.opener.operator(&this.shape.layout.name)?;
            let pieces = this.exchange.get_or_try_init(|| this.exchange(&context, operator.codec())).await?;
            // Whoever waited for the exchange was woken by this thread, and could not go to another one while it computes.
            tokio::task::yield_now().await;
            let batches = this.shard(partition, &operator, pieces)?;
            Ok::<_, DataFusionError>(stream::iter(batches.into_iter().map(Ok)))
        };
        let rows = stream::once(emitted).try_flatten();
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), rows)))
    }
}

/// What remembers in a plan, from the top.
pub fn stateful_nodes(plan: &Arc<dyn ExecutionPlan>) -> Vec<&StatefulAggregateExec> {
    let mut found: Vec<_> = plan.downcast_ref::<StatefulAggregateExec>().into_iter().collect();
    found.extend(plan.children().into_iter().flat_map(stateful_nodes));
    found
}

/// The operators of a plan, in the order of their names.
pub fn shapes(plan: &Arc<dyn ExecutionPlan>) -> Vec<Arc<Shape>> {
    let mut found: Vec<Arc<Shape>> = plan.children().into_iter().flat_map(shapes).collect();
    found.extend(plan.downcast_ref::<StatefulAggregateExec>().map(|node| Arc::clone(&node.shape)));
    found
}

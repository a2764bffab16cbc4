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

use arrow::array::{ArrayRef, Int8Array, Int64Array, RecordBatch, UInt32Array};
use arrow::compute::{interleave, take};
use arrow::datatypes::SchemaRef;
use arrow::row::{RowConverter, SortField};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DataFusionError, Result as DfResult};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{EmitTo, GroupsAccumulator};
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion::physical_expr::{EquivalenceProperties, GroupsAccumulatorAdapter, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, Partitioning, PlanProperties,
};
use futures::stream::{self, StreamExt, TryStreamExt};
use hashbrown::HashTable;
use tokio::sync::OnceCell;

use super::changes::RowKind;
use super::opener::Opener;
use super::time::Rising;
use crate::error::Result;
use crate::state::Layout;
use crate::state::keys::{KeyCodec, TIMELESS};
use crate::state::operator::Operator;
use crate::state::piece::Piece;
use crate::state::shard::{Delta, Place, Shard, StateRows, gather};

/// Rows in a batch that is emitted.
const BATCH: usize = 8192;

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
    /// Whenever it changes: the row that it was is taken back, and the one that it is comes out ([`changes`](super::changes)).
    Change,
}

/// What an aggregation over a stream is.
#[derive(Debug)]
pub struct Shape {
    /// What it remembers.
    pub layout: Layout,
    /// The aggregate functions.
    pub functions: Vec<Arc<AggregateFunctionExpr>>,
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

    fn accumulators(&self) -> Result<Vec<Box<dyn GroupsAccumulator>>> {
        let make = |function: &Arc<AggregateFunctionExpr>| -> Result<Box<dyn GroupsAccumulator>> {
            if function.groups_accumulator_supported() {
                return Ok(function.create_groups_accumulator()?);
            }
            let function = Arc::clone(function);
            Ok(Box::new(GroupsAccumulatorAdapter::new(move || function.create_accumulator())))
        };
        self.functions.iter().map(make).collect()
    }

    /// Merges state rows into the accumulators; `groups` says which row belongs to which of `total` groups.
    fn merge(
        &self,
        accumulators: &mut [Box<dyn GroupsAccumulator>],
        values: &[ArrayRef],
        groups: &[usize],
        total: usize,
    ) -> Result<()> {
        let mut from = 0;
        for (accumulator, function) in accumulators.iter_mut().zip(&self.functions) {
            let to = from + function.state_fields()?.len();
            accumulator.merge_batch(&values[from..to], groups, total)?;
            from = to;
        }
        Ok(())
    }

    /// The answers of groups, each given by one state row.
    fn evaluate(&self, values: &[ArrayRef], groups: usize) -> Result<Vec<ArrayRef>> {
        let mut accumulators = self.accumulators()?;
        self.merge(&mut accumulators, values, &(0..groups).collect::<Vec<_>>(), groups)?;
        accumulators.iter_mut().map(|a| Ok(a.evaluate(EmitTo::All)?)).collect()
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

    fn shards(&self) -> usize {
        self.properties.partitioning.partition_count()
    }

    /// Runs every partition of the input side by side; their partial states, in order.
    async fn exchange(&self, context: &Arc<TaskContext>, codec: &Arc<KeyCodec>) -> DfResult<Vec<Piece>> {
        let mut running = vec![];
        for partition in 0..self.partial.output_partitioning().partition_count() {
            let (rows, codec) = (self.partial.execute(partition, Arc::clone(context))?, Arc::clone(codec));
            let (keys, shards) = (self.shape.layout.keys.len(), self.shards());
            let pieces = rows
                .map(move |batch| Ok::<_, DataFusionError>(Piece::try_new(&codec, &batch?, keys, shards, |_| true)?));
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
        let shard = operator.shard(index);
        let mut groups = Groups::default();
        for (number, piece) in pieces.iter().enumerate() {
            piece.by_shard[index].iter().for_each(|row| groups.intern(pieces, number, *row as usize));
        }
        let total = groups.first.len();
        let found: Vec<Option<Place>> = (0..total)
            .map(|group| {
                let (piece, row) = groups.first[group];
                let piece = &pieces[piece];
                shard.find(piece.buckets[row], piece.hashes[row], piece.key(row))
            })
            .collect();
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
        let mut keys = operator.codec().empty(changed.len());
        for &group in &changed {
            let (piece, row) = groups.first[group];
            keys.push(pieces[piece].rows.keys.row(row));
        }
        let order = UInt32Array::from_iter_values(changed.iter().map(|group| *group as u32));
        let mut values = if shape.functions.is_empty() {
            vec![]
        } else {
            // All at once: an accumulator takes it that every group up to the last is in what it is given.
            let mut accumulators = shape.accumulators()?;
            let old: Vec<usize> = (0..total).filter(|group| alive[*group].is_some()).collect();
            let was = old.iter().filter_map(|group| Some((bucket_of(*group), alive[*group]?)));
            let (mut sources, mut places) = shard.places(was);
            places.extend(groups.places.iter().map(|(piece, row)| (sources.len() + piece, *row)));
            sources.extend(pieces.iter().map(|piece| &piece.rows));
            if total > 0 {
                let of_row = [old.as_slice(), &groups.of_row].concat();
                shape.merge(&mut accumulators, &gather(&sources, &places)?, &of_row, total)?;
            }
            let mut values = vec![];
            for accumulator in &mut accumulators {
                values.extend(accumulator.state(EmitTo::All)?);
            }
            values.iter().map(|column| Ok(take(column, &order, None)?)).collect::<Result<Vec<_>>>()?
        };
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
            Emit::New => self.emit(operator, &[(rows.as_ref(), (0..buckets.len()).collect())], false)?,
            Emit::Complete => {
                let replaced = (0..complete).filter_map(|row| Some((buckets[row], replaces[row]?)));
                let live = closes.map(|bound| shard.closing(bound, replaced)).unwrap_or_default();
                let mut parts: Vec<(&StateRows, Vec<usize>)> =
                    live.iter().map(|live| (live.rows(), live.places().collect())).collect();
                parts.push((rows.as_ref(), (0..complete).collect()));
                self.emit(operator, &parts, true)?
            }
        };
        drop(shard);
        operator.stage(index, Delta { rows, buckets, replaces, first: complete, closes });
        Ok(emitted)
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
        let now = [keys.clone(), self.shape.evaluate(&rows.values, groups)?].concat();
        let old: Vec<usize> = (0..groups).filter(|group| replaces[*group].is_some()).collect();
        let (sources, places) = shard.places(old.iter().filter_map(|group| Some((TIMELESS, replaces[*group]?))));
        let before = match old.is_empty() {
            true => now.iter().map(|column| column.slice(0, 0)).collect(),
            false => {
                let taken = UInt32Array::from_iter_values(old.iter().map(|group| *group as u32));
                let keys = keys.iter().map(|key| Ok(take(key, &taken, None)?)).collect::<Result<Vec<_>>>()?;
                [keys, self.shape.evaluate(&gather(&sources, &places)?, old.len())?].concat()
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
        let whole = RecordBatch::try_new(self.schema(), columns)?;
        let starts = (0..whole.num_rows()).step_by(BATCH);
        Ok(starts.map(|from| whole.slice(from, BATCH.min(whole.num_rows() - from))).collect())
    }

    /// The key columns that the result has.
    fn shown(&self, keys: Vec<ArrayRef>) -> Vec<ArrayRef> {
        if self.shape.is_one_group { vec![] } else { keys }
    }

    /// State rows as rows of the result, sorted by key if they are to be.
    fn emit(&self, operator: &Operator, parts: &[(&StateRows, Vec<usize>)], sorted: bool) -> Result<Vec<RecordBatch>> {
        let sources: Vec<&StateRows> = parts.iter().map(|(rows, _)| *rows).collect();
        let key = |(part, row): (usize, usize)| sources[part].keys.row(row);
        let mut places: Vec<(usize, usize)> =
            (parts.iter().enumerate()).flat_map(|(part, (_, rows))| rows.iter().map(move |row| (part, *row))).collect();
        if sorted {
            places.sort_unstable_by(|a, b| key(*a).data().cmp(key(*b).data()));
        }
        let mut batches = vec![];
        for places in places.chunks(BATCH) {
            let mut columns = self.shown(operator.codec().decode(places.iter().map(|place| key(*place)))?);
            if !self.shape.functions.is_empty() {
                columns.extend(self.shape.evaluate(&gather(&sources, places)?, places.len())?);
            }
            batches.push(RecordBatch::try_new(self.schema(), columns)?);
        }
        Ok(batches)
    }
}

/// The keys of an epoch in one shard, numbered as they come.
#[derive(Default)]
struct Groups {
    index: HashTable<u32>,
    /// Where each group was first met: piece and row.
    first: Vec<(usize, usize)>,
    /// Every row: piece and row, and its group.
    places: Vec<(usize, usize)>,
    of_row: Vec<usize>,
}

impl Groups {
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

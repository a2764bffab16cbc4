//! A stream as a DataFusion table.
//!
//! A [`StreamTable`] is a `TableProvider` that any `SessionContext` can register. Unbound, it scans as a plan that
//! starts where the table's options say and goes on as messages arrive, or ends, if the stream does or the session is
//! in batch mode ([`ExecutionMode`]). Such a scan reads no more than predicates on where messages stand, and a LIMIT,
//! leave of it. Bound to spans ([`StreamTable::bound_to`]) it is an ordinary bounded table with one partition per
//! task, each read in order.

use std::fmt;
use std::sync::Arc;

use arrow::array::{AsArray, BooleanArray, RecordBatch, StringViewArray, UInt64Array};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, FieldRef, Int8Type, Schema, SchemaRef, TimestampMillisecondType};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DataFusionError, Result as DfResult, Statistics};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_expr::utils::{collect_columns, reassign_expr_columns};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::limit::LimitStream;
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties};
use futures::stream::{self, BoxStream, StreamExt};
use futures::{Stream, TryStreamExt};

use super::ask::{self, Ask, ExecutionMode};
use super::changes::{RowKind, kind_field};
use super::narrowing::{Narrowing, Place};
use super::opener::Opener;
use crate::catalog::TableDefinition;
use crate::checkpoint::Cut;
use crate::connector::{Partition, PartitionReport, ReadReport, Source, Span};
use crate::error::Result;

/// A table over a topic or another stream: see the module's text.
#[derive(Debug, Clone)]
pub struct StreamTable {
    definition: Arc<TableDefinition>,
    schema: SchemaRef,
    opener: Arc<Opener>,
    cut: Option<Arc<Cut>>,
    /// The table's watermark, in ms, over its stored columns.
    watermark: Option<Arc<dyn PhysicalExpr>>,
    /// Whether reads report it.
    is_watched: bool,
    /// Whether its messages say what happened to rows: then sources give the kind of each row as one more column.
    is_changelog: bool,
}

impl StreamTable {
    /// The table's stored columns (without computed ones), unbound.
    pub fn new(definition: Arc<TableDefinition>, opener: Arc<Opener>) -> Self {
        let schema = definition.stored_schema();
        Self { definition, schema, opener, cut: None, watermark: None, is_watched: false, is_changelog: false }
    }

    /// The same table, with the expression of its watermark: `Timestamp(Millisecond)` over the stored columns.
    pub fn with_watermark(self, watermark: Arc<dyn PhysicalExpr>) -> Self {
        Self { watermark: Some(watermark), ..self }
    }

    /// The same table, as a changelog, if it is one.
    pub fn as_changelog(self, is_changelog: bool) -> Self {
        Self { is_changelog, ..self }
    }

    /// Whether its rows are changes.
    pub fn is_changelog(&self) -> bool {
        self.is_changelog
    }

    /// What the table is.
    pub fn definition(&self) -> &Arc<TableDefinition> {
        &self.definition
    }

    /// The same table, bound to these spans: a partition for each task, read in the order given. If it is watched, its
    /// reads report the highest watermark of each partition.
    pub fn bound_to(&self, cut: Cut, opener: Arc<Opener>, is_watched: bool) -> Self {
        Self { cut: Some(Arc::new(cut)), opener, is_watched, ..self.clone() }
    }

    /// Its columns that say where a message stands.
    fn places(&self) -> Result<Vec<Place>> {
        Ok(Place::of(&self.definition, self.opener.connectors().of(&self.definition)?.as_ref()))
    }

    /// What an unbound scan asks.
    fn ask(&self, state: &dyn Session, filters: &[Expr], limit: Option<usize>) -> DfResult<Ask> {
        let mode = state.config().get_extension::<ExecutionMode>();
        let is_bounded = self.definition.is_bounded() || mode.as_deref() == Some(&ExecutionMode::Batch);
        let narrowing = Narrowing::try_new(self.places()?, &self.schema, filters, state)?;
        Ok(Ask::new(is_bounded, state.config().target_partitions(), narrowing, limit))
    }
}

#[async_trait]
impl TableProvider for StreamTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    /// What predicates say of where messages stand narrows what is read, and they are asked of the rows all the same.
    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> DfResult<Vec<TableProviderFilterPushDown>> {
        let places = self.places()?;
        let support = |filter: &&Expr| match Place::suffice(&places, filter) {
            true => TableProviderFilterPushDown::Inexact,
            false => TableProviderFilterPushDown::Unsupported,
        };
        Ok(filters.iter().map(support).collect())
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> DfResult<Arc<dyn ExecutionPlan>> {
        let all = || (0..self.schema.fields().len()).collect();
        let projection = projection.cloned().unwrap_or_else(all);
        let ask = match &self.cut {
            Some(_) => Ask::default(),
            None => self.ask(state, filters, limit)?,
        };
        let shown = projection.into_iter().map(Shown::Stored).collect();
        Ok(Arc::new(ScanExec::try_new(self, shown, Arc::new(ask))?))
    }
}

/// Reads a stream: everything from its start on, or exactly the spans it is bound to.
#[derive(Clone)]
pub struct ScanExec {
    stream: StreamTable,
    /// Its columns.
    shown: Vec<Shown>,
    /// What is read, with its indices rising, as sources take it, and where each column is in that; those of positions
    /// lie behind it.
    ascending: (Vec<usize>, Vec<usize>),
    /// The watermark over the columns that are read.
    watermark: Option<Arc<dyn PhysicalExpr>>,
    properties: Arc<PlanProperties>,
    /// What it asks, if it is bound to no spans.
    pub(super) ask: Arc<Ask>,
    pub(super) metrics: ExecutionPlanMetricsSet,
}

/// A column of a scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shown {
    /// A stored column of the table.
    Stored(usize),
    /// One of [`position_fields`].
    Position(usize),
    /// What happened to the row.
    Kind,
}

/// Where a row stands in its stream, as columns that compare as (topic, partition, offset) do: its partition, where the
/// span begins that it was read in, and its place there. However a stream is cut into spans, rows compare alike.
pub fn position_fields() -> [FieldRef; 3] {
    let field = |name: &str, data_type| Arc::new(Field::new(name, data_type, false));
    [field("$partition", DataType::Utf8View), field("$span", DataType::UInt64), field("$row", DataType::UInt64)]
}

/// The rows of a span, each with its position.
fn numbered(rows: SendableRecordBatchStream, table: &str, span: &Span) -> SendableRecordBatchStream {
    let fields: Vec<FieldRef> = rows.schema().fields().iter().cloned().chain(position_fields()).collect();
    let schema = Arc::new(Schema::new(fields));
    let Partition { name, number } = &span.partition;
    let (partition, from, mut next) = (format!("{table} {name} {number:010}"), span.from, 0);
    let with_position = {
        let schema = Arc::clone(&schema);
        move |batch: DfResult<RecordBatch>| {
            let batch = batch?;
            let rows = batch.num_rows();
            let first = next;
            next += rows as u64;
            let mut columns = batch.columns().to_vec();
            columns.push(Arc::new(StringViewArray::from_iter_values(std::iter::repeat_n(&partition, rows))));
            columns.push(Arc::new(UInt64Array::from(vec![from; rows])));
            columns.push(Arc::new(UInt64Array::from_iter_values(first..next)));
            Ok(RecordBatch::try_new(Arc::clone(&schema), columns)?)
        }
    };
    Box::pin(RecordBatchStreamAdapter::new(schema, rows.map(with_position)))
}

impl ScanExec {
    fn try_new(table: &StreamTable, shown: Vec<Shown>, ask: Arc<Ask>) -> DfResult<Self> {
        let positions = position_fields();
        let kind = kind_field();
        let field = |shown: &Shown| match shown {
            Shown::Stored(index) => Arc::clone(&table.schema.fields()[*index]),
            Shown::Position(index) => Arc::clone(&positions[*index]),
            Shown::Kind => Arc::clone(&kind),
        };
        let schema = Arc::new(Schema::new(shown.iter().map(field).collect::<Vec<_>>()));
        let stored = shown.iter().filter_map(|shown| match shown {
            Shown::Stored(index) => Some(*index),
            Shown::Position(_) | Shown::Kind => None,
        });
        let mut ascending: Vec<usize> = stored.collect();
        let watermark = table.watermark.as_ref().filter(|_| table.is_watched);
        ascending.extend(watermark.into_iter().flat_map(collect_columns).map(|column| column.index()));
        ascending.sort_unstable();
        ascending.dedup();
        let place = |shown: &Shown| match shown {
            Shown::Stored(index) => ascending.binary_search(index).unwrap_or_default(),
            Shown::Position(index) => ascending.len() + usize::from(table.is_changelog) + index,
            Shown::Kind => ascending.len(),
        };
        let places = shown.iter().map(place).collect();
        let read = table.schema.project(&ascending)?;
        let watermark = watermark.map(|expr| reassign_expr_columns(Arc::clone(expr), &read)).transpose()?;
        let (partitions, boundedness) = match &table.cut {
            Some(cut) => (cut.len().max(1), Boundedness::Bounded),
            None => (ask.outputs(), ask.boundedness()),
        };
        let properties = Arc::new(PlanProperties::new(
            EquivalenceProperties::new(schema),
            Partitioning::UnknownPartitioning(partitions),
            EmissionType::Incremental,
            boundedness,
        ));
        let (stream, ascending, metrics) = (table.clone(), (ascending, places), ExecutionPlanMetricsSet::new());
        Ok(Self { stream, shown, ascending, watermark, properties, ask, metrics })
    }

    /// The rows of the spans of a task.
    fn read_bound(
        &self,
        source: Arc<dyn Source>,
        spans: Vec<Span>,
    ) -> impl Stream<Item = DfResult<RecordBatch>> + use<> {
        let (opener, table) = (Arc::clone(&self.stream.opener), self.stream.definition.name.clone());
        self.read_all(spans.into_iter(), move |span, columns| opener.read(&source, &table, span, columns))
    }

    /// The rows of `spans`, one after the other: `read` gives the stored columns of a span.
    pub(super) fn read_all<S, R>(&self, spans: S, read: R) -> impl Stream<Item = DfResult<RecordBatch>> + use<S, R>
    where
        S: Iterator<Item = Span>,
        R: Fn(&Span, &[usize]) -> Result<SendableRecordBatchStream>,
    {
        let (table, report) = (self.stream.definition.name.clone(), self.report());
        let (ascending, places) = self.ascending.clone();
        let width = ascending.len() + usize::from(self.stream.is_changelog);
        let is_reordered = places.iter().enumerate().any(|(i, place)| i != *place) || places.len() != width;
        // Who does not ask what happened to rows sees what they have become.
        let is_gone_hidden = self.stream.is_changelog && !self.shown.contains(&Shown::Kind);
        let is_numbered = self.is_numbered();
        let watermark = self.watermark.clone();
        stream::iter(spans.filter(|span| !span.is_empty()))
            .map(move |span| {
                let rows = read(&span, &ascending).map_err(DataFusionError::from)?;
                let rows = watched(rows, span.partition.clone(), watermark.clone(), report.clone());
                Ok::<_, DataFusionError>(if is_numbered { numbered(rows, &table, &span) } else { rows })
            })
            .try_flatten()
            .map(move |batch| if is_gone_hidden { there(&batch?, width - 1) } else { batch })
            .map(move |batch| if is_reordered { Ok(batch?.project(&places)?) } else { batch })
    }
}

/// The rows that are there, by the kinds in this column.
fn there(batch: &RecordBatch, kinds: usize) -> DfResult<RecordBatch> {
    let kinds = batch.column(kinds).as_primitive::<Int8Type>();
    let is_there = BooleanArray::from_unary(kinds, |kind| RowKind::of(kind).is_there());
    Ok(filter_record_batch(batch, &is_there)?)
}

/// The rows of a partition, whose highest watermark is reported on the way.
fn watched(
    rows: SendableRecordBatchStream,
    partition: Partition,
    watermark: Option<Arc<dyn PhysicalExpr>>,
    report: ReadReport,
) -> SendableRecordBatchStream {
    let Some(watermark) = watermark else { return rows };
    let schema = rows.schema();
    let rows = rows.map(move |batch| {
        let batch = batch?;
        let values = watermark.evaluate(&batch)?.into_array(batch.num_rows())?;
        let highest = arrow::compute::max(values.as_primitive::<TimestampMillisecondType>());
        if highest.is_some() {
            report.add(&partition, PartitionReport { watermark_ms: highest, ..PartitionReport::default() });
        }
        Ok(batch)
    });
    Box::pin(RecordBatchStreamAdapter::new(schema, rows))
}

impl fmt::Debug for ScanExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fmt_as(DisplayFormatType::Default, f)
    }
}

impl DisplayAs for ScanExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let schema = self.properties.eq_properties.schema();
        let columns: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        write!(f, "ScanExec: {}", self.stream.definition.name)?;
        match &self.stream.cut {
            Some(cut) => write!(f, " {cut:?}")?,
            None => write!(f, " {}", self.ask)?,
        }
        write!(f, " columns=[{}]", columns.join(", "))
    }
}

impl ExecutionPlan for ScanExec {
    fn name(&self) -> &str {
        "ScanExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> DfResult<TreeNodeRecursion>,
    ) -> DfResult<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> DfResult<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    /// A stream is larger than any static table, so that a join builds its hash table from the other side.
    fn partition_statistics(&self, _: Option<usize>) -> DfResult<Arc<Statistics>> {
        let mut statistics = Statistics::new_unknown(self.properties.eq_properties.schema());
        statistics.num_rows = Precision::Inexact(usize::MAX >> 8);
        statistics.total_byte_size = Precision::Inexact(usize::MAX >> 8);
        Ok(Arc::new(statistics))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }

    fn execute(&self, partition: usize, _: Arc<TaskContext>) -> DfResult<SendableRecordBatchStream> {
        let schema = Arc::clone(self.properties.eq_properties.schema());
        let this = self.clone();
        let opened =
            async move { this.stream.opener.source(&this.stream.definition).await.map(|source| (this, source)) };
        let opened = stream::once(opened).map_err(DataFusionError::from);
        let adapted = |rows: BoxStream<'static, DfResult<RecordBatch>>| -> SendableRecordBatchStream {
            Box::pin(RecordBatchStreamAdapter::new(schema, rows))
        };
        let Some(cut) = &self.stream.cut else {
            let rows = opened.map_ok(move |(this, source)| ask::rows(this, source, partition)).try_flatten();
            let baseline = BaselineMetrics::new(&self.metrics, partition);
            return Ok(Box::pin(LimitStream::new(adapted(rows.boxed()), 0, self.ask.limit(), baseline)));
        };
        let spans = cut.get(partition).cloned().unwrap_or_default();
        let rows = opened.map_ok(move |(this, source)| this.read_bound(source, spans.clone())).try_flatten();
        Ok(adapted(rows.boxed()))
    }
}

impl ScanExec {
    /// The table it reads.
    pub fn table(&self) -> &Arc<TableDefinition> {
        &self.stream.definition
    }

    /// What it reads of the table's stored columns, ascending.
    pub(super) fn read_columns(&self) -> &[usize] {
        &self.ascending.0
    }

    fn is_numbered(&self) -> bool {
        self.shown.iter().any(|shown| matches!(shown, Shown::Position(_)))
    }

    /// The same rows of a changelog, each with what happened to it in the last column.
    pub(super) fn with_kinds(&self) -> DfResult<Self> {
        self.with(std::iter::once(Shown::Kind))
    }

    /// Whether its rows are changes.
    pub(super) fn is_changelog(&self) -> bool {
        self.stream.is_changelog
    }

    /// Where each column of the table's PRIMARY KEY is shown; none if it is not, or there is none.
    pub(super) fn primary_key(&self) -> Option<Vec<Vec<usize>>> {
        let key = &self.stream.definition.primary_key;
        let shown = |name: &String| {
            let index = self.stream.schema.index_of(name).ok()?;
            self.shown.iter().position(|shown| *shown == Shown::Stored(index)).map(|place| vec![place])
        };
        if key.is_empty() { None } else { key.iter().map(shown).collect() }
    }

    /// The same rows, each with its position in the last columns.
    pub fn numbered(&self) -> DfResult<Self> {
        self.with((0..position_fields().len()).map(Shown::Position))
    }

    /// The same rows with more of the table's stored columns, the last ones; none, if it does not have them all.
    pub fn with_columns(&self, fields: &[FieldRef]) -> DfResult<Option<Self>> {
        let schema = &self.stream.schema;
        let place = |field: &FieldRef| {
            let (index, found) = schema.column_with_name(field.name())?;
            (found.data_type() == field.data_type()).then_some(Shown::Stored(index))
        };
        let more = fields.iter().map(place).collect::<Option<Vec<_>>>();
        more.map(|more| self.with(more.into_iter())).transpose()
    }

    fn with(&self, more: impl Iterator<Item = Shown>) -> DfResult<Self> {
        Self::try_new(&self.stream, self.shown.iter().copied().chain(more).collect(), Arc::clone(&self.ask))
    }

    /// What reads of its table saw.
    pub(super) fn report(&self) -> ReadReport {
        self.stream.opener.report(&self.stream.definition.name)
    }

    /// The stored columns of its table.
    pub fn stored(&self) -> &SchemaRef {
        &self.stream.schema
    }

    /// By task, the partition it reads, if it is one.
    pub fn partitions(&self) -> Vec<Option<Partition>> {
        let only = |spans: &Vec<Span>| match spans.as_slice() {
            [span] => Some(span.partition.clone()),
            _ => None,
        };
        let cut = self.stream.cut.as_deref().map(|cut| cut.iter().map(only).collect::<Vec<_>>()).unwrap_or_default();
        if cut.is_empty() { vec![None] } else { cut }
    }
}

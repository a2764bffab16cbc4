//! A stream as a DataFusion table.
//!
//! A [`StreamTable`] is a `TableProvider` that any `SessionContext` can register. Unbound, it scans as an unbounded plan
//! that starts where the table's options say and goes on as messages arrive; a LIMIT ends it. Bound to spans
//! ([`StreamTable::bound_to`]) it is an ordinary bounded table with one partition per task, each read in order.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{AsArray, BooleanArray, RecordBatch, StringViewArray, UInt64Array};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, FieldRef, Int8Type, Schema, SchemaRef, TimestampMillisecondType};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DataFusionError, Result as DfResult, Statistics};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_expr::utils::{collect_columns, reassign_expr_columns};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties};
use futures::stream::{self, StreamExt};
use futures::{Stream, TryStreamExt};

use super::changes::{RowKind, kind_field};
use super::opener::Opener;
use crate::catalog::TableDefinition;
use crate::checkpoint::Cut;
use crate::connector::{Offsets, Partition, PartitionReport, ReadReport, Source, Span};
use crate::error::Result;

/// How long an unbounded scan that has read everything waits before it looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

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
}

#[async_trait]
impl TableProvider for StreamTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> DfResult<Arc<dyn ExecutionPlan>> {
        let all = || (0..self.schema.fields().len()).collect();
        let projection = projection.cloned().unwrap_or_else(all);
        Ok(Arc::new(ScanExec::try_new(self, projection.into_iter().map(Shown::Stored).collect())?))
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
    fn try_new(table: &StreamTable, shown: Vec<Shown>) -> DfResult<Self> {
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
        let (partitions, boundedness, emission) = match &table.cut {
            Some(cut) => (cut.len().max(1), Boundedness::Bounded, EmissionType::Incremental),
            None if table.definition.is_bounded() => (1, Boundedness::Bounded, EmissionType::Incremental),
            None => (1, Boundedness::Unbounded { requires_infinite_memory: false }, EmissionType::Incremental),
        };
        let properties = Arc::new(PlanProperties::new(
            EquivalenceProperties::new(schema),
            Partitioning::UnknownPartitioning(partitions),
            emission,
            boundedness,
        ));
        Ok(Self { stream: table.clone(), shown, ascending: (ascending, places), watermark, properties })
    }

    /// The rows of `spans`, one after the other.
    fn read_all(&self, source: Arc<dyn Source>, spans: Vec<Span>) -> impl Stream<Item = DfResult<RecordBatch>> + use<> {
        let table = self.stream.definition.name.clone();
        let opener = Arc::clone(&self.stream.opener);
        let report = opener.report(&table);
        let (ascending, places) = self.ascending.clone();
        let width = ascending.len() + usize::from(self.stream.is_changelog);
        let is_reordered = places.iter().enumerate().any(|(i, place)| i != *place) || places.len() != width;
        // Who does not ask what happened to rows sees what they have become.
        let is_gone_hidden = self.stream.is_changelog && !self.shown.contains(&Shown::Kind);
        let is_numbered = self.is_numbered();
        let spans = spans.into_iter().filter(|span| !span.is_empty()).collect::<Vec<_>>();
        let watermark = self.watermark.clone();
        stream::iter(spans)
            .map(move |span| {
                let rows = opener.read(&source, &table, &span, &ascending).map_err(DataFusionError::from)?;
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
            None => write!(f, " unbounded")?,
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

    fn execute(&self, partition: usize, _: Arc<TaskContext>) -> DfResult<SendableRecordBatchStream> {
        let schema = Arc::clone(self.properties.eq_properties.schema());
        let this = self.clone();
        let opened =
            async move { this.stream.opener.source(&this.stream.definition).await.map(|source| (this, source)) };
        let opened = stream::once(opened).map_err(DataFusionError::from);
        let rows = match &self.stream.cut {
            Some(cut) => {
                let spans = cut.get(partition).cloned().unwrap_or_default();
                opened.map_ok(move |(this, source)| this.read_all(source, spans.clone())).try_flatten().boxed()
            }
            None => opened.map_ok(|(this, source)| unbounded(this, source)).try_flatten().boxed(),
        };
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)))
    }
}

/// Where an unbound scan stands, and where it ends.
struct Progress {
    position: Offsets,
    end: Option<Offsets>,
}

/// Everything from the start on, as it arrives; it ends where the stream does.
fn unbounded(scan: ScanExec, source: Arc<dyn Source>) -> impl Stream<Item = DfResult<RecordBatch>> {
    let rounds = stream::try_unfold(None, move |progress| {
        let (scan, source) = (scan.clone(), Arc::clone(&source));
        async move {
            let mut progress = match progress {
                Some(progress) => progress,
                None => Progress { position: source.start().await?, end: source.end().await? },
            };
            let Some(spans) = next_round(source.as_ref(), &mut progress).await? else { return Ok(None) };
            Ok::<_, DataFusionError>(Some((scan.read_all(source, spans), Some(progress))))
        }
    });
    rounds.try_flatten()
}

/// Waits until there is something to read; none once all is read.
async fn next_round(source: &dyn Source, progress: &mut Progress) -> Result<Option<Vec<Span>>> {
    let Progress { position, end } = progress;
    loop {
        let extent = source.extent().await?;
        let mut spans = vec![];
        for (partition, bounds) in &extent.partitions {
            let from = *position.entry(partition.clone()).or_insert(bounds.earliest);
            let to = match &end {
                Some(end) => bounds.latest.min(end.get(partition).copied().unwrap_or_default()),
                None => bounds.latest,
            };
            if from < to {
                spans.push(Span::new(partition.clone(), from, to));
                position.insert(partition.clone(), to);
            }
        }
        if !spans.is_empty() {
            return Ok(Some(spans));
        }
        let has_ended = match &end {
            Some(end) => end.iter().all(|(partition, end)| position.get(partition).is_some_and(|next| next >= end)),
            None => extent.complete,
        };
        if has_ended {
            return Ok(None);
        }
        tokio::time::sleep(LOOK_AGAIN).await;
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
        Self::try_new(&self.stream, self.shown.iter().copied().chain(more).collect())
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

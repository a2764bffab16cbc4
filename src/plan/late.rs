//! Late rows: those for what has come out already are left out and counted, and go to a table of their own, if the user
//! has one for them (`late-rows.table`).
//!
//! Guarantee: which rows are late follows from the intent. No row is left out without being counted, by operator and by
//! the partition it came from; one without an event time counts too, as no watermark will ever pass it.
//!
//! The columns of that table are filled by name: [`OPERATOR`] and its kin say what made a row late, all others are the
//! row's own, also where the query itself does not use them, as far as they come from a scan.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BooleanArray, RecordBatch, StringArray, TimestampMillisecondArray, new_null_array,
};
use arrow::compute::{can_cast_types, cast, filter_record_batch, min, not};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef, TimeUnit};
use datafusion::common::Result as DfResult;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, Partitioning, PlanProperties,
};
use futures::StreamExt;

use super::opener::Opener;
use super::time::ticks;
use crate::connector::Partition;
use crate::error::{Error, Result};
use crate::format::FormatOptions;
use crate::sql::options::did_you_mean;
use crate::sql::types::sql_type;

/// The column for the operator that left the row out.
pub const OPERATOR: &str = "late_operator";
/// The column for the partition it came from: `topic:0`.
pub const PARTITION: &str = "late_partition";
/// The column for the watermark that had passed it.
pub const WATERMARK: &str = "late_watermark";
/// The column for the row as JSON: what of it the query uses, and what the table asks for.
pub const ROW: &str = "late_row";

/// The columns that are not the row's.
fn own_fields() -> [Field; 4] {
    [
        Field::new(OPERATOR, DataType::Utf8, true),
        Field::new(PARTITION, DataType::Utf8, true),
        Field::new(WATERMARK, DataType::Timestamp(TimeUnit::Millisecond, None), true),
        Field::new(ROW, DataType::Utf8, true),
    ]
}

/// The table that late rows go to.
#[derive(Debug)]
pub struct LateTable {
    name: String,
    schema: SchemaRef,
}

impl LateTable {
    /// A table of this name, whose rows have this schema.
    pub fn new(name: &str, schema: SchemaRef) -> Self {
        // Whether a NULL may be written is for its sink to say, which names the column.
        let fields = schema.fields().iter().map(|field| field.as_ref().clone().with_nullable(true));
        Self { name: name.to_owned(), schema: Arc::new(Schema::new(fields.collect::<Vec<_>>())) }
    }

    /// The names of the columns that are the row's.
    pub fn row_columns(&self) -> Vec<String> {
        let is_own = |name: &String| own_fields().iter().any(|own| own.name() == name);
        self.schema.fields().iter().map(|field| field.name().clone()).filter(|name| !is_own(name)).collect()
    }

    /// Checks that its columns can be filled from one of these rows; each is what a late row has where it is late.
    pub fn check(&self, rows: &[SchemaRef]) -> Result<()> {
        let own = own_fields();
        for field in self.schema.fields() {
            let is_own = own.iter().filter(|own| own.name() == field.name());
            let of_rows = rows.iter().filter_map(|row| Some(row.column_with_name(field.name())?.1));
            let found: Vec<&Field> = if is_own.clone().count() > 0 { is_own.collect() } else { of_rows.collect() };
            if found.is_empty() {
                let names = own.iter().chain(rows.iter().flat_map(|row| row.fields().iter().map(AsRef::as_ref)));
                let names: BTreeSet<&str> = names.map(|field| field.name().as_str()).collect();
                return Err(Error::usage(format!(
                    "table {}, which is to get late rows, has a column {}, and no row that can be late has one{}",
                    self.name,
                    field.name(),
                    did_you_mean(field.name(), names.into_iter())
                )));
            }
            if let Some(other) = found.iter().find(|found| !can_cast_types(found.data_type(), field.data_type())) {
                return Err(Error::usage(format!(
                    "table {}, which is to get late rows: column {} is {}, and in the rows it is {}",
                    self.name,
                    field.name(),
                    sql_type(field.data_type()),
                    sql_type(other.data_type())
                )));
            }
        }
        // Whether each can be written, also as JSON.
        rows.iter().try_for_each(|row| self.rows(&RecordBatch::new_empty(Arc::clone(row)), "", "", None).map(drop))
    }

    /// Late rows as rows of the table.
    fn rows(&self, late: &RecordBatch, operator: &str, from: &str, watermark: Option<i64>) -> Result<RecordBatch> {
        let rows = late.num_rows();
        let text = |value: &str| Arc::new(StringArray::from(vec![value; rows])) as ArrayRef;
        // The end of time, once the stream has ended, is no time to show.
        let watermark = watermark.filter(|watermark| *watermark < i64::MAX);
        let column = |field: &FieldRef| {
            let column = match field.name().as_str() {
                OPERATOR => text(operator),
                PARTITION => text(from),
                WATERMARK => Arc::new(TimestampMillisecondArray::from(vec![watermark; rows])),
                ROW => cast(&FormatOptions::json_encoder(late.schema())?.encode(late)?, &DataType::Utf8)?,
                name => match late.column_by_name(name) {
                    Some(column) => Arc::clone(column),
                    None => new_null_array(field.data_type(), rows),
                },
            };
            Ok(cast(&column, field.data_type())?)
        };
        let columns = self.schema.fields().iter().map(column).collect::<Result<_>>()?;
        Ok(RecordBatch::try_new(Arc::clone(&self.schema), columns)?)
    }
}

/// What makes a row late, and where it goes.
#[derive(Debug, Clone)]
pub struct Lateness {
    /// The operator above.
    pub operator: String,
    /// Its rising key, over the input's columns.
    pub key: Arc<dyn PhysicalExpr>,
    /// A row whose key lies before this is late.
    pub bound: Option<i64>,
    /// The watermark that gave the bound.
    pub watermark: Option<i64>,
    /// Where the rows of each partition come from, if that is one partition of a source.
    pub from: Vec<Option<Partition>>,
    /// The table for late rows.
    pub table: Option<Arc<LateTable>>,
    /// Which columns of the input it may show.
    pub shown: Vec<usize>,
}

/// Leaves out rows whose key lies before a bound.
#[derive(Clone)]
pub struct LateExec {
    input: Arc<dyn ExecutionPlan>,
    /// How many columns of the input go on; those behind them are for late rows alone.
    width: usize,
    lateness: Lateness,
    opener: Arc<Opener>,
    properties: Arc<PlanProperties>,
}

impl LateExec {
    /// Over `input`, of which the first `width` columns go on.
    pub fn try_new(
        input: Arc<dyn ExecutionPlan>,
        width: usize,
        lateness: Lateness,
        opener: Arc<Opener>,
    ) -> Result<Self> {
        let schema = Arc::new(input.schema().project(&(0..width).collect::<Vec<_>>())?);
        let properties = Arc::new(PlanProperties::new(
            EquivalenceProperties::new(schema),
            Partitioning::UnknownPartitioning(input.output_partitioning().partition_count()),
            input.pipeline_behavior(),
            input.boundedness(),
        ));
        Ok(Self { input, width, lateness, opener, properties })
    }

    /// What of a batch goes on; late rows are counted, and put down for their table.
    fn pass(&self, batch: RecordBatch, partition: usize) -> Result<RecordBatch> {
        let keys = ticks(&self.lateness.key.evaluate(&batch)?.into_array(batch.num_rows())?)?;
        let is_early = |first: i64| self.lateness.bound.is_none_or(|bound| first >= bound);
        let passing: Vec<usize> = (0..self.width).collect();
        if keys.null_count() == 0 && min(&keys).is_none_or(is_early) {
            return Ok(batch.project(&passing)?);
        }
        let kept: BooleanArray = keys.iter().map(|key| Some(key.is_some_and(is_early))).collect();
        let late = filter_record_batch(&batch, &not(&kept)?)?;
        let from = self.lateness.from.get(partition).cloned().flatten();
        let from = from.map_or_else(|| "unknown".to_owned(), |from| from.to_string());
        if let Some(table) = &self.lateness.table {
            let rows = table.rows(
                &late.project(&self.lateness.shown)?,
                &self.lateness.operator,
                &from,
                self.lateness.watermark,
            )?;
            self.opener.keep_late(&self.lateness.operator, partition, &rows)?;
        }
        self.opener.count_late(&self.lateness.operator, from, late.num_rows() as u64);
        Ok(filter_record_batch(&batch.project(&passing)?, &kept)?)
    }
}

/// What rows look like where they may be late and have a table.
pub fn late_rows(plan: &Arc<dyn ExecutionPlan>) -> Result<Vec<SchemaRef>> {
    let mut found = vec![];
    for child in plan.children() {
        found.extend(late_rows(child)?);
    }
    if let Some(node) = plan.downcast_ref::<LateExec>().filter(|node| node.lateness.table.is_some()) {
        found.push(Arc::new(node.input.schema().project(&node.lateness.shown)?));
    }
    Ok(found)
}

impl fmt::Debug for LateExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fmt_as(DisplayFormatType::Default, f)
    }
}

impl DisplayAs for LateExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "LateExec: for {}, late is what has {} before the watermark's",
            self.lateness.operator, self.lateness.key
        )
    }
}

impl ExecutionPlan for LateExec {
    fn name(&self) -> &str {
        "LateExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> DfResult<TreeNodeRecursion>,
    ) -> DfResult<TreeNodeRecursion> {
        f(&self.lateness.key)
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> DfResult<Arc<dyn ExecutionPlan>> {
        let Some(input) = children.into_iter().next() else { return Ok(self) };
        Ok(Arc::new(Self { input, ..self.as_ref().clone() }))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> DfResult<SendableRecordBatchStream> {
        let (rows, this) = (self.input.execute(partition, context)?, self.clone());
        let kept = rows.map(move |batch| Ok(this.pass(batch?, partition)?));
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), kept)))
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{AsArray, Int64Array};
    use arrow::datatypes::TimestampMillisecondType;

    use super::*;

    #[test]
    fn a_late_row_shows_the_watermark_if_it_is_a_time() {
        let [_, _, watermark, _] = own_fields();
        let table = LateTable::new("late", Arc::new(Schema::new(vec![watermark])));
        let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, true)]));
        let late = RecordBatch::try_new(schema, vec![Arc::new(Int64Array::from(vec![1]))]).unwrap();
        for (watermark, expected) in [(None, None), (Some(7), Some(7)), (Some(i64::MAX), None)] {
            let rows = table.rows(&late, "aggregate-1", "t:0", watermark).unwrap();
            let shown = rows.column(0).as_primitive::<TimestampMillisecondType>();
            assert_eq!(shown.iter().collect::<Vec<_>>(), [expected]);
        }
    }
}

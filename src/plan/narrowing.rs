//! What a predicate says of where messages stand, so that those need not be read of which it cannot be true.
//!
//! The idea: DataFusion proves by least and greatest values that a predicate is true of no row in a container. A piece
//! of a partition is such a container: its partition, offsets and times are known before it is read. So what is left
//! of a span is found by bisection: as long a beginning and as long an end as possible are left out, of which the
//! predicate is proved not to be true.
//!
//! Guarantee: no message is left out of which it is true, as far as the source keeps its word on times. What cannot be
//! proved leaves out nothing; the filter stays in the plan.
//!
//! Not promised: that all that is read passes. Between its first and its last message a span is read whole.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Int64Array, TimestampMillisecondArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, SchemaRef};
use datafusion::catalog::Session;
use datafusion::common::tree_node::TreeNode;
use datafusion::common::{Column, DFSchema, Result as DfResult, ScalarValue};
use datafusion::logical_expr::Expr;
use datafusion::logical_expr::utils::conjunction;
use datafusion::physical_expr::expressions::{CastExpr, TryCastExpr};
use datafusion::physical_expr::{PhysicalExpr, conjunction_opt};
use datafusion::physical_optimizer::pruning::{PruningPredicate, PruningPredicateBuilder, PruningStatistics};

use super::time::EventTime;
use crate::catalog::{ColumnKind, TableDefinition};
use crate::connector::{Connector, Meaning, Offsets, Partition, Source, Span};
use crate::error::Result;
use crate::sql::types::ZONE;

/// The year 2255: later times are not told apart, as nanoseconds could not hold them.
const LATEST_MS: u64 = 9_000_000_000_000;

/// A column that says where a message stands.
#[derive(Debug, Clone)]
pub(super) struct Place {
    name: String,
    meaning: Meaning,
    data_type: DataType,
}

impl Place {
    /// Those of a table, if their types keep the order of what they say.
    pub(super) fn of(table: &TableDefinition, connector: &dyn Connector) -> Vec<Self> {
        let place = |column: &crate::catalog::Column| {
            let ColumnKind::Metadata { key, .. } = &column.kind else { return None };
            let (meaning, data_type) = (connector.meaning(key)?, column.data_type.clone());
            let keeps_order = match meaning {
                Meaning::Partition | Meaning::Offset => data_type.is_numeric(),
                Meaning::Time | Meaning::RisingTime => is_time(&data_type),
            };
            keeps_order.then(|| Self { name: column.name.clone(), meaning, data_type })
        };
        table.stored_columns().filter_map(place).collect()
    }

    /// Whether a filter is about such columns alone.
    pub(super) fn suffice(places: &[Self], filter: &Expr) -> bool {
        let columns = filter.column_refs();
        !columns.is_empty() && columns.iter().all(|column| places.iter().any(|place| place.name == column.name))
    }
}

/// Whether all that a filter casts keeps its order, as the TIME of a timestamp does not: DataFusion takes the least and
/// the greatest value for those of a cast as well.
fn keeps_order(filter: &Arc<dyn PhysicalExpr>) -> DfResult<bool> {
    let loses_it = filter.exists(|expr| {
        let cast = expr.downcast_ref::<CastExpr>().map(CastExpr::cast_type);
        let cast = cast.or_else(|| expr.downcast_ref::<TryCastExpr>().map(TryCastExpr::cast_type));
        Ok(cast.is_some_and(|to| !to.is_numeric() && !is_time(to)))
    })?;
    Ok(!loses_it)
}

fn is_time(data_type: &DataType) -> bool {
    match data_type {
        // Where clocks go back an hour, so do times of that zone.
        DataType::Timestamp(_, zone) => zone.as_deref().is_none_or(|zone| zone == ZONE),
        other => matches!(other, DataType::Date32 | DataType::Date64 | DataType::Int64),
    }
}

/// A predicate over columns that say where messages stand.
#[derive(Debug)]
pub(super) struct Narrowing {
    predicate: Arc<PruningPredicate>,
    /// Of the columns, those that it is about.
    places: Vec<Place>,
    text: String,
}

impl fmt::Display for Narrowing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Narrowing {
    /// By filters that `places` suffice for; none, if they leave out nothing, whatever is read.
    pub(super) fn try_new(
        mut places: Vec<Place>,
        schema: &SchemaRef,
        filters: &[Expr],
        state: &dyn Session,
    ) -> DfResult<Option<Self>> {
        let columns = DFSchema::try_from(Arc::clone(schema))?;
        let (mut logical, mut physical) = (vec![], vec![]);
        for filter in filters.iter().filter(|filter| Place::suffice(&places, filter)) {
            let filter = EventTime::unmarked(filter.clone())?;
            let planned = state.create_physical_expr(filter.clone(), &columns)?;
            if keeps_order(&planned)? {
                logical.push(filter);
                physical.push(planned);
            }
        }
        let (Some(filter), Some(physical)) = (conjunction(logical), conjunction_opt(physical)) else { return Ok(None) };
        let text = filter.to_string();
        let names: BTreeSet<String> = filter.column_refs().into_iter().map(|column| column.name.clone()).collect();
        places.retain(|place| names.contains(&place.name));
        let predicate = PruningPredicateBuilder::new().with_file_schema(Arc::clone(schema)).build(physical);
        Ok(predicate.map(|predicate| Self { predicate, places, text }))
    }

    /// What is left of the spans. The source is asked where times begin, if `by_time` is set.
    pub(super) async fn narrowed(&self, source: &dyn Source, spans: Vec<Span>, by_time: bool) -> Result<Vec<Span>> {
        let mut spans: Vec<Span> = spans.into_iter().map(|span| self.narrow(span)).collect();
        spans.retain(|span| !span.is_empty());
        if by_time && self.is_about(|meaning| matches!(meaning, Meaning::Time | Meaning::RisingTime)) {
            self.narrow_by_time(source, &mut spans).await?;
            spans.retain(|span| !span.is_empty());
        }
        Ok(spans)
    }

    fn is_about(&self, is_meant: impl Fn(Meaning) -> bool) -> bool {
        self.places.iter().any(|place| is_meant(place.meaning))
    }

    /// By partition and offsets.
    fn narrow(&self, mut span: Span) -> Span {
        if span.is_empty() {
            return span;
        }
        let number = span.partition.number;
        let may_hold = |from: u64, to: u64| self.may_hold(number, [from, to - 1], [None, None]);
        if !self.is_about(|meaning| meaning == Meaning::Offset) {
            return if may_hold(span.from, span.to) { span } else { Span { to: span.from, ..span } };
        }
        span.from = first(span.from..span.to, |at| may_hold(span.from, at + 1));
        span.to = first(span.from..span.to, |at| !may_hold(at, span.to));
        span
    }

    /// By times: none of the spans may be empty.
    async fn narrow_by_time(&self, source: &dyn Source, spans: &mut [Span]) -> Result<()> {
        let partitions: Vec<Partition> = spans.iter().map(|span| span.partition.clone()).collect();
        let times: Vec<[Option<i64>; 2]> = spans.iter().map(|span| self.times(span)).collect();
        let mut begins: BTreeMap<i64, Offsets> = BTreeMap::new();
        for ms in times.iter().flatten().flatten().copied().collect::<BTreeSet<i64>>() {
            let Some(offsets) = source.offsets_at(&partitions, ms).await? else { return Ok(()) };
            begins.insert(ms, offsets);
        }
        for (span, [earliest, end]) in spans.iter_mut().zip(times) {
            // Where no message is so late, the time begins behind the span.
            let begin = |ms: i64| begins.get(&ms)?.get(&span.partition).copied();
            let from = earliest.map_or(span.from, |ms| begin(ms).unwrap_or(span.to));
            let to = end.and_then(begin).unwrap_or(span.to);
            (span.from, span.to) = (span.from.max(from), span.to.min(to));
        }
        Ok(())
    }

    /// From which time on, and before which, the predicate may be true of messages in a span; ms since 1970, where it
    /// says anything. A time that may fall again has no end.
    fn times(&self, span: &Span) -> [Option<i64>; 2] {
        let may_hold = |times| self.may_hold(span.partition.number, [span.from, span.to - 1], times);
        let earliest = first(0..LATEST_MS, |ms| may_hold([None, Some(ms as i64)]));
        let end = match self.is_about(|meaning| meaning == Meaning::Time) {
            true => LATEST_MS,
            false => first(earliest..LATEST_MS, |ms| !may_hold([Some(ms as i64), None])),
        };
        [(earliest > 0).then_some(earliest as i64), (end < LATEST_MS).then_some(end as i64)]
    }

    /// Whether the predicate may be true of a message of this partition, within these offsets and times.
    fn may_hold(&self, partition: u32, offsets: [u64; 2], times: [Option<i64>; 2]) -> bool {
        let piece = Piece { places: &self.places, partition, offsets, times };
        !matches!(self.predicate.prune(&piece).as_deref(), Ok([false]))
    }
}

/// The first number of a range from which on `holds` does, which never ceases to; its end, if there is none.
fn first(mut range: Range<u64>, holds: impl Fn(u64) -> bool) -> u64 {
    while !range.is_empty() {
        let middle = range.start + (range.end - range.start) / 2;
        if holds(middle) { range.end = middle } else { range.start = middle + 1 }
    }
    range.start
}

/// A piece of a partition: what the columns say of its messages, at the least and at most.
struct Piece<'a> {
    places: &'a [Place],
    partition: u32,
    offsets: [u64; 2],
    times: [Option<i64>; 2],
}

impl Piece<'_> {
    fn value(&self, column: &Column, end: usize) -> Option<ArrayRef> {
        let place = self.places.iter().find(|place| place.name == column.name)?;
        let value: ArrayRef = match place.meaning {
            Meaning::Partition => Arc::new(Int64Array::from(vec![i64::from(self.partition)])),
            Meaning::Offset => Arc::new(Int64Array::from(vec![self.offsets[end] as i64])),
            Meaning::Time | Meaning::RisingTime => {
                Arc::new(TimestampMillisecondArray::from(vec![self.times[end]]).with_timezone("UTC"))
            }
        };
        cast(&value, &place.data_type).ok()
    }
}

impl PruningStatistics for Piece<'_> {
    fn min_values(&self, column: &Column) -> Option<ArrayRef> {
        self.value(column, 0)
    }

    fn max_values(&self, column: &Column) -> Option<ArrayRef> {
        self.value(column, 1)
    }

    fn num_containers(&self) -> usize {
        1
    }

    fn null_counts(&self, _: &Column) -> Option<ArrayRef> {
        None
    }

    fn row_counts(&self) -> Option<ArrayRef> {
        None
    }

    fn contained(&self, _: &Column, _: &HashSet<ScalarValue>) -> Option<BooleanArray> {
        None
    }
}

#[cfg(test)]
pub(super) mod tests {
    use async_trait::async_trait;
    use datafusion::execution::SendableRecordBatchStream;
    use datafusion::prelude::SessionContext;

    use super::*;
    use crate::connector::{Extent, ReadReport};
    use crate::error::Error;
    use crate::sql::planning::configure;

    /// Every message's time in ms is a hundred times its offset.
    #[derive(Debug)]
    struct Timed;

    #[async_trait]
    impl Source for Timed {
        async fn start(&self) -> Result<Offsets> {
            Err(Error::internal("it is not read"))
        }

        async fn extent(&self) -> Result<Extent> {
            Err(Error::internal("it is not read"))
        }

        async fn offsets_at(&self, partitions: &[Partition], ms: i64) -> Result<Option<Offsets>> {
            let offset = (ms as u64).div_ceil(100);
            let at = |partition: &Partition| (partition.clone(), offset);
            Ok(Some(partitions.iter().filter(|_| offset < 1000).map(at).collect()))
        }

        fn read(&self, _: &Span, _: &[usize], _: &ReadReport) -> Result<SendableRecordBatchStream> {
            Err(Error::internal("it is not read"))
        }
    }

    /// By a predicate over `p`, `o` and `ts`.
    pub(in crate::plan) fn narrowing(meaning: Meaning, predicate: &str) -> Option<Narrowing> {
        let time = DataType::Timestamp(arrow::datatypes::TimeUnit::Millisecond, None);
        let places = [
            ("p", Meaning::Partition, DataType::Int32),
            ("o", Meaning::Offset, DataType::Int64),
            ("ts", meaning, time),
        ];
        let places = places.map(|(name, meaning, data_type)| Place { name: name.into(), meaning, data_type }).to_vec();
        let field = |place: &Place| arrow::datatypes::Field::new(&place.name, place.data_type.clone(), true);
        let schema = Arc::new(arrow::datatypes::Schema::new(places.iter().map(field).collect::<Vec<_>>()));
        let context = SessionContext::new_with_config(configure(Default::default()));
        let filter = context.parse_sql_expr(predicate, &DFSchema::try_from(Arc::clone(&schema)).unwrap()).unwrap();
        Narrowing::try_new(places, &schema, &[filter], &context.state()).unwrap()
    }

    /// What such a predicate leaves of three partitions of a thousand messages.
    async fn left(meaning: Meaning, predicate: &str) -> String {
        let spans = (0..3).map(|number| Span::new(Partition::new("t", number), 0, 1000)).collect();
        let spans = match narrowing(meaning, predicate) {
            Some(narrowing) => narrowing.narrowed(&Timed, spans, true).await.unwrap(),
            None => spans,
        };
        spans
            .iter()
            .map(|span| format!("{}:{}..{}", span.partition.number, span.from, span.to))
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[tokio::test]
    async fn partitions_and_offsets_are_left_out() {
        let all = "0:0..1000 1:0..1000 2:0..1000";
        for (predicate, expected) in [
            ("p = 2 AND o BETWEEN 10 AND 19", "2:10..20"),
            ("p <> 1", "0:0..1000 2:0..1000"),
            ("p IN (0, 7)", "0:0..1000"),
            ("o >= 990 AND p > 0", "1:990..1000 2:990..1000"),
            ("o IN (5, 9, 700)", "0:5..701 1:5..701 2:5..701"),
            ("(p = 0 AND o < 3) OR (p = 1 AND o > 997)", "0:0..3 1:998..1000"),
            ("o = 2000", ""),
            ("o % 2 = 0", all),
            ("o > p", all),
            ("o IS NULL", all),
            ("o < 10 OR ts IS NULL", all),
            ("CAST(o AS DOUBLE) < 2.5", "0:0..3 1:0..3 2:0..3"),
            ("CAST(o AS BYTEA) = X'0500000000000000'", all),
        ] {
            assert_eq!(left(Meaning::Time, predicate).await, expected, "{predicate}");
        }
    }

    #[tokio::test]
    async fn times_begin_somewhere_and_end_where_they_do_not_fall() {
        let (from, to) = ("ts >= TIMESTAMP '1970-01-01 00:00:01'", "ts < TIMESTAMP '1970-01-01 00:00:02'");
        let whole = |spans: &str| (0..3).map(|p| format!("{p}:{spans}")).collect::<Vec<_>>().join(" ");
        for (meaning, predicate, expected) in [
            (Meaning::Time, from.to_string(), whole("10..1000")),
            (Meaning::Time, to.to_string(), whole("0..1000")),
            (Meaning::RisingTime, to.to_string(), whole("0..20")),
            (Meaning::RisingTime, format!("{from} AND {to}"), whole("10..20")),
            (Meaning::RisingTime, format!("{from} AND o < 15 AND p = 1"), "1:10..15".into()),
            (Meaning::Time, "ts > TIMESTAMP '2020-01-01 00:00:00'".into(), String::new()),
            (Meaning::RisingTime, "CAST(ts AS DATE) < DATE '1970-01-02'".into(), whole("0..1000")),
            (Meaning::RisingTime, "CAST(ts AS TIME) >= TIME '00:00:50'".into(), whole("0..1000")),
            (Meaning::RisingTime, "arrow_cast(ts, 'Time64(Nanosecond)') >= TIME '23:00:00'".into(), whole("0..1000")),
        ] {
            assert_eq!(left(meaning, &predicate).await, expected, "{predicate}");
        }
    }
}

//! SESSION windows over a stream: rows of a key belong together while each follows the one before within a gap.
//!
//! The idea: which session a row is in may change with every row that comes, so it is not asked before it is complete.
//! Where DataFusion would compute the columns `window_start` and `window_end` of each row, they stay open ([`Sessions`]),
//! and only the row's time is carried on. The GROUP BY above remembers, for each key, its open sessions: when each begins,
//! its last row so far, and the partial states of its aggregates. New rows join sessions, and sessions each other. A
//! session comes out when the watermark has passed its end; there the columns are filled in.
//!
//! Guarantee: the answer is that of the batch functions `session_start` and `session_end` over all rows, if none of them
//! lies before the watermark that it meets. One that does joins a session that is open, or begins another, even where the
//! one that it would have joined has come out; it is late if a session of its own would be complete.
//!
//! Not promised: anything but GROUP BY over a session; aggregates whose states grow.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, ListArray, RecordBatch, UInt32Array, new_empty_array};
use arrow::buffer::OffsetBuffer;
use arrow::compute::{cast, concat, take};
use arrow::datatypes::{DataType, Field, FieldRef, Schema};
use datafusion::common::ScalarValue;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::physical_expr::expressions::{Column, Literal};
use datafusion::physical_expr::utils::{collect_columns, conjunction, split_conjunction};
use datafusion::physical_expr::window::StandardWindowExpr;
use datafusion::physical_expr::{PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::aggregates::{AggregateMode, PhysicalGroupBy};
use datafusion::physical_plan::execution_plan::replace_children_if_necessary;
use datafusion::physical_plan::filter::{FilterExec, FilterExecBuilder};
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::windows::WindowUDFExpr;

use super::aggregate::{Emit, Groups, StatefulAggregateExec};
use super::aggregation::Aggregation;
use super::kept::Kept;
use super::stateful::{Key, Known, Remembering, Visited, Walk, column, is_small, refused, window_functions};
use super::time::{Rising, can_rise, ticks};
use crate::error::Result;
use crate::sql::functions::sessions::{SESSION_END, SESSION_START, gap_in_ticks};
use crate::state::Layout;
use crate::state::keys::{KeyBytes, TIMELESS};
use crate::state::operator::Operator;
use crate::state::piece::Piece;
use crate::state::shard::{Delta, StateRows, gather};
use crate::state::table::Place;

/// The name of the column that carries a row's time on; it is the last one.
const TIME: &str = "$time";
/// What stands for a session's begin and end in expressions over them.
const START: usize = 0;
const END: usize = 1;

/// Rows whose sessions are still open questions.
#[derive(Debug, Clone)]
pub(super) struct Sessions {
    /// The columns of PARTITION BY, where they still are.
    keys: Vec<Option<usize>>,
    /// By column: what it is made of, over the session's begin and end, if it is.
    made: Vec<Option<Arc<dyn PhysicalExpr>>>,
    /// What rows were filtered by, over begin and end.
    filters: Vec<Arc<dyn PhysicalExpr>>,
    /// In ticks of the time.
    gap: i64,
    /// How the time rises.
    rising: Rising,
}

impl Sessions {
    /// What an expression over the columns is over begin and end; none, if it has nothing to do with them.
    fn over(&self, expr: &Arc<dyn PhysicalExpr>) -> Result<Option<Arc<dyn PhysicalExpr>>> {
        let columns = collect_columns(expr);
        let made = columns.iter().filter(|column| self.made[column.index()].is_some()).count();
        if made == 0 {
            return Ok(None);
        }
        if made < columns.len() {
            return Err(refused(
                &format!("{expr}, which mixes a row of a SESSION with the session's begin or end,"),
                "GROUP BY window_start, window_end first",
            ));
        }
        let rewritten = Arc::clone(expr).transform_up(|node| {
            Ok(match column(&node).and_then(|index| self.made[index].clone()) {
                Some(made) => Transformed::yes(made),
                None => Transformed::no(node),
            })
        });
        Ok(Some(rewritten.data()?))
    }

    fn touches(&self, expr: &Arc<dyn PhysicalExpr>) -> bool {
        collect_columns(expr).iter().any(|column| self.made[column.index()].is_some())
    }

    fn projected(&self, projection: &[usize]) -> Self {
        let moved = |key: &Option<usize>| key.and_then(|key| projection.iter().position(|index| *index == key));
        Self {
            keys: self.keys.iter().map(moved).collect(),
            made: projection.iter().map(|index| self.made[*index].clone()).collect(),
            ..self.clone()
        }
    }
}

/// The begin or the end of a session, in an expression over both.
fn part(index: usize) -> Arc<dyn PhysicalExpr> {
    Arc::new(Column::new(if index == START { "window_start" } else { "window_end" }, index))
}

/// Whether an OVER asks for sessions: for each of its functions, whether it is the end; and the gap.
pub(super) fn session_functions(plan: &Arc<dyn ExecutionPlan>) -> Result<Option<(Vec<usize>, i64)>> {
    let (mut parts, mut gap) = (vec![], None);
    for function in window_functions(plan).unwrap_or_default() {
        let Some(function) = function.as_any().downcast_ref::<StandardWindowExpr>() else { return Ok(None) };
        let Some(function) = function.get_standard_func_expr().as_any().downcast_ref::<WindowUDFExpr>() else {
            return Ok(None);
        };
        let (time, length) = match (function.fun().name(), function.args()) {
            (SESSION_START, [time, length]) => {
                parts.push(START);
                (time, length)
            }
            (SESSION_END, [time, length]) => {
                parts.push(END);
                (time, length)
            }
            _ => return Ok(None),
        };
        let order = function_order(plan);
        if order.as_ref().is_none_or(|order| !order.expr.eq(time) || order.options.descending) {
            return Err(refused(
                &format!("{SESSION_START} or {SESSION_END} with another ORDER BY than its time"),
                "FROM TABLE(SESSION(TABLE t PARTITION BY k, DESCRIPTOR(ts), gap))",
            ));
        }
        let length = length.downcast_ref::<Literal>().map(Literal::value);
        let length = gap_in_ticks(SESSION_END, length, &time.data_type(&plan.children()[0].schema())?)?;
        if gap.is_some_and(|gap| gap != length) {
            return Err(refused("sessions of several gaps in one OVER", "say each in a subquery of its own"));
        }
        gap = Some(length);
    }
    Ok(gap.map(|gap| (parts, gap)))
}

fn function_order(plan: &Arc<dyn ExecutionPlan>) -> Option<PhysicalSortExpr> {
    window_functions(plan)?.first()?.order_by().first().cloned()
}

impl Walk<'_> {
    /// Where sessions begin: their columns are left open.
    pub(super) fn open_sessions(
        &self,
        plan: &Arc<dyn ExecutionPlan>,
        input: Arc<dyn ExecutionPlan>,
        known: Known,
        (parts, gap): (Vec<usize>, i64),
    ) -> Result<Visited> {
        let function = &window_functions(plan).unwrap_or_default()[0];
        let time = function_order(plan).map(|sort| sort.expr);
        let risen = time.and_then(|time| Some((Rising::of(&time, &known.rising)?, time)));
        let Some((rising, time)) = risen else {
            return Err(refused(
                "SESSION over a time that does not rise with event time",
                "give the table a WATERMARK FOR that column",
            ));
        };
        let schema = input.schema();
        let mut expressions: Vec<(Arc<dyn PhysicalExpr>, String)> = vec![];
        for (index, field) in schema.fields().iter().enumerate() {
            expressions.push((Arc::new(Column::new(field.name(), index)), field.name().clone()));
        }
        let mut made = vec![None; expressions.len()];
        for (index, which) in parts.iter().enumerate() {
            let name = plan.schema().field(schema.fields().len() + index).name().clone();
            expressions.push((Arc::clone(&time), name));
            made.push(Some(part(*which)));
        }
        expressions.push((time, TIME.to_owned()));
        made.push(None);
        let keys = function.partition_by().iter().map(column).collect();
        let sessions = Sessions { keys, made, filters: vec![], gap, rising };
        let known =
            Known { rising: vec![None; expressions.len()], whole: None, sessions: Some(Arc::new(sessions)), ..known };
        Ok((Arc::new(ProjectionExec::try_new(expressions, input)?), known))
    }

    /// A node over rows whose sessions are open.
    pub(super) fn over_sessions(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
        known: Known,
        sessions: &Sessions,
    ) -> Result<Visited> {
        let input = children[0].schema();
        let time = input.fields().len() - 1;
        if let Some(projection) = plan.downcast_ref::<ProjectionExec>() {
            let expressions = projection.expr();
            let mut made = expressions.iter().map(|e| sessions.over(&e.expr)).collect::<Result<Vec<_>>>()?;
            made.push(None);
            let moved =
                |key: &Option<usize>| key.and_then(|key| expressions.iter().position(|e| column(&e.expr) == Some(key)));
            let keys = sessions.keys.iter().map(moved).collect();
            let carried = (Arc::new(Column::new(TIME, time)) as _, TIME.to_owned());
            let expressions = expressions.iter().map(|e| (Arc::clone(&e.expr), e.alias.clone())).chain([carried]);
            let plan = Arc::new(ProjectionExec::try_new(expressions, children.remove(0))?);
            let sessions = Sessions { keys, made, ..sessions.clone() };
            let rising = vec![None; plan.schema().fields().len()];
            return Ok((plan, Known { rising, sessions: Some(Arc::new(sessions)), ..known }));
        }
        if let Some(filter) = plan.downcast_ref::<FilterExec>() {
            let (mut sessions, mut below) = (sessions.clone(), vec![]);
            for predicate in split_conjunction(filter.predicate()) {
                match sessions.over(predicate)? {
                    // It says something of whole sessions, and is asked when these are complete.
                    Some(over) => sessions.filters.push(over),
                    None => below.push(Arc::clone(predicate)),
                }
            }
            let is_key = |column: &Column| sessions.keys.contains(&Some(column.index()));
            if let Some(other) = below.iter().find(|predicate| !collect_columns(predicate).iter().all(is_key)) {
                return Err(refused(
                    &format!(
                        "a filter over SESSION ({other}), whose rows count for the sessions and not for their result,"
                    ),
                    "filter before it: TABLE(SESSION((SELECT … FROM t WHERE …) PARTITION BY …, …)), or within an aggregate: \
                     count(*) FILTER (WHERE …)",
                ));
            }
            let kept: Vec<usize> = match filter.projection().as_deref() {
                Some(kept) => kept.iter().copied().chain([time]).collect(),
                None => (0..=time).collect(),
            };
            let plan = FilterExecBuilder::new(conjunction(below), children.remove(0));
            let plan = Arc::new(plan.apply_projection(Some(kept.clone()))?.build()?);
            let (rising, sessions) = (vec![None; kept.len()], sessions.projected(&kept));
            return Ok((plan, Known { rising, sessions: Some(Arc::new(sessions)), ..known }));
        }
        if ["ConcatExec", "CoalesceBatchesExec", "CooperativeExec"].contains(&plan.name()) {
            return Ok((replace_children_if_necessary(plan, children)?, known));
        }
        Err(sessions_refused())
    }

    /// GROUP BY over sessions.
    pub(super) fn group_sessions(
        &mut self,
        aggregation: &Aggregation,
        input: Arc<dyn ExecutionPlan>,
        sessions: &Sessions,
    ) -> Result<Visited> {
        let (group_by, schema) = (aggregation.group_by.as_ref(), input.schema());
        if group_by.has_grouping_set() {
            return Err(refused("GROUPING SETS over SESSION", "GROUP BY window_start, window_end and the keys"));
        }
        if let Some(large) = aggregation.functions.iter().find(|function| !is_small(function)) {
            return Err(refused(
                &format!("{} over SESSION", large.name()),
                "its state grows with the session; count, sum, min, max, avg and their kin can be asked for",
            ));
        }
        let arguments = aggregation.functions.iter().flat_map(|function| function.expressions());
        let mut inner = arguments.chain(aggregation.filters.iter().flatten().cloned());
        if let Some(argument) = inner.find(|argument| sessions.touches(argument)) {
            return Err(refused(
                &format!("{argument} in an aggregate over SESSION"),
                "it is the same for all rows of a session: say it beside the aggregate",
            ));
        }
        // Each group key is made of the session's begin and end, or is a key of PARTITION BY.
        let (mut made, mut is_named, mut seen) = (vec![], false, HashSet::new());
        for (expr, _) in group_by.expr() {
            let over = sessions.over(expr)?;
            is_named |= over.as_ref().is_some_and(|over| column(over).is_some());
            if over.is_none() {
                let key = column(expr).and_then(|index| sessions.keys.iter().position(|key| *key == Some(index)));
                let Some(key) = key else { return Err(keys_refused()) };
                seen.insert(key);
            }
            made.push(over);
        }
        if !is_named || seen.len() < sessions.keys.len() {
            return Err(if is_named { keys_refused() } else { sessions_refused() });
        }

        let is_one_group = sessions.keys.is_empty();
        let mut keys: Vec<Key> = vec![];
        if is_one_group {
            keys.push((Arc::new(Literal::new(ScalarValue::Boolean(Some(true)))), None));
        }
        for index in sessions.keys.iter().flatten() {
            keys.push((Arc::new(Column::new(schema.field(*index).name(), *index)), None));
        }
        let time: Arc<dyn PhysicalExpr> = Arc::new(Column::new(TIME, schema.fields().len() - 1));
        let time_type = time.data_type(&schema)?;
        if !can_rise(&time_type) {
            return Err(sessions_refused());
        }
        keys.push((time, Some(sessions.rising.clone())));
        let named =
            keys.iter().enumerate().map(|(index, (key, _))| (Arc::clone(key), format!("key {index}"))).collect();
        let inner = Aggregation { group_by: Arc::new(PhysicalGroupBy::new_single(named)), ..aggregation.clone() };
        let shown = keys.len() - 1 - usize::from(is_one_group);
        let mut fields: Vec<FieldRef> = vec![];
        for (index, (key, _)) in keys[keys.len() - 1 - shown..keys.len() - 1].iter().enumerate() {
            fields.push(Arc::new(Field::new(format!("key {index}"), key.data_type(&schema)?, true)));
        }
        for index in [START, END] {
            fields.push(Arc::new(Field::new(part(index).to_string(), time_type.clone(), true)));
        }
        fields.extend(aggregation.functions.iter().map(|function| function.field()));
        let whole = Arc::new(Schema::new(fields));
        let what = Remembering {
            kind: "session",
            time_key: Some(keys.len() - 1),
            keys,
            kept: Kept::States(aggregation.functions.clone()),
            emit: Emit::Session { gap: sessions.gap },
            is_one_group,
            hidden: (0..sessions.made.len()).filter(|index| sessions.made[*index].is_some()).collect(),
        };
        let partial = |input| inner.over(AggregateMode::Partial, input);
        let mut complete = self.operator(what, input, partial, Arc::clone(&whole))?;

        let filled = |expr: Arc<dyn PhysicalExpr>| -> Result<Arc<dyn PhysicalExpr>> {
            let moved = expr.transform_up(|node| {
                Ok(match column(&node) {
                    Some(index) => {
                        Transformed::yes(Arc::new(Column::new(whole.field(shown + index).name(), shown + index)) as _)
                    }
                    None => Transformed::no(node),
                })
            });
            Ok(moved.data()?)
        };
        if !sessions.filters.is_empty() {
            let filters = sessions.filters.iter().cloned().map(filled).collect::<Result<Vec<_>>>()?;
            complete = Arc::new(FilterExecBuilder::new(conjunction(filters), complete).build()?);
        }
        let mut columns: Vec<(Arc<dyn PhysicalExpr>, String)> = vec![];
        for ((expr, name), made) in group_by.expr().iter().zip(&made) {
            let key = || sessions.keys.iter().position(|key| *key == column(expr)).unwrap_or_default();
            let shown: Arc<dyn PhysicalExpr> = match made {
                Some(made) => filled(Arc::clone(made))?,
                None => Arc::new(Column::new(whole.field(key()).name(), key())),
            };
            columns.push((shown, name.clone()));
        }
        for (index, function) in aggregation.functions.iter().enumerate() {
            let place = shown + 2 + index;
            columns.push((Arc::new(Column::new(whole.field(place).name(), place)), function.name().to_owned()));
        }
        let end = [None, Some(sessions.rising.clone())];
        let mut rising: Vec<Option<Rising>> =
            made.iter().map(|made| made.as_ref().and_then(|made| Rising::of(made, &end))).collect();
        rising.resize(columns.len(), None);
        let is_end = |made: &Option<Arc<dyn PhysicalExpr>>| made.as_ref().and_then(column) == Some(END);
        let whole = made.iter().position(is_end);
        let known = Known { reads_stream: true, rising, whole, is_inclusive: true, ..Known::default() };
        Ok((Arc::new(ProjectionExec::try_new(columns, complete)?), known))
    }
}

pub(super) fn sessions_refused() -> crate::error::Error {
    refused(
        "SESSION without a GROUP BY of window_start, window_end right above it",
        "GROUP BY window_start, window_end and the keys of PARTITION BY",
    )
}

fn keys_refused() -> crate::error::Error {
    refused(
        "GROUP BY over SESSION whose keys are others than those of its PARTITION BY (DISTINCT in an aggregate makes one)",
        "GROUP BY window_start, window_end and exactly the keys of PARTITION BY",
    )
}

/// A session, or a part of one: what belongs to which key, and where its first and its last row are among all rows.
struct Session {
    group: usize,
    first: usize,
    last: usize,
    end: i64,
}

/// Open sessions of some keys, or rows that each are one, side by side: a row for each.
struct Parts {
    first: ArrayRef,
    last: ArrayRef,
    states: Vec<ArrayRef>,
}

impl StatefulAggregateExec {
    /// What one shard does in this epoch, and emits, if it is a table of sessions.
    pub(super) fn sessions(
        &self,
        index: usize,
        gap: i64,
        operator: &Operator,
        pieces: &[Piece],
    ) -> Result<Vec<RecordBatch>> {
        let (shape, times) = (self.shape(), self.times());
        let shard = operator.shard(index);
        let bound = shape.bound(times.watermark)?;
        let groups = Groups::of(pieces, index);
        let mut places: Vec<Option<Place>> = groups.found(pieces, &shard);
        // Keys without a new row that have something complete.
        let due = bound.map(|bound| shard.due(bound, places.iter().flatten().copied())).unwrap_or_default();
        places.extend(due.into_iter().map(Some));

        let old: Vec<usize> = (0..places.len()).filter(|group| places[*group].is_some()).collect();
        let (sources, at) = shard.places(old.iter().filter_map(|group| Some((TIMELESS, places[*group]?))));
        let key = |group: usize| match groups.first.get(group) {
            Some((piece, row)) => pieces[*piece].key(*row),
            None => {
                let (source, row) = at[old.partition_point(|other| *other < group)];
                sources[source].keys.row(row)
            }
        };
        let (open, mut of_row) = Parts::open(&gather(&sources, &at)?, &old)?;
        let new: Vec<&StateRows> = pieces.iter().map(|piece| &piece.rows).collect();
        let new = Parts::rows(gather(&new, &groups.places)?);
        of_row.extend(&groups.of_row);
        let parts = match (open, new) {
            (Some(open), Some(new)) => open.and(new)?,
            (Some(parts), None) | (None, Some(parts)) => parts,
            (None, None) => Parts::none(&shape.layout),
        };
        let (sessions, of_part) = parts.joined(&of_row, gap)?;
        let states = shape.kept.merged(&parts.states, &of_part, sessions.len())?;

        let is_complete = |session: &&Session| bound.is_some_and(|bound| session.end <= bound);
        let mut complete: Vec<usize> = (0..sessions.len()).filter(|place| is_complete(&&sessions[*place])).collect();
        // Sessions of a key are sorted already.
        complete.sort_by(|a, b| key(sessions[*a].group).cmp(key(sessions[*b].group)));
        let emitted = match complete.is_empty() {
            true => vec![],
            false => {
                let keys = operator.codec().decode(complete.iter().map(|place| key(sessions[*place].group)))?;
                let first = taken(&parts.first, complete.iter().map(|place| sessions[*place].first))?;
                let ends = Int64Array::from_iter_values(complete.iter().map(|place| sessions[*place].end));
                let end = cast(&ends, parts.first.data_type())?;
                let done = states.iter().map(|state| taken(state, complete.iter().copied()));
                let answers = shape.kept.evaluate(&done.collect::<Result<Vec<_>>>()?, complete.len())?;
                self.batches([self.shown(keys), vec![first, end], answers].concat())?
            }
        };

        let open: Vec<usize> = (0..sessions.len()).filter(|place| !is_complete(&&sessions[*place])).collect();
        let (mut keys, mut replaces, mut lengths) = (vec![], vec![], vec![]);
        let (mut due, mut ends, mut kept) = (vec![], vec![], HashSet::new());
        for of_key in open.chunk_by(|a, b| sessions[*a].group == sessions[*b].group) {
            let group = sessions[of_key[0]].group;
            keys.push(key(group));
            kept.insert(group);
            replaces.push(places[group]);
            lengths.push(of_key.len());
            due.push(sessions[of_key[0]].end.saturating_sub(1));
            ends.push(sessions[of_key[of_key.len() - 1]].end);
        }
        let gone = old.iter().filter(|group| !kept.contains(group)).filter_map(|group| places[*group]).collect();
        let first = taken(&parts.first, open.iter().map(|place| sessions[*place].first))?;
        let last = taken(&parts.last, open.iter().map(|place| sessions[*place].last))?;
        let states = states.iter().map(|state| taken(state, open.iter().copied())).collect::<Result<Vec<_>>>()?;
        let mut values = vec![];
        for column in [vec![first, last], states].concat() {
            values.push(list(column, &lengths)?);
        }
        values.push(Arc::new(Int64Array::from(due)) as ArrayRef);
        values.push(Arc::new(Int64Array::from(ends)));
        let keys = KeyBytes::of(keys.iter().copied());
        let rows = Arc::new(StateRows { keys, values });
        drop(shard);
        let buckets = vec![TIMELESS; replaces.len()];
        operator.stage(index, Delta { rows, buckets, replaces, first: 0, closes: bound, gone });
        Ok(emitted)
    }
}

/// What is remembered of a key's open sessions, a list each: their first rows' times, their last rows', and states. Under
/// another gap, or by another time, they would be other sessions.
pub(super) fn columns(time: &FieldRef, states: &[FieldRef], gap: i64, rising: &str) -> Vec<FieldRef> {
    let field = |name: &str, of: &FieldRef| {
        Arc::new(Field::new(name, DataType::List(Arc::new(Field::new_list_field(of.data_type().clone(), true))), true))
    };
    let times = [field(&format!("first {rising}, gap {gap}"), time), field("last", time)];
    times.into_iter().chain(states.iter().map(|state| field(state.name(), state))).collect()
}

/// A column as lists of these lengths.
fn list(column: ArrayRef, lengths: &[usize]) -> Result<ArrayRef> {
    let field = Arc::new(Field::new_list_field(column.data_type().clone(), true));
    Ok(Arc::new(ListArray::try_new(field, OffsetBuffer::from_lengths(lengths.iter().copied()), column, None)?))
}

fn taken(column: &ArrayRef, places: impl Iterator<Item = usize>) -> Result<ArrayRef> {
    Ok(take(column, &UInt32Array::from_iter_values(places.map(|place| place as u32)), None)?)
}

impl Parts {
    /// The sessions in rows of state, and which of `groups`, one a row, each belongs to.
    fn open(state: &[ArrayRef], groups: &[usize]) -> Result<(Option<Self>, Vec<usize>)> {
        let Some(lists) = state.first().map(|first| first.as_list::<i32>()) else { return Ok((None, vec![])) };
        let counts = (0..groups.len()).map(|row| lists.value_length(row) as usize);
        let of_row = groups.iter().zip(counts).flat_map(|(group, count)| std::iter::repeat_n(*group, count)).collect();
        // The last two columns say when; they are no lists.
        let flat = state[..state.len() - 2].iter().map(|column| {
            let lists = column.as_list::<i32>();
            let (from, to) = (lists.value_offsets()[0] as usize, lists.value_offsets()[lists.len()] as usize);
            lists.values().slice(from, to - from)
        });
        let mut flat = flat.collect::<Vec<ArrayRef>>().into_iter();
        let (Some(first), Some(last)) = (flat.next(), flat.next()) else { return Ok((None, vec![])) };
        Ok((Some(Self { first, last, states: flat.collect() }), of_row))
    }

    /// Rows of the epoch, grouped by time: each a session by itself.
    fn rows(columns: Vec<ArrayRef>) -> Option<Self> {
        let mut columns = columns.into_iter();
        let time = columns.next()?;
        Some(Self { first: Arc::clone(&time), last: time, states: columns.collect() })
    }

    fn none(layout: &Layout) -> Self {
        let mut columns = layout.kept().iter().map(|field| match field.data_type() {
            DataType::List(item) => new_empty_array(item.data_type()),
            other => new_empty_array(other),
        });
        let mut next = || columns.next().unwrap_or_else(|| new_empty_array(&DataType::Null));
        Self { first: next(), last: next(), states: columns.collect() }
    }

    fn and(self, other: Self) -> Result<Self> {
        let joined = |a: &ArrayRef, b: &ArrayRef| concat(&[a.as_ref(), b.as_ref()]);
        Ok(Self {
            first: joined(&self.first, &other.first)?,
            last: joined(&self.last, &other.last)?,
            states: self.states.iter().zip(&other.states).map(|(a, b)| joined(a, b)).collect::<Result<_, _>>()?,
        })
    }

    /// The sessions that these become, those of a group side by side and in the order of time; and which of them each
    /// belongs to.
    fn joined(&self, groups: &[usize], gap: i64) -> Result<(Vec<Session>, Vec<usize>)> {
        let (first, last) = (ticks(&self.first)?, ticks(&self.last)?);
        let mut order: Vec<usize> = (0..groups.len()).collect();
        order.sort_by_key(|part| (groups[*part], first.value(*part)));
        let (mut sessions, mut of_part) = (Vec::<Session>::new(), vec![0; groups.len()]);
        for part in order {
            let end = last.value(part).saturating_add(gap);
            match sessions.last_mut().filter(|open| open.group == groups[part] && first.value(part) < open.end) {
                Some(open) if end > open.end => (open.last, open.end) = (part, end),
                Some(_) => {}
                None => sessions.push(Session { group: groups[part], first: part, last: part, end }),
            }
            of_part[part] = sessions.len() - 1;
        }
        Ok((sessions, of_part))
    }
}

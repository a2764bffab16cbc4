//! From the batch plan of an epoch to one that remembers: what needs state gets it, what cannot run is refused by name.
//!
//! The idea: DataFusion plans an epoch as if its rows were all there are. Walking that plan from the leaves, each node says
//! which of its columns rise with event time ([`Rising`]), and whether its rows come in *wholes*: all rows with the same
//! value of one column in one epoch. An aggregation with a rising key becomes a [`StatefulAggregateExec`], whose rows are
//! whole by that key; above it, whatever keeps to that key (a ranking, a sort, another aggregation) is right within an
//! epoch, and stays DataFusion's own.
//!
//! Guarantee: a plan that passes gives, over all epochs, what the batch plan gives over all rows that are not late; of rows
//! behind the watermark see `plan/sessions.rs`. This module does no I/O.

use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::{FieldRef, Schema, SchemaRef};
use datafusion::common::{JoinType, ScalarValue};
use datafusion::functions_aggregate::count::count_udaf;
use datafusion::logical_expr::Aggregate as LogicalAggregate;
use datafusion::physical_expr::aggregate::{AggregateExprBuilder, AggregateFunctionExpr};
use datafusion::physical_expr::expressions::{Column, Literal};
use datafusion::physical_expr::window::WindowExpr;
use datafusion::physical_expr::{LexOrdering, PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_plan::aggregates::{AggregateMode, PhysicalGroupBy};
use datafusion::physical_plan::execution_plan::replace_children_if_necessary;
use datafusion::physical_plan::filter::{FilterExec, FilterExecBuilder};
use datafusion::physical_plan::joins::{CrossJoinExec, HashJoinExec, NestedLoopJoinExec};
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::sorts::sort_preserving_merge::SortPreservingMergeExec;
use datafusion::physical_plan::union::UnionExec;
use datafusion::physical_plan::unnest::UnnestExec;
use datafusion::physical_plan::windows::{BoundedWindowAggExec, WindowAggExec};
use datafusion::physical_plan::{Distribution, ExecutionPlan, ExecutionPlanProperties};

use super::Binding;
use super::aggregate::{Emit, Shape, StatefulAggregateExec};
use super::aggregation::Aggregation;
use super::carry::{Carried, carried, stored};
use super::changes::{ROW_KIND, with_kind};
use super::concat::{ConcatExec, concat};
use super::first;
use super::kept::Kept;
use super::late::{LateExec, LateTable, Lateness};
use super::repeat::RepeatExec;
use super::scan::ScanExec;
use super::sessions::{self, Sessions, session_functions, sessions_refused};
use super::time::{Rising, can_rise};
use crate::connector::Partition;
use crate::error::{Error, Result};
use crate::state::Layout;

/// Aggregate functions whose state does not grow, and depends neither on the order of rows nor on a hash: partial states
/// are kept.
const SMALL: &[&str] = &[
    "avg",
    "bit_and",
    "bit_or",
    "bit_xor",
    "bool_and",
    "bool_or",
    "corr",
    "count",
    "covar_pop",
    "covar_samp",
    "grouping",
    "max",
    "min",
    "regr_avgx",
    "regr_avgy",
    "regr_count",
    "regr_intercept",
    "regr_r2",
    "regr_slope",
    "regr_sxx",
    "regr_sxy",
    "regr_syy",
    "stddev",
    "stddev_pop",
    "sum",
    "var",
    "var_pop",
];

/// What is known of a node's rows.
#[derive(Debug, Clone, Default)]
pub(super) struct Known {
    pub(super) reads_stream: bool,
    /// By column.
    pub(super) rising: Vec<Option<Rising>>,
    /// The column by which rows are whole within an epoch.
    pub(super) whole: Option<usize>,
    /// Whether rows that are whole by the watermark itself are there already.
    pub(super) is_inclusive: bool,
    /// Whether rows are changes; their kind is the last column.
    pub(super) is_updating: bool,
    /// Rows whose sessions are not known yet; their time is the last column.
    pub(super) sessions: Option<Arc<Sessions>>,
}

/// The plan with state where it needs some.
pub fn remember(
    plan: Arc<dyn ExecutionPlan>,
    binding: &Binding,
    ttl: Option<Duration>,
    late: Option<&Arc<LateTable>>,
    prefix: &str,
) -> Result<Arc<dyn ExecutionPlan>> {
    let mut walk = Walk { binding, ttl, prefix, operators: 0, rankings: vec![], late };
    let (plan, known) = walk.visit(plan)?;
    match known.sessions {
        Some(_) => Err(sessions_refused()),
        None => Ok(plan),
    }
}

pub(super) struct Walk<'a> {
    binding: &'a Binding,
    ttl: Option<Duration>,
    /// What the names of operators begin with.
    prefix: &'a str,
    operators: usize,
    /// Rankings of which a filter above only wants the first place.
    rankings: Vec<Arc<dyn ExecutionPlan>>,
    late: Option<&'a Arc<LateTable>>,
}

/// What an operator that remembers is made from.
pub(super) struct Remembering {
    /// What its name begins with.
    pub(super) kind: &'static str,
    pub(super) keys: Vec<Key>,
    /// The key that decides when a row of state is complete.
    pub(super) time_key: Option<usize>,
    pub(super) kept: Kept,
    pub(super) emit: Emit,
    pub(super) is_one_group: bool,
    /// Columns of the input that say nothing to a user.
    pub(super) hidden: Vec<usize>,
}

/// A key: what it is computed from, and how it rises with event time.
pub(super) type Key = (Arc<dyn PhysicalExpr>, Option<Rising>);

pub(super) type Visited = (Arc<dyn ExecutionPlan>, Known);

impl Walk<'_> {
    fn visit(&mut self, plan: Arc<dyn ExecutionPlan>) -> Result<Visited> {
        if let Some(aggregation) = Aggregation::of(&plan) {
            return self.aggregation(plan, aggregation);
        }
        if let Some(scan) = plan.downcast_ref::<ScanExec>().filter(|scan| scan.is_changelog()) {
            let scan = scan.with_kinds()?;
            let rising = vec![None; scan.schema().fields().len()];
            return Ok((Arc::new(scan), Known { reads_stream: true, rising, is_updating: true, ..Known::default() }));
        }
        if let Some(ranking) = first::ranked_first(&plan) {
            self.rankings.push(ranking);
        }
        let mut children = vec![];
        let mut known = vec![];
        let needed = plan.input_distribution_requirements().into_per_child();
        for (child, needs) in plan.children().into_iter().cloned().zip(needed) {
            let (child, known_of) = self.visit(child)?;
            let is_apart = child.output_partitioning().partition_count() > 1;
            let is_one = !matches!(needs, Distribution::UnspecifiedDistribution);
            children.push(if is_apart && is_one { concat(child) } else { child });
            known.push(known_of);
        }
        if known.iter().any(|input| input.is_updating) {
            return self.over_changes(plan, children, known);
        }
        if let [input] = known.as_slice()
            && (input.reads_stream && input.whole.is_none() && sorts(&plan))
        {
            // An operator above asked for it, and sorts for itself what it gets when the time has come.
            return Ok((children.remove(0), known.remove(0)));
        }
        if let Some(sessions) = known.iter().find_map(|input| input.sessions.clone()) {
            return match known.len() {
                1 => self.over_sessions(plan, children, known.remove(0), &sessions),
                _ => Err(sessions_refused()),
            };
        }
        if let ([input], Some(keys)) = (known.as_slice(), partition_keys(&plan))
            && input.reads_stream
        {
            return self.over(plan, children.remove(0), known.remove(0), &keys);
        }
        let known = self.known(&plan, &known)?;
        let plan = replace_children_if_necessary(plan, children)?;
        Ok((plan, known))
    }

    /// A window function: its rows must come in wholes. Where they do not, but one of its keys rises, they are held back
    /// until that key is complete.
    fn over(
        &mut self,
        plan: Arc<dyn ExecutionPlan>,
        mut input: Arc<dyn ExecutionPlan>,
        mut known: Known,
        keys: &[Arc<dyn PhysicalExpr>],
    ) -> Result<Visited> {
        // What is below only because OVER wanted an order and one partition is put there anew, in the end.
        while sorts(&input) || input.downcast_ref::<ConcatExec>().is_some() {
            input = Arc::clone(input.children()[0]);
        }
        if let Some(functions) = session_functions(&plan)? {
            return self.open_sessions(&plan, input, known, functions);
        }
        if !known.whole.is_some_and(|whole| keys.iter().any(|key| column(key) == Some(whole))) {
            let keys = known.keys(keys);
            if self.rankings.iter().any(|ranking| Arc::ptr_eq(ranking, &plan)) {
                return self.first_rows(&plan, input, known, keys);
            }
            let Some(key) = time_key(&keys, &input.schema()) else {
                return Err(refused(
                    "a window function (OVER) whose PARTITION BY has nothing that rises with event time",
                    "PARTITION BY the columns of a window too (window_start, window_end), or over the result of a GROUP BY \
                     of them",
                ));
            };
            input = self.hold_rows(input, &known, &keys[key])?;
            known = known.held(&keys[key]);
        }
        known.rising.resize(plan.schema().fields().len(), None);
        Ok((fed(plan, concat(input))?, known))
    }

    /// All columns of these rows, held back until the key is complete.
    fn hold_rows(
        &mut self,
        input: Arc<dyn ExecutionPlan>,
        known: &Known,
        (key, rising): &Key,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let (shown, mut members, mut rises) = (columns(&input), columns(&input), known.rising.clone());
        if let Some(key) = column(key) {
            return self.hold(members, input, &rises, key);
        }
        // The key is one more member, and no column of the rows.
        members.push((Arc::clone(key), key.to_string()));
        rises.push(rising.clone());
        let held = self.hold(members, input, &rises, shown.len())?;
        Ok(Arc::new(ProjectionExec::try_new(shown, held)?))
    }

    /// Rows of these columns, held back until the key among them is complete; remembered as members, with how often each
    /// was there.
    fn hold(
        &mut self,
        members: Vec<(Arc<dyn PhysicalExpr>, String)>,
        input: Arc<dyn ExecutionPlan>,
        rising: &[Option<Rising>],
        key: usize,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let one: Arc<dyn PhysicalExpr> = Arc::new(Literal::new(ScalarValue::Int64(Some(1))));
        let count = AggregateExprBuilder::new(count_udaf(), vec![one]).schema(input.schema()).alias(RepeatExec::TIMES);
        let inner = Aggregation {
            group_by: Arc::new(PhysicalGroupBy::new_single(members)),
            functions: vec![Arc::new(count.build()?)],
            filters: vec![None],
            input: Arc::clone(&input),
        };
        let schema = inner.over(AggregateMode::Single, Arc::clone(&input))?.schema();
        let kept = self.stateful(&inner, input, Emit::Complete, rising, Some(key), schema)?;
        Ok(Arc::new(RepeatExec::try_new(concat(kept))?))
    }

    /// A node over changes: it must work row by row, and hand on their kind.
    fn over_changes(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        inputs: Vec<Known>,
    ) -> Result<Visited> {
        let known = Known { rising: vec![None; plan.schema().fields().len()], whole: None, ..inputs[0].clone() };
        let kind = |input: &Arc<dyn ExecutionPlan>| input.schema().fields().len() - 1;
        if let Some(projection) = plan.downcast_ref::<ProjectionExec>() {
            let input = Arc::clone(&children[0]);
            let kind = (Arc::new(Column::new(ROW_KIND, kind(&input))) as _, ROW_KIND.to_owned());
            let expressions = projection.expr().iter().map(|e| (Arc::clone(&e.expr), e.alias.clone())).chain([kind]);
            return Ok((Arc::new(ProjectionExec::try_new(expressions, input)?), known));
        }
        if let Some(filter) = plan.downcast_ref::<FilterExec>() {
            let input = Arc::clone(&children[0]);
            let kept = filter.projection().as_deref().map(|kept| [kept, &[kind(&input)]].concat());
            let filter =
                FilterExecBuilder::new(Arc::clone(filter.predicate()), input).apply_projection(kept)?.build()?;
            return Ok((Arc::new(filter), known));
        }
        if ["ScalarSubqueryExec", "ConcatExec", "CoalesceBatchesExec", "CooperativeExec"].contains(&plan.name()) {
            return Ok((replace_children_if_necessary(plan, children)?, known));
        }
        Err(refused(
            &format!("{} over rows that change (of a changelog, or of a GROUP BY without a window)", plan.name()),
            "write them to a topic with a PRIMARY KEY as they are; of rows that only grow, group by a window (TUMBLE, HOP, \
             CUMULATE, SESSION), whose result only grows",
        ))
    }

    /// What is known of the rows of a node that needs no state of ours.
    fn known(&self, plan: &Arc<dyn ExecutionPlan>, inputs: &[Known]) -> Result<Known> {
        let columns = plan.schema().fields().len();
        if plan.downcast_ref::<ScanExec>().is_some() {
            return Ok(Known { reads_stream: true, rising: vec![None; columns], ..Known::default() });
        }
        if !inputs.iter().any(|input| input.reads_stream) {
            return Ok(Known { rising: vec![None; columns], ..Known::default() });
        }
        let first = &inputs[0];
        if let Some(projection) = plan.downcast_ref::<ProjectionExec>() {
            let expressions = projection.expr();
            let rising = expressions.iter().map(|e| Rising::of(&e.expr, &first.rising)).collect();
            let is_whole =
                |whole: &usize| expressions.iter().position(|e| column(&e.expr).is_some_and(|index| index == *whole));
            return Ok(Known { rising, whole: first.whole.as_ref().and_then(is_whole), ..first.clone() });
        }
        if let Some(filter) = plan.downcast_ref::<FilterExec>() {
            return Ok(first.clone().projected(filter.projection().as_deref()));
        }
        if plan.downcast_ref::<UnionExec>().is_some() {
            return Ok(union(inputs));
        }
        if let Some(unnest) = plan.downcast_ref::<UnnestExec>() {
            let mut known = first.clone();
            let lists: Vec<usize> = unnest.list_column_indices().iter().map(|l| l.index_in_input_schema).collect();
            if known.rising.len() != columns || !unnest.struct_column_indices().is_empty() {
                return Ok(Known { rising: vec![None; columns], whole: None, ..known });
            }
            for list in lists {
                known.rising[list] = known.rising[list].as_ref().and_then(Rising::unnested);
            }
            return Ok(known);
        }
        if let Some(join) = plan.downcast_ref::<HashJoinExec>() {
            return Ok(joined(inputs, *join.join_type()).projected(join.projection.as_deref()));
        }
        if let Some(join) = plan.downcast_ref::<NestedLoopJoinExec>() {
            return Ok(joined(inputs, *join.join_type()).projected(join.projection().as_deref()));
        }
        if plan.downcast_ref::<CrossJoinExec>().is_some() {
            return Ok(joined(inputs, JoinType::Inner));
        }
        let passes = [
            "ConcatExec",
            "CoalesceBatchesExec",
            "CoalescePartitionsExec",
            "CooperativeExec",
            "RepartitionExec",
            "ScalarSubqueryExec",
        ];
        if passes.contains(&plan.name()) {
            return Ok(first.clone());
        }
        if plan.downcast_ref::<SortExec>().is_some_and(|sort| sort.fetch().is_none()) && first.whole.is_some() {
            return Ok(first.clone());
        }
        Err(refused(
            &format!("{} over a stream", plan.name()),
            "leave it out, or write the rows to Parquet and ask there",
        ))
    }

    fn aggregation(&mut self, plan: Arc<dyn ExecutionPlan>, aggregation: Aggregation) -> Result<Visited> {
        let (input, known) = self.visit(Arc::clone(&aggregation.input))?;
        if !known.reads_stream {
            let known = Known { rising: vec![None; plan.schema().fields().len()], ..Known::default() };
            return Ok((plan, known));
        }
        if known.is_updating {
            return Err(refused(
                "GROUP BY over a changing result (DISTINCT beside another aggregate makes one)",
                "group what is below by a window (TUMBLE, HOP, CUMULATE, SESSION), whose result only grows",
            ));
        }
        if let Some(sessions) = &known.sessions {
            return self.group_sessions(&aggregation, input, sessions);
        }
        aggregation.check_order()?;
        let rising = aggregation.rising(&known);
        if let Some(whole) = known.whole
            && let Some(key) = aggregation.key_at(whole)
        {
            let whole = aggregation.single(concat(input))?;
            let rising = aggregation.result_rising(rising, Some(key));
            let is_inclusive = known.is_inclusive;
            return Ok((
                whole,
                Known { reads_stream: true, rising, whole: Some(key), is_inclusive, ..Known::default() },
            ));
        }
        let key = aggregation.time_key(&rising);
        let large = aggregation.functions.iter().find(|f| !is_small(f));
        let emit = match (key, aggregation.functions.is_empty()) {
            (_, true) => Emit::New,
            (Some(_), false) => Emit::Complete,
            (None, false) => Emit::Change,
        };
        let schema = if emit == Emit::Change { with_kind(&plan.schema()) } else { plan.schema() };
        let plan = match (large, key) {
            (None, _) => self.stateful(&aggregation, input, emit, &rising, key, schema)?,
            (Some(_), Some(key)) => self.by_members(&aggregation, input, &rising, key)?,
            (Some(large), None) => {
                return Err(refused(
                    &format!("{} without a window", large.name()),
                    "group by window_start, window_end of TUMBLE, HOP or CUMULATE, or by date_bin(INTERVAL '1 minute', ts), \
                     where ts has a WATERMARK",
                ));
            }
        };
        // Keys that come out when they are first seen come out one by one; those of a window come out with it.
        let whole = key.filter(|_| emit == Emit::Complete);
        let rising = aggregation.result_rising(rising, whole);
        Ok((plan, Known { reads_stream: true, rising, whole, is_updating: emit == Emit::Change, ..Known::default() }))
    }

    /// The aggregation with its partial states remembered.
    fn stateful(
        &mut self,
        aggregation: &Aggregation,
        input: Arc<dyn ExecutionPlan>,
        emit: Emit,
        rising: &[Option<Rising>],
        key: Option<usize>,
        schema: SchemaRef,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let mut aggregation = aggregation.clone();
        let is_one_group = aggregation.group_by.is_empty();
        if is_one_group {
            // Without keys DataFusion sums batch by batch, so how a sum rounds would depend on how rows arrive.
            let one = (Arc::new(Literal::new(ScalarValue::Boolean(Some(true)))) as _, "all".to_owned());
            aggregation.group_by = Arc::new(PhysicalGroupBy::new_single(vec![one]));
        }
        let group_by = aggregation.group_by.expr().iter().enumerate();
        let mut keys: Vec<Key> =
            group_by.map(|(index, (e, _))| (Arc::clone(e), rising.get(index).cloned().flatten())).collect();
        if aggregation.group_by.has_grouping_set() {
            // One more column says which of the sets it is.
            keys.push((Arc::new(Column::new(LogicalAggregate::INTERNAL_GROUPING_ID, keys.len())), None));
        }
        let kept = Kept::States(aggregation.functions.clone());
        let hidden = vec![];
        let what = Remembering { kind: "aggregate", keys, time_key: key, kept, emit, is_one_group, hidden };
        self.operator(what, input, |input| aggregation.over(AggregateMode::Partial, input), schema)
    }

    /// Remembers what `partial` makes of the input: key columns, then value columns.
    pub(super) fn operator(
        &mut self,
        what: Remembering,
        mut input: Arc<dyn ExecutionPlan>,
        partial: impl Fn(Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>>,
        schema: SchemaRef,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let Remembering { kind, keys, time_key, kept, emit, is_one_group, hidden } = what;
        self.operators += 1;
        let name = format!("{}{kind}-{}", self.prefix, self.operators);
        let opener = &self.binding.opener;
        let is_session = matches!(emit, Emit::Session { .. });
        let mut layout = Layout::named(&name);
        layout.rising = time_key.filter(|_| !is_session);
        let mut shape = Shape {
            layout,
            kept,
            emit,
            rising: time_key.and_then(|key| keys[key].1.clone()),
            ttl: self.ttl.filter(|_| time_key.is_none()),
            is_one_group,
        };
        if let Some(key) = time_key {
            let watermark = self.binding.times.late_before;
            let mut bound = shape.bound(watermark)?;
            if let Emit::Session { gap } = emit {
                // A row may lie before the watermark, and join a session that is open: late is what would not, alone.
                bound = bound.map(|bound| bound.saturating_sub(gap).saturating_add(1));
            }
            let (width, from, table) = (input.schema().fields().len(), lineage(&input), self.late.cloned());
            let mut shown = vec![];
            if let Some(table) = &table {
                input = self.with_late_columns(input, table)?;
                let schema = input.schema();
                let is_shown = |index: &usize| !hidden.contains(index) && !schema.field(*index).name().starts_with('$');
                shown = (0..schema.fields().len()).filter(is_shown).collect();
            }
            let (operator, key) = (name.clone(), Arc::clone(&keys[key].0));
            let lateness = Lateness { operator, key, bound, watermark, from, table, shown };
            input = Arc::new(LateExec::try_new(input, width, lateness, Arc::clone(opener))?);
        }
        let partial = partial(input)?;
        let fields: Vec<FieldRef> = partial.schema().fields().iter().cloned().collect();
        let named = |(field, (expr, rising)): (&FieldRef, &Key)| {
            let name = rising.as_ref().map_or_else(|| readable(expr), readable);
            Arc::new(field.as_ref().clone().with_name(name))
        };
        // A session's time is no part of its key.
        let of_key = keys.len() - usize::from(is_session);
        shape.layout.keys = fields.iter().zip(&keys[..of_key]).map(named).collect();
        shape.layout.values = match emit {
            Emit::New => vec![],
            Emit::Session { gap } => {
                let rising = keys[of_key].1.as_ref().map(readable).unwrap_or_default();
                sessions::columns(&fields[of_key], &fields[keys.len()..], gap, &rising)
            }
            Emit::Complete | Emit::Change => fields[keys.len()..].to_vec(),
        };
        if is_session {
            shape.layout.remind();
        }
        if shape.ttl.is_some() {
            shape.layout.touch();
        }
        let (times, shards, opener) = (self.binding.times, self.binding.shards, Arc::clone(opener));
        Ok(Arc::new(StatefulAggregateExec::new(partial, Arc::new(shape), schema, times, shards, opener)))
    }

    /// The input with the columns that the table for late rows asks for and it does not have yet.
    fn with_late_columns(&self, input: Arc<dyn ExecutionPlan>, table: &LateTable) -> Result<Arc<dyn ExecutionPlan>> {
        let has = |name: &String| input.schema().column_with_name(name).is_some();
        let missing: Vec<String> = table.row_columns().into_iter().filter(|name| !has(name)).collect();
        let found = stored(&input, &missing);
        let more = if found.is_empty() { None } else { carried(&input, &Carried::Columns(found))? };
        Ok(more.unwrap_or(input))
    }

    /// An aggregation whose states would grow: what it aggregates is remembered as rows of their own, with how often each
    /// was there, and aggregated as a batch when its window is complete.
    fn by_members(
        &mut self,
        aggregation: &Aggregation,
        input: Arc<dyn ExecutionPlan>,
        rising: &[Option<Rising>],
        key: usize,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let mut members: Vec<Arc<dyn PhysicalExpr>> =
            aggregation.group_by.expr().iter().map(|(e, _)| Arc::clone(e)).collect();
        let mut place = |expr: &Arc<dyn PhysicalExpr>| -> Arc<dyn PhysicalExpr> {
            if expr.downcast_ref::<Literal>().is_some() {
                return Arc::clone(expr);
            }
            let index = members.iter().position(|known| known.eq(expr)).unwrap_or_else(|| {
                members.push(Arc::clone(expr));
                members.len() - 1
            });
            Arc::new(Column::new(&member_name(index, &members[index]), index))
        };
        let group_by = aggregation.group_by.as_ref();
        let groups = group_by.expr().iter().map(|(e, name)| (place(e), name.clone())).collect();
        let group_by = PhysicalGroupBy::new(
            groups,
            group_by.null_expr().to_vec(),
            group_by.groups().to_vec(),
            group_by.has_grouping_set(),
        );
        let filters = aggregation.filters.iter().map(|f| f.as_ref().map(&mut place)).collect();
        let moved: Vec<(Vec<_>, Vec<_>)> = (aggregation.functions.iter())
            .map(|function| {
                let arguments = function.expressions().iter().map(&mut place).collect();
                let order = function.order_bys().iter();
                (arguments, order.map(|sort| PhysicalSortExpr::new(place(&sort.expr), sort.options)).collect())
            })
            .collect();
        let named = members.iter().enumerate().map(|(index, e)| (Arc::clone(e), member_name(index, e))).collect();
        let rows = self.hold(named, input, rising, key)?;
        let functions = (aggregation.functions.iter().zip(moved))
            .map(|(function, (arguments, order))| {
                let moved = AggregateExprBuilder::new(Arc::new(function.fun().clone()), arguments)
                    .order_by(order)
                    .schema(rows.schema())
                    .alias(function.name())
                    .with_distinct(function.is_distinct())
                    .with_ignore_nulls(function.ignore_nulls())
                    .with_reversed(function.is_reversed());
                Ok(Arc::new(moved.build()?))
            })
            .collect::<Result<_>>()?;
        let outer = Aggregation { group_by: Arc::new(group_by), functions, filters, input: rows };
        outer.single(Arc::clone(&outer.input))
    }
}

/// Whether the state of a function does not grow.
pub(super) fn is_small(function: &Arc<AggregateFunctionExpr>) -> bool {
    SMALL.contains(&function.fun().name()) && !function.is_distinct()
}

/// Columns of rows that are held back until a key is complete: only what follows that one still rises.
pub(super) fn held_by(columns: Vec<Option<Rising>>, key: &Rising) -> Vec<Option<Rising>> {
    columns.into_iter().map(|column| column.filter(|column| column.follows(key))).collect()
}

/// The key that decides when rows are complete: the one that rises soonest, as CUMULATE's window_end does.
pub(super) fn time_key(keys: &[Key], schema: &Schema) -> Option<usize> {
    let can = |index: &usize| {
        let (key, rising) = &keys[*index];
        rising.is_some() && key.data_type(schema).is_ok_and(|data_type| can_rise(&data_type))
    };
    (0..keys.len()).filter(can).min_by_key(|index| keys[*index].1.as_ref().map(Rising::period_ms))
}

fn member_name(index: usize, expr: &Arc<dyn PhysicalExpr>) -> String {
    format!("{index} {expr}")
}

/// An expression without the places of its columns: these change when other columns come or go.
pub(super) fn readable(expr: &impl ToString) -> String {
    let text = expr.to_string();
    let mut parts = text.split('@');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + part.trim_start_matches(|c: char| c.is_ascii_digit()))
}

impl Known {
    /// These keys, and how they rise.
    pub(super) fn keys(&self, keys: &[Arc<dyn PhysicalExpr>]) -> Vec<Key> {
        keys.iter().map(|key| (Arc::clone(key), Rising::of(key, &self.rising))).collect()
    }

    /// The same rows, held back until this key is complete.
    pub(super) fn held(self, (key, rising): &Key) -> Known {
        let rising = match rising {
            Some(rising) => held_by(self.rising, rising),
            None => vec![None; self.rising.len()],
        };
        Known { rising, whole: column(key), is_inclusive: false, ..self }
    }

    fn projected(self, projection: Option<&[usize]>) -> Known {
        let Some(projection) = projection else { return self };
        let whole = self.whole.and_then(|whole| projection.iter().position(|index| *index == whole));
        let rising = projection.iter().map(|index| self.rising[*index].clone()).collect();
        Known { rising, whole, ..self }
    }
}

/// A column of a union rises where it does in all inputs, and in the same way.
fn union(inputs: &[Known]) -> Known {
    let (first, rest) = match inputs.split_first() {
        Some((first, rest)) => (first, rest),
        None => return Known::default(),
    };
    let same = |index: usize, rising: &Rising| {
        rest.iter().all(|input| input.rising[index].as_ref().is_some_and(|other| rising.is_same(other)))
    };
    let rising = first.rising.iter().enumerate();
    let rising = rising.map(|(index, rising)| rising.clone().filter(|rising| same(index, rising))).collect();
    let rising: Vec<Option<Rising>> = rising;
    let is_as = |input: &Known, whole: usize| input.whole == Some(whole) && input.is_inclusive == first.is_inclusive;
    let is_same = |whole: &usize| rising[*whole].is_some() && rest.iter().all(|input| is_as(input, *whole));
    let whole = first.whole.filter(is_same);
    Known { reads_stream: true, rising, whole, is_inclusive: first.is_inclusive, ..Known::default() }
}

/// A join of a stream with a static table: the stream's columns stay what they are.
fn joined(inputs: &[Known], join: JoinType) -> Known {
    let [left, right] = inputs else { return Known::default() };
    let reads_stream = true;
    let moved = right.whole.map(|whole| whole + left.rising.len());
    match join {
        JoinType::LeftSemi | JoinType::LeftAnti => Known { reads_stream, ..left.clone() },
        JoinType::RightSemi | JoinType::RightAnti => Known { reads_stream, ..right.clone() },
        JoinType::LeftMark | JoinType::RightMark => {
            let side = if join == JoinType::LeftMark { left } else { right };
            Known { rising: [side.rising.as_slice(), &[None]].concat(), ..side.clone() }
        }
        _ => Known {
            reads_stream,
            rising: [left.rising.as_slice(), &right.rising].concat(),
            whole: left.whole.or(moved),
            is_inclusive: left.is_inclusive || right.is_inclusive,
            ..Known::default()
        },
    }
}

pub(super) fn column(expr: &Arc<dyn PhysicalExpr>) -> Option<usize> {
    expr.downcast_ref::<Column>().map(Column::index)
}

/// The columns of a plan.
fn columns(plan: &Arc<dyn ExecutionPlan>) -> Vec<(Arc<dyn PhysicalExpr>, String)> {
    let schema = plan.schema();
    let all = schema.fields().iter().enumerate();
    all.map(|(index, field)| (Arc::new(Column::new(field.name(), index)) as _, field.name().clone())).collect()
}

/// The order of a plan's columns, from left to right: rows that are equal in it are the same.
pub(super) fn by_columns(plan: &Arc<dyn ExecutionPlan>) -> Vec<PhysicalSortExpr> {
    columns(plan).into_iter().map(|(column, _)| PhysicalSortExpr::new_default(column)).collect()
}

/// A plan's rows in this order, and by their columns where they are equal in it: they come from shards, and the answer
/// must not depend on how many there are.
pub(super) fn sorted(
    input: Arc<dyn ExecutionPlan>,
    order: impl IntoIterator<Item = PhysicalSortExpr>,
) -> Arc<dyn ExecutionPlan> {
    match LexOrdering::new(order.into_iter().chain(by_columns(&input))) {
        Some(order) => Arc::new(SortExec::new(order, input).with_preserve_partitioning(true)),
        None => input,
    }
}

/// A node over this input, sorted as the node wants it.
pub(super) fn fed(node: Arc<dyn ExecutionPlan>, input: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    let wanted = node.required_input_ordering().into_iter().next().flatten();
    let wanted = wanted.into_iter().flat_map(|order| order.into_single()).map(PhysicalSortExpr::from);
    Ok(replace_children_if_necessary(node, vec![sorted(input, wanted)])?)
}

/// Whether a node only puts rows in order.
pub(super) fn sorts(plan: &Arc<dyn ExecutionPlan>) -> bool {
    let is_sort = plan.downcast_ref::<SortExec>().is_some() || plan.downcast_ref::<SortPreservingMergeExec>().is_some();
    is_sort && plan.fetch().is_none()
}

/// The functions of a node that is an OVER.
pub(super) fn window_functions(plan: &Arc<dyn ExecutionPlan>) -> Option<&[Arc<dyn WindowExpr>]> {
    match (plan.downcast_ref::<BoundedWindowAggExec>(), plan.downcast_ref::<WindowAggExec>()) {
        (Some(window), _) => Some(window.window_expr()),
        (_, Some(window)) => Some(window.window_expr()),
        _ => None,
    }
}

fn partition_keys(plan: &Arc<dyn ExecutionPlan>) -> Option<Vec<Arc<dyn PhysicalExpr>>> {
    let functions = window_functions(plan)?;
    Some(functions.first().map(|function| function.partition_by().to_vec()).unwrap_or_default())
}

pub(super) fn refused(what: &str, instead: &str) -> Error {
    Error::usage(format!("{what} is not supported in a continuous query yet; {instead}"))
}

/// Where the rows of each partition of a plan come from, where that is one partition of a source.
fn lineage(plan: &Arc<dyn ExecutionPlan>) -> Vec<Option<Partition>> {
    if let Some(scan) = plan.downcast_ref::<ScanExec>() {
        return scan.partitions();
    }
    let count = plan.output_partitioning().partition_count();
    let below: Vec<Vec<Option<Partition>>> = plan.children().into_iter().map(lineage).collect();
    if plan.downcast_ref::<UnionExec>().is_some() {
        return below.concat();
    }
    let mut same = below.into_iter().filter(|child| child.len() == count && child.iter().any(Option::is_some));
    same.next().unwrap_or_else(|| vec![None; count])
}

//! `ROW_NUMBER() OVER (PARTITION BY k ORDER BY …) = 1` over a stream: one row of each key, remembered.
//!
//! The idea: where a key rises with event time, as the columns of a window do, the row is kept until that key is
//! complete, comes out once, and is forgotten. Else which row it is, and whether it can change, follows from the order.
//!
//! | ORDER BY | what comes out, where no key rises |
//! |---|---|
//! | event time, rising | the first row by event time, once the watermark has passed its time; then it stays |
//! | `PROCTIME()`, rising | the first row that arrives, of one epoch the first in the rest of the order; it stays |
//! | anything else | the first row so far, in that order; it changes when a better one arrives |
//!
//! The first takes two operators: one holds rows back until the watermark has passed them, so that what comes out of it
//! comes in the order of time, and the other one remembers which keys have come out.
//!
//! Guarantee: of rows that are equal in the order, the first by (topic, partition, offset) is taken, however the input is
//! cut into epochs; where rows have no position any more (they come out of state, or of a join), the first by their
//! columns. Of rows that come out of state in one epoch the first by their columns counts as the first that arrives.

use std::sync::Arc;

use datafusion::common::ScalarValue;
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::expressions::{BinaryExpr, CastExpr, Column, Literal};
use datafusion::physical_expr::utils::split_conjunction;
use datafusion::physical_expr::window::StandardWindowExpr;
use datafusion::physical_expr::{PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::windows::WindowUDFExpr;

use super::aggregate::{Emit, stateful_nodes};
use super::carry::{Carried, carried};
use super::changes::{ROW_KIND, with_kind};
use super::concat::concat;
use super::kept::{Choice, Kept};
use super::scan::position_fields;
use super::stateful::{
    Key, Known, Remembering, Visited, Walk, by_columns, column, readable, sorted, time_key, window_functions,
};
use super::time::{Rising, can_rise};
use crate::error::Result;

/// The ranking whose first place a filter asks for; other conditions may stand beside it.
pub(super) fn ranked_first(plan: &Arc<dyn ExecutionPlan>) -> Option<Arc<dyn ExecutionPlan>> {
    let filter = plan.downcast_ref::<FilterExec>()?;
    let mut ranked = Arc::clone(filter.input());
    let mut places: Vec<usize> = split_conjunction(filter.predicate()).into_iter().filter_map(is_first).collect();
    while let Some(projection) = ranked.downcast_ref::<ProjectionExec>() {
        places = places.into_iter().filter_map(|place| column(&projection.expr()[place].expr)).collect();
        ranked = Arc::clone(projection.input());
    }
    let [function] = window_functions(&ranked)? else { return None };
    let function = function.as_any().downcast_ref::<StandardWindowExpr>()?;
    let function = function.get_standard_func_expr().as_any().downcast_ref::<WindowUDFExpr>()?;
    let is_ranking = function.fun().name() == "row_number";
    let rank = ranked.schema().fields().len() - 1;
    (is_ranking && places.contains(&rank)).then_some(ranked)
}

/// The column that must be 1.
fn is_first(predicate: &Arc<dyn PhysicalExpr>) -> Option<usize> {
    let binary = predicate.downcast_ref::<BinaryExpr>()?;
    let number = |side: &Arc<dyn PhysicalExpr>| match side.downcast_ref::<Literal>()?.value() {
        ScalarValue::UInt64(number) => *number,
        ScalarValue::Int64(number) => (*number)?.try_into().ok(),
        _ => None,
    };
    match (binary.op(), number(binary.left()), number(binary.right())) {
        (Operator::Eq | Operator::LtEq, None, Some(1)) | (Operator::Lt, None, Some(2)) => column(binary.left()),
        (Operator::Eq | Operator::GtEq, Some(1), None) | (Operator::Gt, Some(2), None) => column(binary.right()),
        _ => None,
    }
}

/// Whether an expression has one value in all rows of an epoch: what orders by it goes by arrival.
fn is_constant(expr: &Arc<dyn PhysicalExpr>, input: &Arc<dyn ExecutionPlan>) -> bool {
    if let Some(index) = column(expr) {
        return match (input.downcast_ref::<ProjectionExec>(), input.children().as_slice()) {
            (Some(projection), _) => is_constant(&projection.expr()[index].expr, projection.input()),
            (None, [below]) => {
                let kept = input.downcast_ref::<FilterExec>().and_then(|filter| filter.projection().clone());
                let index = kept.map_or(index, |kept| kept[index]);
                let is_same = |index: usize| below.schema().fields().get(index).map(|f| f.name().clone());
                let moved: Arc<dyn PhysicalExpr> = Arc::new(Column::new(&is_same(index).unwrap_or_default(), index));
                is_same(index).is_some()
                    && ["FilterExec", "CooperativeExec"].contains(&input.name())
                    && is_constant(&moved, below)
            }
            _ => false,
        };
    }
    let is_plain = expr.downcast_ref::<Literal>().is_some() || expr.downcast_ref::<CastExpr>().is_some();
    is_plain && expr.children().into_iter().all(|child| is_constant(child, input))
}

impl Walk<'_> {
    /// The first row of each key in the order of a ranking, with its place, which is 1.
    pub(super) fn first_rows(
        &mut self,
        ranking: &Arc<dyn ExecutionPlan>,
        mut input: Arc<dyn ExecutionPlan>,
        mut known: Known,
        mut keys: Vec<Key>,
    ) -> Result<Visited> {
        let columns = input.schema().fields().len();
        let functions = window_functions(ranking).unwrap_or_default();
        let mut order: Vec<PhysicalSortExpr> = functions.iter().flat_map(|f| f.order_by().iter().cloned()).collect();
        let arrival = order.first().filter(|first| is_constant(&first.expr, &input)).map(|first| first.options);
        let by_arrival = order.is_empty() || arrival.is_some();
        let is_last = arrival.is_some_and(|options| options.descending);
        let mut choice = (if by_arrival && !is_last { Emit::New } else { Emit::Change }, false);
        if by_arrival && order.len() <= 1 {
            // Rows come in that order, and need not be compared.
            order.clear();
            choice.1 = is_last;
            if !stateful_nodes(&input).is_empty() {
                // They come from shards.
                input = sorted(concat(input), []);
            }
        } else if let Some(numbered) = carried(&input, &Carried::Position)? {
            let positions = position_fields();
            let position = |(index, field): (usize, &arrow::datatypes::FieldRef)| {
                PhysicalSortExpr::new_default(Arc::new(Column::new(field.name(), columns + index)))
            };
            order.extend(positions.iter().enumerate().map(position));
            known.rising.extend(vec![None; positions.len()]);
            input = numbered;
        } else {
            order.extend(by_columns(&input));
        }
        let time_key = time_key(&keys, &input.schema());
        if let Some(key) = time_key {
            known = known.held(&keys[key]);
            choice.0 = Emit::Complete;
        } else if let Some(first) = order.first()
            && let Some(rising) = Rising::of(&first.expr, &known.rising)
            && !first.options.descending
            && can_rise(&first.expr.data_type(&input.schema())?)
        {
            let time: Key = (Arc::clone(&first.expr), Some(rising));
            let held = keys.iter().cloned().chain([time.clone()]).collect();
            input = self.one_row(input, held, Some(keys.len()), &order, (Emit::Complete, false))?;
            known = known.held(&time);
            keys.iter_mut().for_each(|(key, rising)| *rising = Rising::of(key, &known.rising));
            choice.0 = Emit::New;
        }
        let first = self.one_row(input, keys, time_key, &order, choice)?;

        known.is_updating = choice.0 == Emit::Change;
        known.rising.truncate(columns);
        known.rising.push(None);
        let schema = ranking.schema();
        let place: Arc<dyn PhysicalExpr> = Arc::new(Literal::new(ScalarValue::UInt64(Some(1))));
        let mut shown: Vec<(Arc<dyn PhysicalExpr>, String)> = vec![];
        for (index, field) in schema.fields().iter().enumerate() {
            let column = || Arc::new(Column::new(field.name(), index)) as _;
            shown.push((if index == columns { Arc::clone(&place) } else { column() }, field.name().clone()));
        }
        if known.is_updating {
            let kind = first.schema().fields().len() - 1;
            shown.push((Arc::new(Column::new(ROW_KIND, kind)), ROW_KIND.to_owned()));
        }
        Ok((Arc::new(ProjectionExec::try_new(shown, first)?), known))
    }

    /// One row of each key, with the columns of the input: the first one in this order.
    fn one_row(
        &mut self,
        input: Arc<dyn ExecutionPlan>,
        mut keys: Vec<Key>,
        time_key: Option<usize>,
        order: &[PhysicalSortExpr],
        (emit, takes_last): (Emit, bool),
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = input.schema();
        // Where there is no column either, the constant key is one.
        let is_one_group = keys.is_empty() && !schema.fields().is_empty();
        if keys.is_empty() {
            keys.push((Arc::new(Literal::new(ScalarValue::Boolean(Some(true)))), None));
        }
        let key_at = |index: usize| keys.iter().position(|(key, _)| column(key) == Some(index));
        let named = |index: usize| {
            let name = schema.field(index).name();
            (Arc::new(Column::new(name, index)) as Arc<dyn PhysicalExpr>, name.clone())
        };
        let others: Vec<usize> = (0..schema.fields().len()).filter(|index| key_at(*index).is_none()).collect();
        let mut values: Vec<_> = others.iter().map(|index| named(*index)).collect();
        let width = values.len();
        let mut compared = vec![];
        for sort in order.iter().filter(|sort| !keys.iter().any(|(key, _)| key.eq(&sort.expr))) {
            let place = values.iter().position(|(known, _)| known.eq(&sort.expr)).unwrap_or_else(|| {
                // What is constant in an epoch is another constant in the next: its batch time.
                let is_constant = is_constant(&sort.expr, &input);
                let name = if is_constant { "batch time".to_owned() } else { readable(&sort.expr) };
                values.push((Arc::clone(&sort.expr), format!("order {name}")));
                values.len() - 1
            });
            compared.push((place, sort.options));
        }
        let named_keys = keys.iter().enumerate().map(|(index, (key, _))| (Arc::clone(key), format!("key {index}")));
        let expressions: Vec<_> = named_keys.chain(values).collect();
        let partial = |input| -> Result<Arc<dyn ExecutionPlan>> {
            Ok(Arc::new(ProjectionExec::try_new(expressions.clone(), input)?))
        };
        let whole = partial(Arc::clone(&input))?.schema();
        let hidden = usize::from(is_one_group);
        let kept = Arc::new(whole.project(&(hidden..keys.len() + width).collect::<Vec<_>>())?);
        let what = Remembering {
            kind: "first",
            keys: keys.clone(),
            time_key,
            kept: Kept::Row(Choice { width, order: compared, takes_last }),
            emit,
            is_one_group,
            hidden: vec![],
        };
        let schema_of_changes = if emit == Emit::Change { with_kind(&kept) } else { Arc::clone(&kept) };
        let first = self.operator(what, input, partial, schema_of_changes)?;

        // The input's columns, in their order.
        let shown = |index: usize| {
            let place = key_at(index).or_else(|| Some(keys.len() + others.binary_search(&index).ok()?));
            let place = place.unwrap_or_default() - hidden;
            let name = schema.field(index).name();
            (Arc::new(Column::new(kept.field(place).name(), place)) as Arc<dyn PhysicalExpr>, name.clone())
        };
        let mut columns: Vec<_> = (0..schema.fields().len()).map(shown).collect();
        if emit == Emit::Change {
            columns.push((Arc::new(Column::new(ROW_KIND, kept.fields().len())), ROW_KIND.to_owned()));
        }
        Ok(Arc::new(ProjectionExec::try_new(columns, first)?))
    }
}

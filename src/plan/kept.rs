//! What is remembered of the rows of a key: how rows become one, and what that one says.
//!
//! The idea: an operator that remembers holds one row of state for each key. Rows of the epoch and the row that was there
//! are *merged* into a new one, all keys at once, and *evaluated* into columns of the result.
//!
//! Guarantee: merging goes by the order in which rows are given, and by nothing else.

use std::sync::Arc;

use arrow::array::{ArrayRef, UInt32Array};
use arrow::compute::{SortOptions, take};
use arrow::row::{RowConverter, SortField};
use datafusion::logical_expr::{EmitTo, GroupsAccumulator};
use datafusion::physical_expr::GroupsAccumulatorAdapter;
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;

use crate::error::Result;
use crate::state::files::trimmed;

/// What is kept of the rows of a key.
#[derive(Debug, Clone)]
pub enum Kept {
    /// The partial states of aggregate functions, one after the other; nothing, if there is no function.
    States(Vec<Arc<AggregateFunctionExpr>>),
    /// One of the rows.
    Row(Choice),
}

/// Which of several rows is kept: the first one in an order.
#[derive(Debug, Clone)]
pub struct Choice {
    /// How many of the columns are the row's; what follows is only there to be compared.
    pub width: usize,
    /// Which columns are compared, and how.
    pub order: Vec<(usize, SortOptions)>,
    /// Whether of equal rows the last one is kept, in the order in which they come.
    pub takes_last: bool,
}

impl Kept {
    /// Whether a key is all that is remembered.
    pub fn is_nothing(&self) -> bool {
        matches!(self, Self::States(functions) if functions.is_empty())
    }

    /// One row of state for each of `total` groups; `groups` says which group a row belongs to, and every group has one.
    pub fn merged(&self, rows: &[ArrayRef], groups: &[usize], total: usize) -> Result<Vec<ArrayRef>> {
        match self {
            _ if total == 0 || self.is_nothing() => Ok(rows.iter().map(|column| column.slice(0, 0)).collect()),
            Self::States(functions) => {
                let mut states = vec![];
                for mut accumulator in merge(functions, rows, groups, total)? {
                    states.extend(accumulator.state(EmitTo::All)?);
                }
                Ok(states)
            }
            Self::Row(choice) => {
                let chosen = choice.chosen(rows, groups, total)?;
                // Or a row would keep the texts of all that were read beside it.
                rows.iter().map(|column| Ok(trimmed(&take(column, &chosen, None)?))).collect()
            }
        }
    }

    /// The result's columns of groups, each given by one row of state.
    pub fn evaluate(&self, state: &[ArrayRef], groups: usize) -> Result<Vec<ArrayRef>> {
        match self {
            Self::States(functions) => {
                let merged = merge(functions, state, &(0..groups).collect::<Vec<_>>(), groups)?;
                merged.into_iter().map(|mut accumulator| Ok(accumulator.evaluate(EmitTo::All)?)).collect()
            }
            Self::Row(choice) => Ok(state[..choice.width].to_vec()),
        }
    }
}

/// Accumulators that were given these states. All at once: an accumulator takes it that every group up to the last is in
/// what it is given.
fn merge(
    functions: &[Arc<AggregateFunctionExpr>],
    states: &[ArrayRef],
    groups: &[usize],
    total: usize,
) -> Result<Vec<Box<dyn GroupsAccumulator>>> {
    let (mut from, mut merged) = (0, vec![]);
    for function in functions {
        let mut accumulator: Box<dyn GroupsAccumulator> = if function.groups_accumulator_supported() {
            function.create_groups_accumulator()?
        } else {
            let function = Arc::clone(function);
            Box::new(GroupsAccumulatorAdapter::new(move || function.create_accumulator()))
        };
        let to = from + function.state_fields()?.len();
        accumulator.merge_batch(&states[from..to], groups, total)?;
        merged.push(accumulator);
        from = to;
    }
    Ok(merged)
}

impl Choice {
    /// By group, the row that is kept.
    fn chosen(&self, rows: &[ArrayRef], groups: &[usize], total: usize) -> Result<UInt32Array> {
        let (columns, fields): (Vec<ArrayRef>, Vec<SortField>) = (self.order.iter())
            .map(|(index, options)| {
                let column = &rows[*index];
                (Arc::clone(column), SortField::new_with_options(column.data_type().clone(), *options))
            })
            .unzip();
        // Without an order all rows are equal.
        let ranks = match columns.is_empty() {
            true => None,
            false => Some(RowConverter::new(fields)?.convert_columns(&columns)?),
        };
        let mut chosen: Vec<Option<u32>> = vec![None; total];
        for (row, group) in groups.iter().enumerate() {
            let is_better = chosen[*group].is_none_or(|best| {
                let order = ranks.as_ref().map(|ranks| ranks.row(row).cmp(&ranks.row(best as usize)));
                let order = order.unwrap_or(std::cmp::Ordering::Equal);
                order.is_lt() || (self.takes_last && order.is_eq())
            });
            if is_better {
                chosen[*group] = Some(row as u32);
            }
        }
        Ok(chosen.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{AsArray, Int64Array};
    use arrow::datatypes::Int64Type;

    fn choose(order: &[(usize, bool)], takes_last: bool) -> Vec<i64> {
        let column = |values: &[i64]| Arc::new(Int64Array::from(values.to_vec())) as ArrayRef;
        let rows = [column(&[10, 11, 12, 13, 14]), column(&[5, 7, 5, 7, 6])];
        let order = order.iter().map(|(index, descending)| (*index, SortOptions::new(*descending, false))).collect();
        let kept = Kept::Row(Choice { width: 1, order, takes_last });
        let merged = kept.merged(&rows, &[0, 1, 0, 1, 0], 2).unwrap();
        assert_eq!(merged.len(), 2);
        kept.evaluate(&merged, 2).unwrap()[0].as_primitive::<Int64Type>().values().to_vec()
    }

    #[test]
    fn of_equal_rows_the_first_or_the_last_is_kept() {
        assert_eq!(choose(&[], false), [10, 11]);
        assert_eq!(choose(&[], true), [14, 13]);
        assert_eq!(choose(&[(1, false)], false), [10, 11]);
        assert_eq!(choose(&[(1, false)], true), [12, 13]);
        assert_eq!(choose(&[(1, true)], false), [14, 11]);
        assert_eq!(choose(&[(1, true), (0, true)], false), [14, 13]);
    }
}

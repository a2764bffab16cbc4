//! From changes to upserts: what topic sinks share of results that are updated.
//!
//! The idea: in a topic the newest message of a key counts. So a row that is new, or takes the place of another, is
//! written as it is. One that is taken back is left out where the next row has its key, for that one takes its place;
//! else it becomes a *tombstone*: a message with its key and no value. One that is taken back at the end of a batch waits
//! for the next batch, so that it does not matter where a result is cut into batches.
//!
//! A format that is a changelog has a place for the kind of a row. There each change is a message of its own, without
//! tombstones, and it needs no key.
//!
//! Guarantee: whoever keeps the newest message of each key has the result, if its rows differ in the PRIMARY KEY. An
//! epoch that is published again has the same messages.
//!
//! Not promised: that they differ. Whether the PRIMARY KEY holds all that a result is grouped by is checked where it is
//! planned.

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int8Array, RecordBatch};
use arrow::compute::{concat_batches, filter, filter_record_batch, or, partition};
use arrow::datatypes::Int8Type;
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use futures::future::ready;
use futures::{Stream, StreamExt, stream};

use crate::catalog::{Column, ColumnKind, TableDefinition};
use crate::error::{Error, Result};
use crate::format::FormatOptions;
use crate::plan::changes::{RowKind, is_updating};

/// What the key of a message is, as places among the table's writable columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    /// A metadata column, as it is.
    Given(usize),
    /// Made of these columns; without any there is no key.
    Made(Vec<usize>),
}

impl Key {
    /// The metadata column `metadata`, where the table writes it, or else the columns `names`.
    pub fn of(table: &TableDefinition, metadata: &str, names: &[String]) -> Result<Self> {
        let place = |is: &dyn Fn(&Column) -> bool| table.writable_columns().position(is);
        let is_key = |column: &Column| matches!(&column.kind, ColumnKind::Metadata { key, .. } if key == metadata);
        if let Some(given) = place(&is_key) {
            return Ok(Self::Given(given));
        }
        let made = names.iter().map(|name| {
            place(&|column| column.name == *name).ok_or_else(|| {
                Error::usage(format!(
                    "column {name} of the PRIMARY KEY is not written, so no message's key can be made of it; name \
                     columns that are neither computed nor VIRTUAL"
                ))
            })
        });
        Ok(Self::Made(made.collect::<Result<_>>()?))
    }

    /// The columns that decide it.
    pub fn columns(&self) -> &[usize] {
        match self {
            Self::Given(column) => std::slice::from_ref(column),
            Self::Made(columns) => columns,
        }
    }
}

/// How a result that changes is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// As upserts and tombstones, by this key.
    Upserts(Key),
    /// Change by change: payloads say what happened.
    Changelog,
}

impl Mode {
    /// What payloads of this format need, in messages with this key.
    pub fn of(format: &FormatOptions, key: &Key) -> Self {
        if format.is_changelog() { Self::Changelog } else { Self::Upserts(key.clone()) }
    }
}

/// Rows that are written, a message each.
#[derive(Debug, Clone)]
pub struct Upserts {
    /// The rows, in the table's [`writable_schema`](TableDefinition::writable_schema).
    pub rows: RecordBatch,
    /// Of a result that changes, as upserts: which of them have a value. The others are tombstones.
    pub valued: Option<BooleanArray>,
    /// Of a result that changes, as a changelog: the number of each row's [`RowKind`].
    pub kinds: Option<Int8Array>,
}

impl Upserts {
    /// Refuses rows of a result that changes whose messages have no key: nothing could ever take their place.
    pub fn check_keys(&self, keys: Option<&ArrayRef>) -> Result<()> {
        match self.valued.is_some() && keys.is_none_or(|keys| keys.null_count() > 0) {
            false => Ok(()),
            true => Err(Error::data(
                "a row of a result that changes has no key, as a column of its key is NULL or empty, so it could never be \
                 replaced; write COALESCE(column, '-'), or leave such rows out",
            )),
        }
    }
}

/// The rows of a sink's task as what is written of them: all of them, unless the result changes and becomes upserts.
pub fn upserts(
    rows: SendableRecordBatchStream,
    mode: Mode,
) -> impl Stream<Item = Result<Upserts>> + Send + Unpin + 'static {
    let mut writing = match mode {
        _ if !is_updating(&rows.schema()) => Writing::Rows,
        Mode::Upserts(key) => Writing::Pairs(Pairing { key, held: None }),
        Mode::Changelog => Writing::Changes,
    };
    let end = stream::iter([None]);
    rows.map(Some).chain(end).filter_map(move |batch| ready(writing.next(batch).transpose()))
}

/// How the rows of a task are written.
#[derive(Debug)]
enum Writing {
    Rows,
    Changes,
    Pairs(Pairing),
}

impl Writing {
    /// What is written of a batch, or at the end, where there is none.
    fn next(&mut self, batch: Option<Result<RecordBatch, DataFusionError>>) -> Result<Option<Upserts>> {
        let batch = batch.transpose()?;
        match self {
            Self::Rows => Ok(batch.map(|rows| Upserts { rows, valued: None, kinds: None })),
            Self::Changes => Ok(batch.map(|mut rows| {
                let kinds = rows.remove_column(rows.num_columns() - 1).as_primitive::<Int8Type>().clone();
                Upserts { rows, valued: None, kinds: Some(kinds) }
            })),
            Self::Pairs(pairing) => pairing.next(batch),
        }
    }
}

/// Finds the rows that are taken back and replaced.
#[derive(Debug)]
struct Pairing {
    key: Key,
    /// A row that is taken back, the last one of a batch.
    held: Option<RecordBatch>,
}

impl Pairing {
    fn next(&mut self, batch: Option<RecordBatch>) -> Result<Option<Upserts>> {
        let is_end = batch.is_none();
        let mut changes = match (self.held.take(), batch) {
            (Some(held), Some(batch)) => concat_batches(&batch.schema(), [&held, &batch])?,
            (Some(only), None) | (None, Some(only)) => only,
            (None, None) => return Ok(None),
        };
        let kinds = changes.column(changes.num_columns() - 1).as_primitive::<Int8Type>();
        let is_valued = |kind| RowKind::of(kind).is_there();
        let mut valued = BooleanArray::from_unary(kinds, is_valued);
        let last = valued.len().checked_sub(1).filter(|last| !is_end && !valued.value(*last));
        if let Some(last) = last {
            self.held = Some(changes.slice(last, 1));
            (changes, valued) = (changes.slice(0, last), valued.slice(0, last));
        }
        if valued.is_empty() {
            return Ok(None);
        }
        changes.remove_column(changes.num_columns() - 1);

        let key = changes.project(self.key.columns())?;
        let mut is_last_of_key = vec![false; valued.len()];
        partition(key.columns())?.ranges().iter().for_each(|same| is_last_of_key[same.end - 1] = true);
        let written = or(&valued, &BooleanArray::from(is_last_of_key))?;
        let rows = filter_record_batch(&changes, &written)?;
        let valued = filter(&valued, &written)?.as_boolean().clone();
        Ok(Some(Upserts { rows, valued: Some(valued), kinds: None }))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int8Array, Int64Array, StringArray};
    use arrow::datatypes::{DataType, Field, Int64Type, Schema};
    use futures::TryStreamExt;

    use super::RowKind::{Insert, UpdateAfter, UpdateBefore};
    use super::*;
    use crate::connector::contract::fixture;
    use crate::plan::changes::with_kind;

    type Row = (RowKind, Option<&'static str>, i64);

    /// What is written of rows with a key and a value, in these batches.
    async fn written(batches: &[&[Row]]) -> Vec<String> {
        let fields = vec![Field::new("key", DataType::Utf8, true), Field::new("value", DataType::Int64, true)];
        let schema = with_kind(&Arc::new(Schema::new(fields)));
        let batch = |rows: &&[Row]| {
            let columns: Vec<ArrayRef> = vec![
                Arc::new(StringArray::from_iter(rows.iter().map(|row| row.1))),
                Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.2))),
                Arc::new(Int8Array::from_iter_values(rows.iter().map(|row| row.0 as i8))),
            ];
            Ok(RecordBatch::try_new(Arc::clone(&schema), columns).unwrap())
        };
        let changes = fixture::stream_of(&schema, batches.iter().map(batch).collect());
        let mut lines = vec![];
        for batch in upserts(changes, Mode::Upserts(Key::Made(vec![0]))).try_collect::<Vec<_>>().await.unwrap() {
            assert_eq!(batch.rows.num_columns(), 2);
            assert!(batch.rows.num_rows() > 0);
            let (keys, values) = (batch.rows.column(0).as_string::<i32>(), batch.rows.column(1));
            for (row, is_valued) in batch.valued.unwrap().values().iter().enumerate() {
                let key = if keys.is_null(row) { "-" } else { keys.value(row) };
                let value = values.as_primitive::<Int64Type>().value(row);
                lines.push(if is_valued { format!("{key}={value}") } else { format!("{key} gone") });
            }
        }
        lines
    }

    #[tokio::test]
    async fn a_pair_is_one_upsert_and_a_row_without_a_successor_a_tombstone() {
        let (a, b, none) = (Some("a"), Some("b"), None);
        let pairs = [(Insert, a, 1), (UpdateBefore, b, 2), (UpdateAfter, b, 3), (UpdateBefore, none, 4)];
        assert_eq!(written(&[&pairs]).await, ["a=1", "b=3", "- gone"]);
        assert_eq!(written(&[&[(UpdateBefore, none, 4), (UpdateAfter, none, 5)]]).await, ["-=5"]);
        assert_eq!(written(&[&[(UpdateAfter, a, 7)]]).await, ["a=7"]);
        assert_eq!(written(&[]).await, [""; 0]);
    }

    /// A filter took one half of each.
    #[tokio::test]
    async fn halves_of_different_groups_are_no_pair() {
        let (a, b, c) = (Some("a"), Some("b"), Some("c"));
        let halves = [(UpdateBefore, a, 1), (UpdateAfter, b, 2), (UpdateBefore, c, 3), (UpdateBefore, a, 4)];
        assert_eq!(written(&[&halves]).await, ["a gone", "b=2", "c gone", "a gone"]);
        let between = [(UpdateBefore, a, 1), (UpdateBefore, b, 2), (UpdateAfter, b, 3), (UpdateAfter, c, 4)];
        assert_eq!(written(&[&between]).await, ["a gone", "b=3", "c=4"]);
    }

    #[tokio::test]
    async fn a_pair_may_be_in_two_batches() {
        let (a, b) = (Some("a"), Some("b"));
        let (before, after) = ((UpdateBefore, a, 1), (UpdateAfter, a, 2));
        assert_eq!(written(&[&[(Insert, b, 0), before], &[after]]).await, ["b=0", "a=2"]);
        assert_eq!(written(&[&[before], &[], &[after, (UpdateBefore, b, 3)], &[]]).await, ["a=2", "b gone"]);
        assert_eq!(written(&[&[before], &[(Insert, b, 3)]]).await, ["a gone", "b=3"]);
        assert_eq!(written(&[&[before], &[(UpdateBefore, b, 3)]]).await, ["a gone", "b gone"]);
    }

    #[tokio::test]
    async fn rows_that_stay_are_written_as_they_come() {
        let ids = Arc::new(Int64Array::from(vec![1, 1, 2])) as ArrayRef;
        let rows = RecordBatch::try_from_iter([("id", ids)]).unwrap();
        for mode in [Mode::Upserts(Key::Made(vec![])), Mode::Changelog] {
            let all: Vec<Upserts> = upserts(fixture::stream(&rows), mode).try_collect().await.unwrap();
            assert_eq!(all.len(), 1);
            assert_eq!((&all[0].rows, &all[0].valued, &all[0].kinds), (&rows, &None, &None));
            assert!(all[0].check_keys(None).is_ok());
        }
    }

    #[tokio::test]
    async fn in_a_changelog_each_change_is_written_and_needs_no_key() {
        let schema = with_kind(&Arc::new(Schema::new(vec![Field::new("value", DataType::Int64, true)])));
        let batch = |rows: &[(RowKind, i64)]| {
            let columns: Vec<ArrayRef> = vec![
                Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.1))),
                Arc::new(Int8Array::from_iter_values(rows.iter().map(|row| row.0 as i8))),
            ];
            Ok(RecordBatch::try_new(Arc::clone(&schema), columns).unwrap())
        };
        let batches = vec![batch(&[(Insert, 1), (UpdateBefore, 2)]), batch(&[(UpdateAfter, 3)])];
        let changes = fixture::stream_of(&schema, batches);
        let all: Vec<Upserts> = upserts(changes, Mode::Changelog).try_collect().await.unwrap();
        let kinds: Vec<_> = all.iter().flat_map(|batch| batch.kinds.as_ref().unwrap().values().to_vec()).collect();
        assert_eq!(kinds, [Insert as i8, UpdateBefore as i8, UpdateAfter as i8]);
        assert!(all.iter().all(|batch| batch.rows.num_columns() == 1 && batch.check_keys(None).is_ok()));
    }

    #[test]
    fn a_key_is_given_or_made_of_columns_that_are_written() {
        let fields = ["a", "b", "c"].map(|name| Field::new(name, DataType::Int64, true));
        let mut table = (*fixture::table_of("t", &Schema::new(fields.to_vec()), &[])).clone();
        table.columns[0].kind = ColumnKind::Computed { expression: "b + 1".into() };
        let key = |table: &TableDefinition, names: &[&str]| {
            Key::of(table, "key", &names.iter().map(|name| name.to_string()).collect::<Vec<_>>())
        };
        assert_eq!(key(&table, &["c", "b"]).unwrap(), Key::Made(vec![1, 0]));
        let error = key(&table, &["b", "a"]).unwrap_err().to_string();
        assert!(error.starts_with("column a of the PRIMARY KEY is not written"), "{error}");
        table.columns[2].kind = ColumnKind::Metadata { key: "key".into(), is_virtual: false };
        let given = key(&table, &["b"]).unwrap();
        assert_eq!((given.columns(), &given), (&[1][..], &Key::Given(1)));
    }

    #[test]
    fn what_can_be_replaced_has_a_key() {
        let keys = Arc::new(StringArray::from(vec![Some("a"), None])) as ArrayRef;
        let rows = RecordBatch::try_from_iter_with_nullable([("key", Arc::clone(&keys), true)]).unwrap();
        let changing = Upserts { rows: rows.clone(), valued: Some(BooleanArray::from(vec![true, true])), kinds: None };
        let error = changing.check_keys(Some(&keys)).unwrap_err();
        assert_eq!(error.kind(), crate::error::Kind::Data);
        assert!(changing.check_keys(None).is_err());
        assert!(changing.check_keys(Some(&keys.slice(0, 1))).is_ok());
        assert!(Upserts { rows, valued: None, kinds: None }.check_keys(Some(&keys)).is_ok());
    }
}

//! Small things that tests need: a table, an environment, an owner, what a source holds, a stream of given rows.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::Schema;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::stream;

use crate::catalog::{Column, TableDefinition};
use crate::checkpoint::Journal;
use crate::clock::Clock;
use crate::connector::{Bounds, Environment, Extent, Owner, Partition};
use crate::error::Error;
use crate::storage::Stores;

/// A table of physical columns.
pub fn table_of(name: &str, schema: &Schema, options: &[(&str, &str)]) -> Arc<TableDefinition> {
    let column = |field: &Arc<arrow::datatypes::Field>| Column {
        nullable: field.is_nullable(),
        ..Column::physical(field.name(), field.data_type().clone())
    };
    Arc::new(TableDefinition {
        name: name.into(),
        columns: schema.fields().iter().map(column).collect(),
        primary_key: Vec::new(),
        watermark: None,
        partitioned_by: Vec::new(),
        options: options.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
    })
}

/// The table `t`, which has these options and no columns.
pub fn with_options(options: &[(&str, &str)]) -> Arc<TableDefinition> {
    table_of("t", &Schema::empty(), options)
}

/// An environment with the system's clock, two tasks and no settings.
pub fn environment() -> Environment {
    let clock = Clock::system();
    Environment { stores: Stores::new(clock.clone()), clock, settings: Arc::default(), parallelism: 2 }
}

/// A query with this id and a journal in memory.
pub fn owner(id: &str) -> Owner {
    Owner { id: id.into(), journal: Journal::detached() }
}

/// The partition `t:number`.
pub fn partition(number: u32) -> Partition {
    Partition::new("t", number)
}

/// What a source holds whose partitions `t:0`, `t:1` and so on have these first and next offsets.
pub fn extent(bounds: &[(u64, u64)]) -> Extent {
    let bounds = bounds.iter().map(|&(earliest, latest)| Bounds { earliest, latest });
    Extent { partitions: (0..).map(partition).zip(bounds).collect(), ..Extent::default() }
}

/// These rows, in one batch.
pub fn stream(rows: &RecordBatch) -> SendableRecordBatchStream {
    stream_of(&rows.schema(), vec![Ok(rows.clone())])
}

/// These batches and errors.
pub fn stream_of(schema: &Arc<Schema>, batches: Vec<Result<RecordBatch, Error>>) -> SendableRecordBatchStream {
    let batches = batches.into_iter().map(|batch| Ok(batch?));
    Box::pin(RecordBatchStreamAdapter::new(Arc::clone(schema), stream::iter(batches)))
}

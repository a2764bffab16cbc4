//! Rows out of nothing: `'connector' = 'datagen'`.
//!
//! The idea: row *i* is a function of the seed, the column and *i*, and of nothing else. So any span gives the same rows
//! in any order, on any machine, and a second reader costs nothing. There is one partition, `datagen:0`, and its offsets
//! are the row numbers.
//!
//! How many rows there are *now* is a matter of time: at the opening none is due, and from then on `rows-per-second`
//! fall due each second, counted on from wherever a resuming query asks for more (`pace.rs` has the rule). A table with
//! `number-of-rows`, or with a sequence that has an end, holds that many rows at last, and is complete from then on.
//!
//! What it does not promise: that a row has anything to do with the wall clock. Timestamps are drawn from, or rise from,
//! fixed dates, for otherwise an epoch that is run again would see other rows.

use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::coop::cooperative;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::stream;

use self::options::Options;
use self::pace::Pace;
use self::values::Column;
use super::messages::{check_metadata, refuse_layout};
use super::{
    Bounds, Connector, Environment, Extent, Fingerprint, Guarantee, Offsets, OptionEntry, Owner, Partition,
    PartitionReport, ReadReport, Role, ScanOptions, Sink, Source, Span,
};
use crate::catalog::TableDefinition;
use crate::error::{Error, Result};

mod options;
mod pace;
mod values;

#[cfg(test)]
mod tests;

/// Rows of a batch.
const BATCH_ROWS: usize = 8192;

/// The connector `datagen`.
#[derive(Debug, Default)]
pub struct DatagenConnector;

fn no_sink(table: &TableDefinition) -> Error {
    Error::usage(format!("table {}: datagen only makes rows; write into a table of another connector", table.name))
}

#[async_trait]
impl Connector for DatagenConnector {
    fn name(&self) -> &'static str {
        "datagen"
    }

    fn options(&self) -> Vec<OptionEntry> {
        options::described()
    }

    fn check(&self, table: &TableDefinition, role: Role) -> Result<()> {
        check_metadata(table, &[], false)?;
        refuse_layout(table)?;
        Options::of(table)?;
        if role == Role::Sink { Err(no_sink(table)) } else { Ok(()) }
    }

    /// The seed and the options of the columns: all that decides what row *i* is. Another rate or another number of rows
    /// is still the same stream.
    fn identity(&self, table: &TableDefinition) -> Result<String> {
        let mut identity = format!("datagen seed={}", Options::of(table)?.seed);
        for (key, value) in table.options.iter().filter(|(key, _)| key.starts_with("fields.")) {
            identity.push_str(&format!(" {key}={value}"));
        }
        Ok(identity)
    }

    fn guarantee(&self, table: &TableDefinition) -> Result<Guarantee> {
        Err(no_sink(table))
    }

    fn is_operational(&self, option: &str) -> bool {
        option == "rows-per-second" || ScanOptions::KEYS.contains(&option)
    }

    async fn source(
        &self,
        table: Arc<TableDefinition>,
        environment: &Environment,
        _owner: Option<&Owner>,
    ) -> Result<Arc<dyn Source>> {
        let Options { rows_per_second, rows, columns, .. } = Options::of(&table)?;
        Ok(Arc::new(Datagen {
            partition: Partition::new("datagen", 0),
            table: table.name.clone(),
            schema: table.stored_schema(),
            columns: columns.into(),
            rows,
            pace: Pace::from_now(environment.clock.clone(), rows_per_second),
        }))
    }

    async fn sink(&self, table: Arc<TableDefinition>, _: &Environment, _: &Owner) -> Result<Arc<dyn Sink>> {
        Err(no_sink(&table))
    }
}

#[derive(Debug)]
struct Datagen {
    partition: Partition,
    table: String,
    schema: SchemaRef,
    columns: Arc<[Column]>,
    /// How many rows there will ever be.
    rows: Option<u64>,
    pace: Pace,
}

impl Datagen {
    /// Refuses spans that no extent of this table allows.
    fn check(&self, span: &Span) -> Result<()> {
        if span.partition != self.partition {
            return Err(Error::data_loss(format!(
                "table {}: datagen has no partition {}, only {}; start the query anew",
                self.table, span.partition, self.partition
            )));
        }
        match self.rows {
            Some(rows) if !span.is_empty() && span.to > rows => Err(Error::data_loss(format!(
                "table {}: rows {}..{} are to be read, but there are only {rows}; raise 'number-of-rows' or the end of \
                 the sequence",
                self.table, span.from, span.to
            ))),
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl Source for Datagen {
    async fn start(&self) -> Result<Offsets> {
        Ok(Offsets::from([(self.partition.clone(), 0)]))
    }

    async fn extent(&self) -> Result<Extent> {
        let due = self.pace.due();
        let latest = self.rows.map_or(due, |rows| rows.min(due));
        let bounds = Bounds { earliest: 0, latest };
        Ok(Extent {
            partitions: [(self.partition.clone(), bounds)].into(),
            complete: self.rows == Some(latest),
            ..Extent::default()
        })
    }

    /// A row needs no time to fall due: where there is a last one, a question reads up to it.
    async fn horizon(&self) -> Result<Offsets> {
        Ok([(self.partition.clone(), self.rows.unwrap_or_else(|| self.pace.due()))].into())
    }

    fn read(&self, span: &Span, projection: &[usize], report: &ReadReport) -> Result<SendableRecordBatchStream> {
        self.check(span)?;
        self.pace.asked(span.to);
        let schema = Arc::new(self.schema.project(projection)?);
        let rows_schema = Arc::clone(&schema);
        let (columns, projection) = (Arc::clone(&self.columns), projection.to_vec());
        let (partition, to, report) = (self.partition.clone(), span.to, report.clone());
        let batches = (span.from..to).step_by(BATCH_ROWS).map(move |from| {
            let rows = from..to.min(from.saturating_add(BATCH_ROWS as u64));
            let arrays = projection.iter().map(|i| columns[*i].values(rows.clone())).collect::<Result<_>>()?;
            let count = rows.end - rows.start;
            let last = Some(Fingerprint { offset: rows.end - 1, timestamp: None, id: None });
            report.add(&partition, PartitionReport { messages: count, last, ..PartitionReport::default() });
            let options = RecordBatchOptions::new().with_row_count(Some(count as usize));
            Ok(RecordBatch::try_new_with_options(Arc::clone(&rows_schema), arrays, &options)?)
        });
        Ok(Box::pin(cooperative(RecordBatchStreamAdapter::new(schema, stream::iter(batches)))))
    }

    async fn forget(&self, before: &Offsets) {
        if let Some(next) = before.get(&self.partition) {
            self.pace.asked(*next);
        }
    }
}

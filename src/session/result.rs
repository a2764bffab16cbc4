//! A SELECT over streams that has to remember: a continuous query of its own, whose rows come to whoever asked.
//!
//! It is planned as an INSERT into a table that is nobody's ([`ResultConnector`]), and keeps its checkpoint in memory.
//! So a window comes out when the watermark completes it, and what changes comes as changes.
//!
//! Guarantee: the rows are those that the INSERT would have written, and nothing else is written: late rows and messages
//! that cannot be read go to no table, and the brokers' tools are told nothing. Dropping the rows ends the query. Not
//! promised: that anything of it is kept; asked again it begins where the tables' options say.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::error::{DataFusionError, Result as DfResult};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::sql::sqlparser::ast;
use futures::{StreamExt, stream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::{Outcome, Rows, Session, settings};
use crate::catalog::TableDefinition;
use crate::connector::result::{NAME, ResultConnector};
use crate::error::{Error, Result};
use crate::plan::changes::{self, RowKind, is_updating};
use crate::query::progress::Reporter;
use crate::query::trigger::Trigger;
use crate::query::{Position, Query, QuerySpec};
use crate::sql::Insert;
use crate::storage::Stores;

/// The name of the table that is nobody's.
const RESULT: &str = "$result";
/// The column of a changelog that says what happened to a row.
const KIND: &str = "op";
/// So many batches wait for their reader.
const WAITING: usize = 16;

/// Changes of a result, as they happen.
pub struct Changes {
    /// The schema of a batch; the last column is the [kind](crate::plan::changes) of each row.
    pub schema: SchemaRef,
    /// The columns that tell rows apart; none, where there is one row, or they are not shown.
    pub keys: Vec<usize>,
    /// The changes.
    pub stream: SendableRecordBatchStream,
}

impl Changes {
    /// The changes as rows, under `op` what happened to each: `+I`, `-U`, `+U` or `-D`.
    pub fn into_rows(self) -> Rows {
        let shown = self.schema.fields().iter().take(self.schema.fields().len().saturating_sub(1)).cloned();
        let kind = Arc::new(Field::new(KIND, DataType::Utf8, false));
        let schema = Arc::new(Schema::new([kind].into_iter().chain(shown).collect::<Vec<_>>()));
        let to = Arc::clone(&schema);
        let rows = self.stream.map(move |batch| {
            let (kinds, rows) = changes::parted(&batch?)?;
            let kinds: ArrayRef = Arc::new(StringArray::from_iter_values(kinds.into_iter().map(RowKind::symbol)));
            let columns = [kinds].into_iter().chain(rows.columns().iter().cloned()).collect();
            Ok::<_, DataFusionError>(RecordBatch::try_new(Arc::clone(&to), columns)?)
        });
        let stream = Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&schema), rows));
        Rows { schema, stream, is_unbounded: true }
    }
}

impl Session {
    /// Runs a SELECT as a continuous query, once its rows are read.
    pub(super) async fn continuous_select(&self, query: ast::Query) -> Result<Outcome> {
        let (sender, rows) = mpsc::channel(WAITING);
        let mut session = self.clone();
        session.put_connector(Arc::new(ResultConnector::new(sender)));
        session.settings.remove(settings::LATE_ROWS);
        let table = TableDefinition {
            name: RESULT.into(),
            columns: self.columns_of(&query).await?,
            primary_key: vec![],
            watermark: None,
            partitioned_by: vec![],
            options: BTreeMap::from([("connector".into(), NAME.into())]),
        };
        session.tables.insert(RESULT.into(), table);
        let checkpoint = Stores::new(self.clock.clone()).open("memory://result", &self.settings)?;
        let insert = Insert { table: RESULT.into(), columns: vec![], query: Box::new(query) };
        let mut spec = session.spec(format!("{}/{RESULT}", self.name), checkpoint, vec![insert]).await?;
        spec.trigger = Trigger::Continuous;
        spec.acknowledges = false;
        spec.planned.dead_letters.clear();
        let trials = session.trials(&spec.planned.outputs, &spec.planned.state).await?;
        let [trial] = trials.as_slice() else { return Err(Error::internal("a SELECT has one plan")) };
        let (schema, keys) = (trial.schema(), changes::keys(trial).unwrap_or_default().concat());
        let running = Running { spec: Some(Box::new(spec)), rows, stop: watch::Sender::new(false), query: None };
        let stream = stream::unfold(running, async |mut running| Some((running.next().await?, running)));
        let stream = Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&schema), stream.boxed()));
        Ok(match is_updating(&schema) {
            true => Outcome::Changes(Changes { schema, keys, stream }),
            false => Outcome::Rows(Rows { schema, stream, is_unbounded: true }),
        })
    }
}

/// A query and its rows; it ends when this is dropped.
struct Running {
    /// What is to be run, until it is.
    spec: Option<Box<QuerySpec>>,
    rows: mpsc::Receiver<RecordBatch>,
    stop: watch::Sender<bool>,
    query: Option<JoinHandle<Result<Position>>>,
}

impl Running {
    /// The next rows, and last of all the error that ended the query, if one did.
    async fn next(&mut self) -> Option<DfResult<RecordBatch>> {
        if let Some(spec) = self.spec.take() {
            self.query = Some(tokio::spawn(Query::drive(*spec, Reporter::silent(), self.stop.subscribe())));
        }
        if let Some(batch) = self.rows.recv().await {
            return Some(Ok(batch));
        }
        match self.query.take()?.await {
            Ok(ended) => ended.err().map(|error| Err(error.into())),
            Err(lost) => Some(Err(Error::internal("the query broke off").caused_by(lost).into())),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

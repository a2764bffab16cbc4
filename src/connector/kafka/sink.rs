//! A topic as a sink.
//!
//! The idea: rows are encoded and spooled while an epoch runs, so that nothing is readable before all tasks have staged;
//! publishing sends the spools in the order of the tasks and waits until every row is acknowledged. Of a result that
//! changes a row is an upsert, and what is taken back for good a tombstone: a message with its key and the value NULL,
//! which deletes the key from a compacted topic.
//!
//! What it guarantees: a published epoch is in the topic, every row of it, acknowledged by all replicas in sync. Rows
//! with the same key keep their order. A producer that failed once is not used again.
//!
//! What it does not promise: that rows of an epoch that failed half-way are not seen twice. A timestamp of exactly 0 ms
//! since 1970 cannot be written: librdkafka takes it for the time of sending.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use async_trait::async_trait;
use datafusion::execution::SendableRecordBatchStream;
use futures::StreamExt;
use tokio::task::spawn_blocking;

use super::client::Client;
use super::guarantee;
use super::options::KafkaOptions;
use super::producer::Producer;
use super::rows::{Messages, Rows};
use crate::catalog::TableDefinition;
use crate::connector::spool::{Spool, Spooled};
use crate::connector::upserts::upserts;
use crate::connector::{Guarantee, Pin, Progress, Published, Sink, Staged};
use crate::error::{Error, Kind, Result};

/// A topic that is being written.
#[derive(Debug)]
pub(super) struct KafkaSink {
    table: Arc<TableDefinition>,
    options: Arc<KafkaOptions>,
    staged: Mutex<BTreeMap<u64, Tasks>>,
    producer: Arc<Mutex<Option<Producer>>>,
}

/// An epoch's staged rows, by task.
type Tasks = BTreeMap<u32, (Staged, Spooled)>;

impl KafkaSink {
    /// A sink that connects when it is opened.
    pub(super) fn new(table: Arc<TableDefinition>, options: KafkaOptions) -> Self {
        Self { table, options: Arc::new(options), staged: Mutex::default(), producer: Arc::default() }
    }

    fn staged(&self) -> MutexGuard<'_, BTreeMap<u64, Tasks>> {
        self.staged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs what blocks on a thread that may.
    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        match spawn_blocking(work).await {
            Ok(result) => result.map_err(|e| e.context(format_args!("table {}", self.table.name))),
            Err(panic) => Err(Error::internal(format!("table {}: writing failed", self.table.name)).caused_by(panic)),
        }
    }
}

#[async_trait]
impl Sink for KafkaSink {
    fn guarantee(&self) -> Guarantee {
        guarantee()
    }

    async fn open(&self, _run: u64) -> Result<Progress> {
        let (options, slot) = (Arc::clone(&self.options), Arc::clone(&self.producer));
        self.blocking(move || {
            // A producer would create the topic by asking for it; a consumer does not.
            Client::try_new(&options.properties.consumer())?.partitions(&options.topic, Kind::Usage)?;
            // It takes half a second to be known to the cluster, and may do so until the first epoch is staged.
            let producer = Producer::try_new(&options.properties.producer(), &options.topic)?;
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(producer);
            Ok(Progress::Unrecorded)
        })
        .await
    }

    async fn stage(&self, epoch: u64, task: u32, _pin: &Pin, rows: SendableRecordBatchStream) -> Result<Staged> {
        let mut encoder = Rows::try_new(&self.table, &self.options)?;
        let mut rows = upserts(rows, encoder.key().clone());
        let mut spool = Spool::try_new(encoder.schema())?;
        let mut staged = Staged::default();
        while let Some(batch) = rows.next().await {
            let batch = batch?;
            (encoder, spool, staged) = self
                .blocking(move || {
                    let messages = encoder.encode(&batch)?;
                    spool.write(&messages)?;
                    staged.rows += messages.num_rows() as u64;
                    staged.bytes += Messages::of(&messages).bytes();
                    Ok((encoder, spool, staged))
                })
                .await?;
        }
        self.staged().entry(epoch).or_default().insert(task, (staged, spool.finish()?));
        Ok(staged)
    }

    async fn publish(&self, epoch: u64, _pin: &Pin) -> Result<Published> {
        let tasks = self.staged().remove(&epoch).unwrap_or_default();
        // When this call is dropped, so is `caller`, and the thread stops.
        let caller = Arc::new(());
        let publishing = Publishing {
            epoch,
            options: Arc::clone(&self.options),
            producer: Arc::clone(&self.producer),
            caller: Arc::downgrade(&caller),
        };
        let (tasks, result) = self.blocking(move || Ok(publishing.run(tasks))).await?;
        result.map_err(|error| {
            self.staged().insert(epoch, tasks);
            error.context(format_args!("table {}", self.table.name))
        })
    }

    async fn discard(&self, epoch: u64) {
        self.staged().remove(&epoch);
    }

    async fn close(&self) {
        self.staged().clear();
        let producer = Arc::clone(&self.producer);
        // Ending a producer waits for its threads.
        let _ = spawn_blocking(move || drop(producer.lock().unwrap_or_else(PoisonError::into_inner).take())).await;
    }
}

/// One epoch on its way out.
struct Publishing {
    epoch: u64,
    options: Arc<KafkaOptions>,
    producer: Arc<Mutex<Option<Producer>>>,
    caller: Weak<()>,
}

impl Publishing {
    /// Sends everything, and gives it back for another attempt if it failed.
    fn run(self, mut tasks: Tasks) -> (Tasks, Result<Published>) {
        let mut producer = self.producer.lock().unwrap_or_else(PoisonError::into_inner);
        let result = self.send(&mut producer, &mut tasks);
        if result.is_err() {
            *producer = None;
        }
        (tasks, result)
    }

    fn send(&self, producer: &mut Option<Producer>, tasks: &mut Tasks) -> Result<Published> {
        let mut published = Published::default();
        if tasks.values().all(|(staged, _)| staged.rows == 0) {
            return Ok(published);
        }
        let producer = match producer {
            Some(producer) => producer,
            none => none.insert(Producer::try_new(&self.options.properties.producer(), &self.options.topic)?),
        };
        producer.begin(self.epoch);
        for (staged, spooled) in tasks.values_mut() {
            for batch in spooled.read()? {
                if self.caller.strong_count() == 0 {
                    return Err(Error::transient(format!("epoch {} was abandoned", self.epoch)));
                }
                producer.send(&Messages::of(&batch?))?;
            }
            published.rows += staged.rows;
            published.bytes += staged.bytes;
        }
        producer.finish(|| self.caller.strong_count() > 0)?;
        Ok(published)
    }
}

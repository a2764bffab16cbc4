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
use super::progress::{Position, ProgressTopic};
use super::rows::{Messages, Rows};
use crate::catalog::TableDefinition;
use crate::connector::spool::{Spool, Spooled};
use crate::connector::upserts::upserts;
use crate::connector::{Delivery, Guarantee, Owner, Pin, Progress, Published, Sink, Staged};
use crate::error::{Error, Kind, Result};

/// A topic that is being written.
#[derive(Debug)]
pub(super) struct KafkaSink {
    table: Arc<TableDefinition>,
    options: Arc<KafkaOptions>,
    staged: Mutex<BTreeMap<u64, Tasks>>,
    producer: Arc<Mutex<Option<Producer>>>,
    /// Exactly-once: where it is kept what was written, and our newest record there.
    progress: Option<Arc<ProgressTopic>>,
    position: Arc<Mutex<Option<Position>>>,
}

/// An epoch's staged rows, by task.
type Tasks = BTreeMap<u32, (Staged, Spooled)>;

impl KafkaSink {
    /// A sink that connects when it is opened.
    pub(super) fn new(table: Arc<TableDefinition>, options: KafkaOptions, owner: &Owner) -> Self {
        let progress = (options.delivery == Delivery::ExactlyOnce).then(|| {
            let key = format!("{}-{}", owner.id, options.topic);
            Arc::new(ProgressTopic::new(options.properties.clone(), options.progress_topic.clone(), key))
        });
        let (staged, producer, position) = Default::default();
        Self { table, options: Arc::new(options), staged, producer, progress, position }
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
        guarantee(self.options.delivery)
    }

    async fn open(&self, _run: u64) -> Result<()> {
        let (options, slot, progress) = (Arc::clone(&self.options), Arc::clone(&self.producer), self.progress.clone());
        self.blocking(move || {
            // A producer would create the topic by asking for it; a consumer does not.
            Client::try_new(&options.properties.consumer())?.partitions(&options.topic, Kind::Usage)?;
            if let Some(progress) = &progress {
                progress.ensure()?;
            }
            // It takes half a second to be known to the cluster, and may do so until the first epoch is staged.
            *locked(&slot) = None;
            let producer = producer(&options, progress.as_deref())?;
            *locked(&slot) = Some(producer);
            Ok(())
        })
        .await
    }

    async fn progress(&self, epoch: u64, position: &serde_json::Value) -> Result<Progress> {
        let Some(progress) = self.progress.clone() else { return Ok(Progress::Unrecorded) };
        let known = progress.known(position);
        let from = known.as_ref().map(|known| known.offset);
        let found = self.blocking(move || progress.newest(from)).await?;
        let written = found.as_ref().map_or(0, |found| found.epoch);
        *locked(&self.position) = found;
        if let Some(known) = known.filter(|known| written < known.epoch) {
            return Err(Error::refused(format!(
                "table {}: the progress topic {} has epoch {written} as the newest, and epoch {} was written: it has lost \
                 records, so nobody knows which epochs are in the topic; give the query another name \
                 (SET 'pipeline.name') to start anew",
                self.table.name, self.options.progress_topic, known.epoch
            )));
        }
        // Epochs without rows leave no record.
        Ok(Progress::UpTo(written.max(epoch)))
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
            progress: self.progress.clone(),
            position: Arc::clone(&self.position),
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

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A producer that is ready to write: exactly-once, nobody else is any more.
fn producer(options: &KafkaOptions, progress: Option<&ProgressTopic>) -> Result<Producer> {
    let Some(progress) = progress else {
        return Producer::try_new(&options.properties.producer(), &options.topic);
    };
    let id = format!("millstream-{}", String::from_utf8_lossy(progress.key()));
    let producer = Producer::try_new(&options.properties.transactional(&id), &options.topic)?;
    producer.init_transactions()?;
    Ok(producer)
}

/// One epoch on its way out.
struct Publishing {
    epoch: u64,
    options: Arc<KafkaOptions>,
    producer: Arc<Mutex<Option<Producer>>>,
    progress: Option<Arc<ProgressTopic>>,
    position: Arc<Mutex<Option<Position>>>,
    caller: Weak<()>,
}

impl Publishing {
    /// Sends everything, and gives it back for another attempt if it failed.
    fn run(self, mut tasks: Tasks) -> (Tasks, Result<Published>) {
        let mut producer = locked(&self.producer);
        let result = match &self.progress {
            Some(progress) => self.in_transaction(progress, &mut producer, &mut tasks),
            None => self.at_least_once(&mut producer, &mut tasks),
        };
        (tasks, result)
    }

    /// One transaction for the rows and the record of the epoch, unless it has been committed already.
    fn in_transaction(
        &self,
        progress: &ProgressTopic,
        slot: &mut Option<Producer>,
        tasks: &mut Tasks,
    ) -> Result<Published> {
        let mut position = locked(&self.position);
        let mut published = counted(tasks);
        if published.rows > 0 && slot.is_none() {
            // Another may have written the epoch since this one failed, and this one shuts the other out.
            *slot = Some(producer(&self.options, Some(progress))?);
            *position = progress.newest(position.as_ref().map(|position| position.offset))?;
        }
        let is_there = position.as_ref().is_some_and(|position| position.epoch >= self.epoch);
        if let Some(producer) = slot.as_mut().filter(|_| published.rows > 0 && !is_there) {
            producer.begin(self.epoch);
            let offset = self.transaction(progress, producer, tasks).inspect_err(|_| producer.abort_transaction());
            if offset.as_ref().is_err_and(|error| error.kind() != Kind::Fenced) {
                // One that was shut out stays, to say so again.
                *slot = None;
            }
            *position = Some(progress.position(self.epoch, offset?));
        }
        published.position =
            serde_json::to_value(&*position).map_err(|e| Error::internal("a position is no JSON").caused_by(e))?;
        Ok(published)
    }

    fn transaction(&self, progress: &ProgressTopic, producer: &mut Producer, tasks: &mut Tasks) -> Result<u64> {
        producer.begin_transaction()?;
        self.send(producer, tasks)?;
        producer.send_record(progress.name(), progress.key(), &ProgressTopic::record(self.epoch)?)?;
        self.wait(producer)?;
        producer.commit_transaction()
    }

    fn at_least_once(&self, slot: &mut Option<Producer>, tasks: &mut Tasks) -> Result<Published> {
        let published = counted(tasks);
        if published.rows > 0 {
            if slot.is_none() {
                *slot = Some(producer(&self.options, None)?);
            }
            let Some(producer) = slot.as_mut() else { return Ok(published) };
            producer.begin(self.epoch);
            if let Err(error) = self.send(producer, tasks).and_then(|()| self.wait(producer)) {
                *slot = None;
                return Err(error);
            }
        }
        Ok(published)
    }

    fn send(&self, producer: &mut Producer, tasks: &mut Tasks) -> Result<()> {
        for (_, spooled) in tasks.values_mut() {
            for batch in spooled.read()? {
                if self.caller.strong_count() == 0 {
                    return Err(Error::transient(format!("epoch {} was abandoned", self.epoch)));
                }
                producer.send(&Messages::of(&batch?))?;
            }
        }
        Ok(())
    }

    fn wait(&self, producer: &Producer) -> Result<()> {
        producer.finish(|| self.caller.strong_count() > 0)
    }
}

/// How much was staged.
fn counted(tasks: &Tasks) -> Published {
    let mut published = Published::default();
    for (staged, _) in tasks.values() {
        published.rows += staged.rows;
        published.bytes += staged.bytes;
    }
    published
}

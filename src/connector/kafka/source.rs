//! A topic as a source.
//!
//! The idea: one client answers questions about the topic, and as many as there are tasks fetch; each partition belongs
//! to one of them, so that no two tasks meet at a queue. Threads exist only while something is read.
//!
//! What it guarantees: [`Source`]'s contract. Ends are last stable offsets unless `isolation.level` says otherwise, so
//! that no epoch waits for an open transaction.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use datafusion::execution::SendableRecordBatchStream;
use futures::{Stream, StreamExt, stream};
use tokio::sync::{Mutex as Slot, mpsc};
use tokio::task::spawn_blocking;

use super::client::Client;
use super::columns::Column;
use super::options::{KafkaOptions, Startup};
use super::queue::{PartitionQueue, Topic};
use super::reader::PartitionReader;
use crate::catalog::TableDefinition;
use crate::connector::messages::{Decoding, MessageBatch, decoded};
use crate::connector::{Extent, Offsets, Partition, ReadReport, Source, Span};
use crate::error::{Error, Kind, Result};

/// How long a read waits for an earlier one of its partition, which nobody listens to any more, to notice it.
const HANDOVER: Duration = Duration::from_millis(500);

/// How often, and how far apart, a new query looks for its topic: one just created takes a moment to be known.
const LOOKS: (usize, Duration) = (4, Duration::from_millis(250));

/// A topic that is being read.
#[derive(Debug)]
pub(super) struct KafkaSource {
    table: Arc<TableDefinition>,
    options: Arc<KafkaOptions>,
    open: Mutex<Option<Arc<Open>>>,
}

/// What [`Source::close`] gives back.
#[derive(Debug)]
struct Open {
    looking: Client,
    fetching: Vec<Arc<Topic>>,
    readers: Mutex<BTreeMap<u32, Arc<Slot<PartitionReader>>>>,
}

impl std::fmt::Debug for Topic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Topic").field(self.client()).finish()
    }
}

impl KafkaSource {
    /// Makes the clients, which connect when they are used. `parallelism` reads work side by side.
    pub(super) fn try_new(table: Arc<TableDefinition>, options: KafkaOptions, parallelism: usize) -> Result<Self> {
        let config = options.properties.consumer();
        let looking = Client::try_new(&config)?;
        let fetching = (0..parallelism.max(1)).map(|_| topic(&options).map(Arc::new)).collect::<Result<_>>()?;
        let open = Open { looking, fetching, readers: Mutex::default() };
        Ok(Self { table, options: Arc::new(options), open: Mutex::new(Some(Arc::new(open))) })
    }

    fn open(&self) -> Result<Arc<Open>> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.clone().ok_or_else(|| self.error(Error::internal("the source is closed already")))
    }

    /// Asks the cluster for the topic's extent; a missing topic is an error of kind `missing`.
    async fn look(&self, missing: Kind) -> Result<Extent> {
        let (open, options) = (self.open()?, Arc::clone(&self.options));
        let answer = spawn_blocking(move || {
            let numbers = open.looking.partitions(&options.topic, missing)?;
            open.looking.bounds(&options.topic, &numbers)
        });
        let bounds = answer.await.map_err(|e| Error::internal("asking for offsets failed").caused_by(e))?;
        let name: Arc<str> = self.options.topic.as_str().into();
        let partitions = bounds.map_err(|e| self.error(e))?.into_iter();
        let partitions = partitions.map(|(number, bounds)| (Partition::new(Arc::clone(&name), number as u32), bounds));
        Ok(Extent { partitions: partitions.collect(), ..Extent::default() })
    }

    fn reader(&self, partition: &Partition) -> Result<Arc<Slot<PartitionReader>>> {
        if *partition.name != *self.options.topic {
            let topic = &self.options.topic;
            return Err(self.error(Error::internal(format!("{partition} is no partition of topic {topic}"))));
        }
        let open = self.open()?;
        let mut readers = open.readers.lock().unwrap_or_else(PoisonError::into_inner);
        let reader = readers.entry(partition.number).or_insert_with(|| {
            let topic = &open.fetching[partition.number as usize % open.fetching.len()];
            Arc::new(Slot::new(reader(&self.table, partition, Arc::clone(topic))))
        });
        Ok(Arc::clone(reader))
    }

    fn error(&self, error: Error) -> Error {
        error.context(format_args!("table {}", self.table.name))
    }
}

fn topic(options: &KafkaOptions) -> Result<Topic> {
    let client = Arc::new(Client::try_new(&options.properties.consumer())?);
    Topic::new(client, &options.topic).ok_or_else(|| Error::usage(format!("'{}' cannot be a topic", options.topic)))
}

fn reader(table: &TableDefinition, partition: &Partition, topic: Arc<Topic>) -> PartitionReader {
    let queue = PartitionQueue::new(topic, partition.number as i32);
    PartitionReader::new(&table.name, partition.clone(), queue)
}

#[async_trait]
impl Source for KafkaSource {
    async fn start(&self) -> Result<Offsets> {
        let (looks, pause) = LOOKS;
        let mut extent = self.look(Kind::Usage).await;
        for _ in 1..looks {
            if !extent.as_ref().is_err_and(|error| error.kind() == Kind::Usage) {
                break;
            }
            tokio::time::sleep(pause).await;
            extent = self.look(Kind::Usage).await;
        }
        let extent = extent?;
        let offsets = match &self.options.startup {
            Startup::Earliest => extent.partitions.into_iter().map(|(p, bounds)| (p, bounds.earliest)).collect(),
            Startup::Latest => extent.partitions.into_iter().map(|(p, bounds)| (p, bounds.latest)).collect(),
            Startup::Specific(listed) => self.specific(listed, &extent)?,
        };
        Ok(offsets)
    }

    async fn extent(&self) -> Result<Extent> {
        self.look(Kind::Transient).await
    }

    fn read(&self, span: &Span, projection: &[usize], report: &ReadReport) -> Result<SendableRecordBatchStream> {
        let decoding = Decoding::try_new(&self.table, &self.options.format, projection, report)?;
        let columns = decoding.metadata().iter().map(|key| {
            Column::of(key).ok_or_else(|| self.error(Error::internal(format!("there is no metadata '{key}'"))))
        });
        let reading = Reading {
            table: Arc::clone(&self.table),
            options: Arc::clone(&self.options),
            shared: self.reader(&span.partition)?,
            span: span.clone(),
            columns: columns.collect::<Result<_>>()?,
        };
        Ok(decoded(decoding, span.partition.clone(), reading.messages()))
    }

    async fn close(&self) {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Ending a client waits for its threads.
        let _ = spawn_blocking(move || drop(open)).await;
    }
}

impl KafkaSource {
    fn specific(&self, listed: &BTreeMap<u32, u64>, extent: &Extent) -> Result<Offsets> {
        let topic = &self.options.topic;
        let place = "'scan.startup.specific-offsets'";
        let known = |number: &u32| extent.partitions.keys().any(|p| p.number == *number);
        if let Some(number) = listed.keys().find(|number| !known(number)) {
            return Err(self.error(Error::usage(format!(
                "{place}: topic {topic} has no partition {number}; it has {}",
                extent.partitions.len()
            ))));
        }
        let mut offsets = Offsets::new();
        for (partition, bounds) in &extent.partitions {
            let offset = listed.get(&partition.number).copied().unwrap_or(bounds.earliest);
            if !(bounds.earliest..=bounds.latest).contains(&offset) {
                return Err(self.error(Error::usage(format!(
                    "{place}: offset {offset} is not in {partition}, which holds {}..{}",
                    bounds.earliest, bounds.latest
                ))));
            }
            offsets.insert(partition.clone(), offset);
        }
        Ok(offsets)
    }
}

/// One read, before it begins.
struct Reading {
    table: Arc<TableDefinition>,
    options: Arc<KafkaOptions>,
    shared: Arc<Slot<PartitionReader>>,
    span: Span,
    columns: Vec<Column>,
}

impl Reading {
    /// The messages, read by a thread from the first poll on; it ends when the stream does or is dropped.
    fn messages(self) -> impl Stream<Item = Result<MessageBatch>> + Send + 'static {
        let begin = async move {
            let (sender, receiver) = mpsc::channel(2);
            let Self { table, options, shared, span, columns } = self;
            let free = tokio::time::timeout(HANDOVER, shared.lock_owned()).await;
            let work = spawn_blocking(move || {
                let deliver = |batch| sender.blocking_send(batch).is_ok();
                let wanted = || !sender.is_closed();
                match free {
                    Ok(mut reader) => reader.read(&span, &columns, deliver, wanted),
                    // Two scans of the same rows: waiting for the other could be for ever, so this one fetches itself.
                    Err(_) => {
                        let topic = Arc::new(topic(&options)?);
                        reader(&table, &span.partition, topic).read(&span, &columns, deliver, wanted)
                    }
                }
            });
            stream::unfold((receiver, Some(work)), |(mut receiver, mut work)| async move {
                if let Some(batch) = receiver.recv().await {
                    return Some((Ok(batch), (receiver, work)));
                }
                // Only the reader itself can say that it is done, rather than gone.
                match work.take()?.await {
                    Ok(Ok(())) => None,
                    Ok(Err(error)) => Some((Err(error), (receiver, None))),
                    Err(panic) => {
                        let error = Error::internal("reading a partition failed").caused_by(panic);
                        Some((Err(error), (receiver, None)))
                    }
                }
            })
        };
        stream::once(begin).flatten()
    }
}

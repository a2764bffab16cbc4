//! A table's topics as a source.
//!
//! The idea: one client answers questions about the topics ([`Discovery`]), and as many as there are tasks fetch
//! ([`Fetching`]). Threads that read exist only while something is read, and nothing is fetched where nothing was read
//! for some seconds. Single messages are looked for by one more client, so that no reader loses what it has fetched
//! ahead.
//!
//! What it guarantees: [`Source`]'s contract. Ends are last stable offsets unless `isolation.level` says otherwise, so
//! that no epoch waits for an open transaction.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use datafusion::execution::SendableRecordBatchStream;
use futures::{Stream, StreamExt, stream};
use tokio::sync::{Mutex as Slot, mpsc};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::columns::Column;
use super::discovery::Discovery;
use super::fetching::Fetching;
use super::group::Group;
use super::locked;
use super::options::KafkaOptions;
use super::reader::PartitionReader;
use crate::catalog::TableDefinition;
use crate::clock::Clock;
use crate::connector::messages::{Decoding, MessageBatch, decoded};
use crate::connector::position::{Lookup, Position, Side};
use crate::connector::{Extent, Fingerprint, Offsets, Partition, ReadReport, Source, Span};
use crate::error::{Error, Kind, Result};

/// How long a read waits for an earlier one of its partition, which nobody listens to any more, to notice it.
const HANDOVER: Duration = Duration::from_millis(500);

/// How long looking for one message takes at most.
const FINDING: Duration = Duration::from_secs(10);

/// How long a commit to the consumer group is waited for.
const COMMITTING: Duration = Duration::from_secs(5);

/// Topics that are being read.
#[derive(Debug)]
pub(super) struct KafkaSource {
    table: Arc<TableDefinition>,
    options: Arc<KafkaOptions>,
    open: Mutex<Option<Arc<Open>>>,
}

/// What [`Source::close`] gives back.
#[derive(Debug)]
struct Open {
    discovery: Discovery,
    fetching: Arc<Fetching>,
    /// What looks for single messages.
    finding: Fetching,
    group: Option<Arc<Group>>,
    /// Whose turn it is to commit to the group.
    committing: Arc<Slot<()>>,
}

impl Open {
    /// Asks what there is.
    fn look(&self, ask: impl FnOnce(&Discovery) -> Result<Extent>) -> Result<Extent> {
        let extent = ask(&self.discovery)?;
        self.fetching.look(&extent);
        Ok(extent)
    }
}

impl KafkaSource {
    /// Nothing is connected yet. `parallelism` reads work side by side.
    pub(super) fn try_new(
        table: Arc<TableDefinition>,
        options: KafkaOptions,
        parallelism: usize,
        clock: Clock,
    ) -> Result<Self> {
        let options = Arc::new(options);
        let fetching = Fetching::new(&table.name, &options.properties, parallelism, clock.clone());
        let finding = Fetching::of_single_messages(&table.name, &options.properties, clock.clone());
        let open = Open {
            discovery: Discovery::try_new(Arc::clone(&options), clock)?,
            fetching: Arc::new(fetching),
            finding,
            group: Group::of(&options.properties).map(Arc::new),
            committing: Arc::default(),
        };
        Ok(Self { table, options, open: Mutex::new(Some(Arc::new(open))) })
    }

    fn open(&self) -> Result<Arc<Open>> {
        locked(&self.open).clone().ok_or_else(|| Error::internal("the source is closed already"))
    }

    /// Asks the brokers, on a thread that may wait.
    async fn ask<T: Send + 'static>(&self, ask: impl FnOnce(&Open) -> Result<T> + Send + 'static) -> Result<T> {
        let open = self.open()?;
        let answer = spawn_blocking(move || ask(&open)).await;
        answer.map_err(|e| Error::internal("asking the brokers failed").caused_by(e))?
    }

    /// The offsets of a position, of all partitions: one that cannot be asked would begin or end somewhere else. Topics
    /// that are missing, and never were there, are an error of kind `missing`.
    async fn resolve(&self, side: Side, position: &Position, missing: Kind) -> Result<Offsets> {
        let look = move |open: &Open| open.look(|discovery| discovery.first_extent(missing));
        let extent = self.ask(look).await.map_err(|e| self.error(e))?;
        if let Some((partition, reason)) = extent.unreachable.first_key_value() {
            return Err(self.error(Error::transient(format!("{partition} cannot be reached: {reason}"))));
        }
        position.resolve(side, &extent, self).await.map_err(|e| self.error(e))
    }

    fn reader(&self, partition: &Partition) -> Result<Arc<Slot<PartitionReader>>> {
        if !self.options.reads(&partition.name) {
            return Err(self.error(Error::internal(format!("{partition} is no partition of the table"))));
        }
        self.open().and_then(|open| open.fetching.reader(partition)).map_err(|e| self.error(e))
    }

    fn error(&self, error: Error) -> Error {
        error.context(format_args!("table {}", self.table.name))
    }
}

/// What a position asks for.
#[async_trait]
impl Lookup for KafkaSource {
    async fn committed(&self, partitions: &[Partition]) -> Result<Offsets> {
        let partitions = partitions.to_vec();
        let committed = self.ask(move |open| match &open.group {
            Some(group) => group.committed(&partitions),
            None => Err(Error::internal("no consumer group is named")),
        });
        committed.await
    }

    async fn at(&self, partitions: &[Partition], timestamp_ms: i64) -> Result<Offsets> {
        let partitions = partitions.to_vec();
        self.ask(move |open| open.discovery.client().at(&partitions, timestamp_ms)).await
    }
}

#[async_trait]
impl Source for KafkaSource {
    async fn start(&self) -> Result<Offsets> {
        self.resolve(Side::Startup, &self.options.startup, Kind::Usage).await
    }

    async fn end(&self) -> Result<Option<Offsets>> {
        match &self.options.bounded {
            Some(position) => self.resolve(Side::Bounded, position, Kind::Transient).await.map(Some),
            None => Ok(None),
        }
    }

    async fn extent(&self) -> Result<Extent> {
        let look = |open: &Open| open.look(|discovery| discovery.extent(Kind::Transient));
        self.ask(look).await.map_err(|e| self.error(e))
    }

    async fn offsets_at(&self, partitions: &[Partition], ms: i64) -> Result<Option<Offsets>> {
        self.at(partitions, ms).await.map(Some).map_err(|e| self.error(e))
    }

    async fn fingerprint(&self, partition: &Partition, offset: u64) -> Result<Option<Fingerprint>> {
        let what = format!("looking for the message at {partition} offset {offset}");
        let finder = self.open().and_then(|open| open.finding.reader(partition)).map_err(|e| self.error(e))?;
        // When this call is dropped, so is `caller`, and the thread stops.
        let caller = Arc::new(());
        let listening = Arc::downgrade(&caller);
        let found = timeout(FINDING, async move {
            let mut finder = finder.lock_owned().await;
            spawn_blocking(move || finder.find(offset, || listening.strong_count() > 0)).await
        });
        let found = found.await;
        drop(caller);
        match found {
            Ok(Ok(found)) => found,
            Ok(Err(panic)) => Err(self.error(Error::internal(format!("{what} failed")).caused_by(panic))),
            Err(_) => Err(self.error(Error::transient(format!("{what} took longer than {} s", FINDING.as_secs())))),
        }
    }

    async fn acknowledge(&self, next: &Offsets) {
        let Ok((group, turn)) = self.open().map(|open| (open.group.clone(), Arc::clone(&open.committing))) else {
            return;
        };
        let Some(group) = group.filter(|_| !next.is_empty()) else { return };
        let (next, committing) = (next.clone(), Arc::clone(&group));
        let committed = timeout(COMMITTING, async move {
            let turn = turn.lock_owned().await;
            let work = spawn_blocking(move || {
                let _turn = turn;
                committing.commit(&next);
            });
            work.await
        });
        if committed.await.is_err() {
            group.tell_late();
        }
    }

    fn read(&self, span: &Span, projection: &[usize], report: &ReadReport) -> Result<SendableRecordBatchStream> {
        let KafkaOptions { format, key_columns, .. } = &*self.options;
        let decoding = Decoding::with_key(&self.table, format, key_columns.as_ref(), projection, report)?;
        let columns = decoding.metadata().iter().map(|key| {
            Column::of(key).ok_or_else(|| self.error(Error::internal(format!("there is no metadata '{key}'"))))
        });
        let reading = Reading {
            fetching: Arc::clone(&self.open().map_err(|e| self.error(e))?.fetching),
            shared: self.reader(&span.partition)?,
            span: span.clone(),
            columns: columns.collect::<Result<_>>()?,
        };
        Ok(decoded(decoding, span.partition.clone(), reading.messages()))
    }

    async fn close(&self) {
        let open = locked(&self.open).take();
        // Ending a client waits for its threads.
        let _ = spawn_blocking(move || drop(open)).await;
    }
}

/// One read, before it begins.
struct Reading {
    fetching: Arc<Fetching>,
    shared: Arc<Slot<PartitionReader>>,
    span: Span,
    columns: Vec<Column>,
}

impl Reading {
    /// The messages, read by a thread from the first poll on; it ends when the stream does or is dropped.
    fn messages(self) -> impl Stream<Item = Result<MessageBatch>> + Send + 'static {
        let begin = async move {
            let (sender, receiver) = mpsc::channel(2);
            let Self { fetching, shared, span, columns } = self;
            let free = timeout(HANDOVER, shared.lock_owned()).await;
            let work = spawn_blocking(move || {
                let deliver = |batch| sender.blocking_send(batch).is_ok();
                let wanted = || !sender.is_closed();
                match free {
                    Ok(mut reader) => reader.read(&span, &columns, deliver, wanted),
                    // Two scans of the same rows: waiting for the other could be for ever, so this one fetches itself.
                    Err(_) => fetching.spare_reader(&span.partition)?.read(&span, &columns, deliver, wanted),
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

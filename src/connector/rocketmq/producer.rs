//! Sending to queues: batches, one in flight per queue, several queues side by side.
//!
//! One batch in flight is what keeps the order of a queue: with more, whole batches swap places. Only "stored" is
//! success. Every other answer leaves it open whether the batch was stored. Without an [`Account`] it is then sent
//! again, under the same message ids, and may be there twice; with one, what is there is found out first, and only the
//! rest is sent. Either way the next batch waits until this one is there.
//!
//! A batch cannot be delayed, so a message that is to be delivered later is sent alone, in its turn. What it does not
//! promise: that such a message keeps its place among the others, as it gets one when it is due.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use datafusion::common::runtime::SpawnedTask;
use futures::future::try_join_all;
use rocketmq_client_rust::{ClientConfig, DefaultMQProducer, SendStatus};
use rocketmq_model::common::message::message_queue::MessageQueue;
use rocketmq_model::common::message::message_single::Message;
use tokio::sync::mpsc;

use super::admin::{Admin, Route};
use super::calls::{ANSWER, Patience, call, explained};
use super::connection::Connection;
use super::options::RocketmqOptions;
use super::runtime::{Runtime, detach};
use super::settle::Account;
use crate::connector::{Offsets, Partition};
use crate::error::{Error, Result};

/// What a batch holds at most; a larger message is a batch of its own.
const BATCH_MESSAGES: usize = 1000;
const BATCH_BYTES: usize = 1 << 20;

/// From which size on the client compresses a message that is sent alone: never, as it does not compress batches.
const COMPRESS_FROM: u32 = 64 << 20;

/// A producer of one topic.
pub(super) struct Producer {
    client: DefaultMQProducer,
    admin: Arc<Admin>,
    table: String,
    topic: String,
    closed: AtomicBool,
    // Behind the clients, so that it is let go last.
    runtime: Arc<Runtime>,
}

impl fmt::Debug for Producer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer").field("topic", &self.topic).finish_non_exhaustive()
    }
}

impl Producer {
    /// Connects. No two clients of a process may have the same `instance`.
    pub(super) async fn connect(table: &str, options: &RocketmqOptions, instance: &str) -> Result<Self> {
        let what = format!("connecting to name server {}", options.name_server);
        let admin = Admin::connect(&options.name_server, options.credentials.as_ref(), instance).await?;
        // The name server is asked first: the producer itself starts without it.
        let topic = options.topics.only()?.to_string();
        admin.route(&topic).await?;
        let runtime = Runtime::shared()?;
        let config = ClientConfig::builder()
            .namesrv_addr(options.name_server.as_str())
            .instance_name(instance)
            .build()
            .map_err(|e| explained(&what, e))?;
        let mut builder = DefaultMQProducer::builder(runtime.clients())
            .client_config(config)
            .producer_group(instance)
            .send_msg_timeout(ANSWER.as_millis() as u32)
            .compress_msg_body_over_howmuch(COMPRESS_FROM)
            .retry_times_when_send_failed(0);
        if let Some(credentials) = &options.credentials {
            builder = builder.rpc_hook(credentials.hook());
        }
        let mut client = builder.build();
        call(&what, ANSWER, client.start()).await?;
        let admin = Arc::new(admin);
        Ok(Self { client, admin, table: table.into(), topic, closed: AtomicBool::new(false), runtime })
    }

    /// Where the topic is; none if it does not exist, or no broker that has it is up.
    pub(super) async fn route(&self) -> Result<Option<Route>> {
        self.admin.route(&self.topic).await
    }

    /// Where the queues of `route` that can be written end now.
    pub(super) async fn ends(&self, route: &Route) -> Result<Offsets> {
        let ends = route.writable.iter().filter_map(|queue| {
            let master = route.masters.get(&*queue.name)?;
            Some(async move { Ok::<_, Error>((queue.clone(), self.admin.end(&self.topic, queue, master).await?)) })
        });
        Ok(try_join_all(ends).await?.into_iter().collect())
    }

    /// The error for a topic without a route.
    pub(super) async fn missing(&self) -> Error {
        self.admin.missing(&self.topic).await
    }

    /// Sends a batch once; the offset behind its last message, which one that is delayed has not got yet.
    async fn send(&self, queue: &Partition, batch: &[Outgoing]) -> Result<Option<u64>> {
        let what = format!("table {}: writing {} messages to topic {} {queue}", self.table, batch.len(), self.topic);
        let to = MessageQueue::from_parts(self.topic.as_str(), &*queue.name, queue.number as i32);
        let is_delayed = batch.iter().any(|outgoing| outgoing.is_delayed);
        let result = match batch {
            [alone] if is_delayed => {
                // With a timeout of its own it goes past the client's gathering of messages into batches.
                let timeout = ANSWER.as_millis() as u64;
                let sent = self.client.send_to_queue_with_timeout(alone.message.clone(), to, timeout);
                let result = call(&what, ANSWER * 2, sent).await?;
                result.ok_or_else(|| Error::transient(format!("{what}: the client does not say how it went")))?
            }
            _ => {
                let messages: Vec<Message> = batch.iter().map(|outgoing| outgoing.message.clone()).collect();
                call(&what, ANSWER * 2, self.client.send_batch_to_queue(messages, to)).await?
            }
        };
        if result.send_status != SendStatus::SendOk {
            return Err(Error::transient(format!(
                "{what}: the broker answers {}, and so does not promise that they are stored; look at its disk and its \
                 replicas",
                result.send_status
            )));
        }
        Ok((!is_delayed).then_some(result.queue_offset + batch.len() as u64))
    }

    /// Gives the connections back.
    pub(super) async fn close(&self) {
        if !self.closed.swap(true, Ordering::AcqRel) {
            self.farewell().await;
        }
    }

    fn farewell(&self) -> impl Future<Output = ()> + Send + 'static {
        let (mut client, admin, runtime) = (self.client.clone(), Arc::clone(&self.admin), Arc::clone(&self.runtime));
        async move {
            Box::pin(client.shutdown()).await;
            admin.close().await;
            drop(runtime);
        }
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        if !self.closed.swap(true, Ordering::AcqRel) {
            detach(self.farewell());
        }
    }
}

/// A message on its way.
#[derive(Debug)]
pub(super) struct Outgoing {
    /// The message.
    pub(super) message: Message,
    /// Which row of the epoch it is.
    pub(super) ordinal: u64,
    /// Whether it is to be delivered later.
    pub(super) is_delayed: bool,
}

/// What is in a lane's queue when it has finished.
#[derive(Debug, Default)]
pub(super) struct Sent {
    /// Messages, those included that were there before.
    pub(super) rows: u64,
    /// The offset behind the last of them.
    pub(super) end: Option<u64>,
}

/// The way into one queue: batches are sent in the order in which they were filled, one at a time.
#[derive(Debug)]
pub(super) struct Lane {
    sender: mpsc::Sender<Vec<Outgoing>>,
    task: SpawnedTask<Result<Sent>>,
    filling: Vec<Outgoing>,
    bytes: usize,
}

impl Lane {
    /// Into `queue`, with an account of what is there already, if nothing may be there twice. Dropping it ends the
    /// sending.
    pub(super) fn into(queue: Partition, connection: Arc<Connection<Producer>>, account: Option<Account>) -> Self {
        // One batch is sent, one waits, and one is filled.
        let (sender, receiver) = mpsc::channel(1);
        let task = SpawnedTask::spawn(deliver(queue, connection, account, receiver));
        Self { sender, task, filling: Vec::new(), bytes: 0 }
    }

    /// Takes a message of `size` bytes; whether the lane still works ([`finish`](Self::finish) says why not).
    pub(super) async fn push(&mut self, outgoing: Outgoing, size: usize) -> bool {
        let is_alone = outgoing.is_delayed;
        if (is_alone || self.bytes + size > BATCH_BYTES) && !self.flush().await {
            return false;
        }
        self.filling.push(outgoing);
        self.bytes += size;
        if is_alone || self.filling.len() >= BATCH_MESSAGES { self.flush().await } else { true }
    }

    /// Sends what is left, and waits until all of it is stored.
    pub(super) async fn finish(mut self) -> Result<Sent> {
        self.flush().await;
        drop(self.sender);
        self.task.join().await.map_err(|e| Error::internal("a RocketMQ sender broke off").caused_by(e))?
    }

    async fn flush(&mut self) -> bool {
        self.bytes = 0;
        let batch = std::mem::take(&mut self.filling);
        batch.is_empty() || self.sender.send(batch).await.is_ok()
    }
}

/// Sends what a lane is given, batch after batch.
async fn deliver(
    queue: Partition,
    connection: Arc<Connection<Producer>>,
    mut account: Option<Account>,
    mut receiver: mpsc::Receiver<Vec<Outgoing>>,
) -> Result<Sent> {
    let mut sent = Sent { rows: 0, end: account.as_ref().and_then(Account::end) };
    let mut producer = connection.client().await?;
    while let Some(mut batch) = receiver.recv().await {
        sent.rows += batch.len() as u64;
        let mut patience = Patience::sending();
        loop {
            if let Some(account) = &account {
                batch.retain(|outgoing| !account.holds(outgoing.ordinal));
            }
            if batch.is_empty() {
                break;
            }
            match producer.send(&queue, &batch).await {
                Ok(end) => {
                    sent.end = end.or(sent.end);
                    if let (Some(account), Some(end)) = (&mut account, end) {
                        account.stored_up_to(end);
                    }
                    break;
                }
                Err(error) => producer = connection.again(producer, &mut patience, error).await?,
            }
            if let Some(account) = &mut account {
                account.rest().await;
                account.settle().await?;
                sent.end = account.end();
            }
        }
    }
    Ok(sent)
}

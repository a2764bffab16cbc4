//! Sending to queues: batches, one in flight per queue, several queues side by side.
//!
//! One batch in flight is what keeps the order of a queue: with more, whole batches swap places. Only "stored" is success.
//! Every other answer leaves it open whether the batch was stored, so it is sent again, under the same message ids, and
//! may then be there twice.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use datafusion::common::runtime::SpawnedTask;
use rocketmq_client_rust::{ClientConfig, DefaultMQProducer, SendStatus};
use rocketmq_model::common::message::message_queue::MessageQueue;
use rocketmq_model::common::message::message_single::Message;
use tokio::sync::mpsc;

use super::admin::{Admin, Route};
use super::calls::{ANSWER, Patience, call, explained};
use super::connection::Connection;
use super::options::RocketmqOptions;
use super::runtime::{Runtime, detach};
use crate::connector::Partition;
use crate::error::{Error, Result};

/// What a batch holds at most; a larger message is a batch of its own.
const BATCH_MESSAGES: usize = 1000;
const BATCH_BYTES: usize = 1 << 20;

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
        admin.route(&options.topic).await?;
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
            .retry_times_when_send_failed(0);
        if let Some(credentials) = &options.credentials {
            builder = builder.rpc_hook(credentials.hook());
        }
        let mut client = builder.build();
        call(&what, ANSWER, client.start()).await?;
        let (admin, topic) = (Arc::new(admin), options.topic.clone());
        Ok(Self { client, admin, table: table.into(), topic, closed: AtomicBool::new(false), runtime })
    }

    /// Where the topic is; none if it does not exist, or no broker that has it is up.
    pub(super) async fn route(&self) -> Result<Option<Route>> {
        self.admin.route(&self.topic).await
    }

    /// The error for a topic without a route.
    pub(super) async fn missing(&self) -> Error {
        self.admin.missing(&self.topic).await
    }

    /// Sends a batch once; the offset of its first message.
    async fn send(&self, queue: &Partition, batch: &[Message]) -> Result<u64> {
        let what = format!("table {}: writing {} messages to topic {} {queue}", self.table, batch.len(), self.topic);
        let to = MessageQueue::from_parts(self.topic.as_str(), &*queue.name, queue.number as i32);
        let sent = self.client.send_batch_to_queue(batch.to_vec(), to);
        let result = call(&what, ANSWER * 2, sent).await?;
        if result.send_status != SendStatus::SendOk {
            return Err(Error::transient(format!(
                "{what}: the broker answers {}, and so does not promise that they are stored; look at its disk and its \
                 replicas",
                result.send_status
            )));
        }
        Ok(result.queue_offset)
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

/// What a lane sent.
#[derive(Debug, Default)]
pub(super) struct Sent {
    /// Messages.
    pub(super) rows: u64,
    /// The offset behind the last of them.
    pub(super) end: Option<u64>,
}

/// The way into one queue: batches are sent in the order in which they were filled, one at a time.
#[derive(Debug)]
pub(super) struct Lane {
    sender: mpsc::Sender<Vec<Message>>,
    task: SpawnedTask<Result<Sent>>,
    filling: Vec<Message>,
    bytes: usize,
}

impl Lane {
    /// Into `queue`. Dropping it ends the sending.
    pub(super) fn into(queue: Partition, connection: Arc<Connection<Producer>>) -> Self {
        // One batch is sent, one waits, and one is filled.
        let (sender, mut receiver) = mpsc::channel::<Vec<Message>>(1);
        let task = SpawnedTask::spawn(async move {
            let mut total = Sent::default();
            let mut producer = connection.client().await?;
            while let Some(batch) = receiver.recv().await {
                let mut patience = Patience::new();
                let first = loop {
                    match producer.send(&queue, &batch).await {
                        Ok(first) => break first,
                        Err(error) => producer = connection.again(producer, &mut patience, error).await?,
                    }
                };
                total.rows += batch.len() as u64;
                total.end = Some(first + batch.len() as u64);
            }
            Ok(total)
        });
        Self { sender, task, filling: Vec::new(), bytes: 0 }
    }

    /// Takes a message of `size` bytes; whether the lane still works ([`finish`](Self::finish) says why not).
    pub(super) async fn push(&mut self, message: Message, size: usize) -> bool {
        if self.bytes + size > BATCH_BYTES && !self.flush().await {
            return false;
        }
        self.filling.push(message);
        self.bytes += size;
        if self.filling.len() >= BATCH_MESSAGES { self.flush().await } else { true }
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

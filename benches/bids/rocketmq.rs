//! The loops over RocketMQ's client as it is: batches of 1,000 into the queues of a topic in turns, one in flight per
//! queue; and all of a topic out of it, 1,024 messages a pull, its queues side by side.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::array::RecordBatch;
use arrow_json::LineDelimitedWriter;
use millstream::connector::rocketmq::runtime::Runtime;
#[allow(deprecated)]
use rocketmq_client_rust::DefaultMQPullConsumer;
use rocketmq_client_rust::{
    ClientConfig, ClientOptions, DefaultMQProducer, MessageQueueListener, MessageSelector, PullOptions, SendStatus,
};
use rocketmq_model::common::message::message_queue::MessageQueue;
use rocketmq_model::common::message::message_single::Message;
use tokio::sync::mpsc;

const BROKER: &str = "broker-a";
const QUEUES: usize = 4;
const BATCH: usize = 1000;
const PULL: i32 = 1024;

fn threads() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn config(name_server: &str) -> ClientConfig {
    ClientConfig::builder().namesrv_addr(name_server).instance_name("bids").build().unwrap()
}

fn queue(topic: &str, number: usize) -> MessageQueue {
    MessageQueue::from_parts(topic, BROKER, number as i32)
}

/// Writes the rows that `read` hands to its argument, by several threads; what `read` gives.
pub fn forward<T>(name_server: &str, target: &str, read: impl FnOnce(&(dyn Fn(&RecordBatch) + Sync)) -> T) -> T {
    let (threads, clients) = (threads(), Runtime::shared().unwrap());
    let mut producer = DefaultMQProducer::builder(clients.clients())
        .client_config(config(name_server))
        .producer_group("bids")
        .send_msg_timeout(10_000)
        .build();
    threads.block_on(producer.start()).unwrap();
    let producer = Arc::new(producer);
    let senders: Vec<_> = (0..QUEUES)
        .map(|number| {
            let (sender, mut batches) = mpsc::channel::<Vec<Message>>(2);
            let (producer, to) = (Arc::clone(&producer), queue(target, number));
            let sending = threads.spawn(async move {
                while let Some(batch) = batches.recv().await {
                    let sent = producer.send_batch_to_queue(batch, to.clone()).await.unwrap();
                    assert_eq!(sent.send_status, SendStatus::SendOk);
                }
            });
            (sender, sending)
        })
        .collect();
    let turn = AtomicUsize::new(0);
    let given = read(&|rows| {
        let mut lines = Vec::new();
        let mut writer = LineDelimitedWriter::new(&mut lines);
        writer.write(rows).unwrap();
        writer.finish().unwrap();
        let lines: Vec<&[u8]> = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect();
        for batch in lines.chunks(BATCH) {
            let message = |line: &&[u8]| Message::builder().topic(target).body_slice(line).build().unwrap();
            let number = turn.fetch_add(1, Ordering::Relaxed) % QUEUES;
            senders[number].0.blocking_send(batch.iter().map(message).collect()).unwrap();
        }
    });
    for (sender, sending) in senders {
        drop(sender);
        threads.block_on(sending).unwrap();
    }
    given
}

/// Does nothing: its presence keeps the client from reading ahead.
struct Indifferent;

impl MessageQueueListener for Indifferent {
    fn message_queue_changed(&self, _: &str, _: &HashSet<MessageQueue>, _: &HashSet<MessageQueue>) {}
}

/// How many messages a topic has, counted by reading all of them.
#[allow(deprecated)]
pub fn drain(name_server: &str, topic: &str) -> u64 {
    let (threads, clients) = (threads(), Runtime::shared().unwrap());
    let client = DefaultMQPullConsumer::builder(clients.clients())
        .client_options(ClientOptions::from(config(name_server)))
        .consumer_group("bids-drain")
        .build()
        .unwrap();
    threads.block_on(async {
        client.register_message_queue_listener(topic, Indifferent).await.unwrap();
        client.start().await.unwrap();
        client.fetch_subscribe_message_queues(topic).await.unwrap();
    });
    let client = Arc::new(client);
    let pulling: Vec<_> = (0..QUEUES)
        .map(|number| {
            let (client, from) = (Arc::clone(&client), queue(topic, number));
            threads.spawn(async move {
                let end = client.max_offset(&from).await.unwrap();
                let (mut at, mut read) = (0, 0);
                while at < end {
                    let selector = MessageSelector::by_tag("*");
                    let options = PullOptions::new(from.clone(), selector, at, PULL).unwrap();
                    let pulled = Box::pin(client.pull_with_options(options)).await.unwrap();
                    read += pulled.msg_found_list().unwrap_or_default().len() as u64;
                    at = pulled.next_begin_offset() as i64;
                }
                read
            })
        })
        .collect();
    pulling.into_iter().map(|pulling| threads.block_on(pulling).unwrap()).sum()
}

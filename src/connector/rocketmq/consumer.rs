//! One connection of a table to its topic: bounds of queues, and pulls of exact ranges.
//!
//! It is the library's classic pull consumer, the only one that reads exact ranges, kept from doing more than that: a
//! listener that does nothing, registered before it starts, keeps it from reading ahead in the background (which would
//! make a shutdown take 19 s), and its decompression is off (see `compression`).
//!
//! A started consumer is a member of its group, subscribed to everything; so the group is a private one, never the user's.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::FutureExt;
#[allow(deprecated)]
use rocketmq_client_rust::DefaultMQPullConsumer;
use rocketmq_client_rust::{
    ClientConfig, ClientOptions, MessageQueueListener, MessageSelector, PullOptions, PullResult,
};
use rocketmq_model::common::message::message_queue::MessageQueue;

use super::admin::{Admin, Route};
use super::calls::{ANSWER, call, explained};
use super::options::RocketmqOptions;
use super::runtime::{Runtime, detach};
use crate::connector::{Bounds, Partition};
use crate::error::{Error, Result};

/// The most messages that one pull asks for; stock brokers give 32.
const PULL: u64 = 1024;
/// The code of "there is no such consumer group".
const NO_GROUP: i32 = 26;
/// The longest that the client may take to leave.
const FAREWELL: Duration = Duration::from_secs(2);

/// Does nothing: its presence keeps the client from reading ahead.
struct Indifferent;

impl MessageQueueListener for Indifferent {
    fn message_queue_changed(&self, _: &str, _: &HashSet<MessageQueue>, _: &HashSet<MessageQueue>) {}
}

/// The private group of a consumer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PrivateGroup {
    /// Its name.
    pub(super) name: String,
    /// Whether nobody needs it after this consumer.
    pub(super) is_temporary: bool,
}

/// A consumer of one topic.
#[allow(deprecated)]
pub(super) struct Consumer {
    client: DefaultMQPullConsumer,
    admin: Arc<Admin>,
    topic: Arc<str>,
    group: PrivateGroup,
    closed: AtomicBool,
    // Behind the clients, so that it is let go last.
    runtime: Arc<Runtime>,
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").field("topic", &self.topic).field("group", &self.group).finish_non_exhaustive()
    }
}

#[allow(deprecated)]
impl Consumer {
    /// Connects. No two clients of a process may have the same `instance`.
    pub(super) async fn connect(options: &RocketmqOptions, group: PrivateGroup, instance: &str) -> Result<Self> {
        let what = format!("connecting to name server {}", options.name_server);
        // The name server is asked first: the consumer itself starts without it.
        let admin = Admin::connect(&options.name_server, options.credentials.as_ref(), instance).await?;
        admin.route(&options.topic).await?;
        let runtime = Runtime::shared()?;
        let config = ClientConfig::builder()
            .namesrv_addr(options.name_server.as_str())
            .instance_name(instance)
            .enable_decode_decompress_body(false)
            .build()
            .map_err(|e| explained(&what, e))?;
        let mut builder = DefaultMQPullConsumer::builder(runtime.clients())
            .client_options(ClientOptions::from(config))
            .consumer_group(group.name.as_str());
        if let Some(credentials) = &options.credentials {
            builder = builder.rpc_hook(credentials.hook());
        }
        let client = builder.build().map_err(|e| explained(&what, e))?;
        let (admin, topic) = (Arc::new(admin), options.topic.as_str().into());
        let consumer = Self { client, admin, topic, group, closed: AtomicBool::new(false), runtime };
        call(&what, ANSWER, consumer.client.register_message_queue_listener(&options.topic, Indifferent)).await?;
        call(&what, ANSWER, consumer.client.start()).await?;
        // Learns the brokers' addresses. Of several calls that need them first, only one would, and the others would fail.
        let learned = consumer.client.fetch_subscribe_message_queues(&options.topic);
        if let Err(error) = call(&what, ANSWER, learned).await {
            tracing::debug!(error = %error.chain(), "no addresses for a RocketMQ topic yet");
        }
        Ok(consumer)
    }

    /// Where the topic is; none if it does not exist, or no broker that has it is up.
    pub(super) async fn route(&self) -> Result<Option<Route>> {
        self.admin.route(&self.topic).await
    }

    /// The error for a topic without a route.
    pub(super) async fn missing(&self) -> Error {
        self.admin.missing(&self.topic).await
    }

    /// What a queue holds now, as its master has it.
    pub(super) async fn bounds(&self, queue: &Partition) -> Result<Bounds> {
        let at = self.queue(queue);
        let what = format!("asking for the bounds of topic {} {queue}", self.topic);
        let (earliest, latest) = futures::try_join!(
            call(&what, ANSWER, self.client.min_offset(&at)),
            call(&what, ANSWER, self.client.max_offset(&at)),
        )?;
        Ok(Bounds { earliest: earliest.max(0) as u64, latest: latest.max(0) as u64 })
    }

    /// What the broker has at `from`, at most `count` messages.
    pub(super) async fn pull(&self, queue: &Partition, from: u64, count: u64) -> Result<PullResult> {
        let what = format!("reading topic {} {queue} at offset {from}", self.topic);
        let selector = MessageSelector::by_tag("*");
        let options = PullOptions::new(self.queue(queue), selector, from as i64, count.clamp(1, PULL) as i32)
            .map_err(|e| explained(&what, e))?
            .timeout(ANSWER);
        // The library bounds the call itself; the outer bound is for the case that it does not.
        let once = || Box::pin(self.client.pull_with_options(options.clone()));
        match call(&what, ANSWER * 2, once().map(Ok)).await? {
            Err(error) if error.broker_response_code() == Some(NO_GROUP) => {
                let route = self.route().await?.unwrap_or_default();
                self.admin.create_group(&self.group.name, &route).await?;
                call(&what, ANSWER * 2, once().map(Ok)).await?
            }
            answer => answer,
        }
        .map_err(|error| explained(&what, error))
    }

    /// Leaves the group, removes it if nobody needs it, and gives the connections back.
    pub(super) async fn close(&self) {
        if !self.closed.swap(true, Ordering::AcqRel) {
            self.farewell().await;
        }
    }

    fn farewell(&self) -> impl Future<Output = ()> + Send + 'static {
        let (client, admin) = (self.client.clone(), Arc::clone(&self.admin));
        let (topic, group, runtime) = (Arc::clone(&self.topic), self.group.clone(), Arc::clone(&self.runtime));
        async move {
            if let Err(error) = call(format!("leaving topic {topic}"), FAREWELL, client.shutdown()).await {
                tracing::debug!(error = %error.chain(), "a RocketMQ consumer did not leave in order");
            }
            if group.is_temporary
                && let Ok(Some(route)) = admin.route(&topic).await
                && let Err(error) = admin.remove_group(&group.name, &route).await
            {
                tracing::debug!(error = %error.chain(), "a private consumer group stays on the broker");
            }
            admin.close().await;
            drop(runtime);
        }
    }

    fn queue(&self, queue: &Partition) -> MessageQueue {
        MessageQueue::from_parts(&*self.topic, &*queue.name, queue.number as i32)
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        if !self.closed.swap(true, Ordering::AcqRel) {
            detach(self.farewell());
        }
    }
}

//! One connection of a table to its topics: bounds of queues, and pulls of exact ranges.
//!
//! It is the library's classic pull consumer, the only one that reads exact ranges, kept from doing more than that: a
//! listener that does nothing, registered before it starts, keeps it from reading ahead in the background (which would
//! make a shutdown take 19 s), and its decompression is off (see `compression`).
//!
//! A started consumer is a member of its group, subscribed to everything; so the group is a private one, never the user's.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::FutureExt;
#[allow(deprecated)]
use rocketmq_client_rust::DefaultMQPullConsumer;
use rocketmq_client_rust::{
    ClientConfig, ClientOptions, ClientResult, MessageQueueListener, MessageSelector, PullOptions, PullResult,
};
use rocketmq_model::common::message::message_queue::MessageQueue;
use tokio::sync::Mutex;

use super::admin::{Admin, Route};
use super::calls::{ANSWER, NO_GROUP, call, explained};
use super::filter::Filter;
use super::options::RocketmqOptions;
use super::runtime::{Runtime, detach};
use super::topics::{Queue, Topics};
use crate::connector::{Bounds, Partition};
use crate::error::{Error, Result};

/// The most messages that one pull asks for; stock brokers give 32.
pub(super) const PULL: u64 = 1024;
/// The broker's code for an error that it has no code for.
const SYSTEM_ERROR: i32 = 1;
/// The broker's code for a topic that it does not have.
const NO_TOPIC: i32 = 17;
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

/// A consumer of a table's topics.
#[allow(deprecated)]
pub(super) struct Consumer {
    client: DefaultMQPullConsumer,
    admin: Arc<Admin>,
    topics: Arc<Topics>,
    /// Topics that the client knows.
    met: Mutex<BTreeSet<String>>,
    group: PrivateGroup,
    closed: AtomicBool,
    // Behind the clients, so that it is let go last.
    runtime: Arc<Runtime>,
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").field("topics", &self.topics).field("group", &self.group).finish_non_exhaustive()
    }
}

#[allow(deprecated)]
impl Consumer {
    /// Connects. No two clients of a process may have the same `instance`.
    pub(super) async fn connect(options: &RocketmqOptions, group: PrivateGroup, instance: &str) -> Result<Self> {
        let what = format!("connecting to name server {}", options.name_server);
        // The name server is asked first: the consumer itself starts without it.
        let admin = Admin::connect(&options.name_server, options.credentials.as_ref(), instance).await?;
        let names = options.topics.names(&admin, ANSWER).await?;
        if let Some(topic) = names.first() {
            admin.route(topic).await?;
        }
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
        let (admin, topics, met) = (Arc::new(admin), Arc::clone(&options.topics), Mutex::default());
        let consumer = Self { client, admin, topics, met, group, closed: AtomicBool::new(false), runtime };
        for topic in &names {
            call(&what, ANSWER, consumer.client.register_message_queue_listener(topic, Indifferent)).await?;
        }
        call(&what, ANSWER, consumer.client.start()).await?;
        for topic in &names {
            consumer.learn(topic).await;
        }
        *consumer.met.lock().await = names.into_iter().collect();
        Ok(consumer)
    }

    /// Learns the addresses of a topic's brokers. Of several calls that need them first, only one would, and the others
    /// would fail.
    async fn learn(&self, topic: &str) {
        let learned = self.client.fetch_subscribe_message_queues(topic);
        if let Err(error) = call(format!("looking for topic {topic}"), ANSWER, learned).await {
            tracing::debug!(error = %error.chain(), "no addresses for a RocketMQ topic yet");
        }
    }

    /// Makes a topic known to the client that was found later.
    async fn meet(&self, topic: &str) -> Result<()> {
        let mut met = self.met.lock().await;
        if !met.contains(topic) {
            let registered = self.client.register_message_queue_listener(topic, Indifferent);
            call(format!("subscribing to topic {topic}"), ANSWER, registered).await?;
            self.learn(topic).await;
            met.insert(topic.into());
        }
        Ok(())
    }

    /// The client that asks about topics.
    pub(super) fn admin(&self) -> &Admin {
        &self.admin
    }

    /// The queues that can be read, each with the address of its master, if that is up. Those of topics without a route
    /// are not among them. Each answer of the name server may take `limit`.
    pub(super) async fn queues(&self, limit: Duration) -> Result<BTreeMap<Partition, Option<Arc<str>>>> {
        let mut queues = BTreeMap::new();
        for (topic, route) in self.topics.routes(&self.admin, limit).await? {
            let Route { readable, masters, .. } = route.unwrap_or_default();
            for queue in readable {
                let master = masters.get(&*queue.name).map(|address| address.as_str().into());
                queues.insert(self.topics.partition(&topic, queue), master);
            }
        }
        Ok(queues)
    }

    /// Refuses topics that no route leads to.
    pub(super) async fn check_topics(&self) -> Result<()> {
        let routes = self.topics.routes(&self.admin, ANSWER).await?;
        if let Topics::Matching { pattern, .. } = &*self.topics
            && routes.is_empty()
        {
            let hint = self.admin.similar(pattern).await;
            return Err(Error::usage(format!("there are no {} yet{hint}; correct 'topic-pattern'", self.topics)));
        }
        match routes.iter().find(|(_, route)| route.is_none()) {
            Some((topic, _)) => Err(self.admin.missing(topic).await),
            None => Ok(()),
        }
    }

    /// The address of a queue's master now.
    async fn master(&self, queue: Queue<'_>) -> Result<String> {
        let mut route = self.admin.route(queue.topic).await?.unwrap_or_default();
        route.masters.remove(queue.broker).ok_or_else(|| {
            Error::transient(format!(
                "the name server knows no master of {queue} now; its broker is down, or about to be"
            ))
        })
    }

    /// What a queue holds now, as its master has it.
    pub(super) async fn bounds(&self, partition: &Partition) -> Result<Bounds> {
        let queue = self.topics.queue(partition);
        self.admin.bounds(queue, &self.master(queue).await?, ANSWER).await
    }

    /// What the broker has at `from` and lets pass, at most `count` messages.
    ///
    /// Errors: [`Kind::DataLoss`](crate::error::Kind::DataLoss), if it has not even the topic any more;
    /// [`Kind::Refused`](crate::error::Kind::Refused), if it does not take the filter.
    pub(super) async fn pull(
        &self,
        partition: &Partition,
        from: u64,
        count: u64,
        filter: Option<&Filter>,
    ) -> Result<PullResult> {
        let queue = self.topics.queue(partition);
        self.meet(queue.topic).await?;
        let what = format!("reading {queue} at offset {from}");
        let mut answer = self.pull_once(&what, queue, from, count, filter).await?;
        if matches!(&answer, Err(error) if error.broker_response_code() == Some(NO_GROUP)) {
            self.admin.create_group(&self.group.name, &self.master(queue).await?).await?;
            answer = self.pull_once(&what, queue, from, count, filter).await?;
        }
        let error = match answer {
            Ok(pulled) => return Ok(pulled),
            Err(error) => error,
        };
        let code = error.broker_response_code();
        if code == Some(NO_TOPIC) {
            return Err(Error::data_loss(format!(
                "{what}: the broker does not have the topic any more: it was deleted, with the messages that were to be \
                 read; once it is created anew, 'scan.on-data-loss' = 'continue' goes on at its first message, and so \
                 does a query of another name (SET 'pipeline.name')"
            ))
            .caused_by(error));
        }
        let by_sql = matches!(filter, Some(Filter::Sql(_))) && code == Some(SYSTEM_ERROR);
        // Trouble of another kind would come without the filter, too.
        if by_sql && self.pull_once(&what, queue, from, 1, None).await?.is_ok() {
            return Err(Error::refused(format!(
                "{what}: the broker does not take 'filter.sql', most likely because it filters by tags alone; set \
                 enablePropertyFilter=true there, or filter in a WHERE clause instead, and give the query another name \
                 (SET 'pipeline.name'), since an epoch that was planned with the filter is finished with it"
            ))
            .caused_by(error));
        }
        Err(explained(&what, error))
    }

    /// Pulls once; what the library or the broker has against it is the inner error.
    async fn pull_once(
        &self,
        what: &str,
        queue: Queue<'_>,
        from: u64,
        count: u64,
        filter: Option<&Filter>,
    ) -> Result<ClientResult<PullResult>> {
        let selector = filter.map_or_else(|| MessageSelector::by_tag("*"), Filter::selector);
        let options = PullOptions::new(queue.for_client(), selector, from as i64, count.clamp(1, PULL) as i32)
            .map_err(|e| explained(what, e))?
            .timeout(ANSWER);
        // The library bounds the call itself; the outer bound is for the case that it does not.
        call(what, ANSWER * 2, Box::pin(self.client.pull_with_options(options)).map(Ok)).await
    }

    /// Leaves the group, removes it if nobody needs it, and gives the connections back.
    pub(super) async fn close(&self) {
        if !self.closed.swap(true, Ordering::AcqRel) {
            self.farewell().await;
        }
    }

    fn farewell(&self) -> impl Future<Output = ()> + Send + 'static {
        let (client, admin) = (self.client.clone(), Arc::clone(&self.admin));
        let (topics, group, runtime) = (Arc::clone(&self.topics), self.group.clone(), Arc::clone(&self.runtime));
        async move {
            if let Err(error) = call(format!("leaving {topics}"), FAREWELL, client.shutdown()).await {
                tracing::debug!(error = %error.chain(), "a RocketMQ consumer did not leave in order");
            }
            if group.is_temporary
                && let Err(error) = remove(&admin, &topics, &group.name).await
            {
                tracing::debug!(error = %error.chain(), "a private consumer group stays on the broker");
            }
            admin.close().await;
            drop(runtime);
        }
    }
}

/// Removes a group from all brokers of these topics.
async fn remove(admin: &Admin, topics: &Topics, group: &str) -> Result<()> {
    let mut all = Route::default();
    for route in topics.routes(admin, ANSWER).await?.into_values().flatten() {
        all.masters.extend(route.masters);
    }
    admin.remove_group(group, &all).await
}

impl Drop for Consumer {
    fn drop(&mut self) {
        if !self.closed.swap(true, Ordering::AcqRel) {
            detach(self.farewell());
        }
    }
}

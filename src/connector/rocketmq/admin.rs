//! Questions about topics and groups: which there are, where their queues are, and what those hold; and what is made
//! and removed at brokers.
//!
//! A broker is asked at the address that its caller knows, so that nothing hangs on routes that the library remembers. Only
//! the name server's route tells a topic that does not exist from a name server that does not answer. It cannot tell
//! a missing topic from one whose only broker is down: both have no route, so whoever asks decides what that means.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use rocketmq_client_rust::{ClientResult, ConsumerAdmin, DefaultMQAdminExt, OffsetAdmin, RouteAdmin, TopicAdmin};
use rocketmq_model::common::config::TopicConfig;
use rocketmq_model::common::message::message_queue::MessageQueue;
use rocketmq_model::version::RocketMqVersion;
use rocketmq_protocol::protocol::admin::topic_offset::TopicOffset;
use rocketmq_protocol::protocol::admin::topic_stats_table::TopicStatsTable;
use rocketmq_protocol::protocol::body::connection::Connection;
use rocketmq_protocol::protocol::route::route_data_view::BrokerData;
use rocketmq_protocol::protocol::route::topic_route_data::TopicRouteData;
use rocketmq_protocol::protocol::subscription::subscription_group_config::SubscriptionGroupConfig;
use tokio::sync::{RwLock, RwLockReadGuard};

use super::calls::{ANSWER, NO_GROUP, call, code, explained};
use super::options::Credentials;
use super::runtime::{Runtime, detach};
use super::topics::{Queue, is_internal};
use crate::connector::cluster::GroupMember;
use crate::connector::{Bounds, Partition};
use crate::error::{Error, Result};
use crate::sql::options::did_you_mean_of_many;

/// The id of a broker that takes writes.
const MASTER: u64 = 0;
/// What may be done with a topic.
pub(super) const WRITABLE: u32 = 2;
pub(super) const READABLE: u32 = 4;
/// The broker's code for a consumer group without members.
const NOT_ONLINE: i32 = 206;

/// Where a topic is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Route {
    /// The queues that can be read, in order.
    pub(super) readable: Vec<Partition>,
    /// The queues that can be written, in order.
    pub(super) writable: Vec<Partition>,
    /// The addresses of the brokers' masters, by broker.
    pub(super) masters: BTreeMap<String, String>,
}

impl Route {
    fn of(data: &TopicRouteData) -> Self {
        let masters: BTreeMap<_, _> = data.broker_datas.iter().filter_map(master).collect();
        let (mut readable, mut writable) = (BTreeSet::new(), BTreeSet::new());
        for queues in &data.queue_datas {
            let broker: Arc<str> = queues.broker_name().as_str().into();
            let all = |number| (0..number).map(|queue| Partition::new(Arc::clone(&broker), queue));
            if queues.perm() & READABLE != 0 {
                readable.extend(all(queues.read_queue_nums()));
            }
            if queues.perm() & WRITABLE != 0 && masters.contains_key(&*broker) {
                writable.extend(all(queues.write_queue_nums()));
            }
        }
        Self { readable: readable.into_iter().collect(), writable: writable.into_iter().collect(), masters }
    }
}

/// A broker, and the address of its master, if that is up.
fn master(broker: &BrokerData) -> Option<(String, String)> {
    Some((broker.broker_name().to_string(), broker.broker_addrs().get(&MASTER)?.to_string()))
}

/// The brokers that a name server knows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Brokers {
    /// The addresses of their masters, by broker.
    pub(super) masters: BTreeMap<String, String>,
    /// Their names and those of their clusters: each has a topic that is called so.
    pub(super) names: BTreeSet<String>,
}

/// A client that asks about topics; its own connections, until it is closed.
pub(super) struct Admin {
    client: RwLock<Option<DefaultMQAdminExt>>,
    name_server: String,
    // Behind the client, so that it is let go last.
    _runtime: Arc<Runtime>,
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin").field("name_server", &self.name_server).finish_non_exhaustive()
    }
}

impl Admin {
    /// Connects to `name_server`. No two clients of a process may have the same `instance`.
    pub(super) async fn connect(name_server: &str, credentials: Option<&Credentials>, instance: &str) -> Result<Self> {
        let runtime = Runtime::shared()?;
        let group = format!("{instance}-admin");
        let mut client = match credentials {
            Some(credentials) => DefaultMQAdminExt::with_admin_ext_group_rpc_hook_and_timeout(
                runtime.clients(),
                group.as_str(),
                credentials.hook(),
                ANSWER,
            ),
            None => DefaultMQAdminExt::with_admin_ext_group_and_timeout(runtime.clients(), group.as_str(), ANSWER),
        };
        client.set_namesrv_addr(name_server);
        client.client_config_mut().set_instance_name(group.into());
        call(format!("connecting to name server {name_server}"), ANSWER, client.start()).await?;
        Ok(Self { client: RwLock::new(Some(client)), name_server: name_server.into(), _runtime: runtime })
    }

    /// Where `topic` is; none if it does not exist, or no broker that has it is up.
    pub(super) async fn route(&self, topic: &str) -> Result<Option<Route>> {
        self.route_within(ANSWER, topic).await
    }

    /// The same; the answer may take `limit`.
    pub(super) async fn route_within(&self, limit: Duration, topic: &str) -> Result<Option<Route>> {
        let client = self.client().await?;
        let asked = TopicAdmin::examine_topic_route_info(&*client, topic.into());
        let what = format!("asking name server {} for topic {topic}", self.name_server);
        Ok(call(&what, limit, asked).await?.map(|data| Route::of(&data)))
    }

    /// The brokers that are up.
    pub(super) async fn brokers(&self) -> Result<Brokers> {
        let client = self.client().await?;
        let what = format!("asking name server {} for its brokers", self.name_server);
        let info = call(&what, ANSWER, RouteAdmin::examine_broker_cluster_info(&*client)).await?;
        let (brokers, clusters) =
            (info.broker_addr_table.unwrap_or_default(), info.cluster_addr_table.unwrap_or_default());
        let names = brokers.keys().chain(clusters.keys()).map(ToString::to_string).collect();
        Ok(Brokers { masters: brokers.values().filter_map(master).collect(), names })
    }

    /// How the broker at `master` keeps a topic.
    pub(super) async fn config(&self, topic: &str, master: &str) -> Result<TopicConfig> {
        let client = self.client().await?;
        let asked = TopicAdmin::examine_topic_config(&*client, master.into(), topic.into());
        call(format!("asking for the settings of topic {topic} at {master}"), ANSWER, asked).await
    }

    /// Creates a topic at a broker.
    pub(super) async fn create_topic(&self, config: TopicConfig, master: &str) -> Result<()> {
        let client = self.client().await?;
        let what = format!("creating topic {} at {master}", config.topic_name.as_deref().unwrap_or_default());
        call(what, ANSWER, TopicAdmin::create_and_update_topic_config(&*client, master.into(), config)).await
    }

    /// Removes a topic, first from its brokers, then from all name servers.
    pub(super) async fn remove_topic(&self, topic: &str, route: &Route) -> Result<()> {
        let client = self.client().await?;
        for (broker, address) in &route.masters {
            let brokers = [address.as_str().into()].into_iter().collect();
            let removed = TopicAdmin::delete_topic_in_broker(&*client, brokers, topic.into());
            call(format!("removing topic {topic} from {broker}"), ANSWER, removed).await?;
        }
        let what = format!("removing topic {topic} from name server {}", self.name_server);
        let servers = call(&what, ANSWER, RouteAdmin::get_name_server_address_list(&*client).map(Ok)).await?;
        let servers = servers.into_iter().collect();
        call(&what, ANSWER, TopicAdmin::delete_topic_in_name_server(&*client, servers, None, topic.into())).await
    }

    /// Where a queue of `topic` ends now, as the broker at `master` has it.
    pub(super) async fn end(&self, topic: &str, queue: &Partition, master: &str) -> Result<u64> {
        let client = self.client().await?;
        let at = MessageQueue::from_parts(topic, &*queue.name, queue.number as i32);
        let asked = OffsetAdmin::max_offset(&*client, master.into(), at, ANSWER.as_millis() as u64);
        let end = call(format!("asking for the end of topic {topic} {queue}"), ANSWER, asked).await?;
        Ok(end.max(0) as u64)
    }

    /// What a queue holds now, as the broker at `master` has it.
    pub(super) async fn bounds(&self, queue: Queue<'_>, master: &str, limit: Duration) -> Result<Bounds> {
        let client = self.client().await?;
        let (what, millis) = (format!("asking for the bounds of {queue}"), limit.as_millis() as u64);
        let (earliest, latest) = futures::try_join!(
            call(&what, limit, OffsetAdmin::min_offset(&*client, master.into(), queue.for_client(), millis)),
            call(&what, limit, OffsetAdmin::max_offset(&*client, master.into(), queue.for_client(), millis)),
        )?;
        Ok(Bounds { earliest: earliest.max(0) as u64, latest: latest.max(0) as u64 })
    }

    /// What the queues of a topic hold now, by their numbers, as the broker at `master` says in one answer: none, if it does
    /// not answer such a question, and not all of them, if it has fewer.
    pub(super) async fn all_bounds(&self, topic: &str, master: &str, limit: Duration) -> Result<BTreeMap<u32, Bounds>> {
        let client = self.client().await?;
        let what = format!("asking for the bounds of topic {topic} at {master}");
        let asked = TopicAdmin::get_topic_stats_info(&*client, master.into(), topic.into());
        // A broker's refusal is an answer.
        let answer = call(
            &what,
            limit,
            asked.map(|answer| match answer {
                Err(error) if code(&error).is_none() => Err(error),
                answer => Ok(answer),
            }),
        );
        let table = answer.await?.map(TopicStatsTable::into_offset_table).unwrap_or_default();
        let bounds = |(queue, offsets): (MessageQueue, TopicOffset)| {
            let (earliest, latest) = (offsets.get_min_offset().max(0) as u64, offsets.get_max_offset().max(0) as u64);
            (queue.queue_id().max(0) as u32, Bounds { earliest, latest })
        };
        Ok(table.into_iter().map(bounds).collect())
    }

    /// The first offset that was stored at this time or later, ms since 1970; behind the last, if none was.
    pub(super) async fn at(&self, queue: Queue<'_>, master: &str, timestamp_ms: i64) -> Result<u64> {
        let client = self.client().await?;
        let (number, time) = (queue.number as i32, timestamp_ms.max(0) as u64);
        let millis = ANSWER.as_millis() as u64;
        let asked = OffsetAdmin::search_offset(&*client, master.into(), queue.topic.into(), number, time, millis);
        call(format!("asking for the offset of a time in {queue}"), ANSWER, asked).await
    }

    /// Stores where `group` stands in a queue: the next offset that it reads.
    pub(super) async fn store(&self, group: &str, queue: Queue<'_>, master: &str, next: u64) -> Result<()> {
        let client = self.client().await?;
        let stored =
            OffsetAdmin::update_consume_offset(&*client, master.into(), group.into(), queue.for_client(), next);
        call(format!("storing where group {group} stands in {queue}"), ANSWER, stored).await
    }

    /// Makes a group of the user's known at a broker, if it is not; one that is keeps its settings.
    pub(super) async fn introduce_group(&self, group: &str, master: &str) -> Result<()> {
        let what = format!("looking for the consumer group {group} at {master}");
        // A broker that creates groups by itself does so when it is asked for one.
        match self.group_at(&what, group, master).await? {
            Err(error) if error.broker_response_code() == Some(NO_GROUP) => self.create_group(group, master).await?,
            found => found.map_err(|error| explained(&what, error))?,
        }
        // Tools find the brokers of a group by its topic for retries, which a consumer would have.
        let retries = format!("%RETRY%{group}");
        let there = self.route(&retries).await?.unwrap_or_default();
        if there.masters.values().all(|address| address != master) {
            let config = TopicConfig::with_perm(retries.as_str(), 1, 1, READABLE | WRITABLE);
            self.create_topic(config, master).await?;
        }
        Ok(())
    }

    /// The consumer groups that the broker at `master` knows.
    pub(super) async fn groups(&self, master: &str) -> Result<BTreeSet<String>> {
        let client = self.client().await?;
        let asked = ConsumerAdmin::get_all_subscription_group(&*client, master.into(), ANSWER.as_millis() as u64);
        let groups = call(format!("asking {master} for its consumer groups"), ANSWER, asked).await?;
        Ok(groups.get_subscription_group_table().keys().map(ToString::to_string).collect())
    }

    /// Who consumes in a group, as the broker at `master` has it.
    pub(super) async fn members(&self, group: &str, master: &str) -> Result<Vec<GroupMember>> {
        let client = self.client().await?;
        let what = format!("asking {master} for the members of group {group}");
        let asked = ConsumerAdmin::examine_consumer_connection_info(&*client, group.into(), Some(master.into()));
        match call(&what, ANSWER, asked.map(Ok)).await? {
            Ok(found) => Ok(found.get_connection_set().iter().map(member).collect()),
            Err(error) if code(&error) == Some(NOT_ONLINE) => Ok(Vec::new()),
            Err(error) => Err(explained(&what, error)),
        }
    }

    /// Where the queues end of every topic that a group has offsets for at the broker at `master`.
    pub(super) async fn followed(&self, group: &str, master: &str) -> Result<Vec<(MessageQueue, u64)>> {
        let client = self.client().await?;
        let limit = Some(ANSWER.as_millis() as u64);
        let asked =
            ConsumerAdmin::examine_consume_stats(&*client, group.into(), None, None, Some(master.into()), limit);
        let found = call(format!("asking {master} how far group {group} is"), ANSWER, asked).await?;
        let ends = found.offset_table.into_iter();
        Ok(ends.map(|(queue, offsets)| (queue, offsets.get_broker_offset().max(0) as u64)).collect())
    }

    /// Looks for a group at a broker; that it is not there is an inner error.
    async fn group_at(&self, what: &str, group: &str, master: &str) -> Result<ClientResult<()>> {
        let client = self.client().await?;
        let asked = ConsumerAdmin::examine_subscription_group_config(&*client, master.into(), group.into());
        call(what, ANSWER, asked.map(|found| Ok(found.map(drop)))).await
    }

    /// Every topic that the name server knows; the answer may take `limit`.
    pub(super) async fn topics(&self, limit: Duration) -> Result<BTreeSet<String>> {
        let client = self.client().await?;
        let what = format!("asking name server {} for its topics", self.name_server);
        let topics = call(&what, limit, TopicAdmin::fetch_all_topic_list(&*client)).await?;
        Ok(topics.topic_list.iter().map(ToString::to_string).collect())
    }

    /// The error for a topic without a route, with the nearest names that have one.
    pub(super) async fn missing(&self, topic: &str) -> Error {
        let hint = self.similar(topic).await;
        Error::usage(format!(
            "there is no topic {topic} at name server {}, or no broker that has it is up{hint}; create it, or correct \
             'topic'",
            self.name_server
        ))
    }

    /// How an error ends that names the topics that are most like this name or pattern.
    pub(super) async fn similar(&self, topic: &str) -> String {
        let known = self.topics(ANSWER).await.unwrap_or_default();
        did_you_mean_of_many(topic, known.iter().map(String::as_str).filter(|name| !is_internal(name)))
    }

    /// Creates a consumer group at a broker.
    pub(super) async fn create_group(&self, group: &str, master: &str) -> Result<()> {
        let client = self.client().await?;
        let config = SubscriptionGroupConfig::new(group.into());
        let created = ConsumerAdmin::create_and_update_subscription_group_config(&*client, master.into(), config);
        call(format!("creating the consumer group {group} at {master}"), ANSWER, created).await
    }

    /// Removes a consumer group and the retry topic that the broker gave it.
    pub(super) async fn remove_group(&self, group: &str, route: &Route) -> Result<()> {
        let client = self.client().await?;
        for (broker, address) in &route.masters {
            let what = format!("removing the private consumer group {group} from {broker}");
            let removed =
                ConsumerAdmin::delete_subscription_group(&*client, address.as_str().into(), group.into(), Some(true));
            call(&what, ANSWER, removed).await?;
            let retries = format!("%RETRY%{group}");
            let brokers = [address.as_str().into()].into_iter().collect();
            call(&what, ANSWER, TopicAdmin::delete_topic_in_broker(&*client, brokers, retries.into())).await?;
        }
        Ok(())
    }

    /// Gives its connections back; asking after it is an error.
    pub(super) async fn close(&self) {
        let client = self.client.write().await.take();
        if let Some(mut client) = client {
            Box::pin(client.shutdown()).await;
        }
    }

    async fn client(&self) -> Result<RwLockReadGuard<'_, DefaultMQAdminExt>> {
        RwLockReadGuard::try_map(self.client.read().await, Option::as_ref)
            .map_err(|_| Error::transient("the connection to RocketMQ is closed already"))
    }
}

/// A member of a group, by its connection.
fn member(connection: &Connection) -> GroupMember {
    let version = RocketMqVersion::from_ordinal(connection.get_version().max(0) as u32);
    GroupMember {
        id: connection.get_client_id().to_string(),
        client: format!("{} {}", connection.get_language(), version.name()),
        host: connection.get_client_addr().to_string(),
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        if let Some(mut client) = self.client.get_mut().take() {
            let runtime = Arc::clone(&self._runtime);
            detach(async move {
                Box::pin(client.shutdown()).await;
                drop(runtime);
            });
        }
    }
}

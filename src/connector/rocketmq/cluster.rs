//! RocketMQ's brokers, looked into: topics with their queues, and consumer groups with where they stand.
//!
//! The idea: the name server says which brokers are up, and each of these is asked at its master's address; what
//! several have to say of one topic or group is put together. The connection is made when it is first needed, and kept.
//!
//! What it does not promise: to know of brokers that are down. What only they have is not there, or is shown as what
//! cannot be reached, as long as the name server still names them; a topic that is dropped meanwhile comes back with
//! them. Nor to see who consumes by POP, whose offsets are kept elsewhere; nor that a broker is found at once when it
//! is back (see `connection`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use rocketmq_model::common::config::TopicConfig;
use rocketmq_model::common::mix_all::is_sys_consumer_group_for_no_cold_read_limit as is_own_group;

use super::admin::{Admin, READABLE, Route, WRITABLE};
use super::calls::ANSWER;
use super::connection::Connection;
use super::groups;
use super::options::{Credentials, check_name, take_access};
use super::topics::{Queue, is_internal};
use crate::clock::Clock;
use crate::connector::cluster::{
    Cluster, GroupDescription, GroupMember, GroupOffset, GroupSummary, OffsetChange, ResetTo, TopicDescription, listed,
    not_taken,
};
use crate::connector::{Bounds, Environment, Offsets, Partition};
use crate::error::{Error, Kind, Result};
use crate::sql::options::{OptionReader, did_you_mean};

/// Questions that are open at a time.
const ASKED_AT_ONCE: usize = 16;
/// Between looks at whether the name server knows a topic that was created.
const PAUSE: Duration = Duration::from_millis(20);

/// What may be done with a topic, as it is written.
const PERMS: [(&str, u32); 3] = [("RW", READABLE | WRITABLE), ("R", READABLE), ("W", WRITABLE)];
/// What messages a topic takes.
const MESSAGE_TYPES: [&str; 4] = ["NORMAL", "FIFO", "DELAY", "TRANSACTION"];
/// The broker's name for that.
const MESSAGE_TYPE: &str = "message.type";
/// How many queues a new topic has on each broker.
const QUEUES: u32 = 8;

/// See the module's text.
pub(super) struct RocketmqCluster {
    options: BTreeMap<String, String>,
    name_server: String,
    credentials: Option<Credentials>,
    clock: Clock,
    connection: Connection<Admin>,
}

impl fmt::Debug for RocketmqCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RocketmqCluster").field("name_server", &self.name_server).finish_non_exhaustive()
    }
}

impl RocketmqCluster {
    /// Of this catalog; nothing is connected yet.
    pub(super) fn try_new(name: &str, options: &BTreeMap<String, String>, environment: &Environment) -> Result<Self> {
        let mut reader = OptionReader::of(format!("catalog {name}"), options);
        let (name_server, credentials) = take_access(&mut reader)?;
        reader.finish()?;
        let (server, user, clock) = (name_server.clone(), credentials.clone(), environment.clock.clone());
        let connection = Connection::new(move || {
            let instance = format!("millstream-{}", clock.random_id());
            let (server, user) = (server.clone(), user.clone());
            Box::pin(async move { Admin::connect(&server, user.as_ref(), &instance).await })
        });
        let (options, clock) = (options.clone(), environment.clock.clone());
        Ok(Self { options, name_server, credentials, clock, connection })
    }

    async fn admin(&self) -> Result<Arc<Admin>> {
        self.connection.client().await
    }

    /// Where a topic is.
    ///
    /// Errors: it is nowhere, with the nearest names that are somewhere.
    async fn route(&self, topic: &str) -> Result<Route> {
        if let Some(route) = self.admin().await?.route(topic).await? {
            return Ok(route);
        }
        let known = self.topics().await?;
        let hint = did_you_mean(topic, known.iter().map(String::as_str));
        Err(Error::usage(format!(
            "there is no topic '{topic}' at name server {}, or no broker that has it is up{hint}",
            self.name_server
        )))
    }

    /// The groups of users, each with the brokers that know it; and the last broker's trouble that did not answer.
    async fn known_groups(&self) -> Result<(BTreeMap<String, Vec<String>>, Option<Error>)> {
        let admin = self.admin().await?;
        let (mut known, mut silent) = (BTreeMap::<String, Vec<String>>::new(), None);
        for (broker, master) in admin.brokers().await?.masters {
            match answered(admin.groups(&master).await)? {
                Ok(groups) => groups
                    .into_iter()
                    .filter(|group| !is_own_group(group))
                    .for_each(|group| known.entry(group).or_default().push(master.clone())),
                Err(error) => silent = Some(error.context(format_args!("broker {broker}"))),
            }
        }
        Ok((known, silent))
    }

    /// Refuses a group that would store over what is stored for it.
    async fn check_idle(&self, group: &str) -> Result<()> {
        let admin = self.admin().await?;
        let masters: Vec<String> = admin.brokers().await?.masters.into_values().collect();
        let members = members(&admin, group, &masters).await?;
        match members.first() {
            None => Ok(()),
            Some(first) => Err(Error::refused(format!(
                "group {group} has members, such as {} at {}; stop its members first",
                first.id, first.host
            ))),
        }
    }

    /// Where a group stands in queues, in their order.
    async fn committed(&self, group: &str, queues: &[(Queue<'_>, Arc<str>)]) -> Result<Vec<Option<u64>>> {
        let instance = format!("millstream-{}-groups", self.clock.random_id());
        groups::committed(&self.name_server, self.credentials.as_ref(), &instance, group, queues).await
    }

    /// Waits until the name server knows a topic at all these brokers: they tell it a moment later.
    async fn await_route(&self, topic: &str, masters: &BTreeMap<String, String>) -> Result<()> {
        let admin = self.admin().await?;
        let known = async {
            loop {
                let route = admin.route(topic).await?.unwrap_or_default();
                if masters.keys().all(|broker| route.masters.contains_key(broker)) {
                    return Ok::<_, Error>(());
                }
                tokio::time::sleep(PAUSE).await;
            }
        };
        tokio::time::timeout(ANSWER, known).await.unwrap_or_else(|_| {
            Err(Error::transient(format!(
                "topic {topic} is created, but name server {} does not know it yet at all brokers; look again later",
                self.name_server
            )))
        })
    }
}

#[async_trait]
impl Cluster for RocketmqCluster {
    async fn topics(&self) -> Result<Vec<String>> {
        let admin = self.admin().await?;
        let (topics, brokers) = (admin.topics(ANSWER).await?, admin.brokers().await?);
        Ok(topics.into_iter().filter(|topic| !is_internal(topic) && !brokers.names.contains(topic)).collect())
    }

    async fn topic(&self, name: &str) -> Result<TopicDescription> {
        let (admin, route) = (self.admin().await?, self.route(name).await?);
        let (mut said, mut silent) = (BTreeMap::new(), BTreeMap::new());
        for (broker, master) in &route.masters {
            match answered(admin.config(name, master).await)? {
                Ok(config) => drop(said.insert(broker.clone(), settings(&config))),
                Err(error) => drop(silent.insert(broker.as_str(), error.chain())),
            }
        }
        let (mut reached, mut details) = (vec![], BTreeMap::new());
        for partition in queues(&route) {
            let (broker, located) = (&*partition.name, locate(name, partition, &route.masters));
            let detail = match (located, silent.get(broker)) {
                (Ok((queue, master)), None) => {
                    let detail = master.to_string();
                    reached.push((queue, master));
                    detail
                }
                (Ok((_, master)), Some(reason)) => format!("{master}; cannot be reached: {reason}"),
                (Err(error), _) => format!("{broker}; cannot be reached: {error}"),
            };
            details.insert(partition.clone(), detail);
        }
        let partitions = bounds(&admin, &reached).await?;
        Ok(TopicDescription { partitions, details, settings: together(said) })
    }

    async fn create_topic(&self, name: &str, options: &BTreeMap<String, String>) -> Result<()> {
        check_name("topic", name)?;
        refuse_internal(name)?;
        let config = new_topic(name, options)?;
        let admin = self.admin().await?;
        if admin.route(name).await?.is_some() {
            return Err(Error::usage(format!("topic {name} exists already")));
        }
        let masters = admin.brokers().await?.masters;
        if masters.is_empty() {
            return Err(Error::transient(format!("name server {} knows no broker now", self.name_server)));
        }
        for (made, master) in masters.values().enumerate() {
            admin.create_topic(config.clone(), master).await.map_err(|error| match made {
                0 => error,
                _ => error.context(format_args!(
                    "topic {name} was created at {made} of {} brokers; DROP TOPIC, then create it again",
                    masters.len()
                )),
            })?;
        }
        self.await_route(name, &masters).await
    }

    async fn drop_topic(&self, name: &str) -> Result<()> {
        refuse_internal(name)?;
        let (admin, route) = (self.admin().await?, self.route(name).await?);
        admin.remove_topic(name, &route).await
    }

    async fn groups(&self) -> Result<Vec<GroupSummary>> {
        let (admin, (known, silent)) = (self.admin().await?, self.known_groups().await?);
        match silent {
            Some(error) if known.is_empty() => return Err(error),
            Some(error) => tracing::warn!(error = %error.chain(), "groups that only this broker knows are not shown"),
            None => {}
        }
        let summary = |(name, masters): (String, Vec<String>)| {
            let admin = Arc::clone(&admin);
            let asked = async move {
                let members = members(&admin, &name, &masters).await?.len();
                Ok::<_, Error>(GroupSummary { name, state: state(members), members })
            };
            asked.boxed()
        };
        all(known.into_iter().map(summary).collect()).await
    }

    async fn group(&self, name: &str) -> Result<GroupDescription> {
        let (admin, (mut known, silent)) = (self.admin().await?, self.known_groups().await?);
        let Some(masters) = known.remove(name) else {
            let hint = did_you_mean(name, known.keys().map(String::as_str));
            let nowhere =
                || Error::usage(format!("there is no group '{name}' at name server {}{hint}", self.name_server));
            return Err(silent.unwrap_or_else(nowhere));
        };
        let mut followed = Vec::new();
        for master in &masters {
            let master: Arc<str> = master.as_str().into();
            let queues = admin.followed(name, &master).await?;
            followed.extend(queues.into_iter().map(|(queue, end)| (queue, end, Arc::clone(&master))));
        }
        let queues = followed.iter().map(|(queue, _, master)| (Queue::of_client(queue), Arc::clone(master)));
        let queues: Vec<(Queue<'_>, Arc<str>)> = queues.collect();
        let committed = self.committed(name, &queues).await?;
        let mut offsets = Vec::with_capacity(queues.len());
        for (((queue, _), (_, end, _)), committed) in queues.iter().zip(&followed).zip(committed) {
            let (topic, partition) = (queue.topic.to_string(), partition(queue));
            offsets.push(GroupOffset { topic, partition, committed, end: Some(*end) });
        }
        offsets.sort_by(|one, other| (&one.topic, &one.partition).cmp(&(&other.topic, &other.partition)));
        let members = members(&admin, name, &masters).await?;
        let state = match silent {
            Some(error) => {
                format!("{}; where it stands at one broker is not known: {}", state(members.len()), error.chain())
            }
            None => state(members.len()),
        };
        Ok(GroupDescription { state, offsets, members })
    }

    async fn plan_reset(&self, group: &str, topic: &str, to: &ResetTo) -> Result<Vec<OffsetChange>> {
        check_name("group", group)?;
        refuse_own_group(group)?;
        self.check_idle(group).await?;
        let (admin, route) = (self.admin().await?, self.route(topic).await?);
        let mut queues = located(topic, &route)?;
        let bounds = bounds(&admin, &queues).await?;
        let targets: Offsets = match to {
            ResetTo::Earliest => bounds.into_iter().map(|(queue, bounds)| (queue, bounds.earliest)).collect(),
            ResetTo::Latest => bounds.into_iter().map(|(queue, bounds)| (queue, bounds.latest)).collect(),
            ResetTo::Timestamp(time) => at(&admin, &queues, *time).await?,
            ResetTo::Offsets(written) => listed(topic, written, &bounds)?,
        };
        queues.retain(|(queue, _)| targets.contains_key(&partition(queue)));
        let committed = self.committed(group, &queues).await?;
        let changes = queues.iter().zip(committed).filter_map(|((queue, _), from)| {
            let partition = partition(queue);
            let to = *targets.get(&partition)?;
            Some(OffsetChange { topic: topic.into(), partition, from, to })
        });
        Ok(changes.collect())
    }

    async fn reset(&self, group: &str, changes: &[OffsetChange]) -> Result<()> {
        self.check_idle(group).await?;
        let admin = self.admin().await?;
        let masters = admin.brokers().await?.masters;
        let mut queues: Vec<(Queue<'_>, Arc<str>)> = Vec::with_capacity(changes.len());
        for OffsetChange { topic, partition, .. } in changes {
            queues.push(locate(topic, partition, &masters)?);
        }
        // Offsets are only stored for a group that the broker knows.
        let brokers: BTreeSet<&Arc<str>> = queues.iter().map(|(_, master)| master).collect();
        for master in brokers {
            admin.introduce_group(group, master).await?;
        }
        for ((queue, master), change) in queues.iter().zip(changes) {
            admin.store(group, *queue, master, change.to).await.map_err(|error| {
                error.context(format_args!("group {group} may be reset in part, as DESCRIBE GROUP shows"))
            })?;
        }
        let stored = self.committed(group, &queues).await?;
        match stored.iter().zip(changes).all(|(stored, change)| *stored == Some(change.to)) {
            true => Ok(()),
            false => Err(not_taken(group)),
        }
    }

    fn table_options(&self, topic: &str) -> BTreeMap<String, String> {
        let mut options = self.options.clone();
        options.insert("connector".into(), "rocketmq".into());
        options.insert("topic".into(), topic.into());
        options
    }
}

/// What these futures give, in their order; some of them run at a time.
async fn all<T, C: Default + Extend<T>>(asked: Vec<BoxFuture<'_, Result<T>>>) -> Result<C> {
    stream::iter(asked).buffered(ASKED_AT_ONCE).try_collect().await
}

fn refuse_internal(topic: &str) -> Result<()> {
    match is_internal(topic) {
        true => Err(Error::refused(format!("topic {topic} is RocketMQ's own"))),
        false => Ok(()),
    }
}

fn refuse_own_group(group: &str) -> Result<()> {
    match is_own_group(group) {
        true => Err(Error::refused(format!("group {group} is RocketMQ's own; it is not reset"))),
        false => Ok(()),
    }
}

/// A broker's answer; the inner error says that there is none now.
fn answered<T>(answer: Result<T>) -> Result<Result<T>> {
    match answer {
        Err(error) if error.kind() != Kind::Transient => Err(error),
        answer => Ok(answer),
    }
}

/// What a new topic is to be on each broker.
fn new_topic(name: &str, options: &BTreeMap<String, String>) -> Result<TopicConfig> {
    let mut reader = OptionReader::of(format!("topic {name}"), options);
    let queues = reader.parsed::<NonZeroU16>("queues", "a number from 1 to 65535")?;
    let queues = queues.map_or(QUEUES, |queues| queues.get().into());
    let perm = reader.choice("perm", &PERMS)?.unwrap_or(READABLE | WRITABLE);
    let message_types = MESSAGE_TYPES.map(|name| (name, name));
    let message_type = reader.choice("message-type", &message_types)?.unwrap_or(MESSAGE_TYPES[0]);
    reader.finish()?;
    let mut config = TopicConfig::with_perm(name, queues, queues, perm);
    // The plus adds an attribute.
    config.attributes.insert(format!("+{MESSAGE_TYPE}").into(), message_type.into());
    Ok(config)
}

/// What a topic is on one broker, in the words of [`new_topic`] where it has some.
fn settings(config: &TopicConfig) -> BTreeMap<String, String> {
    let attributes = config.attributes.iter().map(|(name, value)| (name.to_string(), value.to_string()));
    let mut settings: BTreeMap<String, String> = attributes.collect();
    let message_type = settings.remove(MESSAGE_TYPE).unwrap_or_else(|| MESSAGE_TYPES[0].into());
    let allowed = config.perm & (READABLE | WRITABLE);
    let perm = PERMS.iter().find(|(_, bits)| *bits == allowed).map_or("none", |(name, _)| *name);
    settings.insert("message-type".into(), message_type);
    settings.insert("order".into(), config.order.to_string());
    settings.insert("perm".into(), perm.into());
    settings.insert("read-queues".into(), config.read_queue_nums.to_string());
    settings.insert("write-queues".into(), config.write_queue_nums.to_string());
    settings
}

/// What brokers say of a topic; where they do not agree, which of them says what.
fn together(said: BTreeMap<String, BTreeMap<String, String>>) -> BTreeMap<String, String> {
    let mut by_value: BTreeMap<String, BTreeMap<String, Vec<String>>> = BTreeMap::new();
    for (broker, settings) in said {
        for (name, value) in settings {
            by_value.entry(name).or_default().entry(value).or_default().push(broker.clone());
        }
    }
    let merged = |values: BTreeMap<String, Vec<String>>| match values.len() {
        1 => values.into_keys().collect::<String>(),
        _ => {
            let each = values.into_iter().map(|(value, brokers)| format!("{value} ({})", brokers.join(", ")));
            each.collect::<Vec<_>>().join(", ")
        }
    };
    by_value.into_iter().map(|(name, values)| (name, merged(values))).collect()
}

/// The queues of a topic in order, each with the address of its master.
fn located<'a>(topic: &'a str, route: &'a Route) -> Result<Vec<(Queue<'a>, Arc<str>)>> {
    queues(route).into_iter().map(|partition| locate(topic, partition, &route.masters)).collect()
}

/// The queues of a topic, in order.
fn queues(route: &Route) -> BTreeSet<&Partition> {
    route.readable.iter().chain(&route.writable).collect()
}

/// A queue, with the address of its master.
fn locate<'a>(
    topic: &'a str,
    partition: &'a Partition,
    masters: &BTreeMap<String, String>,
) -> Result<(Queue<'a>, Arc<str>)> {
    let queue = Queue { topic, broker: &partition.name, number: partition.number };
    match masters.get(queue.broker) {
        Some(master) => Ok((queue, master.as_str().into())),
        None => Err(Error::transient(format!(
            "the name server knows no master of {queue} now; its broker is down, or about to be"
        ))),
    }
}

/// A queue, where its topic is known.
fn partition(queue: &Queue<'_>) -> Partition {
    Partition::new(queue.broker, queue.number)
}

/// What queues hold now.
async fn bounds(admin: &Admin, queues: &[(Queue<'_>, Arc<str>)]) -> Result<BTreeMap<Partition, Bounds>> {
    let mut asked = Vec::with_capacity(queues.len());
    for (queue, master) in queues {
        let one = async move { Ok::<_, Error>((partition(queue), admin.bounds(*queue, master, ANSWER).await?)) };
        asked.push(one.boxed());
    }
    all(asked).await
}

/// The first offsets that were stored at this time or later, ms since 1970; behind the last, where none was.
async fn at(admin: &Admin, queues: &[(Queue<'_>, Arc<str>)], time: i64) -> Result<Offsets> {
    let mut asked = Vec::with_capacity(queues.len());
    for (queue, master) in queues {
        let one = async move { Ok::<_, Error>((partition(queue), admin.at(*queue, master, time).await?)) };
        asked.push(one.boxed());
    }
    all(asked).await
}

/// Who consumes in a group, as these brokers have it: most members are connected to all of them.
async fn members(admin: &Admin, group: &str, masters: &[String]) -> Result<Vec<GroupMember>> {
    let mut members = BTreeMap::new();
    for master in masters {
        for member in admin.members(group, master).await? {
            members.entry(member.id.clone()).or_insert(member);
        }
    }
    Ok(members.into_values().collect())
}

fn state(members: usize) -> String {
    if members > 0 { "online".into() } else { "offline".into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(given: &[(&str, &str)]) -> BTreeMap<String, String> {
        given.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
    }

    #[test]
    fn a_new_topic_is_shown_in_the_words_that_made_it() {
        let mut config = new_topic("t", &options(&[("queues", "3"), ("perm", "R"), ("message-type", "FIFO")])).unwrap();
        assert_eq!((config.read_queue_nums, config.write_queue_nums), (3, 3));
        // The broker keeps an attribute without the plus.
        let attributes = config.attributes.drain().map(|(name, value)| (name.trim_start_matches('+').into(), value));
        config.attributes = attributes.collect();
        let shown = [("message-type", "FIFO"), ("order", "false"), ("perm", "R")];
        assert_eq!(settings(&config), options(&[&shown[..], &[("read-queues", "3"), ("write-queues", "3")]].concat()));
        assert_eq!(new_topic("t", &options(&[])).unwrap().write_queue_nums, 8);
    }

    #[test]
    fn what_a_topic_cannot_be_is_refused_by_name() {
        for (key, value, part) in [
            ("queue", "3", "topic t: there is no option 'queue'; did you mean 'queues'?"),
            ("queues", "0", "topic t: option 'queues': '0' is not a number from 1 to 65535"),
            ("message-type", "FIFA", "did you mean 'FIFO'?"),
            ("perm", "X", "'X' is no choice"),
        ] {
            let error = new_topic("t", &options(&[(key, value)])).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn only_what_does_not_answer_is_left_out() {
        assert_eq!(answered(Ok(1)).unwrap().unwrap(), 1);
        assert_eq!(answered::<()>(Err(Error::transient("down"))).unwrap().unwrap_err().to_string(), "down");
        assert_eq!(answered::<()>(Err(Error::refused("denied"))).unwrap_err().to_string(), "denied");
    }

    #[test]
    fn groups_of_rocketmq_itself_are_not_reset() {
        for group in ["TOOLS_CONSUMER", "CID_RMQ_SYS_TRANS"] {
            let error = refuse_own_group(group).unwrap_err().to_string();
            assert_eq!(error, format!("group {group} is RocketMQ's own; it is not reset"));
        }
        refuse_own_group("billing").unwrap();
    }

    #[test]
    fn brokers_that_do_not_agree_are_named() {
        let said = [("a", "8"), ("b", "4"), ("c", "8")];
        let said =
            said.map(|(broker, queues)| (broker.to_string(), options(&[("perm", "RW"), ("read-queues", queues)])));
        let shown = together(said.into());
        assert_eq!(shown, options(&[("perm", "RW"), ("read-queues", "4 (b), 8 (a, c)")]));
    }

    #[test]
    fn a_table_of_a_catalog_connects_as_it_does() {
        let environment = crate::connector::contract::fixture::environment();
        // A variable that every process has.
        let given = options(&[("name-server", "a:9876"), ("access-key", "me"), ("secret-key", "${env:PATH}")]);
        let cluster = RocketmqCluster::try_new("r", &given, &environment).unwrap();
        let mut expected = given.clone();
        expected.extend(options(&[("connector", "rocketmq"), ("topic", "orders")]));
        assert_eq!(cluster.table_options("orders"), expected);
        assert!(!format!("{cluster:?}").contains("secret-key"));
        for (wrong, part) in [
            (options(&[]), "catalog r: the option 'name-server' is missing"),
            (options(&[("name-server", "a:1"), ("topic", "x")]), "catalog r: there is no option 'topic'"),
            (options(&[("name-server", "a:1"), ("access-key", "x")]), "'access-key' needs 'secret-key' beside it"),
        ] {
            let error = RocketmqCluster::try_new("r", &wrong, &environment).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}

//! Topics and consumer groups of a cluster: looked at, made, dropped, reset.
//!
//! The idea: a client that is of no group asks about topics and groups, so that troubles are told as they are for a
//! table; rdkafka's admin client changes topics. The offsets of a group are read and written by a client of that group
//! that never joins it, which the brokers allow as long as nobody else has.
//!
//! Guarantee: ends are those that Kafka's own tools show, also where transactions are open. A group with members is not
//! reset: the brokers themselves refuse it, and what was committed is read again.
//!
//! Not promised: the members of a group of Kafka's newer protocol (KIP-848), of which rdkafka learns only that it exists.
//! All calls block: they belong on a blocking thread.

use std::collections::{BTreeMap, BTreeSet};
use std::thread::sleep;
use std::time::Duration;

use futures::executor::block_on;
use rdkafka::admin::{
    AdminClient, AdminOptions, ConfigEntry, ConfigSource, NewTopic, ResourceSpecifier, TopicReplication, TopicResult,
};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};
use rdkafka::groups::{GroupInfo, GroupMemberInfo};

use super::client::{ANSWER, Client, Events, Leaders, unusable};
use super::group::explain;
use super::options::is_legal;
use super::properties::Properties;
use crate::connector::cluster::{
    GroupDescription, GroupMember, GroupOffset, GroupSummary, OffsetChange, ResetTo, TopicDescription, listed,
    not_taken,
};
use crate::connector::{Bounds, Offsets, Partition};
use crate::error::{Error, Kind, Result};
use crate::sql::options::{OptionReader, did_you_mean, did_you_mean_of_many, display_options};

/// The options of a new topic that are no settings of the broker.
const SHAPE: [&str; 2] = ["partitions", "replication-factor"];

/// Settings that are shown also where a topic has the brokers' own.
const ALWAYS: [&str; 3] = ["cleanup.policy", "max.message.bytes", "retention.ms"];

/// The brokers' own topics. Others may begin with `__` as well, such as Debezium's.
const OWN: [&str; 4] = ["__consumer_offsets", "__remote_log_metadata", "__share_group_state", "__transaction_state"];

/// How often, and how far apart, it is looked for what was just changed.
const LOOKS: (usize, Duration) = (100, Duration::from_millis(100));

/// Who asks, and acts.
#[derive(Debug)]
pub(super) struct Admin {
    properties: Properties,
    client: Client,
}

impl Admin {
    /// Of the cluster that these properties name. It connects when it is first asked.
    pub(super) fn try_new(properties: Properties) -> Result<Self> {
        let client = Client::try_new(&properties.uncommitted())?;
        Ok(Self { properties, client })
    }

    /// Asks one of the questions below. Once it is answered, earlier trouble explains no later one.
    pub(super) fn ask<T>(&self, ask: impl FnOnce(&Self) -> Result<T>) -> Result<T> {
        let answer = ask(self)?;
        self.client.events().clear();
        Ok(answer)
    }

    /// The names of all topics but the brokers' own.
    pub(super) fn topics(&self) -> Result<Vec<String>> {
        let leaders = self.client.search(|topic| !OWN.contains(&topic))?;
        Ok(topics_of(leaders.keys()).into_iter().map(str::to_string).collect())
    }

    /// A topic as it is now.
    pub(super) fn topic(&self, name: &str) -> Result<TopicDescription> {
        let extent = self.client.extent(&self.client.partitions(name, Kind::Usage)?)?;
        let mut details = self.client.placement(name)?;
        for (partition, reason) in extent.unreachable {
            let details = details.entry(partition).or_default();
            *details = format!("{details}; cannot be reached: {reason}");
        }
        let is_shown =
            |entry: &ConfigEntry| entry.source == ConfigSource::DynamicTopic || ALWAYS.contains(&entry.name.as_str());
        let settings = self.settings(name)?.into_iter().filter(is_shown);
        let settings = settings.map(|entry| (entry.name, entry.value.unwrap_or_default())).collect();
        Ok(TopicDescription { partitions: extent.partitions, details, settings })
    }

    /// The partitions of a topic; none, if there is no such topic.
    pub(super) fn find(&self, topic: &str) -> Result<Option<Leaders>> {
        self.client.find(topic)
    }

    /// All settings of a topic; none, where the user may not see them.
    pub(super) fn settings(&self, topic: &str) -> Result<Vec<ConfigEntry>> {
        let described = block_on(self.connect()?.describe_configs([&ResourceSpecifier::Topic(topic)], &patience()));
        let described = described
            .map_err(|e| Error::transient(format!("topic {topic}: its settings cannot be read")).caused_by(e))?;
        Ok(described.into_iter().filter_map(std::result::Result::ok).flat_map(|resource| resource.entries).collect())
    }

    /// Makes a topic of these options, and waits until it can be used.
    pub(super) fn create(&self, name: &str, options: &BTreeMap<String, String>) -> Result<()> {
        if !is_legal(name) {
            return Err(Error::usage(format!(
                "'{name}' cannot be a topic; a name has 1 to 249 letters, digits, '.', '_' or '-'"
            )));
        }
        let mut reader = OptionReader::of(format!("topic {name}"), options);
        let [partitions, replicas] = SHAPE.map(|option| reader.with(option, "a number, at least 1", count));
        let (partitions, replicas) = (partitions?, replicas?);
        let mut settings = reader.prefixed("")?;
        settings.retain(|key, _| !SHAPE.contains(&key.as_str()));
        if self.client.find(name)?.is_some() {
            return Err(exists(name));
        }
        // Below zero is what the brokers' own defaults say.
        let mut topic = NewTopic::new(name, partitions.unwrap_or(-1), TopicReplication::Fixed(replicas.unwrap_or(-1)));
        topic.config = settings.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        match self.make(&topic)? {
            None => self.wait_for_leaders(name),
            Some(Code::TopicAlreadyExists) => Err(exists(name)),
            Some(Code::InvalidConfig) => Err(self.wrong_setting(name, &settings)),
            Some(Code::InvalidReplicationFactor) => Err(Error::usage(format!(
                "topic {name}: option 'replication-factor': the cluster has fewer brokers than that"
            ))),
            Some(code) => Err(forbidden(name, "created", code, "CREATE")),
        }
    }

    /// Asks the brokers for a new topic; what they object to, if they do. It cannot be used at once.
    pub(super) fn make(&self, topic: &NewTopic<'_>) -> Result<Option<Code>> {
        refused(topic.name, block_on(self.connect()?.create_topics([topic], &patience())))
    }

    /// Waits until all partitions of a topic that was just made have leaders, and these answer.
    pub(super) fn wait_for_leaders(&self, topic: &str) -> Result<()> {
        let is_whole = |leaders: Option<Leaders>| {
            let Some(leaders) = leaders.filter(|all| all.values().all(|leader| *leader >= 0)) else { return false };
            let all: Vec<Partition> = leaders.into_keys().collect();
            self.client.bounds(&all, 1).is_ok_and(|extent| extent.unreachable.is_empty())
        };
        self.wait(topic, is_whole).map_err(|error| error.context(format_args!("topic {topic} was created")))
    }

    /// Why the brokers do not take these settings: they do not say which one it is.
    fn wrong_setting(&self, name: &str, settings: &BTreeMap<String, String>) -> Error {
        let known = self.known_settings().unwrap_or_default();
        match settings.keys().find(|key| !known.is_empty() && !known.contains(*key)) {
            Some(key) => {
                let hint = did_you_mean(key, known.iter().map(String::as_str).chain(SHAPE));
                Error::usage(format!("topic {name}: there is no setting '{key}'{hint}"))
            }
            None => Error::usage(format!(
                "topic {name}: the brokers do not take a value of these settings: {}",
                display_options(settings)
            )),
        }
    }

    /// The names of all settings that a topic can have, as any topic of the cluster shows them.
    fn known_settings(&self) -> Result<BTreeSet<String>> {
        let leaders = self.client.search(|_| true)?;
        let Some(any) = leaders.keys().next() else { return Ok(BTreeSet::new()) };
        Ok(self.settings(&any.name)?.into_iter().map(|entry| entry.name).collect())
    }

    /// Removes a topic, and waits until it is gone.
    pub(super) fn delete(&self, name: &str) -> Result<()> {
        if OWN.contains(&name) {
            return Err(Error::refused(format!("topic {name} is the brokers' own; it is not dropped")));
        }
        self.client.partitions(name, Kind::Usage)?;
        let dropped = block_on(self.connect()?.delete_topics(&[name], &patience()));
        match refused(name, dropped)? {
            None | Some(Code::UnknownTopicOrPartition) => {}
            Some(code) => return Err(forbidden(name, "dropped", code, "DELETE")),
        }
        let is_gone = |leaders: Option<Leaders>| leaders.is_none();
        self.wait(name, is_gone).map_err(|error| error.context(format_args!("topic {name} was dropped")))
    }

    /// Waits until the brokers say so: they hear of a change a moment later.
    fn wait(&self, topic: &str, is_so: impl Fn(Option<Leaders>) -> bool) -> Result<()> {
        let (looks, pause) = LOOKS;
        for _ in 0..looks {
            if is_so(self.client.find(topic)?) {
                return Ok(());
            }
            sleep(pause);
        }
        Err(Error::transient("the brokers do not show it yet"))
    }

    fn connect(&self) -> Result<AdminClient<Events>> {
        self.properties.consumer().create_with_context(Events::default()).map_err(unusable)
    }

    /// All groups, ascending.
    pub(super) fn groups(&self) -> Result<Vec<GroupSummary>> {
        let list = self.client.groups(None)?;
        let mut groups: Vec<GroupSummary> = list.groups().iter().map(summary).collect();
        groups.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(groups)
    }

    /// A group as it is now. Where it stands is asked of all partitions that there are: it does not say itself.
    pub(super) fn group(&self, name: &str) -> Result<GroupDescription> {
        let list = self.client.groups(Some(name))?;
        let Some(found) = list.groups().first() else { return Err(self.no_group(name)) };
        let mut leaders = self.client.search(|_| true)?;
        let all: Vec<Partition> = leaders.keys().cloned().collect();
        let committed = committed(&self.of_group(name)?, name, &all)?;
        let topics = topics_of(committed.keys());
        leaders.retain(|partition, _| topics.contains(&*partition.name));
        let extent = self.client.extent(&leaders)?;
        let offset = |partition: Partition| GroupOffset {
            topic: partition.name.to_string(),
            committed: committed.get(&partition).copied(),
            end: extent.partitions.get(&partition).map(|bounds| bounds.latest),
            partition,
        };
        Ok(GroupDescription {
            state: state(found),
            offsets: leaders.into_keys().map(offset).collect(),
            members: found.members().iter().map(member).collect(),
        })
    }

    fn no_group(&self, name: &str) -> Error {
        let known = self.groups().unwrap_or_default();
        let hint = did_you_mean_of_many(name, known.iter().map(|group| group.name.as_str()));
        Error::usage(format!("there is no group '{name}'{hint}"))
    }

    /// What a reset would do. A group that nobody knows yet is as good as any: it begins there.
    pub(super) fn plan_reset(&self, group: &str, topic: &str, to: &ResetTo) -> Result<Vec<OffsetChange>> {
        if self.client.groups(Some(group))?.groups().first().is_some_and(|found| !found.members().is_empty()) {
            return Err(active(group));
        }
        let bounds = self.bounds(&self.client.partitions(topic, Kind::Usage)?)?;
        let all: Vec<Partition> = bounds.keys().cloned().collect();
        let committed = committed(&self.of_group(group)?, group, &all)?;
        let next: Offsets = match to {
            ResetTo::Earliest => bounds.into_iter().map(|(partition, bounds)| (partition, bounds.earliest)).collect(),
            ResetTo::Latest => bounds.into_iter().map(|(partition, bounds)| (partition, bounds.latest)).collect(),
            ResetTo::Timestamp(at_ms) => {
                let found = self.client.at(&all, *at_ms)?;
                let offset = |(partition, bounds): (Partition, Bounds)| {
                    let offset = found.get(&partition).copied().unwrap_or(bounds.latest);
                    (partition, offset)
                };
                bounds.into_iter().map(offset).collect()
            }
            ResetTo::Offsets(given) => listed(topic, given, &bounds)?,
        };
        let change = |(partition, to): (Partition, u64)| {
            let (topic, from) = (topic.to_string(), committed.get(&partition).copied());
            OffsetChange { topic, partition, from, to }
        };
        Ok(next.into_iter().map(change).collect())
    }

    /// Commits what was planned, and looks whether it is there.
    pub(super) fn reset(&self, group: &str, changes: &[OffsetChange]) -> Result<()> {
        let next: Offsets = changes.iter().map(|change| (change.partition.clone(), change.to)).collect();
        let all: Vec<Partition> = next.keys().cloned().collect();
        let client = self.of_group(group)?;
        // Asking waits for the group's coordinator, and a commit does not for long.
        committed(&client, group, &all)?;
        client.commit(&next).map_err(|error| match error.rdkafka_error_code() {
            Some(Code::UnknownMemberId | Code::IllegalGeneration | Code::RebalanceInProgress) => active(group),
            _ => explain(&client, &error).context(format_args!("group {group}")),
        })?;
        match committed(&client, group, &all)? == next {
            true => Ok(()),
            false => Err(not_taken(group)),
        }
    }

    /// What partitions hold; all of them must be reached.
    fn bounds(&self, leaders: &Leaders) -> Result<BTreeMap<Partition, Bounds>> {
        let extent = self.client.extent(leaders)?;
        match extent.unreachable.first_key_value() {
            Some((partition, reason)) => Err(Error::transient(format!("{partition} cannot be reached: {reason}"))),
            None => Ok(extent.partitions),
        }
    }

    /// A client of a group, which never joins it.
    fn of_group(&self, group: &str) -> Result<Client> {
        let mut config = self.properties.of_group(group);
        // Offsets that a transaction may yet commit are no reason to wait.
        config.set("isolation.level", "read_uncommitted");
        Client::try_new(&config)
    }
}

/// How long a change is waited for.
fn patience() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(ANSWER)).request_timeout(Some(ANSWER))
}

/// What the brokers object to, if they do.
fn refused(topic: &str, answers: KafkaResult<Vec<TopicResult>>) -> Result<Option<Code>> {
    match answers {
        Ok(answers) => Ok(answers.into_iter().find_map(|answer| answer.err().map(|(_, code)| code))),
        Err(KafkaError::AdminOpCreation(reason)) => Err(Error::usage(format!("topic {topic}: {reason}"))),
        Err(error) => Err(Error::transient(format!("topic {topic}: no answer")).caused_by(error)),
    }
}

/// The error for what the brokers do not do; `needed` is the right that it takes.
fn forbidden(topic: &str, what: &str, code: Code, needed: &str) -> Error {
    let hint = match code {
        Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed => {
            format!("; the user needs {needed} on the topic")
        }
        _ => String::new(),
    };
    Error::refused(format!("topic {topic} cannot be {what}: {code}{hint}"))
}

fn exists(topic: &str) -> Error {
    Error::usage(format!("topic {topic} exists already"))
}

fn active(group: &str) -> Error {
    Error::refused(format!("group {group} has members; stop its members first"))
}

fn topics_of<'a>(partitions: impl Iterator<Item = &'a Partition>) -> BTreeSet<&'a str> {
    partitions.map(|partition| &*partition.name).collect()
}

fn count(text: &str) -> Option<i32> {
    text.trim().parse().ok().filter(|count| *count > 0)
}

/// The next offsets of a group, where it has any.
fn committed(client: &Client, group: &str, partitions: &[Partition]) -> Result<Offsets> {
    match partitions {
        [] => Ok(Offsets::new()),
        _ => client.committed(partitions).map_err(|error| error.context(format_args!("group {group}"))),
    }
}

fn summary(group: &GroupInfo) -> GroupSummary {
    GroupSummary { name: group.name().to_string(), state: state(group), members: group.members().len() }
}

/// The state of a group. One that is listed is not dead: brokers say so of the groups of a protocol that they were not
/// asked in.
fn state(group: &GroupInfo) -> String {
    match group.state() {
        "Dead" | "" => "Unknown".into(),
        state => state.into(),
    }
}

fn member(member: &GroupMemberInfo) -> GroupMember {
    GroupMember {
        id: member.id().to_string(),
        client: member.client_id().to_string(),
        host: member.client_host().trim_start_matches('/').to_string(),
    }
}

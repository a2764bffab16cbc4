//! A connection to a cluster: what it holds, and why it does not answer.
//!
//! The idea: librdkafka tries again by itself for as long as it is asked to, and says why only in events. A [`Client`]
//! collects the last reason, so that an error can name it, and ends the wait at once where trying again is no use
//! (a refused password). Where librdkafka does not try again, it does (a group whose coordinator is yet to begin).
//!
//! Guarantee: one question to the cluster ends within about eight seconds ([`ANSWER`]). To look at partitions takes
//! several, and where some brokers answer, about two seconds for each that is silent. All calls block: they belong on a
//! blocking thread.

use std::collections::BTreeMap;
use std::slice::from_ref;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};
use rdkafka::groups::GroupList;
use rdkafka::metadata::{Metadata, MetadataPartition, MetadataTopic};
use rdkafka::{Offset, TopicPartitionList};

use crate::connector::{Bounds, Extent, Offsets, Partition};
use crate::error::{Error, Kind, Result};
use crate::sql::options::did_you_mean_of_many;

/// How long one attempt to get an answer takes at most.
const ATTEMPT: Duration = Duration::from_secs(2);

/// How often an answer is tried for.
const ATTEMPTS: usize = 4;

/// How often within an attempt a coordinator is asked that does not serve yet, and how long it is left alone between.
const LOOKS: (usize, Duration) = (20, Duration::from_millis(100));

/// After this long, about, there was an answer or there is none.
pub(super) const ANSWER: Duration = ATTEMPT.saturating_mul(ATTEMPTS as u32);

/// Receives librdkafka's log and the reasons of its trouble.
#[derive(Debug, Default)]
pub(super) struct Events {
    last: Mutex<Option<(Code, String)>>,
}

impl Events {
    fn last(&self) -> Option<(Code, String)> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What there was of trouble is over.
    pub(super) fn clear(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// `: reason`, or nothing.
    pub(super) fn reason(&self) -> String {
        self.last().map(|(_, reason)| format!(": {reason}")).unwrap_or_default()
    }

    /// The reason for which trying again is no use, if there is one.
    pub(super) fn refusal(&self) -> Option<Error> {
        match self.last()? {
            (code, reason) if is_forbidden(code) => {
                Some(Error::refused(format!("the cluster does not allow it: {reason}")))
            }
            (code, reason) if is_refusal(code) => Some(Error::refused(format!(
                "the cluster refused the connection: {reason}; check the options 'properties.security.protocol', \
                 'properties.sasl.*' and 'properties.ssl.*'"
            ))),
            _ => None,
        }
    }
}

impl ClientContext for Events {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        match level {
            // Properties of the other role, and what an error event says as well.
            _ if facility == "CONFWARN" || facility == "FAIL" => tracing::debug!(target: "kafka", "{facility}: {line}"),
            RDKafkaLogLevel::Debug | RDKafkaLogLevel::Info => tracing::debug!(target: "kafka", "{facility}: {line}"),
            RDKafkaLogLevel::Notice => tracing::info!(target: "kafka", "{facility}: {line}"),
            _ => tracing::warn!(target: "kafka", "{facility}: {line}"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "kafka", "{error}: {reason}");
        let Some(code) = error.rdkafka_error_code() else { return };
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        // That all brokers are down says less than why one of them is; and a refusal is not to be covered up.
        if last.is_none() || (code != Code::AllBrokersDown && !last.as_ref().is_some_and(|(code, _)| is_refusal(*code)))
        {
            *last = Some((code, reason.trim_end_matches('.').to_string()));
        }
    }
}

impl ConsumerContext for Events {}

/// Whether this is an answer that will not change by asking again.
pub(super) fn is_refusal(code: Code) -> bool {
    is_forbidden(code)
        || matches!(
            code,
            Code::Authentication | Code::SSL | Code::SaslAuthenticationFailed | Code::UnsupportedSASLMechanism
        )
}

/// Whether the cluster knows the user, who may not do this.
fn is_forbidden(code: Code) -> bool {
    matches!(
        code,
        Code::TopicAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::GroupAuthorizationFailed
            | Code::TransactionalIdAuthorizationFailed
    )
}

/// Asks again while the coordinator of a group does not serve it, for about as long as one attempt takes. A broker is
/// named as coordinator a moment before it begins to be one, when it has just started or the group's partition is new.
/// What it says until then it says at once, so that a number of attempts would be over in no time.
fn once_coordinated<T>(ask: impl Fn() -> KafkaResult<T>) -> KafkaResult<T> {
    let (looks, pause) = LOOKS;
    for _ in 1..looks {
        match ask() {
            Err(error) if error.rdkafka_error_code().is_some_and(is_uncoordinated) => sleep(pause),
            answer => return answer,
        }
    }
    ask()
}

/// Whether a group's coordinator says that it is none, or not yet.
fn is_uncoordinated(code: Code) -> bool {
    matches!(code, Code::NotCoordinator | Code::CoordinatorNotAvailable | Code::CoordinatorLoadInProgress)
}

/// Partitions, each with the number of the broker that leads it; below zero where none does.
pub(super) type Leaders = BTreeMap<Partition, i32>;

/// A consumer that joins no group: it answers questions, and its partitions are read through
/// [`PartitionQueue`](super::queue::PartitionQueue)s.
pub(super) struct Client {
    consumer: BaseConsumer<Events>,
    servers: String,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("servers", &self.servers).finish_non_exhaustive()
    }
}

impl Client {
    /// A client of this configuration. It connects when it is first asked something.
    pub(super) fn try_new(config: &ClientConfig) -> Result<Self> {
        let servers = config.get("bootstrap.servers").unwrap_or_default().to_string();
        let consumer = config.create_with_context(Events::default()).map_err(unusable)?;
        Ok(Self { consumer, servers })
    }

    /// The consumer itself.
    pub(super) fn consumer(&self) -> &BaseConsumer<Events> {
        &self.consumer
    }

    /// What went wrong lately.
    pub(super) fn events(&self) -> &Events {
        let mut events = 0;
        while events < 100 && self.consumer.poll(Duration::from_millis(1)).is_some() {
            events += 1;
        }
        self.consumer.context()
    }

    /// Asks until there is an answer, trying again is no use, or that was often enough.
    fn ask<T>(&self, what: &str, attempts: usize, ask: impl Fn(&BaseConsumer<Events>) -> KafkaResult<T>) -> Result<T> {
        let mut failure = None;
        for _ in 0..attempts {
            match ask(&self.consumer) {
                Ok(answer) => return Ok(answer),
                Err(error) => match self.refusal(what, &error) {
                    Some(refusal) => return Err(refusal),
                    None => failure = Some(error),
                },
            }
        }
        let reason = self.events().reason();
        let error = Error::transient(format!("{what}: no answer from {}{reason}", self.servers));
        Err(match failure {
            Some(failure) => error.caused_by(failure),
            None => error,
        })
    }

    /// Why `what`, which has failed, would fail again, if it would. Of what librdkafka asks by itself, such as for the
    /// coordinator of a group, only the events say that it is not allowed.
    pub(super) fn refusal(&self, what: &str, error: &KafkaError) -> Option<Error> {
        let events = self.events();
        let codes = [error.rdkafka_error_code(), events.last().map(|(code, _)| code)];
        match codes.into_iter().flatten().find(|code| is_forbidden(*code)) {
            Some(code) => Some(hidden(what, code)),
            None => events.refusal(),
        }
    }

    /// The partitions of this topic; none, if there is no such topic.
    pub(super) fn find(&self, topic: &str) -> Result<Option<Leaders>> {
        let what = format!("topic {topic}");
        let metadata = self.ask(&what, ATTEMPTS, |consumer| consumer.fetch_metadata(Some(topic), ATTEMPT))?;
        let Some(found) = metadata.topics().first() else { return Ok(None) };
        match found.error().map(Code::from) {
            None | Some(Code::LeaderNotAvailable) => {}
            Some(Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition) => return Ok(None),
            Some(code) if is_forbidden(code) => return Err(hidden(&what, code)),
            Some(code) => return Err(Error::transient(format!("topic {topic}: {code}"))),
        }
        Ok(Some(leaders(found)).filter(|leaders| !leaders.is_empty()))
    }

    /// The same; a topic that is missing is an error of kind `missing`, naming similar ones.
    pub(super) fn partitions(&self, topic: &str, missing: Kind) -> Result<Leaders> {
        self.find(topic)?.ok_or_else(|| self.missing(missing, &format!("there is no topic '{topic}'"), topic))
    }

    /// The partitions of all topics whose names are wanted.
    pub(super) fn search(&self, wanted: impl Fn(&str) -> bool) -> Result<Leaders> {
        let metadata = self.ask("topics", ATTEMPTS, |consumer| consumer.fetch_metadata(None, ATTEMPT))?;
        Ok(metadata.topics().iter().filter(|topic| wanted(topic.name())).flat_map(leaders).collect())
    }

    /// Of each partition of this topic, which brokers have it, by their numbers.
    pub(super) fn placement(&self, topic: &str) -> Result<BTreeMap<Partition, String>> {
        let what = format!("topic {topic}");
        let metadata = self.ask(&what, ATTEMPTS, |consumer| consumer.fetch_metadata(Some(topic), ATTEMPT))?;
        let partitions = metadata.topics().iter().flat_map(MetadataTopic::partitions);
        Ok(partitions.map(|found| (Partition::new(topic, found.id() as u32), placement(found))).collect())
    }

    /// The consumer groups that there are, or the one of this name.
    pub(super) fn groups(&self, only: Option<&str>) -> Result<GroupList> {
        // The brokers must be known before each of them can be asked.
        self.search(|_| false)?;
        self.ask("consumer groups", ATTEMPTS, |consumer| consumer.fetch_group_list(only, ATTEMPT))
    }

    /// An error that says what is missing, and names the topics whose names are most like this.
    pub(super) fn missing(&self, kind: Kind, what: &str, like: &str) -> Error {
        let all = self.ask("topics", ATTEMPTS, |consumer| consumer.fetch_metadata(None, ATTEMPT));
        let names = all.iter().flat_map(Metadata::topics).map(MetadataTopic::name);
        let hint = did_you_mean_of_many(like, names.filter(|name| !name.starts_with("__")));
        Error::new(kind, format!("{what} at {}; create it first{hint}", self.servers))
    }

    /// What these partitions hold: asked all at once, and leader by leader if that fails. Then those whose leader does
    /// not answer are unreachable.
    ///
    /// Errors: no partition can be reached.
    pub(super) fn extent(&self, leaders: &Leaders) -> Result<Extent> {
        let (mut extent, mut led) = (Extent::default(), BTreeMap::<i32, Vec<Partition>>::new());
        for (partition, leader) in leaders {
            match *leader {
                ..0 => drop(extent.unreachable.insert(partition.clone(), "it has no leader".into())),
                leader => led.entry(leader).or_default().push(partition.clone()),
            }
        }
        let mut parts: Vec<Vec<Partition>> = led.into_values().collect();
        // One that is silent does not hold up the others for longer than it must.
        let attempts = if parts.len() > 1 { 1 } else { ATTEMPTS };
        if parts.len() > 1
            && let Ok(found) = self.bounds(&parts.concat(), 1)
        {
            parts.clear();
            add(&mut extent, found);
        }
        for partitions in parts {
            match self.bounds_by(&partitions, attempts) {
                Ok(found) => add(&mut extent, found),
                Err(error) if error.kind() == Kind::Transient => {
                    let reason = error.chain();
                    extent.unreachable.extend(partitions.into_iter().map(|partition| (partition, reason.clone())));
                }
                Err(error) => return Err(error),
            }
        }
        match extent.unreachable.first_key_value() {
            Some((partition, reason)) if extent.partitions.is_empty() => {
                Err(Error::transient(format!("{partition} cannot be reached: {reason}")))
            }
            _ => Ok(extent),
        }
    }

    /// What these partitions hold: one request to each of their leaders for the first offsets, and one for the last,
    /// which are stable ones unless `isolation.level` says otherwise.
    ///
    /// Errors: a leader does not answer, or objects to one of them, whatever is known of the others.
    pub(super) fn bounds(&self, partitions: &[Partition], attempts: usize) -> Result<Extent> {
        let earliest = self.offsets(partitions, Offset::Beginning, attempts)?;
        let mut latest = self.offsets(partitions, Offset::End, attempts)?;
        let mut extent = Extent::default();
        for (partition, earliest) in earliest {
            let reason = match (earliest, latest.remove(&partition).unwrap_or(Ok(Offset::Invalid))) {
                (Ok(Offset::Offset(earliest)), Ok(Offset::Offset(latest))) => {
                    let earliest = u64::try_from(earliest).unwrap_or_default();
                    let latest = u64::try_from(latest).unwrap_or_default().max(earliest);
                    extent.partitions.insert(partition, Bounds { earliest, latest });
                    continue;
                }
                (Err(error), _) | (_, Err(error)) => match error.rdkafka_error_code() {
                    Some(code) => code.to_string(),
                    None => error.to_string(),
                },
                (Ok(earliest), Ok(latest)) => format!("its leader says that it holds {earliest:?}..{latest:?}"),
            };
            extent.unreachable.insert(partition, reason);
        }
        Ok(extent)
    }

    /// The same of partitions of one leader: where it objects to some, these are unreachable. They are then asked for
    /// one by one, as librdkafka answers nothing of the others either.
    fn bounds_by(&self, partitions: &[Partition], attempts: usize) -> Result<Extent> {
        match self.bounds(partitions, attempts) {
            Err(error) if objection(&error).is_some() => {}
            answer => return answer,
        }
        let mut extent = Extent::default();
        for partition in partitions {
            match self.bounds(from_ref(partition), 1) {
                Ok(found) => add(&mut extent, found),
                Err(error) => match objection(&error) {
                    Some(code) => drop(extent.unreachable.insert(partition.clone(), code.to_string())),
                    None => return Err(error),
                },
            }
        }
        Ok(extent)
    }

    /// What one partition holds.
    pub(super) fn bounds_of(&self, partition: &Partition) -> Result<Bounds> {
        let extent = self.bounds(from_ref(partition), ATTEMPTS)?;
        extent.partitions.get(partition).copied().ok_or_else(|| {
            let reason = extent.unreachable.get(partition).map_or("no answer", String::as_str);
            Error::transient(format!("offsets of {partition}: {reason}"))
        })
    }

    /// The offsets of the first messages that are not before this time, ms since 1970; none where all are.
    pub(super) fn at(&self, partitions: &[Partition], timestamp_ms: i64) -> Result<Offsets> {
        let mut offsets = Offsets::new();
        // Times before 1970 would be taken for what a protocol means by negative ones; no message has one.
        for (partition, answer) in self.offsets(partitions, Offset::Offset(timestamp_ms.max(0)), ATTEMPTS)? {
            let what = || Error::transient(format!("offset of {partition} at {timestamp_ms} ms"));
            if let Offset::Offset(offset) = answer.map_err(|e| what().caused_by(e))? {
                offsets.insert(partition, u64::try_from(offset).unwrap_or_default());
            }
        }
        Ok(offsets)
    }

    /// The next offsets of the group that the client is of, where it has any.
    pub(super) fn committed(&self, partitions: &[Partition]) -> Result<Offsets> {
        let what = "offsets of the consumer group";
        let of = |consumer: &BaseConsumer<Events>| {
            consumer.committed_offsets(list(partitions.iter().map(|partition| (partition, Offset::Invalid)))?, ATTEMPT)
        };
        let answer = self.ask(what, ATTEMPTS, |consumer| once_coordinated(|| of(consumer)))?;
        let mut offsets = Offsets::new();
        for element in answer.elements() {
            let partition = Partition::new(element.topic(), element.partition() as u32);
            element.error().map_err(|error| match error.rdkafka_error_code() {
                Some(code) if is_forbidden(code) => hidden(what, code),
                _ => Error::transient(format!("{what}: {partition}")).caused_by(error),
            })?;
            if let Offset::Offset(offset) = element.offset() {
                offsets.insert(partition, u64::try_from(offset).unwrap_or_default());
            }
        }
        Ok(offsets)
    }

    /// Commits the next offsets to the group that the client is of; it waits for as long as librdkafka does.
    pub(super) fn commit(&self, next: &Offsets) -> KafkaResult<()> {
        let offset = |offset: &u64| Offset::Offset(i64::try_from(*offset).unwrap_or(i64::MAX));
        let list = list(next.iter().map(|(partition, next)| (partition, offset(next))))?;
        let outcome = self.consumer.commit(&list, CommitMode::Sync);
        // What it says besides is taken by nobody else.
        let events = self.events();
        if outcome.is_ok() {
            events.clear();
        }
        outcome
    }

    /// The answers for `at`, which doubles as the timestamp that is asked for: in the protocol, -2 is the first offset
    /// and -1 the last; in an answer -1 is none.
    fn offsets(
        &self,
        partitions: &[Partition],
        at: Offset,
        attempts: usize,
    ) -> Result<BTreeMap<Partition, KafkaResult<Offset>>> {
        let what = match partitions {
            [only] => format!("offsets of {only}"),
            [first, ..] => format!("offsets of {first} and {} more", partitions.len() - 1),
            [] => return Ok(BTreeMap::new()),
        };
        let answer = self.ask(&what, attempts, |consumer| {
            consumer.offsets_for_times(list(partitions.iter().map(|partition| (partition, at)))?, ATTEMPT)
        })?;
        let answers = answer.elements().into_iter().map(|element| {
            let partition = Partition::new(element.topic(), element.partition() as u32);
            (partition, element.error().map(|()| element.offset()))
        });
        Ok(answers.collect())
    }
}

/// Both together.
fn add(extent: &mut Extent, more: Extent) {
    extent.partitions.extend(more.partitions);
    extent.unreachable.extend(more.unreachable);
}

/// What a leader says against one of its partitions, if that is why a question failed: a new one that it does not know
/// yet, or one that it leads no more.
fn objection(error: &Error) -> Option<Code> {
    let cause = std::error::Error::source(error)?.downcast_ref::<KafkaError>()?;
    cause.rdkafka_error_code().filter(|code| {
        matches!(
            code,
            Code::UnknownTopicOrPartition
                | Code::NotLeaderForPartition
                | Code::LeaderNotAvailable
                | Code::ReplicaNotAvailable
                | Code::OffsetNotAvailable
                | Code::FencedLeaderEpoch
                | Code::UnknownLeaderEpoch
                | Code::UnknownPartition
        )
    })
}

/// The partitions of a topic.
fn leaders(topic: &MetadataTopic) -> Leaders {
    let name: Arc<str> = topic.name().into();
    let partitions = topic.partitions().iter();
    partitions.map(|partition| (Partition::new(Arc::clone(&name), partition.id() as u32), partition.leader())).collect()
}

/// Which brokers have a partition, and which of them keep up, if not all do.
fn placement(partition: &MetadataPartition) -> String {
    let leader = match partition.leader() {
        ..0 => "no leader".to_string(),
        leader => format!("leader {leader}"),
    };
    let numbers = |brokers: &[i32]| brokers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let placement = format!("{leader}, replicas {}", numbers(partition.replicas()));
    match partition.isr().len() < partition.replicas().len() {
        true => format!("{placement}, in sync {}", numbers(partition.isr())),
        false => placement,
    }
}

/// As librdkafka has it.
fn list<'a>(partitions: impl Iterator<Item = (&'a Partition, Offset)>) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::new();
    for (partition, offset) in partitions {
        list.add_partition_offset(&partition.name, partition.number as i32, offset)?;
    }
    Ok(list)
}

/// The error for a topic or a group that the cluster does not show this user.
fn hidden(what: &str, code: Code) -> Error {
    let needed = match code {
        Code::GroupAuthorizationFailed => "READ on the group",
        _ => "DESCRIBE on the topic, which comes with READ or WRITE",
    };
    Error::refused(format!("{what}: {code}; the user needs {needed}"))
}

/// A configuration that librdkafka took property by property, but not as a whole.
pub(super) fn unusable(error: KafkaError) -> Error {
    match error {
        KafkaError::ClientCreation(reason) => {
            Error::usage(format!("the 'properties.*' options do not fit together: {reason}"))
        }
        other => Error::usage("the 'properties.*' options do not fit together").caused_by(other),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn a_coordinator_that_does_not_serve_yet_is_asked_again() {
        let asked_until = |answers: &[KafkaResult<u32>]| {
            let asked = Cell::new(0);
            let answer = once_coordinated(|| {
                asked.set(asked.get() + 1);
                answers[asked.get() - 1].clone()
            });
            (asked.get(), answer.map_err(|error| error.rdkafka_error_code()))
        };
        let no = |code| Err(KafkaError::MetadataFetch(code));
        assert_eq!(asked_until(&[Ok(7)]), (1, Ok(7)));
        assert_eq!(asked_until(&[no(Code::CoordinatorNotAvailable), no(Code::NotCoordinator), Ok(7)]), (3, Ok(7)));
        let other = Code::UnknownTopicOrPartition;
        assert_eq!(asked_until(&[no(Code::NotCoordinator), no(other)]), (2, Err(Some(other))));
        let never = Code::CoordinatorLoadInProgress;
        assert_eq!(asked_until(&vec![no(never); LOOKS.0]), (LOOKS.0, Err(Some(never))));
    }

    #[test]
    fn a_refusal_says_what_has_to_change() {
        let refusal = |code| {
            let events = Events::default();
            events.error(KafkaError::Global(code), "because.");
            events.refusal().map(|error| error.to_string())
        };
        assert_eq!(refusal(Code::AllBrokersDown), None);
        for code in [Code::SaslAuthenticationFailed, Code::SSL] {
            let text = refusal(code).unwrap();
            assert!(text.contains("the connection: because; check the options 'properties."), "{text}");
        }
        for code in [Code::ClusterAuthorizationFailed, Code::GroupAuthorizationFailed] {
            assert_eq!(refusal(code).unwrap(), "the cluster does not allow it: because");
        }
        let needed = |code| hidden("it", code).to_string().split_once("; the user needs ").unwrap().1.to_string();
        assert_eq!(needed(Code::GroupAuthorizationFailed), "READ on the group");
        assert!(needed(Code::TopicAuthorizationFailed).starts_with("DESCRIBE on the topic"));
    }
}

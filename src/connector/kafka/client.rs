//! A connection to a cluster: what it holds, and why it does not answer.
//!
//! The idea: librdkafka tries again by itself for as long as it is asked to, and says why only in events. A [`Client`]
//! collects the last reason, so that an error can name it, and ends the wait at once where trying again is no use
//! (a refused password).
//!
//! Guarantee: every call ends within about ten seconds. All of them block: they belong on a blocking thread.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};
use rdkafka::{Offset, TopicPartitionList};

use crate::connector::Bounds;
use crate::error::{Error, Kind, Result};
use crate::sql::options::did_you_mean;

/// How long one attempt to get an answer takes at most.
const ATTEMPT: Duration = Duration::from_secs(2);

/// How often an answer is tried for.
const ATTEMPTS: usize = 4;

/// After this long, about, there was an answer or there is none.
pub(super) const ANSWER: Duration = ATTEMPT.saturating_mul(ATTEMPTS as u32);

/// The most similar topics that are named when one is missing.
const SUGGESTIONS: usize = 5;

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
        let (code, reason) = self.last()?;
        is_refusal(code).then(|| {
            Error::refused(format!(
                "the cluster refused the connection: {reason}; check the options 'properties.security.protocol', \
                 'properties.sasl.*' and 'properties.ssl.*'"
            ))
        })
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
    matches!(
        code,
        Code::Authentication
            | Code::SSL
            | Code::SaslAuthenticationFailed
            | Code::UnsupportedSASLMechanism
            | Code::TopicAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::TransactionalIdAuthorizationFailed
    )
}

/// A consumer of no group: it answers questions, and its partitions are read through
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

    /// Asks until there is an answer, trying again is no use, or the time is over.
    fn ask<T>(&self, what: &str, ask: impl Fn(&BaseConsumer<Events>) -> KafkaResult<T>) -> Result<T> {
        let mut failure = None;
        for _ in 0..ATTEMPTS {
            match ask(&self.consumer) {
                Ok(answer) => return Ok(answer),
                Err(error) => {
                    if let Some(refusal) = self.events().refusal() {
                        return Err(refusal);
                    }
                    match error.rdkafka_error_code() {
                        Some(code) if is_refusal(code) => return Err(hidden(what, code)),
                        _ => failure = Some(error),
                    }
                }
            }
        }
        let reason = self.events().reason();
        let error = Error::transient(format!("{what}: no answer from {}{reason}", self.servers));
        Err(match failure {
            Some(failure) => error.caused_by(failure),
            None => error,
        })
    }

    /// The numbers of the topic's partitions; a topic that is missing is an error of kind `missing`, naming similar ones.
    pub(super) fn partitions(&self, topic: &str, missing: Kind) -> Result<Vec<i32>> {
        let metadata = self.ask(&format!("topic {topic}"), |consumer| consumer.fetch_metadata(Some(topic), ATTEMPT))?;
        let found = metadata.topics().first();
        match found.and_then(|topic| topic.error()).map(Code::from) {
            None | Some(Code::LeaderNotAvailable) => {}
            Some(Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition) => {
                return Err(self.missing(topic, missing));
            }
            Some(code) if is_refusal(code) => return Err(hidden(&format!("topic {topic}"), code)),
            Some(code) => return Err(Error::transient(format!("topic {topic}: {code}"))),
        }
        let mut numbers: Vec<i32> =
            found.map(|topic| topic.partitions().iter().map(|p| p.id()).collect()).unwrap_or_default();
        if numbers.is_empty() {
            return Err(self.missing(topic, missing));
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    fn missing(&self, topic: &str, kind: Kind) -> Error {
        let all = self.ask("topics", |consumer| consumer.fetch_metadata(None, ATTEMPT));
        let mut names: Vec<String> = match &all {
            Ok(all) => all.topics().iter().map(|t| t.name().to_string()).collect(),
            Err(_) => Vec::new(),
        };
        names.retain(|name| !name.starts_with("__"));
        names.sort_by_cached_key(|name| Reverse((strsim::jaro_winkler(topic, name) * 1e6) as u64));
        names.truncate(SUGGESTIONS);
        let hint = did_you_mean(topic, names.iter().map(String::as_str));
        Error::new(kind, format!("there is no topic '{topic}' at {}; create it first{hint}", self.servers))
    }

    /// What these partitions hold: one request to each of their leaders for the first offsets, and one for the last,
    /// which are stable ones unless `isolation.level` says otherwise.
    pub(super) fn bounds(&self, topic: &str, partitions: &[i32]) -> Result<BTreeMap<i32, Bounds>> {
        let earliest = self.offsets(topic, partitions, Offset::Beginning)?;
        let latest = self.offsets(topic, partitions, Offset::End)?;
        let bounds = earliest.into_iter().filter_map(|(number, earliest)| {
            let latest = *latest.get(&number)?;
            Some((number, Bounds { earliest, latest: latest.max(earliest) }))
        });
        Ok(bounds.collect())
    }

    /// `end` doubles as the timestamp that asks for it: in the protocol, -2 is the first offset and -1 the last.
    fn offsets(&self, topic: &str, partitions: &[i32], end: Offset) -> Result<BTreeMap<i32, u64>> {
        let what = format!("offsets of topic {topic}");
        let answer = self.ask(&what, |consumer| {
            let mut list = TopicPartitionList::with_capacity(partitions.len());
            for number in partitions {
                list.add_partition_offset(topic, *number, end)?;
            }
            consumer.offsets_for_times(list, ATTEMPT)
        })?;
        let mut offsets = BTreeMap::new();
        for element in answer.elements() {
            element.error().map_err(|error| match error.rdkafka_error_code() {
                Some(code) if is_refusal(code) => hidden(&what, code),
                _ => Error::transient(format!("{what}: partition {}", element.partition())).caused_by(error),
            })?;
            match element.offset() {
                Offset::Offset(offset) => {
                    offsets.insert(element.partition(), u64::try_from(offset).unwrap_or_default());
                }
                other => {
                    let number = element.partition();
                    return Err(Error::transient(format!("{what}: the leader of partition {number} says {other:?}")));
                }
            }
        }
        Ok(offsets)
    }
}

/// The error for a topic that the cluster does not show this user.
fn hidden(what: &str, code: Code) -> Error {
    Error::refused(format!("{what}: {code}; the user needs DESCRIBE on the topic, which comes with READ or WRITE"))
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

//! `properties.*`: what is handed to librdkafka, and what is not.
//!
//! Guarantee: properties that would break a promise of Millstream are refused with what to do instead, unknown ones by
//! name. Values are never printed. A table's properties go to both of its roles; librdkafka ignores the other's.

use std::collections::BTreeMap;
use std::fmt;

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaConfRes;

use crate::error::{Error, Result};
use crate::sql::options::is_secret;

/// What the user tells librdkafka. Its values may be secrets, so only its keys are ever printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Properties {
    given: BTreeMap<String, String>,
    /// `group.id`, which only a client of its own is told.
    group: Option<String>,
}

impl fmt::Debug for Properties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.given.keys()).finish()
    }
}

/// How long a message may wait for its receipt, unless the user says otherwise.
const MESSAGE_TIMEOUT_MS: u32 = 60_000;

/// Properties that Millstream decides, and what to do instead.
const OWNED: [(&str, &str); 13] = [
    ("enable.auto.commit", "offsets are kept in the query's checkpoint"),
    ("auto.commit.enable", "offsets are kept in the query's checkpoint"),
    ("enable.auto.offset.store", "offsets are kept in the query's checkpoint"),
    ("offset.store.method", "offsets are kept in the query's checkpoint"),
    ("auto.offset.reset", "use 'scan.startup.mode'; offsets that are gone later on are an error"),
    ("enable.partition.eof", "leave it out"),
    ("enable.idempotence", "it is always on, so that the order of a key's rows is kept"),
    ("acks", "every row is acknowledged by all replicas in sync"),
    ("request.required.acks", "every row is acknowledged by all replicas in sync"),
    ("transactional.id", "it is made of the query's id and the topic"),
    ("delivery.report.only.error", "every row's receipt is waited for"),
    ("log.queue", "leave it out"),
    ("plugin.library.paths", "libraries are not loaded on behalf of SQL"),
];

impl Properties {
    /// Checks them; nothing is connected to.
    pub(super) fn try_new(mut given: BTreeMap<String, String>) -> Result<Self> {
        for (key, instead) in OWNED {
            if given.contains_key(key) {
                return Err(Error::usage(format!("option 'properties.{key}' is not yours to set: {instead}")));
            }
        }
        if given.get("bootstrap.servers").is_none_or(|servers| servers.trim().is_empty()) {
            return Err(Error::usage("the option 'properties.bootstrap.servers' is missing, such as 'host:9092'"));
        }
        for key in ["message.timeout.ms", "delivery.timeout.ms"] {
            if given.get(key).is_some_and(|ms| ms.trim() == "0") {
                return Err(Error::usage(format!(
                    "option 'properties.{key}': 0 is for ever, and a query must find out when a row cannot be written; give \
                     it a time"
                )));
            }
        }
        // Everyone who comes from Flink sets it. A reader without a group has no coordinator to wait for, and needs no
        // permission on groups.
        let group = given.remove("group.id").filter(|group| !group.trim().is_empty());
        let properties = Self { given, group };
        let scratch: ClientConfig = properties.given.clone().into_iter().collect();
        scratch.create_native_config().map_err(refused_property)?;
        Ok(properties)
    }

    /// The servers to begin with.
    pub fn servers(&self) -> &str {
        self.given.get("bootstrap.servers").map_or("", String::as_str)
    }

    /// The consumer group in which other tools see how far a query is.
    pub(super) fn group(&self) -> Option<&str> {
        self.group.as_deref()
    }

    /// How to ask for the offsets of a group, and to commit them, without joining it. The session's timeout is how long
    /// a commit waits for the group's coordinator, to the second: less than anybody waits for the commit, to hear why.
    pub(super) fn of_group(&self, group: &str) -> ClientConfig {
        let mut config = self.consumer();
        config.set("group.id", group).set("group.protocol", "classic");
        config.set("session.timeout.ms", "3000").set("max.poll.interval.ms", "300000");
        config
    }

    /// How to read: small queues and short waits, because the next epoch's messages are wanted now; at most about
    /// 18 MB for each partition.
    pub(super) fn consumer(&self) -> ClientConfig {
        let defaults = [
            ("isolation.level", "read_committed"),
            ("fetch.wait.max.ms", "10"),
            ("fetch.queue.backoff.ms", "5"),
            ("max.partition.fetch.bytes", "2097152"),
            ("queued.min.messages", "7000"),
            ("queued.max.messages.kbytes", "16384"),
        ];
        let owned = [
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("enable.partition.eof", "true"),
            ("auto.offset.reset", "error"),
            ("allow.auto.create.topics", "false"),
        ];
        self.config(&defaults, &owned)
    }

    /// How to write: no epoch waits long for a batch to fill, nothing is lost, a key's rows keep their order, and a key goes where Java's client would send it.
    pub(super) fn producer(&self) -> ClientConfig {
        let defaults = [("linger.ms", "5"), ("queue.buffering.max.kbytes", "65536"), ("partitioner", "murmur2_random")];
        let mut config = self.config(&defaults, &[("enable.idempotence", "true"), ("acks", "all")]);
        self.limit_messages(&mut config, MESSAGE_TIMEOUT_MS);
        config
    }

    /// How to write in transactions of this id, which shuts out whoever had it before. They may be open for
    /// `timeout_ms`.
    pub(super) fn transactional(&self, id: &str, timeout_ms: u32) -> ClientConfig {
        let mut config = self.producer();
        config.set("transactional.id", id).set("transaction.timeout.ms", timeout_ms.to_string());
        // librdkafka wants no message to wait for longer than its transaction may be open.
        self.limit_messages(&mut config, MESSAGE_TIMEOUT_MS.min(timeout_ms));
        config
    }

    /// How long a message may wait for its receipt. librdkafka has two names for it.
    fn limit_messages(&self, config: &mut ClientConfig, timeout_ms: u32) {
        if !["delivery.timeout.ms", "message.timeout.ms"].iter().any(|name| self.given.contains_key(*name)) {
            config.set("message.timeout.ms", timeout_ms.to_string());
        }
    }

    /// How long a transaction may be open: the user's `transaction.timeout.ms`, or librdkafka's.
    pub(super) fn transaction_timeout_ms(&self) -> Result<u32> {
        let key = "transaction.timeout.ms";
        let config: ClientConfig = self.given.clone().into_iter().collect();
        let timeout = config.create_native_config().and_then(|config| config.get(key)).map_err(refused_property)?;
        timeout
            .parse::<u32>()
            .map_err(|e| Error::internal(format!("{key} is '{timeout}', which is no number")).caused_by(e))
    }

    /// How to see only what is committed, whatever the table's own readers see.
    pub(super) fn committed(&self) -> ClientConfig {
        let mut config = self.consumer();
        config.set("isolation.level", "read_committed");
        config
    }

    /// How to see also what is written and not committed yet.
    pub(super) fn uncommitted(&self) -> ClientConfig {
        let mut config = self.consumer();
        config.set("isolation.level", "read_uncommitted");
        config
    }

    fn config(&self, defaults: &[(&str, &str)], owned: &[(&str, &str)]) -> ClientConfig {
        let text = |(key, value): &(&str, &str)| (key.to_string(), value.to_string());
        let mut config: ClientConfig = defaults.iter().map(text).collect();
        config.extend(self.given.clone());
        config.extend(owned.iter().map(text));
        config
    }
}

/// Why librdkafka does not take a property; the value of a secret is not repeated.
fn refused_property(error: KafkaError) -> Error {
    match error {
        KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, _, key, _) => {
            let advice = match key.as_str() {
                "sasl.jaas.config" => "say 'properties.sasl.username' and 'properties.sasl.password' instead",
                _ => "its names are in https://github.com/confluentinc/librdkafka/blob/master/CONFIGURATION.md",
            };
            Error::usage(format!("option 'properties.{key}': librdkafka has no such property; {advice}"))
        }
        KafkaError::ClientConfig(_, reason, key, _) if !is_secret(&key) => {
            Error::usage(format!("option 'properties.{key}': {}", reason.trim_end_matches('.')))
        }
        KafkaError::ClientConfig(_, _, key, _) => {
            Error::usage(format!("option 'properties.{key}': librdkafka does not take this value"))
        }
        other => Error::usage(format!("the 'properties.*' options are not a configuration: {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn properties(more: &[(&str, &str)]) -> Properties {
        let given = [("bootstrap.servers", "a:1")].iter().chain(more);
        Properties::try_new(given.map(|(key, value)| (key.to_string(), value.to_string())).collect()).unwrap()
    }

    #[test]
    fn only_a_client_of_its_own_knows_the_group() {
        let grouped = properties(&[("group.id", "g"), ("max.poll.interval.ms", "5000")]);
        assert_eq!((grouped.group(), grouped.consumer().get("group.id")), (Some("g"), None));
        assert_eq!(grouped.of_group("g").get("group.id"), Some("g"));
        assert!(grouped.of_group("g").create_native_config().is_ok());
        assert_eq!(properties(&[("group.id", "")]).group(), None);
    }

    #[test]
    fn no_message_waits_for_longer_than_its_transaction_may_be_open() {
        let waits = |properties: &Properties, timeout_ms: u32| {
            let config = properties.transactional("x", timeout_ms);
            assert_eq!(config.get("transaction.timeout.ms"), Some(timeout_ms.to_string().as_str()));
            config.get("message.timeout.ms").map(str::to_string)
        };
        let plain = properties(&[]);
        assert_eq!(plain.transaction_timeout_ms().unwrap(), 60_000);
        assert_eq!(plain.producer().get("message.timeout.ms"), Some("60000"));
        assert_eq!(waits(&plain, 60_000).as_deref(), Some("60000"));
        assert_eq!(waits(&plain, 120_000).as_deref(), Some("60000"));
        assert_eq!(waits(&plain, 2_000).as_deref(), Some("2000"));
        let short = properties(&[("transaction.timeout.ms", "2000"), ("message.timeout.ms", "1500")]);
        assert_eq!(short.transaction_timeout_ms().unwrap(), 2_000);
        assert_eq!(waits(&short, 4_000).as_deref(), Some("1500"));
        assert_eq!(waits(&properties(&[("delivery.timeout.ms", "1500")]), 2_000), None);
    }
}

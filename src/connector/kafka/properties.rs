//! `properties.*`: what is handed to librdkafka, and what is not.
//!
//! Guarantee: properties that would break a promise of Millstream are refused with what to do instead, unknown ones by
//! name. Values are never printed. A table's properties go to both of its roles; librdkafka ignores the other's.
//!
//! What is fetched ahead of reading has a size for all partitions of a table together; beyond 128 of them it grows.

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

/// KB of messages that wait for a table at most, shared by its partitions.
const QUEUED_KBYTES: usize = 65_536;

/// What a partition has of it at most.
const MOST_QUEUED_KBYTES: usize = 16_384;

/// And at least: less would make one that is read alone among many wait for its broker too often.
const LEAST_QUEUED_KBYTES: usize = 512;

/// Bytes that one answer brings of a partition at most, if it may have so many waiting.
const MOST_FETCHED_BYTES: usize = 2 << 20;

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

    /// How to ask, and to read a single partition.
    pub(super) fn consumer(&self) -> ClientConfig {
        self.fetching(1)
    }

    /// How to read a table of so many partitions: small queues and short waits, because the next epoch's messages are
    /// wanted now. In librdkafka each partition's queue has its size, and overshoots it by one fetch: that makes 64 MB
    /// for all together and up to 2 MB more for each, and with many partitions, whose fetches are smaller, twice 64 MB.
    ///
    /// A client has one fetch under way to each broker, which waits there if it finds nothing. A partition that begins
    /// meanwhile, or has room again, waits for its answer: hence the 10 ms.
    pub(super) fn fetching(&self, partitions: usize) -> ClientConfig {
        let defaults =
            [("isolation.level", "read_committed"), ("fetch.wait.max.ms", "10"), ("fetch.queue.backoff.ms", "5")];
        let owned = [
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("enable.partition.eof", "true"),
            ("auto.offset.reset", "error"),
            ("allow.auto.create.topics", "false"),
        ];
        let mut config = self.config(&defaults, &owned);
        let kbytes = (QUEUED_KBYTES / partitions.max(1)).clamp(LEAST_QUEUED_KBYTES, MOST_QUEUED_KBYTES);
        self.prefer(&mut config, "queued.min.messages", &[], 7_000);
        self.prefer(&mut config, "queued.max.messages.kbytes", &[], kbytes);
        let fetched = MOST_FETCHED_BYTES.min(kbytes * 1024);
        self.prefer(&mut config, "max.partition.fetch.bytes", &["fetch.message.max.bytes"], fetched);
        // Of all partitions. librdkafka would take the size of one queue; and a message must not be longer.
        self.prefer(&mut config, "fetch.max.bytes", &["message.max.bytes"], MOST_QUEUED_KBYTES * 1024);
        config
    }

    /// How to look for single messages: the batch that has it is fetched, and little more.
    pub(super) fn finder(&self) -> ClientConfig {
        let mut config = self.consumer();
        config.remove("fetch.message.max.bytes").set("max.partition.fetch.bytes", "65536");
        config.set("queued.min.messages", "1");
        config
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
        self.prefer(config, "message.timeout.ms", &["delivery.timeout.ms"], timeout_ms);
    }

    /// Sets a property, unless the user has given it, or one of these that say the same.
    fn prefer(&self, config: &mut ClientConfig, name: &str, others: &[&str], value: impl ToString) {
        if !others.iter().chain([&name]).any(|name| self.given.contains_key(*name)) {
            config.set(name, value.to_string());
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
    let KafkaError::ClientConfig(code, reason, key, _) = &error else {
        return Error::usage(format!("the 'properties.*' options are not a configuration: {error}"));
    };
    let names = "its names are in https://github.com/confluentinc/librdkafka/blob/master/CONFIGURATION.md";
    let why = match (java_advice(key), code) {
        (Some(advice), _) => format!("librdkafka has no such property; {advice}"),
        (None, RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN) => format!("librdkafka has no such property; {names}"),
        _ if is_secret(key) => "librdkafka does not take this value".into(),
        _ => reason.trim_end_matches('.').into(),
    };
    Error::usage(format!("option 'properties.{key}': {why}"))
}

/// What to say instead of a property that only Java's client has, and Flink's users know.
fn java_advice(key: &str) -> Option<&'static str> {
    Some(match key {
        "sasl.jaas.config" => "say 'properties.sasl.username' and 'properties.sasl.password' instead",
        "ssl.truststore.certificates" => "say 'properties.ssl.ca.pem' instead",
        "ssl.keystore.key" | "ssl.keystore.certificate.chain" => {
            "say 'properties.ssl.key.pem' and 'properties.ssl.certificate.pem' instead"
        }
        "ssl.keystore.location" | "ssl.keystore.password" => return None,
        _ if key.starts_with("ssl.truststore.") => {
            "say 'properties.ssl.ca.location' instead, of a file of PEM certificates: keytool -list -rfc -keystore \
             FILE prints those of a Java truststore"
        }
        _ if key.starts_with("ssl.keystore.") => {
            "say only 'properties.ssl.keystore.location' and 'properties.ssl.keystore.password', of a PKCS#12 file: \
             keytool -importkeystore -srckeystore FILE -destkeystore FILE.p12 -deststoretype PKCS12 makes it of a JKS \
             one"
        }
        _ => return None,
    })
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
    fn the_partitions_of_a_table_share_what_is_fetched_ahead() {
        let sizes = |properties: &Properties, partitions| {
            let config = properties.fetching(partitions);
            let size = |name: &str| config.get(name).map(|size| size.parse::<usize>().unwrap());
            let fetched = size("max.partition.fetch.bytes");
            (size("queued.max.messages.kbytes"), fetched, size("fetch.max.bytes"))
        };
        let (plain, whole) = (properties(&[]), Some(16 << 20));
        for partitions in [0, 1, 4] {
            assert_eq!(sizes(&plain, partitions), (Some(16_384), Some(2 << 20), whole), "{partitions}");
        }
        assert_eq!(sizes(&plain, 8), (Some(8_192), Some(2 << 20), whole));
        assert_eq!(sizes(&plain, 64), (Some(1_024), Some(1 << 20), whole));
        assert_eq!(sizes(&plain, 5_000), (Some(512), Some(512 << 10), whole));
        let given = [
            ("queued.max.messages.kbytes", "100"),
            ("fetch.message.max.bytes", "70"),
            ("message.max.bytes", "20000000"),
            ("queued.min.messages", "9"),
        ];
        let given = properties(&given);
        assert_eq!(sizes(&given, 64), (Some(100), None, None));
        assert_eq!(given.fetching(64).get("queued.min.messages"), Some("9"));
        assert!(given.fetching(64).create_native_config().is_ok());
    }

    #[test]
    fn what_only_java_knows_is_refused_with_what_to_say() {
        for (key, part) in [
            ("sasl.jaas.config", "'properties.sasl.username'"),
            ("ssl.truststore.location", "'properties.ssl.ca.location'"),
            ("ssl.truststore.password", "keytool -list -rfc"),
            ("ssl.truststore.certificates", "'properties.ssl.ca.pem'"),
            ("ssl.keystore.type", "of a PKCS#12 file"),
            ("ssl.keystore.key", "'properties.ssl.key.pem'"),
            ("ssl.trust", "CONFIGURATION.md"),
        ] {
            let given = [("bootstrap.servers", "a:1"), (key, "hunter2")];
            let given = given.map(|(key, value)| (key.to_string(), value.to_string()));
            let error = Properties::try_new(given.into()).unwrap_err().to_string();
            assert!(error.starts_with(&format!("option 'properties.{key}': librdkafka has no such")), "{error}");
            assert!(error.contains(part) && !error.contains("hunter2"), "{error}");
        }
        let kept = [("ssl.keystore.location", "k.p12"), ("ssl.keystore.password", "p"), ("ssl.ca.location", "ca.pem")];
        properties(&kept);
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

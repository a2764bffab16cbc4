//! The options of a Kafka table, for both of its roles.
//!
//! The idea: one table may be read and written, so all options are taken at once, and each role uses its own.
//!
//! Guarantee: what is unknown, malformed, contradictory or not supported yet is refused by name, without any I/O.

use std::collections::{BTreeMap, BTreeSet};

use super::properties::Properties;
use crate::catalog::{Column, ColumnKind, TableDefinition};
use crate::connector::upserts::Key;
use crate::connector::{Delivery, ScanOptions};
use crate::error::{Error, Result};
use crate::format::FormatOptions;
use crate::sql::options::{OptionReader, did_you_mean};

/// Where a new query starts reading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Startup {
    /// At the first offset that is there.
    Earliest,
    /// Behind the last offset that is there.
    Latest,
    /// At these offsets; partitions that are not listed at their first.
    Specific(BTreeMap<u32, u64>),
}

/// All options of a Kafka table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KafkaOptions {
    /// `topic`.
    pub topic: String,
    /// `properties.*`.
    pub properties: Properties,
    /// `format` and its own.
    pub format: FormatOptions,
    /// `scan.startup.mode` and `scan.startup.specific-offsets`.
    pub startup: Startup,
    /// `sink.delivery-guarantee`.
    pub delivery: Delivery,
    /// `sink.progress-topic`: where exactly-once writing keeps which epochs are written.
    pub progress_topic: String,
    /// The key of a written message: the metadata column `key`, or made of `key.fields`, or else of the primary key.
    pub key: Key,
}

impl KafkaOptions {
    /// Takes them from a table's `WITH` list.
    pub fn take(table: &TableDefinition) -> Result<Self> {
        let mut reader = OptionReader::new(table);
        let format = FormatOptions::take(&mut reader)?;
        let given = Given {
            topic: reader.text("topic")?,
            topic_pattern: reader.text("topic-pattern")?,
            startup_mode: reader.text("scan.startup.mode")?,
            startup_offsets: reader.with(
                STARTUP_OFFSETS,
                "a list such as 'partition:0,offset:42;partition:1,offset:300'",
                offsets,
            )?,
            key_format: reader.text("key.format")?,
            key_fields: reader.text("key.fields")?,
            partitioner: reader.text("sink.partitioner")?,
            guarantee: reader.text("sink.delivery-guarantee")?,
            progress_topic: reader.text("sink.progress-topic")?,
            properties: reader.prefixed("properties.")?,
        };
        ScanOptions::take(&mut reader)?;
        let options = given.judge(table, format).map_err(|error| reader.blame(error))?;
        reader.finish()?;
        Ok(options)
    }
}

const STARTUP_OFFSETS: &str = "scan.startup.specific-offsets";

/// What was written, before it is judged.
struct Given {
    topic: Option<String>,
    topic_pattern: Option<String>,
    startup_mode: Option<String>,
    startup_offsets: Option<BTreeMap<u32, u64>>,
    key_format: Option<String>,
    key_fields: Option<String>,
    partitioner: Option<String>,
    guarantee: Option<String>,
    progress_topic: Option<String>,
    properties: BTreeMap<String, String>,
}

impl Given {
    fn judge(self, table: &TableDefinition, format: FormatOptions) -> Result<KafkaOptions> {
        let unsupported = [
            (&self.topic_pattern, "topic-pattern", "name one topic with 'topic'"),
            (&self.key_format, "key.format", "without it, keys are written as JSON objects"),
            (&self.partitioner, "sink.partitioner", "without it, the hash of a key decides, as with Java's client"),
        ];
        for (given, key, instead) in unsupported {
            if given.is_some() {
                return Err(Error::usage(format!("option '{key}' is not supported yet; {instead}")));
            }
        }
        let topic = topic(self.topic)?;
        let progress_topic = self.progress_topic.unwrap_or_else(|| "millstream-progress".into());
        if !is_legal(&progress_topic) || progress_topic == topic {
            return Err(Error::usage(format!(
                "option 'sink.progress-topic': '{progress_topic}' cannot be a topic of its own"
            )));
        }
        Ok(KafkaOptions {
            topic,
            delivery: delivery(self.guarantee.as_deref())?,
            progress_topic,
            properties: Properties::try_new(self.properties)?,
            format,
            startup: startup(self.startup_mode.as_deref(), self.startup_offsets)?,
            key: Key::of(table, "key", &key_fields(table, self.key_fields.as_deref())?)?,
        })
    }
}

fn topic(given: Option<String>) -> Result<String> {
    let topic = given.ok_or_else(|| Error::usage("the option 'topic' is missing"))?;
    if topic.contains(';') {
        return Err(Error::usage("option 'topic': several topics in one table are not supported yet; name one"));
    }
    if !is_legal(&topic) {
        return Err(Error::usage(format!(
            "option 'topic': '{topic}' cannot be a topic; a name has 1 to 249 letters, digits, '.', '_' or '-'"
        )));
    }
    Ok(topic)
}

fn is_legal(topic: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    !topic.is_empty() && topic.len() <= 249 && topic.chars().all(legal) && !matches!(topic, "." | "..")
}

fn delivery(given: Option<&str>) -> Result<Delivery> {
    let key = "sink.delivery-guarantee";
    match given {
        None | Some("exactly-once") => Ok(Delivery::ExactlyOnce),
        Some("at-least-once") => Ok(Delivery::AtLeastOnce),
        Some("none") => Err(Error::usage(format!("option '{key}': 'none' is not supported yet; say 'at-least-once'"))),
        Some(word) => {
            let hint = did_you_mean(word, ["exactly-once", "at-least-once"].into_iter());
            Err(Error::usage(format!("option '{key}': '{word}' is no choice{hint}")))
        }
    }
}

fn startup(mode: Option<&str>, offsets: Option<BTreeMap<u32, u64>>) -> Result<Startup> {
    const MODES: [&str; 3] = ["earliest-offset", "latest-offset", "specific-offsets"];
    let key = "scan.startup.mode";
    match (mode, offsets) {
        (Some("specific-offsets"), Some(offsets)) => Ok(Startup::Specific(offsets)),
        (Some("specific-offsets"), None) => {
            Err(Error::usage(format!("'{key}' = 'specific-offsets' needs the option '{STARTUP_OFFSETS}'")))
        }
        (_, Some(_)) => Err(Error::usage(format!("option '{STARTUP_OFFSETS}' needs '{key}' = 'specific-offsets'"))),
        (None | Some("earliest-offset"), None) => Ok(Startup::Earliest),
        (Some("latest-offset"), None) => Ok(Startup::Latest),
        (Some(word @ ("group-offsets" | "timestamp")), None) => {
            Err(Error::usage(format!("option '{key}': '{word}' is not supported yet; say {}", MODES.join(" or "))))
        }
        (Some(word), None) => {
            let hint = did_you_mean(word, MODES.into_iter());
            Err(Error::usage(format!("option '{key}': '{word}' is no choice{hint}")))
        }
    }
}

/// `partition:0,offset:42;partition:1,offset:300`, each partition once.
fn offsets(text: &str) -> Option<BTreeMap<u32, u64>> {
    let mut offsets = BTreeMap::new();
    for entry in text.split(';').map(str::trim).filter(|entry| !entry.is_empty()) {
        let (partition, offset) = entry.split_once(',')?;
        let partition = partition.trim().strip_prefix("partition:")?.trim().parse().ok()?;
        let offset = offset.trim().strip_prefix("offset:")?.trim().parse().ok()?;
        if i32::try_from(partition).is_err() || offsets.insert(partition, offset).is_some() {
            return None;
        }
    }
    (!offsets.is_empty()).then_some(offsets)
}

fn key_fields(table: &TableDefinition, given: Option<&str>) -> Result<Vec<String>> {
    let Some(given) = given else { return Ok(table.primary_key.clone()) };
    let physical = |column: &&Column| matches!(column.kind, ColumnKind::Physical);
    let known = || table.columns.iter().filter(physical).map(|column| column.name.as_str());
    let names = given.split(';').map(str::trim).map(|name| match known().any(|column| column == name) {
        true => Ok(name.to_string()),
        false => {
            let hint = did_you_mean(name, known());
            Err(Error::usage(format!("option 'key.fields': there is no physical column '{name}'{hint}")))
        }
    });
    let fields: Vec<String> = names.collect::<Result<_>>()?;
    // Their order is free: it only decides how the key is written.
    let set = |names: &[String]| names.iter().cloned().collect::<BTreeSet<_>>();
    match table.primary_key.as_slice() {
        [] => Ok(fields),
        key if set(key) == set(&fields) => Ok(fields),
        key => Err(Error::usage(format!(
            "option 'key.fields': a row replaces the one with the same PRIMARY KEY, which is ({}), so the message's key is \
             made of these columns and not of '{given}'; leave out one of the two",
            key.join(", ")
        ))),
    }
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::DataType;

    use super::*;

    fn take(options: &[(&str, &str)]) -> Result<KafkaOptions> {
        take_keyed(&[], options)
    }

    fn take_keyed(primary_key: &[&str], options: &[(&str, &str)]) -> Result<KafkaOptions> {
        let base = [("connector", "kafka"), ("format", "json"), ("properties.bootstrap.servers", "a:1")];
        let all = base.iter().chain([("topic", "t")].iter()).chain(options);
        KafkaOptions::take(&TableDefinition {
            name: "orders".into(),
            columns: ["id", "item"].map(|name| Column::physical(name, DataType::Int64)).into(),
            primary_key: primary_key.iter().map(|name| name.to_string()).collect(),
            watermark: None,
            partitioned_by: vec![],
            options: all.map(|(key, value)| (key.to_string(), value.to_string())).collect(),
        })
    }

    fn refusal(options: &[(&str, &str)]) -> String {
        take(options).unwrap_err().chain()
    }

    #[test]
    fn offsets_are_listed_as_in_flink() {
        let options = [
            ("scan.startup.mode", "specific-offsets"),
            ("scan.startup.specific-offsets", "partition:0,offset:42; partition:1,offset:300"),
        ];
        assert_eq!(take(&options).unwrap().startup, Startup::Specific(BTreeMap::from([(0, 42), (1, 300)])));
        assert!(refusal(&options[1..]).contains("needs 'scan.startup.mode' = 'specific-offsets'"));
        for wrong in ["", "0:42", "partition:0,offset:-1", "partition:0,offset:1;partition:0,offset:2"] {
            assert!(offsets(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn what_is_not_supported_yet_is_refused_by_name() {
        for (key, value) in [
            ("topic", "a;b"),
            ("topic-pattern", "t.*"),
            ("key.format", "json"),
            ("sink.partitioner", "fixed"),
            ("sink.delivery-guarantee", "none"),
            ("scan.startup.mode", "group-offsets"),
        ] {
            let text = refusal(&[(key, value)]);
            assert!(text.starts_with("table orders: option") && text.contains("not supported yet"), "{text}");
        }
    }

    #[test]
    fn properties_are_checked_and_their_values_kept_secret() {
        let text = refusal(&[("properties.enable.auto.commit", "true")]);
        assert!(text.contains("'properties.enable.auto.commit' is not yours to set"), "{text}");
        let text = refusal(&[("properties.max.poll.records", "5")]);
        assert!(text.contains("'properties.max.poll.records': librdkafka has no such property"), "{text}");
        let text = refusal(&[("properties.linger.ms", "soon")]);
        assert!(text.starts_with("table orders: option 'properties.linger.ms'"), "{text}");
        let options = take(&[("properties.sasl.password", "hunter2"), ("properties.group.id", "g")]).unwrap();
        assert!(!format!("{options:?}").contains("hunter2"), "{options:?}");
        assert!(options.properties.consumer().get("group.id").is_none());
        // What is not committed must never count as written.
        let uncommitted = take(&[("properties.isolation.level", "read_uncommitted")]).unwrap();
        assert_eq!(uncommitted.properties.committed().get("isolation.level"), Some("read_committed"));
    }

    #[test]
    fn keys_are_physical_columns() {
        assert_eq!(take(&[("key.fields", "item")]).unwrap().key, Key::Made(vec![1]));
        assert!(refusal(&[("key.fields", "id;ID")]).contains("no physical column 'ID'"));
    }

    #[test]
    fn a_primary_key_is_the_key() {
        assert_eq!(take_keyed(&["item"], &[]).unwrap().key, Key::Made(vec![1]));
        let both = take_keyed(&["id", "item"], &[("key.fields", "item;id")]).unwrap();
        assert_eq!(both.key, Key::Made(vec![1, 0]));
        for other in ["id", "item;id"] {
            let error = take_keyed(&["item"], &[("key.fields", other)]).unwrap_err();
            assert_eq!(error.kind(), crate::error::Kind::Usage);
            let text = error.to_string();
            assert!(text.contains("PRIMARY KEY, which is (item)") && text.contains(other), "{text}");
        }
    }
}

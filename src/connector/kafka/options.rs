//! The options of a Kafka table, for both of its roles.
//!
//! The idea: one table may be read and written, so all options are taken at once, and each role uses its own.
//!
//! Guarantee: what is unknown, malformed, contradictory or not supported yet is refused by name, without any I/O.

use std::collections::{BTreeMap, BTreeSet};

use arrow::datatypes::DataType;

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

/// How a key that is made of columns is written: `key.format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyFormat {
    /// As a JSON object of them.
    Json,
    /// As the bytes of the only one, which is STRING or BYTES.
    Raw,
}

/// Where a row goes that names no partition: `sink.partitioner`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Partitioner {
    /// Where Java's client would send its key; anywhere, without one.
    Hash,
    /// All of a task to one partition.
    Fixed,
    /// To one partition after the other.
    RoundRobin,
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
    /// `key.format`.
    pub key_format: KeyFormat,
    /// `value.fields-include`: whether columns of the key are also in the payload.
    pub is_key_in_payload: bool,
    /// `sink.partitioner`.
    pub partitioner: Partitioner,
}

impl KafkaOptions {
    /// Takes them from a table's `WITH` list.
    pub fn take(table: &TableDefinition) -> Result<Self> {
        let mut reader = OptionReader::new(table);
        let format = FormatOptions::take(&mut reader)?;
        let given = Given {
            topic: reader.text("topic")?,
            topic_pattern: reader.text("topic-pattern")?,
            transactional_id: reader.text("sink.transactional-id-prefix")?,
            startup_mode: reader.text("scan.startup.mode")?,
            startup_offsets: reader.with(
                STARTUP_OFFSETS,
                "a list such as 'partition:0,offset:42;partition:1,offset:300'",
                offsets,
            )?,
            key_format: reader.choice("key.format", &[("json", KeyFormat::Json), ("raw", KeyFormat::Raw)])?,
            key_fields: reader.text("key.fields")?,
            is_key_in_payload: reader.choice("value.fields-include", &[("ALL", true), ("EXCEPT_KEY", false)])?,
            partitioner: reader.choice("sink.partitioner", &PARTITIONERS)?,
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

const PARTITIONERS: [(&str, Partitioner); 3] =
    [("default", Partitioner::Hash), ("fixed", Partitioner::Fixed), ("round-robin", Partitioner::RoundRobin)];

/// What was written, before it is judged.
struct Given {
    topic: Option<String>,
    topic_pattern: Option<String>,
    transactional_id: Option<String>,
    startup_mode: Option<String>,
    startup_offsets: Option<BTreeMap<u32, u64>>,
    key_format: Option<KeyFormat>,
    key_fields: Option<String>,
    is_key_in_payload: Option<bool>,
    partitioner: Option<Partitioner>,
    guarantee: Option<String>,
    progress_topic: Option<String>,
    properties: BTreeMap<String, String>,
}

impl Given {
    fn judge(self, table: &TableDefinition, format: FormatOptions) -> Result<KafkaOptions> {
        if self.topic_pattern.is_some() {
            return Err(Error::usage("option 'topic-pattern' is not supported yet; name one topic with 'topic'"));
        }
        if self.transactional_id.is_some() {
            return Err(Error::usage(
                "option 'sink.transactional-id-prefix' is not yours to set: the id is made of the query's and the topic; leave \
                 it out",
            ));
        }
        let topic = topic(self.topic)?;
        let progress_topic = self.progress_topic.unwrap_or_else(|| "millstream-progress".into());
        if !is_legal(&progress_topic) || progress_topic == topic {
            return Err(Error::usage(format!(
                "option 'sink.progress-topic': '{progress_topic}' cannot be a topic of its own"
            )));
        }
        let key = Key::of(table, "key", &key_fields(table, self.key_fields.as_deref())?)?;
        let is_key_in_payload = self.is_key_in_payload.unwrap_or(true);
        check_made_key(table, &key, self.key_format, is_key_in_payload)?;
        let partitioner = self.partitioner.unwrap_or(Partitioner::Hash);
        if partitioner != Partitioner::Hash && !table.primary_key.is_empty() {
            return Err(Error::usage(
                "option 'sink.partitioner': rows with the same PRIMARY KEY must be in one partition, or their order is lost; \
                 say 'default'",
            ));
        }
        Ok(KafkaOptions {
            topic,
            delivery: delivery(self.guarantee.as_deref())?,
            progress_topic,
            properties: Properties::try_new(self.properties)?,
            format,
            startup: startup(self.startup_mode.as_deref(), self.startup_offsets)?,
            key,
            key_format: self.key_format.unwrap_or(KeyFormat::Json),
            is_key_in_payload,
            partitioner,
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

/// Whether a topic can have this name.
pub(super) fn is_legal(topic: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    !topic.is_empty() && topic.len() <= 249 && topic.chars().all(legal) && !matches!(topic, "." | "..")
}

fn delivery(given: Option<&str>) -> Result<Delivery> {
    let key = "sink.delivery-guarantee";
    match given {
        None | Some("exactly-once") => Ok(Delivery::ExactlyOnce),
        Some("at-least-once") => Ok(Delivery::AtLeastOnce),
        Some("none") => Ok(Delivery::None),
        Some(word) => {
            let hint = did_you_mean(word, ["exactly-once", "at-least-once", "none"].into_iter());
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

/// Checks what only a key of columns can have.
fn check_made_key(table: &TableDefinition, key: &Key, format: Option<KeyFormat>, is_in_payload: bool) -> Result<()> {
    let made: &[usize] = match key {
        Key::Made(columns) => columns,
        Key::Given(_) => &[],
    };
    let option = match (format, is_in_payload) {
        (Some(_), _) => "key.format",
        (None, false) => "value.fields-include",
        (None, true) => return Ok(()),
    };
    if made.is_empty() {
        return Err(Error::usage(format!(
            "option '{option}' is for a key that is made of columns; name them with 'key.fields' or a PRIMARY KEY, or leave \
             it out"
        )));
    }
    let columns: Vec<&Column> = made.iter().filter_map(|place| table.writable_columns().nth(*place)).collect();
    let is_bytes = |column: &Column| matches!(column.data_type, DataType::Utf8 | DataType::Utf8View | DataType::Binary);
    match (format, columns.as_slice()) {
        (Some(KeyFormat::Raw), [only]) if is_bytes(only) => Ok(()),
        (Some(KeyFormat::Raw), columns) => {
            let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
            Err(Error::usage(format!(
                "option 'key.format': 'raw' is the bytes of one STRING or BYTES column, and the key is made of ({}); say \
                 'json'",
                names.join(", ")
            )))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "options_tests.rs"]
mod tests;

//! The options of a Kafka table, for both of its roles.
//!
//! The idea: one table may be read and written, so all options are taken at once, and each role uses its own.
//!
//! Guarantee: what is unknown, malformed, contradictory or not supported yet is refused by name, without any I/O.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::Schema;
use regex::Regex;

use super::properties::Properties;
use crate::catalog::{Column, ColumnKind, TableDefinition};
use crate::connector::entry::{OptionEntry, REQUIRED};
use crate::connector::messages::KeyColumns;
use crate::connector::position::{self, Position, Side};
use crate::connector::upserts::Key;
use crate::connector::{Delivery, Offsets, OnDataLoss, Partition, ScanOptions};
use crate::error::{Error, Result};
use crate::format::{self, FORMATS, FormatOptions, KeyFormat};
use crate::sql::options::{OptionReader, did_you_mean};

/// How often new topics and partitions are looked for, unless the table says otherwise.
pub(super) const DISCOVERY: Duration = Duration::from_secs(5);

/// The option that says how often they are.
pub(super) const DISCOVERY_OPTION: &str = "scan.topic-partition-discovery.interval";

/// What the options say that only Kafka has.
const OPTIONS: &[OptionEntry] = &[
    OptionEntry::new(
        "topic",
        "a name; for reading also several, `a;b`",
        "this or the next",
        "the topics, which must exist",
    ),
    OptionEntry::reading(
        "topic-pattern",
        "a [regular expression](https://docs.rs/regex/#syntax)",
        "",
        "in the place of `topic`: those whose whole name it matches, also those that come later. Never meant are \
         names that begin with `__`, and the progress topic",
    ),
    OptionEntry::new("properties.bootstrap.servers", "`host:9092,…`", REQUIRED, "the brokers to begin with"),
    OptionEntry::reading(
        "properties.group.id",
        "a name",
        "",
        "the consumer group that `group-offsets` means, and that Kafka's tools show the query's [lag](sql.md#kafka) \
         for",
    ),
    OptionEntry::new(
        "properties.*",
        "",
        "",
        "[librdkafka's properties](https://github.com/confluentinc/librdkafka/blob/master/CONFIGURATION.md), such as \
         `security.protocol`, `sasl.*`, `ssl.*`; see [which are not yours to set](sql.md#kafka)",
    ),
    OptionEntry::reading(
        DISCOVERY_OPTION,
        "a duration",
        "`5 s`",
        "how often new topics and partitions are looked for at most; `0 s`: never. Partitions that cannot be reached \
         are looked for every 5 s at least, less often where that takes long",
    ),
    OptionEntry::new(
        "value.format",
        "`json`, `csv`, `raw`, `debezium-json`, `canal-json`",
        "",
        "in the place of `format`, as Flink has it beside `key.format`. Options of the format then begin with \
         `value.` too, as `value.json.*`",
    ),
    OptionEntry::new(
        "value.fields-include",
        "`ALL`, `EXCEPT_KEY`",
        "`ALL`",
        "whether payloads have the columns of the key: if they do, what is read is theirs, as in Flink",
    ),
    OptionEntry::new(
        "key.fields",
        "columns, `a;b`",
        "the PRIMARY KEY",
        "columns of the message's key; with a PRIMARY KEY its own, in any order. They are written to keys, and read \
         from them under `EXCEPT_KEY`, where `key.format` is given as well",
    ),
    OptionEntry::new(
        "key.format",
        "`json`, `csv`, `raw`",
        "writing: `json`",
        "how they make the key: as an object, a line, or the [bytes](sql.md#raw) of the only one",
    ),
    OptionEntry::new(
        "key.json.*",
        "",
        "",
        "with `json`: its [own options](#json), as `key.json.timestamp-format.standard`",
    ),
    OptionEntry::new("key.csv.*", "", "", "with `csv`: its [own options](#csv), as `key.csv.field-delimiter`"),
    OptionEntry::new("key.raw.*", "", "", "with `raw`: its [own options](#raw), as `key.raw.endianness`"),
    OptionEntry::new(
        "key.fields-prefix",
        "a text",
        "",
        "what the names of these columns begin with, and the fields of the key do not: with `k_` the column `k_id` is \
         the key's `id`. Only with `EXCEPT_KEY`",
    ),
    OptionEntry::writing(
        "sink.partitioner",
        "`default`, `fixed`, `round-robin`",
        "`default`",
        "where a row goes that names no partition: where the hash of its key says, as with Java's client, or anywhere \
         without a key; all of a task to one partition, task modulo partitions; to one after the other. With a \
         PRIMARY KEY only the first",
    ),
    OptionEntry::writing(
        "sink.delivery-guarantee",
        "`exactly-once`, `at-least-once`, `none`",
        "`exactly-once`",
        "how often a row can be seen; see [writing](sql.md#kafka)",
    ),
    OptionEntry::writing(
        "sink.progress-topic",
        "a name",
        "`millstream-progress`",
        "exactly-once: the topic that keeps which epochs are written",
    ),
    OptionEntry::refused("sink.transactional-id-prefix", "the id is made of the query's and the topic"),
];

/// How a list of offsets is written.
const OFFSETS: &str =
    "a list, `partition:0,offset:42;…`; unless there is just one topic, each with `topic:orders,` before it";

/// What all options say.
pub(super) fn described() -> Vec<OptionEntry> {
    [OPTIONS, &[format::OPTION], format::TROUBLE, &position::options(OFFSETS)[..], ScanOptions::OPTIONS].concat()
}

/// The topics of a table.
#[derive(Debug, Clone)]
pub enum Topics {
    /// `topic`: these.
    Named(BTreeSet<String>),
    /// `topic-pattern`: those whose whole name it matches.
    Matching {
        /// As it was written.
        pattern: String,
        /// For the whole of a name.
        whole: Regex,
    },
}

impl Topics {
    /// The topic, if there is exactly one by name.
    pub fn only(&self) -> Option<&str> {
        match self {
            Self::Named(names) if names.len() == 1 => names.first().map(String::as_str),
            _ => None,
        }
    }
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
#[derive(Debug, Clone)]
pub struct KafkaOptions {
    /// `topic` or `topic-pattern`.
    pub topics: Topics,
    /// `properties.*`.
    pub properties: Properties,
    /// `format` and its own.
    pub format: FormatOptions,
    /// `scan.startup.*`: where a new query begins.
    pub startup: Position,
    /// `scan.bounded.*`: where it ends, if it does.
    pub bounded: Option<Position>,
    /// `scan.topic-partition-discovery.interval`: how often new topics and partitions are looked for; zero is never. Those
    /// that cannot be reached are, in any case.
    pub discovery: Duration,
    /// `scan.on-data-loss`: whether a topic of a pattern may be deleted while it is read.
    pub on_data_loss: OnDataLoss,
    /// `sink.delivery-guarantee`.
    pub delivery: Delivery,
    /// `sink.progress-topic`: where exactly-once writing keeps which epochs are written.
    pub progress_topic: String,
    /// The key of a written message: the metadata column `key`, or made of `key.fields`, or else of the primary key.
    pub key: Key,
    /// `key.format`.
    pub key_format: KeyFormat,
    /// `key.fields-prefix`: what the columns of the key begin with, and the key's own fields do not.
    pub key_prefix: String,
    /// `value.fields-include`: whether columns of the key are also in the payload.
    pub is_key_in_payload: bool,
    /// The columns that are read from keys: `key.fields`, where `key.format` says how and payloads do not have them.
    pub key_columns: Option<KeyColumns>,
    /// `sink.partitioner`.
    pub partitioner: Partitioner,
}

impl KafkaOptions {
    /// Takes them from a table's `WITH` list.
    pub fn take(table: &TableDefinition) -> Result<Self> {
        let table = with_plain_format(table)?;
        let mut reader = OptionReader::new(&table);
        let topics = topics(&mut reader)?;
        // Of all properties these are asked for by name.
        ["properties.bootstrap.servers", "properties.group.id"].iter().for_each(|key| reader.suggest(key, []));
        reader.suggest("value.format", FORMATS);
        reader.refuse("sink.transactional-id-prefix", "the id is made of the query's and the topic; leave it out")?;
        let only = topics.only();
        let form = match only {
            Some(_) => "a list such as 'partition:0,offset:42;partition:1,offset:300'",
            None => "a list such as 'topic:orders,partition:0,offset:42;topic:returns,partition:0,offset:7'",
        };
        let format = FormatOptions::take(&mut reader)?;
        let given = Given {
            startup: Position::take(&mut reader, Side::Startup, form, |text| offsets(text, only))?,
            bounded: Position::take(&mut reader, Side::Bounded, form, |text| offsets(text, only))?,
            discovery: reader.duration(DISCOVERY_OPTION)?,
            on_data_loss: ScanOptions::take(&mut reader)?.on_data_loss,
            key_format: key_format(&mut reader, &table)?,
            key_fields: reader.text("key.fields")?,
            key_prefix: reader.text("key.fields-prefix")?,
            is_key_in_payload: reader.choice("value.fields-include", &[("ALL", true), ("EXCEPT_KEY", false)])?,
            partitioner: reader.choice("sink.partitioner", &PARTITIONERS)?,
            delivery: reader.choice("sink.delivery-guarantee", &DELIVERIES)?,
            progress_topic: reader.text("sink.progress-topic")?,
            properties: reader.prefixed("properties.")?,
        };
        let options = given.judge(&table, topics, format).map_err(|error| reader.blame(error))?;
        reader.finish()?;
        Ok(options)
    }

    /// The topic that is written: a table that is written has one, which is checked before.
    pub(super) fn target(&self) -> &str {
        self.topics.only().unwrap_or_default()
    }

    /// Whether this topic is one of the table's. A pattern never means what clients and brokers keep for themselves.
    pub(super) fn reads(&self, topic: &str) -> bool {
        match &self.topics {
            Topics::Named(names) => names.contains(topic),
            Topics::Matching { whole, .. } => {
                whole.is_match(topic) && !topic.starts_with("__") && topic != self.progress_topic
            }
        }
    }
}

/// The table with its payloads' format as `format`, where it is beside that of keys: as `value.format`, `value.json.*`.
pub(super) fn with_plain_format(table: &TableDefinition) -> Result<Cow<'_, TableDefinition>> {
    let options = &table.options;
    if !options.contains_key("value.format") {
        return Ok(Cow::Borrowed(table));
    }
    let of_format = |key: &str| {
        let is_own = |format: &str| key.strip_prefix(format).is_some_and(|rest| rest.starts_with('.'));
        key == "format" || FORMATS.into_iter().any(is_own)
    };
    if let Some(option) = options.keys().find(|key| of_format(key)) {
        return Err(Error::usage(format!(
            "table {}: there is no option '{option}' beside 'value.format'; say 'value.{option}'",
            table.name
        )));
    }
    let plain = |key: &String| key.strip_prefix("value.").filter(|rest| of_format(rest)).unwrap_or(key).to_string();
    let options = options.iter().map(|(key, value)| (plain(key), value.clone())).collect();
    Ok(Cow::Owned(TableDefinition { options, ..table.clone() }))
}

const DELIVERIES: [(&str, Delivery); 3] =
    [("exactly-once", Delivery::ExactlyOnce), ("at-least-once", Delivery::AtLeastOnce), ("none", Delivery::None)];

/// The formats of keys, and what their own options begin with.
const KEY_FORMATS: [(&str, &str); 3] = [("json", "key.json."), ("csv", "key.csv."), ("raw", "key.raw.")];

const PARTITIONERS: [(&str, Partitioner); 3] =
    [("default", Partitioner::Hash), ("fixed", Partitioner::Fixed), ("round-robin", Partitioner::RoundRobin)];

/// What was written, before it is judged.
struct Given {
    startup: Option<Position>,
    bounded: Option<Position>,
    discovery: Option<Duration>,
    on_data_loss: OnDataLoss,
    key_format: Option<KeyFormat>,
    key_fields: Option<String>,
    key_prefix: Option<String>,
    is_key_in_payload: Option<bool>,
    partitioner: Option<Partitioner>,
    delivery: Option<Delivery>,
    progress_topic: Option<String>,
    properties: BTreeMap<String, String>,
}

impl Given {
    fn judge(self, table: &TableDefinition, topics: Topics, format: FormatOptions) -> Result<KafkaOptions> {
        let progress_topic = progress_topic(self.progress_topic, &topics)?;
        let properties = Properties::try_new(self.properties)?;
        check_group(&properties, [("scan.startup.mode", &self.startup), ("scan.bounded.mode", &self.bounded)])?;
        let fields = key_fields(table, self.key_fields.as_deref())?;
        let key = Key::of(table, "key", &fields)?;
        let is_key_in_payload = self.is_key_in_payload.unwrap_or(true);
        check_made_key(table, &key, self.key_format.as_ref(), is_key_in_payload)?;
        let key_prefix = key_prefix(self.key_prefix, &fields, is_key_in_payload)?;
        // Without a format, or by a PRIMARY KEY alone, a key is only written; and what payloads have is read from them.
        let is_read = self.key_fields.is_some() && !is_key_in_payload;
        let key_columns = self.key_format.clone().filter(|_| is_read).map(|format| KeyColumns {
            metadata: "key",
            names: fields,
            prefix: key_prefix.clone(),
            format,
        });
        let key_format = self.key_format.unwrap_or_else(|| format.key_format());
        Ok(KafkaOptions {
            topics,
            delivery: self.delivery.unwrap_or(Delivery::ExactlyOnce),
            progress_topic,
            properties,
            format,
            startup: self.startup.unwrap_or(Position::Earliest),
            bounded: self.bounded,
            discovery: self.discovery.unwrap_or(DISCOVERY),
            on_data_loss: self.on_data_loss,
            key,
            key_format,
            key_prefix,
            is_key_in_payload,
            key_columns,
            partitioner: partitioner(self.partitioner, table)?,
        })
    }
}

/// `topic` or `topic-pattern`: one of them.
fn topics(reader: &mut OptionReader<'_>) -> Result<Topics> {
    let form = "a topic, or several divided by ';'; a name has 1 to 249 letters, digits, '.', '_' or '-'";
    let named = reader.with("topic", form, names)?;
    let matching = reader.with("topic-pattern", "a regular expression", pattern)?;
    match (named, matching) {
        (Some(names), None) => Ok(Topics::Named(names)),
        (None, Some(matching)) => Ok(matching),
        (Some(_), Some(_)) => {
            Err(reader.blame(Error::usage("the options 'topic' and 'topic-pattern' are both there; keep one of them")))
        }
        (None, None) => {
            Err(reader.blame(Error::usage("the option 'topic' is missing, or 'topic-pattern' in its place")))
        }
    }
}

/// `a;b`, all of them legal.
fn names(text: &str) -> Option<BTreeSet<String>> {
    let names: BTreeSet<String> =
        text.split(';').map(str::trim).filter(|name| !name.is_empty()).map(str::to_string).collect();
    (!names.is_empty() && names.iter().all(|name| is_legal(name))).then_some(names)
}

fn pattern(text: &str) -> Option<Topics> {
    // By itself as well: the halves of 'a)|(b' would be closed by what stands around it.
    Regex::new(text).ok().filter(|_| !text.is_empty())?;
    let whole = Regex::new(&format!("^(?:{text})$")).ok()?;
    Some(Topics::Matching { pattern: text.to_string(), whole })
}

fn progress_topic(given: Option<String>, topics: &Topics) -> Result<String> {
    let topic = given.unwrap_or_else(|| "millstream-progress".into());
    let is_taken = matches!(topics, Topics::Named(names) if names.contains(&topic));
    match is_legal(&topic) && !is_taken {
        true => Ok(topic),
        false => Err(Error::usage(format!("option 'sink.progress-topic': '{topic}' cannot be a topic of its own"))),
    }
}

/// Checks that there is a group, where one of these modes means it.
fn check_group(properties: &Properties, modes: [(&str, &Option<Position>); 2]) -> Result<()> {
    for (option, position) in modes {
        if matches!(position, Some(Position::Group(_))) && properties.group().is_none() {
            return Err(Error::usage(format!(
                "'{option}' = 'group-offsets' needs the option 'properties.group.id', the group that is meant"
            )));
        }
    }
    Ok(())
}

fn partitioner(given: Option<Partitioner>, table: &TableDefinition) -> Result<Partitioner> {
    match given.unwrap_or(Partitioner::Hash) {
        Partitioner::Fixed | Partitioner::RoundRobin if !table.primary_key.is_empty() => Err(Error::usage(
            "option 'sink.partitioner': rows with the same PRIMARY KEY must be in one partition, or their order is lost; \
             say 'default'",
        )),
        partitioner => Ok(partitioner),
    }
}

/// Whether a topic can have this name.
pub(super) fn is_legal(topic: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    !topic.is_empty() && topic.len() <= 249 && topic.chars().all(legal) && !matches!(topic, "." | "..")
}

/// `partition:0,offset:42;…`, each partition once, and so each word of an entry; with `topic:orders` as well where the
/// table has not the one topic `only`.
fn offsets(text: &str, only: Option<&str>) -> Option<Offsets> {
    let mut offsets = Offsets::new();
    for entry in text.split(';').map(str::trim).filter(|entry| !entry.is_empty()) {
        let (mut topic, mut partition, mut offset) = (None, None, None);
        for part in entry.split(',') {
            let (key, value) = part.split_once(':')?;
            let place = match key.trim() {
                "topic" => &mut topic,
                "partition" => &mut partition,
                "offset" => &mut offset,
                _ => return None,
            };
            if place.replace(value.trim()).is_some() {
                return None;
            }
        }
        let number = partition?.parse::<u32>().ok().filter(|number| i32::try_from(*number).is_ok())?;
        if offsets.insert(Partition::new(topic.or(only)?, number), offset?.parse().ok()?).is_some() {
            return None;
        }
    }
    (!offsets.is_empty()).then_some(offsets)
}

/// `key.format`, with its own options.
fn key_format(reader: &mut OptionReader<'_>, table: &TableDefinition) -> Result<Option<KeyFormat>> {
    let given = reader.choice("key.format", &KEY_FORMATS.map(|(name, _)| (name, name)))?;
    for (name, options) in KEY_FORMATS {
        reader.suggest(options, []);
        if let Some(option) = table.options.keys().find(|key| key.starts_with(options) && given != Some(name)) {
            return Err(reader.blame(Error::usage(format!("option '{option}' needs 'key.format' = '{name}'"))));
        }
    }
    match given {
        Some(name) => KeyFormat::take(name, reader),
        None => Ok(None),
    }
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
fn check_made_key(table: &TableDefinition, key: &Key, format: Option<&KeyFormat>, is_in_payload: bool) -> Result<()> {
    let option = match (format, is_in_payload) {
        (Some(_), _) => "key.format",
        (None, false) => "value.fields-include",
        (None, true) => return Ok(()),
    };
    let places = key.columns().iter();
    let columns: Vec<&Column> = places.filter_map(|place| table.writable_columns().nth(*place)).collect();
    match (key, columns.as_slice()) {
        (Key::Given(_), [given, ..]) => {
            return Err(Error::usage(format!(
                "option '{option}' is for a key that is made of columns, and column {} is the key as it is; declare it \
                 VIRTUAL if it is only to be read, or leave the option out",
                given.name
            )));
        }
        (_, []) => {
            return Err(Error::usage(format!(
                "option '{option}' is for a key that is made of columns; name them with 'key.fields' or a PRIMARY KEY, \
                 or leave it out"
            )));
        }
        _ => {}
    }
    let Some(format) = format else { return Ok(()) };
    let key = Schema::new(columns.iter().map(|column| column.field()).collect::<Vec<_>>());
    format.check(Arc::new(key)).map_err(|error| error.context("option 'key.format'"))
}

/// Checks `key.fields-prefix`.
fn key_prefix(given: Option<String>, fields: &[String], is_in_payload: bool) -> Result<String> {
    let option = "option 'key.fields-prefix'";
    let Some(prefix) = given.filter(|prefix| !prefix.is_empty()) else { return Ok(String::new()) };
    if is_in_payload {
        return Err(Error::usage(format!(
            "{option} needs 'value.fields-include' = 'EXCEPT_KEY': payloads would have these columns under other names"
        )));
    }
    match fields.iter().find(|field| field.strip_prefix(prefix.as_str()).is_none_or(str::is_empty)) {
        Some(other) => Err(Error::usage(format!(
            "{option}: column {other} of the key must begin with '{prefix}', followed by the name of the key's field"
        ))),
        None => Ok(prefix),
    }
}

#[cfg(test)]
#[path = "options_tests.rs"]
mod tests;

//! The metadata of a message as columns.
//!
//! Properties are the user's own: every name that the broker keeps for itself, and the one in which a sink of ours says
//! which row a message is ([`MARK`]), is left out when a message is read, and refused when one is written, so that what
//! was read can be written again. Tags, keys and delays have their own columns.
//!
//! What it does not promise: that a message that was delayed still says so when it is read. Brokers take off what they
//! have acted on.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, Int32Array, Int64Array, MapBuilder, MapFieldNames, StringArray, StringBuilder, TimestampMillisecondArray,
};
use arrow::datatypes::{DataType, Field, Fields, TimeUnit};
use rocketmq_model::common::message::message_ext::MessageExt;
use rocketmq_model::common::message::{MessageConst, STRING_HASH_SET};

use super::topics::Queue;
use crate::catalog::{ColumnKind, TableDefinition};
use crate::connector::MetadataKey;
use crate::error::{Error, Result};

/// Names of metadata that say where a message stands.
pub(super) const QUEUE: &str = "queue";
pub(super) const OFFSET: &str = "offset";
pub(super) const STORE_TIMESTAMP: &str = "store-timestamp";

/// Names of metadata that a sink writes.
pub(super) const TAGS: &str = "tags";
pub(super) const KEYS: &str = "keys";
pub(super) const PROPERTIES: &str = "properties";
/// Before the name of one property.
pub(super) const PROPERTY: &str = "property.";
pub(super) const DELAY_LEVEL: &str = "delay-level";
pub(super) const DELIVERY_TIME: &str = "delivery-time";

/// The property that says which row of which epoch of which query a message is: see [`Mark`](super::mark::Mark).
pub(super) const MARK: &str = "millstream";

/// Every metadata column of a RocketMQ table.
pub(super) fn offered() -> Vec<MetadataKey> {
    let read = |key, data_type, meaning| MetadataKey { key, data_type, writable: false, meaning };
    let written = |key, data_type, meaning| MetadataKey { key, data_type, writable: true, meaning };
    let one_property = "one property, as `property.region`; NULL, if the message has none of that name. None that \
                        RocketMQ or Millstream keep for themselves, such as `TAGS`; not written beside the same in \
                        `properties`";
    vec![
        read("topic", DataType::Utf8, ""),
        read("broker", DataType::Utf8, ""),
        read(QUEUE, DataType::Int32, ""),
        read(OFFSET, DataType::Int64, ""),
        read("born-timestamp", time_type(), "the producer's clock"),
        read(STORE_TIMESTAMP, time_type(), "the broker's clock"),
        read("born-host", DataType::Utf8, "`host:port`"),
        read("store-host", DataType::Utf8, "`host:port`"),
        read("reconsume-times", DataType::Int32, ""),
        written(TAGS, DataType::Utf8, ""),
        written(KEYS, DataType::Utf8, "several divided by blanks; written instead of the PRIMARY KEY"),
        read("message-id", DataType::Utf8, ""),
        written(PROPERTIES, properties_type(), "the user's own"),
        written(PROPERTY, DataType::Utf8, one_property),
        written(DELAY_LEVEL, DataType::Int32, "see [delays](sql.md#rocketmq)"),
        written(DELIVERY_TIME, time_type(), "see [delays](sql.md#rocketmq)"),
    ]
}

/// A moment, in milliseconds.
pub(super) fn time_type() -> DataType {
    DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()))
}

/// `MAP<STRING, STRING>`.
pub(super) fn properties_type() -> DataType {
    let fields = [Field::new("key", DataType::Utf8, false), Field::new("value", DataType::Utf8, true)];
    DataType::Map(Arc::new(Field::new("entries", DataType::Struct(Fields::from_iter(fields)), false)), false)
}

/// Who keeps this property's name for itself, if anybody does: the broker and its clients, or Millstream.
pub(super) fn owner(property: &str) -> Option<&'static str> {
    match property {
        MARK => Some("Millstream"),
        _ => STRING_HASH_SET.contains(property).then_some("RocketMQ"),
    }
}

/// Whether a property's name is none of the user's.
fn is_reserved(property: &str) -> bool {
    owner(property).is_some()
}

/// Refuses a column of such a property.
pub(super) fn refuse_reserved(table: &TableDefinition) -> Result<()> {
    for column in &table.columns {
        if let ColumnKind::Metadata { key, .. } = &column.kind
            && let Some(property) = key.strip_prefix(PROPERTY)
            && let Some(owner) = owner(property)
        {
            return Err(Error::usage(format!(
                "table {}: column {}: {owner} keeps the property '{property}' for itself; of such there are metadata: \
                 '{TAGS}', '{KEYS}', 'message-id', '{DELAY_LEVEL}' and '{DELIVERY_TIME}'",
                table.name, column.name
            )));
        }
    }
    Ok(())
}

/// When a message is to be delivered, if not at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Delay {
    /// After the time that the broker has for this level, from 1.
    Level(i32),
    /// At this time, in milliseconds since 1970.
    Until(u64),
}

impl Delay {
    /// The longest property that says it: its name, a number, and what divides them.
    pub(super) const LONGEST: usize = 40;

    /// Of a message with this level and time; in words, what is wrong with them.
    pub(super) fn of(level: Option<i32>, time: Option<i64>) -> Result<Option<Self>, String> {
        match (level.unwrap_or(0), time) {
            (level, _) if level < 0 => {
                Err(format!("its delay-level is {level}; levels begin at 1, and 0 or NULL is without delay"))
            }
            (0, None) => Ok(None),
            // Before 1970 is as good as any other time that is past: the broker delivers at once.
            (0, Some(time)) => Ok(Some(Self::Until(time.max(0) as u64))),
            (level, None) => Ok(Some(Self::Level(level))),
            (_, Some(_)) => Err("it has a delay-level and a delivery-time; make one of them NULL".into()),
        }
    }
}

/// Refuses a table that writes when messages are delivered, for a sink that must find what it has sent.
pub(super) fn refuse_delays(table: &TableDefinition) -> Result<()> {
    for column in &table.columns {
        if let ColumnKind::Metadata { key, is_virtual: false } = &column.kind
            && [DELAY_LEVEL, DELIVERY_TIME].contains(&key.as_str())
        {
            return Err(Error::usage(format!(
                "table {}: column {}: metadata '{key}' does not go with 'sink.delivery-guarantee' = \
                 'effectively-once', as a message that is delayed waits in another topic, where it cannot be looked \
                 for; leave the column out, declare it VIRTUAL, or say 'at-least-once'",
                table.name, column.name
            )));
        }
    }
    Ok(())
}

/// What a property says, if it is there and well-formed.
fn stated<T: FromStr>(message: &MessageExt, property: &str) -> Option<T> {
    message.properties().get(property)?.as_str().parse().ok()
}

/// The id that the producer gave the message, or else the broker's.
pub(super) fn message_id(message: &MessageExt) -> &str {
    let given = message.properties().get(MessageConst::PROPERTY_UNIQ_CLIENT_MESSAGE_ID_KEYIDX);
    given.unwrap_or(message.msg_id()).as_str()
}

/// One metadata column of consecutive messages of a queue, while it is filled.
#[derive(Debug)]
pub(super) enum Column {
    /// The same text for every message.
    Same(Arc<str>),
    /// The queue's number.
    Queue(u32),
    /// The offsets, known at the end.
    Offset,
    /// Milliseconds since 1970, where the message says any.
    Time(fn(&MessageExt) -> Option<i64>, Vec<Option<i64>>),
    /// A number, where the message says one.
    Number(fn(&MessageExt) -> Option<i32>, Vec<Option<i32>>),
    /// A text of the message.
    Text(fn(&MessageExt) -> Option<&str>, StringBuilder),
    /// An address, `host:port`.
    Host(fn(&MessageExt) -> SocketAddr, StringBuilder),
    /// The property of this name, where the message has it.
    Property(String, StringBuilder),
    /// The user's properties, ordered by name.
    Properties(Box<MapBuilder<StringBuilder, StringBuilder>>),
}

impl Column {
    /// The column `key`, for messages of this queue; none if there is no such metadata.
    pub(super) fn new(key: &str, queue: Queue<'_>) -> Option<Self> {
        let property = |read| Self::Text(read, StringBuilder::new());
        if let Some(name) = key.strip_prefix(PROPERTY) {
            return Some(Self::Property(name.into(), StringBuilder::new()));
        }
        Some(match key {
            "topic" => Self::Same(queue.topic.into()),
            "broker" => Self::Same(queue.broker.into()),
            QUEUE => Self::Queue(queue.number),
            OFFSET => Self::Offset,
            "born-timestamp" => Self::Time(|message| Some(message.born_timestamp()), Vec::new()),
            STORE_TIMESTAMP => Self::Time(|message| Some(message.store_timestamp()), Vec::new()),
            "born-host" => Self::Host(|message| message.born_host(), StringBuilder::new()),
            "store-host" => Self::Host(|message| message.store_host(), StringBuilder::new()),
            "reconsume-times" => Self::Number(|message| Some(message.reconsume_times()), Vec::new()),
            DELAY_LEVEL => Self::Number(|m| stated(m, MessageConst::PROPERTY_DELAY_TIME_LEVEL), Vec::new()),
            DELIVERY_TIME => Self::Time(|m| stated(m, MessageConst::PROPERTY_TIMER_DELIVER_MS), Vec::new()),
            TAGS => property(|m| m.properties().get(MessageConst::PROPERTY_TAGS).map(|tags| tags.as_str())),
            KEYS => property(|m| m.properties().get(MessageConst::PROPERTY_KEYS).map(|keys| keys.as_str())),
            "message-id" => property(|message| Some(message_id(message))),
            PROPERTIES => {
                let names = MapFieldNames { entry: "entries".into(), key: "key".into(), value: "value".into() };
                let builder = MapBuilder::new(Some(names), StringBuilder::new(), StringBuilder::new());
                Self::Properties(Box::new(builder))
            }
            _ => return None,
        })
    }

    /// Adds what it takes from `message`.
    pub(super) fn append(&mut self, message: &MessageExt) -> Result<(), arrow::error::ArrowError> {
        match self {
            Self::Same(_) | Self::Queue(_) | Self::Offset => {}
            Self::Time(read, times) => times.push(read(message)),
            Self::Number(read, numbers) => numbers.push(read(message)),
            Self::Text(read, texts) => texts.append_option(read(message)),
            Self::Host(read, hosts) => hosts.append_value(read(message).to_string()),
            Self::Property(name, texts) => {
                texts.append_option(message.properties().get(name.as_str()).map(|value| value.as_str()));
            }
            Self::Properties(builder) => {
                let all = message.properties().iter().map(|(name, value)| (name.as_str(), value.as_str()));
                for (name, value) in all.filter(|(name, _)| !is_reserved(name)).collect::<BTreeMap<_, _>>() {
                    builder.keys().append_value(name);
                    builder.values().append_value(value);
                }
                builder.append(true)?;
            }
        }
        Ok(())
    }

    /// What was collected, for the messages at `offsets`; it is empty again afterwards.
    pub(super) fn finish(&mut self, offsets: &[u64]) -> ArrayRef {
        match self {
            Self::Same(text) => Arc::new(StringArray::from_iter_values(offsets.iter().map(|_| &**text))),
            Self::Queue(number) => Arc::new(Int32Array::from_value(*number as i32, offsets.len())),
            Self::Offset => Arc::new(Int64Array::from_iter_values(offsets.iter().map(|offset| *offset as i64))),
            Self::Time(_, times) => {
                Arc::new(TimestampMillisecondArray::from_iter(std::mem::take(times)).with_timezone("UTC"))
            }
            Self::Number(_, numbers) => Arc::new(Int32Array::from(std::mem::take(numbers))),
            Self::Text(_, texts) | Self::Host(_, texts) | Self::Property(_, texts) => Arc::new(texts.finish()),
            Self::Properties(builder) => Arc::new(builder.finish()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use arrow::array::{Array, AsArray};
    use arrow::datatypes::{Int32Type, TimestampMillisecondType};

    use super::*;
    use crate::catalog::Column as TableColumn;
    use crate::connector::contract::fixture;
    use crate::connector::messages::check_metadata;

    /// A message with these properties.
    fn message(properties: &[(&str, &str)]) -> MessageExt {
        let properties: HashMap<_, _> =
            properties.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        let mut message = MessageExt::default();
        message.message.set_properties(properties);
        message
    }

    const QUEUE: Queue<'_> = Queue { topic: "t", broker: "broker-a", number: 3 };

    #[test]
    fn every_offered_key_has_a_column_of_its_type() {
        let mut message = MessageExt::default();
        message.set_msg_id("7F".into());
        for offered in offered() {
            let mut column = Column::new(offered.key, QUEUE).unwrap();
            column.append(&message).unwrap();
            let array = column.finish(&[41]);
            assert_eq!(array.len(), 1, "{}", offered.key);
            assert_eq!(array.data_type(), &offered.data_type, "{}", offered.key);
        }
        assert!(Column::new("partition", QUEUE).is_none());
    }

    #[test]
    fn the_brokers_own_properties_are_reserved() {
        let hidden = ["MIN_OFFSET", "MAX_OFFSET", "UNIQ_KEY", "WAIT", "CLUSTER", "MSG_REGION", "TRACE_ON", "DELAY"];
        assert!(hidden.iter().all(|name| is_reserved(name)));
        assert!(["TAGS", "KEYS", "REAL_TOPIC", "REAL_QID"].iter().all(|name| is_reserved(name)));
        assert!(!is_reserved("amount"));
    }

    #[test]
    fn the_mark_of_a_row_is_no_property_of_the_users() {
        let marked = message(&[("region", "eu"), (MARK, "00c0ffee00c0ffee-7-41"), ("UNIQ_KEY", "7F")]);
        let mut column = Column::new(PROPERTIES, QUEUE).unwrap();
        column.append(&marked).unwrap();
        let properties = column.finish(&[0]).as_map().value(0);
        assert_eq!(properties.column(0).as_string::<i32>().iter().flatten().collect::<Vec<_>>(), ["region"]);
    }

    #[test]
    fn a_property_that_is_none_of_the_users_is_no_column() {
        let refused = |key: &str| {
            let mut table = (*fixture::table_of("orders", &arrow::datatypes::Schema::empty(), &[])).clone();
            let kind = ColumnKind::Metadata { key: key.into(), is_virtual: true };
            table.columns = vec![TableColumn { kind, ..TableColumn::physical("c", DataType::Utf8) }];
            let checked = check_metadata(&table, &offered(), false).and_then(|()| refuse_reserved(&table));
            checked.err().map(|error| error.to_string())
        };
        assert_eq!(refused("property.region"), None);
        for (key, part) in [
            ("property.TAGS", "table orders: column c: RocketMQ keeps the property 'TAGS' for itself"),
            ("property.KEYS", "of such there are metadata: 'tags', 'keys', 'message-id'"),
            ("property.UNIQ_KEY", "RocketMQ keeps the property 'UNIQ_KEY'"),
            ("property.millstream", "Millstream keeps the property 'millstream'"),
            ("property.", "there is no metadata 'property.'; did you mean 'property.<name>'?"),
        ] {
            let error = refused(key).unwrap();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_property_is_read_by_its_name() {
        let mut column = Column::new("property.region", QUEUE).unwrap();
        for properties in [&[("region", "eu")][..], &[("amount", "7")]] {
            column.append(&message(properties)).unwrap();
        }
        let texts = column.finish(&[0, 1]);
        assert_eq!(texts.as_string::<i32>().iter().collect::<Vec<_>>(), [Some("eu"), None]);
    }

    #[test]
    fn delays_are_read_where_a_message_still_says_them() {
        let delayed = message(&[("DELAY", "3"), ("TIMER_DELIVER_MS", "1700000000123")]);
        let finished = |key: &str| {
            let mut column = Column::new(key, QUEUE).unwrap();
            column.append(&delayed).unwrap();
            column.append(&message(&[("DELAY", "soon")])).unwrap();
            column.finish(&[0, 1])
        };
        let levels = finished(DELAY_LEVEL);
        assert_eq!(levels.as_primitive::<Int32Type>().iter().collect::<Vec<_>>(), [Some(3), None]);
        let times = finished(DELIVERY_TIME);
        let times = times.as_primitive::<TimestampMillisecondType>();
        assert_eq!(times.iter().collect::<Vec<_>>(), [Some(1_700_000_000_123), None]);
    }

    #[test]
    fn a_sink_that_looks_for_its_messages_delays_none() {
        let mut table = (*fixture::table_of("orders", &arrow::datatypes::Schema::empty(), &[])).clone();
        let column = |is_virtual| TableColumn {
            kind: ColumnKind::Metadata { key: DELAY_LEVEL.into(), is_virtual },
            ..TableColumn::physical("level", DataType::Int32)
        };
        table.columns = vec![column(true)];
        refuse_delays(&table).unwrap();
        table.columns = vec![column(false)];
        let error = refuse_delays(&table).unwrap_err().to_string();
        let expected = "table orders: column level: metadata 'delay-level' does not go with \
                        'sink.delivery-guarantee' = 'effectively-once'";
        assert!(error.starts_with(expected), "{error}");
    }
}

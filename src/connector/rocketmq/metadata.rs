//! The metadata of a message as columns.
//!
//! Properties are the user's own: every name that the broker keeps for itself is left out when a message is read, and
//! refused when one is written, so that what was read can be written again. Tags and keys have their own columns.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, Int32Array, Int64Array, MapBuilder, MapFieldNames, StringArray, StringBuilder, TimestampMillisecondArray,
};
use arrow::datatypes::{DataType, Field, Fields, TimeUnit};
use rocketmq_model::common::message::message_ext::MessageExt;
use rocketmq_model::common::message::{MessageConst, STRING_HASH_SET};

use crate::connector::{MetadataKey, Partition};

/// Names of metadata that a sink writes.
pub(super) const TAGS: &str = "tags";
pub(super) const KEYS: &str = "keys";
pub(super) const PROPERTIES: &str = "properties";

/// Every metadata column of a RocketMQ table.
pub(super) fn offered() -> Vec<MetadataKey> {
    let time = DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()));
    let read = |key, data_type| MetadataKey { key, data_type, writable: false };
    let written = |key, data_type| MetadataKey { key, data_type, writable: true };
    vec![
        read("topic", DataType::Utf8),
        read("broker", DataType::Utf8),
        read("queue", DataType::Int32),
        read("offset", DataType::Int64),
        read("born-timestamp", time.clone()),
        read("store-timestamp", time),
        written(TAGS, DataType::Utf8),
        written(KEYS, DataType::Utf8),
        read("message-id", DataType::Utf8),
        written(PROPERTIES, properties_type()),
    ]
}

/// `MAP<STRING, STRING>`.
pub(super) fn properties_type() -> DataType {
    let fields = [Field::new("key", DataType::Utf8, false), Field::new("value", DataType::Utf8, true)];
    DataType::Map(Arc::new(Field::new("entries", DataType::Struct(Fields::from_iter(fields)), false)), false)
}

/// Whether the broker or the client keeps this property's name for itself.
pub(super) fn is_reserved(property: &str) -> bool {
    STRING_HASH_SET.contains(property)
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
    /// Milliseconds since 1970.
    Time(fn(&MessageExt) -> i64, Vec<i64>),
    /// A text of the message.
    Text(fn(&MessageExt) -> Option<&str>, StringBuilder),
    /// The user's properties, ordered by name.
    Properties(Box<MapBuilder<StringBuilder, StringBuilder>>),
}

impl Column {
    /// The column `key`, for messages of this queue; none if there is no such metadata.
    pub(super) fn new(key: &str, topic: &str, queue: &Partition) -> Option<Self> {
        let property = |read| Self::Text(read, StringBuilder::new());
        Some(match key {
            "topic" => Self::Same(topic.into()),
            "broker" => Self::Same(Arc::clone(&queue.name)),
            "queue" => Self::Queue(queue.number),
            "offset" => Self::Offset,
            "born-timestamp" => Self::Time(MessageExt::born_timestamp, Vec::new()),
            "store-timestamp" => Self::Time(MessageExt::store_timestamp, Vec::new()),
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
            Self::Text(read, texts) => texts.append_option(read(message)),
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
                Arc::new(TimestampMillisecondArray::from(std::mem::take(times)).with_timezone("UTC"))
            }
            Self::Text(_, texts) => Arc::new(texts.finish()),
            Self::Properties(builder) => Arc::new(builder.finish()),
        }
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::Array;

    use super::*;

    #[test]
    fn every_offered_key_has_a_column_of_its_type() {
        let queue = Partition::new("broker-a", 3);
        let mut message = MessageExt::default();
        message.set_msg_id("7F".into());
        for offered in offered() {
            let mut column = Column::new(offered.key, "t", &queue).unwrap();
            column.append(&message).unwrap();
            let array = column.finish(&[41]);
            assert_eq!(array.len(), 1, "{}", offered.key);
            assert_eq!(array.data_type(), &offered.data_type, "{}", offered.key);
        }
        assert!(Column::new("partition", "t", &queue).is_none());
    }

    #[test]
    fn the_brokers_own_properties_are_reserved() {
        let hidden = ["MIN_OFFSET", "MAX_OFFSET", "UNIQ_KEY", "WAIT", "CLUSTER", "MSG_REGION", "TRACE_ON", "DELAY"];
        assert!(hidden.iter().all(|name| is_reserved(name)));
        assert!(["TAGS", "KEYS", "REAL_TOPIC", "REAL_QID"].iter().all(|name| is_reserved(name)));
        assert!(!is_reserved("amount"));
    }
}

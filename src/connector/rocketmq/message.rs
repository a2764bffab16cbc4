//! From encoded rows to messages, checked before any of them is sent.
//!
//! What the broker or the client would refuse, or worse, would store cut short, is found while rows are staged: bodies
//! that are empty or too large, and properties that are reserved, empty, too long, or hold the two control characters
//! that divide properties on the wire. A row without a payload is a tombstone, which is written as a body and a property.

use std::collections::BTreeMap;

use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, MapArray, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use rocketmq_model::common::message::message_client_id_setter::MessageClientIDSetter;
use rocketmq_model::common::message::message_single::Message;
use twox_hash::XxHash64;

use super::metadata::{KEYS, PROPERTIES, TAGS, is_reserved, properties_type};
use crate::connector::outgoing::PAYLOAD;
use crate::error::{Error, Result};

/// The largest message, as encoded: what a stock broker takes (4 MiB), less what it adds itself.
pub(super) const LARGEST_MESSAGE: usize = (4 << 20) - (64 << 10);

/// The longest properties, as encoded: their length is a signed 16-bit number, and client and broker add some.
pub(super) const LONGEST_PROPERTIES: usize = 32_000;

/// Sizes, checksum, flags and lengths of a message in a batch, and what the client adds to its properties.
const OVERHEAD: usize = 96;

/// The seed of the hash that maps keys to queues: fixed, so that a key stays in its queue across runs and versions.
const SEED: u64 = 0;

/// The body of a tombstone; an empty one is refused.
const NO_VALUE: &[u8] = b"null";

/// The property that tells a tombstone from a row, and its value.
const TOMBSTONE: (&str, &str) = ("tombstone", "true");

/// What divides names, values and properties on the wire.
const DIVIDERS: [char; 2] = ['\u{1}', '\u{2}'];

/// A batch of encoded rows, as messages.
#[derive(Debug)]
pub(super) struct Messages {
    payloads: BinaryArray,
    tags: Option<StringArray>,
    keys: Option<StringArray>,
    properties: Option<MapArray>,
}

impl Messages {
    /// Of a batch that `Encoding` made.
    pub(super) fn try_new(encoded: &RecordBatch) -> Result<Self> {
        let column = |key: &str, data_type: &DataType| -> Result<Option<ArrayRef>> {
            let column = encoded.column_by_name(&format!("metadata.{key}"));
            Ok(column.map(|column| cast(column, data_type)).transpose()?)
        };
        Ok(Self {
            payloads: encoded.column(PAYLOAD).as_binary::<i32>().clone(),
            tags: column(TAGS, &DataType::Utf8)?.map(|tags| tags.as_string::<i32>().clone()),
            keys: column(KEYS, &DataType::Utf8)?.map(|keys| keys.as_string::<i32>().clone()),
            properties: column(PROPERTIES, &properties_type())?.map(|properties| properties.as_map().clone()),
        })
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.payloads.len()
    }

    /// The bytes of all bodies.
    pub(super) fn bytes(&self) -> u64 {
        let offsets = self.payloads.value_offsets();
        (offsets[self.payloads.len()] - offsets[0]) as u64 + (self.payloads.null_count() * NO_VALUE.len()) as u64
    }

    /// Says why message `row` cannot be sent, if so.
    pub(super) fn check(&self, row: usize) -> Result<(), String> {
        let body = self.body(row);
        if body.is_empty() {
            return Err("its body is empty, which RocketMQ refuses; write at least one column".into());
        }
        let mut properties = 0;
        for (name, text) in [(TAGS, self.tags(row)), (KEYS, self.keys(row))] {
            let Some(text) = text else { continue };
            check_text(name, text)?;
            properties += name.len() + text.len() + 2;
        }
        for (name, value) in self.properties(row)? {
            if name.is_empty() {
                return Err("a property has an empty name".into());
            }
            if is_reserved(name) {
                return Err(format!("RocketMQ keeps the property '{name}' for itself; call it otherwise"));
            }
            check_text(name, name)?;
            check_text(name, value)?;
            properties += name.len() + value.len() + 2;
        }
        if properties > LONGEST_PROPERTIES {
            return Err(format!(
                "tags, keys and properties take {properties} bytes, and {LONGEST_PROPERTIES} is the most; put them into \
                 the body"
            ));
        }
        let size = body.len() + properties + OVERHEAD;
        if size > LARGEST_MESSAGE {
            return Err(format!(
                "it takes {size} bytes, and {LARGEST_MESSAGE} is the most that RocketMQ stores in a message; make the row \
                 smaller, or leave it out"
            ));
        }
        Ok(())
    }

    /// The size of message `row`, as encoded; an upper bound.
    pub(super) fn size(&self, row: usize) -> usize {
        let text = |text: Option<&str>| text.map_or(0, |text| text.len() + 6);
        let properties: usize =
            self.properties(row).unwrap_or_default().iter().map(|(name, value)| name.len() + value.len() + 2).sum();
        self.body(row).len() + text(self.tags(row)) + text(self.keys(row)) + properties + OVERHEAD
    }

    /// Which of `queues` message `row` goes to: by its keys, as one text, or else by its ordinal.
    pub(super) fn queue(&self, row: usize, ordinal: u64, queues: usize) -> usize {
        let spread = self.keys(row).map_or(ordinal, |keys| XxHash64::oneshot(SEED, keys.as_bytes()));
        (spread % queues.max(1) as u64) as usize
    }

    /// Message `row`, with an id of its own that it keeps however often it is sent.
    pub(super) fn message(&self, row: usize, topic: &str) -> Result<Message> {
        let failed = |reason: String| Error::internal(format!("topic {topic}: a checked message is refused: {reason}"));
        let mut message = Message::builder().topic(topic).body_slice(self.body(row));
        if let Some(tags) = self.tags(row) {
            message = message.tags(tags);
        }
        if let Some(keys) = self.keys(row) {
            message = message.key(keys);
        }
        for (name, value) in self.properties(row).map_err(failed)? {
            message = message.raw_property(name, value).map_err(|e| failed(e.to_string()))?;
        }
        let mut message = message.build().map_err(|e| failed(e.to_string()))?;
        MessageClientIDSetter::set_uniq_id(&mut message);
        Ok(message)
    }

    fn body(&self, row: usize) -> &[u8] {
        if self.payloads.is_null(row) { NO_VALUE } else { self.payloads.value(row) }
    }

    fn tags(&self, row: usize) -> Option<&str> {
        self.tags.as_ref().filter(|tags| tags.is_valid(row)).map(|tags| tags.value(row))
    }

    fn keys(&self, row: usize) -> Option<&str> {
        self.keys.as_ref().filter(|keys| keys.is_valid(row)).map(|keys| keys.value(row))
    }

    fn properties(&self, row: usize) -> Result<BTreeMap<&str, &str>, String> {
        let mut properties = BTreeMap::new();
        if let Some(map) = self.properties.as_ref().filter(|map| map.is_valid(row)) {
            let (names, values) = (map.keys().as_string::<i32>(), map.values().as_string::<i32>());
            let offsets = map.value_offsets();
            for entry in offsets[row] as usize..offsets[row + 1] as usize {
                let name = names.value(entry);
                if values.is_null(entry) {
                    return Err(format!("the property '{name}' is NULL; leave it out instead"));
                }
                if properties.insert(name, values.value(entry)).is_some() {
                    return Err(format!("the property '{name}' is there twice"));
                }
            }
        }
        properties.extend(self.payloads.is_null(row).then_some(TOMBSTONE));
        Ok(properties)
    }
}

fn check_text(name: &str, text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err(format!("'{name}' is an empty text, which RocketMQ does not store; make it NULL or leave it out"));
    }
    if text.contains(DIVIDERS) {
        return Err(format!("'{name}' holds the control character U+0001 or U+0002, which divides properties"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{MapBuilder, MapFieldNames, StringBuilder, StringViewArray};
    use arrow::datatypes::{Field, Schema};

    use super::*;

    fn messages(
        body: &[u8],
        tags: Option<&str>,
        keys: Option<&str>,
        property: Option<(&str, Option<&str>)>,
    ) -> Messages {
        let names = MapFieldNames { entry: "entries".into(), key: "key".into(), value: "value".into() };
        let mut map = MapBuilder::new(Some(names), StringBuilder::new(), StringBuilder::new());
        if let Some((name, value)) = property {
            map.keys().append_value(name);
            map.values().append_option(value);
        }
        map.append(property.is_some()).unwrap();
        let schema = Schema::new(vec![
            Field::new("payload", DataType::Binary, true),
            Field::new("metadata.tags", DataType::Utf8View, true),
            Field::new("metadata.keys", DataType::Utf8View, true),
            Field::new("metadata.properties", properties_type(), true),
        ]);
        let columns: Vec<ArrayRef> = vec![
            Arc::new(BinaryArray::from_iter_values([body])),
            Arc::new(StringViewArray::from(vec![tags])),
            Arc::new(StringViewArray::from(vec![keys])),
            Arc::new(map.finish()),
        ];
        Messages::try_new(&RecordBatch::try_new(Arc::new(schema), columns).unwrap()).unwrap()
    }

    #[test]
    fn a_message_carries_what_the_row_says() {
        let messages = messages(b"{}", Some("new"), Some("k1 k2"), Some(("region", Some("eu"))));
        messages.check(0).unwrap();
        let message = messages.message(0, "t").unwrap();
        assert_eq!(message.body_slice(), b"{}");
        assert_eq!((message.tags(), message.property("KEYS")), (Some("new"), Some("k1 k2")));
        assert_eq!(message.property("region"), Some("eu"));
        assert!(message.property("UNIQ_KEY").is_some());
        assert_eq!(messages.bytes(), 2);
        let encoded = rocketmq_protocol::common::message::message_decoder::encode_message(&message);
        assert!(encoded.len() <= messages.size(0), "{} {}", encoded.len(), messages.size(0));
    }

    #[test]
    fn a_row_without_a_payload_is_a_tombstone() {
        let payloads = Arc::new(BinaryArray::from(vec![Some(&b"{}"[..]), None])) as ArrayRef;
        let keys = Arc::new(StringArray::from(vec!["a", "a"])) as ArrayRef;
        let columns = [("payload", payloads, true), ("metadata.keys", keys, true)];
        let messages = Messages::try_new(&RecordBatch::try_from_iter_with_nullable(columns).unwrap()).unwrap();
        messages.check(1).unwrap();
        let (row, gone) = (messages.message(0, "t").unwrap(), messages.message(1, "t").unwrap());
        assert_eq!((gone.body_slice(), gone.property("KEYS")), (&b"null"[..], Some("a")));
        assert_eq!((gone.property("tombstone"), row.property("tombstone")), (Some("true"), None));
        assert_eq!((messages.bytes(), messages.queue(0, 0, 8)), (6, messages.queue(1, 1, 8)));
        let encoded = rocketmq_protocol::common::message::message_decoder::encode_message(&gone);
        assert!(encoded.len() <= messages.size(1), "{} {}", encoded.len(), messages.size(1));
    }

    #[test]
    fn what_would_be_refused_or_cut_is_found_first() {
        let refused = |m: Messages, part: &str| {
            let reason = m.check(0).unwrap_err();
            assert!(reason.contains(part), "{reason}");
        };
        refused(messages(b"", None, None, None), "body is empty");
        refused(messages(b"x", Some(""), None, None), "'tags' is an empty text");
        refused(messages(b"x", None, Some("a\u{1}b"), None), "'keys' holds the control character");
        refused(messages(b"x", None, None, Some(("KEYS", Some("x")))), "keeps the property 'KEYS'");
        refused(messages(b"x", None, None, Some(("a\u{2}", Some("x")))), "control character");
        refused(messages(b"x", None, None, Some(("a", None))), "'a' is NULL");
        refused(messages(b"x", None, None, Some(("a", Some(&"x".repeat(32_000))))), "32000 is the most");
        refused(messages(&vec![b'x'; 4 << 20], None, None, None), "is the most that RocketMQ stores");
    }

    #[test]
    fn a_key_stays_in_its_queue() {
        let keyed = messages(b"x", None, Some("order-1"), None);
        let queue = keyed.queue(0, 0, 8);
        assert_eq!(queue as u64, XxHash64::oneshot(0, b"order-1") % 8);
        assert!((1..9).all(|ordinal| keyed.queue(0, ordinal, 8) == queue));
        let plain = messages(b"x", None, None, None);
        assert_eq!((0..4).map(|ordinal| plain.queue(0, ordinal, 3)).collect::<Vec<_>>(), [0, 1, 2, 0]);
    }
}

//! From encoded rows to messages, checked before any of them is sent.
//!
//! What the broker or the client would refuse, or worse, would store cut short, is found while rows are staged: bodies
//! that are empty or too large, and properties that are reserved, empty, too long, or hold the two control characters
//! that divide properties on the wire. A row without a payload is a tombstone, which is written as a body and a property.
//!
//! What it does not promise: that the broker has the level, or takes the time, of a message that is to be delivered
//! later. It takes its last level for one that it does not have, and refuses a time that is too far off.

use std::collections::BTreeMap;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, Int32Array, MapArray, RecordBatch, StringArray, TimestampMillisecondArray,
};
use arrow::compute::{CastOptions, cast, cast_with_options};
use arrow::datatypes::{DataType, Int32Type, TimestampMillisecondType};
use rocketmq_model::common::message::message_client_id_setter::MessageClientIDSetter;
use rocketmq_model::common::message::message_single::Message;
use twox_hash::XxHash64;

use super::mark;
use super::metadata::{
    DELAY_LEVEL, DELIVERY_TIME, Delay, KEYS, MARK, PROPERTIES, PROPERTY, TAGS, owner, properties_type, time_type,
};
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

/// Whether a message that was read is a tombstone, as they are written here.
pub(super) fn is_tombstone(body: &[u8], message: &Message) -> bool {
    let (property, value) = TOMBSTONE;
    body == NO_VALUE && message.property(property).is_some_and(|found| found == value)
}

/// What divides names, values and properties on the wire.
const DIVIDERS: [char; 2] = ['\u{1}', '\u{2}'];

/// A batch of encoded rows, as messages.
#[derive(Debug)]
pub(super) struct Messages {
    payloads: BinaryArray,
    tags: Option<StringArray>,
    keys: Option<StringArray>,
    properties: Option<MapArray>,
    /// Properties that have columns of their own, by name.
    named: Vec<(String, StringArray)>,
    levels: Option<Int32Array>,
    times: Option<TimestampMillisecondArray>,
    /// What the properties that are not the user's may take in each message.
    room: usize,
}

impl Messages {
    /// Of a batch that `Encoding` made.
    pub(super) fn try_new(encoded: &RecordBatch) -> Result<Self> {
        let column = |key: &str, data_type: &DataType| -> Result<Option<ArrayRef>> {
            let column = encoded.column_by_name(&format!("metadata.{key}"));
            Ok(column.map(|column| cast(column, data_type)).transpose()?)
        };
        // What is no number or time must not count as "at once".
        let strict = CastOptions { safe: false, ..CastOptions::default() };
        let delays = |key: &str, data_type: &DataType| -> Result<Option<ArrayRef>> {
            let column = encoded.column_by_name(&format!("metadata.{key}"));
            let cast = column.map(|column| cast_with_options(column, data_type, &strict)).transpose();
            cast.map_err(|e| Error::data(format!("a value cannot be the {key} of a message")).caused_by(e))
        };
        let levels = delays(DELAY_LEVEL, &DataType::Int32)?.map(|levels| levels.as_primitive::<Int32Type>().clone());
        let times =
            delays(DELIVERY_TIME, &time_type())?.map(|times| times.as_primitive::<TimestampMillisecondType>().clone());
        let mut named = vec![];
        for (field, column) in encoded.schema_ref().fields().iter().zip(encoded.columns()) {
            let key = field.name().strip_prefix("metadata.");
            if let Some(name) = key.and_then(|key| key.strip_prefix(PROPERTY)) {
                named.push((name.to_string(), cast(column, &DataType::Utf8)?.as_string::<i32>().clone()));
            }
        }
        let room = if levels.is_some() || times.is_some() { Delay::LONGEST } else { 0 };
        Ok(Self {
            payloads: encoded.column(PAYLOAD).as_binary::<i32>().clone(),
            tags: column(TAGS, &DataType::Utf8)?.map(|tags| tags.as_string::<i32>().clone()),
            keys: column(KEYS, &DataType::Utf8)?.map(|keys| keys.as_string::<i32>().clone()),
            properties: column(PROPERTIES, &properties_type())?.map(|properties| properties.as_map().clone()),
            named,
            levels,
            times,
            room,
        })
    }

    /// The same messages, each with room for a [`Mark`](super::mark::Mark).
    pub(super) fn marked(mut self) -> Self {
        self.room += mark::LONGEST;
        self
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
        self.delay(row)?;
        let mut properties = self.room;
        for (name, text) in [(TAGS, self.tags(row)), (KEYS, self.keys(row))] {
            let Some(text) = text else { continue };
            check_text(name, text)?;
            properties += name.len() + text.len() + 2;
        }
        for (name, value) in self.properties(row)? {
            if name.is_empty() {
                return Err("a property has an empty name".into());
            }
            if let Some(owner) = owner(name) {
                return Err(format!("{owner} keeps the property '{name}' for itself; call it otherwise"));
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
        self.body(row).len() + text(self.tags(row)) + text(self.keys(row)) + properties + self.room + OVERHEAD
    }

    /// Whether message `row` is to be delivered later.
    pub(super) fn is_delayed(&self, row: usize) -> bool {
        matches!(self.delay(row), Ok(Some(_)))
    }

    /// Which of `queues` message `row` goes to: by its keys, as one text, or else by its ordinal.
    pub(super) fn queue(&self, row: usize, ordinal: u64, queues: usize) -> usize {
        let spread = self.keys(row).map_or(ordinal, |keys| XxHash64::oneshot(SEED, keys.as_bytes()));
        (spread % queues.max(1) as u64) as usize
    }

    /// Message `row`, with an id of its own that it keeps however often it is sent, and with its mark, if it gets one.
    pub(super) fn message(&self, row: usize, topic: &str, mark: Option<&str>) -> Result<Message> {
        let failed = |reason: String| Error::internal(format!("topic {topic}: a checked message is refused: {reason}"));
        let mut message = Message::builder().topic(topic).body_slice(self.body(row));
        if let Some(tags) = self.tags(row) {
            message = message.tags(tags);
        }
        if let Some(keys) = self.keys(row) {
            message = message.key(keys);
        }
        message = match self.delay(row).map_err(failed)? {
            Some(Delay::Level(level)) => message.delay_level(level),
            Some(Delay::Until(time)) => message.deliver_time_ms(time),
            None => message,
        };
        let properties = self.properties(row).map_err(failed)?;
        for (name, value) in properties.into_iter().chain(mark.map(|text| (MARK, text))) {
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

    fn delay(&self, row: usize) -> Result<Option<Delay>, String> {
        let level = self.levels.as_ref().filter(|levels| levels.is_valid(row)).map(|levels| levels.value(row));
        let time = self.times.as_ref().filter(|times| times.is_valid(row)).map(|times| times.value(row));
        Delay::of(level, time)
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
        for (name, values) in self.named.iter().filter(|(_, values)| values.is_valid(row)) {
            if properties.insert(name, values.value(row)).is_some() {
                return Err(format!("the property '{name}' is there twice"));
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
    use crate::connector::rocketmq::mark::Mark;

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
        let message = messages.message(0, "t", None).unwrap();
        assert_eq!(message.body_slice(), b"{}");
        assert_eq!((message.tags(), message.property("KEYS")), (Some("new"), Some("k1 k2")));
        assert_eq!(message.property("region"), Some("eu"));
        assert!(message.property("UNIQ_KEY").is_some());
        assert_eq!(messages.bytes(), 2);
        let encoded = rocketmq_protocol::common::message::message_decoder::encode_message(&message);
        assert!(encoded.len() <= messages.size(0), "{} {}", encoded.len(), messages.size(0));
    }

    #[test]
    fn a_property_may_have_a_column_of_its_own() {
        let columns = [
            ("payload", Arc::new(BinaryArray::from_iter_values([b"{}", b"{}"])) as ArrayRef, true),
            ("metadata.property.region", Arc::new(StringArray::from(vec![Some("eu"), None])) as ArrayRef, true),
        ];
        let messages = Messages::try_new(&RecordBatch::try_from_iter_with_nullable(columns).unwrap()).unwrap();
        let region = |row| messages.message(row, "t", None).unwrap().property("region").map(str::to_string);
        assert_eq!((region(0).as_deref(), region(1)), (Some("eu"), None));
        let empty = [("payload", Arc::new(BinaryArray::from_iter_values([b"{}"])) as ArrayRef, true)];
        let region = Arc::new(StringArray::from(vec![""])) as ArrayRef;
        let columns = empty.into_iter().chain([("metadata.property.region", region, true)]);
        let messages = Messages::try_new(&RecordBatch::try_from_iter_with_nullable(columns).unwrap()).unwrap();
        assert!(messages.check(0).unwrap_err().contains("'region' is an empty text"));
    }

    #[test]
    fn a_row_without_a_payload_is_a_tombstone() {
        let payloads = Arc::new(BinaryArray::from(vec![Some(&b"{}"[..]), None])) as ArrayRef;
        let keys = Arc::new(StringArray::from(vec!["a", "a"])) as ArrayRef;
        let columns = [("payload", payloads, true), ("metadata.keys", keys, true)];
        let messages = Messages::try_new(&RecordBatch::try_from_iter_with_nullable(columns).unwrap()).unwrap();
        messages.check(1).unwrap();
        let (row, gone) = (messages.message(0, "t", None).unwrap(), messages.message(1, "t", None).unwrap());
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
        refused(messages(b"x", None, None, Some(("KEYS", Some("x")))), "RocketMQ keeps the property 'KEYS'");
        refused(messages(b"x", None, None, Some((MARK, Some("x")))), "Millstream keeps the property 'millstream'");
        refused(messages(b"x", None, None, Some(("a\u{2}", Some("x")))), "control character");
        refused(messages(b"x", None, None, Some(("a", None))), "'a' is NULL");
        refused(messages(b"x", None, None, Some(("a", Some(&"x".repeat(32_000))))), "32000 is the most");
        refused(messages(&vec![b'x'; 4 << 20], None, None, None), "is the most that RocketMQ stores");
    }

    #[test]
    fn a_mark_has_room_in_every_message() {
        let marked = messages(b"{}", Some("new"), None, Some(("region", Some("eu")))).marked();
        marked.check(0).unwrap();
        let mark = Mark::new("00c0ffee00c0ffee", u64::MAX).text(u64::MAX);
        let message = marked.message(0, "t", Some(&mark)).unwrap();
        assert_eq!((message.property(MARK), message.property("region")), (Some(&*mark), Some("eu")));
        let encoded = rocketmq_protocol::common::message::message_decoder::encode_message(&message);
        assert!(encoded.len() <= marked.size(0), "{} {}", encoded.len(), marked.size(0));
        // Just small enough without one.
        let body = vec![b'x'; LARGEST_MESSAGE - OVERHEAD];
        messages(&body, None, None, None).check(0).unwrap();
        assert!(messages(&body, None, None, None).marked().check(0).unwrap_err().contains("is the most"));
    }

    /// Messages with these levels and times.
    fn delayed(levels: ArrayRef, times: ArrayRef) -> Result<Messages> {
        let payloads = Arc::new(BinaryArray::from_iter_values((0..levels.len()).map(|_| b"{}"))) as ArrayRef;
        let columns = [
            ("payload", payloads, true),
            ("metadata.delay-level", levels, true),
            ("metadata.delivery-time", times, true),
        ];
        Messages::try_new(&RecordBatch::try_from_iter_with_nullable(columns).unwrap())
    }

    #[test]
    fn a_message_says_when_it_is_to_be_delivered() {
        let levels = Arc::new(Int32Array::from(vec![None, Some(0), Some(3), None, Some(-1), Some(1)]));
        let times: [Option<i64>; 6] = [None, None, None, Some(1_700_000_000_123), None, Some(5)];
        let messages = delayed(levels, Arc::new(TimestampMillisecondArray::from_iter(times))).unwrap();
        let is_delayed: Vec<bool> = (0..4).map(|row| messages.is_delayed(row)).collect();
        assert_eq!(is_delayed, [false, false, true, true]);
        for (row, (level, time)) in
            [(None, None), (None, None), (Some("3"), None), (None, Some("1700000000123"))].into_iter().enumerate()
        {
            messages.check(row).unwrap();
            let message = messages.message(row, "t", None).unwrap();
            assert_eq!((message.property("DELAY"), message.property("TIMER_DELIVER_MS")), (level, time), "{row}");
            let encoded = rocketmq_protocol::common::message::message_decoder::encode_message(&message);
            assert!(encoded.len() <= messages.size(row), "{} {}", encoded.len(), messages.size(row));
        }
        assert!(messages.check(4).unwrap_err().starts_with("its delay-level is -1"));
        assert!(messages.check(5).unwrap_err().starts_with("it has a delay-level and a delivery-time"));
    }

    #[test]
    fn what_is_no_number_does_not_delay_by_nothing() {
        let times = TimestampMillisecondArray::from_iter([None::<i64>]);
        let error = delayed(Arc::new(StringArray::from(vec!["soon"])), Arc::new(times)).unwrap_err();
        assert_eq!(error.kind(), crate::error::Kind::Data);
        assert!(error.to_string().contains("the delay-level of a message"), "{error}");
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

//! What a Kafka message says besides its payload, as columns: only those that a query asks for are built.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryBuilder, Int32Array, Int64Array, MapBuilder, MapFieldNames, StringArray, StringBuilder,
    TimestampMillisecondArray,
};
use arrow::datatypes::{DataType, Field, Fields, TimeUnit};

use super::queue::Message;
use crate::connector::{MetadataKey, Partition};

/// A metadata column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Column {
    Topic,
    Partition,
    Offset,
    Timestamp,
    TimestampType,
    LeaderEpoch,
    Headers,
    Key,
}

impl Column {
    /// All of them.
    pub(super) const ALL: [Column; 8] = [
        Column::Topic,
        Column::Partition,
        Column::Offset,
        Column::Timestamp,
        Column::TimestampType,
        Column::LeaderEpoch,
        Column::Headers,
        Column::Key,
    ];

    /// The column that `METADATA FROM 'key'` means.
    pub(super) fn of(key: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|column| column.describe().key == key)
    }

    /// Its name, type, and whether a sink writes it.
    pub(super) fn describe(self) -> MetadataKey {
        let time = DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()));
        let (key, data_type, writable, meaning) = match self {
            Column::Topic => ("topic", DataType::Utf8, true, "written: the row goes there; NULL is the table's"),
            Column::Partition => (
                "partition",
                DataType::Int32,
                true,
                "written: the row goes there, and it must exist; NULL is what `sink.partitioner` says",
            ),
            Column::Offset => ("offset", DataType::Int64, false, ""),
            Column::Timestamp => ("timestamp", time, true, "without it, the time of sending"),
            Column::TimestampType => {
                ("timestamp-type", DataType::Utf8, false, "`CreateTime`, `LogAppendTime` or `NoTimestampType`")
            }
            Column::LeaderEpoch => ("leader-epoch", DataType::Int32, false, ""),
            Column::Headers => ("headers", headers_type(), true, ""),
            Column::Key => {
                ("key", DataType::Binary, true, "as it is; without `key.fields`, and instead of the PRIMARY KEY")
            }
        };
        MetadataKey { key, data_type, writable, meaning }
    }

    /// Its values for these messages of `partition`.
    pub(super) fn build<'a>(self, partition: &Partition, messages: impl Iterator<Item = &'a Message>) -> ArrayRef {
        match self {
            Column::Topic => Arc::new(StringArray::from_iter_values(messages.map(|_| &*partition.name))),
            Column::Partition => Arc::new(Int32Array::from_iter_values(messages.map(|_| partition.number as i32))),
            Column::Offset => Arc::new(Int64Array::from_iter_values(messages.map(|m| m.offset() as i64))),
            Column::Timestamp => {
                let values = messages.map(|m| m.timestamp().map(|(at, _)| at));
                Arc::new(TimestampMillisecondArray::from_iter(values).with_timezone("UTC"))
            }
            Column::TimestampType => Arc::new(StringArray::from_iter_values(messages.map(|m| match m.timestamp() {
                None => "NoTimestampType",
                Some((_, false)) => "CreateTime",
                Some((_, true)) => "LogAppendTime",
            }))),
            Column::LeaderEpoch => Arc::new(Int32Array::from_iter(messages.map(Message::leader_epoch))),
            Column::Headers => headers(messages),
            Column::Key => {
                let mut keys = BinaryBuilder::new();
                messages.for_each(|m| keys.append_option(m.key()));
                Arc::new(keys.finish())
            }
        }
    }
}

/// `MAP<STRING NOT NULL, BYTES>`.
fn headers_type() -> DataType {
    let entry =
        Fields::from(vec![Field::new("key", DataType::Utf8, false), Field::new("value", DataType::Binary, true)]);
    DataType::Map(Arc::new(Field::new("entries", DataType::Struct(entry), false)), false)
}

fn headers<'a>(messages: impl Iterator<Item = &'a Message>) -> ArrayRef {
    let names = MapFieldNames { entry: "entries".into(), key: "key".into(), value: "value".into() };
    let mut maps = MapBuilder::new(Some(names), StringBuilder::new(), BinaryBuilder::new());
    for message in messages {
        message.headers(|name, value| {
            maps.keys().append_value(name);
            maps.values().append_option(value);
        });
        // Keys and values are appended in pairs, so there is nothing to go wrong.
        let _ = maps.append(true);
    }
    Arc::new(maps.finish())
}

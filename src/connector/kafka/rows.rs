//! Rows as Kafka messages: payload, key, timestamp and headers.
//!
//! The idea: what a message needs is made when rows are staged, and kept as a batch of at most four columns of fixed
//! names and types, so that publishing has nothing left to convert. A tombstone is a message whose payload is NULL.

use std::sync::Arc;

use arrow::array::types::TimestampMillisecondType;
use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, MapArray, RecordBatch, TimestampMillisecondArray};
use arrow::compute::cast;
use arrow::datatypes::{Field, Schema, SchemaRef};
use rdkafka::message::{Header, OwnedHeaders};

use super::columns::Column;
use super::options::KafkaOptions;
use crate::catalog::TableDefinition;
use crate::connector::outgoing::{Encoding, PAYLOAD};
use crate::connector::upserts::{Key, Upserts};
use crate::error::{Error, Result};
use crate::format::Encoder;

/// Makes messages of rows.
#[derive(Debug)]
pub(super) struct Rows {
    encoding: Encoding,
    key: Key,
    /// Makes keys of columns, where there is a key that is no column by itself.
    key_encoder: Option<Box<dyn Encoder>>,
    /// For each metadata column of the encoding, in order: what it is.
    metadata: Vec<Column>,
    schema: SchemaRef,
}

impl Rows {
    /// For rows of the table's writable schema.
    pub(super) fn try_new(table: &TableDefinition, options: &KafkaOptions) -> Result<Self> {
        let encoding = Encoding::try_new(table, &options.format)?;
        let key_encoder = match &options.key {
            Key::Made(columns) if !columns.is_empty() => {
                Some(options.format.encoder(Arc::new(table.writable_schema().project(columns)?))?)
            }
            _ => None,
        };
        let names = encoding.schema().fields().iter().skip(1).map(|field| field.name().trim_start_matches("metadata."));
        let metadata =
            names.map(|name| Column::of(name).ok_or_else(|| Error::internal(format!("there is no metadata '{name}'"))));
        let metadata = metadata.collect::<Result<Vec<_>>>()?;
        let mut fields = vec![encoding.schema().field(PAYLOAD).clone()];
        for column in metadata.iter().chain(key_encoder.as_ref().map(|_| &Column::Key)) {
            let known = column.describe();
            fields.push(Field::new(known.key, known.data_type, true));
        }
        Ok(Self { encoding, key: options.key.clone(), key_encoder, metadata, schema: Arc::new(Schema::new(fields)) })
    }

    /// What [`encode`](Self::encode) returns.
    pub(super) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// What a message's key is.
    pub(super) fn key(&self) -> &Key {
        &self.key
    }

    /// The messages of these rows.
    pub(super) fn encode(&mut self, upserts: &Upserts) -> Result<RecordBatch> {
        let encoded = self.encoding.encode(upserts)?;
        let mut columns = vec![Arc::clone(encoded.column(PAYLOAD))];
        for (column, values) in self.metadata.iter().zip(&encoded.columns()[1..]) {
            columns.push(cast(values, &column.describe().data_type)?);
        }
        if let Some(encoder) = &mut self.key_encoder {
            columns.push(Arc::new(encoder.encode(&upserts.rows.project(self.key.columns())?)?) as ArrayRef);
        }
        let messages = RecordBatch::try_new(Arc::clone(&self.schema), columns)?;
        upserts.check_keys(messages.column_by_name(Column::Key.describe().key))?;
        Ok(messages)
    }
}

/// Encoded rows, ready to be sent.
pub(super) struct Messages<'a> {
    payloads: &'a BinaryArray,
    keys: Option<&'a BinaryArray>,
    timestamps: Option<&'a TimestampMillisecondArray>,
    headers: Option<&'a MapArray>,
}

impl<'a> Messages<'a> {
    /// The messages in a batch of [`Rows::schema`].
    pub(super) fn of(batch: &'a RecordBatch) -> Self {
        Self {
            payloads: batch.column(PAYLOAD).as_binary(),
            keys: batch.column_by_name("key").map(|column| column.as_binary()),
            timestamps: batch.column_by_name("timestamp").map(|c| c.as_primitive::<TimestampMillisecondType>()),
            headers: batch.column_by_name("headers").map(|column| column.as_map()),
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.payloads.len()
    }

    /// How many bytes their values and keys have.
    pub(super) fn bytes(&self) -> u64 {
        let keys = self.keys.map_or(0, |keys| keys.value_data().len());
        (self.payloads.value_data().len() + keys) as u64
    }

    /// A message's value; NULL deletes its key from a compacted topic.
    pub(super) fn payload(&self, row: usize) -> Option<&'a [u8]> {
        self.payloads.is_valid(row).then(|| self.payloads.value(row))
    }

    /// Its key.
    pub(super) fn key(&self, row: usize) -> Option<&'a [u8]> {
        self.keys.filter(|keys| keys.is_valid(row)).map(|keys| keys.value(row))
    }

    /// Its timestamp; without one, it is the time of sending.
    pub(super) fn timestamp(&self, row: usize) -> Option<i64> {
        self.timestamps.filter(|at| at.is_valid(row)).map(|at| at.value(row))
    }

    /// Its headers.
    pub(super) fn headers(&self, row: usize) -> Option<OwnedHeaders> {
        let maps = self.headers.filter(|maps| maps.is_valid(row))?;
        let (start, end) = (maps.value_offsets()[row] as usize, maps.value_offsets()[row + 1] as usize);
        let (names, values) = (maps.keys().as_string::<i32>(), maps.values().as_binary::<i32>());
        let headers = OwnedHeaders::new_with_capacity(end - start);
        Some((start..end).fold(headers, |headers, index| {
            let value = values.is_valid(index).then(|| values.value(index));
            headers.insert(Header { key: names.value(index), value })
        }))
    }
}

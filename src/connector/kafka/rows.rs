//! Rows as Kafka messages: payload, key, timestamp, headers, and the topic and partition they go to.
//!
//! The idea: what a message needs is made when rows are staged, as a batch of at most six columns of fixed names and
//! types, so that sending has nothing left to convert. A tombstone is a message whose payload is NULL.
//!
//! Where a row says no partition, the table's partitioner does: none, so that librdkafka takes the hash of the key; one
//! for each task; or one after the other. A row that names another topic is placed by its key there.

use std::sync::Arc;

use arrow::array::types::{Int32Type, TimestampMillisecondType};
use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, Int32Array, MapArray, RecordBatch, StringArray, TimestampMillisecondArray,
};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{Field, Schema, SchemaRef};
use rdkafka::message::{Header, OwnedHeaders};

use super::columns::Column;
use super::options::{KafkaOptions, Partitioner, is_legal};
use crate::catalog::{ColumnKind, TableDefinition};
use crate::connector::outgoing::{Encoding, PAYLOAD};
use crate::connector::upserts::{Key, Upserts};
use crate::error::{Error, Result};
use crate::format::Encoder;

/// Makes messages of rows.
#[derive(Debug)]
pub(super) struct Rows {
    encoding: Encoding,
    /// Which columns that gets: all of them, or all but the key's.
    encoded: Vec<usize>,
    key: Key,
    /// Makes keys of columns, where there is a key that is no column by itself; they are named as in this schema.
    key_encoder: Option<(SchemaRef, Box<dyn Encoder>)>,
    /// For each metadata column of the encoding, in order: what it is.
    metadata: Vec<Column>,
    spread: Option<Spread>,
    schema: SchemaRef,
    topic: String,
    progress_topic: String,
}

/// Partitions for rows that say none.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Spread {
    partitions: u32,
    next: u32,
    step: u32,
}

impl Spread {
    /// For a task's rows; none, where the hash of a key decides.
    fn new(partitioner: Partitioner, task: u32, partitions: u32) -> Option<Self> {
        let partitions = partitions.max(1);
        let step = match partitioner {
            Partitioner::Hash => return None,
            Partitioner::Fixed => 0,
            Partitioner::RoundRobin => 1,
        };
        // Tasks begin at different ones, so that many short ones do not all go to the first.
        Some(Self { partitions, next: task % partitions, step })
    }

    fn pick(&mut self) -> i32 {
        let partition = self.next;
        self.next = (partition + self.step) % self.partitions;
        partition as i32
    }
}

impl Rows {
    /// For rows of the table's writable schema, those of one task, into a topic of so many partitions.
    pub(super) fn try_new(table: &TableDefinition, options: &KafkaOptions, task: u32, partitions: u32) -> Result<Self> {
        let (reduced, encoded) = payload_table(table, options)?;
        let encoding = Encoding::try_new(&reduced, &options.format)?;
        let key_encoder = match &options.key {
            Key::Made(columns) if !columns.is_empty() => {
                let named = table.writable_schema().project(columns)?;
                let fields = named.fields().iter().map(|field| {
                    let name = field.name().strip_prefix(options.key_prefix.as_str());
                    Field::new(name.unwrap_or(field.name()), field.data_type().clone(), true)
                });
                let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
                Some((Arc::clone(&schema), options.key_format.encoder(schema)?))
            }
            _ => None,
        };
        let names = encoding.schema().fields().iter().skip(1).map(|field| field.name().trim_start_matches("metadata."));
        let metadata =
            names.map(|name| Column::of(name).ok_or_else(|| Error::internal(format!("there is no metadata '{name}'"))));
        let metadata = metadata.collect::<Result<Vec<_>>>()?;
        let spread = Spread::new(options.partitioner, task, partitions);
        let is_placed = spread.is_some() && !metadata.contains(&Column::Partition);
        let mut columns = metadata.clone();
        columns.extend(key_encoder.as_ref().map(|_| Column::Key));
        columns.extend(is_placed.then_some(Column::Partition));
        let mut fields = vec![encoding.schema().field(PAYLOAD).clone()];
        for known in columns.into_iter().map(Column::describe) {
            fields.push(Field::new(known.key, known.data_type, true));
        }
        Ok(Self {
            encoding,
            encoded,
            key: options.key.clone(),
            key_encoder,
            metadata,
            spread,
            schema: Arc::new(Schema::new(fields)),
            topic: options.target().to_string(),
            progress_topic: options.progress_topic.clone(),
        })
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
        let rows = upserts.rows.project(&self.encoded)?;
        let encoded = self.encoding.encode(&Upserts { rows, ..upserts.clone() })?;
        let mut columns = vec![Arc::clone(encoded.column(PAYLOAD))];
        for (column, values) in self.metadata.iter().zip(&encoded.columns()[1..]) {
            let values = metadata_values(*column, values)?;
            if *column == Column::Topic {
                self.check_topics(values.as_string())?;
            }
            columns.push(values);
        }
        if let Some((schema, encoder)) = &mut self.key_encoder {
            let key = upserts.rows.project(self.key.columns())?;
            let key = RecordBatch::try_new(Arc::clone(schema), key.columns().to_vec())?;
            columns.push(Arc::new(encoder.encode(&key)?));
        }
        if let Some(spread) = &mut self.spread {
            // Columns are in the order of the metadata, behind the payload.
            let place = |wanted: Column| self.metadata.iter().position(|column| *column == wanted).map(|at| at + 1);
            let given = place(Column::Partition).map(|at| columns[at].as_primitive::<Int32Type>());
            let topics = place(Column::Topic).map(|at| columns[at].as_string::<i32>());
            let partition = |row: usize| match given.filter(|given| given.is_valid(row)) {
                Some(given) => Some(given.value(row)),
                None => match topics.filter(|topics| topics.is_valid(row) && topics.value(row) != self.topic) {
                    Some(_) => None,
                    None => Some(spread.pick()),
                },
            };
            let partitions = (0..upserts.rows.num_rows()).map(partition).collect::<Int32Array>();
            match place(Column::Partition) {
                Some(at) => columns[at] = Arc::new(partitions),
                None => columns.push(Arc::new(partitions)),
            }
        }
        let messages = RecordBatch::try_new(Arc::clone(&self.schema), columns)?;
        upserts.check_keys(messages.column_by_name(Column::Key.describe().key))?;
        Ok(messages)
    }

    /// Refuses rows for topics that there cannot be, or that nobody else may write.
    fn check_topics(&self, topics: &StringArray) -> Result<()> {
        match topics.iter().flatten().find(|topic| !is_legal(topic) || *topic == self.progress_topic) {
            Some(topic) => Err(Error::data(format!(
                "a row cannot be written to the topic '{topic}', which its metadata column 'topic' names: {}",
                match is_legal(topic) {
                    true => "it is where exactly-once writing keeps what is written",
                    false => "a topic's name has 1 to 249 letters, digits, '.', '_' or '-'",
                }
            ))),
            None => Ok(()),
        }
    }
}

/// The table without what is left out of payloads, and which of the writable columns are left.
fn payload_table(table: &TableDefinition, options: &KafkaOptions) -> Result<(TableDefinition, Vec<usize>)> {
    let left_out: &[usize] = match &options.key {
        Key::Made(columns) if !options.is_key_in_payload => columns,
        _ => &[],
    };
    let names: Vec<&str> = table.writable_columns().map(|column| column.name.as_str()).collect();
    let encoded: Vec<usize> = (0..names.len()).filter(|index| !left_out.contains(index)).collect();
    let mut reduced = table.clone();
    reduced.columns.retain(|column| !left_out.iter().any(|index| names[*index] == column.name));
    if !reduced.columns.iter().any(|column| column.kind == ColumnKind::Physical) && !left_out.is_empty() {
        return Err(Error::usage(
            "option 'value.fields-include': 'EXCEPT_KEY' leaves no column for the payload; say 'ALL'",
        ));
    }
    Ok((reduced, encoded))
}

/// The values of a metadata column, in the type that a message has.
fn metadata_values(column: Column, values: &ArrayRef) -> Result<ArrayRef> {
    let known = column.describe();
    // What is no such value would otherwise be NULL, and the row go anywhere, at any time.
    let strictly = CastOptions { safe: false, ..CastOptions::default() };
    cast_with_options(values, &known.data_type, &strictly)
        .map_err(|e| Error::data(format!("metadata '{}' cannot be written", known.key)).caused_by(e))
}

/// Encoded rows, ready to be sent.
pub(super) struct Messages<'a> {
    payloads: &'a BinaryArray,
    keys: Option<&'a BinaryArray>,
    timestamps: Option<&'a TimestampMillisecondArray>,
    headers: Option<&'a MapArray>,
    topics: Option<&'a StringArray>,
    partitions: Option<&'a Int32Array>,
}

impl<'a> Messages<'a> {
    /// The messages in a batch of [`Rows::schema`].
    pub(super) fn of(batch: &'a RecordBatch) -> Self {
        Self {
            payloads: batch.column(PAYLOAD).as_binary(),
            keys: batch.column_by_name("key").map(|column| column.as_binary()),
            timestamps: batch.column_by_name("timestamp").map(|c| c.as_primitive::<TimestampMillisecondType>()),
            headers: batch.column_by_name("headers").map(|column| column.as_map()),
            topics: batch.column_by_name("topic").map(|column| column.as_string()),
            partitions: batch.column_by_name("partition").map(|column| column.as_primitive::<Int32Type>()),
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

    /// Its topic, if it is not the table's.
    pub(super) fn topic(&self, row: usize) -> Option<&'a str> {
        self.topics.filter(|topics| topics.is_valid(row)).map(|topics| topics.value(row))
    }

    /// Its partition, if its key does not decide.
    pub(super) fn partition(&self, row: usize) -> Option<i32> {
        self.partitions.filter(|partitions| partitions.is_valid(row)).map(|partitions| partitions.value(row))
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

#[cfg(test)]
mod tests {
    use arrow::array::{Date32Array, Int64Array, StringViewArray};

    use super::*;
    use crate::connector::contract::fixture;

    #[test]
    fn tasks_have_a_partition_each_or_begin_at_one() {
        let partitions = |partitioner, task| {
            let mut spread = Spread::new(partitioner, task, 3)?;
            Some([spread.pick(), spread.pick(), spread.pick(), spread.pick()])
        };
        assert_eq!(partitions(Partitioner::Hash, 1), None);
        assert_eq!(partitions(Partitioner::Fixed, 1), Some([1, 1, 1, 1]));
        assert_eq!(partitions(Partitioner::Fixed, 5), Some([2, 2, 2, 2]));
        assert_eq!(partitions(Partitioner::RoundRobin, 2), Some([2, 0, 1, 2]));
    }

    #[test]
    fn fields_of_a_key_have_no_prefix() {
        let columns: [(&str, ArrayRef); 2] =
            [("k_k_id", Arc::new(Int64Array::from(vec![1]))), ("item", Arc::new(StringArray::from(vec!["a"])))];
        let rows = RecordBatch::try_from_iter(columns).unwrap();
        let options = [
            ("connector", "kafka"),
            ("topic", "t"),
            ("format", "json"),
            ("properties.bootstrap.servers", "a:1"),
            ("key.fields", "k_k_id"),
            ("key.fields-prefix", "k_"),
            ("value.fields-include", "EXCEPT_KEY"),
        ];
        let table = fixture::table_of("t", &rows.schema(), &options);
        let mut encoder = Rows::try_new(&table, &KafkaOptions::take(&table).unwrap(), 0, 1).unwrap();
        let encoded = encoder.encode(&Upserts { rows, valued: None, kinds: None }).unwrap();
        let messages = Messages::of(&encoded);
        assert_eq!(
            (messages.key(0), messages.payload(0)),
            (Some(&b"{\"k_id\":1}"[..]), Some(&b"{\"item\":\"a\"}"[..]))
        );
    }

    /// The key of a row `id BIGINT, item STRING, day DATE` with these options.
    fn key_of(options: &[(&str, &str)]) -> Result<Vec<u8>> {
        let columns: [(&str, ArrayRef); 3] = [
            ("id", Arc::new(Int64Array::from(vec![258]))),
            ("item", Arc::new(StringViewArray::from(vec!["a;b"]))),
            ("day", Arc::new(Date32Array::from(vec![0]))),
        ];
        let rows = RecordBatch::try_from_iter(columns).unwrap();
        let base =
            [("connector", "kafka"), ("topic", "t"), ("format", "json"), ("properties.bootstrap.servers", "a:1")];
        let table = fixture::table_of("t", &rows.schema(), &[&base[..], options].concat());
        let mut encoder = Rows::try_new(&table, &KafkaOptions::take(&table)?, 0, 1)?;
        let encoded = encoder.encode(&Upserts { rows, valued: None, kinds: None })?;
        Ok(Messages::of(&encoded).key(0).unwrap().to_vec())
    }

    #[test]
    fn a_key_is_written_as_its_format_says() {
        let (csv, raw) = (("key.format", "csv"), ("key.format", "raw"));
        let all = ("key.fields", "item;id;day");
        assert_eq!(key_of(&[all]).unwrap(), br#"{"item":"a;b","id":258,"day":"1970-01-01"}"#);
        assert_eq!(key_of(&[all, csv]).unwrap(), b"a;b,258,1970-01-01");
        assert_eq!(key_of(&[all, csv, ("key.csv.field-delimiter", ";")]).unwrap(), b"\"a;b\";258;1970-01-01");
        assert_eq!(key_of(&[("key.fields", "item"), raw]).unwrap(), b"a;b");
        let id = ("key.fields", "id");
        assert_eq!(key_of(&[id, raw]).unwrap(), 258i64.to_be_bytes());
        assert_eq!(key_of(&[id, raw, ("key.raw.endianness", "little-endian")]).unwrap(), 258i64.to_le_bytes());
        let error = key_of(&[("key.fields", "day"), raw]).unwrap_err().to_string();
        assert!(error.starts_with("table t: option 'key.format': column day: raw has no bytes for DATE"), "{error}");
    }

    #[test]
    fn a_row_says_more_than_the_partitioner() {
        let columns: [(&str, ArrayRef); 4] = [
            ("id", Arc::new(Int64Array::from(vec![1, 2, 3, 4]))),
            ("item", Arc::new(StringViewArray::from(vec!["a", "b", "c", "d"]))),
            ("part", Arc::new(Int32Array::from(vec![None, Some(7), None, None]))),
            ("topic", Arc::new(StringArray::from(vec![None, None, Some("other"), Some("t")]))),
        ];
        let rows =
            RecordBatch::try_from_iter_with_nullable(columns.map(|(name, values)| (name, values, true))).unwrap();
        let options = [
            ("connector", "kafka"),
            ("topic", "t"),
            ("format", "json"),
            ("properties.bootstrap.servers", "a:1"),
            ("sink.partitioner", "round-robin"),
            ("key.fields", "item"),
            ("key.format", "raw"),
            ("value.fields-include", "EXCEPT_KEY"),
        ];
        let mut table = (*fixture::table_of("t", &rows.schema(), &options)).clone();
        for (column, key) in table.columns[2..].iter_mut().zip(["partition", "topic"]) {
            column.kind = ColumnKind::Metadata { key: key.into(), is_virtual: false };
        }
        let mut encoder = Rows::try_new(&table, &KafkaOptions::take(&table).unwrap(), 1, 3).unwrap();
        let encoded = encoder.encode(&Upserts { rows: rows.clone(), valued: None, kinds: None }).unwrap();
        let messages = Messages::of(&encoded);
        let partitions: Vec<_> = (0..4).map(|row| messages.partition(row)).collect();
        assert_eq!(partitions, [Some(1), Some(7), None, Some(2)]);
        assert_eq!((messages.key(1), messages.payload(1)), (Some(&b"b"[..]), Some(&b"{\"id\":2}"[..])));
        assert_eq!((messages.topic(0), messages.topic(2)), (None, Some("other")));

        let wrong: ArrayRef = Arc::new(StringArray::from(vec![Some("millstream-progress"), None, None, None]));
        let mut columns = rows.columns().to_vec();
        columns[3] = wrong;
        let rows = RecordBatch::try_new(rows.schema(), columns).unwrap();
        let error = encoder.encode(&Upserts { rows, valued: None, kinds: None }).unwrap_err();
        assert!(error.to_string().contains("keeps what is written"), "{error}");
    }
}

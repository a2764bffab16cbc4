//! Dead letters: messages that cannot be read, put down as they are for a table of the user's, in the epoch that met them.
//!
//! The columns of that table are filled by name: [`PAYLOAD`], [`ERROR`] and [`SOURCE`], and by the metadata that the
//! source's connector offers (`born_timestamp` is its `born-timestamp`).
//!
//! Guarantee: each message that cannot be read is put down once for an epoch, however often the epoch's plan reads it, by
//! partition and, as far as one scan found them, by offset. Another scan may want other columns, and find more that is bad.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{
    ArrayRef, AsArray, BinaryArray, BooleanArray, RecordBatch, StringArray, UInt64Array, new_null_array,
};
use arrow::compute::{can_cast_types, cast, filter_record_batch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, UInt64Type};

use super::spool::Spool;
use super::{MetadataKey, Partition};
use crate::catalog::TableDefinition;
use crate::error::{Error, Result};
use crate::sql::options::did_you_mean;

/// The column for the message's bytes, as BYTES, or as text where that is declared.
pub const PAYLOAD: &str = "payload";
/// The column for what is wrong with it.
pub const ERROR: &str = "error";
/// The column for the table that could not read it.
pub const SOURCE: &str = "source_table";

/// The option that names the table.
pub const OPTION: &str = "format.dead-letter-table";

/// Where the dead letters of `table` go: what its options name.
pub fn table_of(table: &TableDefinition) -> Option<&str> {
    let is_meant = table.options.get("format.on-error").is_none_or(|on_error| on_error == "dead-letter");
    table.options.get(OPTION).filter(|_| is_meant).map(String::as_str)
}

/// The dead letters of one source.
#[derive(Debug)]
pub struct DeadLetters {
    source: String,
    /// The rows of the table that gets them.
    schema: SchemaRef,
    filled: Vec<Filled>,
    metadata: Vec<String>,
    /// By partition, and by the columns that a scan wanted.
    kept: Mutex<BTreeMap<(Partition, Vec<usize>), Spool>>,
}

/// What a column is filled with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Filled {
    Payload,
    Error,
    Source,
    /// The place among the wanted metadata.
    Metadata(usize),
    /// Another source has it.
    Nothing,
}

/// Messages that cannot be read, as columns of equal length.
#[derive(Debug)]
pub struct Unreadable {
    /// Their offsets.
    pub offsets: UInt64Array,
    /// Which each is of those at its offset: lines of a file share one.
    pub ordinals: UInt64Array,
    /// Their payloads.
    pub payloads: BinaryArray,
    /// What is wrong with each.
    pub reasons: StringArray,
    /// A column for each of [`DeadLetters::metadata`].
    pub metadata: Vec<ArrayRef>,
}

impl DeadLetters {
    /// Those of `source`, whose connector offers this metadata, for `table`.
    ///
    /// Errors: a column whose type cannot hold what it is filled with.
    pub fn try_new(table: &TableDefinition, source: &TableDefinition, offered: &[MetadataKey]) -> Result<Self> {
        let (mut filled, mut metadata, mut fields) = (vec![], vec![], vec![]);
        for column in table.writable_columns() {
            let (fill, given) = match column.name.as_str() {
                PAYLOAD => (Filled::Payload, DataType::Binary),
                ERROR => (Filled::Error, DataType::Utf8),
                SOURCE => (Filled::Source, DataType::Utf8),
                name => match offered.iter().find(|known| column_of(known).as_deref() == Some(name)) {
                    Some(known) => {
                        metadata.push(known.key.to_owned());
                        (Filled::Metadata(metadata.len() - 1), known.data_type.clone())
                    }
                    None => (Filled::Nothing, DataType::Null),
                },
            };
            if !can_cast_types(&given, &column.data_type) {
                return Err(Error::usage(format!(
                    "table {}, which is to get dead letters of {}: column {} is {}, and is filled with {given}",
                    table.name, source.name, column.name, column.data_type
                )));
            }
            filled.push(fill);
            // Whether a NULL may be written is for the table's sink to say, which names the column.
            fields.push(column.field().with_nullable(true));
        }
        let schema = Arc::new(Schema::new(fields));
        Ok(Self { source: source.name.clone(), schema, filled, metadata, kept: Mutex::default() })
    }

    /// The metadata that it needs of each message, by key.
    pub fn metadata(&self) -> &[String] {
        &self.metadata
    }

    /// Forgets what was put down.
    pub fn clear(&self) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Puts down messages of `partition` that a scan for these columns could not read.
    pub fn keep(&self, partition: &Partition, columns: &[usize], messages: &Unreadable) -> Result<()> {
        let rows = self.rows(messages)?;
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        match kept.entry((partition.clone(), columns.to_vec())) {
            Entry::Occupied(mut spool) => spool.get_mut().write(&rows),
            Entry::Vacant(place) => place.insert(Spool::try_new(&rows.schema())?).write(&rows),
        }
    }

    /// Messages as rows of the table, and their places.
    fn rows(&self, messages: &Unreadable) -> Result<RecordBatch> {
        let rows = messages.offsets.len();
        let mut columns: Vec<ArrayRef> = vec![];
        for (fill, field) in self.filled.iter().zip(self.schema.fields()) {
            let column: ArrayRef = match fill {
                Filled::Payload if field.data_type() == &DataType::Binary => Arc::new(messages.payloads.clone()),
                // Text that is none is shown as well as it can be.
                Filled::Payload => Arc::new(StringArray::from_iter(
                    messages.payloads.iter().map(|bytes| bytes.map(String::from_utf8_lossy)),
                )),
                Filled::Error => Arc::new(messages.reasons.clone()),
                Filled::Source => Arc::new(StringArray::from(vec![self.source.as_str(); rows])),
                Filled::Metadata(index) => Arc::clone(&messages.metadata[*index]),
                Filled::Nothing => new_null_array(field.data_type(), rows),
            };
            columns.push(cast(&column, field.data_type())?);
        }
        columns.extend([&messages.offsets, &messages.ordinals].map(|column| Arc::new(column.clone()) as ArrayRef));
        let place = ["$offset", "$ordinal"].map(|name| Arc::new(Field::new(name, DataType::UInt64, false)));
        let fields = self.schema.fields().iter().cloned().chain(place).collect::<Vec<_>>();
        Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
    }

    /// Takes what was put down, as rows of the table.
    pub fn take(&self) -> Result<impl Iterator<Item = Result<RecordBatch>> + Send + use<>> {
        let kept = std::mem::take(&mut *self.kept.lock().unwrap_or_else(PoisonError::into_inner));
        // Scans of the same columns find the same; what one of them is behind with was put down by the other.
        let mut scans: HashMap<Partition, usize> = HashMap::new();
        kept.keys().for_each(|(partition, _)| *scans.entry(partition.clone()).or_default() += 1);
        let mut batches = vec![];
        for ((partition, _), spool) in kept {
            let rows = spool.finish()?.into_batches()?;
            batches.push(rows.map(move |batch| Ok::<_, Error>((partition.clone(), batch?))));
        }
        let mut newest: HashMap<Partition, (u64, u64)> = HashMap::new();
        let mut seen: HashMap<Partition, HashSet<(u64, u64)>> = HashMap::new();
        Ok(batches.into_iter().flatten().map(move |next| {
            let (partition, mut batch) = next?;
            let is_only = scans.get(&partition) == Some(&1);
            let newest = newest.entry(partition.clone()).or_default();
            let seen = seen.entry(partition).or_default();
            let mut place = || batch.remove_column(batch.num_columns() - 1).as_primitive::<UInt64Type>().clone();
            let (ordinals, offsets) = (place(), place());
            let places = offsets.values().iter().copied().zip(ordinals.values().iter().copied());
            let is_new = places.map(|place| {
                let is_new = if is_only { place > *newest } else { seen.insert(place) };
                *newest = place.max(*newest);
                Some(is_new)
            });
            Ok(filter_record_batch(&batch, &is_new.collect::<BooleanArray>())?)
        }))
    }
}

/// A metadata key as the name of a column; one that stands for many is none.
fn column_of(known: &MetadataKey) -> Option<String> {
    (!known.is_prefix()).then(|| known.key.replace('-', "_"))
}

/// Checks that each column of `table` can be filled by one of its sources, which offer this metadata.
pub fn check_columns(table: &TableDefinition, offered: &[MetadataKey]) -> Result<()> {
    let own = [PAYLOAD, ERROR, SOURCE].map(str::to_owned);
    let known: BTreeSet<String> = own.into_iter().chain(offered.iter().filter_map(column_of)).collect();
    match table.writable_columns().find(|column| !known.contains(&column.name)) {
        Some(column) => Err(Error::usage(format!(
            "table {}, which is to get dead letters, has a column {}{}; such columns are {}",
            table.name,
            column.name,
            did_you_mean(&column.name, known.iter().map(String::as_str)),
            known.iter().cloned().collect::<Vec<_>>().join(", ")
        ))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::Fields;
    use arrow::util::pretty::pretty_format_batches;

    use super::*;
    use crate::connector::contract::fixture;

    fn offered() -> Vec<MetadataKey> {
        let key = |key, data_type| MetadataKey { key, data_type, writable: false, meaning: "" };
        vec![key("offset", DataType::Int64), key("born-timestamp", DataType::Int64)]
    }

    fn table(columns: &[(&str, DataType)]) -> Arc<TableDefinition> {
        let fields: Vec<Field> = columns.iter().map(|(name, t)| Field::new(*name, t.clone(), true)).collect();
        fixture::table_of("bad", &Schema::new(fields), &[])
    }

    fn unreadable(offsets: &[u64]) -> Unreadable {
        let payloads: Vec<Option<&[u8]>> = offsets.iter().map(|_| Some(&b"a\xff"[..])).collect();
        let number = Arc::new(arrow::array::Int64Array::from_iter_values(offsets.iter().map(|o| *o as i64)));
        Unreadable {
            offsets: UInt64Array::from(offsets.to_vec()),
            ordinals: UInt64Array::from(vec![1; offsets.len()]),
            payloads: BinaryArray::from(payloads),
            reasons: StringArray::from_iter_values(offsets.iter().map(|_| "odd")),
            metadata: vec![Arc::clone(&number) as ArrayRef, number],
        }
    }

    #[test]
    fn columns_are_filled_by_name_and_each_message_is_there_once() {
        let columns = [
            ("error", DataType::Utf8),
            ("offset", DataType::Int32),
            ("payload", DataType::Utf8),
            ("source_table", DataType::Utf8),
            ("born_timestamp", DataType::Int64),
        ];
        let table = table(&columns);
        check_columns(&table, &offered()).unwrap();
        let letters = DeadLetters::try_new(&table, &table, &offered()).unwrap();
        assert_eq!(letters.metadata(), ["offset", "born-timestamp"]);
        let [first, second] = [1, 0].map(|number| Partition::new("t", number));
        letters.keep(&first, &[0], &unreadable(&[3, 7])).unwrap();
        // Another scan of the same messages, which wants more of them.
        letters.keep(&first, &[0, 1], &unreadable(&[3, 5, 7])).unwrap();
        letters.keep(&first, &[0], &unreadable(&[3, 9])).unwrap();
        letters.keep(&second, &[0], &unreadable(&[3])).unwrap();
        let rows: Vec<RecordBatch> = letters.take().unwrap().collect::<Result<_>>().unwrap();
        let text = pretty_format_batches(&rows).unwrap().to_string();
        let lines: Vec<&str> = text.lines().filter(|line| line.contains("odd")).collect();
        let line =
            |offset: u64| format!("| odd   | {offset}      | a\u{fffd}      | bad          | {offset}              |");
        assert_eq!(lines, [3, 3, 7, 9, 5].map(line));
        assert_eq!(letters.take().unwrap().count(), 0);
    }

    #[test]
    fn columns_that_nothing_fills_are_refused() {
        let error = check_columns(&table(&[("ofset", DataType::Int64)]), &offered()).unwrap_err().to_string();
        assert!(error.contains("has a column ofset; did you mean 'offset'?"), "{error}");
        let wrong = table(&[("payload", DataType::Utf8), ("offset", DataType::Struct(Fields::empty()))]);
        let error = DeadLetters::try_new(&wrong, &wrong, &offered()).unwrap_err().to_string();
        assert!(error.contains("column offset is"), "{error}");
    }
}

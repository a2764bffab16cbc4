//! From messages to rows: what every topic source shares.
//!
//! A reader hands over messages as columns, a [`MessageBatch`] at a time; [`decoded`] turns a stream of them into the
//! rows of the table, applies `format.on-error`, and reports what it saw. Only columns that were asked for are decoded.
//! A message may hold several rows, or none; metadata are then those of each row's message.
//!
//! Columns that payloads do not have may be read from messages' keys ([`KeyColumns`]): without a key, or where it is a
//! comment, they are NULL, and a message whose key cannot be read is bad as a whole. So is one with metadata that are
//! none of the declared type.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, BooleanArray, RecordBatch, RecordBatchOptions, UInt64Array};
use arrow::compute::{CastOptions, cast, cast_with_options, filter, filter_record_batch, is_not_null, take};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::util::display::array_value_to_string;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::{Stream, StreamExt};

use super::dead_letters::{self, Unreadable};
use super::{Fingerprint, MetadataKey, Partition, PartitionReport, ReadReport, SkippedSample};
use crate::catalog::{Column, ColumnKind, TableDefinition};
use crate::error::{Error, Result};
use crate::format::{BadPayload, Decoded, Decoder, FormatOptions, KeyFormat, OnError, Wanted, misfit};
use crate::plan::changes::with_kind;

/// Consecutive messages of one partition, as columns of equal length.
#[derive(Debug, Clone)]
pub struct MessageBatch {
    /// The payloads; NULL for a message without one.
    pub payloads: BinaryArray,
    /// Messages whose payload could not be had, and stands in `payloads` as it came; in order.
    pub broken: Vec<BadPayload>,
    /// Their offsets.
    pub offsets: Vec<u64>,
    /// A column for each of [`Decoding::metadata`], in that order; cast to the declared type where it differs, and a
    /// message with one that cannot be is bad.
    pub metadata: Vec<ArrayRef>,
    /// The last message.
    pub last: Fingerprint,
}

/// Columns that are in messages' keys, and not in payloads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyColumns {
    /// Which metadata the key is; BYTES.
    pub metadata: &'static str,
    /// Their names, in the order of the key's fields.
    pub names: Vec<String>,
    /// What their names begin with, and those of the key's fields do not.
    pub prefix: String,
    /// How a key is read.
    pub format: KeyFormat,
}

impl KeyColumns {
    /// Which of the key's fields a column is.
    fn place(&self, column: &Column) -> Option<usize> {
        self.names.iter().position(|name| *name == column.name)
    }

    /// Reads those at these places in `names`.
    fn decoder(&self, stored: &[&Column], projection: Vec<usize>) -> Result<Box<dyn Decoder>> {
        let field = |name: &String| {
            let column = stored.iter().find(|column| column.name == *name)?;
            Some(column.field().with_name(name.strip_prefix(self.prefix.as_str())?))
        };
        let fields: Option<Vec<Field>> = self.names.iter().map(field).collect();
        let fields = fields.ok_or_else(|| Error::internal("a field of the key is no column"))?;
        self.format.decoder(&Wanted { all: Arc::new(Schema::new(fields)), projection })
    }
}

/// Reads the columns of keys.
#[derive(Debug)]
struct Keys {
    decoder: Box<dyn Decoder>,
    /// Which of the metadata the keys are.
    metadata: usize,
}

impl Keys {
    /// The columns of these keys, a row for each: NULL where there is none, a comment, or one that cannot be read.
    fn read(&mut self, keys: &BinaryArray) -> Result<(Vec<ArrayRef>, Vec<BadPayload>)> {
        let there = is_not_null(keys)?;
        let places: Vec<usize> = there.values().set_indices().collect();
        let Decoded { rows, origins, mut bad, .. } = self.decoder.decode(filter(keys, &there)?.as_binary())?;
        if rows.num_rows() == keys.len() {
            return Ok((rows.columns().to_vec(), bad));
        }
        let mut row_of: Vec<Option<u64>> = vec![None; keys.len()];
        for (row, origin) in (0..).zip(origins_of(origins, &bad, places.len())) {
            row_of[places[origin]] = Some(row);
        }
        for bad in &mut bad {
            *bad = BadPayload { index: places[bad.index], reason: format!("its key: {}", bad.reason) };
        }
        let row_of = UInt64Array::from(row_of);
        let columns = rows.columns().iter().map(|column| take(column, &row_of, None)).collect::<Result<_, _>>()?;
        Ok((columns, bad))
    }
}

/// The part of a message that a column is read from, and which of the columns there it is.
#[derive(Debug, Clone, Copy)]
enum Part {
    Payload(usize),
    Metadata(usize),
    Key(usize),
}

/// Where the columns of a scan come from, and what is read of messages for them.
#[derive(Debug, Default)]
struct Parts {
    columns: Vec<Part>,
    /// Places among all columns of payloads.
    payload: Vec<usize>,
    metadata: Vec<String>,
    /// Places among all columns of keys.
    of_key: Vec<usize>,
}

impl Parts {
    fn of(stored: &[&Column], key: Option<&KeyColumns>, projection: &[usize]) -> Self {
        let mut parts = Self::default();
        for &index in projection {
            let column = stored[index];
            let part = match (&column.kind, key.and_then(|key| key.place(column))) {
                (ColumnKind::Metadata { key, .. }, _) => Part::Metadata(append(&mut parts.metadata, key.clone())),
                (_, Some(place)) => Part::Key(append(&mut parts.of_key, place)),
                (_, None) => {
                    let place = stored[..index].iter().filter(|column| is_in_payload(column, key)).count();
                    Part::Payload(append(&mut parts.payload, place))
                }
            };
            parts.columns.push(part);
        }
        parts
    }
}

fn is_in_payload(column: &Column, key: Option<&KeyColumns>) -> bool {
    column.kind == ColumnKind::Physical && key.is_none_or(|key| key.place(column).is_none())
}

/// Its place there.
fn append<T>(list: &mut Vec<T>, item: T) -> usize {
    list.push(item);
    list.len() - 1
}

/// Turns message batches into the rows that a scan asked for.
#[derive(Debug)]
pub struct Decoding {
    table: String,
    schema: SchemaRef,
    decoder: Box<dyn Decoder>,
    /// There if any of their columns is asked for.
    keys: Option<Keys>,
    on_error: OnError,
    report: ReadReport,
    /// What is read of each message, by key; those of dead letters last.
    metadata: Vec<String>,
    /// Where each column of the table in `schema` comes from.
    columns: Vec<Part>,
    /// The columns that the scan wants.
    projection: Vec<usize>,
    /// The last offset, and how many messages had it: those of a file share one.
    place: (u64, u64),
}

impl Decoding {
    /// For the columns `projection` of the table's stored schema; what is seen goes to `report`.
    pub fn try_new(
        table: &TableDefinition,
        format: &FormatOptions,
        projection: &[usize],
        report: &ReadReport,
    ) -> Result<Self> {
        Self::with_key(table, format, None, projection, report)
    }

    /// The same for a table that has columns in its messages' keys.
    pub fn with_key(
        table: &TableDefinition,
        format: &FormatOptions,
        key: Option<&KeyColumns>,
        projection: &[usize],
        report: &ReadReport,
    ) -> Result<Self> {
        let stored: Vec<&Column> = table.stored_columns().collect();
        let Parts { columns, payload, mut metadata, of_key } = Parts::of(&stored, key, projection);
        let keys = match key.filter(|_| !of_key.is_empty()) {
            Some(key) => {
                let place = append(&mut metadata, key.metadata.to_string());
                Some(Keys { decoder: key.decoder(&stored, of_key)?, metadata: place })
            }
            None => None,
        };
        if let (OnError::DeadLetter, Some(letters)) = (format.on_error, report.dead_letters()) {
            metadata.extend(letters.metadata().iter().cloned());
        }
        // Some formats know columns by their position among all that a payload holds.
        let all: Vec<Field> = stored.iter().filter(|column| is_in_payload(column, key)).map(|c| c.field()).collect();
        let decoder = format.decoder(&Wanted { all: Arc::new(Schema::new(all)), projection: payload })?;
        let fields: Vec<Field> = projection.iter().map(|&index| stored[index].field()).collect();
        let schema = Arc::new(Schema::new(fields));
        Ok(Self {
            table: table.name.clone(),
            schema: if format.is_changelog() { with_kind(&schema) } else { schema },
            decoder,
            keys,
            on_error: format.on_error,
            report: report.clone(),
            metadata,
            columns,
            projection: projection.to_vec(),
            place: (0, 0),
        })
    }

    /// The metadata keys that a [`MessageBatch`] must bring, in order.
    pub fn metadata(&self) -> &[String] {
        &self.metadata
    }

    /// The schema of the rows; of a changelog the kind of each is the last column.
    pub fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    /// The rows of one batch of messages of `partition`.
    pub fn decode(&mut self, partition: &Partition, mut batch: MessageBatch) -> Result<RecordBatch> {
        let (keys, unread) = self.read_keys(&batch)?;
        let misfits = self.cast_metadata(&mut batch)?;
        let broken = first_of_each([std::mem::take(&mut batch.broken), unread, misfits]);
        let mut found = self.read(&batch.payloads, broken)?;
        let mut columns = self.columns_of(&batch, &keys, &found)?;
        if let Some(missing) = self.missing(&columns) {
            (found, columns) = without(found, columns, batch.payloads.len(), missing)?;
        }
        let seen = PartitionReport {
            messages: batch.payloads.len() as u64,
            bytes: batch.payloads.value_data().len() as u64,
            last: Some(batch.last.clone()),
            ..PartitionReport::default()
        };
        let seen = self.judge(partition, &batch, &found.bad, seen)?;
        self.report.add(partition, seen);
        let rows = found.rows.num_rows();
        columns.extend(found.kinds.map(|kinds| Arc::new(kinds) as ArrayRef));
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        Ok(RecordBatch::try_new_with_options(self.schema(), columns, &options)?)
    }

    /// The columns of the messages' keys, and the messages whose key cannot be read.
    fn read_keys(&mut self, batch: &MessageBatch) -> Result<(Vec<ArrayRef>, Vec<BadPayload>)> {
        match &mut self.keys {
            Some(keys) => keys.read(batch.metadata[keys.metadata].as_binary()),
            None => Ok((vec![], vec![])),
        }
    }

    /// Gives the metadata that are columns the types of these. The messages that have one which cannot be so.
    fn cast_metadata(&self, batch: &mut MessageBatch) -> Result<Vec<BadPayload>> {
        let mut bad = vec![];
        for (part, field) in self.columns.iter().zip(self.schema.fields()) {
            let Part::Metadata(which) = *part else { continue };
            let (key, values) = (&self.metadata[which], &mut batch.metadata[which]);
            let (cast, misfits) = cast_each(values, field.data_type())?;
            for index in misfits {
                let misfit = misfit(&array_value_to_string(values, index)?, field.data_type());
                let reason = format!("its metadata '{key}': {misfit}, in column {}", field.name());
                bad.push(BadPayload { index, reason });
            }
            *values = cast;
        }
        Ok(bad)
    }

    /// Decodes what can be decoded, without what is `broken`; places are those in the batch.
    fn read(&mut self, payloads: &BinaryArray, broken: Vec<BadPayload>) -> Result<Decoded> {
        if broken.is_empty() {
            return self.decoder.decode(payloads);
        }
        let whole = mask(payloads.len(), broken.iter().map(|broken| broken.index));
        let places: Vec<usize> = whole.values().set_indices().collect();
        let mut decoded = self.decoder.decode(filter(payloads, &whole)?.as_binary())?;
        decoded.bad.iter_mut().for_each(|bad| bad.index = places[bad.index]);
        decoded.origins.iter_mut().flatten().for_each(|origin| *origin = places[*origin]);
        decoded.bad.extend(broken);
        decoded.bad.sort_by_key(|bad| bad.index);
        Ok(decoded)
    }

    /// The columns of the table for the rows that were found.
    fn columns_of(&self, batch: &MessageBatch, keys: &[ArrayRef], found: &Decoded) -> Result<Vec<ArrayRef>> {
        let of_rows = |origins: &Vec<usize>| origins.iter().map(|origin| *origin as u64).collect::<UInt64Array>();
        let origins = found.origins.as_ref().map(of_rows);
        let good = (!found.bad.is_empty()).then(|| mask(batch.payloads.len(), found.bad.iter().map(|bad| bad.index)));
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(self.schema.fields().len());
        for part in &self.columns {
            let column = match *part {
                Part::Payload(index) => {
                    columns.push(Arc::clone(found.rows.column(index)));
                    continue;
                }
                Part::Metadata(index) => &batch.metadata[index],
                Part::Key(index) => &keys[index],
            };
            columns.push(match (&origins, &good) {
                (Some(origins), _) => take(column, origins, None)?,
                (None, Some(good)) => filter(column, good)?,
                (None, None) => Arc::clone(column),
            });
        }
        Ok(columns)
    }

    /// The rows that lack what must be there, and the first column that each lacks.
    fn missing(&self, columns: &[ArrayRef]) -> Option<BTreeMap<usize, String>> {
        let mut missing = BTreeMap::new();
        for (column, field) in columns.iter().zip(self.schema.fields()) {
            if field.is_nullable() || column.null_count() == 0 {
                continue;
            }
            for row in (0..column.len()).filter(|row| column.is_null(*row)) {
                missing
                    .entry(row)
                    .or_insert_with(|| format!("it has no value for {}, which is NOT NULL", field.name()));
            }
        }
        (!missing.is_empty()).then_some(missing)
    }

    /// What becomes of messages that cannot be read.
    fn judge(
        &mut self,
        partition: &Partition,
        batch: &MessageBatch,
        bad: &[BadPayload],
        seen: PartitionReport,
    ) -> Result<PartitionReport> {
        let letters = self.report.dead_letters().filter(|_| self.on_error == OnError::DeadLetter).cloned();
        let ordinals = letters.is_some().then(|| self.ordinals(&batch.offsets));
        let Some(BadPayload { index, reason }) = bad.first() else { return Ok(seen) };
        let offset = batch.offsets[*index];
        if self.on_error == OnError::Fail {
            return Err(Error::data(format!(
                "table {}: the message at {partition} offset {offset} cannot be read: {reason}; correct it, or set \
                 'format.on-error' = 'skip' to leave such messages out, or '{}' to keep them",
                self.table,
                dead_letters::OPTION
            )));
        }
        let (count, sample) = (bad.len() as u64, Some(SkippedSample { offset, reason: reason.clone() }));
        let (Some(letters), Some(ordinals)) = (letters, ordinals) else {
            return Ok(PartitionReport { skipped: count, sample, ..seen });
        };
        let places: UInt64Array = bad.iter().map(|bad| bad.index as u64).collect();
        let of_bad = |values: &[u64]| bad.iter().map(|bad| values[bad.index]).collect::<UInt64Array>();
        let metadata = &batch.metadata[self.metadata.len() - letters.metadata().len()..];
        letters.keep(
            partition,
            &self.projection,
            &Unreadable {
                offsets: of_bad(&batch.offsets),
                ordinals: of_bad(&ordinals),
                payloads: take(&batch.payloads, &places, None)?.as_binary().clone(),
                reasons: bad.iter().map(|bad| Some(bad.reason.as_str())).collect(),
                metadata: metadata.iter().map(|column| take(column, &places, None)).collect::<Result<_, _>>()?,
            },
        )?;
        Ok(PartitionReport { dead_letters: count, sample, ..seen })
    }

    /// Which each message is of those at its offset.
    fn ordinals(&mut self, offsets: &[u64]) -> Vec<u64> {
        let ordinal = |offset: &u64| {
            self.place = if self.place.0 == *offset { (*offset, self.place.1 + 1) } else { (*offset, 1) };
            self.place.1
        };
        offsets.iter().map(ordinal).collect()
    }
}

/// What is wrong with each message, said once.
fn first_of_each(found: impl IntoIterator<Item = Vec<BadPayload>>) -> Vec<BadPayload> {
    let mut first = BTreeMap::new();
    for bad in found.into_iter().flatten() {
        first.entry(bad.index).or_insert(bad);
    }
    first.into_values().collect()
}

/// The values in another type, and the places of those that cannot be so, which are NULL.
fn cast_each(values: &ArrayRef, data_type: &DataType) -> Result<(ArrayRef, Vec<usize>)> {
    let strict = CastOptions { safe: false, ..CastOptions::default() };
    if let Ok(values) = cast_with_options(values, data_type, &strict) {
        return Ok((values, vec![]));
    }
    // What is nested may be wrong without being NULL as a whole. Of a slice all that it was cut from would be cast.
    let is_misfit = |place: &usize| {
        let value = take(values, &UInt64Array::from(vec![*place as u64]), None);
        value.and_then(|value| cast_with_options(&value, data_type, &strict)).is_err()
    };
    Ok((cast(values, data_type)?, (0..values.len()).filter(is_misfit).collect()))
}

/// Not these of so many.
fn mask(length: usize, without: impl Iterator<Item = usize>) -> BooleanArray {
    let mut kept = vec![true; length];
    without.for_each(|index| kept[index] = false);
    BooleanArray::from(kept)
}

/// The message that each row is from, of so many, which are rows but for the bad ones where nobody says otherwise.
fn origins_of(origins: Option<Vec<usize>>, bad: &[BadPayload], messages: usize) -> Vec<usize> {
    let good = || mask(messages, bad.iter().map(|bad| bad.index)).values().set_indices().collect();
    origins.unwrap_or_else(good)
}

/// What was found of `messages` messages, without those that have one of these rows.
fn without(
    found: Decoded,
    columns: Vec<ArrayRef>,
    messages: usize,
    missing: BTreeMap<usize, String>,
) -> Result<(Decoded, Vec<ArrayRef>)> {
    let Decoded { rows, origins, kinds, mut bad } = found;
    let from = origins_of(origins.clone(), &bad, messages);
    for (row, reason) in missing {
        if bad.iter().all(|bad| bad.index != from[row]) {
            bad.push(BadPayload { index: from[row], reason });
        }
    }
    bad.sort_by_key(|bad| bad.index);
    let is_bad: BTreeSet<usize> = bad.iter().map(|bad| bad.index).collect();
    let kept: BooleanArray = from.iter().map(|message| Some(!is_bad.contains(message))).collect();
    let columns = columns.iter().map(|column| filter(column, &kept)).collect::<Result<_, _>>()?;
    let decoded = Decoded {
        rows: filter_record_batch(&rows, &kept)?,
        origins: origins.map(|origins| origins.into_iter().filter(|message| !is_bad.contains(message)).collect()),
        kinds: kinds.map(|kinds| Ok::<_, Error>(filter(&kinds, &kept)?.as_primitive().clone())).transpose()?,
        bad,
    };
    Ok((decoded, columns))
}

/// The rows of a stream of messages of one partition.
pub fn decoded(
    mut decoding: Decoding,
    partition: Partition,
    messages: impl Stream<Item = Result<MessageBatch>> + Send + 'static,
) -> SendableRecordBatchStream {
    let schema = decoding.schema();
    let rows = messages.map(move |batch| Ok(decoding.decode(&partition, batch?)?));
    Box::pin(RecordBatchStreamAdapter::new(schema, rows))
}

/// Checks that every metadata column of `table` is one that the connector offers, in a type it can be cast to.
pub fn check_metadata(table: &TableDefinition, offered: &[MetadataKey], writing: bool) -> Result<()> {
    for column in &table.columns {
        let ColumnKind::Metadata { key, is_virtual } = &column.kind else { continue };
        let Some(known) = offered.iter().find(|known| known.covers(key)) else {
            let known: Vec<String> = offered.iter().map(shown).collect();
            let hint = crate::sql::options::did_you_mean(key, known.iter().map(String::as_str));
            return Err(Error::usage(format!(
                "table {}: column {}: there is no metadata '{key}'{hint}",
                table.name, column.name
            )));
        };
        if writing && !is_virtual && !known.writable {
            return Err(Error::usage(format!(
                "table {}: column {}: metadata '{key}' cannot be written; declare it VIRTUAL",
                table.name, column.name
            )));
        }
        if !arrow::compute::can_cast_types(&known.data_type, &column.data_type) {
            return Err(Error::usage(format!(
                "table {}: column {}: metadata '{key}' is {}, which cannot become {}",
                table.name, column.name, known.data_type, column.data_type
            )));
        }
    }
    Ok(())
}

/// A key as hints have it.
fn shown(known: &MetadataKey) -> String {
    if known.is_prefix() { format!("{}<name>", known.key) } else { known.key.to_string() }
}

/// Refuses `PARTITIONED BY`, for connectors that have no directories: it would be parsed and mean nothing.
pub fn refuse_layout(table: &TableDefinition) -> Result<()> {
    if table.partitioned_by.is_empty() {
        return Ok(());
    }
    let connector = table.connector()?;
    Err(Error::usage(format!(
        "table {}: PARTITIONED BY means nothing to '{connector}', only to 'filesystem'; leave it out",
        table.name
    )))
}

#[cfg(test)]
mod tests {
    use arrow::array::{Int64Array, ListBuilder, StringArray, StringBuilder};
    use arrow::util::pretty::pretty_format_batches;

    use super::*;
    use crate::connector::contract::fixture;
    use crate::sql::options::OptionReader;

    /// The rows in some payloads of a table `id BIGINT, at BIGINT METADATA, name STRING` with offsets from 10 on.
    fn rows(options: &[(&str, &str)], projection: &[usize], payloads: &[Option<&str>]) -> (Vec<String>, u64) {
        let field = |name, data_type| Field::new(name, data_type, true);
        let fields = [("id", DataType::Int64), ("at", DataType::Int64), ("name", DataType::Utf8View)];
        let schema = Schema::new(fields.map(|(name, data_type)| field(name, data_type)).to_vec());
        let mut table = (*fixture::table_of("t", &schema, options)).clone();
        table.columns[1].kind = ColumnKind::Metadata { key: "offset".into(), is_virtual: true };
        let format = FormatOptions::take(&mut OptionReader::new(&table)).unwrap();
        let report = ReadReport::default();
        let mut decoding = Decoding::try_new(&table, &format, projection, &report).unwrap();
        let offsets: Vec<u64> = (10..10 + payloads.len() as u64).collect();
        let metadata = Arc::new(Int64Array::from_iter_values(offsets.iter().map(|offset| *offset as i64)));
        let batch = MessageBatch {
            payloads: payloads.iter().map(|payload| payload.map(str::as_bytes)).collect(),
            broken: vec![],
            metadata: decoding.metadata().iter().map(|_| Arc::clone(&metadata) as ArrayRef).collect(),
            last: Fingerprint { offset: offsets[offsets.len() - 1], timestamp: None, id: None },
            offsets,
        };
        let partition = Partition::new("p", 0);
        let rows = decoding.decode(&partition, batch).unwrap();
        assert_eq!(rows.schema(), decoding.schema());
        (lines(&rows), report.take()[&partition].skipped)
    }

    fn lines(rows: &RecordBatch) -> Vec<String> {
        let table = pretty_format_batches(std::slice::from_ref(rows)).unwrap().to_string();
        let lines = table.lines().skip(3).take(rows.num_rows());
        lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    }

    #[test]
    fn a_row_has_the_metadata_of_its_message() {
        let created = r#"{"after":{"id":1,"name":"a"},"op":"c"}"#;
        let updated = r#"{"before":{"id":1,"name":"a"},"after":{"id":1,"name":"b"},"op":"u"}"#;
        let options = [("format", "debezium-json"), ("format.on-error", "skip")];
        let found = rows(&options, &[0, 1, 2], &[Some("{"), Some(created), None, Some(updated)]);
        let expected = ["| 1 | 11 | a | 0 |", "| 1 | 13 | a | 1 |", "| 1 | 13 | b | 2 |"];
        assert_eq!(found, (expected.map(String::from).to_vec(), 1));
        let (only_metadata, _) = rows(&options, &[1], &[Some(updated), None, Some(created)]);
        assert_eq!(only_metadata, ["| 10 | 1 |", "| 10 | 2 |", "| 12 | 0 |"]);
    }

    #[test]
    fn positions_are_those_among_the_physical_columns() {
        let options = [("format", "csv"), ("format.on-error", "skip")];
        let found = rows(&options, &[1, 2], &[Some("1,a"), Some("1"), Some("3,c")]);
        assert_eq!(found, (vec!["| 10 | a |".to_string(), "| 12 | c |".to_string()], 1));
    }

    #[test]
    fn columns_of_keys_are_read_beside_those_of_payloads() {
        let fields = [("id", DataType::Int64), ("k_a", DataType::Utf8View), ("k_b", DataType::Int64)];
        let schema = Schema::new(fields.map(|(name, data_type)| Field::new(name, data_type, true)).to_vec());
        let table = fixture::table_of("t", &schema, &[("format", "json"), ("format.on-error", "skip")]);
        let format = FormatOptions::take(&mut OptionReader::new(&table)).unwrap();
        let messages = [
            (Some(r#"{"a":"x","b":1}"#), r#"{"id":10,"k_a":"no"}"#),
            (None, r#"{"id":11}"#),
            (Some("{"), r#"{"id":12}"#),
            (Some(r#"{"b":4}"#), "{"),
            (Some(r#"{"b":5}"#), r#"{"id":14}"#),
        ];
        let decode = |projection: &[usize]| {
            let names = vec!["k_b".into(), "k_a".into()];
            let key = KeyColumns { metadata: "key", names, prefix: "k_".into(), format: KeyFormat::default() };
            let report = ReadReport::default();
            let mut decoding = Decoding::with_key(&table, &format, Some(&key), projection, &report).unwrap();
            let keys: BinaryArray = messages.iter().map(|(key, _)| key.map(str::as_bytes)).collect();
            let keys = Arc::new(keys) as ArrayRef;
            let batch = MessageBatch {
                payloads: messages.iter().map(|(_, payload)| Some(payload.as_bytes())).collect(),
                broken: vec![],
                offsets: (0..5).collect(),
                metadata: decoding.metadata().iter().map(|_| Arc::clone(&keys)).collect(),
                last: Fingerprint { offset: 4, timestamp: None, id: None },
            };
            let partition = Partition::new("p", 0);
            let rows = decoding.decode(&partition, batch).unwrap();
            (lines(&rows), report.take()[&partition].sample.clone().unwrap().reason)
        };
        let (found, reason) = decode(&[0, 1, 2]);
        assert_eq!(found, ["| 10 | x | 1 |", "| 11 | | |", "| 14 | | 5 |"]);
        assert!(reason.starts_with("its key: "), "{reason}");
        assert_eq!(decode(&[2]).0, ["| 1 |", "| |", "| 5 |"]);
        let (found, reason) = decode(&[0]);
        assert_eq!(found, ["| 10 |", "| 11 |", "| 12 |", "| 14 |"], "keys are not looked at where nobody asks");
        assert!(!reason.contains("key"), "{reason}");
    }

    #[test]
    fn metadata_of_another_type_make_a_message_bad() {
        let decode = |on_error, projection: &[usize]| {
            let fields = ["id", "amount"].map(|name| Field::new(name, DataType::Int64, true));
            let options = [("format", "json"), ("format.on-error", on_error)];
            let mut table = (*fixture::table_of("t", &Schema::new(fields.to_vec()), &options)).clone();
            table.columns[1].kind = ColumnKind::Metadata { key: "property.amount".into(), is_virtual: true };
            let format = FormatOptions::take(&mut OptionReader::new(&table)).unwrap();
            let report = ReadReport::default();
            let mut decoding = Decoding::try_new(&table, &format, projection, &report).unwrap();
            let amounts = Arc::new(StringArray::from(vec![Some("7"), Some("abc"), Some("x"), None])) as ArrayRef;
            let payloads = [r#"{"id":1}"#, r#"{"id":2}"#, "{", r#"{"id":4}"#];
            let batch = MessageBatch {
                payloads: payloads.iter().map(|payload| Some(payload.as_bytes())).collect(),
                broken: vec![],
                offsets: (0..4).collect(),
                metadata: decoding.metadata().iter().map(|_| Arc::clone(&amounts)).collect(),
                last: Fingerprint { offset: 3, timestamp: None, id: None },
            };
            let partition = Partition::new("p", 0);
            decoding.decode(&partition, batch).map(|rows| (lines(&rows), report.take()[&partition].skipped))
        };
        let error = decode("fail", &[0, 1]).unwrap_err();
        let expected = "the message at p:0 offset 1 cannot be read: its metadata 'property.amount': 'abc' cannot be \
                        BIGINT, in column amount; ";
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(error.kind(), crate::error::Kind::Data);
        assert_eq!(decode("skip", &[0, 1]).unwrap(), (vec!["| 1 | 7 |".to_string(), "| 4 | |".to_string()], 2));
        let (ids, skipped) = decode("skip", &[0]).unwrap();
        assert_eq!((ids.len(), skipped), (3, 1), "they are not looked at where nobody asks");
    }

    #[test]
    fn what_is_nested_is_of_its_type_too() {
        let mut lists = ListBuilder::new(StringBuilder::new());
        for text in ["1", "x", "3"] {
            lists.values().append_value(text);
            lists.append(true);
        }
        lists.append(false);
        let numbers = DataType::List(Arc::new(Field::new_list_field(DataType::Int64, true)));
        let (values, misfits) = cast_each(&(Arc::new(lists.finish()) as ArrayRef), &numbers).unwrap();
        assert_eq!((values.len(), values.null_count(), misfits), (4, 1, vec![1]));
    }

    #[test]
    fn keys_may_be_lines_some_of_them_comments() {
        let options = [("key.csv.allow-comments", "true"), ("key.csv.null-literal", "-")];
        let table = fixture::with_options(&options);
        let format = KeyFormat::take("csv", &mut OptionReader::new(&table)).unwrap().unwrap();
        let fields = ["a", "b"].map(|name| Field::new(name, DataType::Utf8View, true));
        let wanted = Wanted { all: Arc::new(Schema::new(fields.to_vec())), projection: vec![1] };
        let mut keys = Keys { decoder: format.decoder(&wanted).unwrap(), metadata: 0 };
        let lines = [Some("#"), Some("1,x"), None, Some("2"), Some("3,-"), Some("4,y")];
        let lines: BinaryArray = lines.iter().map(|line| line.map(str::as_bytes)).collect();
        let (columns, bad) = keys.read(&lines).unwrap();
        let texts: Vec<_> = columns[0].as_string_view().iter().collect();
        assert_eq!(texts, [None, Some("x"), None, None, None, Some("y")]);
        assert_eq!(bad, [BadPayload { index: 3, reason: "its key: it ends after field 1 of 2".into() }]);
    }

    #[test]
    fn a_message_without_payload_is_a_raw_null_and_else_told_as_a_tombstone() {
        let decode = |format| {
            let mut table = (*fixture::with_options(&[("format", format)])).clone();
            table.columns.push(Column::physical("text", DataType::Utf8View));
            let format = FormatOptions::take(&mut OptionReader::new(&table)).unwrap();
            let mut decoding = Decoding::try_new(&table, &format, &[0], &ReadReport::default()).unwrap();
            let batch = MessageBatch {
                payloads: BinaryArray::from(vec![None, Some(&b"a"[..])]),
                broken: vec![],
                offsets: vec![0, 1],
                metadata: vec![],
                last: Fingerprint { offset: 1, timestamp: None, id: None },
            };
            decoding.decode(&Partition::new("p", 0), batch)
        };
        let rows = decode("raw").unwrap();
        assert_eq!((rows.num_rows(), rows.column(0).null_count()), (2, 1));
        for format in ["json", "csv"] {
            let error = decode(format).unwrap_err().to_string();
            assert!(error.contains("offset 0 cannot be read: it has no payload: in a compacted topic"), "{error}");
            assert!(error.contains("set 'format.on-error' = 'skip' to leave such messages out"), "{error}");
        }
    }
}

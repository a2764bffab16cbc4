//! Canal: what MySQL's log says of some rows of one table, as JSON.
//!
//! Reading: `type` says what happened to the rows of `data`. INSERT gives them, DELETE takes them back. UPDATE takes
//! each back as it was, and then gives it; it was as it is now, but for the fields that `old` names. Other types, such as
//! changes of tables (CREATE, ALTER, QUERY, …), give nothing. Rows are read as json reads them.
//!
//! Writing, as Flink has it: a row that is new or takes the place of another is an INSERT, one that is taken back a
//! DELETE, each a message of its own.
//!
//! Not promised: `pkNames`, `mysqlType` and times as columns; MySQL's BOOLEAN, which Canal writes as `"1"` (declare it
//! TINYINT).

use std::collections::{HashMap, HashSet};
use std::iter::repeat_n;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, ListArray, RecordBatch, StringArray, StringViewArray};
use arrow::buffer::{BooleanBuffer, OffsetBuffer};
use arrow::compute::interleave;
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use regex::Regex;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::changelog::{ChangelogEncoder, Changes, Envelopes, Places, at, present, structs};
use super::json::{JsonOptions, Objects};
use super::{BadPayload, Decoded, Decoder};
use crate::connector::OptionEntry;
use crate::error::{Error, Result};
use crate::plan::changes::RowKind;
use crate::sql::options::OptionReader;

/// What its options say.
pub(super) const OPTIONS: &[OptionEntry] = &[
    OptionEntry::reading(
        "canal-json.database.include",
        "a regular expression",
        "all",
        "must match the whole name of the database; other messages give no rows",
    ),
    OptionEntry::reading("canal-json.table.include", "a regular expression", "all", "the same for the table"),
    OptionEntry::new(
        "canal-json.timestamp-format.standard",
        "`SQL`, `ISO-8601`",
        "`SQL`",
        "how timestamps are written: `2026-01-01 00:00:00.123`, or with a `T`. Both are read",
    ),
    OptionEntry::writing(
        "canal-json.encode.ignore-null-fields",
        "`true`, `false`",
        "`false`",
        "`true`: NULL is left out instead of written as `null`",
    ),
    OptionEntry::writing(
        "canal-json.encode.decimal-as-plain-number",
        "`true`",
        "`true`",
        "how a DECIMAL is written. **Flink's default is another one**",
    ),
    OptionEntry::reading(
        "canal-json.ignore-parse-errors",
        "`false`",
        "`false`",
        "`true` is refused: say `'format.on-error' = 'skip'`",
    ),
    OptionEntry::refused("canal-json.map-null-key.mode", "a MAP has no NULL keys"),
    OptionEntry::refused("canal-json.map-null-key.literal", "a MAP has no NULL keys"),
];

/// The options `canal-json.*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CanalOptions {
    json: JsonOptions,
    /// Patterns of the names of databases and tables whose rows are read.
    database: Option<String>,
    table: Option<String>,
}

impl CanalOptions {
    /// Takes `canal-json.database.include` and `canal-json.table.include`, regular expressions that the whole name must
    /// match, and what every format has that holds JSON.
    pub fn take(options: &mut OptionReader<'_>) -> Result<Self> {
        let form = "a regular expression (without look-around, which is not supported)";
        let pattern = |text: &str| whole(text).ok().map(|_| text.to_string());
        Ok(Self {
            json: JsonOptions::of("canal-json", options)?,
            database: options.with("canal-json.database.include", form, pattern)?,
            table: options.with("canal-json.table.include", form, pattern)?,
        })
    }
}

/// What matches a name as a whole.
fn whole(pattern: &str) -> Result<Regex> {
    Regex::new(&format!("^(?:{pattern})$"))
        .map_err(|e| Error::usage(format!("'{pattern}' is not a regular expression")).caused_by(e))
}

/// Payloads to rows with kinds.
#[derive(Debug)]
pub struct CanalDecoder {
    filter: Option<Filter>,
    envelopes: Envelopes,
}

impl CanalDecoder {
    /// A decoder into `schema`, whose field names are the keys of the rows.
    pub fn try_new(schema: SchemaRef, options: &CanalOptions) -> Result<Self> {
        let envelopes = Envelopes::try_new(&schema, |row| {
            // A row that is null is none.
            let rows = DataType::List(Arc::new(Field::new_list_field(row, false)));
            vec![
                Field::new("data", rows.clone(), true),
                Field::new("old", rows, true),
                Field::new("type", DataType::Utf8View, true),
            ]
        })?;
        Ok(Self { filter: Filter::try_new(options)?, envelopes })
    }
}

impl Decoder for CanalDecoder {
    fn decode(&mut self, payloads: &BinaryArray) -> Result<Decoded> {
        let (mut wanted, mut unnamed) = (present(payloads), vec![]);
        if let Some(filter) = &mut self.filter {
            wanted = filter.retain(payloads, wanted, &mut unnamed)?;
        }
        let mut decoded = self.envelopes.decode(payloads, &wanted, open)?;
        decoded.bad.extend(unnamed);
        decoded.bad.sort_by_key(|bad| bad.index);
        Ok(decoded)
    }
}

/// Leaves out messages of other databases and tables, before their rows are looked at: these may have other types.
#[derive(Debug)]
struct Filter {
    names: Objects,
    database: Option<Regex>,
    table: Option<Regex>,
}

impl Filter {
    fn try_new(options: &CanalOptions) -> Result<Option<Self>> {
        let (database, table) = (options.database.as_deref(), options.table.as_deref());
        if database.is_none() && table.is_none() {
            return Ok(None);
        }
        let fields = ["database", "table"].map(|name| Field::new(name, DataType::Utf8View, true));
        Ok(Some(Self {
            names: Objects::try_new(Arc::new(Schema::new(fields.to_vec())))?,
            database: database.map(whole).transpose()?,
            table: table.map(whole).transpose()?,
        }))
    }

    /// Of the payloads at `wanted` those that are let through, and those whose names cannot be read.
    fn retain(&mut self, payloads: &BinaryArray, wanted: Vec<usize>, bad: &mut Vec<BadPayload>) -> Result<Vec<usize>> {
        let parts = self.names.read(&at(payloads, &wanted)?, bad, |names, _| Ok(Ok(names)))?;
        bad.iter_mut().for_each(|bad| bad.index = wanted[bad.index]);
        let mut passes = vec![false; wanted.len()];
        for (first, names) in &parts {
            let (databases, tables) = (names.column(0).as_string_view(), names.column(1).as_string_view());
            for row in 0..names.num_rows() {
                passes[first + row] = fits(&self.database, databases, row) && fits(&self.table, tables, row);
            }
        }
        Ok(wanted.into_iter().zip(passes).filter_map(|(index, passes)| passes.then_some(index)).collect())
    }
}

/// The payloads of those databases and tables whose rows are read.
pub(super) fn chosen(options: &CanalOptions, payloads: &BinaryArray) -> Result<BinaryArray> {
    let wanted = present(payloads);
    let wanted = match Filter::try_new(options)? {
        Some(mut filter) => filter.retain(payloads, wanted, &mut vec![])?,
        None => wanted,
    };
    at(payloads, &wanted)
}

fn fits(pattern: &Option<Regex>, names: &StringViewArray, row: usize) -> bool {
    pattern.as_ref().is_none_or(|pattern| names.is_valid(row) && pattern.is_match(names.value(row)))
}

/// Which of the two arrays a row is in.
const DATA: usize = 0;
const OLD: usize = 1;

/// A row that was replaced.
struct Update {
    /// Its place among the rows that come out.
    at: usize,
    /// Its element in `data`, and the one in `old`.
    data: usize,
    old: usize,
}

/// The rows of these envelopes, or what is wrong with one of them.
fn open(envelopes: &RecordBatch, payloads: &BinaryArray) -> Result<std::result::Result<Changes, String>> {
    let (data, old) = (envelopes.column(DATA).as_list::<i32>(), envelopes.column(OLD).as_list::<i32>());
    let rows = [data.values().as_struct(), old.values().as_struct()];
    let (mut places, mut updates) = (Places::default(), vec![]);
    // Of the elements of `old`: which of their fields were NULL, by element and column. All other NULLs were not named.
    let mut were_null = HashSet::new();
    for (origin, kind) in envelopes.column(2).as_string_view().iter().enumerate() {
        let Some(kind) = kind else {
            return Ok(Err("it has no type, so it is no message of Canal".into()));
        };
        if !["INSERT", "UPDATE", "DELETE"].contains(&kind) {
            continue;
        }
        if data.is_null(origin) {
            return Ok(Err(format!("it has no data, with type {kind}")));
        }
        let (data, old) = (elements(data, origin), elements(old, origin));
        match kind {
            "INSERT" => data.for_each(|row| places.push(origin, RowKind::Insert, (DATA, row))),
            "DELETE" => data.for_each(|row| places.push(origin, RowKind::Delete, (DATA, row))),
            _ if data.len() != old.len() => {
                return Ok(Err(format!(
                    "it has {} rows in data and {} in old, with type UPDATE",
                    data.len(),
                    old.len()
                )));
            }
            _ => {
                match named_nulls(payloads.value(origin), rows[OLD].fields()) {
                    Ok(nulls) => were_null.extend(nulls.into_iter().map(|(row, column)| (old.start + row, column))),
                    Err(reason) => return Ok(Err(reason)),
                }
                for (data, old) in data.zip(old) {
                    updates.push(Update { at: places.len(), data, old });
                    places.push(origin, RowKind::UpdateBefore, (OLD, old));
                    places.push(origin, RowKind::UpdateAfter, (DATA, data));
                }
            }
        }
    }
    let column = |index: usize, places: &[(usize, usize)]| -> Result<ArrayRef> {
        let (data, old) = (rows[DATA].column(index), rows[OLD].column(index));
        let mut places = places.to_vec();
        for update in &updates {
            if old.is_null(update.old) && !were_null.contains(&(update.old, index)) {
                places[update.at] = (DATA, update.data);
            }
        }
        Ok(interleave(&[data.as_ref(), old.as_ref()], &places)?)
    };
    Ok(Ok(places.rows(rows[DATA].fields(), column)?))
}

/// The elements of a list.
fn elements(lists: &ListArray, index: usize) -> Range<usize> {
    let offsets = lists.value_offsets();
    offsets[index] as usize..offsets[index + 1] as usize
}

/// Which fields of `old` are there and null, by element and column. Columns cannot tell them from those that are
/// missing, so a payload that has a null is looked at once more.
fn named_nulls(payload: &[u8], fields: &Fields) -> std::result::Result<Vec<(usize, usize)>, String> {
    #[derive(Deserialize)]
    struct Message {
        old: Option<Vec<HashMap<String, Option<IgnoredAny>>>>,
    }
    if !payload.windows(4).any(|word| word == b"null") {
        return Ok(vec![]);
    }
    let message: Message = serde_json::from_slice(payload).map_err(|e| e.to_string())?;
    let mut found = vec![];
    for (row, old) in message.old.iter().flatten().enumerate() {
        let is_null = |name: &String| matches!(old.get(name), Some(None));
        found.extend((0..fields.len()).filter(|column| is_null(fields[*column].name())).map(|column| (row, column)));
    }
    Ok(found)
}

/// An encoder of rows of `schema`.
pub(super) fn encoder(schema: SchemaRef, options: &CanalOptions) -> Result<ChangelogEncoder> {
    ChangelogEncoder::try_new(schema, &options.json, wrap)
}

fn wrap(rows: &RecordBatch, are_there: &BooleanBuffer) -> Result<RecordBatch> {
    let data = structs(rows, None)?;
    let item = Arc::new(Field::new_list_field(data.data_type().clone(), false));
    let offsets = OffsetBuffer::from_lengths(repeat_n(1, rows.num_rows()));
    let types = are_there.iter().map(|is_there| if is_there { "INSERT" } else { "DELETE" });
    let columns: [(&str, ArrayRef, bool); 2] = [
        ("data", Arc::new(ListArray::try_new(item, offsets, Arc::new(data), None)?), false),
        ("type", Arc::new(StringArray::from_iter_values(types)), false),
    ];
    Ok(RecordBatch::try_from_iter_with_nullable(columns)?)
}

#[cfg(test)]
#[path = "canal_tests.rs"]
mod tests;

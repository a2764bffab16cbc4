//! Rows as what RocketMQ messages are made of: payload, metadata and keys.
//!
//! The idea: RocketMQ knows a message by its `keys`, one text, in which blanks divide what can be looked up. So of a
//! PRIMARY KEY with one column they are its text; of one with several their texts, divided by blanks, with `%`, blanks
//! and control characters in them written as `%25`, `%20` and so on. Thus no two keys have the same text, and each part
//! can be looked up.
//!
//! Not promised: keys for what has no text. A row has no keys if a column of its key is NULL, or if the only one is empty,
//! which RocketMQ does not store.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray, StringBuilder};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};

use super::metadata::KEYS;
use crate::catalog::TableDefinition;
use crate::connector::outgoing::Encoding;
use crate::connector::upserts::{Key, Upserts};
use crate::error::{Error, Result};
use crate::format::FormatOptions;
use crate::sql::types::sql_type;

/// Makes of rows what messages need.
#[derive(Debug)]
pub(super) struct Rows {
    table: String,
    encoding: Encoding,
    key: Key,
    schema: SchemaRef,
}

impl Rows {
    /// For rows of the table's writable schema.
    pub(super) fn try_new(table: &TableDefinition, format: &FormatOptions) -> Result<Self> {
        let blame = |error: Error| error.context(format_args!("table {}", table.name));
        let encoding = Encoding::try_new(table, format).map_err(blame)?;
        let key = Key::of(table, KEYS, &table.primary_key).map_err(blame)?;
        let mut fields: Vec<FieldRef> = encoding.schema().fields().to_vec();
        if let Key::Made(columns) = &key
            && !columns.is_empty()
        {
            let of_key = table.writable_schema().project(columns)?;
            if let Some(field) = of_key.fields().iter().find(|field| !has_text(field.data_type())) {
                return Err(blame(Error::usage(format!(
                    "column {} of the PRIMARY KEY is {}, and a key of RocketMQ is a text; use other columns, or write one \
                     METADATA FROM 'keys'",
                    field.name(),
                    sql_type(field.data_type())
                ))));
            }
            fields.push(Arc::new(Field::new(column_of_keys(), DataType::Utf8, true)));
        }
        Ok(Self { table: table.name.clone(), encoding, key, schema: Arc::new(Schema::new(fields)) })
    }

    /// What [`encode`](Self::encode) returns.
    pub(super) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// What a message's keys are.
    pub(super) fn key(&self) -> &Key {
        &self.key
    }

    /// A batch that [`Messages`](super::message::Messages) takes.
    pub(super) fn encode(&mut self, upserts: &Upserts) -> Result<RecordBatch> {
        let mut columns = self.encoding.encode(upserts)?.columns().to_vec();
        if let Key::Made(of_key) = &self.key
            && !of_key.is_empty()
        {
            columns.push(Arc::new(keys(upserts.rows.project(of_key)?.columns())?));
        }
        let encoded = RecordBatch::try_new(Arc::clone(&self.schema), columns)?;
        let checked = upserts.check_keys(encoded.column_by_name(&column_of_keys()));
        checked.map_err(|error| error.context(format_args!("table {}", self.table)))?;
        Ok(encoded)
    }
}

fn column_of_keys() -> String {
    format!("metadata.{KEYS}")
}

/// Whether values of this type are known by their text.
fn has_text(data_type: &DataType) -> bool {
    !data_type.is_nested() && data_type != &DataType::Binary
}

/// The keys of rows with these columns.
fn keys(columns: &[ArrayRef]) -> Result<StringArray> {
    let texts = columns.iter().map(|column| Ok(cast(column, &DataType::Utf8)?)).collect::<Result<Vec<_>>>()?;
    let texts: Vec<&StringArray> = texts.iter().map(|texts| texts.as_string::<i32>()).collect();
    if let [only] = texts.as_slice() {
        return Ok(only.iter().map(|text| text.filter(|text| !text.is_empty())).collect());
    }
    let rows = texts.first().map_or(0, |texts| texts.len());
    let (mut keys, mut key) = (StringBuilder::with_capacity(rows, rows * 16), String::new());
    for row in 0..rows {
        if texts.iter().any(|texts| texts.is_null(row)) {
            keys.append_null();
            continue;
        }
        key.clear();
        for (index, texts) in texts.iter().enumerate() {
            key.push_str(if index == 0 { "" } else { " " });
            push_part(&mut key, texts.value(row));
        }
        keys.append_value(&key);
    }
    Ok(keys.finish())
}

/// Appends a text in such a way that it holds no blank.
fn push_part(key: &mut String, text: &str) {
    let is_written = |c: char| c == '%' || c == ' ' || c.is_ascii_control();
    if !text.contains(is_written) {
        return key.push_str(text);
    }
    for c in text.chars() {
        match is_written(c) {
            true => key.push_str(&format!("%{:02X}", u32::from(c))),
            false => key.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{BooleanArray, Date32Array, Int64Array, StringViewArray};

    use super::*;
    use crate::catalog::ColumnKind;
    use crate::connector::contract::fixture;
    use crate::error::Kind;
    use crate::sql::options::OptionReader;

    fn texts(columns: &[ArrayRef]) -> Vec<Option<String>> {
        keys(columns).unwrap().iter().map(|key| key.map(str::to_string)).collect()
    }

    #[test]
    fn a_key_of_one_column_is_its_text() {
        let text = |text: &str| Some(text.to_string());
        let items: ArrayRef = Arc::new(StringViewArray::from(vec![Some("green apple"), Some("100%"), Some(""), None]));
        assert_eq!(texts(&[items]), [text("green apple"), text("100%"), None, None]);
        let ids: ArrayRef = Arc::new(Int64Array::from(vec![-7, 0]));
        assert_eq!(texts(&[ids]), [text("-7"), text("0")]);
        let days: ArrayRef = Arc::new(Date32Array::from(vec![1]));
        assert_eq!(texts(&[days]), [text("1970-01-02")]);
    }

    #[test]
    fn no_two_keys_of_several_columns_have_one_text() {
        let column = |values: &[Option<&str>]| Arc::new(StringViewArray::from(values.to_vec())) as ArrayRef;
        let first = column(&[Some("a b"), Some("a"), Some("a%20b"), Some(""), Some("\u{1}"), None]);
        let second = column(&[Some("c"), Some("b c"), Some("c"), Some("ü"), Some(""), Some("c")]);
        let expected = ["a%20b c", "a b%20c", "a%2520b c", " ü", "%01 "].map(|key| Some(key.to_string()));
        let found = texts(&[first, second]);
        assert_eq!(found[..5], expected);
        assert_eq!(found[5], None);
    }

    /// A table `item STRING, amount BIGINT` with this PRIMARY KEY, and two rows of it.
    fn table(primary_key: &str) -> (TableDefinition, RecordBatch) {
        let columns: [(&str, ArrayRef, bool); 2] = [
            ("item", Arc::new(StringViewArray::from(vec![Some("apple"), None])), true),
            ("amount", Arc::new(Int64Array::from(vec![1, 2])), true),
        ];
        let rows = RecordBatch::try_from_iter_with_nullable(columns).unwrap();
        let mut table = (*fixture::table_of("t", &rows.schema(), &[("format", "json")])).clone();
        table.primary_key = vec![primary_key.into()];
        (table, rows)
    }

    fn rows_of(table: &TableDefinition) -> Result<Rows> {
        Rows::try_new(table, &FormatOptions::take(&mut OptionReader::new(table)).unwrap())
    }

    #[test]
    fn only_rows_that_stay_need_no_keys() {
        let (table, rows) = table("item");
        let mut encoder = rows_of(&table).unwrap();
        let encoded = encoder.encode(&Upserts { rows: rows.clone(), valued: None, kinds: None }).unwrap();
        assert_eq!(encoded.schema(), *encoder.schema());
        let keys = encoded.column_by_name("metadata.keys").unwrap().as_string::<i32>();
        assert_eq!(keys.iter().collect::<Vec<_>>(), [Some("apple"), None]);
        let changing = Upserts { rows, valued: Some(BooleanArray::from(vec![true, false])), kinds: None };
        let error = encoder.encode(&changing).unwrap_err();
        assert_eq!(error.kind(), Kind::Data);
        assert!(error.to_string().starts_with("table t: a row of a result that changes has no key"), "{error}");
    }

    #[test]
    fn a_column_of_keys_is_taken_as_it_is_and_bytes_are_no_key() {
        let (mut table, rows) = table("amount");
        table.columns[0].kind = ColumnKind::Metadata { key: "keys".into(), is_virtual: false };
        let mut encoder = rows_of(&table).unwrap();
        assert_eq!(encoder.key(), &Key::Given(0));
        let encoded = encoder.encode(&Upserts { rows, valued: None, kinds: None }).unwrap();
        assert_eq!(encoded.num_columns(), 2);
        assert_eq!(encoded.column_by_name("metadata.keys").unwrap().as_string_view().value(0), "apple");

        table.columns[0].kind = ColumnKind::Physical;
        table.columns[1].data_type = DataType::Binary;
        let error = rows_of(&table).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage);
        assert!(error.to_string().starts_with("table t: column amount of the PRIMARY KEY is BYTES"), "{error}");
    }
}

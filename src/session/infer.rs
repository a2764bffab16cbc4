//! `CREATE TABLE … WITH (…)` without columns: they are those of the messages that are there.
//!
//! The idea: whatever the connector, messages are rows of one BYTES column in the format `raw`. A table of that kind is
//! opened, some of what each partition holds is read, most of it from its end, and
//! [`format::infer`](crate::format::infer) looks at that.
//!
//! Guarantee: what is read is bounded, in messages, bytes and time. The table that comes out is an ordinary one with
//! its columns written out, and says as SQL what it is.
//!
//! Not promised: the same columns tomorrow. Who wants these keeps that SQL.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, AsArray, BinaryArray};
use arrow::datatypes::DataType;
use futures::{StreamExt, TryStreamExt, stream};
use tokio::time::timeout;

use super::Session;
use crate::catalog::{Column, TableDefinition};
use crate::connector::{Bounds, Connectors, Environment, Extent, Partition, ReadReport, Role, Source, Span};
use crate::error::{Error, Kind, Result};
use crate::format::{FORMATS, infer};
use crate::sql;
use crate::sql::options::did_you_mean;

/// How many of the newest and of the oldest messages are looked at, of all partitions together.
const NEWEST: u64 = 900;
const OLDEST: u64 = 100;

/// How many bytes of them at most, but for the last batch of each partition.
const BYTES: usize = 16 << 20;

/// How long looking takes at most.
const DEADLINE: Duration = Duration::from_secs(10);

/// How many partitions are read at once.
const AT_ONCE: usize = 8;

/// The only column of a table of messages as they are.
const PAYLOAD: &str = "value";

/// What the keys of options that say what payloads hold begin with, besides the format's name.
const VALUE: &str = "value.";

/// A table whose columns were inferred.
pub(super) struct Inferred {
    pub(super) definition: TableDefinition,
    /// What somebody should know who uses it, a sentence each.
    pub(super) notes: Vec<String>,
}

impl Session {
    /// The same table with the columns of its messages.
    pub(super) async fn inferred(&self, table: TableDefinition) -> Result<Inferred> {
        let (plain, prefix) = plain(&table);
        match plain.options.get("format").map(String::as_str) {
            Some(format) if FORMATS.contains(&format) => {}
            given => return Err(without_messages(&table, given)),
        }
        let Sample { payloads, note } = sample(&self.connectors, &self.environment(), &table).await?;
        if payloads.is_empty() {
            let place = self.connectors.of(&table)?.identity(&as_bytes(&table))?;
            return Err(Error::usage(format!(
                "table {}: {place} has no messages to infer columns from; write the columns out, or try again when \
                 there are some",
                table.name
            )));
        }
        let infer::Inferred { columns, primary_key, options, notes } = infer::columns(&plain, &payloads)?;
        let mut definition = TableDefinition { columns, ..table };
        if definition.primary_key.is_empty() {
            definition.primary_key = primary_key;
        }
        definition.options.extend(options.into_iter().map(|(key, value)| (format!("{prefix}{key}"), value)));
        Ok(Inferred { definition, notes: note.into_iter().chain(notes).collect() })
    }
}

impl Inferred {
    /// The statement that makes the table with its columns, below what should be known of it.
    pub(super) fn shown(&self) -> String {
        let notes: String = self.notes.iter().map(|note| format!("-- {}\n", note.replace('\n', " "))).collect();
        format!("{notes}{};", sql::show_create_table(&self.definition))
    }
}

fn without_messages(table: &TableDefinition, format: Option<&str>) -> Error {
    let what = match format {
        Some(format) => {
            format!("there is no format '{format}' for messages{}", did_you_mean(format, FORMATS.into_iter()))
        }
        None => "there is no option 'format'".into(),
    };
    let name = &table.name;
    Error::usage(format!(
        "table {name}: it has no columns, and these are inferred only from messages of a known format: {what}; write \
         the columns out: CREATE TABLE {name} (a INT, …)"
    ))
}

/// The table with the options of its format under their own names, and what these began with.
fn plain(table: &TableDefinition) -> (TableDefinition, &'static str) {
    if !table.options.contains_key("value.format") {
        return (table.clone(), "");
    }
    let options = &table.options;
    let options = options.iter().map(|(key, value)| (key.strip_prefix(VALUE).unwrap_or(key).into(), value.clone()));
    (TableDefinition { options: options.collect(), ..table.clone() }, VALUE)
}

/// The table with its messages as they are: a column of BYTES.
fn as_bytes(table: &TableDefinition) -> TableDefinition {
    let of_format = |key: &str| {
        let is_own = |format: &str| key.strip_prefix(format).is_some_and(|rest| rest.starts_with('.'));
        ["format", "key", "value"].into_iter().chain(FORMATS).any(is_own)
    };
    let mut options = table.options.clone();
    options.retain(|key, _| !of_format(key));
    options.insert("format".into(), "raw".into());
    TableDefinition {
        name: table.name.clone(),
        columns: vec![Column::physical(PAYLOAD, DataType::Binary)],
        primary_key: vec![],
        watermark: None,
        partitioned_by: table.partitioned_by.clone(),
        options,
    }
}

/// Some messages of a table.
pub(super) struct Sample {
    pub(super) payloads: BinaryArray,
    /// Why it is smaller than it would be.
    note: Option<String>,
}

/// Reads some of the messages of a table, whatever its format; none, if there are none.
pub(super) async fn sample(
    connectors: &Connectors,
    environment: &Environment,
    table: &TableDefinition,
) -> Result<Sample> {
    let raw = Arc::new(as_bytes(table));
    let connector = connectors.of(&raw)?;
    let cannot = |error: Error| error.context("its columns cannot be inferred; mend this, or write them out");
    connector.check(&raw, Role::Source).map_err(cannot)?;
    let source = connector.source(Arc::clone(&raw), environment, None).await?;
    let mut found = vec![];
    let outcome = timeout(DEADLINE, look(&source, &mut found)).await;
    source.close().await;
    let payloads: BinaryArray = found.iter().flatten().collect();
    let note = match outcome {
        Ok(outcome) => outcome.map(|()| None)?,
        Err(_) if payloads.is_empty() => {
            let seconds = DEADLINE.as_secs();
            return Err(Error::transient(format!("table {}: no message came within {seconds} s", table.name)));
        }
        Err(_) => Some(format!("only {} messages came within {} s", payloads.len(), DEADLINE.as_secs())),
    };
    Ok(Sample { payloads, note })
}

/// Appends what is read of each partition, in their order.
async fn look(source: &Arc<dyn Source>, found: &mut Vec<BinaryArray>) -> Result<()> {
    let extent = source.extent().await?;
    let partitions = spans(&extent);
    if let (true, Some((partition, reason))) = (partitions.is_empty(), extent.unreachable.first_key_value()) {
        return Err(Error::transient(format!("{partition} cannot be reached: {reason}")));
    }
    let bytes = BYTES / partitions.len().max(1);
    let source = Arc::clone(source);
    let mut parts =
        stream::iter(partitions).map(move |spans| read(Arc::clone(&source), spans, bytes)).buffered(AT_ONCE);
    while let Some(part) = parts.try_next().await? {
        found.extend(part);
    }
    Ok(())
}

/// What to read of each partition that holds something: its newest offsets, and some of its oldest.
fn spans(extent: &Extent) -> Vec<Vec<Span>> {
    let filled: Vec<(&Partition, &Bounds)> =
        extent.partitions.iter().filter(|(_, bounds)| bounds.earliest < bounds.latest).collect();
    let share = |messages: u64| (messages / filled.len().max(1) as u64).max(1);
    let (oldest, newest) = (share(OLDEST), share(NEWEST));
    let of_partition = |(partition, bounds): &(&Partition, &Bounds)| {
        let Bounds { earliest, latest } = **bounds;
        let span = |from, to| Span::new((*partition).clone(), from, to);
        match latest - earliest > oldest + newest {
            true => vec![span(earliest, earliest + oldest), span(latest - newest, latest)],
            false => vec![span(earliest, latest)],
        }
    };
    filled.iter().map(of_partition).collect()
}

/// The payloads of these spans of a partition, up to so many bytes of each.
async fn read(source: Arc<dyn Source>, spans: Vec<Span>, bytes: usize) -> Result<Vec<BinaryArray>> {
    let mut found = vec![];
    for span in spans {
        let mut rows = source.read(&span, &[0], &ReadReport::default())?;
        let mut taken = 0;
        while taken < bytes {
            let batch = match rows.try_next().await.map_err(Error::from) {
                Ok(Some(batch)) => batch,
                Ok(None) => break,
                // Retention was faster.
                Err(error) if error.kind() == Kind::DataLoss => break,
                Err(error) => return Err(error),
            };
            let payloads = batch.column(0).as_binary::<i32>();
            taken += payloads.value_data().len();
            found.push(payloads.clone());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connector::contract::fixture::{extent, with_options};

    fn table(options: &[(&str, &str)]) -> TableDefinition {
        TableDefinition { primary_key: vec!["id".into()], ..(*with_options(options)).clone() }
    }

    fn check(bounds: &[(u64, u64)], expected: &[&str]) {
        let shown: Vec<String> = spans(&extent(bounds)).concat().iter().map(Span::to_string).collect();
        assert_eq!(shown, expected, "{bounds:?}");
    }

    #[test]
    fn the_newest_messages_are_read_and_some_of_the_oldest() {
        check(&[], &[]);
        check(&[(0, 0), (7, 7)], &[]);
        check(&[(0, 1)], &["t:0 0..1"]);
        check(&[(5, 1005)], &["t:0 5..1005"]);
        check(&[(5, 1006)], &["t:0 5..105", "t:0 106..1006"]);
        check(&[(0, 0), (0, 3_000_000), (9, 10)], &["t:1 0..50", "t:1 2999550..3000000", "t:2 9..10"]);
        let many = vec![(0, 10); 5000];
        assert_eq!(spans(&extent(&many)).concat().iter().map(Span::len).sum::<u64>(), 10_000);
    }

    #[test]
    fn a_table_of_bytes_keeps_how_to_connect() {
        let with = |options: &[(&str, &str)]| {
            let raw = as_bytes(&table(options));
            assert_eq!((raw.columns.len(), raw.primary_key.len()), (1, 0));
            raw.options.keys().cloned().collect::<Vec<_>>().join(" ")
        };
        let json = [("connector", "kafka"), ("format", "json"), ("json.fail-on-missing-field", "true")];
        assert_eq!(with(&json), "connector format");
        let key =
            [("connector", "kafka"), ("value.format", "csv"), ("value.csv.null-literal", "N"), ("key.format", "raw")];
        assert_eq!(with(&key), "connector format");
        let other = [("format", "json"), ("format.on-error", "skip"), ("topic", "a"), ("properties.x", "y")];
        assert_eq!(with(&other), "format properties.x topic");
    }

    #[test]
    fn options_keep_where_they_were() {
        let (plain, prefix) = plain(&table(&[("value.format", "json"), ("key.format", "raw"), ("topic", "a")]));
        assert_eq!((plain.options["format"].as_str(), prefix), ("json", "value."));
        assert_eq!(super::plain(&table(&[("format", "json")])).1, "");
    }

    #[tokio::test]
    async fn what_holds_no_messages_is_refused_by_name() {
        let session = Session::new("test").unwrap();
        for (options, part) in [
            (&[("connector", "datagen")][..], "there is no option 'format'"),
            (&[("connector", "filesystem"), ("path", "/tmp"), ("format", "parquet")], "there is no format 'parquet'"),
            (&[("connector", "filesystem"), ("path", "/tmp"), ("format", "json")], "its columns cannot be inferred"),
            (&[("connector", "kafka"), ("topic", "a"), ("format", "jsn")], "did you mean 'json'?"),
            (&[("connector", "kafka"), ("format", "json")], "the option 'topic' is missing"),
            (&[("connector", "kafk"), ("format", "json")], "did you mean 'kafka'?"),
        ] {
            let error = session.inferred(table(options)).await.map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn notes_are_comments() {
        let definition = TableDefinition {
            columns: vec![Column::physical("a b", DataType::Int64)],
            primary_key: vec![],
            ..table(&[("connector", "kafka")])
        };
        let shown = Inferred { definition: definition.clone(), notes: vec!["a\nb".into()] }.shown();
        assert!(shown.starts_with("-- a b\nCREATE TABLE `t` (") && shown.ends_with(");"), "{shown}");
        let statement = sql::parse(&shown).unwrap().remove(0).statement;
        let sql::Statement::CreateTable(create) = statement else { panic!("{shown}") };
        assert_eq!(create.definition, definition);
    }
}

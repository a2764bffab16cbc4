//! Rows as lines on the terminal: `'connector' = 'print'`.
//!
//! A row is printed as `+I[7, apple, null]` (a change as `-U[…]` and `+U[…]`), after `name> ` if there is a `print-identifier`, when its epoch is published;
//! until then it waits in a [spool](super::spool). Tasks follow each other by number, so equal epochs print equal text.
//!
//! At-least-once: the terminal remembers nothing, so an epoch whose commit was lost is printed again. What it does not
//! promise: that a line can be parsed. Text is printed as it is, commas and line breaks included.

use std::collections::BTreeMap;
use std::fmt::{self, Debug};
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::Int8Type;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use async_trait::async_trait;
use datafusion::execution::SendableRecordBatchStream;

use super::messages::{check_metadata, refuse_layout};
use super::spool::{Spooled, Waiting};
use super::{
    Connector, Delivery, Environment, Guarantee, OptionEntry, Owner, Pin, Published, Role, Sink, Source, Staged,
};
use crate::catalog::TableDefinition;
use crate::error::{Error, Result};
use crate::plan::changes::{RowKind, is_updating};
use crate::sql::options::OptionReader;

/// Lines are handed to the writer in pieces of about this size.
const PIECE: usize = 64 << 10;

/// Where lines go.
type Writer = Arc<Mutex<Box<dyn Write + Send>>>;

/// The connector `print`.
pub struct PrintConnector {
    output: Writer,
    error: Writer,
}

impl Default for PrintConnector {
    fn default() -> Self {
        Self::writing_to(Box::new(io::stdout()), Box::new(io::stderr()))
    }
}

impl PrintConnector {
    /// Prints to these instead of standard output and standard error.
    pub fn writing_to(output: Box<dyn Write + Send>, error: Box<dyn Write + Send>) -> Self {
        Self { output: Arc::new(Mutex::new(output)), error: Arc::new(Mutex::new(error)) }
    }
}

impl Debug for PrintConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrintConnector")
    }
}

/// What the options of a table say.
const OPTIONS: &[OptionEntry] = &[
    OptionEntry::writing("print-identifier", "a text", "", "`name> ` before each line"),
    OptionEntry::writing(
        "standard-error",
        "`true`, `false`",
        "`false`",
        "`true`: standard error instead of standard output",
    ),
];

/// What a table's options say.
struct Options {
    identifier: Option<String>,
    to_error: bool,
}

impl Options {
    fn of(table: &TableDefinition) -> Result<Self> {
        let mut reader = OptionReader::new(table);
        let identifier = reader.text("print-identifier")?.filter(|identifier| !identifier.is_empty());
        let to_error = reader.flag("standard-error")?.unwrap_or(false);
        reader.finish()?;
        Ok(Self { identifier, to_error })
    }
}

fn no_source(table: &TableDefinition) -> Error {
    Error::usage(format!("table {}: print only takes rows; read from a table of another connector", table.name))
}

#[async_trait]
impl Connector for PrintConnector {
    fn name(&self) -> &'static str {
        "print"
    }

    fn options(&self) -> Vec<OptionEntry> {
        OPTIONS.to_vec()
    }

    fn check(&self, table: &TableDefinition, role: Role) -> Result<()> {
        check_metadata(table, &[], true)?;
        refuse_layout(table)?;
        Options::of(table).map(drop)?;
        if role == Role::Source { Err(no_source(table)) } else { Ok(()) }
    }

    fn identity(&self, _table: &TableDefinition) -> Result<String> {
        Ok("print".into())
    }

    fn guarantee(&self, _table: &TableDefinition) -> Result<Guarantee> {
        Ok(guarantee())
    }

    fn is_operational(&self, option: &str) -> bool {
        ["print-identifier", "standard-error"].contains(&option)
    }

    fn takes_updates(&self, _table: &TableDefinition) -> bool {
        true
    }

    async fn source(
        &self,
        table: Arc<TableDefinition>,
        _environment: &Environment,
        _owner: Option<&Owner>,
    ) -> Result<Arc<dyn Source>> {
        Err(no_source(&table))
    }

    async fn sink(&self, table: Arc<TableDefinition>, _: &Environment, _: &Owner) -> Result<Arc<dyn Sink>> {
        let Options { identifier, to_error } = Options::of(&table)?;
        let writer = Arc::clone(if to_error { &self.error } else { &self.output });
        let prefix = identifier.map(|identifier| format!("{identifier}> ")).unwrap_or_default();
        Ok(Arc::new(Print { prefix, writer, staged: Waiting::default() }))
    }
}

fn guarantee() -> Guarantee {
    Guarantee {
        delivery: Delivery::AtLeastOnce,
        reason: "what was printed cannot be looked up, so an epoch without a commit is printed again".into(),
    }
}

struct Print {
    prefix: String,
    writer: Writer,
    staged: Waiting,
}

impl Debug for Print {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Print({:?})", self.prefix)
    }
}

#[async_trait]
impl Sink for Print {
    fn guarantee(&self) -> Guarantee {
        guarantee()
    }

    async fn open(&self, _run: u64) -> Result<()> {
        Ok(())
    }

    async fn stage(&self, epoch: u64, task: u32, _pin: &Pin, rows: SendableRecordBatchStream) -> Result<Staged> {
        self.staged.stage(epoch, task, rows).await
    }

    async fn publish(&self, epoch: u64, _pin: &Pin) -> Result<Published> {
        let tasks = self.staged.take(epoch);
        let (writer, prefix) = (Arc::clone(&self.writer), self.prefix.clone());
        let printing = tokio::task::spawn_blocking(move || print(&prefix, tasks, &writer));
        printing.await.map_err(|lost| Error::internal("printing broke off").caused_by(lost))?
    }

    async fn discard(&self, epoch: u64) {
        self.staged.take(epoch);
    }
}

/// Prints all that was staged, in the order of the tasks; the writer is kept until all of it is out.
fn print(prefix: &str, tasks: BTreeMap<u32, Spooled>, writer: &Mutex<Box<dyn Write + Send>>) -> Result<Published> {
    let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
    let mut published = Published::default();
    let mut text = String::new();
    for (_, mut spooled) in tasks {
        for batch in spooled.read()? {
            let batch = batch?;
            published.rows += batch.num_rows() as u64;
            append_lines(&mut text, prefix, &batch, |text| {
                published.bytes += text.len() as u64;
                writer.write_all(text.as_bytes()).map_err(unprinted)
            })?;
        }
    }
    writer.flush().map_err(unprinted)?;
    Ok(published)
}

/// Appends a line for each row, and empties the text into `full` when there is enough of it, and at the end.
fn append_lines(
    text: &mut String,
    prefix: &str,
    batch: &RecordBatch,
    mut full: impl FnMut(&str) -> Result<()>,
) -> Result<()> {
    let format = FormatOptions::new().with_null("null");
    let (kinds, shown) = match batch.columns().split_last() {
        Some((kinds, shown)) if is_updating(&batch.schema()) => (Some(kinds.as_primitive::<Int8Type>()), shown),
        _ => (None, batch.columns()),
    };
    let columns = shown.iter().map(|column| ArrayFormatter::try_new(column, &format));
    let columns = columns.collect::<std::result::Result<Vec<_>, _>>()?;
    for row in 0..batch.num_rows() {
        let kind = kinds.map_or(RowKind::Insert, |kinds| RowKind::of(kinds.value(row)));
        text.push_str(prefix);
        text.push_str(kind.symbol());
        text.push('[');
        for (index, column) in columns.iter().enumerate() {
            text.push_str(if index == 0 { "" } else { ", " });
            column.value(row).write(text)?;
        }
        text.push_str("]\n");
        if text.len() >= PIECE || row + 1 == batch.num_rows() {
            full(text)?;
            text.clear();
        }
    }
    Ok(())
}

/// A reader that has gone (`… | head`) does not come back; anything else may.
fn unprinted(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::BrokenPipe => {
            Error::refused("nobody reads the output any more; print to a file to keep all of it").caused_by(error)
        }
        _ => Error::transient("the output took no more lines").caused_by(error),
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Int64Array, StringViewArray, TimestampMillisecondArray};

    use super::*;
    use crate::connector::contract::{self, SinkCase, fixture};
    use crate::connector::entry::assert_described;
    use crate::sql::options::asked_for;

    /// A writer that can be looked into.
    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Page {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn rows() -> RecordBatch {
        RecordBatch::try_from_iter_with_nullable([
            ("id", Arc::new(Int64Array::from(vec![1, 2, 3, 4, 5, 6])) as _, true),
            ("item", Arc::new(StringViewArray::from(vec![Some("a, b"), None, Some("c"), None, None, None])) as _, true),
            ("ts", Arc::new(TimestampMillisecondArray::from(vec![Some(1), None, None, None, None, None])) as _, true),
        ])
        .unwrap()
    }

    #[tokio::test]
    async fn print_keeps_the_contract_of_a_sink() {
        let (page, rows) = (Page::default(), rows());
        let print = PrintConnector::writing_to(Box::new(page.clone()), Box::new(io::sink()));
        let table = fixture::table_of("t", &rows.schema(), &[("connector", "print")]);
        let make = async || print.sink(table.clone(), &fixture::environment(), &fixture::owner("a")).await.unwrap();
        let visible = async || {
            let text = page.text();
            let inner = |line: &str| line.strip_prefix("+I[").unwrap().strip_suffix(']').unwrap().to_string();
            Some(text.lines().map(inner).collect())
        };
        contract::sink(&SinkCase { rows, ordered: true, fences: false }, make, visible).await;
    }

    #[tokio::test]
    async fn a_line_looks_as_flinks_does() {
        let (output, error) = (Page::default(), Page::default());
        let print = PrintConnector::writing_to(Box::new(output.clone()), Box::new(error.clone()));
        let options = [("connector", "print"), ("print-identifier", "late"), ("standard-error", "true")];
        let table = fixture::table_of("t", &rows().schema(), &options);
        let sink = print.sink(table, &fixture::environment(), &fixture::owner("a")).await.unwrap();
        sink.stage(1, 0, &Pin::Null, fixture::stream(&rows().slice(0, 2))).await.unwrap();
        let published = sink.publish(1, &Pin::Null).await.unwrap();
        let expected = "late> +I[1, a, b, 1970-01-01T00:00:00.001]\nlate> +I[2, null, null]\n";
        assert_eq!((output.text().as_str(), error.text().as_str()), ("", expected));
        assert_eq!((published.rows, published.bytes), (2, expected.len() as u64));
    }

    #[test]
    fn all_options_are_described() {
        let table = fixture::table_of("t", &rows().schema(), &[("connector", "print")]);
        let asked = asked_for(|| PrintConnector::default().check(&table, Role::Sink).unwrap());
        assert_described(&PrintConnector::default().options(), &asked);
    }

    #[test]
    fn it_is_no_source_and_refuses_what_it_does_not_know() {
        let print = PrintConnector::default();
        let refused = |option, role| {
            let table = fixture::table_of("t", &rows().schema(), &[("connector", "print"), (option, "x")]);
            print.check(&table, role).unwrap_err().to_string()
        };
        let no_source = "table t: print only takes rows; read from a table of another connector";
        assert_eq!(refused("print-identifier", Role::Source), no_source);
        let unknown = "table t: there is no option 'print-identifer'; did you mean 'print-identifier'?";
        assert_eq!(refused("print-identifer", Role::Sink), unknown);
        assert_eq!(refused("print-identifer", Role::Source), unknown);
    }
}

//! Rows on standard output, in the format that was asked for.
//!
//! The idea: a [`Printer`] makes lines of batches, one at a time, so that a stream shows its rows as they arrive. Only
//! a table that ends is held until then, for the widths of its columns.
//!
//! Guaranteed: in a pipe nothing is cut or broken. On a terminal no table is wider than the screen: long cells are
//! broken into lines, and where even that is too wide, rows are shown as by `expanded`. Nothing in a cell controls the
//! terminal.
//!
//! Not promised: that columns of a stream stay as wide as they began.

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, ArrayRef, RecordBatch, StringArray};
use arrow::csv::WriterBuilder as CsvWriter;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use arrow_json::writer::{LineDelimited, WriterBuilder as JsonWriter};
use chrono::DateTime;
use console::{Term, measure_text_width};
use datafusion::execution::SendableRecordBatchStream;
use futures::StreamExt;
use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};

use super::pager;
use crate::error::{Error, Kind, Result};
use crate::session::Rows;

const TIMESTAMP: &str = "%Y-%m-%d %H:%M:%S%.f";

/// Cells of a table are not broken into lines shorter than this.
const LEAST_WIDTH: usize = 8;

/// A read that takes longer says how far it is.
const PATIENCE: Duration = Duration::from_millis(500);

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Format {
    /// Lines in columns.
    #[default]
    Table,
    /// A line for each column of each row.
    Expanded,
    /// With a header. NULL is empty.
    Csv,
    /// An object a line.
    Json,
    /// A table of Markdown.
    Markdown,
}

impl Format {
    /// The format of this name, one of [`OUTPUTS`](crate::session::OUTPUTS).
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "table" => Self::Table,
            "expanded" => Self::Expanded,
            "csv" => Self::Csv,
            "json" => Self::Json,
            "markdown" => Self::Markdown,
            _ => return None,
        })
    }
}

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Screen {
    pub rows: usize,
    pub columns: usize,
}

impl Screen {
    /// That of standard output; none, if it is no terminal.
    pub fn of_output() -> Option<Self> {
        let (rows, columns) = Term::stdout().size_checked()?;
        Some(Self { rows: rows.into(), columns: columns.into() })
    }
}

/// For whom rows are written. The default is a table for a pipe.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct View {
    pub format: Format,
    /// The screen that they are read on.
    pub screen: Option<Screen>,
    /// Whether what is taller than the screen goes through a pager.
    pub pages: bool,
}

/// Prints a text; a reader that has gone is an error, not a panic.
pub(super) fn say(text: &str) -> Result<()> {
    writeln!(std::io::stdout().lock(), "{text}").map_err(unprinted)
}

/// Tells a line on standard error. Whoever closed it wants to know nothing, and what runs goes on.
pub(super) fn tell(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// A time in ms since 1970, in UTC; none, if it is beyond all that can be written.
pub(super) fn time(ms: i64) -> Option<String> {
    Some(DateTime::from_timestamp_millis(ms)?.format("%Y-%m-%d %H:%M:%S%.3f").to_string())
}

/// A reader that has gone (`… | head`) does not come back.
fn unprinted(error: io::Error) -> Error {
    match error.kind() {
        ErrorKind::BrokenPipe => Error::refused("nobody reads the output any more").caused_by(error),
        _ => error.into(),
    }
}

/// Whether an error says no more than that nobody reads the output any more.
pub(super) fn is_unread(error: &Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<io::Error>());
    error.kind() == Kind::Refused && cause.is_some_and(|cause| cause.kind() == ErrorKind::BrokenPipe)
}

/// Prints a text, through the pager where it is taller than the screen.
pub(super) fn show(text: &str, view: &View) -> Result<()> {
    match view.screen {
        Some(screen) if view.pages && text.lines().count() >= screen.rows => pager::page(text),
        _ => say(text),
    }
}

/// Lines of cells, each column as wide as its widest cell.
pub(super) fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let mut layout = Layout::new(vec![false; count], usize::MAX);
    layout.grow(rows);
    rows.iter().map(|row| layout.row(row)).collect::<Vec<_>>().join("\n")
}

/// Prints all rows.
pub(super) async fn print(mut rows: Rows, view: View) -> Result<()> {
    let mut printer = Printer::new(rows.schema, view);
    if !rows.is_unbounded && matches!(view.format, Format::Table | Format::Expanded) {
        let batches = collect(rows.stream).await?;
        let text = printer.whole(&batches)?;
        // That took a while: a Ctrl-C of meanwhile comes first.
        tokio::task::yield_now().await;
        return show(text.trim_end_matches('\n'), &view);
    }
    while let Some(batch) = rows.stream.next().await {
        write(&printer.batch(&batch?)?)?;
    }
    write(&printer.finish()?)
}

fn write(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(unprinted)
}

/// All batches; on a terminal a line says how far it is, if that takes long.
async fn collect(mut stream: SendableRecordBatchStream) -> Result<Vec<RecordBatch>> {
    let is_watched = std::io::stderr().is_terminal();
    let (mut batches, mut count) = (vec![], 0);
    let mut bar: Option<ProgressBar> = None;
    let mut delay = pin!(tokio::time::sleep(PATIENCE));
    loop {
        tokio::select! {
            batch = stream.next() => {
                let Some(batch) = batch else { return Ok(batches) };
                let batch = batch?;
                count += batch.num_rows() as u64;
                bar.iter().for_each(|bar| bar.set_position(count));
                batches.push(batch);
            }
            () = &mut delay, if is_watched && bar.is_none() => bar = Some(progress(count)),
        }
    }
}

/// A line that goes when it is dropped.
fn progress(count: u64) -> ProgressBar {
    let bar = ProgressBar::new_spinner().with_finish(ProgressFinish::AndClear).with_elapsed(PATIENCE);
    if let Ok(style) = ProgressStyle::with_template("{spinner} {human_pos} rows so far, {elapsed}") {
        bar.set_style(style);
    }
    bar.set_position(count);
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

/// Makes lines of batches; each text that it gives ends in a line break, or is empty.
struct Printer {
    schema: SchemaRef,
    view: View,
    rows: usize,
    layout: Option<Layout>,
    has_begun: bool,
}

impl Printer {
    fn new(schema: SchemaRef, view: View) -> Self {
        Self { schema, view, rows: 0, layout: None, has_begun: false }
    }

    /// A result from its beginning to its end.
    fn whole(&mut self, batches: &[RecordBatch]) -> Result<String> {
        let mut all = vec![];
        for batch in batches {
            all.extend(cells(batch)?);
        }
        self.rows += all.len();
        let mut text = if all.is_empty() { String::new() } else { self.aligned(&all) };
        text.push_str(&self.finish()?);
        Ok(text)
    }

    fn batch(&mut self, batch: &RecordBatch) -> Result<String> {
        if batch.num_rows() == 0 {
            return Ok(String::new());
        }
        self.rows += batch.num_rows();
        let text = match self.view.format {
            Format::Table | Format::Expanded => self.aligned(&cells(batch)?),
            Format::Csv => self.csv(batch)?,
            Format::Json => json(batch)?,
            Format::Markdown => self.markdown(&cells(batch)?)?,
        };
        // Programs get CSV and JSON as they are.
        Ok(if self.view.screen.is_some() { visible(text) } else { text })
    }

    /// What comes behind all rows; of a result without rows also what comes before.
    fn finish(&mut self) -> Result<String> {
        let is_empty = self.rows == 0;
        let rows = format!("{} row{}\n", self.rows, if self.rows == 1 { "" } else { "s" });
        Ok(match self.view.format {
            Format::Table | Format::Expanded => {
                let header = if is_empty { self.aligned(&[]) } else { String::new() };
                let rule = self.layout.as_ref().map(|layout| layout.rule() + "\n").unwrap_or_default();
                header + &rule + &rows
            }
            Format::Csv if is_empty => self.csv(&RecordBatch::new_empty(self.schema.clone()))?,
            Format::Markdown if is_empty => self.markdown(&[])?,
            _ => String::new(),
        })
    }

    /// Rows as a table, or expanded where that is asked for or the screen is too narrow.
    fn aligned(&mut self, cells: &[Vec<String>]) -> String {
        if !self.has_begun {
            self.has_begun = true;
            self.layout = self.first_layout(cells);
        }
        let names = names(&self.schema);
        let Some(layout) = &mut self.layout else {
            let before = self.rows - cells.len();
            return expanded(&names, cells, before);
        };
        let mut lines = vec![];
        if layout.widths.is_empty() {
            layout.grow(std::slice::from_ref(&names));
            layout.grow(cells);
            lines.extend([layout.rule(), layout.row(&names), layout.rule()]);
        } else {
            layout.grow(cells);
        }
        lines.extend(cells.iter().map(|row| layout.row(row)));
        lines.join("\n") + "\n"
    }

    fn first_layout(&self, cells: &[Vec<String>]) -> Option<Layout> {
        if self.view.format == Format::Expanded {
            return None;
        }
        let is_right: Vec<bool> = self.schema.fields().iter().map(|field| field.data_type().is_numeric()).collect();
        let mut natural = Layout::new(is_right.clone(), usize::MAX);
        natural.grow(&[names(&self.schema)]);
        natural.grow(cells);
        let limit = match self.view.screen {
            Some(screen) => natural.limit(screen.columns)?,
            None => usize::MAX,
        };
        Some(Layout::new(is_right, limit))
    }

    fn csv(&mut self, batch: &RecordBatch) -> Result<String> {
        let has_header = !std::mem::replace(&mut self.has_begun, true);
        let mut bytes = vec![];
        let writer = CsvWriter::new().with_header(has_header).with_timestamp_format(TIMESTAMP.into());
        writer.build(&mut bytes).write(&flat(batch)?)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn markdown(&mut self, cells: &[Vec<String>]) -> Result<String> {
        let line = |row: &[String]| {
            let escaped = row.iter().map(|cell| cell.replace('|', "\\|").replace('\n', "<br>"));
            format!("| {} |\n", escaped.collect::<Vec<_>>().join(" | "))
        };
        let mut text = String::new();
        if !std::mem::replace(&mut self.has_begun, true) {
            let rule = |field: &Arc<Field>| if field.data_type().is_numeric() { "---:" } else { "---" };
            let rules: Vec<&str> = self.schema.fields().iter().map(rule).collect();
            text = format!("{}| {} |\n", line(&names(&self.schema)), rules.join(" | "));
        }
        cells.iter().for_each(|row| text.push_str(&line(row)));
        Ok(text)
    }
}

fn json(batch: &RecordBatch) -> Result<String> {
    let mut bytes = vec![];
    let writer = JsonWriter::new().with_explicit_nulls(true).with_timestamp_format(TIMESTAMP.into());
    writer.build::<_, LineDelimited>(&mut bytes).write(batch)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The batch with its nested columns as texts: CSV has no place for them.
fn flat(batch: &RecordBatch) -> Result<RecordBatch> {
    let (mut fields, mut arrays): (Vec<Field>, Vec<ArrayRef>) = (vec![], vec![]);
    let options = FormatOptions::new().with_null("NULL").with_timestamp_format(Some(TIMESTAMP));
    for (field, array) in batch.schema().fields().iter().zip(batch.columns()) {
        if !field.data_type().is_nested() {
            fields.push(field.as_ref().clone());
            arrays.push(array.clone());
            continue;
        }
        let formatter = ArrayFormatter::try_new(array.as_ref(), &options)?;
        let text = |row| array.is_valid(row).then(|| formatter.value(row).to_string());
        fields.push(Field::new(field.name(), DataType::Utf8, true));
        arrays.push(Arc::new((0..batch.num_rows()).map(text).collect::<StringArray>()));
    }
    if fields.is_empty() {
        return Ok(batch.clone());
    }
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)?)
}

fn names(schema: &SchemaRef) -> Vec<String> {
    schema.fields().iter().map(|field| visible(field.name().clone())).collect()
}

/// The cells of each row, as text.
pub(super) fn cells(batch: &RecordBatch) -> Result<Vec<Vec<String>>> {
    let options = FormatOptions::new().with_null("NULL").with_timestamp_format(Some(TIMESTAMP));
    let columns = batch.columns().iter().map(|column| Ok(ArrayFormatter::try_new(column.as_ref(), &options)?));
    let columns: Vec<ArrayFormatter<'_>> = columns.collect::<Result<_>>()?;
    let row = |index| columns.iter().map(|column| visible(column.value(index).to_string())).collect();
    Ok((0..batch.num_rows()).map(row).collect())
}

/// The text with all that would control a terminal written out, but for line breaks.
fn visible(text: String) -> String {
    let controls = |c: char| c.is_control() && c != '\n';
    if !text.contains(controls) {
        return text;
    }
    let written = |c: char| if controls(c) { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(written).collect()
}

/// A line for each column of each row, under the number of the row.
fn expanded(names: &[String], rows: &[Vec<String>], before: usize) -> String {
    let width = names.iter().map(|name| measure_text_width(name)).max().unwrap_or(0);
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        let title = format!("-[ RECORD {} ]", before + index + 1);
        text.push_str(&format!("{title:-<0$}\n", (width + 3).max(20)));
        for (name, cell) in names.iter().zip(row) {
            let mut name = name.as_str();
            for line in cell.split('\n') {
                text.push_str(&format!("{} | {line}\n", padded(name, width, false)));
                name = "";
            }
        }
    }
    text
}

/// The columns of a table.
struct Layout {
    widths: Vec<usize>,
    is_right: Vec<bool>,
    /// How wide a column may be, before its cells are broken into lines.
    limit: usize,
}

impl Layout {
    fn new(is_right: Vec<bool>, limit: usize) -> Self {
        Self { widths: vec![], is_right, limit }
    }

    /// Makes columns as wide as these cells need.
    fn grow(&mut self, rows: &[Vec<String>]) {
        self.widths.resize(self.is_right.len(), 0);
        for (index, width) in self.widths.iter_mut().enumerate() {
            let lines = rows.iter().filter_map(|row| row.get(index)).flat_map(|cell| cell.split('\n'));
            let widest = lines.map(measure_text_width).max().unwrap_or(0);
            *width = widest.min(self.limit).max(*width);
        }
    }

    /// The limit under which the table is no wider than the screen; none, if no limit is of use.
    fn limit(&self, screen: usize) -> Option<usize> {
        let total = |limit| self.widths.iter().map(|width| *width.min(&limit) + 3).sum::<usize>() + 1;
        if total(usize::MAX) <= screen {
            return Some(screen);
        }
        (LEAST_WIDTH..screen).rev().find(|limit| total(*limit) <= screen)
    }

    fn rule(&self) -> String {
        let dashes: Vec<String> = self.widths.iter().map(|width| "-".repeat(width + 2)).collect();
        format!("+{}+", dashes.join("+"))
    }

    /// A row, as many lines as its tallest cell.
    fn row(&self, cells: &[String]) -> String {
        let pieces: Vec<Vec<&str>> = cells.iter().map(|cell| broken(cell, self.limit)).collect();
        let height = pieces.iter().map(Vec::len).max().unwrap_or(1);
        let line = |index: usize| {
            let columns = pieces.iter().zip(&self.widths).zip(&self.is_right);
            let parts = columns.map(|((piece, width), right)| padded(piece.get(index).unwrap_or(&""), *width, *right));
            format!("| {} |", parts.collect::<Vec<_>>().join(" | "))
        };
        (0..height).map(line).collect::<Vec<_>>().join("\n")
    }
}

/// The lines of a cell, none of them wider than the limit, broken between words where that is possible.
fn broken(cell: &str, limit: usize) -> Vec<&str> {
    let mut lines = vec![];
    for mut line in cell.split('\n') {
        while let Some(end) = overflow(line, limit) {
            let (fits, rest) = line.split_at(end);
            let space = fits.rfind(' ').filter(|space| !fits[..*space].trim().is_empty());
            // The space where a line is broken is not shown.
            let (shown, next) = match (rest.strip_prefix(' '), space) {
                (Some(rest), _) => (fits, rest),
                (None, Some(space)) => (&line[..space], &line[space + 1..]),
                (None, None) => (fits, rest),
            };
            lines.push(shown);
            line = next;
        }
        lines.push(line);
    }
    lines
}

/// Where a line gets wider than the limit, behind its first letter at least.
fn overflow(line: &str, limit: usize) -> Option<usize> {
    if line.len() <= limit {
        return None;
    }
    let mut width = 0;
    let too_wide = line.char_indices().find(|(at, c)| {
        width += measure_text_width(c.encode_utf8(&mut [0; 4]));
        width > limit && *at > 0
    });
    too_wide.map(|(at, _)| at)
}

fn padded(text: &str, width: usize, is_right: bool) -> String {
    let spaces = " ".repeat(width.saturating_sub(measure_text_width(text)));
    if is_right { spaces + text } else { text.to_owned() + &spaces }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Int64Array, ListArray};
    use arrow::datatypes::Int32Type;

    use super::*;
    use crate::session::OUTPUTS;

    fn batch(numbers: &[Option<i64>], texts: &[Option<&str>]) -> RecordBatch {
        let numbers: ArrayRef = Arc::new(Int64Array::from(numbers.to_vec()));
        let texts: ArrayRef = Arc::new(StringArray::from(texts.to_vec()));
        RecordBatch::try_from_iter_with_nullable([("n", numbers, true), ("item", texts, true)]).unwrap()
    }

    fn two_rows() -> RecordBatch {
        batch(&[Some(7), Some(-1200)], &[Some("tea | \"x\""), None])
    }

    fn on(columns: usize) -> Option<Screen> {
        Some(Screen { rows: 24, columns })
    }

    /// Both ways: at once where a result ends, batch by batch where it does not.
    fn whole_and_streamed(format: Format, screen: Option<Screen>, batches: &[RecordBatch]) -> (String, String) {
        let view = View { format, screen, pages: false };
        let printer = || Printer::new(batches[0].schema(), view);
        let mut streaming = printer();
        let mut streamed: String = batches.iter().map(|batch| streaming.batch(batch).unwrap()).collect();
        streamed.push_str(&streaming.finish().unwrap());
        (printer().whole(batches).unwrap(), streamed)
    }

    fn check(format: Format, screen: Option<Screen>, batches: &[RecordBatch], expected: &[&str]) {
        let expected = expected.join("\n") + "\n";
        let (whole, streamed) = whole_and_streamed(format, screen, batches);
        if matches!(format, Format::Table | Format::Expanded) {
            assert_eq!(whole, expected);
        }
        assert_eq!(streamed, expected);
    }

    #[test]
    fn every_output_has_a_format() {
        OUTPUTS.iter().for_each(|name| assert!(Format::named(name).is_some(), "{name}"));
        assert_eq!(Format::named("html"), None);
    }

    #[test]
    fn tables_have_numbers_to_the_right() {
        let expected = [
            "+-------+-----------+",
            "|     n | item      |",
            "+-------+-----------+",
            "|     7 | tea | \"x\" |",
            "| -1200 | NULL      |",
            "+-------+-----------+",
            "2 rows",
        ];
        check(Format::Table, None, &[two_rows()], &expected);
        check(Format::Table, on(80), &[two_rows()], &expected);
        let empty = ["+---+------+", "| n | item |", "+---+------+", "+---+------+", "0 rows"];
        check(Format::Table, None, &[batch(&[], &[])], &empty);
    }

    #[test]
    fn a_streams_columns_grow() {
        let batches = [batch(&[Some(1)], &[Some("é")]), batch(&[Some(100)], &[Some("日本")])];
        let (_, streamed) = whole_and_streamed(Format::Table, None, &batches);
        let expected = [
            "+---+------+",
            "| n | item |",
            "+---+------+",
            "| 1 | é    |",
            "| 100 | 日本 |",
            "+-----+------+",
            "2 rows",
        ];
        assert_eq!(streamed, expected.join("\n") + "\n");
    }

    #[test]
    fn a_terminal_breaks_long_cells_and_a_pipe_does_not() {
        let batches = [batch(&[Some(1)], &[Some("abcdefghijklm\nno")])];
        let broken = [
            "+---+----------+",
            "| n | item     |",
            "+---+----------+",
            "| 1 | abcdefgh |",
            "|   | ijklm    |",
            "|   | no       |",
            "+---+----------+",
            "1 row",
        ];
        check(Format::Table, on(16), &batches, &broken);
        let expanded = ["-[ RECORD 1 ]-------", "n    | 1", "item | abcdefghijklm", "     | no", "1 row"];
        check(Format::Table, on(15), &batches, &expanded);
        check(Format::Expanded, None, &batches, &expanded);
        let (piped, _) = whole_and_streamed(Format::Table, None, &batches);
        assert!(piped.contains("| 1 | abcdefghijklm |\n|   | no            |\n"), "{piped}");
    }

    #[test]
    fn nothing_in_a_cell_controls_the_terminal() {
        let (shown, _) = whole_and_streamed(Format::Table, None, &[batch(&[None], &[Some("\u{1b}[2J\tx")])]);
        assert!(shown.contains("| NULL | \\u{1b}[2J\\tx |"), "{shown}");
        let bell = [batch(&[Some(1)], &[Some("\u{7}")])];
        assert_eq!(whole_and_streamed(Format::Csv, on(80), &bell).1, "n,item\n1,\\u{7}\n");
        assert_eq!(whole_and_streamed(Format::Csv, None, &bell).1, "n,item\n1,\u{7}\n");
    }

    #[test]
    fn cells_are_broken_between_words() {
        assert_eq!(broken("a cell of words", 8), ["a cell", "of words"]);
        assert_eq!(broken("a cell, of letters", 9), ["a cell,", "of", "letters"]);
        assert_eq!(broken("unbreakable x", 8), ["unbreaka", "ble x"]);
        assert_eq!(broken("  indented", 8), ["  indent", "ed"]);
        assert_eq!(broken("日本語日本語", 8), ["日本語日", "本語"]);
        assert_eq!(broken("a\n\nb", 8), ["a", "", "b"]);
    }

    #[test]
    fn a_reader_that_has_gone_is_no_other_error() {
        assert!(is_unread(&unprinted(ErrorKind::BrokenPipe.into())));
        assert!(!is_unread(&unprinted(ErrorKind::StorageFull.into())));
        assert!(!is_unread(&Error::from(io::Error::from(ErrorKind::BrokenPipe))), "it may be another pipe");
    }

    #[test]
    fn csv_json_and_markdown_are_for_other_programs() {
        let batches = [two_rows(), batch(&[None], &[Some("a\nb")])];
        check(Format::Csv, on(20), &batches, &["n,item", "7,\"tea | \"\"x\"\"\"", "-1200,", ",\"a\nb\""]);
        check(Format::Csv, None, &[batch(&[], &[])], &["n,item"]);
        let objects = [r#"{"n":7,"item":"tea | \"x\""}"#, r#"{"n":-1200,"item":null}"#, r#"{"n":null,"item":"a\nb"}"#];
        check(Format::Json, None, &batches, &objects);
        assert_eq!(whole_and_streamed(Format::Json, None, &[batch(&[], &[])]).1, "");
        let lines =
            ["| n | item |", "| ---: | --- |", "| 7 | tea \\| \"x\" |", "| -1200 | NULL |", "| NULL | a<br>b |"];
        check(Format::Markdown, on(20), &batches, &lines);
    }

    #[test]
    fn nested_values_are_texts_in_csv() {
        let lists = ListArray::from_iter_primitive::<Int32Type, _, _>([Some(vec![Some(1), None]), None]);
        let batch = RecordBatch::try_from_iter_with_nullable([("l", Arc::new(lists) as ArrayRef, true)]).unwrap();
        let (_, streamed) = whole_and_streamed(Format::Csv, None, &[batch]);
        assert_eq!(streamed, "l\n\"[1, NULL]\"\n\"\"\n");
    }

    #[test]
    fn columns_of_texts_are_as_wide_as_their_widest_cell() {
        let rows = [vec!["a".to_owned(), "bb".to_owned()], vec!["ccc".to_owned()]];
        assert_eq!(columns(&rows), "| a   | bb |\n| ccc |");
    }
}

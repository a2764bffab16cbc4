//! Rows on standard output, as a table: whole where they end, as they arrive where they do not.

use std::io::Write;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use arrow::util::pretty::pretty_format_batches_with_options;
use futures::{StreamExt, TryStreamExt};

use crate::error::Result;
use crate::session::Rows;

fn options<'a>() -> FormatOptions<'a> {
    FormatOptions::new().with_null("NULL").with_timestamp_format(Some("%Y-%m-%d %H:%M:%S%.f"))
}

/// Prints a text; a reader that has gone is an error, not a panic.
pub(super) fn say(text: &str) -> Result<()> {
    Ok(writeln!(std::io::stdout().lock(), "{text}")?)
}

/// Lines of cells, each column as wide as its widest cell.
pub(super) fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let length = |row: &Vec<String>, column: usize| row.get(column).map_or(0, |cell| cell.chars().count());
    let widths: Vec<usize> =
        (0..count).map(|column| rows.iter().map(|row| length(row, column)).max().unwrap_or(0)).collect();
    rows.iter().map(|row| line(row, &widths)).collect::<Vec<_>>().join("\n")
}

/// Prints all rows, bounded ones as one table.
pub(super) async fn print(rows: Rows) -> Result<()> {
    if rows.is_unbounded {
        return print_as_they_arrive(rows).await;
    }
    let batches: Vec<RecordBatch> = rows.stream.try_collect().await?;
    let count: usize = batches.iter().map(RecordBatch::num_rows).sum();
    let batches = if batches.is_empty() { vec![RecordBatch::new_empty(rows.schema)] } else { batches };
    let table = pretty_format_batches_with_options(&batches, &options())?;
    writeln!(std::io::stdout().lock(), "{table}\n{count} row{}", if count == 1 { "" } else { "s" })?;
    Ok(())
}

/// Prints rows as they come; the first batch decides the columns' widths.
async fn print_as_they_arrive(mut rows: Rows) -> Result<()> {
    let mut widths: Option<Vec<usize>> = None;
    while let Some(batch) = rows.stream.next().await {
        let cells = cells(&batch?)?;
        if cells.is_empty() {
            continue;
        }
        let is_first = widths.is_none();
        let widths = widths.get_or_insert_with(|| widest(&rows.schema, &cells));
        let mut out = std::io::stdout().lock();
        if is_first {
            let names: Vec<String> = rows.schema.fields().iter().map(|field| field.name().clone()).collect();
            writeln!(out, "{}", line(&names, widths))?;
        }
        for row in &cells {
            writeln!(out, "{}", line(row, widths))?;
        }
        out.flush()?;
    }
    Ok(())
}

/// The cells of each row, as text.
pub(super) fn cells(batch: &RecordBatch) -> Result<Vec<Vec<String>>> {
    let options = options();
    let columns = batch.columns().iter().map(|column| Ok(ArrayFormatter::try_new(column.as_ref(), &options)?));
    let columns: Vec<ArrayFormatter<'_>> = columns.collect::<Result<_>>()?;
    let row = |index| columns.iter().map(|column| column.value(index).to_string()).collect();
    Ok((0..batch.num_rows()).map(row).collect())
}

fn widest(schema: &SchemaRef, cells: &[Vec<String>]) -> Vec<usize> {
    let length = |text: &String| text.chars().count();
    let names = schema.fields().iter().map(|field| length(field.name()));
    names.enumerate().map(|(i, name)| cells.iter().map(|row| length(&row[i])).max().unwrap_or(0).max(name)).collect()
}

fn line(cells: &[String], widths: &[usize]) -> String {
    let padded: Vec<String> = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
    format!("| {} |", padded.join(" | "))
}

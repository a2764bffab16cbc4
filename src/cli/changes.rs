//! A result that changes: a table that refreshes in place, or the changes themselves, a row each.
//!
//! The idea: changes are folded into the rows that are there, in the order of what tells them apart. On a terminal as
//! many of them as fit are drawn anew, a few times a second; a result that ends is printed whole.
//!
//! Not promised: that every change is seen. Who wants each of them says 'shell.result-mode' = 'changelog', reads a
//! pipe, or has results shown otherwise than as tables. A terminal that cannot take lines back (`TERM=dumb`) shows each
//! as well.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::iter::repeat_n;
use std::time::Duration;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::Schema;
use arrow::row::{OwnedRow, RowConverter, SortField};
use console::{Term, truncate_str};
use futures::StreamExt;
use tokio::time::MissedTickBehavior;

use super::output::{self, Format, View};
use crate::error::Result;
use crate::plan::changes::parted;
use crate::session::{Changes, Rows, listing};

/// How far apart a table is drawn anew at least.
const REDRAW: Duration = Duration::from_millis(200);
/// Lines of the screen that no row gets: the names of the columns, how many rows do not fit, and the cursor's.
const OTHER_LINES: usize = 3;

/// Shows changes as `mode` says, until they end.
pub(super) async fn print(changes: Changes, mode: Option<&str>, view: View) -> Result<()> {
    match mode != Some("changelog") && view.format == Format::Table && can_redraw() {
        true => refresh(changes, view).await,
        false => output::print(changes.into_rows(), view).await,
    }
}

/// Whether what was printed can be taken back.
fn can_redraw() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

async fn refresh(mut changes: Changes, view: View) -> Result<()> {
    let mut folded = Folded::try_new(&changes.schema, &changes.keys)?;
    let mut screen = Screen { term: Term::buffered_stdout(), drawn: None };
    let mut ticks = tokio::time::interval(REDRAW);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_stale = true;
    loop {
        tokio::select! {
            batch = changes.stream.next() => match batch {
                Some(batch) => {
                    folded.apply(&batch?)?;
                    is_stale = true;
                }
                None => break,
            },
            _ = ticks.tick(), if is_stale => {
                screen.draw(&folded)?;
                is_stale = false;
            }
        }
    }
    screen.clear()?;
    screen.term.flush()?;
    output::print(folded.into_rows()?, view).await
}

/// The rows that are there, by what tells them apart.
struct Folded {
    names: Vec<String>,
    /// Whether there is at most one row of a key; else all columns are the key.
    is_keyed: bool,
    keys: Vec<usize>,
    converter: RowConverter,
    /// The cells of a row, and how often it is there.
    rows: BTreeMap<OwnedRow, (Vec<String>, usize)>,
}

impl Folded {
    /// No rows yet, of a schema whose last column is their kind.
    fn try_new(schema: &Schema, keys: &[usize]) -> Result<Self> {
        let shown = schema.fields().len().saturating_sub(1);
        let names = schema.fields().iter().take(shown).map(|field| field.name().clone()).collect();
        let is_keyed = !keys.is_empty();
        let keys = if is_keyed { keys.to_vec() } else { (0..shown).collect() };
        let fields = keys.iter().map(|key| SortField::new(schema.field(*key).data_type().clone())).collect();
        Ok(Self { names, is_keyed, keys, converter: RowConverter::new(fields)?, rows: BTreeMap::new() })
    }

    fn apply(&mut self, batch: &RecordBatch) -> Result<()> {
        let (kinds, rows) = parted(batch)?;
        let keys: Vec<ArrayRef> = self.keys.iter().map(|key| rows.column(*key).clone()).collect();
        let keys = self.converter.convert_columns(&keys)?;
        for ((kind, key), cells) in kinds.into_iter().zip(&keys).zip(output::cells(&rows)?) {
            let key = key.owned();
            let count = self.rows.get(&key).map_or(0, |(_, count)| *count);
            let left = match (kind.is_there(), self.is_keyed) {
                (true, true) => 1,
                (true, false) => count + 1,
                (false, _) => count.saturating_sub(1),
            };
            match left {
                0 => self.rows.remove(&key),
                left => self.rows.insert(key, (cells, left)),
            };
        }
        Ok(())
    }

    fn len(&self) -> usize {
        self.rows.values().map(|(_, count)| count).sum()
    }

    fn cells(&self) -> impl Iterator<Item = &Vec<String>> {
        self.rows.values().flat_map(|(cells, count)| repeat_n(cells, *count))
    }

    /// The names of the columns and the first rows, a line each, and how many rows do not fit.
    fn lines(&self, fitting: usize) -> Vec<String> {
        let plain = |cell: &String| cell.replace(char::is_control, " ");
        let rows = self.cells().take(fitting).map(|cells| cells.iter().map(plain).collect());
        let rows: Vec<Vec<String>> = std::iter::once(self.names.clone()).chain(rows).collect();
        let more = self.len().saturating_sub(fitting);
        let more = (more > 0).then(|| format!("… {more} more row{}", if more == 1 { "" } else { "s" }));
        output::columns(&rows).lines().map(str::to_owned).chain(more).collect()
    }

    fn into_rows(self) -> Result<Rows> {
        let names: Vec<&str> = self.names.iter().map(String::as_str).collect();
        listing(&names, self.cells().map(|cells| cells.iter().cloned().map(Some).collect()).collect())
    }
}

/// The part of a terminal that is drawn anew.
struct Screen {
    term: Term,
    /// How many lines were drawn, on a screen of this size.
    drawn: Option<(usize, (u16, u16))>,
}

impl Screen {
    fn draw(&mut self, folded: &Folded) -> Result<()> {
        self.clear()?;
        let size @ (height, width) = self.term.size();
        let lines = folded.lines(usize::from(height).saturating_sub(OTHER_LINES).max(1));
        for line in &lines {
            self.term.write_line(&truncate_str(line, usize::from(width), "…"))?;
        }
        self.drawn = Some((lines.len(), size));
        Ok(self.term.flush()?)
    }

    /// Takes back what was drawn; on a screen of another size nobody knows where that is now.
    fn clear(&mut self) -> Result<()> {
        match self.drawn.take() {
            Some((lines, size)) if size == self.term.size() => self.term.clear_last_lines(lines)?,
            Some(_) => self.term.clear_screen()?,
            None => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int8Array, Int64Array, StringArray};
    use arrow::datatypes::{DataType, Field, SchemaRef};

    use super::*;
    use crate::plan::changes::RowKind::{self, Delete, Insert, UpdateAfter, UpdateBefore};
    use crate::plan::changes::kind_field;

    fn schema() -> SchemaRef {
        let fields = [Field::new("item", DataType::Utf8, true), Field::new("n", DataType::Int64, true)];
        Arc::new(Schema::new(fields.map(Arc::new).into_iter().chain([kind_field()]).collect::<Vec<_>>()))
    }

    fn folded(keys: &[usize], changes: &[(RowKind, Option<&str>, i64)]) -> Folded {
        let mut folded = Folded::try_new(&schema(), keys).unwrap();
        // A batch each, as rows come in epochs.
        for (kind, item, n) in changes {
            let columns: Vec<ArrayRef> = vec![
                Arc::new(StringArray::from(vec![*item])),
                Arc::new(Int64Array::from(vec![*n])),
                Arc::new(Int8Array::from(vec![*kind as i8])),
            ];
            folded.apply(&RecordBatch::try_new(schema(), columns).unwrap()).unwrap();
        }
        folded
    }

    const CHANGES: &[(RowKind, Option<&str>, i64)] = &[
        (Insert, Some("pear"), 1),
        (Insert, Some("apple"), 1),
        (Insert, None, 7),
        (UpdateBefore, Some("pear"), 1),
        (UpdateAfter, Some("pear"), 3),
        (Delete, None, 7),
    ];

    #[test]
    fn a_row_takes_the_place_of_the_one_it_was() {
        for keys in [&[0][..], &[]] {
            assert_eq!(folded(keys, CHANGES).lines(9), ["| item  | n |", "| apple | 1 |", "| pear  | 3 |"], "{keys:?}");
        }
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        assert_eq!(folded(&[0], CHANGES).lines(1), ["| item  | n |", "| apple | 1 |", "… 1 more row"]);
        assert_eq!(folded(&[0], &[]).lines(1), ["| item | n |"]);
    }

    #[test]
    fn rows_that_nothing_tells_apart_are_there_as_often_as_they_came() {
        let twice = [(Insert, Some("a\nb"), 1), (UpdateAfter, Some("a\nb"), 1)];
        assert_eq!(folded(&[], &twice).lines(9)[1..], ["| a b  | 1 |", "| a b  | 1 |"]);
        let once = [twice.as_slice(), &[(UpdateBefore, Some("a\nb"), 1)]].concat();
        assert_eq!(folded(&[], &once).len(), 1);
        assert_eq!(folded(&[0], &twice).len(), 1, "of a key there is one row");
    }

    #[test]
    fn a_row_that_never_came_cannot_be_taken_back() {
        assert_eq!(folded(&[0], &[(Delete, Some("fig"), 1)]).len(), 0);
    }
}

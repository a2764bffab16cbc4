//! What [`Source`](super::Source) and [`Sink`](super::Sink) promise, as code that every connector's tests call.
//!
//! `source` reads a stream whose rows are known in every way an engine may: whole, in cuts of all sizes, backwards,
//! again, side by side, a few columns only, and asks it where it ends and which messages it knows. `sink` plays the life
//! of a query with reruns, failures, crashes and rows that are lost against an empty destination, and looks after each
//! step at what a reader sees.
//!
//! The suites **panic** where a promise is broken, and say which; they are no use outside tests. They do not promise to
//! find what only load, real crashes or a broker's failure bring out.
//!
//! ```no_run
//! # use millstream::connector::{Source, contract::{self, SourceCase, fixture}};
//! # use std::sync::Arc;
//! # async fn example(case: SourceCase, open_it: impl AsyncFn() -> Arc<dyn Source>) {
//! contract::source(&case, open_it).await;
//! # }
//! ```

use std::fmt::{Debug, Display};

use arrow::array::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};

pub use sink::{SinkCase, sink};
pub use source::{SourceCase, source};

pub mod fixture;

mod sink;
mod source;

#[cfg(test)]
mod tests;

/// Each row as text, its values joined by `, `, and `null` for NULL: how rows are compared with what a reader sees.
pub fn lines(rows: &RecordBatch) -> Vec<String> {
    let format = FormatOptions::new().with_null("null");
    let columns = rows.columns().iter().map(|column| must("formatting", ArrayFormatter::try_new(column, &format)));
    let columns: Vec<_> = columns.collect();
    let line = |row| columns.iter().map(|column| column.value(row).to_string()).collect::<Vec<_>>().join(", ");
    (0..rows.num_rows()).map(line).collect()
}

/// The value, or a panic that says what failed.
fn must<T, E: Display>(what: impl Display, result: Result<T, E>) -> T {
    result.unwrap_or_else(|error| panic!("{what} failed: {error}"))
}

/// Panics with the first place where two lists differ.
fn assert_same<T: PartialEq + Debug>(what: impl Display, found: &[T], expected: &[T]) {
    let differs = found.iter().zip(expected).position(|(found, expected)| found != expected);
    if let Some(at) = differs {
        panic!("{what}: row {at} is {:?}, but should be {:?}", found[at], expected[at]);
    }
    assert!(found.len() == expected.len(), "{what}: {} rows, but there should be {}", found.len(), expected.len());
}

//! What a sink promises: see [`sink`].

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;

use super::fixture::stream_of;
use super::{assert_same, lines, must};
use crate::connector::{Delivery, Pin, Progress, Published, Sink};
use crate::error::{Error, Kind, Result};

/// What is written, and what may be expected of the destination.
#[derive(Debug)]
pub struct SinkCase {
    /// Six or more rows of the table's writable schema, no two alike.
    pub rows: RecordBatch,
    /// Whether a reader sees the rows of an epoch in the order of its tasks.
    pub ordered: bool,
    /// Whether opening it shuts earlier runs out.
    pub fences: bool,
}

/// Checks a sink, over an empty destination. `make` gives a new, unopened one for the same query and destination, as a
/// restarted process has; `visible` gives what a reader sees now, a row as [`lines`] has it, or none for a destination
/// that nobody can read.
pub async fn sink(
    case: &SinkCase,
    make: impl AsyncFn() -> Arc<dyn Sink>,
    visible: impl AsyncFn() -> Option<Vec<String>>,
) {
    let [p0, p1, p2, p3, p4, p5] = &pieces(&case.rows);
    let mut reader = Reader { visible, ordered: case.ordered, may_repeat: false, expected: Vec::new() };

    let a = Writer { sink: make().await, schema: case.rows.schema() };
    let progress = a.open(1).await;
    let is_new = matches!(progress, Progress::Unrecorded | Progress::UpTo(0));
    assert!(is_new, "a destination that holds no epoch says {progress:?}");
    reader.sees("before anything was written", &[]).await;

    // Tasks end in any order, and a reader sees none of them before all are published.
    let pin = a.prepare(1).await;
    a.stage(1, 1, &pin, &[p2]).await;
    a.stage(1, 0, &pin, &[p0, p1]).await;
    reader.sees("while epoch 1 was staged, but not published", &[]).await;
    a.publish(1, &pin, &[p0, p1, p2]).await;
    reader.sees("after epoch 1 was published", &[p0, p1, p2]).await;

    let pin = a.prepare(2).await;
    a.stage(2, 0, &pin, &[]).await;
    a.publish(2, &pin, &[]).await;
    reader.sees("after epoch 2, which has no rows", &[]).await;

    // Half an epoch, and one whose rows cannot be computed, are discarded without a trace.
    let pin = a.prepare(3).await;
    a.sink.discard(3).await;
    a.stage(3, 0, &pin, &[p3]).await;
    a.sink.discard(3).await;
    reader.sees("after half of epoch 3 was discarded", &[]).await;
    a.stage_and_fail(3, 0, &pin, p3).await;
    a.sink.discard(3).await;
    reader.sees("after epoch 3 failed and was discarded", &[]).await;
    a.stage_side_by_side(3, &pin, p3, p4).await;
    reader.sees("while epoch 3 was staged, but not published", &[]).await;
    a.publish(3, &pin, &[p3, p4]).await;
    reader.sees("after epoch 3 was published", &[p3, p4]).await;
    must("forgetting", a.sink.forget(2).await);
    must("sweeping", a.sink.sweep(2).await);
    reader.sees("after a sweep", &[]).await;

    // A commit whose answer was lost: the same epoch once more, by the same run.
    reader.may_repeat = a.may_repeat();
    a.stage_side_by_side(3, &pin, p3, p4).await;
    must("publishing epoch 3 again", a.sink.publish(3, &pin).await);
    reader.sees("after epoch 3 was staged and published again", &[]).await;

    // A crash before publishing; or a run that only seems dead, and goes on when the next one has begun.
    let pin = a.prepare(4).await;
    a.stage(4, 0, &pin, &[p5]).await;
    let b = Writer { sink: make().await, schema: case.rows.schema() };
    let progress = b.open(2).await;
    let is_three = matches!(progress, Progress::Unrecorded | Progress::UpTo(3));
    assert!(is_three, "after epoch 3 was published, a new run is told {progress:?}");
    if case.fences {
        a.is_shut_out(4, &pin, p5).await;
    }
    drop(a);
    reader.sees("after a run ended between staging and publishing epoch 4", &[]).await;
    b.retract(4).await;
    reader.sees("after epoch 4 was taken back, which was not published", &[]).await;
    b.stage(4, 0, &pin, &[p5]).await;
    reader.sees("while epoch 4 was staged by another run, but not published", &[]).await;
    b.publish(4, &pin, &[p5]).await;
    reader.sees("after epoch 4 was published by another run", &[p5]).await;

    // A crash after publishing: who can tell is asked; else the epoch is run again.
    drop(b);
    let c = Writer { sink: make().await, schema: case.rows.schema() };
    match c.open(3).await {
        Progress::UpTo(epoch) => assert!(epoch == 4, "after epoch 4 was published, a new run is told {epoch}"),
        Progress::Unrecorded => {
            c.stage(4, 0, &pin, &[p5]).await;
            must("publishing epoch 4 again", c.sink.publish(4, &pin).await);
        }
    }
    reader.sees("after a run ended between publishing and committing epoch 4", &[]).await;

    // The same, and the rows are gone by now: the epoch is run again without them.
    drop(c);
    let d = Writer { sink: make().await, schema: case.rows.schema() };
    let is_run_again = d.open(4).await == Progress::Unrecorded;
    if is_run_again && d.retract(4).await && !d.may_repeat() {
        reader.loses(p5);
        reader.sees("after epoch 4 was taken back", &[]).await;
        d.stage(4, 0, &pin, &[]).await;
        d.publish(4, &pin, &[]).await;
        reader.sees("after epoch 4 was run again without its rows", &[]).await;
    }
    d.sink.close().await;
    reader.sees("after the sink was closed", &[]).await;
}

/// The rows in six pieces.
fn pieces(rows: &RecordBatch) -> [RecordBatch; 6] {
    let distinct: BTreeSet<String> = lines(rows).into_iter().collect();
    let is_fit = distinct.len() == rows.num_rows() && rows.num_rows() >= 6;
    assert!(is_fit, "the suite needs six or more rows, no two alike");
    let edge = |i: usize| rows.num_rows() * i / 6;
    std::array::from_fn(|i| rows.slice(edge(i), edge(i + 1) - edge(i)))
}

fn count(pieces: &[&RecordBatch]) -> u64 {
    pieces.iter().map(|piece| piece.num_rows() as u64).sum()
}

/// A sink under test: every call must do, and say, what was asked.
struct Writer {
    sink: Arc<dyn Sink>,
    schema: SchemaRef,
}

impl Writer {
    async fn open(&self, run: u64) -> Progress {
        must(format_args!("opening run {run}"), self.sink.open(run).await);
        must("asking what it holds", self.sink.progress(0, &serde_json::Value::Null).await)
    }

    async fn prepare(&self, epoch: u64) -> Pin {
        must(format_args!("preparing epoch {epoch}"), self.sink.prepare(epoch).await)
    }

    /// Stages pieces as one task, a batch each.
    async fn stage(&self, epoch: u64, task: u32, pin: &Pin, pieces: &[&RecordBatch]) {
        let what = format!("staging task {task} of epoch {epoch}");
        let rows = stream_of(&self.schema, pieces.iter().map(|piece| Ok((*piece).clone())).collect());
        let staged = must(&what, self.sink.stage(epoch, task, pin, rows).await);
        assert!(staged.rows == count(pieces), "{what} took {} of {} rows", staged.rows, count(pieces));
    }

    /// Three tasks at once; the middle one has no rows.
    async fn stage_side_by_side(&self, epoch: u64, pin: &Pin, first: &RecordBatch, last: &RecordBatch) {
        let (first, last) = ([first], [last]);
        tokio::join!(
            self.stage(epoch, 2, pin, &last),
            self.stage(epoch, 1, pin, &[]),
            self.stage(epoch, 0, pin, &first),
        );
    }

    /// Stages rows that end in an error, which must come back as it is.
    async fn stage_and_fail(&self, epoch: u64, task: u32, pin: &Pin, rows: &RecordBatch) {
        let rows = stream_of(&self.schema, vec![Ok(rows.clone()), Err(Error::data("a row for the contract's sake"))]);
        match self.sink.stage(epoch, task, pin, rows).await {
            Ok(staged) => panic!("staging rows that cannot be computed gave {staged:?}"),
            Err(error) => assert!(
                error.kind() == Kind::Data && error.chain().contains("a row for the contract's sake"),
                "staging rows that cannot be computed did not give their error, but {:?}: {}",
                error.kind(),
                error.chain()
            ),
        }
    }

    async fn publish(&self, epoch: u64, pin: &Pin, pieces: &[&RecordBatch]) {
        let what = format!("publishing epoch {epoch}");
        let Published { rows, .. } = must(&what, self.sink.publish(epoch, pin).await);
        assert!(rows == count(pieces), "{what} says {rows} rows, but {} were staged", count(pieces));
    }

    /// Whether what may be there of an epoch was taken back. Who may write rows twice has nothing to refuse.
    async fn retract(&self, epoch: u64) -> bool {
        match self.sink.retract(epoch).await {
            Ok(()) => true,
            Err(error) if error.kind() == Kind::Refused && !self.may_repeat() => false,
            Err(error) => panic!("taking epoch {epoch} back failed: {:?}: {error}", error.kind()),
        }
    }

    /// Whether rows may be seen twice, so that none has to be taken back.
    fn may_repeat(&self) -> bool {
        matches!(self.sink.guarantee().delivery, Delivery::AtLeastOnce | Delivery::None)
    }

    /// A newer run has opened the destination: what this one staged can no longer be published, nor anything new.
    async fn is_shut_out(&self, epoch: u64, pin: &Pin, rows: &RecordBatch) {
        let fenced = |what: &str, outcome: Result<Published>| match outcome {
            Ok(_) => panic!("{what} succeeded, though a newer run has taken over"),
            Err(error) if error.kind() == Kind::Fenced => (),
            Err(error) => panic!("{what} after a newer run took over is not fenced, but {:?}: {error}", error.kind()),
        };
        fenced("publishing what was staged before", self.sink.publish(epoch, pin).await);
        self.sink.discard(epoch).await;
        let rows = stream_of(&self.schema, vec![Ok(rows.clone())]);
        let anew = match self.sink.stage(epoch, 0, pin, rows).await {
            Ok(_) => self.sink.publish(epoch, pin).await,
            Err(error) => Err(error),
        };
        fenced("staging and publishing", anew);
        self.sink.discard(epoch).await;
    }
}

/// Someone who reads the destination.
struct Reader<V> {
    visible: V,
    ordered: bool,
    /// Whether rows may be there more than once, by the sink's guarantee and what has happened.
    may_repeat: bool,
    expected: Vec<String>,
}

impl<V: AsyncFn() -> Option<Vec<String>>> Reader<V> {
    /// A piece is no longer to be seen.
    fn loses(&mut self, piece: &RecordBatch) {
        let lost = lines(piece);
        self.expected.retain(|line| !lost.contains(line));
    }

    /// Checks that what is visible grew by these pieces and nothing else.
    async fn sees(&mut self, when: &str, more: &[&RecordBatch]) {
        self.expected.extend(more.iter().flat_map(|piece| lines(piece)));
        let Some(mut found) = (self.visible)().await else { return };
        let mut expected = self.expected.clone();
        if self.may_repeat {
            found.sort();
            found.dedup();
        }
        if self.may_repeat || !self.ordered {
            found.sort();
            expected.sort();
        }
        assert_same(format_args!("what a reader sees {when}"), &found, &expected);
    }
}

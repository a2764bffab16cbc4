//! What a source promises: see [`source`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;
use futures::future::join_all;
use futures::{StreamExt, TryStreamExt};

use super::{assert_same, lines, must};
use crate::catalog::TableDefinition;
use crate::connector::{Bounds, Fingerprint, Offsets, Partition, PartitionReport, ReadReport, Source, Span};

/// How long the rows may take to show up: so many looks, so far apart.
const LOOKS: usize = 200;
const BETWEEN_LOOKS: Duration = Duration::from_millis(50);

/// A stream whose rows are known. Some dozens of rows in two or more partitions find the most in the shortest time.
#[derive(Debug)]
pub struct SourceCase {
    /// The table.
    pub table: Arc<TableDefinition>,
    /// All rows of each partition. Columns that the table has and these batches have not (a broker's timestamp) are only
    /// compared between reads.
    pub rows: BTreeMap<Partition, RecordBatch>,
    /// Whether the table's options say that the stream ends behind them (`scan.bounded.*`).
    pub bounded: bool,
}

/// Checks a source. `open` opens it anew, as a restarted process does; nobody writes to it meanwhile.
pub async fn source(case: &SourceCase, open: impl AsyncFn() -> Arc<dyn Source>) {
    let first = open().await;
    let known = Known::of(case, first.as_ref()).await;
    known.check_start(first.as_ref()).await;
    known.check_end(first.as_ref(), case.bounded).await;
    known.check_cuts(first.as_ref()).await;
    known.check_projections(first.as_ref()).await;
    known.check_empty_spans(first.as_ref()).await;
    known.check_side_by_side(&first).await;
    known.check_half_read(first.as_ref()).await;
    first.forget(&known.offsets(|bounds| bounds.earliest)).await;
    known.check_whole(first.as_ref(), "after rows before the earliest were forgotten").await;

    let second = open().await;
    known.check_backwards(second.as_ref()).await;
    known.check_fingerprints(first.as_ref(), second.as_ref()).await;
    first.acknowledge(&known.offsets(|bounds| bounds.latest)).await;
    known.check_whole(first.as_ref(), "after all of it was acknowledged").await;
    first.close().await;
    known.check_whole(second.as_ref(), "after another reader of the same rows was closed").await;
    known.check_forget(second.as_ref()).await;
    second.close().await;
}

/// What the first full read found: the measure of all others.
struct Known {
    schema: SchemaRef,
    bounds: BTreeMap<Partition, Bounds>,
    rows: BTreeMap<Partition, RecordBatch>,
}

impl Known {
    /// Reads everything once, and again for some seconds while rows are missing, and compares it with the case.
    async fn of(case: &SourceCase, source: &dyn Source) -> Self {
        let schema = case.table.stored_schema();
        let expected: usize = case.rows.values().map(RecordBatch::num_rows).sum();
        let mut known = Self { schema, bounds: BTreeMap::new(), rows: BTreeMap::new() };
        for _ in 0..LOOKS {
            known.bounds = must("asking for the extent", source.extent().await).partitions;
            for (partition, bounds) in &known.bounds {
                assert!(
                    bounds.earliest <= bounds.latest,
                    "the extent of {partition} ends before it begins: {bounds:?}"
                );
            }
            known.rows.clear();
            for span in known.spans() {
                known.rows.insert(span.partition.clone(), known.read(source, &span).await);
            }
            if known.rows.values().map(RecordBatch::num_rows).sum::<usize>() >= expected {
                break;
            }
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
        for (partition, expected) in &case.rows {
            let found = known.rows.get(partition);
            let found = found.unwrap_or_else(|| panic!("the extent has no partition {partition}"));
            let column = |field: &Arc<arrow::datatypes::Field>| {
                must("the case's columns", found.schema().index_of(field.name()))
            };
            let columns: Vec<usize> = expected.schema().fields().iter().map(column).collect();
            let found = must("a projection", found.project(&columns));
            assert_same(format_args!("all of {partition}"), &lines(&found), &lines(expected));
        }
        for (partition, found) in &known.rows {
            let is_expected = found.num_rows() == 0 || case.rows.contains_key(partition);
            assert!(is_expected, "{partition} has {} rows, but should have none", found.num_rows());
        }
        known
    }

    /// All of each partition.
    fn spans(&self) -> Vec<Span> {
        let span =
            |(partition, bounds): (&Partition, &Bounds)| Span::new(partition.clone(), bounds.earliest, bounds.latest);
        self.bounds.iter().map(span).collect()
    }

    /// An offset of each partition.
    fn offsets(&self, of: impl Fn(&Bounds) -> u64) -> Offsets {
        self.bounds.iter().map(|(partition, bounds)| (partition.clone(), of(bounds))).collect()
    }

    async fn check_start(&self, source: &dyn Source) {
        for (partition, offset) in must("asking for the start", source.start().await) {
            let bounds = self.bounds.get(&partition);
            let bounds = bounds.unwrap_or_else(|| panic!("the start names {partition}, which the extent has not"));
            let within = (bounds.earliest..=bounds.latest).contains(&offset);
            assert!(within, "the start of {partition} is {offset}, which is not within {bounds:?}");
        }
    }

    async fn check_end(&self, source: &dyn Source, bounded: bool) {
        let expected = bounded.then(|| self.offsets(|bounds| bounds.latest));
        let end = must("asking for the end", source.end().await);
        assert!(end == expected, "the end of the stream is {end:?}, but should be {expected:?}");
    }

    async fn check_whole(&self, source: &dyn Source, when: &str) {
        for span in self.spans() {
            let found = self.read(source, &span).await;
            self.compare(&format!("reading {span} {when}"), &span.partition, &[found]);
        }
    }

    /// Cuts of one, three and mixed sizes, one after the other: what an engine does epoch by epoch.
    async fn check_cuts(&self, source: &dyn Source) {
        for sizes in [&[1][..], &[3], &[2, 7, 1, 13, 4]] {
            for span in self.spans() {
                let mut found = Vec::new();
                for cut in cuts(&span, sizes) {
                    found.push(self.read(source, &cut).await);
                }
                self.compare(&format!("reading {span} in cuts of {sizes:?}"), &span.partition, &found);
            }
        }
    }

    /// The last cut of the last partition first.
    async fn check_backwards(&self, source: &dyn Source) {
        for span in self.spans().into_iter().rev() {
            let mut found = Vec::new();
            for cut in cuts(&span, &[5, 2]).iter().rev() {
                found.insert(0, self.read(source, cut).await);
            }
            self.compare(&format!("reading {span} backwards from a new source"), &span.partition, &found);
        }
    }

    async fn check_projections(&self, source: &dyn Source) {
        let all = 0..self.schema.fields().len();
        let mut projections: Vec<Vec<usize>> = all.clone().map(|column| vec![column]).collect();
        projections.extend([Vec::new(), all.clone().step_by(2).collect(), all.skip(1).collect()]);
        for (span, projection) in self.spans().iter().flat_map(|span| projections.iter().map(move |p| (span, p))) {
            let found = read(source, &self.schema, span, projection).await;
            let expected = must("a projection", self.rows[&span.partition].project(projection));
            let what = format!("reading columns {projection:?} of {span}");
            assert_same(&what, &lines(&found), &lines(&expected));
        }
    }

    async fn check_empty_spans(&self, source: &dyn Source) {
        for span in self.spans() {
            for offset in [span.from, span.from.midpoint(span.to), span.to] {
                let empty = Span::new(span.partition.clone(), offset, offset);
                let rows = self.read(source, &empty).await.num_rows();
                assert!(rows == 0, "reading {empty}, which is empty, gave {rows} rows");
            }
        }
    }

    /// All partitions at once, each in two halves.
    async fn check_side_by_side(&self, source: &Arc<dyn Source>) {
        let readers = self.spans().into_iter().map(async |span| {
            let middle = span.from.midpoint(span.to);
            let halves = [
                Span::new(span.partition.clone(), span.from, middle),
                Span::new(span.partition.clone(), middle, span.to),
            ];
            let found = join_all(halves.iter().map(|half| self.read(source.as_ref(), half))).await;
            self.compare(&format!("reading {span} beside others"), &span.partition, &found);
        });
        join_all(readers).await;
    }

    /// A reader that goes away (an epoch that failed) leaves nothing behind.
    async fn check_half_read(&self, source: &dyn Source) {
        let all: Vec<usize> = (0..self.schema.fields().len()).collect();
        for span in self.spans() {
            let mut abandoned = must("reading", source.read(&span, &all, &ReadReport::default()));
            drop(abandoned.next().await);
            drop(abandoned);
            drop(must("reading", source.read(&span, &all, &ReadReport::default())));
        }
        self.check_whole(source, "after a reader had gone away half way").await;
    }

    /// Who tells messages apart tells of each the same as another source that reads it, and nothing where none is.
    async fn check_fingerprints(&self, reader: &dyn Source, teller: &dyn Source) {
        let mut tells = None;
        for span in self.spans() {
            for cut in cuts(&span, &[5, 2]) {
                let Some(last) = self.last(reader, &cut).await else { continue };
                let what = format!("the message at {} offset {}", span.partition, last.offset);
                let told = must(&what, teller.fingerprint(&span.partition, last.offset).await);
                let are_told = *tells.get_or_insert(told.is_some());
                assert!(are_told == told.is_some(), "{what} is told, or is not, unlike others: {told:?}");
                assert!(told.as_ref().is_none_or(|told| *told == last), "{what} is {last:?}, but told is {told:?}");
            }
            let what = format!("the message at {} offset {}, where none is", span.partition, span.to);
            let told = must(&what, teller.fingerprint(&span.partition, span.to).await);
            assert!(told.is_none(), "{what}, is told: {told:?}");
        }
    }

    /// What lies before the middle may be gone then, and nothing else.
    async fn check_forget(&self, source: &dyn Source) {
        let middle = self.offsets(|bounds| bounds.earliest.midpoint(bounds.latest));
        let rest = |span: Span| Span { from: middle[&span.partition], ..span };
        let mut before = Vec::new();
        for span in self.spans().into_iter().map(rest) {
            before.push((self.read(source, &span).await, span));
        }
        source.forget(&middle).await;
        for (before, span) in &before {
            let found = self.read(source, span).await;
            assert_same(
                format_args!("reading {span} after rows before it were forgotten"),
                &lines(&found),
                &lines(before),
            );
        }
    }

    async fn read(&self, source: &dyn Source, span: &Span) -> RecordBatch {
        let all: Vec<usize> = (0..self.schema.fields().len()).collect();
        read(source, &self.schema, span, &all).await
    }

    /// The last message of `span`, as a read reports it.
    async fn last(&self, source: &dyn Source, span: &Span) -> Option<Fingerprint> {
        let report = ReadReport::default();
        let rows = must(format_args!("reading {span}"), source.read(span, &[], &report));
        must(format_args!("reading {span}"), rows.try_for_each(|_| std::future::ready(Ok(()))).await);
        report.take().remove(&span.partition)?.last
    }

    fn compare(&self, what: &str, partition: &Partition, found: &[RecordBatch]) {
        let found = must(what, concat_batches(&self.schema, found));
        assert_same(what, &lines(&found), &lines(&self.rows[partition]));
        assert!(found == self.rows[partition], "{what}: rows print alike but differ");
    }
}

/// The columns `projection` of `span`, with its report checked.
async fn read(source: &dyn Source, schema: &SchemaRef, span: &Span, projection: &[usize]) -> RecordBatch {
    let what = format!("reading {span}");
    let report = ReadReport::default();
    let schema = Arc::new(must(&what, schema.project(projection)));
    let stream = must(&what, source.read(span, projection, &report));
    assert!(stream.schema() == schema, "{what}: the stream's schema is {:?}, not {schema:?}", stream.schema());
    let batches: Vec<RecordBatch> = must(&what, stream.try_collect().await);
    for batch in &batches {
        assert!(batch.schema() == schema, "{what}: a batch's schema is {:?}, not {schema:?}", batch.schema());
    }
    let rows = must(&what, concat_batches(&schema, &batches));
    check_report(span, rows.num_rows() as u64, report.take());
    rows
}

fn check_report(span: &Span, rows: u64, mut seen: BTreeMap<Partition, PartitionReport>) {
    let report = seen.remove(&span.partition).unwrap_or_default();
    let others: Vec<_> = seen.keys().collect();
    assert!(others.is_empty(), "the report of {span} speaks of {others:?}, too");
    let PartitionReport { messages, skipped, sample, last, .. } = report;
    assert!(messages == rows + skipped, "{span} gave {rows} rows, but reports {messages} messages, {skipped} skipped");
    assert!(messages <= span.len(), "{span} reports {messages} messages");
    let within = |offset: u64| (span.from..span.to).contains(&offset);
    match last {
        Some(last) => assert!(within(last.offset), "the last message of {span} is said to be at {}", last.offset),
        None => assert!(messages == 0, "{span} gave {messages} messages, but reports no last one"),
    }
    match sample {
        Some(sample) => {
            assert!(within(sample.offset), "a message skipped in {span} is said to be at {}", sample.offset)
        }
        None => assert!(skipped == 0, "{span} skipped {skipped} messages, but names none"),
    }
}

/// The span in pieces whose sizes go round.
fn cuts(span: &Span, sizes: &[u64]) -> Vec<Span> {
    let mut from = span.from;
    let mut cuts = Vec::new();
    for size in sizes.iter().cycle() {
        if from >= span.to {
            break;
        }
        let to = span.to.min(from + size);
        cuts.push(Span::new(span.partition.clone(), from, to));
        from = to;
    }
    cuts
}

//! The suites find what they are for: connectors with one fault each, over topics in memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow::array::{Int64Array, RecordBatch, StringViewArray};
use async_trait::async_trait;
use datafusion::execution::SendableRecordBatchStream;

use super::fixture::{environment, owner, partition, table_of};
use super::{SinkCase, SourceCase};
use crate::connector::memory::{Memory, MemoryConnector};
use crate::connector::{
    Connector, Delivery, Extent, Fingerprint, Guarantee, Offsets, Partition, Pin, Progress, Published, ReadReport,
    Sink, Source, Span, Staged,
};
use crate::error::{Error, Result};

fn rows() -> RecordBatch {
    let text = StringViewArray::from_iter((0..12).map(|i| (i % 5 > 0).then(|| format!("row {i}"))));
    RecordBatch::try_from_iter_with_nullable([
        ("id", Arc::new(Int64Array::from_iter_values(0..12)) as _, true),
        ("text", Arc::new(text) as _, true),
    ])
    .unwrap()
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    /// A span loses its last row unless it is the partition's last.
    ShortSpan,
    /// An empty span gives a row.
    RowFromNothing,
    /// The report is left out.
    NoReport,
    /// The stream does not end where its table says.
    NoEnd,
    /// A message is taken for the one before it.
    Mistaken,
    /// A message is told of that is not there.
    Ghost,
    /// What is acknowledged can no longer be read.
    Consumes,
    /// More is forgotten than was said.
    ForgetsMore,
    /// Staged rows are published at once.
    Hasty,
    /// A second publish of an epoch is stored as another epoch.
    Repeats,
    /// Earlier runs are let through.
    NoFence,
    /// What was published stays, though it was to be taken back.
    Keeps,
    /// Another epoch is taken back as well.
    TakesMore,
    /// Nothing is taken back, though rows may be seen twice anyway.
    Unwilling,
}

#[derive(Debug)]
struct Faulty<T> {
    inner: T,
    fault: Fault,
    /// Whether the call has come that the fault waits for.
    called: AtomicBool,
}

#[async_trait]
impl Source for Faulty<Arc<dyn Source>> {
    async fn start(&self) -> Result<Offsets> {
        self.inner.start().await
    }

    async fn end(&self) -> Result<Option<Offsets>> {
        if self.fault == Fault::NoEnd { Ok(None) } else { self.inner.end().await }
    }

    async fn extent(&self) -> Result<Extent> {
        self.inner.extent().await
    }

    async fn offsets_at(&self, partitions: &[Partition], ms: i64) -> Result<Option<Offsets>> {
        self.inner.offsets_at(partitions, ms).await
    }

    async fn fingerprint(&self, partition: &Partition, offset: u64) -> Result<Option<Fingerprint>> {
        let offset = match self.fault {
            Fault::Mistaken => offset - 1,
            Fault::Ghost => offset.min(11),
            _ => offset,
        };
        self.inner.fingerprint(partition, offset).await
    }

    async fn acknowledge(&self, _next: &Offsets) {
        self.called.fetch_or(self.fault == Fault::Consumes, Ordering::Relaxed);
    }

    async fn forget(&self, before: &Offsets) {
        let is_more = self.fault == Fault::ForgetsMore && before.values().any(|before| *before > 0);
        self.called.fetch_or(is_more, Ordering::Relaxed);
    }

    fn read(&self, span: &Span, projection: &[usize], report: &ReadReport) -> Result<SendableRecordBatchStream> {
        let mut span = span.clone();
        match self.fault {
            Fault::ShortSpan if span.to < 12 && span.len() > 2 => span.to -= 1,
            Fault::RowFromNothing if span.is_empty() && span.to < 12 => span.to += 1,
            Fault::NoReport => return self.inner.read(&span, projection, &ReadReport::default()),
            Fault::Consumes | Fault::ForgetsMore if self.called.load(Ordering::Relaxed) => span.from = span.to,
            _ => (),
        }
        self.inner.read(&span, projection, report)
    }
}

#[async_trait]
impl Sink for Faulty<Arc<dyn Sink>> {
    fn guarantee(&self) -> Guarantee {
        match self.fault {
            Fault::Unwilling => Guarantee { delivery: Delivery::AtLeastOnce, ..self.inner.guarantee() },
            _ => self.inner.guarantee(),
        }
    }

    async fn open(&self, run: u64) -> Result<()> {
        self.inner.open(if self.fault == Fault::NoFence { 1 } else { run }).await
    }

    async fn progress(&self, epoch: u64, position: &serde_json::Value) -> Result<Progress> {
        match self.fault {
            // Who knows which epochs there are is not asked to take one back.
            Fault::Keeps => Ok(Progress::Unrecorded),
            _ => self.inner.progress(epoch, position).await,
        }
    }

    async fn stage(&self, epoch: u64, task: u32, pin: &Pin, rows: SendableRecordBatchStream) -> Result<Staged> {
        let staged = self.inner.stage(epoch, task, pin, rows).await?;
        if self.fault == Fault::Hasty {
            self.inner.publish(epoch, pin).await?;
        }
        Ok(staged)
    }

    async fn publish(&self, epoch: u64, pin: &Pin) -> Result<Published> {
        if self.fault == Fault::Repeats && epoch == 3 && self.called.swap(true, Ordering::Relaxed) {
            self.inner.stage(9, 0, pin, super::fixture::stream(&rows().slice(6, 2))).await?;
            return self.inner.publish(9, pin).await;
        }
        self.inner.publish(epoch, pin).await
    }

    async fn discard(&self, epoch: u64) {
        self.inner.discard(epoch).await;
    }

    async fn retract(&self, epoch: u64) -> Result<()> {
        match self.fault {
            Fault::TakesMore => {
                self.inner.stage(epoch - 1, 0, &Pin::Null, super::fixture::stream(&rows().slice(0, 0))).await?;
                self.inner.publish(epoch - 1, &Pin::Null).await.map(drop)
            }
            Fault::Unwilling => Err(Error::refused("it stays")),
            _ => self.inner.retract(epoch).await,
        }
    }
}

fn faulty<T>(inner: T, fault: Fault) -> Arc<Faulty<T>> {
    Arc::new(Faulty { inner, fault, called: AtomicBool::new(false) })
}

async fn source_with(fault: Fault) {
    let memory = Memory::new();
    memory.append("t", 0, rows());
    let connector = MemoryConnector::new(memory);
    let options = [("connector", "memory"), ("topic", "t"), ("scan.bounded.mode", "latest-offset")];
    let table = table_of("t", &rows().schema(), &options);
    let case = SourceCase { table: table.clone(), rows: BTreeMap::from([(partition(0), rows())]), bounded: true };
    let open = async || {
        let source = connector.source(table.clone(), &environment(), None).await.unwrap();
        faulty(source, fault) as Arc<dyn Source>
    };
    super::source(&case, open).await;
}

async fn sink_with(fault: Fault) {
    let memory = Memory::new();
    let connector = MemoryConnector::new(memory.clone());
    let table = table_of("t", &rows().schema(), &[("connector", "memory"), ("topic", "t")]);
    let make = async || {
        let sink = connector.sink(table.clone(), &environment(), &owner("q")).await.unwrap();
        faulty(sink, fault) as Arc<dyn Sink>
    };
    let visible = async || Some(memory.rows("t").iter().flat_map(super::lines).collect());
    super::sink(&SinkCase { rows: rows(), ordered: true, fences: true }, make, visible).await;
}

#[tokio::test]
#[should_panic(expected = "reading t:0 0..12 in cuts of [3]: row 2 is")]
async fn rows_lost_at_a_cut_are_found() {
    source_with(Fault::ShortSpan).await;
}

#[tokio::test]
#[should_panic(expected = "t:0 0..0 reports 1 messages")]
async fn rows_from_an_empty_span_are_found() {
    source_with(Fault::RowFromNothing).await;
}

#[tokio::test]
#[should_panic(expected = "gave 12 rows, but reports 0 messages")]
async fn a_missing_report_is_found() {
    source_with(Fault::NoReport).await;
}

#[tokio::test]
#[should_panic(expected = "the end of the stream is None, but should be Some({t:0: 12})")]
async fn a_missing_end_is_found() {
    source_with(Fault::NoEnd).await;
}

#[tokio::test]
#[should_panic(expected = "the message at t:0 offset 4 is Fingerprint { offset: 4,")]
async fn a_message_that_is_taken_for_another_is_found() {
    source_with(Fault::Mistaken).await;
}

#[tokio::test]
#[should_panic(expected = "the message at t:0 offset 12, where none is, is told")]
async fn a_message_that_is_not_there_is_found() {
    source_with(Fault::Ghost).await;
}

#[tokio::test]
#[should_panic(expected = "reading t:0 0..12 after all of it was acknowledged: 0 rows, but there should be 12")]
async fn rows_that_go_when_they_are_acknowledged_are_found() {
    source_with(Fault::Consumes).await;
}

#[tokio::test]
#[should_panic(expected = "reading t:0 6..12 after rows before it were forgotten: 0 rows, but there should be 6")]
async fn rows_that_were_not_to_be_forgotten_are_found() {
    source_with(Fault::ForgetsMore).await;
}

#[tokio::test]
#[should_panic(expected = "what a reader sees while epoch 1 was staged, but not published")]
async fn rows_shown_too_early_are_found() {
    sink_with(Fault::Hasty).await;
}

#[tokio::test]
#[should_panic(expected = "what a reader sees after epoch 3 was staged and published again")]
async fn rows_published_twice_are_found() {
    sink_with(Fault::Repeats).await;
}

#[tokio::test]
#[should_panic(expected = "publishing what was staged before succeeded, though a newer run has taken over")]
async fn a_missing_fence_is_found() {
    sink_with(Fault::NoFence).await;
}

#[tokio::test]
#[should_panic(expected = "what a reader sees after epoch 4 was taken back: 12 rows, but there should be 10")]
async fn rows_that_are_not_taken_back_are_found() {
    sink_with(Fault::Keeps).await;
}

#[tokio::test]
#[should_panic(expected = "what a reader sees after epoch 4 was taken back, which was not published: 6 rows")]
async fn rows_of_another_epoch_that_are_taken_back_are_found() {
    sink_with(Fault::TakesMore).await;
}

#[tokio::test]
#[should_panic(expected = "taking epoch 4 back failed: Refused: it stays")]
async fn a_refusal_where_rows_may_be_there_twice_is_found() {
    sink_with(Fault::Unwilling).await;
}

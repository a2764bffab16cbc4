//! Streams outside of a query: what a SELECT asks of them.
//!
//! The idea: a question about a stream that ends, or in batch mode, is of one moment. What it reads is found out once
//! for all outputs of its scan, narrowed by its predicate, and dealt out to them, partition by partition. A question
//! about any other stream goes on as messages arrive.
//!
//! Guarantee: each output reads its partitions one after the other, in offset order. With a LIMIT there is one output,
//! and little is asked of the source at first.
//!
//! Not promised: an order of rows between outputs; that a question is answered before an end is reached that lies
//! ahead.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DataFusionError, Result as DfResult};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::execution_plan::Boundedness;
use datafusion::physical_plan::metrics::{Count, ExecutionPlanMetricsSet, MetricBuilder};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::Stream;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use tokio::sync::OnceCell;

use super::narrowing::Narrowing;
use super::scan::ScanExec;
use super::stream_of;
use crate::catalog::TableDefinition;
use crate::connector::{Extent, Offsets, Partition, ReadReport, Source, Span};
use crate::error::{Error, Result};

/// How long a scan that has read everything waits before it looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// So many looks in a row may find a partition unreachable that is waited for: half a minute, in which brokers restart.
const UNREACHED: usize = 600;

/// How SELECTs see streams that have no end of their own: an extension of DataFusion's `SessionConfig`. Without it they
/// are streaming.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExecutionMode {
    /// They go on.
    Streaming,
    /// They end at what is there when the question is asked.
    Batch,
}

/// Refuses what would take the changes of a changelog for rows: outside of a query a row is shown as each of its changes
/// left it, so there are as many of it as it had changes.
pub fn refuse_changes(plan: &LogicalPlan) -> Result<()> {
    let (mut changelog, mut what) = (None, None);
    plan.apply_with_subqueries(|node| {
        changelog = changelog.take().or_else(|| {
            let stream = stream_of(node).filter(|stream| stream.is_changelog())?;
            Some(stream.definition().name.clone())
        });
        what = what.or(match node {
            LogicalPlan::Aggregate(_) => Some("GROUP BY and aggregates"),
            LogicalPlan::Distinct(_) => Some("DISTINCT"),
            LogicalPlan::Window(_) => Some("OVER"),
            LogicalPlan::Join(_) => Some("JOIN"),
            _ => None,
        });
        Ok(TreeNodeRecursion::Continue)
    })?;
    match (changelog, what) {
        (Some(table), Some(what)) => Err(Error::usage(format!(
            "{table} is a changelog, of whose rows a SELECT sees every change, so {what} would take one row for many; read the \
             same topic in another format, such as json or raw, or write its rows to a table first"
        ))),
        _ => Ok(()),
    }
}

/// What a scan asks that is bound to no spans.
#[derive(Debug, Default)]
pub(super) struct Ask {
    is_bounded: bool,
    outputs: usize,
    narrowing: Option<Narrowing>,
    limit: Option<usize>,
    /// What is read, once somebody has found out.
    spans: OnceCell<Vec<Span>>,
}

impl fmt::Display for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_bounded { "bounded" } else { "unbounded" })?;
        self.narrowing.iter().try_for_each(|narrowing| write!(f, " where=[{narrowing}]"))?;
        self.limit.iter().try_for_each(|limit| write!(f, " limit={limit}"))
    }
}

impl Ask {
    /// For a scan of at most so many outputs.
    pub(super) fn new(is_bounded: bool, most: usize, narrowing: Option<Narrowing>, limit: Option<usize>) -> Self {
        let outputs = if is_bounded && limit.is_none() { most.max(1) } else { 1 };
        Self { is_bounded, outputs, narrowing, limit, spans: OnceCell::new() }
    }

    /// How many outputs it has: partitions may be fewer.
    pub(super) fn outputs(&self) -> usize {
        self.outputs
    }

    /// How many rows are wanted at most.
    pub(super) fn limit(&self) -> Option<usize> {
        self.limit
    }

    /// Whether it ends.
    pub(super) fn boundedness(&self) -> Boundedness {
        match self.is_bounded {
            true => Boundedness::Bounded,
            false => Boundedness::Unbounded { requires_infinite_memory: false },
        }
    }

    /// From the start of the stream to its end, or to what is there now.
    async fn resolve(&self, table: &TableDefinition, source: &dyn Source) -> Result<Vec<Span>> {
        let start = source.start().await?;
        let end = source.horizon().await?;
        let span = |(partition, to): (Partition, u64)| {
            // One that came since the first question is new.
            let from = start.get(&partition).copied().unwrap_or_default();
            Span::new(partition, from, to)
        };
        let spans = end.into_iter().map(span).filter(|span| !span.is_empty()).collect();
        let spans = self.narrowed(source, spans, false).await?;
        if table.is_bounded() {
            wait_for(table, source, &spans).await?;
        }
        // The times of messages that were waited for are known only now.
        self.narrowed(source, spans, true).await
    }

    async fn narrowed(&self, source: &dyn Source, spans: Vec<Span>, by_time: bool) -> Result<Vec<Span>> {
        match &self.narrowing {
            Some(narrowing) => narrowing.narrowed(source, spans, by_time).await,
            None => Ok(spans),
        }
    }
}

/// Waits until all of these can be read.
///
/// Errors: a partition is gone ([`Kind::DataLoss`](crate::error::Kind::DataLoss)), or cannot be reached for long.
async fn wait_for(table: &TableDefinition, source: &dyn Source, spans: &[Span]) -> Result<()> {
    let mut unreached = 0;
    loop {
        let Extent { partitions, unreachable, .. } = source.extent().await?;
        let (mut is_there, mut trouble) = (true, None);
        for Span { partition, to, .. } in spans {
            match (partitions.get(partition), unreachable.get(partition)) {
                (Some(bounds), _) => is_there &= bounds.latest >= *to,
                (None, Some(reason)) => trouble = Some((partition, reason)),
                (None, None) => {
                    return Err(Error::data_loss(format!(
                        "table {}: {partition} is gone, before it held all up to offset {to} that the table ends at",
                        table.name
                    )));
                }
            }
        }
        match trouble {
            None if is_there => return Ok(()),
            None => unreached = 0,
            Some((partition, reason)) if unreached == UNREACHED => {
                return Err(Error::transient(format!("table {}: {partition} cannot be reached: {reason}", table.name)));
            }
            Some(_) => unreached += 1,
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// The rows of an output.
pub(super) fn rows(
    scan: ScanExec,
    source: Arc<dyn Source>,
    output: usize,
) -> BoxStream<'static, DfResult<RecordBatch>> {
    let counted = Counted::new(&scan.metrics, output);
    match scan.ask.is_bounded {
        true => bounded(scan, source, output, counted).boxed(),
        false => unbounded(scan, source, counted).boxed(),
    }
}

/// Those of the spans that fall to this output.
fn bounded(
    scan: ScanExec,
    source: Arc<dyn Source>,
    output: usize,
    counted: Counted,
) -> impl Stream<Item = DfResult<RecordBatch>> {
    let begin = async move {
        let ask = Arc::clone(&scan.ask);
        let spans = ask.spans.get_or_try_init(|| ask.resolve(scan.table(), source.as_ref())).await?;
        let dealt = spans.iter().skip(output).step_by(ask.outputs.max(1)).cloned().collect();
        Ok::<_, DataFusionError>(read(&scan, source, dealt, counted))
    };
    stream::once(begin).try_flatten()
}

/// Everything from the start on, as it arrives; it ends where the stream does.
fn unbounded(scan: ScanExec, source: Arc<dyn Source>, counted: Counted) -> impl Stream<Item = DfResult<RecordBatch>> {
    let rounds = stream::try_unfold(None, move |position: Option<Offsets>| {
        let (scan, source, counted) = (scan.clone(), Arc::clone(&source), counted.clone());
        async move {
            // What comes later is little, and not worth a question about times.
            let by_time = position.is_none();
            let mut position = match position {
                Some(position) => position,
                None => source.start().await?,
            };
            let Some(spans) = next_round(source.as_ref(), &mut position).await? else { return Ok(None) };
            let spans = scan.ask.narrowed(source.as_ref(), spans, by_time).await?;
            Ok::<_, DataFusionError>(Some((read(&scan, source, spans, counted), Some(position))))
        }
    });
    rounds.try_flatten()
}

/// Waits until there is something to read; none once all is read that there will ever be.
async fn next_round(source: &dyn Source, position: &mut Offsets) -> Result<Option<Vec<Span>>> {
    loop {
        let extent = source.extent().await?;
        let mut spans = vec![];
        for (partition, bounds) in extent.partitions {
            let from = position.entry(partition.clone()).or_insert(bounds.earliest);
            if *from < bounds.latest {
                spans.push(Span::new(partition, *from, bounds.latest));
                *from = bounds.latest;
            }
        }
        if !spans.is_empty() {
            return Ok(Some(spans));
        }
        if extent.complete {
            return Ok(None);
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// The rows of some spans, one after the other; what is asked of the source for them is counted.
fn read(
    scan: &ScanExec,
    source: Arc<dyn Source>,
    spans: Vec<Span>,
    counted: Counted,
) -> impl Stream<Item = DfResult<RecordBatch>> + use<> {
    let first = scan.ask.limit.map_or(u64::MAX, |limit| limit as u64);
    let report = scan.report().aside();
    scan.read_all(pieces(spans, first), move |span, columns| {
        let (counted, report) = (counted.clone(), report.clone());
        let rows = source.read(span, columns, &report)?;
        counted.spans.add(1);
        let schema = rows.schema();
        let rows = rows.inspect(move |_| counted.add(&report));
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)) as SendableRecordBatchStream)
    })
}

/// The spans in pieces, the first as long as that, and each twice as long as the one before: who wants few rows asks
/// for few messages, and is soon done all the same where most messages give no row.
fn pieces(spans: Vec<Span>, first: u64) -> impl Iterator<Item = Span> {
    let (mut spans, mut length) = (VecDeque::from(spans), first.max(1));
    std::iter::from_fn(move || {
        let span = spans.front_mut()?;
        let to = span.to.min(span.from.saturating_add(length));
        let piece = Span::new(span.partition.clone(), span.from, to);
        span.from = to;
        if span.is_empty() {
            spans.pop_front();
        }
        length = length.saturating_mul(2);
        Some(piece)
    })
}

/// What an output has asked of the source: shown by EXPLAIN ANALYZE.
#[derive(Debug, Clone)]
struct Counted {
    messages: Count,
    bytes: Count,
    spans: Count,
}

impl Counted {
    fn new(metrics: &ExecutionPlanMetricsSet, output: usize) -> Self {
        let count = |name: &'static str| MetricBuilder::new(metrics).counter(name, output);
        Self { messages: count("messages"), bytes: count("message_bytes"), spans: count("spans") }
    }

    /// Takes over what a read has reported.
    fn add(&self, report: &ReadReport) {
        for seen in report.take().into_values() {
            self.messages.add(seen.messages as usize);
            self.bytes.add(seen.bytes as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use async_trait::async_trait;

    use super::super::narrowing::tests::narrowing;
    use super::*;
    use crate::connector::contract::fixture::with_options;
    use crate::connector::{Bounds, Meaning};
    use crate::error::Kind;

    /// A message each 100 ms, of which ten more are there at each look; it ends behind the 30th.
    #[derive(Debug, Default)]
    struct Growing(AtomicU64);

    #[async_trait]
    impl Source for Growing {
        async fn start(&self) -> Result<Offsets> {
            Ok([(Partition::new("t", 0), 0)].into())
        }

        async fn end(&self) -> Result<Option<Offsets>> {
            Ok(Some([(Partition::new("t", 0), 30)].into()))
        }

        async fn extent(&self) -> Result<Extent> {
            let latest = self.0.fetch_add(10, Ordering::Relaxed) + 10;
            let partitions = [(Partition::new("t", 0), Bounds { earliest: 0, latest })].into();
            Ok(Extent { partitions, ..Extent::default() })
        }

        async fn offsets_at(&self, partitions: &[Partition], ms: i64) -> Result<Option<Offsets>> {
            let offset = (ms as u64).div_ceil(100);
            let is_there = offset < self.0.load(Ordering::Relaxed);
            let at = |partition: &Partition| (partition.clone(), offset);
            Ok(Some(partitions.iter().filter(|_| is_there).map(at).collect()))
        }

        fn read(&self, _: &Span, _: &[usize], _: &ReadReport) -> Result<SendableRecordBatchStream> {
            Err(Error::internal("it is not read"))
        }
    }

    #[tokio::test]
    async fn what_is_waited_for_is_narrowed_by_its_times() {
        let since = narrowing(Meaning::Time, "ts >= TIMESTAMP '1970-01-01 00:00:02'");
        let table = with_options(&[("scan.bounded.mode", "specific-offsets")]);
        let spans = Ask::new(true, 1, since, None).resolve(&table, &Growing::default()).await.unwrap();
        assert_eq!(spans, [Span::new(Partition::new("t", 0), 20, 30)]);
    }

    #[tokio::test]
    async fn what_goes_away_is_not_waited_for() {
        let table = with_options(&[]);
        let spans = [Span::new(Partition::new("t", 1), 0, 30)];
        let error = wait_for(&table, &Growing::default(), &spans).await.unwrap_err();
        assert_eq!(error.kind(), Kind::DataLoss);
        assert!(error.to_string().contains("t:1 is gone, before it held all up to offset 30"), "{error}");
    }

    #[test]
    fn who_wants_few_rows_asks_for_few_messages_first() {
        let spans = |lengths: &[u64]| {
            let span = |(number, to): (usize, &u64)| Span::new(Partition::new("t", number as u32), 0, *to);
            lengths.iter().enumerate().map(span).collect::<Vec<_>>()
        };
        let cut = |lengths: &[u64], first| {
            pieces(spans(lengths), first).map(|piece| piece.to_string()).collect::<Vec<_>>().join(", ")
        };
        assert_eq!(cut(&[100, 7], 10), "t:0 0..10, t:0 10..30, t:0 30..70, t:0 70..100, t:1 0..7");
        assert_eq!(cut(&[3, 3], 2), "t:0 0..2, t:0 2..3, t:1 0..3");
        assert_eq!(cut(&[100, 7], u64::MAX), "t:0 0..100, t:1 0..7");
        assert_eq!(cut(&[2], 0), "t:0 0..1, t:0 1..2");
        assert_eq!(cut(&[], 5), "");
    }
}

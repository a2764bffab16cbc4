//! A span that is read once for several plans of an epoch.
//!
//! The idea: the rows of a span are kept from the first plan that wants them until the last one has taken them, so a
//! statement set fetches and decodes each message once. Whoever is ahead reads on for all; who is far ahead waits.
//!
//! Guarantee: each plan gets all rows of the span, in order. Nobody waits for a plan that has not begun: it may itself wait
//! for the others. One that begins too late reads for itself, so a span is read once as a rule, and not always.
//!
//! What it does not promise: that two scans within one plan share what they read.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::common::Result as DfResult;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::{StreamExt, stream};
use tokio::sync::Notify;

use super::changes::is_updating;
use super::scan::ScanExec;
use crate::connector::Span;
use crate::error::{Error, Kind, Result};

/// How many bytes of a table's rows wait for whoever is behind, about, shared out among its tasks, each of which is in one
/// span; and how many of a span at least.
const BYTES: usize = 64 << 20;
const SPAN_BYTES: usize = 1 << 20;

/// What of a table is read for all plans that scan it.
#[derive(Debug)]
pub(super) struct SharedTable {
    /// The columns that any of them wants, ascending.
    columns: Vec<usize>,
    plans: usize,
    /// How many bytes of a span are kept.
    limit: usize,
    spans: Mutex<HashMap<Span, Arc<SharedSpan>>>,
}

/// What these plans of one epoch can read together: tables that several of them scan, each of them once.
pub(super) fn shared_tables(plans: &[Arc<dyn ExecutionPlan>]) -> BTreeMap<String, SharedTable> {
    let mut scans: BTreeMap<String, Vec<(usize, &ScanExec)>> = BTreeMap::new();
    for (number, plan) in plans.iter().enumerate() {
        collect(plan, number, &mut scans);
    }
    let shared = scans.into_iter().filter_map(|(table, scans)| {
        let is_once = scans.windows(2).all(|pair| pair[0].0 != pair[1].0);
        let (plans, tasks) = (scans.len(), scans[0].1.partitions().len());
        let limit = (BYTES / tasks.max(1)).max(SPAN_BYTES);
        let mut columns: Vec<usize> = scans.iter().flat_map(|(_, scan)| scan.read_columns().to_vec()).collect();
        columns.sort_unstable();
        columns.dedup();
        (is_once && plans > 1).then(|| (table, SharedTable { columns, plans, limit, spans: Mutex::default() }))
    });
    shared.collect()
}

fn collect<'a>(
    plan: &'a Arc<dyn ExecutionPlan>,
    number: usize,
    scans: &mut BTreeMap<String, Vec<(usize, &'a ScanExec)>>,
) {
    if let Some(scan) = plan.downcast_ref::<ScanExec>() {
        scans.entry(scan.table().name.clone()).or_default().push((number, scan));
    }
    plan.children().into_iter().for_each(|child| collect(child, number, scans));
}

impl SharedTable {
    /// The rows of a span for one more plan, in these columns of the table, ascending. `read` reads columns for all plans
    /// (true), or for this one alone. What is read are the same columns: which messages can be read must not depend on
    /// who was faster.
    pub(super) fn read(
        &self,
        span: &Span,
        columns: &[usize],
        read: impl Fn(&[usize], bool) -> Result<SendableRecordBatchStream>,
    ) -> Result<SendableRecordBatchStream> {
        let shared = {
            let mut spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
            match spans.get(span) {
                Some(shared) => Arc::clone(shared),
                None => {
                    let shared = Arc::new(SharedSpan::new(read(&self.columns, true)?, self.plans, self.limit));
                    spans.insert(span.clone(), Arc::clone(&shared));
                    shared
                }
            }
        };
        let place = |column| self.columns.binary_search(column).ok();
        // The kinds of a changelog's rows are the last column.
        let kinds = is_updating(&shared.schema).then_some(self.columns.len());
        let places: Vec<usize> = columns.iter().filter_map(place).chain(kinds).collect();
        let schema: SchemaRef = Arc::new(shared.schema.project(&places)?);
        let rows = match Reader::begin(&shared) {
            Some(reader) => stream::unfold(reader, async |mut reader| Some((reader.next().await?, reader))).boxed(),
            None => read(&self.columns, false)?,
        };
        let rows = rows.map(move |batch| Ok(batch?.project(&places)?));
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)))
    }
}

/// A span that is being read.
#[derive(Debug)]
struct SharedSpan {
    schema: SchemaRef,
    /// Whoever holds it reads on.
    input: tokio::sync::Mutex<Input>,
    kept: Mutex<Kept>,
    limit: usize,
    /// Told when batches have gone.
    gone: Notify,
}

struct Input(SendableRecordBatchStream);

impl std::fmt::Debug for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Input")
    }
}

/// The rows that somebody has yet to take.
#[derive(Debug)]
struct Kept {
    batches: VecDeque<RecordBatch>,
    /// The number of the first of them.
    first: u64,
    bytes: usize,
    /// By reader, the number of the batch it takes next.
    readers: HashMap<usize, u64>,
    /// How many plans may yet begin.
    to_begin: usize,
    begun: usize,
    ended: Option<Ended>,
}

/// How the reading ended; an error is told to every reader, with its kind and its whole text.
type Ended = std::result::Result<(), (Kind, String)>;

impl SharedSpan {
    fn new(input: SendableRecordBatchStream, plans: usize, limit: usize) -> Self {
        let (batches, first, bytes, readers, begun, ended) = Default::default();
        Self {
            schema: input.schema(),
            input: tokio::sync::Mutex::new(Input(input)),
            kept: Mutex::new(Kept { batches, first, bytes, readers, to_begin: plans, begun, ended }),
            limit,
            gone: Notify::new(),
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets go of what everybody has.
    fn trim(&self, kept: &mut Kept) {
        let slowest = kept.readers.values().min().copied().unwrap_or(u64::MAX);
        while kept.to_begin == 0 && kept.first < slowest {
            let Some(batch) = kept.batches.pop_front() else { break };
            kept.bytes -= batch.get_array_memory_size();
            kept.first += 1;
            self.gone.notify_waiters();
        }
    }
}

/// One plan's way through a shared span.
struct Reader {
    shared: Arc<SharedSpan>,
    number: usize,
}

/// What a reader finds.
enum Found {
    Batch(RecordBatch),
    End(Ended),
    /// It is ahead of all others, and may read on.
    Nothing,
    /// It is ahead by as much as may be kept.
    TooMuch,
}

impl Reader {
    /// From the first row on; none, if that is gone already.
    fn begin(shared: &Arc<SharedSpan>) -> Option<Self> {
        let mut kept = shared.kept();
        if kept.to_begin == 0 {
            return None;
        }
        kept.to_begin -= 1;
        let number = kept.begun;
        kept.begun += 1;
        kept.readers.insert(number, 0);
        Some(Self { shared: Arc::clone(shared), number })
    }

    /// The next batch; none behind the last one, or behind an error.
    async fn next(&mut self) -> Option<DfResult<RecordBatch>> {
        let shared = Arc::clone(&self.shared);
        loop {
            let gone = shared.gone.notified();
            match self.look() {
                Found::Batch(batch) => return Some(Ok(batch)),
                Found::End(Ok(())) => return None,
                Found::End(Err((kind, text))) => {
                    // It is told once.
                    shared.kept().readers.remove(&self.number);
                    return Some(Err(Error::new(kind, text).into()));
                }
                Found::TooMuch => gone.await,
                Found::Nothing => {
                    let mut input = shared.input.lock().await;
                    // Another may have read on meanwhile.
                    if !matches!(self.look_only(), Found::Nothing) {
                        continue;
                    }
                    let batch = input.0.next().await;
                    let mut kept = shared.kept();
                    match batch {
                        Some(Ok(batch)) => {
                            kept.bytes += batch.get_array_memory_size();
                            kept.batches.push_back(batch);
                        }
                        Some(Err(error)) => {
                            let error = Error::from(error);
                            kept.ended = Some(Err((error.kind(), error.chain())));
                        }
                        None => kept.ended = Some(Ok(())),
                    }
                }
            }
        }
    }

    /// What there is, which is taken if it is a batch.
    fn look(&self) -> Found {
        let found = self.look_only();
        if matches!(found, Found::Batch(_)) {
            let mut kept = self.shared.kept();
            kept.readers.entry(self.number).and_modify(|at| *at += 1);
            self.shared.trim(&mut kept);
        }
        found
    }

    fn look_only(&self) -> Found {
        let mut kept = self.shared.kept();
        let Some(at) = kept.readers.get(&self.number).copied() else { return Found::End(Ok(())) };
        if let Some(batch) = kept.batches.get((at - kept.first) as usize) {
            return Found::Batch(batch.clone());
        }
        if let Some(ended) = &kept.ended {
            return Found::End(ended.clone());
        }
        if kept.bytes >= self.shared.limit {
            // Only those who have begun are waited for.
            kept.to_begin = 0;
            self.shared.trim(&mut kept);
        }
        if kept.bytes >= self.shared.limit { Found::TooMuch } else { Found::Nothing }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut kept = self.shared.kept();
        kept.readers.remove(&self.number);
        self.shared.trim(&mut kept);
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, AsArray, Int64Array};
    use arrow::datatypes::Int64Type;
    use futures::TryStreamExt;

    use super::*;
    use crate::connector::Partition;
    use crate::connector::contract::fixture;

    /// Three batches of two columns, of a table that two plans scan; what was asked of the source.
    struct Shared {
        table: SharedTable,
        span: Span,
        asked: Mutex<Vec<(Vec<usize>, bool)>>,
    }

    impl Shared {
        fn new(limit: usize) -> Self {
            let table = SharedTable { columns: vec![0, 1], plans: 2, limit, spans: Mutex::default() };
            Self { table, span: Span::new(Partition::new("t", 0), 0, 6), asked: Mutex::default() }
        }

        fn read(&self, columns: &[usize]) -> SendableRecordBatchStream {
            let column = |numbers: [i64; 2]| Arc::new(Int64Array::from(numbers.to_vec())) as ArrayRef;
            let batch = |n: i64| RecordBatch::try_from_iter([("a", column([n, n + 1])), ("b", column([-n, -n - 1]))]);
            let all: Vec<RecordBatch> = [0, 2, 4].map(|n| batch(n).unwrap()).to_vec();
            let read = |columns: &[usize], is_for_all: bool| {
                self.asked.lock().unwrap().push((columns.to_vec(), is_for_all));
                let batches: Vec<_> = all.iter().map(|batch| Ok(batch.project(columns)?)).collect();
                Ok(fixture::stream_of(&Arc::new(all[0].schema().project(columns)?), batches))
            };
            self.table.read(&self.span, columns, read).unwrap()
        }
    }

    async fn numbers(rows: SendableRecordBatchStream) -> Vec<i64> {
        let batches: Vec<RecordBatch> = rows.try_collect().await.unwrap();
        batches.iter().flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec()).collect()
    }

    #[tokio::test]
    async fn plans_that_keep_pace_read_once() {
        let shared = Shared::new(1 << 20);
        let (first, second) = (shared.read(&[0]), shared.read(&[1]));
        let (first, second) = futures::join!(numbers(first), numbers(second));
        assert_eq!((first, second), ((0..6).collect(), (-5..=0).rev().collect()));
        assert_eq!(*shared.asked.lock().unwrap(), [(vec![0, 1], true)]);
    }

    /// Which messages can be read depends on the columns, and must not depend on who was faster.
    #[tokio::test]
    async fn one_that_begins_too_late_reads_the_same_columns() {
        let shared = Shared::new(1);
        assert_eq!(
            numbers(shared.read(&[0])).await,
            (0..6).collect::<Vec<_>>(),
            "it waits for nobody who has not begun"
        );
        assert_eq!(numbers(shared.read(&[1])).await, (-5..=0).rev().collect::<Vec<_>>());
        assert_eq!(*shared.asked.lock().unwrap(), [(vec![0, 1], true), (vec![0, 1], false)]);
    }

    #[tokio::test]
    async fn whoever_is_ahead_waits_for_one_that_has_begun_until_that_one_is_gone() {
        let shared = Shared::new(1);
        let (ahead, mut behind) = (shared.read(&[0]), shared.read(&[1]));
        let mut ahead = Box::pin(numbers(ahead));
        let waits = tokio::time::timeout(std::time::Duration::from_millis(50), &mut ahead).await;
        assert!(waits.is_err(), "more is kept than may be");
        assert_eq!(behind.try_next().await.unwrap().unwrap().num_rows(), 2);
        drop(behind);
        assert_eq!(ahead.await, (0..6).collect::<Vec<_>>());
    }
}

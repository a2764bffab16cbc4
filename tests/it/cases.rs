//! Cases with exact answers: what each operator emits, epoch by epoch. One text file a case, in `cases/`.
//!
//! A file's first lines say what it shows. Then
//!
//! ```text
//! table NAME (columns…)                a topic in memory of that name
//! query INSERT INTO … SELECT …         may go on in indented lines
//! batch TEXT -> TEXT                   in the query of the batch answer, where the order is left open
//! epoch                                the rows that follow arrive, and one step is made
//! > NAME PARTITION: value, value       a row; NULL and '' as in SQL, 00:00:05 is a time on 2026-01-01
//! wait DURATION                        before it: so much time passes
//! end                                  before it: nothing more will come
//! < value, value                       a row that comes out in this epoch, in order of the sorted lines
//! << value, value                      a row that goes to the table `late`
//! idle                                 no epoch was needed
//! watermark TIME, idle PARTITIONS, state ROWS, late N
//!                                      what the epoch says of itself, where a case wants to show it
//! refused TEXT                         instead of epochs: the query is refused, and the message holds TEXT
//! ```
//!
//! Beyond that, every case must say the same if the query is closed and opened anew after each epoch; and every case
//! whose rows are all in time must give DataFusion's batch answer over the same rows, however they are cut into epochs
//! and whatever the parallelism.
//!
//! With MILLSTREAM_WRITE_CASES set, what follows the inputs of each epoch is written anew; read it before you commit it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray, TimestampMillisecondArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Int8Type, Schema, TimeUnit};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::datasource::MemTable;
use futures::TryStreamExt;
use millstream::catalog::TableDefinition;
use millstream::checkpoint::{Commit, inspect};
use millstream::clock::Clock;
use millstream::connector::memory::{Memory, MemoryConnector};
use millstream::connector::{Connector, Connectors};
use millstream::plan::changes::{RowKind, is_updating};
use millstream::query::progress::{EpochProgress, Event, Reporter};
use millstream::query::{Query, QuerySpec, Step};
use millstream::session::{Outcome, Session};
use millstream::sql::options::parse_duration;
use millstream::storage::Stores;
use millstream::storage::faults::{Gate, Moment};

use crate::harness::gated;

/// 2026-01-01 00:00:00.
const START_MS: i64 = 1_767_225_600_000;
const DAY: &str = "2026-01-01";

/// A query with the rows it reads, epoch by epoch.
#[derive(Debug, Clone, Default)]
pub struct Case {
    intro: Vec<String>,
    tables: Vec<String>,
    settings: Vec<String>,
    query: String,
    batch: Option<(String, String)>,
    epochs: Vec<Epoch>,
    refused: Option<String>,
}

#[derive(Debug, Clone, Default)]
struct Epoch {
    wait: Option<String>,
    end: bool,
    /// Table, partition, values.
    rows: Vec<(String, u32, String)>,
    says: Vec<String>,
}

/// What a run gave.
pub struct Ran {
    /// All rows, sorted, with changes carried out.
    pub answer: Vec<String>,
    /// How many rows were late.
    pub late: u64,
    /// By row, in the order in which they were added: the watermark of the epoch before the one that read it, in ms.
    pub late_before: Vec<Option<i64>>,
    /// Whether it was stopped.
    pub stopped: bool,
}

/// By how much a floating-point answer may differ from the batch's, in parts of it: sums are rounded in another order.
pub const ROUNDING: f64 = 1e-9;
/// The same of an `approx_…` function, whose method sees the rows in another order.
pub const APPROXIMATION: f64 = 0.05;

/// Whether two sorted answers say the same. The numbers of a column may differ by its `tolerance`, in parts of the larger
/// one or, if both are small, of 1.
pub fn is_same(found: &[String], expected: &[String], tolerance: impl Fn(usize) -> f64) -> bool {
    fn cells(line: &str) -> Vec<&str> {
        line.trim_start_matches("< ").split(", ").collect()
    }
    let is_near = |(column, (a, b)): (usize, (&str, &str))| match (a.parse::<f64>(), b.parse::<f64>()) {
        _ if a == b => true,
        (Ok(a), Ok(b)) => (a - b).abs() <= tolerance(column) * a.abs().max(b.abs()).max(1.0),
        _ => false,
    };
    let is_same_line = |(a, b): (&String, &String)| {
        let (a, b) = (cells(a), cells(b));
        a.len() == b.len() && a.into_iter().zip(b).enumerate().all(is_near)
    };
    found.len() == expected.len() && found.iter().zip(expected).all(is_same_line)
}

impl Case {
    /// A query over these tables, with no row yet.
    pub fn of(tables: Vec<String>, query: String) -> Self {
        Self { tables, query, ..Self::default() }
    }

    /// One more row, in the last epoch.
    pub fn add_row(&mut self, table: &str, partition: u32, values: String) {
        if self.epochs.is_empty() {
            self.epochs.push(Epoch::default());
        }
        self.epochs.last_mut().unwrap().rows.push((table.to_owned(), partition, values));
    }

    fn rows(&self) -> Vec<(String, u32, String)> {
        self.epochs.iter().flat_map(|epoch| epoch.rows.clone()).collect()
    }

    fn parse(text: &str) -> Self {
        let mut case = Case::default();
        let mut before = Epoch::default();
        for line in text.lines() {
            let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
            match word {
                _ if line.starts_with('#') => case.intro.push(line.to_owned()),
                _ if line.starts_with("  ") => {
                    let _ = write!(case.query, "\n{line}");
                }
                "" => {}
                "table" => case.tables.push(rest.to_owned()),
                "set" => case.settings.push(rest.to_owned()),
                "query" => case.query = rest.to_owned(),
                "batch" => {
                    let (from, to) = rest.split_once(" -> ").unwrap_or_else(|| panic!("no arrow: {line}"));
                    case.batch = Some((from.to_owned(), to.to_owned()));
                }
                "refused" => case.refused = Some(rest.to_owned()),
                "wait" => before.wait = Some(rest.to_owned()),
                "end" => before.end = true,
                "epoch" => case.epochs.push(std::mem::take(&mut before)),
                ">" => {
                    let (place, values) = rest.split_once(':').unwrap_or_else(|| panic!("no values: {line}"));
                    let (table, partition) = place.split_once(' ').unwrap_or((place, "0"));
                    let row = (table.to_owned(), partition.parse().unwrap(), values.trim().to_owned());
                    case.epochs.last_mut().unwrap().rows.push(row);
                }
                _ => case
                    .epochs
                    .last_mut()
                    .unwrap_or_else(|| panic!("before any epoch: {line}"))
                    .says
                    .push(line.to_owned()),
            }
        }
        case
    }

    /// The file anew, with what was said.
    fn print(&self, said: &[Vec<String>]) -> String {
        let mut text = self.intro.join("\n") + "\n\n";
        self.settings.iter().for_each(|setting| text += &format!("set {setting}\n"));
        self.tables.iter().for_each(|table| text += &format!("table {table}\n"));
        text += &format!("query {}\n", self.query);
        self.batch.iter().for_each(|(from, to)| text += &format!("batch {from} -> {to}\n"));
        for (epoch, said) in self.epochs.iter().zip(said) {
            text += "\n";
            if let Some(wait) = &epoch.wait {
                text += &format!("wait {wait}\n");
            }
            text += if epoch.end { "end\nepoch\n" } else { "epoch\n" };
            for (table, partition, values) in &epoch.rows {
                text += &format!("> {table} {partition}: {values}\n");
            }
            said.iter().for_each(|line| text += &format!("{line}\n"));
        }
        text
    }
}

/// A world of its own for one run of a case.
struct Run {
    memory: Memory,
    clock: Clock,
    stores: Stores,
    session: Session,
}

impl Run {
    fn new(case: &Case, parallelism: usize) -> Self {
        let (memory, clock) = (Memory::new(), Clock::seeded(1, START_MS));
        let stores = Stores::new(clock.clone());
        Self::in_world(case, parallelism, memory, clock, stores, None)
    }

    /// The same, each store and sink call of which goes through the gate.
    fn gated(&self, case: &Case, parallelism: usize, gate: &Arc<Gate>) -> Self {
        Self::in_world(case, parallelism, self.memory.clone(), self.clock.clone(), self.stores.clone(), Some(gate))
    }

    fn in_world(
        case: &Case,
        parallelism: usize,
        memory: Memory,
        clock: Clock,
        stores: Stores,
        gate: Option<&Arc<Gate>>,
    ) -> Self {
        let connector: Arc<dyn Connector> = Arc::new(MemoryConnector::new(memory.clone()));
        let (connector, seen) = match gate {
            None => (connector, stores.clone()),
            Some(gate) => (gated(connector, gate), stores.wrapped(Arc::new(Arc::clone(gate)))),
        };
        let connectors = Connectors::none().with(connector);
        let mut session = Session::with("case", connectors, seen, clock.clone()).unwrap();
        session.set("checkpoint.location", "memory://checkpoints").unwrap();
        session.set("parallelism", &parallelism.to_string()).unwrap();
        for setting in &case.settings {
            let (key, value) = setting.split_once(" = ").unwrap();
            session.set(key, value).unwrap();
        }
        Self { memory, clock, stores, session }
    }

    async fn plan(&mut self, case: &Case) -> millstream::error::Result<QuerySpec> {
        for table in &case.tables {
            let name = table.split([' ', '(']).next().unwrap();
            let create = format!("CREATE TABLE {table} WITH ('connector' = 'memory', 'topic' = '{name}')");
            self.session.execute_script(&create).await?;
            // A topic that nothing was appended to has a partition all the same.
            let definition = &self.session.tables()[name];
            self.memory.append(name, 0, rows(definition, &[]));
        }
        let mut outcomes = self.session.execute_script(&case.query).await?;
        let Some(Outcome::Query(spec)) = outcomes.pop() else { panic!("no query: {}", case.query) };
        Ok(*spec)
    }

    /// What was written, when changes are carried out: what was taken back is not there.
    fn folded(&self) -> Vec<String> {
        let mut rows: Vec<String> = vec![];
        for batch in self.memory.rows("out") {
            if !is_updating(&batch.schema()) {
                rows.extend(lines(&batch));
                continue;
            }
            let columns: Vec<usize> = (0..batch.num_columns() - 1).collect();
            let kinds = batch.column(columns.len()).as_primitive::<Int8Type>();
            for (line, kind) in lines(&batch.project(&columns).unwrap()).into_iter().zip(kinds.values()) {
                if RowKind::of(*kind) == RowKind::UpdateBefore {
                    let place = rows.iter().position(|row| *row == line).expect("what is taken back was there");
                    rows.remove(place);
                } else {
                    rows.push(line);
                }
            }
        }
        rows.sort();
        rows
    }

    fn append(&self, epoch: &[(String, u32, String)]) {
        for (table, partition, values) in epoch {
            let definition = &self.session.tables()[table.as_str()];
            self.memory.append(table, *partition, rows(definition, &[values]));
        }
    }

    /// What was written after the first `known` rows of the target and of the table for late rows, a line each.
    fn written(&self, known: &mut [usize; 2]) -> Vec<String> {
        let mut written = vec![];
        for ((topic, mark), known) in [("out", ""), ("late", "<")].iter().zip(known) {
            let lines: Vec<String> = self.memory.rows(topic).iter().flat_map(lines).collect();
            let mut new: Vec<String> = lines[*known..].iter().map(|line| format!("{mark}{line}")).collect();
            *known = lines.len();
            new.sort();
            written.extend(new);
        }
        written
    }

    fn complete(&self) {
        self.session.tables().keys().for_each(|table| self.memory.complete(table));
    }
}

/// Values as a batch of the table's stored columns.
fn rows(table: &TableDefinition, lines: &[&String]) -> RecordBatch {
    let schema = table.stored_schema();
    let cell = |line: &&String, index: usize| {
        let value = line.split(',').nth(index).unwrap_or_else(|| panic!("{line}: too few values")).trim();
        let is_time = value.len() >= 8 && value.as_bytes()[2] == b':' && value.as_bytes()[0].is_ascii_digit();
        match value {
            "NULL" => None,
            _ if is_time => Some(format!("{DAY} {value}")),
            _ => Some(value.trim_matches('\'').to_owned()),
        }
    };
    let column = |index: usize| -> ArrayRef {
        let texts: ArrayRef = Arc::new(lines.iter().map(|line| cell(line, index)).collect::<StringArray>());
        cast(&texts, schema.field(index).data_type()).unwrap()
    };
    let columns = (0..schema.fields().len()).map(column).collect();
    RecordBatch::try_new(Arc::clone(&schema), columns).unwrap()
}

/// Rows as lines; times without the day they are all on.
fn lines(batch: &RecordBatch) -> Vec<String> {
    let options = FormatOptions::new().with_null("NULL").with_timestamp_format(Some("%Y-%m-%d %H:%M:%S%.f"));
    let columns: Vec<_> = batch.columns().iter().map(|c| ArrayFormatter::try_new(c, &options).unwrap()).collect();
    let cell = |column: &ArrayFormatter<'_>, row: usize| column.value(row).to_string().replace(&format!("{DAY} "), "");
    (0..batch.num_rows())
        .map(|row| format!("< {}", columns.iter().map(|c| cell(c, row)).collect::<Vec<_>>().join(", ")))
        .collect()
}

fn said(epoch: &EpochProgress, wanted: &[String]) -> Vec<String> {
    let wants = |word: &str| wanted.iter().any(|line| line.starts_with(word));
    let mut lines = vec![];
    if wants("watermark") {
        let time = |ms| chrono::DateTime::from_timestamp_millis(ms).unwrap().format("%H:%M:%S%.f").to_string();
        lines.push(format!("watermark {}", epoch.watermark_ms.map_or("none".into(), time)));
    }
    if wants("idle ") {
        let idle: Vec<String> =
            epoch.sources.values().flat_map(|source| &source.idle).map(ToString::to_string).collect();
        lines.push(format!("idle {}", if idle.is_empty() { "none".into() } else { idle.join(", ") }));
    }
    if wants("state") {
        lines.push(format!("state {}", epoch.state.values().map(|state| state.rows).sum::<usize>()));
    }
    for (operator, partitions) in &epoch.late {
        for (partition, rows) in partitions {
            lines.push(format!("late {rows} for {operator} from {partition}"));
        }
    }
    lines
}

/// Runs the case as it is written, in one run or in one for each epoch; what it says, epoch by epoch, and whether any
/// row was late.
async fn as_written(case: &Case, is_reopened: bool) -> (Vec<Vec<String>>, bool) {
    let mut run = Run::new(case, 2);
    let events: Arc<Mutex<Vec<EpochProgress>>> = Arc::default();
    let seen = Arc::clone(&events);
    let reporter = Reporter::new(move |event| {
        if let Event::Epoch(epoch) = event {
            seen.lock().unwrap().push(*epoch);
        }
    });
    let spec = match run.plan(case).await {
        Ok(spec) => spec,
        Err(error) => return (vec![vec![format!("refused {}", error.chain())]], true),
    };
    assert_eq!(case.refused, None, "the query runs");
    let open = async || Query::open(spec.clone(), reporter.clone()).await.unwrap_or_else(|e| case.failed(&e));
    let mut query = open().await;
    let (mut known, mut all, mut any_late) = ([0; 2], vec![], false);
    for epoch in &case.epochs {
        if let Some(wait) = &epoch.wait {
            run.clock.advance(parse_duration(wait).unwrap().as_millis() as i64);
        }
        if epoch.end {
            run.complete();
        }
        run.append(&epoch.rows);
        let step = query.step().await.unwrap_or_else(|e| panic!("{}", e.chain()));
        let mut lines = run.written(&mut known);
        match step {
            Step::Committed(_) => {
                let progress = events.lock().unwrap().pop().unwrap();
                any_late |= !progress.late.is_empty();
                lines.extend(said(&progress, &epoch.says));
            }
            Step::Idle | Step::Finished => lines.push("idle".into()),
        }
        all.push(lines);
        if is_reopened {
            query.close().await;
            query = open().await;
        }
    }
    query.close().await;
    (all, any_late)
}

impl Case {
    /// All rows, in epochs of these sizes over and over; then the stream ends. At the call that `stop` names the process
    /// is gone, and another one goes on.
    pub async fn run(&self, epochs: &[usize], parallelism: usize, stop: Option<(u64, Moment)>) -> Ran {
        let mut run = Run::new(self, parallelism);
        let late: Arc<Mutex<u64>> = Arc::default();
        let reporter = || {
            let late = Arc::clone(&late);
            Reporter::new(move |event| {
                if let Event::Epoch(epoch) = event {
                    *late.lock().unwrap() += epoch.late.values().flat_map(|p| p.values()).sum::<u64>();
                }
            })
        };
        let (call, moment) = stop.unwrap_or((0, Moment::Before));
        let gate = Gate::new(call, moment);
        let mut gated = run.gated(self, parallelism, &gate);
        let spec = run.plan(self).await.unwrap_or_else(|e| self.failed(&e));
        let first = gated.plan(self).await.unwrap_or_else(|e| self.failed(&e));
        let all = self.rows();
        let (mut rest, mut sizes) = (all.as_slice(), epochs.iter().cycle());
        // Goes on where it stands, until the stream has ended.
        let mut go_on = async |spec| {
            let mut query = Query::open(spec, reporter()).await.unwrap_or_else(|e| self.failed(&e));
            loop {
                let size = rest.len().min(*sizes.next().unwrap());
                let (now, later) = rest.split_at(size);
                run.append(now);
                rest = later;
                if rest.is_empty() {
                    run.complete();
                }
                if query.step().await.unwrap_or_else(|e| self.failed(&e)) == Step::Finished {
                    break;
                }
            }
            query.close().await;
        };
        let stopped = tokio::select! {
            () = gate.tripped() => true,
            () = go_on(first) => false,
        };
        if stopped {
            go_on(spec).await;
        }
        let late = *late.lock().unwrap();
        let checkpoint = run.stores.open("memory://checkpoints", &Default::default()).unwrap();
        let commits = inspect::commits(&checkpoint, "case/out", usize::MAX).await.unwrap();
        Ran { answer: run.folded(), late, late_before: self.late_before(&commits), stopped }
    }

    fn failed<T>(&self, error: &millstream::error::Error) -> T {
        panic!("{}: {}", self.query, error.chain())
    }

    fn late_before(&self, commits: &[Commit]) -> Vec<Option<i64>> {
        let mut seen: BTreeMap<(String, u32), u64> = BTreeMap::new();
        let mut late_before = vec![];
        for (table, partition, _) in &self.rows() {
            let next = seen.entry((table.clone(), *partition)).or_default();
            let offset = std::mem::replace(next, *next + 1);
            let has_read = |commit: &Commit| {
                commit.sources[table].iter().any(|(p, read)| p.number == *partition && read.next > offset)
            };
            let epoch = commits.iter().position(has_read).expect("every row is read");
            late_before.push(epoch.checked_sub(1).and_then(|before| commits[before].watermark_ms));
        }
        late_before
    }
}

impl Case {
    /// Why the query is refused, if it is.
    pub async fn refusal(&self) -> Option<String> {
        let planned = Run::new(self, 1).plan(self).await;
        planned.err().map(|error| error.chain())
    }

    /// DataFusion's batch answer: the same SELECT, planned over static tables. None with computed columns, which these lack.
    pub async fn batch_answer(&self) -> Option<Vec<String>> {
        let select = self.query.split_once("INSERT INTO out").unwrap().1;
        let select = match &self.batch {
            Some((from, to)) => {
                assert!(select.contains(from), "there is no {from}");
                select.replace(from, to)
            }
            None => select.to_owned(),
        };
        self.batch_answer_to(&select, &vec![None; self.rows().len()]).await
    }

    /// The batch answer to another SELECT, which may ask for `late_before`, the watermark of the epoch before, and for
    /// `row_at`, the row's place by partition and offset.
    pub async fn batch_answer_to(&self, select: &str, late_before: &[Option<i64>]) -> Option<Vec<String>> {
        let mut run = Run::new(self, 1);
        for table in &self.tables {
            run.session
                .execute_script(&format!("CREATE TABLE {table} WITH ('connector' = 'memory', 'topic' = 'x')"))
                .await
                .unwrap();
        }
        if run.session.tables().values().any(TableDefinition::has_computed_columns) {
            return None;
        }
        let mut by_table: BTreeMap<&str, (Vec<&String>, Vec<Option<i64>>)> = BTreeMap::new();
        let rows_added = self.rows();
        let mut all: Vec<_> = rows_added.iter().zip(late_before).collect();
        // Rows that are equal in an order come by partition and offset.
        all.sort_by_key(|((_, partition, _), _)| *partition);
        for ((table, _, values), late_before) in all {
            let (lines, marks) = by_table.entry(table).or_default();
            lines.push(values);
            marks.push(*late_before);
        }
        let context = run.session.context();
        for (name, definition) in run.session.tables() {
            let (lines, marks) = by_table.remove(name.as_str()).unwrap_or_default();
            let batch = rows(definition, &lines);
            let marked = Field::new("late_before", DataType::Timestamp(TimeUnit::Millisecond, None), true);
            let more = [Arc::new(marked), Arc::new(Field::new("row_at", DataType::Int64, false))];
            let fields = batch.schema().fields().iter().cloned().chain(more).collect::<Vec<_>>();
            let places: ArrayRef = Arc::new((0..marks.len() as i64).collect::<Int64Array>());
            let marks: ArrayRef = Arc::new(TimestampMillisecondArray::from(marks));
            let columns = batch.columns().iter().cloned().chain([marks, places]).collect();
            let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap();
            let table = MemTable::try_new(batch.schema(), vec![vec![batch]]).unwrap();
            let reference = datafusion::common::TableReference::bare(name.as_str());
            context.deregister_table(reference.clone()).unwrap();
            context.register_table(reference, Arc::new(table)).unwrap();
        }
        // The target's types, as the INSERT casts to them.
        let target = run.session.tables()["out"].writable_schema();
        let outcome = run.session.execute_script(select).await.unwrap().pop();
        let Some(Outcome::Rows(found)) = outcome else { panic!("no rows: {select}") };
        let batches: Vec<RecordBatch> = found.stream.try_collect().await.unwrap();
        let fit = |batch: &RecordBatch| {
            let columns = batch.columns().iter().zip(target.fields());
            let columns = columns.map(|(column, field)| cast(column, field.data_type()).unwrap()).collect();
            RecordBatch::try_new(Arc::clone(&target), columns).unwrap()
        };
        let mut answer: Vec<String> = batches.iter().flat_map(|batch| lines(&fit(batch))).collect();
        answer.sort();
        Some(answer)
    }
}

async fn check(path: &Path) {
    let name = path.file_stem().unwrap().to_string_lossy().into_owned();
    let text = std::fs::read_to_string(path).unwrap();
    let case = Case::parse(&text);
    assert!(!case.intro.is_empty(), "{name}: the first lines say what it shows");
    let (said, any_late) = as_written(&case, false).await;
    if let Some(refused) = &case.refused {
        assert!(said[0][0].contains(refused.as_str()), "{name}: {}", said[0][0]);
        return;
    }
    assert!(!said[0].iter().any(|line| line.starts_with("refused")), "{name}: {}", said[0][0]);
    if std::env::var_os("MILLSTREAM_WRITE_CASES").is_some() {
        std::fs::write(path, case.print(&said)).unwrap();
    } else {
        for (number, (epoch, said)) in case.epochs.iter().zip(&said).enumerate() {
            assert_eq!(&epoch.says, said, "{name}: epoch {}", number + 1);
        }
    }
    let has_ttl = case.settings.iter().any(|setting| setting.starts_with("state.ttl"));
    // What state.ttl has ended goes from memory chunk by chunk, and other chunks are read back than were written.
    let without_state = |mut epochs: Vec<Vec<String>>| {
        epochs.iter_mut().for_each(|lines| lines.retain(|line| !has_ttl || !line.starts_with("state ")));
        epochs
    };
    let (reopened, _) = as_written(&case, true).await;
    assert_eq!(without_state(reopened), without_state(said), "{name}: in a run for each epoch");
    if any_late || has_ttl {
        return;
    }
    // What an epoch's clock says has no batch answer, nor has which result comes out first.
    let asks = |text: &str| case.query.contains(text);
    if asks("CURRENT_WATERMARK") || asks("now()") || asks("GROUP BY") && asks("PROCTIME()") {
        return;
    }
    let Some(answer) = case.batch_answer().await else { return };
    for (parallelism, at_once) in [(1, 1), (3, 1), (2, 2), (2, 3), (1, 1000), (3, 1000)] {
        let Ran { answer: found, late, .. } = case.run(&[at_once], parallelism, None).await;
        if late == 0 {
            assert_eq!(found, answer, "{name}: {at_once} rows an epoch, parallelism {parallelism}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_case_gives_its_answer_and_the_batch_answer() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/cases");
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "case"));
    paths.sort();
    let only = std::env::var("MILLSTREAM_CASE").ok();
    assert!(!paths.is_empty(), "no cases in {folder}");
    for path in paths.iter().filter(|path| only.as_ref().is_none_or(|o| path.to_string_lossy().contains(o.as_str()))) {
        println!("{}", path.display());
        check(path).await;
    }
}

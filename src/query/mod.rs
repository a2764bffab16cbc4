//! A continuous query: an epoch at a time, exactly as its intents say.
//!
//! [`Query::step`] is the whole of it: plan offsets, intend, bind, run, publish, commit. Around it, [`Query::drive`] waits for
//! the trigger, redoes an epoch after transient trouble, and ends when told to.
//!
//! Guarantee: after a crash between any two writes, running the query again gives what one run without a crash would
//! have given, in every destination to the extent of its guarantee; but for messages that are gone by then, where a table
//! goes on without them ([`loss`]). Of two runs the newest goes on, and the other ends
//! with an error of kind [`Fenced`](crate::error::Kind::Fenced), having changed nothing that is readable.
//!
//! Not promised: that two *different* queries on one destination know of each other.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use datafusion::execution::SessionState;
use datafusion::physical_plan::ExecutionPlan;
use futures::future::{BoxFuture, try_join_all};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use crate::catalog::TableDefinition;
use crate::checkpoint::{Commit, Cut, Intent, Log, QueryRecord, SourceCommit};
use crate::connector::dead_letters::DeadLetters;
use crate::connector::{Connectors, Environment, Offsets, Owner, Partition, Pin, Published, Sink};
use crate::error::{Error, Result};
use crate::plan::aggregate::Shape;
use crate::plan::opener::Opener;
use crate::plan::{Binding, StreamPlan};
use crate::state::StateCommit;
use crate::storage::Location;

pub mod definition;
pub mod loss;
pub mod once;
pub mod pace;
pub mod planning;
pub mod progress;
pub mod recovery;
pub mod replay;
pub mod rewind;
pub mod trigger;
pub mod watermark;

mod acknowledge;
mod epoch;
mod open;
mod run;
mod salvage;

use acknowledge::Acknowledged;
use definition::Definition;
use epoch::Work;
use pace::{LimitedBy, Pace};
use progress::{Durations, Reporter};
use salvage::{Doubt, Looked};
use trigger::Trigger;

/// Every how many epochs records are pruned. It runs beside the next epoch, which takes longer for each file that goes.
const HOUSEKEEPING: u64 = 10;
/// Every how many epochs litter is swept, at most: that costs what is stored, and a run may have few epochs…
const SWEEPING: u64 = 50;
/// … and how long after a sweep the next one follows: litter is left alone for an hour anyway.
const SWEEP: Duration = Duration::from_secs(60 * 60);
/// How long a query that ends waits for that.
const CLEARING_UP: Duration = Duration::from_secs(10);

/// Plans a definition again: an intent is finished under the one it names.
pub type Replan = Arc<dyn Fn(Definition) -> BoxFuture<'static, Result<Planned>> + Send + Sync>;

/// By table, the partitions that do not hold the watermark back.
type IdlePartitions = BTreeMap<String, Vec<Partition>>;

/// A definition with its plan.
#[derive(Debug, Clone)]
pub struct Planned {
    /// What the plans were made from.
    pub definition: Definition,
    /// What it computes: one, or those of a statement set.
    pub outputs: Vec<Output>,
    /// What it remembers, operator by operator.
    pub shapes: Vec<Arc<Shape>>,
    /// What plans the epochs: the functions and static tables of the session.
    pub state: SessionState,
    /// The table that late rows go to.
    pub late: Option<Arc<TableDefinition>>,
    /// The tables that dead letters go to.
    pub dead_letters: Vec<DeadLetterTable>,
}

/// A table that dead letters go to.
#[derive(Debug, Clone)]
pub struct DeadLetterTable {
    /// The table.
    pub table: Arc<TableDefinition>,
    /// What it is, for the log.
    pub identity: String,
    /// Whose they are, by source.
    pub letters: BTreeMap<String, Arc<DeadLetters>>,
}

/// A plan, and where its rows go.
#[derive(Debug, Clone)]
pub struct Output {
    /// The plan.
    pub plan: StreamPlan,
    /// The target, with the options of today.
    pub target: Arc<TableDefinition>,
}

impl Planned {
    /// What it writes, a sink each: the targets first, the tables of dead letters last.
    pub fn targets(&self) -> impl Iterator<Item = &Arc<TableDefinition>> {
        let dead_letters = self.dead_letters.iter().map(|dead| &dead.table);
        self.outputs.iter().map(|output| &output.target).chain(&self.late).chain(dead_letters)
    }

    /// How many of them the definition names; the others are those of dead letters.
    fn defined_targets(&self) -> usize {
        self.outputs.len() + usize::from(self.late.is_some())
    }

    /// What it writes by, for the log, behind those that the definition names.
    fn dead_letter_identities(&self) -> impl Iterator<Item = String> {
        self.dead_letters.iter().map(|dead| dead.identity.clone())
    }

    /// Where sources and state are opened.
    fn opener(&self, connectors: &Connectors, environment: &Environment, owner: Owner) -> Arc<Opener> {
        let letters = self.dead_letters.iter().flat_map(|dead| dead.letters.clone());
        let opener = Opener::new(connectors.clone(), environment.clone(), Some(owner));
        Arc::new(opener.with_dead_letters(letters))
    }

    /// The streams it reads, by name.
    pub fn tables(&self) -> BTreeMap<String, Arc<TableDefinition>> {
        self.outputs.iter().flat_map(|output| output.plan.tables().clone()).collect()
    }

    /// Those of them whose event time counts.
    fn timed_tables(&self) -> BTreeMap<String, Arc<TableDefinition>> {
        let timed = self.outputs.iter().filter(|output| output.plan.is_timed());
        timed.flat_map(|output| output.plan.tables().clone()).collect()
    }

    /// Whether it remembers anything from epoch to epoch.
    pub fn remembers(&self) -> bool {
        self.outputs.iter().any(|output| output.plan.remembers())
    }

    /// The physical plans of one epoch.
    pub async fn epoch(&self, binding: &Binding) -> Result<Vec<Arc<dyn ExecutionPlan>>> {
        try_join_all(self.outputs.iter().map(|output| output.plan.epoch(&self.state, binding))).await
    }
}

/// A query that can be opened.
#[derive(Clone)]
pub struct QuerySpec {
    /// Its name: `[pipeline/]file/target`.
    pub name: String,
    /// What it computes.
    pub planned: Planned,
    /// Plans an older definition.
    pub replan: Replan,
    /// Where its checkpoint lies.
    pub checkpoint: Location,
    /// What connectors get.
    pub environment: Environment,
    /// The connectors that are known.
    pub connectors: Connectors,
    /// When epochs start.
    pub trigger: Trigger,
    /// Whether the brokers' own tools are told where it stands.
    pub acknowledges: bool,
}

impl std::fmt::Debug for QuerySpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "QuerySpec({})", self.name)
    }
}

/// Where a query stands: its newest commit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Position {
    /// The newest committed epoch; 0 before the first.
    pub epoch: u64,
    /// Its time.
    pub batch_time_ms: i64,
    /// By table, where its partitions stand.
    pub sources: BTreeMap<String, SourceCommit>,
    /// Its watermark.
    pub watermark_ms: Option<i64>,
    /// By operator, its state.
    pub state: BTreeMap<String, StateCommit>,
}

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// An epoch is committed.
    Committed(u64),
    /// There was nothing to do, or not enough yet.
    Idle,
    /// There never will be: all streams are read to their end.
    Finished,
}

/// A definition with both ends open: an intent is finished by what its own definition read from and wrote to.
#[derive(Debug)]
struct Opened {
    number: u64,
    planned: Planned,
    opener: Arc<Opener>,
    /// Those of [`Planned::targets`].
    sinks: Vec<Arc<dyn Sink>>,
    /// Of which epoch, and in how many shards, the state is that the opener holds.
    restored: Mutex<Option<(u64, usize)>>,
}

/// The permit to run an epoch: only an intent that was won makes one, and a commit consumes it.
#[derive(Debug)]
pub struct Batch {
    intent: Intent,
    /// What is read: the intent's spans, but what of them is gone.
    cuts: BTreeMap<String, Cut>,
    opened: Arc<Opened>,
    /// By sink, what it pinned.
    pins: Vec<Pin>,
    /// By sink, if its destination holds the epoch already: what is known of that.
    published: Vec<Option<Published>>,
    /// Rule 1, overlapping the run; publishing waits for it.
    looked_again: Option<JoinHandle<Result<()>>>,
    /// When that was, by the monotonic clock.
    looked_us: u64,
    latest: BTreeMap<String, Offsets>,
    /// By table, partitions that could not be reached, and why.
    unreachable: BTreeMap<String, BTreeMap<Partition, String>>,
    /// By table, what kept it from taking all there was.
    limited: BTreeMap<String, LimitedBy>,
    idle: IdlePartitions,
    /// By operator, its state after the epoch, once that is saved.
    state: BTreeMap<String, StateCommit>,
    took: Durations,
}

/// A continuous query that is open.
#[derive(Debug)]
pub struct Query {
    spec: QuerySpec,
    log: Arc<Log>,
    record: QueryRecord,
    /// Today's definition.
    opened: Arc<Opened>,
    /// That of the epoch that is pending, if it is another one.
    older: Option<Arc<Opened>>,
    tasks: usize,
    /// Into how many shards state is divided.
    shards: usize,
    position: Position,
    pending: Option<Box<Batch>>,
    /// Where `available-now` ends.
    until: Option<BTreeMap<String, Offsets>>,
    /// How much an epoch takes.
    pace: Pace,
    /// Whether there was more to read when the newest epoch was planned, and no rate to wait for.
    is_behind: bool,
    reporter: Reporter,
    retries: u32,
    housekeeping: Option<JoinHandle<()>>,
    /// When litter was swept, µs.
    swept_us: Option<u64>,
    acknowledged: Acknowledged,
    doubt: Doubt,
    looked: Looked,
    /// Why recovery could not look at a source: until it has, nothing is read.
    unreached: Option<Error>,
}

impl Query {
    fn look_again(&self, epoch: u64) -> JoinHandle<Result<()>> {
        let log = Arc::clone(&self.log);
        tokio::spawn(async move { log.look_again(epoch).await })
    }

    /// The permit to run what was intended, with the look again under way.
    fn batch(
        &self,
        intent: Intent,
        cuts: BTreeMap<String, Cut>,
        opened: Arc<Opened>,
        pins: Vec<Pin>,
        published: Vec<Option<Published>>,
    ) -> Batch {
        let (looked_again, looked_us) = (Some(self.look_again(intent.epoch)), self.start_us());
        let (latest, unreachable, limited, idle, state, took) = Default::default();
        Batch {
            intent,
            cuts,
            opened,
            pins,
            published,
            looked_again,
            looked_us,
            latest,
            unreachable,
            limited,
            idle,
            state,
            took,
        }
    }

    /// One epoch: these six calls, in this order.
    pub async fn step(&mut self) -> Result<Step> {
        let next = match self.plan_offsets().await? {
            Work::Next(next) => next,
            Work::None(step) => return Ok(step),
        };
        let mut batch = self.intend(next).await?;
        let plans = self.bind(&mut batch).await?;
        self.run(&mut batch, plans).await?;
        let published = self.publish(&mut batch).await?;
        self.commit(batch, published).await
    }

    fn ms_since(&self, start_us: u64) -> f64 {
        (self.spec.environment.clock.monotonic_us().saturating_sub(start_us)) as f64 / 1000.0
    }

    fn start_us(&self) -> u64 {
        self.spec.environment.clock.monotonic_us()
    }

    /// What may follow a commit, now and then; trouble with it is no trouble of the query's.
    async fn settle(&mut self) {
        let epoch = self.position.epoch;
        let is_running = self.housekeeping.as_ref().is_some_and(|running| !running.is_finished());
        let is_time = |every: u64| epoch == 1 || epoch.is_multiple_of(every);
        if !is_time(HOUSEKEEPING) || is_running {
            return;
        }
        if let Err(error) = self.forget().await {
            tracing::warn!(query = self.spec.name, error = error.chain(), "a source could not be told where we are");
        }
        let (log, sinks, journal) = (Arc::clone(&self.log), self.opened.sinks.clone(), self.log.journal());
        let name = self.spec.name.clone();
        let is_old = |swept_us| self.ms_since(swept_us) >= SWEEP.as_secs_f64() * 1000.0;
        let sweeps = is_time(SWEEPING) && self.swept_us.is_none_or(is_old);
        if sweeps {
            self.swept_us = Some(self.start_us());
        }
        self.housekeeping = Some(tokio::spawn(async move {
            let mut outcomes = vec![log.prune().await, open::forget_pins(&journal, epoch).await];
            for sink in &sinks {
                outcomes.push(sink.forget(epoch).await);
            }
            // Last: it may take long, and a run that ends meanwhile has done what costs little.
            if sweeps {
                outcomes.push(log.sweep().await);
                for sink in &sinks {
                    outcomes.push(sink.sweep(epoch).await);
                }
            }
            for error in outcomes.into_iter().filter_map(Result::err) {
                tracing::warn!(query = name, error = error.chain(), "clearing up failed; it is tried again later");
            }
        }));
    }

    /// Tells the sources where the query stands.
    async fn forget(&self) -> Result<()> {
        for (name, table) in &self.opened.planned.tables() {
            self.opened.opener.source(table).await?.forget(&self.offsets(name)).await;
        }
        Ok(())
    }

    /// Forgets what an epoch that did not end well has staged.
    async fn discard(&self) {
        for sink in std::iter::once(&self.opened).chain(&self.older).flat_map(|opened| &opened.sinks) {
            sink.discard(self.position.epoch + 1).await;
        }
    }

    /// Gives back connections and threads.
    pub async fn close(&mut self) {
        self.discard().await;
        self.acknowledge_all().await;
        if let Some(housekeeping) = self.housekeeping.take() {
            // A short run would otherwise never clear up.
            let _ = tokio::time::timeout(CLEARING_UP, housekeeping).await;
        }
        self.opened.close().await;
        if let Some(older) = self.older.take() {
            older.close().await;
        }
    }

    /// Where it stands.
    pub fn position(&self) -> &Position {
        &self.position
    }

    /// Its id: what everything durable outside is named by.
    pub fn id(&self) -> &str {
        &self.record.id
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.spec.name
    }
}

impl Position {
    fn after(commit: Commit) -> Self {
        let Commit { epoch, batch_time_ms, sources, watermark_ms, state, .. } = commit;
        Self { epoch, batch_time_ms, sources, watermark_ms, state }
    }
}

impl Opened {
    /// Whether every operator can say what is complete at this watermark.
    fn can_place(&self, watermark_ms: i64) -> bool {
        let can = |shape: &Arc<Shape>| shape.rising.is_none() || matches!(shape.bound(Some(watermark_ms)), Ok(Some(_)));
        self.planned.shapes.iter().all(can)
    }

    async fn close(&self) {
        for sink in &self.sinks {
            sink.close().await;
        }
        self.opener.close().await;
    }
}

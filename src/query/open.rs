//! Opening a query, and finding the way back after trouble: fence, then read the log, then restore what it remembers.
//!
//! Guarantee: rules 3 and 4 of the log. A definition's plan, sources, sinks and state are open together ([`Opened`]), so an
//! intent is finished by what its own definition read from, wrote to and remembered, whatever the file says today.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::try_join_all;
use tokio::sync::Mutex;
use twox_hash::XxHash64;

use super::acknowledge::Acknowledged;
use super::definition;
use super::pace::Pace;
use super::progress::{Event, Reporter};
use super::recovery::{self, Decision};
use super::salvage::{Doubt, Looked, Survey};
use super::{Opened, Planned, Position, Query, QuerySpec};
use crate::checkpoint::{
    Commit, Cut, DefinitionRecord, Intent, Journal, Log, PartitionCommit, QueryRecord, SourceCommit, VERSION,
};
use crate::connector::{Offsets, Owner, Partition, Pin, Progress, Published, Sink, Span};
use crate::error::{Error, Kind, Result};
use crate::plan::aggregate::Times;
use crate::plan::opener::Opener;
use crate::plan::{Binding, keeps_tasks_apart};
use crate::state::operator::{MAX_FILES, Operator};

/// Notes of what tables of dead letters pinned for epochs whose intents do not know them.
const PINS: &str = "pins";
/// Offsets of a table in the first epoch under `epoch.target-duration`, unless `epoch.initial-rows` says otherwise.
const INITIAL_ROWS: u64 = 10_000;

/// Removes the notes of epochs up to `committed`.
pub(super) async fn forget_pins(journal: &Journal, committed: u64) -> Result<()> {
    journal.remove(PINS, journal.list_up_to(PINS, committed).await?).await
}

impl Query {
    /// Opens a query: registers a run, begins it if it never ran, fences its sinks, and only then reads the log.
    ///
    /// Errors: a changed query that its checkpoint does not fit, a destination that does not fit the log, anything that
    /// cannot be reached.
    pub async fn open(spec: QuerySpec, reporter: Reporter) -> Result<Self> {
        let log = Arc::new(Log::open(&spec.checkpoint, &spec.name, &spec.environment.clock).await?);
        let (record, opener) = Self::begin(&spec, &log).await?;
        let number = Self::define(&spec, &log).await?;
        let planned = spec.planned.clone();
        let sinks = Self::sinks(&spec, &log, &record, &planned).await?;
        let tasks = Self::tasks(&spec, &opener).await?;
        let shards = spec.environment.parallelism.max(1);
        let target = spec.environment.duration("epoch.target-duration");
        let first_rows = spec.environment.number("epoch.initial-rows");
        if first_rows.is_some() && target.is_none() {
            let advice =
                "the setting 'epoch.initial-rows' has no meaning without 'epoch.target-duration'; say both, or neither";
            return Err(Error::usage(advice));
        }
        let pace = Pace::new(target, first_rows.unwrap_or(INITIAL_ROWS));
        let opened = Arc::new(Opened { number, planned, opener, sinks, restored: Mutex::default() });
        let mut query = Self {
            log,
            record,
            opened,
            older: None,
            tasks,
            shards,
            position: Position::default(),
            pending: None,
            until: None,
            pace,
            is_behind: false,
            reporter,
            retries: 0,
            housekeeping: None,
            swept_us: None,
            acknowledged: Acknowledged::default(),
            doubt: Doubt::default(),
            looked: Looked::default(),
            unreached: None,
            spec,
        };
        query.recover().await?;
        query.take_back().await?;
        query.reporter.report(Event::Started {
            query: query.spec.name.clone(),
            id: query.record.id.clone(),
            run: query.log.run(),
            committed: query.position.epoch,
        });
        Ok(query)
    }

    async fn sinks(spec: &QuerySpec, log: &Log, record: &QueryRecord, planned: &Planned) -> Result<Vec<Arc<dyn Sink>>> {
        let owner = Self::owner(log, &record.id);
        let mut sinks = vec![];
        for target in planned.targets() {
            sinks.push(spec.connectors.of(target)?.sink(Arc::clone(target), &spec.environment, &owner).await?);
        }
        Ok(sinks)
    }

    fn owner(log: &Log, id: &str) -> Owner {
        Owner { id: id.into(), journal: log.journal() }
    }

    /// The query's record; a new query resolves its start offsets first, so that they are recorded before the first
    /// wait.
    async fn begin(spec: &QuerySpec, log: &Log) -> Result<(QueryRecord, Arc<Opener>)> {
        let clock = &spec.environment.clock;
        let opener = |id: &str| spec.planned.opener(&spec.connectors, &spec.environment, Self::owner(log, id));
        if let Some(record) = log.query().await? {
            let opener = opener(&record.id);
            return Ok((record, opener));
        }
        let id = clock.random_id();
        let mine = opener(&id);
        let (mut start, mut end) = (BTreeMap::new(), BTreeMap::new());
        for (name, table) in spec.planned.tables() {
            let source = mine.source(&table).await?;
            start.insert(name.clone(), source.start().await?);
            if let Some(mut offsets) = source.end().await? {
                // What comes between the two questions comes later.
                offsets.retain(|partition, _| start[&name].contains_key(partition));
                end.insert(name, offsets);
            }
        }
        let created_ms = clock.now_ms();
        let record = log
            .begin(QueryRecord {
                version: VERSION,
                id: id.clone(),
                name: spec.name.clone(),
                created_ms,
                start,
                end,
                rewound: None,
            })
            .await?;
        if record.id == id {
            return Ok((record, mine));
        }
        mine.close().await;
        let theirs = opener(&record.id);
        Ok((record, theirs))
    }

    /// The number of the definition from now on; a changed one must fit what the checkpoint holds.
    async fn define(spec: &QuerySpec, log: &Log) -> Result<u64> {
        let new = &spec.planned.definition;
        loop {
            let after = match log.newest_definition().await? {
                Some(DefinitionRecord { number, definition, .. }) if definition == *new => return Ok(number),
                Some(DefinitionRecord { number, definition, .. }) => {
                    definition::compare(&definition, new)?;
                    number
                }
                None => 0,
            };
            // Another run may be faster; what it wrote is then looked at, too.
            if let Some(number) = log.define(new, after).await? {
                return Ok(number);
            }
        }
    }

    /// How many tasks an epoch may be cut into: one, if the plan would mix the rows of several. What remembers deals rows
    /// out anew; below it each partition is a task, so that it is known where a late row came from.
    async fn tasks(spec: &QuerySpec, opener: &Arc<Opener>) -> Result<usize> {
        if spec.planned.remembers() {
            return Ok(usize::MAX);
        }
        let partitions = [Partition::new("trial", 0), Partition::new("trial", 1)];
        let trial: Cut = partitions.map(|p| vec![Span::new(p, 0, 1)]).to_vec();
        let cuts = spec.planned.tables().into_keys().map(|name| (name, trial.clone())).collect();
        let opener = Arc::clone(opener);
        let binding = Binding { cuts, times: Times::default(), shards: 1, opener };
        let are_apart = spec.planned.epoch(&binding).await?.iter().all(keeps_tasks_apart);
        Ok(if are_apart { spec.environment.parallelism.max(1) } else { 1 })
    }

    /// Fences, then reads the log, then decides: rules 3 and 4. Also the way back after transient trouble.
    pub(super) async fn recover(&mut self) -> Result<()> {
        self.log.check_newest_run().await?;
        self.discard().await;
        self.fence(&self.opened).await?;
        let mut tail = self.log.tail().await?;
        let mut opened = Arc::clone(&self.opened);
        let number = tail.pending.as_ref().map(|intent| intent.definition).filter(|n| *n != opened.number);
        if let Some(older) = self.older.take_if(|older| Some(older.number) != number) {
            older.close().await;
        }
        if let Some(number) = number {
            // It is finished by the sinks of its own definition, which are asked, once they are fenced.
            opened = match self.older.take() {
                Some(older) => older,
                None => self.opened_as(number).await?,
            };
            // What its sinks have learnt, such as how long a transaction takes, is not to be learnt anew.
            self.older = Some(Arc::clone(&opened));
            self.fence(&opened).await?;
            tail = self.log.tail().await?;
            if tail.pending.as_ref().is_none_or(|intent| intent.definition != number) {
                return Err(Error::transient("another run finished the epoch that this one was about to finish"));
            }
        }
        let positions = Self::positions(&opened, tail.commit.as_ref());
        let progress = Self::progress_of(&opened, tail.commit.as_ref(), &positions).await;
        let decision =
            match progress.and_then(|progress| recovery::decide(&tail, opened.planned.outputs.len(), &progress)) {
                Ok(decision) => decision,
                Err(error) => {
                    // What a destination holds beyond the log may be a newer run's.
                    self.log.check_newest_run().await?;
                    return Err(error);
                }
            };
        self.position = match tail.commit {
            Some(commit) => Position::after(commit),
            None => Position { sources: self.start(), ..Position::default() },
        };
        self.forget().await?;
        let survey = self.survey().await?;
        match decision {
            Decision::Plan => self.restore(&self.opened).await,
            Decision::Redo { intent, published } => {
                // Where a destination stood before is what the next commit knows of one that has the epoch already.
                let known = |(is_published, position): (bool, serde_json::Value)| {
                    is_published.then(|| Published { position, ..Published::default() })
                };
                let published = published.into_iter().zip(positions).map(known).collect();
                self.redo(opened, *intent, published, &survey).await
            }
        }
    }

    /// Gets ready to run an intended epoch again, without what is gone of it.
    async fn redo(
        &mut self,
        opened: Arc<Opened>,
        intent: Intent,
        published: Vec<Option<Published>>,
        survey: &Survey,
    ) -> Result<()> {
        let cuts = survey.left(&intent.sources);
        if cuts != intent.sources {
            for (sink, _) in opened.sinks.iter().zip(&published).filter(|(_, published)| published.is_none()) {
                sink.retract(intent.epoch).await?;
            }
        }
        if intent.shards > 0 {
            // It has to be finished as it was cut.
            self.shards = intent.shards;
        }
        self.restore(&opened).await?;
        let pins = self.pins(&opened, &intent).await?;
        self.pending = Some(Box::new(self.batch(intent, cuts, opened, pins, published)));
        Ok(())
    }

    /// By sink, what the intent pinned. A table of dead letters that it does not know is asked now, and its answer kept
    /// beside the intent: it must be the same should the epoch be run once more.
    async fn pins(&self, opened: &Opened, intent: &Intent) -> Result<Vec<Pin>> {
        let (mut pins, journal) = (intent.pins.clone(), self.log.journal());
        let unreadable = |e| Error::refused("a note beside an intent is no JSON; restore it from a copy").caused_by(e);
        let of_dead_letters = opened.sinks.iter().skip(opened.planned.defined_targets());
        for (sink, identity) in of_dead_letters.zip(opened.planned.dead_letter_identities()) {
            pins.push(match intent.dead_letters.get(&identity) {
                Some(pin) => pin.clone(),
                None => {
                    let name = format!("{:020}-{:016x}.json", intent.epoch, XxHash64::oneshot(0, identity.as_bytes()));
                    if journal.get(PINS, &name).await?.is_none() {
                        let pin = sink.prepare(intent.epoch).await?;
                        let body =
                            serde_json::to_vec(&pin).map_err(|e| Error::internal("a pin is no JSON").caused_by(e))?;
                        journal.create(PINS, &name, body.into()).await?;
                    }
                    let body = journal.get(PINS, &name).await?.unwrap_or_default();
                    serde_json::from_slice(&body).map_err(unreadable)?
                }
            });
        }
        Ok(pins)
    }

    /// Rule 3: shuts older runs out of every sink.
    pub(super) async fn fence(&self, opened: &Opened) -> Result<()> {
        for sink in &opened.sinks {
            if let Err(error) = sink.open(self.log.run()).await {
                return Err(self.shut_out(error).await);
            }
        }
        Ok(())
    }

    /// By sink, what the commit kept of where its destination stood.
    fn positions(opened: &Opened, commit: Option<&Commit>) -> Vec<serde_json::Value> {
        let defined = (0..opened.planned.defined_targets()).map(|index| commit?.sinks.get(index));
        let of_dead_letters =
            opened.planned.dead_letter_identities().map(|identity| commit?.dead_letters.get(&identity));
        let published = defined.chain(of_dead_letters);
        published.map(|published| published.map_or(serde_json::Value::Null, |p| p.position.clone())).collect()
    }

    /// Rule 4: what each sink holds.
    async fn progress_of(
        opened: &Opened,
        commit: Option<&Commit>,
        positions: &[serde_json::Value],
    ) -> Result<Vec<Progress>> {
        let epoch = commit.map_or(0, |commit| commit.epoch);
        try_join_all(opened.sinks.iter().zip(positions).map(|(sink, position)| sink.progress(epoch, position))).await
    }

    /// What it means that a destination has shut this run out: that a newer one goes on, if there is one. Else it was
    /// this run itself, or the destination gave it up for slow, and it may come back.
    pub(super) async fn shut_out(&self, error: Error) -> Error {
        match error.kind() {
            Kind::Fenced => match self.log.check_newest_run().await {
                Ok(()) => {
                    Error::transient("a destination has shut this run out, and there is no newer one").caused_by(error)
                }
                Err(newer) => newer,
            },
            _ => error,
        }
    }

    fn start(&self) -> BTreeMap<String, SourceCommit> {
        let commits = |offsets: &Offsets| {
            let commit = |next: &u64| PartitionCommit { next: *next, ..Default::default() };
            offsets.iter().map(|(partition, next)| (partition.clone(), commit(next))).collect()
        };
        self.record.start.iter().map(|(table, offsets)| (table.clone(), commits(offsets))).collect()
    }

    /// An older definition, which an intent names, with sources and sinks of its own.
    async fn opened_as(&self, number: u64) -> Result<Arc<Opened>> {
        let stored = self.log.definition(number).await?;
        let planned = (self.spec.replan)(stored.definition).await?;
        let owner = Self::owner(&self.log, &self.record.id);
        let opener = planned.opener(&self.spec.connectors, &self.spec.environment, owner);
        let sinks = Self::sinks(&self.spec, &self.log, &self.record, &planned).await?;
        Ok(Arc::new(Opened { number, planned, opener, sinks, restored: Mutex::default() }))
    }

    /// Makes sure that an open definition has the state of the newest commit.
    pub(super) async fn restore(&self, opened: &Opened) -> Result<()> {
        let wanted = Some((self.position.epoch, self.shards));
        let mut restored = opened.restored.lock().await;
        if *restored == wanted {
            opened.opener.operators().iter().for_each(|operator| operator.discard());
            return Ok(());
        }
        let shapes = &opened.planned.shapes;
        if let Some(gone) = self.position.state.keys().find(|name| !shapes.iter().any(|s| s.layout.name == **name)) {
            return Err(Error::refused(format!(
                "the query's checkpoint has state of {gone}, which the query no longer has; give the query another name \
                 (SET 'pipeline.name') to start anew, or put it back as it was"
            )));
        }
        let max_files = self.spec.environment.number("state.snapshot.max-files").unwrap_or(MAX_FILES);
        let operators = shapes.iter().map(|shape| async move {
            let name = &shape.layout.name;
            let commit = self.position.state.get(name).cloned().unwrap_or_default();
            Operator::restore(shape.layout.clone(), self.log.state(name), &commit, self.shards, max_files).await
        });
        // What was restored before is not kept beside it.
        *restored = None;
        opened.opener.set_operators([]);
        opened.opener.set_operators(try_join_all(operators).await?);
        *restored = wanted;
        Ok(())
    }
}

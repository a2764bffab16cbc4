//! The queries that the shell runs in the background.
//!
//! The idea: at the prompt an INSERT starts a task and gives the prompt back. What is known of a query is what its events
//! said, so to ask costs no I/O and disturbs nothing.
//!
//! Guarantee: a query is stopped behind an epoch, by STOP QUERY, at leaving, at SIGTERM and when the terminal goes away
//! alike. Not promised: that it outlives the shell. Started again it goes on from its checkpoint.

use std::collections::BTreeMap;
use std::fmt;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use indicatif::{HumanBytes, HumanCount};
use rustyline::error::ReadlineError;
use rustyline::{Behavior, Config, DefaultEditor};
use tokio::signal::ctrl_c;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinError;

use super::{output, stop_on_signals};
use crate::catalog::TableDefinition;
use crate::connector::{Guarantee, Partition};
use crate::error::{Error, Kind, Result};
use crate::query::progress::{EpochProgress, Event, Reporter};
use crate::query::{Position, Query, QuerySpec};
use crate::session::{Outcome, Session, listing};
use crate::sql::options::did_you_mean;
use crate::sql::{CreateTable, Insert, Parsed, Statement};
use crate::storage::Location;

/// The columns of SHOW QUERIES.
const COLUMNS: [&str; 9] =
    ["query", "state", "epoch", "rows_per_second", "lag", "watermark", "rows_in", "rows_out", "last_error"];

/// The queries by name; clones share them.
#[derive(Clone)]
pub struct Jobs {
    jobs: Arc<Mutex<BTreeMap<String, Job>>>,
    tell: Tell,
}

/// Tells the user a line.
type Tell = Arc<Mutex<dyn FnMut(String) + Send>>;

/// What DESCRIBE QUERY says: an item and its value.
type Line = (String, String);

/// One query.
struct Job {
    /// The statement that starts it.
    insert: Parsed,
    checkpoint: Location,
    /// What is known of it before it runs.
    about: Vec<Line>,
    /// What it runs, as SQL.
    sql: String,
    stop: watch::Sender<bool>,
    heard: watch::Receiver<Heard>,
}

/// How far the life of a query is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Starting,
    Running,
    Retrying,
    Stopped,
    Finished,
    Failed,
    Fenced,
}

/// What a query said of itself since it was started.
#[derive(Debug, Clone, Default)]
struct Heard {
    state: State,
    /// Its id, and the run.
    run: Option<(String, u64)>,
    epoch: u64,
    rows_in: u64,
    rows_out: u64,
    /// By table and partition, the next offset and the end, as an epoch that read it found them.
    offsets: BTreeMap<(String, Partition), (u64, u64)>,
    newest: Option<Box<EpochProgress>>,
    /// Rows read per second between the newest epoch and the one before it.
    rows_per_second: f64,
    error: Option<String>,
}

impl fmt::Debug for Jobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.jobs().keys()).finish()
    }
}

impl Default for Jobs {
    /// Tells on standard error.
    fn default() -> Self {
        Self::telling(|line| output::tell(&line))
    }
}

impl Jobs {
    /// No queries yet. How a query ended, unless it was told to, is told in a line.
    pub fn telling(tell: impl FnMut(String) + Send + 'static) -> Self {
        Self { jobs: Arc::default(), tell: Arc::new(Mutex::new(tell)) }
    }

    fn jobs(&self) -> MutexGuard<'_, BTreeMap<String, Job>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Executes a statement of the prompt: a query that it comes to is started in the background, and the statements
    /// about queries are answered. STOP and RESTART wait for the end of an epoch, or for Ctrl-C.
    ///
    /// Errors: those of the session, a name that no query has, a query that runs already.
    pub async fn execute(&self, session: &mut Session, parsed: Parsed) -> Result<Outcome> {
        match &parsed.statement {
            Statement::ShowQueries => Ok(Outcome::Rows(listing(&COLUMNS, self.rows())?)),
            Statement::DescribeQuery { name } => {
                let lines = self.job(name, Job::describe)?;
                let rows = lines.into_iter().map(|(item, value)| vec![Some(item), Some(value)]).collect();
                Ok(Outcome::Rows(listing(&["item", "value"], rows)?))
            }
            Statement::StopQuery { name } => Ok(Outcome::Done(self.stop(name).await?)),
            Statement::RestartQuery { name } => Ok(Outcome::Done(self.restart(session, name).await?)),
            _ => {
                let insert = again(parsed.clone());
                match session.execute(parsed).await? {
                    Outcome::Query(spec) => {
                        session.forget_query(&spec.name);
                        let name = spec.name.clone();
                        self.start(*spec, insert)?;
                        Ok(Outcome::Done(format!("query {name} started")))
                    }
                    other => Ok(other),
                }
            }
        }
    }

    /// Starts a query; `insert` plans it again.
    fn start(&self, spec: QuerySpec, insert: Parsed) -> Result<()> {
        let name = spec.name.clone();
        let (stop, stopped) = watch::channel(false);
        let (sender, heard) = watch::channel(Heard::default());
        let (about, sql) = (about(&spec)?, sql(&spec));
        let job = Job { insert, checkpoint: spec.checkpoint.clone(), about, sql, stop, heard };
        {
            let mut jobs = self.jobs();
            if jobs.get(&name).is_some_and(Job::is_alive) {
                return Err(Error::usage(format!(
                    "query {name} runs already; STOP QUERY '{name}' first, or SET 'pipeline.name' = '…' gives this one a \
                     name of its own"
                )));
            }
            jobs.insert(name.clone(), job);
        }
        let (sender, tell) = (Arc::new(sender), Arc::clone(&self.tell));
        let hearing = Arc::clone(&sender);
        let reporter = Reporter::new(move |event| hearing.send_modify(|heard| heard.hear(event)));
        tokio::spawn(async move {
            let ended = tokio::spawn(Query::drive(spec, reporter, stopped.clone())).await;
            let was_told = *stopped.borrow();
            sender.send_modify(|heard| heard.end(ended, was_told));
            let farewell = sender.borrow().farewell(&name);
            if let Some(line) = farewell {
                let mut tell = tell.lock().unwrap_or_else(PoisonError::into_inner);
                (*tell)(line);
            }
        });
        Ok(())
    }

    /// Stops a query and waits until it has; what came of it.
    async fn stop(&self, name: &str) -> Result<String> {
        let (name, heard) = self.job(name, |job, name| {
            job.stop.send_replace(true);
            (name.to_owned(), job.heard.clone())
        })?;
        tokio::select! {
            () = over(heard.clone()) => {
                let Heard { state, epoch, .. } = *heard.borrow();
                Ok(format!("query {name} {state} after epoch {epoch}"))
            }
            Ok(()) = ctrl_c() => Ok(format!("query {name} stops after its epoch; SHOW QUERIES tells when it has")),
        }
    }

    /// Starts a query again, from its checkpoint, with the definitions of now.
    async fn restart(&self, session: &mut Session, name: &str) -> Result<String> {
        let known = |job: &Job, name: &str| (name.to_owned(), job.insert.clone(), job.checkpoint.clone());
        let (name, insert, checkpoint) = self.job(name, known)?;
        // Planned before it is stopped: definitions that are wrong stop nothing.
        let Outcome::Query(spec) = session.execute(insert.clone()).await? else {
            return Err(Error::internal(format!("query {name} is none any more")));
        };
        session.forget_query(&spec.name);
        let stopped = self.stop(&name).await?;
        if self.job(&name, |job, _| job.is_alive())? {
            return Ok(stopped);
        }
        // It stays the same query, whatever names and places are set now.
        let spec = *spec;
        self.start(QuerySpec { name: name.clone(), checkpoint, ..spec }, insert)?;
        Ok(format!("query {name} started again"))
    }

    /// Whether the shell may be left now: while queries run it asks what to do with them, and waits for their ends.
    /// `ask` has no answer when the user presses Ctrl-D, which stops them.
    pub async fn may_leave(&self, mut ask: impl FnMut(&str) -> Option<String>) -> bool {
        loop {
            let running = self.jobs().values().filter(|job| job.is_alive()).count();
            let queries = match running {
                0 => return true,
                1 => "1 query runs".to_owned(),
                n => format!("{n} queries run"),
            };
            match ask(&format!("{queries}: (w)ait for the end, (s)top after this epoch, or (c)ancel leaving? "))
                .as_deref()
            {
                Some("w" | "wait") => break,
                Some("c" | "cancel") => return false,
                None | Some("s" | "stop") => {
                    self.stop_all();
                    break;
                }
                Some(_) => {}
            }
        }
        tokio::select! {
            () = self.all_over() => {}
            () = stop_on_signals(|| self.stop_all()) => {}
        }
        true
    }

    /// From now on SIGTERM, or a terminal that goes away, stops all queries after their epochs, and ends the process.
    pub fn end_on_signals(&self) -> Result<()> {
        let (mut terminate, mut hangup) = (signal(SignalKind::terminate())?, signal(SignalKind::hangup())?);
        let jobs = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
            jobs.stop_all();
            jobs.all_over().await;
            crate::connector::shutdown().await;
            // A line may be half typed, and the editor cannot be told to give the terminal back as it was.
            let _ = Command::new("stty").arg("sane").stderr(Stdio::null()).status();
            std::process::exit(0);
        });
        Ok(())
    }

    fn stop_all(&self) {
        for job in self.jobs().values() {
            job.stop.send_replace(true);
        }
    }

    async fn all_over(&self) {
        let all: Vec<_> = self.jobs().values().map(|job| job.heard.clone()).collect();
        for heard in all {
            over(heard).await;
        }
    }

    /// The names of all queries that were started.
    pub fn names(&self) -> Vec<String> {
        self.jobs().keys().cloned().collect()
    }

    /// Looks at a query and its whole name, of which the last part will do where no other ends so; a name that none has
    /// is refused with the nearest known one.
    fn job<T>(&self, name: &str, look: impl FnOnce(&Job, &str) -> T) -> Result<T> {
        let jobs = self.jobs();
        if let Some(job) = jobs.get(name) {
            return Ok(look(job, name));
        }
        let mut meant = jobs.iter().filter(|(known, _)| known.rsplit('/').next() == Some(name));
        Err(Error::usage(match (meant.next(), meant.next()) {
            (Some((known, job)), None) => return Ok(look(job, known)),
            (Some((one, _)), Some((other, _))) => format!("{name} may be the query '{one}' or '{other}'; say which"),
            _ if jobs.is_empty() => format!("there is no query {name}; INSERT INTO … SELECT starts one"),
            _ => format!("there is no query {name}{}", did_you_mean(name, jobs.keys().map(String::as_str))),
        }))
    }

    /// What SHOW QUERIES says.
    fn rows(&self) -> Vec<Vec<Option<String>>> {
        self.jobs().iter().map(|(name, job)| job.row(name)).collect()
    }
}

impl Job {
    fn is_alive(&self) -> bool {
        !self.heard.borrow().state.is_over()
    }

    /// The state; one that is told to stop says so until it has.
    fn state(&self, heard: &Heard) -> String {
        let is_told = *self.stop.borrow();
        if is_told && !heard.state.is_over() { "stopping".into() } else { heard.state.to_string() }
    }

    fn row(&self, name: &str) -> Vec<Option<String>> {
        let heard = self.heard.borrow();
        let newest = heard.newest.as_deref();
        let rate = newest.filter(|_| !heard.state.is_over()).map(|_| format!("{:.0}", heard.rows_per_second));
        let lag = newest.map(|epoch| epoch.sources.values().map(|source| source.lag).sum::<u64>().to_string());
        vec![
            Some(name.to_owned()),
            Some(self.state(&heard)),
            Some(heard.epoch.to_string()),
            rate,
            lag,
            newest.and_then(|epoch| output::time(epoch.watermark_ms?)),
            Some(heard.rows_in.to_string()),
            Some(heard.rows_out.to_string()),
            heard.error.clone(),
        ]
    }

    /// What DESCRIBE QUERY says.
    fn describe(&self, name: &str) -> Vec<Line> {
        let heard = self.heard.borrow();
        let mut lines = vec![line("query", name), line("state", self.state(&heard))];
        lines.extend(self.about.iter().cloned());
        lines.extend(heard.lines());
        lines.push(line("SQL", &self.sql));
        lines
    }
}

impl State {
    fn is_over(self) -> bool {
        !matches!(self, State::Starting | State::Running | State::Retrying)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Starting => "starting",
            State::Running => "running",
            State::Retrying => "retrying",
            State::Stopped => "stopped",
            State::Finished => "finished",
            State::Failed => "failed",
            State::Fenced => "fenced",
        })
    }
}

impl Heard {
    fn hear(&mut self, event: Event) {
        match event {
            Event::Started { id, run, committed, .. } => {
                (self.state, self.run, self.epoch) = (State::Running, Some((id, run)), committed);
            }
            Event::Epoch(epoch) => {
                (self.state, self.epoch) = (State::Running, epoch.epoch);
                self.rows_in += epoch.rows_in;
                self.rows_out += epoch.rows_out;
                // Of the first epoch nothing but its own duration is known, in which a trigger does not wait.
                let since_ms = self.newest.as_deref().map_or(0, |before| epoch.batch_time_ms - before.batch_time_ms);
                self.rows_per_second = match since_ms {
                    1.. => epoch.rows_in as f64 * 1e3 / since_ms as f64,
                    _ => epoch.rows_per_second,
                };
                for (table, source) in &epoch.sources {
                    let read = source.partitions.iter();
                    let read = read.map(|(name, read)| ((table.clone(), name.clone()), (read.to, read.latest)));
                    self.offsets.extend(read);
                }
                self.newest = Some(epoch);
            }
            Event::Retry { error, .. } => (self.state, self.error) = (State::Retrying, Some(error)),
            // How it ends is for the one to say who runs it.
            Event::Finished { .. } | Event::Failed { .. } => {}
        }
    }

    fn end(&mut self, ended: std::result::Result<Result<Position>, JoinError>, was_told: bool) {
        match ended {
            Ok(Ok(position)) => {
                self.state = if was_told { State::Stopped } else { State::Finished };
                self.epoch = self.epoch.max(position.epoch);
            }
            Ok(Err(error)) => {
                self.state = if error.kind() == Kind::Fenced { State::Fenced } else { State::Failed };
                self.error = Some(error.chain());
            }
            Err(lost) => (self.state, self.error) = (State::Failed, Some(format!("it broke off: {lost}"))),
        }
    }

    /// What the user has to know of its end.
    fn farewell(&self, name: &str) -> Option<String> {
        match self.state {
            State::Finished => Some(format!("query {name} finished after epoch {}", self.epoch)),
            State::Failed | State::Fenced => {
                Some(format!("error: query {name} {}: {}", self.state, self.error.as_deref().unwrap_or_default()))
            }
            _ => None,
        }
    }

    fn lines(&self) -> Vec<Line> {
        let mut lines = vec![];
        if let Some((id, run)) = &self.run {
            lines.extend([line("id", id), line("run", run)]);
        }
        lines.push(line("epoch", self.epoch));
        if let Some(epoch) = self.newest.as_deref() {
            lines.extend(epoch.watermark_ms.and_then(output::time).map(|time| line("watermark", time)));
            for (table, source) in &epoch.sources {
                lines.push(line(format_args!("reads {table}"), format_args!("lag {}", source.lag)));
                if !source.idle.is_empty() {
                    let idle: Vec<String> = source.idle.iter().map(ToString::to_string).collect();
                    lines.push(line(format_args!("idle in {table}"), idle.join(", ")));
                }
            }
            for ((table, partition), (next, end)) in &self.offsets {
                lines.push(line(format_args!("reads {table}, {partition}"), format_args!("next {next}, end {end}")));
            }
            for (operator, state) in &epoch.state {
                let (rows, bytes) = (HumanCount(state.rows as u64), HumanBytes(state.memory as u64));
                lines.push(line(format_args!("remembers {operator}"), format_args!("{rows} rows, {bytes}")));
            }
            lines.push(line("last epoch", durations(epoch)));
        }
        lines.extend(self.error.as_ref().map(|error| line("last error", error)));
        lines
    }
}

/// Asks on the terminal; Ctrl-C cancels, and Ctrl-D gives no answer.
pub fn ask(question: &str) -> Option<String> {
    let config = Config::builder().behavior(Behavior::PreferTerm).build();
    let mut editor = DefaultEditor::with_config(config).ok()?;
    match tokio::task::block_in_place(|| editor.readline(question)) {
        Ok(answer) => Some(answer.trim().to_ascii_lowercase()),
        Err(ReadlineError::Interrupted) => Some("cancel".to_owned()),
        Err(_) => None,
    }
}

/// Waits for the end of a query.
async fn over(mut heard: watch::Receiver<Heard>) {
    // Who would say more is gone with the query.
    let _ = heard.wait_for(|heard| heard.state.is_over()).await;
}

/// What a statement is when its query is started again: of a CREATE TABLE … AS the table is there.
fn again(parsed: Parsed) -> Parsed {
    let statement = match parsed.statement {
        Statement::CreateTable(CreateTable { definition, as_query: Some(query), .. }) => {
            Statement::Insert(Insert { table: definition.name, columns: vec![], query })
        }
        other => other,
    };
    Parsed { statement, ..parsed }
}

/// What is known of a query before it runs.
fn about(spec: &QuerySpec) -> Result<Vec<Line>> {
    let mut lines = vec![line("checkpoint", &spec.checkpoint), line("trigger", spec.trigger)];
    for target in spec.planned.targets() {
        let Guarantee { delivery, reason } = spec.connectors.of(target)?.guarantee(target)?;
        lines.push(line(format_args!("writes {}", target.name), format_args!("{delivery}: {reason}")));
    }
    Ok(lines)
}

/// The INSERTs of a query; that of a CREATE TABLE … AS without the table's options, which may hold secrets.
fn sql(spec: &QuerySpec) -> String {
    let insert = |(query, columns, target): (&str, &[String], &TableDefinition)| {
        let columns = if columns.is_empty() { String::new() } else { format!(" ({})", columns.join(", ")) };
        format!("INSERT INTO {}{columns} {query}", target.name)
    };
    spec.planned.definition.inserts().map(insert).collect::<Vec<_>>().join(";\n")
}

fn line(item: impl fmt::Display, value: impl fmt::Display) -> Line {
    (item.to_string(), value.to_string())
}

/// What an epoch read and wrote, and how long its steps took.
fn durations(epoch: &EpochProgress) -> String {
    let took = &epoch.durations_ms;
    format!(
        "{} rows in, {} out, {:.0} ms: plan {:.0}, intend {:.0}, bind {:.0}, run {:.0}, publish {:.0}, commit {:.0}",
        HumanCount(epoch.rows_in),
        HumanCount(epoch.rows_out),
        took.total(),
        took.plan,
        took.intend,
        took.bind,
        took.run,
        took.publish,
        took.commit
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::progress::{Durations, PartitionProgress, SourceProgress, StateProgress};

    fn epoch(number: u64, partition: u32, to: u64) -> Event {
        let read = PartitionProgress { to, latest: 9, ..PartitionProgress::default() };
        let source = SourceProgress {
            lag: 9 - to,
            idle: vec![Partition::new("t", 1 - partition)],
            partitions: [(Partition::new("t", partition), read)].into(),
            ..SourceProgress::default()
        };
        let remembered = StateProgress { rows: 1200, memory: 2048, compacting: false };
        Event::Epoch(Box::new(EpochProgress {
            query: "q".into(),
            epoch: number,
            run: 2,
            batch_time_ms: 0,
            rows_in: 10,
            bytes_in: 100,
            rows_out: 3,
            bytes_out: 30,
            rows_per_second: 1234.5,
            sources: [("orders".to_owned(), source)].into(),
            watermark_ms: Some(1_000),
            late: Default::default(),
            state: [("aggregate-1".to_owned(), remembered)].into(),
            durations_ms: Durations { run: 4.0, ..Durations::default() },
            retries: 0,
        }))
    }

    fn heard(events: impl IntoIterator<Item = Event>) -> Heard {
        let mut heard = Heard::default();
        events.into_iter().for_each(|event| heard.hear(event));
        heard
    }

    fn started() -> Event {
        Event::Started { query: "q".into(), id: "ab12".into(), run: 2, committed: 7 }
    }

    fn retry() -> Event {
        Event::Retry { query: "q".into(), attempt: 1, error: "no answer".into(), wait_ms: 200 }
    }

    #[test]
    fn the_state_follows_the_events() {
        assert_eq!(heard([]).state, State::Starting);
        assert_eq!((heard([started()]).state, heard([started()]).epoch), (State::Running, 7));
        let trouble = heard([started(), retry()]);
        assert_eq!((trouble.state, trouble.error.as_deref()), (State::Retrying, Some("no answer")));
        let again = heard([started(), retry(), epoch(8, 0, 5)]);
        assert_eq!((again.state, again.epoch, again.error.as_deref()), (State::Running, 8, Some("no answer")));
        let ended = |ended, was_told| {
            let mut heard = heard([started()]);
            heard.end(Ok(ended), was_told);
            (heard.state.to_string(), heard.epoch, heard.farewell("q"))
        };
        let position = |epoch| Ok(Position { epoch, ..Position::default() });
        assert_eq!(ended(position(9), true), ("stopped".into(), 9, None));
        // Told to stop while it is opened, it does not know its position.
        assert_eq!(ended(position(0), true), ("stopped".into(), 7, None));
        let line = "query q finished after epoch 9".to_owned();
        assert_eq!(ended(position(9), false), ("finished".into(), 9, Some(line)));
        let line = "error: query q failed: bad row".to_owned();
        assert_eq!(ended(Err(Error::data("bad row")), false), ("failed".into(), 7, Some(line)));
        assert_eq!(ended(Err(Error::fenced("run 3 goes on")), true).0, "fenced");
    }

    #[test]
    fn the_rate_is_that_from_one_epoch_to_the_next() {
        let at = |ms| {
            let Event::Epoch(mut epoch) = epoch(8, 0, 5) else { panic!("no epoch") };
            epoch.batch_time_ms = ms;
            Event::Epoch(epoch)
        };
        assert_eq!(heard([started(), at(1_000)]).rows_per_second, 1234.5);
        assert_eq!(heard([started(), at(1_000), at(3_000)]).rows_per_second, 5.0);
    }

    #[test]
    fn a_query_is_described_by_all_that_was_heard() {
        let heard = heard([started(), epoch(8, 0, 5), epoch(9, 1, 9)]);
        assert_eq!((heard.rows_in, heard.rows_out), (20, 6));
        let lines: Vec<String> = heard.lines().into_iter().map(|(item, value)| format!("{item}: {value}")).collect();
        let expected = [
            "id: ab12",
            "run: 2",
            "epoch: 9",
            "watermark: 1970-01-01 00:00:01.000",
            "reads orders: lag 0",
            "idle in orders: t:0",
            "reads orders, t:0: next 5, end 9",
            "reads orders, t:1: next 9, end 9",
            "remembers aggregate-1: 1,200 rows, 2.00 KiB",
            "last epoch: 10 rows in, 3 out, 4 ms: plan 0, intend 0, bind 0, run 4, publish 0, commit 0",
        ];
        assert_eq!(lines, expected);
    }
}

//! Progress on standard error: a line per query that moves, or JSON lines.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use indicatif::{HumanBytes, HumanCount, MultiProgress, ProgressBar, ProgressStyle};

use super::{ProgressMode, output};
use crate::query::progress::{EpochProgress, Event, Reporter};

/// Shows what queries report; clones share it.
#[derive(Clone)]
pub(crate) struct Display(Arc<Shown>);

enum Shown {
    Live(Mutex<Live>),
    Json,
    Errors,
}

#[derive(Default)]
struct Live {
    bars: MultiProgress,
    queries: BTreeMap<String, Line>,
}

struct Line {
    bar: ProgressBar,
    rows_in: u64,
    rows_out: u64,
    bytes_out: u64,
    skipped: u64,
    dead_letters: u64,
}

impl Display {
    pub fn new(mode: ProgressMode) -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        Self(Arc::new(match mode {
            ProgressMode::Auto if is_terminal => Shown::Live(Mutex::default()),
            ProgressMode::Auto | ProgressMode::Json => Shown::Json,
            ProgressMode::None => Shown::Errors,
        }))
    }

    /// What a query reports to.
    pub fn reporter(&self) -> Reporter {
        let display = self.clone();
        Reporter::new(move |event| display.show(event))
    }

    fn show(&self, event: Event) {
        match self.0.as_ref() {
            Shown::Live(live) => live.lock().unwrap_or_else(PoisonError::into_inner).show(event),
            Shown::Json => output::tell(&serde_json::to_string(&event).unwrap_or_default()),
            Shown::Errors => {
                if let Event::Failed { query, error } = event {
                    output::tell(&format!("error: query {query}: {error}"));
                }
            }
        }
    }

    /// Leaves the last state on the screen.
    pub fn finish(&self) {
        if let Shown::Live(live) = self.0.as_ref() {
            let live = live.lock().unwrap_or_else(PoisonError::into_inner);
            live.queries.values().for_each(|line| line.bar.abandon());
        }
    }
}

impl Live {
    fn show(&mut self, event: Event) {
        match event {
            Event::Started { query, run, committed, .. } => {
                let bar = self.bars.add(ProgressBar::new_spinner());
                if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix:.bold}  {msg}") {
                    bar.set_style(style);
                }
                bar.enable_steady_tick(Duration::from_millis(120));
                bar.set_prefix(query.clone());
                bar.set_message(format!("run {run} goes on after epoch {committed}"));
                let (rows_in, rows_out, bytes_out, skipped, dead_letters) = Default::default();
                self.queries.insert(query, Line { bar, rows_in, rows_out, bytes_out, skipped, dead_letters });
            }
            Event::Epoch(epoch) => {
                if let Some(line) = self.queries.get_mut(&epoch.query) {
                    line.epoch(&epoch);
                }
            }
            Event::Retry { query, attempt, error, wait_ms } => {
                if let Some(line) = self.queries.get(&query) {
                    line.bar.set_message(format!("try {attempt} in {wait_ms} ms: {error}"));
                }
            }
            Event::Finished { query, epoch } => {
                if let Some(line) = self.queries.get(&query) {
                    line.bar.abandon_with_message(format!("done: {}", line.totals(epoch)));
                }
            }
            Event::Failed { query, error } => {
                let text = format!("error: query {query}: {error}");
                match self.queries.get(&query) {
                    Some(line) => line.bar.abandon_with_message(text),
                    None => output::tell(&text),
                }
            }
        }
    }
}

impl Line {
    fn epoch(&mut self, epoch: &EpochProgress) {
        self.rows_in += epoch.rows_in;
        self.rows_out += epoch.rows_out;
        self.bytes_out += epoch.bytes_out;
        self.skipped += epoch.sources.values().map(|source| source.skipped).sum::<u64>();
        self.dead_letters += epoch.sources.values().map(|source| source.dead_letters).sum::<u64>();
        let lag: u64 = epoch.sources.values().map(|source| source.lag).sum();
        let rate = HumanCount(epoch.rows_per_second as u64);
        let took = epoch.durations_ms.total();
        let totals = self.totals(epoch.epoch);
        self.bar.set_message(format!("{totals}, {rate} rows/s, lag {}, {took:.0} ms", HumanCount(lag)));
    }

    fn totals(&self, epoch: u64) -> String {
        let (rows_in, rows_out) = (HumanCount(self.rows_in), HumanCount(self.rows_out));
        let some = |count, what| if count > 0 { format!(", {} {what}", HumanCount(count)) } else { String::new() };
        let (skipped, dead) = (some(self.skipped, "skipped"), some(self.dead_letters, "dead letters"));
        format!("epoch {epoch}, {rows_in} rows in, {rows_out} out, {}{skipped}{dead}", HumanBytes(self.bytes_out))
    }
}

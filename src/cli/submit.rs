//! `millstream submit`: runs every continuous query of a file side by side.

use std::collections::BTreeMap;

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::display::Display;
use super::output::{self, View};
use super::{Submit, exit_code, read, stop_on_signals};
use crate::error::{Error, Result};
use crate::query::progress::{Event, Reporter};
use crate::query::{Query, QuerySpec};
use crate::session::{Outcome, Rows, Session};
use crate::sql::{self, Statement};

/// Runs the file; the exit code.
pub(super) async fn run(arguments: Submit) -> Result<u8> {
    let (specs, has_written) = plan(&arguments).await?;
    if arguments.explain || (specs.is_empty() && has_written) {
        return Ok(0);
    }
    if specs.is_empty() {
        return Err(Error::usage(format!(
            "{} has no INSERT INTO … SELECT over a stream, so there is nothing to run",
            arguments.file.display()
        )));
    }
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(stop_on_signals(move || {
        stop.send_replace(true);
    }));
    let display = Display::new(arguments.progress);
    let mut queries = JoinSet::new();
    for spec in specs {
        queries.spawn(run_query(spec, display.reporter(), stopped.clone()));
    }
    let mut code = 0;
    while let Some(ended) = queries.join_next().await {
        // A fenced run must not be restarted, whatever else went wrong.
        code = match (code, ended.unwrap_or(1)) {
            (3, _) | (_, 3) => 3,
            (a, b) => a.max(b),
        };
    }
    display.finish();
    Ok(code)
}

/// Executes the file's statements; the queries it came to, and whether rows were written at once.
async fn plan(arguments: &Submit) -> Result<(Vec<QuerySpec>, bool)> {
    let file = &arguments.file;
    let stem = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let variables: BTreeMap<String, String> = arguments.var.iter().cloned().collect();
    let text = sql::substitute(&read(file)?, &variables)?;
    let mut session = Session::new(&stem)?;
    let checkpoint = arguments.checkpoint.clone().map(|value| ("checkpoint.location".to_owned(), value));
    let catalog = arguments.catalog.clone().map(|value| ("catalog.location".to_owned(), value));
    let trigger = arguments.trigger.clone().map(|value| ("epoch.trigger".to_owned(), value));
    for (key, value) in arguments.set.iter().cloned().chain(checkpoint).chain(catalog).chain(trigger) {
        session.pin(&key, &value)?;
    }
    if arguments.explain {
        session.write_nothing();
    }
    let (mut specs, mut has_written) = (vec![], false);
    for parsed in sql::parse(&text)? {
        let (line, is_insert) = (parsed.location.line, matches!(parsed.statement, Statement::Insert(_)));
        match session.execute(parsed).await? {
            Outcome::Done(text) if is_insert => {
                has_written = true;
                output::tell(&text);
            }
            Outcome::Done(_) => {}
            Outcome::Text(text) => output::say(&text)?,
            Outcome::Rows(Rows { is_unbounded: true, .. }) | Outcome::Changes(_) => {
                return Err(Error::usage(format!(
                    "line {line}: a SELECT over a stream never ends; write INSERT INTO … SELECT, or ask it in the shell"
                )));
            }
            Outcome::Rows(rows) => output::print(rows, View::default()).await?,
            Outcome::Query(spec) => {
                if arguments.explain {
                    output::say(&format!("{}\n", session.explain(&spec).await?))?;
                }
                specs.push(*spec);
            }
        }
    }
    Ok((specs, has_written))
}

/// Runs one query to its end and reports it; the exit code.
pub(super) async fn run_query(spec: QuerySpec, reporter: Reporter, stop: watch::Receiver<bool>) -> u8 {
    let name = spec.name.clone();
    match Query::drive(spec, reporter.clone(), stop).await {
        Ok(position) => {
            reporter.report(Event::Finished { query: name, epoch: position.epoch });
            0
        }
        Err(error) => {
            reporter.report(Event::Failed { query: name, error: error.chain() });
            exit_code(&error)
        }
    }
}

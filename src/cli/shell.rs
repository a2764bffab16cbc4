//! `millstream shell`: the statements of a file, one at a time.
//!
//! A statement may span lines and ends with `;`. At the prompt an INSERT runs in the [background](super::jobs), Ctrl-C
//! ends what runs in the foreground, and not the shell, and Ctrl-D leaves. From a pipe it reads statements to the end,
//! one after the other, and the first error ends it.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Read};
use std::path::PathBuf;

use rustyline::error::ReadlineError;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Completer, Config, Editor, ExternalPrinter, Helper, Highlighter, Hinter, history::FileHistory};
use tokio::sync::watch;

use super::display::Display;
use super::jobs::{Jobs, ask};
use super::submit::run_query;
use super::{ProgressMode, Shell, changes, read, table};
use crate::error::{Error, Result};
use crate::session::{Outcome, RESULT_MODE, Session};
use crate::sql;

/// Runs the shell; the exit code.
pub(super) async fn run(arguments: Shell) -> Result<u8> {
    let (session, variables) = (Session::new("shell")?, arguments.var.into_iter().collect());
    let mut shell = Running { session, variables, background: None };
    for (key, value) in &arguments.set {
        shell.session.set(key, value)?;
    }
    if let Some(location) = &arguments.catalog {
        shell.session.set("catalog.location", location)?;
    }
    let mut code = 0;
    if let Some(file) = &arguments.file {
        code = code.max(shell.execute(&read(file)?).await?);
    }
    for text in &arguments.execute {
        code = code.max(shell.execute(text).await?);
    }
    let is_done = !arguments.execute.is_empty() || (arguments.file.is_some() && !std::io::stdin().is_terminal());
    if is_done {
        return Ok(code);
    }
    if std::io::stdin().is_terminal() {
        shell.prompt().await?;
        return Ok(0);
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    Ok(code.max(shell.execute(&text).await?))
}

struct Running {
    session: Session,
    variables: BTreeMap<String, String>,
    /// At the prompt, the queries in the background.
    background: Option<Jobs>,
}

impl Running {
    /// Executes statements until one fails; the highest exit code of the queries among them.
    async fn execute(&mut self, text: &str) -> Result<u8> {
        let text = sql::substitute(text, &self.variables)?;
        let mut code = 0;
        for parsed in sql::parse(&text)? {
            let outcome = match &self.background {
                Some(jobs) => jobs.execute(&mut self.session, parsed).await?,
                None => self.session.execute(parsed).await?,
            };
            match outcome {
                Outcome::Done(text) => eprintln!("{text}"),
                Outcome::Text(text) => table::say(&text)?,
                Outcome::Rows(rows) => {
                    tokio::select! {
                        printed = table::print(rows) => printed?,
                        _ = tokio::signal::ctrl_c() => eprintln!("stopped"),
                    }
                }
                Outcome::Changes(result) => {
                    tokio::select! {
                        shown = changes::print(result, self.session.setting(RESULT_MODE)) => shown?,
                        _ = tokio::signal::ctrl_c() => eprintln!("stopped"),
                    }
                }
                Outcome::Query(spec) => {
                    self.session.forget_query(&spec.name);
                    let display = Display::new(ProgressMode::Auto);
                    let (stop, stopped) = watch::channel(false);
                    let running = tokio::spawn(run_query(*spec, display.reporter(), stopped));
                    let interrupted = async {
                        // Without a handler there is no Ctrl-C to wait for.
                        if tokio::signal::ctrl_c().await.is_ok() {
                            eprintln!("stopping after this epoch; once more to leave at once");
                            stop.send_replace(true);
                        }
                        if tokio::signal::ctrl_c().await.is_ok() {
                            std::process::exit(130);
                        }
                        std::future::pending::<()>().await;
                    };
                    tokio::select! {
                        ended = running => code = code.max(ended.unwrap_or(1)),
                        () = interrupted => {}
                    }
                    display.finish();
                }
            }
        }
        Ok(code)
    }

    async fn prompt(&mut self) -> Result<()> {
        let unusable = |e: ReadlineError| Error::usage("the terminal cannot be used; pipe the SQL in").caused_by(e);
        let config = Config::builder().build();
        let mut editor = Editor::<Prompt, FileHistory>::with_config(config).map_err(unusable)?;
        editor.set_helper(Some(Prompt));
        let mut jobs = Jobs::default();
        if let Ok(mut printer) = editor.create_external_printer() {
            // A terminal that has gone shows nothing more.
            jobs = Jobs::telling(move |line| drop(printer.print(format!("{line}\n"))));
        }
        jobs.stop_at_sigterm()?;
        self.background = Some(jobs.clone());
        let history = history_file();
        if let Some(history) = &history {
            // There is none yet, the first time.
            let _ = editor.load_history(history);
        }
        eprintln!(
            "Millstream {}. Statements end with ;  Ctrl-C ends a query, Ctrl-D leaves.",
            env!("CARGO_PKG_VERSION")
        );
        loop {
            let read = tokio::task::block_in_place(|| editor.readline("millstream> "));
            let is_leaving = match &read {
                Ok(line) => ["exit", "quit", "\\q"].contains(&line.trim().trim_end_matches(';')),
                Err(error) => matches!(error, ReadlineError::Eof),
            };
            if is_leaving {
                if jobs.may_leave(ask).await {
                    break;
                }
                continue;
            }
            match read {
                Ok(line) => {
                    // A secret that was typed is not kept on disk.
                    if !sql::options::is_secret(&line) {
                        editor.add_history_entry(&line).map_err(unusable)?;
                    }
                    if let Err(error) = self.execute(&line).await {
                        eprintln!("error: {}", error.chain());
                    }
                }
                Err(ReadlineError::Interrupted) => {}
                Err(error) => return Err(unusable(error)),
            }
            if let Some(history) = &history {
                // A history that cannot be kept is no reason to stop.
                let _ = editor.save_history(history);
            }
        }
        Ok(())
    }
}

fn history_file() -> Option<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let state = state.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/state")))?;
    let directory = state.join("millstream");
    std::fs::create_dir_all(&directory).ok()?;
    Some(directory.join("history"))
}

/// Asks for more lines until a statement is complete.
#[derive(Completer, Helper, Highlighter, Hinter)]
struct Prompt;

impl Validator for Prompt {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        let text = context.input().trim();
        let is_command = text.is_empty() || ["exit", "quit", "\\q"].contains(&text);
        Ok(match is_command || sql::is_complete(text) {
            true => ValidationResult::Valid(None),
            false => ValidationResult::Incomplete,
        })
    }
}

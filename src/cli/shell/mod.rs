//! `millstream shell`: the statements of a file, one at a time.
//!
//! A statement may span lines and ends with `;`; a line that begins with a backslash is a command of the shell
//! (`meta`). At the prompt an INSERT runs in the [background](super::jobs), Ctrl-C clears what is typed or ends what runs
//! in the foreground, and not the shell, and Ctrl-D leaves. With `-e`, with `-f` and from a pipe an INSERT runs to its
//! end, and the first error ends it.
//!
//! Guaranteed: standard output has the rows and texts that were asked for, and nothing else. Notices, errors, times and
//! progress go to standard error, the prompt and what is typed to the terminal.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, BufWriter, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustyline::completion::{Completer, FilenameCompleter};
use rustyline::config::CompletionType;
use rustyline::error::ReadlineError;
use rustyline::highlight::{CmdKind, Highlighter};
use rustyline::hint::{Hint, Hinter};
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Behavior, Config, Context, Editor, ExternalPrinter, Helper, history::FileHistory};
use tokio::sync::watch;

use self::lexer::{Kind, pieces};
use self::meta::Command;
use self::names::{Known, Names, Topics};
use super::changes;
use super::display::Display;
use super::jobs::{Jobs, ask};
use super::output::{self, Format, Screen, View};
use super::submit::run_query;
use super::{INTERRUPTED, ProgressMode, Shell, exit_code, read, signalled, stop_on_signals};
use crate::clock::Clock;
use crate::connector::console::PrintConnector;
use crate::error::{Error, Result};
use crate::query::QuerySpec;
use crate::session::{Outcome, RESULT_MODE, Session};
use crate::sql::{self, Parsed};

mod complete;
mod highlight;
mod lexer;
mod meta;
mod names;

/// What is left with where nobody reads standard output any more: as programs that SIGPIPE ends.
const UNREAD: u8 = 141;

/// How deep files may execute files.
const MAX_DEPTH: usize = 16;

/// Runs the shell; the exit code.
pub(super) async fn run(arguments: Shell) -> Result<u8> {
    let mut shell = Running {
        session: Session::new("shell")?,
        variables: arguments.var.into_iter().collect(),
        clock: Clock::system(),
        background: None,
    };
    for (key, value) in &arguments.set {
        shell.session.set(key, value)?;
    }
    if let Some(location) = &arguments.catalog {
        shell.session.set("catalog.location", location)?;
    }
    let is_terminal = io::stdin().is_terminal();
    let mut rest = arguments.execute;
    if !is_terminal && rest.is_empty() && arguments.file.is_none() {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text)?;
        rest.push(text);
    }
    if let Some(file) = &arguments.file {
        let text = read(file)?;
        if let After::Leave(code) = shell.script(&text, Some(file), 0).await {
            return Ok(code);
        }
    }
    for text in &rest {
        if let After::Leave(code) = shell.script(text, None, 0).await {
            return Ok(code);
        }
    }
    if is_terminal && rest.is_empty() {
        shell.prompt().await?;
    }
    Ok(0)
}

/// What comes after a statement or a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    /// The next.
    GoOn,
    /// None of the same text: it failed, or Ctrl-C ended it.
    Failed(u8),
    /// Nothing at all.
    Leave(u8),
}

struct Running {
    session: Session,
    variables: BTreeMap<String, String>,
    clock: Clock,
    /// At the prompt, the queries in the background.
    background: Option<Jobs>,
}

impl Running {
    /// Executes a text; without a prompt to go back to, what failed ends all.
    async fn script(&mut self, text: &str, file: Option<&Path>, depth: usize) -> After {
        for part in parts(text) {
            let after = match &part {
                Part::Sql(sql) => self.statements(sql, file).await,
                Part::Command(line) => match Box::pin(self.command(line, depth)).await {
                    Ok(after) => after,
                    Err(error) => self.failed(&error, "", file),
                },
            };
            match after {
                After::GoOn => {}
                After::Failed(code) if !self.is_prompt() => return After::Leave(code),
                ended => return ended,
            }
        }
        After::GoOn
    }

    async fn statements(&mut self, text: &str, file: Option<&Path>) -> After {
        let text = match sql::substitute(text, &self.variables) {
            Ok(text) => text,
            Err(error) => return self.failed(&error, text, file),
        };
        let statements = match sql::parse(&text) {
            Ok(statements) => statements,
            Err(error) => return self.failed(&error, &text, file),
        };
        for parsed in statements {
            match self.statement(parsed).await {
                Ok(After::GoOn) => {}
                Ok(ended) => return ended,
                Err(error) => return self.failed(&error, &text, file),
            }
        }
        After::GoOn
    }

    /// Says what is wrong, and where.
    fn failed(&self, error: &Error, text: &str, file: Option<&Path>) -> After {
        if output::is_unread(error) {
            return After::Failed(UNREAD);
        }
        let file = file.map(|file| format!("{}: ", file.display())).unwrap_or_default();
        let is_colored = console::colors_enabled_stderr();
        output::tell(&format!("{} {file}{}", highlight::error(is_colored), error.chain()));
        let is_read = self.is_prompt() || !file.is_empty();
        if let Some(place) = error.location().filter(|_| is_read)
            && let Some(marked) = highlight::underlined(text, place)
        {
            output::tell(&marked);
        }
        After::Failed(exit_code(error))
    }

    async fn statement(&mut self, parsed: Parsed) -> Result<After> {
        let began_us = self.clock.monotonic_us();
        let executed = async {
            match &self.background {
                Some(jobs) => jobs.execute(&mut self.session, parsed).await,
                None => self.session.execute(parsed).await,
            }
        };
        let outcome = tokio::select! {
            outcome = executed => outcome?,
            () = signalled() => return Ok(stopped()),
        };
        let view = self.view();
        match outcome {
            Outcome::Done(text) => output::tell(&text),
            Outcome::Text(text) => output::show(&text, &view)?,
            Outcome::Rows(rows) => tokio::select! {
                printed = output::print(rows, view) => printed?,
                () = signalled() => return Ok(stopped()),
            },
            Outcome::Changes(result) => tokio::select! {
                shown = changes::print(result, self.session.setting(RESULT_MODE), view) => shown?,
                () = signalled() => return Ok(stopped()),
            },
            Outcome::Query(spec) => match self.query(*spec).await {
                0 => {}
                code => return Ok(After::Failed(code)),
            },
        }
        if self.session.setting("shell.timing") == Some("true") {
            let took_us = self.clock.monotonic_us() - began_us;
            output::tell(&format!("Time: {}", duration(took_us)));
        }
        Ok(After::GoOn)
    }

    /// Runs a continuous query of a script until it ends, or Ctrl-C or SIGTERM stop it; the exit code.
    async fn query(&mut self, spec: QuerySpec) -> u8 {
        self.session.forget_query(&spec.name);
        let display = Display::new(ProgressMode::Auto);
        let (stop, stopped) = watch::channel(false);
        let running = tokio::spawn(run_query(spec, display.reporter(), stopped.clone()));
        let code = tokio::select! {
            ended = running => ended.unwrap_or(1),
            () = stop_on_signals(|| { stop.send_replace(true); }) => INTERRUPTED,
        };
        display.finish();
        let was_stopped = *stopped.borrow();
        if code == 0 && was_stopped { INTERRUPTED } else { code }
    }

    /// Carries out a command.
    async fn command(&mut self, line: &str, depth: usize) -> Result<After> {
        match meta::parse(line)? {
            Command::Say(text) => output::show(&text, &self.view())?,
            Command::Sql(text) => return Ok(self.statements(&text, None).await),
            Command::Set { key, value, values: [usual, other] } => {
                let is_usual = self.session.setting(key).is_none_or(|value| value == usual);
                let value = value.unwrap_or(if is_usual { other } else { usual });
                self.session.set(key, value)?;
                output::tell(&format!("{key} is {value}"));
            }
            Command::Include(_) if depth >= MAX_DEPTH => {
                return Err(Error::usage(format!("files execute files more than {MAX_DEPTH} deep")));
            }
            Command::Include(file) => {
                let text = read(&file)?;
                return Ok(self.script(&text, Some(&file), depth + 1).await);
            }
            Command::Quit => return Ok(After::Leave(0)),
        }
        Ok(After::GoOn)
    }

    fn is_prompt(&self) -> bool {
        self.background.is_some()
    }

    /// For whom rows are written, by what is set now.
    fn view(&self) -> View {
        let format = self.session.setting("shell.output").and_then(Format::named).unwrap_or_default();
        let pages = self.is_prompt() && self.session.setting("shell.pager") != Some("false");
        View { format, screen: Screen::of_output(), pages }
    }

    async fn prompt(&mut self) -> Result<()> {
        let unusable = |e: ReadlineError| Error::usage("the terminal cannot be used; pipe the SQL in").caused_by(e);
        let config = Config::builder().completion_type(CompletionType::List).history_ignore_space(true);
        let config = config.behavior(Behavior::PreferTerm);
        let config = config.max_history_size(10_000).map_err(unusable)?.build();
        let mut editor = Editor::<Prompt, FileHistory>::with_config(config).map_err(unusable)?;
        let mut jobs = Jobs::default();
        if let Ok(mut printer) = editor.create_external_printer() {
            // A terminal that has gone shows nothing more.
            jobs = Jobs::telling(move |line| drop(printer.print(format!("{line}\n"))));
        }
        if io::stdout().is_terminal()
            && let (Ok(output), Ok(error)) = (editor.create_external_printer(), editor.create_external_printer())
        {
            // Who prints while a line ends waits for the next, so the lines of an epoch come at once, if they are few.
            let above = |printer| Box::new(BufWriter::with_capacity(1 << 20, Above(printer)));
            self.session.put_connector(Arc::new(PrintConnector::writing_to(above(output), above(error))));
        }
        jobs.end_on_signals()?;
        self.background = Some(jobs.clone());
        let history = history_file();
        if let Some(history) = &history {
            // There is none yet, the first time.
            let _ = editor.load_history(history);
        }
        // From here on Ctrl-C ends what runs: without a handler it would end the shell.
        let _interrupts = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
        let topics = Topics::default();
        let version = env!("CARGO_PKG_VERSION");
        output::tell(&format!("Millstream {version}. Statements end with ;  \\? is for help, Ctrl-D leaves."));
        loop {
            let names = Known { session: self.session.clone(), topics: topics.clone(), queries: jobs.names() };
            editor.set_helper(Some(Prompt { names: Box::new(names) }));
            let mut is_leaving = false;
            let typed = tokio::task::block_in_place(|| editor.readline("millstream> "));
            // Tokio takes the budget from what blocks. Without a new one an operator that always has rows would never
            // yield, and Ctrl-C would not be seen.
            tokio::task::yield_now().await;
            match typed {
                Ok(text) => {
                    // A secret that was typed is not kept on disk.
                    if !sql::options::is_secret(&text) {
                        editor.add_history_entry(text.trim_end()).map_err(unusable)?;
                    }
                    is_leaving = matches!(self.script(&text, None, 0).await, After::Leave(_));
                }
                Err(ReadlineError::Interrupted) => {}
                Err(ReadlineError::Eof) => is_leaving = true,
                Err(error) => {
                    // The terminal has gone; what runs ends as it should.
                    jobs.may_leave(|_| None).await;
                    return Err(unusable(error));
                }
            }
            if let Some(history) = &history {
                // A history that cannot be kept is no reason to stop. Other shells may write to the same.
                let _ = editor.append_history(history);
            }
            if is_leaving && jobs.may_leave(ask).await {
                return Ok(());
            }
        }
    }
}

fn stopped() -> After {
    output::tell("stopped");
    After::Failed(INTERRUPTED)
}

/// Lines above the prompt, whether or not something is being typed.
struct Above<P>(P);

impl<P: ExternalPrinter> Write for Above<P> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let printed = self.0.print(String::from_utf8_lossy(bytes).into_owned());
        printed.map(|()| bytes.len()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Microseconds, as a reader wants them.
fn duration(us: u64) -> String {
    match us {
        0..1_000_000 => format!("{:.3} ms", us as f64 / 1e3),
        _ => format!("{:.3} s", us as f64 / 1e6),
    }
}

/// A part of a script.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    /// Statements, on the lines that they have in the script.
    Sql(String),
    /// A command, a line.
    Command(String),
}

/// The parts of a script, in turn. A command begins a line, and never within a statement.
fn parts(text: &str) -> Vec<Part> {
    let (mut parts, mut sql) = (vec![], String::new());
    let says_nothing =
        |sql: &str| pieces(sql).iter().all(|piece| !piece.counts() && (!piece.is_open || is_line(piece)));
    for (index, line) in text.split_inclusive('\n').enumerate() {
        if !meta::is_command(line) || !(says_nothing(&sql) || sql::is_complete(&sql)) {
            sql.push_str(line);
            continue;
        }
        let above = std::mem::replace(&mut sql, "\n".repeat(index + 1));
        if !says_nothing(&above) {
            parts.push(Part::Sql(above));
        }
        parts.push(Part::Command(line.trim().to_owned()));
    }
    if !says_nothing(&sql) {
        parts.push(Part::Sql(sql));
    }
    parts
}

/// Whether it is a comment that the end of its line closes.
fn is_line(piece: &lexer::Piece<'_>) -> bool {
    piece.kind == Kind::Comment && piece.text.starts_with("--")
}

fn history_file() -> Option<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let state = state.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/state")))?;
    let directory = state.join("millstream");
    std::fs::create_dir_all(&directory).ok()?;
    Some(directory.join("history"))
}

/// What the editor asks while a text is typed.
#[derive(Helper)]
struct Prompt {
    names: Box<dyn Names>,
}

/// What is said on a line that is begun while a statement has not ended.
struct Unfinished;

impl Hint for Unfinished {
    fn display(&self) -> &str {
        "-- a statement ends with ;"
    }

    fn completion(&self) -> Option<&str> {
        None
    }
}

impl Hinter for Prompt {
    type Hint = Unfinished;

    fn hint(&self, text: &str, cursor: usize, _: &Context<'_>) -> Option<Unfinished> {
        (text.ends_with('\n') && cursor == text.len()).then_some(Unfinished)
    }
}

impl Completer for Prompt {
    type Candidate = String;

    fn complete(&self, text: &str, cursor: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        if text.starts_with("\\i ") {
            let (start, found) = FilenameCompleter::new().complete_path(text, cursor)?;
            return Ok((start, found.into_iter().map(|file| file.replacement).collect()));
        }
        Ok(complete::complete(text, cursor, self.names.as_ref()))
    }
}

impl Highlighter for Prompt {
    fn highlight<'l>(&self, text: &'l str, _: usize) -> Cow<'l, str> {
        if meta::is_command(text) { Cow::Borrowed(text) } else { Cow::Owned(highlight::highlight(text)) }
    }

    fn highlight_prompt<'b, 's: 'b, 'p: 'b>(&'s self, prompt: &'p str, _: bool) -> Cow<'b, str> {
        Cow::Owned(highlight::prompt(prompt))
    }

    fn highlight_hint<'h>(&self, hint: &'h str) -> Cow<'h, str> {
        Cow::Owned(highlight::hint(hint))
    }

    fn highlight_char(&self, _: &str, _: usize, kind: CmdKind) -> bool {
        kind != CmdKind::MoveCursor
    }
}

impl Validator for Prompt {
    /// Asks for more lines until a statement is complete.
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        let text = context.input().trim();
        let is_command = !text.contains('\n') && meta::is_command(text);
        Ok(match text.is_empty() || is_command || sql::is_complete(text) {
            true => ValidationResult::Valid(None),
            false => ValidationResult::Incomplete,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_stand_between_statements() {
        let (sql, command) = (|text: &str| Part::Sql(text.into()), |text: &str| Part::Command(text.into()));
        assert_eq!(parts("SELECT 1;\n"), [sql("SELECT 1;\n")]);
        assert_eq!(
            parts("-- first\n\\timing on\nSELECT 1;\n\\x\nSELECT\n2"),
            [command("\\timing on"), sql("\n\nSELECT 1;\n"), command("\\x"), sql("\n\n\n\nSELECT\n2")]
        );
        let within = "SELECT '\n\\x\n', 1\nexit\n;";
        assert_eq!(parts(within), [sql(within)]);
        assert_eq!(parts("SELECT 1; -- done\nquit;"), [sql("SELECT 1; -- done\n"), command("quit;")]);
        assert!(parts(" \n-- nothing").is_empty());
    }

    #[test]
    fn a_duration_has_a_unit() {
        assert_eq!(duration(1_234), "1.234 ms");
        assert_eq!(duration(2_500_000), "2.500 s");
    }
}

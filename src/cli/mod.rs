//! The command line: what can be typed, apart from what it means.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::error::{Error, Kind, Result};

mod changes;
pub mod display;
pub mod jobs;
mod output;
mod pager;
mod query;
mod replay;
mod shell;
mod state;
mod submit;

/// What Ctrl-C leaves with, where it finishes nothing.
const INTERRUPTED: u8 = 130;

/// Streaming SQL over RocketMQ and Kafka topics, into Parquet or back into a topic.
#[derive(Debug, Parser)]
#[command(version, about)]
pub struct Arguments {
    #[command(subcommand)]
    mode: Mode,
}

#[derive(Debug, Subcommand)]
enum Mode {
    /// Run the continuous queries of a SQL file.
    Submit(Submit),
    /// Work in an interactive SQL shell; reads a pipe, too.
    Shell(Shell),
    /// List what queries remember: all, one query's newest epochs, or one operator's files.
    State(State),
    /// Look into checkpoints: what queries are, read and wrote; and go back to an earlier epoch.
    #[command(subcommand)]
    Query(query::Command),
    /// Run a past epoch of a query again, and show its rows, without touching the query.
    Replay(replay::Replay),
}

/// Arguments of `submit`. Exit codes: 0 all well, 1 any query failed, 3 fenced by a newer run (do not restart).
#[derive(Debug, Args)]
pub(crate) struct Submit {
    /// The file; each INSERT INTO … SELECT over a stream in it is one continuous query.
    pub file: PathBuf,
    /// Where checkpoints lie, a path or s3://bucket/prefix; wins over the file's 'checkpoint.location'.
    #[arg(long, value_name = "URL")]
    pub checkpoint: Option<String>,
    /// Where definitions are kept, a path or s3://bucket/prefix; wins over the file's 'catalog.location'.
    #[arg(long, value_name = "URL")]
    pub catalog: Option<String>,
    /// A setting; wins over the file's SET.
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    pub set: Vec<(String, String)>,
    /// A variable, written ${name} in the file.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    pub var: Vec<(String, String)>,
    /// When epochs start: continuous, available-now, or an interval such as '10 s'. Default: continuous into topics and
    /// consoles, 10 s into files.
    #[arg(long)]
    pub trigger: Option<String>,
    /// How progress is shown, on standard error.
    #[arg(long, value_enum, default_value_t = ProgressMode::Auto)]
    pub progress: ProgressMode,
    /// Check the file and print plans and guarantees without running.
    #[arg(long)]
    pub explain: bool,
}

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProgressMode {
    /// Live on a terminal, else JSON lines.
    Auto,
    /// A JSON object a line.
    Json,
    /// Not at all.
    None,
}

#[derive(Debug, Args)]
pub(crate) struct Shell {
    /// Execute this SQL, or this command such as '\dt', and leave; may be given several times. Exit codes: 0 all well,
    /// 1 an error, which ends it, 130 Ctrl-C.
    #[arg(short, long = "execute", value_name = "SQL")]
    pub execute: Vec<String>,
    /// Execute this file first; without -e and from a terminal, the prompt follows.
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Where definitions are kept: a path or s3://bucket/prefix.
    #[arg(long, value_name = "URL")]
    pub catalog: Option<String>,
    /// A setting.
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    pub set: Vec<(String, String)>,
    /// A variable, written ${name} in SQL.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    pub var: Vec<(String, String)>,
}

#[derive(Debug, Args)]
pub(crate) struct State {
    /// Where checkpoints lie: a path or s3://bucket/prefix.
    #[arg(long, value_name = "URL")]
    pub checkpoint: String,
    /// A query, as `[pipeline/]file/target`.
    pub query: Option<String>,
    /// One of its operators.
    pub operator: Option<String>,
    /// A setting, such as s3.endpoint.
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    pub set: Vec<(String, String)>,
}

fn pair(text: &str) -> std::result::Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write it as name=value".into()),
    }
}

/// Runs what was asked for; the exit code.
pub async fn run(arguments: Arguments) -> Result<u8> {
    let code = match arguments.mode {
        Mode::Submit(arguments) => submit::run(arguments).await,
        Mode::Shell(arguments) => shell::run(arguments).await,
        Mode::State(arguments) => state::run(arguments).await,
        Mode::Query(command) => query::run(command).await,
        Mode::Replay(arguments) => replay::run(arguments).await,
    };
    crate::connector::shutdown().await;
    code
}

/// The exit code of an error.
pub fn exit_code(error: &Error) -> u8 {
    match error.kind() {
        Kind::Fenced => 3,
        _ => 1,
    }
}

/// Logs go to standard error; `RUST_LOG` says which. Clients of brokers are quiet unless something is wrong. What
/// RocketMQ's transport has to say comes as errors of its callers; what it says besides is of its own end.
pub fn start_logging() {
    let quiet = "warn,rocketmq_client_rust=error,rocketmq_runtime=error,rocketmq_transport=off,rdkafka=error,\
                 librdkafka=error";
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(quiet));
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Fails only if a host program has logging already.
    let _ = subscriber.try_init();
}

/// Reads a file of SQL, without the mark that some editors begin it with.
pub(crate) fn read(path: &std::path::Path) -> Result<String> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| Error::usage(format!("{} cannot be read", path.display())).caused_by(e))?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

/// Waits for the next Ctrl-C or SIGTERM.
pub(crate) async fn signalled() {
    let (interrupt, terminate) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
    let (Ok(mut interrupt), Ok(mut terminate)) = (interrupt, terminate) else {
        // Without a handler there is nothing to wait for.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

/// Stops queries at the first Ctrl-C or SIGTERM, and leaves at once at the second; so it never returns.
pub(crate) async fn stop_on_signals(stop: impl Fn()) {
    signalled().await;
    output::tell("stopping after this epoch; once more to leave at once");
    stop();
    signalled().await;
    std::process::exit(INTERRUPTED.into())
}

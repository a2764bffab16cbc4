//! `millstream query`: what a checkpoint says of its queries, and the way back to an earlier epoch.
//!
//! Everything but `rewind` and `import` only reads, and disturbs nothing that runs. What a rewind promises:
//! [`rewind`].

use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{output, pair, read};
use crate::checkpoint::{Commit, Generation, Intent, Recorded, Rewind, inspect};
use crate::clock::Clock;
use crate::connector::{Connectors, Environment, Offsets, Published, Span};
use crate::error::{Error, Result};
use crate::query::definition::Definition;
use crate::query::rewind::{Done, rewind};
use crate::sql::options::printable;
use crate::sql::{show_create_table, show_create_view};
use crate::state::StateCommit;
use crate::storage::{Location, Stores};

/// How many of the newest epochs are shown, unless it is said.
const EPOCHS: usize = 20;

/// Where a checkpoint lies, and how it is shown.
#[derive(Debug, Args)]
pub(crate) struct Place {
    /// Where checkpoints lie: a path or s3://bucket/prefix.
    #[arg(long, value_name = "URL")]
    checkpoint: String,
    /// A setting, such as s3.endpoint.
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    set: Vec<(String, String)>,
    /// How it is shown.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// How something is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// For scripts: the records as they are.
    Json,
}

/// What becomes of the rows that were written after the epoch that is gone back to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// They stay, and those that are computed again are there twice.
    Keep,
    /// Their files are removed; of a topic they cannot be.
    Delete,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// All queries: how far they are, and who runs them.
    List {
        #[command(flatten)]
        place: Place,
    },
    /// What a query is: its SQL, tables and settings, where it began, what it writes and remembers.
    Show {
        /// A query, as `[pipeline/]file/target`.
        query: String,
        #[command(flatten)]
        place: Place,
    },
    /// What its epochs read, wrote and took.
    Epochs {
        /// A query, as `[pipeline/]file/target`.
        query: String,
        /// So many of the newest; default: 20.
        #[arg(long, value_name = "N", conflicts_with = "epoch")]
        last: Option<usize>,
        /// One epoch, in full.
        #[arg(long, value_name = "N")]
        epoch: Option<u64>,
        #[command(flatten)]
        place: Place,
    },
    /// The next offset of every partition.
    Offsets {
        /// A query, as `[pipeline/]file/target`.
        query: String,
        /// After this epoch; default: the newest.
        #[arg(long, value_name = "N")]
        epoch: Option<u64>,
        #[command(flatten)]
        place: Place,
    },
    /// The same as JSON, to be kept, changed, and imported.
    Export {
        /// A query, as `[pipeline/]file/target`.
        query: String,
        /// After this epoch; default: the newest.
        #[arg(long, value_name = "N")]
        epoch: Option<u64>,
        #[command(flatten)]
        place: Place,
    },
    /// Go back to an earlier epoch, or to given offsets. Stop the query first.
    Rewind {
        /// A query, as `[pipeline/]file/target`.
        query: String,
        /// Back to where this epoch has left it; 0 is where it began.
        #[arg(long, value_name = "N", conflicts_with = "offsets", required_unless_present = "offsets")]
        epoch: Option<u64>,
        /// To the offsets in this file, as `export` writes them; - is standard input. What is not named stays.
        #[arg(long, value_name = "FILE")]
        offsets: Option<PathBuf>,
        /// Begin with no state, whatever was remembered.
        #[arg(long, requires = "offsets")]
        without_state: bool,
        /// What becomes of rows that were written since.
        #[arg(long, value_enum)]
        output: Output,
        #[command(flatten)]
        place: Place,
    },
    /// Go to the offsets in a file: `rewind --offsets`.
    Import {
        /// A query, as `[pipeline/]file/target`.
        query: String,
        /// The file, as `export` writes it; - is standard input.
        offsets: PathBuf,
        /// Begin with no state, whatever was remembered.
        #[arg(long)]
        without_state: bool,
        /// What becomes of rows that were written since.
        #[arg(long, value_enum)]
        output: Output,
        #[command(flatten)]
        place: Place,
    },
}

/// Offsets as they are exported and imported.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Exported {
    /// For people: whose they are.
    #[serde(default)]
    query: String,
    /// After which epoch of it, of which generation.
    #[serde(default)]
    generation: u64,
    #[serde(default)]
    epoch: u64,
    /// By table and partition, the next offset.
    offsets: BTreeMap<String, Offsets>,
}

/// Does it; the exit code.
pub(super) async fn run(command: Command) -> Result<u8> {
    match command {
        Command::List { place } => list(&place).await?,
        Command::Show { query, place } => show(&place, &query).await?,
        Command::Epochs { query, epoch: Some(epoch), place, .. } => one_epoch(&place, &query, epoch).await?,
        Command::Epochs { query, last, place, .. } => epochs(&place, &query, last.unwrap_or(EPOCHS)).await?,
        Command::Offsets { query, epoch, place } if place.format == Format::Table => {
            let Exported { offsets, .. } = exported(&place, &query, epoch).await?;
            let mut lines = vec![];
            for (table, offsets) in offsets {
                lines.extend(offsets.iter().map(|(p, next)| vec![table.clone(), p.to_string(), next.to_string()]));
            }
            say_rows(&["table", "partition", "next"], lines)?;
        }
        Command::Offsets { query, epoch, place } | Command::Export { query, epoch, place } => {
            say_json(&exported(&place, &query, epoch).await?)?;
        }
        Command::Rewind { query, epoch: Some(epoch), output, place, .. } => {
            go_back(&place, Rewind::to_epoch(place.generation(&query).await?, epoch).await?, output).await?;
        }
        Command::Rewind { query, offsets: Some(offsets), without_state, output, place, .. }
        | Command::Import { query, offsets, without_state, output, place } => {
            let Exported { offsets, .. } = imported(&offsets)?;
            let made = Rewind::to_offsets(place.generation(&query).await?, &offsets, without_state).await?;
            go_back(&place, made, output).await?;
        }
        Command::Rewind { .. } => return Err(Error::usage("say where to go back to: --epoch N, or --offsets FILE")),
    }
    Ok(0)
}

impl Place {
    fn settings(&self) -> BTreeMap<String, String> {
        self.set.iter().cloned().collect()
    }

    fn checkpoint(&self) -> Result<Location> {
        Stores::new(Clock::system()).open(&self.checkpoint, &self.settings())
    }

    async fn generation(&self, query: &str) -> Result<Generation> {
        Generation::newest(&self.checkpoint()?, query).await
    }

    fn environment(&self) -> Environment {
        let (clock, settings) = (Clock::system(), Arc::new(self.settings()));
        Environment { stores: Stores::new(clock.clone()), clock, settings, parallelism: 1 }
    }
}

async fn list(place: &Place) -> Result<()> {
    const COLUMNS: [&str; 7] = ["query", "id", "generation", "epoch", "committed", "pending", "run"];
    let checkpoint = place.checkpoint()?;
    let mut lines = vec![];
    for query in inspect::queries(&checkpoint).await? {
        let generation = Generation::newest(&checkpoint, &query).await?;
        let id = generation.record().await?.map(|record| record.id).unwrap_or_default();
        let (commits, intents) = generation.written().await?;
        let newest = commits.last().copied().unwrap_or(Recorded { epoch: 0, written_ms: 0 });
        let committed = if commits.is_empty() { String::new() } else { time(newest.written_ms) };
        let pending =
            intents.last().filter(|intent| intent.epoch > newest.epoch).map(|intent| intent.epoch.to_string());
        let run = generation.run().await?;
        let run = run.map(|run| format!("{} (pid {} on {})", run.number, run.pid, run.host)).unwrap_or_default();
        let (number, epoch) = (generation.number().to_string(), newest.epoch.to_string());
        lines.push(vec![query, id, number, epoch, committed, pending.unwrap_or_default(), run]);
    }
    match place.format {
        Format::Table => say_rows(&COLUMNS, lines),
        Format::Json => {
            let object =
                |line: Vec<String>| COLUMNS.into_iter().map(str::to_owned).zip(line).collect::<BTreeMap<_, _>>();
            say_json(&lines.into_iter().map(object).collect::<Vec<_>>())
        }
    }
}

async fn show(place: &Place, query: &str) -> Result<()> {
    let generation = place.generation(query).await?;
    let record = generation.record().await?.ok_or_else(|| Error::usage(format!("{query} has not begun yet")))?;
    let definition = generation.newest_definition().await?.map(|record| record.definition);
    let definition = definition.ok_or_else(|| Error::usage(format!("{query} has no definition yet")))?;
    let epoch = generation.epochs().await?.last().copied();
    let state = match epoch {
        Some(epoch) => generation.commit(epoch).await?.state,
        None => BTreeMap::new(),
    };
    if place.format == Format::Json {
        return say_json(&json!({ "generation": generation.number(), "query": record, "definition": definition }));
    }
    let mut lines = vec![
        ["query", query].map(str::to_owned).to_vec(),
        vec!["id".into(), record.id.clone()],
        vec!["generation".into(), generation.number().to_string()],
        vec!["began".into(), time(record.created_ms)],
        vec!["epoch".into(), epoch.map(|epoch| epoch.to_string()).unwrap_or_default()],
    ];
    if let Some(before) = &record.rewound {
        let to = before.epoch.map_or("given offsets".to_owned(), |epoch| format!("epoch {epoch}"));
        let output = if before.deletes { "what came later was removed" } else { "what came later was kept" };
        lines.push(vec![
            "rewound".into(),
            format!("to {to} of generation {} ({}); {output}", before.generation, before.id),
        ]);
    }
    for (what, offsets) in [("starts", &record.start), ("ends", &record.end)] {
        let each = offsets.iter().flat_map(|(table, offsets)| offsets.iter().map(move |(p, at)| (table, p, at)));
        lines.extend(each.map(|(table, partition, at)| vec![what.into(), format!("{table} {partition} at {at}")]));
    }
    let read = definition.identities.iter().filter(|(table, _)| !table.is_empty());
    lines.extend(read.map(|(table, identity)| vec!["reads".into(), format!("{table}: {identity}")]));
    lines.extend(targets(&definition).into_iter().map(|(_, what)| vec!["writes".into(), what]));
    lines
        .extend(state.iter().map(|(operator, state)| vec!["remembers".into(), format!("{operator}: {}", held(state))]));
    let settings = definition.settings.iter();
    lines.extend(settings.map(|(key, value)| vec!["setting".into(), format!("{key} = {}", printable(key, value))]));
    output::say(&output::columns(&lines))?;
    output::say(&format!("\n{}", sql(&definition)))
}

/// The definition as a script.
fn sql(definition: &Definition) -> String {
    let inserts = definition.inserts().map(|(query, columns, target)| {
        let columns = if columns.is_empty() { String::new() } else { format!(" ({})", columns.join(", ")) };
        format!("INSERT INTO {}{columns}\n{query}", target.name)
    });
    let written = definition.inserts().map(|(_, _, target)| target);
    let tables = definition.sources.values().chain(written).chain(&definition.late).map(show_create_table);
    let views = definition.views.iter().map(show_create_view);
    let statements: Vec<String> =
        tables.chain(definition.statics.iter().cloned()).chain(views).chain(inserts).collect();
    statements.iter().map(|statement| format!("{statement};")).collect::<Vec<_>>().join("\n\n")
}

/// What is written, in the order of a commit's sinks: its table, and what that is.
fn targets(definition: &Definition) -> Vec<(String, String)> {
    let own = definition.identities.get("").map(String::as_str).unwrap_or_default();
    let identities = std::iter::once(own).chain(definition.others.iter().map(|other| other.identity.as_str()));
    let targets = definition.inserts().zip(identities).map(|((_, _, target), identity)| (&target.name, identity));
    let late = definition.late.iter().map(|late| (&late.name, "late rows"));
    targets.chain(late).map(|(name, what)| (name.clone(), format!("{name}: {what}"))).collect()
}

/// An epoch, as its records say.
#[derive(Debug, Serialize)]
struct Epoch {
    commit: Commit,
    #[serde(skip_serializing_if = "Option::is_none")]
    intent: Option<Intent>,
    /// From its intent to its commit, by the store's clock, ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    took_ms: Option<i64>,
}

/// The records of these kept epochs.
async fn records(generation: &Generation, wanted: &[u64]) -> Result<Vec<Epoch>> {
    let (commits, intents) = generation.written().await?;
    let at = |records: &[Recorded], epoch: u64| records.iter().find(|r| r.epoch == epoch).map(|r| r.written_ms);
    let mut found = vec![];
    for commit in generation.commits(wanted).await? {
        let took_ms = at(&commits, commit.epoch).zip(at(&intents, commit.epoch)).map(|(end, begin)| end - begin);
        let intent = generation.intent(commit.epoch).await?;
        found.push(Epoch { commit, intent, took_ms });
    }
    Ok(found)
}

async fn epochs(place: &Place, query: &str, last: usize) -> Result<()> {
    let generation = place.generation(query).await?;
    let mut kept = generation.epochs().await?;
    let found = records(&generation, &kept.split_off(kept.len().saturating_sub(last))).await?;
    if place.format == Format::Json {
        return say_json(&found);
    }
    let line = |Epoch { commit, intent, took_ms }: &Epoch| {
        let read = intent.iter().flat_map(|intent| intent.sources.keys().map(move |table| (table, intent)));
        let read = read.map(|(table, intent)| format!("{table} {}", intent.spans(table).map(Span::len).sum::<u64>()));
        let sum = |of: fn(&Published) -> u64| commit.sinks.iter().map(of).sum::<u64>().to_string();
        let files: usize = commit.state.values().map(|state| state.files.len()).sum();
        vec![
            commit.epoch.to_string(),
            time(commit.batch_time_ms),
            read.collect::<Vec<_>>().join(", "),
            sum(|published| published.rows),
            sum(|published| published.bytes),
            commit.watermark_ms.map(time).unwrap_or_default(),
            files.to_string(),
            lost(commit).to_string(),
            took_ms.map(|ms| format!("{ms} ms")).unwrap_or_default(),
        ]
    };
    let columns = ["epoch", "batch time", "read", "rows", "bytes", "watermark", "state files", "lost", "took"];
    say_rows(&columns, found.iter().map(line).collect())
}

async fn one_epoch(place: &Place, query: &str, epoch: u64) -> Result<()> {
    let generation = place.generation(query).await?;
    generation.kept(Some(epoch)).await?;
    let Some(Epoch { commit, intent, took_ms }) = records(&generation, &[epoch]).await?.pop() else {
        return Err(Error::usage(format!("epoch {epoch} of {query} is not kept any more")));
    };
    if place.format == Format::Json {
        return say_json(&Epoch { commit, intent, took_ms });
    }
    let mut lines = vec![
        vec!["epoch".into(), format!("{epoch} of {query}, by run {}", commit.run)],
        vec!["batch time".into(), time(commit.batch_time_ms)],
    ];
    lines.extend(commit.watermark_ms.map(|at| vec!["watermark".into(), time(at)]));
    for (table, cut) in intent.iter().flat_map(|intent| &intent.sources) {
        lines.extend(cut.iter().flatten().map(|span| vec!["read".into(), format!("{table} {span}")]));
    }
    let names = targets(&generation.definition(epoch).await?.definition).into_iter().map(|(name, _)| name);
    let written = names.zip(&commit.sinks);
    let dead = commit.dead_letters.iter().map(|(name, published)| (format!("dead letters to {name}"), published));
    for (name, published) in written.chain(dead) {
        let at = if published.position.is_null() { String::new() } else { format!(", at {}", published.position) };
        lines.push(vec!["wrote".into(), format!("{name}: {} rows, {} bytes{at}", published.rows, published.bytes)]);
    }
    lines.extend(commit.state.iter().map(|(operator, state)| {
        let files: Vec<&str> = state.files.iter().map(|file| file.name.as_str()).collect();
        vec!["state".into(), format!("{operator}: {} {}", held(state), files.join(" "))]
    }));
    for (table, offsets) in &commit.lost {
        lines.extend(offsets.iter().map(|(p, count)| vec!["lost".into(), format!("{table} {p}: {count} offsets")]));
    }
    lines.extend(took_ms.map(|ms| vec!["took".into(), format!("{ms} ms from intent to commit")]));
    output::say(&output::columns(&lines))
}

/// How much an operator's files hold.
fn held(state: &StateCommit) -> String {
    let (rows, bytes) = state.files.iter().fold((0, 0), |(rows, bytes), file| (rows + file.rows, bytes + file.bytes));
    format!("{} files, {rows} rows, {bytes} bytes", state.files.len())
}

/// How many offsets were gone.
fn lost(commit: &Commit) -> u64 {
    commit.lost.values().flat_map(BTreeMap::values).sum()
}

async fn exported(place: &Place, query: &str, epoch: Option<u64>) -> Result<Exported> {
    let generation = place.generation(query).await?;
    let commit = generation.kept(epoch).await?;
    let offsets = commit.sources.into_iter().map(|(table, commits)| {
        let next = commits.into_iter().map(|(partition, commit)| (partition, commit.next));
        (table, next.collect())
    });
    Ok(Exported {
        query: query.to_owned(),
        generation: generation.number(),
        epoch: commit.epoch,
        offsets: offsets.collect(),
    })
}

/// Reads a file of offsets.
fn imported(file: &std::path::Path) -> Result<Exported> {
    let text = match file.to_str() {
        Some("-") => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text)?;
            text
        }
        _ => read(file)?,
    };
    serde_json::from_str(&text).map_err(|e| {
        let form = r#"{"offsets": {"table": {"partition:0": 42}}}"#;
        Error::usage(format!("{} is no file of offsets, such as {form}", file.display())).caused_by(e)
    })
}

async fn go_back(place: &Place, to: Rewind, output: Output) -> Result<()> {
    let Done { generation, files } =
        rewind(&to, output == Output::Delete, &Connectors::standard(), &place.environment()).await?;
    let offsets = to.offsets();
    if place.format == Format::Json {
        return say_json(&json!({ "generation": generation, "epoch": to.epoch(), "offsets": offsets, "files": files }));
    }
    let at = to.epoch().map_or("at the given offsets".to_owned(), |epoch| format!("behind epoch {epoch}"));
    let removed = match output {
        Output::Keep => "what was written since stays".to_owned(),
        Output::Delete => format!("{files} files that were written since are removed"),
    };
    output::say(&format!("generation {generation} is in force and begins {at}; {removed}; submit the query to go on"))
}

/// Milliseconds since 1970, in UTC; of a stream that has ended the watermark is beyond all times.
fn time(ms: i64) -> String {
    output::time(ms).unwrap_or_else(|| "end".into())
}

fn say_rows(header: &[&str], lines: Vec<Vec<String>>) -> Result<()> {
    let header = header.iter().map(|name| (*name).to_owned()).collect();
    output::say(&output::columns(&std::iter::once(header).chain(lines).collect::<Vec<_>>()))
}

fn say_json(value: &impl Serialize) -> Result<()> {
    let value: Value = serde_json::to_value(value).map_err(|e| Error::internal("it is no JSON").caused_by(e))?;
    output::say(&format!("{value:#}"))
}

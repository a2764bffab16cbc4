//! `millstream replay`: a past epoch, run again and shown, without touching the query: [`Replay`](crate::query::replay).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_json::writer::{LineDelimited, WriterBuilder};
use clap::Args;
use datafusion::execution::SendableRecordBatchStream;
use futures::StreamExt;

use super::output::{self, View};
use super::query::Format;
use super::{pair, read};
use crate::catalog::{Column, TableDefinition};
use crate::checkpoint::Generation;
use crate::connector::{Connectors, Environment, Role, overlap};
use crate::error::{Error, Result};
use crate::query::definition::Definition;
use crate::query::{once, replay};
use crate::session::{Rows, Session};
use crate::sql::{self, Statement};

/// Arguments of `replay`.
#[derive(Debug, Args)]
pub(crate) struct Replay {
    /// A query, as `[pipeline/]file/target`.
    query: String,
    /// Where checkpoints lie: a path or s3://bucket/prefix.
    #[arg(long, value_name = "URL")]
    checkpoint: String,
    /// The epoch; its intent must be kept.
    #[arg(long, value_name = "N")]
    epoch: u64,
    /// Ask this SELECT of what the epoch read, instead of what the query asked.
    #[arg(long, value_name = "FILE")]
    sql: Option<PathBuf>,
    /// A SQL file whose CREATE TABLE and SET say how to connect, which checkpoints do not keep: that of the query.
    #[arg(long, value_name = "FILE")]
    tables: Option<PathBuf>,
    /// Write the rows as Parquet into this directory, instead of showing them.
    #[arg(long, value_name = "URL")]
    into: Option<String>,
    /// How they are shown.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// A setting, such as s3.endpoint; wins over the file's SET.
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    set: Vec<(String, String)>,
    /// A variable, written ${name} in SQL.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    var: Vec<(String, String)>,
}

/// Runs the epoch again; the exit code.
pub(super) async fn run(arguments: Replay) -> Result<u8> {
    let variables: BTreeMap<String, String> = arguments.var.into_iter().collect();
    let text = |file: &Path| sql::substitute(&read(file)?, &variables);
    let mut session = Session::new("replay")?;
    for (key, value) in &arguments.set {
        session.pin(key, value)?;
    }
    if let Some(file) = &arguments.tables {
        declare(&mut session, &text(file)?).await?;
    }
    let environment = session.environment();
    let checkpoint = environment.stores.open(&arguments.checkpoint, &environment.settings)?;
    let generation = Generation::newest(&checkpoint, &arguments.query).await?;
    let epoch = replay::Replay::of(generation, arguments.epoch).await?;
    if let Some(into) = &arguments.into {
        check_apart(into, epoch.definition())?;
    }
    let select = arguments.sql.as_deref().map(text).transpose()?;
    let mut replayed = session.replay(&epoch, select.as_deref()).await?;
    let is_one = replayed.rows.len() == 1;
    let mut shown = Ok(());
    for (target, rows) in std::mem::take(&mut replayed.rows) {
        shown = match (&arguments.into, arguments.format) {
            (Some(into), _) if is_one => write(into, rows, &environment).await,
            (Some(into), _) => write(&format!("{}/{target}", into.trim_end_matches('/')), rows, &environment).await,
            (None, Format::Json) => print_json(rows).await,
            (None, Format::Table) => print(&target, rows, is_one).await,
        };
        if shown.is_err() {
            break;
        }
    }
    replayed.close().await;
    shown.map(|()| 0)
}

/// Executes what declares something in a script, and nothing else.
async fn declare(session: &mut Session, text: &str) -> Result<()> {
    for parsed in sql::parse(text)? {
        let is_meant = match &parsed.statement {
            Statement::CreateTable(create) => create.as_query.is_none(),
            Statement::Set { .. } => true,
            _ => false,
        };
        if is_meant {
            session.execute(parsed).await?;
        }
    }
    Ok(())
}

async fn print(target: &str, rows: SendableRecordBatchStream, is_one: bool) -> Result<()> {
    if !is_one {
        output::say(target)?;
    }
    output::print(Rows { schema: rows.schema(), stream: rows, is_unbounded: false }, View::default()).await
}

async fn print_json(mut rows: SendableRecordBatchStream) -> Result<()> {
    let builder = WriterBuilder::new().with_explicit_nulls(true);
    let mut writer = builder.build::<_, LineDelimited>(std::io::stdout());
    while let Some(batch) = rows.next().await {
        writer.write(&batch?)?;
    }
    Ok(writer.finish()?)
}

/// A directory of Parquet files, as a table.
fn directory(into: &str, columns: Vec<Column>) -> TableDefinition {
    let options = [("connector", "filesystem"), ("path", into), ("format", "parquet")];
    TableDefinition {
        name: "replay".into(),
        columns,
        primary_key: vec![],
        watermark: None,
        partitioned_by: vec![],
        options: options.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
    }
}

/// Where the query itself writes its rows would be there twice.
fn check_apart(into: &str, definition: &Definition) -> Result<()> {
    let (connectors, into) = (Connectors::standard(), directory(into, vec![]));
    let place = connectors.of(&into)?.place(&into)?;
    let targets = definition.inserts().map(|(_, _, target)| target).chain(&definition.late);
    for target in targets.filter(|target| target.connector().ok() == into.connector().ok()) {
        let written = connectors.of(target)?.place(target)?;
        if overlap(&place, &written) {
            return Err(Error::usage(format!(
                "--into: the query's own rows are in {written} and would be there twice; name another directory"
            )));
        }
    }
    Ok(())
}

/// Writes rows as Parquet, under names of their own.
async fn write(into: &str, rows: SendableRecordBatchStream, environment: &Environment) -> Result<()> {
    let schema = rows.schema();
    let columns = schema.fields().iter().map(|field| Column::physical(field.name(), field.data_type().clone()));
    let into = directory(into, columns.collect());
    let connectors = Connectors::standard();
    connectors.of(&into)?.check(&into, Role::Sink)?;
    let written = once::write(&Arc::new(into), vec![rows], &connectors, environment).await?;
    output::tell(&format!("{} rows written", written.rows));
    Ok(())
}

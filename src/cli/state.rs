//! `millstream state`: what queries remember, as their checkpoints say.

use super::{State, output};
use crate::checkpoint::{Commit, inspect};
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::sql::options::did_you_mean;
use crate::state::StateCommit;
use crate::storage::Stores;

/// How many of the newest epochs are shown.
const EPOCHS: usize = 20;

/// Prints it; the exit code.
pub(super) async fn run(arguments: State) -> Result<u8> {
    let settings = arguments.set.into_iter().collect();
    let checkpoint = Stores::new(Clock::system()).open(&arguments.checkpoint, &settings)?;
    let rows = match (arguments.query, arguments.operator) {
        (None, _) => {
            let mut rows = vec![header(&["query", "epoch", "operator", "files", "rows", "bytes"])];
            for query in inspect::queries(&checkpoint).await? {
                let newest = inspect::commits(&checkpoint, &query, 1).await?;
                rows.extend(newest.iter().flat_map(|commit| operators(commit, Some(&query))));
            }
            rows
        }
        (Some(query), None) => {
            let mut rows = vec![header(&["epoch", "operator", "files", "rows", "bytes"])];
            let commits = inspect::commits(&checkpoint, &query, EPOCHS).await?;
            rows.extend(commits.iter().flat_map(|commit| operators(commit, None)));
            rows
        }
        (Some(query), Some(operator)) => {
            let newest = inspect::commits(&checkpoint, &query, 1).await?;
            let state = newest.first().map(|commit| &commit.state);
            let Some(state) = state.and_then(|state| state.get(&operator)) else {
                let known = state.into_iter().flat_map(|state| state.keys().map(String::as_str));
                let hint = did_you_mean(&operator, known);
                return Err(Error::usage(format!("{query} has no state of {operator}{hint}")));
            };
            let mut rows = vec![header(&["file", "epoch", "rows", "bytes"])];
            rows.extend(state.files.iter().map(|file| {
                vec![file.name.clone(), file.epoch.to_string(), file.rows.to_string(), file.bytes.to_string()]
            }));
            rows
        }
    };
    output::say(&output::columns(&rows))?;
    Ok(0)
}

fn header(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// A line for each operator of a commit. Rows are those in files: one that was replaced or closed counts until its file
/// goes.
fn operators(commit: &Commit, query: Option<&str>) -> Vec<Vec<String>> {
    let line = |(operator, state): (&String, &StateCommit)| {
        let (rows, bytes) = state.files.iter().fold((0, 0), |(rows, bytes), f| (rows + f.rows, bytes + f.bytes));
        let numbers = [state.files.len() as u64, rows, bytes].map(|number| number.to_string());
        let names = [commit.epoch.to_string(), operator.clone()];
        query.map(str::to_owned).into_iter().chain(names).chain(numbers).collect()
    };
    commit.state.iter().map(line).collect()
}

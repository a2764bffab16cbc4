//! `SET` and `RESET`: the settings there are, and what each is for.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::sql::options::{Words, did_you_mean, parse_duration};

/// What a setting's value must be.
enum Expects {
    Text,
    Flag,
    Count,
    Trigger,
    Duration,
    /// A duration that is not 0.
    Period,
    /// One of these words.
    Choice(&'static [&'static str]),
}

/// Where definitions are kept.
pub const CATALOG: &str = "catalog.location";
/// Whether a SELECT over streams goes on, or ends at what is there.
pub const EXECUTION_MODE: &str = "execution.mode";
/// Its value for the latter.
pub const BATCH: &str = "batch";

/// The table that late rows go to.
pub const LATE_ROWS: &str = "late-rows.table";

/// How the shell shows a result that changes.
pub const RESULT_MODE: &str = "shell.result-mode";
/// How the shell shows rows: what 'shell.output' may be.
pub const OUTPUTS: &[&str] = &["table", "expanded", "csv", "json", "markdown"];

/// Every setting of ours, with its meaning; those of DataFusion begin with `datafusion.`.
const SETTINGS: &[(&str, Expects, &str)] = &[
    (
        CATALOG,
        Expects::Text,
        "where definitions are kept: a path or s3://bucket/prefix; default: they end with the session",
    ),
    ("checkpoint.fsync", Expects::Flag, "false: local checkpoints and files are not synced to disk"),
    ("checkpoint.location", Expects::Text, "where checkpoints lie: a path or s3://bucket/prefix"),
    (
        "epoch.initial-rows",
        Expects::Count,
        "rows of a table in the first epoch under epoch.target-duration; default: 10000",
    ),
    (
        "epoch.target-duration",
        Expects::Period,
        "how long an epoch should take, by which its rows are limited; default: any",
    ),
    ("epoch.trigger", Expects::Trigger, "continuous, available-now, or an interval such as '10 s'"),
    (
        EXECUTION_MODE,
        Expects::Choice(&["streaming", BATCH]),
        "batch: a SELECT over streams ends at what is there when it is asked; default: streaming",
    ),
    (LATE_ROWS, Expects::Text, "the table that gets rows that were late; default: they are only counted"),
    ("parallelism", Expects::Count, "tasks an epoch is cut into at most; default: the machine's cores"),
    ("pipeline.name", Expects::Text, "comes first in the names of queries"),
    ("query.allow-feedback", Expects::Flag, "true: a query may read the topic that it writes"),
    ("restart.max-attempts", Expects::Count, "how often in a row an epoch is started over after trouble; default: 10"),
    ("s3.access-key", Expects::Text, "access key id"),
    ("s3.endpoint", Expects::Text, "endpoint, for a server that is not AWS"),
    ("s3.path.style.access", Expects::Flag, "false: the bucket is part of the host name"),
    ("s3.region", Expects::Text, "region"),
    ("s3.secret-key", Expects::Text, "secret access key"),
    (
        RESULT_MODE,
        Expects::Choice(&["table", "changelog"]),
        "how a result that changes is shown on a terminal; default: table",
    ),
    ("shell.output", Expects::Choice(OUTPUTS), "how the shell shows rows: table, expanded, csv, json or markdown"),
    ("shell.pager", Expects::Flag, "false: the prompt shows results that are taller than the screen without a pager"),
    ("shell.timing", Expects::Flag, "true: the shell says how long each statement took"),
    ("state.snapshot.max-files", Expects::Count, "so many files of changes are merged into one; default: 200"),
    (
        "state.ttl",
        Expects::Duration,
        "what was not touched for so long is forgotten, where no window ends it; default: never",
    ),
];

/// What a flag may be.
const FLAGS: &[&str] = &["true", "false"];

/// Every setting of ours, with the words that it takes.
pub fn words() -> Words {
    let words = |expects: &Expects| -> &'static [&'static str] {
        match expects {
            Expects::Flag => FLAGS,
            Expects::Choice(words) => words,
            Expects::Trigger => &["continuous", "available-now"],
            _ => &[],
        }
    };
    let texts = |words: &[&str]| words.iter().map(|word| word.to_string()).collect();
    SETTINGS.iter().map(|(key, expects, _)| (key.to_string(), texts(words(expects)))).collect()
}

/// Whether the setting is DataFusion's own.
pub fn is_datafusions(key: &str) -> bool {
    key.starts_with("datafusion.")
}

/// Whether an answer depends on the setting, so that it belongs to a query's definition.
pub fn decides_answers(key: &str) -> bool {
    is_datafusions(key) || [LATE_ROWS, "state.ttl"].contains(&key)
}

/// Checks a key and its value; unknown keys are refused with the nearest known one.
pub fn check(key: &str, value: &str) -> Result<()> {
    if is_datafusions(key) {
        return Ok(());
    }
    check_key(key)?;
    let expects = SETTINGS.iter().find(|(name, ..)| *name == key).map(|(_, expects, _)| expects);
    let wrong = |expected: &str| Err(Error::usage(format!("setting '{key}': '{value}' is not {expected}")));
    match expects {
        Some(Expects::Flag) if !FLAGS.contains(&value) => wrong("true or false"),
        Some(Expects::Choice(words)) if !words.contains(&value) => {
            let hint = did_you_mean(value, words.iter().copied());
            Err(Error::usage(format!("setting '{key}': '{value}' is no choice{hint}")))
        }
        Some(Expects::Count) if value.parse::<usize>().ok().is_none_or(|n| n == 0) => wrong("a number, at least 1"),
        Some(Expects::Trigger)
            if !["continuous", "available-now"].contains(&value) && parse_duration(value).is_none() =>
        {
            wrong("continuous, available-now or an interval such as '10 s'")
        }
        Some(Expects::Duration) if parse_duration(value).is_none() => wrong("a duration such as '1 h' or '30 min'"),
        Some(Expects::Period) if parse_duration(value).is_none_or(|period| period.is_zero()) => {
            wrong("a duration such as '5 s', more than 0")
        }
        _ => Ok(()),
    }
}

/// Checks a key.
pub fn check_key(key: &str) -> Result<()> {
    if is_datafusions(key) || SETTINGS.iter().any(|(name, ..)| *name == key) {
        return Ok(());
    }
    let hint = did_you_mean(key, SETTINGS.iter().map(|(name, ..)| *name));
    Err(Error::usage(format!("there is no setting '{key}'{hint}")))
}

/// Every setting with its value, where it has one, and its meaning; secrets hidden.
pub fn list(values: &BTreeMap<String, String>) -> Vec<(String, Option<String>, String)> {
    let shown = |key: &str| values.get(key).map(|v| crate::sql::options::printable(key, v).to_owned());
    let ours = SETTINGS.iter().map(|(key, _, meaning)| (key.to_string(), shown(key), meaning.to_string()));
    let others = values.keys().filter(|key| is_datafusions(key)).map(|key| (key.clone(), shown(key), String::new()));
    ours.chain(others).collect()
}

//! `SET` and `RESET`: the settings there are, and what each is for.

use std::collections::BTreeMap;

use super::reference::plain;
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

/// A setting of ours.
struct Setting {
    key: &'static str,
    expects: Expects,
    /// What holds without it; empty, where it is just not there.
    default: &'static str,
    /// What it says. Like the default in Markdown, as pages in `docs` have it.
    meaning: &'static str,
}

const fn setting(key: &'static str, expects: Expects, default: &'static str, meaning: &'static str) -> Setting {
    Setting { key, expects, default, meaning }
}

/// Every setting of ours; those of DataFusion begin with `datafusion.`.
const SETTINGS: &[Setting] = &[
    setting(
        CATALOG,
        Expects::Text,
        "",
        "where [definitions](sql.md#catalog) are kept: a path or `s3://bucket/prefix`. Without it they end with the \
         session",
    ),
    setting(
        "checkpoint.fsync",
        Expects::Flag,
        "`true`",
        "`false`: local checkpoints and files are not synced to disk. After power loss they may be damaged",
    ),
    setting(
        "checkpoint.location",
        Expects::Text,
        "",
        "where checkpoints lie: a path or `s3://bucket/prefix`. A continuous query needs it",
    ),
    setting(
        "epoch.initial-rows",
        Expects::Count,
        "10000",
        "with `epoch.target-duration`: [offsets](sql.md#epoch-size) of a table that the first epoch takes at most",
    ),
    setting(
        "epoch.target-duration",
        Expects::Period,
        "",
        "how long an epoch [should take](sql.md#epoch-size), `run` and `publish` of its \
         [progress record](sql.md#progress-records) together",
    ),
    setting(
        "epoch.trigger",
        Expects::Trigger,
        "`continuous`; into files `10 s`",
        "[when an epoch starts](sql.md#triggers)",
    ),
    setting(
        EXECUTION_MODE,
        Expects::Choice(&["streaming", BATCH]),
        "`streaming`",
        "`batch`: SELECTs over streams end at [what is there](sql.md#asking-a-topic), and INSERTs are \
         [written once](sql.md#writing-by-hand)",
    ),
    setting(
        LATE_ROWS,
        Expects::Text,
        "",
        "the table that gets the rows that were [late](time.md#a-table-of-late-rows), of INSERTs after the SET; part \
         of the query's definition. Without it they are only counted",
    ),
    setting(
        "parallelism",
        Expects::Count,
        "the machine's cores",
        "tasks that an epoch is cut into at most. With state: [shards](state.md#restore) of it, and each partition is \
         a task",
    ),
    setting("pipeline.name", Expects::Text, "", "comes first in the names of queries"),
    setting("query.allow-feedback", Expects::Flag, "`false`", "`true`: a query may read the topic that it writes"),
    setting(
        "restart.max-attempts",
        Expects::Count,
        "40",
        "how often in a row an epoch is started over after [trouble](sql.md#trouble)",
    ),
    setting("s3.access-key", Expects::Text, "", "access key id of [S3](sql.md#s3)"),
    setting("s3.endpoint", Expects::Text, "", "for a server that is not AWS. One with `http://` is allowed"),
    setting(
        "s3.path.style.access",
        Expects::Flag,
        "`true`",
        "with `s3.endpoint`: the bucket is in the path; `false`: in the host name",
    ),
    setting("s3.region", Expects::Text, "", "region"),
    setting("s3.secret-key", Expects::Text, "", "secret access key"),
    setting(
        RESULT_MODE,
        Expects::Choice(&["table", "changelog"]),
        "`table`",
        "how a [result that changes](sql.md#a-select-over-a-stream) is shown on a terminal",
    ),
    setting(
        "shell.output",
        Expects::Choice(OUTPUTS),
        "`table`",
        "how the shell [shows rows](shell.md#how-results-are-shown)",
    ),
    setting(
        "shell.pager",
        Expects::Flag,
        "`true`",
        "`false`: the prompt shows results that are taller than the screen without a pager",
    ),
    setting("shell.timing", Expects::Flag, "`false`", "`true`: the shell says how long each statement took"),
    setting(
        "state.snapshot.max-files",
        Expects::Count,
        "200",
        "after so many files of changes of an operator's [state](state.md#files) they are merged; at least 2",
    ),
    setting(
        "state.ttl",
        Expects::Duration,
        "",
        "how long groups and rows without a window are [remembered](state.md#when-it-goes): aggregates, and first and \
         last rows that change, since a row last touched them; DISTINCT, and first rows that stay, since first seen; \
         part of the query's definition. Without it: for good",
    ),
];

/// What a flag may be.
const FLAGS: &[&str] = &["true", "false"];

impl Expects {
    /// The words that it may be, where they are few.
    fn words(&self) -> &'static [&'static str] {
        match self {
            Self::Flag => FLAGS,
            Self::Choice(words) => words,
            Self::Trigger => &["continuous", "available-now"],
            _ => &[],
        }
    }

    /// What it may be, in Markdown.
    fn shown(&self) -> String {
        let words = self.words().iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ");
        match self {
            Self::Flag | Self::Choice(_) => words,
            Self::Trigger => words + ", or an interval such as `10 s`",
            Self::Text => "a text".into(),
            Self::Count => "a number, at least 1".into(),
            Self::Duration => "a duration".into(),
            Self::Period => "a duration, more than 0".into(),
        }
    }
}

/// Every setting of ours: its key, what it takes, its default and its meaning, in Markdown.
pub fn described() -> impl Iterator<Item = [String; 4]> {
    SETTINGS.iter().map(|Setting { key, expects, default, meaning }| {
        [key.to_string(), expects.shown(), default.to_string(), meaning.to_string()]
    })
}

/// Every setting of ours, with the words that it takes.
pub fn words() -> Words {
    let texts = |words: &[&str]| words.iter().map(|word| word.to_string()).collect();
    SETTINGS.iter().map(|setting| (setting.key.to_string(), texts(setting.expects.words()))).collect()
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
    let expects = SETTINGS.iter().find(|setting| setting.key == key).map(|setting| &setting.expects);
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
    if is_datafusions(key) || SETTINGS.iter().any(|setting| setting.key == key) {
        return Ok(());
    }
    let hint = did_you_mean(key, SETTINGS.iter().map(|setting| setting.key));
    Err(Error::usage(format!("there is no setting '{key}'{hint}")))
}

/// Every setting with its value, where it has one, and its meaning; secrets hidden.
pub fn list(values: &BTreeMap<String, String>) -> Vec<(String, Option<String>, String)> {
    let shown = |key: &str| values.get(key).map(|v| crate::sql::options::printable(key, v).to_owned());
    let said = |setting: &Setting| match setting.default {
        "" => plain(setting.meaning),
        default => format!("{}; default: {}", plain(setting.meaning), plain(default)),
    };
    let ours = SETTINGS.iter().map(|setting| (setting.key.to_string(), shown(setting.key), said(setting)));
    let others = values.keys().filter(|key| is_datafusions(key)).map(|key| (key.clone(), shown(key), String::new()));
    ours.chain(others).collect()
}

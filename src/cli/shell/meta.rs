//! Commands of the shell itself: `\dt` and its kin, as psql and DuckDB have them.
//!
//! The idea: a line that begins with a backslash says what to do in few letters. Most of it is SQL or a setting, so
//! that a command is only another spelling. Reading one is pure; the shell carries it out.

use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::session::OUTPUTS;
use crate::session::reference::options;
use crate::sql::options::did_you_mean;
use crate::sql::reference::{Entry, STATEMENTS};
use crate::sql::types::quote;

/// What a command asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Command {
    /// To say this.
    Say(String),
    /// To execute this statement.
    Sql(String),
    /// To set a setting; to the other of two values, if none is said: the first is the one that holds without a SET.
    Set { key: &'static str, value: Option<&'static str>, values: [&'static str; 2] },
    /// To execute a file.
    Include(PathBuf),
    /// To leave.
    Quit,
}

/// What a command is followed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Argument {
    Nothing,
    Statement,
    Relation,
    Pattern,
    Format,
    Flag,
    File,
}

/// Every command: its names, what follows it, and what it does.
pub(super) const COMMANDS: &[(&[&str], Argument, &str)] = &[
    (&["?", "help"], Argument::Nothing, "this list"),
    (
        &["h"],
        Argument::Statement,
        "the statements, one of them (\\h CREATE TABLE), or an option or setting (\\h 'topic')",
    ),
    (&["d"], Argument::Relation, "the tables, or columns and options of one (\\d orders, \\d catalog.topic)"),
    (&["dt"], Argument::Pattern, "tables whose names match: * stands for any letters"),
    (&["dv"], Argument::Pattern, "views"),
    (&["df"], Argument::Pattern, "functions"),
    (&["l"], Argument::Nothing, "catalogs"),
    (&["o", "output"], Argument::Format, "how rows are shown: table, expanded, csv, json or markdown"),
    (&["x"], Argument::Flag, "rows expanded, a column a line, or not"),
    (&["timing"], Argument::Flag, "how long each statement took, or not"),
    (&["pager"], Argument::Flag, "long results through $PAGER or less, or not"),
    (&["i"], Argument::File, "execute a file"),
    (&["q", "quit", "exit"], Argument::Nothing, "leave, as Ctrl-D does"),
];

/// Commands that need no backslash.
const WORDS: [&str; 3] = ["help", "exit", "quit"];

const FLAGS: [&str; 2] = ["on", "off"];

impl Argument {
    /// As the list of commands shows it.
    fn shown(self) -> &'static str {
        match self {
            Self::Nothing => "",
            Self::Statement => " [STATEMENT]",
            Self::Relation => " [TABLE]",
            Self::Pattern => " [PATTERN]",
            Self::Format => " [FORMAT]",
            Self::Flag => " [on|off]",
            Self::File => " FILE",
        }
    }

    /// The words that it may be, where they are few.
    pub fn words(self) -> &'static [&'static str] {
        match self {
            Self::Format => OUTPUTS,
            Self::Flag => &FLAGS,
            _ => &[],
        }
    }
}

/// Whether a line is a command, complete or not. One that begins with a dot is meant as one.
pub(super) fn is_command(line: &str) -> bool {
    let line = line.trim();
    let is_dotted = line.strip_prefix('.').is_some_and(|name| name.starts_with(|c: char| c.is_ascii_alphabetic()));
    line.starts_with('\\')
        || is_dotted
        || WORDS.contains(&line.trim_end_matches(';').trim_end().to_ascii_lowercase().as_str())
}

/// The command's name and what follows it, without backslash and `;`.
pub(super) fn split(line: &str) -> (&str, &str) {
    let line = line.trim().trim_start_matches('\\').trim_end_matches(';');
    let (name, argument) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    (name, argument.trim())
}

/// The command of this name.
pub(super) fn find(name: &str) -> Option<(&'static str, Argument)> {
    let named = COMMANDS.iter().find(|(names, ..)| names.iter().any(|known| known.eq_ignore_ascii_case(name)))?;
    Some((*named.0.first()?, named.1))
}

/// Reads a line for which [`is_command`] holds; unknown commands are refused with the nearest known one.
pub(super) fn parse(line: &str) -> Result<Command> {
    let (name, argument) = split(line);
    if name.starts_with('.') {
        return Err(Error::usage(format!(
            "there is no command {name}: they begin with a backslash, and \\? lists them"
        )));
    }
    let Some((command, kind)) = find(name) else {
        let known = COMMANDS.iter().flat_map(|(names, ..)| names.iter().copied());
        return Err(Error::usage(format!("there is no command \\{name}{}", did_you_mean(name, known))));
    };
    let word = match kind {
        Argument::Nothing if !argument.is_empty() => {
            return Err(Error::usage(format!("\\{name} takes nothing, and {argument} follows it")));
        }
        Argument::Flag | Argument::Format if !argument.is_empty() => Some(one_of(name, argument, kind.words())?),
        _ => None,
    };
    let is_on = word.map(|word| word == "on");
    Ok(match command {
        "?" => Command::Say(help()),
        "h" => Command::Say(reference(argument)?),
        "d" => Command::Sql(described(argument)),
        "dt" => Command::Sql(listed("TABLES", argument)),
        "dv" => Command::Sql(listed("VIEWS", argument)),
        "df" => Command::Sql(listed("FUNCTIONS", argument)),
        "l" => Command::Sql("SHOW CATALOGS".into()),
        "o" => match word {
            Some(_) => Command::Set { key: "shell.output", value: word, values: ["table", "expanded"] },
            None => return Err(Error::usage(format!("\\{name} takes a format: {}", OUTPUTS.join(", ")))),
        },
        "x" => flag("shell.output", is_on, ["table", "expanded"]),
        "timing" => flag("shell.timing", is_on, ["false", "true"]),
        "pager" => flag("shell.pager", is_on.map(|is_on| !is_on), ["true", "false"]),
        "i" if argument.is_empty() => return Err(Error::usage("\\i takes a file, such as \\i job.sql")),
        "i" => Command::Include(PathBuf::from(argument.trim_matches('\''))),
        _ => Command::Quit,
    })
}

fn one_of(name: &str, argument: &str, words: &[&'static str]) -> Result<&'static str> {
    let found = words.iter().find(|word| word.eq_ignore_ascii_case(argument));
    found.copied().ok_or_else(|| {
        Error::usage(format!("\\{name}: {argument} is no choice{}", did_you_mean(argument, words.iter().copied())))
    })
}

/// Sets one of two values: the second where `is_second`.
fn flag(key: &'static str, is_second: Option<bool>, values: [&'static str; 2]) -> Command {
    Command::Set { key, value: is_second.map(|is_second| values[usize::from(is_second)]), values }
}

fn described(argument: &str) -> String {
    match argument.split_once('.') {
        _ if argument.is_empty() => "SHOW TABLES".into(),
        _ if argument.starts_with(['`', '"']) => format!("DESCRIBE {argument}"),
        Some((catalog, topic)) => format!("DESCRIBE TOPIC {}.{}", quote(catalog), quote(topic)),
        None => format!("DESCRIBE {}", quote(argument)),
    }
}

fn listed(what: &str, pattern: &str) -> String {
    match pattern {
        "" => format!("SHOW {what}"),
        pattern => format!("SHOW {what} LIKE '{}'", pattern.replace('\'', "''").replace('*', "%").replace('?', "_")),
    }
}

/// The list of commands.
fn help() -> String {
    let names = |names: &[&str]| names.iter().map(|name| format!("\\{name}")).collect::<Vec<_>>().join(", ");
    let lines: Vec<(String, &str)> =
        COMMANDS.iter().map(|(all, argument, meaning)| (names(all) + argument.shown(), *meaning)).collect();
    let width = lines.iter().map(|(left, _)| left.len()).max().unwrap_or(0);
    let lines = lines.iter().map(|(left, meaning)| format!("  {left:width$}  {meaning}"));
    format!(
        "Statements end with ; and may span lines. Tab completes, Up goes back in the history, Ctrl-R searches it.\n\
         Ctrl-C clears what is typed, or ends the query that runs; Ctrl-D leaves.\n{}",
        lines.collect::<Vec<_>>().join("\n")
    )
}

/// Help without a network: on all statements, on those that these words name, or on a quoted option or setting.
fn reference(words: &str) -> Result<String> {
    if let Some(key) = words.strip_prefix('\'') {
        return options(key.trim_end_matches('\''));
    }
    if words.is_empty() {
        let lines = STATEMENTS.iter().map(|entry| format!("  {}", entry.name)).collect::<Vec<_>>().join("\n");
        return Ok(format!("\\h STATEMENT says more, \\h 'option' is for options and settings\n{lines}"));
    }
    let wanted = words.split_whitespace().collect::<Vec<_>>().join(" ").to_ascii_uppercase();
    let names = |entry: &&Entry| entry.name.to_ascii_uppercase().starts_with(&wanted);
    let mut found: Vec<&Entry> = STATEMENTS.iter().filter(names).collect();
    if found.is_empty() {
        found = STATEMENTS.iter().filter(|entry| entry.name.to_ascii_uppercase().contains(&wanted)).collect();
    }
    let shown =
        |entry: &&Entry| format!("{}\n\n  {}\n\nFor example:\n\n  {}", entry.syntax, entry.meaning, entry.example);
    match found.is_empty() {
        true => {
            let hint = did_you_mean(&wanted, STATEMENTS.iter().map(|entry| entry.name));
            Err(Error::usage(format!("there is no statement {wanted}{hint}; \\h lists them")))
        }
        false => Ok(found.iter().map(shown).collect::<Vec<_>>().join("\n\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sql(text: &str) -> Command {
        Command::Sql(text.into())
    }

    #[test]
    fn commands_are_another_spelling() {
        for (line, expected) in [
            ("\\d", sql("SHOW TABLES")),
            ("\\d orders;", sql("DESCRIBE `orders`")),
            ("\\d \"a.b\"", sql("DESCRIBE \"a.b\"")),
            ("\\d k.my.orders", sql("DESCRIBE TOPIC `k`.`my.orders`")),
            ("\\dt", sql("SHOW TABLES")),
            ("\\dt big*", sql("SHOW TABLES LIKE 'big%'")),
            ("\\dv it's?", sql("SHOW VIEWS LIKE 'it''s_'")),
            ("\\df date*", sql("SHOW FUNCTIONS LIKE 'date%'")),
            ("\\l", sql("SHOW CATALOGS")),
            ("\\i 'a b.sql'", Command::Include("a b.sql".into())),
            ("\\q", Command::Quit),
            ("exit;", Command::Quit),
            (" QUIT ", Command::Quit),
        ] {
            assert!(is_command(line), "{line}");
            assert_eq!(parse(line).unwrap(), expected, "{line}");
        }
        for line in ["SELECT 1;", "exits", "help me", ".5 + 1", "."] {
            assert!(!is_command(line), "{line}");
        }
    }

    #[test]
    fn flags_are_set_or_turned_over() {
        let value = |line: &str| match parse(line).unwrap() {
            Command::Set { key, value, values } => (key, value, values),
            other => panic!("{other:?}"),
        };
        let outputs = ["table", "expanded"];
        assert_eq!(value("\\x"), ("shell.output", None, outputs));
        assert_eq!(value("\\x on"), ("shell.output", Some("expanded"), outputs));
        assert_eq!(value("\\o JSON"), ("shell.output", Some("json"), outputs));
        assert_eq!(value("\\output csv"), ("shell.output", Some("csv"), outputs));
        assert_eq!(value("\\timing off"), ("shell.timing", Some("false"), ["false", "true"]));
        assert_eq!(value("\\pager on"), ("shell.pager", Some("true"), ["true", "false"]));
        assert_eq!(value("\\pager off"), ("shell.pager", Some("false"), ["true", "false"]));
    }

    #[test]
    fn what_is_no_command_is_refused_with_the_nearest() {
        for (line, expected) in [
            ("\\timming", "there is no command \\timming; did you mean 'timing'?"),
            (".tables", "there is no command .tables: they begin with a backslash, and \\? lists them"),
            ("\\o jsn", "\\o: jsn is no choice; did you mean 'json'?"),
            ("\\q now", "\\q takes nothing, and now follows it"),
            ("\\i", "\\i takes a file, such as \\i job.sql"),
            ("\\o", "\\o takes a format: table, expanded, csv, json, markdown"),
        ] {
            assert_eq!(parse(line).unwrap_err().to_string(), expected, "{line}");
        }
    }

    #[test]
    fn help_is_at_hand_for_commands_statements_and_options() {
        let said = |line: &str| match parse(line).unwrap() {
            Command::Say(text) => text,
            other => panic!("{other:?}"),
        };
        assert!(said("help;").contains("\n  \\timing [on|off]"), "{}", said("help;"));
        assert!(said("\\?").contains("  \\q, \\quit, \\exit"));
        STATEMENTS.iter().for_each(|entry| assert!(said("\\h").contains(entry.name), "{}", entry.name));
        for entry in STATEMENTS {
            let shown = said(&format!("\\h {}", entry.name.to_ascii_lowercase()));
            assert!(shown.contains(entry.syntax) && shown.contains(entry.example), "{}", entry.name);
        }
        let expected = "'print-identifier' (print; writing)\n  `name> ` before each line\n  takes: a text";
        assert_eq!(said("\\h 'print-identifier'"), expected);
        assert!(said("\\h 'parallelism'").ends_with("\n  default: the machine's cores"));
        assert!(parse("\\h 'no.such.option'").is_err());
    }
}

//! `WITH` options and settings: text in, typed values out, nothing unknown accepted, nothing secret printed.
//!
//! A connector takes what it knows from an [`OptionReader`]; [`finish`](OptionReader::finish) refuses what is left, with
//! the nearest key that was asked for. `${env:NAME}` is resolved only here, when a value is taken, so that definitions,
//! checkpoints and `EXPLAIN` hold the reference and never the value.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use crate::catalog::TableDefinition;
use crate::error::{Error, Result};

/// What is printed instead of a secret.
pub const REDACTED: &str = "******";

/// Whether the value of this option or setting must never be printed.
pub fn is_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    [
        "password",
        "secret",
        "token",
        "access-key",
        "access.key",
        "credential",
        "jaas",
        "private",
        "key.pem",
        "passphrase",
    ]
    .iter()
    .any(|part| key.contains(part))
}

/// The value as it may be printed or stored: secrets are hidden unless they are references to the environment.
pub fn printable<'a>(key: &str, value: &'a str) -> &'a str {
    let is_reference = value.starts_with("${env:") && value.ends_with('}') && value.matches("${").count() == 1;
    if is_secret(key) && !is_reference { REDACTED } else { value }
}

/// How many names are listed where there may be many.
const LISTED: usize = 5;

/// `; did you mean 'x'?` for the nearest of `known`, or else the list of them all.
pub fn did_you_mean<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.collect();
    nearest_or_list(word, &known, usize::MAX)
}

/// The same of names that may be many, such as topics: listed are only a few, the most similar ones first.
pub fn did_you_mean_of_many<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> String {
    let mut known: Vec<&str> = known.collect();
    known.sort_by(|a, b| likeness(word, b).total_cmp(&likeness(word, a)));
    nearest_or_list(word, &known, LISTED)
}

fn nearest_or_list(word: &str, known: &[&str], limit: usize) -> String {
    match known.iter().max_by(|a, b| likeness(word, a).total_cmp(&likeness(word, b))) {
        Some(nearest) if likeness(word, nearest) >= 0.8 => format!("; did you mean '{nearest}'?"),
        Some(_) if known.len() > limit => {
            format!("; known are {} and {} more", known[..limit].join(", "), known.len() - limit)
        }
        Some(_) => format!("; known are {}", known.join(", ")),
        None => String::new(),
    }
}

fn likeness(word: &str, candidate: &str) -> f64 {
    strsim::jaro_winkler(word, candidate)
}

/// Resolves every `${env:NAME}` in `value`; a variable that is not set is an error.
pub fn resolve_environment(key: &str, value: &str) -> Result<String> {
    let mut resolved = String::with_capacity(value.len());
    let mut rest = value;
    while let Some(start) = rest.find("${env:") {
        let (before, reference) = rest.split_at(start);
        let Some(end) = reference.find('}') else {
            return Err(Error::usage(format!("option '{key}': ${{env: has no closing brace")));
        };
        let name = &reference["${env:".len()..end];
        let found = std::env::var(name).map_err(|_| {
            Error::usage(format!("option '{key}': the environment variable {name} is not set; export it"))
        })?;
        resolved.push_str(before);
        resolved.push_str(&found);
        rest = &reference[end + 1..];
    }
    resolved.push_str(rest);
    Ok(resolved)
}

/// Parses `10 s`, `500ms`, `1 min`, `2 h`, `1 d`: a number and a unit.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..split].parse().ok()?;
    let unit = match text[split..].trim().to_ascii_lowercase().as_str() {
        "ms" | "milli" | "millis" | "millisecond" | "milliseconds" => Duration::from_millis(1),
        "s" | "sec" | "secs" | "second" | "seconds" => Duration::from_secs(1),
        "m" | "min" | "mins" | "minute" | "minutes" => Duration::from_secs(60),
        "h" | "hour" | "hours" => Duration::from_secs(3600),
        "d" | "day" | "days" => Duration::from_secs(86_400),
        _ => return None,
    };
    unit.checked_mul(u32::try_from(number).ok()?)
}

/// Parses `128 mb`, `64KB`, `1024`: a number of bytes with an optional unit (powers of 1024).
pub fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..split].parse().ok()?;
    let shift = match text[split..].trim().to_ascii_lowercase().as_str() {
        "" | "b" | "bytes" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        _ => return None,
    };
    number.checked_mul(1 << shift)
}

/// Keys, each with the words that it takes; none where it takes any text.
pub type Words = BTreeMap<String, Vec<String>>;

thread_local! {
    static ASKED_FOR: RefCell<Option<Words>> = const { RefCell::new(None) };
}

/// The keys that readers on this thread ask for while `read` runs, up to where an error stops it. Connectors know their
/// options by reading them, so there is no other list of them.
pub fn asked_for(read: impl FnOnce()) -> Words {
    ASKED_FOR.set(Some(Words::new()));
    read();
    ASKED_FOR.take().unwrap_or_default()
}

/// Takes typed values out of the options of a table or a catalog, and remembers which keys are known.
#[derive(Debug)]
pub struct OptionReader<'a> {
    whose: String,
    options: &'a BTreeMap<String, String>,
    known: BTreeSet<String>,
    prefixes: Vec<&'static str>,
}

impl<'a> OptionReader<'a> {
    /// A reader over the options of `table`; `connector` is known already.
    pub fn new(table: &'a TableDefinition) -> Self {
        let mut reader = Self::of(format!("table {}", table.name), &table.options);
        reader.known.insert("connector".to_string());
        reader
    }

    /// A reader over the options of something else; errors begin with what it is, such as `catalog k`.
    pub fn of(whose: String, options: &'a BTreeMap<String, String>) -> Self {
        Self { whose, options, known: BTreeSet::new(), prefixes: Vec::new() }
    }

    /// Says which words a key takes, where the caller judges them itself.
    pub fn suggest<'w>(&self, key: &str, words: impl IntoIterator<Item = &'w str>) {
        ASKED_FOR.with_borrow_mut(|asked| {
            let Some(asked) = asked else { return };
            let known = asked.entry(key.to_string()).or_default();
            if known.is_empty() {
                known.extend(words.into_iter().map(str::to_string));
            }
        });
    }

    /// The value as text, environment references resolved.
    pub fn text(&mut self, key: &str) -> Result<Option<String>> {
        self.known.insert(key.to_string());
        self.suggest(key, []);
        match self.options.get(key) {
            Some(value) => resolve_environment(key, value).map(Some).map_err(|e| self.blame(e)),
            None => Ok(None),
        }
    }

    /// The value as text; an error says that it is missing.
    pub fn required(&mut self, key: &str) -> Result<String> {
        self.text(key)?.ok_or_else(|| self.blame(Error::usage(format!("the option '{key}' is missing"))))
    }

    /// The value, parsed; `expected` completes the sentence "… is not …".
    pub fn parsed<T: FromStr>(&mut self, key: &str, expected: &str) -> Result<Option<T>> {
        self.with(key, expected, |text| text.trim().parse().ok())
    }

    /// `true` or `false`.
    pub fn flag(&mut self, key: &str) -> Result<Option<bool>> {
        self.suggest(key, ["true", "false"]);
        self.with(key, "true or false", |text| text.trim().to_ascii_lowercase().parse().ok())
    }

    /// A duration such as `10 s`.
    pub fn duration(&mut self, key: &str) -> Result<Option<Duration>> {
        self.with(key, "a duration such as '10 s' or '500 ms'", parse_duration)
    }

    /// A number of bytes such as `128 mb`.
    pub fn bytes(&mut self, key: &str) -> Result<Option<u64>> {
        self.with(key, "a size such as '128 mb'", parse_bytes)
    }

    /// One of these words, by its index in `choices`.
    pub fn choice<T: Copy>(&mut self, key: &str, choices: &[(&str, T)]) -> Result<Option<T>> {
        self.suggest(key, choices.iter().map(|(word, _)| *word));
        let Some(text) = self.text(key)? else { return Ok(None) };
        match choices.iter().find(|(word, _)| *word == text) {
            Some((_, value)) => Ok(Some(*value)),
            None => {
                let hint = did_you_mean(&text, choices.iter().map(|(word, _)| *word));
                Err(self.blame(Error::usage(format!("option '{key}': '{text}' is no choice{hint}"))))
            }
        }
    }

    /// A value through a parser of the caller's; the value of a secret is not repeated in the error.
    pub fn with<T>(&mut self, key: &str, expected: &str, parse: impl FnOnce(&str) -> Option<T>) -> Result<Option<T>> {
        let Some(text) = self.text(key)? else { return Ok(None) };
        match parse(&text) {
            Some(value) => Ok(Some(value)),
            None => {
                let shown = printable(key, &text);
                Err(self.blame(Error::usage(format!("option '{key}': '{shown}' is not {expected}"))))
            }
        }
    }

    /// A flag that can only be `value`; `instead` completes the sentence "… is not supported: …".
    pub fn only(&mut self, key: &str, value: bool, instead: &str) -> Result<()> {
        self.suggest(key, [if value { "true" } else { "false" }]);
        match self.flag(key)? {
            Some(given) if given != value => {
                Err(self.blame(Error::usage(format!("'{key}' = '{given}' is not supported: {instead}"))))
            }
            _ => Ok(()),
        }
    }

    /// Refuses an option that is known elsewhere; `instead` says what to do.
    pub fn refuse(&self, key: &str, instead: &str) -> Result<()> {
        match self.options.contains_key(key) {
            true => Err(self.blame(Error::usage(format!("option '{key}' is not supported: {instead}")))),
            false => Ok(()),
        }
    }

    /// All options that begin with `prefix`, without it.
    pub fn prefixed(&mut self, prefix: &'static str) -> Result<BTreeMap<String, String>> {
        self.prefixes.push(prefix);
        self.suggest(prefix, []);
        let mut found = BTreeMap::new();
        for (key, value) in self.options.range(prefix.to_string()..) {
            let Some(rest) = key.strip_prefix(prefix) else { break };
            found.insert(rest.to_string(), resolve_environment(key, value).map_err(|e| self.blame(e))?);
        }
        Ok(found)
    }

    /// Refuses what nobody took.
    pub fn finish(self) -> Result<()> {
        for key in self.options.keys() {
            if !self.known.contains(key) && !self.prefixes.iter().any(|p| key.starts_with(p)) {
                let hint = did_you_mean(key, self.known.iter().map(String::as_str));
                return Err(self.blame(Error::usage(format!("there is no option '{key}'{hint}"))));
            }
        }
        Ok(())
    }

    /// The error with whose options they are before it.
    pub fn blame(&self, error: Error) -> Error {
        error.context(&self.whose)
    }
}

/// Prints options as a `WITH` list would have them, secrets hidden.
pub fn display_options(options: &BTreeMap<String, String>) -> impl Display {
    let quote = |text: &str| format!("'{}'", text.replace('\'', "''"));
    options.iter().map(|(k, v)| format!("{} = {}", quote(k), quote(printable(k, v)))).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connector::contract::fixture;

    #[test]
    fn an_unknown_option_is_refused_with_the_nearest_known_one() {
        let table = fixture::with_options(&[("connector", "kafka"), ("scan.startup.mod", "x")]);
        let mut reader = OptionReader::new(&table);
        reader.text("scan.startup.mode").unwrap();
        let error = reader.finish().unwrap_err().to_string();
        assert_eq!(error, "table t: there is no option 'scan.startup.mod'; did you mean 'scan.startup.mode'?");
    }

    #[test]
    fn of_many_names_the_most_similar_are_listed() {
        let hint = |word, known: &[&'static str]| did_you_mean_of_many(word, known.iter().copied());
        let many = ["zebra", "yak", "ox", "ant", "xerus", "orca", "bee"];
        assert_eq!(hint("orders", &many), "; known are orca, xerus, ox, bee, zebra and 2 more");
        assert_eq!(hint("orders", &many[..2]), "; known are zebra, yak");
        assert_eq!(hint("zebras", &many), "; did you mean 'zebra'?");
        assert_eq!(hint("orders", &[]), "");
        assert_eq!(did_you_mean("orders", many.into_iter()), "; known are zebra, yak, ox, ant, xerus, orca, bee");
    }

    #[test]
    fn what_is_asked_for_is_known_up_to_an_error() {
        let table = fixture::with_options(&[("format", "json")]);
        let read = || {
            let mut reader = OptionReader::new(&table);
            reader.suggest("format", ["json", "raw"]);
            reader.text("format").unwrap();
            reader.flag("strict").unwrap();
            reader.prefixed("properties.").unwrap();
            let _ = reader.required("topic");
        };
        let words = |words: &[&str]| words.iter().map(|word| word.to_string()).collect::<Vec<_>>();
        let expected = [
            ("format", words(&["json", "raw"])),
            ("properties.", vec![]),
            ("strict", words(&["true", "false"])),
            ("topic", vec![]),
        ];
        assert_eq!(asked_for(read), expected.map(|(key, words)| (key.to_string(), words)).into());
        read();
        assert_eq!(asked_for(|| ()), Words::new());
    }

    #[test]
    fn a_secret_is_never_repeated() {
        let table = fixture::with_options(&[("sasl.password", "hunter2")]);
        let mut reader = OptionReader::new(&table);
        let error = reader.parsed::<u64>("sasl.password", "a number").unwrap_err();
        assert!(!error.chain().contains("hunter2"), "{error}");
        assert_eq!(printable("sasl.password", "${env:PW}"), "${env:PW}");
        assert_eq!(printable("sasl.password", "${env:PW}x${y}"), REDACTED);
    }

    #[test]
    fn durations_and_sizes() {
        assert_eq!(parse_duration("10 s"), Some(Duration::from_secs(10)));
        assert_eq!(parse_duration("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(parse_duration("10"), None);
        assert_eq!(parse_bytes("128 mb"), Some(128 << 20));
        assert_eq!(parse_bytes("7"), Some(7));
        assert_eq!(parse_bytes("7 apples"), None);
    }
}

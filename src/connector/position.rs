//! Where a stream begins and where it ends, as options say it: in the same words for every broker.
//!
//! The idea: `scan.startup.*` and `scan.bounded.*` name a [`Position`]; with what the broker answers it becomes an offset
//! for each partition, once in a query's life, and the answer is recorded.
//!
//! Not promised: that the offsets of a group, or those that were written down, are still there. A query that begins where
//! nothing is any more is told so when it reads, as `scan.on-data-loss` says.

use std::collections::BTreeMap;

use async_trait::async_trait;

use super::{Bounds, Extent, Offsets, OptionEntry, Partition};
use crate::error::{Error, Result};
use crate::sql::options::OptionReader;

/// A place in every partition of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Position {
    /// The first offset that is there.
    Earliest,
    /// Behind the last.
    Latest,
    /// Where the consumer group stands; where it stands nowhere, what the end says.
    Group(End),
    /// At the first message that is as late as this, ms since 1970; behind the last, if none is.
    Timestamp(i64),
    /// At these offsets; for partitions that are not listed, what the end says.
    Specific(Offsets, End),
}

/// An end of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Its first offset.
    Earliest,
    /// Behind its last.
    Latest,
}

/// Of which end of a stream options speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// `scan.startup.*`
    Startup,
    /// `scan.bounded.*`
    Bounded,
}

/// What a broker is asked for, of partitions that exist.
#[async_trait]
pub trait Lookup: Send + Sync {
    /// The next offset of the table's consumer group, where it has one.
    async fn committed(&self, partitions: &[Partition]) -> Result<Offsets>;

    /// The offset of the first message that is not before this time, ms since 1970; none where all are.
    async fn at(&self, partitions: &[Partition], timestamp_ms: i64) -> Result<Offsets>;
}

const MODES: [&str; 5] = ["earliest-offset", "latest-offset", "group-offsets", "timestamp", "specific-offsets"];
const ENDS: [(&str, End); 2] = [("earliest-offset", End::Earliest), ("latest-offset", End::Latest)];

impl Side {
    fn prefix(self) -> &'static str {
        match self {
            Side::Startup => "scan.startup",
            Side::Bounded => "scan.bounded",
        }
    }
}

/// What the options of both sides say, where `offsets` is how a list of offsets is written.
pub fn options(offsets: &'static str) -> Vec<OptionEntry> {
    let modes = "`earliest-offset`, `latest-offset`, `group-offsets`, `timestamp`, `specific-offsets`";
    let ends = "`earliest-offset`, `latest-offset`";
    vec![
        OptionEntry::reading(
            "scan.startup.mode",
            modes,
            "`earliest-offset`",
            "where a new query starts: at the first message, behind the last, where the consumer group stands, at a \
             time, or at offsets that are listed. **Flink's default is another one**",
        ),
        OptionEntry::reading(
            "scan.startup.timestamp-millis",
            "ms since 1970",
            "",
            "with `timestamp`: at the first message that is not before this time; behind the last, if there is none",
        ),
        OptionEntry::reading("scan.startup.specific-offsets", offsets, "", "with `specific-offsets`: these"),
        OptionEntry::reading(
            "scan.startup.default",
            ends,
            "`earliest-offset`",
            "with `group-offsets` and `specific-offsets`: for partitions that have no such offset",
        ),
        OptionEntry::reading(
            "scan.bounded.mode",
            "`unbounded`, `earliest-offset`, `latest-offset`, `group-offsets`, `timestamp`, `specific-offsets`",
            "`unbounded`",
            "where the stream ends: at what these say when the query begins. An offset that is not there yet is \
             waited for",
        ),
        OptionEntry::reading("scan.bounded.timestamp-millis", "ms since 1970", "", "as for `scan.startup`"),
        OptionEntry::reading(
            "scan.bounded.specific-offsets",
            offsets,
            "",
            "as for `scan.startup`: the first offsets that are not read",
        ),
        OptionEntry::reading("scan.bounded.default", ends, "`earliest-offset`", "as for `scan.startup`"),
    ]
}

impl Position {
    /// Takes the options of one side; none, if they say nothing. `offsets` parses a list of them, and `form` shows one.
    pub fn take(
        reader: &mut OptionReader<'_>,
        side: Side,
        form: &str,
        offsets: impl FnOnce(&str) -> Option<BTreeMap<Partition, u64>>,
    ) -> Result<Option<Self>> {
        let prefix = side.prefix();
        let key = |name: &str| format!("{prefix}.{name}");
        let (mode_key, offsets_key, default_key) = (key("mode"), key("specific-offsets"), key("default"));
        let timestamp_key = key("timestamp-millis");
        let mut words: Vec<(&str, Option<&str>)> = MODES.iter().map(|mode| (*mode, Some(*mode))).collect();
        if side == Side::Bounded {
            words.push(("unbounded", None));
        }
        let mode = reader.choice(&mode_key, &words)?.flatten();
        let timestamp = reader.parsed(&timestamp_key, "a time in ms since 1970")?;
        let offsets = reader.with(&offsets_key, form, offsets)?;
        let default = reader.choice(&default_key, &ENDS)?;
        for (is_given, option, modes) in [
            (timestamp.is_some(), &timestamp_key, &["timestamp"][..]),
            (offsets.is_some(), &offsets_key, &["specific-offsets"]),
            (default.is_some(), &default_key, &["specific-offsets", "group-offsets"]),
        ] {
            if is_given && !mode.is_some_and(|mode| modes.contains(&mode)) {
                let modes = modes.iter().map(|mode| format!("'{mode}'")).collect::<Vec<_>>().join(" or ");
                return Err(reader.blame(Error::usage(format!("option '{option}' needs '{mode_key}' = {modes}"))));
            }
        }
        let default = default.unwrap_or(End::Earliest);
        let needs = |mode: &str, option: &str| {
            reader.blame(Error::usage(format!("'{mode_key}' = '{mode}' needs the option '{option}'")))
        };
        Ok(match mode {
            None => None,
            Some("earliest-offset") => Some(Self::Earliest),
            Some("latest-offset") => Some(Self::Latest),
            Some("group-offsets") => Some(Self::Group(default)),
            Some(mode @ "timestamp") => Some(Self::Timestamp(timestamp.ok_or_else(|| needs(mode, &timestamp_key))?)),
            Some(mode) => Some(Self::Specific(offsets.ok_or_else(|| needs(mode, &offsets_key))?, default)),
        })
    }

    /// The offsets it means, of the partitions of `extent`.
    ///
    /// Errors: a listed partition that does not exist; for a beginning, a listed offset that is not there.
    pub async fn resolve(&self, side: Side, extent: &Extent, lookup: &dyn Lookup) -> Result<Offsets> {
        let partitions: Vec<Partition> = extent.partitions.keys().cloned().collect();
        let (known, default) = match self {
            Self::Earliest => (Offsets::new(), End::Earliest),
            Self::Latest => (Offsets::new(), End::Latest),
            Self::Group(default) => (lookup.committed(&partitions).await?, *default),
            Self::Timestamp(at) => (lookup.at(&partitions, *at).await?, End::Latest),
            Self::Specific(listed, default) => {
                check(listed, side, extent)?;
                (listed.clone(), *default)
            }
        };
        if let (Self::Group(_), Side::Startup) = (self, side) {
            check_group(&known, extent)?;
        }
        let offset = |(partition, bounds): (&Partition, &Bounds)| {
            let end = match default {
                End::Earliest => bounds.earliest,
                End::Latest => bounds.latest,
            };
            (partition.clone(), known.get(partition).copied().unwrap_or(end))
        };
        Ok(extent.partitions.iter().map(offset).collect())
    }
}

/// What a group has read must have been there.
fn check_group(known: &Offsets, extent: &Extent) -> Result<()> {
    for (partition, offset) in known {
        if let Some(bounds) = extent.partitions.get(partition).filter(|bounds| bounds.latest < *offset) {
            return Err(Error::usage(format!(
                "option 'scan.startup.mode': the group stands at offset {offset} of {partition}, which can be read up to {} now; \
                 if it has read what is not committed yet, try again later, else reset the group",
                bounds.latest
            )));
        }
    }
    Ok(())
}

/// What was written down must exist. An end may lie ahead: the query then waits for it.
fn check(listed: &Offsets, side: Side, extent: &Extent) -> Result<()> {
    let option = format!("option '{}.specific-offsets'", side.prefix());
    for (partition, offset) in listed {
        let Some(bounds) = extent.partitions.get(partition) else {
            let known: Vec<String> = extent.partitions.keys().map(ToString::to_string).collect();
            return Err(Error::usage(format!("{option}: there is no {partition}; there are {}", known.join(", "))));
        };
        if side == Side::Startup && !(bounds.earliest..=bounds.latest).contains(offset) {
            return Err(Error::usage(format!(
                "{option}: offset {offset} is not in {partition}, which holds {}..{}",
                bounds.earliest, bounds.latest
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connector::contract::fixture::{extent, partition, with_options};

    fn take(side: Side, options: &[(&str, &str)]) -> std::result::Result<Option<Position>, String> {
        let table = with_options(options);
        let parse = |text: &str| Some(Offsets::from([(partition(0), text.parse().ok()?)]));
        let taken = Position::take(&mut OptionReader::new(&table), side, "an offset", parse);
        taken.map_err(|error| error.to_string())
    }

    #[test]
    fn the_modes_and_what_they_need() {
        use Side::{Bounded, Startup};
        assert_eq!(take(Startup, &[]), Ok(None));
        assert_eq!(take(Bounded, &[("scan.bounded.mode", "unbounded")]), Ok(None));
        assert_eq!(take(Bounded, &[("scan.bounded.mode", "latest-offset")]), Ok(Some(Position::Latest)));
        let group = [("scan.startup.mode", "group-offsets"), ("scan.startup.default", "latest-offset")];
        assert_eq!(take(Startup, &group), Ok(Some(Position::Group(End::Latest))));
        let time = [("scan.startup.mode", "timestamp"), ("scan.startup.timestamp-millis", "7")];
        assert_eq!(take(Startup, &time), Ok(Some(Position::Timestamp(7))));
        let listed = [("scan.startup.mode", "specific-offsets"), ("scan.startup.specific-offsets", "3")];
        let offsets = Offsets::from([(partition(0), 3)]);
        assert_eq!(take(Startup, &listed), Ok(Some(Position::Specific(offsets, End::Earliest))));
    }

    #[test]
    fn contradictions_are_refused_by_name() {
        for (options, part) in [
            (&[("scan.startup.mode", "timestamp")][..], "'timestamp' needs the option 'scan.startup.timestamp-millis'"),
            (&[("scan.startup.timestamp-millis", "7")], "needs 'scan.startup.mode' = 'timestamp'"),
            (&[("scan.startup.default", "latest-offset")], "= 'specific-offsets' or 'group-offsets'"),
            (&[("scan.startup.mode", "unbounded")], "'unbounded' is no choice"),
            (&[("scan.startup.mode", "latest")], "did you mean 'latest-offset'"),
            (
                &[("scan.startup.mode", "timestamp"), ("scan.startup.timestamp-millis", "noon")],
                "'noon' is not a time in ms",
            ),
        ] {
            let error = take(Side::Startup, options).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }

    struct Answers;

    #[async_trait]
    impl Lookup for Answers {
        async fn committed(&self, _: &[Partition]) -> Result<Offsets> {
            Ok(Offsets::from([(partition(1), 3)]))
        }
        async fn at(&self, _: &[Partition], _: i64) -> Result<Offsets> {
            Ok(Offsets::from([(partition(0), 6)]))
        }
    }

    #[tokio::test]
    async fn a_position_becomes_an_offset_for_each_partition() {
        let extent = extent(&[(5, 9), (2, 3)]);
        let listed = |number, offset| Position::Specific(Offsets::from([(partition(number), offset)]), End::Latest);
        for (position, expected) in [
            (Position::Earliest, [5, 2]),
            (Position::Latest, [9, 3]),
            (Position::Group(End::Earliest), [5, 3]),
            (Position::Timestamp(0), [6, 3]),
            (listed(0, 8), [8, 3]),
        ] {
            let offsets = position.resolve(Side::Startup, &extent, &Answers).await.unwrap();
            assert_eq!(offsets.into_values().collect::<Vec<_>>(), expected, "{position:?}");
        }
        for (number, offset, part) in [(7, 1, "there is no t:7; there are t:0, t:1"), (0, 10, "which holds 5..9")] {
            let error = listed(number, offset).resolve(Side::Startup, &extent, &Answers).await.unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
        }
        let ahead = listed(0, 10).resolve(Side::Bounded, &extent, &Answers).await.unwrap();
        assert_eq!(ahead[&partition(0)], 10);
    }
}

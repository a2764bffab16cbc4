//! Options of every source that the engine itself acts on: how much an epoch takes, when a partition counts as idle, and
//! what to do when messages are gone.

use std::time::Duration;

use super::entry::OptionEntry;
use crate::catalog::TableDefinition;
use crate::error::{Error, Result};
use crate::sql::options::{OptionReader, parse_bytes};

/// See the module's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScanOptions {
    /// `scan.max-rows-per-epoch`: offsets that an epoch takes at most.
    pub max_rows: u64,
    /// `scan.max-bytes-per-epoch`: bytes that an epoch should take at most.
    pub max_bytes: u64,
    /// `scan.max-rows-per-second-per-partition`: offsets of a partition that epochs take in a second at most.
    pub max_rate: Option<u64>,
    /// `scan.min-rows-per-epoch`: an epoch begins when there are so many offsets to read; from 1 to `max_rows`.
    pub min_rows: u64,
    /// `scan.min-rows-max-wait`: or when the oldest of them have waited so long.
    pub max_wait: Duration,
    /// `scan.watermark.idle-timeout`: a partition that had nothing to read for so long does not hold the watermark back.
    pub idle_timeout: Duration,
    /// `scan.on-data-loss`.
    pub on_data_loss: OnDataLoss,
}

/// What to do when messages are gone that were not read yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDataLoss {
    /// The query ends.
    Fail,
    /// It goes on with what is left, and counts what is gone.
    Continue,
}

/// What to do about messages that are gone, for errors.
pub const IF_GONE: &str = "to go on without them say 'scan.on-data-loss' = 'continue', and to prevent it let the topic keep \
                           its messages for longer than a query stands still";

impl ScanOptions {
    /// The keys. What they say is in every intent, so changes may apply at once.
    pub const KEYS: [&'static str; 7] = [
        "scan.max-rows-per-epoch",
        "scan.max-bytes-per-epoch",
        "scan.max-rows-per-second-per-partition",
        "scan.min-rows-per-epoch",
        "scan.min-rows-max-wait",
        "scan.watermark.idle-timeout",
        "scan.on-data-loss",
    ];

    /// What they say.
    pub const OPTIONS: &'static [OptionEntry] = &[
        OptionEntry::reading(
            "scan.max-rows-per-epoch",
            "a number, at least 1",
            "2000000",
            "[offsets](sql.md#epoch-size) that an epoch takes from the table at most, shared out among its partitions \
             by backlog",
        ),
        OptionEntry::reading(
            "scan.max-bytes-per-epoch",
            "a size such as `64 mb`, more than 0",
            "`256 mb`",
            "[bytes](sql.md#epoch-size) that an epoch should take from it at most",
        ),
        OptionEntry::reading(
            "scan.max-rows-per-second-per-partition",
            "a number, at least 1",
            "",
            "[offsets](sql.md#epoch-size) that are taken from each partition in a second at most, so that a backlog \
             is read steadily",
        ),
        OptionEntry::reading(
            "scan.min-rows-per-epoch",
            "a number, at least 1",
            "1",
            "no epoch begins before there are so many [offsets](sql.md#epoch-size) to take",
        ),
        OptionEntry::reading(
            "scan.min-rows-max-wait",
            "a duration",
            "`10 s`",
            "or before the oldest of them have waited so long; only with `scan.min-rows-per-epoch`",
        ),
        OptionEntry::reading(
            "scan.watermark.idle-timeout",
            "a duration",
            "`1 min`",
            "a partition that had nothing to read for so long does not hold the [watermark](time.md#idle-partitions) \
             back",
        ),
        OptionEntry::reading(
            "scan.on-data-loss",
            "`fail`, `continue`",
            "`fail`",
            "when messages are [gone](sql.md#continuous-queries) before they were read: end, or go on at the first \
             offset that is there and count what is skipped, which is for topics",
        ),
    ];

    /// Takes them.
    pub fn take(reader: &mut OptionReader<'_>) -> Result<Self> {
        let [max_rows, max_bytes, max_rate, min_rows, max_wait, idle_timeout, on_data_loss] = Self::KEYS;
        let answers = [("fail", OnDataLoss::Fail), ("continue", OnDataLoss::Continue)];
        let mut number = |key| {
            let at_least_one = |text: &str| text.trim().parse().ok().filter(|rows: &u64| *rows > 0);
            reader.with(key, "a number of rows, at least 1", at_least_one)
        };
        let (most, rate, least) = (number(max_rows)?, number(max_rate)?, number(min_rows)?);
        let some_bytes = |text: &str| parse_bytes(text).filter(|bytes| *bytes > 0);
        let bytes = reader.with(max_bytes, "a size such as '64 mb', more than 0", some_bytes)?;
        let wait = reader.duration(max_wait)?;
        if wait.is_some() && least.is_none() {
            let message = format!("the option '{max_wait}' has no meaning without '{min_rows}'; say both, or neither");
            return Err(reader.blame(Error::usage(message)));
        }
        let scan = Self {
            max_rows: most.unwrap_or(2_000_000),
            max_bytes: bytes.unwrap_or(256 << 20),
            max_rate: rate,
            min_rows: least.unwrap_or(1),
            max_wait: wait.unwrap_or(Duration::from_secs(10)),
            idle_timeout: reader.duration(idle_timeout)?.unwrap_or(Duration::from_secs(60)),
            on_data_loss: reader.choice(on_data_loss, &answers)?.unwrap_or(OnDataLoss::Fail),
        };
        if scan.min_rows > scan.max_rows {
            return Err(reader.blame(Error::usage(format!(
                "'{min_rows}' is {}, more than '{max_rows}', which is {}: no epoch could have both; lower the one, or \
                 raise the other",
                scan.min_rows, scan.max_rows
            ))));
        }
        Ok(scan)
    }

    /// The same of a connector that has nothing to go on with where something is gone.
    pub fn take_strict(reader: &mut OptionReader<'_>) -> Result<Self> {
        let scan = Self::take(reader)?;
        if scan.on_data_loss == OnDataLoss::Continue {
            return Err(reader.blame(Error::usage(
                "option 'scan.on-data-loss': 'continue' is for topics, which begin and end somewhere; leave it out",
            )));
        }
        Ok(scan)
    }

    /// Those of a table that was checked.
    pub fn of(table: &TableDefinition) -> Result<Self> {
        Self::take(&mut OptionReader::new(table))
    }
}

//! Options of every source that the engine itself acts on: how much an epoch takes, when a partition counts as idle, and
//! what to do when messages are gone.

use std::time::Duration;

use crate::catalog::TableDefinition;
use crate::error::Result;
use crate::sql::options::OptionReader;

/// See the module's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScanOptions {
    /// `scan.max-rows-per-epoch`: offsets that an epoch takes at most.
    pub max_rows: u64,
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

impl ScanOptions {
    /// The keys. What they say is in every intent, so changes may apply at once.
    pub const KEYS: [&'static str; 3] = ["scan.max-rows-per-epoch", "scan.watermark.idle-timeout", "scan.on-data-loss"];

    /// Takes them.
    pub fn take(reader: &mut OptionReader<'_>) -> Result<Self> {
        let [max_rows, idle_timeout, on_data_loss] = Self::KEYS;
        let answers = [("fail", OnDataLoss::Fail), ("continue", OnDataLoss::Continue)];
        let at_least_one = |text: &str| text.trim().parse().ok().filter(|rows| *rows > 0);
        Ok(Self {
            max_rows: reader.with(max_rows, "a number of rows, at least 1", at_least_one)?.unwrap_or(2_000_000),
            idle_timeout: reader.duration(idle_timeout)?.unwrap_or(Duration::from_secs(60)),
            on_data_loss: reader.choice(on_data_loss, &answers)?.unwrap_or(OnDataLoss::Fail),
        })
    }

    /// Those of a table that was checked.
    pub fn of(table: &TableDefinition) -> Result<Self> {
        Self::take(&mut OptionReader::new(table))
    }
}

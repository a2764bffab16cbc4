//! When the next epoch starts.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::sql::options::parse_duration;

/// When the next epoch starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// As soon as there is input.
    Continuous,
    /// At most once in this time.
    Every(Duration),
    /// At once, up to the offsets seen at the start; then the query ends.
    AvailableNow,
}

impl Trigger {
    /// What files get unless told otherwise.
    pub const FILES: Trigger = Trigger::Every(Duration::from_secs(10));
}

impl fmt::Display for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trigger::Continuous => f.write_str("continuous"),
            Trigger::Every(interval) => write!(f, "{interval:?}"),
            Trigger::AvailableNow => f.write_str("available-now"),
        }
    }
}

impl FromStr for Trigger {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "continuous" => Ok(Trigger::Continuous),
            "available-now" => Ok(Trigger::AvailableNow),
            other => parse_duration(other).map(Trigger::Every).ok_or_else(|| {
                Error::usage(format!(
                    "'{other}' is no trigger; use continuous, available-now or an interval such as '10 s'"
                ))
            }),
        }
    }
}

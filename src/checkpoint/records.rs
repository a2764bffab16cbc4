//! The records, as they are written: JSON with a version, golden files of which are tests.
//!
//! A record is never changed once written. A reader takes records up to its own version and refuses newer ones, so that
//! an older binary never misreads what a newer one wrote.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::connector::{Fingerprint, Offsets, Partition, Pin, Published, Span};
use crate::error::{Error, Result};
use crate::query::definition::Definition;
use crate::state::StateCommit;

/// The version that this binary writes. 2: event time and state. 3: a table of late rows, a second sink. 4: statement sets, dead
/// letters. 5: streams that end, messages that are gone. 6: rewinds.
pub const VERSION: u32 = 6;

/// `query.json`: who the query is, and where it began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueryRecord {
    /// See [`VERSION`].
    pub version: u32,
    /// 16 random hex digits: what everything durable outside is named by.
    pub id: String,
    /// The name, for people.
    pub name: String,
    /// When it was created, ms since 1970.
    pub created_ms: i64,
    /// By table: each partition's start offset, resolved once.
    pub start: BTreeMap<String, Offsets>,
    /// By table that is bounded: where each partition ends, resolved once. Others of its partitions are not read.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub end: BTreeMap<String, Offsets>,
    /// Of a generation that a rewind has made, what it goes on from. Its commit of epoch 0 says where.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rewound: Option<Rewound>,
}

/// What a generation that a rewind has made goes on from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rewound {
    /// The generation before.
    pub generation: u64,
    /// Its id: what it wrote carries it.
    pub id: String,
    /// The epoch of it that is gone back to; none, if offsets were given that are no epoch's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// Whether what its later epochs wrote is removed.
    pub deletes: bool,
}

/// `definitions/…`: what the query was, from some epoch on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DefinitionRecord {
    /// See [`VERSION`].
    pub version: u32,
    /// Its number, from 1.
    pub number: u64,
    /// The definition.
    pub definition: Definition,
}

/// `runs/…`: a process that runs the query.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRecord {
    /// See [`VERSION`].
    pub version: u32,
    /// Its number, from 1: the newest wins.
    pub number: u64,
    /// The machine.
    pub host: String,
    /// The process.
    pub pid: u32,
    /// When it started, ms since 1970.
    pub started_ms: i64,
    /// Random: tells two processes apart that are alike in everything else.
    pub token: String,
}

/// A source's share of an epoch, cut into tasks: each reads its spans in this order, in offset order.
pub type Cut = Vec<Vec<Span>>;

/// `intents/…`: everything that decides an epoch's result.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// See [`VERSION`].
    pub version: u32,
    /// The epoch, from 1.
    pub epoch: u64,
    /// The run that made it.
    pub run: u64,
    /// The definition it runs under.
    pub definition: u64,
    /// The epoch's time, ms since 1970: what `now()` answers. Rises strictly.
    pub batch_time_ms: i64,
    /// The watermark, ms since 1970: what lies before it comes out in this epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watermark_ms: Option<i64>,
    /// The watermark of the epoch before: rows for what lies before it are late.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub late_before_ms: Option<i64>,
    /// Into how many shards state is divided, and so into how many tasks what comes out of it; 0 without state.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub shards: usize,
    /// By table.
    pub sources: BTreeMap<String, Cut>,
    /// What each sink pinned, in the order of the query's sinks.
    pub pins: Vec<Pin>,
    /// What the tables of dead letters pinned, by what they are. They may be others at a rerun: what to do with trouble
    /// applies at once.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub dead_letters: BTreeMap<String, Pin>,
}

/// `commits/…`: an epoch counts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    /// See [`VERSION`].
    pub version: u32,
    /// The epoch.
    pub epoch: u64,
    /// The run that made it.
    pub run: u64,
    /// The epoch's time, from its intent.
    pub batch_time_ms: i64,
    /// By table: where every partition stands.
    pub sources: BTreeMap<String, SourceCommit>,
    /// What was published, in the order of the query's sinks.
    pub sinks: Vec<Published>,
    /// Dead letters that were published, by what their tables are.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub dead_letters: BTreeMap<String, Published>,
    /// The watermark, from its intent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watermark_ms: Option<i64>,
    /// By operator: its state after the epoch.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub state: BTreeMap<String, StateCommit>,
    /// By table: how many offsets of a partition were gone, and are skipped by this epoch.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub lost: BTreeMap<String, Offsets>,
}

fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// Where the partitions of a source stand.
pub type SourceCommit = BTreeMap<Partition, PartitionCommit>;

/// Where a partition stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionCommit {
    /// The next offset to read.
    pub next: u64,
    /// The batch time of the epoch that last had a row of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_row_ms: Option<i64>,
    /// The last message read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<Fingerprint>,
    /// The highest watermark of its rows, ms since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watermark_ms: Option<i64>,
}

impl Intent {
    /// All spans of `table`, in the order they are read.
    pub fn spans(&self, table: &str) -> impl Iterator<Item = &Span> {
        self.sources.get(table).into_iter().flatten().flatten()
    }
}

/// A record as bytes: pretty JSON, because people look at these.
pub(crate) fn encode<T: Serialize>(record: &T) -> Result<Bytes> {
    let mut body = serde_json::to_vec_pretty(record)
        .map_err(|e| Error::internal("a record cannot be written as JSON").caused_by(e))?;
    body.push(b'\n');
    Ok(body.into())
}

/// Bytes as a record; `path` is for the error.
pub(super) fn decode<T: DeserializeOwned>(path: &str, body: &[u8]) -> Result<T> {
    decode_up_to(VERSION, path, body)
}

/// Bytes as a record of a version that is `known` or older.
pub(crate) fn decode_up_to<T: DeserializeOwned>(known: u32, path: &str, body: &[u8]) -> Result<T> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let broken = |e| Error::refused(format!("the record {path} cannot be read; restore it from a copy")).caused_by(e);
    let Versioned { version } = serde_json::from_slice(body).map_err(broken)?;
    if version > known {
        return Err(Error::refused(format!(
            "the record {path} has version {version}, and this binary knows {known}; use the newer binary"
        )));
    }
    serde_json::from_slice(body).map_err(broken)
}

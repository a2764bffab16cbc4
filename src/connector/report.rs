//! What a read saw on the way: counts, skipped messages, the last message of each partition.
//!
//! Many tasks add to one report while an epoch runs; it is taken once, when all of them have ended.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::Partition;
use super::dead_letters::DeadLetters;

/// The last message of a span: how a topic that was deleted and created anew is noticed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Its offset.
    pub offset: u64,
    /// Its timestamp in ms since 1970, as the broker has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<i64>,
    /// Its id, where the broker gives one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}

/// A message that was skipped under `format.on-error` = skip.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedSample {
    /// Its offset.
    pub offset: u64,
    /// Why.
    pub reason: String,
}

/// What was read from one partition.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionReport {
    /// Messages, skipped ones included.
    pub messages: u64,
    /// Bytes of their payloads.
    pub bytes: u64,
    /// Messages that could not be read, and were skipped.
    pub skipped: u64,
    /// Messages that could not be read, and went to the table for dead letters.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub dead_letters: u64,
    /// One of them.
    pub sample: Option<SkippedSample>,
    /// The last message.
    pub last: Option<Fingerprint>,
    /// The highest watermark of its rows, ms since 1970, where the plan asks for it.
    pub watermark_ms: Option<i64>,
}

impl PartitionReport {
    /// Adds what a later part of the same partition saw.
    pub fn merge(&mut self, later: PartitionReport) {
        self.messages += later.messages;
        self.bytes += later.bytes;
        self.skipped += later.skipped;
        self.dead_letters += later.dead_letters;
        self.sample = self.sample.take().or(later.sample);
        self.last = later.last.or(self.last.take());
        self.watermark_ms = self.watermark_ms.max(later.watermark_ms);
    }
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Collects [`PartitionReport`]s of one source, and its dead letters; clones share it.
#[derive(Debug, Clone, Default)]
pub struct ReadReport {
    seen: Arc<Mutex<BTreeMap<Partition, PartitionReport>>>,
    dead_letters: Option<Arc<DeadLetters>>,
}

impl ReadReport {
    /// One for a source whose dead letters have a table.
    pub fn with_dead_letters(letters: Arc<DeadLetters>) -> Self {
        Self { seen: Arc::default(), dead_letters: Some(letters) }
    }

    /// The same, apart from what was and will be seen: for reading again what others have reported.
    pub fn aside(&self) -> Self {
        Self { seen: Arc::default(), dead_letters: self.dead_letters.clone() }
    }

    /// Where messages that cannot be read are put down.
    pub fn dead_letters(&self) -> Option<&Arc<DeadLetters>> {
        self.dead_letters.as_ref()
    }

    /// Adds what was seen of `partition`.
    pub fn add(&self, partition: &Partition, seen: PartitionReport) {
        let mut all = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(partition.clone()).or_default().merge(seen);
    }

    /// Takes everything collected so far.
    pub fn take(&self) -> BTreeMap<Partition, PartitionReport> {
        std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

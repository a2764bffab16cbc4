//! The progress topic: which epoch each query has written to a topic, in the same transaction as its rows.
//!
//! The idea: a transaction that holds an epoch's rows ends with one small record that says so. Who begins anew reads the
//! newest record of its key, and knows whether the epoch that it was about to write is there. The topic has one partition
//! and is compacted, so it keeps one record for each query and topic; the commit keeps where the newest one lies, so that
//! it is found without reading all.
//!
//! Guarantee: [`newest`](ProgressTopic::newest) sees every record that was committed before it was asked, also those of
//! transactions whose outcome was not known then: it waits until it is.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::admin::{NewTopic, TopicReplication};
use rdkafka::error::RDKafkaErrorCode as Code;
use serde::{Deserialize, Serialize};

use super::admin::Admin;
use super::client::{Client, is_refusal};
use super::properties::Properties;
use super::queue::{PartitionQueue, Topic, Trouble};
use crate::connector::{Bounds, Partition};
use crate::error::{Error, Result};

/// How long one wait for records takes at most.
const WAIT: Duration = Duration::from_millis(100);
/// How often: longer than any transaction may be open by default.
const WAITS: usize = 1_200;
/// After how many it is said what is waited for.
const LONG: usize = 50;
/// Messages that are taken at a time.
const MESSAGES: usize = 8192;

/// The topic, and whose records are meant.
#[derive(Debug, Clone)]
pub(super) struct ProgressTopic {
    properties: Properties,
    name: String,
    key: String,
}

/// What a record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Written {
    epoch: u64,
}

/// Where a query stands: its newest record, as the commit keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    /// The progress topic.
    pub(super) topic: String,
    /// The key of the record: one of another sink says nothing of this one.
    pub(super) key: String,
    /// The newest epoch that had rows.
    pub(super) epoch: u64,
    /// Where the progress topic has its record.
    pub(super) offset: u64,
}

impl ProgressTopic {
    /// Records under `key`, in the topic of this name.
    pub(super) fn new(properties: Properties, name: String, key: String) -> Self {
        Self { properties, name, key }
    }

    /// Its name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Its only partition.
    fn partition(&self) -> Partition {
        Partition::new(self.name.as_str(), 0)
    }

    /// The key of our records.
    pub(super) fn key(&self) -> &[u8] {
        self.key.as_bytes()
    }

    /// Where the record of an epoch lies.
    pub(super) fn position(&self, epoch: u64, offset: u64) -> Position {
        Position { topic: self.name.clone(), key: self.key.clone(), epoch, offset }
    }

    /// What a commit kept, if it is of this topic and key.
    pub(super) fn known(&self, kept: &serde_json::Value) -> Option<Position> {
        let kept: Option<Position> = serde_json::from_value(kept.clone()).unwrap_or_default();
        kept.filter(|kept| kept.topic == self.name && kept.key == self.key)
    }

    /// The record of an epoch.
    pub(super) fn record(epoch: u64) -> Result<Vec<u8>> {
        serde_json::to_vec(&Written { epoch }).map_err(|e| Error::internal("progress is no JSON").caused_by(e))
    }

    /// Creates the topic, if it is missing; else checks that it keeps what is written to it.
    pub(super) fn ensure(&self) -> Result<()> {
        let admin = Admin::try_new(self.properties.clone())?;
        match admin.find(&self.name).map_err(of_progress)?.map(|leaders| leaders.len()) {
            None => self.create(&admin),
            Some(1) => self.check_policy(&admin),
            Some(count) => Err(Error::refused(format!(
                "the progress topic {} has {count} partitions, and must have one; name another with \
                 'sink.progress-topic', which is created",
                self.name
            ))),
        }
    }

    fn create(&self, admin: &Admin) -> Result<()> {
        let topic = NewTopic::new(&self.name, 1, TopicReplication::Fixed(-1)).set("cleanup.policy", "compact");
        match admin.make(&topic).map_err(of_progress)? {
            None | Some(Code::TopicAlreadyExists) => admin.wait_for_leaders(&self.name).map_err(of_progress),
            Some(code) => Err(Error::refused(format!(
                "the progress topic {} is missing, and cannot be created: {code}; let the user CREATE it, create it with \
                 one partition and cleanup.policy=compact, or write at least once ('sink.delivery-guarantee')",
                self.name
            ))),
        }
    }

    fn check_policy(&self, admin: &Admin) -> Result<()> {
        let settings = admin.settings(&self.name).map_err(of_progress)?;
        let policy = settings.into_iter().find(|setting| setting.name == "cleanup.policy");
        match policy.and_then(|setting| setting.value).as_deref() {
            // Who may not read settings is not kept from writing.
            None | Some("compact") => Ok(()),
            Some(other) => Err(Error::refused(format!(
                "the progress topic {} has cleanup.policy={other}, under which it forgets what was written; set it to \
                 compact",
                self.name
            ))),
        }
    }

    /// The newest record of our key at or behind `from`, if there is one, as long as it is `wanted`.
    ///
    /// Errors: a topic that ends before `from`, so that it is another one than it was.
    pub(super) fn newest(&self, from: Option<u64>, wanted: &dyn Fn() -> bool) -> Result<Option<Position>> {
        let client = Arc::new(Client::try_new(&self.properties.committed())?);
        let all = Client::try_new(&self.properties.uncommitted())?;
        let Bounds { earliest, latest: end } = all.bounds_of(&self.partition())?;
        if from.is_some_and(|from| from > end) {
            return Err(Error::refused(format!(
                "the progress topic {} ends at {end}, and had a record of this query at {}: it was created anew, so nobody \
                 knows which epochs are written; give the query another name (SET 'pipeline.name') to start anew",
                self.name,
                from.unwrap_or_default()
            )));
        }
        // What lies before that is decided: no transaction that may still be committed began before it.
        let mut waits = 0;
        loop {
            let Bounds { latest: decided, .. } = client.bounds_of(&self.partition())?;
            if decided >= end {
                break;
            }
            waits += 1;
            if waits == LONG || waits > WAITS {
                let (name, servers) = (&self.name, self.properties.servers());
                let hanging = format!(
                    "the progress topic {name} has a transaction that began at offset {decided} and is neither committed \
                     nor aborted; it ends within its producer's transaction.timeout.ms, else look for it with \
                     'kafka-transactions.sh --bootstrap-server {servers} find-hanging --topic {name} --partition 0', and \
                     abort it"
                );
                if waits > WAITS {
                    return Err(Error::transient(hanging));
                }
                tracing::warn!(target: "kafka", "still waiting: {hanging}");
            }
            self.rest(wanted)?;
        }
        let topic = Topic::new(client, &self.name);
        let topic = topic.ok_or_else(|| Error::internal(format!("{} is no name of a topic", self.name)))?;
        let mut queue = PartitionQueue::new(Arc::new(topic), 0);
        let broken = |what: String| Error::transient(format!("progress topic {}: {what}", self.name));
        queue.start(from.unwrap_or(earliest).max(earliest)).map_err(|code| broken(code.to_string()))?;
        let (mut newest, mut waits) = (None, 0);
        while queue.reached() < end {
            if !wanted() {
                return Err(self.unwanted());
            }
            let (is_progress, trouble) = queue.poll(MESSAGES, WAIT);
            for message in queue.taken().filter(|message| message.key() == Some(self.key.as_bytes())) {
                let written = message.payload().and_then(|value| serde_json::from_slice::<Written>(value).ok());
                let Some(Written { epoch }) = written else {
                    return Err(Error::refused(format!(
                        "the progress topic {} has a record of this query at offset {} that cannot be read",
                        self.name,
                        message.offset()
                    )));
                };
                newest = Some(self.position(epoch, message.offset()));
            }
            queue.drop_first(queue.taken().len());
            waits = if is_progress { 0 } else { waits + 1 };
            match trouble {
                Some(Trouble { code, text }) if is_refusal(code) => {
                    return Err(Error::refused(format!(
                        "progress topic {}: {text}; the user needs READ and WRITE on it",
                        self.name
                    )));
                }
                Some(trouble) => return Err(broken(trouble.text)),
                None if waits > WAITS => return Err(broken("it does not answer".into())),
                None => {}
            }
        }
        Ok(newest)
    }

    /// Waits a moment, unless nobody listens any more.
    fn rest(&self, wanted: &dyn Fn() -> bool) -> Result<()> {
        if !wanted() {
            return Err(self.unwanted());
        }
        std::thread::sleep(WAIT);
        Ok(())
    }

    fn unwanted(&self) -> Error {
        Error::transient(format!("progress topic {}: looking for the newest record was given up", self.name))
    }
}

/// Says what kind of topic an error is about.
fn of_progress(error: Error) -> Error {
    error.context("progress topic")
}

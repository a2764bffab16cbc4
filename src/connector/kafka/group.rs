//! The consumer group of a table: where Kafka's own tools see how far a query is.
//!
//! The idea: a client that never joins the group asks for its offsets, and commits those that the query's checkpoint
//! has anyway. It is made when it is first needed.
//!
//! Not promised: that a commit arrives. While others are members of the group, the brokers refuse it.

use std::sync::{Arc, Mutex};

use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use super::client::Client;
use super::locked;
use super::properties::Properties;
use crate::connector::{Offsets, Partition};
use crate::error::{Error, Result};

/// The group that `properties.group.id` names.
#[derive(Debug)]
pub(super) struct Group {
    name: String,
    properties: Properties,
    client: Mutex<Option<Arc<Client>>>,
    /// The kinds of trouble that were told; each is told once.
    told: Mutex<Vec<Option<Code>>>,
}

impl Group {
    /// The table's group, if it has one; nothing is connected.
    pub(super) fn of(properties: &Properties) -> Option<Self> {
        let name = properties.group()?.to_string();
        Some(Self { name, properties: properties.clone(), client: Mutex::default(), told: Mutex::default() })
    }

    fn client(&self) -> Result<Arc<Client>> {
        let mut slot = locked(&self.client);
        let client = match slot.take() {
            Some(client) => client,
            None => Arc::new(Client::try_new(&self.properties.of_group(&self.name))?),
        };
        Ok(Arc::clone(slot.insert(client)))
    }

    /// The next offsets that were committed, where there are any. Blocks.
    pub(super) fn committed(&self, partitions: &[Partition]) -> Result<Offsets> {
        self.client()?.committed(partitions).map_err(|error| error.context(format_args!("group {}", self.name)))
    }

    /// Commits the next offsets; trouble with it is told, and has no other effect. Blocks.
    pub(super) fn commit(&self, next: &Offsets) {
        let client = match self.client() {
            Ok(client) => client,
            Err(error) => return self.tell(None, &error),
        };
        if let Err(error) = client.commit(next) {
            self.tell(error.rdkafka_error_code(), &explain(&client, &error));
        }
    }

    /// Tells that a commit took longer than anybody waits for it.
    pub(super) fn tell_late(&self) {
        self.tell(Some(Code::OperationTimedOut), &Error::transient("no answer in time"));
    }

    fn tell(&self, code: Option<Code>, error: &Error) {
        let mut told = locked(&self.told);
        if !told.contains(&code) {
            told.push(code);
            let (group, error) = (&self.name, error.chain());
            tracing::warn!(target: "kafka", group, error, "offsets are not committed to the group, so its lag grows");
        }
    }
}

/// Why a commit has failed.
pub(super) fn explain(client: &Client, error: &KafkaError) -> Error {
    let code = error.rdkafka_error_code();
    if code == Some(Code::UnknownMemberId) {
        return Error::transient("the group has members of its own; name another");
    }
    client.refusal("the commit", error).unwrap_or_else(|| {
        let text = code.map_or_else(|| error.to_string(), |code| code.to_string());
        Error::transient(text + &client.events().reason())
    })
}

//! A RocketMQ topic as a source: each queue of each broker is a partition, `broker:queue`.
//!
//! One connection serves every read of the table and stays open across epochs; it is made when it is first needed, so that
//! a plan can be made without a broker.
//!
//! What it does not promise: that a topic is missing, when its only broker is down. The name server cannot tell the two
//! apart, so a new query is told that there is no such topic, and a running one waits.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::execution::SendableRecordBatchStream;
use futures::{StreamExt, TryStreamExt, stream};
use twox_hash::XxHash64;

use super::calls::Patience;
use super::connection::Connection;
use super::consumer::{Consumer, PrivateGroup};
use super::options::{RocketmqOptions, Startup};
use super::reader::SpanReader;
use crate::catalog::TableDefinition;
use crate::clock::Clock;
use crate::connector::messages::{Decoding, decoded};
use crate::connector::{Bounds, Extent, Offsets, Owner, Partition, ReadReport, Source, Span};
use crate::error::{Error, Result};

/// Queues asked for their bounds at a time.
const ASKED_AT_ONCE: usize = 16;

/// A RocketMQ topic, read.
#[derive(Debug)]
pub struct RocketmqSource {
    table: Arc<TableDefinition>,
    options: RocketmqOptions,
    connection: Arc<Connection<Consumer>>,
}

impl RocketmqSource {
    /// Of this table; nothing is connected yet.
    pub fn try_new(table: Arc<TableDefinition>, clock: &Clock, owner: Option<&Owner>) -> Result<Self> {
        let options = RocketmqOptions::take(&table)?;
        let group = private_group(&table, clock, owner);
        let (clock, wanted) = (clock.clone(), options.clone());
        let connection = Connection::new(move || {
            let instance = format!("{}-{}", group.name, clock.random_id());
            let (options, group) = (wanted.clone(), group.clone());
            Box::pin(async move { Consumer::connect(&options, group, &instance).await })
        });
        let connection = Arc::new(connection);
        Ok(Self { table, options, connection })
    }

    /// What every queue of the topic holds now; none if the topic has no route.
    async fn bounds(&self, consumer: &Arc<Consumer>) -> Result<Option<Vec<(Partition, Bounds)>>> {
        let Some(route) = consumer.route().await? else { return Ok(None) };
        let bounds = stream::iter(route.readable).map(|queue| {
            let consumer = Arc::clone(consumer);
            async move {
                let bounds = consumer.bounds(&queue).await?;
                Ok::<_, Error>((queue, bounds))
            }
        });
        Ok(Some(bounds.buffer_unordered(ASKED_AT_ONCE).try_collect().await?))
    }

    fn blame(&self, error: Error) -> Error {
        error.context(format_args!("table {}", self.table.name))
    }
}

#[async_trait]
impl Source for RocketmqSource {
    async fn start(&self) -> Result<Offsets> {
        let consumer = self.connection.client().await.map_err(|e| self.blame(e))?;
        let Some(queues) = self.bounds(&consumer).await.map_err(|e| self.blame(e))? else {
            return Err(self.blame(consumer.missing().await));
        };
        match &self.options.startup {
            Startup::Earliest => Ok(queues.into_iter().map(|(queue, bounds)| (queue, bounds.earliest)).collect()),
            Startup::Latest => Ok(queues.into_iter().map(|(queue, bounds)| (queue, bounds.latest)).collect()),
            Startup::Specific(wanted) => specific(wanted, queues).map_err(|e| self.blame(e)),
        }
    }

    async fn extent(&self) -> Result<Extent> {
        // Trouble with a connection that worked is waited for; a first one that fails says so at once.
        let mut consumer = self.connection.client().await.map_err(|e| self.blame(e))?;
        let mut patience = Patience::new();
        loop {
            let error = match self.bounds(&consumer).await {
                Ok(Some(queues)) => {
                    return Ok(Extent { partitions: queues.into_iter().collect(), ..Extent::default() });
                }
                Ok(None) => Error::transient(format!(
                    "topic {} has no route at name server {} now: none of its brokers is up, or it was deleted",
                    self.options.topic, self.options.name_server
                )),
                Err(error) => error,
            };
            let again = self.connection.again(consumer, &mut patience, error).await;
            consumer = again.map_err(|e| self.blame(e))?;
        }
    }

    fn read(&self, span: &Span, projection: &[usize], report: &ReadReport) -> Result<SendableRecordBatchStream> {
        let decoding = Decoding::try_new(&self.table, &self.options.format, projection, report)?;
        let reader = SpanReader {
            table: self.table.name.clone(),
            topic: self.options.topic.clone(),
            span: span.clone(),
            metadata: decoding.metadata().to_vec(),
            connection: Arc::clone(&self.connection),
        };
        Ok(decoded(decoding, span.partition.clone(), reader.messages()))
    }

    async fn close(&self) {
        if let Some(consumer) = self.connection.close().await {
            consumer.close().await;
        }
    }
}

/// The group that reads a table for a query: the same at every run, and nobody else's. A scan that belongs to no query
/// has one for itself, which is removed after it.
fn private_group(table: &TableDefinition, clock: &Clock, owner: Option<&Owner>) -> PrivateGroup {
    let name = |id: &str| format!("millstream-{id}-{:016x}", XxHash64::oneshot(0, table.name.as_bytes()));
    match owner {
        Some(owner) => PrivateGroup { name: name(&owner.id), is_temporary: false },
        None => PrivateGroup { name: name(&clock.random_id()), is_temporary: true },
    }
}

/// The offsets asked for, and the first ones of queues that nothing was said about.
fn specific(wanted: &Offsets, queues: Vec<(Partition, Bounds)>) -> Result<Offsets> {
    let mut start: Offsets = queues.iter().map(|(queue, bounds)| (queue.clone(), bounds.earliest)).collect();
    for (queue, offset) in wanted {
        let Some((_, bounds)) = queues.iter().find(|(known, _)| known == queue) else {
            let known: Vec<String> = start.keys().map(ToString::to_string).collect();
            return Err(Error::usage(format!(
                "option 'scan.startup.specific-offsets': the topic has no queue {queue}; it has {}",
                known.join(", ")
            )));
        };
        if !(bounds.earliest..=bounds.latest).contains(offset) {
            return Err(Error::usage(format!(
                "option 'scan.startup.specific-offsets': {queue} has no offset {offset}; it has {} to {}",
                bounds.earliest, bounds.latest
            )));
        }
        start.insert(queue.clone(), *offset);
    }
    Ok(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specific_offsets_must_exist() {
        let queue = |number| Partition::new("broker-a", number);
        let bounds =
            || vec![(queue(0), Bounds { earliest: 5, latest: 9 }), (queue(1), Bounds { earliest: 2, latest: 2 })];
        let at = |number, offset| specific(&Offsets::from([(queue(number), offset)]), bounds());
        assert_eq!(at(0, 9).unwrap(), Offsets::from([(queue(0), 9), (queue(1), 2)]));
        assert!(at(0, 10).unwrap_err().to_string().contains("it has 5 to 9"));
        assert!(at(0, 4).is_err());
        assert!(at(7, 1).unwrap_err().to_string().contains("it has broker-a:0, broker-a:1"));
    }
}

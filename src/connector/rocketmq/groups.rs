//! Where a consumer group of the user's stands: asked for by `group-offsets`, and told for RocketMQ's own tools.
//!
//! What it does not promise: that what tools show is where the query goes on. That is what its checkpoint says; and a
//! group that others consume with, too, stands where the last of them has put it. A queue that cannot be told is told
//! with the next commit, and does not keep the others from it.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use futures::FutureExt;
use rocketmq_client_rust::{ClientConfig, ClientError, ClientInstanceHandle, ClientRpcHook};
use rocketmq_protocol::protocol::header::query_consumer_offset_request_header::QueryConsumerOffsetRequestHeader;

use super::admin::Admin;
use super::calls::{ANSWER, call, code, explained};
use super::options::{Credentials, RocketmqOptions};
use super::queues::Queues;
use super::runtime::Runtime;
use super::topics::Queue;
use crate::connector::Offsets;
use crate::error::{Error, Kind, Result};

/// The library's number for one user of it among several in a process; here names tell them apart.
const DOMAIN: u64 = 0;
/// The broker's code for an offset that was never stored.
const NOT_FOUND: i32 = 22;

/// A queue that is asked about: what that is called, the address of its master, and the question.
type Asked = (String, Arc<str>, QueryConsumerOffsetRequestHeader);

/// Where `group` stands in these queues, in their order, each given with the address of its master; none where it stands
/// nowhere. The client leaves in order also if nobody waits for the answer any more. No two clients of a process may
/// have the same `instance`.
pub(super) async fn committed(
    name_server: &str,
    credentials: Option<&Credentials>,
    instance: &str,
    group: &str,
    queues: &[(Queue<'_>, Arc<str>)],
) -> Result<Vec<Option<u64>>> {
    let what = format!("connecting to name server {name_server}");
    let runtime = Runtime::shared()?;
    let config = ClientConfig::builder()
        .namesrv_addr(name_server)
        .instance_name(instance)
        .build()
        .map_err(|e| explained(&what, e))?;
    let hook = credentials.map(|credentials| credentials.hook() as Arc<ClientRpcHook>);
    // The only client that tells "nowhere" from "at the first message".
    let client = ClientInstanceHandle::get_or_create(&runtime.clients(), DOMAIN, config, hook);
    let client = client.map_err(|e| explained(&what, e))?;
    let asked: Vec<Asked> = queues.iter().map(|(queue, master)| asked(group, queue, Arc::clone(master))).collect();
    let work = tokio::spawn(async move {
        let found = match call(&what, ANSWER, client.start()).await {
            Ok(()) => ask(&client, asked).await,
            Err(error) => Err(error),
        };
        Box::pin(client.shutdown_owned()).await;
        drop(runtime);
        found
    });
    work.await.map_err(|e| Error::internal(format!("asking where group {group} stands failed")).caused_by(e))?
}

fn asked(group: &str, queue: &Queue<'_>, master: Arc<str>) -> Asked {
    let header = QueryConsumerOffsetRequestHeader {
        set_zero_if_not_found: Some(false),
        ..QueryConsumerOffsetRequestHeader::new(group, queue.topic, queue.number as i32)
    };
    (format!("asking where group {group} stands in {queue}"), master, header)
}

async fn ask(client: &ClientInstanceHandle, asked: Vec<Asked>) -> Result<Vec<Option<u64>>> {
    let mut offsets = Vec::with_capacity(asked.len());
    for (what, master, header) in asked {
        let asked = client.query_consumer_offset(&master, header, ANSWER.as_millis() as u64);
        match call(&what, ANSWER, asked.map(Ok)).await? {
            Ok(offset) => offsets.push(Some(offset.max(0) as u64)),
            Err(error) if error.broker_response_code() == Some(NOT_FOUND) => offsets.push(None),
            Err(error) => return Err(explained(&what, error)),
        }
    }
    Ok(offsets)
}

/// What was told of a group.
#[derive(Debug, Default)]
pub(super) struct Told {
    offsets: Offsets,
    introduced: BTreeSet<Arc<str>>,
    complaints: HashSet<Kind>,
}

impl Told {
    /// Tells the brokers that everything before `next` is committed, as far as they do not know yet. One that does not
    /// answer is waited for once.
    pub(super) async fn tell(
        &mut self,
        options: &RocketmqOptions,
        group: &str,
        admin: &Admin,
        queues: &Queues,
        next: &Offsets,
    ) {
        let news = next.iter().filter(|(queue, offset)| self.offsets.get(*queue) != Some(*offset));
        let news: Vec<_> = news.filter_map(|(queue, offset)| Some((queue, *offset, queues.master(queue)?))).collect();
        let masters: BTreeSet<Arc<str>> = news.iter().map(|(_, _, master)| Arc::clone(master)).collect();
        let new: Vec<Arc<str>> = masters.difference(&self.introduced).cloned().collect();
        let mut silent = BTreeSet::new();
        for master in new {
            match admin.introduce_group(group, &master).await {
                Ok(()) => drop(self.introduced.insert(master)),
                Err(error) => self.complain(&error, master, &mut silent),
            }
        }
        for (queue, offset, master) in news {
            if silent.contains(&master) {
                continue;
            }
            match admin.store(group, options.topics.queue(queue), &master, offset).await {
                Ok(()) => drop(self.offsets.insert(queue.clone(), offset)),
                Err(error) => self.complain(&error, master, &mut silent),
            }
        }
    }

    /// Says an error once for each kind. Who did not answer is `silent`.
    fn complain(&mut self, error: &Error, master: Arc<str>, silent: &mut BTreeSet<Arc<str>>) {
        if !is_answer(error) {
            silent.insert(master);
        }
        if self.complaints.insert(error.kind()) {
            tracing::warn!(error = %error.chain(), "RocketMQ's tools do not see how far a query is");
        }
    }
}

/// Whether this is what a broker says.
fn is_answer(error: &Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<ClientError>());
    cause.is_some_and(|cause| code(cause).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_does_not_answer_is_left_alone() {
        let silent = |error: &Error| {
            let (mut told, mut silent) = (Told::default(), BTreeSet::new());
            told.complain(error, "127.0.0.1:10911".into(), &mut silent);
            assert!(told.complaints.contains(&error.kind()));
            !silent.is_empty()
        };
        for code in [1, 16] {
            assert!(!silent(&explained("x", ClientError::broker_operation_failed("UPDATE", code, ""))), "{code}");
        }
        assert!(silent(&Error::transient("no answer within 10 s")));
        let library = rocketmq_client_rust::MQClientException::new_with_code(10_005, "");
        assert!(silent(&explained("x", library.into())));
    }
}

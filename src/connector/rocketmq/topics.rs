//! The topics of a table, and what their queues are called.
//!
//! The idea: a queue of the only topic is the partition `broker:queue`, and one of several `topic@broker:queue`; no topic
//! has an `@` in its name. So a checkpoint says the same of a queue, whichever other topics there are beside it.
//!
//! What it does not promise: that a pattern finds topics of RocketMQ's own, such as those for retries.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use regex::Regex;
use rocketmq_model::common::message::message_queue::MessageQueue;
use rocketmq_model::common::topic::TopicValidator;

use super::admin::{Admin, Route};
use super::options::check_name;
use crate::connector::Partition;
use crate::error::{Error, Result};
use crate::sql::options::OptionReader;

/// What divides a topic from a broker.
const DIVIDER: char = '@';
/// Topics whose routes are asked for at a time.
const ASKED_AT_ONCE: usize = 16;

/// Which topics a table has.
#[derive(Debug, Clone)]
pub enum Topics {
    /// One.
    One(String),
    /// Several.
    Several(BTreeSet<String>),
    /// All whose whole name matches a pattern, also those that are created later.
    Matching {
        /// As it was written.
        pattern: String,
        /// For the whole of a name.
        whole: Regex,
    },
}

/// A queue as brokers know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Queue<'a> {
    /// Its topic.
    pub(super) topic: &'a str,
    /// Its broker.
    pub(super) broker: &'a str,
    /// Which it is there.
    pub(super) number: u32,
}

impl fmt::Display for Queue<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "topic {} {}:{}", self.topic, self.broker, self.number)
    }
}

impl<'a> Queue<'a> {
    /// From the library's.
    pub(super) fn of_client(queue: &'a MessageQueue) -> Self {
        let number = queue.queue_id().max(0) as u32;
        Self { topic: queue.topic_str(), broker: queue.broker_name().as_str(), number }
    }

    /// As the library has it.
    pub(super) fn for_client(&self) -> MessageQueue {
        MessageQueue::from_parts(self.topic, self.broker, self.number as i32)
    }
}

impl Topics {
    /// Takes `topic` or `topic-pattern`.
    pub(super) fn take(reader: &mut OptionReader<'_>) -> Result<Self> {
        match (reader.text("topic")?, reader.text("topic-pattern")?) {
            (Some(names), None) => Self::named(&names).map_err(|e| reader.blame(e)),
            (None, Some(pattern)) => match whole(&pattern) {
                Ok(whole) => Ok(Self::Matching { pattern, whole }),
                Err(error) => {
                    let message = format!("option 'topic-pattern': '{pattern}' is no regular expression");
                    Err(reader.blame(Error::usage(message).caused_by(error)))
                }
            },
            (Some(_), Some(_)) => {
                Err(reader.blame(Error::usage("'topic' and 'topic-pattern' exclude each other; leave one of them out")))
            }
            (None, None) => Err(reader.blame(Error::usage("the option 'topic' is missing"))),
        }
    }

    fn named(names: &str) -> Result<Self> {
        let names: BTreeSet<String> = names.split(';').map(|name| name.trim().to_string()).collect();
        names.iter().try_for_each(|name| check_name("option 'topic'", name))?;
        let mut only = names.iter();
        Ok(match (only.next(), only.next()) {
            (Some(name), None) => Self::One(name.clone()),
            _ => Self::Several(names),
        })
    }

    /// The only topic.
    ///
    /// Errors: there may be several.
    pub(super) fn only(&self) -> Result<&str> {
        match self {
            Self::One(topic) => Ok(topic),
            Self::Several(_) | Self::Matching { .. } => {
                Err(Error::usage("several topics can be read, but only one written; name that one in 'topic'"))
            }
        }
    }

    /// Whether this topic is one of them. A pattern never means RocketMQ's own.
    pub(super) fn reads(&self, topic: &str) -> bool {
        match self {
            Self::One(name) => name == topic,
            Self::Several(names) => names.contains(topic),
            Self::Matching { whole, .. } => !is_internal(topic) && whole.is_match(topic),
        }
    }

    /// The names of those that there are; a topic that is named counts as one. Each answer may take `limit`.
    pub(super) async fn names(&self, admin: &Admin, limit: Duration) -> Result<Vec<String>> {
        match self {
            Self::One(topic) => Ok(vec![topic.clone()]),
            Self::Several(topics) => Ok(topics.iter().cloned().collect()),
            Self::Matching { .. } => {
                let topics = admin.topics(limit).await?.into_iter();
                Ok(topics.filter(|topic| self.reads(topic)).collect())
            }
        }
    }

    /// Where each of them is, if a route leads there. Each answer may take `limit`.
    pub(super) async fn routes(&self, admin: &Admin, limit: Duration) -> Result<BTreeMap<String, Option<Route>>> {
        let names = self.names(admin, limit).await?.into_iter();
        let ask = |topic: String| {
            let asked = async move {
                let route = admin.route_within(limit, &topic).await?;
                Ok::<_, Error>((topic, route))
            };
            asked.boxed()
        };
        let asked: Vec<_> = names.map(ask).collect();
        stream::iter(asked).buffer_unordered(ASKED_AT_ONCE).try_collect().await
    }

    /// The partition that a queue of `topic` is, given as `broker:queue`.
    pub(super) fn partition(&self, topic: &str, queue: Partition) -> Partition {
        match self {
            Self::One(_) => queue,
            Self::Several(_) | Self::Matching { .. } => Partition::new(name(Some(topic), &queue.name), queue.number),
        }
    }

    /// The queue that a partition is.
    pub(super) fn queue<'a>(&'a self, partition: &'a Partition) -> Queue<'a> {
        let number = partition.number;
        match self {
            Self::One(topic) => Queue { topic, broker: &partition.name, number },
            Self::Several(_) | Self::Matching { .. } => {
                let (topic, broker) = partition.name.split_once(DIVIDER).unwrap_or(("", &*partition.name));
                Queue { topic, broker, number }
            }
        }
    }
}

/// The name of partitions on a broker; of a topic that is one of several, if one is given.
pub(super) fn name(topic: Option<&str>, broker: &str) -> String {
    topic.map_or_else(|| broker.to_string(), |topic| format!("{topic}{DIVIDER}{broker}"))
}

/// As errors and a checkpoint's identity have it.
impl fmt::Display for Topics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(topic) => write!(f, "topic {topic}"),
            Self::Several(topics) => {
                write!(f, "topics {}", topics.iter().map(String::as_str).collect::<Vec<_>>().join(";"))
            }
            Self::Matching { pattern, .. } => write!(f, "topics like {pattern}"),
        }
    }
}

/// Whether RocketMQ made a topic for itself.
pub(super) fn is_internal(topic: &str) -> bool {
    topic.starts_with('%')
        || topic.starts_with("RMQ_SYS_")
        || topic.ends_with("_REPLY_TOPIC")
        || TopicValidator::is_system_topic(topic)
}

/// The pattern of a whole name.
fn whole(pattern: &str) -> Result<Regex, regex::Error> {
    // What is no pattern by itself is none in brackets either, but `a)(b` would be one.
    Regex::new(pattern)?;
    Regex::new(&format!("^(?:{pattern})$"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connector::contract::fixture;

    fn topics(options: &[(&str, &str)]) -> Result<Topics> {
        let table = fixture::with_options(options);
        Topics::take(&mut OptionReader::new(&table))
    }

    #[test]
    fn a_table_has_one_topic_or_several() {
        assert_eq!(topics(&[("topic", "a")]).unwrap().to_string(), "topic a");
        assert_eq!(topics(&[("topic", "b; a")]).unwrap().to_string(), "topics a;b");
        assert_eq!(topics(&[("topic-pattern", "order.*")]).unwrap().to_string(), "topics like order.*");
        assert_eq!(topics(&[("topic", "a")]).unwrap().only().unwrap(), "a");
        assert!(topics(&[("topic", "a;b")]).unwrap().only().is_err());
        for (options, part) in [
            (&[][..], "the option 'topic' is missing"),
            (&[("topic", "a;")], "'' is no name"),
            (&[("topic", "a.b")], "'a.b' is no name"),
            (&[("topic-pattern", "a)(b")], "'a)(b' is no regular expression"),
            (&[("topic", "a"), ("topic-pattern", "a")], "exclude each other"),
        ] {
            let error = topics(options).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_partition_is_a_queue_and_back() {
        let queue = Partition::new("broker-a", 3);
        let one = Topics::One("a".into());
        assert_eq!(one.partition("a", queue.clone()), queue);
        assert_eq!(one.queue(&queue).to_string(), "topic a broker-a:3");
        let several = topics(&[("topic", "a;b")]).unwrap();
        let partition = several.partition("b", queue);
        assert_eq!(partition.to_string(), "b@broker-a:3");
        assert_eq!(several.queue(&partition), Queue { topic: "b", broker: "broker-a", number: 3 });
    }

    #[test]
    fn patterns_match_whole_names_and_nothing_internal() {
        let pattern = topics(&[("topic-pattern", "a|b|.*_x|TBW.*")]).unwrap();
        assert!(pattern.reads("b") && !pattern.reads("ab") && pattern.reads("my_x"));
        assert!(!pattern.reads("rmq_sys_x") && !pattern.reads("TBW102"));
        for name in ["%RETRY%g", "%DLQ%g", "RMQ_SYS_TRACE_TOPIC", "rmq_sys_x", "TBW102", "SCHEDULE_TOPIC_XXXX"] {
            assert!(is_internal(name), "{name}");
        }
        assert!(!is_internal("orders"));
    }
}

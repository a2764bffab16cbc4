//! The topics of a table, and what their queues are called.
//!
//! The idea: a queue of the only topic is the partition `broker:queue`, and one of several `topic@broker:queue`; no topic
//! has an `@` in its name. So a checkpoint says the same of a queue, whichever other topics there are beside it.
//!
//! What it does not promise: that a pattern finds topics of RocketMQ's own, such as those for retries.

use std::collections::BTreeSet;
use std::fmt;

use regex::Regex;
use rocketmq_model::common::message::message_queue::MessageQueue;
use rocketmq_model::common::topic::TopicValidator;

use super::admin::Admin;
use super::options::check_name;
use crate::connector::Partition;
use crate::error::{Error, Result};
use crate::sql::options::OptionReader;

/// What divides a topic from a broker.
const DIVIDER: char = '@';

/// Which topics a table has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Topics {
    /// One.
    One(String),
    /// Several.
    Several(BTreeSet<String>),
    /// All whose whole name matches this pattern, also those that are created later.
    Matching(String),
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

impl Queue<'_> {
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
                Ok(_) => Ok(Self::Matching(pattern)),
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
        names.iter().try_for_each(|name| check_name("topic", name))?;
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
            Self::Several(_) | Self::Matching(_) => {
                Err(Error::usage("several topics can be read, but only one written; name that one in 'topic'"))
            }
        }
    }

    /// The names of those that there are; a topic that is named counts as one.
    pub(super) async fn names(&self, admin: &Admin) -> Result<Vec<String>> {
        match self {
            Self::One(topic) => Ok(vec![topic.clone()]),
            Self::Several(topics) => Ok(topics.iter().cloned().collect()),
            Self::Matching(pattern) => {
                let pattern =
                    whole(pattern).map_err(|e| Error::internal("'topic-pattern' was checked").caused_by(e))?;
                let topics = admin.topics().await?.into_iter();
                Ok(topics.filter(|topic| !is_internal(topic) && pattern.is_match(topic)).collect())
            }
        }
    }

    /// The partition that a queue of `topic` is, given as `broker:queue`.
    pub(super) fn partition(&self, topic: &str, queue: Partition) -> Partition {
        match self {
            Self::One(_) => queue,
            Self::Several(_) | Self::Matching(_) => Partition::new(name(Some(topic), &queue.name), queue.number),
        }
    }

    /// The queue that a partition is.
    pub(super) fn queue<'a>(&'a self, partition: &'a Partition) -> Queue<'a> {
        let number = partition.number;
        match self {
            Self::One(topic) => Queue { topic, broker: &partition.name, number },
            Self::Several(_) | Self::Matching(_) => {
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
            Self::Matching(pattern) => write!(f, "topics like {pattern}"),
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
        let table = fixture::table_of("t", &arrow::datatypes::Schema::empty(), options);
        Topics::take(&mut OptionReader::new(&table))
    }

    #[test]
    fn a_table_has_one_topic_or_several() {
        assert_eq!(topics(&[("topic", "a")]).unwrap(), Topics::One("a".into()));
        assert_eq!(topics(&[("topic", "b; a")]).unwrap().to_string(), "topics a;b");
        assert_eq!(topics(&[("topic-pattern", "order.*")]).unwrap(), Topics::Matching("order.*".into()));
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
        let pattern = whole("a|b").unwrap();
        assert!(pattern.is_match("b") && !pattern.is_match("ab"));
        for name in ["%RETRY%g", "%DLQ%g", "RMQ_SYS_TRACE_TOPIC", "rmq_sys_x", "TBW102", "SCHEDULE_TOPIC_XXXX"] {
            assert!(is_internal(name), "{name}");
        }
        assert!(!is_internal("orders"));
    }
}

//! The options of a RocketMQ table, of both roles: the same table may be read and written.
//!
//! What is not supported is refused by its name, so that nobody takes a guarantee for granted.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rocketmq_client_rust::{AclClientRPCHook, SessionCredentials};

use super::filter::Filter;
use super::settle::QUIET;
use super::topics::{self, Topics};
use crate::catalog::TableDefinition;
use crate::connector::entry::{OptionEntry, REQUIRED};
use crate::connector::position::{self, Position, Side};
use crate::connector::{Delivery, Offsets, Partition, ScanOptions};
use crate::error::{Error, Result};
use crate::format::{self, FormatOptions};
use crate::sql::options::OptionReader;

/// Options whose change applies at once: how to connect, and what to do with trouble.
pub(super) const OPERATIONAL: &[&str] =
    &["name-server", "access-key", "secret-key", "group", DISCOVERY, "sink.quiet-period"];

const DISCOVERY: &str = "scan.topic-partition-discovery.interval";

/// What the options say that only RocketMQ has.
const OPTIONS: &[OptionEntry] = &[
    OptionEntry::new("name-server", "`host:9876`, several divided by `;` or `,`", REQUIRED, "the name servers"),
    OptionEntry::new(
        "topic",
        "1 to 127 letters, digits, `_`, `-`, `%`, `|`; for reading also several, divided by `;`",
        "this or the next",
        "the topics, which must exist",
    ),
    OptionEntry::reading(
        "topic-pattern",
        "a [regular expression](https://docs.rs/regex/#syntax)",
        "",
        "in the place of `topic`: those whose whole name it matches, also those that are created later, and none of \
         RocketMQ's own",
    ),
    OptionEntry::new("access-key", "a text", "", "ACL user; only with `secret-key`"),
    OptionEntry::new("secret-key", "a text", "", "its secret; only with `access-key`"),
    OptionEntry::reading(
        "group",
        "a name",
        "",
        "the consumer group that `group-offsets` means, and that \
         [RocketMQ's tools](sql.md#progress-in-rocketmqs-tools) show the query's progress for",
    ),
    OptionEntry::reading(
        DISCOVERY,
        "a duration",
        "`5 s`",
        "how often the name server is asked for new queues and topics; `0 s`: never. While a broker cannot be \
         reached, at least every 5 s",
    ),
    OptionEntry::reading(
        "filter.tag",
        "tags such as `new || paid`, or `*`",
        "",
        "messages with one of these tags; see [filters](sql.md#filters-of-rocketmq)",
    ),
    OptionEntry::reading(
        "filter.sql",
        "a condition",
        "",
        "messages whose properties fit it; see [filters](sql.md#filters-of-rocketmq)",
    ),
    OptionEntry::writing(
        GUARANTEE,
        "`at-least-once`, `effectively-once`",
        "`at-least-once`",
        "how often a row can be seen; see [effectively once](sql.md#effectively-once-into-rocketmq)",
    ),
    OptionEntry::writing(
        "sink.quiet-period",
        "a duration",
        "`15 s`",
        "effectively-once: how long after a send without an answer its messages may still be stored",
    ),
];

/// What all options say.
pub(super) fn described() -> Vec<OptionEntry> {
    let offsets =
        "a list, `broker:broker-a,queue:0,offset:42;…`; of several topics each with `topic:orders,` before it";
    [OPTIONS, &[format::OPTION], format::TROUBLE, &position::options(offsets)[..], ScanOptions::OPTIONS].concat()
}

const GUARANTEE: &str = "sink.delivery-guarantee";
const GUARANTEES: [&str; 2] = ["at-least-once", "effectively-once"];

/// Lists of offsets, for an error.
const OFFSETS: &str = "a list such as 'broker:broker-a,queue:0,offset:42;broker:broker-a,queue:1,offset:7'";

/// The longest name the broker takes.
const LONGEST_TOPIC: usize = 127;

/// Name and secret of a user (ACL).
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    access_key: String,
    secret_key: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials")
    }
}

impl Credentials {
    /// What signs every request.
    pub(super) fn hook(&self) -> Arc<AclClientRPCHook> {
        Arc::new(AclClientRPCHook::new(SessionCredentials::with_keys(&*self.access_key, &*self.secret_key)))
    }
}

/// The options of a table, checked.
#[derive(Debug, Clone)]
pub struct RocketmqOptions {
    /// Name servers, `host:port` joined by semicolons.
    pub name_server: String,
    /// The topics.
    pub topics: Arc<Topics>,
    /// The group under which people look for this query's offsets; reading itself uses a private one.
    pub group: Option<String>,
    /// Who asks; nobody in particular without ACL.
    pub credentials: Option<Credentials>,
    /// Where a query that never ran starts.
    pub startup: Position,
    /// Where the stream ends, if it does.
    pub bounded: Option<Position>,
    /// What the broker leaves out, if anything.
    pub filter: Option<Filter>,
    /// How often the name server is asked for queues and topics that are new; zero is never, but in trouble.
    pub discovery_interval: Duration,
    /// How payloads are read and written.
    pub format: FormatOptions,
    /// How often a written row can be seen.
    pub delivery: Delivery,
    /// Effectively once: how long after a send of unknown outcome its messages may still turn up in the queue.
    pub quiet_period: Duration,
}

impl RocketmqOptions {
    /// Takes every option of the table; unknown and unsupported ones are errors.
    pub fn take(table: &TableDefinition) -> Result<Self> {
        let mut reader = OptionReader::new(table);
        let (name_server, credentials) = take_access(&mut reader)?;
        let topics = Arc::new(Topics::take(&mut reader)?);
        let group = reader.text("group")?;
        if let Some(group) = &group {
            check_name("option 'group'", group).map_err(|e| reader.blame(e))?;
        }
        let startup = Position::take(&mut reader, Side::Startup, OFFSETS, parse_offsets)?;
        let bounded = Position::take(&mut reader, Side::Bounded, OFFSETS, parse_offsets)?;
        for (position, side) in [(&startup, "startup"), (&bounded, "bounded")] {
            if matches!(position, Some(Position::Group(_))) && group.is_none() {
                let message = format!("'scan.{side}.mode' = 'group-offsets' needs the option 'group'");
                return Err(reader.blame(Error::usage(message)));
            }
        }
        let startup = startup.unwrap_or(Position::Earliest);
        let discovery_interval = reader.duration(DISCOVERY)?.unwrap_or(Duration::from_secs(5));
        ScanOptions::take(&mut reader)?;
        let filter = Filter::take(&mut reader)?;
        reader.suggest(GUARANTEE, GUARANTEES);
        let delivery = reader.text(GUARANTEE)?;
        let delivery = delivery_of(delivery.as_deref()).map_err(|e| reader.blame(e))?;
        let quiet_period = reader.duration("sink.quiet-period")?.unwrap_or(QUIET);
        let format = FormatOptions::take(&mut reader)?;
        reader.finish()?;
        Ok(Self {
            name_server,
            topics,
            group,
            credentials,
            startup,
            bounded,
            filter,
            discovery_interval,
            format,
            delivery,
            quiet_period,
        })
    }
}

/// Takes how to connect: the name servers, in the library's spelling, and who asks.
pub(super) fn take_access(reader: &mut OptionReader<'_>) -> Result<(String, Option<Credentials>)> {
    let name_server = reader.required("name-server")?;
    let name_server = name_servers(&name_server).map_err(|e| reader.blame(e))?;
    let credentials = match (reader.text("access-key")?, reader.text("secret-key")?) {
        (Some(access_key), Some(secret_key)) => Some(Credentials { access_key, secret_key }),
        (None, None) => None,
        (Some(_), None) => return Err(reader.blame(Error::usage("'access-key' needs 'secret-key' beside it"))),
        (None, Some(_)) => return Err(reader.blame(Error::usage("'secret-key' needs 'access-key' beside it"))),
    };
    Ok((name_server, credentials))
}

/// Parses `broker:broker-a,queue:0,offset:42;…`, with `topic:…` where there are several; a queue named twice is none.
fn parse_offsets(text: &str) -> Option<Offsets> {
    let mut offsets = Offsets::new();
    for entry in text.split(';').map(str::trim).filter(|entry| !entry.is_empty()) {
        let (mut topic, mut broker, mut queue, mut offset) = (None, None, None, None);
        for part in entry.split(',') {
            let (key, value) = part.split_once(':')?;
            let value = value.trim();
            match key.trim() {
                "topic" => topic = Some(value),
                "broker" => broker = Some(value).filter(|broker| !broker.is_empty()),
                "queue" => queue = value.parse::<u32>().ok(),
                "offset" => offset = value.parse::<u64>().ok(),
                _ => return None,
            }
        }
        let name = topics::name(topic, broker?);
        if offsets.insert(Partition::new(name, queue?), offset?).is_some() {
            return None;
        }
    }
    (!offsets.is_empty()).then_some(offsets)
}

fn delivery_of(guarantee: Option<&str>) -> Result<Delivery> {
    match guarantee {
        None | Some("at-least-once") => Ok(Delivery::AtLeastOnce),
        Some("effectively-once") => Ok(Delivery::EffectivelyOnce),
        Some("exactly-once") => Err(Error::usage(
            "'sink.delivery-guarantee' = 'exactly-once' cannot be had from RocketMQ, which has no transaction over \
             several messages; 'effectively-once' is the nearest",
        )),
        Some("none") => Err(Error::usage(
            "'sink.delivery-guarantee' = 'none' is not supported, as every message is acknowledged; say \
             'at-least-once'",
        )),
        Some(other) => {
            let hint = crate::sql::options::did_you_mean(other, GUARANTEES.into_iter());
            Err(Error::usage(format!("option 'sink.delivery-guarantee': '{other}' is no choice{hint}")))
        }
    }
}

/// `host:port` entries, divided by semicolons or commas, in the library's spelling.
fn name_servers(text: &str) -> Result<String> {
    let mut servers = Vec::new();
    for server in text.split([';', ',']).map(str::trim).filter(|server| !server.is_empty()) {
        let port = server.rsplit_once(':').and_then(|(host, port)| (!host.is_empty()).then(|| port.parse::<u16>()));
        if !matches!(port, Some(Ok(1..))) {
            return Err(Error::usage(format!("option 'name-server': '{server}' is not host:port")));
        }
        servers.push(server);
    }
    if servers.is_empty() {
        return Err(Error::usage("option 'name-server' is empty; say 'host:9876'"));
    }
    Ok(servers.join(";"))
}

/// Names as brokers take them; `what` begins the error, as in "option 'topic'".
pub(super) fn check_name(what: &str, name: &str) -> Result<()> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '%' | '|');
    if name.is_empty() || name.len() > LONGEST_TOPIC || !name.chars().all(fits) {
        return Err(Error::usage(format!(
            "{what}: '{name}' is no name: 1 to {LONGEST_TOPIC} letters, digits, '_', '-', '%' or '|'"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connector::contract::fixture;
    use crate::connector::entry::assert_described;
    use crate::sql::options::asked_for;

    #[test]
    fn offsets_name_broker_queue_and_offset() {
        let parsed = parse_offsets("broker:broker-a,queue:0,offset:42; queue:1, broker:b:c, offset:7;").unwrap();
        assert_eq!(parsed[&Partition::new("broker-a", 0)], 42);
        assert_eq!(parsed[&Partition::new("b:c", 1)], 7);
        let parsed = parse_offsets("topic:orders,broker:broker-a,queue:2,offset:9").unwrap();
        assert_eq!(parsed[&Partition::new("orders@broker-a", 2)], 9);
        for wrong in ["", "queue:0,offset:1", "broker:a,queue:-1,offset:1", "broker:a,queue:0,offset:x", "0:5"] {
            assert_eq!(parse_offsets(wrong), None, "{wrong}");
        }
        assert_eq!(parse_offsets("broker:a,queue:0,offset:1;broker:a,queue:0,offset:2"), None);
    }

    #[test]
    fn name_servers_are_host_and_port() {
        assert_eq!(name_servers("a:9876, b:9876").unwrap(), "a:9876;b:9876");
        for wrong in ["a", "a:", ":9876", "a:0", "a:99999", " ; "] {
            assert!(name_servers(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn names_are_checked_before_a_broker_sees_them() {
        assert!(check_name("option 'topic'", "Order_Topic-1").is_ok());
        assert!(check_name("option 'topic'", "orders.eu").is_err());
        assert!(check_name("option 'topic'", "").is_err());
    }

    #[test]
    fn all_options_are_described() {
        let table = fixture::with_options(&[("name-server", "a:9876"), ("topic", "t"), ("format", "json")]);
        let asked = asked_for(|| drop(RocketmqOptions::take(&table).unwrap()));
        assert_described(&[&described()[..], format::options("json")].concat(), &asked);
    }

    #[test]
    fn the_offsets_of_a_group_need_its_name() {
        let options = |more: &[(&str, &str)]| {
            let always = [("name-server", "a:9876"), ("topic", "t"), ("format", "json")];
            let all = [&always[..], more].concat();
            RocketmqOptions::take(&fixture::with_options(&all))
        };
        let taken = options(&[]).unwrap();
        assert_eq!((taken.startup, taken.bounded), (Position::Earliest, None));
        let mode = ("scan.bounded.mode", "group-offsets");
        assert!(matches!(options(&[mode, ("group", "g")]).unwrap().bounded, Some(Position::Group(_))));
        let error = options(&[mode]).unwrap_err().to_string();
        assert_eq!(error, "table t: 'scan.bounded.mode' = 'group-offsets' needs the option 'group'");
    }

    #[test]
    fn guarantees_that_cannot_be_had_are_refused_by_name() {
        assert_eq!(delivery_of(None).unwrap(), Delivery::AtLeastOnce);
        assert_eq!(delivery_of(Some("at-least-once")).unwrap(), Delivery::AtLeastOnce);
        assert_eq!(delivery_of(Some("effectively-once")).unwrap(), Delivery::EffectivelyOnce);
        for (refused, parts) in [
            ("exactly-once", ["'exactly-once' cannot be had", "'effectively-once' is the nearest"]),
            ("none", ["'none' is not supported", "say 'at-least-once'"]),
            ("efectively-once", ["'efectively-once' is no choice", "'effectively-once'"]),
        ] {
            let error = delivery_of(Some(refused)).unwrap_err().to_string();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        }
    }
}

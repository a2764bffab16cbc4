//! Catalogs of topics against the real brokers: what is shown and changed there is what the brokers' own Java tools say.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use arrow::array::{Array, AsArray};
use futures::TryStreamExt;
use millstream::clock::Clock;
use millstream::session::{Outcome, Session};

use crate::brokers::Broker;
use crate::harness::variable;

/// A session that knows a broker as the catalog `k`.
struct Catalog {
    broker: Broker,
    session: Session,
}

impl Catalog {
    async fn of(broker: Broker) -> Self {
        let options = match broker {
            Broker::Kafka => "'type' = 'kafka', 'properties.bootstrap.servers'",
            Broker::Rocketmq => "'type' = 'rocketmq', 'name-server'",
        };
        let mut catalog = Self { broker, session: Session::new("test").unwrap() };
        catalog.done(&format!("CREATE CATALOG k WITH ({options} = '{}')", broker.address())).await;
        catalog
    }

    /// What a statement came to.
    async fn run(&mut self, sql: &str) -> millstream::error::Result<Outcome> {
        Ok(self.session.execute_script(sql).await?.pop().unwrap())
    }

    /// The rows that a statement shows; NULL is an empty text.
    async fn rows(&mut self, sql: &str) -> Vec<Vec<String>> {
        let Outcome::Rows(rows) = self.run(sql).await.unwrap() else { panic!("{sql} shows no rows") };
        let batches: Vec<_> = rows.stream.try_collect().await.unwrap();
        let mut rows = vec![];
        for batch in &batches {
            let columns: Vec<_> = batch.columns().iter().map(|column| column.as_string::<i32>()).collect();
            rows.extend((0..batch.num_rows()).map(|row| {
                let cell = |column: &&arrow::array::StringArray| match column.is_null(row) {
                    true => String::new(),
                    false => column.value(row).to_string(),
                };
                columns.iter().map(cell).collect::<Vec<_>>()
            }));
        }
        rows
    }

    /// The rows whose first cell is this.
    async fn rows_of(&mut self, kind: &str, sql: &str) -> Vec<Vec<String>> {
        let mut rows = self.rows(sql).await;
        rows.retain(|row| row[0] == kind);
        rows
    }

    /// What a statement says that it did.
    async fn done(&mut self, sql: &str) -> String {
        match self.run(sql).await.unwrap() {
            Outcome::Done(text) => text,
            _ => panic!("{sql} does nothing"),
        }
    }

    /// Checks that a statement is refused with these parts.
    async fn is_refused(&mut self, sql: &str, parts: &[&str]) {
        match self.run(sql).await {
            Ok(_) => panic!("{sql} is not refused"),
            Err(error) => {
                let error = error.chain();
                parts.iter().for_each(|part| assert!(error.contains(part), "{part} in {error}"));
            }
        }
    }

    /// Where a group stands in each partition of a topic and where that ends, as DESCRIBE GROUP shows it.
    async fn stands(&mut self, topic: &str, group: &str) -> BTreeMap<i64, (Option<i64>, i64)> {
        let rows = self.rows_of("offset", &format!("DESCRIBE GROUP k.`{group}`")).await;
        let mut stands = BTreeMap::new();
        for row in rows.iter().filter(|row| row[1] == topic) {
            let [committed, end, lag] = [3, 4, 5].map(|cell| row[cell].parse::<i64>().ok());
            let end = end.unwrap();
            assert_eq!(lag, committed.map(|committed| end - committed), "{row:?}");
            stands.insert(number(&row[2]), (committed, end));
        }
        stands
    }

    /// What a reset shows that it would do, or did: by partition, from and to.
    async fn plan(&mut self, reset: &str) -> BTreeMap<i64, (Option<i64>, i64)> {
        let rows = self.rows(reset).await;
        rows.iter().map(|row| (number(&row[1]), (row[2].parse().ok(), row[3].parse().unwrap()))).collect()
    }
}

/// The number of a partition, `7`, or of a queue, `broker:7`.
fn number(place: &str) -> i64 {
    place.rsplit(':').next().unwrap().parse().unwrap()
}

fn new_name(what: &str) -> String {
    format!("{what}-{}", Clock::system().random_id())
}

/// The JSON lines that a Java tool answers.
fn told(broker: Broker, arguments: &[&str]) -> Vec<serde_json::Value> {
    broker.run(arguments).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Where a group stands in each partition and where that ends, as the broker's own tools have it.
fn told_stands(broker: Broker, topic: &str, group: &str) -> BTreeMap<i64, (Option<i64>, i64)> {
    let numbers = |arguments: &[&str], partition: &str, number: &str| -> BTreeMap<i64, i64> {
        let of = |line: &serde_json::Value| (line[partition].as_i64().unwrap(), line[number].as_i64().unwrap());
        told(broker, arguments).iter().map(of).collect()
    };
    let (ends, committed) = match broker {
        Broker::Kafka => {
            (numbers(&["ends", topic], "partition", "end"), numbers(&["group", group], "partition", "offset"))
        }
        Broker::Rocketmq => {
            let progress = ["progress", topic, group];
            (numbers(&progress, "queue", "end"), numbers(&progress, "queue", "group"))
        }
    };
    let committed = |partition: &i64| committed.get(partition).copied().filter(|offset| *offset >= 0);
    ends.into_iter().map(|(partition, end)| (partition, (committed(&partition), end))).collect()
}

/// Rows `n` = from..to, to four partitions in turn.
fn feed(broker: Broker, topic: &str, numbers: std::ops::Range<i64>) {
    let mut feeder = broker.feeder(topic, &[]);
    feeder.send(numbers);
    feeder.finish();
}

/// A consumer of the broker's own client that is a member of a group.
struct Member(Child);

impl Member {
    fn join(broker: Broker, group: &str, topic: &str) -> Self {
        let mut tool = broker.tool(&["join", group, topic]);
        let mut child = tool.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "READY");
        Self(child)
    }

    fn leave(mut self) {
        drop(self.0.stdin.take());
        assert!(self.0.wait().unwrap().success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kafka_topic_is_made_described_and_dropped() {
    let (mut catalog, topic) = (Catalog::of(Broker::Kafka).await, new_name("made"));
    let create = format!(
        "CREATE TOPIC k.`{topic}` WITH ('partitions' = '3', 'replication-factor' = '1', 'retention.ms' = '3600000',
           'max.message.bytes' = '500000')"
    );
    assert_eq!(catalog.done(&create).await, format!("topic {topic} created"));
    let settings = told(Broker::Kafka, &["settings", &topic]);
    let settings = settings.iter().map(|line| (line["name"].as_str().unwrap(), line["value"].as_str().unwrap()));
    let expected = BTreeMap::from([("max.message.bytes", "500000"), ("retention.ms", "3600000")]);
    assert_eq!(settings.collect::<BTreeMap<_, _>>(), expected);

    catalog.is_refused(&create, &[&format!("catalog k: topic {topic} exists already")]).await;
    let again = create.replace("CREATE TOPIC", "CREATE TOPIC IF NOT EXISTS");
    assert_eq!(catalog.done(&again).await, format!("topic {topic} exists already"));

    let mut feeder = Broker::Kafka.feeder(&topic, &[]);
    (0..20).for_each(|n| feeder.send_to(n % 2, n));
    feeder.finish();
    let describe = format!("DESCRIBE TOPIC k.`{topic}`");
    let ends = told(Broker::Kafka, &["ends", &topic]);
    let expected = ends.iter().map(|line| {
        let [partition, begin, end] = ["partition", "begin", "end"].map(|key| line[key].as_i64().unwrap());
        let numbers = [partition, begin, end, end - begin].map(|number| number.to_string()).to_vec();
        [vec!["partition".to_string()], numbers, vec!["leader 1, replicas 1".to_string()]].concat()
    });
    assert_eq!(catalog.rows_of("partition", &describe).await, expected.collect::<Vec<_>>());
    let settings = catalog.rows_of("setting", &describe).await;
    let settings: BTreeMap<&str, &str> = settings.iter().map(|row| (row[1].as_str(), row[5].as_str())).collect();
    let expected = [("cleanup.policy", "delete"), ("max.message.bytes", "500000"), ("retention.ms", "3600000")];
    assert_eq!(settings, BTreeMap::from(expected));

    let like = |pattern: &str| format!("SHOW TOPICS FROM k LIKE '{pattern}'");
    assert_eq!(catalog.rows(&like(&topic.replace("made-", "made_"))).await, [[topic.clone()]]);
    // The brokers' own: made with the first offset that was ever committed.
    Broker::Kafka.run(&["commit", &new_name("g"), &topic, "0=1"]);
    assert!(!catalog.rows(&like("%")).await.contains(&vec!["__consumer_offsets".to_string()]));
    let internal = catalog.rows_of("setting", "DESCRIBE TOPIC k.`__consumer_offsets`").await;
    assert!(internal.iter().any(|row| row[1] == "cleanup.policy" && row[5] == "compact"), "{internal:?}");
    catalog.is_refused("DROP TOPIC k.`__consumer_offsets`", &["is the brokers' own"]).await;

    let drop_topic = format!("DROP TOPIC k.`{topic}`");
    assert_eq!(catalog.done(&drop_topic).await, format!("topic {topic} dropped"));
    assert_eq!(Broker::Kafka.run(&["delete", &topic]).trim(), "absent");
    catalog.is_refused(&drop_topic, &[&format!("there is no topic '{topic}'")]).await;
    let again = drop_topic.replace("DROP TOPIC", "DROP TOPIC IF EXISTS");
    assert_eq!(catalog.done(&again).await, format!("there is no topic {topic}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_kafka_topic_cannot_be_is_told() {
    let (mut catalog, topic) = (Catalog::of(Broker::Kafka).await, new_name("made"));
    for (options, part) in [
        ("'retention.m' = '1'", "there is no setting 'retention.m'; did you mean 'retention.ms'?"),
        ("'partition' = '1'", "there is no setting 'partition'; did you mean 'partitions'?"),
        ("'retention.ms' = 'long'", "the brokers do not take a value of these settings: 'retention.ms' = 'long'"),
        ("'replication-factor' = '30'", "the cluster has fewer brokers than that"),
        ("'partitions' = 'many'", "option 'partitions': 'many' is not a number, at least 1"),
    ] {
        catalog.is_refused(&format!("CREATE TOPIC k.`{topic}` WITH ({options})"), &["catalog k: ", part]).await;
    }
    assert_eq!(Broker::Kafka.run(&["delete", &topic]).trim(), "absent");
    let like = Broker::Kafka.topic("described");
    let wrong = like.replace("described", "descirbed");
    catalog.is_refused(&format!("DESCRIBE TOPIC k.`{wrong}`"), &[&format!("did you mean '{like}'?")]).await;
}

/// A topic of four partitions, and a group that stands in two of them.
fn half_read(broker: Broker) -> (String, String) {
    let (topic, group) = (broker.topic("read"), new_name("group"));
    feed(broker, &topic, 0..40);
    match broker {
        Broker::Kafka => broker.run(&["commit", &group, &topic, "0=4", "1=10"]),
        Broker::Rocketmq => broker.run(&["commit", &topic, &group, "0=4", "1=10"]),
    };
    (topic, group)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kafka_group_is_described_and_reset() {
    let (topic, group) = half_read(Broker::Kafka);
    let mut catalog = Catalog::of(Broker::Kafka).await;
    let stands = told_stands(Broker::Kafka, &topic, &group);
    let expected = [(Some(4), 10), (Some(10), 10), (None, 10), (None, 10)];
    assert_eq!(stands.values().copied().collect::<Vec<_>>(), expected);
    assert_eq!(catalog.stands(&topic, &group).await, stands);
    let groups = catalog.rows(&format!("SHOW GROUPS FROM k LIKE '{group}'")).await;
    assert_eq!(groups, [[group.as_str(), "Empty", "0"]]);

    let reset = |to: &str| format!("RESET GROUP k.`{group}` FOR TOPIC `{topic}` TO {to}");
    let to = |offsets: [i64; 4]| -> BTreeMap<i64, (Option<i64>, i64)> {
        stands.iter().zip(offsets).map(|((partition, (from, _)), to)| (*partition, (*from, to))).collect()
    };
    for (position, offsets) in [
        ("EARLIEST", [0; 4]),
        ("LATEST", [10; 4]),
        ("TIMESTAMP '2000-01-01 00:00:00'", [0; 4]),
        ("TIMESTAMP '2200-01-01 00:00:00'", [10; 4]),
        ("OFFSETS ('0' = '7', '1' = '0', '2' = '10', '3' = '1')", [7, 0, 10, 1]),
    ] {
        assert_eq!(catalog.plan(&reset(position)).await, to(offsets), "{position}");
    }
    assert_eq!(told_stands(Broker::Kafka, &topic, &group), stands, "a dry run changes nothing");

    let one = reset("OFFSETS ('1' = '3') EXECUTE");
    assert_eq!(catalog.plan(&one).await, BTreeMap::from([(1, (Some(10), 3))]));
    let mut expected = stands.clone();
    expected.insert(1, (Some(3), 10));
    assert_eq!(told_stands(Broker::Kafka, &topic, &group), expected);
    let all = reset("EARLIEST EXECUTE");
    let done = [(0, (Some(4), 0)), (1, (Some(3), 0)), (2, (None, 0)), (3, (None, 0))];
    assert_eq!(catalog.plan(&all).await, BTreeMap::from(done));
    let expected: BTreeMap<_, _> = (0..4).map(|partition| (partition, (Some(0), 10))).collect();
    assert_eq!(told_stands(Broker::Kafka, &topic, &group), expected);
    assert_eq!(catalog.stands(&topic, &group).await, expected);

    for (position, part) in [
        ("OFFSETS ('4' = '0')", "has no partition '4'; there are 0, 1, 2, 3"),
        ("OFFSETS ('0' = '11')", "offset 11 is not in"),
    ] {
        catalog.is_refused(&reset(position), &["catalog k: ", part]).await;
    }
    let wrong = group.replace("group", "gruop");
    let hint = format!("there is no group '{wrong}'; did you mean '{group}'?");
    catalog.is_refused(&format!("DESCRIBE GROUP k.`{wrong}`"), &[&hint]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kafka_group_with_members_is_not_reset() {
    let (topic, group) = half_read(Broker::Kafka);
    let mut catalog = Catalog::of(Broker::Kafka).await;
    let stands = told_stands(Broker::Kafka, &topic, &group);
    let member = Member::join(Broker::Kafka, &group, &topic);
    let groups = catalog.rows(&format!("SHOW GROUPS FROM k LIKE '{group}'")).await;
    assert_eq!(groups, [[group.as_str(), "Stable", "1"]]);
    let told = told(Broker::Kafka, &["members", &group]);
    assert_eq!(told[0]["state"], "Stable");
    let [id, client, host] = ["member", "client", "host"].map(|key| told[1][key].as_str().unwrap());
    let described = catalog.rows_of("member", &format!("DESCRIBE GROUP k.`{group}`")).await;
    assert_eq!(described.len(), 1);
    assert_eq!(described[0][6], format!("{client} at {}, {id}", host.trim_start_matches('/')));

    let reset = format!("RESET GROUP k.`{group}` FOR TOPIC `{topic}` TO EARLIEST");
    for reset in [reset.clone(), format!("{reset} EXECUTE")] {
        catalog.is_refused(&reset, &[&format!("group {group} has members; stop its members first")]).await;
    }
    assert_eq!(told_stands(Broker::Kafka, &topic, &group), stands);
    member.leave();
    catalog.rows(&format!("{reset} EXECUTE")).await;
    assert!(told_stands(Broker::Kafka, &topic, &group).values().all(|(committed, _)| *committed == Some(0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_nobody_knows_may_be_given_a_place_to_begin() {
    let topic = Broker::Kafka.topic("read");
    feed(Broker::Kafka, &topic, 0..8);
    let (mut catalog, group) = (Catalog::of(Broker::Kafka).await, new_name("group"));
    catalog.rows(&format!("RESET GROUP k.`{group}` FOR TOPIC `{topic}` TO LATEST EXECUTE")).await;
    let expected: BTreeMap<_, _> = (0..4).map(|partition| (partition, (Some(2), 2))).collect();
    assert_eq!(told_stands(catalog.broker, &topic, &group), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn catalogs_are_shown_without_secrets() {
    let mut catalog = Catalog::of(Broker::Kafka).await;
    catalog
        .done(
            "CREATE CATALOG safe WITH ('type' = 'kafka', 'properties.bootstrap.servers' = '127.0.0.1:1',
               'properties.sasl.username' = '${env:HOME}', 'properties.sasl.password' = 'hunter2')",
        )
        .await;
    let kafka = format!("'properties.bootstrap.servers' = '{}'", Broker::Kafka.address());
    let safe = "'properties.bootstrap.servers' = '127.0.0.1:1', 'properties.sasl.password' = '******', \
                'properties.sasl.username' = '${env:HOME}'";
    let expected = [["default", "session", ""], ["k", "kafka", kafka.as_str()], ["safe", "kafka", safe]];
    assert_eq!(catalog.rows("SHOW CATALOGS").await, expected);
    catalog.is_refused("SHOW TOPICS FROM safe", &["catalog safe: topics: no answer from 127.0.0.1:1"]).await;
    catalog.is_refused("SHOW TOPICS FROM saef", &["there is no catalog saef; did you mean 'safe'?"]).await;
    catalog.done("DROP CATALOG safe").await;
    catalog.is_refused("SHOW TOPICS FROM safe", &["there is no catalog safe"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_user_of_kafka_may_not_do_is_told() {
    let (servers, ca) = (variable("MILLSTREAM_TEST_KAFKA_SASL"), variable("MILLSTREAM_TEST_KAFKA_CA"));
    let guest = "MILLSTREAM_TEST_KAFKA_GUEST";
    let mut catalog = Catalog::of(Broker::Kafka).await;
    catalog
        .done(&format!(
            "CREATE CATALOG guest WITH ('type' = 'kafka', 'properties.bootstrap.servers' = '{servers}',
               'properties.security.protocol' = 'SASL_SSL', 'properties.ssl.ca.location' = '{ca}',
               'properties.sasl.mechanism' = 'PLAIN', 'properties.sasl.username' = '${{env:{guest}}}',
               'properties.sasl.password' = '${{env:{guest}_PASSWORD}}')"
        ))
        .await;
    let topic = Broker::Kafka.topic("hidden");
    let shown = catalog.rows("SHOW TOPICS FROM guest").await;
    assert!(!shown.contains(&vec![topic.clone()]), "{shown:?}");
    let needed = "the user needs DESCRIBE on the topic";
    catalog.is_refused(&format!("DESCRIBE TOPIC guest.`{topic}`"), &["catalog guest: ", &topic, needed]).await;
    Broker::Kafka.run(&["allow", &variable(guest), "DESCRIBE", "topic", &topic]);
    assert_eq!(catalog.rows_of("partition", &format!("DESCRIBE TOPIC guest.`{topic}`")).await.len(), 4);
    let needed = "cannot be dropped: TopicAuthorizationFailed";
    catalog.is_refused(&format!("DROP TOPIC guest.`{topic}`"), &[needed, "the user needs DELETE on the topic"]).await;
}

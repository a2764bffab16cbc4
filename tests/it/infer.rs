//! Columns by looking, on both real brokers: what a table without columns takes can be pasted, and gives the same rows;
//! topics of a catalog are tables.

use arrow::array::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use futures::TryStreamExt;
use millstream::error::Kind;
use millstream::session::{Outcome, Session};

use crate::brokers::Broker;

const ORDERS: [&str; 3] = [
    r#"{"orderId":1,"price":2,"at":"2026-01-01T00:00:00.5Z","day":"2026-01-01","user":{"name":"a","tags":["x"]}}"#,
    r#"{"orderId":2,"price":2.5,"at":null,"user":{"name":"b","tags":[]},"big":18446744073709551615}"#,
    r#"{"orderId":3,"price":null,"at":"2026-01-02T01:00:00+01:00","user":null}"#,
];

/// A topic of these messages, in several partitions.
fn topic_of(broker: Broker, messages: &[&str]) -> String {
    let topic = broker.topic("infer");
    let mut feeder = broker.feeder(&topic, &[]);
    messages.iter().enumerate().for_each(|(place, message)| feeder.send_payload(place % 4, message));
    feeder.finish();
    topic
}

/// A table that leaves its columns to the topic, and ends with it.
fn table(broker: Broker, topic: &str, more: &str) -> String {
    let more = format!(", 'scan.bounded.mode' = 'latest-offset'{more}");
    broker.table("orders", topic, "", &more).replace(" ()", "")
}

/// What the last statement of a script came to.
async fn run(session: &mut Session, script: &str) -> millstream::error::Result<Outcome> {
    Ok(session.execute_script(script).await?.pop().unwrap())
}

async fn text(session: &mut Session, script: &str) -> String {
    match run(session, script).await.unwrap() {
        Outcome::Text(text) => text,
        _ => panic!("{script} shows no text"),
    }
}

/// The names of the columns, and the rows, sorted.
pub async fn rows(session: &mut Session, script: &str) -> (Vec<String>, Vec<String>) {
    let Outcome::Rows(rows) = run(session, script).await.unwrap() else { panic!("{script} gives no rows") };
    let names = rows.schema.fields().iter().map(|field| field.name().clone()).collect();
    let batches: Vec<RecordBatch> = rows.stream.try_collect().await.unwrap();
    let options = FormatOptions::new().with_null("NULL");
    let mut lines = vec![];
    for batch in &batches {
        let columns = batch.columns().iter().map(|column| ArrayFormatter::try_new(column, &options).unwrap());
        let columns: Vec<_> = columns.collect();
        let line = |row| columns.iter().map(|column| column.value(row).to_string()).collect::<Vec<_>>().join(", ");
        lines.extend((0..batch.num_rows()).map(line));
    }
    lines.sort();
    (names, lines)
}

async fn a_table_takes_the_columns_of_its_topic(broker: Broker) {
    let topic = topic_of(broker, &ORDERS);
    let mut session = Session::new("test").unwrap();
    let shown = text(&mut session, &table(broker, &topic, "")).await;
    for part in [
        "`orderId` BIGINT,",
        "`price` DOUBLE,",
        "`at` TIMESTAMP_LTZ(3),",
        "`day` DATE,",
        "`user` ROW<`name` STRING, `tags` ARRAY<STRING>>",
        "`big` DECIMAL(20, 0)",
        "'json.timestamp-format.standard' = 'ISO-8601'",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert!(shown.starts_with("CREATE TABLE `orders` ("), "{shown}");
    let (_, found) = rows(&mut session, "SELECT orderId, price, big, `day` FROM orders").await;
    let expected = ["1, 2.0, NULL, 2026-01-01", "2, 2.5, 18446744073709551615, NULL", "3, NULL, NULL, NULL"];
    assert_eq!(found, expected);

    let mut pasted = Session::new("pasted").unwrap();
    pasted.execute_script(&shown).await.unwrap();
    assert_eq!(pasted.tables(), session.tables());
    let all = "SELECT * FROM orders";
    assert_eq!(rows(&mut pasted, all).await, rows(&mut session, all).await);
}

async fn what_cannot_be_read_is_told(broker: Broker) {
    let topic = topic_of(broker, &[&ORDERS[..], &["nonsense"]].concat());
    let mut session = Session::new("test").unwrap();
    let shown = text(&mut session, &table(broker, &topic, ", 'format.on-error' = 'skip'")).await;
    assert!(shown.starts_with("-- 1 of 4 messages cannot be read; "), "{shown}");
    assert_eq!(rows(&mut session, "SELECT orderId FROM orders").await.1, ["1", "2", "3"]);
    run(&mut session, "DROP TABLE orders").await.unwrap();
    run(&mut session, &shown).await.unwrap();
    assert_eq!(rows(&mut session, "SELECT orderId FROM orders").await.1, ["1", "2", "3"]);
}

async fn a_topic_without_messages_has_no_columns(broker: Broker) {
    let topic = broker.topic("infer");
    let mut session = Session::new("test").unwrap();
    let Err(error) = run(&mut session, &table(broker, &topic, "")).await else { panic!("an empty topic has columns") };
    let error = (error.kind(), error.to_string());
    let says = format!("topic {topic} has no messages to infer columns from; write the columns out");
    assert!(error.0 == Kind::Usage && error.1.contains(&says), "{error:?}");
    assert!(session.tables().is_empty());
}

async fn topics_of_a_catalog_are_tables(broker: Broker) {
    let options = match broker {
        Broker::Kafka => "'type' = 'kafka', 'properties.bootstrap.servers'",
        Broker::Rocketmq => "'type' = 'rocketmq', 'name-server'",
    };
    let (orders, lines) = (topic_of(broker, &ORDERS), topic_of(broker, &["a", "b,c"]));
    let mut session = Session::new("test").unwrap();
    run(&mut session, &format!("CREATE CATALOG k WITH ({options} = '{}')", broker.address())).await.unwrap();

    let (names, found) = rows(&mut session, &format!("SELECT * FROM k.`{orders}` LIMIT 3")).await;
    let metadata = match broker {
        Broker::Kafka => &["partition", "offset", "timestamp"][..],
        Broker::Rocketmq => &["broker", "queue", "offset", "store_timestamp"],
    };
    assert_eq!(names, [&["orderId", "price", "at", "day", "user", "big"][..], metadata].concat());
    assert_eq!(found.iter().map(|row| &row[..2]).collect::<Vec<_>>(), ["1,", "2,", "3,"]);
    // Each is the first message of its partition.
    let sql = format!("SELECT o.orderId, o.`user`['name'], o.`offset` FROM k.`{orders}` AS o LIMIT 3");
    assert_eq!(rows(&mut session, &sql).await.1, ["1, a, 0", "2, b, 0", "3, NULL, 0"]);
    // DESCRIBE says the same, and how it is read.
    let (_, described) = rows(&mut session, &format!("DESCRIBE k.`{orders}`")).await;
    for part in ["orderId, BIGINT, YES, , ", "offset, BIGINT, ", "WITH 'format', , , , 'json'"] {
        assert!(described.iter().any(|row| row.starts_with(part)), "{part}: {described:?}");
    }
    assert_eq!(rows(&mut session, &format!("SELECT `value` FROM k.`{lines}` LIMIT 2")).await.1, ["a", "b,c"]);

    run(&mut session, &format!("DROP TOPIC k.`{lines}`")).await.unwrap();
    for gone in [format!("{lines}x"), lines] {
        let Err(error) = run(&mut session, &format!("SELECT * FROM k.`{gone}`")).await else { panic!("no such topic") };
        assert_eq!(error.kind(), Kind::Usage, "{}", error.chain());
    }
    let insert = format!(
        "SET 'checkpoint.location' = 'memory://infer';
         CREATE TABLE nowhere (id BIGINT) WITH ('connector' = 'blackhole');
         INSERT INTO nowhere SELECT orderId FROM k.`{orders}`"
    );
    let Err(error) = run(&mut session, &insert).await else { panic!("a query that lasts takes a table that does not") };
    assert!(error.to_string().contains("is a topic of a catalog"), "{error}");

    if matches!(broker, Broker::Kafka) {
        let anew =
            format!("DROP TOPIC k.`{orders}`; CREATE TOPIC k.`{orders}`; SELECT orderId FROM k.`{orders}` LIMIT 1");
        let Err(error) = run(&mut session, &anew).await else { panic!("a new topic has the columns of the old one") };
        assert!(error.chain().contains("orderId"), "{}", error.chain());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_topics_say_what_their_columns_are() {
    a_table_takes_the_columns_of_its_topic(Broker::Kafka).await;
    what_cannot_be_read_is_told(Broker::Kafka).await;
    a_topic_without_messages_has_no_columns(Broker::Kafka).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rocketmq_topics_say_what_their_columns_are() {
    a_table_takes_the_columns_of_its_topic(Broker::Rocketmq).await;
    what_cannot_be_read_is_told(Broker::Rocketmq).await;
    a_topic_without_messages_has_no_columns(Broker::Rocketmq).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_of_a_kafka_catalog_are_tables() {
    topics_of_a_catalog_are_tables(Broker::Kafka).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_of_a_rocketmq_catalog_are_tables() {
    topics_of_a_catalog_are_tables(Broker::Rocketmq).await;
}

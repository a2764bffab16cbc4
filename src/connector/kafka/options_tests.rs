use arrow::datatypes::DataType;

use super::*;
use crate::connector::entry::assert_described;
use crate::connector::kafka::KafkaConnector;
use crate::connector::position::End;
use crate::connector::{Connector, Role};
use crate::sql::options::asked_for;

fn take(options: &[(&str, &str)]) -> Result<KafkaOptions> {
    take_keyed(&[], options)
}

fn take_keyed(primary_key: &[&str], options: &[(&str, &str)]) -> Result<KafkaOptions> {
    KafkaOptions::take(&table(primary_key, options))
}

/// A table over the topic `t`, unless the options say otherwise.
fn table(primary_key: &[&str], options: &[(&str, &str)]) -> TableDefinition {
    let base = [("connector", "kafka"), ("format", "json"), ("properties.bootstrap.servers", "a:1")];
    let is_named = options.iter().any(|(key, _)| *key == "topic-pattern");
    let topic = (!is_named).then_some(&("topic", "t"));
    let all = base.iter().chain(topic).chain(options);
    TableDefinition {
        name: "orders".into(),
        columns: vec![
            Column::physical("id", DataType::Int64),
            Column::physical("item", DataType::Int64),
            Column::physical("name", DataType::Utf8View),
        ],
        primary_key: primary_key.iter().map(|name| name.to_string()).collect(),
        watermark: None,
        partitioned_by: vec![],
        options: all.map(|(key, value)| (key.to_string(), value.to_string())).collect(),
    }
}

fn refusal(options: &[(&str, &str)]) -> String {
    take(options).unwrap_err().chain()
}

#[test]
fn offsets_are_listed_as_in_flink() {
    let options = [
        ("scan.startup.mode", "specific-offsets"),
        ("scan.startup.specific-offsets", "partition:0,offset:42; partition:1,offset:300"),
    ];
    let listed = Offsets::from([(Partition::new("t", 0), 42), (Partition::new("t", 1), 300)]);
    assert_eq!(take(&options).unwrap().startup, Position::Specific(listed, End::Earliest));
    assert!(refusal(&options[1..]).contains("needs 'scan.startup.mode' = 'specific-offsets'"));
    for wrong in [
        "",
        "0:42",
        "offset:1",
        "partition:0,offset:-1",
        "partition:0,offset:1;partition:0,offset:2",
        "partition:0,partition:1,offset:2",
        "partition:0,offset:1,offset:2",
    ] {
        assert!(offsets(wrong, Some("t")).is_none(), "{wrong}");
    }
    let several = "topic:a,partition:0,offset:1;topic:b,partition:0,offset:2";
    let listed = Offsets::from([(Partition::new("a", 0), 1), (Partition::new("b", 0), 2)]);
    assert_eq!(offsets(several, None), Some(listed));
    assert_eq!(offsets("partition:0,offset:42", None), None);
}

#[test]
fn a_stream_begins_and_ends_where_it_is_said() {
    let plain = take(&[]).unwrap();
    assert_eq!((plain.startup, plain.bounded, plain.discovery), (Position::Earliest, None, DISCOVERY));
    let bounded = take(&[("scan.bounded.mode", "latest-offset")]).unwrap().bounded;
    assert_eq!(bounded, Some(Position::Latest));
    for option in ["scan.startup.mode", "scan.bounded.mode"] {
        let group = (option, "group-offsets");
        assert!(
            refusal(&[group]).contains(&format!("'{option}' = 'group-offsets' needs the option 'properties.group.id'"))
        );
        take(&[group, ("properties.group.id", "g")]).unwrap();
    }
    assert!(take(&[("scan.topic-partition-discovery.interval", "0 s")]).unwrap().discovery.is_zero());
}

#[test]
fn a_table_has_a_topic_or_several_or_a_pattern() {
    let reads = |options: &[(&str, &str)], topics: [&str; 4]| {
        let options = take(options).unwrap();
        topics.map(|topic| options.reads(topic))
    };
    assert_eq!(take(&[]).unwrap().topics.only(), Some("t"));
    assert_eq!(take(&[("topic", "b; a;")]).unwrap().topics.only(), None);
    assert_eq!(reads(&[("topic", "b;a")], ["a", "b", "c", "a;b"]), [true, true, false, false]);
    let names = ["orders", "_orders", "__consumer_offsets", "millstream-progress"];
    assert_eq!(reads(&[("topic-pattern", ".*")], names), [true, true, false, false]);
    assert_eq!(reads(&[("topic-pattern", "t|or+")], ["t", "orr", "tt", "order"]), [true, true, false, false]);
    for wrong in ["(", "a)|(b", ""] {
        let text = refusal(&[("topic-pattern", wrong)]);
        assert!(text.contains(&format!("'{wrong}' is not a regular expression")), "{text}");
    }
    assert!(refusal(&[("topic", "a;b c")]).contains("'a;b c' is not a topic, or several"));
    let mut definition = table(&[], &[]);
    definition.options.insert("topic-pattern".into(), "t".into());
    assert!(KafkaOptions::take(&definition).unwrap_err().to_string().contains("are both there"));
    definition.options.retain(|key, _| !key.starts_with("topic"));
    assert!(KafkaOptions::take(&definition).unwrap_err().to_string().contains("the option 'topic' is missing"));
}

/// That a query reads what it writes is found out by these.
#[test]
fn several_topics_are_one_stream_and_each_of_them_a_place() {
    let identity = |options: &[(&str, &str)]| KafkaConnector.identity(&table(&[], options)).unwrap();
    assert_eq!(identity(&[]), "kafka topic t");
    assert_eq!(identity(&[("topic", "b;a")]), "kafka topics a;b");
    assert_eq!(identity(&[("topic-pattern", "a.*")]), "kafka topics matching 'a.*'");
    let reads = |options: &[(&str, &str)], topic: &str| {
        let place = KafkaConnector.place(&table(&[], &[("topic", topic)])).unwrap();
        KafkaConnector.reads(&table(&[], options), &place).unwrap()
    };
    for options in [&[("topic", "a")][..], &[("topic", "b;a")], &[("topic-pattern", "a|b")]] {
        assert!(reads(options, "a") && !reads(options, "ab"), "{options:?}");
        assert!(!KafkaConnector.reads(&table(&[], options), "rocketmq topic a").unwrap());
    }
    let several = table(&[], &[("topic", "b;a")]);
    let error = KafkaConnector.check(&several, Role::Sink).unwrap_err().to_string();
    assert!(error.contains("a table that is written names one topic"), "{error}");
    KafkaConnector.check(&several, Role::Source).unwrap();
}

#[test]
fn the_format_may_be_that_of_the_value() {
    let value = |more: &[(&str, &str)]| {
        let mut definition = table(&[], &[]);
        definition.options.remove("format");
        let options = [&[("value.format", "csv")], more].concat();
        definition.options.extend(options.iter().map(|(key, value)| (key.to_string(), value.to_string())));
        KafkaOptions::take(&definition).map(|options| options.format)
    };
    let plain = take(&[("format", "csv"), ("csv.field-delimiter", ";"), ("format.on-error", "skip")]).unwrap().format;
    let more = [("value.csv.field-delimiter", ";"), ("format.on-error", "skip"), ("value.fields-include", "ALL")];
    assert_eq!(value(&more).unwrap(), plain);
    let refused = |option| value(&[(option, ";")]).unwrap_err().to_string();
    assert!(refused("csv.field-delimiter").ends_with("say 'value.csv.field-delimiter'"));
    assert!(refused("format").ends_with("no option 'format' beside 'value.format'; say 'value.format'"));
    assert!(refused("value.csv.field-delimiterr").contains("there is no option 'csv.field-delimiterr'"));
    assert!(refused("value.format.on-error").contains("there is no option 'value.format.on-error'"));
}

#[test]
fn properties_are_checked_and_their_values_kept_secret() {
    let text = refusal(&[("properties.enable.auto.commit", "true")]);
    assert!(text.contains("'properties.enable.auto.commit' is not yours to set"), "{text}");
    let text = refusal(&[("properties.max.poll.records", "5")]);
    assert!(text.contains("'properties.max.poll.records': librdkafka has no such property"), "{text}");
    let text = refusal(&[("properties.linger.ms", "soon")]);
    assert!(text.starts_with("table orders: option 'properties.linger.ms'"), "{text}");
    let options = take(&[("properties.sasl.password", "hunter2"), ("properties.group.id", "g")]).unwrap();
    assert!(!format!("{options:?}").contains("hunter2"), "{options:?}");
    assert!(options.properties.consumer().get("group.id").is_none());
    // What is not committed must never count as written.
    let uncommitted = take(&[("properties.isolation.level", "read_uncommitted")]).unwrap();
    assert_eq!(uncommitted.properties.committed().get("isolation.level"), Some("read_committed"));
}

#[test]
fn keys_are_physical_columns() {
    assert_eq!(take(&[("key.fields", "item")]).unwrap().key, Key::Made(vec![1]));
    assert!(refusal(&[("key.fields", "id;ID")]).contains("no physical column 'ID'"));
}

#[test]
fn a_made_key_may_be_raw_and_left_out_of_payloads() {
    let plain = take(&[]).unwrap();
    assert_eq!((plain.key_format, plain.is_key_in_payload), (KeyFormat::default(), true));
    let raw = take_keyed(&["name"], &[("key.format", "raw")]).unwrap().key_format;
    assert_ne!(raw, KeyFormat::default());
    for fields in ["name", "id"] {
        let options = [("key.fields", fields), ("key.format", "raw"), ("value.fields-include", "EXCEPT_KEY")];
        let options = take(&options).unwrap();
        assert_eq!((options.key_format, options.is_key_in_payload), (raw.clone(), false));
    }
    let json = take(&[("key.fields", "id"), ("key.format", "json")]).unwrap();
    assert_eq!(json.key_format, KeyFormat::default());
    let text = refusal(&[("key.fields", "name;item"), ("key.format", "raw")]);
    assert!(text.contains("option 'key.format': 'raw' is one value, and the key is made of (name, item)"), "{text}");
    for (key, value) in [("key.format", "json"), ("value.fields-include", "EXCEPT_KEY")] {
        let text = refusal(&[(key, value)]);
        assert!(text.contains(&format!("option '{key}' is for a key that is made of columns")), "{text}");
    }
    let mut given = table(&[], &[("key.fields", "id"), ("key.format", "json")]);
    let kind = ColumnKind::Metadata { key: "key".into(), is_virtual: false };
    given.columns.push(Column { kind, ..Column::physical("k", DataType::Binary) });
    let text = KafkaOptions::take(&given).unwrap_err().to_string();
    assert!(text.contains("column k is the key as it is; declare it VIRTUAL"), "{text}");
    assert!(refusal(&[("key.fields", "id"), ("key.format", "avro")]).contains("'avro' is no choice"));
    assert!(refusal(&[("value.fields-include", "SOME")]).contains("known are ALL, EXCEPT_KEY"));
}

#[test]
fn options_of_a_keys_format_begin_with_key() {
    let of_key = |format, more: &[(&str, &str)]| {
        take(&[&[("key.fields", "id"), ("key.format", format)], more].concat()).map(|options| options.key_format)
    };
    for (format, option, value) in [
        ("json", "key.json.timestamp-format.standard", "ISO-8601"),
        ("csv", "key.csv.field-delimiter", "|"),
        ("raw", "key.raw.endianness", "little-endian"),
    ] {
        assert_ne!(of_key(format, &[(option, value)]).unwrap(), of_key(format, &[]).unwrap(), "{option}");
        let text = refusal(&[("key.fields", "id"), (option, value)]);
        assert!(text.ends_with(&format!("option '{option}' needs 'key.format' = '{format}'")), "{text}");
    }
    // Without a format of their own, keys are as JSON payloads are.
    let iso = ("json.timestamp-format.standard", "ISO-8601");
    let iso_key = of_key("json", &[("key.json.timestamp-format.standard", "ISO-8601")]).unwrap();
    assert_eq!(take(&[iso]).unwrap().key_format, iso_key);
    assert_eq!(of_key("json", &[iso]).unwrap(), KeyFormat::default());
    for (format, option, value, advice) in [
        ("json", "key.json.ignore-parse-errors", "true", "say 'format.on-error' = 'skip'"),
        ("csv", "key.csv.ignore-parse-errors", "true", "say 'format.on-error' = 'skip'"),
        ("csv", "key.csv.null-litteral", "-", "did you mean 'key.csv.null-literal'?"),
        ("csv", "key.csv.field-delimiter", "ab", "option 'key.csv.field-delimiter': 'ab' is not one ASCII character"),
        ("raw", "key.json.fail-on-missing-field", "true", "needs 'key.format' = 'json'"),
        ("debezium-json", "key.debezium-json.schema-include", "true", "known are json, csv, raw"),
    ] {
        let text = of_key(format, &[(option, value)]).unwrap_err().chain();
        assert!(text.contains(advice), "{text}");
    }
}

#[test]
fn keys_are_read_where_their_fields_and_format_are_given() {
    let format = ("key.format", "json");
    assert_eq!(take(&[("key.fields", "item")]).unwrap().key_columns, None);
    assert_eq!(take_keyed(&["item"], &[format]).unwrap().key_columns, None);
    let all = ("value.fields-include", "ALL");
    assert_eq!(take(&[("key.fields", "item"), format, all]).unwrap().key_columns, None, "payloads have them");
    let except = ("value.fields-include", "EXCEPT_KEY");
    let read = take(&[("key.fields", "item;id"), format, except, ("key.fields-prefix", "i")]).unwrap().key_columns;
    assert_eq!(read.unwrap().names, ["item", "id"]);
    let prefix = ("key.fields-prefix", "i");
    assert!(refusal(&[("key.fields", "id"), prefix]).contains("needs 'value.fields-include' = 'EXCEPT_KEY'"));
    for fields in ["name", "id;name"] {
        assert!(
            refusal(&[("key.fields", fields), except, prefix]).contains("column name of the key must begin with 'i'")
        );
    }
    let whole = refusal(&[("key.fields", "id"), except, ("key.fields-prefix", "id")]);
    assert!(whole.contains("column id of the key must begin with 'id', followed by"), "{whole}");
    let error = KafkaConnector.check(&table(&[], &[("key.fields", "id"), except]), Role::Source).unwrap_err();
    assert!(error.to_string().contains("'key.format'"), "{error}");
}

#[test]
fn rows_are_spread_where_no_key_must_stay_together() {
    assert_eq!(take(&[]).unwrap().partitioner, Partitioner::Hash);
    assert_eq!(take(&[("sink.partitioner", "fixed")]).unwrap().partitioner, Partitioner::Fixed);
    let round_robin = [("sink.partitioner", "round-robin")];
    assert_eq!(take(&round_robin).unwrap().partitioner, Partitioner::RoundRobin);
    let error = take_keyed(&["id"], &round_robin).unwrap_err().to_string();
    assert!(error.contains("the same PRIMARY KEY must be in one partition"), "{error}");
    assert!(refusal(&[("sink.partitioner", "com.example.Mine")]).contains("is no choice"));
}

#[test]
fn all_options_are_described() {
    let asked = asked_for(|| drop(take(&[]).unwrap()));
    assert_described(&[&described()[..], format::options("json")].concat(), &asked);
    let error = refusal(&[("sink.transactional-id-prefix", "x")]);
    assert!(error.contains("'sink.transactional-id-prefix' is not supported: the id is made of"), "{error}");
}

#[test]
fn a_guarantee_is_one_of_three() {
    let delivery = |word| take(&[("sink.delivery-guarantee", word)]).map(|options| options.delivery);
    assert_eq!(take(&[]).unwrap().delivery, Delivery::ExactlyOnce);
    assert_eq!(delivery("at-least-once").unwrap(), Delivery::AtLeastOnce);
    assert_eq!(delivery("none").unwrap(), Delivery::None);
    assert!(delivery("exactly").unwrap_err().to_string().contains("did you mean 'exactly-once'"));
}

#[test]
fn a_primary_key_is_the_key() {
    assert_eq!(take_keyed(&["item"], &[]).unwrap().key, Key::Made(vec![1]));
    let both = take_keyed(&["id", "item"], &[("key.fields", "item;id")]).unwrap();
    assert_eq!(both.key, Key::Made(vec![1, 0]));
    for other in ["id", "item;id"] {
        let error = take_keyed(&["item"], &[("key.fields", other)]).unwrap_err();
        assert_eq!(error.kind(), crate::error::Kind::Usage);
        let text = error.to_string();
        assert!(text.contains("PRIMARY KEY, which is (item)") && text.contains(other), "{text}");
    }
}

use super::*;

fn take(options: &[(&str, &str)]) -> Result<KafkaOptions> {
    take_keyed(&[], options)
}

fn take_keyed(primary_key: &[&str], options: &[(&str, &str)]) -> Result<KafkaOptions> {
    let base = [("connector", "kafka"), ("format", "json"), ("properties.bootstrap.servers", "a:1")];
    let all = base.iter().chain([("topic", "t")].iter()).chain(options);
    KafkaOptions::take(&TableDefinition {
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
    })
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
    assert_eq!(take(&options).unwrap().startup, Startup::Specific(BTreeMap::from([(0, 42), (1, 300)])));
    assert!(refusal(&options[1..]).contains("needs 'scan.startup.mode' = 'specific-offsets'"));
    for wrong in ["", "0:42", "partition:0,offset:-1", "partition:0,offset:1;partition:0,offset:2"] {
        assert!(offsets(wrong).is_none(), "{wrong}");
    }
}

#[test]
fn what_is_not_supported_yet_is_refused_by_name() {
    for (key, value) in [("topic", "a;b"), ("topic-pattern", "t.*"), ("scan.startup.mode", "group-offsets")] {
        let text = refusal(&[(key, value)]);
        assert!(text.starts_with("table orders: option") && text.contains("not supported yet"), "{text}");
    }
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
    assert_eq!((plain.key_format, plain.is_key_in_payload), (KeyFormat::Json, true));
    let raw = [("key.fields", "name"), ("key.format", "raw"), ("value.fields-include", "EXCEPT_KEY")];
    let raw = take(&raw).unwrap();
    assert_eq!((raw.key_format, raw.is_key_in_payload), (KeyFormat::Raw, false));
    assert_eq!(take_keyed(&["name"], &[("key.format", "raw")]).unwrap().key_format, KeyFormat::Raw);
    assert_eq!(take(&[("key.fields", "id"), ("key.format", "json")]).unwrap().key_format, KeyFormat::Json);
    for fields in ["id", "name;item"] {
        let text = refusal(&[("key.fields", fields), ("key.format", "raw")]);
        assert!(text.contains("one STRING or BYTES column") && text.contains(&fields.replace(';', ", ")), "{text}");
    }
    for (key, value) in [("key.format", "json"), ("value.fields-include", "EXCEPT_KEY")] {
        let text = refusal(&[(key, value)]);
        assert!(text.contains(&format!("option '{key}' is for a key that is made of columns")), "{text}");
    }
    assert!(refusal(&[("key.fields", "id"), ("key.format", "avro")]).contains("'avro' is no choice"));
    assert!(refusal(&[("value.fields-include", "SOME")]).contains("known are ALL, EXCEPT_KEY"));
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

//! `'connector' = 'upsert-kafka'`: a result that changes, into a topic, as Flink spells it.
//!
//! The idea: it is a `kafka` table with a PRIMARY KEY, whose payload's format is called `value.format`. So more is
//! refused, and everything else is that connector: guarantee, identity, upserts and tombstones. A query may change from
//! one spelling to the other, and stays the same query.
//!
//! What it does not promise: reading. That is refused by name.

use std::sync::Arc;

use async_trait::async_trait;

use super::KafkaConnector;
use super::options::with_plain_format;
use crate::catalog::TableDefinition;
use crate::connector::entry::REQUIRED;
use crate::connector::{Connector, Environment, Guarantee, MetadataKey, OptionEntry, Owner, Role, Sink, Source};
use crate::error::{Error, Result};
use crate::format::CHANGELOGS;

/// Options of `kafka` that say here what cannot be meant, and why.
const REFUSED: [(&str, &str); 3] = [
    ("format", "say 'value.format', and 'key.format' for the key"),
    ("key.fields", "the key is made of the PRIMARY KEY"),
    ("topic-pattern", "such a table is not read"),
];

/// The connector `upsert-kafka`.
#[derive(Debug, Clone, Copy, Default)]
pub struct UpsertKafkaConnector;

/// The same table, as `kafka` has it.
fn as_kafka(table: &TableDefinition) -> Result<TableDefinition> {
    let refuse = |text: String| Err(Error::usage(format!("table {}: {text}", table.name)));
    if let Some((option, instead)) = REFUSED.iter().find(|(option, _)| table.options.contains_key(*option)) {
        return refuse(format!("'upsert-kafka' has no option '{option}': {instead}"));
    }
    if let Some(option) = table.options.keys().find(|key| key.starts_with("scan.")) {
        return refuse(format!("'upsert-kafka' has no option '{option}': such a table is not read"));
    }
    if !table.options.contains_key("value.format") {
        return refuse("the option 'value.format' is missing".into());
    }
    if let Some(format) = table.options.get("value.format").filter(|format| CHANGELOGS.contains(&format.as_str())) {
        return refuse(format!(
            "'value.format' = '{format}' says in each message what happened, and has no tombstones; use 'connector' = 'kafka' \
             with it"
        ));
    }
    if table.primary_key.is_empty() {
        return refuse("'upsert-kafka' needs a PRIMARY KEY: the rows of a key replace each other".into());
    }
    Ok(with_plain_format(table)?.into_owned())
}

#[async_trait]
impl Connector for UpsertKafkaConnector {
    fn name(&self) -> &'static str {
        "upsert-kafka"
    }

    /// Those of `kafka` that are for writing, but what is refused.
    fn options(&self) -> Vec<OptionEntry> {
        let is_refused = |key: &str| key.starts_with("scan.") || REFUSED.iter().any(|(option, _)| *option == key);
        let mut options = KafkaConnector.options();
        options.retain(|entry| entry.role != Some(Role::Source) && !is_refused(entry.key));
        let writing = |entry: OptionEntry| match entry {
            OptionEntry { key: "topic", .. } => {
                OptionEntry { takes: "a name", default: REQUIRED, meaning: "the topic, which must exist", ..entry }
            }
            OptionEntry { key: "value.format", .. } => OptionEntry {
                takes: "`json`, `csv`, `raw`",
                default: REQUIRED,
                meaning: "the format of payloads. Its own options begin with `value.`, as `value.json.*`",
                ..entry
            },
            OptionEntry { key: "key.format", .. } => OptionEntry {
                default: "`json`",
                meaning: "how the PRIMARY KEY makes the key. **Flink requires it**",
                ..entry
            },
            entry => entry,
        };
        let refused = REFUSED.map(|(key, instead)| OptionEntry::refused(key, instead));
        options.into_iter().map(writing).chain(refused).collect()
    }

    fn metadata(&self) -> Vec<MetadataKey> {
        KafkaConnector.metadata()
    }

    fn check(&self, table: &TableDefinition, role: Role) -> Result<()> {
        let kafka = as_kafka(table)?;
        match role {
            Role::Source => Err(unreadable(table)),
            Role::Sink => KafkaConnector.check(&kafka, role),
        }
    }

    fn identity(&self, table: &TableDefinition) -> Result<String> {
        KafkaConnector.identity(&as_kafka(table)?)
    }

    fn guarantee(&self, table: &TableDefinition) -> Result<Guarantee> {
        KafkaConnector.guarantee(&as_kafka(table)?)
    }

    fn is_operational(&self, option: &str) -> bool {
        KafkaConnector.is_operational(option)
    }

    fn takes_updates(&self, table: &TableDefinition) -> bool {
        KafkaConnector.takes_updates(table)
    }

    async fn source(
        &self,
        table: Arc<TableDefinition>,
        _environment: &Environment,
        _owner: Option<&Owner>,
    ) -> Result<Arc<dyn Source>> {
        Err(unreadable(&table))
    }

    async fn sink(
        &self,
        table: Arc<TableDefinition>,
        environment: &Environment,
        owner: &Owner,
    ) -> Result<Arc<dyn Sink>> {
        KafkaConnector.sink(Arc::new(as_kafka(&table)?), environment, owner).await
    }
}

fn unreadable(table: &TableDefinition) -> Error {
    Error::usage(format!(
        "table {}: reading upserts is not supported yet; 'connector' = 'kafka' without a PRIMARY KEY reads every message of \
         the topic as a row",
        table.name
    ))
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::DataType;

    use super::*;
    use crate::catalog::Column;
    use crate::connector::{Delivery, entry};

    fn table(options: &[(&str, &str)]) -> TableDefinition {
        let base = [("connector", "upsert-kafka"), ("topic", "t"), ("properties.bootstrap.servers", "a:1")];
        TableDefinition {
            name: "totals".into(),
            columns: vec![Column::physical("item", DataType::Utf8View), Column::physical("n", DataType::Int64)],
            primary_key: vec!["item".into()],
            watermark: None,
            partitioned_by: vec![],
            options: base.iter().chain(options).map(|(key, value)| (key.to_string(), value.to_string())).collect(),
        }
    }

    fn refusal(table: &TableDefinition, role: Role) -> String {
        UpsertKafkaConnector.check(table, role).unwrap_err().to_string()
    }

    #[test]
    fn it_is_a_kafka_table_with_other_names() {
        let options = [
            ("value.format", "json"),
            ("value.json.timestamp-format.standard", "ISO-8601"),
            ("key.format", "raw"),
            ("value.fields-include", "EXCEPT_KEY"),
        ];
        let table = table(&options);
        UpsertKafkaConnector.check(&table, Role::Sink).unwrap();
        let kafka = as_kafka(&table).unwrap();
        let keys: Vec<&str> = kafka.options.keys().map(String::as_str).collect();
        let renamed = ["format", "json.timestamp-format.standard", "key.format", "value.fields-include"];
        assert!(renamed.iter().all(|key| keys.contains(key)), "{keys:?}");
        assert_eq!(UpsertKafkaConnector.identity(&table).unwrap(), "kafka topic t");
        assert_eq!(UpsertKafkaConnector.guarantee(&table).unwrap().delivery, Delivery::ExactlyOnce);
        assert!(UpsertKafkaConnector.takes_updates(&table));
    }

    #[test]
    fn what_is_described_is_what_is_not_refused() {
        let described = UpsertKafkaConnector.options();
        let is_known = |entry: &OptionEntry| entry.default != entry::REFUSED;
        for OptionEntry { key, role, .. } in KafkaConnector.options().into_iter().filter(is_known) {
            let is_refused = refusal(&table(&[("value.format", "nothing"), (key, "nothing")]), Role::Sink)
                .contains(&format!("has no option '{key}'"));
            let is_offered = described.iter().any(|entry| entry.key == key && is_known(entry));
            assert!(!is_offered || !is_refused, "{key} is refused");
            assert!(is_offered || is_refused || role == Some(Role::Source), "{key} is not described");
        }
    }

    #[test]
    fn what_it_cannot_be_is_refused_by_name() {
        let good = table(&[("value.format", "json")]);
        assert!(refusal(&good, Role::Source).starts_with("table totals: reading upserts is not supported yet"));
        assert!(refusal(&table(&[]), Role::Sink).contains("'value.format' is missing"));
        assert!(refusal(&table(&[("format", "json")]), Role::Sink).contains("no option 'format': say 'value.format'"));
        let plain = table(&[("value.format", "json"), ("json.encode.ignore-null-fields", "true")]);
        assert!(refusal(&plain, Role::Sink).contains("say 'value.json.encode.ignore-null-fields'"));
        let fields = table(&[("value.format", "json"), ("key.fields", "item")]);
        assert!(refusal(&fields, Role::Sink).contains("no option 'key.fields'"));
        for (option, value) in [("scan.startup.mode", "latest-offset"), ("scan.max-rows-per-epoch", "7")] {
            let read = refusal(&table(&[("value.format", "json"), (option, value)]), Role::Sink);
            assert!(read.contains(&format!("no option '{option}': such a table is not read")), "{read}");
        }
        let keyless = TableDefinition { primary_key: vec![], ..good };
        for role in [Role::Source, Role::Sink] {
            assert!(refusal(&keyless, role).contains("needs a PRIMARY KEY"), "whatever it is used for");
        }
    }
}

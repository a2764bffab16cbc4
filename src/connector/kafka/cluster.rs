//! A Kafka cluster as a catalog of topics: `CREATE CATALOG k WITH ('type' = 'kafka', …)`.
//!
//! The idea: it is told how to connect by the options that a table has for that, `properties.*`, and hands every question
//! to an [`Admin`], on a thread that may wait.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;

use super::admin::Admin;
use super::properties::Properties;
use crate::connector::cluster::{Cluster, GroupDescription, GroupSummary, OffsetChange, ResetTo, TopicDescription};
use crate::error::{Error, Result};
use crate::sql::options::OptionReader;

/// A cluster that is named by a catalog.
pub(super) struct KafkaCluster {
    /// As they were written.
    options: BTreeMap<String, String>,
    /// Always there, until it is dropped.
    admin: Option<Arc<Admin>>,
}

impl std::fmt::Debug for KafkaCluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Options may be secrets.
        f.debug_struct("KafkaCluster").field("admin", &self.admin).finish_non_exhaustive()
    }
}

impl KafkaCluster {
    /// The cluster of this catalog; no I/O.
    pub(super) fn try_new(catalog: &str, options: &BTreeMap<String, String>) -> Result<Self> {
        let whose = format!("catalog {catalog}");
        let mut reader = OptionReader::of(whose.clone(), options);
        reader.text("properties.bootstrap.servers")?;
        let properties = reader.prefixed("properties.")?;
        reader.finish()?;
        let admin = Properties::try_new(properties).and_then(Admin::try_new).map_err(|error| error.context(whose))?;
        Ok(Self { options: options.clone(), admin: Some(Arc::new(admin)) })
    }

    async fn ask<T: Send + 'static>(&self, ask: impl FnOnce(&Admin) -> Result<T> + Send + 'static) -> Result<T> {
        let admin = self.admin.clone().ok_or_else(|| Error::internal("the catalog is dropped already"))?;
        let answer = spawn_blocking(move || admin.ask(ask)).await;
        answer.map_err(|e| Error::internal("asking the brokers failed").caused_by(e))?
    }
}

impl Drop for KafkaCluster {
    fn drop(&mut self) {
        let admin = self.admin.take();
        // Ending a client waits for its threads.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn_blocking(move || drop(admin));
        }
    }
}

#[async_trait]
impl Cluster for KafkaCluster {
    async fn topics(&self) -> Result<Vec<String>> {
        self.ask(Admin::topics).await
    }

    async fn topic(&self, name: &str) -> Result<TopicDescription> {
        let name = name.to_string();
        self.ask(move |admin| admin.topic(&name)).await
    }

    async fn create_topic(&self, name: &str, options: &BTreeMap<String, String>) -> Result<()> {
        let (name, options) = (name.to_string(), options.clone());
        self.ask(move |admin| admin.create(&name, &options)).await
    }

    async fn drop_topic(&self, name: &str) -> Result<()> {
        let name = name.to_string();
        self.ask(move |admin| admin.delete(&name)).await
    }

    async fn groups(&self) -> Result<Vec<GroupSummary>> {
        self.ask(Admin::groups).await
    }

    async fn group(&self, name: &str) -> Result<GroupDescription> {
        let name = name.to_string();
        self.ask(move |admin| admin.group(&name)).await
    }

    async fn plan_reset(&self, group: &str, topic: &str, to: &ResetTo) -> Result<Vec<OffsetChange>> {
        let (group, topic, to) = (group.to_string(), topic.to_string(), to.clone());
        self.ask(move |admin| admin.plan_reset(&group, &topic, &to)).await
    }

    async fn reset(&self, group: &str, changes: &[OffsetChange]) -> Result<()> {
        let (group, changes) = (group.to_string(), changes.to_vec());
        self.ask(move |admin| admin.reset(&group, &changes)).await
    }

    fn table_options(&self, topic: &str) -> BTreeMap<String, String> {
        let mut options = self.options.clone();
        options.insert("connector".into(), "kafka".into());
        options.insert("topic".into(), topic.into());
        options
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(given: &[(&str, &str)]) -> BTreeMap<String, String> {
        given.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
    }

    #[test]
    fn a_catalog_says_how_to_connect_and_no_more() {
        let servers = ("properties.bootstrap.servers", "a:1");
        let given = options(&[servers, ("properties.sasl.password", "hunter2")]);
        let cluster = KafkaCluster::try_new("k", &given).unwrap();
        let table = cluster.table_options("orders");
        assert_eq!((table["connector"].as_str(), table["topic"].as_str(), table.len()), ("kafka", "orders", 4));
        assert_eq!(table["properties.sasl.password"], "hunter2");
        assert!(!format!("{cluster:?}").contains("hunter2"));
        for (given, expected) in [
            (&[("topic", "orders"), servers][..], "catalog k: there is no option 'topic'"),
            (&[], "catalog k: the option 'properties.bootstrap.servers' is missing"),
            (&[servers, ("properties.bootstrap.server", "x")], "catalog k: option 'properties.bootstrap.server'"),
            (&[servers, ("properties.acks", "1")], "catalog k: option 'properties.acks' is not yours to set"),
        ] {
            let error = KafkaCluster::try_new("k", &options(given)).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn topics_are_listed_and_wrong_names_are_told() {
        let brokers = rdkafka::mocking::MockCluster::new(1).unwrap();
        brokers.create_topic("orders", 2, 1).unwrap();
        let servers = brokers.bootstrap_servers();
        let given = options(&[("properties.bootstrap.servers", servers.as_str())]);
        let cluster = KafkaCluster::try_new("k", &given).unwrap();
        assert_eq!(cluster.topics().await.unwrap(), ["orders"]);
        let error = cluster.drop_topic("ordres").await.unwrap_err().to_string();
        assert!(error.contains("did you mean 'orders'?"), "{error}");
        let error = cluster.create_topic("orders", &BTreeMap::new()).await.unwrap_err().to_string();
        assert_eq!(error, "topic orders exists already");
        for (name, given, expected) in [
            ("a b", options(&[]), "'a b' cannot be a topic"),
            ("new", options(&[("partitions", "0")]), "topic new: option 'partitions': '0' is not a number, at least 1"),
        ] {
            let error = cluster.create_topic(name, &given).await.unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}

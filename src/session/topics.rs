//! The topics of a catalog as tables: `SELECT * FROM k.orders`.
//!
//! The idea: to DataFusion a catalog of topics is a schema. When a query names a topic, some of its messages are looked
//! at, as for a CREATE TABLE without columns: a topic of JSON objects has the columns of these, any other one column
//! `value`. Behind them stand the place of each message and its time, where these names are free.
//!
//! Guarantee: nothing is asked of the brokers before a topic is named. A topic keeps its columns as long as the catalog
//! is there, so that one statement finds what the one before it found; one that was empty, or that was created or dropped
//! here, is looked at again.
//!
//! Not promised: the same columns in another session. A query that lasts takes no such table.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow::array::Array;
use arrow::datatypes::DataType;
use async_trait::async_trait;
use datafusion::catalog::{CatalogProvider, SchemaProvider, TableProvider};
use datafusion::error::DataFusionError;

use super::Session;
use super::infer::{Sample, sample};
use crate::catalog::{Column, ColumnKind, TableDefinition};
use crate::connector::cluster::Cluster;
use crate::connector::{Connectors, Environment, MetadataKey, Role};
use crate::error::{Error, Result};
use crate::format::infer;
use crate::plan::opener::Opener;
use crate::plan::scan::StreamTable;

/// Metadata that say which message a row is, and when it was sent: those of them that a connector has.
const METADATA: [&str; 6] = ["partition", "broker", "queue", "offset", "timestamp", "store-timestamp"];

impl Session {
    /// Makes the topics of a cluster tables, `catalog.topic`.
    pub(super) fn register_topics(&self, catalog: &str, cluster: Arc<dyn Cluster>) -> Result<()> {
        let topics = Topics {
            catalog: catalog.into(),
            cluster,
            connectors: self.connectors.clone(),
            environment: self.environment(),
            known: Mutex::default(),
        };
        self.schemas()?.register_schema(catalog, Arc::new(topics))?;
        Ok(())
    }

    /// Forgets them.
    pub(super) fn deregister_topics(&self, catalog: &str) -> Result<()> {
        self.schemas()?.deregister_schema(catalog, true)?;
        Ok(())
    }

    /// Makes a topic be looked at again when it is next named: it is another one, or gone.
    pub(super) fn forget_topic(&self, catalog: &str, topic: &str) -> Result<()> {
        if let Some(topics) = self.schemas()?.schema(catalog) {
            topics.deregister_table(topic)?;
        }
        Ok(())
    }

    /// Where DataFusion looks for the first of two parts of a name.
    fn schemas(&self) -> Result<Arc<dyn CatalogProvider>> {
        self.context.catalog("datafusion").ok_or_else(|| Error::internal("the catalog of this session is gone"))
    }
}

/// The topics of a cluster, as far as they were named.
#[derive(Debug)]
struct Topics {
    catalog: String,
    cluster: Arc<dyn Cluster>,
    connectors: Connectors,
    environment: Environment,
    known: Mutex<BTreeMap<String, Arc<dyn TableProvider>>>,
}

impl Topics {
    fn known(&self) -> MutexGuard<'_, BTreeMap<String, Arc<dyn TableProvider>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn open(&self, topic: &str) -> Result<Arc<dyn TableProvider>> {
        let table = TableDefinition {
            name: format!("{}.{topic}", self.catalog),
            columns: vec![],
            primary_key: vec![],
            watermark: None,
            partitioned_by: vec![],
            options: self.cluster.table_options(topic),
        };
        let sample = match sample(&self.connectors, &self.environment, &table).await {
            Ok(sample) => sample,
            Err(error) => {
                // If there is no such topic, this says so, with the nearest names.
                self.cluster.topic(topic).await?;
                return Err(error);
            }
        };
        let is_empty = sample.payloads.is_empty();
        let table = self.definition(table, &sample)?;
        let opener = Opener::new(self.connectors.clone(), self.environment.clone(), None);
        let provider: Arc<dyn TableProvider> = Arc::new(StreamTable::new(Arc::new(table), Arc::new(opener)));
        if !is_empty {
            self.known().insert(topic.into(), Arc::clone(&provider));
        }
        Ok(provider)
    }

    /// The table with the columns of these messages.
    fn definition(&self, mut table: TableDefinition, sample: &Sample) -> Result<TableDefinition> {
        let format = if infer::are_objects(&sample.payloads) { "json" } else { "raw" };
        table.options.insert("format".into(), format.into());
        let infer::Inferred { columns, options, .. } = infer::columns(&table, &sample.payloads)?;
        table.columns = columns;
        table.options.extend(options);
        let connector = self.connectors.of(&table)?;
        append_metadata(&mut table.columns, &connector.metadata());
        connector.check(&table, Role::Source)?;
        Ok(table)
    }
}

/// Appends those of [`METADATA`] that are offered, where their names are free.
fn append_metadata(columns: &mut Vec<Column>, offered: &[MetadataKey]) {
    for key in METADATA {
        let name = key.replace('-', "_");
        let is_taken = columns.iter().any(|column| column.name.eq_ignore_ascii_case(&name));
        let Some(known) = offered.iter().find(|known| known.key == key && !is_taken) else { continue };
        let data_type = match &known.data_type {
            DataType::Utf8 => DataType::Utf8View,
            other => other.clone(),
        };
        let kind = ColumnKind::Metadata { key: key.into(), is_virtual: true };
        columns.push(Column { kind, ..Column::physical(name, data_type) });
    }
}

#[async_trait]
impl SchemaProvider for Topics {
    /// Those that were named: asking for all would be I/O.
    fn table_names(&self) -> Vec<String> {
        self.known().keys().cloned().collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>, DataFusionError> {
        let known = self.known().get(name).cloned();
        match known {
            Some(known) => Ok(Some(known)),
            None => Ok(Some(self.open(name).await?)),
        }
    }

    fn deregister_table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>, DataFusionError> {
        Ok(self.known().remove(name))
    }

    fn table_exist(&self, name: &str) -> bool {
        self.known().contains_key(name)
    }
}

#[cfg(test)]
mod tests {
    use datafusion::catalog::MemorySchemaProvider;

    use super::*;
    use crate::connector::Connector;
    use crate::connector::kafka::KafkaConnector;
    use crate::connector::rocketmq::RocketmqConnector;

    fn check(connector: &dyn Connector, columns: &[&str], expected: &[&str]) {
        let mut columns: Vec<Column> = columns.iter().map(|name| Column::physical(*name, DataType::Utf8View)).collect();
        append_metadata(&mut columns, &connector.metadata());
        let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
        assert_eq!(names, expected);
    }

    #[tokio::test]
    async fn a_table_that_is_called_like_a_topic_does_not_stand_in_for_it() {
        let mut session = Session::new("test").unwrap();
        let script = "CREATE TABLE `k.orders` (n BIGINT) WITH ('connector' = 'datagen');
                      CREATE TABLE counted (n BIGINT) WITH ('connector' = 'blackhole');
                      SET 'checkpoint.location' = 'memory://m/checkpoints'";
        session.execute_script(script).await.unwrap();
        let mut topic = session.tables()["k.orders"].clone();
        topic.options.insert("rows-per-second".into(), "1".into());
        let opener = Opener::new(session.connectors.clone(), session.environment(), None);
        let topics = MemorySchemaProvider::new();
        let table = StreamTable::new(Arc::new(topic), Arc::new(opener));
        topics.register_table("orders".into(), Arc::new(table)).unwrap();
        session.schemas().unwrap().register_schema("k", Arc::new(topics)).unwrap();
        let error = session.execute_script("INSERT INTO counted SELECT n FROM k.orders").await.err().unwrap();
        assert!(error.to_string().contains("k.orders is a topic of a catalog"), "{error}");
        session.execute_script("INSERT INTO counted SELECT n FROM `k.orders`").await.unwrap();
    }

    #[test]
    fn metadata_stand_behind_columns_where_their_names_are_free() {
        check(&KafkaConnector, &["id"], &["id", "partition", "offset", "timestamp"]);
        check(&KafkaConnector, &["Offset"], &["Offset", "partition", "timestamp"]);
        check(&RocketmqConnector, &["id"], &["id", "broker", "queue", "offset", "store_timestamp"]);
    }
}

//! What a session knows by name, for a prompt that completes what is typed.
//!
//! Guaranteed: nothing outside is asked, and nothing changes. Topics are not here: who wants them asks the
//! [`Cluster`](crate::connector::cluster::Cluster), and waits for it.

use std::collections::BTreeMap;

use datafusion::common::TableReference;

use super::{Session, settings};
use crate::catalog::TableDefinition;
use crate::connector::Role;
use crate::sql::options::{Words, asked_for};

impl Session {
    /// The columns of a table or view; none, if there is no such relation.
    pub(crate) async fn columns(&self, relation: &str) -> Vec<String> {
        if let Some(table) = self.tables.get(relation) {
            return table.columns.iter().map(|column| column.name.clone()).collect();
        }
        match self.context.table(TableReference::bare(relation)).await {
            Ok(frame) => frame.schema().fields().iter().map(|field| field.name().clone()).collect(),
            Err(_) => Vec::new(),
        }
    }

    /// Functions: scalar, aggregate, over windows, and those that give tables.
    pub(crate) fn functions(&self) -> Vec<String> {
        let state = self.context.state_ref();
        let state = state.read();
        let scalar = state.scalar_functions().keys();
        let (aggregate, window) = (state.aggregate_functions().keys(), state.window_functions().keys());
        scalar.chain(aggregate).chain(window).chain(state.table_functions().keys()).cloned().collect()
    }

    /// Settings, with the words that they take.
    pub(crate) fn setting_words(&self) -> Words {
        settings::words()
    }

    /// Options that a table may have beside those that are written, with the words that they take: what its connector
    /// asks for, up to the first that is required and missing. Options of single columns are not among them.
    pub(crate) fn option_words(&self, written: &BTreeMap<String, String>) -> Words {
        let (columns, primary_key, partitioned_by) = Default::default();
        let name = String::new();
        let table =
            TableDefinition { name, columns, primary_key, watermark: None, partitioned_by, options: written.clone() };
        let mut words = match self.connectors.of(&table) {
            Ok(connector) => asked_for(|| {
                // What is wrong with half a table is no matter here.
                let _ = connector.check(&table, Role::Source);
            }),
            Err(_) => Words::new(),
        };
        words.insert("connector".into(), self.connectors.names().map(str::to_owned).collect());
        words
    }

    /// Catalogs whose tables are topics.
    pub(crate) fn catalogs(&self) -> Vec<String> {
        self.clusters.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(options: &[(&str, &str)]) -> BTreeMap<String, String> {
        options.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
    }

    #[test]
    fn options_are_those_that_the_connector_asks_for() {
        let session = Session::new("test").unwrap();
        let words = session.option_words(&written(&[]));
        assert_eq!(words.keys().collect::<Vec<_>>(), ["connector"]);
        assert!(words["connector"].contains(&"kafka".to_string()));
        let words = session.option_words(&written(&[("connector", "print")]));
        assert_eq!(words.keys().collect::<Vec<_>>(), ["connector", "print-identifier", "standard-error"]);
        assert_eq!(words["standard-error"], ["true", "false"]);
        // What is required comes first: without a topic nothing else is asked for.
        let words = session.option_words(&written(&[("connector", "kafka")]));
        assert_eq!(words.keys().collect::<Vec<_>>(), ["connector", "topic", "topic-pattern"]);
        let words = session.option_words(&written(&[("connector", "kafka"), ("topic", "orders"), ("format", "json")]));
        assert!(words["format"].contains(&"debezium-json".to_string()));
        assert!(words["scan.startup.mode"].contains(&"latest-offset".to_string()), "{words:?}");
    }

    #[tokio::test]
    async fn relations_have_columns_and_there_are_functions() {
        let mut session = Session::new("test").unwrap();
        let script = "CREATE TABLE t (n BIGINT, m AS n * 2) WITH ('connector' = 'datagen'); \
                      CREATE VIEW v AS SELECT n AS k FROM t;";
        session.execute_script(script).await.unwrap();
        assert_eq!(session.table_names().into_iter().collect::<Vec<_>>(), ["t", "v"]);
        assert_eq!(session.columns("t").await, ["n", "m"]);
        assert_eq!(session.columns("v").await, ["k"]);
        assert!(session.columns("nothing").await.is_empty());
        for function in ["date_bin", "count", "row_number"] {
            assert!(session.functions().iter().any(|name| name == function), "{function}");
        }
    }
}

//! What can be completed by name: the session's own names at once, topics as soon as their cluster answers.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;

use crate::session::Session;
use crate::sql::options::Words;

/// A key waits no longer than this for a cluster; what it answers later is there for the next.
const PATIENCE: Duration = Duration::from_millis(300);

/// Names to complete. Asked between two keys, so it answers with what is at hand.
pub(super) trait Names {
    /// Tables and views.
    fn relations(&self) -> Vec<String>;
    /// Columns of a table or view.
    fn columns(&self, relation: &str) -> Vec<String>;
    /// Functions.
    fn functions(&self) -> Vec<String>;
    /// Settings, with the words that they take.
    fn settings(&self) -> Words;
    /// Options of a table that has these already, with the words that they take.
    fn options(&self, written: &BTreeMap<String, String>) -> Words;
    /// Catalogs of topics.
    fn catalogs(&self) -> Vec<String>;
    /// Topics of a catalog, as far as they are known.
    fn topics(&self, catalog: &str) -> Vec<String>;
    /// Queries that were started.
    fn queries(&self) -> Vec<String>;
}

/// Topics by catalog, as clusters last answered; clones share them.
#[derive(Clone, Default)]
pub(super) struct Topics(Arc<Mutex<BTreeMap<String, Vec<String>>>>);

impl Topics {
    fn known(&self) -> MutexGuard<'_, BTreeMap<String, Vec<String>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The names of a session as it is now. To be asked on a thread of a runtime that may block.
pub(super) struct Known {
    pub session: Session,
    pub topics: Topics,
    pub queries: Vec<String>,
}

impl Names for Known {
    fn relations(&self) -> Vec<String> {
        self.session.table_names().into_iter().collect()
    }

    fn columns(&self, relation: &str) -> Vec<String> {
        within_patience(self.session.columns(relation)).unwrap_or_default()
    }

    fn functions(&self) -> Vec<String> {
        self.session.functions()
    }

    fn settings(&self) -> Words {
        self.session.setting_words()
    }

    fn options(&self, written: &BTreeMap<String, String>) -> Words {
        self.session.option_words(written)
    }

    fn catalogs(&self) -> Vec<String> {
        self.session.catalogs()
    }

    fn topics(&self, catalog: &str) -> Vec<String> {
        let Ok(cluster) = self.session.cluster(catalog).cloned() else { return vec![] };
        let (topics, name) = (self.topics.clone(), catalog.to_owned());
        // The task goes on when nobody waits for it any more.
        let asked = tokio::spawn(async move {
            if let Ok(found) = cluster.topics().await {
                topics.known().insert(name, found);
            }
        });
        within_patience(asked);
        self.topics.known().get(catalog).cloned().unwrap_or_default()
    }

    fn queries(&self) -> Vec<String> {
        self.queries.clone()
    }
}

fn within_patience<T>(answer: impl Future<Output = T>) -> Option<T> {
    Handle::current().block_on(async { tokio::time::timeout(PATIENCE, answer).await.ok() })
}

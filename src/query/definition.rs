//! What a query was: everything needed to plan it again.
//!
//! An intent is finished under the definition it names, also by a later binary run with a changed file. So a definition
//! holds the SQL, the tables and views it names, and the settings, as they took effect; never a secret, and none of the
//! options that say how to connect or what to do with trouble ([`Connector::is_operational`]), for these apply at once.
//!
//! [`compare`] says whether a query may go on under a changed definition.

use std::collections::BTreeMap;
use std::hash::Hasher;
use std::sync::Arc;

use datafusion::datasource::physical_plan::FileScanConfig;
use datafusion::datasource::source::DataSourceExec;
use datafusion::physical_plan::ExecutionPlan;
use serde::{Deserialize, Serialize};
use twox_hash::XxHash64;

use crate::catalog::{TableDefinition, ViewDefinition};
use crate::connector::Connectors;
use crate::error::{Error, Result};

#[allow(unused_imports)]
use crate::connector::Connector;

/// A continuous query: see the module's text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    /// The SELECT of `INSERT INTO … SELECT …`.
    pub query: String,
    /// The columns named in `INSERT INTO t (…)`; empty without a list.
    pub columns: Vec<String>,
    /// The table it writes.
    pub target: TableDefinition,
    /// The table that late rows go to, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub late: Option<TableDefinition>,
    /// The streams it reads, by name.
    pub sources: BTreeMap<String, TableDefinition>,
    /// All views of the session, in the order they were made: a query may use any of them.
    pub views: Vec<ViewDefinition>,
    /// `CREATE EXTERNAL TABLE` and other statements of DataFusion's, in order.
    pub statics: Vec<String>,
    /// Settings that decide an answer.
    pub settings: BTreeMap<String, String>,
    /// A digest of the files of static tables, if any are read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub static_files: Option<String>,
    /// What the checkpoint is bound to: by source, and under the empty name the target.
    pub identities: BTreeMap<String, String>,
    /// The other INSERTs of a statement set.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<OtherInsert>,
}

/// One INSERT of a statement set, behind the first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtherInsert {
    /// The SELECT.
    pub query: String,
    /// The columns named.
    pub columns: Vec<String>,
    /// The table it writes.
    pub target: TableDefinition,
    /// What the checkpoint is bound to.
    pub identity: String,
}

impl Definition {
    /// Every INSERT: its SELECT, the columns named, and the table it writes.
    pub fn inserts(&self) -> impl Iterator<Item = (&str, &[String], &TableDefinition)> {
        let others = self.others.iter().map(|other| (other.query.as_str(), other.columns.as_slice(), &other.target));
        std::iter::once((self.query.as_str(), self.columns.as_slice(), &self.target)).chain(others)
    }
}

/// The table as a definition keeps it: without operational options.
pub fn durable(table: &TableDefinition, connectors: &Connectors) -> Result<TableDefinition> {
    let connector = connectors.of(table)?;
    let mut table = table.clone();
    table.options.retain(|key, _| !connector.is_operational(key));
    for (key, value) in &mut table.options {
        *value = crate::sql::options::printable(key, value).to_owned();
    }
    Ok(table)
}

/// A durable table with the operational options and secrets of the table of today.
pub fn revived(
    stored: &TableDefinition,
    today: Option<&TableDefinition>,
    connectors: &Connectors,
) -> Result<TableDefinition> {
    let mut table = stored.clone();
    let Some(today) = today else { return Ok(table) };
    let connector = connectors.of(stored)?;
    for (key, value) in &today.options {
        let is_hidden = table.options.get(key).is_some_and(|v| v == crate::sql::options::REDACTED);
        if connector.is_operational(key) || is_hidden {
            table.options.insert(key.clone(), value.clone());
        }
    }
    Ok(table)
}

/// Whether a query that ran as `old` may go on as `new`: the same sources and target, whatever it computes from them.
///
/// Errors: what changed, and what to do.
pub fn compare(old: &Definition, new: &Definition) -> Result<()> {
    let advice = "give the query another name (SET 'pipeline.name'), or another checkpoint, to start anew";
    for (name, identity) in &old.identities {
        let what = if name.is_empty() { "target".to_string() } else { format!("source {name}") };
        match new.identities.get(name) {
            Some(same) if same == identity => {}
            Some(other) => {
                return Err(Error::refused(format!(
                    "the query's checkpoint belongs to another {what}: it was {identity} and is now {other}; {advice}"
                )));
            }
            None => {
                return Err(Error::refused(format!(
                    "the query's checkpoint has offsets of the {what} ({identity}), which is no longer read; {advice}"
                )));
            }
        }
    }
    for (name, table) in &new.sources {
        let ends = |table: &TableDefinition| -> Vec<(String, String)> {
            let says = |(key, value): &(String, String)| key.starts_with("scan.bounded.") && value != "unbounded";
            table.options.clone().into_iter().filter(says).collect()
        };
        if old.sources.get(name).is_some_and(|old| ends(old) != ends(table)) {
            return Err(Error::refused(format!(
                "source {name}: where a stream ends ('scan.bounded.*') was decided when the query began, and is another now; \
                 {advice}"
            )));
        }
    }
    let targets = |definition: &Definition| -> Vec<String> {
        definition.others.iter().map(|other| other.identity.clone()).collect()
    };
    if targets(old) != targets(new) {
        let named = |targets: Vec<String>| if targets.is_empty() { "none".into() } else { targets.join(", ") };
        return Err(Error::refused(format!(
            "the query's checkpoint belongs to a statement set whose other targets are, in this order, {}, and now they are \
             {}; {advice}",
            named(targets(old)),
            named(targets(new))
        )));
    }
    match new.identities.keys().find(|name| !old.identities.contains_key(*name)) {
        Some(added) => Err(Error::refused(format!(
            "the query's checkpoint has no offsets of the source {added}, which was not read before; {advice}"
        ))),
        None => Ok(()),
    }
}

/// A digest of the files that static tables of these plans read: path, size and version of each. None without any.
pub fn static_files(plans: &[Arc<dyn ExecutionPlan>]) -> Option<String> {
    let mut files = vec![];
    plans.iter().for_each(|plan| collect_files(plan, &mut files));
    files.sort();
    let digest = files.iter().fold(XxHash64::with_seed(0), |mut hash, file| {
        hash.write(file.as_bytes());
        hash.write_u8(0);
        hash
    });
    (!files.is_empty()).then(|| format!("{:016x}", digest.finish()))
}

fn collect_files(plan: &Arc<dyn ExecutionPlan>, files: &mut Vec<String>) {
    if let Some(source) = plan.downcast_ref::<DataSourceExec>()
        && let Some(config) = source.data_source().downcast_ref::<FileScanConfig>()
    {
        for file in config.file_groups.iter().flat_map(|group| group.iter()) {
            let meta = &file.object_meta;
            let version = meta.e_tag.clone().unwrap_or_else(|| meta.last_modified.to_rfc3339());
            files.push(format!("{} {} {version}", meta.location, meta.size));
        }
    }
    plan.children().into_iter().for_each(|child| collect_files(child, files));
}

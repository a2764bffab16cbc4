//! A table with a hint: `FROM t /*+ OPTIONS('key' = 'value') */`.
//!
//! The idea: it is a table of its own, `t` with other options, which nobody but the query sees that has the hint. It
//! has a name of its own, made of the table and the hint, as what is open, what a checkpoint knows of a source, and
//! what an epoch reads go by name. Where the query says `t`, that still means it.
//!
//! Guaranteed: the same hint of the same table has the same name in every process. So a definition that is planned
//! again finds the table that it names, whatever `t` is by then. The connector checks the options as it does those of
//! a table.
//!
//! Not promised: that a continuous query goes on when its hint changes. It reads another source then.

use std::collections::BTreeMap;
use std::hash::Hasher;
use std::sync::Arc;

use datafusion::catalog::default_table_source::provider_as_source;
use datafusion::common::{Result as DfResult, TableReference};
use datafusion::datasource::TableProvider;
use datafusion::execution::SessionState;
use datafusion::logical_expr::LogicalPlanBuilder;
use datafusion::logical_expr::planner::{PlannedRelation, RelationPlanner, RelationPlannerContext, RelationPlanning};
use datafusion::sql::sqlparser::ast::{Query, TableFactor};
use twox_hash::XxHash64;

use super::Session;
use crate::catalog::TableDefinition;
use crate::connector::Role;
use crate::error::{Error, Result};
use crate::sql::hints::{Hint, hints};
use crate::sql::options::is_secret;

impl Session {
    /// What plans this query: with its hints.
    pub(super) fn planning(&self, query: &Query) -> Result<SessionState> {
        let mut state = self.context.state();
        let mut tables = BTreeMap::new();
        for hint in hints(query)? {
            let mut table = self.hinted_table(&hint).map_err(|error| error.at(hint.place))?;
            tables.insert(own_name(&hint), self.provider(&mut table)?);
        }
        if !tables.is_empty() {
            state.register_relation_planner(Arc::new(HintedTables(tables)))?;
        }
        Ok(state)
    }

    /// Keeps the tables with hints of a query that lasts.
    pub(super) fn keep_hinted(&mut self, query: &Query) -> Result<()> {
        for hint in hints(query)? {
            let mut table = self.hinted_table(&hint).map_err(|error| error.at(hint.place))?;
            // The types of its computed columns.
            self.provider(&mut table)?;
            self.hinted.insert(table.name.clone(), table);
        }
        Ok(())
    }

    /// The table of this name, as plans name it.
    pub(super) fn known(&self, name: &str) -> Option<&TableDefinition> {
        self.tables.get(name).or_else(|| self.hinted.get(name))
    }

    /// The table of today that a table of this name in a definition goes back to.
    pub(super) fn today(&self, name: &str) -> Option<&TableDefinition> {
        // Of a hint that is not there any more: the table that it was of.
        self.known(name).or_else(|| self.tables.get(name.rsplit_once('$')?.0))
    }

    fn hinted_table(&self, hint: &Hint) -> Result<TableDefinition> {
        let Hint { table, options, .. } = hint;
        let name = own_name(hint);
        // A definition that is planned again brings its tables along.
        if let Some(known) = self.tables.get(&name) {
            return Ok(known.clone());
        }
        let Some(known) = self.tables.get(table) else { return Err(self.takes_no_hint(table)) };
        if let Some(key) = options.keys().find(|key| is_secret(key)) {
            // The text of a query is kept in checkpoints, as it was written.
            return Err(Error::usage(format!(
                "option '{key}' of the hint of {table} looks like a secret, which belongs into the table's WITH list"
            )));
        }
        if options.contains_key("connector") {
            return Err(Error::usage(format!("a hint cannot change the 'connector' of {table}; create another table")));
        }
        let mut hinted = known.clone();
        for side in ["scan.startup.", "scan.bounded."] {
            // Another mode has no use for what goes with the table's.
            if options.contains_key(&format!("{side}mode")) {
                hinted.options.retain(|key, _| !key.starts_with(side));
            }
        }
        hinted.options.extend(options.clone());
        self.connectors.of(&hinted)?.check(&hinted, Role::Source)?;
        Ok(TableDefinition { name, ..hinted })
    }

    fn takes_no_hint(&self, table: &str) -> Error {
        if self.views.iter().any(|view| view.name == table) {
            return Error::usage(format!("{table} is a view, which has no options; put the hint behind a table in it"));
        }
        match self.static_names().iter().any(|name| name == table) {
            true => {
                Error::usage(format!("{table} is no table of CREATE TABLE … WITH (…), so a hint has no meaning there"))
            }
            false => self.no_table(table),
        }
    }
}

/// What the table that a hint makes is called.
fn own_name(hint: &Hint) -> String {
    let mut hash = XxHash64::with_seed(0);
    for text in hint.options.iter().flat_map(|(key, value)| [key, value]) {
        hash.write(text.as_bytes());
        hash.write_u8(0);
    }
    format!("{}${:016x}", hint.table, hash.finish())
}

/// The tables with hints of a query, by their own names.
#[derive(Debug)]
struct HintedTables(BTreeMap<String, Arc<dyn TableProvider>>);

impl RelationPlanner for HintedTables {
    fn plan_relation(
        &self,
        relation: TableFactor,
        _context: &mut dyn RelationPlannerContext,
    ) -> DfResult<RelationPlanning> {
        let hint = Hint::of(&relation)?;
        let found = hint.and_then(|hint| Some((self.0.get(&own_name(&hint))?, hint.table)));
        match (found, relation) {
            (Some((provider, table)), TableFactor::Table { alias, .. }) => {
                let source = provider_as_source(Arc::clone(provider));
                let plan = LogicalPlanBuilder::scan(TableReference::bare(table), source, None)?.build()?;
                Ok(RelationPlanning::Planned(Box::new(PlannedRelation::new(plan, alias))))
            }
            (_, relation) => Ok(RelationPlanning::Original(Box::new(relation))),
        }
    }
}

//! `CREATE` and `DROP` of tables and views: who may have which name, and what is kept in the catalog.
//!
//! Guarantee: a statement that fails leaves the names as they were, and a table with a secret in it never reaches the
//! catalog.

use super::{Outcome, Session, store};
use crate::catalog::ViewDefinition;
use crate::error::{Error, Result};
use crate::sql::CreateTable;

fn done(text: String) -> Result<Outcome> {
    Ok(Outcome::Done(text))
}

impl Session {
    /// `CREATE TABLE`, with columns, without, or `AS` a query.
    pub(super) async fn create(&mut self, create: CreateTable) -> Result<Outcome> {
        let CreateTable { definition, if_not_exists, temporary, as_query } = create;
        let name = definition.name.clone();
        if self.is_taken(&name).await? {
            return match (if_not_exists, self.kept_statement(&name)) {
                (true, _) => done(format!("table {name} exists already")),
                (false, Some(_)) => Err(Error::usage(format!(
                    "{name} exists already, in the catalog; say IF NOT EXISTS to take it as it is"
                ))),
                (false, None) => Err(Error::usage(format!("table {name} exists already; DROP TABLE {name} first"))),
            };
        }
        let is_kept = self.is_kept(temporary);
        if is_kept {
            store::refuse_secrets(format_args!("table {name}"), &definition.options)?;
        }
        let made = match as_query {
            Some(query) => self.create_table_as(definition, *query).await?,
            None if definition.columns.is_empty() => {
                let inferred = self.inferred(definition).await?;
                self.create_table(inferred.definition.clone())?;
                Outcome::Text(inferred.shown())
            }
            None => {
                self.create_table(definition)?;
                Outcome::Done(format!("table {name} created"))
            }
        };
        if is_kept && let Err(error) = self.keep_table(&name).await {
            if let Outcome::Query(spec) = &made {
                self.names.remove(&spec.name);
            }
            return Err(error);
        }
        Ok(made)
    }

    /// `DROP TABLE`.
    pub(super) async fn drop_table(&mut self, name: &str, if_exists: bool) -> Result<Outcome> {
        if self.is_view(name) {
            return Err(Error::usage(format!("{name} is a view; say DROP VIEW {name}")));
        }
        match self.drop_relation(name).await? {
            true => done(format!("table {name} dropped")),
            false if if_exists => done(format!("there is no table {name}")),
            false => Err(self.no_table(name)),
        }
    }

    /// `CREATE VIEW`.
    pub(super) async fn add_view(
        &mut self,
        view: ViewDefinition,
        or_replace: bool,
        if_not_exists: bool,
        temporary: bool,
    ) -> Result<Outcome> {
        let name = view.name.clone();
        let exists = self.is_taken(&name).await?;
        if exists && if_not_exists {
            return done(format!("view {name} exists already"));
        }
        if exists && !(or_replace && self.is_view(&name)) {
            return Err(Error::usage(match self.is_view(&name) {
                true => format!("{name} exists already; say CREATE OR REPLACE VIEW"),
                false => format!("{name} exists already: a table has this name; choose another"),
            }));
        }
        self.put_view(view, self.is_kept(temporary)).await?;
        done(format!("view {name} created"))
    }

    /// `DROP VIEW`.
    pub(super) async fn drop_view(&mut self, name: &str, if_exists: bool) -> Result<Outcome> {
        match self.is_view(name) && self.drop_relation(name).await? {
            true => done(format!("view {name} dropped")),
            false if if_exists => done(format!("there is no view {name}")),
            false => Err(Error::usage(format!("there is no view {name}"))),
        }
    }
}

//! A session and the catalog that outlives it: `--catalog`, `SET 'catalog.location'`.
//!
//! The idea: before a statement that may name something the catalog is listed, and what the statement mentions, and what
//! that mentions in turn, is read and made known as it is now. The rest is not read: a catalog of any size costs a
//! statement one listing, and a definition that cannot be used here troubles only those who name it. Names are looked for
//! in texts, as words; one too many is read at most.
//!
//! Guaranteed: what is created is either known to all or to nobody. A change is refused if its object is another one than
//! the session has seen. A name of the session's own, temporary or older than the setting, comes before the catalog's.
//!
//! Not promised: that two names are seen as of one moment. A query that runs, and a view of the session's own, keep the
//! definitions that they were planned with, unless the session makes them anew.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::ops::ControlFlow;

use datafusion::common::TableReference;
use datafusion::sql::parser::{CreateExternalTable, Statement as DfStatement};
use datafusion::sql::sqlparser::ast::{ObjectNamePart, visit_relations};
use futures::stream::{self, StreamExt, TryStreamExt};

use super::{Outcome, Session, settings};
use crate::catalog::store::{Name, Space, Store, Version};
use crate::catalog::{TableDefinition, ViewDefinition};
use crate::error::{Error, Kind, Result};
use crate::sql::options::{REDACTED, did_you_mean, printable, resolve_environment};
use crate::sql::{self, Statement};

/// How many versions are read side by side.
const READING: usize = 16;

/// The catalog of a session, and what of it the session has.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    /// The setting's value that it was opened by.
    location: String,
    store: Store,
    /// The newest version of each name, as last listed.
    newest: BTreeMap<Name, u64>,
    /// What was read.
    read: BTreeMap<Name, Version>,
    /// By name: the version that the session has made a table, a view or a cluster of.
    made: BTreeMap<Name, u64>,
    /// What another version was read of, for the present statement.
    changed: BTreeSet<Name>,
    /// What the present statement mentions and cannot be made here, and why.
    unusable: BTreeMap<Name, String>,
}

impl Kept {
    /// Reads the newest version of these, unless that was done before.
    async fn read(&mut self, names: &[Name]) -> Result<()> {
        let wanted = names.iter().filter_map(|name| {
            let newest = *self.newest.get(name)?;
            let is_known = self.read.get(name).is_some_and(|version| version.number == newest);
            (!is_known).then(|| (self.store.clone(), name.clone(), newest))
        });
        let wanted: Vec<_> = wanted.collect();
        let reads = wanted.into_iter().map(|(store, name, number)| async move {
            let version = store.read(&name, number).await?;
            Ok::<_, Error>((name, version))
        });
        let read: Vec<(Name, Version)> = stream::iter(reads).buffered(READING).try_collect().await?;
        for (name, version) in read {
            if self.read.insert(name.clone(), version).is_some() {
                self.changed.insert(name);
            }
        }
        Ok(())
    }

    fn statement(&self, name: &Name) -> Option<&str> {
        self.read.get(name)?.statement.as_deref()
    }
}

/// What is read before a statement.
#[derive(PartialEq)]
enum Reads {
    /// Nothing: it names nothing that is defined.
    Nothing,
    /// What it mentions.
    Mentioned,
    /// Every definition, and what it mentions is made.
    Everything,
}

fn reads(statement: &Statement) -> Reads {
    match statement {
        Statement::Set { .. }
        | Statement::Reset { .. }
        | Statement::ShowSettings
        | Statement::ShowFunctions { .. }
        | Statement::ShowQueries
        | Statement::DescribeQuery { .. }
        | Statement::StopQuery { .. }
        | Statement::RestartQuery { .. } => Reads::Nothing,
        Statement::ShowTables { .. }
        | Statement::ShowViews { .. }
        | Statement::DropTable { .. }
        | Statement::DropView { .. }
        | Statement::DropCatalog { .. } => Reads::Everything,
        _ => Reads::Mentioned,
    }
}

impl Session {
    /// The names of all tables and views: the session's, and the catalog's as last listed.
    pub fn table_names(&self) -> BTreeSet<String> {
        let ours = self.tables.keys().cloned().chain(self.views.iter().map(|view| view.name.clone()));
        let kept = self.kept.iter().flat_map(|kept| {
            let is_dropped =
                move |name: &&Name| kept.read.get(*name).is_some_and(|version| version.statement.is_none());
            kept.newest.keys().filter(move |name| name.space == Space::Tables && !is_dropped(name))
        });
        ours.chain(self.static_names()).chain(kept.map(|name| name.name.clone())).collect()
    }

    /// Before a statement: what it mentions of the catalog is known afterwards as it is now.
    pub(super) async fn refresh(&mut self, statement: &Statement, text: &str) -> Result<()> {
        if let Some(kept) = &mut self.kept {
            kept.changed.clear();
            kept.unusable.clear();
        }
        let reads = reads(statement);
        if reads == Reads::Nothing {
            return Ok(());
        }
        self.open_catalog()?;
        let Some(kept) = &mut self.kept else { return Ok(()) };
        kept.newest = kept.store.list().await?;
        kept.read.retain(|name, _| kept.newest.contains_key(name));
        let stale = self.forget_stale()?;
        let meant = self.read_mentioned(text, &stale).await?;
        if reads == Reads::Everything
            && let Some(kept) = &mut self.kept
        {
            let all: Vec<Name> = kept.newest.keys().cloned().collect();
            kept.read(&all).await?;
        }
        self.make(&meant).await;
        for name in stale {
            // A view of the session's own that cannot be planned any more stays as it was.
            let _ = self.replan_views(&name).await;
        }
        Ok(())
    }

    /// Opens the catalog that the settings name, and closes another one.
    fn open_catalog(&mut self) -> Result<()> {
        let location = self.setting(settings::CATALOG).map(str::to_owned);
        if self.kept.as_ref().map(|kept| &kept.location) == location.as_ref() {
            return Ok(());
        }
        let made: Vec<Name> = self.kept.iter().flat_map(|kept| kept.made.keys().cloned()).collect();
        made.iter().try_for_each(|name| self.forget(name))?;
        self.kept = None;
        let Some(location) = location else { return Ok(()) };
        let place = self.stores.open(&resolve_environment(settings::CATALOG, &location)?, &self.settings)?;
        let store = Store::new(place, self.clock.clone());
        let (newest, read, made, changed, unusable) = Default::default();
        self.kept = Some(Kept { location, store, newest, read, made, changed, unusable });
        Ok(())
    }

    /// Forgets what was made of versions that are not the newest any more, and all views made here, as they may read it.
    /// The names of the former.
    fn forget_stale(&mut self) -> Result<BTreeSet<String>> {
        let Some(kept) = &self.kept else { return Ok(BTreeSet::new()) };
        let is_stale = |(name, made): &(&Name, &u64)| kept.newest.get(*name) != Some(*made);
        let stale: BTreeSet<Name> = kept.made.iter().filter(is_stale).map(|(name, _)| name.clone()).collect();
        if stale.is_empty() {
            return Ok(BTreeSet::new());
        }
        let views = self.views.iter().map(|view| Name::table(&view.name)).filter(|name| kept.made.contains_key(name));
        let gone: BTreeSet<Name> = views.chain(stale.iter().cloned()).collect();
        gone.iter().try_for_each(|name| self.forget(name))?;
        Ok(stale.into_iter().filter(|name| name.space == Space::Tables).map(|name| name.name).collect())
    }

    /// Reads what is mentioned: by the text, by what that mentions, and by views of our own that read what is stale.
    /// Catalogs of brokers are few, and are always meant.
    async fn read_mentioned(&mut self, text: &str, stale: &BTreeSet<String>) -> Result<BTreeSet<Name>> {
        let is_all = text.to_ascii_lowercase().contains("information_schema");
        let mut texts = vec![text.to_owned()];
        texts.extend(self.setting(settings::LATE_ROWS).map(str::to_owned));
        let reading = |view: &&ViewDefinition| !relations(&view.query).is_disjoint(stale);
        texts.extend(self.views.iter().filter(reading).map(|view| view.query.clone()));
        let (mut meant, mut ours) = (BTreeSet::new(), BTreeSet::new());
        while let Some(text) = texts.pop() {
            for (name, said) in self.own_texts() {
                if mentions(&text, &name) && ours.insert(name) {
                    texts.push(said);
                }
            }
            let Some(kept) = &mut self.kept else { break };
            let is_meant = |name: &&Name| {
                !meant.contains(*name) && (is_all || name.space == Space::Catalogs || mentions(&text, &name.name))
            };
            let found: Vec<Name> = kept.newest.keys().filter(is_meant).cloned().collect();
            kept.read(&found).await?;
            texts.extend(found.iter().filter_map(|name| kept.statement(name)).map(str::to_owned));
            meant.extend(found);
        }
        Ok(meant)
    }

    /// What the tables and views that are known mention others in: queries, and options.
    fn own_texts(&self) -> Vec<(String, String)> {
        let views = self.views.iter().map(|view| (view.name.clone(), view.query.clone()));
        let options = |table: &TableDefinition| table.options.values().cloned().collect::<Vec<_>>().join("\n");
        views.chain(self.tables.iter().map(|(name, table)| (name.clone(), options(table)))).collect()
    }

    /// Makes known what was read. A view may read another one, so what fails is tried again while anything succeeds.
    async fn make(&mut self, meant: &BTreeSet<Name>) {
        let mut left: Vec<Name> = meant.iter().filter(|name| self.is_missing(name)).cloned().collect();
        loop {
            let mut failed = BTreeMap::new();
            for name in &left {
                if let Err(error) = self.make_one(name).await {
                    failed.insert(name.clone(), error.chain());
                }
            }
            if failed.is_empty() || failed.len() == left.len() {
                if let Some(kept) = &mut self.kept {
                    kept.unusable = failed;
                }
                return;
            }
            left = failed.into_keys().collect();
        }
    }

    fn is_missing(&self, name: &Name) -> bool {
        let Some(kept) = &self.kept else { return false };
        let is_ours = match name.space {
            Space::Tables => self.is_own(&name.name),
            Space::Catalogs => self.clusters.contains_key(&name.name),
        };
        kept.statement(name).is_some() && !kept.made.contains_key(name) && !is_ours
    }

    async fn make_one(&mut self, name: &Name) -> Result<()> {
        let version = self.kept.as_ref().and_then(|kept| kept.read.get(name)).cloned();
        let Some(Version { number, statement: Some(statement), .. }) = version else { return Ok(()) };
        for parsed in sql::parse(&statement)? {
            match parsed.statement {
                Statement::CreateTable(create) => self.create_table(create.definition)?,
                Statement::CreateView { view, .. } => self.create_view(view).await?,
                Statement::CreateCatalog { name, options, .. } => self.add_cluster(&name, &options)?,
                Statement::DataFusion(statement) => {
                    self.datafusion(*statement, &parsed.text).await?;
                }
                _ => {}
            }
        }
        if let Some(kept) = &mut self.kept {
            kept.made.insert(name.clone(), number);
        }
        Ok(())
    }

    /// An error of a statement, and what may be its reason: something of the catalog that cannot be used here.
    pub(super) fn blame_catalog(&self, error: Error, text: &str) -> Error {
        // Catalogs of brokers are always made, whether or not they are meant.
        let is_meant = |name: &Name| name.space == Space::Tables || mentions(text, &name.name);
        match self.kept.iter().flat_map(|kept| &kept.unusable).find(|(name, _)| is_meant(name)) {
            Some((name, reason)) if error.kind() == Kind::Usage => {
                error.context(format_args!("{}, which is in the catalog, cannot be used here ({reason})", name.name))
            }
            _ => error,
        }
    }

    fn forget(&mut self, name: &Name) -> Result<()> {
        if let Some(kept) = &mut self.kept {
            kept.made.remove(name);
        }
        match name.space {
            Space::Tables => self.forget_table(&name.name),
            Space::Catalogs => self.remove_cluster(&name.name),
        }
    }

    /// Forgets a table or view.
    pub(super) fn forget_table(&mut self, name: &str) -> Result<()> {
        self.tables.remove(name);
        self.views.retain(|view| view.name != name);
        if let Some(text) = self.externals.remove(name) {
            self.statics.retain(|known| *known != text);
        }
        self.context.deregister_table(TableReference::bare(name))?;
        Ok(())
    }

    /// Whether what is created now goes into the catalog.
    pub(super) fn is_kept(&self, temporary: bool) -> bool {
        self.kept.is_some() && !temporary
    }

    /// Whether a table or view is the session's own.
    pub(super) fn is_own(&self, name: &str) -> bool {
        let is_made = self.kept.as_ref().is_some_and(|kept| kept.made.contains_key(&Name::table(name)));
        !is_made && self.context.table_exist(TableReference::bare(name)).unwrap_or(false)
    }

    /// The statement that the catalog has for a table or view, whether or not it can be used here.
    pub(super) fn kept_statement(&self, name: &str) -> Option<&str> {
        self.kept.as_ref()?.statement(&Name::table(name))
    }

    /// The tables and views of the catalog that were read.
    pub(super) fn kept_statements(&self) -> impl Iterator<Item = (&str, Statement)> {
        self.kept.iter().flat_map(|kept| &kept.read).filter_map(|(name, version)| {
            let parsed = sql::parse(version.statement.as_deref()?).ok()?.pop()?;
            (name.space == Space::Tables).then_some((name.name.as_str(), parsed.statement))
        })
    }

    /// The views among them.
    fn kept_views(&self) -> impl Iterator<Item = ViewDefinition> {
        self.kept_statements().filter_map(|(_, statement)| match statement {
            Statement::CreateView { view, .. } => Some(view),
            _ => None,
        })
    }

    /// A view that reads a topic of this catalog of brokers, if there is one.
    pub(super) fn reader_of(&self, catalog: &str) -> Option<String> {
        let is_topic = |name: &Vec<String>| name.iter().rev().nth(1).is_some_and(|schema| schema == catalog);
        let is_reader = |view: &ViewDefinition| names(&view.query).iter().any(is_topic);
        self.views.iter().cloned().chain(self.kept_views()).find(is_reader).map(|view| view.name)
    }

    pub(super) fn is_view(&self, name: &str) -> bool {
        let kept = self.kept.as_ref().and_then(|kept| kept.read.get(&Name::table(name)));
        self.views.iter().any(|view| view.name == name) || (kept.is_some_and(Version::is_view) && !self.is_own(name))
    }

    /// The definition of a table, whether or not it can be used here.
    pub(super) fn definition(&self, name: &str) -> Result<Option<TableDefinition>> {
        if let Some(table) = self.tables.get(name) {
            return Ok(Some(table.clone()));
        }
        let statement = self.kept_statement(name).filter(|_| !self.is_own(name));
        Ok(match statement.map(sql::parse).transpose()?.and_then(|mut parsed| parsed.pop()) {
            Some(sql::Parsed { statement: Statement::CreateTable(create), .. }) => Some(create.definition),
            _ => None,
        })
    }

    /// Refuses to change what the session has seen otherwise.
    fn check_seen(&self, name: &Name) -> Result<()> {
        match &self.kept {
            Some(kept) if kept.changed.contains(name) => Err(kept.read[name].unseen(name)),
            _ => Ok(()),
        }
    }

    /// Writes the next version of a name into the catalog; no statement drops it.
    async fn keep(&mut self, name: Name, statement: Option<String>) -> Result<()> {
        let Some(kept) = &mut self.kept else { return Ok(()) };
        if let Some(statement) = &statement {
            // What cannot be read back is of no use to anybody.
            sql::parse(statement)?;
        }
        let seen = kept.read.get(&name).map_or(0, |version| version.number);
        let is_made = statement.is_some();
        let version = match kept.store.write(&name, seen, statement).await {
            Ok(version) => version,
            Err(error) => {
                // Said again, it is said of what is there then.
                kept.read.remove(&name);
                return Err(error);
            }
        };
        kept.newest.insert(name.clone(), version.number);
        if is_made {
            kept.made.insert(name.clone(), version.number);
        } else {
            kept.made.remove(&name);
        }
        kept.read.insert(name, version);
        Ok(())
    }

    /// Writes a table that was just created into the catalog; if that fails there is no such table.
    pub(super) async fn keep_table(&mut self, name: &str) -> Result<()> {
        let Some(table) = self.tables.get(name) else { return Ok(()) };
        let statement = sql::show_create_table(table);
        let kept = self.keep(Name::table(name), Some(statement)).await;
        if kept.is_err() {
            self.forget_table(name)?;
        }
        kept
    }

    /// Refuses what the catalog would not keep of a catalog of brokers. Before that is created.
    pub(super) fn check_catalog(&self, name: &str, options: &BTreeMap<String, String>) -> Result<()> {
        match &self.kept {
            Some(_) => refuse_secrets(format_args!("catalog {name}"), options),
            None => Ok(()),
        }
    }

    /// Writes a catalog of brokers that was just created into the catalog; if that fails there is none.
    pub(super) async fn keep_catalog(&mut self, name: &str, options: &BTreeMap<String, String>) -> Result<()> {
        let kept = self.keep(Name::catalog(name), Some(sql::show_create_catalog(name, options))).await;
        if kept.is_err() {
            self.remove_cluster(name)?;
        }
        kept
    }

    /// Whether there is a catalog of brokers of this name, also one of the catalog that cannot be used here.
    pub(super) fn has_catalog(&self, name: &str) -> bool {
        let is_kept = |kept: &Kept| kept.statement(&Name::catalog(name)).is_some();
        self.clusters.contains_key(name) || self.kept.as_ref().is_some_and(is_kept)
    }

    /// Drops a catalog of brokers from the catalog, if it is there and not hidden by one of the session's own.
    pub(super) async fn drop_kept_catalog(&mut self, name: &str) -> Result<()> {
        let name = Name::catalog(name);
        let Some(kept) = &self.kept else { return Ok(()) };
        let is_own = self.clusters.contains_key(&name.name) && !kept.made.contains_key(&name);
        if is_own || kept.statement(&name).is_none() {
            return Ok(());
        }
        self.check_seen(&name)?;
        self.keep(name, None).await
    }

    /// Drops a table or view; whether there was one.
    ///
    /// Errors: a view reads it; it is another one than the session has seen.
    pub(super) async fn drop_relation(&mut self, name: &str) -> Result<bool> {
        if !self.is_taken(name).await? {
            return Ok(false);
        }
        let is_own = self.is_own(name);
        let kept = self.kept_views().filter(|_| !is_own);
        let is_reader = |view: &ViewDefinition| view.name != name && relations(&view.query).contains(name);
        let reader = self.views.iter().cloned().chain(kept).find(is_reader);
        if let Some(ViewDefinition { name: reader, .. }) = reader {
            return Err(Error::usage(format!("{name} is read by the view {reader}; DROP VIEW {reader} first")));
        }
        if !is_own {
            self.check_seen(&Name::table(name))?;
            self.keep(Name::table(name), None).await?;
        }
        self.forget_table(name)?;
        Ok(true)
    }

    /// Makes a view, in the place of one of its name, and plans the views anew that read it. If anything of that fails
    /// all is as it was.
    pub(super) async fn put_view(&mut self, view: ViewDefinition, is_kept: bool) -> Result<()> {
        let name = view.name.clone();
        self.check_scope(&name, is_kept).await?;
        let read = relations(&view.query);
        if is_kept && let Some(ours) = read.iter().find(|read| self.is_own(read)) {
            return Err(Error::usage(format!(
                "view {name} reads {ours}, which the catalog does not have; say CREATE TEMPORARY VIEW, or create {ours} \
                 in the catalog"
            )));
        }
        let before = self.views.iter().find(|known| known.name == name).cloned();
        if before.is_some() && self.reaches(&read, &name) {
            return Err(Error::usage(format!(
                "view {name} would read itself, which nobody else could plan; give it another name"
            )));
        }
        let put = async {
            let statement = sql::show_create_view(&view);
            self.create_view(view).await?;
            self.replan_views(&name).await?;
            if is_kept {
                self.keep(Name::table(&name), Some(statement)).await?;
            }
            Ok::<(), Error>(())
        };
        let put = put.await;
        if put.is_err() {
            match before {
                Some(before) => {
                    self.create_view(before).await?;
                    self.replan_views(&name).await?;
                }
                None => self.forget_table(&name)?,
            }
        }
        put
    }

    /// Whether `name` is among these, or read by a view among them.
    fn reaches(&self, read: &BTreeSet<String>, name: &str) -> bool {
        let reaches = |view: &ViewDefinition| read.contains(&view.name) && self.reaches(&relations(&view.query), name);
        read.contains(name) || self.views.iter().any(reaches)
    }

    /// Refuses that something of the session's own takes the place of something in the catalog, and the reverse; and to
    /// replace what the session has seen otherwise.
    async fn check_scope(&self, name: &str, is_kept: bool) -> Result<()> {
        if self.is_taken(name).await? && self.is_own(name) == is_kept {
            return Err(Error::usage(match is_kept {
                true => format!("{name} is of this session alone; say TEMPORARY to replace it"),
                false => format!("{name} is in the catalog; leave TEMPORARY out to replace it for all"),
            }));
        }
        self.check_seen(&Name::table(name))
    }

    /// Plans the views anew that read this table or view, and those that read them.
    async fn replan_views(&mut self, name: &str) -> Result<()> {
        let mut changed = BTreeSet::from([name.to_owned()]);
        for view in self.views.clone() {
            if view.name != name && !relations(&view.query).is_disjoint(&changed) {
                let name = view.name.clone();
                let planned = self.create_view(view).await;
                planned.map_err(|error| error.context(format_args!("view {name}, which reads it")))?;
                changed.insert(name);
            }
        }
        Ok(())
    }

    /// `CREATE EXTERNAL TABLE`, which the catalog keeps as it was written.
    pub(super) async fn create_external(&mut self, create: CreateExternalTable, text: &str) -> Result<Outcome> {
        let name = match create.name.0.as_slice() {
            [part] => part.as_ident().map(|name| name.value.clone()),
            _ => None,
        };
        let (is_kept, or_replace) = (self.is_kept(create.temporary), create.or_replace);
        let is_quiet = create.if_not_exists;
        let statement = DfStatement::CreateExternalTable(create);
        let Some(name) = name else { return self.datafusion(statement, text).await };
        if self.is_taken(&name).await? {
            if is_quiet {
                return Ok(Outcome::Done(format!("table {name} exists already")));
            }
            if !or_replace {
                return Err(Error::usage(format!("table {name} exists already; DROP TABLE {name} first")));
            }
            if self.is_view(&name) || self.definition(&name)?.is_some() {
                let kind = if self.is_view(&name) { "VIEW" } else { "TABLE" };
                return Err(Error::usage(format!(
                    "{name} exists already, and is no external table; DROP {kind} {name} first"
                )));
            }
            self.check_scope(&name, is_kept).await?;
        }
        let outcome = self.datafusion(statement, text).await?;
        if is_kept {
            let kept = self.keep(Name::table(&name), Some(text.to_owned())).await;
            if kept.is_err() {
                // What the catalog has is made again when it is next named.
                self.forget(&Name::table(&name))?;
            }
            kept?;
        }
        Ok(outcome)
    }

    /// `ALTER TABLE t SET ('k' = 'v', …)` and `RESET ('k', …)`: other options, checked as CREATE TABLE checks them.
    pub(super) async fn alter_table(&mut self, name: &str, changes: Vec<(String, Option<String>)>) -> Result<Outcome> {
        let Some(mut table) = self.definition(name)? else {
            return Err(match self.is_taken(name).await? {
                true => Error::usage(format!("{name} has no options: it was not made by CREATE TABLE … WITH (…)")),
                false => self.no_table(name),
            });
        };
        let is_own = self.is_own(name);
        self.check_seen(&Name::table(name))?;
        for (key, value) in changes {
            if value.is_none() && !table.options.contains_key(&key) {
                let hint = did_you_mean(&key, table.options.keys().map(String::as_str));
                return Err(Error::usage(format!("table {name} has no option '{key}' to reset{hint}")));
            }
            match value {
                Some(value) => drop(table.options.insert(key, value)),
                None => drop(table.options.remove(&key)),
            }
        }
        if !is_own {
            refuse_secrets(format_args!("table {name}"), &table.options)?;
        }
        let before = self.tables.get(name).cloned();
        let altered = async {
            let statement = sql::show_create_table(&table);
            self.create_table(table)?;
            self.replan_views(name).await?;
            if !is_own {
                self.keep(Name::table(name), Some(statement)).await?;
            }
            Ok::<(), Error>(())
        };
        let altered = altered.await;
        if altered.is_err() {
            match before {
                Some(before) => {
                    self.create_table(before)?;
                    self.replan_views(name).await?;
                }
                None => self.forget_table(name)?,
            }
        }
        altered.map(|()| Outcome::Done(format!("table {name} altered")))
    }
}

/// Many read the catalog: it keeps no secret that is written out.
pub(super) fn refuse_secrets(what: impl Display, options: &BTreeMap<String, String>) -> Result<()> {
    match options.iter().find(|(key, value)| printable(key, value) == REDACTED) {
        None => Ok(()),
        Some((key, _)) => Err(Error::usage(format!(
            "{what}: option '{key}' is a secret, which the catalog does not keep; say '{key}' = '${{env:NAME}}', and set \
             that variable wherever it is used"
        ))),
    }
}

/// The tables and views that a query names.
fn relations(query: &str) -> BTreeSet<String> {
    let bare = |name: Vec<String>| <[String; 1]>::try_from(name).ok();
    names(query).into_iter().filter_map(bare).flatten().collect()
}

/// The names in a query's FROM, each in its parts.
fn names(query: &str) -> BTreeSet<Vec<String>> {
    let mut names = BTreeSet::new();
    if let Ok(query) = sql::parse_query(query) {
        let _ = visit_relations(query.as_ref(), |relation| {
            let part = |part: &ObjectNamePart| part.as_ident().map(|name| name.value.clone());
            names.extend(relation.0.iter().map(part).collect::<Option<Vec<String>>>());
            ControlFlow::<()>::Continue(())
        });
    }
    names
}

/// Whether the name stands in the text as a word, quoted or not.
fn mentions(text: &str, name: &str) -> bool {
    let is_part = |next: Option<char>| next.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let is_word = |name: &str| {
        text.match_indices(name)
            .any(|(at, _)| !is_part(text[..at].chars().next_back()) && !is_part(text[at + name.len()..].chars().next()))
    };
    let is_quoted = |quote: &str| name.contains(quote) && is_word(&name.replace(quote, &quote.repeat(2)));
    is_word(name) || ["`", "\"", "'"].into_iter().any(is_quoted)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::util::pretty::pretty_format_batches;

    use super::*;
    use crate::clock::Clock;
    use crate::connector::Connectors;
    use crate::connector::memory::{Memory, MemoryConnector};
    use crate::storage::Stores;

    const ORDERS: &str = "CREATE TABLE orders (id BIGINT, twice AS id * 2) WITH ('connector' = 'datagen')";

    /// A session over these stores; with a catalog in one of them.
    fn session(stores: &Stores) -> Session {
        let mut session = Session::with("test", Connectors::standard(), stores.clone(), Clock::system()).unwrap();
        session.set(settings::CATALOG, "memory://m/catalog").unwrap();
        session
    }

    /// What statements say.
    async fn say(session: &mut Session, script: &str) -> Result<String> {
        let mut said = vec![];
        for outcome in session.execute_script(script).await? {
            said.push(match outcome {
                Outcome::Done(text) | Outcome::Text(text) => text,
                Outcome::Rows(rows) => {
                    let batches: Vec<_> = rows.stream.try_collect().await?;
                    pretty_format_batches(&batches)?.to_string()
                }
                Outcome::Changes(_) => "changes".into(),
                Outcome::Query(spec) => spec.name,
            });
        }
        Ok(said.join("\n"))
    }

    async fn check(session: &mut Session, script: &str, parts: &[&str]) {
        let said = say(session, script).await.unwrap_or_else(|error| panic!("{script}\n{error}"));
        for part in parts {
            assert!(said.contains(part), "{script}\n  says  {said}\n  not   {part}");
        }
    }

    async fn refused(session: &mut Session, script: &str, expected: &str) {
        let error = say(session, script).await.expect_err(script).to_string();
        assert!(error.contains(expected), "{script}\n  says  {error}\n  not   {expected}");
    }

    #[tokio::test]
    async fn what_one_session_creates_another_has() {
        let stores = Stores::new(Clock::system());
        let (mut one, mut other) = (session(&stores), session(&stores));
        check(&mut one, ORDERS, &["table orders created"]).await;
        check(
            &mut one,
            "CREATE VIEW big AS SELECT * FROM orders WHERE id > 10; CREATE VIEW v AS SELECT * FROM big",
            &[],
        )
        .await;
        check(&mut other, "DESCRIBE v", &["| id    | BIGINT |", "| twice | BIGINT |"]).await;
        check(&mut other, "SHOW TABLES LIKE 'ord%'", &["| orders | datagen   | catalog |"]).await;
        check(&mut other, "SHOW VIEWS", &["| big  | catalog |", "| v    | catalog |"]).await;
        check(&mut other, "SHOW CREATE TABLE orders", &["`twice` AS id * 2", "'connector' = 'datagen'"]).await;
        check(&mut other, "SHOW CREATE VIEW v", &["CREATE VIEW `v` AS\nSELECT * FROM big"]).await;
        refused(&mut other, ORDERS, "orders exists already, in the catalog; say IF NOT EXISTS").await;
        refused(&mut other, "DROP TABLE orders", "orders is read by the view big; DROP VIEW big first").await;
        check(&mut other, "DROP VIEW v; DROP VIEW big; DROP TABLE orders", &["table orders dropped"]).await;
        let again = "DROP VIEW IF EXISTS v; DROP TABLE IF EXISTS orders";
        check(&mut other, again, &["there is no view v", "there is no table orders"]).await;
        refused(&mut other, "SELECT * FROM orders", "line 1, column 15: there is no table orders").await;
        refused(&mut other, "SELECT * FROM k.orders", "line 1, column 15: there is no catalog k").await;
        refused(&mut other, "DESCRIBE k.orders", "there is no catalog k").await;
        check(&mut other, "DESCRIBE information_schema.tables", &["| table_name    | STRING | NO "]).await;
        refused(&mut one, "DESCRIBE orders", "there is no table orders").await;
        check(&mut one, ORDERS, &["table orders created"]).await;
        check(&mut other, "DESCRIBE orders", &["AS id * 2"]).await;
    }

    #[tokio::test]
    async fn only_what_is_mentioned_is_made() {
        let stores = Stores::new(Clock::system());
        let (mut one, mut other) = (session(&stores), session(&stores));
        check(&mut one, &format!("{ORDERS}; {}", ORDERS.replace("orders", "orders_2")), &[]).await;
        check(&mut one, "CREATE VIEW `my view` AS SELECT * FROM orders", &[]).await;
        check(&mut other, "EXPLAIN SELECT * FROM `my view`", &["orders"]).await;
        assert_eq!(other.tables().keys().collect::<Vec<_>>(), ["orders"]);
        assert_eq!(other.table_names(), BTreeSet::from(["orders", "orders_2", "my view"].map(str::to_owned)));
        let tables = "SELECT table_name, table_type FROM INFORMATION_SCHEMA.TABLES ORDER BY 1";
        check(&mut other, tables, &["| orders_2    | BASE TABLE |", "| my view     | VIEW       |"]).await;
        let views = "SELECT definition FROM information_schema.views WHERE table_name = 'my view'";
        check(&mut other, views, &["SELECT * FROM orders"]).await;
        let columns = "SELECT column_name FROM information_schema.columns WHERE table_name = 'orders_2'";
        check(&mut other, columns, &["| id          |", "| twice       |"]).await;
    }

    #[tokio::test]
    async fn a_change_is_refused_until_it_was_seen() {
        let stores = Stores::new(Clock::system());
        let (mut one, mut other) = (session(&stores), session(&stores));
        check(&mut one, &format!("{ORDERS}; CREATE VIEW v AS SELECT id FROM orders"), &[]).await;
        check(&mut other, "DESCRIBE orders; DESCRIBE v", &[]).await;
        check(&mut one, "ALTER TABLE orders SET ('rows-per-second' = '7')", &["table orders altered"]).await;
        let again = "ALTER TABLE orders SET ('number-of-rows' = '5')";
        refused(&mut other, again, "table orders was changed meanwhile (version 2, by process ").await;
        check(&mut other, again, &[]).await;
        let both = ["'number-of-rows' = '5'", "'rows-per-second' = '7'"];
        check(&mut one, "SHOW CREATE TABLE orders", &both).await;
        refused(&mut one, "ALTER TABLE orders RESET ('rows-per-secnd')", "did you mean 'rows-per-second'?").await;
        refused(&mut one, "ALTER TABLE orders SET ('rows-per-secnd' = '1')", "there is no option 'rows-per-secnd'")
            .await;
        check(&mut one, "ALTER TABLE orders RESET ('rows-per-second'); SHOW CREATE TABLE orders", &both[..1]).await;

        check(&mut one, "CREATE OR REPLACE VIEW v AS SELECT id AS i FROM orders", &[]).await;
        let again = "CREATE OR REPLACE VIEW v AS SELECT id AS j FROM orders";
        refused(&mut other, again, "look at it with SHOW CREATE VIEW v and say it again").await;
        check(&mut other, again, &[]).await;
        check(&mut one, "DESCRIBE v", &["| j "]).await;
    }

    #[tokio::test]
    async fn views_follow_what_they_read() {
        let mut session = session(&Stores::new(Clock::system()));
        check(&mut session, &format!("{ORDERS}; CREATE VIEW v AS SELECT id FROM orders"), &[]).await;
        check(&mut session, "CREATE VIEW w AS SELECT id + 1 AS id FROM v", &[]).await;
        refused(&mut session, "CREATE OR REPLACE VIEW v AS SELECT 'a' AS a", "view w, which reads it").await;
        check(&mut session, "DESCRIBE v; DESCRIBE w", &["| id   | BIGINT |"]).await;
        check(&mut session, "CREATE OR REPLACE VIEW v AS SELECT 1.5 AS id; DESCRIBE w", &["DOUBLE"]).await;
        refused(&mut session, "DROP VIEW v", "v is read by the view w").await;
        refused(&mut session, "DROP TABLE v", "v is a view; say DROP VIEW v").await;
        for replaced in ["v", "w"] {
            let cycle = format!("CREATE OR REPLACE VIEW v AS SELECT * FROM {replaced}");
            refused(&mut session, &cycle, "view v would read itself").await;
        }
        refused(&mut session, "CREATE OR REPLACE VIEW orders AS SELECT 1", "a table has this name").await;
    }

    #[tokio::test]
    async fn nothing_takes_the_place_of_what_was_not_read() {
        let stores = Stores::new(Clock::system());
        let (mut one, mut other) = (session(&stores), session(&stores));
        let quoted = |name: &str| ORDERS.replace("orders", name);
        check(&mut one, &quoted(r#""a""b""#), &[]).await;
        refused(&mut other, &quoted(r#""a""b""#), r#"a"b exists already, in the catalog"#).await;
        refused(&mut other, &quoted("``"), "expected the name of a table").await;
        check(&mut other, "SHOW TABLES", &[r#"| a"b "#]).await;
        // Whatever a text hides, a version that was not read is not followed by another.
        other.refresh(&Statement::ShowCatalogs, "SHOW CATALOGS").await.unwrap();
        if let Some(kept) = &mut other.kept {
            kept.read.clear();
        }
        let unseen = other.keep(Name::table(r#"a"b"#), Some(quoted("x"))).await.unwrap_err().to_string();
        assert!(unseen.contains("was changed meanwhile (version 1"), "{unseen}");
    }

    #[tokio::test]
    async fn an_external_table_takes_the_place_of_none_but_its_like() {
        let mut session = session(&Stores::new(Clock::system()));
        check(&mut session, &format!("{ORDERS}; CREATE VIEW v AS SELECT id FROM orders"), &[]).await;
        for (name, kind) in [("orders", "TABLE"), ("v", "VIEW")] {
            let external = format!("CREATE OR REPLACE EXTERNAL TABLE {name} (a INT) STORED AS CSV LOCATION '/tmp/'");
            let expected = format!("{name} exists already, and is no external table; DROP {kind} {name} first");
            refused(&mut session, &external, &expected).await;
        }
    }

    #[tokio::test]
    async fn catalogs_of_brokers_are_kept_also_where_they_cannot_be_used() {
        let stores = Stores::new(Clock::system());
        let of = |connectors| Session::with("test", connectors, stores.clone(), Clock::system()).unwrap();
        let (mut one, mut own, mut other) = (session(&stores), of(Connectors::standard()), of(Connectors::none()));
        other.set(settings::CATALOG, "memory://m/catalog").unwrap();
        let k = "CREATE CATALOG k WITH ('type' = 'kafka', 'properties.bootstrap.servers' = 'a:1')";
        check(&mut own, &k.replace("'a:1'", "'own:1'"), &[]).await;
        own.set(settings::CATALOG, "memory://m/catalog").unwrap();
        check(&mut one, k, &["catalog k created"]).await;
        check(&mut own, "DROP CATALOG k", &["catalog k dropped"]).await;
        check(&mut one, "SHOW CATALOGS", &["'a:1'"]).await;
        refused(&mut other, k, "catalog k exists already").await;
        let said = say(&mut other, "DESCRIBE nothing").await.unwrap_err().to_string();
        assert!(!said.contains("cannot be used here"), "{said}");
        refused(&mut other, "SHOW TOPICS FROM k", "k, which is in the catalog, cannot be used here").await;
        check(&mut other, "DROP CATALOG k", &["catalog k dropped"]).await;
        check(&mut one, k, &["catalog k created"]).await;
    }

    #[tokio::test]
    async fn what_is_temporary_is_of_one_session() {
        let stores = Stores::new(Clock::system());
        let (mut one, mut other) = (session(&stores), session(&stores));
        check(&mut one, &ORDERS.replace("CREATE", "CREATE TEMPORARY"), &[]).await;
        check(&mut one, "SHOW TABLES", &["| orders | datagen   | session |"]).await;
        refused(&mut other, "DESCRIBE orders", "there is no table orders").await;
        refused(&mut one, "CREATE VIEW v AS SELECT * FROM orders", "say CREATE TEMPORARY VIEW").await;
        check(&mut one, "CREATE TEMPORARY VIEW v AS SELECT * FROM orders", &[]).await;
        check(&mut other, &ORDERS.replace("id * 2", "id * 3"), &[]).await;
        check(&mut one, "SHOW CREATE TABLE orders", &["id * 2"]).await;
        check(&mut one, "DROP VIEW v; DROP TABLE orders", &[]).await;
        check(&mut one, "SHOW CREATE TABLE orders", &["id * 3"]).await;
    }

    #[tokio::test]
    async fn secrets_are_refused() {
        let stores = Stores::new(Clock::system());
        let mut session = session(&stores);
        let table = |value: &str| {
            format!("CREATE TABLE t (n BIGINT) WITH ('connector' = 'datagen', 'my.password' = '{value}')")
        };
        refused(&mut session, &table("hunter2"), "say 'my.password' = '${env:NAME}', and set that variable").await;
        // The reference is none, and the connector knows no such option.
        refused(&mut session, &table("${env:PASSWORD}"), "there is no option 'my.password'").await;
        check(&mut session, ORDERS, &[]).await;
        refused(&mut session, "ALTER TABLE orders SET ('my.password' = 'hunter2')", "is a secret").await;
    }

    #[tokio::test]
    async fn what_cannot_be_used_here_troubles_only_those_who_name_it() {
        let stores = Stores::new(Clock::system());
        let connectors = Connectors::standard().with(Arc::new(MemoryConnector::new(Memory::new())));
        let mut one = Session::with("test", connectors, stores.clone(), Clock::system()).unwrap();
        one.set(settings::CATALOG, "memory://m/catalog").unwrap();
        let mut other = session(&stores);
        let odd = "CREATE TABLE odd (n BIGINT) WITH ('connector' = 'memory', 'topic' = 't')";
        check(&mut one, &format!("{ORDERS}; {odd}"), &[]).await;
        check(&mut other, "DESCRIBE orders; SHOW TABLES; SHOW CREATE TABLE odd", &["odd    | memory", "'memory'"])
            .await;
        let reason = "odd, which is in the catalog, cannot be used here (table odd: there is no connector 'memory'";
        refused(&mut other, "SELECT * FROM odd", reason).await;
        check(&mut other, "DROP TABLE odd", &[]).await;
        refused(&mut one, "SELECT * FROM odd", "odd").await;
    }

    #[tokio::test]
    async fn another_catalog_is_another_world() {
        let stores = Stores::new(Clock::system());
        let mut session = session(&stores);
        check(&mut session, ORDERS, &[]).await;
        refused(&mut session, "SET 'catalog.location' = 'memory://m/other'; DESCRIBE orders", "no table orders").await;
        check(&mut session, "SET 'catalog.location' = 'memory://m/catalog'; DESCRIBE orders", &["twice"]).await;
        refused(&mut session, "RESET 'catalog.location'; DESCRIBE orders", "no table orders").await;
    }

    #[test]
    fn names_are_found_as_words() {
        let quoted = [("a`b``c`", "b`c"), (r#""a""b""#, r#"a"b"#), ("'it''s'", "it's")];
        for (text, name) in [("FROM t", "t"), ("`my-t`.x", "my-t"), ("t", "t"), ("é t,", "t")].into_iter().chain(quoted)
        {
            assert!(mentions(text, name), "{text}: {name}");
        }
        for (text, name) in [("FROM tt", "t"), ("t_1", "t"), ("ét", "t"), ("T", "t"), ("", "t")] {
            assert!(!mentions(text, name), "{text}: {name}");
        }
    }
}

//! Catalogs of topics, and what can be done with topics and groups: `CREATE CATALOG k`, `SHOW TOPICS FROM k`.
//!
//! The idea: a catalog is a [`Cluster`] under a name. Nothing of it is kept here: each statement asks the brokers, and
//! shows their answer as rows.
//!
//! Guarantee: CREATE CATALOG connects to nothing. RESET GROUP without EXECUTE changes nothing, and with it shows what
//! it changed. A secret is never shown.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::listing::{Row, listing};
use super::show::is_meant;
use super::{Outcome, Session};
use crate::connector::Partition;
use crate::connector::cluster::{Cluster, GroupMember, GroupOffset, OffsetChange, no_cluster, place};
use crate::error::{Error, Kind, Result};
use crate::sql::ResetGroup;
use crate::sql::options::{did_you_mean, display_options};

/// Names that no catalog can have: the session's own, and DataFusion's.
pub(super) const RESERVED: [&str; 4] = ["datafusion", "default", "information_schema", "public"];

impl Session {
    /// `CREATE CATALOG`.
    pub(super) async fn create_catalog(
        &mut self,
        name: String,
        options: BTreeMap<String, String>,
        if_not_exists: bool,
    ) -> Result<Outcome> {
        if self.has_catalog(&name) {
            return match if_not_exists {
                true => done(format!("catalog {name} exists already")),
                false => Err(Error::usage(format!("catalog {name} exists already; DROP CATALOG {name} first"))),
            };
        }
        if RESERVED.contains(&name.as_str()) {
            return Err(Error::usage(format!("catalog {name}: the name is taken; choose another")));
        }
        if self.is_taken(&name).await? {
            return Err(Error::usage(format!("catalog {name}: a table or view has this name; choose another")));
        }
        self.check_catalog(&name, &options)?;
        self.add_cluster(&name, &options)?;
        self.keep_catalog(&name, &options).await?;
        done(format!("catalog {name} created"))
    }

    /// Makes a catalog of what CREATE CATALOG says in its options.
    pub(super) fn add_cluster(&mut self, name: &str, options: &BTreeMap<String, String>) -> Result<()> {
        let mut options = options.clone();
        let Some(kind) = options.remove("type") else {
            return Err(Error::usage(format!("catalog {name} has no option 'type'; say WITH ('type' = 'kafka', …)")));
        };
        let connector = self.connectors.named(&kind).ok_or_else(|| no_cluster(name, &kind))?;
        let cluster = connector.cluster(name, &options, &self.environment())?;
        self.register_topics(name, Arc::clone(&cluster))?;
        self.clusters.insert(name.to_owned(), cluster);
        Ok(())
    }

    /// Forgets a catalog; the topics stay.
    pub(super) fn remove_cluster(&mut self, name: &str) -> Result<()> {
        self.clusters.remove(name);
        self.deregister_topics(name)
    }

    /// `DROP CATALOG`.
    pub(super) async fn drop_catalog(&mut self, name: &str, if_exists: bool) -> Result<Outcome> {
        if !self.has_catalog(name) {
            return if if_exists { done(format!("there is no catalog {name}")) } else { Err(self.no_catalog(name)) };
        }
        if let Some(reader) = self.reader_of(name) {
            return Err(Error::usage(format!(
                "catalog {name} has topics that the view {reader} reads; DROP VIEW {reader} first"
            )));
        }
        self.drop_kept_catalog(name).await?;
        self.remove_cluster(name)?;
        done(format!("catalog {name} dropped"))
    }

    /// `SHOW CATALOGS`: name, type and options, of the session's own as well.
    pub(super) fn show_catalogs(&self) -> Result<Outcome> {
        let row = |(name, cluster): (&String, &Arc<dyn Cluster>)| {
            let mut options = cluster.table_options("");
            let kind = options.remove("connector");
            options.remove("topic");
            vec![Some(name.clone()), kind, Some(display_options(&options).to_string())]
        };
        let own = vec![text("default"), text("session"), None];
        let rows = std::iter::once(own).chain(self.clusters.iter().map(row));
        shown(&["name", "type", "options"], rows)
    }

    /// `SHOW TOPICS FROM catalog`.
    pub(super) async fn show_topics(&self, catalog: &str, like: Option<&str>) -> Result<Outcome> {
        let topics = self.cluster(catalog)?.topics().await.map_err(within(catalog))?;
        let topics = topics.into_iter().filter(|topic| is_meant(topic, like));
        shown(&["topic"], topics.map(|topic| vec![Some(topic)]))
    }

    /// `DESCRIBE TOPIC`: a row for each partition, then one for each setting.
    pub(super) async fn describe_topic(&self, catalog: &str, topic: &str) -> Result<Outcome> {
        let described = self.cluster(catalog)?.topic(topic).await.map_err(within(catalog))?;
        let partitions: BTreeSet<&Partition> = described.partitions.keys().chain(described.details.keys()).collect();
        let partition = |partition: &Partition| -> Row {
            let bounds = described.partitions.get(partition);
            vec![
                text("partition"),
                Some(place(topic, partition)),
                bounds.map(|bounds| bounds.earliest.to_string()),
                bounds.map(|bounds| bounds.latest.to_string()),
                bounds.map(|bounds| bounds.latest.saturating_sub(bounds.earliest).to_string()),
                described.details.get(partition).cloned(),
            ]
        };
        let setting = |(name, value): (&String, &String)| -> Row {
            vec![text("setting"), Some(name.clone()), None, None, None, Some(value.clone())]
        };
        let rows = partitions.into_iter().map(partition).chain(described.settings.iter().map(setting));
        shown(&["kind", "name", "earliest", "latest", "messages", "details"], rows)
    }

    /// `CREATE TOPIC`.
    pub(super) async fn create_topic(
        &self,
        catalog: &str,
        topic: &str,
        options: &BTreeMap<String, String>,
        if_not_exists: bool,
    ) -> Result<Outcome> {
        let cluster = self.cluster(catalog)?;
        if if_not_exists && has(&**cluster, topic).await.map_err(within(catalog))? {
            return done(format!("topic {topic} exists already"));
        }
        let created = cluster.create_topic(topic, options).await;
        if if_not_exists && is_usage(&created) && has(&**cluster, topic).await.unwrap_or(false) {
            // Somebody else was first.
            return done(format!("topic {topic} exists already"));
        }
        created.map_err(within(catalog))?;
        self.forget_topic(catalog, topic)?;
        done(format!("topic {topic} created"))
    }

    /// `DROP TOPIC`.
    pub(super) async fn drop_topic(&self, catalog: &str, topic: &str, if_exists: bool) -> Result<Outcome> {
        let cluster = self.cluster(catalog)?;
        if if_exists && !has(&**cluster, topic).await.map_err(within(catalog))? {
            return done(format!("there is no topic {topic}"));
        }
        self.forget_topic(catalog, topic)?;
        let dropped = cluster.drop_topic(topic).await;
        if if_exists && is_usage(&dropped) && !has(&**cluster, topic).await.unwrap_or(true) {
            // Somebody else was first.
            return done(format!("there is no topic {topic}"));
        }
        dropped.map_err(within(catalog))?;
        self.forget_topic(catalog, topic)?;
        done(format!("topic {topic} dropped"))
    }

    /// `SHOW GROUPS FROM catalog`.
    pub(super) async fn show_groups(&self, catalog: &str, like: Option<&str>) -> Result<Outcome> {
        let groups = self.cluster(catalog)?.groups().await.map_err(within(catalog))?;
        let groups = groups.into_iter().filter(|group| is_meant(&group.name, like));
        let rows = groups.map(|group| vec![Some(group.name), Some(group.state), number(group.members)]);
        shown(&["group", "state", "members"], rows)
    }

    /// `DESCRIBE GROUP`: a row for its state, one for each partition where it stands, and one for each member.
    pub(super) async fn describe_group(&self, catalog: &str, group: &str) -> Result<Outcome> {
        let described = self.cluster(catalog)?.group(group).await.map_err(within(catalog))?;
        let state = vec![text("state"), None, None, None, None, None, Some(described.state)];
        let offset = |offset: GroupOffset| -> Row {
            let lag = offset.committed.zip(offset.end).map(|(committed, end)| end.saturating_sub(committed));
            vec![
                text("offset"),
                Some(offset.topic.clone()),
                Some(place(&offset.topic, &offset.partition)),
                offset.committed.and_then(number),
                offset.end.and_then(number),
                lag.and_then(number),
                None,
            ]
        };
        let member = |member: GroupMember| -> Row {
            let details = format!("{} at {}, {}", member.client, member.host, member.id);
            vec![text("member"), None, None, None, None, None, Some(details)]
        };
        let (offsets, members) = (described.offsets.into_iter().map(offset), described.members.into_iter().map(member));
        let rows = std::iter::once(state).chain(offsets).chain(members);
        shown(&["kind", "topic", "partition", "committed", "end", "lag", "details"], rows)
    }

    /// `RESET GROUP`: what it would do, or with EXECUTE did.
    pub(super) async fn reset_group(&self, reset: &ResetGroup) -> Result<Outcome> {
        let ResetGroup { catalog, group, topic, to, execute } = reset;
        let cluster = self.cluster(catalog)?;
        let changes = cluster.plan_reset(group, topic, to).await.map_err(within(catalog))?;
        if *execute {
            cluster.reset(group, &changes).await.map_err(within(catalog))?;
        }
        let row = |change: OffsetChange| -> Row {
            let from = change.from.map(|offset| offset.to_string());
            let place = place(&change.topic, &change.partition);
            vec![Some(change.topic), Some(place), from, number(change.to)]
        };
        shown(&["topic", "partition", "from", "to"], changes.into_iter().map(row))
    }

    /// The cluster behind this catalog.
    pub(crate) fn cluster(&self, catalog: &str) -> Result<&Arc<dyn Cluster>> {
        self.clusters.get(catalog).ok_or_else(|| self.no_catalog(catalog))
    }

    pub(super) fn no_catalog(&self, name: &str) -> Error {
        let hint = match self.clusters.is_empty() {
            true => format!("; say CREATE CATALOG {name} WITH ('type' = 'kafka', …) first"),
            false => did_you_mean(name, self.clusters.keys().map(String::as_str)),
        };
        Error::usage(format!("there is no catalog {name}{hint}"))
    }
}

async fn has(cluster: &dyn Cluster, topic: &str) -> Result<bool> {
    Ok(cluster.topics().await?.iter().any(|known| known == topic))
}

/// Whether the brokers said that what was asked for cannot be: such as a topic that is there already, or is not there.
fn is_usage(answer: &Result<()>) -> bool {
    answer.as_ref().is_err_and(|error| error.kind() == Kind::Usage)
}

/// Puts the catalog's name before an error.
fn within(catalog: &str) -> impl Fn(Error) -> Error {
    move |error: Error| error.context(format_args!("catalog {catalog}"))
}

fn text(text: &str) -> Option<String> {
    Some(text.to_string())
}

fn number(number: impl ToString) -> Option<String> {
    Some(number.to_string())
}

fn done(text: String) -> Result<Outcome> {
    Ok(Outcome::Done(text))
}

fn shown(columns: &[&str], rows: impl Iterator<Item = Row>) -> Result<Outcome> {
    Ok(Outcome::Rows(listing(columns, rows.collect())?))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use arrow::util::pretty::pretty_format_batches;
    use async_trait::async_trait;
    use futures::TryStreamExt;

    use super::*;
    use crate::catalog::ViewDefinition;
    use crate::connector::cluster::{GroupDescription, GroupSummary, ResetTo, TopicDescription};

    fn kafka(more: &[(&str, &str)]) -> BTreeMap<String, String> {
        let all = [("type", "kafka"), ("properties.bootstrap.servers", "a:1")];
        all.iter().chain(more).map(|(key, value)| (key.to_string(), value.to_string())).collect()
    }

    async fn refusal(session: &mut Session, name: &str, options: BTreeMap<String, String>) -> String {
        match session.create_catalog(name.into(), options, false).await {
            Ok(_) => panic!("{name} was created"),
            Err(error) => error.to_string(),
        }
    }

    #[tokio::test]
    async fn a_catalog_has_a_name_of_its_own_and_a_known_type() {
        let mut session = Session::new("test").unwrap();
        assert!(session.no_catalog("k").to_string().contains("say CREATE CATALOG k WITH"));
        session.execute_script("CREATE VIEW seen AS SELECT 1 AS n").await.unwrap();
        session.create_catalog("k".into(), kafka(&[]), false).await.unwrap();
        session.create_catalog("k".into(), kafka(&[]), true).await.unwrap();
        for (name, options, expected) in [
            ("k", kafka(&[]), "catalog k exists already; DROP CATALOG k first"),
            ("default", kafka(&[]), "catalog default: the name is taken"),
            ("seen", kafka(&[]), "catalog seen: a table or view has this name"),
            ("q", BTreeMap::new(), "catalog q has no option 'type'"),
            ("q", kafka(&[("type", "kafak")]), "'type' = 'kafak' is no cluster of topics; did you mean 'kafka'?"),
            ("q", kafka(&[("type", "print")]), "'type' = 'print' is no cluster of topics; known are kafka, rocketmq"),
            ("q", kafka(&[("topic", "t")]), "catalog q: there is no option 'topic'"),
        ] {
            let error = refusal(&mut session, name, options).await;
            assert!(error.contains(expected), "{error}");
        }
        assert!(session.no_catalog("kk").to_string().contains("did you mean 'k'?"));
        session.drop_catalog("k", false).await.unwrap();
        session.drop_catalog("k", true).await.unwrap();
        assert!(session.drop_catalog("k", false).await.is_err());
    }

    #[tokio::test]
    async fn a_catalog_that_a_view_reads_is_not_dropped() {
        let mut session = Session::new("test").unwrap();
        session.create_catalog("k".into(), kafka(&[]), false).await.unwrap();
        for (name, query, is_reader) in [
            ("own", "SELECT * FROM `k.orders`", false),
            ("inner", "SELECT * FROM other.orders JOIN (SELECT * FROM k.orders) AS o ON true", true),
        ] {
            session.views.push(ViewDefinition { name: name.into(), query: query.into() });
            assert_eq!(session.reader_of("k"), is_reader.then(|| name.to_string()));
        }
        let error = session.drop_catalog("k", true).await.err().unwrap().to_string();
        assert_eq!(error, "catalog k has topics that the view inner reads; DROP VIEW inner first");
        session.views.clear();
        session.drop_catalog("k", true).await.unwrap();
    }

    /// Where somebody else creates and drops the same topic, a moment earlier.
    #[derive(Debug, Default)]
    struct Raced {
        has_topic: AtomicBool,
    }

    #[async_trait]
    impl Cluster for Raced {
        async fn topics(&self) -> Result<Vec<String>> {
            let topics = self.has_topic.load(Ordering::Relaxed).then(|| "t".to_string());
            Ok(topics.into_iter().collect())
        }

        async fn create_topic(&self, _: &str, _: &BTreeMap<String, String>) -> Result<()> {
            self.has_topic.store(true, Ordering::Relaxed);
            Err(Error::usage("topic t exists already"))
        }

        async fn drop_topic(&self, _: &str) -> Result<()> {
            self.has_topic.store(false, Ordering::Relaxed);
            Err(Error::usage("there is no topic 't'"))
        }

        async fn topic(&self, _: &str) -> Result<TopicDescription> {
            Err(Error::internal("not asked"))
        }

        async fn groups(&self) -> Result<Vec<GroupSummary>> {
            Err(Error::internal("not asked"))
        }

        async fn group(&self, _: &str) -> Result<GroupDescription> {
            Err(Error::internal("not asked"))
        }

        async fn plan_reset(&self, _: &str, topic: &str, _: &ResetTo) -> Result<Vec<OffsetChange>> {
            let partition = Partition::new(topic, 0);
            Ok(vec![OffsetChange { topic: topic.into(), partition, from: None, to: 7 }])
        }

        async fn reset(&self, _: &str, _: &[OffsetChange]) -> Result<()> {
            Ok(())
        }

        fn table_options(&self, _: &str) -> BTreeMap<String, String> {
            BTreeMap::new()
        }
    }

    fn raced() -> Session {
        let mut session = Session::new("test").unwrap();
        session.clusters.insert("k".into(), Arc::new(Raced::default()));
        session
    }

    /// What a statement says that it did, or what is wrong.
    async fn said(session: &mut Session, sql: &str) -> String {
        match session.execute_script(sql).await {
            Ok(mut outcomes) => match outcomes.pop() {
                Some(Outcome::Done(text)) => text,
                _ => panic!("{sql} does nothing"),
            },
            Err(error) => error.to_string(),
        }
    }

    #[tokio::test]
    async fn who_comes_second_finds_it_done() {
        let mut session = raced();
        assert_eq!(said(&mut session, "CREATE TOPIC IF NOT EXISTS k.t").await, "topic t exists already");
        assert_eq!(said(&mut session, "DROP TOPIC IF EXISTS k.t").await, "there is no topic t");
        let error = said(&mut session, "CREATE TOPIC k.t").await;
        assert!(error.contains("catalog k: topic t exists already"), "{error}");
        let error = said(&mut session, "DROP TOPIC k.t").await;
        assert!(error.contains("catalog k: there is no topic 't'"), "{error}");
    }

    #[tokio::test]
    async fn a_reset_shows_what_it_does_and_what_it_did() {
        let mut session = raced();
        for end in ["", " EXECUTE"] {
            let outcome = session.execute_script(&format!("RESET GROUP k.g FOR TOPIC t TO LATEST{end}")).await;
            let Some(Outcome::Rows(rows)) = outcome.unwrap().pop() else { panic!("no rows") };
            let batches: Vec<_> = rows.stream.try_collect().await.unwrap();
            let shown = pretty_format_batches(&batches).unwrap().to_string();
            assert!(shown.contains("| t     | 0         |      | 7  |"), "{shown}");
        }
    }
}

//! Definitions that outlive a session: the versions of each name, at a path or object-store prefix that many share.
//!
//! The idea: what a name stands for is the text of a statement, and a change of it is a new record under the next number.
//! A writer says which version it has seen, and creates the one after it; of two editors one wins, and the other is told
//! who was faster. A drop is a version as well, so a name that comes back goes on counting. Only this module spells the
//! paths:
//!
//! ```text
//! <location>/tables/<name>/<20 digits>.json      tables, views and external tables: they share their names
//! <location>/catalogs/<name>/<20 digits>.json    catalogs of brokers
//! ```
//!
//! Guarantee: no version is ever overwritten, also when the store's answer got lost; a store that would overwrite is
//! refused at the first write.
//!
//! Not promised: one moment for several names, as each has versions of its own; that a statement can be executed where
//! it is read. Versions are kept for good.

use std::collections::BTreeMap;
use std::fmt;

use futures::{TryStreamExt, try_join};
use object_store::ObjectStoreExt;
use object_store::path::Path;
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};

use crate::checkpoint::{Created, create, decode_up_to, encode, number_of, probe, record_path};
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::storage::Location;

/// The version of records that this binary writes.
pub const VERSION: u32 = 1;

/// What shares its names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Space {
    /// Tables, views and external tables.
    Tables,
    /// Catalogs of brokers.
    Catalogs,
}

impl Space {
    fn folder(self) -> &'static str {
        match self {
            Space::Tables => "tables",
            Space::Catalogs => "catalogs",
        }
    }
}

/// A name and the space it is in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// The space.
    pub space: Space,
    /// The name, in the case it was written in.
    pub name: String,
}

impl Name {
    /// Of a table or view.
    pub fn table(name: &str) -> Self {
        Self { space: Space::Tables, name: name.into() }
    }

    /// Of a catalog of brokers.
    pub fn catalog(name: &str) -> Self {
        Self { space: Space::Catalogs, name: name.into() }
    }
}

/// What a name stands for, from one change to the next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// See [`VERSION`].
    pub version: u32,
    /// Its number, from 1.
    pub number: u64,
    /// The statement, without `;` and without a secret; none if the name was dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statement: Option<String>,
    /// The machine that wrote it.
    pub host: String,
    /// The process.
    pub pid: u32,
    /// When, ms since 1970.
    pub written_ms: i64,
}

impl Version {
    /// Whether it is a view.
    pub fn is_view(&self) -> bool {
        self.statement.as_deref().is_some_and(|text| text.starts_with("CREATE VIEW"))
    }

    /// The error that this version of `name`, by somebody else, was not seen by whoever wants to change it.
    pub fn unseen(&self, name: &Name) -> Error {
        let Self { number, host, pid, .. } = self;
        let Name { space, name } = name;
        let what = match space {
            Space::Catalogs => "catalog",
            Space::Tables if self.is_view() => "view",
            Space::Tables => "table",
        };
        Error::usage(match (&self.statement, space) {
            (None, _) => format!(
                "{name} was dropped meanwhile (version {number}, by process {pid} on {host}); say it again if that is still \
                 meant"
            ),
            (Some(_), Space::Catalogs) => format!(
                "catalog {name} was changed meanwhile (version {number}, by process {pid} on {host}); look at it with SHOW \
                 CATALOGS and say it again"
            ),
            (Some(_), Space::Tables) => format!(
                "{what} {name} was changed meanwhile (version {number}, by process {pid} on {host}); look at it with SHOW \
                 CREATE {} {name} and say it again",
                what.to_uppercase()
            ),
        })
    }
}

/// A catalog that is kept; clones share it.
#[derive(Clone)]
pub struct Store {
    location: Location,
    clock: Clock,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({})", self.location)
    }
}

impl Store {
    /// The catalog at this place, which need not be there yet.
    pub fn new(location: Location, clock: Clock) -> Self {
        Self { location, clock }
    }

    /// The newest version of each name, dropped ones included: a listing of each space, and nothing is read.
    pub async fn list(&self) -> Result<BTreeMap<Name, u64>> {
        let of = |space| async move {
            let found: Vec<_> = self.location.store.list(Some(&self.root(space))).try_collect().await?;
            Ok::<_, object_store::Error>(found)
        };
        let (tables, catalogs) = try_join!(of(Space::Tables), of(Space::Catalogs)).map_err(|e| self.blame(e))?;
        let mut newest = BTreeMap::new();
        for (space, found) in [(Space::Tables, tables), (Space::Catalogs, catalogs)] {
            for (name, number) in found.iter().filter_map(|meta| self.version_of(space, &meta.location)) {
                let known: &mut u64 = newest.entry(name).or_default();
                *known = number.max(*known);
            }
        }
        Ok(newest)
    }

    /// A version that was listed.
    pub async fn read(&self, name: &Name, number: u64) -> Result<Version> {
        let path = self.path(name, number);
        let got = async { self.location.store.get(&path).await?.bytes().await };
        decode_up_to(VERSION, path.as_ref(), &got.await.map_err(|e| self.blame(e))?)
    }

    /// Creates the version after `seen`, which is 0 for a name that never was; no statement drops the name.
    ///
    /// Errors: somebody else has created that version.
    pub async fn write(&self, name: &Name, seen: u64, statement: Option<String>) -> Result<Version> {
        let version = Version {
            version: VERSION,
            number: seen + 1,
            statement,
            host: gethostname::gethostname().to_string_lossy().into_owned(),
            pid: std::process::id(),
            written_ms: self.clock.now_ms(),
        };
        let (path, body) = (self.path(name, version.number), encode(&version)?);
        match create(&self.location.store, &path, body.clone()).await? {
            Created::Won => {
                let intruder = encode(&Version { pid: 0, ..version.clone() })?;
                probe(&self.location.store, &path, body, intruder, "editors could overwrite each other").await?;
                Ok(version)
            }
            Created::Lost(found) => {
                let theirs: Version = decode_up_to(VERSION, path.as_ref(), &found)?;
                Err(theirs.unseen(name))
            }
        }
    }

    fn root(&self, space: Space) -> Path {
        self.location.prefix.clone().join(space.folder())
    }

    fn path(&self, name: &Name, number: u64) -> Path {
        record_path(&self.root(name.space), &name.name, number)
    }

    /// The name and number of a record; anything else in the folder is not ours.
    fn version_of(&self, space: Space, path: &Path) -> Option<(Name, u64)> {
        let parts: Vec<_> = path.prefix_match(&self.root(space))?.collect();
        let [name, _] = parts.as_slice() else { return None };
        let name = percent_decode_str(name.as_ref()).decode_utf8().ok()?.into_owned();
        Some((Name { space, name }, number_of(path)?))
    }

    fn blame(&self, error: object_store::Error) -> Error {
        Error::from(error).context(format_args!("catalog {}", self.location))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::error::Kind;
    use crate::storage::Stores;
    use crate::storage::faults::{Gate, Moment};

    fn editors() -> (Store, Store) {
        let stores = Stores::new(Clock::seeded(1, 1_767_225_600_000));
        let editor =
            |start| Store::new(stores.open("memory://m/c", &BTreeMap::new()).unwrap(), Clock::seeded(start, 0));
        (editor(1), editor(2))
    }

    fn create_table(text: &str) -> Option<String> {
        Some(format!("CREATE TABLE t (n BIGINT) WITH ('connector' = '{text}')"))
    }

    #[tokio::test]
    async fn of_two_editors_one_wins_and_the_other_is_told() {
        let (one, other) = editors();
        let name = Name::table("t");
        let (a, b) = tokio::join!(one.write(&name, 0, create_table("a")), other.write(&name, 0, create_table("b")));
        let (won, lost) = match (a, b) {
            (Ok(won), Err(lost)) | (Err(lost), Ok(won)) => (won, lost),
            other => panic!("{other:?}"),
        };
        assert_eq!(lost.kind(), Kind::Usage);
        let said = lost.to_string();
        assert!(said.starts_with("table t was changed meanwhile (version 1, by process "), "{said}");
        assert!(said.ends_with("look at it with SHOW CREATE TABLE t and say it again"), "{said}");
        assert_eq!(one.list().await.unwrap(), BTreeMap::from([(name.clone(), 1)]));
        assert_eq!(other.read(&name, 1).await.unwrap(), won);
    }

    #[tokio::test]
    async fn a_drop_is_a_version_and_a_name_goes_on_counting() {
        let (one, other) = editors();
        let name = Name::table("t");
        for (seen, statement) in [(0, create_table("a")), (1, None), (2, create_table("b"))] {
            one.write(&name, seen, statement).await.unwrap();
        }
        let late = other.write(&name, 1, create_table("c")).await.unwrap_err().to_string();
        assert!(late.starts_with("t was dropped meanwhile (version 2, "), "{late}");
        assert_eq!(other.list().await.unwrap()[&name], 3);
        assert_eq!(other.read(&name, 3).await.unwrap().statement, create_table("b"));
    }

    #[tokio::test]
    async fn any_name_is_kept_and_found_again() {
        let (one, other) = editors();
        let names = ["t", "a/b", "..", "ö %2F", "my.topic-1", "`"];
        for name in names {
            one.write(&Name::table(name), 0, create_table("a")).await.unwrap();
            one.write(&Name::catalog(name), 0, None).await.unwrap();
        }
        let found = other.list().await.unwrap();
        let both = |name: &&str| [Name::table(name), Name::catalog(name)];
        let expected: BTreeMap<Name, u64> = names.iter().flat_map(both).map(|name| (name, 1)).collect();
        assert_eq!(found, expected);
    }

    #[tokio::test]
    async fn what_was_written_counts_though_its_writer_is_gone() {
        let stores = Stores::new(Clock::system());
        let gate = Gate::new(1, Moment::After);
        let location = |stores: &Stores| stores.open("memory://m/c", &BTreeMap::new()).unwrap();
        let name = Name::table("t");
        // It writes, and never hears of it.
        let gone = Store::new(location(&stores.wrapped(Arc::new(Arc::clone(&gate)))), Clock::system());
        tokio::select! {
            written = gone.write(&name, 0, create_table("a")) => panic!("{written:?}"),
            () = gate.tripped() => {}
        }
        let other = Store::new(location(&stores), Clock::system());
        assert_eq!(other.list().await.unwrap(), BTreeMap::from([(name.clone(), 1)]));
        let late = other.write(&name, 0, create_table("b")).await.unwrap_err().to_string();
        assert!(late.starts_with("table t was changed meanwhile (version 1, "), "{late}");
    }
}

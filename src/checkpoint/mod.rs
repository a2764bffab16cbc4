//! The checkpoint of a query: numbered, create-only records in object storage.
//!
//! The idea: an *intent* says what an epoch reads before it runs and never changes; a *commit* makes what it wrote count.
//! An intent without a commit is run again. Only this module spells the paths:
//!
//! ```text
//! <checkpoint>/<query>/<generation>/
//!   query.json                      a random id and the start offsets, resolved once; a rewind writes it last
//!   definitions/<20 digits>.json    SQL, tables and settings as they took effect
//!   runs/<20 digits>.json           who runs
//!   intents/<20 digits>.json
//!   commits/<20 digits>.json
//!   state/<operator>/…              files of state, named by commits
//!   notes/<folder>/…                where a source numbers things itself, and what a sink must clean up after a crash
//! ```
//!
//! Guarantee: of two runs that create the same record exactly one wins, also when its answer got lost; and of two runs
//! the newest goes on. The six rules this follows are in ARCHITECTURE.md.
//!
//! Not promised: that a store which breaks create-only is safe. [`Log::open`] looks for that and refuses it.

pub mod inspect;

mod journal;
mod log;
mod records;
mod retention;
mod rewind;
mod state_store;
mod written;

pub use inspect::Generation;
pub use journal::{Journal, SOURCES};
pub(crate) use log::{Created, create, number_of, probe, record_path};
pub use log::{Log, Tail};
pub use records::{
    Commit, Cut, DefinitionRecord, Intent, PartitionCommit, QueryRecord, Rewound, RunRecord, SourceCommit, VERSION,
};
pub(crate) use records::{decode_up_to, encode};
pub use retention::{Recorded, expired};
pub use rewind::Rewind;
pub use state_store::StateStore;

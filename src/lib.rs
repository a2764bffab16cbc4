//! Millstream: streaming SQL over RocketMQ and Kafka topics, an epoch at a time.
//!
//! # The one idea
//!
//! *An epoch's result is a function of its intent.* An epoch is one micro-batch of one query. Before it runs, its intent
//! is written to object storage and never changes: the offsets of every partition, the batch time, the cut into tasks.
//! What running it produces goes under names nobody reads yet; one small commit record makes it count. So an intent
//! without a commit is run again and gives the same, publishing is idempotent, and of two runs the newest goes on.
//!
//! # The line
//!
//! ```text
//! SQL text ─parse─▶ statements ─▶ catalog ─▶ LogicalPlan ─▶ StreamPlan ─▶ each epoch:
//!       plan offsets ▶ intend ▶ bind ▶ run ▶ publish ▶ commit
//! ```
//!
//! [`sql`] parses, [`session`] executes statements, [`plan`] makes a logical plan into bounded plans of epochs,
//! [`query`] runs them, [`checkpoint`] keeps the log, [`connector`] and [`mod@format`] are the two ends.
//!
//! # Invariants
//!
//! - No row is readable downstream before its epoch is published; none is counted before its epoch is committed.
//! - A bound plan's leaves are descriptions: what a process has open is found through one seam ([`plan::opener`]).
//! - [`plan`] and recovery do no I/O. [`sql`] knows no connector by name. Connectors know no more of epochs than the
//!   number.
//! - Cutting the input into other epochs, or crashing between any two writes, does not change the answer.
//! - Only [`clock`] reads the wall clock or draws random numbers.

#![recursion_limit = "512"]
#![warn(missing_docs)]

pub mod catalog;
pub mod checkpoint;
pub mod cli;
pub mod clock;
pub mod connector;
pub mod error;
pub mod format;
pub mod plan;
pub mod query;
pub mod session;
pub mod sql;
pub mod state;
pub mod storage;

#![recursion_limit = "512"]
#![warn(missing_docs)]
//! x
pub mod catalog;
pub mod checkpoint;
pub mod clock;
pub mod connector;
pub mod error;
pub mod format;
pub mod plan;
pub mod query;
pub mod sql;
pub mod storage;

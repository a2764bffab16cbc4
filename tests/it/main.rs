//! The tests that need more than one module: crashes in process, and real brokers, real storage, real kills.
//!
//! Those that talk to servers find them through `MILLSTREAM_TEST_…` variables, which `make test` sets; without them they
//! fail and say so.

#![recursion_limit = "512"]

mod access;
mod access_rocketmq;
mod aggregates;
mod ask;
mod brokers;
mod cases;
mod catalog;
mod cli;
mod clusters;
mod clusters_rocketmq;
mod crash;
mod examples;
mod explain;
mod failover;
mod family;
mod harness;
mod infer;
mod jobs;
mod kafka;
mod local_durability;
mod pace;
mod query;
mod records;
mod rocketmq;
mod slt;
mod sources;
mod streams;
mod terminal;
mod tour;

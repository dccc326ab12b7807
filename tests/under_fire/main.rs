//! The real binary while its surroundings fail: logs that can't be written, descriptors that run
//! out, replicas that fall silent, nodes that vanish, restarts in turn, memory that is short.
//!
//! There is one module for each fault. Each starts the gateway as a user would, breaks one thing,
//! and checks that clients lose nothing that could be kept, and that the right part gets the blame.

#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used, reason = "a test's own")]

mod clients;
mod descriptors;
mod engine_stopped;
mod half_open;
mod hung_replica;
mod log;
mod memory;
mod node_gone;
mod replica_mute;
mod restarts;

#[path = "../support/mod.rs"]
mod support;

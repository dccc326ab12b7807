//! The state of all pools as people see it: the console and the terminal read it on the admin port.
//!
//! The loop reports each step to the [`Board`]. From that come `/overview`, a feed with a summary of each
//! pool, and `/history`, the last hour of a pool. Details that only the loop has are read on demand
//! (`inquiry.rs`). All of it is bounded, and what no client reads costs little. May use everything but
//! the loop.

mod arrivals;
pub(crate) mod board;
pub(crate) mod history;
pub(crate) mod inquiry;
pub mod overview;
pub(crate) mod routes;

pub(crate) use board::Board;

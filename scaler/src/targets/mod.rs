//! Scale targets: what starts and stops replicas.

mod backoff;
mod ports;
pub mod processes;

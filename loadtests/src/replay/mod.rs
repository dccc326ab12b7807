//! `forebay replay`: a load played through the scaler's own decisions in simulated time.
//!
//! The same merge and decide as in the running scaler, against a model of the gateway ([`world`])
//! and of replicas ([`replica`]) that shares its timing with the simulated vLLM. Others can be
//! played beside it ([`contestants`]): each with its own delays and blind spots, all with the same
//! objective, replicas, bounds and cooldown.

mod args;
mod contestants;
mod measure;
pub(crate) mod replica;
mod report;
mod scenario;
mod trace;
mod world;

pub use args::{Args, run};
pub use measure::{Quantiles, Report, Series};

#[cfg(test)]
mod tests;

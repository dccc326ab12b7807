//! `forebay replay`: a load played through the scaler's own decisions in simulated time.
//!
//! Merge and decide are those of the running scaler; the gateway and the replicas are models. Other
//! autoscalers can be played beside Forebay, with the same objective, replicas, bounds and cooldown.
//!
//! - `trace`: the load, from a CSV file or generated
//! - `scenario`: a pool of the configuration as the model's parameters
//! - `replica`: one replica; it shares its timing model with the simulated vLLM
//! - `world`: simulated time, the gateway, the replicas
//! - `contestants`: Forebay and the other autoscalers, each with its own delays and blind spots
//! - `picks`: the pick policies side by side, on a fixed fleet
//! - `orders`: the orders of held requests side by side, in an overload
//! - `limits`: fixed limits on a replica's requests beside the learned one
//! - `progress`: a bar, or lines for a program that shows it
//! - `measure`, `report`: the figures of a run; as table, JSON and HTML
//!
//! No clock and no socket: the same configuration, trace and seed give the same result.

mod args;
mod contestants;
mod limits;
mod measure;
mod orders;
mod picks;
mod progress;
pub(crate) mod replica;
mod report;
mod scenario;
pub(crate) mod trace;
mod world;

pub use args::{ReplayArgs, run};
pub use measure::{FleetFigures, Quantiles, Report, Series, ServiceFigures};

#[cfg(test)]
mod tests;

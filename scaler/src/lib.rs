//! Forebay's scaler: the pure decision core, and its edges.
//!
//! [`core`] decides; `run` reads every gateway's `/signals`, tells the target, and publishes
//! `/replicas`; [`targets`] start and stop replicas.

mod clock;
mod config_map;
pub mod core;
mod decisions;
mod drains;
#[cfg(test)]
mod fake_api;
mod feeds;
pub mod keda;
mod leader;
mod metric;
mod orders;
mod pool;
mod readiness;
mod relay;
mod run;
mod sources;
mod store;
pub mod supervisor;
pub mod targets;

pub use drains::ByItself;
pub use feeds::Gateways;
pub use metric::{BUCKETS, describe};
pub use readiness::Readiness;
pub use run::{Handover, Known, Scaler, StartError};

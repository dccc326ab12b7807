//! Forebay's scaler: the pure decision core, and its edges.
//!
//! [`core`] decides; `run` reads every gateway's `/signals`, tells the target, and publishes
//! `/replicas`; [`targets`] start and stop replicas.

mod clock;
pub mod core;
mod drains;
mod feeds;
pub mod keda;
mod leader;
mod metric;
mod pool;
mod relay;
mod run;
mod sources;
pub mod supervisor;
pub mod targets;

pub use feeds::Gateways;
pub use metric::{BUCKETS, describe};
pub use run::{Scaler, StartError};

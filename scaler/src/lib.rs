//! Forebay's scaler: the pure decision core, and its edges.
//!
//! [`decide`] is the pure core. `run` reads every gateway's `/signals`, drives the scale target, and
//! publishes `/replicas`. [`act::targets`] start and stop replicas.

#[doc(hidden)]
pub mod act;
mod clock;
pub mod decide;
#[cfg(test)]
mod fake_api;
pub mod keda;
mod lead;
mod observe;
mod run;
pub mod supervisor;
mod view;

pub use act::drains::FromEndpoint;
pub use act::overrides::unknown_pool;
pub use decide::Override;
pub use lead::readiness::Readiness;
pub use observe::feeds::Gateways;
pub use run::metric::{BUCKETS, describe};
pub use run::{Handover, Rehearsable, Scaler, ScalerState, StartError};
pub use view::overview;

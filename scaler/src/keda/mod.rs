//! KEDA's external scaler: what its operator asks, answered from the leader's last decisions.
//!
//! [`metadata`] understands a trigger, [`answers`] computes what it is told, `service` speaks gRPC,
//! `server` listens. Answers follow from [`forebay_signals::PoolReplicas`] alone, which the leader
//! decides and every other scaler replica relays: whichever of them KEDA asks, it hears the same.

mod answers;
mod figures;
mod metadata;
mod server;
mod service;

pub(crate) use figures::Figures;
pub use server::{KedaServer, ServeError};

/// The protocol, generated from `proto/externalscaler.proto`.
#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated")]
pub mod proto {
    tonic::include_proto!("externalscaler");
}

#[cfg(test)]
mod tests;

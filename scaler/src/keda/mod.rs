//! KEDA's external scaler: answers its operator from the leader's last decisions.
//!
//! `metadata` parses a trigger, `answers` computes its answer, `service` speaks gRPC, `server`
//! listens. Answers depend only on [`forebay_signals::PoolReplicas`], which the leader decides and
//! every other scaler relays: all of them give KEDA the same answer. May use `decide`, not the loop.

mod answers;
mod figures;
mod metadata;
mod server;
mod service;

pub(crate) use figures::PoolFigures;
pub use server::{KedaServer, ServeError};

/// The protocol, generated from `proto/externalscaler.proto`.
#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated")]
pub mod proto {
    tonic::include_proto!("externalscaler");
}

#[cfg(test)]
mod tests;

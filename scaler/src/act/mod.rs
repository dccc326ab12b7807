//! The hand of the scaler: targets that start and stop replicas, drains, a person's orders.
//!
//! A replica that serves is stopped in three steps: marked, empty at every gateway, stopped.

pub(crate) mod drains;
pub(crate) mod orders;
pub mod targets;

//! The pure decision core: no socket, no clock, no Kubernetes type.
//!
//! Time is milliseconds since the epoch, kept monotonic by the edge, so that a replay and the
//! running scaler call the same functions.

pub mod cold_start;
pub mod decide;
pub mod merge;
pub mod window;

pub use decide::{Decision, Inputs, Policy, State, Why, decide};
pub use merge::{Load, merge};

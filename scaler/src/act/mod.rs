//! Driving what is scaled: processes, workloads, KEDA's objects; drains and orders.

pub(crate) mod drains;
pub(crate) mod orders;
pub mod targets;

//! The gateway as one thing to start, reload and stop; what it follows and reports.
//!
//! Serving never waits for this room: when the scaler is silent, the last known state stays in force.

pub(crate) mod follow;
pub(crate) mod predecessor;
pub(crate) mod reload;
pub(crate) mod report;
pub(crate) mod server;
pub(crate) mod start_error;

//! Starting, reloading and reporting.

pub(crate) mod follow;
pub(crate) mod reload;
pub(crate) mod report;
pub(crate) mod server;
pub(crate) mod start_error;

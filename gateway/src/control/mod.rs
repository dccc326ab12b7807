//! Starting, reloading and stopping the gateway, and its two feeds.
//!
//! Serving never waits for this room: when the scaler is silent, the last known state stays in
//! force. Uses all rooms below it.
//!
//! `server` is the running gateway; `reload` applies a configuration; `follow` reads the scaler's
//! feed, and `report` publishes the gateway's own, with the requests of the `predecessor` after an
//! upgrade. `held_requests` shows the queues,
//! `endpoint_details` the endpoints, `tried_requests` those of the console. `start_error` has the errors.

mod endpoint_details;
pub(crate) mod follow;
mod held_requests;
pub(crate) mod predecessor;
pub(crate) mod reload;
pub(crate) mod report;
pub(crate) mod server;
pub(crate) mod start_error;
mod tried_requests;

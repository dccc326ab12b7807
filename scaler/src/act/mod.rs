//! The actions of the scaler: targets that start and stop replicas, drains, operators' overrides.
//!
//! A replica that serves is stopped in three steps: marked as draining, empty at every gateway,
//! stopped. May use `decide`, `lead` and `observe`, not the loop.

use axum::http::StatusCode;

pub(crate) mod drains;
pub(crate) mod overrides;
pub mod targets;

/// Status and text of an answer on the admin port.
type HttpAnswer = (StatusCode, String);

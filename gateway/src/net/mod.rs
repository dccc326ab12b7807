//! Client connections and dials: TLS, time limits, shares of files and memory, drain.
//!
//! Every connection has one owner and one alarm for all its time limits. Uses `answer` for causes and
//! `figures` for its counts.

pub(crate) mod activity;
pub(crate) mod alarm;
pub mod bounds;
pub(crate) mod connection_limits;
pub(crate) mod dial;
pub(crate) mod drain;
pub(crate) mod h2_tasks;
pub(crate) mod host;
pub(crate) mod linger;
pub(crate) mod share;
pub(crate) mod socket;
pub(crate) mod tls;
pub(crate) mod upload;

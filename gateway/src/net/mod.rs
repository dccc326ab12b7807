//! Client connections: TLS, sockets, time limits, drain.

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

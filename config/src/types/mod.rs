//! The configuration as typed values, one file a section. Doc comments are the schema's text.

pub(crate) mod behavior;
pub mod command;
pub(crate) mod discovery;
pub(crate) mod drain;
pub(crate) mod edge;
pub(crate) mod gateway;
pub(crate) mod keys;
pub(crate) mod logging;
pub(crate) mod open_telemetry;
pub(crate) mod pick;
pub(crate) mod pool;
pub(crate) mod prometheus;
pub(crate) mod replay;
pub(crate) mod route;
pub(crate) mod scaling;
pub(crate) mod target;
pub(crate) mod tenant;
pub(crate) mod trigger;

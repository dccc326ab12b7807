//! The meaning of a replica's answer: output, end, failure; tokens and times.
//!
//! Bytes and times go in, bytes and a verdict come out. Also the ways in which a request can end: by an
//! outcome, a failure of a replica, a refusal of the gateway. Pure; uses `text`.

pub(crate) mod abridged;
pub(crate) mod api;
pub(crate) mod ejection;
pub(crate) mod failure;
pub(crate) mod fingerprint;
pub(crate) mod judge;
pub(crate) mod limit;
pub(crate) mod meter;
pub(crate) mod outcome;
pub(crate) mod plain;
pub(crate) mod refusal;
pub(crate) mod stream;
pub(crate) mod traffic;

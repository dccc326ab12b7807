//! How a replica's answer is understood: bytes and times in, bytes and a verdict out.

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

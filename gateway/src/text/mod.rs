//! Bytes as text, read in place: JSON, server-sent events, ropes of slices.

pub(crate) mod json;
pub(crate) mod rope;
pub(crate) mod sse;

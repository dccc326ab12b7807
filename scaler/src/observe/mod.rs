//! The inputs of decisions: gateways' feeds, second-hand sources, the leader's feed.
//!
//! Tasks read repeatedly, so a decision never waits: it takes the last reading with its age. A figure out of
//! its range is unknown, and never zero. May use `decide` and `lead`, not the targets.

pub(crate) mod feeds;
pub(crate) mod relay;
pub(crate) mod sources;

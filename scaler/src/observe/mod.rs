//! The reports that decisions read: gateways' feeds, second-hand sources, the leader's words.
//!
//! Tasks read again and again; a decision takes the last reading with its age and never waits. What
//! can't be is unknown, and never zero.

pub(crate) mod feeds;
pub(crate) mod heard;
pub(crate) mod relay;
pub(crate) mod sources;

//! The way of one request to its answer: held, tried, tried again, passed on, recorded.
//!
//! Nothing goes out to the client before an answer is judged, so that every failure until then can be
//! tried elsewhere. Dropping any future of this room ends its request. Uses all rooms before it.

pub(crate) mod answer_body;
pub(crate) mod answered_by;
pub(crate) mod attempt;
pub(crate) mod cutoff;
pub(crate) mod fallback;
pub(crate) mod heartbeat;
pub(crate) mod ours;
pub(crate) mod outgoing;
pub(crate) mod proxy;
pub(crate) mod record;
pub(crate) mod relay;
pub(crate) mod respond;
pub(crate) mod upstream;

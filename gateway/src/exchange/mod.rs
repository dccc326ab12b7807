//! One request's way to its answer.

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

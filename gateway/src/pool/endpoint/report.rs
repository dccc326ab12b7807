//! An endpoint's state in detail, for people.

use forebay_signals::Health;
use tokio::time::Instant;

use super::Endpoint;

/// The state of an endpoint.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct EndpointState {
    pub(crate) health: Health,
    /// The reason why it takes no requests; empty if it is ready.
    pub(crate) reason: String,
    pub(crate) in_flight: u32,
    /// The most requests in flight that it may have now.
    pub(crate) limit: u32,
    /// Failures in a row that count towards an ejection.
    pub(crate) failures_in_a_row: u32,
    /// Health probes in a row that got no answer at all.
    pub(crate) silent_probes: u32,
    /// The beginning of its last probe.
    pub(crate) last_probe: Option<Instant>,
    /// When it last answered a request completely.
    pub(crate) last_answer: Option<Instant>,
}

impl Endpoint {
    /// Its state at this moment.
    pub(crate) fn state(&self, now: Instant) -> EndpointState {
        EndpointState {
            health: self.health(),
            reason: self.why(),
            in_flight: self.in_flight(),
            limit: self.work.room.allowed(now),
            failures_in_a_row: self.behaviour.failures,
            silent_probes: self.probing.silent,
            last_probe: self.probing.last(),
            last_answer: self.probing.heard,
        }
    }
}

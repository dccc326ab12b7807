//! The condition of a replica: one enum for targets, the loop, decisions and `/replicas`.
//!
//! A target knows whether the process or pod runs. Only gateways know whether it is ready, so the loop
//! refines a target's condition by their reports, in one place (`PoolScaler::condition`). All other
//! mappings are here: from a pod's phase, and to the state on `/replicas`.

use forebay_signals::{PodPhase, ReplicaState};
use serde::{Deserialize, Serialize};

/// The condition of a replica. A target reports only those that need no gateway: pending, starting,
/// draining, failed. As JSON they have the names that processes of any version pass on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Condition {
    /// Requested; nothing runs yet.
    Pending,
    /// It runs, and no gateway has found it ready.
    #[serde(rename = "Running")]
    Starting,
    /// It takes requests.
    Ready,
    /// It was ready, and its behaviour took it out: neither capacity nor a start.
    Ejected,
    /// It is stopping or about to stop, and no longer counts.
    #[serde(rename = "Stopping")]
    Draining,
    /// It failed and waits for its next start.
    Failed,
}

impl Condition {
    /// The condition of a pod's replica, as far as Kubernetes shows.
    #[must_use]
    pub fn of_pod(phase: PodPhase) -> Self {
        match phase {
            PodPhase::Unscheduled | PodPhase::Pulling => Self::Pending,
            PodPhase::Starting | PodPhase::Healthy => Self::Starting,
            PodPhase::Draining => Self::Draining,
            PodPhase::Failed => Self::Failed,
        }
    }

    /// The state on `/replicas`. An ejected replica counts as failed there.
    #[must_use]
    pub fn state(self) -> ReplicaState {
        match self {
            Self::Pending => ReplicaState::Pending,
            Self::Starting => ReplicaState::Starting,
            Self::Ready => ReplicaState::Ready,
            Self::Draining => ReplicaState::Draining,
            Self::Ejected | Self::Failed => ReplicaState::Failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_of_another_version_reads_the_same_names() {
        for (condition, name) in [
            (Condition::Pending, "Pending"),
            (Condition::Starting, "Running"),
            (Condition::Draining, "Stopping"),
            (Condition::Failed, "Failed"),
        ] {
            assert_eq!(serde_json::to_value(condition).expect("plain"), name);
        }
    }
}

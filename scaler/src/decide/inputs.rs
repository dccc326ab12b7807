//! What a decision is made from.

use serde::{Deserialize, Serialize};

use super::load::Load;
use super::proposal::Proposal;

/// What is known of a pool now.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// Merged over the gateways.
    pub load: &'a Load,
    /// Every replica there is, in any state.
    pub replicas: &'a [ReplicaFacts],
    /// What each configured trigger says. With none that counts, the default algorithm decides.
    pub proposals: &'a [Proposal],
    /// What a person ordered.
    pub order: Override,
}

/// A person's order, given at run time; it stands until it is lifted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Override {
    /// Decide.
    #[default]
    None,
    /// The count stays as it is, come what may.
    Paused,
    /// Exactly so many replicas, `maxReplicaCount` at most.
    Fixed(u32),
}

/// One replica with the times of its present start, in milliseconds since the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicaFacts {
    /// Where it is on its way.
    pub standing: Standing,
    /// Asked of the target.
    pub asked_ms: u64,
    /// Given a machine, where the target tells.
    pub scheduled_ms: Option<u64>,
    /// Its process or container runs.
    pub started_ms: Option<u64>,
    /// A gateway found it healthy.
    pub ready_ms: Option<u64>,
    /// It answered something, as far as it was seen.
    pub first_token_ms: Option<u64>,
}

impl ReplicaFacts {
    /// One that is just asked for.
    #[must_use]
    pub fn asked(asked_ms: u64) -> Self {
        Self {
            standing: Standing::Pending,
            asked_ms,
            scheduled_ms: None,
            started_ms: None,
            ready_ms: None,
            first_token_ms: None,
        }
    }
}

/// Where a replica is on its way, in the eyes of the scaler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Asked for; nothing runs yet.
    Pending,
    /// It runs, and is not healthy yet.
    Starting,
    /// It takes requests.
    Ready,
    /// It was ready and its behaviour took it out: no capacity, and no start either.
    Ejected,
    /// It is to stop: it counts no more.
    Draining,
    /// It failed and waits for its next start.
    Failed,
}

//! The inputs of a decision.

use forebay_config::Millis;
use serde::{Deserialize, Serialize};

use super::condition::Condition;
use super::load::Load;
use super::proposal::Proposal;

/// The facts about a pool at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// The load, merged over the gateways.
    pub load: &'a Load,
    /// Every replica, in any condition.
    pub replicas: &'a [ReplicaFacts],
    /// The proposal of each configured trigger. If none counts, the default algorithm decides.
    pub proposals: &'a [Proposal],
    /// An operator's override.
    pub operator_override: Override,
}

/// An operator's override, set at run time. It stands until it is removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Override {
    /// No override: decide.
    #[default]
    None,
    /// Keep the count, whatever happens.
    Paused,
    /// Exactly this many replicas, at most `maxReplicaCount`.
    Fixed(u32),
}

/// One replica with the times of its current start, in milliseconds since the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicaFacts {
    /// Its condition.
    pub condition: Condition,
    /// It was requested from the target.
    pub requested_at: Millis,
    /// It was assigned to a machine, if the target reports that.
    pub scheduled_at: Option<Millis>,
    /// Its process or container runs.
    pub started_at: Option<Millis>,
    /// A gateway found it healthy.
    pub ready_at: Option<Millis>,
    /// It gave its first answer, if one was observed.
    pub first_token_at: Option<Millis>,
}

impl ReplicaFacts {
    /// A replica that was just requested.
    #[must_use]
    pub fn requested(requested_at: Millis) -> Self {
        Self {
            condition: Condition::Pending,
            requested_at,
            scheduled_at: None,
            started_at: None,
            ready_at: None,
            first_token_at: None,
        }
    }
}

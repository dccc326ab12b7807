//! A decision with its reasons, as values and as a sentence.

use std::fmt;

use serde::{Serialize, Serializer};

use super::capacity::Curve;
use super::proposal::Proposal;

/// A count with its reasons.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    /// The count before.
    pub from: u32,
    /// The count from now on.
    pub desired: u32,
    /// There is a reason to have more than the idle count: what KEDA calls active.
    pub active: bool,
    /// The rule that won.
    #[serde(rename = "rule", serialize_with = "rule")]
    pub why: Why,
    /// What each trigger said.
    #[serde(rename = "triggers", skip_serializing_if = "Vec::is_empty")]
    pub proposals: Vec<Proposal>,
    /// What it was decided from.
    pub figures: Figures,
}

/// What a decision was made from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Figures {
    /// Requests held.
    pub held: u32,
    /// Requests at replicas.
    pub in_flight: u32,
    /// Replicas that take requests.
    pub ready: u32,
    /// Replicas on their way.
    pub coming: u32,
    /// Requests per second over the time of a cold start.
    pub rate: f64,
    /// What one replica is worth.
    pub curve: Curve,
    /// How long a start is expected to take.
    pub cold_start_seconds: f64,
    /// Replicas that the arrivals of the last minutes needed.
    pub recent: u32,
    /// Replicas that what is there and what comes will need.
    pub ahead: u32,
    /// Replicas that the time of day needs.
    pub season: u32,
}

/// The rule that won; its `Display` is half a sentence for people.
#[derive(Clone, Debug, PartialEq)]
pub enum Why {
    /// Nothing to do.
    Steady,
    /// So many were needed a moment ago.
    Kept {
        /// How long a moment is.
        for_ms: u64,
    },
    /// The last replica goes when the pool is idle.
    Last,
    /// `minReplicaCount`.
    Minimum,
    /// `maxReplicaCount`.
    Maximum {
        /// What was asked for.
        wanted: u32,
    },
    /// Held requests, with those in flight, need so many.
    Held {
        /// Requests held.
        held: u32,
        /// Requests in flight.
        in_flight: u32,
        /// Requests for each replica.
        target: u32,
    },
    /// What is in the system, with what comes, needs so many to be worked off in time.
    Backlog {
        /// Requests held.
        held: u32,
        /// Requests in flight.
        in_flight: u32,
        /// Requests per second.
        rate: f64,
    },
    /// The arrivals of the last minutes need so many.
    Recent {
        /// How long the last minutes are.
        for_ms: u64,
        /// The objective's time to the first token.
        ttft_ms: u64,
    },
    /// The time of day needs so many.
    Season {
        /// Requests per second that are usual.
        rate: f64,
    },
    /// The load of the panic window.
    Rising {
        /// Mean requests held and in flight.
        load: f64,
        /// Requests for each replica.
        target: u32,
    },
    /// The load of the stable window.
    Falling {
        /// Mean requests held and in flight.
        load: f64,
        /// Requests for each replica.
        target: u32,
    },
    /// A trigger's proposal, the largest.
    Trigger {
        /// The trigger's name.
        name: String,
        /// What it read.
        figure: f64,
        /// What it compares with.
        threshold: f64,
    },
    /// A trigger's schedule, the largest proposal.
    Schedule {
        /// The trigger's name.
        name: String,
        /// Whether it is within its hours.
        within: bool,
    },
    /// No request for the idle time.
    Idle {
        /// For how long.
        for_ms: u64,
    },
    /// The pool has no target: what is there stays.
    Unscaled,
    /// A person paused the pool.
    Paused,
    /// A person fixed the count.
    Fixed,
    /// A lower count is not taken while the load may be more than was heard.
    Unheard,
    /// A lower count is not taken while a trigger can't be read.
    Unread {
        /// The trigger's name.
        name: String,
    },
    /// A lower count is not taken before a whole window was seen.
    Learning,
    /// A lower count is not taken in panic.
    Panic,
    /// A lower count is not taken while a start is under way.
    Starting,
    /// `behavior` allows no more change now.
    Behavior {
        /// What was asked for.
        wanted: u32,
    },
}

impl Why {
    /// The rule's name, one of few: for metrics and `/decisions`.
    #[must_use]
    pub fn rule(&self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::Kept { .. } => "kept",
            Self::Last => "last",
            Self::Minimum => "minimum",
            Self::Maximum { .. } => "maximum",
            Self::Held { .. } => "held",
            Self::Backlog { .. } => "backlog",
            Self::Recent { .. } => "recent",
            Self::Season { .. } => "season",
            Self::Rising { .. } => "rising",
            Self::Falling { .. } => "falling",
            Self::Trigger { .. } => "trigger",
            Self::Schedule { .. } => "schedule",
            Self::Idle { .. } => "idle",
            Self::Unscaled => "unscaled",
            Self::Paused => "paused",
            Self::Fixed => "fixed",
            Self::Unheard => "unheard",
            Self::Unread { .. } => "unread",
            Self::Learning => "learning",
            Self::Panic => "panic",
            Self::Starting => "starting",
            Self::Behavior { .. } => "behavior",
        }
    }

    /// It kept a count that would have changed.
    pub(crate) fn holds_back(&self) -> bool {
        matches!(
            self,
            Self::Unheard
                | Self::Unread { .. }
                | Self::Learning
                | Self::Panic
                | Self::Starting
                | Self::Behavior { .. }
                | Self::Paused
        )
    }
}

fn rule<S: Serializer>(why: &Why, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(why.rule())
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Steady => f.write_str("the load asks for no other count"),
            Self::Kept { for_ms } => {
                write!(f, "so many were needed within the last {} s", for_ms / 1000)
            }
            Self::Last => f.write_str("the last replica stays until the pool is idle"),
            Self::Minimum => f.write_str("minReplicaCount asks for it"),
            Self::Maximum { wanted } => write!(f, "maxReplicaCount allows no {wanted}"),
            Self::Held { held: 1, in_flight: 0, .. } => f.write_str("1 request is held"),
            Self::Held { held, in_flight, target } => write!(
                f,
                "{held} requests are held and {in_flight} in flight, {target} for each replica"
            ),
            Self::Backlog { held, in_flight, rate } => write!(
                f,
                "{held} requests are held and {in_flight} in flight, with {rate:.1} more each second"
            ),
            Self::Recent { for_ms, ttft_ms } => write!(
                f,
                "the load of the last {} s needs so many for first tokens within {:.1} s",
                for_ms / 1000,
                *ttft_ms as f64 / 1000.0
            ),
            Self::Season { rate } => {
                write!(f, "{rate:.1} requests a second are usual at this time of day")
            }
            Self::Rising { load, target } => {
                write!(f, "{load:.1} requests are in the system, {target} for each replica")
            }
            Self::Falling { load, target } => {
                write!(f, "only {load:.1} requests were in the system, {target} for each replica")
            }
            Self::Trigger { name, figure, threshold } => {
                let figure = (figure * 1000.0).round() / 1000.0;
                write!(f, "trigger {name} is at {figure}, with a threshold of {threshold}")
            }
            Self::Schedule { name, within: true } => {
                write!(f, "trigger {name} is within its hours")
            }
            Self::Schedule { name, within: false } => {
                write!(f, "trigger {name} is out of its hours")
            }
            Self::Idle { for_ms } => write!(f, "no request came for {} s", for_ms / 1000),
            Self::Unscaled => f.write_str("the pool has no target, so nothing scales it"),
            Self::Paused => f.write_str("the pool is paused"),
            Self::Fixed => f.write_str("the count is fixed by hand"),
            Self::Unheard => f.write_str("a gateway is silent, so nothing scales down"),
            Self::Unread { name } => {
                write!(f, "trigger {name} can't be read, so nothing scales down")
            }
            Self::Learning => {
                f.write_str("the scaler has not watched for long enough to scale down")
            }
            Self::Panic => f.write_str("the load rose steeply, so nothing scales down yet"),
            Self::Starting => f.write_str("a start is under way"),
            Self::Behavior { wanted } => {
                write!(f, "behavior does not allow {wanted} yet")
            }
        }
    }
}

impl Decision {
    /// One sentence for people, without the pool's name.
    #[must_use]
    pub fn sentence(&self) -> String {
        let Self { from, desired, why, .. } = self;
        match why {
            Why::Idle { for_ms } => {
                format!("idle for {} s, scaling {from} → {desired}", for_ms / 1000)
            }
            _ if from != desired => format!("scaling {from} → {desired} because {why}"),
            _ => format!("staying at {desired}: {why}"),
        }
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence())
    }
}

//! A decision with its reasons, as values and as a sentence.

use std::fmt;

use forebay_config::Millis;
use serde::{Serialize, Serializer};

use super::capacity::Curve;
use super::proposal::Proposal;

/// A replica count with its reasons.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    /// The count before.
    pub from: u32,
    /// The count from now on.
    pub desired: u32,
    /// Whether something asks for more than the idle count. This is only shown; KEDA's `IsActive` is
    /// [`PoolReplicas::active`](forebay_signals::PoolReplicas::active).
    pub active: bool,
    /// The rule that won.
    #[serde(rename = "rule", serialize_with = "rule")]
    pub why: Why,
    /// The proposal of each trigger.
    #[serde(rename = "triggers", skip_serializing_if = "Vec::is_empty")]
    pub proposals: Vec<Proposal>,
    /// The figures behind it.
    pub figures: Figures,
}

/// The figures behind a decision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Figures {
    /// Requests held, and those just refused because a cold start takes too long.
    pub held: u32,
    /// Requests at replicas.
    pub in_flight: u32,
    /// Replicas that take requests.
    pub ready: u32,
    /// Replicas that are starting.
    #[serde(rename = "coming")]
    pub starting: u32,
    /// Requests per second over the time of a cold start.
    pub rate: f64,
    /// The learned performance of one replica.
    pub curve: Curve,
    /// Expected duration of a start.
    pub cold_start_seconds: f64,
    /// Replicas that the arrivals of the last minutes needed.
    pub recent: u32,
    /// Replicas that the backlog needs: the current queue and the expected arrivals.
    #[serde(rename = "ahead")]
    pub backlog: u32,
    /// Replicas that the time of day needs.
    pub season: u32,
    /// Replicas that `targetConcurrency` needs, if it is configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u32>,
}

/// The rule that won. Its `Display` is half a sentence for people. A limit has `because`: the reason for
/// the count that it did not allow, so that the sentence names the cause before the limit.
#[derive(Clone, Debug, PartialEq)]
pub enum Why {
    /// Nothing asks for a change.
    Steady,
    /// A recent demand needs this many.
    Kept {
        /// The length of the window.
        span: Millis,
        /// The reason for that demand at its time, if a single demand set the count.
        because: Option<Box<Why>>,
    },
    /// The last replica stays until the pool is idle.
    Last,
    /// `minReplicaCount` requires more.
    Minimum {
        /// The demand that it raised and the reason for that, if the demand exceeds the present count.
        because: Option<(u32, Box<Why>)>,
    },
    /// `maxReplicaCount` allows no more.
    Maximum {
        /// The count before it was limited.
        wanted: u32,
        /// The reason for that count, if it exceeds the present one.
        because: Option<Box<Why>>,
    },
    /// The requests held and in flight need this many.
    Held {
        /// Requests held.
        held: u32,
        /// Requests in flight.
        in_flight: u32,
        /// The target concurrency.
        per_replica: u32,
    },
    /// The current queue and the expected arrivals need this many to be worked off in time.
    Backlog {
        /// Requests held.
        held: u32,
        /// Requests in flight.
        in_flight: u32,
        /// Requests per second.
        rate: f64,
    },
    /// The arrivals of the last minutes need this many.
    Recent {
        /// The length of that time.
        span: Millis,
        /// The objective's time to the first token.
        ttft: Millis,
    },
    /// The time of day needs this many.
    Season {
        /// The usual requests per second.
        rate: f64,
    },
    /// The load of the panic window.
    Rising {
        /// Mean requests held and in flight.
        load: f64,
        /// The target concurrency.
        per_replica: u32,
    },
    /// The largest proposal is a trigger's.
    Trigger {
        /// The trigger's name.
        name: String,
        /// The figure.
        figure: f64,
        /// The threshold to compare it with.
        threshold: f64,
    },
    /// The largest proposal is a schedule's.
    Schedule {
        /// The trigger's name.
        name: String,
        /// Whether the schedule is within its hours.
        within: bool,
    },
    /// No request for the whole cooldown.
    Idle {
        /// The time without requests.
        span: Millis,
    },
    /// The pool has no target: the count is that of the replicas found.
    Unscaled,
    /// An operator paused the pool.
    Paused,
    /// An operator fixed the count.
    Fixed,
    /// An operator woke the pool, or sent it to its idle count, and it scales on from there.
    Ordered,
    /// No scaling down while the load may be more than reported.
    Unheard,
    /// No scaling down while a trigger can't be read.
    Unread {
        /// The trigger's name.
        name: String,
    },
    /// No scaling down before a whole window was observed.
    Learning,
    /// No scaling down during panic.
    Panic,
    /// No scaling down while a start is under way.
    Starting,
    /// `behavior` allows no further change now.
    Behavior {
        /// The count before it was limited.
        wanted: u32,
        /// The reason for that count.
        because: Box<Why>,
    },
}

impl Why {
    /// The rule's name, for metrics and `/decisions`.
    #[must_use]
    pub fn rule(&self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::Kept { .. } => "kept",
            Self::Last => "last",
            Self::Minimum { .. } => "minimum",
            Self::Maximum { .. } => "maximum",
            Self::Held { .. } => "held",
            Self::Backlog { .. } => "backlog",
            Self::Recent { .. } => "recent",
            Self::Season { .. } => "season",
            Self::Rising { .. } => "rising",
            Self::Trigger { .. } => "trigger",
            Self::Schedule { .. } => "schedule",
            Self::Idle { .. } => "idle",
            Self::Unscaled => "unscaled",
            Self::Paused => "paused",
            Self::Fixed => "fixed",
            Self::Ordered => "ordered",
            Self::Unheard => "unheard",
            Self::Unread { .. } => "unread",
            Self::Learning => "learning",
            Self::Panic => "panic",
            Self::Starting => "starting",
            Self::Behavior { .. } => "behavior",
        }
    }

    /// Whether the rule kept a count that would have changed.
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
        self.write(f, &"this many")
    }
}

impl Why {
    /// Writes the reason. `many` stands for the count that it is the reason for.
    fn write(&self, f: &mut fmt::Formatter<'_>, many: &dyn fmt::Display) -> fmt::Result {
        match self {
            Self::Steady => f.write_str("the load asks for no other count"),
            Self::Kept { span, because } => {
                write!(f, "{many} were needed within the last {} s", span.as_secs())?;
                if let Some(because) = because {
                    f.write_str(" (at that time: ")?;
                    because.write(f, many)?;
                    f.write_str(")")?;
                }
                Ok(())
            }
            Self::Last => f.write_str("the last replica stays until the pool is idle"),
            Self::Minimum { because: None } => f.write_str("minReplicaCount requires this many"),
            Self::Minimum { because: Some((wanted, because)) } => {
                because.write(f, wanted)?;
                f.write_str("; minReplicaCount requires this many")
            }
            Self::Maximum { wanted, because } => {
                if let Some(because) = because {
                    because.write(f, wanted)?;
                    f.write_str("; ")?;
                }
                write!(f, "maxReplicaCount does not allow {wanted}")
            }
            Self::Held { held: 1, in_flight: 0, .. } => f.write_str("1 request is held"),
            Self::Held { held, in_flight, per_replica } => write!(
                f,
                "{held} requests are held and {in_flight} in flight, {per_replica} per replica"
            ),
            Self::Backlog { held, in_flight, rate } => write!(
                f,
                "{held} requests are held and {in_flight} in flight, and {rate:.1} more arrive each second"
            ),
            Self::Recent { span, ttft } => write!(
                f,
                "the load of the last {} s needs {many} for first tokens within {:.1} s",
                span.as_secs(),
                ttft.as_secs_f64()
            ),
            Self::Season { rate } => {
                write!(f, "{rate:.1} requests per second are usual at this time of day")
            }
            Self::Rising { load, per_replica } => {
                write!(f, "{load:.1} requests are in the system, {per_replica} per replica")
            }
            Self::Trigger { name, figure, threshold } => {
                let figure = (figure * 1000.0).round() / 1000.0;
                write!(f, "trigger {name} is at {figure}, with a threshold of {threshold}")
            }
            Self::Schedule { name, within: true } => {
                write!(f, "trigger {name} is within its schedule")
            }
            Self::Schedule { name, within: false } => {
                write!(f, "trigger {name} is outside its schedule")
            }
            Self::Idle { span } => write!(f, "no request came for {} s", span.as_secs()),
            Self::Unscaled => {
                f.write_str("the pool has no scale target, so the count does not change")
            }
            Self::Paused => f.write_str("the pool is paused"),
            Self::Fixed => f.write_str("an operator fixed the count"),
            Self::Ordered => f.write_str("an operator asked for it"),
            Self::Unheard => f.write_str("a gateway is silent, so nothing scales down"),
            Self::Unread { name } => {
                write!(f, "trigger {name} can't be read, so nothing scales down")
            }
            Self::Learning => {
                f.write_str("the scaler has not observed the load for long enough to scale down")
            }
            Self::Panic => f.write_str("the load rose steeply, so nothing scales down for a while"),
            Self::Starting => f.write_str("a start is under way"),
            Self::Behavior { wanted, because } => {
                because.write(f, wanted)?;
                write!(f, "; behavior does not allow {wanted} yet")
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
            Why::Idle { span } => {
                format!("idle for {} s, scaling {from} → {desired}", span.as_secs())
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

//! A trigger's proposal: its figure, and the count that it asks for.

use std::fmt;

use forebay_config::Millis;
use serde::Serialize;

/// One trigger's proposal at one moment. Triggers make them; [`decide`](super::decide()) weighs them.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Proposal {
    /// The trigger's name, unique within its pool, from configuration.
    pub name: String,
    /// The kind of trigger: `queueDepth`, `prometheus`, `cron`, …
    pub kind: &'static str,
    /// The figure; `None` if unknown.
    pub figure: Option<f64>,
    /// The threshold to compare it with.
    pub threshold: f64,
    /// The figure must exceed this to wake a pool from zero, or to keep it from going there.
    pub activation: f64,
    /// Replicas needed, before rounding up; `None` if it proposes no count now.
    pub needed: Option<f64>,
    /// Whether the figure exceeds `activation`.
    pub active: bool,
    /// Age of the figure; `None` for first-hand ones.
    #[serde(rename = "ageMs", skip_serializing_if = "Option::is_none")]
    pub age: Option<Millis>,
    /// The reason why it proposes nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
}

/// The reason why a trigger proposes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "kind", content = "message")]
pub enum Problem {
    /// Its source does not answer, or not with a number. Forbids scaling down.
    Unreadable(String),
    /// It can never work as configured. Ignored.
    Misconfigured(String),
}

/// Follows the trigger's name, for people.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(why) => write!(f, "can't be read, so nothing scales down: {why}"),
            Self::Misconfigured(why) => write!(f, "is ignored: {why}"),
        }
    }
}

impl Proposal {
    /// Whole replicas: `needed`, rounded up.
    #[must_use]
    pub fn replicas(&self) -> Option<u32> {
        self.needed.map(round_up)
    }

    /// Whether it depends on the clock rather than on a figure.
    pub(crate) fn is_schedule(&self) -> bool {
        self.kind == "cron"
    }

    /// Whether the decision considers it.
    pub(crate) fn counts(&self) -> bool {
        !matches!(self.problem, Some(Problem::Misconfigured(_)))
    }

    /// Whether its problem is a failure, which a person should look at. A first-hand figure is unknown while
    /// there are no requests, and a second-hand one until it is read for the first time.
    pub(crate) fn has_failed(&self) -> bool {
        match &self.problem {
            Some(Problem::Unreadable(_)) => self.age.is_some(),
            Some(Problem::Misconfigured(_)) => true,
            None => false,
        }
    }

    /// Whether its figure is unknown because it can't be read.
    pub(crate) fn unreadable(&self) -> bool {
        matches!(self.problem, Some(Problem::Unreadable(_)))
    }
}

/// ⌈needed⌉. Subtracts a tiny amount, so that rounding errors never ask for one more.
pub(crate) fn round_up(needed: f64) -> u32 {
    (needed - 1e-9).ceil().max(0.0) as u32
}

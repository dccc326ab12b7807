//! What one trigger says: its figure, and the count that it asks for.

use std::fmt;

use serde::Serialize;

/// One trigger's word at one moment. Triggers make them; [`decide`](super::decide()) weighs them.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Proposal {
    /// The trigger's name, unique within its pool, from configuration.
    pub name: String,
    /// The kind of trigger: `queueDepth`, `prometheus`, `cron`, …
    pub kind: &'static str,
    /// What it read; `None` when unknown.
    pub figure: Option<f64>,
    /// What it compares with.
    pub threshold: f64,
    /// The figure must be more than this to wake a pool from zero, or to keep it from going there.
    pub activation: f64,
    /// Replicas needed, before rounding up; `None` when it proposes nothing now.
    pub needed: Option<f64>,
    /// The figure is above `activation`.
    pub active: bool,
    /// How long ago the figure was read, in milliseconds; `None` for first-hand ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age_ms: Option<u64>,
    /// Why it can't say anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
}

/// Why a trigger can't say anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "kind", content = "message")]
pub enum Problem {
    /// Its source does not answer, or answers with no number. Forbids scaling down.
    Unreadable(String),
    /// It can never work as written. Left out.
    Misconfigured(String),
}

/// Behind the trigger's name, for people.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(why) => write!(f, "can't be read, so nothing scales down: {why}"),
            Self::Misconfigured(why) => write!(f, "is left out: {why}"),
        }
    }
}

impl Proposal {
    /// Whole replicas: needed, rounded up.
    #[must_use]
    pub fn replicas(&self) -> Option<u32> {
        self.needed.map(round_up)
    }

    /// Whether it goes by the clock, and not by a figure.
    pub(crate) fn is_schedule(&self) -> bool {
        self.kind == "cron"
    }

    /// Whether it counts at all.
    pub(crate) fn counts(&self) -> bool {
        !matches!(self.problem, Some(Problem::Misconfigured(_)))
    }

    /// Whether its figure is not known, though it should be.
    pub(crate) fn unreadable(&self) -> bool {
        matches!(self.problem, Some(Problem::Unreadable(_)))
    }
}

/// ⌈needed⌉. A hair is taken off, so that rounding never asks for one more.
pub(crate) fn round_up(needed: f64) -> u32 {
    (needed - 1e-9).ceil().max(0.0) as u32
}

//! The requests that start before another, and the places that newcomers take from it.

use std::time::Duration;

use forebay_config::PriorityClass;

use super::SOON;
use crate::queue::{Entry, LateLane, Queue};

/// The requests that start before another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ahead {
    /// Their number, for one that no newcomer overtakes: it can meet the objective, or the order does not
    /// depend on that.
    InTime(usize),
    /// For a late one.
    Late {
        /// The number of late ones before it.
        late: usize,
        /// All late ones of its class.
        lane: LateLane,
        /// How long it can be held in all.
        hold: Duration,
    },
}

/// The places that newcomers take from a late request.
#[derive(Clone, Copy, Default)]
pub(super) struct Overtaking {
    /// The part of the places that is for late ones meanwhile.
    share: f64,
    /// The seconds until it ends.
    ends: f64,
    /// The requests in time that are left then.
    behind: f64,
}

impl Overtaking {
    /// The places for late ones that become free between two moments, at this rate.
    pub(super) fn free(&self, from: f64, to: f64, rate: f64) -> f64 {
        let during = (to.min(self.ends) - from).max(0.0);
        // Those in time that are left then go first.
        let behind = if from <= self.ends && self.ends < to { self.behind } else { 0.0 };
        rate * (self.share * during + (to - from - during)) - behind
    }

    /// The moment at which `missing` more places for late ones have become free, at this rate.
    pub(super) fn after(&self, from: f64, missing: f64, rate: f64) -> f64 {
        let during = (self.ends - from).max(0.0);
        let behind = if from <= self.ends { self.behind } else { 0.0 };
        // Those in time that are held go first, however many come.
        let soon = (missing / (rate * self.share)).max((missing + behind) / rate);
        if soon <= during {
            return from + soon;
        }
        let slowly = rate * self.share * during;
        from + during + (missing - slowly + behind) / rate
    }
}

impl Ahead {
    /// The moment from which a request that arrives now is late: at once, if it is late already. `late_from`:
    /// the moment from which its release is too late for the objective.
    #[must_use]
    pub fn late_from(&self, late_from: Option<Duration>, now: Duration) -> Option<Duration> {
        match self {
            Self::InTime(_) => late_from,
            Self::Late { .. } => late_from.map(|late_from| late_from.min(now)),
        }
    }

    /// The places that have to become free first, and what newcomers take of them. `now`: see
    /// [`Outlook::now`](super::Outlook::now). `luck`: the overload ends as soon as one may hope, when it has
    /// lasted twice as long as until now.
    pub(super) fn needed(self, now: Duration, luck: bool) -> (f64, Overtaking) {
        let (late, lane, hold) = match self {
            Self::InTime(count) => return (count as f64 + 1.0, Overtaking::default()),
            Self::Late { late, lane, hold } => (late as f64 + 1.0, lane, hold),
        };
        if lane.in_time == 0 {
            return (late, Overtaking::default());
        }
        let lasts = now.saturating_sub(lane.since.unwrap_or(now));
        let mut length = hold.max(SOON);
        while length <= lasts {
            length *= 2;
        }
        let rest = (length - lasts).min(if luck { lasts } else { Duration::MAX });
        let (ends, behind) = (rest.as_secs_f64(), lane.in_time as f64);
        (late, Overtaking { share: lane.share, ends, behind })
    }
}

impl From<usize> for Ahead {
    fn from(count: usize) -> Self {
        Self::InTime(count)
    }
}

/// The requests that a walk over the queue, in the order of the releases, has passed.
#[derive(Clone, Debug)]
pub struct Passed {
    lanes: [LateLane; PriorityClass::COUNT],
    all: usize,
    late: [usize; PriorityClass::COUNT],
}

impl Passed {
    /// None yet.
    #[must_use]
    pub fn none<W>(queue: &Queue<W>) -> Self {
        let lanes = [PriorityClass::High, PriorityClass::Normal, PriorityClass::Low];
        let lanes = lanes.map(|class| queue.late_lane(class));
        Self { lanes, all: 0, late: [0; PriorityClass::COUNT] }
    }

    /// Those before the next one. `hold`: how long that can be held in all.
    #[must_use]
    pub fn before(&self, entry: &Entry, now: Duration, hold: Duration) -> Ahead {
        let class = entry.class as usize;
        match is_late(entry, now) {
            true => Ahead::Late { late: self.late[class], lane: self.lanes[class], hold },
            false => Ahead::InTime(self.all),
        }
    }

    /// Passes the next one.
    pub fn pass(&mut self, entry: &Entry, now: Duration) {
        self.all += 1;
        self.late[entry.class as usize] += usize::from(is_late(entry, now));
    }
}

fn is_late(entry: &Entry, now: Duration) -> bool {
    entry.late_from.is_some_and(|from| from <= now)
}

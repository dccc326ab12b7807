//! The memory of a pool's decisions, and its replicas counted by condition.

use std::collections::VecDeque;

use super::behavior::History;
use super::capacity::Capacity;
use super::cold_start::ColdStarts;
use super::condition::Condition;
use super::explain::Why;
use super::forecast::{Arrivals, Season};
use super::inputs::Inputs;
use super::window::Window;
use forebay_config::Millis;

/// The memory of a pool's decisions: all that the next one needs from earlier ones.
#[derive(Clone, Debug, Default)]
pub struct State {
    pub(crate) learned: Learned,
    pub(crate) recent: RecentLoad,
    pub(crate) times: Times,
    pub(super) history: History,
    /// An operator's order that the next decision carries out.
    pub(super) order: Option<Order>,
    pub(super) desired: u32,
    /// Replicas that have been ready, whether or not they are now.
    pub(super) started: u32,
}

/// An operator's order for one moment. The pool scales on from there, unlike with an override.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// At least one replica, or `minReplicaCount`, as if a request had come.
    Wake,
    /// The idle count, as if the cooldown had passed.
    Rest,
}

/// The figures that are learned for good, and kept over a restart.
#[derive(Clone, Debug, Default)]
pub(crate) struct Learned {
    pub(crate) capacity: Capacity,
    pub(crate) cold_starts: ColdStarts,
    pub(crate) season: Season,
}

/// The load of the last minutes.
#[derive(Clone, Debug, Default)]
pub(crate) struct RecentLoad {
    pub(crate) arrivals: Arrivals,
    pub(crate) concurrency: Window,
    /// Demands of the stable window that no later demand exceeds, with their reasons, oldest first.
    pub(crate) demands: VecDeque<(Millis, u32, Why)>,
    pub(super) accepted: u64,
}

/// Times of events that decisions depend on; `None` before the first such event.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Times {
    /// The first decision.
    pub(crate) since: Option<Millis>,
    /// The end of the panic.
    pub(crate) panic_until: Option<Millis>,
    /// The last request.
    pub(super) last_busy: Option<Millis>,
    /// A replica became ready.
    pub(super) ready_at: Option<Millis>,
    /// The count was raised.
    pub(super) raised_at: Option<Millis>,
    /// Replicas of an earlier process were adopted.
    pub(super) adopted_at: Option<Millis>,
}

impl Times {
    pub(crate) fn panics(&self, now: Millis) -> bool {
        self.panic_until.is_some_and(|until| now < until)
    }
}

/// Replicas counted by condition.
#[derive(Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) ready: u32,
    pub(super) failed: u32,
    pub(super) ejected: u32,
}

impl State {
    /// Adopts replicas that ran before this process. The first decision starts from their count, and
    /// none of them stops until the load was observed for a whole stable window.
    pub fn adopt(&mut self, replicas: u32, now: Millis) {
        if replicas > self.desired {
            self.desired = replicas;
            self.times.adopted_at = Some(now);
        }
    }

    /// Begins the window for adopted replicas anew. Called at the first report of a gateway: before it
    /// no load is observed.
    pub(crate) fn begin_observing(&mut self, now: Millis) {
        if self.times.adopted_at.is_some() {
            self.times.adopted_at = Some(now);
        }
    }

    /// Takes the number of replicas found as the count, for a pool without a target.
    pub(crate) fn keep(&mut self, replicas: u32) {
        self.desired = replicas;
    }

    /// Has the next decision carry out an operator's order. [`Order::Rest`] has no effect on a pool with
    /// requests, or while a gateway is silent.
    pub fn order(&mut self, order: Order) {
        self.order = Some(order);
    }

    /// The last decided count.
    #[must_use]
    pub fn desired(&self) -> u32 {
        self.desired
    }

    /// The learned durations of starts.
    #[must_use]
    pub fn cold_starts(&self) -> &ColdStarts {
        &self.learned.cold_starts
    }
}

impl Counts {
    pub(super) fn of(inputs: &Inputs<'_>) -> Self {
        let mut counts = Self::default();
        for replica in inputs.replicas {
            match replica.condition {
                Condition::Ready => counts.ready += 1,
                Condition::Ejected => counts.ejected += 1,
                Condition::Failed => counts.failed += 1,
                Condition::Pending | Condition::Starting | Condition::Draining => {}
            }
        }
        counts
    }

    /// Replicas whose start has ended, successfully or not. The rest of the desired count is starting,
    /// including replicas that the target does not report yet.
    pub(crate) fn past_start(self) -> u32 {
        self.ready + self.ejected + self.failed
    }
}

//! The memory of a pool's decisions, and its replicas counted by where they are.

use std::collections::VecDeque;

use super::behavior::History;
use super::capacity::Capacity;
use super::cold_start::ColdStarts;
use super::forecast::{Arrivals, Season};
use super::inputs::{Inputs, Standing};
use super::window::Window;

/// The memory of a pool's decisions: all that the next one needs of the last ones.
#[derive(Clone, Debug, Default)]
pub struct State {
    pub(crate) capacity: Capacity,
    pub(crate) cold_starts: ColdStarts,
    pub(crate) season: Season,
    pub(crate) arrivals: Arrivals,
    pub(crate) concurrency: Window,
    /// Demands of the stable window that no later one is above, oldest first.
    pub(crate) demands: VecDeque<(u64, u32)>,
    pub(super) history: History,
    pub(super) desired: u32,
    /// Replicas that have been ready, whether or not they are now.
    pub(super) started: u32,
    pub(super) accepted: u64,
    pub(crate) panic_until_ms: u64,
    pub(super) busy_ms: u64,
    pub(super) ready_ms: u64,
    /// More were asked for then.
    pub(super) raised_ms: u64,
    /// The first decision.
    pub(crate) since_ms: u64,
    /// Replicas that ran before this process were taken over then.
    pub(super) adopted_ms: u64,
}

/// Replicas by where they are.
#[derive(Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) ready: u32,
    pub(super) failed: u32,
    pub(super) ejected: u32,
}

impl State {
    /// Takes over so many replicas that ran before this process: the first decision is from there,
    /// and nothing goes before a whole window was seen.
    pub fn adopt(&mut self, replicas: u32, now_ms: u64) {
        if replicas > self.desired {
            self.desired = replicas;
            self.adopted_ms = now_ms;
        }
    }

    /// A gateway was heard for the first time: what was taken over until then is seen from now on.
    pub(crate) fn heard(&mut self, now_ms: u64) {
        if self.adopted_ms > 0 {
            self.adopted_ms = now_ms;
        }
    }

    /// Takes the replicas there are for the count: nothing scales it.
    pub(crate) fn keep(&mut self, replicas: u32) {
        self.desired = replicas;
    }

    /// The count that was decided last.
    #[must_use]
    pub fn desired(&self) -> u32 {
        self.desired
    }

    /// The learned times of starts.
    #[must_use]
    pub fn cold_starts(&self) -> &ColdStarts {
        &self.cold_starts
    }
}

impl Counts {
    pub(super) fn of(inputs: &Inputs<'_>) -> Self {
        let mut counts = Self::default();
        for replica in inputs.replicas {
            match replica.standing {
                Standing::Ready => counts.ready += 1,
                Standing::Ejected => counts.ejected += 1,
                Standing::Failed => counts.failed += 1,
                Standing::Pending | Standing::Starting | Standing::Draining => {}
            }
        }
        counts
    }

    /// Those whose start has ended, well or not; the others are on their way, also those that the
    /// target has not told of yet.
    pub(crate) fn known(self) -> u32 {
        self.ready + self.ejected + self.failed
    }
}

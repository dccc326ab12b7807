//! Counts that are known beforehand: a fixed fleet, or a schedule.

use super::{Contestant, Rules};
use crate::replay::trace::Us;
use crate::replay::world::{Hold, Victim, World};

/// Sets counts at given times, whatever happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Schedule {
    pub(crate) begins_with: u32,
    /// From each time on, in order of time.
    pub(crate) counts: Vec<(Us, u32)>,
    pub(crate) at: usize,
}

impl Schedule {
    /// So many all the time.
    pub(crate) fn fixed(count: u32) -> Self {
        Self { begins_with: count, counts: Vec::new(), at: 0 }
    }
}

impl Contestant for Schedule {
    /// The best gateway there is: the fleet alone is compared.
    fn rules(&self) -> Rules {
        Rules {
            hold: Hold::UntilRoom,
            victim: Victim::LeastBusy,
            keeps_draining: true,
            begins_with: self.begins_with,
        }
    }

    fn next(&self) -> Us {
        self.counts.get(self.at).map_or(Us::MAX, |(at, _)| *at)
    }

    fn look(&mut self, _: &World<'_>) -> Option<u32> {
        let (_, count) = self.counts.get(self.at)?;
        self.at += 1;
        Some(*count)
    }
}

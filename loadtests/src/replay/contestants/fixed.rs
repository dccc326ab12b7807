//! Counts that are set beforehand: a fixed fleet, or a schedule.

use super::{Contestant, Rules};
use crate::replay::trace::Us;
use crate::replay::world::{Hold, Victim, World};

/// Sets counts at given times, whatever the load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Schedule {
    pub(crate) initial_replicas: u32,
    /// Each count with the time from which it holds, in order of time.
    pub(crate) counts: Vec<(Us, u32)>,
    pub(crate) at: usize,
}

impl Schedule {
    /// A constant count.
    pub(crate) fn fixed(count: u32) -> Self {
        Self { initial_replicas: count, counts: Vec::new(), at: 0 }
    }
}

impl Contestant for Schedule {
    /// The rules of Forebay's gateway, so that only the fleets are compared.
    fn rules(&self) -> Rules {
        Rules {
            hold: Hold::UntilRoom,
            victim: Victim::LeastBusy,
            revives_draining: true,
            move_after: None,
            scales: !self.counts.is_empty(),
            // A schedule that was made beforehand does not wait for what replicas show.
            measures_room: self.counts.is_empty(),
            initial_replicas: self.initial_replicas,
        }
    }

    fn next_look(&self) -> Us {
        self.counts.get(self.at).map_or(Us::MAX, |(at, _)| *at)
    }

    fn look(&mut self, _: &World<'_>) -> Option<u32> {
        let (_, count) = self.counts.get(self.at)?;
        self.at += 1;
        Some(*count)
    }
}

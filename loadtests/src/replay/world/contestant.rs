//! The interface of whoever sets the count in a world.

use super::{Hold, Victim, World};
use crate::replay::trace::Us;

/// How the world treats requests and replicas under a contestant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    pub(crate) hold: Hold,
    pub(crate) victim: Victim,
    /// A draining replica is taken back before a new one is asked for.
    pub(crate) keeps_draining: bool,
    /// Replicas that are ready as the trace begins.
    pub(crate) begins_with: u32,
}

/// Sets the count of replicas.
pub(crate) trait Contestant {
    fn rules(&self) -> Rules;
    /// When it looks next by itself.
    fn next(&self) -> Us;
    /// Looks, and says how many there should be; `None` changes nothing.
    fn look(&mut self, world: &World<'_>) -> Option<u32>;
    /// Whether it hears of a change at once.
    fn hears(&self) -> bool {
        false
    }
    /// Hears of a change: the queue left or reached zero or doubled, or a replica changed.
    fn pushed(&mut self, _world: &World<'_>) -> Option<u32> {
        None
    }
}

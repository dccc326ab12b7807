//! The interface of an autoscaler in a world.

use super::{Hold, Victim, World};
use crate::replay::trace::Us;

/// The rules for requests and replicas under a contestant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    pub(crate) hold: Hold,
    pub(crate) victim: Victim,
    /// A higher count takes draining replicas back before it starts new ones.
    pub(crate) revives_draining: bool,
    /// How long a replica drains before its streams move to others; `None`: they finish there.
    pub(crate) move_after: Option<Us>,
    /// More replicas may be started at any time, so the gateway refuses nothing for its expected wait:
    /// the model does not learn how long starts take.
    pub(crate) scales: bool,
    /// The gateway starts slowly at a new replica, and learns its limit if the pool says so: Forebay's.
    pub(crate) measures_room: bool,
    /// Replicas that are ready as the trace begins.
    pub(crate) initial_replicas: u32,
}

/// Sets the count of replicas.
pub(crate) trait Contestant {
    fn rules(&self) -> Rules;
    /// The time of its next look.
    fn next_look(&self) -> Us;
    /// Looks, and returns the new count; `None` changes nothing.
    fn look(&mut self, world: &World<'_>) -> Option<u32>;
    /// Whether the gateway pushes changes to it.
    fn wants_pushes(&self) -> bool {
        false
    }
    /// Receives a push: the queue left or reached zero or doubled, or a replica changed.
    fn on_push(&mut self, _world: &World<'_>) -> Option<u32> {
        None
    }
}

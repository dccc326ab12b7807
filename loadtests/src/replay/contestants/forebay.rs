//! Forebay itself: the running scaler's merge and decide on the gateway's own signals.

use forebay_scaler::core::merge::Word;
use forebay_scaler::core::{Inputs, Policy, State, decide, merge};

use super::{Contestant, Rules};
use crate::replay::trace::{SECOND, Us};
use crate::replay::world::{Hold, Victim, World};

/// The scaler's state of one pool.
pub(crate) struct Forebay {
    policy: Policy,
    stale_after_ms: u64,
    state: State,
    next: Us,
}

impl Forebay {
    pub(crate) fn new(pool: &forebay_config::Pool, scaler: &forebay_config::Scaler) -> Self {
        Self {
            policy: Policy::of(pool),
            stale_after_ms: scaler.stale_after.as_millis() as u64,
            state: State::default(),
            next: 0,
        }
    }
}

impl Contestant for Forebay {
    fn rules(&self) -> Rules {
        Rules {
            hold: Hold::UntilRoom,
            victim: Victim::LeastBusy,
            keeps_draining: true,
            begins_with: self.policy.min,
        }
    }

    fn next(&self) -> Us {
        self.next
    }

    /// Once a second in any case.
    fn look(&mut self, world: &World<'_>) -> Option<u32> {
        self.next = world.now() + SECOND;
        self.pushed(world)
    }

    fn hears(&self) -> bool {
        true
    }

    fn pushed(&mut self, world: &World<'_>) -> Option<u32> {
        let signals = world.signals();
        let load = merge([Word::Now(&signals)], self.stale_after_ms);
        let inputs = Inputs { load, ready: world.counts().ready, failed: 0, ejected: 0 };
        let decision = decide(&mut self.state, inputs, &self.policy, world.now_ms());
        Some(decision.desired)
    }
}

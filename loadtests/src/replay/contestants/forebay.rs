//! Forebay itself: the running scaler's merge, triggers and decision on the gateway's own signals.

use forebay_config::{Config, Pool};
use forebay_scaler::decide::{
    Inputs, Ledger, Override, Policy, Reading, ReplicaFacts, Replicas, Standing, State, Triggers,
    Wanted, Word, decide,
};

use super::{Contestant, Rules};
use crate::replay::trace::{SECOND, Us};
use crate::replay::world::{Hold, Seen, Victim, World};

/// The one gateway of the rehearsal.
const GATEWAY: usize = 0;

/// The scaler's state of one pool.
pub(crate) struct Forebay {
    policy: Policy,
    stale_after_ms: u64,
    ledger: Ledger,
    triggers: Triggers,
    wanted: Vec<Option<Wanted>>,
    state: State,
    next: Us,
}

impl Forebay {
    pub(crate) fn new(pool: &Pool, config: &Config) -> Self {
        let triggers = Triggers::of(pool, &config.prometheus);
        Self {
            policy: Policy::of(pool),
            stale_after_ms: config.scaler.stale_after.as_millis() as u64,
            ledger: Ledger::default(),
            wanted: triggers.wanted(),
            triggers,
            state: State::default(),
            next: 0,
        }
    }

    /// What the scaler would read from the replicas themselves: the KV cache's use is in the model.
    fn readings(&self, world: &World<'_>) -> Vec<Option<Reading>> {
        let reading = |wanted: &Option<Wanted>| match wanted {
            Some(Wanted::KvCache) => {
                let ready = world.fleet().filter(|replica| replica.ready);
                let usage: Vec<f64> = ready.map(|replica| replica.batch.kv_usage()).collect();
                let mean = usage.iter().sum::<f64>() / usage.len() as f64;
                let value = Ok((!usage.is_empty()).then_some(mean));
                Some(Reading { at_ms: world.now_ms(), value, partial: None })
            }
            _ => None,
        };
        self.wanted.iter().map(reading).collect()
    }
}

/// Whether a rehearsal can know what the trigger reads.
pub(crate) fn rehearsable(pool: &Pool, config: &Config, trigger: usize) -> bool {
    let wanted = Triggers::of(pool, &config.prometheus).wanted();
    matches!(wanted.get(trigger), Some(None | Some(Wanted::KvCache)))
}

fn facts(seen: &Seen<'_>, world: &World<'_>) -> ReplicaFacts {
    let ms = |at: Us| world.began_ms + at / 1000;
    let standing = match (seen.ready, seen.started) {
        (true, _) => Standing::Ready,
        (_, Some(_)) => Standing::Starting,
        _ => Standing::Pending,
    };
    ReplicaFacts {
        standing,
        asked_ms: ms(seen.asked),
        scheduled_ms: seen.scheduled.map(ms),
        started_ms: seen.started.map(ms),
        ready_ms: seen.healthy.map(ms),
        first_token_ms: seen.first_token.map(ms),
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
        let now_ms = world.now_ms();
        self.ledger.hear(GATEWAY, "rehearsal", &world.signals());
        let load = self.ledger.load([(GATEWAY, Word::Now)], self.stale_after_ms);
        let replicas: Vec<_> =
            world.fleet().filter(|seen| !seen.draining).map(|seen| facts(&seen, world)).collect();
        let counts = Replicas { current: self.state.desired(), ready: world.counts().ready };
        let proposals = self.triggers.propose(&load, &self.readings(world), counts, now_ms);
        let order = Override::None;
        let inputs = Inputs { load: &load, replicas: &replicas, proposals: &proposals, order };
        Some(decide(&mut self.state, &inputs, &self.policy, now_ms).desired)
    }
}

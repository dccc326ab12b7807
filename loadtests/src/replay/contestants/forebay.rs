//! Forebay itself: the running scaler's merge, triggers and decision, on the model gateway's signals.

use forebay_config::{Config, Millis, Pool};
use forebay_scaler::decide::{
    Condition, Freshness, GatewayProcess, Inputs, Ledger, Override, Policy, Reading, ReplicaCounts,
    ReplicaFacts, State, Triggers, Wanted, decide,
};

use serde::Serialize;

use super::{Contestant, Rules};
use crate::replay::trace::{SECOND, Us};
use crate::replay::world::{Hold, ReplicaView, Victim, World};

/// The one gateway of the rehearsal.
const GATEWAY: usize = 0;

/// The scaler's state of one pool.
pub(crate) struct Forebay {
    policy: Policy,
    stale_after: Millis,
    move_after: Option<Us>,
    ledger: Ledger,
    triggers: Triggers,
    wanted: Vec<Option<Wanted>>,
    state: State,
    next: Us,
    changes: Vec<Change>,
}

/// A change of the count, with its reason.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Change {
    /// Seconds since the trace began.
    pub(crate) at_seconds: f64,
    pub(crate) from: u32,
    pub(crate) to: u32,
    /// The sentence that the running scaler would log.
    pub(crate) sentence: String,
}

impl Forebay {
    pub(crate) fn new(pool: &Pool, config: &Config) -> Self {
        let triggers = Triggers::of(pool, &config.prometheus);
        Self {
            policy: Policy::of(pool),
            stale_after: config.scaler.stale_after.into(),
            move_after: pool.move_after().map(|after| after.as_micros() as Us),
            ledger: Ledger::default(),
            wanted: triggers.wanted(),
            triggers,
            state: State::default(),
            next: 0,
            changes: Vec::new(),
        }
    }

    /// The same, whose draining replicas finish their streams.
    pub(crate) fn without_moves(self) -> Self {
        Self { move_after: None, ..self }
    }

    /// The changes of the count so far.
    pub(crate) fn into_changes(self) -> Vec<Change> {
        self.changes
    }

    /// The readings that the scaler would take from the replicas: the model knows the KV cache.
    fn readings(&self, world: &World<'_>) -> Vec<Option<Reading>> {
        let reading = |wanted: &Option<Wanted>| match wanted {
            Some(Wanted::KvCache) => {
                let ready = world.replicas().filter(|replica| replica.ready);
                let usage: Vec<f64> = ready.map(|replica| replica.batch.kv_usage()).collect();
                let mean = usage.iter().sum::<f64>() / usage.len() as f64;
                let value = Ok((!usage.is_empty()).then_some(mean));
                Some(Reading { at: Millis::new(world.now_ms()), value, partial: None })
            }
            _ => None,
        };
        self.wanted.iter().map(reading).collect()
    }
}

/// Whether the model has the figure that the trigger reads.
pub(crate) fn rehearsable(pool: &Pool, config: &Config, trigger: usize) -> bool {
    let wanted = Triggers::of(pool, &config.prometheus).wanted();
    matches!(wanted.get(trigger), Some(None | Some(Wanted::KvCache)))
}

fn facts(replica: &ReplicaView<'_>, world: &World<'_>) -> ReplicaFacts {
    let time = |at: Us| Millis::new(world.trace.began_ms + at / 1000);
    let condition = match (replica.ready, replica.started) {
        (true, _) => Condition::Ready,
        (_, Some(_)) => Condition::Starting,
        _ => Condition::Pending,
    };
    ReplicaFacts {
        condition,
        requested_at: time(replica.requested),
        scheduled_at: replica.scheduled.map(time),
        started_at: replica.started.map(time),
        ready_at: replica.healthy.map(time),
        first_token_at: replica.first_token.map(time),
    }
}

impl Contestant for Forebay {
    fn rules(&self) -> Rules {
        Rules {
            hold: Hold::UntilRoom,
            victim: Victim::LeastBusy,
            revives_draining: true,
            move_after: self.move_after,
            scales: true,
            measures_room: true,
            initial_replicas: self.policy.counts.min,
        }
    }

    fn next_look(&self) -> Us {
        self.next
    }

    /// Looks once a second, besides pushes.
    fn look(&mut self, world: &World<'_>) -> Option<u32> {
        self.next = world.now() + SECOND;
        self.on_push(world)
    }

    fn wants_pushes(&self) -> bool {
        true
    }

    fn on_push(&mut self, world: &World<'_>) -> Option<u32> {
        let now = Millis::new(world.now_ms());
        let process = GatewayProcess { sender: "rehearsal", began: Some(now) };
        self.ledger.record(GATEWAY, process, &world.signals(), now);
        let load = self.ledger.load([(GATEWAY, Freshness::Live)], self.stale_after);
        let replicas: Vec<_> = world
            .replicas()
            .filter(|replica| !replica.draining)
            .map(|replica| facts(&replica, world))
            .collect();
        let counts = ReplicaCounts { current: self.state.desired(), ready: world.counts().ready };
        let proposals = self.triggers.propose(&load, &self.readings(world), counts, now);
        let inputs = Inputs {
            load: &load,
            replicas: &replicas,
            proposals: &proposals,
            operator_override: Override::None,
        };
        let decision = decide(&mut self.state, &inputs, &self.policy, now);
        if decision.desired != decision.from {
            self.changes.push(Change {
                at_seconds: world.now() as f64 / SECOND as f64,
                from: decision.from,
                to: decision.desired,
                sentence: decision.sentence(),
            });
        }
        Some(decision.desired)
    }
}

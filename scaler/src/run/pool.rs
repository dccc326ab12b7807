//! One pool's way from signals to target: merge, decide, reconcile, drain.
//!
//! A replica is stopped in three steps: it is marked draining, every gateway reports it draining
//! with nothing in flight, the target stops it. Zero works the same way, under a barrier that every
//! gateway holds for; a request that is held in between lifts it and loses nothing.

mod drains;
mod hung;
mod publish;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use forebay_signals::{EndpointSignals, Health, PoolReplicas};

use crate::act::targets::{Drains, Phase, ReplicaStatus, Target};
use crate::decide::cold_start::Phases;
use crate::decide::snapshot;
use crate::decide::{
    Decision, Inputs, Ledger, Override, Policy, Reading, ReplicaFacts, Replicas, Standing, State,
    Triggers, Wanted, Why, Word, decide,
};
use crate::keda::Figures;
use crate::observe::heard::Heard;

pub(crate) use hung::Cause;
use hung::{Bounds, Replacements, Silence};

/// For how long requests wait for the orders that a store does not tell. Nothing scales down before
/// they are known, however long that takes.
const ORDERS_MS: u64 = 30_000;

/// A pool's state between decisions.
pub(crate) struct PoolLoop {
    pub(crate) name: String,
    policy: Policy,
    triggers: Triggers,
    stale_after_ms: u64,
    state: State,
    ledger: Ledger,
    /// A person's order.
    order: Override,
    /// What was kept is not read yet: a person's order may be in it.
    unread: bool,
    /// A person gave an order here.
    ordered: bool,
    /// Since when decisions go without it.
    unread_ms: Option<u64>,
    draining: BTreeSet<String>,
    stopped: BTreeSet<String>,
    ready: BTreeSet<String>,
    starts: BTreeMap<String, Start>,
    epoch: u64,
    barrier: bool,
    /// Endpoints whose pods are about to stop.
    asked: BTreeMap<SocketAddr, Asked>,
    why: String,
    /// What keeps the target from doing what it is told.
    trouble: Option<String>,
    /// When a gateway was first heard; what is there soon after is taken over.
    heard_ms: Option<u64>,
    /// At zero nothing is left to do: every gateway holds, and nothing is in flight.
    closed: bool,
    /// What KEDA may ask for.
    figures: Option<Figures>,
    /// When replicas are replaced, where any is.
    bounds: Option<Bounds>,
    replacements: Replacements,
}

/// A replica that is to drain.
struct Asked {
    at_ms: u64,
    /// The one that was there: what comes to its address later was not meant.
    id: Option<String>,
}

/// A replica's present start.
struct Start {
    /// When it was asked for, or when a later start after a death was seen.
    since_ms: u64,
    /// The target's own time of it; 0 before.
    started_ms: u64,
    /// It began before anybody looked.
    inherited: bool,
    /// When a gateway found it healthy.
    ready_ms: Option<u64>,
    /// When it was first seen to have answered something.
    first_token_ms: Option<u64>,
    silence: Silence,
    /// It is to be ended and started anew, for this reason.
    replaced: Option<String>,
}

impl Start {
    fn new(since_ms: u64, started_ms: u64) -> Self {
        Self {
            since_ms,
            started_ms,
            inherited: false,
            ready_ms: None,
            first_token_ms: None,
            silence: Silence::default(),
            replaced: None,
        }
    }
}

/// What a step led to.
pub(crate) struct Step {
    pub(crate) decision: Decision,
    pub(crate) replicas: PoolReplicas,
    /// Starts that ended ready, in seconds.
    pub(crate) cold_starts: Vec<f64>,
    /// Why a replica is replaced from now on, where one is.
    pub(crate) replaced: Option<Cause>,
}

impl PoolLoop {
    /// `prometheus` is asked by triggers that name no server.
    pub(crate) fn new(
        pool: &forebay_config::Pool,
        prometheus: &forebay_config::Prometheus,
        stale_after_ms: u64,
    ) -> Self {
        Self {
            name: pool.name.clone(),
            policy: Policy::of(pool),
            triggers: Triggers::of(pool, prometheus),
            stale_after_ms,
            state: State::default(),
            ledger: Ledger::default(),
            order: Override::None,
            unread: false,
            ordered: false,
            unread_ms: None,
            draining: BTreeSet::new(),
            stopped: BTreeSet::new(),
            ready: BTreeSet::new(),
            starts: BTreeMap::new(),
            epoch: 0,
            barrier: false,
            asked: BTreeMap::new(),
            why: String::new(),
            trouble: None,
            heard_ms: None,
            closed: false,
            figures: matches!(pool.target, Some(forebay_config::Target::Keda(_)))
                .then(Figures::default),
            bounds: Bounds::of(pool),
            replacements: Replacements::default(),
        }
    }

    /// Goes on by other rules, with all that was learned.
    pub(crate) fn reload(
        &mut self,
        pool: &forebay_config::Pool,
        prometheus: &forebay_config::Prometheus,
        stale_after_ms: u64,
    ) {
        self.policy = Policy::of(pool);
        self.triggers = Triggers::of(pool, prometheus);
        self.stale_after_ms = stale_after_ms;
        self.bounds = Bounds::of(pool);
    }

    /// What was learned, to be kept.
    pub(crate) fn snapshot(&self) -> String {
        snapshot::save(&self.state, self.order)
    }

    /// A person's order, which comes before one that was kept.
    pub(crate) fn order(&mut self, order: Override) {
        self.order = order;
        (self.unread, self.ordered) = (false, true);
    }

    /// What was learned before can't be read yet.
    pub(crate) fn await_restore(&mut self) {
        self.unread = true;
    }

    /// Takes over what was learned before, if anything was.
    pub(crate) fn restore(&mut self, text: Option<&str>) {
        self.unread = false;
        let Some(text) = text else { return };
        match snapshot::restore(&mut self.state, text) {
            Ok(order) if !self.ordered => self.order = order,
            Ok(_) => {}
            Err(why) => {
                let name = &self.name;
                tracing::warn!("{name}: what was learned before is not used, {why}");
            }
        }
    }

    /// Goes on from what a leader before told.
    pub(crate) fn follow(&mut self, told: &PoolReplicas) {
        if let Some(figures) = &mut self.figures {
            figures.follow(&told.figures);
        }
    }

    /// How long starts take, by phase.
    pub(crate) fn phases(&self) -> Phases {
        self.state.cold_starts().phases()
    }

    /// It is on its way somewhere, or goes by figures that gateways don't tell: each second counts.
    pub(crate) fn is_restless(&self) -> bool {
        let settled = self.ready.len() as u32 == self.state.desired();
        !settled
            || self.barrier
            || !self.draining.is_empty()
            || !self.stopped.is_empty()
            || !self.asked.is_empty()
            || self.trouble.is_some()
            || self.order != Override::None
            || self.figures.is_some()
            || !self.triggers.wanted().is_empty()
    }

    /// `maxReplicaCount`.
    pub(crate) fn most(&self) -> u32 {
        self.policy.max
    }

    /// What has to be read elsewhere, for each trigger in order.
    pub(crate) fn wanted(&self) -> Vec<Option<Wanted>> {
        self.triggers.wanted()
    }

    /// One decision and what follows from it. `readings` are of what is wanted, in its order.
    pub(crate) fn step(
        &mut self,
        heard: &[Heard<'_>],
        statuses: &BTreeMap<String, ReplicaStatus>,
        readings: &[Option<Reading>],
        target: &impl Target,
        now_ms: u64,
    ) -> Step {
        let statuses = self.with_asked(statuses, now_ms);
        let statuses = &*statuses;
        let cold_starts = self.learn(heard, statuses, target, now_ms);
        let going = |status: &&ReplicaStatus| {
            status.phase != Phase::Stopping && !self.stopped.contains(&status.id)
        };
        let alive: Vec<_> = statuses.values().filter(going).collect();
        let staying = |status: &&&ReplicaStatus| !self.draining.contains(&status.id);
        let count = |test: &dyn Fn(&ReplicaStatus) -> bool| {
            alive.iter().filter(staying).filter(|status| test(status)).count() as u32
        };
        for heard in heard {
            if let Some(signals) = heard.signals {
                self.ledger.hear(heard.gateway, heard.sender, signals);
            }
        }
        self.ledger.keep(|gateway| heard.iter().any(|heard| heard.gateway == gateway));
        let words = heard
            .iter()
            .map(|heard| (heard.gateway, heard.lost_ms.map_or(Word::Now, Word::Silent)));
        let mut load = self.ledger.load(words, self.stale_after_ms);
        let mut facts: Vec<_> =
            alive.iter().filter(staying).map(|status| self.facts(status)).collect();
        if target.drains() == Drains::All && facts.iter().any(|it| it.ready_ms.is_some()) {
            // Somebody else starts them, and by more than our word: those that were not started
            // beside one that is ready are not on their way.
            let asked = (self.state.desired() as usize).max(facts.len());
            let none = ReplicaFacts { standing: Standing::Failed, ..ReplicaFacts::asked(now_ms) };
            facts.resize(asked, none);
        }
        let staying = count(&|_| true);
        let alive: Vec<_> = alive.into_iter().cloned().collect();
        let waits = self.unread.then(|| now_ms - *self.unread_ms.get_or_insert(now_ms));
        let order = match self.order {
            Override::None if waits.is_some_and(|ms| ms < ORDERS_MS) => Override::Paused,
            Override::None => target.order(),
            order => order,
        };
        let ready = facts.iter().filter(|it| it.standing == Standing::Ready).count() as u32;
        let replicas = Replicas { current: self.state.desired(), ready };
        let proposals = &self.triggers.propose(&load, readings, replicas, now_ms);
        // What a rollout has on top is not ours, now or later.
        let ours = (alive.len() as u32).saturating_sub(target.surplus());
        self.adopt(heard, ours, target.drains(), now_ms);
        // Where no gateway speaks, nothing is known of the load, which is not to be without any.
        load.missing |= !self.known() || heard.is_empty() || self.unread;
        let inputs = Inputs { load: &load, replicas: &facts, proposals, order };
        if let Some(figures) = &mut self.figures {
            figures.observe(&load, proposals, now_ms);
        }
        let mut decision = if self.known() {
            decide(&mut self.state, &inputs, &self.policy, now_ms)
        } else {
            self.hold(&inputs, now_ms)
        };
        if !target.scales() {
            self.state.keep(ours);
            decision = Decision { from: ours, desired: ours, why: Why::Unscaled, ..decision };
        }
        if decision.from != decision.desired || self.why.is_empty() {
            self.why = decision.sentence();
        }
        if decision.from != decision.desired {
            target.decided(&self.why);
        }
        self.trouble = target.trouble();
        // What a rollout has on top is not ours to take away.
        let staying = staying.saturating_sub(target.surplus());
        self.reconcile(decision.desired, staying, &alive, heard, target, now_ms);
        let drained = self.drained(heard, &alive);
        self.closed = self.known() && decision.desired == 0 && drained.len() == alive.len();
        // Those whom somebody else stops stay drained until they are gone.
        if target.drains() != Drains::All {
            for id in drained {
                target.stop(&id);
                self.draining.remove(&id);
                self.stopped.insert(id);
            }
        }
        let may = self.may_replace(load.missing, order, target.drains());
        let (hung, replaced) = self.hung_replicas(statuses, may, now_ms);
        target.replace(&hung);
        target.ensure(decision.desired + self.draining.len() as u32);
        let replicas = self.published(decision.desired, statuses);
        Step { decision, replicas, cold_starts, replaced }
    }

    fn facts(&self, status: &ReplicaStatus) -> ReplicaFacts {
        let start = self.starts.get(&status.id);
        let was_ready = start.is_some_and(|start| start.ready_ms.is_some());
        let standing = match status.phase {
            Phase::Stopping => Standing::Draining,
            Phase::Failed => Standing::Failed,
            _ if self.ready.contains(&status.id) => Standing::Ready,
            Phase::Running if was_ready => Standing::Ejected,
            Phase::Running => Standing::Starting,
            Phase::Pending => Standing::Pending,
        };
        let started_ms = Some(status.started_ms).filter(|ms| *ms > 0);
        ReplicaFacts {
            standing,
            asked_ms: start.map_or(0, |start| start.since_ms),
            scheduled_ms: status.scheduled_ms,
            started_ms,
            // What is not known to have been a start teaches nothing about starts.
            ready_ms: start.filter(|start| !start.inherited).and_then(|start| start.ready_ms),
            first_token_ms: start.and_then(|start| start.first_token_ms),
        }
    }

    /// Decides before any gateway was heard: never less than there is, and nothing is learned.
    fn hold(&mut self, inputs: &Inputs<'_>, now_ms: u64) -> Decision {
        let decision = decide(&mut self.state.clone(), inputs, &self.policy, now_ms);
        let from = self.state.desired();
        if decision.desired < from {
            return Decision { desired: from, why: Why::Unheard, ..decision };
        }
        self.state.adopt(decision.desired, now_ms);
        decision
    }

    /// Takes over the replicas that were there before this process. Where gateways alone know of
    /// them, they have just begun to look.
    fn adopt(&mut self, heard: &[Heard<'_>], alive: u32, drains: Drains, now_ms: u64) {
        let first = self.heard_ms.is_none();
        if first && heard.iter().all(|heard| heard.signals.is_none()) {
            return self.state.adopt(alive, now_ms);
        }
        let heard_ms = *self.heard_ms.get_or_insert(now_ms);
        let looking = drains == Drains::All && now_ms < heard_ms + self.stale_after_ms;
        if first || looking {
            self.state.adopt(alive, now_ms);
        }
        if first {
            self.state.heard(now_ms);
        }
    }

    /// Takes over what the gateways found healthy, and how long that took.
    fn learn(
        &mut self,
        heard: &[Heard<'_>],
        statuses: &BTreeMap<String, ReplicaStatus>,
        target: &impl Target,
        now_ms: u64,
    ) -> Vec<f64> {
        self.starts.retain(|id, _| statuses.contains_key(id));
        self.stopped.retain(|id| statuses.contains_key(id));
        self.draining.retain(|id| statuses.contains_key(id));
        self.keep_spared(statuses, target);
        let mut took = Vec::new();
        let mut ready = BTreeSet::new();
        for (id, status) in statuses {
            let first = !self.starts.contains_key(id);
            let mut new = Start::new(status.asked_ms.unwrap_or(now_ms), status.started_ms);
            new.inherited = status.inherited;
            let start = self.starts.entry(id.clone()).or_insert(new);
            if start.started_ms == 0 {
                start.started_ms = status.started_ms;
            } else if start.started_ms != status.started_ms {
                // It died and is started again: counted from here, and not healthy by hearsay.
                *start = Start::new(now_ms, status.started_ms);
                self.ready.remove(id);
            }
            // A gateway may see a replica answer before its target tells that it runs.
            if !matches!(status.phase, Phase::Pending | Phase::Running) {
                continue;
            }
            start.silence.observe(current_endpoints(heard, status), now_ms);
            let seen = |health| endpoints(heard, status).any(|e| e.health == health);
            // Draining it is no less alive for it, also as long as a gateway has not heard that it
            // is kept after all.
            let draining = self.draining.contains(id) || seen(Health::Draining);
            let kept = draining && self.ready.contains(id);
            if !seen(Health::Ready) && !kept {
                continue;
            }
            start.replaced = None;
            // One that comes back after an ejection did not start.
            if start.ready_ms.replace(start.ready_ms.unwrap_or(now_ms)).is_none() {
                target.ready(id);
                // One that is ready at first sight was so before.
                start.inherited |= first && status.asked_ms.is_none() && status.started_ms == 0;
                if start.inherited {
                    tracing::info!("{}: replica {id} is ready", self.name);
                } else {
                    let seconds = now_ms.saturating_sub(start.since_ms) as f64 / 1000.0;
                    tracing::info!("{}: replica {id} ready after {seconds:.1} s", self.name);
                    took.push(seconds);
                }
            }
            let answered = |e: &EndpointSignals| e.completed > 0 || e.generated_tokens > 0;
            if start.first_token_ms.is_none() && endpoints(heard, status).any(answered) {
                start.first_token_ms = Some(now_ms);
            }
            ready.insert(id.clone());
        }
        self.ready = ready;
        took
    }

    /// Whether any gateway has been heard: without one, a decision says nothing.
    pub(crate) fn known(&self) -> bool {
        self.heard_ms.is_some()
    }
}

/// A replica as each gateway sees it, or last saw it.
fn endpoints<'a>(
    heard: &'a [Heard<'a>],
    status: &ReplicaStatus,
) -> impl Iterator<Item = &'a EndpointSignals> + use<'a> {
    views(heard.iter(), status)
}

/// A replica as each gateway sees it that is heard now.
fn current_endpoints<'a>(
    heard: &'a [Heard<'a>],
    status: &ReplicaStatus,
) -> impl Iterator<Item = &'a EndpointSignals> + use<'a> {
    views(heard.iter().filter(|heard| heard.lost_ms.is_none()), status)
}

fn views<'a, H: Iterator<Item = &'a Heard<'a>>>(
    heard: H,
    status: &ReplicaStatus,
) -> impl Iterator<Item = &'a EndpointSignals> + use<'a, H> {
    let address = status.address.map(|address| address.to_string());
    heard.filter_map(move |heard| heard.signals?.endpoints.get(address.as_deref()?)?.as_ref())
}

#[cfg(test)]
mod tests;

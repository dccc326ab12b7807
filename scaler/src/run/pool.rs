//! The scaler of one pool: it merges the gateways' reports, decides, and gives the target its orders.
//!
//! A replica is stopped in three steps: it is marked as draining, every gateway reports it draining with
//! nothing in flight, the target stops it. For the last replica, every gateway also has to hold all
//! requests: that is the zero barrier. A request that arrives meanwhile is held, lifts the barrier and is
//! served.

mod drains;
mod failed_start;
mod hung;
mod overrides;
mod publish;
mod silence;
mod starts;

use std::collections::{BTreeMap, BTreeSet};

use forebay_config::Millis;
use forebay_signals::{FailedStart, PoolReplicas, PoolSignals};

use crate::act::targets::{Drains, ReplicaStatus, ScaleTarget};
use crate::decide::cold_start::Phases;
use crate::decide::snapshot;
use crate::decide::{
    Condition, Decision, Freshness, GatewayProcess, Inputs, Ledger, Load, Order, Override, Policy,
    Reading, ReplicaCounts, ReplicaFacts, State, Triggers, Wanted, Why, decide,
};
use crate::keda::PoolFigures;
use crate::observe::feeds::LastReport;

use drains::Departures;
pub(crate) use hung::Cause;
use hung::{Bounds, Replacements};
use overrides::StandingOverride;
use starts::Start;

/// One pool's scaler, with its state between decisions.
pub(crate) struct PoolScaler {
    pub(crate) name: String,
    rules: PoolRules,
    state: State,
    ledger: Ledger,
    operator_override: StandingOverride,
    departures: Departures,
    roster: Roster,
    explanation: Explanation,
    /// The time of the first report of a gateway. Replicas found soon after are adopted.
    first_report: Option<Millis>,
    /// The figures that KEDA may ask for.
    figures: Option<PoolFigures>,
}

/// The rules of a pool, as configured.
struct PoolRules {
    policy: Policy,
    triggers: Triggers,
    stale_after: Millis,
    /// When replicas are replaced, if ever.
    bounds: Option<Bounds>,
    /// Whether clients may read the detail of a failed start.
    shows_detail: bool,
}

/// The replicas of a pool, with their starts.
#[derive(Default)]
struct Roster {
    /// Replicas that a gateway finds ready.
    ready: BTreeSet<String>,
    starts: BTreeMap<String, Start>,
    replacements: Replacements,
    /// The failure of its starts, while no replica is expected.
    failed_start: Option<FailedStart>,
}

/// The reasons that are published with the count.
#[derive(Default)]
struct Explanation {
    /// The decision that last changed the count.
    why: String,
    /// The reason why the target can't carry out its orders.
    trouble: Option<String>,
}

impl PoolRules {
    fn of(
        pool: &forebay_config::Pool,
        prometheus: &forebay_config::Prometheus,
        stale_after: Millis,
    ) -> Self {
        Self {
            policy: Policy::of(pool),
            triggers: Triggers::of(pool, prometheus),
            stale_after,
            bounds: Bounds::of(pool),
            shows_detail: failed_start::shows_detail(pool),
        }
    }
}

/// The results of a step.
pub(crate) struct Step {
    pub(crate) decision: Decision,
    pub(crate) replicas: PoolReplicas,
    /// The merged load.
    pub(crate) load: Load,
    pub(crate) operator_override: Override,
    /// The decision that last changed the count.
    pub(crate) why: String,
    /// The reason why the target can't carry out its orders.
    pub(crate) trouble: Option<String>,
    /// Starts that ended ready, in seconds.
    pub(crate) cold_starts: Vec<f64>,
    /// How long the oldest start under way has taken; zero if none is.
    pub(crate) longest_start: Millis,
    /// The reason for a replacement that begins with this step.
    pub(crate) replaced: Option<Cause>,
}

impl PoolScaler {
    /// `prometheus` serves triggers that name no server.
    pub(crate) fn new(
        pool: &forebay_config::Pool,
        prometheus: &forebay_config::Prometheus,
        stale_after: Millis,
    ) -> Self {
        let by_keda = matches!(pool.target, Some(forebay_config::Target::Keda(_)));
        Self {
            name: pool.name.clone(),
            rules: PoolRules::of(pool, prometheus, stale_after),
            state: State::default(),
            ledger: Ledger::default(),
            operator_override: StandingOverride::default(),
            departures: Departures::default(),
            roster: Roster::default(),
            explanation: Explanation::default(),
            first_report: None,
            figures: by_keda.then(PoolFigures::default),
        }
    }

    /// Applies other rules, and keeps all that was learned.
    pub(crate) fn reload(
        &mut self,
        pool: &forebay_config::Pool,
        prometheus: &forebay_config::Prometheus,
        stale_after: Millis,
    ) {
        self.rules = PoolRules::of(pool, prometheus, stale_after);
    }

    /// The learned figures and the override, as text to save.
    pub(crate) fn snapshot(&self) -> String {
        snapshot::save(&self.state, self.operator_override.current())
    }

    /// Sets an operator's override. A saved one is then ignored.
    pub(crate) fn set_override(&mut self, new: Override) {
        self.operator_override.set(new);
    }

    /// Has the next decision carry out an operator's order.
    pub(crate) fn order(&mut self, order: Order) {
        self.state.order(order);
    }

    /// The override in force: an operator's here, or else at the target.
    pub(crate) fn standing_override(&self, target: &impl ScaleTarget) -> Override {
        match self.operator_override.current() {
            Override::None => target.operator_override(),
            current => current,
        }
    }

    /// Replicas of the idle pool.
    pub(crate) fn idle_count(&self) -> u32 {
        self.rules.policy.counts.idle
    }

    /// When each replica's present start was requested.
    pub(crate) fn start_times(&self) -> BTreeMap<String, Millis> {
        let starts = self.roster.starts.iter();
        starts.map(|(id, start)| (id.clone(), start.since)).collect()
    }

    /// Marks the snapshot as not read yet.
    pub(crate) fn await_restore(&mut self) {
        self.operator_override.await_saved();
    }

    /// Restores the snapshot, if there is one.
    pub(crate) fn restore(&mut self, text: Option<&str>) {
        let saved = text.map(|text| snapshot::restore(&mut self.state, text));
        match saved.transpose() {
            Ok(saved) => self.operator_override.restore(saved),
            Err(why) => {
                self.operator_override.restore(None);
                let name = &self.name;
                tracing::warn!("{name}: the saved figures are not used: {why}");
            }
        }
    }

    /// Takes over the figures that an earlier leader published.
    pub(crate) fn follow(&mut self, published: &PoolReplicas) {
        if let Some(figures) = &mut self.figures {
            figures.follow(&published.figures);
        }
    }

    /// The durations of starts, by phase.
    pub(crate) fn phases(&self) -> Phases {
        self.state.cold_starts().phases()
    }

    /// Whether nothing is under way, and no figure comes from elsewhere: then a decision can wait.
    pub(crate) fn is_settled(&self) -> bool {
        self.roster.ready.len() as u32 == self.state.desired()
            && !self.departures.barrier
            && self.departures.draining.is_empty()
            && self.departures.stopped.is_empty()
            && self.departures.requested.is_empty()
            && self.explanation.trouble.is_none()
            && self.operator_override.current() == Override::None
            && self.figures.is_none()
            && self.rules.triggers.wanted().is_empty()
    }

    /// `maxReplicaCount`.
    pub(crate) fn most(&self) -> u32 {
        self.rules.policy.counts.max
    }

    /// The figures to read elsewhere, for each trigger in order.
    pub(crate) fn wanted(&self) -> Vec<Option<Wanted>> {
        self.rules.triggers.wanted()
    }

    /// Decides once, and applies the decision. `readings` are those of [`wanted`](Self::wanted).
    pub(crate) fn step(
        &mut self,
        reports: &[LastReport<'_>],
        statuses: &BTreeMap<String, ReplicaStatus>,
        readings: &[Option<Reading>],
        target: &impl ScaleTarget,
        now: Millis,
    ) -> Step {
        let statuses = self.with_requested(statuses, now);
        let statuses = &*statuses;
        let cold_starts = self.learn(reports, statuses, target, now);
        let going = |status: &&ReplicaStatus| {
            status.condition != Condition::Draining && !self.departures.stopped.contains(&status.id)
        };
        let alive: Vec<_> = statuses.values().filter(going).collect();
        let staying = |status: &&&ReplicaStatus| !self.departures.draining.contains(&status.id);
        let count = |test: &dyn Fn(&ReplicaStatus) -> bool| {
            alive.iter().filter(staying).filter(|status| test(status)).count() as u32
        };
        merge(&mut self.ledger, reports, now);
        let feeds = reports.iter().map(|report| {
            (report.gateway, report.silent_for.map_or(Freshness::Live, Freshness::Silent))
        });
        let mut load = self.ledger.load(feeds, self.rules.stale_after);
        let mut facts: Vec<_> =
            alive.iter().filter(staying).map(|status| self.facts(status)).collect();
        if target.drains() == Drains::All && facts.iter().any(|facts| facts.ready_at.is_some()) {
            // Another party starts the replicas, and may start fewer than decided. Once one of them is
            // ready, replicas that the party has not started count as failed rather than as starting.
            let requested = (self.state.desired() as usize).max(facts.len());
            let none =
                ReplicaFacts { condition: Condition::Failed, ..ReplicaFacts::requested(now) };
            facts.resize(requested, none);
        }
        let staying = count(&|_| true);
        self.note_failure(&alive, target, now);
        let held = load.held;
        if self.roster.failed_start.is_some() {
            // Gateways refuse all requests, and report them as held. That one keeps the tries going; for
            // the others more replicas would be started in vain.
            load.held = load.held.min(1);
        }
        let alive: Vec<_> = alive.into_iter().cloned().collect();
        let operator_override = self.operator_override.effective(target.operator_override(), now);
        let starting = facts
            .iter()
            .filter(|facts| matches!(facts.condition, Condition::Pending | Condition::Starting));
        let longest_start = starting.map(|facts| now.since(facts.requested_at)).max();
        let is_ready = |facts: &&ReplicaFacts| facts.condition == Condition::Ready;
        let ready = facts.iter().filter(is_ready).count() as u32;
        let replicas = ReplicaCounts { current: self.state.desired(), ready };
        let proposals = &self.rules.triggers.propose(&load, readings, replicas, now);
        // A rollout's extra replicas are not ours, now or later.
        let ours = (alive.len() as u32).saturating_sub(target.surplus());
        self.adopt(reports, ours, target.drains(), now);
        // Without any report the load is unknown, rather than zero.
        load.missing |=
            !self.has_report() || reports.is_empty() || self.operator_override.is_unread();
        let inputs = Inputs { load: &load, replicas: &facts, proposals, operator_override };
        if let Some(figures) = &mut self.figures {
            figures.observe(&load, proposals, now);
        }
        let mut decision = if self.has_report() {
            decide(&mut self.state, &inputs, &self.rules.policy, now)
        } else {
            self.decide_unheard(&inputs, now)
        };
        if !target.scales() {
            self.state.keep(ours);
            decision = Decision { from: ours, desired: ours, why: Why::Unscaled, ..decision };
        }
        if decision.from != decision.desired || self.explanation.why.is_empty() {
            self.explanation.why = decision.sentence();
        }
        if decision.from != decision.desired {
            target.decided(&self.explanation.why);
        }
        self.explanation.trouble = target.trouble();
        // A rollout's extra replicas are not ours to stop.
        let staying = staying.saturating_sub(target.surplus());
        self.reconcile(decision.desired, staying, &alive, reports, target, now);
        let drained = self.drained(reports, &alive);
        self.departures.closed =
            self.has_report() && decision.desired == 0 && drained.len() == alive.len();
        // Replicas that another party stops stay drained until they are gone.
        if target.drains() != Drains::All {
            for id in drained {
                target.stop(&id);
                self.departures.draining.remove(&id);
                self.departures.stopped.insert(id);
            }
        }
        let may = self.may_replace(load.missing, operator_override, target.drains());
        let (hung, replaced) = self.hung_replicas(statuses, may, now);
        target.replace(&hung);
        target.ensure(decision.desired + self.departures.draining.len() as u32);
        let replicas = self.published(decision.desired, statuses);
        let longest_start = longest_start.unwrap_or_default();
        Step {
            decision,
            replicas,
            load: Load { held, ..load },
            operator_override,
            why: self.explanation.why.clone(),
            trouble: self.explanation.trouble.clone(),
            cold_starts,
            longest_start,
            replaced,
        }
    }

    /// The condition of a replica: the target's, refined by the gateways' reports and by what this
    /// loop has ordered.
    fn condition(&self, status: &ReplicaStatus) -> Condition {
        let id = &status.id;
        let leaves = self.departures.draining.contains(id) || self.departures.stopped.contains(id);
        let was_ready = || self.roster.starts.get(id).is_some_and(|start| start.ready_at.is_some());
        match status.condition {
            _ if leaves => Condition::Draining,
            Condition::Draining | Condition::Failed => status.condition,
            _ if self.roster.ready.contains(id) => Condition::Ready,
            Condition::Starting if was_ready() => Condition::Ejected,
            condition => condition,
        }
    }

    fn facts(&self, status: &ReplicaStatus) -> ReplicaFacts {
        let start = self.roster.starts.get(&status.id);
        ReplicaFacts {
            condition: self.condition(status),
            requested_at: start.map_or(Millis::ZERO, |start| start.since),
            scheduled_at: status.scheduled_at,
            started_at: status.started_at,
            // A start that was not observed from its beginning teaches nothing.
            ready_at: start.filter(|start| !start.inherited).and_then(|start| start.ready_at),
            first_token_at: start.and_then(|start| start.first_token_at),
        }
    }

    /// Decides before any gateway has reported: the count never falls, and nothing is learned.
    fn decide_unheard(&mut self, inputs: &Inputs<'_>, now: Millis) -> Decision {
        let decision = decide(&mut self.state.clone(), inputs, &self.rules.policy, now);
        let from = self.state.desired();
        if decision.desired < from {
            return Decision { desired: from, why: Why::Unheard, ..decision };
        }
        self.state.adopt(decision.desired, now);
        decision
    }

    /// Adopts the replicas of an earlier process. Replicas that only gateways know are adopted until
    /// `stale_after` has passed since the first report.
    fn adopt(&mut self, reports: &[LastReport<'_>], alive: u32, drains: Drains, now: Millis) {
        let first = self.first_report.is_none();
        if first && reports.iter().all(|report| report.signals.is_none()) {
            return self.state.adopt(alive, now);
        }
        let first_report = *self.first_report.get_or_insert(now);
        let looking = drains == Drains::All && now < first_report + self.rules.stale_after;
        if first || looking {
            self.state.adopt(alive, now);
        }
        if first {
            self.state.begin_observing(now);
        }
    }

    /// Whether any gateway has reported. Before that a decision means nothing.
    pub(crate) fn has_report(&self) -> bool {
        self.first_report.is_some()
    }
}

/// Records the reports of all gateways.
fn merge(ledger: &mut Ledger, reports: &[LastReport<'_>], now: Millis) {
    let nothing = PoolSignals::default();
    for report in reports {
        // A connected gateway that does not have the pool yet counts from zero.
        let connected = !report.sender.is_empty() && report.silent_for.is_none();
        let Some(signals) = report.signals.or(connected.then_some(&nothing)) else { continue };
        let began = report.up_for.map(|up| now.since(up));
        ledger.record(
            report.gateway,
            GatewayProcess { sender: report.sender, began },
            signals,
            now,
        );
    }
    ledger.keep(|gateway| reports.iter().any(|report| report.gateway == gateway), now);
}

#[cfg(test)]
mod tests;

//! Every figure of the scaler on `/metrics`.

use std::collections::BTreeMap;

use metrics::{
    Counter, Gauge, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge,
    histogram,
};

use crate::decide::{Decision, Proposal};
use crate::run::pool::Cause;

const DESIRED: &str = "forebay_desired_replicas";
const REPLICAS: &str = "forebay_replicas";
const DECISIONS: &str = "forebay_scaling_decisions_total";
const COLD_START: &str = "forebay_cold_start_seconds";
const TRIGGER_VALUE: &str = "forebay_trigger_value";
const TRIGGER_THRESHOLD: &str = "forebay_trigger_threshold";
const TRIGGER_REPLICAS: &str = "forebay_trigger_replicas";
const TRIGGER_READABLE: &str = "forebay_trigger_readable";
const TRIGGER_AGE: &str = "forebay_trigger_age_seconds";
const TRIGGER_FAILURES: &str = "forebay_trigger_failures_total";
const REPLACEMENTS: &str = "forebay_replacements_total";
const RULE: &str = "forebay_scaling_rule";
const DEMAND: &str = "forebay_demand_replicas";
const CAPACITY: &str = "forebay_replica_requests_per_second";
const REACTION: &str = "forebay_decision_seconds";

/// Bounds for each histogram.
pub const BUCKETS: &[(&str, &[f64])] = &[
    (
        COLD_START,
        &[1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 90.0, 120.0, 180.0, 300.0, 600.0, 1800.0],
    ),
    (REACTION, &[0.00001, 0.00005, 0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05]),
];

/// Help texts.
pub fn describe() {
    forebay_system::describe();
    describe_gauge!(DESIRED, "Replicas asked for, by pool");
    describe_gauge!(REPLICAS, "Replicas, by pool and state");
    describe_counter!(DECISIONS, "Decisions that changed the count, by pool and rule");
    describe_counter!(
        REPLACEMENTS,
        "Replicas ended and started anew, by pool and reason: hung, or a start that took too long"
    );
    describe_gauge!(RULE, "1 for the rule that won last, 0 for those that won before it");
    describe_gauge!(DEMAND, "Replicas that the default algorithm asks for, by pool and reason");
    describe_gauge!(CAPACITY, "What one full replica is worth, as learned, by pool");
    describe_gauge!(TRIGGER_VALUE, "What a trigger last read; NaN where it is not known");
    describe_gauge!(TRIGGER_THRESHOLD, "What a trigger compares its value with");
    describe_gauge!(
        TRIGGER_REPLICAS,
        "Replicas that a trigger asks for; NaN where it asks for none"
    );
    describe_gauge!(
        TRIGGER_READABLE,
        "1 for a trigger that counts, 0 for one that can't be read or is left out"
    );
    describe_gauge!(TRIGGER_AGE, Unit::Seconds, "How long ago a trigger's figure was read");
    describe_counter!(
        TRIGGER_FAILURES,
        "Times that a trigger's figure could not be read any more, or could not be, by pool and trigger"
    );
    describe_histogram!(COLD_START, Unit::Seconds, "From asked for to ready, by pool");
    describe_histogram!(
        REACTION,
        Unit::Seconds,
        "From a signal's arrival to the target's being told, by pool"
    );
}

/// A pool's handles.
pub(crate) struct Metrics {
    desired: Gauge,
    capacity: Gauge,
    demands: [Gauge; 3],
    /// By rule, of which there are few.
    rules: BTreeMap<&'static str, (Gauge, Counter)>,
    rule: Option<&'static str>,
    pub(crate) cold_start: metrics::Histogram,
    pub(crate) reaction: metrics::Histogram,
    states: [Gauge; 5],
    pool: String,
    triggers: BTreeMap<String, TriggerMetrics>,
}

/// A trigger's handles.
struct TriggerMetrics {
    value: Gauge,
    threshold: Gauge,
    replicas: Gauge,
    readable: Gauge,
    age: Gauge,
    failures: Counter,
}

impl Metrics {
    pub(crate) fn register(pool: &str) -> Self {
        let pool = pool.to_owned();
        let state =
            |state: &'static str| gauge!(REPLICAS, "pool" => pool.clone(), "state" => state);
        Self {
            pool: pool.clone(),
            triggers: BTreeMap::new(),
            states: ["pending", "starting", "ready", "draining", "failed"].map(state),
            desired: gauge!(DESIRED, "pool" => pool.clone()),
            capacity: gauge!(CAPACITY, "pool" => pool.clone()),
            demands: ["recent", "backlog", "season"]
                .map(|reason| gauge!(DEMAND, "pool" => pool.clone(), "reason" => reason)),
            rules: BTreeMap::new(),
            rule: None,
            cold_start: histogram!(COLD_START, "pool" => pool.clone()),
            reaction: histogram!(REACTION, "pool" => pool),
        }
    }

    /// A decision's count, rule and figures.
    pub(crate) fn decided(&mut self, decision: &Decision) {
        self.desired.set(decision.desired);
        let figures = &decision.figures;
        for (gauge, count) in
            self.demands.iter().zip([figures.recent, figures.ahead, figures.season])
        {
            gauge.set(count);
        }
        if figures.curve.learned {
            self.capacity.set(figures.curve.full_rate());
        }
        let (pool, rule) = (&self.pool, decision.why.rule());
        let (won, changes) = self.rules.entry(rule).or_insert_with(|| {
            let labels = [("pool", pool.clone()), ("rule", rule.to_owned())];
            (gauge!(RULE, &labels), counter!(DECISIONS, &labels))
        });
        won.set(1.0);
        if decision.from != decision.desired {
            changes.increment(1);
        }
        if let Some(before) = self.rule.replace(rule).filter(|before| *before != rule)
            && let Some((gauge, _)) = self.rules.get(before)
        {
            gauge.set(0.0);
        }
    }

    /// A replica is replaced.
    pub(crate) fn replaced(&self, cause: Cause) {
        counter!(REPLACEMENTS, "pool" => self.pool.clone(), "reason" => cause.word()).increment(1);
    }

    /// In the order of [`forebay_signals::ReplicaState`].
    pub(crate) fn replicas(&self, counts: [u32; 5]) {
        for (gauge, count) in self.states.iter().zip(counts) {
            gauge.set(count);
        }
    }

    /// Triggers' names are configuration's.
    pub(crate) fn trigger(&mut self, proposal: &Proposal) {
        let pool = &self.pool;
        let new = || TriggerMetrics::register(pool, &proposal.name);
        let known = self.triggers.entry(proposal.name.clone()).or_insert_with(new);
        let replicas = proposal.replicas().map_or(f64::NAN, f64::from);
        known.value.set(proposal.figure.unwrap_or(f64::NAN));
        let threshold = Some(proposal.threshold).filter(|threshold| *threshold > 0.0);
        known.threshold.set(threshold.unwrap_or(f64::NAN));
        known.replicas.set(replicas);
        known.readable.set(if proposal.problem.is_none() { 1.0 } else { 0.0 });
        known.age.set(proposal.age_ms.unwrap_or(0) as f64 / 1000.0);
    }

    /// A trigger that could be read can't be any more.
    pub(crate) fn trigger_failed(&self, trigger: &str) {
        if let Some(known) = self.triggers.get(trigger) {
            known.failures.increment(1);
        }
    }
}

impl TriggerMetrics {
    fn register(pool: &str, trigger: &str) -> Self {
        let gauge = |name: &'static str| gauge!(name, "pool" => pool.to_owned(), "trigger" => trigger.to_owned());
        Self {
            value: gauge(TRIGGER_VALUE),
            threshold: gauge(TRIGGER_THRESHOLD),
            replicas: gauge(TRIGGER_REPLICAS),
            readable: gauge(TRIGGER_READABLE),
            age: gauge(TRIGGER_AGE),
            failures: counter!(TRIGGER_FAILURES, "pool" => pool.to_owned(), "trigger" => trigger.to_owned()),
        }
    }
}

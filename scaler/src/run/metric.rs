//! The scaler's metrics on `/metrics`.

use std::collections::BTreeMap;

use forebay_base::WITHDRAWN;
use forebay_config::{Millis, Scaling};
use forebay_signals::ColdStart;
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
const START_FAILING: &str = "forebay_start_failing";
const REPLACEMENTS: &str = "forebay_replacements_total";
const LEADING: &str = "forebay_scaler_leading";
const GATEWAYS: &str = "forebay_gateways";
const MAXIMUM: &str = "forebay_max_replicas";
const OBJECTIVE_SHARE: &str = "forebay_objective_share";
const OBJECTIVE_TTFT: &str = "forebay_objective_ttft_seconds";
const LONGEST_START: &str = "forebay_longest_start_seconds";
const LEARNED_COLD_START: &str = "forebay_learned_cold_start_seconds";
const RULE: &str = "forebay_scaling_rule";
const DEMAND: &str = "forebay_demand_replicas";
const CAPACITY: &str = "forebay_replica_requests_per_second";
const REACTION: &str = "forebay_decision_seconds";

/// Bucket bounds of each histogram.
pub const BUCKETS: &[(&str, &[f64])] = &[
    (
        COLD_START,
        &[1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 90.0, 120.0, 180.0, 300.0, 600.0, 1800.0],
    ),
    (REACTION, &[0.00001, 0.00005, 0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05]),
];

/// Registers the help texts.
pub fn describe() {
    describe_gauge!(DESIRED, "Replicas that the scaler wants, by pool");
    describe_gauge!(MAXIMUM, "maxReplicaCount, by pool");
    describe_gauge!(OBJECTIVE_SHARE, "The objective's share, by pool");
    describe_gauge!(OBJECTIVE_TTFT, Unit::Seconds, "The objective's TTFT, by pool");
    describe_gauge!(
        LONGEST_START,
        Unit::Seconds,
        "Time since the oldest start under way was requested, by pool; 0 if none is under way"
    );
    describe_gauge!(LEADING, "1 while this scaler decides, 0 while another one does");
    describe_gauge!(GATEWAYS, "Gateways, by state: heard, or silent");
    describe_gauge!(
        LEARNED_COLD_START,
        Unit::Seconds,
        "Median and 90th percentile of the last cold starts, by pool and quantile"
    );
    describe_gauge!(REPLICAS, "Replicas, by pool and state");
    describe_counter!(DECISIONS, "Decisions that changed the count, by pool and rule");
    describe_counter!(
        REPLACEMENTS,
        "Replicas ended and started anew, by pool and reason: hung, or a start that took too long"
    );
    describe_gauge!(
        START_FAILING,
        "1 while no replica can be started and requests are refused for it, by pool"
    );
    describe_gauge!(RULE, "1 for the rule that won last, 0 for rules that won before");
    describe_gauge!(DEMAND, "Replicas that the default algorithm asks for, by pool and reason");
    describe_gauge!(CAPACITY, "Learned throughput of one full replica, by pool");
    describe_gauge!(TRIGGER_VALUE, "The last value of a trigger; NaN if unknown");
    describe_gauge!(TRIGGER_THRESHOLD, "The threshold that a trigger compares its value with");
    describe_gauge!(TRIGGER_REPLICAS, "Replicas that a trigger proposes; NaN if it proposes none");
    describe_gauge!(
        TRIGGER_READABLE,
        "0 for a trigger that can't be read or is ignored, 1 for any other, by pool and trigger"
    );
    describe_gauge!(TRIGGER_AGE, Unit::Seconds, "Age of a trigger's figure");
    describe_counter!(
        TRIGGER_FAILURES,
        "Times that a trigger's figure became unreadable, by pool and trigger"
    );
    describe_histogram!(COLD_START, Unit::Seconds, "Request of a replica to ready, by pool");
    describe_histogram!(
        REACTION,
        Unit::Seconds,
        "Arrival of a signal to the order to the target, by pool"
    );
}

/// Records whether this scaler decides.
pub(crate) fn leads(leads: bool) {
    gauge!(LEADING).set(if leads { 1.0 } else { 0.0 });
}

/// Records how many gateways are heard, and how many are silent.
pub(crate) fn gateways(heard: u32, silent: u32) {
    gauge!(GATEWAYS, "state" => "heard").set(heard);
    gauge!(GATEWAYS, "state" => "silent").set(silent);
}

/// A pool's metrics. Its gauges are withdrawn when it is dropped.
pub(crate) struct Metrics {
    gauges: PoolGauges,
    desired: Gauge,
    /// As configured: maxReplicaCount, the objective's share and its TTFT.
    configured: [Gauge; 3],
    starts: StartMetrics,
    capacity: Gauge,
    demands: [Gauge; 3],
    /// Shown once `targetConcurrency` asks for a count.
    concurrency: Option<Gauge>,
    /// By rule; there are few rules.
    rules: BTreeMap<&'static str, (Gauge, Counter)>,
    rule: Option<&'static str>,
    pub(crate) reaction: metrics::Histogram,
    states: [Gauge; 5],
    triggers: BTreeMap<String, TriggerMetrics>,
}

/// The gauges of a pool that only the scaler that decides can set. Each is shown once it is set.
struct PoolGauges {
    pool: String,
    all: Vec<Gauge>,
}

/// Metrics of a pool's starts.
struct StartMetrics {
    cold_start: metrics::Histogram,
    longest: Gauge,
    failing: Gauge,
    /// The median of the last ones, and the 90th percentile.
    learned: [Gauge; 2],
}

/// A trigger's metrics.
struct TriggerMetrics {
    value: Gauge,
    threshold: Gauge,
    replicas: Gauge,
    readable: Gauge,
    age: Gauge,
    failures: Counter,
}

impl PoolGauges {
    fn plain(&mut self, name: &'static str) -> Gauge {
        self.keep(gauge!(name, "pool" => self.pool.clone()))
    }

    fn labelled(&mut self, name: &'static str, label: &'static str, value: &str) -> Gauge {
        self.keep(gauge!(name, "pool" => self.pool.clone(), label => value.to_owned()))
    }

    fn keep(&mut self, gauge: Gauge) -> Gauge {
        gauge.set(WITHDRAWN);
        self.all.push(gauge.clone());
        gauge
    }

    fn withdraw(&self) {
        self.all.iter().for_each(|gauge| gauge.set(WITHDRAWN));
    }
}

impl Drop for Metrics {
    fn drop(&mut self) {
        self.gauges.withdraw();
        self.configured.iter().for_each(|gauge| gauge.set(WITHDRAWN));
    }
}

impl Metrics {
    pub(crate) fn register(pool: &str) -> Self {
        let pool = pool.to_owned();
        let mut gauges = PoolGauges { pool: pool.clone(), all: Vec::new() };
        Self {
            triggers: BTreeMap::new(),
            states: ["pending", "starting", "ready", "draining", "failed"]
                .map(|state| gauges.labelled(REPLICAS, "state", state)),
            desired: gauges.plain(DESIRED),
            configured: [MAXIMUM, OBJECTIVE_SHARE, OBJECTIVE_TTFT]
                .map(|name| gauge!(name, "pool" => pool.clone())),
            starts: StartMetrics {
                cold_start: histogram!(COLD_START, "pool" => pool.clone()),
                longest: gauges.plain(LONGEST_START),
                failing: gauges.plain(START_FAILING),
                learned: ["0.5", "0.9"]
                    .map(|quantile| gauges.labelled(LEARNED_COLD_START, "quantile", quantile)),
            },
            capacity: gauges.plain(CAPACITY),
            demands: ["recent", "backlog", "season"]
                .map(|reason| gauges.labelled(DEMAND, "reason", reason)),
            concurrency: None,
            rules: BTreeMap::new(),
            rule: None,
            reaction: histogram!(REACTION, "pool" => pool),
            gauges,
        }
    }

    /// Withdraws what only decisions tell, until the next one. What is configured stays.
    pub(crate) fn withdraw(&mut self) {
        self.gauges.withdraw();
        self.rule = None;
    }

    /// Records a decision's count, rule and figures.
    pub(crate) fn decided(&mut self, decision: &Decision) {
        self.desired.set(decision.desired);
        let figures = &decision.figures;
        for (gauge, count) in
            self.demands.iter().zip([figures.recent, figures.backlog, figures.season])
        {
            gauge.set(count);
        }
        if let Some(count) = figures.concurrency {
            let gauges = &mut self.gauges;
            let new = || gauges.labelled(DEMAND, "reason", "concurrency");
            self.concurrency.get_or_insert_with(new).set(count);
        }
        if figures.curve.learned {
            self.capacity.set(figures.curve.full_rate());
        }
        let (gauges, rule) = (&mut self.gauges, decision.why.rule());
        let (won, changes) = self.rules.entry(rule).or_insert_with(|| {
            let won = gauges.labelled(RULE, "rule", rule);
            (won, counter!(DECISIONS, "pool" => gauges.pool.clone(), "rule" => rule))
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

    /// Counts a replacement.
    pub(crate) fn replaced(&self, cause: Cause) {
        let pool = self.gauges.pool.clone();
        counter!(REPLACEMENTS, "pool" => pool, "reason" => cause.label()).increment(1);
    }

    /// Records the replicas by state, in the order of [`forebay_signals::ReplicaState`].
    pub(crate) fn replicas(&self, counts: [u32; 5]) {
        for (gauge, count) in self.states.iter().zip(counts) {
            gauge.set(count);
        }
    }

    /// Records what is configured.
    pub(crate) fn configured(&self, scaling: &Scaling) {
        let [maximum, share, ttft] = &self.configured;
        maximum.set(scaling.max_replica_count);
        share.set(scaling.objective.share);
        ttft.set(scaling.objective.ttft.as_secs_f64());
    }

    /// Records a start that ended ready.
    pub(crate) fn started(&self, seconds: f64) {
        self.starts.cold_start.record(seconds);
    }

    /// Records how long the oldest start under way has taken.
    pub(crate) fn longest_start(&self, time: Millis) {
        self.starts.longest.set(time.as_secs_f64());
    }

    /// Records the quantiles of the last cold starts.
    pub(crate) fn learned(&self, learned: &ColdStart) {
        let [median, most] = &self.starts.learned;
        median.set(learned.p50_seconds);
        most.set(learned.p90_seconds);
    }

    /// Records whether the pool's starts fail.
    pub(crate) fn start_failing(&self, failing: bool) {
        self.starts.failing.set(if failing { 1.0 } else { 0.0 });
    }

    /// Records a trigger's proposal. Trigger names come from the configuration.
    pub(crate) fn trigger(&mut self, proposal: &Proposal) {
        let new = || TriggerMetrics::register(&mut self.gauges, &proposal.name);
        let known = self.triggers.entry(proposal.name.clone()).or_insert_with(new);
        let replicas = proposal.replicas().map_or(f64::NAN, f64::from);
        known.value.set(proposal.figure.unwrap_or(f64::NAN));
        let threshold = Some(proposal.threshold).filter(|threshold| *threshold > 0.0);
        known.threshold.set(threshold.unwrap_or(f64::NAN));
        known.replicas.set(replicas);
        known.readable.set(if proposal.has_failed() { 0.0 } else { 1.0 });
        known.age.set(proposal.age.unwrap_or_default().as_secs_f64());
    }

    /// Counts a trigger that became unreadable.
    pub(crate) fn trigger_failed(&self, trigger: &str) {
        if let Some(known) = self.triggers.get(trigger) {
            known.failures.increment(1);
        }
    }
}

impl TriggerMetrics {
    fn register(gauges: &mut PoolGauges, trigger: &str) -> Self {
        let mut gauge = |name| gauges.labelled(name, "trigger", trigger);
        Self {
            value: gauge(TRIGGER_VALUE),
            threshold: gauge(TRIGGER_THRESHOLD),
            replicas: gauge(TRIGGER_REPLICAS),
            readable: gauge(TRIGGER_READABLE),
            age: gauge(TRIGGER_AGE),
            failures: counter!(
                TRIGGER_FAILURES, "pool" => gauges.pool.clone(), "trigger" => trigger.to_owned()
            ),
        }
    }
}

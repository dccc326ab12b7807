//! Every figure of the scaler on `/metrics`.

use metrics::{
    Counter, Gauge, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge,
    histogram,
};

const DESIRED: &str = "forebay_desired_replicas";
const REPLICAS: &str = "forebay_replicas";
const DECISIONS: &str = "forebay_scaling_decisions_total";
const COLD_START: &str = "forebay_cold_start_seconds";
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
    describe_gauge!(DESIRED, "Replicas asked for, by pool");
    describe_gauge!(REPLICAS, "Replicas, by pool and state");
    describe_counter!(DECISIONS, "Decisions that changed the count, by pool");
    describe_histogram!(COLD_START, Unit::Seconds, "From asked for to ready, by pool");
    describe_histogram!(
        REACTION,
        Unit::Seconds,
        "From a signal's arrival to the target's being told, by pool"
    );
}

/// A pool's handles.
pub(crate) struct Metrics {
    pub(crate) desired: Gauge,
    pub(crate) decisions: Counter,
    pub(crate) cold_start: metrics::Histogram,
    pub(crate) reaction: metrics::Histogram,
    states: [Gauge; 5],
}

impl Metrics {
    pub(crate) fn register(pool: &str) -> Self {
        let pool = pool.to_owned();
        let state =
            |state: &'static str| gauge!(REPLICAS, "pool" => pool.clone(), "state" => state);
        Self {
            states: ["pending", "starting", "ready", "draining", "failed"].map(state),
            desired: gauge!(DESIRED, "pool" => pool.clone()),
            decisions: counter!(DECISIONS, "pool" => pool.clone()),
            cold_start: histogram!(COLD_START, "pool" => pool.clone()),
            reaction: histogram!(REACTION, "pool" => pool),
        }
    }

    /// In the order of [`forebay_signals::ReplicaState`].
    pub(crate) fn replicas(&self, counts: [u32; 5]) {
        for (gauge, count) in self.states.iter().zip(counts) {
            gauge.set(count);
        }
    }
}

//! Every figure of the gateway on `/metrics`. Labels are bounded by configuration.

use forebay_signals::{Histogram, Totals};
use metrics::{
    Counter, Gauge, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge,
    histogram,
};

mod edge;

use crate::tenant::metric as tenant;
pub(crate) use edge::{connections, refused_connections, reload};

const QUEUE_DEPTH: &str = "forebay_queue_depth";
const IN_FLIGHT: &str = "forebay_in_flight";
const REQUESTS: &str = "forebay_requests_total";
const RETRIES: &str = "forebay_retries_total";
const HOLD: &str = "forebay_hold_seconds";
const TTFT: &str = "forebay_ttft_seconds";
const UPSTREAM_TTFT: &str = "forebay_upstream_ttft_seconds";
const ITL: &str = "forebay_itl_seconds";
const END_TO_END: &str = "forebay_end_to_end_seconds";
const PROMPT_TOKENS: &str = "forebay_prompt_tokens_total";
const GENERATED_TOKENS: &str = "forebay_generated_tokens_total";
const TOKENS_PER_SECOND: &str = "forebay_tokens_per_second";
const ENDPOINTS: &str = "forebay_endpoints";

/// Bounds for each histogram: holds and TTFTs of seconds to minutes, ITLs of milliseconds.
pub const BUCKETS: &[(&str, &[f64])] = &[
    (HOLD, HOLDS),
    (TTFT, LATENCY),
    (UPSTREAM_TTFT, LATENCY),
    (ITL, &[0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 5.0]),
    (tenant::HOLD, HOLDS),
    (tenant::TTFT, LATENCY),
    (END_TO_END, &[0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0]),
];
const HOLDS: &[f64] =
    &[0.001, 0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0];
const LATENCY: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];

/// Help texts.
pub fn describe() {
    edge::describe();
    describe_gauge!(QUEUE_DEPTH, "Requests held now, by pool");
    describe_gauge!(IN_FLIGHT, "Requests at endpoints now, by pool");
    describe_counter!(REQUESTS, "Requests ended, by pool and outcome");
    describe_counter!(RETRIES, "Tries beyond a request's first, by pool");
    describe_histogram!(HOLD, Unit::Seconds, "From accepted to released, by pool");
    describe_histogram!(TTFT, Unit::Seconds, "From accepted to the first token, by pool");
    describe_histogram!(UPSTREAM_TTFT, Unit::Seconds, "From released to the first token, by pool");
    describe_histogram!(ITL, Unit::Seconds, "Gaps between tokens, by pool");
    describe_histogram!(END_TO_END, Unit::Seconds, "From accepted to the last byte, by pool");
    describe_counter!(PROMPT_TOKENS, "Prompt tokens, by pool");
    describe_counter!(GENERATED_TOKENS, "Generated tokens, by pool");
    describe_gauge!(TOKENS_PER_SECOND, "Generated tokens in the last second, by pool");
    describe_gauge!(ENDPOINTS, "Endpoints, by pool and health");
    tenant::describe();
}

/// A pool's handles, looked up once: recording is an atomic operation.
pub(crate) struct Metrics {
    queue_depth: Gauge,
    in_flight: Gauge,
    completed: Counter,
    failed: Counter,
    client_left: Counter,
    refused: Counter,
    retries: Counter,
    prompt_tokens: Counter,
    generated_tokens: Counter,
    tokens_per_second: Gauge,
    endpoints: [(&'static str, Gauge); 4],
    pub(crate) hold: metrics::Histogram,
    pub(crate) ttft: metrics::Histogram,
    pub(crate) upstream_ttft: metrics::Histogram,
    pub(crate) itl: metrics::Histogram,
    pub(crate) end_to_end: metrics::Histogram,
}

impl Metrics {
    pub(crate) fn register(pool: &str) -> Self {
        let pool = pool.to_owned();
        let outcome = |outcome: &'static str| counter!(REQUESTS, "pool" => pool.clone(), "outcome" => outcome);
        let health = |health: &'static str| {
            (health, gauge!(ENDPOINTS, "pool" => pool.clone(), "health" => health))
        };
        Self {
            queue_depth: gauge!(QUEUE_DEPTH, "pool" => pool.clone()),
            in_flight: gauge!(IN_FLIGHT, "pool" => pool.clone()),
            completed: outcome("completed"),
            failed: outcome("failed"),
            client_left: outcome("client_left"),
            refused: outcome("refused"),
            retries: counter!(RETRIES, "pool" => pool.clone()),
            prompt_tokens: counter!(PROMPT_TOKENS, "pool" => pool.clone()),
            generated_tokens: counter!(GENERATED_TOKENS, "pool" => pool.clone()),
            tokens_per_second: gauge!(TOKENS_PER_SECOND, "pool" => pool.clone()),
            endpoints: ["starting", "ready", "ejected", "draining"].map(health),
            hold: histogram!(HOLD, "pool" => pool.clone()),
            ttft: histogram!(TTFT, "pool" => pool.clone()),
            upstream_ttft: histogram!(UPSTREAM_TTFT, "pool" => pool.clone()),
            itl: histogram!(ITL, "pool" => pool.clone()),
            end_to_end: histogram!(END_TO_END, "pool" => pool),
        }
    }

    /// What is counted in the pool's books goes out on a tick, not on a request's way.
    pub(crate) fn set(&self, depth: u32, in_flight: u32, totals: &Totals, tokens_per_second: f64) {
        self.queue_depth.set(depth);
        self.in_flight.set(in_flight);
        self.completed.absolute(totals.completed);
        self.failed.absolute(totals.failed);
        self.client_left.absolute(totals.client_left);
        self.refused.absolute(totals.refused);
        self.retries.absolute(totals.retries);
        self.prompt_tokens.absolute(totals.prompt_tokens);
        self.generated_tokens.absolute(totals.generated_tokens);
        self.tokens_per_second.set(tokens_per_second);
    }

    pub(crate) fn set_endpoints(&self, count: impl Fn(&str) -> u32) {
        for (health, gauge) in &self.endpoints {
            gauge.set(count(health));
        }
    }

    /// The gaps of one stream, each at its bucket's bound.
    pub(crate) fn record_itl(&self, gaps: &Histogram) {
        for (bound, count) in gaps.buckets() {
            self.itl.record_many(bound, count);
        }
    }
}

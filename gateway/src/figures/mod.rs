//! Every figure of the gateway on `/metrics`. Labels are bounded by configuration and discovery.

use std::time::Duration;

use forebay_signals::{Histogram, Totals};
use metrics::{
    Counter, Gauge, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge,
    histogram,
};

use crate::answer::failure::Cause;
use crate::answer::judge::Finish;
use crate::answer::outcome::{Aborter, Ended, Outcome};

pub(crate) mod arrivals;
mod edge;
mod endpoint;
pub(crate) mod endpoint_totals;
mod session;
pub(crate) mod tenant;

pub(crate) use edge::{connections, connections_that_made_room, refused_connections, reload};
pub(crate) use endpoint::endpoints_text;
pub(crate) use session::Sessions;

const QUEUE_DEPTH: &str = "forebay_queue_depth";
const IN_FLIGHT: &str = "forebay_in_flight";
const REQUESTS: &str = "forebay_requests_total";
const REFUSALS: &str = "forebay_refusals_total";
const FALLBACKS: &str = "forebay_fallbacks_total";
const RETRIES: &str = "forebay_retries_total";
const FAILURES: &str = "forebay_failures_total";
const ABORTS: &str = "forebay_aborts_total";
const FINISHES: &str = "forebay_finishes_total";
const HOLD: &str = "forebay_hold_seconds";
const TTFT: &str = "forebay_ttft_seconds";
const UPSTREAM_TTFT: &str = "forebay_upstream_ttft_seconds";
const ITL: &str = "forebay_itl_seconds";
const END_TO_END: &str = "forebay_end_to_end_seconds";
const PROMPT_TOKENS: &str = "forebay_prompt_tokens_total";
const CACHED_TOKENS: &str = "forebay_cached_tokens_total";
const GENERATED_TOKENS: &str = "forebay_generated_tokens_total";
const TOKENS_PER_SECOND: &str = "forebay_tokens_per_second";
const ENDPOINTS: &str = "forebay_endpoints";

/// Bounds for each histogram: holds and TTFTs of seconds to minutes, ITLs of milliseconds.
pub const BUCKETS: &[(&str, &[f64])] = &[
    (HOLD, HOLDS),
    (TTFT, LATENCY),
    (UPSTREAM_TTFT, LATENCY),
    (ITL, GAPS),
    (END_TO_END, WHOLE),
    (tenant::HOLD, HOLDS),
    (tenant::TTFT, LATENCY),
    (tenant::ITL, GAPS),
    (tenant::END_TO_END, WHOLE),
    (session::SECONDS, session::LENGTHS),
    (session::TENANT_SECONDS, session::LENGTHS),
];
const HOLDS: &[f64] =
    &[0.001, 0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0];
const LATENCY: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];
const GAPS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 5.0];
const WHOLE: &[f64] = &[0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0];

/// Help texts.
pub fn describe() {
    forebay_system::describe();
    edge::describe();
    endpoint::describe();
    session::describe();
    describe_gauge!(QUEUE_DEPTH, "Requests held now, by pool");
    describe_gauge!(IN_FLIGHT, "Requests at endpoints now, by pool");
    describe_counter!(REQUESTS, "Requests ended, by pool and outcome");
    describe_counter!(
        REFUSALS,
        "Requests that the gateway refused, by pool (none before one was found) and reason"
    );
    describe_counter!(FALLBACKS, "Requests that went to the pool's fallback, by pool");
    describe_counter!(RETRIES, "Tries beyond a request's first, by pool");
    describe_counter!(FAILURES, "Tries that failed by a replica's fault, by pool and cause");
    describe_counter!(
        ABORTS,
        "Requests that ended before their time, by pool and by whom: client, replica or gateway"
    );
    describe_counter!(FINISHES, "Answers, n of a request each, by pool and finish reason");
    describe_histogram!(HOLD, Unit::Seconds, "From accepted to released, by pool");
    describe_histogram!(TTFT, Unit::Seconds, "Streams: from accepted to the first token, by pool");
    describe_histogram!(
        UPSTREAM_TTFT,
        Unit::Seconds,
        "Streams: from released to the first token, by pool"
    );
    describe_histogram!(ITL, Unit::Seconds, "Gaps between a stream's tokens, by pool");
    describe_histogram!(END_TO_END, Unit::Seconds, "From accepted to the last byte, by pool");
    describe_counter!(PROMPT_TOKENS, "Prompt tokens as replicas reported them, by pool");
    describe_counter!(CACHED_TOKENS, "Prompt tokens found in a prefix cache, by pool");
    describe_counter!(GENERATED_TOKENS, "Generated tokens as replicas reported them, by pool");
    describe_gauge!(TOKENS_PER_SECOND, "Generated tokens in the last second, by pool");
    describe_gauge!(ENDPOINTS, "Endpoints, by pool and health");
    tenant::describe();
}

/// A pool's handles, looked up once: recording is an atomic operation.
pub(crate) struct Metrics {
    pool: String,
    queue_depth: Gauge,
    in_flight: Gauge,
    requests: [Counter; 5],
    fallbacks: Counter,
    retries: Counter,
    failures: [Counter; 14],
    aborts: [Counter; 3],
    finishes: [Counter; 6],
    prompt_tokens: Counter,
    cached_tokens: Counter,
    generated_tokens: Counter,
    tokens_per_second: Gauge,
    endpoints: [(&'static str, Gauge); 4],
    hold: metrics::Histogram,
    ttft: metrics::Histogram,
    upstream_ttft: metrics::Histogram,
    itl: metrics::Histogram,
    end_to_end: metrics::Histogram,
    sessions: Sessions,
}

impl Metrics {
    pub(crate) fn register(pool: &str) -> Self {
        let pool = pool.to_owned();
        let of = |name: &'static str, label: &'static str, value: &'static str| counter!(name, "pool" => pool.clone(), label => value);
        let count = |name: &'static str| counter!(name, "pool" => pool.clone());
        let time = |name: &'static str| histogram!(name, "pool" => pool.clone());
        let health = |health: &'static str| {
            (health, gauge!(ENDPOINTS, "pool" => pool.clone(), "health" => health))
        };
        Self {
            queue_depth: gauge!(QUEUE_DEPTH, "pool" => pool.clone()),
            in_flight: gauge!(IN_FLIGHT, "pool" => pool.clone()),
            requests: Outcome::ALL.map(|outcome| of(REQUESTS, "outcome", outcome.name())),
            fallbacks: count(FALLBACKS),
            retries: count(RETRIES),
            failures: Cause::ALL.map(|cause| of(FAILURES, "cause", cause.name())),
            aborts: Aborter::ALL.map(|by| of(ABORTS, "by", by.name())),
            finishes: Finish::ALL.map(|finish| of(FINISHES, "reason", finish.name())),
            prompt_tokens: count(PROMPT_TOKENS),
            cached_tokens: count(CACHED_TOKENS),
            generated_tokens: count(GENERATED_TOKENS),
            tokens_per_second: gauge!(TOKENS_PER_SECOND, "pool" => pool.clone()),
            endpoints: ["starting", "ready", "ejected", "draining"].map(health),
            hold: time(HOLD),
            ttft: time(TTFT),
            upstream_ttft: time(UPSTREAM_TTFT),
            itl: time(ITL),
            end_to_end: time(END_TO_END),
            sessions: Sessions::of_pool(&pool),
            pool,
        }
    }

    /// What changes all the time goes out on a tick, not on a request's way.
    pub(crate) fn set(&self, depth: u32, in_flight: u32, totals: &Totals, tokens_per_second: f64) {
        self.queue_depth.set(depth);
        self.in_flight.set(in_flight);
        self.retries.absolute(totals.retries);
        self.tokens_per_second.set(tokens_per_second);
    }

    pub(crate) fn fell_back(&self) {
        self.fallbacks.increment(1);
    }

    pub(crate) fn set_endpoints(&self, count: impl Fn(&str) -> u32) {
        for (health, gauge) in &self.endpoints {
            gauge.set(count(health));
        }
    }

    /// A try that failed.
    pub(crate) fn failed(&self, cause: Cause) {
        self.failures[cause as usize].increment(1);
    }

    /// A stream's first token, by the times since acceptance and since release.
    pub(crate) fn first_token(&self, ttft: Duration, upstream: Duration) {
        self.ttft.record(ttft);
        self.upstream_ttft.record(upstream);
    }

    /// The gaps of one stream, each at its bucket's bound.
    pub(crate) fn gaps(&self, gaps: &Histogram) {
        for (bound, count) in gaps.buckets() {
            self.itl.record_many(bound, count);
        }
    }

    pub(crate) fn ended(&self, ended: &Ended<'_>) {
        self.requests[ended.outcome as usize].increment(1);
        if let (Outcome::Refused, Some(reason)) = (ended.outcome, ended.reason) {
            refused(&self.pool, reason);
        }
        if let Some(by) = ended.aborted {
            self.aborts[by as usize].increment(1);
        }
        for finish in &ended.tokens.finishes {
            self.finishes[*finish as usize].increment(1);
        }
        if let Some(held) = ended.held {
            self.hold.record(held);
        }
        match ended.session {
            Some((lasted, traffic)) => self.sessions.ended(lasted, traffic),
            None => self.end_to_end.record(ended.took),
        }
        self.prompt_tokens.increment(ended.tokens.prompt.unwrap_or(0));
        self.cached_tokens.increment(ended.tokens.cached.unwrap_or(0));
        self.generated_tokens.increment(ended.tokens.generated);
    }
}

/// A request that ended before its pool was known.
pub(crate) fn unrouted(ended: &Ended<'_>) {
    if let (Outcome::Refused, Some(reason)) = (ended.outcome, ended.reason) {
        refused("", reason);
    }
}

fn refused(pool: &str, reason: &'static str) {
    counter!(REFUSALS, "pool" => pool.to_owned(), "reason" => reason).increment(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_of_a_label_has_its_own_place() {
        for (i, outcome) in Outcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome as usize, i);
        }
        for (i, cause) in Cause::ALL.into_iter().enumerate() {
            assert_eq!(cause as usize, i);
        }
        for (i, finish) in Finish::ALL.into_iter().enumerate() {
            assert_eq!(finish as usize, i);
        }
        for (i, by) in Aborter::ALL.into_iter().enumerate() {
            assert_eq!(by as usize, i);
        }
    }
}

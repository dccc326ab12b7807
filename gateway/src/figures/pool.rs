//! A pool's figures: its metrics, and the sums that the scaler receives.

use std::time::Duration;

use forebay_base::WITHDRAWN;
use forebay_scheduling::pick::CachedTokens;
use forebay_signals::{Histogram, Totals};
use metrics::{
    Counter, Gauge, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge,
    histogram,
};

use crate::answer::failure::Cause;
use crate::answer::judge::Finish;
use crate::answer::not_continued::NotContinued;
use crate::answer::outcome::{Aborter, FirstToken, Outcome, Pause, RequestEnd};
use crate::figures::endpoint_totals::EndpointTotals;
use crate::figures::gen_ai::GenAiFigures;
use crate::figures::model::ModelFigures;
use crate::figures::session::SessionMetrics;
use crate::figures::sums::{ShardedSums, Sums};

const QUEUE_DEPTH: &str = "forebay_queue_depth";
const EXPECTED_WAIT: &str = "forebay_expected_wait_seconds";
const IN_FLIGHT: &str = "forebay_in_flight";
const REQUESTS: &str = "forebay_requests_total";
const REFUSALS: &str = "forebay_refusals_total";
const RELEASED: &str = "forebay_released_total";
const FALLBACKS: &str = "forebay_fallbacks_total";
const RETRIES: &str = "forebay_retries_total";
const FAILURES: &str = "forebay_failures_total";
const ABORTS: &str = "forebay_aborts_total";
const CONTINUED: &str = "forebay_continued_streams_total";
const NOT_CONTINUED: &str = "forebay_not_continued_streams_total";
pub(super) const PAUSE: &str = "forebay_continuation_pause_seconds";
pub(super) const PAUSE_UPSTREAM: &str = "forebay_continuation_upstream_seconds";
const FINISHES: &str = "forebay_finishes_total";
pub(super) const HOLD: &str = "forebay_hold_seconds";
pub(super) const TTFT: &str = "forebay_ttft_seconds";
pub(super) const UPSTREAM_TTFT: &str = "forebay_upstream_ttft_seconds";
pub(super) const ITL: &str = "forebay_itl_seconds";
pub(super) const END_TO_END: &str = "forebay_end_to_end_seconds";
const PROMPT_TOKENS: &str = "forebay_prompt_tokens_total";
const CACHED_TOKENS: &str = "forebay_cached_tokens_total";
const PREDICTED_TOKENS: &str = "forebay_predicted_cached_tokens_total";
const GENERATED_TOKENS: &str = "forebay_generated_tokens_total";
const FIRST_TOKENS: &str = "forebay_first_tokens_total";
const TOKENS_PER_SECOND: &str = "forebay_tokens_per_second";
const ENDPOINTS: &str = "forebay_endpoints";

pub(super) fn describe() {
    describe_gauge!(
        QUEUE_DEPTH,
        "Requests held now, or refused in the last second because they could not start in time, by pool"
    );
    describe_gauge!(
        EXPECTED_WAIT,
        "How long a request would wait behind all that are held, by pool; NaN before it is known"
    );
    describe_gauge!(IN_FLIGHT, "Requests at endpoints now, by pool");
    describe_counter!(REQUESTS, "Requests ended, by pool and outcome");
    describe_counter!(
        REFUSALS,
        "Requests that the gateway refused, by pool (none before one was found) and reason"
    );
    describe_counter!(RELEASED, "Requests released to an endpoint for the first time, by pool");
    describe_counter!(FALLBACKS, "Requests that went to the pool's fallback, by pool");
    describe_counter!(RETRIES, "Tries beyond a request's first, by pool");
    describe_counter!(FAILURES, "Tries that failed by a replica's fault, by pool and cause");
    describe_counter!(
        ABORTS,
        "Requests that ended before their time, by pool and by whom: client, replica or gateway"
    );
    describe_counter!(
        CONTINUED,
        "Times that another replica went on with a stream that broke or moved, by pool and the failure's cause"
    );
    describe_counter!(
        NOT_CONTINUED,
        "Streams that broke and ended with an error, by pool, the failure's cause, and the reason why no other replica went on"
    );
    describe_histogram!(
        PAUSE,
        Unit::Seconds,
        "From a stream's break or move to its first part from another replica, by pool"
    );
    describe_histogram!(
        PAUSE_UPSTREAM,
        Unit::Seconds,
        "The same without the time in which no other replica had room, by pool"
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
    describe_counter!(
        FIRST_TOKENS,
        "Streams: first tokens, by pool and whether they came within the objective's TTFT"
    );
    describe_counter!(PROMPT_TOKENS, "Prompt tokens as replicas reported them, by pool");
    describe_counter!(CACHED_TOKENS, "Prompt tokens found in a prefix cache, by pool");
    describe_counter!(
        PREDICTED_TOKENS,
        "Prompt tokens predicted to be in a prefix cache, of requests whose replicas report how many were, by pool"
    );
    describe_counter!(GENERATED_TOKENS, "Generated tokens as replicas reported them, by pool");
    describe_gauge!(TOKENS_PER_SECOND, "Generated tokens in the last second, by pool");
    describe_gauge!(ENDPOINTS, "Endpoints, by pool and health");
}

/// The figures of one pool. Its metrics are looked up once.
pub(crate) struct PoolFigures {
    pool: String,
    gauges: Gauges,
    events: Events,
    tokens: TokenCounters,
    times: Times,
    sessions: SessionMetrics,
    pub(crate) models: ModelFigures,
    /// Exported by OTLP alone.
    pub(crate) gen_ai: GenAiFigures,
    sums: ShardedSums,
}

struct Gauges {
    queue_depth: Gauge,
    expected_wait: Gauge,
    in_flight: Gauge,
    tokens_per_second: Gauge,
    /// Starting, ready, ejected, draining.
    endpoints: [Gauge; 4],
}

struct Events {
    requests: [Counter; 5],
    released: Counter,
    fallbacks: Counter,
    retries: Counter,
    failures: [Counter; 16],
    continued: [Counter; 16],
    aborts: [Counter; 3],
    finishes: [Counter; 6],
    /// Within the objective, and later.
    first_tokens: [Counter; 2],
}

struct TokenCounters {
    prompt: Counter,
    cached: Counter,
    predicted: Counter,
    generated: Counter,
}

struct Times {
    hold: metrics::Histogram,
    ttft: metrics::Histogram,
    upstream_ttft: metrics::Histogram,
    itl: metrics::Histogram,
    end_to_end: metrics::Histogram,
    pause: metrics::Histogram,
    pause_upstream: metrics::Histogram,
}

impl PoolFigures {
    pub(crate) fn register(pool: &str) -> Self {
        let pool = pool.to_owned();
        let labelled = |name: &'static str, label: &'static str, value: &'static str| counter!(name, "pool" => pool.clone(), label => value);
        let count = |name: &'static str| counter!(name, "pool" => pool.clone());
        let gauge = |name: &'static str| gauge!(name, "pool" => pool.clone());
        let time = |name: &'static str| histogram!(name, "pool" => pool.clone());
        let endpoints =
            |health: &'static str| gauge!(ENDPOINTS, "pool" => pool.clone(), "health" => health);
        Self {
            gauges: Gauges {
                queue_depth: gauge(QUEUE_DEPTH),
                expected_wait: gauge(EXPECTED_WAIT),
                in_flight: gauge(IN_FLIGHT),
                tokens_per_second: gauge(TOKENS_PER_SECOND),
                endpoints: ["starting", "ready", "ejected", "draining"].map(endpoints),
            },
            events: Events {
                requests: Outcome::ALL.map(|outcome| labelled(REQUESTS, "outcome", outcome.name())),
                released: count(RELEASED),
                fallbacks: count(FALLBACKS),
                retries: count(RETRIES),
                failures: Cause::ALL.map(|cause| labelled(FAILURES, "cause", cause.name())),
                continued: Cause::ALL.map(|cause| labelled(CONTINUED, "cause", cause.name())),
                aborts: Aborter::ALL.map(|by| labelled(ABORTS, "by", by.name())),
                first_tokens: ["met", "missed"]
                    .map(|objective| labelled(FIRST_TOKENS, "objective", objective)),
                finishes: Finish::ALL.map(|finish| labelled(FINISHES, "reason", finish.name())),
            },
            tokens: TokenCounters {
                prompt: count(PROMPT_TOKENS),
                cached: count(CACHED_TOKENS),
                predicted: count(PREDICTED_TOKENS),
                generated: count(GENERATED_TOKENS),
            },
            times: Times {
                hold: time(HOLD),
                ttft: time(TTFT),
                upstream_ttft: time(UPSTREAM_TTFT),
                itl: time(ITL),
                end_to_end: time(END_TO_END),
                pause: time(PAUSE),
                pause_upstream: time(PAUSE_UPSTREAM),
            },
            sessions: SessionMetrics::of_pool(&pool),
            models: ModelFigures::new(&pool),
            gen_ai: GenAiFigures::new(&pool),
            sums: ShardedSums::default(),
            pool,
        }
    }

    /// Sets the gauges. Called once a second, not for each request.
    pub(crate) fn set(&self, depth: u32, in_flight: u32, totals: &Totals, tokens_per_second: f64) {
        self.gauges.queue_depth.set(depth);
        self.gauges.in_flight.set(in_flight);
        self.gauges.tokens_per_second.set(tokens_per_second);
        self.events.released.absolute(totals.released);
        self.events.retries.absolute(totals.retries);
    }

    /// Takes the totals of a pool that is closed, and withdraws its gauges.
    pub(crate) fn close(&self, totals: &Totals) {
        self.events.retries.absolute(totals.retries);
        let Gauges { queue_depth, expected_wait, in_flight, tokens_per_second, endpoints } =
            &self.gauges;
        let all = [queue_depth, expected_wait, in_flight, tokens_per_second].into_iter();
        all.chain(endpoints).for_each(|gauge| gauge.set(WITHDRAWN));
    }

    /// Notes a second in which nothing happened.
    pub(crate) fn rest(&self) {
        self.gauges.tokens_per_second.set(0.0);
    }

    /// Sets how long a request would wait, in seconds.
    pub(crate) fn set_expected_wait(&self, wait: Option<f64>) {
        self.gauges.expected_wait.set(wait.unwrap_or(f64::NAN));
    }

    /// Sets the numbers of endpoints that are starting, ready, ejected and draining.
    pub(crate) fn set_endpoints(&self, counts: [u32; 4]) {
        for (gauge, count) in self.gauges.endpoints.iter().zip(counts) {
            gauge.set(count);
        }
    }

    /// Counts a request that went to the fallback.
    pub(crate) fn fell_back(&self) {
        self.events.fallbacks.increment(1);
    }

    /// Counts a try that failed by a replica's fault.
    pub(crate) fn count_failure(&self, cause: Cause) {
        self.events.failures[cause as usize].increment(1);
    }

    /// Counts a stream with which another replica went on, and the pause before.
    pub(crate) fn continued(&self, Pause { cause, all, held }: Pause) {
        self.events.continued[cause as usize].increment(1);
        self.times.pause.record(all);
        self.times.pause_upstream.record(all.saturating_sub(held));
        // The figures of the endpoint that it left have changed.
        self.sums.add(|_| {});
    }

    /// Counts a stream that broke and ended with an error.
    pub(crate) fn not_continued(&self, cause: Cause, why: NotContinued) {
        let (pool, cause, reason) = (self.pool.clone(), cause.name(), why.name());
        counter!(NOT_CONTINUED, "pool" => pool, "cause" => cause, "reason" => reason).increment(1);
    }

    /// Counts the tokens of a prompt that were in a prefix cache. Those that its answer reports are counted
    /// with the answer.
    pub(crate) fn count_cached(&self, cached: CachedTokens, endpoint: &EndpointTotals) {
        self.tokens.predicted.increment(cached.predicted);
        if let Some(counted) = cached.counted {
            self.tokens.cached.increment(counted);
            endpoint.cached(counted);
            self.sums.add(|sums| sums.totals.cached_tokens += counted);
        }
    }

    /// Records a stream's first token, which the pool's `objective` promises in time.
    pub(crate) fn first_token(
        &self,
        token: &FirstToken,
        objective: Duration,
        endpoint: &EndpointTotals,
    ) {
        let FirstToken { ttft, cold, upstream } = *token;
        self.events.first_tokens[usize::from(ttft > objective)].increment(1);
        self.times.ttft.record(ttft);
        self.times.upstream_ttft.record(upstream);
        endpoint.first_token(upstream);
        self.sums.add(|sums| {
            sums.ttft.record(ttft.as_secs_f64());
            sums.warm_ttft.record(ttft.saturating_sub(cold).as_secs_f64());
            sums.upstream_ttft.record(upstream.as_secs_f64());
        });
    }

    /// Records gaps between the tokens of one stream. `/metrics` has each at its bucket's bound.
    pub(crate) fn gaps(&self, gaps: &Histogram, endpoint: &EndpointTotals) {
        for (bound, count) in gaps.buckets() {
            self.times.itl.record_many(bound, count);
        }
        endpoint.gaps(gaps);
        self.sums.add(|sums| sums.itl.merge(gaps));
    }

    /// Records a request's end. `endpoint`: the last one that the request was given to.
    pub(crate) fn ended(&self, end: &RequestEnd<'_>, endpoint: Option<&EndpointTotals>) {
        self.events.requests[end.outcome as usize].increment(1);
        if let (Outcome::Refused, Some(reason)) = (end.outcome, end.reason) {
            refused(&self.pool, reason);
        }
        if let Some(by) = end.aborted {
            self.events.aborts[by as usize].increment(1);
        }
        for finish in &end.tokens.finishes {
            self.events.finishes[*finish as usize].increment(1);
        }
        if let Some(held) = end.held {
            self.times.hold.record(held);
        }
        match end.session {
            Some((lasted, traffic)) => self.sessions.ended(lasted, traffic),
            None => self.times.end_to_end.record(end.took),
        }
        self.tokens.prompt.increment(end.tokens.prompt.unwrap_or(0));
        self.tokens.cached.increment(end.tokens.cached.unwrap_or(0));
        self.tokens.generated.increment(end.tokens.generated);
        if let Some(endpoint) = endpoint {
            endpoint.tokens(end.tokens, end.carried);
        }
        self.sums.add(|sums| sums.ended(end));
    }

    /// Whether the sums have changed since the last call.
    pub(crate) fn take_recorded(&self) -> bool {
        self.sums.take_recorded()
    }

    /// The sums since the gateway started, over all threads.
    pub(crate) fn sums(&self) -> Sums {
        self.sums.read()
    }
}

/// Counts a request that ended before its pool was known.
pub(crate) fn unrouted(end: &RequestEnd<'_>) {
    if let (Outcome::Refused, Some(reason)) = (end.outcome, end.reason) {
        refused("", reason);
    }
}

fn refused(pool: &str, reason: &'static str) {
    counter!(REFUSALS, "pool" => pool.to_owned(), "reason" => reason).increment(1);
}

impl Sums {
    fn ended(&mut self, end: &RequestEnd<'_>) {
        if let Some(held) = end.held {
            self.hold.record(held.as_secs_f64());
        }
        // The client decides how long a session lasts, which says nothing about the pool.
        if end.session.is_none() {
            self.end_to_end.record(end.took.as_secs_f64());
        }
        self.totals.retries += u64::from(end.tries.saturating_sub(1));
        self.totals.prompt_tokens += end.tokens.prompt.unwrap_or(0);
        self.totals.cached_tokens += end.tokens.cached.unwrap_or(0);
        self.totals.generated_tokens += end.tokens.generated;
        *match end.outcome {
            // The replica answered, even if it refused the request.
            Outcome::Completed | Outcome::ClientError => &mut self.totals.completed,
            Outcome::Failed => &mut self.totals.failed,
            Outcome::ClientLeft => &mut self.totals.client_left,
            Outcome::Refused => &mut self.totals.refused,
        } += 1;
    }
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

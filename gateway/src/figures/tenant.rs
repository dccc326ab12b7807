//! Metrics of tenants. Tenants come from the configuration, so their names may be labels.

use std::time::Duration;

use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram,
    gauge, histogram,
};

use crate::answer::limit::Limit;
use crate::answer::outcome::{Outcome, RequestEnd};
use crate::figures::session::SessionMetrics;

const REQUESTS: &str = "forebay_tenant_requests_total";
const LIMITED: &str = "forebay_tenant_limited_total";
const CONCURRENT: &str = "forebay_tenant_concurrent";
const PROMPT_TOKENS: &str = "forebay_tenant_prompt_tokens_total";
const CACHED_TOKENS: &str = "forebay_tenant_cached_tokens_total";
const GENERATED_TOKENS: &str = "forebay_tenant_generated_tokens_total";
pub(crate) const HOLD: &str = "forebay_tenant_hold_seconds";
pub(crate) const TTFT: &str = "forebay_tenant_ttft_seconds";
pub(crate) const ITL: &str = "forebay_tenant_itl_seconds";
pub(crate) const END_TO_END: &str = "forebay_tenant_end_to_end_seconds";

pub(crate) fn describe() {
    describe_counter!(REQUESTS, "Requests ended, by tenant and outcome");
    describe_counter!(LIMITED, "Requests refused for a limit, by tenant and limit");
    describe_gauge!(CONCURRENT, "Requests held and in flight now, by tenant");
    describe_counter!(PROMPT_TOKENS, "Prompt tokens, by tenant");
    describe_counter!(CACHED_TOKENS, "Prompt tokens found in a prefix cache, by tenant");
    describe_counter!(GENERATED_TOKENS, "Generated tokens, by tenant");
    describe_histogram!(HOLD, Unit::Seconds, "From accepted to released, by tenant");
    describe_histogram!(
        TTFT,
        Unit::Seconds,
        "Streams: from accepted to the first token, by tenant"
    );
    describe_histogram!(ITL, Unit::Seconds, "Gaps between a stream's tokens, by tenant");
    describe_histogram!(END_TO_END, Unit::Seconds, "From accepted to the last byte, by tenant");
}

/// The metrics of one tenant, looked up once.
pub(crate) struct TenantMetrics {
    ended: [(Outcome, Counter); 5],
    limited: [(&'static str, Counter); 3],
    pub(crate) concurrent: Gauge,
    prompt_tokens: Counter,
    cached_tokens: Counter,
    generated_tokens: Counter,
    hold: Histogram,
    ttft: Histogram,
    itl: Histogram,
    end_to_end: Histogram,
    sessions: SessionMetrics,
}

impl TenantMetrics {
    pub(crate) fn register(tenant: &str) -> Self {
        let tenant = tenant.to_owned();
        let ended = |outcome: Outcome| {
            let counter =
                counter!(REQUESTS, "tenant" => tenant.clone(), "outcome" => outcome.name());
            (outcome, counter)
        };
        let limited = |limit: Limit| {
            let name = limit.name();
            (name, counter!(LIMITED, "tenant" => tenant.clone(), "limit" => name))
        };
        Self {
            ended: Outcome::ALL.map(ended),
            limited: [Limit::Requests(0), Limit::Tokens(0), Limit::Concurrent(0)].map(limited),
            concurrent: gauge!(CONCURRENT, "tenant" => tenant.clone()),
            prompt_tokens: counter!(PROMPT_TOKENS, "tenant" => tenant.clone()),
            cached_tokens: counter!(CACHED_TOKENS, "tenant" => tenant.clone()),
            generated_tokens: counter!(GENERATED_TOKENS, "tenant" => tenant.clone()),
            hold: histogram!(HOLD, "tenant" => tenant.clone()),
            ttft: histogram!(TTFT, "tenant" => tenant.clone()),
            itl: histogram!(ITL, "tenant" => tenant.clone()),
            sessions: SessionMetrics::of_tenant(&tenant),
            end_to_end: histogram!(END_TO_END, "tenant" => tenant),
        }
    }

    pub(crate) fn limited(&self, limit: Limit) {
        if let Some((_, counter)) = self.limited.iter().find(|(name, _)| *name == limit.name()) {
            counter.increment(1);
        }
    }

    /// Records gaps between the tokens of one stream, each at its bucket's bound.
    pub(crate) fn gaps(&self, gaps: &forebay_signals::Histogram) {
        for (bound, count) in gaps.buckets() {
            self.itl.record_many(bound, count);
        }
    }

    /// Records a request's end. `ttft` is `None` if there was no token, or no stream.
    pub(crate) fn ended(&self, ended: &RequestEnd<'_>, ttft: Option<Duration>) {
        if let Some((_, counter)) = self.ended.iter().find(|(outcome, _)| *outcome == ended.outcome)
        {
            counter.increment(1);
        }
        self.prompt_tokens.increment(ended.tokens.prompt.unwrap_or(0));
        self.cached_tokens.increment(ended.tokens.cached.unwrap_or(0));
        self.generated_tokens.increment(ended.tokens.generated);
        ended.held.into_iter().for_each(|hold| self.hold.record(hold));
        ttft.into_iter().for_each(|ttft| self.ttft.record(ttft));
        match ended.session {
            Some((lasted, traffic)) => self.sessions.ended(lasted, traffic),
            None => self.end_to_end.record(ended.took),
        }
    }
}

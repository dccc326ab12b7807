//! One endpoint's own sums, from which readers compute means and rates.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use forebay_scheduling::room::EndpointSums;
use forebay_signals::{EndpointSignals, Histogram};

use crate::answer::meter::Tokens;

/// EndpointSums since the endpoint was added, shared with its requests and changed without a lock.
#[derive(Debug, Default)]
pub(crate) struct EndpointTotals {
    prompt_tokens: AtomicU64,
    cached_tokens: AtomicU64,
    generated_tokens: AtomicU64,
    first_tokens: AtomicU64,
    ttft_nanos: AtomicU64,
    token_gaps: AtomicU64,
    itl_nanos: AtomicU64,
}

impl EndpointTotals {
    /// Adds the tokens of a request that ended here. `carried` tokens of the answer came from earlier
    /// replicas; this one computed them with the prompt.
    pub(crate) fn tokens(&self, tokens: &Tokens, carried: u64) {
        let prompt = tokens.prompt.map_or(0, |prompt| prompt + carried);
        self.prompt_tokens.fetch_add(prompt, Relaxed);
        self.cached_tokens.fetch_add(tokens.cached.unwrap_or(0), Relaxed);
        self.generated_tokens.fetch_add(tokens.generated.saturating_sub(carried), Relaxed);
    }

    /// Adds tokens of a prompt that were in the prefix cache, beside those that its answer reports.
    pub(crate) fn cached(&self, tokens: u64) {
        self.cached_tokens.fetch_add(tokens, Relaxed);
    }

    /// Adds the tokens of a request with which another replica goes on.
    pub(crate) fn left(&self, prompt: u64, generated: u64) {
        self.prompt_tokens.fetch_add(prompt, Relaxed);
        self.generated_tokens.fetch_add(generated, Relaxed);
    }

    /// Adds a stream's first token. `ttft`: the time since its release.
    pub(crate) fn first_token(&self, ttft: Duration) {
        self.first_tokens.fetch_add(1, Relaxed);
        self.ttft_nanos.fetch_add(nanos(ttft.as_secs_f64()), Relaxed);
    }

    /// Adds gaps between tokens.
    pub(crate) fn gaps(&self, gaps: &Histogram) {
        self.token_gaps.fetch_add(gaps.count(), Relaxed);
        self.itl_nanos.fetch_add(nanos(gaps.sum()), Relaxed);
    }

    /// The sums from which the endpoint's limit is learned.
    pub(crate) fn sums(&self) -> EndpointSums {
        let prompt = self.prompt_tokens.load(Relaxed);
        EndpointSums {
            first_tokens: self.first_tokens.load(Relaxed),
            ttft_seconds: seconds(self.ttft_nanos.load(Relaxed)),
            gaps: self.token_gaps.load(Relaxed),
            itl_seconds: seconds(self.itl_nanos.load(Relaxed)),
            uncached_tokens: prompt.saturating_sub(self.cached_tokens.load(Relaxed)),
            generated_tokens: self.generated_tokens.load(Relaxed),
        }
    }

    /// Writes the sums into the endpoint's signals.
    pub(crate) fn report(&self, signals: &mut EndpointSignals) {
        signals.prompt_tokens = self.prompt_tokens.load(Relaxed);
        signals.cached_tokens = self.cached_tokens.load(Relaxed);
        signals.generated_tokens = self.generated_tokens.load(Relaxed);
        signals.first_tokens = self.first_tokens.load(Relaxed);
        signals.ttft_seconds = seconds(self.ttft_nanos.load(Relaxed));
        signals.token_gaps = self.token_gaps.load(Relaxed);
        signals.itl_seconds = seconds(self.itl_nanos.load(Relaxed));
    }
}

fn nanos(seconds: f64) -> u64 {
    (seconds * 1e9).round() as u64
}

fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

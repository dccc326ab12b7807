//! One endpoint's own figures: sums, from which any reader makes means and rates.

use std::time::Duration;

use forebay_signals::{EndpointSignals, Histogram};

use crate::answer::meter::Tokens;

/// Since the endpoint is known.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Figures {
    prompt_tokens: u64,
    cached_tokens: u64,
    generated_tokens: u64,
    first_tokens: u64,
    ttft_seconds: f64,
    token_gaps: u64,
    itl_seconds: f64,
}

impl Figures {
    /// A request's tokens, at its end.
    pub(crate) fn tokens(&mut self, tokens: &Tokens) {
        self.prompt_tokens += tokens.prompt.unwrap_or(0);
        self.cached_tokens += tokens.cached.unwrap_or(0);
        self.generated_tokens += tokens.generated;
    }

    /// `ttft`: from release.
    pub(crate) fn first_token(&mut self, ttft: Duration) {
        self.first_tokens += 1;
        self.ttft_seconds += ttft.as_secs_f64();
    }

    pub(crate) fn gaps(&mut self, gaps: &Histogram) {
        self.token_gaps += gaps.count();
        self.itl_seconds += gaps.sum();
    }

    pub(crate) fn tell(&self, signals: &mut EndpointSignals) {
        signals.prompt_tokens = self.prompt_tokens;
        signals.cached_tokens = self.cached_tokens;
        signals.generated_tokens = self.generated_tokens;
        signals.first_tokens = self.first_tokens;
        signals.ttft_seconds = self.ttft_seconds;
        signals.token_gaps = self.token_gaps;
        signals.itl_seconds = self.itl_seconds;
    }
}

//! What the gateway would publish of itself: the running scaler's own input.

use forebay_signals::{EndpointSignals, Health, Histogram, PoolSignals, Totals};

use super::World;
use crate::replay::trace::{Request, Us};

/// Counters and histograms since the trace began.
#[derive(Default)]
pub(super) struct Books {
    pub(super) totals: Totals,
    pub(super) held_tokens: u64,
    pub(super) in_flight_tokens: u64,
    pub(super) hold: Histogram,
    ttft: Histogram,
    warm_ttft: Histogram,
    upstream_ttft: Histogram,
    itl: Histogram,
    end_to_end: Histogram,
    /// Since when none is ready, and the last such time that is over.
    none_ready: Option<Us>,
    last_gap: Option<(Us, Us)>,
}

fn seconds(us: Us) -> f64 {
    us as f64 / 1e6
}

impl Books {
    /// Whether any replica takes requests from now on.
    pub(super) fn readiness(&mut self, any: bool, now: Us) {
        match (any, self.none_ready) {
            (true, Some(since)) => {
                self.last_gap = Some((since, now));
                self.none_ready = None;
            }
            (false, None) => self.none_ready = Some(now),
            _ => {}
        }
    }

    pub(super) fn first_token(&mut self, arrived: Us, released: Us, now: Us) {
        // Held while none was ready; what began then ends with the first that is.
        let cold = match self.last_gap {
            Some((since, until)) if arrived >= since && arrived < until => {
                until.min(released) - arrived
            }
            _ => 0,
        };
        let ttft = now - arrived;
        self.ttft.record(seconds(ttft));
        self.warm_ttft.record(seconds(ttft.saturating_sub(cold)));
        self.upstream_ttft.record(seconds(now - released));
    }

    pub(super) fn answered(&mut self, request: Request, first: Us, now: Us) {
        self.totals.completed += 1;
        self.totals.prompt_tokens += u64::from(request.prompt);
        self.totals.generated_tokens += u64::from(request.output);
        self.end_to_end.record(seconds(now - request.at));
        let gaps = u64::from(request.output.saturating_sub(1));
        if gaps > 0 {
            self.itl.record_n(seconds(now - first) / gaps as f64, gaps);
        }
    }
}

impl World<'_> {
    /// The pool as its one gateway would tell of it now.
    pub(crate) fn signals(&self) -> PoolSignals {
        let oldest = self.queue.front().map_or(0, |id| self.now - self.requests[*id as usize].at);
        let endpoints = self.fleet().filter(|seen| seen.started.is_some()).map(|seen| {
            let health = match (seen.ready, seen.draining) {
                (_, true) => Health::Draining,
                (true, _) => Health::Ready,
                _ => Health::Starting,
            };
            let signals = EndpointSignals {
                health,
                in_flight: seen.in_flight,
                limit: self.model.limit,
                completed: seen.completed,
                generated_tokens: seen.generated,
                ..EndpointSignals::default()
            };
            (format!("10.0.0.1:{}", seen.id), Some(signals))
        });
        PoolSignals {
            queue_depth: self.held(),
            queue_bytes: self.books.held_tokens * 4,
            held_tokens: self.books.held_tokens,
            oldest_hold_seconds: seconds(oldest),
            in_flight: self.in_flight(),
            in_flight_tokens: self.books.in_flight_tokens,
            totals: self.books.totals,
            hold: self.books.hold.clone(),
            ttft: self.books.ttft.clone(),
            warm_ttft: self.books.warm_ttft.clone(),
            upstream_ttft: self.books.upstream_ttft.clone(),
            itl: self.books.itl.clone(),
            end_to_end: self.books.end_to_end.clone(),
            endpoints: endpoints.collect(),
            ..PoolSignals::default()
        }
    }
}

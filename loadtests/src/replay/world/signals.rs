//! The signals that the gateway would publish: the same input as the running scaler's.
//!
//! Every field of the pool's signals is listed, so that a new one does not stay at zero unnoticed.

use std::collections::BTreeMap;
use std::time::Duration;

use forebay_signals::{EndpointSignals, Health, Histogram, PoolSignals, Totals};

use super::World;
use crate::replay::trace::{Request, Us};

/// Counters and histograms since the trace began.
#[derive(Default)]
pub(super) struct PoolFigures {
    pub(super) totals: Totals,
    pub(super) in_flight_tokens: u64,
    pub(super) hold: Histogram,
    ttft: Histogram,
    warm_ttft: Histogram,
    pub(super) upstream_ttft: Histogram,
    itl: Histogram,
    end_to_end: Histogram,
    /// The beginning of the present time without a ready replica, and the last such time that ended.
    none_ready: Option<Us>,
    last_gap: Option<(Us, Us)>,
}

fn seconds(us: Us) -> f64 {
    us as f64 / 1e6
}

impl PoolFigures {
    /// Records whether any replica takes requests from now on.
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
        // The cold part of a hold: until the first replica is ready.
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

    /// Counts an answer. `cached`: the tokens of its prompt that its replica remembered.
    pub(super) fn answered(&mut self, request: Request, cached: u32, first: Us, now: Us) {
        self.totals.completed += 1;
        self.totals.prompt_tokens += u64::from(request.prompt);
        self.totals.cached_tokens += u64::from(cached);
        self.totals.generated_tokens += u64::from(request.output);
        self.end_to_end.record(seconds(now - request.at));
        let gaps = u64::from(request.output.saturating_sub(1));
        if gaps > 0 {
            self.itl.record_n(seconds(now - first) / gaps as f64, gaps);
        }
    }
}

impl World<'_> {
    /// The pool's signals now.
    pub(crate) fn signals(&self) -> PoolSignals {
        let held = self.progress.queue.longest_held();
        let oldest = held.map(|id| self.now - self.trace.requests[*id as usize].at).max();
        let now = Duration::from_micros(self.now);
        let endpoints =
            self.replicas().filter(|replica| replica.started.is_some()).map(|replica| {
                let health = match (replica.ready, replica.draining) {
                    (_, true) => Health::Draining,
                    (true, _) => Health::Ready,
                    _ => Health::Starting,
                };
                let room = &self.fleet.replicas[replica.id as usize].capacity.room;
                let signals = EndpointSignals {
                    health,
                    in_flight: replica.in_flight,
                    limit: room.allowed(now),
                    limited_by: room.limited_by(now),
                    completed: replica.completed,
                    generated_tokens: replica.generated,
                    ..EndpointSignals::default()
                };
                (format!("10.0.0.1:{}", replica.id), Some(signals))
            });
        PoolSignals {
            queue_depth: self.held(),
            queue_bytes: self.progress.queue.bytes(),
            held_tokens: self.progress.queue.tokens(),
            held_traces: Vec::new(),
            oldest_hold_seconds: seconds(oldest.unwrap_or(0)),
            expected_wait_seconds: self.expected_wait().map(|wait| wait.as_secs_f64()),
            in_flight: self.in_flight(),
            in_flight_tokens: self.figures.in_flight_tokens,
            totals: self.figures.totals,
            hold: self.figures.hold.clone(),
            ttft: self.figures.ttft.clone(),
            warm_ttft: self.figures.warm_ttft.clone(),
            upstream_ttft: self.figures.upstream_ttft.clone(),
            itl: self.figures.itl.clone(),
            end_to_end: self.figures.end_to_end.clone(),
            // The model has neither a barrier nor pods.
            zero_epoch: None,
            endpoints: endpoints.collect(),
            waiting: BTreeMap::new(),
        }
    }
}

//! A pool as the scaler sees it: figures of the scheduling state, read under its lock, and the
//! sums, read without it. The sums may be a few requests ahead; each counter on its own never goes
//! back.

use std::sync::Arc;

use forebay_signals::{PoolSignals, Totals};
use forebay_telemetry::context::TraceContext;
use tokio::time::Instant;

use super::Pool;
use crate::figures::sums::Sums;

/// The most held requests whose traces are reported.
const MOST_TRACES: usize = 8;

impl Pool {
    /// Everything that the scaler receives about this pool.
    pub(crate) fn signals(&self) -> PoolSignals {
        let mut signals = self.scheduling_signals();
        let Sums { totals, hold, ttft, warm_ttft, upstream_ttft, itl, end_to_end } =
            self.figures.sums();
        let Totals { accepted, accepted_prompt_tokens, released, .. } = signals.totals;
        signals.totals = Totals { accepted, accepted_prompt_tokens, released, ..totals };
        PoolSignals { hold, ttft, warm_ttft, upstream_ttft, itl, end_to_end, ..signals }
    }

    fn scheduling_signals(&self) -> PoolSignals {
        let (now, settings) = (Instant::now(), self.settings());
        let state = self.scheduling.peek();
        let endpoints = state.endpoints.iter();
        let endpoints: Vec<_> = endpoints
            .map(|(name, _, endpoint)| (Arc::clone(name), endpoint.signals(now)))
            .collect();
        let pods = state.pending_pods.iter();
        let pods = pods.map(|(name, (pod, _))| (name.clone(), Some(pod.clone())));
        let in_flight = endpoints.iter().map(|(_, endpoint)| endpoint.in_flight).sum();
        let oldest = state.queue.longest_held().map(|waiter| waiter.accepted).min();
        let traced = state.queue.longest_held().filter_map(|waiter| waiter.trace);
        let traced: Vec<_> = traced.take(MOST_TRACES).collect();
        let admitted = &state.admitted;
        let signals = PoolSignals {
            queue_depth: state.queue.depth() as u32 + state.backlog.refused,
            queue_bytes: state.queue.bytes(),
            held_tokens: state.queue.tokens(),
            oldest_hold_seconds: oldest
                .map_or(0.0, |since| now.saturating_duration_since(since).as_secs_f64()),
            held_traces: traced.iter().map(TraceContext::to_string).collect(),
            expected_wait_seconds: state
                .expected_wait(&settings, now)
                .map(|wait| wait.as_secs_f64()),
            in_flight,
            in_flight_tokens: admitted.in_flight_tokens,
            totals: Totals {
                accepted: admitted.accepted,
                accepted_prompt_tokens: admitted.accepted_prompt_tokens,
                released: admitted.released,
                ..Totals::default()
            },
            zero_epoch: state
                .barrier
                .filter(|barrier| now < barrier.until && in_flight == 0)
                .map(|barrier| barrier.epoch),
            waiting: pods.collect(),
            ..PoolSignals::default()
        };
        drop(state);
        // The map is built without the lock: there may be thousands.
        let endpoints = endpoints.into_iter();
        let endpoints =
            endpoints.map(|(name, endpoint)| (String::from(&*name), Some(endpoint))).collect();
        PoolSignals { endpoints, ..signals }
    }
}

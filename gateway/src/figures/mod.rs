//! Every figure of the gateway: what `/metrics` shows, and the sums that `/signals` reports.
//!
//! A figure is recorded without a pool's lock: a metric is an atomic, a sum belongs to one thread's
//! shard. Labels are bounded by configuration and discovery, never by what clients send. May use
//! `text` and `answer`.

pub(crate) mod arrivals;
mod edge;
mod endpoint;
pub(crate) mod endpoint_totals;
pub(crate) mod gen_ai;
mod model;
pub(crate) mod pool;
mod session;
pub(crate) mod sums;
pub(crate) mod tenant;
#[cfg(test)]
mod test_recorder;

pub(crate) use edge::{connections, connections_that_made_room, refused_connections, scaler_heard};
pub(crate) use endpoint::{endpoints_otlp, endpoints_text};
pub use gen_ai::describe_gen_ai;
pub(crate) use pool::unrouted;

/// Bounds for each histogram: holds and TTFTs of seconds to minutes, ITLs of milliseconds.
pub const BUCKETS: &[(&str, &[f64])] = &[
    (pool::HOLD, HOLDS),
    (pool::TTFT, LATENCY),
    (pool::UPSTREAM_TTFT, LATENCY),
    (pool::PAUSE, LATENCY),
    (pool::PAUSE_UPSTREAM, LATENCY),
    (pool::ITL, GAPS),
    (pool::END_TO_END, WHOLE),
    (tenant::HOLD, HOLDS),
    (tenant::TTFT, LATENCY),
    (tenant::ITL, GAPS),
    (tenant::END_TO_END, WHOLE),
    (session::SECONDS, session::LENGTHS),
    (session::TENANT_SECONDS, session::LENGTHS),
    (gen_ai::DURATION, gen_ai::DURATIONS),
    (gen_ai::TTFT, gen_ai::TTFTS),
    (gen_ai::PER_TOKEN, gen_ai::TIMES_PER_TOKEN),
    (gen_ai::USAGE, gen_ai::TOKENS),
];
const HOLDS: &[f64] =
    &[0.001, 0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0];
const LATENCY: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];
const GAPS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 5.0];
const WHOLE: &[f64] = &[0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0];

/// Registers the help text of every metric.
pub fn describe() {
    edge::describe();
    endpoint::describe();
    model::describe();
    session::describe();
    pool::describe();
    tenant::describe();
}

//! The endpoints of a pool in detail, for operators: probes, failures, and what the pick policy has
//! learned of each.

use std::time::SystemTime;

use forebay_signals::Health;
use serde::Serialize;
use tokio::time::Instant;

use super::Pool;

/// The endpoints of a pool.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EndpointReport {
    pub(crate) pool: String,
    /// Endpoints there are; those that follow may be fewer.
    pub(crate) count: usize,
    pub(crate) endpoints: Vec<ReportedEndpoint>,
}

/// One endpoint. Times are in milliseconds since the epoch, and `null` for what has not happened.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ReportedEndpoint {
    pub(crate) address: String,
    health: Health,
    reason: String,
    in_flight: u32,
    limit: u32,
    failures_in_a_row: u32,
    silent_probes: u32,
    last_probe_millis: Option<u64>,
    last_answer_millis: Option<u64>,
    /// The pick policy's own figures; `null` under one that learns nothing of endpoints.
    learned: Option<ReportedLearned>,
}

/// Figures that the pick policy has learned of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct ReportedLearned {
    /// Tokens that its prefix cache takes before it drops what was not used.
    cache_tokens: u64,
    /// Whether it reports that itself. Otherwise it is the usual size.
    cache_reported: bool,
    /// Bytes of prompts that it works on in a second.
    prompt_bytes_per_second: f64,
    /// How many times as long as at the others a first token takes, and a later one.
    first_token_slowness: f64,
    later_token_slowness: f64,
}

impl Pool {
    /// Its endpoints by address, at most `limit` of them.
    pub(crate) fn endpoint_report(&self, limit: usize) -> EndpointReport {
        let state = self.scheduling.peek();
        let (now, wall) = (Instant::now(), SystemTime::now());
        let epoch = wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let millis = |at: Instant| {
            epoch.saturating_sub(now.saturating_duration_since(at)).as_millis() as u64
        };
        let endpoints = state.endpoints.iter().take(limit).map(|(name, id, endpoint)| {
            let learned = state.learned(id, now);
            let endpoint = endpoint.state(now);
            ReportedEndpoint {
                address: name.to_string(),
                health: endpoint.health,
                reason: endpoint.reason,
                in_flight: endpoint.in_flight,
                limit: endpoint.limit,
                failures_in_a_row: endpoint.failures_in_a_row,
                silent_probes: endpoint.silent_probes,
                last_probe_millis: endpoint.last_probe.map(millis),
                last_answer_millis: endpoint.last_answer.map(millis),
                learned: learned.map(|learned| ReportedLearned {
                    cache_tokens: learned.cache_tokens,
                    cache_reported: learned.cache_reported,
                    prompt_bytes_per_second: learned.prompt_bytes_per_second.round(),
                    first_token_slowness: rounded(learned.first_token_slowness),
                    later_token_slowness: rounded(learned.later_token_slowness),
                }),
            }
        });
        let endpoints = endpoints.collect();
        EndpointReport { pool: self.name.to_string(), count: state.endpoints.len(), endpoints }
    }
}

fn rounded(times: f64) -> f64 {
    (times * 100.0).round() / 100.0
}

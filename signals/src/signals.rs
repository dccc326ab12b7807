//! The signals that a gateway reports of its pools: first-hand figures, measured inline.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::feed::{Delta, map_apply, map_since};
use crate::histogram::Histogram;

/// One pool as one gateway sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PoolSignals {
    /// Requests held now, and requests refused since the last second began because they could not
    /// start in time: they are demand too.
    pub queue_depth: u32,
    /// Bytes of body held now.
    pub queue_bytes: u64,
    /// Estimated tokens (prompt and output) of the requests held now.
    pub held_tokens: u64,
    /// How long the longest held has waited, in seconds.
    pub oldest_hold_seconds: f64,
    /// A few held requests that are traced, the longest held among them, each by its place in its
    /// trace: a `traceparent`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub held_traces: Vec<String>,
    /// How long a request would wait behind all that are held here, in seconds; `None` before the
    /// gateway has learned the times that this depends on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected_wait_seconds: Option<f64>,
    /// Requests at endpoints now.
    pub in_flight: u32,
    /// Estimated tokens of the requests at endpoints now.
    pub in_flight_tokens: u64,
    /// Counters since the gateway started.
    pub totals: Totals,
    /// Accepted → released.
    pub hold: Histogram,
    /// Accepted → first token passed on.
    pub ttft: Histogram,
    /// The same, without the time held while no endpoint was ready: the part that more replicas can
    /// improve.
    pub warm_ttft: Histogram,
    /// Released → first token passed on.
    pub upstream_ttft: Histogram,
    /// Gaps between tokens.
    pub itl: Histogram,
    /// Accepted → last byte.
    pub end_to_end: Histogram,
    /// The zero barrier this gateway holds for: nothing is in flight, and nothing is released to
    /// the endpoints that were there when it closed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zero_epoch: Option<u64>,
    /// Every endpoint by address (`IP:PORT`); `None`, in a change, for one that is gone.
    pub endpoints: BTreeMap<String, Option<EndpointSignals>>,
    /// Pods without an address yet, by name; in a change, `None` removes one.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub waiting: BTreeMap<String, Option<Waiting>>,
}

/// Counters that only grow while a gateway lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Totals {
    /// Requests accepted for the pool.
    pub accepted: u64,
    /// Requests released to an endpoint. Each counts once, at its first release; `retries` counts
    /// the others.
    pub released: u64,
    /// Requests answered to the end.
    pub completed: u64,
    /// Requests that failed for any other reason than the client's.
    pub failed: u64,
    /// Requests whose client left.
    pub client_left: u64,
    /// Requests refused: queue full, hold expired.
    pub refused: u64,
    /// Tries beyond a request's first.
    pub retries: u64,
    /// Estimated prompt tokens of accepted requests, from the size of their bodies.
    pub accepted_prompt_tokens: u64,
    /// Prompt tokens of answered requests, as the replicas reported them.
    pub prompt_tokens: u64,
    /// Of those, tokens that the replicas found in their prefix caches, and so had no work with.
    pub cached_tokens: u64,
    /// Generated tokens, as the replicas reported them.
    pub generated_tokens: u64,
}

/// Estimated tokens of a text, at four bytes a token. Both halves use this where no replica has
/// counted the tokens.
#[must_use]
pub const fn estimated_tokens(bytes: u64) -> u64 {
    bytes / 4
}

impl Totals {
    /// Prompt tokens that the replicas had to work on.
    #[must_use]
    pub fn uncached_prompt_tokens(&self) -> u64 {
        self.prompt_tokens.saturating_sub(self.cached_tokens)
    }

    /// Adds another gateway's counters.
    pub fn merge(&mut self, other: &Self) {
        self.accepted += other.accepted;
        self.released += other.released;
        self.completed += other.completed;
        self.failed += other.failed;
        self.client_left += other.client_left;
        self.refused += other.refused;
        self.retries += other.retries;
        self.accepted_prompt_tokens += other.accepted_prompt_tokens;
        self.prompt_tokens += other.prompt_tokens;
        self.cached_tokens += other.cached_tokens;
        self.generated_tokens += other.generated_tokens;
    }

    /// The difference to `earlier`, a reading of the same process.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            accepted: self.accepted.saturating_sub(earlier.accepted),
            released: self.released.saturating_sub(earlier.released),
            completed: self.completed.saturating_sub(earlier.completed),
            failed: self.failed.saturating_sub(earlier.failed),
            client_left: self.client_left.saturating_sub(earlier.client_left),
            refused: self.refused.saturating_sub(earlier.refused),
            retries: self.retries.saturating_sub(earlier.retries),
            accepted_prompt_tokens: self
                .accepted_prompt_tokens
                .saturating_sub(earlier.accepted_prompt_tokens),
            prompt_tokens: self.prompt_tokens.saturating_sub(earlier.prompt_tokens),
            cached_tokens: self.cached_tokens.saturating_sub(earlier.cached_tokens),
            generated_tokens: self.generated_tokens.saturating_sub(earlier.generated_tokens),
        }
    }
}

/// The state of an endpoint, judged by the gateway that probes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Health {
    /// Its probe has not answered yet.
    #[default]
    Starting,
    /// It takes requests.
    Ready,
    /// It was ejected because of its behaviour, so it does not count as capacity.
    Ejected,
    /// It finishes its requests and gets no new ones.
    Draining,
}

/// The phase of a pod's start, by its conditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PodPhase {
    /// No node was found for it yet.
    Unscheduled,
    /// Its node pulls the image, mounts volumes, makes the sandbox.
    Pulling,
    /// Its containers run, and it is not ready.
    Starting,
    /// Kubernetes calls it ready.
    Healthy,
    /// It was deleted, and finishes its requests.
    Draining,
    /// It can't start, or has ended.
    Failed,
}

impl PodPhase {
    /// Its name in a sentence: "2 replicas are …".
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Unscheduled => "waiting for a node",
            Self::Pulling => "pulling the image",
            Self::Starting => "starting",
            Self::Healthy => "ready",
            Self::Draining => "leaving",
            Self::Failed => "failing",
        }
    }
}

/// A pod without an address: nothing to probe yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Waiting {
    /// Its phase.
    pub phase: PodPhase,
    /// The reason why it is not ready, in words; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// Why an endpoint may have no more requests in flight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum LimitedBy {
    /// The configuration's `maxInFlight`.
    #[default]
    Configured,
    /// Its server has just begun, or no limit has been learned yet.
    SlowStart,
    /// The learned limit, which grows when it is reached.
    Growing,
    /// The learned limit: more would wait inside the engine, by the times of first tokens.
    Waiting,
    /// The learned limit: some waited inside the engine, by its own count.
    Reported,
    /// The learned limit: more would hardly bring more tokens a second.
    Gain,
    /// The engine's KV cache, which the requests in flight fill.
    KvCache,
    /// A reason that this version does not know.
    #[serde(other)]
    Unknown,
}

impl LimitedBy {
    /// Its name in the feed and in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Configured => "configured",
            Self::SlowStart => "slowStart",
            Self::Growing => "growing",
            Self::Waiting => "waiting",
            Self::Reported => "reported",
            Self::Gain => "gain",
            Self::KvCache => "kvCache",
            Self::Unknown => "unknown",
        }
    }

    /// Whether the limit is one that was learned.
    #[must_use]
    pub fn is_learned(self) -> bool {
        matches!(self, Self::Growing | Self::Waiting | Self::Reported | Self::Gain | Self::KvCache)
    }
}

/// One endpoint as one gateway sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointSignals {
    /// Whether it takes requests.
    pub health: Health,
    /// The phase of its pod, for an endpoint that was found in Kubernetes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<PodPhase>,
    /// The reason why it takes none, in words; empty when ready.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Requests this gateway has there.
    pub in_flight: u32,
    /// How many it may have there.
    pub limit: u32,
    /// Why not more.
    pub limited_by: LimitedBy,
    /// Requests it answered to the end.
    pub completed: u64,
    /// Requests it failed.
    pub failed: u64,
    /// Prompt tokens of the requests it answered, as it reported them.
    pub prompt_tokens: u64,
    /// Prompt tokens found in its prefix cache.
    pub cached_tokens: u64,
    /// Tokens it generated.
    pub generated_tokens: u64,
    /// Streams whose first token it sent.
    pub first_tokens: u64,
    /// The sum of their times from release to that token, in seconds.
    pub ttft_seconds: f64,
    /// Gaps between tokens of its streams.
    pub token_gaps: u64,
    /// The sum of these gaps, in seconds.
    pub itl_seconds: f64,
}

impl Delta for PoolSignals {
    fn since(&self, old: &Self) -> Option<Self> {
        if self == old {
            return None;
        }
        let endpoints = map_since(&self.endpoints, &old.endpoints);
        let waiting = map_since(&self.waiting, &old.waiting);
        Some(Self { endpoints, waiting, ..self.clone() })
    }

    fn apply(&mut self, mut change: Self) {
        map_apply(&mut self.endpoints, std::mem::take(&mut change.endpoints));
        change.endpoints = std::mem::take(&mut self.endpoints);
        map_apply(&mut self.waiting, std::mem::take(&mut change.waiting));
        change.waiting = std::mem::take(&mut self.waiting);
        *self = change;
    }
}

//! Models that lead to more than their own pool: splits and fallbacks.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units;

/// A model name whose requests are split between pools, for a canary or a move from one to another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Route {
    /// The name that clients send. If pools serve it themselves, the split takes precedence.
    pub model: String,
    /// Requests that stay together on one side of the split.
    #[serde(default)]
    pub by: SplitBy,
    /// The pools that share it; at least one.
    pub pools: Vec<Share>,
}

/// One pool's share of a route.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Share {
    /// The pool's name.
    pub pool: String,
    /// Its part of the requests, relative to the other weights; 0 gives it none.
    #[serde(default = "default_weight")]
    pub weight: u32,
    /// The model name that is sent to the pool's replicas. By default the route's own if the pool
    /// serves it, or else the first of the pool's `models`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
}

fn default_weight() -> u32 {
    1
}

/// Requests that stay together on one side of a split.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum SplitBy {
    /// Nothing: each request is on its own.
    Request,
    /// A conversation, identified by the header `x-session-id`, or else by the tenant and the
    /// beginning of the prompt.
    #[default]
    Session,
    /// All requests of a tenant.
    Tenant,
}

/// The other pool for requests that a pool can't serve in time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Fallback {
    /// The other pool's name. Its own fallback is not followed.
    pub pool: String,
    /// The model name that is sent to its replicas. By default the requested one if that pool serves
    /// it, or else the first of its `models`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// How long a request is held in its own pool before it goes to the other. By default until the
    /// hold is over, or until the learned cold start shows that no replica can be ready in time.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "units::duration::optional")]
    #[schemars(with = "Option<units::duration::DurationSchema>")]
    pub after: Option<Duration>,
}

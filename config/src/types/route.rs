//! Models that lead to more than their own pool: splits and fallbacks.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units;

/// A model name whose requests are split between pools, for a canary or a move from one to another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Route {
    /// The name that clients send. It may be one that pools serve themselves; this goes before.
    pub model: String,
    /// What is kept together on one side of the split.
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
    /// The name that the pool's replicas are sent. By default the route's own where the pool serves
    /// it, or else the first of the pool's `models`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
}

fn default_weight() -> u32 {
    1
}

/// What is kept together on one side of a split.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum SplitBy {
    /// Nothing: each request is on its own.
    Request,
    /// A conversation, known by the header `x-session-id`, or else by the tenant and how the prompt
    /// begins.
    #[default]
    Session,
    /// All that a tenant asks.
    Tenant,
}

/// Where requests go that a pool can't serve in time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Fallback {
    /// The other pool's name. Its own fallback is not followed.
    pub pool: String,
    /// The name that its replicas are sent. By default the one asked for where that pool serves it,
    /// or else the first of its `models`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// How long a request is held in its own pool before the other is asked. By default until the
    /// hold is over, where the learned cold start does not tell before that it would be in vain.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "units::duration::optional")]
    #[schemars(with = "Option<units::duration::Text>")]
    pub after: Option<Duration>,
}

//! The streams of an endpoint that drains.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units;

/// The streams of an endpoint that drains, before a scale-down, when its pod is deleted, or by
/// `/drain`: they finish there, or move to other endpoints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Drain {
    /// How long an endpoint drains before its streams move to other endpoints of the pool, a few at a
    /// time and only where there is room. They move only with `continue: auto`, and only if the request
    /// allows it; the others finish where they are. `never`: all finish where they are.
    #[serde(with = "units::duration::or_never")]
    #[schemars(with = "units::duration::OrNeverSchema")]
    pub move_after: Option<Duration>,
}

impl Default for Drain {
    fn default() -> Self {
        Self { move_after: Some(Duration::from_secs(5)) }
    }
}

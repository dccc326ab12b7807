//! Triggers as they are written: KEDA's shape, so that those of a ScaledObject can be pasted.
//!
//! [`Trigger::rule`] reads a trigger's meaning from its metadata.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units;

mod gpu;
mod metadata;
mod range;
mod rule;
mod schedule;

pub use gpu::{Gauge, GpuFigure};
pub use metadata::Fault;
pub use range::Range;
pub(crate) use rule::unknown_zone;
pub use rule::{CronWindow, GpuSource, PromQuery, Rule, Signal};

/// Values of [`Trigger::kind`]: first-hand signals, then those that are read elsewhere.
pub const TRIGGER_TYPES: [&str; 12] = [
    "queueDepth",
    "concurrency",
    "ttft",
    "itl",
    "tokensPerSecond",
    "kvCache",
    "gpuUtilization",
    "gpuMemoryCopyUtilization",
    "gpuMemoryUsed",
    "gpuPower",
    "prometheus",
    "cron",
];

/// A rule that turns one signal into a proposed replica count. The largest proposal of a pool wins.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Trigger {
    /// The signal: `queueDepth`, `concurrency`, `ttft`, `itl`, `tokensPerSecond`, `kvCache`,
    /// `gpuUtilization`, `gpuMemoryCopyUtilization`, `gpuMemoryUsed`, `gpuPower`, `prometheus` or
    /// `cron`.
    #[serde(rename = "type")]
    #[schemars(extend("enum" = TRIGGER_TYPES))]
    pub kind: String,
    /// The trigger's name in decisions and metrics; by default its type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// How the value is compared with the threshold: `AverageValue` asks for ⌈value ÷ threshold⌉
    /// replicas, `Value` for ⌈ready × value ÷ threshold⌉. The default is the signal's own:
    /// `Value` for latencies and for shares of a whole, else `AverageValue`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric_type: Option<MetricType>,
    /// KEDA's; without effect here, where a decision never waits for a query.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub use_cached_metrics: Option<bool>,
    /// KEDA's TriggerAuthentication; not read here. Credentials are given in `prometheus`, or as
    /// files in `metadata`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authentication_ref: Option<AuthenticationRef>,
    /// The signal's own settings, `threshold` and `activationThreshold` among them. Numbers may be
    /// quoted; an unknown key is a warning.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, units::WordSchema>")]
    pub metadata: BTreeMap<String, String>,
}

/// How a trigger's value is compared with its threshold, as in KEDA and the HPA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum MetricType {
    /// The value is a total, to be shared by the replicas: ⌈value ÷ threshold⌉.
    AverageValue,
    /// The value is one figure for all: ⌈ready × value ÷ threshold⌉.
    Value,
}

/// A TriggerAuthentication's name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthenticationRef {
    /// Its name.
    pub name: String,
    /// `TriggerAuthentication` or `ClusterTriggerAuthentication`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
}

impl Trigger {
    /// A trigger of this type with these settings.
    #[must_use]
    pub fn of(kind: &str, metadata: &[(&str, &str)]) -> Self {
        let metadata = metadata.iter().map(|(key, value)| ((*key).into(), (*value).into()));
        Self { kind: kind.into(), metadata: metadata.collect(), ..Self::default() }
    }

    /// Its name, or else its type.
    #[must_use]
    pub fn label(&self) -> &str {
        self.name.as_deref().filter(|name| !name.is_empty()).unwrap_or(&self.kind)
    }
}

impl fmt::Display for MetricType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AverageValue => "AverageValue",
            Self::Value => "Value",
        })
    }
}

/// The name of each of a pool's triggers: its label, with a number after it if an earlier one has the
/// same.
#[must_use]
pub fn trigger_names(triggers: &[Trigger]) -> Vec<String> {
    let mut names: Vec<String> = Vec::with_capacity(triggers.len());
    for trigger in triggers {
        let label = trigger.label();
        let mut name = label.to_owned();
        let mut nth = 1;
        while names.contains(&name) {
            nth += 1;
            name = format!("{label}-{nth}");
        }
        names.push(name);
    }
    names
}

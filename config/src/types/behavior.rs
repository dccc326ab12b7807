//! The HPA's `behavior`: how fast a count may change; and the `advanced` of a ScaledObject, which
//! may hold it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units;

/// How fast the count may change, as the HPA's `behavior`. A part that is left out has the HPA's
/// default: up by 4 replicas or 100 % in 15 s, whichever is more; down by 100 % in 15 s, to no less
/// than the highest proposal of the last 300 s.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Behavior {
    /// Upwards.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale_up: Option<ScalingRules>,
    /// Downwards.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale_down: Option<ScalingRules>,
}

/// Rules for one direction.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ScalingRules {
    /// A window in seconds, 3600 at most: upwards the lowest, downwards the highest proposal within it
    /// counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<units::CountSchema>", extend("maximum" = 3600))]
    pub stabilization_window_seconds: Option<u32>,
    /// Which of the policies counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub select_policy: Option<SelectPolicy>,
    /// Limits on the change within a period.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policies: Option<Vec<ScalingPolicy>>,
    /// A proposal that differs by no more than this share of the present count is ignored; by default
    /// 0.1. It may be a Kubernetes quantity: `100m`.
    #[serde(skip_serializing_if = "Option::is_none", with = "units::quantity")]
    #[schemars(with = "Option<units::quantity::QuantitySchema>")]
    pub tolerance: Option<f64>,
}

/// Which of several policies counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SelectPolicy {
    /// The one that allows the largest change.
    #[default]
    Max,
    /// The one that allows the smallest change.
    Min,
    /// Nothing changes in this direction.
    Disabled,
}

/// A limit on the change within a period.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ScalingPolicy {
    /// The unit of `value`.
    pub r#type: PolicyType,
    /// Replicas or percent, at least 1.
    #[schemars(with = "units::CountSchema", extend("minimum" = 1))]
    pub value: u32,
    /// The period, 1 to 1800 s.
    #[schemars(with = "units::CountSchema", extend("minimum" = 1, "maximum" = 1800))]
    pub period_seconds: u32,
}

/// The unit of a policy's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PolicyType {
    /// Replicas.
    Pods,
    /// Percent of the replicas at the beginning of the period.
    Percent,
}

/// The `advanced` of a ScaledObject: the fields that have a meaning here.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Advanced {
    /// KEDA's; without effect here: a removed pool's replicas are left as its target has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore_to_original_replica_count: Option<bool>,
    /// Settings that KEDA hands to the HPA.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub horizontal_pod_autoscaler_config: Option<HpaConfig>,
}

/// Settings that KEDA hands to the HPA.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HpaConfig {
    /// The HPA's name; without effect here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The same as `scaling.behavior`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub behavior: Option<Behavior>,
}

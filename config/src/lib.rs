//! Forebay's configuration: one YAML file for gateway and scaler, typed and checked.
//!
//! Field names are camelCase, as in Kubernetes. A setting that the HPA or KEDA has too has their
//! name for it. Durations are `30s` or bare seconds, sizes `32Mi` or bare bytes. Unknown fields are
//! errors. Every problem of a file is reported at once, with its line and what to write instead.
//!
//! The types here are what the other crates work with; [`load`] and [`parse`] make them from text,
//! [`schema`] describes them to editors, and [`print()`] writes them back.

mod check;
mod lint;
mod load;
mod types;
mod units;
mod yaml;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use lint::scaled_object::{Inspection, inspect_scaled_object};
pub use load::output::{print, schema};
pub use load::{inspect, load, parse};
pub use types::behavior::{
    Advanced, Behavior, HpaConfig, PolicyType, ScalingPolicy, ScalingRules, SelectPolicy,
};
pub use types::command;
pub use types::discovery::{Discovery, Dns, EndpointSlices, Pods};
pub use types::drain::Drain;
pub use types::edge::{Cors, PATHS, Tls, TlsVersion};
pub use types::gateway::{Admin, Gateway, Limits, RecordArrivals};
pub use types::keys::{Key, NotAHash, parse_hash, parse_key_lines, parse_keys};
pub use types::logging::{LogFormat, Logging};
pub use types::open_telemetry::{OpenTelemetry, OtlpMetrics, OtlpProtocol, Traces};
pub use types::pick::Pick;
pub use types::pool::{Continue, Hold, HoldOrder, InFlightLimit, Pool, ShowReason, Upstream};
pub use types::prometheus::{BasicAuth, Prometheus, base_url};
pub use types::replay::{Clients, ColdStartModel, Replay, ReplicaModel};
pub use types::route::{Fallback, Route, Share, SplitBy};
pub use types::scaling::{KedaListener, KedaTls, LeaderElection, Objective, Scaler, Scaling};
pub use types::target::{Keda, Kubernetes, Processes, Target};
pub use types::tenant::{ANONYMOUS, Keys, PriorityClass, Tenant};
pub use types::trigger::{
    AuthenticationRef, CronWindow, Fault, Gauge, GpuFigure, GpuSource, MetricType, PromQuery,
    Range, Rule, Signal, TRIGGER_TYPES, Trigger, trigger_names,
};
pub use units::authority::{AddressError, authority};
pub use units::cron::Cron;
pub use units::host::{HostPattern, is_name};
pub use units::millis::Millis;
pub use units::network::Network;
pub use units::redact::redacted;
pub use units::{
    ByteSize, DurationError, SizeError, format_duration, parse_duration, parse_listen_address,
    parse_port_range,
};
pub use yaml::problem::{Place, Problem, Problems};
pub use yaml::scalar as yaml_scalar;

/// Forebay's configuration: one file for gateway and scaler.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schemars(title = "Forebay configuration")]
pub struct Config {
    /// The data plane: what clients connect to.
    pub gateway: Gateway,
    /// The operators' port: metrics, the feeds, health.
    pub admin: Admin,
    /// The log on standard error.
    pub logging: Logging,
    /// Traces and metrics for an OpenTelemetry Collector.
    pub open_telemetry: OpenTelemetry,
    /// The scaler, which decides replica counts.
    pub scaler: Scaler,
    /// The Prometheus server for triggers that name none of their own.
    pub prometheus: Prometheus,
    /// One entry for each base model; at least one.
    pub pools: Vec<Pool>,
    /// The model that `forebay replay` plays a load against.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replay: Option<Replay>,
}

impl Config {
    /// The problems of a configuration that was not read from a file. [`load`] and [`parse`] never
    /// return one with problems.
    #[must_use]
    pub fn problems(&self) -> Problems {
        check::check(self).problems()
    }

    /// Settings that are allowed and yet probably a mistake. Without lines, which only [`inspect`]
    /// knows.
    #[must_use]
    pub fn warnings(&self) -> Problems {
        check::check(self).warnings()
    }
}

//! The OpenTelemetry Collector, or another receiver of OTLP, that gets traces and metrics.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units;

/// Traces and metrics for an OpenTelemetry Collector, or any other receiver of OTLP. Nothing is
/// exported until an endpoint is given, here or in the environment. What is left out here is taken
/// from OpenTelemetry's own variables, such as `OTEL_EXPORTER_OTLP_ENDPOINT`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct OpenTelemetry {
    /// Base URL of the receiver, such as `http://otel-collector.monitoring:4317`. With
    /// `protocol: http`, `/v1/traces` and `/v1/metrics` are added to it. By default
    /// `OTEL_EXPORTER_OTLP_ENDPOINT`; without that, nothing is exported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The protocol. By default `OTEL_EXPORTER_OTLP_PROTOCOL`; without that, `grpc` if the
    /// endpoint's port is 4317, and `http` otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<OtlpProtocol>,
    /// File with headers for the receiver, such as a key: `NAME: VALUE` a line. It is read anew for
    /// each export. By default the headers are those of `OTEL_EXPORTER_OTLP_HEADERS`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub headers_file: Option<PathBuf>,
    /// File with the certificates, in PEM, of the authorities for an `https` endpoint. By default
    /// `OTEL_EXPORTER_OTLP_CERTIFICATE`; without that, the system's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// Longest time for one export, with its repetitions. By default
    /// `OTEL_EXPORTER_OTLP_TIMEOUT`; without that, 10s.
    #[serde(with = "units::duration::optional", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<units::duration::DurationSchema>")]
    pub timeout: Option<Duration>,
    /// The name of this service. By default `OTEL_SERVICE_NAME`; without that, `forebay`, or
    /// `forebay-gateway` and `forebay-scaler` where they run apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_name: Option<String>,
    /// Attributes of everything that this process exports, added to those of
    /// `OTEL_RESOURCE_ATTRIBUTES`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub resource_attributes: BTreeMap<String, String>,
    /// Which requests get a trace.
    pub traces: Traces,
    /// How often metrics are exported.
    pub metrics: OtlpMetrics,
}

/// The protocols of OTLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum OtlpProtocol {
    /// Protobuf over gRPC, usually on port 4317.
    Grpc,
    /// Protobuf over HTTP, usually on port 4318.
    Http,
}

/// Which requests get a trace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Traces {
    /// Whether traces are exported.
    pub enabled: bool,
    /// The share of the requests to trace, 0 to 1, of those that come without a trace of their own.
    /// A request that comes with one is traced if its client traces it. By default by
    /// `OTEL_TRACES_SAMPLER` and `OTEL_TRACES_SAMPLER_ARG`; without these, 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1))]
    pub sample_ratio: Option<f64>,
    /// A request that was held for at least this long is always exported, as one that failed is.
    #[serde(with = "units::duration")]
    #[schemars(with = "units::duration::DurationSchema")]
    pub always_over: Duration,
}

/// How metrics are exported.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct OtlpMetrics {
    /// Whether metrics are exported.
    pub enabled: bool,
    /// The time between two exports. By default `OTEL_METRIC_EXPORT_INTERVAL`; without that, 60s.
    #[serde(with = "units::duration::optional", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<units::duration::DurationSchema>")]
    pub interval: Option<Duration>,
}

impl Default for Traces {
    fn default() -> Self {
        Self { enabled: true, sample_ratio: None, always_over: Duration::from_secs(10) }
    }
}

impl Default for OtlpMetrics {
    fn default() -> Self {
        Self { enabled: true, interval: None }
    }
}

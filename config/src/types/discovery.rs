//! Discovery of addresses in Kubernetes or DNS.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units;

/// Discovery of addresses: exactly one of these.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Discovery {
    /// Pods of a Kubernetes cluster, watched: each counts from the moment it has an address.
    Pods(Pods),
    /// The EndpointSlices of a Kubernetes Service, watched.
    EndpointSlices(EndpointSlices),
    /// All addresses of a DNS name, such as a headless Service's, looked up at an interval.
    Dns(Dns),
}

/// Pods by their labels: exactly one of `selector` and `service`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Pods {
    /// Their namespace; by default Forebay's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Label selector as in `kubectl get -l`, such as `app=qwen` or `app in (qwen, llama)`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// Name of a Service whose selector is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The port that each member listens on.
    pub port: u16,
}

/// The EndpointSlices of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EndpointSlices {
    /// The Service's namespace; by default Forebay's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The Service's name.
    pub service: String,
    /// The port's name in the Service; by default its only or first port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_name: Option<String>,
}

/// A DNS name with one address for each member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Dns {
    /// The name, such as `vllm-headless.models.svc.cluster.local`.
    pub host: String,
    /// The port that each member listens on.
    pub port: u16,
    /// How often it is looked up.
    #[serde(default = "default_interval", with = "units::duration")]
    #[schemars(with = "units::duration::DurationSchema")]
    pub interval: Duration,
}

impl Discovery {
    /// The port, if it is known before a member is found.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        match self {
            Self::Pods(pods) => Some(pods.port),
            Self::Dns(dns) => Some(dns.port),
            Self::EndpointSlices(_) => None,
        }
    }
}

fn default_interval() -> Duration {
    Duration::from_secs(2)
}

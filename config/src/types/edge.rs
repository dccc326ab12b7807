//! The gateway's client side: what it exposes, TLS, and other origins.

use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units;

/// Every path that the gateway can expose. `{model}` stands for one model's name.
pub const PATHS: &[&str] = &[
    "/health",
    "/ping",
    "/version",
    "/v1/models",
    "/v1/models/{model}",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/embeddings",
    "/v1/audio/transcriptions",
    "/v1/audio/translations",
    "/v1/realtime",
    "/v1/rerank",
    "/v2/rerank",
    "/rerank",
    "/v1/score",
    "/score",
    "/pooling",
    "/classify",
    "/tokenize",
    "/detokenize",
];

/// TLS for clients, with HTTP/2 negotiated. All files are PEM, and read again when they change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tls {
    /// The certificate, followed by those that lead to its root.
    pub cert_file: PathBuf,
    /// Its private key.
    pub key_file: PathBuf,
    /// Authorities that must have signed the clients' certificates. Left out: clients need none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_ca_file: Option<PathBuf>,
    /// Lowest version that is accepted.
    #[serde(default)]
    pub min_version: TlsVersion,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TlsVersion {
    /// TLS 1.2.
    #[default]
    #[serde(rename = "1.2")]
    V1_2,
    /// TLS 1.3.
    #[serde(rename = "1.3")]
    V1_3,
}

/// Access for browser pages of other origins (CORS).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cors {
    /// Origins, as `https://chat.example.com`; `*` for any.
    pub origins: Vec<String>,
    /// Methods that they may use.
    #[serde(default = "default_methods")]
    pub methods: Vec<String>,
    /// Request headers that they may send; `*` for any.
    #[serde(default = "default_headers")]
    pub headers: Vec<String>,
    /// Response headers that they may read.
    #[serde(default = "default_exposed")]
    pub expose_headers: Vec<String>,
    /// Whether they may send cookies and other credentials. Not with the origin `*`.
    #[serde(default)]
    pub credentials: bool,
    /// How long a browser may keep the answer to its preflight.
    #[serde(with = "units::duration", default = "default_max_age")]
    #[schemars(with = "units::duration::DurationSchema")]
    pub max_age: Duration,
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn default_methods() -> Vec<String> {
    owned(&["GET", "POST"])
}

/// The headers that the clients of OpenAI and Anthropic send.
fn default_headers() -> Vec<String> {
    owned(&[
        "authorization",
        "content-type",
        "x-api-key",
        "x-request-id",
        "traceparent",
        "tracestate",
        "anthropic-version",
        "anthropic-beta",
        "anthropic-dangerous-direct-browser-access",
        "openai-organization",
        "openai-project",
        "openai-beta",
        "idempotency-key",
        "x-stainless-arch",
        "x-stainless-lang",
        "x-stainless-os",
        "x-stainless-package-version",
        "x-stainless-retry-count",
        "x-stainless-runtime",
        "x-stainless-runtime-version",
        "x-stainless-timeout",
        "x-stainless-helper-method",
    ])
}

fn default_exposed() -> Vec<String> {
    owned(&[
        "x-request-id",
        "server-timing",
        "retry-after",
        "x-ratelimit-limit-requests",
        "x-ratelimit-limit-tokens",
        "x-ratelimit-remaining-requests",
        "x-ratelimit-remaining-tokens",
        "x-ratelimit-reset-requests",
        "x-ratelimit-reset-tokens",
    ])
}

fn default_max_age() -> Duration {
    Duration::from_secs(10 * 60)
}

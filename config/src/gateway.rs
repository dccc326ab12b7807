//! The data plane's and the operators' ports.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::route::Route;
use crate::tenant::{Keys, Tenant};
use crate::units::{self, ByteSize};

/// The data plane: what clients connect to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Gateway {
    /// Address for clients, `IP:PORT`. Port 0 takes any free one.
    #[serde(with = "units::address")]
    #[schemars(with = "String")]
    pub listen: SocketAddr,
    /// Threads, each with its own runtime and socket; one per core unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub threads: Option<u16>,
    /// Bounds on what a client may send.
    pub limits: Limits,
    /// How long a shutdown waits for what is in flight and held; then it is cut off.
    #[serde(with = "units::duration")]
    #[schemars(with = "units::duration::Text")]
    pub shutdown_timeout: Duration,
    /// The scaler's admin address, `HOST:PORT` or `http://HOST:PORT`, where `/replicas` is read.
    /// Left out where both run in one process, or where nothing scales.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scaler: Option<String>,
    /// API keys; without it none are asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keys: Option<Keys>,
    /// Who has keys, with what limits. `anonymous`, who has none, is without limits unless listed.
    pub tenants: Vec<Tenant>,
    /// Models whose requests are split between pools.
    pub routes: Vec<Route>,
}

/// Bounds on what a client may send, each answered with a clear error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Limits {
    /// Largest request body; a longer one is answered 413.
    pub body_size: ByteSize,
    /// Largest request head, that is request line and headers; a longer one is answered 431.
    pub header_size: ByteSize,
    /// From the first byte of a head to its last; then the connection is closed.
    #[serde(with = "units::duration")]
    #[schemars(with = "units::duration::Text")]
    pub header_timeout: Duration,
    /// From the head to the body's last byte; then 408.
    #[serde(with = "units::duration")]
    #[schemars(with = "units::duration::Text")]
    pub body_timeout: Duration,
    /// How long a client may take nothing of what is sent to it.
    #[serde(with = "units::duration")]
    #[schemars(with = "units::duration::Text")]
    pub write_timeout: Duration,
}

/// The operators' port: metrics, the feeds, health.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Admin {
    /// Address, `IP:PORT`. On any other than loopback, everything but `/metrics`, `/healthz` and
    /// `/readyz` needs the token of `tokenFile`, which must be given then.
    #[serde(with = "units::address")]
    #[schemars(with = "String")]
    pub listen: SocketAddr,
    /// File with the token that operators and the readers of the feeds send as `Bearer`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
}

impl Default for Gateway {
    fn default() -> Self {
        Self {
            listen: ([0, 0, 0, 0], 8080).into(),
            threads: None,
            limits: Limits::default(),
            shutdown_timeout: Duration::from_secs(30),
            scaler: None,
            keys: None,
            tenants: Vec::new(),
            routes: Vec::new(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_size: ByteSize::mib(32),
            header_size: ByteSize::kib(64),
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(120),
        }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self { listen: ([127, 0, 0, 1], 9900).into(), token_file: None }
    }
}

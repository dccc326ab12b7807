//! Forebay's configuration: one YAML file for gateway and scaler, typed and checked.
//!
//! Field names are camelCase like Kubernetes', and HPA's and KEDA's own where the thing exists
//! there. Durations are `30s` or bare seconds, sizes `32Mi` or bare bytes. Unknown fields are
//! errors.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

mod units;

pub use units::ByteSize;

/// The whole file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Config {
    /// The data plane: what clients connect to.
    pub gateway: Gateway,
    /// Metrics, the feeds, health and everything for operators.
    pub admin: Admin,
    /// What decides replica counts.
    pub scaler: Scaler,
    /// One entry for each base model.
    pub pools: Vec<Pool>,
}

/// The data plane.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Gateway {
    /// Address for clients. Port 0 takes any free one.
    pub listen: SocketAddr,
    /// Threads, each with its own runtime and socket; by default one a core.
    pub threads: Option<u16>,
    /// Bounds on what a client may send.
    pub limits: Limits,
    /// How long a shutdown waits for what is in flight and held.
    #[serde(with = "units::duration")]
    #[schemars(with = "String")]
    pub shutdown_timeout: Duration,
    /// The scaler's admin address, where `/replicas` is read. Left out where both run in one
    /// process, or where nothing scales.
    pub scaler: Option<String>,
}

/// Bounds on what a client may send, each answered with a clear error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Limits {
    /// Largest request body.
    pub body_size: ByteSize,
    /// Largest request head: request line and headers.
    pub header_size: ByteSize,
    /// From the first byte of a head to its last.
    #[serde(with = "units::duration")]
    #[schemars(with = "String")]
    pub header_timeout: Duration,
    /// From the head to the body's last byte.
    #[serde(with = "units::duration")]
    #[schemars(with = "String")]
    pub body_timeout: Duration,
    /// How long a connection may wait for its next request.
    #[serde(with = "units::duration")]
    #[schemars(with = "String")]
    pub idle_timeout: Duration,
}

/// The operators' port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Admin {
    /// Address. On any other than loopback, everything but `/metrics`, `/healthz` and `/readyz`
    /// needs the token.
    pub listen: SocketAddr,
    /// File with the token that readers of the feeds and operators send as `Bearer`.
    pub token_file: Option<PathBuf>,
}

/// What decides replica counts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Scaler {
    /// Admin addresses of the gateways whose `/signals` are read. Left out where both run in one
    /// process.
    pub gateways: Vec<String>,
    /// How long a listed gateway may be silent before its last figures begin to fade; until then,
    /// and while any is silent, nothing scales down.
    #[serde(with = "units::duration")]
    #[schemars(with = "String")]
    pub stale_after: Duration,
    /// Where what was learned is kept between starts.
    pub state_dir: Option<PathBuf>,
}

/// Interchangeable replicas that serve one base model, with one queue, one scale target and one
/// policy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Pool {
    /// The pool's identity: in metrics, logs and feeds.
    pub name: String,
    /// Model names that clients may send. Empty: any name is taken until the first replica tells
    /// its own.
    #[serde(default)]
    pub models: Vec<String>,
    /// Fixed addresses (`host:port` or `http://host:port`) of replicas that something else runs.
    #[serde(default)]
    pub endpoints: Vec<String>,
    /// Most requests in flight at one endpoint.
    #[serde(default = "default_max_in_flight")]
    pub max_in_flight: u32,
    /// Bounds on the queue.
    #[serde(default)]
    pub hold: Hold,
    /// Time limits on the way to and at the replicas.
    #[serde(default)]
    pub upstream: Upstream,
    /// What starts and stops replicas. Left out where nothing scales.
    #[serde(default)]
    pub target: Option<Target>,
    /// How many replicas.
    #[serde(default)]
    pub scaling: Scaling,
}

/// Bounds on a pool's queue.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Hold {
    /// Most requests held.
    pub max_requests: u32,
    /// Most bytes of body held.
    pub max_bytes: ByteSize,
    /// Longest hold; then 503 with `retry-after`.
    #[serde(with = "units::duration")]
    #[schemars(with = "String")]
    pub timeout: Duration,
    /// How long a streaming client is held in silence before it gets the stream's headers and SSE
    /// comments.
    #[serde(with = "units::duration")]
    #[schemars(with = "String")]
    pub heartbeat: Duration,
}

/// Time limits on the way to and at the replicas.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Upstream {
    /// To connect.
    #[serde(with = "units::duration")]
    #[schemars(with = "String")]
    pub connect_timeout: Duration,
    /// Longest silence of a stream that has begun, and of a stream that has not.
    #[serde(with = "units::duration")]
    #[schemars(with = "String")]
    pub stall_timeout: Duration,
    /// From accepted to the answer's last byte.
    #[serde(with = "units::duration")]
    #[schemars(with = "String")]
    pub request_timeout: Duration,
    /// Most tries of one request, the first included.
    pub max_tries: u32,
    /// Longest plain answer that is kept back until complete, so that it can be retried; a longer
    /// one is passed on as it comes.
    pub commit_size: ByteSize,
}

/// What starts and stops replicas.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Target {
    /// Processes on this machine.
    Processes(Processes),
}

/// Replicas as processes on this machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Processes {
    /// Program and arguments; `{port}` is filled in, and `{gpu}` where `gpus` are given.
    pub command: Vec<String>,
    /// Environment added to Forebay's own; `{port}` and `{gpu}` are filled in here too.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Ports to lease, first and last.
    #[serde(default = "default_ports")]
    pub ports: (u16, u16),
    /// GPUs to lease, one to each replica, as `{gpu}`.
    #[serde(default)]
    pub gpus: Vec<String>,
    /// Where each replica's output goes, a file each.
    #[serde(default)]
    pub log_dir: Option<PathBuf>,
    /// Longest time from start to healthy; then the replica is ended and started anew.
    #[serde(default = "default_start_timeout", with = "units::duration")]
    #[schemars(with = "String")]
    pub start_timeout: Duration,
    /// From SIGTERM to SIGKILL.
    #[serde(default = "default_stop_timeout", with = "units::duration")]
    #[schemars(with = "String")]
    pub stop_timeout: Duration,
}

/// How many replicas.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Scaling {
    /// Fewest replicas; 0 scales to zero when idle.
    pub min_replica_count: u32,
    /// Most replicas.
    pub max_replica_count: u32,
    /// Requests, in flight and held, for each replica; by default 80 % of `maxInFlight`.
    pub target_concurrency: Option<u32>,
    /// Requests that wake a pool from zero must be more than this. A held request always does.
    pub activation_threshold: u32,
    /// Window over which the load is averaged to scale down.
    #[serde(with = "units::duration")]
    #[schemars(with = "String")]
    pub stable_window: Duration,
    /// Window over which the load is averaged to scale up; while it asks for `panicThreshold` times
    /// the replicas there are, nothing scales down.
    #[serde(with = "units::duration")]
    #[schemars(with = "String")]
    pub panic_window: Duration,
    /// See `panicWindow`.
    pub panic_threshold: f64,
    /// How long a pool must be idle before it goes to `minReplicaCount` 0, counted from the last
    /// request or from when a replica became ready, whichever is later.
    #[serde(with = "units::duration")]
    #[schemars(with = "String")]
    pub cooldown_period: Duration,
}

fn default_max_in_flight() -> u32 {
    128
}

fn default_ports() -> (u16, u16) {
    (18_100, 18_999)
}

fn default_start_timeout() -> Duration {
    Duration::from_secs(30 * 60)
}

fn default_stop_timeout() -> Duration {
    Duration::from_secs(30)
}

impl Default for Gateway {
    fn default() -> Self {
        Self {
            listen: ([0, 0, 0, 0], 8080).into(),
            threads: None,
            limits: Limits::default(),
            shutdown_timeout: Duration::from_secs(30),
            scaler: None,
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
            idle_timeout: Duration::from_secs(75),
        }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self { listen: ([127, 0, 0, 1], 9900).into(), token_file: None }
    }
}

impl Default for Scaler {
    fn default() -> Self {
        Self { gateways: Vec::new(), stale_after: Duration::from_secs(10), state_dir: None }
    }
}

impl Default for Hold {
    fn default() -> Self {
        Self {
            max_requests: 10_000,
            max_bytes: ByteSize::mib(1024),
            timeout: Duration::from_secs(10 * 60),
            heartbeat: Duration::from_secs(15),
        }
    }
}

impl Default for Upstream {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(2),
            stall_timeout: Duration::from_secs(60),
            request_timeout: Duration::from_secs(60 * 60),
            max_tries: 5,
            commit_size: ByteSize::mib(1),
        }
    }
}

impl Default for Scaling {
    fn default() -> Self {
        Self {
            min_replica_count: 0,
            max_replica_count: 1,
            target_concurrency: None,
            activation_threshold: 0,
            stable_window: Duration::from_secs(60),
            panic_window: Duration::from_secs(6),
            panic_threshold: 2.0,
            cooldown_period: Duration::from_secs(300),
        }
    }
}

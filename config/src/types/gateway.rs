//! The gateway's port for clients, its limits, and the operators' port.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::types::edge::{Cors, PATHS, Tls};
use crate::types::route::Route;
use crate::types::tenant::{Keys, Tenant};
use crate::units::host::HostPattern;
use crate::units::network::Network;
use crate::units::{self, ByteSize};

/// The data plane: what clients connect to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Gateway {
    /// Address for clients, `IP:PORT`. Port 0 takes any free one.
    #[serde(with = "units::address")]
    #[schemars(with = "String")]
    pub listen: SocketAddr,
    /// Threads, each with its own runtime and socket; by default one per core.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub threads: Option<u16>,
    /// TLS for clients. Left out: plain text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// Bounds on what a client may send, and on how many there may be.
    pub limits: Limits,
    /// Paths that clients may reach; anything else is answered 404. By default all that the gateway
    /// knows.
    pub paths: Vec<String>,
    /// Access for browser pages of other origins (CORS). Left out: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cors: Option<Cors>,
    /// Hosts by which clients without a key may reach the gateway, besides loopback and the machine's
    /// addresses: `forebay.example.com`, `*.example.com` for every name under it, an address, a
    /// network, or `*` for any. If `keys` are required, any host is accepted.
    pub allowed_hosts: Vec<HostPattern>,
    /// Networks, `10.0.0.0/8` or one address, of the proxies in front whose `x-forwarded-for`,
    /// `-proto` and `-host` are believed. In requests from other addresses these are overwritten.
    pub trusted_proxies: Vec<Network>,
    /// Whether answers name the replica they come from, as `x-forebay-endpoint: IP:PORT`.
    pub endpoint_header: bool,
    /// How long a shutdown waits for requests that are held or in flight; then they are cut off. One
    /// second before that, or a quarter of this time if that is shorter, clients get an error event
    /// or a 503.
    #[serde(with = "units::duration")]
    #[schemars(with = "units::duration::DurationSchema")]
    pub shutdown_timeout: Duration,
    /// The scaler's admin address, `HOST:PORT` or `http://HOST:PORT`, where the gateway reads
    /// `/replicas`. Left out if both run in one process, or if nothing scales.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scaler: Option<String>,
    /// API keys. Left out: keys are not checked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keys: Option<Keys>,
    /// Groups of clients that have keys, with their limits. `anonymous`, for requests without a
    /// key, has no limits unless listed.
    pub tenants: Vec<Tenant>,
    /// Records when requests came and how long they were, for `forebay replay`. Left out: nothing
    /// is recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub record_arrivals: Option<RecordArrivals>,
    /// Models whose requests are split between pools.
    pub routes: Vec<Route>,
}

/// Bounds on what a client may send, each answered with a clear error, and on how many there may
/// be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Limits {
    /// Largest request body; a longer one is answered 413.
    pub body_size: ByteSize,
    /// Most bytes of requests in memory at once: heads and bodies of all clients together, being
    /// read, held or on their way to a replica. A further request is answered 503 with
    /// `retry-after`. By default a quarter of the memory that the process may use (by its control
    /// groups or its machine), and 4Gi at most. One tenant (without keys: one client address, as
    /// `trustedProxies` report it) may take as much as it leaves for others, and always two bodies;
    /// its further requests are answered 429.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bodies_size: Option<ByteSize>,
    /// Largest request head, that is request line and headers; a longer one is answered 431.
    pub header_size: ByteSize,
    /// Most headers of one request; more are answered 431.
    #[schemars(range(min = 1))]
    pub header_count: u16,
    /// Longest time from the first byte of a head to its last, and for the TLS handshake; then the
    /// connection is closed.
    #[serde(with = "units::duration")]
    #[schemars(with = "units::duration::DurationSchema")]
    pub header_timeout: Duration,
    /// Longest time from the head to the body's last byte; then the answer is 408.
    #[serde(with = "units::duration")]
    #[schemars(with = "units::duration::DurationSchema")]
    pub body_timeout: Duration,
    /// How long a client may leave its answer unread; then the connection is closed.
    #[serde(with = "units::duration")]
    #[schemars(with = "units::duration::DurationSchema")]
    pub write_timeout: Duration,
    /// How long a connection may have no request; then it is closed.
    #[serde(with = "units::duration")]
    #[schemars(with = "units::duration::DurationSchema")]
    pub idle_timeout: Duration,
    /// Longest time from the end of a request's head to the last byte that the client reads; then
    /// the request is cut off. Meant for clients that read slowly: a pool's `requestTimeout`, which
    /// is shorter, ends in a proper error.
    #[serde(with = "units::duration")]
    #[schemars(with = "units::duration::DurationSchema")]
    pub total_timeout: Duration,
    /// Longest WebSocket session.
    #[serde(with = "units::duration")]
    #[schemars(with = "units::duration::DurationSchema")]
    pub session_timeout: Duration,
    /// Longest silence of a WebSocket session, both ways.
    #[serde(with = "units::duration")]
    #[schemars(with = "units::duration::DurationSchema")]
    pub session_idle_timeout: Duration,
    /// Most connections at once; a further one is closed immediately. If the limit on open files or
    /// the memory allows fewer, a further one waits for another to end, and the connection that has
    /// been idle for longest is closed for it.
    #[schemars(range(min = 1))]
    pub connections: u32,
    /// Most connections at once from one address (one /64 of IPv6); a further one is closed
    /// immediately.
    #[schemars(range(min = 1))]
    pub connections_per_client: u32,
    /// Most requests at once on one HTTP/2 connection.
    #[schemars(range(min = 1))]
    pub streams_per_connection: u32,
}

/// The operators' port: metrics, the feeds, health.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Admin {
    /// Address, `IP:PORT`. On an address other than loopback `tokenFile` must be given, and everything
    /// but `/metrics`, `/healthz` and `/readyz` needs its token.
    #[serde(with = "units::address")]
    #[schemars(with = "String")]
    pub listen: SocketAddr,
    /// File with the token that operators and the readers of the feeds send as `Bearer`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
}

/// A recording of arrivals: time, pool, prompt and generated tokens of each request, no content.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RecordArrivals {
    /// The file, a CSV. Lines are appended; it is created if there is none.
    pub file: PathBuf,
    /// Largest size of the file. A full one is renamed, with `.1` at its end, and replaces the one
    /// renamed before; then a new one begins.
    pub max_size: ByteSize,
}

impl Default for RecordArrivals {
    fn default() -> Self {
        Self { file: PathBuf::from("arrivals.csv"), max_size: ByteSize::mib(64) }
    }
}

impl Default for Gateway {
    fn default() -> Self {
        Self {
            listen: ([0, 0, 0, 0], 8080).into(),
            threads: None,
            tls: None,
            limits: Limits::default(),
            paths: PATHS.iter().map(|path| (*path).to_owned()).collect(),
            cors: None,
            allowed_hosts: Vec::new(),
            trusted_proxies: Vec::new(),
            endpoint_header: false,
            shutdown_timeout: Duration::from_secs(30),
            scaler: None,
            keys: None,
            tenants: Vec::new(),
            record_arrivals: None,
            routes: Vec::new(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_size: ByteSize::mib(32),
            bodies_size: None,
            header_size: ByteSize::kib(64),
            header_count: 100,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(120),
            idle_timeout: Duration::from_secs(75),
            total_timeout: Duration::from_secs(2 * 60 * 60),
            session_timeout: Duration::from_secs(60 * 60),
            session_idle_timeout: Duration::from_secs(5 * 60),
            connections: 65_536,
            connections_per_client: 16_384,
            streams_per_connection: 256,
        }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self { listen: ([127, 0, 0, 1], 9900).into(), token_file: None }
    }
}

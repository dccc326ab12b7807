//! A pool: what it serves, how it holds, and the way to its replicas.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::types::discovery::Discovery;
use crate::types::route::Fallback;
use crate::types::scaling::Scaling;
use crate::types::target::Target;
use crate::units::{self, ByteSize};

/// Interchangeable replicas that serve one base model, with one queue, one scale target and one
/// policy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Pool {
    /// The pool's identity in metrics, logs and feeds: up to 63 letters, digits, `-`, `_` and `.`,
    /// beginning with a letter or digit.
    #[schemars(regex(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"))]
    pub name: String,
    /// Model names that clients may send. Where empty, any name is taken until the first replica
    /// tells its own; that is possible for one pool only.
    #[serde(default)]
    pub models: Vec<String>,
    /// More names that clients may send, each with the model's name that the replicas are sent in
    /// its place.
    #[serde(default)]
    pub aliases: BTreeMap<String, String>,
    /// Names of LoRA adapters that replicas load. Those that a running replica tells of are known
    /// without being listed; listed ones are known also while none runs.
    #[serde(default)]
    pub adapters: Vec<String>,
    /// Where requests go that this pool can't serve in time: its queue is full, the learned cold
    /// start takes longer than the client waits, or the hold is over. By default they are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<Fallback>,
    /// File with the key that the replicas were started with (`--api-key`), sent to them as
    /// `Bearer`; read again when it changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_file: Option<PathBuf>,
    /// Whether clients may say where they stand in a replica's own queue, and which of its engines
    /// serves them: the headers `x-vllm-priority` and `x-data-parallel-rank` and the body's
    /// `priority`. By default these are taken out of every request.
    #[serde(default)]
    pub allow_priority: bool,
    /// Fixed addresses, `HOST:PORT` or `http://HOST:PORT`, of replicas that something else runs.
    #[serde(default)]
    pub endpoints: Vec<String>,
    /// Where the addresses of its replicas are found, instead of or besides `endpoints`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discovery: Option<Discovery>,
    /// Most requests in flight at one endpoint.
    #[serde(default = "default_max_in_flight")]
    #[schemars(range(min = 1))]
    pub max_in_flight: u32,
    /// Bounds on the queue.
    #[serde(default)]
    pub hold: Hold,
    /// Time limits on the way to and at the replicas.
    #[serde(default)]
    pub upstream: Upstream,
    /// What starts and stops replicas. Left out where nothing scales.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
    /// How many replicas. Without effect where there is no `target`.
    #[serde(default)]
    pub scaling: Scaling,
}

/// Bounds on a pool's queue. What goes beyond them is answered 429 or 503, with `retry-after`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Hold {
    /// Most requests held. 0 holds none: what finds no room at once is refused.
    pub max_requests: u32,
    /// Most bytes of request bodies held.
    pub max_bytes: ByteSize,
    /// Longest hold of one request; then it is answered 503.
    #[serde(with = "units::duration")]
    #[schemars(with = "units::duration::Text")]
    pub timeout: Duration,
    /// How long a client that asked for a stream waits in silence. Then it is sent status 200 and
    /// something that clients pass over, again each time as much time has gone by, so that
    /// nothing on the way takes the connection for dead; what goes wrong later is told as an event
    /// of the stream. `0s` sends nothing before the answer.
    #[serde(with = "units::duration")]
    #[schemars(with = "units::duration::Text")]
    pub heartbeat: Duration,
}

/// Time limits on the way to and at the replicas.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Upstream {
    /// Longest time to connect to an endpoint.
    #[serde(with = "units::duration")]
    #[schemars(with = "units::duration::Text")]
    pub connect_timeout: Duration,
    /// Longest silence of a stream: until its first event, and between two. Comments that only keep
    /// the connection alive are silence too.
    #[serde(with = "units::duration")]
    #[schemars(with = "units::duration::Text")]
    pub stall_timeout: Duration,
    /// From the request's acceptance to the answer's last byte, the hold included.
    #[serde(with = "units::duration")]
    #[schemars(with = "units::duration::Text")]
    pub request_timeout: Duration,
    /// Most tries of one request, the first included. Only what the client has seen nothing of is
    /// tried again.
    #[schemars(range(min = 1))]
    pub max_tries: u32,
    /// Failures in a row that take an endpoint out, never the last that is ready. One that dies or
    /// says that it is shutting down is out at once. It comes back by answering a real request for
    /// one token.
    #[schemars(range(min = 1))]
    pub eject_after: u32,
    /// When an endpoint has work, of whatever kind, and produces nothing for this long, it is asked
    /// for one token and gets nothing new meanwhile; one that does not answer is out, and what has
    /// no answer from it yet is tried elsewhere. Where no connection can be made for a second, what
    /// has no answer is tried elsewhere, and a stream ends after this much silence.
    #[serde(with = "units::duration")]
    #[schemars(with = "units::duration::Text")]
    pub freeze_timeout: Duration,
    /// Longest plain answer that is kept back until it is complete, so that it can be tried again;
    /// a longer one is passed on as it comes.
    pub commit_size: ByteSize,
}

impl Pool {
    /// A pool of this name with all else at its default: nothing to serve from yet.
    #[must_use]
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            models: Vec::new(),
            aliases: BTreeMap::new(),
            adapters: Vec::new(),
            fallback: None,
            api_key_file: None,
            allow_priority: false,
            endpoints: Vec::new(),
            discovery: None,
            max_in_flight: default_max_in_flight(),
            hold: Hold::default(),
            upstream: Upstream::default(),
            target: None,
            scaling: Scaling::default(),
        }
    }

    /// Whether the scaler tells gateways which replicas there are. Elsewhere gateways find their
    /// endpoints themselves, and the scaler only tells who is to drain.
    #[must_use]
    pub fn scaler_lists_replicas(&self) -> bool {
        match self.target {
            Some(Target::Processes(_)) => true,
            Some(Target::Kubernetes(_)) => self.discovery.is_none(),
            Some(Target::Keda(_)) | None => false,
        }
    }

    /// The port of replicas of which only the IP address is known: a `kubernetes` target's own,
    /// or else the discovery's, or vLLM's.
    #[must_use]
    pub fn replica_port(&self) -> u16 {
        let targets = match &self.target {
            Some(Target::Kubernetes(it)) => it.port,
            _ => None,
        };
        let found = || self.discovery.as_ref().and_then(Discovery::port);
        targets.or_else(found).unwrap_or(8000)
    }

    /// Requests, in flight and held, for each replica: `scaling.targetConcurrency`, or else 80 % of
    /// `maxInFlight`; never 0.
    #[must_use]
    pub fn target_concurrency(&self) -> u32 {
        let share = u64::from(self.max_in_flight) * 4 / 5;
        let default = u32::try_from(share).unwrap_or(u32::MAX);
        self.scaling.target_concurrency.unwrap_or(default).max(1)
    }
}

fn default_max_in_flight() -> u32 {
    128
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
            eject_after: 3,
            freeze_timeout: Duration::from_secs(10),
            commit_size: ByteSize::mib(1),
        }
    }
}

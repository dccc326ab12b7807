//! A pool: what it serves, how it holds, and the way to its replicas.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::types::discovery::Discovery;
use crate::types::drain::Drain;
use crate::types::pick::Pick;
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
    /// Model names that clients may send. If empty, any name is accepted until the first replica
    /// reports its own; only one pool may have none.
    #[serde(default)]
    pub models: Vec<String>,
    /// More names that clients may send, each with the model name that is sent to the replicas in
    /// its place.
    #[serde(default)]
    pub aliases: BTreeMap<String, String>,
    /// Names of LoRA adapters that replicas load. Adapters that a running replica reports need not
    /// be listed; listed ones are known also while no replica runs.
    #[serde(default)]
    pub adapters: Vec<String>,
    /// The other pool for requests that this one can't serve in time: its queue is full, the
    /// learned cold start takes longer than the client waits, or the hold is over. Left out: they
    /// are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<Fallback>,
    /// File with the key that the replicas were started with (`--api-key`), sent to them as
    /// `Bearer`; read again when it changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_file: Option<PathBuf>,
    /// Whether clients may choose their place in a replica's own queue and the engine that serves
    /// them: the headers `x-vllm-priority` and `x-data-parallel-rank` and the body's `priority`. By
    /// default these are removed from every request.
    #[serde(default)]
    pub allow_priority: bool,
    /// Fixed addresses, `HOST:PORT` or `http://HOST:PORT`, of replicas that something else runs.
    #[serde(default)]
    pub endpoints: Vec<String>,
    /// Discovery of replicas' addresses, instead of or besides `endpoints`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discovery: Option<Discovery>,
    /// How an endpoint with room is chosen for a request.
    #[serde(default)]
    pub pick: Pick,
    /// Whether the field `user` of a request names its session, where neither the header
    /// `x-session-id` nor the field `prompt_cache_key` does.
    #[serde(default)]
    pub user_is_session: bool,
    /// Whether a stream that breaks goes on at another replica, from the ids of its tokens: `auto`,
    /// if its replicas report these and the request allows it; `off`, in quotes where Helm reads it.
    #[serde(default, rename = "continue")]
    pub continuation: Continue,
    /// Whether streams move off an endpoint that drains.
    #[serde(default)]
    pub drain: Drain,
    /// Most requests in flight at one endpoint.
    #[serde(default = "default_max_in_flight")]
    #[schemars(range(min = 1))]
    pub max_in_flight: u32,
    /// Whether an endpoint always takes as many as that, or as many as it has shown that it can.
    #[serde(default)]
    pub limit: InFlightLimit,
    /// GPUs that one replica occupies, for what it costs.
    #[serde(default = "default_gpus")]
    #[schemars(range(min = 1))]
    pub gpus: u32,
    /// Price of one GPU for one hour, in any currency. The console and `forebay replay` show what the
    /// pool costs with it; 0 shows GPU-hours alone.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub gpu_hour_price: f64,
    /// Bounds on the queue.
    #[serde(default)]
    pub hold: Hold,
    /// Time limits on the way to and at the replicas.
    #[serde(default)]
    pub upstream: Upstream,
    /// The scale target, which starts and stops replicas. Left out if nothing scales.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
    /// Replica counts and how they follow the load. Without effect if there is no `target`.
    #[serde(default)]
    pub scaling: Scaling,
}

/// How many requests an endpoint takes at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum InFlightLimit {
    /// `maxInFlight`.
    #[default]
    Fixed,
    /// Up to `maxInFlight`, as many as its engine works on without making them wait, learned from its
    /// answers. 1024 is a good `maxInFlight` then.
    Learned,
}

/// Whether a stream that breaks goes on at another replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Continue {
    /// If the pool's replicas report the ids of tokens, and the request allows it.
    #[default]
    Auto,
    /// Never: the stream ends with an error event.
    Off,
}

/// Bounds on a pool's queue. A request beyond them is answered 429 or 503, with `retry-after`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Hold {
    /// Most requests held. With 0, a request that finds no room at once is refused.
    pub max_requests: u32,
    /// Most bytes of request bodies held.
    pub max_bytes: ByteSize,
    /// Longest hold of one request; then it is answered 503.
    #[serde(with = "units::duration")]
    #[schemars(with = "units::duration::DurationSchema")]
    pub timeout: Duration,
    /// Longest wait that may be expected of a request when it arrives. One that would probably wait
    /// longer is refused at once with 503, or goes to the pool's `fallback`, and `retry-after` says when
    /// to come back. Before the pool has learned its times nobody is refused, and requests that are
    /// held stay until `timeout`. Left out: requests are refused only if they could not start before
    /// `timeout`, or before their clients give up.
    #[serde(skip_serializing_if = "Option::is_none", with = "units::duration::optional")]
    #[schemars(with = "Option<units::duration::DurationSchema>")]
    pub max_wait: Option<Duration>,
    /// The order of release within a priority class.
    pub order: HoldOrder,
    /// The share of the releases, from 0 to 0.5, that each lower priority class gets at least while
    /// requests of a higher one are held. 0: a lower class waits until no higher one is held.
    #[schemars(range(min = 0.0, max = 0.5))]
    pub lower_class_share: f64,
    /// Interval of the heartbeats for a held request that asked for a stream. The first one sends
    /// status 200, each is a comment that clients ignore, so that proxies on the way keep the
    /// connection open. A later error is sent as an event of the stream. `0s`: no heartbeats.
    #[serde(with = "units::duration")]
    #[schemars(with = "units::duration::DurationSchema")]
    pub heartbeat: Duration,
    /// Whether held requests for a plain answer get heartbeats too: a line feed before the JSON, which
    /// JSON allows. The first one sends status 200, so a later error is JSON after which the
    /// connection is cut: clients raise an error, and do not take it for an answer. Forms (audio) and
    /// requests for bytes get none.
    pub heartbeat_plain: bool,
    /// How much clients read of the reason why no replica can be started: `none`; `reason`, an exit
    /// status or Kubernetes' own word such as `ImagePullBackOff`; `output`, also the last line of the
    /// server's output or Kubernetes' message, which can hold names and secrets.
    pub show_reason: ShowReason,
}

/// The order of release within a priority class. Between tenants the tokens used decide in either
/// order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum HoldOrder {
    /// A tenant's requests go in the order of their arrival.
    Arrival,
    /// Requests that can still meet `scaling.objective` go before those that no longer can, which
    /// get every twentieth release until then. Those that wait for a cold start keep their places.
    #[default]
    Objective,
}

/// How much clients read of the reason why no replica can be started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum ShowReason {
    /// Nothing but the fact.
    None,
    /// The kind of the failure: an exit status, or Kubernetes' own word such as `ImagePullBackOff`.
    #[default]
    Reason,
    /// Also the last line of the server's output, or Kubernetes' own message. It can hold names of
    /// files, images and hosts, and secrets.
    Output,
}

/// Time limits on the way to and at the replicas.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Upstream {
    /// Longest time to connect to an endpoint.
    #[serde(with = "units::duration")]
    #[schemars(with = "units::duration::DurationSchema")]
    pub connect_timeout: Duration,
    /// Longest silence of a stream: until its first event, and between two. Comments that only keep
    /// the connection alive are silence too.
    #[serde(with = "units::duration")]
    #[schemars(with = "units::duration::DurationSchema")]
    pub stall_timeout: Duration,
    /// Longest time from the request's acceptance to the answer's last byte, the hold included.
    #[serde(with = "units::duration")]
    #[schemars(with = "units::duration::DurationSchema")]
    pub request_timeout: Duration,
    /// Most tries of one request, the first included. A try counts if the replica may have worked on
    /// the request: not if it made no connection, was full or shutting down, or refused the pool's own
    /// key or model. A request is tried again only while the client has received nothing of an answer.
    #[schemars(range(min = 1))]
    pub max_tries: u32,
    /// Failures in a row that eject an endpoint; the last ready one stays. One that dies or reports
    /// that it is shutting down is ejected at once. It comes back by answering a real request for one
    /// token.
    #[schemars(range(min = 1))]
    pub eject_after: u32,
    /// An endpoint that has work and produces nothing for this long is asked for one token, and
    /// gets no new requests meanwhile. If it does not answer it is ejected, and its requests without
    /// an answer are tried elsewhere. If no connection can be made for a second, requests without an
    /// answer are tried elsewhere too, and a stream ends after this much silence.
    #[serde(with = "units::duration")]
    #[schemars(with = "units::duration::DurationSchema")]
    pub freeze_timeout: Duration,
    /// Largest plain answer that is kept back until it is complete, so that the request can be tried
    /// again; a larger one is passed on as it comes.
    pub commit_size: ByteSize,
}

impl Pool {
    /// A pool of this name with all else at its default. It has no replicas to serve from yet.
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
            pick: Pick::default(),
            user_is_session: false,
            continuation: Continue::default(),
            drain: Drain::default(),
            max_in_flight: default_max_in_flight(),
            limit: InFlightLimit::default(),
            gpus: default_gpus(),
            gpu_hour_price: 0.0,
            hold: Hold::default(),
            upstream: Upstream::default(),
            target: None,
            scaling: Scaling::default(),
        }
    }

    /// Whether gateways learn from the scaler which replicas there are. Otherwise they find their
    /// endpoints themselves, and the scaler only reports which of them are to drain.
    #[must_use]
    pub fn scaler_lists_replicas(&self) -> bool {
        match self.target {
            Some(Target::Processes(_)) => true,
            Some(Target::Kubernetes(_)) => self.discovery.is_none(),
            Some(Target::Keda(_)) | None => false,
        }
    }

    /// How long an endpoint drains before its streams move to others; `None` if they finish there.
    #[must_use]
    pub fn move_after(&self) -> Option<Duration> {
        self.drain.move_after.filter(|_| self.continuation == Continue::Auto)
    }

    /// The port of replicas of which only the IP address is known: a `kubernetes` target's own,
    /// or else the discovery's, or vLLM's.
    #[must_use]
    pub fn replica_port(&self) -> u16 {
        let targets = match &self.target {
            Some(Target::Kubernetes(kubernetes)) => kubernetes.port,
            Some(Target::Processes(_) | Target::Keda(_)) | None => None,
        };
        let found = || self.discovery.as_ref().and_then(Discovery::port);
        targets.or_else(found).unwrap_or(8000)
    }

    /// The most requests at a replica before it has shown what it can take: `maxInFlight`, or at most 128
    /// where the limit is learned; never 0.
    #[must_use]
    pub fn assumed_limit(&self) -> u32 {
        let most = self.max_in_flight.max(1);
        match self.limit {
            InFlightLimit::Fixed => most,
            InFlightLimit::Learned => most.min(default_max_in_flight()),
        }
    }

    /// Requests, in flight and held, for each replica: `scaling.targetConcurrency`, or else 80 % of
    /// `maxInFlight`, or of 128 where the limit is learned; never 0.
    #[must_use]
    pub fn target_concurrency(&self) -> u32 {
        let share = u64::from(self.assumed_limit()) * 4 / 5;
        let default = u32::try_from(share).unwrap_or(u32::MAX);
        self.scaling.target_concurrency.unwrap_or(default).max(1)
    }
}

fn default_max_in_flight() -> u32 {
    128
}

fn default_gpus() -> u32 {
    1
}

impl Default for Hold {
    fn default() -> Self {
        Self {
            max_requests: 10_000,
            max_bytes: ByteSize::mib(1024),
            timeout: Duration::from_secs(10 * 60),
            max_wait: None,
            order: HoldOrder::default(),
            lower_class_share: 0.0,
            heartbeat: Duration::from_secs(15),
            heartbeat_plain: false,
            show_reason: ShowReason::default(),
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

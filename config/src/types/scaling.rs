//! What decides replica counts, and by which figures.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::types::behavior::{Advanced, Behavior};
use crate::types::discovery::Discovery;
use crate::types::trigger::Trigger;
use crate::units;

/// What decides replica counts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Scaler {
    /// Admin addresses, `HOST:PORT` or `http://HOST:PORT`, of the gateways whose `/signals` are
    /// read. Left out where both run in one process.
    pub gateways: Vec<String>,
    /// Where the gateways' admin addresses are found, instead of or besides `gateways`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway_discovery: Option<Discovery>,
    /// Several scalers, of which one decides. Left out where there is just one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leader_election: Option<LeaderElection>,
    /// How long a listed gateway may be silent before its last figures begin to fade. While any
    /// is silent, nothing scales down until then.
    #[serde(with = "units::duration")]
    #[schemars(with = "units::duration::Text")]
    pub stale_after: Duration,
    /// Folder where what was learned of cold starts, capacities and times of day is kept over a
    /// restart. Left out, ConfigMaps beside the Lease keep it where a leader is elected, and else
    /// nothing does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_dir: Option<PathBuf>,
    /// Where KEDA's operator asks, for pools whose target is `keda`.
    pub keda: KedaListener,
}

/// Where KEDA's operator asks: its `scalerAddress`. Served where a pool's target is `keda`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct KedaListener {
    /// Address for gRPC, `IP:PORT`.
    #[serde(with = "units::address")]
    #[schemars(with = "String")]
    pub listen: SocketAddr,
    /// TLS; plain unless given. The trigger then needs `enableTLS: "true"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<KedaTls>,
}

/// TLS for KEDA's operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KedaTls {
    /// The certificate and those between it and the authority, PEM.
    pub cert_file: PathBuf,
    /// Its key, PEM.
    pub key_file: PathBuf,
    /// The authority that the operator's own certificate must be from, PEM; any caller is answered
    /// unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_ca_file: Option<PathBuf>,
}

/// Election of the one scaler that decides, by a Lease in Kubernetes. The others relay what it
/// decided and take over when it is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LeaderElection {
    /// The Lease's name.
    pub lease: String,
    /// Its namespace; the one that Forebay runs in unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// How long a leader that is not heard keeps the lease. It renews it five times as often.
    #[serde(with = "units::duration")]
    #[schemars(with = "units::duration::Text")]
    pub lease_duration: Duration,
    /// Where the other scalers reach this one's admin port, `HOST:PORT`. Unless given, the address
    /// in the environment's `POD_IP` with the port of `admin.listen`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advertise: Option<String>,
}

impl Default for LeaderElection {
    fn default() -> Self {
        Self {
            lease: "forebay-scaler".to_owned(),
            namespace: None,
            lease_duration: Duration::from_secs(5),
            advertise: None,
        }
    }
}

/// How many replicas. Names are KEDA's and the HPA's where the thing exists there; whole numbers
/// may be quoted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Scaling {
    /// Fewest replicas. 0 scales to zero when idle.
    #[schemars(with = "units::Count")]
    pub min_replica_count: u32,
    /// Most replicas; at least 1.
    #[schemars(with = "units::Count", extend("minimum" = 1))]
    pub max_replica_count: u32,
    /// The count of an idle pool, where it is to be another than `minReplicaCount`, and less.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<units::Count>")]
    pub idle_replica_count: Option<u32>,
    /// What clients are promised; without triggers, as few replicas as keep it.
    pub objective: Objective,
    /// Requests, in flight and held, for each replica; 80 % of `maxInFlight` unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<units::Count>", extend("minimum" = 1))]
    pub target_concurrency: Option<u32>,
    /// Requests that wake a pool from zero must be more than this. A held request always does.
    #[schemars(with = "units::Count")]
    pub activation_threshold: u32,
    /// Window over which the load is averaged to scale down.
    #[serde(with = "units::duration")]
    #[schemars(with = "units::duration::Text")]
    pub stable_window: Duration,
    /// Window over which the load is averaged to scale up, not longer than `stableWindow`. While
    /// it asks for `panicThreshold` times the replicas there are, nothing scales down.
    #[serde(with = "units::duration")]
    #[schemars(with = "units::duration::Text")]
    pub panic_window: Duration,
    /// How many times the replicas there are the panic window must ask for to begin a panic; more
    /// than 1.
    #[schemars(extend("exclusiveMinimum" = 1))]
    pub panic_threshold: f64,
    /// How long a pool must be idle before it goes to zero, where `minReplicaCount` is 0. Counted
    /// from the last request or from when a replica became ready, whichever is later.
    #[serde(with = "units::duration")]
    #[schemars(with = "units::duration::Text")]
    pub cooldown_period: Duration,
    /// How long a pool does not go to zero after the scaler began to look after it.
    #[serde(with = "units::duration")]
    #[schemars(with = "units::duration::Text")]
    pub initial_cooldown_period: Duration,
    /// How fast the count may change, as in the HPA.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub behavior: Option<Behavior>,
    /// What the count goes by. Without any, by the work in the system.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub triggers: Vec<Trigger>,
    /// How often a trigger's figures are read where they are not first-hand: PromQL, vLLM's and
    /// the DCGM exporter's `/metrics`. No decision waits for them.
    #[serde(with = "units::duration")]
    #[schemars(with = "units::duration::Text")]
    pub polling_interval: Duration,
    /// The `advanced` of a ScaledObject, to be pasted as it is. Its behavior is `behavior`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advanced: Option<Advanced>,
}

impl Scaling {
    /// How fast the count may change, wherever that is written.
    #[must_use]
    pub fn behavior(&self) -> Option<&Behavior> {
        let pasted = || {
            let hpa = self.advanced.as_ref()?.horizontal_pod_autoscaler_config.as_ref()?;
            hpa.behavior.as_ref()
        };
        self.behavior.as_ref().or_else(pasted)
    }
}

/// What clients are promised: that an answer begins in time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Objective {
    /// Longest time from a request's arrival to its first token.
    #[serde(with = "units::duration")]
    #[schemars(with = "units::duration::Text")]
    pub ttft: Duration,
    /// Share of the requests for which that is to hold, more than 0 and less than 1.
    #[schemars(extend("exclusiveMinimum" = 0, "exclusiveMaximum" = 1))]
    pub share: f64,
}

impl Default for Scaler {
    fn default() -> Self {
        Self {
            gateways: Vec::new(),
            gateway_discovery: None,
            leader_election: None,
            stale_after: Duration::from_secs(10),
            state_dir: None,
            keda: KedaListener::default(),
        }
    }
}

impl Default for KedaListener {
    fn default() -> Self {
        Self { listen: ([0, 0, 0, 0], 9910).into(), tls: None }
    }
}

impl Default for Scaling {
    fn default() -> Self {
        Self {
            min_replica_count: 0,
            max_replica_count: 1,
            idle_replica_count: None,
            objective: Objective::default(),
            target_concurrency: None,
            activation_threshold: 0,
            stable_window: Duration::from_secs(60),
            panic_window: Duration::from_secs(6),
            panic_threshold: 2.0,
            cooldown_period: Duration::from_secs(300),
            initial_cooldown_period: Duration::ZERO,
            behavior: None,
            triggers: Vec::new(),
            polling_interval: Duration::from_secs(5),
            advanced: None,
        }
    }
}

impl Default for Objective {
    fn default() -> Self {
        Self { ttft: Duration::from_secs(5), share: 0.99 }
    }
}

//! The scaler: how it decides replica counts, and from which figures.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::types::behavior::{Advanced, Behavior};
use crate::types::discovery::Discovery;
use crate::types::trigger::Trigger;
use crate::units;

/// The scaler, which decides replica counts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Scaler {
    /// Admin addresses, `HOST:PORT` or `http://HOST:PORT`, of the gateways whose `/signals` are
    /// read. Left out where both run in one process.
    pub gateways: Vec<String>,
    /// Where the gateways' admin addresses are found, instead of or besides `gateways`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway_discovery: Option<Discovery>,
    /// The gateways' address for clients, `HOST:PORT` or `http://HOST:PORT`, through which the console's *Try it*
    /// sends chats. Left out where both run in one process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway_address: Option<String>,
    /// Several scalers, of which one decides. Left out where there is just one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leader_election: Option<LeaderElection>,
    /// How long a listed gateway may be silent before its last figures begin to fade. While any
    /// is silent, nothing scales down until then.
    #[serde(with = "units::duration")]
    #[schemars(with = "units::duration::DurationSchema")]
    pub stale_after: Duration,
    /// Folder for the figures that the scaler learns (cold starts, capacities, times of day), so that
    /// they survive a restart. Left out: ConfigMaps beside the Lease keep them if a leader is elected;
    /// otherwise they are lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_dir: Option<PathBuf>,
    /// The gRPC listener for KEDA's operator, for pools whose target is `keda`.
    pub keda: KedaListener,
}

/// The gRPC listener for KEDA's operator, which is the `scalerAddress` of its triggers. Served if
/// a pool's target is `keda`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct KedaListener {
    /// Address for gRPC, `IP:PORT`.
    #[serde(with = "units::address")]
    #[schemars(with = "String")]
    pub listen: SocketAddr,
    /// TLS; left out: plain text. With it, the trigger needs `enableTLS: "true"`.
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
    /// The authority that must have signed the operator's certificate, PEM. Left out:
    /// any caller is answered.
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
    /// Its namespace; by default Forebay's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// How long a leader that has fallen silent keeps the lease. It renews the lease five times in
    /// this period.
    #[serde(with = "units::duration")]
    #[schemars(with = "units::duration::DurationSchema")]
    pub lease_duration: Duration,
    /// Where the other scalers reach this one's admin port, `HOST:PORT`. By default the address in the
    /// environment variable `POD_IP`, with the port of `admin.listen`.
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

/// Replica counts and how they follow the load. Names are KEDA's and the HPA's for settings that
/// exist there; whole numbers may be quoted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Scaling {
    /// Fewest replicas. 0 scales to zero when idle.
    #[schemars(with = "units::CountSchema")]
    pub min_replica_count: u32,
    /// Most replicas; at least 1.
    #[schemars(with = "units::CountSchema", extend("minimum" = 1))]
    pub max_replica_count: u32,
    /// Replicas of an idle pool, if it is to have fewer than `minReplicaCount`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<units::CountSchema>")]
    pub idle_replica_count: Option<u32>,
    /// The promise to clients. Without triggers, the pool gets the fewest replicas that keep it.
    pub objective: Objective,
    /// Requests, in flight and held, for each replica; by default 80 % of `maxInFlight`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<units::CountSchema>", extend("minimum" = 1))]
    pub target_concurrency: Option<u32>,
    /// A pool at zero wakes when it has more requests than this. A held request always wakes it.
    #[schemars(with = "units::CountSchema")]
    pub activation_threshold: u32,
    /// Window over which the load is averaged to scale down.
    #[serde(with = "units::duration")]
    #[schemars(with = "units::duration::DurationSchema")]
    pub stable_window: Duration,
    /// Window over which the load is averaged to scale up, not longer than `stableWindow`. While
    /// it asks for `panicThreshold` times the present replicas, nothing scales down.
    #[serde(with = "units::duration")]
    #[schemars(with = "units::duration::DurationSchema")]
    pub panic_window: Duration,
    /// A panic begins when the panic window asks for this many times the present replicas; more
    /// than 1.
    #[schemars(extend("exclusiveMinimum" = 1))]
    pub panic_threshold: f64,
    /// How long a pool must be idle before it goes to zero, where `minReplicaCount` is 0. Counted
    /// from the last request or from when a replica became ready, whichever is later.
    #[serde(with = "units::duration")]
    #[schemars(with = "units::duration::DurationSchema")]
    pub cooldown_period: Duration,
    /// How long a pool stays above zero after the scaler has begun to scale it.
    #[serde(with = "units::duration")]
    #[schemars(with = "units::duration::DurationSchema")]
    pub initial_cooldown_period: Duration,
    /// How fast the count may change, as in the HPA.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub behavior: Option<Behavior>,
    /// Rules that propose replica counts. Without any, the requests of the pool decide.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub triggers: Vec<Trigger>,
    /// How often second-hand figures are read: PromQL, vLLM's and the DCGM exporter's `/metrics`.
    /// No decision waits for them.
    #[serde(with = "units::duration")]
    #[schemars(with = "units::duration::DurationSchema")]
    pub polling_interval: Duration,
    /// The `advanced` of a ScaledObject, pasted as it is. Its behavior counts as `behavior`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advanced: Option<Advanced>,
}

impl Scaling {
    /// How fast the count may change, from either place where that can be written.
    #[must_use]
    pub fn behavior(&self) -> Option<&Behavior> {
        let pasted = || {
            let hpa = self.advanced.as_ref()?.horizontal_pod_autoscaler_config.as_ref()?;
            hpa.behavior.as_ref()
        };
        self.behavior.as_ref().or_else(pasted)
    }
}

/// The promise to clients: that an answer begins in time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Objective {
    /// Longest time from a request's arrival to its first token.
    #[serde(with = "units::duration")]
    #[schemars(with = "units::duration::DurationSchema")]
    pub ttft: Duration,
    /// Share of the requests that must meet it, more than 0 and less than 1.
    #[schemars(extend("exclusiveMinimum" = 0, "exclusiveMaximum" = 1))]
    pub share: f64,
}

impl Default for Scaler {
    fn default() -> Self {
        Self {
            gateways: Vec::new(),
            gateway_discovery: None,
            gateway_address: None,
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

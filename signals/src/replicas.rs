//! The scaler's reports to the gateways: the replicas, which of them drain, how long a start takes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::feed::{Delta, map_apply, map_since};

/// One pool as the scaler sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PoolReplicas {
    /// Replicas that the scaler wants.
    pub desired: u32,
    /// The decision that last changed the count (until then the first one), in one sentence, and after
    /// it the reason why the target can't carry it out, if there is one.
    pub why: String,
    /// Whether the pool must not be at zero: it wants replicas, or has requests. KEDA's `IsActive`.
    pub active: bool,
    /// Figures of the pool's signals, if KEDA may ask for them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub figures: BTreeMap<Figure, f64>,
    /// Requests that one replica should have, held and in flight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_concurrency: Option<f64>,
    /// Learned cold start; `None` before the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cold_start: Option<ColdStart>,
    /// The failure of the pool's starts, while no replica is ready and none is expected to be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed_start: Option<FailedStart>,
    /// The zero barrier, while it is up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub barrier: Option<Barrier>,
    /// Every replica by the scaler's own name; `None`, in a change, for one that is gone.
    pub replicas: BTreeMap<String, Option<Replica>>,
}

/// A pool's signal as one number, merged over the gateways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Figure {
    /// Requests held.
    QueueDepth,
    /// Requests held and in flight.
    Concurrency,
    /// Generated tokens a second, all replicas together.
    TokensPerSecond,
    /// TTFT in seconds, without the time held for a cold start.
    Ttft,
    /// ITL in seconds.
    Itl,
    /// Share of the KV cache in use, 0 to 1, mean over the replicas.
    KvCache,
    /// Share of the GPUs' time in use, 0 to 100, mean over the replicas.
    GpuUtilization,
}

impl Figure {
    /// All figures.
    pub const ALL: [Self; 7] = [
        Self::QueueDepth,
        Self::Concurrency,
        Self::TokensPerSecond,
        Self::Ttft,
        Self::Itl,
        Self::KvCache,
        Self::GpuUtilization,
    ];

    /// As in a trigger's `metric`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::QueueDepth => "queueDepth",
            Self::Concurrency => "concurrency",
            Self::TokensPerSecond => "tokensPerSecond",
            Self::Ttft => "ttft",
            Self::Itl => "itl",
            Self::KvCache => "kvCache",
            Self::GpuUtilization => "gpuUtilization",
        }
    }
}

/// One vLLM server as the scaler counts it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Replica {
    /// `IP:PORT`, where the scaler knows it. Other gateways' endpoints come from discovery.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Its phase.
    pub state: ReplicaState,
    /// The reason for that state, for people ("exited with status 1, again in 4 s").
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// How its last process ended, where the scaler saw that and has not started the next one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_end: Option<LastEnd>,
}

/// The end of a replica's process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LastEnd {
    /// Where it listened, `IP:PORT`.
    pub address: String,
    /// By an order or not.
    pub how: ProcessEnd,
}

/// How a process ended. The requests that it had are suspected of a crash alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ProcessEnd {
    /// By an order: SIGTERM or SIGINT.
    Stopped,
    /// On its own, or by SIGKILL, as the kernel ends it when memory runs out.
    Crashed,
}

impl ProcessEnd {
    /// By its exit status, 128 + N after signal N. 0 alone does not mean an order: a server also ends in
    /// good order when its engine has died.
    #[must_use]
    pub fn of_status(status: i32) -> Option<Self> {
        match status {
            0 => None,
            130 | 143 => Some(Self::Stopped),
            _ => Some(Self::Crashed),
        }
    }
}

/// A replica's state. `Ready` is the gateways' judgement, which the scaler repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ReplicaState {
    /// Ordered; nothing runs yet.
    Pending,
    /// A process or container is up, and not healthy yet.
    Starting,
    /// A gateway found it healthy.
    Ready,
    /// To be stopped: gets nothing new, is stopped once nothing is in flight there.
    Draining,
    /// Down, and not coming back on its own at once.
    Failed,
}

/// Learned time from a scale decision to a ready replica, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ColdStart {
    /// Median.
    pub p50_seconds: f64,
    /// 90th percentile.
    pub p90_seconds: f64,
    /// How many starts it was learned from.
    pub samples: u32,
}

/// Starts of a pool that fail, each like the last. Gateways refuse its requests meanwhile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FailedStart {
    /// The reason, as the predicate of a sentence about a replica ("exited with status 1").
    pub reason: String,
    /// The last line of the server's output, or Kubernetes' message; only if clients may read it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// When the pool was found to fail, in milliseconds since the epoch.
    pub since_millis: u64,
    /// When the next start begins, in milliseconds since the epoch; `None` if that is not known, or if
    /// one is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_try_millis: Option<u64>,
}

impl FailedStart {
    /// The reason with its detail.
    #[must_use]
    pub fn sentence(&self) -> String {
        match self.detail.as_str() {
            "" => self.reason.clone(),
            detail => format!("{}: {detail}", self.reason),
        }
    }
}

/// Going to zero: gateways hold everything from `epoch` on, until it is lifted or runs out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Barrier {
    /// Grows with each barrier; a gateway reports the one it holds for.
    pub epoch: u64,
    /// How long it holds without being renewed.
    pub lease_millis: u64,
}

impl Delta for PoolReplicas {
    fn since(&self, old: &Self) -> Option<Self> {
        if self == old {
            return None;
        }
        let replicas = map_since(&self.replicas, &old.replicas);
        Some(Self { replicas, ..self.clone() })
    }

    fn apply(&mut self, mut change: Self) {
        map_apply(&mut self.replicas, std::mem::take(&mut change.replicas));
        change.replicas = std::mem::take(&mut self.replicas);
        *self = change;
    }
}

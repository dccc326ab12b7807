//! What the scaler tells the gateways: who is there, who is to drain, how long a start takes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::feed::{Delta, map_apply, map_since};

/// One pool as the scaler sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PoolReplicas {
    /// Replicas asked for.
    pub desired: u32,
    /// The last decision in one sentence.
    pub why: String,
    /// Whether it may not be at zero: a count is wanted, or something is left there. KEDA's
    /// `IsActive`.
    pub active: bool,
    /// Figures of the pool's signals, where KEDA may ask for them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub figures: BTreeMap<Figure, f64>,
    /// Requests that one replica should have, held and in flight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_concurrency: Option<f64>,
    /// Learned cold start; `None` before the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cold_start: Option<ColdStart>,
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
    /// Every one.
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
    /// Where it is on its way.
    pub state: ReplicaState,
    /// What a person should know about that state ("exited with status 1, again in 4 s").
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
    /// By itself, or by SIGKILL, as the kernel ends it when memory runs out.
    Crashed,
}

impl ProcessEnd {
    /// By its exit status, 128 + N after signal N. 0 is not an order by itself: a server also ends in
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
    /// Asked for; nothing runs yet.
    Pending,
    /// A process or container is up, and not healthy yet.
    Starting,
    /// A gateway found it healthy.
    Ready,
    /// To be stopped: gets nothing new, is stopped once nothing is in flight there.
    Draining,
    /// Down, and not coming back by itself at once.
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

//! A pod as we need it, and where it is on its way.
//!
//! Pure. Only the fields that are read here are kept of what the API server sends, so that ten
//! thousand pods cost a few megabytes.

use std::net::IpAddr;

use forebay_signals::{PodPhase, ProcessEnd};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::core::{NotUsed, Object};
use serde::{Deserialize, Serialize};

/// A pod on the wire, without what nobody reads.
pub(crate) type Wire = Object<NotUsed, Status>;

/// The annotation by which a ReplicaSet picks among pods that are all ready: the lowest go first.
pub const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// What a role must allow to watch pods.
pub const VERBS: &[&str] = &["list", "watch"];

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Status {
    phase: String,
    reason: String,
    message: String,
    #[serde(rename = "podIP")]
    pod_ip: String,
    conditions: Vec<Condition>,
    container_statuses: Vec<Container>,
    init_container_statuses: Vec<Container>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    reason: String,
    message: String,
    last_transition_time: Option<Time>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Container {
    restart_count: i32,
    state: State,
    last_state: State,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct State {
    waiting: Option<Why>,
    running: Option<Running>,
    terminated: Option<Terminated>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Why {
    reason: String,
    message: String,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Running {
    started_at: Option<Time>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Terminated {
    exit_code: i32,
    reason: String,
    finished_at: Option<Time>,
}

/// A pod as its conditions tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// What tells it from another of the same name.
    pub uid: String,
    /// Its address, as soon as it has one and as long as that is its own.
    pub ip: Option<IpAddr>,
    /// Where it is on its way.
    pub phase: PodPhase,
    /// A word of Kubernetes' on why it is not further; empty for none.
    pub reason: String,
    /// The same at length.
    pub message: String,
    /// It was ready since its containers last started, and is not any more.
    pub withdrawn: bool,
    /// Which start of its containers this is: changes when one is started anew.
    pub start: Start,
    /// Its number in a StatefulSet, or its group's in a LeaderWorkerSet.
    pub ordinal: Option<u32>,
    /// How a container of it ended last.
    pub last_end: Option<End>,
    /// It has a node.
    pub scheduled: bool,
    /// Its containers have ended for good: only the object is left.
    pub ended: bool,
    /// Its [`DELETION_COST`], where one is written.
    pub deletion_cost: Option<i32>,
}

/// Names one start of a pod's containers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Start {
    /// How often they were started anew, all told.
    pub restarts: u32,
    /// When the last of them began to run, in seconds since the epoch by its node's clock; 0 before.
    pub at: i64,
}

/// One end of a pod's container, where that tells whether it was ordered to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// By an order or not.
    pub how: ProcessEnd,
    /// In seconds since the epoch by its node's clock.
    pub at: i64,
}

/// Labels that number a workload's replicas.
const ORDINALS: [&str; 2] =
    ["leaderworkerset.sigs.k8s.io/group-index", "apps.kubernetes.io/pod-index"];
/// Waiting for these ends by itself; for any other reason something is wrong.
const ON_ITS_WAY: [&str; 3] = ["", "ContainerCreating", "PodInitializing"];

impl Pod {
    /// Reads a pod. `before` is how it was known: whether it was ready since its containers
    /// started shows in its conditions only where their times differ.
    pub(crate) fn read(wire: &Wire, before: Option<&Self>) -> Self {
        let none = Status::default();
        let status = wire.status.as_ref().unwrap_or(&none);
        let containers = || status.container_statuses.iter();
        let restarts = containers().map(|it| it.restart_count.max(0).unsigned_abs()).sum();
        let began = |it: &Container| it.state.running.as_ref()?.started_at.as_ref().map(seconds);
        let start = Start { restarts, at: containers().filter_map(began).max().unwrap_or(0) };
        let scheduled = condition(status, "PodScheduled").is_some_and(|it| it.status == "True");

        let deleted = wire.metadata.deletion_timestamp.is_some();
        let (phase, reason, message) = if deleted {
            (PodPhase::Draining, "Terminating".to_owned(), String::new())
        } else {
            phase(status)
        };
        let ready = condition(status, "Ready");
        let runs = phase == PodPhase::Starting;
        let was_ready = before
            .is_some_and(|it| it.start == start && (it.withdrawn || it.phase == PodPhase::Healthy));
        let turned = ready
            .and_then(|it| it.last_transition_time.as_ref())
            .is_some_and(|at| start.at > 0 && seconds(at) > start.at);
        let withdrawn =
            runs && ready.is_some_and(|it| it.status != "True") && (turned || was_ready);
        let (reason, message) = match ready {
            Some(it) if withdrawn => {
                let reason = if it.reason.is_empty() { "NotReady" } else { &it.reason };
                (reason.to_owned(), it.message.clone())
            }
            _ => (reason, message),
        };
        // One that has ended keeps showing an address that may be another's by now.
        let ended = matches!(status.phase.as_str(), "Failed" | "Succeeded");
        Self {
            uid: wire.metadata.uid.clone().unwrap_or_default(),
            ip: status.pod_ip.parse().ok().filter(|_| !ended),
            phase,
            reason,
            message,
            withdrawn,
            start,
            last_end: last_end(status),
            ordinal: ordinal(wire),
            scheduled,
            ended,
            deletion_cost: deletion_cost(wire),
        }
    }
}

fn phase(status: &Status) -> (PodPhase, String, String) {
    let told = |phase, reason: &str, message: &str| (phase, reason.to_owned(), message.to_owned());
    match status.phase.as_str() {
        "Failed" => {
            let reason = if status.reason.is_empty() { "Failed" } else { &status.reason };
            return told(PodPhase::Failed, reason, &status.message);
        }
        "Succeeded" => return told(PodPhase::Failed, "Completed", "its containers have ended"),
        "Unknown" => {
            return told(PodPhase::Failed, "Unknown", "its node does not tell how it is");
        }
        _ => {}
    }
    match condition(status, "PodScheduled") {
        Some(it) if it.status == "True" => {}
        Some(it) => return told(PodPhase::Unscheduled, &it.reason, &it.message),
        None => return told(PodPhase::Unscheduled, "", ""),
    }
    let all = || status.init_container_statuses.iter().chain(&status.container_statuses);
    let stuck = all()
        .filter_map(|it| it.state.waiting.as_ref())
        .find(|it| !ON_ITS_WAY.contains(&it.reason.as_str()));
    if let Some(stuck) = stuck {
        return told(PodPhase::Failed, &stuck.reason, &stuck.message);
    }
    // An init container that has ended is how it should be.
    let ended = status.container_statuses.iter().find_map(|it| it.state.terminated.as_ref());
    if let Some(ended) = ended {
        let reason = if ended.reason.is_empty() { "Error" } else { &ended.reason };
        let message = format!("a container ended with status {}", ended.exit_code);
        return told(PodPhase::Failed, reason, &message);
    }
    let containers = &status.container_statuses;
    if containers.is_empty() || containers.iter().any(|it| it.state.running.is_none()) {
        return told(PodPhase::Pulling, "", "");
    }
    match condition(status, "Ready") {
        Some(ready) if ready.status == "True" => told(PodPhase::Healthy, "", ""),
        _ => told(PodPhase::Starting, "", ""),
    }
}

fn last_end(status: &Status) -> Option<End> {
    let states = status.container_statuses.iter().flat_map(|it| [&it.state, &it.last_state]);
    let end = |ended: &Terminated| {
        let crashed = (ended.reason == "OOMKilled").then_some(ProcessEnd::Crashed);
        let how = crashed.or_else(|| ProcessEnd::of_status(ended.exit_code))?;
        Some(End { how, at: ended.finished_at.as_ref().map_or(0, seconds) })
    };
    states.filter_map(|it| end(it.terminated.as_ref()?)).max_by_key(|end| end.at)
}

fn condition<'a>(status: &'a Status, kind: &str) -> Option<&'a Condition> {
    status.conditions.iter().find(|it| it.kind == kind)
}

fn seconds(time: &Time) -> i64 {
    time.0.as_second()
}

fn ordinal(wire: &Wire) -> Option<u32> {
    let labels = wire.metadata.labels.as_ref()?;
    ORDINALS.iter().find_map(|label| labels.get(*label)?.parse().ok())
}

fn deletion_cost(wire: &Wire) -> Option<i32> {
    wire.metadata.annotations.as_ref()?.get(DELETION_COST)?.parse().ok()
}

#[cfg(test)]
mod tests;

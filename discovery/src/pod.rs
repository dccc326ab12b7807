//! A pod, and the phase of its start.
//!
//! Pure. Of the API server's objects only the fields that are read here are kept, so that ten thousand
//! pods cost a few megabytes.

use std::net::IpAddr;

use forebay_signals::{PodPhase, ProcessEnd};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::core::{NotUsed, Object};
use serde::{Deserialize, Serialize};

/// A pod on the wire: the fields that are read here.
pub(crate) type Wire = Object<NotUsed, Status>;

/// The annotation by which a ReplicaSet picks among pods that are all ready: the lowest go first.
pub const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// The verbs that watching pods needs.
pub const VERBS: &[&str] = &["list", "watch"];

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Status {
    phase: String,
    reason: String,
    message: String,
    #[serde(rename = "podIP")]
    pod_ip: String,
    nominated_node_name: String,
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

/// A pod, judged by its conditions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// The UID, which differs from that of another pod with the same name.
    pub uid: String,
    /// Its address, from when it has one until its containers have ended.
    pub ip: Option<IpAddr>,
    /// The phase of its start.
    pub phase: PodPhase,
    /// Kubernetes' reason why it is not ready; may be empty.
    pub reason: String,
    /// The same at length.
    pub message: String,
    /// It was ready since its containers last started, and no longer is.
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
    /// Restarts of all its containers.
    pub restarts: u32,
    /// When the last of them began to run, in seconds since the epoch by its node's clock; 0 before.
    pub at: i64,
}

/// The end of a pod's container, if it shows whether it was ordered.
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
/// Reasons to wait that pass on their own. Any other reason is a failure.
const ON_ITS_WAY: [&str; 3] = ["", "ContainerCreating", "PodInitializing"];

impl Pod {
    /// Reads a pod. `before` is its last known state: conditions show whether it was ready since its
    /// containers started only if their times differ.
    pub(crate) fn read(wire: &Wire, before: Option<&Self>) -> Self {
        let none = Status::default();
        let status = wire.status.as_ref().unwrap_or(&none);
        let containers = || status.container_statuses.iter();
        let restarts =
            containers().map(|container| container.restart_count.max(0).unsigned_abs()).sum();
        let began = |container: &Container| {
            container.state.running.as_ref()?.started_at.as_ref().map(seconds)
        };
        let start = Start { restarts, at: containers().filter_map(began).max().unwrap_or(0) };
        let scheduled =
            condition(status, "PodScheduled").is_some_and(|condition| condition.status == "True");

        let deleted = wire.metadata.deletion_timestamp.is_some();
        let (phase, reason, message) = if deleted {
            (PodPhase::Draining, "Terminating".to_owned(), String::new())
        } else {
            phase(status)
        };
        let ready = condition(status, "Ready");
        let runs = phase == PodPhase::Starting;
        let was_ready = before.is_some_and(|pod| {
            pod.start == start && (pod.withdrawn || pod.phase == PodPhase::Healthy)
        });
        let turned = ready
            .and_then(|condition| condition.last_transition_time.as_ref())
            .is_some_and(|at| start.at > 0 && seconds(at) > start.at);
        let withdrawn = runs
            && ready.is_some_and(|condition| condition.status != "True")
            && (turned || was_ready);
        let (reason, message) = match ready {
            Some(condition) if withdrawn => {
                let reason =
                    if condition.reason.is_empty() { "NotReady" } else { &condition.reason };
                (reason.to_owned(), condition.message.clone())
            }
            _ => (reason, message),
        };
        // A pod that has ended keeps its address in the status, though another pod may have it now.
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
    let state = |phase, reason: &str, message: &str| (phase, reason.to_owned(), message.to_owned());
    match status.phase.as_str() {
        "Failed" => {
            let reason = if status.reason.is_empty() { "Failed" } else { &status.reason };
            return state(PodPhase::Failed, reason, &status.message);
        }
        "Succeeded" => return state(PodPhase::Failed, "Completed", "its containers have ended"),
        "Unknown" => {
            return state(PodPhase::Failed, "Unknown", "its node has lost contact");
        }
        _ => {}
    }
    match condition(status, "PodScheduled") {
        Some(scheduled) if scheduled.status == "True" => {}
        // Preemption makes room there, so it does not stay without a node.
        Some(_) if !status.nominated_node_name.is_empty() => {
            let message = format!("waits for room on node {}", status.nominated_node_name);
            return state(PodPhase::Unscheduled, "Nominated", &message);
        }
        Some(scheduled) => {
            return state(PodPhase::Unscheduled, &scheduled.reason, &scheduled.message);
        }
        None => return state(PodPhase::Unscheduled, "", ""),
    }
    let all = || status.init_container_statuses.iter().chain(&status.container_statuses);
    let stuck = all()
        .filter_map(|container| container.state.waiting.as_ref())
        .find(|waiting| !ON_ITS_WAY.contains(&waiting.reason.as_str()));
    if let Some(stuck) = stuck {
        return state(PodPhase::Failed, &stuck.reason, &stuck.message);
    }
    // An init container that has ended is how it should be.
    let ended =
        status.container_statuses.iter().find_map(|container| container.state.terminated.as_ref());
    if let Some(ended) = ended {
        let reason = if ended.reason.is_empty() { "Error" } else { &ended.reason };
        let message = format!("a container ended with status {}", ended.exit_code);
        return state(PodPhase::Failed, reason, &message);
    }
    let containers = &status.container_statuses;
    if containers.is_empty() || containers.iter().any(|container| container.state.running.is_none())
    {
        return state(PodPhase::Pulling, "", "");
    }
    match condition(status, "Ready") {
        Some(ready) if ready.status == "True" => state(PodPhase::Healthy, "", ""),
        _ => state(PodPhase::Starting, "", ""),
    }
}

fn last_end(status: &Status) -> Option<End> {
    let states = status
        .container_statuses
        .iter()
        .flat_map(|container| [&container.state, &container.last_state]);
    let end = |ended: &Terminated| {
        let crashed = (ended.reason == "OOMKilled").then_some(ProcessEnd::Crashed);
        let how = crashed.or_else(|| ProcessEnd::of_status(ended.exit_code))?;
        Some(End { how, at: ended.finished_at.as_ref().map_or(0, seconds) })
    };
    states.filter_map(|state| end(state.terminated.as_ref()?)).max_by_key(|end| end.at)
}

fn condition<'a>(status: &'a Status, kind: &str) -> Option<&'a Condition> {
    status.conditions.iter().find(|condition| condition.kind == kind)
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

//! Pods as replicas. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use forebay_discovery::pod::{Pod, Start};
use forebay_signals::PodPhase;

use crate::act::targets::{Phase, ReplicaStatus};

/// When a pod was seen to come how far, by our own clock: the node's may be off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Times {
    seen_ms: Option<u64>,
    /// It was there before this process looked: when it was asked for is not known.
    inherited: bool,
    scheduled_ms: Option<u64>,
    started: Option<(Start, u64)>,
}

impl Times {
    pub(super) fn inherited() -> Self {
        Self { inherited: true, ..Self::default() }
    }

    /// When its containers were seen to run as they do; 0 before.
    pub(super) fn started_ms(&self) -> u64 {
        self.started.map_or(0, |(_, ms)| ms)
    }

    pub(super) fn see(&mut self, pod: &Pod, now_ms: u64) {
        self.seen_ms.get_or_insert(now_ms);
        if pod.scheduled {
            self.scheduled_ms.get_or_insert(now_ms);
        }
        let runs = pod.start.at > 0;
        if runs && self.started.is_none_or(|(start, _)| start != pod.start) {
            self.started = Some((pod.start, now_ms));
        }
    }
}

/// Whether it was not told to stop, as far as Kubernetes shows.
pub(super) fn is_going_on(status: &ReplicaStatus) -> bool {
    status.phase != Phase::Stopping
}

/// The statuses of a workload with so many `replicas` in its specification: its pods, and a place
/// for each that has no pod yet.
pub(super) fn statuses(
    pool: &str,
    pods: &BTreeMap<String, Pod>,
    times: &BTreeMap<String, Times>,
    replicas: u32,
    port: u16,
    stopping: &BTreeSet<String>,
    spared: &BTreeSet<String>,
) -> BTreeMap<String, ReplicaStatus> {
    let status = |(name, pod): (&String, &Pod)| {
        let times = times.get(name).copied().unwrap_or_default();
        let spared = spared.contains(name);
        (name.clone(), ReplicaStatus { spared, ..status(name, pod, times, port) })
    };
    let mut all: BTreeMap<_, _> = pods.iter().map(status).collect();
    let going_on = going_on(pods, stopping);
    for n in going_on..replicas {
        let id = format!("{pool}-unborn-{n}");
        let status = ReplicaStatus {
            reason: "asked for; it has no pod yet".to_owned(),
            // It is the first to go, before any pod.
            rank: u32::MAX,
            ..ReplicaStatus::asked_for(&id)
        };
        all.insert(id, status);
    }
    all
}

/// How many pods there are beyond `replicas`, as a rollout has them.
pub(super) fn surplus(
    pods: &BTreeMap<String, Pod>,
    replicas: u32,
    stopping: &BTreeSet<String>,
) -> u32 {
    going_on(pods, stopping).saturating_sub(replicas)
}

/// How many pods were not deleted.
pub(super) fn left(pods: &BTreeMap<String, Pod>) -> u32 {
    going_on(pods, &BTreeSet::new())
}

/// Those of `stopping` that are there for good, once `replicas` are what is wanted and what is
/// written: when no more pods are left than that, the workload's controller takes none any more. It
/// took others: such as were not ready in that moment, or that a node's drain deleted.
pub(super) fn spared(
    pods: &BTreeMap<String, Pod>,
    replicas: u32,
    stopping: &BTreeSet<String>,
) -> BTreeSet<String> {
    if left(pods) > replicas {
        return BTreeSet::new();
    }
    // By number, who goes is certain.
    let stays = |pod: &Pod| {
        pod.phase != PodPhase::Draining && pod.ordinal.is_none_or(|ordinal| ordinal < replicas)
    };
    stopping.iter().filter(|name| pods.get(*name).is_some_and(stays)).cloned().collect()
}

fn going_on(pods: &BTreeMap<String, Pod>, stopping: &BTreeSet<String>) -> u32 {
    let counts = |(name, pod): &(&String, &Pod)| {
        pod.phase != PodPhase::Draining && !stopping.contains(*name)
    };
    pods.iter().filter(counts).count() as u32
}

fn status(name: &str, pod: &Pod, times: Times, port: u16) -> ReplicaStatus {
    let phase = match pod.phase {
        PodPhase::Unscheduled | PodPhase::Pulling => Phase::Pending,
        PodPhase::Starting | PodPhase::Healthy => Phase::Running,
        PodPhase::Draining => Phase::Stopping,
        PodPhase::Failed => Phase::Failed,
    };
    let reason = match (pod.reason.as_str(), pod.message.as_str()) {
        ("", "") => pod.phase.words().to_owned(),
        (reason, "") => reason.to_owned(),
        ("", message) => message.to_owned(),
        (reason, message) => format!("{reason}: {message}"),
    };
    ReplicaStatus {
        id: name.to_owned(),
        address: pod.ip.map(|ip| SocketAddr::new(ip, port)),
        phase,
        reason: if pod.phase == PodPhase::Healthy { String::new() } else { reason },
        ended: None,
        asked_ms: times.seen_ms,
        inherited: times.inherited,
        scheduled_ms: times.scheduled_ms,
        started_ms: times.started_ms(),
        spared: false,
        rank: rank(pod),
    }
}

/// Who goes first when the workload shrinks. StatefulSets and LeaderWorkerSets take the highest
/// number. ReplicaSets take those that are not scheduled, then those not running, then those not
/// ready, and among the ready ones by the deletion cost.
fn rank(pod: &Pod) -> u32 {
    if let Some(ordinal) = pod.ordinal {
        return ordinal;
    }
    match pod.phase {
        PodPhase::Unscheduled => 3,
        PodPhase::Pulling | PodPhase::Failed => 2,
        PodPhase::Starting => 1,
        PodPhase::Healthy | PodPhase::Draining => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(phase: PodPhase) -> Pod {
        Pod {
            uid: String::new(),
            ip: Some([10, 0, 0, 1].into()),
            phase,
            reason: String::new(),
            message: String::new(),
            withdrawn: false,
            start: Start::default(),
            last_end: None,
            ordinal: None,
            scheduled: true,
            ended: false,
            deletion_cost: None,
        }
    }

    fn named(pods: &[(&str, Pod)]) -> BTreeMap<String, Pod> {
        pods.iter().map(|(name, pod)| ((*name).to_owned(), pod.clone())).collect()
    }

    #[test]
    fn what_has_no_pod_yet_is_pending_and_what_leaves_does_not_count() {
        let pods = named(&[("a", pod(PodPhase::Healthy)), ("b", pod(PodPhase::Draining))]);
        let none = BTreeSet::new();
        let all = statuses("p", &pods, &BTreeMap::new(), 3, 8000, &none, &none);
        let phases: Vec<_> = all.values().map(|status| status.phase).collect();
        assert_eq!(phases, [Phase::Running, Phase::Stopping, Phase::Pending, Phase::Pending]);
        assert_eq!(all["a"].address, "10.0.0.1:8000".parse().ok());
    }

    #[test]
    fn a_rollouts_extra_pod_is_surplus_and_one_that_is_about_to_go_is_not() {
        let healthy = pod(PodPhase::Healthy);
        let pods = named(&[("a", healthy.clone()), ("b", healthy.clone()), ("c", healthy)]);
        let none = BTreeSet::new();
        assert_eq!(surplus(&pods, 2, &none), 1);
        let going: BTreeSet<_> = ["c".to_owned()].into();
        assert_eq!(surplus(&pods, 2, &going), 0);
        assert_eq!(surplus(&pods, 3, &going), 0, "and it is not replaced before it is written off");
    }

    #[test]
    fn a_drained_pod_is_spared_once_no_more_pods_are_left_than_replicas() {
        let healthy = || pod(PodPhase::Healthy);
        let numbered = |n| Pod { ordinal: Some(n), ..healthy() };
        let going: BTreeSet<_> = ["b".to_owned()].into();
        for (case, pods, replicas, want) in [
            ("the controller has not acted yet", [("a", healthy()), ("b", healthy())], 1, 0),
            ("it took another", [("a", pod(PodPhase::Draining)), ("b", healthy())], 1, 1),
            ("it took this one", [("a", healthy()), ("b", pod(PodPhase::Draining))], 1, 0),
            ("and this one, of two", [("a", pod(PodPhase::Draining)), ("b", healthy())], 0, 0),
            ("by number it is next", [("a", pod(PodPhase::Draining)), ("b", numbered(1))], 1, 0),
            ("by number it stays", [("a", pod(PodPhase::Draining)), ("b", numbered(0))], 1, 1),
        ] {
            assert_eq!(spared(&named(&pods), replicas, &going).len(), want, "{case}");
        }
    }

    #[test]
    fn who_goes_first_is_whom_the_workloads_controller_takes() {
        let order =
            [PodPhase::Healthy, PodPhase::Starting, PodPhase::Pulling, PodPhase::Unscheduled];
        let ranks: Vec<_> = order.into_iter().map(|phase| rank(&pod(phase))).collect();
        assert!(ranks.is_sorted(), "{ranks:?}");
        let third = Pod { ordinal: Some(3), ..pod(PodPhase::Healthy) };
        let first = Pod { ordinal: Some(1), ..pod(PodPhase::Starting) };
        assert!(rank(&third) > rank(&first), "a StatefulSet's number goes before everything");
    }

    #[test]
    fn a_start_is_timed_by_our_clock_and_told_from_the_next_one() {
        let mut times = Times::default();
        let mut pod = pod(PodPhase::Starting);
        pod.start = Start { restarts: 0, at: 99_999_999 };
        times.see(&pod, 1_000);
        times.see(&pod, 2_000);
        assert_eq!(status("a", &pod, times, 1).started_ms, 1_000);
        pod.start = Start { restarts: 1, at: 100_000_000 };
        times.see(&pod, 3_000);
        assert_eq!(status("a", &pod, times, 1).started_ms, 3_000);
        assert_eq!(status("a", &pod, times, 1).scheduled_ms, Some(1_000));
    }
}

//! Pods as replicas. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use forebay_config::Millis;
use forebay_discovery::pod::{Pod, Start};
use forebay_signals::PodPhase;

use crate::act::targets::start_failure::{CRASH_LOOP, UNSCHEDULABLE};
use crate::act::targets::{ReplicaStatus, StartFailure};
use crate::decide::Condition;

/// The times at which a pod reached each step, by our own clock: the node's may be off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PodTimes {
    first_read: Option<Millis>,
    /// It was there before this process: the time of its request is unknown.
    inherited: bool,
    scheduled_at: Option<Millis>,
    started: Option<(Start, Millis)>,
    /// Its container ended again and again, and Kubernetes has not found it healthy since.
    crash_loops: bool,
    /// Looks for a node since it has fitted on none.
    looks: Option<u32>,
    /// No node is being added for it.
    stays_unscheduled: bool,
}

impl PodTimes {
    pub(super) fn inherited() -> Self {
        Self { inherited: true, ..Self::default() }
    }

    /// The time when its containers started to run.
    pub(super) fn started_at(&self) -> Option<Millis> {
        self.started.map(|(_, at)| at)
    }

    /// Counts a look for a node, if the pod fits on none; the number of looks so far.
    pub(super) fn look(&mut self) -> Option<u32> {
        let looks = self.looks.as_mut()?;
        *looks = looks.saturating_add(1);
        Some(*looks)
    }

    /// Sets whether no node is being added for it; true if that is new.
    pub(super) fn set_stays_unscheduled(&mut self, stays: bool) -> bool {
        std::mem::replace(&mut self.stays_unscheduled, stays) != stays
    }

    /// The failure of its start, if it is not expected to start.
    fn start_failure(&self, pod: &Pod) -> Option<StartFailure> {
        let loops = || self.crash_loops.then(StartFailure::crash_loop);
        let unscheduled =
            || self.stays_unscheduled.then(|| StartFailure::unscheduled(&pod.message));
        StartFailure::of_pod(pod.phase, &pod.reason, &pod.message)
            .or_else(loops)
            .or_else(unscheduled)
    }

    pub(super) fn observe(&mut self, pod: &Pod, now: Millis) {
        self.first_read.get_or_insert(now);
        if pod.phase == PodPhase::Unscheduled && pod.reason == UNSCHEDULABLE {
            self.looks.get_or_insert(0);
        } else {
            (self.looks, self.stays_unscheduled) = (None, false);
        }
        match pod.phase {
            PodPhase::Healthy => self.crash_loops = false,
            _ => self.crash_loops |= pod.reason == CRASH_LOOP,
        }
        if pod.scheduled {
            self.scheduled_at.get_or_insert(now);
        }
        let runs = pod.start.at > 0;
        if runs && self.started.is_none_or(|(start, _)| start != pod.start) {
            self.started = Some((pod.start, now));
        }
    }
}

/// Whether the replica is not stopping, as far as Kubernetes shows.
pub(super) fn is_going_on(status: &ReplicaStatus) -> bool {
    status.condition != Condition::Draining
}

/// The statuses of a workload with `replicas` in its specification: its pods, and a placeholder for
/// each replica that has no pod yet.
pub(super) fn statuses(
    pool: &str,
    pods: &BTreeMap<String, Pod>,
    times: &BTreeMap<String, PodTimes>,
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
            reason: "requested, and has no pod yet".to_owned(),
            // It is the first to stop, before any pod.
            rank: u32::MAX,
            ..ReplicaStatus::requested(&id)
        };
        all.insert(id, status);
    }
    all
}

/// The number of pods beyond `replicas`, as a rollout has them.
pub(super) fn surplus(
    pods: &BTreeMap<String, Pod>,
    replicas: u32,
    stopping: &BTreeSet<String>,
) -> u32 {
    going_on(pods, stopping).saturating_sub(replicas)
}

/// The number of pods that were not deleted.
pub(super) fn left(pods: &BTreeMap<String, Pod>) -> u32 {
    going_on(pods, &BTreeSet::new())
}

/// The replicas of `stopping` that stay for good, once `replicas` is both wanted and written. When no
/// more pods than that are left, the workload's controller stops taking pods. It took others, for
/// example pods that were not ready at that moment, or that a node's drain deleted.
pub(super) fn spared(
    pods: &BTreeMap<String, Pod>,
    replicas: u32,
    stopping: &BTreeSet<String>,
) -> BTreeSet<String> {
    if left(pods) > replicas {
        return BTreeSet::new();
    }
    // Numbered pods stop in the order of their numbers.
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

fn status(name: &str, pod: &Pod, times: PodTimes, port: u16) -> ReplicaStatus {
    let reason = match (pod.reason.as_str(), pod.message.as_str()) {
        ("", "") => pod.phase.words().to_owned(),
        (reason, "") => reason.to_owned(),
        ("", message) => message.to_owned(),
        (reason, message) => format!("{reason}: {message}"),
    };
    ReplicaStatus {
        id: name.to_owned(),
        address: pod.ip.map(|ip| SocketAddr::new(ip, port)),
        condition: Condition::of_pod(pod.phase),
        reason: if pod.phase == PodPhase::Healthy { String::new() } else { reason },
        ended: None,
        requested_at: times.first_read,
        inherited: times.inherited,
        scheduled_at: times.scheduled_at,
        started_at: times.started_at(),
        spared: false,
        rank: rank(pod),
        start_failure: times.start_failure(pod),
    }
}

/// The order in which the workload's controller takes pods when the workload shrinks. StatefulSets
/// and LeaderWorkerSets take the highest number. ReplicaSets take pods that are not scheduled, then
/// pods that don't run, then pods that are not ready; among ready ones the deletion cost decides.
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
    fn a_replica_without_a_pod_is_pending_and_one_that_leaves_does_not_count() {
        let pods = named(&[("a", pod(PodPhase::Healthy)), ("b", pod(PodPhase::Draining))]);
        let none = BTreeSet::new();
        let all = statuses("p", &pods, &BTreeMap::new(), 3, 8000, &none, &none);
        let conditions: Vec<_> = all.values().map(|status| status.condition).collect();
        assert_eq!(
            conditions,
            [Condition::Starting, Condition::Draining, Condition::Pending, Condition::Pending]
        );
        assert_eq!(all["a"].address, "10.0.0.1:8000".parse().ok());
    }

    #[test]
    fn a_rollouts_extra_pod_is_surplus_and_one_that_is_to_stop_is_not() {
        let healthy = pod(PodPhase::Healthy);
        let pods = named(&[("a", healthy.clone()), ("b", healthy.clone()), ("c", healthy)]);
        let none = BTreeSet::new();
        assert_eq!(surplus(&pods, 2, &none), 1);
        let going: BTreeSet<_> = ["c".to_owned()].into();
        assert_eq!(surplus(&pods, 2, &going), 0);
        assert_eq!(surplus(&pods, 3, &going), 0, "and it is not replaced before it is gone");
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
    fn a_pod_in_a_crash_loop_fails_until_it_is_healthy() {
        let mut times = PodTimes::default();
        let mut fails = |phase, reason: &str| {
            let pod = Pod { reason: reason.to_owned(), ..pod(phase) };
            times.observe(&pod, Millis::new(1_000));
            status("a", &pod, times, 8000).start_failure.is_some()
        };
        assert!(!fails(PodPhase::Starting, ""), "its first start");
        assert!(!fails(PodPhase::Failed, "Error"), "its container has ended once");
        assert!(fails(PodPhase::Failed, "CrashLoopBackOff"));
        assert!(fails(PodPhase::Starting, ""), "between two ends");
        assert!(!fails(PodPhase::Healthy, ""));
        assert!(!fails(PodPhase::Failed, "Error"), "counted anew");
        assert!(fails(PodPhase::Failed, "ImagePullBackOff"));
        assert!(!fails(PodPhase::Starting, ""), "the image is there");
    }

    #[test]
    fn the_replica_to_stop_first_is_the_one_that_the_workloads_controller_takes() {
        let order =
            [PodPhase::Healthy, PodPhase::Starting, PodPhase::Pulling, PodPhase::Unscheduled];
        let ranks: Vec<_> = order.into_iter().map(|phase| rank(&pod(phase))).collect();
        assert!(ranks.is_sorted(), "{ranks:?}");
        let third = Pod { ordinal: Some(3), ..pod(PodPhase::Healthy) };
        let first = Pod { ordinal: Some(1), ..pod(PodPhase::Starting) };
        assert!(rank(&third) > rank(&first), "a StatefulSet's number comes before everything");
    }

    #[test]
    fn a_start_is_timed_by_our_clock_and_distinguished_from_the_next_one() {
        let mut times = PodTimes::default();
        let mut pod = pod(PodPhase::Starting);
        pod.start = Start { restarts: 0, at: 99_999_999 };
        times.observe(&pod, Millis::new(1_000));
        times.observe(&pod, Millis::new(2_000));
        assert_eq!(status("a", &pod, times, 1).started_at, Some(Millis::new(1_000)));
        pod.start = Start { restarts: 1, at: 100_000_000 };
        times.observe(&pod, Millis::new(3_000));
        assert_eq!(status("a", &pod, times, 1).started_at, Some(Millis::new(3_000)));
        assert_eq!(status("a", &pod, times, 1).scheduled_at, Some(Millis::new(1_000)));
    }
}

//! Pods without an address, and the reasons why no endpoint is ready. Clients read these reasons:
//! they have counts and Kubernetes' own reasons, and no names.

use std::collections::BTreeMap;

use forebay_discovery::Member;
use forebay_signals::PodPhase;

use super::Pool;
use super::scheduling::{PendingPod, Scheduling};

impl Pool {
    /// Takes discovery's report on a pod without an address; `None` once it has one, or is gone.
    pub(crate) fn set_pending_pod(&self, name: String, pod: Option<PendingPod>) {
        let mut state = self.scheduling.lock();
        let before = match pod.clone() {
            Some(pod) => state.pending_pods.insert(name, pod),
            None => state.pending_pods.remove(&name),
        };
        if before != pod {
            self.changed.notify_one();
        }
    }
}

impl Scheduling {
    /// The reason why no endpoint is ready, for clients; empty if one is.
    pub(super) fn why_waiting(&self) -> String {
        if self.endpoints.any_ready() {
            return String::new();
        }
        let pods = self.pending_pods.values().map(|(pod, reason)| (pod.phase, reason.as_str()));
        let endpoints = self.endpoints.iter().filter_map(|(.., endpoint)| endpoint.pod_phase());
        why(pods.chain(endpoints))
    }
}

/// `: 2 replicas are waiting for a node (Unschedulable), 1 is pulling the image`; empty for none.
fn why<'a>(replicas: impl IntoIterator<Item = (PodPhase, &'a str)>) -> String {
    let mut counts: BTreeMap<(PodPhase, &str), u32> = BTreeMap::new();
    for (phase, reason) in replicas {
        if !matches!(phase, PodPhase::Healthy | PodPhase::Draining) {
            *counts.entry((phase, reason)).or_default() += 1;
        }
    }
    let mut text = String::new();
    for (n, ((phase, reason), count)) in counts.into_iter().enumerate() {
        let (noun, verb) = match (n, count) {
            (0, 1) => (" replica", "is"),
            (0, _) => (" replicas", "are"),
            (_, 1) => ("", "is"),
            (_, _) => ("", "are"),
        };
        let lead = if n == 0 { ": " } else { ", " };
        text.push_str(&format!("{lead}{count}{noun} {verb} {}", phase.words()));
        if !reason.is_empty() {
            text.push_str(&format!(" ({reason})"));
        }
    }
    text
}

/// Kubernetes' reason with its explanation.
pub(crate) fn full_reason(member: &Member) -> String {
    match (member.reason.as_str(), member.message.as_str()) {
        (reason, "") => reason.to_owned(),
        ("", message) => message.to_owned(),
        (reason, message) => format!("{reason}: {message}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_that_are_not_ready_are_counted_by_phase_and_reason() {
        use PodPhase::{Failed, Healthy, Pulling, Unscheduled};
        for (replicas, expected) in [
            (vec![], ""),
            (vec![(Healthy, "")], ""),
            (vec![(Pulling, "")], ": 1 replica is pulling the image"),
            (
                vec![(Unscheduled, "Unschedulable"), (Pulling, ""), (Unscheduled, "Unschedulable")],
                ": 2 replicas are waiting for a node (Unschedulable), 1 is pulling the image",
            ),
            (
                vec![(Failed, "CrashLoopBackOff"), (Failed, "ImagePullBackOff")],
                ": 1 replica is failing (CrashLoopBackOff), 1 is failing (ImagePullBackOff)",
            ),
        ] {
            assert_eq!(why(replicas), expected);
        }
    }
}

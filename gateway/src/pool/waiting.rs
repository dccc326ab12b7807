//! Why nothing is ready, in words that a client may read: counts and Kubernetes' own words, no names.
//!
//! Pure.

use std::collections::BTreeMap;

use forebay_discovery::Member;
use forebay_signals::PodPhase;

/// `: 2 replicas are waiting for a node (Unschedulable), 1 is pulling the image`; empty for none.
pub(crate) fn why<'a>(replicas: impl IntoIterator<Item = (PodPhase, &'a str)>) -> String {
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

/// Kubernetes' word with its explanation.
pub(crate) fn at_length(member: &Member) -> String {
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
    fn replicas_on_their_way_are_counted_by_phase_and_reason() {
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

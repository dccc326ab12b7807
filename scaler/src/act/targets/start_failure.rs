//! Pods whose start fails, by Kubernetes' own words. Pure.

use forebay_signals::PodPhase;

use super::StartFailure;

/// Reasons to wait of a container that will not run, unless someone changes something.
const STUCK: [&str; 6] = [
    "ErrImagePull",
    "ImagePullBackOff",
    "ErrImageNeverPull",
    "InvalidImageName",
    "CreateContainerConfigError",
    CRASH_LOOP,
];
/// The reason to wait of a container that ends again and again.
pub(super) const CRASH_LOOP: &str = "CrashLoopBackOff";
/// The scheduler's reason for a pod that fits on no node.
pub(super) const UNSCHEDULABLE: &str = "Unschedulable";

impl StartFailure {
    /// The failure of a pod's start, if Kubernetes' `reason` says that it will not start.
    pub(super) fn of_pod(phase: PodPhase, reason: &str, message: &str) -> Option<Self> {
        let stuck = phase == PodPhase::Failed && STUCK.contains(&reason);
        stuck.then(|| Self {
            reason: format!("does not start ({reason})"),
            detail: message.to_owned(),
            next_try: None,
        })
    }

    /// The failure of a pod whose container ends again and again, between two ends.
    pub(super) fn crash_loop() -> Self {
        let reason = format!("does not start ({CRASH_LOOP})");
        Self { reason, detail: String::new(), next_try: None }
    }

    /// The failure of a pod that fits on no node, where none is being added for it.
    pub(super) fn unscheduled(message: &str) -> Self {
        let reason = format!("has no node ({UNSCHEDULABLE}), and none is being added");
        Self { reason, detail: message.to_owned(), next_try: None }
    }

    /// As [`of_pod`](Self::of_pod), with reason and message in one text.
    pub(super) fn of_text(phase: PodPhase, text: &str) -> Option<Self> {
        let (reason, message) = text.split_once(": ").unwrap_or((text, ""));
        Self::of_pod(phase, reason, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_fails_to_start_only_for_what_does_not_pass_on_its_own() {
        for (phase, text, fails) in [
            (PodPhase::Failed, "ImagePullBackOff: Back-off pulling image \"a\"", true),
            (PodPhase::Failed, "ErrImagePull", true),
            (PodPhase::Failed, "CrashLoopBackOff: back-off 10s", true),
            (PodPhase::Failed, "Error: a container ended with status 1", false),
            (PodPhase::Failed, "Evicted", false),
            (PodPhase::Unscheduled, "Unschedulable: 0/3 nodes are available", false),
            (PodPhase::Starting, "", false),
            (PodPhase::Draining, "ImagePullBackOff", false),
        ] {
            assert_eq!(StartFailure::of_text(phase, text).is_some(), fails, "{text}");
        }
        let failure =
            StartFailure::of_text(PodPhase::Failed, "ErrImagePull: from registry.internal");
        let failure = failure.expect("it fails");
        assert_eq!(failure.reason, "does not start (ErrImagePull)");
        assert_eq!(failure.detail, "from registry.internal");
    }
}

//! An endpoint's pod as discovery reports it, and how the endpoint leaves and comes back with it.

use forebay_discovery::Member;
use forebay_discovery::pod::End;
use forebay_signals::PodPhase;
use tokio::time::Instant;

use super::{Behaviour, Endpoint, Rules, Standing};
use crate::pool::pods::full_reason;

/// An endpoint's pod, as discovery reported it last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pod {
    pub(super) phase: Option<PodPhase>,
    /// Kubernetes' reason for its phase, in one word.
    short_reason: String,
    /// That reason with Kubernetes' explanation.
    reason: String,
    /// Kubernetes' own probe has succeeded, and now fails.
    pub(super) withdrawn: bool,
    /// How its container ended last.
    last_end: Option<End>,
    /// It was deleted.
    pub(super) leaving: bool,
    /// No source lists it now. It stays for its requests in flight.
    pub(super) gone: bool,
}

impl Endpoint {
    /// Takes discovery's report; true if anything changed.
    pub(crate) fn found(&mut self, member: &Member) -> bool {
        let pod = Pod {
            phase: member.phase,
            short_reason: member.reason.clone(),
            reason: full_reason(member),
            withdrawn: member.withdrawn,
            last_end: member.last_end,
            leaving: member.is_draining(),
            gone: false,
        };
        if let Some(end) = pod.last_end.filter(|_| pod.last_end != self.pod.last_end) {
            self.process_ended(end.how);
        }
        std::mem::replace(&mut self.pod, pod.clone()) != pod
    }

    /// Notes that its last source has removed it. True if it stays for requests in flight.
    pub(crate) fn leave(&mut self) -> bool {
        self.pod.gone = self.in_flight() > 0;
        self.pod.gone
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.pod.gone
    }

    /// Adds it again while requests are still in flight there. The same address may be another
    /// replica, so it has to answer a probe first.
    pub(crate) fn come_back(&mut self, rules: Rules, now: Instant) {
        (self.standing, self.once_ready) = (Standing::Down, false);
        self.draining.ordered = false;
        self.lifecycle.ended = true;
        self.behaviour = Behaviour::default();
        self.probing.begin_anew(now);
        "not probed yet".clone_into(&mut self.reason);
        self.pod = Pod::default();
        self.set_rules(rules, now);
    }

    /// Its pod's phase, with Kubernetes' short reason.
    pub(crate) fn pod_phase(&self) -> Option<(PodPhase, &str)> {
        Some((self.pod.phase?, &self.pod.short_reason))
    }

    /// The reason why it takes no requests: its pod's, if that explains more than the last probe
    /// does.
    pub(super) fn why(&self) -> String {
        let stuck = matches!(
            self.pod.phase,
            Some(PodPhase::Unscheduled | PodPhase::Pulling | PodPhase::Failed)
        );
        let explains = (stuck && self.standing != Standing::Up) || self.pod.withdrawn;
        match self.pod.phase {
            Some(phase) if explains && self.pod.reason.is_empty() => phase.words().to_owned(),
            _ if explains => self.pod.reason.clone(),
            _ => self.reason.clone(),
        }
    }
}

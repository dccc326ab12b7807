//! What discovery says of an endpoint's pod, and how the endpoint leaves and comes back by it.

use forebay_discovery::Member;
use forebay_discovery::pod::End;
use forebay_signals::{PodPhase, ProcessEnd};

use super::{Endpoint, Rules, Standing};
use crate::pool::waiting::at_length;

/// What discovery says of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pod {
    pub(super) phase: Option<PodPhase>,
    /// Kubernetes' word on why it is not further.
    word: String,
    /// The same at length.
    reason: String,
    /// It was ready by Kubernetes' own probe, and is not any more.
    pub(super) withdrawn: bool,
    /// How its container ended last.
    last_end: Option<End>,
    /// It was deleted.
    pub(super) leaving: bool,
    /// Nobody lists it any more; it stays for what is in flight.
    pub(super) gone: bool,
}

impl Endpoint {
    /// Discovery's word; true if that is news.
    pub(crate) fn found(&mut self, member: &Member) -> bool {
        let pod = Pod {
            phase: member.phase,
            word: member.reason.clone(),
            reason: at_length(member),
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

    /// Whoever watches its process saw it end.
    pub(crate) fn process_ended(&mut self, how: ProcessEnd) {
        match how {
            ProcessEnd::Stopped => self.life.stopped(),
            ProcessEnd::Crashed => self.life.crashed(),
        }
        self.ended = true;
    }

    /// It is no longer listed. Whether it stays for what is in flight there.
    pub(crate) fn leave(&mut self) -> bool {
        self.pod.gone = self.in_flight > 0;
        self.pod.gone
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.pod.gone
    }

    /// It is listed again, with what is still in flight there. Whether the same replica is there is
    /// not known, so that it has to answer first.
    pub(crate) fn come_back(&mut self, rules: Rules) {
        (self.standing, self.once_ready, self.draining) = (Standing::Down, false, false);
        self.ended = true;
        (self.failures, self.ejections, self.silent) = (0, 0, 0);
        (self.full_until, self.probed_at) = (None, None);
        "not probed yet".clone_into(&mut self.reason);
        self.pod = Pod::default();
        self.rules = rules;
    }

    /// Its pod's phase with Kubernetes' word on it.
    pub(crate) fn on_its_way(&self) -> Option<(PodPhase, &str)> {
        Some((self.pod.phase?, &self.pod.word))
    }

    /// Why it takes nothing: its pod's reason, where that says more than that nobody answers.
    pub(super) fn why(&self) -> String {
        let stuck = matches!(
            self.pod.phase,
            Some(PodPhase::Unscheduled | PodPhase::Pulling | PodPhase::Failed)
        );
        let tells = (stuck && self.standing != Standing::Up) || self.pod.withdrawn;
        match self.pod.phase {
            Some(phase) if tells && self.pod.reason.is_empty() => phase.words().to_owned(),
            _ if tells => self.pod.reason.clone(),
            _ => self.reason.clone(),
        }
    }
}

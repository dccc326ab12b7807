//! A pool whose replicas can't be started: its requests are refused, with the reason.
//!
//! The scaler reports it, again and again: it ends when the scaler is silent for [`LEASE`]. Only a
//! pool without a ready endpoint is concerned: an endpoint that is ready, whoever started it, ends
//! the failure here.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use forebay_config::ShowReason;
use forebay_signals::FailedStart;
use forebay_signals::follower::SILENCE;
use tokio::time::Instant;

use super::Pool;
use super::scheduling::{ReportedFailedStart, Scheduling};
use crate::answer::refusal::Refusal;

/// The longest time that a client is asked to stay away until the next start.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// The time for which a report counts. A scaler repeats it each second, and its feed counts as lost
/// after five; a restart takes less than this.
const LEASE: Duration = Duration::from_secs(9);
const _: () = assert!(LEASE.as_secs() > SILENCE.as_secs());

impl ReportedFailedStart {
    fn new(report: FailedStart, now: Instant, epoch: Duration) -> Self {
        let next_try = report.next_try_millis.map(|at| {
            let pause = Duration::from_millis(at).saturating_sub(epoch);
            now + pause.min(LONGEST_PAUSE)
        });
        Self { report, until: now + LEASE, next_try }
    }

    /// The reason as the end of a sentence, as far as clients may read it.
    fn why(&self, show: ShowReason) -> String {
        let FailedStart { reason, detail, .. } = &self.report;
        match show {
            ShowReason::None => String::new(),
            ShowReason::Output if !detail.is_empty() => {
                format!(": the last one {reason}: {}", detail.trim_end_matches('.'))
            }
            ShowReason::Reason | ShowReason::Output => format!(": the last one {reason}"),
        }
    }
}

impl Scheduling {
    /// Ends the failure if the scaler has been silent for too long; true if it ended.
    pub(super) fn failed_start_ran_out(&mut self, now: Instant) -> bool {
        self.failed_start.take_if(|failed| failed.until <= now).is_some()
    }
}

impl Pool {
    /// Takes the scaler's report on the pool's starts. If none succeeds, the held requests are refused.
    pub(crate) fn set_failed_start(self: &Arc<Self>, report: Option<FailedStart>) {
        if report.is_none() && self.scheduling.peek().failed_start.is_none() {
            return;
        }
        let mut waiters = Vec::new();
        let mut state = self.scheduling.lock();
        let now = Instant::now();
        let epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        // The report of a scaler that has not heard of a ready endpoint yet is out of date.
        let report = report.filter(|_| !state.endpoints.any_ready());
        state.failed_start = report.map(|report| ReportedFailedStart::new(report, now, epoch));
        if state.failed_start.is_some() {
            waiters = state.queue.drain();
            let deferred = self.note_depth(&mut state);
            drop(state);
            deferred.run(self);
        }
        // Each held request sees its channel closed, and asks again.
        drop(waiters);
    }

    /// The refusal of a request, if the pool's replicas can't be started and none is ready. It counts
    /// as demand, so that replicas are tried again.
    pub(super) fn start_refused(&self, state: &mut Scheduling, now: Instant) -> Option<Refusal> {
        let failure = state.failed_start.as_ref()?;
        let pause = failure.next_try.map(|at| at.saturating_duration_since(now));
        let why = failure.why(self.settings().hold.show_reason);
        let retry_after = pause.unwrap_or_default() + state.learned_start();
        state.backlog.refused += 1;
        self.changed.notify_one();
        Some(Refusal::StartFailed { why, retry_after })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_read_as_much_of_the_reason_as_the_configuration_allows() {
        let report = |detail: &str| FailedStart {
            reason: "exited with status 1".to_owned(),
            detail: detail.to_owned(),
            since_millis: 0,
            next_try_millis: None,
        };
        for (show, detail, want) in [
            (ShowReason::None, "a secret", ""),
            (ShowReason::Reason, "a secret", ": the last one exited with status 1"),
            (ShowReason::Output, "", ": the last one exited with status 1"),
            (ShowReason::Output, "No GPU.", ": the last one exited with status 1: No GPU"),
        ] {
            let failure = ReportedFailedStart::new(report(detail), Instant::now(), Duration::ZERO);
            assert_eq!(failure.why(show), want, "{show:?}");
        }
    }
}

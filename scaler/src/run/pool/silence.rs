//! The silence of a replica: how long no gateway has had an answer from it. Pure.

use forebay_config::Millis;
use forebay_signals::{EndpointSignals, Health};

/// A replica's silence, as all gateways see it.
#[derive(Clone, Debug, Default)]
pub(super) struct Silence {
    /// The time since which every gateway has it out and gets no answer.
    pub(super) since: Option<Millis>,
    /// Its answers and tokens, as last counted.
    answers: u64,
    /// A gateway's reason to take it out.
    pub(super) reason: String,
}

impl Silence {
    /// Records the view of each connected gateway. A gateway that started after the replica hung has
    /// not seen it ready, and reports it as starting.
    pub(super) fn observe<'a>(
        &mut self,
        views: impl Iterator<Item = &'a EndpointSignals>,
        now: Millis,
    ) {
        let (mut answers, mut out, mut seen) = (0_u64, true, false);
        self.reason.clear();
        for view in views {
            seen = true;
            if self.reason.is_empty() {
                self.reason.clone_from(&view.reason);
            }
            out &= matches!(view.health, Health::Ejected | Health::Starting);
            answers += view.completed + view.generated_tokens + view.first_tokens;
        }
        let answered = answers > std::mem::replace(&mut self.answers, answers);
        self.since = match self.since {
            _ if !seen || !out => None,
            Some(since) if !answered => Some(since),
            _ => Some(now),
        };
    }
}

//! What an endpoint's silence means, and what follows for the requests that it has.
//!
//! A working engine says something now and then, whatever kind of work it has. One that has work
//! and says nothing for `freezeTimeout` is asked for one token, and takes nothing new meanwhile; if
//! that brings nothing either, it is out. What has no answer from an endpoint goes elsewhere:
//!
//! - at once when the endpoint can't be reached: whatever listened there is gone, and where its
//!   connections stay open nothing comes on them. As long as bytes come it is finishing its work;
//! - after `freezeTimeout` when it accepts connections and answers nothing, not even `/health`;
//! - when its engine hangs, as soon as another endpoint is ready: a suspicion alone takes nothing
//!   away from the last one.
//!
//! What has begun may go on when a process wakes. Where nothing can be reached for `freezeTimeout`
//! and nothing came, it ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Endpoint, Standing};

/// An endpoint that can't be reached and sent something more recently is finishing its work.
const FINISHING: Duration = Duration::from_secs(1);

/// When an endpoint's engine last produced something: noted for every chunk, without a lock.
#[derive(Clone, Debug)]
pub(crate) struct Pulse {
    since: Instant,
    micros: Arc<AtomicU64>,
}

impl Pulse {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, micros: Arc::default() }
    }

    /// Something came.
    pub(crate) fn beat(&self, now: Instant) {
        let micros = now.saturating_duration_since(self.since).as_micros() as u64;
        self.micros.fetch_max(micros, Ordering::Relaxed);
    }

    fn last(&self) -> Instant {
        self.since + Duration::from_micros(self.micros.load(Ordering::Relaxed))
    }

    pub(super) fn silent(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.last())
    }
}

/// Cancelled when requests at an endpoint wait there in vain.
#[derive(Clone, Debug, Default)]
pub(crate) struct Evictions {
    /// Of requests without an answer, which can be tried elsewhere.
    pub(crate) unanswered: CancellationToken,
    /// Of answers that have begun.
    pub(crate) begun: CancellationToken,
}

impl Endpoint {
    pub(crate) fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }

    pub(crate) fn evictions(&self) -> Evictions {
        self.evictions.clone()
    }

    /// A request was given to it.
    pub(crate) fn given(&mut self, now: Instant) {
        // Otherwise it still owes an answer to an earlier one, whose client may have left.
        if self.in_flight == self.sessions
            && self.asked.is_none_or(|asked| self.pulse.last() >= asked)
        {
            self.asked = Some(now);
        }
        self.in_flight += 1;
    }

    /// A request there became a session, which may be silent for as long as its client is.
    pub(crate) fn session_began(&mut self, now: Instant) {
        self.pulse.beat(now);
        self.sessions += 1;
    }

    pub(crate) fn session_ended(&mut self) {
        self.sessions = self.sessions.saturating_sub(1);
    }

    /// How long it has had work and produced nothing.
    fn silence(&self, now: Instant) -> Duration {
        let asked = self.asked.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.pulse.silent(now).min(asked)
    }

    /// Whether its engine may hang: to be asked, and to be given nothing new meanwhile.
    pub(crate) fn is_suspect(&self, now: Instant) -> bool {
        self.in_flight > self.sessions && self.silence(now) >= self.rules.freeze
    }

    /// Whether no connection to it can be made.
    pub(crate) fn is_unreachable(&self) -> bool {
        self.unreachable.is_some()
    }

    /// Whether it is out because its engine hangs.
    pub(crate) fn hangs(&self) -> bool {
        matches!(self.standing, Standing::Out { hung: true, .. })
    }

    /// Requests without an answer go elsewhere. What comes later waits anew.
    pub(crate) fn evict_unanswered(&mut self) {
        std::mem::take(&mut self.evictions.unanswered).cancel();
    }

    /// What follows from a probe's report for the requests there.
    pub(super) fn evict(&mut self, now: Instant) {
        if self.standing == Standing::Up {
            return;
        }
        let silent = self.pulse.silent(now);
        if let Some(since) = self.unreachable {
            if silent >= FINISHING {
                self.evict_unanswered();
            }
            if silent.min(now.saturating_duration_since(since)) >= self.rules.freeze {
                std::mem::take(&mut self.evictions.begun).cancel();
            }
        } else if self.silent >= 2 && silent >= self.rules.freeze {
            self.evict_unanswered();
        }
    }
}

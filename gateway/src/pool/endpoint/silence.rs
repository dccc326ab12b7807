//! What an endpoint's silence means, and what follows for the requests that it has.
//!
//! A working engine says something now and then, whatever kind of work it has. One that has work
//! and says nothing for `freezeTimeout` is asked for one token, and takes nothing new meanwhile; if
//! that brings nothing either, it is out. What has no answer from an endpoint goes elsewhere:
//!
//! - when the endpoint can't be reached for a second, and nothing came meanwhile: whatever listened
//!   there is gone, and where its connections stay open nothing comes on them. One connection that
//!   fails shows nothing. As long as bytes come it is finishing its work;
//! - after `freezeTimeout` when it accepts connections and answers nothing, not even `/health`;
//! - when its engine hangs, as soon as another endpoint is ready: a suspicion alone takes nothing
//!   away from the last one.
//!
//! What has begun may go on when a process wakes. Where nothing can be reached for `freezeTimeout`
//! and nothing came, it ends. A session may be silent, so it ends only where the server in front of
//! the engine is silent as well.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Endpoint, Standing};

/// How long an endpoint can't be reached and sends nothing before it counts as gone.
pub(super) const GONE: Duration = Duration::from_secs(1);

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
    /// Of sessions, which may be silent.
    pub(crate) sessions: CancellationToken,
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
        if let Some(since) = self.idle.take() {
            // It may still owe an answer to an earlier one, whose client left.
            let owes = self.pulse.last() <= self.asked;
            self.asked = if owes { self.asked + now.saturating_duration_since(since) } else { now };
        }
        self.in_flight += 1;
    }

    /// A request there has ended, by whomever.
    pub(crate) fn given_back(&mut self, session: bool, now: Instant) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.sessions = self.sessions.saturating_sub(u32::from(session));
        self.rest(now);
    }

    /// Notes where nothing is left to be worked on.
    fn rest(&mut self, now: Instant) {
        if self.in_flight <= self.sessions && self.idle.is_none() {
            self.asked = self.asked.max(self.pulse.last());
            self.idle = Some(now);
        }
    }

    /// Another process is there, which owes nothing.
    pub(super) fn owes_nothing(&mut self, now: Instant) {
        self.asked = now;
        self.idle = self.idle.map(|_| now);
    }

    /// A request there became a session, which may be silent for as long as its client is.
    pub(crate) fn session_began(&mut self, now: Instant) {
        self.pulse.beat(now);
        self.sessions += 1;
        self.rest(now);
    }

    /// How long it has had work and produced nothing.
    fn silence(&self, now: Instant) -> Duration {
        self.pulse.silent(now).min(now.saturating_duration_since(self.asked))
    }

    /// Whether its engine may hang: to be asked, and to be given nothing new meanwhile.
    pub(crate) fn is_suspect(&self, now: Instant) -> bool {
        self.idle.is_none() && self.silence(now) >= self.rules.freeze
    }

    /// Whether no connection to it can be made.
    pub(crate) fn is_unreachable(&self) -> bool {
        self.unreachable.is_some()
    }

    /// Whether it is out because its engine hangs, and nothing came since.
    pub(crate) fn hangs(&self, now: Instant) -> bool {
        matches!(self.standing, Standing::Out { hung: true, .. }) && self.is_suspect(now)
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
            let gone = silent.min(now.saturating_duration_since(since));
            if gone >= GONE {
                self.evict_unanswered();
            }
            if gone >= self.rules.freeze {
                std::mem::take(&mut self.evictions.begun).cancel();
                std::mem::take(&mut self.evictions.sessions).cancel();
            }
        } else if self.silent >= 2 && silent >= self.rules.freeze {
            self.evict_unanswered();
            std::mem::take(&mut self.evictions.sessions).cancel();
        }
    }
}

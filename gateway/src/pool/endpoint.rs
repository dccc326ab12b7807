//! How an endpoint stands: starting, ready, out for its behaviour, down, draining.
//!
//! Behaviour counts more than `/health`, which vLLM answers with 200 while it drains, hangs or
//! sleeps. What its behaviour took out comes back by answering a real one-token request. Failures
//! that are only counted never take out the last one that is ready. A death, or a probe's word, does;
//! the last one is then asked at once, and no later for each time it fails. What its silence means is
//! in `silence.rs`.
//!
//! Pure: callers pass `now`; the probes are in `probe.rs`.

use std::sync::Arc;
use std::time::Duration;

use forebay_signals::{EndpointSignals, Health};
use forebay_system::Resource;
use tokio::time::Instant;

use crate::answer::ejection::Ejection;
use crate::answer::failure::{Cause, Failure};
use crate::answer::fingerprint::Fingerprint;
use crate::figures::endpoint_totals::Figures;

pub(crate) use life::Life;
use pod::Pod;
pub(crate) use silence::{Evictions, Pulse};

mod life;
mod pod;
mod silence;

const FIRST_EJECTION: Duration = Duration::from_millis(250);
const LONGEST_EJECTION: Duration = Duration::from_secs(30);
const HEALTH_EVERY: Duration = Duration::from_secs(1);
/// How long a full one gets nothing, unless something ends there before.
const FULL_FOR: Duration = Duration::from_secs(1);
/// vLLM that is told to stop aborts some of its requests and fails others, within moments.
const STOPS_WITHIN: Duration = Duration::from_secs(5);

/// One endpoint in the pool's books.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    standing: Standing,
    once_ready: bool,
    draining: bool,
    pod: Pod,
    reason: String,
    /// Counted failures since the last success.
    failures: u32,
    /// Ejections and failed probes since the last success: the back-off's exponent.
    ejections: u32,
    full_until: Option<Instant>,
    probed_at: Option<Instant>,
    pulse: Pulse,
    /// When it was given the first request since it last produced something; moved on by the time
    /// in which it had none.
    asked: Instant,
    /// Since when it has nothing to work on. Sessions may be silent, and count for nothing here.
    idle: Option<Instant>,
    /// Health probes in a row that brought nothing at all.
    silent: u32,
    /// Since when no connection can be made.
    unreachable: Option<Instant>,
    /// Each cancelled, and made anew, when it is time.
    evictions: Evictions,
    life: Arc<Life>,
    /// What answers next is another process.
    ended: bool,
    /// When its process answered for the first time.
    up_since: Instant,
    /// When it last aborted a request, and when one last died there.
    aborted_at: Option<Instant>,
    died_at: Option<Instant>,
    /// Sessions, of those in flight.
    sessions: u32,
    pub(crate) in_flight: u32,
    rules: Rules,
    pub(crate) completed: u64,
    pub(crate) failed: u64,
    pub(crate) figures: Figures,
    /// What its streams end with, as it told last.
    pub(crate) fingerprint: Option<Fingerprint>,
}

/// What a pool's configuration says of its endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    /// Most requests in flight.
    pub(crate) limit: u32,
    /// Failures in a row that take it out.
    pub(crate) eject_after: u32,
    /// How long it may have work and produce nothing before a one-token request asks why.
    pub(crate) freeze: Duration,
}

impl Rules {
    pub(crate) fn of(pool: &forebay_config::Pool) -> Self {
        Self {
            limit: pool.max_in_flight,
            eject_after: pool.upstream.eject_after,
            freeze: pool.upstream.freeze_timeout,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Its probe has not answered yet, or does no more.
    Down,
    Up,
    /// Taken out by its behaviour until it answers a one-token request, not asked before `until`.
    Out {
        until: Instant,
        /// It had work and did not answer that request in time.
        hung: bool,
    },
}

/// What to ask an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Probe {
    /// `GET /health`: whether it is up at all.
    Health,
    /// A real request for one token: whether it works.
    Token,
}

/// A probe's word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Probed {
    Answered,
    /// No connection.
    Unreachable(String),
    /// An error.
    Failed(String),
    /// Nothing in time.
    Silent(String),
    /// The gateway itself was short of what a connection needs.
    NotAsked(Resource),
}

impl Endpoint {
    pub(crate) fn new(rules: Rules, now: Instant) -> Self {
        Self {
            standing: Standing::Down,
            once_ready: false,
            draining: false,
            pod: Pod::default(),
            reason: "not probed yet".to_owned(),
            failures: 0,
            ejections: 0,
            full_until: None,
            probed_at: None,
            pulse: Pulse::new(now),
            asked: now,
            idle: Some(now),
            silent: 0,
            unreachable: None,
            evictions: Evictions::default(),
            life: Life::new(),
            ended: false,
            up_since: now,
            aborted_at: None,
            died_at: None,
            sessions: 0,
            in_flight: 0,
            rules,
            completed: 0,
            failed: 0,
            figures: Figures::default(),
            fingerprint: None,
        }
    }

    pub(crate) fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
    }

    /// The process that answers there, or that did last.
    pub(crate) fn life(&self) -> &Arc<Life> {
        &self.life
    }

    /// When the process that answers there did so for the first time.
    pub(crate) fn up_since(&self) -> Instant {
        self.up_since
    }

    // === probes ===

    /// What to ask now; asked again and again, it paces itself.
    pub(crate) fn due(&mut self, now: Instant) -> Option<Probe> {
        let rested =
            |rest| self.probed_at.is_none_or(|at| now.saturating_duration_since(at) >= rest);
        let due = match self.standing {
            Standing::Down => Some(Probe::Health),
            Standing::Out { until, .. } if now >= until => Some(Probe::Token),
            // What waits there should not wait for the end of a long back-off.
            Standing::Out { .. } if self.in_flight > 0 => {
                rested(HEALTH_EVERY).then_some(Probe::Health)
            }
            Standing::Out { .. } => None,
            Standing::Up if self.is_suspect(now) => Some(Probe::Token),
            Standing::Up => rested(HEALTH_EVERY).then_some(Probe::Health),
        };
        if due.is_some() {
            self.probed_at = Some(now);
        }
        due
    }

    /// The probe's word; true if how it stands changed. `last`: no other is ready.
    pub(crate) fn probed(&mut self, probe: Probe, word: Probed, last: bool, now: Instant) -> bool {
        if let Probed::NotAsked(resource) = word {
            // That says nothing about it.
            if self.standing == Standing::Down {
                self.reason = format!("not probed: the gateway is short of {resource}");
            }
            return false;
        }
        let before = self.health();
        match (probe, &word) {
            (Probe::Health, Probed::Silent(_)) => self.silent += 1,
            (Probe::Token, Probed::Silent(_)) => {}
            _ => self.silent = 0,
        }
        self.unreachable = match &word {
            Probed::Unreachable(_) => self.unreachable.or(Some(now)),
            _ => None,
        };
        match (probe, word, self.standing) {
            (_, Probed::NotAsked(_), _) => {}
            // Its `/health` proves nothing for one that was taken out.
            (Probe::Health, Probed::Answered, Standing::Out { .. }) => {}
            (_, Probed::Answered, _) => {
                if probe == Probe::Token {
                    self.pulse.beat(now);
                }
                if self.standing != Standing::Up {
                    self.failures = 0;
                    self.reason.clear();
                }
                if std::mem::take(&mut self.ended) {
                    (self.life, self.up_since) = (Life::new(), now);
                    (self.aborted_at, self.died_at) = (None, None);
                    self.owes_nothing(now);
                }
                self.standing = Standing::Up;
                self.once_ready = true;
            }
            (_, Probed::Unreachable(reason), _) => {
                // The process is gone: one that comes in its place starts with a clean slate.
                (self.standing, self.reason) = (Standing::Down, reason);
                self.failures = 0;
                self.fingerprint = None;
                self.ended = true;
            }
            // Under load `/health` may be late; what comes meanwhile says more.
            (Probe::Health, Probed::Failed(_) | Probed::Silent(_), Standing::Up)
                if self.pulse.silent(now) < HEALTH_EVERY * 2 => {}
            (Probe::Health, Probed::Failed(_) | Probed::Silent(_), Standing::Out { .. }) => {}
            (Probe::Health, Probed::Failed(reason) | Probed::Silent(reason), _) => {
                (self.standing, self.reason) = (Standing::Down, reason);
            }
            // Something came meanwhile: it is slow, and works.
            (Probe::Token, Probed::Silent(_), Standing::Up) if !self.is_suspect(now) => {}
            (Probe::Token, word, _) => {
                let hung = matches!(word, Probed::Silent(_)) && self.is_suspect(now);
                let back_off = if last { FIRST_EJECTION } else { self.back_off() };
                self.standing = Standing::Out { until: now + back_off, hung };
                if let Probed::Failed(reason) | Probed::Silent(reason) = word {
                    self.reason = reason;
                }
            }
        }
        self.evict(now);
        before != self.health()
    }

    // === behaviour ===

    /// A request failed there. `last`: no other is ready. True if that took it out.
    pub(crate) fn failed(&mut self, failure: &Failure, last: bool, now: Instant) -> bool {
        if failure.cause == Cause::QueueFull {
            self.full_until = Some(now + FULL_FOR);
            return false;
        }
        self.failed += 1;
        self.note_end(failure.cause, now);
        // All that failed together is one failure.
        if self.standing != Standing::Up {
            return false;
        }
        self.failures += 1;
        if last && failure.cause == Cause::Aborted {
            // Perhaps it is stopping, and would end the next try as well: a moment shows.
            self.full_until = Some(now + FIRST_EJECTION);
        }
        let out = match failure.cause.ejection() {
            Ejection::No => false,
            Ejection::Counted => {
                let hangs = failure.cause == Cause::Stalled && self.is_suspect(now);
                !last && (self.failures >= self.rules.eject_after || hangs)
            }
            Ejection::AtOnce => true,
        };
        if out {
            let back_off = if last { Duration::ZERO } else { self.back_off() };
            self.standing = Standing::Out { until: now + back_off, hung: false };
            self.reason.clone_from(&failure.message);
        }
        out
    }

    /// What a failure tells of the process's end: whether that was ordered.
    fn note_end(&mut self, cause: Cause, now: Instant) {
        match cause {
            Cause::ShuttingDown => {
                self.life.stopped();
                self.ended = true;
            }
            Cause::Aborted => self.aborted_at = Some(now),
            cause if cause.is_death() => {
                self.died_at = Some(now);
                // A connection alone may break for another reason.
                self.ended |= cause == Cause::EngineDead;
            }
            _ => {}
        }
        if let (Some(aborted), Some(died)) = (self.aborted_at, self.died_at)
            && aborted.max(died).saturating_duration_since(aborted.min(died)) <= STOPS_WITHIN
        {
            self.life.stopped();
        }
    }

    /// Twice as long each time.
    fn back_off(&mut self) -> Duration {
        let back_off = FIRST_EJECTION * 2u32.saturating_pow(self.ejections.min(16));
        self.ejections += 1;
        back_off.min(LONGEST_EJECTION)
    }

    /// It answered a request to the end. `engine`: with what only its engine could produce.
    pub(crate) fn completed(&mut self, engine: bool, now: Instant) {
        if engine {
            self.pulse.beat(now);
        }
        self.completed += 1;
        self.failures = 0;
        self.full_until = None;
        if self.standing == Standing::Up {
            self.ejections = 0;
        }
    }

    pub(crate) fn drain(&mut self, draining: bool) -> bool {
        std::mem::replace(&mut self.draining, draining) != draining
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining || self.pod.leaving || self.pod.gone
    }

    // === figures ===

    pub(crate) fn health(&self) -> Health {
        match (self.is_draining(), self.standing, self.once_ready) {
            (true, ..) => Health::Draining,
            _ if self.pod.withdrawn => Health::Ejected,
            (_, Standing::Up, _) => Health::Ready,
            (_, _, true) => Health::Ejected,
            (_, _, false) => Health::Starting,
        }
    }

    /// How many more it can take.
    pub(crate) fn room(&self, now: Instant) -> u32 {
        let full = self.full_until.is_some_and(|until| now < until);
        if self.health() == Health::Ready && !full {
            self.rules.limit.saturating_sub(self.in_flight)
        } else {
            0
        }
    }

    pub(crate) fn signals(&self) -> EndpointSignals {
        let mut signals = EndpointSignals {
            health: self.health(),
            phase: self.pod.phase,
            reason: self.why(),
            in_flight: self.in_flight,
            limit: self.rules.limit,
            completed: self.completed,
            failed: self.failed,
            ..EndpointSignals::default()
        };
        self.figures.tell(&mut signals);
        signals
    }
}

#[cfg(test)]
mod tests;

//! How an endpoint stands: starting, ready, out for its behaviour, down, draining.
//!
//! Behaviour counts more than `/health`, which vLLM answers with 200 while it drains, hangs or
//! sleeps. What its behaviour took out comes back by answering a real one-token request. Failures
//! that are only counted never take out the last one that is ready. A death, or a probe's word, does;
//! the last one is then asked at once, and no later for each time it fails.
//!
//! Pure: callers pass `now`; the probes are in `probe.rs`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use forebay_discovery::Member;
use forebay_signals::{EndpointSignals, Health, PodPhase};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::ejection::Ejection;
use crate::failure::{Cause, Failure};
use crate::fingerprint::Fingerprint;
use crate::waiting::at_length;

use crate::figures::Figures;

const FIRST_EJECTION: Duration = Duration::from_millis(250);
const LONGEST_EJECTION: Duration = Duration::from_secs(30);
const HEALTH_EVERY: Duration = Duration::from_secs(1);
/// How long a full one gets nothing, unless something ends there before.
const FULL_FOR: Duration = Duration::from_secs(1);

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
    /// Probes in a row that brought nothing at all.
    silent: u32,
    /// Cancelled, and made anew, when what waits there should look elsewhere.
    eviction: CancellationToken,
    /// Streams that have begun, and so should go on.
    streams: u32,
    pub(crate) in_flight: u32,
    rules: Rules,
    pub(crate) completed: u64,
    pub(crate) failed: u64,
    pub(crate) figures: Figures,
    /// What its streams end with, as it told last.
    pub(crate) fingerprint: Option<Fingerprint>,
}

/// What discovery says of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Pod {
    phase: Option<PodPhase>,
    /// Kubernetes' word on why it is not further.
    word: String,
    /// The same at length.
    reason: String,
    /// It was ready by Kubernetes' own probe, and is not any more.
    withdrawn: bool,
    /// It was deleted.
    leaving: bool,
    /// Nobody lists it any more; it stays for what is in flight.
    gone: bool,
}

/// What a pool's configuration says of its endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    /// Most requests in flight.
    pub(crate) limit: u32,
    /// Failures in a row that take it out.
    pub(crate) eject_after: u32,
    /// When streams were silent together for so long, a one-token request asks why.
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
}

/// When an endpoint last sent something: told by streams for every chunk, without a lock.
#[derive(Clone, Debug)]
pub(crate) struct Pulse {
    since: Instant,
    millis: Arc<AtomicU64>,
}

impl Pulse {
    fn new(now: Instant) -> Self {
        Self { since: now, millis: Arc::default() }
    }

    /// Something came.
    pub(crate) fn beat(&self, now: Instant) {
        let millis = now.saturating_duration_since(self.since).as_millis() as u64;
        self.millis.fetch_max(millis, Ordering::Relaxed);
    }

    fn silent(&self, now: Instant) -> Duration {
        let last = Duration::from_millis(self.millis.load(Ordering::Relaxed));
        now.saturating_duration_since(self.since).saturating_sub(last)
    }
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
            silent: 0,
            eviction: CancellationToken::new(),
            streams: 0,
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

    pub(crate) fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }

    /// Cancelled when what waits there without an answer should look elsewhere.
    pub(crate) fn eviction(&self) -> CancellationToken {
        self.eviction.clone()
    }

    // === probes ===

    /// What to ask now; asked again and again, it paces itself.
    pub(crate) fn due(&mut self, now: Instant) -> Option<Probe> {
        let rested =
            |rest| self.probed_at.is_none_or(|at| now.saturating_duration_since(at) >= rest);
        let due = match self.standing {
            Standing::Down => Some(Probe::Health),
            Standing::Out { until } => (now >= until).then_some(Probe::Token),
            Standing::Up if self.frozen(now) => Some(Probe::Token),
            Standing::Up => rested(HEALTH_EVERY).then_some(Probe::Health),
        };
        if due.is_some() {
            self.probed_at = Some(now);
        }
        due
    }

    /// Streams that had begun are silent, all of them together.
    fn frozen(&self, now: Instant) -> bool {
        self.streams > 0 && self.pulse.silent(now) >= self.rules.freeze
    }

    /// The probe's word; true if how it stands changed. `last`: no other is ready.
    pub(crate) fn probed(&mut self, probe: Probe, word: Probed, last: bool, now: Instant) -> bool {
        let before = self.health();
        self.silent = if matches!(word, Probed::Silent(_)) { self.silent + 1 } else { 0 };
        match (probe, word, self.standing) {
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
                self.standing = Standing::Up;
                self.once_ready = true;
            }
            (_, Probed::Unreachable(reason), _) => {
                // The process is gone: one that comes in its place starts with a clean slate.
                (self.standing, self.reason) = (Standing::Down, reason);
                self.failures = 0;
                self.fingerprint = None;
            }
            // Under load `/health` may be late; what comes meanwhile says more.
            (Probe::Health, Probed::Failed(_) | Probed::Silent(_), Standing::Up)
                if self.pulse.silent(now) < HEALTH_EVERY * 2 => {}
            (Probe::Health, Probed::Failed(_) | Probed::Silent(_), Standing::Out { .. }) => {}
            (Probe::Health, Probed::Failed(reason) | Probed::Silent(reason), _) => {
                (self.standing, self.reason) = (Standing::Down, reason);
            }
            // Its streams went on meanwhile: it is slow, and works.
            (Probe::Token, Probed::Silent(_), Standing::Up) if !self.frozen(now) => {}
            (Probe::Token, Probed::Failed(reason) | Probed::Silent(reason), _) => {
                let back_off = if last { FIRST_EJECTION } else { self.back_off() };
                self.eject(reason, back_off, now);
            }
        }
        // Connected, and for long nothing but silence: what has no answer yet is better off
        // elsewhere. What has begun may go on when it wakes.
        if self.standing != Standing::Up
            && self.silent >= 2
            && self.pulse.silent(now) >= self.rules.freeze
        {
            std::mem::take(&mut self.eviction).cancel();
        }
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
                !last && (self.failures >= self.rules.eject_after || self.frozen(now))
            }
            Ejection::AtOnce => true,
        };
        if out {
            let back_off = if last { Duration::ZERO } else { self.back_off() };
            self.eject(failure.message.clone(), back_off, now);
        }
        out
    }

    /// Twice as long each time.
    fn back_off(&mut self) -> Duration {
        let back_off = FIRST_EJECTION * 2u32.saturating_pow(self.ejections.min(16));
        self.ejections += 1;
        back_off.min(LONGEST_EJECTION)
    }

    fn eject(&mut self, reason: String, back_off: Duration, now: Instant) {
        self.standing = Standing::Out { until: now + back_off };
        self.reason = reason;
    }

    pub(crate) fn completed(&mut self, now: Instant) {
        self.pulse.beat(now);
        self.completed += 1;
        self.failures = 0;
        self.full_until = None;
        if self.standing == Standing::Up {
            self.ejections = 0;
        }
    }

    /// A stream there has begun.
    pub(crate) fn stream_began(&mut self, now: Instant) {
        self.pulse.beat(now);
        self.streams += 1;
    }

    pub(crate) fn stream_ended(&mut self) {
        self.streams = self.streams.saturating_sub(1);
    }

    pub(crate) fn drain(&mut self, draining: bool) -> bool {
        std::mem::replace(&mut self.draining, draining) != draining
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining || self.pod.leaving || self.pod.gone
    }

    // === discovery ===

    /// Discovery's word; true if that is news.
    pub(crate) fn found(&mut self, member: &Member) -> bool {
        let pod = Pod {
            phase: member.phase,
            word: member.reason.clone(),
            reason: at_length(member),
            withdrawn: member.withdrawn,
            leaving: member.is_draining(),
            gone: false,
        };
        std::mem::replace(&mut self.pod, pod.clone()) != pod
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
    fn why(&self) -> String {
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

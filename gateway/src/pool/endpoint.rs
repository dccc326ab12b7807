//! An endpoint's health: starting, ready, ejected for its behaviour, down, draining.
//!
//! Behaviour counts more than `/health`, which vLLM answers with 200 while it drains, hangs or
//! sleeps. An endpoint that was ejected comes back by answering a real one-token request.
//!
//! A failure that may be the request's own fault only counts, and never ejects the last ready
//! endpoint. A cause with [`Ejection::AtOnce`] ejects even that one, and so does a failed probe; it
//! is probed again at once, and its probes do not back off.
//!
//! - `probing.rs`: when it is probed
//! - `silence.rs`: an endpoint that has work and produces nothing
//! - `process.rs`: the server process at the endpoint
//! - `pod.rs`: its pod, as discovery reports it
//! - `report.rs`: its state in detail, for people
//! - `room.rs`: how many requests it can take
//!
//! Pure: callers pass `now`. The probes are in `probe.rs`.

use std::sync::Arc;
use std::time::Duration;

use forebay_base::backoff::doubled;
use forebay_base::shortage::Resource;
use forebay_config::InFlightLimit;
use forebay_scheduling::pick::Candidate;
use forebay_scheduling::room::LimitRule;
use forebay_signals::{EndpointSignals, Health};
use tokio::time::Instant;

use crate::answer::ejection::Ejection;
use crate::answer::failure::{Cause, Failure};
use crate::figures::endpoint_totals::EndpointTotals;

use pod::Pod;
use probing::Probing;
pub(crate) use probing::{Due, IDLE, SPREAD, Urgency};
use process::Lifecycle;
pub(crate) use process::Process;
pub(crate) use room::{EngineReport, Occupancy};
use silence::Work;
pub(crate) use silence::{Awakened, Evictions, Pulse};

mod pod;
mod probing;
mod process;
mod report;
mod room;
mod silence;

const FIRST_EJECTION: Duration = Duration::from_millis(250);
const LONGEST_EJECTION: Duration = Duration::from_secs(30);
/// How long ago output may have come for a missing answer to `/health` to be only late.
const LATE: Duration = Duration::from_secs(2);
/// How long an endpoint that reported a full queue gets no requests, unless one ends there before.
const FULL_FOR: Duration = Duration::from_secs(1);

/// One endpoint of a pool.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    rules: Rules,
    standing: Standing,
    once_ready: bool,
    draining: DrainState,
    /// The reason why it takes no requests; empty if it is ready.
    reason: String,
    behaviour: Behaviour,
    probing: Probing,
    work: Work,
    lifecycle: Lifecycle,
    /// Each token is cancelled to evict requests, and then replaced by a new one.
    evictions: Arc<Evictions>,
    pod: Pod,
    counts: Counts,
}

/// Whether it drains.
#[derive(Clone, Copy, Debug, Default)]
struct DrainState {
    /// The scaler wants it to.
    ordered: bool,
    /// Since when it does, whoever ordered it.
    since: Option<Instant>,
}

/// A pool's configuration for its endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    /// The limit on the requests in flight.
    pub(crate) limit: LimitRule,
    /// The number of failures in a row that ejects an endpoint.
    pub(crate) eject_after: u32,
    /// How long it may have work and produce nothing before it is probed.
    pub(crate) freeze: Duration,
}

impl Rules {
    pub(crate) fn of(pool: &forebay_config::Pool) -> Self {
        Self {
            limit: LimitRule {
                most: pool.max_in_flight,
                learned: pool.limit == InFlightLimit::Learned,
            },
            eject_after: pool.upstream.eject_after,
            freeze: pool.upstream.freeze_timeout,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// It does not answer its probe, or has not yet.
    Down,
    Up,
    /// Ejected for its behaviour until it answers a one-token request, which it gets after `until`.
    Ejected {
        until: Instant,
        /// It had work and did not answer that request in time, and its requests are still there.
        hung: bool,
    },
}

/// The outcomes of its last requests.
#[derive(Clone, Debug, Default)]
struct Behaviour {
    /// Counted failures since the last success.
    failures: u32,
    /// Ejections and failed probes since the last success: the exponent of the back-off.
    ejections: u32,
    full_until: Option<Instant>,
}

/// Counts of the tries that ended there, and its requests' sums.
#[derive(Clone, Debug, Default)]
struct Counts {
    completed: u64,
    failed: u64,
    totals: Arc<EndpointTotals>,
}

/// A kind of probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Probe {
    /// `GET /health`: whether it is up at all.
    Health,
    /// A real request for one token: whether it works.
    Token,
}

/// A probe's outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Probed {
    Answered,
    /// No connection.
    Unreachable(String),
    /// An error.
    Failed(String),
    /// No answer in time.
    Silent(String),
    /// The gateway itself was short of something that a connection needs.
    NotSent(Resource),
}

impl Endpoint {
    pub(crate) fn new(rules: Rules, now: Instant) -> Self {
        Self {
            rules,
            standing: Standing::Down,
            once_ready: false,
            draining: DrainState::default(),
            reason: "not probed yet".to_owned(),
            behaviour: Behaviour::default(),
            probing: Probing::new(now),
            work: Work::new(rules.limit, now),
            lifecycle: Lifecycle::new(),
            evictions: Arc::default(),
            pod: Pod::default(),
            counts: Counts::default(),
        }
    }

    pub(crate) fn set_rules(&mut self, rules: Rules, now: Instant) {
        self.rules = rules;
        self.work.room.set_rule(rules.limit, now);
    }

    // === probes ===

    /// Takes a probe's outcome; true if its health changed. `last`: no other endpoint is ready.
    pub(crate) fn probed(
        &mut self,
        probe: Probe,
        outcome: Probed,
        last: bool,
        now: Instant,
    ) -> bool {
        if let Probed::NotSent(resource) = outcome {
            // This says nothing about the endpoint.
            if self.standing == Standing::Down {
                self.reason = format!("not probed: the gateway is short of {resource}");
            }
            return false;
        }
        let before = self.health();
        self.probing.failed |= outcome != Probed::Answered;
        match (probe, &outcome) {
            (Probe::Health, Probed::Silent(_)) => self.probing.silent += 1,
            (Probe::Token, Probed::Silent(_)) => {}
            _ => self.probing.silent = 0,
        }
        self.probing.unreachable_since = match &outcome {
            Probed::Unreachable(_) => self.probing.unreachable_since.or(Some(now)),
            _ => None,
        };
        let stood = self.standing;
        match (probe, outcome, self.standing) {
            (_, Probed::NotSent(_), _) => {}
            // `/health` proves nothing for an endpoint that was ejected.
            (Probe::Health, Probed::Answered, Standing::Ejected { .. }) => {}
            (_, Probed::Answered, _) => self.answered(probe, now),
            (_, Probed::Unreachable(reason), _) => {
                // The process is gone. Its successor has no failures yet.
                (self.standing, self.reason) = (Standing::Down, reason);
                self.behaviour.failures = 0;
                self.lifecycle.ended = true;
            }
            // Under load `/health` may be late. Output that arrives meanwhile says more.
            (Probe::Health, Probed::Failed(_) | Probed::Silent(_), Standing::Up)
                if self.work.pulse.silent(now) < LATE => {}
            (Probe::Health, Probed::Failed(_) | Probed::Silent(_), Standing::Ejected { .. }) => {}
            (Probe::Health, Probed::Failed(reason) | Probed::Silent(reason), _) => {
                (self.standing, self.reason) = (Standing::Down, reason);
            }
            // Output arrived meanwhile: the engine is slow, and works.
            (Probe::Token, Probed::Silent(_), Standing::Up) if !self.is_suspect(now) => {}
            (Probe::Token, outcome, _) => {
                let hung = matches!(outcome, Probed::Silent(_)) && self.is_suspect(now);
                let back_off = if last { FIRST_EJECTION } else { self.back_off() };
                self.standing = Standing::Ejected { until: now + back_off, hung };
                if let Probed::Failed(reason) | Probed::Silent(reason) = outcome {
                    self.reason = reason;
                }
            }
        }
        if self.standing == Standing::Down && stood != Standing::Down {
            self.probing.down_since = now;
        }
        self.evict(now);
        before != self.health()
    }

    /// Whether a probe's outcome would change nothing: most probes find what the last one found.
    pub(crate) fn is_as_probed(&self, probe: Probe, outcome: &Probed) -> bool {
        let answered = probe == Probe::Health && *outcome == Probed::Answered;
        let Probing { silent, unreachable_since, .. } = self.probing;
        let up = self.standing == Standing::Up && silent == 0 && unreachable_since.is_none();
        answered && up && !self.lifecycle.ended
    }

    fn answered(&mut self, probe: Probe, now: Instant) {
        if probe == Probe::Token {
            self.work.pulse.beat(now);
        }
        if self.standing != Standing::Up {
            self.behaviour.failures = 0;
            self.reason.clear();
        }
        if self.lifecycle.answered() {
            self.work.owe_nothing(now);
            self.work.room.inner.begin_anew();
        } else if !self.once_ready && !self.probing.failed {
            // It was up before it was first asked: others have warmed it.
            self.work.room.inner.skip_slow_start();
        }
        self.standing = Standing::Up;
        self.once_ready = true;
    }

    // === behaviour ===

    /// Takes a request's failure there; true if it ejects the endpoint. `last`: no other endpoint
    /// is ready.
    pub(crate) fn request_failed(&mut self, failure: &Failure, last: bool, now: Instant) -> bool {
        if failure.cause == Cause::QueueFull {
            self.behaviour.full_until = Some(now + FULL_FOR);
            return false;
        }
        self.counts.failed += 1;
        self.lifecycle.request_failed(failure.cause, now);
        // Requests that fail together count as one failure.
        if self.standing != Standing::Up {
            return false;
        }
        self.behaviour.failures += 1;
        if last && failure.cause == Cause::Aborted {
            // Perhaps it is stopping, and would abort the next try as well. After a moment that is
            // known.
            self.behaviour.full_until = Some(now + FIRST_EJECTION);
        }
        let ejected = match failure.cause.ejection() {
            Ejection::No => false,
            Ejection::Counted => {
                let hangs = failure.cause == Cause::Stalled && self.is_suspect(now);
                !last && (self.behaviour.failures >= self.rules.eject_after || hangs)
            }
            Ejection::AtOnce => true,
        };
        if ejected {
            let back_off = if last { Duration::ZERO } else { self.back_off() };
            self.standing = Standing::Ejected { until: now + back_off, hung: false };
            self.reason.clone_from(&failure.message);
            self.probing.wake.notify_one();
        }
        ejected
    }

    /// The next back-off, twice as long each time.
    fn back_off(&mut self) -> Duration {
        let back_off = doubled(FIRST_EJECTION, self.behaviour.ejections, LONGEST_EJECTION);
        self.behaviour.ejections = self.behaviour.ejections.saturating_add(1);
        back_off
    }

    /// Takes the end of a request that was answered completely. `engine`: the answer shows that the
    /// engine works.
    pub(crate) fn request_completed(&mut self, engine: bool, now: Instant) {
        if engine {
            self.work.pulse.beat(now);
        }
        self.counts.completed += 1;
        self.probing.heard = Some(now);
        self.behaviour.failures = 0;
        self.behaviour.full_until = None;
        if self.standing == Standing::Up {
            self.behaviour.ejections = 0;
        }
    }

    /// Starts or ends its draining; true if that is a change.
    pub(crate) fn drain(&mut self, draining: bool) -> bool {
        std::mem::replace(&mut self.draining.ordered, draining) != draining
    }

    /// Whether the scaler wants it to drain.
    pub(crate) fn is_ordered_to_drain(&self) -> bool {
        self.draining.ordered
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.ordered || self.pod.leaving || self.pod.gone
    }

    /// Shows its streams when its draining begins or ends. Called after each change.
    pub(crate) fn note_draining(&mut self, now: Instant) {
        let drains = self.is_draining();
        if self.draining.since.is_some() != drains {
            self.draining.since = drains.then_some(now);
            self.evictions.draining.send_replace(self.draining.since);
        }
    }

    // === state ===

    pub(crate) fn health(&self) -> Health {
        match (self.is_draining(), self.standing, self.once_ready) {
            (true, ..) => Health::Draining,
            _ if self.pod.withdrawn => Health::Ejected,
            (_, Standing::Up, _) => Health::Ready,
            (_, _, true) => Health::Ejected,
            (_, _, false) => Health::Starting,
        }
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.health() == Health::Ready
    }

    /// The number of further requests that it can take.
    pub(crate) fn room(&self, now: Instant) -> u32 {
        let full = self.behaviour.full_until.is_some_and(|until| now < until);
        // Requests of an earlier process may still be there.
        let room = self.work.room.inner.limit().saturating_sub(self.in_flight());
        if self.is_ready() && !full { room.min(self.work.room.left(now)) } else { 0 }
    }

    /// How many requests it has room for in all, taken places included. An ejected one may be back
    /// in a moment; one that is down or hangs has none.
    pub(crate) fn places(&self) -> u32 {
        let serves = match self.standing {
            Standing::Up | Standing::Ejected { hung: false, .. } => !self.pod.withdrawn,
            Standing::Ejected { hung: true, .. } | Standing::Down => false,
        };
        if serves && !self.is_draining() { self.work.room.inner.limit() } else { 0 }
    }

    /// This endpoint as a pick policy sees it.
    pub(crate) fn candidate(&self, now: Instant) -> Candidate {
        Candidate {
            process: self.process().id(),
            ready: self.is_ready(),
            room: self.room(now),
            in_flight: self.in_flight(),
            suspect: self.is_suspect(now),
        }
    }

    /// Its requests' sums, which change without a lock.
    pub(crate) fn totals(&self) -> &Arc<EndpointTotals> {
        &self.counts.totals
    }

    pub(crate) fn signals(&self, now: Instant) -> EndpointSignals {
        let mut signals = EndpointSignals {
            health: self.health(),
            phase: self.pod.phase,
            reason: self.why(),
            in_flight: self.in_flight(),
            limit: self.work.room.allowed(now),
            limited_by: self.work.room.inner.limited_by(self.work.room.at(now)),
            completed: self.counts.completed,
            failed: self.counts.failed,
            ..EndpointSignals::default()
        };
        self.counts.totals.report(&mut signals);
        signals
    }
}

#[cfg(test)]
mod tests;

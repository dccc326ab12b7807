//! When an endpoint is probed.
//!
//! Its behaviour comes first: one that answers requests is not probed. A probe asks what no request
//! has shown for a while: whether it is up, or whether its engine works.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::{Endpoint, Probe, Standing};

/// The pause between probes while it does not answer. Held requests wait for its first answer.
const STARTING: Duration = Duration::from_millis(100);
/// How long an idle endpoint is left alone; [`SPREAD`] comes on top. Below the 5 s after which
/// vLLM's server closes the connection of the last probe.
pub(crate) const IDLE: Duration = Duration::from_millis(3500);
/// The longest time by which chance puts off the probe of an idle endpoint.
pub(crate) const SPREAD: Duration = Duration::from_millis(500);
/// The same with work: half of [`SPREAD`] comes on top. With the 0.8 s after which a mute connection is
/// given up, and a step of the rounds before and after that, this makes 2.9 s.
const BUSY: Duration = Duration::from_millis(1750);
/// The pause between other probes that can't wait: of an endpoint that closed its connection, and of
/// an ejected one with requests.
const PRESSING: Duration = Duration::from_secs(1);
/// How often an endpoint that answers is looked at: it may have got work since. So it is known as soon as
/// a busy one that it is mute, for one look between two probes: with less, there would be two.
const LOOK: Duration = Duration::from_secs(2);
/// How long an endpoint without an answer is young. A cold start mostly takes less.
const YOUNG: Duration = Duration::from_secs(600);

/// The outcomes of its last probes, and what the time of the next depends on.
#[derive(Clone, Debug)]
pub(super) struct Probing {
    /// The beginning of the last one.
    last: Option<Instant>,
    /// The time by which chance puts off the next one.
    spread: Duration,
    /// When it last answered a request.
    pub(super) heard: Option<Instant>,
    /// Health probes in a row that got no answer at all.
    pub(super) silent: u32,
    /// The time since which no connection can be made.
    pub(super) unreachable_since: Option<Instant>,
    /// The time since which it has not answered: it was added, or ceased to.
    pub(super) down_since: Instant,
    /// A probe of this replica has failed.
    pub(super) failed: bool,
    /// Wakes its probe, when the next one is due earlier than it was.
    pub(super) wake: Arc<Notify>,
}

/// When an endpoint is probed next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    Now(Probe, Urgency),
    /// Not before this time. Before it comes, the endpoint is to be looked at again if it closes its
    /// connection, or when it wakes its probe.
    At(Instant),
}

/// Which probe comes first where there are more than can be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Urgency {
    /// Of an endpoint that answered the last one, or was ejected since.
    Answering,
    /// Of one that has not answered for less than ten minutes.
    Young,
    /// Of one that has not answered for longer.
    Old,
}

impl Probing {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            last: None,
            spread: Duration::ZERO,
            heard: None,
            silent: 0,
            unreachable_since: None,
            down_since: now,
            failed: false,
            wake: Arc::default(),
        }
    }

    /// The beginning of the last one.
    pub(super) fn last(&self) -> Option<Instant> {
        self.last
    }

    /// Starts afresh for another replica at the same address. That no connection can be made stays.
    pub(super) fn begin_anew(&mut self, now: Instant) {
        let Self { unreachable_since, ref wake, .. } = *self;
        *self = Self { unreachable_since, wake: Arc::clone(wake), ..Self::new(now) };
    }
}

impl Endpoint {
    /// Begins the probe that is due, or returns when one will be. `spread` is a time up to [`SPREAD`] that
    /// puts off the one after it. `closed`: it has closed the connection that its last probe left open.
    pub(crate) fn due(
        &mut self,
        spread: impl FnOnce() -> Duration,
        closed: bool,
        now: Instant,
    ) -> Due {
        let (probe, at) = self.next_probe(closed, now);
        if now < at {
            return Due::At(match self.standing {
                Standing::Up => at.min(now + LOOK.min(self.rules.freeze).max(STARTING)),
                _ => at,
            });
        }
        (self.probing.last, self.probing.spread) = (Some(now), spread());
        let urgency = match self.standing {
            Standing::Up | Standing::Ejected { .. } => Urgency::Answering,
            Standing::Down if now < self.probing.down_since + YOUNG => Urgency::Young,
            Standing::Down => Urgency::Old,
        };
        Due::Now(probe, urgency)
    }

    /// The next probe by what is known now, and its time.
    fn next_probe(&self, closed: bool, now: Instant) -> (Probe, Instant) {
        let Probing { last, spread, heard, .. } = self.probing;
        let rested = |rest: Duration| last.map_or(now, |last| last + rest);
        let busy = self.in_flight() > 0;
        match self.standing {
            Standing::Down => (Probe::Health, rested(STARTING)),
            // Requests in flight there must not wait until a long back-off ends.
            Standing::Ejected { until, .. } if busy && now < until && rested(PRESSING) < until => {
                (Probe::Health, rested(PRESSING))
            }
            Standing::Ejected { until, .. } => (Probe::Token, until),
            Standing::Up => {
                let rest = if busy { BUSY + spread / 2 } else { IDLE + spread };
                let quiet = heard.max(last).map_or(now, |since| since + rest);
                let health = if closed { rested(PRESSING) } else { quiet };
                match self.work.suspect_at(self.rules.freeze).map(|at| at.max(rested(STARTING))) {
                    Some(at) if at <= health.max(now) => (Probe::Token, at),
                    _ => (Probe::Health, health),
                }
            }
        }
    }

    /// Wakes the task that probes it.
    pub(crate) fn probe_wake(&self) -> Arc<Notify> {
        Arc::clone(&self.probing.wake)
    }
}

//! Replicas that hang: which one is ended and started anew, and when.
//!
//! A replica hangs if it was ready and since then no gateway sends to it or gets an answer from it, or if
//! it does not become ready at all. It gets the learned duration of a start to recover, because replacing
//! it costs that time, and longer after each replacement that did not help. Replicas are replaced one at a
//! time: if several seem to hang, the cause may be elsewhere, and the first one's return shows whether a
//! replacement helps.
//!
//! Pure.

use std::collections::{BTreeMap, VecDeque};

use forebay_config::{Millis, Pool, Target};

use super::PoolScaler;
use super::starts::Start;
use crate::act::targets::{Drains, Hung, ReplicaStatus};
use crate::decide::cold_start::ColdStarts;
use crate::decide::{Condition, Override};

/// Time for which a replacement counts.
const REMEMBERED: Millis = Millis::from_secs(3600);
/// A start gets this many times the time that nine of ten took, but never less than this.
const START_FACTOR: f64 = 10.0;
const SHORTEST_START: Millis = Millis::from_secs(600);
/// The number of times that the bounds are doubled at most.
const MOST_DOUBLED: u32 = 6;

/// The time that a replica gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    hung_after: Millis,
    start_timeout: Millis,
}

impl Bounds {
    /// The bounds of a pool; `None` if it replaces nothing.
    pub(super) fn of(pool: &Pool) -> Option<Self> {
        let (hung_after, start_timeout) = match pool.target.as_ref()? {
            Target::Processes(target) => (target.hung_after, target.start_timeout),
            Target::Kubernetes(target) if target.replace_hung => {
                (target.hung_after, target.start_timeout)
            }
            Target::Kubernetes(_) | Target::Keda(_) => return None,
        };
        Some(Self { hung_after: hung_after.into(), start_timeout: start_timeout.into() })
    }

    /// The time that a replica which was ready may be silent.
    fn hung_after(self, starts: &ColdStarts, doubled: u32) -> Millis {
        let learned = starts.quantiles().map(|known| Millis::from_secs_f64(known.p90_seconds));
        self.hung_after.max(learned.unwrap_or_default()) * (1 << doubled)
    }

    /// The time that a start may take. The first start, and one that downloads a new model, may take
    /// hours: before anything is learned, and after failures, only the configuration bounds it.
    fn start_within(self, starts: &ColdStarts, doubled: u32) -> Millis {
        let learned = |p90| Millis::from_secs_f64(START_FACTOR * p90).max(SHORTEST_START);
        let learned = starts.quantiles().map(|known| learned(known.p90_seconds) * (1 << doubled));
        learned.unwrap_or(Millis::MAX).min(self.start_timeout)
    }
}

/// The reason for a replacement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// It was ready, and is silent.
    Hung,
    /// It does not become ready.
    Start,
}

impl Cause {
    /// Its value as a metric label.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Hung => "hung",
            Self::Start => "start",
        }
    }
}

/// Replacements of the last hour.
#[derive(Debug, Default)]
pub(super) struct Replacements {
    /// Their times, oldest first.
    past: VecDeque<Millis>,
}

impl Replacements {
    /// The number of recent replacements per replica: the bounds are doubled that often.
    fn doubled(&mut self, replicas: u32, now: Millis) -> u32 {
        while self.past.front().is_some_and(|at| *at + REMEMBERED <= now) {
            self.past.pop_front();
        }
        (self.past.len() as u32 / replicas.max(1)).min(MOST_DOUBLED)
    }
}

impl PoolScaler {
    /// Whether replicas may be replaced now. Not while a gateway is silent, which may get answers;
    /// and not while the pool is paused, since an operator is looking at it.
    pub(super) fn may_replace(
        &self,
        missing: bool,
        operator_override: Override,
        drains: Drains,
    ) -> bool {
        self.has_report()
            && !missing
            && operator_override != Override::Paused
            && drains == Drains::Each
    }

    /// The replicas that have to be ended and started anew, with the reason; and the cause of the one
    /// that is added by this call. None is added unless `may`.
    pub(super) fn hung_replicas(
        &mut self,
        statuses: &BTreeMap<String, ReplicaStatus>,
        may: bool,
        now: Millis,
    ) -> (BTreeMap<String, Hung>, Option<Cause>) {
        let found = if may { self.next_hung(statuses, now) } else { None };
        let cause = found.map(|(id, cause, why)| {
            tracing::warn!("{}: replica {id} {why}; it is ended and started anew", self.name);
            self.roster.replacements.past.push_back(now);
            if let Some(start) = self.roster.starts.get_mut(&id) {
                start.replaced = Some(why);
            }
            cause
        });
        let hung = |(id, start): (&String, &Start)| {
            let why = start.replaced.clone()?;
            Some((id.clone(), Hung { started_at: start.started_at, why }))
        };
        (self.roster.starts.iter().filter_map(hung).collect(), cause)
    }

    /// The replica that has hung for longest, if its time is over.
    fn next_hung(
        &mut self,
        statuses: &BTreeMap<String, ReplicaStatus>,
        now: Millis,
    ) -> Option<(String, Cause, String)> {
        let bounds = self.rules.bounds?;
        let doubled = self.roster.replacements.doubled(self.state.desired(), now);
        let starts = self.state.cold_starts();
        let (hung_after, start_within) =
            (bounds.hung_after(starts, doubled), bounds.start_within(starts, doubled));
        if let Some(last) = self.roster.replacements.past.back() {
            let came_back = |start: &Start| start.ready_at.is_some_and(|ready| ready > *last);
            let waits = now < *last + hung_after;
            if waits && !self.roster.starts.values().any(came_back) {
                return None;
            }
        }
        let overdue = |(id, status): (&String, &ReplicaStatus)| {
            let start = self.roster.starts.get(id)?;
            let leaves =
                self.departures.draining.contains(id) || self.departures.stopped.contains(id);
            if status.condition != Condition::Starting || leaves || start.replaced.is_some() {
                return None;
            }
            // Without a gateway that knows the replica, its health is unknown.
            let silent_since = start.silence.since?;
            let (cause, since, bound) = match start.ready_at {
                Some(_) => (Cause::Hung, silent_since, hung_after),
                // It may have been ready long ago: only its time in this process is known.
                None if start.inherited => (Cause::Start, silent_since, start_within),
                None => (
                    Cause::Start,
                    start.since.max(status.started_at.unwrap_or_default()),
                    start_within,
                ),
            };
            let span = now.since(since);
            (span >= bound).then(|| (span, id.clone(), cause))
        };
        let (span, id, cause) = statuses.iter().filter_map(overdue).max_by_key(|one| one.0)?;
        let seconds = span.as_secs();
        let why = match cause {
            Cause::Hung => format!("answered nothing for {seconds} s"),
            Cause::Start => format!("was not healthy within {seconds} s"),
        };
        Some((id, cause, why))
    }
}

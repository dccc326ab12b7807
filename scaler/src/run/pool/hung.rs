//! Replicas that hang: which are to be ended and started anew, and when.
//!
//! One hangs when it was ready and every gateway has it out and gets no answer from it, or when it
//! does not get ready at all. It is waited for as long as a start takes, as learned, since ending it
//! costs as much; and longer each time that did not help. One at a time: what looks like several
//! that hang may be something else, which shows when the first comes back.
//!
//! Pure.

use std::collections::{BTreeMap, VecDeque};

use forebay_config::{Pool, Target};
use forebay_signals::{EndpointSignals, Health};

use super::{PoolLoop, Start};
use crate::act::targets::{Drains, Hung, Phase, ReplicaStatus};
use crate::decide::Override;
use crate::decide::cold_start::ColdStarts;

/// A replacement counts for so long.
const REMEMBERED_MS: u64 = 3_600_000;
/// Starts are waited for this many times as long as nine of ten took, and never for less than this.
const START_FACTOR: f64 = 10.0;
const SHORTEST_START_MS: u64 = 600_000;
/// Most that the bounds are doubled, in powers of two.
const MOST_DOUBLED: u32 = 6;

/// How long a replica may take, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    hung_after_ms: u64,
    start_timeout_ms: u64,
}

impl Bounds {
    /// A pool's; `None` where nothing is replaced.
    pub(super) fn of(pool: &Pool) -> Option<Self> {
        let (hung_after, start_timeout) = match pool.target.as_ref()? {
            Target::Processes(it) => (it.hung_after, it.start_timeout),
            Target::Kubernetes(it) if it.replace_hung => (it.hung_after, it.start_timeout),
            Target::Kubernetes(_) | Target::Keda(_) => return None,
        };
        let ms = |duration: std::time::Duration| duration.as_millis() as u64;
        Some(Self { hung_after_ms: ms(hung_after), start_timeout_ms: ms(start_timeout) })
    }

    /// How long one that was ready may answer nothing.
    fn hung_after(self, starts: &ColdStarts, doubled: u32) -> u64 {
        let learned = starts.quantiles().map_or(0, |it| (it.p90_seconds * 1000.0) as u64);
        self.hung_after_ms.max(learned).saturating_mul(1 << doubled)
    }

    /// How long a start may take. The first ones, and those that bring a new model, may take hours:
    /// only what is configured bounds them before anything is learned, and after others failed.
    fn start_within(self, starts: &ColdStarts, doubled: u32) -> u64 {
        let learned = |p90: f64| ((START_FACTOR * p90 * 1000.0) as u64).max(SHORTEST_START_MS);
        let learned =
            starts.quantiles().map(|it| learned(it.p90_seconds).saturating_mul(1 << doubled));
        learned.unwrap_or(u64::MAX).min(self.start_timeout_ms)
    }
}

/// Why a replica is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// It was ready, and answers nothing.
    Hung,
    /// It does not get ready.
    Start,
}

impl Cause {
    /// The word for it in figures.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Hung => "hung",
            Self::Start => "start",
        }
    }
}

/// What is remembered of replacements.
#[derive(Debug, Default)]
pub(super) struct Replacements {
    /// When they were, oldest first.
    past_ms: VecDeque<u64>,
}

impl Replacements {
    /// How often each replica was replaced lately, in the mean: so often are the bounds doubled.
    fn doubled(&mut self, replicas: u32, now_ms: u64) -> u32 {
        while self.past_ms.front().is_some_and(|at| at + REMEMBERED_MS <= now_ms) {
            self.past_ms.pop_front();
        }
        (self.past_ms.len() as u32 / replicas.max(1)).min(MOST_DOUBLED)
    }
}

/// A replica's silence, in the eyes of all gateways.
#[derive(Clone, Debug, Default)]
pub(super) struct Silence {
    /// Since when every gateway has it out and gets no answer.
    since_ms: Option<u64>,
    /// Answers and tokens that came from it, as they were counted last.
    answers: u64,
    /// A gateway's reason to have it out.
    pub(super) reason: String,
}

impl Silence {
    /// Takes what each gateway that is heard says of it. One that began after it hung has not seen it
    /// ready, and calls it starting.
    pub(super) fn observe<'a>(
        &mut self,
        views: impl Iterator<Item = &'a EndpointSignals>,
        now_ms: u64,
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
        self.since_ms = match self.since_ms {
            _ if !seen || !out => None,
            Some(since_ms) if !answered => Some(since_ms),
            _ => Some(now_ms),
        };
    }
}

impl PoolLoop {
    /// Whether replicas may be replaced now. A gateway that is silent may get answers; and a person
    /// who paused the pool looks at it.
    pub(super) fn may_replace(&self, missing: bool, order: Override, drains: Drains) -> bool {
        self.known() && !missing && order != Override::Paused && drains == Drains::Each
    }

    /// Those that are to be ended and started anew, with why; and the cause of one that is so from
    /// now on. None is added unless it `may` be.
    pub(super) fn hung_replicas(
        &mut self,
        statuses: &BTreeMap<String, ReplicaStatus>,
        may: bool,
        now_ms: u64,
    ) -> (BTreeMap<String, Hung>, Option<Cause>) {
        let found = if may { self.next_hung(statuses, now_ms) } else { None };
        let cause = found.map(|(id, cause, why)| {
            tracing::warn!("{}: replica {id} {why}: it is ended and started anew", self.name);
            self.replacements.past_ms.push_back(now_ms);
            if let Some(start) = self.starts.get_mut(&id) {
                start.replaced = Some(why);
            }
            cause
        });
        let hung = |(id, start): (&String, &Start)| {
            let why = start.replaced.clone()?;
            Some((id.clone(), Hung { started_ms: start.started_ms, why }))
        };
        (self.starts.iter().filter_map(hung).collect(), cause)
    }

    /// The one that has hung for longest, where its time has come.
    fn next_hung(
        &mut self,
        statuses: &BTreeMap<String, ReplicaStatus>,
        now_ms: u64,
    ) -> Option<(String, Cause, String)> {
        let bounds = self.bounds?;
        let doubled = self.replacements.doubled(self.state.desired(), now_ms);
        let starts = self.state.cold_starts();
        let (hung_after, start_within) =
            (bounds.hung_after(starts, doubled), bounds.start_within(starts, doubled));
        if let Some(last) = self.replacements.past_ms.back() {
            let came_back = |start: &Start| start.ready_ms.is_some_and(|ready| ready > *last);
            let waits = now_ms < last + hung_after;
            if waits && !self.starts.values().any(came_back) {
                return None;
            }
        }
        let overdue = |(id, status): (&String, &ReplicaStatus)| {
            let start = self.starts.get(id)?;
            let leaves = self.draining.contains(id) || self.stopped.contains(id);
            if status.phase != Phase::Running || leaves || start.replaced.is_some() {
                return None;
            }
            // One that no gateway knows of is not judged by any.
            let silent_ms = start.silence.since_ms?;
            let (cause, since_ms, bound) = match start.ready_ms {
                Some(_) => (Cause::Hung, silent_ms, hung_after),
                // It may have been ready long ago: what is known of it begins with this process.
                None if start.inherited => (Cause::Start, silent_ms, start_within),
                None => (Cause::Start, start.since_ms.max(status.started_ms), start_within),
            };
            let for_ms = now_ms.saturating_sub(since_ms);
            (for_ms >= bound).then(|| (for_ms, id.clone(), cause))
        };
        let (for_ms, id, cause) = statuses.iter().filter_map(overdue).max_by_key(|it| it.0)?;
        let seconds = for_ms / 1000;
        let why = match cause {
            Cause::Hung => format!("answered nothing for {seconds} s"),
            Cause::Start => format!("was not healthy within {seconds} s"),
        };
        Some((id, cause, why))
    }
}

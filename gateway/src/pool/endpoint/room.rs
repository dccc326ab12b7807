//! How many requests an endpoint can take: the room of its present server process. The rules are
//! `forebay_scheduling::room`.

use std::time::Duration;

use forebay_scheduling::pick::CacheReport;
use forebay_scheduling::room::{LimitRule, Part, Room};
use tokio::time::Instant;

use super::Endpoint;

/// The room of an endpoint's present server process.
#[derive(Clone, Debug)]
pub(super) struct EndpointRoom {
    /// The moment from which its times count.
    began: Instant,
    pub(super) inner: Room,
}

/// A request's part in the room of the process that has it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Occupancy {
    /// Its part in the slow start, if it has one.
    part: Option<Part>,
    /// The estimated tokens of its prompt.
    tokens: u64,
    process: u64,
}

/// An engine's own report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct EngineReport {
    /// Its prefix cache, if it says anything of that.
    pub(crate) cache: Option<CacheReport>,
    /// The tokens of its KV cache.
    pub(crate) kv_tokens: Option<u64>,
    /// Requests that wait for a place in its batch.
    pub(crate) waiting: Option<u32>,
}

impl Occupancy {
    /// Whether its first token may make room for others.
    pub(crate) fn waits_for_token(&self) -> bool {
        self.part.is_some_and(Part::waits_for_token)
    }
}

impl EndpointRoom {
    pub(super) fn new(rule: LimitRule, now: Instant) -> Self {
        Self { began: now, inner: Room::new(rule, Duration::ZERO) }
    }

    pub(super) fn set_rule(&mut self, rule: LimitRule, now: Instant) {
        let at = self.at(now);
        self.inner.set_rule(rule, at);
    }

    /// How many more requests it takes.
    pub(super) fn left(&self, now: Instant) -> u32 {
        self.inner.left(self.at(now))
    }

    /// The most requests in flight that it allows.
    pub(super) fn allowed(&self, now: Instant) -> u32 {
        self.inner.allowed(self.at(now))
    }

    /// The moment at which time alone makes more room, if there is one.
    pub(super) fn changes_at(&self) -> Option<Instant> {
        Some(self.began + self.inner.changes_at()?)
    }

    pub(super) fn at(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.began)
    }
}

impl Endpoint {
    /// Counts a request that it is given. `tokens`: its prompt's, estimated. `streamed`: its first token
    /// will be seen.
    pub(crate) fn occupy(&mut self, tokens: u64, streamed: bool, now: Instant) -> Occupancy {
        let at = self.work.room.at(now);
        let part = self.work.room.inner.given(tokens, streamed, at);
        Occupancy { part, tokens, process: self.process().id() }
    }

    /// Takes the first token of a request; true if that may make room for others.
    pub(crate) fn first_token(&mut self, occupancy: &mut Occupancy, now: Instant) -> bool {
        let (at, same) = (self.work.room.at(now), occupancy.process == self.process().id());
        match &mut occupancy.part {
            Some(part) if same => self.work.room.inner.first_token(part, at),
            _ => false,
        }
    }

    /// Takes the end of a request. `complete`: the engine answered it.
    pub(crate) fn vacate(&mut self, occupancy: Occupancy, complete: bool, now: Instant) {
        // The requests of an earlier process don't count against the present one.
        if occupancy.process == self.process().id() {
            let (at, totals) = (self.work.room.at(now), &self.counts.totals);
            let Occupancy { part, tokens, .. } = occupancy;
            self.work.room.inner.ended((part, tokens), complete, at, || totals.sums());
        }
    }

    /// Begins with a limit that another endpoint of the pool has learned.
    pub(crate) fn expect_limit(&mut self, limit: u32) {
        self.work.room.inner.expect(limit);
    }

    /// The limit that it has learned, if there is one.
    pub(crate) fn learned_limit(&self) -> Option<u32> {
        self.work.room.inner.learned()
    }

    /// Whether its engine's own count of waiting requests is of use: the limit is learned, and reached.
    pub(crate) fn wants_waiting(&self, now: Instant) -> bool {
        self.rules.limit.learned && self.is_ready() && self.work.room.left(now) == 0
    }

    /// Takes its engine's own report.
    pub(crate) fn engine_reported(&mut self, report: &EngineReport, now: Instant) {
        let at = self.work.room.at(now);
        if let Some(tokens) = report.kv_tokens {
            self.work.room.inner.set_cache(tokens);
        }
        if report.cache.is_some_and(|cache| cache.asleep) {
            self.work.room.inner.start_slowly();
        }
        if let Some(waiting) = report.waiting {
            self.work.room.inner.reported(waiting, at);
        }
    }

    /// Gives it its whole room at once.
    #[cfg(test)]
    pub(crate) fn skip_slow_start(&mut self) {
        self.work.room.inner.skip_slow_start();
    }
}

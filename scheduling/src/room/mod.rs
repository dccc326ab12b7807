//! How many requests an endpoint can take.
//!
//! A limit is a number of the configuration, or learned from the endpoint's answers (`learned.rs`), and
//! from the size of its KV cache (`cache.rs`). Below it, a server that has just begun gets few requests
//! at first (`slow_start.rs`). Where the limit is learned, the slow start goes on until a first limit is
//! known: it doubles the requests while they are as many as it allows.
//!
//! Pure: callers pass `now`, as a time since any moment.

use std::time::Duration;

use forebay_signals::LimitedBy;

use cache::KvCache;
pub use learned::EndpointSums;
use learned::LearnedLimit;
pub use slow_start::Part;
use slow_start::SlowStart;

mod cache;
mod learned;
mod slow_start;

/// The most requests without a first token, while no limit is learned.
const MOST_UNANSWERED: u32 = 32;

/// The first limit that is learned, if nothing shows before that it is too much.
const FIRST_LIMIT: u32 = 128;

/// The rule for an endpoint's limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitRule {
    /// The most requests in flight.
    pub most: u32,
    /// Whether the limit is learned, up to that number.
    pub learned: bool,
}

/// The room of an endpoint's present server.
#[derive(Clone, Debug)]
pub struct Room {
    rule: LimitRule,
    in_flight: u32,
    slow_start: Option<SlowStart>,
    /// `None` under a fixed limit.
    learned: Option<LearnedLimit>,
    cache: KvCache,
}

/// The next round of a slow start.
fn doubled(in_flight: u32) -> u32 {
    in_flight.saturating_mul(2).saturating_add(1)
}

impl Room {
    /// The room of a server that has just begun.
    #[must_use]
    pub fn new(rule: LimitRule, now: Duration) -> Self {
        let learned = rule.learned.then(|| LearnedLimit::new(now));
        Self {
            rule,
            in_flight: 0,
            slow_start: Some(SlowStart::default()),
            learned,
            cache: KvCache::default(),
        }
    }

    /// Takes another rule. What was learned stays, if learning goes on.
    pub fn set_rule(&mut self, rule: LimitRule, now: Duration) {
        self.rule = rule;
        if !rule.learned {
            self.learned = None;
        } else if self.learned.is_none() {
            self.learned = Some(LearnedLimit::new(now));
            if self.slow_start.is_none() {
                self.skip_slow_start();
            }
        }
    }

    /// Begins with a limit that another endpoint of the pool has learned.
    pub fn expect(&mut self, limit: u32) {
        if let Some(learned) = &mut self.learned {
            learned.begin(limit);
        }
    }

    /// The limit that was learned, if there is one.
    #[must_use]
    pub fn learned(&self) -> Option<u32> {
        self.learned.as_ref()?.limit()
    }

    /// Requests that this server has in flight.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Begins anew for another server. What was learned stays: it is mostly the same engine.
    pub fn begin_anew(&mut self) {
        (self.in_flight, self.cache.in_flight) = (0, 0);
        self.start_slowly();
    }

    /// Starts slowly again: the server sleeps, and is cold when it wakes.
    pub fn start_slowly(&mut self) {
        self.slow_start = Some(SlowStart::default());
    }

    /// The most requests in flight, once it has started.
    #[must_use]
    pub fn limit(&self) -> u32 {
        let learned = self.learned.as_ref().and_then(LearnedLimit::limit);
        learned.map_or(self.rule.most, |limit| limit.min(self.rule.most)).max(1)
    }

    /// The most requests in flight now.
    #[must_use]
    pub fn allowed(&self, now: Duration) -> u32 {
        let start = self.slow_start.as_ref().map_or(u32::MAX, |start| start.allowed(now));
        self.limit().min(start)
    }

    /// How many more requests it can take now.
    #[must_use]
    pub fn left(&self, now: Duration) -> u32 {
        let left = self.allowed(now).saturating_sub(self.in_flight).min(self.cache_left());
        match &self.slow_start {
            Some(start) if self.learned.is_some() => {
                left.min(MOST_UNANSWERED.saturating_sub(start.unanswered()))
            }
            _ => left,
        }
    }

    /// Why it is not more.
    #[must_use]
    pub fn limited_by(&self, now: Duration) -> LimitedBy {
        match &self.learned {
            _ if self.allowed(now) < self.limit() => LimitedBy::SlowStart,
            None => LimitedBy::Configured,
            Some(learned) if learned.limit().is_none() => LimitedBy::SlowStart,
            Some(_) if self.cache_left() == 0 => LimitedBy::KvCache,
            Some(learned) if self.limit() < self.rule.most => learned.bound(),
            Some(_) => LimitedBy::Configured,
        }
    }

    /// The moment at which time alone makes more room, if there is one.
    #[must_use]
    pub fn changes_at(&self) -> Option<Duration> {
        self.slow_start.as_ref()?.plain_counts_at()
    }

    /// Takes a request that the server is given. `tokens`: its prompt's, estimated. `streamed`: its
    /// first token will be seen. Returns its part in the slow start, if it has one.
    pub fn given(&mut self, tokens: u64, streamed: bool, now: Duration) -> Option<Part> {
        self.in_flight += 1;
        self.cache.in_flight += tokens;
        if let Some(learned) = &mut self.learned
            && learned.limit().is_some_and(|limit| limit <= self.in_flight)
        {
            learned.filled();
        }
        let start = self.slow_start.as_mut()?;
        // Below a limit that is learned, only a request that is needed to show more has a part.
        let matters = self.learned.is_none() || start.allowed(now) <= doubled(self.in_flight);
        matters.then(|| start.given(streamed, now))
    }

    /// Takes the first token of a request; true if that may make room for others.
    pub fn first_token(&mut self, part: &mut Part, now: Duration) -> bool {
        let most = self.next_round();
        let Some(start) = &mut self.slow_start else { return false };
        start.first_token(part, most, now);
        self.end_slow_start(now);
        true
    }

    /// Takes the end of a request. `complete`: it was answered. `sums` reads the endpoint's sums; it is
    /// called now and then.
    pub fn ended(
        &mut self,
        (part, tokens): (Option<Part>, u64),
        complete: bool,
        now: Duration,
        sums: impl FnOnce() -> EndpointSums,
    ) {
        let most = self.next_round();
        if let (Some(part), Some(start)) = (part, &mut self.slow_start) {
            start.ended(part, complete, most, now);
        }
        self.cache.in_flight = self.cache.in_flight.saturating_sub(tokens);
        if let Some(learned) = &mut self.learned
            && complete
        {
            self.cache.ended += tokens;
            self.cache.ends += 1;
            if let Some(new) = learned.ended(self.in_flight, self.rule.most, now, sums) {
                self.cache.learn(&new);
            }
        }
        self.in_flight = self.in_flight.saturating_sub(1);
        self.end_slow_start(now);
    }

    /// The most that a slow start may allow now. Where the limit is learned, it takes a round of
    /// requests that were there at once.
    fn next_round(&self) -> u32 {
        if self.learned.is_some() { doubled(self.in_flight) } else { u32::MAX }
    }

    /// How many more requests its KV cache has room for.
    fn cache_left(&self) -> u32 {
        if self.learned.is_some() { self.cache.left(self.in_flight) } else { u32::MAX }
    }

    /// Takes the tokens that the engine's KV cache has.
    pub fn set_cache(&mut self, tokens: u64) {
        self.cache.size = Some(tokens);
    }

    /// Ends the slow start at once.
    pub fn skip_slow_start(&mut self) {
        self.slow_start = None;
        let limit = self.rule.most.min(FIRST_LIMIT);
        if let Some(learned) = &mut self.learned {
            learned.begin(limit);
        }
    }

    /// Ends the slow start once the whole room is reached, or as much of it as a slow start may show.
    fn end_slow_start(&mut self, now: Duration) {
        let Some(start) = &self.slow_start else { return };
        let unknown = self.learned.as_ref().is_some_and(|learned| learned.limit().is_none());
        let enough = if unknown { self.limit().min(FIRST_LIMIT) } else { self.limit() };
        if start.allowed(now) >= enough {
            self.slow_start = None;
            if let Some(learned) = &mut self.learned {
                learned.begin(enough);
            }
        }
    }

    /// Takes the engine's own count of the requests that wait there.
    pub fn reported(&mut self, waiting: u32, now: Duration) {
        let full = self.in_flight + 1 >= self.allowed(now);
        if let Some(learned) = &mut self.learned {
            learned.reported(waiting, self.in_flight, full, now);
            self.end_slow_start(now);
        }
    }
}

#[cfg(test)]
mod tests;

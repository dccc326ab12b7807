//! When a held request will start, and whether that is in time.
//!
//! A pool's endpoints have places. By Little's law (J. D. C. Little, "A Proof for the Queuing Formula
//! L = λW", Operations Research 1961) they are given back at the rate `places / mean time that a
//! request keeps one`, whatever the requests are like. That holds for a gateway's own requests and its
//! own places, too: where several gateways stand before the same replicas, requests keep their places
//! longer, so each expects its share. Each start under way adds the places of one
//! endpoint at its end, and their rate from then on. So the wait of a request with `n` others
//! before it is the time until `n + 1` places have become free.
//!
//! A late request lets those go first that can still meet the objective ([`crate::queue`]), those among
//! them that have not come yet, too. So while such requests wait, only a share of the places that become free
//! is for late ones: the share that they got lately. Nobody knows how long that goes on. An overload that began
//! when the present late requests did is expected to last for as long as the request can be held, and
//! each time that it lasts longer, twice as long. So in one that goes on for as long, those for whom there will be
//! no place hear it when they come; one that ends sooner has refused some whom it could have served. A request
//! that is held is refused only if it would be too late even in an overload of twice the length that was seen:
//! a burst, after which no more come, takes no place from those that are held.
//!
//! What is not known yet is not guessed: without learned times there is no ETA, and no refusal. The
//! refusal of a held request rests on an estimate that is better than expected, since it has been
//! promised a place. A fallback costs little, so it rests on one that is worse.

use std::collections::VecDeque;
use std::time::Duration;

use forebay_signals::ColdStart;

use crate::queue::{Place, Queue};
use ahead::Overtaking;
pub use ahead::{Ahead, Passed};

mod ahead;

/// Fewest learned starts on which a refusal may rest.
const STARTS: u32 = 3;
/// Fewest ends of requests on which an ETA may rest.
const ENDS: u32 = 8;
/// Fewest ends of requests on which a refusal may rest.
const ENDS_TO_REFUSE: u32 = 32;
/// The number of ends that the mean is learned from: as many as are in flight at a few replicas. With a
/// quarter of them chance would move an estimate of ten minutes by a minute, and refuse who was promised a place.
const MEMORY: u32 = 512;
/// The part by which a mean of that many ends may well be wrong.
const DOUBT: f64 = 0.1;
/// The shortest and the longest time that a client is asked to stay away.
const SOON: Duration = Duration::from_secs(1);
const LATEST: Duration = Duration::from_secs(3600);
/// A day stands for "never" in a computation.
const DAY: f64 = 86_400.0;

/// How long requests keep their places at endpoints: a mean in which older ones fade.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ServiceTime {
    mean: f64,
    ends: u32,
}

impl ServiceTime {
    /// Learns from a request that gave its place back.
    pub fn record(&mut self, kept: Duration) {
        self.ends = self.ends.saturating_add(1);
        self.mean += (kept.as_secs_f64() - self.mean) / f64::from(self.ends.min(MEMORY));
    }

    /// The mean in seconds, if it was learned from at least this many ends.
    fn mean(&self, ends: u32) -> Option<f64> {
        (self.ends >= ends).then_some(self.mean.max(1e-6))
    }
}

/// The starts under way in a pool, as a gateway can know them: how many replicas are wanted beyond
/// those that are ready, and since when.
#[derive(Clone, Debug, Default)]
pub struct Starts {
    /// Their beginnings, the oldest first, as the caller counts time.
    since: VecDeque<Duration>,
}

impl Starts {
    /// Sets their number. Of fewer, the oldest have ended.
    pub fn set(&mut self, count: usize, now: Duration) {
        while self.since.len() > count {
            self.since.pop_front();
        }
        self.since.resize(count, now);
    }

    /// Notes that as many of them failed: they begin again.
    pub fn failed(&mut self, count: usize, now: Duration) {
        for _ in 0..count.min(self.since.len()) {
            self.since.pop_front();
            self.since.push_back(now);
        }
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.since.len()
    }
}

/// A pool's knowledge of its future.
#[derive(Clone, Copy, Debug)]
pub struct Outlook<'a> {
    /// The moment, as the caller counts time.
    pub now: Duration,
    /// The places at ready endpoints, taken ones included.
    pub places: u64,
    /// How long requests keep them.
    pub service: ServiceTime,
    /// The starts under way.
    pub starts: &'a Starts,
    /// How long starts took.
    pub learned: Option<ColdStart>,
    /// The places of an endpoint that starts.
    pub places_of_start: u64,
    /// How many more starts may still begin.
    pub more_starts: u32,
}

/// How a request waits.
#[derive(Clone, Copy, Debug)]
pub struct Wait {
    /// How long it can be held from now.
    pub longest: Duration,
    /// Whether another pool can serve it instead.
    pub fallback: bool,
    /// Whether it is held already.
    pub held: bool,
}

/// A request that can't start in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLate {
    /// When it would start; `None` if that is not known.
    pub expected: Option<Duration>,
    /// When its client should come back.
    pub retry_after: Duration,
}

/// The supply of places under one assumption.
struct Supply {
    /// Places that become free each second.
    rate: f64,
    /// The rate of one endpoint more.
    rate_of_start: f64,
    /// The seconds that a start takes.
    start: f64,
    /// Starts that begin now.
    more: u32,
}

impl Outlook<'_> {
    /// The time until a request with these others before it starts; `None` if that is not known.
    #[must_use]
    pub fn expected(&self, ahead: impl Into<Ahead>) -> Option<Duration> {
        let needed = ahead.into().needed(self.now, false);
        self.until(needed, &self.supply(ENDS, 1, |learned| learned.p50_seconds)?)
    }

    /// A time by which it will very probably have started; `None` if that is not known.
    #[must_use]
    pub fn at_most(&self, ahead: impl Into<Ahead>) -> Option<Duration> {
        let ahead = ahead.into();
        let (needed, overtaking) = ahead.needed(self.now, false);
        // One in ten Poisson processes needs longer.
        let needed = needed + 1.28 * needed.sqrt();
        let supply = self.supply(ENDS, 1, |learned| learned.p90_seconds)?;
        let supply = Supply { rate: supply.rate * (1.0 - DOUBT), ..supply };
        // A start that takes longer makes no request start sooner.
        Some(self.until((needed, overtaking), &supply)?.max(self.expected(ahead)?))
    }

    /// The time by which a refusal is decided; `None` if too little was learned. Of a request that
    /// arrives it is when it will start. To a held one its place is promised: it is a time before
    /// which it will hardly start, so that chance alone takes the place from nobody.
    fn earliest(&self, ahead: Ahead, held: bool) -> Option<Duration> {
        let (needed, overtaking) = ahead.needed(self.now, held);
        let luck = if held { needed.sqrt() } else { 0.0 };
        let needed = (needed - luck).max(1.0);
        let supply = self.supply(ENDS_TO_REFUSE, STARTS, |learned| learned.p50_seconds)?;
        if self.more_starts > 0 && self.learned.is_none_or(|learned| learned.samples < STARTS) {
            return None;
        }
        let rate = supply.rate * if held { 1.0 + DOUBT } else { 1.0 };
        let supply = Supply { rate, more: self.more_starts.max(supply.more), ..supply };
        let start = self.until((needed, overtaking), &supply)?;
        // An overload that ends sooner makes no late request start later.
        Some(self.expected(ahead).map_or(start, |expected| start.min(expected)))
    }

    /// When the client should come back, if the request, with these others before it, can't start
    /// in time; `None` if it probably can, or if too little was learned.
    ///
    /// A fallback costs little, so a request with one has to start in time very probably. A request
    /// without one that arrives has to start in time probably: where all places are taken for so
    /// long, another one starts instead of it. A held one is refused if it would be too late even
    /// if things went better than expected.
    #[must_use]
    pub fn cannot_start_in_time(&self, ahead: impl Into<Ahead>, wait: Wait) -> Option<TooLate> {
        let ahead = ahead.into();
        let nothing_comes = self.places == 0 && self.starts.count() == 0 && self.more_starts == 0;
        if wait.fallback && nothing_comes {
            return Some(TooLate { expected: None, retry_after: SOON });
        }
        let start =
            if wait.fallback { self.at_most(ahead) } else { self.earliest(ahead, wait.held) };
        let too_late = start.is_some_and(|start| start > wait.longest);
        too_late.then(|| TooLate {
            expected: self.expected(ahead),
            retry_after: self.retry_after(ahead),
        })
    }

    /// When a refused client should come back: once the requests before it have probably started, or in a
    /// second if that is not known.
    #[must_use]
    pub fn retry_after(&self, ahead: impl Into<Ahead>) -> Duration {
        self.at_most(ahead).unwrap_or(SOON).clamp(SOON, LATEST)
    }

    /// The places that become free, if enough was learned. `start` chooses the time of a start.
    fn supply(&self, ends: u32, starts: u32, start: fn(ColdStart) -> f64) -> Option<Supply> {
        let service = self.service.mean(ends);
        // The request that waits at zero causes the first start.
        let first = self.places == 0 && self.starts.count() == 0 && self.more_starts > 0;
        let more = u32::from(first);
        let learned = self.learned.filter(|learned| learned.samples >= starts);
        let starting = self.starts.count() > 0 || first;
        if starting && learned.is_none() || self.places > 0 && service.is_none() {
            return None;
        }
        let rate = |places: u64| service.map_or(0.0, |service| places as f64 / service);
        Some(Supply {
            rate: rate(self.places),
            rate_of_start: rate(self.places_of_start),
            start: learned.map_or(DAY, |learned| start(learned).clamp(0.0, DAY)),
            more,
        })
    }

    /// The time until `needed` places have become free; `None` if they never do.
    fn until(&self, (needed, overtaking): (f64, Overtaking), supply: &Supply) -> Option<Duration> {
        let rest = |since: &Duration| {
            // A start that takes longer than expected may end at any moment.
            (supply.start - self.now.saturating_sub(*since).as_secs_f64()).max(0.0)
        };
        let begun = self.starts.since.iter().map(rest);
        let begun = begun.chain((0..supply.more).map(|_| supply.start));
        let (mut at, mut free, mut rate) = (0.0, 0.0, supply.rate);
        let seconds = |at: f64| Duration::from_secs_f64(at.clamp(0.0, DAY));
        for end in begun {
            let start = overtaking.after(at, needed - free, rate);
            if rate > 0.0 && start <= end {
                return Some(seconds(start));
            }
            free += overtaking.free(at, end, rate) + self.places_of_start as f64;
            at = end;
            if free >= needed {
                return Some(seconds(at));
            }
            rate += supply.rate_of_start;
        }
        (rate > 0.0).then(|| seconds(overtaking.after(at, needed - free, rate)))
    }

    /// The requests that start before one that arrives now at `place`, and can be held for `hold`.
    /// `late_from`: see [`Entry::late_from`](crate::queue::Entry::late_from). It is late from the beginning
    /// if its turn will not come before that.
    #[must_use]
    pub fn ahead<W>(
        &self,
        queue: &Queue<W>,
        place: Place,
        late_from: Option<Duration>,
        hold: Duration,
    ) -> Ahead {
        let in_time = queue.ahead(place, false);
        let Some(late_from) = late_from else { return Ahead::InTime(in_time) };
        // The next one's turn is now, however long it waits for a place.
        let turn = in_time.checked_sub(1).map_or(Some(Duration::ZERO), |last| self.expected(last));
        if turn.is_none_or(|turn| self.now + turn < late_from) {
            return Ahead::InTime(in_time);
        }
        let lane = queue.late_lane(queue.class(place));
        let late = queue.ahead(place, true).saturating_sub(lane.in_time);
        Ahead::Late { late, lane, hold }
    }
}

#[cfg(test)]
mod tests;

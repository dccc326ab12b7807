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
//! What is not known yet is not guessed: without learned times there is no ETA, and no refusal. The
//! refusal of a held request rests on an estimate that is better than expected, since it has been
//! promised a place. A fallback costs little, so it rests on one that is worse.

use std::collections::VecDeque;
use std::time::Duration;

use forebay_signals::ColdStart;

use crate::queue::{Place, Queue};

/// Fewest learned starts on which a refusal may rest.
const STARTS: u32 = 3;
/// Fewest ends of requests on which an ETA may rest.
const ENDS: u32 = 8;
/// Fewest ends of requests on which a refusal may rest.
const ENDS_TO_REFUSE: u32 = 32;
/// The number of ends that the mean is learned from: as many as are in flight at a few replicas.
const MEMORY: u32 = 128;
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
    /// The time until a request with `ahead` others before it starts; `None` if that is not known.
    #[must_use]
    pub fn expected(&self, ahead: usize) -> Option<Duration> {
        let needed = ahead as f64 + 1.0;
        self.until(needed, &self.supply(ENDS, 1, |learned| learned.p50_seconds)?)
    }

    /// A time by which it will very probably have started; `None` if that is not known.
    #[must_use]
    pub fn at_most(&self, ahead: usize) -> Option<Duration> {
        let needed = ahead as f64 + 1.0;
        // One in ten Poisson processes needs longer.
        let needed = needed + 1.28 * needed.sqrt();
        let supply = self.supply(ENDS, 1, |learned| learned.p90_seconds)?;
        self.until(needed, &Supply { rate: supply.rate * (1.0 - DOUBT), ..supply })
    }

    /// The time by which a refusal is decided; `None` if too little was learned. Of a request that
    /// arrives it is when it will start. To a held one its place is promised: it is a time before
    /// which it will hardly start, so that chance alone takes the place from nobody.
    fn earliest(&self, ahead: usize, held: bool) -> Option<Duration> {
        let needed = ahead as f64 + 1.0;
        let luck = if held { needed.sqrt() } else { 0.0 };
        let needed = (needed - luck).max(1.0);
        let supply = self.supply(ENDS_TO_REFUSE, STARTS, |learned| learned.p50_seconds)?;
        if self.more_starts > 0 && self.learned.is_none_or(|learned| learned.samples < STARTS) {
            return None;
        }
        let rate = supply.rate * if held { 1.0 + DOUBT } else { 1.0 };
        self.until(needed, &Supply { rate, more: self.more_starts.max(supply.more), ..supply })
    }

    /// When the client should come back, if the request, with `ahead` others before it, can't start
    /// in time; `None` if it probably can, or if too little was learned.
    ///
    /// A fallback costs little, so a request with one has to start in time very probably. A request
    /// without one that arrives has to start in time probably: where all places are taken for so
    /// long, another one starts instead of it. A held one is refused if it would be too late even
    /// if things went better than expected.
    #[must_use]
    pub fn cannot_start_in_time(&self, ahead: usize, wait: Wait) -> Option<TooLate> {
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

    /// When a refused client should come back: once the `ahead` requests that are held have probably
    /// started, or in a second if that is not known.
    #[must_use]
    pub fn retry_after(&self, ahead: usize) -> Duration {
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
    fn until(&self, needed: f64, supply: &Supply) -> Option<Duration> {
        let rest = |since: &Duration| {
            // A start that takes longer than expected may end at any moment.
            (supply.start - self.now.saturating_sub(*since).as_secs_f64()).max(0.0)
        };
        let begun = self.starts.since.iter().map(rest);
        let begun = begun.chain((0..supply.more).map(|_| supply.start));
        let (mut at, mut free, mut rate) = (0.0, 0.0, supply.rate);
        let after = |at: f64, missing: f64, rate: f64| {
            Duration::from_secs_f64((at + missing / rate).clamp(0.0, DAY))
        };
        for end in begun {
            if rate > 0.0 && free + rate * (end - at) >= needed {
                return Some(after(at, needed - free, rate));
            }
            free += rate * (end - at) + self.places_of_start as f64;
            at = end;
            if free >= needed {
                return Some(Duration::from_secs_f64(at));
            }
            rate += supply.rate_of_start;
        }
        (rate > 0.0).then(|| after(at, needed - free, rate))
    }

    /// How many requests start before one that arrives now at `place`. `late_from`: see
    /// [`Entry::late_from`](crate::queue::Entry::late_from). A request that becomes late while it
    /// waits also waits for those that are late before it.
    #[must_use]
    pub fn ahead<W>(&self, queue: &Queue<W>, place: Place, late_from: Option<Duration>) -> usize {
        let ahead = queue.ahead(place, false);
        let Some(late_from) = late_from else { return ahead };
        let in_time = |wait: Duration| self.now + wait < late_from;
        match self.expected(ahead) {
            Some(wait) if !in_time(wait) => queue.ahead(place, true).max(ahead),
            _ => ahead,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;
    use std::collections::BinaryHeap;

    use proptest::prelude::*;

    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn learned(p50_seconds: f64, p90_seconds: f64, samples: u32) -> Option<ColdStart> {
        Some(ColdStart { p50_seconds, p90_seconds, samples })
    }

    fn service(seconds: u64, ends: u32) -> ServiceTime {
        let mut service = ServiceTime::default();
        (0..ends).for_each(|_| service.record(s(seconds)));
        service
    }

    /// Starts that began as many seconds before the moment 1,000 s.
    fn starts(ages: &[u64]) -> Starts {
        Starts { since: ages.iter().map(|age| s(1000 - age)).collect() }
    }

    /// A pool at the moment 1,000 s without endpoints, whose first start may begin.
    fn cold(learned: Option<ColdStart>, starts: &Starts) -> Outlook<'_> {
        Outlook {
            now: s(1000),
            places: 0,
            service: ServiceTime::default(),
            starts,
            learned,
            places_of_start: 100,
            more_starts: 1,
        }
    }

    #[test]
    fn a_request_cannot_wait_if_the_learned_start_takes_longer() {
        let steady = learned(60.0, 80.0, 9);
        let none: &[u64] = &[];
        for (case, learned, ages, longest, fallback, want) in [
            ("waits long enough", steady, none, 61, false, None),
            ("gives up before most starts", steady, none, 50, false, Some(80)),
            ("some starts are too late", steady, none, 70, false, None),
            ("the start is under way", steady, &[20], 50, false, None),
            ("under way, and still too late", steady, &[20], 30, false, Some(60)),
            ("it takes longer than ever", steady, &[500], 1, false, None),
            ("learned from too few", learned(60.0, 80.0, 2), none, 1, false, None),
            ("nothing is learned", None, none, 1, false, None),
            ("the fallback rather than perhaps", steady, none, 70, true, Some(80)),
            ("the fallback only if needed", steady, none, 90, true, None),
            ("one start is enough", learned(60.0, 80.0, 1), none, 70, true, Some(80)),
            ("with a fallback, nothing is learned", None, none, 1, true, None),
        ] {
            let starts = starts(ages);
            let late = cold(learned, &starts)
                .cannot_start_in_time(0, Wait { longest: s(longest), fallback, held: false });
            assert_eq!(late.map(|late| late.retry_after), want.map(s), "{case}");
        }
        let none = starts(none);
        let nothing = Outlook { more_starts: 0, ..cold(None, &none) };
        let wait = |fallback| Wait { longest: s(60), fallback, held: false };
        let late = nothing.cannot_start_in_time(0, wait(true)).map(|late| late.retry_after);
        assert_eq!(late, Some(s(1)), "with a fallback, nothing starts");
        assert_eq!(nothing.cannot_start_in_time(0, wait(false)), None);
    }

    #[test]
    fn a_refused_client_comes_back_when_most_starts_are_over() {
        let after = |learned, ages: &[u64]| cold(learned, &starts(ages)).retry_after(0);
        let learned = learned(60.0, 80.0, 1);
        assert_eq!(after(learned, &[]), s(80));
        assert_eq!(after(learned, &[70]), s(10));
        assert_eq!((after(learned, &[90]), after(None, &[])), (s(1), s(1)));
    }

    #[test]
    fn places_become_free_at_their_number_by_the_time_that_requests_keep_them() {
        let none = Starts::default();
        let busy = |places, service, starts| Outlook {
            places,
            service,
            more_starts: 0,
            ..cold(learned(60.0, 80.0, 9), starts)
        };
        // 20 places, 10 s each: two a second.
        let warm = busy(20, service(10, 40), &none);
        assert_eq!(warm.expected(0), Some(Duration::from_millis(500)));
        assert_eq!(warm.expected(199), Some(s(100)));
        // 20 s from now a start ends: it takes the 40th to the 139th at once, then there are 12 a
        // second.
        let coming = starts(&[40]);
        let grows = busy(20, service(10, 40), &coming);
        assert_eq!(grows.expected(38), Some(Duration::from_millis(19_500)));
        assert_eq!(grows.expected(139), Some(s(20)));
        assert_eq!(grows.expected(259), Some(s(30)));
        assert_eq!(busy(20, service(10, 7), &none).expected(0), None, "too few ends");
        let unknown = Outlook { learned: None, ..busy(20, service(10, 40), &coming) };
        assert_eq!(unknown.expected(500), None, "a start of unknown length may end now");
        assert_eq!(busy(0, service(10, 40), &none).expected(0), None, "nothing comes");
    }

    /// The expected and the real seconds until a gateway has released 200 more, once it has learned.
    /// A replica works on 40 requests at a time, for one to three seconds each, and lets others wait.
    /// Each gateway always holds requests, and has 40 places there.
    fn waits_beside(others: usize) -> (f64, f64) {
        let mut service = ServiceTime::default();
        let gateways = 0..=others;
        let mut waiting: VecDeque<_> = gateways.flat_map(|one| [(one, 0); 40]).collect();
        let mut working = BinaryHeap::new();
        let (mut now, mut ends, mut begun, mut estimate) = (0, 0, 0, (0, 0.0));
        loop {
            while working.len() < 40
                && let Some((gateway, released)) = waiting.pop_front()
            {
                begun += 1;
                working.push(Reverse((now + 1_000 + begun * 7_919 % 2_001, gateway, released)));
            }
            let Reverse((end, gateway, released)) = working.pop().expect("held requests go on");
            now = end;
            waiting.push_back((gateway, now));
            if gateway == 0 {
                ends += 1;
                service.record(Duration::from_millis(now - released));
                let none = Starts::default();
                let outlook = Outlook { places: 40, service, more_starts: 0, ..cold(None, &none) };
                match ends {
                    300 => estimate = (now, outlook.expected(199).expect("learned").as_secs_f64()),
                    500 => return (estimate.1, (now - estimate.0) as f64 / 1e3),
                    _ => {}
                }
            }
        }
    }

    #[test]
    fn a_gateway_expects_its_own_share_of_what_several_have_together() {
        for others in [0, 1, 3] {
            let (expected, real) = waits_beside(others);
            assert!((real / (10.0 * (others + 1) as f64) - 1.0).abs() < 0.1, "{others}: {real} s");
            assert!((expected / real - 1.0).abs() < 0.1, "{others}: {expected} s for {real} s");
        }
    }

    #[test]
    fn only_an_estimate_that_is_better_than_expected_refuses_a_held_request() {
        let none = Starts::default();
        let warm =
            Outlook { places: 20, service: service(10, 40), more_starts: 0, ..cold(None, &none) };
        let wait = |longest, held| Wait { longest: s(longest), fallback: false, held };
        let late = |outlook: &Outlook<'_>, ahead, longest| {
            outlook.cannot_start_in_time(ahead, wait(longest, true))
        };
        // The 400th starts in 200 s.
        assert_eq!(late(&warm, 399, 199), None, "nearly");
        assert!(warm.cannot_start_in_time(399, wait(199, false)).is_some(), "it only arrives");
        assert_eq!(warm.cannot_start_in_time(399, wait(200, false)), None);
        let refused = late(&warm, 399, 150).expect("far too late");
        assert_eq!(refused.expected, Some(s(200)));
        assert!((s(230)..s(250)).contains(&refused.retry_after), "{refused:?}");
        let few = Outlook { service: service(10, 31), ..warm };
        assert_eq!(late(&few, 399, 1), None, "learned from too few");
        let grows = Outlook { more_starts: 4, learned: learned(60.0, 80.0, 9), ..warm };
        assert_eq!(late(&grows, 399, 100), None, "more replicas can start within 60 s");
        assert!(late(&grows, 399, 50).is_some());
        let unknown = Outlook { more_starts: 4, ..warm };
        assert_eq!(late(&unknown, 399, 50), None, "nobody knows how fast they start");
    }

    #[test]
    fn a_failed_start_begins_again_and_the_oldest_ends_first() {
        let mut starts = Starts::default();
        starts.set(2, s(10));
        starts.set(3, s(20));
        starts.failed(1, s(30));
        assert_eq!(starts.since, [s(10), s(20), s(30)]);
        starts.set(1, s(40));
        assert_eq!(starts.since, [s(30)]);
        starts.failed(9, s(50));
        assert_eq!((starts.count(), starts.since[0]), (1, s(50)));
    }

    #[test]
    fn the_mean_forgets_what_is_long_ago() {
        let mut time = service(1, 1000);
        assert_eq!(time.mean(1), Some(1.0));
        (0..512).for_each(|_| time.record(s(9)));
        assert!(time.mean(1).expect("learned") > 8.8);
    }

    proptest! {
        // More ahead never means earlier, and the three estimates are in their order.
        #[test]
        fn estimates_are_ordered(
            places in 0..200u64, ends in 32..200u32, ages in prop::collection::vec(0..200u64, 0..5),
            ahead in 0..2000usize, more in 0..50usize,
        ) {
            let mut ages = ages;
            ages.sort_unstable_by_key(|age| std::cmp::Reverse(*age));
            let starts = starts(&ages);
            let outlook = Outlook {
                places,
                service: service(7, ends),
                ..cold(learned(60.0, 80.0, 9), &starts)
            };
            let (least, expected) = (outlook.earliest(ahead, true), outlook.expected(ahead));
            prop_assert!(least <= expected && expected <= outlook.at_most(ahead));
            prop_assert!(expected.is_some() && expected <= outlook.expected(ahead + more));
        }
    }
}

//! Slow start: a server that has just begun gets one request, and more with each first token.
//!
//! The first request at a cold server is slow: kernels are compiled, graphs are captured, caches are
//! empty. It also shows whether the server works at all. So a new server gets one request. Each first
//! token makes room for two more, as each acknowledgement does in TCP (V. Jacobson, "Congestion
//! Avoidance and Control", SIGCOMM 1988): 1, 3, 7, 15 requests, as fast as the server answers, up to
//! its limit. A server that computes one prompt after another always has the next one waiting, so this
//! costs no throughput.
//!
//! A plain answer shows no first token before its end. It counts a second after it was given: an engine
//! that is warm has begun it by then.
//!
//! Pure: callers pass `now`, as a time since any moment.

use std::time::Duration;

/// How long after it was given a plain answer counts as begun.
const PLAIN_BEGINS: Duration = Duration::from_secs(1);

/// The requests that a server has had since it began, until it has its whole room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlowStart {
    /// The most requests in flight.
    allowed: u32,
    in_flight: u32,
    /// Requests in flight whose first tokens will not be seen, and that don't count as begun.
    plain: u32,
    /// When the oldest of those was given.
    plain_since: Duration,
}

/// One request's part in a slow start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Its first token has not come.
    Waiting {
        /// Whether it will be seen.
        streamed: bool,
    },
    /// It has made room for others.
    Begun,
}

impl Default for SlowStart {
    fn default() -> Self {
        Self { allowed: 1, in_flight: 0, plain: 0, plain_since: Duration::ZERO }
    }
}

impl SlowStart {
    /// The most requests in flight now.
    #[must_use]
    pub fn allowed(&self, now: Duration) -> u32 {
        let late = self.plain_counts_at().is_some_and(|at| at <= now);
        self.allowed.saturating_add(if late { 2 * self.plain } else { 0 })
    }

    /// How many more requests the server may have now.
    #[must_use]
    pub fn left(&self, now: Duration) -> u32 {
        self.allowed(now).saturating_sub(self.in_flight)
    }

    /// The moment at which time alone makes more room, if there is one.
    #[must_use]
    pub fn plain_counts_at(&self) -> Option<Duration> {
        (self.plain > 0).then(|| self.plain_since.saturating_add(PLAIN_BEGINS))
    }

    /// Takes a request that the server is given. `streamed`: its first token will be seen.
    pub fn given(&mut self, streamed: bool, now: Duration) -> Part {
        self.settle(now);
        self.in_flight += 1;
        if !streamed {
            if self.plain == 0 {
                self.plain_since = now;
            }
            self.plain += 1;
        }
        Part::Waiting { streamed }
    }

    /// Takes the first token of a request.
    pub fn first_token(&mut self, part: &mut Part, now: Duration) {
        self.settle(now);
        if let Part::Waiting { streamed } = std::mem::replace(part, Part::Begun) {
            self.begun(streamed);
        }
    }

    /// Takes the end of a request. `complete`: it was answered.
    pub fn ended(&mut self, mut part: Part, complete: bool, now: Duration) {
        if complete {
            self.first_token(&mut part, now);
        }
        self.settle(now);
        self.in_flight = self.in_flight.saturating_sub(1);
        if part == (Part::Waiting { streamed: false }) {
            self.plain = self.plain.saturating_sub(1);
        }
    }

    fn begun(&mut self, streamed: bool) {
        // A plain one that counted by its time makes no more room.
        if streamed || self.plain > 0 {
            self.plain -= u32::from(!streamed);
            self.allowed = self.allowed.saturating_add(2);
        }
    }

    /// Counts the plain ones whose time has come.
    fn settle(&mut self, now: Duration) {
        let allowed = self.allowed(now);
        if allowed != self.allowed {
            (self.allowed, self.plain) = (allowed, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Gives it all that it may have.
    fn fill(start: &mut SlowStart, streamed: bool, now: Duration) -> Vec<Part> {
        (0..start.left(now)).map(|_| start.given(streamed, now)).collect()
    }

    #[test]
    fn each_round_of_first_tokens_doubles_the_requests() {
        let mut start = SlowStart::default();
        let mut rounds = Vec::new();
        for _ in 0..5 {
            let mut parts = fill(&mut start, true, ms(0));
            rounds.push(start.in_flight);
            parts.iter_mut().for_each(|part| start.first_token(part, ms(0)));
            // A second token says nothing new.
            parts.iter_mut().for_each(|part| start.first_token(part, ms(0)));
        }
        assert_eq!(rounds, [1, 3, 7, 15, 31]);
    }

    #[test]
    fn nothing_more_comes_before_the_first_token() {
        let mut start = SlowStart::default();
        let part = start.given(true, ms(0));
        assert_eq!(start.left(ms(3_600_000)), 0, "however long it takes");
        start.ended(part, false, ms(3_600_000));
        assert_eq!(start.left(ms(3_600_000)), 1, "it failed, and the next one tries");
    }

    #[test]
    fn answers_that_are_over_make_room_for_more_than_they_took() {
        let mut start = SlowStart::default();
        for round in 0..4 {
            let parts = fill(&mut start, false, ms(round));
            assert_eq!(parts.len(), [1, 3, 9, 27][round as usize]);
            parts.into_iter().for_each(|part| start.ended(part, true, ms(round)));
        }
    }

    #[test]
    fn a_plain_answer_counts_after_a_second_and_only_once() {
        let mut start = SlowStart::default();
        let part = start.given(false, ms(500));
        assert_eq!((start.left(ms(1499)), start.plain_counts_at()), (0, Some(ms(1500))));
        assert_eq!(start.left(ms(1500)), 2);
        start.ended(part, true, ms(2000));
        assert_eq!((start.left(ms(9000)), start.plain_counts_at()), (3, None));
    }

    #[derive(Clone, Copy, Debug)]
    enum Event {
        Given { streamed: bool },
        FirstToken(usize),
        Ended(usize, bool),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            any::<bool>().prop_map(|streamed| Event::Given { streamed }),
            any::<usize>().prop_map(Event::FirstToken),
            (any::<usize>(), any::<bool>()).prop_map(|(at, complete)| Event::Ended(at, complete)),
        ]
    }

    proptest! {
        // Whatever happens, it never has more than two for each that has begun, and one; and one that
        // has nothing can always have one.
        #[test]
        fn room_comes_from_answers_alone_and_never_ends(
            events in prop::collection::vec((event(), 0..400u64), 0..200),
        ) {
            let (mut start, mut parts, mut now) = (SlowStart::default(), Vec::new(), 0);
            let (mut begun, mut given) = (0, 0);
            for (event, later) in events {
                match event {
                    Event::Given { streamed } if start.left(ms(now)) > 0 => {
                        parts.push(start.given(streamed, ms(now)));
                        given += 1;
                    }
                    Event::FirstToken(at) if !parts.is_empty() => {
                        let at = at % parts.len();
                        if parts[at] == (Part::Waiting { streamed: true }) {
                            start.first_token(&mut parts[at], ms(now));
                            begun += 1;
                        }
                    }
                    Event::Ended(at, complete) if !parts.is_empty() => {
                        let part = parts.swap_remove(at % parts.len());
                        begun += u32::from(complete && part != Part::Begun);
                        start.ended(part, complete, ms(now));
                    }
                    _ => {}
                }
                now += later;
                prop_assert_eq!(start.in_flight as usize, parts.len());
                prop_assert!(start.allowed(ms(now)) <= 1 + 2 * given);
                prop_assert!(start.allowed(ms(now)) > 2 * begun || start.plain > 0 || begun == 0);
                prop_assert!(start.in_flight > 0 || start.left(ms(now)) > 0);
            }
        }
    }
}

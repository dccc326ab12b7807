//! Slow start: a server that has just begun gets one request, and more with each first token.
//!
//! The first request at a cold server is slow: kernels are compiled, graphs are captured, caches are
//! empty. It also shows whether the server works at all. So a new server gets one request. Each first
//! token makes room for two more, as each acknowledgement does in TCP (V. Jacobson, "Congestion
//! Avoidance and Control", SIGCOMM 1988): 1, 3, 7, 15 requests, as fast as the server answers, up to
//! its limit. A server that computes one prompt after another always has the next one waiting, so this
//! costs no throughput with streams.
//!
//! A plain answer shows no first token before its end. It counts a second after it was given: an engine
//! that is warm has begun it by then. Once a round has passed, or an answer has shown that the server works,
//! a quarter of that is enough. So with plain answers a server has its whole room after about three seconds.
//!
//! Pure: callers pass `now`, as a time since any moment.

use std::time::Duration;

/// How long after it was given a plain answer counts as begun: in the first round, and later.
const PLAIN_BEGINS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_millis(250));

/// The progress of a server that has just begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SlowStart {
    /// The most requests in flight.
    allowed: u32,
    /// Streams in flight without a first token.
    unanswered: u32,
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

impl Part {
    /// Whether its first token makes room for others when it comes.
    #[must_use]
    pub fn waits_for_token(self) -> bool {
        self == Self::Waiting { streamed: true }
    }
}

impl Default for SlowStart {
    fn default() -> Self {
        Self { allowed: 1, unanswered: 0, plain: 0, plain_since: Duration::ZERO }
    }
}

impl SlowStart {
    /// The most requests in flight now.
    pub(super) fn allowed(&self, now: Duration) -> u32 {
        let late = self.plain_counts_at().is_some_and(|at| at <= now);
        self.allowed.saturating_add(if late { 2 * self.plain } else { 0 })
    }

    /// Streams in flight without a first token.
    pub(super) fn unanswered(&self) -> u32 {
        self.unanswered
    }

    /// The moment at which time alone makes more room, if there is one.
    pub(super) fn plain_counts_at(&self) -> Option<Duration> {
        let begins = if self.allowed > 1 { PLAIN_BEGINS.1 } else { PLAIN_BEGINS.0 };
        (self.plain > 0).then(|| self.plain_since.saturating_add(begins))
    }

    /// Takes a request that the server is given. `streamed`: its first token will be seen.
    pub(super) fn given(&mut self, streamed: bool, now: Duration) -> Part {
        self.settle(now);
        if streamed {
            self.unanswered += 1;
        } else {
            if self.plain == 0 {
                self.plain_since = now;
            }
            self.plain += 1;
        }
        Part::Waiting { streamed }
    }

    /// Takes the first token of a request. It makes no room beyond `most`.
    pub(super) fn first_token(&mut self, part: &mut Part, most: u32, now: Duration) {
        self.settle(now);
        let Part::Waiting { streamed } = std::mem::replace(part, Part::Begun) else { return };
        let waiting = if streamed { &mut self.unanswered } else { &mut self.plain };
        // A plain one that counted by its time makes no more room.
        if *waiting > 0 {
            *waiting -= 1;
            self.allowed = self.allowed.max(self.allowed.saturating_add(2).min(most));
        }
    }

    /// Takes the end of a request. `complete`: it was answered, and so had its first token.
    pub(super) fn ended(&mut self, mut part: Part, complete: bool, most: u32, now: Duration) {
        if complete {
            self.first_token(&mut part, most, now);
        }
        self.settle(now);
        if let Part::Waiting { streamed } = part {
            let waiting = if streamed { &mut self.unanswered } else { &mut self.plain };
            *waiting = waiting.saturating_sub(1);
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
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_first_token_counts_once() {
        let mut start = SlowStart::default();
        let mut part = start.given(true, ms(0));
        assert_eq!((start.allowed(ms(0)), start.unanswered()), (1, 1));
        start.first_token(&mut part, u32::MAX, ms(0));
        start.first_token(&mut part, u32::MAX, ms(0));
        start.ended(part, true, u32::MAX, ms(0));
        assert_eq!((start.allowed(ms(0)), start.unanswered()), (3, 0));
    }

    #[test]
    fn nothing_more_comes_before_the_first_token() {
        let mut start = SlowStart::default();
        let part = start.given(true, ms(0));
        assert_eq!(start.allowed(ms(3_600_000)), 1, "however long it takes");
        start.ended(part, false, u32::MAX, ms(3_600_000));
        assert_eq!((start.allowed(ms(3_600_000)), start.unanswered()), (1, 0), "it failed");
    }

    #[test]
    fn a_plain_answer_counts_after_a_second_and_only_once() {
        let mut start = SlowStart::default();
        let part = start.given(false, ms(500));
        assert_eq!((start.allowed(ms(1499)), start.plain_counts_at()), (1, Some(ms(1500))));
        assert_eq!(start.allowed(ms(1500)), 3);
        start.ended(part, true, u32::MAX, ms(2000));
        assert_eq!((start.allowed(ms(9000)), start.plain_counts_at()), (3, None));
    }

    #[test]
    fn plain_answers_alone_fill_a_server_in_three_seconds() {
        let mut start = SlowStart::default();
        let (mut now, mut given, mut rounds) = (ms(0), 0, Vec::new());
        while given < 127 {
            while given < start.allowed(now) {
                start.given(false, now);
                given += 1;
            }
            rounds.push((given, now));
            now = start.plain_counts_at().expect("all of them are plain");
        }
        let want = [(1, 0), (3, 1000), (7, 1250), (15, 1500), (31, 1750), (63, 2000), (127, 2250)];
        assert_eq!(rounds, want.map(|(given, at)| (given, ms(at))));
    }

    #[test]
    fn first_tokens_make_no_room_beyond_the_round() {
        let mut start = SlowStart::default();
        let mut parts: Vec<_> = (0..5).map(|_| start.given(true, ms(0))).collect();
        parts.iter_mut().for_each(|part| start.first_token(part, 7, ms(0)));
        assert_eq!(start.allowed(ms(0)), 7);
    }
}

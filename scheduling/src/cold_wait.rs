//! Whether a request can outlast a cold start.
//!
//! A pool without a ready replica knows how long its starts took. Where these figures say that a
//! request's time ends before a replica is there, the request is refused at once with a time to
//! come back, or goes to the fallback: an early answer is worth more than a late one.

use std::time::Duration;

use forebay_signals::ColdStart;

/// Fewest learned starts on which a refusal may rest.
const SAMPLES: u32 = 3;
/// The shortest time that a client is asked to stay away.
const SOON: Duration = Duration::from_secs(1);

/// A pool without a ready replica.
#[derive(Clone, Copy, Debug)]
pub struct ColdPool {
    /// How long starts took.
    pub learned: Option<ColdStart>,
    /// How long the present start has been under way; `None` if no start is known.
    pub starting_for: Option<Duration>,
    /// Whether anything starts replicas for this pool.
    pub starts: bool,
}

/// How a request waits.
#[derive(Clone, Copy, Debug)]
pub struct Wait {
    /// How long it can be held from now.
    pub longest: Duration,
    /// Whether another pool can serve it instead.
    pub fallback: bool,
}

impl ColdPool {
    /// The rest of a start that takes `seconds` in all. A start that has taken longer than that may
    /// end at any moment.
    fn rest(&self, seconds: f64) -> Duration {
        let all = Duration::from_secs_f64(seconds.clamp(0.0, 86_400.0));
        all.saturating_sub(self.starting_for.unwrap_or_default())
    }

    /// When the client should come back, if no replica will start in time for the request; `None`
    /// if one probably will.
    ///
    /// A fallback costs little, so even the 90th percentile of the starts has to be in time. A
    /// refusal costs the answer, so more than half of the starts have to be too late.
    #[must_use]
    pub fn cannot_start_in_time(&self, wait: Wait) -> Option<Duration> {
        let Some(learned) = self.learned else {
            return (wait.fallback && !self.starts).then_some(SOON);
        };
        let late = |seconds: f64| self.rest(seconds) > wait.longest;
        let too_late = if wait.fallback {
            late(learned.p90_seconds)
        } else {
            learned.samples >= SAMPLES && late(learned.p50_seconds)
        };
        too_late.then(|| self.rest(learned.p90_seconds).max(SOON))
    }

    /// When a client that was refused may find a replica.
    #[must_use]
    pub fn retry_after(&self) -> Duration {
        let rest = self.learned.map(|learned| self.rest(learned.p90_seconds));
        rest.unwrap_or_default().clamp(SOON, Duration::from_secs(3600))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_request_cannot_wait_if_the_learned_start_takes_longer() {
        let learned = |p50_seconds, p90_seconds, samples| {
            Some(ColdStart { p50_seconds, p90_seconds, samples })
        };
        let cold = |learned, starting_for: Option<u64>| ColdPool {
            learned,
            starting_for: starting_for.map(s),
            starts: true,
        };
        let steady = learned(60.0, 80.0, 9);
        let nothing_starts = ColdPool { starts: false, ..cold(None, None) };
        for (case, pool, longest, fallback, want) in [
            ("waits long enough", cold(steady, None), 61, false, None),
            ("gives up before most starts", cold(steady, None), 50, false, Some(80)),
            ("some starts are too late", cold(steady, None), 70, false, None),
            ("the start is under way", cold(steady, Some(20)), 50, false, None),
            ("under way, and still too late", cold(steady, Some(20)), 30, false, Some(60)),
            ("it takes longer than ever", cold(steady, Some(500)), 1, false, None),
            ("learned from too few", cold(learned(60.0, 80.0, 2), None), 1, false, None),
            ("nothing is learned", cold(None, None), 1, false, None),
            ("the fallback rather than perhaps", cold(steady, None), 70, true, Some(80)),
            ("the fallback only if needed", cold(steady, None), 90, true, None),
            ("one start is enough", cold(learned(60.0, 80.0, 1), None), 70, true, Some(80)),
            ("with a fallback, nothing is learned", cold(None, None), 1, true, None),
            ("with a fallback, nothing starts", nothing_starts, 60, true, Some(1)),
        ] {
            let wait = Wait { longest: s(longest), fallback };
            assert_eq!(pool.cannot_start_in_time(wait), want.map(s), "{case}");
        }
    }

    #[test]
    fn a_refused_client_comes_back_when_most_starts_are_over() {
        let learned = Some(ColdStart { p50_seconds: 60.0, p90_seconds: 80.0, samples: 1 });
        let after =
            |learned, starting_for| ColdPool { learned, starting_for, starts: true }.retry_after();
        assert_eq!(after(learned, None), s(80));
        assert_eq!(after(learned, Some(s(70))), s(10));
        assert_eq!((after(learned, Some(s(90))), after(None, None)), (s(1), s(1)));
    }
}

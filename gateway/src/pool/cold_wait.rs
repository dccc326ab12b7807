//! How long a request can wait, and whether waiting is in vain. Pure.
//!
//! A pool without a ready replica has a learned cold start to tell by. Where that says that a
//! request would be given up before a replica is there, it is refused at once and told when to come
//! back, or goes to the fallback: an honest answer now is worth more than a late one to nobody.

use std::time::Duration;

use forebay_signals::ColdStart;
use http::HeaderMap;
use tokio::time::Instant;

/// So many starts are learned from before anybody is refused by them.
const SAMPLES: u32 = 3;

/// What is known of a pool that has no replica ready.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cold {
    pub(crate) learned: Option<ColdStart>,
    /// Since when a start is under way, as far as is known.
    pub(crate) since: Option<Instant>,
    /// Whether anything will start one.
    pub(crate) starts: bool,
}

/// Until when a request waits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// The end of its hold.
    pub(crate) until: Instant,
    /// Another pool is asked then.
    pub(crate) elsewhere: bool,
}

impl Cold {
    /// How long it takes from now, by this quantile of the learned starts. One that takes longer
    /// than that already may be there any moment.
    fn eta(&self, seconds: f64, now: Instant) -> Duration {
        let all = Duration::from_secs_f64(seconds.clamp(0.0, 86_400.0));
        let gone = self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        all.saturating_sub(gone)
    }

    /// When to come back, if waiting is in vain.
    ///
    /// To go elsewhere costs little: the 90th percentile must be in time. To be refused costs the
    /// answer: more than half of all starts must be too late.
    pub(crate) fn in_vain(&self, patience: Patience, now: Instant) -> Option<Duration> {
        let Some(learned) = self.learned else {
            return (patience.elsewhere && !self.starts).then_some(Duration::from_secs(1));
        };
        let late = |seconds: f64| now + self.eta(seconds, now) > patience.until;
        let vain = if patience.elsewhere {
            late(learned.p90_seconds)
        } else {
            learned.samples >= SAMPLES && late(learned.p50_seconds)
        };
        vain.then(|| self.eta(learned.p90_seconds, now).max(Duration::from_secs(1)))
    }

    /// When a client that was refused may find a replica.
    pub(crate) fn retry_after(&self, now: Instant) -> Duration {
        let learned = self.learned.map(|learned| self.eta(learned.p90_seconds, now));
        learned.unwrap_or_default().clamp(Duration::from_secs(1), Duration::from_secs(3600))
    }
}

/// How long the client waits for an answer to begin, as it says itself: OpenAI's and Anthropic's
/// clients in seconds, an Envoy before us in milliseconds. `kept_alive`: it will hear from us
/// before, so that only the time for the whole counts.
pub(crate) fn told_by(headers: &HeaderMap, kept_alive: bool) -> Option<Duration> {
    let read = |name: &str, unit: f64| {
        let text = headers.get(name)?.to_str().ok()?;
        let value = text.trim().parse::<f64>().ok()? * unit;
        // What is no time at all is no deadline either.
        (value > 0.0 && value < 1e9).then(|| Duration::from_secs_f64(value))
    };
    let first_byte = [("x-stainless-timeout", 1.0), ("x-stainless-read-timeout", 1.0)];
    let first_byte = first_byte.into_iter().filter(|_| !kept_alive);
    let whole = [("x-envoy-expected-rq-timeout-ms", 0.001)];
    first_byte.chain(whole).filter_map(|(name, unit)| read(name, unit)).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn waiting_is_in_vain_when_the_learned_start_takes_longer_than_anybody_waits() {
        let now = Instant::now() + s(1000);
        let learned = |p50_seconds, p90_seconds, samples| {
            Some(ColdStart { p50_seconds, p90_seconds, samples })
        };
        let cold = |learned, gone: Option<u64>| Cold {
            learned,
            since: gone.map(|gone| now - s(gone)),
            starts: true,
        };
        let steady = learned(60.0, 80.0, 9);
        for (case, cold, patience, elsewhere, want) in [
            ("waits long enough", cold(steady, None), 61, false, None),
            ("gives up before most starts", cold(steady, None), 50, false, Some(80)),
            ("some starts are too late", cold(steady, None), 70, false, None),
            ("the start is under way", cold(steady, Some(20)), 50, false, None),
            ("under way, and still too late", cold(steady, Some(20)), 30, false, Some(60)),
            ("it takes longer than ever", cold(steady, Some(500)), 1, false, None),
            ("learned from too few", cold(learned(60.0, 80.0, 2), None), 1, false, None),
            ("nothing is learned", cold(None, None), 1, false, None),
            ("elsewhere, rather than perhaps", cold(steady, None), 70, true, Some(80)),
            ("elsewhere only when needed", cold(steady, None), 90, true, None),
            (
                "elsewhere, by one start alone",
                cold(learned(60.0, 80.0, 1), None),
                70,
                true,
                Some(80),
            ),
            ("elsewhere, unknown", cold(None, None), 1, true, None),
            (
                "elsewhere, nothing starts",
                Cold { starts: false, ..cold(None, None) },
                60,
                true,
                Some(1),
            ),
        ] {
            let patience = Patience { until: now + s(patience), elsewhere };
            assert_eq!(cold.in_vain(patience, now), want.map(s), "{case}");
        }
    }

    #[test]
    fn what_clients_say_of_their_patience_is_read() {
        for (headers, kept_alive, want) in [
            (&[][..], false, None),
            (&[("x-stainless-timeout", "600")], false, Some(600_000)),
            (&[("x-stainless-read-timeout", "2.5")], false, Some(2_500)),
            (&[("x-stainless-read-timeout", "2.5")], true, None),
            (&[("x-envoy-expected-rq-timeout-ms", "15000")], true, Some(15_000)),
            (
                &[("x-stainless-timeout", "20"), ("x-envoy-expected-rq-timeout-ms", "15000")],
                false,
                Some(15_000),
            ),
            (&[("x-stainless-timeout", "NOT_GIVEN")], false, None),
            (&[("x-stainless-timeout", "-1")], false, None),
            (&[("x-stainless-timeout", "inf")], false, None),
            (&[("x-stainless-timeout", "0")], false, None),
        ] {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.insert(*name, value.parse().expect("a value"));
            }
            let told = told_by(&map, kept_alive).map(|it| it.as_millis());
            assert_eq!(told, want, "{headers:?}");
        }
    }
}

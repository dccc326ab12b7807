//! The moment from which a held request can no longer meet its pool's objective.
//!
//! A first token comes some time after the release. A request that is released later than the
//! objective less that time is late. In an overload each request in time waits nearly until that
//! moment, so the time has to suffice for nearly all of them.

use std::time::Duration;

use forebay_signals::Histogram;

/// The share of first tokens that come within the time that is allowed for them.
const SHARE: f64 = 0.98;
/// The fewest first tokens that the time is learned from.
const ENOUGH: u64 = 100;

/// The time from release to first token that suffices for nearly all requests of late.
#[derive(Clone, Debug, Default)]
pub struct FirstTokenTime {
    /// All that was seen when the time was learned last.
    seen: Histogram,
    allowed: Duration,
}

impl FirstTokenTime {
    /// Learns from all times from release to first token so far, once there are enough new ones.
    pub fn learn(&mut self, all: &Histogram) {
        let new = all.since(&self.seen);
        if new.count() >= ENOUGH {
            self.allowed = Duration::from_secs_f64(new.quantile(SHARE).unwrap_or_default());
            self.seen = all.clone();
        }
    }

    /// The moment from which a release of a request that was accepted then is too late to send its
    /// first token within `objective`.
    #[must_use]
    pub fn late_from(&self, accepted: Duration, objective: Duration) -> Duration {
        accepted + objective.saturating_sub(self.allowed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_late_when_its_first_token_would_probably_be() {
        let (second, mut time) = (Duration::from_secs(1), FirstTokenTime::default());
        let late = |time: &FirstTokenTime| time.late_from(10 * second, 5 * second).as_secs_f64();
        assert!((late(&time) - 15.0).abs() < 1e-9, "nothing is learned");
        let mut all = Histogram::default();
        all.record_n(0.2, 99);
        time.learn(&all);
        assert!((late(&time) - 15.0).abs() < 1e-9, "too few");
        all.record_n(2.0, 10);
        time.learn(&all);
        assert!((12.7..13.4).contains(&late(&time)), "about 2 s: {}", late(&time));
        all.record_n(0.2, 200);
        time.learn(&all);
        assert!((14.7..14.9).contains(&late(&time)), "only the new ones count: {}", late(&time));
        all.record_n(60.0, 200);
        time.learn(&all);
        assert!((late(&time) - 10.0).abs() < 1e-9, "nobody is in time");
    }
}

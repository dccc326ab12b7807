//! Figures over a recent window, from counters that only grow.

use std::collections::VecDeque;

use forebay_config::Millis;
use forebay_signals::Histogram;

/// Snapshots per window: the window is too long by one part in this many at most.
const SNAPSHOTS: u64 = 20;

/// Snapshots of a growing counter, from one at least a window old up to now.
#[derive(Debug)]
struct Past<T> {
    window: Millis,
    snapshots: VecDeque<(Millis, T)>,
}

impl<T: Clone> Past<T> {
    fn over(window: Millis) -> Self {
        Self { window, snapshots: VecDeque::new() }
    }

    /// Keeps `value` if the last snapshot is old enough, and drops those that are no longer needed.
    fn observe(&mut self, now: Millis, value: &T) {
        let step = Millis::new((self.window.get() / SNAPSHOTS).max(1));
        if self.snapshots.back().is_none_or(|(at, _)| now >= *at + step) {
            self.snapshots.push_back((now, value.clone()));
        }
        let horizon = now.since(self.window);
        while self.snapshots.get(1).is_some_and(|(at, _)| *at <= horizon) {
            self.snapshots.pop_front();
        }
    }

    fn oldest(&self) -> Option<&(Millis, T)> {
        self.snapshots.front()
    }
}

/// Latencies over a window.
#[derive(Debug)]
pub(crate) struct RecentLatencies {
    past: Past<Histogram>,
    now: Histogram,
}

impl RecentLatencies {
    pub(crate) fn over(window: Millis) -> Self {
        Self { past: Past::over(window), now: Histogram::default() }
    }

    /// Records the histogram of all time.
    pub(crate) fn observe(&mut self, now: Millis, all: &Histogram) {
        self.past.observe(now, all);
        self.now.clone_from(all);
    }

    /// Whether nothing was observed yet.
    pub(crate) fn is_new(&self) -> bool {
        self.past.oldest().is_none()
    }

    /// A quantile over the window, in seconds; `None` if nothing was counted.
    pub(crate) fn quantile(&self, quantile: f64) -> Option<f64> {
        let (_, oldest) = self.past.oldest()?;
        self.now.since(oldest).quantile(quantile)
    }
}

/// A rate over a window.
#[derive(Debug)]
pub(crate) struct RecentRate {
    past: Past<u64>,
    at: Millis,
    now: u64,
}

impl RecentRate {
    pub(crate) fn over(window: Millis) -> Self {
        Self { past: Past::over(window), at: Millis::ZERO, now: 0 }
    }

    /// Records the count of all time.
    pub(crate) fn observe(&mut self, now: Millis, all: u64) {
        self.past.observe(now, &all);
        (self.at, self.now) = (now, all);
    }

    /// Whether nothing was observed yet.
    pub(crate) fn is_new(&self) -> bool {
        self.past.oldest().is_none()
    }

    /// Per second; `None` before a second was observed.
    pub(crate) fn per_second(&self) -> Option<f64> {
        let (at, oldest) = self.past.oldest()?;
        let ms = self.at.since(*at).get();
        (ms >= 1000).then(|| self.now.saturating_sub(*oldest) as f64 * 1000.0 / ms as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_of_the_window_alone() {
        let (mut recent, mut all) =
            (RecentLatencies::over(Millis::new(60_000)), Histogram::default());
        all.record_n(100.0, 1000);
        recent.observe(Millis::new(0), &all);
        assert_eq!(recent.quantile(0.95), None, "earlier latencies are not part of the window");
        for second in 1..=30 {
            all.record(1.0);
            recent.observe(Millis::new(second * 1000), &all);
        }
        let p95 = recent.quantile(0.95).expect("thirty");
        assert!((0.8..1.2).contains(&p95), "{p95}");
        for second in 31..=93 {
            recent.observe(Millis::new(second * 1000), &all);
        }
        assert_eq!(recent.quantile(0.95), None, "all of it is past");
    }

    #[test]
    fn a_rate_is_over_the_window_and_not_known_before_a_second() {
        let mut rate = RecentRate::over(Millis::new(10_000));
        rate.observe(Millis::new(0), 5000);
        assert_eq!(rate.per_second(), None);
        rate.observe(Millis::new(1000), 5100);
        assert_eq!(rate.per_second(), Some(100.0));
        for second in 2..=30 {
            rate.observe(Millis::new(second * 1000), 5100 + (second - 1) * 10);
        }
        assert_eq!(rate.per_second(), Some(10.0));
    }

    #[test]
    fn a_window_keeps_few_snapshots_however_often_it_observes() {
        let mut past = Past::over(Millis::new(60_000));
        (0..600_000).step_by(20).for_each(|ms| past.observe(Millis::new(ms), &ms));
        assert!(past.snapshots.len() as u64 <= SNAPSHOTS + 2, "{}", past.snapshots.len());
        let (at, _) = past.oldest().expect("some");
        assert!((57_000..=63_000).contains(&(599_980 - at.get())), "{at}");
    }
}

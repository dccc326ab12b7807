//! Figures over the last while, of counts that only grow.

use std::collections::VecDeque;

use forebay_signals::Histogram;

/// Snapshots kept over a window: it is this much of itself too long at most.
const SNAPSHOTS: u64 = 20;

/// Snapshots of something that only grows, from one at least a window old up to now.
#[derive(Debug)]
struct Past<T> {
    window_ms: u64,
    snapshots: VecDeque<(u64, T)>,
}

impl<T: Clone> Past<T> {
    fn over(window_ms: u64) -> Self {
        Self { window_ms, snapshots: VecDeque::new() }
    }

    /// Keeps `now`, where the last snapshot is old enough. The one that is a window old, or else the
    /// oldest.
    fn observe(&mut self, now_ms: u64, now: &T) {
        let step = self.window_ms / SNAPSHOTS;
        if self.snapshots.back().is_none_or(|(at, _)| now_ms >= at + step.max(1)) {
            self.snapshots.push_back((now_ms, now.clone()));
        }
        let horizon = now_ms.saturating_sub(self.window_ms);
        while self.snapshots.get(1).is_some_and(|(at, _)| *at <= horizon) {
            self.snapshots.pop_front();
        }
    }

    fn oldest(&self) -> Option<&(u64, T)> {
        self.snapshots.front()
    }
}

/// Latencies over a window.
#[derive(Debug)]
pub(crate) struct Latencies {
    past: Past<Histogram>,
    now: Histogram,
}

impl Latencies {
    pub(crate) fn over(window_ms: u64) -> Self {
        Self { past: Past::over(window_ms), now: Histogram::default() }
    }

    /// Takes the histogram of all time.
    pub(crate) fn observe(&mut self, now_ms: u64, all: &Histogram) {
        self.past.observe(now_ms, all);
        self.now.clone_from(all);
    }

    /// Nothing was observed yet.
    pub(crate) fn is_new(&self) -> bool {
        self.past.oldest().is_none()
    }

    /// A quantile over the window, in seconds; `None` where nothing was counted.
    pub(crate) fn quantile(&self, quantile: f64) -> Option<f64> {
        let (_, oldest) = self.past.oldest()?;
        self.now.since(oldest).quantile(quantile)
    }
}

/// A rate over a window.
#[derive(Debug)]
pub(crate) struct Rate {
    past: Past<u64>,
    now_ms: u64,
    now: u64,
}

impl Rate {
    pub(crate) fn over(window_ms: u64) -> Self {
        Self { past: Past::over(window_ms), now_ms: 0, now: 0 }
    }

    /// Takes the count of all time.
    pub(crate) fn observe(&mut self, now_ms: u64, all: u64) {
        self.past.observe(now_ms, &all);
        (self.now_ms, self.now) = (now_ms, all);
    }

    /// Nothing was observed yet.
    pub(crate) fn is_new(&self) -> bool {
        self.past.oldest().is_none()
    }

    /// By the second; `None` before a second was seen.
    pub(crate) fn per_second(&self) -> Option<f64> {
        let (at, oldest) = self.past.oldest()?;
        let ms = self.now_ms.saturating_sub(*at);
        (ms >= 1000).then(|| self.now.saturating_sub(*oldest) as f64 * 1000.0 / ms as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_of_the_window_alone() {
        let (mut recent, mut all) = (Latencies::over(60_000), Histogram::default());
        all.record_n(100.0, 1000);
        recent.observe(0, &all);
        assert_eq!(recent.quantile(0.95), None, "what was before is not of the window");
        for second in 1..=30 {
            all.record(1.0);
            recent.observe(second * 1000, &all);
        }
        let p95 = recent.quantile(0.95).expect("thirty");
        assert!((0.8..1.2).contains(&p95), "{p95}");
        for second in 31..=93 {
            recent.observe(second * 1000, &all);
        }
        assert_eq!(recent.quantile(0.95), None, "all of it is past");
    }

    #[test]
    fn a_rate_is_over_the_window_and_not_known_before_a_second() {
        let mut rate = Rate::over(10_000);
        rate.observe(0, 5000);
        assert_eq!(rate.per_second(), None);
        rate.observe(1000, 5100);
        assert_eq!(rate.per_second(), Some(100.0));
        for second in 2..=30 {
            rate.observe(second * 1000, 5100 + (second - 1) * 10);
        }
        assert_eq!(rate.per_second(), Some(10.0));
    }

    #[test]
    fn a_window_holds_few_snapshots_however_often_it_is_told() {
        let mut past = Past::over(60_000);
        (0..600_000).step_by(20).for_each(|ms| past.observe(ms, &ms));
        assert!(past.snapshots.len() as u64 <= SNAPSHOTS + 2, "{}", past.snapshots.len());
        let (at, _) = past.oldest().expect("some");
        assert!((57_000..=63_000).contains(&(599_980 - at)), "{at}");
    }
}

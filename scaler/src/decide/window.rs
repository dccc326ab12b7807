//! A load as a step function of time, and its mean over a window.

use std::collections::VecDeque;

/// The load since some time, oldest first, no older than needed.
#[derive(Clone, Debug, Default)]
pub struct Window {
    steps: VecDeque<(u64, u32)>,
}

impl Window {
    /// The load is `value` from `now_ms` on. Forgets what is over before `keep_ms` ago.
    pub fn record(&mut self, now_ms: u64, value: u32, keep_ms: u64) {
        match self.steps.back_mut() {
            Some((at, last)) if *at == now_ms => *last = value,
            Some((_, last)) if *last == value => {}
            _ => self.steps.push_back((now_ms, value)),
        }
        let horizon = now_ms.saturating_sub(keep_ms);
        while self.steps.len() > 1 && self.steps[1].0 <= horizon {
            self.steps.pop_front();
        }
    }

    /// The mean over the last `window_ms`, weighted by time; over what is known, where that is
    /// less. The present value, where nothing has lasted yet.
    #[must_use]
    pub fn mean(&self, now_ms: u64, window_ms: u64) -> f64 {
        let Some((first, _)) = self.steps.front() else { return 0.0 };
        let from = now_ms.saturating_sub(window_ms).max(*first);
        let (mut sum, mut until) = (0.0, now_ms);
        for (at, value) in self.steps.iter().rev() {
            let start = (*at).max(from);
            sum += f64::from(*value) * until.saturating_sub(start) as f64;
            until = start;
            if *at <= from {
                break;
            }
        }
        match now_ms.saturating_sub(from) {
            0 => self.steps.back().map_or(0.0, |(_, value)| f64::from(*value)),
            length => sum / length as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_is_weighted_by_time() {
        let mut window = Window::default();
        window.record(0, 10, 60_000);
        assert!((window.mean(0, 1000) - 10.0).abs() < 1e-9, "nothing has lasted yet");
        window.record(1000, 0, 60_000);
        for (case, now, length, want) in [
            ("half and half", 2000, 2000, 5.0),
            ("only the last second", 2000, 1000, 0.0),
            ("more than is known", 2000, 60_000, 5.0),
            ("a tenth", 10_000, 10_000, 1.0),
            ("gone", 70_000, 60_000, 0.0),
        ] {
            assert!(
                (window.mean(now, length) - want).abs() < 1e-9,
                "{case}: {}",
                window.mean(now, length)
            );
        }
    }
}

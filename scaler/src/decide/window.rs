//! A load as a step function of time, and its mean over a window.

use std::collections::VecDeque;

use forebay_config::Millis;

/// Load steps, oldest first, no older than needed.
#[derive(Clone, Debug, Default)]
pub struct Window {
    steps: VecDeque<(Millis, u32)>,
}

impl Window {
    /// Records the load from `now` on. Forgets steps that ended before `keep` ago.
    pub fn record(&mut self, now: Millis, value: u32, keep: Millis) {
        match self.steps.back_mut() {
            Some((at, last)) if *at == now => *last = value,
            Some((_, last)) if *last == value => {}
            _ => self.steps.push_back((now, value)),
        }
        let horizon = now.since(keep);
        while self.steps.len() > 1 && self.steps[1].0 <= horizon {
            self.steps.pop_front();
        }
    }

    /// The mean over the last `window`, weighted by time. Where less is known, the mean over that;
    /// where nothing has lasted yet, the current value.
    #[must_use]
    pub fn mean(&self, now: Millis, window: Millis) -> f64 {
        let Some((first, _)) = self.steps.front() else { return 0.0 };
        let from = now.since(window).max(*first);
        let (mut sum, mut until) = (0.0, now);
        for (at, value) in self.steps.iter().rev() {
            let start = (*at).max(from);
            sum += f64::from(*value) * until.since(start).get() as f64;
            until = start;
            if *at <= from {
                break;
            }
        }
        match now.since(from).get() {
            0 => self.steps.back().map_or(0.0, |(_, value)| f64::from(*value)),
            length => sum / length as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Millis = Millis::from_secs(60);

    #[test]
    fn the_mean_is_weighted_by_time() {
        let mut window = Window::default();
        window.record(Millis::ZERO, 10, MINUTE);
        assert!(
            (window.mean(Millis::ZERO, Millis::new(1000)) - 10.0).abs() < 1e-9,
            "nothing has lasted yet"
        );
        window.record(Millis::new(1000), 0, MINUTE);
        for (case, now, length, want) in [
            ("half and half", 2000, 2000, 5.0),
            ("only the last second", 2000, 1000, 0.0),
            ("more than is known", 2000, 60_000, 5.0),
            ("a tenth", 10_000, 10_000, 1.0),
            ("gone", 70_000, 60_000, 0.0),
        ] {
            let (now, length) = (Millis::new(now), Millis::new(length));
            assert!(
                (window.mean(now, length) - want).abs() < 1e-9,
                "{case}: {}",
                window.mean(now, length)
            );
        }
    }
}

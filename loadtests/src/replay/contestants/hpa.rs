//! Kubernetes' HorizontalPodAutoscaler on one external metric, with its default behaviour.
//!
//! Per sync: `ratio = usage / (target · current)`; within the tolerance the count is kept,
//! otherwise ⌈usage / target⌉. Then: no stabilization upwards, the highest recommendation of 300 s
//! downwards; up by at most the larger of 100 % and 4 pods in 15 s, down by at most 100 % in 15 s.

use std::collections::VecDeque;

use crate::replay::trace::{SECOND, Us};

pub(crate) const SYNC: Us = 15 * SECOND;
const TOLERANCE: f64 = 0.1;
const DOWN_WINDOW: Us = 300 * SECOND;
const UP_PERIOD: Us = 15 * SECOND;
const UP_PODS: u32 = 4;

/// The controller's state of one workload.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hpa {
    recommendations: VecDeque<(Us, u32)>,
    /// Pods added, and when.
    added: VecDeque<(Us, u32)>,
}

impl Hpa {
    /// One sync: returns the count from now on.
    pub(crate) fn sync(
        &mut self,
        now: Us,
        current: u32,
        usage: f64,
        target: f64,
        (min, max): (u32, u32),
    ) -> u32 {
        let proposed = proposal(current, usage, target);
        // Downwards: the highest of the window, this one included.
        self.recommendations.push_back((now, proposed));
        while self.recommendations.front().is_some_and(|(at, _)| *at + DOWN_WINDOW < now) {
            self.recommendations.pop_front();
        }
        let highest =
            self.recommendations.iter().map(|(_, count)| *count).max().unwrap_or(proposed);
        let stabilized = if proposed >= current { proposed } else { highest.min(current) };
        while self.added.front().is_some_and(|(at, _)| *at + UP_PERIOD <= now) {
            self.added.pop_front();
        }
        let added: u32 = self.added.iter().map(|(_, count)| *count).sum();
        let start = current.saturating_sub(added);
        let most = (start * 2).max(start + UP_PODS).max(current);
        let count = stabilized.min(most).clamp(min.max(1), max.max(1));
        if count > current {
            self.added.push_back((now, count - current));
        }
        count
    }
}

/// The count that the metric alone asks for.
fn proposal(current: u32, usage: f64, target: f64) -> u32 {
    let ratio = usage / (target * f64::from(current.max(1)));
    if (1.0 - TOLERANCE..=1.0 + TOLERANCE).contains(&ratio) {
        current
    } else {
        (usage / target).ceil() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_average_value_is_divided_by_the_target_outside_the_tolerance() {
        for (case, current, usage, want) in [
            ("exactly", 4, 20.0, 4),
            ("within a tenth", 4, 22.0, 4),
            ("just outside", 4, 22.1, 5),
            ("much more", 1, 100.0, 20),
            ("a little less", 4, 18.0, 4),
            ("nothing", 4, 0.0, 0),
        ] {
            assert_eq!(proposal(current, usage, 5.0), want, "{case}");
        }
    }

    #[test]
    fn from_one_the_count_goes_up_by_five_ten_twenty() {
        let mut hpa = Hpa::default();
        let mut current = 1;
        let counts: Vec<_> = (0..4u64)
            .map(|i| {
                current = hpa.sync(i * SYNC, current, 1_000.0, 5.0, (1, 100));
                current
            })
            .collect();
        assert_eq!(counts, [5, 10, 20, 40]);
    }

    #[test]
    fn pods_added_in_the_period_count_against_the_next_step() {
        let mut hpa = Hpa::default();
        assert_eq!(hpa.sync(0, 1, 1_000.0, 5.0, (1, 100)), 5);
        assert_eq!(hpa.sync(5 * SECOND, 5, 1_000.0, 5.0, (1, 100)), 5, "within 15 s");
    }

    #[test]
    fn the_count_goes_down_only_to_the_highest_of_five_minutes() {
        let mut hpa = Hpa::default();
        assert_eq!(hpa.sync(0, 8, 40.0, 5.0, (1, 100)), 8);
        for at in 1..=20 {
            assert_eq!(hpa.sync(at * SYNC, 8, 0.0, 5.0, (1, 100)), 8, "after {at} syncs");
        }
        assert_eq!(hpa.sync(21 * SYNC, 8, 0.0, 5.0, (1, 100)), 1);
    }
}

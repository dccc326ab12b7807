//! Value and threshold → count, as the HPA computes it for an external metric.

use forebay_config::{MetricType, Scaling};

/// The deviation from the threshold, as a share of it, up to which the count does not change.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Above the threshold.
    pub up: f64,
    /// Below the threshold.
    pub down: f64,
}

impl Default for Tolerance {
    /// The HPA's default.
    fn default() -> Self {
        Self { up: 0.1, down: 0.1 }
    }
}

impl Tolerance {
    /// The tolerance of the pool's `behavior`.
    #[must_use]
    pub fn of(scaling: &Scaling) -> Self {
        let default = Self::default();
        let Some(behavior) = scaling.behavior() else { return default };
        let up = behavior.scale_up.as_ref().and_then(|rules| rules.tolerance);
        let down = behavior.scale_down.as_ref().and_then(|rules| rules.tolerance);
        Self { up: up.unwrap_or(default.up), down: down.unwrap_or(default.down) }
    }

    fn holds(self, ratio: f64) -> bool {
        // A tiny amount more, since 1.1 has no exact binary form.
        (1.0 - self.down - 1e-9..=1.0 + self.up + 1e-9).contains(&ratio)
    }
}

/// The replicas that a value is related to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplicaCounts {
    /// Requested at present.
    pub current: u32,
    /// Those of them that take requests.
    pub ready: u32,
}

/// Replicas for `value`, which is finite, before rounding up. Within the tolerance it is the current
/// count. `None` for a `Value` without a ready replica.
pub(super) fn needed(
    value: f64,
    threshold: f64,
    metric_type: MetricType,
    replicas: ReplicaCounts,
    tolerance: Tolerance,
) -> Option<f64> {
    let ReplicaCounts { current, ready } = replicas;
    let value = value.max(0.0);
    let (ratio, needed) = match metric_type {
        MetricType::AverageValue => (value / (threshold * f64::from(current)), value / threshold),
        MetricType::Value if ready == 0 => return None,
        MetricType::Value => (value / threshold, value / threshold * f64::from(ready)),
    };
    Some(if current > 0 && tolerance.holds(ratio) { f64::from(current) } else { needed })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::decide::proposal::round_up;
    use MetricType::{AverageValue, Value};

    fn count(
        value: f64,
        threshold: f64,
        metric_type: MetricType,
        replicas: ReplicaCounts,
        tolerance: Tolerance,
    ) -> Option<u32> {
        needed(value, threshold, metric_type, replicas, tolerance).map(round_up)
    }

    #[test]
    fn counts_are_the_ones_that_an_hpa_computes() {
        for (case, metric_type, value, threshold, current, ready, want) in [
            ("one for each five, rounded up", AverageValue, 11.0, 5.0, 1, 1, Some(3)),
            ("nothing asks for nothing", AverageValue, 0.0, 5.0, 3, 3, Some(0)),
            ("the ready ones don't matter", AverageValue, 30.0, 5.0, 2, 0, Some(6)),
            ("from zero", AverageValue, 1.0, 5.0, 0, 0, Some(1)),
            ("10 % more is tolerated", AverageValue, 55.0, 5.0, 10, 10, Some(10)),
            ("a little over that is not", AverageValue, 55.1, 5.0, 10, 10, Some(12)),
            ("10 % less is tolerated", AverageValue, 45.0, 5.0, 10, 10, Some(10)),
            ("less than that is not", AverageValue, 44.9, 5.0, 10, 10, Some(9)),
            ("twice the latency, twice the ready", Value, 4.0, 2.0, 3, 3, Some(6)),
            ("only ready ones are multiplied", Value, 4.0, 2.0, 5, 2, Some(4)),
            ("tolerated, all stay", Value, 2.2, 2.0, 5, 2, Some(5)),
            ("half the latency, half the replicas", Value, 1.0, 2.0, 4, 4, Some(2)),
            ("nothing to multiply", Value, 100.0, 2.0, 3, 0, None),
            ("exact multiples don't ask for one more", AverageValue, 0.3, 0.1, 0, 0, Some(3)),
            ("below zero is nothing", AverageValue, -3.0, 5.0, 2, 2, Some(0)),
            ("too large for a count", AverageValue, 1e300, 1.0, 2, 2, Some(u32::MAX)),
        ] {
            let got = count(
                value,
                threshold,
                metric_type,
                ReplicaCounts { current, ready },
                Tolerance::default(),
            );
            assert_eq!(got, want, "{case}");
        }
    }

    #[test]
    fn tolerance_is_by_direction() {
        let tolerance = Tolerance { up: 0.0, down: 0.5 };
        let at = |value| {
            count(value, 1.0, AverageValue, ReplicaCounts { current: 10, ready: 10 }, tolerance)
        };
        assert_eq!((at(10.5), at(10.0), at(5.0), at(4.9)), (Some(11), Some(10), Some(10), Some(5)));
    }

    proptest! {
        #[test]
        fn a_higher_value_never_asks_for_fewer(
            value in 0.0..1e6_f64, more in 0.0..1e6_f64, threshold in 0.01..1e4_f64,
            current in 0..500_u32, ready in 0..500_u32, average: bool,
        ) {
            // Replicas that are on their way are within `current`.
            let replicas = ReplicaCounts { current: current.max(ready), ready };
            let metric_type = if average { AverageValue } else { Value };
            let at = |value| count(value, threshold, metric_type, replicas, Tolerance::default());
            // With some replicas not ready, `Value` is not monotone around the threshold; nor is the HPA's.
            prop_assume!(average || replicas.current == ready);
            prop_assert!(at(value) <= at(value + more));
        }
    }
}

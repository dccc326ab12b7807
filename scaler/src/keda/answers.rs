//! The answers to KEDA about a pool, computed from the pool's state. Pure.

use forebay_signals::{Figure, PoolReplicas};

use super::metadata::{Ask, Question};
use super::proto::{MetricSpec, MetricValue};

/// The metric's name if the ScaledObject names none: the decided count.
pub(crate) const DESIRED: &str = "desiredReplicas";

/// The name of the metric that a trigger asks for. KEDA prefixes it with the trigger's number.
pub(crate) fn name(ask: &Ask) -> &'static str {
    match ask {
        Ask::Desired { .. } => DESIRED,
        Ask::Signal { figure, .. } => figure.name(),
    }
}

/// Whether the workload must not be at zero.
///
/// The leader's decision counts for every trigger: it is inactive only when every gateway has closed
/// its gate and nothing is held or in flight. A signal over its activation threshold adds to that.
pub(crate) fn active(question: &Question, pool: &PoolReplicas) -> bool {
    let over = match question.ask {
        Ask::Desired { .. } => false,
        Ask::Signal { figure, activation, .. } => {
            pool.figures.get(&figure).is_some_and(|value| *value > activation)
        }
    };
    pool.active || over
}

/// The metric with its threshold; `None` while the threshold is unknown.
pub(crate) fn spec(question: &Question, pool: &PoolReplicas) -> Option<MetricSpec> {
    let threshold = match question.ask {
        Ask::Desired { .. } => 1.0,
        Ask::Signal { threshold: Some(threshold), .. } => threshold,
        Ask::Signal { threshold: None, .. } => pool.target_concurrency.filter(|n| *n > 0.0)?,
    };
    Some(MetricSpec {
        metric_name: name(&question.ask).to_owned(),
        target_size: whole(threshold),
        target_size_float: threshold,
    })
}

/// The metric's value; `None` if nothing measures it.
pub(crate) fn value(question: &Question, pool: &PoolReplicas) -> Option<MetricValue> {
    let value = match question.ask {
        Ask::Desired { tolerance } => seen_by_hpa(pool.desired, current(pool), tolerance),
        Ask::Signal { figure, has_source, .. } => match pool.figures.get(&figure) {
            Some(value) => *value,
            None if has_source => unmeasured(question, figure, pool)?,
            None => return None,
        },
    };
    Some(MetricValue {
        metric_name: name(&question.ask).to_owned(),
        metric_value: whole(value),
        // Zero for zero: KEDA reads the float only if it is more.
        metric_value_float: value.max(0.0),
    })
}

/// The value for a signal that was not measured yet, such as the TTFT before the first answer: the
/// one that makes the HPA keep its count. Zero would ask for fewer replicas, and an error would keep
/// the HPA from scaling down by any other metric.
fn unmeasured(question: &Question, figure: Figure, pool: &PoolReplicas) -> Option<f64> {
    let threshold = spec(question, pool)?.target_size_float;
    Some(match figure {
        Figure::Ttft | Figure::Itl | Figure::KvCache | Figure::GpuUtilization => threshold,
        // The HPA divides these by the replicas.
        Figure::QueueDepth | Figure::Concurrency | Figure::TokensPerSecond => {
            threshold * f64::from(current(pool).max(1))
        }
    })
}

/// The replicas that a workload's status counts: those that are not draining.
pub(crate) fn current(pool: &PoolReplicas) -> u32 {
    let stays = |replica: &&forebay_signals::Replica| {
        replica.state != forebay_signals::ReplicaState::Draining
    };
    pool.replicas.values().flatten().filter(stays).count() as u32
}

/// A value from which the HPA computes at least `desired`.
///
/// The HPA takes ⌈value⌉ replicas, but changes nothing while value ÷ current is within `tolerance` of
/// 1: with 10 replicas it ignores 11. So a higher count is raised to just above that band: held
/// requests are worth one replica too many. A lower count is lowered below the band only if ⌈value⌉
/// stays the same, so never below the decision; the HPA itself tolerates a tenth too many.
pub(crate) fn seen_by_hpa(desired: u32, current: u32, tolerance: f64) -> f64 {
    /// Distance from the edge of the band, so that no rounding puts the value back inside.
    const PAST: f64 = 1e-3;
    let (value, now) = (f64::from(desired), f64::from(current));
    if desired > current && current > 0 {
        return value.max(now * (1.0 + tolerance) + PAST);
    }
    let below = now * (1.0 - tolerance) - PAST;
    if desired > 0 && desired < current && below < value && below > value - 1.0 {
        return below;
    }
    value
}

/// Rounded up, for a KEDA that reads whole numbers only.
fn whole(value: f64) -> i64 {
    value.max(0.0).ceil() as i64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::decide::triggers::Tolerance;
    use crate::decide::triggers::hpa::average_value;

    /// The HPA's count for an `AverageValue` of 1.
    fn hpa(value: f64, current: u32, tolerance: f64) -> u32 {
        let tolerance = Tolerance { up: tolerance, down: tolerance };
        let usage = (value * 1000.0).ceil() as i64;
        average_value(current, 1000, usage, tolerance).unsigned_abs()
    }

    #[test]
    fn a_change_within_the_hpas_tolerance_still_has_an_effect() {
        for (case, desired, current, tolerance, want) in [
            ("10 → 11 takes effect, with one more", 11, 10, 0.1, 12),
            ("exactly, without a tolerance", 11, 10, 0.0, 11),
            ("outside the band nothing is added", 12, 10, 0.1, 12),
            ("2 → 3", 3, 2, 0.1, 3),
            ("100 → 101", 101, 100, 0.1, 111),
            ("down by one of ten", 9, 10, 0.1, 9),
            ("down by one of twenty would be two: kept", 19, 20, 0.1, 20),
            ("steady", 10, 10, 0.1, 10),
            ("down to one", 1, 10, 0.1, 1),
        ] {
            let value = seen_by_hpa(desired, current, tolerance);
            assert_eq!(hpa(value, current, tolerance), want, "{case}: {value}");
        }
    }

    proptest! {
        #[test]
        fn the_hpa_never_lands_below_the_decision(
            desired in 1..2_000u32, current in 1..2_000u32, tenths in 0..4u32,
        ) {
            let tolerance = f64::from(tenths) / 10.0;
            let got = hpa(seen_by_hpa(desired, current, tolerance), current, tolerance);
            prop_assert!(got >= desired, "{got}");
            // At most the band and one more.
            let most = f64::from(desired.max(current)) * (1.0 + tolerance) + 1.0;
            prop_assert!(f64::from(got) <= most, "{got}");
            if desired != current && tenths == 0 {
                prop_assert_eq!(got, desired);
            }
        }
    }
}

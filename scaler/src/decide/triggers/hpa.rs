//! The HPA's replica calculator for external metrics, transcribed from Kubernetes 1.36
//! (`pkg/controller/podautoscaler/replica_calculator.go`), to compare ours with.
//!
//! As in the original, usage and targets are in thousandths.

use super::Tolerance;

/// `Tolerances.isWithin`.
fn is_within(tolerance: Tolerance, ratio: f64) -> bool {
    (1.0 - tolerance.down) <= ratio && ratio <= (1.0 + tolerance.up)
}

/// `GetExternalMetricReplicas`: a target of type `Value`.
pub(crate) fn value(
    current: u32,
    target: i64,
    usage: i64,
    tolerance: Tolerance,
    ready: u32,
) -> i32 {
    let ratio = usage as f64 / target as f64;
    if current == 0 {
        return ratio.ceil() as i32;
    }
    if is_within(tolerance, ratio) {
        return current.cast_signed();
    }
    (ratio * f64::from(ready)).ceil() as i32
}

/// `GetExternalPerPodMetricReplicas`: a target of type `AverageValue`.
pub(crate) fn average_value(current: u32, target: i64, usage: i64, tolerance: Tolerance) -> i32 {
    let ratio = usage as f64 / (target as f64 * f64::from(current));
    if is_within(tolerance, ratio) {
        return current.cast_signed();
    }
    (usage as f64 / target as f64).ceil() as i32
}

/// Whether rounding errors in the original's floats move the count, or the edge of the tolerance:
/// 1.1 × 10 is a bit more than 11 there, and so 12 replicas.
pub(crate) fn is_a_hair_off(
    current: u32,
    target: i64,
    usage: i64,
    tolerance: Tolerance,
    ready: u32,
) -> bool {
    let near = |a: f64, b: f64| a != b && (a - b).abs() < 1e-6;
    let ratio = usage as f64 / target as f64;
    let each = ratio / f64::from(current.max(1));
    let edges = [1.0 + tolerance.up, 1.0 - tolerance.down];
    let edge = edges.into_iter().any(|edge| near(edge, ratio) || near(edge, each));
    let whole = |count: f64| near(count, count.round());
    edge || whole(ratio * f64::from(ready)) || whole(ratio)
}

//! Queries that never wake a workload from zero, since only its replicas could.

use super::names;
use super::promql::{self, Expr, Read};
use super::{Context, Notes, TriggerReader};
use crate::types::trigger::{Rule, Signal, Trigger};

/// The result of a query while there are no replicas.
#[derive(Clone, Copy, Debug, PartialEq)]
enum AtZero {
    /// Nothing, or nothing but zeros.
    Silent,
    Value(f64),
    /// Anything: other programs export it.
    Unknown,
}

fn at_zero(expr: &Expr) -> AtZero {
    match expr {
        Expr::Number(number) => AtZero::Value(*number),
        Expr::Text => AtZero::Unknown,
        Expr::Series { name, .. } if names::of_replicas(name) => AtZero::Silent,
        Expr::Series { .. } => AtZero::Unknown,
        Expr::Range(inner) => at_zero(inner),
        Expr::Call { function, arguments } => match function.as_str() {
            "absent" | "absent_over_time" => match arguments.first().map(at_zero) {
                Some(AtZero::Silent) => AtZero::Value(1.0),
                _ => AtZero::Unknown,
            },
            "vector" | "scalar" => arguments.first().map_or(AtZero::Unknown, at_zero),
            _ if arguments.iter().any(|argument| at_zero(argument) == AtZero::Silent) => {
                AtZero::Silent
            }
            _ => AtZero::Unknown,
        },
        Expr::Aggregate { operator, argument, .. } => {
            match (operator.as_str(), at_zero(argument)) {
                (_, AtZero::Silent) => AtZero::Silent,
                ("sum" | "avg" | "min" | "max", known) => known,
                _ => AtZero::Unknown,
            }
        }
        Expr::Binary { operator, left, right, .. } => {
            match (operator.as_str(), at_zero(left), at_zero(right)) {
                ("or", AtZero::Silent, right) => right,
                ("or" | "unless", left, _) => left,
                // A series that one side lacks is not in the result.
                (_, AtZero::Silent, _) | (_, _, AtZero::Silent) => AtZero::Silent,
                _ => AtZero::Unknown,
            }
        }
    }
}

fn never_wakes(expr: &Expr, activation_threshold: f64) -> bool {
    match at_zero(expr) {
        AtZero::Silent => activation_threshold >= 0.0,
        AtZero::Value(value) => value <= activation_threshold,
        AtZero::Unknown => false,
    }
}

/// At zero replicas the metrics that only replicas export are missing.
pub(super) fn lint(
    context: &Context<'_>,
    at: usize,
    expr: &Expr,
    trigger: &Trigger,
    rule: &Rule,
    notes: &mut Notes<'_>,
) {
    if context.idle.or(context.min) != Some(0) || !never_wakes(expr, rule.activation_threshold) {
        return;
    }
    let metrics = expr.metrics();
    let Some(metric) = metrics.iter().find(|metric| names::of_replicas(metric)) else { return };
    let others = context.triggers.iter().zip(context.rules).enumerate();
    let wakes = |other: &Trigger, rule: Option<&Rule>| match other.kind.as_str() {
        "prometheus" => rule.is_some_and(|rule| match &rule.signal {
            Signal::Prometheus(query) => match promql::read(&query.query) {
                Read::Query(expr, _) => !never_wakes(&expr, rule.activation_threshold),
                _ => false,
            },
            _ => false,
        }),
        // KEDA's triggers for the replicas' own load.
        "cpu" | "memory" | "kvCache" => false,
        kind => !kind.starts_with("gpu"),
    };
    let mut others = others.filter(|(other, _)| *other != at).map(|(_, pair)| pair);
    if others.any(|(other, rule)| wakes(other, rule.as_ref())) {
        return;
    }
    let why = if metric.ends_with("num_requests_running") {
        "no request can be running at zero replicas"
    } else {
        "it is exported by the replicas, and at zero there are none"
    };
    let message = match context.reader {
        TriggerReader::Keda { .. } => format!(
            "{metric} is silent at zero replicas ({why}), so this never wakes the first one; go \
             by requests that are held in front"
        ),
        // A held request wakes the pool, so only a trigger that should do more is worth a warning.
        TriggerReader::Forebay { .. } if trigger.metadata.contains_key("activationThreshold") => {
            format!(
                "{metric} is silent at zero replicas ({why}), so that this never wakes the pool; a held \
             request does, whatever the trigger says"
            )
        }
        TriggerReader::Forebay { .. } => return,
    };
    notes.say(&["metadata", "query"], message);
}

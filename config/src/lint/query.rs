//! Warnings about a `prometheus` trigger's query together with its threshold.

use super::names::{self, MetricKind};
use super::promql::{self, Expr, Read};
use super::series::{self, Count};
use super::{Context, Notes, waking};
use crate::types::trigger::{MetricType, PromQuery, Rule, Trigger};

/// Functions that keep a value, or nearly.
const WRAPPERS: [&str; 9] =
    ["round", "ceil", "floor", "clamp", "clamp_min", "clamp_max", "abs", "sort", "scalar"];
/// Functions over a range of a gauge.
const OVER_TIME: [&str; 6] = [
    "avg_over_time",
    "max_over_time",
    "min_over_time",
    "last_over_time",
    "quantile_over_time",
    "sum_over_time",
];
/// Functions that count a counter's growth.
const GROWTH: [&str; 3] = ["rate", "irate", "increase"];

pub(super) fn lint(
    context: &Context<'_>,
    at: usize,
    trigger: &Trigger,
    rule: &Rule,
    query: &PromQuery,
    notes: &mut Notes<'_>,
) {
    let (expr, kind) = match promql::read(&query.query) {
        Read::Query(expr, kind) => (expr, kind),
        Read::Refused(why) => return refused(context, query, &why, notes),
        Read::Unknown => return,
    };
    let before = notes.remarks.len();
    kind_of_result(context, query, kind, notes);
    names(&expr, notes);
    functions(&expr, notes);
    quantiles(&expr, notes);
    number_of_series(&expr, notes);
    // With a formula the HPA compares no trigger with its own threshold.
    if !context.is_composite() {
        bounds(&expr, trigger, rule, notes);
        if rule.metric_type == MetricType::AverageValue {
            averages(&expr, rule.threshold, notes);
        }
        direction(&expr, rule.threshold, notes);
        waking::lint(context, at, &expr, trigger, rule, notes);
    }
    let faulty = notes.remarks.len() > before;
    if faulty
        && !context.is_composite()
        && let Some(message) = instead(&expr, rule.threshold)
    {
        notes.say(&["type"], message);
    }
}

/// A query that Prometheus refuses. Other servers accept more.
fn refused(context: &Context<'_>, query: &PromQuery, why: &str, notes: &mut Notes<'_>) {
    let field = &["metadata", "query"];
    let message = format!("can't be read as PromQL: {why}");
    let server = query.server_address.as_deref().unwrap_or_default();
    let other =
        ["victoria", "vmselect", "vmsingle", "/select/"].iter().any(|mark| server.contains(mark));
    if context.is_keda() && !other {
        notes.error(
            field,
            format!("{message}; Prometheus refuses it, and the trigger has no figure"),
        );
    } else {
        notes.say(field, message);
    }
}

/// KEDA reads only vectors.
fn kind_of_result(
    context: &Context<'_>,
    query: &PromQuery,
    kind: promql::ResultKind,
    notes: &mut Notes<'_>,
) {
    let field = &["metadata", "query"];
    if !context.is_keda() {
        return;
    }
    match kind {
        promql::ResultKind::Vector => {}
        promql::ResultKind::Scalar => {
            notes.error(field, "gives a scalar, which KEDA can't read; write vector(…) around it");
        }
        promql::ResultKind::Text => notes.error(field, "gives text, not a figure"),
        promql::ResultKind::Range if query.ignore_null_values => notes.say(
            field,
            "gives a range of values, which KEDA can't read and takes for 0; take the last value by \
             leaving out the brackets, or write max_over_time(…) around it",
        ),
        promql::ResultKind::Range => notes.error(
            field,
            "gives a range of values, which KEDA can't read; take the last value by leaving out the \
             brackets, or write max_over_time(…) around it",
        ),
    }
}

fn names(expr: &Expr, notes: &mut Notes<'_>) {
    let mut known: Vec<&str> = Vec::new();
    for metric in expr.metrics() {
        if !known.contains(&metric)
            && let Some(fault) = names::fault(metric)
        {
            notes.say(&["metadata", "query"], fault);
        }
        known.push(metric);
    }
}

/// Functions of growth need counters, and counters are read by their growth alone.
fn functions(expr: &Expr, notes: &mut Notes<'_>) {
    let mut found = Vec::new();
    expr.walk(&mut |part, above| {
        let Expr::Series { name, .. } = part else { return };
        let called = above.iter().rev().find_map(|outer| match outer {
            Expr::Call { function, .. } => Some(function.as_str()),
            _ => None,
        });
        let ranged = matches!(above.last(), Some(Expr::Range(_)));
        match (names::kind(name), called) {
            (Some(MetricKind::Gauge), Some(function)) if ranged && GROWTH.contains(&function) => {
                found.push(format!(
                    "{function}() counts how much a counter grew, and {name} is a gauge, which goes up \
                     and down: the result means nothing; write max_over_time() or avg_over_time()"
                ));
            }
            (Some(MetricKind::Counter), _) if !ranged && counts_as_value(above) => {
                found.push(format!(
                    "{name} is a counter, which only grows, so this stays above any threshold; \
                     write rate({name}[2m])"
                ));
            }
            _ => {}
        }
    });
    for message in found {
        notes.say(&["metadata", "query"], message);
    }
}

/// Whether a counter's own value makes the result: neither a mean (`_sum / _count`) nor a count of
/// series.
fn counts_as_value(above: &[&Expr]) -> bool {
    above.iter().all(|outer| match outer {
        Expr::Aggregate { operator, .. } => operator != "count" && operator != "group",
        Expr::Binary { operator, .. } => operator != "/" && operator != "-",
        Expr::Call { function, .. } => {
            !function.starts_with("absent") && function != "histogram_quantile"
        }
        _ => true,
    })
}

/// A quantile of a classic histogram needs the buckets' bound, `le`, and one histogram.
fn quantiles(expr: &Expr, notes: &mut Notes<'_>) {
    let mut lacking = false;
    expr.walk(&mut |part, _| {
        let Expr::Call { function, arguments } = part else { return };
        if function != "histogram_quantile" {
            return;
        }
        let Some(inner) = arguments.get(1) else { return };
        // Native histograms have no buckets of their own.
        let classic = inner.metrics().iter().any(|metric| metric.ends_with("_bucket"));
        lacking |= classic
            && match inner {
                Expr::Aggregate { labels: Some((labels, without)), .. } => {
                    labels.iter().any(|label| label == "le") == *without
                }
                _ => true,
            };
    });
    if lacking {
        let message = "histogram_quantile() needs sum by (le) (rate(…_bucket[5m])) within: without it \
                       there is a quantile of each replica, or of nothing, and not of all requests";
        notes.say(&["metadata", "query"], message);
    }
}

/// KEDA and Forebay accept only a result of one series.
fn number_of_series(expr: &Expr, notes: &mut Notes<'_>) {
    let quantile = matches!(expr, Expr::Call { function, .. } if function == "histogram_quantile");
    let message = match series::count(expr) {
        Count::One | Count::Selected => return,
        // A quantile without `le` has been reported.
        Count::Replicas | Count::Unknown if quantile => return,
        Count::Replicas => "gives one series for each replica, and a trigger takes a single one; put \
                            sum() around it"
            .to_owned(),
        Count::By(labels) => format!(
            "gives one series for each {}, and a trigger takes a single one: it fails where there are \
             two; put sum() or max() around it unless there is only ever one",
            labels.join(" and ")
        ),
        Count::Either => "gives two series where both sides of `or` have one, since their labels \
                          differ, and a trigger takes a single one; put sum() around the left side"
            .to_owned(),
        Count::Unknown => "may give several series, and a trigger takes a single one: it fails where \
                           there are two; put sum() or max() around it unless there is only ever one"
            .to_owned(),
    };
    notes.say(&["metadata", "query"], message);
}

/// Shares of a whole with thresholds that are never reached or always exceeded.
fn bounds(expr: &Expr, trigger: &Trigger, rule: &Rule, notes: &mut Notes<'_>) {
    let Some((metric, most)) = share(expr, rule.metric_type) else { return };
    let thresholds =
        [("threshold", rule.threshold), ("activationThreshold", rule.activation_threshold)];
    for (key, threshold) in thresholds {
        let written = trigger.metadata.get(key).map_or("", |text| text.trim());
        if threshold > most && most > 1.0 {
            let message = format!("{written} is never reached: {metric} is 0 to {most} percent");
            notes.say(&["metadata", key], message);
        } else if threshold > most {
            let message = format!(
                "{written} is never reached: {metric} is a share from 0 to 1; write {}",
                threshold / 100.0
            );
            notes.say(&["metadata", key], message);
        } else if key == "threshold" && most > 1.0 && threshold <= 1.0 {
            let message = format!(
                "{written} is almost always exceeded: {metric} is 0 to {most} percent; write {}",
                threshold * 100.0
            );
            notes.say(&["metadata", key], message);
        }
    }
}

/// The metric of a result that is a share of a whole, and its upper bound.
fn share(expr: &Expr, metric_type: MetricType) -> Option<(&str, f64)> {
    match expr {
        Expr::Series { name, .. } => names::whole(name).map(|most| (name.as_str(), most)),
        Expr::Range(inner) => share(inner, metric_type),
        Expr::Call { function, arguments }
            if WRAPPERS.contains(&function.as_str()) || OVER_TIME.contains(&function.as_str()) =>
        {
            arguments.iter().find_map(|argument| share(argument, metric_type))
        }
        Expr::Aggregate { operator, argument, .. } => {
            let kept = ["avg", "max", "min", "quantile", "topk", "bottomk"];
            // AverageValue divides a sum by the replicas again.
            let shared = operator == "sum" && metric_type == MetricType::AverageValue;
            let fits = kept.contains(&operator.as_str()) || shared;
            fits.then(|| share(argument, metric_type)).flatten()
        }
        _ => None,
    }
}

/// A mean or a latency is one figure for all replicas, which AverageValue wrongly divides by them.
fn averages(expr: &Expr, threshold: f64, notes: &mut Notes<'_>) {
    let message = match average(expr) {
        Some(Mean::Latency) => format!(
            "a latency is not a total: AverageValue divides it by the pods, so at 4 pods the \
             real threshold is {}; write metricType: Value",
            threshold * 4.0
        ),
        Some(Mean::Twice) => format!(
            "the average is divided by the pods, and AverageValue divides by them once more: at 4 pods \
             the real threshold is {} a pod; write sum(…) alone",
            threshold * 4.0
        ),
        Some(Mean::Divided) => format!(
            "the query divides by the pods already, and AverageValue divides by them once more: at 4 \
             pods the real threshold is {} a pod; write the sum(…) alone, or metricType: Value",
            threshold * 4.0
        ),
        Some(Mean::One) => format!(
            "the query gives one figure for all pods, and AverageValue divides it by them: at 4 pods \
             the real threshold is {}; write metricType: Value",
            threshold * 4.0
        ),
        Some(Mean::Average) => format!(
            "the query averages over the pods already, and AverageValue divides by them once more: at \
             4 pods the real threshold is {}; write metricType: Value",
            threshold * 4.0
        ),
        None => return,
    };
    notes.say(&["metadata", "query"], message);
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mean {
    /// `avg(…)`.
    Average,
    /// `max(…)`, `min(…)` or a quantile.
    One,
    /// `sum(…) / count(…)`.
    Divided,
    /// `avg(…) / count(…)`.
    Twice,
    Latency,
}

fn average(expr: &Expr) -> Option<Mean> {
    match expr {
        Expr::Aggregate { operator, argument, .. } => match operator.as_str() {
            "avg" | "max" | "min" | "quantile" if is_latency(argument) => Some(Mean::Latency),
            "avg" => Some(Mean::Average),
            "max" | "min" | "quantile" => Some(Mean::One),
            _ => None,
        },
        Expr::Call { function, .. } if function == "histogram_quantile" => Some(Mean::Latency),
        Expr::Call { function, arguments }
            if WRAPPERS.contains(&function.as_str()) || OVER_TIME.contains(&function.as_str()) =>
        {
            arguments.iter().find_map(average)
        }
        Expr::Range(inner) => average(inner),
        Expr::Binary { operator, left, right, .. } if operator == "/" => {
            if is_latency(expr) {
                Some(Mean::Latency)
            } else if counts_pods(right) {
                Some(if average(left).is_some() { Mean::Twice } else { Mean::Divided })
            } else if matches!(**right, Expr::Number(_)) {
                average(left)
            } else {
                None
            }
        }
        Expr::Binary { operator, left, right, .. } if operator == "*" => {
            average(left).or(average(right))
        }
        _ => None,
    }
}

/// `…_seconds_sum / …_seconds_count`, the mean of a latency.
fn is_latency(expr: &Expr) -> bool {
    let Expr::Binary { operator, left, right, .. } = expr else { return false };
    let ends =
        |expr: &Expr, suffix: &str| expr.metrics().iter().any(|metric| metric.ends_with(suffix));
    operator == "/" && ends(left, "_seconds_sum") && ends(right, "_seconds_count")
}

/// An expression that gives the number of pods.
fn counts_pods(expr: &Expr) -> bool {
    match expr {
        Expr::Aggregate { operator, .. } if operator == "count" => true,
        Expr::Call { function, arguments } if WRAPPERS.contains(&function.as_str()) => {
            arguments.iter().any(counts_pods)
        }
        _ => expr.metrics().iter().any(|metric| {
            metric.starts_with("kube_") && (metric.contains("replicas") || metric.contains("pod"))
        }),
    }
}

/// A trigger fires only above its threshold.
fn direction(expr: &Expr, threshold: f64, notes: &mut Notes<'_>) {
    // A comparison that gives 0 or 1 fires as its author means.
    let compares = matches!(
        expr,
        Expr::Binary { operator, is_bool: false, .. } if operator.starts_with('<')
    );
    let of_idle = average(expr).is_some() && is_throughput(expr);
    if !(compares || of_idle) {
        return;
    }
    let mut message = format!(
        "a trigger scales up above its threshold, here {threshold}, and never below: a falling value \
         asks for fewer replicas"
    );
    if is_throughput(expr) {
        message += "; and idle pods have no throughput at all, so a low value may mean slow as well as \
                    idle: use a latency or the requests that wait";
    }
    notes.say(&["metadata", "threshold"], message);
}

fn is_throughput(expr: &Expr) -> bool {
    let mut found = false;
    expr.walk(&mut |part, above| {
        let Expr::Series { name, .. } = part else { return };
        let tokens =
            name.starts_with("vllm:") && name.contains("tokens") && name.ends_with("_total");
        let rated = above.iter().any(
            |outer| matches!(outer, Expr::Call { function, .. } if GROWTH.contains(&function.as_str())),
        );
        found |= rated && (tokens || name == "vllm:request_success_total");
    });
    found
}

/// Forebay's own trigger with the same meaning.
fn instead(expr: &Expr, threshold: f64) -> Option<String> {
    let metrics = expr.metrics();
    let of = |part: &str| metrics.iter().any(|metric| metric.contains(part));
    let (kind, threshold, why) = if of("cache_usage_perc") {
        let share = if threshold > 1.0 { threshold / 100.0 } else { threshold };
        ("kvCache", share.to_string(), "the mean over the replicas, by its old and new name")
    } else if of("DCGM_FI_DEV_GPU_UTIL") {
        ("gpuUtilization", threshold.to_string(), "the mean over the GPUs, compared as it is")
    } else if of("DCGM_FI_DEV_MEM_COPY_UTIL") {
        let kind = "gpuMemoryCopyUtilization";
        (kind, threshold.to_string(), "the mean over the GPUs, compared as it is")
    } else if of("num_requests_waiting") {
        (
            "queueDepth",
            threshold.to_string(),
            "requests held for each replica, counted at zero replicas too",
        )
    } else if of("num_requests_running") {
        (
            "concurrency",
            threshold.to_string(),
            "requests for each replica, counted at zero replicas too",
        )
    } else if of("inter_token_latency") || of("time_per_output_token") {
        ("itl", threshold.to_string(), "p95 in seconds, compared as it is")
    } else if of("time_to_first_token") || of("request_latency") || of("request_queue_time") {
        (
            "ttft",
            threshold.to_string(),
            "p95 in seconds, less what a cold start took, compared as it is",
        )
    } else if is_throughput(expr) {
        (
            "ttft",
            "2s".to_owned(),
            "p95 of the time to the first token: it rises when replicas are slow, \
          and not when they are idle",
        )
    } else {
        return None;
    };
    Some(format!("Forebay's own trigger for this is {kind}, with threshold {threshold}: {why}"))
}

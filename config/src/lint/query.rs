//! What can't work in a `prometheus` trigger's query, together with its threshold.

use super::names::{self, Kind};
use super::promql::{self, Expr};
use super::{Notes, Reader, Scene};
use crate::trigger::{MetricType, Rule, Trigger};

/// Functions that leave a value as it is, or nearly.
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
    scene: &Scene<'_>,
    at: usize,
    trigger: &Trigger,
    rule: &Rule,
    query: &str,
    notes: &mut Notes<'_>,
) {
    let field = &["metadata", "query"];
    let Some(expr) = promql::parse(query) else {
        notes.say(field, "can't be read as PromQL: look for a missing bracket or quote");
        return;
    };
    let before = notes.remarks.len();
    names(&expr, notes);
    functions(&expr, notes);
    quantiles(&expr, notes);
    number_of_series(&expr, notes);
    bounds(&expr, trigger, rule, notes);
    if rule.metric_type == MetricType::AverageValue {
        averages(&expr, rule.threshold, notes);
    }
    let below = wants_below(&(scene.comments)(at));
    direction(&expr, rule.threshold, below, notes);
    waking(scene, at, &expr, trigger, notes);
    let faulty = notes.remarks.len() > before;
    if faulty && let Some(message) = instead(&expr, rule.threshold) {
        notes.say(&["type"], message);
    }
}

fn names(expr: &Expr, notes: &mut Notes<'_>) {
    let mut told: Vec<&str> = Vec::new();
    for metric in expr.metrics() {
        if !told.contains(&metric)
            && let Some(fault) = names::fault(metric)
        {
            notes.say(&["metadata", "query"], fault);
        }
        told.push(metric);
    }
}

/// Growth is of counters, and counters are read by their growth alone.
fn functions(expr: &Expr, notes: &mut Notes<'_>) {
    let mut found = Vec::new();
    expr.walk(&mut |it, above| {
        let Expr::Series { name } = it else { return };
        let called = above.iter().rev().find_map(|it| match it {
            Expr::Call { function, .. } => Some(function.as_str()),
            _ => None,
        });
        let ranged = matches!(above.last(), Some(Expr::Range(_)));
        match (names::kind(name), called) {
            (Some(Kind::Gauge), Some(function)) if ranged && GROWTH.contains(&function) => {
                found.push(format!(
                    "{function}() counts how much a counter grew, and {name} is a gauge, which goes up \
                     and down: the result means nothing; write max_over_time() or avg_over_time()"
                ));
            }
            (Some(Kind::Counter), _) if !ranged && counts_as_value(above) => {
                found.push(format!(
                    "{name} is a counter, which only grows, so that this stays above any threshold; \
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
    above.iter().all(|it| match it {
        Expr::Aggregate { operator, .. } => operator != "count" && operator != "group",
        Expr::Binary { operator, .. } => operator != "/" && operator != "-",
        Expr::Call { function, .. } => {
            !function.starts_with("absent") && function != "histogram_quantile"
        }
        _ => true,
    })
}

/// A quantile needs the buckets' bound, `le`, and one histogram.
fn quantiles(expr: &Expr, notes: &mut Notes<'_>) {
    let mut lacking = false;
    expr.walk(&mut |it, _| {
        let Expr::Call { function, arguments } = it else { return };
        if function != "histogram_quantile" {
            return;
        }
        let Some(inner) = arguments.get(1) else { return };
        lacking |= match inner {
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

/// KEDA and Forebay take a result of one series alone.
fn number_of_series(expr: &Expr, notes: &mut Notes<'_>) {
    // A quantile without `le` is told as such.
    let quantile =
        |it: &Expr| matches!(it, Expr::Call { function, .. } if function == "histogram_quantile");
    if quantile(expr) || !many(expr) {
        return;
    }
    let message = "gives one series for each replica, and a trigger takes a single one; put sum() \
                   around it";
    notes.say(&["metadata", "query"], message);
}

fn many(expr: &Expr) -> bool {
    match expr {
        Expr::Number(_) | Expr::Text => false,
        Expr::Series { .. } => true,
        Expr::Range(inner) => many(inner),
        Expr::Call { function, .. }
            if ["scalar", "vector", "time"].contains(&function.as_str()) =>
        {
            false
        }
        Expr::Call { function, .. } if function.starts_with("absent") => false,
        Expr::Call { arguments, .. } => arguments.iter().any(many),
        Expr::Aggregate { operator, labels, .. } => {
            // By some label there may be one series all the same.
            labels.as_ref().is_some_and(|(_, without)| *without) || operator == "topk"
        }
        // Of several that are matched, one may be left.
        Expr::Binary { left, right, .. } => many(left) && many(right),
    }
}

/// Shares of a whole against thresholds that they never reach, or always are above.
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
                "{written} is passed almost always: {metric} is 0 to {most} percent; write {}",
                threshold * 100.0
            );
            notes.say(&["metadata", key], message);
        }
    }
}

/// The metric whose share of a whole the result is, and the most that it can be.
fn share(expr: &Expr, metric_type: MetricType) -> Option<(&str, f64)> {
    match expr {
        Expr::Series { name } => names::whole(name).map(|most| (name.as_str(), most)),
        Expr::Range(inner) => share(inner, metric_type),
        Expr::Call { function, arguments }
            if WRAPPERS.contains(&function.as_str()) || OVER_TIME.contains(&function.as_str()) =>
        {
            arguments.iter().find_map(|it| share(it, metric_type))
        }
        Expr::Aggregate { operator, arguments, .. } => {
            let kept = ["avg", "max", "min", "quantile", "topk", "bottomk"];
            // A sum is shared among the replicas again.
            let shared = operator == "sum" && metric_type == MetricType::AverageValue;
            let fits = kept.contains(&operator.as_str()) || shared;
            fits.then(|| arguments.iter().find_map(|it| share(it, metric_type))).flatten()
        }
        _ => None,
    }
}

/// A mean or a latency is one figure for all replicas, and AverageValue shares it among them.
fn averages(expr: &Expr, threshold: f64, notes: &mut Notes<'_>) {
    let message = match average(expr) {
        Some(Mean::Latency) => format!(
            "a latency is no total: as AverageValue it is divided by the pods, so that at 4 pods the \
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
    /// `max(…)` and the like.
    One,
    /// `sum(…) / count(…)`.
    Divided,
    /// `avg(…) / count(…)`.
    Twice,
    Latency,
}

fn average(expr: &Expr) -> Option<Mean> {
    match expr {
        Expr::Aggregate { operator, arguments, .. } => match operator.as_str() {
            "avg" | "max" | "min" | "quantile" if arguments.iter().any(is_latency) => {
                Some(Mean::Latency)
            }
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
        Expr::Binary { operator, left, right } if operator == "/" => {
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
        Expr::Binary { operator, left, right } if operator == "*" => {
            average(left).or(average(right))
        }
        _ => None,
    }
}

/// `…_seconds_sum / …_seconds_count`, the mean of a latency.
fn is_latency(expr: &Expr) -> bool {
    let Expr::Binary { operator, left, right } = expr else { return false };
    let ends = |expr: &Expr, suffix: &str| expr.metrics().iter().any(|it| it.ends_with(suffix));
    operator == "/" && ends(left, "_seconds_sum") && ends(right, "_seconds_count")
}

/// An expression that gives the number of pods.
fn counts_pods(expr: &Expr) -> bool {
    match expr {
        Expr::Aggregate { operator, .. } if operator == "count" => true,
        Expr::Call { function, arguments } if WRAPPERS.contains(&function.as_str()) => {
            arguments.iter().any(counts_pods)
        }
        _ => expr
            .metrics()
            .iter()
            .any(|it| it.starts_with("kube_") && (it.contains("replicas") || it.contains("pod"))),
    }
}

/// Words that say a trigger is to fire when something is low.
fn wants_below(comments: &str) -> bool {
    let comments = comments.to_lowercase();
    let low = ["below", "drop", "falls", "less than", "lower than", "decreas"];
    let down = ["scale down", "scale in", "scales down", "scales in", "scale-down", "scale-in"];
    low.iter().any(|word| comments.contains(word))
        && !down.iter().any(|word| comments.contains(word))
}

/// Triggers fire above their threshold alone.
fn direction(expr: &Expr, threshold: f64, below: bool, notes: &mut Notes<'_>) {
    let compares = matches!(expr, Expr::Binary { operator, .. } if operator.starts_with('<'));
    let of_pods = average(expr).is_some();
    let throughput = of_pods && is_throughput(expr);
    if !(below || compares || throughput) {
        return;
    }
    let mut message = format!(
        "a trigger scales up above its threshold, here {threshold}, and never below: a falling value \
         asks for fewer replicas"
    );
    if is_throughput(expr) {
        message += "; and idle pods have no throughput at all, so that little may mean slow as well as \
                    idle: go by a latency or by what waits";
    }
    notes.say(&["metadata", "threshold"], message);
}

fn is_throughput(expr: &Expr) -> bool {
    let mut found = false;
    expr.walk(&mut |it, above| {
        let Expr::Series { name } = it else { return };
        let tokens =
            name.starts_with("vllm:") && name.contains("tokens") && name.ends_with("_total");
        let rated = above.iter().any(
            |it| matches!(it, Expr::Call { function, .. } if GROWTH.contains(&function.as_str())),
        );
        found |= rated && (tokens || name == "vllm:request_success_total");
    });
    found
}

/// At zero replicas nobody exports what only replicas do.
fn waking(scene: &Scene<'_>, at: usize, expr: &Expr, trigger: &Trigger, notes: &mut Notes<'_>) {
    if scene.min != Some(0) {
        return;
    }
    let metrics = expr.metrics();
    let Some(metric) = metrics.iter().find(|it| names::of_replicas(it)) else { return };
    let wakes = |other: &Trigger| match other.kind.as_str() {
        "prometheus" => {
            let query = other.metadata.get("query").and_then(|query| promql::parse(query));
            query.is_some_and(|expr| !expr.metrics().iter().any(|it| names::of_replicas(it)))
        }
        // KEDA's of the replicas' own load.
        "cpu" | "memory" | "kvCache" => false,
        kind => !kind.starts_with("gpu"),
    };
    let others = scene.triggers.iter().enumerate().filter(|(other, _)| *other != at);
    if others.map(|(_, other)| other).any(wakes) {
        return;
    }
    let why = if metric.ends_with("num_requests_running") {
        "nobody can be running at zero replicas"
    } else {
        "it is exported by the replicas, and at zero there are none"
    };
    let message = match scene.reader {
        Reader::Keda => format!(
            "{metric} is silent at zero replicas ({why}), so that this never wakes the first one; go \
             by requests that are held in front"
        ),
        // A held request wakes the pool; only who expects more of the trigger has to know.
        Reader::Forebay { .. } if trigger.metadata.contains_key("activationThreshold") => format!(
            "{metric} is silent at zero replicas ({why}), so that this never wakes the pool; a held \
             request does, whatever the trigger says"
        ),
        Reader::Forebay { .. } => return,
    };
    notes.say(&["metadata", "query"], message);
}

/// Forebay's own trigger that means the same.
fn instead(expr: &Expr, threshold: f64) -> Option<String> {
    let metrics = expr.metrics();
    let of = |part: &str| metrics.iter().any(|it| it.contains(part));
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

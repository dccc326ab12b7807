//! The number of series that a query gives: a trigger accepts only one.

use super::names;
use super::promql::{Expr, Matching};

/// The number of series, as far as the query alone shows it.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Count {
    /// One at most.
    One,
    /// The series that labels select, such as a single queue's.
    Selected,
    /// One for each replica.
    Replicas,
    /// One for each value of these labels.
    By(Vec<String>),
    /// One of each side of an `or`.
    Either,
    /// Unknown: as many as there are.
    Unknown,
}

/// The number of series of `expr`.
pub(super) fn count(expr: &Expr) -> Count {
    match expr {
        Expr::Number(_) | Expr::Text => Count::One,
        Expr::Series { name, .. } if names::of_replicas(name) => Count::Replicas,
        Expr::Series { pinned, .. } if !pinned.is_empty() => Count::Selected,
        Expr::Series { .. } => Count::Unknown,
        Expr::Range(inner) => count(inner),
        Expr::Call { function, arguments } => call(function, arguments),
        Expr::Aggregate { operator, parameter, labels, argument } => {
            aggregate(operator, *parameter, labels.as_ref(), argument)
        }
        Expr::Binary { operator, matching, left, right, .. } => {
            binary(operator, *matching, left, right)
        }
    }
}

fn call(function: &str, arguments: &[Expr]) -> Count {
    match function {
        "scalar" | "vector" | "time" | "pi" | "absent" | "absent_over_time" => Count::One,
        // It drops the buckets' bound.
        "histogram_quantile" => match arguments.get(1).map(count) {
            Some(Count::By(labels)) => {
                let labels: Vec<_> = labels.into_iter().filter(|label| label != "le").collect();
                if labels.is_empty() { Count::One } else { Count::By(labels) }
            }
            other => other.unwrap_or(Count::Unknown),
        },
        // Without an argument it takes the current time.
        _ => arguments.iter().map(count).find(|count| *count != Count::One).unwrap_or(Count::One),
    }
}

fn aggregate(
    operator: &str,
    parameter: Option<f64>,
    labels: Option<&(Vec<String>, bool)>,
    argument: &Expr,
) -> Count {
    let inner = count(argument);
    if inner == Count::One {
        return Count::One;
    }
    match operator {
        "topk" | "bottomk" | "limitk"
            if labels.is_none() && parameter.is_some_and(|quantile| quantile < 2.0) =>
        {
            return Count::One;
        }
        "topk" | "bottomk" | "limitk" | "limit_ratio" => return inner,
        "count_values" => return Count::Unknown,
        _ => {}
    }
    match labels {
        None => Count::One,
        Some((_, true)) => Count::Unknown,
        Some((labels, false)) => {
            let open: Vec<_> =
                labels.iter().filter(|label| !is_pinned(argument, label)).cloned().collect();
            if open.is_empty() { Count::One } else { Count::By(open) }
        }
    }
}

/// Whether a label has one value in all series below.
fn is_pinned(expr: &Expr, label: &String) -> bool {
    let mut pinned = true;
    expr.walk(&mut |part, _| {
        if let Expr::Series { pinned: labels, .. } = part {
            pinned &= labels.contains(label);
        }
    });
    pinned
}

fn binary(operator: &str, matching: Matching, left: &Expr, right: &Expr) -> Count {
    let is_scalar = |expr: &Expr| match expr {
        Expr::Number(_) => true,
        Expr::Call { function, .. } => matches!(function.as_str(), "scalar" | "time" | "pi"),
        _ => false,
    };
    let (of_left, of_right) = (count(left), count(right));
    match operator {
        "unless" => of_left,
        // By all labels, one series of the right matches one of the left.
        "and" if of_right == Count::One && matching == Matching::Whole => Count::One,
        "and" => of_left,
        "or" => match (of_left, of_right) {
            // The right series is dropped if the left one has the same labels, or those matched.
            (Count::One, Count::One) if matching != Matching::Whole => Count::One,
            (Count::Selected, Count::One) if matching != Matching::Whole => Count::Selected,
            (Count::One, Count::One) if is_bare(left) && is_bare(right) => Count::One,
            (Count::One | Count::Selected, Count::One | Count::Selected) => Count::Either,
            (Count::One, many) | (many, _) => many,
        },
        _ if is_scalar(left) => of_right,
        _ if is_scalar(right) => of_left,
        _ => match matching {
            Matching::ManyLeft => of_left,
            Matching::ManyRight => of_right,
            // Of several matched series, one may remain.
            _ if of_left == Count::One || of_right == Count::One => Count::One,
            _ => of_left,
        },
    }
}

/// Whether the result has no labels.
fn is_bare(expr: &Expr) -> bool {
    match expr {
        Expr::Number(_) => true,
        Expr::Text | Expr::Series { .. } => false,
        Expr::Range(inner) => is_bare(inner),
        Expr::Call { function, .. }
            if matches!(function.as_str(), "vector" | "scalar" | "time" | "pi") =>
        {
            true
        }
        Expr::Call { function, arguments } if function == "histogram_quantile" => {
            matches!(arguments.get(1), Some(Expr::Aggregate { labels: Some((labels, false)), .. })
                if labels == &["le"])
        }
        Expr::Call { function, arguments } => {
            !function.starts_with("label_")
                && arguments.iter().all(|argument| *argument == Expr::Text || is_bare(argument))
        }
        Expr::Aggregate { operator, labels, argument, .. } => match operator.as_str() {
            "topk" | "bottomk" | "limitk" | "limit_ratio" | "count_values" => is_bare(argument),
            _ => labels.is_none() || is_bare(argument),
        },
        Expr::Binary { operator, left, right, .. } => match operator.as_str() {
            "and" | "unless" => is_bare(left),
            _ => is_bare(left) && is_bare(right),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::super::promql::{Read, read};
    use super::*;

    #[test]
    fn the_number_of_series_is_known_from_the_query_or_not() {
        let by =
            |labels: &[&str]| Count::By(labels.iter().map(|label| (*label).to_owned()).collect());
        for (query, want) in [
            ("sum(vllm:num_requests_waiting)", Count::One),
            ("vllm:num_requests_waiting", Count::Replicas),
            ("rate(vllm:prompt_tokens_total{model_name=\"a\"}[1m])", Count::Replicas),
            ("rabbitmq_queue_messages_ready{queue=\"jobs\"}", Count::Selected),
            ("rabbitmq_queue_messages_ready", Count::Unknown),
            ("rabbitmq_queue_messages_ready{queue=~\"j.*\"}", Count::Unknown),
            ("sum by (pod) (a)", by(&["pod"])),
            ("max by (gpu) (DCGM_FI_DEV_GPU_UTIL)", by(&["gpu"])),
            ("sum by (namespace, pod) (a{namespace=\"x\"})", by(&["pod"])),
            ("sum by (namespace) (vllm:num_requests_waiting{namespace=\"x\"})", Count::One),
            ("sum without (pod) (a)", Count::Unknown),
            ("histogram_quantile(0.9, sum by (le) (rate(a_bucket[5m])))", Count::One),
            ("histogram_quantile(0.9, sum by (le, model) (rate(a_bucket[5m])))", by(&["model"])),
            ("sum(a) or vector(0)", Count::One),
            ("a{queue=\"x\"} or vector(0)", Count::Either),
            ("a{queue=\"x\"} or on () vector(0)", Count::Selected),
            ("sum(a) / sum by (pod) (b)", Count::One),
            ("a / on (pod) group_left () b", Count::Unknown),
            ("topk(1, a)", Count::One),
            ("topk(3, a)", Count::Unknown),
            ("a * 2", Count::Unknown),
            ("2 * sum(a)", Count::One),
            ("vector(1)", Count::One),
            ("sum(sum by (pod) (a))", Count::One),
        ] {
            let Read::Query(expr, _) = read(query) else { panic!("{query}: {:?}", read(query)) };
            assert_eq!(count(&expr), want, "{query}");
        }
    }
}

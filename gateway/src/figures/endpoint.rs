//! Metrics of each endpoint, written when `/metrics` is read or metrics are exported.
//!
//! Endpoints come and go with new addresses all day, and a registered series lives as long as the
//! process. So the endpoints' series are made from the pools' signals each time, and end with the
//! endpoint.

use std::fmt::{Display, Write};
use std::time::SystemTime;

use forebay_signals::{EndpointSignals, Health, LimitedBy, PoolSignals};
use forebay_telemetry::figure::{self, Metric, Points};
use metrics::{Key, Label, Unit, describe_counter, describe_gauge, describe_histogram};

const READY: &str = "forebay_endpoint_ready";
const IN_FLIGHT: &str = "forebay_endpoint_in_flight";
const LIMIT: &str = "forebay_endpoint_limit";
const LIMITED: &str = "forebay_endpoint_limited";
const REQUESTS: &str = "forebay_endpoint_requests_total";
const PROMPT_TOKENS: &str = "forebay_endpoint_prompt_tokens_total";
const CACHED_TOKENS: &str = "forebay_endpoint_cached_tokens_total";
const GENERATED_TOKENS: &str = "forebay_endpoint_generated_tokens_total";
const TTFT: &str = "forebay_endpoint_ttft_seconds";
const ITL: &str = "forebay_endpoint_itl_seconds";

const HELP: [(&str, &str, &str); 10] = [
    (READY, "gauge", "Whether the endpoint takes requests (1) or not (0), by pool and endpoint"),
    (IN_FLIGHT, "gauge", "Requests in flight, by pool and endpoint"),
    (LIMIT, "gauge", "Most requests in flight at once, by pool and endpoint"),
    (
        LIMITED,
        "gauge",
        "Why that is not more, unless it is configured: 1, by pool, endpoint and reason",
    ),
    (REQUESTS, "counter", "Tries that ended, by pool, endpoint and outcome"),
    (PROMPT_TOKENS, "counter", "Prompt tokens, by pool and endpoint"),
    (CACHED_TOKENS, "counter", "Prompt tokens found in the prefix cache, by pool and endpoint"),
    (GENERATED_TOKENS, "counter", "Generated tokens, by pool and endpoint"),
    (
        TTFT,
        "summary",
        "Streams: from released to the first token, sum and count by pool and endpoint",
    ),
    (ITL, "summary", "Gaps between a stream's tokens, sum and count by pool and endpoint"),
];

pub(super) fn describe() {
    for (name, kind, help) in HELP {
        match kind {
            "gauge" => describe_gauge!(name, help),
            "counter" => describe_counter!(name, help),
            _ => describe_histogram!(name, Unit::Seconds, help),
        }
    }
}

/// Writes the series of all endpoints in Prometheus' text format.
pub(crate) fn endpoints_text<'a>(
    text: &mut String,
    pools: impl Iterator<Item = (&'a str, &'a PoolSignals)>,
) {
    let labelled = |(pool, signals): (&'a str, &'a PoolSignals)| {
        let endpoints = signals.endpoints.iter();
        endpoints.filter_map(move |(address, endpoint)| {
            Some((format!("pool=\"{pool}\",endpoint=\"{address}\""), endpoint.as_ref()?))
        })
    };
    let endpoints: Vec<_> = pools.flat_map(labelled).collect();
    for (name, kind, help) in HELP {
        // Writing to a string does not fail.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, endpoint) in &endpoints {
            series(text, name, labels, endpoint);
        }
    }
}

/// The series of all endpoints as messages of OTLP, counted since `began`.
pub(crate) fn endpoints_otlp<'a>(
    pools: impl Iterator<Item = (&'a str, &'a PoolSignals)>,
    began: SystemTime,
    now: SystemTime,
) -> Vec<Metric> {
    let labelled = |(pool, signals): (&'a str, &'a PoolSignals)| {
        let pool = Label::new("pool", pool.to_owned());
        let endpoints = signals.endpoints.iter();
        endpoints.filter_map(move |(address, endpoint)| {
            let address = Label::new("endpoint", address.clone());
            Some((vec![pool.clone(), address], endpoint.as_ref()?))
        })
    };
    let endpoints: Vec<_> = pools.flat_map(labelled).collect();
    let metric = |(name, kind, help): (&'static str, &str, &str)| {
        let (mut numbers, mut counts, mut sums) = (Vec::new(), Vec::new(), Vec::new());
        for (labels, endpoint) in &endpoints {
            let key = || Key::from_parts(name, labels.clone());
            match EndpointValue::of(name, endpoint) {
                EndpointValue::One(value) if kind == "gauge" => numbers.push((key(), value as f64)),
                EndpointValue::One(value) => counts.push((key(), value)),
                EndpointValue::ByOutcome(all) => {
                    counts.extend(all.map(|(outcome, count)| {
                        (key().with_extra_labels(vec![Label::new("outcome", outcome)]), count)
                    }));
                }
                EndpointValue::ByReason(None) => {}
                EndpointValue::ByReason(Some(reason)) => {
                    numbers
                        .push((key().with_extra_labels(vec![Label::new("reason", reason)]), 1.0));
                }
                EndpointValue::Sum(sum, count) => sums.push((key(), count, sum)),
            }
        }
        let points = match kind {
            "gauge" => Points::Numbers(numbers),
            "counter" => Points::Counts(counts),
            _ => Points::Sums(sums),
        };
        figure::metric(name, help, points, began, now)
    };
    if endpoints.is_empty() { Vec::new() } else { HELP.into_iter().map(metric).collect() }
}

/// A figure of one endpoint.
enum EndpointValue {
    One(u64),
    ByOutcome([(&'static str, u64); 2]),
    /// One, for this reason.
    ByReason(Option<&'static str>),
    /// A sum, and the number of its parts.
    Sum(f64, u64),
}

impl EndpointValue {
    fn of(name: &str, endpoint: &EndpointSignals) -> Self {
        Self::One(match name {
            READY => u64::from(endpoint.health == Health::Ready),
            IN_FLIGHT => endpoint.in_flight.into(),
            LIMIT => endpoint.limit.into(),
            LIMITED => {
                let configured = endpoint.limited_by == LimitedBy::Configured;
                return Self::ByReason((!configured).then(|| endpoint.limited_by.name()));
            }
            PROMPT_TOKENS => endpoint.prompt_tokens,
            CACHED_TOKENS => endpoint.cached_tokens,
            GENERATED_TOKENS => endpoint.generated_tokens,
            REQUESTS => {
                let (completed, failed) = (endpoint.completed, endpoint.failed);
                return Self::ByOutcome([("completed", completed), ("failed", failed)]);
            }
            TTFT => return Self::Sum(endpoint.ttft_seconds, endpoint.first_tokens),
            _ => return Self::Sum(endpoint.itl_seconds, endpoint.token_gaps),
        })
    }
}

fn series(text: &mut String, name: &str, labels: &str, endpoint: &EndpointSignals) {
    match EndpointValue::of(name, endpoint) {
        EndpointValue::One(value) => line(text, [name, ""], [labels, ""], value),
        EndpointValue::ByOutcome(all) => {
            for (outcome, count) in all {
                line(text, [name, ""], [labels, &format!(",outcome=\"{outcome}\"")], count);
            }
        }
        EndpointValue::ByReason(reason) => {
            if let Some(reason) = reason {
                line(text, [name, ""], [labels, &format!(",reason=\"{reason}\"")], 1);
            }
        }
        EndpointValue::Sum(sum, count) => {
            line(text, [name, "_sum"], [labels, ""], sum);
            line(text, [name, "_count"], [labels, ""], count);
        }
    }
}

fn line(text: &mut String, name: [&str; 2], labels: [&str; 2], value: impl Display) {
    name.into_iter().chain(["{"]).chain(labels).for_each(|part| text.push_str(part));
    let _ = writeln!(text, "}} {value}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_endpoint_has_its_series_and_a_removed_one_has_none() {
        let endpoint = EndpointSignals {
            health: Health::Ready,
            in_flight: 3,
            limit: 40,
            limited_by: LimitedBy::KvCache,
            failed: 1,
            first_tokens: 2,
            ttft_seconds: 0.5,
            ..EndpointSignals::default()
        };
        let endpoints =
            [("10.0.0.1:8000".to_owned(), Some(endpoint)), ("10.0.0.2:8000".to_owned(), None)];
        let signals = PoolSignals { endpoints: endpoints.into(), ..PoolSignals::default() };
        let mut text = String::new();
        endpoints_text(&mut text, [("p", &signals)].into_iter());
        for line in [
            "# TYPE forebay_endpoint_in_flight gauge",
            r#"forebay_endpoint_in_flight{pool="p",endpoint="10.0.0.1:8000"} 3"#,
            r#"forebay_endpoint_limit{pool="p",endpoint="10.0.0.1:8000"} 40"#,
            r#"forebay_endpoint_limited{pool="p",endpoint="10.0.0.1:8000",reason="kvCache"} 1"#,
            r#"forebay_endpoint_requests_total{pool="p",endpoint="10.0.0.1:8000",outcome="failed"} 1"#,
            r#"forebay_endpoint_ttft_seconds_sum{pool="p",endpoint="10.0.0.1:8000"} 0.5"#,
            r#"forebay_endpoint_ttft_seconds_count{pool="p",endpoint="10.0.0.1:8000"} 2"#,
        ] {
            assert!(text.lines().any(|other| other == line), "{line} in\n{text}");
        }
        assert!(!text.contains("10.0.0.2"));
        let now = SystemTime::now();
        let metrics = endpoints_otlp([("p", &signals)].into_iter(), now, now);
        assert_eq!(metrics.len(), HELP.len());
        let shown = format!("{metrics:?}");
        for part in ["forebay_endpoint_in_flight", "10.0.0.1:8000", "completed", "AsDouble(3.0)"] {
            assert!(shown.contains(part), "{part} in {shown}");
        }
        assert!(!shown.contains("10.0.0.2"));
        assert!(endpoints_otlp([].into_iter(), now, now).is_empty());
    }
}

//! The figures of each endpoint, written out when `/metrics` is read.
//!
//! Endpoints come and go with other addresses all day, and a registered series stays for as long
//! as the process lives. So theirs are made anew from the books each time: what is gone is gone.

use std::fmt::Write;

use forebay_signals::{EndpointSignals, Health, PoolSignals};
use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

const READY: &str = "forebay_endpoint_ready";
const IN_FLIGHT: &str = "forebay_endpoint_in_flight";
const LIMIT: &str = "forebay_endpoint_limit";
const REQUESTS: &str = "forebay_endpoint_requests_total";
const PROMPT_TOKENS: &str = "forebay_endpoint_prompt_tokens_total";
const CACHED_TOKENS: &str = "forebay_endpoint_cached_tokens_total";
const GENERATED_TOKENS: &str = "forebay_endpoint_generated_tokens_total";
const TTFT: &str = "forebay_endpoint_ttft_seconds";
const ITL: &str = "forebay_endpoint_itl_seconds";

const HELP: [(&str, &str, &str); 9] = [
    (READY, "gauge", "Whether it takes requests (1) or not (0), by pool and endpoint"),
    (IN_FLIGHT, "gauge", "Requests there now, by pool and endpoint"),
    (LIMIT, "gauge", "Most requests there at once, by pool and endpoint"),
    (REQUESTS, "counter", "Tries ended there, by pool, endpoint and outcome"),
    (PROMPT_TOKENS, "counter", "Prompt tokens, by pool and endpoint"),
    (CACHED_TOKENS, "counter", "Prompt tokens found in its prefix cache, by pool and endpoint"),
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

/// All endpoints' series in Prometheus' text format.
pub(crate) fn endpoints_text<'a>(
    pools: impl Iterator<Item = (&'a str, &'a PoolSignals)> + Clone,
) -> String {
    let mut text = String::new();
    for (name, kind, help) in HELP {
        // Writing to a string does not fail.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (pool, signals) in pools.clone() {
            for (address, endpoint) in &signals.endpoints {
                let Some(endpoint) = endpoint else { continue };
                let labels = format!("pool=\"{pool}\",endpoint=\"{address}\"");
                series(&mut text, name, &labels, endpoint);
            }
        }
    }
    text
}

fn series(text: &mut String, name: &str, labels: &str, endpoint: &EndpointSignals) {
    let ready = u64::from(endpoint.health == Health::Ready);
    let summary = |text: &mut String, sum: f64, count: u64| {
        let _ = writeln!(text, "{name}_sum{{{labels}}} {sum}\n{name}_count{{{labels}}} {count}");
    };
    let value = match name {
        READY => ready,
        IN_FLIGHT => endpoint.in_flight.into(),
        LIMIT => endpoint.limit.into(),
        PROMPT_TOKENS => endpoint.prompt_tokens,
        CACHED_TOKENS => endpoint.cached_tokens,
        GENERATED_TOKENS => endpoint.generated_tokens,
        REQUESTS => {
            for (outcome, count) in [("completed", endpoint.completed), ("failed", endpoint.failed)]
            {
                let _ = writeln!(text, "{name}{{{labels},outcome=\"{outcome}\"}} {count}");
            }
            return;
        }
        TTFT => return summary(text, endpoint.ttft_seconds, endpoint.first_tokens),
        _ => return summary(text, endpoint.itl_seconds, endpoint.token_gaps),
    };
    let _ = writeln!(text, "{name}{{{labels}}} {value}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_endpoint_has_its_series_and_one_that_is_gone_has_none() {
        let endpoint = EndpointSignals {
            health: Health::Ready,
            in_flight: 3,
            failed: 1,
            first_tokens: 2,
            ttft_seconds: 0.5,
            ..EndpointSignals::default()
        };
        let endpoints =
            [("10.0.0.1:8000".to_owned(), Some(endpoint)), ("10.0.0.2:8000".to_owned(), None)];
        let signals = PoolSignals { endpoints: endpoints.into(), ..PoolSignals::default() };
        let text = endpoints_text([("p", &signals)].into_iter());
        for line in [
            "# TYPE forebay_endpoint_in_flight gauge",
            r#"forebay_endpoint_in_flight{pool="p",endpoint="10.0.0.1:8000"} 3"#,
            r#"forebay_endpoint_requests_total{pool="p",endpoint="10.0.0.1:8000",outcome="failed"} 1"#,
            r#"forebay_endpoint_ttft_seconds_sum{pool="p",endpoint="10.0.0.1:8000"} 0.5"#,
            r#"forebay_endpoint_ttft_seconds_count{pool="p",endpoint="10.0.0.1:8000"} 2"#,
        ] {
            assert!(text.lines().any(|it| it == line), "{line} in\n{text}");
        }
        assert!(!text.contains("10.0.0.2"));
    }
}

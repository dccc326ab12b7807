//! The figures that OpenTelemetry's conventions for generative AI name. They are counted only while
//! metrics are exported by OTLP, and are not shown on `/metrics`, where names have no dots.
//!
//! Names, units and bounds are those of
//! <https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/>. Their bounds end at 10 seconds
//! and at 82: for holds of minutes there are the gateway's own figures.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use metrics::{Histogram, Label, describe_histogram, histogram};
use parking_lot::RwLock;

use crate::answer::meter::Tokens;

pub(super) const DURATION: &str = "gen_ai.server.request.duration";
pub(super) const TTFT: &str = "gen_ai.server.time_to_first_token";
pub(super) const PER_TOKEN: &str = "gen_ai.server.time_per_output_token";
pub(super) const USAGE: &str = "gen_ai.client.token.usage";

pub(super) const DURATIONS: &[f64] =
    &[0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92];
pub(super) const TTFTS: &[f64] =
    &[0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
pub(super) const TIMES_PER_TOKEN: &[f64] =
    &[0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5];
/// The powers of four up to 4^13.
pub(super) const TOKENS: &[f64] = &[
    1.0,
    4.0,
    16.0,
    64.0,
    256.0,
    1024.0,
    4096.0,
    16384.0,
    65536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
];

/// The help texts, which OTLP carries too.
pub fn describe_gen_ai() {
    describe_histogram!(
        DURATION,
        "Generative AI server request duration, such as time-to-last byte"
    );
    describe_histogram!(TTFT, "Time to generate first token for successful responses");
    describe_histogram!(
        PER_TOKEN,
        "Time per output token generated after the first token for successful responses"
    );
    describe_histogram!(USAGE, "Number of input and output tokens used");
}

/// An ended request, as these figures see it.
pub(crate) struct GenAiRequest<'a> {
    pub(crate) operation: &'static str,
    /// The model's name as the replicas know it, if they do: a client may send any.
    pub(crate) model: Option<Arc<str>>,
    /// The reason of a failure.
    pub(crate) error: Option<&'static str>,
    pub(crate) took: Duration,
    pub(crate) ttft: Option<Duration>,
    /// The mean time for each token after the first.
    pub(crate) per_token: Option<Duration>,
    pub(crate) tokens: &'a Tokens,
}

/// The figures of one pool, each looked up once.
pub(crate) struct GenAiFigures {
    pool: Arc<str>,
    by_model: RwLock<HashMap<OperationAndModel, Histograms>>,
}

type OperationAndModel = (&'static str, Option<Arc<str>>);

/// The histograms of one operation with one model. Each is exported once it has a value.
struct Histograms {
    labels: Vec<Label>,
    duration: OnceLock<Histogram>,
    ttft: OnceLock<Histogram>,
    per_token: OnceLock<Histogram>,
    input: OnceLock<Histogram>,
    output: OnceLock<Histogram>,
}

impl GenAiFigures {
    pub(crate) fn new(pool: &str) -> Self {
        Self { pool: pool.into(), by_model: RwLock::default() }
    }

    /// Records a request that has ended.
    pub(crate) fn record(&self, request: &GenAiRequest<'_>) {
        let key = (request.operation, request.model.clone());
        if let Some(known) = self.by_model.read().get(&key) {
            return known.record(request);
        }
        let new = || Histograms::new(&self.pool, request);
        self.by_model.write().entry(key).or_insert_with(new).record(request);
    }
}

impl Histograms {
    fn new(pool: &Arc<str>, request: &GenAiRequest<'_>) -> Self {
        let mut labels = vec![
            Label::from_static_parts("gen_ai.operation.name", request.operation),
            Label::from_static_parts("gen_ai.provider.name", "vllm"),
            Label::new("forebay.pool", Arc::clone(pool)),
        ];
        let model = request.model.clone();
        labels.extend(model.map(|model| Label::new("gen_ai.request.model", model)));
        let [duration, ttft, per_token, input, output] = Default::default();
        Self { labels, duration, ttft, per_token, input, output }
    }

    fn record(&self, request: &GenAiRequest<'_>) {
        let tokens = request.tokens;
        for (histogram, kind, count) in [
            (&self.input, "input", tokens.prompt.unwrap_or(0)),
            (&self.output, "output", tokens.generated),
        ] {
            if count > 0 {
                let new = || self.labelled(USAGE, "gen_ai.token.type", kind);
                histogram.get_or_init(new).record(count as f64);
            }
        }
        let plain = |name: &'static str| move || histogram!(name, self.labels.clone());
        if let Some(error) = request.error {
            // Failures are rare, and their reasons many.
            return self.labelled(DURATION, "error.type", error).record(request.took);
        }
        self.duration.get_or_init(plain(DURATION)).record(request.took);
        if let Some(ttft) = request.ttft {
            self.ttft.get_or_init(plain(TTFT)).record(ttft);
        }
        if let Some(per_token) = request.per_token {
            self.per_token.get_or_init(plain(PER_TOKEN)).record(per_token);
        }
    }

    fn labelled(&self, name: &'static str, key: &'static str, value: &'static str) -> Histogram {
        let own = Label::from_static_parts(key, value);
        let labels: Vec<_> = self.labels.iter().cloned().chain([own]).collect();
        histogram!(name, labels)
    }
}

#[cfg(test)]
mod tests {
    use metrics::with_local_recorder;

    use super::*;
    use crate::figures::test_recorder::Registered;

    #[test]
    fn a_failure_counts_for_its_duration_alone_and_each_histogram_is_looked_up_once() {
        let recorder = Registered::default();
        let tokens = Tokens { prompt: Some(7), generated: 2, ..Tokens::default() };
        let request = |model: Option<&str>, error| GenAiRequest {
            operation: "chat",
            model: model.map(Arc::from),
            error,
            took: Duration::from_secs(3),
            ttft: Some(Duration::from_secs(1)),
            per_token: Some(Duration::from_millis(20)),
            tokens: &tokens,
        };
        with_local_recorder(&recorder, || {
            let figures = GenAiFigures::new("p");
            for _ in 0..3 {
                figures.record(&request(Some("m"), None));
            }
            assert_eq!(recorder.lookups(), 5);
            figures.record(&request(Some("m"), Some("stalled")));
            figures.record(&request(None, None));
        });
        let count =
            |metric: &str, labels: &str| recorder.count(&format!("{metric} chat vllm p{labels}"));
        assert_eq!(count(DURATION, " m"), Some(3));
        assert_eq!(count(DURATION, " m stalled"), Some(1));
        assert_eq!(count(DURATION, ""), Some(1));
        for metric in [TTFT, PER_TOKEN] {
            assert_eq!((count(metric, " m"), count(metric, "")), (Some(3), Some(1)), "{metric}");
        }
        let usage = |labels: &str| count(USAGE, labels);
        assert_eq!(
            (usage(" m input"), usage(" m output"), usage(" input")),
            (Some(4), Some(4), Some(1))
        );
    }
}

//! The figures that OpenTelemetry's conventions for generative AI name. They are counted only while
//! metrics are exported by OTLP, and are not shown on `/metrics`, where names have no dots.
//!
//! Names, units and bounds are those of
//! <https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/>. Their bounds end at 10 seconds
//! and at 82: for holds of minutes there are the gateway's own figures.

use std::sync::Arc;
use std::time::Duration;

use metrics::{Label, describe_histogram, histogram};

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
    pub(crate) pool: &'a Arc<str>,
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

impl GenAiRequest<'_> {
    pub(crate) fn record(&self) {
        let mut labels = vec![
            Label::from_static_parts("gen_ai.operation.name", self.operation),
            Label::from_static_parts("gen_ai.provider.name", "vllm"),
            Label::new("forebay.pool", Arc::clone(self.pool)),
        ];
        labels.extend(self.model.clone().map(|model| Label::new("gen_ai.request.model", model)));
        if let (Some(ttft), None) = (self.ttft, self.error) {
            histogram!(TTFT, labels.clone()).record(ttft);
        }
        if let (Some(per_token), None) = (self.per_token, self.error) {
            histogram!(PER_TOKEN, labels.clone()).record(per_token);
        }
        let used = [("input", self.tokens.prompt), ("output", Some(self.tokens.generated))];
        for (kind, count) in used {
            let Some(count) = count.filter(|count| *count > 0) else { continue };
            let mut labels = labels.clone();
            labels.push(Label::from_static_parts("gen_ai.token.type", kind));
            histogram!(USAGE, labels).record(count as f64);
        }
        if let Some(error) = self.error {
            labels.push(Label::from_static_parts("error.type", error));
        }
        histogram!(DURATION, labels).record(self.took);
    }
}

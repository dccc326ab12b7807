//! The spans' way to the export.

use std::sync::Arc;
use std::time::Duration;

use crate::context::TraceId;
use crate::queue::Queue;
use crate::sampler::Sampler;
use crate::span::Span;

/// The export as the gateway and the scaler use it.
#[derive(Clone, Debug, Default)]
pub struct Telemetry {
    /// Takes spans, if traces are exported.
    pub tracer: Option<Arc<Tracer>>,
    /// Whether metrics are exported, so that those of OpenTelemetry's conventions are counted.
    pub metrics: bool,
}

/// Takes the spans of requests and decisions.
#[derive(Debug)]
pub struct Tracer {
    sampler: Sampler,
    always_over: Duration,
    queue: Arc<Queue>,
}

impl Tracer {
    pub(crate) fn new(sampler: Sampler, always_over: Duration, queue: Arc<Queue>) -> Self {
        Self { sampler, always_over, queue }
    }

    /// Decides at a request's beginning whether it is traced. `parent` is whether its client traces
    /// it, if it came with a trace.
    #[must_use]
    pub fn samples(&self, trace: TraceId, parent: Option<bool>) -> bool {
        self.sampler.samples(trace, parent)
    }

    /// A request that was held for this long is exported whether or not it was sampled.
    #[must_use]
    pub fn always_over(&self) -> Duration {
        self.always_over
    }

    /// Takes spans for the next export. Never waits: what does not fit is dropped and counted.
    pub fn export(&self, spans: Vec<Span>) {
        self.queue.push(spans);
    }

    /// A tracer for tests, and a function that takes the spans it was given.
    #[doc(hidden)]
    pub fn collecting(sampler: Sampler, always_over: Duration) -> (Self, impl Fn() -> Vec<Span>) {
        let queue = Arc::new(Queue::new(1 << 16, 1 << 16));
        let tracer = Self::new(sampler, always_over, Arc::clone(&queue));
        (tracer, move || queue.take(usize::MAX))
    }
}

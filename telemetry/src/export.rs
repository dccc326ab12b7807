//! The thread that exports.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use forebay_base::trouble::Trouble;
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::InstrumentationScope;
use opentelemetry_proto::tonic::metrics::v1::{Metric, ResourceMetrics, ScopeMetrics};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans};
use tokio::sync::{oneshot, watch};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::client::{Client, Failure};
use crate::queue::Queue;
use crate::settings::{Metrics, Settings, Signal, Traces};
use crate::span::{Span, Value, attribute};
use crate::tracer::{Telemetry, Tracer};
use crate::{figure, metric};

const TRACES: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
const METRICS: &str = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export";
/// The most data points of a message. A receiver of gRPC takes 4 MiB by default, and a histogram's point has
/// some hundred bytes.
const MOST_POINTS: usize = 2_000;

/// The export can't be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The receiver can't be used.
    #[error("openTelemetry: the receiver of {signal} can't be used: {why}")]
    Receiver {
        /// The signal that goes there.
        signal: &'static str,
        /// The reason.
        why: String,
    },
    /// The system gives no thread.
    #[error("openTelemetry: cannot start a thread: {0}")]
    Thread(#[from] io::Error),
}

/// The running export. Dropping it ends it, after one try to export what waits.
#[must_use = "dropping it ends the export"]
pub struct Exporter {
    telemetry: Arc<Telemetry>,
    stop: watch::Sender<bool>,
    ended: oneshot::Receiver<()>,
}

impl Exporter {
    /// Starts the export, or returns `None` if there is none. `collect` returns all metrics as they are
    /// at the given time.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start(
        settings: Settings,
        version: &str,
        collect: impl Fn(SystemTime) -> Vec<Metric> + Send + 'static,
    ) -> Result<Option<Self>, StartError> {
        let Settings { traces, metrics, resource, .. } = settings;
        if traces.is_none() && metrics.is_none() {
            return Ok(None);
        }
        let source = Source::new(resource, version);
        let client = |signal: Signal, receiver, method| {
            let wrong = |why| StartError::Receiver { signal: signal.name(), why };
            Client::new(receiver, method).map_err(wrong)
        };
        let (stop, stopping) = watch::channel(false);
        let (end, ended) = oneshot::channel();
        let (mut tracer, mut spans) = (None, None);
        if let Some(Traces { receiver, sampler, always_over, delay, queue, batch }) = traces {
            let client = client(Signal::Traces, receiver, TRACES)?;
            let queue = Arc::new(Queue::new(queue, batch));
            tracer = Some(Arc::new(Tracer::new(sampler, always_over, Arc::clone(&queue))));
            let trouble = Trouble::default();
            let (source, stopping) = (source.clone(), stopping.clone());
            spans = Some(SpanExport { client, queue, delay, batch, source, stopping, trouble });
        }
        let mut figures = None;
        if let Some(Metrics { receiver, interval }) = metrics {
            let client = client(Signal::Metrics, receiver, METRICS)?;
            let trouble = Trouble::default();
            figures = Some(MetricExport { client, interval, source, stopping, collect, trouble });
        }
        let telemetry = Arc::new(Telemetry { tracer, metrics: figures.is_some() });
        // Of its own, so that neither a request nor a decision ever waits for it.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("exports-otlp".to_owned()).spawn(move || {
            runtime.block_on(async {
                let spans = async {
                    if let Some(spans) = spans {
                        spans.run().await;
                    }
                };
                let figures = async {
                    if let Some(figures) = figures {
                        figures.run().await;
                    }
                };
                tokio::join!(spans, figures);
            });
            let _ = end.send(());
        })?;
        Ok(Some(Self { telemetry, stop, ended }))
    }

    /// The export as the parts of this process use it.
    #[must_use]
    pub fn telemetry(&self) -> Arc<Telemetry> {
        Arc::clone(&self.telemetry)
    }

    /// Exports what waits, for `within` at most. Returns whether that was enough time.
    pub async fn finish(self, within: Duration) -> bool {
        let _ = self.stop.send(true);
        timeout(within, self.ended).await.is_ok()
    }
}

/// The description of this process, which every export has.
#[derive(Clone)]
struct Source {
    resource: Resource,
    scope: InstrumentationScope,
}

impl Source {
    fn new(mut resource: BTreeMap<String, String>, version: &str) -> Self {
        resource.entry("service.version".to_owned()).or_insert_with(|| version.to_owned());
        resource.entry("service.instance.id".to_owned()).or_insert_with(random_uuid);
        let attributes = resource.into_iter();
        let attributes = attributes.map(|(name, value)| attribute(name, Value::Text(value)));
        let resource = Resource { attributes: attributes.collect(), ..Resource::default() };
        let (name, version) = ("forebay".to_owned(), version.to_owned());
        Self { resource, scope: InstrumentationScope { name, version, ..Default::default() } }
    }
}

/// A UUID of version 4: OpenTelemetry wants one for each process.
fn random_uuid() -> String {
    let random = rand::random::<u128>() & !(0xf << 76 | 0x3 << 62) | 4 << 76 | 2 << 62;
    let text = format!("{random:032x}");
    let parts = [&text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..]];
    parts.join("-")
}

struct SpanExport {
    client: Client,
    queue: Arc<Queue>,
    delay: Duration,
    batch: usize,
    source: Source,
    stopping: watch::Receiver<bool>,
    trouble: Trouble,
}

impl SpanExport {
    async fn run(mut self) {
        metric::show(Signal::Traces);
        loop {
            let mut stopping = self.stopping.clone();
            let stops = tokio::select! {
                biased;
                _ = stopping.wait_for(|stopping| *stopping) => true,
                () = self.queue.has_batch() => false,
                () = sleep(self.delay) => false,
            };
            loop {
                let spans = self.queue.take(self.batch);
                if spans.is_empty() {
                    break;
                }
                self.export(spans).await;
            }
            if stops {
                return;
            }
        }
    }

    async fn export(&mut self, spans: Vec<Span>) {
        let count = spans.len() as u64;
        let scope_spans =
            ScopeSpans { scope: Some(self.source.scope.clone()), spans, ..Default::default() };
        let resource = Some(self.source.resource.clone());
        let all = ResourceSpans { resource, scope_spans: vec![scope_spans], ..Default::default() };
        let request = ExportTraceServiceRequest { resource_spans: vec![all] };
        let sent = self.client.send(&request, &mut self.stopping).await;
        let rejected = sent.map(|answer: ExportTraceServiceResponse| {
            let partial = answer.partial_success.unwrap_or_default();
            (partial.rejected_spans, partial.error_message)
        });
        match note(Signal::Traces, &self.client, &mut self.trouble, count, rejected) {
            Ok(rejected) => metric::dropped(metric::DropReason::Rejected, rejected),
            Err(failure) if failure.is_final => {
                metric::dropped(metric::DropReason::Rejected, count)
            }
            Err(_) => metric::dropped(metric::DropReason::Undelivered, count),
        }
    }
}

struct MetricExport<C> {
    client: Client,
    interval: Duration,
    source: Source,
    stopping: watch::Receiver<bool>,
    collect: C,
    trouble: Trouble,
}

impl<C: Fn(SystemTime) -> Vec<Metric>> MetricExport<C> {
    async fn run(mut self) {
        metric::show(Signal::Metrics);
        let mut ticks = interval(self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first one is at once.
        ticks.tick().await;
        loop {
            let mut stopping = self.stopping.clone();
            let stops = tokio::select! {
                biased;
                _ = stopping.wait_for(|stopping| *stopping) => true,
                _ = ticks.tick() => false,
            };
            self.export().await;
            if stops {
                return;
            }
        }
    }

    async fn export(&mut self) {
        for part in figure::parts((self.collect)(SystemTime::now()), MOST_POINTS) {
            // What is lost now is in the next export again: figures only grow.
            if self.export_part(part).await.is_err() {
                return;
            }
        }
    }

    async fn export_part(&mut self, metrics: Vec<Metric>) -> Result<u64, Failure> {
        let count = metrics.iter().map(figure::points).sum::<usize>() as u64;
        let scope_metrics =
            ScopeMetrics { scope: Some(self.source.scope.clone()), metrics, ..Default::default() };
        let (resource, scope_metrics) = (Some(self.source.resource.clone()), vec![scope_metrics]);
        let all = ResourceMetrics { resource, scope_metrics, ..Default::default() };
        let request = ExportMetricsServiceRequest { resource_metrics: vec![all] };
        let sent = self.client.send(&request, &mut self.stopping).await;
        let rejected = sent.map(|answer: ExportMetricsServiceResponse| {
            let partial = answer.partial_success.unwrap_or_default();
            (partial.rejected_data_points, partial.error_message)
        });
        note(Signal::Metrics, &self.client, &mut self.trouble, count, rejected)
    }
}

/// Counts an export of `count` items, of which the receiver rejected some, and reports a trouble once.
/// Returns the number of rejected items.
fn note(
    signal: Signal,
    client: &Client,
    trouble: &mut Trouble,
    count: u64,
    sent: Result<(i64, String), Failure>,
) -> Result<u64, Failure> {
    let (name, url) = (signal.name(), client.url());
    match sent {
        Ok((rejected, message)) => {
            let rejected = u64::try_from(rejected).unwrap_or(0).min(count);
            metric::exported(signal, count - rejected);
            if rejected > 0 {
                let message: String = message.chars().take(300).collect();
                if trouble.begins(format!("it rejects a part: {message}")) {
                    tracing::warn!("{name} are exported to {url} in part only: {message}");
                }
            } else if trouble.ends() {
                tracing::info!("{name} are exported to {url} again");
            }
            Ok(rejected)
        }
        Err(failure) => {
            metric::failed(signal);
            if trouble.begins(failure.message.as_str()) {
                tracing::warn!("{name} can't be exported to {url}: {}", failure.message);
            }
            Err(failure)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_process_has_a_uuid_of_its_own_unless_it_is_given_one() {
        let id = |given: &[(&str, &str)]| {
            let given = given.iter().map(|(name, value)| (name.to_string(), value.to_string()));
            let source = Source::new(given.collect(), "1.2.3");
            let attributes = source.resource.attributes;
            let value = |name: &str| {
                let found = attributes.iter().find(|attribute| attribute.key == name);
                format!("{:?}", found.map(|attribute| attribute.value.clone()))
            };
            (value("service.instance.id"), value("service.version"))
        };
        assert_ne!(id(&[]).0, id(&[]).0);
        assert!(id(&[]).1.contains("1.2.3"));
        assert!(id(&[("service.instance.id", "mine")]).0.contains("mine"));
        let uuid = random_uuid();
        let parts: Vec<_> = uuid.split('-').map(str::len).collect();
        assert_eq!(parts, [8, 4, 4, 4, 12]);
        assert_eq!(&uuid[14..15], "4");
        assert!(matches!(&uuid[19..20], "8" | "9" | "a" | "b"), "{uuid}");
    }
}

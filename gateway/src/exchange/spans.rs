//! The spans of a request, made at its end from its record. Pure.
//!
//! The names of spans and attributes are those of OpenTelemetry's conventions for generative AI
//! (<https://opentelemetry.io/docs/specs/semconv/gen-ai/>) and for HTTP. What they have no name for
//! begins with `forebay.`. No prompt, answer, key or message of a replica is in them.

use std::time::{Duration, SystemTime};

use forebay_telemetry::Tracer;
use forebay_telemetry::context::{SpanId, TraceContext};
use forebay_telemetry::span::{Kind, Parent, Span, Value, attribute, failed, span};
use tokio::time::Instant;

use crate::answer::judge::Finish;
use crate::answer::meter::Tokens;
use crate::exchange::progress::{Conclusion, RequestProgress, Seams};
use crate::exchange::steps::{RequestStep, RequestStepKind};
use crate::read::context::RequestContext;

/// The provider, by which readers know whose conventions the attributes follow.
const PROVIDER: &str = "vllm";

/// An ended request.
pub(crate) struct EndedRequest<'a> {
    pub(crate) context: &'a RequestContext,
    pub(crate) pool: Option<&'a str>,
    pub(crate) progress: &'a RequestProgress,
    pub(crate) conclusion: Conclusion,
    /// The gateway or a replica is at fault.
    pub(crate) failed: bool,
    /// The model's name as the replicas know it.
    pub(crate) served: Option<&'a str>,
    pub(crate) tokens: &'a Tokens,
    pub(crate) steps: &'a [RequestStep],
    /// The time of the request's end, by both clocks.
    pub(crate) now: (Instant, SystemTime),
}

/// Why a request's spans are exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExportReason {
    /// It was sampled at its beginning.
    Sampled,
    /// It failed.
    Failed,
    /// It was held for long.
    Held,
}

impl ExportReason {
    fn name(self) -> &'static str {
        match self {
            Self::Sampled => "sampled",
            Self::Failed => "failed",
            Self::Held => "held",
        }
    }
}

impl EndedRequest<'_> {
    /// Exports the spans, if there is a reason.
    pub(crate) fn export(&self, tracer: &Tracer) {
        // Health checks and lists of models are not requests for a model.
        let Some(operation) = self.context.operation() else { return };
        if let Some(reason) = self.reason(tracer.always_over()) {
            tracer.export(self.spans(operation, reason));
        }
    }

    fn reason(&self, always_over: Duration) -> Option<ExportReason> {
        let trace = &self.context.trace;
        if trace.context.sampled && !(self.is_of_nobody() && trace.client.is_some()) {
            Some(ExportReason::Sampled)
        } else if self.failed {
            Some(ExportReason::Failed)
        } else if self.progress.held().is_some_and(|held| held >= always_over) {
            Some(ExportReason::Held)
        } else {
            None
        }
    }

    /// The request was refused before it had a tenant. What such a client says of its trace counts for
    /// nothing: it could fill the queue.
    fn is_of_nobody(&self) -> bool {
        self.pool.is_none() && self.conclusion.status == Some(401)
    }

    fn time(&self, at: Instant) -> SystemTime {
        let (now, system) = self.now;
        system.checked_sub(now.saturating_duration_since(at)).unwrap_or(system)
    }

    fn spans(&self, operation: &str, reason: ExportReason) -> Vec<Span> {
        let mut spans = vec![self.request(operation, reason)];
        spans.extend(self.steps.iter().map(|step| self.step(step)));
        spans.extend(self.progress.first_token.map(|first| self.stream(first)));
        spans
    }

    fn request(&self, operation: &str, reason: ExportReason) -> Span {
        let Self { context, progress, conclusion, tokens, .. } = self;
        // A name that no pool serves is the client's own, and may be any.
        let model = context.model.as_deref().filter(|_| self.pool.is_some());
        let name = match model {
            Some(model) => format!("{operation} {model}"),
            None => operation.to_owned(),
        };
        let parent = context.trace.client.map_or(Parent::None, Parent::Remote);
        let times = (self.time(context.accepted), self.now.1);
        let mut root = span(name, Kind::Server, context.trace.context, parent, times);
        let mut add = |name: &'static str, value| root.attributes.push(attribute(name, value));
        let text = |bytes: &[u8]| Value::Text(String::from_utf8_lossy(bytes).into_owned());
        let seconds = |time: Duration| Value::Number(time.as_secs_f64());
        add("gen_ai.operation.name", Value::from(operation));
        add("gen_ai.provider.name", Value::from(PROVIDER));
        if let Some(model) = &context.model {
            add("gen_ai.request.model", Value::from(&**model));
        }
        if let Some(served) = self.served {
            add("gen_ai.response.model", Value::from(served));
        }
        add("gen_ai.request.stream", Value::Flag(context.stream));
        if let Some(id) = &context.session_id {
            add("gen_ai.conversation.id", text(id.as_bytes()));
        }
        if let Some(first) = progress.first_token {
            let ttft = first.saturating_duration_since(context.accepted);
            add("gen_ai.response.time_to_first_chunk", seconds(ttft));
        }
        if !tokens.finishes.is_empty() {
            let reasons = tokens.finishes.iter().map(|finish| Finish::name(*finish).to_owned());
            add("gen_ai.response.finish_reasons", Value::Texts(reasons.collect()));
        }
        if let Some(prompt) = tokens.prompt {
            add("gen_ai.usage.input_tokens", Value::Count(prompt));
        }
        if let Some(cached) = tokens.cached {
            add("gen_ai.usage.cache_read.input_tokens", Value::Count(cached));
        }
        if tokens.generated > 0 {
            add("gen_ai.usage.output_tokens", Value::Count(tokens.generated));
        }
        add("http.request.method", Value::from(context.method.as_str()));
        add("url.path", Value::from(context.path()));
        if let Some(status) = conclusion.status {
            add("http.response.status_code", Value::Count(status.into()));
        }
        if let Some(address) = context.client.address {
            add("client.address", Value::Text(address.to_string()));
        }
        add("forebay.request_id", text(context.id.as_bytes()));
        add("forebay.tenant", Value::from(&*context.tenant));
        if let Some(pool) = self.pool {
            add("forebay.pool", Value::from(pool));
        }
        add("forebay.outcome", Value::from(conclusion.outcome.name()));
        if let Some(reason) = conclusion.reason {
            add("forebay.reason", Value::from(reason));
        }
        add("forebay.tries", Value::Count(progress.tries.into()));
        if let Some(held) = progress.held() {
            add("forebay.hold.duration", seconds(held));
            add("forebay.hold.cold_duration", seconds(progress.cold));
        }
        let Seams { continued, moved, paused, .. } = progress.seams;
        if continued > 0 {
            add("forebay.continued", Value::Count(continued.into()));
            add("forebay.moved", Value::Count(moved.into()));
            add("forebay.pause.duration", seconds(paused));
        }
        add("forebay.exported_because", Value::from(reason.name()));
        if self.failed {
            let reason = conclusion.reason.unwrap_or(conclusion.outcome.name());
            add("error.type", Value::from(reason));
            root.status = failed(reason);
        }
        root
    }

    fn step(&self, step: &RequestStep) -> Span {
        let times = (self.time(step.began), step.ended.map_or(self.now.1, |at| self.time(at)));
        let (name, kind) = match step.kind {
            RequestStepKind::Hold => ("hold", Kind::Internal),
            RequestStepKind::Try { .. } => ("try", Kind::Client),
        };
        let mut child = span(name, kind, step.context, self.parent(), times);
        if let RequestStepKind::Try { endpoint, failure } = &step.kind {
            let mut add = |name: &'static str, value| child.attributes.push(attribute(name, value));
            add("server.address", Value::Text(endpoint.ip().to_string()));
            add("server.port", Value::Count(endpoint.port().into()));
            if let Some(cause) = failure {
                add("error.type", Value::from(cause.name()));
                child.status = failed(cause.name());
            }
        }
        child
    }

    /// The part of the request in which its tokens came.
    fn stream(&self, first_token: Instant) -> Span {
        let parent = self.context.trace.context;
        let place = TraceContext { span: SpanId::random(), ..parent };
        let times = (self.time(first_token), self.now.1);
        let mut child = span("stream", Kind::Internal, place, self.parent(), times);
        let tokens = Value::Count(self.tokens.generated);
        child.attributes.push(attribute("gen_ai.usage.output_tokens", tokens));
        child
    }

    fn parent(&self) -> Parent {
        Parent::Local(self.context.trace.context.span)
    }
}

#[cfg(test)]
mod tests;

//! A request's place in its trace: the W3C's `traceparent`. Pure, apart from the random numbers.

use std::sync::Arc;

use forebay_telemetry::context::{SpanId, TRACE_PARENT_LEN, TraceContext, TraceId};
use forebay_telemetry::{Telemetry, Tracer};
use http::header::{HeaderMap, HeaderName};

pub(crate) const TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");

/// The value of a `traceparent`.
pub(crate) type TraceParent = [u8; TRACE_PARENT_LEN];

/// The trace of one request: its client's, or one that begins here.
#[derive(Clone, Debug)]
pub(crate) struct RequestTrace {
    /// The request's own span. Without a tracer there is none, and this is the client's.
    pub(crate) context: TraceContext,
    /// The client's span, if the request came with a trace.
    pub(crate) client: Option<SpanId>,
    /// The export of the request's spans and figures; `None` if nothing is exported.
    pub(crate) telemetry: Option<Arc<Telemetry>>,
}

impl RequestTrace {
    /// The trace of a request with these headers. It is decided here whether it is traced; without a
    /// tracer, replicas are left to decide.
    pub(crate) fn of(headers: &HeaderMap, telemetry: Option<&Arc<Telemetry>>) -> Self {
        match client(headers) {
            Some(client) => Self::within(client, telemetry),
            None => Self::new(telemetry),
        }
    }

    /// The beginning of a new trace.
    pub(crate) fn new(telemetry: Option<&Arc<Telemetry>>) -> Self {
        let mut context = TraceContext::random(true);
        if let Some(tracer) = tracer(telemetry) {
            context.sampled = tracer.samples(context.trace, None);
        }
        Self { context, client: None, telemetry: telemetry.cloned() }
    }

    fn within(client: TraceContext, telemetry: Option<&Arc<Telemetry>>) -> Self {
        let mut context = client;
        if let Some(tracer) = tracer(telemetry) {
            context.span = SpanId::random();
            context.sampled = tracer.samples(client.trace, Some(client.sampled));
        }
        Self { context, client: Some(client.span), telemetry: telemetry.cloned() }
    }

    /// The `traceparent` for replicas; `None` keeps the client's.
    pub(crate) fn trace_parent(&self) -> Option<TraceParent> {
        let is_clients = self.client.is_some() && self.tracer().is_none();
        (!is_clients).then(|| self.context.trace_parent())
    }

    /// Whether the client's `tracestate` belongs to this trace.
    pub(crate) fn keeps_state(&self) -> bool {
        self.client.is_some()
    }

    pub(crate) fn id(&self) -> TraceId {
        self.context.trace
    }

    pub(crate) fn tracer(&self) -> Option<&Tracer> {
        tracer(self.telemetry.as_ref())
    }
}

fn tracer(telemetry: Option<&Arc<Telemetry>>) -> Option<&Tracer> {
    telemetry?.tracer.as_deref()
}

/// The client's own place in a trace, if it names exactly one.
fn client(headers: &HeaderMap) -> Option<TraceContext> {
    let mut given = headers.get_all(&TRACE_PARENT).iter();
    match (given.next(), given.next()) {
        (Some(parent), None) => TraceContext::parse(parent.as_bytes()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use forebay_telemetry::sampler::Sampler;
    use http::HeaderValue;

    use super::*;

    const KNOWN: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    const UNSAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";

    fn of(parents: &[&str], telemetry: Option<&Arc<Telemetry>>) -> RequestTrace {
        let mut headers = HeaderMap::new();
        for parent in parents {
            headers.append(TRACE_PARENT, HeaderValue::from_str(parent).expect("a value"));
        }
        RequestTrace::of(&headers, telemetry)
    }

    #[test]
    fn without_a_tracer_a_valid_trace_is_kept_and_any_other_is_replaced() {
        for parent in
            [KNOWN, UNSAMPLED, "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00-x"]
        {
            let trace = of(&[parent], None);
            assert_eq!((trace.trace_parent(), trace.keeps_state()), (None, true), "{parent}");
            assert_eq!(trace.id().hex(), *b"4bf92f3577b34da6a3ce929d0e0e4736");
        }
        for parents in [&[][..], &["nonsense"], &[KNOWN, KNOWN]] {
            let trace = of(parents, None);
            let made = trace.trace_parent().expect("a new one");
            assert!(made.ends_with(b"-01") && !trace.keeps_state(), "{parents:?}");
            assert_ne!(of(parents, None).id(), trace.id());
        }
    }

    #[test]
    fn with_a_tracer_each_request_has_a_span_of_its_own_in_its_clients_trace() {
        let telemetry = |ratio| {
            let sampler = Sampler { ratio, by_parent: true };
            let (tracer, _) = Tracer::collecting(sampler, Duration::MAX);
            Arc::new(Telemetry { tracer: Some(Arc::new(tracer)), metrics: false })
        };
        let (all, none) = (telemetry(1.0), telemetry(0.0));
        for (parent, telemetry, sampled) in
            [(KNOWN, &none, true), (UNSAMPLED, &all, false), ("", &all, true), ("", &none, false)]
        {
            let parents = if parent.is_empty() { vec![] } else { vec![parent] };
            let trace = of(&parents, Some(telemetry));
            let client = TraceContext::parse(parent.as_bytes());
            assert_eq!(trace.client, client.map(|client| client.span));
            if let Some(client) = client {
                assert_eq!(trace.id(), client.trace);
                assert_ne!(trace.context.span, client.span);
            }
            let sent = trace.trace_parent().expect("its own");
            assert_eq!(sent, trace.context.trace_parent());
            assert_eq!(sent.ends_with(b"-01"), sampled, "{parent}");
        }
    }
}

//! Traces of requests: what replicas receive, and the spans that are exported.

use std::sync::Arc;
use std::time::Duration;

use forebay_gateway::{Gateway, ProcessParts};
use forebay_telemetry::context::TraceContext;
use forebay_telemetry::sampler::Sampler;
use forebay_telemetry::span::Span;
use forebay_telemetry::{Telemetry, Tracer};
use support::{ANSWER, Answer, CHAT, PATIENCE, Upstream, config, exchange, status};
use tokio::time::{sleep, timeout};

mod support;

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// A gateway in front of one replica that traces this share, and a function that takes the spans.
fn start(
    endpoints: &[&Upstream],
    ratio: f64,
    always_over: Duration,
) -> (Gateway, impl Fn() -> Vec<Span> + use<>) {
    let (tracer, spans) = Tracer::collecting(Sampler { ratio, by_parent: true }, always_over);
    let telemetry = Telemetry { tracer: Some(Arc::new(tracer)), metrics: true };
    let mut config = config(None);
    config.pools[0].endpoints =
        endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect();
    config.pools[0].hold.timeout = Duration::from_millis(500);
    let parts = ProcessParts { telemetry: Some(Arc::new(telemetry)), ..ProcessParts::default() };
    let gateway = Gateway::prepare(&config, None, None, None, parts).expect("valid");
    gateway.accept();
    (gateway, spans)
}

fn post(headers: &str) -> String {
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\nconnection: close\r\ncontent-type: \
         application/json\r\ncontent-length: {}\r\n{headers}\r\n{CHAT}",
        CHAT.len()
    )
}

/// The `traceparent` of each request that a replica got.
fn parents(upstream: &Upstream) -> Vec<TraceContext> {
    let requests = upstream.requests();
    let parent = |request: &Vec<u8>| {
        let text = String::from_utf8_lossy(request).into_owned();
        let values: Vec<_> =
            text.lines().filter_map(|line| line.strip_prefix("traceparent: ")).collect();
        assert_eq!(values.len(), 1, "{text}");
        TraceContext::parse(values[0].as_bytes()).expect("valid")
    };
    requests.iter().map(parent).collect()
}

/// The spans, once the request has ended: its answer may be read before.
async fn ended(spans: impl Fn() -> Vec<Span>) -> Vec<Span> {
    let some = async {
        loop {
            let all = spans();
            if !all.is_empty() {
                break all;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, some).await.expect("spans are exported")
}

fn named<'a>(spans: &'a [Span], name: &str) -> Vec<&'a Span> {
    spans.iter().filter(|span| span.name == name).collect()
}

/// The only span of this name.
fn only<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let all = named(spans, name);
    assert_eq!(all.len(), 1, "{name} in {spans:?}");
    all[0]
}

#[tokio::test]
async fn a_replicas_spans_join_those_of_the_try_that_it_gets() {
    let upstream = Upstream::start(Answer::Json(ANSWER)).await;
    let (gateway, spans) = start(&[&upstream], 0.0, Duration::MAX);
    let headers = format!("traceparent: {PARENT}\r\ntracestate: a=b\r\n");
    let answer = exchange(gateway.address(), &post(&headers)).await;
    assert_eq!(status(&answer), 200, "{answer}");
    assert!(upstream.request().contains("\r\ntracestate: a=b\r\n"));
    let parent = parents(&upstream)[0];
    let client = TraceContext::parse(PARENT.as_bytes()).expect("valid");
    assert_eq!((parent.trace, parent.sampled), (client.trace, true));
    let spans = ended(spans).await;
    let root = only(&spans, "chat m");
    let tried = only(&spans, "try");
    assert_eq!(root.parent_span_id, client.span.bytes());
    assert_eq!(tried.parent_span_id, root.span_id);
    assert_eq!(tried.span_id, parent.span.bytes());
}

#[tokio::test]
async fn each_try_has_a_span_of_its_own() {
    let broken = Answer::Raw(b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n");
    let (first, second) = (Upstream::start(broken.clone()).await, Upstream::start(broken).await);
    let (gateway, spans) = start(&[&first, &second], 0.0, Duration::MAX);
    let answer = exchange(gateway.address(), &post("")).await;
    assert!(status(&answer) >= 500, "{answer}");
    let sent = [parents(&first), parents(&second)].concat();
    assert!(sent.len() > 1, "it was tried again");
    // It began without a trace, and is not sampled: replicas see that. The failure is exported.
    assert!(sent.iter().all(|parent| !parent.sampled));
    let spans = ended(spans).await;
    let tries = named(&spans, "try");
    let mut ids: Vec<_> = tries.iter().map(|span| span.span_id.clone()).collect();
    let mut want: Vec<_> = sent.iter().map(|parent| parent.span.bytes().to_vec()).collect();
    ids.sort();
    want.sort();
    assert_eq!(ids, want);
    assert!(tries.iter().all(|span| span.status.is_some()), "{tries:?}");
    assert_eq!(named(&spans, "hold").len(), tries.len());
    assert!(named(&spans, "chat m")[0].status.is_some());
}

#[tokio::test]
async fn a_request_that_is_neither_sampled_nor_failed_nor_held_is_not_exported() {
    let upstream = Upstream::start(Answer::Json(ANSWER)).await;
    let (gateway, spans) = start(&[&upstream], 0.0, Duration::from_secs(60));
    let unsampled = PARENT.replace("-01", "-00");
    let answer = exchange(gateway.address(), &post(&format!("traceparent: {unsampled}\r\n"))).await;
    assert_eq!(status(&answer), 200, "{answer}");
    assert!(!parents(&upstream)[0].sampled);
    // A later one is exported, so all there was has been.
    let answer = exchange(gateway.address(), &post(&format!("traceparent: {PARENT}\r\n"))).await;
    assert_eq!(status(&answer), 200, "{answer}");
    assert_eq!(named(&ended(spans).await, "chat m").len(), 1);
}

#[tokio::test]
async fn held_requests_are_reported_to_the_scaler_by_their_traces() {
    let (gateway, spans) = start(&[], 1.0, Duration::MAX);
    let address = gateway.address();
    let request = post(&format!("traceparent: {PARENT}\r\n"));
    let request = tokio::spawn(async move { exchange(address, &request).await });
    let reported = async {
        loop {
            let signals = support::signals(&gateway, "p").await;
            if let Some(parent) = signals["heldTraces"][0].as_str() {
                break TraceContext::parse(parent.as_bytes()).expect("valid");
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    let reported = timeout(PATIENCE, reported).await.expect("it is reported");
    let answer = request.await.expect("no panic");
    assert_eq!(status(&answer), 503, "{answer}");
    let spans = ended(spans).await;
    let root = only(&spans, "chat m");
    assert_eq!(reported.span.bytes().to_vec(), root.span_id);
}

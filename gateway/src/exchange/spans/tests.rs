use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use forebay_telemetry::Telemetry;
use forebay_telemetry::sampler::Sampler;
use http::Request;

use super::*;
use crate::answer::failure::Cause;
use crate::answer::outcome::Outcome;
use crate::exchange::steps::RequestSteps;
use crate::net::socket::ClientSocket;
use crate::read::context::Client;
use crate::read::head::ClientHead;
use crate::read::trace::RequestTrace;

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const UNSAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";

/// A request that may be changed before its spans are made.
struct Case {
    context: RequestContext,
    pool: Option<&'static str>,
    progress: RequestProgress,
    conclusion: Conclusion,
    failed: bool,
    tokens: Tokens,
    steps: Vec<RequestStep>,
    end: Instant,
}

/// The moment at which the request of a case ends, two seconds after its beginning.
fn end() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_000)
}

fn endpoint() -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 7], 8000))
}

impl Case {
    /// A request with this `traceparent`, or without one, of which `ratio` is the share that is
    /// sampled.
    fn new(path: &str, parent: &str, ratio: f64) -> (Self, impl Fn() -> Vec<Span>) {
        let (tracer, spans) =
            Tracer::collecting(Sampler { ratio, by_parent: true }, Duration::from_secs(1));
        let telemetry = Telemetry { tracer: Some(Arc::new(tracer)), metrics: false };
        let mut request = Request::post(path);
        if !parent.is_empty() {
            request = request.header("traceparent", parent);
        }
        let (parts, ()) = request.body(()).expect("valid").into_parts();
        let mut head = ClientHead::known(parts);
        head.own.trace = RequestTrace::of(&head.parts.headers, Some(&Arc::new(telemetry)));
        let address = Some(IpAddr::from([10, 0, 0, 1]));
        let client = Client { socket: ClientSocket::unwatched(), address };
        let mut context = RequestContext::new(&head, client);
        context.set_model(Some("m".into())).expect("short");
        let conclusion =
            Conclusion { outcome: Outcome::Completed, status: Some(200), reason: None };
        let case = Self {
            end: context.accepted + Duration::from_secs(2),
            context,
            pool: Some("p"),
            progress: RequestProgress::default(),
            conclusion,
            failed: false,
            tokens: Tokens::default(),
            steps: Vec::new(),
        };
        (case, spans)
    }

    fn export(&self) {
        let ended = EndedRequest {
            context: &self.context,
            pool: self.pool,
            progress: &self.progress,
            conclusion: self.conclusion,
            failed: self.failed,
            served: self.pool.map(|_| "m-served"),
            tokens: &self.tokens,
            steps: &self.steps,
            now: (self.end, end()),
        };
        ended.export(self.context.trace.tracer().expect("a tracer"));
    }

    fn at(&self, millis: u64) -> Instant {
        self.context.accepted + Duration::from_millis(millis)
    }
}

/// The attributes of a span, as text.
fn attributes(span: &Span) -> BTreeMap<&str, String> {
    let value = |value: &Option<_>| format!("{value:?}");
    span.attributes.iter().map(|pair| (pair.key.as_str(), value(&pair.value))).collect()
}

/// Milliseconds since the request's beginning.
fn times(span: &Span) -> (u64, u64) {
    let millis = |nanos: u64| nanos / 1_000_000 - 998_000;
    (millis(span.start_time_unix_nano), millis(span.end_time_unix_nano))
}

#[test]
fn a_request_has_a_span_with_a_child_for_each_hold_and_try_and_one_for_its_stream() {
    let (mut case, spans) = Case::new("/v1/chat/completions", PARENT, 0.0);
    case.context.stream = true;
    case.context.session_id = Some(http::HeaderValue::from_static("s-1"));
    case.tokens = Tokens {
        prompt: Some(9),
        cached: Some(4),
        generated: 7,
        finishes: vec![Finish::Stop],
        ..Tokens::default()
    };
    let mut steps = RequestSteps::of(&case.context.trace).expect("traced");
    steps.hold_began(case.at(100));
    let first = steps.try_began(case.at(400), endpoint());
    steps.failed(case.at(500), Cause::Connect);
    steps.hold_began(case.at(500));
    let second = steps.try_began(case.at(700), endpoint());
    case.steps = steps.take();
    case.progress.first_token = Some(case.at(900));
    case.progress.tries = 2;
    case.export();

    let spans = spans();
    let names: Vec<_> = spans.iter().map(|span| (span.name.as_str(), times(span))).collect();
    let want = [
        ("chat m", (0, 2000)),
        ("hold", (100, 400)),
        ("try", (400, 500)),
        ("hold", (500, 700)),
        ("try", (700, 2000)),
        ("stream", (900, 2000)),
    ];
    assert_eq!(names, want);
    let client = case.context.trace.client.expect("the client's");
    assert_eq!(spans[0].parent_span_id, client.bytes());
    assert_eq!(spans[0].span_id, case.context.trace.context.span.bytes());
    for child in &spans[1..] {
        assert_eq!(child.parent_span_id, spans[0].span_id, "{}", child.name);
        assert_eq!(child.trace_id, spans[0].trace_id);
    }
    assert_eq!(
        (&spans[2].span_id[..], &spans[4].span_id[..]),
        (&first.span.bytes()[..], &second.span.bytes()[..])
    );
    let root = attributes(&spans[0]);
    for (name, want) in [
        ("gen_ai.operation.name", "\"chat\""),
        ("gen_ai.provider.name", "\"vllm\""),
        ("gen_ai.request.model", "\"m\""),
        ("gen_ai.response.model", "\"m-served\""),
        ("gen_ai.request.stream", "true"),
        ("gen_ai.conversation.id", "\"s-1\""),
        ("gen_ai.response.time_to_first_chunk", "0.9"),
        ("gen_ai.response.finish_reasons", "\"stop\""),
        ("gen_ai.usage.input_tokens", "(9)"),
        ("gen_ai.usage.cache_read.input_tokens", "(4)"),
        ("gen_ai.usage.output_tokens", "(7)"),
        ("http.response.status_code", "(200)"),
        ("url.path", "\"/v1/chat/completions\""),
        ("client.address", "\"10.0.0.1\""),
        ("forebay.pool", "\"p\""),
        ("forebay.tries", "(2)"),
        ("forebay.outcome", "\"completed\""),
        ("forebay.exported_because", "\"sampled\""),
    ] {
        let value = root.get(name).unwrap_or_else(|| panic!("no {name} in {root:?}"));
        assert!(value.contains(want), "{name}: {value}");
    }
    assert!(spans[0].status.is_none() && !root.contains_key("error.type"));
    let tried = attributes(&spans[2]);
    assert!(tried["server.address"].contains("10.0.0.7") && tried["server.port"].contains("8000"));
    assert!(tried["error.type"].contains("connect"));
    assert!(spans[2].status.is_some() && spans[4].status.is_none());
}

#[test]
fn failures_and_long_holds_are_exported_whether_or_not_they_are_sampled() {
    let held = |case: &mut Case, millis| {
        case.progress.set_held(Duration::from_millis(millis));
    };
    let failed = |case: &mut Case, _| {
        case.failed = true;
        case.conclusion =
            Conclusion { outcome: Outcome::Failed, status: Some(502), reason: Some("connect") };
    };
    type Change = fn(&mut Case, u64);
    let changes: [(Change, u64); 4] = [(held, 999), (held, 1000), (failed, 0), (|_, _| {}, 0)];
    for (change, millis) in changes {
        for (parent, ratio, sampled) in
            [(UNSAMPLED, 1.0, false), ("", 0.0, false), ("", 1.0, true), (PARENT, 0.0, true)]
        {
            let (mut case, spans) = Case::new("/v1/completions", parent, ratio);
            change(&mut case, millis);
            case.export();
            let why = match (sampled, case.failed, millis >= 1000) {
                (true, ..) => Some("sampled"),
                (_, true, _) => Some("failed"),
                (_, _, true) => Some("held"),
                _ => None,
            };
            let spans = spans();
            let got =
                spans.first().map(|root| attributes(root)["forebay.exported_because"].clone());
            match why {
                Some(why) => assert!(got.expect("exported").contains(why), "{parent} {millis}"),
                None => assert_eq!(got, None, "{parent} {millis}"),
            }
            // The flag is the decision at the beginning: replicas may have no spans of it.
            if let Some(root) = spans.first() {
                assert_eq!(root.flags & 1 == 1, sampled);
                assert_eq!(root.status.is_some(), case.failed);
            }
        }
    }
}

#[test]
fn a_client_without_a_key_does_not_decide_what_is_exported() {
    for (parent, ratio, exported) in [(PARENT, 1.0, false), ("", 1.0, true), ("", 0.0, false)] {
        let (mut case, spans) = Case::new("/v1/completions", parent, ratio);
        case.pool = None;
        case.conclusion =
            Conclusion { outcome: Outcome::Refused, status: Some(401), reason: Some("no_key") };
        case.export();
        assert_eq!(!spans().is_empty(), exported, "{parent} {ratio}");
    }
}

#[test]
fn a_span_is_named_by_its_operation_and_by_a_model_that_is_served() {
    for (path, pool, name) in [
        ("/v1/completions", Some("p"), Some("text_completion m")),
        ("/v1/messages", Some("p"), Some("chat m")),
        ("/v1/embeddings", None, Some("embeddings")),
        ("/v1/realtime", Some("p"), Some("realtime m")),
        ("/v1/models", None, None),
        ("/health", None, None),
    ] {
        let (mut case, spans) = Case::new(path, "", 1.0);
        case.pool = pool;
        case.export();
        let spans = spans();
        assert_eq!(spans.first().map(|root| root.name.as_str()), name, "{path}");
        if let Some(root) = spans.first() {
            assert!(root.parent_span_id.is_empty(), "it begins its trace");
        }
    }
}

#[test]
fn a_step_that_has_not_ended_ends_with_the_request() {
    let (mut case, spans) = Case::new("/v1/completions", PARENT, 0.0);
    let mut steps = RequestSteps::of(&case.context.trace).expect("traced");
    steps.hold_began(case.at(5));
    case.steps = steps.take();
    case.conclusion = Conclusion { outcome: Outcome::ClientLeft, status: None, reason: None };
    case.export();
    let spans = spans();
    let shown: Vec<_> = spans.iter().map(|span| (span.name.as_str(), times(span))).collect();
    assert_eq!(shown, [("text_completion m", (0, 2000)), ("hold", (5, 2000))]);
    assert!(spans[0].status.is_none(), "a client that leaves is not an error");
}

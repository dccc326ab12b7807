//! The export over HTTP to a receiver that answers as a test decides.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use forebay_config::OpenTelemetry;
use forebay_telemetry::context::TraceContext;
use forebay_telemetry::span::{Kind, Parent, Span, span};
use forebay_telemetry::{Exporter, Settings};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use prost::Message;
use tokio::time::Instant;

const PATIENCE: Duration = Duration::from_secs(60);

/// A receiver that notes the names of the spans it gets.
struct Receiver {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
}

#[derive(Clone, Debug, PartialEq)]
struct Request {
    path: String,
    key: Option<String>,
    spans: Vec<String>,
}

impl Receiver {
    /// Gives these answers in turn, and then 200.
    fn start(answers: Vec<(u16, Vec<u8>)>) -> Self {
        Self::ordering("0", answers)
    }

    /// The same, with this `retry-after`.
    fn ordering(pause: &'static str, answers: Vec<(u16, Vec<u8>)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        let answers = Mutex::new(VecDeque::from(answers));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                serve(stream, pause, &answers, &seen);
            }
        });
        Self { address, requests }
    }

    fn requests(&self) -> Vec<Request> {
        self.requests.lock().expect("no panic").clone()
    }

    /// Waits for this many requests.
    fn wait_for(&self, count: usize) -> Vec<Request> {
        let until = Instant::now() + PATIENCE;
        while self.requests().len() < count {
            assert!(Instant::now() < until, "{:?}", self.requests());
            std::thread::sleep(Duration::from_millis(10));
        }
        self.requests()
    }
}

fn serve(
    mut stream: TcpStream,
    pause: &str,
    answers: &Mutex<VecDeque<(u16, Vec<u8>)>>,
    seen: &Mutex<Vec<Request>>,
) {
    let (mut bytes, mut part) = (Vec::new(), [0; 4096]);
    while let Ok(count @ 1..) = stream.read(&mut part) {
        bytes.extend_from_slice(&part[..count]);
        let Some(head) = bytes.windows(4).position(|at| at == b"\r\n\r\n") else { continue };
        let text = String::from_utf8_lossy(&bytes[..head]).into_owned();
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.map(|value| value.trim().to_owned())
        };
        let length: usize = field("content-length:").expect("framed").parse().expect("a number");
        if bytes.len() < head + 4 + length {
            continue;
        }
        let body = &bytes[head + 4..head + 4 + length];
        let request = ExportTraceServiceRequest::decode(body).expect("OTLP");
        let all = request.resource_spans.into_iter().flat_map(|all| all.scope_spans);
        let spans = all.flat_map(|all| all.spans).map(|span| span.name).collect();
        let path = text.split(' ').nth(1).expect("a path").to_owned();
        seen.lock().expect("no panic").push(Request { path, key: field("x-key:"), spans });
        let next = answers.lock().expect("no panic").pop_front();
        let (status, body) = next.unwrap_or((200, Vec::new()));
        let head = format!(
            "HTTP/1.1 {status} OK\r\ncontent-type: application/x-protobuf\r\nretry-after: {pause}\r\n\
             connection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let _ = stream.write_all(&[head.as_bytes(), &body].concat());
        return;
    }
}

fn settings(endpoint: &str, delay: &str) -> Settings {
    let config = OpenTelemetry { endpoint: Some(endpoint.to_owned()), ..OpenTelemetry::default() };
    let delay = delay.to_owned();
    Settings::resolve(&config, "test", move |name| match name {
        "OTEL_BSP_SCHEDULE_DELAY" => Some(delay.clone()),
        "OTEL_METRICS_EXPORTER" => Some("none".to_owned()),
        _ => None,
    })
}

fn one(name: &str) -> Vec<Span> {
    let now = std::time::SystemTime::now();
    vec![span(name, Kind::Internal, TraceContext::random(true), Parent::None, (now, now))]
}

fn start(settings: Settings) -> Exporter {
    let exporter = Exporter::start(settings, "1", |_| Vec::new()).expect("usable");
    exporter.expect("an endpoint")
}

fn names(requests: &[Request]) -> Vec<Vec<String>> {
    requests.iter().map(|request| request.spans.clone()).collect()
}

#[tokio::test]
async fn spans_are_exported_after_a_delay_and_at_the_end() {
    let receiver = Receiver::start(Vec::new());
    let exporter = start(settings(&format!("http://{}", receiver.address), "10"));
    let tracer = exporter.telemetry().tracer.clone().expect("traces");
    tracer.export(one("first"));
    let first = receiver.wait_for(1);
    assert_eq!(first[0].path, "/v1/traces");
    drop(exporter);

    let exporter = start(settings(&format!("http://{}", receiver.address), "3600000"));
    let tracer = exporter.telemetry().tracer.clone().expect("traces");
    tracer.export(one("last"));
    assert!(exporter.finish(PATIENCE).await);
    assert_eq!(names(&receiver.requests()), [["first"], ["last"]]);
}

#[tokio::test]
async fn an_export_that_may_succeed_later_is_repeated_and_a_refused_one_is_not() {
    let partial =
        ExportTracePartialSuccess { rejected_spans: 1, error_message: "too old".to_owned() };
    let partial = ExportTraceServiceResponse { partial_success: Some(partial) }.encode_to_vec();
    let answers = vec![(503, Vec::new()), (429, Vec::new()), (200, partial), (400, Vec::new())];
    let receiver = Receiver::start(answers);
    let exporter = start(settings(&format!("http://{}", receiver.address), "10"));
    let tracer = exporter.telemetry().tracer.clone().expect("traces");
    tracer.export(one("a"));
    receiver.wait_for(3);
    tracer.export(one("b"));
    receiver.wait_for(4);
    tracer.export(one("c"));
    let all = receiver.wait_for(5);
    assert_eq!(names(&all), [["a"], ["a"], ["a"], ["b"], ["c"]]);
}

#[tokio::test]
async fn spans_wait_while_the_receiver_orders_a_pause_and_are_tried_once_more_at_the_end() {
    let answers = vec![(429, Vec::new()), (200, Vec::new())];
    let receiver = Receiver::ordering("18446744073709551615", answers);
    let exporter = start(settings(&format!("http://{}", receiver.address), "10"));
    let tracer = exporter.telemetry().tracer.clone().expect("traces");
    tracer.export(one("a"));
    receiver.wait_for(1);
    tracer.export(one("b"));
    assert!(exporter.finish(PATIENCE).await);
    assert_eq!(names(&receiver.requests()), [["a"], ["a"], ["b"]]);
}

#[tokio::test]
async fn headers_are_read_anew_for_each_export() {
    let receiver = Receiver::start(Vec::new());
    let file = std::env::temp_dir().join(format!("forebay-headers-{}", std::process::id()));
    let mut settings = settings(&format!("http://{}/base/", receiver.address), "10");
    let traces = settings.traces.as_mut().expect("an endpoint");
    traces.receiver.headers = forebay_telemetry::settings::Headers::File(file.clone());
    let exporter = start(settings);
    let tracer = exporter.telemetry().tracer.clone().expect("traces");
    for key in ["one", "two"] {
        std::fs::write(&file, format!("x-key: {key}\n")).expect("written");
        let before = receiver.requests().len();
        tracer.export(one(key));
        receiver.wait_for(before + 1);
    }
    let keys: Vec<_> = receiver.requests().into_iter().map(|request| request.key).collect();
    assert_eq!(keys, [Some("one".to_owned()), Some("two".to_owned())]);
    assert_eq!(receiver.requests()[0].path, "/base/v1/traces");
    std::fs::remove_file(&file).expect("ours");
}

#[tokio::test]
async fn a_receiver_that_is_gone_or_silent_delays_the_end_by_its_bound_only() {
    let gone = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let silent_at = silent.local_addr().expect("bound");
    for (address, within, finishes) in
        [(gone, PATIENCE, true), (silent_at, Duration::from_millis(500), false)]
    {
        let exporter = start(settings(&format!("http://{address}"), "10"));
        let tracer = exporter.telemetry().tracer.clone().expect("traces");
        // More than the queue takes.
        (0..20_000).for_each(|_| tracer.export(one("x")));
        assert_eq!(exporter.finish(within).await, finishes, "{address}");
    }
}

//! Traces and metrics in a real OpenTelemetry Collector, which writes what it gets to files.
//!
//! Skipped, with a note, where `tests/collector/build` has not built one; with
//! `FOREBAY_REQUIRE_COLLECTOR` set that is a failure.

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use support::prometheus::free_port;
use support::sims::Sim;
use support::{Forebay, chat, eventually, exchange, kill, post, status};

/// A Collector, on ports that it keeps over restarts.
struct Collector {
    binary: PathBuf,
    folder: PathBuf,
    grpc: u16,
    http: u16,
    child: Option<Child>,
}

impl Collector {
    /// Starts one; `None` where there is none. Its gRPC is encrypted if a certificate and its key are
    /// given.
    fn start(name: &str, tls: Option<(&str, &str)>) -> Option<Self> {
        let built = std::env::var_os("FOREBAY_COLLECTOR").map(PathBuf::from);
        let cache = || {
            let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
            let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home);
            cache.unwrap_or_default().join("forebay-ci/collector")
        };
        let binary = built.unwrap_or_else(cache);
        if !binary.exists() {
            assert!(
                std::env::var_os("FOREBAY_REQUIRE_COLLECTOR").is_none(),
                "there is no {}, and FOREBAY_REQUIRE_COLLECTOR is set",
                binary.display()
            );
            eprintln!("skipped: no Collector here; run tests/collector/build");
            return None;
        }
        let folder =
            std::env::temp_dir().join(format!("forebay-otel-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        if let Some((certificate, key)) = tls {
            std::fs::write(folder.join("crt"), certificate).expect("written");
            std::fs::write(folder.join("key"), key).expect("written");
        }
        let (grpc, http) = (free_port(), free_port());
        let mut collector = Self { binary, folder, grpc, http, child: None };
        collector.begin();
        Some(collector)
    }

    fn begin(&mut self) {
        let Self { folder, grpc, http, .. } = &*self;
        let file = folder.join("collector.yaml");
        let (certificate, key) = (folder.join("crt"), folder.join("key"));
        let tls = match certificate.exists() {
            true => {
                let (certificate, key) = (certificate.display(), key.display());
                format!(", tls: {{cert_file: '{certificate}', key_file: '{key}'}}")
            }
            false => String::new(),
        };
        let config = format!(
            "receivers: {{otlp: {{protocols: {{grpc: {{endpoint: '127.0.0.1:{grpc}'{tls}}}, http: {{endpoint: '127.0.0.1:{http}'}}}}}}}}
exporters: {{lines: {{folder: '{}'}}}}
service:
  pipelines:
    traces: {{receivers: [otlp], exporters: [lines]}}
    metrics: {{receivers: [otlp], exporters: [lines]}}
",
            folder.display()
        );
        std::fs::write(&file, config).expect("written");
        let child = Command::new(&self.binary)
            .arg(format!("--config={}", file.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.child = Some(child.expect("the Collector starts"));
        for port in [self.grpc, self.http] {
            eventually("the Collector listens", || {
                std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
            });
        }
    }

    fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn lines(&self, file: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.folder.join(file)).unwrap_or_default();
        // The last line may be half written.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    /// All spans so far.
    fn spans(&self) -> Vec<Value> {
        let mut all = Vec::new();
        for line in self.lines("traces") {
            for of_process in items(&line["resourceSpans"]) {
                for of_scope in items(&of_process["scopeSpans"]) {
                    all.extend(items(&of_scope["spans"]).iter().cloned());
                }
            }
        }
        all
    }

    /// The spans of the trace that has a span with this attribute, once there are any.
    fn trace(&self, name: &str, value: &str) -> Vec<Value> {
        let mut found = Vec::new();
        eventually("the trace arrives", || {
            let spans = self.spans();
            let known =
                spans.iter().find(|span| attributes(span).get(name).is_some_and(|v| v == value));
            let Some(known) = known else { return false };
            found =
                spans.iter().filter(|span| span["traceId"] == known["traceId"]).cloned().collect();
            true
        });
        found
    }

    /// The last state of each metric by name.
    fn metrics(&self) -> BTreeMap<String, Value> {
        let mut all = BTreeMap::new();
        for line in self.lines("metrics") {
            for of_process in items(&line["resourceMetrics"]) {
                for of_scope in items(&of_process["scopeMetrics"]) {
                    for metric in items(&of_scope["metrics"]) {
                        let name = metric["name"].as_str().expect("a name").to_owned();
                        all.insert(name, metric.clone());
                    }
                }
            }
        }
        all
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.stop();
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }
}

fn items(list: &Value) -> &[Value] {
    list.as_array().map_or(&[], Vec::as_slice)
}

/// The attributes of a span, a data point or a resource, as text.
fn attributes(of: &Value) -> BTreeMap<String, String> {
    let text = |value: &Value| match value.as_object().and_then(|value| value.values().next()) {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    };
    let pair =
        |pair: &Value| (pair["key"].as_str().expect("a name").to_owned(), text(&pair["value"]));
    items(&of["attributes"]).iter().map(pair).collect()
}

fn named<'a>(spans: &'a [Value], name: &str) -> Vec<&'a Value> {
    spans.iter().filter(|span| span["name"] == name).collect()
}

/// The only span of this name.
fn only<'a>(spans: &'a [Value], name: &str) -> &'a Value {
    let all = named(spans, name);
    assert_eq!(all.len(), 1, "{name} in {spans:?}");
    all[0]
}

/// A chat request with more headers.
fn with(headers: &str) -> Vec<u8> {
    let request = String::from_utf8(chat(true, 5)).expect("text");
    request.replacen("connection: close\r\n", &format!("connection: close\r\n{headers}"), 1).into()
}

/// Starts `forebay run` with this configuration, and with these variables.
fn run(collector: &Collector, config: &str, variables: &str) -> Forebay {
    let file = collector.folder.join("forebay.yaml");
    let top = "gateway: {listen: 127.0.0.1:0}\nadmin: {listen: 127.0.0.1:0}\n";
    std::fs::write(&file, format!("{top}{config}")).expect("written");
    let arguments = ["run", "--config", file.to_str().expect("text")];
    Forebay::in_shell(&format!("export {variables}"), &arguments, "info")
}

#[test]
fn requests_decisions_and_metrics_arrive_at_a_collector_by_grpc() {
    let Some(collector) = Collector::start("grpc", None) else { return };
    let config = format!(
        "logging: {{format: json}}
openTelemetry:
  endpoint: http://127.0.0.1:{}
  protocol: grpc
  resourceAttributes: {{deployment.environment.name: test}}
  traces: {{sampleRatio: 0, alwaysOver: 500ms}}
  metrics: {{interval: 1s}}
pools:
- name: sim
  models: [sim]
  target:
    processes:
      command: ['{}', vllm-sim, --port, '{{port}}', --cold-start, 1s, --decode-step-ms, '1']
- name: gone
  models: [gone]
  endpoints: ['127.0.0.1:1']
  hold: {{timeout: 100ms}}
",
        collector.grpc,
        env!("CARGO_BIN_EXE_forebay")
    );
    let mut forebay = run(&collector, &config, "OTEL_BSP_SCHEDULE_DELAY=100");

    // Not sampled, but held for a cold start.
    let answer = exchange(forebay.address, &with("x-request-id: held\r\n"));
    assert_eq!(status(&answer), 200, "{answer}");
    let spans = collector.trace("forebay.request_id", "held");
    let root = only(&spans, "chat sim");
    for child in ["hold", "try", "stream"] {
        let child = only(&spans, child);
        assert_eq!(child["parentSpanId"], root["spanId"], "{child}");
    }
    let of_root = attributes(root);
    for (name, want) in [
        ("gen_ai.operation.name", "chat"),
        ("gen_ai.provider.name", "vllm"),
        ("gen_ai.request.model", "sim"),
        ("gen_ai.usage.output_tokens", "5"),
        ("http.response.status_code", "200"),
        ("forebay.exported_because", "held"),
    ] {
        assert_eq!(of_root.get(name).map(String::as_str), Some(want), "{name} in {of_root:?}");
    }
    assert!(of_root.contains_key("gen_ai.response.time_to_first_chunk"), "{of_root:?}");
    let log = forebay.wait_for("\"request_id\":\"held\"");
    let log: Value = serde_json::from_str(&log).expect("JSON");
    assert_eq!(log["trace_id"], root["traceId"]);

    // The decision that it brought about is linked to it.
    let decision = collector.trace("forebay.scale.to", "1");
    let decision = only(&decision, "scale sim");
    let links = items(&decision["links"]);
    let linked = |link: &Value| (link["traceId"].clone(), link["spanId"].clone());
    assert!(links.iter().map(linked).any(|link| link == linked(root)), "{decision}");

    // A client's decision counts; the share, which is zero, for all others.
    let client = "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7";
    assert_eq!(status(&exchange(forebay.address, &with("x-request-id: unsampled\r\n"))), 200);
    let parent = format!("x-request-id: clients\r\ntraceparent: 00-{client}-01\r\n");
    assert_eq!(status(&exchange(forebay.address, &with(&parent))), 200);
    let spans = collector.trace("forebay.request_id", "clients");
    let root = only(&spans, "chat sim");
    assert_eq!(root["traceId"], client[..32]);
    assert_eq!(root["parentSpanId"], client[33..]);

    // A failure is always exported.
    let body = r#"{"model":"gone","messages":[]}"#;
    let refused = exchange(forebay.address, &post("/v1/chat/completions", body));
    assert_eq!(status(&refused), 503, "{refused}");
    let spans = collector.trace("gen_ai.request.model", "gone");
    let failed = only(&spans, "chat gone");
    assert_eq!(failed["status"]["code"], 2, "{failed}");
    assert_eq!(attributes(failed)["forebay.exported_because"], "failed");
    let all = collector.spans();
    let ids: Vec<_> =
        all.iter().filter_map(|span| attributes(span).remove("forebay.request_id")).collect();
    assert!(!ids.contains(&"unsampled".to_owned()), "{ids:?}");

    // Figures by both names, with the process that they are of.
    eventually("metrics arrive", || {
        let metrics = collector.metrics();
        let count = |name: &str| {
            let points = items(&metrics.get(name)?["histogram"]["dataPoints"]).to_vec();
            let counts =
                points.iter().filter_map(|point| point["count"].as_str()?.parse::<u64>().ok());
            Some(counts.sum::<u64>())
        };
        count("gen_ai.server.request.duration") == Some(4)
            && count("gen_ai.server.time_to_first_token") == Some(3)
            && count("gen_ai.server.time_per_output_token") == Some(3)
            && count("gen_ai.client.token.usage") == Some(6)
            && metrics.contains_key("forebay_requests_total")
            && metrics.contains_key("forebay_endpoint_ready")
            && count("forebay_ttft_seconds") == Some(3)
    });
    let duration = &collector.metrics()["gen_ai.server.request.duration"];
    let points = items(&duration["histogram"]["dataPoints"]);
    let of_sim = points.iter().map(attributes).find(|labels| labels["forebay.pool"] == "sim");
    let of_sim = of_sim.expect("the pool's");
    assert_eq!(of_sim["gen_ai.operation.name"], "chat");
    assert_eq!(of_sim["gen_ai.request.model"], "sim");
    assert_eq!(duration["unit"], "s");
    let lines = collector.lines("metrics");
    let process = attributes(&lines[0]["resourceMetrics"][0]["resource"]);
    assert_eq!(process["service.name"], "forebay");
    assert_eq!(process["deployment.environment.name"], "test");
    assert_eq!(
        forebay.metric("forebay_otlp_dropped_spans_total{reason=\"queue_full\"}"),
        Some(0.0)
    );

    // The last spans are exported before the process ends.
    let last = format!("x-request-id: last\r\ntraceparent: 00-{client}-01\r\n");
    assert_eq!(status(&exchange(forebay.address, &with(&last))), 200);
    forebay.signal("TERM");
    assert!(forebay.wait().success());
    let ids = collector.spans();
    let mut ids = ids.iter().filter_map(|span| attributes(span).remove("forebay.request_id"));
    assert!(ids.any(|id| id == "last"), "{ids:?}");
}

#[test]
fn a_collector_that_is_gone_does_no_harm_and_gets_what_comes_after_its_return() {
    let Some(collector) = Collector::start("http", None) else { return };
    let variables = format!("OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:{}", collector.http);
    gone_and_back(collector, &variables);
}

#[test]
fn the_same_over_grpc_and_tls() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("made");
    let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    let Some(collector) = Collector::start("tls", Some((&certificate, &key))) else { return };
    let variables = format!(
        "OTEL_EXPORTER_OTLP_ENDPOINT=https://localhost:{} OTEL_EXPORTER_OTLP_PROTOCOL=grpc \
         OTEL_EXPORTER_OTLP_CERTIFICATE={}",
        collector.grpc,
        collector.folder.join("crt").display()
    );
    gone_and_back(collector, &variables);
}

/// A gateway that exports as these variables say goes on while the Collector is gone.
fn gone_and_back(mut collector: Collector, variables: &str) {
    let sim = Sim::start(&[]);
    let config = format!("pools: [{{name: sim, models: [sim], endpoints: ['{}']}}]\n", sim.address);
    let variables = format!(
        "{variables} OTEL_EXPORTER_OTLP_TIMEOUT=3000 OTEL_BSP_SCHEDULE_DELAY=100 \
         OTEL_METRICS_EXPORTER=none OTEL_SERVICE_NAME=mine"
    );
    let mut forebay = run(&collector, &config, &variables);
    assert_eq!(status(&exchange(forebay.address, &with("x-request-id: first\r\n"))), 200);
    let spans = collector.trace("forebay.request_id", "first");
    assert_eq!(named(&spans, "try").len(), 1, "{spans:?}");
    let process = attributes(&collector.lines("traces")[0]["resourceSpans"][0]["resource"]);
    assert_eq!(process["service.name"], "mine");
    assert!(collector.metrics().is_empty());

    collector.stop();
    for _ in 0..20 {
        assert_eq!(status(&exchange(forebay.address, &with(""))), 200);
    }
    let dropped = "forebay_otlp_dropped_spans_total{reason=\"undelivered\"}";
    eventually("lost spans are counted", || {
        forebay.metric(dropped).is_some_and(|count| count > 0.0)
    });
    forebay.wait_for("traces can't be exported to http");

    collector.begin();
    eventually("spans arrive again", || {
        exchange(forebay.address, &with("x-request-id: again\r\n"));
        let spans = collector.spans();
        spans
            .iter()
            .any(|span| attributes(span).get("forebay.request_id").is_some_and(|id| id == "again"))
    });

    // A receiver that takes connections and never answers delays the end by its bound only.
    kill(collector.child.as_ref().expect("runs").id(), "STOP");
    assert_eq!(status(&exchange(forebay.address, &with(""))), 200);
    forebay.signal("TERM");
    assert!(forebay.wait().success());
}

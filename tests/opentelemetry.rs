//! Traces and metrics in a real OpenTelemetry Collector, which writes what it gets to files.
//!
//! Skipped, with a note, where `tests/collector/build` has not built one; with
//! `FOREBAY_REQUIRE_COLLECTOR` set that is a failure.

mod support;

use std::io::{Read, Write};

use serde_json::Value;
use support::collector::{Collector, attributes, items};
use support::sims::Sim;
use support::{Forebay, chat, connect, eventually, exchange, kill, post, status};

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
    let top =
        "gateway: {listen: 127.0.0.1:0, endpointHeader: true}\nadmin: {listen: 127.0.0.1:0}\n";
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
    let variables = format!(
        "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:{} OTEL_EXPORTER_OTLP_COMPRESSION=gzip",
        collector.http
    );
    gone_and_back(collector, &variables);
}

#[test]
fn the_same_over_grpc_and_tls_on_both_sides() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("made");
    let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    let Some(collector) = Collector::start("tls", Some((&certificate, &key))) else { return };
    let variables = format!(
        "OTEL_EXPORTER_OTLP_ENDPOINT=https://localhost:{} OTEL_EXPORTER_OTLP_PROTOCOL=grpc \
         OTEL_EXPORTER_OTLP_CERTIFICATE={certificate} OTEL_EXPORTER_OTLP_COMPRESSION=gzip \
         OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE={certificate} OTEL_EXPORTER_OTLP_CLIENT_KEY={key}",
        collector.grpc,
        certificate = collector.folder.join("crt").display(),
        key = collector.folder.join("key").display(),
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
    kill(collector.pid(), "STOP");
    assert_eq!(status(&exchange(forebay.address, &with(""))), 200);
    forebay.signal("TERM");
    assert!(forebay.wait().success());
}

#[test]
fn a_stream_that_goes_on_elsewhere_has_a_try_at_each_replica() {
    let Some(collector) = Collector::start("continued", None) else { return };
    let sims: [Sim; 2] = std::array::from_fn(|_| Sim::start(&["--decode-step-ms", "20"]));
    let config = format!(
        "pools: [{{name: p, models: [sim], continue: auto, pick: leastLoad, endpoints: ['{}', '{}']}}]\n",
        sims[0].address, sims[1].address
    );
    let variables = format!(
        "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:{} OTEL_BSP_SCHEDULE_DELAY=100",
        collector.http
    );
    let forebay = run(&collector, &config, &variables);
    eventually("both are ready", || {
        let signals = forebay.signals();
        sims.iter().all(|sim| signals["endpoints"][sim.address.to_string()]["health"] == "ready")
    });
    // This shows that their token ids can be had.
    assert_eq!(status(&exchange(forebay.address, &chat(true, 2))), 200);
    let request = String::from_utf8(chat(true, 150)).expect("text");
    let request = request.replacen("host:", "x-request-id: moved\r\nhost:", 1);
    let mut stream = connect(forebay.address);
    stream.write_all(request.as_bytes()).expect("sent");
    let mut begun = [0; 1500];
    stream.read_exact(&mut begun).expect("the answer has begun");
    let begun = String::from_utf8_lossy(&begun);
    let serves = |sim: &&Sim| begun.contains(&format!("x-forebay-endpoint: {}\r\n", sim.address));
    sims.iter().find(serves).expect("the answer names its replica").signal("KILL");
    let mut rest = String::new();
    stream.read_to_string(&mut rest).expect("the rest");
    assert!(rest.contains("data: [DONE]"), "{rest}");

    let spans = collector.trace("forebay.request_id", "moved");
    let tries = named(&spans, "try");
    assert_eq!(tries.len(), 2, "{spans:?}");
    let of: Vec<_> = tries.iter().map(|span| attributes(span)).collect();
    assert_ne!(of[0]["server.port"], of[1]["server.port"]);
    assert!(of[0].contains_key("error.type") && !of[1].contains_key("error.type"), "{of:?}");
    assert_eq!(named(&spans, "hold").len(), 2, "{spans:?}");
    let root = attributes(only(&spans, "chat sim"));
    assert_eq!(root["forebay.continued"], "1", "{root:?}");
    assert_eq!(root["forebay.outcome"], "completed", "{root:?}");
}

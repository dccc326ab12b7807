//! vLLM's own spans, in the trace of the request that the gateway sent.

use std::net::SocketAddr;

use serde_json::Value;

use crate::support::collector::{Collector, attributes};
use crate::support::{Forebay, eventually, exchange, post, status};

/// The flag with which vLLM exports its spans to this Collector.
pub(crate) fn flag(collector: &Collector) -> String {
    format!("--otlp-traces-endpoint=http://127.0.0.1:{}", collector.grpc)
}

/// Asks the vLLM at `address` through a gateway: its span is a child of the gateway's try.
pub(crate) fn join(address: SocketAddr, collector: &Collector) {
    let file = collector.folder.join("forebay.yaml");
    let config = format!(
        "gateway: {{listen: 127.0.0.1:0}}
admin: {{listen: 127.0.0.1:0}}
openTelemetry: {{endpoint: 'http://127.0.0.1:{}', metrics: {{enabled: false}}}}
pools: [{{name: p, models: [tiny], endpoints: ['{address}']}}]
",
        collector.http
    );
    std::fs::write(&file, config).expect("written");
    let arguments = ["gateway", "--config", file.to_str().expect("text")];
    let gateway = Forebay::in_shell("export OTEL_BSP_SCHEDULE_DELAY=100", &arguments, "info");
    let body = r#"{"model":"tiny","max_tokens":4,"stream":true,"messages":[{"role":"user","content":"hi"}]}"#;
    let answer = exchange(gateway.address, &post("/v1/chat/completions", body));
    assert_eq!(status(&answer), 200, "{answer}");
    let mut engine = Value::Null;
    eventually("vLLM's span arrives", || {
        let spans = collector.spans();
        let tried = spans.iter().find(|span| span["name"] == "try");
        let child =
            |span: &&Value| tried.is_some_and(|tried| span["parentSpanId"] == tried["spanId"]);
        engine = spans.iter().find(child).cloned().unwrap_or_default();
        !engine.is_null()
    });
    assert_eq!(engine["name"], "llm_request", "{engine}");
    let of_engine = attributes(&engine);
    assert_eq!(of_engine.get("gen_ai.usage.completion_tokens").map(String::as_str), Some("4"));
    let trace = collector.trace("gen_ai.request.model", "tiny");
    assert!(trace.iter().any(|span| span["spanId"] == engine["spanId"]), "{trace:?}");
}

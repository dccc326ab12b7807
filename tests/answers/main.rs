//! The answers that clients get, against an upstream that plays a script byte by byte.

#[path = "../support/mod.rs"]
mod support;

mod broken;
mod passed_on;
mod request;
mod waiting;

use std::path::Path;

use support::upstream::{Step, Upstream, chunk, stream_head};
use support::{Forebay, eventually, post};

const CHAT: &str = "/v1/chat/completions";
const TOKEN: &str =
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"},\"finish_reason\":null}]}\n\n";
const DONE: &str = "data: [DONE]\n\n";

/// A gateway in front of these upstreams, once all are ready; `pool` has more fields of the pool.
fn gateway(name: &str, upstreams: &[&Upstream], pool: &str) -> Forebay {
    let endpoints: Vec<_> =
        upstreams.iter().map(|upstream| format!("'{}'", upstream.address)).collect();
    let config = format!(
        "gateway: {{listen: '127.0.0.1:0', threads: 1}}
admin: {{listen: '127.0.0.1:0'}}
pools:
- name: p
  endpoints: [{}]
{pool}",
        endpoints.join(", ")
    );
    let file = std::env::temp_dir().join(format!("forebay-{}-{name}.yaml", std::process::id()));
    std::fs::write(&file, config).expect("a temporary file");
    let forebay = Forebay::start(
        &["gateway", "--config", &file.display().to_string()],
        "info,forebay_gateway=debug",
    );
    eventually("all endpoints are ready", || {
        let signals = forebay.signals();
        let endpoints = signals["endpoints"].as_object().expect("a map");
        endpoints.len() == upstreams.len()
            && endpoints.values().all(|endpoint| endpoint["health"] == "ready")
    });
    forebay
}

/// The beginning of a stream: its head, and these pieces.
fn streamed(pieces: &[&str]) -> Vec<Step> {
    let mut bytes = stream_head();
    pieces.iter().for_each(|piece| bytes.extend(chunk(piece)));
    vec![Step::Send(bytes)]
}

/// A stream of these pieces that ends properly.
fn ended(pieces: &[&str]) -> Vec<Step> {
    let mut steps = streamed(pieces);
    steps.push(Step::Send(chunk("")));
    steps
}

fn request(path: &str, stream: bool) -> Vec<u8> {
    post(path, &format!(r#"{{"model":"sim","stream":{stream},"max_tokens":4,"messages":[]}}"#))
}

fn fixture(name: &str) -> Vec<u8> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("loadtests/fixtures/vllm");
    std::fs::read(root.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The next line of the log with `text`, as JSON.
fn logged(forebay: &mut Forebay, text: &str) -> serde_json::Value {
    let line = forebay.wait_for(text);
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

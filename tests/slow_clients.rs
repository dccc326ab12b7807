//! Clients that send or read too slowly: they are closed or answered in time, and no other client
//! waits.

mod support;

use std::io::{Read, Write};
use std::time::Duration;

use support::upstream::{Step, Upstream, chunk, stream_head};
use support::{Forebay, connect, gateway, get, json, status};

/// Two fixed addresses where nothing listens, and short limits.
const CONFIG: &str = "
gateway:
  listen: 127.0.0.1:0
  limits: {headerTimeout: 300ms, bodyTimeout: 300ms, bodySize: 1Ki}
admin: {listen: '127.0.0.1:0'}
pools:
- {name: a, models: [a], endpoints: ['127.0.0.1:9'], hold: {timeout: 300ms}}
- {name: b, models: [b], endpoints: ['127.0.0.1:9']}
";

fn start(name: &str) -> Forebay {
    let file = std::env::temp_dir().join(format!("forebay-{}-{name}.yaml", std::process::id()));
    std::fs::write(&file, CONFIG).expect("a temporary file");
    let path = file.display().to_string();
    Forebay::start(&["gateway", "--config", &path], "info")
}

#[test]
fn an_unfinished_head_is_closed_and_an_unfinished_body_gets_a_408() {
    let forebay = start("slow");
    let mut head = connect(forebay.address);
    head.write_all(b"POST /v1/chat/completions HTTP/1.1\r\nhost").expect("sent");
    let mut rest = String::new();
    let _ = head.read_to_string(&mut rest);
    assert!(matches!(status(&rest), 0 | 408), "{rest}");

    let mut body = connect(forebay.address);
    let request = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n\
                   content-type: application/json\r\ncontent-length: 100\r\n\r\n{";
    body.write_all(request.as_bytes()).expect("sent");
    let mut answer = String::new();
    let _ = body.read_to_string(&mut answer);
    assert_eq!(status(&answer), 408, "{answer}");
    assert_eq!(json(&answer)["error"]["code"], 408);
    assert_eq!(status(&get(forebay.address, "/health")), 200);
}

#[test]
fn a_client_that_reads_nothing_loses_its_place() {
    let exe = env!("CARGO_BIN_EXE_forebay");
    let config = format!(
        "gateway: {{listen: '127.0.0.1:0', limits: {{writeTimeout: 1s}}}}
admin: {{listen: '127.0.0.1:0'}}
pools:
- name: sim
  models: [sim]
  target: {{processes: {{command: [{exe}, vllm-sim, --port, '{{port}}', --decode-step-ms, '0', --decode-step-ms-per-seq, '0']}}}}
"
    );
    let file = std::env::temp_dir().join(format!("forebay-{}-deaf.yaml", std::process::id()));
    std::fs::write(&file, config).expect("a temporary file");
    let forebay = Forebay::start(&["run", "--config", &file.display().to_string()], "info");
    let mut client = connect(forebay.address);
    // Several megabytes of events: more than the sockets' buffers on the way.
    client.write_all(&support::chat(true, 30_000)).expect("sent");
    let totals = || forebay.signals()["totals"].clone();
    support::eventually("the request is released", || totals()["released"] == 1);
    support::eventually("the request is cut off", || {
        forebay.signals()["inFlight"] == 0 && totals()["clientLeft"] == 1
    });
}

#[test]
fn a_client_that_reads_slowly_gets_no_more_than_the_time_for_one_request() {
    let text = "x".repeat(16_000);
    let event = format!(r#"data: {{"choices":[{{"index":0,"delta":{{"content":"{text}"}}}}]}}"#);
    // More than the sockets' buffers on the way.
    let events = chunk(&format!("{event}\n\n")).repeat(3_000);
    let upstream = Upstream::start(move |_| {
        let end = [chunk("data: [DONE]\n\n"), chunk("")].concat();
        [stream_head(), events.clone(), end].map(Step::Send).to_vec()
    });
    let forebay = gateway(&[upstream.address], &["sim"], "requestTimeout: 2s");
    let mut client = connect(forebay.address);
    client.write_all(&support::chat(true, 30_000)).expect("sent");
    let mut piece = vec![0; 64 << 10];
    for _ in 0..60 {
        client.read_exact(&mut piece).expect("there is more");
        std::thread::sleep(Duration::from_millis(50));
    }
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).expect("an end");
    let end = String::from_utf8_lossy(&rest[rest.len().saturating_sub(400)..]);
    assert!(end.contains("The time for one request is over."), "{end}");
}

#[test]
fn a_chunked_body_over_the_limit_gets_a_413() {
    let forebay = start("chunked");
    let chunk = format!("400\r\n{}\r\n", "a".repeat(0x400)).repeat(3);
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         transfer-encoding: chunked\r\n\r\n{chunk}0\r\n\r\n"
    );
    let answer = support::exchange(forebay.address, request.as_bytes());
    assert_eq!(status(&answer), 413, "{answer}");
}

#[test]
fn several_pools_require_a_model_and_an_expired_hold_gets_a_503_with_retry_after() {
    let forebay = start("pools");
    let post = |body| support::exchange(forebay.address, &support::post("/v1/completions", body));
    let none = post("{}");
    assert_eq!(status(&none), 400, "{none}");
    let message = json(&none)["error"]["message"].as_str().expect("text").to_owned();
    assert!(message.contains("`a`, `b`"), "{message}");
    let expired = post(r#"{"model":"a","prompt":"x"}"#);
    assert_eq!(status(&expired), 503, "{expired}");
    assert!(expired.contains("\r\nretry-after: 1\r\n"), "{expired}");
}

//! Answers that go through unchanged, and what is counted of them.

use std::io::{Read, Write};
use std::path::Path;

use crate::support::reply::{ask, parse};
use crate::support::upstream::{Received, Step, Upstream, plain};
use crate::support::{connect, eventually, post};
use crate::{CHAT, TOKEN, fixture, gateway, logged, request, streamed};

#[test]
fn usage_is_requested_and_removed_again_to_the_byte() {
    let recorded = fixture("a-default/chat_stream_usage.resp");
    let answer = recorded.clone();
    let upstream = Upstream::start(move |_| vec![Step::Send(answer.clone())]);
    let mut forebay = gateway("usage", &[&upstream], "");
    let whole = parse(&recorded);
    let reply = ask(forebay.address, &request(CHAT, true));
    let sent = upstream.received().pop().expect("one").text();
    assert_eq!(
        sent,
        r#"{"stream_options":{"include_usage":true},"return_token_ids":true,"model":"sim","stream":true,"max_tokens":4,"messages":[]}"#
    );
    let usage_chunk = |event: &&str| event.contains(r#""choices":[],"usage":{"#);
    let text = whole.text();
    let without: String =
        text.split_inclusive("\n\n").filter(|event| !usage_chunk(event)).collect();
    assert!(without.len() < text.len());
    // A client that does not request usage gets the fingerprint in the chunk before.
    let stamp = r#"}],"system_fingerprint":"vllm-0.32.0-bb9e77f2"}"#;
    let unrequested = without.replace("}]}\n\ndata: [DONE]", &format!("{stamp}\n\ndata: [DONE]"));
    assert_eq!(reply.text(), unrequested);
    let line = logged(&mut forebay, "forebay::access");
    assert_eq!((&line["prompt_tokens"], &line["generated_tokens"]), (&21.into(), &8.into()));
    assert_eq!((&line["finish"], &line["outcome"]), (&"length".into(), &"completed".into()));
    assert!(line["ttft_ms"].is_u64() && line["upstream_ttft_ms"].is_u64(), "{line}");

    let figure = |series: &str| forebay.metric(series);
    let address = upstream.address;
    for (series, want) in [
        (r#"forebay_requests_total{pool="p",outcome="completed"}"#.to_owned(), 1.0),
        (r#"forebay_finishes_total{pool="p",reason="length"}"#.to_owned(), 1.0),
        (r#"forebay_tenant_generated_tokens_total{tenant="anonymous"}"#.to_owned(), 8.0),
        (r#"forebay_tenant_ttft_seconds_count{tenant="anonymous"}"#.to_owned(), 1.0),
        (format!(r#"forebay_endpoint_prompt_tokens_total{{pool="p",endpoint="{address}"}}"#), 21.0),
        (format!(r#"forebay_endpoint_ttft_seconds_count{{pool="p",endpoint="{address}"}}"#), 1.0),
        (format!(r#"forebay_endpoint_itl_seconds_count{{pool="p",endpoint="{address}"}}"#), 7.0),
    ] {
        eventually(&series, || figure(&series) == Some(want));
    }
    let body = r#"{"stream_options": {"include_usage": true}, "model":"sim", "stream" : true}"#;
    let reply = ask(forebay.address, &post(CHAT, body));
    // The gateway asks for the ids of the answer's tokens, so that another replica can go on with it.
    let asked = body.replacen('{', r#"{"return_token_ids":true,"#, 1);
    assert_eq!(upstream.received().pop().expect("two").text(), asked, "no other byte is changed");
    assert_eq!(reply.text(), text);
}

#[test]
fn every_recorded_answer_goes_through_unchanged() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("loadtests/fixtures/vllm");
    let mut names = Vec::new();
    for folder in ["a-default", "c-options", "e-auth-lora-dev", "h-embeddings"] {
        for entry in std::fs::read_dir(root.join(folder)).expect("fixtures") {
            let path = entry.expect("an entry").path();
            if path.extension().is_some_and(|ext| ext == "req") {
                let name = path.with_extension("");
                names.push(format!("{folder}/{}", name.file_name().expect("a name").display()));
            }
        }
    }
    names.sort();
    let answer = |request: &Received| {
        let name = request.header("x-fixture").expect("named");
        vec![Step::Send(fixture(&format!("{name}.resp"))), Step::Close]
    };
    // It lists no models, so the gateway sends it every name.
    let upstream = Upstream::serving("{}", answer);
    let forebay = gateway("recorded", &[&upstream], "");
    let mut seen = 0;
    for name in names {
        let sent = fixture(&format!("{name}.req"));
        let head = String::from_utf8_lossy(&sent).into_owned();
        let Some((line, _)) = head.split_once("\r\n") else { continue };
        let path = line.split(' ').nth(1).unwrap_or_default();
        let inference =
            line.starts_with("POST /v1/") && !path.contains("lora") && !path.ends_with('/')
                || ["POST /tokenize ", "POST /score ", "POST /rerank "]
                    .iter()
                    .any(|start| line.starts_with(start));
        let want = parse(&fixture(&format!("{name}.resp")));
        // Other tests cover what the gateway refuses, retries or does not serve. These recordings
        // need a framing or a state of the server that this upstream does not have.
        let odd = ["/frame_", "/queue_full", "/inflight_"].iter().any(|part| name.contains(part));
        if odd
            || !inference
            || !want.whole
            || !(200..500).contains(&want.status)
            || want.text().contains("\"abort\"")
        {
            continue;
        }
        let request = parse_request(&sent, &name);
        let got = ask(forebay.address, &request);
        let arrived = |sent: &Received| sent.header("x-fixture") == Some(&name);
        if !upstream.received().iter().any(arrived) {
            // The gateway refused it: broken JSON, or a path that is not exposed.
            assert!((400..500).contains(&got.status), "{name}: {}", got.text());
            continue;
        }
        seen += 1;
        assert_eq!(got.status, want.status, "{name}: {}", got.text());
        assert_eq!(got.header("content-type"), want.header("content-type"), "{name}");
        assert!(
            got.header("server-timing").is_some_and(|timing| timing.contains("upstream;dur=")),
            "{name}"
        );
        let usage = |event: &&str| !event.contains(r#""choices":[],"usage":{"#);
        let (got, want) = (got.text(), want.text());
        if got != want {
            // The gateway removed the usage chunk that it had requested.
            let without: String = want.split_inclusive("\n\n").filter(usage).collect();
            assert_eq!(got, without, "{name}");
        }
    }
    assert!(seen > 80, "only {seen}");
}

/// A recorded request, with headers for this connection and the name of its fixture.
fn parse_request(recorded: &[u8], name: &str) -> Vec<u8> {
    let end = recorded.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
    let head = String::from_utf8_lossy(&recorded[..end]);
    let (line, headers) = head.split_once("\r\n").unwrap_or((&head, ""));
    let line = line.replace("HTTP/1.0", "HTTP/1.1");
    let kept = headers.lines().filter(|line| {
        let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
        !["connection", "host", "content-length", "transfer-encoding", "expect"]
            .contains(&name.as_str())
    });
    let headers: String = kept.map(|line| format!("{line}\r\n")).collect();
    let body = &recorded[end + 4..];
    let mut request = format!(
        "{line}\r\nhost: localhost\r\nconnection: close\r\nx-fixture: {name}\r\n{headers}content-length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    request.extend_from_slice(body);
    request
}

#[test]
fn a_stream_of_unknown_fields_goes_out_as_it_comes() {
    // The upstream sends one event and then nothing: if the gateway holds it back, the client waits
    // forever.
    for (case, delta) in [
        ("audio", r#"{"audio":{"data":"UklGRg=="}}"#),
        ("list", r#"{"content":[{"type":"text","text":"a"}]}"#),
    ] {
        let event = format!("data: {{\"choices\":[{{\"index\":0,\"delta\":{delta}}}]}}\n\n");
        let script = [streamed(&[&event]), vec![Step::Hang]].concat();
        let upstream = Upstream::start(move |_| script.clone());
        let forebay = gateway(&format!("unknown-{case}"), &[&upstream], "");
        let mut client = connect(forebay.address);
        client.write_all(&request(CHAT, true)).expect("sent");
        let mut read = Vec::new();
        while !String::from_utf8_lossy(&read).contains(&event) {
            let mut buffer = [0; 4096];
            let count = client.read(&mut buffer).expect("the event");
            assert!(count > 0, "{case}: {}", String::from_utf8_lossy(&read));
            read.extend_from_slice(&buffer[..count]);
        }
    }
}

#[test]
fn an_end_mark_may_have_a_space_behind_it() {
    let done = "data: [DONE] \n\n";
    let upstream = Upstream::start(move |_| {
        let mut steps = streamed(&[TOKEN, done]);
        steps.push(Step::Close);
        steps
    });
    let forebay = gateway("done", &[&upstream], "");
    let got = ask(forebay.address, &request(CHAT, true));
    assert_eq!(got.text(), format!("{TOKEN}{done}"));
    eventually("the answer counts as complete", || forebay.signals()["totals"]["completed"] == 1);
}

#[test]
fn a_clients_own_error_passes_unchanged_and_is_no_failure_of_the_replica() {
    let body = r#"{"error": {"message":"max_tokens is too large", "type":"BadRequestError","param":"max_tokens","code":400}}"#;
    let upstream = Upstream::start(move |_| vec![Step::Send(plain(400, body))]);
    let mut forebay = gateway("client-error", &[&upstream], "");
    let got = ask(forebay.address, &request(CHAT, true));
    assert_eq!((got.status, got.text().as_str()), (400, body));
    let line = logged(&mut forebay, "forebay::access");
    assert_eq!((&line["outcome"], &line["status"]), (&"client_error".into(), &400.into()));
    eventually("the request counts as answered", || forebay.signals()["totals"]["completed"] == 1);
    let signals = forebay.signals();
    let endpoint = &signals["endpoints"][upstream.address.to_string()];
    assert_eq!((&endpoint["failed"], &endpoint["health"]), (&0.into(), &"ready".into()));
}

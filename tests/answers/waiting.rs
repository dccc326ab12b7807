//! Clients that wait for an answer: heartbeats, holds that expire, clients that leave.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use crate::support::reply::{Reply, ask};
use crate::support::upstream::{Step, Upstream, plain};
use crate::support::{connect, eventually, post};
use crate::{CHAT, DONE, TOKEN, ended, gateway, logged, request, streamed};

#[test]
fn a_waiting_stream_is_kept_alive_and_then_answered() {
    let wait = |case: &str, path: &str, script: Vec<Step>| -> Reply {
        // Silent at first: the first try fails, and heartbeats go on during the second.
        let silent = AtomicBool::new(true);
        let upstream = Upstream::start(move |_| match silent.swap(false, SeqCst) {
            true => vec![Step::Hang],
            false => script.clone(),
        });
        let pool = "  hold: {heartbeat: 100ms}\n  upstream: {stallTimeout: 500ms}\n";
        let forebay = gateway(&format!("beat-{case}"), &[&upstream], pool);
        let got = ask(forebay.address, &request(path, true));
        assert_eq!(got.status, 200, "{case}");
        assert_eq!(got.header("content-type"), Some("text/event-stream; charset=utf-8"), "{case}");
        assert!(got.whole, "{case}: {}", got.text());
        assert!(got.header("server-timing").is_some(), "{case}");
        got
    };
    let got = wait("chat", CHAT, ended(&[TOKEN, DONE])).text();
    assert!(got.starts_with(": waiting\n\n: waiting\n\n"), "{got}");
    assert!(got.ends_with(&format!("\n\n{TOKEN}{DONE}")), "{got}");

    let stop = "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n";
    let got = wait("messages", "/v1/messages", ended(&[stop])).text();
    assert!(got.starts_with("event: ping\ndata: {\"type\":\"ping\"}\n\nevent: ping"), "{got}");
    assert!(got.ends_with(stop), "{got}");

    let error = r#"{"error":{"message":"no","type":"BadRequestError","param":null,"code":400}}"#;
    let got = wait("error", CHAT, vec![Step::Send(plain(400, error))]).text();
    assert!(got.ends_with(&format!(": waiting\n\ndata: {error}\n\n{DONE}")), "{got}");
}

#[test]
fn a_plain_answer_after_a_heartbeat_is_a_failure_of_the_replica() {
    let silent = AtomicBool::new(true);
    let upstream = Upstream::start(move |_| match silent.swap(false, SeqCst) {
        true => vec![Step::Hang],
        false => {
            let choice = r#"{"index":0,"message":{"content":"a"},"finish_reason":"stop"}"#;
            vec![Step::Send(plain(200, &format!(r#"{{"choices":[{choice}]}}"#)))]
        }
    });
    let pool = "  hold: {heartbeat: 100ms}\n  upstream: {stallTimeout: 500ms}\n";
    let forebay = gateway("beat-plain", &[&upstream], pool);
    let got = ask(forebay.address, &request(CHAT, true));
    let text = got.text();
    assert!(got.status == 200 && text.starts_with(": waiting\n\n"), "{text}");
    assert!(text.contains("did not answer with a stream") && text.ends_with(DONE), "{text}");
    eventually("the gateway counts it once", || forebay.signals()["totals"]["failed"] == 1);
    eventually("its place is free", || forebay.signals()["inFlight"] == 0);
}

#[test]
fn a_hold_that_expires_after_a_heartbeat_ends_with_an_error_event() {
    let upstream = Upstream::start(|_| vec![Step::Hang]);
    let pool = "  maxInFlight: 1\n  hold: {heartbeat: 50ms, timeout: 2s}\n";
    let forebay = gateway("expired", &[&upstream], pool);
    let mut first = connect(forebay.address);
    first.write_all(&request(CHAT, true)).expect("sent");
    eventually("the only place is taken", || forebay.signals()["inFlight"] == 1);
    let got = ask(forebay.address, &request(CHAT, true));
    let text = got.text();
    assert!(got.status == 200 && text.starts_with(": waiting\n\n"), "{text}");
    assert!(text.contains("data: {\"error\":{\"code\":503") && text.ends_with(DONE), "{text}");
    drop(first);
    eventually("the gateway notices that the client has left", || upstream.hang_ups() == 1);
    eventually("the gateway counts it", || forebay.signals()["totals"]["clientLeft"] == 1);
}

#[test]
fn a_client_that_leaves_closes_the_connection_to_the_replica() {
    for (case, stream, script) in [
        ("streaming", true, [streamed(&[TOKEN]), vec![Step::Hang]].concat()),
        ("waiting", false, vec![Step::Hang]),
    ] {
        let upstream = Upstream::start(move |_| script.clone());
        let mut forebay = gateway(&format!("leave-{case}"), &[&upstream], "");
        let mut client = connect(forebay.address);
        client.write_all(&request(CHAT, stream)).expect("sent");
        if stream {
            assert!(client.read(&mut [0; 64]).expect("the stream has begun") > 0);
        } else {
            eventually("the upstream has the request", || upstream.received().len() == 1);
        }
        drop(client);
        eventually(case, || upstream.hang_ups() == 1);
        eventually("the gateway counts it", || forebay.signals()["totals"]["clientLeft"] == 1);
        let line = logged(&mut forebay, "forebay::access");
        assert_eq!(line["generated_tokens"], u32::from(stream), "{case}: the tokens until then");
        let aborts = r#"forebay_aborts_total{pool="p",by="client"}"#;
        assert_eq!(forebay.metric(aborts), Some(1.0), "{case}");
    }
}

/// Follows the script, half a second after the first request has come.
fn slow(script: Vec<Step>) -> Upstream {
    let first = AtomicBool::new(true);
    Upstream::start(move |_| {
        if first.swap(false, SeqCst) {
            std::thread::park_timeout(Duration::from_millis(500));
        }
        script.clone()
    })
}

const SLOW: &str = "  hold: {heartbeat: 100ms, heartbeatPlain: true}\n";
const ANSWER: &str =
    r#"{"choices":[{"index":0,"message":{"content":"a"},"finish_reason":"stop"}]}"#;

#[test]
fn a_waiting_plain_answer_has_line_feeds_before_its_json() {
    for path in [CHAT, "/v1/embeddings", "/v1/messages"] {
        let json = match path {
            CHAT => ANSWER,
            "/v1/messages" => r#"{"type":"message","content":[],"stop_reason":"end_turn"}"#,
            _ => r#"{"object":"list","data":[]}"#,
        };
        let upstream = slow(vec![Step::Send(plain(200, json))]);
        let case = format!("plain{}", path.replace('/', "-"));
        let forebay = gateway(&case, &[&upstream], SLOW);
        let got = ask(forebay.address, &request(path, false));
        assert_eq!((got.status, got.whole), (200, true), "{path}: {}", got.text());
        assert_eq!(got.header("content-type"), Some("application/json"), "{path}");
        assert!(got.text().starts_with('\n'), "{path}: {:?}", got.text());
        assert_eq!(got.text().trim_start(), json, "{path}");
        eventually("it is counted", || forebay.signals()["totals"]["completed"] == 1);
        // The second answer comes before a heartbeat, and is as without heartbeats.
        let got = ask(forebay.address, &request(path, false));
        assert_eq!(got.text(), json, "{path}");
        assert_eq!(got.header("content-length"), Some(json.len().to_string().as_str()), "{path}");
    }
}

#[test]
fn an_error_after_a_plain_heartbeat_is_json_and_then_a_cut_connection() {
    // The replica's own refusal of the request.
    let error = r#"{"error":{"message":"no","type":"BadRequestError","param":null,"code":400}}"#;
    let upstream = slow(vec![Step::Send(plain(400, error))]);
    let forebay = gateway("plain-refused", &[&upstream], SLOW);
    let got = ask(forebay.address, &request(CHAT, false));
    assert_eq!((got.status, got.whole), (200, false), "{}", got.text());
    assert_eq!(got.text().trim_start(), error);

    // The gateway's.
    let upstream = Upstream::start(|_| vec![Step::Hang]);
    let pool = "  hold: {heartbeat: 50ms, heartbeatPlain: true, timeout: 2s}\n  maxInFlight: 1\n";
    let forebay = gateway("plain-expired", &[&upstream], pool);
    let mut first = connect(forebay.address);
    first.write_all(&request(CHAT, true)).expect("sent");
    eventually("the only place is taken", || forebay.signals()["inFlight"] == 1);
    for (path, kind) in [(CHAT, "ServiceUnavailableError"), ("/v1/messages", "overloaded_error")] {
        let got = ask(forebay.address, &request(path, false));
        assert_eq!((got.status, got.whole), (200, false), "{path}: {}", got.text());
        let error: serde_json::Value = serde_json::from_str(&got.text()).expect("JSON");
        assert_eq!(error["error"]["type"], kind, "{error}");
    }
    let refusals = r#"forebay_refusals_total{pool="p",reason="hold_expired"}"#;
    assert_eq!(forebay.metric(refusals), Some(2.0));
}

#[test]
fn a_long_refusal_after_a_heartbeat_is_the_clients_error() {
    let message = "x".repeat(300_000);
    let error =
        format!(r#"{{"error":{{"message":"{message}","type":"BadRequestError","code":422}}}}"#);
    // The end comes later, so that what is kept back grows over its bound.
    let (begin, end) = error.split_at(200_000);
    let head = String::from_utf8(plain(422, &error)).expect("text").replace(&error, "");
    let script = [head.as_bytes(), begin.as_bytes()].concat();
    let script = vec![Step::Send(script), Step::Send(end.into())];
    let pool = format!("{SLOW}  upstream: {{commitSize: 1Ki}}\n");
    for stream in [false, true] {
        let upstream = slow(script.clone());
        let mut forebay = gateway(&format!("long-refusal-{stream}"), &[&upstream], &pool);
        let got = ask(forebay.address, &request(CHAT, stream));
        assert_eq!((got.status, got.whole), (200, stream), "{stream}");
        if stream {
            let text = got.text();
            assert!(
                text.contains("data: {\"error\":{\"code\":422") && text.ends_with(DONE),
                "{text}"
            );
        } else {
            assert!(error.starts_with(got.text().trim_start()), "its own bytes");
            assert!(got.text().trim_start().starts_with(r#"{"error""#), "they go out");
        }
        assert_eq!(logged(&mut forebay, "forebay::access")["outcome"], "client_error", "{stream}");
        let failures = r#"forebay_failures_total{pool="p",cause="server"}"#;
        assert!(forebay.metric(failures).is_none_or(|count| count == 0.0), "{stream}");
    }
}

#[test]
fn an_answer_that_is_not_json_has_no_line_feeds_before_it() {
    let bytes = |kind: &str| {
        let head = format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: 4\r\n\r\n");
        vec![Step::Send([head.as_bytes(), b"\x00\xff\x00\x01"].concat())]
    };
    for format in ["bytes", "bytes_only"] {
        let upstream = slow(bytes("application/octet-stream"));
        let forebay = gateway(&format!("plain-{format}"), &[&upstream], SLOW);
        let body = format!(r#"{{"model":"sim","input":"a","encoding_format":"{format}"}}"#);
        let got = ask(forebay.address, &post("/v1/embeddings", &body));
        assert_eq!((got.status, &*got.body), (200, &b"\x00\xff\x00\x01"[..]), "{format}");
        assert_eq!(got.header("content-type"), Some("application/octet-stream"), "{format}");
    }

    // A replica whose answer could not be foreseen.
    for (case, script) in
        [("other", bytes("application/octet-stream")), ("stream", ended(&[TOKEN, DONE]))]
    {
        let upstream = slow(script);
        let forebay = gateway(&format!("plain-{case}"), &[&upstream], SLOW);
        let got = ask(forebay.address, &request(CHAT, false));
        assert_eq!((got.status, got.whole), (200, false), "{case}: {}", got.text());
        let error: serde_json::Value = serde_json::from_str(&got.text()).expect("JSON");
        assert_eq!(error["error"]["message"], "The replica did not answer with JSON.", "{case}");
        eventually("it is counted", || forebay.signals()["totals"]["failed"] == 1);
    }
}

#[test]
fn a_plain_answer_has_no_heartbeats_unless_they_are_configured() {
    let upstream = slow(vec![Step::Send(plain(400, ANSWER))]);
    let forebay = gateway("plain-off", &[&upstream], "  hold: {heartbeat: 100ms}\n");
    let got = ask(forebay.address, &request(CHAT, false));
    assert_eq!((got.status, got.text().as_str(), got.whole), (400, ANSWER, true));
}

#[test]
fn an_answer_to_a_form_has_no_heartbeats() {
    let upstream = slow(vec![Step::Send(plain(200, r#"{"text":"a"}"#))]);
    let forebay = gateway("plain-form", &[&upstream], SLOW);
    let body = "--x\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\nsim\r\n--x--\r\n";
    let request = format!(
        "POST /v1/audio/transcriptions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
         content-type: multipart/form-data; boundary=x\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let got = ask(forebay.address, request.as_bytes());
    assert_eq!((got.status, got.text().as_str()), (200, r#"{"text":"a"}"#));
}

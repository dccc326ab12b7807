//! WebSocket sessions with the real binary: their metrics, and their end at a shutdown.

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;

use support::upstream::{Step, Upstream};
use support::{Forebay, connect, eventually, gateway_with};

const AGREED: &str = "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: \
                      Upgrade\r\nsec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
const DELTA: &str = r#"{"type":"transcription.delta","delta":"a"}"#;
const DONE: &str = r#"{"type":"transcription.done","text":"a","usage":{"prompt_tokens":7,"total_tokens":12,"completion_tokens":5}}"#;
/// A client's close, masked.
const CLOSE: [u8; 8] = [0x88, 0x82, 0, 0, 0, 0, 3, 232];

fn text(payload: &str) -> Vec<u8> {
    let length = u8::try_from(payload.len()).expect("short");
    let head = if length < 126 { vec![0x81, length] } else { vec![0x81, 126, 0, length] };
    [head, payload.as_bytes().to_vec()].concat()
}

/// A replica that transcribes at once and then waits.
fn transcriber() -> Upstream {
    let answer = [AGREED.as_bytes(), &text(DELTA), &text(DONE), &text(DELTA)].concat();
    Upstream::start(move |_| vec![Step::Send(answer.clone()), Step::Hang])
}

const HANDSHAKE: &str = "GET /v1/realtime?model=sim HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: \
     websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// Opens a session, and reads everything that the replica sends.
fn open(forebay: &Forebay) -> TcpStream {
    let mut stream = connect(forebay.address);
    stream.write_all(HANDSHAKE.as_bytes()).expect("open");
    let (mut received, all) = (Vec::new(), [text(DELTA), text(DONE), text(DELTA)].concat());
    while !received.ends_with(&all) {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("open");
        received.push(byte[0]);
    }
    assert!(received.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&received));
    stream
}

fn access_log(forebay: &mut Forebay) -> serde_json::Value {
    let line = forebay.wait_for("forebay::access");
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

#[test]
fn a_sessions_messages_bytes_and_tokens_are_counted() {
    let upstream = transcriber();
    let mut forebay = gateway_with("", &[upstream.address], &["sim"], "");
    let mut session = open(&forebay);
    session.write_all(&CLOSE).expect("open");
    let mut rest = Vec::new();
    session.read_to_end(&mut rest).expect("its end");
    let line = access_log(&mut forebay);
    for (field, want) in [
        ("status", 101),
        ("prompt_tokens", 7),
        ("generated_tokens", 6),
        ("client_messages", 0),
        ("client_bytes", CLOSE.len()),
        ("replica_messages", 3),
        ("replica_bytes", 2 * text(DELTA).len() + text(DONE).len()),
    ] {
        assert_eq!(line[field], want, "{field} in {line}");
    }
    for (series, want) in [
        (r#"forebay_session_seconds_count{pool="p"}"#, 1),
        (r#"forebay_tenant_session_seconds_count{tenant="anonymous"}"#, 1),
        (r#"forebay_session_messages_total{pool="p",from="replica"}"#, 3),
        (r#"forebay_tenant_session_messages_total{tenant="anonymous",from="client"}"#, 0),
        (r#"forebay_session_bytes_total{pool="p",from="client"}"#, 8),
        (r#"forebay_generated_tokens_total{pool="p"}"#, 6),
        (r#"forebay_tenant_prompt_tokens_total{tenant="anonymous"}"#, 7),
        (r#"forebay_end_to_end_seconds_count{pool="p"}"#, 0),
    ] {
        let figure = || forebay.metric(series).unwrap_or_default();
        eventually(series, || figure() == f64::from(want));
    }
}

#[test]
fn an_answer_to_a_handshake_that_is_not_valid_is_an_error_and_not_a_death() {
    let refusal = |body: &str| format!("HTTP/1.1 403 Forbidden\r\n{body}");
    for (case, answer, cause) in [
        ("no HTTP", "+OK\r\n\r\n".to_owned(), "server"),
        ("a wrong status", "HTTP/1.1 1x1 Upgrade\r\n\r\n".to_owned(), "server"),
        ("a wrong chunk", refusal("transfer-encoding: chunked\r\n\r\nzz\r\n"), "server"),
        (
            "a refusal that is too long",
            refusal(&format!("content-length: 99999\r\n\r\n{}", "x".repeat(99_999))),
            "server",
        ),
        ("nothing", String::new(), "connection"),
        ("half a head", "HTTP/1.1 101 Switching Protocols\r\nupg".to_owned(), "connection"),
        ("half a refusal", refusal("content-length: 99\r\n\r\nno"), "connection"),
    ] {
        let upstream =
            Upstream::start(move |_| vec![Step::Send(answer.clone().into_bytes()), Step::Close]);
        let forebay = gateway_with("", &[upstream.address], &["sim"], "maxTries: 1");
        let mut stream = connect(forebay.address);
        stream.write_all(HANDSHAKE.as_bytes()).expect("open");
        let mut head = [0; 12];
        stream.read_exact(&mut head).expect("an answer");
        assert_eq!(&head, b"HTTP/1.1 502", "{case}");
        for other in ["server", "connection"] {
            let series = format!("forebay_failures_total{{pool=\"p\",cause=\"{other}\"}}");
            let count = forebay.metric(&series).unwrap_or_default();
            assert_eq!(count > 0.0, other == cause, "{case}: {other}");
        }
    }
}

#[test]
fn a_shutdown_ends_a_session_with_a_close_and_does_not_wait_for_it() {
    let upstream = transcriber();
    let mut forebay = gateway_with(", shutdownTimeout: 1h", &[upstream.address], &["sim"], "");
    let mut session = open(&forebay);
    forebay.signal("TERM");
    let mut close = [0; 4];
    session.read_exact(&mut close).expect("a close");
    assert_eq!((close[0], &close[2..]), (0x88, &1001_u16.to_be_bytes()[..]));
    let mut reason = vec![0; usize::from(close[1]) - 2];
    session.read_exact(&mut reason).expect("whole");
    assert_eq!(reason, b"The gateway is shutting down.");
    session.write_all(&CLOSE).expect("open");
    assert_eq!(session.read(&mut [0]).expect("an end"), 0);
    let line = access_log(&mut forebay);
    assert_eq!((&line["outcome"], &line["reason"]), (&"completed".into(), &"shutting_down".into()));
    assert!(forebay.wait().success(), "no request was cut off");
}

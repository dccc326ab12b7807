//! WebSocket sessions with the real binary: what is counted of them, and what they are told when it
//! stops.

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
    let said = [AGREED.as_bytes(), &text(DELTA), &text(DONE), &text(DELTA)].concat();
    Upstream::start(move |_| vec![Step::Send(said.clone()), Step::Hang])
}

/// A session that has heard all that the replica says.
fn open(forebay: &Forebay) -> TcpStream {
    let mut stream = connect(forebay.address);
    let request = "GET /v1/realtime?model=sim HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: \
                   websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: \
                   dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(request.as_bytes()).expect("open");
    let (mut heard, all) = (Vec::new(), [text(DELTA), text(DONE), text(DELTA)].concat());
    while !heard.ends_with(&all) {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("open");
        heard.push(byte[0]);
    }
    assert!(heard.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&heard));
    stream
}

fn access_log(forebay: &mut Forebay) -> serde_json::Value {
    let line = forebay.wait_for("forebay::access");
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

#[test]
fn what_a_session_carries_and_takes_is_counted() {
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
fn a_shutdown_ends_a_session_with_a_close_and_is_not_held_up_by_it() {
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
    assert!(forebay.wait().success(), "nothing was cut off");
}

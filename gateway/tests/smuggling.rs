//! Requests that two readers could read differently. Each is refused, or reaches the replica as
//! exactly one request, framed anew: asserted on the bytes that the replica receives.

use std::net::SocketAddr;
use std::time::Duration;

use forebay_gateway::Gateway;
use support::{ANSWER, Answer, CHAT, PATIENCE, Upstream, config, exchange, start};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

mod support;

/// The result that a case may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Want {
    /// Nothing reaches the replica.
    Refused,
    /// One request with the body `CHAT`.
    One,
}
use Want::{One, Refused};

/// Short, since only a request that the gateway takes for incomplete waits for it.
const SHORT: Duration = Duration::from_millis(500);

async fn gateway() -> (Upstream, Gateway) {
    let upstream = Upstream::start(Answer::Json(ANSWER)).await;
    let mut config = config(Some(upstream.address));
    config.gateway.limits.idle_timeout = SHORT;
    config.gateway.limits.header_timeout = SHORT;
    config.gateway.limits.body_timeout = SHORT;
    let gateway = start(&config);
    (upstream, gateway)
}

/// Asserts that the replica got one well-formed request with `CHAT`, without the client's own
/// framing.
fn assert_one(case: &str, upstream: &Upstream) {
    let requests = upstream.requests();
    assert_eq!(requests.len(), 1, "{case}: {requests:?}");
    let text = String::from_utf8(requests[0].clone()).expect("text");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    assert_eq!(body, CHAT, "{case}: {text}");
    let mut lines = head.split("\r\n");
    assert_eq!(lines.next(), Some("POST /v1/chat/completions HTTP/1.1"), "{case}: {text}");
    let names: Vec<String> = lines
        .map(|line| line.split_once(": ").unwrap_or_else(|| panic!("{case}: {line:?}")).0)
        .map(str::to_ascii_lowercase)
        .collect();
    let count = |name: &str| names.iter().filter(|found| *found == name).count();
    assert_eq!((count("content-length"), count("transfer-encoding")), (1, 0), "{case}: {text}");
    assert_eq!((count("host"), count("connection")), (1, 0), "{case}: {text}");
    assert!(text.contains(&format!("host: {}\r\n", upstream.address)), "{case}: {text}");
    assert!(!text.replace("\r\n", "").contains(['\r', '\n', '\0']), "{case}: {text}");
    assert!(!text.contains("smuggled"), "{case}: {text}");
}

async fn check(cases: &[(&str, String, Want)]) {
    for (case, request, want) in cases {
        let (upstream, gateway) = gateway().await;
        let answer = exchange(gateway.address(), request).await;
        match want {
            Refused => {
                assert!(upstream.requests().is_empty(), "{case}: {:?}", upstream.requests());
                assert!(!answer.contains("HTTP/1.1 200"), "{case}: {answer}");
            }
            One => {
                assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{case}: {answer}");
                assert_one(case, &upstream);
            }
        }
    }
}

const LINE: &str = "POST /v1/chat/completions HTTP/1.1\r\n";
const NEXT: &str = "GET /smuggled HTTP/1.1\r\nhost: g\r\n\r\n";

/// A request with these header lines and this body.
fn post(lines: &str, body: &str) -> String {
    format!("{LINE}host: g\r\ncontent-type: application/json\r\n{lines}\r\n{body}")
}

fn sized() -> String {
    format!("content-length: {}\r\n", CHAT.len())
}

fn chunked(body: &str) -> String {
    let (one, two) = body.split_at(10);
    format!("{:x}\r\n{one}\r\n{:X}\r\n{two}\r\n0\r\n\r\n", one.len(), two.len())
}

#[tokio::test]
async fn contradicting_lengths_are_refused() {
    let len = CHAT.len();
    let te = "transfer-encoding: chunked\r\n";
    let body = |text: String| format!("{text}{NEXT}");
    check(&[
        ("length, then chunks", post(&format!("{}{te}", sized()), &body(chunked(CHAT))), One),
        (
            "chunks, then length",
            post(&format!("{te}content-length: 4\r\n"), &body(chunked(CHAT))),
            One,
        ),
        ("the same twice", post(&format!("{0}{0}", sized()), CHAT), One),
        ("two lengths", post(&format!("{}content-length: 4\r\n", sized()), CHAT), Refused),
        ("a list of lengths", post(&format!("content-length: {len}, {len}\r\n"), CHAT), Refused),
        ("a sign", post(&format!("content-length: +{len}\r\n"), CHAT), Refused),
        ("a negative one", post("content-length: -1\r\n", CHAT), Refused),
        ("hexadecimal", post("content-length: 0x10\r\n", CHAT), Refused),
        ("a space within", post("content-length: 1 0\r\n", CHAT), Refused),
        ("too large a number", post("content-length: 99999999999999999999999\r\n", CHAT), Refused),
        ("an empty one", post("content-length:\r\n", CHAT), Refused),
        ("more than comes", post("content-length: 9999\r\n", CHAT), Refused),
        ("none at all", post("", &format!("{CHAT}{NEXT}")), Refused),
    ])
    .await;
}

#[tokio::test]
async fn codings_that_only_some_readers_take_for_chunked_are_refused() {
    let te = |value: &str| post(&format!("transfer-encoding: {value}\r\n"), &chunked(CHAT));
    let sized_te = |value: &str| {
        post(&format!("{}transfer-encoding: {value}\r\n", sized()), &format!("{CHAT}{NEXT}"))
    };
    check(&[
        ("upper case", te("CHUNKED"), One),
        ("space around", te("  chunked  "), One),
        ("a tab before", te("\tchunked"), One),
        ("another coding within", te("gzip, chunked"), Refused),
        ("itself within", te("chunked, chunked"), Refused),
        (
            "another coding within, in two lines",
            post("transfer-encoding: gzip\r\ntransfer-encoding: chunked\r\n", &chunked(CHAT)),
            Refused,
        ),
        ("identity within", te("identity, chunked"), Refused),
        ("a coding with a parameter", te("gzip;q=1, chunked"), Refused),
        ("not the last", te("chunked, identity"), Refused),
        ("an unknown one", te("xchunked"), Refused),
        ("identity", te("identity"), Refused),
        ("unknown beside a length", sized_te("xchunked"), Refused),
        ("identity beside a length", sized_te("identity"), Refused),
        ("quoted", te("\"chunked\""), Refused),
        ("a vertical tab", te("\u{b}chunked"), Refused),
        ("empty beside a length", sized_te(""), Refused),
        (
            "twice, the last not chunked",
            post("transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n", &chunked(CHAT)),
            Refused,
        ),
        ("in HTTP/1.0", te("chunked").replace("HTTP/1.1\r\nhost", "HTTP/1.0\r\nhost"), Refused),
        (
            "space before the colon",
            post(&format!("transfer-encoding : chunked\r\n{}", sized()), CHAT),
            Refused,
        ),
        (
            "folded",
            post(&format!("x: 1\r\n transfer-encoding: chunked\r\n{}", sized()), CHAT),
            Refused,
        ),
        (
            "hidden behind a carriage return",
            post(&format!("x: 1\rtransfer-encoding: chunked\r\n{}", sized()), CHAT),
            Refused,
        ),
        (
            "hidden behind a line feed",
            post(&format!("x: 1\ntransfer-encoding: chunked\r\n{}", sized()), &chunked(CHAT)),
            One,
        ),
        (
            "in the trailer",
            post(
                "transfer-encoding: chunked\r\ntrailer: content-length\r\n",
                &chunked(CHAT)
                    .replace("0\r\n\r\n", "0\r\ncontent-length: 4\r\nhost: smuggled\r\n\r\n"),
            ),
            One,
        ),
    ])
    .await;
}

#[tokio::test]
async fn unusual_chunks_are_refused_or_framed_anew() {
    let len = CHAT.len();
    let te = |body: String| post("transfer-encoding: chunked\r\n", &body);
    let one = |size: &str| te(format!("{size}\r\n{CHAT}\r\n0\r\n\r\n"));
    check(&[
        ("an extension", one(&format!("{len:x};a=b")), One),
        ("a quoted extension", one(&format!("{len:x};a=\"0;\"")), One),
        ("leading zeros", one(&format!("000{len:x}")), One),
        (
            "a line feed in an extension",
            te(format!("{len:x};a\nb\r\n{CHAT}\r\n0\r\n\r\n")),
            Refused,
        ),
        ("a prefix", one(&format!("0x{len:x}")), Refused),
        ("a sign", one(&format!("+{len:x}")), Refused),
        ("a negative size", one("-1"), Refused),
        ("no size", one(""), Refused),
        ("too large a size", one("fffffffffffffffff"), Refused),
        ("an underscore", one(&format!("{len:x}_0")), Refused),
        ("no line end after data", te(format!("{len:x}\r\n{CHAT}xx0\r\n\r\n")), Refused),
        ("a longer size than data", te(format!("{:x}\r\n{CHAT}\r\n0\r\n\r\n", len + 8)), Refused),
        ("no last chunk", te(format!("{len:x}\r\n{CHAT}\r\n")), Refused),
    ])
    .await;
}

#[tokio::test]
async fn unusual_heads_are_refused_or_written_anew() {
    let whole = post(&sized(), CHAT);
    let head_end = whole.find("\r\n\r\n").expect("a head") + 4;
    let lf = whole[..head_end].replace("\r\n", "\n") + CHAT;
    let with = |line: &str| post(&format!("{line}{}", sized()), CHAT);
    let line = |line: &str| whole.replacen(LINE, line, 1);
    let hosted = |host: &str| whole.replacen("host: g\r\n", &format!("host: {host}\r\n"), 1);
    check(&[
        ("bare line feeds", lf, One),
        ("empty lines before", format!("\r\n\r\n{whole}"), One),
        ("a folded value", with("x: 1\r\n 2\r\n"), Refused),
        ("a folded value with a tab", with("x: 1\r\n\t2\r\n"), Refused),
        ("a fold at the first line", whole.replacen("host: g", " x: 1\r\nhost: g", 1), Refused),
        ("space before a colon", with("x : 1\r\n"), Refused),
        ("a zero byte in a value", with("x: a\0b\r\n"), Refused),
        ("a zero byte in a name", with("x\0: a\r\n"), Refused),
        ("a carriage return in a value", with("x: a\rb: c\r\n"), Refused),
        ("no name", with(": a\r\n"), Refused),
        ("no colon", with("x\r\n"), Refused),
        ("a name with a space", with("x y: a\r\n"), Refused),
        ("hosts", with("host: smuggled\r\n"), Refused),
        ("a host with a user", hosted("smuggled@g"), Refused),
        ("a host with a path", hosted("g/smuggled"), Refused),
        ("a host with a list", hosted("g, smuggled"), Refused),
        ("a host with a space", hosted("g smuggled"), Refused),
        ("a host with a query", hosted("g?smuggled"), Refused),
        ("a host with a port that is none", hosted("g:smuggled"), Refused),
        ("a host with too large a port", hosted("g:65536"), Refused),
        ("a host with open brackets", hosted("[::1"), Refused),
        ("an empty host", hosted(""), Refused),
        ("a host of other bytes", hosted("g\u{e9}"), Refused),
        ("a host with a port", hosted("g:8080"), One),
        ("the whole URL", line("POST http://g/v1/chat/completions HTTP/1.1\r\n"), One),
        (
            "the whole URL, and its port in the host",
            line("POST http://g/v1/chat/completions HTTP/1.1\r\n").replace("host: g", "host: G:80"),
            One,
        ),
        (
            "the URL of another port",
            line("POST http://g:81/v1/chat/completions HTTP/1.1\r\n"),
            Refused,
        ),
        (
            "the URL of another host",
            line("POST http://smuggled/v1/chat/completions HTTP/1.1\r\n"),
            Refused,
        ),
        ("two spaces", line("POST  /v1/chat/completions HTTP/1.1\r\n"), Refused),
        ("a tab", line("POST\t/v1/chat/completions HTTP/1.1\r\n"), Refused),
        ("a space in the path", line("POST /v1/chat/completions /x HTTP/1.1\r\n"), Refused),
        ("no version", line("POST /v1/chat/completions\r\n"), Refused),
        ("another version", line("POST /v1/chat/completions HTTP/1.2\r\n"), Refused),
        ("version 2", line("POST /v1/chat/completions HTTP/2.0\r\n"), Refused),
        ("a lower-case version", line("POST /v1/chat/completions http/1.1\r\n"), Refused),
        ("an authority", line("CONNECT g:80 HTTP/1.1\r\n"), Refused),
        ("an encoded line end", line("POST /v1/chat/completions%0d%0ax:y HTTP/1.1\r\n"), Refused),
        ("dots", line("POST /health/../v1/chat/completions HTTP/1.1\r\n"), Refused),
        ("a doubled slash", line("POST //v1/chat/completions HTTP/1.1\r\n"), Refused),
        ("an encoded slash", line("POST /v1%2fchat/completions HTTP/1.1\r\n"), Refused),
        ("a method with a line end", line("PO\nST /v1/chat/completions HTTP/1.1\r\n"), Refused),
    ])
    .await;
}

#[tokio::test]
async fn bytes_behind_a_request_are_another_request() {
    let (upstream, gateway) = gateway().await;
    let last = "GET /version HTTP/1.1\r\nhost: g\r\nconnection: close\r\n\r\n";
    let answer = exchange(gateway.address(), post(&sized(), CHAT) + NEXT + last).await;
    let statuses: Vec<_> = answer
        .matches("HTTP/1.1 ")
        .zip(answer.split("HTTP/1.1 ").skip(1))
        .map(|(_, code)| &code[..3])
        .collect();
    assert_eq!(statuses, ["200", "404", "200"], "{answer}");
    assert_one("pipelined", &upstream);
    // The body of a refused request is not taken for the next request.
    let body =
        format!("GET /health HTTP/1.1\r\nhost: g\r\ncontent-length: {}\r\n\r\n{NEXT}", NEXT.len());
    let answer = exchange(gateway.address(), body).await;
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
}

// === HTTP/2, written by hand: no client library would send these ===

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).expect("short").to_be_bytes();
    let mut frame = vec![len[1], len[2], len[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Header fields without an index and without Huffman codes.
fn fields(pairs: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    let text = |block: &mut Vec<u8>, text: &str| {
        // Seven bits of length, then one more byte: enough for all lengths here.
        if text.len() < 127 {
            block.push(u8::try_from(text.len()).expect("short"));
        } else {
            block.push(127);
            block.push(u8::try_from(text.len() - 127).expect("short"));
        }
        block.extend(text.as_bytes());
    };
    for (name, value) in pairs {
        block.push(0);
        text(&mut block, name);
        text(&mut block, value);
    }
    block
}

/// Sends one request and waits for its end. True if the answer is 200.
async fn over_http2(address: SocketAddr, pairs: &[(&str, &str)], body: &str) -> bool {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(4, 0, 0, &[]));
    bytes.extend(frame(1, 4, 1, &fields(pairs)));
    bytes.extend(frame(0, 1, 1, body.as_bytes()));
    let _ = stream.write_all(&bytes).await;
    let mut ok = false;
    let read = async {
        loop {
            let mut head = [0; 9];
            if stream.read_exact(&mut head).await.is_err() {
                return;
            }
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; length as usize];
            if stream.read_exact(&mut payload).await.is_err() {
                return;
            }
            let (kind, flags) = (head[3], head[4]);
            // The first field of a response is its status; index 8 is 200.
            ok |= kind == 1 && payload.first() == Some(&0x88);
            let ends = matches!(kind, 0 | 1) && flags & 1 == 1;
            // RST_STREAM, GOAWAY.
            if ends || matches!(kind, 3 | 7) {
                return;
            }
        }
    };
    assert!(timeout(PATIENCE, read).await.is_ok(), "no end of {pairs:?}");
    ok
}

#[tokio::test]
async fn http2_requests_that_would_be_different_in_http1_are_refused() {
    const PATH: &str = "/v1/chat/completions";
    let plain = [
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "g"),
        (":path", PATH),
        ("content-type", "application/json"),
    ];
    let with = |name: &'static str, value: &'static str| {
        let mut pairs = plain.to_vec();
        match pairs.iter_mut().find(|(known, _)| *known == name) {
            Some(pair) => pair.1 = value,
            None => pairs.push((name, value)),
        }
        pairs
    };
    let twice = |name: &'static str, value: &'static str| {
        let mut pairs = plain.to_vec();
        pairs.push((name, value));
        pairs
    };
    let without =
        |name: &str| plain.iter().copied().filter(|(known, _)| *known != name).collect::<Vec<_>>();
    let long = CHAT.len().to_string();
    let mut right_length = plain.to_vec();
    right_length.push(("content-length", &long));
    for (case, pairs, want) in [
        ("a plain one", plain.to_vec(), One),
        ("the right length", right_length, One),
        ("a line end in a value", with("x", "a\r\ny: smuggled"), Refused),
        ("a line feed in a value", with("x", "a\ny: smuggled"), Refused),
        ("a zero byte in a value", with("x", "a\0b"), Refused),
        ("a line end in a name", with("x\r\ny", "smuggled"), Refused),
        ("a colon in a name", with("x: smuggled\r\ny", "1"), Refused),
        ("a space in a name", with("x y", "1"), Refused),
        ("an upper-case name", with("X-Upper", "1"), Refused),
        ("chunks", with("transfer-encoding", "chunked"), Refused),
        ("a connection", with("connection", "close"), Refused),
        ("an upgrade", with("upgrade", "websocket"), Refused),
        ("too short a length", with("content-length", "4"), Refused),
        ("too long a length", with("content-length", "9999"), Refused),
        ("no number for a length", with("content-length", "x"), Refused),
        (
            "a line end in the path",
            with(":path", "/v1/chat/completions HTTP/1.1\r\nx: smuggled"),
            Refused,
        ),
        ("a space in the path", with(":path", "/v1/chat/completions HTTP/1.1"), Refused),
        ("a path of its own host", with(":path", "http://g/v1/chat/completions"), Refused),
        (
            "a line end in the method",
            with(":method", "POST / HTTP/1.1\r\nx: y\r\n\r\nGET"),
            Refused,
        ),
        ("a space in the method", with(":method", "POST /x"), Refused),
        ("a line end in the authority", with(":authority", "g\r\nx: smuggled"), Refused),
        ("a user in the authority", with(":authority", "smuggled@g"), Refused),
        ("a scheme with more", with(":scheme", "http://smuggled/?"), Refused),
        ("two paths", twice(":path", "/smuggled"), Refused),
        ("an unknown pseudo header", with(":smuggled", "1"), Refused),
        ("another host", with("host", "smuggled"), Refused),
        ("the same host", with("host", "g"), One),
        ("the same host with its port", with("host", "g:80"), One),
        ("the same host at another port", with("host", "g:443"), Refused),
        ("no host at all", without(":authority"), Refused),
    ] {
        let (upstream, gateway) = gateway().await;
        let ok = over_http2(gateway.address(), &pairs, CHAT).await;
        match want {
            One => {
                assert!(ok, "{case}");
                assert_one(case, &upstream);
            }
            Refused => {
                assert!(!ok && upstream.requests().is_empty(), "{case}: {:?}", upstream.requests());
            }
        }
    }
}

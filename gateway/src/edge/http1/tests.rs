//! The same bytes, cut in every way, for hyper's server and for this one.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Waker};

use bytes::Bytes;
use http::Method;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::time::Instant;

use super::echo::{Course, SeenRequest, SeenRequests, answer, course, ours};
use super::{Http1, Http1Settings};
use crate::net::activity::Activity;
use crate::wire::body::MessageBody;
use crate::wire::request::HeadLimits;

mod life;

const LIMITS: HeadLimits = HeadLimits { bytes: 64 << 10, headers: 100 };

/// The course of a connection that hyper serves.
fn hypers(pieces: &[&[u8]], closes: bool, limits: HeadLimits) -> Course {
    course(pieces, closes, |io, seen| {
        let service = service_fn(move |request| answer(request, Arc::clone(&seen)));
        let mut builder = http1::Builder::new();
        builder
            .header_read_timeout(None)
            .half_close(true)
            .max_buf_size(limits.bytes.max(8192))
            .max_header_size(limits.bytes)
            .max_headers(limits.headers);
        builder.serve_connection(TokioIo::new(io), service).with_upgrades()
    })
}

/// A response as a client reads it.
#[derive(Debug, PartialEq, Eq)]
struct ReadResponse {
    first: String,
    headers: Vec<String>,
    body: Vec<u8>,
    /// Whether its end is found before the connection's.
    complete: bool,
}

/// The responses to these requests, without their dates and with sorted headers.
fn responses(mut out: &[u8], seen: &[SeenRequest]) -> Vec<ReadResponse> {
    let mut all = Vec::new();
    let mut seen = seen.iter();
    while !out.is_empty() {
        let mut headers = [httparse::EMPTY_HEADER; 20];
        let mut head = httparse::Response::new(&mut headers);
        let length = match head.parse(out) {
            Ok(httparse::Status::Complete(length)) => length,
            other => panic!("{other:?}: {:?}", out.escape_ascii().to_string()),
        };
        let code = head.code.expect("a code");
        let first = format!("{:?} {code} {:?}", head.version, head.reason);
        let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
        let value = |name: &str| {
            let mut found = head.headers.iter().filter(|header| header.name == name);
            let value = found.next().map(|header| text(header.value));
            assert!(found.next().is_none(), "{name} is there twice");
            value
        };
        let (size, coding) = (value("content-length"), value("transfer-encoding"));
        assert!(size.is_none() || coding.is_none(), "two framings");
        let mut lines: Vec<_> = head
            .headers
            .iter()
            .filter(|header| header.name != "date" || header.value == b"long ago")
            .map(|header| format!("{}: {}", header.name, text(header.value)))
            .collect();
        lines.sort_unstable();
        let asked = (code >= 200).then(|| seen.next().map(|seen| seen.method.clone())).flatten();
        let none = matches!(code, 100..=199 | 204 | 304) || asked == Some(Method::HEAD);
        let mut body = match (none, size, coding) {
            (true, ..) => MessageBody::sized(0),
            (_, Some(size), _) => MessageBody::sized(size.parse().expect("a number")),
            (_, _, Some(_)) => MessageBody::chunked(),
            (_, None, None) => MessageBody::until_close(),
        };
        out = body.feed_part(&out[length..]);
        let data = body.take().unwrap_or_default().to_vec();
        assert!(body.take_error().is_none(), "the framing is broken");
        let complete = body.is_complete();
        // A refusal answers no request, and hyper writes it in the version of the one before.
        let first = if asked.is_none() && code >= 400 { code.to_string() } else { first };
        all.push(ReadResponse { first, headers: lines, body: data, complete });
    }
    all
}

/// Whether there may be trailers with a line feed alone.
fn may_have_bare_trailers(bytes: &[u8]) -> bool {
    let bare = bytes.iter().enumerate().any(|(at, byte)| {
        *byte == b'\n' && at.checked_sub(1).is_none_or(|before| bytes[before] != b'\r')
    });
    bare && bytes.windows(7).any(|part| part.eq_ignore_ascii_case(b"chunked"))
}

/// Compares the two.
fn compare(pieces: &[&[u8]], closes: bool, limits: HeadLimits) {
    let (mut ours, hypers) = (ours(pieces, closes, limits, false), hypers(pieces, closes, limits));
    let text = || pieces.iter().map(|piece| piece.escape_ascii().to_string()).collect::<Vec<_>>();
    if may_have_bare_trailers(&pieces.concat()) {
        // hyper takes a line feed alone for a line's end in trailers. This server refuses the body.
        for (ours, hypers) in ours.seen.iter().zip(&hypers.seen) {
            assert_eq!(ours.head, hypers.head, "{:?}", text());
            if ours.body.is_none() {
                return;
            }
            assert_eq!(ours.body, hypers.body, "{:?}", text());
        }
        return;
    }
    let mut written = responses(&ours.out, &ours.seen);
    let mut expected = responses(&hypers.out, &hypers.seen);
    // This server passes over more of a body that is not wanted, and so can go on.
    let unread = hypers.seen.last().is_some_and(|seen| seen.path == "/unread");
    if unread && !hypers.open && ours.seen.len() >= hypers.seen.len() {
        ours.seen.truncate(hypers.seen.len());
        ours.open = false;
        written.truncate(expected.len());
    }
    if hypers.seen.last().is_some_and(|seen| seen.path == "/broken") {
        // hyper drops what it has not written yet.
        written.retain(|response| !response.first.contains(" 100 "));
        expected.retain(|response| !response.first.contains(" 100 "));
    }
    assert_eq!(ours.seen, hypers.seen, "{:?}, closes: {closes}", text());
    // This server says so too when it closes because the rest of a body is not read, and it does not
    // promise to an HTTP/1.0 client that a connection stays open which it closes.
    if let (Some(own), Some(other), false) = (written.last_mut(), expected.last_mut(), ours.open) {
        own.headers.retain(|line| line != "connection: close" || other.headers.contains(line));
        if own.first.starts_with("Some(0)") {
            own.headers.retain(|line| !line.starts_with("connection: "));
            other.headers.retain(|line| !line.starts_with("connection: "));
        }
    }
    assert_eq!(written, expected, "{:?}, closes: {closes}", text());
    assert_eq!(ours.open, hypers.open, "{:?}, closes: {closes}", text());
}

/// Requests of every kind, and what may stand between them.
fn requests() -> Vec<Vec<u8>> {
    let host = "host: a\r\n";
    let chunks = "5\r\nhello\r\nA;x=\"y\"\r\n, chunked \r\n0\r\n";
    let mut all: Vec<String> = Vec::new();
    for path in [
        "/",
        "/stream",
        "/sized",
        "/empty",
        "/close",
        "/connection",
        "/date",
        "/unread",
        "/length",
        "/status/204",
        "/status/304",
        "/status/404",
        "/status/503",
        "/broken",
        "http://a/b?c=d",
        "*",
        "/a?b#c",
    ] {
        all.push(format!("GET {path} HTTP/1.1\r\n{host}\r\n"));
        all.push(format!("HEAD {path} HTTP/1.1\r\n{host}\r\n"));
        all.push(format!("POST {path} HTTP/1.1\r\n{host}content-length: 5\r\n\r\nhello"));
        all.push(format!("POST {path} HTTP/1.0\r\nContent-Length: 5\r\n\r\nhello"));
        all.push(format!(
            "PUT {path} HTTP/1.0\r\nconnection: Keep-Alive\r\ncontent-length: 5\r\n\r\nhello"
        ));
        all.push(format!(
            "POST {path} HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n{chunks}\r\n"
        ));
        all.push(format!(
            "POST {path} HTTP/1.1\r\n{host}expect: 100-Continue\r\ncontent-length: 5\r\n\r\nhello"
        ));
        all.push(format!("GET {path} HTTP/1.1\r\n{host}connection: x, close\r\n\r\n"));
    }
    let post = |lines: &str, body: &str| format!("POST / HTTP/1.1\r\n{host}{lines}\r\n{body}");
    let te = "transfer-encoding: chunked\r\n";
    let whole = format!("{chunks}\r\n");
    for (lines, body) in [
        (format!("content-length: 3\r\n{te}"), &*whole),
        (format!("{te}content-length: 3\r\n"), &whole),
        ("content-length: 5\r\ncontent-length: 5\r\n".to_owned(), "hello"),
        ("content-length: 5\r\ncontent-length: 6\r\n".to_owned(), "hello"),
        ("content-length: 5, 5\r\n".to_owned(), "hello"),
        ("content-length: +5\r\n".to_owned(), "hello"),
        ("content-length: 99999999999999999999\r\n".to_owned(), "hello"),
        ("content-length:\r\n".to_owned(), "hello"),
        ("transfer-encoding: gzip, chunked\r\n".to_owned(), &whole),
        ("transfer-encoding: chunked, gzip\r\n".to_owned(), &whole),
        ("transfer-encoding: gzip\r\ntransfer-encoding: chunked\r\n".to_owned(), &whole),
        (format!("{te}transfer-encoding: identity\r\n"), &whole),
        ("transfer-encoding:\r\ncontent-length: 5\r\n".to_owned(), "hello"),
        (te.to_owned(), "5\r\nhello\r\n0\r\nx: y\r\ncontent-length: 3\r\n\r\n"),
        (te.to_owned(), "0x5\r\nhello\r\n0\r\n\r\n"),
        (te.to_owned(), "+5\r\nhello\r\n0\r\n\r\n"),
        (te.to_owned(), "fffffffffffffffff\r\nhello"),
        (te.to_owned(), "5;a\nb\r\nhello\r\n0\r\n\r\n"),
        (te.to_owned(), "5\nhello\n0\n\n"),
        (te.to_owned(), "5\r\nhelloX\r\n0\r\n\r\n"),
        ("expect: 200-ok\r\ncontent-length: 5\r\n".to_owned(), "hello"),
        (format!("expect: 100-continue\r\n{te}"), &whole),
        ("expect: 100-continue\r\n".to_owned(), ""),
        ("connection: close\r\nconnection: keep-alive\r\n".to_owned(), ""),
        ("upgrade: h2c\r\nconnection: upgrade\r\n".to_owned(), ""),
        ("x: 1\r\n 2\r\n".to_owned(), ""),
        ("x : 1\r\n".to_owned(), ""),
        ("x: a\rb\r\n".to_owned(), ""),
        ("x: a\0b\r\n".to_owned(), ""),
        ("x: \u{e9}\t\r\nx:\r\n".to_owned(), ""),
        (": a\r\n".to_owned(), ""),
    ] {
        all.push(post(&lines, body));
    }
    all.extend(
        [
            "POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            "\r\n\n\r\nGET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\nhost: a\n\n",
            "GET  / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.2\r\n\r\n",
            "GET / HTTP/2.0\r\n\r\n",
            "GET /\r\n\r\n",
            "G\u{e9}T / HTTP/1.1\r\n\r\n",
            "GET /\u{e9} HTTP/1.1\r\n\r\n",
            "GET a b HTTP/1.1\r\n\r\n",
            "GET a HTTP/1.1\r\n\r\n",
            "GET http:// HTTP/1.1\r\n\r\n",
            "\r\n",
            "nothing",
            "",
        ]
        .map(str::to_owned),
    );
    all.into_iter().map(String::into_bytes).collect()
}

#[test]
fn every_request_is_read_and_answered_as_by_hyper() {
    for request in requests() {
        for closes in [false, true] {
            compare(&[&request], closes, LIMITS);
            for middle in [1, request.len() / 3, request.len() / 2, request.len().max(1) - 1] {
                let (one, two) = request.split_at(middle.min(request.len()));
                compare(&[one, two], closes, LIMITS);
            }
            let twice = [&request[..], &request].concat();
            compare(&[&twice], closes, LIMITS);
        }
        let bytes: Vec<&[u8]> = request.chunks(1).collect();
        compare(&bytes, true, LIMITS);
    }
}

#[test]
fn heads_beyond_their_bounds_are_refused_as_by_hyper() {
    let long = |count: usize| format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "x".repeat(count));
    let limits = HeadLimits { bytes: 200, headers: 3 };
    for count in [100, 160, 170, 172, 173, 174, 175, 176, 177, 180, 300, 10_000] {
        let request = long(count);
        compare(&[request.as_bytes()], false, limits);
        compare(&request.as_bytes().chunks(50).collect::<Vec<_>>(), false, limits);
    }
    for count in 0..6 {
        let request = format!("GET / HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(count));
        compare(&[request.as_bytes()], false, limits);
        compare(&[request.as_bytes()], false, HeadLimits { headers: 200, ..limits });
    }
    for count in [65_533, 65_534, 65_535] {
        let request = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(count - 1));
        compare(&[request.as_bytes()], false, HeadLimits { bytes: 1 << 20, headers: 100 });
    }
}

#[test]
fn long_bodies_are_read_as_by_hyper() {
    for length in [7_000, 8 << 10, 40_000, 200_000] {
        let head = format!("POST / HTTP/1.1\r\ncontent-length: {length}\r\n\r\n");
        let body: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
        let next = b"GET /stream HTTP/1.1\r\n\r\n";
        let whole = [head.as_bytes(), &body, next].concat();
        compare(&[&whole], true, LIMITS);
        for size in [1_000, 9_000, 66_000] {
            compare(&whole.chunks(size).collect::<Vec<_>>(), true, LIMITS);
            let cut = &whole[..length / 2];
            compare(&cut.chunks(size).collect::<Vec<_>>(), true, LIMITS);
        }
    }
}

#[test]
fn a_line_feed_alone_ends_no_trailer() {
    for trailers in ["\nGET /x HTTP/1.1\r\nhost: a", "x: y\n\nGET /x HTTP/1.1\r\n", "x: y\n", "\n"]
    {
        let request =
            format!("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n{trailers}\r\n\r\n");
        for closes in [false, true] {
            let course = ours(&[request.as_bytes()], closes, LIMITS, false);
            let bodies: Vec<_> = course.seen.iter().map(|seen| seen.body.clone()).collect();
            assert_eq!((bodies, course.open), (vec![None], false), "{trailers:?}");
            assert!(course.out.starts_with(b"HTTP/1.1 400 "), "{trailers:?}");
        }
    }
}

#[test]
fn a_client_that_leaves_is_noticed_where_the_connection_watches() {
    let held = b"GET /held HTTP/1.1\r\n\r\n";
    for (closes, watches, open) in [(false, true, true), (true, true, false), (true, false, true)] {
        let course = ours(&[held], closes, LIMITS, watches);
        assert_eq!(course.open, open, "closes: {closes}, watches: {watches}");
        assert_eq!((course.seen.len(), course.out.len()), (1, 0));
    }
    // What comes behind a request is the next one.
    let course = ours(&[held, b"GET / HTTP/1.1\r\n\r\n"], false, LIMITS, true);
    assert_eq!((course.seen.len(), course.open), (1, true));
    let both = ours(&[b"GET / HTTP/1.1\r\n\r\n", held], false, LIMITS, true);
    assert_eq!((both.seen.len(), both.open), (2, true));
}

#[test]
fn a_connection_that_the_gateway_ends_answers_what_has_begun() {
    let get = "GET / HTTP/1.1\r\n\r\n";
    for (case, first, second, answers, announced) in [
        ("nothing has come", "", "", 0, false),
        ("a part of the first head has come", "GET / HT", "TP/1.1\r\n\r\n", 1, true),
        (
            "a part of the second head has come",
            "GET / HTTP/1.1\r\n\r\nGET / HT",
            "TP/1.1\r\n\r\n",
            2,
            true,
        ),
        ("it is idle, and the next request is there", get, get, 2, true),
        ("it is idle", get, "", 1, false),
        ("it is idle, and blank lines are there", get, "\r\n", 1, false),
        ("a new one, and its request is there", "", get, 1, true),
        (
            "a request is read",
            "POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\na",
            "bGET / HTTP/1.1\r\n\r\n",
            1,
            true,
        ),
    ] {
        let (near, mut far) = duplex(1 << 20);
        let seen = SeenRequests::default();
        let serve = {
            let seen = Arc::clone(&seen);
            move |request| answer(request, Arc::clone(&seen))
        };
        let settings = Http1Settings { limits: LIMITS, watches: false };
        let activity = Activity::new(Instant::now(), true);
        let mut connection = Http1::new(near, Bytes::new(), settings, activity, serve);
        let cx = &mut Context::from_waker(Waker::noop());
        assert!(pin!(far.write_all(first.as_bytes())).poll(cx).is_ready());
        assert!(connection.poll(cx).is_pending(), "{case}");
        connection.end();
        let _ = pin!(far.write_all(second.as_bytes())).poll(cx);
        assert!(connection.poll(cx).is_ready(), "{case}");
        let mut out = String::new();
        assert!(pin!(far.read_to_string(&mut out)).poll(cx).is_ready(), "{case}: it is closed");
        let read = seen.lock().clone();
        assert_eq!(responses(out.as_bytes(), &read).len(), answers, "{case}: {out}");
        assert_eq!(out.contains("\r\nconnection: close\r\n"), announced, "{case}: {out}");
    }
}

/// A change of one place.
#[derive(Clone, Debug)]
enum Damage {
    Replace(u8),
    Insert(u8),
    Remove(usize),
    Repeat(usize),
}

fn damages() -> impl Strategy<Value = Damage> {
    let bytes =
        prop_oneof![prop::sample::select(b"\r\n\t :;,0159afxX\0\x7f\xff".to_vec()), any::<u8>(),];
    prop_oneof![
        bytes.clone().prop_map(Damage::Replace),
        bytes.prop_map(Damage::Insert),
        (1..20_usize).prop_map(Damage::Remove),
        (1..60_usize).prop_map(Damage::Repeat),
    ]
}

fn damage(bytes: &mut Vec<u8>, damage: Damage, at: prop::sample::Index) {
    let at = at.index(bytes.len() + 1);
    let end = |count: usize| (at + count).min(bytes.len());
    match damage {
        Damage::Replace(byte) if at < bytes.len() => bytes[at] = byte,
        Damage::Replace(byte) | Damage::Insert(byte) => bytes.insert(at, byte),
        Damage::Remove(count) => drop(bytes.drain(at..end(count))),
        Damage::Repeat(count) => {
            let part = bytes[at..end(count)].to_vec();
            bytes.splice(at..at, part);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        // More of them if `PROPTEST_CASES` says so.
        cases: ProptestConfig::default().cases.max(2000),
        ..ProptestConfig::default()
    })]

    #[test]
    fn damaged_requests_are_read_and_answered_as_by_hyper(
        chosen in prop::collection::vec(any::<prop::sample::Index>(), 1..4),
        changes in prop::collection::vec((damages(), any::<prop::sample::Index>()), 0..4),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        closes: bool,
    ) {
        let all = requests();
        let mut bytes = chosen.iter().flat_map(|chosen| chosen.get(&all).clone()).collect();
        for (change, at) in changes {
            damage(&mut bytes, change, at);
        }
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.sort_unstable();
        let mut pieces = Vec::new();
        let mut rest = &bytes[..];
        let mut at = 0;
        for cut in cuts {
            let (piece, behind) = rest.split_at(cut - at);
            pieces.push(piece);
            (rest, at) = (behind, cut);
        }
        pieces.push(rest);
        compare(&pieces, closes, LIMITS);
    }
}

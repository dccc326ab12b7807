//! The same bytes, cut in every way, for hyper's client and for this room.

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::{Method, Request, Version, response};
use http_body::Body as _;
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper::ext::ReasonPhrase;
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use tokio::io::{AsyncWriteExt, duplex};

use super::WireError;
use super::chunks::BARE_TRAILER;
use super::head::{HeadReader, ResponseHead};

/// A response as a client reads it.
#[derive(Debug, PartialEq, Eq)]
struct ReadResponse {
    head: Option<ReadHead>,
    body: Vec<u8>,
    end: ResponseEnd,
}

#[derive(Debug, PartialEq, Eq)]
struct ReadHead {
    status: u16,
    reason: Option<Vec<u8>>,
    headers: Vec<(String, Vec<u8>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ResponseEnd {
    /// It is complete, and the connection can be used again.
    Reusable,
    /// It is complete, and the connection can't be used again.
    Complete,
    Waiting,
    Broken,
}

impl ReadResponse {
    fn without_head(end: ResponseEnd) -> Self {
        Self { head: None, body: Vec::new(), end }
    }
}

impl ReadHead {
    fn ours(head: &ResponseHead) -> Self {
        let header = |(name, value): (&[u8], &[u8])| {
            (String::from_utf8_lossy(name).into_owned(), value.to_vec())
        };
        Self {
            status: head.status.as_u16(),
            reason: head.reason.as_ref().map(|text| text.as_bytes().to_vec()),
            headers: head.headers.iter().map(header).collect(),
        }
    }

    fn of(parts: &response::Parts) -> Self {
        let header = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
            (name.to_string(), value.as_bytes().to_vec())
        };
        Self {
            status: parts.status.as_u16(),
            reason: parts.extensions.get::<ReasonPhrase>().map(|text| text.as_bytes().to_vec()),
            headers: parts.headers.iter().map(header).collect(),
        }
    }
}

/// Reads by this room. An error is also a result, since the other client may accept more.
fn ours(pieces: &[&[u8]], method: &Method, closes: bool) -> (ReadResponse, Option<WireError>) {
    let mut reader = HeadReader::default();
    let mut start = None;
    let mut body = Vec::new();
    let broken = |error| (ReadResponse::without_head(ResponseEnd::Broken), Some(error));
    let mut pieces = pieces.iter().filter(|piece| !piece.is_empty());
    for piece in pieces.by_ref() {
        match reader.feed(piece, method) {
            Ok(None) => {}
            Ok(read) => {
                start = read;
                break;
            }
            Err(error) => return broken(error),
        }
    }
    let Some(mut start) = start else {
        let end = if closes { ResponseEnd::Broken } else { ResponseEnd::Waiting };
        return (ReadResponse::without_head(end), None);
    };
    let head = Some(ReadHead::ours(&start.head));
    loop {
        body.extend(start.body.take().unwrap_or_default());
        if let Some(error) = start.body.take_error() {
            return (ReadResponse { head, body, end: ResponseEnd::Broken }, Some(error));
        }
        match pieces.next() {
            Some(piece) => start.body.feed(piece),
            None => break,
        }
    }
    if closes {
        start.body.close(None);
    }
    if let Some(error) = start.body.take_error() {
        return (ReadResponse { head, body, end: ResponseEnd::Broken }, Some(error));
    }
    let end = match start.body.is_over() {
        true if start.keep_alive && !start.body.has_excess() && !closes => ResponseEnd::Reusable,
        true => ResponseEnd::Complete,
        false => ResponseEnd::Waiting,
    };
    (ReadResponse { head, body, end }, None)
}

/// Reads by hyper's client.
fn hypers(pieces: &[&[u8]], method: &Method, closes: bool) -> ReadResponse {
    let mut cx = Context::from_waker(Waker::noop());
    let (near, mut far) = duplex(1 << 20);
    let Poll::Ready(Ok((mut sender, connection))) =
        pin!(http1::handshake(TokioIo::new(near))).poll(&mut cx)
    else {
        panic!("no handshake");
    };
    let mut connection = Some(pin!(connection));
    let mut drive = |cx: &mut Context<'_>| {
        if let Some(driver) = &mut connection
            && driver.as_mut().poll(cx).is_ready()
        {
            connection = None;
        }
        connection.is_some()
    };
    drive(&mut cx);
    let request = Request::builder().method(method).uri("/").body(Empty::<Bytes>::new());
    let mut response = pin!(sender.send_request(request.expect("valid")));
    assert!(response.as_mut().poll(&mut cx).is_pending(), "nothing is sent");
    drive(&mut cx);
    let (mut head, mut incoming, mut body) = (None, None, Vec::new());
    let (mut end, mut version) = (ResponseEnd::Waiting, Version::HTTP_11);
    let mut pieces = pieces.iter().filter(|piece| !piece.is_empty());
    let mut far = Some(&mut far);
    loop {
        // Often enough for each frame of one piece.
        for _ in 0..4096 {
            drive(&mut cx);
            if head.is_none() {
                match response.as_mut().poll(&mut cx) {
                    Poll::Pending => break,
                    Poll::Ready(Err(_)) => return ReadResponse::without_head(ResponseEnd::Broken),
                    Poll::Ready(Ok(response)) => {
                        let (parts, body) = response.into_parts();
                        version = parts.version;
                        head = Some(ReadHead::of(&parts));
                        incoming = Some(body);
                    }
                }
            }
            let Some(frames) = &mut incoming else { break };
            match Pin::new(frames).poll_frame(&mut cx) {
                Poll::Pending => break,
                Poll::Ready(None) => {
                    end = ResponseEnd::Complete;
                    break;
                }
                Poll::Ready(Some(Err(_))) => {
                    return ReadResponse { head, body, end: ResponseEnd::Broken };
                }
                Poll::Ready(Some(Ok(frame))) => body.extend(frame.into_data().unwrap_or_default()),
            }
        }
        let Some(open) = &mut far else { break };
        match pieces.next() {
            Some(piece) => {
                let sent = pin!(open.write_all(piece)).poll(&mut cx);
                assert!(sent.is_ready(), "the pipe is full");
            }
            None if closes => {
                let _ = pin!(open.shutdown()).poll(&mut cx);
                far = None;
            }
            None => break,
        }
    }
    // This room uses no connection of HTTP/1.0 again.
    let kept = drive(&mut cx) && sender.is_ready() && version != Version::HTTP_10;
    if end == ResponseEnd::Complete && kept {
        end = ResponseEnd::Reusable;
    }
    ReadResponse { head, body, end }
}

/// Compares the two, where this room does not refuse more on purpose.
fn compare(pieces: &[&[u8]], method: &Method, closes: bool) {
    let (ours, error) = ours(pieces, method, closes);
    if let Some(
        WireError::Switched
        | WireError::TransferEncoding
        | WireError::TwoLengths
        | WireError::LongHead
        | WireError::Chunks(BARE_TRAILER),
    ) = error
    {
        return;
    }
    let mut hypers = hypers(pieces, method, closes);
    // hyper reads no names from a `connection` that is not ASCII. Closing harms nothing.
    if ours.end == ResponseEnd::Complete && !pieces.iter().all(|piece| piece.is_ascii()) {
        hypers.end = ours.end;
    }
    // hyper looks at a head that is incomplete only once.
    if matches!(error, Some(WireError::Head(_)))
        && hypers == ReadResponse::without_head(ResponseEnd::Waiting)
    {
        return;
    }
    let text: Vec<_> = pieces.iter().map(|piece| piece.escape_ascii().to_string()).collect();
    assert_eq!(ours, hypers, "{method} {text:?}, closes: {closes}, {error:?}");
}

/// Responses, valid ones and others.
const RESPONSES: &[&str] = &[
    "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
    "HTTP/1.1 200 OK\r\nContent-Length:5\r\nX:  a b \r\nX: c\r\n\r\nhello",
    "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    "HTTP/1.1 200 Fine\r\ncontent-length: 0\r\n\r\n",
    "HTTP/1.1 200\r\ncontent-length: 1\r\n\r\na",
    "HTTP/1.1 599 \r\ncontent-length: 1\r\n\r\na",
    "HTTP/1.1 200 OK\ncontent-length: 1\n\na",
    "\r\nHTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\na",
    "HTTP/1.1 200 OK\r\ncontent-length: 1, 1\r\ncontent-length: 1\r\n\r\na",
    "HTTP/1.1 200 OK\r\ncontent-length: 1, 2\r\n\r\nab",
    "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
    "HTTP/1.1 200 OK\r\ncontent-length: +1\r\n\r\na",
    "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\na",
    "HTTP/1.1 200 OK\r\ncontent-length: 0x1\r\n\r\na",
    "HTTP/1.1 200 OK\r\ncontent-length:\r\n\r\na",
    "HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999\r\n\r\na",
    "HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nab",
    "HTTP/1.1 200 OK\r\ncontent-length: 1\r\nconnection: close\r\n\r\na",
    "HTTP/1.1 200 OK\r\ncontent-length: 1\r\nconnection: x, CLOSE\r\nconnection: keep-alive\r\n\r\na",
    "HTTP/1.1 200 OK\r\ncontent-length: 1\r\nconnection: keep-alive\r\n\r\na",
    "HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\na",
    "HTTP/1.0 200 OK\r\ncontent-length: 1\r\nconnection: keep-alive\r\n\r\na",
    "HTTP/1.0 200 OK\r\n\r\nall of it",
    "HTTP/1.1 200 OK\r\n\r\nuntil the end",
    "HTTP/1.1 204 No Content\r\n\r\n",
    "HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\nhello",
    "HTTP/1.1 304 Not Modified\r\ntransfer-encoding: chunked\r\n\r\n",
    "HTTP/1.1 304 Not Modified\r\ncontent-length: x\r\n\r\n",
    "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\na",
    "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\na",
    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n00A\r\n0123456789\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1 \t;a=b;c=\"d\"\r\na\r\n0;x\r\n\r\n",
    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\nx: y\r\nz: 1\r\n\r\n",
    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\nno trailer\r\n\r\n",
    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\nx: y\nz: 1\r\n\r\n",
    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\nx: y\rz: 1\r\n\r\n",
    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\na\n0\n\n",
    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1;a\nb\r\na\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\r\na\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n 1\r\na\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1 1\r\na\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n+1\r\na\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n10000000000000001\r\na\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\nx",
    "HTTP/1.1 200 OK\r\nx: a\r\n b\r\ncontent-length: 1\r\n\r\na",
    "HTTP/1.1 200 OK\r\nx : a\r\ncontent-length: 1\r\n\r\na",
    "HTTP/1.1 200 OK\r\nx\r\ncontent-length: 1\r\n\r\na",
    "HTTP/1.1 200 OK\r\nx: a\rb\r\ncontent-length: 1\r\n\r\na",
    "HTTP/1.1 200 OK\r\nx: a\0b\r\ncontent-length: 1\r\n\r\na",
    "HTTP/1.1 2000 OK\r\n\r\n",
    "HTTP/1.1 099 No\r\n\r\n",
    "HTTP/1.1  200 OK\r\n\r\n",
    "HTTP/1.2 200 OK\r\n\r\n",
    "HTTP/2.0 200 OK\r\n\r\n",
    "ICY 200 OK\r\n\r\n",
    "hello",
    "",
];

#[test]
fn a_response_is_read_as_hypers_client_reads_it_however_it_is_cut() {
    for response in RESPONSES {
        let response = response.as_bytes();
        for method in [Method::POST, Method::HEAD] {
            for closes in [false, true] {
                for at in 0..=response.len() {
                    let (first, second) = response.split_at(at);
                    compare(&[first, second], &method, closes);
                    // As far as it has come.
                    compare(&[first], &method, closes);
                }
                let bytes: Vec<_> = response.chunks(1).collect();
                compare(&bytes, &method, closes);
            }
        }
    }
}

#[test]
fn a_response_whose_end_could_be_read_in_two_ways_is_refused() {
    let chunks = "1\r\na\r\n0\r\n\r\n";
    for (head, want) in [
        ("transfer-encoding: chunked\r\ncontent-length: 11", "TwoLengths"),
        ("content-length: 11\r\ntransfer-encoding: chunked", "TwoLengths"),
        ("transfer-encoding: gzip, chunked", "TransferEncoding"),
        ("transfer-encoding: gzip\r\ntransfer-encoding: chunked", "TransferEncoding"),
        ("transfer-encoding: chunked\r\ntransfer-encoding: chunked", "TransferEncoding"),
        ("transfer-encoding: chunked, identity", "TransferEncoding"),
        ("transfer-encoding: xchunked", "TransferEncoding"),
        ("transfer-encoding:", "TransferEncoding"),
        ("content-length: 1\r\ncontent-length: 11", "Length"),
    ] {
        let response = format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n{chunks}");
        let error = HeadReader::default().feed(response.as_bytes(), &Method::POST);
        let error = error.expect_err(head);
        assert_eq!(format!("{error:?}"), want, "{head}");
    }
    for (response, want) in [
        ("HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", "TransferEncoding"),
        ("HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n", "Switched"),
    ] {
        let error = HeadReader::default().feed(response.as_bytes(), &Method::POST);
        assert_eq!(format!("{:?}", error.expect_err(response)), want, "{response}");
    }
}

#[test]
fn a_head_beyond_its_bounds_is_refused() {
    let read = |response: &str, piece: usize| {
        let mut reader = HeadReader::default();
        for piece in response.as_bytes().chunks(piece) {
            if reader.feed(piece, &Method::GET)?.is_some() {
                return Ok(());
            }
        }
        panic!("it is not complete")
    };
    let with = |headers: &str| format!("HTTP/1.1 200 OK\r\n{headers}content-length: 0\r\n\r\n");
    let long = |size: usize| with(&format!("x: {}\r\n", "a".repeat(size)));
    let many = |count: usize| with(&"x: a\r\n".repeat(count));
    // The rest of a head of 416 KiB.
    let most = (416 << 10) - long(0).len();
    for piece in [16_000, usize::MAX] {
        assert!(read(&long(most), piece).is_ok());
        assert!(matches!(read(&long(most + 1), piece), Err(WireError::LongHead)), "{piece}");
        assert!(read(&many(99), piece).is_ok());
        assert!(matches!(read(&many(100), piece), Err(WireError::LongHead)), "{piece}");
    }
    let hints = "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(16_000);
    let blank = "\r\n".repeat(212_993);
    for piece in [16_000, usize::MAX] {
        for end in ["", &with("")] {
            for before in [&hints, &blank] {
                let error = read(&format!("{before}{end}"), piece);
                assert!(matches!(error, Err(WireError::LongHead)), "{piece}");
            }
        }
    }
}

#[test]
fn interim_heads_and_blank_lines_are_read_once_and_not_kept() {
    for before in ["HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n", "\r\n", "\n", "\n\r\n"] {
        for piece in [1, 7, before.len(), before.len() + 1] {
            let mut reader = HeadReader::default();
            for piece in before.repeat(100).as_bytes().chunks(piece) {
                let start = reader.feed(piece, &Method::GET).expect("valid");
                assert!(start.is_none());
                assert!(reader.kept() < before.len(), "{} bytes of {before:?}", reader.kept());
            }
        }
    }
}

#[test]
fn a_long_body_behind_a_head_in_two_pieces_is_read() {
    let hints = "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n";
    let heads = format!("{hints}HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n");
    let body = vec![b'x'; 1_000_000];
    let response = [heads.as_bytes(), &body].concat();
    for at in 0..=heads.len() {
        let (first, second) = response.split_at(at);
        for read in [64 << 10, usize::MAX] {
            let pieces: Vec<_> = [first].into_iter().chain(second.chunks(read)).collect();
            let (read, error) = ours(&pieces, &Method::POST, false);
            assert!(error.is_none(), "cut at {at}: {error:?}");
            assert_eq!(read.end, ResponseEnd::Reusable, "cut at {at}");
            assert!(read.body == body, "cut at {at}: {} bytes", read.body.len());
        }
    }
}

#[test]
fn a_connection_whose_end_is_the_bodys_end_is_not_kept() {
    for (head, kept) in [
        ("x: y", false),
        ("connection: keep-alive", false),
        ("content-length: 1", true),
        ("transfer-encoding: chunked", true),
    ] {
        for method in [Method::POST, Method::HEAD] {
            let response = format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n");
            let start = HeadReader::default().feed(response.as_bytes(), &method);
            let start = start.expect(head).expect("complete");
            assert_eq!(start.keep_alive, kept || method == Method::HEAD, "{method} {head}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_damaged_response_is_read_as_hypers_client_reads_it(
        which in any::<prop::sample::Index>(),
        damage in prop::collection::vec(
            (any::<prop::sample::Index>(), prop::sample::select(&b"\r\n\0 \t0159afZ;:,=-+\x80"[..]), 0..3_u8),
            0..4,
        ),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        closes: bool,
    ) {
        let mut response = which.get(RESPONSES).as_bytes().to_vec();
        for (at, byte, kind) in damage {
            if response.is_empty() {
                break;
            }
            let at = at.index(response.len());
            match kind {
                0 => response[at] = byte,
                1 => response.insert(at, byte),
                _ => drop(response.remove(at)),
            }
        }
        let mut cuts: Vec<_> = cuts.iter().map(|at| at.index(response.len() + 1)).collect();
        cuts.sort_unstable();
        let mut pieces = Vec::new();
        let mut rest = &response[..];
        let mut begun = 0;
        for at in cuts {
            let (piece, behind) = rest.split_at(at - begun);
            pieces.push(piece);
            (rest, begun) = (behind, at);
        }
        pieces.push(rest);
        compare(&pieces, &Method::POST, closes);
    }
}

//! When a request counts as whole, as unread and as over.

use std::convert::Infallible;
use std::error::Error;
use std::task::Poll;

use forebay_config::Limits;
use http_body_util::combinators::MapErr;
use http_body_util::{BodyExt, Full};
use tokio_util::io::InspectReader;

use super::*;
use crate::net::activity::{TimeLimit, WatchedBody};
use crate::net::upgrade::OnUpgrade;
use crate::wire::lines::{BringsLines, HeaderLines};

#[test]
fn no_other_protocol_begins_before_the_request_is_whole() {
    for (lines, granted) in [
        ("", true),
        ("content-length: 0\r\n", true),
        ("content-length: 5\r\n", false),
        ("transfer-encoding: chunked\r\n", false),
        ("transfer-encoding: chunked\r\ncontent-length: 5\r\n", false),
    ] {
        let head =
            format!("GET /upgrade HTTP/1.1\r\nconnection: upgrade\r\nupgrade: x\r\n{lines}\r\n");
        let (near, mut far) = duplex(1 << 20);
        let granting = |request: http::Request<_>| {
            let offered = request.extensions().get::<OnUpgrade>().is_some();
            let seen = SeenRequests::default();
            assert_eq!(offered, granted, "{lines:?}");
            answer(request, seen)
        };
        let settings = Http1Settings { limits: LIMITS, watches: false };
        let activity = Activity::new(Instant::now(), true);
        let mut connection = Http1::new(near, Bytes::new(), settings, activity, granting);
        let cx = &mut Context::from_waker(Waker::noop());
        assert!(pin!(far.write_all(head.as_bytes())).poll(cx).is_ready());
        let _ = connection.poll(cx);
    }
}

#[test]
fn what_is_not_read_of_a_client_is_known_when_the_gateway_closes() {
    let get = "GET / HTTP/1.1\r\n\r\n";
    let close = "GET / HTTP/1.1\r\nconnection: close\r\n\r\n";
    let broken = "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\nmore";
    for (case, first, second, unread) in [
        ("nothing is left", close, "", false),
        ("another request", close, get, true),
        ("a head that is not valid", "GET / \0\r\n\r\n", "", true),
        ("a body that is not valid", broken, "", true),
    ] {
        let (near, mut far) = duplex(1 << 20);
        let serve = |request| answer(request, SeenRequests::default());
        let settings = Http1Settings { limits: LIMITS, watches: false };
        let activity = Activity::new(Instant::now(), true);
        let mut connection = Http1::new(near, Bytes::new(), settings, Arc::clone(&activity), serve);
        let cx = &mut Context::from_waker(Waker::noop());
        for part in [first, second] {
            assert!(pin!(far.write_all(part.as_bytes())).poll(cx).is_ready());
        }
        assert!(connection.poll(cx).is_ready(), "{case}");
        assert_eq!(activity.is_unread(), unread, "{case}");
    }
}

impl<B, F> BringsLines for MapErr<B, F> {
    fn take_lines(&mut self) -> HeaderLines {
        HeaderLines::default()
    }
}

#[test]
fn a_request_counts_until_its_answer_is_written() {
    let (near, mut far) = duplex(1000);
    let flight = Arc::new(());
    let body = Full::new(Bytes::from(vec![b'a'; 50_000]));
    let counted = {
        let flight = Arc::clone(&flight);
        // The flight ends with the body.
        body.map_err(move |never: Infallible| -> Box<dyn Error + Send + Sync> {
            let _ = &flight;
            match never {}
        })
    };
    let mut counted = Some(counted);
    let serve = |_| {
        let response = http::Response::new(counted.take().expect("one request"));
        async { Ok::<_, Infallible>(response) }
    };
    let settings = Http1Settings { limits: LIMITS, watches: false };
    let activity = Activity::new(Instant::now(), true);
    let mut connection = Http1::new(near, Bytes::new(), settings, activity, serve);
    let cx = &mut Context::from_waker(Waker::noop());
    assert!(pin!(far.write_all(b"GET / HTTP/1.1\r\n\r\n")).poll(cx).is_ready());
    let mut read = 0;
    while read < 50_000 {
        assert!(connection.poll(cx).is_pending());
        assert_eq!(Arc::strong_count(&flight), 2, "after {read} bytes");
        let mut part = [0; 1000];
        read += match pin!(far.read(&mut part)).poll(cx) {
            Poll::Ready(Ok(count)) => count,
            other => panic!("{other:?} after {read} bytes"),
        };
    }
    assert!(connection.poll(cx).is_pending());
    assert_eq!(Arc::strong_count(&flight), 1, "it is written");
}

#[test]
fn an_answer_that_ends_with_the_connection_is_unframed_until_it_is_written() {
    for (path, version, unframed) in
        [("/stream", "1.0", true), ("/stream", "1.1", false), ("/sized", "1.0", false)]
    {
        let (near, mut far) = duplex(1000);
        let settings = Http1Settings { limits: LIMITS, watches: false };
        let activity = Activity::new(Instant::now(), true);
        let serve = |request| answer(request, SeenRequests::default());
        let mut connection = Http1::new(near, Bytes::new(), settings, Arc::clone(&activity), serve);
        let cx = &mut Context::from_waker(Waker::noop());
        let request = format!("GET {path} HTTP/{version}\r\n\r\n");
        assert!(pin!(far.write_all(request.as_bytes())).poll(cx).is_ready());
        // The whole answer is there at once, and most of it is not written.
        assert!(connection.poll(cx).is_pending());
        assert_eq!(activity.is_unframed(), unframed, "{path} {version}");
        let mut part = [0; 1000];
        while let Poll::Ready(Ok(1..)) = pin!(far.read(&mut part)).poll(cx) {
            let _ = connection.poll(cx);
        }
        assert!(!activity.is_unframed(), "{path} {version}");
    }
}

#[test]
fn a_request_behind_an_answer_that_promised_to_take_another_is_answered_before_the_end() {
    let stream = "GET /stream HTTP/1.1\r\n\r\n";
    let get = "GET / HTTP/1.1\r\n\r\n";
    let two = [get, get].concat();
    for (case, first, behind, answers) in [
        ("nothing follows", stream, "", 1),
        ("only blank lines follow", stream, "\r\n\r\n", 1),
        ("a request came in the same bytes", &[stream, get].concat(), "", 2),
        ("a request came later", stream, get, 2),
        ("two came, and the answer to the first says that it is the last", stream, &two, 2),
    ] {
        let (near, mut far) = duplex(1000);
        let seen = SeenRequests::default();
        let settings = Http1Settings { limits: LIMITS, watches: false };
        let activity = Activity::new(Instant::now(), true);
        let serve = |request| {
            drop(activity.begin());
            answer(request, Arc::clone(&seen))
        };
        let mut connection = Http1::new(near, Bytes::new(), settings, Arc::clone(&activity), serve);
        let cx = &mut Context::from_waker(Waker::noop());
        assert!(pin!(far.write_all(first.as_bytes())).poll(cx).is_ready());
        assert!(connection.poll(cx).is_pending(), "{case}: the answer is under way");
        connection.end();
        assert!(pin!(far.write_all(behind.as_bytes())).poll(cx).is_ready());
        let mut out = Vec::new();
        let mut part = [0; 1000];
        while connection.poll(cx).is_pending() {
            let Poll::Ready(Ok(count @ 1..)) = pin!(far.read(&mut part)).poll(cx) else {
                panic!("{case}: it stays open")
            };
            out.extend_from_slice(&part[..count]);
        }
        drop(connection);
        assert!(pin!(far.read_to_end(&mut out)).poll(cx).is_ready(), "{case}");
        let read = seen.lock().clone();
        assert_eq!(responses(&out, &read).len(), answers, "{case}");
        let out = String::from_utf8_lossy(&out);
        let announced = out.contains("\r\nconnection: close\r\n");
        assert_eq!(announced, answers > 1, "{case}");
        assert_eq!(activity.is_unread(), behind == two, "{case}");
    }
}

#[test]
fn a_part_of_a_head_behind_an_answer_has_the_time_of_a_head() {
    let get = "GET / HTTP/1.1\r\n\r\n";
    let stream = "GET /stream HTTP/1.1\r\n\r\n";
    for ends in [false, true] {
        for (case, first, behind, limit) in [
            ("it came with the request", [get, "GET"].concat(), "", TimeLimit::Head),
            ("it came behind an answer that waits", [stream, "GET"].concat(), "", TimeLimit::Head),
            ("it came while the answer was written", stream.to_owned(), "GET", TimeLimit::Head),
            ("nothing came", get.to_owned(), "", TimeLimit::Idle),
        ] {
            let (near, mut far) = duplex(1000);
            let settings = Http1Settings { limits: LIMITS, watches: false };
            let activity = Activity::new(Instant::now(), true);
            // As the connection's socket notes what it reads.
            let near = InspectReader::new(near, |bytes: &[u8]| {
                if !bytes.is_empty() {
                    activity.received();
                }
            });
            let serve = |request| {
                let flight = activity.begin();
                async {
                    let answer = answer(request, SeenRequests::default()).await;
                    answer.map(|response| response.map(|body| WatchedBody::new(body, flight)))
                }
            };
            let mut connection =
                Http1::new(near, Bytes::new(), settings, Arc::clone(&activity), serve);
            let cx = &mut Context::from_waker(Waker::noop());
            assert!(pin!(far.write_all(first.as_bytes())).poll(cx).is_ready());
            assert!(connection.poll(cx).is_pending(), "{case}");
            if ends {
                connection.end();
            }
            assert!(pin!(far.write_all(behind.as_bytes())).poll(cx).is_ready());
            let mut part = [0; 1000];
            while let Poll::Ready(Ok(1..)) = pin!(far.read(&mut part)).poll(cx) {
                let _ = connection.poll(cx);
            }
            assert_eq!(activity.due(&Limits::default()).1, limit, "{case}, ends: {ends}");
        }
    }
}

//! Requests over real sockets, to replicas that follow a script.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use http::{Method, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::*;
use crate::exchange::outgoing::{OutgoingHead, Rights};
use crate::read::head::ClientHead;
use crate::text::rope::Rope;

/// Long enough for a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(20);
/// More than the sockets between two ends can hold.
const LARGE: usize = 32 << 20;

struct Replica {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Replica {
    /// Serves each connection by `serve`, which also gets the connection's number, from 0.
    async fn start<F>(serve: impl Fn(TcpStream, usize) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut serving = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                serving.spawn(serve(stream, count.fetch_add(1, Relaxed)));
            }
        });
        Self { address, connections, _tasks: tasks }
    }

    /// Answers each request with `answer`, and closes behind one that has no other end.
    async fn answering(answer: &'static str) -> Self {
        Self::start(move |mut stream, _| async move {
            while read_request(&mut stream).await.is_some() {
                let _ = stream.write_all(answer.as_bytes()).await;
                if answer.ends_with("close") {
                    return;
                }
            }
        })
        .await
    }

    async fn connection(&self) -> Box<Connection> {
        let deadline = Instant::now() + PATIENCE;
        let connection = Connection::get(self.address, false, PATIENCE, deadline).await;
        connection.map_err(|none| none.failure.message).expect("it listens")
    }

    async fn send(&self, request: &Outgoing<'_>) -> Result<(u16, UpstreamBody), NoAnswer> {
        let sent = timeout(PATIENCE, self.connection().await.send(request)).await;
        let (head, body) = sent.expect("in time")?;
        Ok((head.status.as_u16(), body))
    }

    async fn ask(&self, request: &Outgoing<'_>) -> (u16, Result<Vec<u8>, String>) {
        let (status, mut body) = self.send(request).await.expect("an answer");
        (status, timeout(PATIENCE, rest(&mut body)).await.expect("in time"))
    }
}

/// The length of the body of the next request; `None` at the end.
async fn read_request(stream: &mut TcpStream) -> Option<usize> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).expect("text");
    let length: usize = head.split("content-length: ").nth(1)?.split('\r').next()?.parse().ok()?;
    let mut left = length;
    let mut buffer = vec![0; 1 << 16];
    while left > 0 {
        let most = left.min(buffer.len());
        left -= stream.read(&mut buffer[..most]).await.ok().filter(|count| *count > 0)?;
    }
    Some(length)
}

async fn rest(body: &mut UpstreamBody) -> Result<Vec<u8>, String> {
    let mut all = Vec::new();
    while let Some(data) = body.data().await {
        all.extend(data.map_err(|failure| failure.message)?);
    }
    Ok(all)
}

fn post(pieces: impl IntoIterator<Item = Vec<u8>>) -> Outgoing<'static> {
    let request = Request::builder().method(Method::POST).uri("/v1/x").body(()).expect("valid");
    let mut body = Rope::default();
    pieces.into_iter().for_each(|piece| body.push(piece.into()));
    let head = ClientHead::known(request.into_parts().0);
    Outgoing::new(OutgoingHead::own(head), body, Rights::default())
}

fn small() -> Outgoing<'static> {
    post([b"{\"model\":".to_vec(), b"\"m\"}".to_vec()])
}

#[tokio::test]
async fn a_connection_is_used_again_only_if_nothing_speaks_against_it() {
    for (answer, want, connections) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", "ok", 1),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\na: b\r\n\r\n",
            "ok",
            1,
        ),
        ("HTTP/1.1 204 No Content\r\n\r\n", "", 1),
        ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", "ok", 1),
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok", "ok", 3),
        ("HTTP/1.0 200 OK\r\ncontent-length: 2\r\nconnection: keep-alive\r\n\r\nok", "ok", 3),
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok, and more", "ok", 3),
        ("HTTP/1.1 200 OK\r\n\r\nas I close", "as I close", 3),
    ] {
        let replica = Replica::answering(answer).await;
        for _ in 0..3 {
            assert_eq!(
                replica.ask(&small()).await,
                (200 + u16::from(want.is_empty()) * 4, Ok(want.into()))
            );
        }
        assert_eq!(replica.connections.load(Relaxed), connections, "{answer}");
    }
}

#[tokio::test]
async fn an_idle_connection_that_the_replica_closed_or_wrote_to_is_not_used() {
    for says in ["", "HTTP/1.1 408 Request Timeout\r\n\r\n"] {
        let replica = Replica::start(move |mut stream, number| async move {
            read_request(&mut stream).await.expect("a request");
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n".to_vec();
            stream.write_all(&[answer, number.to_string().into()].concat()).await.expect("open");
            // Behind the answer, so that it does not come with it.
            sleep(Duration::from_millis(20)).await;
            let _ = stream.write_all(says.as_bytes()).await;
            if !says.is_empty() {
                let _ = stream.read_u8().await;
            }
        })
        .await;
        for number in ["0", "1"] {
            assert_eq!(replica.ask(&small()).await, (200, Ok(number.into())), "{says}");
            let connection = replica.connection().await;
            // It is idle, and by now it has been closed or written to.
            sleep(Duration::from_millis(200)).await;
            idle::keep(connection);
        }
    }
}

#[tokio::test]
async fn a_reused_connection_that_fails_at_once_is_stale() {
    let replica = Replica::start(|mut stream, _| async move {
        read_request(&mut stream).await.expect("a request");
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        let _ = stream.read_u8().await;
    })
    .await;
    assert_eq!(replica.ask(&small()).await, (200, Ok(Vec::new())));
    let failed = replica.send(&small()).await.err().expect("it closes");
    assert!(failed.stale, "{failed:?}");
    let deaf = Replica::start(|mut stream, _| async move {
        let _ = stream.read_u8().await;
    })
    .await;
    let failed = deaf.send(&small()).await.err().expect("it closes");
    assert!(!failed.stale, "the first request is not stale: {failed:?}");
}

#[tokio::test]
async fn a_response_that_is_not_valid_is_not_the_death_of_its_replica() {
    let sound = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    let long = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "a".repeat(1 << 20));
    for (answer, cause) in [
        (&*long, Cause::Server),
        ("HTTP/1.1 200 OK\r\nx\r\n\r\n", Cause::Server),
        ("HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n", Cause::Server),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n", Cause::Server),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 1\r\n\r\n",
            Cause::Server,
        ),
        ("HTTP/1.1 101 Switching Protocols\r\n\r\n", Cause::Server),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nx", Cause::Server),
        ("HTTP/1.1 200 OK\r\ncontent-le", Cause::Connection),
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nx", Cause::Connection),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx", Cause::Connection),
    ] {
        let text = answer.to_owned();
        let replica = Replica::start(move |mut stream, _| {
            let text = text.clone();
            async move {
                for answer in [sound, &text] {
                    read_request(&mut stream).await.expect("a request");
                    let _ = stream.write_all(answer.as_bytes()).await;
                }
            }
        })
        .await;
        let shown = &answer[..answer.len().min(80)];
        assert_eq!(replica.ask(&small()).await.0, 200, "{shown}");
        // On the connection of the first.
        let failure = match replica.send(&small()).await {
            Ok((_, mut body)) => loop {
                match body.data().await.expect("not the end") {
                    Ok(_) => {}
                    Err(failure) => break failure,
                }
            },
            Err(NoAnswer { failure, stale }) => {
                assert_eq!(stale, cause == Cause::Connection, "{shown}: {failure:?}");
                failure
            }
        };
        assert_eq!(failure.cause, cause, "{shown}: {failure:?}");
        assert_eq!(failure.cause.is_death(), cause == Cause::Connection, "{shown}");
    }
}

#[tokio::test]
async fn an_error_before_the_request_is_sent_is_the_answer() {
    for closes in [false, true] {
        let replica = Replica::start(move |mut stream, _| async move {
            stream.read_u8().await.expect("it begins");
            let answer = b"HTTP/1.1 413 Too Large\r\ncontent-length: 8\r\n\r\ntoo long";
            stream.write_all(answer).await.expect("open");
            if !closes {
                sleep(PATIENCE).await;
            }
        })
        .await;
        let large = post([vec![b'x'; LARGE / 2], vec![b'y'; LARGE / 2]]);
        for number in 1..=2 {
            assert_eq!(replica.ask(&large).await, (413, Ok("too long".into())), "{closes}");
            assert_eq!(replica.connections.load(Relaxed), number, "it is not used again");
        }
    }
}

#[tokio::test]
async fn a_request_is_sent_to_its_end_beside_an_answer_that_has_begun() {
    let replica = Replica::start(|mut stream, _| async move {
        loop {
            let mut first = [0; 4];
            if stream.read_exact(&mut first).await.is_err() {
                return;
            }
            let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n";
            stream.write_all(head).await.expect("open");
            let length = read_request(&mut stream).await.expect("the rest").to_string();
            let end = format!("{:x}\r\n{length}\r\n0\r\n\r\n", length.len());
            stream.write_all(end.as_bytes()).await.expect("open");
        }
    })
    .await;
    let pieces = (0..40).map(|_| vec![b'x'; LARGE / 40]);
    let want = format!("ok{}", LARGE / 40 * 40);
    for _ in 0..2 {
        assert_eq!(replica.ask(&post(pieces.clone())).await, (200, Ok(want.clone().into())));
    }
    assert_eq!(replica.connections.load(Relaxed), 1, "it is used again");
}

#[tokio::test]
async fn a_request_that_is_dropped_closes_its_connection() {
    for answer in ["", "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nthe begin"] {
        let (left, mut leaves) = tokio::sync::mpsc::channel(1);
        let replica = Replica::start(move |mut stream, _| {
            let left = left.clone();
            async move {
                read_request(&mut stream).await.expect("a request");
                stream.write_all(answer.as_bytes()).await.expect("open");
                assert!(matches!(stream.read(&mut [0]).await, Ok(0) | Err(_)), "it sends more");
                let _ = left.send(()).await;
            }
        })
        .await;
        let request = small();
        if answer.is_empty() {
            let sending = timeout(Duration::from_millis(100), replica.send(&request));
            assert!(sending.await.is_err(), "there is no answer");
        } else {
            let (_, mut body) = replica.send(&request).await.expect("an answer");
            assert_eq!(body.data().await, Some(Ok(Bytes::from("the begin"))));
        }
        timeout(PATIENCE, leaves.recv()).await.expect("it is closed at once");
    }
}

#[tokio::test]
async fn data_comes_before_the_failure_behind_it() {
    for (answer, want) in [
        ("content-length: 9\r\n\r\nhalf", "the connection closed before"),
        ("transfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n", "the connection closed before"),
        ("transfer-encoding: chunked\r\n\r\n4\r\nhalf\r\nx", "a size is not a number"),
    ] {
        let replica = Replica::start(move |mut stream, _| async move {
            read_request(&mut stream).await.expect("a request");
            let answer = format!("HTTP/1.1 200 OK\r\n{answer}");
            stream.write_all(answer.as_bytes()).await.expect("open");
        })
        .await;
        let (_, mut body) = replica.send(&small()).await.expect("an answer");
        assert_eq!(body.data().await, Some(Ok(Bytes::from("half"))), "{answer}");
        let failure = body.data().await.expect("a failure").expect_err(answer);
        assert!(failure.message.contains(want), "{answer}: {failure:?}");
        assert_eq!(body.data().await, None, "{answer}");
    }
}

#[tokio::test]
async fn the_length_of_an_answer_counts_down() {
    let replica = Replica::start(|mut stream, _| async move {
        read_request(&mut stream).await.expect("a request");
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nabc").await.expect("open");
        sleep(Duration::from_millis(50)).await;
        stream.write_all(b"def").await.expect("open");
        let _ = stream.read_u8().await;
    })
    .await;
    let (_, mut body) = replica.send(&small()).await.expect("an answer");
    for (left, data) in [(6, "abc"), (3, "def")] {
        assert_eq!(body.size_hint().exact(), Some(left));
        assert!(!body.is_over());
        assert_eq!(body.data().await, Some(Ok(Bytes::from(data))));
    }
    assert!(body.is_over());
    assert_eq!(body.size_hint().exact(), Some(0));
}

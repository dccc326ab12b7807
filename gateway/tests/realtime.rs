//! WebSocket sessions: bytes pass both ways and are counted, and either side may end a session.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use forebay_config::{Fallback, Pool};
use forebay_gateway::Gateway;
use parking_lot::Mutex;
use support::{PATIENCE, Tasks, config, eventually, held, http2, signals, start, status};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

mod support;

/// A replica that agrees to a WebSocket, sends `hello` at once, and then echoes text. It answers
/// any other bytes with a whole frame. At `bye` it closes the session; at `die` it closes the
/// socket alone.
struct Echo {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
    ended: Arc<Mutex<u32>>,
    _tasks: JoinSet<()>,
}

impl Echo {
    async fn start(answer: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let (heads, ended) = (Arc::new(Mutex::default()), Arc::new(Mutex::new(0)));
        let mut tasks = JoinSet::new();
        let (noted, counted) = (Arc::clone(&heads), Arc::clone(&ended));
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (noted, counted) = (Arc::clone(&noted), Arc::clone(&counted));
                connections.spawn(echo(stream, answer, noted, counted));
            }
        });
        Self { address, heads, ended, _tasks: tasks }
    }
}

async fn echo(
    mut stream: TcpStream,
    answer: &'static str,
    heads: Arc<Mutex<Vec<String>>>,
    ended: Arc<Mutex<u32>>,
) {
    let mut buffer = Vec::new();
    while let Some(head) = support::read_message(&mut stream, &mut buffer).await {
        let head = String::from_utf8(head).expect("text");
        if !head.starts_with("GET /v1/realtime") {
            let ok = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
            let _ = stream.write_all(ok.as_bytes()).await;
            continue;
        }
        heads.lock().push(head);
        let _ = stream.write_all(answer.as_bytes()).await;
        if !answer.starts_with("HTTP/1.1 101") {
            continue;
        }
        let mut bytes = [0; 1024];
        while let Ok(count @ 1..) = stream.read(&mut bytes).await {
            let reply = match &bytes[..count] {
                b"die" => break,
                [b'b', b'y', b'e', ..] => {
                    let _ = stream.write_all(CLOSE).await;
                    break;
                }
                // A frame that is echoed in parts might never end.
                text if text.iter().any(|byte| matches!(byte, ..b' ' | b'x' | 0x80..)) => WHOLE,
                text => text,
            };
            if stream.write_all(reply).await.is_err() {
                break;
            }
        }
        *ended.lock() += 1;
        return;
    }
}

const AGREED: &str = "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\
                      \r\nsec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n\x01\x05hello";
/// The first frame of a text.
const HELLO: &str = "\x01\x05hello";
const CLOSE: &[u8] = &[0x88, 2, 3, 232];
const WHOLE: &[u8] = &[0x82, 1, 0];

/// A client's handshake. Returns the connection, and the head of the answer.
async fn shake(gateway: &Gateway, query: &str) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(gateway.address()).await.expect("it listens");
    let request = format!(
        "GET /v1/realtime{query} HTTP/1.1\r\nhost: g.example\r\nConnection: keep-alive, Upgrade\r\n\
         Upgrade: WebSocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: \
         dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-protocol: realtime\r\n\
         sec-websocket-extensions: permessage-deflate\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.expect("open");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = timeout(PATIENCE, stream.read_u8()).await.expect("an answer");
        let Ok(byte) = byte else { break };
        head.push(byte);
    }
    (stream, String::from_utf8(head).expect("text"))
}

async fn receives(stream: &mut TcpStream, expected: &str) {
    let mut heard = vec![0; expected.len()];
    let read = timeout(PATIENCE, stream.read_exact(&mut heard)).await.expect("something");
    read.expect("open");
    assert_eq!(heard, expected.as_bytes());
}

async fn ended(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    let read = timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
    assert!(read.is_ok(), "still open");
}

async fn in_flight(gateway: &Gateway, count: u64) {
    let what = format!("{count} are in flight");
    eventually(&what, || async { signals(gateway, "p").await["inFlight"] == count }).await;
}

#[tokio::test]
async fn a_session_passes_bytes_both_ways_and_is_in_flight_until_its_client_leaves() {
    let echo = Echo::start(AGREED).await;
    let gateway = start(&config(Some(echo.address)));
    let (mut stream, head) = shake(&gateway, "?model=m&x=1").await;
    let lower = head.to_ascii_lowercase();
    assert!(lower.starts_with("http/1.1 101 switching protocols\r\n"), "{head}");
    for line in [
        "connection: upgrade\r\n",
        "upgrade: websocket\r\n",
        "sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=\r\n",
        "x-request-id: ",
    ] {
        assert!(lower.contains(line), "{line} in {head}");
    }
    receives(&mut stream, HELLO).await;
    for words in ["one", "two and three"] {
        stream.write_all(words.as_bytes()).await.expect("open");
        receives(&mut stream, words).await;
    }
    in_flight(&gateway, 1).await;
    let sent = echo.heads.lock()[0].to_ascii_lowercase();
    assert!(sent.starts_with("get /v1/realtime?model=m&x=1 http/1.1\r\n"), "{sent}");
    for line in [
        "connection: upgrade\r\n",
        "upgrade: websocket\r\n",
        "sec-websocket-key: dghlihnhbxbszsbub25jzq==\r\n",
        "sec-websocket-protocol: realtime\r\n",
        "x-forwarded-for: 127.0.0.1\r\n",
        "x-forwarded-host: g.example\r\n",
    ] {
        assert_eq!(sent.matches(line).count(), 1, "{line} in {sent}");
    }
    assert!(!sent.contains("extensions"), "compressed messages can't be metered: {sent}");
    drop(stream);
    eventually("the replica's connection ends", || async { *echo.ended.lock() == 1 }).await;
    in_flight(&gateway, 0).await;
}

#[tokio::test]
async fn a_session_ends_when_its_replica_closes_and_a_held_one_follows() {
    let echo = Echo::start(AGREED).await;
    let mut config = config(Some(echo.address));
    config.pools[0].max_in_flight = 1;
    let gateway = Arc::new(start(&config));
    let (mut first, _) = shake(&gateway, "").await;
    receives(&mut first, HELLO).await;
    let mut waiting = JoinSet::new();
    let other = Arc::clone(&gateway);
    waiting.spawn(async move { shake(&other, "?model=m").await });
    held(&gateway, 1).await;
    first.write_all(b"bye").await.expect("open");
    ended(&mut first).await;
    let (mut second, head) = waiting.join_next().await.expect("one").expect("no panic");
    assert_eq!(status(&head), 101, "{head}");
    receives(&mut second, HELLO).await;
    // A held session whose client leaves is taken out of the queue.
    let other = Arc::clone(&gateway);
    waiting.spawn(async move { shake(&other, "?model=m").await });
    held(&gateway, 1).await;
    waiting.abort_all();
    held(&gateway, 0).await;
    in_flight(&gateway, 1).await;
}

#[tokio::test]
async fn a_session_fails_if_its_replica_dies_and_completes_if_the_replica_closes_it() {
    for (command, completed, failed) in [("bye", 1, 0), ("die", 0, 1)] {
        let echo = Echo::start(AGREED).await;
        let gateway = start(&config(Some(echo.address)));
        let (mut stream, _) = shake(&gateway, "?model=m").await;
        receives(&mut stream, HELLO).await;
        stream.write_all(command.as_bytes()).await.expect("open");
        ended(&mut stream).await;
        eventually(command, || async {
            let totals = signals(&gateway, "p").await["totals"].clone();
            totals["completed"] == completed && totals["failed"] == failed
        })
        .await;
    }
}

#[tokio::test]
async fn a_client_that_never_stops_sending_gets_everything_that_its_replica_sent() {
    let echo = Echo::start(AGREED).await;
    let gateway = start(&config(Some(echo.address)));
    for _ in 0..8 {
        let (stream, _) = shake(&gateway, "?model=m").await;
        let (mut reading, mut writing) = stream.into_split();
        let mut talking = JoinSet::new();
        talking.spawn(async move {
            let mut sent = writing.write_all(b"bye").await;
            while sent.is_ok() {
                sent = writing.write_all(&[b'a'; 0x2000]).await;
            }
        });
        let mut heard = Vec::new();
        let read = timeout(PATIENCE, reading.read_to_end(&mut heard)).await.expect("an end");
        assert!(read.is_ok(), "{read:?} after {heard:?}");
        assert_eq!(heard, [HELLO.as_bytes(), CLOSE].concat());
        talking.shutdown().await;
    }
}

#[tokio::test]
async fn a_client_that_never_stops_sending_gets_the_close_of_a_shutdown() {
    let echo = Echo::start(AGREED).await;
    let gateway = start(&config(Some(echo.address)));
    let (mut stream, _) = shake(&gateway, "?model=m").await;
    receives(&mut stream, HELLO).await;
    let (mut reading, mut writing) = stream.into_split();
    let frame = [&[0x82, 0xfe, 0x1f, 0, 0, 0, 0, 0][..], &[b'x'; 0x1f00]].concat();
    let mut talking = JoinSet::new();
    talking.spawn(async move {
        while writing.write_all(&frame).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    let stopping = tokio::spawn(gateway.shutdown(Duration::from_secs(4)));
    let close = [&[0x88, 31, 3, 233][..], b"The gateway is shutting down."].concat();
    let mut heard = Vec::new();
    while !heard.ends_with(&close) {
        let read = timeout(PATIENCE, reading.read_buf(&mut heard)).await.expect("something");
        assert_ne!(read.expect("no reset"), 0, "an end without a close");
    }
    talking.shutdown().await;
    drop(reading);
    assert_eq!(stopping.await.expect("no panic"), Err(1), "it was busy to the last");
    eventually("the replica's connection ends", || async { *echo.ended.lock() == 1 }).await;
}

#[tokio::test]
async fn a_session_goes_to_the_fallback_if_its_own_pool_has_no_room_in_time() {
    let echo = Echo::start(AGREED).await;
    let mut config = config(None);
    let fallback = Fallback { pool: "q".to_owned(), model: None, after: None };
    config.pools[0].fallback = Some(fallback);
    let mut other = Pool::named("q");
    other.models = vec!["other".to_owned()];
    other.endpoints = vec![echo.address.to_string()];
    config.pools.push(other);
    let gateway = start(&config);
    let (mut stream, head) = shake(&gateway, "?model=m").await;
    assert_eq!(status(&head), 101, "{head}");
    receives(&mut stream, HELLO).await;
    let sent = echo.heads.lock()[0].clone();
    assert!(sent.starts_with("GET /v1/realtime?model=other "), "{sent}");
}

#[tokio::test]
async fn a_model_that_is_named_twice_is_refused() {
    let echo = Echo::start(AGREED).await;
    let gateway = start(&config(Some(echo.address)));
    let (_, head) = shake(&gateway, "?model=m&mod%65l=m").await;
    assert_eq!(status(&head), 400, "{head}");
    assert!(echo.heads.lock().is_empty(), "no replica gets a request");
}

#[tokio::test]
async fn a_session_that_is_idle_or_too_long_is_ended() {
    let echo = Echo::start(AGREED).await;
    let mut config = config(Some(echo.address));
    config.gateway.limits.session_idle_timeout = Duration::from_millis(200);
    let gateway = start(&config);
    let (mut stream, _) = shake(&gateway, "").await;
    receives(&mut stream, HELLO).await;
    ended(&mut stream).await;
    config.gateway.limits.session_idle_timeout = Duration::from_secs(300);
    config.gateway.limits.session_timeout = Duration::from_millis(200);
    let gateway = start(&config);
    let (stream, _) = shake(&gateway, "").await;
    let (mut reading, mut writing) = stream.into_split();
    let mut talking = JoinSet::new();
    talking.spawn(async move {
        while writing.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let mut heard = Vec::new();
    assert!(timeout(PATIENCE, reading.read_to_end(&mut heard)).await.is_ok(), "still open");
    eventually("both of the replica's connections end", || async { *echo.ended.lock() == 2 }).await;
}

#[tokio::test]
async fn a_request_that_is_not_a_handshake_is_answered_426() {
    let echo = Echo::start(AGREED).await;
    let gateway = start(&config(Some(echo.address)));
    let request = "GET /v1/realtime HTTP/1.1\r\nhost: g\r\nconnection: close\r\n\r\n";
    let answer = support::exchange(gateway.address(), request).await;
    assert_eq!(status(&answer), 426, "{answer}");
    assert!(answer.to_ascii_lowercase().contains("\r\nupgrade: websocket\r\n"), "{answer}");
    let tasks = Tasks::default();
    let mut client = http2(gateway.address(), &tasks).await;
    let request = http::Request::get("http://g/v1/realtime").body(Default::default());
    let response = client.send_request(request.expect("valid")).await.expect("answered");
    assert_eq!(response.status(), 426);
    let (_, head) = shake(&gateway, "?model=unknown").await;
    assert_eq!(status(&head), 404, "{head}");
    assert!(echo.heads.lock().is_empty());
}

#[tokio::test]
async fn a_replicas_refusal_is_passed_on_and_its_failure_is_tried_elsewhere() {
    let refusing = Echo::start(
        "HTTP/1.1 403 Forbidden\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}",
    )
    .await;
    let gateway = start(&config(Some(refusing.address)));
    let (mut stream, head) = shake(&gateway, "").await;
    assert_eq!(status(&head), 403, "{head}");
    receives(&mut stream, "{}").await;
    in_flight(&gateway, 0).await;

    let failing =
        Echo::start("HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n").await;
    let agreeing = Echo::start(AGREED).await;
    let mut config = config(Some(failing.address));
    config.pools[0].endpoints.push(agreeing.address.to_string());
    let gateway = start(&config);
    // While only the failing one is ready, it would be tried twice.
    eventually("both are ready", || async {
        let endpoints = signals(&gateway, "p").await["endpoints"].clone();
        let ready = |endpoint: &serde_json::Value| endpoint["health"] == "ready";
        endpoints.as_object().is_some_and(|all| all.len() == 2 && all.values().all(ready))
    })
    .await;
    // Each of the two is tried first once, or only the agreeing one is.
    for _ in 0..2 {
        let (mut stream, head) = shake(&gateway, "").await;
        assert_eq!(status(&head), 101, "{head}");
        receives(&mut stream, HELLO).await;
    }
    assert!(!failing.heads.lock().is_empty() || agreeing.heads.lock().len() == 2);
}

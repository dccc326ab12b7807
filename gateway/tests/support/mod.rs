//! A gateway in this process, with clients and replicas for it.

#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test file uses its part")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use forebay_config::{Config, HostPattern, Pool};
use forebay_gateway::Gateway;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

/// Longer than anything here takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A replica that keeps every byte that it receives, and gives the answer that it is set to.
pub struct Upstream {
    pub address: SocketAddr,
    pub seen: Arc<Seen>,
    _tasks: JoinSet<()>,
}

/// The requests that came, apart from probes.
#[derive(Default)]
pub struct Seen {
    /// Each request's bytes, head and body, in the order in which they came.
    pub requests: Mutex<Vec<Vec<u8>>>,
    /// The peer address of each request's connection.
    pub peers: Mutex<Vec<SocketAddr>>,
    /// The number of connections that ended before their request was answered.
    pub left: Mutex<u32>,
}

/// The replica's answer to a request.
#[derive(Clone)]
pub enum Answer {
    /// This body, as JSON.
    Json(&'static str),
    /// This body as JSON, after this time.
    Slow(Duration, &'static str),
    /// These bytes. The connection stays open.
    Raw(&'static [u8]),
    /// The function's answer: bytes, and whether the connection ends with them.
    By(fn(&str) -> (Vec<u8>, bool)),
    /// An event stream that goes on while it is read.
    Endless,
    /// No answer, while the client waits.
    Never,
}

impl Upstream {
    pub async fn start(answer: Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let seen = Arc::new(Seen::default());
        let mut tasks = JoinSet::new();
        let noted = Arc::clone(&seen);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, peer)) = listener.accept().await {
                connections.spawn(replica(stream, peer, answer.clone(), Arc::clone(&noted)));
            }
        });
        Self { address, seen, _tasks: tasks }
    }

    pub fn requests(&self) -> Vec<Vec<u8>> {
        self.seen.requests.lock().clone()
    }

    /// The only request that came, as text.
    pub fn request(&self) -> String {
        let requests = self.requests();
        assert_eq!(requests.len(), 1, "{requests:?}");
        String::from_utf8(requests[0].clone()).expect("text")
    }
}

async fn replica(mut stream: TcpStream, peer: SocketAddr, answer: Answer, seen: Arc<Seen>) {
    let mut buffer = Vec::new();
    while let Some(request) = read_message(&mut stream, &mut buffer).await {
        let text = String::from_utf8_lossy(&request);
        if text.starts_with("GET /health ") || text.starts_with("GET /v1/models ") {
            let body = r#"{"object":"list","data":[{"id":"m"}]}"#;
            let _ = stream.write_all(json(body).as_bytes()).await;
            continue;
        }
        if text.starts_with("GET /metrics ") {
            let none = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n";
            let _ = stream.write_all(none).await;
            continue;
        }
        let text = text.into_owned();
        seen.requests.lock().push(request);
        seen.peers.lock().push(peer);
        match &answer {
            Answer::By(answer) => {
                let (bytes, ends) = answer(&text);
                let sent = stream.write_all(&bytes).await;
                if ends || sent.is_err() {
                    return;
                }
            }
            Answer::Json(body) => {
                let _ = stream.write_all(json(body).as_bytes()).await;
            }
            Answer::Slow(after, body) => {
                sleep(*after).await;
                let _ = stream.write_all(json(body).as_bytes()).await;
            }
            Answer::Raw(bytes) => {
                let _ = stream.write_all(bytes).await;
            }
            Answer::Never => {
                let mut byte = [0];
                if matches!(stream.read(&mut byte).await, Ok(0) | Err(_)) {
                    *seen.left.lock() += 1;
                }
                return;
            }
            Answer::Endless => {
                let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
                            transfer-encoding: chunked\r\n\r\n";
                let mut outcome = stream.write_all(head.as_bytes()).await;
                let text = "x".repeat(8000);
                let event = format!(
                    "data: {{\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"created\":1,\
                     \"model\":\"m\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{text}\"\
                     }},\"finish_reason\":null}}]}}\n\n"
                );
                let chunk = format!("{:x}\r\n{event}\r\n", event.len());
                while outcome.is_ok() {
                    outcome = stream.write_all(chunk.as_bytes()).await;
                }
                *seen.left.lock() += 1;
                return;
            }
        }
    }
}

fn json(body: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// The bytes of one HTTP/1 message; `None` at the end.
pub async fn read_message(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Vec<u8>> {
    loop {
        if let Some(end) = message_end(buffer) {
            return Some(buffer.drain(..end).collect());
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
}

fn message_end(bytes: &[u8]) -> Option<usize> {
    let head = bytes.windows(4).position(|at| at == b"\r\n\r\n")? + 4;
    let text = String::from_utf8_lossy(&bytes[..head]).to_ascii_lowercase();
    if text.contains("\r\ntransfer-encoding:") {
        let end = bytes[head..].windows(5).position(|at| at == b"0\r\n\r\n")?;
        return Some(head + end + 5);
    }
    let length = text.split("\r\ncontent-length:").nth(1).and_then(|rest| {
        rest.split("\r\n").next().and_then(|length| length.trim().parse::<usize>().ok())
    });
    let end = head + length.unwrap_or(0);
    (bytes.len() >= end).then_some(end)
}

/// One pool `p` that serves `m`, with this endpoint or none.
pub fn config(endpoint: Option<SocketAddr>) -> Config {
    let mut config = Config::default();
    config.gateway.listen = ([127, 0, 0, 1], 0).into();
    config.gateway.threads = Some(1);
    // `trust.rs` tests hosts.
    config.gateway.allowed_hosts = vec![HostPattern::Any];
    let mut pool = Pool::named("p");
    pool.models = vec!["m".to_owned()];
    pool.endpoints = endpoint.iter().map(ToString::to_string).collect();
    config.pools = vec![pool];
    config
}

pub fn start(config: &Config) -> Gateway {
    Gateway::start(config, None, None, None).unwrap_or_else(|error| panic!("{error}"))
}

/// One pool's part of `/signals`.
pub async fn signals(gateway: &Gateway, pool: &str) -> serde_json::Value {
    use tower::ServiceExt as _;
    let request = http::Request::get("/signals").body(axum::body::Body::empty()).expect("valid");
    let response = gateway.routes().oneshot(request).await.expect("answers");
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    let frame: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
    frame["pools"][pool].clone()
}

/// Waits for a condition that other threads bring about.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let until = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < until, "not within {PATIENCE:?}: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

pub async fn held(gateway: &Gateway, count: u64) {
    let text = format!("{count} requests are held");
    eventually(&text, || async { signals(gateway, "p").await["queueDepth"] == count }).await;
}

/// A request's body for the pool.
pub const CHAT: &str = r#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#;
pub const CHAT_STREAM: &str =
    r#"{"model":"m","stream":true,"messages":[{"role":"user","content":"hi"}]}"#;
/// A plain answer that is complete.
pub const ANSWER: &str = r#"{"id":"c","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"hello"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}"#;

pub fn chat(body: &str) -> http::Request<Full<Bytes>> {
    http::Request::post("http://gateway.example/v1/chat/completions")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::copy_from_slice(body.as_bytes())))
        .expect("valid")
}

pub type H2 = hyper::client::conn::http2::SendRequest<Full<Bytes>>;

/// The tasks of client connections. Dropping it closes the sockets without a farewell of HTTP.
#[derive(Clone, Default)]
pub struct Tasks(Arc<Mutex<JoinSet<()>>>);

impl Tasks {
    /// Waits until all tasks have ended.
    pub async fn ended(&self) {
        eventually("client connections end", || async {
            let mut tasks = self.0.lock();
            while tasks.try_join_next().is_some() {}
            tasks.is_empty()
        })
        .await;
    }

    /// Closes every socket.
    pub fn close(&self) {
        self.0.lock().abort_all();
    }
}

impl<F: Future<Output: Send> + Send + 'static> hyper::rt::Executor<F> for Tasks {
    fn execute(&self, future: F) {
        self.0.lock().spawn(async move {
            future.await;
        });
    }
}

/// An HTTP/2 connection with prior knowledge.
pub async fn http2(address: SocketAddr, tasks: &Tasks) -> H2 {
    let stream = TcpStream::connect(address).await.expect("it listens");
    http2_over(stream, tasks).await
}

pub async fn http2_over<S>(stream: S, tasks: &Tasks) -> H2
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let io = TokioIo::new(stream);
    let handshake = hyper::client::conn::http2::handshake(tasks.clone(), io);
    let (sender, connection) = handshake.await.expect("HTTP/2");
    tasks.0.lock().spawn(async move {
        let _ = connection.await;
    });
    sender
}

/// Sends bytes and reads until the other side closes, or for `PATIENCE`.
pub async fn exchange(address: SocketAddr, request: impl AsRef<[u8]>) -> String {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    // A server that refuses early may close before it has read all.
    let _ = stream.write_all(request.as_ref()).await;
    let mut answer = Vec::new();
    let read = timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    assert!(read.is_ok(), "still open after {PATIENCE:?}: {}", String::from_utf8_lossy(&answer));
    String::from_utf8_lossy(&answer).into_owned()
}

pub fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
}

//! The upstream of `loadtests/peers/run`: answers like vLLM, at the least cost.
//!
//! usage: cargo run --release -p forebay-loadtests --example stub -- [--address IP] [--port N] [--tokens N] [--pace-ms MS]
//!
//! A request that wants a stream gets `--tokens` events, one each `--pace-ms`, whose texts are the
//! numbers from 0 on, so that a client can check their order. Any other request gets a short plain
//! answer. One thread; nothing of a request is read but its length and whether it streams.

use std::fmt::Write as _;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::MissedTickBehavior;

#[derive(Parser, Clone, Copy)]
struct Options {
    /// Address to listen on; with 0.0.0.0, each loopback address is another replica
    #[arg(long, default_value_t = Ipv4Addr::LOCALHOST)]
    address: Ipv4Addr,
    /// Port to listen on; 0 takes any free one
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Tokens of a streamed answer
    #[arg(long, default_value_t = 100)]
    tokens: u32,
    /// Milliseconds from one token to the next
    #[arg(long, default_value_t = 10)]
    pace_ms: u64,
}

/// Bytes at each end of a body that are searched for `"stream":true`.
const SEARCHED: usize = 400;
const STREAM_HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
                           cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n";

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(listen(options))
}

async fn listen(options: Options) -> anyhow::Result<()> {
    let address = SocketAddr::from((options.address, options.port));
    let listener = TcpListener::bind(address).await.with_context(|| format!("port {address}"))?;
    println!("listening on http://{}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            // A client that leaves ends its connection; nothing else can fail here.
            let _ = serve(stream, options).await;
        });
    }
}

async fn serve(mut stream: TcpStream, options: Options) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(16 << 10);
    while let Some(request) = read_request(&mut stream, &mut buffer).await? {
        match request {
            Received::Path(path) => stream.write_all(information(&path).as_bytes()).await?,
            Received::Answer => stream.write_all(plain().as_bytes()).await?,
            Received::Stream => write_stream(&mut stream, options).await?,
        }
    }
    Ok(())
}

enum Received {
    /// A GET of this path.
    Path(String),
    Answer,
    Stream,
}

/// Reads one request and takes it from the buffer; `None` once the client has left.
async fn read_request(
    stream: &mut TcpStream,
    buffer: &mut Vec<u8>,
) -> io::Result<Option<Received>> {
    let head_end = loop {
        if let Some(at) = find(buffer, b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    };
    let head = String::from_utf8_lossy(&buffer[..head_end]).into_owned();
    let lower = head.to_ascii_lowercase();
    let header = |name: &str| {
        lower.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
    };
    if header("expect").is_some() {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
    }
    let chunked = header("transfer-encoding").is_some();
    let length = header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let end = loop {
        // No prompt here contains the bytes that end a chunked body.
        let end = if chunked {
            find(&buffer[head_end..], b"\r\n0\r\n\r\n").map(|at| head_end + at + 7)
        } else {
            (buffer.len() >= head_end + length).then_some(head_end + length)
        };
        if let Some(end) = end {
            break end;
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    };
    let body = &buffer[head_end..end];
    let request = match head.strip_prefix("GET ") {
        Some(rest) => Received::Path(rest.split([' ', '?']).next().unwrap_or_default().to_owned()),
        None if wants_stream(body) => Received::Stream,
        None => Received::Answer,
    };
    buffer.drain(..end);
    Ok(Some(request))
}

fn wants_stream(body: &[u8]) -> bool {
    let ends = [&body[..body.len().min(SEARCHED)], &body[body.len().saturating_sub(SEARCHED)..]];
    let forms: [&[u8]; 2] = [b"\"stream\":true", b"\"stream\": true"];
    ends.iter().any(|end| forms.iter().any(|form| find(end, form).is_some()))
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    memchr::memmem::find(text, part)
}

/// The answers to what routers ask a server about itself.
fn information(path: &str) -> String {
    let body = match path {
        "/v1/models" => {
            r#"{"object":"list","data":[{"id":"m","object":"model","created":1,"owned_by":"stub","max_model_len":1000000}]}"#
        }
        "/get_model_info" | "/model_info" => r#"{"model_path":"m","is_generation":true}"#,
        "/get_server_info" | "/server_info" => r#"{"model_path":"m","served_model_name":"m"}"#,
        "/version" => r#"{"version":"0.11.0"}"#,
        _ => "{}",
    };
    whole(body)
}

fn plain() -> String {
    let text = "word ".repeat(36);
    whole(&format!(
        r#"{{"id":"chatcmpl-0","object":"chat.completion","created":1795452011,"model":"m","choices":[{{"index":0,"message":{{"role":"assistant","content":"{text}"}},"finish_reason":"length"}}],"usage":{{"prompt_tokens":190,"completion_tokens":36,"total_tokens":226}}}}"#
    ))
}

fn whole(body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

/// The events of one answer, each as an HTTP chunk.
struct Events {
    id: u64,
    chunk: String,
}

impl Events {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self { id: NEXT.fetch_add(1, Ordering::Relaxed), chunk: String::new() }
    }

    fn event(&mut self, delta: &str, finish: &str) -> &[u8] {
        let event = format!(
            "data: {{\"id\":\"chatcmpl-{:016x}\",\"object\":\"chat.completion.chunk\",\
             \"created\":1795452011,\"model\":\"m\",\"choices\":[{{\"index\":0,\"delta\":{delta},\
             \"logprobs\":null,\"finish_reason\":{finish},\"token_ids\":null}}]}}\n\n",
            self.id
        );
        self.chunk.clear();
        let _ = write!(self.chunk, "{:x}\r\n{event}\r\n", event.len());
        self.chunk.as_bytes()
    }
}

async fn write_stream(stream: &mut TcpStream, options: Options) -> io::Result<()> {
    let mut events = Events::new();
    stream.write_all(STREAM_HEAD.as_bytes()).await?;
    stream.write_all(events.event(r#"{"role":"assistant","content":""}"#, "null")).await?;
    let mut ticks = tokio::time::interval(Duration::from_millis(options.pace_ms.max(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for token in 0..options.tokens {
        if options.pace_ms > 0 {
            ticks.tick().await;
        }
        let delta = format!(r#"{{"content":" {token}"}}"#);
        stream.write_all(events.event(&delta, "null")).await?;
    }
    stream.write_all(events.event("{}", "\"length\"")).await?;
    stream.write_all(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n").await
}

//! A raw HTTP/1.1 client that keeps what a library would hide, and the recordings to compare with.

// Each test program uses its own part of this.
#![allow(dead_code)]

use forebay_loadtests::sim::{Sim, SimArgs};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Longer than anything here takes, on a busy machine too.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The options of the recorded server, on a free port, and fast.
pub(crate) const TINY: [&str; 10] = [
    "/srv/vllm/model",
    "--served-model-name=tiny",
    "--port=0",
    "--max-model-len=2048",
    "--num-gpu-blocks-override=2048",
    "--block-size=128",
    "--decode-step-ms=1",
    "--decode-step-ms-per-seq=0",
    "--prefill-tokens-per-second=0",
    "--max-num-seqs=64",
];

pub(crate) async fn tiny(more: &[&str]) -> Sim {
    start(TINY.iter().chain(more).copied()).await
}

pub(crate) async fn start<'a>(flags: impl Iterator<Item = &'a str>) -> Sim {
    Sim::start(SimArgs::from_flags(flags).expect("valid flags")).await.expect("a free port")
}

/// A response, taken apart and not interpreted.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Reply {
    pub(crate) status: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
    /// The HTTP chunks, where there are any.
    pub(crate) chunks: Vec<String>,
}

impl Reply {
    pub(crate) fn code(&self) -> u16 {
        self.status.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status")
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).expect("JSON")
    }

    /// The data of the events of a stream, `[DONE]` left out.
    pub(crate) fn events(&self) -> Vec<serde_json::Value> {
        let data = self.body.lines().filter_map(|line| line.strip_prefix("data: "));
        data.filter(|data| *data != "[DONE]")
            .map(|data| serde_json::from_str(data).expect("JSON"))
            .collect()
    }

    /// A chat's text, streamed or not.
    pub(crate) fn chat_text(&self) -> String {
        if self.chunks.is_empty() {
            return self.json()["choices"][0]["message"]["content"].as_str().expect("text").into();
        }
        let events = self.events();
        let of = |event: &serde_json::Value| {
            event["choices"][0]["delta"]["content"].as_str().unwrap_or_default().to_owned()
        };
        events.iter().map(of).collect()
    }
}

/// Takes one response off the start of `bytes`. `None` while it is incomplete.
pub(crate) fn parse(bytes: &[u8], to_head: bool) -> Option<(Reply, usize)> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..end]).expect("an ASCII head");
    let mut lines = head.split("\r\n");
    let status = lines.next()?.to_owned();
    let headers: Vec<(String, String)> = lines
        .map(|line| line.split_once(": ").expect("a header"))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let mut reply = Reply { status, headers, body: String::new(), chunks: Vec::new() };
    let mut at = end + 4;
    if reply.header("transfer-encoding") == Some("chunked") {
        loop {
            let line = at + bytes[at..].windows(2).position(|pair| pair == b"\r\n")?;
            let size = std::str::from_utf8(&bytes[at..line]).expect("a chunk size");
            let size = usize::from_str_radix(size, 16).expect("a chunk size");
            at = line + 2 + size + 2;
            if bytes.len() < at {
                return None;
            }
            if size == 0 {
                break;
            }
            let chunk = String::from_utf8(bytes[line + 2..at - 2].to_vec()).expect("UTF-8");
            reply.body.push_str(&chunk);
            reply.chunks.push(chunk);
        }
    } else if !to_head {
        let length = reply.header("content-length").and_then(|length| length.parse().ok());
        let length: usize = length.unwrap_or(0);
        let body = bytes.get(at..at + length)?;
        reply.body = String::from_utf8(body.to_vec()).expect("UTF-8");
        at += length;
    }
    Some((reply, at))
}

/// A connection.
pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("a listening server");
        Self { stream, buffer: Vec::new() }
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("an open connection");
    }

    /// The next whole response; `None` if the connection ends first.
    pub(crate) async fn reply(&mut self, to_head: bool) -> Option<Reply> {
        loop {
            if let Some((reply, used)) = parse(&self.buffer, to_head) {
                self.buffer.drain(..used);
                return Some(reply);
            }
            if self.more().await == 0 {
                return None;
            }
        }
    }

    /// Reads until this text has come.
    pub(crate) async fn until(&mut self, text: &str) {
        while !String::from_utf8_lossy(&self.buffer).contains(text) {
            assert_ne!(self.more().await, 0, "ended before {text:?}");
        }
    }

    /// Reads once; 0 at the end.
    pub(crate) async fn more(&mut self) -> usize {
        let read = self.stream.read_buf(&mut self.buffer);
        let read = tokio::time::timeout(PATIENCE, read).await.expect("an answer in time");
        read.unwrap_or(0)
    }
}

pub(crate) fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: sim\r\n\r\n").into_bytes()
}

pub(crate) fn post(path: &str, body: &str) -> Vec<u8> {
    format!(
        "POST {path} HTTP/1.1\r\nHost: sim\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// A chat request of one message; `more` is further fields, each after a comma.
pub(crate) fn chat(text: &str, more: &str) -> Vec<u8> {
    let message = format!(r#"{{"messages":[{{"role":"user","content":"{text}"}}]{more}}}"#);
    post("/v1/chat/completions", &message)
}

/// One request on a connection of its own.
pub(crate) async fn ask(address: SocketAddr, request: &[u8]) -> Reply {
    let mut client = Client::connect(address).await;
    client.send(request).await;
    client.reply(request.starts_with(b"HEAD")).await.expect("a whole response")
}

/// Waits for something to become true.
pub(crate) async fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !is() {
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

pub(crate) fn recorded(folder: &str, file: &str) -> Vec<u8> {
    // Also used by the tests of the crate above.
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let fixtures = ["fixtures/vllm", "loadtests/fixtures/vllm"].map(|at| here.join(at));
    let root = fixtures.iter().find(|at| at.is_dir()).expect("the recordings are there");
    let path = root.join(folder).join(file);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The recorded response to a recorded request.
pub(crate) fn recorded_reply(folder: &str, name: &str) -> Reply {
    let bytes = recorded(folder, &format!("{name}.resp"));
    let to_head = name == "health_head";
    parse(&bytes, to_head).unwrap_or_else(|| panic!("{folder}/{name} is incomplete")).0
}

/// Keys whose string values are part of the protocol.
const TELLING: [&str; 9] = [
    "object",
    "finish_reason",
    "type",
    "role",
    "status",
    "owned_by",
    "reason",
    "tool_choice",
    "code",
];

/// JSON with its keys, their order, the types, and the telling values; other values are blanked
/// and repeated array items made one.
pub(crate) fn shape(json: &str) -> String {
    let mut out = String::new();
    let mut key = String::new();
    let mut rest = json;
    while let Some(c) = rest.chars().next() {
        if c == '"' {
            let end = closing_quote(rest);
            let text = &rest[..=end];
            rest = &rest[end + 1..];
            if rest.starts_with(':') {
                key = text.trim_matches('"').to_owned();
                out.push_str(text);
            } else if TELLING.contains(&key.as_str()) {
                out.push_str(text);
            } else {
                out.push_str("\"\"");
            }
        } else if c.is_ascii_digit() || c == '-' {
            let end = rest.find(|c: char| !(c.is_ascii_digit() || "+-.eE".contains(c)));
            rest = &rest[end.unwrap_or(rest.len())..];
            out.push('0');
        } else {
            out.push(c);
            rest = &rest[c.len_utf8()..];
        }
    }
    // A token without text has no bytes.
    out = out.replace("\"bytes\":[]", "\"bytes\":[0]");
    while let Some(less) = collapse(&out) {
        out = less;
    }
    out
}

fn closing_quote(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            '"' if !escaped => return at,
            '\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    panic!("an open string: {text}")
}

/// Makes the first run of two equal array items one.
fn collapse(json: &str) -> Option<String> {
    if json.contains("0,0") {
        return Some(json.replacen("0,0", "0", 1));
    }
    let bytes = json.as_bytes();
    for (at, _) in json.match_indices("},{") {
        let mut depth = 0;
        let begin = bytes[..=at].iter().rposition(|byte| {
            depth += i32::from(*byte == b'}') - i32::from(*byte == b'{');
            depth == 0
        })?;
        let item = &json[begin..=at];
        if json[at + 2..].starts_with(item) {
            return Some(format!("{}{}", &json[..=at], &json[at + 2 + item.len()..]));
        }
    }
    None
}

/// A body's shape: of JSON, or of each event of a stream, repeated ones made one.
pub(crate) fn body_shape(reply: &Reply) -> Vec<String> {
    let events = reply.header("content-type").is_some_and(|kind| kind.starts_with("text/event"));
    if !events {
        let json = reply.body.starts_with('{');
        return vec![if json { shape(&reply.body) } else { reply.body.clone() }];
    }
    let mut shapes: Vec<String> = Vec::new();
    for chunk in &reply.chunks {
        let event = chunk.strip_suffix("\n\n").expect("an event's end");
        assert!(!event.contains("\n\n"), "one event a chunk: {event}");
        let shape = match event.split_once("data: {") {
            Some((before, data)) => format!("{before}data: {}", shape(&format!("{{{data}"))),
            None => event.to_owned(),
        };
        if shapes.last() != Some(&shape) {
            shapes.push(shape);
        }
    }
    shapes
}

/// The head but for what differs from run to run.
pub(crate) fn head(reply: &Reply) -> Vec<String> {
    let mut lines = vec![reply.status.clone()];
    for (name, value) in &reply.headers {
        let varies =
            ["date", "content-length", "x-request-id", "location"].contains(&name.as_str());
        lines.push(if varies { format!("{name}:") } else { format!("{name}: {value}") });
    }
    lines
}

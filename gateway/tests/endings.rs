//! Every way in which an answer can end. It is counted once, with the right outcome and tokens, and
//! the replica's connection serves the next request.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::time::Duration;

use forebay_config::{ByteSize, Config, RecordArrivals, Tenant};
use forebay_gateway::Gateway;
use http::StatusCode;
use http_body_util::BodyExt;
use support::{
    Answer, CHAT, CHAT_STREAM, H2, Tasks, Upstream, chat, config, eventually, exchange, http2,
    read_message, signals, start, status,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

mod support;

const COMMIT: usize = 64 << 10;
/// The tokens that the answers report.
const PROMPT: u64 = 5;
const GENERATED: u64 = 7;

/// The means by which a replica marks the end of an answer.
const FRAMINGS: [&str; 3] = ["length", "chunks", "close"];

/// The means by which a client sends its requests and ends its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reader {
    /// Sends the next request on the same connection.
    KeepAlive,
    /// Asks the gateway to close the connection, and waits for that.
    Close,
    Http10,
    /// Closes its connection at the last byte that it has to read.
    Exact,
    Http2,
}

const READERS: [Reader; 5] =
    [Reader::KeepAlive, Reader::Close, Reader::Http10, Reader::Exact, Reader::Http2];

/// A chat answer of `size` bytes. Half of them come behind its usage, where vLLM writes the log
/// probabilities of a prompt.
fn body(size: usize) -> Vec<u8> {
    let whole = |text: &str, numbers: &str| {
        format!(
            r#"{{"id":"c","choices":[{{"index":0,"message":{{"role":"assistant","content":"{text}"}},"finish_reason":"stop"}}],"usage":{{"prompt_tokens":{PROMPT},"completion_tokens":{GENERATED}}},"prompt_logprobs":[{numbers}0]}}"#
        )
    };
    let more = size - whole("", "").len();
    let numbers = "1,".repeat(more / 4);
    whole(&"a".repeat(more - numbers.len()), &numbers).into_bytes()
}

/// The value of a request's header; empty for a probe.
fn wish<'a>(request: &'a str, name: &str) -> &'a str {
    let line = request.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")));
    line.unwrap_or_default()
}

/// An answer of the size and with the framing that the request asks for.
fn framed(request: &str) -> (Vec<u8>, bool) {
    let body = body(wish(request, "x-size").parse().unwrap_or(300));
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";
    match wish(request, "x-framing") {
        "length" => {
            let head = format!("{head}content-length: {}\r\n\r\n", body.len());
            ([head.as_bytes(), &body].concat(), false)
        }
        "chunks" => {
            let mut answer = format!("{head}transfer-encoding: chunked\r\n\r\n").into_bytes();
            for chunk in body.chunks(10_000) {
                answer.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
                answer.extend(chunk);
                answer.extend(b"\r\n");
            }
            answer.extend(b"0\r\n\r\n");
            (answer, false)
        }
        _ => ([head.as_bytes(), b"\r\n", &body].concat(), true),
    }
}

fn request(version: &str, headers: &str) -> String {
    format!(
        "POST /v1/chat/completions {version}\r\nhost: localhost\r\n{headers}content-type: application/json\r\n\
         content-length: {}\r\n\r\n{CHAT}",
        CHAT.len()
    )
}

/// The body of an answer without its framing; `None` if the framing has no end.
fn unframed(answer: &[u8]) -> Option<Vec<u8>> {
    let head = answer.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let text = String::from_utf8_lossy(&answer[..head]).to_ascii_lowercase();
    let mut rest = &answer[head..];
    if !text.contains("transfer-encoding: chunked") {
        let length =
            text.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next());
        let whole = length.is_none_or(|length| length.parse() == Ok(rest.len()));
        return whole.then(|| rest.to_vec());
    }
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|two| two == b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).ok()?, 16).ok()?;
        let chunk = rest.get(end + 2..end + 2 + size)?;
        if size == 0 {
            return Some(body);
        }
        body.extend(chunk);
        rest = rest.get(end + 4 + size..)?;
    }
}

/// Clients of one gateway, each with its own connections.
struct Clients {
    gateway: Gateway,
    kept: TcpStream,
    buffer: Vec<u8>,
    http2: H2,
    _tasks: Tasks,
}

impl Clients {
    async fn of(config: &Config) -> Self {
        let gateway = start(config);
        let tasks = Tasks::default();
        let kept = TcpStream::connect(gateway.address()).await.expect("it listens");
        let http2 = http2(gateway.address(), &tasks).await;
        Self { gateway, kept, buffer: Vec::new(), http2, _tasks: tasks }
    }

    /// The answer's body, as this client reads it.
    async fn ask(&mut self, reader: Reader, framing: &str, size: usize) -> Vec<u8> {
        let wishes = format!("x-framing: {framing}\r\nx-size: {size}\r\n");
        let address = self.gateway.address();
        match reader {
            Reader::KeepAlive => {
                let request = request("HTTP/1.1", &wishes);
                self.kept.write_all(request.as_bytes()).await.expect("open");
                let answer = read_message(&mut self.kept, &mut self.buffer).await;
                unframed(&answer.expect("an answer")).expect("whole")
            }
            Reader::Close | Reader::Http10 => {
                let version = if reader == Reader::Http10 { "HTTP/1.0" } else { "HTTP/1.1" };
                let request = request(version, &format!("connection: close\r\n{wishes}"));
                let answer = exchange(address, request).await;
                unframed(answer.as_bytes()).expect("whole")
            }
            Reader::Exact => {
                let mut stream = TcpStream::connect(address).await.expect("it listens");
                let request = request("HTTP/1.1", &wishes);
                stream.write_all(request.as_bytes()).await.expect("open");
                let mut buffer = Vec::new();
                let answer = read_message(&mut stream, &mut buffer).await.expect("an answer");
                unframed(&answer).expect("whole")
            }
            Reader::Http2 => {
                let mut request = chat(CHAT);
                let headers = request.headers_mut();
                headers.insert("x-framing", framing.parse().expect("a value"));
                headers.insert("x-size", size.into());
                let response = self.http2.send_request(request).await.expect("an answer");
                assert_eq!(response.status(), StatusCode::OK);
                response.into_body().collect().await.expect("whole").to_bytes().to_vec()
            }
        }
    }
}

/// Waits until the figures are these.
async fn counted(gateway: &Gateway, case: &str, want: &[(&str, u64)]) {
    eventually(&format!("{case}: {want:?}"), || async {
        let signals = signals(gateway, "p").await;
        signals["inFlight"] == 0
            && want.iter().all(|(figure, count)| signals["totals"][*figure] == *count)
    })
    .await;
}

fn short_commit(upstreams: &[&Upstream]) -> Config {
    let mut config = config(None);
    config.pools[0].endpoints =
        upstreams.iter().map(|upstream| upstream.address.to_string()).collect();
    config.pools[0].upstream.commit_size = ByteSize::new(COMMIT as u64);
    config
}

#[tokio::test]
async fn an_answer_read_to_its_end_is_complete_in_every_framing_and_for_every_reader() {
    let upstream = Upstream::start(Answer::By(framed)).await;
    let folder = std::env::temp_dir().join(format!("forebay-endings-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let file = folder.join("arrivals.csv");
    let _ = std::fs::remove_file(&file);
    let mut config = short_commit(&[&upstream]);
    config.gateway.record_arrivals =
        Some(RecordArrivals { file: file.clone(), max_size: ByteSize::mib(1) });
    let mut clients = Clients::of(&config).await;
    // Around the bound up to which answers are kept back, and beyond the buffer of hyper's HTTP/1.
    let sizes = [300, COMMIT - 1, COMMIT, COMMIT + 1, COMMIT + 9_000, 3 * COMMIT, 700_000];
    let mut cases = Vec::new();
    for framing in FRAMINGS {
        for size in sizes {
            for reader in READERS {
                let case = format!("{framing}, {size} bytes, {reader:?}");
                let got = clients.ask(reader, framing, size).await;
                assert!(got == body(size), "{case}: {} bytes", got.len());
                cases.push(case);
            }
        }
        let answers = cases.len() as u64;
        let want = [
            ("completed", answers),
            ("promptTokens", answers * PROMPT),
            ("generatedTokens", answers * GENERATED),
            ("clientLeft", 0),
            ("failed", 0),
            ("retries", 0),
        ];
        counted(&clients.gateway, framing, &want).await;
    }
    // Answers with framing could all use one connection.
    let (requests, peers) = (upstream.requests(), upstream.seen.peers.lock().clone());
    let mut kept = requests
        .iter()
        .zip(&peers)
        .filter(|(request, _)| wish(&String::from_utf8_lossy(request), "x-framing") != "close");
    let connections: HashSet<_> = kept.by_ref().map(|(_, peer)| peer).collect();
    assert!(connections.len() <= 10, "{} connections for 70 requests", connections.len());

    let Clients { gateway, .. } = clients;
    let _ = gateway.shutdown(Duration::from_secs(5)).await;
    let recorded = std::fs::read_to_string(&file).expect("recorded");
    let lines: Vec<_> = recorded.lines().skip(1).collect();
    assert_eq!(lines.len(), cases.len(), "one line for each answer");
    for (line, case) in lines.iter().zip(cases) {
        assert!(line.ends_with(&format!(",p,{PROMPT},{GENERATED}")), "{case}: {line}");
    }
    std::fs::remove_dir_all(folder).expect("ours");
}

#[tokio::test]
async fn a_long_answer_is_charged_to_its_tenant() {
    let body = format!(
        r#"{{"choices":[{{"text":"{}","finish_reason":"stop"}}],"usage":{{"prompt_tokens":5,"completion_tokens":42000}}}}"#,
        "a".repeat(2 * COMMIT)
    );
    let upstream = Upstream::start(Answer::Json(body.leak())).await;
    let mut config = short_commit(&[&upstream]);
    let mut tenant = Tenant::named("anonymous");
    // More than the estimate of an answer, and far less than this answer has.
    tenant.tokens_per_minute = Some(1000);
    config.gateway.tenants = vec![tenant];
    let gateway = start(&config);
    let ask = || exchange(gateway.address(), request("HTTP/1.1", "connection: close\r\n"));
    assert_eq!(status(&ask().await), 200);
    assert_eq!(status(&ask().await), 429, "the first answer has used up 42 minutes");
    counted(&gateway, "one", &[("completed", 1), ("generatedTokens", 42_000)]).await;
}

#[tokio::test]
async fn answers_without_a_body_are_complete() {
    let upstream = Upstream::start(Answer::By(|request| {
        let headers = wish(request, "x-headers").replace(';', "\r\n");
        (format!("HTTP/1.1 {}\r\n{headers}\r\n\r\n", wish(request, "x-status")).into_bytes(), false)
    }))
    .await;
    let gateway = start(&short_commit(&[&upstream]));
    let tasks = Tasks::default();
    let mut client = http2(gateway.address(), &tasks).await;
    let cases = [
        ("204 No Content", "x: y"),
        ("304 Not Modified", "content-length: 100000"),
        ("304 Not Modified", "transfer-encoding: chunked"),
        ("200 OK", "content-length: 0"),
        ("200 OK", "content-type: text/plain;content-length: 0"),
    ];
    let mut answers = 0;
    for (line, headers) in cases {
        let wishes = format!("connection: close\r\nx-status: {line}\r\nx-headers: {headers}\r\n");
        let answer = exchange(gateway.address(), request("HTTP/1.1", &wishes)).await;
        assert!(line.starts_with(&status(&answer).to_string()), "{line}: {answer}");
        assert!(answer.ends_with("\r\n\r\n"), "{line}: {answer}");
        let mut request = chat(CHAT);
        request.headers_mut().insert("x-status", line.parse().expect("a value"));
        request.headers_mut().insert("x-headers", headers.parse().expect("a value"));
        let response = client.send_request(request).await.expect("an answer");
        let body = response.into_body().collect().await.expect("whole").to_bytes();
        assert!(body.is_empty(), "{line}");
        answers += 2;
    }
    let want = [("completed", answers), ("clientLeft", 0), ("failed", 0), ("retries", 0)];
    counted(&gateway, "no body", &want).await;
    let connections: HashSet<_> = upstream.seen.peers.lock().iter().copied().collect();
    assert!(connections.len() <= 3, "{} connections for 10 requests", connections.len());
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_counts_as_left() {
    let upstream = Upstream::start(Answer::By(|request| {
        let (mut answer, ends) = framed(request);
        answer.truncate(answer.len() - 1000);
        (answer, ends)
    }))
    .await;
    let gateway = start(&short_commit(&[&upstream]));
    let tasks = Tasks::default();
    let mut left = 0;
    for framing in ["length", "chunks"] {
        let mut stream = TcpStream::connect(gateway.address()).await.expect("it listens");
        let wishes = format!("x-framing: {framing}\r\nx-size: 300000\r\n");
        stream.write_all(request("HTTP/1.1", &wishes).as_bytes()).await.expect("open");
        stream.read_exact(&mut vec![0; COMMIT]).await.expect("it has begun");
        drop(stream);
        left += 1;
        let want = [("completed", 0), ("clientLeft", left), ("generatedTokens", 0)];
        counted(&gateway, framing, &want).await;

        let mut client = http2(gateway.address(), &tasks).await;
        let mut request = chat(CHAT);
        request.headers_mut().insert("x-framing", framing.parse().expect("a value"));
        request.headers_mut().insert("x-size", 300_000.into());
        let response = client.send_request(request).await.expect("an answer");
        let mut body = response.into_body();
        body.frame().await.expect("it has begun").expect("sound");
        drop(body);
        left += 1;
        counted(&gateway, framing, &[("completed", 0), ("clientLeft", left), ("failed", 0)]).await;
    }
}

const TOKEN: &str =
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"},\"finish_reason\":null}]}\n\n";
const USAGE: &str =
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":7}}\n\n";
const DONE: &str = "data: [DONE]\n\n";

#[tokio::test]
async fn a_client_that_leaves_at_a_streams_end_mark_has_the_whole_answer() {
    // The end mark comes, but not the last chunk.
    let upstream = Upstream::start(Answer::By(|_| {
        let events = format!("{TOKEN}{USAGE}{DONE}");
        let head =
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked";
        (format!("{head}\r\n\r\n{:x}\r\n{events}\r\n", events.len()).into_bytes(), false)
    }))
    .await;
    let gateway = start(&short_commit(&[&upstream]));
    let mut stream = TcpStream::connect(gateway.address()).await.expect("it listens");
    let body = CHAT_STREAM;
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.expect("open");
    let mut read = Vec::new();
    while memchr::memmem::find(&read, b"[DONE]\n\n").is_none() {
        assert!(stream.read_buf(&mut read).await.expect("open") > 0);
    }
    drop(stream);
    let want = [("completed", 1), ("clientLeft", 0), ("generatedTokens", 7), ("promptTokens", 5)];
    counted(&gateway, "HTTP/1.1", &want).await;

    let tasks = Tasks::default();
    let mut client = http2(gateway.address(), &tasks).await;
    let response = client.send_request(chat(CHAT_STREAM)).await.expect("an answer");
    let (mut answer, mut read) = (response.into_body(), Vec::new());
    while memchr::memmem::find(&read, b"[DONE]\n\n").is_none() {
        let frame = answer.frame().await.expect("goes on").expect("sound");
        read.extend(frame.into_data().expect("data"));
    }
    drop(answer);
    counted(&gateway, "HTTP/2", &[("completed", 2), ("clientLeft", 0)]).await;
}

#[tokio::test]
async fn a_stream_with_a_length_ends_with_its_last_byte() {
    for (events, outcome) in
        [(format!("{TOKEN}{USAGE}{DONE}"), "completed"), (TOKEN.to_owned(), "failed")]
    {
        let events: &'static str = events.leak();
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: {}\r\n\r\n{events}",
            events.len()
        );
        let upstream = Upstream::start(Answer::Raw(answer.leak().as_bytes())).await;
        let gateway = start(&short_commit(&[&upstream]));
        let tasks = Tasks::default();
        let mut client = http2(gateway.address(), &tasks).await;
        let response = client.send_request(chat(CHAT_STREAM)).await.expect("an answer");
        let got = response.into_body().collect().await.expect("whole").to_bytes();
        let text = String::from_utf8_lossy(&got);
        assert!(text.starts_with(TOKEN) && text.ends_with(DONE), "{text}");
        assert_eq!(text.matches("\"error\"").count(), usize::from(outcome == "failed"), "{text}");
        counted(&gateway, outcome, &[(outcome, 1), ("clientLeft", 0)]).await;
    }
}

/// Half of the answer without framing, then the connection's end.
fn cut(request: &str) -> (Vec<u8>, bool) {
    let size: usize = wish(request, "x-size").parse().unwrap_or(300);
    let whole = body(size);
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n";
    // The cut is behind a closing bracket, so the half looks whole at its end.
    let at = memchr::memmem::find(&whole, b"}],").expect("choices") + 2;
    ([head.as_bytes(), &whole[..at]].concat(), true)
}

#[tokio::test]
async fn half_of_an_unframed_answer_is_not_an_answer() {
    let (bad, good) =
        (Upstream::start(Answer::By(cut)).await, Upstream::start(Answer::By(framed)).await);
    let mut clients = Clients::of(&short_commit(&[&bad, &good])).await;
    let gateway = &clients.gateway;
    eventually("both are ready", || async {
        let signals = signals(gateway, "p").await;
        let endpoints = signals["endpoints"].as_object().expect("a map").clone();
        endpoints.len() == 2 && endpoints.values().all(|endpoint| endpoint["health"] == "ready")
    })
    .await;
    for reader in READERS {
        for _ in 0..2 {
            let got = clients.ask(reader, "length", 3000).await;
            assert!(got == body(3000), "{reader:?}: {}", String::from_utf8_lossy(&got));
        }
    }
    assert!(!bad.requests().is_empty(), "it got a request");
    counted(&clients.gateway, "tried elsewhere", &[("completed", 10), ("failed", 0)]).await;
}

#[tokio::test]
async fn half_of_a_long_unframed_answer_is_cut_off_at_the_client_too() {
    let upstream = Upstream::start(Answer::By(cut)).await;
    let gateway = start(&short_commit(&[&upstream]));
    let wishes = "connection: close\r\nx-size: 300000\r\n";
    let answer = exchange(gateway.address(), request("HTTP/1.1", wishes)).await;
    assert_eq!(status(&answer), 200);
    assert!(unframed(answer.as_bytes()).is_none(), "it looks whole: {} bytes", answer.len());
    counted(&gateway, "HTTP/1.1", &[("failed", 1), ("completed", 0), ("clientLeft", 0)]).await;
    // To a client of HTTP/1.0 the connection's end would be the answer's.
    let mut client = TcpStream::connect(gateway.address()).await.expect("it listens");
    client.write_all(request("HTTP/1.0", wishes).as_bytes()).await.expect("open");
    let read = client.read_to_end(&mut Vec::new()).await;
    assert_eq!(read.map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset));
    counted(&gateway, "HTTP/1.0", &[("failed", 2), ("completed", 0), ("clientLeft", 0)]).await;
}

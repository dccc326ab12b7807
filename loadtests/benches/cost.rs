//! What a request and a streamed chunk cost the proxy in CPU time, beside nginx as a plain proxy;
//! and what a large body costs it in memory.
//!
//! usage: cargo bench -p forebay-loadtests --bench cost -- --forebay $PWD/target/release/forebay
//!        [--nginx /usr/sbin/nginx]
//!
//! The upstream and the clients are threads of this program, all on loopback. The proxies take
//! turns, each with one worker; their time is what the kernel counted for their threads.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const ROUNDS: usize = 7;
const CLIENTS: usize = 16;
const REQUESTS: usize = 250;
const CHUNKS: usize = 100;
const PACE: Duration = Duration::from_millis(10);
const DELTA: &str = "data: {\"id\":\"chatcmpl-b69eb275ee051fb6\",\"object\":\"chat.completion.chunk\",\"created\":1795452011,\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" respon\"},\"logprobs\":null,\"finish_reason\":null,\"token_ids\":null}]}\n\n";

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let mut paths = BTreeMap::new();
    while let Some(name) = arguments.next() {
        paths.insert(name, PathBuf::from(arguments.next().expect("a path")));
    }
    let Some(forebay) = paths.get("--forebay") else {
        // `cargo test --benches` runs this without arguments.
        return println!("skipped: pass --forebay PATH to measure");
    };
    let upstream = upstream();
    let forebay = start_forebay(forebay, upstream);
    let mut proxies = vec![("forebay", forebay)];
    if let Some(nginx) = paths.get("--nginx") {
        proxies.push(("nginx", start_nginx(nginx, upstream)));
    }
    for (_, proxy) in &proxies {
        load(proxy.address, false, CLIENTS, REQUESTS / 10);
    }
    println!("CPU time of the proxy, one worker, least and middle of {ROUNDS} rounds in turn:");
    for (what, stream, requests, units) in [
        ("a request of 1 KiB, plain answer", false, REQUESTS, CLIENTS * REQUESTS),
        ("a streamed chunk", true, 1, CLIENTS * CHUNKS),
    ] {
        let mut all = vec![Vec::new(); proxies.len()];
        for _ in 0..ROUNDS {
            for ((_, proxy), took) in proxies.iter().zip(&mut all) {
                let before = proxy.cpu_micros();
                load(proxy.address, stream, CLIENTS, requests);
                took.push((proxy.cpu_micros() - before) / units as f64);
            }
        }
        for ((name, _), took) in proxies.iter().zip(&mut all) {
            took.sort_by(f64::total_cmp);
            println!("  {what:34} {name:8} {:6.1} µs, {:6.1} µs", took[0], took[ROUNDS / 2]);
        }
    }
    let (_, forebay) = &proxies[0];
    println!("memory of forebay beyond what it had, at its most, while one request is sent:");
    for (what, body) in [
        (
            "100,000 tokens of text",
            format!(r#"{{"model":"m","stream":true,"prompt":"{}"}}"#, "word ".repeat(100_000)),
        ),
        (
            "a body of 32 MiB",
            format!(r#"{{"model":"m","stream":true,"prompt":"{}"}}"#, "a".repeat((32 << 20) - 42)),
        ),
    ] {
        let before = forebay.forget_peak();
        let mut client = TcpStream::connect(forebay.address).expect("it listens");
        client.write_all(&post(&body)).expect("sent");
        read_answer(&mut BufReader::new(client));
        let rise = forebay.memory("VmHWM").saturating_sub(before);
        println!(
            "  {what:34} {:6.1} MiB for {:.1} MiB",
            rise as f64 / 1024.0,
            body.len() as f64 / f64::from(1 << 20)
        );
    }
}

/// A proxy under test, ended with this.
struct Proxy {
    address: SocketAddr,
    child: Child,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // nginx' master takes its worker along only when asked.
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
    }
}

impl Proxy {
    /// On-CPU time of all its threads and of its children's.
    fn cpu_micros(&self) -> f64 {
        let own = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{own}/task/{own}/children"));
        let children = children.unwrap_or_default();
        let pids = children.split_whitespace().map(str::to_owned).chain([own.to_string()]);
        let tasks =
            pids.filter_map(|pid| std::fs::read_dir(format!("/proc/{pid}/task")).ok()).flatten();
        let nanos = tasks.filter_map(|task| {
            let stat = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
            stat.split(' ').next()?.parse::<f64>().ok()
        });
        nanos.sum::<f64>() / 1e3
    }

    /// In KiB.
    fn memory(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.expect("it runs");
        let line = status.lines().find(|line| line.starts_with(field)).expect("a field");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
    }

    /// Starts its peak of memory anew, and tells where it is.
    fn forget_peak(&self) -> u64 {
        std::fs::write(format!("/proc/{}/clear_refs", self.child.id()), "5").expect("ours");
        self.memory("VmRSS")
    }
}

fn temporary(name: &str, text: &str) -> String {
    let file = std::env::temp_dir().join(format!("forebay-cost-{}-{name}", std::process::id()));
    std::fs::write(&file, text).expect("a temporary file");
    file.display().to_string()
}

fn start_forebay(path: &Path, upstream: SocketAddr) -> Proxy {
    let config = temporary(
        "forebay.yaml",
        &format!(
            "gateway: {{listen: '127.0.0.1:0', threads: 1}}
admin: {{listen: '127.0.0.1:0'}}
pools:
- {{name: p, models: [m], endpoints: ['{upstream}']}}
"
        ),
    );
    let mut child = Command::new(path)
        .args(["gateway", "--config", &config])
        .stderr(Stdio::piped())
        .spawn()
        .expect("forebay starts");
    let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
    let address = loop {
        let line = lines.next().expect("it says where it listens").expect("text");
        if let Some((_, rest)) = line.split_once("listening on http://") {
            let end = rest.find(' ').expect("more words");
            break rest[..end].parse().expect("an address");
        }
    };
    // Read on, or its log would fill the pipe.
    std::thread::spawn(move || lines.for_each(drop));
    Proxy { address, child }
}

fn start_nginx(path: &Path, upstream: SocketAddr) -> Proxy {
    let free = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = free.local_addr().expect("bound");
    drop(free);
    let (pid, log) = (temporary("nginx.pid", ""), temporary("nginx.log", ""));
    let config = temporary(
        "nginx.conf",
        &format!(
            "daemon off; worker_processes 1; pid {pid}; error_log {log};
events {{ worker_connections 1024; }}
http {{
  access_log {log};
  client_max_body_size 64m; client_body_buffer_size 64m;
  keepalive_requests 1000000;
  upstream replicas {{ server {upstream}; keepalive 128; keepalive_requests 1000000; }}
  server {{
    listen {address};
    location / {{
      proxy_pass http://replicas; proxy_http_version 1.1; proxy_set_header Connection '';
      proxy_buffering off;
    }}
  }}
}}
"
        ),
    );
    let child = Command::new(path).args(["-c", &config]).spawn().expect("nginx starts");
    while TcpStream::connect(address).is_err() {
        std::thread::sleep(Duration::from_millis(20));
    }
    Proxy { address, child }
}

fn post(body: &str) -> Vec<u8> {
    format!(
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// Each client sends so many requests, one after the other, on one connection.
fn load(address: SocketAddr, stream: bool, clients: usize, requests: usize) {
    let prompt = "word ".repeat(190);
    let body = format!(r#"{{"model":"m","stream":{stream},"max_tokens":100,"prompt":"{prompt}"}}"#);
    let request = post(&body);
    std::thread::scope(|scope| {
        for _ in 0..clients {
            scope.spawn(|| {
                let client = TcpStream::connect(address).expect("it listens");
                client.set_nodelay(true).expect("a socket");
                let mut client = BufReader::new(client);
                for _ in 0..requests {
                    client.get_mut().write_all(&request).expect("sent");
                    read_answer(&mut client);
                }
            });
        }
    });
}

/// Reads one answer, which must be a 200.
fn read_answer(client: &mut BufReader<TcpStream>) {
    let (mut line, mut length, mut chunked) = (String::new(), 0, false);
    client.read_line(&mut line).expect("an answer");
    assert!(line.starts_with("HTTP/1.1 200"), "{line}");
    loop {
        line.clear();
        client.read_line(&mut line).expect("a header");
        let header = line.to_ascii_lowercase();
        if header == "\r\n" {
            break;
        }
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse().expect("a number");
        }
        chunked |= header.starts_with("transfer-encoding:");
    }
    loop {
        if chunked {
            line.clear();
            client.read_line(&mut line).expect("a chunk");
            length = usize::from_str_radix(line.trim(), 16).expect("its size");
        }
        let mut body = vec![0; length + if chunked { 2 } else { 0 }];
        client.read_exact(&mut body).expect("a body");
        if !chunked || length == 0 {
            return;
        }
    }
}

/// Answers what wants a stream with one, a chunk each `PACE`, and all else with 300 bytes.
fn upstream() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || serve(stream));
        }
    });
    address
}

fn serve(stream: TcpStream) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    loop {
        let (mut length, mut first) = (0, true);
        let mut get = false;
        loop {
            line.clear();
            if stream.read_line(&mut line).ok()? == 0 {
                return None;
            }
            let header = line.to_ascii_lowercase();
            get |= std::mem::take(&mut first) && header.starts_with("get ");
            if header == "\r\n" {
                break;
            }
            if let Some(value) = header.strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).ok()?;
        // The edited request has `stream_options` before it.
        let head = &body[..body.len().min(200)];
        let stream_wanted = head.windows(13).any(|text| text == b"\"stream\":true");
        let socket = stream.get_mut();
        if get || !stream_wanted {
            let body = format!(
                r#"{{"id":"cmpl-1","choices":[{{"index":0,"text":"{}","finish_reason":"length"}}],"usage":{{"prompt_tokens":190,"completion_tokens":100}}}}"#,
                "a".repeat(180)
            );
            let length = body.len();
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
            );
            socket.write_all(answer.as_bytes()).ok()?;
            continue;
        }
        socket
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
            .ok()?;
        let mut chunk = String::new();
        write!(chunk, "{:x}\r\n{DELTA}\r\n", DELTA.len()).ok()?;
        for _ in 0..CHUNKS {
            socket.write_all(chunk.as_bytes()).ok()?;
            std::thread::sleep(PACE);
        }
        socket.write_all(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n").ok()?;
    }
}

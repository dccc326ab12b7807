//! Starts the real binary on ephemeral ports and speaks plain HTTP with it.

#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test file uses its part")]

pub mod collector;
pub mod prometheus;
pub mod reply;
pub mod streams;
pub mod upstream;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, SystemTime};

pub mod sims;

/// The longest wait for anything. Nothing takes this long, however busy the machine is.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The binary under test: cargo's, or the one at `FOREBAY_BINARY`, for measurements with an optimized one.
pub fn binary() -> String {
    std::env::var("FOREBAY_BINARY").unwrap_or_else(|_| env!("CARGO_BIN_EXE_forebay").to_owned())
}

/// A running `forebay`.
pub struct Forebay {
    child: Child,
    lines: Receiver<String>,
    pub log: Vec<String>,
    pub address: SocketAddr,
    pub admin: SocketAddr,
}

impl Forebay {
    /// Starts `forebay dev` with simulated replicas and these flags.
    pub fn dev(flags: &[&str]) -> Self {
        let mut arguments = vec!["dev", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
        arguments.extend(flags);
        Self::start(&arguments, "info,forebay_gateway=debug")
    }

    /// Starts the binary with these arguments, and waits until it listens.
    pub fn start(arguments: &[&str], log: &str) -> Self {
        Self::start_binary(&binary(), arguments, log)
    }

    /// Starts the binary at this path.
    pub fn start_binary(path: &str, arguments: &[&str], log: &str) -> Self {
        Self::spawn(Command::new(path).args(arguments), log)
    }

    /// Starts the binary in a shell, after the command `setup`, for instance `ulimit -n 1024`.
    pub fn in_shell(setup: &str, arguments: &[&str], log: &str) -> Self {
        let script = format!("{setup} && exec \"$0\" \"$@\"");
        let mut shell = Command::new("sh");
        Self::spawn(shell.args(["-c", &script, env!("CARGO_BIN_EXE_forebay")]).args(arguments), log)
    }

    fn spawn(command: &mut Command, log: &str) -> Self {
        let mut child = command
            .env("FOREBAY_LOG", log)
            .env("XDG_STATE_HOME", std::env::temp_dir().join("forebay-tests"))
            .env("NO_COLOR", "1")
            .stderr(Stdio::piped())
            .stdin(Stdio::null())
            .spawn()
            .expect("the binary starts");
        let stderr = child.stderr.take().expect("piped");
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut forebay = Self { child, lines, log: Vec::new(), address: nowhere, admin: nowhere };
        let line = forebay.wait_for("listening on http");
        let scheme = if line.contains("listening on https") { "https" } else { "http" };
        let after = |text: &str| {
            let start = line.find(text).expect("announced") + text.len();
            let rest = &line[start..];
            let end = rest.find([' ', '/']).unwrap_or(rest.len());
            rest[..end].parse().expect("an address")
        };
        (forebay.address, forebay.admin) =
            (after(&format!("listening on {scheme}://")), after("metrics on http://"));
        forebay
    }

    /// Waits for the next line of the log that contains `text`, and returns it. Lines that were
    /// read before do not count.
    pub fn wait_for(&mut self, text: &str) -> String {
        let until = SystemTime::now() + PATIENCE;
        loop {
            let left = until.duration_since(SystemTime::now()).unwrap_or_default();
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    self.log.push(line.clone());
                    if line.contains(text) {
                        return line;
                    }
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    panic!("no line with {text:?} in:\n{}", self.log.join("\n"))
                }
            }
        }
    }

    /// Waits until each of these texts was in a line, in any order.
    pub fn wait_for_all(&mut self, texts: &[&str]) {
        let mut left = texts.to_vec();
        while !left.is_empty() {
            let line = self.wait_for("");
            left.retain(|text| !line.contains(text));
        }
    }

    /// All lines of the log so far.
    pub fn logged(&mut self) -> &[String] {
        self.log.extend(self.lines.try_iter());
        &self.log
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: &str) {
        kill(self.pid(), signal);
    }

    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("forebay ends", || {
            status = self.child.try_wait().expect("our child");
            status.is_some()
        });
        status.expect("just seen")
    }

    /// The value of a gauge or counter in `/metrics`.
    pub fn metric(&self, series: &str) -> Option<f64> {
        let text = get(self.admin, "/metrics");
        let line = text.lines().find(|line| line.starts_with(series))?;
        line.rsplit(' ').next()?.parse().ok()
    }

    /// The part of `/signals` about the first pool.
    pub fn signals(&self) -> serde_json::Value {
        let text = get(self.admin, "/signals");
        let body = text.split_once("\r\n\r\n").expect("a head").1;
        let frame: serde_json::Value = serde_json::from_str(body).expect("JSON");
        frame["pools"].as_object().expect("pools").values().next().expect("one").clone()
    }

    /// The replicas' processes: descendants that run the simulated server itself.
    pub fn replicas(&self) -> Vec<u32> {
        descendants(self.pid(), "vllm-sim")
    }
}

impl Drop for Forebay {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- log of forebay ---\n{}", self.logged().join("\n"));
        }
    }
}

/// A gateway in front of these addresses; `upstream` has fields of the pool's `upstream`. Requests are
/// shared out evenly, so that a test knows how many each endpoint has.
pub fn gateway(endpoints: &[SocketAddr], models: &[&str], upstream: &str) -> Forebay {
    gateway_with("", endpoints, models, upstream)
}

/// The same, with more fields of `gateway`, which begin with a comma.
pub fn gateway_with(
    fields: &str,
    endpoints: &[SocketAddr],
    models: &[&str],
    upstream: &str,
) -> Forebay {
    let folder = std::env::temp_dir().join("forebay-tests");
    std::fs::create_dir_all(&folder).expect("a folder");
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let file = folder.join(format!("gateway-{}-{n}.yaml", std::process::id()));
    let list: Vec<_> = endpoints.iter().map(|address| format!("\"{address}\"")).collect();
    let config = format!(
        "gateway: {{listen: 127.0.0.1:0{fields}}}\nadmin: {{listen: 127.0.0.1:0}}\npools:\n- name: p\n  \
         models: [{}]\n  endpoints: [{}]\n  pick: leastLoad\n  upstream: {{{upstream}}}\n",
        models.join(", "),
        list.join(", ")
    );
    std::fs::write(&file, config).expect("written");
    let path = file.to_str().expect("text");
    Forebay::start(&["gateway", "--config", path], "info,forebay_gateway=debug")
}

pub fn kill(pid: u32, signal: &str) {
    let status = Command::new("kill").args(["-s", signal, &pid.to_string()]).status();
    assert!(status.expect("kill runs").success(), "kill -s {signal} {pid}");
}

/// Waits until a condition holds that other processes bring about.
pub fn eventually(name: &str, mut condition: impl FnMut() -> bool) {
    let until = SystemTime::now() + PATIENCE;
    while !condition() {
        assert!(SystemTime::now() < until, "not within {PATIENCE:?}: {name}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

fn stat(pid: u32) -> Option<(u32, Vec<u8>)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut rest = stat.rsplit_once(')')?.1.split_whitespace();
    (rest.next()? != "Z").then_some(())?;
    let parent = rest.next()?.parse().ok()?;
    Some((parent, std::fs::read(format!("/proc/{pid}/cmdline")).ok()?))
}

/// Whether a process exists and is not a zombie.
pub fn alive(pid: u32) -> bool {
    stat(pid).is_some()
}

/// The descendants of `root` whose first argument is `argument`.
pub fn descendants(root: u32, argument: &str) -> Vec<u32> {
    family(root, |line| line.split(|b| *b == 0).nth(1) == Some(argument.as_bytes()))
}

/// `root` and its descendants whose command line is as wanted.
pub fn family(root: u32, wanted: impl Fn(&[u8]) -> bool) -> Vec<u32> {
    let pids = || {
        let entries = std::fs::read_dir("/proc").expect("Linux");
        entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
    };
    let all: Vec<_> = pids().filter_map(|pid| stat(pid).map(|(p, line)| (pid, p, line))).collect();
    let mut family = vec![root];
    let mut i = 0;
    while i < family.len() {
        let parent = family[i];
        family.extend(all.iter().filter(|(_, p, _)| *p == parent).map(|(pid, ..)| *pid));
        i += 1;
    }
    let runs = |pid: &u32| {
        let line = all.iter().find(|(p, ..)| p == pid).map(|(.., line)| line);
        line.is_some_and(|line| wanted(line))
    };
    family.into_iter().filter(runs).collect()
}

pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    stream
}

/// Sends bytes and reads until the other side closes.
pub fn exchange(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = connect(address);
    // A server that refuses early may close before it has read everything.
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

pub fn get(address: SocketAddr, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    exchange(address, request.as_bytes())
}

pub fn post(path: &str, body: &str) -> Vec<u8> {
    format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// A chat request with an answer of `tokens` tokens.
pub fn chat(stream: bool, tokens: u32) -> Vec<u8> {
    let body = format!(
        r#"{{"model":"sim","stream":{stream},"max_tokens":{tokens},"ignore_eos":true,"messages":[{{"role":"user","content":"hello"}}]}}"#
    );
    post("/v1/chat/completions", &body)
}

pub fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
}

/// The body of a plain answer or an error, as JSON.
pub fn json(answer: &str) -> serde_json::Value {
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    serde_json::from_str(body).unwrap_or_else(|error| panic!("{error} in {answer:?}"))
}

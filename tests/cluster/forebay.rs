//! The real binary, as gateway or scaler, and its clients.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use crate::plane::{PATIENCE, eventually};
use crate::process::Process;

pub const BINARY: &str = env!("CARGO_BIN_EXE_forebay");

/// The token of the admin port, where a suite configures one.
pub const TOKEN: &str = "for-operators-only";

const LOG: &str = "info,forebay_gateway=debug,forebay_scaler=debug,forebay_discovery=debug";

/// A running gateway or scaler.
pub struct Forebay {
    pub admin: SocketAddr,
    process: Process,
}

impl Forebay {
    /// Starts `forebay PART` with this configuration and this kubeconfig.
    pub async fn start(
        part: &str,
        name: &str,
        config: &str,
        admin: SocketAddr,
        kubeconfig: &Path,
        folder: &Path,
    ) -> Self {
        let program = Command::new(BINARY);
        Self::start_by(program, part, name, config, admin, kubeconfig, folder).await
    }

    /// The same, by a command that runs the program with the arguments that are appended to it.
    pub async fn start_by(
        mut command: Command,
        part: &str,
        name: &str,
        config: &str,
        admin: SocketAddr,
        kubeconfig: &Path,
        folder: &Path,
    ) -> Self {
        let file: PathBuf = folder.join(format!("{name}.yaml"));
        std::fs::create_dir_all(folder).expect("a folder");
        std::fs::write(&file, config).expect("written");
        command.arg(part).arg("--config").arg(&file).env("KUBECONFIG", kubeconfig);
        command.env("POD_NAME", name).env("POD_IP", admin.ip().to_string());
        command.env("FOREBAY_LOG", std::env::var("FOREBAY_LOG").unwrap_or_else(|_| LOG.to_owned()));
        let mut process = Process::start(name, &folder.join("log"), command);
        eventually(&format!("{name} is up"), async || {
            // If it has ended, waiting is of no use.
            if let Some(code) = process.ended() {
                panic!("{name} ended with {code}:\n{}", process.tail(30));
            }
            // Not `/readyz`: a scaler is ready only when it has heard from a gateway.
            status(&get(admin, "/healthz").await) == 200
        })
        .await;
        Self { admin, process }
    }

    pub fn log(&self) -> String {
        self.process.log()
    }

    pub async fn kill(&mut self) {
        self.process.kill().await;
    }

    /// Sends SIGTERM, and returns the exit code.
    pub async fn stop(&mut self) -> i32 {
        self.process.signal(Signal::SIGTERM);
        timeout(PATIENCE, self.process.wait()).await.expect("it ends")
    }

    /// The part of `/signals` or `/replicas` about `pool`.
    pub async fn pool(&self, feed: &str, pool: &str) -> serde_json::Value {
        let answer = get(self.admin, feed).await;
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        let frame: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
        frame["pools"][pool].clone()
    }

    /// A gateway's endpoints of `pool` by address, with their health.
    pub async fn endpoints(&self, pool: &str) -> BTreeMap<String, String> {
        let signals = self.pool("/signals", pool).await;
        let endpoints = signals["endpoints"].as_object().cloned().unwrap_or_default();
        let health = |endpoint: serde_json::Value| {
            endpoint["health"].as_str().unwrap_or_default().to_owned()
        };
        endpoints.into_iter().map(|(address, endpoint)| (address, health(endpoint))).collect()
    }

    /// The value of a gauge or counter in `/metrics`.
    pub async fn metric(&self, series: &str) -> Option<f64> {
        let text = get(self.admin, "/metrics").await;
        let line = text.lines().find(|line| line.starts_with(series))?;
        line.rsplit(' ').next()?.parse().ok()
    }
}

/// Sends bytes and reads until the other side closes. Returns what came, even if it broke off.
pub async fn exchange(address: SocketAddr, request: &[u8]) -> String {
    let mut answer = Vec::new();
    let whole = async {
        if let Ok(mut stream) = TcpStream::connect(address).await {
            let _ = stream.write_all(request).await;
            let _ = stream.read_to_end(&mut answer).await;
        }
    };
    let _ = timeout(PATIENCE, whole).await;
    String::from_utf8_lossy(&answer).into_owned()
}

pub async fn get(address: SocketAddr, path: &str) -> String {
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\
         authorization: Bearer {TOKEN}\r\n\r\n"
    );
    exchange(address, request.as_bytes()).await
}

pub async fn post(address: SocketAddr, path: &str) -> String {
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-length: 0\r\n\
         authorization: Bearer {TOKEN}\r\n\r\n"
    );
    exchange(address, request.as_bytes()).await
}

/// Sends a chat request for `tokens` tokens, and returns the answer.
pub async fn chat(gateway: SocketAddr, model: &str, stream: bool, tokens: u32) -> String {
    exchange(gateway, chat_request(model, stream, tokens).as_bytes()).await
}

fn chat_request(model: &str, stream: bool, tokens: u32) -> String {
    let body = format!(
        r#"{{"model":"{model}","stream":{stream},"max_tokens":{tokens},"ignore_eos":true,"messages":[{{"role":"user","content":"hello"}}]}}"#
    );
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// A stream that has begun. Its client leaves when this is dropped.
pub struct Streaming {
    /// The endpoint that serves it, if the gateway is configured to name it.
    pub endpoint: String,
    received: watch::Receiver<Received>,
    _task: AbortOnDropHandle<()>,
}

#[derive(Default)]
struct Received {
    text: String,
    ended: bool,
}

impl Streaming {
    /// Starts a stream and waits for its first token, held or not.
    pub async fn begin(gateway: SocketAddr, model: &str, tokens: u32) -> Self {
        let request = chat_request(model, true, tokens);
        let (sender, mut received) = watch::channel(Received::default());
        let task = tokio::spawn(async move {
            let mut buffer = vec![0; 16 * 1024];
            if let Ok(mut stream) = TcpStream::connect(gateway).await {
                let _ = stream.write_all(request.as_bytes()).await;
                while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                    let text = String::from_utf8_lossy(&buffer[..count]);
                    sender.send_modify(|received| received.text.push_str(&text));
                }
            }
            sender.send_modify(|received| received.ended = true);
        });
        let begun = |received: &Received| received.ended || received.text.contains("data: {");
        let head = timeout(PATIENCE, received.wait_for(begun)).await.expect("the stream begins");
        let head = head.expect("read").text.clone();
        assert_eq!(status(&head), 200, "{head}");
        let header = head.lines().find_map(|line| line.strip_prefix("x-forebay-endpoint: "));
        let endpoint = header.unwrap_or_default().trim().to_owned();
        Self { endpoint, received, _task: AbortOnDropHandle::new(task) }
    }

    /// Checks that the stream still goes on: more comes, and no end.
    pub async fn goes_on(&mut self) {
        let before = self.received.borrow().text.len();
        let more = self
            .received
            .wait_for(|received| received.ended || received.text.len() > before + 1000);
        let now = timeout(PATIENCE, more).await.expect("more comes").expect("read");
        assert!(!now.ended, "it ended: {}", now.text.get(now.text.len() - 500..).unwrap_or(""));
    }

    /// Waits for the end, for at most this time, and returns the answer.
    pub async fn end(mut self, within: Duration) -> String {
        let ended = self.received.wait_for(|received| received.ended);
        timeout(within, ended).await.expect("it ends").expect("read").text.clone()
    }
}

pub fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
}

/// Whether an answer of [`chat`] is complete: status 200, all its tokens, nothing cut off.
pub fn is_whole(answer: &str, stream: bool) -> bool {
    let end = if stream { "data: [DONE]" } else { "\"usage\"" };
    status(answer) == 200
        && answer.contains(end)
        && answer.contains("\"finish_reason\":\"length\"")
        && !answer.contains("\"error\"")
}

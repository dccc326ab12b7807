//! Forebay behind the proxies that `docs/proxies.md` shows, with the settings of that page and time
//! limits of a second. A proxy that is not installed is skipped, with a line.

mod support;

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use support::reply::{Reply, ask};
use support::sims::Folder;
use support::{Forebay, eventually, post};

const PAGE: &str = include_str!("../docs/proxies.md");

/// Starts a proxy with its files in a folder, in front of the gateway at this address.
type Start = fn(&Path, SocketAddr) -> Option<Proxy>;

/// A proxy in front of a gateway.
struct Proxy {
    child: Child,
    address: SocketAddr,
}

impl Proxy {
    /// Starts `program` with the configuration, which listens at `address`.
    fn start(program: &str, arguments: &[&str], address: SocketAddr) -> Option<Self> {
        let spawned = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let Ok(child) = spawned else {
            println!("{program} is not installed: skipped");
            return None;
        };
        let proxy = Self { child, address };
        eventually("the proxy listens", || TcpStream::connect(address).is_ok());
        Some(proxy)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // nginx ends its workers at SIGTERM alone.
        support::kill(self.child.id(), "TERM");
        let _ = self.child.wait();
    }
}

/// The block of the page in this language.
fn block(language: &str) -> &'static str {
    let begin = format!("```{language}\n");
    let (_, rest) = PAGE.split_once(begin.as_str()).expect("the page has such a block");
    rest.split_once("```").expect("it ends").0
}

/// Replaces what the page shows by the test's own; all of it must be there.
fn replaced(text: &str, changes: &[(&str, &str)]) -> String {
    changes.iter().fold(text.to_owned(), |text, (shown, own)| {
        assert!(text.contains(shown), "the page has no {shown:?}");
        text.replace(shown, own)
    })
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|port| port.local_addr()).expect("a free port")
}

fn nginx(folder: &Path, gateway: SocketAddr) -> Option<Proxy> {
    let address = free_address();
    let upstream = gateway.to_string();
    let location = replaced(block("nginx"), &[("127.0.0.1:8080", &upstream), ("620s", "1s")]);
    let at = folder.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|of| format!("{of}_temp_path {at}/{of};\n"))
        .collect();
    let config = format!(
        "daemon off;\npid {at}/pid;\nerror_log {at}/error.log;\nevents {{}}\nhttp {{\n\
         access_log off;\n{temporary}server {{\nlisten {address};\n{location}}}\n}}\n"
    );
    let file = folder.join("nginx.conf");
    std::fs::write(&file, config).expect("written");
    let file = file.to_str().expect("text");
    let errors = format!("{at}/error.log");
    Proxy::start("nginx", &["-e", &errors, "-p", &at.to_string(), "-c", file], address)
}

fn haproxy(folder: &Path, gateway: SocketAddr) -> Option<Proxy> {
    let address = free_address();
    let (bind, server) = (format!("bind {address}"), gateway.to_string());
    let config = replaced(
        block("haproxy"),
        &[
            ("bind :80", &bind),
            ("127.0.0.1:8080", &server),
            ("timeout client 60s", "timeout client 1s"),
            ("timeout server 60s", "timeout server 1s"),
        ],
    );
    let file = folder.join("haproxy.cfg");
    std::fs::write(&file, config).expect("written");
    Proxy::start("haproxy", &["-db", "-f", file.to_str().expect("text")], address)
}

/// Pools whose replicas take three seconds to start, or far longer than a request is held.
fn forebay(folder: &Folder) -> Forebay {
    let pool = |name: &str, hold: &str, cold_start: &str| {
        let command = serde_json::to_string(&[
            env!("CARGO_BIN_EXE_forebay"),
            "vllm-sim",
            "--port",
            "{port}",
            "--served-model-name",
            name,
            "--cold-start",
            cold_start,
        ]);
        format!(
            "- name: {name}\n  models: [{name}]\n  hold: {{heartbeat: 200ms, {hold}}}\n  \
             target: {{processes: {{command: {}, logDir: '{}'}}}}\n",
            command.expect("text"),
            folder.0.join("logs").display()
        )
    };
    let config = format!(
        "gateway: {{listen: 127.0.0.1:0}}\nadmin: {{listen: 127.0.0.1:0}}\npools:\n{}{}{}",
        pool("kept", "heartbeatPlain: true", "3s"),
        pool("silent", "heartbeatPlain: false", "3s"),
        pool("never", "heartbeatPlain: true, timeout: 2s", "1h"),
    );
    let file = folder.write("forebay.yaml", &config);
    Forebay::start(&["run", "--config", &file], "info")
}

fn chat(proxy: &Proxy, model: &str, stream: bool) -> Reply {
    let body = format!(
        r#"{{"model":"{model}","stream":{stream},"max_tokens":2,"messages":[{{"role":"user","content":"hello"}}]}}"#
    );
    ask(proxy.address, &post("/v1/chat/completions", &body))
}

#[test]
fn requests_outlast_a_cold_start_behind_each_proxy() {
    for (name, start) in [("nginx", nginx as Start), ("haproxy", haproxy)] {
        let folder = Folder::new();
        let forebay = forebay(&folder);
        let Some(proxy) = start(&folder.0, forebay.address) else { continue };
        // Without heartbeats the proxy gives up: that is why the page is there.
        let got = chat(&proxy, "silent", false);
        assert_eq!(got.status, 504, "{name}: {}", got.text());

        let got = chat(&proxy, "kept", false);
        assert_eq!((got.status, got.whole), (200, true), "{name}: {}", got.text());
        assert!(got.text().starts_with('\n'), "{name}: it was cold");
        let answer: Value = serde_json::from_str(&got.text()).expect("JSON");
        assert_eq!(answer["usage"]["completion_tokens"], 2, "{name}: {answer}");

        let got = chat(&proxy, "never", true);
        assert!(got.status == 200 && got.whole, "{name}: {}", got.text());
        assert!(got.text().starts_with(": waiting\n\n"), "{name}: {}", got.text());
        assert!(got.text().contains("data: {\"error\":{\"code\":503"), "{name}: {}", got.text());

        // The cut reaches the client through the proxy.
        let got = chat(&proxy, "never", false);
        assert_eq!((got.status, got.whole), (200, false), "{name}: {}", got.text());
    }
}

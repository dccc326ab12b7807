//! Logs and other outputs that can't be written: closed, on a full disk, or without a reader.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write, pipe};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Command, ExitStatus, Stdio};

use crate::support::sims::{Folder, Sim};
use crate::support::{connect, eventually, exchange, get, kill, status};

/// A gateway with standard error of the test's choice, and so with addresses of the test's choice.
struct Gateway {
    child: Child,
    address: SocketAddr,
    admin: SocketAddr,
    _folder: Folder,
}

impl Gateway {
    fn start(sim: &Sim, fields: &str, stderr: impl Into<Stdio>) -> Self {
        let free = || TcpListener::bind("127.0.0.1:0").expect("a free port");
        let (clients, operators) = (free(), free());
        let of = |listener: &TcpListener| listener.local_addr().expect("bound");
        let (address, admin) = (of(&clients), of(&operators));
        drop((clients, operators));
        let folder = Folder::new();
        let config = folder.write(
            "config.yaml",
            &format!(
                "gateway: {{listen: '{address}'{fields}}}\nadmin: {{listen: '{admin}'}}\n\
                 pools: [{{name: p, models: [sim], endpoints: ['{}']}}]\n",
                sim.address
            ),
        );
        let child = Command::new(env!("CARGO_BIN_EXE_forebay"))
            .args(["gateway", "--config", &config])
            .env_remove("FOREBAY_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .expect("the binary starts");
        let gateway = Self { child, address, admin, _folder: folder };
        eventually("the gateway listens", || std::net::TcpStream::connect(admin).is_ok());
        eventually("the endpoint is ready", || {
            gateway.metric("forebay_endpoint_ready{") == Some(1.0)
        });
        gateway
    }

    fn metric(&self, series: &str) -> Option<f64> {
        let text = get(self.admin, "/metrics");
        let line = text.lines().find(|line| line.starts_with(series))?;
        line.rsplit(' ').next()?.parse().ok()
    }

    fn dropped(&self, output: &str) -> f64 {
        let series = format!("forebay_dropped_lines_total{{output=\"{output}\"}}");
        self.metric(&series).expect("a figure from the beginning")
    }

    /// Sends this many requests to the replica.
    fn ask(&self, count: usize) {
        self.exchange(count, "/v1/chat/completions", 200);
    }

    /// Logs more than a pipe and the lines waiting for it can hold: the path is in the access log.
    fn flood(&self) {
        self.exchange(1_500, &format!("/v1/{}", "p".repeat(4_000)), 404);
    }

    /// Sends this many requests one after another and reads each answer.
    fn exchange(&self, count: usize, path: &str, want: u16) {
        let body =
            r#"{"model":"sim","max_tokens":2,"messages":[{"role":"user","content":"hello"}]}"#;
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let stream = connect(self.address);
        let mut answers = BufReader::new(&stream);
        for n in 0..count {
            (&stream).write_all(request.as_bytes()).expect("taken");
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                let read = answers.read_line(&mut head).expect("answered");
                assert!(read > 0, "closed after {n} answers: {head:?}");
            }
            assert_eq!(status(&head), want, "{head}");
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
            });
            let mut rest = vec![0; length.expect("a length")];
            answers.read_exact(&mut rest).expect("a whole answer");
        }
    }

    fn healthy(&self) {
        for path in ["/healthz", "/readyz"] {
            assert_eq!(status(&get(self.admin, path)), 200, "{path}");
        }
    }

    fn terminate(&mut self) -> ExitStatus {
        kill(self.child.id(), "TERM");
        let mut status = None;
        eventually("the gateway ends", || {
            status = self.child.try_wait().expect("our child");
            status.is_some()
        });
        status.expect("just seen")
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_log_whose_reader_has_left_costs_no_request() {
    let sim = Sim::start(&["sim"]);
    let (reader, writer) = pipe().expect("a pipe");
    let first = std::thread::spawn(move || {
        // As `head -1` does.
        let mut line = String::new();
        BufReader::new(reader).read_line(&mut line).expect("a line");
        line
    });
    let mut gateway = Gateway::start(&sim, "", writer);
    assert!(first.join().expect("read").contains("listening on"));
    gateway.ask(50);
    gateway.healthy();
    eventually("lines are dropped", || gateway.dropped("log") >= 50.0);
    assert!(gateway.terminate().success());
}

#[test]
fn a_log_on_a_full_disk_costs_no_request() {
    let sim = Sim::start(&["sim"]);
    let full = OpenOptions::new().write(true).open("/dev/full").expect("Linux");
    let mut gateway = Gateway::start(&sim, "", full);
    gateway.ask(50);
    gateway.healthy();
    eventually("lines are dropped", || gateway.dropped("log") >= 50.0);
    assert!(gateway.terminate().success());
}

#[test]
fn a_log_without_a_reader_costs_no_request_and_does_not_keep_the_process() {
    let sim = Sim::start(&["sim"]);
    let (_reader, writer) = pipe().expect("a pipe");
    let mut gateway = Gateway::start(&sim, "", writer);
    gateway.flood();
    gateway.ask(50);
    gateway.healthy();
    assert!(gateway.dropped("log") > 0.0, "lines are dropped");
    assert!(gateway.terminate().success());
}

#[test]
fn a_log_that_is_read_again_reports_its_dropped_lines() {
    let sim = Sim::start(&["sim"]);
    let (reader, writer) = pipe().expect("a pipe");
    let mut gateway = Gateway::start(&sim, "", writer);
    gateway.flood();
    let dropped = gateway.dropped("log");
    assert!(dropped > 0.0);
    let read = std::thread::spawn(move || {
        let lines: Vec<_> = BufReader::new(reader).lines().map_while(Result::ok).collect();
        lines
    });
    eventually("waiting lines are read, and new ones find their place", || {
        gateway.ask(1);
        let before = gateway.dropped("log");
        gateway.ask(1);
        gateway.dropped("log") == before
    });
    assert!(gateway.terminate().success());
    let lines = read.join().expect("read to the end");
    let reports: Vec<_> = lines.iter().filter(|line| line.contains("were dropped")).collect();
    let reported: u64 = reports
        .iter()
        .filter_map(|line| {
            let json: serde_json::Value = serde_json::from_str(line).expect("a whole line");
            let count = json["message"].as_str()?.split(' ').next()?;
            Some(if count == "a" { 1 } else { count.parse::<u64>().expect("a count") })
        })
        .sum();
    assert!(reported as f64 >= dropped, "{dropped} were dropped, reported are {reports:?}");
    assert!(lines.last().is_some_and(|line| line.contains("stopped")), "the last line is there");
}

#[test]
fn arrivals_on_a_full_disk_cost_no_request_and_are_reported() {
    let sim = Sim::start(&["sim"]);
    let (reader, writer) = pipe().expect("a pipe");
    let mut gateway = Gateway::start(&sim, ", recordArrivals: {file: /dev/full}", writer);
    gateway.ask(50);
    gateway.healthy();
    eventually("arrivals are dropped", || gateway.dropped("arrivals") >= 50.0);
    assert_eq!(gateway.dropped("log"), 0.0);
    assert!(gateway.terminate().success());
    let lines: Vec<_> = BufReader::new(reader).lines().map_while(Result::ok).collect();
    let reports = lines.iter().filter(|line| line.contains("arrivals can't be written: No space"));
    assert_eq!(reports.count(), 1, "once, not for each: {lines:?}");
}

#[test]
fn arrivals_without_a_reader_do_not_keep_the_process() {
    let sim = Sim::start(&["sim"]);
    let folder = Folder::new();
    let fifo = folder.0.join("arrivals");
    assert!(Command::new("mkfifo").arg(&fifo).status().expect("it runs").success());
    // The pipe has a reader, which reads nothing.
    let open = |path| OpenOptions::new().read(true).custom_flags(0o4000).open(path);
    let _reader: File = open(&fifo).expect("a pipe");
    let fields = format!(", recordArrivals: {{file: {}}}", fifo.display());
    let mut gateway = Gateway::start(&sim, &fields, Stdio::null());
    gateway.ask(3_000);
    gateway.healthy();
    assert!(gateway.terminate().success());
}

fn forebay(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    command.args(arguments).stdin(Stdio::null());
    command
}

/// A pipe without a reader.
fn closed() -> Stdio {
    let (reader, writer) = pipe().expect("a pipe");
    drop(reader);
    writer.into()
}

#[test]
fn commands_that_print_end_quietly_without_a_reader() {
    let folder = Folder::new();
    let config = folder.write(
        "config.yaml",
        "pools: [{name: p, models: [m], scaling: {maxReplicaCount: 2}, \
         target: {processes: {command: [sleep, '{port}']}}}]\n",
    );
    for arguments in [
        &["schema"][..],
        &["check", "--config", &config],
        &["check", "--config", &config, "--print"],
        &["replay", "--config", &config, "--trace", "burst", "--json"],
        &["replay", "--config", &config, "--trace", "burst"],
        &["hash-key", "--new"],
        &["hash-key", "--new", "--tenant", "a"],
        &["--help"],
    ] {
        let output = forebay(arguments).stdout(closed()).stderr(Stdio::piped()).output();
        let output = output.expect("it runs");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {} {errors}", output.status);
        let key = arguments.contains(&"--new") && errors.starts_with("sk-");
        assert!(errors.is_empty() || key, "{arguments:?} printed: {errors}");
    }
    for arguments in [&["schema"][..], &["check", "--config", &config, "--print"]] {
        let full = OpenOptions::new().write(true).open("/dev/full").expect("Linux");
        let output = forebay(arguments).stdout(full).stderr(Stdio::piped()).output();
        let output = output.expect("it runs");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {errors}");
        assert!(errors.contains("No space left"), "{arguments:?}: {errors}");
    }
    // An error that can't be printed is still an error.
    let wrong = folder.write("wrong.yaml", "pools: 3\n");
    for arguments in [&["check", "--config", &wrong][..], &["gateway", "--config", &wrong]] {
        let status = forebay(arguments).stdout(Stdio::null()).stderr(closed()).status();
        assert_eq!(status.expect("it runs").code(), Some(1), "{arguments:?}");
    }
    let status = forebay(&["hash-key", "--new"]).stdout(Stdio::null()).stderr(closed()).status();
    assert_eq!(status.expect("it runs").code(), Some(1), "a key that was not shown is lost");
}

#[test]
fn a_simulated_replica_serves_on_when_its_log_is_closed() {
    let port =
        TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("free");
    let child = forebay(&["vllm-sim", "sim", "--port", &port.port().to_string()])
        .stdout(Stdio::null())
        .stderr(closed())
        .spawn();
    let mut child = child.expect("the binary starts");
    eventually("the replica listens", || std::net::TcpStream::connect(port).is_ok());
    let health = exchange(port, b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    assert_eq!(status(&health), 200, "{health}");
    kill(child.id(), "TERM");
    eventually("the replica ends", || child.try_wait().expect("our child").is_some());
}

//! The reaction time of a sleeping pool: request held → scale decision, and replica healthy → first
//! byte of the held request sent to it.
//!
//! usage: cargo bench -p forebay-loadtests --bench wake -- --forebay $PWD/target/release/forebay
//!
//! Starts `forebay dev` with this program as the replica, sends one request at a time at zero, and
//! waits until the pool is at zero again. Both times are measured outside of Forebay: the decision
//! when it arrives on `/replicas`, the release when the replica reads the request.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const ROUNDS: usize = 40;
/// The replica's own start, so that the request is held for a while.
const COLD_START: Duration = Duration::from_millis(300);

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    match arguments.next().as_deref() {
        Some("--replica") => {
            let port = arguments.next().and_then(|port| port.parse().ok()).expect("a port");
            replica(port, &arguments.next().expect("a file"));
        }
        Some("--forebay") => measure(&arguments.next().expect("a path")),
        // `cargo test --benches` runs this without arguments.
        _ => println!("skipped: pass --forebay PATH to measure"),
    }
}

fn micros() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_micros() as u64
}

/// Listens after a cold start, and writes to `file` the time from then to the first request.
fn replica(port: u16, file: &str) {
    std::thread::sleep(COLD_START);
    let listener = TcpListener::bind(("127.0.0.1", port)).expect("leased");
    let healthy = micros();
    for stream in listener.incoming().flatten() {
        let file = file.to_owned();
        std::thread::spawn(move || serve(stream, healthy, &file));
    }
}

fn serve(mut stream: TcpStream, healthy: u64, file: &str) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    loop {
        let (mut head, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if head.starts_with("POST") && line.to_ascii_lowercase().starts_with("content-length:")
            {
                length = line.split(':').nth(1)?.trim().parse().ok()?;
            }
            if head.is_empty() && line.starts_with("POST") {
                let now = micros();
                std::fs::write(file, format!("{}", now - healthy)).ok()?;
            }
            let end = line == "\r\n";
            head.push_str(&line);
            if end {
                break;
            }
        }
        reader.read_exact(&mut vec![0; length]).ok()?;
        let body = r#"{"object":"list","data":[{"id":"m"}],"choices":[]}"#;
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes()).ok()?;
    }
}

fn measure(forebay: &str) {
    let own = std::env::current_exe().expect("running").display().to_string();
    let file = std::env::temp_dir().join(format!("forebay-wake-{}", std::process::id()));
    let mut child = Command::new(forebay)
        .args(["dev", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--idle", "200ms"])
        .args(["--model", "m", "--", &own, "--replica", "{port}"])
        .arg(&file)
        .env("NO_COLOR", "1")
        .stderr(Stdio::piped())
        .spawn()
        .expect("forebay starts");
    let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
    let line = lines
        .find_map(|line| line.ok().filter(|line| line.contains("listening on")))
        .expect("it listens");
    std::thread::spawn(move || lines.for_each(drop));
    let address = |after: &str| -> SocketAddr {
        let rest = &line[line.find(after).expect("announced") + after.len()..];
        rest[..rest.find([' ', '/']).unwrap_or(rest.len())].parse().expect("an address")
    };
    let (clients, admin) = (address("listening on http://"), address("metrics on http://"));

    // Every change of the count, as it arrives on the feed.
    let (sender, changes) = channel();
    let mut feed = TcpStream::connect(admin).expect("admin port");
    let ask =
        format!("GET /replicas HTTP/1.1\r\nhost: {admin}\r\naccept: text/event-stream\r\n\r\n");
    feed.write_all(ask.as_bytes()).expect("sent");
    std::thread::spawn(move || {
        let mut last = None;
        for line in BufReader::new(feed).lines().map_while(Result::ok) {
            let now = micros();
            let desired = line.find("\"desired\":").and_then(|at| line.as_bytes().get(at + 10));
            let (Some(desired), true) = (desired, line.starts_with("data: ")) else { continue };
            let empty = line.contains("\"replicas\":{}") || line.contains(":null");
            if last.replace((*desired, empty)) != Some((*desired, empty))
                && sender.send((now, *desired, empty)).is_err()
            {
                return;
            }
        }
    });

    let (mut decided, mut released) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        eprint!("\rround {} of {ROUNDS}", round + 1);
        // The event of the last replica's end may still come: events keep 20 ms apart.
        std::thread::sleep(Duration::from_millis(100));
        while changes.try_recv().is_ok() {}
        let body = r#"{"model":"m"}"#;
        let request = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut client = TcpStream::connect(clients).expect("clients' port");
        let sent = micros();
        client.write_all(request.as_bytes()).expect("sent");
        let (at, ..) = changes.iter().find(|(_, desired, _)| *desired == b'1').expect("a decision");
        decided.push(at - sent);
        let mut answer = String::new();
        client.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let took = std::fs::read_to_string(&file).expect("written before the answer");
        released.push(took.parse().expect("a number"));
        changes.iter().find(|(_, desired, empty)| *desired == b'0' && *empty).expect("zero again");
    }
    eprintln!();
    report("request held → decision on /replicas", decided, 5.0);
    report("replica healthy → held request read by it", released, 150.0);
    let _ = Command::new("kill").arg(child.id().to_string()).status();
    let _ = child.wait();
    let _ = std::fs::remove_file(file);
}

fn report(name: &str, mut micros: Vec<u64>, goal_ms: f64) {
    micros.sort_unstable();
    let at = |q: f64| {
        let rank = ((q * micros.len() as f64).ceil() as usize).clamp(1, micros.len());
        micros[rank - 1] as f64 / 1000.0
    };
    println!("{name}: p50 {:.2} ms, p99 {:.2} ms (goal: under {goal_ms} ms)", at(0.5), at(0.99));
}

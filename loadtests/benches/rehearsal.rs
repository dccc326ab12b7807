//! The accuracy of `forebay replay`: the same load live, through the real gateway, scaler and
//! simulated replicas, and replayed.
//!
//! usage: cargo bench -p forebay-loadtests --bench rehearsal -- --forebay
//! $PWD/target/release/forebay
//!
//! Plays three minutes of bursts through `forebay run` while it records the arrivals, then replays
//! the recording with the same configuration. Fails if GPU-hours or the 50th or 95th percentile of
//! TTFT differ by more than the constants below. Prints both over time, five seconds a line, to
//! show where they differ.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// The largest difference between live and replay, as a share of the live figure.
const GPU_HOURS: f64 = 0.15;
const TTFT: f64 = 0.15;
/// The seconds that two clocks and a busy machine may add to a time.
const SLACK: f64 = 0.25;

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    match arguments.next().as_deref() {
        Some("--forebay") => check(&arguments.next().expect("a path")),
        // `cargo test --benches` runs this without arguments.
        _ => println!("skipped: pass --forebay PATH to check"),
    }
}

/// Arrivals in seconds with prompt tokens: three bursts, each with a tail.
fn load() -> Vec<(f64, usize)> {
    let mut load = Vec::new();
    for (start, burst, tail) in [(1.0, 20, 20), (70.0, 40, 30), (120.0, 10, 40)] {
        for i in 0..burst + tail {
            let at = if i < burst { 0.1 * i as f64 } else { 5.0 + (i - burst) as f64 };
            load.push((start + at, 100 + 37 * (i % 11)));
        }
    }
    load.sort_by(|a, b| a.0.total_cmp(&b.0));
    load
}

fn configuration(forebay: &str, folder: &Path) -> String {
    format!(
        "gateway:\n  listen: 127.0.0.1:0\n  recordArrivals: {{file: {folder}/arrivals.csv}}\n\
         admin: {{listen: 127.0.0.1:0}}\n\
         scaler: {{stateDir: {folder}/state}}\n\
         pools:\n- name: sim\n  models: [sim]\n  maxInFlight: 8\n  \
         target:\n    processes:\n      logDir: {folder}\n      command: [{forebay}, vllm-sim, --port, \
         '{{port}}', --served-model-name, sim, --cold-start, 5s, --prefill-tokens-per-second, '2000', \
         --decode-step-ms, '40', --decode-step-ms-per-seq, '2', --max-num-seqs, '16', \
         --min-reply-tokens, '20', --max-reply-tokens, '98', --stop-delay, 0s]\n  \
         scaling:\n    minReplicaCount: 0\n    maxReplicaCount: 4\n    cooldownPeriod: 15s\n    \
         stableWindow: 20s\n    objective: {{ttft: 3s, share: 0.95}}\n\
         replay:\n  replica:\n    coldStart: {{scheduled: 0s, started: 50ms, healthy: 5s, spread: 0}}\n    \
         prefillTokensPerSecond: 2000\n    decodeStep: 40ms\n    decodeStepMillisPerSequence: 2\n    \
         maxSequences: 16\n",
        folder = folder.display()
    )
}

struct Live {
    /// Seconds from the first arrival to each, and from there to its first token.
    ttft: Vec<(f64, f64)>,
    replicas: Watched,
}

/// Replicas over time, from the first arrival on.
#[derive(Default)]
struct Watched {
    replica_seconds: f64,
    /// Seconds, replicas in every state, those that were ready.
    samples: Vec<(f64, u32, u32)>,
}

fn check(forebay: &str) {
    let folder = std::env::temp_dir().join(format!("forebay-rehearsal-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let file = folder.join("forebay.yaml");
    std::fs::write(&file, configuration(forebay, &folder)).expect("written");
    let live = live(forebay, &file);
    let replayed = Command::new(forebay)
        .args(["replay", "--json", "--config"])
        .arg(&file)
        .arg("--trace")
        .arg(folder.join("arrivals.csv"))
        .output()
        .expect("it runs");
    assert!(replayed.status.success(), "{}", String::from_utf8_lossy(&replayed.stderr));
    let results: serde_json::Value = serde_json::from_slice(&replayed.stdout).expect("JSON");
    let ours = &results["contestants"][0];
    assert_eq!(ours["requests"], live.ttft.len(), "all requests were recorded");
    over_time(&live, &ours["series"]);
    let mut sorted: Vec<_> = live.ttft.iter().map(|(_, ttft)| *ttft).collect();
    sorted.sort_by(f64::total_cmp);
    let at = |q: f64| sorted[((q * sorted.len() as f64).ceil() as usize).max(1) - 1];
    let figure =
        |path: &str| ours.pointer(path).and_then(serde_json::Value::as_f64).expect("a figure");
    let mut good = true;
    for (name, live, replayed, share, slack) in [
        ("GPU-hours", live.replicas.replica_seconds / 3600.0, figure("/gpuHours"), GPU_HOURS, 0.0),
        ("TTFT p50, s", at(0.5), figure("/ttftSeconds/p50"), TTFT, SLACK),
        ("TTFT p95, s", at(0.95), figure("/ttftSeconds/p95"), TTFT, SLACK),
    ] {
        let fits = (replayed - live).abs() <= live * share + slack;
        good &= fits;
        println!(
            "{name}: live {live:.4}, replayed {replayed:.4}, {:+.1} %{}",
            (replayed / live - 1.0) * 100.0,
            if fits { "" } else { "  TOO DIFFERENT" }
        );
    }
    assert!(good, "the files are in {}", folder.display());
    let _ = std::fs::remove_dir_all(folder);
}

/// Prints replicas and the longest wait, five seconds a line.
fn over_time(live: &Live, series: &serde_json::Value) {
    let series = |name: &str| series[name].as_array().expect("a series");
    let (at, all, ready) = (series("atSeconds"), series("replicas"), series("ready"));
    let waited = series("ttftSeconds");
    let end = live.ttft.iter().map(|(at, _)| *at).fold(0.0, f64::max);
    println!("  second   replicas (ready)          longest TTFT, s");
    println!("           live      replayed        live   replayed");
    for from in (0..=end as u32).step_by(5).map(f64::from) {
        let within = |at: f64| (from..from + 5.0).contains(&at);
        let (_, there, ready_then) =
            *live.replicas.samples.iter().rfind(|(at, ..)| *at <= from).unwrap_or(&(0.0, 0, 0));
        let points = || (0..at.len()).filter(|i| at[*i].as_f64().is_some_and(within));
        let first = points().next().unwrap_or(0);
        let longest = |times: &mut dyn Iterator<Item = f64>| times.fold(0.0, f64::max);
        println!(
            "  {from:>6}   {there} ({ready_then})     {} ({})       {:>10.2} {:>10.2}",
            all[first],
            ready[first],
            longest(&mut live.ttft.iter().filter(|(at, _)| within(*at)).map(|(_, ttft)| *ttft)),
            longest(&mut points().filter_map(|i| waited[i].as_f64())),
        );
    }
}

/// A child process that ends when this is dropped.
struct OwnedChild(Child);

impl Drop for OwnedChild {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let _ = self.0.wait();
    }
}

fn live(forebay: &str, file: &Path) -> Live {
    let mut child = Command::new(forebay)
        .args(["run", "--config"])
        .arg(file)
        .env("NO_COLOR", "1")
        .stderr(Stdio::piped())
        .spawn()
        .expect("forebay starts");
    let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
    let child = OwnedChild(child);
    let line = lines
        .find_map(|line| line.ok().filter(|line| line.contains("listening on")))
        .expect("it listens");
    // The log is kept: its decisions explain a difference.
    let mut log = std::fs::File::create(file.with_extension("log")).expect("a file");
    std::thread::spawn(move || {
        lines.map_while(Result::ok).for_each(|line| drop(writeln!(log, "{line}")));
    });
    let address = |after: &str| -> SocketAddr {
        let rest = &line[line.find(after).expect("announced") + after.len()..];
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.' && c != ':');
        rest[..end.unwrap_or(rest.len())].parse().expect("an address")
    };
    let (clients, admin) = (address("listening on http://"), address("metrics on http://"));
    let done = Arc::new(AtomicBool::new(false));
    let load = load();
    let first = Instant::now() + Duration::from_secs_f64(load[0].0);
    let watcher = {
        let done = Arc::clone(&done);
        std::thread::spawn(move || watch(admin, first, &done))
    };
    let start = Instant::now();
    let requests: Vec<_> = load
        .into_iter()
        .enumerate()
        .map(|(i, (at, prompt))| {
            std::thread::spawn(move || {
                let due = start + Duration::from_secs_f64(at);
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                let since = Instant::now().saturating_duration_since(first).as_secs_f64();
                (since, ask(clients, i, prompt))
            })
        })
        .collect();
    let count = requests.len();
    let ttft: Vec<_> =
        requests.into_iter().map(|request| request.join().expect("answered")).collect();
    eprintln!("{count} requests answered in {:.0} s", start.elapsed().as_secs_f64());
    done.store(true, Ordering::Relaxed);
    let replicas = watcher.join().expect("watched");
    drop(child);
    Live { ttft, replicas }
}

/// Samples the replicas of every state twenty times a second.
fn watch(admin: SocketAddr, from: Instant, done: &AtomicBool) -> Watched {
    let (mut watched, mut last, mut count) = (Watched::default(), from, 0);
    while !done.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(50));
        let now = Instant::now();
        let passed = now.saturating_duration_since(last).as_secs_f64();
        watched.replica_seconds += passed * f64::from(count);
        last = now.max(last);
        let mut feed = TcpStream::connect(admin).expect("admin port");
        let ask = format!("GET /replicas HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\n\r\n");
        feed.write_all(ask.as_bytes()).expect("sent");
        let mut text = String::new();
        feed.read_to_string(&mut text).expect("read");
        assert!(text.contains(" 200 "), "{text}");
        count = text.matches("\"state\":").count() as u32;
        let ready = text.matches("\"state\":\"ready\"").count() as u32;
        let at = now.saturating_duration_since(from).as_secs_f64();
        watched.samples.push((at, count, ready));
    }
    watched
}

/// Streams one completion and returns the seconds to its first event.
fn ask(address: SocketAddr, i: usize, prompt: usize) -> f64 {
    let mut tokens = String::new();
    for at in 0..prompt {
        // No two prompts begin alike, so that no cache helps; four bytes make a token.
        let _ = write!(tokens, "{}{}", if at == 0 { "" } else { "," }, 100 + (i * 97 + at) % 900);
    }
    // The answer ends on its own before it has 256 tokens.
    let body =
        format!("{{\"model\":\"sim\",\"stream\":true,\"max_tokens\":256,\"prompt\":[{tokens}]}}");
    let begun = Instant::now();
    let mut client = TcpStream::connect(address).expect("clients' port");
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    client.write_all((head + &body).as_bytes()).expect("sent");
    let mut lines = BufReader::new(client).lines().map_while(Result::ok);
    let status = lines.next().expect("a status");
    assert!(status.contains("200"), "{status}: {:?}", lines.collect::<Vec<_>>());
    let first = lines.find(|line| line.starts_with("data: ")).map(|_| begun.elapsed());
    assert!(lines.any(|line| line == "data: [DONE]"), "request {i} ended early");
    first.expect("a token").as_secs_f64()
}

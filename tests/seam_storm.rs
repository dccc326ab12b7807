//! Replicas that are killed one after the other, under streams that outlast several of them: every client
//! gets the whole text.
//!
//! `FOREBAY_STORM=STREAMS,SECONDS,ENOUGH` plays a longer one: so many replicas have room for all streams.
//! With `--nocapture` it prints the pauses, the times to a first token that fresh requests see meanwhile, and
//! the CPU time. `FOREBAY_BINARY` names an optimized `forebay`.

mod support;

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use support::reply::{Reply, ask, parse};
use support::sims::{Folder, Sim};
use support::{Forebay, connect, eventually, post};

const CHAT: &str = "/v1/chat/completions";
const REPLICAS: usize = 8;
/// Milliseconds for each token.
const STEP_MS: u64 = 200;

fn body(n: usize, tokens: u64, stream: bool) -> String {
    let mut body = json!({
        "model": "sim", "stream": stream, "max_tokens": tokens, "ignore_eos": true,
        "messages": [{"role": "user", "content": format!("story {n}")}],
    });
    if stream {
        body["stream_options"] = json!({"include_usage": true});
    }
    body.to_string()
}

/// The sum of `count` fields of a line of `/proc` from the `skip`th on, in seconds.
fn seconds_in(file: &str, skip: usize, count: usize) -> f64 {
    let stat = std::fs::read_to_string(file).expect("Linux");
    let fields = stat.lines().next().expect("a line").split_whitespace();
    let ticks = fields.skip(skip).take(count).map(|ticks| ticks.parse::<f64>().expect("a number"));
    ticks.sum::<f64>() / 100.0
}

/// The CPU seconds of a process, and the seconds that the machine's processors were idle.
fn cpu(pid: u32) -> [f64; 2] {
    [seconds_in(&format!("/proc/{pid}/stat"), 13, 2), seconds_in("/proc/stat", 4, 1)]
}

/// Prints quantiles of these figures in milliseconds.
fn print(name: &str, mut ms: Vec<f64>) {
    ms.sort_by(f64::total_cmp);
    let at = |share: f64| ms.get((ms.len() as f64 * share) as usize).or(ms.last());
    let [p50, p90, p99, most] = [0.5, 0.9, 0.99, 1.0].map(|share| at(share).expect("some"));
    println!("{name:24} p50 {p50:6.0}  p90 {p90:6.0}  p99 {p99:6.0}  most {most:6.0} ms");
}

/// The values of these fields in the lines of a log that have all of them.
fn fields<const N: usize>(log: &[String], names: [&str; N]) -> Vec<[f64; N]> {
    let values = |line: &String| {
        let line: Value = serde_json::from_str(line).ok()?;
        let found = names.map(|name| line[name].as_f64());
        found.iter().all(Option::is_some).then(|| found.map(Option::unwrap_or_default))
    };
    log.iter().filter_map(values).collect()
}

/// Asks for one token five times a second.
fn probe(gateway: SocketAddr, over: &AtomicBool) {
    for n in 0.. {
        if over.load(Relaxed) {
            return;
        }
        ask(gateway, &post(CHAT, &body(1_000_000 + n, 1, true)));
        thread::sleep(Duration::from_millis(200));
    }
}

/// A thread with a small stack, since there are many.
fn start<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    thread::Builder::new().stack_size(256 << 10).spawn(run).expect("a thread")
}

fn stream(address: SocketAddr, n: usize, tokens: u64) -> Reply {
    let mut connection = connect(address);
    connection.write_all(&post(CHAT, &body(n, tokens, true))).expect("sent");
    let (mut answer, mut piece) = (Vec::new(), [0; 4096]);
    // The pauses of a storm are no end.
    connection.set_read_timeout(Some(Duration::from_secs(120))).expect("set");
    while let Ok(length @ 1..) = connection.read(&mut piece) {
        answer.extend_from_slice(&piece[..length]);
    }
    parse(&answer)
}

/// The text of a stream, its usage, and why it ended.
fn read(reply: &Reply) -> (String, Value, Value) {
    let (mut text, mut usage, mut finish) = (String::new(), Value::Null, Value::Null);
    for event in reply.text().split("\n\n") {
        let data = event.strip_prefix("data: ").filter(|data| *data != "[DONE]");
        let Some(data) = data else { continue };
        let event: Value = serde_json::from_str(data).expect("JSON");
        assert_eq!(event["error"], Value::Null, "{event}");
        let choice = &event["choices"][0];
        text += choice["delta"]["content"].as_str().unwrap_or_default();
        if !choice["finish_reason"].is_null() {
            finish = choice["finish_reason"].clone();
        }
        if !event["usage"].is_null() {
            usage = event["usage"].clone();
        }
    }
    (text, usage, finish)
}

fn ready(forebay: &Forebay, count: usize) {
    eventually(&format!("{count} endpoints are ready"), || {
        let signals = forebay.signals();
        let endpoints = signals["endpoints"].as_object().expect("endpoints").values();
        endpoints.filter(|endpoint| endpoint["health"] == "ready").count() == count
    });
}

#[test]
fn every_text_is_whole_while_replicas_are_killed_one_after_the_other() {
    let given = std::env::var("FOREBAY_STORM").unwrap_or_else(|_| "48,8,7".to_owned());
    let given: Vec<usize> =
        given.split(',').map(|number| number.parse().expect("a number")).collect();
    let [streams, seconds, enough] = given[..] else { panic!("not STREAMS,SECONDS,ENOUGH") };
    let seconds = seconds as u64;
    let step = STEP_MS.to_string();
    let mut sims: Vec<Sim> =
        (0..REPLICAS).map(|_| Sim::start(&["--decode-step-ms", &step])).collect();
    let folder = Folder::new();
    let addresses: Vec<_> = sims.iter().map(|sim| format!("\"{}\"", sim.address)).collect();
    let room = streams.div_ceil(enough) + 4;
    let mut forebay = folder.gateway(&format!(
        "gateway: {{listen: 127.0.0.1:0}}\nadmin: {{listen: 127.0.0.1:0}}\npools:\n- name: p\n  \
         models: [sim]\n  pick: leastLoad\n  maxInFlight: {room}\n  endpoints: [{}]\n",
        addresses.join(", "),
    ));
    ready(&forebay, REPLICAS);
    let tokens = seconds * 1000 / STEP_MS;
    let gateway = forebay.address;
    let (began, before) = (SystemTime::now(), cpu(forebay.pid()));
    let over = Arc::new(AtomicBool::new(false));
    let probing = start({
        let over = Arc::clone(&over);
        move || probe(gateway, &over)
    });
    let running: Vec<_> = (0..streams).map(|n| start(move || stream(gateway, n, tokens))).collect();
    // Each is back two seconds later, when the next one goes.
    for kill in 0..usize::try_from(seconds / 2).expect("small") {
        let victim = &mut sims[kill % REPLICAS];
        victim.signal("KILL");
        victim.wait_for_end();
        thread::sleep(Duration::from_secs(2));
        victim.restart();
    }
    let replies: Vec<_> = running.into_iter().map(|stream| stream.join().expect("read")).collect();
    over.store(true, Relaxed);
    probing.join().expect("no panic");
    let (took, after) = (began.elapsed().expect("later").as_secs_f64(), cpu(forebay.pid()));
    let whole = Sim::start(&["--decode-step-ms", "0"]);
    for (n, reply) in replies.iter().enumerate() {
        assert!(reply.whole && reply.status == 200, "{n}: {reply:?}");
        let want = ask(whole.address, &post(CHAT, &body(n, tokens, false)));
        let want: Value = serde_json::from_slice(&want.body).expect("JSON");
        let (text, usage, finish) = read(reply);
        assert_eq!(text, want["choices"][0]["message"]["content"], "{n}");
        assert_eq!(usage["completion_tokens"], want["usage"]["completion_tokens"], "{n}");
        assert_eq!(usage["prompt_tokens"], want["usage"]["prompt_tokens"], "{n}");
        assert_eq!(finish, "length", "{n}");
    }
    let series = "forebay_continuation_pause_seconds_count{pool=\"p\"}";
    let continued = forebay.metric(series).unwrap_or(0.0);
    assert!(continued >= 1.0, "nobody was at a replica that was killed");
    println!("{streams} streams of {tokens} tokens, continued {continued} times");
    let [spent, idle] = [0, 1].map(|at| after[at] - before[at]);
    println!("{took:.1} s; CPU seconds: the gateway {spent:.1}, idle {idle:.1}");
    let log = forebay.logged();
    let pauses = fields(log, ["paused_ms", "held_ms"]);
    print("pauses", pauses.iter().map(|[all, _]| *all).collect());
    print("waiting for room", pauses.iter().map(|[_, held]| *held).collect());
    print("the rest of the pause", pauses.iter().map(|[all, held]| all - held).collect());
    let fresh = fields(log, ["upstream_ttft_ms", "generated_tokens"]);
    let fresh = fresh.into_iter().filter(|[_, tokens]| *tokens == 1.0);
    print("first tokens meanwhile", fresh.map(|[ttft, _]| ttft).collect());
}

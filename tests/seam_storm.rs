//! Replicas that are killed one after the other, under streams that outlast several of them: every client
//! gets the whole text.
//!
//! `FOREBAY_STORM=STREAMS,SECONDS cargo test --release --test seam_storm -- --nocapture` plays a longer
//! one, and prints the pauses.

mod support;

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::{Value, json};
use support::reply::{Reply, ask, parse};
use support::sims::{Folder, Sim};
use support::{Forebay, connect, eventually, get, post};

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
    let given = std::env::var("FOREBAY_STORM").unwrap_or_else(|_| "48,8".to_owned());
    let (streams, seconds) = given.split_once(',').expect("STREAMS,SECONDS");
    let streams: usize = streams.parse().expect("a number");
    let seconds: u64 = seconds.parse().expect("a number");
    let step = STEP_MS.to_string();
    let mut sims: Vec<Sim> =
        (0..REPLICAS).map(|_| Sim::start(&["--decode-step-ms", &step])).collect();
    let folder = Folder::new();
    let addresses: Vec<_> = sims.iter().map(|sim| format!("\"{}\"", sim.address)).collect();
    // Seven of the eight have room for all.
    let room = streams.div_ceil(REPLICAS - 1) + 4;
    let forebay = folder.gateway(&format!(
        "gateway: {{listen: 127.0.0.1:0}}\nadmin: {{listen: 127.0.0.1:0}}\npools:\n- name: p\n  \
         models: [sim]\n  pick: leastLoad\n  maxInFlight: {room}\n  endpoints: [{}]\n",
        addresses.join(", "),
    ));
    ready(&forebay, REPLICAS);
    let tokens = seconds * 1000 / STEP_MS;
    let gateway = forebay.address;
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
    println!("{streams} streams of {tokens} tokens, continued {continued} times; the pauses:");
    let metrics = get(forebay.admin, "/metrics");
    let pauses = metrics.lines().filter(|line| line.starts_with("forebay_continuation_pause"));
    pauses.for_each(|line| println!("{line}"));
}

//! Streams whose real vLLM is lost, and with which a second one goes on: each client gets the tokens of
//! an unbroken run.
//!
//! `FOREBAY_VLLM_SEAMS=STREAMS,TOKENS` plays every kind of loss with so many streams; it starts a server
//! anew after each that ends one.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::server::Server;
use crate::support::reply::{Reply, ask};
use crate::support::sims::Folder;
use crate::support::streams::{CHAT, Running, chat, events};
use crate::support::{Forebay, eventually, kill, post};

/// A loss of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    /// The engine hangs, and wakes later.
    EngineHangs,
    /// The server is asked to end, and aborts its requests.
    Terminated,
    /// The engine's worker dies.
    WorkerDies,
    /// The API server dies.
    ServerDies,
}

/// The parts of an answer that must be those of an unbroken run.
#[derive(Debug, PartialEq)]
struct Answer {
    ids: Vec<Value>,
    text: String,
    finish: Value,
    usage: [Value; 2],
}

/// A chat for `tokens` tokens; half of the clients ask for their ids themselves.
fn body(n: usize, tokens: u32) -> Value {
    let more =
        json!({"model": "tiny", "temperature": 0, "stream_options": {"include_usage": true}});
    let mut body = chat(n, tokens, more);
    if n.is_multiple_of(2) {
        body["return_token_ids"] = true.into();
    }
    body
}

fn answer(reply: &Reply) -> Answer {
    assert!(reply.whole && reply.status == 200, "{reply:?}");
    let events = events(reply);
    let mut answer =
        Answer { ids: vec![], text: String::new(), finish: Value::Null, usage: Default::default() };
    let mut roles = 0;
    for event in &events {
        assert_eq!(event["error"], Value::Null, "{event}");
        for name in ["id", "created", "model"] {
            assert_eq!(event[name], events[0][name], "{event}");
        }
        let choice = &event["choices"][0];
        roles += usize::from(choice["delta"]["role"].is_string());
        answer.ids.extend(choice["token_ids"].as_array().into_iter().flatten().cloned());
        answer.text += choice["delta"]["content"].as_str().unwrap_or_default();
        if !choice["finish_reason"].is_null() {
            answer.finish = choice["finish_reason"].clone();
        }
        if !event["usage"].is_null() {
            answer.usage =
                ["prompt_tokens", "completion_tokens"].map(|of| event["usage"][of].clone());
        }
    }
    assert_eq!(roles, 1, "one beginning");
    answer
}

/// The answers of this server to all streams at the same time.
fn unbroken(server: SocketAddr, streams: usize, tokens: u32) -> Vec<Answer> {
    std::thread::scope(|scope| {
        let one = |n| move || answer(&ask(server, &post(CHAT, &body(n, tokens).to_string())));
        let all: Vec<_> = (0..streams).map(|n| scope.spawn(one(n))).collect();
        all.into_iter().map(|one| one.join().expect("no panic")).collect()
    })
}

fn gateway(folder: &Folder, servers: [SocketAddr; 2]) -> Forebay {
    let [first, second] = servers;
    let forebay = folder.gateway(&format!(
        "gateway: {{listen: 127.0.0.1:0}}\nadmin: {{listen: 127.0.0.1:0}}\npools:\n\
         - {{name: p, models: [tiny], endpoints: ['{first}', '{second}'], pick: leastLoad, \
         upstream: {{stallTimeout: 5s}}}}\n"
    ));
    eventually("both are ready", || {
        let endpoints = forebay.signals()["endpoints"].as_object().cloned().unwrap_or_default();
        endpoints.values().filter(|endpoint| endpoint["health"] == "ready").count() == 2
    });
    forebay
}

/// Starts all streams at the same time, and waits until each has begun.
fn start(gateway: SocketAddr, streams: usize, tokens: u32) -> Vec<Running> {
    std::thread::scope(|scope| {
        let one = |n| move || Running::start(gateway, CHAT, &body(n, tokens));
        let all: Vec<_> = (0..streams).map(|n| scope.spawn(one(n))).collect();
        all.into_iter().map(|one| one.join().expect("no panic")).collect()
    })
}

/// Loses one of two servers under streams, and compares their answers.
fn lose(loss: Loss, victim: &Server, other: SocketAddr, (streams, tokens): (usize, u32)) {
    let want = unbroken(other, streams, tokens);
    let again = unbroken(other, streams, tokens);
    let equal = want.iter().zip(&again).filter(|(one, other)| one == other).count();
    assert_eq!(equal, streams, "unbroken runs that are equal");
    let folder = Folder::new();
    let forebay = gateway(&folder, [victim.address, other]);
    let running = start(forebay.address, streams, tokens);
    // The engine stands still, so its streams can't end before it is lost.
    let engine = victim.process("VLLM::EngineCore");
    kill(engine, "STOP");
    let mut lost = 0;
    eventually("streams are at the victim", || {
        let endpoint = &forebay.signals()["endpoints"][victim.address.to_string()];
        lost = endpoint["inFlight"].as_u64().unwrap_or_default();
        lost > 0
    });
    match loss {
        Loss::EngineHangs => {}
        Loss::Terminated => {
            kill(victim.pid(), "TERM");
            kill(engine, "CONT");
        }
        Loss::WorkerDies => {
            kill(victim.process("VLLM::Worker"), "KILL");
            kill(engine, "CONT");
        }
        Loss::ServerDies => kill(victim.pid(), "KILL"),
    }
    let replies: Vec<_> = running.into_iter().map(Running::end).collect();
    if loss == Loss::EngineHangs {
        kill(engine, "CONT");
    }
    for (n, (reply, mut want)) in replies.iter().zip(want).enumerate() {
        if !n.is_multiple_of(2) {
            want.ids.clear();
        }
        assert_eq!(answer(reply), want, "{loss:?}, stream {n}");
    }
    let of = |part: &str| format!("forebay_continuation_{part}{{pool=\"p\"}}");
    let value = |part: &str| forebay.metric(&of(part)).unwrap_or_default();
    let continued = value("pause_seconds_count");
    eprintln!(
        "{loss:?}: {lost} of {streams} streams of {tokens} tokens lost their server, continued \
         {continued} times after {:.2} s each, of which {:.2} s with room elsewhere",
        value("pause_seconds_sum") / continued,
        value("upstream_seconds_sum") / continued,
    );
    // Some may have ended since they were counted.
    assert!(continued >= 1.0 && continued <= streams as f64, "{loss:?}");
}

/// Plays losses of the first of two servers; of every kind if `FOREBAY_VLLM_SEAMS` is set.
pub(crate) fn play([mut victim, other]: [Server; 2]) {
    let Ok(given) = std::env::var("FOREBAY_VLLM_SEAMS") else {
        for loss in [Loss::EngineHangs, Loss::ServerDies] {
            lose(loss, &victim, other.address, (8, 300));
        }
        return;
    };
    let (streams, tokens) = given.split_once(',').expect("STREAMS,TOKENS");
    let size = (streams.parse().expect("a number"), tokens.parse().expect("a number"));
    lose(Loss::EngineHangs, &victim, other.address, size);
    for loss in [Loss::Terminated, Loss::WorkerDies, Loss::ServerDies] {
        lose(loss, &victim, other.address, size);
        if loss != Loss::ServerDies {
            victim.wait();
            victim = Server::start(&[]);
        }
    }
}

//! Two real vLLMs, whose prefix caches are on by default, behind different `pick` policies: the share
//! of the prompts' tokens that was found in their caches, by their own counters.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::support::sims::Folder;
use crate::support::{eventually, exchange, get, json as body, post, status};

/// Chats at the same time, chats of each one after another, and turns of a chat.
const AT_ONCE: usize = 4;
const CHATS: usize = 3;
const TURNS: usize = 3;

const WORDS: [&str; 12] = [
    "the", "and", "file", "with", "that", "this", "from", "version", "number", "system", "other",
    "name",
];

/// A text that no other seed has, in its first words already.
fn text(seed: usize, words: usize) -> String {
    let mut state = seed as u64 + 1;
    let mut word = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        WORDS[(state >> 33) as usize % WORDS.len()]
    };
    (0..words).map(|_| word()).collect::<Vec<_>>().join(" ")
}

/// Plays one chat to its end.
fn chat(gateway: SocketAddr, seed: usize) {
    let mut messages: Vec<Value> = Vec::new();
    for turn in 0..TURNS {
        let words = if turn == 0 { 400 } else { 60 };
        messages.push(json!({"role": "user", "content": text(seed * 10 + turn, words)}));
        let request = json!({"model": "tiny", "max_tokens": 8, "messages": messages});
        let answer = exchange(gateway, &post("/v1/chat/completions", &request.to_string()));
        assert_eq!(status(&answer), 200, "{answer}");
        let content = body(&answer)["choices"][0]["message"]["content"].clone();
        messages.push(json!({"role": "assistant", "content": content}));
    }
}

/// The sum of a counter over both servers.
fn counter(servers: &[SocketAddr], name: &str) -> f64 {
    let of = |server: &SocketAddr| {
        let text = get(*server, "/metrics");
        let values = text.lines().filter(|line| line.starts_with(name));
        values.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>()
    };
    servers.iter().map(of).sum()
}

/// The share of the prompts' tokens that is found in caches under a policy.
fn hit_share(servers: &[SocketAddr], pick: &str, seed: usize) -> f64 {
    let folder = Folder::new();
    let list: Vec<_> = servers.iter().map(|address| format!("'{address}'")).collect();
    let forebay = folder.gateway(&format!(
        "gateway: {{listen: 127.0.0.1:0}}\nadmin: {{listen: 127.0.0.1:0}}\npools:\n\
         - {{name: p, models: [tiny], endpoints: [{}], pick: {pick}}}\n",
        list.join(", ")
    ));
    eventually("both are ready", || {
        let endpoints = forebay.signals()["endpoints"].as_object().cloned().unwrap_or_default();
        endpoints.values().filter(|endpoint| endpoint["health"] == "ready").count() == 2
    });
    let counts = || {
        ["vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total"]
            .map(|name| counter(servers, name))
    };
    let before = counts();
    std::thread::scope(|scope| {
        for client in 0..AT_ONCE {
            let gateway = forebay.address;
            scope.spawn(move || {
                (0..CHATS).for_each(|number| chat(gateway, seed + client * CHATS + number));
            });
        }
    });
    let after = counts();
    (after[1] - before[1]) / (after[0] - before[0]).max(1.0)
}

pub(crate) fn compare(servers: &[SocketAddr]) {
    let turns = hit_share(servers, "roundRobin", 100);
    let affinity = hit_share(servers, "prefixAffinity", 200);
    eprintln!("found in caches: roundRobin {turns:.3}, prefixAffinity {affinity:.3}");
    // By turns, a chat finds its beginning with luck: from a quarter to nearly all that affinity finds.
    assert!(affinity > 0.45, "{affinity}");
    assert!(affinity > turns, "{affinity} against {turns}");
}

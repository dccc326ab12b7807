//! The choice of a replica, with real gateways in front of simulated servers with prefix caches.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use support::sims::{Folder, Sim};
use support::{Forebay, eventually, exchange, json, post, status};

const REPLICAS: usize = 8;
const PROMPTS: usize = 24;

/// A chat whose prompt of some 3,000 bytes begins like no other.
fn request(number: usize) -> Vec<u8> {
    let text = format!("topic {number:04} ").repeat(240);
    post(
        "/v1/chat/completions",
        &format!(
            r#"{{"model":"sim","max_tokens":2,"messages":[{{"role":"user","content":"{text}"}}]}}"#
        ),
    )
}

/// The prompt's tokens that the replica remembered.
fn cached(forebay: &Forebay, request: &[u8]) -> u64 {
    let answer = exchange(forebay.address, request);
    assert_eq!(status(&answer), 200, "{answer}");
    json(&answer)["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0)
}

/// The requests that each endpoint has completed for this gateway.
fn completed(forebay: &Forebay) -> BTreeMap<String, u64> {
    let endpoints = forebay.signals()["endpoints"].as_object().cloned().expect("endpoints");
    let count = |endpoint: &serde_json::Value| endpoint["completed"].as_u64().unwrap_or(0);
    endpoints.iter().map(|(address, endpoint)| (address.clone(), count(endpoint))).collect()
}

/// Sends each prompt once. Returns the endpoint that each went to, and the tokens remembered there.
fn places(forebay: &Forebay) -> Vec<(String, u64)> {
    let mut before = completed(forebay);
    let place = |number| {
        let cached = cached(forebay, &request(number));
        let mut to = None;
        eventually("the gateway counts the answer", || {
            let after = completed(forebay);
            to = after
                .iter()
                .find(|(at, count)| before.get(*at) != Some(count))
                .map(|(at, _)| at.clone());
            before = after;
            to.is_some()
        });
        (to.expect("just seen"), cached)
    };
    (0..PROMPTS).map(place).collect()
}

fn gateway(folder: &Folder, replicas: &[Sim]) -> Forebay {
    let list: Vec<_> = replicas.iter().map(|sim| format!("'{}'", sim.address)).collect();
    let forebay = folder.gateway(&format!(
        "gateway: {{listen: 127.0.0.1:0}}\nadmin: {{listen: 127.0.0.1:0}}\npools:\n\
         - {{name: p, models: [sim], endpoints: [{}]}}\n",
        list.join(", ")
    ));
    eventually("all endpoints are ready", || {
        let endpoints = forebay.signals()["endpoints"].as_object().cloned().unwrap_or_default();
        endpoints.values().filter(|endpoint| endpoint["health"] == "ready").count() == REPLICAS
    });
    forebay
}

#[test]
fn two_gateways_that_never_talk_send_a_prompt_to_the_same_replica() {
    let start = |_| Sim::start(&["sim", "--enable-prompt-tokens-details"]);
    let replicas: Vec<Sim> = (0..REPLICAS).map(start).collect();
    let (one, other) = (Folder::new(), Folder::new());
    let (one, other) = (gateway(&one, &replicas), gateway(&other, &replicas));
    let first = places(&one);
    let second = places(&other);
    let used: BTreeSet<&String> = first.iter().map(|(at, _)| at).collect();
    assert!(used.len() >= REPLICAS / 2, "prompts are spread: {used:?}");
    // On a busy machine a replica may look slow, and then a prompt goes elsewhere. By chance alone
    // three of them would agree.
    let agreed = first.iter().zip(&second).filter(|((one, _), (other, _))| one == other);
    let agreed = agreed.count();
    assert!(agreed >= PROMPTS * 5 / 6, "{agreed}: {first:?} {second:?}");
    let found = second.iter().filter(|(_, cached)| *cached > 0).count();
    assert!(found >= agreed, "what one gateway brought there, the other one finds: {second:?}");
    let addresses: BTreeSet<SocketAddr> = replicas.iter().map(|sim| sim.address).collect();
    assert!(used.iter().all(|at| at.parse().is_ok_and(|at| addresses.contains(&at))), "{used:?}");
}

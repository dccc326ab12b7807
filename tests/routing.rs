//! The way from a model's name to its pool, with the real binary in front of simulated servers.

mod support;

use support::sims::{Folder, Sim};
use support::{Forebay, eventually, exchange, get, json, post, status};

const CHAT: &str = "/v1/chat/completions";

fn ask(forebay: &Forebay, model: &str) -> String {
    let body = format!(
        r#"{{"model":"{model}","max_tokens":2,"messages":[{{"role":"user","content":"hello"}}]}}"#
    );
    exchange(forebay.address, &post(CHAT, &body))
}

/// The name under which a server answered.
fn answered_as(forebay: &Forebay, model: &str) -> String {
    let answer = ask(forebay, model);
    assert_eq!(status(&answer), 200, "{model}: {answer}");
    json(&answer)["model"].as_str().unwrap_or_default().to_owned()
}

fn all_ready(forebay: &Forebay, pools: usize) {
    eventually("every pool has a ready endpoint", || {
        let text = get(forebay.admin, "/signals");
        let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        let frame: serde_json::Value = serde_json::from_str(body).expect("JSON");
        let ready = |pool: &&serde_json::Value| {
            let endpoints = pool["endpoints"].as_object().cloned().unwrap_or_default();
            endpoints.values().any(|endpoint| endpoint["health"] == "ready")
        };
        frame["pools"].as_object().is_some_and(|all| all.values().filter(ready).count() == pools)
    });
}

#[test]
fn aliases_adapters_and_names_with_slashes_lead_to_their_pool_and_are_listed() {
    let one =
        Sim::start(&["org/one", "--lora-modules", "loaded=/adapters/loaded", "listed=/adapters/l"]);
    let two = Sim::start(&["two"]);
    let folder = Folder::new();
    let forebay = folder.gateway(&format!(
        "gateway: {{listen: 127.0.0.1:0}}\nadmin: {{listen: 127.0.0.1:0}}\npools:\n\
         - {{name: one, models: [org/one], aliases: {{gpt-4o: org/one}}, adapters: [listed], endpoints: ['{}']}}\n\
         - {{name: two, models: [two], aliases: {{small: two}}, endpoints: ['{}']}}\n\
         - {{name: asleep, models: [asleep], target: {{processes: {{command: [none, '{{port}}']}}}}}}\n",
        one.address, two.address
    ));
    all_ready(&forebay, 2);
    eventually("the gateway knows the adapter", || {
        get(forebay.address, "/v1/models").contains("\"loaded\"")
    });
    for (requested, answered) in [
        ("org/one", "org/one"),
        ("gpt-4o", "org/one"),
        ("listed", "listed"),
        ("loaded", "loaded"),
        ("two", "two"),
        ("small", "two"),
    ] {
        assert_eq!(answered_as(&forebay, requested), answered, "{requested}");
    }

    let unknown = ask(&forebay, "nope");
    assert_eq!(status(&unknown), 404);
    let message = json(&unknown)["error"]["message"].clone();
    let names = "`org/one`, `gpt-4o`, `listed`, `loaded`, `two`, `small`, `asleep`";
    assert_eq!(message, format!("The model `nope` does not exist. Known models: {names}."));

    let list = json(&get(forebay.address, "/v1/models"));
    let models = list["data"].as_array().expect("a list");
    let ids: Vec<_> = models.iter().map(|model| model["id"].as_str().expect("text")).collect();
    assert_eq!(ids, ["org/one", "gpt-4o", "listed", "loaded", "two", "small", "asleep"]);
    let of = |id: &str| models.iter().find(|model| model["id"] == id).expect("listed");
    assert_eq!(
        (&of("loaded")["parent"], &of("listed")["parent"]),
        (&"org/one".into(), &"org/one".into())
    );
    assert_eq!((&of("gpt-4o")["root"], &of("gpt-4o")["parent"]), (&"org/one".into(), &().into()));
    assert_eq!(of("org/one")["max_model_len"], 32_768);
    assert_eq!(
        get(forebay.address, "/v1/models").split_once("\r\n\r\n").map(|(_, body)| body.to_owned()),
        get(forebay.address, "/v1/models").split_once("\r\n\r\n").map(|(_, body)| body.to_owned()),
        "stable"
    );

    for path in ["/v1/models/org/one", "/v1/models/org%2Fone", "/v1/models/org%2fone"] {
        let one = get(forebay.address, path);
        assert_eq!((status(&one), &json(&one)["id"]), (200, &"org/one".into()), "{path}");
    }
    assert_eq!(status(&get(forebay.address, "/v1/models/nope")), 404);
    for (path, want) in [("/v1/models/two", 200), ("/v1/models/nope", 404), ("/v1/models", 200)] {
        let head = format!("HEAD {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        let answer = exchange(forebay.address, head.as_bytes());
        assert_eq!(status(&answer), want, "HEAD {path}");
        assert!(answer.ends_with("\r\n\r\n"), "no body: {answer}");
    }
}

#[test]
fn a_split_sends_each_pool_its_part_and_a_session_always_to_the_same_pool() {
    let (old, new) = (Sim::start(&["old"]), Sim::start(&["new"]));
    let folder = Folder::new();
    let forebay = folder.gateway(&format!(
        "gateway:\n  listen: 127.0.0.1:0\n  routes: [{{model: chat, pools: [{{pool: old, weight: 3}}, {{pool: new}}]}}]\n\
         admin: {{listen: 127.0.0.1:0}}\npools:\n\
         - {{name: old, models: [old], endpoints: ['{}']}}\n- {{name: new, models: [new], endpoints: ['{}']}}\n",
        old.address, new.address
    ));
    all_ready(&forebay, 2);
    let side = |session: usize, text: &str| {
        let body = format!(
            r#"{{"model":"chat","max_tokens":1,"messages":[{{"role":"user","content":"{text}"}}]}}"#
        );
        let head = format!(
            "POST {CHAT} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nx-session-id: {session}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer = exchange(forebay.address, head.as_bytes());
        assert_eq!(status(&answer), 200, "{answer}");
        json(&answer)["model"].as_str().expect("text").to_owned()
    };
    let sides: Vec<_> = (0..40).map(|session| side(session, "hello")).collect();
    let new = sides.iter().filter(|side| *side == "new").count();
    assert!((3..=20).contains(&new), "{new} of 40 at a quarter");
    for (session, before) in sides.iter().enumerate() {
        assert_eq!(side(session, "something else"), *before, "session {session}");
    }
}

#[test]
fn a_fallback_serves_requests_that_the_pool_cannot_serve_in_time() {
    let small = Sim::start(&["small"]);
    let busy = Sim::start(&["busy", "--decode-step-ms", "50"]);
    let folder = Folder::new();
    // `busy` takes one request at a time and holds none; `slow` gets a moment to start, and never
    // does; `alone` has no fallback.
    let forebay = folder.gateway(&format!(
        "gateway: {{listen: 127.0.0.1:0}}\nadmin: {{listen: 127.0.0.1:0}}\npools:\n\
         - {{name: small, models: [small], endpoints: ['{}']}}\n\
         - {{name: busy, models: [busy], endpoints: ['{}'], maxInFlight: 1, hold: {{maxRequests: 0}}, fallback: {{pool: small}}}}\n\
         - {{name: slow, models: [slow], fallback: {{pool: small, after: 300ms}}, target: {{processes: {{command: [none, '{{port}}']}}}}}}\n\
         - {{name: alone, models: [alone], endpoints: ['127.0.0.1:1'], hold: {{timeout: 300ms}}}}\n",
        small.address, busy.address
    ));
    all_ready(&forebay, 2);
    assert_eq!(answered_as(&forebay, "busy"), "busy", "while it has room");

    let body = r#"{"model":"busy","max_tokens":400,"ignore_eos":true,"stream":true,"messages":[{"role":"user","content":"hello"}]}"#;
    let address = forebay.address;
    let long = std::thread::spawn(move || exchange(address, &post(CHAT, body)));
    eventually("the pool is full", || {
        let text = get(forebay.admin, "/signals");
        let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        let frame: serde_json::Value = serde_json::from_str(body).expect("JSON");
        let busy = &frame["pools"]["busy"];
        busy["inFlight"] == 1 && busy["totals"]["completed"] == 1
    });
    assert_eq!(answered_as(&forebay, "busy"), "small", "its queue is full");
    assert_eq!(answered_as(&forebay, "slow"), "small", "no replica is ready after 300 ms");
    let streamed = long.join().expect("answered");
    assert!(streamed.contains("\"busy\"") && streamed.contains("[DONE]"), "{streamed}");

    let refused = ask(&forebay, "alone");
    assert_eq!(status(&refused), 503, "{refused}");
    assert_eq!(forebay.metric(r#"forebay_fallbacks_total{pool="busy"}"#), Some(1.0));
    assert_eq!(forebay.metric(r#"forebay_fallbacks_total{pool="slow"}"#), Some(1.0));
}

#[test]
fn a_conversation_returns_to_the_replica_that_remembers_it_however_it_is_written() {
    let sims = [(); 3].map(|()| Sim::start(&["m", "--enable-prompt-tokens-details"]));
    let addresses: Vec<_> = sims.iter().map(|sim| format!("'{}'", sim.address)).collect();
    let folder = Folder::new();
    let forebay = folder.gateway(&format!(
        "gateway: {{listen: 127.0.0.1:0}}\nadmin: {{listen: 127.0.0.1:0}}\npools:\n\
         - {{name: p, models: [m], pick: consistentHash, endpoints: [{}]}}\n",
        addresses.join(", ")
    ));
    eventually("three endpoints are ready", || {
        let endpoints = forebay.signals()["endpoints"].as_object().cloned();
        endpoints.is_some_and(|all| {
            all.values().filter(|endpoint| endpoint["health"] == "ready").count() == 3
        })
    });
    // Tokens of the prompt that the replica's cache had.
    let cached = |body: String| {
        let answer = exchange(forebay.address, &post(CHAT, &body));
        assert_eq!(status(&answer), 200, "{answer}");
        json(&answer)["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0)
    };
    for conversation in 0..12 {
        let system = format!("You are assistant {conversation}. ").repeat(30);
        let first = format!(
            r#"{{"model":"m","max_tokens":1,"messages":[{{"role":"system","content":"{system}"}},{{"role":"user","content":"Hi."}}]}}"#
        );
        let second = format!(
            r#"{{ "messages" : [ {{"content":"\u0059{}", "role" : "system"}}, {{"role":"user","content":"Hi."}},
                {{"role":"assistant","content":"Hello."}}, {{"role":"user","content":"How are you?"}} ],
                "max_tokens" : 1, "model" : "m" }}"#,
            &system[1..]
        );
        assert_eq!(cached(first), 0, "conversation {conversation} is new");
        assert!(cached(second) > 100, "conversation {conversation} is remembered");
    }
}

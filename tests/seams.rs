//! Streams whose replica is lost, and that another replica continues: the client gets what it would have
//! got from one replica that never fails.

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use serde_json::{Value, json};
use support::reply::{Reply, ask};
use support::sims::{Folder, Sim};
use support::streams::{CHAT, Running, assert_unbroken, chat, comparable, events};
use support::upstream::{Step, Upstream, plain};
use support::{Forebay, eventually, exchange, post, status};

const COMPLETIONS: &str = "/v1/completions";

/// A gateway in front of these replicas, once all are ready.
struct Setup {
    forebay: Forebay,
    _folder: Folder,
}

impl Setup {
    fn new(sims: &[Sim], pool: &str) -> Self {
        Self::before(sims.iter().map(|sim| sim.address), pool)
    }

    fn before(replicas: impl IntoIterator<Item = SocketAddr>, pool: &str) -> Self {
        let folder = Folder::new();
        let addresses: Vec<_> =
            replicas.into_iter().map(|address| format!("\"{address}\"")).collect();
        let forebay = folder.gateway(&format!(
            "gateway: {{listen: 127.0.0.1:0}}\nadmin: {{listen: 127.0.0.1:0}}\npools:\n- name: p\n  \
             models: [sim]\n  pick: leastLoad\n  endpoints: [{}]\n{pool}",
            addresses.join(", "),
        ));
        ready(&forebay, addresses.len());
        Self { forebay, _folder: folder }
    }

    /// A metric's value, or zero while it has none.
    fn count(&self, series: &str) -> f64 {
        self.forebay.metric(series).unwrap_or(0.0)
    }
}

fn ready(forebay: &Forebay, count: usize) {
    eventually(&format!("{count} endpoints are ready"), || {
        let signals = forebay.signals();
        let endpoints = signals["endpoints"].as_object().expect("endpoints").values();
        endpoints.filter(|endpoint| endpoint["health"] == "ready").count() == count
    });
}

fn sims<const N: usize>(step_ms: &str, more: &[&str]) -> [Sim; N] {
    let flags = [&["--decode-step-ms", step_ms][..], more].concat();
    std::array::from_fn(|_| Sim::start(&flags))
}

fn completion(n: usize, tokens: u32) -> Value {
    json!({
        "model": "sim", "stream": true, "max_tokens": tokens, "ignore_eos": true,
        "prompt": format!("story {n}"), "stream_options": {"include_usage": true},
    })
}

/// Two replicas that pass on the answers of `whole`. The first stream breaks off behind `events`, at
/// either one. After it, they refuse `refusals` requests with `status`.
fn breaking(whole: SocketAddr, events: usize, refusals: usize, status: u16) -> [Upstream; 2] {
    let streams = Arc::new(AtomicUsize::new(0));
    [(); 2].map(|()| {
        let streams = Arc::clone(&streams);
        Upstream::start(move |request| {
            let (path, body) = (request.path(), request.text());
            let turn = match path == "/detokenize" || body.contains("\"stream\"") {
                true => streams.fetch_add(1, SeqCst),
                // A probe for one token.
                false => usize::MAX,
            };
            if (1..=refusals).contains(&turn) {
                return vec![Step::Send(plain(status, "{}"))];
            }
            let mut answer = exchange(whole, &post(path, &body));
            if turn == 0 {
                let mut ends = answer.match_indices("\n\n").map(|(at, end)| at + end.len());
                let end = ends.nth(events - 1).expect("so many events");
                answer.truncate(end);
            }
            vec![Step::Send(answer.into_bytes()), Step::Close]
        })
    })
}

/// A request with further fields.
fn with(mut body: Value, more: Value) -> Value {
    let more = more.as_object().expect("an object").clone();
    body.as_object_mut().expect("an object").extend(more);
    body
}

#[test]
fn streams_of_a_killed_replica_go_on_token_for_token() {
    let mut sims: [Sim; 3] = sims("4", &[]);
    let setup = Setup::new(&sims, "");
    let usage = json!({"stream_options": {"include_usage": true, "continuous_usage_stats": true}});
    let bodies: Vec<(&str, Value)> = (0..12)
        .map(|n| match n % 4 {
            0 if n == 0 => (CHAT, chat(n, 200, json!({"stop": ["#"]}))),
            0 => (CHAT, chat(n, 200, json!({}))),
            1 => (CHAT, chat(n, 200, json!({"logprobs": true, "top_logprobs": 2}))),
            2 => (CHAT, chat(n, 200, usage.clone())),
            _ if n > 8 => (COMPLETIONS, completion(n, 200)),
            _ => (COMPLETIONS, with(completion(n, 200), json!({"logprobs": 2}))),
        })
        .collect();
    let start = |(path, body): &(&str, Value)| Running::start(setup.forebay.address, path, body);
    let running: Vec<_> = bodies.iter().map(start).collect();
    sims[0].signal("KILL");
    let replies: Vec<_> = running.into_iter().map(Running::end).collect();
    for (reply, (path, body)) in replies.iter().zip(&bodies) {
        assert_unbroken(reply, sims[1].address, path, body);
    }
    assert!(setup.count("forebay_continuation_pause_seconds_count{pool=\"p\"}") >= 1.0);
    assert_eq!(setup.count("forebay_requests_total{pool=\"p\",outcome=\"failed\"}"), 0.0);

    // Every replica is lost once, one after the other.
    sims[0].wait_for_end();
    sims[0].restart();
    ready(&setup.forebay, 3);
    let running: Vec<_> = bodies.iter().map(start).collect();
    for n in [1, 2] {
        sims[n].signal("KILL");
        sims[n].wait_for_end();
        sims[n].restart();
        ready(&setup.forebay, 3);
    }
    for (running, (path, body)) in running.into_iter().zip(&bodies) {
        assert_unbroken(&running.end(), sims[1].address, path, body);
    }
}

#[test]
fn streams_of_a_stopped_replica_go_on_whatever_its_end_looks_like() {
    for outcome in ["error", "abort"] {
        let mut sims: [Sim; 2] = sims("4", &["--sigterm-outcome", outcome]);
        let setup = Setup::new(&sims, "");
        let bodies: Vec<_> = (0..6).map(|n| chat(n, 150, json!({}))).collect();
        let start = |body: &Value| Running::start(setup.forebay.address, CHAT, body);
        let running: Vec<_> = bodies.iter().map(start).collect();
        sims[0].signal("TERM");
        for (running, body) in running.into_iter().zip(&bodies) {
            assert_unbroken(&running.end(), sims[1].address, CHAT, body);
        }
        sims[0].wait_for_end();
        let continued = "forebay_continuation_pause_seconds_count{pool=\"p\"}";
        assert!(setup.count(continued) >= 1.0, "{outcome}");
    }
}

#[test]
fn streams_of_a_hung_replica_go_on_after_the_stall_timeout() {
    let sims: [Sim; 2] = sims("4", &[]);
    let setup = Setup::new(&sims, "  upstream: {stallTimeout: 1s}\n");
    let bodies: Vec<_> = (0..4).map(|n| chat(n, 150, json!({}))).collect();
    let start = |body: &Value| Running::start(setup.forebay.address, CHAT, body);
    let running: Vec<_> = bodies.iter().map(start).collect();
    sims[0].signal("STOP");
    for (running, body) in running.into_iter().zip(&bodies) {
        assert_unbroken(&running.end(), sims[1].address, CHAT, body);
    }
    sims[0].signal("CONT");
    let stalled = "forebay_continued_streams_total{pool=\"p\",cause=\"stalled\"}";
    assert!(setup.count(stalled) >= 1.0);
}

#[test]
fn streams_leave_a_replica_that_is_ejected_because_its_engine_hangs() {
    let sims: [Sim; 2] = sims("4", &["--dev"]);
    let setup = Setup::new(&sims, "  upstream: {freezeTimeout: 1s, stallTimeout: 300s}\n");
    let bodies: Vec<_> = (0..4).map(|n| chat(n, 300, json!({}))).collect();
    let start = |body: &Value| Running::start(setup.forebay.address, CHAT, body);
    let running: Vec<_> = bodies.iter().map(start).collect();
    assert_eq!(status(&exchange(sims[0].address, &post("/sim/hang", ""))), 200);
    for (running, body) in running.into_iter().zip(&bodies) {
        assert_unbroken(&running.end(), sims[1].address, CHAT, body);
    }
    let stalled = "forebay_continued_streams_total{pool=\"p\",cause=\"stalled\"}";
    assert!(setup.count(stalled) >= 1.0);
    // Each replica has the tokens that it generated itself.
    let of = |sim: &Sim| {
        let signals = setup.forebay.signals();
        signals["endpoints"][sim.address.to_string()]["generatedTokens"].as_u64().unwrap_or(0)
    };
    eventually("all tokens are counted once", || of(&sims[0]) + of(&sims[1]) == 4 * 300);
    assert!(of(&sims[0]) > 0 && of(&sims[1]) > 2 * 300, "{} {}", of(&sims[0]), of(&sims[1]));
}

#[test]
fn a_stream_is_kept_alive_while_the_next_replica_computes_its_prompt() {
    let fast = Sim::start(&["--decode-step-ms", "4"]);
    // It answers at once, and needs a second for the answer so far.
    let slow = Sim::start(&["--decode-step-ms", "4", "--prefill-tokens-per-second", "60"]);
    let sims = [fast, slow];
    let setup = Setup::new(&sims, "  hold: {heartbeat: 100ms}\n");
    let bodies = [(); 2].map(|()| chat(1, 200, json!({})));
    let start = |body: &Value| Running::start(setup.forebay.address, CHAT, body);
    let running = bodies.each_ref().map(start);
    sims[0].signal("KILL");
    let alone = Sim::start(&[]);
    let mut kept_alive = 0;
    for running in running {
        let mut reply = running.end();
        let text = reply.text();
        kept_alive += text.matches(": waiting\n\n").count();
        reply.body = text.replace(": waiting\n\n", "").into_bytes();
        assert_unbroken(&reply, alone.address, CHAT, &bodies[0]);
    }
    assert!(kept_alive >= 3, "{kept_alive} heartbeats");
}

#[test]
fn a_stream_waits_for_a_replica_and_is_kept_alive() {
    let mut sims: [Sim; 1] = sims("4", &[]);
    let setup = Setup::new(&sims, "  hold: {heartbeat: 200ms}\n");
    let body = chat(1, 150, json!({}));
    let running = Running::start(setup.forebay.address, CHAT, &body);
    sims[0].signal("KILL");
    sims[0].wait_for_end();
    running.wait_for(": waiting\n\n");
    sims[0].restart();
    let mut reply = running.end();
    let text = reply.text();
    assert!(text.contains(": waiting\n\n"), "{text}");
    reply.body = text.replace(": waiting\n\n", "").into_bytes();
    assert_unbroken(&reply, sims[0].address, CHAT, &body);
}

/// The error at the end of a stream.
fn error(reply: &Reply) -> Value {
    events(reply).pop().expect("events")["error"].clone()
}

#[test]
fn a_stream_that_can_not_be_continued_ends_with_an_honest_error() {
    for (name, pool, path, body) in [
        ("off", "  continue: off\n", CHAT, chat(1, 300, json!({}))),
        ("seed", "", CHAT, chat(1, 300, json!({"seed": 7}))),
        ("choices", "", CHAT, chat(1, 300, json!({"n": 2}))),
    ] {
        let sims: [Sim; 2] = sims("4", &[]);
        let setup = Setup::new(&sims, pool);
        let running = [(); 2].map(|()| Running::start(setup.forebay.address, path, &body));
        sims[0].signal("KILL");
        let replies = running.map(Running::end);
        let broken: Vec<_> = replies.iter().filter(|reply| !error(reply).is_null()).collect();
        assert_eq!(broken.len(), 1, "{name}");
        assert_eq!(error(broken[0])["code"], 502, "{name}");
        let series = format!(
            "forebay_not_continued_streams_total{{pool=\"p\",cause=\"connection\",reason=\"{name}\"}}"
        );
        assert_eq!(setup.count(&series), 1.0, "{name}");
    }
}

#[test]
fn a_replica_that_would_begin_anew_is_passed_over() {
    let [one, old, other] = [&[][..], &["--ignore-prompt-token-ids"], &[]].map(|more| {
        let mut flags = vec!["--decode-step-ms", "4"];
        flags.extend(more);
        Sim::start(&flags)
    });
    let sims = [one, old, other];
    let setup = Setup::new(&sims, "");
    let bodies: Vec<_> = (0..9).map(|n| chat(n, 200, json!({}))).collect();
    let start = |body: &Value| Running::start(setup.forebay.address, CHAT, body);
    let running: Vec<_> = bodies.iter().map(start).collect();
    sims[0].signal("KILL");
    for (running, body) in running.into_iter().zip(&bodies) {
        assert_unbroken(&running.end(), sims[2].address, CHAT, body);
    }
    // Now the old one is alone.
    let running = Running::start(setup.forebay.address, CHAT, &bodies[0]);
    let other = Running::start(setup.forebay.address, CHAT, &bodies[1]);
    sims[2].signal("KILL");
    let replies = [running.end(), other.end()];
    let broken = replies.iter().filter(|reply| !error(reply).is_null()).count();
    assert_eq!(broken, 1, "one of the two was at the old replica");
    let refused =
        "forebay_not_continued_streams_total{pool=\"p\",cause=\"connection\",reason=\"refused\"}";
    assert_eq!(setup.count(refused), 1.0);
}

#[test]
fn a_replica_that_refuses_the_pools_key_is_passed_over() {
    let folder = Folder::new();
    let key = folder.write("key", "ours");
    let keyed = |key| ["--decode-step-ms", "4", "--api-key", key];
    let sims = [keyed("ours"), keyed("another"), keyed("ours")].map(|flags| Sim::start(&flags));
    let setup = Setup::new(&sims, &format!("  apiKeyFile: {key}\n"));
    let bodies: Vec<_> = (0..6).map(|n| chat(n, 200, json!({}))).collect();
    let start = |body: &Value| Running::start(setup.forebay.address, CHAT, body);
    let running: Vec<_> = bodies.iter().map(start).collect();
    // The other one has nothing in flight, and so it is asked first.
    sims[0].signal("KILL");
    let whole = Sim::start(&[]);
    for (running, body) in running.into_iter().zip(&bodies) {
        assert_unbroken(&running.end(), whole.address, CHAT, body);
    }
    assert!(setup.count("forebay_continuation_pause_seconds_count{pool=\"p\"}") >= 1.0);
}

#[test]
fn a_refusal_of_the_moment_is_asked_again() {
    let whole = Sim::start(&["--decode-step-ms", "0"]);
    for (status, path, body) in [
        (429, CHAT, chat(1, 100, json!({}))),
        (408, CHAT, chat(1, 100, json!({}))),
        (429, COMPLETIONS, completion(1, 100)),
    ] {
        let replicas = breaking(whole.address, 20, 1, status);
        let setup = Setup::before(replicas.each_ref().map(|replica| replica.address), "");
        let reply = ask(setup.forebay.address, &post(path, &body.to_string()));
        assert_unbroken(&reply, whole.address, path, &body);
        let series = "forebay_failures_total{pool=\"p\",cause=\"queue_full\"}";
        assert_eq!(setup.count(series), 1.0, "{status} for {path}");
        eventually("it is counted", || {
            setup.count("forebay_continued_streams_total{pool=\"p\",cause=\"connection\"}") == 1.0
        });
    }
}

#[test]
fn a_tool_call_begins_anew_if_nothing_of_it_was_passed_on_and_is_not_continued_otherwise() {
    let flags = ["--decode-step-ms", "0", "--enable-auto-tool-choice", "--tool-call-parser", "any"];
    let whole = Sim::start(&flags);
    let parameters = json!({"type": "object", "properties": {"city": {"type": "string"}}});
    let function = json!({"name": "weather", "parameters": parameters});
    let body = chat(1, 200, json!({"tools": [{"type": "function", "function": function}]}));
    // The ids of calls are drawn by each replica.
    let called = |reply: &Reply| {
        let mut events = comparable(reply);
        for event in &mut events {
            if let Some(call) = event.pointer_mut("/choices/0/delta/tool_calls/0") {
                call.as_object_mut().expect("a call").remove("id");
            }
        }
        events
    };
    let want = called(&ask(whole.address, &post(CHAT, &body.to_string())));
    assert!(want.iter().any(|event| event.to_string().contains("weather")), "{want:?}");
    let last = want.last().expect("events");
    assert_eq!(last["choices"][0]["finish_reason"], "tool_calls");
    for events in [1, 2, 4] {
        let replicas = breaking(whole.address, events, 0, 0);
        let setup = Setup::before(replicas.each_ref().map(|replica| replica.address), "");
        let reply = ask(setup.forebay.address, &post(CHAT, &body.to_string()));
        if events == 1 {
            assert_eq!(called(&reply), want, "only the role was passed on");
            continue;
        }
        assert_eq!(error(&reply)["code"], 502, "{reply:?}");
        let reason = "cause=\"connection\",reason=\"tool_call\"";
        let series = format!("forebay_not_continued_streams_total{{pool=\"p\",{reason}}}");
        assert_eq!(setup.count(&series), 1.0, "{events}");
    }
}

#[test]
fn text_goes_on_where_tools_are_offered() {
    let flags = ["--enable-auto-tool-choice", "--tool-call-parser", "any"];
    let mut sims: [Sim; 2] = sims("4", &flags);
    let setup = Setup::new(&sims, "");
    let tools = json!({"tools": [{"type": "function", "function": {"name": "weather"}}]});
    let tools = with(tools, json!({"tool_choice": "none"}));
    let body = chat(1, 200, tools);
    let running = [(); 2].map(|()| Running::start(setup.forebay.address, CHAT, &body));
    sims[0].signal("KILL");
    for running in running {
        assert_unbroken(&running.end(), sims[1].address, CHAT, &body);
    }
    sims[0].wait_for_end();
    assert!(setup.count("forebay_continuation_pause_seconds_count{pool=\"p\"}") >= 1.0);
}

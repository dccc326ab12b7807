//! Streams that move off replicas that drain: nothing breaks, and the replicas are gone long before the
//! streams would have ended there.

mod support;

use std::net::SocketAddr;

use serde_json::{Value, json};
use support::reply::ask;
use support::sims::{Folder, Sim};
use support::streams::{CHAT, Running, assert_unbroken, chat};
use support::{Forebay, eventually, exchange, kill, post};

/// A step of the simulated replicas.
const STEP: &str = "20";

/// The tokens of a prompt that replicas compute in a second; 0 for all at once.
const AT_ONCE: &str = "0";

/// Gateway and scaler with local replicas that have these flags, and the pool's own fields.
struct Setup {
    forebay: Forebay,
    _folder: Folder,
}

impl Setup {
    fn new(pool: &str, prefill: &str, flags: &[&str]) -> Self {
        let folder = Folder::new();
        let binary = env!("CARGO_BIN_EXE_forebay");
        let flags: String = flags.iter().map(|flag| format!(", '{flag}'")).collect();
        let file = folder.write(
            "config.yaml",
            &format!(
                "gateway: {{listen: 127.0.0.1:0}}\nadmin: {{listen: 127.0.0.1:0}}\npools:\n- name: p\n  \
                 models: [sim]\n  pick: leastLoad\n  continue: auto\n{pool}  target: {{processes: \
                 {{command: ['{binary}', vllm-sim, --port, '{{port}}', --prefill-tokens-per-second, \
                 '{prefill}', --decode-step-ms, '{STEP}', --stop-delay, 100ms{flags}]}}}}\n  scaling: \
                 {{minReplicaCount: 1, maxReplicaCount: 4}}\n"
            ),
        );
        let arguments = ["run", "--config", &file];
        let forebay = Forebay::start(&arguments, "info,forebay_gateway=debug");
        Self { forebay, _folder: folder }
    }

    /// Sets the number of replicas.
    fn set(&self, replicas: u32) {
        let path = format!("/pools/p/override?replicas={replicas}");
        let answer = exchange(self.forebay.admin, &post(&path, ""));
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    /// Sets the number of replicas, and waits until all of them serve.
    fn raise(&self, replicas: u32) {
        self.set(replicas);
        eventually("the replicas are ready", || self.health("ready") == replicas as usize);
    }

    /// How many endpoints have this health.
    fn health(&self, health: &str) -> usize {
        let signals = self.forebay.signals();
        let Some(endpoints) = signals["endpoints"].as_object() else { return 0 };
        endpoints.values().filter(|endpoint| endpoint["health"] == health).count()
    }

    /// The address of a ready endpoint with this many requests.
    fn ready_with(&self, requests: u64) -> Option<String> {
        let signals = self.forebay.signals();
        let mut endpoints = signals["endpoints"].as_object()?.iter();
        let found = endpoints.find(|(_, endpoint)| {
            endpoint["health"] == "ready" && endpoint["inFlight"] == requests
        });
        found.map(|(address, _)| address.clone())
    }

    /// The process of the replica at this address.
    fn process(&self, address: &str) -> u32 {
        let (_, port) = address.rsplit_once(':').expect("a port");
        let has_port = |pid: &u32| {
            let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split('\0').any(|argument| argument == port)
        };
        self.forebay.replicas().into_iter().find(has_port).expect("it runs")
    }

    fn count(&self, series: &str) -> f64 {
        self.forebay.metric(series).unwrap_or(0.0)
    }

    /// Has one stream show what the replicas can do.
    fn warm_up(&self) {
        let first = ask(self.forebay.address, &post(CHAT, &chat(0, 2, json!({})).to_string()));
        assert_eq!(first.status, 200, "{first:?}");
    }
}

const MOVED: &str = "forebay_continued_streams_total{pool=\"p\",cause=\"moved\"}";
const FAILED: &str = "forebay_requests_total{pool=\"p\",outcome=\"failed\"}";

fn start(address: SocketAddr, bodies: &[Value]) -> Vec<Running> {
    bodies.iter().map(|body| Running::start(address, CHAT, body)).collect()
}

#[test]
fn a_replica_is_gone_before_its_streams_end_and_they_go_on_token_for_token() {
    let setup = Setup::new("  drain: {moveAfter: 300ms}\n", AT_ONCE, &[]);
    setup.raise(3);
    setup.warm_up();
    let address = setup.forebay.address;
    // Eighteen answers of half a minute, six at each replica.
    let usage = json!({"stream_options": {"include_usage": true, "continuous_usage_stats": true}});
    let kinds = [
        json!({}),
        json!({"logprobs": true, "top_logprobs": 2}),
        usage,
        json!({"stop": ["no such text"]}),
    ];
    let bodies: Vec<_> = (0..18).map(|n| chat(n, 1_500, kinds[n % 4].clone())).collect();
    let running = start(address, &bodies);
    setup.set(1);
    eventually("two replicas are gone", || setup.forebay.replicas().len() == 1);
    assert_eq!(setup.forebay.signals()["inFlight"], 18, "every stream goes on");
    assert!(setup.count(MOVED) >= 12.0, "{}", setup.count(MOVED));
    let alone = Sim::start(&["--decode-step-ms", "0"]);
    for (running, body) in running.into_iter().zip(&bodies) {
        assert_unbroken(&running.end(), alone.address, CHAT, body);
    }
    assert_eq!(setup.count(FAILED), 0.0);
    assert_eq!(setup.count("forebay_failures_total{pool=\"p\""), 0.0, "no replica has failed");
    let mut forebay = setup.forebay;
    let line = forebay.wait_for("\"continued\":1,");
    assert!(line.contains("\"moved\":1,") && line.contains("\"tries\":1,"), "{line}");
}

#[test]
fn streams_stay_where_they_are_without_room_elsewhere_or_if_they_can_not_be_continued() {
    for (name, pool, more) in [
        ("no room", "  drain: {moveAfter: 0s}\n  maxInFlight: 2\n", json!({})),
        ("never", "  drain: {moveAfter: never}\n", json!({})),
        ("seed", "  drain: {moveAfter: 0s}\n", json!({"seed": 7})),
    ] {
        let setup = Setup::new(pool, AT_ONCE, &[]);
        setup.raise(2);
        setup.warm_up();
        let body = |n| chat(n, 300, more.clone());
        let mut bodies: Vec<_> = (0..4).map(body).collect();
        let mut running = start(setup.forebay.address, &bodies);
        setup.set(1);
        if name == "no room" {
            // They are held, and get the first places.
            let held: Vec<_> = (4..6).map(body).collect();
            running.extend(start(setup.forebay.address, &held));
            bodies.extend(held);
        } else {
            eventually("one drains", || setup.health("draining") == 1);
        }
        let alone = Sim::start(&["--decode-step-ms", "0"]);
        for (running, body) in running.into_iter().zip(&bodies) {
            assert_unbroken(&running.end(), alone.address, CHAT, body);
        }
        assert_eq!((setup.count(MOVED), setup.count(FAILED)), (0.0, 0.0), "{name}");
        eventually("it is gone", || setup.forebay.replicas().len() == 1);
    }
}

#[test]
fn a_stream_stays_if_the_other_replica_would_begin_anew() {
    // All know the field for ids, and none goes on from them.
    let setup = Setup::new("  drain: {moveAfter: 0s}\n", AT_ONCE, &["--ignore-prompt-token-ids"]);
    setup.raise(2);
    setup.warm_up();
    let bodies: Vec<_> = (0..4).map(|n| chat(n, 200, json!({}))).collect();
    let running = start(setup.forebay.address, &bodies);
    setup.set(1);
    let alone = Sim::start(&["--decode-step-ms", "0"]);
    for (running, body) in running.into_iter().zip(&bodies) {
        assert_unbroken(&running.end(), alone.address, CHAT, body);
    }
    assert_eq!((setup.count(MOVED), setup.count(FAILED)), (0.0, 0.0));
}

#[test]
fn a_stream_goes_on_where_it_was_if_the_new_replica_dies() {
    // A move takes seconds: the prompt and the answer so far are computed slowly.
    let setup = Setup::new("  drain: {moveAfter: 0s}\n", "10", &[]);
    setup.raise(2);
    setup.warm_up();
    let bodies: Vec<_> = (0..2).map(|n| chat(n, 500, json!({}))).collect();
    let running = start(setup.forebay.address, &bodies);
    setup.set(1);
    let mut new = None;
    eventually("a stream moves", || {
        new = setup.ready_with(2);
        new.is_some()
    });
    kill(setup.process(&new.expect("just found")), "KILL");
    let alone = Sim::start(&["--decode-step-ms", "0"]);
    for (running, body) in running.into_iter().zip(&bodies) {
        assert_unbroken(&running.end(), alone.address, CHAT, body);
    }
    assert_eq!((setup.count(MOVED), setup.count(FAILED)), (0.0, 0.0));
}

//! Streams that move off replicas that drain: nothing breaks, and the replicas are gone long before the
//! streams would have ended there.

mod support;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use serde_json::{Value, json};
use support::reply::ask;
use support::sims::{Folder, Sim};
use support::streams::{CHAT, Running, assert_unbroken, chat};
use support::upstream::{Received, Step, Upstream, plain, stream_head};
use support::{Forebay, eventually, exchange, kill, post};

/// A step of the simulated replicas.
const STEP: &str = "20";

/// The tokens of a prompt that replicas compute in a second; 0 for all at once.
const AT_ONCE: &str = "0";

/// Gateway and scaler with one pool.
struct Setup {
    forebay: Forebay,
    folder: Folder,
}

impl Setup {
    /// With local replicas that have these flags, and the pool's own fields.
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
        Self { forebay, folder }
    }

    /// In front of these replicas, with the pool's own fields, once all of them serve.
    fn before(endpoints: &[SocketAddr], pool: &str) -> Self {
        let folder = Folder::new();
        let file = folder.write("config.yaml", &before(endpoints, pool));
        let arguments = ["run", "--config", &file];
        let forebay = Forebay::start(&arguments, "info,forebay_gateway=debug");
        let setup = Self { forebay, folder };
        eventually("the replicas are ready", || setup.health("ready") == endpoints.len());
        setup
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

/// An answer to a probe.
const TOKEN: &str = r#"{"choices":[{"index":0,"text":"a","finish_reason":"length"}]}"#;
const MOVED: &str = "forebay_continued_streams_total{pool=\"p\",cause=\"moved\"}";
const FAILED: &str = "forebay_requests_total{pool=\"p\",outcome=\"failed\"}";

/// Streams at one replica, which leave it for these.
struct Leaving {
    setup: Setup,
    running: Vec<Running>,
    _old: Sim,
}

impl Leaving {
    /// `path` and `bodies`: what the streams asked for.
    fn for_these(others: &[Upstream], path: &str, bodies: &[Value]) -> Self {
        let old = Sim::start(&["--decode-step-ms", STEP]);
        let pool = "  drain: {moveAfter: 0s}\n";
        let setup = Setup::before(&[old.address], pool);
        let begin = |body| Running::start(setup.forebay.address, path, body);
        let running = bodies.iter().map(begin).collect();
        let others: Vec<_> = others.iter().map(|other| other.address).collect();
        setup.folder.write("config.yaml", &before(&others, pool));
        setup.forebay.signal("HUP");
        Self { setup, running, _old: old }
    }

    /// Checks that all streams end as if nothing had been.
    fn end(self, path: &str, bodies: &[Value]) -> Setup {
        let alone = Sim::start(&["--decode-step-ms", "0"]);
        for (running, body) in self.running.into_iter().zip(bodies) {
            assert_unbroken(&running.end(), alone.address, path, body);
        }
        self.setup
    }
}

/// The configuration of a pool of these replicas.
fn before(endpoints: &[SocketAddr], pool: &str) -> String {
    let endpoints: Vec<_> = endpoints.iter().map(|address| format!("'{address}'")).collect();
    format!(
        "gateway: {{listen: 127.0.0.1:0}}\nadmin: {{listen: 127.0.0.1:0}}\npools:\n- name: p\n  \
         models: [sim]\n  pick: leastLoad\n  endpoints: [{}]\n{pool}",
        endpoints.join(", ")
    )
}

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

#[test]
fn streams_move_and_held_requests_go_with_the_key_that_the_pool_has_by_then() {
    let slow = ["--decode-step-ms", STEP, "--api-key"];
    let old = Sim::start(&[&slow[..], &["first"]].concat());
    let new = Sim::start(&[&slow[..], &["second"]].concat());
    let folder = Folder::new();
    let key = folder.write("key", "first");
    let pool = format!("  apiKeyFile: {key}\n  maxInFlight: 3\n  drain: {{moveAfter: 0s}}\n");
    let setup = Setup::before(&[old.address], &pool);
    let bodies: Vec<_> = (0..4).map(|n| chat(n, 300, json!({}))).collect();
    let address = setup.forebay.address;
    let running = start(address, &bodies[..3]);
    let held = bodies[3].clone();
    let held = std::thread::spawn(move || Running::start(address, CHAT, &held));
    eventually("one is held", || setup.forebay.signals()["queueDepth"] == 1);
    folder.write("key", "second");
    setup.folder.write("config.yaml", &before(&[new.address], &pool));
    setup.forebay.signal("HUP");
    let alone = Sim::start(&["--decode-step-ms", "0"]);
    let held = held.join().expect("it begins");
    for (running, body) in running.into_iter().chain([held]).zip(&bodies) {
        assert_unbroken(&running.end(), alone.address, CHAT, body);
    }
    assert!(setup.count(MOVED) >= 1.0, "the new replica takes some of them over");
    assert_eq!(setup.count("forebay_failures_total{pool=\"p\""), 0.0, "no replica has failed");
}

#[test]
fn a_replica_that_is_slow_in_a_move_has_not_failed_and_gets_the_stream_later() {
    // One shows nothing for as long as a move may take, the other the head of its answer.
    let is_move = |request: &Received| request.text().contains("return_token_ids");
    let slow = |shows: Vec<u8>| {
        let asked = AtomicUsize::new(0);
        Upstream::start(move |request| match is_move(request) {
            true if asked.fetch_add(1, SeqCst) == 0 => vec![Step::Send(shows.clone()), Step::Hang],
            true => vec![Step::Send(plain(400, "{}"))],
            // A probe for one token.
            false => vec![Step::Send(plain(200, TOKEN))],
        })
    };
    let others = [slow(Vec::new()), slow(stream_head())];
    let path = "/v1/completions";
    let bodies = [json!({
        "model": "sim", "stream": true, "max_tokens": 700, "ignore_eos": true, "prompt": "story",
    })];
    let leave = |other| Leaving::for_these(std::slice::from_ref(other), path, &bodies);
    let leaving = [leave(&others[0]), leave(&others[1])];
    let asked = |other: &Upstream| other.received().iter().filter(|one| is_move(one)).count();
    eventually("both are asked again", || others.iter().all(|other| asked(other) == 2));
    for leaving in leaving {
        let setup = leaving.end(path, &bodies);
        assert_eq!(setup.count("forebay_failures_total{pool=\"p\""), 0.0, "no replica has failed");
        assert_eq!((setup.count(MOVED), setup.count(FAILED)), (0.0, 0.0));
    }
}

#[test]
fn a_stream_goes_on_where_it_was_if_the_new_replica_drains_too() {
    // They begin an answer, and never show that they go on.
    let hangs = || {
        Upstream::start(move |request| match request.text().contains("return_token_ids") {
            true => vec![Step::Send(stream_head()), Step::Hang],
            false => vec![Step::Send(plain(200, TOKEN))],
        })
    };
    let others = [hangs(), hangs()];
    let path = "/v1/completions";
    let bodies = [json!({
        "model": "sim", "stream": true, "max_tokens": 700, "ignore_eos": true, "prompt": "story",
    })];
    let leaving = Leaving::for_these(&others[..1], path, &bodies);
    let asked = || others[0].received().iter().any(|one| one.text().contains("return_token_ids"));
    eventually("the first one is asked", asked);
    let later = before(&[others[1].address], "  drain: {moveAfter: 0s}\n");
    leaving.setup.folder.write("config.yaml", &later);
    leaving.setup.forebay.signal("HUP");
    let setup = leaving.end(path, &bodies);
    assert_eq!((setup.count(MOVED), setup.count(FAILED)), (0.0, 0.0));
}

#[test]
fn replicas_that_turn_no_tokens_into_text_are_sound_and_are_asked_a_few_times() {
    let answers = [(404, "{}"), (405, "{}"), (401, "{}"), (403, "{}"), (429, "{}"), (200, "{}")];
    let others = answers
        .map(|(status, body)| Upstream::start(move |_| vec![Step::Send(plain(status, body))]));
    let bodies: Vec<_> = (0..6).map(|n| chat(n, 250, json!({}))).collect();
    let setup = Leaving::for_these(&others, CHAT, &bodies).end(CHAT, &bodies);
    let asked: usize = others.iter().map(|other| other.received().len()).sum();
    assert!((6..=18).contains(&asked), "asked {asked} times");
    for cause in ["key_refused", "not_served", "not_continued"] {
        let series = format!("forebay_failures_total{{pool=\"p\",cause=\"{cause}\"}}");
        assert_eq!(setup.count(&series), 0.0, "{cause}");
    }
    assert_eq!(setup.health("ready"), others.len());
}

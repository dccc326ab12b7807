//! How many requests a replica gets, in the real binary: when it wakes before a full queue, and where
//! the limit is learned.

mod support;

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use support::sims::{Folder, Sim};
use support::{Forebay, chat, eventually, exchange, get, status};
use tokio::time::Instant;

const REQUESTS: u32 = 40;
const LIMIT: u32 = 16;

/// A figure of the replica's own metrics.
fn figure(page: &str, name: &str) -> u32 {
    let line = page.lines().find(|line| line.starts_with(&format!("{name}{{")));
    let value = line.and_then(|line| line.rsplit_once(' ')).map(|(_, value)| value);
    value.and_then(|value| value.parse::<f64>().ok()).unwrap_or(0.0) as u32
}

/// A gateway in front of a simulated server, with these settings of its pool.
fn gateway(sim: &Sim, folder: &Folder, settings: &str) -> Forebay {
    let forebay = folder.gateway(&format!(
        "gateway: {{listen: 127.0.0.1:0}}\nadmin: {{listen: 127.0.0.1:0}}\npools:\n\
         - {{name: p, models: [sim], endpoints: ['{}'], {settings}}}\n",
        sim.address
    ));
    eventually("the endpoint is ready", || is_ready(&forebay));
    forebay
}

fn is_ready(forebay: &Forebay) -> bool {
    let endpoints = forebay.signals()["endpoints"].clone();
    endpoints.as_object().is_some_and(|all| all.values().any(|one| one["health"] == "ready"))
}

#[test]
fn a_full_queue_reaches_a_replica_that_wakes_no_faster_than_it_answers() {
    // A prompt takes about 30 ms.
    let mut sim = Sim::start(&["sim", "--prefill-tokens-per-second", "300"]);
    let folder = Folder::new();
    let forebay = gateway(&sim, &folder, &format!("maxInFlight: {LIMIT}"));
    sim.signal("KILL");
    sim.wait_for_end();
    eventually("the endpoint is down", || !is_ready(&forebay));
    let address = forebay.address;
    let clients: Vec<_> =
        (0..REQUESTS).map(|_| thread::spawn(move || exchange(address, &chat(true, 400)))).collect();
    eventually("all are held", || forebay.signals()["queueDepth"] == REQUESTS);
    sim.restart();
    let mut most = 0;
    eventually("all have been answered", || {
        let page = get(sim.address, "/metrics");
        let here =
            figure(&page, "vllm:num_requests_running") + figure(&page, "vllm:num_requests_waiting");
        let begun = figure(&page, "vllm:time_to_first_token_seconds_count");
        assert!(here <= 1 + 2 * begun, "{here} when {begun} had begun");
        assert!(here <= LIMIT, "{here}");
        most = most.max(here);
        forebay.signals()["totals"]["completed"] == REQUESTS
    });
    for client in clients {
        assert_eq!(status(&client.join().expect("no panic")), 200);
    }
    assert!(most > LIMIT / 2, "its whole room is used: {most}");
}

#[test]
fn a_learned_limit_settles_where_requests_would_wait_inside_the_replica() {
    // Eight requests run at once, each for about 100 ms.
    let (sim, folder) =
        (Sim::start(&["sim", "--max-num-seqs", "8", "--decode-step-ms", "2"]), Folder::new());
    let forebay = gateway(&sim, &folder, "limit: learned, maxInFlight: 1024");
    let (address, over, began) = (forebay.address, AtomicBool::new(false), Instant::now());
    thread::scope(|scope| {
        for _ in 0..48 {
            scope.spawn(|| {
                // It ends even if the test has failed.
                while !over.load(Relaxed) && began.elapsed() < Duration::from_secs(90) {
                    assert_eq!(status(&exchange(address, &chat(true, 50))), 200);
                }
            });
        }
        eventually("the limit is learned", || {
            let signals = forebay.signals();
            let endpoints = signals["endpoints"].as_object().expect("a map");
            let endpoint = endpoints.values().next().expect("one");
            let learned = ["growing", "waiting", "reported"].map(serde_json::Value::from);
            learned.contains(&endpoint["limitedBy"])
                && endpoint["limit"].as_u64().is_some_and(|limit| limit <= 16)
                && signals["queueDepth"].as_u64().is_some_and(|held| held >= 24)
        });
        over.store(true, Relaxed);
    });
    let (labels, metric) = ("pool=\"p\",endpoint=", "forebay_endpoint_limited");
    let page = get(forebay.admin, "/metrics");
    assert!(page.contains(&format!("{metric}{{{labels}")), "{page}");
}

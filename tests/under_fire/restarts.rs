//! Replicas that restart in turn, about three seconds apart, while answers take five: many requests
//! are in flight at the end of more than one replica, and none of them is to blame.

use std::time::Duration;

use crate::clients::{Requests, in_flight, ready, warm};
use crate::support::sims::{Folder, Sim};
use crate::support::{Forebay, alive, chat, eventually, gateway, kill};

const CLIENTS: usize = 100;
const TOKENS: u32 = 100;
/// The pause between two restarts, as in a rollout.
const PAUSE: Duration = Duration::from_secs(2);

/// Restarts three endpoints in turn while requests are in flight.
fn restart_in_turn(stream: bool) -> (Vec<Sim>, Forebay, Requests) {
    // Requests end with the words of a crash, and no process reports that it was stopped.
    let flags = ["--decode-step-ms", "50", "--sigterm-outcome", "error"];
    let mut sims: Vec<_> = (0..3).map(|_| Sim::start(&flags)).collect();
    let addresses: Vec<_> = sims.iter().map(|sim| sim.address).collect();
    let forebay = gateway(&addresses, &["sim"], "");
    ready(&forebay, 3);
    let requests = Requests::send(forebay.address, CLIENTS, &chat(stream, TOKENS));
    in_flight(&forebay, CLIENTS);
    for sim in &mut sims {
        sim.signal("TERM");
        sim.wait_for_end();
        sim.restart();
        std::thread::park_timeout(PAUSE);
        ready(&forebay, 3);
        // Or else most requests would be at the one that ends next.
        warm(&forebay, CLIENTS);
    }
    (sims, forebay, requests)
}

#[test]
fn restarts_of_static_endpoints_cost_no_plain_request() {
    let (_sims, _forebay, requests) = restart_in_turn(false);
    requests.are_answered();
}

#[test]
fn restarts_of_static_endpoints_break_only_begun_streams() {
    let (_sims, mut forebay, requests) = restart_in_turn(true);
    requests.broken();
    assert!(!forebay.logged().iter().any(|line| line.contains("replicas died")));
}

#[test]
fn restarts_of_local_processes_cost_no_plain_request() {
    let folder = Folder::new();
    let binary = env!("CARGO_BIN_EXE_forebay");
    let config = folder.write(
        "config.yaml",
        &format!(
            "gateway: {{listen: 127.0.0.1:0}}\nadmin: {{listen: 127.0.0.1:0}}\npools:\n- name: p\n  \
             models: [sim]\n  pick: leastLoad\n  target: {{processes: {{command: [{binary}, vllm-sim, sim, --port, \
             \"{{port}}\", --decode-step-ms, \"50\", --sigterm-outcome, error]}}}}\n  \
             scaling: {{minReplicaCount: 3, maxReplicaCount: 3}}\n"
        ),
    );
    let mut forebay = Forebay::start(&["run", "--config", &config], "info,forebay_gateway=debug");
    ready(&forebay, 3);
    let replicas = forebay.replicas();
    warm(&forebay, CLIENTS);
    let requests = Requests::send(forebay.address, CLIENTS, &chat(false, TOKENS));
    in_flight(&forebay, CLIENTS);
    for pid in replicas {
        kill(pid, "TERM");
        eventually("the replica ends", || !alive(pid));
        std::thread::park_timeout(PAUSE);
        ready(&forebay, 3);
        // Or else most requests would be at the one that ends next.
        warm(&forebay, CLIENTS);
    }
    requests.are_answered();
    assert!(!forebay.logged().iter().any(|line| line.contains("replicas died")));
}

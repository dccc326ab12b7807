//! Replicas restarted in turn, some three seconds apart, under answers that take five: many requests
//! are in flight at more than one end of a replica, and none of them is to blame.

use std::time::Duration;

use crate::clients::{Asking, in_flight, ready};
use crate::support::sims::{Folder, Sim};
use crate::support::{Forebay, alive, chat, eventually, gateway, kill};

const CLIENTS: usize = 100;
const TOKENS: u32 = 100;

fn under(stream: bool) -> (Vec<Sim>, Forebay, Asking) {
    // The words for it are those of a crash, and no process on the way says more.
    let flags = ["--decode-step-ms", "50", "--sigterm-outcome", "error"];
    let mut sims: Vec<_> = (0..3).map(|_| Sim::start(&flags)).collect();
    let addresses: Vec<_> = sims.iter().map(|sim| sim.address).collect();
    let forebay = gateway(&addresses, &["sim"], "");
    ready(&forebay, 3);
    let asking = Asking::all(forebay.address, CLIENTS, &chat(stream, TOKENS));
    in_flight(&forebay, CLIENTS);
    for sim in &mut sims {
        sim.signal("TERM");
        sim.ended();
        sim.again();
        std::thread::park_timeout(Duration::from_secs(2));
        ready(&forebay, 3);
    }
    (sims, forebay, asking)
}

#[test]
fn of_endpoints_that_nothing_else_is_known_of_cost_plain_requests_nothing() {
    let (_sims, _forebay, asking) = under(false);
    asking.are_answered();
}

#[test]
fn of_endpoints_that_nothing_else_is_known_of_break_only_begun_streams() {
    let (_sims, mut forebay, asking) = under(true);
    asking.broken();
    assert!(!forebay.logged().iter().any(|line| line.contains("replicas died")));
}

#[test]
fn of_local_processes_cost_plain_requests_nothing() {
    let folder = Folder::new();
    let binary = env!("CARGO_BIN_EXE_forebay");
    let config = folder.write(
        "config.yaml",
        &format!(
            "gateway: {{listen: 127.0.0.1:0}}\nadmin: {{listen: 127.0.0.1:0}}\npools:\n- name: p\n  \
             models: [sim]\n  target: {{processes: {{command: [{binary}, vllm-sim, sim, --port, \
             \"{{port}}\", --decode-step-ms, \"50\", --sigterm-outcome, error]}}}}\n  \
             scaling: {{minReplicaCount: 3, maxReplicaCount: 3}}\n"
        ),
    );
    let mut forebay = Forebay::start(&["run", "--config", &config], "info,forebay_gateway=debug");
    ready(&forebay, 3);
    let replicas = forebay.replicas();
    let asking = Asking::all(forebay.address, CLIENTS, &chat(false, TOKENS));
    in_flight(&forebay, CLIENTS);
    for pid in replicas {
        kill(pid, "TERM");
        eventually("the replica ends", || !alive(pid));
        std::thread::park_timeout(Duration::from_secs(2));
        ready(&forebay, 3);
    }
    asking.are_answered();
    assert!(!forebay.logged().iter().any(|line| line.contains("replicas died")));
}

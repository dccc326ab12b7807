//! A node that loses its power: it sends nothing any more, not even a close. The node is a network
//! namespace whose link goes down, so the test needs the right to make one.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use crate::clients::{Requests, in_flight, ready};
use crate::support::sims::Sim;
use crate::support::{chat, eventually, gateway, get, status};

struct Node {
    name: String,
    address: SocketAddr,
    sim: Option<Child>,
}

fn ip(arguments: &str) -> bool {
    let status = Command::new("ip").args(arguments.split(' ')).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

impl Node {
    /// `None` if this user may not make a network namespace.
    fn start(flags: &[&str]) -> Option<Self> {
        let id = std::process::id();
        let name = format!("fb-{id}");
        // From a network that is reserved for tests.
        let subnet = format!("198.18.{}", id % 250);
        if !ip(&format!("netns add {name}")) {
            return None;
        }
        let address = format!("{subnet}.2:8000").parse().expect("an address");
        let mut node = Self { name, address, sim: None };
        let link = format!("fbv{id}");
        for step in [
            format!("link add {link} type veth peer name up0 netns {}", node.name),
            format!("addr add {subnet}.1/24 dev {link}"),
            format!("link set {link} up"),
            format!("-n {} addr add {subnet}.2/24 dev up0", node.name),
            format!("-n {} link set up0 up", node.name),
        ] {
            assert!(ip(&step), "ip {step}");
        }
        let sim = Command::new("ip")
            .args(["netns", "exec", &node.name, env!("CARGO_BIN_EXE_forebay"), "vllm-sim"])
            .args(["--host", &format!("{subnet}.2"), "--port", "8000"])
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        node.sim = Some(sim.expect("the replica starts"));
        eventually("the node's replica listens", || {
            std::net::TcpStream::connect(address).is_ok() && status(&get(address, "/health")) == 200
        });
        Some(node)
    }

    fn lose_power(&self) {
        assert!(ip(&format!("-n {} link set up0 down", self.name)));
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(sim) = &mut self.sim {
            let _ = sim.kill();
            let _ = sim.wait();
        }
        ip(&format!("netns del {}", self.name));
    }
}

#[test]
fn requests_without_an_answer_are_answered_elsewhere_and_begun_streams_go_on() {
    let flags = ["--decode-step-ms", "50"];
    let Some(node) = Node::start(&flags) else {
        eprintln!("skipped: this user may not make a network namespace");
        return;
    };
    let other = Sim::start(&flags);
    let upstream = "freezeTimeout: 2s, stallTimeout: 300s";
    let forebay = gateway(&[node.address, other.address], &["sim"], upstream);
    ready(&forebay, 2);
    let plain = Requests::send(forebay.address, 6, &chat(false, 100));
    in_flight(&forebay, 6);
    let streams = Requests::send(forebay.address, 6, &chat(true, 200));
    eventually("all streams have begun", || {
        forebay.metric("forebay_ttft_seconds_count").is_some_and(|count| count >= 6.0)
    });
    node.lose_power();
    plain.are_answered();
    assert_eq!(streams.broken(), 0);
}

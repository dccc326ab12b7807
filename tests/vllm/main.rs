//! The gateway in front of a real vLLM: a client cannot tell the two apart, except where
//! docs/conformance.md gives a reason.
//!
//! Skipped, with a note, where no vLLM is installed (`tests/vllm/setup`); with
//! `FOREBAY_REQUIRE_VLLM` set that is a failure. `FOREBAY_VLLM=IP:PORT` names a running one that
//! serves a model as `tiny`.

#[path = "../../loadtests/tests/common/mod.rs"]
mod common;
#[path = "../support/conformance.rs"]
mod list;
mod picks;
mod product;
mod seams;
mod server;
#[path = "../support/mod.rs"]
mod support;
mod traces;

use std::path::Path;
use std::process::Command;

use server::{Server, home};
use support::collector::Collector;
use tokio::sync::Mutex;

/// Held by each test, which keeps all cores busy for a minute.
static ALONE: Mutex<()> = Mutex::const_new(());

/// Whether a vLLM is installed.
fn installed() -> bool {
    let there = home().join("venv/bin/vllm").exists() && home().join("model/config.json").exists();
    if !there {
        assert!(
            std::env::var_os("FOREBAY_REQUIRE_VLLM").is_none(),
            "no vLLM in {}, and FOREBAY_REQUIRE_VLLM is set; run tests/vllm/setup",
            home().display()
        );
        eprintln!("skipped: no vLLM in {}; run tests/vllm/setup", home().display());
    }
    there
}

fn here() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vllm"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_cannot_tell_the_gateway_from_a_real_vllm() {
    let named = std::env::var("FOREBAY_VLLM").ok();
    if named.is_none() && !installed() {
        return;
    }
    let _alone = ALONE.lock().await;
    let (_server, address) = match named {
        Some(address) => (None, address.parse().expect("FOREBAY_VLLM is IP:PORT")),
        None => {
            let server = Server::start(&[]);
            let address = server.address;
            (Some(server), address)
        }
    };
    list::compare(address, &list::REQUESTS[0], true).await;
    product::compare(address).await;
}

/// Its own vLLM: what the other one is compared with was recorded without traces.
#[test]
fn a_real_vllms_spans_join_those_of_the_gateway() {
    if !installed() {
        return;
    }
    let Some(collector) = Collector::start("vllm", None) else { return };
    let _alone = ALONE.blocking_lock();
    let server = Server::start(&[traces::flag(&collector)]);
    traces::join(server.address, &collector);
}

#[test]
fn the_recorded_verdicts_are_those_of_the_installed_vllm() {
    if !installed() {
        return;
    }
    let _alone = ALONE.blocking_lock();
    let mut check = Command::new(home().join("venv/bin/python"));
    check.arg(here().join("verdicts.py")).arg("--check");
    let output = check.output().expect("Python runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn prompts_go_where_a_real_vllm_remembers_them_and_streams_go_on_when_one_is_lost() {
    if !installed() {
        return;
    }
    let _alone = ALONE.blocking_lock();
    let servers: [Server; 2] = Server::start_all(&[]);
    picks::compare(&servers.each_ref().map(|server| server.address));
    seams::play(servers);
}

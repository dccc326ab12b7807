//! A replica that closes its listener and leaves its connections open and silent, as vLLM sometimes
//! does when it is stopped.

use crate::clients::{Requests, in_flight, ready};
use crate::support::sims::Sim;
use crate::support::{Forebay, chat, eventually, gateway};

const MUTE: [&str; 2] = ["--sigterm-outcome", "mute"];
/// The stall limit is far longer than any client here waits.
const UPSTREAM: &str = "freezeTimeout: 2s, stallTimeout: 300s, requestTimeout: 60s";

fn start(flags: &[&str]) -> ([Sim; 2], Forebay) {
    start_with(flags, UPSTREAM)
}

fn start_with(flags: &[&str], upstream: &str) -> ([Sim; 2], Forebay) {
    let flags = [&MUTE, flags].concat();
    let sims = [Sim::start(&flags), Sim::start(&flags)];
    let forebay = gateway(&[sims[0].address, sims[1].address], &["sim"], upstream);
    ready(&forebay, 2);
    (sims, forebay)
}

#[test]
fn plain_requests_that_wait_there_are_answered_elsewhere() {
    let (sims, forebay) = start(&["--decode-step-ms", "20"]);
    let requests = Requests::send(forebay.address, 8, &chat(false, 150));
    in_flight(&forebay, 8);
    sims[0].signal("TERM");
    requests.are_answered();
}

#[test]
fn streams_that_have_not_begun_there_are_answered_elsewhere() {
    let (sims, forebay) = start(&["--decode-step-ms", "1", "--prefill-tokens-per-second", "4"]);
    let requests = Requests::send(forebay.address, 4, &chat(true, 5));
    in_flight(&forebay, 4);
    sims[0].signal("TERM");
    assert_eq!(requests.broken(), 0);
}

#[test]
fn streams_that_have_begun_there_go_on_elsewhere() {
    let (sims, mut forebay) = start(&["--decode-step-ms", "50"]);
    let requests = Requests::send(forebay.address, 8, &chat(true, 200));
    in_flight(&forebay, 8);
    eventually("all streams have begun", || {
        forebay.metric("forebay_ttft_seconds_count").is_some_and(|count| count >= 8.0)
    });
    sims[0].signal("TERM");
    assert_eq!(requests.broken(), 0);
    forebay.wait_for("can't be reached any longer");
}

/// No limit of silence is reached here: only the probes can show it.
#[test]
fn a_replica_with_live_streams_that_goes_mute_is_noticed_and_gets_nothing_new() {
    let limits = "freezeTimeout: 300s, stallTimeout: 300s, requestTimeout: 300s";
    let (sims, forebay) = start_with(&["--decode-step-ms", "50"], limits);
    let _streams = Requests::send(forebay.address, 8, &chat(true, 1500));
    in_flight(&forebay, 8);
    eventually("all streams have begun", || {
        forebay.metric("forebay_ttft_seconds_count").is_some_and(|count| count >= 8.0)
    });
    sims[0].signal("TERM");
    ready(&forebay, 1);
    Requests::send(forebay.address, 8, &chat(false, 5)).are_answered();
}

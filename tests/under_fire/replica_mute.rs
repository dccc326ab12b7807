//! A replica that closes its listener and leaves its connections open and silent, as vLLM sometimes
//! does when it is told to stop.

use crate::clients::{Asking, in_flight, ready};
use crate::support::sims::Sim;
use crate::support::{Forebay, chat, eventually, gateway};

const MUTE: [&str; 2] = ["--sigterm-outcome", "mute"];
/// No client here waits for as long as a silence may last by these.
const UPSTREAM: &str = "freezeTimeout: 2s, stallTimeout: 300s, requestTimeout: 60s";

fn start(flags: &[&str]) -> ([Sim; 2], Forebay) {
    let flags = [&MUTE, flags].concat();
    let sims = [Sim::start(&flags), Sim::start(&flags)];
    let forebay = gateway(&[sims[0].address, sims[1].address], &["sim"], UPSTREAM);
    ready(&forebay, 2);
    (sims, forebay)
}

#[test]
fn plain_requests_that_wait_there_are_answered_elsewhere() {
    let (sims, forebay) = start(&["--decode-step-ms", "20"]);
    let asking = Asking::all(forebay.address, 8, &chat(false, 150));
    in_flight(&forebay, 8);
    sims[0].signal("TERM");
    asking.are_answered();
}

#[test]
fn streams_that_have_not_begun_there_are_answered_elsewhere() {
    let (sims, forebay) = start(&["--decode-step-ms", "1", "--prefill-tokens-per-second", "4"]);
    let asking = Asking::all(forebay.address, 4, &chat(true, 5));
    in_flight(&forebay, 4);
    sims[0].signal("TERM");
    assert_eq!(asking.broken(), 0);
}

#[test]
fn streams_that_have_begun_there_end_with_an_honest_error_in_time() {
    let (sims, mut forebay) = start(&["--decode-step-ms", "50"]);
    let asking = Asking::all(forebay.address, 8, &chat(true, 200));
    in_flight(&forebay, 8);
    eventually("all have begun", || {
        forebay.metric("forebay_ttft_seconds_count").is_some_and(|count| count >= 8.0)
    });
    sims[0].signal("TERM");
    assert_eq!(asking.broken(), 4);
    forebay.wait_for("can't be reached any more");
}

//! An engine that hangs behind a server whose health check passes, under each kind of traffic; and
//! an engine that is only slow.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use crate::clients::{Requests, in_flight, ready};
use crate::support::sims::Sim;
use crate::support::upstream::{Step, Upstream, plain};
use crate::support::{Forebay, chat, exchange, gateway, get, post, status};

const UPSTREAM: &str = "freezeTimeout: 1s, stallTimeout: 300s";

fn start(flags: &[&str]) -> ([Sim; 2], Forebay) {
    let flags = [&["--dev"], flags].concat();
    let sims = [Sim::start(&flags), Sim::start(&flags)];
    let forebay = gateway(&[sims[0].address, sims[1].address], &["sim"], UPSTREAM);
    ready(&forebay, 2);
    (sims, forebay)
}

fn hang(sim: &Sim) {
    assert_eq!(status(&exchange(sim.address, &post("/sim/hang", ""))), 200);
}

/// Checks that the replica is out, and comes back once its engine goes on.
fn comes_back(sim: &Sim, forebay: &Forebay) {
    ready(forebay, 1);
    assert_eq!(status(&get(sim.address, "/health")), 200);
    assert_eq!(status(&exchange(sim.address, &post("/sim/resume", ""))), 200);
    ready(forebay, 2);
}

#[test]
fn plain_requests_reveal_the_hang_and_are_answered_elsewhere() {
    let (sims, forebay) = start(&["--decode-step-ms", "20"]);
    let requests = Requests::send(forebay.address, 6, &chat(false, 100));
    in_flight(&forebay, 6);
    hang(&sims[0]);
    requests.are_answered();
    Requests::send(forebay.address, 4, &chat(false, 5)).are_answered();
    comes_back(&sims[0], &forebay);
}

#[test]
fn streams_that_have_not_begun_reveal_the_hang_and_are_answered_elsewhere() {
    let (sims, forebay) = start(&[]);
    hang(&sims[0]);
    assert_eq!(Requests::send(forebay.address, 4, &chat(true, 5)).broken(), 0);
    comes_back(&sims[0], &forebay);
}

#[test]
fn embeddings_reveal_the_hang_and_are_answered_elsewhere() {
    let (sims, forebay) = start(&["--runner", "pooling"]);
    hang(&sims[0]);
    let request = post("/v1/embeddings", r#"{"model":"sim","input":"hello"}"#);
    Requests::send(forebay.address, 4, &request).are_answered();
    comes_back(&sims[0], &forebay);
}

/// A cross-encoder: it knows only scores and ranks, and answers the rest with a 501 or a 404. The
/// first of several that gets a request for a rank hangs from then on.
fn cross_encoder(taken: &Arc<AtomicBool>) -> Upstream {
    let (taken, hangs) = (Arc::clone(taken), AtomicBool::new(false));
    Upstream::start(move |request| {
        let known = matches!(request.path(), "/v1/score" | "/v1/rerank");
        if request.path() == "/v1/rerank" && !taken.swap(true, SeqCst) {
            hangs.store(true, SeqCst);
        }
        match (known, hangs.load(SeqCst)) {
            (false, _) if request.path() == "/v1/completions" => {
                vec![Step::Send(plain(501, r#"{"detail":"Not Implemented"}"#))]
            }
            (false, _) => vec![Step::Send(plain(404, r#"{"detail":"Not Found"}"#))],
            (true, true) => vec![Step::Hang],
            (true, false) => vec![Step::Send(plain(200, r#"{"results":[]}"#))],
        }
    })
}

#[test]
fn ranks_reveal_the_hang_and_are_answered_elsewhere() {
    let taken = Arc::new(AtomicBool::new(false));
    let replicas = [cross_encoder(&taken), cross_encoder(&taken)];
    let forebay = gateway(&replicas.each_ref().map(|replica| replica.address), &["sim"], UPSTREAM);
    ready(&forebay, 2);
    let request = post("/v1/rerank", r#"{"model":"sim","query":"a","documents":["b"]}"#);
    Requests::send(forebay.address, 1, &request).are_answered();
    ready(&forebay, 1);
}

#[test]
fn a_saturated_engine_keeps_its_requests() {
    let (_sims, forebay) = start(&["--decode-step-ms", "20", "--max-num-seqs", "1"]);
    // Each takes eight seconds, one at a time: a probe of one token waits for longer than its
    // limit.
    Requests::send(forebay.address, 4, &chat(false, 400)).are_answered();
    let signals = forebay.signals();
    assert_eq!(signals["totals"]["retries"], 0, "{signals}");
    ready(&forebay, 2);
}

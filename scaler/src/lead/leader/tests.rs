//! Candidates against an API server in memory, on a paused clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use http::Method;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::*;
use crate::fake_api::{FakeApi, Fault};

const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/models/leases/forebay-scaler";
const DURATION: Duration = Duration::from_secs(5);
/// Period of a candidate's turns.
const PERIOD: Duration = Duration::from_secs(1);

fn settings() -> LeaderElection {
    LeaderElection { lease: "forebay-scaler".to_owned(), ..LeaderElection::default() }
}

fn candidate(api: &FakeApi, url: &str) -> Election {
    assert_eq!(settings().lease_duration, DURATION);
    Election::start(&settings(), &api.cluster(), url.to_owned())
}

/// Another scaler's record, by a clock of its own.
fn theirs(renewed: &str) -> Value {
    json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": "forebay-scaler", "annotations": {ADDRESS: "http://10.0.0.9:9900"}},
        "spec": {"holderIdentity": "another", "leaseDurationSeconds": 5,
                 "acquireTime": renewed, "renewTime": renewed, "leaseTransitions": 3},
    })
}

async fn until_leads(election: &mut Election) -> Duration {
    let began = Instant::now();
    let leads = election.leadership.wait_for(|leader| *leader == Leadership::Ours);
    timeout(DURATION * 10, leads).await.expect("in time").expect("it runs");
    began.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_dead_leaders_lease_ends_by_our_clock_whatever_its_own_clock_said() {
    for renewed in ["1970-01-01T00:00:00.000000Z", "2999-12-31T23:59:59.000000Z"] {
        let api = FakeApi::default();
        api.put(LEASE, theirs(renewed));
        let mut election = candidate(&api, "http://10.0.0.1:9900");
        let took = until_leads(&mut election).await;
        assert!(took >= DURATION, "{renewed}: {took:?}: it may have renewed just before");
        assert!(took <= DURATION + PERIOD, "{renewed}: {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_renews_is_left_alone_whatever_its_clock_does() {
    let api = FakeApi::default();
    api.put(LEASE, theirs("2026-01-01T00:00:00.000000Z"));
    let election = candidate(&api, "http://10.0.0.1:9900");
    sleep(PERIOD).await;
    // Forward by a day, back by years, and on.
    for year in [2026, 2027, 1999, 2000, 2026, 1971, 2999, 1970] {
        api.put(LEASE, theirs(&format!("{year}-01-02T03:04:05.000000Z")));
        sleep(DURATION - PERIOD).await;
        let seen = election.leadership.borrow().clone();
        assert_eq!(seen, Leadership::Theirs("http://10.0.0.9:9900".to_owned()), "{year}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_conflict_on_our_own_renewal_costs_no_leadership() {
    let api = FakeApi::default();
    let mut election = candidate(&api, "http://10.0.0.1:9900");
    until_leads(&mut election).await;
    // Another client labels the Lease just before every third write of ours.
    let writes = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&writes);
    api.judge(move |call| {
        let ours = call.method == Method::PUT;
        let conflicts = ours && count.fetch_add(1, Ordering::Relaxed).is_multiple_of(3);
        conflicts.then_some(Fault::Status(409))
    });
    election.leadership.mark_unchanged();
    for _ in 0..20 {
        sleep(PERIOD).await;
        assert!(!election.leadership.has_changed().expect("it runs"), "it leads throughout");
    }
    assert!(writes.load(Ordering::Relaxed) > 20, "there were conflicts");
    assert_eq!(api.get(LEASE).expect("there")["spec"]["leaseTransitions"], 1);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_another_took_is_theirs_at_our_next_turn() {
    let api = FakeApi::default();
    let mut election = candidate(&api, "http://10.0.0.1:9900");
    until_leads(&mut election).await;
    api.put(LEASE, theirs("1999-01-01T00:00:00.000000Z"));
    sleep(PERIOD * 2).await;
    let seen = election.leadership.borrow().clone();
    assert_eq!(seen, Leadership::Theirs("http://10.0.0.9:9900".to_owned()));
    assert_eq!(api.get(LEASE).expect("there")["spec"]["holderIdentity"], "another");
}

#[tokio::test(start_paused = true)]
async fn a_leader_whose_calls_hang_stops_before_another_may_begin() {
    // The API server falls silent at different moments within a period.
    for millis in (0..1_000).step_by(130) {
        let api = FakeApi::default();
        let mut election = candidate(&api, "http://10.0.0.1:9900");
        until_leads(&mut election).await;
        sleep(Duration::from_millis(millis)).await;
        api.judge(|_| Some(Fault::Hang));
        let silent = Instant::now();
        election
            .leadership
            .wait_for(|leadership| *leadership != Leadership::Ours)
            .await
            .expect("it runs");
        let led = silent.elapsed();
        assert!(led < DURATION, "{millis}: {led:?} after its last renewal, at the latest");
        assert!(led >= DURATION * 4 / 5 - PERIOD, "{millis}: {led:?}: not at the first hitch");
    }
}

#[tokio::test(start_paused = true)]
async fn two_never_lead_at_once_and_a_leader_that_resigns_is_followed_at_once() {
    let api = FakeApi::default();
    let mut first = candidate(&api, "http://10.0.0.1:9900");
    until_leads(&mut first).await;
    let mut second = candidate(&api, "http://10.0.0.2:9900");
    sleep(DURATION * 4).await;
    let theirs = Leadership::Theirs("http://10.0.0.1:9900".to_owned());
    assert_eq!(*second.leadership.borrow(), theirs);
    // A conflict does not keep the leader from releasing the lease.
    let writes = AtomicU32::new(0);
    api.judge(move |call| {
        let resigns = call.method == Method::PUT && call.body["spec"]["holderIdentity"] == "";
        (resigns && writes.fetch_add(1, Ordering::Relaxed) == 0).then_some(Fault::Status(409))
    });
    first.resign().await;
    let took = until_leads(&mut second).await;
    assert!(took <= PERIOD, "{took:?}");
}

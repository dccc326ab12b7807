use forebay_signals::Health;

use super::*;
use crate::pool::endpoint::Evictions;
use crate::pool::model_registry::ServedModel;

#[tokio::test(start_paused = true)]
async fn load_is_spread_over_equals() {
    let pool = pool(r#"{"name": "p"}"#);
    (1..=4).for_each(|port| ready(&pool, port));
    let mut slots = Vec::new();
    for _ in 0..40 {
        slots.push(pool.hold(&mut ticket(60)).await.expect("ready"));
    }
    let signals = pool.signals();
    let loads: Vec<_> = signals.endpoints.values().flatten().map(|e| e.in_flight).collect();
    assert_eq!(loads, [10, 10, 10, 10]);
}

#[tokio::test(start_paused = true)]
async fn a_replica_whose_engine_may_hang_gets_nothing_new_while_another_is_ready() {
    let pool = pool(r#"{"name": "p", "maxInFlight": 2, "upstream": {"freezeTimeout": "10s"}}"#);
    ready(&pool, 1);
    let mut stuck = ticket(60);
    let stuck_slot = pool.hold(&mut stuck).await.expect("ready");
    tokio::time::advance(Duration::from_secs(10)).await;
    let mut only = ticket(60);
    let slot = pool.hold(&mut only).now_or_never().expect("the last one takes it nevertheless");
    drop(slot);
    ready(&pool, 2);
    let (mut a, mut b, mut c) = (ticket(60), ticket(60), ticket(60));
    let a = pool.hold(&mut a).await.expect("ready");
    let b = pool.hold(&mut b).await.expect("ready");
    assert_eq!([a.address, b.address], [address(2); 2]);
    let mut held = Box::pin(pool.hold(&mut c));
    assert!(held.as_mut().now_or_never().is_none(), "the other one is full");
    let evicted = stuck_slot.evictions.unanswered.clone();
    pool.probed(address(1), Probe::Token, Probed::Answered);
    let slot = held.as_mut().now_or_never().expect("it works").expect("released");
    assert_eq!(slot.address, address(1));
    assert!(!evicted.is_cancelled());
    drop(slot);
    tokio::time::advance(Duration::from_secs(10)).await;
    pool.probed(address(1), Probe::Token, Probed::Silent("nothing".into()));
    assert!(evicted.is_cancelled(), "it hangs, and another is ready");
    let Evictions { begun, sessions, .. } = &*stuck_slot.evictions;
    assert!(!begun.is_cancelled() && !sessions.is_cancelled(), "they may go on when it wakes");
    drop((a, b, stuck_slot));
}

#[tokio::test(start_paused = true)]
async fn the_last_endpoint_keeps_its_requests_while_its_engine_hangs_until_another_is_ready() {
    let pool = pool(r#"{"name": "p", "upstream": {"freezeTimeout": "10s"}}"#);
    ready(&pool, 1);
    let mut stuck = ticket(60);
    let slot = pool.hold(&mut stuck).await.expect("ready");
    tokio::time::advance(Duration::from_secs(10)).await;
    pool.probed(address(1), Probe::Token, Probed::Silent("nothing".into()));
    let health = |port: u16| {
        pool.signals().endpoints[&address(port).to_string()].as_ref().expect("there").health
    };
    assert_eq!(health(1), Health::Ejected, "the scaler may replace it");
    assert!(!slot.evictions.unanswered.is_cancelled());
    ready(&pool, 2);
    assert!(slot.evictions.unanswered.is_cancelled());
    drop(slot);
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_is_no_longer_listed_stays_for_its_requests_in_flight() {
    let pool = pool(r#"{"name": "p"}"#);
    ready(&pool, 1);
    let mut stream = ticket(60);
    let slot = pool.hold(&mut stream).await.expect("released");
    pool.remove_endpoint(address(1));
    let signals = pool.signals();
    let endpoint = signals.endpoints["127.0.0.1:1"].as_ref().expect("there");
    assert_eq!((endpoint.health, endpoint.in_flight, signals.in_flight), (Health::Draining, 1, 1));
    slot.ended(End::Complete);
    assert!(pool.signals().endpoints.is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_is_listed_again_still_counts_its_requests() {
    let pool = pool(r#"{"name": "p", "maxInFlight": 2}"#);
    ready(&pool, 1);
    let (mut first, mut second, mut third) = (ticket(60), ticket(60), ticket(60));
    let before = pool.hold(&mut first).await.expect("room");
    let _stays = pool.hold(&mut second).await.expect("room");
    // One answer of the DNS leaves it out, the next has it again.
    pool.remove_endpoint(address(1));
    assert!(pool.add_endpoint(address(1)), "it is to be probed anew");
    let signals = pool.signals();
    let endpoint = signals.endpoints["127.0.0.1:1"].as_ref().expect("there");
    assert_eq!((endpoint.health, endpoint.in_flight), (Health::Starting, 2));
    pool.probed(address(1), Probe::Health, Probed::Answered);
    let mut held = Box::pin(pool.hold(&mut third));
    assert!(held.as_mut().now_or_never().is_none(), "it is as full as it was");
    before.ended(End::Complete);
    let _slot = held.as_mut().now_or_never().expect("room for one").expect("released");
    assert_eq!(pool.signals().in_flight, 2);
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_leaves_lists_no_models() {
    let pool = pool(r#"{"name": "p"}"#);
    let listed = |id: &str| ServedModel { id: id.to_owned(), parent: None, max_model_len: None };
    let names = || pool.models.all().iter().map(|model| model.id.clone()).collect::<Vec<_>>();
    ready(&pool, 1);
    pool.serves(address(1), vec![listed("old")]);
    let mut stream = ticket(60);
    let slot = pool.hold(&mut stream).await.expect("released");
    ready(&pool, 2);
    pool.serves(address(2), vec![listed("new")]);
    assert!(pool.remove_endpoint(address(1)), "it stays for its request");
    assert_eq!(names(), ["new"]);
    // Its probe goes on until the request has ended.
    pool.serves(address(1), vec![listed("old")]);
    assert_eq!(names(), ["new"]);
    slot.ended(End::Complete);
    assert_eq!(names(), ["new"]);
    pool.add_endpoint(address(1));
    pool.serves(address(1), vec![listed("old")]);
    assert_eq!(names(), ["new", "old"], "it is back");
}

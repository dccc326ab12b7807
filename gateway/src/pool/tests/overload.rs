//! The expectations of held requests, and the refusal of those that can't start in time.

use std::future::Future;
use std::pin::Pin;

use forebay_signals::ColdStart;

use super::*;
use crate::pool::Slot;
use crate::pool::model_registry::ServedModel;

const SECOND: Duration = Duration::from_secs(1);

/// Holds a request that keeps its place for ten seconds, so many times that the pool knows it.
async fn learn(pool: &Arc<Pool>) {
    let places = pool.scheduling.lock().endpoints.places();
    for _ in 0..(40 / places + 1) {
        let slots: Vec<_> = {
            let mut slots = Vec::new();
            for _ in 0..places {
                slots.push(pool.hold(&mut ticket(600)).await.expect("room"));
            }
            slots
        };
        tokio::time::advance(10 * SECOND).await;
        slots.into_iter().for_each(|slot| slot.ended(End::Complete));
    }
}

/// Takes all places of the pool.
async fn fill(pool: &Arc<Pool>) -> Vec<Box<Slot>> {
    let places = pool.scheduling.lock().endpoints.places();
    let mut slots = Vec::new();
    for _ in 0..places {
        slots.push(pool.hold(&mut ticket(600)).await.expect("room"));
    }
    slots
}

/// Takes out those that are over, and counts them.
fn ended<F: Future>(held: &mut Vec<Pin<Box<F>>>) -> usize {
    let before = held.len();
    held.retain_mut(|one| one.as_mut().now_or_never().is_none());
    before - held.len()
}

fn patient(seconds: u64) -> Ticket {
    let mut ticket = ticket(600);
    ticket.gives_up(Some(Instant::now() + Duration::from_secs(seconds)));
    ticket
}

/// The refusal's expected wait and `retry-after`, in seconds.
fn too_late(outcome: Option<Result<Box<Slot>, Refusal>>) -> (u64, u64) {
    match outcome.map(|outcome| outcome.map(|_| ())) {
        Some(Err(Refusal::CannotStartInTime { expected: Some(expected), retry_after })) => {
            (expected.as_secs(), retry_after.as_secs())
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_would_wait_too_long_is_refused_when_it_arrives() {
    let new = pool(r#"{"name": "new", "maxInFlight": 1}"#);
    ready(&new, 1);
    let slots = fill(&new).await;
    assert!(new.hold(&mut patient(1)).now_or_never().is_none(), "nothing is learned");
    drop(slots);

    let pool = pool(r#"{"name": "p", "maxInFlight": 2}"#);
    ready(&pool, 1);
    learn(&pool).await;
    // Two places of ten seconds each: one start every five seconds.
    let slots = fill(&pool).await;
    let mut waiting: Vec<_> = (0..20).map(|_| patient(600)).collect();
    let mut held: Vec<_> = waiting.iter_mut().map(|one| Box::pin(pool.hold(one))).collect();
    held.iter_mut().for_each(|one| assert!(one.as_mut().now_or_never().is_none()));
    let (expected, retry_after) = too_late(pool.hold(&mut patient(30)).now_or_never());
    assert_eq!(expected, 105);
    assert!((105..170).contains(&retry_after), "{retry_after}");
    assert_eq!(pool.signals().queue_depth, 21, "it counts as demand");
    assert!(pool.hold(&mut patient(110)).now_or_never().is_none(), "it can wait so long");
    drop(slots);
}

#[tokio::test(start_paused = true)]
async fn nobody_is_refused_for_requests_that_wait_for_other_endpoints() {
    let pool = pool(r#"{"name": "p", "maxInFlight": 1}"#);
    (1..=2).for_each(|port| ready(&pool, port));
    learn(&pool).await;
    let served = |id: &str| {
        let id = id.to_owned();
        vec![ServedModel { id, parent: None, max_model_len: None }]
    };
    pool.serves(address(1), served("a"));
    pool.serves(address(2), served("b"));
    let of = |model: &str, seconds| {
        let mut ticket = patient(seconds);
        ticket.model(Some(model.into()));
        ticket
    };
    let a = pool.hold(&mut of("a", 600)).await.expect("room");
    let mut waiting: Vec<_> = (0..40).map(|_| of("a", 600)).collect();
    let mut held: Vec<_> = waiting.iter_mut().map(|one| Box::pin(pool.hold(one))).collect();
    held.iter_mut().for_each(|one| assert!(one.as_mut().now_or_never().is_none()));
    let b = pool.hold(&mut of("b", 15)).now_or_never().expect("at once").expect("released");
    assert_eq!(b.address, address(2));
    let mut another = of("b", 15);
    let mut another = Box::pin(pool.hold(&mut another));
    assert!(another.as_mut().now_or_never().is_none(), "one such request is before it");
    pool.tick();
    assert!(another.as_mut().now_or_never().is_none(), "and not forty");
    b.ended(End::Complete);
    assert!(another.as_mut().now_or_never().expect("room").is_ok());
    drop((a, held));
}

#[tokio::test(start_paused = true)]
async fn the_pools_own_limit_counts_for_new_requests_alone() {
    let limit = r#"{"name": "p", "maxInFlight": 2, "hold": {"maxWait": "30s"}}"#;
    let pool = pool(limit);
    ready(&pool, 1);
    learn(&pool).await;
    let slots = fill(&pool).await;
    let mut waiting: Vec<_> = (0..4).map(|_| patient(600)).collect();
    let mut held: Vec<_> = waiting.iter_mut().map(|one| Box::pin(pool.hold(one))).collect();
    held.iter_mut().for_each(|one| assert!(one.as_mut().now_or_never().is_none()));
    let mut more: Vec<_> = (0..20).map(|_| patient(600)).collect();
    let mut later: Vec<_> = more.iter_mut().map(|one| Box::pin(pool.hold(one))).collect();
    let refused = later.iter_mut().filter_map(|one| one.as_mut().now_or_never());
    let refused = refused.filter(Result::is_err).count();
    assert_eq!(refused, 18, "the seventh would wait for 35 s");
    tokio::time::advance(200 * SECOND).await;
    pool.tick();
    assert_eq!(ended(&mut held), 0, "held ones stay");
    drop(slots);
}

#[tokio::test(start_paused = true)]
async fn those_whose_replica_dies_are_told_within_a_second() {
    let pool = pool(r#"{"name": "p", "maxInFlight": 2}"#);
    (1..=2).for_each(|port| ready(&pool, port));
    learn(&pool).await;
    let slots = fill(&pool).await;
    // Four places: one start every 2.5 s, the last of them in 50 s.
    let mut waiting: Vec<_> = (0..20).map(|_| patient(60)).collect();
    let mut held: Vec<_> = waiting.iter_mut().map(|one| Box::pin(pool.hold(one))).collect();
    held.iter_mut().for_each(|one| assert!(one.as_mut().now_or_never().is_none()));
    pool.tick();
    assert_eq!(ended(&mut held), 0);
    pool.probed(address(2), Probe::Health, Probed::Unreachable("refused".to_owned()));
    pool.tick();
    let gone = ended(&mut held);
    // One start every five seconds from now on: twelve within a minute.
    assert!((2..=8).contains(&gone), "{gone}");
    assert_eq!(pool.queue_report(100).held, held.len());
    drop(slots);
}

#[tokio::test(start_paused = true)]
async fn all_held_requests_are_estimated_each_second_however_many_there_are() {
    let pool = pool(r#"{"name": "p", "maxInFlight": 20}"#);
    (1..=2).for_each(|port| ready(&pool, port));
    learn(&pool).await;
    let slots = fill(&pool).await;
    // Forty places: four starts a second, the last of them in 575 s.
    let mut waiting: Vec<_> = (0..2300).map(|_| patient(800)).collect();
    let mut held: Vec<_> = waiting.iter_mut().map(|one| Box::pin(pool.hold(one))).collect();
    held.iter_mut().for_each(|one| assert!(one.as_mut().now_or_never().is_none()));
    pool.tick();
    assert_eq!(pool.queue_report(1).held, 2300);
    pool.probed(address(2), Probe::Health, Probed::Unreachable("refused".to_owned()));
    pool.tick();
    // Two starts a second from now on: 1,200 within the hold of ten minutes, and some more for luck.
    let gone = 2300 - pool.queue_report(1).held;
    assert!((850..1_050).contains(&gone), "{gone}");
    drop(slots);
}

#[tokio::test(start_paused = true)]
async fn those_whose_start_fails_are_told_within_a_second() {
    let pool = pool(
        r#"{"name": "p", "target": {"processes": {"command": ["{port}"]}}, "scaling": {"maxReplicaCount": 1}}"#,
    );
    let learned = Some(ColdStart { p50_seconds: 60.0, p90_seconds: 80.0, samples: 5 });
    pool.set_cold_start(learned, 1, 0);
    let mut waiting = patient(70);
    let mut held = Box::pin(pool.hold(&mut waiting));
    assert!(held.as_mut().now_or_never().is_none());
    tokio::time::advance(50 * SECOND).await;
    pool.tick();
    assert!(held.as_mut().now_or_never().is_none(), "10 s are left of the start");
    pool.set_cold_start(learned, 1, 1);
    pool.tick();
    let (expected, retry_after) = too_late(held.as_mut().now_or_never());
    assert_eq!((expected, retry_after), (60, 80), "it begins again");
}

#[tokio::test(start_paused = true)]
async fn operators_see_who_waits_and_until_when() {
    let pool = pool(r#"{"name": "p", "maxInFlight": 2}"#);
    ready(&pool, 1);
    assert_eq!(pool.signals().expected_wait_seconds, Some(0.0));
    learn(&pool).await;
    let slots = fill(&pool).await;
    let mut waiting: Vec<_> = (0..3).map(|_| patient(60)).collect();
    waiting[1].entry.tenant = "other".into();
    let mut held: Vec<_> = waiting.iter_mut().map(|one| Box::pin(pool.hold(one))).collect();
    held.iter_mut().for_each(|one| assert!(one.as_mut().now_or_never().is_none()));
    let report = pool.queue_report(2);
    assert_eq!((report.held, report.requests.len()), (3, 2));
    assert_eq!(report.expected_wait_seconds, Some(20.0));
    assert_eq!(pool.signals().expected_wait_seconds, Some(20.0));
    let [first, second] = &report.requests[..] else { panic!("{report:?}") };
    let wait = |expected: Option<u64>| expected.expect("known") - first.since_millis;
    assert_eq!((wait(first.expected_millis), wait(second.expected_millis)), (5_000, 10_000));
    assert_eq!(first.until_millis - first.since_millis, 60_000);
    let tenants = [&*first.tenant, &*second.tenant];
    assert!(tenants.contains(&"anonymous") && tenants.contains(&"other"), "{tenants:?}");
    drop(slots);
}

#[tokio::test(start_paused = true)]
async fn with_the_order_by_objective_those_in_time_go_before_late_ones() {
    let settings = r#"{"name": "p", "maxInFlight": 1, "hold": {"order": "objective"},
                       "scaling": {"objective": {"ttft": "5s"}}}"#;
    let pool = pool(settings);
    ready(&pool, 1);
    let slot = pool.hold(&mut ticket(600)).await.expect("room");
    let (mut early, mut recent) = (ticket(600), ticket(600));
    let mut early = Box::pin(pool.hold(&mut early));
    assert!(early.as_mut().now_or_never().is_none());
    tokio::time::advance(6 * SECOND).await;
    recent.accepted = Instant::now();
    let mut recent = Box::pin(pool.hold(&mut recent));
    assert!(recent.as_mut().now_or_never().is_none());
    let late: Vec<_> = pool.queue_report(9).requests.iter().map(|one| one.late).collect();
    assert_eq!(late, [false, true]);
    slot.ended(End::Complete);
    let slot =
        recent.as_mut().now_or_never().expect("it can meet the objective").expect("released");
    assert!(early.as_mut().now_or_never().is_none());
    slot.ended(End::Complete);
    assert!(early.as_mut().now_or_never().is_some());
}

#[tokio::test(start_paused = true)]
async fn those_that_waited_through_a_cold_start_go_before_those_that_come_after_it() {
    let settings = r#"{"name": "p", "maxInFlight": 1, "scaling": {"objective": {"ttft": "5s"}}}"#;
    let pool = pool(settings);
    let (mut first, mut waits, mut comes) = (ticket(600), ticket(600), ticket(600));
    let mut first = Box::pin(pool.hold(&mut first));
    let mut waits = Box::pin(pool.hold(&mut waits));
    assert!(first.as_mut().now_or_never().is_none() && waits.as_mut().now_or_never().is_none());
    tokio::time::advance(60 * SECOND).await;
    ready(&pool, 1);
    let slot = first.as_mut().now_or_never().expect("ready").expect("released");
    tokio::time::advance(10 * SECOND).await;
    comes.accepted = Instant::now();
    let mut comes = Box::pin(pool.hold(&mut comes));
    assert!(comes.as_mut().now_or_never().is_none());
    slot.ended(End::Complete);
    let slot = waits.as_mut().now_or_never().expect("it kept its place").expect("released");
    assert!(comes.as_mut().now_or_never().is_none());

    // The replica is lost and comes back: what was in time then, and what came since, keeps its place.
    pool.probed(address(1), Probe::Health, Probed::Unreachable("refused".to_owned()));
    drop(slot);
    tokio::time::advance(60 * SECOND).await;
    ready(&pool, 1);
    let late: Vec<_> = pool.queue_report(9).requests.iter().map(|one| one.late).collect();
    assert_eq!(late, [false; 0]);
    assert!(comes.as_mut().now_or_never().expect("ready").is_ok());
}

use forebay_scheduling::pick::CacheReport;

use super::*;
use crate::pool::endpoint::EngineReport;

/// A request for a stream.
fn streamed() -> Ticket {
    let mut ticket = ticket(60);
    ticket.streams(true);
    ticket
}

/// The number of requests in flight.
fn in_flight(pool: &Pool) -> u32 {
    pool.signals().in_flight
}

/// Takes the slots of the holds that were released.
#[expect(clippy::vec_box, reason = "slots come in boxes")]
fn released<F>(holds: &mut Vec<std::pin::Pin<Box<F>>>) -> Vec<Box<Slot>>
where
    F: Future<Output = Result<Box<Slot>, Refusal>>,
{
    let mut slots = Vec::new();
    holds.retain_mut(|hold| match hold.as_mut().now_or_never() {
        Some(slot) => {
            slots.push(slot.expect("released"));
            false
        }
        None => true,
    });
    slots
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_reaches_a_cold_replica_in_rounds_that_double() {
    let pool = pool(r#"{"name": "p", "maxInFlight": 24, "pick": "leastLoad"}"#);
    let mut tickets: Vec<_> = (0..60).map(|_| streamed()).collect();
    let mut holds: Vec<_> = tickets.iter_mut().map(|t| Box::pin(pool.hold(t))).collect();
    assert!(released(&mut holds).is_empty(), "nothing is ready");
    cold(&pool, 1);
    let (mut slots, mut rounds) = (Vec::new(), Vec::new());
    for _ in 0..7 {
        let mut new = released(&mut holds);
        rounds.push(new.len());
        tokio::time::advance(Duration::from_millis(30)).await;
        new.iter_mut().for_each(|slot| slot.first_token(Instant::now()));
        slots.append(&mut new);
    }
    assert_eq!(rounds, [1, 2, 4, 8, 9, 0, 0], "up to its limit of 24");
    assert_eq!(in_flight(&pool), 24);
    slots.pop().expect("in flight").ended(End::Complete);
    assert_eq!(released(&mut holds).len(), 1, "one ends, one is released");
}

#[tokio::test(start_paused = true)]
async fn a_cold_replica_that_answers_nothing_has_one_request() {
    let pool = pool(r#"{"name": "p"}"#);
    cold(&pool, 1);
    let (mut first, mut second) = (streamed(), streamed());
    let canary = pool.hold(&mut first).await.expect("room for one");
    let mut held = Box::pin(pool.hold(&mut second));
    tokio::time::advance(Duration::from_secs(9)).await;
    pool.tick();
    assert!(held.as_mut().now_or_never().is_none());
    drop(canary);
    let slot = held.as_mut().now_or_never().expect("the next one tries").expect("released");
    assert_eq!(in_flight(&pool), 1);
    slot.ended(End::Dropped);
}

#[tokio::test(start_paused = true)]
async fn plain_answers_make_room_at_their_end_or_after_a_second() {
    let pool = pool(r#"{"name": "p"}"#);
    cold(&pool, 1);
    let mut tickets: Vec<_> = (0..20).map(|_| ticket(60)).collect();
    let mut holds: Vec<_> = tickets.iter_mut().map(|t| Box::pin(pool.hold(t))).collect();
    let mut slots = released(&mut holds);
    assert_eq!(slots.len(), 1);
    slots.pop().expect("one").ended(End::Complete);
    slots.append(&mut released(&mut holds));
    assert_eq!(slots.len(), 3);
    tokio::time::advance(Duration::from_secs(1)).await;
    pool.tick();
    assert_eq!(released(&mut holds).len(), 6, "two more for each of three");
}

#[tokio::test(start_paused = true)]
async fn a_warm_replica_and_a_cold_one_share_a_load() {
    let pool = pool(r#"{"name": "p", "pick": "leastLoad"}"#);
    ready(&pool, 1);
    let mut tickets: Vec<_> = (0..30).map(|_| streamed()).collect();
    let mut slots = Vec::new();
    for ticket in &mut tickets[..10] {
        slots.push(pool.hold(ticket).await.expect("room"));
    }
    cold(&pool, 2);
    for ticket in &mut tickets[10..] {
        slots.push(pool.hold(ticket).await.expect("room"));
    }
    let at_cold = slots.iter().filter(|slot| slot.address == address(2)).count();
    assert_eq!(at_cold, 1, "it had fewer requests, and was not flooded");
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_was_restarted_starts_slowly_again() {
    let pool = pool(r#"{"name": "p"}"#);
    ready(&pool, 1);
    pool.probed(address(1), Probe::Health, Probed::Unreachable("refused".into()));
    pool.probed(address(1), Probe::Health, Probed::Answered);
    let (mut first, mut second) = (streamed(), streamed());
    let _canary = pool.hold(&mut first).await.expect("room for one");
    assert!(Box::pin(pool.hold(&mut second)).now_or_never().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_was_up_before_the_gateway_has_its_whole_room() {
    let pool = pool(r#"{"name": "p", "maxInFlight": 20}"#);
    ready(&pool, 1);
    let mut tickets: Vec<_> = (0..20).map(|_| ticket(60)).collect();
    let holds = tickets.iter_mut().map(|ticket| pool.hold(ticket));
    let slots: Vec<_> = holds.filter_map(|hold| Box::pin(hold).now_or_never()).collect();
    assert_eq!(slots.len(), 20, "all at once");
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_has_slept_starts_slowly_again() {
    let pool = pool(r#"{"name": "p", "maxInFlight": 20}"#);
    ready(&pool, 1);
    let report = |asleep| EngineReport {
        cache: Some(CacheReport { tokens: None, counters: None, asleep }),
        ..EngineReport::default()
    };
    for (asleep, want) in [(false, 20), (true, 1)] {
        pool.engine_reported(address(1), &report(asleep));
        let mut tickets: Vec<_> = (0..20).map(|_| streamed()).collect();
        let holds = tickets.iter_mut().map(|ticket| pool.hold(ticket));
        let slots: Vec<_> = holds.filter_map(|hold| Box::pin(hold).now_or_never()).collect();
        assert_eq!(slots.len(), want, "asleep: {asleep}");
    }
}

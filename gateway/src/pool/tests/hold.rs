use super::*;
use crate::pool::model_registry::ServedModel;
use forebay_signals::ColdStart;

#[tokio::test(start_paused = true)]
async fn fifty_held_requests_are_released_in_the_order_of_their_arrival() {
    let pool = pool(r#"{"name": "p", "maxInFlight": 1}"#);
    let mut tickets: Vec<_> = (0..50).map(|_| ticket(60)).collect();
    let mut holds: Vec<_> = tickets.iter_mut().map(|t| Box::pin(pool.hold(t))).collect();
    for hold in &mut holds {
        assert!(hold.as_mut().now_or_never().is_none(), "nothing is ready");
    }
    assert_eq!(pool.signals().queue_depth, 50);
    ready(&pool, 1);
    for (i, mut hold) in holds.into_iter().enumerate() {
        // Room for one: each is released when the one before has ended, never earlier.
        let slot = hold.as_mut().now_or_never().unwrap_or_else(|| panic!("{i} is next"));
        slot.expect("released").ended(End::Complete);
    }
    let signals = pool.signals();
    assert_eq!((signals.queue_depth, signals.in_flight, signals.totals.released), (0, 0, 50));
    let seqs: Vec<_> = tickets.iter().map(Ticket::seq).collect();
    assert!(seqs.is_sorted(), "{seqs:?}");
}

#[tokio::test(start_paused = true)]
async fn streams_that_broke_go_on_in_the_order_in_which_they_broke() {
    let pool = pool(r#"{"name": "p", "maxInFlight": 3}"#);
    ready(&pool, 1);
    let mut tickets: Vec<_> = (0..3).map(|_| ticket(60)).collect();
    let released = |ticket| pool.hold(ticket).now_or_never().expect("room").expect("ready");
    let slots: Vec<_> = tickets.iter_mut().map(released).collect();
    drop(slots);
    let others: Vec<_> = (0..3).map(|_| pool.hold(&mut ticket(60)).now_or_never()).collect();
    let mut new = ticket(60);
    let mut new = Box::pin(pool.hold(&mut new));
    assert!(new.as_mut().now_or_never().is_none(), "there is no room");
    // The last one breaks first.
    tickets.iter_mut().for_each(|ticket| ticket.progressed(64));
    let mut holds: Vec<_> = tickets.iter_mut().rev().map(|t| Box::pin(pool.hold(t))).collect();
    assert!(holds.iter_mut().all(|hold| hold.as_mut().now_or_never().is_none()));
    let mut slots = Vec::new();
    for (hold, other) in holds.iter_mut().zip(others) {
        drop(other);
        slots.push(hold.as_mut().now_or_never().expect("the next one"));
    }
    assert!(new.as_mut().now_or_never().is_none(), "it goes behind them");
}

#[tokio::test(start_paused = true)]
async fn a_hold_ends_at_its_deadline_and_leaves_the_queue() {
    let pool = pool(r#"{"name": "p"}"#);
    let start = Instant::now();
    let refused = pool.hold(&mut ticket(30)).await.err();
    assert!(matches!(refused, Some(Refusal::HoldExpired { .. })), "{refused:?}");
    let waited = start.elapsed().as_millis();
    assert!((30_000..=30_001).contains(&waited), "{waited} ms");
    assert_eq!(pool.signals().queue_depth, 0);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_frees_its_place_at_once() {
    let pool = pool(r#"{"name": "p"}"#);
    let gone = pool.hold(&mut ticket(30)).now_or_never();
    assert!(gone.is_none());
    assert_eq!(pool.signals().queue_depth, 0);
}

#[tokio::test(start_paused = true)]
async fn a_slot_whose_client_left_goes_to_the_next() {
    let pool = pool(r#"{"name": "p", "maxInFlight": 1}"#);
    let (mut first, mut second) = (ticket(60), ticket(60));
    let mut leaving = Box::pin(pool.hold(&mut first));
    let mut staying = Box::pin(pool.hold(&mut second));
    assert!(leaving.as_mut().now_or_never().is_none());
    assert!(staying.as_mut().now_or_never().is_none());
    ready(&pool, 1);
    // Released, and gone before it could take its slot.
    drop(leaving);
    let slot = staying.as_mut().now_or_never().expect("the slot came back").expect("released");
    assert_eq!(pool.signals().in_flight, 1);
    drop(slot);
    assert_eq!(pool.signals().in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn a_barrier_holds_until_its_lease_runs_out() {
    let pool = pool(r#"{"name": "p"}"#);
    ready(&pool, 1);
    pool.set_barrier(Some((7, Duration::from_secs(5))));
    assert_eq!(pool.signals().zero_epoch, Some(7));
    let mut ticket = ticket(60);
    let mut hold = Box::pin(pool.hold(&mut ticket));
    assert!(hold.as_mut().now_or_never().is_none());
    pool.drain_endpoint(address(1), true);
    tokio::time::advance(Duration::from_secs(4)).await;
    pool.tick();
    assert!(hold.as_mut().now_or_never().is_none(), "the lease still holds");
    tokio::time::advance(Duration::from_secs(2)).await;
    // The scaler is gone: the endpoint that it wanted drained serves again.
    pool.tick();
    assert!(hold.as_mut().now_or_never().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_refuses() {
    let pool = pool(r#"{"name": "p", "hold": {"maxRequests": 1}}"#);
    let (mut first, mut second) = (ticket(60), ticket(60));
    let mut held = Box::pin(pool.hold(&mut first));
    assert!(held.as_mut().now_or_never().is_none());
    let refused = pool.hold(&mut second).await.err();
    assert!(matches!(refused, Some(Refusal::QueueFull { held: 1, .. })), "{refused:?}");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_would_wait_in_vain_is_refused_at_once_and_still_wakes_the_pool() {
    let pool = pool(r#"{"name": "p", "target": {"processes": {"command": ["{port}"]}}}"#);
    let learned = ColdStart { p50_seconds: 60.0, p90_seconds: 80.0, samples: 5 };
    pool.set_cold_start(Some(learned), 0, 0);
    let mut hurried = ticket(600);
    hurried.gives_up(Some(Instant::now() + Duration::from_secs(30)));
    let refused = pool.hold(&mut hurried).now_or_never().expect("at once").err();
    let Some(Refusal::CannotStartInTime { retry_after, .. }) = refused else {
        panic!("{refused:?}")
    };
    assert_eq!(retry_after, Duration::from_secs(80));
    assert_eq!(pool.signals().queue_depth, 1, "it counts as held until the next tick");
    pool.tick();
    assert_eq!(pool.signals().queue_depth, 0);

    pool.set_cold_start(Some(learned), 1, 0);
    tokio::time::advance(Duration::from_secs(40)).await;
    let mut hurried = ticket(600);
    hurried.gives_up(Some(Instant::now() + Duration::from_secs(30)));
    let mut held = Box::pin(pool.hold(&mut hurried));
    assert!(held.as_mut().now_or_never().is_none(), "the start is under way: 20 s are left");
    ready(&pool, 1);
    assert!(held.as_mut().now_or_never().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_request_with_a_fallback_is_held_no_longer_than_configured() {
    let pool = pool(r#"{"name": "p", "target": {"processes": {"command": ["{port}"]}}}"#);
    let mut ticket = ticket(600);
    ticket.set_fallback(Fallback::PoolAfter(Duration::from_secs(5)));
    let start = Instant::now();
    let refused = pool.hold(&mut ticket).await.err().expect("nothing is there");
    assert!(refused.is_lack_of_room(), "{refused}");
    assert_eq!(start.elapsed().as_secs(), 5);
}

/// A tenant's request, counted 100 tokens for its answer.
fn ticket_of(tenant: &str) -> Ticket {
    let mut ticket = ticket(60);
    ticket.entry.tenant = tenant.into();
    (ticket.entry.cost, ticket.entry.answer) = (100, 100);
    ticket
}

#[tokio::test(start_paused = true)]
async fn tenants_take_turns_by_what_their_answers_really_were() {
    let pool = pool(r#"{"name": "p", "maxInFlight": 1}"#);
    ready(&pool, 1);
    let (mut first, mut a, mut b) = (ticket_of("a"), ticket_of("a"), ticket_of("b"));
    let mut slot = pool.hold(&mut first).await.expect("room");
    let mut held_b = Box::pin(pool.hold(&mut b));
    assert!(held_b.as_mut().now_or_never().is_none());
    let mut held_a = Box::pin(pool.hold(&mut a));
    assert!(held_a.as_mut().now_or_never().is_none());
    // It is `b`'s turn. Its request uses no tokens, so `b` has the next turn too.
    slot.generated(500);
    slot.ended(End::Complete);
    assert!(held_a.as_mut().now_or_never().is_none());
    let slot = held_b.as_mut().now_or_never().expect("b is next").expect("released");
    let mut again = ticket_of("b");
    let mut held_b = Box::pin(pool.hold(&mut again));
    assert!(held_b.as_mut().now_or_never().is_none());
    slot.ended(End::Dropped);
    assert!(held_a.as_mut().now_or_never().is_none(), "its first answer had 500 tokens");
    let slot = held_b.as_mut().now_or_never().expect("b again").expect("released");
    slot.ended(End::Complete);
    assert!(held_a.as_mut().now_or_never().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_long_answer_costs_its_tenant_the_next_turn_before_it_ends() {
    let pool = pool(r#"{"name": "p", "maxInFlight": 2}"#);
    ready(&pool, 1);
    let (mut first_a, mut first_b, mut next_a, mut next_b) =
        (ticket_of("a"), ticket_of("b"), ticket_of("a"), ticket_of("b"));
    let mut slot_a = pool.hold(&mut first_a).await.expect("room");
    let mut slot_b = pool.hold(&mut first_b).await.expect("room");
    slot_a.generated(500);
    slot_b.generated(100);
    let mut held_b = Box::pin(pool.hold(&mut next_b));
    assert!(held_b.as_mut().now_or_never().is_none());
    let mut held_a = Box::pin(pool.hold(&mut next_a));
    assert!(held_a.as_mut().now_or_never().is_none());
    slot_b.ended(End::Complete);
    assert!(held_a.as_mut().now_or_never().is_none(), "its first answer has 500 tokens so far");
    assert!(held_b.as_mut().now_or_never().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_refused_client_is_asked_to_come_back_when_a_replica_will_be_ready() {
    let target = r#""target": {"processes": {"command": ["{port}"]}}"#;
    let pool = pool(&format!(r#"{{"name": "p", "hold": {{"maxRequests": 1}}, {target}}}"#));
    pool.set_cold_start(Some(ColdStart { p50_seconds: 60.0, p90_seconds: 80.0, samples: 5 }), 0, 0);
    let (mut first, mut second) = (ticket(600), ticket(600));
    let mut held = Box::pin(pool.hold(&mut first));
    assert!(held.as_mut().now_or_never().is_none());
    let refused = pool.hold(&mut second).await.err();
    let Some(Refusal::QueueFull { retry_after, .. }) = refused else { panic!("{refused:?}") };
    assert_eq!(retry_after, Duration::from_secs(80));
}

#[tokio::test(start_paused = true)]
async fn an_expired_hold_says_why_nothing_is_ready_without_names() {
    use forebay_signals::{PodPhase, Waiting};
    let pool = pool(r#"{"name": "p", "hold": {"timeout": "1s"}}"#);
    for (name, phase, reason) in
        [("secret-a", PodPhase::Unscheduled, "Unschedulable"), ("secret-b", PodPhase::Pulling, "")]
    {
        let waiting = Waiting { phase, reason: "0/3 nodes are available".to_owned() };
        pool.set_pending_pod(name.to_owned(), Some((waiting, reason.to_owned())));
    }
    let refused = pool.hold(&mut ticket(60)).await.err().expect("nothing is ready");
    assert_eq!(
        refused.to_string(),
        "No replica had room within 1s: 1 replica is waiting for a node (Unschedulable), 1 is \
         pulling the image. Try again in 1 s."
    );
}

#[tokio::test(start_paused = true)]
async fn requests_for_an_adapter_go_only_to_the_replica_that_has_it() {
    let pool = pool(r#"{"name": "p", "maxInFlight": 1}"#);
    (1..=3).for_each(|port| ready(&pool, port));
    pool.serves(address(1), vec![listed("base", None)]);
    pool.serves(address(2), vec![listed("base", None), listed("ad", Some("base"))]);
    let of = |model: &str| {
        let mut ticket = ticket(60);
        ticket.model(Some(model.into()));
        ticket
    };
    let (mut first, mut second) = (of("ad"), of("ad"));
    let slot = pool.hold(&mut first).await.expect("room");
    assert_eq!(slot.address, address(2));
    let mut held = Box::pin(pool.hold(&mut second));
    assert!(held.as_mut().now_or_never().is_none(), "the others would answer 404");
    let mut base = of("base");
    let base = pool.hold(&mut base).now_or_never().expect("not held up").expect("released");
    assert_ne!(base.address, address(2));
    // The third loads the adapter too.
    pool.serves(address(3), vec![listed("base", None), listed("ad", Some("base"))]);
    drop(base);
    let again = held.as_mut().now_or_never().expect("room there").expect("released");
    assert_eq!(again.address, address(3));
    drop((slot, again));
    let slot = pool.hold(&mut of("unknown")).await.expect("any, where none lists it");
    drop(slot);
}

fn listed(id: &str, parent: Option<&str>) -> ServedModel {
    ServedModel { id: id.to_owned(), parent: parent.map(str::to_owned), max_model_len: None }
}

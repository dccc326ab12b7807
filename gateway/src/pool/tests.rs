use std::net::SocketAddr;

use forebay_signals::{ColdStart, Health};

use super::*;
use crate::answer::failure::{Cause, Failure};
use crate::answer::refusal::Refusal;
use crate::pool::endpoint::{Evictions, Probe, Probed};
use crate::pool::model_registry::ServedModel;
use crate::pool::queue::Request;
use futures_util::FutureExt;

fn pool(settings: &str) -> Arc<Pool> {
    let settings: serde_json::Value = serde_json::from_str(settings).expect("valid");
    let settings = serde_json::from_value(settings).expect("a pool");
    Pool::new(settings, Arc::new(Notify::new()))
}

fn ticket(seconds: u64) -> Ticket {
    let since = Instant::now();
    let deadline = since + Duration::from_secs(seconds);
    Ticket::new(Request {
        tenant: "anonymous".into(),
        class: forebay_config::PriorityClass::Normal,
        since,
        deadline,
        bytes: 10,
        tokens: 2,
        cost: 2,
        answer: 0,
    })
}

fn address(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

fn ready(pool: &Arc<Pool>, port: u16) {
    pool.add_endpoint(address(port));
    pool.probed(address(port), Probe::Health, Probed::Answered);
}

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
async fn an_endpoint_that_failed_is_out_and_the_request_goes_elsewhere() {
    let pool = pool(r#"{"name": "p"}"#);
    ready(&pool, 1);
    ready(&pool, 2);
    let mut ticket = ticket(60);
    let slot = pool.hold(&mut ticket).await.expect("ready");
    let failed = slot.address;
    ticket.wants.avoid.insert(slot.life.id());
    slot.ended(End::Failed(Failure::new(Cause::Connection, "reset")));
    let again = pool.hold(&mut ticket).await.expect("the other is ready");
    assert_ne!(again.address, failed);
}

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
async fn a_barrier_holds_and_runs_out_by_itself() {
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
    // Nobody renewed it: the scaler is gone, and what it wanted drained serves on.
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
async fn who_would_wait_in_vain_is_told_at_once_and_still_wakes_the_pool() {
    let pool = pool(r#"{"name": "p", "target": {"processes": {"command": ["{port}"]}}}"#);
    let learned = ColdStart { p50_seconds: 60.0, p90_seconds: 80.0, samples: 5 };
    pool.set_cold_start(Some(learned), 0);
    let mut hurried = ticket(600);
    hurried.gives_up(Some(Instant::now() + Duration::from_secs(30)));
    let refused = pool.hold(&mut hurried).now_or_never().expect("at once").err();
    let Some(Refusal::InVain { retry_after }) = refused else { panic!("{refused:?}") };
    assert_eq!(retry_after, Duration::from_secs(80));
    assert_eq!(pool.signals().queue_depth, 1, "it counts as held until it was told");
    pool.tick();
    assert_eq!(pool.signals().queue_depth, 0);

    pool.set_cold_start(Some(learned), 1);
    tokio::time::advance(Duration::from_secs(40)).await;
    let mut hurried = ticket(600);
    hurried.gives_up(Some(Instant::now() + Duration::from_secs(30)));
    let mut held = Box::pin(pool.hold(&mut hurried));
    assert!(held.as_mut().now_or_never().is_none(), "the start is under way: 20 s are left");
    ready(&pool, 1);
    assert!(held.as_mut().now_or_never().is_some());
}

#[tokio::test(start_paused = true)]
async fn what_can_go_elsewhere_is_held_no_longer_than_that_takes_to_decide() {
    let pool = pool(r#"{"name": "p", "target": {"processes": {"command": ["{port}"]}}}"#);
    let mut ticket = ticket(600);
    ticket.may_go_elsewhere(Some(Duration::from_secs(5)));
    let start = Instant::now();
    let refused = pool.hold(&mut ticket).await.err().expect("nothing is there");
    assert!(refused.for_want_of_room(), "{refused}");
    assert_eq!(start.elapsed().as_secs(), 5);
}

#[tokio::test(start_paused = true)]
async fn tenants_take_turns_by_what_their_answers_really_were() {
    let pool = pool(r#"{"name": "p", "maxInFlight": 1}"#);
    ready(&pool, 1);
    let of = |tenant: &str| {
        let mut ticket = ticket(60);
        ticket.request.tenant = tenant.into();
        (ticket.request.cost, ticket.request.answer) = (100, 100);
        ticket
    };
    let (mut first, mut a, mut b) = (of("a"), of("a"), of("b"));
    let mut slot = pool.hold(&mut first).await.expect("room");
    let mut held_b = Box::pin(pool.hold(&mut b));
    assert!(held_b.as_mut().now_or_never().is_none());
    let mut held_a = Box::pin(pool.hold(&mut a));
    assert!(held_a.as_mut().now_or_never().is_none());
    // It is `b`'s turn. That one uses nothing, and so does not lose the next either.
    slot.generated(500);
    slot.ended(End::Complete);
    assert!(held_a.as_mut().now_or_never().is_none());
    let slot = held_b.as_mut().now_or_never().expect("b is next").expect("released");
    let mut again = of("b");
    let mut held_b = Box::pin(pool.hold(&mut again));
    assert!(held_b.as_mut().now_or_never().is_none());
    slot.ended(End::Dropped);
    assert!(held_a.as_mut().now_or_never().is_none(), "its first answer had 500 tokens");
    let slot = held_b.as_mut().now_or_never().expect("b again").expect("released");
    slot.ended(End::Complete);
    assert!(held_a.as_mut().now_or_never().is_some());
}

fn failure(cause: Cause) -> Failure {
    Failure::new(cause, "what it said")
}

#[tokio::test(start_paused = true)]
async fn a_request_is_tried_again_as_its_failures_allow() {
    use Cause::{
        Aborted, Connect, Connection, EngineDead, QueueFull, Server, ShuttingDown, Truncated,
        Unreachable,
    };
    let (poison, error) = ("three replicas died", "what it said");
    for (case, causes, draining, want) in [
        ("busy ones are no tries", vec![QueueFull; 50], false, None),
        ("nor are those that take nothing", [Connect, ShuttingDown].repeat(20), false, None),
        ("two deaths", vec![Connection, EngineDead], false, None),
        ("three deaths", vec![Connection, EngineDead, Connection], false, Some(poison)),
        ("three announced deaths", vec![Connection, EngineDead, Connection], true, None),
        ("told to stop", vec![Aborted; 4], false, None),
        ("gone without a word", vec![Unreachable; 4], false, None),
        ("answers that make no sense", vec![Truncated; 4], false, None),
        ("five tries", vec![Aborted; 5], false, Some("failed 5 times")),
        ("two errors", vec![Server; 2], false, Some(error)),
    ] {
        let pool = pool(r#"{"name": "p"}"#);
        let mut ticket = ticket(60);
        let mut slots = Vec::new();
        let outcome = (1..).zip(&causes).try_for_each(|(port, cause)| {
            ready(&pool, port);
            let slot = pool.hold(&mut ticket).now_or_never().expect("ready").expect("released");
            pool.drain_endpoint(slot.address, draining);
            let outcome = pool.try_again(&mut ticket, &slot, &failure(*cause));
            slots.push(slot);
            outcome
        });
        let told = outcome.err().map(|refusal| refusal.to_string());
        match want {
            None => assert_eq!(told, None, "{case}"),
            Some(want) => {
                let told = told.unwrap_or_else(|| panic!("{case}: tried again"));
                assert!(told.contains(want), "{case}: {told}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_death_counts_once_and_not_at_all_when_an_order_explains_it_later() {
    let pool = pool(r#"{"name": "p", "upstream": {"maxTries": 50}}"#);
    let mut ticket = ticket(60);
    let mut die = |port: u16, times: u32| {
        ready(&pool, port);
        let slot = pool.hold(&mut ticket).now_or_never().expect("ready").expect("released");
        let mut outcome = Ok(());
        for _ in 0..times {
            outcome = pool.try_again(&mut ticket, &slot, &failure(Cause::Connection));
        }
        let life = Arc::clone(&slot.life);
        slot.ended(End::Failed(failure(Cause::Connection)));
        (outcome.map_err(|refusal| refusal.to_string()), life)
    };
    let (outcome, first) = die(1, 5);
    assert_eq!(outcome, Ok(()), "one death, however often it shows");
    assert_eq!(die(2, 1).0, Ok(()));
    first.stopped();
    assert_eq!(die(3, 1).0, Ok(()), "two that nothing explains");
    assert!(die(4, 1).0.is_err_and(|told| told.contains("three replicas died")));
}

#[tokio::test(start_paused = true)]
async fn what_lost_its_replica_prefers_one_that_was_started_since() {
    let pool = pool(r#"{"name": "p"}"#);
    (1..=3).for_each(|port| ready(&pool, port));
    let mut ticket = ticket(60);
    let slot = pool.hold(&mut ticket).await.expect("ready");
    let ended = slot.address;
    assert!(pool.try_again(&mut ticket, &slot, &failure(Cause::EngineDead)).is_ok());
    slot.ended(End::Failed(failure(Cause::EngineDead)));
    pool.probed(ended, Probe::Token, Probed::Unreachable("refused".into()));
    tokio::time::advance(Duration::from_secs(1)).await;
    pool.probed(ended, Probe::Health, Probed::Answered);
    for _ in 0..5 {
        let slot = pool.hold(&mut ticket).await.expect("ready");
        assert_eq!(slot.address, ended, "its restart is behind it");
        std::mem::forget(slot);
    }
}

#[tokio::test(start_paused = true)]
async fn a_replica_whose_engine_may_hang_gets_nothing_new_while_another_is_ready() {
    let pool = pool(r#"{"name": "p", "maxInFlight": 2, "upstream": {"freezeTimeout": "10s"}}"#);
    ready(&pool, 1);
    let mut stuck = ticket(60);
    let stuck_slot = pool.hold(&mut stuck).await.expect("ready");
    tokio::time::advance(Duration::from_secs(10)).await;
    let mut only = ticket(60);
    let slot = pool.hold(&mut only).now_or_never().expect("the last one takes it all the same");
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
    let Evictions { begun, sessions, .. } = &stuck_slot.evictions;
    assert!(!begun.is_cancelled() && !sessions.is_cancelled(), "they may go on when it wakes");
    drop((a, b, stuck_slot));
}

#[tokio::test(start_paused = true)]
async fn the_last_one_keeps_what_it_has_though_its_engine_hangs_until_another_is_ready() {
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
async fn a_pool_that_fails_everything_is_not_sent_several_times_its_load() {
    let pool = pool(r#"{"name": "p", "maxInFlight": 1, "hold": {"maxRequests": 0}}"#);
    ready(&pool, 1);
    let mut first = ticket(60);
    let slot = pool.hold(&mut first).await.expect("room");
    let mut again = 0;
    for _ in 0..1_000 {
        let mut ticket = ticket(60);
        let _ = pool.hold(&mut ticket).now_or_never();
        while pool.try_again(&mut ticket, &slot, &failure(Cause::Aborted)).is_ok() {
            again += 1;
        }
    }
    assert!((200..=310).contains(&again), "a fifth, and what is saved up: {again}");
}

#[tokio::test(start_paused = true)]
async fn a_held_client_is_told_why_nothing_is_ready_without_names() {
    use forebay_signals::{PodPhase, Waiting};
    let pool = pool(r#"{"name": "p", "hold": {"timeout": "1s"}}"#);
    for (name, phase, word) in
        [("secret-a", PodPhase::Unscheduled, "Unschedulable"), ("secret-b", PodPhase::Pulling, "")]
    {
        let waiting = Waiting { phase, reason: "0/3 nodes are available".to_owned() };
        pool.set_waiting(name.to_owned(), Some((waiting, word.to_owned())));
    }
    let refused = pool.hold(&mut ticket(60)).await.err().expect("nothing is ready");
    assert_eq!(
        refused.to_string(),
        "No replica had room within 1s: 1 replica is waiting for a node (Unschedulable), 1 is \
         pulling the image."
    );
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_is_no_longer_listed_stays_for_what_is_in_flight_there() {
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
async fn an_endpoint_that_is_listed_again_still_counts_what_it_has() {
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
async fn a_retry_that_waits_for_another_endpoint_holds_up_nobody() {
    let pool = pool(r#"{"name": "p", "maxInFlight": 1}"#);
    ready(&pool, 1);
    let (mut failed, mut long, mut next) = (ticket(60), ticket(60), ticket(60));
    let slot = pool.hold(&mut failed).await.expect("room");
    ready(&pool, 2);
    let long = pool.hold(&mut long).await.expect("room at the other");
    failed.wants.avoid.insert(slot.life.id());
    slot.ended(End::Failed(failure(Cause::Server)));
    let mut again = Box::pin(pool.hold(&mut failed));
    assert!(again.as_mut().now_or_never().is_none(), "the one that did not fail it is full");
    let mut held = Box::pin(pool.hold(&mut next));
    let slot = held.as_mut().now_or_never().expect("there is room").expect("released");
    assert_eq!(slot.address, address(1));
    long.ended(End::Complete);
    let slot = again.as_mut().now_or_never().expect("its turn").expect("released");
    assert_eq!(slot.address, address(2));
}

fn told(id: &str, parent: Option<&str>) -> ServedModel {
    ServedModel { id: id.to_owned(), parent: parent.map(str::to_owned), max_model_len: None }
}

#[tokio::test(start_paused = true)]
async fn an_adapter_that_one_replica_has_is_asked_of_that_one_alone() {
    let pool = pool(r#"{"name": "p", "maxInFlight": 1}"#);
    (1..=3).for_each(|port| ready(&pool, port));
    pool.serves(address(1), vec![told("base", None)]);
    pool.serves(address(2), vec![told("base", None), told("ad", Some("base"))]);
    let of = |model: &str| {
        let mut ticket = ticket(60);
        ticket.model(Some(model));
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
    // The third loads it too.
    pool.serves(address(3), vec![told("base", None), told("ad", Some("base"))]);
    drop(base);
    let again = held.as_mut().now_or_never().expect("room there").expect("released");
    assert_eq!(again.address, address(3));
    drop((slot, again));
    let slot = pool.hold(&mut of("unheard-of")).await.expect("any, where none has told");
    drop(slot);
}

/// Sees for each log line whether the pool's lock is held.
struct Watch {
    pool: Arc<Pool>,
    lines: Arc<Mutex<Vec<(String, bool)>>>,
}

impl tracing::Subscriber for Watch {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        struct Text(String);
        impl tracing::field::Visit for Text {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                if field.name() == "message" {
                    self.0 = format!("{value:?}");
                }
            }
        }
        let mut text = Text(String::new());
        event.record(&mut text);
        self.lines.lock().push((text.0, self.pool.books.is_locked()));
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

#[tokio::test(start_paused = true)]
async fn nothing_is_logged_while_all_others_wait() {
    let pool = pool(r#"{"name": "p", "maxInFlight": 1}"#);
    let lines = Arc::new(Mutex::new(Vec::new()));
    let watch = Watch { pool: Arc::clone(&pool), lines: Arc::clone(&lines) };
    let _watched = tracing::subscriber::set_default(watch);
    let (mut first, mut second) = (ticket(60), ticket(60));
    let mut held = Box::pin(pool.hold(&mut first));
    assert!(held.as_mut().now_or_never().is_none());
    ready(&pool, 1);
    let slot = held.as_mut().now_or_never().expect("ready").expect("released");
    let mut left = Box::pin(pool.hold(&mut second));
    assert!(left.as_mut().now_or_never().is_none());
    drop(left);
    slot.ended(End::Failed(failure(Cause::EngineDead)));
    drop(held);
    for port in 2..=4 {
        ready(&pool, port);
        let slot = pool.hold(&mut first).await.expect("ready");
        let _ = pool.try_again(&mut first, &slot, &failure(Cause::EngineDead));
        slot.ended(End::Failed(failure(Cause::EngineDead)));
    }
    pool.set_barrier(Some((1, Duration::ZERO)));
    pool.tick();
    let lines = std::mem::take(&mut *lines.lock());
    for word in [
        "request held",
        "released after",
        "released",
        "failed a request",
        "is out",
        "three replicas died",
        "the scaler is silent",
    ] {
        assert!(lines.iter().any(|(line, _)| line.contains(word)), "{word}: {lines:?}");
    }
    let locked: Vec<_> = lines.iter().filter(|(_, locked)| *locked).collect();
    assert!(locked.is_empty(), "{locked:?}");
}

use super::*;
use forebay_signals::{ColdStart, FailedStart};

/// A report of failing starts, the next of which begins at `next_try_millis`.
fn failing(next_try_millis: Option<u64>) -> Option<FailedStart> {
    Some(FailedStart {
        reason: "exited with status 1".to_owned(),
        detail: "a secret".to_owned(),
        since_millis: 0,
        next_try_millis,
    })
}

fn refused(hold: Option<Result<Box<Slot>, Refusal>>) -> (String, Duration) {
    match hold {
        Some(Err(Refusal::StartFailed { why, retry_after })) => (why, retry_after),
        Some(Err(other)) => panic!("{other}"),
        Some(Ok(_)) => panic!("released"),
        None => panic!("held"),
    }
}

#[tokio::test(start_paused = true)]
async fn held_and_new_requests_are_refused_while_no_replica_can_be_started() {
    let pool = pool(r#"{"name": "p"}"#);
    let (mut first, mut second) = (ticket(600), ticket(600));
    let mut held = [Box::pin(pool.hold(&mut first)), Box::pin(pool.hold(&mut second))];
    for hold in &mut held {
        assert!(hold.as_mut().now_or_never().is_none(), "nothing is ready");
    }
    pool.set_failed_start(failing(None));
    for hold in &mut held {
        let (why, _) = refused(hold.as_mut().now_or_never());
        assert_eq!(why, ": the last one exited with status 1", "and no output");
    }
    drop(held);
    refused(pool.hold(&mut ticket(600)).now_or_never());
    assert_eq!(pool.signals().queue_depth, 3, "the refused ones are demand");
    pool.tick();
    assert_eq!(pool.signals().queue_depth, 0, "for a second");

    ready(&pool, 1);
    let slot = pool.hold(&mut ticket(600)).now_or_never().expect("a start has succeeded");
    drop(slot.expect("released"));
    // This report is older than the gateway's own probe.
    pool.set_failed_start(failing(None));
    let slot = pool.hold(&mut ticket(600)).now_or_never().expect("it still serves");
    drop(slot.expect("released"));
}

#[tokio::test(start_paused = true)]
async fn requests_are_held_again_when_starts_no_longer_fail() {
    let pool = pool(r#"{"name": "p"}"#);
    pool.set_failed_start(failing(None));
    refused(pool.hold(&mut ticket(600)).now_or_never());
    pool.set_failed_start(None);
    assert!(pool.hold(&mut ticket(600)).now_or_never().is_none(), "held");
}

#[tokio::test(start_paused = true)]
async fn a_full_replica_that_is_ready_holds_requests_whatever_the_starts_do() {
    let pool = pool(r#"{"name": "p", "maxInFlight": 1}"#);
    ready(&pool, 1);
    let slot = pool.hold(&mut ticket(600)).now_or_never().expect("room").expect("released");
    let mut next = ticket(600);
    let mut held = Box::pin(pool.hold(&mut next));
    assert!(held.as_mut().now_or_never().is_none());
    pool.set_failed_start(failing(None));
    assert!(held.as_mut().now_or_never().is_none(), "it waits for room");
    slot.ended(End::Complete);
    assert!(held.as_mut().now_or_never().expect("room").is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_refused_client_comes_back_after_the_next_start() {
    let pool = pool(r#"{"name": "p"}"#);
    let epoch = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH);
    let epoch = epoch.expect("after 1970").as_millis() as u64;
    let after = |next_try: Option<u64>| {
        pool.set_failed_start(failing(next_try));
        refused(pool.hold(&mut ticket(600)).now_or_never()).1.as_secs_f64().round()
    };
    // The clock of the epoch goes on in the test, by far less than half a second.
    assert!((after(Some(epoch + 20_000)) - 21.0).abs() <= 1.0);
    assert!((after(None) - 1.0).abs() < 0.1, "one is under way");
    assert!((after(Some(epoch - 20_000)) - 1.0).abs() < 0.1, "it is due");
    assert!((after(Some(u64::MAX)) - 601.0).abs() < 0.1, "a clock that is off");
    let learned = Some(ColdStart { p50_seconds: 60.0, p90_seconds: 80.0, samples: 3 });
    pool.set_cold_start(learned, 1, 0);
    assert!((after(None) - 80.0).abs() < 0.1, "a start takes that long");
}

#[tokio::test(start_paused = true)]
async fn a_failure_ends_when_the_scaler_no_longer_reports_it() {
    let pool = pool(r#"{"name": "p"}"#);
    pool.set_failed_start(failing(None));
    for _ in 0..3 {
        tokio::time::advance(Duration::from_secs(8)).await;
        pool.set_failed_start(failing(None));
        pool.tick();
        refused(pool.hold(&mut ticket(600)).now_or_never());
    }
    tokio::time::advance(Duration::from_secs(8)).await;
    pool.tick();
    refused(pool.hold(&mut ticket(600)).now_or_never());
    tokio::time::advance(Duration::from_secs(2)).await;
    pool.tick();
    assert!(pool.hold(&mut ticket(600)).now_or_never().is_none(), "held: the scaler is silent");
}

#[tokio::test(start_paused = true)]
async fn requests_that_no_replica_could_serve_are_not_charged_to_their_tenants() {
    let pool = pool(r#"{"name": "p", "maxInFlight": 1}"#);
    let of = |tenant: &str| {
        let mut ticket = ticket(600);
        ticket.entry.tenant = tenant.into();
        ticket.entry.cost = 100;
        ticket
    };
    let mut first = of("a");
    let mut hold = Box::pin(pool.hold(&mut first));
    assert!(hold.as_mut().now_or_never().is_none());
    pool.set_failed_start(failing(None));
    refused(hold.as_mut().now_or_never());
    pool.set_failed_start(None);
    let (mut other, mut next) = (of("b"), of("a"));
    let (mut other, mut next) = (Box::pin(pool.hold(&mut other)), Box::pin(pool.hold(&mut next)));
    assert!(other.as_mut().now_or_never().is_none());
    assert!(next.as_mut().now_or_never().is_none());
    ready(&pool, 1);
    let slot = next.as_mut().now_or_never().expect("both tenants were served nothing");
    drop((slot, other));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_outlasts_a_failure_is_held_as_one_that_has_not_had_its_turn() {
    let pool = pool(r#"{"name": "p", "hold": {"maxRequests": 1}}"#);
    let (mut early, mut late) = (ticket(600), ticket(600));
    {
        let mut hold = Box::pin(pool.hold(&mut early));
        assert!(hold.as_mut().now_or_never().is_none());
        // The failure ends before the request is polled.
        pool.set_failed_start(failing(None));
        pool.set_failed_start(None);
        let mut newer = Box::pin(pool.hold(&mut late));
        assert!(newer.as_mut().now_or_never().is_none(), "the place is free");
        let full = hold.as_mut().now_or_never().expect("not past the bound").err();
        assert!(matches!(full, Some(Refusal::QueueFull { held: 1, .. })), "{full:?}");
    }
    let mut hold = Box::pin(pool.hold(&mut early));
    assert!(hold.as_mut().now_or_never().is_none(), "there is room again");
    ready(&pool, 1);
    drop(hold.as_mut().now_or_never().expect("ready").expect("released"));
    let totals = pool.signals().totals;
    assert_eq!((totals.accepted, totals.released), (2, 1), "each counts once");
}

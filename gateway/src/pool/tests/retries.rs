use super::*;

/// Decides on another try, and leaves the request at its endpoint.
fn try_again(pool: &Pool, ticket: &mut Ticket, slot: &Slot, cause: Cause) -> Result<(), Refusal> {
    pool.try_again(&mut pool.scheduling.lock(), ticket, slot, &failure(cause))
}

#[tokio::test(start_paused = true)]
async fn a_request_goes_elsewhere_after_an_endpoint_failed_it() {
    let pool = pool(r#"{"name": "p"}"#);
    ready(&pool, 1);
    ready(&pool, 2);
    let mut ticket = ticket(60);
    let slot = pool.hold(&mut ticket).await.expect("ready");
    let failed = slot.address;
    ticket.requirements.avoid.insert(slot.process.id());
    slot.ended(End::Failed(failure(Cause::Connection)));
    let again = pool.hold(&mut ticket).await.expect("the other is ready");
    assert_ne!(again.address, failed);
}

#[tokio::test(start_paused = true)]
async fn a_request_is_tried_again_as_its_failures_allow() {
    use Cause::{
        Aborted, Connect, Connection, EngineDead, QueueFull, Server, ShuttingDown, Truncated,
        Unreachable,
    };
    let (poison, error) = ("replicas died", "replica's message");
    for (case, causes, draining, want) in [
        ("busy ones are no tries", vec![QueueFull; 50], false, None),
        ("nor are those that take nothing", [Connect, ShuttingDown].repeat(20), false, None),
        ("two deaths", vec![Connection, EngineDead], false, None),
        ("three deaths", vec![Connection, EngineDead, Connection], false, Some(poison)),
        ("three announced deaths", vec![Connection, EngineDead, Connection], true, None),
        ("stopped by an order", vec![Aborted; 4], false, None),
        ("gone without a sign", vec![Unreachable; 4], false, None),
        ("answers that make no sense", vec![Truncated; 4], false, None),
        ("five tries", vec![Aborted; 5], false, Some("5 counted")),
        ("two errors", vec![Server; 2], false, Some(error)),
    ] {
        let pool = pool(r#"{"name": "p"}"#);
        let mut ticket = ticket(60);
        let mut slots = Vec::new();
        let outcome = (1..).zip(&causes).try_for_each(|(port, cause)| {
            ready(&pool, port);
            let slot = pool.hold(&mut ticket).now_or_never().expect("ready").expect("released");
            pool.drain_endpoint(slot.address, draining);
            let outcome = try_again(&pool, &mut ticket, &slot, *cause);
            slots.push(slot);
            outcome
        });
        let refusal = outcome.err().map(|refusal| refusal.to_string());
        match want {
            None => assert_eq!(refusal, None, "{case}"),
            Some(want) => {
                let refusal = refusal.unwrap_or_else(|| panic!("{case}: tried again"));
                assert!(refusal.contains(want), "{case}: {refusal}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_replica_ends_a_request_only_if_a_reload_lowered_its_tries() {
    let pool = pool(r#"{"name": "p"}"#);
    let mut ticket = ticket(60);
    let mut failed_by = |port, cause| {
        ready(&pool, port);
        let slot = pool.hold(&mut ticket).now_or_never().expect("ready").expect("released");
        slot.decide_retry(&mut ticket, failure(cause))
    };
    assert!(failed_by(1, Cause::Aborted).is_ok() && failed_by(2, Cause::QueueFull).is_ok());
    let mut settings = forebay_config::Pool::clone(&pool.settings());
    settings.upstream.max_tries = 1;
    pool.reconfigure(settings);
    let refusal = failed_by(3, Cause::QueueFull).expect_err("no more tries");
    assert_eq!(refusal.status().0, http::StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test(start_paused = true)]
async fn a_failed_request_gives_its_unused_tokens_back_to_its_tenant() {
    for (case, generated, tried, next) in [
        ("no further try", 0, true, "a"),
        ("a stream that broke off", 90, false, "b"),
        ("a stream that broke off early", 1, false, "a"),
    ] {
        let pool = pool(r#"{"name": "p", "maxInFlight": 1, "upstream": {"maxTries": 1}}"#);
        ready(&pool, 1);
        let of = |tenant: &str, cost: u64| {
            let mut ticket = ticket(60);
            ticket.entry.tenant = tenant.into();
            (ticket.entry.cost, ticket.entry.answer) = (cost, cost);
            ticket
        };
        let mut failed = of("a", 100);
        let mut slot = pool.hold(&mut failed).await.expect("room");
        slot.generated(generated);
        // The answer goes on elsewhere, where these are a part of the prompt.
        slot.generated(0);
        if tried {
            assert!(slot.decide_retry(&mut failed, failure(Cause::Server)).is_err(), "{case}");
        } else {
            slot.ended(End::Failed(failure(Cause::Server)));
        }
        let mut first = of("b", 50);
        let first = pool.hold(&mut first).await.expect("room");
        let (mut b, mut a) = (of("b", 1), of("a", 1));
        let mut held_b = Box::pin(pool.hold(&mut b));
        assert!(held_b.as_mut().now_or_never().is_none());
        let mut held_a = Box::pin(pool.hold(&mut a));
        assert!(held_a.as_mut().now_or_never().is_none());
        let mut tab = first;
        tab.generated(50);
        tab.ended(End::Complete);
        let released = if held_a.as_mut().now_or_never().is_some() { "a" } else { "b" };
        assert_eq!(released, next, "{case}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_counts_as_released_once_however_often_it_is_tried() {
    let pool = pool(r#"{"name": "p"}"#);
    let mut held = ticket(60);
    let mut hold = Box::pin(pool.hold(&mut held));
    assert!(hold.as_mut().now_or_never().is_none());
    (1..=3).for_each(|port| ready(&pool, port));
    let slot = hold.await.expect("released");
    assert!(slot.decide_retry(&mut held, failure(Cause::Connection)).is_ok());
    let slot = pool.hold(&mut held).await.expect("another is ready");
    slot.ended(End::Complete);
    let totals = pool.signals().totals;
    assert_eq!((totals.accepted, totals.released), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_death_counts_once_and_not_at_all_if_an_order_explains_it_later() {
    let pool = pool(r#"{"name": "p", "upstream": {"maxTries": 50}}"#);
    let mut ticket = ticket(60);
    let mut die = |port: u16, times: u32| {
        ready(&pool, port);
        let slot = pool.hold(&mut ticket).now_or_never().expect("ready").expect("released");
        let mut outcome = Ok(());
        for _ in 0..times {
            outcome = try_again(&pool, &mut ticket, &slot, Cause::Connection);
        }
        let life = Arc::clone(&slot.process);
        slot.ended(End::Failed(failure(Cause::Connection)));
        (outcome.map_err(|refusal| refusal.to_string()), life)
    };
    let (outcome, first) = die(1, 5);
    assert_eq!(outcome, Ok(()), "one death, however often it shows");
    assert_eq!(die(2, 1).0, Ok(()));
    first.stopped();
    assert_eq!(die(3, 1).0, Ok(()), "two that nothing explains");
    assert!(die(4, 1).0.is_err_and(|refusal| refusal.contains("several replicas died")));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_has_begun_goes_on_as_long_as_it_makes_progress() {
    use Cause::{Aborted, Connection, EngineDead, NotContinued, Stalled};
    let (poison, tries) = ("died", "5 counted");
    for (case, causes, progress, want) in [
        ("a death after each long part of the answer", vec![Connection; 20], Some(64), None),
        ("a death after each token", vec![Connection; 2], Some(1), None),
        ("a death after each of three tokens", vec![Connection; 3], Some(1), Some(poison)),
        ("moved after each token", vec![Aborted; 32], Some(1), None),
        ("moved without an end", vec![Aborted; 33], Some(64), Some("33 counted")),
        ("two deaths with nothing between", vec![Connection, EngineDead], None, Some(poison)),
        ("a silence and a death", vec![Stalled, Connection], None, None),
        ("five tries with nothing between", vec![Aborted; 5], None, Some(tries)),
        ("replicas that begin anew", vec![NotContinued; 4], None, None),
    ] {
        let pool = pool(r#"{"name": "p"}"#);
        // It can always go to another one.
        (100..=180).for_each(|port| ready(&pool, port));
        let mut ticket = ticket(60);
        if progress.is_none() {
            ticket.progressed(64);
        }
        let outcome = (1..).zip(&causes).try_for_each(|(port, cause)| {
            ready(&pool, port);
            if let Some(tokens) = progress {
                ticket.progressed(tokens);
            }
            let slot = pool.hold(&mut ticket).now_or_never().expect("ready").expect("released");
            slot.decide_retry(&mut ticket, failure(*cause))
        });
        let refusal = outcome.err().map(|refusal| refusal.to_string());
        match want {
            None => assert_eq!(refusal, None, "{case}"),
            Some(want) => assert!(refusal.is_some_and(|text| text.contains(want)), "{case}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_does_not_go_on_with_answers_gets_no_other_one() {
    let pool = pool(r#"{"name": "p"}"#);
    ready(&pool, 1);
    let mut first = ticket(60);
    first.progressed(64);
    let slot = pool.hold(&mut first).await.expect("ready");
    let old = slot.address;
    slot.begins_anew();
    let refusal = slot.decide_retry(&mut first, failure(Cause::NotContinued));
    assert!(matches!(refusal, Err(Refusal::Failed(_))), "there is no other one");
    assert_eq!(
        pool.signals().endpoints.values().flatten().map(|endpoint| endpoint.failed).sum::<u64>(),
        0
    );
    ready(&pool, 2);
    // Another answer's replica is lost.
    let mut second = ticket(60);
    let slots = [(); 2].map(|()| pool.hold(&mut second).now_or_never());
    let slots = slots.map(|slot| slot.expect("ready").expect("released"));
    let mut lost = slots.into_iter().filter(|slot| slot.address != old);
    let lost = lost.next().expect("one at each");
    second.progressed(64);
    let refusal = lost.decide_retry(&mut second, failure(Cause::Connection));
    assert!(refusal.is_err_and(|refusal| refusal.to_string().contains("token ids")));
    // With others, an answer goes on there.
    (3..=4).for_each(|port| ready(&pool, port));
    let mut third = ticket(60);
    third.progressed(64);
    let slot = pool.hold(&mut third).await.expect("ready");
    assert!(slot.decide_retry(&mut third, failure(Cause::Aborted)).is_ok());
    // A request that has not begun goes there as before.
    let new: Vec<_> = (0..3).map(|_| pool.hold(&mut ticket(60)).now_or_never()).collect();
    let new = new.into_iter().map(|slot| slot.expect("ready").expect("released"));
    assert!(new.collect::<Vec<_>>().iter().any(|slot| slot.address == old));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_goes_on_may_be_held_as_long_as_any_other() {
    let pool = pool(r#"{"name": "p", "hold": {"timeout": "10s"}}"#);
    let mut ticket = ticket(600);
    for progressed in [false, true, true] {
        if progressed {
            ticket.progressed(64);
        }
        let began = Instant::now();
        assert!(pool.hold(&mut ticket).await.is_err(), "no endpoint");
        assert_eq!(began.elapsed().as_secs(), 10);
    }
    let began = Instant::now();
    assert!(pool.hold(&mut ticket).await.is_err(), "nothing came since");
    assert_eq!(began.elapsed().as_secs(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_lost_its_replica_prefers_one_that_was_started_since() {
    let pool = pool(r#"{"name": "p"}"#);
    (1..=3).for_each(|port| ready(&pool, port));
    let mut ticket = ticket(60);
    let slot = pool.hold(&mut ticket).await.expect("ready");
    let ended = slot.address;
    assert!(try_again(&pool, &mut ticket, &slot, Cause::EngineDead).is_ok());
    slot.ended(End::Failed(failure(Cause::EngineDead)));
    pool.probed(ended, Probe::Token, Probed::Unreachable("refused".into()));
    tokio::time::advance(Duration::from_secs(1)).await;
    pool.probed(ended, Probe::Health, Probed::Answered);
    warm(&pool, ended);
    for _ in 0..5 {
        let slot = pool.hold(&mut ticket).await.expect("ready");
        assert_eq!(slot.address, ended, "its restart is behind it");
        std::mem::forget(slot);
    }
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
        while try_again(&pool, &mut ticket, &slot, Cause::Aborted).is_ok() {
            again += 1;
        }
    }
    assert!((200..=310).contains(&again), "a fifth, and what is saved up: {again}");
}

#[tokio::test(start_paused = true)]
async fn a_retry_that_waits_for_another_endpoint_does_not_block_the_queue() {
    let pool = pool(r#"{"name": "p", "maxInFlight": 1}"#);
    ready(&pool, 1);
    let (mut failed, mut long, mut next) = (ticket(60), ticket(60), ticket(60));
    let slot = pool.hold(&mut failed).await.expect("room");
    ready(&pool, 2);
    let long = pool.hold(&mut long).await.expect("room at the other");
    failed.requirements.avoid.insert(slot.process.id());
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

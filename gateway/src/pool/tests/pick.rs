use forebay_scheduling::pick::CacheReport;
use forebay_scheduling::prompt::Prompt;

use super::*;
use crate::answer::meter::Tokens;
use crate::pool::endpoint::EngineReport;

fn settings(settings: &str) -> forebay_config::Pool {
    serde_json::from_str(settings).expect("a pool")
}

/// The ports that requests get which end before the next ones begin.
async fn ports(pool: &Arc<Pool>, count: usize) -> Vec<u16> {
    let mut ports = Vec::new();
    for _ in 0..count {
        let slot = pool.hold(&mut ticket(60)).await.expect("room");
        ports.push(slot.address.port());
        slot.ended(End::Complete);
    }
    ports
}

#[tokio::test(start_paused = true)]
async fn another_policy_applies_from_the_reload_on() {
    let pool = pool(r#"{"name": "p", "pick": "leastLoad"}"#);
    ready(&pool, 1);
    ready(&pool, 2);
    let busy = pool.hold(&mut ticket(60)).await.expect("room");
    assert_eq!(busy.address.port(), 1);
    assert_eq!(ports(&pool, 3).await, [2, 2, 2], "the other one is busy");
    pool.reconfigure(settings(r#"{"name": "p", "pick": "roundRobin"}"#));
    assert_eq!(ports(&pool, 4).await, [1, 2, 1, 2]);
    pool.reconfigure(settings(r#"{"name": "p", "pick": "leastLoad"}"#));
    assert_eq!(ports(&pool, 2).await, [2, 2]);
    busy.ended(End::Complete);
}

#[tokio::test(start_paused = true)]
async fn the_times_to_first_tokens_reach_the_policy() {
    let pool = pool(r#"{"name": "p", "pick": "powerOfTwo"}"#);
    ready(&pool, 1);
    ready(&pool, 2);
    // Both are measured once: the first token of a stream, however long the rest takes.
    let mut slots = Vec::new();
    for _ in 0..2 {
        slots.push(pool.hold(&mut ticket(60)).await.expect("room"));
    }
    slots.sort_by_key(|slot| slot.address);
    assert_ne!(slots[0].address, slots[1].address, "the second request goes to the idle one");
    tokio::time::advance(Duration::from_millis(10)).await;
    slots[1].first_token(Instant::now());
    tokio::time::advance(Duration::from_millis(990)).await;
    slots[0].first_token(Instant::now());
    slots[1].first_token(Instant::now());
    slots.into_iter().for_each(|slot| slot.ended(End::Complete));
    let mut busy = Vec::new();
    for _ in 0..40 {
        busy.push(pool.hold(&mut ticket(60)).await.expect("room"));
    }
    let slow = busy.iter().filter(|slot| slot.address.port() == 1).count();
    assert!(slow <= 2, "{slow} of 40 at the one that takes a hundred times as long");
}

#[tokio::test(start_paused = true)]
async fn only_an_answer_of_the_engine_is_measured() {
    let pool = pool(r#"{"name": "p", "pick": "powerOfTwo"}"#);
    ready(&pool, 1);
    ready(&pool, 2);
    // One endpoint refuses at once and the other works for half a second: the first is not preferred
    // for its quick refusals.
    let first = pool.hold(&mut ticket(60)).await.expect("room");
    let mut second = pool.hold(&mut ticket(60)).await.expect("room");
    let working = first.address;
    second.without_engine();
    second.ended(End::Complete);
    tokio::time::advance(Duration::from_millis(500)).await;
    first.ended(End::Complete);
    let mut busy = Vec::new();
    for _ in 0..30 {
        busy.push(pool.hold(&mut ticket(60)).await.expect("room"));
    }
    let at_working = busy.iter().filter(|slot| slot.address == working).count();
    assert!((13..=17).contains(&at_working), "{at_working} of 30 at the one that works");
}

/// A request whose prompt has these blocks.
fn prompted(blocks: &[u64]) -> Ticket {
    let mut ticket = ticket(60);
    let bytes = (blocks.len() * forebay_scheduling::prompt::BLOCK_BYTES) as u32;
    ticket.requirements.prompt =
        Some(Arc::new(Prompt { blocks: blocks.into(), bytes, session: None }));
    ticket.streams(true);
    ticket
}

#[tokio::test(start_paused = true)]
async fn a_prompt_follows_what_an_endpoint_has_worked_on() {
    let pool = pool(r#"{"name": "p", "pick": "prefixAffinity"}"#);
    for port in 1..=8 {
        ready(&pool, port);
    }
    let blocks: Vec<u64> = (0..100).collect();
    // The endpoint to which its first block leads is busy, so that another one gets it.
    let led = pool.hold(&mut prompted(&blocks)).await.expect("room");
    let mut others = Vec::new();
    let mut first = loop {
        let next = pool.hold(&mut prompted(&blocks)).await.expect("room");
        if next.address != led.address {
            break next;
        }
        others.push(next);
    };
    led.ended(End::Dropped);
    others.into_iter().for_each(|other| other.ended(End::Dropped));
    let port = first.address;
    // Until its first token nothing is known to be cached there.
    first.first_token(Instant::now());
    let longer: Vec<u64> = (0..110).collect();
    let mut second = pool.hold(&mut prompted(&longer)).await.expect("room");
    assert_eq!(second.address, port);
    second.first_token(Instant::now());
    let tokens =
        Tokens { prompt: Some(14_000), cached: Some(12_000), generated: 10, ..Tokens::default() };
    second.tokens(&tokens);
    second.ended(End::Complete);
    first.ended(End::Failed(failure(Cause::EngineDead)));
    let third = pool.hold(&mut prompted(&longer)).await.expect("room");
    assert_ne!(third.address, port, "it is out");
    third.ended(End::Complete);
}

#[tokio::test(start_paused = true)]
async fn what_an_endpoint_counts_stands_for_what_its_answers_do_not_say() {
    let pool = pool(r#"{"name": "p", "pick": "prefixAffinity"}"#);
    ready(&pool, 1);
    let counters = |found, all| EngineReport {
        cache: Some(CacheReport { counters: Some((found, all)), ..CacheReport::default() }),
        ..EngineReport::default()
    };
    let blocks: Vec<u64> = (0..100).collect();
    for (report, cached) in [(counters(500, 1_000), 0), (counters(7_000, 11_000), 6_500)] {
        pool.engine_reported(address(1), &report);
        let mut slot = pool.hold(&mut prompted(&blocks)).await.expect("room");
        let tokens = Tokens { prompt: Some(10_000), generated: 10, ..Tokens::default() };
        slot.tokens(&tokens);
        slot.ended(End::Complete);
        let signals = pool.signals();
        assert_eq!(signals.totals.cached_tokens, cached, "from its second report on");
        assert_eq!(
            signals.endpoints[&address(1).to_string()].clone().expect("it is there").cached_tokens,
            cached
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_plain_answer_leaves_its_prompt_in_the_cache() {
    let pool = pool(r#"{"name": "p", "pick": "prefixAffinity"}"#);
    for port in 1..=8 {
        ready(&pool, port);
    }
    let blocks = [7; 50];
    let first = pool.hold(&mut prompted(&blocks)).await.expect("room");
    let port = first.address;
    first.ended(End::Complete);
    let busy = pool.hold(&mut prompted(&blocks)).await.expect("room");
    let next = pool.hold(&mut prompted(&blocks)).await.expect("room");
    assert_eq!((busy.address, next.address), (port, port));
    busy.ended(End::Complete);
    next.ended(End::Dropped);
}

use std::time::Duration;

use forebay_config::Pick;

use super::super::tests::{Pool, candidate, prompted};
use super::super::{Candidate, Requirements};
use super::*;

mod fleet;

const START: Duration = Duration::from_secs(1);

fn pool(count: u16) -> Pool {
    Pool::new(Pick::PrefixAffinity, &(1..=count).map(candidate).collect::<Vec<_>>())
}

/// A prompt of so many blocks of its own behind these.
fn request(common: &[u64], own: u64, blocks: u64) -> Requirements {
    let blocks: Box<[u64]> = common.iter().copied().chain(own..own + blocks).collect();
    prompted(Prompt { bytes: (blocks.len() * BLOCK_BYTES) as u32, blocks, session: None })
}

/// Has a request answered at once by the endpoint that it is given to, and returns its port.
fn answered(pool: &mut Pool, request: &Requirements, now: Duration) -> u16 {
    let port = pool.pick(request).expect("room");
    let given = pool.give(request, now).expect("it learns");
    pool.end(given, now);
    port
}

#[test]
fn a_prompt_goes_where_its_beginning_is_remembered() {
    for count in [1, 2, 8, 100] {
        let mut pool = pool(count);
        let common: Vec<u64> = (1000..1040).collect();
        // Not at the endpoint to which the first block leads anyway.
        let led = pool.pick(&request(&common, 1, 2)).expect("room");
        if count > 1 {
            pool.set(led, Candidate { room: 0, ..candidate(led) });
        }
        let port = answered(&mut pool, &request(&common, 1, 2), START);
        pool.set(led, candidate(led));
        assert_eq!(port == led, count == 1);
        for own in 2..10 {
            assert_eq!(answered(&mut pool, &request(&common, own * 100, 2), START), port);
        }
    }
}

/// Opens the endpoint of one port alone, of so many.
fn open_only(pool: &mut Pool, count: u16, open: u16) {
    for port in 1..=count {
        let room = if port == open { 4 } else { 0 };
        pool.set(port, Candidate { room, ..candidate(port) });
    }
}

/// A pool of four in which the first holds `first` blocks of a prompt and the second, `gone`, holds
/// more. The first one has work of `busy` blocks, so that the others would be sooner: only what it
/// remembers speaks for it.
fn first_and_gone(common: &[u64], first: usize, busy: u64, gone: Candidate) -> Pool {
    let mut pool = pool(4);
    open_only(&mut pool, 4, 1);
    assert_eq!(answered(&mut pool, &request(&common[..first], 1, 1), START), 1);
    open_only(&mut pool, 4, 2);
    assert_eq!(answered(&mut pool, &request(common, 1, 1), START), 2);
    open_only(&mut pool, 4, 1);
    let _under_way = pool.give(&request(&[], 50_000, busy), START).expect("it learns");
    pool.set(1, Candidate { in_flight: 1, ..candidate(1) });
    pool.set(2, gone);
    [3, 4].into_iter().for_each(|port| pool.set(port, candidate(port)));
    pool
}

#[test]
fn a_dead_process_does_not_hide_what_a_live_one_remembers() {
    let common: Vec<u64> = (1000..1400).collect();
    let anew = Candidate { process: 1_000, ..candidate(2) };
    let mut pool = first_and_gone(&common, 380, 440, anew);
    assert_eq!(pool.pick(&request(&common, 20_000, 1)), Some(1));
}

#[test]
fn a_full_endpoint_does_not_hide_what_another_one_remembers() {
    let common: Vec<u64> = (1000..1400).collect();
    let full = Candidate { room: 0, ..candidate(2) };
    let mut pool = first_and_gone(&common, 200, 120, full);
    assert_eq!(pool.pick(&request(&common, 20_000, 1)), Some(1));
}

#[test]
fn a_client_that_reads_slowly_does_not_make_its_endpoint_slow() {
    let loads = |client_time: u64| {
        let mut pool = pool(2);
        for turn in 0..40 {
            let port = turn % 2 + 1;
            open_only(&mut pool, 2, port);
            let mut given = pool.give(&request(&[], 1, 1), START).expect("it learns");
            pool.first_token(&mut given, START);
            if port == 1 {
                given.set_client_time(Duration::from_secs(client_time));
            }
            let took = if port == 1 { 60 } else { 1 };
            pool.end_after(given, 100, START + Duration::from_secs(took));
        }
        [1, 2].into_iter().for_each(|port| pool.set(port, candidate(port)));
        for number in 0..40 {
            let _ = pool.give(&request(&[], number << 20, 1), START + Duration::from_secs(60));
        }
        pool.loads()
    };
    assert!(loads(59).iter().all(|load| (18..=22).contains(load)), "{:?}", loads(59));
    assert!(loads(0)[0] < 16, "{:?}", loads(0));
}

#[test]
fn the_index_forgets_an_endpoint_that_is_removed() {
    let mut pool = pool(2);
    let request = request(&[], 1, 50);
    let port = answered(&mut pool, &request, START);
    assert_eq!(pool.remembered(&request), [port]);
    pool.remove(3 - port);
    assert_eq!(pool.remembered(&request), [port]);
    pool.remove(port);
    assert_eq!(pool.remembered(&request), [0; 0]);
}

#[test]
fn an_engine_that_sleeps_remembers_nothing() {
    let mut pool = pool(2);
    let request = request(&[], 1, 50);
    let port = answered(&mut pool, &request, START);
    pool.sleeps(3 - port);
    assert_eq!(pool.remembered(&request), [port], "another one sleeps");
    pool.sleeps(port);
    assert_eq!(pool.remembered(&request), [0; 0]);
    let port = answered(&mut pool, &request, START);
    assert_eq!(pool.remembered(&request), [port], "it has woken");
}

#[test]
fn a_count_that_is_left_out_where_it_was_given_before_is_zero() {
    let mut pool = pool(1);
    let request = request(&[], 1, 50);
    for cached in [None, Some(9_000), None, None] {
        let given = pool.give(&request, START).expect("it learns");
        pool.end_with(given, cached, START);
    }
    assert!(pool.trust() < 0.95, "{}", pool.trust());
}

#[test]
fn an_answer_that_goes_on_elsewhere_tells_nothing_of_its_prompt() {
    let learned = |goes_on: bool| {
        let mut pool = pool(1);
        let request = request(&[], 1, 50);
        for second in 1..60 {
            let now = START * second;
            let mut given = pool.give(&request, now).expect("it learns");
            if goes_on {
                given.goes_on();
            }
            // A long answer is computed with the prompt, and nothing of that is in the cache.
            pool.first_token(&mut given, now + Duration::from_secs(30));
            pool.end_with(given, Some(0), now + Duration::from_secs(31));
        }
        let id = pool.id(1);
        let learned = pool.learned(id, START * 100);
        assert_eq!(pool.remembered(&request), [1], "it has the prompt in its cache");
        (pool.trust(), learned.first_token_slowness, learned.prompt_bytes_per_second)
    };
    let nothing = {
        let learned = pool(1).learned(EndpointId::of(0), START);
        (1.0, learned.first_token_slowness, learned.prompt_bytes_per_second)
    };
    assert_eq!(learned(true), nothing);
    assert!(learned(false).0 < 0.5 && learned(false).2 < nothing.2 / 2.0, "{:?}", learned(false));
}

#[test]
fn gateways_lead_a_new_prompt_to_the_same_endpoint_without_talking() {
    let mut ports = std::collections::BTreeSet::new();
    for first in 0..40 {
        let request = request(&[], first * 1000, 20);
        let port = pool(8).pick(&request);
        assert_eq!(pool(8).pick(&request), port);
        ports.insert(port);
    }
    assert!(ports.len() >= 6, "{ports:?}");
}

#[test]
fn a_busy_endpoint_is_not_waited_for_longer_than_the_match_saves() {
    let mut pool = pool(4);
    let common: Vec<u64> = (1000..1100).collect();
    let port = answered(&mut pool, &request(&common, 1, 1), START);
    // The match saves 51 kB of each 56 kB. So most wait for it, and the others go elsewhere.
    let mut there = 0;
    for own in 2..60 {
        let request = request(&common, own * 100, 10);
        there += u32::from(pool.pick(&request) == Some(port));
        let _ = pool.give(&request, START);
    }
    assert!((30..52).contains(&there), "{there} of 58");
    let loads = pool.loads();
    assert!(loads.iter().all(|load| *load >= 3), "{loads:?}");
}

#[test]
fn a_beginning_that_is_short_binds_nobody() {
    let mut pool = pool(4);
    let port = answered(&mut pool, &request(&[7], 1, 40), START);
    let busy = Candidate { in_flight: 12, ..candidate(port) };
    pool.set(port, busy);
    assert_ne!(pool.pick(&request(&[7], 100, 40)), Some(port));
}

#[test]
fn a_session_stays_where_it_was_whoever_else_has_its_beginning() {
    let mut pool = pool(8);
    let common: Vec<u64> = (1000..1020).collect();
    let turn = |session, own, blocks| {
        let mut turn = request(&common, own, blocks);
        let prompt = turn.prompt.as_deref().cloned().expect("it has one");
        turn.prompt = Some(std::sync::Arc::new(Prompt { session: Some(session), ..prompt }));
        turn
    };
    let port = answered(&mut pool, &turn(7, 1, 3), START);
    pool.set(port, Candidate { in_flight: 3, ..candidate(port) });
    for other in 8..20 {
        answered(&mut pool, &turn(other, other * 100, 2), START);
    }
    assert_eq!(pool.pick(&turn(7, 1, 6)), Some(port));
    pool.set(port, Candidate { in_flight: 200, ..candidate(port) });
    assert_ne!(pool.pick(&turn(7, 1, 6)), Some(port), "it is too busy now");
}

/// A pool in which conversations that begin with these have had some turns: two for each endpoint, and ten.
fn conversations(count: u16, common: &[u64]) -> Pool {
    let mut pool = pool(count);
    for turn in 1..8 {
        for own in 1..=10 {
            answered(&mut pool, &request(common, own * 1000, turn * 4), START);
        }
    }
    for own in 11..=10 + 2 * u64::from(count) {
        for turn in 1..4 {
            answered(&mut pool, &request(common, own * 1000, turn * 4), START);
        }
    }
    pool
}

#[test]
fn conversations_that_begin_at_once_are_spread() {
    let common: Vec<u64> = (100_000..100_040).collect();
    for count in [8, 40] {
        let mut pool = conversations(count, &common);
        for own in 0..32 {
            let _given = pool.give(&request(&common, 500_000 + own * 1000, 2), START);
        }
        let most = if count == 8 { 6 } else { 4 };
        let loads = pool.loads();
        assert!(loads.iter().all(|load| *load <= most), "{loads:?}");
    }
}

#[test]
fn conversations_that_were_not_answered_count_no_longer() {
    let common: Vec<u64> = (100_000..100_040).collect();
    let mut pool = conversations(4, &common);
    let next = |own: u64| request(&common, 500_000 + own * 1000, 2);
    let counts = |pool: &Pool| (1..=4).map(|port| pool.conversations(port)).collect::<Vec<_>>();
    let before = counts(&pool);
    let given: Vec<_> =
        (0..20).map(|own| pool.give(&next(own), START).expect("it learns")).collect();
    let sum = |counts: Vec<f32>| counts.iter().sum::<f32>();
    assert!((sum(counts(&pool)) - sum(before.clone()) - 20.0).abs() < 0.1);
    given.into_iter().for_each(|given| pool.fail(given, START));
    let near = |(one, other): (&f32, &f32)| (one - other).abs() < 0.01;
    assert!(before.iter().zip(&counts(&pool)).all(near), "{before:?}, {:?}", counts(&pool));
}

#[test]
fn a_long_beginning_that_few_caches_could_take_is_not_copied() {
    // 32,768 tokens of 262,144 are an eighth of a cache: about 256 blocks.
    for (blocks, spread) in [(200, true), (400, false)] {
        let common: Vec<u64> = (100_000..100_000 + blocks).collect();
        let mut pool = pool(8);
        open_only(&mut pool, 8, 1);
        for turn in 1..8 {
            for own in 1..=10 {
                answered(&mut pool, &request(&common, own * 1000, turn * 40), START);
            }
        }
        (1..=8).for_each(|port| pool.set(port, candidate(port)));
        let port = answered(&mut pool, &request(&common, 20_000, 40), START);
        assert_eq!(port != 1, spread, "{blocks}");
    }
}

#[test]
fn what_an_endpoint_remembered_goes_with_its_process() {
    let mut pool = pool(2);
    let common: Vec<u64> = (1000..1100).collect();
    let port = answered(&mut pool, &request(&common, 1, 2), START);
    pool.set(port, Candidate { process: 77, in_flight: 2, ..candidate(port) });
    assert_ne!(pool.pick(&request(&common, 5, 2)), Some(port));
}

#[test]
fn a_request_that_failed_leaves_no_trace() {
    let mut pool = pool(2);
    let common: Vec<u64> = (1000..1100).collect();
    let port = pool.pick(&request(&common, 1, 2)).expect("room");
    let given = pool.give(&request(&common, 1, 2), START).expect("it learns");
    pool.fail(given, START);
    pool.set(port, Candidate { in_flight: 20, ..candidate(port) });
    assert_ne!(pool.pick(&request(&common, 5, 2)), Some(port), "it remembers nothing");
}

#[test]
fn without_prefix_caches_the_load_alone_decides() {
    let mut pool = pool(2);
    let common: Vec<u64> = (1000..1100).collect();
    let port = answered(&mut pool, &request(&common, 1, 2), START);
    for own in 2..100 {
        let request = request(&common, own * 100, 2);
        let given = pool.give(&request, START).expect("it learns");
        pool.end_with(given, Some(0), START);
    }
    pool.set(port, Candidate { in_flight: 40, ..candidate(port) });
    assert_ne!(pool.pick(&request(&common, 5, 2)), Some(port));
}

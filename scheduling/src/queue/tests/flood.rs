//! A flood by one tenant, in simulated time: places that each serve one request after another.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;

const PLACES: usize = 20;
/// Milliseconds of simulated time.
const LENGTH: u64 = 600_000;

/// A request: its arrival, its tenant, and how long it keeps its place, in milliseconds.
type Arrival = (u64, &'static str, u64);

/// Random arrivals of a tenant, this many milliseconds apart on average. A request keeps its place for
/// 0.5 to 1.5 times two seconds.
fn arrivals(random: &mut SmallRng, tenant: &'static str, apart: f64) -> Vec<Arrival> {
    let mut at = 0.0;
    let mut next = || {
        at -= (1.0 - random.random::<f64>()).ln() * apart;
        (at as u64, tenant, 1_000 + random.random_range(0..2_000u64))
    };
    std::iter::from_fn(|| Some(next())).take_while(|(at, ..)| *at < LENGTH).collect()
}

/// The waits of one tenant's requests, in milliseconds, the shortest first.
fn waits(mut all: Vec<Arrival>, tenant: &str) -> Vec<u64> {
    all.sort_unstable();
    let mut queue = Queue::bounded(usize::MAX, u64::MAX);
    let mut busy: BinaryHeap<Reverse<u64>> = BinaryHeap::new();
    let (mut next, mut waits) = (0, Vec::new());
    loop {
        let arrival = all.get(next).map(|(at, ..)| *at);
        let end = busy.peek().map(|Reverse(at)| *at);
        let Some(now) = arrival.into_iter().chain(end).min() else { break };
        if end == Some(now) {
            busy.pop();
        } else {
            let (_, who, _) = all[next];
            hold(&mut queue, who, Normal, 250, next);
            next += 1;
        }
        while busy.len() < PLACES
            && let Some((.., number)) = queue.pop()
        {
            let (at, who, keeps) = all[number];
            busy.push(Reverse(now + keeps));
            waits.extend((who == tenant).then_some(now - at));
        }
    }
    waits.sort_unstable();
    waits
}

#[test]
fn a_flood_by_one_tenant_delays_the_others_by_less_than_one_service_time() {
    for seed in 0..5 {
        let random = &mut SmallRng::seed_from_u64(seed);
        // The places serve ten requests a second: others send 3 of them, the flood 30.
        let others = arrivals(random, "others", 1_000.0 / 3.0);
        let flood = arrivals(random, "flood", 1_000.0 / 30.0);
        let p95 = |waits: &[u64]| waits[waits.len() * 95 / 100];
        let alone = waits(others.clone(), "others");
        let beside = waits([&others[..], &flood].concat(), "others");
        assert_eq!(beside.len(), others.len(), "all are served");
        let median_service = 2_000;
        assert!(
            p95(&beside) <= p95(&alone) + median_service,
            "{} ms alone, {} ms beside the flood",
            p95(&alone),
            p95(&beside)
        );
        let flooded = waits([&others[..], &flood].concat(), "flood");
        assert!(p95(&flooded) > 60_000, "the flood itself waits: {} ms", p95(&flooded));
    }
}

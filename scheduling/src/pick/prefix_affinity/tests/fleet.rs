//! A small fleet in simulated time: each replica works on one prompt after the other, at a rate, and
//! then decodes all of its requests together; it has a prefix cache that drops what was not used for
//! the longest time. Chance has a seed.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};

use rand::SeedableRng;

use super::super::super::Given;
use super::*;

/// Microseconds.
type Us = u64;

/// A replica's speed: bytes of prompts in a second, and microseconds for a token, of its own and for
/// each request that it decodes at the same time.
#[derive(Clone, Copy)]
struct Speed {
    prefill: f64,
    token: f64,
    batch: f64,
}

/// About Llama 3.1 8B on an H100: 15,000 prompt tokens/s, 8 ms a token.
const H100: Speed = Speed { prefill: 60_000.0, token: 8000.0, batch: 60.0 };
/// The blocks that a replica's cache takes: 256k tokens.
const CACHE: usize = 2048;

struct Replica {
    speed: Speed,
    waiting: VecDeque<usize>,
    decoding: u32,
    /// By block, when it was last used.
    cache: HashMap<u64, u64>,
    uses: u64,
}

impl Replica {
    /// The blocks that it has to work on, and holds from now on.
    fn prefill(&mut self, blocks: &[u64]) -> usize {
        let held = blocks.iter().take_while(|block| self.cache.contains_key(block)).count();
        for block in blocks.iter().rev() {
            self.uses += 1;
            self.cache.insert(*block, self.uses);
        }
        if self.cache.len() > CACHE {
            let mut uses: Vec<_> = self.cache.values().copied().collect();
            uses.sort_unstable();
            // Some more than are too many, so that it need not be done each time.
            let oldest = uses[self.cache.len() - CACHE * 15 / 16];
            self.cache.retain(|_, used| *used >= oldest);
        }
        blocks.len() - held
    }
}

/// One request, and the next turn of its conversation.
#[derive(Clone)]
struct Turn {
    blocks: Vec<u64>,
    session: Option<u64>,
    output: u32,
    /// The turns after it: each begins so long after the end of the one before.
    next: VecDeque<(Us, Vec<u64>)>,
}

/// The outcome of a load.
#[derive(Debug)]
struct Outcome {
    /// Seconds, in order of size.
    ttft: Vec<f64>,
    hits: f64,
    /// Until the last answer was complete, in seconds.
    took: f64,
}

impl Outcome {
    fn quantile(&self, part: f64) -> f64 {
        self.ttft[((self.ttft.len() - 1) as f64 * part) as usize]
    }

    fn mean(&self) -> f64 {
        self.ttft.iter().sum::<f64>() / self.ttft.len() as f64
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrival,
    Prefilled(usize),
    Done,
}

fn run(policy: Pick, speeds: &[Speed], arrivals: &[(Us, Turn)]) -> Outcome {
    let all: Vec<_> = (0..speeds.len()).map(|at| candidate(at as u16 + 1)).collect();
    let mut pool = Pool::new(policy, &all);
    let mut replicas: Vec<_> = speeds
        .iter()
        .map(|speed| Replica {
            speed: *speed,
            waiting: VecDeque::new(),
            decoding: 0,
            cache: HashMap::new(),
            uses: 0,
        })
        .collect();
    let mut events = BinaryHeap::new();
    let mut turns: Vec<(Us, Turn, Option<Box<Given>>, u64)> = Vec::new();
    for (at, turn) in arrivals {
        events.push(Reverse((*at, Event::Arrival, turns.len())));
        turns.push((*at, turn.clone(), None, 0));
    }
    let (mut ttft, mut total, mut cached, mut last) = (Vec::new(), 0, 0, 0);
    while let Some(Reverse((now, event, at))) = events.pop() {
        let time = Duration::from_micros(now);
        match event {
            Event::Arrival => {
                let turn = &turns[at].1;
                let request = Requirements {
                    streamed: true,
                    ..prompted(Prompt {
                        blocks: turn.blocks.clone().into(),
                        bytes: (turn.blocks.len() * BLOCK_BYTES) as u32,
                        session: turn.session,
                    })
                };
                let (port, given) = pool.give_to(&request, time);
                let place = usize::from(port) - 1;
                turns[at].2 = given;
                turns[at].3 = place as u64;
                replicas[place].waiting.push_back(at);
                if replicas[place].waiting.len() == 1 {
                    events.push(begin(&mut replicas[place], place, &turns, now, &mut cached));
                }
            }
            Event::Prefilled(place) => {
                replicas[place].waiting.pop_front();
                ttft.push((now - turns[at].0) as f64 / 1e6);
                total += turns[at].1.blocks.len();
                if let Some(given) = &mut turns[at].2 {
                    pool.first_token(given, time);
                }
                let replica = &mut replicas[place];
                replica.decoding += 1;
                let token = replica.speed.token + replica.speed.batch * f64::from(replica.decoding);
                let took = (f64::from(turns[at].1.output) * token) as Us;
                events.push(Reverse((now + took, Event::Done, at)));
                if !replica.waiting.is_empty() {
                    events.push(begin(replica, place, &turns, now, &mut cached));
                }
            }
            Event::Done => {
                last = last.max(now);
                let place = turns[at].3 as usize;
                replicas[place].decoding -= 1;
                match turns[at].2.take() {
                    Some(given) => pool.end_after(given, turns[at].1.output.into(), time),
                    None => pool.leave_port(place as u16 + 1),
                }
                let mut turn = turns[at].1.clone();
                if let Some((pause, more)) = turn.next.pop_front() {
                    turn.blocks.extend(more);
                    events.push(Reverse((now + pause, Event::Arrival, turns.len())));
                    turns.push((now + pause, turn, None, 0));
                }
            }
        }
    }
    ttft.sort_by(f64::total_cmp);
    Outcome { ttft, hits: cached as f64 / total as f64, took: last as f64 / 1e6 }
}

fn begin(
    replica: &mut Replica,
    place: usize,
    turns: &[(Us, Turn, Option<Box<Given>>, u64)],
    now: Us,
    cached: &mut usize,
) -> Reverse<(Us, Event, usize)> {
    let at = replica.waiting[0];
    let blocks = &turns[at].1.blocks;
    let new = replica.prefill(blocks);
    *cached += blocks.len() - new;
    let seconds = 0.01 + (new * BLOCK_BYTES) as f64 / replica.speed.prefill;
    // Decoding takes its part of each step.
    let seconds = seconds * (1.0 + f64::from(replica.decoding) * replica.speed.batch / 20_000.0);
    Reverse((now + (seconds * 1e6) as Us, Event::Prefilled(place), at))
}

/// Arrivals at random, so many in a second.
fn arrivals(
    count: usize,
    per_second: f64,
    mut turn: impl FnMut(u64, &mut SmallRng) -> Turn,
) -> Vec<(Us, Turn)> {
    let mut random = SmallRng::seed_from_u64(11);
    let mut at = 0.0;
    (0..count as u64)
        .map(|number| {
            at += -(1.0 - random.random::<f64>()).ln() / per_second;
            ((at * 1e6) as Us, turn(number, &mut random))
        })
        .collect()
}

fn own(number: u64, part: u64, blocks: u64) -> Vec<u64> {
    let from = (number + 1) * 1_000_000 + part * 10_000;
    (from..from + blocks).map(mixed).collect()
}

fn mixed(number: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (number >> 3)
}

fn shared(name: u64, blocks: u64) -> Vec<u64> {
    (0..blocks).map(|block| mixed(name * 7_000_003 + block)).collect()
}

/// Conversations of eight turns behind one system prompt.
fn conversations(count: usize, per_second: f64) -> Vec<(Us, Turn)> {
    arrivals(count, per_second, |number, random| Turn {
        blocks: [shared(1, 4), own(number, 0, 12)].concat(),
        session: None,
        output: 150,
        next: (1..8)
            .map(|turn| (random.random_range(1_000_000..8_000_000), own(number, turn, 12)))
            .collect(),
    })
}

#[test]
fn conversations_find_their_caches() {
    let load = conversations(400, 4.0);
    let outcomes = [Pick::RoundRobin, Pick::LeastLoad, Pick::PrefixAffinity]
        .map(|policy| run(policy, &[H100; 8], &load));
    let [turns, least, affinity] = &outcomes;
    assert!(affinity.hits > 0.75 && affinity.hits > turns.hits + 0.2, "{}", affinity.hits);
    assert!(affinity.mean() < least.mean() / 4.0);
    assert!(affinity.quantile(0.95) < least.quantile(0.95) / 2.0);
}

#[test]
fn conversations_that_begin_alike_are_spread_while_no_replica_is_busy() {
    // Each grows to 430 blocks, about 25 go on at a time, and a cache takes 2,048.
    let load = arrivals(160, 0.08, |number, random| Turn {
        blocks: [shared(1, 70), own(number, 0, 30)].concat(),
        session: None,
        output: 150,
        next: (1..38)
            .map(|turn| (random.random_range(4_000_000..10_000_000), own(number, turn, 9)))
            .collect(),
    });
    let affinity = run(Pick::PrefixAffinity, &[H100; 8], &load);
    assert!(affinity.hits > 0.96, "{}", affinity.hits);
    // Where the caches overflow, a whole conversation is worked on again, and that takes 3 s.
    assert!(affinity.quantile(0.99) < 1.0, "{} s", affinity.quantile(0.99));
}

#[test]
fn one_hot_prefix_spreads() {
    let load = arrivals(3000, 30.0, |number, _| Turn {
        blocks: [shared(1, 60), own(number, 0, 8)].concat(),
        session: None,
        output: 100,
        next: VecDeque::new(),
    });
    let [least, affinity] =
        [Pick::LeastLoad, Pick::PrefixAffinity].map(|policy| run(policy, &[H100; 8], &load));
    assert!(affinity.quantile(0.95) < least.quantile(0.95) * 1.2);
}

#[test]
fn one_hot_prefix_at_three_times_what_one_replica_can_do_costs_little() {
    // A prompt whose beginning is remembered takes 0.15 s.
    let load = arrivals(3000, 3.0 / 0.147, |number, _| Turn {
        blocks: [shared(1, 62), own(number, 0, 16)].concat(),
        session: None,
        output: 20,
        next: VecDeque::new(),
    });
    let [least, affinity] =
        [Pick::LeastLoad, Pick::PrefixAffinity].map(|policy| run(policy, &[H100; 8], &load));
    let (p95, most) = (affinity.quantile(0.95), least.quantile(0.95) * 1.2);
    assert!(p95 < most, "{p95} s, {most} s allowed");
}

#[test]
fn a_slow_replica_harms_few() {
    let load = |per_second| {
        arrivals(4000, per_second, |number, _| Turn {
            blocks: own(number, 0, 20),
            session: None,
            output: 100,
            next: VecDeque::new(),
        })
    };
    // 70 % of what eight can do: one prompt takes 0.18 s.
    let slow = Speed { prefill: H100.prefill / 5.0, token: H100.token * 5.0, ..H100 };
    let mut speeds = [H100; 8];
    speeds[3] = slow;
    let load = load(0.7 * 7.2 / 0.18);
    let seven = run(Pick::PrefixAffinity, &[H100; 7], &load);
    let outcomes =
        [Pick::LeastLoad, Pick::PrefixAffinity].map(|policy| run(policy, &speeds, &load));
    assert!(outcomes[1].quantile(0.95) < seven.quantile(0.95) * 1.3);
}

#[test]
fn where_decoding_is_the_work_nothing_is_lost() {
    let load = arrivals(4000, 45.0, |number, _| Turn {
        blocks: [shared(1, 4), own(number, 0, 1)].concat(),
        session: None,
        output: 600,
        next: VecDeque::new(),
    });
    let slow = Speed { batch: 200.0, ..H100 };
    let outcomes =
        [Pick::LeastLoad, Pick::PrefixAffinity].map(|policy| run(policy, &[slow; 8], &load));
    let [least, affinity] = &outcomes;
    assert!(affinity.took < least.took * 1.03);
    assert!(affinity.quantile(0.95) < least.quantile(0.95) * 1.2);
}

#[test]
fn many_prefixes_each_for_some_are_divided_among_the_replicas() {
    // 200 system prompts of 30 kB: no replica can hold all.
    let load = arrivals(6000, 30.0, |number, random| Turn {
        blocks: [shared(random.random_range(1..200), 60), own(number, 0, 4)].concat(),
        session: None,
        output: 100,
        next: VecDeque::new(),
    });
    let outcomes = [Pick::RoundRobin, Pick::LeastLoad, Pick::ConsistentHash, Pick::PrefixAffinity]
        .map(|policy| run(policy, &[H100; 8], &load));
    let [_, least, hash, affinity] = &outcomes;
    assert!(affinity.hits > 0.65 && affinity.hits > hash.hits, "{}", affinity.hits);
    assert!(affinity.quantile(0.95) < least.quantile(0.95) / 2.0);
    assert!(affinity.quantile(0.95) < hash.quantile(0.95));
}

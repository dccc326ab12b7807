//! Measures what the choice of an endpoint costs a request of 1 KiB: chosen, its first token, its end.
//!
//! usage: cargo bench -p forebay-gateway --bench picking
//!
//! Each request is the second turn of a conversation, of whose prompt a half is new. The endpoints have
//! 0 to 12 requests in flight.

use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use forebay_config::Pick;
use forebay_gateway::inspect;
use forebay_scheduling::pick::{Candidate, Candidates, Picker, Requirements, Usage};
use forebay_scheduling::prompt::{BLOCK_BYTES, Prompt};
use tokio::time::Instant;

/// The number of runs of each case. The best and the median are reported.
const ROUNDS: u64 = 41;
/// The conversations of a run.
const CONVERSATIONS: u64 = 1000;
/// The bodies that are read in a run.
const TOGETHER: u64 = 50;
/// The endpoints of the pools.
const SIZES: [u32; 2] = [10, 10_000];

fn main() {
    let quick = !std::env::args().any(|argument| argument == "--bench");
    let rounds = if quick { 1 } else { ROUNDS };
    println!("µs a request: the least of {rounds} runs (the median)");
    let (hash, median) = hashing(rounds);
    println!("  {:32} {hash:.2} ({median:.2})", "its prompt hashed, while it is read");
    for size in SIZES {
        let [least, affinity] = [Pick::LeastLoad, Pick::PrefixAffinity].map(|policy| {
            let (best, median) = serving(policy, size, rounds);
            let name = format!("{policy:?}, {size} endpoints");
            println!("  {name:32} {best:.2} ({median:.2})");
            best
        });
        let more = affinity - least;
        println!("  {:32} {more:.2}, with the hashes {:.2}", "PrefixAffinity more", more + hash);
    }
}

/// The time that the hashes of its prompt add to the reading of a request.
fn hashing(rounds: u64) -> (f64, f64) {
    let text = "The quick brown fox said: \\\"jumps\\\" over the lazy dog.\\n".repeat(19);
    let body = format!(r#"{{"model":"m","messages":[{{"role":"user","content":"{text}"}}]}}"#);
    let body = Bytes::from(body);
    let read = times(rounds, || assert!(black_box(inspect::request(black_box(&body))).is_some()));
    let hashed = times(rounds, || {
        assert!(black_box(inspect::hashed_request(black_box(&body))).is_some());
    });
    (hashed.0 - read.0, hashed.1 - read.1)
}

/// Short runs, since the difference of two of them counts.
fn times(rounds: u64, mut work: impl FnMut()) -> (f64, f64) {
    let runs = (0..rounds * CONVERSATIONS / TOGETHER).map(|_| {
        let start = Instant::now();
        (0..TOGETHER).for_each(|_| work());
        start.elapsed()
    });
    summary(TOGETHER, runs)
}

/// The time that the way of a request through a pool of this many endpoints takes.
fn serving(policy: Pick, endpoints: u32, rounds: u64) -> (f64, f64) {
    let (mut candidates, mut picker) = (Candidates::default(), Picker::new(policy, 1));
    for number in 0..endpoints {
        let address = SocketAddr::from((Ipv4Addr::from(0x7f01_0000 + number), 8000));
        let candidate = Candidate {
            process: u64::from(number),
            ready: true,
            room: 100,
            in_flight: number * 7 % 13,
            suspect: false,
        };
        candidates.add(address, candidate);
    }
    picker.set_policy(policy, &mut candidates);
    let runs = (0..rounds).map(|round| {
        answer(&mut candidates, &mut picker, &turns(round, 1));
        let requests = turns(round, 2);
        let start = Instant::now();
        answer(&mut candidates, &mut picker, &requests);
        start.elapsed()
    });
    summary(CONVERSATIONS, runs)
}

/// Requests of the conversations of one run, with so many blocks of prompt each.
fn turns(round: u64, blocks: u64) -> Vec<Requirements> {
    let request = |conversation: u64| {
        let first = (round * CONVERSATIONS + conversation) * 2;
        // Any numbers of which no two are the same.
        let blocks = (first..first + blocks).map(|block| block.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let blocks: Box<[u64]> = blocks.collect();
        let bytes = (blocks.len() * BLOCK_BYTES) as u32;
        let prompt = Some(Arc::new(Prompt { blocks, bytes, session: None }));
        Requirements { prompt, streamed: true, ..Requirements::default() }
    };
    (0..CONVERSATIONS).map(request).collect()
}

/// Chooses endpoints for requests, each of which is answered before the next one comes.
fn answer(candidates: &mut Candidates, picker: &mut Picker, requests: &[Requirements]) {
    for (number, request) in requests.iter().enumerate() {
        let now = |part: u64| Duration::from_millis(10 * number as u64 + part);
        let choice = picker.pick(candidates, black_box(request), now(0));
        let choice = choice.expect("the pool has room");
        let before = *candidates.get(choice.id).expect("it was picked");
        let (in_flight, room) = (before.in_flight + 1, before.room - 1);
        candidates.given(choice.id, Candidate { in_flight, room, ..before });
        if let Some(mut given) = picker.given(candidates, choice, request, now(0)) {
            picker.first_token(&mut given, now(5));
            given.set_usage(Usage { prompt: 250, cached: Some(100), generated: 10 });
            black_box(picker.ended(&given, true, now(9)));
        }
        candidates.set(choice.id, before);
    }
}

/// Microseconds a request, of which a run has so many: the least and the median.
fn summary(requests: u64, runs: impl Iterator<Item = Duration>) -> (f64, f64) {
    let micros = |run: Duration| run.as_secs_f64() * 1e6 / requests as f64;
    let mut took: Vec<f64> = runs.map(micros).collect();
    took.sort_by(f64::total_cmp);
    (took[0], took[took.len() / 2])
}

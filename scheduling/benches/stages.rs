//! Benchmarks of picking an endpoint and of the queue, in instructions.
//!
//! usage: loadtests/measure/instructions --only stages
//!
//! That command installs the benchmarks' runner, and compares each count with its baseline.

#![expect(missing_docs, reason = "gungraun's macros make public items")]

use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use forebay_config::{Pick, PriorityClass};
use forebay_scheduling::pick::{Candidate, Candidates, Picker, Requirements, Usage};
use forebay_scheduling::prompt::{BLOCK_BYTES, Prompt};
use forebay_scheduling::queue::{Entry, Place, Queue};
use gungraun::{library_benchmark, library_benchmark_group, main};

/// The number of requests that `pick` gives to endpoints.
const PICKS: u32 = 100;

/// A pool of this many endpoints, between them with 0 to 12 requests in flight.
fn pool(endpoints: u32) -> Candidates {
    let mut candidates = Candidates::default();
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
    candidates
}

// Chooses endpoints for requests, and counts each request at its endpoint.
#[library_benchmark]
#[bench::among_10(pool(10))]
#[bench::among_10000(pool(10_000))]
fn pick(mut candidates: Candidates) -> Candidates {
    let (request, mut picker) = (Requirements::default(), Picker::new(Pick::LeastLoad, 1));
    for _ in 0..PICKS {
        let choice = picker.pick(&candidates, black_box(&request), Duration::ZERO);
        let id = choice.expect("the pool has room").id;
        let before = *candidates.get(id).expect("it was picked");
        let (in_flight, room) = (before.in_flight + 1, before.room - 1);
        candidates.given(id, Candidate { in_flight, room, ..before });
    }
    candidates
}

/// A pool, its picker and the requests to come.
type Served = (Candidates, Picker, Vec<Requirements>);

/// A pool of this many endpoints with this policy, which has served the first turns of a hundred
/// conversations, and their second turns: prompts of 1 KiB, of which a half is new.
fn serving((policy, endpoints): (Pick, u32)) -> Served {
    let (mut candidates, mut picker) = (pool(endpoints), Picker::new(policy, 1));
    picker.set_policy(policy, &mut candidates);
    let turn = |blocks: u64| {
        let request = move |conversation: u64| {
            let blocks = (1..=blocks).map(|block| (block << 32) | (conversation * 0x9e37_79b9));
            let blocks: Box<[u64]> = blocks.collect();
            let bytes = (blocks.len() * BLOCK_BYTES) as u32;
            let prompt = Some(Arc::new(Prompt { blocks, bytes, session: None }));
            Requirements { prompt, streamed: true, ..Requirements::default() }
        };
        (0..u64::from(PICKS)).map(request).collect::<Vec<_>>()
    };
    answer(&mut candidates, &mut picker, &turn(1));
    (candidates, picker, turn(2))
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
        let given = picker.given(candidates, choice, request, now(0));
        if let Some(mut given) = given {
            picker.first_token(&mut given, now(5));
            given.set_usage(Usage { prompt: 250, cached: Some(100), generated: 10 });
            black_box(picker.ended(&given, true, now(9)));
        }
        candidates.set(choice.id, before);
    }
}

// The second turns of those conversations.
#[library_benchmark]
#[bench::least_load(serving((Pick::LeastLoad, 10)))]
#[bench::prefix_affinity(serving((Pick::PrefixAffinity, 10)))]
#[bench::prefix_affinity_among_10000(serving((Pick::PrefixAffinity, 10_000)))]
fn serve((mut candidates, mut picker, requests): Served) -> Served {
    answer(&mut candidates, &mut picker, &requests);
    (candidates, picker, requests)
}

/// A queue that holds this many requests of ten tenants, and one more request.
fn queue(held: u64) -> (Queue<u64>, Place, Entry) {
    let mut queue = Queue::bounded(1_000_000, u64::MAX);
    let tenants: Vec<Arc<str>> = (0..10).map(|number| format!("tenant-{number}").into()).collect();
    let entry = |tenant: &Arc<str>| Entry {
        tenant: Arc::clone(tenant),
        class: PriorityClass::default(),
        bytes: 1024,
        tokens: 300,
        cost: 250,
        answer: 50,
        late_from: None,
        kind: 0,
    };
    for number in 0..held {
        let tenant = &tenants[(number % 10) as usize];
        let place = queue.arrive(PriorityClass::default(), tenant);
        assert!(queue.push(place, entry(tenant), number, false).is_ok(), "it has room");
    }
    let place = queue.arrive(PriorityClass::default(), &tenants[0]);
    (queue, place, entry(&tenants[0]))
}

// Holds a request, and releases the one whose turn it is.
#[library_benchmark]
#[bench::behind_10(queue(10))]
#[bench::behind_10000(queue(10_000))]
fn push_and_pop((mut queue, place, entry): (Queue<u64>, Place, Entry)) -> Queue<u64> {
    assert!(queue.push(place, entry, 0, false).is_ok(), "it has room");
    black_box(queue.pop().expect("it holds requests"));
    queue
}

library_benchmark_group!(name = stages, benchmarks = [pick, serve, push_and_pop]);
main!(library_benchmark_groups = stages);

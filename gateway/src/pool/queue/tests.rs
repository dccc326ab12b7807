use std::collections::BTreeMap;
use std::time::Duration;

use forebay_config::PriorityClass::{self, High, Low, Normal};
use proptest::prelude::*;

use super::*;

fn request(tenant: &str, class: PriorityClass, cost: u64) -> Request {
    let now = Instant::now();
    Request {
        tenant: tenant.into(),
        class,
        since: now,
        deadline: now + Duration::from_secs(1),
        bytes: 10,
        tokens: cost,
        cost,
        answer: 0,
    }
}

fn hold<W>(queue: &mut Queue<W>, tenant: &str, class: PriorityClass, cost: u64, who: W) -> Place {
    let place = queue.arrive(class, &tenant.into());
    assert_eq!(queue.push(place, request(tenant, class, cost), who, false), Ok(()));
    place
}

fn drain<W>(queue: &mut Queue<W>) -> Vec<W> {
    std::iter::from_fn(|| queue.pop().map(|(_, _, who)| who)).collect()
}

#[test]
fn is_bounded_in_requests_and_in_bytes() {
    let mut queue = Queue::bounded(2, 100);
    let of = |bytes| Request { bytes, ..request("a", Normal, 10) };
    let places: Vec<_> = (0..4).map(|_| queue.arrive(Normal, &"a".into())).collect();
    assert_eq!(queue.push(places[0], of(60), (), false), Ok(()));
    assert_eq!(queue.push(places[1], of(60), (), false), Err(Full { requests: 1 }), "bytes");
    assert_eq!(queue.push(places[2], of(40), (), false), Ok(()));
    assert_eq!(queue.push(places[3], of(0), (), false), Err(Full { requests: 2 }), "requests");
    assert_eq!(queue.push(places[3], of(0), (), true), Ok(()), "accepted before");
    assert!(queue.remove(places[3]).is_some());
    assert!(queue.remove(places[0]).is_some());
    assert!(queue.remove(places[0]).is_none(), "leaves once");
    assert_eq!((queue.depth(), queue.bytes(), queue.tokens()), (1, 40, 10));
}

#[test]
fn who_cannot_be_placed_keeps_the_place_and_lets_the_next_pass() {
    let mut queue = Queue::bounded(10, 1000);
    hold(&mut queue, "a", Normal, 100, "a1");
    let (place, released, _) = queue.pop().expect("held");
    queue.push(place, released, "a1, again", true).expect("accepted before");
    for who in ["a2", "a3"] {
        hold(&mut queue, "a", Normal, 10, who);
    }
    hold(&mut queue, "b", Normal, 10, "b1");
    hold(&mut queue, "c", Low, 10, "c1");
    let mut seen = Vec::new();
    let popped = queue.pop_first(|_, who| {
        seen.push(*who);
        *who == "a3"
    });
    assert_eq!(popped.map(|(.., who)| who), Some("a3"));
    assert_eq!(seen, ["a1, again", "a2", "a3"]);
    assert!(queue.pop_first(|_, _| false).is_none());
    assert_eq!(queue.depth(), 4);
    assert_eq!(drain(&mut queue), ["a1, again", "b1", "a2", "c1"]);
}

#[test]
fn a_request_tried_again_is_first_of_its_class_and_counted_once() {
    let mut queue = Queue::bounded(10, 1000);
    hold(&mut queue, "a", Normal, 100, "a1");
    let (place, released, _) = queue.pop().expect("held");
    hold(&mut queue, "b", Normal, 1, "b1");
    hold(&mut queue, "a", Normal, 1, "a2");
    hold(&mut queue, "c", High, 1, "c1");
    queue.push(place, released, "a1, again", true).expect("accepted before");
    assert_eq!(drain(&mut queue), ["c1", "a1, again", "b1", "a2"]);
}

#[test]
fn a_tenant_with_many_requests_does_not_hold_up_one_with_few() {
    let mut queue = Queue::bounded(1000, u64::MAX);
    for _ in 0..100 {
        hold(&mut queue, "many", Normal, 10, "many");
    }
    hold(&mut queue, "few", Normal, 10, "few");
    hold(&mut queue, "few", Normal, 10, "few");
    let order = drain(&mut queue);
    let places: Vec<_> = (0..order.len()).filter(|at| order[*at] == "few").collect();
    assert_eq!(places, [1, 3], "they take turns");
}

#[test]
fn turns_go_by_tokens_and_not_by_requests() {
    let mut queue = Queue::bounded(1000, u64::MAX);
    for _ in 0..50 {
        hold(&mut queue, "long", Normal, 900, "long");
        hold(&mut queue, "short", Normal, 100, "short");
    }
    let first: Vec<_> = drain(&mut queue).into_iter().take(50).collect();
    let long = first.iter().filter(|who| **who == "long").count();
    assert!((5..=6).contains(&long), "a tenth of the requests, half of the tokens: {long}");
}

#[test]
fn what_answers_really_used_is_counted() {
    let mut queue = Queue::bounded(10, 1000);
    let place = hold(&mut queue, "a", Normal, 10, "a1");
    hold(&mut queue, "b", Normal, 10, "b1");
    assert_eq!(queue.pop().map(|(.., who)| who), Some("a1"));
    hold(&mut queue, "a", Normal, 10, "a2");
    hold(&mut queue, "b", Normal, 10, "b2");
    hold(&mut queue, "b", Normal, 10, "b3");
    queue.charge(place, 15);
    assert_eq!(drain(&mut queue), ["b1", "b2", "b3", "a2"], "25 tokens used: three of b's turns");

    let place = hold(&mut queue, "a", Normal, 100, "a1");
    assert!(queue.pop().is_some());
    hold(&mut queue, "a", Normal, 10, "a2");
    queue.charge(place, -100);
    hold(&mut queue, "b", Normal, 10, "b1");
    assert_eq!(queue.pop().map(|(.., who)| who), Some("a2"), "nothing used, nothing lost");
}

#[test]
fn idleness_saves_nothing_up_and_room_used_alone_is_not_held_against_anyone() {
    let mut queue = Queue::bounded(1000, u64::MAX);
    // `a` has it for itself for long, without being held.
    for _ in 0..1000 {
        let place = queue.arrive(Normal, &"a".into());
        queue.pass(place, 100);
    }
    for _ in 0..20 {
        hold(&mut queue, "b", Normal, 100, "b");
    }
    for _ in 0..20 {
        hold(&mut queue, "a", Normal, 100, "a");
    }
    let first: Vec<_> = drain(&mut queue).into_iter().take(10).collect();
    let a = first.iter().filter(|who| **who == "a").count();
    assert!((4..=6).contains(&a), "as if both had begun now: {first:?}");
}

#[test]
fn ten_thousand_leave_from_anywhere_while_others_are_released() {
    let mut queue = Queue::bounded(10_000, u64::MAX);
    let tenants: Vec<Arc<str>> = (0..100).map(|n| format!("t{n}").into()).collect();
    let mut places = Vec::new();
    for n in 0..10_000_usize {
        let tenant = &tenants[n * 7 % 100];
        let place = queue.arrive(Normal, tenant);
        queue.push(place, request(tenant, Normal, 1 + n as u64 % 50), n, false).expect("room");
        places.push(place);
    }
    // From the middle outwards: what a walk over the queue would be slowest at.
    let mut left = 0;
    for n in 0..2_500 {
        left += usize::from(queue.remove(places[5_000 + n]).is_some());
        left += usize::from(queue.remove(places[4_999 - n]).is_some());
    }
    assert_eq!(left + drain(&mut queue).len(), 10_000);
    assert_eq!((queue.depth(), queue.bytes(), queue.tokens()), (0, 0, 0));
}

/// One thing that can happen to a queue.
#[derive(Clone, Debug)]
enum Event {
    Arrive { tenant: u8, class: PriorityClass, cost: u64 },
    Release,
    Again { released: usize },
    Leave { nth: usize },
    Charge { released: usize, tokens: i64 },
}

fn event() -> impl Strategy<Value = Event> {
    let class = prop_oneof![Just(High), Just(Normal), Just(Low)];
    prop_oneof![
        4 => (0..4u8, class, 1..1000u64)
            .prop_map(|(tenant, class, cost)| Event::Arrive { tenant, class, cost }),
        3 => Just(Event::Release),
        1 => (0..50usize).prop_map(|released| Event::Again { released }),
        1 => (0..50usize).prop_map(|nth| Event::Leave { nth }),
        1 => (0..50usize, -2000..2000i64)
            .prop_map(|(released, tokens)| Event::Charge { released, tokens }),
    ]
}

proptest! {
    #[test] // what enters leaves exactly once, and no class overtakes a higher one
    fn nothing_is_lost_or_released_twice(events in prop::collection::vec(event(), 0..200)) {
        let mut queue = Queue::bounded(1000, u64::MAX);
        let mut held: BTreeMap<u64, (Place, PriorityClass)> = BTreeMap::new();
        let mut released: Vec<(Place, Request)> = Vec::new();
        for event in events {
            match event {
                Event::Arrive { tenant, class, cost } => {
                    let tenant = format!("t{tenant}");
                    let place = queue.arrive(class, &tenant.as_str().into());
                    queue.push(place, request(&tenant, class, cost), place.seq, false).expect("room");
                    held.insert(place.seq, (place, class));
                }
                Event::Release => {
                    let popped = queue.pop();
                    if let Some((place, request, who)) = popped {
                        prop_assert_eq!(who, place.seq);
                        let (_, class) = held.remove(&who).expect("held until now");
                        prop_assert!(held.values().all(|(_, other)| class <= *other));
                        released.push((place, request));
                    } else {
                        prop_assert!(held.is_empty());
                    }
                }
                Event::Again { released: nth } if nth < released.len() => {
                    let (place, request) = released.swap_remove(nth);
                    held.insert(place.seq, (place, request.class));
                    queue.push(place, request, place.seq, true).expect("accepted before");
                }
                Event::Leave { nth } => {
                    if let Some((&seq, &(place, _))) = held.iter().nth(nth) {
                        prop_assert!(queue.remove(place).is_some());
                        prop_assert!(queue.remove(place).is_none());
                        held.remove(&seq);
                    }
                }
                Event::Charge { released: nth, tokens } => {
                    if let Some((place, _)) = released.get(nth) {
                        queue.charge(*place, tokens);
                    }
                }
                Event::Again { .. } => {}
            }
            prop_assert_eq!(queue.depth(), held.len());
            prop_assert_eq!(queue.bytes(), held.len() as u64 * 10);
        }
    }

    #[test] // what tenants got while all of them waited differs by no more than two requests' worth
    fn tenants_that_wait_get_the_same_tokens(
        costs in prop::collection::vec((0..4usize, 1..1000u64), 40..200),
    ) {
        let mut queue = Queue::bounded(1000, u64::MAX);
        let mut waiting = [0usize; 4];
        for (tenant, cost) in &costs {
            hold(&mut queue, &format!("t{tenant}"), Normal, *cost, (*tenant, *cost));
            waiting[*tenant] += 1;
        }
        let mut got = [0u64; 4];
        let there = waiting.map(|n| n > 0);
        while (0..4).all(|tenant| !there[tenant] || waiting[tenant] > 0) {
            let Some((.., (tenant, cost))) = queue.pop() else { break };
            waiting[tenant] -= 1;
            got[tenant] += cost;
            let all = (0..4).filter(|tenant| there[*tenant]).map(|tenant| got[tenant]);
            let (least, most) = all.fold((u64::MAX, 0), |(l, m), it| (l.min(it), m.max(it)));
            prop_assert!(most - least <= 2000, "{got:?}");
        }
    }

    #[test] // a request waits for no more than what was there, and a share of what comes after
    fn nobody_waits_for_ever(
        before in prop::collection::vec((0..3usize, 1..100u64), 0..50), cost in 1..100u64,
    ) {
        let mut queue = Queue::bounded(1000, u64::MAX);
        for (tenant, cost) in &before {
            hold(&mut queue, &format!("t{tenant}"), Normal, *cost, false);
        }
        hold(&mut queue, "t3", Normal, cost, true);
        // All others come back for each that is released.
        for _ in 0..1000 {
            let (place, request, mine) = queue.pop().expect("held");
            if mine {
                return Ok(());
            }
            let _ = place;
            hold(&mut queue, &request.tenant, Normal, request.cost, false);
        }
        prop_assert!(false, "starved");
    }

    #[test]
    fn a_tenants_own_requests_leave_in_their_order(costs in prop::collection::vec(1..100u64, 0..50)) {
        let mut queue = Queue::bounded(100, u64::MAX);
        for (n, cost) in costs.iter().enumerate() {
            hold(&mut queue, "a", Normal, *cost, n);
        }
        prop_assert_eq!(drain(&mut queue), (0..costs.len()).collect::<Vec<_>>());
    }
}

use std::collections::BTreeMap;

use forebay_config::PriorityClass::{self, High, Low, Normal};
use proptest::prelude::*;

use super::*;

mod flood;
mod order;

fn entry(tenant: &str, class: PriorityClass, cost: u64) -> Entry {
    Entry {
        tenant: tenant.into(),
        class,
        bytes: 10,
        tokens: cost,
        cost,
        answer: 0,
        late_from: None,
        kind: cost % 3,
    }
}

fn hold<W>(queue: &mut Queue<W>, tenant: &str, class: PriorityClass, cost: u64, waker: W) -> Place {
    let place = queue.arrive(class, &tenant.into());
    assert_eq!(queue.push(place, entry(tenant, class, cost), waker, false), Ok(()));
    place
}

fn drain<W>(queue: &mut Queue<W>) -> Vec<W> {
    std::iter::from_fn(|| queue.pop().map(|(_, _, who)| who)).collect()
}

#[test]
fn the_queue_is_bounded_in_requests_and_in_bytes() {
    let mut queue = Queue::bounded(2, 100);
    let of = |bytes| Entry { bytes, ..entry("a", Normal, 10) };
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
fn a_drained_queue_is_empty_and_has_charged_no_tenant() {
    let mut queue = Queue::bounded(10, 1000);
    hold(&mut queue, "a", Normal, 30, "a, released");
    let (place, released, _) = queue.pop().expect("held");
    for (class, who) in [(Low, "low"), (Normal, "normal"), (High, "high")] {
        hold(&mut queue, "a", class, 100, who);
    }
    queue.push(place, released, "a, again", true).expect("accepted before");
    assert_eq!(queue.drain(), ["high", "a, again", "normal", "low"], "in the order of release");
    assert_eq!((queue.depth(), queue.bytes(), queue.tokens()), (0, 0, 0));
    assert!(queue.drain().is_empty());
    assert!(queue.remove(place).is_none(), "each leaves once");
    for who in ["b1", "b2", "b3"] {
        hold(&mut queue, "b", Normal, 20, who);
    }
    hold(&mut queue, "a", Normal, 20, "a1");
    assert_eq!(drain(&mut queue), ["b1", "b2", "a1", "b3"], "`a` was served 30 tokens");
}

#[test]
fn a_request_that_cannot_be_placed_keeps_its_place_and_lets_the_next_pass() {
    let mut queue = Queue::bounded(10, 1000);
    hold(&mut queue, "a", Normal, 100, "a1");
    let (place, released, _) = queue.pop().expect("held");
    queue.push(place, released, "a1, again", true).expect("accepted before");
    for (who, cost) in [("a2", 10), ("a3", 11)] {
        hold(&mut queue, "a", Normal, cost, who);
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
fn one_request_of_a_kind_speaks_for_all_of_them() {
    let mut queue = Queue::bounded(20_000, u64::MAX);
    for tenant in 0..1000 {
        for _ in 0..10 {
            hold(&mut queue, &format!("t{tenant}"), Normal, 3, "full");
        }
    }
    hold(&mut queue, "other", Normal, 4, "has room");
    let mut asked = 0;
    let popped = queue.pop_first(|_, who| {
        asked += 1;
        *who == "has room"
    });
    assert_eq!((popped.map(|(.., who)| who), asked), (Some("has room"), 2));
}

#[test]
fn a_request_tried_again_is_first_of_its_class() {
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
fn streams_that_broke_are_first_in_the_order_in_which_they_broke() {
    let mut queue = Queue::bounded(10, 1000);
    let names = ["first", "second", "third", "not begun"];
    for who in names {
        hold(&mut queue, "a", Normal, 10, who);
    }
    let mut released: Vec<_> = names.iter().map(|_| queue.pop().expect("held")).collect();
    hold(&mut queue, "a", Normal, 10, "new");
    let (place, entry, who) = released.pop().expect("four");
    queue.push(place, entry, who, true).expect("accepted before");
    // They broke in another order than they came. The last one breaks once more.
    released.rotate_right(1);
    for (place, entry, who) in &mut released {
        *place = queue.broke(*place);
        queue.push(*place, entry.clone(), *who, true).expect("accepted before");
    }
    let (place, entry, who) = released.remove(1);
    assert_eq!(queue.remove(place).map(|(_, who)| who), Some(who));
    let place = queue.broke(place);
    queue.push(place, entry, who, true).expect("accepted before");
    let ahead: Vec<_> = queue.releases().map(|(.., who)| *who).collect();
    let order = ["third", "second", "first", "not begun", "new"];
    assert_eq!(ahead, order, "as it is forecast");
    assert_eq!(drain(&mut queue), order);
}

#[test]
fn a_request_tried_again_is_charged_for_its_answer_alone() {
    let order = |held: bool, generated: i64| {
        let mut queue = Queue::bounded(10, 1000);
        let request = Entry { answer: 60, ..entry("a", Normal, 100) };
        let place = queue.arrive(Normal, &"a".into());
        queue.pass(place, &request, false);
        queue.charge(place, generated - 60);
        if held {
            queue.push(place, request, "a1", true).expect("accepted before");
            assert!(queue.pop().is_some());
        } else {
            queue.pass(place, &request, true);
        }
        hold(&mut queue, "b", Normal, 99, "b1");
        hold(&mut queue, "a", Normal, 1, "a2");
        hold(&mut queue, "b", Normal, 3, "b2");
        hold(&mut queue, "b", Normal, 1, "b3");
        drain(&mut queue)
    };
    for held in [false, true] {
        // `a` is charged 40 for the prompt and 60 for the answer; `b` 99 and then 102.
        assert_eq!(order(held, 0), ["b1", "b2", "a2", "b3"], "held: {held}");
        assert_eq!(order(held, 50), ["b1", "b2", "b3", "a2"], "held: {held}, 50 generated before");
    }
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
fn tenants_share_tokens_equally_not_requests() {
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
fn a_tenant_is_charged_the_tokens_that_its_answer_used() {
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
fn a_tab_charges_as_the_queue_itself_does() {
    let mut queue = Queue::bounded(10, 1000);
    let place = hold(&mut queue, "a", Normal, 10, "a1");
    hold(&mut queue, "b", Normal, 10, "b1");
    let tab = queue.tab(place);
    assert_eq!(queue.pop().map(|(.., who)| who), Some("a1"));
    hold(&mut queue, "a", Normal, 10, "a2");
    hold(&mut queue, "b", Normal, 10, "b2");
    hold(&mut queue, "b", Normal, 10, "b3");
    tab.charge(10);
    tab.charge(5);
    assert_eq!(drain(&mut queue), ["b1", "b2", "b3", "a2"]);
    tab.charge(1000);
    hold(&mut queue, "b", Normal, 10, "b4");
    hold(&mut queue, "a", Normal, 10, "a3");
    hold(&mut queue, "b", Normal, 10, "b5");
    assert_eq!(drain(&mut queue), ["b4", "b5", "a3"], "also while it holds nothing");
}

#[test]
fn a_pause_saves_nothing_up_and_tokens_used_without_competition_cost_nothing_later() {
    let mut queue = Queue::bounded(1000, u64::MAX);
    // `a` alone uses the pool for long, and is never held.
    for _ in 0..1000 {
        let place = queue.arrive(Normal, &"a".into());
        queue.pass(place, &entry("a", Normal, 100), false);
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
fn ten_thousand_requests_can_leave_from_any_place_while_others_are_released() {
    let mut queue = Queue::bounded(10_000, u64::MAX);
    let tenants: Vec<Arc<str>> = (0..100).map(|n| format!("t{n}").into()).collect();
    let mut places = Vec::new();
    for n in 0..10_000_usize {
        let tenant = &tenants[n * 7 % 100];
        let place = queue.arrive(Normal, tenant);
        queue.push(place, entry(tenant, Normal, 1 + n as u64 % 50), n, false).expect("room");
        places.push(place);
    }
    // From the middle outwards, where a walk over the queue would be slowest.
    let mut left = 0;
    for n in 0..2_500 {
        left += usize::from(queue.remove(places[5_000 + n]).is_some());
        left += usize::from(queue.remove(places[4_999 - n]).is_some());
    }
    assert_eq!(left + drain(&mut queue).len(), 10_000);
    assert_eq!((queue.depth(), queue.bytes(), queue.tokens()), (0, 0, 0));
}

/// An operation on a queue.
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
    #[test] // an entry leaves exactly once, and no class overtakes a higher one
    fn nothing_is_lost_or_released_twice(events in prop::collection::vec(event(), 0..200)) {
        let mut queue = Queue::bounded(1000, u64::MAX);
        let mut held: BTreeMap<u64, (Place, PriorityClass)> = BTreeMap::new();
        let mut released: Vec<(Place, Entry)> = Vec::new();
        for event in events {
            match event {
                Event::Arrive { tenant, class, cost } => {
                    let tenant = format!("t{tenant}");
                    let place = queue.arrive(class, &tenant.as_str().into());
                    queue.push(place, entry(&tenant, class, cost), place.seq, false).expect("room");
                    held.insert(place.seq, (place, class));
                }
                Event::Release => {
                    let popped = queue.pop();
                    if let Some((place, entry, waker)) = popped {
                        prop_assert_eq!(waker, place.seq);
                        let (_, class) = held.remove(&waker).expect("held until now");
                        prop_assert!(held.values().all(|(_, other)| class <= *other));
                        released.push((place, entry));
                    } else {
                        prop_assert!(held.is_empty());
                    }
                }
                Event::Again { released: nth } if nth < released.len() => {
                    let (place, entry) = released.swap_remove(nth);
                    held.insert(place.seq, (place, entry.class));
                    queue.push(place, entry, place.seq, true).expect("accepted before");
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

    #[test] // while all of them wait, tenants' tokens differ by at most two requests' worth
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
            let (least, most) = all.fold((u64::MAX, 0), |(l, m), value| (l.min(value), m.max(value)));
            prop_assert!(most - least <= 2000, "{got:?}");
        }
    }

    #[test] // a request waits for those before it, and for a share of those after it
    fn every_request_has_its_turn_in_the_end(
        before in prop::collection::vec((0..3usize, 1..100u64), 0..50), cost in 1..100u64,
    ) {
        let mut queue = Queue::bounded(1000, u64::MAX);
        for (tenant, cost) in &before {
            hold(&mut queue, &format!("t{tenant}"), Normal, *cost, false);
        }
        hold(&mut queue, "t3", Normal, cost, true);
        // Each tenant whose request is released sends another one at once.
        for _ in 0..1000 {
            let (_, entry, mine) = queue.pop().expect("held");
            if mine {
                return Ok(());
            }
            hold(&mut queue, &entry.tenant, Normal, entry.cost, false);
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

//! The order of release by the objective, the shares of late requests and lower classes, and the
//! forecast of all this.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// Holds a request that is late from a second on.
fn hold_until(
    queue: &mut Queue<&'static str>,
    tenant: &str,
    late_from: u32,
    waker: &'static str,
) -> Place {
    let place = queue.arrive(Normal, &tenant.into());
    let entry = Entry { late_from: Some(SECOND * late_from), ..entry(tenant, Normal, 10) };
    queue.push(place, entry, waker, false).expect("room");
    place
}

#[test]
fn those_that_can_meet_the_objective_go_before_those_that_no_longer_can() {
    let mut queue = Queue::bounded(100, 10_000);
    let gone = hold_until(&mut queue, "a", 1, "a, gone");
    hold_until(&mut queue, "a", 1, "a, late");
    hold_until(&mut queue, "b", 2, "b, late");
    hold_until(&mut queue, "a", 9, "a, in time");
    hold_until(&mut queue, "b", 9, "b, in time");
    assert!(queue.remove(gone).is_some());
    queue.advance(SECOND * 2);
    let forecast: Vec<_> = queue.releases().map(|(_, _, who)| *who).collect();
    assert_eq!(drain(&mut queue), ["a, in time", "b, in time", "a, late", "b, late"]);
    assert_eq!(forecast, ["a, in time", "b, in time", "a, late", "b, late"]);
}

#[test]
fn late_requests_get_one_release_in_twenty() {
    let mut queue = Queue::bounded(1000, 100_000);
    hold_until(&mut queue, "a", 1, "late");
    hold_until(&mut queue, "a", 1, "late");
    queue.advance(SECOND);
    let mut released = Vec::new();
    for _ in 0..44 {
        hold_until(&mut queue, "b", 1000, "in time");
        hold_until(&mut queue, "b", 1000, "in time");
        released.push(queue.pop().map(|(.., who)| who).expect("held"));
    }
    let late: Vec<_> = (0..44).filter(|at| released[*at] == "late").collect();
    assert_eq!(late, [20, 41], "after twenty others each");
}

#[test]
fn a_lower_class_gets_its_share_and_no_more() {
    for (share, want) in [(0.0, 0), (0.1, 18), (0.5, 66)] {
        let mut queue = Queue::bounded(10_000, u64::MAX);
        queue.set_lower_share(share);
        let mut low = 0;
        for _ in 0..500 {
            hold(&mut queue, "a", High, 10, High);
            hold(&mut queue, "a", Low, 10, Low);
        }
        for _ in 0..200 {
            low += i32::from(queue.pop().map(|(.., class)| class) == Some(Low));
        }
        assert_eq!(low, want, "{share}");
    }
}

#[test]
fn a_tenants_flood_does_not_delay_what_others_may_expect() {
    let mut queue = Queue::bounded(10_000, u64::MAX);
    for _ in 0..1000 {
        hold(&mut queue, "flood", Normal, 100, 0);
    }
    let place = queue.arrive(Normal, &"flood".into());
    assert_eq!(queue.ahead(place, false), 1000);
    let place = queue.arrive(Normal, &"other".into());
    assert!(queue.ahead(place, false) <= 1, "{}", queue.ahead(place, false));
    for _ in 0..9 {
        hold(&mut queue, "other", Normal, 100, 0);
    }
    let place = queue.arrive(Normal, &"other".into());
    assert!((17..=20).contains(&queue.ahead(place, false)), "{}", queue.ahead(place, false));
    hold(&mut queue, "batch", Low, 100, 0);
    let place = queue.arrive(Low, &"batch".into());
    assert_eq!(queue.ahead(place, false), 1010);
}

/// An operation on a queue that orders by the objective.
#[derive(Clone, Debug)]
enum Event {
    Arrive { tenant: u8, class: PriorityClass, cost: u64, late_after: Option<u64> },
    Release,
    Again { released: usize },
    Leave { nth: usize },
    Wait { seconds: u64 },
    NoneReady,
}

fn event() -> impl Strategy<Value = Event> {
    let class = prop_oneof![Just(High), Just(Normal), Just(Low)];
    let late_after = prop::option::of(0..20u64);
    prop_oneof![
        5 => (0..4u8, class, 1..1000u64, late_after).prop_map(|(tenant, class, cost, late_after)| {
            Event::Arrive { tenant, class, cost, late_after }
        }),
        3 => Just(Event::Release),
        1 => (0..50usize).prop_map(|released| Event::Again { released }),
        1 => (0..50usize).prop_map(|nth| Event::Leave { nth }),
        1 => (1..10u64).prop_map(|seconds| Event::Wait { seconds }),
        1 => Just(Event::NoneReady),
    ]
}

/// A held request in the model.
#[derive(Clone, Copy, Debug)]
struct Kept {
    place: Place,
    class: PriorityClass,
    late_from: Option<u64>,
    again: bool,
    cost: u64,
}

/// Releases since a lane was first passed over while it waited.
#[derive(Default)]
struct Passed {
    late: [u32; PriorityClass::COUNT],
    lower: [u32; PriorityClass::COUNT],
}

proptest! {
    // Against a plain list: nothing is lost or released twice, wherever clients leave; a class is
    // passed over, and a late request is preferred, no more often than the shares allow; the bounds
    // hold; and the forecast is what happens.
    #[test]
    fn a_queue_agrees_with_a_plain_list(
        events in prop::collection::vec(event(), 0..200), share in 0..=10u32, bound in 1..60usize,
    ) {
        let mut queue = Queue::bounded(bound, u64::MAX);
        queue.set_lower_share(f64::from(share) / 20.0);
        let (mut now, mut held) = (0u64, BTreeMap::<u64, Kept>::new());
        let mut released: Vec<(Place, Entry)> = Vec::new();
        let mut passed = Passed::default();
        for event in events {
            let is_late = |kept: &Kept, now| !kept.again && kept.late_from.is_some_and(|at| at <= now);
            match event {
                Event::Arrive { tenant, class, cost, late_after } => {
                    let tenant = format!("t{tenant}");
                    let place = queue.arrive(class, &tenant.as_str().into());
                    let late_from = late_after.map(|after| now + after);
                    let entry = Entry {
                        late_from: late_from.map(Duration::from_secs),
                        ..entry(&tenant, class, cost)
                    };
                    let pushed = queue.push(place, entry, place.seq, false);
                    prop_assert_eq!(pushed.is_err(), held.len() >= bound);
                    if pushed.is_ok() {
                        let kept = Kept { place, class, late_from, again: false, cost };
                        held.insert(place.seq, kept);
                    }
                    queue.advance(Duration::from_secs(now));
                }
                Event::Release => {
                    let next = queue.releases().next().map(|(place, ..)| place);
                    let popped = queue.pop();
                    prop_assert_eq!(popped.as_ref().map(|(place, ..)| *place), next);
                    let Some((place, entry, waker)) = popped else {
                        prop_assert!(held.is_empty());
                        continue;
                    };
                    prop_assert_eq!(waker, place.seq);
                    let kept = held.remove(&waker).expect("held until now");
                    for class in [High, Normal, Low] {
                        let mut waiting = held.values().filter(|other| other.class == class);
                        let count = &mut passed.lower[class as usize];
                        let waits = waiting.clone().next().is_some();
                        *count = if waits && kept.class < class { *count + 1 } else { 0 };
                        // Two classes may be due at once, and each has to wait for the other.
                        prop_assert!(share == 0 || *count <= 2 * (20u32.div_ceil(share) + 1));
                        if class < kept.class && waiting.next().is_some() {
                            prop_assert!(share > 0, "{:?} overtook {:?}", kept, class);
                        }
                    }
                    let mut same = held.values().filter(|other| other.class == kept.class);
                    if !kept.again {
                        prop_assert!(same.clone().all(|other| !other.again), "had its turn before");
                        let count = &mut passed.late[kept.class as usize];
                        if is_late(&kept, now) {
                            let preferred = same.any(|other| !is_late(other, now));
                            prop_assert!(!preferred || *count == 20, "one in twenty: {}", count);
                            *count %= 20;
                        } else if same.any(|other| is_late(other, now)) {
                            *count += 1;
                            prop_assert!(*count <= 20, "late ones starve");
                        } else {
                            *count = 0;
                        }
                    }
                    released.push((place, entry));
                }
                Event::Again { released: nth } if nth < released.len() => {
                    let (place, entry) = released.swap_remove(nth);
                    let (class, cost) = (entry.class, entry.cost);
                    let kept = Kept { place, class, late_from: None, again: true, cost };
                    held.insert(place.seq, kept);
                    queue.push(place, entry, place.seq, true).expect("accepted before");
                }
                Event::Again { .. } => {}
                Event::Leave { nth } => {
                    if let Some(Kept { place, .. }) = held.values().nth(nth).copied() {
                        prop_assert!(queue.remove(place).is_some_and(|(_, seq)| seq == place.seq));
                        prop_assert!(queue.remove(place).is_none());
                        held.remove(&place.seq);
                    }
                }
                Event::Wait { seconds } => {
                    now += seconds;
                    queue.advance(Duration::from_secs(now));
                }
                Event::NoneReady => {
                    queue.keep_places(Duration::from_secs(now));
                    let in_time = held.values_mut().filter(|kept| !is_late(kept, now));
                    in_time.for_each(|kept| kept.late_from = None);
                }
            }
            prop_assert_eq!(queue.depth(), held.len());
            prop_assert_eq!(queue.tokens(), held.values().map(|kept| kept.cost).sum::<u64>());
        }
        let forecast: Vec<u64> = queue.releases().map(|(_, _, seq)| *seq).collect();
        prop_assert_eq!(forecast, drain(&mut queue));
    }

    // Which kinds have room decides who is next: the first of the whole order whose kind has, found without
    // asking for more than one of each kind in a lane.
    #[test]
    fn the_next_is_the_first_one_that_has_room(
        arrivals in prop::collection::vec((0..5u8, 1..1000u64, 0..3u64, any::<bool>()), 1..100),
        room in 0..8u8,
    ) {
        let mut queue = Queue::bounded(1000, u64::MAX);
        for (tenant, cost, late, again) in arrivals {
            let name = format!("t{tenant}");
            let place = queue.arrive(Normal, &name.as_str().into());
            let late_from = (late > 0).then(|| Duration::from_secs(late));
            let entry = Entry { late_from, ..entry(&name, Normal, cost) };
            queue.push(place, entry, place.seq, again).expect("room");
        }
        queue.advance(SECOND);
        let has_room = |entry: &Entry| room & (1 << entry.kind) > 0;
        while queue.depth() > 0 {
            let mut all = queue.in_order();
            let want = all.find(|(_, (_, entry, _))| has_room(entry));
            let want = want.map(|(_, (_, _, seq))| *seq);
            drop(all);
            let mut asked = 0;
            let popped = queue.pop_first(|entry, _| {
                asked += 1;
                has_room(entry)
            });
            prop_assert_eq!(popped.as_ref().map(|(.., seq)| *seq), want);
            prop_assert!(asked <= 9, "{} for three kinds in three lanes", asked);
            if popped.is_none() {
                break;
            }
        }
    }

    // The quick count of those ahead agrees with the forecast, to a request for each tenant and one
    // in twenty for rounding and late ones.
    #[test]
    fn the_count_of_those_ahead_is_near_the_forecast(
        arrivals in prop::collection::vec((0..5u8, 1..4u64), 1..300), tenant in 0..6u8,
    ) {
        let mut queue = Queue::bounded(1000, u64::MAX);
        for (tenant, cost) in arrivals {
            hold(&mut queue, &format!("t{tenant}"), Normal, cost * 100, 0);
        }
        let name = format!("t{tenant}");
        let place = queue.arrive(Normal, &name.as_str().into());
        let ahead = queue.ahead(place, false);
        queue.push(place, entry(&name, Normal, 100), 1, false).expect("room");
        let real = queue.releases().position(|(_, _, mine)| *mine == 1).expect("held");
        let allowed = 10 + real / 10;
        prop_assert!(ahead.abs_diff(real) <= allowed, "{ahead} for {real}");
    }

    // A walk that is interrupted goes on behind those that it has seen: each that stays is seen once,
    // each that leaves at most once, and a tenant's own in their order.
    #[test]
    fn a_walk_goes_on_while_others_come_and_leave(
        arrivals in prop::collection::vec((0..4u8, 0..3u64), 1..100),
        between in prop::collection::vec((any::<prop::sample::Index>(), 0..4u8), 0..20),
        slice in 1..10usize,
    ) {
        let mut queue = Queue::bounded(1000, u64::MAX);
        let mut stays = BTreeMap::new();
        let arrive = |queue: &mut Queue<u64>, tenant: u8, late: Option<u64>| {
            let name = format!("t{tenant}");
            let place = queue.arrive(Normal, &name.as_str().into());
            let late_from = late.map(Duration::from_secs);
            let entry = Entry { late_from, ..entry(&name, Normal, 100) };
            queue.push(place, entry, place.seq, false).expect("room");
            place
        };
        for (tenant, late) in arrivals {
            let place = arrive(&mut queue, tenant, (late > 0).then_some(late));
            stays.insert(place.seq, place);
        }
        queue.advance(SECOND);
        let (mut walk, mut seen, mut between) = (queue.walk(), Vec::new(), between.into_iter());
        loop {
            let before = seen.len();
            seen.extend(std::iter::from_fn(|| walk.next(&queue).map(|(_, _, seq)| *seq)).take(slice));
            if seen.len() < before + slice {
                break;
            }
            if let Some((which, tenant)) = between.next() {
                arrive(&mut queue, tenant, None);
                if !stays.is_empty() {
                    let seq = *which.get(&stays.keys().copied().collect::<Vec<_>>());
                    queue.remove(stays.remove(&seq).expect("held"));
                }
            }
        }
        let mut once = seen.clone();
        once.sort_unstable();
        prop_assert!(once.is_sorted_by(|one, other| one < other), "seen twice: {:?}", seen);
        prop_assert!(stays.keys().all(|seq| once.contains(seq)), "{:?} of {:?}", seen, stays);
    }
}

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use forebay_config::PriorityClass;
use proptest::prelude::*;

use super::*;
use crate::queue::{Entry, LateLane};

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn learned(p50_seconds: f64, p90_seconds: f64, samples: u32) -> Option<ColdStart> {
    Some(ColdStart { p50_seconds, p90_seconds, samples })
}

fn service(seconds: u64, ends: u32) -> ServiceTime {
    let mut service = ServiceTime::default();
    (0..ends).for_each(|_| service.record(s(seconds)));
    service
}

/// Starts that began as many seconds before the moment 1,000 s.
fn starts(ages: &[u64]) -> Starts {
    Starts { since: ages.iter().map(|age| s(1000 - age)).collect() }
}

/// A pool at the moment 1,000 s without endpoints, whose first start may begin.
fn cold(learned: Option<ColdStart>, starts: &Starts) -> Outlook<'_> {
    Outlook {
        now: s(1000),
        places: 0,
        service: ServiceTime::default(),
        starts,
        learned,
        places_of_start: 100,
        more_starts: 1,
    }
}

#[test]
fn a_request_cannot_wait_if_the_learned_start_takes_longer() {
    let steady = learned(60.0, 80.0, 9);
    let none: &[u64] = &[];
    for (case, learned, ages, longest, fallback, want) in [
        ("waits long enough", steady, none, 61, false, None),
        ("gives up before most starts", steady, none, 50, false, Some(80)),
        ("some starts are too late", steady, none, 70, false, None),
        ("the start is under way", steady, &[20], 50, false, None),
        ("under way, and still too late", steady, &[20], 30, false, Some(60)),
        ("it takes longer than ever", steady, &[500], 1, false, None),
        ("learned from too few", learned(60.0, 80.0, 2), none, 1, false, None),
        ("nothing is learned", None, none, 1, false, None),
        ("the fallback rather than perhaps", steady, none, 70, true, Some(80)),
        ("the fallback only if needed", steady, none, 90, true, None),
        ("one start is enough", learned(60.0, 80.0, 1), none, 70, true, Some(80)),
        ("with a fallback, nothing is learned", None, none, 1, true, None),
    ] {
        let starts = starts(ages);
        let late = cold(learned, &starts)
            .cannot_start_in_time(0, Wait { longest: s(longest), fallback, held: false });
        assert_eq!(late.map(|late| late.retry_after), want.map(s), "{case}");
    }
    let none = starts(none);
    let nothing = Outlook { more_starts: 0, ..cold(None, &none) };
    let wait = |fallback| Wait { longest: s(60), fallback, held: false };
    let late = nothing.cannot_start_in_time(0, wait(true)).map(|late| late.retry_after);
    assert_eq!(late, Some(s(1)), "with a fallback, nothing starts");
    assert_eq!(nothing.cannot_start_in_time(0, wait(false)), None);
}

#[test]
fn a_refused_client_comes_back_when_most_starts_are_over() {
    let after = |learned, ages: &[u64]| cold(learned, &starts(ages)).retry_after(0);
    let learned = learned(60.0, 80.0, 1);
    assert_eq!(after(learned, &[]), s(80));
    assert_eq!(after(learned, &[70]), s(10));
    assert_eq!((after(learned, &[90]), after(None, &[])), (s(1), s(1)));
}

#[test]
fn places_become_free_at_their_number_by_the_time_that_requests_keep_them() {
    let none = Starts::default();
    let busy = |places, service, starts| Outlook {
        places,
        service,
        more_starts: 0,
        ..cold(learned(60.0, 80.0, 9), starts)
    };
    // 20 places, 10 s each: two a second.
    let warm = busy(20, service(10, 40), &none);
    assert_eq!(warm.expected(0), Some(Duration::from_millis(500)));
    assert_eq!(warm.expected(199), Some(s(100)));
    // 20 s from now a start ends: it takes the 40th to the 139th at once, then there are 12 a
    // second.
    let coming = starts(&[40]);
    let grows = busy(20, service(10, 40), &coming);
    assert_eq!(grows.expected(38), Some(Duration::from_millis(19_500)));
    assert_eq!(grows.expected(139), Some(s(20)));
    assert_eq!(grows.expected(259), Some(s(30)));
    assert_eq!(busy(20, service(10, 7), &none).expected(0), None, "too few ends");
    let unknown = Outlook { learned: None, ..busy(20, service(10, 40), &coming) };
    assert_eq!(unknown.expected(500), None, "a start of unknown length may end now");
    assert_eq!(busy(0, service(10, 40), &none).expected(0), None, "nothing comes");
}

/// The expected and the real seconds until a gateway has released 200 more, once it has learned.
/// A replica works on 40 requests at a time, for one to three seconds each, and lets others wait.
/// Each gateway always holds requests, and has 40 places there.
fn waits_beside(others: usize) -> (f64, f64) {
    let mut service = ServiceTime::default();
    let gateways = 0..=others;
    let mut waiting: VecDeque<_> = gateways.flat_map(|one| [(one, 0); 40]).collect();
    let mut working = BinaryHeap::new();
    let (mut now, mut ends, mut begun, mut estimate) = (0, 0, 0, (0, 0.0));
    loop {
        while working.len() < 40
            && let Some((gateway, released)) = waiting.pop_front()
        {
            begun += 1;
            working.push(Reverse((now + 1_000 + begun * 7_919 % 2_001, gateway, released)));
        }
        let Reverse((end, gateway, released)) = working.pop().expect("held requests go on");
        now = end;
        waiting.push_back((gateway, now));
        if gateway == 0 {
            ends += 1;
            service.record(Duration::from_millis(now - released));
            let none = Starts::default();
            let outlook = Outlook { places: 40, service, more_starts: 0, ..cold(None, &none) };
            match ends {
                1000 => estimate = (now, outlook.expected(199).expect("learned").as_secs_f64()),
                1200 => return (estimate.1, (now - estimate.0) as f64 / 1e3),
                _ => {}
            }
        }
    }
}

#[test]
fn a_gateway_expects_its_own_share_of_what_several_have_together() {
    for others in [0, 1, 3] {
        let (expected, real) = waits_beside(others);
        assert!((real / (10.0 * (others + 1) as f64) - 1.0).abs() < 0.1, "{others}: {real} s");
        assert!((expected / real - 1.0).abs() < 0.1, "{others}: {expected} s for {real} s");
    }
}

#[test]
fn only_an_estimate_that_is_better_than_expected_refuses_a_held_request() {
    let none = Starts::default();
    let warm =
        Outlook { places: 20, service: service(10, 40), more_starts: 0, ..cold(None, &none) };
    let wait = |longest, held| Wait { longest: s(longest), fallback: false, held };
    let late = |outlook: &Outlook<'_>, ahead, longest| {
        outlook.cannot_start_in_time(ahead, wait(longest, true))
    };
    // The 400th starts in 200 s.
    assert_eq!(late(&warm, 399, 199), None, "nearly");
    assert!(warm.cannot_start_in_time(399, wait(199, false)).is_some(), "it only arrives");
    assert_eq!(warm.cannot_start_in_time(399, wait(200, false)), None);
    let refused = late(&warm, 399, 150).expect("far too late");
    assert_eq!(refused.expected, Some(s(200)));
    assert!((s(230)..s(250)).contains(&refused.retry_after), "{refused:?}");
    let few = Outlook { service: service(10, 31), ..warm };
    assert_eq!(late(&few, 399, 1), None, "learned from too few");
    let grows = Outlook { more_starts: 4, learned: learned(60.0, 80.0, 9), ..warm };
    assert_eq!(late(&grows, 399, 100), None, "more replicas can start within 60 s");
    assert!(late(&grows, 399, 50).is_some());
    let unknown = Outlook { more_starts: 4, ..warm };
    assert_eq!(late(&unknown, 399, 50), None, "nobody knows how fast they start");
}

#[test]
fn a_late_request_waits_for_those_that_overtake_it() {
    let none = Starts::default();
    // Two starts a second.
    let warm =
        Outlook { places: 20, service: service(10, 40), more_starts: 0, ..cold(None, &none) };
    let wait = |late, in_time, lasts: u64, hold: u64| {
        let since = (lasts > 0).then(|| s(1000 - lasts));
        let lane = LateLane { in_time, since, share: 0.05 };
        let ahead = Ahead::Late { late, lane, hold: s(hold) };
        warm.expected(ahead).expect("learned").as_secs_f64()
    };
    for (case, want, got) in [
        ("none overtakes it", 50.5, wait(100, 0, 300, 600)),
        ("by the share of the late ones", 100.0, wait(9, 10, 0, 600)),
        ("after an overload as long as its hold", 625.5, wait(100, 10, 0, 600)),
        ("half of which is over", 340.5, wait(100, 10, 300, 600)),
        ("twice as long, once it has lasted longer", 625.5, wait(100, 10, 600, 600)),
        ("for one that gives up sooner", 84.0, wait(100, 10, 30, 60)),
    ] {
        assert!((got - want).abs() < 1e-6, "{case}: {got}, not {want}");
    }
    // A replica that joins takes many at once.
    let coming = starts(&[40]);
    let grows = Outlook { starts: &coming, learned: learned(60.0, 80.0, 9), ..warm };
    let lane = LateLane { in_time: 10, since: None, share: 0.05 };
    let ahead = Ahead::Late { late: 50, lane, hold: s(600) };
    assert_eq!(grows.expected(ahead), Some(s(20)));
    let late = |held, lasts: u64| {
        let since = Some(s(1000 - lasts));
        let ahead = Ahead::Late { late: 80, lane: LateLane { since, ..lane }, hold: s(600) };
        warm.cannot_start_in_time(ahead, Wait { longest: s(600), fallback: false, held }).is_some()
    };
    assert!(late(false, 0) && late(false, 600), "15 s late");
    assert!(late(true, 600), "7 s with luck");
    assert!(!late(true, 5), "it has hardly begun, and may be over soon");
}

#[test]
fn a_request_is_late_when_it_comes_if_those_in_time_take_too_long() {
    let none = Starts::default();
    let warm =
        Outlook { places: 20, service: service(10, 40), more_starts: 0, ..cold(None, &none) };
    let mut queue = Queue::bounded(1000, u64::MAX);
    let class = PriorityClass::Normal;
    let tenant: Arc<str> = "a".into();
    let mut come = |late_from: Option<u64>| {
        let place = queue.arrive(class, &tenant);
        let late_from = late_from.map(s);
        let ahead = warm.ahead(&queue, place, late_from, s(600));
        let late_from = ahead.late_from(late_from, warm.now);
        let tenant = Arc::clone(&tenant);
        let (bytes, tokens, cost, answer) = (1, 1, 1, 0);
        let entry = Entry { tenant, class, bytes, tokens, cost, answer, late_from, kind: 0 };
        queue.push(place, entry, (), false).expect("room");
        queue.advance(warm.now);
        ahead
    };
    // Two starts a second: the turn of the eleventh comes after five seconds.
    for count in 0..10 {
        assert_eq!(come(Some(1005)), Ahead::InTime(count));
    }
    let late = |ahead| match ahead {
        Ahead::Late { late, lane, .. } => (late, lane.in_time, lane.since),
        Ahead::InTime(_) => panic!("in time"),
    };
    assert_eq!(late(come(Some(1005))), (0, 10, None));
    assert_eq!(late(come(Some(1005))), (1, 10, Some(s(1000))));
    assert_eq!(come(Some(1006)), Ahead::InTime(10), "its objective leaves a second more");
    assert_eq!(come(None), Ahead::InTime(11), "the order does not depend on the objective");
    let mut passed = Passed::none(&queue);
    let walked: Vec<_> = queue
        .releases()
        .map(|(_, entry, ())| {
            let ahead = passed.before(entry, warm.now, s(600));
            passed.pass(entry, warm.now);
            ahead
        })
        .collect();
    assert_eq!(walked[..2], [Ahead::InTime(0), Ahead::InTime(1)]);
    assert_eq!(late(walked[13]), (1, 12, Some(s(1000))));
}

#[test]
fn a_failed_start_begins_again_and_the_oldest_ends_first() {
    let mut starts = Starts::default();
    starts.set(2, s(10));
    starts.set(3, s(20));
    starts.failed(1, s(30));
    assert_eq!(starts.since, [s(10), s(20), s(30)]);
    starts.set(1, s(40));
    assert_eq!(starts.since, [s(30)]);
    starts.failed(9, s(50));
    assert_eq!((starts.count(), starts.since[0]), (1, s(50)));
}

#[test]
fn the_mean_forgets_what_is_long_ago() {
    let mut time = service(1, 1000);
    assert_eq!(time.mean(1), Some(1.0));
    (0..2048).for_each(|_| time.record(s(9)));
    assert!(time.mean(1).expect("learned") > 8.8);
}

#[test]
fn an_overload_that_ends_sooner_delays_no_late_request() {
    let starts = starts(&[55]);
    let outlook = Outlook { service: service(7, 32), ..cold(learned(60.0, 80.0, 9), &starts) };
    let lane = LateLane { in_time: 57, since: Some(s(1000 - 8)), share: 0.685 };
    let ahead = Ahead::Late { late: 110, lane, hold: s(18) };
    assert!(outlook.earliest(ahead, true) <= outlook.expected(ahead));
}

proptest! {
    // More ahead never means earlier, and the three estimates are in their order.
    #[test]
    fn estimates_are_ordered(
        places in 0..200u64, ends in 32..200u32, ages in prop::collection::vec(0..200u64, 0..5),
        ahead in 0..2000usize, more in 0..50usize, in_time in 0..200usize, lasts in 0..900u64,
        hold in 1..900u64, share in 0.05..1.0,
    ) {
        let mut ages = ages;
        ages.sort_unstable_by_key(|age| std::cmp::Reverse(*age));
        let starts = starts(&ages);
        let outlook = Outlook {
            places,
            service: service(7, ends),
            ..cold(learned(60.0, 80.0, 9), &starts)
        };
        let lane = LateLane { in_time, since: Some(s(1000 - lasts)), share };
        let late = |late| Ahead::Late { late, lane, hold: s(hold) };
        for of in [&Ahead::InTime as &dyn Fn(usize) -> Ahead, &late] {
            let (least, expected) = (outlook.earliest(of(ahead), true), outlook.expected(of(ahead)));
            prop_assert!(least <= expected && expected <= outlook.at_most(of(ahead)));
            prop_assert!(expected.is_some() && expected <= outlook.expected(of(ahead + more)));
        }
        prop_assert!(outlook.expected(ahead) <= outlook.expected(late(ahead)));
    }
}

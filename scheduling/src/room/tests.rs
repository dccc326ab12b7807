use proptest::prelude::*;

use super::*;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

const FIXED: LimitRule = LimitRule { most: 24, learned: false };
const LEARNED: LimitRule = LimitRule { most: 1024, learned: true };

/// Gives a room all that it takes.
fn fill(room: &mut Room, now: Duration) -> Vec<Option<Part>> {
    let mut parts = Vec::new();
    while room.left(now) > 0 {
        parts.push(room.given(10, true, now));
    }
    parts
}

fn end(room: &mut Room, part: Option<Part>, now: Duration) {
    room.ended((part, 10), true, now, EndpointSums::default);
}

#[test]
fn a_full_queue_fills_a_new_server_in_rounds_that_double() {
    for (rule, want) in [(FIXED, [1, 2, 4, 8, 9, 0]), (LEARNED, [1, 2, 4, 8, 16, 32])] {
        let mut room = Room::new(rule, ms(0));
        let rounds = [(); 6].map(|()| {
            let mut parts = fill(&mut room, ms(0));
            for part in parts.iter_mut().flatten() {
                room.first_token(part, ms(0));
            }
            parts.len()
        });
        assert_eq!(rounds, want, "{rule:?}");
    }
}

#[test]
fn a_fixed_limit_is_reached_by_few_requests_too_and_a_learned_one_is_not() {
    for (rule, want) in [(FIXED, (24, LimitedBy::Configured)), (LEARNED, (3, LimitedBy::SlowStart))]
    {
        let mut room = Room::new(rule, ms(0));
        for _ in 0..200 {
            let part = room.given(10, true, ms(0));
            end(&mut room, part, ms(0));
        }
        assert_eq!((room.allowed(ms(0)), room.limited_by(ms(0))), want, "{rule:?}");
    }
}

#[test]
fn another_server_starts_slowly_up_to_the_limit_that_was_learned() {
    let mut room = Room::new(LEARNED, ms(0));
    room.expect(40);
    room.begin_anew();
    let mut parts = fill(&mut room, ms(0));
    assert_eq!((parts.len(), room.limit()), (1, 40));
    while room.in_flight() < 40 {
        for part in parts.iter_mut().flatten() {
            room.first_token(part, ms(0));
        }
        let more = fill(&mut room, ms(0));
        assert!(!more.is_empty());
        parts.extend(more);
    }
    assert_eq!((room.left(ms(0)), room.limited_by(ms(0))), (0, LimitedBy::Growing));
}

/// A room with a learned limit of 40 that is full.
fn full() -> Room {
    let mut room = Room::new(LEARNED, ms(0));
    room.expect(40);
    room.slow_start = None;
    assert_eq!(fill(&mut room, ms(0)).len(), 40);
    room
}

#[test]
fn requests_that_wait_by_the_engines_own_count_lower_the_limit_by_their_number() {
    let mut room = full();
    for waiting in [9, 7, 5] {
        room.reported(waiting, ms(5000));
        assert_eq!(room.limit(), 40, "a few times may be chance");
    }
    room.reported(6, ms(20_000));
    assert_eq!((room.limit(), room.limited_by(ms(20_000))), (35, LimitedBy::Reported));
    let mut idle = full();
    (0..20).for_each(|_| end(&mut idle, None, ms(0)));
    let limit = idle.limit();
    (0..9).for_each(|_| idle.reported(5, ms(5000)));
    assert_eq!(idle.limit(), limit, "others may have sent them");
    let mut at_times = full();
    for _ in 0..9 {
        [5, 5, 5, 0].into_iter().for_each(|waiting| at_times.reported(waiting, ms(5000)));
    }
    assert_eq!(at_times.limit(), 40, "none stays");
}

/// Ends requests one by one for as many windows, each replaced, with these times of first tokens and
/// of tokens.
fn serve(
    room: &mut Room,
    sums: &mut EndpointSums,
    (ttft, itl): (f64, f64),
    windows: u32,
    now: &mut Duration,
) {
    for _ in 0..windows * 16 {
        *now += ms(20);
        sums.first_tokens += 1;
        sums.ttft_seconds += ttft;
        sums.gaps += 100;
        sums.itl_seconds += 100.0 * itl;
        let read = *sums;
        room.ended((None, 10), true, *now, || read);
        while room.left(*now) > 0 {
            room.given(10, true, *now);
        }
    }
}

#[test]
fn the_limit_grows_while_first_tokens_come_at_once_and_shrinks_when_they_wait() {
    let (mut room, mut sums, mut now) = (full(), EndpointSums::default(), ms(0));
    serve(&mut room, &mut sums, (0.05, 0.01), 4, &mut now);
    let grown = room.limit();
    assert!(grown > 44, "{grown}");
    // 50 requests a second wait for 200 ms: ten of them at once.
    serve(&mut room, &mut sums, (0.25, 0.01), 1, &mut now);
    let shrunk = room.limit();
    assert!((grown - 12..=grown - 5).contains(&shrunk), "{grown} to {shrunk}");
    assert_eq!(room.limited_by(now), LimitedBy::Waiting);
    // A step of the engine is not waiting.
    serve(&mut room, &mut sums, (0.08, 0.01), 4, &mut now);
    assert!(room.limit() > shrunk);
}

#[test]
fn a_limit_that_is_not_reached_does_not_grow() {
    let (mut room, mut sums, mut now) = (full(), EndpointSums::default(), ms(0));
    end(&mut room, None, now);
    end(&mut room, None, now);
    // The first window has seen the limit reached.
    for _ in 0..200 {
        now += ms(20);
        sums.first_tokens += 1;
        sums.ttft_seconds += 0.05;
        let read = sums;
        room.ended((None, 10), true, now, || read);
        room.given(10, true, now);
    }
    assert!(room.limit() <= 45, "{}", room.limit());
}

#[test]
fn more_requests_that_bring_no_more_tokens_are_not_taken() {
    let (mut room, mut sums, mut now) = (full(), EndpointSums::default(), ms(0));
    for _ in 0..60 {
        // A token takes a millisecond for each request: they come no faster together.
        let itl = f64::from(room.in_flight()) / 1000.0;
        serve(&mut room, &mut sums, (0.05, itl), 1, &mut now);
    }
    assert_eq!(room.limited_by(now), LimitedBy::Gain);
    assert!(room.limit() < 100, "{}", room.limit());
}

#[test]
fn the_kv_cache_bounds_the_requests_by_what_they_have_been_seen_to_take() {
    let (mut room, mut now) = (full(), ms(0));
    room.set_cache(10_000);
    assert_eq!(room.cache_left(), u32::MAX, "estimates alone count nothing");
    let mut sums = EndpointSums::default();
    for _ in 0..16 {
        now += ms(20);
        // Each prompt was estimated at 10 tokens and has 300; half of 400 is there on average.
        sums.uncached_tokens += 300;
        sums.generated_tokens += 400;
        let read = sums;
        room.ended((None, 10), true, now, || read);
    }
    while room.left(now) > 0 {
        room.given(10, true, now);
    }
    assert_eq!((room.in_flight(), room.limited_by(now)), (24, LimitedBy::KvCache));
    (0..5).for_each(|_| room.ended((None, 10), false, now, EndpointSums::default));
    assert_eq!((room.in_flight(), room.left(now)), (19, 1), "20 of 500 tokens each");
    // One request always has room, however small the cache is.
    room.set_cache(1);
    (0..19).for_each(|_| room.ended((None, 10), false, now, EndpointSums::default));
    assert!(room.left(now) > 0);
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Given { streamed: bool },
    FirstToken(usize),
    Ended { at: usize, complete: bool },
    Reported(u32),
    Rule(LimitRule),
    Anew,
}

fn rule() -> impl Strategy<Value = LimitRule> {
    (1..40u32, any::<bool>()).prop_map(|(most, learned)| LimitRule { most, learned })
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        30 => any::<bool>().prop_map(|streamed| Event::Given { streamed }),
        20 => any::<usize>().prop_map(Event::FirstToken),
        20 => (any::<usize>(), any::<bool>())
            .prop_map(|(at, complete)| Event::Ended { at, complete }),
        2 => (0..9u32).prop_map(Event::Reported),
        1 => rule().prop_map(Event::Rule),
        1 => Just(Event::Anew),
    ]
}

proptest! {
    // Whatever happens, the limit is between 1 and the most, room for one is left where nothing is in
    // flight, and no more are in flight than were allowed when the last one was given.
    #[test]
    fn the_bounds_are_kept_and_one_request_always_has_room(
        rule in rule(),
        events in prop::collection::vec((event(), 0..400u64, 0.0..2.0f64), 0..400),
    ) {
        let (mut room, mut rule, mut parts, mut now) = (Room::new(rule, ms(0)), rule, Vec::new(), 0);
        let mut sums = EndpointSums::default();
        room.set_cache(4000);
        for (event, later, seconds) in events {
            match event {
                Event::Given { streamed } if room.left(ms(now)) > 0 => {
                    parts.push(room.given(10, streamed, ms(now)));
                    prop_assert!(room.in_flight() <= room.allowed(ms(now)));
                }
                Event::FirstToken(at) if !parts.is_empty() => {
                    let at = at % parts.len();
                    if let Some(part) = parts[at].as_mut().filter(|part| part.waits_for_token()) {
                        room.first_token(part, ms(now));
                    }
                    sums.first_tokens += 1;
                    sums.ttft_seconds += seconds;
                }
                Event::Ended { at, complete } if !parts.is_empty() => {
                    let part = parts.swap_remove(at % parts.len());
                    sums.gaps += 10;
                    sums.itl_seconds += seconds;
                    sums.uncached_tokens += 20;
                    sums.generated_tokens += 100;
                    room.ended((part, 10), complete, ms(now), || sums);
                }
                Event::Reported(waiting) => room.reported(waiting, ms(now)),
                Event::Rule(another) => {
                    rule = another;
                    room.set_rule(rule, ms(now));
                }
                Event::Anew => {
                    room.begin_anew();
                    parts.clear();
                }
                _ => {}
            }
            now += later;
            prop_assert_eq!(room.in_flight() as usize, parts.len());
            prop_assert!((1..=rule.most).contains(&room.limit()));
            prop_assert!(room.allowed(ms(now)) >= 1);
            prop_assert!(room.in_flight() > 0 || room.left(ms(now)) > 0);
        }
    }
}

use super::silence::GONE;
use super::*;
use proptest::prelude::*;

const RULES: Rules = Rules { limit: 4, eject_after: 3, freeze: Duration::from_secs(10) };

fn ready(now: Instant) -> Endpoint {
    let mut endpoint = Endpoint::new(RULES, now);
    assert_eq!(endpoint.due(now), Some(Probe::Health));
    assert!(endpoint.probed(Probe::Health, Probed::Answered, false, now));
    endpoint
}

fn fault(kind: Cause) -> Failure {
    Failure::new(kind, "what it said")
}

fn failed() -> Probed {
    Probed::Failed("500".into())
}

fn silent() -> Probed {
    Probed::Silent("nothing within 5 s".into())
}

#[tokio::test(start_paused = true)]
async fn it_is_ready_from_the_first_answer_and_asked_once_a_second_from_then_on() {
    let now = Instant::now();
    let mut endpoint = Endpoint::new(RULES, now);
    assert_eq!((endpoint.health(), endpoint.room(now)), (Health::Starting, 0));
    assert_eq!(endpoint.due(now), Some(Probe::Health));
    assert!(!endpoint.probed(Probe::Health, Probed::Unreachable("refused".into()), false, now));
    assert_eq!(endpoint.due(now), Some(Probe::Health), "as often as asked, while it starts");
    endpoint.probed(Probe::Health, Probed::Answered, false, now);
    assert_eq!((endpoint.health(), endpoint.room(now)), (Health::Ready, 4));
    assert_eq!(endpoint.due(now + HEALTH_EVERY - Duration::from_millis(1)), None);
    assert_eq!(endpoint.due(now + HEALTH_EVERY), Some(Probe::Health));
}

#[tokio::test(start_paused = true)]
async fn what_its_behaviour_took_out_comes_back_by_a_real_answer_only_asked_later_each_time() {
    let mut now = Instant::now();
    let mut endpoint = ready(now);
    assert!(endpoint.failed(&fault(Cause::ShuttingDown), false, now));
    for out in [250, 500, 1000] {
        assert_eq!((endpoint.health(), endpoint.room(now)), (Health::Ejected, 0));
        assert!(
            !endpoint.probed(Probe::Health, Probed::Answered, false, now),
            "health proves nothing"
        );
        let until = now + Duration::from_millis(out);
        assert_eq!(endpoint.due(until - Duration::from_millis(1)), None, "not before {out} ms");
        assert_eq!(endpoint.due(until), Some(Probe::Token));
        now = until;
        assert!(!endpoint.probed(Probe::Token, failed(), false, now));
    }
    now += Duration::from_secs(2);
    assert_eq!(endpoint.due(now), Some(Probe::Token));
    assert!(endpoint.probed(Probe::Token, Probed::Answered, false, now));
    assert_eq!(endpoint.room(now), 4);
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_went_away_starts_with_a_clean_slate() {
    let now = Instant::now();
    let mut endpoint = ready(now);
    endpoint.failed(&fault(Cause::Connection), false, now);
    let later = now + FIRST_EJECTION;
    assert_eq!(endpoint.due(later), Some(Probe::Token));
    endpoint.probed(Probe::Token, Probed::Unreachable("refused".into()), false, later);
    assert_eq!(endpoint.health(), Health::Ejected);
    assert_eq!(endpoint.due(later), Some(Probe::Health), "at once, and again and again");
    assert!(endpoint.probed(Probe::Health, Probed::Answered, false, later));
    assert_eq!(endpoint.health(), Health::Ready);
}

#[tokio::test(start_paused = true)]
async fn counted_failures_take_out_only_in_a_row_and_never_the_last() {
    let now = Instant::now();
    let error = fault(Cause::Server);
    let mut endpoint = ready(now);
    assert!(!endpoint.failed(&error, false, now));
    assert!(!endpoint.failed(&error, false, now));
    endpoint.completed(true, now);
    assert!(!endpoint.failed(&error, false, now), "a success between them");
    assert!(!endpoint.failed(&error, false, now));
    assert!(endpoint.failed(&error, false, now), "three in a row");

    let mut last = ready(now);
    for cause in [
        Cause::Server,
        Cause::Stalled,
        Cause::Aborted,
        Cause::EventTooLong,
        Cause::KeyRefused,
        Cause::NotServed,
    ] {
        (0..20).for_each(|_| assert!(!last.failed(&fault(cause), true, now)));
        assert_eq!(last.health(), Health::Ready, "{cause:?}");
    }
    assert!(last.failed(&fault(Cause::EngineDead), true, now), "it said so itself");
}

#[tokio::test(start_paused = true)]
async fn one_that_stalls_is_out_at_once_only_where_all_else_there_is_silent_too() {
    let start = Instant::now();
    let mut alone = ready(start);
    let now = start + RULES.freeze;
    assert!(!alone.failed(&fault(Cause::Stalled), false, now), "one long prompt");
    let mut frozen = ready(start);
    frozen.given(start);
    assert!(!frozen.failed(&fault(Cause::Stalled), true, now), "never the last");
    assert!(!frozen.failed(&fault(Cause::Server), false, now), "it answers, if with an error");
    assert!(frozen.failed(&fault(Cause::Stalled), false, now));
}

#[tokio::test(start_paused = true)]
async fn the_last_one_is_asked_at_once_and_no_later_for_each_time_it_fails() {
    let mut now = Instant::now();
    let mut last = ready(now);
    for word in [failed(), silent(), failed(), silent()] {
        assert!(last.failed(&fault(Cause::Connection), true, now));
        assert_eq!(last.due(now), Some(Probe::Token), "at once");
        for _ in 0..3 {
            last.probed(Probe::Token, word.clone(), true, now);
            assert_eq!(last.due(now), None);
            now += FIRST_EJECTION;
            assert_eq!(last.due(now), Some(Probe::Token));
        }
        assert!(last.probed(Probe::Token, Probed::Answered, true, now));
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_one_gets_nothing_for_a_moment_after_it_ended_a_request() {
    let now = Instant::now();
    let mut last = ready(now);
    assert!(!last.failed(&fault(Cause::Aborted), true, now));
    assert_eq!((last.health(), last.room(now)), (Health::Ready, 0));
    assert_eq!(last.room(now + FIRST_EJECTION), 4);
}

#[tokio::test(start_paused = true)]
async fn what_fails_together_is_one_failure() {
    let now = Instant::now();
    let mut endpoint = ready(now);
    (0..16).for_each(|_| {
        let _ = endpoint.failed(&fault(Cause::Connection), false, now);
    });
    assert_eq!(endpoint.due(now + FIRST_EJECTION), Some(Probe::Token));
    assert_eq!(endpoint.failed, 16);
}

#[tokio::test(start_paused = true)]
async fn a_full_one_is_sound_and_gets_nothing_until_something_ends_there() {
    let now = Instant::now();
    let mut endpoint = ready(now);
    assert!(!endpoint.failed(&fault(Cause::QueueFull), false, now));
    assert_eq!((endpoint.health(), endpoint.room(now)), (Health::Ready, 0));
    assert_eq!(endpoint.room(now + FULL_FOR), 4);
    endpoint.completed(true, now);
    assert_eq!(endpoint.room(now), 4);
}

#[tokio::test(start_paused = true)]
async fn one_with_work_and_without_a_sign_of_it_is_asked_and_out_if_it_hangs() {
    let start = Instant::now();
    let mut endpoint = ready(start);
    // Whatever it is: a stream that has begun, one that has not, a plain answer.
    endpoint.given(start);
    let now = start + RULES.freeze;
    endpoint.pulse().beat(now - Duration::from_secs(1));
    assert!(!endpoint.is_suspect(now));
    assert_eq!(endpoint.due(now), Some(Probe::Health), "something came a second ago");
    let now = now + RULES.freeze;
    assert!(endpoint.is_suspect(now));
    assert_eq!(endpoint.due(now), Some(Probe::Token));
    assert!(endpoint.probed(Probe::Token, silent(), false, now), "neither does a new request");
    assert_eq!(endpoint.health(), Health::Ejected);
    assert!(endpoint.hangs(now));
    endpoint.pulse().beat(now);
    assert!(!endpoint.hangs(now), "it woke, and was not asked yet");

    let mut slow = ready(start);
    slow.given(start);
    assert_eq!(slow.due(now), Some(Probe::Token));
    slow.pulse().beat(now);
    assert!(!slow.probed(Probe::Token, silent(), false, now), "something came meanwhile");
    let later = now + RULES.freeze;
    assert_eq!(slow.due(later), Some(Probe::Token));
    slow.probed(Probe::Token, Probed::Answered, false, later);
    assert!(!slow.is_suspect(later), "a long answer, and a working engine");
    slow.given_back(false, later);
    assert_eq!(slow.due(later + RULES.freeze), Some(Probe::Health), "nothing to be silent");
}

#[tokio::test(start_paused = true)]
async fn silence_is_measured_from_the_first_request_that_it_owes_an_answer() {
    let start = Instant::now();
    let mut endpoint = ready(start);
    let mut now = start + RULES.freeze * 100;
    endpoint.given(now);
    assert!(!endpoint.is_suspect(now), "it was idle");
    // Clients that give up sooner than `freezeTimeout`, one after the other.
    for _ in 0..10 {
        now += RULES.freeze / 10;
        endpoint.given_back(false, now);
        endpoint.given(now);
    }
    assert!(endpoint.is_suspect(now));
    // The server in front of the engine counts tokens and refuses nonsense by itself.
    endpoint.completed(false, now);
    assert!(endpoint.is_suspect(now));
    endpoint.completed(true, now);
    assert!(!endpoint.is_suspect(now));
}

#[tokio::test(start_paused = true)]
async fn the_time_without_work_is_no_silence() {
    let start = Instant::now();
    let (second, hour) = (Duration::from_secs(1), Duration::from_secs(3600));
    let mut endpoint = ready(start);
    let mut now = start;
    // Each client leaves after a second, and an hour later the next one comes.
    for asked in 0..5 {
        endpoint.given(now);
        assert!(!endpoint.is_suspect(now), "it owes {asked} s");
        now += second;
        endpoint.given_back(false, now);
        now += hour;
    }
    endpoint.given(now);
    assert!(!endpoint.is_suspect(now + 5 * second - Duration::from_millis(1)));
    assert!(endpoint.is_suspect(now + 5 * second), "ten in all");

    // One that worked for an hour owes what it was asked since it said something.
    let mut endpoint = ready(start);
    endpoint.given(start);
    endpoint.pulse().beat(start + hour - second);
    endpoint.given_back(false, start + hour);
    endpoint.given(start + 2 * hour);
    assert!(!endpoint.is_suspect(start + 2 * hour + 8 * second));
    assert!(endpoint.is_suspect(start + 2 * hour + 9 * second));

    // Another process owes nothing of what this one did.
    let mut endpoint = ready(start);
    endpoint.given(start);
    let now = start + 9 * second;
    endpoint.given_back(false, now);
    endpoint.probed(Probe::Health, unreachable(), false, now);
    endpoint.probed(Probe::Health, Probed::Answered, false, now + second);
    endpoint.given(now + 2 * second);
    assert!(!endpoint.is_suspect(now + 3 * second));
}

#[tokio::test(start_paused = true)]
async fn a_session_may_be_silent() {
    let start = Instant::now();
    let mut endpoint = ready(start);
    endpoint.given(start);
    endpoint.session_began(start);
    let now = start + RULES.freeze * 2;
    assert!(!endpoint.is_suspect(now));
    endpoint.given(now);
    assert!(!endpoint.is_suspect(now), "the session is no debt");
    endpoint.given_back(true, now);
    assert_eq!(endpoint.due(now + RULES.freeze), Some(Probe::Token));
}

#[tokio::test(start_paused = true)]
async fn what_waits_at_a_silent_endpoint_is_sent_elsewhere_and_what_it_fails_is_not() {
    let start = Instant::now();
    let mut stopped = ready(start);
    let (eviction, sessions) = (stopped.evictions().unanswered, stopped.evictions().sessions);
    let mut now = start;
    while now < start + RULES.freeze {
        assert!(!eviction.is_cancelled());
        stopped.probed(Probe::Health, silent(), false, now);
        now += Duration::from_secs(2);
    }
    stopped.probed(Probe::Health, silent(), false, now);
    assert!(eviction.is_cancelled() && sessions.is_cancelled());
    assert!(!stopped.evictions().unanswered.is_cancelled(), "what comes later waits anew");
    assert!(!stopped.evictions().begun.is_cancelled(), "it may wake");

    let mut failing = ready(start);
    let eviction = failing.evictions().unanswered;
    failing.failed(&fault(Cause::EngineDead), false, start);
    failing.probed(Probe::Token, failed(), false, now);
    failing.probed(Probe::Token, failed(), false, now);
    assert!(!eviction.is_cancelled(), "it answers for itself");
}

fn unreachable() -> Probed {
    Probed::Unreachable("connection refused".into())
}

#[tokio::test(start_paused = true)]
async fn what_waits_where_nothing_listens_goes_at_once_and_what_has_begun_ends_in_time() {
    let start = Instant::now();
    let mut gone = ready(start);
    gone.given(start);
    let (waiting, begun) = (gone.evictions().unanswered, gone.evictions().begun);
    let mut now = start + Duration::from_secs(3);
    gone.probed(Probe::Health, unreachable(), true, now);
    assert!(!waiting.is_cancelled(), "one connection that fails shows nothing");
    gone.probed(Probe::Health, Probed::Answered, true, now + GONE);
    gone.probed(Probe::Health, unreachable(), true, now + GONE * 2);
    assert!(!waiting.is_cancelled(), "nor does another one later");
    now += GONE * 2;
    gone.probed(Probe::Health, unreachable(), true, now + GONE);
    assert!(waiting.is_cancelled(), "also from the last one");
    let until = now + RULES.freeze;
    while now < until {
        assert!(!begun.is_cancelled());
        gone.probed(Probe::Health, unreachable(), true, now);
        now += Duration::from_secs(1);
    }
    gone.probed(Probe::Health, unreachable(), true, now);
    assert!(begun.is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn one_that_closed_its_listener_and_still_sends_finishes_its_work() {
    let start = Instant::now();
    let mut draining = ready(start);
    draining.given(start);
    let evictions = draining.evictions();
    let mut now = start;
    while now < start + RULES.freeze * 3 {
        now += Duration::from_secs(1);
        draining.pulse().beat(now - Duration::from_millis(200));
        draining.probed(Probe::Health, unreachable(), false, now);
    }
    assert!(!evictions.unanswered.is_cancelled() && !evictions.begun.is_cancelled());
    draining.probed(Probe::Health, unreachable(), false, now + GONE);
    assert!(evictions.unanswered.is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn one_that_is_out_for_long_and_has_work_is_looked_after_meanwhile() {
    let mut now = Instant::now();
    let mut out = ready(now);
    out.given(now);
    out.failed(&fault(Cause::EngineDead), false, now);
    for _ in 0..8 {
        now += LONGEST_EJECTION;
        assert_eq!(out.due(now), Some(Probe::Token));
        out.probed(Probe::Token, failed(), false, now);
    }
    assert_eq!(out.due(now + HEALTH_EVERY), Some(Probe::Health), "not in 30 s");
    let eviction = out.evictions().unanswered;
    out.probed(Probe::Health, unreachable(), false, now + HEALTH_EVERY);
    out.probed(Probe::Health, unreachable(), false, now + HEALTH_EVERY + GONE);
    assert!(eviction.is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn each_process_has_a_life_of_its_own_whose_end_by_an_order_shows() {
    let now = Instant::now();
    let mut endpoint = ready(now);
    let first = Arc::clone(endpoint.life());
    endpoint.failed(&fault(Cause::Connection), false, now);
    endpoint.probed(Probe::Token, Probed::Answered, false, now);
    assert_eq!(endpoint.life().id(), first.id(), "a connection broke, no more is known");
    let later = now + Duration::from_secs(1);
    endpoint.probed(Probe::Health, unreachable(), false, later);
    endpoint.probed(Probe::Health, Probed::Answered, false, later);
    assert_ne!(endpoint.life().id(), first.id());
    assert_eq!(endpoint.up_since(), later);
    assert!(!first.was_stopped());
    let second = Arc::clone(endpoint.life());
    endpoint.failed(&fault(Cause::EngineDead), false, later);
    endpoint.probed(Probe::Token, Probed::Answered, false, later);
    assert_ne!(endpoint.life().id(), second.id(), "started again between two probes");

    for (case, causes, stopped) in [
        ("a crash", vec![Cause::EngineDead, Cause::Connection], false),
        ("it said so", vec![Cause::ShuttingDown, Cause::Connection], true),
        ("some aborted, some failed", vec![Cause::EngineDead, Cause::Aborted], true),
        ("an abort alone", vec![Cause::Aborted], false),
    ] {
        let mut endpoint = ready(now);
        for cause in causes {
            endpoint.failed(&fault(cause), false, now);
        }
        assert_eq!(endpoint.life().was_stopped(), stopped, "{case}");
    }
    let mut endpoint = ready(now);
    endpoint.failed(&fault(Cause::Aborted), false, now);
    endpoint.failed(&fault(Cause::Connection), false, now + STOPS_WITHIN * 2);
    assert!(!endpoint.life().was_stopped(), "two things");
    endpoint.life().stopped();
    endpoint.life().crashed();
    assert!(!endpoint.life().was_stopped(), "its own supervisor knows better");
}

#[tokio::test(start_paused = true)]
async fn a_draining_endpoint_has_no_room() {
    let now = Instant::now();
    let mut endpoint = ready(now);
    assert!(endpoint.drain(true));
    assert_eq!((endpoint.health(), endpoint.room(now)), (Health::Draining, 0));
    assert!(endpoint.drain(false));
    assert_eq!(endpoint.room(now), 4);
}

proptest! {
    // Whatever befalls it, an endpoint that answers comes back within the longest back-off.
    #[test]
    fn one_that_answers_comes_back(
        events in prop::collection::vec((0..7u8, 0..5_000u64), 0..60),
    ) {
        let mut now = Instant::now();
        let mut endpoint = Endpoint::new(RULES, now);
        for (event, ms) in events {
            now += Duration::from_millis(ms);
            match event {
                0 => { let _ = endpoint.failed(&fault(Cause::Connection), false, now); },
                1 => { let _ = endpoint.failed(&fault(Cause::Server), false, now); },
                2 => { let _ = endpoint.failed(&fault(Cause::QueueFull), false, now); },
                3 => endpoint.completed(true, now),
                kind => if let Some(probe) = endpoint.due(now) {
                    let word = match kind {
                        4 => Probed::Answered,
                        5 => failed(),
                        _ => Probed::Unreachable("refused".into()),
                    };
                    endpoint.probed(probe, word, false, now);
                }
            }
        }
        let until = now + LONGEST_EJECTION + HEALTH_EVERY;
        while now < until {
            if let Some(probe) = endpoint.due(now) {
                endpoint.probed(probe, Probed::Answered, false, now);
            }
            now += Duration::from_millis(100);
        }
        prop_assert_eq!(endpoint.health(), Health::Ready);
        prop_assert_eq!(endpoint.room(now), RULES.limit);
    }
}

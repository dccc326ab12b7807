use super::silence::GONE;
use super::*;
use proptest::prelude::*;

mod probing;

const LIMIT: LimitRule = LimitRule { most: 4, learned: false };
const RULES: Rules = Rules { limit: LIMIT, eject_after: 3, freeze: Duration::from_secs(10) };

/// The probe that is due; chance puts off none.
fn due(endpoint: &mut Endpoint, now: Instant) -> Option<Probe> {
    match endpoint.due(Duration::default, false, now) {
        Due::Now(probe, _) => Some(probe),
        Due::At(at) => {
            assert!(at > now, "it would be looked at for ever");
            None
        }
    }
}

fn ready(now: Instant) -> Endpoint {
    let mut endpoint = Endpoint::new(RULES, now);
    assert_eq!(due(&mut endpoint, now), Some(Probe::Health));
    assert!(endpoint.probed(Probe::Health, Probed::Answered, false, now));
    endpoint
}

fn fault(kind: Cause) -> Failure {
    Failure::new(kind, "replica's message")
}

fn failed() -> Probed {
    Probed::Failed("500".into())
}

fn silent() -> Probed {
    Probed::Silent("nothing within 5 s".into())
}

const MILLI: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn an_ejected_endpoint_comes_back_only_by_a_real_answer_and_is_probed_later_each_time() {
    let mut now = Instant::now();
    let mut endpoint = ready(now);
    assert!(endpoint.request_failed(&fault(Cause::ShuttingDown), false, now));
    for out in [250, 500, 1000] {
        assert_eq!((endpoint.health(), endpoint.room(now)), (Health::Ejected, 0));
        assert!(
            !endpoint.probed(Probe::Health, Probed::Answered, false, now),
            "/health proves nothing"
        );
        let until = now + Duration::from_millis(out);
        assert_eq!(
            due(&mut endpoint, until - Duration::from_millis(1)),
            None,
            "not before {out} ms"
        );
        assert_eq!(due(&mut endpoint, until), Some(Probe::Token));
        now = until;
        assert!(!endpoint.probed(Probe::Token, failed(), false, now));
    }
    now += Duration::from_secs(2);
    assert_eq!(due(&mut endpoint, now), Some(Probe::Token));
    assert!(endpoint.probed(Probe::Token, Probed::Answered, false, now));
    assert_eq!(endpoint.room(now), 1, "another process starts slowly");
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_went_away_starts_with_a_clean_slate() {
    let now = Instant::now();
    let mut endpoint = ready(now);
    endpoint.request_failed(&fault(Cause::Connection), false, now);
    let mut later = now + FIRST_EJECTION;
    assert_eq!(due(&mut endpoint, later), Some(Probe::Token));
    endpoint.probed(Probe::Token, Probed::Unreachable("refused".into()), false, later);
    assert_eq!(endpoint.health(), Health::Ejected);
    later += 100 * MILLI;
    assert_eq!(due(&mut endpoint, later), Some(Probe::Health), "as while it starts");
    assert!(endpoint.probed(Probe::Health, Probed::Answered, false, later));
    assert_eq!(endpoint.health(), Health::Ready);
}

#[tokio::test(start_paused = true)]
async fn counted_failures_eject_only_in_a_row_and_never_the_last_endpoint() {
    let now = Instant::now();
    let error = fault(Cause::Server);
    let mut endpoint = ready(now);
    assert!(!endpoint.request_failed(&error, false, now));
    assert!(!endpoint.request_failed(&error, false, now));
    endpoint.request_completed(true, now);
    assert!(!endpoint.request_failed(&error, false, now), "a success between them");
    assert!(!endpoint.request_failed(&error, false, now));
    assert!(endpoint.request_failed(&error, false, now), "three in a row");

    let mut last = ready(now);
    for cause in [
        Cause::Server,
        Cause::Stalled,
        Cause::Aborted,
        Cause::EventTooLong,
        Cause::KeyRefused,
        Cause::NotServed,
    ] {
        (0..20).for_each(|_| assert!(!last.request_failed(&fault(cause), true, now)));
        assert_eq!(last.health(), Health::Ready, "{cause:?}");
    }
    assert!(last.request_failed(&fault(Cause::EngineDead), true, now), "its server reported it");
}

#[tokio::test(start_paused = true)]
async fn a_stall_ejects_at_once_only_if_the_whole_endpoint_is_silent() {
    let start = Instant::now();
    let mut alone = ready(start);
    let now = start + RULES.freeze;
    assert!(!alone.request_failed(&fault(Cause::Stalled), false, now), "one long prompt");
    let mut frozen = ready(start);
    frozen.given(start);
    assert!(!frozen.request_failed(&fault(Cause::Stalled), true, now), "never the last");
    assert!(
        !frozen.request_failed(&fault(Cause::Server), false, now),
        "it answers, even if with an error"
    );
    assert!(frozen.request_failed(&fault(Cause::Stalled), false, now));
}

#[tokio::test(start_paused = true)]
async fn the_last_endpoint_is_probed_at_once_and_never_later_for_its_failures() {
    let mut now = Instant::now();
    let mut last = ready(now);
    for outcome in [failed(), silent(), failed(), silent()] {
        assert!(last.request_failed(&fault(Cause::Connection), true, now));
        assert_eq!(due(&mut last, now), Some(Probe::Token), "at once");
        for _ in 0..3 {
            last.probed(Probe::Token, outcome.clone(), true, now);
            assert_eq!(due(&mut last, now), None);
            now += FIRST_EJECTION;
            assert_eq!(due(&mut last, now), Some(Probe::Token));
        }
        assert!(last.probed(Probe::Token, Probed::Answered, true, now));
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_endpoint_gets_nothing_for_a_moment_after_it_aborted_a_request() {
    let now = Instant::now();
    let mut last = ready(now);
    assert!(!last.request_failed(&fault(Cause::Aborted), true, now));
    assert_eq!((last.health(), last.room(now)), (Health::Ready, 0));
    assert_eq!(last.room(now + FIRST_EJECTION), 4);
}

#[tokio::test(start_paused = true)]
async fn requests_that_fail_together_are_one_failure() {
    let now = Instant::now();
    let mut endpoint = ready(now);
    (0..16).for_each(|_| {
        let _ = endpoint.request_failed(&fault(Cause::Connection), false, now);
    });
    assert_eq!(due(&mut endpoint, now + FIRST_EJECTION), Some(Probe::Token));
    assert_eq!(endpoint.counts.failed, 16);
}

#[tokio::test(start_paused = true)]
async fn a_full_endpoint_is_ready_and_gets_nothing_until_a_request_ends_there() {
    let now = Instant::now();
    let mut endpoint = ready(now);
    assert!(!endpoint.request_failed(&fault(Cause::QueueFull), false, now));
    assert_eq!((endpoint.health(), endpoint.room(now)), (Health::Ready, 0));
    assert_eq!(endpoint.room(now + FULL_FOR), 4);
    endpoint.request_completed(true, now);
    assert_eq!(endpoint.room(now), 4);
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_with_work_and_without_output_is_probed_and_ejected_if_it_hangs() {
    let start = Instant::now();
    let mut endpoint = ready(start);
    // Any kind of request: a stream that has begun or not, a plain answer.
    endpoint.given(start);
    let now = start + RULES.freeze;
    endpoint.pulse().beat(now - Duration::from_secs(1));
    assert!(!endpoint.is_suspect(now));
    assert_eq!(due(&mut endpoint, now), Some(Probe::Health), "something came a second ago");
    endpoint.probed(Probe::Health, Probed::Answered, false, now);
    let now = now + RULES.freeze;
    assert!(endpoint.is_suspect(now));
    assert_eq!(due(&mut endpoint, now), Some(Probe::Token));
    assert!(
        endpoint.probed(Probe::Token, silent(), false, now),
        "a new request brings nothing either"
    );
    assert_eq!(endpoint.health(), Health::Ejected);
    let unanswered = endpoint.evictions().unanswered.clone();
    endpoint.pulse().beat(now);
    endpoint.relieve(now);
    assert!(!unanswered.is_cancelled(), "it woke, and is not probed yet");
    endpoint.relieve(now + RULES.freeze);
    assert!(unanswered.is_cancelled() && !endpoint.is_hung(), "it is silent again");

    let mut slow = ready(start);
    slow.given(start);
    assert_eq!(due(&mut slow, now), Some(Probe::Token));
    slow.pulse().beat(now);
    assert!(!slow.probed(Probe::Token, silent(), false, now), "something came meanwhile");
    let later = now + RULES.freeze;
    assert_eq!(due(&mut slow, later), Some(Probe::Token));
    slow.probed(Probe::Token, Probed::Answered, false, later);
    assert!(!slow.is_suspect(later), "a long answer, and a working engine");
    slow.given_back(false, later);
    assert_eq!(
        due(&mut slow, later + RULES.freeze),
        Some(Probe::Health),
        "nothing to be silent about"
    );
}

#[tokio::test(start_paused = true)]
async fn silence_is_measured_from_the_first_request_that_it_owes_an_answer() {
    let start = Instant::now();
    let mut endpoint = ready(start);
    let mut now = start + RULES.freeze * 100;
    endpoint.given(now);
    assert!(!endpoint.is_suspect(now), "it was idle");
    // One client after the other gives up sooner than `freezeTimeout`.
    for _ in 0..10 {
        now += RULES.freeze / 10;
        endpoint.given_back(false, now);
        endpoint.given(now);
    }
    assert!(endpoint.is_suspect(now));
    // The server in front of the engine counts tokens and refuses nonsense on its own.
    endpoint.request_completed(false, now);
    assert!(endpoint.is_suspect(now));
    endpoint.request_completed(true, now);
    assert!(!endpoint.is_suspect(now));
}

#[tokio::test(start_paused = true)]
async fn time_without_work_does_not_count_as_silence() {
    let start = Instant::now();
    let (second, hour) = (Duration::from_secs(1), Duration::from_secs(3600));
    let mut endpoint = ready(start);
    let mut now = start;
    // Each client leaves after a second, and an hour later the next one comes.
    for owed in 0..5 {
        endpoint.given(now);
        assert!(!endpoint.is_suspect(now), "it owes {owed} s");
        now += second;
        endpoint.given_back(false, now);
        now += hour;
    }
    endpoint.given(now);
    assert!(!endpoint.is_suspect(now + 5 * second - Duration::from_millis(1)));
    assert!(endpoint.is_suspect(now + 5 * second), "ten in all");

    // An endpoint that worked for an hour owes the time since it last produced something.
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
    assert!(!endpoint.is_suspect(now), "a session is not a debt");
    endpoint.given_back(true, now);
    assert_eq!(due(&mut endpoint, now + RULES.freeze), Some(Probe::Token));
}

#[tokio::test(start_paused = true)]
async fn requests_that_wait_at_a_silent_endpoint_go_elsewhere() {
    let start = Instant::now();
    let mut stopped = ready(start);
    let (eviction, sessions) =
        (stopped.evictions().unanswered.clone(), stopped.evictions().sessions.clone());
    let mut now = start;
    while now < start + RULES.freeze {
        assert!(!eviction.is_cancelled());
        stopped.probed(Probe::Health, silent(), false, now);
        now += Duration::from_secs(2);
    }
    stopped.probed(Probe::Health, silent(), false, now);
    assert!(eviction.is_cancelled() && sessions.is_cancelled());
    assert!(!stopped.evictions().unanswered.is_cancelled(), "later requests wait anew");
    assert!(!stopped.evictions().begun.is_cancelled(), "it may wake");

    let mut failing = ready(start);
    let eviction = failing.evictions().unanswered.clone();
    failing.request_failed(&fault(Cause::EngineDead), false, start);
    failing.probed(Probe::Token, failed(), false, now);
    failing.probed(Probe::Token, failed(), false, now);
    assert!(!eviction.is_cancelled(), "an endpoint that fails probes is not silent");
}

fn unreachable() -> Probed {
    Probed::Unreachable("connection refused".into())
}

#[tokio::test(start_paused = true)]
async fn where_nothing_listens_waiting_requests_go_at_once_and_begun_answers_end_in_time() {
    let start = Instant::now();
    let mut gone = ready(start);
    gone.given(start);
    let (waiting, begun) = (gone.evictions().unanswered.clone(), gone.evictions().begun.clone());
    let mut now = start + Duration::from_secs(3);
    gone.probed(Probe::Health, unreachable(), true, now);
    assert!(!waiting.is_cancelled(), "a single failed connection shows nothing");
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
async fn an_endpoint_that_closed_its_listener_and_still_sends_finishes_its_work() {
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
async fn an_endpoint_that_is_ejected_for_long_and_has_work_is_still_probed() {
    let mut now = Instant::now();
    let mut out = ready(now);
    out.given(now);
    out.request_failed(&fault(Cause::EngineDead), false, now);
    for _ in 0..8 {
        now += LONGEST_EJECTION;
        assert_eq!(due(&mut out, now), Some(Probe::Token));
        out.probed(Probe::Token, failed(), false, now);
    }
    assert_eq!(due(&mut out, now + SECOND), Some(Probe::Health), "not in 30 s");
    let eviction = out.evictions().unanswered.clone();
    out.probed(Probe::Health, unreachable(), false, now + SECOND);
    out.probed(Probe::Health, unreachable(), false, now + SECOND + GONE);
    assert!(eviction.is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn each_process_has_its_own_number_and_an_ordered_end_shows() {
    let now = Instant::now();
    let mut endpoint = ready(now);
    let first = Arc::clone(endpoint.process());
    endpoint.request_failed(&fault(Cause::Connection), false, now);
    endpoint.probed(Probe::Token, Probed::Answered, false, now);
    assert_eq!(endpoint.process().id(), first.id(), "a connection broke, no more is known");
    let later = now + Duration::from_secs(1);
    endpoint.probed(Probe::Health, unreachable(), false, later);
    endpoint.probed(Probe::Health, Probed::Answered, false, later);
    assert!(endpoint.process().id() > first.id(), "numbered in their order");
    assert!(!first.was_stopped());
    let second = Arc::clone(endpoint.process());
    endpoint.request_failed(&fault(Cause::EngineDead), false, later);
    endpoint.probed(Probe::Token, Probed::Answered, false, later);
    assert_ne!(endpoint.process().id(), second.id(), "started again between two probes");

    for (case, causes, stopped) in [
        ("a crash", vec![Cause::EngineDead, Cause::Connection], false),
        ("its server reported it", vec![Cause::ShuttingDown, Cause::Connection], true),
        ("some aborted, some failed", vec![Cause::EngineDead, Cause::Aborted], true),
        ("an abort alone", vec![Cause::Aborted], false),
    ] {
        let mut endpoint = ready(now);
        for cause in causes {
            endpoint.request_failed(&fault(cause), false, now);
        }
        assert_eq!(endpoint.process().was_stopped(), stopped, "{case}");
    }
    let mut endpoint = ready(now);
    endpoint.request_failed(&fault(Cause::Aborted), false, now);
    endpoint.request_failed(&fault(Cause::Connection), false, now + Duration::from_secs(5) * 2);
    assert!(!endpoint.process().was_stopped(), "two separate events");
    endpoint.process().stopped();
    endpoint.process().crashed();
    assert!(!endpoint.process().was_stopped(), "a report of a crash outranks it");
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
    // Whatever happens before, an endpoint that answers comes back within the longest back-off.
    #[test]
    fn an_endpoint_that_answers_comes_back(
        events in prop::collection::vec((0..7u8, 0..5_000u64), 0..60),
    ) {
        let mut now = Instant::now();
        let mut endpoint = Endpoint::new(RULES, now);
        for (event, ms) in events {
            now += Duration::from_millis(ms);
            match event {
                0 => { let _ = endpoint.request_failed(&fault(Cause::Connection), false, now); },
                1 => { let _ = endpoint.request_failed(&fault(Cause::Server), false, now); },
                2 => { let _ = endpoint.request_failed(&fault(Cause::QueueFull), false, now); },
                3 => endpoint.request_completed(true, now),
                kind => if let Some(probe) = due(&mut endpoint, now) {
                    let outcome = match kind {
                        4 => Probed::Answered,
                        5 => failed(),
                        _ => Probed::Unreachable("refused".into()),
                    };
                    let before = endpoint.is_as_probed(probe, &outcome).then(|| endpoint.clone());
                    endpoint.probed(probe, outcome, false, now);
                    if let Some(before) = before {
                        prop_assert_eq!(format!("{before:?}"), format!("{endpoint:?}"));
                    }
                }
            }
        }
        let until = now + LONGEST_EJECTION + SECOND;
        while now < until {
            if let Some(probe) = due(&mut endpoint, now) {
                endpoint.probed(probe, Probed::Answered, false, now);
            }
            now += Duration::from_millis(100);
        }
        prop_assert_eq!(endpoint.health(), Health::Ready);
        prop_assert!(endpoint.room(now) > 0);
    }
}

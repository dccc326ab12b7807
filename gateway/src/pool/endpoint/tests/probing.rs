//! When an endpoint is probed.

use futures_util::FutureExt;

use super::*;

#[tokio::test(start_paused = true)]
async fn an_endpoint_is_probed_every_100_ms_while_it_starts_and_ready_from_its_first_answer() {
    let mut now = Instant::now();
    let mut endpoint = Endpoint::new(RULES, now);
    assert_eq!((endpoint.health(), endpoint.room(now)), (Health::Starting, 0));
    for _ in 0..3 {
        assert_eq!(due(&mut endpoint, now), Some(Probe::Health));
        assert!(!endpoint.probed(Probe::Health, Probed::Unreachable("refused".into()), false, now));
        assert_eq!(endpoint.due(|| SPREAD, false, now), Due::At(now + 100 * MILLI));
        now += 100 * MILLI;
    }
    assert_eq!(due(&mut endpoint, now), Some(Probe::Health));
    endpoint.probed(Probe::Health, Probed::Answered, false, now);
    assert_eq!((endpoint.health(), endpoint.room(now)), (Health::Ready, 1), "it starts slowly");
}

#[tokio::test(start_paused = true)]
async fn an_idle_endpoint_is_asked_within_four_seconds_and_one_with_work_sooner() {
    let start = Instant::now();
    for spread in [0, 250, 500].map(|ms| MILLI * ms) {
        let mut idle = ready(start);
        let begun = start + 3500 * MILLI;
        assert_eq!(due(&mut idle, begun - MILLI), None);
        assert_eq!(idle.due(|| spread, false, begun), Due::Now(Probe::Health, Urgency::Answering));
        idle.probed(Probe::Health, Probed::Answered, false, begun);
        assert_eq!(due(&mut idle, begun + 3500 * MILLI + spread - MILLI), None);
        idle.given(begun);
        // A mute connection is given up 0.8 s later: less than three seconds in all.
        let sooner = 1750 * MILLI + spread / 2;
        assert_eq!(due(&mut idle, begun + sooner - MILLI), None);
        assert_eq!(due(&mut idle, begun + sooner), Some(Probe::Health));
    }
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_answers_requests_is_not_probed_until_it_answers_none() {
    let start = Instant::now();
    let mut endpoint = ready(start);
    let mut now = start;
    endpoint.given(now);
    for second in 0..600 {
        now += SECOND;
        assert_eq!(due(&mut endpoint, now), None, "after {second} s");
        // A stream goes on all the time, and answers to other requests end.
        endpoint.given(now);
        endpoint.request_completed(true, now);
        endpoint.given_back(false, now);
    }
    endpoint.pulse().beat(now + SECOND);
    assert_eq!(
        due(&mut endpoint, now + 2 * SECOND),
        Some(Probe::Health),
        "a stream that goes on does not show that its server still takes requests"
    );
    endpoint.given_back(false, now);
    now += 2 * SECOND;
    endpoint.request_completed(false, now);
    assert_eq!(due(&mut endpoint, now + 3499 * MILLI), None);
    assert_eq!(due(&mut endpoint, now + 3500 * MILLI), Some(Probe::Health));
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_closes_its_connection_is_asked_at_once_but_not_more_than_once_a_second() {
    let start = Instant::now();
    let mut endpoint = ready(start);
    assert_eq!(endpoint.due(|| SPREAD, true, start + 400 * MILLI), Due::At(start + SECOND));
    let health = Due::Now(Probe::Health, Urgency::Answering);
    assert_eq!(endpoint.due(|| SPREAD, true, start + 1200 * MILLI), health);
    assert_eq!(endpoint.due(|| SPREAD, true, start + 1300 * MILLI), Due::At(start + 2200 * MILLI));
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_is_looked_at_again_before_work_that_it_gets_makes_a_probe_due() {
    let start = Instant::now();
    let mut endpoint = ready(start);
    assert_eq!(endpoint.due(|| SPREAD, false, start + MILLI), Due::At(start + MILLI + 2 * SECOND));
    let mut quick = endpoint.clone();
    quick.set_rules(Rules { freeze: SECOND, ..RULES }, start);
    assert_eq!(quick.due(|| SPREAD, false, start + MILLI), Due::At(start + MILLI + SECOND));
    endpoint.given(start + 2 * MILLI);
    assert_eq!(
        due(&mut endpoint, start + MILLI + 2 * SECOND),
        Some(Probe::Health),
        "it got work while it was left alone"
    );
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_without_an_answer_is_young_for_ten_minutes_and_again_after_each_answer() {
    let start = Instant::now();
    let mut endpoint = Endpoint::new(RULES, start);
    let (young, old) =
        (Due::Now(Probe::Health, Urgency::Young), Due::Now(Probe::Health, Urgency::Old));
    assert_eq!(endpoint.due(|| SPREAD, false, start + 599 * SECOND), young);
    assert_eq!(endpoint.due(|| SPREAD, false, start + 600 * SECOND), old);
    let later = start + 601 * SECOND;
    endpoint.probed(Probe::Health, Probed::Answered, false, later);
    endpoint.probed(Probe::Health, unreachable(), false, later + SECOND);
    assert_eq!(endpoint.due(|| SPREAD, false, later + 600 * SECOND), young);
    endpoint.probed(Probe::Health, unreachable(), false, later + 600 * SECOND);
    assert_eq!(endpoint.due(|| SPREAD, false, later + 601 * SECOND), old, "dead since then");
}

#[tokio::test(start_paused = true)]
async fn an_ejection_by_a_request_wakes_the_probe() {
    let now = Instant::now();
    let mut endpoint = ready(now);
    let wake = endpoint.probe_wake();
    endpoint.request_failed(&fault(Cause::Server), false, now);
    assert!(wake.notified().now_or_never().is_none());
    endpoint.request_failed(&fault(Cause::Connection), false, now);
    assert!(wake.notified().now_or_never().is_some(), "a probe is due sooner than it was");
}

use super::super::Candidates;
use super::super::tests::{add, candidate};
use super::*;

fn at(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn expects(
    expected: &mut Expected,
    id: EndpointId,
    candidate: &Candidate,
    bytes: u64,
    now: Duration,
) -> f64 {
    let shared = expected.shared(now);
    expected.seconds(id, candidate, bytes, &shared)
}

/// Two endpoints.
fn two() -> [(EndpointId, Candidate); 2] {
    let mut candidates = Candidates::default();
    [1, 2].map(|port| (add(&mut candidates, candidate(port)), candidate(port)))
}

#[test]
fn prompts_without_a_first_token_are_waited_for() {
    let mut expected = Expected::default();
    let [(id, one), _] = two();
    let idle = expects(&mut expected, id, &one, 6000, at(0));
    let work = expected.given(id, &one, 60_000, true, at(0));
    let busy = expects(&mut expected, id, &one, 6000, at(500));
    assert!((busy - idle - 1.0).abs() < 1e-6, "{idle} {busy}");
    expected.left((id, one.process), &work);
    expected.left((id, one.process), &work);
    assert_eq!(expects(&mut expected, id, &one, 6000, at(500)), idle);
}

#[test]
fn a_plain_answers_prompt_counts_for_the_time_expected_of_it() {
    let mut expected = Expected::default();
    let [(id, one), _] = two();
    let idle = expects(&mut expected, id, &one, 0, at(0));
    let _ = expected.given(id, &one, 60_000, false, at(0));
    assert!(expects(&mut expected, id, &one, 0, at(900)) > idle + 0.9);
    assert_eq!(expects(&mut expected, id, &one, 0, at(1100)), idle);
}

#[test]
fn another_process_has_no_work_yet() {
    let mut expected = Expected::default();
    let [(id, one), _] = two();
    let idle = expects(&mut expected, id, &one, 0, at(0));
    let old = expected.given(id, &one, 60_000, true, at(0));
    let next = Candidate { process: 9, ..one };
    assert_eq!(expects(&mut expected, id, &next, 0, at(0)), idle);
    let _ = expected.given(id, &next, 6000, true, at(0));
    let busy = expects(&mut expected, id, &next, 0, at(0));
    expected.first_token((id, one.process), &old, 1.0, at(1000));
    assert_eq!(expects(&mut expected, id, &next, 0, at(1000)), busy, "a late report");
}

/// Feeds it requests of a fleet with these weights.
fn learned(weights: [f64; 3], slow: f64) -> (Expected, [(EndpointId, Candidate); 2]) {
    let (mut expected, both) = (Expected::default(), two());
    for round in 0..400_u64 {
        let now = at(round * 1000);
        let (bytes, in_flight) = (round * 7919 % 50_000, (round * 31 % 40) as u32);
        for (number, (id, one)) in both.iter().enumerate() {
            let one = Candidate { in_flight: in_flight + 1, ..*one };
            let work = expected.given(*id, &one, bytes, true, now);
            let terms = terms(bytes, in_flight);
            let seconds: f64 = (0..3).map(|term| weights[term] * terms[term]).sum();
            let seconds = if number == 1 { seconds * slow } else { seconds };
            expected.first_token((*id, one.process), &work, seconds, now);
        }
    }
    (expected, both)
}

#[test]
fn the_weights_of_the_fleet_are_learned() {
    for weights in [[0.05, 1.0 / 30_000.0, 0.004], [0.01, 1.0 / 400_000.0, 0.02]] {
        let (expected, _) = learned(weights, 1.0);
        for term in 0..3 {
            let error = (expected.weights[term] - weights[term]).abs() * UNITS[term];
            assert!(error < 0.01, "{:?} instead of {weights:?}", expected.weights);
        }
    }
}

#[test]
fn a_slow_endpoint_is_known_and_may_recover() {
    let (mut expected, [(fast, one), (slow, two)]) = learned([0.02, 1.0 / 60_000.0, 0.002], 5.0);
    let now = at(400_000);
    let ratio = |expected: &mut Expected, now| {
        expects(expected, slow, &two, 9000, now) / expects(expected, fast, &one, 9000, now)
    };
    let at_once = ratio(&mut expected, now);
    assert!((3.5..6.5).contains(&at_once), "{at_once}");
    let later = ratio(&mut expected, now + Duration::from_secs(3600));
    assert!((0.9..1.1).contains(&later), "{later}");
}

#[test]
fn what_decoding_beside_others_takes_is_learned() {
    let mut expected = Expected::default();
    let [(id, one), _] = two();
    for round in 0..200_u64 {
        let in_flight = (round * 31 % 40) as u32;
        let decoding = f64::from(in_flight);
        let work = Work { number: 1, terms: terms(0, in_flight), decoding };
        let token = 0.008 + 0.0005 * f64::from(in_flight);
        expected.decoded((id, one.process), &work, (token * 400.0, 400), at(0));
        expected.decoded((id, one.process), &work, (0.0, 0), at(0));
    }
    let busy = Candidate { in_flight: 10, ..one };
    let longer =
        expects(&mut expected, id, &busy, 0, at(0)) - expects(&mut expected, id, &one, 0, at(0));
    // Ten of them add 5 ms to each of 400 tokens, and 20 ms to the first.
    assert!((1.9..2.1).contains(&longer), "{longer}");
}

#[test]
fn no_measurements_make_it_absurd() {
    let (mut expected, [(id, one), _]) = (Expected::default(), two());
    for round in 0..1000 {
        let seconds = if round % 3 == 0 { 1e6 } else { 0.0 };
        let work = expected.given(id, &one, u64::from(u32::MAX) * (round % 2), true, at(round));
        expected.first_token((id, one.process), &work, seconds, at(round));
        expected.decoded((id, one.process), &work, (seconds, round), at(round));
        let seconds = expects(&mut expected, id, &one, 1000, at(round));
        assert!(seconds.is_finite() && seconds > 0.0, "{seconds}");
    }
}

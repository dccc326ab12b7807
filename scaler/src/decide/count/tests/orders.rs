//! Orders of an operator for one decision.

use super::*;

/// A state with `ready` replicas that served their last request at the time 0.
fn served(ready: u32, policy: &Policy) -> State {
    let mut state = State::default();
    state.adopt(ready, Millis::ZERO);
    step(&mut state, inputs(0, 1, ready), policy, 0);
    state.times.adopted_at = None;
    state
}

#[test]
fn a_pool_that_is_woken_stays_until_it_was_idle_for_the_cooldown() {
    let policy = policy();
    let mut state = State::default();
    step(&mut state, inputs(0, 0, 0), &policy, 0);
    state.order(Order::Wake);
    let woken = step(&mut state, inputs(0, 0, 0), &policy, 100_000);
    assert_eq!((woken.desired, woken.why.rule()), (1, "ordered"));
    assert_eq!(woken.sentence(), "scaling 0 → 1 because an operator asked for it");
    // It is ready 5 s later; from then on the cooldown of 30 s runs.
    assert_eq!(step(&mut state, inputs(0, 0, 1), &policy, 105_000).desired, 1);
    assert_eq!(step(&mut state, inputs(0, 0, 1), &policy, 134_000).desired, 1);
    assert_eq!(step(&mut state, inputs(0, 0, 1), &policy, 136_000).desired, 0);
}

#[test]
fn a_pool_wakes_to_its_minimum_and_an_awake_one_does_not_change() {
    let policy = at_least(2);
    let mut state = served(2, &policy);
    state.order(Order::Wake);
    let awake = step(&mut state, inputs(0, 1, 2), &policy, 1_000);
    assert!(awake.desired == 2 && awake.why.rule() != "ordered", "{awake:?}");
    let mut state = State::default();
    let resting = Policy { counts: CountBounds { idle: 0, ..policy.counts }, ..policy };
    state.order(Order::Wake);
    assert_eq!(step(&mut state, inputs(0, 0, 0), &resting, 0).desired, 2);
}

#[test]
fn a_pool_goes_to_its_idle_count_at_once_and_wakes_with_the_next_request() {
    let policy = policy();
    let mut state = served(3, &policy);
    state.order(Order::Rest);
    let rests = step(&mut state, inputs(0, 0, 3), &policy, 1_000);
    assert_eq!((rests.desired, rests.why.rule()), (0, "ordered"));
    assert_eq!(step(&mut state, inputs(0, 0, 0), &policy, 2_000).desired, 0, "it stays there");
    assert_eq!(step(&mut state, inputs(1, 0, 0), &policy, 3_000).desired, 1);
}

#[test]
fn an_order_to_rest_has_no_effect_on_a_pool_with_requests_or_an_unknown_load() {
    let policy = policy();
    let missing = Load { missing: true, ..Load::default() };
    let stale = Load { stale: true, ..Load::default() };
    for (case, given) in [
        ("one is in flight", inputs(0, 1, 1)),
        ("one is held", inputs(1, 0, 1)),
        ("a gateway is silent", Given { load: missing, ..inputs(0, 0, 1) }),
        ("a gateway has long been silent", Given { load: stale, ..inputs(0, 0, 1) }),
    ] {
        let mut state = served(1, &policy);
        state.order(Order::Rest);
        let kept = step(&mut state, given, &policy, 1_000);
        assert!(kept.desired >= 1 && kept.why.rule() != "ordered", "{case}: {kept:?}");
        let next = step(&mut state, inputs(0, 0, 1), &policy, 2_000);
        assert!(next.desired >= 1, "{case}: the order is over: {next:?}");
    }
}

use super::*;
use crate::decide::condition::Condition;
use crate::decide::inputs::ReplicaFacts;
use crate::decide::load::Load;
use crate::decide::policy::{ConcurrencyRules, Cooldown, CountBounds, TtftObjective, Windows};
use proptest::prelude::*;

mod orders;

fn policy() -> Policy {
    Policy {
        counts: CountBounds { min: 0, max: 10, idle: 0 },
        concurrency: ConcurrencyRules {
            per_replica: 10,
            given: true,
            limit: 12,
            activation_threshold: 0,
        },
        objective: TtftObjective { ttft: Millis::from_secs(5), share: 0.99 },
        windows: Windows {
            stable: Millis::from_secs(60),
            panic: Millis::from_secs(6),
            panic_threshold: 2.0,
        },
        cooldown: Cooldown { after: Millis::from_secs(30), initial: Millis::ZERO },
        behavior: None,
        trigger_rules: Rules::of_triggers(),
    }
}

fn at_least(min: u32) -> Policy {
    let mut policy = policy();
    policy.counts.min = min;
    policy
}

/// Inputs of one step.
#[derive(Clone)]
struct Given {
    load: Load,
    ready: u32,
    failed: u32,
    ejected: u32,
}

fn step(
    state: &mut State,
    given: impl std::borrow::Borrow<Given>,
    policy: &Policy,
    now_ms: u64,
) -> Decision {
    let given = given.borrow();
    let replicas = |condition, count| {
        let replica = ReplicaFacts { condition, ..ReplicaFacts::requested(Millis::ZERO) };
        std::iter::repeat_n(replica, count as usize)
    };
    let replicas: Vec<_> = replicas(Condition::Ready, given.ready)
        .chain(replicas(Condition::Failed, given.failed))
        .chain(replicas(Condition::Ejected, given.ejected))
        .collect();
    let inputs = Inputs {
        load: &given.load,
        replicas: &replicas,
        proposals: &[],
        operator_override: Override::None,
    };
    decide(state, &inputs, policy, Millis::new(now_ms))
}

fn accepted(accepted: u64) -> Load {
    let totals = forebay_signals::Totals { accepted, ..Default::default() };
    Load { totals, ..Load::default() }
}

fn inputs(held: u32, in_flight: u32, ready: u32) -> Given {
    Given { load: Load { held, in_flight, ..Load::default() }, ready, failed: 0, ejected: 0 }
}

#[test]
fn from_zero_all_replicas_for_the_held_work_are_requested_at_once() {
    for (case, held, want) in [
        ("nothing", 0, 0),
        ("one request wakes one replica", 1, 1),
        ("a replica's worth", 10, 1),
        ("one over", 11, 2),
        ("many", 50, 5),
        ("never more than the most", 5000, 10),
    ] {
        let got = step(&mut State::default(), inputs(held, 0, 0), &policy(), 1000);
        assert_eq!(got.desired, want, "{case}");
    }
}

#[test]
fn a_start_under_way_is_raised_at_every_push_and_not_ended_by_a_client_that_leaves() {
    let (mut state, policy) = (State::default(), policy());
    let mut step = |now, held| super::tests::step(&mut state, inputs(held, 0, 0), &policy, now);
    assert_eq!(step(1000, 1).sentence(), "scaling 0 → 1 because 1 request is held");
    assert_eq!(step(1020, 25).desired, 3, "raised");
    assert_eq!(step(1040, 0).desired, 3, "all have left");
    let later = step(600_000, 0);
    assert_eq!((later.desired, later.why), (3, Why::Starting), "kept until a replica is ready");
}

#[test]
fn a_start_that_never_ends_does_not_keep_idle_replicas_up() {
    let (mut state, policy) = (State::default(), policy());
    assert_eq!(step(&mut state, inputs(30, 0, 0), &policy, 1_000).desired, 3);
    // Two of three become ready; no GPU is left for the third.
    step(&mut state, inputs(0, 0, 2), &policy, 60_000);
    let soon = step(&mut state, inputs(0, 0, 2), &policy, 600_000);
    assert_eq!((soon.desired, soon.why), (3, Why::Starting));
    let late = step(&mut state, inputs(0, 0, 2), &policy, 60_000 + STUCK_AFTER.get());
    assert_eq!(late.desired, 0, "{}", late.sentence());
}

#[test]
fn goes_to_zero_after_the_idle_time_which_begins_when_a_replica_became_ready() {
    let (mut state, policy) = (State::default(), policy());
    step(&mut state, inputs(1, 0, 0), &policy, 1_000);
    // The client left; the replica became ready a minute later.
    step(&mut state, inputs(0, 0, 0), &policy, 2_000);
    step(&mut state, inputs(0, 0, 1), &policy, 60_000);
    assert_eq!(step(&mut state, inputs(0, 0, 1), &policy, 89_999).desired, 1);
    let zero = step(&mut state, inputs(0, 0, 1), &policy, 90_000);
    assert_eq!(zero.sentence(), "idle for 30 s, scaling 1 → 0");
    let again = step(&mut state, inputs(1, 0, 1), &policy, 90_010);
    assert_eq!(again.desired, 1, "a request in between wakes it");
}

#[test]
fn a_falling_load_is_averaged_and_the_last_replica_stays_until_idle() {
    let (mut state, policy) = (State::default(), policy());
    step(&mut state, inputs(50, 0, 0), &policy, 1_000);
    step(&mut state, inputs(0, 50, 5), &policy, 2_000);
    let soon = step(&mut state, inputs(0, 1, 5), &policy, 10_000);
    assert_eq!(soon.desired, 5, "the peak is still within the window: {soon:?}");
    let later = step(&mut state, inputs(0, 1, 5), &policy, 120_000);
    assert_eq!(later.desired, 1, "{later:?}");
    let quiet = step(&mut state, inputs(0, 0, 1), &policy, 125_000);
    assert_eq!(quiet.desired, 1, "idle for 5 s only");
}

#[test]
fn a_limit_stands_after_the_reason_for_the_count_that_it_limits() {
    let mut narrow = policy();
    narrow.counts.max = 2;
    let mut raised = at_least(3);
    raised.counts.idle = 0;
    let slow: forebay_config::Behavior = serde_json::from_value(serde_json::json!({
        "scaleUp": {"policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}]},
        "scaleDown": {"stabilizationWindowSeconds": 0,
                      "policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}]}
    }))
    .expect("a behavior");
    let behavior = Policy { behavior: Some(Rules::of(&slow)), ..policy() };
    for (case, policy, given, rule, want) in [
        (
            "behavior",
            &behavior,
            inputs(75, 5, 1),
            "behavior",
            "scaling 1 → 2 because 75 requests are held and 5 in flight, 10 per replica; behavior \
             does not allow 8 yet",
        ),
        (
            "maxReplicaCount",
            &narrow,
            inputs(75, 5, 1),
            "maximum",
            "scaling 1 → 2 because 75 requests are held and 5 in flight, 10 per replica; \
             maxReplicaCount does not allow 8",
        ),
    ] {
        let mut state = State::default();
        state.adopt(1, Millis::new(1));
        let decision = step(&mut state, given, policy, 1_000);
        assert_eq!((decision.why.rule(), &*decision.sentence()), (rule, want), "{case}");
    }
    let woken = step(&mut State::default(), inputs(1, 0, 0), &raised, 1_000);
    let want = "scaling 0 → 3 because 1 request is held; minReplicaCount requires this many";
    assert_eq!(woken.sentence(), want);

    let mut state = State::default();
    state.adopt(5, Millis::new(1));
    let fewer = step(&mut state, inputs(0, 5, 5), &narrow, 1_000);
    assert_eq!(fewer.sentence(), "scaling 5 → 2 because maxReplicaCount does not allow 5");

    let mut state = State::default();
    state.adopt(5, Millis::new(1));
    step(&mut state, inputs(0, 1, 5), &behavior, 1_000);
    let down = step(&mut state, inputs(0, 1, 5), &behavior, 200_000);
    assert_eq!(
        down.sentence(),
        "scaling 5 → 4 because 0 requests are held and 1 in flight, and 0.0 more arrive each second; \
         behavior does not allow 1 yet"
    );
}

#[test]
fn the_load_names_the_maximum_as_long_as_it_needs_more() {
    let mut narrow = policy();
    narrow.concurrency.given = false;
    narrow.counts.max = 2;
    let mut state = State::default();
    let woken = step(&mut state, inputs(400, 0, 0), &narrow, 1_000);
    let sentence = woken.sentence();
    assert_eq!((woken.desired, woken.why.rule()), (2, "maximum"), "{sentence}");
    let cause = "scaling 0 → 2 because 400 requests are held and 0 in flight, and ";
    assert!(sentence.starts_with(cause), "{sentence}");
    assert!(sentence.contains("; maxReplicaCount does not allow "), "{sentence}");
    assert!(woken.figures.backlog > 2, "the whole demand: {:?}", woken.figures);
    let full = step(&mut state, inputs(400, 24, 2), &narrow, 30_000);
    assert_eq!((full.desired, full.why.rule()), (2, "maximum"), "{}", full.sentence());
    let mut state = State::default();
    state.adopt(2, Millis::new(1));
    let enough = step(&mut state, inputs(0, 20, 2), &narrow, 31_000);
    assert_ne!(enough.why.rule(), "maximum", "two are enough: {}", enough.sentence());
    // Where `behavior` allows as many as the maximum does, the maximum is the limit.
    let rules = serde_json::json!({
        "scaleUp": {"policies": [{"type": "Pods", "value": 2, "periodSeconds": 60}]}
    });
    let rules: forebay_config::Behavior = serde_json::from_value(rules).expect("a behavior");
    narrow.behavior = Some(Rules::of(&rules));
    let woken = step(&mut State::default(), inputs(400, 0, 0), &narrow, 1_000);
    assert_eq!((woken.desired, woken.why.rule()), (2, "maximum"), "{}", woken.sentence());
}

#[test]
fn the_figures_have_the_count_by_concurrency_and_the_arrivals_of_a_pool_with_triggers() {
    let policy = policy();
    let held = step(&mut State::default(), inputs(25, 0, 0), &policy, 1_000);
    assert_eq!(held.figures.concurrency, Some(3), "{}", held.sentence());
    let own =
        Policy { concurrency: ConcurrencyRules { given: false, ..policy.concurrency }, ..policy };
    let without = step(&mut State::default(), inputs(25, 0, 0), &own, 1_000);
    assert_eq!(without.figures.concurrency, None);

    let trigger = Proposal { name: "queue".to_owned(), needed: Some(1.0), ..Proposal::default() };
    let mut state = State::default();
    let mut by_trigger = |count, now| {
        let load = accepted(count);
        let proposals = std::slice::from_ref(&trigger);
        let operator_override = Override::None;
        let inputs = Inputs { load: &load, replicas: &[], proposals, operator_override };
        decide(&mut state, &inputs, &own, Millis::new(now)).figures.rate
    };
    assert_eq!(by_trigger(0, 1_000), 0.0);
    let rate = by_trigger(60, 2_000);
    assert!(rate > 0.0, "60 requests came within a second");
}

#[test]
fn a_count_that_stays_names_its_reason() {
    let mut policy = policy();
    policy.cooldown.after = Millis::from_secs(200);
    let mut state = State::default();
    step(&mut state, inputs(25, 0, 0), &policy, 1_000);
    for (case, at, held, in_flight, want) in [
        ("all of it is needed", 2_000, 0, 25, "staying at 3: 25.0 requests are in the system"),
        ("less is needed, for a moment", 9_000, 0, 4, "staying at 3: "),
        (
            "the window is not over",
            40_000,
            0,
            4,
            "staying at 3: this many were needed within the last",
        ),
        ("one is left", 200_000, 0, 1, "scaling 3 → 1 because"),
        ("and stays", 201_000, 0, 0, "staying at 1: "),
        ("after its window as well", 290_000, 0, 0, "staying at 1: the last replica stays until"),
        ("no request", 402_000, 0, 0, "idle for"),
        ("still no request", 403_000, 0, 0, "staying at 0: the load asks for no other count"),
    ] {
        let ready = state.desired();
        let sentence = step(&mut state, inputs(held, in_flight, ready), &policy, at).sentence();
        assert!(sentence.starts_with(want), "{case}: {sentence}");
    }
    policy.counts.min = 2;
    let least = step(&mut State::default(), inputs(0, 1, 0), &policy, 1_000);
    assert_eq!(least.why.rule(), "minimum");
}

#[test]
fn missing_data_forbids_scaling_down_and_allows_scaling_up() {
    let (mut state, policy) = (State::default(), policy());
    step(&mut state, inputs(30, 0, 0), &policy, 1_000);
    step(&mut state, inputs(0, 0, 3), &policy, 2_000);
    let unheard =
        |held| Given { load: Load { held, missing: true, ..Load::default() }, ..inputs(0, 0, 3) };
    let kept = step(&mut state, unheard(0), &policy, 900_000);
    assert_eq!((kept.desired, kept.why), (3, Why::Unheard));
    assert_eq!(step(&mut state, unheard(60), &policy, 900_100).desired, 6);
}

#[test]
fn a_start_that_only_fails_is_given_up_when_idle() {
    let (mut state, policy) = (State::default(), policy());
    step(&mut state, inputs(1, 0, 0), &policy, 1_000);
    let failing = Given { failed: 1, ..inputs(0, 0, 0) };
    assert_eq!(step(&mut state, &failing, &policy, 20_000).desired, 1);
    assert_eq!(step(&mut state, &failing, &policy, 31_000).desired, 0);
}

#[test]
fn an_activation_threshold_does_not_leave_a_held_request_waiting() {
    let mut policy = policy();
    policy.concurrency.activation_threshold = 5;
    assert_eq!(step(&mut State::default(), inputs(0, 3, 0), &policy, 1000).desired, 0);
    assert_eq!(step(&mut State::default(), inputs(1, 0, 0), &policy, 1000).desired, 1);
}

/// A load over time: milliseconds since the last step, held, in flight, ready, missing.
fn loads() -> impl Strategy<Value = Vec<(u64, u32, u32, u32, bool)>> {
    prop::collection::vec((1..20_000u64, 0..200u32, 0..200u32, 0..12u32, any::<bool>()), 1..60)
}

proptest! {
    #[test]
    fn is_never_outside_its_bounds_and_never_leaves_a_held_request_alone(
        loads in loads(), min in 0..3u32,
    ) {
        let policy = at_least(min);
        let (mut state, mut now) = (State::default(), 1_000_000);
        for (pause, held, in_flight, ready, missing) in loads {
            now += pause;
            let load = Load { held, in_flight, missing, ..Load::default() };
            let inputs = Given { load, ready, failed: 0, ejected: 0 };
            let decision = step(&mut state, inputs, &policy, now);
            prop_assert!((min..=policy.counts.max).contains(&decision.desired));
            prop_assert!(held == 0 || decision.desired >= 1);
        }
    }

    #[test]
    fn never_goes_down_on_missing_data_nor_in_panic(loads in loads()) {
        let policy = policy();
        let (mut state, mut now, mut arrived) = (State::default(), 1_000_000, 0);
        for (pause, held, in_flight, ready, missing) in loads {
            now += pause;
            // Panic is a matter of arrivals, which come in bursts here.
            arrived += u64::from(held / 100 * held);
            let load = Load { held: held % 100, in_flight, missing, ..accepted(arrived) };
            let inputs = Given { load, ready, failed: 0, ejected: 0 };
            let decision = step(&mut state, inputs, &policy, now);
            let down = decision.desired < decision.from;
            prop_assert!(!(down && missing), "{decision:?}");
            let in_panic = state.times.panics(Millis::new(now));
            // After the whole cooldown without work the panic is over.
            prop_assert!(!(down && in_panic) || matches!(decision.why, Why::Idle { .. }), "{decision:?}");
        }
    }

    #[test]
    fn never_goes_to_zero_while_a_listed_gateway_is_silent(loads in loads()) {
        let policy = policy();
        let (mut state, mut now) = (State::default(), 1_000_000);
        for (pause, held, in_flight, ready, stale) in loads {
            now += pause;
            // Every third step has no load, for longer than the cooldown.
            let (held, in_flight, pause) =
                if held % 3 == 0 { (0, 0, 400_000) } else { (held, in_flight, 0) };
            now += pause;
            let load = Load { held, in_flight, stale, ..Load::default() };
            let inputs = Given { load, ready, failed: 0, ejected: 0 };
            let decision = step(&mut state, inputs, &policy, now);
            prop_assert!(!(stale && decision.from > 0 && decision.desired == 0), "{decision:?}");
        }
    }

    #[test]
    fn more_held_never_asks_for_fewer(held in 0..500u32, more in 0..100u32, in_flight in 0..100u32) {
        let fresh = |held| {
            step(&mut State::default(), inputs(held, in_flight, 0), &policy(), 1000).desired
        };
        prop_assert!(fresh(held) <= fresh(held + more));
    }
}

#[test]
fn requests_too_short_to_be_seen_in_flight_keep_a_pool_awake() {
    let (mut state, policy) = (State::default(), policy());
    step(&mut state, inputs(1, 0, 0), &policy, 1_000);
    for second in 2..120u64 {
        let seen = accepted(second);
        let inputs = Given { load: seen, ..inputs(0, 0, 1) };
        let decision = step(&mut state, inputs, &policy, second * 1000);
        assert_eq!(decision.desired, 1, "one came in the last second: {decision:?}");
    }
    let last = Given { load: accepted(119), ..inputs(0, 0, 1) };
    assert_eq!(step(&mut state, &last, &policy, 148_999).desired, 1);
    assert_eq!(step(&mut state, &last, &policy, 149_000).desired, 0, "30 s after the last");
}

#[test]
fn a_replica_that_was_ejected_does_not_keep_an_idle_pool_up() {
    let (mut state, policy) = (State::default(), policy());
    step(&mut state, inputs(1, 0, 0), &policy, 1_000);
    step(&mut state, inputs(0, 1, 1), &policy, 2_000);
    let ejected = Given { ejected: 1, ..inputs(0, 0, 0) };
    assert_eq!(step(&mut state, &ejected, &policy, 31_999).desired, 1);
    assert_eq!(step(&mut state, &ejected, &policy, 60_000).desired, 0);
}

#[test]
fn a_replica_more_stays_for_a_stable_window_after_it_was_last_needed() {
    let (mut state, policy) = (State::default(), policy());
    step(&mut state, inputs(15, 0, 0), &policy, 1_000);
    for second in 2..120u64 {
        step(&mut state, inputs(0, 15, 2), &policy, second * 1000);
    }
    let raised = step(&mut state, inputs(10, 15, 2), &policy, 120_000);
    assert_eq!(raised.desired, 3);
    for (case, at, ready, want) in [
        ("the new replica starts", 120_020, 2, 3),
        ("it is ready, and the mean of the window is still low", 123_000, 3, 3),
        ("its load has gone, within the window", 179_000, 3, 3),
        ("a window later", 184_000, 3, 2),
    ] {
        assert_eq!(step(&mut state, inputs(0, 15, ready), &policy, at).desired, want, "{case}");
    }
}

#[test]
fn a_gateway_that_stays_silent_stops_forbidding_but_never_lets_the_last_one_go() {
    let (mut state, policy) = (State::default(), policy());
    step(&mut state, inputs(30, 0, 0), &policy, 1_000);
    step(&mut state, inputs(0, 0, 3), &policy, 2_000);
    let stale = Load { stale: true, ..Load::default() };
    let fewer =
        step(&mut state, Given { load: stale.clone(), ..inputs(0, 0, 3) }, &policy, 200_000);
    assert_eq!(fewer.desired, 1, "{fewer:?}");
    let last = step(&mut state, Given { load: stale, ..inputs(0, 0, 1) }, &policy, 900_000);
    assert_eq!((last.desired, last.why), (1, Why::Unheard));
}

#[test]
fn a_lower_count_names_the_demand_that_set_it() {
    let steady: fn(u64) -> (u32, u32) = |_| (0, 25);
    let burst: fn(u64) -> (u32, u32) = |second| if second == 30 { (20, 5) } else { (0, 5) };
    for (case, load, want) in [
        ("the present one", steady, "because 25.0 requests are in the system, 10 per replica"),
        (
            "an earlier one",
            burst,
            "because this many were needed within the last 60 s (at that time: 20 requests are \
             held and 5 in flight, 10 per replica)",
        ),
    ] {
        let (mut state, policy) = (State::default(), policy());
        step(&mut state, inputs(50, 0, 0), &policy, 1_000);
        let mut decisions = (2..200).map(|second| {
            let ((held, in_flight), ready) = (load(second), state.desired());
            step(&mut state, inputs(held, in_flight, ready), &policy, second * 1_000)
        });
        let lower = decisions.find(|decision| decision.desired == 3).expect("it falls to 3");
        let sentence = lower.sentence();
        assert!(sentence.contains(want), "{case}: {sentence}");
    }
}

#[test]
fn an_operators_count_is_bounded_by_the_maximum() {
    let inputs = Inputs {
        load: &Load::default(),
        replicas: &[],
        proposals: &[],
        operator_override: Override::Fixed(50),
    };
    let decision = decide(&mut State::default(), &inputs, &policy(), Millis::new(1_000));
    assert_eq!((decision.desired, decision.why), (10, Why::Fixed));
}

#[test]
fn in_panic_a_count_that_an_earlier_load_set_is_kept() {
    let policy = policy();
    let given = |load, ready, ejected| Given { load, ready, failed: 0, ejected };
    let mut state = State::default();
    step(&mut state, inputs(100, 0, 0), &policy, 1_000_000);
    step(&mut state, inputs(0, 20, 10), &policy, 1_001_000);
    // Nine of ten are ejected. A burst that the last one can't serve begins a panic.
    let burst = |arrived| {
        let mut state = state.clone();
        step(&mut state, given(accepted(arrived), 1, 9), &policy, 1_050_000);
        state
    };
    let mut panicking =
        (1..10_000).map(burst).find(|state| state.times.panics(Millis::new(1_109_999)));
    let state = panicking.as_mut().expect("some burst is one too many");
    assert_eq!(state.desired, 10);
    let later = step(state, given(Load { in_flight: 1, ..accepted(1) }, 10, 0), &policy, 1_100_000);
    assert_eq!((later.desired, &later.why), (10, &Why::Panic), "{later:?}");
    let over = step(state, given(Load { in_flight: 1, ..accepted(1) }, 10, 0), &policy, 1_111_000);
    assert!(over.desired < 10, "{over:?}");
}

//! Replicas that hang, and replicas that seem to.

use super::*;

/// Replaces after 60 s, or the time that a start takes.
fn pool() -> PoolScaler {
    with(&serde_json::json!({"processes": {"command": ["v"], "hungAfter": "60s"}}), 1)
}

fn with(target: &serde_json::Value, most: u32) -> PoolScaler {
    let pool = serde_json::json!({"name": "p", "target": target, "scaling": {
        "maxReplicaCount": most, "minReplicaCount": most, "targetConcurrency": 10,
    }});
    let pool = serde_json::from_value(pool).expect("a pool");
    PoolScaler::new(&pool, &forebay_config::Prometheus::default(), STALE)
}

/// Starts with all replicas, which a gateway finds ready `start_ms` after their request.
fn ready(pool: &mut PoolScaler, replicas: &[(&str, Health, u32)], start_ms: u64) -> FakeTarget {
    let target = FakeTarget::default();
    step(pool, &target, &[signals(0, &[])], 1_000);
    step(pool, &target, &[signals(0, &[])], 1_001);
    step(pool, &target, &[signals(0, replicas)], 1_001 + start_ms);
    target
}

fn out(address: &str) -> PoolSignals {
    let mut out = signals(1, &[(address, Health::Ejected, 0)]);
    let endpoint = out.endpoints.get_mut(address).and_then(Option::as_mut).expect("there");
    endpoint.reason = "no token within 5s".to_owned();
    out
}

/// Steps once a second from `from` to `to`, both in seconds; returns when the first was replaced.
fn until_replaced(
    pool: &mut PoolScaler,
    target: &FakeTarget,
    gateways: &[PoolSignals],
    (from, to): (u64, u64),
) -> Option<u64> {
    (from..=to).find(|second| step(pool, target, gateways, second * 1_000).replaced.is_some())
}

#[test]
fn a_silent_replica_is_published_as_failed_and_replaced_after_its_time() {
    let mut pool = pool();
    let target = ready(&mut pool, &[(ONE, Health::Ready, 1)], 2_000);
    let soon = step(&mut pool, &target, &[out(ONE)], 10_000);
    let replica = soon.replicas.replicas["p-1"].as_ref().expect("there");
    assert_eq!((replica.state, &*replica.reason), (ReplicaState::Failed, "no token within 5s"));
    assert_eq!(until_replaced(&mut pool, &target, &[out(ONE)], (11, 100)), Some(70));
    let hung = target.hung.borrow()["p-1"].clone();
    assert_eq!(
        hung,
        Hung { started_at: Some(Millis::new(1_000)), why: "answered nothing for 60 s".to_owned() }
    );
    let then = step(&mut pool, &target, &[out(ONE)], 101_000);
    let replica = then.replicas.replicas["p-1"].as_ref().expect("there");
    assert_eq!(replica.reason, "answered nothing for 60 s, and is ended and started anew");
    assert_eq!((then.replaced, target.hung.borrow().len()), (None, 1), "ordered once");

    // It is started anew, and is like any other replica.
    target.statuses.borrow_mut().get_mut("p-1").expect("there").started_at =
        Some(Millis::new(102_000));
    step(&mut pool, &target, &[signals(0, &[(ONE, Health::Starting, 0)])], 103_000);
    assert!(target.hung.borrow().is_empty());
}

#[test]
fn a_dead_replica_is_published_with_its_own_reason() {
    let mut pool = pool();
    let target = ready(&mut pool, &[(ONE, Health::Ready, 1)], 2_000);
    step(&mut pool, &target, &[out(ONE)], 10_000);
    {
        let mut statuses = target.statuses.borrow_mut();
        let status = statuses.get_mut("p-1").expect("there");
        (status.condition, status.address) = (Condition::Failed, None);
        status.reason = "exited with status 3, again in 4 s".to_owned();
    }
    let died = step(&mut pool, &target, &[signals(1, &[])], 11_000);
    let replica = died.replicas.replicas["p-1"].as_ref().expect("there");
    assert_eq!(replica.reason, "exited with status 3, again in 4 s");
    assert_eq!(until_replaced(&mut pool, &target, &[signals(1, &[])], (12, 600)), None);
}

#[test]
fn a_replica_that_comes_back_before_it_is_ended_is_left_alone() {
    let mut pool = pool();
    let target = ready(&mut pool, &[(ONE, Health::Ready, 1)], 2_000);
    assert_eq!(until_replaced(&mut pool, &target, &[out(ONE)], (10, 100)), Some(70));
    step(&mut pool, &target, &[signals(0, &[(ONE, Health::Ready, 1)])], 71_000);
    assert!(target.hung.borrow().is_empty());
}

#[test]
fn a_replica_that_answers_any_gateway_is_not_replaced() {
    let answers = |completed| {
        let mut gateway = out(ONE);
        let endpoint = gateway.endpoints.get_mut(ONE).and_then(Option::as_mut).expect("there");
        endpoint.completed = completed;
        gateway
    };
    for (case, other) in [
        ("another gateway finds it ready", signals(0, &[(ONE, Health::Ready, 1)])),
        ("another gateway drains it", signals(0, &[(ONE, Health::Draining, 1)])),
    ] {
        let mut pool = pool();
        let target = ready(&mut pool, &[(ONE, Health::Ready, 1)], 2_000);
        let gateways = [out(ONE), other];
        assert_eq!(until_replaced(&mut pool, &target, &gateways, (10, 300)), None, "{case}");
    }
    let mut pool = pool();
    let target = ready(&mut pool, &[(ONE, Health::Ready, 1)], 2_000);
    for second in 10..300 {
        let step = step(&mut pool, &target, &[answers(second / 50)], second * 1_000);
        assert_eq!(step.replaced, None, "its requests make progress");
    }
    let stalled = until_replaced(&mut pool, &target, &[answers(5)], (300, 400));
    assert_eq!(stalled, Some(310), "60 s after its last answer");
    // A gateway that started after the replica hung has never seen it ready.
    let mut pool = self::pool();
    let target = ready(&mut pool, &[(ONE, Health::Ready, 1)], 2_000);
    let gateways = [out(ONE), signals(0, &[(ONE, Health::Starting, 0)])];
    assert_eq!(until_replaced(&mut pool, &target, &gateways, (10, 100)), Some(70));
}

#[test]
fn nothing_is_replaced_while_a_gateway_is_silent_or_the_pool_is_paused() {
    let mut pool = pool();
    let target = ready(&mut pool, &[(ONE, Health::Ready, 1)], 2_000);
    let (here, lost) = (out(ONE), signals(0, &[(ONE, Health::Ready, 1)]));
    let mut with_lost = |second: u64, silent_for| {
        let reports = [report(0, Some(&here), None), report(1, Some(&lost), Some(silent_for))];
        let statuses = target.statuses.borrow().clone();
        pool.step(&reports, &statuses, &[], &target, Millis::new(second * 1_000)).replaced
    };
    for second in 10..200 {
        assert_eq!(with_lost(second, 9_000), None, "that gateway may get answers");
    }
    assert_eq!(with_lost(200, 10_000), Some(Cause::Hung), "it has been silent for long");

    let mut paused = self::pool();
    let target = ready(&mut paused, &[(ONE, Health::Ready, 1)], 2_000);
    paused.set_override(Override::Paused);
    assert_eq!(until_replaced(&mut paused, &target, &[out(ONE)], (10, 300)), None);
    paused.set_override(Override::None);
    assert_eq!(until_replaced(&mut paused, &target, &[out(ONE)], (301, 310)), Some(301));
}

#[test]
fn a_silent_replica_gets_as_much_time_as_a_start_takes() {
    let mut pool = pool();
    let target = ready(&mut pool, &[(ONE, Health::Ready, 1)], 240_000);
    assert_eq!(until_replaced(&mut pool, &target, &[out(ONE)], (250, 600)), Some(490));
}

#[test]
fn a_replica_that_hangs_repeatedly_gets_more_time_after_each_replacement() {
    let mut pool = pool();
    let target = ready(&mut pool, &[(ONE, Health::Ready, 1)], 2_000);
    let mut second = 10;
    for bound in [60, 120, 240, 480] {
        let replaced = until_replaced(&mut pool, &target, &[out(ONE)], (second, second + 1_000));
        assert_eq!(replaced, Some(second + bound));
        second += bound + 1;
        target.statuses.borrow_mut().get_mut("p-1").expect("there").started_at =
            Some(Millis::new(second * 1_000));
        step(&mut pool, &target, &[signals(0, &[(ONE, Health::Starting, 0)])], second * 1_000);
        step(&mut pool, &target, &[signals(0, &[(ONE, Health::Ready, 0)])], second * 1_000 + 1);
        second += 1;
    }
    // An hour later the replacements are forgotten.
    second += 4_000;
    step(&mut pool, &target, &[signals(0, &[(ONE, Health::Ready, 0)])], second * 1_000);
    let replaced = until_replaced(&mut pool, &target, &[out(ONE)], (second + 1, second + 1_000));
    assert_eq!(replaced, Some(second + 61));
}

#[test]
fn of_several_that_hang_one_is_replaced_and_the_next_when_it_is_back() {
    const TWO: &str = "127.0.0.1:2";
    let mut pool =
        with(&serde_json::json!({"processes": {"command": ["v"], "hungAfter": "60s"}}), 2);
    let both = |one, two| signals(1, &[(ONE, one, 0), (TWO, two, 0)]);
    let (ready, out) = (Health::Ready, Health::Ejected);
    let target = self::ready(&mut pool, &[(ONE, ready, 1), (TWO, ready, 1)], 2_000);
    assert_eq!(until_replaced(&mut pool, &target, &[both(out, out)], (10, 100)), Some(70));
    for second in 71..80 {
        assert_eq!(step(&mut pool, &target, &[both(out, out)], second * 1_000).replaced, None);
    }
    let first = target.hung.borrow().keys().next().cloned().expect("one");
    target.statuses.borrow_mut().get_mut(&first).expect("there").started_at =
        Some(Millis::new(80_000));
    let back = if first == "p-1" { both(ready, out) } else { both(out, ready) };
    assert_eq!(step(&mut pool, &target, &[back], 80_000).replaced, Some(Cause::Hung));
}

#[test]
fn a_start_is_bounded_by_the_configuration_and_later_by_what_was_learned() {
    let starting = || signals(1, &[(ONE, Health::Starting, 0)]);
    let mut pool = pool();
    let target = FakeTarget::default();
    step(&mut pool, &target, &[starting()], 1_000);
    // The first start may download the model.
    let replaced = until_replaced(&mut pool, &target, &[starting()], (2, 2_000));
    assert_eq!(replaced, Some(1_802), "30 minutes after it was first seen");
    assert_eq!(target.hung.borrow()["p-1"].why, "was not healthy within 1800 s");

    let mut pool = self::pool();
    let target = FakeTarget::default();
    step(&mut pool, &target, &[starting()], 1_000);
    let unseen = until_replaced(&mut pool, &target, &[signals(1, &[])], (2, 5_000));
    assert_eq!(unseen, None, "no gateway knows of it");

    let mut pool = self::pool();
    let target = ready(&mut pool, &[(ONE, Health::Ready, 1)], 90_000);
    target.statuses.borrow_mut().get_mut("p-1").expect("there").started_at =
        Some(Millis::new(100_000));
    let replaced = until_replaced(&mut pool, &target, &[starting()], (100, 2_000));
    assert_eq!(replaced, Some(1_000), "ten times 90 s");
}

#[test]
fn the_start_of_an_adopted_replica_is_timed_from_its_first_report() {
    let target = serde_json::json!({"processes": {"command": ["v"], "startTimeout": "100s"}});
    let (mut pool, target) = (with(&target, 1), FakeTarget::default());
    step(&mut pool, &target, &[signals(0, &[])], 1_000);
    target.statuses.borrow_mut().get_mut("p-1").expect("there").inherited = true;
    let starting = [signals(0, &[(ONE, Health::Starting, 0)])];
    assert_eq!(until_replaced(&mut pool, &target, &starting, (5_000, 5_200)), Some(5_100));
}

#[test]
fn nothing_is_replaced_unless_configured() {
    for (case, target, want) in [
        ("Kubernetes", serde_json::json!({"kubernetes": {"name": "v"}}), None),
        (
            "Kubernetes, if allowed",
            serde_json::json!({"kubernetes": {"name": "v", "replaceHung": true, "hungAfter": "60s"}}),
            Some(70),
        ),
        ("KEDA", serde_json::json!({"keda": {"scaledObject": "v"}}), None),
    ] {
        let mut pool = with(&target, 1);
        let target = ready(&mut pool, &[(ONE, Health::Ready, 1)], 2_000);
        assert_eq!(until_replaced(&mut pool, &target, &[out(ONE)], (10, 5_000)), want, "{case}");
    }
}

#[test]
fn a_pool_without_a_target_keeps_the_replicas_it_finds_whatever_its_load() {
    const TWO: &str = "127.0.0.1:2";
    let pool = serde_json::json!({"name": "p"});
    let pool = serde_json::from_value(pool).expect("a pool");
    let mut pool = PoolScaler::new(&pool, &forebay_config::Prometheus::default(), STALE);
    let target =
        FakeTarget { unscaled: true, drains: Some(Drains::Never), ..FakeTarget::default() };
    target.ensure(2);
    for (second, held) in [(1, 0), (2, 50), (3, 0), (400, 0), (800, 0)] {
        let ready = signals(held, &[(ONE, Health::Ready, 0), (TWO, Health::Ready, 0)]);
        let step = step(&mut pool, &target, &[ready], second * 1_000);
        let Decision { from, desired, .. } = step.decision;
        assert_eq!((from, desired, step.replicas.desired), (2, 2, 2), "{second} s");
        let why = "staying at 2: the pool has no scale target, so the count does not change";
        assert_eq!(step.replicas.why, why);
    }
}

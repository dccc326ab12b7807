//! The first decisions of a process: replicas, gateways and orders from before it.

use super::*;

#[test]
fn a_replica_of_an_earlier_process_teaches_nothing_about_starts() {
    let (mut pool, target) = (pool(), FakeTarget::default());
    target.ensure(1);
    target.statuses.borrow_mut().values_mut().for_each(|status| status.inherited = true);
    step(&mut pool, &target, &[signals(0, &[(ONE, Health::Starting, 0)])], 1_000);
    let ready = step(&mut pool, &target, &[signals(0, &[(ONE, Health::Ready, 1)])], 1_100);
    assert!(ready.cold_starts.is_empty() && ready.replicas.cold_start.is_none());
    let state = ready.replicas.replicas["p-1"].as_ref().expect("there").state;
    assert_eq!(state, ReplicaState::Ready);
}

#[test]
fn replicas_of_an_earlier_process_are_adopted() {
    let (mut pool, target) = (pool(), FakeTarget::default());
    target.ensure(3);
    let (a, b, c) = ("127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3");
    let idle = signals(0, &[(a, Health::Ready, 0), (b, Health::Ready, 0), (c, Health::Ready, 0)]);
    let first = step(&mut pool, &target, &[idle], 1_000);
    assert_eq!(first.decision.desired, 3, "their idle time begins now");
    assert!(target.stops.borrow().is_empty());
}

#[test]
fn before_a_gateway_reports_nothing_stops_and_too_few_are_raised() {
    for (min, found, want) in [(0, 4, 4), (0, 0, 0), (1, 4, 4), (1, 6, 6), (3, 1, 3)] {
        for listed in [false, true] {
            let case = format!("min {min}, {found} found, gateways listed: {listed}");
            let settings = serde_json::json!({"name": "p", "scaling": {
                "minReplicaCount": min, "maxReplicaCount": 4, "cooldownPeriod": "30s"
            }});
            let settings = serde_json::from_value(settings).expect("a pool");
            let prometheus = forebay_config::Prometheus::default();
            let mut pool = PoolScaler::new(&settings, &prometheus, STALE);
            let target = FakeTarget::default();
            target.ensure(found);
            // These replicas may end with the earlier process, or be reported late.
            for now in [0, 100, 15_000, 400_000, 401_000] {
                let silent = listed.then(|| report(0, None, Some(now)));
                let statuses = target.statuses.borrow().clone();
                let silent: Vec<_> = silent.into_iter().collect();
                let step = pool.step(&silent, &statuses, &[], &target, Millis::new(1_000 + now));
                let state = &step.replicas;
                let got = (state.desired, state.barrier, state.active);
                assert_eq!(got, (want, None, true), "{case}");
                let leaves = |replica: &Replica| replica.state == ReplicaState::Draining;
                assert!(!state.replicas.values().flatten().any(leaves), "{case}");
            }
            assert!(target.stops.borrow().is_empty(), "{case}");
            assert_eq!(target.statuses.borrow().len() as u32, want.max(found), "{case}");
            assert_eq!(target.ensured.get(), want, "{case}");
        }
    }
}

#[test]
fn adopted_replicas_stay_for_a_whole_window_after_the_first_report() {
    let (mut pool, target) = (pool(), FakeTarget::default());
    target.ensure(3);
    for now in [1_000, 400_000] {
        step(&mut pool, &target, &[], now);
    }
    let (a, b, c) = ("127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3");
    let idle = signals(0, &[(a, Health::Ready, 0), (b, Health::Ready, 0), (c, Health::Ready, 0)]);
    for now in [401_000, 402_000, 425_000] {
        let kept = step(&mut pool, &target, std::slice::from_ref(&idle), now);
        assert_eq!(kept.decision.desired, 3, "at {now}: {}", kept.decision.sentence());
    }
    let over = step(&mut pool, &target, &[idle], 900_000);
    assert_eq!(over.decision.desired, 0, "{}", over.decision.sentence());
}

#[test]
fn until_the_snapshot_is_read_the_count_is_held_and_an_override_in_it_is_not_lost() {
    let mut before = pool();
    before.set_override(Override::Paused);
    let saved = before.snapshot();
    let (mut pool, target) = (pool(), FakeTarget::default());
    pool.await_restore();
    step(&mut pool, &target, &[signals(25, &[])], 1_000);
    let held = step(&mut pool, &target, &[signals(25, &[])], 20_000);
    assert_eq!(held.decision.desired, 0, "the snapshot may contain an override");
    pool.restore(Some(&saved));
    let paused = step(&mut pool, &target, &[signals(25, &[])], 21_000);
    assert_eq!(paused.decision.desired, 0, "{}", paused.decision.sentence());
}

#[test]
fn if_the_snapshot_can_not_be_read_requests_are_served_and_nothing_scales_down() {
    let (mut pool, target) = (pool(), FakeTarget::default());
    pool.await_restore();
    step(&mut pool, &target, &[signals(1, &[])], 1_000);
    let up = step(&mut pool, &target, &[signals(1, &[])], 31_000);
    assert_eq!(up.decision.desired, 1);
    for now in [32_000, 33_000, 900_000] {
        let kept = step(&mut pool, &target, &[signals(0, &[(ONE, Health::Ready, 0)])], now);
        assert_eq!(kept.decision.desired, 1, "at {now}");
    }
    pool.restore(None);
    let idle = step(&mut pool, &target, &[signals(0, &[(ONE, Health::Ready, 0)])], 901_000);
    assert_eq!(idle.decision.desired, 0, "there was no snapshot");
}

#[test]
fn a_new_override_replaces_one_in_a_snapshot_that_is_read_later() {
    let mut before = pool();
    before.set_override(Override::Paused);
    let (mut pool, target) = (pool(), FakeTarget::default());
    pool.await_restore();
    pool.set_override(Override::None);
    pool.restore(Some(&before.snapshot()));
    let step = step(&mut pool, &target, &[signals(1, &[])], 1_000);
    assert_eq!(step.decision.desired, 1);
}

#[test]
fn a_rollouts_extra_replica_is_not_adopted() {
    let (mut pool, target) = (pool(), FakeTarget::default());
    target.ensure(3);
    target.surplus.set(1);
    let (a, b, c) = ("127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3");
    let all = signals(0, &[(a, Health::Ready, 1), (b, Health::Ready, 1), (c, Health::Ready, 1)]);
    for now in [1_000, 2_000] {
        let first = step(&mut pool, &target, std::slice::from_ref(&all), now);
        assert_eq!((first.decision.desired, target.ensured.get()), (2, 2));
    }
}

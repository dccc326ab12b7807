//! The way to zero, under the barrier.

use super::*;

#[test]
fn the_last_replica_is_stopped_when_every_gateway_holds_and_reports_it_empty() {
    let (mut pool, target, zero) = going_to_zero();
    let barrier = zero.replicas.barrier.expect("raised");
    assert_eq!(zero.decision.desired, 0);
    assert_eq!(
        zero.replicas.replicas["p-1"].as_ref().expect("there").state,
        ReplicaState::Draining
    );
    assert!(target.stops.borrow().is_empty(), "not before the gateways report it empty");

    let closed = |in_flight| {
        let zero_epoch = Some(barrier.epoch);
        PoolSignals { zero_epoch, ..signals(0, &[(ONE, Health::Draining, in_flight)]) }
    };
    step(&mut pool, &target, &[closed(0), signals(0, &[(ONE, Health::Draining, 0)])], 40_500);
    assert!(target.stops.borrow().is_empty(), "one of two does not hold yet");
    step(&mut pool, &target, &[closed(0), closed(1)], 41_000);
    assert!(target.stops.borrow().is_empty(), "one of two has a stream there");
    step(&mut pool, &target, &[closed(0), signals(0, &[(ONE, Health::Ready, 0)])], 41_500);
    assert!(target.stops.borrow().is_empty(), "one of two does not know yet");
    // The stream above kept the pool awake; its idle time begins anew.
    for now in [42_000, 80_000, 81_000] {
        let step = step(&mut pool, &target, &[closed(0), closed(0)], now);
        if let Some(again) = step.replicas.barrier {
            let held = PoolSignals { zero_epoch: Some(again.epoch), ..closed(0) };
            self::step(&mut pool, &target, &[held.clone(), held], now + 10);
        }
    }
    assert_eq!(*target.stops.borrow(), ["p-1"]);
}

#[test]
fn a_request_that_comes_while_going_to_zero_keeps_the_replica() {
    let (mut pool, target, zero) = going_to_zero();
    assert!(zero.replicas.barrier.is_some());
    let held = step(&mut pool, &target, &[signals(1, &[(ONE, Health::Draining, 0)])], 40_020);
    assert_eq!(held.decision.desired, 1);
    assert_eq!(held.replicas.barrier, None);
    assert_eq!(held.replicas.replicas["p-1"].as_ref().expect("there").state, ReplicaState::Ready);
    assert!(target.stops.borrow().is_empty());
    assert_eq!(target.statuses.borrow().len(), 1, "no second one is started");
}

#[test]
fn nothing_is_stopped_while_a_gateway_is_lost() {
    let (mut pool, target, zero) = going_to_zero();
    let epoch = zero.replicas.barrier.expect("raised").epoch;
    let closed =
        PoolSignals { zero_epoch: Some(epoch), ..signals(0, &[(ONE, Health::Draining, 0)]) };
    let reports = [report(0, Some(&closed), None), report(1, Some(&closed), Some(100))];
    let statuses = target.statuses.borrow().clone();
    pool.step(&reports, &statuses, &[], &target, Millis::new(41_000));
    assert!(target.stops.borrow().is_empty());
}

#[test]
fn replicas_that_another_party_stops_stay_under_the_barrier_once_each_gateway_holds() {
    let (mut pool, target, zero) = going_to_zero();
    let target = FakeTarget { drains: Some(Drains::All), ..target };
    let barrier = zero.replicas.barrier.expect("raised");
    assert!(zero.replicas.active, "not before every gateway holds");
    let closed = PoolSignals {
        zero_epoch: Some(barrier.epoch),
        ..signals(0, &[(ONE, Health::Draining, 0)])
    };
    let other = signals(0, &[(ONE, Health::Ready, 0)]);
    let one_of_two = step(&mut pool, &target, &[closed.clone(), other], 40_100);
    assert!(one_of_two.replicas.active);
    let state = step(&mut pool, &target, &[closed.clone(), closed.clone()], 40_200).replicas;
    assert!(!state.active, "now KEDA may take the replica away");
    // KEDA waits for its own cooldown; no request is released meanwhile.
    let later = step(&mut pool, &target, &[closed.clone(), closed], 70_000).replicas;
    assert_eq!(later.barrier, Some(barrier));
    assert!(target.stops.borrow().is_empty(), "the loop does not stop it");

    let woken = step(&mut pool, &target, &[signals(1, &[(ONE, Health::Draining, 0)])], 70_100);
    assert!(woken.replicas.active, "at once");
    assert_eq!(woken.replicas.barrier, None);
    let replica = woken.replicas.replicas["p-1"].as_ref().expect("there");
    assert_eq!(replica.state, ReplicaState::Ready, "the replica that is still there serves");
}

#[test]
fn the_barrier_stands_until_the_last_replica_that_was_stopped_is_gone() {
    let (mut pool, target, zero) = going_to_zero();
    let barrier = zero.replicas.barrier.expect("raised");
    let zero_epoch = Some(barrier.epoch);
    let closed = PoolSignals { zero_epoch, ..signals(0, &[(ONE, Health::Draining, 0)]) };
    for now in [40_100, 41_100] {
        let held = step(&mut pool, &target, std::slice::from_ref(&closed), now);
        assert_eq!(*target.stops.borrow(), ["p-1"]);
        assert_eq!(held.replicas.barrier, Some(barrier), "the replica is still stopping");
    }
    target.statuses.borrow_mut().clear();
    let gone = step(&mut pool, &target, &[PoolSignals { zero_epoch, ..signals(0, &[]) }], 42_000);
    assert_eq!(gone.replicas.barrier, None);
}

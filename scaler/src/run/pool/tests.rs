use super::*;
use std::cell::RefCell;
use std::net::SocketAddr;

use forebay_signals::{PoolSignals, Replica, ReplicaState};

use crate::act::targets::Hung;

mod hung;

/// What the target was told, and the replicas it has.
#[derive(Default)]
struct Fake {
    statuses: RefCell<BTreeMap<String, ReplicaStatus>>,
    stops: RefCell<Vec<String>>,
    drains: Option<Drains>,
    surplus: std::cell::Cell<u32>,
    recalls: RefCell<Vec<String>>,
    ensured: std::cell::Cell<u32>,
    hung: RefCell<BTreeMap<String, Hung>>,
    unscaled: bool,
}

impl Target for Fake {
    fn ensure(&self, count: u32) {
        self.ensured.set(count);
        let mut statuses = self.statuses.borrow_mut();
        while (statuses.len() as u32) < count {
            let n = statuses.len() as u16 + 1;
            let status = ReplicaStatus {
                address: Some(SocketAddr::from(([127, 0, 0, 1], n))),
                phase: Phase::Running,
                started_ms: 1_000,
                ..ReplicaStatus::asked_for(format!("p-{n}"))
            };
            statuses.insert(status.id.clone(), status);
        }
    }
    fn ready(&self, _: &str) {}
    fn stop(&self, id: &str) {
        self.stops.borrow_mut().push(id.to_owned());
    }
    fn recall(&self, id: &str) -> bool {
        self.recalls.borrow_mut().push(id.to_owned());
        self.statuses.borrow().contains_key(id)
    }
    fn replace(&self, hung: &BTreeMap<String, Hung>) {
        self.hung.borrow_mut().clone_from(hung);
    }
    fn scales(&self) -> bool {
        !self.unscaled
    }
    fn surplus(&self) -> u32 {
        self.surplus.get()
    }
    fn drains(&self) -> Drains {
        self.drains.unwrap_or(Drains::Each)
    }
}

fn pool() -> PoolLoop {
    let pool: serde_json::Value = serde_json::json!({"name": "p", "scaling": {
        "maxReplicaCount": 4, "targetConcurrency": 10, "cooldownPeriod": "30s"
    }});
    let pool = serde_json::from_value(pool).expect("a pool");
    PoolLoop::new(&pool, &forebay_config::Prometheus::default(), 10_000)
}

fn signals(held: u32, endpoints: &[(&str, Health, u32)]) -> PoolSignals {
    let endpoint = |(address, health, in_flight): &(&str, Health, u32)| {
        let signals =
            EndpointSignals { health: *health, in_flight: *in_flight, ..Default::default() };
        ((*address).to_owned(), Some(signals))
    };
    PoolSignals {
        queue_depth: held,
        in_flight: endpoints.iter().map(|(_, _, in_flight)| in_flight).sum(),
        endpoints: endpoints.iter().map(endpoint).collect(),
        ..PoolSignals::default()
    }
}

fn heard(gateway: usize, signals: Option<&PoolSignals>, lost_ms: Option<u64>) -> Heard<'_> {
    Heard { gateway, sender: "a", signals, lost_ms }
}

fn step(pool: &mut PoolLoop, target: &Fake, gateways: &[PoolSignals], now: u64) -> Step {
    let heard: Vec<_> = gateways.iter().enumerate().map(|(i, s)| heard(i, Some(s), None)).collect();
    let statuses = target.statuses.borrow().clone();
    pool.step(&heard, &statuses, &[], target, now)
}

const ONE: &str = "127.0.0.1:1";

/// A pool with one ready replica at 2 s, idle until its decision for zero at 40 s.
fn going_to_zero() -> (PoolLoop, Fake, Step) {
    let (mut pool, target) = (pool(), Fake::default());
    step(&mut pool, &target, &[signals(1, &[])], 1_000);
    step(&mut pool, &target, &[signals(0, &[(ONE, Health::Ready, 1)])], 2_000);
    step(&mut pool, &target, &[signals(0, &[(ONE, Health::Ready, 0)])], 3_000);
    let zero = step(&mut pool, &target, &[signals(0, &[(ONE, Health::Ready, 0)])], 40_000);
    (pool, target, zero)
}

#[test]
fn all_replicas_for_the_held_work_are_asked_for_at_the_first_push() {
    let (mut pool, target) = (pool(), Fake::default());
    step(&mut pool, &target, &[signals(1, &[])], 1_000);
    assert_eq!(target.statuses.borrow().len(), 1);
    step(&mut pool, &target, &[signals(35, &[])], 1_020);
    assert_eq!(target.statuses.borrow().len(), 4, "a start under way is raised");
}

#[test]
fn a_start_is_learned_from_asked_for_to_ready() {
    let (mut pool, target) = (pool(), Fake::default());
    step(&mut pool, &target, &[signals(1, &[])], 1_000);
    step(&mut pool, &target, &[signals(1, &[(ONE, Health::Starting, 0)])], 1_001);
    let ready = step(&mut pool, &target, &[signals(0, &[(ONE, Health::Ready, 1)])], 4_101);
    assert_eq!(ready.cold_starts, [3.1]);
    assert_eq!(ready.replicas.cold_start.expect("learned").samples, 1);
}

#[test]
fn the_last_replica_is_stopped_when_every_gateway_holds_and_has_nothing_there() {
    let (mut pool, target, zero) = going_to_zero();
    let barrier = zero.replicas.barrier.expect("raised");
    assert_eq!(zero.decision.desired, 0);
    assert_eq!(
        zero.replicas.replicas["p-1"].as_ref().expect("there").state,
        ReplicaState::Draining
    );
    assert!(target.stops.borrow().is_empty(), "not before the gateways said so");

    let closed = |in_flight| {
        let zero_epoch = (in_flight == 0).then_some(barrier.epoch);
        PoolSignals { zero_epoch, ..signals(0, &[(ONE, Health::Draining, in_flight)]) }
    };
    step(&mut pool, &target, &[closed(0), closed(1)], 41_000);
    assert!(target.stops.borrow().is_empty(), "one of two has a stream there");
    step(&mut pool, &target, &[closed(0), signals(0, &[(ONE, Health::Ready, 0)])], 41_500);
    assert!(target.stops.borrow().is_empty(), "one of two has not heard yet");
    // The stream above kept the pool awake; it goes idle anew.
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
    assert_eq!(target.statuses.borrow().len(), 1, "and no second one is started");
}

#[test]
fn nothing_is_stopped_while_a_gateway_is_lost() {
    let (mut pool, target, zero) = going_to_zero();
    let epoch = zero.replicas.barrier.expect("raised").epoch;
    let closed =
        PoolSignals { zero_epoch: Some(epoch), ..signals(0, &[(ONE, Health::Draining, 0)]) };
    let heard = [heard(0, Some(&closed), None), heard(1, Some(&closed), Some(100))];
    let statuses = target.statuses.borrow().clone();
    pool.step(&heard, &statuses, &[], &target, 41_000);
    assert!(target.stops.borrow().is_empty());
}

#[test]
fn a_replica_that_was_there_before_teaches_nothing_of_starts() {
    let (mut pool, target) = (pool(), Fake::default());
    target.ensure(1);
    target.statuses.borrow_mut().values_mut().for_each(|status| status.inherited = true);
    step(&mut pool, &target, &[signals(0, &[(ONE, Health::Starting, 0)])], 1_000);
    let ready = step(&mut pool, &target, &[signals(0, &[(ONE, Health::Ready, 1)])], 1_100);
    assert!(ready.cold_starts.is_empty() && ready.replicas.cold_start.is_none());
    let state = ready.replicas.replicas["p-1"].as_ref().expect("there").state;
    assert_eq!(state, ReplicaState::Ready);
}

#[test]
fn replicas_that_were_there_before_the_scaler_are_taken_over() {
    let (mut pool, target) = (pool(), Fake::default());
    target.ensure(3);
    let (a, b, c) = ("127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3");
    let idle = signals(0, &[(a, Health::Ready, 0), (b, Health::Ready, 0), (c, Health::Ready, 0)]);
    let first = step(&mut pool, &target, &[idle], 1_000);
    assert_eq!(first.decision.desired, 3, "their idle time begins now");
    assert!(target.stops.borrow().is_empty());
}

#[test]
fn the_targets_own_order_of_stopping_goes_before_load() {
    let (mut pool, target) = (pool(), Fake::default());
    step(&mut pool, &target, &[signals(25, &[])], 1_000);
    target.statuses.borrow_mut().values_mut().enumerate().for_each(|(i, s)| s.rank = i as u32);
    let at = |n| format!("127.0.0.1:{n}");
    let (a, b, c) = (at(1), at(2), at(3));
    let busy = |x, y, z| {
        signals(0, &[(&a, Health::Ready, x), (&b, Health::Ready, y), (&c, Health::Ready, z)])
    };
    step(&mut pool, &target, &[busy(8, 8, 8)], 2_000);
    step(&mut pool, &target, &[busy(0, 5, 5)], 3_000);
    let fewer = step(&mut pool, &target, &[busy(0, 5, 5)], 130_000);
    let state = |id: &str| fewer.replicas.replicas[id].as_ref().expect("there").state;
    assert_eq!((state("p-1"), state("p-3")), (ReplicaState::Ready, ReplicaState::Draining));
}

#[test]
fn a_target_that_only_watches_has_nothing_drained() {
    let (mut pool, target) = (pool(), Fake { drains: Some(Drains::Never), ..Fake::default() });
    target.ensure(1);
    let at = |now| heard(0, Some(now), None);
    let (busy, idle) =
        (signals(0, &[(ONE, Health::Ready, 1)]), signals(0, &[(ONE, Health::Ready, 0)]));
    let statuses = target.statuses.borrow().clone();
    pool.step(&[at(&busy)], &statuses, &[], &target, 1_000);
    let zero = pool.step(&[at(&idle)], &statuses, &[], &target, 100_000);
    assert_eq!((zero.decision.desired, zero.replicas.barrier), (0, None));
    let state = zero.replicas.replicas["p-1"].as_ref().expect("there").state;
    assert_eq!(state, ReplicaState::Ready);
}

#[test]
fn a_pod_that_is_about_to_stop_is_drained_and_replaced_and_waited_for() {
    let (mut pool, target) = (pool(), Fake::default());
    step(&mut pool, &target, &[signals(1, &[])], 1_000);
    let at = ONE.parse().expect("an address");
    let busy = signals(0, &[(ONE, Health::Ready, 2)]);
    step(&mut pool, &target, std::slice::from_ref(&busy), 2_000);
    pool.ask_to_drain(at, 3_000);
    let asked = step(&mut pool, &target, std::slice::from_ref(&busy), 3_000);
    let state = asked.replicas.replicas["p-1"].as_ref().expect("there").state;
    assert_eq!(state, ReplicaState::Draining);
    let heard = |signals| Heard { gateway: 0, sender: "a", signals: Some(signals), lost_ms: None };
    let left = signals(0, &[(ONE, Health::Draining, 1)]);
    let none = signals(0, &[(ONE, Health::Draining, 0)]);
    assert!(!pool.is_empty_at(&[heard(&busy)], at), "a gateway has not heard yet");
    assert!(!pool.is_empty_at(&[heard(&none), heard(&left)], at), "one has a stream there");
    assert!(pool.is_empty_at(&[heard(&none), heard(&none)], at));
}

#[test]
fn a_drain_that_was_asked_for_ends_with_its_replica_or_after_an_hour() {
    let at = ONE.parse().expect("an address");
    let ready = signals(0, &[(ONE, Health::Ready, 1)]);
    let asked = || {
        let (mut pool, target) = (pool(), Fake::default());
        step(&mut pool, &target, &[signals(1, &[])], 1_000);
        step(&mut pool, &target, std::slice::from_ref(&ready), 2_000);
        pool.ask_to_drain(at, 3_000);
        step(&mut pool, &target, std::slice::from_ref(&ready), 3_000);
        assert!(pool.asked.contains_key(&at));
        (pool, target)
    };
    let (mut pool, target) = asked();
    step(&mut pool, &target, std::slice::from_ref(&ready), 3_000 + 3_600_000);
    assert!(pool.asked.is_empty(), "it was not meant");
    let (mut pool, target) = asked();
    let mut statuses = target.statuses.borrow().clone();
    let mut next = statuses.remove("p-1").expect("there");
    next.id = "p-9".to_owned();
    statuses.insert("p-9".to_owned(), next);
    pool.step(&[], &statuses, &[], &target, 4_000);
    assert!(pool.asked.is_empty(), "another one came to its address");
}

#[test]
fn the_idlest_is_the_one_to_go() {
    let (mut pool, target) = (pool(), Fake::default());
    let at = |n| format!("127.0.0.1:{n}");
    step(&mut pool, &target, &[signals(25, &[])], 1_000);
    let (a, b, c) = (at(1), at(2), at(3));
    let busy = |x, y, z| {
        signals(0, &[(&a, Health::Ready, x), (&b, Health::Ready, y), (&c, Health::Ready, z)])
    };
    step(&mut pool, &target, &[busy(8, 8, 8)], 2_000);
    step(&mut pool, &target, &[busy(5, 0, 5)], 3_000);
    let fewer = step(&mut pool, &target, &[busy(5, 0, 5)], 130_000);
    assert_eq!(fewer.decision.desired, 1);
    let state = |id: &str| fewer.replicas.replicas[id].as_ref().expect("there").state;
    assert_eq!(state("p-2"), ReplicaState::Draining, "nothing in flight there");
}

#[test]
fn a_replica_that_is_kept_is_ready_all_along_and_is_no_new_start() {
    let (mut pool, target, zero) = going_to_zero();
    assert!(zero.replicas.barrier.is_some());
    let late = signals(1, &[(ONE, Health::Draining, 0)]);
    step(&mut pool, &target, std::slice::from_ref(&late), 40_020);
    let still = step(&mut pool, &target, &[late], 40_025);
    let state = still.replicas.replicas["p-1"].as_ref().expect("there").state;
    assert_eq!(state, ReplicaState::Ready, "its gateway has not heard yet that it is kept");
    let back = step(&mut pool, &target, &[signals(0, &[(ONE, Health::Ready, 1)])], 40_050);
    assert!(back.cold_starts.is_empty(), "{:?}", back.cold_starts);
    assert_eq!(back.replicas.cold_start.expect("one").samples, 1);
}

#[test]
fn coming_back_after_an_ejection_is_no_cold_start() {
    let (mut pool, target) = (pool(), Fake::default());
    step(&mut pool, &target, &[signals(1, &[])], 1_000);
    step(&mut pool, &target, &[signals(0, &[(ONE, Health::Ready, 1)])], 4_000);
    step(&mut pool, &target, &[signals(0, &[(ONE, Health::Ejected, 1)])], 500_000);
    let back = step(&mut pool, &target, &[signals(0, &[(ONE, Health::Ready, 1)])], 500_250);
    assert!(back.cold_starts.is_empty(), "{:?}", back.cold_starts);
}

#[test]
fn a_start_after_a_death_is_learned_from_its_own_beginning() {
    let (mut pool, target) = (pool(), Fake::default());
    step(&mut pool, &target, &[signals(1, &[])], 1_000);
    step(&mut pool, &target, &[signals(0, &[(ONE, Health::Ready, 1)])], 4_000);
    let change = |phase, started_ms| {
        let mut statuses = target.statuses.borrow_mut();
        let status = statuses.get_mut("p-1").expect("there");
        (status.phase, status.started_ms) = (phase, started_ms);
    };
    change(Phase::Failed, 1_000);
    step(&mut pool, &target, &[signals(1, &[])], 100_000);
    change(Phase::Running, 101_000);
    step(&mut pool, &target, &[signals(1, &[(ONE, Health::Starting, 0)])], 101_000);
    let again = step(&mut pool, &target, &[signals(0, &[(ONE, Health::Ready, 1)])], 103_500);
    assert_eq!(again.cold_starts, [2.5]);
}

#[test]
fn a_gateway_that_is_stale_or_was_never_heard_does_not_keep_a_drained_replica() {
    for lost in [None, Some(11_000)] {
        let (mut pool, target) = (pool(), Fake::default());
        step(&mut pool, &target, &[signals(25, &[])], 1_000);
        let at = |n| format!("127.0.0.1:{n}");
        let (a, b, c) = (at(1), at(2), at(3));
        let all =
            |health, x, y| signals(0, &[(&a, Health::Ready, 1), (&b, health, x), (&c, health, y)]);
        step(&mut pool, &target, &[all(Health::Ready, 1, 1)], 2_000);
        let (drained, old) = (all(Health::Draining, 0, 0), all(Health::Ready, 0, 0));
        for now in [200_000, 200_050] {
            let silent = heard(1, lost.map(|_| &old), Some(lost.unwrap_or(60_000)));
            let heard = [heard(0, Some(&drained), None), silent];
            let statuses = target.statuses.borrow().clone();
            pool.step(&heard, &statuses, &[], &target, now);
        }
        assert_eq!(*target.stops.borrow(), ["p-2", "p-3"], "lost {lost:?}");
    }
}

#[test]
fn what_another_stops_is_active_until_each_gateway_holds_and_stays_under_the_barrier() {
    let (mut pool, target, zero) = going_to_zero();
    let target = Fake { drains: Some(Drains::All), ..target };
    let barrier = zero.replicas.barrier.expect("raised");
    assert!(zero.replicas.active, "not before every gateway holds");
    let closed = PoolSignals {
        zero_epoch: Some(barrier.epoch),
        ..signals(0, &[(ONE, Health::Draining, 0)])
    };
    let other = signals(0, &[(ONE, Health::Ready, 0)]);
    let one_of_two = step(&mut pool, &target, &[closed.clone(), other], 40_100);
    assert!(one_of_two.replicas.active);
    let told = step(&mut pool, &target, &[closed.clone(), closed.clone()], 40_200).replicas;
    assert!(!told.active, "now KEDA may take it away");
    // KEDA waits for its own cooldown; nothing is released there in the meantime.
    let later = step(&mut pool, &target, &[closed.clone(), closed], 70_000).replicas;
    assert_eq!(later.barrier, Some(barrier));
    assert!(target.stops.borrow().is_empty(), "it is not ours to stop");

    let woken = step(&mut pool, &target, &[signals(1, &[(ONE, Health::Draining, 0)])], 70_100);
    assert!(woken.replicas.active, "at once");
    assert_eq!(woken.replicas.barrier, None);
    let replica = woken.replicas.replicas["p-1"].as_ref().expect("there");
    assert_eq!(replica.state, ReplicaState::Ready, "and served by what is still there");
}

#[test]
fn where_another_decides_the_count_all_that_is_there_serves() {
    let mut pool = pool();
    let target = Fake { drains: Some(Drains::All), ..Fake::default() };
    target.ensure(3);
    let three: Vec<_> = (1..=3).map(|n| format!("127.0.0.1:{n}")).collect();
    let at = |held, health, in_flight| {
        let endpoints: Vec<_> = three.iter().map(|it| (it.as_str(), health, in_flight)).collect();
        signals(held, &endpoints)
    };
    step(&mut pool, &target, &[signals(0, &[])], 1_000);
    // A gateway that has just started finds them one by one: they were there before.
    let found = step(&mut pool, &target, &[at(0, Health::Ready, 0)], 2_000);
    assert_eq!(found.decision.desired, 3);
    let drained = |step: &Step| {
        step.replicas
            .replicas
            .values()
            .flatten()
            .filter(|it| it.state == ReplicaState::Draining)
            .count()
    };
    let fewer = step(&mut pool, &target, &[at(0, Health::Ready, 1)], 90_000);
    assert_eq!(drained(&fewer), 0, "who goes is not ours to pick");
    let idle = step(&mut pool, &target, &[at(0, Health::Ready, 0)], 200_000);
    assert_eq!((idle.decision.desired, drained(&idle)), (0, 3));
    let woken = step(&mut pool, &target, &[at(1, Health::Draining, 0)], 201_000);
    assert_eq!((woken.decision.desired, drained(&woken)), (1, 0), "one wakes all that are there");
}

#[test]
fn a_replica_that_another_never_started_does_not_keep_the_pool_awake() {
    let mut pool = pool();
    let target = Fake { drains: Some(Drains::All), ..Fake::default() };
    step(&mut pool, &target, &[signals(35, &[])], 1_000);
    assert_eq!(target.statuses.borrow().len(), 4);
    // Of the four, the HPA made one: its own bounds, or its time, were others.
    target.statuses.borrow_mut().retain(|id, _| id == "p-1");
    let one = |in_flight| signals(0, &[(ONE, Health::Ready, in_flight)]);
    let fake = |target: &Fake| Fake {
        statuses: target.statuses.clone(),
        drains: Some(Drains::All),
        ..Fake::default()
    };
    for now in [2_000, 3_000] {
        step(&mut pool, &fake(&target), &[one(1)], now);
    }
    for now in [100_000, 200_000] {
        step(&mut pool, &fake(&target), &[one(0)], now);
    }
    let idle = step(&mut pool, &fake(&target), &[one(0)], 300_000);
    assert_eq!(idle.decision.desired, 0, "{}", idle.decision.sentence());
}

#[test]
fn before_a_gateway_is_heard_nothing_goes_and_too_few_are_raised() {
    for (min, there, want) in [(0, 4, 4), (0, 0, 0), (1, 4, 4), (1, 6, 6), (3, 1, 3)] {
        for listed in [false, true] {
            let case = format!("min {min}, {there} there, gateways listed: {listed}");
            let settings = serde_json::json!({"name": "p", "scaling": {
                "minReplicaCount": min, "maxReplicaCount": 4, "cooldownPeriod": "30s"
            }});
            let settings = serde_json::from_value(settings).expect("a pool");
            let prometheus = forebay_config::Prometheus::default();
            let mut pool = PoolLoop::new(&settings, &prometheus, 10_000);
            let target = Fake::default();
            target.ensure(there);
            // Those that are there may end with the process before, or be told of late.
            for now in [0, 100, 15_000, 400_000, 401_000] {
                let silent = listed.then(|| heard(0, None, Some(now)));
                let statuses = target.statuses.borrow().clone();
                let silent: Vec<_> = silent.into_iter().collect();
                let step = pool.step(&silent, &statuses, &[], &target, 1_000 + now);
                let told = &step.replicas;
                assert_eq!((told.desired, told.barrier, told.active), (want, None, true), "{case}");
                let leaves = |it: &Replica| it.state == ReplicaState::Draining;
                assert!(!told.replicas.values().flatten().any(leaves), "{case}");
            }
            assert!(target.stops.borrow().is_empty(), "{case}");
            assert_eq!(target.statuses.borrow().len() as u32, want.max(there), "{case}");
            assert_eq!(target.ensured.get(), want, "{case}");
        }
    }
}

#[test]
fn what_ran_before_a_gateway_was_heard_is_seen_for_a_whole_window_from_then_on() {
    let (mut pool, target) = (pool(), Fake::default());
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
fn when_every_gateway_is_gone_nothing_is_drained() {
    let (mut pool, target) = (pool(), Fake::default());
    step(&mut pool, &target, &[signals(1, &[])], 1_000);
    step(&mut pool, &target, &[signals(0, &[(ONE, Health::Ready, 1)])], 2_000);
    for now in [3_000, 400_000, 401_000] {
        let alone = step(&mut pool, &target, &[], now);
        assert_eq!((alone.decision.desired, alone.replicas.barrier), (1, None));
    }
    assert!(target.stops.borrow().is_empty());
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
        assert_eq!(held.replicas.barrier, Some(barrier), "it is still on its way out");
    }
    target.statuses.borrow_mut().clear();
    let gone = step(&mut pool, &target, &[PoolSignals { zero_epoch, ..signals(0, &[]) }], 42_000);
    assert_eq!(gone.replicas.barrier, None);
}

#[test]
fn until_what_was_kept_is_read_the_count_is_held_and_an_order_in_it_is_not_forgotten() {
    let mut before = pool();
    before.order(Override::Paused);
    let kept = before.snapshot();
    let (mut pool, target) = (pool(), Fake::default());
    pool.await_restore();
    step(&mut pool, &target, &[signals(25, &[])], 1_000);
    let held = step(&mut pool, &target, &[signals(25, &[])], 20_000);
    assert_eq!(held.decision.desired, 0, "a person may have said so");
    pool.restore(Some(&kept));
    let paused = step(&mut pool, &target, &[signals(25, &[])], 21_000);
    assert_eq!(paused.decision.desired, 0, "{}", paused.decision.sentence());
}

#[test]
fn where_what_was_kept_can_not_be_read_requests_are_served_and_nothing_scales_down() {
    let (mut pool, target) = (pool(), Fake::default());
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
    assert_eq!(idle.decision.desired, 0, "nothing was kept");
}

#[test]
fn an_order_comes_before_one_that_was_kept_and_is_read_later() {
    let mut before = pool();
    before.order(Override::Paused);
    let (mut pool, target) = (pool(), Fake::default());
    pool.await_restore();
    pool.order(Override::None);
    pool.restore(Some(&before.snapshot()));
    let step = step(&mut pool, &target, &[signals(1, &[])], 1_000);
    assert_eq!(step.decision.desired, 1);
}

#[test]
fn a_rollouts_extra_replica_is_not_taken_over_as_one_of_the_pools() {
    let (mut pool, target) = (pool(), Fake::default());
    target.ensure(3);
    target.surplus.set(1);
    let (a, b, c) = ("127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3");
    let all = signals(0, &[(a, Health::Ready, 1), (b, Health::Ready, 1), (c, Health::Ready, 1)]);
    for now in [1_000, 2_000] {
        let first = step(&mut pool, &target, std::slice::from_ref(&all), now);
        assert_eq!((first.decision.desired, target.ensured.get()), (2, 2));
    }
}

#[test]
fn a_stopped_replica_that_the_target_spared_serves_again() {
    let (mut pool, target) = (pool(), Fake::default());
    step(&mut pool, &target, &[signals(15, &[])], 1_000);
    let (a, b) = ("127.0.0.1:1", "127.0.0.1:2");
    let both = |health, x, y| signals(0, &[(a, Health::Ready, x), (b, health, y)]);
    step(&mut pool, &target, &[both(Health::Ready, 8, 7)], 2_000);
    for now in [3_000, 130_000, 130_050] {
        step(&mut pool, &target, &[both(Health::Draining, 3, 0)], now);
    }
    assert_eq!(*target.stops.borrow(), ["p-2"]);
    assert_eq!(target.ensured.get(), 1);
    // Its controller took the other one.
    target.statuses.borrow_mut().remove("p-1");
    target.statuses.borrow_mut().get_mut("p-2").expect("there").spared = true;
    let left = signals(0, &[(b, Health::Draining, 0)]);
    let kept = step(&mut pool, &target, &[left], 131_000);
    assert_eq!(*target.recalls.borrow(), ["p-2"]);
    assert_eq!((kept.decision.desired, target.ensured.get()), (1, 1), "and no other is waited for");
    let state = kept.replicas.replicas["p-2"].as_ref().expect("there").state;
    assert_ne!(state, ReplicaState::Draining, "gateways use it again");
}

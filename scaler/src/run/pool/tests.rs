use super::*;
use std::cell::RefCell;
use std::net::SocketAddr;

use forebay_signals::{EndpointSignals, Health, Replica, ReplicaState, Totals};

use crate::act::targets::{Hung, StartFailure};

mod hung;
mod takeover;
mod zero;

/// A target that records its orders, with the replicas it has.
#[derive(Default)]
struct FakeTarget {
    statuses: RefCell<BTreeMap<String, ReplicaStatus>>,
    stops: RefCell<Vec<String>>,
    drains: Option<Drains>,
    surplus: std::cell::Cell<u32>,
    recalls: RefCell<Vec<String>>,
    ensured: std::cell::Cell<u32>,
    hung: RefCell<BTreeMap<String, Hung>>,
    unscaled: bool,
}

impl ScaleTarget for FakeTarget {
    fn ensure(&self, count: u32) {
        self.ensured.set(count);
        let mut statuses = self.statuses.borrow_mut();
        while (statuses.len() as u32) < count {
            let n = statuses.len() as u16 + 1;
            let status = ReplicaStatus {
                address: Some(SocketAddr::from(([127, 0, 0, 1], n))),
                condition: Condition::Starting,
                started_at: Some(Millis::new(1_000)),
                ..ReplicaStatus::requested(format!("p-{n}"))
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

fn pool() -> PoolScaler {
    let pool: serde_json::Value = serde_json::json!({"name": "p", "scaling": {
        "maxReplicaCount": 4, "targetConcurrency": 10, "cooldownPeriod": "30s"
    }});
    let pool = serde_json::from_value(pool).expect("a pool");
    PoolScaler::new(&pool, &forebay_config::Prometheus::default(), STALE)
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

fn report(
    gateway: usize,
    signals: Option<&PoolSignals>,
    silent_for: Option<u64>,
) -> LastReport<'_> {
    let silent_for = silent_for.map(Millis::new);
    let up_for = Some(Millis::ZERO);
    LastReport { gateway, sender: "a", up_for, signals, silent_for }
}

fn step(pool: &mut PoolScaler, target: &FakeTarget, gateways: &[PoolSignals], now: u64) -> Step {
    let reports: Vec<_> =
        gateways.iter().enumerate().map(|(i, signals)| report(i, Some(signals), None)).collect();
    let statuses = target.statuses.borrow().clone();
    pool.step(&reports, &statuses, &[], target, Millis::new(now))
}

const STALE: Millis = Millis::from_secs(10);
const ONE: &str = "127.0.0.1:1";

/// A pool with one ready replica at 2 s, idle, with its decision for zero at 40 s.
fn going_to_zero() -> (PoolScaler, FakeTarget, Step) {
    let (mut pool, target) = (pool(), FakeTarget::default());
    step(&mut pool, &target, &[signals(1, &[])], 1_000);
    step(&mut pool, &target, &[signals(0, &[(ONE, Health::Ready, 1)])], 2_000);
    step(&mut pool, &target, &[signals(0, &[(ONE, Health::Ready, 0)])], 3_000);
    let zero = step(&mut pool, &target, &[signals(0, &[(ONE, Health::Ready, 0)])], 40_000);
    (pool, target, zero)
}

#[test]
fn the_life_of_a_gateway_before_this_scaler_is_no_arrival_and_a_new_pool_counts_from_zero() {
    let (mut pool, target) = (pool(), FakeTarget::default());
    let mut signals = signals(0, &[]);
    signals.totals.accepted = 500_000;
    let mut accepted = |reports: &[LastReport<'_>], now: u64| {
        let step = pool.step(reports, &BTreeMap::new(), &[], &target, Millis::new(now));
        (step.load.totals.accepted, step.decision.desired)
    };
    let old = |gateway, sender, signals| LastReport {
        gateway,
        sender,
        up_for: Some(Millis::from_secs(86_400)),
        signals,
        silent_for: None,
    };
    let a = old(0, "a", Some(&signals));
    assert_eq!(accepted(std::slice::from_ref(&a), 100_000_000), (0, 0));
    // It hears the second gateway later, and decides as if nothing had come.
    let b = old(1, "b", Some(&signals));
    assert_eq!(accepted(&[a, b], 100_000_050), (0, 0));
    // The third one does not have the pool yet. It gets it with its first request.
    let one = PoolSignals {
        totals: Totals { accepted: 1, ..Totals::default() },
        ..PoolSignals::default()
    };
    assert_eq!(accepted(&[old(2, "c", None)], 100_000_100).0, 0);
    assert_eq!(accepted(&[old(2, "c", Some(&one))], 100_000_150).0, 1);
}

#[test]
fn all_replicas_for_the_held_work_are_requested_at_the_first_push() {
    let (mut pool, target) = (pool(), FakeTarget::default());
    step(&mut pool, &target, &[signals(1, &[])], 1_000);
    assert_eq!(target.statuses.borrow().len(), 1);
    step(&mut pool, &target, &[signals(35, &[])], 1_020);
    assert_eq!(target.statuses.borrow().len(), 4, "a start under way is raised");
}

#[test]
fn requests_that_are_refused_because_starts_fail_keep_one_try_going_and_raise_no_count() {
    let (mut pool, target) = (pool(), FakeTarget::default());
    step(&mut pool, &target, &[signals(1, &[])], 1_000);
    let fails = |failing: bool| {
        let failure = StartFailure {
            reason: "exited with status 1".to_owned(),
            detail: String::new(),
            next_try: Some(Millis::new(9_000)),
        };
        for status in target.statuses.borrow_mut().values_mut() {
            status.start_failure = failing.then(|| failure.clone());
        }
    };
    fails(true);
    for second in 2..120 {
        let refused =
            step(&mut pool, &target, &[signals(50, &[]), signals(50, &[])], second * 1_000);
        assert_eq!(refused.decision.desired, 1, "at {second} s: {}", refused.decision.sentence());
        assert!(refused.replicas.failed_start.is_some(), "at {second} s");
    }
    fails(false);
    let held = step(&mut pool, &target, &[signals(50, &[])], 120_000);
    assert_eq!(held.decision.desired, 4, "{}", held.decision.sentence());
}

#[test]
fn a_start_is_learned_from_its_request_to_ready() {
    let (mut pool, target) = (pool(), FakeTarget::default());
    step(&mut pool, &target, &[signals(1, &[])], 1_000);
    step(&mut pool, &target, &[signals(1, &[(ONE, Health::Starting, 0)])], 1_001);
    let ready = step(&mut pool, &target, &[signals(0, &[(ONE, Health::Ready, 1)])], 4_101);
    assert_eq!(ready.cold_starts, [3.1]);
    assert_eq!(ready.replicas.cold_start.expect("learned").samples, 1);
}

#[test]
fn the_targets_own_order_of_stopping_comes_before_load() {
    let (mut pool, target) = (pool(), FakeTarget::default());
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
fn a_target_that_only_watches_drains_nothing() {
    let (mut pool, target) =
        (pool(), FakeTarget { drains: Some(Drains::Never), ..FakeTarget::default() });
    target.ensure(1);
    let at = |now| report(0, Some(now), None);
    let (busy, idle) =
        (signals(0, &[(ONE, Health::Ready, 1)]), signals(0, &[(ONE, Health::Ready, 0)]));
    let statuses = target.statuses.borrow().clone();
    pool.step(&[at(&busy)], &statuses, &[], &target, Millis::new(1_000));
    let zero = pool.step(&[at(&idle)], &statuses, &[], &target, Millis::new(100_000));
    assert_eq!((zero.decision.desired, zero.replicas.barrier), (0, None));
    let state = zero.replicas.replicas["p-1"].as_ref().expect("there").state;
    assert_eq!(state, ReplicaState::Ready);
}

#[test]
fn a_pod_that_is_about_to_stop_is_drained_and_replaced_and_waited_for() {
    let (mut pool, target) = (pool(), FakeTarget::default());
    step(&mut pool, &target, &[signals(1, &[])], 1_000);
    let at = ONE.parse().expect("an address");
    let busy = signals(0, &[(ONE, Health::Ready, 2)]);
    step(&mut pool, &target, std::slice::from_ref(&busy), 2_000);
    pool.drain_endpoint(at, Millis::new(3_000));
    let draining = step(&mut pool, &target, std::slice::from_ref(&busy), 3_000);
    let state = draining.replicas.replicas["p-1"].as_ref().expect("there").state;
    assert_eq!(state, ReplicaState::Draining);
    let report = |signals| report(0, Some(signals), None);
    let left = signals(0, &[(ONE, Health::Draining, 1)]);
    let none = signals(0, &[(ONE, Health::Draining, 0)]);
    assert!(!pool.is_empty_at(&[report(&busy)], at), "a gateway does not know yet");
    assert!(!pool.is_empty_at(&[report(&none), report(&left)], at), "one has a stream there");
    assert!(pool.is_empty_at(&[report(&none), report(&none)], at));
}

#[test]
fn a_requested_drain_ends_with_its_replica_or_after_an_hour() {
    let at = ONE.parse().expect("an address");
    let ready = signals(0, &[(ONE, Health::Ready, 1)]);
    let draining = || {
        let (mut pool, target) = (pool(), FakeTarget::default());
        step(&mut pool, &target, &[signals(1, &[])], 1_000);
        step(&mut pool, &target, std::slice::from_ref(&ready), 2_000);
        pool.drain_endpoint(at, Millis::new(3_000));
        step(&mut pool, &target, std::slice::from_ref(&ready), 3_000);
        assert!(pool.departures.requested.contains_key(&at));
        (pool, target)
    };
    let (mut pool, target) = draining();
    step(&mut pool, &target, std::slice::from_ref(&ready), 3_000 + 3_600_000);
    assert!(pool.departures.requested.is_empty(), "the pod does not stop");
    let (mut pool, target) = draining();
    let mut statuses = target.statuses.borrow().clone();
    let mut next = statuses.remove("p-1").expect("there");
    next.id = "p-9".to_owned();
    statuses.insert("p-9".to_owned(), next);
    pool.step(&[], &statuses, &[], &target, Millis::new(4_000));
    assert!(pool.departures.requested.is_empty(), "another replica has its address");
}

#[test]
fn the_replica_with_the_least_load_stops() {
    let (mut pool, target) = (pool(), FakeTarget::default());
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
fn a_replica_that_is_kept_stays_ready_and_is_not_a_new_start() {
    let (mut pool, target, zero) = going_to_zero();
    assert!(zero.replicas.barrier.is_some());
    let late = signals(1, &[(ONE, Health::Draining, 0)]);
    step(&mut pool, &target, std::slice::from_ref(&late), 40_020);
    let still = step(&mut pool, &target, &[late], 40_025);
    let state = still.replicas.replicas["p-1"].as_ref().expect("there").state;
    assert_eq!(state, ReplicaState::Ready, "its gateway does not know yet that it is kept");
    let back = step(&mut pool, &target, &[signals(0, &[(ONE, Health::Ready, 1)])], 40_050);
    assert!(back.cold_starts.is_empty(), "{:?}", back.cold_starts);
    assert_eq!(back.replicas.cold_start.expect("one").samples, 1);
}

#[test]
fn coming_back_after_an_ejection_is_not_a_cold_start() {
    let (mut pool, target) = (pool(), FakeTarget::default());
    step(&mut pool, &target, &[signals(1, &[])], 1_000);
    step(&mut pool, &target, &[signals(0, &[(ONE, Health::Ready, 1)])], 4_000);
    step(&mut pool, &target, &[signals(0, &[(ONE, Health::Ejected, 1)])], 500_000);
    let back = step(&mut pool, &target, &[signals(0, &[(ONE, Health::Ready, 1)])], 500_250);
    assert!(back.cold_starts.is_empty(), "{:?}", back.cold_starts);
}

#[test]
fn a_start_after_a_death_is_learned_from_its_own_beginning() {
    let (mut pool, target) = (pool(), FakeTarget::default());
    step(&mut pool, &target, &[signals(1, &[])], 1_000);
    step(&mut pool, &target, &[signals(0, &[(ONE, Health::Ready, 1)])], 4_000);
    let change = |condition, started_at: u64| {
        let mut statuses = target.statuses.borrow_mut();
        let status = statuses.get_mut("p-1").expect("there");
        (status.condition, status.started_at) = (condition, Some(Millis::new(started_at)));
    };
    change(Condition::Failed, 1_000);
    step(&mut pool, &target, &[signals(1, &[])], 100_000);
    change(Condition::Starting, 101_000);
    step(&mut pool, &target, &[signals(1, &[(ONE, Health::Starting, 0)])], 101_000);
    let again = step(&mut pool, &target, &[signals(0, &[(ONE, Health::Ready, 1)])], 103_500);
    assert_eq!(again.cold_starts, [2.5]);
}

#[test]
fn a_gateway_that_is_stale_or_was_never_heard_does_not_keep_a_drained_replica() {
    for lost in [None, Some(11_000)] {
        let (mut pool, target) = (pool(), FakeTarget::default());
        step(&mut pool, &target, &[signals(25, &[])], 1_000);
        let at = |n| format!("127.0.0.1:{n}");
        let (a, b, c) = (at(1), at(2), at(3));
        let all =
            |health, x, y| signals(0, &[(&a, Health::Ready, 1), (&b, health, x), (&c, health, y)]);
        step(&mut pool, &target, &[all(Health::Ready, 1, 1)], 2_000);
        let (drained, old) = (all(Health::Draining, 0, 0), all(Health::Ready, 0, 0));
        for now in [200_000, 200_050] {
            let silent = report(1, lost.map(|_| &old), Some(lost.unwrap_or(60_000)));
            let reports = [report(0, Some(&drained), None), silent];
            let statuses = target.statuses.borrow().clone();
            pool.step(&reports, &statuses, &[], &target, Millis::new(now));
        }
        assert_eq!(*target.stops.borrow(), ["p-2", "p-3"], "lost {lost:?}");
    }
}

/// Three replicas of which all but the busy first one drain, and the report that shows them so.
fn two_of_three_drain() -> (PoolScaler, FakeTarget, impl Fn(u32, [u32; 2]) -> PoolSignals) {
    let (mut pool, target) = (pool(), FakeTarget::default());
    step(&mut pool, &target, &[signals(25, &[])], 1_000);
    let all = |held, health, [second, third]: [u32; 2]| {
        let at = [1, 2, 3].map(|n| format!("127.0.0.1:{n}"));
        let endpoints = [
            (at[0].as_str(), Health::Ready, 1),
            (at[1].as_str(), health, second),
            (at[2].as_str(), health, third),
        ];
        signals(held, &endpoints)
    };
    step(&mut pool, &target, &[all(0, Health::Ready, [1, 1])], 2_000);
    step(&mut pool, &target, &[all(0, Health::Ready, [0, 0])], 200_000);
    assert_eq!(pool.departures.draining.len(), 2);
    (pool, target, move |held, in_flight| all(held, Health::Draining, in_flight))
}

#[test]
fn a_draining_replica_is_stopped_once_nothing_is_in_flight_there() {
    let (mut pool, target, draining) = two_of_three_drain();
    step(&mut pool, &target, &[draining(0, [0, 1]), draining(0, [0, 0])], 200_100);
    assert_eq!(*target.stops.borrow(), ["p-2"], "the first gateway has a stream at the third");
    step(&mut pool, &target, &[draining(0, [0, 0]), draining(0, [0, 0])], 200_200);
    assert_eq!(*target.stops.borrow(), ["p-2", "p-3"]);
}

#[test]
fn of_idle_replicas_the_one_whose_cache_is_worth_least_is_drained_first() {
    for (cached, drained) in [([0, 10, 90_000], "p-2"), ([0, 90_000, 10], "p-3")] {
        let (mut pool, target) = (pool(), FakeTarget::default());
        let at: Vec<_> = (1..=3).map(|n| format!("127.0.0.1:{n}")).collect();
        let of = |held, in_flight: [u32; 3]| {
            let three = [0, 1, 2].map(|n| (at[n].as_str(), Health::Ready, in_flight[n]));
            let mut signals = signals(held, &three);
            for (at, cached) in at.iter().zip(cached) {
                let endpoint = signals.endpoints.get_mut(at).and_then(Option::as_mut);
                endpoint.expect("it is there").cached_tokens = cached;
            }
            signals
        };
        step(&mut pool, &target, &[signals(25, &[])], 1_000);
        step(&mut pool, &target, &[of(0, [11, 7, 7])], 2_000);
        step(&mut pool, &target, &[of(0, [11, 0, 0])], 100_000);
        let fewer = step(&mut pool, &target, &[of(0, [11, 0, 0])], 200_000);
        assert_eq!(fewer.decision.desired, 2, "{}", fewer.decision.sentence());
        assert_eq!(pool.departures.draining.iter().collect::<Vec<_>>(), [drained], "{cached:?}");
    }
}

#[test]
fn of_draining_replicas_the_one_that_the_target_would_stop_last_comes_back_first() {
    let (mut pool, target, draining) = two_of_three_drain();
    target.statuses.borrow_mut().get_mut("p-2").expect("there").rank = 1;
    let woken = step(&mut pool, &target, &[draining(11, [1, 1])], 200_100);
    assert_eq!(woken.decision.desired, 2);
    let draining: Vec<_> = pool.departures.draining.iter().collect();
    assert_eq!(draining, ["p-2"]);
}

#[test]
fn if_another_party_decides_the_count_every_replica_serves() {
    let mut pool = pool();
    let target = FakeTarget { drains: Some(Drains::All), ..FakeTarget::default() };
    target.ensure(3);
    let three: Vec<_> = (1..=3).map(|n| format!("127.0.0.1:{n}")).collect();
    let at = |held, health, in_flight| {
        let endpoints: Vec<_> = three.iter().map(|at| (at.as_str(), health, in_flight)).collect();
        signals(held, &endpoints)
    };
    step(&mut pool, &target, &[signals(0, &[])], 1_000);
    // A gateway that has just started finds them one by one. They were there before.
    let found = step(&mut pool, &target, &[at(0, Health::Ready, 0)], 2_000);
    assert_eq!(found.decision.desired, 3);
    let drained = |step: &Step| {
        step.replicas
            .replicas
            .values()
            .flatten()
            .filter(|replica| replica.state == ReplicaState::Draining)
            .count()
    };
    let fewer = step(&mut pool, &target, &[at(0, Health::Ready, 1)], 90_000);
    assert_eq!(drained(&fewer), 0, "the loop does not choose the replica to stop");
    let idle = step(&mut pool, &target, &[at(0, Health::Ready, 0)], 200_000);
    assert_eq!((idle.decision.desired, drained(&idle)), (0, 3));
    let woken = step(&mut pool, &target, &[at(1, Health::Draining, 0)], 201_000);
    assert_eq!((woken.decision.desired, drained(&woken)), (1, 0), "one request wakes all of them");
}

#[test]
fn a_replica_that_another_party_never_started_does_not_keep_the_pool_awake() {
    let mut pool = pool();
    let target = FakeTarget { drains: Some(Drains::All), ..FakeTarget::default() };
    step(&mut pool, &target, &[signals(35, &[])], 1_000);
    assert_eq!(target.statuses.borrow().len(), 4);
    // Of the four, the HPA made one: its own bounds or timing differ.
    target.statuses.borrow_mut().retain(|id, _| id == "p-1");
    let one = |in_flight| signals(0, &[(ONE, Health::Ready, in_flight)]);
    let fake = |target: &FakeTarget| FakeTarget {
        statuses: target.statuses.clone(),
        drains: Some(Drains::All),
        ..FakeTarget::default()
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
fn when_every_gateway_is_gone_nothing_is_drained() {
    let (mut pool, target) = (pool(), FakeTarget::default());
    step(&mut pool, &target, &[signals(1, &[])], 1_000);
    step(&mut pool, &target, &[signals(0, &[(ONE, Health::Ready, 1)])], 2_000);
    for now in [3_000, 400_000, 401_000] {
        let alone = step(&mut pool, &target, &[], now);
        assert_eq!((alone.decision.desired, alone.replicas.barrier), (1, None));
    }
    assert!(target.stops.borrow().is_empty());
}

#[test]
fn a_stopped_replica_that_the_target_spared_serves_again() {
    let (mut pool, target) = (pool(), FakeTarget::default());
    step(&mut pool, &target, &[signals(15, &[])], 1_000);
    let (a, b) = ("127.0.0.1:1", "127.0.0.1:2");
    let both = |health, x, y| signals(0, &[(a, Health::Ready, x), (b, health, y)]);
    step(&mut pool, &target, &[both(Health::Ready, 8, 7)], 2_000);
    for now in [3_000, 130_000, 130_050] {
        step(&mut pool, &target, &[both(Health::Draining, 3, 0)], now);
    }
    assert_eq!(*target.stops.borrow(), ["p-2"]);
    assert_eq!(target.ensured.get(), 1);
    // The workload's controller stopped the other one.
    target.statuses.borrow_mut().remove("p-1");
    target.statuses.borrow_mut().get_mut("p-2").expect("there").spared = true;
    let left = signals(0, &[(b, Health::Draining, 0)]);
    let kept = step(&mut pool, &target, &[left], 131_000);
    assert_eq!(*target.recalls.borrow(), ["p-2"]);
    let counts = (kept.decision.desired, target.ensured.get());
    assert_eq!(counts, (1, 1), "no other replica is requested");
    let state = kept.replicas.replicas["p-2"].as_ref().expect("there").state;
    assert_ne!(state, ReplicaState::Draining, "gateways use it again");
}

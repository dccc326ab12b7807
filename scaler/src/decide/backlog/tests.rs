use super::*;
use proptest::prelude::*;

/// A replica of at most two requests a second, 10 at once, a second to the first token.
fn curve() -> Curve {
    Curve {
        alone_seconds: 1.0,
        neighbour_seconds: 0.4,
        first_alone_seconds: 1.0,
        first_neighbour_seconds: 0.0,
        limit: 10.0,
        work: 1000.0,
        learned: true,
    }
}

fn steady(rate: f64, seconds: u64) -> Vec<(u64, f64)> {
    (0..seconds).rev().map(|ago| (ago, rate)).collect()
}

#[test]
fn a_steady_load_needs_as_many_as_serve_its_rate() {
    for (rate, want) in [(0.5, 1), (1.9, 1), (3.9, 2), (7.0, 4), (100.0, 20)] {
        let got = worth(&steady(rate, 600), 600.0, &curve(), 5.0, 0.01, 10.0, 20);
        assert_eq!(got, want, "{rate} a second");
    }
    assert_eq!(worth(&[], 600.0, &curve(), 5.0, 0.01, 10.0, 20), 0);
}

#[test]
fn a_rare_burst_is_not_worth_a_replica_all_the_time_and_a_frequent_one_is() {
    let bursts = |every: u64| -> Vec<_> {
        let at = |ago: u64| (ago, if ago % every < 10 { 6.0 } else { 0.5 });
        (0..1200).rev().map(at).collect()
    };
    let rare = worth(&bursts(600), 1200.0, &curve(), 2.0, 0.01, 10.0, 20);
    let frequent = worth(&bursts(60), 1200.0, &curve(), 2.0, 0.01, 10.0, 20);
    assert_eq!(rare, 1);
    assert!(frequent > rare, "{frequent}");
    let dear = worth(&bursts(600), 1200.0, &curve(), 2.0, 0.001, 100.0, 20);
    assert!(dear > rare, "a higher share buys more: {dear}");
}

#[test]
fn replicas_on_their_way_count_from_when_they_are_expected() {
    let fleet =
        |ready_in: &[f64]| Fleet { ready: 0, ready_in: ready_in.to_vec(), cold_seconds: 60.0 };
    let ask = |fleet: &Fleet| for_backlog(100.0, [1.0; 2], fleet, &curve(), 5.0, 10.0, 20);
    let (none, soon) = (ask(&fleet(&[])), ask(&fleet(&[10.0; 4])));
    assert_eq!(none, 5, "100 and 60 more, of which each takes 38 in time");
    assert!(soon <= 4, "the four that are starting are enough: {soon}");
    assert_eq!(for_backlog(0.0, [0.0; 2], &fleet(&[]), &curve(), 5.0, 10.0, 20), 0);
}

proptest! {
    #[test]
    fn counts_that_are_tried_at_once_do_not_touch_each_other(
        load in prop::collection::vec(0.0..30.0f64, 1..200), replicas in prop::array::uniform4(0..20u32),
    ) {
        let load: Vec<_> = (0..load.len() as u64).rev().zip(load).collect();
        let together = late_shares(&load, replicas, &curve(), 2.0);
        let alone = replicas.map(|replicas| late_share(&load, replicas, &curve(), 2.0));
        prop_assert_eq!(together, alone);
    }

    #[test]
    fn a_search_of_several_at_once_finds_what_one_by_one_does(
        least in 0..50u32, most in 0..5_000u32, enough in 0..6_000u32,
    ) {
        let one_by_one = fewest(least, most, |count| count >= enough);
        let at_once = fewest_at_once(least, most, |counts| counts.map(|count| count >= enough));
        prop_assert_eq!(at_once, one_by_one);
    }

    #[test] // The search for the fewest relies on this.
    fn more_replicas_are_never_later(
        load in prop::collection::vec(0.0..30.0f64, 1..200), replicas in 1..10u32,
    ) {
        let load: Vec<_> = (0..load.len() as u64).rev().zip(load).collect();
        let share = |replicas| late_share(&load, replicas, &curve(), 3.0);
        prop_assert!(share(replicas + 1) <= share(replicas) + 1e-9);
        prop_assert!((0.0..=1.0 + 1e-9).contains(&share(replicas)));
    }

    #[test]
    fn more_in_the_queue_or_coming_never_asks_for_fewer(
        queue in 0.0..500.0f64, rate in 0.0..20.0f64, more in 0.0..200.0f64,
        ready in 0..8u32, cold in 1.0..300.0f64,
    ) {
        let fleet = Fleet { ready, ready_in: vec![cold / 2.0], cold_seconds: cold };
        let ask = |queue, rate| for_backlog(queue, [rate; 2], &fleet, &curve(), 5.0, cold / 2.0, 50);
        prop_assert!(ask(queue, rate) <= ask(queue + more, rate));
        prop_assert!(ask(queue, rate) <= ask(queue, rate + more / 10.0));
    }
}

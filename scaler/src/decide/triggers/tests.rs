//! Each trigger, from figures to its proposal.

use forebay_config::{Behavior, MetricType, Pool, Prometheus, ScalingRules, Trigger as Written};
use forebay_signals::{PoolSignals, Totals};
use proptest::prelude::*;

use super::*;
use crate::decide::demand::by_triggers;
use crate::decide::load::{Freshness, GatewayProcess, Ledger};
use crate::decide::{Condition, Inputs, Override, Policy, ReplicaFacts, State, Why};

fn pool(triggers: Vec<Written>) -> Pool {
    let mut pool = Pool::named("a");
    pool.scaling.triggers = triggers;
    pool
}

fn one(kind: &str, settings: &[(&str, &str)]) -> Triggers {
    Triggers::of(&pool(vec![Written::of(kind, settings)]), &Prometheus::default())
}

fn prometheus(settings: &[(&str, &str)]) -> Triggers {
    let mut all = vec![("serverAddress", "http://p:9090"), ("query", "q"), ("threshold", "5")];
    all.extend_from_slice(settings);
    one("prometheus", &all)
}

fn load(held: u32, in_flight: u32) -> Load {
    Load { held, in_flight, ..Load::default() }
}

const STALE: Millis = Millis::from_secs(10);
const TWO: ReplicaCounts = ReplicaCounts { current: 2, ready: 2 };

fn at(value: Result<Option<f64>, &str>) -> Vec<Option<Reading>> {
    let value = value.map_err(str::to_owned);
    vec![Some(Reading { at: Millis::new(1_000_000), value, partial: None })]
}

fn propose(mut triggers: Triggers, load: &Load, readings: &[Option<Reading>]) -> Proposal {
    triggers.propose(load, readings, TWO, Millis::new(1_000_000)).remove(0)
}

#[test]
fn first_hand_figures_propose_by_their_own_metric_type() {
    for (case, kind, settings, held, in_flight, want) in [
        ("ten held, five for each", "queueDepth", &[("threshold", "5")][..], 10, 50, Some(2)),
        ("a tenth more is tolerated", "queueDepth", &[("threshold", "5")], 11, 50, Some(2)),
        ("more is not", "queueDepth", &[("threshold", "5")], 12, 50, Some(3)),
        ("held and in flight", "concurrency", &[("threshold", "20")], 11, 50, Some(4)),
        ("80 % of 128 by default", "concurrency", &[], 300, 6, Some(3)),
    ] {
        let proposal = propose(one(kind, settings), &load(held, in_flight), &[None]);
        assert_eq!(proposal.replicas(), want, "{case}: {proposal:?}");
        assert_eq!((proposal.kind, proposal.problem), (kind, None), "{case}");
    }
}

#[test]
fn a_trigger_is_active_above_its_activation_threshold_only() {
    for (held, activation, active) in
        [(0, "0", false), (1, "0", true), (2, "2", false), (3, "2", true)]
    {
        let settings = [("threshold", "5"), ("activationThreshold", activation)];
        let proposal = propose(one("queueDepth", &settings), &load(held, 0), &[None]);
        assert_eq!(proposal.active, active, "{held} held over {activation}");
    }
}

#[test]
fn what_cannot_be_read_is_unknown_and_never_zero() {
    for (case, value, unknown) in [
        ("a figure", Ok(Some(10.0)), None),
        ("zero is a figure", Ok(Some(0.0)), None),
        ("no series", Ok(None), Some("the result is empty")),
        ("not a number", Ok(Some(f64::NAN)), Some("the result is NaN")),
        ("infinite", Ok(Some(f64::INFINITY)), Some("the result is inf")),
        ("down", Err("connection refused"), Some("connection refused")),
    ] {
        let proposal = propose(prometheus(&[]), &load(0, 0), &at(value));
        let problem = unknown.map(|why| Problem::Unreadable(why.to_owned()));
        assert_eq!(proposal.problem, problem, "{case}");
        assert_eq!(proposal.needed.is_none(), unknown.is_some(), "{case}: {proposal:?}");
        assert!(!(proposal.active && unknown.is_some()), "{case}: unknown is not active");
    }
    let proposal = propose(prometheus(&[]), &load(0, 0), &[None]);
    assert_eq!(proposal.problem, Some(Problem::Unreadable("not read yet".to_owned())));
}

#[test]
fn an_impossible_figure_is_unknown_and_never_a_maximum_nor_zero() {
    let gpu = |kind| one(kind, &[("serverAddress", "http://p:1"), ("threshold", "80")]);
    let null_is_zero =
        one("gpuUtilization", &[("serverAddress", "http://p:1"), ("ignoreNullValues", "true")]);
    for (triggers, value, why) in [
        (gpu("gpuUtilization"), 808_334_905.0, "808334905 %, and can only be 0 to 100 %"),
        (null_is_zero, 808_334_905.0, "808334905 %, and can only be 0 to 100 %"),
        (gpu("gpuMemoryUsed"), -1.0, "-1 %, and can only be 0 to 100 %"),
        (gpu("gpuPower"), 2_147_483_632.0, "2147483632 W, and can only be 0 to 10000 W"),
        (one("kvCache", &[]), 37.0, "37, and can only be 0 to 1"),
        (
            prometheus(&[]),
            18_446_744_073_709_551_615.0,
            "18446744073709552000, and can only be -9007199254740992 to 9007199254740992",
        ),
    ] {
        let proposal = propose(triggers, &load(0, 0), &at(Ok(Some(value))));
        assert_eq!((proposal.figure, proposal.needed), (None, None), "{proposal:?}");
        let why = format!("the result is {why}");
        assert_eq!(proposal.problem, Some(Problem::Unreadable(why)));
        assert!(!proposal.active);
    }
}

#[test]
fn null_is_zero_only_if_the_trigger_itself_says_so() {
    for (settings, zero) in [
        (&[("ignoreNullValues", "true")][..], true),
        (&[("ignoreNullValues", "false")], false),
        (&[], false),
    ] {
        for value in [Ok(None), Ok(Some(f64::NAN)), Ok(Some(f64::NEG_INFINITY))] {
            let proposal = propose(prometheus(settings), &load(0, 0), &at(value));
            assert_eq!(proposal.figure == Some(0.0), zero, "{settings:?}, {value:?}");
            assert_eq!(proposal.replicas() == Some(0), zero, "{settings:?}, {value:?}");
        }
        let down = propose(prometheus(settings), &load(0, 0), &at(Err("down")));
        assert!(down.unreadable(), "a server that is down is not an empty result");
    }
}

#[test]
fn a_reading_counts_until_it_is_three_intervals_old() {
    let mut triggers = prometheus(&[]);
    // Three times 5 s, plus the 3 s that a query may take.
    for (age_ms, known) in [(0, true), (18_000, true), (18_001, false), (3_600_000, false)] {
        let now = 1_000_000 + age_ms;
        let proposal =
            triggers.propose(&load(0, 0), &at(Ok(Some(7.0))), TWO, Millis::new(now)).remove(0);
        assert_eq!(proposal.replicas(), known.then_some(2), "{age_ms} ms");
        assert_eq!(proposal.age, Some(Millis::new(age_ms)));
    }
}

#[test]
fn a_share_of_the_ready_proposes_nothing_at_zero_ready() {
    let none = ReplicaCounts { current: 2, ready: 0 };
    for (mut triggers, readings) in [
        (one("kvCache", &[]), at(Err("no replica to ask"))),
        (one("gpuUtilization", &[("serverAddress", "http://p:1")]), at(Ok(Some(95.0)))),
    ] {
        let proposal =
            triggers.propose(&load(0, 0), &readings, none, Millis::new(1_000_000)).remove(0);
        assert_eq!((proposal.needed, proposal.problem), (None, None));
    }
    let busy = propose(one("kvCache", &[("threshold", "0.5")]), &load(0, 0), &at(Ok(Some(0.9))));
    assert_eq!(busy.replicas(), Some(4));
}

#[test]
fn what_is_read_in_part_may_scale_up_and_forbids_scaling_down() {
    let mut readings = at(Ok(Some(0.9)));
    readings[0].as_mut().expect("one").partial = Some("1 of 2 replicas can't be read".into());
    let proposal = propose(one("kvCache", &[("threshold", "0.5")]), &load(0, 0), &readings);
    assert_eq!((proposal.replicas(), proposal.unreadable()), (Some(4), true));
}

#[test]
fn a_trigger_that_can_not_be_read_forbids_scaling_down_and_is_the_reason() {
    let query = |name: &str| {
        let settings = [("serverAddress", "http://p:1"), ("query", "q"), ("threshold", "1")];
        Written { name: Some(name.to_owned()), ..Written::of("prometheus", &settings) }
    };
    let ready =
        ReplicaFacts { condition: Condition::Ready, ..ReplicaFacts::requested(Millis::ZERO) };
    for others in [vec![], vec![query("other")]] {
        let mut pool = pool([vec![query("lost")], others].concat());
        pool.scaling.max_replica_count = 10;
        let mut triggers = Triggers::of(&pool, &Prometheus::default());
        let (policy, mut state) = (Policy::of(&pool), State::default());
        let mut decide = |lost, other, in_flight, now| {
            let load = load(0, in_flight);
            let mut readings = [at(lost), at(Ok(Some(other)))].concat();
            readings.iter_mut().flatten().for_each(|reading| reading.at = now);
            readings.truncate(pool.scaling.triggers.len());
            let replicas = vec![ready; state.desired as usize];
            let current = ReplicaCounts { current: state.desired, ready: state.desired };
            let proposals = triggers.propose(&load, &readings, current, now);
            let inputs = Inputs {
                load: &load,
                replicas: &replicas,
                proposals: &proposals,
                operator_override: Override::None,
            };
            crate::decide::decide(&mut state, &inputs, &policy, now)
        };
        let seconds = Millis::from_secs;
        assert_eq!(decide(Ok(Some(4.0)), 4.0, 1, seconds(1_000)).desired, 4);
        // Long after the cooldown, and the other trigger asks for nothing.
        let unread = decide(Err("refused"), 0.0, 0, seconds(9_000));
        assert_eq!((unread.desired, unread.why), (4, Why::Unread { name: "lost".to_owned() }));
        decide(Ok(Some(0.0)), 0.0, 0, seconds(9_005));
        assert_eq!(decide(Ok(Some(0.0)), 0.0, 0, seconds(9_600)).desired, 0);
    }
}

#[test]
fn a_trigger_without_a_server_is_ignored_and_reported() {
    let written = vec![
        Written::of("prometheus", &[("query", "q"), ("threshold", "5")]),
        Written::of("gpuUtilization", &[]),
        Written::of("queueDepth", &[("threshold", "5")]),
    ];
    let mut triggers = Triggers::of(&pool(written.clone()), &Prometheus::default());
    let proposals = triggers.propose(&load(9, 0), &[None, None, None], TWO, Millis::new(1));
    let counts: Vec<_> = proposals.iter().map(Proposal::counts).collect();
    assert_eq!(counts, [false, false, true], "{proposals:?}");
    let common = Prometheus { server_address: Some("http://p:1/".into()), ..Prometheus::default() };
    let wanted = Triggers::of(&pool(written), &common).wanted();
    let servers: Vec<_> = wanted
        .iter()
        .map(|wanted| match wanted {
            Some(Wanted::Query(query)) => query.server_address.clone(),
            _ => None,
        })
        .collect();
    assert_eq!(servers, [Some("http://p:1".to_owned()), Some("http://p:1".to_owned()), None]);
}

#[test]
fn credentials_are_for_their_own_server_alone() {
    let common = Prometheus {
        server_address: Some("http://p:1".into()),
        bearer_token_file: Some("/token".into()),
        ..Prometheus::default()
    };
    let written = |server: &str| {
        Written::of("prometheus", &[("query", "q"), ("threshold", "5"), ("serverAddress", server)])
    };
    let triggers =
        Triggers::of(&pool(vec![written("http://p:1/"), written("http://q:1")]), &common);
    let sent: Vec<_> = triggers
        .wanted()
        .into_iter()
        .map(|wanted| match wanted {
            Some(Wanted::Query(query)) => query.bearer_token_file.is_some(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(sent, [true, false]);
}

#[test]
fn a_latency_is_that_of_the_window_without_cold_starts() {
    let mut triggers = one("ttft", &[("threshold", "500ms"), ("window", "30s")]);
    let (mut ledger, mut signals) = (Ledger::default(), PoolSignals::default());
    let mut step = |signals: &PoolSignals, now: u64| {
        let process = GatewayProcess { sender: "a", began: None };
        ledger.record(0, process, signals, Millis::new(now));
        triggers
            .propose(&ledger.load([(0, Freshness::Live)], STALE), &[None], TWO, Millis::new(now))
            .remove(0)
    };
    assert_eq!(step(&signals, 1_000).needed, None, "no request");
    signals.in_flight = 1;
    assert!(step(&signals, 2_000).unreadable(), "a request waits, and none was measured");
    // Sixty seconds of cold start, and less than a second besides.
    signals.ttft.record_n(61.0, 20);
    signals.warm_ttft.record_n(0.8, 20);
    let slow = step(&signals, 3_000);
    assert_eq!(slow.replicas(), Some(4), "{slow:?}");
    signals.in_flight = 0;
    assert_eq!(step(&signals, 4_000).replicas(), Some(4), "still within the window");
    (5..40).for_each(|second| drop(step(&signals, second * 1_000)));
    let past = step(&signals, 40_000);
    assert_eq!((past.needed, past.problem), (None, None), "past");
}

#[test]
fn counts_from_before_the_scaler_started_belong_to_no_window() {
    let mut triggers = one("ttft", &[("threshold", "500ms")]);
    let mut ledger = Ledger::default();
    let silent = ledger.load([(0, Freshness::Silent(Millis::new(100)))], STALE);
    assert!(triggers.propose(&silent, &[None], TWO, Millis::new(1_000)).remove(0).unreadable());
    let mut signals = PoolSignals { in_flight: 1, ..PoolSignals::default() };
    signals.warm_ttft.record_n(100.0, 1000);
    let process = GatewayProcess { sender: "a", began: Some(Millis::new(2_000)) };
    ledger.record(0, process, &signals, Millis::new(2_000));
    let heard = ledger.load([(0, Freshness::Live)], STALE);
    let proposal = triggers.propose(&heard, &[None], TWO, Millis::new(2_000)).remove(0);
    assert_eq!((proposal.figure, proposal.unreadable()), (None, true), "{proposal:?}");
}

#[test]
fn tokens_per_second_are_counted_over_the_window() {
    let mut triggers = one("tokensPerSecond", &[("threshold", "100"), ("window", "10s")]);
    let at = |generated_tokens| Load {
        totals: Totals { generated_tokens, ..Totals::default() },
        ..Load::default()
    };
    assert!(triggers.propose(&at(0), &[None], TWO, Millis::new(0)).remove(0).unreadable());
    let proposal = triggers.propose(&at(2500), &[None], TWO, Millis::new(5_000)).remove(0);
    assert_eq!((proposal.figure, proposal.replicas()), (Some(500.0), Some(5)));
}

#[test]
fn a_schedule_proposes_its_count_in_its_hours_and_one_replica_outside() {
    let settings = [
        ("timezone", "UTC"),
        ("start", "0 8 * * *"),
        ("end", "0 10 * * *"),
        ("desiredReplicas", "11"),
    ];
    let mut triggers = one("cron", &settings);
    // 11 is within the tolerance of ten; the tolerance applies to figures only.
    let ten = ReplicaCounts { current: 10, ready: 10 };
    let day = 20_000 * 86_400_000;
    for (hour, needed, active) in [(7, 1.0, false), (8, 11.0, true), (10, 1.0, false)] {
        let proposal = triggers
            .propose(&load(0, 0), &[None], ten, Millis::new(day + hour * 3_600_000))
            .remove(0);
        assert_eq!((proposal.needed, proposal.active), (Some(needed), active), "{hour}:00");
    }
}

/// The count that a decision takes from one trigger, given a query's result.
fn decided(
    metric_type: MetricType,
    tolerance: Tolerance,
    threshold: f64,
    value: f64,
    replicas: ReplicaCounts,
) -> u32 {
    let threshold = threshold.to_string();
    let settings = [("serverAddress", "http://p:1"), ("query", "q"), ("threshold", &threshold)];
    let written =
        Written { metric_type: Some(metric_type), ..Written::of("prometheus", &settings) };
    let rules = |tolerance| Some(ScalingRules { tolerance: Some(tolerance), ..Default::default() });
    let mut pool = pool(vec![written]);
    pool.scaling.behavior =
        Some(Behavior { scale_up: rules(tolerance.up), scale_down: rules(tolerance.down) });
    let load = load(0, 0);
    let mut triggers = Triggers::of(&pool, &Prometheus::default());
    let proposals = triggers.propose(&load, &at(Ok(Some(value))), replicas, Millis::new(1_000_000));
    let inputs = Inputs {
        load: &load,
        replicas: &[],
        proposals: &proposals,
        operator_override: Override::None,
    };
    let all: Vec<_> = proposals.iter().collect();
    by_triggers(&all, &inputs, replicas.current, &Policy::of(&pool)).up
}

#[test]
fn the_tolerance_is_applied_once_and_to_the_value_alone() {
    let replicas = ReplicaCounts { current: 20, ready: 18 };
    let tenth = Tolerance::default();
    for (case, value, want) in [
        ("1.2 × 18 is 21.6, within a tenth of 20", 1.2, 22),
        ("0.85 × 18 is 15.3", 0.85, 16),
        ("1.1 is tolerated, though 1.1 × 18 would be 19.8", 1.1, 20),
    ] {
        assert_eq!(decided(MetricType::Value, tenth, 1.0, value, replicas), want, "{case}");
    }
}

proptest! {
    #[test]
    fn a_count_is_the_one_that_an_hpa_computes(
        (current, ready) in (1..500_u32).prop_flat_map(|all| (Just(all), 1..=all)),
        target in 1..100_000_i64, usage in 0..10_000_000_i64, near in 500..1_500_i64,
        close: bool, average: bool, up in 0..4_u32, down in 0..4_u32,
    ) {
        // Most figures are far from their thresholds; the interesting cases are close to them.
        let whole = if average { target * i64::from(current) } else { target };
        let usage = if close { whole * near / 1000 } else { usage };
        let tolerance = Tolerance { up: f64::from(up) / 20.0, down: f64::from(down) / 20.0 };
        prop_assume!(!hpa::is_a_hair_off(current, target, usage, tolerance, ready));
        let (metric_type, want) = if average {
            (MetricType::AverageValue, hpa::average_value(current, target, usage, tolerance))
        } else {
            (MetricType::Value, hpa::value(current, target, usage, tolerance, ready))
        };
        let (threshold, value) = (target as f64 / 1000.0, usage as f64 / 1000.0);
        let replicas = ReplicaCounts { current, ready };
        let got = decided(metric_type, tolerance, threshold, value, replicas);
        prop_assert_eq!(i64::from(got), i64::from(want), "{} of {}", value, threshold);
    }

    #[test]
    fn more_held_never_asks_for_fewer(held in 0..100_000_u32, more in 0..1000_u32) {
        let at = |held| propose(one("queueDepth", &[("threshold", "7")]), &load(held, 0), &[None]);
        prop_assert!(at(held).replicas() <= at(held + more).replicas());
    }

    #[test]
    fn any_result_makes_a_count_or_is_unknown(value: f64, ignore: bool) {
        let ignore = [("ignoreNullValues", if ignore { "true" } else { "false" })];
        let proposal = propose(prometheus(&ignore), &load(0, 0), &at(Ok(Some(value))));
        prop_assert_eq!(proposal.needed.is_some(), proposal.problem.is_none());
        prop_assert!(proposal.needed.is_none_or(|needed| needed < 1e16), "{proposal:?}");
    }
}

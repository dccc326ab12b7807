use super::*;
use forebay_signals::Totals;

/// A replica whose requests take `alone` seconds, plus `neighbour` for each request at once.
struct ModelReplica {
    alone: f64,
    neighbour: f64,
    totals: Totals,
    left: f64,
}

impl ModelReplica {
    fn new(alone: f64, neighbour: f64) -> Self {
        Self { alone, neighbour, totals: Totals::default(), left: 0.0 }
    }

    /// One second at `concurrency`; each request has 800 prompt tokens and 50 answer tokens.
    fn second(&mut self, concurrency: u32) -> Load {
        let c = f64::from(concurrency);
        self.left += c / (self.alone + self.neighbour * c);
        let done = self.left.floor() as u64;
        self.left -= done as f64;
        self.totals.accepted += done;
        self.totals.completed += done;
        self.totals.accepted_prompt_tokens += 800 * done;
        self.totals.prompt_tokens += 800 * done;
        self.totals.generated_tokens += 50 * done;
        Load { in_flight: concurrency, totals: self.totals, ..Load::default() }
    }
}

fn served(replica: &mut ModelReplica, steps: &[(u64, u32)]) -> Capacity {
    let (mut capacity, mut now) = (Capacity::default(), 1_000_000);
    for (seconds, concurrency) in steps {
        for _ in 0..*seconds {
            now += 1000;
            capacity.observe(&replica.second(*concurrency), 1, None, Millis::new(now));
        }
    }
    capacity
}

#[test]
fn throughput_is_known_at_concurrencies_that_were_not_seen() {
    for (case, alone, neighbour) in
        [("long answers", 4.0, 0.15), ("long prompts", 0.5, 0.25), ("fast", 0.2, 0.01)]
    {
        let mut replica = ModelReplica::new(alone, neighbour);
        let capacity = served(&mut replica, &[(120, 2), (120, 6), (120, 12)]);
        let curve = capacity.curve(32);
        for concurrency in [1.0, 8.0, 24.0, 32.0] {
            let truth = concurrency / (alone + neighbour * concurrency);
            let got = curve.rate(concurrency);
            assert!(
                (got / truth - 1.0).abs() < 0.15,
                "{case} at {concurrency}: {got}, not {truth}"
            );
        }
        assert!(curve.learned);
        assert!((curve.work - 1000.0).abs() < 30.0, "800 + 4 × 50: {}", curve.work);
    }
}

#[test]
fn the_warm_up_of_a_replica_is_left_out() {
    let mut capacity = Capacity::default();
    let mut slow = ModelReplica::new(20.0, 1.0);
    for second in 0..10 {
        capacity.observe(
            &slow.second(8),
            1,
            Some(Millis::new(1_000_000)),
            Millis::new(1_000_000 + second * 1000),
        );
    }
    assert!(!capacity.curve(32).learned);
}

#[test]
fn a_count_that_falls_every_few_seconds_does_not_keep_it_from_learning() {
    let (mut capacity, mut totals) = (Capacity::default(), Totals::default());
    let mut ready = 5;
    for second in 1..20 {
        // Of eight requests at once, two end each second at each replica.
        totals.completed += 2 * u64::from(ready);
        totals.prompt_tokens += 1600 * u64::from(ready);
        totals.generated_tokens += 100 * u64::from(ready);
        ready = 5 - (second / 4) as u32;
        let load = Load { in_flight: 8 * ready, totals, ..Load::default() };
        capacity.observe(&load, ready, None, Millis::new(1_000_000 + second * 1000));
    }
    let curve = capacity.curve(8);
    assert!(curve.learned);
    assert!((curve.full_rate() / 2.0 - 1.0).abs() < 0.1, "{curve:?}");
}

#[test]
fn what_caches_hold_is_no_work() {
    let capacity = |cached: u64| {
        let mut replica = ModelReplica::new(1.0, 0.1);
        let mut capacity = Capacity::default();
        for second in 0..60 {
            let mut load = replica.second(4);
            load.totals.cached_tokens = load.totals.prompt_tokens * cached / 100;
            capacity.observe(&load, 1, None, Millis::new(1_000_000 + second * 1000));
        }
        capacity
    };
    let (cold, warm) = (capacity(0), capacity(75));
    assert!(
        warm.mean_work() < cold.mean_work() - 500.0,
        "800 tokens of prompt, 600 of them cached"
    );
    let rates = [cold.curve(32).full_rate(), warm.curve(32).full_rate()];
    assert!((rates[0] / rates[1] - 1.0).abs() < 0.05, "as many requests a second: {rates:?}");
}

#[test]
fn silence_teaches_nothing() {
    let mut capacity = Capacity::default();
    let mut replica = ModelReplica::new(1.0, 0.1);
    for second in 0..120 {
        let load = Load { missing: true, ..replica.second(8) };
        capacity.observe(&load, 1, None, Millis::new(1_000_000 + second * 1000));
    }
    assert!(!capacity.curve(32).learned);
}

#[test]
fn before_any_measurement_there_is_a_sane_guess_and_few_measurements_move_it_little() {
    let supposed = Capacity::default().curve(64);
    assert!((1.0..10.0).contains(&supposed.full_rate()), "{supposed:?}");
    let mut replica = ModelReplica::new(1.0, 0.001);
    let curve = served(&mut replica, &[(120, 1)]).curve(64);
    let seen = 1.0 / 1.001;
    assert!(curve.full_rate() <= BELIEVED * seen * 1.1, "{}", curve.full_rate());
    assert!(curve.full_rate() >= seen * 0.9);
}

#[test]
fn longer_requests_count_for_more() {
    let mut replica = ModelReplica::new(1.0, 0.1);
    let capacity = served(&mut replica, &[(60, 4)]);
    assert!((capacity.in_requests(1.0, 800.0) - 1.0).abs() < 0.05);
    assert!((capacity.in_requests(1.0, 4800.0) - 5.0).abs() < 0.2);
}

//! The last hour of a pool, as a point for every ten seconds.
//!
//! A point is the difference of two readings of counters and histograms that only grow, so it needs no
//! reading in between. The live figures are the difference to the beginning of the slot before.

use std::collections::VecDeque;

use forebay_config::Millis;
use forebay_signals::{Histogram, Totals};
use serde::Serialize;

use super::overview::{Rates, StateCounts};
use crate::decide::Load;

/// The span of one point.
pub(crate) const SLOT: Millis = Millis::from_secs(10);
/// Points to keep: an hour.
const POINTS: usize = 360;

/// One point of the history.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Point {
    /// The number of its slot since the epoch.
    slot: u64,
    /// The most requests held, and in flight, at any step of the slot.
    held: u32,
    in_flight: u32,
    rates: Rates,
    /// At the end of the slot.
    desired: u32,
    replicas: StateCounts,
}

/// One pool at one step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StepSample<'a> {
    pub(crate) load: &'a Load,
    pub(crate) desired: u32,
    pub(crate) replicas: StateCounts,
}

/// The readings at one time.
#[derive(Clone, Debug)]
struct CounterReading {
    at: Millis,
    totals: Totals,
    ttft: Histogram,
    itl: Histogram,
}

/// The last hour of a pool.
#[derive(Clone, Debug, Default)]
pub(crate) struct PoolHistory {
    points: VecDeque<Point>,
    slot: u64,
    held: u32,
    in_flight: u32,
    /// At the beginning of this slot.
    base: Option<CounterReading>,
    /// At the beginning of the slot before.
    before: Option<CounterReading>,
}

/// Points as columns, one value each, oldest first.
#[derive(Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Columns {
    /// The end of each point's span, in milliseconds since the epoch.
    at_millis: Vec<u64>,
    #[serde(flatten)]
    requests: RequestColumns,
    #[serde(flatten)]
    latencies: LatencyColumns,
    #[serde(flatten)]
    replicas: ReplicaColumns,
}

#[derive(Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct RequestColumns {
    held: Vec<u32>,
    in_flight: Vec<u32>,
    arrivals: Vec<f32>,
    failures: Vec<f32>,
    tokens: Vec<f32>,
    hit_share: Vec<Option<f32>>,
}

#[derive(Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct LatencyColumns {
    ttft_p50: Vec<Option<f32>>,
    ttft_p95: Vec<Option<f32>>,
    itl_p50: Vec<Option<f32>>,
    itl_p95: Vec<Option<f32>>,
}

#[derive(Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct ReplicaColumns {
    desired: Vec<u32>,
    pending: Vec<u32>,
    starting: Vec<u32>,
    ready: Vec<u32>,
    draining: Vec<u32>,
    failed: Vec<u32>,
}

impl Columns {
    fn push(&mut self, point: &Point) {
        let Point { slot, held, in_flight, rates, desired, replicas: states } = *point;
        let Self { at_millis, requests, latencies, replicas } = self;
        at_millis.push((slot + 1) * SLOT.get());
        requests.held.push(held);
        requests.in_flight.push(in_flight);
        requests.arrivals.push(rates.arrivals);
        requests.failures.push(rates.failures);
        requests.tokens.push(rates.tokens);
        requests.hit_share.push(rates.hit_share);
        latencies.ttft_p50.push(rates.ttft_p50);
        latencies.ttft_p95.push(rates.ttft_p95);
        latencies.itl_p50.push(rates.itl_p50);
        latencies.itl_p95.push(rates.itl_p95);
        replicas.desired.push(desired);
        replicas.pending.push(states.pending);
        replicas.starting.push(states.starting);
        replicas.ready.push(states.ready);
        replicas.draining.push(states.draining);
        replicas.failed.push(states.failed);
    }
}

impl CounterReading {
    fn of(load: &Load, at: Millis) -> Self {
        let latencies = &load.latencies;
        Self { at, totals: load.totals, ttft: latencies.ttft.clone(), itl: latencies.itl.clone() }
    }

    /// The rates between this reading and `load`, read at `now`.
    fn rates(&self, load: &Load, now: Millis) -> Rates {
        let seconds = now.since(self.at).as_secs_f64().max(0.001);
        let totals = load.totals.since(&self.totals);
        let per_second = |count: u64| rounded(count as f64 / seconds);
        let ttft = load.latencies.ttft.since(&self.ttft);
        let itl = load.latencies.itl.since(&self.itl);
        let quantile = |histogram: &Histogram, q| histogram.quantile(q).map(rounded);
        let hit = || rounded(totals.cached_tokens as f64 / totals.prompt_tokens as f64);
        Rates {
            arrivals: per_second(totals.accepted),
            failures: per_second(totals.failed + totals.refused),
            tokens: per_second(totals.generated_tokens),
            ttft_p50: quantile(&ttft, 0.5),
            ttft_p95: quantile(&ttft, 0.95),
            itl_p50: quantile(&itl, 0.5),
            itl_p95: quantile(&itl, 0.95),
            hit_share: (totals.prompt_tokens > 0).then(hit),
        }
    }
}

impl PoolHistory {
    /// Records a step. Steps come at least once in ten seconds while this scaler decides.
    pub(crate) fn record(&mut self, sample: StepSample<'_>, now: Millis) {
        let load = sample.load;
        let slot = now.get() / SLOT.get();
        match &self.base {
            None => (self.slot, self.base) = (slot, Some(CounterReading::of(load, now))),
            Some(base) if slot > self.slot => {
                if self.points.len() == POINTS {
                    self.points.pop_front();
                }
                self.points.push_back(Point {
                    slot: self.slot,
                    held: self.held,
                    in_flight: self.in_flight,
                    rates: base.rates(load, now),
                    desired: sample.desired,
                    replicas: sample.replicas,
                });
                self.before = self.base.replace(CounterReading::of(load, now));
                (self.slot, self.held, self.in_flight) = (slot, 0, 0);
            }
            Some(_) => {}
        }
        self.held = self.held.max(load.held);
        self.in_flight = self.in_flight.max(load.in_flight);
    }

    /// Ends the series of readings: the next one is where it begins anew.
    pub(crate) fn pause(&mut self) {
        *self = Self { points: std::mem::take(&mut self.points), ..Self::default() };
    }

    /// The rates of the last 10 to 20 seconds.
    pub(crate) fn rates(&self, load: &Load, now: Millis) -> Rates {
        let since = self.before.as_ref().or(self.base.as_ref());
        since.map(|since| since.rates(load, now)).unwrap_or_default()
    }

    /// All points.
    pub(crate) fn columns(&self) -> Columns {
        let mut columns = Columns::default();
        self.points.iter().for_each(|point| columns.push(point));
        columns
    }
}

/// Three digits, which is what a person reads.
pub(crate) fn rounded(value: f64) -> f32 {
    if value == 0.0 || !value.is_finite() {
        return 0.0;
    }
    let digits = 2 - value.abs().log10().floor() as i32;
    let factor = 10f64.powi(digits);
    ((value * factor).round() / factor) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(held: u32, accepted: u64) -> Load {
        let totals = Totals {
            accepted,
            prompt_tokens: accepted * 100,
            cached_tokens: accepted * 25,
            generated_tokens: accepted * 10,
            ..Totals::default()
        };
        Load { held, in_flight: 1, totals, ..Load::default() }
    }

    fn at(seconds: u64) -> Millis {
        Millis::from_secs(1_000_000 + seconds)
    }

    fn sample(load: &Load) -> StepSample<'_> {
        let replicas = StateCounts { ready: 2, ..StateCounts::default() };
        StepSample { load, desired: 2, replicas }
    }

    #[test]
    fn a_point_has_the_highest_queue_and_the_rates_of_its_slot() {
        let mut history = PoolHistory::default();
        for (second, held, accepted) in [(0, 0, 0), (3, 7, 10), (6, 1, 15), (10, 0, 20)] {
            let mut load = load(held, accepted);
            (0..accepted).for_each(|_| load.latencies.ttft.record(0.5));
            history.record(sample(&load), at(second));
        }
        let Columns { at_millis, requests, latencies, replicas } = history.columns();
        assert_eq!(at_millis, [1_000_010_000]);
        assert_eq!((&requests.held[..], &requests.arrivals[..]), (&[7][..], &[2.0][..]));
        assert_eq!((requests.tokens[0], requests.hit_share[0]), (20.0, Some(0.25)));
        let p50 = latencies.ttft_p50[0].expect("20 first tokens");
        assert!((0.4..0.6).contains(&p50), "{p50}");
        assert_eq!((latencies.itl_p50[0], replicas.desired[0], replicas.ready[0]), (None, 2, 2));
    }

    #[test]
    fn live_rates_cover_the_slot_before_and_this_one() {
        let mut history = PoolHistory::default();
        assert_eq!(history.rates(&load(0, 5), at(0)), Rates::default());
        history.record(sample(&load(0, 0)), at(0));
        history.record(sample(&load(0, 100)), at(10));
        assert_eq!(history.rates(&load(0, 150), at(15)).arrivals, 10.0);
        history.record(sample(&load(0, 200)), at(20));
        assert_eq!(history.rates(&load(0, 200), at(25)).arrivals, 6.67, "since second 10");
    }

    #[test]
    fn an_hour_is_kept_and_no_more() {
        let mut history = PoolHistory::default();
        for slot in 0..1000 {
            history.record(sample(&load(0, slot)), at(slot * 10));
        }
        let columns = history.columns();
        assert_eq!(columns.at_millis.len(), POINTS);
        let span = columns.at_millis[POINTS - 1] - columns.at_millis[0];
        assert_eq!(span, (POINTS as u64 - 1) * SLOT.get());
        assert_eq!(*columns.at_millis.last().expect("some"), at(9_990).get());
    }

    #[test]
    fn figures_have_three_digits() {
        for (value, want) in
            [(0.0, 0.0), (0.012_345, 0.0123), (12.345, 12.3), (98_765.0, 98_800.0), (-1.239, -1.24)]
        {
            assert_eq!(rounded(value), want, "{value}");
        }
    }
}

//! One pool's load over all gateways: sums, never averages of averages.
//!
//! A gauge is the sum of the gateways' last reports. The last report of a silent gateway counts in full
//! for a while, then fades, but never to zero: the gateway may still serve. A counter is the sum of the
//! increments between two reports of the same process, so it never shrinks when a gateway restarts or
//! leaves.

use std::collections::BTreeMap;

use forebay_config::Millis;
use forebay_signals::{Histogram, PoolSignals, Totals, estimated_tokens};

/// The load of all gateways together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Load {
    /// Requests held, and those refused since the last second began because a cold start takes too
    /// long: `PoolSignals::queue_depth`.
    pub held: u32,
    /// Requests at replicas.
    pub in_flight: u32,
    /// Estimated prompt and answer tokens of held requests.
    pub held_tokens: u64,
    /// Estimated prompt tokens of held requests.
    pub held_prompt_tokens: u64,
    /// Estimated prompt and answer tokens of requests at replicas.
    pub in_flight_tokens: u64,
    /// The wait of the request that has been held longest.
    pub oldest_hold_seconds: f64,
    /// The most requests at a replica, as the gateways have learned; 0 if none has.
    pub learned_limit: f64,
    /// Counters that only grow, also across restarts of gateways.
    pub totals: Totals,
    /// Latencies since the beginning. They only grow too.
    pub latencies: Latencies,
    /// A listed gateway has been silent for less than that: the load may be more than this.
    pub missing: bool,
    /// A listed gateway has been silent for `stale_after` or longer: its last report counts, but fades.
    pub stale: bool,
}

/// Latencies, as cumulative histograms.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Latencies {
    /// Accepted → first token passed on.
    pub ttft: Histogram,
    /// The same, without the time held while no endpoint was ready.
    pub warm_ttft: Histogram,
    /// Released → first token passed on.
    pub upstream_ttft: Histogram,
    /// Gaps between tokens.
    pub itl: Histogram,
}

/// The state of a gateway's feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// It is connected.
    Live,
    /// It has been silent for this long: since its connection was lost, or since it was listed if it was
    /// never connected.
    Silent(Millis),
}

/// The last report of each gateway about one pool.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    gateways: BTreeMap<usize, GatewayLoad>,
    totals: Totals,
    latencies: Latencies,
}

#[derive(Clone, Debug)]
struct GatewayLoad {
    sender: String,
    held: u32,
    in_flight: u32,
    held_tokens: u64,
    held_prompt_tokens: u64,
    in_flight_tokens: u64,
    oldest_hold_seconds: f64,
    learned_limit: f64,
    totals: Totals,
    latencies: Box<Latencies>,
}

/// The mean of the limits that a gateway has learned of a pool's endpoints; 0 if there is none.
fn learned_limit(signals: &PoolSignals) -> f64 {
    let endpoints = signals.endpoints.values().flatten();
    let learned = endpoints.filter(|endpoint| endpoint.limited_by.is_learned());
    let (sum, count) = learned
        .fold((0.0, 0.0), |(sum, count), endpoint| (sum + f64::from(endpoint.limit), count + 1.0));
    if count > 0.0 { sum / count } else { 0.0 }
}

impl Latencies {
    fn of(signals: &PoolSignals) -> Self {
        Self {
            ttft: signals.ttft.clone(),
            warm_ttft: signals.warm_ttft.clone(),
            upstream_ttft: signals.upstream_ttft.clone(),
            itl: signals.itl.clone(),
        }
    }

    /// The latencies counted since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            ttft: self.ttft.since(&earlier.ttft),
            warm_ttft: self.warm_ttft.since(&earlier.warm_ttft),
            upstream_ttft: self.upstream_ttft.since(&earlier.upstream_ttft),
            itl: self.itl.since(&earlier.itl),
        }
    }

    fn merge(&mut self, other: &Self) {
        self.ttft.merge(&other.ttft);
        self.warm_ttft.merge(&other.warm_ttft);
        self.upstream_ttft.merge(&other.upstream_ttft);
        self.itl.merge(&other.itl);
    }
}

impl Ledger {
    /// Records one gateway's report about the pool. `sender` is random per process start: a new one
    /// counts from zero.
    pub fn record(&mut self, gateway: usize, sender: &str, signals: &PoolSignals) {
        let latencies = Latencies::of(signals);
        let before = self.gateways.get(&gateway).filter(|last| last.sender == sender);
        match before {
            Some(last) => {
                self.totals.merge(&signals.totals.since(&last.totals));
                if last.latencies.as_ref() != &latencies {
                    self.latencies.merge(&latencies.since(&last.latencies));
                }
            }
            None => {
                self.totals.merge(&signals.totals);
                self.latencies.merge(&latencies);
            }
        }
        let last = GatewayLoad {
            sender: sender.to_owned(),
            held: signals.queue_depth,
            in_flight: signals.in_flight,
            held_tokens: signals.held_tokens,
            held_prompt_tokens: estimated_tokens(signals.queue_bytes),
            in_flight_tokens: signals.in_flight_tokens,
            oldest_hold_seconds: signals.oldest_hold_seconds,
            learned_limit: learned_limit(signals),
            totals: signals.totals,
            latencies: Box::new(latencies),
        };
        self.gateways.insert(gateway, last);
    }

    /// Forgets the gateways that said goodbye or are no longer listed. Their gauges no longer count;
    /// their counters stay in the totals.
    pub fn keep(&mut self, listed: impl Fn(usize) -> bool) {
        self.gateways.retain(|gateway, _| listed(*gateway));
    }

    /// The load, given the state of each listed gateway's feed. The gauges of a silent gateway count in
    /// full for `stale_after`, and are halved after each such time.
    #[must_use]
    pub fn load(
        &self,
        feeds: impl IntoIterator<Item = (usize, Freshness)>,
        stale_after: Millis,
    ) -> Load {
        let mut load =
            Load { totals: self.totals, latencies: self.latencies.clone(), ..Load::default() };
        for (gateway, freshness) in feeds {
            let mut halvings = 0;
            if let Freshness::Silent(since) = freshness {
                load.missing |= since < stale_after;
                load.stale |= since >= stale_after;
                halvings = (since.get() / stale_after.get().max(1)).min(31) as u32;
            }
            let Some(last) = self.gateways.get(&gateway) else { continue };
            let faded = |count: u64| if count == 0 { 0 } else { (count >> halvings).max(1) };
            let few = |count: u32| faded(u64::from(count)) as u32;
            load.held = load.held.saturating_add(few(last.held));
            load.in_flight = load.in_flight.saturating_add(few(last.in_flight));
            load.held_tokens += faded(last.held_tokens);
            load.held_prompt_tokens += faded(last.held_prompt_tokens);
            load.in_flight_tokens += faded(last.in_flight_tokens);
            load.oldest_hold_seconds = load.oldest_hold_seconds.max(last.oldest_hold_seconds);
            // Each gateway has its own part of what a replica takes.
            load.learned_limit += last.learned_limit;
        }
        load
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use forebay_signals::{EndpointSignals, LimitedBy};

    const STALE: Millis = Millis::from_secs(10);

    fn signals(held: u32, accepted: u64) -> PoolSignals {
        let totals = Totals { accepted, ..Totals::default() };
        PoolSignals { queue_depth: held, in_flight: 1, totals, ..PoolSignals::default() }
    }

    #[test]
    fn the_learned_limit_of_a_replica_is_the_sum_of_its_parts_at_the_gateways() {
        let endpoint =
            |limit, limited_by| EndpointSignals { limit, limited_by, ..EndpointSignals::default() };
        let with = |endpoints: [EndpointSignals; 2]| PoolSignals {
            endpoints: [("a", &endpoints[0]), ("b", &endpoints[1])]
                .map(|(name, endpoint)| (name.to_owned(), Some(endpoint.clone())))
                .into(),
            ..PoolSignals::default()
        };
        let limit = |reports: &[PoolSignals]| {
            let mut ledger = Ledger::default();
            for (gateway, report) in reports.iter().enumerate() {
                ledger.record(gateway, "a", report);
            }
            let feeds = (0..reports.len()).map(|gateway| (gateway, Freshness::Live));
            ledger.load(feeds, STALE).learned_limit
        };
        use LimitedBy::{Configured, Growing, SlowStart, Waiting};
        let one = with([endpoint(30, Growing), endpoint(50, Waiting)]);
        let cold = with([endpoint(30, Growing), endpoint(1, SlowStart)]);
        let fixed = with([endpoint(64, Configured), endpoint(64, Configured)]);
        assert!((limit(std::slice::from_ref(&one)) - 40.0).abs() < 1e-9);
        assert!((limit(&[one, cold]) - 70.0).abs() < 1e-9, "a slow start says nothing");
        assert!(limit(&[fixed]).abs() < 1e-9);
    }

    #[test]
    fn a_lost_gateway_fades_and_never_vanishes() {
        let mut ledger = Ledger::default();
        ledger.record(0, "a", &signals(8, 1));
        for (case, gateway, freshness, want) in [
            ("heard", 0, Freshness::Live, (8, 1, false, false)),
            ("just lost", 0, Freshness::Silent(Millis::new(9_999)), (8, 1, true, false)),
            ("stale", 0, Freshness::Silent(Millis::new(10_000)), (4, 1, false, true)),
            ("long gone", 0, Freshness::Silent(Millis::new(3_600_000)), (1, 1, false, true)),
            (
                "not heard yet, briefly",
                1,
                Freshness::Silent(Millis::new(9_999)),
                (0, 0, true, false),
            ),
            ("never heard", 1, Freshness::Silent(Millis::new(10_000)), (0, 0, false, true)),
        ] {
            let load = ledger.load([(gateway, freshness)], STALE);
            let got = (load.held, load.in_flight, load.missing, load.stale);
            assert_eq!(got, want, "{case}");
        }
        ledger.record(1, "b", &signals(8, 1));
        assert_eq!(ledger.load([(0, Freshness::Live), (1, Freshness::Live)], STALE).held, 16);
    }

    #[test]
    fn counters_go_on_over_restarts_and_goodbyes_and_never_shrink() {
        let mut ledger = Ledger::default();
        let accepted = |ledger: &Ledger| ledger.load([], STALE).totals.accepted;
        for (case, sender, count, want) in [
            ("a first report", "a", 5, 5),
            ("three more", "a", 8, 8),
            ("a restart, with two", "b", 2, 10),
            ("one more", "b", 3, 11),
        ] {
            ledger.record(0, sender, &signals(0, count));
            assert_eq!(accepted(&ledger), want, "{case}");
        }
        ledger.keep(|_| false);
        assert_eq!(accepted(&ledger), 11, "a goodbye");
        ledger.record(0, "c", &signals(0, 1));
        assert_eq!(accepted(&ledger), 12, "another gateway");
    }

    #[test]
    fn latencies_are_counted_once() {
        let mut ledger = Ledger::default();
        let mut signals = signals(0, 1);
        for round in 1..=3 {
            signals.ttft.record(0.5);
            ledger.record(0, "a", &signals);
            ledger.record(0, "a", &signals);
            assert_eq!(ledger.load([], STALE).latencies.ttft.count(), round);
        }
        ledger.record(0, "restarted", &signals);
        assert_eq!(ledger.load([], STALE).latencies.ttft.count(), 6);
    }
}

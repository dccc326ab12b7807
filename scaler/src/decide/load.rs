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

/// The process of a gateway that reports.
#[derive(Clone, Copy, Debug)]
pub struct GatewayProcess<'a> {
    /// Its random name: a new one counts from zero.
    pub sender: &'a str,
    /// When it began; `None` if it does not report that.
    pub began: Option<Millis>,
}

/// The last report of each gateway about one pool.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    gateways: BTreeMap<usize, LastGauges>,
    /// The last counters of each process, by its name. They outlast its gateway, which may come back.
    counters: BTreeMap<String, Counters>,
    /// Each process that began later and was heard is in `counters`: the counts of an unknown one are all
    /// new. `None` before the first step.
    complete_since: Option<Millis>,
    totals: Totals,
    latencies: Latencies,
}

/// The last gauges of a gateway.
#[derive(Clone, Debug)]
struct LastGauges {
    sender: String,
    held: u32,
    in_flight: u32,
    held_tokens: u64,
    held_prompt_tokens: u64,
    in_flight_tokens: u64,
    oldest_hold_seconds: f64,
    learned_limit: f64,
}

#[derive(Clone, Debug)]
struct Counters {
    totals: Totals,
    latencies: Box<Latencies>,
    heard: Millis,
}

/// A process that began this much before the ledger counts as new: what it has counted arrived just
/// now. Both halves may begin at once, and a request may come before the scaler hears of it.
const JUST_BEGUN: Millis = Millis::from_secs(10);
/// The most processes to remember beyond those of the gateways that count.
const MOST_DEPARTED: usize = 32;

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
    /// Records one gateway's report about the pool. The counts of a process that is older than this ledger
    /// are no news: the first report is where its increments begin.
    pub fn record(
        &mut self,
        gateway: usize,
        process: GatewayProcess<'_>,
        signals: &PoolSignals,
        now: Millis,
    ) {
        let complete_since = self.begin(now);
        let is_new = process.began.is_some_and(|began| began >= complete_since);
        let latencies = Latencies::of(signals);
        match self.counters.get_mut(process.sender) {
            Some(last) => {
                self.totals.merge(&signals.totals.since(&last.totals));
                last.totals = signals.totals;
                last.heard = now;
                if *last.latencies != latencies {
                    self.latencies.merge(&latencies.since(&last.latencies));
                    *last.latencies = latencies;
                }
            }
            None => {
                if is_new {
                    self.totals.merge(&signals.totals);
                    self.latencies.merge(&latencies);
                }
                let latencies = Box::new(latencies);
                let counters = Counters { totals: signals.totals, latencies, heard: now };
                self.counters.insert(process.sender.to_owned(), counters);
            }
        }
        let gauges = LastGauges {
            sender: process.sender.to_owned(),
            held: signals.queue_depth,
            in_flight: signals.in_flight,
            held_tokens: signals.held_tokens,
            held_prompt_tokens: estimated_tokens(signals.queue_bytes),
            in_flight_tokens: signals.in_flight_tokens,
            oldest_hold_seconds: signals.oldest_hold_seconds,
            learned_limit: learned_limit(signals),
        };
        self.gateways.insert(gateway, gauges);
    }

    fn begin(&mut self, now: Millis) -> Millis {
        *self.complete_since.get_or_insert(now.since(JUST_BEGUN))
    }

    /// Forgets the gateways that said goodbye or are no longer listed. Their gauges no longer count;
    /// their counters stay in the totals.
    pub fn keep(&mut self, listed: impl Fn(usize) -> bool, now: Millis) {
        self.begin(now);
        self.gateways.retain(|gateway, _| listed(*gateway));
        while self.counters.len() > self.gateways.len() + MOST_DEPARTED {
            let counts: Vec<_> = self.gateways.values().map(|gauges| &gauges.sender).collect();
            let departed = self.counters.iter().filter(|(sender, _)| !counts.contains(sender));
            let oldest = departed.min_by_key(|(_, counters)| counters.heard);
            let Some(oldest) = oldest.map(|(sender, _)| sender.clone()) else { break };
            self.counters.remove(&oldest);
            // It may come back, and must not count twice.
            self.complete_since = Some(now);
        }
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

    /// Records a report of a process that has just begun.
    fn record(ledger: &mut Ledger, gateway: usize, sender: &str, signals: &PoolSignals) {
        let now = Millis::from_secs(1_000);
        ledger.record(gateway, GatewayProcess { sender, began: Some(now) }, signals, now);
    }

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
                record(&mut ledger, gateway, ["a", "b"][gateway], report);
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
        record(&mut ledger, 0, "a", &signals(8, 1));
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
        record(&mut ledger, 1, "b", &signals(8, 1));
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
            record(&mut ledger, 0, sender, &signals(0, count));
            assert_eq!(accepted(&ledger), want, "{case}");
        }
        ledger.keep(|_| false, Millis::from_secs(1_000));
        assert_eq!(accepted(&ledger), 11, "a goodbye");
        record(&mut ledger, 0, "c", &signals(0, 1));
        assert_eq!(accepted(&ledger), 12, "another gateway");
    }

    /// The counts of a gateway's first report, by the times at which its process began and was heard. The
    /// ledger begins at second 100, with another gateway.
    #[test]
    fn a_first_report_counts_only_if_its_process_is_younger_than_the_ledger() {
        for (case, began, heard, want) in [
            ("a process from long before", Some(0), 101, 0),
            ("one that does not report when it began", None, 101, 0),
            ("both begin at once", Some(95), 101, 7),
            ("a new process", Some(200), 201, 7),
            ("a new process that was out of reach", Some(200), 900, 7),
        ] {
            let mut ledger = Ledger::default();
            let mut signals = signals(0, 7);
            signals.ttft.record_n(0.5, 7);
            let began = began.map(Millis::from_secs);
            let other = GatewayProcess { sender: "other", began: Some(Millis::ZERO) };
            ledger.record(0, other, &signals, Millis::from_secs(100));
            let counted = |ledger: &Ledger| {
                let Load { totals, latencies, .. } = ledger.load([], STALE);
                (totals.accepted, latencies.ttft.count())
            };
            assert_eq!(
                counted(&ledger),
                (0, 0),
                "{case}: requests before the first report do not count"
            );
            ledger.record(
                1,
                GatewayProcess { sender: "a", began },
                &signals,
                Millis::from_secs(heard),
            );
            assert_eq!(counted(&ledger), (want, want), "{case}");
            signals.totals.accepted += 2;
            signals.ttft.record_n(0.5, 2);
            ledger.record(
                1,
                GatewayProcess { sender: "a", began },
                &signals,
                Millis::from_secs(heard),
            );
            assert_eq!(counted(&ledger), (want + 2, want + 2), "{case}: increments count");
        }
    }

    #[test]
    fn a_gateway_that_began_after_the_first_step_counts_however_late_it_is_heard() {
        let mut ledger = Ledger::default();
        ledger.keep(|_| true, Millis::from_secs(100));
        let process = GatewayProcess { sender: "a", began: Some(Millis::from_secs(120)) };
        ledger.record(0, process, &signals(0, 7), Millis::from_secs(300));
        assert_eq!(ledger.load([], STALE).totals.accepted, 7);
    }

    #[test]
    fn a_gateway_that_comes_back_under_another_number_counts_on() {
        let mut ledger = Ledger::default();
        record(&mut ledger, 0, "a", &signals(0, 1_000));
        ledger.keep(|_| false, Millis::from_secs(1_000));
        record(&mut ledger, 1, "a", &signals(0, 1_005));
        assert_eq!(ledger.load([], STALE).totals.accepted, 1_005);
    }

    #[test]
    fn departed_processes_are_bounded_and_none_counts_twice() {
        let mut ledger = Ledger::default();
        let at = |n: usize| Millis::from_secs(1_000 + n as u64);
        let many = MOST_DEPARTED * 3;
        let names: Vec<_> = (0..many).map(|n| n.to_string()).collect();
        fn process(n: usize, sender: &str) -> GatewayProcess<'_> {
            GatewayProcess { sender, began: Some(Millis::from_secs(1_000 + n as u64)) }
        }
        for (n, name) in names.iter().enumerate() {
            ledger.record(n, process(n, name), &signals(0, 10), at(n));
            ledger.keep(|gateway| gateway == n, at(n));
            assert!(ledger.counters.len() <= 1 + MOST_DEPARTED);
        }
        let accepted = |ledger: &Ledger| ledger.load([], STALE).totals.accepted;
        assert_eq!(accepted(&ledger), 10 * many as u64);
        for (n, name) in names.iter().enumerate() {
            ledger.record(many + n, process(n, name), &signals(0, 10), at(many));
        }
        assert_eq!(accepted(&ledger), 10 * many as u64, "all of them are back");
        let new = many + 1;
        ledger.record(2 * many, process(new, "new"), &signals(0, 1), at(new));
        assert_eq!(accepted(&ledger), 10 * many as u64 + 1, "a new one counts");
    }

    #[test]
    fn latencies_are_counted_once() {
        let mut ledger = Ledger::default();
        let mut signals = signals(0, 1);
        for round in 1..=3 {
            signals.ttft.record(0.5);
            record(&mut ledger, 0, "a", &signals);
            record(&mut ledger, 0, "a", &signals);
            assert_eq!(ledger.load([], STALE).latencies.ttft.count(), round);
        }
        record(&mut ledger, 0, "restarted", &signals);
        assert_eq!(ledger.load([], STALE).latencies.ttft.count(), 6);
    }
}

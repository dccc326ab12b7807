//! One pool's load over all gateways: sums, never averages of averages.
//!
//! Gauges are the sum of each gateway's last word; that of a lost gateway stands for a while, then
//! fades, but never to zero: it may serve on, unheard. Counters are kept as what was added since the
//! last word of the same process, so that the sum never shrinks when a gateway restarts or leaves.

use std::collections::BTreeMap;

use forebay_signals::{Histogram, PoolSignals, Totals};

/// Bytes of a request's body for each token of its prompt, before anything better is known.
const BYTES_PER_TOKEN: u64 = 4;

/// What every gateway together has.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Load {
    /// Requests held.
    pub held: u32,
    /// Requests at replicas.
    pub in_flight: u32,
    /// Estimated tokens of prompt and answer of what is held.
    pub held_tokens: u64,
    /// Estimated tokens of prompt alone of what is held.
    pub held_prompt_tokens: u64,
    /// Estimated tokens of prompt and answer of what is at replicas.
    pub in_flight_tokens: u64,
    /// How long the longest held has waited.
    pub oldest_hold_seconds: f64,
    /// Counters that only grow, over restarts of gateways too.
    pub totals: Totals,
    /// Latencies since the beginning; they only grow too.
    pub latencies: Latencies,
    /// A listed gateway has just fallen silent: the truth may be more than this.
    pub missing: bool,
    /// A listed gateway has been silent for long: it counts with what has faded of its last word.
    pub stale: bool,
}

/// Latencies, as cumulative histograms.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Latencies {
    /// Accepted → first token passed on.
    pub ttft: Histogram,
    /// The same, less the time held while no endpoint was ready.
    pub warm_ttft: Histogram,
    /// Released → first token passed on.
    pub upstream_ttft: Histogram,
    /// Gaps between tokens.
    pub itl: Histogram,
}

/// How a gateway's feed stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// It is connected.
    Now,
    /// It was lost, or listed without being heard, so many milliseconds ago.
    Silent(u64),
}

/// What each gateway last said of one pool.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    gateways: BTreeMap<usize, Said>,
    totals: Totals,
    latencies: Latencies,
}

#[derive(Clone, Debug)]
struct Said {
    sender: String,
    held: u32,
    in_flight: u32,
    held_tokens: u64,
    held_prompt_tokens: u64,
    in_flight_tokens: u64,
    oldest_hold_seconds: f64,
    totals: Totals,
    latencies: Box<Latencies>,
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

    /// What was counted since `earlier`.
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
    /// Takes one gateway's word on the pool. `sender` is random per process start: another one than
    /// before counts from zero.
    pub fn hear(&mut self, gateway: usize, sender: &str, signals: &PoolSignals) {
        let latencies = Latencies::of(signals);
        let before = self.gateways.get(&gateway).filter(|said| said.sender == sender);
        match before {
            Some(said) => {
                self.totals.merge(&signals.totals.since(&said.totals));
                if said.latencies.as_ref() != &latencies {
                    self.latencies.merge(&latencies.since(&said.latencies));
                }
            }
            None => {
                self.totals.merge(&signals.totals);
                self.latencies.merge(&latencies);
            }
        }
        let said = Said {
            sender: sender.to_owned(),
            held: signals.queue_depth,
            in_flight: signals.in_flight,
            held_tokens: signals.held_tokens,
            held_prompt_tokens: signals.queue_bytes / BYTES_PER_TOKEN,
            in_flight_tokens: signals.in_flight_tokens,
            oldest_hold_seconds: signals.oldest_hold_seconds,
            totals: signals.totals,
            latencies: Box::new(latencies),
        };
        self.gateways.insert(gateway, said);
    }

    /// Forgets those that said goodbye or are listed no more: what they had is gone, what they
    /// counted stays.
    pub fn keep(&mut self, listed: impl Fn(usize) -> bool) {
        self.gateways.retain(|gateway, _| listed(*gateway));
    }

    /// The load, given how each listed gateway's feed stands. What a silent one had stands for
    /// `stale_after_ms`, then halves with each such time.
    #[must_use]
    pub fn load(
        &self,
        words: impl IntoIterator<Item = (usize, Word)>,
        stale_after_ms: u64,
    ) -> Load {
        let mut load =
            Load { totals: self.totals, latencies: self.latencies.clone(), ..Load::default() };
        for (gateway, word) in words {
            let mut halvings = 0;
            if let Word::Silent(since_ms) = word {
                load.missing |= since_ms < stale_after_ms;
                load.stale |= since_ms >= stale_after_ms;
                halvings = (since_ms / stale_after_ms.max(1)).min(31) as u32;
            }
            let Some(said) = self.gateways.get(&gateway) else { continue };
            let faded = |count: u64| if count == 0 { 0 } else { (count >> halvings).max(1) };
            let few = |count: u32| faded(u64::from(count)) as u32;
            load.held = load.held.saturating_add(few(said.held));
            load.in_flight = load.in_flight.saturating_add(few(said.in_flight));
            load.held_tokens += faded(said.held_tokens);
            load.held_prompt_tokens += faded(said.held_prompt_tokens);
            load.in_flight_tokens += faded(said.in_flight_tokens);
            load.oldest_hold_seconds = load.oldest_hold_seconds.max(said.oldest_hold_seconds);
        }
        load
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(held: u32, accepted: u64) -> PoolSignals {
        let totals = Totals { accepted, ..Totals::default() };
        PoolSignals { queue_depth: held, in_flight: 1, totals, ..PoolSignals::default() }
    }

    #[test]
    fn a_lost_gateway_fades_and_never_vanishes() {
        let mut ledger = Ledger::default();
        ledger.hear(0, "a", &said(8, 1));
        for (case, gateway, word, want) in [
            ("heard", 0, Word::Now, (8, 1, false, false)),
            ("just lost", 0, Word::Silent(9_999), (8, 1, true, false)),
            ("stale", 0, Word::Silent(10_000), (4, 1, false, true)),
            ("long gone", 0, Word::Silent(3_600_000), (1, 1, false, true)),
            ("not heard yet", 1, Word::Silent(9_999), (0, 0, true, false)),
            ("never heard", 1, Word::Silent(10_000), (0, 0, false, true)),
        ] {
            let load = ledger.load([(gateway, word)], 10_000);
            let got = (load.held, load.in_flight, load.missing, load.stale);
            assert_eq!(got, want, "{case}");
        }
        ledger.hear(1, "b", &said(8, 1));
        assert_eq!(ledger.load([(0, Word::Now), (1, Word::Now)], 10_000).held, 16);
    }

    #[test]
    fn counters_go_on_over_restarts_and_goodbyes_and_never_shrink() {
        let mut ledger = Ledger::default();
        let accepted = |ledger: &Ledger| ledger.load([], 10_000).totals.accepted;
        for (case, sender, count, want) in [
            ("a first word", "a", 5, 5),
            ("three more", "a", 8, 8),
            ("restarted, with two", "b", 2, 10),
            ("one more", "b", 3, 11),
        ] {
            ledger.hear(0, sender, &said(0, count));
            assert_eq!(accepted(&ledger), want, "{case}");
        }
        ledger.keep(|_| false);
        assert_eq!(accepted(&ledger), 11, "it left");
        ledger.hear(0, "c", &said(0, 1));
        assert_eq!(accepted(&ledger), 12, "another one");
    }

    #[test]
    fn latencies_are_counted_once() {
        let mut ledger = Ledger::default();
        let mut signals = said(0, 1);
        for round in 1..=3 {
            signals.ttft.record(0.5);
            ledger.hear(0, "a", &signals);
            ledger.hear(0, "a", &signals);
            assert_eq!(ledger.load([], 1).latencies.ttft.count(), round);
        }
        ledger.hear(0, "restarted", &signals);
        assert_eq!(ledger.load([], 1).latencies.ttft.count(), 6);
    }
}

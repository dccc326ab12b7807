//! A pool's signals as single numbers, for triggers that name one. Pure.
//!
//! First-hand figures are measured as Forebay's own triggers do by default: latencies are the p95 of
//! the last minute. A trigger of the same type in the pool's configuration replaces that with its
//! own quantile, window or source. `kvCache` and `gpuUtilization` come only from such triggers.
//!
//! A latency that becomes unknown keeps its last value for one window. If it lasted longer, an HPA
//! would multiply by it again and again while only long answers are running. For the same reason a
//! figure whose source can't be read becomes unknown at once. While a gateway is missing, a load
//! never counts as less than before.

use std::collections::BTreeMap;

use forebay_config::Millis;
use forebay_signals::Figure;

use crate::decide::triggers::recent::{RecentLatencies, RecentRate};
use crate::decide::{Load, Proposal};

const WINDOW: Millis = Millis::from_secs(60);
const QUANTILE: f64 = 0.95;

/// A pool's figures, with their memory between decisions.
#[derive(Debug)]
pub(crate) struct PoolFigures {
    ttft: RecentLatencies,
    itl: RecentLatencies,
    tokens: RecentRate,
    known: BTreeMap<Figure, f64>,
    /// The time when each was last measured, or taken over.
    measured_at: BTreeMap<Figure, Millis>,
}

impl Default for PoolFigures {
    fn default() -> Self {
        Self {
            ttft: RecentLatencies::over(WINDOW),
            itl: RecentLatencies::over(WINDOW),
            tokens: RecentRate::over(WINDOW),
            known: BTreeMap::new(),
            measured_at: BTreeMap::new(),
        }
    }
}

impl PoolFigures {
    /// Records the figures of one decision.
    pub(crate) fn observe(&mut self, load: &Load, proposals: &[Proposal], now: Millis) {
        self.ttft.observe(now, &load.latencies.warm_ttft);
        self.itl.observe(now, &load.latencies.itl);
        self.tokens.observe(now, load.totals.generated_tokens);
        let (held, all) = (load.held, load.held.saturating_add(load.in_flight));
        // Without requests there is no latency; with requests it is unknown before it is measured.
        let idle = (all == 0).then_some(0.0);
        let first_hand = [
            (Figure::QueueDepth, Some(f64::from(held))),
            (Figure::Concurrency, Some(f64::from(all))),
            (Figure::Ttft, self.ttft.quantile(QUANTILE).or(idle)),
            (Figure::Itl, self.itl.quantile(QUANTILE).or(idle)),
            (Figure::TokensPerSecond, self.tokens.per_second()),
        ];
        for (figure, value) in first_hand {
            let Some(value) = value else {
                let since = *self.measured_at.entry(figure).or_insert(now);
                // A held request waits for an answer: for its client the latency is no better.
                let waits = held > 0 || load.missing;
                if !waits && now >= since + WINDOW {
                    self.known.remove(&figure);
                }
                continue;
            };
            self.measured_at.insert(figure, now);
            let last = self.known.get(&figure).copied().filter(|_| load.missing);
            self.known.insert(figure, last.map_or(value, |last| value.max(last)));
        }
        for figure in Figure::ALL {
            let mut own = proposals.iter().filter(|one| one.kind == figure.name()).peekable();
            let configured = own.peek().is_some();
            match own.find_map(reading) {
                Some(value) => drop(self.known.insert(figure, value)),
                None if configured && is_read(figure) => drop(self.known.remove(&figure)),
                None => {}
            }
        }
    }

    /// Takes over the figures of an earlier leader, as far as nothing newer is known.
    pub(crate) fn follow(&mut self, earlier: &BTreeMap<Figure, f64>) {
        for (figure, value) in earlier {
            self.known.entry(*figure).or_insert(*value);
        }
    }

    pub(crate) fn known(&self) -> &BTreeMap<Figure, f64> {
        &self.known
    }
}

/// Whether the figure is second-hand.
fn is_read(figure: Figure) -> bool {
    matches!(figure, Figure::KvCache | Figure::GpuUtilization)
}

/// The figure that a trigger read. A partial reading is a lower bound: it counts only if it asks for
/// more replicas, since an HPA would take it for the whole and scale down.
fn reading(proposal: &Proposal) -> Option<f64> {
    proposal.figure.filter(|value| proposal.problem.is_none() || *value > proposal.threshold)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::Problem;

    fn load(held: u32, in_flight: u32) -> Load {
        Load { held, in_flight, ..Load::default() }
    }

    #[test]
    fn a_latency_is_zero_without_requests_and_unknown_while_requests_wait() {
        let mut figures = PoolFigures::default();
        figures.observe(&load(1, 0), &[], Millis::new(0));
        assert_eq!(figures.known().get(&Figure::Ttft), None);
        assert_eq!(figures.known()[&Figure::QueueDepth], 1.0);
        figures.observe(&load(0, 0), &[], Millis::new(1_000));
        assert_eq!(figures.known()[&Figure::Ttft], 0.0);
        let mut slow = load(0, 3);
        slow.latencies.warm_ttft.record(2.0);
        figures.observe(&slow, &[], Millis::new(2_000));
        assert!(figures.known()[&Figure::Ttft] > 1.0, "{:?}", figures.known());
        assert_eq!(figures.known()[&Figure::Concurrency], 3.0);
    }

    #[test]
    fn an_earlier_leaders_figure_stands_until_it_is_measured_anew() {
        let mut figures = PoolFigures::default();
        figures.follow(&[(Figure::Ttft, 1.5), (Figure::QueueDepth, 9.0)].into());
        let missing = Load { missing: true, ..load(1, 0) };
        figures.observe(&missing, &[], Millis::new(0));
        assert_eq!(figures.known()[&Figure::QueueDepth], 9.0, "a gateway is still missing");
        figures.observe(&load(1, 0), &[], Millis::new(1_000));
        assert_eq!(figures.known()[&Figure::QueueDepth], 1.0);
        assert_eq!(figures.known()[&Figure::Ttft], 1.5, "no answer since");
    }

    #[test]
    fn a_latency_that_is_no_longer_measured_becomes_unknown() {
        let mut busy = load(0, 3);
        let mut figures = PoolFigures::default();
        figures.observe(&busy, &[], Millis::new(0));
        busy.latencies.warm_ttft.record(20.0);
        figures.observe(&busy, &[], Millis::new(1_000));
        assert!(figures.known()[&Figure::Ttft] > 10.0);
        let held = Load { held: 1, ..busy.clone() };
        let missing = Load { missing: true, ..busy.clone() };
        for (case, load, minutes, known) in [
            ("it is in the window", &busy, 1, true),
            ("a request is held", &held, 9, true),
            ("a gateway is missing", &missing, 10, true),
            ("only long answers are running", &busy, 11, false),
            ("and a request is held", &held, 12, false),
        ] {
            figures.observe(load, &[], Millis::from_secs(minutes * 60));
            assert_eq!(figures.known().contains_key(&Figure::Ttft), known, "{case}");
        }
    }

    #[test]
    fn a_load_never_counts_as_less_while_a_gateway_is_missing() {
        let mut figures = PoolFigures::default();
        figures.observe(&load(8, 2), &[], Millis::new(0));
        let missing = Load { missing: true, ..load(3, 0) };
        figures.observe(&missing, &[], Millis::new(1_000));
        assert_eq!(figures.known()[&Figure::QueueDepth], 8.0);
        figures.observe(&load(3, 0), &[], Millis::new(2_000));
        assert_eq!(figures.known()[&Figure::QueueDepth], 3.0);
    }

    #[test]
    fn a_configured_trigger_provides_a_figure_while_it_can_be_read() {
        let gpu = |figure, problem: Option<&str>| Proposal {
            kind: "gpuUtilization",
            figure,
            threshold: 80.0,
            problem: problem.map(|why| Problem::Unreadable(why.to_owned())),
            ..Proposal::default()
        };
        let partly = Some("1 of 2 GPUs can't be read");
        let mut figures = PoolFigures::default();
        for (case, now, want) in [
            ("read", gpu(Some(95.0), None), Some(95.0)),
            ("unreadable: an HPA would go on multiplying by it", gpu(None, Some("down")), None),
            ("again", gpu(Some(5.0), None), Some(5.0)),
            ("the lower bound asks for more", gpu(Some(85.0), partly), Some(85.0)),
            ("the lower bound is no reason to scale down", gpu(Some(40.0), partly), None),
        ] {
            figures.observe(&load(0, 0), &[now], Millis::ZERO);
            assert_eq!(figures.known().get(&Figure::GpuUtilization).copied(), want, "{case}");
        }
    }
}

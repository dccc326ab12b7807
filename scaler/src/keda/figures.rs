//! A pool's signals as single numbers, for triggers that ask for one by its name. Pure.
//!
//! First-hand ones are measured as Forebay's own triggers do by default: latencies are the p95 of
//! the last minute. A trigger of the same type in the pool's configuration replaces that with its
//! own quantile, window or source; `kvCache` and `gpuUtilization` come from there alone.
//!
//! A latency that is not known now keeps its last value for one window: longer, an HPA would multiply
//! by it again and again while long answers alone go on. For the same reason a figure whose source
//! can't be read is not known at once. While a gateway is missing, load is not taken for less than it
//! was.

use std::collections::BTreeMap;

use forebay_signals::Figure;

use crate::decide::triggers::recent::{Latencies, Rate};
use crate::decide::{Load, Proposal};

const WINDOW_MS: u64 = 60_000;
const QUANTILE: f64 = 0.95;

/// What is remembered from decision to decision.
#[derive(Debug)]
pub(crate) struct Figures {
    ttft: Latencies,
    itl: Latencies,
    tokens: Rate,
    known: BTreeMap<Figure, f64>,
    /// When each was measured last, or taken over.
    measured_ms: BTreeMap<Figure, u64>,
}

impl Default for Figures {
    fn default() -> Self {
        Self {
            ttft: Latencies::over(WINDOW_MS),
            itl: Latencies::over(WINDOW_MS),
            tokens: Rate::over(WINDOW_MS),
            known: BTreeMap::new(),
            measured_ms: BTreeMap::new(),
        }
    }
}

impl Figures {
    /// Takes what is known now.
    pub(crate) fn observe(&mut self, load: &Load, proposals: &[Proposal], now_ms: u64) {
        self.ttft.observe(now_ms, &load.latencies.warm_ttft);
        self.itl.observe(now_ms, &load.latencies.itl);
        self.tokens.observe(now_ms, load.totals.generated_tokens);
        let (held, all) = (load.held, load.held.saturating_add(load.in_flight));
        // Where nobody asked there is no latency; where somebody waits, it is not known yet.
        let idle = (all == 0).then_some(0.0);
        let first_hand = [
            (Figure::QueueDepth, Some(f64::from(held))),
            (Figure::Concurrency, Some(f64::from(all))),
            (Figure::Ttft, self.ttft.quantile(QUANTILE).or(idle)),
            (Figure::Itl, self.itl.quantile(QUANTILE).or(idle)),
            (Figure::TokensPerSecond, self.tokens.per_second()),
        ];
        for (figure, now) in first_hand {
            let Some(now) = now else {
                let since_ms = *self.measured_ms.entry(figure).or_insert(now_ms);
                // Whoever is held waits for an answer: for them it is no better than it was.
                let waits = held > 0 || load.missing;
                if !waits && now_ms >= since_ms + WINDOW_MS {
                    self.known.remove(&figure);
                }
                continue;
            };
            self.measured_ms.insert(figure, now_ms);
            let last = self.known.get(&figure).copied().filter(|_| load.missing);
            self.known.insert(figure, last.map_or(now, |last| now.max(last)));
        }
        for figure in Figure::ALL {
            let mut own = proposals.iter().filter(|it| it.kind == figure.name()).peekable();
            let configured = own.peek().is_some();
            match own.find_map(told) {
                Some(value) => drop(self.known.insert(figure, value)),
                None if configured && is_read(figure) => drop(self.known.remove(&figure)),
                None => {}
            }
        }
    }

    /// Goes on from what a leader before told, where nothing newer is known.
    pub(crate) fn follow(&mut self, told: &BTreeMap<Figure, f64>) {
        for (figure, value) in told {
            self.known.entry(*figure).or_insert(*value);
        }
    }

    pub(crate) fn known(&self) -> &BTreeMap<Figure, f64> {
        &self.known
    }
}

/// Whether it is second-hand.
fn is_read(figure: Figure) -> bool {
    matches!(figure, Figure::KvCache | Figure::GpuUtilization)
}

/// What a trigger read. Of one that was read in part, which is the least that the figure can be, only
/// what asks for more replicas: an HPA would take it for the whole, and go down by it.
fn told(proposal: &Proposal) -> Option<f64> {
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
    fn latencies_are_zero_for_nobody_and_unknown_for_those_who_wait() {
        let mut figures = Figures::default();
        figures.observe(&load(1, 0), &[], 0);
        assert_eq!(figures.known().get(&Figure::Ttft), None);
        assert_eq!(figures.known()[&Figure::QueueDepth], 1.0);
        figures.observe(&load(0, 0), &[], 1_000);
        assert_eq!(figures.known()[&Figure::Ttft], 0.0);
        let mut slow = load(0, 3);
        slow.latencies.warm_ttft.record(2.0);
        figures.observe(&slow, &[], 2_000);
        assert!(figures.known()[&Figure::Ttft] > 1.0, "{:?}", figures.known());
        assert_eq!(figures.known()[&Figure::Concurrency], 3.0);
    }

    #[test]
    fn what_a_leader_before_told_stands_until_it_is_measured_anew() {
        let mut figures = Figures::default();
        figures.follow(&[(Figure::Ttft, 1.5), (Figure::QueueDepth, 9.0)].into());
        let missing = Load { missing: true, ..load(1, 0) };
        figures.observe(&missing, &[], 0);
        assert_eq!(figures.known()[&Figure::QueueDepth], 9.0, "not every gateway is heard yet");
        figures.observe(&load(1, 0), &[], 1_000);
        assert_eq!(figures.known()[&Figure::QueueDepth], 1.0);
        assert_eq!(figures.known()[&Figure::Ttft], 1.5, "nobody was answered since");
    }

    #[test]
    fn a_latency_that_nobody_measures_any_more_is_not_known_for_ever() {
        let mut busy = load(0, 3);
        let mut figures = Figures::default();
        figures.observe(&busy, &[], 0);
        busy.latencies.warm_ttft.record(20.0);
        figures.observe(&busy, &[], 1_000);
        assert!(figures.known()[&Figure::Ttft] > 10.0);
        let held = Load { held: 1, ..busy.clone() };
        let missing = Load { missing: true, ..busy.clone() };
        for (case, load, minutes, known) in [
            ("it is in the window", &busy, 1, true),
            ("somebody waits for an answer", &held, 9, true),
            ("a gateway is missing", &missing, 10, true),
            ("long answers alone go on", &busy, 11, false),
            ("and somebody waits", &held, 12, false),
        ] {
            figures.observe(load, &[], minutes * 60_000);
            assert_eq!(figures.known().contains_key(&Figure::Ttft), known, "{case}");
        }
    }

    #[test]
    fn what_is_missing_is_not_taken_for_less() {
        let mut figures = Figures::default();
        figures.observe(&load(8, 2), &[], 0);
        let missing = Load { missing: true, ..load(3, 0) };
        figures.observe(&missing, &[], 1_000);
        assert_eq!(figures.known()[&Figure::QueueDepth], 8.0);
        figures.observe(&load(3, 0), &[], 2_000);
        assert_eq!(figures.known()[&Figure::QueueDepth], 3.0);
    }

    #[test]
    fn a_configured_trigger_is_where_a_figure_comes_from_as_long_as_it_can_be_read() {
        let gpu = |figure, problem: Option<&str>| Proposal {
            kind: "gpuUtilization",
            figure,
            threshold: 80.0,
            problem: problem.map(|why| Problem::Unreadable(why.to_owned())),
            ..Proposal::default()
        };
        let partly = Some("1 of 2 GPUs can't be read");
        let mut figures = Figures::default();
        for (case, now, want) in [
            ("read", gpu(Some(95.0), None), Some(95.0)),
            ("an HPA would go on by the last one", gpu(None, Some("down")), None),
            ("again", gpu(Some(5.0), None), Some(5.0)),
            ("the least is more than enough", gpu(Some(85.0), partly), Some(85.0)),
            ("the least is no reason to go down", gpu(Some(40.0), partly), None),
        ] {
            figures.observe(&load(0, 0), &[now], 0);
            assert_eq!(figures.known().get(&Figure::GpuUtilization).copied(), want, "{case}");
        }
    }
}

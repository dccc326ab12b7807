//! Learns how long a start takes, phase by phase.

use std::collections::VecDeque;

use forebay_signals::ColdStart;
use serde::{Deserialize, Serialize};

use super::inputs::ReplicaFacts;

/// Older starts tell of another image, node or cache.
const KEPT: usize = 50;
/// Before the first: a mid-sized model from a warm cache.
const PRIOR_SECONDS: f64 = 60.0;

/// The last starts of a pool, in seconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ColdStarts {
    /// Asked → ready, the whole of it.
    total: Recent,
    scheduled: Recent,
    started: Recent,
    healthy: Recent,
    first_token: Recent,
    #[serde(skip)]
    seen_ms: u64,
}

/// The last values of one kind.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
struct Recent(VecDeque<f64>);

/// Quantiles by phase; `None` where the target does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Phases {
    /// Asked for → given a machine.
    pub scheduled: Option<ColdStart>,
    /// → its process or container runs.
    pub started: Option<ColdStart>,
    /// → a gateway found it healthy.
    pub healthy: Option<ColdStart>,
    /// → its first answer, as far as it was seen. Not part of the cold start.
    pub first_token: Option<ColdStart>,
}

impl ColdStarts {
    /// Takes over the starts that got on since the last call.
    pub fn observe(&mut self, replicas: &[ReplicaFacts], now_ms: u64) {
        let new = |at: &Option<u64>| at.filter(|at| *at > self.seen_ms && *at <= now_ms);
        let mut learned: Vec<(ReplicaFacts, bool)> = Vec::new();
        for replica in replicas {
            if new(&replica.ready_ms).is_some() {
                learned.push((*replica, true));
            } else if new(&replica.first_token_ms).is_some() {
                learned.push((*replica, false));
            }
        }
        for (replica, ready) in learned {
            if ready {
                self.record(&replica);
            }
            if let (Some(ready), Some(first)) = (replica.ready_ms, replica.first_token_ms) {
                self.first_token.push(first.saturating_sub(ready));
            }
        }
        self.seen_ms = now_ms;
    }

    fn record(&mut self, replica: &ReplicaFacts) {
        let Some(ready_ms) = replica.ready_ms else { return };
        let mut at = replica.asked_ms;
        self.total.push(ready_ms.saturating_sub(at));
        for (phase, end) in [
            (&mut self.scheduled, replica.scheduled_ms),
            (&mut self.started, replica.started_ms),
            (&mut self.healthy, Some(ready_ms)),
        ] {
            if let Some(end) = end {
                phase.push(end.saturating_sub(at));
                at = at.max(end);
            }
        }
    }

    /// The quantiles of the whole; `None` before the first start.
    #[must_use]
    pub fn quantiles(&self) -> Option<ColdStart> {
        self.total.quantiles()
    }

    /// The quantiles of each phase.
    #[must_use]
    pub fn phases(&self) -> Phases {
        Phases {
            scheduled: self.scheduled.quantiles(),
            started: self.started.quantiles(),
            healthy: self.healthy.quantiles(),
            first_token: self.first_token.quantiles(),
        }
    }

    /// How long a start takes that goes no better than nine of ten; supposed before the first.
    #[must_use]
    pub fn expected_seconds(&self) -> f64 {
        self.quantiles().map_or(PRIOR_SECONDS, |learned| learned.p90_seconds)
    }
}

impl Recent {
    fn push(&mut self, ms: u64) {
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back(ms as f64 / 1000.0);
    }

    fn quantiles(&self) -> Option<ColdStart> {
        let mut sorted: Vec<_> = self.0.iter().copied().collect();
        sorted.sort_by(f64::total_cmp);
        let rank = |q: f64| ((q * sorted.len() as f64).ceil() as usize).max(1) - 1;
        Some(ColdStart {
            p50_seconds: *sorted.get(rank(0.5))?,
            p90_seconds: *sorted.get(rank(0.9))?,
            samples: sorted.len() as u32,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(asked_ms: u64, ready_ms: u64) -> ReplicaFacts {
        ReplicaFacts { ready_ms: Some(ready_ms), ..ReplicaFacts::asked(asked_ms) }
    }

    #[test]
    fn quantiles_are_of_the_last_starts() {
        let mut starts = ColdStarts::default();
        assert_eq!(starts.quantiles(), None);
        assert!((starts.expected_seconds() - 60.0).abs() < 1e-9, "supposed");
        for n in 1..=100 {
            starts.observe(&[start(1_000_000 * n, 1_001_000 * n)], 1_001_000 * n);
        }
        let learned = starts.quantiles().expect("samples");
        assert_eq!((learned.p50_seconds, learned.p90_seconds, learned.samples), (75.0, 95.0, 50));
    }

    #[test]
    fn each_phase_is_learned_once_and_where_it_is_told() {
        let mut starts = ColdStarts::default();
        let mut replica = start(1_000, 61_000);
        (replica.scheduled_ms, replica.started_ms) = (Some(3_000), Some(11_000));
        starts.observe(&[replica], 61_000);
        replica.first_token_ms = Some(61_500);
        starts.observe(&[replica], 62_000);
        starts.observe(&[replica], 63_000);
        let phases = starts.phases();
        let seconds = |of: Option<ColdStart>| of.map(|it| (it.p50_seconds, it.samples));
        assert_eq!(seconds(phases.scheduled), Some((2.0, 1)));
        assert_eq!(seconds(phases.started), Some((8.0, 1)));
        assert_eq!(seconds(phases.healthy), Some((50.0, 1)));
        assert_eq!(seconds(phases.first_token), Some((0.5, 1)));
        assert_eq!(seconds(starts.quantiles()), Some((60.0, 1)));

        starts.observe(&[start(70_000, 80_000)], 80_000);
        assert_eq!(starts.phases().scheduled.expect("kept").samples, 1, "this one did not tell");
    }
}

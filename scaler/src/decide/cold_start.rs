//! Learns how long a start takes, phase by phase.

use std::collections::VecDeque;

use forebay_config::Millis;
use forebay_signals::ColdStart;
use serde::{Deserialize, Serialize};

use super::inputs::ReplicaFacts;

/// Starts to remember. Older ones had another image, node or cache.
const KEPT: usize = 50;
/// Assumed before the first start: a mid-sized model from a warm cache.
const PRIOR_SECONDS: f64 = 60.0;

/// The last starts of a pool, in seconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ColdStarts {
    /// Requested → ready.
    total: Recent,
    scheduled: Recent,
    started: Recent,
    healthy: Recent,
    first_token: Recent,
    #[serde(skip)]
    seen_until: Option<Millis>,
}

/// The last values of one kind.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
struct Recent(VecDeque<f64>);

/// Quantiles by phase; `None` if the target does not report the phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Phases {
    /// Requested → assigned to a machine.
    pub scheduled: Option<ColdStart>,
    /// → the process or container runs.
    pub started: Option<ColdStart>,
    /// → a gateway found it healthy.
    pub healthy: Option<ColdStart>,
    /// → its first answer, if one was observed. Not part of the cold start.
    pub first_token: Option<ColdStart>,
}

impl ColdStarts {
    /// Records the starts that made progress since the last call.
    pub fn observe(&mut self, replicas: &[ReplicaFacts], now: Millis) {
        let new = |at: &Option<Millis>| at.filter(|at| Some(*at) > self.seen_until && *at <= now);
        let mut learned: Vec<(ReplicaFacts, bool)> = Vec::new();
        for replica in replicas {
            if new(&replica.ready_at).is_some() {
                learned.push((*replica, true));
            } else if new(&replica.first_token_at).is_some() {
                learned.push((*replica, false));
            }
        }
        for (replica, ready) in learned {
            if ready {
                self.record(&replica);
            }
            if let (Some(ready), Some(first)) = (replica.ready_at, replica.first_token_at) {
                self.first_token.push(first.since(ready));
            }
        }
        self.seen_until = Some(now);
    }

    fn record(&mut self, replica: &ReplicaFacts) {
        let Some(ready_at) = replica.ready_at else { return };
        let mut at = replica.requested_at;
        self.total.push(ready_at.since(at));
        for (phase, end) in [
            (&mut self.scheduled, replica.scheduled_at),
            (&mut self.started, replica.started_at),
            (&mut self.healthy, Some(ready_at)),
        ] {
            if let Some(end) = end {
                phase.push(end.since(at));
                at = at.max(end);
            }
        }
    }

    /// The quantiles of the whole start; `None` before the first one.
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

    /// The time within which nine of ten starts end; assumed before the first.
    #[must_use]
    pub fn expected_seconds(&self) -> f64 {
        self.quantiles().map_or(PRIOR_SECONDS, |learned| learned.p90_seconds)
    }
}

impl Recent {
    fn push(&mut self, span: Millis) {
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back(span.as_secs_f64());
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

    fn start(requested_at: u64, ready_at: u64) -> ReplicaFacts {
        let ready_at = Some(Millis::new(ready_at));
        ReplicaFacts { ready_at, ..ReplicaFacts::requested(Millis::new(requested_at)) }
    }

    #[test]
    fn quantiles_are_of_the_last_starts() {
        let mut starts = ColdStarts::default();
        assert_eq!(starts.quantiles(), None);
        assert!((starts.expected_seconds() - 60.0).abs() < 1e-9, "assumed");
        for n in 1..=100 {
            starts.observe(&[start(1_000_000 * n, 1_001_000 * n)], Millis::new(1_001_000 * n));
        }
        let learned = starts.quantiles().expect("samples");
        assert_eq!((learned.p50_seconds, learned.p90_seconds, learned.samples), (75.0, 95.0, 50));
    }

    #[test]
    fn each_phase_is_learned_once_and_only_if_reported() {
        let mut starts = ColdStarts::default();
        let mut replica = start(1_000, 61_000);
        (replica.scheduled_at, replica.started_at) =
            (Some(Millis::new(3_000)), Some(Millis::new(11_000)));
        starts.observe(&[replica], Millis::new(61_000));
        replica.first_token_at = Some(Millis::new(61_500));
        starts.observe(&[replica], Millis::new(62_000));
        starts.observe(&[replica], Millis::new(63_000));
        let phases = starts.phases();
        let seconds = |of: Option<ColdStart>| of.map(|known| (known.p50_seconds, known.samples));
        assert_eq!(seconds(phases.scheduled), Some((2.0, 1)));
        assert_eq!(seconds(phases.started), Some((8.0, 1)));
        assert_eq!(seconds(phases.healthy), Some((50.0, 1)));
        assert_eq!(seconds(phases.first_token), Some((0.5, 1)));
        assert_eq!(seconds(starts.quantiles()), Some((60.0, 1)));

        starts.observe(&[start(70_000, 80_000)], Millis::new(80_000));
        assert_eq!(
            starts.phases().scheduled.expect("kept").samples,
            1,
            "this one reports no phases"
        );
    }
}

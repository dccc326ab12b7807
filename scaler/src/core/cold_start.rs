//! Learns how long a start takes, from asked for to ready.

use std::collections::VecDeque;

use forebay_signals::ColdStart;

/// Older starts tell of another image, node or cache.
const KEPT: usize = 50;

/// The last starts of a pool.
#[derive(Clone, Debug, Default)]
pub struct ColdStarts {
    seconds: VecDeque<f64>,
}

impl ColdStarts {
    /// One replica became ready so long after it was asked for.
    pub fn record(&mut self, seconds: f64) {
        if self.seconds.len() == KEPT {
            self.seconds.pop_front();
        }
        self.seconds.push_back(seconds);
    }

    /// The quantiles; `None` before the first start.
    #[must_use]
    pub fn quantiles(&self) -> Option<ColdStart> {
        let mut sorted: Vec<_> = self.seconds.iter().copied().collect();
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

    #[test]
    fn quantiles_are_of_the_last_starts() {
        let mut starts = ColdStarts::default();
        assert_eq!(starts.quantiles(), None);
        (1..=100).for_each(|s| starts.record(f64::from(s)));
        let learned = starts.quantiles().expect("samples");
        assert_eq!((learned.p50_seconds, learned.p90_seconds, learned.samples), (75.0, 95.0, 50));
    }
}

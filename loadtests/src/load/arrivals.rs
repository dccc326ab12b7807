//! When requests go out: each arrival's intended time, from the beginning of the run.
//!
//! Pure: all randomness follows from the seed.

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::units::RateRange;
use crate::replay::trace::{PromptContent, Request, Trace};

/// The kind of a load, with its rates in requests per second.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Arrivals {
    Poisson(f64),
    Constant(f64),
    Ramp(RateRange),
    Trace(Trace),
    /// A closed loop of this many clients.
    Clients(u32),
}

/// One request to come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Arrival {
    /// Since the beginning of the run.
    pub(crate) at: Duration,
    /// Prompt and output tokens, where a trace gives them.
    pub(crate) tokens: Option<(u32, u32)>,
    /// The content of its prompt, where a trace says what prompts have in common.
    pub(crate) content: Option<PromptContent>,
}

impl Arrivals {
    /// All arrivals within `length`, in order. None of [`Arrivals::Clients`], whose requests follow
    /// their answers.
    pub(crate) fn within(
        &self,
        length: Duration,
        seed: u64,
    ) -> Box<dyn Iterator<Item = Arrival> + '_> {
        let seconds = length.as_secs_f64();
        let timed = move |at: f64| {
            (at < seconds)
                .then(|| Arrival { at: Duration::from_secs_f64(at), ..Arrival::default() })
        };
        match *self {
            Self::Poisson(rate) => {
                Box::new(unit_process(seed).map_while(move |count| timed(count / rate)))
            }
            Self::Constant(rate) => {
                Box::new((0u64..).map_while(move |number| timed(number as f64 / rate)))
            }
            Self::Ramp(range) => Box::new(
                unit_process(seed).map_while(move |count| timed(ramp_time(range, seconds, count)?)),
            ),
            Self::Trace(ref trace) => Box::new(
                trace
                    .requests
                    .iter()
                    .zip(0..)
                    .map(|(Request { at, prompt, output }, number)| Arrival {
                        at: Duration::from_micros(*at),
                        tokens: Some((*prompt, *output)),
                        content: trace.content(number).cloned(),
                    })
                    .take_while(move |arrival| arrival.at < length),
            ),
            Self::Clients(_) => Box::new(std::iter::empty()),
        }
    }
}

/// The times of a Poisson process with one arrival a second.
fn unit_process(seed: u64) -> impl Iterator<Item = f64> {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut time = 0.0;
    std::iter::from_fn(move || {
        time -= (1.0 - random.random::<f64>()).ln();
        Some(time)
    })
}

/// The time by which a ramp over `length` seconds expects `count` arrivals: the root of
/// `from·t + (to − from)·t² / (2·length) = count`. `None` where a falling ramp never reaches it.
fn ramp_time(RateRange { from, to }: RateRange, length: f64, count: f64) -> Option<f64> {
    let growth = (to - from) / length;
    let root = from.mul_add(from, 2.0 * growth * count);
    // In the form that stays exact for a growth of zero.
    (root >= 0.0).then(|| 2.0 * count / (from + root.sqrt()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn times(arrivals: &Arrivals, seed: u64) -> Vec<f64> {
        arrivals.within(MINUTE, seed).map(|arrival| arrival.at.as_secs_f64()).collect()
    }

    #[test]
    fn a_constant_rate_is_evenly_spaced() {
        let times = times(&Arrivals::Constant(4.0), 1);
        assert_eq!(times.len(), 240);
        assert_eq!(times[..3], [0.0, 0.25, 0.5]);
    }

    #[test]
    fn a_poisson_process_has_its_rate_and_gaps_that_vary_as_much_as_their_mean() {
        let times = times(&Arrivals::Poisson(100.0), 1);
        assert!((5700..6300).contains(&times.len()), "{}", times.len());
        assert!(times.is_sorted());
        let gaps: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((0.9..1.1).contains(&(variance.sqrt() / mean)), "{}", variance.sqrt() / mean);
    }

    #[test]
    fn a_ramp_begins_and_ends_at_its_rates_in_both_directions() {
        for (from, to) in [(0.0, 200.0), (200.0, 0.0), (10.0, 200.0), (100.0, 100.0)] {
            let times = times(&Arrivals::Ramp(RateRange { from, to }), 1);
            let within = |a: f64, b: f64| times.iter().filter(|t| (a..b).contains(*t)).count();
            let close =
                |count: usize, want: f64| (count as f64 - want).abs() < 6.0 * want.sqrt() + 6.0;
            let slope = (to - from) / 60.0;
            assert!(close(within(0.0, 6.0), 6.0 * from + 18.0 * slope), "{from}-{to}: first tenth");
            assert!(close(within(54.0, 60.0), 6.0 * to - 18.0 * slope), "{from}-{to}: last tenth");
            assert!(close(times.len(), 30.0 * (from + to)), "{from}-{to}: all");
        }
    }

    #[test]
    fn a_seed_gives_the_same_times_again_and_another_seed_gives_others() {
        let arrivals = Arrivals::Poisson(5.0);
        assert_eq!(times(&arrivals, 1), times(&arrivals, 1));
        assert_ne!(times(&arrivals, 1), times(&arrivals, 2));
    }
}

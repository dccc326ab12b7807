//! Generated loads, each from a seed: typical shapes over time.
//!
//! Arrivals are a Poisson process whose rate follows the shape; lengths are log-normal, like those of
//! chat traffic.

use anyhow::bail;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::{Request, SECOND, Trace, Us};

const MINUTE: f64 = 60.0;
const HOUR: f64 = 3600.0;
const DAY: f64 = 24.0 * HOUR;
/// A Monday, 00:00 UTC: the beginning of generated days and weeks.
const MONDAY_MS: u64 = 1_767_571_200_000;

/// A load over time.
pub(crate) struct TraceShape {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    /// Length.
    seconds: f64,
    /// Requests per second at a second of the load.
    rate: fn(f64) -> f64,
    tokens: Lengths,
}

/// Lengths of prompts and answers, in tokens.
struct Lengths {
    /// Median of the prompts.
    prompt: f64,
    /// Median of the answers, and the longest one.
    output: f64,
    longest: f64,
}

/// All generated loads.
pub(crate) const SHAPES: [TraceShape; 12] = [
    TraceShape {
        name: "office-day",
        about: "one working day: quiet nights, a morning climb, a dip at noon",
        seconds: DAY,
        rate: office,
        tokens: CHAT,
    },
    TraceShape {
        name: "week",
        about: "five office days and a weekend",
        seconds: 7.0 * DAY,
        rate: week,
        tokens: CHAT,
    },
    TraceShape {
        name: "weekend",
        about: "Saturday and Sunday: a few short visits a day",
        seconds: 2.0 * DAY,
        rate: weekend,
        tokens: CHAT,
    },
    TraceShape {
        name: "burst",
        about: "nothing for 10 minutes, then 100 requests in two seconds and 10 minutes of load",
        seconds: 40.0 * MINUTE,
        rate: burst,
        tokens: CHAT,
    },
    TraceShape {
        name: "ramp",
        about: "from nothing to 12 requests a second in an hour",
        seconds: HOUR,
        rate: |t| 12.0 * t / HOUR,
        tokens: CHAT,
    },
    TraceShape {
        name: "sawtooth",
        about: "climbs for 20 minutes and falls at once, six times",
        seconds: 2.0 * HOUR,
        rate: |t| 10.0 * (t / (20.0 * MINUTE)).fract(),
        tokens: CHAT,
    },
    TraceShape {
        name: "steady",
        about: "5 requests a second for an hour",
        seconds: HOUR,
        rate: |_| 5.0,
        tokens: CHAT,
    },
    TraceShape {
        name: "overload",
        about: "33 requests a second for ten minutes, then nothing for half an hour",
        seconds: 40.0 * MINUTE,
        rate: |t| if t < 10.0 * MINUTE { 33.0 } else { 0.0 },
        tokens: CHAT,
    },
    TraceShape {
        name: "dev-cluster",
        about: "a week of a team's own cluster: used 8 hours a day",
        seconds: 7.0 * DAY,
        rate: dev,
        tokens: CHAT,
    },
    TraceShape {
        name: "production",
        about: "a day between a quarter and the whole of its peak",
        seconds: DAY,
        rate: |t| 9.0 - 6.5 * (std::f64::consts::TAU * (t / DAY - 0.08)).cos(),
        tokens: CHAT,
    },
    TraceShape {
        name: "nightly-batch",
        about: "three days with a batch of long requests each night at 01:00",
        seconds: 3.0 * DAY,
        rate: |t| if (1.0..5.5).contains(&((t % DAY) / HOUR)) { 4.0 } else { 0.0 },
        tokens: Lengths { prompt: 2000.0, output: 400.0, longest: 2000.0 },
    },
    TraceShape {
        name: "long-answers",
        about: "a day of answers of minutes, as reasoning models give, in waves of an hour and a half",
        seconds: DAY,
        rate: |t| 0.3 - 0.25 * (std::f64::consts::TAU * t / (1.5 * HOUR)).cos(),
        tokens: Lengths { prompt: 600.0, output: 8000.0, longest: 32_000.0 },
    },
];

const CHAT: Lengths = Lengths { prompt: 600.0, output: 150.0, longest: 2000.0 };

fn office(t: f64) -> f64 {
    let hour = (t % DAY) / HOUR;
    let bump = |at: f64, width: f64| (-((hour - at) / width).powi(2)).exp();
    0.02 + 7.0 * bump(10.5, 1.6) + 6.5 * bump(15.0, 1.9) + 0.6 * bump(20.0, 1.5)
}

fn weekend(t: f64) -> f64 {
    let hour = (t % DAY) / HOUR;
    // Visits of a quarter of an hour, a few each day.
    let visited = (9.0..22.0).contains(&hour) && ((hour * 4.0) as u64).is_multiple_of(5);
    if visited { 0.8 } else { 0.0 }
}

fn week(t: f64) -> f64 {
    if t < 5.0 * DAY { office(t) } else { weekend(t) }
}

fn dev(t: f64) -> f64 {
    let hour = (t % DAY) / HOUR;
    if (9.0..17.0).contains(&hour) { 0.3 } else { 0.0 }
}

fn burst(t: f64) -> f64 {
    match t / MINUTE {
        m if m < 10.0 => 0.0,
        m if m < 10.0 + 2.0 / 60.0 => 50.0,
        m if m < 20.0 => 6.0,
        _ => 0.0,
    }
}

pub(crate) fn by_name(name: &str, seed: u64) -> anyhow::Result<Trace> {
    let Some(shape) = SHAPES.iter().find(|shape| shape.name == name) else {
        let known: Vec<_> = SHAPES.iter().map(|shape| shape.name).collect();
        bail!(
            "known are {}, and those with contents that `forebay replay --help` names; or give a \
             CSV file",
            known.join(", ")
        );
    };
    Ok(generate(shape, seed))
}

/// Makes a load by thinning: arrivals at the peak rate, each kept with probability rate ÷ peak.
fn generate(shape: &TraceShape, seed: u64) -> Trace {
    let mut random = SmallRng::seed_from_u64(seed);
    let steps = (shape.seconds as usize).max(1);
    let peak = (0..steps).map(|s| (shape.rate)(s as f64)).fold(0.001, f64::max) * 1.02;
    let mut requests = Vec::new();
    let mut t = 0.0;
    loop {
        t -= (1.0 - random.random::<f64>()).ln() / peak;
        if t >= shape.seconds {
            break;
        }
        if random.random::<f64>() * peak < (shape.rate)(t) {
            let Lengths { prompt, output, longest } = shape.tokens;
            let prompt = log_normal(&mut random, prompt, 0.8, 16_000.0);
            let output = log_normal(&mut random, output, 0.7, longest);
            requests.push(Request { at: (t * SECOND as f64) as Us, prompt, output });
        }
    }
    Trace {
        name: shape.name.to_owned(),
        began_ms: MONDAY_MS,
        length: (shape.seconds * SECOND as f64) as Us,
        requests,
        contents: Vec::new(),
    }
}

/// A log-normal number with this median, at least 1 and at most `most`.
pub(super) fn log_normal(random: &mut SmallRng, median: f64, sigma: f64, most: f64) -> u32 {
    (median * (sigma * normal(random)).exp()).clamp(1.0, most) as u32
}

/// A normal number with mean 0 and deviation 1, by Box and Muller.
pub(crate) fn normal(random: &mut SmallRng) -> f64 {
    let radius = (-2.0 * (1.0 - random.random::<f64>()).ln()).sqrt();
    radius * (std::f64::consts::TAU * random.random::<f64>()).cos()
}

/// `count` arrivals of a Poisson process with `rate` a second.
#[cfg(test)]
pub(crate) fn poisson(rate: f64, count: usize, seed: u64) -> Vec<Us> {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut t = 0.0;
    let mut next = || {
        t -= (1.0 - random.random::<f64>()).ln() / rate;
        (t * SECOND as f64) as Us
    };
    (0..count).map(|_| next()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_load_again_and_another_seed_another() {
        let make = |seed| by_name("burst", seed).expect("known");
        assert_eq!(make(1), make(1));
        assert_ne!(make(1).requests, make(2).requests);
    }

    #[test]
    fn each_shape_has_requests_in_order_within_its_length() {
        for shape in SHAPES.iter().filter(|shape| shape.seconds <= 2.0 * DAY) {
            let trace = generate(shape, 7);
            assert!(trace.requests.len() > 100, "{}: {}", shape.name, trace.requests.len());
            assert!(trace.requests.is_sorted_by_key(|r| r.at), "{}", shape.name);
            assert!(trace.requests.iter().all(|r| r.at < trace.length), "{}", shape.name);
        }
    }

    #[test]
    fn an_unknown_name_is_refused_with_the_known_ones() {
        let error = format!("{:#}", by_name("brust", 1).expect_err("unknown"));
        assert!(error.contains("known are office-day, week, weekend, burst"), "{error}");
    }
}

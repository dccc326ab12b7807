//! The autoscalers: Forebay, and those that it is compared with.
//!
//! Each has its own view of the world, with its own delays: the figures that it reads, how often,
//! and the ones that it can't see. The formulas are pure; each has a file.

use anyhow::{Context, bail, ensure};

use super::trace::Us;
pub(crate) use super::world::{Contestant, Rules};

pub(crate) mod fixed;
pub(crate) mod forebay;
pub(crate) mod hpa;
pub(crate) mod keda;
pub(crate) mod knative;
pub(crate) mod kubeai;
pub(crate) mod optimum;

/// The bounds of every contestant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) min: u32,
    pub(crate) max: u32,
    /// Idle time before zero.
    pub(crate) cooldown: Us,
    /// Most requests at one replica: the gateway's limit, Knative's container concurrency.
    pub(crate) limit: u32,
    /// Target number of requests for each replica.
    pub(crate) target: u32,
}

/// An autoscaler to compare with, with the figure that was given after `=`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Baseline {
    /// A constant count; by default, as many replicas as the objective needs.
    Fixed(Option<u32>),
    /// KEDA's prometheus trigger with the HPA; the figure is its threshold.
    Keda(f64),
    /// The same with at least one replica.
    KedaFromOne(f64),
    /// Knative's autoscaler; the figure is the container concurrency.
    Knative(Option<u32>),
    /// KubeAI's autoscaler; the figure is its target of requests.
    KubeAi(Option<u32>),
    /// Forebay, whose draining replicas finish their streams.
    Drained,
    /// Knows the trace; the figure is the share within the objective.
    Optimum(Option<f64>),
}

impl Baseline {
    /// Whether it is played in a fraction of the time that Forebay's own decisions take.
    pub(crate) fn is_quick(self) -> bool {
        match self {
            Self::Fixed(_) | Self::Drained | Self::Optimum(_) => false,
            Self::Keda(_) | Self::KedaFromOne(_) | Self::Knative(_) | Self::KubeAi(_) => true,
        }
    }
}

/// Names and descriptions, for help and errors.
pub(crate) const BASELINES: [(&str, &str); 7] = [
    ("fixed", "a constant count, as many as the objective needs; fixed=N for N"),
    ("keda", "KEDA and HPA on vllm:num_requests_waiting; keda=N for a threshold other than 5"),
    ("keda-min1", "the same with at least one replica, since keda never wakes from zero"),
    ("knative", "Knative's autoscaler; knative=N for a container concurrency of N"),
    ("kubeai", "KubeAI's autoscaler; kubeai=N for a target of N requests"),
    ("drained", "Forebay with `drain.moveAfter: never`, if the pool moves streams"),
    ("optimum", "knows the trace beforehand; optimum=SHARE for a share other than Forebay's"),
];

impl std::str::FromStr for Baseline {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (text, None),
        };
        let number = || {
            let number = value.map(|value| {
                let number: Option<f64> =
                    value.parse().ok().filter(|n: &f64| n.is_finite() && *n > 0.0);
                number.with_context(|| format!("`{value}` in `{text}` is not a number above 0"))
            });
            number.transpose()
        };
        let count = || -> anyhow::Result<Option<u32>> {
            let Some(number) = number()? else { return Ok(None) };
            ensure!(
                number.fract() == 0.0 && number <= 100_000.0,
                "`{text}`: must be a whole number, at most 100000"
            );
            Ok(Some(number as u32))
        };
        Ok(match name {
            "fixed" => Self::Fixed(count()?),
            "keda" => Self::Keda(number()?.unwrap_or(keda::THRESHOLD)),
            "keda-min1" => Self::KedaFromOne(number()?.unwrap_or(keda::THRESHOLD)),
            "knative" => Self::Knative(count()?),
            "kubeai" => Self::KubeAi(count()?),
            "drained" => {
                ensure!(value.is_none(), "`{text}`: drained has no figure");
                Self::Drained
            }
            "optimum" => {
                let share = number()?;
                ensure!(share.is_none_or(|s| s <= 1.0), "`{text}`: a share is between 0 and 1");
                Self::Optimum(share)
            }
            _ => {
                let known: Vec<_> = BASELINES.iter().map(|(name, _)| *name).collect();
                bail!("unknown baseline `{name}`; known are {}, and all", known.join(", "))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_baseline_is_a_name_with_or_without_its_figure() {
        for (text, want) in [
            ("fixed", Baseline::Fixed(None)),
            ("fixed=4", Baseline::Fixed(Some(4))),
            ("keda", Baseline::Keda(5.0)),
            ("keda-min1=0.5", Baseline::KedaFromOne(0.5)),
            ("knative=20", Baseline::Knative(Some(20))),
            ("drained", Baseline::Drained),
            ("optimum=0.99", Baseline::Optimum(Some(0.99))),
        ] {
            assert_eq!(text.parse::<Baseline>().expect(text), want, "{text}");
        }
        for (text, want) in [
            ("kedda", "unknown baseline `kedda`; known are fixed, keda, keda-min1, knative"),
            ("fixed=x", "`x` in `fixed=x` is not a number above 0"),
            ("fixed=1.5", "must be a whole number"),
            ("drained=1", "drained has no figure"),
            ("optimum=99", "a share is between 0 and 1"),
        ] {
            let error = format!("{:#}", text.parse::<Baseline>().expect_err(text));
            assert!(error.contains(want), "{text}: {error}");
        }
    }
}

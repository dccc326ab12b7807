//! A trigger's metadata, parsed, or refused with the field's name.

use std::collections::HashMap;

use forebay_config::{Config, Target};
use forebay_signals::Figure;

use super::proto::ScaledObjectRef;

/// The HPA's tolerance by default.
const TOLERANCE: f64 = 0.1;

/// The request of one trigger.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Question {
    /// The pool's name.
    pub(crate) pool: String,
    /// The way in which it uses Forebay.
    pub(crate) ask: Ask,
}

/// The two ways to use Forebay from a ScaledObject.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Ask {
    /// The count that Forebay decided.
    Desired {
        /// The tolerance of the HPA that reads it.
        tolerance: f64,
    },
    /// One signal, for the HPA to compute with.
    Signal {
        /// The signal.
        figure: Figure,
        /// Threshold of the figure, per replica (`AverageValue`) or absolute (`Value`); `None`
        /// stands for the pool's target concurrency.
        threshold: Option<f64>,
        /// Active when the figure is more than this.
        activation: f64,
        /// Whether anything measures it, though maybe not yet.
        has_source: bool,
    },
}

/// A mistake in a trigger, as the user reads it in the ScaledObject's events.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Mistake {
    #[error(
        "no `pool` in the trigger's metadata, and no pool has the target keda.scaledObject `{object}`; add `pool: NAME`, with one of: {known}"
    )]
    NoPool { object: String, known: String },
    #[error("metadata.pool: there is no pool `{pool}`; the pools are: {known}")]
    UnknownPool { pool: String, known: String },
    #[error(
        "metadata.pool: pool `{pool}` is not scaled by KEDA; give it `target: {{keda: {{scaledObject: {object}}}}}` in Forebay's configuration"
    )]
    OtherTarget { pool: String, object: String },
    #[error(
        "metadata.metric: `{metric}` is not one of Forebay's signals; write one of {known}, or leave it out for the desired replicas"
    )]
    UnknownMetric { metric: String, known: String },
    #[error("metadata.{field}: `{value}` is not a number of {least}")]
    NotANumber { field: &'static str, value: String, least: &'static str },
    #[error("metadata.threshold: none given; `{metric}` needs one")]
    NoThreshold { metric: &'static str },
    #[error(
        "metadata.{field}: has no effect without `metric`; Forebay's own thresholds are in the pool's configuration"
    )]
    NoEffect { field: &'static str },
}

/// Parses the trigger of `object`.
///
/// # Errors
/// [`Mistake`], which names the field.
pub(crate) fn parse(object: &ScaledObjectRef, config: &Config) -> Result<Question, Mistake> {
    let metadata = &object.scaler_metadata;
    let text =
        |field: &str| metadata.get(field).map(|value| value.trim()).filter(|v| !v.is_empty());
    let pool = pool(object, text("pool"), config)?;
    let Some(metric) = text("metric") else {
        for field in ["threshold", "activationThreshold"] {
            if text(field).is_some() {
                return Err(Mistake::NoEffect { field });
            }
        }
        let tolerance = number(metadata, "tolerance", 0.0)?.unwrap_or(TOLERANCE);
        return Ok(Question { pool, ask: Ask::Desired { tolerance } });
    };
    let figure = Figure::ALL.into_iter().find(|figure| figure.name() == metric);
    let figure = figure.ok_or_else(|| Mistake::UnknownMetric {
        metric: metric.to_owned(),
        known: Figure::ALL.map(Figure::name).join(", "),
    })?;
    let threshold = number(metadata, "threshold", f64::MIN_POSITIVE)?;
    if threshold.is_none() && figure != Figure::Concurrency {
        return Err(Mistake::NoThreshold { metric: figure.name() });
    }
    let activation = number(metadata, "activationThreshold", 0.0)?.unwrap_or(0.0);
    let has_source = has_source(figure, &pool, config);
    Ok(Question { pool, ask: Ask::Signal { figure, threshold, activation, has_source } })
}

fn pool(object: &ScaledObjectRef, named: Option<&str>, config: &Config) -> Result<String, Mistake> {
    let by_keda = config.pools.iter().filter_map(|pool| match &pool.target {
        Some(Target::Keda(keda)) => Some((pool, keda)),
        _ => None,
    });
    let known = || {
        let names: Vec<_> = by_keda.clone().map(|(pool, _)| pool.name.as_str()).collect();
        names.join(", ")
    };
    if let Some(name) = named {
        if by_keda.clone().any(|(pool, _)| pool.name == name) {
            return Ok(name.to_owned());
        }
        let pool = name.to_owned();
        return Err(if config.pools.iter().any(|pool| pool.name == name) {
            Mistake::OtherTarget { pool, object: object.name.clone() }
        } else {
            Mistake::UnknownPool { pool, known: known() }
        });
    }
    let fits = |keda: &forebay_config::Keda| {
        let here = keda.namespace.as_deref().is_none_or(|name| name == object.namespace);
        here && keda.scaled_object == object.name
    };
    let found = by_keda.clone().find(|(_, keda)| fits(keda));
    let found = found.map(|(pool, _)| pool.name.clone());
    found.ok_or_else(|| Mistake::NoPool { object: object.name.clone(), known: known() })
}

/// Whether anything measures the figure: gateways measure all but two, which need a trigger.
fn has_source(figure: Figure, pool: &str, config: &Config) -> bool {
    let second_hand = matches!(figure, Figure::KvCache | Figure::GpuUtilization);
    let pool = config.pools.iter().find(|one| one.name == pool);
    !second_hand
        || pool.is_some_and(|pool| {
            pool.scaling.triggers.iter().any(|trigger| trigger.kind == figure.name())
        })
}

fn number(
    metadata: &HashMap<String, String>,
    field: &'static str,
    least: f64,
) -> Result<Option<f64>, Mistake> {
    let Some(value) = metadata.get(field).map(|value| value.trim()).filter(|v| !v.is_empty())
    else {
        return Ok(None);
    };
    let number = value.parse::<f64>().ok().filter(|n| n.is_finite() && *n >= least);
    let least = if least > 0.0 { "more than 0" } else { "0 or more" };
    let wrong = || Mistake::NotANumber { field, value: value.to_owned(), least };
    number.map(Some).ok_or_else(wrong)
}

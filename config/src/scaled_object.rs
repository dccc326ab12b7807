//! ScaledObjects of KEDA's, whole or in part, as far as their triggers can be judged.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::behavior::Behavior;
use crate::check::{behavior, comments};
use crate::lint::{Reader, Scene, lint};
use crate::problem::{Path, Place, Problem, Problems};
use crate::trigger::{AuthenticationRef, MetricType, Trigger};
use crate::yaml::{self, Kind, Node, Tree};

/// KEDA's limits where a ScaledObject gives none.
const MIN: u32 = 0;
const MAX: u32 = 100;

/// The `spec` of a ScaledObject.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Spec {
    #[serde(rename = "scaleTargetRef")]
    _scale_target_ref: Option<IgnoredAny>,
    #[serde(rename = "pollingInterval")]
    _polling_interval: Option<u32>,
    #[serde(rename = "cooldownPeriod")]
    _cooldown_period: Option<u32>,
    #[serde(rename = "initialCooldownPeriod")]
    _initial_cooldown_period: Option<u32>,
    #[serde(rename = "fallback")]
    _fallback: Option<IgnoredAny>,
    idle_replica_count: Option<u32>,
    min_replica_count: Option<u32>,
    max_replica_count: Option<u32>,
    advanced: Option<Advanced>,
    triggers: Vec<Written>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Advanced {
    #[serde(rename = "restoreToOriginalReplicaCount")]
    _restore_to_original_replica_count: Option<bool>,
    #[serde(rename = "scalingModifiers")]
    _scaling_modifiers: Option<IgnoredAny>,
    horizontal_pod_autoscaler_config: Option<HpaConfig>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct HpaConfig {
    #[serde(rename = "name")]
    _name: Option<String>,
    behavior: Option<Behavior>,
}

/// A trigger of any type that KEDA knows.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Written {
    #[serde(rename = "type")]
    kind: String,
    name: Option<String>,
    metric_type: Option<String>,
    use_cached_metrics: Option<bool>,
    authentication_ref: Option<AuthenticationRef>,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
}

/// A whole document, with what is beside the `spec` left alone.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Document {
    spec: Spec,
}

/// What in the ScaledObjects of `text` can't work as it is meant. `text` may hold several
/// documents, of which others than ScaledObjects are passed over, or a part of one: its `spec`, or
/// `triggers` and `advanced` alone.
///
/// # Errors
/// All that makes them invalid; the warnings otherwise.
pub fn inspect_scaled_object(text: &str, source_name: &str) -> Result<Problems, Problems> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let problem = |place: Place, field: String, message: String| Problem {
        source: source_name.to_owned(),
        place: Some(place),
        field,
        message,
    };
    let trees = Tree::parse_all(text).map_err(|broken| {
        let broken = broken.into_iter();
        Problems::sorted(
            broken.map(|(place, message)| problem(place, String::new(), message)).collect(),
        )
    })?;
    let (mut errors, mut warnings) = (Vec::new(), Vec::new());
    let mut found = false;
    for tree in &trees {
        let Some((whole, base)) = standing(&tree.root) else { continue };
        found = true;
        let nowhere = |_: &str| None;
        let spec = match &base {
            Some(_) => yaml::read::<Document>(tree, &nowhere).map(|document| document.spec),
            None => yaml::read::<Spec>(tree, &nowhere),
        };
        let spec = match spec {
            Ok(spec) => spec,
            Err(faults) => {
                errors.extend(faults.into_iter().map(|fault| {
                    problem(tree.place(&fault.path), fault.path.to_string(), fault.message)
                }));
                continue;
            }
        };
        let base = base.unwrap_or_default();
        for (path, message, error) in judge(&spec, &base, whole, tree, text) {
            let problem = problem(tree.place(&path), path.to_string(), message);
            if error { errors.push(problem) } else { warnings.push(problem) }
        }
    }
    if !found {
        let message = "no ScaledObject in it: neither one of `kind: ScaledObject` nor `triggers`";
        errors.push(problem(Place { line: 1, column: 1 }, String::new(), message.to_owned()));
    }
    if errors.is_empty() { Ok(Problems::sorted(warnings)) } else { Err(Problems::sorted(errors)) }
}

/// Whether a document is a whole ScaledObject, and where its spec is, unless it is one itself;
/// `None` for something else.
fn standing(root: &Node) -> Option<(bool, Option<Path>)> {
    let Kind::Map(entries) = &root.kind else { return None };
    let value = |key: &str| entries.iter().find(|entry| entry.key == key).map(|entry| &entry.value);
    let spec = Path::default().key("spec");
    match value("kind").map(|node| &node.kind) {
        Some(Kind::Scalar { text, .. }) => (text == "ScaledObject").then_some((true, Some(spec))),
        Some(_) => None,
        None if value("spec").is_some() => Some((true, Some(spec))),
        None => {
            let part = value("triggers").is_some() || value("advanced").is_some();
            part.then_some((value("scaleTargetRef").is_some(), None))
        }
    }
}

fn judge(
    spec: &Spec,
    base: &Path,
    whole: bool,
    tree: &Tree,
    text: &str,
) -> Vec<(Path, String, bool)> {
    let path = base.key("triggers");
    let mut found = Vec::new();
    let mut triggers = Vec::new();
    for (at, written) in spec.triggers.iter().enumerate() {
        let path = path.index(at);
        let metric_type = match written.metric_type.as_deref() {
            Some("AverageValue") => Some(MetricType::AverageValue),
            Some("Value") => Some(MetricType::Value),
            // KEDA's cpu and memory alone have the third.
            None | Some("Utilization") => None,
            Some(other) => {
                let message = format!("`{other}` is not known; give AverageValue or Value");
                found.push((path.key("metricType"), message, true));
                None
            }
        };
        let trigger = Trigger {
            kind: written.kind.clone(),
            name: written.name.clone(),
            metric_type,
            use_cached_metrics: written.use_cached_metrics,
            authentication_ref: written.authentication_ref.clone(),
            metadata: written.metadata.clone(),
        };
        if matches!(trigger.kind.as_str(), "prometheus" | "cron") {
            let (_, faults) = trigger.rule(1);
            // What only KEDA knows of is none of ours.
            let faults = faults.into_iter().filter(|it| it.error || it.key == "metricName");
            let at = |key: &str| path.key("metadata").key(key);
            found.extend(faults.map(|fault| (at(&fault.key), fault.message, fault.error)));
        }
        numbers(tree, &path.key("metadata"), &trigger, &mut found);
        triggers.push(trigger);
    }
    let comments = |at: usize| comments(text, tree.place(&path.index(at)));
    let min = spec.idle_replica_count.or(spec.min_replica_count);
    let scene = Scene {
        triggers: &triggers,
        min: min.or(whole.then_some(MIN)),
        max: spec.max_replica_count.or(whole.then_some(MAX)),
        reader: Reader::Keda,
        target_concurrency: 1,
        comments: &comments,
    };
    let remarks = lint(&scene).into_iter();
    found.extend(remarks.map(|it| (path.join(&it.path), it.message, it.error)));
    let hpa = spec.advanced.as_ref().and_then(|it| it.horizontal_pod_autoscaler_config.as_ref());
    if let Some(it) = hpa.and_then(|hpa| hpa.behavior.as_ref()) {
        let path = base.key("advanced").key("horizontalPodAutoscalerConfig").key("behavior");
        found.extend(behavior(it, &path).into_iter().map(|(path, message)| (path, message, true)));
    }
    found
}

/// KEDA's metadata is text; a bare number is refused when the object is applied.
fn numbers(tree: &Tree, path: &Path, trigger: &Trigger, found: &mut Vec<(Path, String, bool)>) {
    for (key, value) in &trigger.metadata {
        let path = path.key(key);
        let plain = tree.node(&path).is_some_and(|node| match &node.kind {
            Kind::Scalar { text, plain: true } => {
                text.parse::<f64>().is_ok() || text == "true" || text == "false"
            }
            _ => false,
        });
        if plain {
            let message = format!("KEDA takes text alone in metadata; write \"{value}\"");
            found.push((path, message, false));
        }
    }
}

//! The rules between a ScaledObject's fields: those of KEDA's admission webhook, and the API
//! server's rules for the HPA that KEDA makes.

use super::formula::{self, Verdict};
use super::go;
use super::schema::{Scalar, scalar, unknown};
use super::{Object, Stage};
use crate::types::trigger::Trigger;
use crate::yaml::problem::Path;
use crate::yaml::{Kind, Node};

/// KEDA's defaults for the replica counts.
pub(super) const MIN: i64 = 0;
pub(super) const MAX: i64 = 100;

/// Longest value of a label. The names of the object and its HPA become labels.
const LONGEST_LABEL: usize = 63;

fn is_resource(trigger: &Trigger) -> bool {
    matches!(trigger.kind.as_str(), "cpu" | "memory")
}

/// Applies all rules.
pub(super) fn check(object: &mut Object<'_>) {
    counts(object);
    triggers(object);
    fallback(object);
    if object.composite() {
        composite(object);
    }
    behavior(object);
}

fn counts(object: &mut Object<'_>) {
    let (idle, min, max) = (
        object.whole("idleReplicaCount"),
        object.whole("minReplicaCount"),
        object.whole("maxReplicaCount"),
    );
    if let Some(min) = min {
        let most = max.unwrap_or(MAX);
        if min > most && (max.is_some() || object.whole) {
            let message = format!("{min} is more than maxReplicaCount, which is {most}");
            object.error("minReplicaCount", message);
        }
    }
    if let Some(idle) = idle {
        let min = min.or(object.whole.then_some(MIN));
        if let Some(min) = min.filter(|min| idle >= *min) {
            let message = format!(
                "{idle} is not less than minReplicaCount, which is {min}; leave it out, or raise \
                 minReplicaCount"
            );
            object.error("idleReplicaCount", message);
        }
    }
}

fn triggers(object: &mut Object<'_>) {
    let mut names: Vec<(&str, usize)> = Vec::new();
    let mut found = Vec::new();
    for (at, trigger) in object.triggers.iter().enumerate() {
        let path = object.path("triggers").index(at);
        if trigger.use_cached_metrics == Some(true)
            && matches!(trigger.kind.as_str(), "cpu" | "memory" | "cron")
        {
            let message = format!("is not for {}; leave it out", trigger.kind);
            found.push((path.key("useCachedMetrics"), message));
        }
        let Some(name) = trigger.name.as_deref().filter(|name| !name.is_empty()) else { continue };
        match names.iter().find(|(known, _)| *known == name) {
            Some((_, first)) => {
                let message = format!("`{name}` is the name of triggers[{first}] already");
                found.push((path.key("name"), message));
            }
            None => names.push((name, at)),
        }
    }
    let only_resources = !object.triggers.is_empty() && object.triggers.iter().all(is_resource);
    let min = object.whole("minReplicaCount").or(object.whole.then_some(MIN));
    if only_resources && min == Some(0) {
        let message = "cpu and memory alone can't wake what has no replicas, and KEDA refuses 0; write 1 \
                       or more, or give a trigger of another type";
        found.push((object.path("minReplicaCount"), message.to_owned()));
    }
    if only_resources && object.node("fallback").is_some() {
        let message = "is not for cpu and memory alone; leave it out";
        found.push((object.path("fallback"), message.to_owned()));
    }
    found
        .into_iter()
        .for_each(|(path, message)| object.errors.push((path, message, Stage::Always)));
}

fn fallback(object: &mut Object<'_>) {
    let behavior = object.path("fallback").key("behavior");
    if object.text_at(&behavior) == Some("scalingModifiers") && object.modifier("formula").is_none()
    {
        let message = "scalingModifiers needs a formula in advanced.scalingModifiers";
        object.errors.push((behavior, message.to_owned(), Stage::Always));
    }
}

/// `advanced.scalingModifiers`.
fn composite(object: &mut Object<'_>) {
    let path = object.path("advanced").key("scalingModifiers");
    let error = |object: &mut Object<'_>, field: &str, message: String| {
        object.errors.push((path.key(field), message, Stage::Always));
    };
    let (formula, target) = (object.modifier("formula"), object.modifier("target"));
    match formula {
        None => error(object, "formula", "missing; it must be given".to_owned()),
        Some(formula) => {
            let named = object.triggers.iter().filter(|trigger| !is_resource(trigger));
            let names: Vec<_> = named
                .filter_map(|trigger| trigger.name.clone())
                .filter(|name| !name.is_empty())
                .collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            match formula::judge(formula, &names) {
                Verdict::Refused(why) => error(object, "formula", format!("`{formula}`: {why}")),
                Verdict::Taken(named) if named.is_empty() => {
                    let message = "names no trigger: the HPA always sees the same value";
                    object.warnings.push((path.key("formula"), message.to_owned()));
                }
                Verdict::Taken(_) | Verdict::Unknown => {}
            }
        }
    }
    match target {
        None => error(object, "target", "missing; it must be given with a formula".to_owned()),
        Some(text) => match go::float(text) {
            None => error(object, "target", format!("`{text}` is not a number")),
            // KEDA rounds down to thousandths.
            Some(target) if target < 0.001 => {
                let message = format!("{text} is too little; write 0.001 or more");
                let stage = if target > 0.0 { Stage::Active } else { Stage::Always };
                object.errors.push((path.key("target"), message, stage));
            }
            Some(target) if target >= 9.2e15 => {
                let message = format!("{text} is more than the HPA takes");
                object.errors.push((path.key("target"), message, Stage::Active));
            }
            Some(_) => {}
        },
    }
    if let Some(text) = object.modifier("activationTarget")
        && go::float(text).is_none()
    {
        // KEDA accepts it, and fails whenever it has to decide between none and one replica.
        let message =
            format!("`{text}` is not a number, so the workload never leaves or reaches zero");
        object.warnings.push((path.key("activationTarget"), message));
    }
}

/// The HPA's own bounds.
fn behavior(object: &mut Object<'_>) {
    let hpa = object.path("advanced").key("horizontalPodAutoscalerConfig");
    for direction in ["scaleUp", "scaleDown"] {
        let path = hpa.key("behavior").key(direction);
        let mut found = Vec::new();
        if let Some(rules) = object.tree.node(&path) {
            rules_of(rules, &path, &mut found);
        }
        found
            .into_iter()
            .for_each(|(path, message)| object.errors.push((path, message, Stage::Active)));
    }
}

fn rules_of(rules: &Node, path: &Path, found: &mut Vec<(Path, String)>) {
    let entry = |node: &'_ Node, key: &str| -> Option<Node> {
        let Kind::Map(entries) = &node.kind else { return None };
        entries.iter().find(|entry| entry.key == key).map(|entry| entry.value.clone())
    };
    let number = |node: &Node, key: &str| match scalar(&entry(node, key)?) {
        Some(Scalar::Number(number)) => Some(number),
        _ => None,
    };
    if let Some(seconds) = number(rules, "stabilizationWindowSeconds")
        && !(0.0..=3600.0).contains(&seconds)
    {
        let message = format!("{seconds} is not between 0 and 3600");
        found.push((path.key("stabilizationWindowSeconds"), message));
    }
    let one_of = |node: &Node, path: &Path, key: &str, known: &[&str], found: &mut Vec<_>| {
        if let Some(node) = entry(node, key)
            && let Some(Scalar::Text(text)) = scalar(&node)
            && !known.contains(&text)
        {
            found.push((path.key(key), unknown(text, known)));
        }
    };
    one_of(rules, path, "selectPolicy", &["Max", "Min", "Disabled"], found);
    let tolerance = entry(rules, "tolerance").and_then(|node| match scalar(&node) {
        Some(Scalar::Number(number)) => Some(number),
        Some(Scalar::Text(text)) => go::quantity(text),
        _ => None,
    });
    if let Some(tolerance) = tolerance.filter(|tolerance| *tolerance < 0.0) {
        let message = format!("{tolerance} is negative; write a share such as 0.1");
        found.push((path.key("tolerance"), message));
    }
    let Some(Kind::List(policies)) = entry(rules, "policies").map(|node| node.kind) else { return };
    for (at, policy) in policies.iter().enumerate() {
        let path = path.key("policies").index(at);
        one_of(policy, &path, "type", &["Pods", "Percent"], found);
        if number(policy, "value").is_some_and(|value| value < 1.0) {
            let message = "must be at least 1; to change nothing write selectPolicy: Disabled";
            found.push((path.key("value"), message.to_owned()));
        }
        if let Some(seconds) = number(policy, "periodSeconds")
            && !(1.0..=1800.0).contains(&seconds)
        {
            found.push((path.key("periodSeconds"), format!("{seconds} is not between 1 and 1800")));
        }
    }
}

/// The names of the object and of its HPA, which are labels too; and its annotations.
pub(super) fn names(object: &mut Object<'_>, name: &str) {
    if !is_dns_name(name) {
        let message = format!("`{name}` is not a name: lower-case letters, digits, `-` and `.`");
        object.errors.push((Path::default().key("metadata").key("name"), message, Stage::Always));
        return;
    }
    let hpa = object.path("advanced").key("horizontalPodAutoscalerConfig").key("name");
    let given = object.text_at(&hpa).filter(|name| !name.is_empty()).map(str::to_owned);
    let long = |path: Path, message: String, object: &mut Object<'_>| {
        object.errors.push((path, message, Stage::Always));
    };
    match given {
        Some(given) if given.len() > LONGEST_LABEL => {
            long(
                hpa,
                format!("is {} characters long, and {LONGEST_LABEL} are allowed", given.len()),
                object,
            );
        }
        Some(given) if !is_dns_name(&given) => {
            let message =
                format!("`{given}` is not a name: lower-case letters, digits, `-` and `.`");
            object.errors.push((hpa, message, Stage::Active));
        }
        given => {
            let most = LONGEST_LABEL - if given.is_some() { 0 } else { "keda-hpa-".len() };
            if name.len() > most {
                let message = format!(
                    "is {} characters long, and {most} are allowed; the HPA is called keda-hpa-NAME \
                     unless advanced.horizontalPodAutoscalerConfig.name is given",
                    name.len()
                );
                long(Path::default().key("metadata").key("name"), message, object);
            }
        }
    }
}

/// Lower-case labels with dots between them.
fn is_dns_name(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let label = |label: &str| {
        let ends = [label.bytes().next(), label.bytes().last()];
        ends.into_iter().all(|byte| byte.is_some_and(inner))
            && label.bytes().all(|byte| inner(byte) || byte == b'-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

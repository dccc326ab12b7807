//! The shape of a ScaledObject by KEDA's CustomResourceDefinition, as `kubectl` enforces it.
//!
//! Scalars have the types that `kubectl` gives them, which reads YAML 1.1: `5`, `yes` and `0x1F` are
//! not texts, and a quoted number is not a number.

use std::cmp::Ordering;

use crate::yaml::problem::Path;
use crate::yaml::{Kind, Node, closest};

/// The shape of a value.
pub(super) enum Shape {
    Text,
    /// A text that may not be empty.
    Name,
    OneOf(&'static [&'static str]),
    /// A whole number of 32 bits, of this and more.
    Whole(i32),
    Flag,
    /// A Kubernetes quantity: a number, or a text with a suffix.
    Quantity,
    /// A mapping of texts to texts.
    Texts,
    List(&'static Shape),
    /// A list with at least one item.
    Filled(&'static Shape),
    Map(&'static [Field]),
    /// Any value.
    Any,
}

/// A field of a mapping.
pub(super) struct Field {
    name: &'static str,
    required: bool,
    shape: Shape,
}

const fn may(name: &'static str, shape: Shape) -> Field {
    Field { name, required: false, shape }
}

const fn must(name: &'static str, shape: Shape) -> Field {
    Field { name, required: true, shape }
}

use Shape::{Any, Filled, Flag, List, Map, Name, OneOf, Quantity, Text, Texts, Whole};

const ANY_NUMBER: Shape = Whole(i32::MIN);

const RULES: Shape = Map(&[
    may("stabilizationWindowSeconds", ANY_NUMBER),
    may("selectPolicy", Text),
    may("tolerance", Quantity),
    may(
        "policies",
        List(&Map(&[
            must("type", Text),
            must("value", ANY_NUMBER),
            must("periodSeconds", ANY_NUMBER),
        ])),
    ),
]);

const ADVANCED: Shape = Map(&[
    may("restoreToOriginalReplicaCount", Flag),
    may(
        "horizontalPodAutoscalerConfig",
        Map(&[
            may("name", Text),
            may("behavior", Map(&[may("scaleUp", RULES), may("scaleDown", RULES)])),
        ]),
    ),
    may(
        "scalingModifiers",
        Map(&[
            may("formula", Text),
            may("target", Text),
            may("activationTarget", Text),
            may("metricType", OneOf(&["AverageValue", "Value"])),
        ]),
    ),
]);

const TRIGGER: Shape = Map(&[
    must("type", Name),
    may("name", Text),
    may("metricType", Text),
    may("useCachedMetrics", Flag),
    may(
        "authenticationRef",
        Map(&[
            must("name", Text),
            may("kind", OneOf(&["TriggerAuthentication", "ClusterTriggerAuthentication"])),
        ]),
    ),
    must("metadata", Texts),
]);

const TARGET: Shape = Map(&[
    must("name", Name),
    may("apiVersion", Text),
    may("kind", Text),
    may("envSourceContainerName", Text),
]);

const FALLBACK: Shape = Map(&[
    must("failureThreshold", Whole(0)),
    must("replicas", Whole(0)),
    may(
        "behavior",
        OneOf(&[
            "static",
            "currentReplicas",
            "currentReplicasIfHigher",
            "currentReplicasIfLower",
            "scalingModifiers",
        ]),
    ),
]);

/// A ScaledObject's `spec`.
pub(super) static SPEC: Shape = Map(&[
    must("scaleTargetRef", TARGET),
    may("pollingInterval", Whole(1)),
    may("cooldownPeriod", Whole(0)),
    may("initialCooldownPeriod", Whole(0)),
    may("idleReplicaCount", Whole(0)),
    may("minReplicaCount", Whole(0)),
    may("maxReplicaCount", Whole(1)),
    may("fallback", FALLBACK),
    may("advanced", ADVANCED),
    must("triggers", Filled(&TRIGGER)),
]);

/// A whole document. Of `metadata` only the fields that people write are checked.
pub(super) static DOCUMENT: Shape = Map(&[
    may("apiVersion", Text),
    may("kind", Text),
    may("metadata", Any),
    may("status", Any),
    must("spec", Any),
]);

/// Labels or annotations.
pub(super) static TEXTS: Shape = Texts;

/// A scalar, as `kubectl` takes it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Scalar<'a> {
    Null,
    Flag(bool),
    Number(f64),
    Text(&'a str),
}

/// The scalar at `node`; `None` if it is not one.
pub(super) fn scalar(node: &Node) -> Option<Scalar<'_>> {
    let Kind::Scalar { text, plain } = &node.kind else { return None };
    Some(match text.as_str() {
        text if !plain => Scalar::Text(text),
        "" | "~" | "null" | "Null" | "NULL" => Scalar::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" | "true" | "True" | "TRUE" => {
            Scalar::Flag(true)
        }
        "n" | "N" | "no" | "No" | "NO" | "off" | "Off" | "OFF" | "false" | "False" | "FALSE" => {
            Scalar::Flag(false)
        }
        text => number(text).map_or(Scalar::Text(text), Scalar::Number),
    })
}

/// YAML 1.1's numbers.
fn number(text: &str) -> Option<f64> {
    if let ".inf" | ".Inf" | ".INF" | "+.inf" | "-.inf" | ".nan" | ".NaN" | ".NAN" = text {
        return Some(f64::NAN);
    }
    let plain = text.replace('_', "");
    let (sign, digits) = match plain.split_at_checked(1) {
        Some(("-", digits)) => (-1.0, digits),
        Some(("+", digits)) => (1.0, digits),
        _ => (1.0, plain.as_str()),
    };
    if !digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return None;
    }
    let radix = |prefixes: [&str; 2], radix| {
        let digits = prefixes.iter().find_map(|prefix| digits.strip_prefix(prefix))?;
        u64::from_str_radix(digits, radix).ok().map(|number| sign * number as f64)
    };
    let octal = digits.strip_prefix('0').and_then(|digits| u64::from_str_radix(digits, 8).ok());
    let decimal = || {
        let known = digits.bytes().all(|byte| byte.is_ascii_digit() || b".eE+-".contains(&byte));
        digits.parse::<f64>().ok().filter(|_| known).map(|number| sign * number)
    };
    radix(["0x", "0X"], 16)
        .or_else(|| radix(["0b", "0B"], 2))
        .or_else(|| radix(["0o", "0O"], 8))
        .or_else(|| octal.map(|number| sign * number as f64))
        .or_else(decimal)
}

/// Finds the faults in the shape of `node`.
pub(super) fn check(node: &Node, shape: &Shape, path: &Path, found: &mut Vec<(Path, String)>) {
    let mut wrong = |message: String| found.push((path.clone(), message));
    match shape {
        Any => {}
        Text | Name | OneOf(_) => match scalar(node) {
            Some(Scalar::Text("")) if matches!(shape, Name) => {
                wrong("empty; it must be given".into())
            }
            Some(Scalar::Text(text)) => {
                if let OneOf(known) = shape
                    && !known.contains(&text)
                {
                    wrong(unknown(text, known));
                }
            }
            _ => wrong(format!("must be text, not {}", written(node))),
        },
        Whole(least) => match scalar(node) {
            Some(Scalar::Number(number)) if number.fract() == 0.0 => {
                let (least, most) = (f64::from(*least), f64::from(i32::MAX));
                if number.partial_cmp(&least) == Some(Ordering::Less) {
                    wrong(format!("{number} is too little; write {least} or more"));
                } else if number > most {
                    wrong(format!("{number} is too much; write {most} or less"));
                }
            }
            Some(Scalar::Text(text)) if text.parse::<f64>().is_ok() => {
                wrong(format!("must be a number, not text; write {text} without quotes"));
            }
            _ => wrong(format!("must be a whole number, not {}", written(node))),
        },
        Flag => {
            if !matches!(scalar(node), Some(Scalar::Flag(_))) {
                wrong(format!("must be true or false, not {}", written(node)));
            }
        }
        Quantity => {
            let fits = match scalar(node) {
                Some(Scalar::Number(number)) => number.fract() == 0.0,
                Some(Scalar::Text(text)) => super::go::quantity(text).is_some(),
                _ => false,
            };
            if !fits {
                wrong(format!("must be a quantity such as \"0.1\" or 100m, not {}", written(node)));
            }
        }
        Texts => match &node.kind {
            Kind::Map(entries) => {
                for entry in entries {
                    text_entry(&entry.value, &path.key(&entry.key), found);
                }
            }
            _ => wrong(format!("must be a mapping, not {}", written(node))),
        },
        List(inner) | Filled(inner) => match &node.kind {
            Kind::List(items) => {
                if items.is_empty() && matches!(shape, Filled(_)) {
                    wrong("empty; give at least one".into());
                }
                for (at, item) in items.iter().enumerate() {
                    check(item, inner, &path.index(at), found);
                }
            }
            _ => wrong(format!("must be a list, not {}", written(node))),
        },
        Map(fields) => map(node, fields, path, found),
    }
}

fn text_entry(node: &Node, path: &Path, found: &mut Vec<(Path, String)>) {
    let message = match scalar(node) {
        Some(Scalar::Text(_) | Scalar::Null) => return,
        Some(_) => format!("KEDA takes text alone here; write \"{}\"", shown(node)),
        None => format!("must be text, not {}", written(node)),
    };
    found.push((path.clone(), message));
}

fn map(node: &Node, fields: &[Field], path: &Path, found: &mut Vec<(Path, String)>) {
    let Kind::Map(entries) = &node.kind else {
        found.push((path.clone(), format!("must be a mapping, not {}", written(node))));
        return;
    };
    let known: Vec<_> = fields.iter().map(|field| field.name).collect();
    let mut meant = Vec::new();
    for entry in entries {
        let path = path.key(&entry.key);
        match fields.iter().find(|field| field.name == entry.key) {
            // A field that is left empty counts as not written.
            Some(_) if scalar(&entry.value) == Some(Scalar::Null) => {}
            Some(field) => check(&entry.value, &field.shape, &path, found),
            None => {
                let message = match closest(&entry.key, &known) {
                    Some(near) => {
                        meant.push(near);
                        format!("unknown field; did you mean {near}?")
                    }
                    None => format!("unknown field; known here: {}", known.join(", ")),
                };
                found.push((path, message));
            }
        }
    }
    let given = |name: &str| {
        let entry = entries.iter().find(|entry| entry.key == name);
        entry.is_some_and(|entry| scalar(&entry.value) != Some(Scalar::Null))
    };
    for field in fields.iter().filter(|field| field.required && !given(field.name)) {
        // A field whose misspelt name is there is not missing.
        if !meant.contains(&field.name) {
            found.push((path.key(field.name), "missing; it must be given".into()));
        }
    }
}

/// The message for a value that is not one of the known ones.
pub(super) fn unknown(text: &str, known: &[&str]) -> String {
    match closest(text, known) {
        Some(near) => format!("`{text}` is not known; did you mean {near}?"),
        None => format!("`{text}` is not known; give one of: {}", known.join(", ")),
    }
}

fn shown(node: &Node) -> &str {
    if let Kind::Scalar { text, .. } = &node.kind { text } else { "" }
}

fn written(node: &Node) -> String {
    match &node.kind {
        Kind::Scalar { text, .. } if text.is_empty() => "nothing".to_owned(),
        Kind::Scalar { text, .. } => format!("`{text}`"),
        Kind::List(_) => "a list".to_owned(),
        Kind::Map(_) => "a mapping".to_owned(),
        Kind::Removed { .. } => "nothing".to_owned(),
    }
}

//! Judges KEDA's ScaledObjects, whole or in part: fields that KEDA refuses, and triggers that can't
//! work as their author means.
//!
//! An error is a field that KEDA refuses in a namespace with the target and nothing else: the API
//! server or KEDA's admission webhook denies the object, it is never Ready, or its first metrics are
//! an error. A test compares this with a real KEDA.

use std::collections::BTreeMap;

use crate::lint::{Context, TriggerReader, lint};
use crate::types::trigger::{AuthenticationRef, MetricType, Rule, Trigger};
use crate::yaml::problem::{Path, Place, Problem, Problems};
use crate::yaml::{Kind, Node, Tree};
use schema::{Scalar, scalar};

mod admission;
mod formula;
mod go;
mod scalers;
mod schema;

const API_VERSION: &str = "keda.sh/v1alpha1";

/// When KEDA refuses something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Always: the API server, the webhook or the operator refuses it.
    Always,
    /// While the object is not paused: for a paused one the operator makes no HPA.
    Active,
}

/// One ScaledObject while it is judged.
struct Object<'a> {
    tree: &'a Tree,
    /// The path of its spec.
    spec: Path,
    /// Whether it is a whole object, in which a missing field has KEDA's default.
    whole: bool,
    triggers: Vec<Trigger>,
    errors: Vec<(Path, String, Stage)>,
    warnings: Vec<(Path, String)>,
}

impl<'a> Object<'a> {
    fn path(&self, field: &str) -> Path {
        self.spec.key(field)
    }

    fn node(&self, field: &str) -> Option<&'a Node> {
        self.tree.node(&self.path(field)).filter(|node| scalar(node) != Some(Scalar::Null))
    }

    fn text_at(&self, path: &Path) -> Option<&'a str> {
        text(self.tree.node(path)?)
    }

    fn whole(&self, field: &str) -> Option<i64> {
        match scalar(self.node(field)?) {
            Some(Scalar::Number(number)) => Some(number as i64),
            _ => None,
        }
    }

    /// A field of `advanced.scalingModifiers` that is not empty.
    fn modifier(&self, field: &str) -> Option<&'a str> {
        let path = self.path("advanced").key("scalingModifiers").key(field);
        self.text_at(&path).filter(|text| !text.is_empty())
    }

    /// Whether the HPA sees only a formula.
    fn composite(&self) -> bool {
        ["formula", "target", "activationTarget", "metricType"]
            .iter()
            .any(|field| self.modifier(field).is_some())
    }

    fn error(&mut self, field: &str, message: String) {
        self.errors.push((self.path(field), message, Stage::Always));
    }
}

fn text(node: &Node) -> Option<&str> {
    match scalar(node) {
        Some(Scalar::Text(text)) => Some(text),
        _ => None,
    }
}

/// The findings on a file's ScaledObjects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inspection {
    /// Fields that KEDA refuses.
    pub errors: Problems,
    /// Fields that KEDA accepts, and that can't work as their author means.
    pub warnings: Problems,
}

/// Judges the ScaledObjects of `text`, which may hold several documents: other kinds are ignored. It
/// may also be a part of a ScaledObject: its `spec`, or `triggers` and `advanced` alone.
#[must_use]
pub fn inspect_scaled_object(text: &str, source_name: &str) -> Inspection {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let problem = |place: Place, field: String, message: String| Problem {
        source: source_name.to_owned(),
        place: Some(place),
        field,
        message,
    };
    let (mut errors, mut warnings) = (Vec::new(), Vec::new());
    let trees = Tree::parse_all(text).unwrap_or_else(|broken| {
        let broken = broken.into_iter();
        errors.extend(broken.map(|(place, message)| problem(place, String::new(), message)));
        Vec::new()
    });
    let mut found = !errors.is_empty();
    for tree in &trees {
        let Some((whole, spec)) = locate_spec(&tree.root) else { continue };
        found = true;
        let mut object = Object {
            tree,
            spec: spec.clone().unwrap_or_default(),
            whole,
            triggers: Vec::new(),
            errors: Vec::new(),
            warnings: Vec::new(),
        };
        judge(&mut object, spec.is_some());
        let shown =
            |path: Path, message: String| problem(tree.place(&path), path.to_string(), message);
        errors.extend(object.errors.into_iter().map(|(path, message, _)| shown(path, message)));
        warnings.extend(object.warnings.into_iter().map(|(path, message)| shown(path, message)));
    }
    if !found {
        let message = "no ScaledObject in it: neither one of `kind: ScaledObject` nor `triggers`";
        errors.push(problem(Place { line: 1, column: 1 }, String::new(), message.to_owned()));
    }
    Inspection { errors: Problems::sorted(errors), warnings: Problems::sorted(warnings) }
}

/// Whether a document is a whole ScaledObject, with the path of its spec; a document that is a spec
/// itself has none. `None` for anything else.
fn locate_spec(root: &Node) -> Option<(bool, Option<Path>)> {
    let Kind::Map(entries) = &root.kind else { return None };
    let value = |key: &str| entries.iter().find(|entry| entry.key == key).map(|entry| &entry.value);
    let spec = Path::default().key("spec");
    match value("kind").map(|node| &node.kind) {
        Some(Kind::Scalar { text, .. }) => (text == "ScaledObject").then_some((true, Some(spec))),
        Some(_) => None,
        None if let Some(Kind::Map(inner)) = value("spec").map(|node| &node.kind) => {
            Some((inner.iter().any(|entry| entry.key == "scaleTargetRef"), Some(spec)))
        }
        None => {
            let part = value("triggers").is_some() || value("advanced").is_some();
            part.then_some((value("scaleTargetRef").is_some(), None))
        }
    }
}

fn judge(object: &mut Object<'_>, document: bool) {
    shape(object, document);
    if !object.errors.is_empty() {
        return;
    }
    let paused = document && metadata(object);
    read_triggers(object);
    admission::check(object);
    let composite = object.composite();
    let mut rules = Vec::new();
    for (at, trigger) in object.triggers.iter().enumerate() {
        let path = object.path("triggers").index(at);
        let metric_type = object.text_at(&path.key("metricType"));
        let (rule, found) = scalers::judge(trigger, metric_type, composite);
        for (field, message) in found {
            let path = field.iter().fold(path.clone(), |path, key| path.key(key));
            object.errors.push((path, message, Stage::Active));
        }
        rules.push(rule);
    }
    meaning(object, &rules, composite);
    if paused {
        let (kept, later): (Vec<_>, Vec<_>) =
            object.errors.drain(..).partition(|(_, _, stage)| *stage == Stage::Always);
        object.errors = kept;
        let later = later.into_iter().map(|(path, message, _)| {
            (path, format!("{message}; KEDA will refuse it when it is no longer paused"))
        });
        object.warnings.extend(later);
    }
}

/// Kind and version, as the API server needs them.
fn shape(object: &mut Object<'_>, document: bool) {
    let mut found = Vec::new();
    if document {
        schema::check(&object.tree.root, &schema::DOCUMENT, &Path::default(), &mut found);
        let version = Path::default().key("apiVersion");
        if object.text_at(&version).is_some_and(|text| text != API_VERSION) {
            found.push((
                version,
                format!("there is no ScaledObject of this version; write {API_VERSION}"),
            ));
        }
        for field in ["labels", "annotations"] {
            let path = Path::default().key("metadata").key(field);
            if let Some(node) = object.tree.node(&path) {
                schema::check(node, &schema::TEXTS, &path, &mut found);
            }
        }
    }
    if let Some(node) = object.tree.node(&object.spec) {
        let mut inner = Vec::new();
        schema::check(node, &schema::SPEC, &object.spec, &mut inner);
        let (target, triggers) = (object.path("scaleTargetRef"), object.path("triggers"));
        // A part need not be complete.
        inner.retain(|(path, message)| {
            object.whole
                || !message.starts_with("missing")
                || (*path != target && *path != triggers)
        });
        found.extend(inner);
    }
    object.errors.extend(found.into_iter().map(|(path, message)| (path, message, Stage::Always)));
}

/// Judges the metadata, and returns whether an annotation pauses the object.
fn metadata(object: &mut Object<'_>) -> bool {
    let path = Path::default().key("metadata");
    if let Some(name) = object.text_at(&path.key("name")) {
        admission::names(object, name);
    }
    let annotations = path.key("annotations");
    let annotation = |name: &str| annotations.key(&format!("autoscaling.keda.sh/{name}"));
    let count = annotation("paused-replicas");
    if let Some(text) = object.text_at(&count) {
        if go::whole_32(text).is_none_or(|count| count < 0) {
            let message = format!("`{text}` is not a whole number of 0 or more");
            object.errors.push((count, message, Stage::Always));
        }
        return true;
    }
    // A text that is neither true nor false counts as true.
    object.text_at(&annotation("paused")).is_some_and(|text| go::flag(text) != Some(false))
}

fn read_triggers(object: &mut Object<'_>) {
    let path = object.path("triggers");
    let Some(Kind::List(items)) = object.tree.node(&path).map(|node| &node.kind) else { return };
    for at in 0..items.len() {
        let path = path.index(at);
        let text = |path: &Path| object.text_at(path).map(str::to_owned);
        let metadata = match object.tree.node(&path.key("metadata")).map(|node| &node.kind) {
            Some(Kind::Map(entries)) => {
                let pair = |entry: &crate::yaml::Entry| {
                    let value = self::text(&entry.value).unwrap_or_default();
                    (entry.key.clone(), value.to_owned())
                };
                entries.iter().map(pair).collect()
            }
            _ => BTreeMap::new(),
        };
        let reference = path.key("authenticationRef");
        let name = text(&reference.key("name")).filter(|name| !name.is_empty());
        let authentication_ref =
            name.map(|name| AuthenticationRef { name, kind: text(&reference.key("kind")) });
        let cached = object.tree.node(&path.key("useCachedMetrics")).and_then(scalar);
        object.triggers.push(Trigger {
            kind: text(&path.key("type")).unwrap_or_default(),
            name: text(&path.key("name")),
            metric_type: match object.text_at(&path.key("metricType")) {
                Some("AverageValue") => Some(MetricType::AverageValue),
                Some("Value") => Some(MetricType::Value),
                _ => None,
            },
            use_cached_metrics: Some(cached == Some(Scalar::Flag(true))),
            authentication_ref,
            metadata,
        });
    }
}

/// Warnings about the triggers.
fn meaning(object: &mut Object<'_>, rules: &[Option<Rule>], composite: bool) {
    let path = object.path("triggers");
    let count = |field: &str, default: i64| {
        let count = object.whole(field).or(object.whole.then_some(default));
        count.and_then(|count| u32::try_from(count).ok())
    };
    let context = Context {
        triggers: &object.triggers,
        rules,
        idle: object.whole("idleReplicaCount").and_then(|idle| u32::try_from(idle).ok()),
        min: count("minReplicaCount", admission::MIN),
        max: count("maxReplicaCount", admission::MAX),
        reader: TriggerReader::Keda { composite },
    };
    for remark in lint(&context) {
        let path = path.join(&remark.path);
        if remark.error {
            object.errors.push((path, remark.message, Stage::Active));
        } else {
            object.warnings.push((path, remark.message));
        }
    }
}

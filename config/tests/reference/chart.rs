//! The chart's `values.schema.json` and the table of its README. Both are made from the comments and
//! defaults in its `values.yaml`; what pools and `config` may have comes from the configuration's
//! schema.
//!
//! A comment `# -- (KIND) TEXT`, which may go on over the next lines, describes the value below it.
//! KIND is left out where the default shows it. It is one of
//!
//! - `object`, `list of objects`, `list of strings`, `list of objects or strings`, `map of strings`,
//!   `integer`, `integer or string`, `digest`;
//! - `A | B`: one of these texts;
//! - `config`, or `config PATH`: as in the configuration.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::{keep, resolve};

const BEGIN: &str =
    "<!-- made from values.yaml: UPDATE_DOCS=1 cargo test -p forebay-config --test reference -->\n";
const END: &str = "<!-- end -->\n";

fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/chart/forebay")
}

/// A value of the chart that a comment describes.
#[derive(Debug, PartialEq)]
struct Described {
    path: Vec<String>,
    kind: Option<String>,
    text: String,
}

/// The described values, in the order of the file.
///
/// # Errors
/// The path of the first value that has no description.
fn described(yaml: &str) -> Result<Vec<Described>, String> {
    let mut all: Vec<Described> = Vec::new();
    let mut path: Vec<String> = Vec::new();
    let mut comment: Option<String> = None;
    for line in yaml.lines() {
        let content = line.trim_start();
        if let Some(text) = content.strip_prefix("# -- ") {
            comment = Some(text.to_owned());
            continue;
        }
        if let Some(text) = content.strip_prefix('#') {
            if let Some(comment) = &mut comment {
                comment.push_str(text);
            }
            continue;
        }
        let Some((name, value)) = content.split_once(':') else { continue };
        path.truncate((line.len() - content.len()) / 2);
        path.push(name.to_owned());
        if all.last().is_some_and(|last| path.starts_with(&last.path) && path != last.path) {
            continue;
        }
        match comment.take() {
            Some(comment) => {
                let kind = comment.strip_prefix('(').and_then(|rest| rest.split_once(") "));
                let (kind, text) = kind
                    .map_or((None, comment.as_str()), |(kind, text)| (Some(kind.to_owned()), text));
                all.push(Described { path: path.clone(), kind, text: text.to_owned() });
            }
            // A section; its values are described.
            None if value.is_empty() => {}
            None => return Err(path.join(".")),
        }
    }
    Ok(all)
}

fn pointer(path: &[String]) -> String {
    path.iter().map(|part| format!("/{part}")).collect()
}

/// The schema of one value.
fn schema_of(value: &Described, default: &Value, config: &Value) -> Value {
    let of_config = |path: &str| {
        path.split('.')
            .fold(config, |node, name| &resolve(config, node)["properties"][name])
            .clone()
    };
    let mut schema = match value.kind.as_deref() {
        Some("object") => json!({"type": "object"}),
        Some("map of strings") => {
            json!({"type": "object", "additionalProperties": {"type": "string"}})
        }
        Some("list of objects") => json!({"type": "array", "items": {"type": "object"}}),
        Some("list of strings") => json!({"type": "array", "items": {"type": "string"}}),
        Some("list of objects or strings") => {
            json!({"type": "array", "items": {"type": ["object", "string"]}})
        }
        Some("integer") => json!({"type": ["integer", "null"]}),
        Some("integer or string") => json!({"type": ["integer", "string"]}),
        Some("digest") => json!({"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"}),
        Some("config pools") => {
            let mut pools = of_config("pools");
            pools["minItems"] = 1.into();
            pools
        }
        Some("config") => configuration(config),
        Some(kind) => match kind.strip_prefix("config ") {
            Some(path) => of_config(path),
            None => {
                let names: Vec<_> = kind.split('|').map(str::trim).collect();
                assert!(names.len() > 1, "{}: unknown kind `{kind}`", value.path.join("."));
                json!({"enum": names})
            }
        },
        None => match default {
            Value::Bool(_) => json!({"type": "boolean"}),
            Value::Number(_) => json!({"type": "integer", "minimum": 0}),
            Value::String(_) => json!({"type": "string"}),
            other => panic!("{}: name the kind of {other}", value.path.join(".")),
        },
    };
    // Defaults of the configuration may be others than the chart's.
    schema.as_object_mut().expect("an object").remove("default");
    schema["description"] = value.text.clone().into();
    schema
}

/// The value `config`: the configuration's sections, each of which may be empty. `pools` and
/// `scaler.leaderElection` stay in it, since the templates say why the chart refuses them.
fn configuration(config: &Value) -> Value {
    let mut sections = config["properties"].as_object().expect("sections").clone();
    sections.remove("replay");
    sections.insert("pools".to_owned(), json!(true));
    for section in sections.values_mut().filter(|section| section.is_object()) {
        *section = json!({"anyOf": [section.clone(), {"type": "null"}]});
    }
    json!({"type": "object", "properties": sections, "additionalProperties": false})
}

/// The names of the definitions that a part of a schema refers to.
fn definitions(part: &Value, config: &Value, found: &mut BTreeSet<String>) {
    match part {
        Value::Object(fields) => {
            let name = fields.get("$ref").and_then(Value::as_str);
            if let Some(name) = name.and_then(|name| name.strip_prefix("#/definitions/"))
                && found.insert(name.to_owned())
            {
                definitions(&config["definitions"][name], config, found);
            }
            fields.values().for_each(|field| definitions(field, config, found));
        }
        Value::Array(items) => items.iter().for_each(|item| definitions(item, config, found)),
        _ => {}
    }
}

fn add(section: &mut Value, path: &[String], schema: Value, required: bool) {
    let (name, rest) = path.split_first().expect("a name");
    if rest.is_empty() {
        section["properties"][name] = schema;
    } else {
        let empty = json!({"type": "object", "additionalProperties": false, "properties": {}});
        let inner = section["properties"].as_object_mut().expect("properties");
        add(inner.entry(name).or_insert(empty), rest, schema, required);
    }
    // Without a section or a value that has a default, templates could not be rendered.
    if required || !rest.is_empty() {
        let list = section.as_object_mut().expect("an object").entry("required");
        let list = list.or_insert_with(|| json!([])).as_array_mut().expect("a list");
        if !list.iter().any(|there| there == name) {
            list.push(json!(name));
        }
    }
}

fn values_schema(values: &[Described], defaults: &Value, config: &Value) -> Value {
    let mut schema = json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of Forebay's chart",
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "global": {"type": "object", "description": "Helm's own, for charts that contain this one."},
            "enabled": {"type": "boolean", "description": "For the `condition` of a chart that contains this one."},
        },
    });
    for value in values {
        let default = defaults.pointer(&pointer(&value.path)).expect("a default");
        let required = match default {
            Value::String(text) => !text.is_empty(),
            Value::Bool(_) | Value::Number(_) => true,
            _ => value.path == ["pools"],
        };
        add(&mut schema, &value.path, schema_of(value, default, config), required);
    }
    let mut used = BTreeSet::new();
    definitions(&schema, config, &mut used);
    let named = used.into_iter().map(|name| (name.clone(), config["definitions"][name].clone()));
    schema["definitions"] = Value::Object(named.collect::<Map<_, _>>());
    schema
}

/// The tables of the README: the single values, then each section.
fn reference(values: &[Described], defaults: &Value) -> String {
    let section = |value: &Described| match value.path.as_slice() {
        [_] => String::new(),
        path => path[0].clone(),
    };
    let mut sections: Vec<String> = vec![String::new()];
    for value in values {
        if !sections.contains(&section(value)) {
            sections.push(section(value));
        }
    }
    let mut out = String::new();
    for name in sections {
        let title = if name.is_empty() { "Single values".to_owned() } else { format!("`{name}`") };
        out.push_str(&format!("\n### {title}\n\n| value | default | meaning |\n"));
        out.push_str("| --- | --- | --- |\n");
        for value in values.iter().filter(|value| section(value) == name) {
            let default = match defaults.pointer(&pointer(&value.path)).expect("a default") {
                Value::Null => String::new(),
                Value::String(text) if text.is_empty() => String::new(),
                Value::Object(fields) if fields.is_empty() => String::new(),
                Value::Array(items) if items.is_empty() => String::new(),
                Value::String(text) => format!("`{text}`"),
                Value::Array(_) | Value::Object(_) => "see `values.yaml`".to_owned(),
                other => format!("`{other}`"),
            };
            let kinds = value.kind.as_deref().filter(|kind| kind.contains('|'));
            let kinds = kinds.map(|kinds| {
                let names = kinds.split('|').map(str::trim).filter(|name| !name.is_empty());
                let names: Vec<_> = names.map(|name| format!("`{name}`")).collect();
                format!(" One of {}.", names.join(", "))
            });
            let (path, text) = (value.path.join("."), value.text.replace('|', "\\|"));
            let kinds = kinds.unwrap_or_default();
            out.push_str(&format!("| `{path}` | {default} | {text}{kinds} |\n"));
        }
    }
    out.push('\n');
    out
}

#[test]
fn the_charts_schema_and_reference_are_those_of_its_values() {
    let yaml = fs::read_to_string(chart().join("values.yaml")).unwrap();
    let values = described(&yaml).unwrap_or_else(|path| panic!("{path} has no description"));
    let defaults: Value = serde_saphyr::from_str(&yaml).unwrap();
    let schema = values_schema(&values, &defaults, &forebay_config::schema());
    for path in ["/gateway/properties/tls/properties/secret", "/config/properties/gateway"] {
        assert!(schema["properties"].pointer(path).is_some(), "{path}: {schema:#}");
    }
    let text = serde_json::to_string_pretty(&schema).unwrap();
    keep(&chart().join("values.schema.json"), &format!("{text}\n"));

    let path = chart().join("README.md");
    let page = fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(BEGIN).expect("the mark where the reference begins");
    let (_, after) = rest.split_once(END).expect("the mark where the reference ends");
    let made = reference(&values, &defaults);
    assert!(made.contains("| `gateway.replicas` | `2` |"), "{made}");
    keep(&path, &format!("{before}{BEGIN}{made}{END}{after}"));
}

#[test]
fn a_value_without_a_description_is_named() {
    let of = |path: &[&str], kind: Option<&str>, text: &str| Described {
        path: path.iter().map(|&part| part.to_owned()).collect(),
        kind: kind.map(str::to_owned),
        text: text.to_owned(),
    };
    let yaml = "# About the file.\n\n# -- (a | b) One\n# or the other.\nx: a\n# Of the section.\n\
                s:\n  # -- Free.\n  y:\n    z: 1\n    # Why.\n    w: 2\n  # -- Last.\n  v: 3\n";
    assert_eq!(
        described(yaml),
        Ok(vec![
            of(&["x"], Some("a | b"), "One or the other."),
            of(&["s", "y"], None, "Free."),
            of(&["s", "v"], None, "Last."),
        ])
    );
    assert_eq!(described("s:\n  # -- One.\n  x: 1\n  y: 2\n"), Err("s.y".to_owned()));
}

//! `docs/configuration.md` holds a reference made from the schema, between two marks.
//!
//! `UPDATE_DOCS=1 cargo test -p forebay-config` writes it anew, and the chart's schema and reference.

mod chart;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use forebay_config::schema;
use serde_json::Value;

const BEGIN: &str = "<!-- made from the schema: UPDATE_DOCS=1 cargo test -p forebay-config -->\n";
const END: &str = "<!-- end -->\n";

fn resolve<'a>(root: &'a Value, node: &'a Value) -> &'a Value {
    let inner = ["allOf", "anyOf"].iter().find_map(|key| node[key].as_array()?.first());
    match node["$ref"].as_str() {
        Some(target) => root.pointer(&target[1..]).expect("what is referred to"),
        None => inner.map_or(node, |inner| resolve(root, inner)),
    }
}

/// The values of an enum, each with its meaning.
fn choices(node: &Value) -> Vec<(&str, &str)> {
    let plain = node["enum"].as_array().into_iter().flatten();
    let plain = plain.filter_map(|value| Some((value.as_str()?, "")));
    let described = node["oneOf"].as_array().into_iter().flatten().flat_map(|kind| {
        let about = kind["description"].as_str().unwrap_or_default();
        let one = kind["const"].as_str().into_iter();
        let several = kind["enum"].as_array().into_iter().flatten().filter_map(Value::as_str);
        one.chain(several).map(move |value| (value, about))
    });
    plain.chain(described).collect()
}

fn kind(root: &Value, field: &Value) -> String {
    let node = resolve(root, field);
    let values: Vec<_> = choices(node).iter().map(|(value, _)| format!("`{value}`")).collect();
    if !values.is_empty() {
        return values.join(", ");
    }
    if let Some(title) = node["title"].as_str() {
        return title.to_owned();
    }
    let types = match &node["type"] {
        Value::Array(types) => types.iter().filter_map(Value::as_str).collect(),
        Value::String(one) => vec![one.as_str()],
        _ => Vec::new(),
    };
    match types.iter().find(|name| **name != "null") {
        Some(&"array") if node["items"]["$ref"].is_string() => "list of sections".to_owned(),
        Some(&"array") => "list".to_owned(),
        Some(&"object") if node["properties"].is_object() => "section".to_owned(),
        Some(&"object") => "names and values".to_owned(),
        Some(&"integer") => "whole number".to_owned(),
        Some(&"string") => "text".to_owned(),
        Some(other) => (*other).to_owned(),
        None => "section".to_owned(),
    }
}

fn default(root: &Value, field: &Value, required: bool) -> String {
    let of = |value: &Value| match value {
        Value::String(text) => format!("`{text}`"),
        other => format!("`{other}`"),
    };
    match &field["default"] {
        _ if required => "required".to_owned(),
        Value::Null if kind(root, field) == "section" => String::new(),
        Value::Null => "none".to_owned(),
        // Described field by field in its own section.
        Value::Object(fields) if !fields.is_empty() => String::new(),
        value => of(value),
    }
}

/// Fields of a section, or the kinds of which it takes one, by name.
fn fields<'a>(root: &'a Value, node: &'a Value) -> BTreeMap<&'a str, (&'a Value, bool)> {
    let kinds = node["oneOf"].as_array().into_iter().flatten();
    let mut fields: BTreeMap<_, _> =
        kinds.flat_map(|kind| fields_of(resolve(root, kind), false)).collect();
    fields.extend(fields_of(node, true));
    fields
}

fn fields_of(node: &Value, all: bool) -> Vec<(&str, (&Value, bool))> {
    let required: Vec<_> = node["required"].as_array().into_iter().flatten().collect();
    let fields = node["properties"].as_object().into_iter().flatten();
    let must = |name: &str| all && required.iter().any(|field| field.as_str() == Some(name));
    fields.map(|(name, field)| (name.as_str(), (field, must(name)))).collect()
}

fn section(root: &Value, way: &str, node: &Value, out: &mut String) {
    let node = resolve(root, node);
    let fields = fields(root, node);
    if fields.is_empty() {
        return;
    }
    let title = if way.is_empty() { "Top level".to_owned() } else { format!("`{way}`") };
    let about = node["description"].as_str().unwrap_or_default();
    let head = "| field | type | default | meaning |\n| --- | --- | --- | --- |";
    out.push_str(&format!("### {title}\n\n{about}\n\n{head}\n"));
    for (name, (field, must)) in &fields {
        let (kind, default) = (kind(root, field), default(root, field, *must));
        let own = field["description"].as_str();
        let about = own.or(resolve(root, field)["description"].as_str()).unwrap_or_default();
        let described = choices(resolve(root, field)).into_iter();
        let described: String = described
            .filter(|(_, about)| !about.is_empty())
            .map(|(value, about)| format!(" `{value}`: {}.", about.trim_end_matches('.')))
            .collect();
        let about = (about.to_owned() + &described).replace('|', "\\|");
        out.push_str(&format!("| `{name}` | {kind} | {default} | {about} |\n"));
    }
    out.push('\n');
    for (name, (field, _)) in fields {
        let way = if way.is_empty() { name.to_owned() } else { format!("{way}.{name}") };
        let inner = resolve(root, field);
        if inner["items"].is_object() {
            section(root, &format!("{way}[]"), &inner["items"], out);
        } else {
            section(root, &way, inner, out);
        }
    }
}

/// Checks that a file has this text, or writes it with `UPDATE_DOCS=1`.
fn keep(path: &Path, text: &str) {
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(path, text).expect("written");
        return;
    }
    let now = fs::read_to_string(path).unwrap_or_default();
    let name = path.file_name().unwrap_or_default().display();
    assert!(now == text, "{name} is out of date; UPDATE_DOCS=1 cargo test -p forebay-config");
}

#[test]
fn the_reference_page_describes_every_field_as_the_schema_does() {
    let schema = schema();
    let mut made = String::new();
    section(&schema, "", &schema, &mut made);
    for expected in [
        "### `pools[].target.processes`",
        "| `stopTimeout` | duration | `30s` |",
        "| `minVersion` | `1.2`, `1.3` | `1.2` |",
        "| `selectPolicy` | `Max`, `Min`, `Disabled` |",
    ] {
        assert!(made.contains(expected), "{made}");
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
    let page = fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(BEGIN).expect("the mark where the reference begins");
    let (_, after) = rest.split_once(END).expect("the mark where the reference ends");
    keep(&path, &format!("{before}{BEGIN}\n{made}{END}{after}"));
}

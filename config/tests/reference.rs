//! `docs/configuration.md` holds a reference made from the schema, between two marks.
//!
//! `UPDATE_DOCS=1 cargo test -p forebay-config` writes it anew.

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

fn kind(root: &Value, field: &Value) -> String {
    let node = resolve(root, field);
    if let Some(title) = node["title"].as_str() {
        return title.to_owned();
    }
    let types = match &node["type"] {
        Value::Array(types) => types.iter().filter_map(Value::as_str).collect(),
        Value::String(one) => vec![one.as_str()],
        _ => Vec::new(),
    };
    match types.iter().find(|it| **it != "null") {
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
        // Told field by field in its own section.
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
    let must = |name: &str| all && required.iter().any(|it| it.as_str() == Some(name));
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
        let about = about.replace('|', "\\|");
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

#[test]
fn the_reference_page_tells_of_every_field_as_the_schema_does() {
    let schema = schema();
    let mut made = String::new();
    section(&schema, "", &schema, &mut made);
    for expected in ["### `pools[].target.processes`", "| `stopTimeout` | duration | `30s` |"] {
        assert!(made.contains(expected), "{made}");
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
    let page = fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(BEGIN).expect("the mark where the reference begins");
    let (now, after) = rest.split_once(END).expect("the mark where the reference ends");
    let made = format!("\n{made}");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, format!("{before}{BEGIN}{made}{END}{after}")).unwrap();
    } else {
        assert!(now == made, "out of date; UPDATE_DOCS=1 cargo test -p forebay-config");
    }
}
